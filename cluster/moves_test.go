package cluster

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// moving is a state to which commands are given through their encoding.
type moving struct {
	t    *testing.T
	name string
	s    *State
	ids  uint64
}

func newMoving(t *testing.T, name string, drives, k, m int) *moving {
	t.Helper()
	var list []placement.Drive
	for i := range drives {
		d := newDrive(uint64(i + 1))
		d.Num = uint16(i + 1)
		list = append(list, d)
	}
	l, err := placement.NewLayout(list, erasure.Profile{Data: uint8(k), Parity: uint8(m)}, 3)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := emptyState().apply(1, &command{op: opInit, layout: l})
	return &moving{t: t, name: name, s: s, ids: uint64(drives)}
}

func (m *moving) do(c *command) (any, error) {
	m.t.Helper()
	raw := c.encode()
	back, err := decodeCommand(raw)
	if err != nil || !bytes.Equal(back.encode(), raw) {
		m.t.Fatalf("%s: the command does not come back: %v", m.name, err)
	}
	before := m.s.encode()
	next, result := m.s.apply(m.s.Applied+1, back)
	if !bytes.Equal(m.s.encode(), before) {
		m.t.Fatalf("%s: op %d changed the state that it was applied to", m.name, c.op)
	}
	if err, ok := result.(error); ok {
		next.Applied--
		if !bytes.Equal(next.encode(), before) {
			m.t.Fatalf("%s: op %d was refused, and changed something: %v", m.name, c.op, err)
		}
		next.Applied++
		m.s = next
		return nil, err
	}
	m.s = next
	again, err := decodeState(next.encode())
	if err != nil || !bytes.Equal(again.encode(), next.encode()) {
		m.t.Fatalf("%s: the state does not come back: %v", m.name, err)
	}
	m.check()
	return result, nil
}

func (m *moving) must(c *command) {
	m.t.Helper()
	if _, err := m.do(c); err != nil {
		m.t.Fatalf("%s: op %d: %v", m.name, c.op, err)
	}
}

// check fails unless the plan fits the layout.
func (m *moving) check() {
	m.t.Helper()
	l := m.s.Layout()
	open := l.Moving()
	p, ok := m.s.Plan()
	if ok {
		for _, x := range p.Moves {
			if x.State == MovePublished && m.s.Retired(x.To) && !m.s.replaced(x.To) && !slices.ContainsFunc(p.Moves, func(o PlannedMove) bool {
				return o.Partition == x.Partition && o.Position == x.Position && o.From == x.To
			}) {
				m.t.Fatalf("%s: %+v goes to a drive that was given up, and nobody succeeds it", m.name, x)
			}
			g := l.Group(x.Partition)
			former, _ := g.FormerAt(x.Position)
			switch {
			case x.Joins() && x.State != MovePublished:
				n := 0
				for _, o := range p.Moves {
					if o.Partition == x.Partition && o.Joins() && o.State != MovePublished {
						n++
					}
				}
				if x.Position < len(g.Drives) || g.Position(x.To) >= 0 || len(g.Drives)+n != l.N() || m.s.Retired(x.To) {
					m.t.Fatalf("%s: %+v, one of %d, cannot be made in %+v", m.name, x, n, g)
				}
			case x.State == MovePublished:
				if g.Drives[x.Position] != x.To || former != x.From || x.At == 0 {
					m.t.Fatalf("%s: %+v is published in %+v", m.name, x, g)
				}
				open = slices.DeleteFunc(open, func(o placement.Move) bool { return o == x.Move })
			case g.Drives[x.Position] != x.From || former != 0 && !m.s.succeeds(x.Move) || m.s.Retired(x.To):
				m.t.Fatalf("%s: %+v cannot be made in %+v", m.name, x, g)
			}
		}
	}
	if len(open) > 0 {
		m.t.Fatalf("%s: positions have a former and no plan: %v", m.name, open)
	}
}

func (m *moving) term() uint64 { return m.s.moves.plan.Term }

// plan returns moves to other drives that fit the layout, and each other.
func (m *moving) plan(rnd *rand.Rand, most int) (list []placement.Move) {
	l := m.s.Layout()
	drives := l.Drives()
	for range most {
		p := uint32(rnd.IntN(int(l.Partitions())))
		pos := rnd.IntN(l.N())
		mv := placement.Move{Partition: p, Position: pos, From: l.Group(p).Drives[pos], To: drives[rnd.IntN(len(drives))].Num}
		clash := slices.ContainsFunc(list, func(o placement.Move) bool {
			return o.Partition == p && (o.Position == pos || o.To == mv.To || o.To == mv.From || o.From == mv.To)
		})
		if !clash && l.MayMove(mv) == nil && !m.s.replaced(mv.From) && !m.s.Retired(mv.To) && (rnd.IntN(9) == 0 || !m.s.comes(mv.To)) {
			list = append(list, mv)
		}
	}
	return list
}

