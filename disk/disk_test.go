package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
	"github.com/ostraka/ostraka/metadata"
)

var bg = context.Background()

// testOptions keep a drive small and quiet: no garbage sweeper, so that tests own all removal.
func testOptions() Options {
	return Options{MemTableSize: 256 << 10, SweepEvery: -1, Epoch: func(uint32) (uint64, bool) { return 1, true }}
}

func testIdentity(num uint16) Identity {
	return Identity{Cluster: ID{1, 2, 3}, Drive: ID{9, byte(num)}, Num: num, Created: time.Unix(1700000000, 0).UTC(),
		Founders: []Founder{{Num: num, Drive: ID{9, byte(num)}, Path: "d"}}}
}

// makeDrive forms a drive at path "d" of fs and leaves it open.
func makeDrive(t testing.TB, fs vfs.FS, o Options) *Drive {
	t.Helper()
	mkdir(t, fs, "d")
	if err := Format(fs, "d", testIdentity(3)); err != nil {
		t.Fatal(err)
	}
	d := openDrive(t, fs, o)
	if err := d.MarkFormed(bg); err != nil {
		t.Fatal(err)
	}
	return d
}

// mkdir makes a directory of the root, durably.
func mkdir(t testing.TB, fs vfs.FS, dir string) {
	t.Helper()
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := fs.OpenDir("")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(root.Sync(), root.Close()); err != nil {
		t.Fatal(err)
	}
}

