package metadata

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// hooked passes a message on between two calls of the drive's hook.
func hooked[R any](w *wire, what string, f func() (R, error)) (r R, err error) {
	w.d.mu.Lock()
	hook := w.d.hook
	w.d.mu.Unlock()
	if hook == nil {
		return f()
	}
	if err := hook(what, false); err != nil {
		return r, err
	}
	r, err = f()
	if e := hook(what, true); e != nil {
		return r, e
	}
	return r, err
}

func (w *wire) Digests(ctx context.Context) ([]Digest, error) {
	return hooked(w, "digests", func() ([]Digest, error) { return w.d.Acceptor.Digests(ctx) })
}
func (w *wire) Rows(ctx context.Context, m *RowsRequest) (*RowsReply, error) {
	return hooked(w, "rows", func() (*RowsReply, error) {
		return roundTrip[RowsRequest, RowsReply](ctx, w, m, w.d.Acceptor.Rows)
	})
}
func (w *wire) Lookup(ctx context.Context, m *LookupRequest) (*RowsReply, error) {
	return hooked(w, "lookup", func() (*RowsReply, error) {
		return roundTrip[LookupRequest, RowsReply](ctx, w, m, w.d.Acceptor.Lookup)
	})
}
func (w *wire) Copy(ctx context.Context, m *VersionsRequest) (*VersionsReply, error) {
	return hooked(w, "copy", func() (*VersionsReply, error) {
		return roundTrip[VersionsRequest, VersionsReply](ctx, w, m, w.d.Acceptor.Copy)
	})
}
func (w *wire) Wedge(ctx context.Context, m *WedgeRequest) (*WedgeReply, error) {
	return hooked(w, "wedge", func() (*WedgeReply, error) {
		return roundTrip[WedgeRequest, WedgeReply](ctx, w, m, w.d.Acceptor.Wedge)
	})
}
func (w *wire) Transfer(ctx context.Context, m *TransferRequest) (*TransferReply, error) {
	return hooked(w, "transfer", func() (*TransferReply, error) {
		return roundTrip[TransferRequest, TransferReply](ctx, w, m, w.d.Acceptor.Transfer)
	})
}
func (w *wire) InstallEpoch(ctx context.Context, m *InstallEpochRequest) error {
	_, err := hooked(w, "install", func() (struct{}, error) {
		return struct{}{}, w.d.Acceptor.InstallEpoch(ctx, carry[InstallEpochRequest](m))
	})
	return err
}
func (w *wire) Installed(ctx context.Context, partitions []uint32) ([]uint64, error) {
	return w.d.Acceptor.Installed(ctx, partitions)
}

// swapWorld is a cluster with a drive to spare, and the control plane's part of a transition.
type swapWorld struct {
	*cluster
	cl    *Client
	spare uint16
	term  atomic.Uint64
}

func newSwapWorld(t *testing.T, p erasure.Profile, bits uint8) *swapWorld {
	t.Helper()
	c := newCluster(t, p.N(), p, bits)
	w := &swapWorld{cluster: c, spare: uint16(p.N() + 1)}
	l, err := c.layout.WithDrive(placement.Drive{Num: w.spare, ID: [16]byte{byte(w.spare)}, Node: [16]byte{1}})
	must(t, err)
	c.layout = l
	c.drives = append(c.drives, &testDrive{kv: &memKV{}, shards: newMemShards()})
	c.restart(len(c.drives) - 1)
	w.cl = c.client()
	return w
}

// reopen ends the client, with all that runs in its background, and begins another.
func (w *swapWorld) reopen() {
	w.t.Helper()
	must(w.t, w.cl.Close(w.t.Context()))
	w.cl = w.client()
}

func (w *swapWorld) gone(num uint16, gone bool) {
	w.set(int(num)-1, func(d *testDrive) { d.gone = gone })
}

// swap asks for everything that is left of old.
func (w *swapWorld) swap(old uint16, gone bool) Swap {
	term := w.term.Add(1)
	l := w.now()
	sw := Swap{Transition: 9, Term: term, Old: old, New: w.spare, OldGone: gone, Layout: l}
	for _, p := range l.PartitionsOf(old) {
		sw.Groups = append(sw.Groups, l.Group(p))
	}
	sw.Publish = func(_ context.Context, list []uint32) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.term.Load() != term {
			return errs.E("test", errs.Stale, "a later term")
		}
		next, err := w.layout.Swap(old, w.spare, list)
		if err == nil {
			w.layout = next
		}
		return err
	}
	return sw
}

