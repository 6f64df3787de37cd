package cluster

import (
	"slices"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// drained are moves that take everything off drives.
func (m *moving) drained(drives ...uint16) (list []placement.Move) {
	l := m.s.Layout()
	for p := range l.Partitions() {
		row := slices.Clone(l.Group(p).Drives)
		for pos, num := range l.Group(p).Drives {
			if !slices.Contains(drives, num) {
				continue
			}
			for _, d := range l.Drives() {
				if !slices.Contains(row, d.Num) && !slices.Contains(drives, d.Num) {
					row = append(row, d.Num)
					list = append(list, placement.Move{Partition: p, Position: pos, From: num, To: d.Num})
					break
				}
			}
		}
	}
	return list
}

func TestDrivesThatNobodyReplacesAreGivenUpAndLeave(t *testing.T) {
	m := newMoving(t, "given up", 7, 2, 2)
	giveUp := func(drives ...uint16) error {
		_, err := m.do(&command{op: opGiveUp, move: moveCommand{leaving: drives}})
		return err
	}
	if err := giveUp(99); !errs.Is(err, errs.NotFound) {
		t.Errorf("a drive that there is not: %v", err)
	}
	if err := giveUp(1, 2, 3, 4); !errs.Is(err, errs.Precondition) {
		t.Errorf("so many that too few are left: %v", err)
	}
	for range 2 { // who asks again has not heard the answer
		if err := giveUp(1, 2); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.s.GivenUp(); !slices.Equal(got, []uint16{1, 2}) {
		t.Fatalf("given up are %v", got)
	}
	if _, err := m.do(&command{op: opBeginReplace, old: 1, drive: newDrive(50)}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a replacement of a drive that was given up: %v", err)
	}
	to := placement.Move{Partition: 0, From: 3, To: 1}
	for p := range m.s.Layout().Partitions() {
		if g := m.s.Layout().Group(p); g.Position(3) >= 0 && g.Position(1) < 0 {
			to.Partition, to.Position = p, g.Position(3)
		}
	}
	if _, err := m.do(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: []placement.Move{to}}}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a plan that gives a place to a drive that was given up: %v", err)
	}
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: m.drained(1, 2), leaving: []uint16{1, 2}}})
	m.finish()
	for _, num := range []uint16{1, 2} {
		if _, there := m.s.Layout().Drive(num); there || !m.s.Retired(num) {
			t.Errorf("drive %d is still in the layout", num)
		}
	}
	if len(m.s.GivenUp()) > 0 {
		t.Errorf("still given up: %v", m.s.GivenUp())
	}
}

// A node dies for good while one of its drives is being replaced. What the newcomer has not taken goes to others, by the
// transition for which partitions may stand still.
func TestAReplacementOfADeadNodeIsTakenOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		begun bool
		taken int // partitions
	}{{"nobody moves it yet", false, 0}, {"it was begun", true, 0}, {"it is half done", true, 3}, {"all partitions are taken", true, 99}} {
		m := newMoving(t, c.name, 9, 2, 2)
		m.must(&command{op: opBeginReplace, old: 1, drive: newDrive(99)})
		r := m.s.Replacements()[0]
		parts := m.s.Layout().PartitionsOf(1)
		if c.begun {
			m.must(&command{op: opTakeOver, id: r.ID})
			r = m.s.Replacements()[0]
			if n := min(c.taken, len(parts)); n > 0 {
				m.must(&command{op: opPublishSwap, id: r.ID, term: r.Term, partitions: parts[:n]})
			}
		}
		left := m.s.Layout().PartitionsOf(1)
		if c.begun && len(left) > 0 {
			if _, err := m.do(&command{op: opGiveUp, move: moveCommand{leaving: []uint16{1, r.New}}}); !errs.Is(err, errs.Stale) {
				t.Errorf("%s: without successors: %v", c.name, err)
			}
		}
		for range 2 { // who asks again has not heard the answer
			if err := m.abandon(1, r.New); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		if !slices.Equal(m.s.GivenUp(), []uint16{1, r.New}) || len(m.s.Replacements()) != 0 {
			t.Errorf("%s: given up are %v, replacements %+v", c.name, m.s.GivenUp(), m.s.Replacements())
		}
		if _, err := m.do(&command{op: opPublishSwap, id: r.ID, term: r.Term, partitions: left}); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s: the mover of before publishes: %v", c.name, err)
		}
		plan, open := m.s.Plan()
		if open != (c.begun && len(left) > 0) || open && (plan.ID != r.ID || plan.Term <= r.Term || len(plan.Moves) != len(left)) {
			t.Fatalf("%s: %d partitions are left, and the plan is %+v", c.name, len(left), plan)
		}
		m.finish()
		if got := m.s.Layout().PartitionsOf(1); open && len(got) > 0 {
			t.Errorf("%s: the drive of before still has %v", c.name, got)
		}
		m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: m.drained(1, r.New), leaving: []uint16{1, r.New}}})
		m.finish()
		if list := m.s.GivenUp(); len(list) > 0 {
			t.Errorf("%s: still in the layout: %v", c.name, list)
		}
	}
}

