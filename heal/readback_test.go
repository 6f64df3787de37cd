package heal

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// misread is a drive of which small shards are read with a wrong byte, until they were written anew, or for ever.
type misread struct {
	node.Drive
	ever bool

	mu      sync.Mutex // guards written
	written int        // small shards
}

func (d *misread) InlineShards(ctx context.Context, ids []erasure.DataID) ([][]byte, error) {
	rows, err := d.Drive.InlineShards(ctx, ids)
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range rows {
		if rows[i] != nil && (d.ever || d.written == 0) {
			rows[i] = bytes.Clone(rows[i])
			rows[i][len(rows[i])-1] ^= 1
		}
	}
	return rows, err
}

func (d *misread) SealInline(ctx context.Context, list []disk.InlineSeal) error {
	d.mu.Lock()
	d.written += len(list)
	d.mu.Unlock()
	return d.Drive.SealInline(ctx, list)
}

// taskOf is the register of a key, as work.
func (w *world) taskOf(key string) *task {
	a := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(key)}
	return &task{addr: a, key: string(a.AppendTo(nil))}
}

// smallsOf are the shards of small bodies that belong on a drive.
func (w *world) smallsOf(num uint16, keys ...string) (list []*small) {
	w.t.Helper()
	l := w.control.Layout()
	for _, key := range keys {
		a := w.taskOf(key).addr
		g := l.Group(l.PartitionOf(1, a.Key))
		view, err := w.meta.Read(context.Background(), g, a, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
		if err != nil {
			w.t.Fatal(err)
		}
		d := view.State.Current.Data
		places := g.Places(d.Profile, d.Width, d.ID)
		list = append(list, &small{addr: a, group: g, data: *d, index: slices.Index(places, g.Position(num))})
	}
	return list
}

func TestASmallShardCountsOnceItWasReadBackAndIsRight(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("a", 100)
	w.put("b", 2000)
	w.heal()
	d, _ := w.Shards(2)
	sick := &misread{Drive: d}
	for _, s := range w.fillOf(sick, "a", "b") {
		if s.err != nil || !s.written {
			t.Errorf("%s, which was damaged: written %v, %v", s.addr.Key, s.written, s.err)
		}
	}
	for _, s := range w.fillOf(sick, "a", "b") {
		if s.err != nil || s.written {
			t.Errorf("%s, which is right: written %v, %v", s.addr.Key, s.written, s.err)
		}
	}
	if sick.written != 2 {
		t.Errorf("%d shards were written, want the two that were damaged", sick.written)
	}
	sick.ever = true
	before := w.healer.shards.Load()
	for _, s := range w.fillOf(sick, "a", "b") {
		if !errs.Is(s.err, errs.Corrupt) || s.written {
			t.Errorf("%s, which is never read as it was written: written %v, %v", s.addr.Key, s.written, s.err)
		}
	}
	if n := w.healer.shards.Load() - before; n != 0 {
		t.Errorf("%d shards count as written anew", n)
	}
}

// fillOf fills drive 2 with what it should have of small bodies.
func (w *world) fillOf(d node.Drive, keys ...string) []*small {
	w.t.Helper()
	list := w.smallsOf(2, keys...)
	w.healer.fill(context.Background(), d, list)
	return list
}

// rotting is a drive that takes every shard, and of which those that were written are found damaged.
type rotting struct {
	node.Drive
	wrote atomic.Bool
}

func (d *rotting) SealShard(ctx context.Context, a metadata.Address, s *metadata.Seal) error {
	d.wrote.Store(true)
	return d.Drive.SealShard(ctx, a, s)
}

func (d *rotting) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	if d.wrote.Load() {
		return errs.E("test", errs.Corrupt, "a block fails its checksum")
	}
	return d.Drive.VerifyShard(ctx, c, index, throttle)
}

func TestARepairThatIsNotReadBackAsRightIsNone(t *testing.T) {
	for name, size := range map[string]int{"a small body": 100, "a large body": 200 << 10} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, object.Unversioned)
			w.put("k", size)
			w.heal()
			w.vanish(1, "k")
			d, _ := w.Shards(1)
			sick := &rotting{Drive: d}
			w.healer.c.Drives = patched{w, map[uint16]node.Drive{1: sick}}
			w.ask(2, "k")
			before := w.healer.Progress()
			w.heal()
			if p := w.healer.Progress(); !sick.wrote.Load() || p.Repaired != before.Repaired || p.Shards != before.Shards || w.repairs() == 0 {
				t.Errorf("written %v; %d repair rows; %+v, before %+v", sick.wrote.Load(), w.repairs(), p, before)
			}
			w.healer.c.Drives = w
			w.heal()
			w.whole("k")
			if n := w.repairs(); n != 0 {
				t.Errorf("%d repair rows are left", n)
			}
		})
	}
}

