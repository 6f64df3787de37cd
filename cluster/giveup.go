package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// Drives that never come back, and that none of the same node replaces: their numbers are retired while they are
// members still. From then on they are asked for nothing, refused if they come back, and a plan may give their
// places to others; their shards are rebuilt. They leave the layout at the plan's end, as other drives do.

// GivenUp returns the drives of the layout that were given up and that no other replaces, ascending.
func (s *State) GivenUp() (list []uint16) {
	if s.layout == nil {
		return nil
	}
	for _, num := range s.retired {
		if _, ok := s.layout.Drive(num); ok && !s.replaced(num) {
			list = append(list, num)
		}
	}
	return list
}

// replaced reports whether another drive takes the place of num.
func (s *State) replaced(num uint16) bool {
	return slices.ContainsFunc(s.replacements, func(r Replacement) bool { return r.Old == num })
}

// Losses says what giving up drives means to the partitions, besides those that are retired already.
type Losses struct {
	// Stuck partitions have too few members left to tell what was decided: nothing can take the places there.
	Stuck []uint32
	// Uncertain ones have just enough, if the drives are really dead.
	Uncertain []uint32
	// Unreadable ones have fewer shards left than reading needs: their data is lost, but for what lies in rows.
	Unreadable []uint32
	// Earlier ones have enough for data of their profile, and too few for such of an earlier profile, if they were not
	// re-coded yet.
	Earlier []uint32
	// Reduced ones have too few for data of the class REDUCED_REDUNDANCY, of which a bucket has some, or may.
	Reduced []uint32
	// Begun ones have a change of their members that was begun and could not end any more, whatever it becomes.
	Begun []uint32
}

// LossesOf judges what would be left without drives. A drive that takes another's place counts as one that has no
// shards, until its replacement is over.
func (s *State) LossesOf(drives []uint16) (x Losses) {
	gone := func(num uint16) bool { return num != 0 && (s.Retired(num) || slices.Contains(drives, num)) }
	l, begun := s.layout, s.begunMoves()
	empty := func(num uint16) bool {
		return slices.ContainsFunc(s.replacements, func(r Replacement) bool { return r.New == num })
	}
	reduced := slices.ContainsFunc(s.Buckets(), func(b Bucket) bool {
		_, none := b.Config[placement.NoReduced]
		return !none
	})
	for p := range l.Partitions() {
		g := l.Group(p)
		members := 0
		have := make([]bool, len(g.Drives)) // shards, by position
		for pos, num := range g.Drives {
			if !gone(num) {
				members++
			}
			// As long as shards are moving some are here, some there.
			former, _ := g.FormerAt(pos)
			have[pos] = !gone(num) && !gone(former) && !empty(num)
		}
		if members == len(g.Drives) && !slices.ContainsFunc(g.Former, gone) {
			continue // nothing is given up here
		}
		is := metadata.SurvivalOf(g.Quorum, members)
		switch {
		case !is.Replaceable:
			x.Stuck = append(x.Stuck, p)
		case !is.Certain:
			x.Uncertain = append(x.Uncertain, p)
		}
		if list := begun[p]; list != nil && is.Replaceable {
			if _, ends := s.turn(list, gone); !ends {
				x.Begun = append(x.Begun, p)
			}
		}
		own := l.ProfilesOf(p)
		if lacks(have, own.Standard) {
			x.Unreadable = append(x.Unreadable, p)
			continue
		}
		// What was written with an earlier profile lies within as many positions as that has.
		within := func(f func(q placement.Profiles, have []bool) bool) bool {
			return slices.ContainsFunc(l.Profiles(), func(q placement.Profiles) bool { return q.Width() <= len(have) && f(q, have[:q.Width()]) })
		}
		if within(func(q placement.Profiles, have []bool) bool { return q != own && lacks(have, q.Standard) }) {
			x.Earlier = append(x.Earlier, p)
		}
		if reduced && within(func(q placement.Profiles, have []bool) bool { return lacks(have, q.Reduced) }) {
			x.Reduced = append(x.Reduced, p)
		}
	}
	return x
}

