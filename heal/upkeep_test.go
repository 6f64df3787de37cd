package heal

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// heads returns how many heads of objects the drives hold.
func (w *world) heads() (n int) {
	w.t.Helper()
	for _, d := range w.healer.c.Local() {
		r, err := d.Rows(context.Background(), &metadata.RowsRequest{Limit: 10000})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, row := range r.Rows {
			if row.Row != nil && row.Address.Kind == metadata.KindObject {
				n++
			}
		}
	}
	return n
}

func (w *world) delete(key string) {
	w.t.Helper()
	if _, err := w.store.Delete(context.Background(), "bkt", key, object.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func TestTombstonesAreDroppedSoon(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	for i := range 20 {
		w.put(fmt.Sprintf("k%02d", i), []int{100, 20 << 10, 700 << 10}[i%3])
	}
	w.put("stays", 100)
	for i := range 20 {
		w.delete(fmt.Sprintf("k%02d", i))
	}
	for range 4 {
		w.heal()
		w.upkeep()
	}
	if n := w.heads(); n != 4 {
		t.Errorf("%d heads are left, not one on each of 4 drives: %+v", n, w.healer.Progress())
	}
	w.whole("stays")
	w.put("k00", 10)
	w.heal()
	w.whole("k00")
}

func TestTombstonesStayWhileADriveIsAway(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100)
	w.heal()
	w.down[1].Store(true)
	w.delete("k")
	for range 4 {
		w.heal()
		w.upkeep()
	}
	if n := w.heads(); n != 3 {
		t.Fatalf("%d heads are on the 3 drives that are here", n)
	}
	w.down[1].Store(false)
	w.healer.Returned(1)
	for range 4 {
		w.heal()
		w.upkeep()
	}
	if n := w.heads(); n != 0 {
		t.Errorf("%d heads are left", n)
	}
	if _, err := w.store.Get(context.Background(), "bkt", "k", object.GetOptions{}); !errs.Is(err, errs.NotFound) {
		t.Errorf("the deleted object: %v", err)
	}
}

func TestTombstonesThatWereForgottenAreFoundOnceADay(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100)
	w.heal()
	w.delete("k")
	w.settle()
	for _, d := range w.healer.c.Local() { // a sweep took the garbage before anybody looked
		list, err := d.Garbage(context.Background(), w.clock.now().Add(time.Hour), 100)
		if err == nil {
			err = d.ClearGarbage(context.Background(), list)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w.heal()
	w.upkeep()
	w.clock.pass(time.Hour)
	w.upkeep()
	if n := w.heads(); n != 4 {
		t.Fatalf("%d heads", n)
	}
	w.clock.pass(24 * time.Hour)
	w.upkeep()    // finds
	for range 3 { // the round that removes the shards, of which no garbage row is left, writes the tombstone anew
		w.heal()
		w.upkeep()
	}
	if n := w.heads(); n != 0 {
		t.Errorf("%d heads are left: %+v", n, w.healer.Progress())
	}
}

func TestDeadManifestThatWasForgottenIsFoundOnceADay(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	up, err := w.store.CreateUpload(ctx, "bkt", "k", object.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	part, err := w.store.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader(make([]byte, 100)), object.PartOptions{Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	list := []object.CompletedPart{{Number: 1, ETag: part.ETag}}
	if _, err := w.store.CompleteUpload(ctx, "bkt", "k", up.UploadID, list, object.CompleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.heal()
	w.put("k", 100)
	w.settle()
	for _, d := range w.healer.c.Local() { // the lists are lost
		garbage, err := d.Garbage(ctx, w.clock.now().Add(time.Hour), 100)
		if err == nil && len(garbage) == 0 {
			t.Errorf("drive %d has no garbage to forget", d.Num())
		}
		if err == nil {
			err = d.ClearGarbage(ctx, garbage)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	left := func() (n int) { // rows of the upload and its part that are no tombstones, and entries of the dead list
		t.Helper()
		for _, d := range w.healer.c.Local() {
			r, err := d.Rows(ctx, &metadata.RowsRequest{Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range r.Rows {
				if row.Address.Kind != metadata.KindObject && row.Row.State.Current != nil {
					n++
				}
				n += len(row.Row.State.Dead)
			}
		}
		return n
	}
	w.heal()
	w.upkeep()
	w.clock.pass(time.Hour)
	w.upkeep()
	if n := left(); n != 3*4 {
		t.Fatalf("%d leftovers before the day is over, not 3 on each of 4 drives", n)
	}
	w.clock.pass(24 * time.Hour)
	w.upkeep() // finds
	w.upkeep() // lists
	for range 4 {
		w.heal()
		w.upkeep()
	}
	if n := left(); n != 0 {
		t.Errorf("%d leftovers: %+v", n, w.healer.Progress())
	}
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left: %+v", n, w.healer.Progress())
	}
	w.whole("k")
}

// A member is away while another is replaced, so the newcomer gets every row, under the ballot with which its epoch
// begins. The others hold them under older ones.
func TestTombstonesAreDroppedAfterASwapThatCopiedEverything(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.healer.c.OrphanEvery = -1 // a round of that would write the tombstone anew
	w.put("k", 100)
	w.put("stays", 100)
	w.heal()
	w.delete("k")
	w.settle()
	w.replace(1, 6)
	w.down[2].Store(true)
	if err := w.healer.moveIn(context.Background(), w.mover(6)); err != nil {
		t.Fatal(err)
	}
	w.down[2].Store(false)
	w.healer.Returned(2)
	w.upkeep()
	w.rebuilt()
	for range 5 {
		w.heal()
		w.clock.pass(time.Hour)
		w.upkeep()
	}
	if n := w.heads(); n != 4 {
		t.Errorf("%d heads are left, not one on each of 4 drives: %+v", n, w.healer.Progress())
	}
	w.whole("stays")
}

// orphan seals what a writer that died before its Accept left behind: chunk 0, and a later one.
func (w *world) orphan(key string) metadata.Data {
	w.t.Helper()
	ctx := context.Background()
	addr := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(key)}
	l := w.control.layout
	g := l.Group(l.PartitionOf(1, addr.Key))
	d := metadata.Data{ID: erasure.NewDataID(), Profile: l.Profile(), Size: 2 << 20, ChunkSize: 1 << 20}
	for i := range d.Chunks() {
		cg, c := chunkGroup(l, g, &d, i), chunkOf(addr, &d, i)
		for j, num := range cg.Drives {
			drive, _ := w.Shards(num)
			size := erasure.ShardFileSize(c.Profile, c.Size)
			f, err := drive.CreateShard(ctx, disk.ShardSpec{ID: c.Shard(j), FileSize: size, Owner: c.Owner})
			if err == nil {
				err = f.Write(ctx, make([]byte, size))
			}
			if err == nil && i == 0 {
				err = drive.SealShard(ctx, addr, &metadata.Seal{Data: d, Index: uint8(j)})
			} else if err == nil {
				err = drive.SealChunk(ctx, d.ID, i)
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}
	}
	return d
}

func (w *world) shardsOf(id erasure.DataID) (n int) {
	w.t.Helper()
	for _, d := range w.healer.c.Local() {
		rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 1000)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range rows {
			if r.ID.Data == id {
				n++
			}
		}
	}
	return n
}

func TestOrphansAreCollectedByADurableSchedule(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 700<<10)
	dead := w.orphan("k")
	w.heal()
	w.upkeep() // the first period begins
	if n := w.shardsOf(dead.ID); n != 8 {
		t.Fatalf("%d shards of the orphan", n)
	}
	for range 25 { // restarts do not put it off
		w.clock.pass(time.Hour)
		w.reborn()
		w.upkeep()
	}
	if n := w.shardsOf(dead.ID); n != 0 {
		t.Errorf("%d shards of the orphan are left, later chunks included", n)
	}
	w.whole("k")
}

func TestOrphansAreSetAsideWhileTooFewDrivesAnswer(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 700<<10)
	dead := w.orphan("k")
	live := w.dataOf("k")
	w.heal()
	w.upkeep()
	w.down[1].Store(true)
	w.down[2].Store(true)
	w.clock.pass(25 * time.Hour)
	_ = w.healer.upkeep(context.Background()) // some of it cannot be done
	if n := w.shardsOf(dead.ID); n != 4 {
		t.Errorf("%d shards of the orphan are on the two drives that are here", n)
	}
	if s := w.healer.Status(); s.Blocked == 0 || s.State != StateDegraded {
		t.Errorf("status: %+v", s)
	}
	w.down[1].Store(false)
	w.down[2].Store(false)
	for range 3 {
		w.clock.pass(25 * time.Hour)
		w.heal()
		w.upkeep()
	}
	if n := w.shardsOf(dead.ID); n != 0 {
		t.Errorf("%d shards of the orphan are left", n)
	}
	if n := w.shardsOf(live); n != 12 {
		t.Errorf("%d shards of the object", n)
	}
	if s := w.healer.Status(); s.Blocked != 0 {
		t.Errorf("status: %+v", s)
	}
}

func TestOrphansThatWereSetAsideAreJudgedWhenTheDrivesAreBack(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 700<<10)
	dead := w.orphan("k")
	w.heal()
	w.upkeep()
	w.down[1].Store(true)
	w.down[2].Store(true)
	w.clock.pass(25 * time.Hour)
	w.heal()
	_ = w.healer.upkeep(context.Background()) // some of it cannot be done
	if s := w.healer.Status(); s.Blocked == 0 {
		t.Fatalf("nothing was set aside: %+v", s)
	}
	w.down[1].Store(false)
	w.down[2].Store(false)
	w.heal() // notices that they are back
	w.upkeep()
	if n := w.shardsOf(dead.ID); n != 0 {
		t.Errorf("%d shards of the orphan are left", n)
	}
	if s := w.healer.Status(); s.Blocked != 0 {
		t.Errorf("%d registers are blocked", s.Blocked)
	}
	w.whole("k")
}

// A drive may be lost with shards that were set aside: once it is replaced, nobody waits for them.
func TestOrphansSetAsideOnADriveThatWasReplacedAreForgotten(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 700<<10)
	dead := w.orphan("k")
	w.heal()
	w.upkeep()
	w.down[1].Store(true)
	w.down[2].Store(true)
	w.clock.pass(25 * time.Hour)
	_ = w.healer.upkeep(context.Background()) // some of it cannot be done
	if len(w.healer.aside) == 0 || w.healer.aside[3] == 0 {
		t.Fatalf("set aside: %v", w.healer.aside)
	}
	w.down[1].Store(false)
	w.down[2].Store(false)
	w.replace(3, 6)
	w.rebuilt()
	w.heal()
	w.upkeep()
	if s := w.healer.Status(); s.Blocked != 0 {
		t.Errorf("set aside: %v, status: %+v", w.healer.aside, s)
	}
	if n := w.shardsOf(dead.ID); n != 0 {
		t.Errorf("%d shards of the orphan are left", n)
	}
	w.whole("k")
}

// Too few answer to say what is chosen. That nobody was found who names a shard is no reason to remove it.
func TestOrphansStayWhileNothingCanBeReadByQuorum(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 700<<10)
	dead := w.orphan("k")
	w.heal()
	w.upkeep()
	for left := uint16(1); left <= 4; left++ {
		for num := uint16(1); num <= 4; num++ {
			w.down[num].Store(num != left)
		}
		w.clock.pass(25 * time.Hour)
		_ = w.healer.upkeep(context.Background())
		if n := w.shardsOf(dead.ID); n != 2 {
			t.Errorf("with drive %d alone, which has 2 shards of the orphan, %d are left", left, n)
		}
		if s := w.healer.Status(); s.State != StateDegraded || s.Blocked == 0 {
			t.Errorf("with drive %d alone: %+v", left, s)
		}
	}
}