// fill writes objects of all sorts, and returns what they must read as.
func (w *swapWorld) fill(keys int) map[string]string {
	w.t.Helper()
	want := map[string]string{}
	for i := range keys {
		key, etag := fmt.Sprint("k", i), fmt.Sprint("e", i)
		_, err := w.put(w.t.Context(), w.cl, key, etag)
		must(w.t, err)
		switch i % 4 {
		case 1:
			must(w.t, w.remove(w.t.Context(), w.cl, key))
			etag = ""
		case 2:
			for j := range 3 {
				etag = fmt.Sprint("v", i, ".", j)
				must(w.t, w.push(w.t.Context(), w.cl, key, etag))
			}
		}
		want[key] = etag
	}
	return want
}

func (w *swapWorld) check(want map[string]string) {
	w.t.Helper()
	for key, etag := range want {
		v, err := w.cl.Read(w.t.Context(), w.group(key), addr(key), ReadOptions{})
		if err != nil {
			w.t.Fatalf("read %s: %v", key, err)
		}
		if got := etagOf(v); got != etag {
			w.t.Fatalf("%s reads as %q, want %q", key, got, etag)
		}
	}
}

// rewrite writes every key once more.
func (w *swapWorld) rewrite(want map[string]string) {
	w.t.Helper()
	for key := range want {
		must(w.t, w.push(w.t.Context(), w.cl, key, key+" again"))
		want[key] = key + " again"
	}
}

var swapProfiles = []erasure.Profile{{Data: 1, Parity: 1}, {Data: 2, Parity: 1}, {Data: 2, Parity: 2}, {Data: 4, Parity: 2}}

func TestADeadDriveIsReplaced(t *testing.T) {
	for _, p := range swapProfiles {
		t.Run(p.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newSwapWorld(t, p, 3)
				want := w.fill(40)
				before := w.group("k0")
				w.gone(1, true)
				sw := w.swap(1, true)
				report, err := w.cl.Swap(t.Context(), sw)
				must(t, err)
				if len(report.Swapped) != len(sw.Groups) || len(report.Skipped) != 0 {
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
				must(t, w.cl.Close(t.Context()))
			})
		})
	}
}

// What a drive that will be dead holds alone, or with others that are away, is not lost.
func TestADriveThatStillLivesIsReplaced(t *testing.T) {
	for _, p := range append([]erasure.Profile{{Data: 1}}, swapProfiles...) {
		t.Run(p.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newSwapWorld(t, p, 3)
				want := w.fill(24)
				_, err := w.cl.Swap(t.Context(), w.swap(1, false))
				must(t, err)
				w.gone(1, true)
				w.check(want)
				w.rewrite(want)
				w.check(want)
				must(t, w.cl.Close(t.Context()))
			})
		})
	}
}

func TestFewerThanWSurvivorsCopyEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, erasure.Profile{Data: 4, Parity: 2}, 3)
		want := w.fill(40)
		w.gone(1, true)
		for key := range want { // 2 is not away yet
			if len(key)%2 == 0 {
				must(t, w.push(t.Context(), w.cl, key, key+" late"))
				want[key] = key + " late"
			}
		}
		w.gone(2, true) // four survivors of six, W is five
		report, err := w.cl.Swap(t.Context(), w.swap(1, true))
		must(t, err)
		if len(report.Skipped) != 0 || report.Rows < len(want) {
			t.Fatalf("report %+v", report)
		}
		w.check(want)
		w.rewrite(want)
		time.Sleep(5 * time.Second) // virtual: decisions arrive
		w.gone(3, true)             // now the newcomer's rows are needed to read
		w.check(want)
		w.gone(3, false)
		w.gone(2, false)
		g := w.group("k0")
		if _, err := w.drives[1].Read(t.Context(), &ReadRequest{Header: Header{Drive: 2, Partition: g.Partition, Epoch: g.Epoch}, Address: addr("k0")}); !errs.Is(err, errs.Stale) {
			t.Fatalf("a member that is not installed answers %v", err)
		}
		must(t, w.cl.Join(t.Context(), 2, w.groups()))
		if _, err := w.drives[1].Read(t.Context(), &ReadRequest{Header: Header{Drive: 2, Partition: g.Partition, Epoch: g.Epoch}, Address: addr("k0")}); err != nil {
			t.Fatalf("a member that joined answers %v", err)
		}
		w.check(want)
		for key := range want {
			must(t, w.cl.Resync(t.Context(), w.group(key), addr(key), nil))
		}
		w.check(want)
		must(t, w.cl.Close(t.Context()))
	})
}

func (w *swapWorld) groups() (list []placement.Group) {
	l := w.now()
	for p := range l.Partitions() {
		list = append(list, l.Group(p))
	}
	return list
}

func TestTooFewDrivesChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 2)
		want := w.fill(12)
		for _, away := range [][]uint16{{2, 3}, {w.spare}} {
			w.gone(1, true)
			for _, d := range away {
				w.gone(d, true)
			}
			sw := w.swap(1, true)
			report, err := w.cl.Swap(t.Context(), sw)
			if !errs.Is(err, errs.Unavailable) || len(report.Skipped) != len(sw.Groups) {
				t.Fatalf("got %v, %+v", err, report)
			}
			for _, d := range append(away, 1) {
				w.gone(d, false)
			}
			for i, d := range w.drives {
				if rows := *d.epochs.Load(); len(rows) != 0 {
					t.Fatalf("drive %d holds %+v", i+1, rows)
				}
			}
			w.check(want)
			w.rewrite(want)
		}
		must(t, w.cl.Close(t.Context()))
	})
}