// lacks reports whether a body of a profile may have too few shards where only these positions have theirs. A narrow
// body may lie on any of them.
func lacks(have []bool, p erasure.Profile) bool {
	lost := 0
	for _, there := range have {
		if !there {
			lost++
		}
	}
	return p.N()-lost < int(p.Data)
}

// without returns drives, and those whose places a newcomer among them has not taken yet: nobody comes in their
// place any more.
func (s *State) without(drives []uint16) func(num uint16) bool {
	list := slices.Clone(drives)
	for _, r := range s.replacements {
		if slices.Contains(drives, r.New) {
			list = append(list, r.Old)
		}
	}
	return func(num uint16) bool { return slices.Contains(list, num) }
}

// comes reports whether a drive is taking the places of another.
func (s *State) comes(num uint16) bool {
	return slices.ContainsFunc(s.replacements, func(r Replacement) bool { return r.New == num && r.Phase == Membership })
}

// place is one position of a partition.
type place struct {
	partition uint32
	position  int
}

// begunMoves returns the moves of the open plan that are begun, by partition: one, or all that make it wider.
func (s *State) begunMoves() map[uint32][]placement.Move {
	begun := make(map[uint32][]placement.Move)
	if s.moves.plan != nil {
		for _, m := range s.moves.plan.Moves {
			if m.State == MoveBegun {
				begun[m.Partition] = append(begun[m.Partition], m.Move)
			}
		}
	}
	return begun
}

// turn says what becomes of a change of the members of one partition that was begun, when members are gone. As a rule it
// goes on as it is. Where too few are left for that, the newcomer takes the place of one that is gone, by the same
// transition, which is all that the members know: who was to leave stays, and of drives that were to join the partition
// one comes, and the partition does not become wider. to has that move then; its newcomer is 0 if all that were named are gone.
// Without ends, there is no way to its end.
//
// The old epoch is over for a majority of those whom the transition may have wedged before, and for a majority of those
// whom it can wedge now: they meet, so that the floor of the mover that goes on is above what others have carried.
func (s *State) turn(begun []placement.Move, gone func(uint16) bool) (to *placement.Move, ends bool) {
	l := s.layout
	g := l.Group(begun[0].Partition)
	left, lost := 0, -1
	for pos, num := range g.Drives {
		if !gone(num) {
			left++
		} else if lost < 0 {
			lost = pos
		}
	}
	dead := !begun[0].Joins() && gone(begun[0].From)
	if lost < 0 || metadata.Ends(g.Quorum, l.Next(begun).Quorum, left, dead) {
		return nil, true
	}
	if dead {
		return nil, false
	}
	to = &placement.Move{Partition: g.Partition, Position: lost, From: g.Drives[lost]}
	for _, m := range begun {
		if to.To == 0 && !gone(m.To) {
			to.To = m.To
		}
	}
	next := g.Quorum // whom it gets has yet to be chosen
	if to.To != 0 {
		next = l.Next([]placement.Move{*to}).Quorum
	}
	return to, metadata.Ends(g.Quorum, next, left, true)
}

