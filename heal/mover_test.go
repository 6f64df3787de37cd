package heal

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// As many moves as there are positions, and as many registers left behind as are remembered.
func TestWhatAMoverKeepsFitsADrive(t *testing.T) {
	var s moverState
	for p := range uint32(1 << 14) {
		s.Moves = append(s.Moves, placement.Move{Partition: p, Position: 5, From: 1000, To: 1001})
	}
	for s.bytesOfBehind() < maxBehind {
		s.Behind = append(s.Behind, make(cursor, 1024))
	}
	s.After = make(cursor, 1100)
	b, err := json.Marshal(&s)
	if err != nil || len(b) > disk.MaxJob {
		t.Errorf("%d bytes, %v; a drive keeps %d", len(b), err, disk.MaxJob)
	}
}

// only returns the healer of a process that has one drive.
func (w *world) only(num uint16) *Healer {
	c := w.healer.c
	c.Local = func() []node.Drive {
		d, ok := w.Shards(num)
		if !ok {
			return nil
		}
		return []node.Drive{d}
	}
	return New(c)
}

func noLeader() error { return errs.E("test", errs.Unavailable, "no leader") }

// refusing fails every call of a name.
func refusing(name string) func(string) error {
	return func(call string) error {
		if call == name {
			return noLeader()
		}
		return nil
	}
}

// mover is a mover of the open plan, that has nothing to read from the drives.
func (p *plans) mover() *mover {
	plan, _ := p.Plan()
	m := newMover(plan)
	m.loaded = true
	m.term, _ = p.TakeOverPlan(context.Background(), plan.ID)
	return m
}

// published are the moves of which the shards follow.
func (p *plans) published() []placement.Move {
	plan, _ := p.Plan()
	return publishedOf(plan.Moves, allLayouts)
}

// The process of drive 2 is the mover, and has walked all registers when that of drive 6 becomes it: this one has
// nothing to walk again.
func TestAnotherProcessGoesOnWhereTheMoverWas(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 6)
	want := w.fill(24)
	w.heal()
	p := w.planned()
	p.open(w.drain(1), 1)
	p.fail = refusing("done")
	all, first, second := w.healer, w.only(2), w.only(6)
	ctx := context.Background()
	if err := first.work(ctx); err != nil {
		t.Fatal(err)
	}
	was := first.moving.mover.state
	if !was.Walked || was.Round == 0 {
		t.Fatalf("the first mover was to walk all registers: %+v", was)
	}
	plan, _ := p.Plan()
	m := newMover(plan)
	if err := second.loadMover(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := second.beginRound(ctx, m); err != nil {
		t.Fatal(err)
	}
	if s := m.state; !s.Walked || s.Round != was.Round || s.Serial < was.Serial || len(s.Moves) != len(was.Moves) {
		t.Errorf("the second mover begins with %+v, want what the first had: %+v", s, was)
	}
	p.fail = nil
	w.healer = second
	w.moved(p)
	w.healer = all
	w.same(want)
}

// A process that is the mover no more leaves on the drives where it was, and says of nothing that it is over.
func TestAMoverThatIsOneNoMoreForgetsNothing(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(12)
	w.heal()
	p := w.planned()
	p.open(w.drain(1), 1)
	p.fail = refusing("done")
	ctx := context.Background()
	if err := w.healer.work(ctx); err != nil {
		t.Fatal(err)
	}
	was := w.healer.moving.mover.state
	p.elsewhere = true
	if err := w.healer.work(ctx); err != nil {
		t.Fatal(err)
	}
	if w.healer.moving.mover != nil || len(w.healer.ended) > 0 {
		t.Errorf("it is still the mover, or a job has ended: %+v", w.healer.ended)
	}
	if !w.healer.planOpen() {
		t.Error("no plan is open, while another process makes it")
	}
	p.elsewhere, p.fail = false, nil
	plan, _ := p.Plan()
	m := newMover(plan)
	if err := w.healer.loadMover(ctx, m); err != nil || m.state.Round != was.Round || !m.state.Walked {
		t.Errorf("the mover begins with %+v, want %+v: %v", m.state, was, err)
	}
	w.moved(p)
	w.same(want)
}

