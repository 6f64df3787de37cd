package metadata

import (
	"slices"

	"github.com/ostraka/ostraka/placement"
)

// swapper is what a change of membership does next for one partition: events in, decisions out, no clock
// and no I/O. Seats are the positions of the partition, and behind them one for the newcomer that takes a member's
// place, or, where the partition becomes wider and nobody leaves, one for each newcomer. The driver
// (Client.Swap, or a simulator) asks, wedges, carries, installs and publishes, in this order:
//
//	here(seat)… enough → wedge(seat)… wedged → judge each register, transfer → begin(seat)… ready → Publish
//
// A seat that fails is given up with lose. docs/protocol.md, "Change of membership", says why this is safe.
type swapper struct {
	q    placement.Quorum
	w    int  // members that must have the image: W, of this epoch or of the next, whichever is more
	old  int  // the seat that changes hands; -1: none does, newcomers join
	gone bool // who sits there will never serve again, and is not asked
	mut  mutations
	next placement.Quorum // of the next epoch, where newcomers join

	present   []bool // answered before anything was changed
	held      []bool // wedged, and not lost since
	installed []bool
	begun     bool // the transition has wedged somebody already
	full      bool // newcomers must get every row, or they do not count
}

func newSwapper(q placement.Quorum, old int, gone bool, mut mutations) *swapper {
	n := q.N + 1
	return &swapper{q: q, w: q.W, old: old, gone: gone, mut: mut, present: make([]bool, n), held: make([]bool, n), installed: make([]bool, n)}
}

// newJoiner is a swapper of a change in which nobody leaves, and newcomers make the partition as wide as next is.
func newJoiner(q, next placement.Quorum, mut mutations) *swapper {
	s := newSwapper(q, -1, false, mut)
	s.next = next
	if !mut.oldQuorum {
		s.w = max(q.W, next.W)
	}
	s.present, s.held, s.installed = make([]bool, next.N), make([]bool, next.N), make([]bool, next.N)
	return s
}

// newcomer is the seat of the newcomer, or of the first.
func (s *swapper) newcomer() int { return s.q.N }

// joins reports whether a newcomer sits at seat.
func (s *swapper) joins(seat int) bool { return seat >= s.q.N }

// asks reports whether the drive at seat takes part.
func (s *swapper) asks(seat int) bool { return seat != s.old || !s.gone }

// target reports whether the drive at seat is a member of the next epoch.
func (s *swapper) target(seat int) bool { return seat != s.old }

// here reports that the drive at seat answered, and would be wedged.
func (s *swapper) here(seat int) { s.present[seat] = true }

// began reports that the drives are wedged already, by an earlier term of the transition.
func (s *swapper) began() { s.begun = true }

// wedge reports that the drive at seat is wedged. It is not asked once the driver goes on to carry rows.
func (s *swapper) wedge(seat int) { s.held[seat] = true }

// lose gives up the drive at seat: it holds what it was sent so far, or not.
func (s *swapper) lose(seat int) { s.held[seat] = false }

// begin reports that the next epoch is installed on the drive at seat.
func (s *swapper) begin(seat int) { s.installed[seat] = true }

// enough reports whether the drives that are here suffice to begin: else nothing must be changed. Nothing is
// begun without all newcomers; what was begun must come to an end without them, as far as the image allows.
func (s *swapper) enough() bool {
	return s.suffice(s.present) && (s.begun || !slices.Contains(s.present[s.newcomer():], false))
}

// wedged reports whether the drives that are wedged suffice to go on, and fixes whether newcomers
// must get every row.
func (s *swapper) wedged() bool {
	s.full = s.survivors(s.held) < s.w && !s.mut.bareJoin
	return s.suffice(s.held)
}

// survivors counts those who stay members.
func (s *swapper) survivors(list []bool) int {
	n := 0
	for seat, ok := range list[:s.q.N] {
		if ok && s.target(seat) {
			n++
		}
	}
	return n
}

