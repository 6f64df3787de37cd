package heal

import (
	"context"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

const (
	// restFactor is how many times as long as it worked background work rests while requests are in
	// flight: a fifth of the time is its own.
	restFactor = 4
	// longestRest bounds one rest, so that whatever the load it goes on at least once a second.
	longestRest = time.Second
	// workUnit bounds what the time since the last grant counts as work: it may also have been idleness.
	workUnit = longestRest / restFactor
	// paceTick is how soon waiting work sees that the load has gone.
	paceTick = 20 * time.Millisecond
	// paceBurst is how much of the limit may be used at once after a pause.
	paceBurst = 250 * time.Millisecond
)

// pacing is what the decision of one grant rests on. It is a value: decide has no clock.
type pacing struct {
	rate  int64     // bytes per second; 0: no limit
	free  time.Time // from when the limit allows the next grant
	last  time.Time // of the last grant
	asked time.Time // when the present caller first asked; zero: not yet
}

// decide says whether size bytes may be worked on now, load requests being in flight, and if not, for
// how long to wait at the most before asking again. The state after it is returned.
func (p pacing) decide(now time.Time, load int, size int) (pacing, time.Duration) {
	if p.asked.IsZero() {
		p.asked = now
	}
	var wait time.Duration
	if p.rate > 0 && p.free.After(now) {
		wait = p.free.Sub(now)
	}
	if load > 0 && !p.last.IsZero() {
		worked := min(max(p.asked.Sub(p.last), 0), workUnit)
		wait = max(wait, p.asked.Add(restFactor*worked).Sub(now))
	}
	if wait > 0 {
		return p, wait
	}
	p.last, p.asked = now, time.Time{}
	if p.rate > 0 {
		if oldest := now.Add(-paceBurst); p.free.Before(oldest) {
			p.free = oldest
		}
		p.free = p.free.Add(time.Duration(float64(size) / float64(p.rate) * float64(time.Second)))
	}
	return p, 0
}

// Pace is the one limiter of all background work: repairs, rebuilds, checks, scrubs and the collection of
// garbage share it. Idle, it lets everything through up to the limit; while requests are in flight,
// work has about a fifth of the time, in turns, and is never starved.
type Pace struct {
	load func() int
	now  func() time.Time
	turn chan struct{} // holds one element while somebody waits for a grant: in order, more or less

	mu sync.Mutex // guards p
	p  pacing
}

// newPace makes a Pace without a limit. load: requests in flight; nil: none ever.
func newPace(load func() int, now func() time.Time) *Pace {
	if load == nil {
		load = func() int { return 0 }
	}
	return &Pace{load: load, now: now, turn: make(chan struct{}, 1)}
}

// setRate changes the limit, in bytes per second; 0: none.
func (p *Pace) setRate(rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p.rate, p.p.free = max(rate, 0), time.Time{}
}

func (p *Pace) decide(size int) time.Duration {
	load := p.load()
	p.mu.Lock()
	defer p.mu.Unlock()
	var wait time.Duration
	p.p, wait = p.p.decide(p.now(), load, size)
	return wait
}

// take waits until size bytes may be worked on. It fails only when ctx ends.
func (p *Pace) take(ctx context.Context, size int) error {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return errs.Wrap("heal.Pace", ctx.Err())
	}
	defer func() { <-p.turn }()
	wait := p.decide(size)
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(min(wait, paceTick))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			p.mu.Lock()
			p.p.asked = time.Time{}
			p.mu.Unlock()
			return errs.Wrap("heal.Pace", ctx.Err())
		}
		if wait = p.decide(size); wait == 0 {
			return nil
		}
		timer.Reset(min(wait, paceTick))
	}
}
