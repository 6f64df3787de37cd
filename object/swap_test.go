package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// epochs stand between gateways and drives, and end epochs of partitions as a change of membership
// does. The drives behind serve every partition in epoch 1, so what is tested here is what requests
// do, not the change itself.
type epochs struct {
	s     *stack
	parts []epochGate
}

// rwLock is a sync.RWMutex for tests in virtual time, which stands still while anybody waits for a mutex.
type rwLock struct {
	mu      sync.Mutex // guards the fields below
	changed *sync.Cond
	readers int
	writer  bool // holds it, or waits for the readers
}

func (l *rwLock) lock(busy func() bool, take func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = sync.NewCond(&l.mu)
	}
	for busy() {
		l.changed.Wait()
	}
	take()
}

func (l *rwLock) RLock()   { l.lock(func() bool { return l.writer }, func() { l.readers++ }) }
func (l *rwLock) RUnlock() { l.unlock(func() { l.readers-- }) }

func (l *rwLock) Lock() {
	l.lock(func() bool { return l.writer }, func() { l.writer = true })
	l.lock(func() bool { return l.readers > 0 }, func() {})
}

func (l *rwLock) Unlock() { l.unlock(func() { l.writer = false }) }

func (l *rwLock) unlock(give func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	give()
	l.changed.Broadcast()
}

type epochGate struct {
	mu      rwLock // held for reading by every call; guards what follows
	epoch   uint64
	wedged  bool
	refused atomic.Int64 // calls since the wedge
}

func newEpochs(s *stack) *epochs {
	e := &epochs{s: s, parts: make([]epochGate, s.control.Layout().Partitions())}
	for i := range e.parts {
		e.parts[i].epoch = 1
	}
	return e
}

var errWedged = errs.E("test", errs.Stale, "another epoch")

// gated runs f for a message of a partition's present epoch.
func gated[T any](e *epochs, h metadata.Header, f func(metadata.Header) (T, error)) (T, error) {
	g := &e.parts[h.Partition]
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.wedged || h.Epoch != g.epoch {
		g.refused.Add(1)
		var zero T
		return zero, errWedged
	}
	h.Epoch = 1
	return f(h)
}

// gatedDrives are drives behind epochs.
type gatedDrives struct {
	replicas
	e *epochs
}

func (r gatedDrives) Shards(num uint16) (node.Drive, bool) {
	d, ok := r.replicas.Shards(num)
	if !ok {
		return nil, false
	}
	return gatedDrive{d, r.e}, true
}

func (r gatedDrives) Replica(num uint16) (metadata.Replica, bool) { return r.Shards(num) }

type gatedDrive struct {
	node.Drive
	e *epochs
}

func (d gatedDrive) Prepare(ctx context.Context, m *metadata.PrepareRequest) (*metadata.PrepareReply, error) {
	return gated(d.e, m.Header, func(h metadata.Header) (*metadata.PrepareReply, error) {
		c := *m
		c.Header = h
		return d.Drive.Prepare(ctx, &c)
	})
}

func (d gatedDrive) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	return gated(d.e, m.Header, func(h metadata.Header) (*metadata.AcceptReply, error) {
		c := *m
		c.Header = h
		return d.Drive.Accept(ctx, &c)
	})
}

func (d gatedDrive) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	return gated(d.e, m.Header, func(h metadata.Header) (*metadata.ReadReply, error) {
		c := *m
		c.Header = h
		return d.Drive.Read(ctx, &c)
	})
}

func (d gatedDrive) Versions(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return gated(d.e, m.Header, func(h metadata.Header) (*metadata.VersionsReply, error) {
		c := *m
		c.Header = h
		return d.Drive.Versions(ctx, &c)
	})
}

func (d gatedDrive) Pin(ctx context.Context, m *metadata.PinRequest) (*metadata.PinReply, error) {
	return gated(d.e, m.Header, func(h metadata.Header) (*metadata.PinReply, error) {
		c := *m
		c.Header = h
		return d.Drive.Pin(ctx, &c)
	})
}

