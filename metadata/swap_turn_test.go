package metadata

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/placement"
)

// A drive that lives was to be replaced, and the mover ends before, or after, its i-th message, for i = 0, 7, 14 …; then
// two other members die for good, so that too few are left for this. The same transition gives the place of one
// of them to the newcomer, and the drive that was to leave stays a member.
func TestABegunChangeIsTurnedToAMemberThatDied(t *testing.T) {
	runs := 0
	for i := 0; ; i += 7 {
		finished := false
		synctest.Test(t, func(t *testing.T) {
			w := newSwapWorld(t, erasure.Profile{Data: 4, Parity: 2}, 1)
			want := w.fill(2)
			w.loneRow("k0", 4)
			var mu sync.Mutex
			left := i
			ctx, kill := context.WithCancelCause(t.Context())
			defer kill(nil)
			for _, d := range w.drives {
				d.hook = func(string, bool) error {
					mu.Lock()
					defer mu.Unlock()
					if left--; left < 0 {
						kill(errKilled)
						return errKilled
					}
					return nil
				}
			}
			_, err := w.cl.Swap(ctx, w.swap(1, false))
			if finished = ctx.Err() == nil; finished {
				must(t, err)
				must(t, w.cl.Close(t.Context()))
				return
			}
			for _, d := range w.drives {
				d.hook = nil
			}
			w.reopen()
			w.gone(2, true)
			w.gone(3, true)
			begun := false
			for _, num := range []uint16{1, 4, 5, 6} {
				begun = begun || len(*w.drives[num-1].epochs.Load()) > 0
			}
			if len(w.now().PartitionsOf(1)) == 0 {
				must(t, w.cl.Close(t.Context())) // it was published
				return
			}
			if report, err := w.cl.Swap(t.Context(), w.swap(1, false)); err == nil {
				t.Fatalf("message %d: with four of six members one that lives gave its place away: %+v", i, report)
			}
			sw := w.swap(2, true)
			report, err := w.cl.Swap(t.Context(), sw)
			if err != nil || len(report.Skipped) > 0 {
				t.Fatalf("message %d, begun %v: the next term: %v %+v", i, begun, err, report)
			}
			if l := w.now(); len(l.PartitionsOf(1)) != int(l.Partitions()) || len(l.PartitionsOf(2)) > 0 {
				t.Fatalf("message %d: the drive that stays has %d partitions, the dead one %d", i, len(l.PartitionsOf(1)), len(l.PartitionsOf(2)))
			}
			delete(want, "k0") // either state of it is right, but one
			w.readTwice("k0", []uint16{1, 4, w.spare})
			w.check(want)
			w.rewrite(want)
			w.check(want)
			must(t, w.cl.Close(t.Context()))
		})
		runs++
		if finished || t.Failed() {
			break
		}
	}
	if runs < 15 {
		t.Errorf("only %d messages", runs)
	}
	t.Logf("%d movers ended", runs-1)
}

// What Ends says of a change that was begun is what Swap does with it.
func TestWhatWasBegunEndsWithSoManyMembers(t *testing.T) {
	quorum := func(k, m, f int) placement.Quorum {
		return placement.RecordQuorum(erasure.Profile{Data: uint8(k), Parity: uint8(m)}, f)
	}
	for _, c := range []struct {
		name       string
		q, next    placement.Quorum
		lives, one int // the least members with which one that lives gives its place away, and one that is dead; 0: never
	}{
		{"1+1", quorum(1, 1, 1), quorum(1, 1, 1), 2, 1},
		{"2+2", quorum(2, 2, 1), quorum(2, 2, 1), 3, 2},
		{"4+2", quorum(4, 2, 1), quorum(4, 2, 1), 5, 4},
		{"4+2 that is spread more evenly", quorum(4, 2, 2), quorum(4, 2, 1), 5, 4},
		{"8+4", quorum(8, 4, 1), quorum(8, 4, 1), 9, 8},
		{"1+1 becomes 2+2", quorum(1, 1, 1), quorum(2, 2, 1), 2, 0},
		{"4+2 becomes 8+4", quorum(4, 2, 1), quorum(8, 4, 1), 4, 0},
	} {
		for left := range c.q.N + 1 {
			if got := Ends(c.q, c.next, left, false); got != (left >= c.lives) {
				t.Errorf("%s with %d left: %v", c.name, left, got)
			}
			if c.one > 0 && left < c.q.N && Ends(c.q, c.next, left, true) != (left >= c.one) {
				t.Errorf("%s with %d left, who leaves is dead: %v", c.name, left, left < c.one)
			}
		}
	}
}
