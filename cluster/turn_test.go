package cluster

import (
	"slices"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// begun opens a plan, and begins its moves of one partition.
func (m *moving) begun(list []placement.Move, leaving []uint16, profile placement.Profiles) {
	m.t.Helper()
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: list, leaving: leaving, profile: profile}})
	id := m.s.moves.plan.ID
	m.must(&command{op: opTakeOverPlan, id: id})
	first, _ := m.of(list, list[0].Partition)
	m.must(&command{op: opBeginMoves, id: id, term: m.term(), move: moveCommand{moves: first}})
}

// abandon gives drives up, with the successors that the state names.
func (m *moving) abandon(drives ...uint16) error {
	m.t.Helper()
	successors, err := m.s.Successors(drives, func(num uint16) bool { return !slices.Contains(drives, num) })
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = m.do(&command{op: opGiveUp, move: moveCommand{leaving: drives, moves: successors}})
	return err
}

// A begun move cannot end once so many others are given up. Its newcomer takes the place of one of those.
func TestABegunMoveIsTurnedWhereTooFewMembersAreLeft(t *testing.T) {
	m := newMoving(t, "turned", 9, 4, 2)
	from := m.s.Layout().Group(0).Drives[0]
	list := slices.DeleteFunc(m.drained(from), func(x placement.Move) bool { return x.Partition != 0 })
	mv := list[0]
	m.begun(list, nil, placement.Profiles{})
	members := m.s.Layout().Group(0).Drives
	one, two := members[1], members[2]
	if err := m.abandon(one); err != nil {
		t.Fatal(err)
	}
	if got := m.s.moves.plan.Moves; len(got) != 1 || got[0].Move != mv || got[0].State != MoveBegun {
		t.Fatalf("five of six are left, and the move is %+v", got)
	}
	if _, err := m.do(&command{op: opGiveUp, move: moveCommand{leaving: []uint16{two}, moves: []placement.Move{{Partition: 0, Position: 1, From: one, To: from}}}}); !errs.Is(err, errs.Stale) {
		t.Errorf("a member takes another place: %v", err)
	}
	before := m.term()
	if err := m.abandon(two); err != nil {
		t.Fatal(err)
	}
	if m.term() == before {
		t.Error("movers of before may still publish")
	}
	want := placement.Move{Partition: 0, Position: 1, From: one, To: mv.To}
	if got := m.s.moves.plan.Moves; len(got) != 1 || got[0].Move != want || got[0].State != MoveBegun {
		t.Fatalf("four of six are left, and the move is %+v, want %+v", got, want)
	}
	m.finish()
	if g := m.s.Layout().Group(0); g.Drives[0] != from || g.Drives[1] != mv.To {
		t.Errorf("the partition has %v", g.Drives)
	}
}

// The plan was to empty the drive, which stays in one partition now: the plan ends without its leaving.
func TestADriveThatStaysIsNotWaitedFor(t *testing.T) {
	m := newMoving(t, "stays", 9, 4, 2)
	from := m.s.Layout().Group(0).Drives[0]
	members := m.s.Layout().Group(0).Drives
	m.begun(m.drained(from), []uint16{from}, placement.Profiles{})
	if err := m.abandon(members[1], members[2]); err != nil {
		t.Fatal(err)
	}
	if got := m.s.moves.plan.Leaving; len(got) != 0 {
		t.Errorf("%v are to leave, and %d is a member to the end", got, from)
	}
	m.finish()
	if _, there := m.s.Layout().Drive(from); !there || m.s.Retired(from) {
		t.Error("a drive that is a member has left")
	}
}

// One of two dies while the partition becomes wider.
func TestABegunWideningIsTurnedWhereTooFewMembersAreLeft(t *testing.T) {
	m := newMoving(t, "turned", 6, 1, 1)
	list, _ := m.of(m.joining(4), 3)
	m.begun(list, nil, profilesOf(2, 2))
	members := m.s.Layout().Group(3).Drives
	// A new drive in its place would leave the change without an end.
	if _, err := m.do(&command{op: opBeginReplace, old: members[1], drive: newDrive(99)}); !errs.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "--dead") {
		t.Errorf("it is replaced: %v", err)
	}
	if err := m.abandon(members[1]); err != nil {
		t.Fatal(err)
	}
	want := placement.Move{Partition: 3, Position: 1, From: members[1], To: list[0].To}
	if got := m.s.moves.plan.Moves; len(got) != 1 || got[0].Move != want || got[0].State != MoveBegun {
		t.Fatalf("one of two is left, and the moves are %+v, want %+v", got, want)
	}
	if l := m.s.Layout(); l.Widening() || l.Profile() != (erasure.Profile{Data: 1, Parity: 1}) {
		t.Errorf("nothing becomes wider any more, and the layout is one of %s", l.Profile())
	}
	m.finish()
	if g := m.s.Layout().Group(3); !slices.Equal(g.Drives, []uint16{members[0], list[0].To}) {
		t.Errorf("the partition has %v", g.Drives)
	}
}

// The newcomer dies together with the member.
func TestABegunMoveIsTurnedToAnotherNewcomerWhereItsOwnIsDeadToo(t *testing.T) {
	m := newMoving(t, "both", 40, 4, 2)
	from := m.s.Layout().Group(0).Drives[0]
	members := m.s.Layout().Group(0).Drives
	list := slices.DeleteFunc(m.drained(from), func(x placement.Move) bool { return x.Partition != 0 })
	m.begun(list, nil, placement.Profiles{})
	if err := m.abandon(members[1], members[2], list[0].To); err != nil {
		t.Fatal(err)
	}
	got := m.s.moves.plan.Moves
	if len(got) != 1 || got[0].From != members[1] || got[0].To == list[0].To || slices.Contains(members, got[0].To) {
		t.Fatalf("the move is %+v of members %v", got, members)
	}
	m.finish()
}

// A drive is replaced after the mover looked who is there, and before it begins: it must look again.
func TestAReplacementHasTheMoverLookAgain(t *testing.T) {
	m := newMoving(t, "again", 9, 4, 2)
	members := m.s.Layout().Group(0).Drives
	list := slices.DeleteFunc(m.drained(members[0]), func(x placement.Move) bool { return x.Partition != 0 })
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: list}})
	id := m.s.moves.plan.ID
	m.must(&command{op: opTakeOverPlan, id: id})
	before := m.term()
	m.must(&command{op: opBeginReplace, old: members[1], drive: newDrive(99)})
	if _, err := m.do(&command{op: opBeginMoves, id: id, term: before, move: moveCommand{moves: list}}); !errs.Is(err, errs.Stale) {
		t.Errorf("it begins by what it saw before: %v", err)
	}
}