func (d gatedDrive) Decide(ctx context.Context, list []metadata.Decision) error {
	var failed []error
	for _, m := range list {
		_, err := gated(d.e, m.Header, func(h metadata.Header) (struct{}, error) {
			m.Header = h
			return struct{}{}, d.Drive.Decide(ctx, []metadata.Decision{m})
		})
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// Fence is refused while a partition is between two epochs.
func (d gatedDrive) Fence(ctx context.Context, m *metadata.FenceRequest) error {
	for i := range d.e.parts {
		g := &d.e.parts[i]
		g.mu.RLock()
		defer g.mu.RUnlock()
		if g.wedged {
			g.refused.Add(1)
			return errWedged
		}
	}
	return d.Drive.Fence(ctx, m)
}

// swap makes newcomer a member of a partition in the place of old, which is gone. Between the wedge and
// the end hold is called.
func (e *epochs) swap(mover *metadata.Client, old, newcomer uint16, partition uint32, hold func(refused *atomic.Int64)) error {
	ctx := context.Background()
	g := &e.parts[partition]
	g.mu.Lock()
	g.wedged = true
	g.refused.Store(0)
	g.mu.Unlock()
	hold(&g.refused)
	// The image: what marks and repair rows of the drives name is made sure of on all who stay.
	group := e.s.control.Layout().Group(partition)
	group.Epoch = 1
	var stay []int
	for pos, num := range group.Drives {
		if num != old {
			stay = append(stay, pos)
		}
	}
	for _, pos := range stay {
		d, ok := e.s.set.Shards(group.Drives[pos])
		if !ok {
			return errs.E("test", errs.Drive, "a drive is gone")
		}
		unsettled, err := d.Unsettled(ctx, nil, 10000)
		if err != nil {
			return err
		}
		repairs, err := d.Repairs(ctx, nil, 10000)
		if err != nil {
			return err
		}
		named := map[string]metadata.Address{}
		for _, u := range unsettled {
			named[string(u.Address.AppendTo(nil))] = u.Address
		}
		for _, r := range repairs {
			named[string(r.Address.AppendTo(nil))] = r.Address
		}
		for _, a := range named {
			if e.s.control.Layout().PartitionOf(a.Bucket, a.Key) != partition {
				continue
			}
			if err := mover.Resync(ctx, group, a, stay); err != nil {
				return fmt.Errorf("the image of partition %d: %w", partition, err)
			}
		}
	}
	e.s.control.mu.Lock()
	next, err := e.s.control.layout.Swap(old, newcomer, []uint32{partition})
	if err == nil {
		e.s.control.layout = next
	}
	e.s.control.mu.Unlock()
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.epoch, g.wedged = next.Group(partition).Epoch, false
	g.mu.Unlock()
	return nil
}

// swapStack is a stack whose gateway sees epochs, and that has drives to spare.
func swapStack(t *testing.T, members, spare int, prof erasure.Profile) (*stack, *epochs, *metadata.Client) {
	s := newStack(t, stackOptions{drives: members + spare, spare: spare, prof: prof})
	s.set.SetEpoch(func(uint16, uint32) (uint64, bool) { return 1, true })
	e := newEpochs(s)
	mover := s.meta
	meta := metadata.NewClient(metadata.ClientConfig{Replicas: gatedDrives{replicas{s, false}, e}, SettleAfter: 200 * time.Millisecond})
	plain := s.Store
	gate := gatedDrives{replicas{s, false}, e}
	s.Store = s.gateway(meta, stackOptions{tune: func(c *Config) { c.Drives = gate }})
	t.Cleanup(func() {
		ctx := context.Background()
		if err := errors.Join(s.Store.Close(ctx), meta.Close(ctx)); err != nil {
			t.Error(err)
		}
		s.Store = plain
	})
	return s, e, mover
}

// join puts a spare drive into the layout.
func (s *stack) join(num uint16) error {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	l, err := s.control.layout.WithDrive(placement.Drive{Num: num, ID: [16]byte{byte(num), 0xff}})
	if err == nil {
		s.control.layout = l
	}
	return err
}

// deleting reports whether the deletion of a bucket is under way.
func (s *stack) deleting() bool {
	return slices.ContainsFunc(s.control.Buckets(), func(b Bucket) bool { return b.Deleting })
}

// object is what a writer of a test knows of its key.
type known struct {
	mu      sync.Mutex
	acked   int // value that was answered last; 0: none
	pending int // value on its way
}

func valueOf(key string, n int) []byte {
	size := []int{40, 3000, 9000, 300 << 10, 0}[n%5] // inline, files, two chunks
	return append(fmt.Appendf(nil, "%s %d ", key, n), body(uint64(n), size)...)
}

// Writers, readers and listers go on while drive after drive is replaced, partition by partition: none of
// them meets an error, and what was answered is there.
func TestNobodyNoticesThatDrivesAreReplaced(t *testing.T) {
	for _, c := range []struct {
		name string
		prof erasure.Profile
	}{
		{"4+2", erasure.Profile{Data: 4, Parity: 2}}, {"2+1", erasure.Profile{Data: 2, Parity: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// In virtual time, so that a busy machine does not use up anybody's patience.
			synctest.Test(t, func(t *testing.T) { replaceUnderLoad(t, c.prof, int(c.prof.Parity)) }) // nothing is rebuilt between
		})
	}
}

func replaceUnderLoad(t *testing.T, prof erasure.Profile, replaced int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ctx := context.Background()
	n := prof.N()
	s, e, mover := swapStack(t, n, replaced, prof)
	s.bucketFor("bkt", Unversioned)
	s.bucketFor("ver", Enabled)
	stop := make(chan struct{})
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return t.Failed()
		}
	}
	var wg sync.WaitGroup
	var ops atomic.Int64
	// What is uploaded while two drives go, one after the other, may lose more shards than it can spare:
	// uploads end before the next drive goes.
	var uploads rwLock
	const writers, keys = 4, 3
	const think = time.Millisecond // between two requests of a client
	state := map[string]*known{}
	for w := range writers {
		for i := range keys {
			state[fmt.Sprintf("w%d-%d", w, i)] = new(known)
		}
	}
	all := slices.Sorted(maps.Keys(state))
	check := func(what string, err error) bool {
		if err != nil {
			t.Errorf("seed %d: %s: %v", seed, what, err)
		}
		ops.Add(1)
		time.Sleep(think)
		return err == nil
	}
	for w := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			for v := 1; !stopped(); v++ {
				key := fmt.Sprintf("w%d-%d", w, rnd.IntN(keys))
				k := state[key]
				k.mu.Lock()
				k.pending = v
				k.mu.Unlock()
				uploads.RLock()
				_, err := s.put("bkt", key, valueOf(key, v), PutOptions{})
				uploads.RUnlock()
				if !check("put", err) {
					return
				}
				k.mu.Lock()
				k.acked = v
				k.mu.Unlock()
			}
		})
	}
	wg.Go(func() { // reads: never older than what was answered before
		rnd := rand.New(rand.NewPCG(seed, 100))
		for !stopped() {
			key := all[rnd.IntN(len(all))]
			k := state[key]
			k.mu.Lock()
			least := k.acked
			k.mu.Unlock()
			_, got, err := s.get("bkt", key, GetOptions{})
			if least == 0 && errors.Is(err, ErrNoSuchKey) {
				continue
			}
			if !check("get", err) {
				return
			}
			k.mu.Lock()
			most := k.pending
			k.mu.Unlock()
			var name string
			var v int
			if _, err := fmt.Sscanf(string(got), "%s %d ", &name, &v); err != nil || name != key || v < least || v > most || !bytes.Equal(got, valueOf(key, v)) {
				t.Errorf("seed %d: %s is %d of %q (%v), want %d to %d", seed, key, v, name, err, least, most)
				return
			}
		}
	})
	wg.Go(func() { // listings: all that was answered before
		for !stopped() {
			var want []string
			for _, key := range all {
				k := state[key]
				k.mu.Lock()
				if k.acked > 0 {
					want = append(want, key)
				}
				k.mu.Unlock()
			}
			r, err := s.List(ctx, "bkt", ListOptions{Limit: 1000})
			if !check("list", err) {
				return
			}
			have := map[string]bool{}
			for i := range r.Objects {
				have[r.Objects[i].Key] = true
			}
			for _, key := range want {
				if !have[key] {
					t.Errorf("seed %d: the listing lacks %s", seed, key)
					return
				}
			}
		}
	})
	wg.Go(func() { // uploads, and what else there is
		for i := 0; !stopped(); i++ {
			uploads.RLock()
			err := everything(ctx, s, i)
			uploads.RUnlock()
			if !check("the other requests", err) {
				return
			}
		}
	})
	wg.Go(func() { // a bucket comes and goes
		for i := 0; !stopped(); i++ {
			name := fmt.Sprintf("temporary-%d", i)
			_, err := s.CreateBucket(ctx, name, CreateBucketOptions{Owner: "o"})
			if err == nil {
				_, err = s.put(name, "k", valueOf("k", 1), PutOptions{})
			}
			if err == nil {
				_, err = s.Delete(ctx, name, "k", DeleteOptions{})
			}
			if err == nil {
				err = s.DeleteBucket(ctx, name)
			}
			if !check("a bucket", err) {
				return
			}
		}
	})
	// One drive after the other goes, and a spare one takes its place.
	rnd := rand.New(rand.NewPCG(seed, 200))
	var total int64
	err := func() error {
		for i := range replaced {
			old, newcomer := uint16(i+1), uint16(n+i+1)
			if err := s.join(newcomer); err != nil {
				return err
			}
			uploads.Lock() // waits for those that go on
			//lint:ignore SA2001 nothing is guarded
			uploads.Unlock()
			s.down[old].Store(true)
			list := s.control.Layout().PartitionsOf(old)
			rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			for _, p := range list {
				most := int64(rnd.IntN(30))
				// A mover lets deletions through before it changes members again; see heal.Config.Deletions.
				for end := time.Now().Add(10 * time.Second); s.deleting() && time.Now().Before(end) && !t.Failed(); {
					time.Sleep(time.Millisecond)
				}
				err := e.swap(mover, old, newcomer, p, func(refused *atomic.Int64) {
					end := time.Now().Add(5 * time.Second)
					for refused.Load() < most && time.Now().Before(end) && !t.Failed() {
						time.Sleep(time.Millisecond) // the partition stays between epochs until requests met that
					}
					total += refused.Load()
				})
				if err != nil {
					return err
				}
			}
		}
		return nil
	}()
	close(stop)
	wg.Wait()
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	for _, key := range all {
		k := state[key]
		_, got, err := s.get("bkt", key, GetOptions{})
		if k.acked == 0 && errors.Is(err, ErrNoSuchKey) {
			continue
		}
		if err != nil || !bytes.Equal(got, valueOf(key, k.acked)) {
			t.Errorf("seed %d: %s: %d bytes, %v; want value %d", seed, key, len(got), err, k.acked)
		}
	}
	t.Logf("%d requests, %d calls refused, %d times followed", ops.Load(), total, s.Stats().Followed)
	if total == 0 || s.Stats().Followed == 0 {
		t.Errorf("seed %d: no request met a change", seed)
	}
}

