package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// cluster is a handful of drives in memory behind a codec, so that nothing is shared by pointer.
type cluster struct {
	t       *testing.T
	drives  []*testDrive
	profile erasure.Profile
	ids     OpID

	mu     sync.RWMutex // guards layout where a test changes it
	layout *placement.Layout
}

type testDrive struct {
	*Acceptor
	kv     *memKV
	shards *memShards
	mu     sync.Mutex // guards what follows
	gone   bool
	hang   bool
	// hook sees each message of a change of membership, before and after it is applied.
	hook func(what string, after bool) error
}

func newCluster(t *testing.T, drives int, p erasure.Profile, bits uint8) *cluster {
	t.Helper()
	c := &cluster{t: t, profile: p}
	var list []placement.Drive
	for i := range drives {
		list = append(list, placement.Drive{Num: uint16(i + 1), ID: [16]byte{byte(i + 1)}, Node: [16]byte{1}})
	}
	var err error
	if c.layout, err = placement.NewLayout(list, p, bits); err != nil {
		t.Fatal(err)
	}
	for i := range drives {
		d := &testDrive{kv: &memKV{}, shards: newMemShards()}
		c.drives = append(c.drives, d)
		c.restart(i)
	}
	return c
}

// restart opens drive i anew over what it has.
func (c *cluster) restart(i int) {
	d := c.drives[i]
	a, err := NewAcceptor(AcceptorConfig{KV: d.kv, Shards: d.shards, Now: time.Now, Epoch: func(p uint32) (uint64, bool) {
		g := c.now().Group(p)
		return g.Epoch, g.Position(uint16(i+1)) >= 0
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	d.Acceptor = a
}

func (c *cluster) client() *Client { return NewClient(ClientConfig{Replicas: c}) }

func (c *cluster) Replica(drive uint16) (Replica, bool) {
	d := c.drives[drive-1]
	d.mu.Lock()
	defer d.mu.Unlock()
	return &wire{d}, !d.gone
}

func (c *cluster) set(i int, f func(d *testDrive)) {
	c.drives[i].mu.Lock()
	defer c.drives[i].mu.Unlock()
	f(c.drives[i])
}

func (c *cluster) group(key string) placement.Group {
	l := c.now()
	return l.Group(l.PartitionOf(7, []byte(key)))
}

func (c *cluster) now() *placement.Layout {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.layout
}

func addr(key string) Address { return Address{Kind: KindObject, Bucket: 7, Key: []byte(key)} }

// put writes an inline body under key, unversioned.
func (c *cluster) put(ctx context.Context, cl *Client, key, etag string) (*View, error) {
	g := c.group(key)
	c.ids++
	id := erasure.NewDataID()
	op := Operation{ID: c.ids, Need: placement.ShardQuorum(c.profile, g.Spread)}
	data := Data{ID: id, Profile: c.profile, Size: 10}
	for pos := range g.Drives {
		op.Seals = append(op.Seals, &Seal{Data: data, Index: uint8(pos), Inline: fmt.Appendf(nil, "%s/%d", etag, pos)})
	}
	op.Apply = func(base *State, _ []Version) (*Change, error) {
		ch := &Change{NextSeq: 1, Current: &Version{Kind: VersionObject, ETag: etag, Data: &data, Size: 10}}
		if base != nil {
			ch.NextSeq = base.NextSeq + 1
			if base.Current != nil && base.Current.Data != nil {
				ch.Dead = []DeadData{{Data: *base.Current.Data}}
			}
		}
		ch.Current.Seq = ch.NextSeq - 1
		return ch, nil
	}
	return cl.Update(ctx, g, addr(key), op)
}

func (c *cluster) remove(ctx context.Context, cl *Client, key string) error {
	c.ids++
	_, err := cl.Update(ctx, c.group(key), addr(key), Operation{ID: c.ids, Apply: func(base *State, _ []Version) (*Change, error) {
		ch := &Change{NextSeq: 1}
		if base != nil {
			ch.NextSeq = base.NextSeq
			if base.Current != nil && base.Current.Data != nil {
				ch.Dead = []DeadData{{Data: *base.Current.Data}}
			}
		}
		return ch, nil
	}})
	return err
}

// push writes a new version on top of the others.
func (c *cluster) push(ctx context.Context, cl *Client, key, etag string) error {
	c.ids++
	_, err := cl.Update(ctx, c.group(key), addr(key), Operation{ID: c.ids, Apply: func(base *State, _ []Version) (*Change, error) {
		ch := &Change{NextSeq: 2, Current: &Version{Kind: VersionObject, ETag: etag, Seq: 1, ID: VersionID{15: 1}}}
		if base != nil {
			ch.Current.Seq, ch.NextSeq, ch.Older = base.NextSeq, base.NextSeq+1, base.Older
			if base.Current != nil {
				ch.Put, ch.Older = []Version{*base.Current}, base.Older+1
			}
		}
		return ch, nil
	}})
	return err
}

// wire carries every message through its encoding, and can hang.
type wire struct{ d *testDrive }

type message interface {
	AppendTo([]byte) []byte
}

type unmarshaler[T any] interface {
	*T
	Unmarshal([]byte) error
}

func carry[T any, P unmarshaler[T]](m message) P {
	v := P(new(T))
	if err := v.Unmarshal(m.AppendTo(nil)); err != nil {
		panic(err)
	}
	return v
}

func (w *wire) wait(ctx context.Context) error {
	w.d.mu.Lock()
	hang := w.d.hang
	w.d.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func roundTrip[Q, R any, PQ unmarshaler[Q], PR interface {
	unmarshaler[R]
	message
}](ctx context.Context, w *wire, m message, f func(context.Context, PQ) (PR, error)) (PR, error) {
	if err := w.wait(ctx); err != nil {
		return nil, err
	}
	r, err := f(ctx, carry[Q, PQ](m))
	if err != nil {
		return nil, err
	}
	return carry[R, PR](r), nil
}

func (w *wire) Prepare(ctx context.Context, m *PrepareRequest) (*PrepareReply, error) {
	return roundTrip[PrepareRequest, PrepareReply](ctx, w, m, w.d.Acceptor.Prepare)
}
func (w *wire) Accept(ctx context.Context, m *AcceptRequest) (*AcceptReply, error) {
	return roundTrip[AcceptRequest, AcceptReply](ctx, w, m, w.d.Acceptor.Accept)
}
func (w *wire) Read(ctx context.Context, m *ReadRequest) (*ReadReply, error) {
	return roundTrip[ReadRequest, ReadReply](ctx, w, m, w.d.Acceptor.Read)
}
func (w *wire) Versions(ctx context.Context, m *VersionsRequest) (*VersionsReply, error) {
	return roundTrip[VersionsRequest, VersionsReply](ctx, w, m, w.d.Acceptor.Versions)
}
func (w *wire) Pin(ctx context.Context, m *PinRequest) (*PinReply, error) {
	return roundTrip[PinRequest, PinReply](ctx, w, m, w.d.Acceptor.Pin)
}
func (w *wire) Scan(ctx context.Context, m *ScanRequest) (*ScanReply, error) {
	return roundTrip[ScanRequest, ScanReply](ctx, w, m, w.d.Acceptor.Scan)
}
func (w *wire) Decide(ctx context.Context, m []Decision) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	return w.d.Acceptor.Decide(ctx, *carry[Decisions](Decisions(m)))
}
func (w *wire) Install(ctx context.Context, m *InstallRequest) error {
	if err := w.wait(ctx); err != nil {
		return err
	}
	return w.d.Acceptor.Install(ctx, carry[InstallRequest](m))
}
func (w *wire) Fence(ctx context.Context, m *FenceRequest) error {
	return w.d.Acceptor.Fence(ctx, carry[FenceRequest](m))
}
func (w *wire) Drop(ctx context.Context, m *DropRequest) error {
	return w.d.Acceptor.Drop(ctx, carry[DropRequest](m))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) read(cl *Client, key string) *View {
	c.t.Helper()
	v, err := cl.Read(c.t.Context(), c.group(key), addr(key), ReadOptions{Inline: true, Ask: int(c.profile.Data)})
	must(c.t, err)
	return v
}

func etagOf(v *View) string {
	if v.State == nil || v.State.Current == nil {
		return ""
	}
	return v.State.Current.ETag
}

func TestPutThenGetReturnsStateAndInlineShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		if v := c.read(cl, "a"); v.State != nil {
			t.Fatalf("an absent key has state %+v", v.State)
		}
		for i := range 5 {
			_, err := c.put(t.Context(), cl, "a", fmt.Sprint("v", i))
			must(t, err)
			v := c.read(cl, "a")
			if etagOf(v) != fmt.Sprint("v", i) {
				t.Fatalf("read %q after write %d", etagOf(v), i)
			}
			have := 0
			for pos, s := range v.Inline {
				if s != nil {
					have++
					if want := fmt.Sprintf("v%d/%d", i, pos); string(s) != want {
						t.Fatalf("shard %q, want %q", s, want)
					}
				}
			}
			if have < 2 {
				t.Fatalf("%d shards", have)
			}
		}
		must(t, cl.Close(t.Context()))
		// Everything is decided and settled, and old data is garbage on every drive.
		for i, d := range c.drives {
			u, err := d.Unsettled(nil, 0)
			must(t, err)
			g, err := d.Garbage(time.Now().Add(time.Second), 0)
			must(t, err)
			if len(u) != 0 || len(g) != 4 {
				t.Errorf("drive %d: %d unsettled, %d garbage; want 0 and 4", i, len(u), len(g))
			}
		}
	})
}

func TestTwoDrivesGoneFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		_, err := c.put(t.Context(), cl, "a", "old")
		must(t, err)
		time.Sleep(time.Second) // virtual: decisions arrive
		c.set(0, func(d *testDrive) { d.gone = true })
		c.set(1, func(d *testDrive) { d.gone = true })
		start := time.Now()
		if _, err = c.put(t.Context(), cl, "a", "new"); !errs.Is(err, errs.Unavailable) {
			t.Fatalf("got %v, want unavailable", err)
		}
		if d := time.Since(start); d > 5*time.Millisecond {
			t.Fatalf("took %v", d)
		}
		if v := c.read(cl, "a"); etagOf(v) != "old" {
			t.Fatalf("read %q", etagOf(v))
		}
		must(t, cl.Close(t.Context()))
	})
}

func TestHangingDriveDelaysNothingAndIsReportedMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		c.set(2, func(d *testDrive) { d.hang = true })
		start := time.Now()
		_, err := c.put(t.Context(), cl, "a", "v")
		must(t, err)
		if d := time.Since(start); d > 0 {
			t.Fatalf("the write took %v", d)
		}
		if v := c.read(cl, "a"); etagOf(v) != "v" {
			t.Fatalf("read %q", etagOf(v))
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Fatalf("write and read took %v", d)
		}
		time.Sleep(3 * time.Second) // virtual: SettleAfter
		pos := c.group("a").Position(3)
		for i, d := range c.drives {
			r, err := d.Repairs(nil, 0)
			must(t, err)
			if i == 2 {
				continue
			}
			if len(r) != 1 || !slices.Equal(r[0].Positions, []uint8{uint8(pos)}) {
				t.Errorf("drive %d has repairs %+v, want position %d", i, r, pos)
			}
		}
		c.set(2, func(d *testDrive) { d.hang = false })
		must(t, cl.Resync(t.Context(), c.group("a"), addr("a"), []int{pos}))
		must(t, cl.Close(t.Context()))
		row, err := c.drives[2].row(headKey(&Address{Kind: KindObject, Bucket: 7, Key: []byte("a")}))
		must(t, err)
		if row == nil || !row.Decided || row.State.Current.ETag != "v" {
			t.Fatalf("the drive was not brought up: %+v", row)
		}
	})
}