// A write comes while the shards of the state before it are verified. What was verified is not what is there.
func TestWhatWasOverwrittenMeanwhileIsNotVerified(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100)
	w.heal()
	by := w.hooked(2, func() { w.put("k", 200); w.settle() })
	w.healer.c.Drives = patched{w, by}
	if got, err := w.healer.register(t.Context(), w.taskOf("k")); got != failed {
		t.Errorf("a register that was overwritten meanwhile: outcome %d, %v", got, err)
	}
	if got, err := w.healer.register(t.Context(), w.taskOf("k")); got != whole || err != nil {
		t.Errorf("when nobody writes: outcome %d, %v", got, err)
	}
}

// hooked are the drives of a world, through which f is called behind the at-th shard that is verified.
func (w *world) hooked(at int32, f func()) map[uint16]node.Drive {
	by, n := map[uint16]node.Drive{}, new(atomic.Int32)
	for i := uint16(1); i <= 4; i++ {
		d, _ := w.Shards(i)
		by[i] = &hook{Drive: d, n: n, at: at, f: f}
	}
	return by
}

// The body of which too few shards are left is not what the record names any more when that is found.
func TestWhatWasOverwrittenMeanwhileIsNotLost(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 300<<10)
	w.heal()
	for num := range uint16(3) {
		w.vanish(num+1, "k")
	}
	w.ask(4, "k")
	w.healer.c.Drives = patched{w, w.hooked(4, func() { w.put("k", 100); w.settle() })}
	w.heal()
	if s := w.healer.Status(); s.names("k") {
		t.Errorf("what was written anew counts as lost: %q", s.Why)
	}
	w.healer.c.Drives = w
	for range 4 {
		w.heal()
	}
	w.settle() // of the last round, which took the old body off the dead list
	w.whole("k")
}

// A writer died after its accepts, one of which was without its shard: nothing but marks tells of it. The pass that
// takes them away could not look at that drive's shard, and leaves a row instead.
func TestMarksGoOnlyWhenARowTellsWhatCouldNotBeVerified(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.crashPut(t, "k", 3)
	l := w.control.Layout()
	num := l.Group(l.PartitionOf(1, []byte("k"))).Drives[3]
	d, _ := w.Shards(num)
	w.healer.c.Drives = patched{w, map[uint16]node.Drive{num: lossyDrive{Drive: d, unreadable: true}}}
	w.clock.pass(time.Hour)
	w.healer.Trigger()
	if err := w.healer.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if marks, _ := w.marks(); marks == 0 && w.repairs() == 0 {
		t.Error("neither a mark nor a repair row is left")
	}
	w.healer.c.Drives = w
	for range 2 {
		w.heal()
	}
	w.whole("k")
}

// The same of one of which too few shards are left: that it is known as lost does not outlive the process, the row does.
func TestMarksOfWhatIsLostGoOnlyForARow(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.crashPut(t, "k", -1)
	for num := range uint16(3) {
		w.vanish(num+1, "k")
	}
	w.clock.pass(time.Hour)
	w.healer.Trigger()
	if err := w.healer.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.healer.Status(); !s.names("k") || w.repairs() == 0 {
		t.Errorf("%d repair rows for what is lost; %q", w.repairs(), s.Why)
	}
}

// A drive that is away may have shards of a dead body: the body stays on the dead list of its register.
func TestADeadBodyStaysOnTheListWhileADriveIsAway(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 700<<10)
	w.heal()
	old := w.dataOf("k")
	has := func(num uint16) bool {
		rows, err := w.set.Open()[num-1].ShardRows(t.Context(), erasure.DataID{}, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(rows, func(r disk.ShardRow) bool { return r.ID.Data == old })
	}
	w.put("k", 100)
	w.settle()
	w.down[3].Store(true)
	for range 4 {
		w.heal()
	}
	for _, num := range []uint16{1, 2, 4} {
		if has(num) {
			t.Errorf("drive %d, which is here, has shards of the dead body: %+v", num, w.healer.Progress())
		}
	}
	if !has(3) {
		t.Fatal("the drive that is away has let go of its shards: this shows nothing")
	}
	w.down[3].Store(false)
	for range 4 {
		w.heal()
	}
	if has(3) {
		t.Error("the drive that was away keeps shards of the dead body")
	}
	w.settle()
	w.whole("k")
}
