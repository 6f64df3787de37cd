package heal

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// registerOf returns the members of the partition of key, its address, and its body.
func (w *world) registerOf(key string) (placement.Group, metadata.Address, *metadata.Data) {
	w.t.Helper()
	a := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(key)}
	g := w.control.layout.Group(w.control.layout.PartitionOf(1, a.Key))
	view, err := w.meta.Read(context.Background(), g, a, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
	if err != nil {
		w.t.Fatal(err)
	}
	return g, a, view.State.Current.Data
}

// strange stores objects of several chunks until one has a later chunk with a shard on a drive that is no member of
// the object's partition, or on the drive only if that is not 0, and returns that shard.
func (w *world) strange(put func(key string), only uint16) (key string, c erasure.Chunk, shard int, num uint16) {
	w.t.Helper()
	l := w.control.layout
	for i := range 60 {
		key = fmt.Sprint("k", i)
		put(key)
		g, a, d := w.registerOf(key)
		for i := uint32(1); i < d.Chunks(); i++ {
			cg := chunkGroup(l, g, d, i)
			places, err := placesOf(cg, d)
			if err != nil {
				w.t.Fatal(err)
			}
			for j, pos := range places {
				if num = cg.Drives[pos]; g.Position(num) < 0 && (only == 0 || only == num) {
					return key, chunkOf(a, d, i), j, num
				}
			}
		}
	}
	w.t.Fatal("no object has a later chunk on another drive than its register")
	return "", c, 0, 0
}

// Of a write whose writer died there are marks, and no row says that a later chunk lacks a shard on a drive that is away.
// Whoever finds out writes one, and it stays.
func TestWhatALaterChunkLacksOnADriveThatIsAwayIsNotForgotten(t *testing.T) {
	ctx := context.Background()
	w := newWorldOf(t, object.Unversioned, 8)
	_, c, shard, num := w.strange(func(key string) {
		w.with(lossy{world: w}) // nothing is decided
		w.put(key, 3<<20)
		w.with(w)
	}, 0)
	d, _ := w.Shards(num)
	last := metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}
	if err := d.DeleteShard(ctx, metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("stranger")}, c.Data, c.Index, last); err != nil {
		t.Fatal(err)
	}
	w.down[num].Store(true)
	w.upkeep()
	for range 3 {
		w.heal()
	}
	if n := w.repairs(); n == 0 {
		t.Error("no row tells that a shard may be missing")
	}
	w.down[num].Store(false)
	w.upkeep()
	for range 3 {
		w.heal()
		w.upkeep()
	}
	if err := d.VerifyShard(ctx, c, shard, nil); err != nil {
		t.Errorf("drive %d is back, and its shard is not repaired: %v", num, err)
	}
}

// What a drive that is back lacks of later chunks counts, though passes without it found everything else to be well.
func TestWhatADriveThatIsBackLacksOfLaterChunksIsOutstanding(t *testing.T) {
	const num = 8
	w := newWorldOf(t, object.Unversioned, 8)
	w.heal()
	w.down[num].Store(true)
	w.upkeep()
	w.strange(func(key string) {
		w.put(key, 3<<20)
		w.settle()
	}, num)
	outstanding := func(when string) {
		t.Helper()
		got := w.healer.Outstanding(context.Background())
		for _, x := range got.Wants {
			// Once it is here it is not known whose shards count for which partition.
			if x.Drives != nil && (!slices.Contains(x.Drives, num) || !w.down[num].Load()) {
				t.Errorf("%s: only drives %v are said to lack something, and drive %d does", when, x.Drives, num)
			}
		}
		if len(got.Wants) == 0 {
			t.Errorf("%s nothing is outstanding", when)
		}
	}
	outstanding("at first")
	w.pass(10 * time.Minute)
	w.pass(10 * time.Minute)
	outstanding("after passes without the drive")
	w.down[num].Store(false)
	outstanding("when it is back")
	w.down[1].Store(true)
	outstanding("when it is back, and another one is away")
	w.down[1].Store(false)
	w.healer.Returned(num)
	w.upkeep()
	outstanding("when it was compared")
}

// comesBack has one drive away for so many more looks.
type comesBack struct {
	*world
	num  uint16
	left *int
}

func (b comesBack) Shards(num uint16) (node.Drive, bool) {
	if num == b.num && *b.left > 0 {
		*b.left--
		return nil, false
	}
	return b.world.Shards(num)
}

// A drive that comes back while a register is repaired keeps its place on the list: its shard was not looked at.
func TestADriveThatComesBackDuringARepairIsRepaired(t *testing.T) {
	ctx := context.Background()
	for looks := range 6 {
		t.Run(fmt.Sprint(looks), func(t *testing.T) {
			w := newWorld(t, object.Unversioned)
			w.heal()
			w.down[2].Store(true)
			w.put("k", 100<<10)
			w.settle()
			w.down[2].Store(false)
			w.healer.c.Drives = comesBack{w, 2, &looks}
			w.clock.pass(time.Hour)
			w.healer.newPass()
			tasks, err := w.healer.gather(ctx)
			if err != nil || len(tasks) != 1 {
				t.Fatalf("%d registers are on the lists, want 1: %v", len(tasks), err)
			}
			if _, err := w.healer.register(ctx, tasks[0]); err != nil {
				t.Log(err)
			}
			w.healer.c.Drives = w
			w.heal()
			w.heal()
			w.whole("k")
		})
	}
}

// Of a write whose writer died only marks tell that a drive lacks its shard, and the drive took the row. As long as the drive
// cannot be looked at, whatever row the register has besides for another one, that is not forgotten.
func TestWhatOnlyAMarkTellsOfADriveThatIsNotLookedAtIsNotForgotten(t *testing.T) {
	const num = 2
	ctx := context.Background()
	for _, dead := range []bool{false, true} { // something that waits for its grace keeps the rows
		for _, looks := range []int{0, 1, 2, 3, 1000} { // for which the drive does not answer
			t.Run(fmt.Sprint(dead, looks), func(t *testing.T) {
				w := newWorld(t, object.Unversioned)
				if dead {
					w.put("k", 5<<20)
					w.settle()
				}
				w.heal()
				w.with(lossy{world: w}) // nothing is decided
				w.put("k", 100<<10)
				w.with(w)
				g, a, data := w.registerOf("k")
				d, _ := w.Shards(num)
				last := metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}
				if err := d.DeleteShard(ctx, metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("stranger")}, data.ID, 0, last); err != nil {
					t.Fatal(err)
				}
				other := uint8(0)
				if g.Drives[0] == num {
					other = 1
				}
				for _, d := range w.healer.local() {
					if d.Num() == num {
						continue
					}
					if err := d.AddRepair(ctx, metadata.RepairRow{Address: a, Partition: g.Partition, Positions: []uint8{other}}); err != nil {
						t.Fatal(err)
					}
				}
				left := looks
				w.healer.c.Drives = comesBack{w, num, &left}
				for range 3 {
					w.pass(time.Hour)
					w.settle()
				}
				w.healer.c.Drives = w
				for range 3 {
					w.pass(time.Hour)
				}
				w.whole("k")
			})
		}
	}
}