var errKilled = errors.New("killed")

// everyMessage runs f in a bubble for the i-th message of something, from i = first on, until it comes to its end before
// that. There must be more than least of them.
func everyMessage(t *testing.T, first, least int, f func(t *testing.T, i int) (finished bool)) {
	t.Helper()
	for i := first; ; i++ {
		finished := false
		synctest.Test(t, func(t *testing.T) { finished = f(t, i) })
		if t.Failed() {
			return
		}
		if finished {
			if n := i - first; n < least {
				t.Errorf("only %d messages", n)
			}
			t.Logf("%d messages", i-first)
			return
		}
	}
}

// killing ends the mover that runs under ctx before, or after, its i-th message to a drive. After spared messages pass again,
// and ctx is over.
func (w *swapWorld) killing(i int) (ctx context.Context, spared func()) {
	var mu sync.Mutex // guards i
	ctx, kill := context.WithCancelCause(w.t.Context())
	for _, d := range w.drives {
		d.hook = func(string, bool) error {
			mu.Lock()
			defer mu.Unlock()
			if i--; i < 0 {
				kill(errKilled)
				return errKilled
			}
			return nil
		}
	}
	return ctx, func() {
		for _, d := range w.drives {
			d.hook = nil
		}
		kill(nil)
	}
}

// The mover ends before, or after, its i-th message, for i = 0, 1, 2 … until it comes to its end; another term
// goes on.
func TestAMoverThatEndsAnywhereIsContinued(t *testing.T) {
	for _, away := range []uint16{0, 2} { // 2: the newcomer gets everything
		everyMessage(t, 0, 20, func(t *testing.T, i int) bool {
			w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
			want := w.fill(4)
			w.gone(1, true)
			if away != 0 {
				w.gone(away, true)
			}
			w.loneRow("k0", 4)
			sw := w.swap(1, true)
			publish := sw.Publish
			sw.Publish = func(ctx context.Context, list []uint32) error {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return publish(ctx, list)
			}
			ctx, spared := w.killing(i)
			_, err := w.cl.Swap(ctx, sw)
			finished := ctx.Err() == nil
			if finished && err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			spared()
			if !finished {
				w.continued(0, w.swap(1, true), fmt.Sprint("message ", i))
			}
			if left := len(w.now().PartitionsOf(1)); left > 0 {
				t.Fatalf("message %d: the dead drive has %d partitions", i, left)
			}
			delete(want, "k0") // either state of it is right, but one
			first := w.readTwice("k0", []uint16{3, 4, w.spare})
			if away != 0 {
				w.gone(away, false)
				must(t, w.cl.Join(t.Context(), away, w.groups()))
			}
			if again := w.readTwice("k0", nil); again != first {
				t.Fatalf("message %d: reads %q, then %q", i, first, again)
			}
			w.check(want)
			w.rewrite(want)
			w.check(want)
			must(t, w.cl.Close(t.Context()))
			return finished
		})
	}
}

// continued has the process of the mover start again, and every second drive crash, from one on; then the next term does
// all that is left.
func (w *swapWorld) continued(one int, sw Swap, when string) {
	w.t.Helper()
	w.reopen()
	for i := one; i < len(w.drives); i += 2 {
		w.drives[i].kv.crash(0)
		w.restart(i)
	}
	if report, err := w.cl.Swap(w.t.Context(), sw); len(sw.Groups) > 0 && (err != nil || len(report.Skipped) > 0) {
		w.t.Fatalf("%s: the next term: %v %+v", when, err, report)
	}
}

// loneRow leaves a write of key that only one drive accepted.
func (w *swapWorld) loneRow(key string, num uint16) Ballot {
	w.t.Helper()
	g, a := w.group(key), addr(key)
	b := Ballot{uint64(time.Now().UnixMicro()) + 1000, 5}
	var base *State
	for pos, d := range g.Drives {
		rep, ok := w.Replica(d)
		if !ok {
			continue
		}
		r, err := rep.Prepare(w.t.Context(), &PrepareRequest{Header: w.cl.header(w.t.Context(), &g, pos, 0), Address: a, Ballot: b})
		must(w.t, err)
		if r.Row != nil {
			base = &r.Row.State
		}
	}
	s := State{ID: b, NextSeq: 9, Current: &Version{Kind: VersionObject, Seq: 8, ETag: "lone"}}
	if base != nil {
		s.Prev, s.Index = base.ID, base.Index+1
	}
	rep, _ := w.Replica(num)
	h := w.cl.header(w.t.Context(), &g, g.Position(num), 0)
	r, err := rep.Accept(w.t.Context(), &AcceptRequest{Header: h, Address: a, Ballot: b, State: s})
	if err != nil || !r.Accepted {
		w.t.Fatalf("the lone accept: %v %+v", err, r)
	}
	return b
}

