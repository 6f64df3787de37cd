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

// Ends reports whether a change of membership that was begun comes to its end with left of the members, and all
// newcomers. Drives join if next, the quorum of the next epoch, has more members than q; else one takes the place of
// another, which is among those that are left unless it is gone.
func Ends(q, next placement.Quorum, left int, gone bool) bool {
	s, first := newJoiner(q, next, mutations{}), 0
	if next.N == q.N {
		s = newSwapper(q, 0, gone, mutations{})
		s.w = max(s.w, next.W)
		if gone {
			first = 1
		}
	}
	s.began()
	for seat := range s.held {
		s.held[seat] = first <= seat && seat < first+left || s.joins(seat)
	}
	return s.wedged() && s.carried()
}
