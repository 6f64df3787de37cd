package metadata

import (
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/ostraka/ostraka/placement"
)

// Members that die for good while a change of membership is begun that could not end without them. It is turned: under
// a higher term of the same transition the newcomer takes the place of the dead member, and who was to leave stays. Of
// drives that were to join a partition the first does so, and the partition does not become wider. Here that is done
// whether it has to be or not. With features.turns newcomers are given up as well; others come under the same transition.

// drawTurns decides, apart from all else, whether members are given up.
func (s *sim) drawTurns(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 10))
	s.with.turns = s.with.swap && s.mut == (mutations{}) && (rng.IntN(2) == 0 || *simMoves) || s.mut.awayGone
}

// turn gives up a member, or a newcomer, of a transition that goes on under a new term; or neither.
func (s *sim) turn(t *transition) {
	if !s.with.turns || t.term == 0 || t.turned != nil {
		return
	}
	if t.joins == nil && s.rng.IntN(6) == 0 {
		t.new = uint16(len(s.drives))
		t.term++
		s.addDrive()
		s.tr("drive%d is to take the place of drive%d", t.new, t.old)
	}
	spare := s.cfg.spare() && (!s.with.widen || s.wide.spare()) && !s.lost
	if t.gone || !spare && !s.mut.awayGone || s.rng.IntN(2) == 0 {
		return
	}
	var parts []int
	for p := range s.layout {
		if s.concerns(t, p, &s.layout[p]) {
			parts = append(parts, p)
		}
	}
	if len(parts) == 0 {
		return
	}
	members := s.layout[parts[s.rng.IntN(len(parts))]].Drives
	dead := members[s.rng.IntN(len(members))]
	if dead == t.old && t.joins == nil {
		return
	}
	if !s.mut.awayGone {
		s.dies(dead)
	}
	turned := map[int]uint16{}
	for _, p := range parts {
		if s.layout[p].Position(dead) >= 0 {
			turned[p] = dead
			s.turned++
			s.tr("transition %d gives the place of drive%d in partition %d to its newcomer", t.id, dead, p)
		}
	}
	t.turned = turned
	t.term++ // in the same change: movers of before publish nothing any more
}

func (t *transition) clone() transition {
	c := *t
	c.turned = maps.Clone(t.turned)
	return c
}

// oldOf is whose place the newcomer takes in a partition.
func (t *transition) oldOf(part int) uint16 {
	if dead, ok := t.turned[part]; ok {
		return dead
	}
	return t.old
}

// goneIn reports whether that one never serves again.
func (t *transition) goneIn(part int) bool {
	_, ok := t.turned[part]
	return ok || t.gone
}

// joinsOf are the drives that join a partition; nil: one takes the place of another.
func (t *transition) joinsOf(part int) []uint16 {
	if _, ok := t.turned[part]; ok {
		return nil
	}
	return t.joins
}

// newcomersOf are the drives that become members of a partition.
func (t *transition) newcomersOf(part int) []uint16 {
	if _, ok := t.turned[part]; ok {
		return t.newcomers()[:1]
	}
	return t.newcomers()
}

// leftBehind is the transition that gives the places that a dead drive still has to another; nil: it has none.
func (s *sim) leftBehind() *transition {
	for i, d := range s.drives {
		if !d.gone || !slices.ContainsFunc(s.layout, func(g placement.Group) bool { return g.Position(uint16(i)) >= 0 }) {
			continue
		}
		s.swaps++
		t := &transition{id: uint64(s.swaps), old: uint16(i), new: uint16(len(s.drives)), gone: true}
		s.addDrive()
		return t
	}
	return nil
}
