package cluster

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// A plan may make partitions wider. It is opened with a profile, which the layout has from then on as the one that
// its partitions are on their way to, and with moves from nobody: all of the new positions of a partition, or none.
// They are begun and published together. What becomes of such a plan, no partition is ever between two widths.

// widerLayout returns the layout to which the moves of a plan apply: the present one, or one with the plan's profile.
func (s *State) widerLayout(c *command) (*placement.Layout, error) {
	l := s.layout
	if p := c.move.profile; p != (placement.Profiles{}) && (p.Standard != l.Profile() || !l.Widening()) {
		var err error
		if l, err = l.WithProfile(p.Standard, p.Reduced); err != nil {
			return nil, err
		}
	}
	for partition, n := range joinsOf(c.move.moves) {
		if partition >= l.Partitions() || l.Width(partition)+n != l.N() {
			return nil, errs.E("cluster.ApplyPlan", errs.Invalid, fmt.Sprintf("partition %d would be neither as wide as it is nor as wide as it is to be", partition))
		}
	}
	return l, nil
}

// joinsOf counts, by partition, the moves that take new positions.
func joinsOf(list []placement.Move) map[uint32]int {
	joins := make(map[uint32]int)
	for _, m := range list {
		if m.Joins() {
			joins[m.Partition]++
		}
	}
	return joins
}

// wholeJoins drops the planned moves of partitions that have lost a newcomer of theirs from the plan. Another plan
// makes them wider.
func (s *State) wholeJoins(p *MovePlan) {
	var left []placement.Move
	for _, m := range p.Moves {
		if m.State != MovePublished {
			left = append(left, m.Move)
		}
	}
	joins := joinsOf(left)
	n := len(p.Moves)
	p.Moves = slices.DeleteFunc(p.Moves, func(m PlannedMove) bool {
		return m.Joins() && m.State == MovePlanned && s.layout.Width(m.Partition)+joins[m.Partition] != s.layout.N()
	})
	p.Total -= n - len(p.Moves)
}

// narrowed takes the profile back that partitions were on their way to, once no partition has it and none is to have it.
func (s *State) narrowed(p *MovePlan) *placement.Layout {
	if slices.ContainsFunc(p.Moves, func(m PlannedMove) bool { return m.Joins() }) {
		return s.layout
	}
	return s.layout.WithoutProfile()
}

// appendProfiles appends k and m of two profiles; nothing if there are none.
func appendProfiles(b []byte, p placement.Profiles) []byte {
	if p == (placement.Profiles{}) {
		return b
	}
	return append(b, p.Standard.Data, p.Standard.Parity, p.Reduced.Data, p.Reduced.Parity)
}

func decodeProfiles(b []byte) (p placement.Profiles, err error) {
	if len(b) != 4 {
		return p, errMalformed()
	}
	p.Standard, p.Reduced = erasure.Profile{Data: b[0], Parity: b[1]}, erasure.Profile{Data: b[2], Parity: b[3]}
	return p, nil
}
