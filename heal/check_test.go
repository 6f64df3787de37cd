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
	h.beginCheck(ctx, dueAsked)
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

// calm makes passes and looks after the jobs until nothing changes any more, as a store does that nobody uses.
func (w *world) calm() Status {
	w.t.Helper()
	w.heal()
	for range 3 {
		w.check()
	}
	return w.check()
}

// What no check has seen is told, and a check comes to see it by itself.
func TestWhatIsWrittenAfterACheckIsToldAndCheckedByItself(t *testing.T) {
	const day = 24 * time.Hour
	w := newWorld(t, object.Unversioned)
	w.healer.c.CheckEvery = 7 * day
	s := w.calm()
	if s.State != StateHealthy || s.VerifiedRegisters != 0 || s.Since != 0 {
		t.Fatalf("an empty store: %+v", s)
	}
	first := s.Verified
	w.fill(7)
	w.settle()
	w.clock.pass(time.Hour)
	if s = w.check(); s.State != StateHealthy || s.Since != 48 || s.VerifiedRegisters != 0 {
		t.Errorf("9 bodies of 12 shards on each drive were written since: %+v", s)
	}
	w.vanish(1, "key-006")
	w.clock.pass(6 * day)
	if s = w.calm(); !s.Verified.Equal(first) {
		t.Errorf("a check within a week of the last: %+v", s)
	}
	w.clock.pass(day)
	if s = w.calm(); s.State != StateHealthy || s.VerifiedRegisters != 7 || s.Since > 4 || !s.Read.Equal(s.VerifiedFrom) {
		t.Errorf("after a week: %+v", s)
	}
	w.whole("key-006")
}

// A check of what was read before looks for shards, and leaves it to scrubs to read them.
func TestTheNextCheckByItselfReadsNoShards(t *testing.T) {
	const day = 24 * time.Hour
	w := newWorld(t, object.Unversioned)
	w.healer.c.CheckEvery = 7 * day
	w.fill(14)
	s := w.calm()
	if s.State != StateHealthy || s.Jobs[0].Phase != "" {
		t.Fatalf("after the first: %+v", s)
	}
	read := s.Read
	w.vanish(1, "key-006")
	w.vanish(2, "key-003")
	w.damage(3, "key-013")
	w.clock.pass(8 * day)
	s = w.calm()
	if s.State != StateHealthy || !s.Verified.After(read.Add(8*day)) || !s.Read.Equal(read) || s.Jobs[0].Phase != PhasePresence || s.Jobs[0].Repaired != 2 {
		t.Errorf("after a week: %+v", s)
	}
	w.whole("key-006")
	w.whole("key-003")
	for num := uint16(1); num <= 4; num++ {
		w.healer.StartScrub(num)
		w.scrubbed(num)
	}
	if w.repairs() == 0 {
		t.Error("the scrub did not find what was left to it")
	}
	s = w.calm()
	w.whole("key-013")
	// One that somebody wants reads everything, though such a one is under way.
	w.damage(3, "key-013")
	w.clock.pass(8 * day)
	w.healer.beginCheck(context.Background(), dueLight)
	w.healer.StartCheck()
	if s = w.check(); s.State != StateHealthy || s.Jobs[0].Phase != "" || s.Jobs[0].Repaired != 1 {
		t.Errorf("after one that was asked for: %+v", s)
	}
}

// damage flips a bit in a shard file of key's first chunk.
func (w *world) damage(num uint16, key string) {
	w.t.Helper()
	in, err := w.store.Inspect(context.Background(), "bkt", key, false)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range in.Shards {
		if s.Drive == num && s.Chunk == 0 {
			w.flip(num, erasure.ShardID{Data: w.dataOf(key), Index: uint8(s.Index)}, 4096+17)
			return
		}
	}
	w.t.Fatalf("%s has no shard on drive %d", key, num)
}

// Whoever stops all checks and scrubs is told when the proof has become old.
func TestAProofThatIsOldIsNone(t *testing.T) {
	const day = 24 * time.Hour
	w := newWorld(t, object.Unversioned)
	w.fill(7)
	w.heal()
	w.healer.StartCheck()
	w.check()
	w.clock.pass(29 * day)
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after 29 days: %+v", s)
	}
	w.clock.pass(2 * day)
	if s := w.check(); s.State != StateUnknown || len(s.Why) != 1 {
		t.Errorf("after 31 days: %+v", s)
	}
	// Checks alone do not say that what is there can be read.
	w.healer.c.CheckEvery = 7 * day
	w.healer.Configure(Settings{ScrubPaused: true})
	if s := w.calm(); s.State != StateHealthy {
		t.Errorf("after a check: %+v", s)
	}
	w.clock.pass(45 * day)
	if s := w.calm(); s.State != StateUnknown || len(s.Why) != 1 {
		t.Errorf("nothing was read for 76 days: %+v", s)
	}
	w.healer.Configure(Settings{})
	w.clock.pass(7 * day)
	if s := w.calm(); s.State != StateHealthy || s.Since != 0 {
		t.Errorf("once it may be read again: %+v", s)
	}
}

// Between the last page and the end, a drive may go.
func TestACheckDoesNotEndWhileADriveIsAway(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(7)
	w.heal()
	ctx := context.Background()
	h := w.healer
	if err := h.loadCheck(ctx); err != nil {
		t.Fatal(err)
	}
	h.beginCheck(ctx, dueAsked)
	for !h.check.state.Walked {
		if err := h.checkPage(ctx); err != nil {
			t.Fatal(err)
		}
	}
	w.down[3].Store(true)
	if err := h.endCheck(ctx); !errs.Is(err, errs.Unavailable) || !h.Status().Verified.IsZero() {
		t.Errorf("with a drive away: %v, %+v", err, h.Status())
	}
	w.down[3].Store(false)
	if err := h.endCheck(ctx); err != nil || h.Status().Verified.IsZero() {
		t.Errorf("with all drives: %v, %+v", err, h.Status())
	}
}