// everything is one of each of the requests that the loops of replaceUnderLoad do not make.
func everything(ctx context.Context, s *stack, i int) error {
	key := fmt.Sprintf("e%d", i%7)
	up, err := s.CreateUpload(ctx, "ver", key, UploadOptions{})
	if err != nil {
		return fmt.Errorf("create upload: %w", err)
	}
	var list []CompletedPart
	var whole []byte
	for n := 1; n <= 3; n++ {
		b := valueOf(key, i+n)
		p, err := s.PutPart(ctx, "ver", key, up.UploadID, n, bytes.NewReader(b), PartOptions{Size: int64(len(b))})
		if err != nil {
			return fmt.Errorf("part: %w", err)
		}
		list = append(list, CompletedPart{Number: n, ETag: p.ETag})
		whole = append(whole, b...)
	}
	if r, err := s.ListParts(ctx, "ver", key, up.UploadID, 0, 10); err != nil || len(r.Parts) != 3 {
		return fmt.Errorf("list parts: %d, %w", len(r.Parts), err)
	}
	if r, err := s.ListUploads(ctx, "ver", ListUploadsOptions{Limit: 10}); err != nil || len(r.Uploads) == 0 {
		return fmt.Errorf("list uploads: %d, %w", len(r.Uploads), err)
	}
	if i%3 == 2 {
		if err := s.AbortUpload(ctx, "ver", key, up.UploadID); err != nil {
			return fmt.Errorf("abort: %w", err)
		}
		return nil
	}
	info, err := s.CompleteUpload(ctx, "ver", key, up.UploadID, list, CompleteOptions{})
	if err != nil {
		return fmt.Errorf("complete: %w", err)
	}
	if _, err := s.Modify(ctx, "ver", key, &info.VersionID, func(v *metadata.Version) error { v.LegalHold = false; return nil }); err != nil {
		return fmt.Errorf("tags: %w", err)
	}
	if _, err := s.Copy(ctx, "ver", key, "ver", "copy", CopyOptions{SourceVersionID: &info.VersionID}); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if _, got, err := s.get("ver", "copy", GetOptions{}); err != nil || !bytes.Equal(got, whole) {
		return fmt.Errorf("the copy: %d bytes of %d, %w", len(got), len(whole), err)
	}
	if h, err := s.Head(ctx, "ver", key, GetOptions{VersionID: &info.VersionID}); err != nil || h.Info.Size != int64(len(whole)) {
		return fmt.Errorf("head: %w", err)
	}
	r, err := s.ListVersions(ctx, "ver", ListVersionsOptions{Limit: 1000})
	if err != nil {
		return fmt.Errorf("list versions: %w", err)
	}
	var gone []DeleteRequest
	for _, v := range r.Versions {
		gone = append(gone, DeleteRequest{Key: v.Key, DeleteOptions: DeleteOptions{VersionID: &v.VersionID}})
	}
	out, err := s.DeleteMany(ctx, "ver", gone)
	for i := range out {
		err = errors.Join(err, out[i].Err)
	}
	if err != nil {
		return fmt.Errorf("delete many: %w", err)
	}
	return nil
}

