package heal

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// registers counts those that are outstanding, and of them those that name only drive.
func (o *Outstanding) registers(drive uint16) (all, only int) {
	for _, w := range o.Wants {
		all += w.Registers
		if slices.Equal(w.Drives, []uint16{drive}) {
			only += w.Registers
		}
	}
	return all, only
}

// What a drive missed is outstanding until it is repaired, though healing is paused and the drive is back.
func TestADriveThatMissedWritesIsOutstandingUntilItIsRepaired(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, object.Unversioned)
	if got := w.healer.Outstanding(ctx); len(got.Behind) != 4 {
		t.Errorf("before anything was compared, drives %v are behind; want all", got.Behind)
	}
	w.heal()
	w.upkeep()
	if got := w.healer.Outstanding(ctx); len(got.Behind)+len(got.Silent)+len(got.Wants) != 0 || got.More {
		t.Errorf("over equal drives: %+v", got)
	}
	w.healer.Configure(Settings{Paused: true})
	w.down[1].Store(true)
	w.put("a", 300<<10)
	w.put("b", 10)
	w.settle()
	w.heal()
	w.down[1].Store(false)
	w.heal()
	got := w.healer.Outstanding(ctx)
	if all, only := got.registers(1); all != 2 || only == 0 || !slices.Equal(got.Behind, []uint16{1}) {
		t.Errorf("drive 1 came back and lacks two records: %+v", got)
	}
	w.upkeep()
	if got = w.healer.Outstanding(ctx); len(got.Behind) != 0 || len(got.Wants) == 0 {
		t.Errorf("compared, and not repaired: %+v", got)
	}
	w.healer.Configure(Settings{})
	w.heal()
	if got = w.healer.Outstanding(ctx); len(got.Behind)+len(got.Silent)+len(got.Wants) != 0 {
		t.Errorf("repaired: %+v", got)
	}
}

// Nobody waits for the next round: until it is compared, a drive counts as behind.
func TestADriveThatComesBackIsComparedAtOnce(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.healer.lookAround(context.Background())
	for _, what := range []string{"drives were found", "one returned"} {
		select {
		case <-w.healer.back:
		default:
			t.Errorf("%s, and nothing asks to compare", what)
		}
		w.healer.Returned(1)
	}
}

// A drive whose lists cannot be read is told apart from one that has none.
func TestADriveThatDoesNotTellItsListsIsSilent(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.heal()
	w.upkeep()
	open := w.healer.c.Local
	w.healer.c.Local = func() (out []node.Drive) {
		for _, d := range open() {
			if d.Num() == 2 {
				d = mute{d}
			}
			out = append(out, d)
		}
		return out
	}
	if got := w.healer.Outstanding(context.Background()); !slices.Equal(got.Silent, []uint16{2}) {
		t.Errorf("drives %v are silent, want 2", got.Silent)
	}
}

// mute fails to tell its lists.
type mute struct{ node.Drive }

func (mute) Repairs(context.Context, *metadata.Address, int) ([]metadata.RepairRow, error) {
	return nil, context.DeadlineExceeded
}

// Drives that all hold everything lack nothing, whatever is yet to be tidied up; what one of them lacks counts.
func TestWhatOnlyHasToBeTidiedUpIsNotOutstanding(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, object.Unversioned)
	up, err := w.store.CreateUpload(ctx, "bkt", "k", object.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	part, err := w.store.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader(make([]byte, 300<<10)), object.PartOptions{Size: 300 << 10})
	if err != nil {
		t.Fatal(err)
	}
	list := []object.CompletedPart{{Number: 1, ETag: part.ETag}}
	if _, err := w.store.CompleteUpload(ctx, "bkt", "k", up.UploadID, list, object.CompleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.heal()
	w.upkeep()
	want := func(n int, when string) {
		t.Helper()
		got := w.healer.Outstanding(ctx)
		if all, _ := got.registers(0); all != n || len(got.Behind)+len(got.Silent) != 0 || got.More {
			t.Errorf("%s %d records are outstanding, want %d: %+v", when, all, n, got)
		}
	}
	want(0, "at first")

	// Rows that all have accepted, and of which none knows that they are chosen.
	w.with(lossy{world: w})
	w.put("undecided", 300<<10)
	w.settle()
	w.with(w)
	w.clock.pass(settlesWithin)
	if n, _ := w.marks(); n == 0 {
		t.Fatal("all is decided")
	}
	want(0, "with marks and no lack")
	w.vanish(1, "undecided")
	want(1, "with marks and a lack")
	w.heal()

	// What was overwritten waits for its grace on the lists, from one pass to the next.
	w.put("k", 100)
	w.settle()
	w.pass(time.Second)
	w.pass(firstPause)
	if w.repairs() == 0 {
		t.Fatal("nothing waits for its grace")
	}
	for range 4 {
		want(0, "while dead data waits")
		w.clock.pass(2 * time.Second)
	}
	w.down[1].Store(true)
	w.put("k", 100)
	w.settle()
	w.down[1].Store(false)
	want(1, "after a drive missed a write of the same")
	w.clock.pass(time.Minute)
	want(1, "a minute later")
}

// What was verified on all drives that are here lacks nothing on them, whatever its rows named before, and though what is
// dead of it cannot go as long as one is away. Else that one could never be replaced.
func TestWhatWasVerifiedWithADriveAwayIsNotOutstandingOnTheOthers(t *testing.T) {
	ctx := context.Background()
	for _, size := range []int{100, 3 << 20} { // a body of one chunk, and of several
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			w := newWorld(t, object.Unversioned)
			w.put("k", 5<<20)
			w.settle()
			w.put("k", size) // what was before is dead, and has several chunks
			w.settle()
			w.heal()
			w.upkeep()
			w.down[1].Store(true)
			l := w.control.layout
			row := metadata.RepairRow{Address: metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("k")}, Partition: l.PartitionOf(1, []byte("k"))}
			for pos, num := range l.Group(row.Partition).Drives {
				if num != 1 {
					row.Positions = append(row.Positions, uint8(pos))
				}
			}
			for _, d := range w.healer.local() {
				if err := d.AddRepair(ctx, row); err != nil {
					t.Fatal(err)
				}
			}
			outstanding := func(when string, want int) {
				t.Helper()
				got := w.healer.Outstanding(ctx)
				others := 0
				for _, x := range got.Wants {
					if x.Drives == nil || slices.ContainsFunc(x.Drives, func(num uint16) bool { return num != 1 }) {
						others += x.Registers
					}
				}
				if others != want {
					t.Errorf("%s %d records may lack something on a drive that is here, want %d: %+v", when, others, want, got.Wants)
				}
			}
			outstanding("before a pass", 1)
			w.pass(firstPause)
			outstanding("after a pass", 0)
			w.pass(2 * time.Minute) // the grace is over, and the dead cannot go
			w.pass(firstPause)
			outstanding("when what is dead could go", 0)
			if w.repairs() == 0 {
				t.Error("nothing says that something dead is left")
			}
			for _, d := range w.healer.local() {
				if err := d.AddRepair(ctx, row); err != nil {
					t.Fatal(err)
				}
			}
			outstanding("after somebody asked again", 1)

			w.down[1].Store(false)
			w.upkeep()
			w.pass(10 * time.Minute)
			w.pass(2 * time.Minute)
			w.heal()
			if n := w.repairs(); n != 0 {
				t.Errorf("%d repair rows are left when all drives are back", n)
			}
		})
	}
}