// readTwice reads key, with everybody and with each of ask away in turn; all must agree.
func (w *swapWorld) readTwice(key string, ask []uint16) string {
	w.t.Helper()
	read := func() string {
		v, err := w.cl.Read(w.t.Context(), w.group(key), addr(key), ReadOptions{})
		must(w.t, err)
		return etagOf(v)
	}
	first := read()
	for _, d := range ask {
		w.gone(d, true)
		v, err := w.cl.Read(w.t.Context(), w.group(key), addr(key), ReadOptions{})
		w.gone(d, false)
		if err == nil && etagOf(v) != first {
			w.t.Fatalf("reads %q, then without drive %d %q", first, d, etagOf(v))
		}
	}
	return first
}

// A drive that was away holds a write that nobody else has, under a ballot above the rows that the
// members have: it must not come out on top of what was read meanwhile.
func TestARowOfAMemberThatWasAwayNeverOutranksTheImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, erasure.Profile{Data: 4, Parity: 2}, 1)
		_, err := w.put(t.Context(), w.cl, "k", "first")
		must(t, err)
		must(t, w.cl.Close(t.Context()))
		w.cl = w.client()
		low := w.loneRow("k", 4) // a write that one member accepted …
		w.gone(4, true)
		high := w.loneRow("k", 2) // … and a later one, computed without it, that another did
		w.gone(4, false)
		if !low.Less(high) && low != high {
			t.Fatal("the ballots are in the wrong order")
		}
		w.gone(1, true)
		w.gone(2, true)
		_, err = w.cl.Swap(t.Context(), w.swap(1, true))
		must(t, err)
		first := w.readTwice("k", nil)
		w.gone(2, false)
		must(t, w.cl.Join(t.Context(), 2, w.groups()))
		for range 3 {
			if got := w.readTwice("k", []uint16{3, 5}); got != first {
				t.Fatalf("read %q, then %q", first, got)
			}
		}
		must(t, w.cl.Close(t.Context()))
	})
}

// acceptAt has some drives accept s under b, which all of them promise first.
func (w *swapWorld) acceptAt(key string, b Ballot, s State, drives ...uint16) {
	w.t.Helper()
	g, a := w.group(key), addr(key)
	for _, num := range drives {
		h := w.cl.header(w.t.Context(), &g, g.Position(num), 0)
		d := w.drives[num-1]
		p, err := d.Prepare(w.t.Context(), &PrepareRequest{Header: h, Address: a, Ballot: b})
		if err != nil || !p.Promised {
			w.t.Fatalf("drive %d: the promise: %v %+v", num, err, p)
		}
		r, err := d.Accept(w.t.Context(), &AcceptRequest{Header: h, Address: a, Ballot: b, State: s})
		if err != nil || !r.Accepted {
			w.t.Fatalf("drive %d: the accept: %v %+v", num, err, r)
		}
	}
}

// fiveOfThree are profiles of five members, of which three are a quorum: two quorums share one member only.
var fiveOfThree = []erasure.Profile{{Data: 2, Parity: 3}, {Data: 1, Parity: 4}}

// lone leaves "first" at all of five drives, and after it a write that drive 5 alone accepted. Then that was
// refused for good, by a round that accepted "first" again on 1, 2 and 3. settled: they know of nothing that is to be done.
func (w *swapWorld) lone(settled bool) {
	w.t.Helper()
	ctx := w.t.Context()
	_, err := w.put(ctx, w.cl, "k", "first")
	must(w.t, err)
	w.reopen()
	w.loneRow("k", 5)
	w.gone(5, true)
	w.gone(4, true)
	_, free, err := w.cl.Orphan(ctx, w.group("k"), addr("k"), erasure.NewDataID(), 0)
	must(w.t, err)
	if !free {
		w.t.Fatal("the lone write is referred to")
	}
	w.reopen()
	w.gone(4, false)
	if !settled {
		return
	}
	for i := range 4 {
		list, err := w.drives[i].Unsettled(nil, 10)
		must(w.t, err)
		for _, u := range list {
			row, err := w.drives[i].row(headKey(&u.Address))
			must(w.t, err)
			g := w.group("k")
			must(w.t, w.drives[i].Decide(ctx, []Decision{{Header: w.cl.header(ctx, &g, i, 0), Address: u.Address, Ballot: row.Ballot, Settled: true}}))
		}
		if list, err = w.drives[i].Unsettled(nil, 10); err != nil || len(list) > 0 {
			w.t.Fatalf("drive %d has marks: %v %v", i+1, list, err)
		}
	}
}

