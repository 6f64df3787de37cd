package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

func profilesOf(k, m uint8) placement.Profiles {
	p := erasure.Profile{Data: k, Parity: m}
	return placement.Profiles{Standard: p, Reduced: placement.ReducedProfile(p)}
}

// joining returns moves that make all narrow partitions as wide as a profile of n shards asks for.
func (m *moving) joining(n int) (list []placement.Move) {
	l := m.s.Layout()
	for p := range l.Partitions() {
		g := l.Group(p)
		pos := len(g.Drives)
		for _, d := range l.Drives() {
			if g.Position(d.Num) < 0 && !m.s.Retired(d.Num) && pos < n {
				list = append(list, placement.Move{Partition: p, Position: pos, To: d.Num})
				pos++
			}
		}
	}
	return list
}

// lone is a store of one drive that others have come to.
func newLone(t *testing.T, name string, others int) *moving {
	m := newMoving(t, name, 1, 1, 0)
	l := m.s.Layout()
	for i := range others {
		d := newDrive(uint64(i + 2))
		d.Num = uint16(i + 2)
		var err error
		if l, err = l.WithDrive(d); err != nil {
			t.Fatal(err)
		}
	}
	m.s, _ = emptyState().apply(1, &command{op: opInit, layout: l})
	m.ids = uint64(others) + 1
	return m
}

func (m *moving) of(list []placement.Move, partitions ...uint32) (out []placement.Move, spreads []uint32) {
	for _, x := range list {
		if slices.Contains(partitions, x.Partition) {
			out, spreads = append(out, x), append(spreads, 1)
		}
	}
	return out, spreads
}

func (m *moving) publish(list []placement.Move, partitions ...uint32) error {
	moves, spreads := m.of(list, partitions...)
	_, err := m.do(&command{op: opPublishMoves, id: m.s.moves.plan.ID, term: m.term(), move: moveCommand{moves: moves, spreads: spreads}})
	return err
}

func TestAPlanMakesPartitionsWider(t *testing.T) {
	m := newLone(t, "wider", 5)
	number, list := m.s.Layout().Number(), m.joining(4)
	open := func(list []placement.Move, p placement.Profiles) error {
		_, err := m.do(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: list, profile: p}})
		return err
	}
	for name, err := range map[string]error{
		"without a profile":               open(list, placement.Profiles{}),
		"a profile that is as wide":       open(list, profilesOf(1, 0)),
		"a profile of another width":      open(list, profilesOf(3, 2)),
		"too few newcomers":               open(list[1:], profilesOf(2, 2)),
		"a profile that needs more disks": open(m.joining(6), profilesOf(4, 4)),
	} {
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if m.s.Layout().Number() != number {
		t.Fatal("a plan that was refused has changed the layout")
	}
	if err := open(list, profilesOf(2, 2)); err != nil {
		t.Fatal(err)
	}
	if l := m.s.Layout(); l.Profile() != (erasure.Profile{Data: 2, Parity: 2}) || l.Narrow() != 8 || l.Number() != number+1 {
		t.Fatalf("profile %s, %d narrow, layout %d", l.Profile(), l.Narrow(), l.Number())
	}
	plan := func() *MovePlan { return m.s.moves.plan }
	m.must(&command{op: opTakeOverPlan, id: plan().ID})
	begin := func(partitions ...uint32) {
		t.Helper()
		moves, _ := m.of(list, partitions...)
		m.must(&command{op: opBeginMoves, id: plan().ID, term: m.term(), move: moveCommand{moves: moves}})
	}
	begin(0, 1, 2)
	if err := m.publish(list[:2], 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("half of a partition: %v, want Invalid", err)
	}
	for range 2 { // who asks again has not heard the answer
		if err := m.publish(list, 0, 1); err != nil {
			t.Fatal(err)
		}
	}
	if l := m.s.Layout(); l.Narrow() != 6 || l.Width(1) != 4 || l.Group(1).Epoch != 2 {
		t.Fatalf("%d narrow, %+v", l.Narrow(), l.Group(1))
	}
	// What is not begun is dropped; the rest comes to its end, and another plan goes on.
	m.must(&command{op: opRevertPlan, id: plan().ID})
	if err := m.publish(list, 2); err != nil {
		t.Fatal(err)
	}
	done, _ := m.of(list, 0, 1, 2)
	m.must(&command{op: opMovesDone, id: plan().ID, term: m.term(), move: moveCommand{moves: done}})
	if plan() != nil || m.s.Layout().Narrow() != 5 || m.s.EndedPlans()[0].Done != 9 {
		t.Fatalf("plan %+v, %d narrow, %+v", plan(), m.s.Layout().Narrow(), m.s.EndedPlans())
	}
	list = m.joining(4)
	if err := open(list, placement.Profiles{}); err != nil {
		t.Fatal(err)
	}
	m.must(&command{op: opTakeOverPlan, id: plan().ID})
	begin(3, 4, 5, 6, 7)
	if err := m.publish(list, 3, 4, 5, 6, 7); err != nil {
		t.Fatal(err)
	}
	m.must(&command{op: opMovesDone, id: plan().ID, term: m.term(), move: moveCommand{moves: list}})
	if l := m.s.Layout(); plan() != nil || l.Widening() || l.FirstWidth() != 1 {
		t.Fatalf("plan %+v, widening %v", plan(), l.Widening())
	}
}