// Two transitions at once would have to have one number, and an open plan has another.
func TestAReplacementIsNotTakenOverBesideAPlan(t *testing.T) {
	m := newMoving(t, "beside a plan", 9, 2, 2)
	m.must(&command{op: opBeginReplace, old: 1, drive: newDrive(99)})
	r := m.s.Replacements()[0]
	m.must(&command{op: opTakeOver, id: r.ID})
	var list []placement.Move
	for p := range m.s.Layout().Partitions() {
		g := m.s.Layout().Group(p)
		for to := uint16(2); to <= 9 && g.Position(1) < 0 && len(list) == 0; to++ {
			if g.Position(to) < 0 {
				list = append(list, placement.Move{Partition: p, From: g.Drives[0], To: to})
			}
		}
	}
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: m.s.Layout().Number(), moves: list}})
	if err := m.abandon(1, r.New); !errs.Is(err, errs.Precondition) {
		t.Fatalf("got %v", err)
	}
	m.must(&command{op: opRevertPlan, id: m.s.moves.plan.ID})
	if err := m.abandon(1, r.New); err != nil {
		t.Fatal(err)
	}
}

func TestWhatGivingUpLosesIsToldByPartition(t *testing.T) {
	m := newMoving(t, "losses", 4, 2, 2) // every partition has every drive; W is 3, Z is 3
	none := map[string][]byte{placement.NoReduced: []byte("1")}
	m.must(&command{op: opCreateBucket, bucket: Bucket{Name: "standard", Config: none}})
	made, err := m.do(&command{op: opCreateBucket, bucket: Bucket{Name: "both", Config: none}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		drives                       []uint16
		stuck, uncertain, unreadable int
	}{
		{nil, 0, 0, 0},
		{[]uint16{1}, 0, 0, 0},
		{[]uint16{1, 2}, 0, 8, 0},
		{[]uint16{1, 2, 3}, 8, 0, 8},
	} {
		x := m.s.LossesOf(c.drives)
		if len(x.Stuck) != c.stuck || len(x.Uncertain) != c.uncertain || len(x.Unreadable) != c.unreadable || len(x.Earlier)+len(x.Reduced) != 0 {
			t.Errorf("without %v, and without data of REDUCED_REDUNDANCY: %+v", c.drives, x)
		}
	}
	m.must(&command{op: opSetConfig, id: made.(Bucket).ID, document: placement.NoReduced})
	if x := m.s.LossesOf([]uint16{1, 2}); len(x.Reduced) != 8 || len(x.Unreadable)+len(x.Earlier) != 0 {
		t.Errorf("with data of REDUCED_REDUNDANCY, which has a shard less: %+v", x)
	}
}

// A newcomer has no shards before its replacement is over, although it is a member.
func TestADriveThatIsBeingFilledHasNoShards(t *testing.T) {
	m := newMoving(t, "filled", 4, 2, 2)
	m.must(&command{op: opBeginReplace, old: 1, drive: newDrive(99)})
	r := m.s.Replacements()[0]
	m.must(&command{op: opTakeOver, id: r.ID})
	term := m.s.Replacements()[0].Term
	m.must(&command{op: opPublishSwap, id: r.ID, term: term, partitions: m.s.Layout().PartitionsOf(1)})
	m.must(&command{op: opFinishMembership, id: r.ID, term: term})
	m.must(&command{op: opCreateBucket, bucket: Bucket{Name: "of before"}})
	if x := m.s.LossesOf([]uint16{2}); len(x.Unreadable) != 0 || len(x.Reduced) != 8 {
		t.Errorf("without one more: %+v", x)
	}
	if x := m.s.LossesOf([]uint16{2, 3}); len(x.Unreadable) != 8 {
		t.Errorf("without two more, with one that has nothing yet: %+v", x)
	}
}

// Data of before a widening lie on the drives of before, until they are re-coded.
func TestGivingUpCountsDataOfAnEarlierProfile(t *testing.T) {
	m := newMoving(t, "earlier", 4, 2, 2)
	l, err := placement.NewLayout(m.s.Layout().Drives()[:1], erasure.Profile{Data: 1}, 3)
	if err != nil {
		t.Fatal(err)
	}
	first := l.Drives()[0].Num
	for _, d := range m.s.Layout().Drives()[1:] {
		if l, err = l.WithDrive(d); err != nil {
			t.Fatal(err)
		}
	}
	p := erasure.Profile{Data: 2, Parity: 2}
	if l, err = l.WithProfile(p, placement.ReducedProfile(p)); err != nil {
		t.Fatal(err)
	}
	for part := range l.Partitions() {
		var list []placement.Move
		for i, d := range l.Drives()[1:] {
			list = append(list, placement.Move{Partition: part, Position: i + 1, To: d.Num})
		}
		if l, err = l.Move(list, slices.Repeat([]int{1}, len(list))); err != nil {
			t.Fatal(err)
		}
	}
	m.s.layout = l
	if x := m.s.LossesOf([]uint16{first}); len(x.Earlier) != int(l.Partitions()) {
		t.Errorf("without the drive of before: %+v", x)
	}
	if x := m.s.LossesOf([]uint16{first + 1}); len(x.Earlier) != 0 || len(x.Unreadable) != 0 {
		t.Errorf("without one that came: %+v", x)
	}
}

// A drive dies for good after it became a member, and before its shards have come: another one succeeds it, and
// they come from where they were on their way from.
func TestThePlacesOfADriveThatDiesWhileItIsFilledGoToAnother(t *testing.T) {
	m := newMoving(t, "successor", 7, 2, 2)
	l := m.s.Layout()
	list := m.drained(1)
	dead := list[0].To
	list = slices.DeleteFunc(list, func(x placement.Move) bool { return x.To != dead })[:1]
	mv := list[0]
	m.must(&command{op: opApplyPlan, move: moveCommand{layout: l.Number(), moves: list}})
	id := m.s.moves.plan.ID
	m.must(&command{op: opTakeOverPlan, id: id})
	m.must(&command{op: opBeginMoves, id: id, term: m.term(), move: moveCommand{moves: list}})
	m.must(&command{op: opPublishMoves, id: id, term: m.term(), move: moveCommand{moves: list, spreads: []uint32{1}}})
	giveUp := &command{op: opGiveUp, move: moveCommand{leaving: []uint16{dead}}}
	if _, err := m.do(giveUp); !errs.Is(err, errs.Stale) {
		t.Fatalf("without a successor: %v", err)
	}
	var err error
	if giveUp.move.moves, err = m.s.Successors([]uint16{dead}, func(num uint16) bool { return true }); err != nil || len(giveUp.move.moves) != 1 {
		t.Fatalf("the successors are %v, %v", giveUp.move.moves, err)
	}
	successor := giveUp.move.moves[0].To
	before := m.term()
	m.must(giveUp)
	if m.term() == before {
		t.Error("the mover does not look again")
	}
	if _, err := m.do(&command{op: opMovesDone, id: id, term: m.term(), move: moveCommand{moves: list}}); !errs.Is(err, errs.Invalid) {
		t.Errorf("all is on a drive that was given up: %v", err)
	}
	m.must(&command{op: opRevertPlan, id: id}) // the succession is part of what was begun
	then := []placement.Move{{Partition: mv.Partition, Position: mv.Position, From: dead, To: successor}}
	m.must(&command{op: opBeginMoves, id: id, term: m.term(), move: moveCommand{moves: then}})
	m.must(&command{op: opPublishMoves, id: id, term: m.term(), move: moveCommand{moves: then, spreads: []uint32{1}}})
	g := m.s.Layout().Group(mv.Partition)
	if former, _ := g.FormerAt(mv.Position); g.Drives[mv.Position] != successor || former != mv.From {
		t.Fatalf("the position is drive %d's, with the former %d; want drive %d with %d", g.Drives[mv.Position], former, successor, mv.From)
	}
	m.must(&command{op: opMovesDone, id: id, term: m.term(), move: moveCommand{moves: []placement.Move{{Partition: mv.Partition, Position: mv.Position, From: mv.From, To: successor}}}})
	if _, open := m.s.Plan(); open || len(m.s.Layout().Moving()) > 0 {
		t.Errorf("the plan is not over: %+v", m.s.moves)
	}
}