// A round found that nobody refers to the body of a lone write, and made that final: the body goes. Four
// have what it accepted again, the image is of three, and two of these three have the older ballot, or not: whoever
// returns with the lone write must not outrank it.
func TestAWriteThatWasRefusedForGoodDoesNotReturnWithItsDrive(t *testing.T) {
	for _, p := range fiveOfThree {
		for _, settled := range []bool{false, true} {
			for _, mut := range []mutations{{}, {noLevel: true}, {noVoid: true}} {
				t.Run(fmt.Sprintf("%v settled=%v level=%v void=%v", p, settled, !mut.noLevel, !mut.noVoid), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := newSwapWorld(t, p, 1)
						w.lone(settled)
						w.gone(1, true)
						w.drives[4].mut = mut
						s, err := w.cl.newSwapping(new(w.swap(1, true)), mut)
						must(t, err)
						_, err = s.run(t.Context())
						must(t, err)
						w.gone(5, false)
						must(t, w.cl.Join(t.Context(), 5, w.groups()))
						w.gone(2, true)
						w.gone(3, true)
						v, err := w.cl.Read(t.Context(), w.group("k"), addr("k"), ReadOptions{})
						must(t, err)
						// Either rule alone helps while the register has a mark.
						want := "first"
						if settled && mut.noVoid {
							want = "lone"
						}
						if etagOf(v) != want {
							t.Errorf("reads %q, want %q", etagOf(v), want)
						}
						must(t, w.cl.Close(t.Context()))
					})
				})
			}
		}
	}
}

// The same, and the drive that was away is wedged by the next swap before it joined.
func TestAMemberThatDidNotJoinOutranksNobodyInTheNextSwap(t *testing.T) {
	for _, mut := range []mutations{{}, {noVoid: true}} {
		synctest.Test(t, func(t *testing.T) {
			w := newSwapWorld(t, fiveOfThree[0], 1)
			w.lone(true)
			w.gone(1, true)
			_, err := w.cl.Swap(t.Context(), w.swap(1, true))
			must(t, err)
			w.gone(1, false) // an empty drive by now
			w.drives[0] = &testDrive{kv: &memKV{}, shards: newMemShards()}
			w.restart(0)
			w.drives[4].mut = mut
			w.gone(5, false)
			w.gone(2, true)
			w.gone(3, true) // 4, 5 and the newcomer are left, and the next one
			sw := w.swap(2, true)
			sw.Transition, sw.New, sw.Groups = 10, 1, nil
			l := w.now()
			for _, p := range l.PartitionsOf(2) {
				sw.Groups = append(sw.Groups, l.Group(p))
			}
			sw.Publish = func(_ context.Context, list []uint32) error {
				w.mu.Lock()
				defer w.mu.Unlock()
				next, err := w.layout.Swap(2, 1, list)
				if err == nil {
					w.layout = next
				}
				return err
			}
			_, err = w.cl.Swap(t.Context(), sw)
			must(t, err)
			v, err := w.cl.Read(t.Context(), w.group("k"), addr("k"), ReadOptions{})
			must(t, err)
			if got := etagOf(v); got != "first" && !mut.noVoid || got == "first" && mut.noVoid {
				t.Errorf("reads %q with %+v", got, mut)
			}
			must(t, w.cl.Close(t.Context()))
		})
	}
}

// A drive holds, undecided and under a ballot of its own, the state that was chosen later under a higher one.
// In between, another drive had confirmed what was before. When the latter joins, what it knows as decided must not
// outrank what was chosen.
func TestAChosenWriteIsNotOutrankedByTheOneBefore(t *testing.T) {
	for _, mut := range []mutations{{}, {noLevel: true}} {
		synctest.Test(t, func(t *testing.T) {
			w := newSwapWorld(t, fiveOfThree[0], 1)
			_, err := w.put(t.Context(), w.cl, "k", "first")
			must(t, err)
			w.reopen()
			w.loneRow("k", 4) // proposed, and accepted by one
			a := addr("k")
			first, err := w.drives[4].row(headKey(&a))
			must(t, err)
			second, err := w.drives[3].row(headKey(&a))
			must(t, err)
			b := second.Ballot
			w.acceptAt("k", Ballot{b.Counter + 1, 6}, first.State, 5)
			w.acceptAt("k", Ballot{b.Counter + 2, 6}, second.State, 1, 2, 3) // chosen
			g := w.group("k")
			for pos := range 3 {
				must(t, w.drives[pos].Decide(t.Context(), []Decision{{Header: w.cl.header(t.Context(), &g, pos, 0), Address: a, Ballot: Ballot{b.Counter + 2, 6}}}))
			}
			w.gone(1, true)
			w.gone(5, true)
			s, err := w.cl.newSwapping(new(w.swap(1, true)), mut)
			must(t, err)
			_, err = s.run(t.Context())
			must(t, err)
			w.gone(5, false)
			must(t, w.cl.Join(t.Context(), 5, w.groups()))
			w.gone(2, true)
			w.gone(3, true)
			v, err := w.cl.Read(t.Context(), w.group("k"), a, ReadOptions{})
			must(t, err)
			if got := etagOf(v); got != "lone" && !mut.noLevel || got == "lone" && mut.noLevel {
				t.Errorf("reads %q with %+v", got, mut)
			}
			must(t, w.cl.Close(t.Context()))
		})
	}
}

