package integration

import (
	"slices"
	"testing"
	"time"
)

// Start to ready: what is promised, and what CI machines that do other work may take.
const (
	readyPromise = 2 * time.Second
	readySlack   = 5 * time.Second
)

// TestKilled ends the process with SIGKILL at random moments under load. Whatever was acknowledged
// is there afterwards, byte for byte; what was deleted stays deleted; what was not acknowledged is
// there whole or not at all; and the store is ready again quickly.
func TestKilled(t *testing.T) {
	kills, limit := 8, readySlack
	if *long && !testing.Short() {
		kills, limit = 100, readyPromise
	}
	s := startLoaded(t, 4)
	l := newLoad(t, s, 10)
	rng := random(11)
	l.resume()
	l.advance(60, time.Minute)
	var ready []time.Duration
	lost := 0
	for kill := range kills {
		// Any moment: in a body, in a sync, between two of them, right after the start.
		moment := time.NewTimer(time.Duration(rng.IntN(600)) * time.Millisecond)
		<-moment.C
		s.kill()
		l.pause()
		lost += len(l.takeFailures()) // requests cut off, each of which the ledger has as possible
		took := s.start()
		ready = append(ready, took)
		if took > limit {
			t.Errorf("kill %d: ready after %v, want at most %v", kill, took, limit)
		}
		// Every key with a request cut off, and some of the others.
		var look, rest []string
		for key, e := range l.entries() {
			if len(e.maybe) > 0 {
				look = append(look, key)
			} else {
				rest = append(rest, key)
			}
		}
		slices.Sort(rest)
		rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
		l.verify(append(look, rest[:12]...))
		if t.Failed() {
			t.Fatalf("after kill %d of %d (seed %d)", kill+1, kills, *seedFlag)
		}
		l.resume()
	}
	l.advance(60, time.Minute)
	l.pause()
	l.noFailures("after the last restart")
	l.verifyAll()
	if t.Failed() {
		return
	}
	s.waitHealed(l.present(), 2*time.Minute)
	slices.Sort(ready)
	t.Logf("%d kills, %d operations, %d cut off; start to ready: median %v, maximum %v", kills, l.ops.Load(), lost,
		ready[len(ready)/2].Round(time.Millisecond), ready[len(ready)-1].Round(time.Millisecond))
}