func TestDriveBehindIsResynchronizedWhenTheQuorumNeedsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		for i := range 4 {
			must(t, c.push(t.Context(), cl, "a", fmt.Sprint(i)))
		}
		c.set(0, func(d *testDrive) { d.gone = true })
		for i := range 4 {
			must(t, c.push(t.Context(), cl, "a", fmt.Sprint(4+i)))
		}
		c.set(0, func(d *testDrive) { d.gone = false })
		c.set(1, func(d *testDrive) { d.gone = true })
		must(t, c.push(t.Context(), cl, "a", "8")) // needs drive 0, which is four states behind
		must(t, cl.Close(t.Context()))
		a := addr("a")
		list, _, err := c.drives[0].versions(&a, ^uint64(0), 100)
		must(t, err)
		var got []string
		for _, v := range list {
			got = append(got, v.ETag)
		}
		if want := []string{"7", "6", "5", "4", "3", "2", "1", "0"}; !slices.Equal(got, want) {
			t.Fatalf("versions %v, want %v", got, want)
		}
	})
}

func TestConcurrentCreatesOfManyClientsHaveOneWinner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		exists := errs.E("test", errs.Precondition, "exists")
		var clients []*Client
		for range 4 {
			clients = append(clients, c.client())
		}
		var mu sync.Mutex
		won, lost := 0, 0
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				_, err := clients[i%4].Update(t.Context(), c.group("a"), addr("a"), Operation{ID: OpID(1000 + i),
					Apply: func(base *State, _ []Version) (*Change, error) {
						if base != nil && base.Current != nil {
							return nil, exists
						}
						return &Change{Current: &Version{Kind: VersionObject, ETag: fmt.Sprint(i)}, NextSeq: 1}, nil
					}})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case errors.Is(err, exists):
					lost++
				default:
					t.Errorf("create %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if won != 1 || lost != 39 {
			t.Fatalf("%d created, %d refused", won, lost)
		}
		for _, cl := range clients {
			must(t, cl.Close(t.Context()))
		}
	})
}

func TestFullDrivesAreReportedAsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		c.drives[0].shards.full = true
		_, err := c.put(t.Context(), cl, "a", "v")
		must(t, err)
		c.drives[1].shards.full = true
		if _, err := c.put(t.Context(), cl, "a", "w"); !errs.Is(err, errs.Full) {
			t.Fatalf("got %v, want full", err)
		}
		must(t, c.remove(t.Context(), cl, "a")) // a delete needs no room
		must(t, cl.Close(t.Context()))
	})
}

func TestFenceRefusesPrepareAndAcceptOfOlderBucketEpochs(t *testing.T) {
	c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
	d := c.drives[0]
	g := c.group("a")
	h := Header{Drive: 1, Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: 1}
	b := Ballot{10, 1}
	_, err := d.Prepare(t.Context(), &PrepareRequest{Header: h, Address: addr("a"), Ballot: b})
	must(t, err)
	must(t, d.Fence(t.Context(), &FenceRequest{Bucket: 7, Epoch: 2}))
	c.restart(0) // the fence is durable
	if _, err := d.Accept(t.Context(), &AcceptRequest{Header: h, Address: addr("a"), Ballot: b, State: State{ID: b}}); !errs.Is(err, errs.Stale) {
		t.Errorf("accept: got %v, want stale", err)
	}
	if _, err := d.Prepare(t.Context(), &PrepareRequest{Header: h, Address: addr("a"), Ballot: Ballot{11, 1}}); !errs.Is(err, errs.Stale) {
		t.Errorf("prepare: got %v, want stale", err)
	}
	h.BucketEpoch, h.Epoch = 2, h.Epoch+1
	if _, err := d.Prepare(t.Context(), &PrepareRequest{Header: h, Address: addr("a"), Ballot: Ballot{11, 1}}); !errs.Is(err, errs.Stale) {
		t.Errorf("prepare in another epoch: got %v, want stale", err)
	}
}

func TestPromiseSurvivesRestartAndEviction(t *testing.T) {
	c := newCluster(t, 1, erasure.Profile{Data: 1}, 4)
	d := c.drives[0]
	prepare := func(key string, n uint64) bool {
		g := c.group(key)
		r, err := d.Prepare(t.Context(), &PrepareRequest{Header: Header{Drive: 1, Partition: g.Partition, Epoch: g.Epoch},
			Address: addr(key), Ballot: Ballot{n, 1}})
		must(t, err)
		return r.Promised
	}
	if !prepare("a", 100) || prepare("a", 100) || prepare("a", 99) || !prepare("a", 101) {
		t.Fatal("a promise is not kept")
	}
	d.kv.crash(0)
	c.restart(0)
	if prepare("a", 101) || prepare("b", 101) {
		t.Fatal("a restart forgot a promise, or the ceiling")
	}
	if !prepare("a", 101+10e6+1) {
		t.Fatal("a ballot above the ceiling is refused")
	}
	p := newPromises(4, Ballot{})
	for i := range 1000 {
		p.raise(fmt.Sprint(i), Ballot{uint64(i + 1), 0})
	}
	for i := range 1000 {
		if got := p.of(fmt.Sprint(i)); got.Less(Ballot{uint64(i + 1), 0}) {
			t.Fatalf("promise %d counts as %v", i, got)
		}
	}
	if len(p.young)+len(p.old) > 4 {
		t.Fatalf("%d promises are held", len(p.young)+len(p.old))
	}
}

