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
	// leastFactor is what that comes down to, in even steps, while work has rested for pressedAfter in all and there still is
	// some: two fifths of the time. Requests keep the larger part.
	leastFactor  = 1.5
	pressedAfter = 10 * time.Minute
	// longestRest bounds one rest, so that whatever the load it goes on at least once a second; and how much of what was
	// rested beyond what was due is made up for.
	longestRest = time.Second
	// workUnit bounds what the time since the last grant counts as work: it may also have been idleness.
	workUnit = longestRest / restFactor
	// paceTick is how soon waiting work sees that the load has gone, and the shortest rest: less is put together. On a busy
	// machine it takes longer to wake up than a small piece of work.
	paceTick = 20 * time.Millisecond
	// calmAfter is how long there must have been no requests, or no work, until it no longer counts how long work has rested.
	calmAfter = 10 * time.Second
	// paceBurst is how much of the limit may be used at once after a pause.
	paceBurst = 250 * time.Millisecond
)

// pacing is what the decision of one grant rests on. It is a value: decide has no clock.
type pacing struct {
	rate  int64     // bytes per second; 0: no limit
	free  time.Time // from when the limit allows the next grant
	last  time.Time // of the last grant
	asked time.Time // when the present caller first asked; zero: not yet
	// owed is the rest that is due while requests are in flight; below 0: what was rested beyond it. Up to seen it is counted.
	owed time.Duration
	seen time.Time
	// pressed is how long work has rested; calm is since when no requests were met, zero: there were some.
	pressed time.Duration
	calm    time.Time
}

// factor is how many times as long as it works work rests now.
func (p *pacing) factor() float64 {
	return restFactor - (restFactor-leastFactor)*min(float64(p.pressed)/float64(pressedAfter), 1)
}

// account counts what was worked and rested until now, and reports whether the present caller asks for the first time.
func (p *pacing) account(now time.Time, load int) (first bool) {
	if first = p.asked.IsZero(); first {
		p.asked = now
		if !p.last.IsZero() {
			idle := now.Sub(p.last)
			if idle >= calmAfter {
				p.pressed = 0
			}
			p.owed += time.Duration(p.factor() * float64(min(max(idle, 0), workUnit)))
		}
	} else {
		rested := max(now.Sub(p.seen), 0)
		p.owed -= rested
		if p.rate == 0 || !p.free.After(p.seen) { // else it was the limit
			p.pressed += rested
		}
	}
	p.seen = now
	switch {
	case load > 0:
		p.calm = time.Time{}
	case p.calm.IsZero():
		p.calm = now
	case now.Sub(p.calm) >= calmAfter:
		p.pressed = 0
	}
	if load == 0 {
		p.owed = min(p.owed, 0)
	}
	p.owed = min(max(p.owed, -longestRest), longestRest)
	return first
}

// decide says whether size bytes may be worked on now, load requests being in flight, and if not, for
// how long to wait at the most before asking again. The state after it is returned.
func (p pacing) decide(now time.Time, load int, size int) (pacing, time.Duration) {
	first := p.account(now, load)
	var wait time.Duration
	if p.rate > 0 && p.free.After(now) {
		wait = p.free.Sub(now)
	}
	if load > 0 && (p.owed >= paceTick || !first) {
		wait = max(wait, p.owed)
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
// work has about a fifth of the time, in turns, or up to two fifths, the longer there has been more of it than that, and is
// never starved. A rest that took too long, on a machine on which everything does, is made up for.
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