// giveUp retires drives that nobody replaces. The open plan is fitted to that: what is planned to go to them is
// dropped; what was begun, and could not end without them, is turned; what was begun goes to the successors that the
// command names; and where shards were on their way to them already, the successor takes the place first.
func (s *State) giveUp(next *State, c *command) (any, error) {
	const op = "cluster.GiveUp"
	refuse := func(k errs.Kind, format string, args ...any) (any, error) {
		return nil, errs.E(op, k, fmt.Sprintf(format, args...))
	}
	var drives []uint16 // that are not retired yet
	for _, num := range c.move.leaving {
		if s.Retired(num) {
			if s.replaced(num) && !slices.ContainsFunc(s.replacements, func(r Replacement) bool { return r.Old == num && slices.Contains(c.move.leaving, r.New) }) {
				return refuse(errs.Invalid, "drive %d is being replaced", num)
			}
			continue
		}
		if _, ok := s.layout.Drive(num); !ok {
			return refuse(errs.NotFound, "drive %d is not in the layout", num)
		}
		drives = append(drives, num)
	}
	if len(drives) == 0 {
		return nil, nil // who asks again has not heard the answer
	}
	if left := len(s.lasting()) - len(drives); left < s.layout.N() {
		return refuse(errs.Precondition, "profile %s needs %d drives, and %d would be left", s.layout.Profile(), s.layout.N(), left)
	}
	switch x := s.LossesOf(drives); {
	case len(x.Stuck) > 0:
		return refuse(errs.Precondition, "%d partitions would have too few members left for others to take the places", len(x.Stuck))
	case len(x.Begun) > 0:
		return refuse(errs.Precondition, "a change of the members of %d partitions was begun that could not end any more", len(x.Begun))
	}
	gone := s.without(drives)
	if list := s.cutShort(drives); len(list) > 0 {
		p, err := s.takenOver(list, gone, c)
		if err != nil {
			return nil, errs.Wrap(op, err)
		}
		next.moves = s.moves.with(p)
	}
	if s.moves.plan != nil {
		p := *s.moves.plan
		var err error
		if p.Moves, err = s.turnAll(&p, gone, c.move.moves); err != nil {
			return nil, errs.Wrap(op, err)
		}
		if p.Moves, err = s.succeed(&p, gone, c.move.moves); err != nil {
			return nil, errs.Wrap(op, err)
		}
		s.wholeJoins(&p)
		next.layout = s.narrowed(&p)
		s.mayLeave(&p)
		p.Term++ // its mover must look again, and what another still wants to publish is refused
		next.moves = s.moves.with(&p)
	}
	// A newcomer that is given up takes nobody's place any more. Those whose places it has not taken are retired.
	next.replacements = slices.DeleteFunc(slices.Clone(s.replacements), func(r Replacement) bool { return gone(r.New) })
	for _, num := range drives {
		next.retire(num) // the commit point: from here on they never serve again
	}
	return nil, nil
}

// turnAll returns the moves of the open plan with those turned that could not end without drives that are given up.
func (s *State) turnAll(p *MovePlan, gone func(uint16) bool, successors []placement.Move) ([]PlannedMove, error) {
	const op = "cluster.turn"
	lost := func(num uint16) bool { return num != 0 && (gone(num) || s.Retired(num)) }
	begun, turned := s.begunMoves(), make(map[uint32]*placement.Move)
	for partition, list := range begun {
		if x, _ := s.turn(list, lost); x != nil {
			turned[partition] = x
		}
	}
	if len(turned) == 0 {
		return p.Moves, nil
	}
	for _, x := range successors {
		if m := turned[x.Partition]; m != nil && m.Position == x.Position && m.From == x.From {
			m.To = x.To
		}
	}
	var list []PlannedMove
	done := make(map[uint32]bool)
	for _, m := range p.Moves {
		x := turned[m.Partition]
		switch {
		case x == nil || m.State == MovePlanned && m.Position != x.Position:
			list = append(list, m)
		case m.State == MoveBegun && !done[m.Partition]:
			done[m.Partition] = true
			list = append(list, PlannedMove{Move: *x, State: MoveBegun})
		default:
			p.Total--
		}
	}
	for _, partition := range slices.Sorted(maps.Keys(turned)) {
		x, g := turned[partition], s.layout.Group(partition)
		named := func(m PlannedMove) bool { return m.Partition == partition && m.To == x.To && m.Move != *x }
		_, ok := s.layout.Drive(x.To)
		if !ok || lost(x.To) || s.comes(x.To) || slices.Contains(p.Leaving, x.To) || slices.ContainsFunc(list, named) || s.layout.MayMove(*x) != nil {
			return nil, errs.E(op, errs.Stale, fmt.Sprintf("position %d of partition %d, of drive %d, needs another successor than drive %d", x.Position, partition, x.From, x.To))
		}
		left := len(slices.DeleteFunc(slices.Clone(g.Drives), lost))
		if !metadata.Ends(g.Quorum, s.layout.Next([]placement.Move{*x}).Quorum, left, true) {
			return nil, errs.E(op, errs.Precondition, fmt.Sprintf("a change of the members of partition %d was begun that could not end any more", partition))
		}
	}
	return list, nil
}