// The newcomer dies at any message of the first mover. The partitions go on without it, and it joins.
func TestANewcomerThatDiesInMidSwapLeavesNothingWedged(t *testing.T) {
	everyMessage(t, 0, 5, func(t *testing.T, i int) bool {
		w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
		want := w.fill(4)
		w.gone(1, true)
		w.loneRow("k0", 4)
		var mu sync.Mutex
		left, dead := i, false
		w.drives[w.spare-1].hook = func(string, bool) error {
			mu.Lock()
			defer mu.Unlock()
			if left--; left < 0 {
				dead = true
				return errKilled
			}
			return nil
		}
		report, err := w.cl.Swap(t.Context(), w.swap(1, true))
		begun := len(*w.drives[1].epochs.Load()) > 0
		if begun && (err != nil || len(report.Skipped) > 0) {
			t.Fatalf("message %d: %v %+v", i, err, report)
		}
		finished := !dead
		delete(want, "k0")
		w.check(want)
		w.rewrite(want)
		w.reopen() // nothing is late any more
		w.drives[w.spare-1].hook = nil
		w.restart(int(w.spare) - 1)
		if begun {
			must(t, w.cl.Join(t.Context(), w.spare, w.groups()))
			for key := range want {
				must(t, w.cl.Resync(t.Context(), w.group(key), addr(key), nil))
			}
			w.gone(2, true)
		}
		w.check(want)
		w.rewrite(want)
		must(t, w.cl.Close(t.Context()))
		return finished
	})
}

// A mover ended after the wedge, and then the newcomer: the next term goes on without it. Of what was not
// begun nothing is.
func TestWhatWasBegunEndsWithoutTheNewcomer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
		want := w.fill(8)
		w.gone(1, true)
		sw := w.swap(1, true)
		if len(sw.Groups) < 2 {
			t.Fatal("one partition only")
		}
		sw.Groups = sw.Groups[:1]
		begun := sw.Groups[0].Partition
		sw.Publish = func(context.Context, []uint32) error { return errKilled }
		if _, err := w.cl.Swap(t.Context(), sw); !errors.Is(err, errKilled) {
			t.Fatalf("got %v", err)
		}
		w.gone(w.spare, true)
		report, err := w.cl.Swap(t.Context(), w.swap(1, true))
		must(t, err)
		if !slices.Equal(report.Swapped, []uint32{begun}) || len(report.Skipped) != 1 {
			t.Fatalf("report %+v, begun was %d", report, begun)
		}
		w.check(want)
		w.rewrite(want)
		w.gone(w.spare, false)
		must(t, w.cl.Join(t.Context(), w.spare, w.groups()))
		w.check(want)
		must(t, w.cl.Close(t.Context()))
	})
}

func TestAStaleMoverIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
		want := w.fill(8)
		w.gone(1, true)
		old := w.swap(1, true)
		fresh := w.swap(1, true)
		s, err := w.cl.newSwapping(&fresh, mutations{})
		must(t, err)
		must(t, s.ask(t.Context()))
		must(t, s.wedge(t.Context()))
		if report, err := w.cl.Swap(t.Context(), old); !errs.Is(err, errs.Unavailable) || len(report.Swapped) > 0 {
			t.Fatalf("the older term: %v %+v", err, report)
		}
		g := w.group("k0")
		for name, err := range map[string]error{
			"transfer": func() error {
				_, err := w.drives[1].Transfer(t.Context(), &TransferRequest{Transition: old.Transition, Term: old.Term, Floor: s.floor,
					Rows: []TransferRow{{Address: addr("k0"), Partition: g.Partition, State: State{ID: Ballot{1, 1}}}}})
				return err
			}(),
			"install": w.drives[1].InstallEpoch(t.Context(), &InstallEpochRequest{Transition: old.Transition, Term: old.Term,
				Partitions: []uint32{g.Partition}, Epochs: []uint64{2}, Floors: []Ballot{s.floor}}),
			"join before the layout has the epoch": w.drives[1].InstallEpoch(t.Context(), &InstallEpochRequest{
				Partitions: []uint32{g.Partition}, Epochs: []uint64{2}, Floors: []Ballot{s.floor}}),
		} {
			if !errs.Is(err, errs.Stale) {
				t.Errorf("%s: got %v, want stale", name, err)
			}
		}
		must(t, s.move(t.Context())) // wedges again, under a higher floor
		w.check(want)
		must(t, w.cl.Close(t.Context()))
	})
}

