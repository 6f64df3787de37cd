package main

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/internal/errs"
)

func TestManyWhoAskShareAQuestionThatBeganAfterThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int64
		answer := make(chan error)
		r := &refresher{ask: func(context.Context) error {
			begun.Add(1)
			return <-answer
		}}
		var all sync.WaitGroup
		results := make([]error, 100)
		all.Go(func() { results[0] = r.Refresh(t.Context()) })
		synctest.Wait() // the first question is under way: it is too old for whoever comes now
		for i := 1; i < len(results); i++ {
			all.Go(func() { results[i] = r.Refresh(t.Context()) })
		}
		synctest.Wait()
		if n := begun.Load(); n != 1 {
			t.Fatalf("%d questions at a time", n)
		}
		answer <- nil
		answer <- errs.E("test", errs.Unavailable, "no leader")
		all.Wait()
		r.close()
		if n := begun.Load(); n != 2 {
			t.Errorf("%d questions for 100 requests, want 2", n)
		}
		for i, err := range results {
			if want := i > 0; errs.Is(err, errs.Unavailable) != want {
				t.Errorf("request %d: %v; is to be the error of the second question: %v", i, err, want)
			}
		}
	})
}

func TestWhoGivesUpAskingHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan error)
		r := &refresher{ask: func(context.Context) error { return <-answer }}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Refresh(gone); !errs.Is(err, errs.Canceled) {
			t.Errorf("given up: %v", err)
		}
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- r.Refresh(t.Context()) }()
		answer <- nil
		answer <- nil
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.close()
	})
}