// mayLeave has those drives stay that would be members still at the plan's end. Another plan lets them leave.
func (s *State) mayLeave(p *MovePlan) {
	type role struct {
		partition uint32
		drive     uint16
	}
	leaves := make(map[role]bool)
	for _, m := range p.Moves {
		leaves[role{m.Partition, m.From}] = m.State != MovePublished || leaves[role{m.Partition, m.From}]
	}
	p.Leaving = slices.DeleteFunc(slices.Clone(p.Leaving), func(num uint16) bool {
		return slices.ContainsFunc(s.layout.PartitionsOf(num), func(partition uint32) bool { return !leaves[role{partition, num}] })
	})
}

// cutShort returns the replacements whose newcomers are among drives, and for which partitions may stand still.
func (s *State) cutShort(drives []uint16) (list []Replacement) {
	for _, r := range s.replacements {
		if slices.Contains(drives, r.New) && r.Phase == Membership && r.Term > 0 && len(s.layout.PartitionsOf(r.Old)) > 0 {
			list = append(list, r)
		}
	}
	return list
}

// TakesOver reports whether giving up drives cuts a replacement short: what is left of it becomes a plan, which there can
// only be if none is open.
func (s *State) TakesOver(drives []uint16) bool { return len(s.cutShort(drives)) > 0 }

// takenOver turns what is left of a replacement, of which the newcomer is given up, into a plan. Members may be wedged for it,
// and know transitions by their number alone: so the plan has its number, and a higher term, and all of its moves are begun.
func (s *State) takenOver(list []Replacement, gone func(uint16) bool, c *command) (*MovePlan, error) {
	const op = "cluster.takenOver"
	refuse := func(k errs.Kind, format string, args ...any) (*MovePlan, error) {
		return nil, errs.E(op, k, fmt.Sprintf(format, args...))
	}
	r := list[0]
	switch {
	case len(list) > 1:
		return refuse(errs.Precondition, "drives %d and %d were taking the places of others, and partitions may stand still for both: give them up one after the other", r.New, list[1].New)
	case s.moves.plan != nil:
		return refuse(errs.Precondition, "drive %d was taking the place of drive %d, and partitions may stand still for it: revert plan %d first, and wait until what it has begun is over", r.New, r.Old, s.moves.plan.ID)
	}
	to := make(map[place]uint16)
	for _, m := range c.move.moves {
		to[place{m.Partition, m.Position}] = m.To
	}
	p := &MovePlan{ID: r.ID, Term: r.Term + 1, Layout: s.layout.Number(), Begun: c.time}
	lost := func(num uint16) bool { return gone(num) || s.Retired(num) }
	for _, partition := range s.layout.PartitionsOf(r.Old) {
		g := s.layout.Group(partition)
		m := placement.Move{Partition: partition, Position: g.Position(r.Old), From: r.Old}
		m.To = to[place{m.Partition, m.Position}]
		if _, ok := s.layout.Drive(m.To); !ok || lost(m.To) || s.comes(m.To) || s.layout.MayMove(m) != nil {
			return refuse(errs.Stale, "position %d of partition %d, of drive %d, needs another successor than drive %d", m.Position, partition, m.From, m.To)
		}
		left := len(slices.DeleteFunc(slices.Clone(g.Drives), lost))
		if !metadata.Ends(g.Quorum, s.layout.Next([]placement.Move{m}).Quorum, left, true) {
			return refuse(errs.Precondition, "a change of the members of partition %d was begun that could not end any more", partition)
		}
		p.Moves = append(p.Moves, PlannedMove{Move: m, State: MoveBegun})
	}
	p.Total = len(p.Moves)
	return p, nil
}

