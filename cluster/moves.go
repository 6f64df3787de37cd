package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// MoveState is how far a move of a plan has come.
type MoveState uint8

// A move is planned, and can be dropped; then begun, and members may be wedged for it, so that only its own
// plan can end it; then published, and its shards follow. One whose shards have moved is not in the plan any more.
const (
	MovePlanned MoveState = iota
	MoveBegun
	MovePublished
)

// PlannedMove is one move of a plan that is not over.
type PlannedMove struct {
	placement.Move
	State MoveState
	At    uint64 // published: the number of the layout that it came with
}

// MovePlan is a transition that gives positions from drives that live to others, at most one at a time. It
// ends when the shards of all have moved, and the drives that it was to empty have left the layout.
type MovePlan struct {
	ID       uint64 // from the same numbers as those of replacements, never used again
	Term     uint64 // of its mover; 0: nobody has taken it over yet
	Layout   uint64 // number of the layout that it was computed from
	Begun    int64  // Unix nanoseconds
	Total    int    // moves that it had, but for those that were dropped
	Done     int    // moves that are over
	Reverted bool   // what was not begun when it was reverted was dropped
	Moves    []PlannedMove
	Leaving  []uint16 // drives that leave the layout once they are nothing in it; ascending
}

// PlanRecord is what is kept of a plan that has ended.
type PlanRecord struct {
	ID       uint64
	Layout   uint64 // that it was computed from
	Begun    int64  // Unix nanoseconds
	Done     int    // moves that were made
	Reverted bool
}

// maxPlanRecords is how many plans that ended are remembered.
const maxPlanRecords = 32

// moves is what the state knows of moves. It is immutable.
type moves struct {
	plan  *MovePlan    // nil: none is open
	ended []PlanRecord // oldest first
}

// moveCommand is what the commands of this file have of their own.
type moveCommand struct {
	layout  uint64 // that the plan was computed from
	moves   []placement.Move
	spreads []uint32 // by move
	leaving []uint16
	fences  []BucketFence
	profile placement.Profiles // that the layout is to have; zero: it stays
}

// BucketFence is the epoch of a bucket that is being deleted.
type BucketFence struct{ Bucket, Epoch uint64 }

// Plan returns the open plan of moves. Read only.
func (s *State) Plan() (*MovePlan, bool) { return s.moves.plan, s.moves.plan != nil }

// EndedPlans returns the last plans that have ended, oldest first. Read only.
func (s *State) EndedPlans() []PlanRecord { return s.moves.ended }

// DeletionFences returns the fences of the buckets that are being deleted, for PublishMoves.
func (s *State) DeletionFences() (list []BucketFence) {
	s.byID.Root().Walk(func(_ []byte, x any) bool {
		if b := x.(*Bucket); b.Deleting {
			list = append(list, BucketFence{b.ID, b.Epoch})
		}
		return false
	})
	return list
}

// applyMoves is apply for the commands of this file.
func (s *State) applyMoves(next *State, c *command) (any, error) {
	const op = "cluster.apply"
	switch c.op {
	case opApplyPlan:
		return s.applyPlan(next, c)
	case opGiveUp:
		return s.giveUp(next, c)
	}
	if s.moves.plan == nil || s.moves.plan.ID != c.id {
		ended := slices.ContainsFunc(s.moves.ended, func(r PlanRecord) bool { return r.ID == c.id })
		if ended && (c.op == opMovesDone || c.op == opRevertPlan || c.op == opReleaseDrive) {
			return nil, nil // it is over: who asks again has not heard the answer
		}
		return nil, errs.E(op, errs.NotFound, fmt.Sprintf("there is no open plan %d", c.id))
	}
	p := *s.moves.plan
	p.Moves = slices.Clone(p.Moves)
	if c.op != opTakeOverPlan && c.op != opRevertPlan && c.term != p.Term {
		return nil, errs.E(op, errs.Stale, fmt.Sprintf("plan %d was taken over: its term is %d, not %d", p.ID, p.Term, c.term))
	}
	var result any
	var err error
	switch c.op {
	case opTakeOverPlan:
		p.Term++
		result = encoded(protowire.AppendVarint(nil, p.Term))
	case opBeginMoves:
		err = s.beginMoves(&p, c.move.moves)
	case opPublishMoves:
		err = s.publishMoves(next, &p, c)
	case opMovesDone:
		err = s.movesDone(next, &p, c.move.moves)
	case opRevertPlan:
		s.revert(&p)
		next.layout = s.narrowed(&p)
	case opReleaseDrive:
		err = s.releaseDrive(next, &p, c.old)
	}
	if err != nil {
		return nil, err
	}
	next.moves = s.moves.with(&p)
	return result, nil
}

