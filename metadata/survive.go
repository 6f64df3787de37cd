package metadata

import "github.com/ostraka/ostraka/placement"

// Survival says what becomes of a partition of which members never come back.
type Survival struct {
	// Replaceable: those that are left can tell what was decided, and others can take the places of the lost. Else
	// nobody can go on, before one of the lost is back.
	Replaceable bool
	// Certain: it does not rest on the lost being really dead. Else one that still answers somewhere, cut off from
	// the rest, may be believed there in the former epoch.
	Certain bool
}

// SurvivalOf judges a partition with the quorum q of which left members are not lost.
func SurvivalOf(q placement.Quorum, left int) Survival {
	if left >= q.N {
		return Survival{true, true}
	}
	s := newSwapper(q, q.N-1, true, mutations{})
	for seat := range min(max(left, 0), q.N-1) {
		s.held[seat] = true
	}
	s.held[s.newcomer()] = true
	ok := s.suffice(s.held)
	return Survival{Replaceable: ok, Certain: ok && left >= q.Z}
}