func TestTombstoneIsDroppedOnlyWhenAllHoldItAndNeverComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		g := c.group("a")
		_, err := c.put(t.Context(), cl, "a", "v")
		must(t, err)
		time.Sleep(time.Second)
		old, err := c.drives[0].row(addressKey(nsHead, &Address{Kind: KindObject, Bucket: 7, Key: []byte("a")}))
		must(t, err)
		c.set(3, func(d *testDrive) { d.gone = true })
		must(t, c.remove(t.Context(), cl, "a"))
		time.Sleep(3 * time.Second)
		if ok, err := cl.Drop(t.Context(), g, addr("a")); err != nil || ok {
			t.Fatalf("dropped %v, %v with a member away", ok, err)
		}
		c.set(3, func(d *testDrive) { d.gone = false })
		must(t, cl.Resync(t.Context(), g, addr("a"), nil))
		time.Sleep(time.Second)
		ok, err := cl.Drop(t.Context(), g, addr("a"))
		if err != nil || !ok {
			t.Fatalf("dropped %v, %v", ok, err)
		}
		// A repair that slept does not bring the object back.
		late := InstallRequest{Header: Header{Drive: 1, Partition: g.Partition, Epoch: g.Epoch}, Address: addr("a"), Row: *old}
		if err := c.drives[0].Install(t.Context(), &late); !errs.Is(err, errs.Conflict) {
			t.Fatalf("late install: got %v, want conflict", err)
		}
		for i, d := range c.drives {
			for _, p := range d.kv.live {
				if bytes.HasPrefix(p.k, []byte{nsHead}) {
					t.Errorf("drive %d still has a row", i)
				}
			}
		}
		_, err = c.put(t.Context(), cl, "a", "w")
		must(t, err)
		if v := c.read(cl, "a"); etagOf(v) != "w" || v.State.Low.IsZero() {
			t.Fatalf("read %q with low %v", etagOf(v), v.State.Low)
		}
		must(t, cl.Close(t.Context()))
	})
}

func TestOrphanRoundAndGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		g := c.group("a")
		v, err := c.put(t.Context(), cl, "a", "v")
		must(t, err)
		if _, free, err := cl.Orphan(t.Context(), g, addr("a"), v.State.Current.Data.ID, 0); err != nil || free {
			t.Fatalf("live data is free: %v, %v", free, err)
		}
		orphan := erasure.NewDataID()
		guard, free, err := cl.Orphan(t.Context(), g, addr("a"), orphan, 0)
		if err != nil || !free {
			t.Fatalf("an orphan is not free: %v, %v", free, err)
		}
		removed := 0
		remove := func() error { removed++; return nil }
		if ok, err := c.drives[0].MayDelete(addr("a"), orphan, 0, guard, remove); err != nil || !ok {
			t.Fatalf("delete refused: %v, %v", ok, err)
		}
		// A later promise protects the data again.
		_, err = c.drives[0].Prepare(t.Context(), &PrepareRequest{Header: Header{Drive: 1, Partition: g.Partition, Epoch: g.Epoch},
			Address: addr("a"), Ballot: Ballot{guard.Counter + 1, 0}})
		must(t, err)
		if ok, _ := c.drives[0].MayDelete(addr("a"), orphan, 0, guard, remove); ok || removed != 1 {
			t.Fatalf("deleted in spite of a promise (%d removed)", removed)
		}
		must(t, cl.Close(t.Context()))
	})
}

func TestResyncBringsAllDrivesToOneBallotSoThatATombstoneCanGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		g := c.group("a")
		must(t, c.remove(t.Context(), cl, "a"))
		c.set(0, func(d *testDrive) { d.gone = true })
		if _, err := cl.resolve(t.Context(), &g, &Address{Kind: KindObject, Bucket: 7, Key: []byte("a")}, &ReadOptions{}, Ballot{}); err != nil {
			t.Fatal(err)
		}
		c.set(0, func(d *testDrive) { d.gone = false })
		time.Sleep(time.Second)
		if ok, err := cl.Drop(t.Context(), g, addr("a")); err != nil || ok {
			t.Fatalf("dropped %v, %v while ballots differ", ok, err)
		}
		must(t, cl.Resync(t.Context(), g, addr("a"), nil))
		time.Sleep(time.Second)
		if ok, err := cl.Drop(t.Context(), g, addr("a")); err != nil || !ok {
			t.Fatalf("dropped %v, %v", ok, err)
		}
		must(t, cl.Close(t.Context()))
	})
}

// BenchmarkUpdate is the processor time of one write and of one read over four drives in memory.
func BenchmarkUpdate(b *testing.B) {
	t := &testing.T{}
	c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
	direct := replicas(func(drive uint16) (Replica, bool) { return c.drives[drive-1].Acceptor, true })
	cl := NewClient(ClientConfig{Replicas: direct})
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprint("key", i)
	}
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if _, err := c.put(b.Context(), cl, keys[i%len(keys)], "e"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			key := keys[i%len(keys)]
			if _, err := cl.Read(b.Context(), c.group(key), addr(key), ReadOptions{Inline: true, Ask: 2}); err != nil {
				b.Fatal(err)
			}
		}
	})
	if err := cl.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

type replicas func(uint16) (Replica, bool)

func (r replicas) Replica(drive uint16) (Replica, bool) { return r(drive) }
