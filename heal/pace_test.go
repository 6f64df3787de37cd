package heal

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

func TestPaceDecides(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	for _, tc := range []struct {
		name string
		p    pacing
		load int
		wait time.Duration
	}{
		{"idle, without a limit, nothing waits", pacing{last: at.Add(-time.Millisecond)}, 0, 0},
		{"the first one never waits for the load", pacing{}, 100, 0},
		{"under load it rests four times as long as it worked", pacing{last: at.Add(-10 * time.Millisecond)}, 1, 40 * time.Millisecond},
		{"no rest is longer than a second", pacing{last: at.Add(-time.Hour)}, 50, time.Second},
		{"what was waited for counts as rest", pacing{last: at.Add(-50 * time.Millisecond), asked: at.Add(-40 * time.Millisecond)}, 1, 0},
		{"the limit holds when idle", pacing{rate: 1 << 20, free: at.Add(3 * time.Second)}, 0, 3 * time.Second},
		{"the longer of both holds", pacing{rate: 1 << 20, free: at.Add(time.Millisecond), last: at.Add(-10 * time.Millisecond)}, 1, 40 * time.Millisecond},
	} {
		if _, wait := tc.p.decide(at, tc.load, 1<<20); wait != tc.wait {
			t.Errorf("%s: waits %v, not %v", tc.name, wait, tc.wait)
		}
	}
}

func TestPaceKeepsTheLimit(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	now, bytes := at, 0
	p := pacing{rate: 10 << 20}
	for now.Before(at.Add(10 * time.Second)) {
		var wait time.Duration
		if p, wait = p.decide(now, 0, 1<<20); wait == 0 {
			bytes += 1 << 20
		}
		now = now.Add(wait)
	}
	if got := float64(bytes) / (10 << 20); got < 9.5 || got > 10.5 {
		t.Errorf("%.2f seconds' worth went through in 10 seconds", got)
	}
}

func TestPaceLeavesMostOfTheTimeToRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		load := 1
		var mu sync.Mutex // guards load
		p := newPace(func() int { mu.Lock(); defer mu.Unlock(); return load }, time.Now)
		work := func(n int) time.Duration {
			begin := time.Now()
			for range n {
				if err := p.take(context.Background(), 1); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond) // the work: virtual time
			}
			return time.Since(begin)
		}
		if d := work(100); d < 4*time.Second || d > 7*time.Second {
			t.Errorf("a second of work took %v under load", d)
		}
		mu.Lock()
		load = 0
		mu.Unlock()
		if d := work(100); d > 1100*time.Millisecond {
			t.Errorf("a second of work took %v when idle", d)
		}
	})
}

func TestPaceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(nil, time.Now)
		p.setRate(1)
		if err := p.take(t.Context(), 1000); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.take(ctx, 1); !errs.Is(err, errs.Timeout) {
			t.Errorf("got %v", err)
		}
		p.setRate(0)
		if err := p.take(t.Context(), 1); err != nil {
			t.Error(err)
		}
	})
}