// succeed returns the moves of the open plan without drives that are given up as newcomers.
func (s *State) succeed(p *MovePlan, gone func(uint16) bool, successors []placement.Move) ([]PlannedMove, error) {
	to := make(map[place]uint16)
	for _, m := range successors {
		to[place{m.Partition, m.Position}] = m.To
	}
	type role struct {
		partition uint32
		drive     uint16
	}
	taken := make(map[role]bool) // newcomers that partitions have in the plan already
	var list, first []PlannedMove
	for _, m := range p.Moves {
		if !gone(m.To) {
			taken[role{m.Partition, m.To}] = true
		}
	}
	for _, m := range p.Moves {
		if !gone(m.To) {
			list = append(list, m)
			continue
		}
		if m.State == MovePlanned && !s.succeeds(m.Move) {
			p.Total--
			continue
		}
		if m.State == MovePublished && m.Joins() {
			p.Done++ // nothing was on its way to it: it is a member like others that are given up
			continue
		}
		newcomer := to[place{m.Partition, m.Position}]
		switch _, ok := s.layout.Drive(newcomer); {
		case !ok || gone(newcomer) || s.Retired(newcomer) || s.comes(newcomer) || taken[role{m.Partition, newcomer}] || slices.Contains(p.Leaving, newcomer):
			return nil, errs.E("cluster.succeed", errs.Stale, fmt.Sprintf("position %d of partition %d, which was to go to drive %d, needs another successor than drive %d", m.Position, m.Partition, m.To, newcomer))
		case m.State != MovePublished:
			m.To = newcomer
			if err := s.mayMove(m.Move); err != nil {
				return nil, errs.As("cluster.succeed", errs.Stale, err)
			}
			list = append(list, m)
		default:
			x := placement.Move{Partition: m.Partition, Position: m.Position, From: m.To, To: newcomer}
			if _, err := s.layout.Swap(x.From, x.To, []uint32{x.Partition}); err != nil {
				return nil, errs.As("cluster.succeed", errs.Stale, err)
			}
			// It comes before all others of its partition: these wait until its shards have moved.
			first, list = append(first, PlannedMove{Move: x}), append(list, m)
			p.Total++
		}
		taken[role{m.Partition, newcomer}] = true
	}
	return append(first, list...), nil
}

// succeeds reports whether a move gives the place of a drive that was given up, to which shards were on their way, to
// another: they are on their way to that one then.
func (s *State) succeeds(m placement.Move) bool {
	if !s.Retired(m.From) || m.Partition >= s.layout.Partitions() {
		return false
	}
	_, moving := s.layout.Group(m.Partition).FormerAt(m.Position)
	return moving
}

// mayMove is MayMove of the layout, for successions as well.
func (s *State) mayMove(m placement.Move) error {
	if !s.succeeds(m) {
		return s.layout.MayMove(m)
	}
	_, err := s.layout.Swap(m.From, m.To, []uint32{m.Partition})
	return err
}

// publishSuccessions makes the newcomers of successions members. What was to go to the drives that were given up
// goes to them.
func (p *MovePlan) publishSuccessions(l *placement.Layout, list []placement.Move) (*placement.Layout, error) {
	for _, m := range list {
		var err error
		if l, err = l.Swap(m.From, m.To, []uint32{m.Partition}); err != nil {
			return nil, err
		}
		p.Moves = slices.DeleteFunc(p.Moves, func(x PlannedMove) bool { return x.Move == m })
		p.Total--
		for i := range p.Moves {
			if x := &p.Moves[i]; x.State == MovePublished && x.Partition == m.Partition && x.Position == m.Position {
				x.To, x.At = m.To, l.Number()
			}
		}
	}
	return l, nil
}