func (s *swapper) suffice(list []bool) bool {
	q := s.q
	n := count(list[:q.N]) // old members that tell what they hold
	silent := n            // old members that will never again answer in the old epoch
	if s.gone {
		silent++
	}
	learn := q.N - q.W + 1 // every chosen state, and every ballot that was ever accepted, is met in so many
	// Those who stay can hold the image; or newcomers get every row, and hold it with them. Otherwise newcomers
	// are not needed: one that is not here is a member that was away.
	image := s.survivors(list) + count(list[s.newcomer():])
	if s.mut.newZ && s.old < 0 {
		return n > 0 && count(list) >= s.next.Z
	}
	if s.mut.wedgeTooFew {
		return list[s.newcomer()] && n >= learn
	}
	// Two movers of a transition must meet in a drive, so that the later one's floor is above the
	// earlier one's: in an old member, as newcomers may be dead.
	members := q.N
	if s.gone {
		members--
	}
	return n >= learn && silent >= q.Z && image >= s.w && 2*n > members
}

// counts reports whether the drive at seat has all that the next epoch begins with, once everything was
// carried.
func (s *swapper) counts(seat int) bool {
	return s.held[seat] && s.target(seat) && (!s.joins(seat) || s.full || s.mut.bareJoin)
}

// begins reports whether the next epoch is to be installed on the drive at seat.
func (s *swapper) begins(seat int) bool {
	return s.counts(seat) || s.joins(seat) && s.held[seat]
}

// carried reports whether enough drives have what the next epoch begins with. Who leaves may have been lost
// before it told what it holds: without it the others must be enough to learn what is chosen.
func (s *swapper) carried() bool {
	return s.holders(s.held) >= s.w && count(s.held[:s.q.N]) >= s.q.N-s.q.W+1
}

// ready reports whether the next epoch may be published.
func (s *swapper) ready() bool { return s.holders(s.installed) >= s.w }

// spares reports whether it goes on if the drives at the seats of which away is true are lost: nobody needs to wait for
// them. wedged: all that will be wedged are.
func (s *swapper) spares(wedged bool, away func(seat int) bool) bool {
	from := s.present
	if wedged {
		from = s.held
	}
	list := make([]bool, len(from))
	for seat := range from {
		list[seat] = !away(seat) && from[seat] // those who are away may be about to answer
	}
	if !wedged {
		return s.suffice(list) && s.survivors(list) >= s.w // with fewer, every row would have to be copied
	}
	return s.holders(list) >= s.w && count(list[:s.q.N]) >= s.q.N-s.q.W+1
}

func (s *swapper) holders(list []bool) int {
	n := 0
	for seat, ok := range list {
		if ok && s.counts(seat) {
			n++
		}
	}
	return n
}

// judge decides what is carried of one register, whose rows are given by seat as far as the drive there is
// wedged (nil: absent, or not wedged): the newest row, and who needs it. from is a seat that has it with
// its version rows.
func (s *swapper) judge(rows []*Row, floor Ballot) (top *Row, decided bool, from int, need []int) {
	if count(s.held[:s.q.N]) < s.q.N-s.q.W+1 {
		// What is chosen may not be among them. Anything else, under the floor, would outrank it for the
		// mover that goes on after this one.
		return nil, false, 0, nil
	}
	for seat, r := range rows {
		if s.held[seat] && r != nil && (top == nil || top.Ballot.Less(r.Ballot)) {
			top, from = r, seat
		}
	}
	if top == nil {
		return nil, false, 0, nil
	}
	for seat, r := range rows {
		decided = decided || s.held[seat] && r != nil && r.Decided && r.State.ID == top.State.ID
	}
	for seat, r := range rows {
		if !s.held[seat] || !s.target(seat) || s.joins(seat) && !s.full && r == nil {
			continue
		}
		switch {
		case r == nil || r.State.ID != top.State.ID:
			// A drive that lacks what is chosen counts among those that hold it only with it.
			need = append(need, seat)
		case !decided && r.Ballot.Less(floor):
			// Nobody may know that this was not chosen, and somebody who is away may hold another state
			// under a higher ballot, which must not outrank this one later.
			need = append(need, seat)
		case r.Ballot.Less(top.Ballot) && !s.mut.noLevel:
			// The same, below the ballot under which it was chosen, or was confirmed against another write: what
			// somebody who is away holds in between must not outrank it.
			need = append(need, seat)
		}
	}
	return top, decided, from, need
}