func TestAPlanThatHasWidenedNothingTakesItsProfileBack(t *testing.T) {
	m := newLone(t, "taken back", 3)
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: m.joining(4), profile: profilesOf(2, 2)}})
	m.must(&command{op: opRevertPlan, id: m.s.moves.plan.ID})
	if l := m.s.Layout(); l.Widening() || l.Profile() != (erasure.Profile{Data: 1}) || l.N() != 1 {
		t.Fatalf("profile %s, widening %v", l.Profile(), l.Widening())
	}
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: m.joining(2), profile: profilesOf(1, 1)}})
	if l := m.s.Layout(); l.N() != 2 || l.Narrow() != 8 {
		t.Fatalf("profile %s", l.Profile())
	}
}

// Newcomers are lost on the way, in every state of the plan: no partition is left between two widths.
func TestAWideningOutlivesTheLossOfNewcomers(t *testing.T) {
	seed := rand.Uint64()
	for try := range 60 {
		m := newLone(t, fmt.Sprint("seed ", seed, " try ", try), 6)
		rnd := rand.New(rand.NewPCG(seed, uint64(try)))
		list := m.joining(4)
		m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: list, profile: profilesOf(2, 2)}})
		id := m.s.moves.plan.ID
		m.must(&command{op: opTakeOverPlan, id: id})
		begun := uint32(rnd.IntN(9))
		for p := range begun {
			moves, spreads := m.of(list, p)
			m.must(&command{op: opBeginMoves, id: id, term: m.term(), move: moveCommand{moves: moves}})
			if rnd.IntN(2) == 0 {
				m.must(&command{op: opPublishMoves, id: id, term: m.term(), move: moveCommand{moves: moves, spreads: spreads}})
			}
		}
		lost := uint16(2 + rnd.IntN(3))
		if rnd.IntN(2) == 0 {
			m.ids++
			m.must(&command{op: opBeginReplace, old: lost, drive: newDrive(m.ids)})
			r := m.s.Replacements()[0]
			m.must(&command{op: opTakeOver, id: r.ID})
			if parts := m.s.Layout().PartitionsOf(lost); len(parts) > 0 {
				m.must(&command{op: opPublishSwap, id: r.ID, term: 1, partitions: parts})
			}
		} else {
			gone := func(num uint16) bool { return num == lost }
			successors, err := m.s.Successors([]uint16{lost}, func(num uint16) bool { return !gone(num) })
			if err != nil {
				t.Fatalf("%s: %v", m.name, err)
			}
			if _, err := m.do(&command{op: opGiveUp, move: moveCommand{leaving: []uint16{lost}, moves: successors}}); err != nil {
				t.Fatalf("%s: %v", m.name, err)
			}
		}
		// The plan is carried out as it is now.
		for step := 0; m.s.moves.plan != nil; step++ {
			if step > 100 {
				t.Fatalf("%s: the plan does not end: %+v", m.name, m.s.moves.plan)
			}
			m.must(&command{op: opTakeOverPlan, id: id})
			by := map[uint32][]PlannedMove{}
			for _, x := range m.s.moves.plan.Moves {
				by[x.Partition] = append(by[x.Partition], x)
			}
			for p, moves := range by {
				var joins, rest, done []placement.Move
				var ones []uint32
				for _, x := range moves {
					switch {
					case x.State == MovePublished:
						done = append(done, x.Move)
					case x.Joins():
						joins, ones = append(joins, x.Move), append(ones, 1)
					default:
						rest = append(rest, x.Move)
					}
				}
				if len(joins) > 0 {
					if len(joins) != 3 {
						t.Fatalf("%s: partition %d is to become wider by %v", m.name, p, joins)
					}
					m.must(&command{op: opBeginMoves, id: id, term: m.term(), move: moveCommand{moves: joins}})
					m.must(&command{op: opPublishMoves, id: id, term: m.term(), move: moveCommand{moves: joins, spreads: ones}})
					continue
				}
				for _, x := range rest { // successions
					m.must(&command{op: opBeginMoves, id: id, term: m.term(), move: moveCommand{moves: []placement.Move{x}}})
					m.must(&command{op: opPublishMoves, id: id, term: m.term(), move: moveCommand{moves: []placement.Move{x}, spreads: []uint32{1}}})
				}
				if len(rest) == 0 {
					m.must(&command{op: opMovesDone, id: id, term: m.term(), move: moveCommand{moves: done}})
				}
				break
			}
		}
		for p := range m.s.Layout().Partitions() {
			if g := m.s.Layout().Group(p); len(g.Drives) != g.Quorum.N || p < begun && len(g.Drives) != 4 {
				t.Fatalf("%s: %d were begun, partition %d: %+v", m.name, begun, p, g)
			}
		}
	}
}

// The newcomers of all that was planned are gone, and nothing was begun: partitions are not on their way to anything.
func TestAPlanThatLosesAllItsJoinsTakesItsProfileBack(t *testing.T) {
	for name, lose := range map[string]func(m *moving) error{
		"given up": func(m *moving) error { return m.abandon(2) },
		"replaced": func(m *moving) error {
			_, err := m.do(&command{op: opBeginReplace, old: 2, drive: newDrive(99)})
			return err
		},
	} {
		m := newLone(t, name, 4)
		m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: m.joining(4), profile: profilesOf(2, 2)}})
		if err := lose(m); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, open := m.s.Plan(); open || m.s.Layout().Widening() {
			t.Errorf("%s: open %v, widening %v", name, open, m.s.Layout().Widening())
		}
	}
}
