package heal

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// upkeep does the rest that is due.
func (w *world) upkeep() {
	w.t.Helper()
	if err := w.healer.upkeep(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// watched counts what is asked of drives.
type watched struct {
	*world
	mu              sync.Mutex // guards the fields below
	rows, digests   int
	partial         []uint16 // slices of the last request for rows
	wholeDriveScans int
}

type watchedDrive struct {
	node.Drive
	w *watched
}

func (d watchedDrive) Rows(ctx context.Context, m *metadata.RowsRequest) (*metadata.RowsReply, error) {
	d.w.mu.Lock()
	d.w.rows++
	d.w.partial = m.Slices
	if m.Slices == nil {
		d.w.wholeDriveScans++
	}
	d.w.mu.Unlock()
	return d.Drive.Rows(ctx, m)
}

func (d watchedDrive) Digests(ctx context.Context) ([]metadata.Digest, error) {
	d.w.mu.Lock()
	d.w.digests++
	d.w.mu.Unlock()
	return d.Drive.Digests(ctx)
}

func (w *watched) Shards(num uint16) (node.Drive, bool) {
	d, ok := w.world.Shards(num)
	return watchedDrive{d, w}, ok
}

func TestDriveThatReturnsIsComparedByDigests(t *testing.T) {
	w := newWorld(t, object.Enabled)
	w.fill(20)
	w.heal()
	watch := &watched{world: w}
	w.healer.c.Drives = watch
	w.healer.c.OrphanEvery = -1
	w.upkeep()
	if watch.digests == 0 || watch.rows != 0 {
		t.Fatalf("equal drives: %d exchanges of digests, %d scans", watch.digests, watch.rows)
	}
	watch.digests = 0
	w.upkeep()
	if watch.digests != 0 {
		t.Errorf("nobody came back, and %d digests were asked for", watch.digests)
	}
	// Away, it misses writes; the rows that name them are lost, as if by a defect: the digests tell.
	w.down[1].Store(true)
	w.put("key-003", 10)
	w.put("new", 300<<10)
	w.heal()
	ctx := context.Background()
	for _, d := range w.healer.c.Local() {
		list, err := d.Repairs(ctx, nil, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			if err := d.ClearRepair(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.down[1].Store(false)
	w.healer.Returned(1)
	w.upkeep()
	if watch.rows == 0 || watch.wholeDriveScans != 0 || len(watch.partial) > 2 {
		t.Errorf("%d pages of rows were read, %d of them of all slices, of %d slices", watch.rows, watch.wholeDriveScans, len(watch.partial))
	}
	if w.repairs() == 0 {
		t.Fatal("the differences left no repair rows")
	}
	w.heal()
	w.whole("key-003")
	w.whole("new")
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}

// installed returns how many partitions of a drive it serves in their present epoch, and how many it is to.
func (w *world) installed(num uint16) (serves, all int) {
	w.t.Helper()
	l := w.control.Layout()
	partitions := l.PartitionsOf(num)
	d, ok := w.Shards(num)
	if !ok {
		w.t.Fatalf("drive %d is away", num)
	}
	epochs, err := d.Installed(context.Background(), partitions)
	if err != nil {
		w.t.Fatal(err)
	}
	for i, p := range partitions {
		if epochs[i] == l.Group(p).Epoch {
			serves++
		}
	}
	return serves, len(partitions)
}

// A member is away while another drive is replaced: the epochs of its partitions change without it.
func TestMemberThatWasAwayDuringASwapJoins(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fill(14)
	w.heal()
	w.replace(1, 6)
	w.down[2].Store(true)
	if err := w.healer.moveIn(context.Background(), w.mover(6)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"key-003", "key-006", "new"} { // acknowledged by the three that are here
		want[k] = w.put(k, 300<<10)
	}
	w.delete("key-004")
	delete(want, "key-004")
	w.settle()
	w.reborn() // whoever joins it is another process
	w.upkeep()
	w.down[2].Store(false)
	if serves, all := w.installed(2); serves == all {
		t.Fatal("the member that was away serves the new epochs: nobody told it")
	}
	// When it returns, too few of the others are there to tell where the epoch begins. It is not reported as
	// returned once more.
	for _, num := range []uint16{3, 4, 5, 6} {
		w.down[num].Store(true)
	}
	w.healer.Returned(2)
	if err := w.healer.upkeep(context.Background()); err == nil {
		t.Error("the member joined, although nobody could tell it the epoch's floor")
	}
	for _, num := range []uint16{3, 4, 5, 6} {
		w.down[num].Store(false)
	}
	w.upkeep()
	if serves, all := w.installed(2); serves != all {
		t.Fatalf("it serves %d of %d partitions", serves, all)
	}
	w.rebuilt()
	for range 3 {
		w.heal()
		w.upkeep()
	}
	w.equalDigests()
	w.same(want)
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("in the end: %+v", s)
	}
}

// A member hangs while another drive is replaced, and still does when the others are looked at under the new
// layout. It never leaves service: nobody reports it as returned.
func TestMemberThatHungDuringASwapJoinsOnceItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		w := newWorld(t, object.Unversioned)
		want := w.fill(14)
		w.heal()
		w.upkeep()
		w.replace(1, 6)
		w.down[2].Store(true) // for the swap alone
		if err := w.healer.moveIn(ctx, w.mover(6)); err != nil {
			t.Fatal(err)
		}
		w.down[2].Store(false)
		d, _ := w.Shards(2)
		sick := &hungInline{d, make(chan struct{})}
		w.healer.c.Drives = patched{w, map[uint16]node.Drive{2: sick}}
		called, _ := w.healer.drive(2)
		if _, err := called.InlineShards(ctx, nil); !errs.Is(err, errs.Timeout) {
			t.Fatalf("a call to the drive that hangs: %v", err)
		}
		_ = w.healer.upkeep(ctx) // some of it cannot be done
		if serves, all := w.installed(2); serves == all {
			t.Fatal("the member that hung serves the new epochs: nobody told it")
		}
		close(sick.release)
		if err := w.healer.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		w.healer.c.Drives = w
		w.heal()
		w.upkeep()
		if serves, all := w.installed(2); serves != all {
			t.Fatalf("it answers again, and serves %d of %d partitions", serves, all)
		}
		w.rebuilt()
		for range 2 {
			w.heal()
			w.upkeep()
		}
		if n := w.repairs(); n != 0 {
			t.Errorf("%d repair rows are left", n)
		}
		w.equalDigests()
		w.same(want)
	})
}

func TestRegistersWithTheLeastRedundancyComeFirst(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	var keys []string
	for i := range 12 {
		keys = append(keys, fmt.Sprintf("k%02d", i))
		w.put(keys[i], 300<<10)
	}
	w.heal()
	// All rows name one position. In truth one register lacks two shards, and is the last by its key.
	for _, k := range keys {
		w.vanish(1, k)
		d, _ := w.Shards(1)
		g := w.control.layout.Group(w.control.layout.PartitionOf(1, []byte(k)))
		err := d.AddRepair(context.Background(), metadata.RepairRow{Partition: g.Partition, Positions: []uint8{uint8(g.Position(1))},
			Address: metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(k)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	last := keys[len(keys)-1]
	w.vanish(2, last)
	order := &ordered{world: w}
	w.healer.c.Drives = order
	w.healer.c.Concurrency = 1
	w.heal()
	if len(order.keys) != len(keys) || order.keys[0] != last && order.keys[1] != last {
		t.Errorf("the order was %v", order.keys)
	}
	for _, k := range keys {
		w.whole(k)
	}
}

// ordered notes in which order registers get new shards.
type ordered struct {
	*world
	mu   sync.Mutex // guards keys
	keys []string
}

type orderedDrive struct {
	node.Drive
	o *ordered
}

func (d orderedDrive) SealShard(ctx context.Context, a metadata.Address, s *metadata.Seal) error {
	d.o.mu.Lock()
	if k := string(a.Key); !slices.Contains(d.o.keys, k) {
		d.o.keys = append(d.o.keys, k)
	}
	d.o.mu.Unlock()
	return d.Drive.SealShard(ctx, a, s)
}

func (o *ordered) Shards(num uint16) (node.Drive, bool) {
	d, ok := o.world.Shards(num)
	return orderedDrive{d, o}, ok
}

// againDrive comes back once more while it is compared.
type againDrive struct {
	node.Drive
	again func()
}

func (d againDrive) Digests(ctx context.Context) ([]metadata.Digest, error) {
	list, err := d.Drive.Digests(ctx)
	d.again()
	return list, err
}

type againDrives struct {
	*world
	again func(num uint16)
}

func (w againDrives) Shards(num uint16) (node.Drive, bool) {
	d, ok := w.world.Shards(num)
	return againDrive{d, func() { w.again(num) }}, ok
}

func TestADriveThatReturnsDuringItsComparisonIsComparedAgain(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100)
	w.heal()
	w.upkeep()
	compared := 0
	w.healer.c.Drives = againDrives{w, func(num uint16) {
		if num != 1 {
			return
		}
		if compared++; compared == 1 {
			w.healer.Returned(1)
		}
	}}
	w.healer.Returned(1)
	for want := 1; want <= 2; want++ {
		w.upkeep()
		if compared != want {
			t.Fatalf("compared %d times, want %d", compared, want)
		}
		if todo := w.healer.returned.todo[1]; todo != (want == 1) {
			t.Fatalf("after %d comparisons it is still to be compared: %v", want, todo)
		}
	}
	w.upkeep()
	if compared != 2 {
		t.Errorf("compared %d times, and it came back twice", compared)
	}
}