func openDrive(t testing.TB, fs vfs.FS, o Options) *Drive {
	t.Helper()
	d, err := Open(bg, fs, "d", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(bg); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

func mustClose(t testing.TB, d *Drive) {
	t.Helper()
	if err := d.Close(bg); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// testClock goes on only when it is told to. Operations look at it after they were answered, too.
type testClock struct{ ns atomic.Int64 }

func newClock() *testClock {
	c := new(testClock)
	c.ns.Store(1e18)
	return c
}

func (c *testClock) Now() time.Time      { return time.Unix(0, c.ns.Load()) }
func (c *testClock) Add(d time.Duration) { c.ns.Add(int64(d)) }

var (
	one      = erasure.Profile{Data: 1}
	testAddr = metadata.Address{Kind: metadata.KindObject, Bucket: 7, Key: []byte("a/key")}
)

// body is some data with a name.
type body struct {
	data  metadata.Data
	bytes []byte
}

func newBody(rng *rand.Rand, size int, inline bool) body {
	b := body{bytes: make([]byte, size)}
	for i := range b.bytes {
		b.bytes[i] = byte(rng.Uint32())
	}
	for i := range b.data.ID {
		b.data.ID[i] = byte(rng.Uint32())
	}
	b.data.Profile, b.data.Size = one, int64(size)
	if !inline {
		b.data.ChunkSize = erasure.ChunkSize
	}
	return b
}

func (b body) chunk() erasure.Chunk {
	return erasure.Chunk{Data: b.data.ID, Profile: one, Size: b.data.Size, Owner: erasure.Owner{Bucket: 7, Key: testAddr.Key}}
}

func (b body) spec() ShardSpec {
	return ShardSpec{ID: b.chunk().Shard(0), FileSize: erasure.ShardFileSize(one, b.data.Size), Owner: b.chunk().Owner}
}

// stream writes the shard file of b to d, unsealed.
func (b body) stream(d *Drive) (ShardWriter, error) {
	w, err := d.CreateShard(bg, b.spec())
	if err != nil {
		return nil, err
	}
	if _, err := erasure.NewEncoder(erasure.EncoderOptions{}).Encode(bg, b.chunk(), bytes.NewReader(b.bytes), 1, []erasure.Sink{w}); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

func (b body) seal(d *Drive) error {
	s := &metadata.Seal{Data: b.data}
	if b.data.Inline() {
		rows, err := erasure.EncodeInline(one, b.data.ID, b.bytes)
		if err != nil {
			return err
		}
		s.Inline = rows[0]
	}
	return d.SealShard(bg, testAddr, s)
}

// put stores b on d, durably.
func (b body) put(d *Drive) error {
	if !b.data.Inline() {
		if _, err := b.stream(d); err != nil {
			return err
		}
	}
	return b.seal(d)
}

// check reports what is wrong with b on d; nil when it is there and right.
func (b body) check(d *Drive) error {
	if err := d.VerifyShard(bg, b.chunk(), 0, nil); err != nil {
		return err
	}
	if !b.data.Inline() {
		src, err := d.OpenShard(bg, b.chunk().Shard(0))
		if err != nil {
			return err
		}
		defer src.Close()
		return b.checkSource(src)
	}
	row, err := d.InlineShard(bg, b.data.ID)
	if err != nil {
		return err
	}
	got, _, err := erasure.DecodeInline(one, b.data.ID, b.data.Size, [][]byte{row})
	if err == nil && !bytes.Equal(got, b.bytes) {
		err = errors.New("other bytes came back")
	}
	return err
}

func (b body) checkSource(src erasure.Source) error {
	got := make([]byte, len(b.bytes))
	if n, err := src.ReadAt(bg, got, 4096); n < len(got) {
		return err
	}
	if !bytes.Equal(got, b.bytes) {
		return errors.New("other bytes came back")
	}
	return nil
}

func wantKind(t testing.TB, err error, k errs.Kind) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("got error %v (%v), want kind %v", err, errs.KindOf(err), k)
	}
}

func newRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// both runs f with a body that is a file and one that is a row.
func both(t *testing.T, f func(t *testing.T, d *Drive, b body)) {
	for _, inline := range []bool{false, true} {
		name := "file"
		if inline {
			name = "inline"
		}
		t.Run(name, func(t *testing.T) {
			size := 700 << 10
			if inline {
				size = 5000
			}
			f(t, makeDrive(t, vfs.NewMem(), testOptions()), newBody(newRand(t), size, inline))
		})
	}
}

func TestShardLife(t *testing.T) {
	both(t, func(t *testing.T, d *Drive, b body) {
		id := b.chunk().Shard(0)
		_, err := d.StatShard(bg, id)
		wantKind(t, err, errs.NotFound)
		if err := b.put(d); err != nil {
			t.Fatal(err)
		}
		if err := b.seal(d); err != nil {
			t.Fatalf("sealing again: %v", err)
		}
		if err := b.check(d); err != nil {
			t.Fatal(err)
		}
		st, err := d.StatShard(bg, id)
		if err != nil || st.Inline != b.data.Inline() || !bytes.Equal(st.Row.Address.Key, testAddr.Key) || st.Row.Address.Kind != metadata.KindObject {
			t.Fatalf("stat: %+v, %v", st, err)
		}
		rows, err := d.ShardRows(bg, erasure.DataID{}, 0, 10)
		if err != nil || len(rows) != 1 || rows[0].ID != id {
			t.Fatalf("rows: %+v, %v", rows, err)
		}
		if rows, err = d.ShardRows(bg, id.Data, id.Chunk, 10); err != nil || len(rows) != 0 {
			t.Fatalf("rows behind the last: %+v, %v", rows, err)
		}
		_, err = d.CreateShard(bg, b.spec())
		wantKind(t, err, errs.Exists)

		var src erasure.Source
		if !b.data.Inline() {
			if src, err = d.OpenShard(bg, id); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second finds nothing, which is fine
			if err := d.DeleteShard(bg, testAddr, id.Data, 0, metadata.Ballot{Counter: 1}); err != nil {
				t.Fatal(err)
			}
		}
		_, err = d.StatShard(bg, id)
		wantKind(t, err, errs.NotFound)
		if src != nil {
			if err := b.checkSource(src); err != nil {
				t.Fatalf("reading behind the deletion: %v", err)
			}
			src.Close()
			_, err = d.OpenShard(bg, id)
			wantKind(t, err, errs.NotFound)
			if names, _ := d.fs.List(d.shardDir(id.Data)); len(names) != 0 {
				t.Fatalf("files left: %v", names)
			}
		}
	})
}

func TestShardsSurviveReopening(t *testing.T) {
	fs := vfs.NewMem()
	rng := newRand(t)
	d := makeDrive(t, fs, testOptions())
	file, row, unsealed := newBody(rng, 300<<10, false), newBody(rng, 9000, true), newBody(rng, 300<<10, false)
	for _, b := range []body{file, row} {
		if err := b.put(d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unsealed.stream(d); err != nil {
		t.Fatal(err)
	}
	mustClose(t, d)
	d = openDrive(t, fs, testOptions())
	for _, b := range []body{file, row} {
		if err := b.check(d); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, unsealed.seal(d), errs.NotFound)
	// The file of an earlier run gives way, here or to the sweep.
	if err := unsealed.put(d); err != nil {
		t.Fatal(err)
	}
	if err := unsealed.check(d); err != nil {
		t.Fatal(err)
	}
}

func TestAnUnfinishedShardCannotBeSealed(t *testing.T) {
	d := makeDrive(t, vfs.NewMem(), testOptions())
	b := newBody(newRand(t), 300<<10, false)
	w, err := d.CreateShard(bg, b.spec())
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.CreateShard(bg, b.spec())
	wantKind(t, err, errs.Exists)
	if err := w.Write(bg, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	wantKind(t, b.seal(d), errs.NotFound)
	wantKind(t, w.Write(bg, make([]byte, b.spec().FileSize)), errs.Invalid)
	w.Abort()
	w.Abort()
	wantKind(t, w.Write(bg, make([]byte, 4096)), errs.Canceled)
	waitFor(t, func() bool { return d.Info().Writing == 0 })
	if names, _ := d.fs.List(d.shardDir(b.data.ID)); len(names) != 0 {
		t.Fatalf("files left: %v", names)
	}
	if err := b.put(d); err != nil {
		t.Fatalf("a new attempt after Abort: %v", err)
	}
	w.Abort() // of a writer that is no longer the shard's
	if err := b.check(d); err != nil {
		t.Fatal(err)
	}
}

// waitFor yields until cond holds: what it waits for is done by a goroutine that does not block.
func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !cond() {
		select {
		case <-deadline:
			t.Fatal("waited in vain")
		case <-time.After(time.Millisecond):
		}
	}
}

// A writer is given up a day after somebody touched it last, and no other is.
func TestOnlyWritersThatNobodyTouchedForADayAreGivenUp(t *testing.T) {
	clock, o := newClock(), testOptions()
	o.Now = clock.Now
	d := makeDrive(t, vfs.NewMem(), o)
	rng := newRand(t)
	begin := func() (body, ShardWriter) {
		b := newBody(rng, 300<<10, false)
		w, err := d.CreateShard(bg, b.spec())
		if err != nil {
			t.Fatal(err)
		}
		return b, w
	}
	left, forgotten := begin()
	_, slow := begin()
	clock.Add(writerIdle - time.Minute)
	if err := slow.Write(bg, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	b, fresh := begin()
	clock.Add(2 * time.Minute)
	d.dropIdleWriters()
	wantKind(t, forgotten.Write(bg, make([]byte, 4096)), errs.Canceled)
	waitFor(t, func() bool { return d.Info().Writing == 2 })
	if names, _ := d.fs.List(d.shardDir(left.data.ID)); len(names) != 0 {
		t.Errorf("files of the one that was given up are left: %v", names)
	}
	if err := slow.Write(bg, make([]byte, 4096)); err != nil {
		t.Errorf("one that was touched two minutes ago: %v", err)
	}
	if _, err := erasure.NewEncoder(erasure.EncoderOptions{}).Encode(bg, b.chunk(), bytes.NewReader(b.bytes), 1, []erasure.Sink{fresh}); err != nil {
		t.Fatalf("one that was begun two minutes ago: %v", err)
	}
	if err := errors.Join(b.seal(d), b.check(d)); err != nil {
		t.Error(err)
	}
	slow.Abort()
}

// Whoever only asks whether a shard is there hears of a file that was cut, or has grown.
func TestAShardFileOfAnotherLengthIsDamaged(t *testing.T) {
	fs := vfs.NewMem()
	d := makeDrive(t, fs, testOptions())
	b := newBody(newRand(t), 300<<10, false)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	id := b.chunk().Shard(0)
	if _, err := d.StatShard(bg, id); err != nil {
		t.Fatal(err)
	}
	whole, err := vfsx.ReadFile(fs, d.shardPath(id), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		content []byte
	}{{"empty", nil}, {"without its last byte", whole[:len(whole)-1]}, {"with a byte more", append(slices.Clone(whole), 0)}} {
		writeFile(t, fs, d.shardPath(id), c.content)
		if _, err := d.StatShard(bg, id); !errs.Is(err, errs.Corrupt) {
			t.Errorf("a file %s: %v, want corrupt", c.name, err)
		}
	}
	writeFile(t, fs, d.shardPath(id), whole)
	if _, err := d.StatShard(bg, id); err != nil {
		t.Errorf("as it was: %v", err)
	}
}

func TestAbortAfterSealKeepsTheShard(t *testing.T) {
	d := makeDrive(t, vfs.NewMem(), testOptions())
	b := newBody(newRand(t), 10<<10, false)
	w, err := b.stream(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.seal(d); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := b.check(d); err != nil {
		t.Fatal(err)
	}
}

func TestReplaceRepairsADamagedShard(t *testing.T) {
	fs := vfs.NewMem()
	d := makeDrive(t, fs, testOptions())
	b := newBody(newRand(t), 300<<10, false)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	flip(t, fs, d.shardPath(b.chunk().Shard(0)), 5000)
	wantKind(t, b.check(d), errs.Corrupt)
	spec := b.spec()
	spec.Replace = true
	w, err := d.CreateShard(bg, spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := erasure.NewEncoder(erasure.EncoderOptions{}).Encode(bg, b.chunk(), bytes.NewReader(b.bytes), 1, []erasure.Sink{w}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.seal(d), b.check(d)); err != nil {
		t.Fatal(err)
	}
	if err := fs.Remove(d.shardPath(b.chunk().Shard(0))); err != nil {
		t.Fatal(err)
	}
	_, err = d.StatShard(bg, b.chunk().Shard(0))
	wantKind(t, err, errs.Corrupt)
}

// flip inverts one byte of a file in memory.
func flip(t testing.TB, fs *vfs.MemFS, name string, at int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatalf("%s at %d: %v", name, at, err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedInlineShardIsRefused(t *testing.T) {
	d := makeDrive(t, vfs.NewMem(), testOptions())
	b := newBody(newRand(t), 900, true)
	rows, err := erasure.EncodeInline(one, b.data.ID, b.bytes)
	if err != nil {
		t.Fatal(err)
	}
	rows[0][len(rows[0])-1] ^= 1
	wantKind(t, d.SealShard(bg, testAddr, &metadata.Seal{Data: b.data, Inline: rows[0]}), errs.Corrupt)
	_, err = d.InlineShard(bg, b.data.ID)
	wantKind(t, err, errs.NotFound)
}

func TestSweepRemovesOnlyWhatWasNeverSealed(t *testing.T) {
	fs := vfs.NewMem()
	rng := newRand(t)
	d := makeDrive(t, fs, testOptions())
	var sealed, unsealed []body
	for i := range 40 {
		b := newBody(rng, 1+rng.IntN(20<<10), false)
		var err error
		if i%2 == 0 {
			sealed = append(sealed, b)
			err = b.put(d)
		} else {
			unsealed = append(unsealed, b)
			_, err = b.stream(d)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stray := fs.PathJoin(d.shardDir(sealed[0].data.ID), "notes.txt")
	f, err := fs.Create(stray, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	mustClose(t, d)

	d = openDrive(t, fs, testOptions())
	live := newBody(rng, 9000, false) // begun while the sweep runs
	if _, err := live.stream(d); err != nil {
		t.Fatal(err)
	}
	for i := range 256 { // what the sweep in the background does, without its pauses
		dir := d.fs.PathJoin(d.path, shardsDir, shardName(erasure.ShardID{Data: erasure.DataID{byte(i)}})[:2])
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if id, ok := parseShardName(name); ok {
				d.sweepFile(id)
			}
		}
	}
	if err := live.seal(d); err != nil {
		t.Fatalf("a shard begun after Open was swept: %v", err)
	}
	for _, b := range append(sealed, live) {
		if err := b.check(d); err != nil {
			t.Errorf("a sealed shard: %v", err)
		}
	}
	for _, b := range unsealed {
		if _, err := fs.Stat(d.shardPath(b.chunk().Shard(0))); err == nil {
			t.Errorf("an unsealed shard is still there")
		}
	}
	if _, err := fs.Stat(stray); err != nil {
		t.Errorf("a file that is no shard was removed: %v", err)
	}
	if n := d.Info().Swept; n > uint64(len(unsealed)) || n == 0 {
		t.Errorf("swept %d files, want up to %d", n, len(unsealed))
	}
}

func TestBelowTheWatermarkOnlyNewShardsAreRefused(t *testing.T) {
	fs := vfs.NewMem()
	clock := newClock()
	o := testOptions()
	o.Now = clock.Now
	o.ReserveBytes = 1 << 20
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 2 << 20, TotalBytes: 1 << 30, UsedBytes: 1<<30 - 2<<20})
	d := makeDrive(t, fs, o)
	rng := newRand(t)
	stored, begun := newBody(rng, 9000, false), newBody(rng, 9000, false)
	if err := stored.put(d); err != nil {
		t.Fatal(err)
	}
	if _, err := begun.stream(d); err != nil {
		t.Fatal(err)
	}
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1<<20 - 1, TotalBytes: 1 << 30})
	clock.Add(2 * time.Second)
	_, err := d.CreateShard(bg, newBody(rng, 9000, false).spec())
	wantKind(t, err, errs.Full)
	wantKind(t, newBody(rng, 900, true).put(d), errs.Full)
	if s := d.Info().State; s != StateFull {
		t.Errorf("state %q, want full", s)
	}
	if err := begun.seal(d); err != nil {
		t.Errorf("sealing what was begun: %v", err)
	}
	if err := stored.check(d); err != nil {
		t.Errorf("reading: %v", err)
	}
	if err := d.DeleteShard(bg, testAddr, stored.data.ID, 0, metadata.Ballot{Counter: 1}); err != nil {
		t.Errorf("deleting: %v", err)
	}
	if _, err := d.Prepare(bg, &metadata.PrepareRequest{Header: metadata.Header{Epoch: 1}, Address: testAddr, Ballot: metadata.Ballot{Counter: 5}}); err != nil {
		t.Errorf("a promise: %v", err)
	}
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 21, TotalBytes: 1 << 30})
	clock.Add(2 * time.Second)
	if err := newBody(rng, 900, true).put(d); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestControlKeepsToItsNamespace(t *testing.T) {
	d := makeDrive(t, vfs.NewMem(), testOptions())
	kv := d.Control()
	var b metadata.Batch
	b.Set([]byte("c1"), []byte("v"))
	b.Set([]byte("c2"), []byte("w"))
	if err := kv.Apply(&b, true); err != nil {
		t.Fatal(err)
	}
	if v, err := kv.Get([]byte("c1")); err != nil || string(v) != "v" {
		t.Fatalf("got %q, %v", v, err)
	}
	if v, err := kv.Get([]byte("c9")); err != nil || v != nil {
		t.Fatalf("absent: got %q, %v", v, err)
	}
	it, err := kv.NewIter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for ok := it.First(); ok; ok = it.Next() {
		keys = append(keys, string(it.Key())+"="+string(it.Value()))
	}
	if err := it.Close(); err != nil || !slices.Equal(keys, []string{"c1=v", "c2=w"}) {
		t.Fatalf("got %v, %v", keys, err)
	}
	var bad metadata.Batch
	bad.Set([]byte("c3"), []byte("x"))
	bad.Delete([]byte("s"))
	wantKind(t, kv.Apply(&bad, true), errs.Invalid)
	var wide metadata.Batch
	wide.DeleteRange([]byte("c"), []byte("z"))
	wantKind(t, kv.Apply(&wide, true), errs.Invalid)
	_, err = kv.Get([]byte("a"))
	wantKind(t, err, errs.Invalid)
	_, err = kv.NewIter([]byte("a"), nil)
	wantKind(t, err, errs.Invalid)
	var all metadata.Batch
	all.DeleteRange([]byte("c"), []byte("d"))
	if err := kv.Apply(&all, true); err != nil {
		t.Fatal(err)
	}
	if v, err := kv.Get([]byte("c1")); err != nil || v != nil {
		t.Fatalf("after the range was deleted: %q, %v", v, err)
	}
}

func TestGarbageGoesAfterItsGrace(t *testing.T) {
	clock := newClock()
	o := testOptions()
	o.Now = clock.Now
	d := makeDrive(t, vfs.NewMem(), o)
	rng := newRand(t)
	first, second := newBody(rng, 3000, true), newBody(rng, 40<<10, false)
	counter := uint64(clock.Now().UnixMicro())
	var prev *metadata.State
	for i, b := range []body{first, second} {
		if err := b.put(d); err != nil {
			t.Fatal(err)
		}
		bal := metadata.Ballot{Counter: counter + uint64(i), Proposer: 1}
		st := metadata.State{ID: bal, Current: &metadata.Version{Kind: metadata.VersionObject, Seq: uint64(i + 1), Size: b.data.Size, Data: &b.data}, NextSeq: uint64(i + 2)}
		if prev != nil {
			st.Prev, st.Index, st.Dead = prev.ID, 1, []metadata.DeadData{{Data: first.data}}
		}
		prev = &st
		h := metadata.Header{Epoch: 1}
		if r, err := d.Prepare(bg, &metadata.PrepareRequest{Header: h, Address: testAddr, Ballot: bal}); err != nil || !r.Promised {
			t.Fatalf("prepare: %+v, %v", r, err)
		}
		if r, err := d.Accept(bg, &metadata.AcceptRequest{Header: h, Address: testAddr, Ballot: bal, State: st}); err != nil || !r.Accepted {
			t.Fatalf("accept: %+v, %v", r, err)
		}
		if err := d.Decide(bg, []metadata.Decision{{Header: h, Address: testAddr, Ballot: bal, Settled: true}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.collect(bg); err != nil {
		t.Fatal(err)
	}
	if err := first.check(d); err != nil {
		t.Fatalf("collected before its grace: %v", err)
	}
	clock.Add(61 * time.Second)
	if err := d.collect(bg); err != nil {
		t.Fatal(err)
	}
	wantKind(t, first.check(d), errs.NotFound)
	if err := second.check(d); err != nil {
		t.Fatalf("live data: %v", err)
	}
	wantKind(t, d.DeleteShard(bg, testAddr, second.data.ID, 0, metadata.Ballot{Counter: counter + 100}), errs.Conflict)
	if rows, err := d.Garbage(bg, clock.Now().Add(time.Hour), 10); err != nil || len(rows) != 0 {
		t.Fatalf("garbage left: %+v, %v", rows, err)
	}
}

// What an upload names is not the drive's to remove, and a clock that jumps ahead makes nobody forget it.
func TestDeadManifestIsLeftToRepair(t *testing.T) {
	for _, jump := range []time.Duration{61 * time.Second, 24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			clock := newClock()
			o := testOptions()
			o.Now = clock.Now
			d := makeDrive(t, vfs.NewMem(), o)
			manifest := newBody(newRand(t), 300, true)
			if err := manifest.put(d); err != nil {
				t.Fatal(err)
			}
			first := metadata.Ballot{Counter: uint64(clock.Now().UnixMicro()), Proposer: 1}
			second := metadata.Ballot{Counter: first.Counter + 1, Proposer: 1}
			upload := metadata.UploadID{7}
			states := []metadata.State{
				{ID: first, NextSeq: 2, Current: &metadata.Version{Kind: metadata.VersionObject, Seq: 1, Upload: upload, Manifest: &manifest.data}},
				{ID: second, Prev: first, Index: 1, NextSeq: 2, Dead: []metadata.DeadData{{Data: manifest.data, Manifest: true, Upload: upload}}},
			}
			for _, st := range states {
				h := metadata.Header{Epoch: 1}
				if r, err := d.Prepare(bg, &metadata.PrepareRequest{Header: h, Address: testAddr, Ballot: st.ID}); err != nil || !r.Promised {
					t.Fatalf("prepare: %+v, %v", r, err)
				}
				if r, err := d.Accept(bg, &metadata.AcceptRequest{Header: h, Address: testAddr, Ballot: st.ID, State: st}); err != nil || !r.Accepted {
					t.Fatalf("accept: %+v, %v", r, err)
				}
				if err := d.Decide(bg, []metadata.Decision{{Header: h, Address: testAddr, Ballot: st.ID, Settled: true}}); err != nil {
					t.Fatal(err)
				}
			}
			clock.Add(jump)
			if err := d.collect(bg); err != nil {
				t.Fatal(err)
			}
			if err := manifest.check(d); err != nil {
				t.Errorf("the manifest, which the upload still names: %v", err)
			}
			if rows, err := d.Garbage(bg, clock.Now().Add(time.Hour), 10); err != nil || len(rows) != 0 {
				t.Errorf("garbage left: %+v, %v", rows, err)
			}
			if list, err := d.Repairs(bg, nil, 10); err != nil || len(list) != 1 || string(list[0].Address.Key) != string(testAddr.Key) {
				t.Errorf("repair rows: %+v, %v", list, err)
			}
		})
	}
}

func TestOnDiskOfTheOperatingSystem(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		t.Run(map[bool]string{false: "direct", true: "buffered"}[buffered], func(t *testing.T) {
			path := t.TempDir()
			if err := Format(vfs.Default, path, testIdentity(1)); err != nil {
				t.Fatal(err)
			}
			o := testOptions()
			o.Buffered = buffered
			d, err := Open(bg, vfs.Default, path, o)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("direct I/O: %v", d.Info().Direct)
			if buffered && d.Info().Direct {
				t.Error("direct I/O although it is switched off")
			}
			if err := d.MarkFormed(bg); err != nil {
				t.Fatal(err)
			}
			rng := newRand(t)
			bodies := []body{newBody(rng, 3<<20+17, false), newBody(rng, 1, false), newBody(rng, 70000, true)}
			for _, b := range bodies {
				if err := errors.Join(b.put(d), b.check(d)); err != nil {
					t.Fatal(err)
				}
			}
			_, err = Open(bg, vfs.Default, path, testOptions())
			if StatusOf(err) != InUse || !strings.Contains(err.Error(), path) {
				t.Fatalf("opened twice: %v", err)
			}
			mustClose(t, d)
			if d, err = Open(bg, vfs.Default, path, o); err != nil {
				t.Fatal(err)
			}
			defer mustClose(t, d)
			for _, b := range bodies {
				if err := b.check(d); err != nil {
					t.Fatal(err)
				}
			}
			src, err := d.OpenShard(bg, bodies[0].chunk().Shard(0))
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			got := make([]byte, 5001) // neither offset nor length nor memory is aligned
			if _, err := src.ReadAt(bg, got[1:], 4096+777); err != nil || !bytes.Equal(got[1:], bodies[0].bytes[777:777+5000]) {
				t.Fatalf("an unaligned read: %v", err)
			}
			if _, err := src.ReadAt(bg, got, bodies[0].spec().FileSize); err != io.EOF {
				t.Fatalf("a read at the end: %v", err)
			}
		})
	}
}
