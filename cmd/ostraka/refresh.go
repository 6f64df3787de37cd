package main

import (
	"context"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// refreshWithin bounds one question to the leader.
const refreshWithin = 10 * time.Second

// refresher bounds the questions to the leader whether what is known here is current. Every request for a bucket that does not
// exist asks one, and an answer of a moment ago is not good enough: the bucket may have been made since. So
// whoever asks waits for a question that begins after that, and all who wait share it: there is one at a time, however many
// requests come.
type refresher struct {
	ask func(ctx context.Context) error

	// mu guards the fields below.
	mu      sync.Mutex
	next    *refresh // that begins when the present one has ended; nil: nobody wants one
	running bool
	closed  bool
	asking  sync.WaitGroup
}

type refresh struct {
	done chan struct{} // closed once err is valid
	err  error
}

// Refresh makes what is known here at least as new as everything that was answered anywhere before the call.
func (r *refresher) Refresh(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return errs.E("server.Refresh", errs.Unavailable, "the process is stopping")
	}
	if r.next == nil {
		r.next = &refresh{done: make(chan struct{})}
	}
	mine := r.next
	if !r.running {
		r.running = true
		r.asking.Go(r.run)
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return errs.Wrap("server.Refresh", ctx.Err())
	}
}

// run asks as long as somebody wants it.
func (r *refresher) run() {
	for {
		r.mu.Lock()
		mine := r.next
		r.next = nil
		r.running = mine != nil
		r.mu.Unlock()
		if mine == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), refreshWithin)
		mine.err = r.ask(ctx)
		cancel()
		close(mine.done)
	}
}

// close waits until nothing is asked any more. Who asks from then on is refused.
func (r *refresher) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.asking.Wait()
}