// What is published while registers are walked does not begin the walk anew.
func TestAWalkIsForTheMovesThatWerePublishedWhenItBegan(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	w.fill(12)
	w.heal()
	p := w.planned()
	list := w.drain(1)
	p.open(list)
	ctx := context.Background()
	m := p.mover()
	members := func() {
		m.plan, _ = p.Plan()
		m.term, _ = p.TakeOverPlan(ctx, m.plan.ID)
		_ = w.healer.moveMembers(ctx, m, false)
	}
	w.healer.moving.batch = 1
	p.fail = func(call string) error {
		if call == "publish" && 2*len(publishedOf(p.plan.Moves, allLayouts)) >= len(list) {
			return noLeader()
		}
		return nil
	}
	members()
	if err := w.healer.beginRound(ctx, m); err != nil {
		t.Fatal(err)
	}
	round, first := m.state.Round, len(m.state.Moves)
	if first == 0 || first != len(p.published()) {
		t.Fatalf("the walk is for %d moves, of %d that are published", first, len(p.published()))
	}
	m.state.Walked = true
	p.fail = nil
	members()
	if n := len(p.published()); n <= first {
		t.Fatalf("%d moves are published, as before", n)
	}
	if err := w.healer.beginRound(ctx, m); err != nil {
		t.Fatal(err)
	}
	if m.state.Round != round || len(m.state.Moves) != first || !m.state.Walked {
		t.Errorf("the walk for %d moves was begun anew, for %d", first, len(m.state.Moves))
	}
}

// A walk may take hours: it is left for partitions that stand still.
func TestPartitionsThatStandStillDoNotWaitForAWalk(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(12)
	w.heal()
	p := w.planned()
	p.open(w.drain(1))
	ctx := context.Background()
	m := p.mover()
	w.healer.moving.batch = 1
	n := 0
	p.fail = func(call string) error {
		if call == "publish" {
			if n++; n == 3 {
				return noLeader()
			}
		}
		return nil
	}
	if err := w.healer.moveMembers(ctx, m, false); err == nil {
		t.Fatal("the third batch was to fail")
	}
	w.clock.pass(2 * begunEvery)
	if err := w.healer.moveShards(ctx, m); !errs.Is(err, errs.Busy) || m.state.Walked {
		t.Errorf("the walk goes on while partitions stand still: %v", err)
	}
	w.moved(p)
	w.same(want)
}

// Another process began to change members, and died; this one becomes the mover while it fills a drive.
func TestPartitionsThatStandStillDoNotWaitForARebuild(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 6)
	want := w.fill(12)
	w.heal()
	w.replace(1, 7)
	p := w.planned()
	p.plan = nil
	b := w.mover(7)
	if err := w.healer.moveIn(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	p.open(w.drain(2))
	p.plan.Moves[0].State = MoveBegun
	p.elsewhere = true
	if w.healer.partitionsStand() {
		t.Error("another process is the mover, and this one does not go on")
	}
	p.elsewhere = false
	for range 3 {
		if err := w.healer.fillNewcomer(context.Background(), b); err != nil {
			t.Fatal(err)
		}
		if len(w.replaces.list()) == 0 {
			t.Fatal("the drive is filled to the end, and partitions stand still meanwhile")
		}
	}
	w.moved(p)
	w.rebuilt()
	w.heal()
	w.same(want)
}

// What was overwritten before its shards moved is on the former drive for as long as readers may want it, and a member
// that was away meanwhile still names it. Nobody brings it to the newcomer, and the moves do not wait for its end.
func TestMovesDoNotWaitForWhatIsDead(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(12)
	w.heal()
	p := w.planned()
	p.open(w.drain(1))
	ctx := context.Background()
	m := p.mover()
	if err := w.healer.moveMembers(ctx, m, false); err != nil {
		t.Fatal(err)
	}
	w.down[3].Store(true)
	for key := range want {
		want[key] = w.put(key, len(want[key])+1)
	}
	w.settle()
	w.down[3].Store(false)
	if err := w.healer.moveShards(ctx, m); err != nil {
		t.Errorf("the moves wait: %v", err)
	}
	if n := len(p.published()); n > 0 {
		t.Errorf("%d moves are not over", n)
	}
	w.moved(p)
	for range 4 {
		w.heal()
		w.upkeep()
	}
	w.same(want)
	if list := w.displaced(); len(list) > 0 {
		t.Errorf("shards lie where they do not belong: %v", list)
	}
}

// pausing says how long partitions stood still, and changes nothing.
type pausing struct {
	Mover
	pause time.Duration
	rows  int
	sizes []int
}

func (m *pausing) Swap(_ context.Context, s metadata.Swap) (metadata.SwapReport, error) {
	m.sizes = append(m.sizes, len(s.Groups))
	r := metadata.SwapReport{Pause: m.pause, Rows: m.rows}
	for _, g := range s.Groups {
		r.Swapped = append(r.Swapped, g.Partition)
	}
	return r, noLeader()
}

