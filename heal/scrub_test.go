package heal

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

func TestScrubsAreSpreadEvenly(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	day := 24 * time.Hour
	for _, tc := range []struct {
		name  string
		s     scrubState
		due   time.Duration // from at
		begin bool
	}{
		{"the first round begins at once", scrubState{}, 0, true},
		{"the next begins a period after the last one began", scrubState{LastBegun: at.Add(-29 * day), LastDone: at.Add(-day)}, day, true},
		{"one that is late begins at once", scrubState{LastBegun: at.Add(-90 * day)}, 0, true},
		{"one that somebody wants begins at once", scrubState{LastBegun: at, Fast: true}, 0, true},
		{"half of the shards are due in the middle", scrubState{Begun: at, Total: 1000, Shards: 500}, time.Duration(0.475 * float64(30*day)), false},
		{"who is behind goes on at once", scrubState{Begun: at.Add(-20 * day), Total: 1000, Shards: 500}, 0, false},
		{"fast is fast", scrubState{Begun: at, Total: 1000, Shards: 500, Fast: true}, 0, false},
		{"more shards than expected stay within the period", scrubState{Begun: at, Total: 10, Shards: 500}, time.Duration(0.95 * float64(30*day)), false},
	} {
		due, begin := tc.s.next(at, 30*day)
		if due.Sub(at).Round(time.Second) != tc.due || begin != tc.begin {
			t.Errorf("%s: due in %v, begins: %v", tc.name, due.Sub(at), begin)
		}
	}
}

// scrubbed makes steps of the scrub of a drive until it has to wait.
func (w *world) scrubbed(num uint16) int {
	w.t.Helper()
	ctx := context.Background()
	d, ok := w.healer.drive(num)
	if !ok {
		w.t.Fatal("the drive is away")
	}
	w.healer.mu.Lock()
	s := w.healer.scrubOf(num)
	s.running = true
	w.healer.mu.Unlock()
	if err := w.healer.load(ctx, d, jobScrub, &s.state); err != nil {
		w.t.Fatal(err)
	}
	for n := 0; ; n++ {
		wait, err := w.healer.scrubStep(ctx, d, s)
		if err != nil {
			w.t.Fatal(err)
		}
		if wait > 0 {
			return n
		}
	}
}

func TestScrubFindsDamageAndHealingRepairsIt(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(14)
	w.heal()
	in, err := w.store.Inspect(context.Background(), "bkt", "key-006", false)
	if err != nil {
		t.Fatal(err)
	}
	id, err := erasure.ParseDataID(in.DataID)
	if err != nil {
		t.Fatal(err)
	}
	shard := in.Shards[len(in.Shards)-1] // of a later chunk
	w.flip(shard.Drive, erasure.ShardID{Data: id, Chunk: uint32(shard.Chunk), Index: uint8(shard.Index)}, 4096+17)
	for num := uint16(1); num <= 4; num++ {
		w.healer.StartScrub(num)
		w.scrubbed(num)
	}
	bad := int64(0)
	for _, s := range w.healer.Scrubs() {
		bad += s.Bad
		if s.State != JobWaiting || s.LastDone.IsZero() || s.Shards == 0 {
			t.Errorf("after a round: %+v", s)
		}
	}
	if bad != 1 || w.repairs() == 0 {
		t.Fatalf("%d findings, %d repair rows", bad, w.repairs())
	}
	w.heal()
	w.whole("key-006")
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}

func TestScrubGoesOnAfterARestart(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	for i := range 5 * scrubShards {
		w.put(fmt.Sprintf("k%04d", i), 10)
	}
	w.heal()
	if n := w.scrubbed(1); n == 0 {
		t.Fatal("the first step is not made at once")
	}
	s := w.healer.Scrubs()[0]
	if s.Begun.IsZero() || s.Done <= 0 || s.Done > 0.5 || s.Shards != scrubShards {
		t.Fatalf("after the first step: %+v", s)
	}
	w.reborn()
	w.clock.pass(15 * 24 * time.Hour)
	w.scrubbed(1)
	if s = w.healer.Scrubs()[0]; s.Done < 0.5 || s.Done > 0.9 {
		t.Errorf("in the middle: %+v", s)
	}
	w.healer.Configure(Settings{ScrubPaused: true})
	w.clock.pass(14 * 24 * time.Hour)
	if n := w.scrubbed(1); n != 0 || w.healer.Scrubs()[0].State != JobPaused {
		t.Errorf("%d steps while paused: %+v", n, w.healer.Scrubs()[0])
	}
	w.healer.Configure(Settings{})
	w.scrubbed(1)
	if s = w.healer.Scrubs()[0]; s.LastDone.IsZero() || !s.Begun.IsZero() || s.Shards < 5*scrubShards || s.Bad != 0 {
		t.Errorf("at the end: %+v", s)
	}
	if n := w.scrubbed(1); n != 0 {
		t.Errorf("%d steps of a round that is not due", n)
	}
}

// keepsNothing is a drive that takes no repair rows.
type keepsNothing struct{ node.Drive }

func (keepsNothing) AddRepair(context.Context, metadata.RepairRow) error { return errStalled }

func TestAFindingThatCouldNotBeNotedIsFoundAgain(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 300<<10)
	w.heal()
	w.damage(1, "k")
	ctx := context.Background()
	d, _ := w.Shards(1)
	w.healer.StartScrub(1)
	w.healer.mu.Lock()
	s := w.healer.scrubOf(1)
	w.healer.mu.Unlock()
	if _, err := w.healer.scrubStep(ctx, keepsNothing{d}, s); err == nil {
		t.Error("a finding that no drive kept is no error")
	}
	if n := w.repairs(); n != 0 {
		t.Fatalf("%d repair rows", n)
	}
	w.scrubbed(1)
	if n := w.repairs(); n == 0 {
		t.Error("the step was not made again")
	}
	w.heal()
	w.whole("k")
}
