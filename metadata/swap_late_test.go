package metadata

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// stuckWorld has one drive of which the messages of changes of membership stop being answered after so many, or are
// answered late.
type stuckWorld struct {
	*swapWorld
	num   uint16        // the one
	delay time.Duration // of each answer from then on; 0: none comes

	mu   sync.Mutex // guards left
	left int
}

type stuckDrive struct {
	*wire
	o *stuckWorld
}

func (o *stuckWorld) Replica(num uint16) (Replica, bool) {
	r, ok := o.swapWorld.Replica(num)
	if w, is := r.(*wire); is && num == o.num {
		return stuckDrive{w, o}, ok
	}
	return r, ok
}

// answers waits until ctx ends once the drive is stuck, or for as long as it is late.
func (d stuckDrive) answers(ctx context.Context) error {
	d.o.mu.Lock()
	d.o.left--
	stuck := d.o.left < 0
	d.o.mu.Unlock()
	if !stuck {
		return ctx.Err()
	}
	var late <-chan time.Time
	if d.o.delay > 0 {
		late = time.After(d.o.delay)
	}
	select {
	case <-late:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// stands reports whether anybody is wedged.
func (w *swapWorld) stands() bool {
	for _, d := range w.drives {
		if d.Acceptor.moving() {
			return true
		}
	}
	return false
}

func answered[M, R any](ctx context.Context, d stuckDrive, m M, f func(context.Context, M) (R, error)) (r R, err error) {
	if err := d.answers(ctx); err != nil {
		return r, err
	}
	return f(ctx, m)
}

func (d stuckDrive) Wedge(ctx context.Context, m *WedgeRequest) (*WedgeReply, error) {
	return answered(ctx, d, m, d.wire.Wedge)
}
func (d stuckDrive) Rows(ctx context.Context, m *RowsRequest) (*RowsReply, error) {
	return answered(ctx, d, m, d.wire.Rows)
}
func (d stuckDrive) Lookup(ctx context.Context, m *LookupRequest) (*RowsReply, error) {
	return answered(ctx, d, m, d.wire.Lookup)
}
func (d stuckDrive) Transfer(ctx context.Context, m *TransferRequest) (*TransferReply, error) {
	return answered(ctx, d, m, d.wire.Transfer)
}
func (d stuckDrive) Digests(ctx context.Context) ([]Digest, error) {
	return answered(ctx, d, 0, func(ctx context.Context, _ int) ([]Digest, error) { return d.wire.Digests(ctx) })
}
func (d stuckDrive) InstallEpoch(ctx context.Context, m *InstallEpochRequest) error {
	_, err := answered(ctx, d, m, func(ctx context.Context, m *InstallEpochRequest) (int, error) { return 0, d.wire.InstallEpoch(ctx, m) })
	return err
}

// A member that stops answering at any message of a change is done without, and soon: its partitions stand still
// meanwhile. It joins later.
func TestPartitionsDoNotStandStillForADriveThatIsStuck(t *testing.T) {
	for _, c := range []struct {
		name  string
		stuck uint16 // drive
	}{{"a member", 3}, {"who leaves", 1}, {"the newcomer", 5}} {
		t.Run(c.name, func(t *testing.T) {
			var longest time.Duration
			everyMessage(t, 1, 4, func(t *testing.T, i int) bool { // nothing stands still before the first was answered
				w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
				want := w.fill(8)
				w.loneRow("k0", 4) // so that something has to be carried
				delete(want, "k0")
				o := &stuckWorld{swapWorld: w, num: c.stuck, left: i}
				cl := NewClient(ClientConfig{Replicas: o})
				begun := time.Now()
				for try := 0; ; try++ {
					report, err := cl.Swap(t.Context(), w.swap(1, false))
					if err == nil && len(report.Skipped) == 0 {
						break
					}
					if try == 3 {
						t.Fatalf("message %d: %v (%+v)", i, err, report)
					}
					if !w.stands() { // the drive was stuck before anything was changed
						o.mu.Lock()
						o.left = 1 << 20
						o.mu.Unlock()
						begun = time.Now()
					}
					time.Sleep(time.Second)
				}
				longest = max(longest, time.Since(begun))
				o.mu.Lock()
				finished := o.left >= 0 && o.left < 1<<19
				o.left = 1 << 20
				o.mu.Unlock()
				must(t, cl.Close(t.Context()))
				w.check(want)
				for _, d := range w.layout.Drives() {
					must(t, w.cl.Join(t.Context(), d.Num, w.groups()))
				}
				w.rewrite(want)
				w.check(want)
				must(t, w.cl.Close(t.Context()))
				return finished
			})
			if longest > 3*patience {
				t.Errorf("partitions stood still for %v", longest)
			}
			t.Logf("the longest pause was %v", longest)
		})
	}
}

// The only drive of a store that becomes wider is slow once it is wedged. With the same patience every term gives it up
// where the one before did, and its partitions stand still for good.
func TestADriveThatIsNeededIsWaitedForWithMorePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWidenWorld(t, erasure.Profile{Data: 1}, erasure.Profile{Data: 2, Parity: 2}, 2)
		want := w.fill(8)
		o := &stuckWorld{swapWorld: w, num: 1, left: 2, delay: 3 * patience / 2} // it was asked, and wedged
		cl := NewClient(ClientConfig{Replicas: o})
		for term := range 3 {
			begun := time.Now()
			report, err := cl.Swap(t.Context(), w.widen())
			if !errs.Is(err, errs.Unavailable) || len(report.Skipped) != 4 || len(report.Wedged) != 4 || !w.stands() {
				t.Fatalf("term %d: %v, %+v; want 4 partitions that stand still", term, err, report)
			}
			if d := time.Since(begun); d > 2*patience {
				t.Errorf("term %d: partitions stood still for %v, for a drive that was given up", term, d)
			}
		}
		sw := w.widen()
		sw.Patience = 2 * patience
		report, err := cl.Swap(t.Context(), sw)
		if err != nil || len(report.Swapped) != 4 || len(report.Wedged) != 0 {
			t.Fatalf("with more patience: %v, %+v", err, report)
		}
		must(t, cl.Close(t.Context()))
		w.check(want)
		w.rewrite(want)
		w.check(want)
		must(t, w.cl.Close(t.Context()))
	})
}