// gateReader gives its first half, then waits for the gate.
type gateReader struct {
	r    io.Reader
	left int
	at   chan<- struct{}
	gate <-chan struct{}
}

func (g *gateReader) Read(p []byte) (int, error) {
	if g.left <= 0 && g.at != nil {
		close(g.at)
		g.at = nil
		<-g.gate
	}
	if g.at != nil && len(p) > g.left {
		p = p[:max(g.left, 1)]
	}
	n, err := g.r.Read(p)
	g.left -= n
	return n, err
}

// A body that is on its way to a drive that is replaced meanwhile is not sent again: its shard there counts
// as missing, and a repair row says so.
func TestABodyThatWasStreamedToADriveThatLeftIsCommittedWithARepairRow(t *testing.T) {
	for _, chunks := range []int{1, 3} {
		t.Run(fmt.Sprint(chunks, " chunks"), func(t *testing.T) {
			ctx := context.Background()
			s, e, mover := swapStack(t, 6, 1, erasure.Profile{Data: 4, Parity: 2})
			s.bucketFor("bkt", Unversioned)
			want := body(1, chunks*256<<10-1000)
			at, gate := make(chan struct{}), make(chan struct{})
			var reads atomic.Int64
			src := &gateReader{r: bytes.NewReader(want), left: len(want) - 5000, at: at, gate: gate}
			done := make(chan error, 1)
			go func() {
				_, err := s.Put(ctx, "bkt", "k", countReader{src, &reads}, PutOptions{Size: int64(len(want))})
				done <- err
			}()
			<-at
			if err := s.join(7); err != nil {
				t.Fatal(err)
			}
			s.down[1].Store(true)
			for _, p := range s.control.Layout().PartitionsOf(1) {
				if err := e.swap(mover, 1, 7, p, func(*atomic.Int64) {}); err != nil {
					t.Fatal(err)
				}
			}
			close(gate)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if reads.Load() != int64(len(want)) {
				t.Errorf("%d bytes were read from the client, want %d", reads.Load(), len(want))
			}
			if _, got, err := s.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if err := s.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			l := s.control.Layout()
			b, _ := s.control.Bucket("bkt")
			g := l.Group(l.PartitionOf(b.ID, []byte("k")))
			pos := g.Position(7)
			// The row comes with the decision, which is sent soon after the answer.
			end := time.Now().Add(20 * time.Second)
			for {
				rows := 0
				for _, num := range g.Drives {
					d, _ := s.set.Shards(num)
					list, err := d.Repairs(ctx, nil, 100)
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range list {
						if string(r.Address.Key) == "k" && slices.Contains(r.Positions, uint8(pos)) {
							rows++
						}
					}
				}
				if rows >= g.Quorum.W-1 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d drives have a repair row for position %d", rows, pos)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

type countReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// A partition that stays between two epochs costs a request ten seconds at most, and then it says that a
// retry may succeed.
func TestPatienceHasAnEnd(t *testing.T) {
	s, e, _ := swapStack(t, 4, 0, erasure.Profile{Data: 2, Parity: 2})
	s.bucketFor("bkt", Unversioned)
	for i := range e.parts {
		e.parts[i].wedged = true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Put(ctx, "bkt", "k", bytes.NewReader([]byte("x")), PutOptions{Size: 1}); !errs.Is(err, errs.Timeout) {
		t.Errorf("put: %v, want Timeout", err)
	}
	if _, err := s.Head(ctx, "bkt", "k", GetOptions{}); !errs.Is(err, errs.Timeout) {
		t.Errorf("head: %v, want Timeout", err)
	}
	var w patience
	w.since = time.Now().Add(-maxPatience)
	l := s.control.Layout()
	b, _ := s.control.Bucket("bkt")
	if err := s.follow(context.Background(), "Test", placeIn(l, b, []byte("k")), true, &w, errWedged); !errs.Is(err, errs.Unavailable) {
		t.Errorf("the patience is over: %v, want Unavailable", err)
	}
}

// All keys of a request share what patience there is, for reads and updates, also after the layout was followed.
func TestThePatienceOfADeletionOfManyKeysIsThatOfOne(t *testing.T) {
	ctx := context.Background()
	s, e, _ := swapStack(t, 4, 0, erasure.Profile{Data: 2, Parity: 2})
	s.bucketFor("bkt", Unversioned)
	var keys []string
	for i := range 200 {
		keys = append(keys, fmt.Sprintf("k%03d", i))
	}
	for i := range e.parts {
		e.parts[i].wedged = true
	}
	over := &sharedPatience{spent: maxPatience} // other keys needed it all
	for _, key := range keys {
		if _, err := s.deleteKey(ctx, "bkt", key, &DeleteOptions{}, over); !errs.Is(err, errs.Unavailable) {
			t.Fatalf("delete %s: %v, want Unavailable", key, err)
		}
	}
	// Whoever follows the layout keeps the patience of its request.
	l := s.control.Layout()
	bkt, _ := s.control.Bucket("bkt")
	p := placeIn(l, bkt, []byte("k"))
	p.patience = over
	if err := s.refresh(ctx, "Test", p, true); err != nil || p.patience != over {
		t.Errorf("refreshed: %v, patience kept: %v", err, p.patience == over)
	}
}

// A newcomer that has nothing yet makes no read settle what others know as decided: it answers that it has
// nothing, and that is all.
func TestReadsDoNotSettleBecauseANewcomerIsEmpty(t *testing.T) {
	ctx := context.Background()
	s, e, mover := swapStack(t, 6, 1, erasure.Profile{Data: 4, Parity: 2})
	s.bucketFor("bkt", Unversioned)
	for i := range 10 {
		key := fmt.Sprint("k", i)
		if _, err := s.put("bkt", key, valueOf(key, i), PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.join(7); err != nil {
		t.Fatal(err)
	}
	s.down[1].Store(true)
	for _, p := range s.control.Layout().PartitionsOf(1) {
		if err := e.swap(mover, 1, 7, p, func(*atomic.Int64) {}); err != nil {
			t.Fatal(err)
		}
	}
	var rounds atomic.Int64
	count := func(_ uint16, op string) error {
		if op == "prepare" {
			rounds.Add(1)
		}
		return nil
	}
	s.fault.Store(&count)
	// Decisions of the writes are still on their way to the drives; once they are there, no read has a round.
	for end := time.Now().Add(20 * time.Second); ; {
		rounds.Store(0)
		for i := range 10 {
			key := fmt.Sprint("k", i)
			if _, got, err := s.get("bkt", key, GetOptions{}); err != nil || !bytes.Equal(got, valueOf(key, i)) {
				t.Fatalf("%s: %d bytes, %v", key, len(got), err)
			}
			if _, err := s.Head(ctx, "bkt", key, GetOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := s.List(ctx, "bkt", ListOptions{Limit: 100}); err != nil || len(r.Objects) != 10 {
			t.Fatalf("%d objects, %v", len(r.Objects), err)
		}
		if rounds.Load() == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d rounds for 21 reads", rounds.Load())
		}
	}
	if n := s.Stats().RepairsAsked; n > 10 {
		t.Errorf("%d repairs were asked for 10 keys", n)
	}
}