// with returns m with p as the open plan, or as one that has ended if nothing of it is left.
func (m moves) with(p *MovePlan) moves {
	if len(p.Moves) > 0 || len(p.Leaving) > 0 {
		m.plan = p
		return m
	}
	m.plan = nil
	r := PlanRecord{ID: p.ID, Layout: p.Layout, Begun: p.Begun, Done: p.Done, Reverted: p.Reverted}
	from := max(0, len(m.ended)-maxPlanRecords+1)
	m.ended = append(slices.Clone(m.ended[from:]), r)
	return m
}

// applyPlan opens a plan, if the layout is still the one that it was computed from.
func (s *State) applyPlan(next *State, c *command) (any, error) {
	const op = "cluster.ApplyPlan"
	refuse := func(k errs.Kind, format string, args ...any) (any, error) {
		return nil, errs.E(op, k, fmt.Sprintf(format, args...))
	}
	l := s.layout
	switch {
	case s.moves.plan != nil:
		return refuse(errs.Exists, "plan %d is not over: wait for it, or revert it", s.moves.plan.ID)
	case c.move.layout != l.Number():
		return refuse(errs.Stale, "the plan is for layout %d, and the layout is %d now: plan again", c.move.layout, l.Number())
	case len(c.move.moves) == 0 && len(c.move.leaving) == 0:
		return refuse(errs.Invalid, "the plan has no moves")
	}
	l, err := s.widerLayout(c)
	if err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	p := &MovePlan{Layout: c.move.layout, Begun: c.time, Total: len(c.move.moves), Leaving: slices.Clone(c.move.leaving)}
	slices.Sort(p.Leaving)
	for i, num := range p.Leaving {
		if _, ok := l.Drive(num); !ok || s.replaced(num) || i > 0 && p.Leaving[i-1] == num {
			return refuse(errs.Invalid, "drive %d cannot leave: it is not in the layout, is replaced, or named twice", num)
		}
	}
	type role struct {
		partition uint32
		drive     uint16
	}
	places := make(map[place]bool, len(c.move.moves))
	from, to := make(map[role]bool, len(c.move.moves)), make(map[role]bool, len(c.move.moves))
	for _, m := range c.move.moves {
		if err := l.MayMove(m); err != nil {
			return nil, errs.As(op, errs.Invalid, err)
		}
		if s.replaced(m.From) || s.Retired(m.To) {
			return refuse(errs.Invalid, "drive %d is being replaced, or drive %d is lost", m.From, m.To)
		}
		if s.comes(m.To) {
			return refuse(errs.Invalid, "drive %d is taking the place of another", m.To)
		}
		at := place{m.Partition, m.Position}
		if places[at] || to[role{m.Partition, m.To}] {
			return refuse(errs.Invalid, "partition %d names a position or a newcomer twice", m.Partition)
		}
		places[at], to[role{m.Partition, m.To}] = true, true
		if !m.Joins() {
			from[role{m.Partition, m.From}] = true
		}
		p.Moves = append(p.Moves, PlannedMove{Move: m})
	}
	for r := range to {
		if from[r] {
			return refuse(errs.Invalid, "drive %d leaves partition %d and joins it", r.drive, r.partition)
		}
	}
	// Transitions have one space of numbers: drives know them by nothing else.
	next.lastReplacement++
	p.ID = next.lastReplacement
	next.moves, next.layout = s.moves.with(p), l // the commit point of a plan
	return encoded(protowire.AppendVarint(nil, p.ID)), nil
}