func TestAWedgedDriveRefusesItsEpoch(t *testing.T) {
	w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
	must(t, w.cl.Close(t.Context()))
	g := w.group("k")
	r, err := w.drives[1].Wedge(t.Context(), &WedgeRequest{Transition: 1, Term: 1, Floor: Ballot{1 << 58, 1}, Partitions: []uint32{g.Partition}, Epochs: []uint64{1}})
	if err != nil || !r.Done || len(r.Refused) > 0 {
		t.Fatalf("wedge: %v %+v", err, r)
	}
	for range 2 {
		h := Header{Drive: 2, Partition: g.Partition, Epoch: 1}
		a, b := addr("k"), Ballot{1 << 59, 1}
		ctx := t.Context()
		d := w.drives[1]
		for name, err := range map[string]error{
			"prepare": func() error { _, err := d.Prepare(ctx, &PrepareRequest{Header: h, Address: a, Ballot: b}); return err }(),
			"accept": func() error {
				_, err := d.Accept(ctx, &AcceptRequest{Header: h, Address: a, Ballot: b, State: State{ID: b}})
				return err
			}(),
			"read":     func() error { _, err := d.Read(ctx, &ReadRequest{Header: h, Address: a}); return err }(),
			"versions": func() error { _, err := d.Versions(ctx, &VersionsRequest{Header: h, Address: a}); return err }(),
			"install":  d.Install(ctx, &InstallRequest{Header: h, Address: a, Row: Row{Ballot: b, State: State{ID: b}}}),
			"pin": func() error {
				_, err := d.Pin(ctx, &PinRequest{Header: h, Data: erasure.DataID{1}, Chunk: 1, Ballot: b})
				return err
			}(),
			"drop":  d.Drop(ctx, &DropRequest{Header: h, Address: a, Ballot: b}),
			"fence": d.Fence(ctx, &FenceRequest{Header: h, Bucket: 7, Epoch: 3}),
		} {
			if !errs.Is(err, errs.Stale) {
				t.Errorf("%s: got %v, want stale", name, err)
			}
		}
		d.kv.crash(0)
		w.restart(1) // it is durable
	}
}

// Writers go on while the drive is replaced, and every acknowledged write is there afterwards.
func TestWritersGoOnDuringASwap(t *testing.T) {
	for _, gone := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newSwapWorld(t, erasure.Profile{Data: 4, Parity: 2}, 4)
			if gone {
				w.gone(1, true)
			}
			stop := make(chan struct{})
			var all sync.WaitGroup
			var mu sync.Mutex
			want := map[string]string{}
			for i := range 8 {
				all.Go(func() {
					key := fmt.Sprint("w", i)
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						etag := fmt.Sprint(i, ".", n)
						if err := w.write(key, etag); err != nil {
							t.Errorf("write %s %s: %v", key, etag, err)
							return
						}
						mu.Lock()
						want[key] = etag
						mu.Unlock()
						time.Sleep(time.Millisecond)
					}
				})
			}
			time.Sleep(50 * time.Millisecond)
			sw := w.swap(1, gone)
			for len(sw.Groups) > 0 {
				part := sw
				part.Groups = sw.Groups[:4]
				report, err := w.cl.Swap(t.Context(), part)
				must(t, err)
				if len(report.Skipped) > 0 {
					t.Fatalf("report %+v", report)
				}
				sw.Groups = sw.Groups[4:]
				sw.Layout = w.now()
				time.Sleep(20 * time.Millisecond)
			}
			close(stop)
			all.Wait()
			w.gone(1, true)
			w.check(want)
			must(t, w.cl.Close(t.Context()))
		})
	}
}

// write puts one version in the place of the one before, through changes of the epoch.
func (w *swapWorld) write(key, etag string) error {
	id := OpID(rand.Uint64() | 1)
	var sent Ballot
	for range 200 {
		op := Operation{ID: id, Sent: sent, Apply: func(base *State, _ []Version) (*Change, error) {
			ch := &Change{NextSeq: 2, Current: &Version{Kind: VersionObject, ETag: etag, Seq: 1}}
			if base != nil {
				ch.Current.Seq, ch.NextSeq = base.NextSeq, base.NextSeq+1
			}
			return ch, nil
		}}
		_, err := w.cl.Update(w.t.Context(), w.group(key), addr(key), op)
		if !errs.Is(err, errs.Stale) {
			return err
		}
		if b := SentBallot(err); sent.IsZero() {
			sent = b
		}
		time.Sleep(time.Millisecond)
	}
	return errs.E("test", errs.Stale, "the epoch never came")
}

