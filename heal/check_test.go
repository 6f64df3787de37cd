package heal

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// check compares drives that came back, as far as that goes, and lets the jobs look after themselves once.
func (w *world) check() Status {
	w.t.Helper()
	_ = w.healer.compareReturned(context.Background()) // drives may be away
	if err := w.healer.work(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	return w.healer.Status()
}

// reborn makes a healer as a new process would, over the same drives.
func (w *world) reborn() {
	c := w.healer.c
	w.healer = New(c)
}

func TestHealthyIsSaidOnlyAfterACompleteCheck(t *testing.T) {
	w := newWorld(t, object.Enabled)
	want := w.fill(30)
	w.heal()
	if s := w.healer.Status(); s.State == StateHealthy {
		t.Fatalf("healthy before any check: %+v", s)
	}
	w.healer.StartCheck()
	s := w.check()
	if s.State != StateHealthy || len(s.Why) != 0 || !s.Verified.Equal(w.clock.now()) {
		t.Fatalf("after the check: %+v", s)
	}
	if s.VerifiedRegisters < int64(len(want)) || s.VerifiedShards < 4*s.VerifiedRegisters || s.VerifiedBytes == 0 {
		t.Errorf("%d registers, %d shards, %d bytes were verified", s.VerifiedRegisters, s.VerifiedShards, s.VerifiedBytes)
	}
	if len(s.Jobs) != 1 || s.Jobs[0].State != JobDone || s.Jobs[0].Bad != 0 {
		t.Errorf("jobs: %+v", s.Jobs)
	}
	// A new process knows it from the drives.
	verified := s.Verified
	w.clock.pass(time.Hour)
	w.reborn()
	w.heal()
	if s := w.check(); s.State != StateHealthy || !s.Verified.Equal(verified) {
		t.Errorf("after a restart: %+v", s)
	}
	// A drive that goes away takes it back, and its return does not bring it back.
	w.down[1].Store(true)
	w.heal()
	if s := w.check(); s.State != StateDegraded {
		t.Errorf("with a drive away: %+v", s)
	}
	w.down[1].Store(false)
	w.heal()
	w.reborn()
	w.heal()
	if s := w.check(); s.State == StateHealthy || !s.Verified.Equal(verified) {
		t.Errorf("after a drive was away: %+v", s)
	}
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy || s.Verified.Equal(verified) {
		t.Errorf("after another check: %+v", s)
	}
}

// fill puts objects of all sorts, and returns what they are.
func (w *world) fill(n int) map[string][]byte {
	w.t.Helper()
	want := map[string][]byte{}
	for i := range n {
		key := fmt.Sprintf("key-%03d", i)
		size := []int{0, 1, 100, 3000, 20 << 10, 300 << 10, 700 << 10}[i%7]
		if i%5 == 0 {
			w.put(key, 77) // an older version, or an overwrite
		}
		want[key] = w.put(key, size)
	}
	return want
}

func TestCheckFindsAndRepairs(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(14)
	w.heal()
	// A small one and a large one lose a shard, and a row is missing, all behind everybody's back.
	w.vanish(1, "key-002")
	w.vanish(2, "key-006")
	w.healer.StartCheck()
	s := w.check()
	if s.State != StateHealthy || len(s.Jobs) == 0 || s.Jobs[0].Bad != 2 || s.Jobs[0].Repaired != 2 {
		t.Fatalf("after the check: %+v", s)
	}
	w.whole("key-002")
	w.whole("key-006")
}

// vanish removes the shards of key from a drive, behind the record's back. Nobody is told.
func (w *world) vanish(num uint16, key string) {
	w.t.Helper()
	d, _ := w.Shards(num)
	stranger := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("stranger")}
	id := w.dataOf(key)
	for chunk := range uint32(3) {
		if err := d.DeleteShard(context.Background(), stranger, id, chunk, metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestCheckThatFindsWhatCannotBeRepairedIsNoProof(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(7)
	w.heal()
	for num := range uint16(3) { // 2+2 of which one is left
		w.vanish(num+1, "key-006")
	}
	w.healer.StartCheck()
	s := w.check()
	if s.State == StateHealthy || !s.Verified.IsZero() || w.repairs() == 0 {
		t.Fatalf("after the check: %+v", s)
	}
	if len(s.Jobs) != 1 || s.Jobs[0].State != JobWaiting || s.Jobs[0].Bad != 1 {
		t.Errorf("jobs: %+v", s.Jobs)
	}
	// Whoever deletes what is lost ends that.
	if _, err := w.store.Delete(context.Background(), "bkt", "key-006", object.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		w.heal()
	}
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after the deletion: %+v, %+v", s, w.healer.Progress())
	}
}

func TestCheckGoesOnAfterARestartAndWaitsForDrives(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	for i := range walkPage + 10 {
		w.put(fmt.Sprintf("k%04d", i), 10)
	}
	w.heal()
	w.healer.StartCheck()
	h := w.healer
	ctx := context.Background()
	if err := h.loadCheck(ctx); err != nil {
		t.Fatal(err)
	}
	h.beginCheck(ctx, false)
	if err := h.checkPage(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.saveCheck(ctx); err != nil {
		t.Fatal(err)
	}
	if h.check.state.Walked || h.check.state.Done == 0 {
		t.Fatalf("after one page: %+v", h.check.state)
	}
	w.reborn()
	w.down[2].Store(true)
	w.heal()
	s := w.check()
	if i := slices.IndexFunc(s.Jobs, func(j Job) bool { return j.State == JobWaiting }); i < 0 || s.Jobs[i].Done < walkPage {
		t.Fatalf("with a drive away: %+v", s)
	}
	w.down[2].Store(false)
	if s = w.check(); s.VerifiedRegisters != walkPage+10 || s.Jobs[0].State != JobDone {
		t.Errorf("at the end: %+v", s)
	}
	if s.State == StateHealthy {
		t.Errorf("a drive was away while it was checked: %+v", s)
	}
	w.healer.StartCheck()
	if s = w.check(); s.State != StateHealthy {
		t.Errorf("after the next check: %+v", s)
	}
}

func TestPausedChecksStandStill(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(3)
	w.heal()
	w.healer.Configure(Settings{Paused: true})
	w.healer.StartCheck()
	if s := w.check(); s.Jobs[0].State != JobPaused || !s.Verified.IsZero() {
		t.Fatalf("paused: %+v", s)
	}
	w.healer.Configure(Settings{})
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after the pause: %+v", s)
	}
}

// stalled drives verify nothing and keep nothing, as after the process stood still for longer than a call may take.
type stalled struct{ *world }

type stalledDrive struct{ node.Drive }

var errStalled = errs.E("test", errs.Timeout, "the drive does not answer in time")

func (stalledDrive) InlineShards(context.Context, []erasure.DataID) ([][]byte, error) {
	return nil, errStalled
}

func (stalledDrive) VerifyShard(context.Context, erasure.Chunk, int, func(context.Context, int) error) error {
	return errStalled
}

func (stalledDrive) AddRepair(context.Context, metadata.RepairRow) error { return errStalled }

func (s stalled) Shards(num uint16) (node.Drive, bool) {
	d, ok := s.world.Shards(num)
	return stalledDrive{d}, ok
}

func TestWhatACheckCouldNeitherVerifyNorNoteIsNoProof(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(10)
	w.heal()
	w.vanish(1, "key-003")
	w.healer.StartCheck()
	w.healer.c.Drives = stalled{w}
	s := w.check()
	if s.State == StateHealthy || w.healer.check.state.Done != 0 {
		t.Fatalf("while no drive answers: %+v", s)
	}
	w.healer.c.Drives = w
	w.heal()
	if s = w.check(); s.State != StateHealthy || s.Jobs[0].Bad != 1 || s.Jobs[0].Repaired != 1 {
		t.Errorf("after they answer again: %+v", s)
	}
	w.whole("key-003")
}

func TestNobodyIsHealthyBeforeTheListsWereRead(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(10)
	w.heal()
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy {
		t.Fatalf("after the check: %+v", s)
	}
	// A shard is lost. Whoever meets that leaves a repair row, and says so.
	w.vanish(1, "key-003")
	w.ask(2, "key-003")
	w.healer.Nudge()
	if s := w.check(); s.State != StateWorking {
		t.Errorf("with %d repair rows: %+v", w.repairs(), s)
	}
	w.reborn()
	if s := w.check(); s.State != StateUnknown {
		t.Errorf("a new process, with %d repair rows: %+v", w.repairs(), s)
	}
	w.heal()
	if s := w.healer.Status(); s.State == StateHealthy {
		t.Errorf("before the drives were compared: %+v", s)
	}
	if s := w.check(); s.State != StateHealthy || w.repairs() != 0 {
		t.Errorf("after a pass, with %d repair rows: %+v", w.repairs(), s)
	}
	// A drive that went and came back between two passes takes the proof away, whatever it missed.
	w.down[1].Store(true)
	w.put("late", 100<<10)
	w.settle()
	w.down[1].Store(false)
	w.healer.Returned(1)
	if s := w.healer.Status(); s.State != StateWorking {
		t.Errorf("a drive came back: %+v", s)
	}
	w.heal()
	w.heal()
	if s := w.check(); s.State != StateUnknown || w.repairs() != 0 {
		t.Errorf("after it was brought up, with %d repair rows: %+v", w.repairs(), s)
	}
}