// replace ends the replacements that are open.
func (m *moving) replace() {
	for _, r := range slices.Clone(m.s.Replacements()) {
		i := slices.IndexFunc(m.s.replacements, func(x Replacement) bool { return x.ID == r.ID })
		if i < 0 {
			continue
		}
		r = m.s.replacements[i]
		if parts := m.s.Layout().PartitionsOf(r.Old); len(parts) > 0 {
			m.must(&command{op: opPublishSwap, id: r.ID, term: r.Term, partitions: parts})
		}
		m.must(&command{op: opFinishMembership, id: r.ID, term: r.Term})
		m.must(&command{op: opFinishReplace, id: r.ID, term: r.Term})
	}
}

// finish makes all moves of the plan.
func (m *moving) finish() {
	m.t.Helper()
	for range 1000 {
		p, ok := m.s.Plan()
		if !ok {
			return
		}
		m.must(&command{op: opTakeOverPlan, id: p.ID})
		p, _ = m.s.Plan()
		for _, x := range p.Moves {
			switch x.State {
			case MovePlanned:
				if m.s.mayMove(x.Move) != nil {
					continue // the shards of another position must move first
				}
				m.must(&command{op: opBeginMoves, id: p.ID, term: p.Term, move: moveCommand{moves: []placement.Move{x.Move}}})
				fallthrough
			case MoveBegun:
				if m.s.mayMove(x.Move) == nil {
					m.must(&command{op: opPublishMoves, id: p.ID, term: p.Term, move: moveCommand{moves: []placement.Move{x.Move}, spreads: []uint32{1}, fences: m.s.DeletionFences()}})
				}
			case MovePublished:
				if m.s.Retired(x.To) {
					continue // it has a successor
				}
				m.must(&command{op: opMovesDone, id: p.ID, term: p.Term, move: moveCommand{moves: []placement.Move{x.Move}}})
			}
		}
		if len(p.Moves) > 0 {
			continue
		}
		for _, num := range p.Leaving {
			m.must(&command{op: opReleaseDrive, id: p.ID, term: p.Term, old: num})
		}
	}
	m.t.Fatalf("%s: the plan does not end: %+v", m.name, m.s.moves.plan)
}

// Moves, losses of drives and reverts in any order: the plan fits the layout throughout, and can always be ended.
func TestRandomPlansFitTheLayoutAndEnd(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	seen := map[string]int{}
	for round := range 25 {
		k, par := 1+rnd.IntN(3), rnd.IntN(3)
		m := newMoving(t, fmt.Sprintf("seed %d, round %d", seed, round), k+par+1+rnd.IntN(4), k, par)
		for range 60 {
			p, open := m.s.Plan()
			c := &command{}
			switch x := rnd.IntN(10); {
			case !open && x < 6:
				c.op, c.time = opApplyPlan, 5
				c.move = moveCommand{layout: m.s.Layout().Number() - uint64(rnd.IntN(5)/4), moves: m.plan(rnd, 1+rnd.IntN(12))}
			case x == 0 && len(m.s.Replacements()) < 2:
				m.ids++
				drives := m.s.Layout().Drives()
				c = &command{op: opBeginReplace, old: drives[rnd.IntN(len(drives))].Num, drive: newDrive(m.ids), path: "/p"}
			case x == 1 && len(m.s.Replacements()) > 0:
				r := m.s.Replacements()[0]
				c = &command{op: opPublishSwap, id: r.ID, term: r.Term}
				if parts := m.s.Layout().PartitionsOf(r.Old); len(parts) > 0 {
					c.partitions = parts[:1+rnd.IntN(len(parts))]
				}
			case x == 2:
				m.replace()
				continue
			case x == 3 && len(m.s.Layout().Drives()) > 0:
				var drives []uint16
				for _, d := range m.s.Layout().Drives() {
					if !m.s.replaced(d.Num) && rnd.IntN(4) == 0 {
						drives = append(drives, d.Num)
					}
				}
				list, err := m.s.Successors(drives, func(num uint16) bool { return num%7 != 6 })
				if err != nil {
					continue
				}
				c = &command{op: opGiveUp, move: moveCommand{leaving: drives, moves: list}}
				if rnd.IntN(8) == 0 {
					c.move.moves = nil
				}
			case !open:
				continue
			case x == 6 && rnd.IntN(3) == 0:
				c.op, c.id = opRevertPlan, p.ID
			case x == 4:
				c.op, c.id = opTakeOverPlan, p.ID
			default:
				c.op, c.id, c.term = opBeginMoves+opCode(rnd.IntN(3)), p.ID, p.Term+uint64(rnd.IntN(8)/7)
				for _, mv := range p.Moves {
					if rnd.IntN(2) == 0 && !slices.ContainsFunc(c.move.moves, func(o placement.Move) bool { return o.Partition == mv.Partition }) {
						c.move.moves = append(c.move.moves, mv.Move)
						if c.op == opPublishMoves {
							c.move.spreads = append(c.move.spreads, uint32(1+rnd.IntN(m.s.Layout().N())))
						}
					}
				}
			}
			_, err := m.do(c)
			if c.op == opApplyPlan && err == nil && m.s.moves.plan.Layout != m.s.Layout().Number() {
				t.Fatalf("%s: a stale plan was taken", m.name)
			}
			seen[fmt.Sprint(c.op, " ", err == nil)]++
			if now := m.s.moves.plan; now != nil && slices.ContainsFunc(now.Moves, func(x PlannedMove) bool { return m.s.succeeds(x.Move) }) {
				seen["successions"]++
			}
		}
		m.replace()
		m.finish()
		if list := m.s.Layout().Moving(); len(list) > 0 {
			t.Fatalf("%s: the plan is over, and shards are to move: %v", m.name, list)
		}
	}
	for _, op := range []opCode{opApplyPlan, opTakeOverPlan, opBeginMoves, opPublishMoves, opMovesDone, opRevertPlan, opGiveUp} {
		if seen[fmt.Sprint(op, " true")] == 0 {
			t.Errorf("seed %d: op %d never succeeded: %v", seed, op, seen)
		}
	}
	if seen["successions"] == 0 {
		t.Errorf("seed %d: no place was on its way to a drive that was given up: %v", seed, seen)
	}
	t.Log(seen)
}