// find returns the index of a move, or -1.
func (p *MovePlan) find(m placement.Move) int {
	return slices.IndexFunc(p.Moves, func(x PlannedMove) bool { return x.Move == m })
}

// beginMoves marks moves, of which members are wedged from now on.
func (s *State) beginMoves(p *MovePlan, list []placement.Move) error {
	for _, m := range list {
		i := p.find(m)
		if i < 0 {
			return errs.E("cluster.BeginMoves", errs.NotFound, "a move is not in the plan any more")
		}
		if p.Moves[i].State != MovePlanned {
			continue
		}
		if err := s.mayMove(m); err != nil {
			return errs.As("cluster.BeginMoves", errs.Invalid, err)
		}
		p.Moves[i].State = MoveBegun
	}
	return nil
}

// publishMoves makes the newcomers of begun moves members. Those that were published before are passed over,
// for who has not heard the answer.
func (s *State) publishMoves(next *State, p *MovePlan, c *command) error {
	const op = "cluster.PublishMoves"
	if len(c.move.spreads) != len(c.move.moves) {
		return errs.E(op, errs.Invalid, "each move has a spread")
	}
	// The members of the next epoch were told the fences. A drive that leaves is alive, and takes a fence like a
	// member: a deletion that began since may have counted it.
	for _, f := range s.DeletionFences() {
		if !slices.Contains(c.move.fences, f) {
			return errs.E(op, errs.Conflict, "the deletion of a bucket has begun since the members were told the fences")
		}
	}
	var todo, successions []placement.Move
	var spreads []int
	var changed []int // indexes of the moves of todo
	for i, m := range c.move.moves {
		at := p.find(m)
		switch {
		case at < 0:
			return errs.E(op, errs.NotFound, "a move is not in the plan any more")
		case p.Moves[at].State == MovePublished:
			continue
		case p.Moves[at].State != MoveBegun:
			return errs.E(op, errs.Invalid, "a move was not begun")
		}
		if s.succeeds(m) {
			successions = append(successions, m)
			continue
		}
		todo, spreads, changed = append(todo, m), append(spreads, int(c.move.spreads[i])), append(changed, at)
	}
	l := s.layout
	if len(todo) > 0 {
		var err error
		if l, err = l.Move(todo, spreads); err != nil {
			return err
		}
		for _, at := range changed {
			p.Moves[at].State, p.Moves[at].At = MovePublished, l.Number()
		}
	}
	l, err := p.publishSuccessions(l, successions)
	if err != nil {
		return err
	}
	next.layout = l // the commit point of a swap
	return nil
}

// movesDone ends moves of which all shards are verified on their new drives.
func (s *State) movesDone(next *State, p *MovePlan, list []placement.Move) error {
	done := make(map[placement.Move]bool, len(list)) // those that are not in the plan were done before
	for _, m := range list {
		done[m] = true
	}
	left := p.Moves[:0]
	for _, m := range p.Moves {
		switch {
		case !done[m.Move]:
			left = append(left, m)
		case m.State != MovePublished:
			return errs.E("cluster.MovesDone", errs.Invalid, "a move was not published")
		case s.Retired(m.To):
			return errs.E("cluster.MovesDone", errs.Invalid, "a drive that is lost holds nothing")
		default:
			p.Done++
		}
	}
	p.Moves = left
	// The commit point: from here on the former drives may let go of their shards.
	next.layout = s.layout.Moved(list)
	return nil
}

// revert drops what was not begun. A succession is part of a move that was.
func (s *State) revert(p *MovePlan) {
	n := len(p.Moves)
	p.Moves = slices.DeleteFunc(p.Moves, func(m PlannedMove) bool { return m.State == MovePlanned && !s.succeeds(m.Move) })
	p.Total -= n - len(p.Moves)
	p.Reverted, p.Leaving = true, nil
}

// releaseDrive takes a drive that is nothing in the layout out of it, for good.
func (s *State) releaseDrive(next *State, p *MovePlan, num uint16) error {
	i := slices.Index(p.Leaving, num)
	if i < 0 {
		return nil // done before, or the plan was reverted
	}
	if _, ok := s.layout.Drive(num); ok {
		l, err := s.layout.Without(num)
		if err != nil {
			return err
		}
		next.layout = l // the commit point of a release
		next.retire(num)
	}
	p.Leaving = slices.Delete(slices.Clone(p.Leaving), i, i+1)
	return nil
}

