package heal

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// control has one bucket, and a layout that only replacements change.
type control struct {
	object.Control
	mu     sync.Mutex // guards layout while a replacement runs
	layout *placement.Layout
	bucket object.Bucket
	gone   bool // the bucket was deleted
}

func (c *control) Layout() *placement.Layout {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.layout
}
func (c *control) Bucket(string) (object.Bucket, bool) { return c.bucket, true }
func (c *control) Buckets() []object.Bucket {
	if c.gone {
		return nil
	}
	return []object.Bucket{c.bucket}
}
func (c *control) Refresh(context.Context) error { return nil }

// clock is set by the test.
type clock struct {
	mu sync.Mutex // guards at
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

type world struct {
	t        testing.TB
	paths    []string
	stopped  bool
	crashed  bool // a file system that fails is under it
	replaces *replaces
	fs       *vfs.MemFS
	set      *node.Set
	down     []atomic.Bool
	control  *control
	meta     *metadata.Client
	store    *object.Store
	clock    clock
	healer   *Healer
}

func (w *world) Shards(num uint16) (node.Drive, bool) {
	d, ok := w.set.Shards(num)
	if !ok || w.down[num].Load() {
		return nil, false
	}
	return node.Codec(d), true
}

func (w *world) Replica(num uint16) (metadata.Replica, bool) { return w.Shards(num) }

func newWorld(t *testing.T, versioning object.Versioning) *world { return newWorldOf(t, versioning, 4) }

func newWorldOf(t testing.TB, versioning object.Versioning, n int) *world {
	t.Helper()
	w := &world{t: t, fs: vfs.NewCrashableMem(), down: make([]atomic.Bool, 16), replaces: &replaces{}}
	w.clock.at = time.Unix(1_800_000_000, 0)
	for i := range n {
		w.paths = append(w.paths, fmt.Sprintf("/d%d", i))
		if err := w.fs.MkdirAll(w.paths[i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := w.fs.OpenDir("/")
	if err == nil {
		err = errors.Join(root.Sync(), root.Close()) // the directories are there after a power cut
	}
	if err != nil {
		t.Fatal(err)
	}
	w.control = &control{bucket: object.Bucket{ID: 1, Name: "bkt", Epoch: 1, Versioning: versioning}}
	w.start(w.fs)
	t.Cleanup(func() { w.stop() })
	return w
}

// stop closes everything, as a process that ends does.
func (w *world) stop() {
	w.t.Helper()
	ctx := context.Background()
	if w.stopped {
		return
	}
	w.stopped = true
	if err := w.store.Close(ctx); err != nil {
		w.t.Error(err)
	}
	if err := w.meta.Close(ctx); err != nil {
		w.t.Error(err)
	}
	if err := w.set.Close(ctx); err != nil && !w.crashed {
		w.t.Error(err)
	}
}

// start opens the drives on fs, and makes all that stands on them.
func (w *world) start(fs vfs.FS) {
	w.t.Helper()
	ctx := context.Background()
	t := w.t
	w.stopped = false
	var err error
	w.set, err = node.OpenSet(ctx, w.paths, node.Options{FS: fs, WatchEvery: -1, Now: w.clock.now,
		Disk: disk.Options{SweepEvery: -1, MemTableSize: 1 << 20, ReserveBytes: -1}})
	if err != nil {
		t.Fatal(err)
	}
	w.set.SetRetired(w.replaces.isRetired)
	if w.control.layout == nil {
		w.found()
	}
	w.set.SetEpoch(func(drive uint16, partition uint32) (uint64, bool) {
		g := w.control.Layout().Group(partition)
		return g.Epoch, g.Position(drive) >= 0
	})
	if err := w.set.MarkFormed(ctx); err != nil && !w.crashed {
		t.Fatal(err)
	}
	w.meta = metadata.NewClient(metadata.ClientConfig{Replicas: w, Now: w.clock.now, SettleAfter: 50 * time.Millisecond})
	w.store = object.New(object.Config{Control: w.control, Drives: w, Meta: w.meta, Now: w.clock.now, InlineLimit: 4 << 10,
		ChunkSize: 256 << 10, MinPartSize: 1, CacheBytes: -1})
	w.healer = New(Config{Meta: w.meta, Layout: w.control.Layout, Buckets: w.store, Drives: w, Now: w.clock.now, CheckEvery: -1, Recoder: w.store,
		Replacements: w.replaces.list, Control: w, Local: func() (out []node.Drive) {
			for i := range w.down {
				if d, ok := w.Shards(uint16(i)); ok {
					out = append(out, d)
				}
			}
			return out
		}})
}

// found makes the first layout.
func (w *world) found() {
	w.t.Helper()
	t := w.t
	var drives []placement.Drive
	for _, f := range w.set.Founders() {
		drives = append(drives, placement.Drive{Num: f.Num, ID: f.Drive})
	}
	layout, err := placement.NewLayout(drives, erasure.Profile{Data: 2, Parity: 2}, 3)
	if err != nil {
		t.Fatal(err)
	}
	w.control.layout = layout
}

func (w *world) put(key string, size int) []byte {
	w.t.Helper()
	b := bytes.Repeat([]byte(key+"|"), size/(len(key)+1)+1)[:size]
	if _, err := w.store.Put(context.Background(), "bkt", key, bytes.NewReader(b), object.PutOptions{Size: int64(size)}); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// settle waits until every drive was heard for what requests did: they return at a quorum.
func (w *world) settle() {
	w.t.Helper()
	if err := w.store.Flush(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	// Closing the client flushes its decisions; a fresh one takes over.
	if err := w.meta.Close(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	*w.meta = *metadata.NewClient(w.meta.ClientConfig) //nolint:govet // nobody uses it now
}

// heal settles what requests left behind, then makes a pass.
func (w *world) heal() {
	w.t.Helper()
	w.settle()
	w.clock.pass(time.Hour)
	w.healer.Trigger()
	if err := w.healer.Pass(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// repairs returns how many repair rows the drives have.
func (w *world) repairs() (n int) {
	w.t.Helper()
	for _, d := range w.healer.c.Local() {
		list, err := d.Repairs(context.Background(), nil, 1000)
		if err != nil {
			w.t.Fatal(err)
		}
		n += len(list)
	}
	return n
}

// whole fails unless every row and every shard of the key is there and right.
func (w *world) whole(key string) {
	w.t.Helper()
	in, err := w.store.Inspect(context.Background(), "bkt", key, true)
	if err != nil {
		w.t.Fatalf("%s: %v", key, err)
	}
	for _, r := range in.Rows {
		if !r.Present {
			w.t.Errorf("%s: row %+v", key, r)
		}
	}
	for _, s := range in.Shards {
		if s.Status != object.ShardVerified {
			w.t.Errorf("%s: shard %+v (%s)", key, s, s.Status)
		}
	}
}

func TestDriveThatWasAwayIsBroughtUp(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	w.put("deleted", 100)
	w.put("replaced", 700<<10)
	w.down[1].Store(true)
	want := map[string][]byte{"small": w.put("small", 100), "chunked": w.put("chunked", 700<<10), "replaced": w.put("replaced", 300<<10)}
	if _, err := w.store.Delete(ctx, "bkt", "deleted", object.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.heal()
	if w.repairs() == 0 {
		t.Fatal("nothing is to be repaired while a drive is away")
	}
	w.down[1].Store(false)
	w.heal()
	w.heal()
	for key, b := range want {
		w.whole(key)
		// Any two drives suffice now.
		for i := range w.down {
			for j := range i {
				w.down[i].Store(true)
				w.down[j].Store(true)
				obj, err := w.store.Get(ctx, "bkt", key, object.GetOptions{})
				if err != nil {
					t.Fatalf("%s without drives %d and %d: %v", key, i, j, err)
				}
				var got bytes.Buffer
				_, err = obj.WriteTo(&got)
				obj.Close()
				if err != nil || !bytes.Equal(got.Bytes(), b) {
					t.Fatalf("%s without drives %d and %d: %d bytes, %v", key, i, j, got.Len(), err)
				}
				w.down[i].Store(false)
				w.down[j].Store(false)
			}
		}
	}
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left: %+v", n, w.healer.Progress())
	}
	if p := w.healer.Progress(); p.Shards == 0 || p.Repaired == 0 || p.Failed != 0 {
		t.Errorf("progress: %+v", p)
	}
}

func TestDamagedShardsFoundByReadsAreRepaired(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	w.put("k", 700<<10)
	w.heal()
	in, err := w.store.Inspect(ctx, "bkt", "k", false)
	if err != nil {
		t.Fatal(err)
	}
	// One shard of each chunk vanishes, behind the record's back: its own register is not asked.
	id, err := erasure.ParseDataID(in.DataID)
	if err != nil {
		t.Fatal(err)
	}
	stranger := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("stranger")}
	for _, s := range in.Shards {
		if s.Index != 0 {
			continue
		}
		d, _ := w.Shards(s.Drive)
		if err := d.DeleteShard(ctx, stranger, id, uint32(s.Chunk), metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.StatShard(ctx, erasure.ShardID{Data: id, Chunk: uint32(s.Chunk)}); !errs.Is(err, errs.NotFound) {
			t.Fatalf("the shard is still there: %v", err)
		}
	}
	obj, err := w.store.Get(ctx, "bkt", "k", object.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := obj.WriteTo(&got); err != nil || got.Len() != 700<<10 {
		t.Fatalf("degraded get: %d bytes, %v", got.Len(), err)
	}
	obj.Close()
	if err := w.store.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if w.repairs() == 0 {
		t.Fatal("the read left no repair row")
	}
	w.heal()
	w.whole("k")
}

func TestReplacedMultipartObjectLeavesNothing(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	up, err := w.store.CreateUpload(ctx, "bkt", "k", object.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var list []object.CompletedPart
	for i, size := range []int{600 << 10, 100, 300 << 10} {
		p, err := w.store.PutPart(ctx, "bkt", "k", up.UploadID, i+1, bytes.NewReader(make([]byte, size)), object.PartOptions{Size: int64(size)})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, object.CompletedPart{Number: i + 1, ETag: p.ETag})
	}
	if _, err := w.store.CompleteUpload(ctx, "bkt", "k", up.UploadID, list, object.CompleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.whole("k")
	w.put("k", 100)
	for range 5 {
		w.heal()
	}
	w.whole("k")
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left: %+v", n, w.healer.Progress())
	}
	// What is one drive's own garbage its sweeper removes; all that may be left besides the new body is
	// single chunks on garbage lists.
	for num := range w.down {
		d, ok := w.Shards(uint16(num))
		if !ok {
			continue
		}
		rows, err := d.ShardRows(ctx, erasure.DataID{}, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		garbage, err := d.Garbage(ctx, w.clock.now().Add(time.Hour), 1000)
		if err != nil {
			t.Fatal(err)
		}
		listed := map[erasure.DataID]bool{}
		for _, g := range garbage {
			listed[g.Dead.Data.ID] = true
		}
		in, err := w.store.Inspect(ctx, "bkt", "k", false)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.ID.Chunk > 0 {
				t.Errorf("drive %d still has %v", num, r.ID)
			}
			if r.ID.Data.String() != in.DataID && !listed[r.ID.Data] {
				t.Errorf("drive %d has %v, which nothing lists", num, r.ID)
			}
		}
	}
	if p := w.healer.Progress(); p.Removed == 0 {
		t.Errorf("progress: %+v", p)
	}
}

func TestCrashBetweenAcceptAndDecision(t *testing.T) {
	w := newWorld(t, object.Enabled)
	ctx := context.Background()
	w.put("k", 100)
	w.put("k", 300<<10)
	w.down[2].Store(true)
	w.put("k", 50)
	w.down[2].Store(false)
	for range 2 {
		w.heal()
	}
	w.whole("k")
	for num := range w.down {
		d, ok := w.Shards(uint16(num))
		if !ok {
			continue
		}
		left, err := d.Unsettled(ctx, nil, 1000)
		if err != nil || len(left) != 0 {
			t.Errorf("drive %d: unsettled %v, %v", num, left, err)
		}
	}
	versions, err := w.store.ListVersions(ctx, "bkt", object.ListVersionsOptions{Limit: 10})
	if err != nil || len(versions.Versions) != 3 {
		t.Fatalf("versions: %+v, %v", versions, err)
	}
}

func TestOrphansAreRemovedAndNothingElse(t *testing.T) {
	w := newWorld(t, object.Enabled)
	ctx := context.Background()
	w.put("k", 100)
	w.put("k", 700<<10)
	w.heal()
	// A gateway died after the seal: inline shards that belong to k, and a later chunk that does too.
	addr := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("k")}
	g := w.control.layout.Group(w.control.layout.PartitionOf(1, addr.Key))
	body := []byte("never named")
	dead := metadata.Data{ID: erasure.NewDataID(), Profile: erasure.Profile{Data: 2, Parity: 2}, Size: int64(len(body))}
	rows, err := erasure.EncodeInline(dead.Profile, dead.ID, body)
	if err != nil {
		t.Fatal(err)
	}
	for pos, num := range g.Drives {
		d, _ := w.Shards(num)
		if err := d.SealShard(ctx, addr, &metadata.Seal{Data: dead, Index: uint8(pos), Inline: rows[pos]}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := w.healer.Orphans(ctx, time.Hour); err != nil || n != 0 {
		t.Fatalf("young orphans: %d, %v", n, err)
	}
	w.clock.pass(2 * time.Hour)
	if n, err := w.healer.Orphans(ctx, time.Hour); err != nil || n != 1 {
		t.Fatalf("old orphans: %d, %v", n, err)
	}
	for _, num := range g.Drives {
		d, _ := w.Shards(num)
		if _, err := d.InlineShard(ctx, dead.ID); !errs.Is(err, errs.NotFound) {
			t.Errorf("drive %d still has the orphan: %v", num, err)
		}
	}
	w.whole("k")
	versions, err := w.store.ListVersions(ctx, "bkt", object.ListVersionsOptions{Limit: 10})
	if err != nil || len(versions.Versions) != 2 {
		t.Fatalf("versions: %+v, %v", versions, err)
	}
	for _, v := range versions.Versions {
		obj, err := w.store.Get(ctx, "bkt", "k", object.GetOptions{VersionID: &v.VersionID})
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := obj.WriteTo(&got); err != nil || int64(got.Len()) != v.Size {
			t.Errorf("version %s: %d bytes, %v", v.VersionID, got.Len(), err)
		}
		obj.Close()
	}
}

// flip changes one byte of a shard file.
func (w *world) flip(num uint16, id erasure.ShardID, off int64) {
	w.t.Helper()
	for _, p := range w.set.Status() {
		if p.Num != num {
			continue
		}
		name := w.fs.PathJoin(p.Path, "shards", id.Data.String()[:2], fmt.Sprintf("%s.%d.%d", id.Data, id.Chunk, id.Index))
		f, err := w.fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			w.t.Fatal(err)
		}
		var b [1]byte
		if _, err = f.ReadAt(b[:], off); err == nil {
			b[0] ^= 0x40
			_, err = f.WriteAt(b[:], off)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	w.t.Fatalf("no drive %d", num)
}

// Damage in more shards than parity can replace, but never in more of one stripe: the object can be
// read, and a repair must not end that.
func TestDamageInEveryShardIsRepairedStripeByStripe(t *testing.T) {
	for _, tc := range []struct {
		name   string
		away   bool // two drives are away: nothing can be repaired, and nothing may be destroyed
		shards int
	}{{"all here", false, 4}, {"three of four", false, 3}, {"two away", true, 2}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, object.Unversioned)
			ctx := context.Background()
			old := w.store
			w.store = object.New(object.Config{Control: w.control, Drives: w, Meta: w.meta, Now: w.clock.now, CacheBytes: -1})
			defer func() { w.store = old }()
			defer func(s *object.Store) {
				if err := s.Close(ctx); err != nil {
					t.Error(err)
				}
			}(w.store)
			want := w.put("k", 8*erasure.BlockSize) // four stripes of two
			in, err := w.store.Inspect(ctx, "bkt", "k", false)
			if err != nil {
				t.Fatal(err)
			}
			id, err := erasure.ParseDataID(in.DataID)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range in.Shards {
				if s.Index < tc.shards {
					w.flip(s.Drive, erasure.ShardID{Data: id, Index: uint8(s.Index)}, 4096+int64(s.Index)*erasure.BlockSize+17)
				} else if tc.away {
					w.down[s.Drive].Store(true)
				}
			}
			row := metadata.RepairRow{Address: metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("k")}, Positions: []uint8{0}}
			for _, d := range w.healer.c.Local() {
				row.Partition = w.control.layout.PartitionOf(1, []byte("k"))
				if err := d.AddRepair(ctx, row); err != nil {
					t.Fatal(err)
				}
			}
			w.heal()
			for i := range w.down {
				w.down[i].Store(false)
			}
			read := func() {
				t.Helper()
				obj, err := w.store.Get(ctx, "bkt", "k", object.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer obj.Close()
				var got bytes.Buffer
				if _, err := obj.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
					t.Fatalf("%d bytes, %v", got.Len(), err)
				}
			}
			read()
			w.heal()
			w.whole("k")
			read()
		})
	}
}

// A bucket may go before the grace of what its last objects let go of has passed.
func TestDeletedBucketLeavesNoLargeBodies(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	// Two bodies whose graces end one pass apart: neither waits for the other.
	w.put("k", 700<<10)
	w.put("k", 700<<10)
	w.heal()
	if _, err := w.store.Delete(ctx, "bkt", "k", object.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.control.gone = true
	for range 4 {
		w.heal()
	}
	for _, d := range w.healer.c.Local() {
		rows, err := d.ShardRows(ctx, erasure.DataID{}, 0, 1000)
		if err != nil || len(rows) != 0 {
			t.Errorf("drive %d still has %d shards: %v", d.Num(), len(rows), err)
		}
	}
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}

// A member that missed the tombstone of an object names its data, and would for ever: the bucket is gone, and so
// is everything that could ask for a repair of the row.
func TestRowsOfADeletedBucketAreBroughtUpBeforeTheyAreForgotten(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	sizes := map[string]int{"small": 100, "large": 700 << 10}
	addrs := map[string]metadata.Address{}
	ids := map[string]erasure.DataID{}
	for key, size := range sizes {
		w.put(key, size)
		addrs[key], ids[key] = metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(key)}, w.dataOf(key)
	}
	w.heal()
	w.down[1].Store(true)
	for key := range sizes {
		w.delete(key)
	}
	w.control.gone = true
	w.heal()
	w.heal()
	if w.repairs() == 0 {
		t.Fatal("a member is away, and nothing asks for a repair of its rows")
	}
	w.down[1].Store(false)
	d, _ := w.Shards(1)
	for key, a := range addrs {
		if named, err := d.Names(ctx, a, ids[key]); err != nil || !named {
			t.Fatalf("%s: the member that was away did not miss the deletion: %v", key, err)
		}
	}
	for range 4 {
		w.heal()
	}
	for key, a := range addrs {
		if named, err := d.Names(ctx, a, ids[key]); err != nil || named {
			t.Errorf("%s: the member that was away still names the data: %v", key, err)
		}
	}
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
	w.clock.pass(48 * time.Hour)
	if _, err := w.healer.Orphans(ctx, time.Hour); err != nil {
		t.Fatal(err)
	}
	for key, id := range ids {
		if n := w.shardsOf(id); n != 0 {
			t.Errorf("%s: %d shards are left", key, n)
		}
	}
}

// A write is accepted by one drive alone, which goes away. The bucket is found empty without it, and deleted.
func TestLoneWriteOfADeletedBucketGoes(t *testing.T) {
	for _, size := range []int{100, 100 << 10, 700 << 10} {
		t.Run(fmt.Sprint(size, " bytes"), func(t *testing.T) {
			w := newWorld(t, object.Unversioned)
			ctx := context.Background()
			var others sync.WaitGroup
			others.Add(1)
			w.with(lossy{world: w, refuse: map[uint16]bool{1: true, 2: true, 3: true}, others: &others})
			if _, err := w.store.Put(ctx, "bkt", "k", bytes.NewReader(make([]byte, size)), object.PutOptions{Size: int64(size)}); !errs.Is(err, errs.Unknown) {
				t.Fatalf("put with one accept: %v", err)
			}
			w.with(w)
			w.down[4].Store(true)
			w.control.gone = true
			w.heal()
			w.down[4].Store(false)
			for range 6 {
				w.heal()
			}
			if n := w.repairs(); n != 0 {
				t.Errorf("%d repair rows are left", n)
			}
			w.clock.pass(48 * time.Hour)
			for range 3 { // single chunks are each drive's own to remove: its sweeper's, or as orphans
				if _, err := w.healer.Orphans(ctx, time.Hour); err != nil {
					t.Error(err)
				}
				w.heal()
			}
			for _, d := range w.healer.c.Local() {
				if rows, err := d.ShardRows(ctx, erasure.DataID{}, 0, 1000); err != nil || len(rows) != 0 {
					t.Errorf("drive %d has %d shards of a bucket that is gone: %v", d.Num(), len(rows), err)
				}
			}
		})
	}
}

// lossy answers for the drives of a world, but takes no decision and cannot verify the shards of one drive.
type lossy struct {
	*world
	num    uint16
	refuse map[uint16]bool // drives that accept nothing, and say so once all others have accepted
	others *sync.WaitGroup // these others
}

type lossyDrive struct {
	node.Drive
	unreadable, refuses bool
	others              *sync.WaitGroup
}

func (d lossyDrive) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	if d.refuses {
		d.others.Wait()
		return nil, errs.E("test", errs.Drive, "lost")
	}
	if d.others != nil {
		defer d.others.Done()
	}
	return d.Drive.Accept(ctx, m)
}

func (d lossyDrive) Decide(context.Context, []metadata.Decision) error {
	return errs.E("test", errs.Drive, "lost")
}

func (d lossyDrive) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	if d.unreadable {
		return errs.E("test", errs.Drive, "cannot be read now")
	}
	return d.Drive.VerifyShard(ctx, c, index, throttle)
}

func (l lossy) Shards(num uint16) (node.Drive, bool) {
	d, ok := l.world.Shards(num)
	return lossyDrive{d, num == l.num, l.refuse[num], l.others}, ok
}

func (l lossy) Replica(num uint16) (metadata.Replica, bool) { return l.Shards(num) }

// with makes the client use other replicas.
func (w *world) with(r metadata.Replicas) {
	w.t.Helper()
	if err := w.meta.Close(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	c := w.meta.ClientConfig
	c.Replicas = r
	*w.meta = *metadata.NewClient(c) //nolint:govet // nobody uses it now
}

// A register that was never settled is settled by a pass that could not verify all of its shards: the
// pass after it must know.
func TestSettlingDoesNotForgetWhatCouldNotBeVerified(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	w.with(lossy{world: w})
	w.put("k", 100<<10)
	w.with(w)
	in, err := w.store.Inspect(ctx, "bkt", "k", false)
	if err != nil {
		t.Fatal(err)
	}
	id, err := erasure.ParseDataID(in.DataID)
	if err != nil {
		t.Fatal(err)
	}
	num := in.Shards[0].Drive
	stranger := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("stranger")}
	d, _ := w.Shards(num)
	if err := d.DeleteShard(ctx, stranger, id, 0, metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}); err != nil {
		t.Fatal(err)
	}
	w.healer.c.Drives = lossy{world: w, num: num}
	w.heal()
	w.healer.c.Drives = w
	for range 2 {
		w.heal()
	}
	w.whole("k")
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}

// A reader that finishes what a writer left undecided knows nothing of the writer's shards.
func TestReadersSettleNothing(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	var others sync.WaitGroup
	others.Add(2)
	w.with(lossy{world: w, refuse: map[uint16]bool{1: true, 2: true}, others: &others})
	body := make([]byte, 100<<10)
	if _, err := w.store.Put(ctx, "bkt", "k", bytes.NewReader(body), object.PutOptions{Size: int64(len(body))}); !errs.Is(err, errs.Unknown) {
		t.Fatalf("put with two accepts: %v", err)
	}
	w.with(w)
	in, err := w.store.Inspect(ctx, "bkt", "k", false) // resolves
	for try := 0; err != nil && try < 100; try++ {     // a read of the two others finds nothing, which is as right
		in, err = w.store.Inspect(ctx, "bkt", "k", false)
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := erasure.ParseDataID(in.DataID)
	if err != nil {
		t.Fatal(err)
	}
	stranger := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("stranger")}
	d, _ := w.Shards(in.Shards[3].Drive)
	if err := d.DeleteShard(ctx, stranger, id, 0, metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}); err != nil {
		t.Fatal(err)
	}
	// The failed put may have left a shard half written: the first pass aborts that writer, its file
	// goes in the background, and a later one writes the shard.
	for range 4 {
		w.heal()
	}
	w.whole("k")
	for _, d := range w.healer.c.Local() {
		if left, err := d.Unsettled(ctx, nil, 1000); err != nil || len(left) != 0 {
			t.Errorf("drive %d: unsettled %v, %v", d.Num(), left, err)
		}
	}
}

// unpinned loses the later chunks on one drive.
type unpinned struct {
	*world
	num uint16
}

type unpinnedDrive struct{ node.Drive }

func (d unpinnedDrive) Pin(context.Context, *metadata.PinRequest) (*metadata.PinReply, error) {
	return nil, errs.E("test", errs.Timeout, "slow")
}

func (d unpinnedDrive) SealChunk(context.Context, erasure.DataID, uint32) error {
	return errs.E("test", errs.Timeout, "slow")
}

func (u unpinned) Shards(num uint16) (node.Drive, bool) {
	d, ok := u.world.Shards(num)
	if ok && num == u.num {
		d = unpinnedDrive{d}
	}
	return d, ok
}

// A drive that takes the record and chunk 0, and loses a later chunk, gets it from a repair.
func TestLaterChunksThatWereNotPinnedAreRepaired(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	s := object.New(object.Config{Control: w.control, Drives: unpinned{w, 2}, Meta: w.meta, Now: w.clock.now, InlineLimit: 4 << 10,
		ChunkSize: 256 << 10, CacheBytes: -1})
	body := make([]byte, 700<<10)
	if _, err := s.Put(ctx, "bkt", "k", bytes.NewReader(body), object.PutOptions{Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil { // lets go of what was not sealed
		t.Fatal(err)
	}
	for range 2 {
		w.heal()
	}
	w.whole("k")
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}

// An abort that was cut short after the upload said so leaves no parts for ever.
func TestPartsOfAnAbortThatWasCutShortGo(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	var ids []string
	for range 2 {
		up, err := w.store.CreateUpload(ctx, "bkt", "k", object.UploadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.store.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader(make([]byte, 100<<10)), object.PartOptions{Size: 100 << 10}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, up.UploadID)
	}
	a := metadata.Address{Kind: metadata.KindUpload, Bucket: 1, Key: []byte("k")}
	if _, err := hex.Decode(a.Upload[:], []byte(ids[0])); err != nil {
		t.Fatal(err)
	}
	g := w.control.layout.Group(w.control.layout.PartitionOf(1, a.Key))
	_, err := w.meta.Update(ctx, g, a, metadata.Operation{ID: 7, BucketEpoch: 1,
		Apply: func(base *metadata.State, _ []metadata.Version) (*metadata.Change, error) {
			v := *base.Current
			v.Status = metadata.UploadAborted
			return &metadata.Change{Current: &v, NextSeq: base.NextSeq}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	w.heal()
	if _, err := w.healer.Orphans(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []metadata.RegisterKind{metadata.KindUpload, metadata.KindPart} {
		a.Kind, a.Part = kind, uint32(kind-metadata.KindUpload)
		v, err := w.meta.Read(ctx, g, a, metadata.ReadOptions{BucketEpoch: 1})
		if err != nil || v.State == nil || v.State.Current != nil {
			t.Errorf("register of kind %d is still there: %+v, %v", kind, v, err)
		}
	}
	if parts, err := w.store.ListParts(ctx, "bkt", "k", ids[1], 0, 10); err != nil || len(parts.Parts) != 1 {
		t.Errorf("the open upload: %+v, %v", parts, err)
	}
}

func TestBlockedRegistersDoNotHideOthers(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.healer.limits.pending, w.healer.limits.page = 5, 2
	w.put("z", 100<<10)
	w.heal()
	w.down[1].Store(true)
	for i := range 40 {
		w.put(fmt.Sprint("a", i), 100)
	}
	w.settle()
	w.vanish(2, "z")
	w.ask(3, "z")
	for range 40 { // all registers at the front of the lists wait for the drive that is away
		w.pass(time.Minute)
		if s := w.healer.Status(); s.Backlog == 0 {
			t.Fatalf("nothing is to be done while a drive is away: %+v", s)
		}
	}
	id := w.dataOf("z")
	d, _ := w.Shards(2)
	rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 1000)
	if err != nil || !slices.ContainsFunc(rows, func(r disk.ShardRow) bool { return r.ID.Data == id }) {
		t.Errorf("the last register on the lists was never repaired: %v, %+v", err, w.healer.Progress())
	}
	w.down[1].Store(false)
	for range 40 {
		w.heal()
	}
	if n, s := w.repairs(), w.healer.Status(); n != 0 || s.Backlog != 0 {
		t.Errorf("with all drives: %d repair rows are left, %+v", n, s)
	}
	w.whole("z")
}
