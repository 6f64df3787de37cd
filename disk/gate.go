package disk

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// gate runs blocking operations of a drive so that none holds up its caller beyond the caller's
// ctx. At most limit run at once, those included that were left behind because the drive hangs.
type gate struct {
	limit int
	stuck time.Duration
	now   func() time.Time
	slots chan struct{}

	// mu guards the fields below.
	mu       sync.Mutex
	running  int
	progress time.Time // when an operation last began on an idle drive, or last ended
	closing  bool
	idle     chan struct{}
}

// stuckMin is how many operations must be under way before their silence counts.
const stuckMin = 16

func newGate(limit int, stuck time.Duration, now func() time.Time) *gate {
	return &gate{limit: limit, stuck: stuck, now: now, slots: make(chan struct{}, limit), idle: make(chan struct{})}
}

func (g *gate) enter(ctx context.Context, op string, faulted <-chan struct{}) error {
	g.mu.Lock()
	hung := g.running >= min(stuckMin, g.limit) && g.now().Sub(g.progress) > g.stuck
	g.mu.Unlock()
	if hung {
		return errs.E(op, errs.Drive, "drive does not answer")
	}
	select {
	case g.slots <- struct{}{}:
	default:
		select {
		case g.slots <- struct{}{}:
		case <-ctx.Done():
			return errs.Wrap(op, ctx.Err())
		case <-faulted:
			return errs.E(op, errs.Drive, "drive is out of service")
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closing {
		<-g.slots
		return errs.E(op, errs.Drive, "drive is closed")
	}
	if g.running == 0 {
		g.progress = g.now()
	}
	g.running++
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	g.running--
	g.progress = g.now()
	if g.running == 0 && g.closing {
		close(g.idle)
	}
	g.mu.Unlock()
	<-g.slots
}

func (g *gate) inFlight() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running
}

// close lets no more in and waits for those inside.
func (g *gate) close(ctx context.Context) error {
	g.mu.Lock()
	if !g.closing {
		g.closing = true
		if g.running == 0 {
			close(g.idle)
		}
	}
	g.mu.Unlock()
	select {
	case <-g.idle:
		return nil
	case <-ctx.Done():
		return errs.As("disk.Close", errs.Timeout, ctx.Err())
	}
}

// call runs f on behalf of the drive d. When ctx ends first, or the drive fails, that is returned and f is left
// to end by itself, its result dropped: f must not touch memory that its caller may use again. Nothing
// is answered once the drive is out of service, even if it was done.
func call[T any](ctx context.Context, d *Drive, op string, f func(context.Context) (T, error)) (T, error) {
	return callOr(ctx, d, op, f, nil)
}

// callOr is call for results that must be given back: drop gets what nobody took.
func callOr[T any](ctx context.Context, d *Drive, op string, f func(context.Context) (T, error), drop func(T)) (T, error) {
	var zero T
	if err := d.faultError(); err != nil {
		return zero, err
	}
	if err := ctx.Err(); err != nil {
		return zero, errs.Wrap(op, err)
	}
	if err := d.gate.enter(ctx, op, d.faulted); err != nil {
		return zero, err
	}
	answer := func(v T, err error) (T, error) {
		if err != nil {
			return v, err
		}
		if err = d.faultError(); err != nil {
			if drop != nil {
				drop(v)
			}
			return zero, err
		}
		return v, nil
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	var settled atomic.Bool // by the caller leaving, or by f returning
	go func() {
		defer d.gate.leave()
		v, err := f(ctx)
		if settled.CompareAndSwap(false, true) {
			done <- result{v, err}
		} else if err == nil && drop != nil {
			drop(v)
		}
	}()
	select {
	case r := <-done:
		return answer(r.v, r.err)
	case <-ctx.Done():
		if settled.CompareAndSwap(false, true) {
			return zero, errs.Wrap(op, ctx.Err())
		}
		r := <-done
		return answer(r.v, r.err)
	case <-d.faulted:
		// What waits inside the record store of a drive that has failed may wait for ever.
		if settled.CompareAndSwap(false, true) {
			return zero, d.faultError()
		}
		r := <-done
		return answer(r.v, r.err)
	}
}

// run is call for functions without a result.
func run(ctx context.Context, d *Drive, op string, f func(context.Context) error) error {
	_, err := call(ctx, d, op, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}