// retire takes note that a number never serves again.
func (s *State) retire(num uint16) {
	if at, ok := slices.BinarySearch(s.retired, num); !ok {
		s.retired = slices.Insert(slices.Clone(s.retired), at, num)
	}
}

// planReplaced fits the open plan to the loss of a drive, in whose place another comes everywhere. What is not
// begun and has to do with it is dropped; what was begun, to go to it, goes to the newcomer.
func (s *State) planReplaced(old, newcomer uint16) {
	if s.moves.plan == nil {
		return
	}
	p := *s.moves.plan
	n := len(p.Moves)
	p.Moves = slices.DeleteFunc(slices.Clone(p.Moves), func(m PlannedMove) bool {
		return (m.From == old || m.To == old) && m.State == MovePlanned && !s.succeeds(m.Move)
	})
	p.Total -= n - len(p.Moves)
	s.wholeJoins(&p)
	s.layout = s.narrowed(&p)
	for i := range p.Moves {
		if m := &p.Moves[i]; m.To == old && m.State != MovePublished {
			m.To = newcomer
		}
	}
	p.Leaving = slices.DeleteFunc(slices.Clone(p.Leaving), func(num uint16) bool { return num == old })
	p.Term++ // its mover must look again
	s.moves = s.moves.with(&p)
}

// planSwapped fits the open plan to a swap of a replacement. A move of the position that was not published can
// come to nothing any more: the swap ended the epoch that it was for. One that was has another newcomer.
func (s *State) planSwapped(was *placement.Layout, old, newcomer uint16, partitions []uint32) {
	if s.moves.plan == nil {
		return
	}
	p := *s.moves.plan
	list := p.Moves[:0:0]
	changed := false
	for _, m := range p.Moves {
		if slices.Contains(partitions, m.Partition) && was.Group(m.Partition).Position(old) == m.Position {
			changed = true
			if m.State != MovePublished {
				p.Total--
				continue
			}
			m.To = newcomer
		}
		list = append(list, m)
	}
	if !changed {
		return
	}
	p.Moves = list
	p.Term++ // its mover must look again
	s.moves = s.moves.with(&p)
}

// ApplyPlan opens a plan of moves that was computed from the layout of a number, and returns its id. Drives that
// are to leave do so when nothing refers to them any more. profile is what the plan makes partitions wider for; zero if
// it does not. The error is of kind Stale if the layout is
// another one now, Exists while another plan is open, and Invalid if a move, or the profile, does not fit.
func (k *Control) ApplyPlan(ctx context.Context, layout uint64, list []placement.Move, leaving []uint16, profile placement.Profiles) (id uint64, err error) {
	c := &command{op: opApplyPlan, time: time.Now().UnixNano(), move: moveCommand{layout: layout, moves: list, leaving: leaving, profile: profile}}
	return numberOf(k.change(ctx, c))
}

// TakeOverPlan begins the next term of a plan. What movers of earlier terms still want is refused.
func (k *Control) TakeOverPlan(ctx context.Context, id uint64) (term uint64, err error) {
	return numberOf(k.change(ctx, &command{op: opTakeOverPlan, id: id}))
}

// BeginMoves says that members are being wedged for moves: they can no longer be dropped. The error is of kind
// Stale if the plan was taken over since term, NotFound if a move was dropped or the plan is over.
func (k *Control) BeginMoves(ctx context.Context, id, term uint64, list []placement.Move) error {
	_, err := k.change(ctx, &command{op: opBeginMoves, id: id, term: term, move: moveCommand{moves: list}})
	return err
}

// PublishMoves makes the newcomers of moves members, in the next epochs of their partitions, with the spread of
// each. fences are those of the deletions of which the members of the next epochs know: the error is of kind
// Conflict if another has begun. Else it is like that of BeginMoves, or Invalid.
func (k *Control) PublishMoves(ctx context.Context, id, term uint64, list []placement.Move, spreads []int, fences []BucketFence) error {
	c := &command{op: opPublishMoves, id: id, term: term, move: moveCommand{moves: list, fences: fences}}
	for _, f := range spreads {
		c.move.spreads = append(c.move.spreads, uint32(max(f, 0)))
	}
	_, err := k.change(ctx, c)
	return err
}

