package metadata

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// move asks for a move of everything that from has to to, both living, as a transition of its own.
func (w *swapWorld) move(transition uint64, from, to uint16) Swap {
	l := w.now()
	sw := Swap{Transition: transition, Term: 1, Old: from, New: to, Layout: l}
	for _, p := range l.PartitionsOf(from) {
		sw.Groups = append(sw.Groups, l.Group(p))
	}
	sw.Publish = func(_ context.Context, list []uint32) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		next, err := w.layout.Swap(from, to, list)
		if err == nil {
			w.layout = next
		}
		return err
	}
	return sw
}

func (w *swapWorld) moved(transition uint64, from, to uint16) {
	w.t.Helper()
	sw := w.move(transition, from, to)
	report, err := w.cl.Swap(w.t.Context(), sw)
	must(w.t, err)
	if len(report.Swapped) != len(sw.Groups) {
		w.t.Fatalf("report %+v of %d groups", report, len(sw.Groups))
	}
}

// A drive gives its places away, and has them back later. Tombstones were dropped in between.
func TestADriveThatComesBackToAPartitionBringsNothing(t *testing.T) {
	for _, p := range swapProfiles {
		for _, let := range []bool{false, true} {
			t.Run(fmt.Sprint(p, ", rows let go of: ", let), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newSwapWorld(t, p, 3)
					want := w.fill(24)
					w.reopen() // decisions are everywhere
					left := w.now().PartitionsOf(1)
					w.moved(1, 1, w.spare)
					if let {
						n, err := w.cl.Leave(t.Context(), w.now(), 1, left)
						must(t, err)
						if n == 0 {
							t.Fatal("the drive had no rows")
						}
					}
					// Everything that is simple is deleted, and its tombstone dropped.
					for key := range want {
						must(t, w.remove(t.Context(), w.cl, key))
						want[key] = ""
					}
					w.reopen()
					dropped := 0
					for key := range want {
						must(t, w.cl.Resync(t.Context(), w.group(key), addr(key), nil))
						if ok, err := w.cl.Drop(t.Context(), w.group(key), addr(key)); err == nil && ok {
							dropped++
						}
					}
					if dropped == 0 {
						t.Fatal("no tombstone was dropped")
					}
					w.moved(2, w.spare, 1)
					w.check(want)
					for key := range want {
						if v, err := w.cl.Read(t.Context(), w.group(key), addr(key), ReadOptions{}); err != nil || etagOf(v) != "" {
							t.Errorf("%s: %v, %v", key, etagOf(v), err)
						}
					}
					w.rewrite(want)
					w.reopen() // what is late ends before its drives do
					for i := range w.drives {
						w.restart(i)
					}
					w.check(want)
					must(t, w.cl.Close(t.Context()))
				})
			})
		}
	}
}

// Only who is a member holds up the fence of a bucket while its partition is between two epochs.
func TestADriveThatLeftTakesFences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, swapProfiles[2], 3)
		w.fill(4)
		w.moved(1, 1, w.spare)
		for i, d := range w.drives {
			if err := d.Fence(t.Context(), &FenceRequest{Bucket: 77, Epoch: 2}); err != nil {
				t.Errorf("drive %d: %v", i+1, err)
			}
		}
		must(t, w.cl.Close(t.Context()))
	})
}

func TestAMemberDoesNotRemoveItsRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, swapProfiles[2], 3)
		want := w.fill(12)
		for _, num := range []uint16{1, 2} {
			if n, err := w.cl.Leave(t.Context(), w.now(), num, w.now().PartitionsOf(num)); n != 0 || !errs.Is(err, errs.Stale) {
				t.Errorf("drive %d: %d rows, %v", num, n, err)
			}
		}
		// Nor one that is about to be one: wedged by a transition that has not ended.
		sw := w.move(3, 1, w.spare)
		publish := sw.Publish
		sw.Publish = func(ctx context.Context, list []uint32) error {
			return errs.E("test", errs.Unavailable, "no leader")
		}
		if _, err := w.cl.Swap(t.Context(), sw); !errs.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
		parts := w.now().PartitionsOf(1)
		d := w.drives[w.spare-1]
		for i, p := range parts {
			m := &TransferRequest{Drive: w.spare, Rows: []TransferRow{{Address: addr(fmt.Sprint("k", i)), Partition: p}}}
			if _, err := d.Transfer(t.Context(), m); !errs.Is(err, errs.Stale) {
				t.Errorf("partition %d of the newcomer: %v", p, err)
			}
		}
		sw.Term, sw.Publish = 2, publish
		_, err := w.cl.Swap(t.Context(), sw)
		must(t, err)
		w.check(want)
		must(t, w.cl.Close(t.Context()))
	})
}

// It was installed in an epoch that was then published with another in its place. Once that is known, it is none there, and can be made
// empty; as long as the epoch is yet to be published it may be one.
func TestADriveThatWasNotTakenAfterAllRemovesItsRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, swapProfiles[2], 3)
		w.fill(12)
		left := w.now().PartitionsOf(1)
		w.moved(1, 1, w.spare) // the published epoch is that of the spare: drive 1 is none of it
		a := w.drives[0].Acceptor
		for _, c := range []struct {
			beyond uint64
			stale  bool
		}{{1, true}, {0, false}} {
			a.fence.Lock()
			var b Batch
			rows := map[uint32]epochRow{}
			for _, p := range left {
				r := a.epochRow(p)
				e := w.now().Group(p).Epoch
				r.transition, r.term, r.wedged, r.installed = 9, 1, e-1, e+c.beyond
				rows[p] = r
			}
			err := a.setEpochs(&b, rows, nil)
			a.fence.Unlock()
			must(t, err)
			if _, err := w.cl.Leave(t.Context(), w.now(), 1, left); errs.Is(err, errs.Stale) != c.stale || !c.stale && err != nil {
				t.Errorf("installed %d epochs beyond the published one: %v", c.beyond, err)
			}
		}
		must(t, w.cl.Close(t.Context()))
	})
}

// The members come to lie on more failure domains, and W rises by one: the image must be on as many.
func TestAQuorumThatChangesWithTheEpochMeetsTheImage(t *testing.T) {
	prof := swapProfiles[3] // 4+2
	narrow, wide := placement.RecordQuorum(prof, 2), placement.RecordQuorum(prof, 1)
	if narrow.W >= wide.W {
		t.Fatalf("W is %d and %d: this shows nothing", narrow.W, wide.W)
	}
	for gone := range 3 {
		for _, next := range []placement.Quorum{narrow, wide} {
			s := newSwapper(narrow, 0, false, mutations{})
			s.w = max(s.w, next.W)
			for seat := range s.q.N + 1 {
				if seat == 0 || seat > gone {
					s.here(seat)
				}
			}
			// The survivors, and the newcomer if it is full, must be enough for either epoch.
			n := s.q.N - 1 - gone + 1
			if want := n >= next.W && n >= narrow.W; s.enough() != want {
				t.Errorf("%d members away, W %d → %d: enough is %v", gone, narrow.W, next.W, s.enough())
			}
			if !s.enough() {
				continue
			}
			for seat := range s.q.N + 1 {
				if s.present[seat] {
					s.wedge(seat)
				}
			}
			if !s.wedged() || s.full != (n-1 < s.w) {
				t.Errorf("%d members away, W %d → %d: full is %v", gone, narrow.W, next.W, s.full)
			}
			installed := 0
			for seat := range s.q.N + 1 {
				if ready := installed >= max(next.W, narrow.W); s.ready() != ready {
					t.Errorf("%d installed of W %d → %d: ready is %v", installed, narrow.W, next.W, s.ready())
				}
				if s.counts(seat) {
					s.begin(seat)
					installed++
				}
			}
		}
	}
}