// Few partitions stand still together where that takes long, many where it does not.
func TestBatchesFitThePause(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	p := w.planned()
	p.open(w.drain(1))
	plan, _ := p.Plan()
	m := newMover(plan)
	swap := &pausing{}
	w.healer.c.Mover = swap
	l := w.control.Layout()
	after := func(pause time.Duration, want int) {
		t.Helper()
		swap.pause = pause
		list, _ := w.healer.nextMoves(l, m, map[placement.Move]bool{}, false)
		_, _ = w.healer.moveSwap(context.Background(), m, l, list)
		if m.size != want {
			t.Errorf("after a pause of %v the next batch has %d, want %d", pause, m.size, want)
		}
	}
	m.size = 1
	swap.rows = fewRows + 1
	after(shortPause/2, 2)
	after(2*shortPause, 2)
	after(2*longPause, 1)
	after(2*longPause, 1)
	swap.rows = fewRows
	after(2*shortPause, 2)
	after(2*longPause, 2)
	m.size = 4 * firstBatch
	after(2*longPause, 2*firstBatch)
	after(2*longPause, firstBatch)
	after(2*longPause, firstBatch)
	swap.sizes = swap.sizes[:4] // the plan has no more than a few
	if !slices.Equal(swap.sizes, []int{1, 2, 2, 1}) {
		t.Errorf("the batches had %v partitions", swap.sizes)
	}
}

// halting says of every change of members that the partitions are wedged, and that too few drives answered.
type halting struct {
	Mover
	halts    bool
	patience []time.Duration // that it was given
}

func (m *halting) Swap(ctx context.Context, s metadata.Swap) (metadata.SwapReport, error) {
	if !m.halts {
		return m.Mover.Swap(ctx, s)
	}
	m.patience = append(m.patience, s.Patience)
	var r metadata.SwapReport
	for _, g := range s.Groups {
		r.Skipped, r.Wedged = append(r.Skipped, g.Partition), append(r.Wedged, g.Partition)
	}
	return r, errs.E("test", errs.Unavailable, "too few drives answered")
}

// kicked reports whether the jobs were asked for since it was last called.
func (w *world) kicked() bool {
	select {
	case <-w.healer.jobs:
		return true
	default:
		return false
	}
}

// growing fails unless the patience of successive tries doubled up to the bound of a call.
func (m *halting) growing(t *testing.T, h *Healer) {
	t.Helper()
	want := []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, h.c.CallTimeout}
	if got := slices.Compact(slices.Clone(m.patience)); !slices.Equal(got, want) {
		t.Errorf("the tries had a patience of %v, want %v", got, want)
	}
}

// A change of members that ends with nothing but partitions that stand still is tried again at once and with more
// patience, often; then less and less often, but when a drive may be back.
func TestPartitionsThatWereSkippedWhileTheyStandStillAreTriedAgain(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(12)
	w.heal()
	p := w.planned()
	p.open(w.drain(1))
	swap := &halting{Mover: w.healer.c.Mover, halts: true}
	w.healer.c.Mover = swap
	tries := func() int {
		t.Helper()
		was := len(swap.patience)
		if err := w.healer.work(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(swap.patience) - was
	}
	w.kicked()
	for i := range soonTries / 2 { // each time the jobs try twice
		if n := tries(); n == 0 || !w.kicked() {
			t.Fatalf("after %d tries, the last of %d batches, it does not go on at once", i, n)
		}
	}
	tries() // the last of them, and one more
	w.kicked()
	swap.growing(t, w.healer)
	if tries() > 0 || w.kicked() {
		t.Error("it goes on at once for ever")
	}
	for i := range 5 {
		rest := begunEvery << min(i, maxRests)
		w.clock.pass(rest - time.Second)
		if n := tries(); n > 0 {
			t.Errorf("rest %d ended before %v", i, rest)
		}
		w.clock.pass(time.Second)
		if n := tries(); n == 0 {
			t.Errorf("rest %d is longer than %v", i, rest)
		}
	}
	w.healer.Trigger()
	if n := tries(); n == 0 {
		t.Error("a drive may be back, and it rests")
	}
	swap.halts = false
	w.moved(p)
	w.same(want)
}

// The same of a drive that takes the place of one that was lost.
func TestANewcomerWhosePartitionsStandStillTriesAgain(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(12)
	w.heal()
	w.replace(1, 7)
	swap := &halting{Mover: w.healer.c.Mover, halts: true}
	w.healer.c.Mover = swap
	w.kicked()
	for i := range 6 {
		if err := w.healer.work(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !w.kicked() {
			t.Errorf("after try %d it does not go on at once", i)
		}
	}
	swap.growing(t, w.healer)
	swap.halts = false
	w.rebuilt()
	w.heal()
	w.same(want)
}
