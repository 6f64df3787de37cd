package metadata

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// newWidenWorld is a cluster of the profile narrow with as many drives as wide asks for.
func newWidenWorld(t *testing.T, narrow, wide erasure.Profile, bits uint8) *swapWorld {
	t.Helper()
	w := newSwapWorld(t, narrow, bits)
	for num := narrow.N() + 2; num <= wide.N(); num++ {
		l, err := w.layout.WithDrive(placement.Drive{Num: uint16(num), ID: [16]byte{byte(num)}, Node: [16]byte{1}})
		must(t, err)
		w.layout = l
		w.drives = append(w.drives, &testDrive{kv: &memKV{}, shards: newMemShards()})
		w.restart(len(w.drives) - 1)
	}
	l, err := w.layout.WithProfile(wide, wide)
	must(t, err)
	w.layout = l
	return w
}

// widen asks that every partition which is narrow becomes wide.
func (w *swapWorld) widen() Swap {
	term := w.term.Add(1)
	l := w.now()
	sw := Swap{Transition: 9, Term: term, Layout: l}
	moves := map[uint32][]placement.Move{}
	for p := range l.Partitions() {
		g := l.Group(p)
		if len(g.Drives) == l.N() {
			continue
		}
		for _, d := range l.Drives() {
			if pos := len(g.Drives) + len(moves[p]); g.Position(d.Num) < 0 && pos < l.N() {
				moves[p] = append(moves[p], placement.Move{Partition: p, Position: pos, To: d.Num})
			}
		}
		next := l.Next(moves[p])
		sw.Groups, sw.Next, sw.Join = append(sw.Groups, g), append(sw.Next, next.Quorum), append(sw.Join, next.Drives[len(g.Drives):])
	}
	sw.Publish = func(ctx context.Context, list []uint32) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if ctx.Err() != nil || w.term.Load() != term {
			return errs.E("test", errs.Stale, "a later term, or the mover has ended")
		}
		var all []placement.Move
		for _, p := range list {
			all = append(all, moves[p]...)
		}
		next, err := w.layout.Move(all, slices.Repeat([]int{1}, len(all)))
		if err == nil {
			w.layout = next
		}
		return err
	}
	return sw
}

var widenings = [][2]erasure.Profile{
	{{Data: 1}, {Data: 1, Parity: 1}}, {{Data: 1}, {Data: 2, Parity: 2}}, {{Data: 1, Parity: 1}, {Data: 2, Parity: 2}},
	{{Data: 2, Parity: 1}, {Data: 4, Parity: 2}}, {{Data: 3, Parity: 2}, {Data: 3, Parity: 3}},
}

func TestPartitionsBecomeWider(t *testing.T) {
	for _, x := range widenings {
		t.Run(fmt.Sprint(x[0], " to ", x[1]), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWidenWorld(t, x[0], x[1], 3)
				want := w.fill(40)
				before := w.group("k0")
				sw := w.widen()
				report, err := w.cl.Swap(t.Context(), sw)
				must(t, err)
				if len(report.Swapped) != 8 || len(report.Skipped) != 0 || w.now().Widening() {
					t.Fatalf("report %+v of %d groups", report, len(sw.Groups))
				}
				w.check(want)
				if _, err := w.cl.Read(t.Context(), before, addr("k0"), ReadOptions{}); !errs.Is(err, errs.Stale) {
					t.Errorf("the epoch before answers %v, want stale", err)
				}
				w.rewrite(want)
				w.check(want)
				w.reopen()
				for i := range w.drives {
					w.restart(i)
				}
				w.check(want)
				// As many as the new quorum bears may be away, those who were there at first among them.
				g := w.group("k0")
				for i := range g.Quorum.N - max(g.Quorum.R, g.Quorum.W) {
					w.gone(uint16(i+1), true)
				}
				w.check(want)
				w.rewrite(want)
				w.check(want)
				must(t, w.cl.Close(t.Context()))
			})
		})
	}
}

// Nothing is begun without all newcomers; one that fails afterwards is a member that was away.
func TestANewcomerOfAWideningThatFailsJoinsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWidenWorld(t, erasure.Profile{Data: 1}, erasure.Profile{Data: 2, Parity: 2}, 2)
		want := w.fill(20)
		w.gone(3, true)
		if report, err := w.cl.Swap(t.Context(), w.widen()); !errs.Is(err, errs.Unavailable) || len(report.Skipped) != 4 {
			t.Fatalf("without a newcomer: %v, %+v", err, report)
		}
		w.check(want)
		w.gone(3, false)
		wedges := 0
		w.drives[2].hook = func(what string, after bool) error {
			if what == "wedge" && after {
				wedges++
			}
			if wedges >= 2 { // it was asked, and wedged
				return errKilled
			}
			return nil
		}
		report, err := w.cl.Swap(t.Context(), w.widen())
		must(t, err)
		if len(report.Swapped) != 4 {
			t.Fatalf("report %+v", report)
		}
		w.drives[2].hook = nil
		w.check(want)
		w.rewrite(want)
		must(t, w.cl.Join(t.Context(), 3, w.groups()))
		for key := range want {
			must(t, w.cl.Resync(t.Context(), w.group(key), addr(key), nil))
		}
		w.gone(1, true)
		w.check(want)
		must(t, w.cl.Close(t.Context()))
	})
}

// The mover ends before, or after, its i-th message, for i = 0, 1, 2 … until it comes to its end; another term
// goes on.
func TestAMoverThatEndsAnywhereOfAWideningIsContinued(t *testing.T) {
	for _, x := range widenings[1:3] {
		t.Run(fmt.Sprint(x[0], " to ", x[1]), func(t *testing.T) {
			everyMessage(t, 0, 15, func(t *testing.T, i int) bool {
				w := newWidenWorld(t, x[0], x[1], 1)
				want := w.fill(4)
				w.loneRow("k0", 1)
				ctx, spared := w.killing(i)
				_, err := w.cl.Swap(ctx, w.widen())
				finished := ctx.Err() == nil
				if finished && err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
				spared()
				if !finished {
					w.continued(1, w.widen(), fmt.Sprint("message ", i))
				}
				if w.now().Widening() {
					t.Fatalf("message %d: %d partitions are narrow", i, w.now().Narrow())
				}
				delete(want, "k0") // either state of it is right, but one
				first := w.readTwice("k0", nil)
				w.gone(1, true)
				if again := w.readTwice("k0", nil); again != first {
					t.Fatalf("message %d: reads %q, then %q", i, first, again)
				}
				w.check(want)
				w.rewrite(want)
				w.check(want)
				must(t, w.cl.Close(t.Context()))
				return finished
			})
		})
	}
}