// Successors chooses who takes the places that the open plan has begun to give to drives which are about to be given
// up, those of members without which something that was begun could not end, and those that a drive among them was
// taking over. They are drives that may be used, as far
// from the other members of the partition as can be, and with the fewest places for their size. The error is of kind
// Invalid if there is none for a place.
func (s *State) Successors(drives []uint16, usable func(num uint16) bool) ([]placement.Move, error) {
	plan, gone := s.moves.plan, s.without(drives)
	if plan == nil {
		plan = new(MovePlan)
	}
	c := s.newChooser(func(num uint16) bool {
		return !s.Retired(num) && !gone(num) && !s.comes(num) && !slices.Contains(plan.Leaving, num) && usable(num)
	})
	for _, m := range plan.Moves {
		c.taken[m.Partition] = append(c.taken[m.Partition], m.To)
	}
	var list []placement.Move
	for _, r := range s.cutShort(drives) {
		for _, partition := range s.layout.PartitionsOf(r.Old) {
			m := placement.Move{Partition: partition, Position: s.layout.Group(partition).Position(r.Old), From: r.Old}
			var err error
			if m.To, err = c.choose(partition, m.Position, r.New); err != nil {
				return nil, err
			}
			list = append(list, m)
		}
	}
	turned, begun := make(map[uint32]bool), s.begunMoves()
	for _, partition := range slices.Sorted(maps.Keys(begun)) {
		x, _ := s.turn(begun[partition], func(num uint16) bool { return num != 0 && (gone(num) || s.Retired(num)) })
		if x == nil {
			continue
		}
		turned[partition] = true
		if x.To == 0 {
			var err error
			if x.To, err = c.choose(partition, x.Position, x.From); err != nil {
				return nil, err
			}
		}
		list = append(list, *x)
	}
	for _, m := range plan.Moves {
		if !gone(m.To) || m.State == MovePlanned && !s.succeeds(m.Move) || m.State == MovePublished && m.Joins() || m.State == MoveBegun && turned[m.Partition] {
			continue
		}
		to, err := c.choose(m.Partition, m.Position, m.To)
		if err != nil {
			return nil, err
		}
		from := m.To
		if m.State != MovePublished {
			from = m.From
		}
		list = append(list, placement.Move{Partition: m.Partition, Position: m.Position, From: from, To: to})
	}
	return list, nil
}

// chooser chooses drives for places.
type chooser struct {
	l      *placement.Layout
	may    func(num uint16) bool
	places map[uint16]int
	taken  map[uint32][]uint16 // by partition, who comes
}

func (s *State) newChooser(may func(num uint16) bool) *chooser {
	c := &chooser{l: s.layout, may: may, places: make(map[uint16]int), taken: make(map[uint32][]uint16)}
	for p := range c.l.Partitions() {
		for _, num := range c.l.Group(p).Drives {
			c.places[num]++
		}
	}
	return c
}

// choose returns a drive for a position of a partition, in the stead of another.
func (c *chooser) choose(partition uint32, position int, instead uint16) (uint16, error) {
	g := c.l.Group(partition)
	others := slices.Concat(g.Drives, g.Former, c.taken[partition])
	near := func(d placement.Drive) (n int) { // members of the same failure domains, those of the node above all
		for pos, num := range g.Drives {
			if o, ok := c.l.Drive(num); ok && pos != position && o.Node == d.Node {
				n += len(g.Drives) + 1
			} else if ok && pos != position && o.Zone == d.Zone {
				n++
			}
		}
		return n
	}
	var best placement.Drive
	for _, d := range c.l.Drives() {
		if slices.Contains(others, d.Num) || !c.may(d.Num) {
			continue
		}
		if a, b := near(d), near(best); best.Num == 0 || a < b || a == b && fuller(c.places[best.Num], best, c.places[d.Num], d) {
			best = d
		}
	}
	if best.Num == 0 {
		return 0, errs.E("cluster.Successors", errs.Invalid, fmt.Sprintf("no drive can take position %d of partition %d in the stead of drive %d", position, partition, instead))
	}
	c.places[best.Num]++
	c.taken[partition] = append(c.taken[partition], best.Num)
	return best.Num, nil
}

// fuller reports whether a with so many places is fuller than b.
func fuller(na int, a placement.Drive, nb int, b placement.Drive) bool {
	if a.Capacity == 0 || b.Capacity == 0 {
		return na > nb
	}
	return float64(na)/float64(a.Capacity) > float64(nb)/float64(b.Capacity)
}

// GiveUp retires drives for good that nobody replaces: they never come back, or are refused if they do. successors
// are those of Successors. It may be said again. The error is of kind Precondition if too few drives or members
// would be left, Stale if the successors do not fit any more, NotFound for a drive that the layout does not have.
func (k *Control) GiveUp(ctx context.Context, drives []uint16, successors []placement.Move) error {
	_, err := k.change(ctx, &command{op: opGiveUp, time: time.Now().UnixNano(), move: moveCommand{leaving: drives, moves: successors}})
	return err
}
