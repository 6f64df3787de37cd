package heal

import (
	"context"
	"testing"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/object"
)

// marks returns how many unsettled marks and garbage rows the drives have.
func (w *world) marks() (unsettled, garbage int) {
	w.t.Helper()
	for _, d := range w.healer.c.Local() {
		u, err := d.Unsettled(context.Background(), nil, 1000)
		if err != nil {
			w.t.Fatal(err)
		}
		g, err := d.Garbage(context.Background(), w.clock.now().Add(1000*time.Hour), 1000)
		if err != nil {
			w.t.Fatal(err)
		}
		unsettled, garbage = unsettled+len(u), garbage+len(g)
	}
	return unsettled, garbage
}

// pass makes a pass some time later.
func (w *world) pass(later time.Duration) {
	w.t.Helper()
	w.clock.pass(later)
	if err := w.healer.Pass(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

func TestClockThatIsSetBackDoesNotPutWorkOff(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("small", 100)
	w.put("large", 700<<10)
	w.settle()
	w.clock.pass(24 * time.Hour) // too early by a day
	w.delete("small")
	w.delete("large")
	w.settle()
	w.with(lossy{world: w}) // no decision arrives
	w.put("undecided", 100)
	w.with(w)
	w.clock.pass(-24 * time.Hour)
	if unsettled, garbage := w.marks(); unsettled == 0 || garbage == 0 {
		t.Fatalf("%d marks and %d garbage rows lie in the future", unsettled, garbage)
	}
	// Within the grace nothing is removed, whatever the rows say.
	dead := 0
	for _, d := range w.healer.c.Local() {
		rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		dead += len(rows)
	}
	w.pass(time.Second)
	w.pass(w.healer.c.Grace / 2)
	left := 0
	for _, d := range w.healer.c.Local() {
		rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		left += len(rows)
	}
	if left != dead {
		t.Errorf("%d of %d shards were removed within the grace", dead-left, dead)
	}
	for range 8 {
		w.pass(2 * time.Minute)
		w.settle()
	}
	if unsettled, garbage := w.marks(); unsettled != 0 || garbage != 0 {
		t.Errorf("%d marks and %d garbage rows are left after a quarter of an hour", unsettled, garbage)
	}
	for _, d := range w.healer.c.Local() {
		rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 1000)
		if err != nil || len(rows) != 1 {
			t.Errorf("drive %d has %d shards, not the one of the object that is there: %v", d.Num(), len(rows), err)
		}
	}
	w.whole("undecided")
}

func TestScheduleFromTheFutureIsDue(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.clock.pass(240 * time.Hour)
	w.upkeep() // the first period begins
	w.clock.pass(-240 * time.Hour)
	n := 0
	for range 3 {
		d := w.healer.local()[0]
		if err := w.healer.scheduled(context.Background(), d, jobOrphans, func() error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 {
		t.Errorf("it was done %d times", n)
	}
}

// What somebody else removed is never asked for again, and no call says that it is gone.
func TestTheMemoryOfDeadDataIsBounded(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	h := w.healer
	h.limits.graces = 3
	ids := make([]erasure.DataID, 5)
	for i := range ids {
		ids[i] = erasure.NewDataID()
		if h.graceOver(ids[i]) {
			t.Fatal("a grace was over at once")
		}
	}
	w.clock.pass(h.c.Grace)
	for i, id := range ids {
		if over := h.graceOver(id); over != (i < 3) {
			t.Errorf("body %d of 5, with room for 3: its grace is over: %v", i, over)
		}
	}
	for range 4 { // only the first is asked for
		w.clock.pass(unaskedAfter / 2)
		if !h.graceOver(ids[0]) {
			t.Error("the grace of what is asked for began anew")
		}
	}
	if h.graceOver(ids[4]) {
		t.Error("a grace was over at once")
	}
	if n := len(h.since); n != 2 {
		t.Errorf("%d bodies are remembered, two are asked for", n)
	}
	w.clock.pass(h.c.Grace)
	if !h.graceOver(ids[4]) {
		t.Error("the grace of what there is room for now does not end")
	}
}