// MovesDone says that all shards of positions are verified on their new drives: nobody needs what the former
// ones have.
func (k *Control) MovesDone(ctx context.Context, id, term uint64, list []placement.Move) error {
	_, err := k.change(ctx, &command{op: opMovesDone, id: id, term: term, move: moveCommand{moves: list}})
	return err
}

// RevertPlan drops the moves of a plan that are not begun. Those that are published stay: another plan may
// give the places back. No drive leaves.
func (k *Control) RevertPlan(ctx context.Context, id uint64) error {
	_, err := k.change(ctx, &command{op: opRevertPlan, id: id})
	return err
}

// ReleaseDrive takes a drive out of the layout, for good, that a plan was to empty. The error is of kind Invalid
// while it is a member, or a former member, of anything. A voter on it moves first.
func (k *Control) ReleaseDrive(ctx context.Context, id, term uint64, num uint16) error {
	if err := k.evacuate(ctx, num); err != nil {
		return errs.Wrap("cluster.ReleaseDrive", err)
	}
	_, err := k.change(ctx, &command{op: opReleaseDrive, id: id, term: term, old: num})
	return err
}

// numberOf reads a result that is one number.
func numberOf(result any, err error) (uint64, error) {
	if err != nil {
		return 0, err
	}
	b, _ := result.(encoded)
	v, n := protowire.ConsumeVarint(b)
	if n < 0 {
		return 0, errMalformed()
	}
	return v, nil
}

// appendMoves appends moves as varints: partition, position, from, to.
func appendMoves(b []byte, list []placement.Move) []byte {
	for _, m := range list {
		b = protowire.AppendVarint(b, uint64(m.Partition))
		b = protowire.AppendVarint(b, uint64(m.Position))
		b = protowire.AppendVarint(b, uint64(m.From))
		b = protowire.AppendVarint(b, uint64(m.To))
	}
	return b
}

// maxMoves bounds the moves of one plan: every position of the largest table of the widest profile.
const maxMoves = 1 << (placement.MaxBits + 5)