func TestAPlanForAnotherLayoutIsRefused(t *testing.T) {
	m := newMoving(t, "stale", 5, 2, 2)
	rnd := rand.New(rand.NewPCG(1, 1))
	c := &command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: m.plan(rnd, 5)}}
	if len(c.move.moves) == 0 {
		t.Fatal("no moves")
	}
	m.must(&command{op: opBeginReplace, old: m.s.Layout().Drives()[0].Num, drive: newDrive(99)}) // the layout is another one now
	if _, err := m.do(c); !errs.Is(err, errs.Stale) {
		t.Fatalf("got %v, want stale", err)
	}
}

// A deletion that began after the members of the next epoch were told the fences may have counted a drive that
// leaves with this publication.
func TestAPublicationKnowsTheDeletionsOfBuckets(t *testing.T) {
	m := newMoving(t, "fences", 5, 2, 2)
	list := m.plan(rand.New(rand.NewPCG(1, 1)), 1)
	for len(list) == 0 {
		list = m.plan(rand.New(rand.NewPCG(rand.Uint64(), 1)), 5)[:1]
	}
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: list}})
	m.must(&command{op: opTakeOverPlan, id: m.s.moves.plan.ID})
	m.must(&command{op: opBeginMoves, id: m.s.moves.plan.ID, term: m.term(), move: moveCommand{moves: list}})
	m.must(&command{op: opCreateBucket, bucket: Bucket{Name: "bkt"}})
	publish := &command{op: opPublishMoves, id: m.s.moves.plan.ID, term: m.term(),
		move: moveCommand{moves: list, spreads: []uint32{1}, fences: m.s.DeletionFences()}}
	m.must(&command{op: opBeginDelete, id: 1})
	if _, err := m.do(publish); !errs.Is(err, errs.Conflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	publish.move.fences = m.s.DeletionFences()
	m.must(publish)
}

func TestADriveLeavesWhenItIsNothingAnyMore(t *testing.T) {
	m := newMoving(t, "leaving", 5, 2, 2)
	l := m.s.Layout()
	var list []placement.Move
	for _, p := range l.PartitionsOf(1) {
		g := l.Group(p)
		for _, d := range l.Drives() {
			if g.Position(d.Num) < 0 {
				list = append(list, placement.Move{Partition: p, Position: g.Position(1), From: 1, To: d.Num})
				break
			}
		}
	}
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: l.Number(), moves: list, leaving: []uint16{1}}})
	id := m.s.moves.plan.ID
	m.must(&command{op: opTakeOverPlan, id: id})
	release := &command{op: opReleaseDrive, id: id, term: m.term(), old: 1}
	refused := func(when string) {
		t.Helper()
		if _, err := m.do(release); !errs.Is(err, errs.Invalid) {
			t.Fatalf("%s: got %v", when, err)
		}
	}
	refused("as a member")
	spreads := slices.Repeat([]uint32{1}, len(list))
	m.must(&command{op: opBeginMoves, id: id, term: m.term(), move: moveCommand{moves: list}})
	m.must(&command{op: opPublishMoves, id: id, term: m.term(), move: moveCommand{moves: list, spreads: spreads}})
	refused("as a former member")
	m.must(&command{op: opMovesDone, id: id, term: m.term(), move: moveCommand{moves: list[1:]}})
	refused("as a former member of one partition")
	m.must(&command{op: opMovesDone, id: id, term: m.term(), move: moveCommand{moves: list}})
	m.must(release)
	if _, ok := m.s.Layout().Drive(1); ok || !m.s.Retired(1) {
		t.Error("the drive is still in the layout, or its number may be given again")
	}
	if _, ok := m.s.Plan(); ok || len(m.s.EndedPlans()) != 1 || m.s.EndedPlans()[0].Done != len(list) {
		t.Errorf("the plan is not over: %+v", m.s.moves)
	}
	m.must(release) // who has not heard the answer
}
