package heal

import (
	"context"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// succeeds reports whether a move gives the place of a drive that was given up, to which shards were moving, to
// another.
func (p *plans) succeeds(m placement.Move) bool {
	_, moving := p.w.control.Layout().Group(m.Partition).FormerAt(m.Position)
	return moving && p.w.replaces.isRetired(m.From)
}

// succeed makes such a move: what was on its way to one is on its way to the other.
func (p *plans) succeed(m placement.Move) error {
	err := p.w.relayout(func(l *placement.Layout) (*placement.Layout, error) {
		return l.Swap(m.From, m.To, []uint32{m.Partition})
	})
	p.plan.Moves = slices.DeleteFunc(p.plan.Moves, func(x PlannedMove) bool { return x.Move == m })
	for i := range p.plan.Moves {
		if x := &p.plan.Moves[i]; x.Partition == m.Partition && x.Position == m.Position {
			x.To = m.To
		}
	}
	return err
}

// giveUp retires a drive that nobody replaces. Where shards were on their way to it, others succeed it.
func (w *world) giveUp(p *plans, num uint16) {
	w.replaces.mu.Lock()
	w.replaces.retired = append(w.replaces.retired, num)
	w.replaces.mu.Unlock()
	w.healer.c.Retired = w.replaces.isRetired
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plan == nil {
		return
	}
	p.term++
	l := w.control.Layout()
	var first []PlannedMove
	for _, m := range p.plan.Moves {
		if m.To != num || m.State != MovePublished {
			continue
		}
		g := l.Group(m.Partition)
		for _, d := range l.Drives() {
			if g.Position(d.Num) < 0 && !slices.Contains(g.Former, d.Num) {
				first = append(first, PlannedMove{Move: placement.Move{Partition: m.Partition, Position: m.Position, From: num, To: d.Num}})
				break
			}
		}
	}
	p.plan.Moves = slices.DeleteFunc(p.plan.Moves, func(m PlannedMove) bool { return m.To == num && m.State == MovePlanned })
	p.plan.Moves = append(first, p.plan.Moves...)
}

// As long as a dead drive may come back its last shards are waited for. Once it was given up, all is rebuilt from the
// others, compared among them, and the drive is out of the layout.
func TestADrainOfADeadDriveEndsOnceItWasGivenUp(t *testing.T) {
	w := newWorldOf(t, object.Enabled, 6)
	want := w.fill(24)
	w.heal()
	p := w.planned()
	w.down[2].Store(true)
	w.put("while-away", 300<<10)
	w.settle()
	p.open(w.drain(2), 2)
	for range 6 {
		w.upkeep()
		if err := w.healer.work(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := p.Plan(); !ok {
		t.Fatal("the drain has ended, although the drive may come back")
	}
	w.giveUp(p, 2)
	w.moved(p)
	l := w.control.Layout()
	if _, ok := l.Drive(2); ok || len(l.Moving()) > 0 {
		t.Fatalf("drive 2 is still in the layout, or shards are moving: %v", l.Moving())
	}
	w.heal()
	w.heal()
	w.equalDigests()
	w.same(want)
	w.enough(want)
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after the drain: %+v", s)
	}
}

// Two drives of the same partitions die: the shards of one position are rebuilt while the other has no drive at all.
func TestTwoDrivesOfAPartitionAreGivenUp(t *testing.T) {
	w := newWorldOf(t, object.Enabled, 7)
	want := w.fill(24)
	w.heal()
	p := w.planned()
	l := w.control.Layout()
	var list []placement.Move
	for part := range l.Partitions() {
		row := slices.Clone(l.Group(part).Drives)
		for pos, num := range l.Group(part).Drives {
			if num > 2 {
				continue
			}
			for to := uint16(3); ; to++ {
				if !slices.Contains(row, to) {
					row = append(row, to)
					list = append(list, placement.Move{Partition: part, Position: pos, From: num, To: to})
					break
				}
			}
		}
	}
	w.down[1].Store(true)
	w.down[2].Store(true)
	w.giveUp(p, 1)
	w.giveUp(p, 2)
	p.open(list, 1, 2)
	w.moved(p)
	w.heal()
	w.heal()
	w.same(want)
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy || len(w.control.Layout().Drives()) != 5 {
		t.Errorf("after the drain: %+v", s)
	}
}

// A drive dies for good while it is filled: its successor gets the shards from where they were on their way from.
func TestADriveThatIsGivenUpWhileItIsFilledHasASuccessor(t *testing.T) {
	w := newWorldOf(t, object.Enabled, 6)
	want := w.fill(24)
	w.heal()
	p := w.planned()
	p.open(w.drain(1), 1)
	m := p.mover()
	if err := w.healer.moveMembers(context.Background(), m, false); err != nil {
		t.Fatal(err)
	}
	moving := w.control.Layout().Moving()
	if len(moving) == 0 {
		t.Fatal("nothing is moving")
	}
	dead := moving[0].To
	w.down[dead].Store(true)
	w.giveUp(p, dead)
	var rest []placement.Move // where it was a member before
	for range 30 {
		if _, open := p.Plan(); !open {
			break
		}
		w.upkeep()
		if err := w.healer.work(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if plan, open := p.Plan(); open {
		t.Fatalf("the plan does not end: %+v\n%+v", plan.Moves, w.healer.Status())
	}
	l := w.control.Layout()
	for _, part := range l.PartitionsOf(dead) {
		g := l.Group(part)
		for _, d := range l.Drives() {
			if g.Position(d.Num) < 0 {
				rest = append(rest, placement.Move{Partition: part, Position: g.Position(dead), From: dead, To: d.Num})
				break
			}
		}
	}
	p.open(rest, dead)
	w.moved(p)
	w.heal()
	w.heal()
	w.same(want)
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy || len(w.control.Layout().Drives()) != 4 {
		t.Errorf("after all: %+v", s)
	}
}