func decodeMoves(b []byte) (list []placement.Move, err error) {
	v, err := varints(b, 4*maxMoves)
	if err != nil || len(v)%4 != 0 {
		return nil, errMalformed()
	}
	for ; len(v) > 0; v = v[4:] {
		m, err := moveOf(v)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

func moveOf(v []uint64) (placement.Move, error) {
	if v[0] >= 1<<placement.MaxBits || v[1] > 255 || v[2] > 1<<16-1 || v[3] > 1<<16-1 {
		return placement.Move{}, errMalformed()
	}
	return placement.Move{Partition: uint32(v[0]), Position: int(v[1]), From: uint16(v[2]), To: uint16(v[3])}, nil
}

// varints reads at most limit varints.
func varints(b []byte, limit int) (list []uint64, err error) {
	for len(b) > 0 {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 || len(list) == limit {
			return nil, errMalformed()
		}
		list, b = append(list, v), b[n:]
	}
	return list, nil
}

// append appends the fields 40 to 45 of a command.
func (m *moveCommand) append(b []byte) []byte {
	b = putUint(b, 40, m.layout)
	b = putBytes(b, 41, appendMoves(nil, m.moves))
	b = putBytes(b, 42, appendNumbers(nil, m.spreads))
	b = putBytes(b, 43, appendNumbers(nil, m.leaving))
	var fences []byte
	for _, f := range m.fences {
		fences = protowire.AppendVarint(protowire.AppendVarint(fences, f.Bucket), f.Epoch)
	}
	b = putBytes(b, 44, fences)
	return putBytes(b, 45, appendProfiles(nil, m.profile))
}

// field reads one of them.
func (m *moveCommand) field(f field) (known bool, err error) {
	switch f.num {
	case 40:
		m.layout = f.u
	case 41:
		m.moves, err = decodeMoves(f.bytes)
	case 42:
		m.spreads, err = decodeNumbers[uint32](f.bytes, maxMoves, 255)
	case 43:
		m.leaving, err = decodeNumbers[uint16](f.bytes, placement.MaxDrives, 1<<16-1)
	case 44:
		v, e := varints(f.bytes, maxField)
		if e != nil || len(v)%2 != 0 {
			return true, errMalformed()
		}
		for ; len(v) > 0; v = v[2:] {
			m.fences = append(m.fences, BucketFence{v[0], v[1]})
		}
	case 45:
		m.profile, err = decodeProfiles(f.bytes)
	default:
		return false, nil
	}
	return true, err
}

// append appends the fields 40 and 41 of a state; nothing if there never was a plan.
func (m *moves) append(b []byte) []byte {
	if p := m.plan; p != nil {
		x := putUint(nil, 1, p.ID)
		x = putUint(x, 2, p.Term)
		x = putUint(x, 3, p.Layout)
		x = putUint(x, 4, uint64(p.Begun))
		x = putUint(x, 5, uint64(p.Total))
		x = putUint(x, 6, uint64(p.Done))
		x = putBool(x, 7, p.Reverted)
		var list []byte
		for _, m := range p.Moves {
			list = appendMoves(list, []placement.Move{m.Move})
			list = protowire.AppendVarint(protowire.AppendVarint(list, uint64(m.State)), m.At)
		}
		x = putBytes(x, 8, list)
		x = putBytes(x, 9, appendNumbers(nil, p.Leaving))
		b = putBytes(b, 40, x)
	}
	for _, r := range m.ended {
		x := putUint(nil, 1, r.ID)
		x = putUint(x, 2, r.Layout)
		x = putUint(x, 3, uint64(r.Begun))
		x = putUint(x, 4, uint64(r.Done))
		b = putBytes(b, 41, putBool(x, 5, r.Reverted))
	}
	return b
}

// field reads one of them.
func (m *moves) field(f field) (known bool, err error) {
	switch f.num {
	case 40:
		m.plan, err = decodePlan(f.bytes)
	case 41:
		var r PlanRecord
		err = fields(f.bytes, func(f field) (bool, error) {
			switch f.num {
			case 1:
				r.ID = f.u
			case 2:
				r.Layout = f.u
			case 3:
				r.Begun = int64(f.u)
			case 4:
				r.Done = int(f.u)
			case 5:
				r.Reverted = f.u != 0
			default:
				return false, nil
			}
			return true, nil
		})
		if len(m.ended) == maxPlanRecords || r.ID == 0 {
			err = errMalformed()
		}
		m.ended = append(m.ended, r)
	default:
		return false, nil
	}
	return true, err
}

func decodePlan(b []byte) (*MovePlan, error) {
	p := new(MovePlan)
	err := fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			p.ID = f.u
		case 2:
			p.Term = f.u
		case 3:
			p.Layout = f.u
		case 4:
			p.Begun = int64(f.u)
		case 5:
			p.Total = int(f.u)
		case 6:
			p.Done = int(f.u)
		case 7:
			p.Reverted = f.u != 0
		case 8:
			p.Moves, err = decodePlanned(f.bytes)
		case 9:
			p.Leaving, err = decodeNumbers[uint16](f.bytes, placement.MaxDrives, 1<<16-1)
		default:
			return false, nil
		}
		return true, err
	})
	if err == nil && (p.ID == 0 || !slices.IsSorted(p.Leaving) || len(p.Moves) == 0 && len(p.Leaving) == 0) {
		err = errMalformed()
	}
	return p, err
}

func decodePlanned(b []byte) (list []PlannedMove, err error) {
	v, err := varints(b, 6*maxMoves)
	if err != nil || len(v)%6 != 0 {
		return nil, errMalformed()
	}
	for ; len(v) > 0; v = v[6:] {
		m, err := moveOf(v)
		if err != nil || v[4] > uint64(MovePublished) {
			return nil, errMalformed()
		}
		list = append(list, PlannedMove{m, MoveState(v[4]), v[5]})
	}
	return list, nil
}