func TestANewcomerHoldsTheFences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
		must(t, w.drives[2].Fence(t.Context(), &FenceRequest{Bucket: 7, Epoch: 4}))
		w.gone(1, true)
		sw := w.swap(1, true)
		sw.Fences = []Fence{{Bucket: 8, Epoch: 2}}
		_, err := w.cl.Swap(t.Context(), sw)
		must(t, err)
		for i := 1; i < len(w.drives); i++ {
			w.restart(i)
			if f := w.drives[i].fences; f[7] != 4 || f[8] != 2 {
				t.Errorf("drive %d has the fences %v", i+1, f)
			}
		}
		must(t, w.cl.Close(t.Context()))
	})
}

func TestADropThatWasCutShortIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
		_, err := w.put(t.Context(), w.cl, "k", "e")
		must(t, err)
		must(t, w.remove(t.Context(), w.cl, "k"))
		must(t, w.cl.Close(t.Context()))
		w.cl = w.client()
		g := w.group("k")
		v, err := w.cl.Read(t.Context(), g, addr("k"), ReadOptions{})
		must(t, err)
		for pos := range 2 {
			d := w.drives[g.Drives[pos]-1]
			must(t, d.Drop(t.Context(), &DropRequest{Header: w.cl.header(t.Context(), &g, pos, 0), Address: addr("k"), Ballot: v.Ballot}))
		}
		dropped, err := w.cl.Drop(t.Context(), g, addr("k"))
		if err != nil || !dropped {
			t.Fatalf("the second drop: %v %v", dropped, err)
		}
		for i, d := range w.drives[:4] {
			a := addr("k")
			if row, err := d.row(headKey(&a)); err != nil || row != nil {
				t.Errorf("drive %d: %v %v", i+1, row, err)
			}
			if got := d.dropped(g.Partition); got.Less(v.Ballot) {
				t.Errorf("drive %d: floor %v, want %v", i+1, got, v.Ballot)
			}
		}
		must(t, w.cl.Close(t.Context()))
	})
}

// The rules of a wedge, one case each.
func TestJudgeWedge(t *testing.T) {
	f := Ballot{9, 9}
	for _, c := range []struct {
		name       string
		r          epochRow
		epoch      uint64
		transition uint64
		term       uint64
		ok         bool
		installed  uint64
	}{
		{"the first", epochRow{}, 1, 5, 1, true, 0},
		{"an older epoch", epochRow{installed: 3, wedged: 2}, 1, 5, 1, false, 3},
		{"again by the same term", epochRow{wedged: 1, transition: 5, term: 1}, 1, 5, 1, true, 0},
		{"by an older term", epochRow{wedged: 1, transition: 5, term: 2}, 1, 5, 1, false, 0},
		{"by another transition that has not ended", epochRow{wedged: 1, transition: 4, term: 1}, 1, 5, 1, false, 0},
		{"by another transition in a later epoch", epochRow{installed: 2, wedged: 1, transition: 4, term: 1}, 2, 5, 1, true, 2},
		{"what a lower term installed is void", epochRow{installed: 2, wedged: 1, transition: 5, term: 1}, 1, 5, 2, true, 0},
		{"what the same term installed may be published yet", epochRow{installed: 2, wedged: 1, transition: 5, term: 1}, 1, 5, 1, false, 2},
		{"joined meanwhile", epochRow{installed: 2, wedged: 1}, 1, 5, 9, false, 2},
	} {
		next, ok := judgeWedge(c.r, c.epoch, c.transition, c.term, f)
		if ok != c.ok || next.installed != c.installed || ok && (next.serves(c.epoch) || next.floor != f) {
			t.Errorf("%s: got %v %+v", c.name, ok, next)
		}
	}
}

// Two movers of one transition always meet, and each hears of everything that was chosen.
func TestSwapQuorumsMeet(t *testing.T) {
	for n := 1; n <= 7; n++ {
		for m := 0; m < n; m++ {
			q := placement.RecordQuorum(erasure.Profile{Data: uint8(n - m), Parity: uint8(m)}, 1)
			for _, gone := range []bool{false, true} {
				var enough []uint
				for set := range uint(1) << n {
					s := newSwapper(q, 0, gone, mutations{})
					s.wedge(s.newcomer())
					for seat := range n {
						if set>>seat&1 == 1 && s.asks(seat) {
							s.wedge(seat)
						}
					}
					if gone && set&1 == 1 || !s.wedged() {
						continue
					}
					enough = append(enough, set)
					size := count(s.held[:n])
					if size+q.W <= n {
						t.Fatalf("n=%d W=%d: %b does not meet every write", n, q.W, set)
					}
					if silent := size + map[bool]int{true: 1}[gone]; n-silent >= q.R {
						t.Fatalf("n=%d R=%d: enough for a read are left by %b", n, q.R, set)
					}
				}
				for _, a := range enough {
					if i := slices.IndexFunc(enough, func(b uint) bool { return a&b == 0 }); i >= 0 {
						t.Fatalf("n=%d gone=%v: %b and %b do not meet", n, gone, a, enough[i])
					}
				}
			}
		}
	}
}
