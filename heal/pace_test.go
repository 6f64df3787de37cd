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
		{"what was waited for counts as rest", pacing{last: at.Add(-50 * time.Millisecond), asked: at.Add(-40 * time.Millisecond), seen: at.Add(-30 * time.Millisecond), owed: 30 * time.Millisecond}, 1, 0},
		{"a rest that was begun is rested to its end", pacing{last: at.Add(-50 * time.Millisecond), asked: at.Add(-40 * time.Millisecond), seen: at.Add(-30 * time.Millisecond), owed: 40 * time.Millisecond}, 1, 10 * time.Millisecond},
		{"short rests are put together", pacing{last: at.Add(-time.Millisecond), owed: 5 * time.Millisecond}, 1, 0},
		{"what was put together is rested", pacing{last: at.Add(-time.Millisecond), owed: 17 * time.Millisecond}, 1, 21 * time.Millisecond},
		{"what was rested too long is made up for", pacing{last: at.Add(-10 * time.Millisecond), owed: -30 * time.Millisecond}, 1, 0},
		{"work that has rested for long rests less", pacing{last: at.Add(-20 * time.Millisecond), pressed: pressedAfter}, 1, 30 * time.Millisecond},
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

// worksUnderLoad has work in pieces of so much time ask for its turns for d, and woken up too late by late each time. It returns
// the share of the time that was worked.
func (p *pacing) worksUnderLoad(now *time.Time, d, piece, late time.Duration) float64 {
	var worked time.Duration
	for end := now.Add(d); now.Before(end); {
		next, wait := p.decide(*now, 1, 1)
		if *p = next; wait > 0 {
			*now = now.Add(min(wait, paceTick) + late)
			continue
		}
		worked += piece
		*now = now.Add(piece)
	}
	return float64(worked) / float64(d)
}

// On a machine that is busy everything is late: pieces of work that are short must not cost a rest each that is long.
func TestPaceHasItsShareThoughItIsWokenUpLate(t *testing.T) {
	for _, piece := range []time.Duration{100 * time.Microsecond, time.Millisecond, 30 * time.Millisecond} {
		for _, late := range []time.Duration{0, 10 * time.Millisecond, 80 * time.Millisecond} {
			now := time.Unix(1_800_000_000, 0)
			if got := new(pacing).worksUnderLoad(&now, 30*time.Second, piece, late); got < 0.18 || got > 0.23 {
				t.Errorf("pieces of %v, woken up late by %v: %.3f of the time is worked, want a fifth", piece, late, got)
			}
		}
	}
}

func TestPaceGrowsWithWhatItHasRestedAndLeavesTheLargerPart(t *testing.T) {
	now, p := time.Unix(1_800_000_000, 0), new(pacing)
	minute := func() float64 { return p.worksUnderLoad(&now, time.Minute, 10*time.Millisecond, 0) }
	first := minute()
	last := first
	for i := range 20 {
		got := minute()
		if got < last-0.01 || got > 0.42 {
			t.Errorf("minute %d: %.3f of the time is worked, after %.3f in the one before; want not less, and two fifths at most", i+1, got, last)
		}
		last = got
	}
	if first > 0.23 || last < 0.38 {
		t.Errorf("%.3f of the time was worked at first and %.3f at last, want a fifth and two fifths", first, last)
	}
	for range 12 { // no requests for a while
		*p, _ = p.decide(now, 0, 1)
		now = now.Add(time.Second)
	}
	if got := minute(); got > 0.24 {
		t.Errorf("%.3f of the time is worked after a pause of the requests, want a fifth again", got)
	}
	// The limit holds however long it has rested.
	n, from := 0, now
	for *p = (pacing{pressed: time.Hour, rate: 10}); now.Sub(from) < time.Minute; {
		next, wait := p.decide(now, 1, 1)
		if *p = next; wait == 0 {
			n++
			wait = time.Millisecond
		}
		now = now.Add(wait)
	}
	if n > 605 {
		t.Errorf("%d bytes went through in a minute with a limit of 10 a second", n)
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
