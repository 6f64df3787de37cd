package metadata

import (
	"errors"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

const (
	maxRingKept = 8
	ringWindow  = 60e6 // microseconds of ballot counter that an operation stays in the ring
)

// proposer is what one operation on one register does next: events in, steps out, no clock and no
// I/O. The driver (Client, or a simulator) sends what it asks for and reports what came of it.
//
//	begin(b) → stepWait … promise(pos, …) → stepPin → pinned(…) → stepAccept → accepted(pos, …) → stepDone
//
// stepRetry asks for another begin with a ballot above seen, after a pause. stepCatchUp asks to
// send the state with all its version rows to the positions in behind, because the quorum needs
// them. An event of another ballot than the present one must not be reported.
type proposer struct {
	q     placement.Quorum
	kind  RegisterKind
	op    *Operation // nil: an identity round, which makes the newest state chosen
	query Query      // what the round asks for besides
	kept  int        // operations kept in the ring
	mut   mutations

	phase    phase
	ballot   Ballot
	seen     Ballot // highest ballot met
	sent     bool   // an Accept of the operation itself went out under some ballot
	first    Ballot // the first such ballot
	promises []*PrepareReply
	failed   []errs.Kind // by position, of the present phase; 0 if not failed
	heard    []bool      // by position, of the present phase
	refused  int         // of the present phase
	without  int         // drives that certainly did not take what the present phase sent
	acks     []bool
	behind   []bool
	have     []bool

	base      *State
	baseAt    Ballot
	versions  []Version
	state     *State // what is proposed
	identity  bool   // state is base again
	view      View
	outcome   error // what to return once state is chosen
	err       error
	abandoned bool // the outcome can never be known
	chosen    bool // state is known to be chosen

	orphan     erasure.DataID // not zero: the round looks for references to it
	referenced bool           // and found one
}

type phase uint8

const (
	phaseIdle phase = iota
	phasePrepare
	phasePin
	phaseAccept
	phaseDone
)

type step uint8

const (
	stepWait step = iota
	stepPin
	stepAccept
	stepCatchUp
	stepRetry
	stepDone
)

func newProposer(q placement.Quorum, kind RegisterKind, op *Operation, mut mutations) *proposer {
	p := &proposer{q: q, kind: kind, op: op, mut: mut, kept: maxRingKept}
	if op != nil {
		p.query = op.Query
		p.sent, p.first = !op.Sent.IsZero(), op.Sent
	}
	return p
}

// begin starts a round under b, which must be above seen.
func (p *proposer) begin(b Ballot) {
	n := p.q.N
	p.phase, p.ballot = phasePrepare, b
	p.seen = maxBallot(p.seen, b)
	p.promises = make([]*PrepareReply, n)
	p.have = make([]bool, n)
	p.behind = make([]bool, n)
	p.enter(phasePrepare)
}

func (p *proposer) enter(ph phase) {
	p.phase, p.refused, p.without = ph, 0, 0
	p.failed = make([]errs.Kind, p.q.N)
	p.heard = make([]bool, p.q.N)
}

// seal returns what the drive at pos is asked to seal.
func (p *proposer) seal(pos int) *Seal {
	if p.op == nil || pos >= len(p.op.Seals) {
		return nil
	}
	return p.op.Seals[pos]
}

// need is how many of the seals must be durable.
func (p *proposer) need() int {
	if p.op == nil || p.mut.noHave {
		return 0
	}
	n := 0
	for _, s := range p.op.Seals {
		if s != nil {
			n++
		}
	}
	if n == p.q.N {
		return max(p.op.Need, p.q.W)
	}
	return min(p.op.Need, n)
}

func count(list []bool) int {
	n := 0
	for _, v := range list {
		if v {
			n++
		}
	}
	return n
}

// promise reports the answer of the drive at pos to Prepare, or the error that came instead.
func (p *proposer) promise(pos int, r *PrepareReply, err error) step {
	if p.phase != phasePrepare {
		// Late: the shard may be there all the same, which spares a repair.
		if err == nil && r.Have && p.phase != phaseIdle {
			p.have[pos] = true
		}
		return stepWait
	}
	if p.heard[pos] {
		return stepWait
	}
	p.heard[pos] = true
	switch {
	case err != nil:
		p.failed[pos] = kindOf(err)
	case !r.Promised:
		p.seen = maxBallot(p.seen, r.Hint)
		p.refused++
		p.have[pos] = r.Have
	default:
		p.promises[pos] = r
		p.have[pos] = r.Have
		if r.Row != nil {
			p.seen = maxBallot(p.seen, r.Row.Ballot)
		}
		p.seen = maxBallot(p.seen, r.Floor)
		if s := p.seal(pos); s != nil && !r.Have {
			p.failed[pos] = errs.Kind(r.SealKind)
		}
	}
	return p.promised()
}

func kindOf(err error) errs.Kind {
	if k := errs.KindOf(err); k != errs.Internal {
		return k
	}
	return errs.Drive
}

// promised looks whether the promises suffice.
func (p *proposer) promised() step {
	yes, both, pending, pendingSeals := 0, 0, 0, 0
	for pos := range p.heard {
		switch {
		case !p.heard[pos]:
			pending++
			if p.seal(pos) != nil {
				pendingSeals++
			}
		case p.promises[pos] != nil:
			yes++
			if p.seal(pos) != nil && p.have[pos] {
				both++
			}
		}
	}
	need := p.need()
	if yes >= p.q.W && both >= need {
		return p.choose()
	}
	switch {
	case yes+pending < p.q.W && yes+pending+p.refused < p.q.W:
		return p.fail()
	case both+pendingSeals < need && both+pendingSeals+p.refused < need:
		if yes >= p.q.W && p.sent {
			// An earlier Accept of this operation is out: look whether it was finished.
			return p.choose()
		}
		if yes+pending >= p.q.W && p.sent {
			return stepWait
		}
		return p.fail()
	case pending == 0 || yes+pending < p.q.W:
		return p.retry()
	}
	return stepWait
}

// expire reports that the drives not heard of by now will not be waited for.
func (p *proposer) expire() step {
	switch p.phase {
	case phasePrepare:
		for pos := range p.heard {
			if !p.heard[pos] {
				p.heard[pos], p.failed[pos] = true, errs.Timeout
			}
		}
		return p.promised()
	case phaseAccept:
		for pos := range p.heard {
			if !p.heard[pos] {
				p.heard[pos], p.failed[pos] = true, errs.Timeout
			}
		}
		return p.counted()
	}
	return stepWait
}

func (p *proposer) retry() step {
	p.phase = phaseIdle
	return stepRetry
}

// cutError is an errs.Stale or errs.Unknown that knows under which ballot an Accept of the operation
// went out.
type cutError struct {
	kind errs.Kind
	sent Ballot
}

func (e *cutError) Error() string { return e.Unwrap().Error() }
func (e *cutError) Unwrap() error {
	if e.kind == errs.Stale {
		return errs.E("metadata.Update", errs.Stale, "the drives serve a newer layout or bucket epoch")
	}
	return errs.E("metadata.Update", errs.Unknown, "too few drives answered to know whether the write happened")
}

// SentBallot returns the first ballot under which an Accept of the operation went out that Update ended
// with err, of kind Stale or Unknown. Zero with Stale: none did, or certainly none was taken. Whoever
// tries again in the next epoch, with the same ID, passes it on as Operation.Sent, so that the
// operation is applied once; Unknown with a zero ballot cannot be tried again.
func SentBallot(err error) Ballot {
	var e *cutError
	if errors.As(err, &e) {
		return e.sent
	}
	return Ballot{}
}

// fail ends the operation for want of drives. One drive that answers Stale is reason enough to look at
// the layout again: with others gone, it alone may make the quorum impossible.
func (p *proposer) fail() step {
	const op = "metadata.Update"
	counts := map[errs.Kind]int{}
	for _, k := range p.failed {
		counts[k]++
	}
	untaken := p.phase == phaseAccept && p.ballot == p.first && p.without == p.q.N
	p.phase = phaseDone
	switch {
	case counts[errs.Stale] > 0 && p.sent && !untaken:
		p.err = &cutError{errs.Stale, p.first}
	case counts[errs.Stale] > 0:
		p.err = &cutError{errs.Stale, Ballot{}}
	case p.sent:
		p.err = &cutError{errs.Unknown, p.first}
	case counts[errs.Full] > 0 && p.q.N-counts[errs.Full] < max(p.need(), p.q.W):
		p.err = errs.E(op, errs.Full, "too few drives have room")
	default:
		p.err = errs.E(op, errs.Unavailable, "too few drives answered")
	}
	return stepDone
}

// choose takes the base and decides what to propose.
func (p *proposer) choose() step {
	var top *Row
	var floor Ballot
	carry, decided := 0, false
	for _, r := range p.promises {
		if r == nil {
			continue
		}
		floor = maxBallot(floor, r.Floor)
		if r.Row != nil && (top == nil || top.Ballot.Less(r.Row.Ballot)) {
			top, p.versions = r.Row, r.Versions
		}
	}
	p.base, p.baseAt = nil, Ballot{}
	if top != nil {
		p.base, p.baseAt = &top.State, top.Ballot
		for _, r := range p.promises {
			if r == nil || r.Row == nil {
				continue
			}
			if r.Row.Ballot == top.Ballot {
				carry++
			}
			decided = decided || r.Row.Decided && r.Row.State.ID == top.State.ID
		}
	} else {
		p.versions = nil
	}
	if p.orphan != (erasure.DataID{}) && slices.ContainsFunc(p.promises, func(r *PrepareReply) bool { return r != nil && r.Names }) {
		p.phase, p.referenced = phaseDone, true
		return stepDone
	}
	chosen := top == nil || decided || carry >= p.q.W
	low := floor
	if p.mut.noFloorLow {
		low = Ballot{}
	}
	if p.base != nil {
		low = p.base.Low
	}
	if p.op == nil {
		if p.base == nil {
			// Nothing was ever chosen below this ballot; that must stay so for a reader who saw an
			// unchosen row: an empty state takes its place.
			return p.propose(&State{ID: p.ballot, Low: low}, false, nil)
		}
		return p.propose(p.base, true, nil)
	}
	if p.base != nil && !p.mut.noRing && slices.ContainsFunc(p.base.Ring, func(e RingEntry) bool { return e.Op == p.op.ID }) {
		return p.propose(p.base, true, nil) // finished by somebody else
	}
	if p.sent && !p.mut.noRing && !low.Less(p.first) {
		p.phase, p.abandoned = phaseDone, true
		p.err = errs.E("metadata.Update", errs.Unknown, "whether the write happened can no longer be known")
		return stepDone
	}
	if !p.sealed() {
		return p.fail() // reached only to look for an earlier Accept
	}
	change, err := p.op.Apply(p.base, p.versions)
	if err != nil {
		if chosen && !p.sent || p.mut.noFinish {
			p.phase, p.err = phaseDone, err
			p.view = View{State: p.base, Ballot: p.baseAt, Versions: p.versions}
			return stepDone
		}
		return p.refuse(low, err)
	}
	next := p.next(change, low)
	if len(next.Dead) > maxDead {
		err = errs.E("metadata.Update", errs.Busy, "too much replaced data of this key waits for its removal")
		if p.sent {
			return p.refuse(low, err)
		}
		p.phase, p.err = phaseDone, err
		return stepDone
	}
	return p.propose(next, false, nil)
}

// refuse ends the operation with err once base is chosen under this ballot. An Accept of an earlier
// round, whose base was not chosen, may be newer than base where it was taken: nobody may find it later.
func (p *proposer) refuse(low Ballot, err error) step {
	if p.base == nil {
		return p.propose(&State{ID: p.ballot, Low: low}, true, err)
	}
	return p.propose(p.base, true, err)
}

func (p *proposer) sealed() bool {
	both := 0
	for pos, r := range p.promises {
		if r != nil && p.seal(pos) != nil && p.have[pos] {
			both++
		}
	}
	return both >= p.need()
}

// next makes the state that follows base.
func (p *proposer) next(c *Change, low Ballot) *State {
	s := &State{ID: p.ballot, Current: c.Current, Older: c.Older, NextSeq: c.NextSeq, NullSeq: c.NullSeq,
		Low: low, Delta: Delta{Put: c.Put, Drop: c.Drop}}
	if p.base != nil {
		s.Prev, s.Index, s.Extra = p.base.ID, p.base.Index+1, p.base.Extra
		s.Ring = slices.Clone(p.base.Ring)
		for _, d := range p.base.Dead {
			if (keepDead(&d) || p.kind == KindPart) && !slices.Contains(c.ClearDead, d.Data.ID) {
				s.Dead = append(s.Dead, d)
			}
		}
	}
	for _, d := range c.Dead {
		same := func(e DeadData) bool { return e.Data.ID == d.Data.ID }
		if !slices.ContainsFunc(s.Dead, same) && !slices.Contains(c.ClearDead, d.Data.ID) {
			s.Dead = append(s.Dead, d)
		}
	}
	s.Ring = append(s.Ring, RingEntry{Op: p.op.ID, Ballot: p.ballot})
	for len(s.Ring) > p.kept || s.Ring[0].Ballot.Counter+ringWindow < p.ballot.Counter {
		s.Low = maxBallot(s.Low, s.Ring[0].Ballot)
		s.Ring = s.Ring[1:]
	}
	return s
}

// propose goes on to Accept, by way of the pins if the operation has any.
func (p *proposer) propose(s *State, identity bool, outcome error) step {
	p.state, p.identity, p.outcome = s, identity, outcome
	if !identity && p.op != nil && p.op.Pin != nil {
		p.enter(phasePin)
		return stepPin
	}
	return p.accept()
}

// pinned reports what came of Operation.Pin.
func (p *proposer) pinned(err error) step {
	if p.phase != phasePin {
		return stepWait
	}
	if err != nil {
		p.phase = phaseDone
		switch p.err = err; {
		case p.sent && errs.Is(err, errs.Stale):
			p.err = &cutError{errs.Stale, p.first}
		case p.sent:
			p.err = errs.As("metadata.Update", errs.Unknown, err)
		}
		return stepDone
	}
	return p.accept()
}

func (p *proposer) accept() step {
	p.enter(phaseAccept)
	p.acks = make([]bool, p.q.N)
	if !p.identity && p.op != nil && !p.sent {
		p.sent, p.first = true, p.ballot
	}
	return stepAccept
}

// accepted reports the answer of the drive at pos to Accept. After stepDone it may be called on, so
// that the driver learns who is missing.
func (p *proposer) accepted(pos int, r *AcceptReply, err error) step {
	if p.phase == phaseDone && p.acks != nil {
		if err == nil && r.Accepted {
			p.acks[pos] = true
		}
		return stepWait
	}
	if p.phase != phaseAccept || p.heard[pos] {
		return stepWait
	}
	switch {
	case err != nil:
		p.failed[pos], p.heard[pos] = kindOf(err), true
		if p.failed[pos] == errs.Stale || errors.Is(err, errGone) {
			p.without++
		}
	case r.Accepted:
		p.acks[pos], p.heard[pos], p.behind[pos] = true, true, false
	case r.Behind:
		if p.behind[pos] { // again, in spite of the rows: given up
			p.failed[pos], p.heard[pos], p.behind[pos] = errs.Behind, true, false
		} else {
			p.behind[pos] = true
		}
	default:
		p.seen = maxBallot(p.seen, r.Hint)
		p.refused++
		p.heard[pos] = true
	}
	return p.counted()
}

// uncaught reports that the drive at pos could not be brought up to the state.
func (p *proposer) uncaught(pos int) step {
	if p.phase != phaseAccept || p.heard[pos] {
		return stepWait
	}
	p.failed[pos], p.heard[pos], p.behind[pos] = errs.Behind, true, false
	return p.counted()
}

// counted looks whether the acknowledgements suffice.
func (p *proposer) counted() step {
	acks, behind := count(p.acks), count(p.behind)
	if acks >= p.q.W {
		p.phase, p.chosen = phaseDone, true
		p.err = p.outcome
		p.view = View{State: p.state, Ballot: p.ballot}
		if p.identity {
			p.view.Versions = p.versions
		}
		return stepDone
	}
	pending := 0
	for pos, heard := range p.heard {
		if !heard && !p.behind[pos] {
			pending++
		}
	}
	switch {
	case acks+pending >= p.q.W:
		return stepWait
	case acks+pending+behind >= p.q.W && acks > 0:
		return stepCatchUp
	case acks+pending+behind >= p.q.W && pending > 0:
		return stepWait // somebody must have the rows first
	case p.refused > 0 || behind > 0:
		return p.retry()
	case slices.Contains(p.failed, errs.Stale):
		if pending > 0 {
			return stepWait // who takes the state into the next epoch should be known
		}
		return p.fail()
	}
	// Drives failed after Accept went out. The same may happen again, or not.
	if p.identity && !p.sent {
		p.phase = phaseDone
		p.err = errs.E("metadata.Update", errs.Unavailable, "too few drives answered")
		return stepDone
	}
	return p.fail()
}

// surrender ends the operation because the driver has no more time or tries.
func (p *proposer) surrender(cause error) {
	if p.phase == phaseDone {
		return
	}
	p.phase = phaseDone
	kind := errs.Unavailable
	if p.sent {
		kind = errs.Unknown
	} else if k := errs.KindOf(cause); k == errs.Canceled || k == errs.Timeout {
		kind = k
	}
	p.err = errs.As("metadata.Update", kind, cause)
}

// missing lists the positions that lack row or shard as far as is known. It is asked for once the
// state is chosen and the drives were heard or given up.
func (p *proposer) missing() (list []uint8) {
	lacking := p.op != nil && p.op.Lacking != nil && p.op.Lacking()
	for pos, ok := range p.acks {
		if !ok || lacking || p.seal(pos) != nil && !p.have[pos] {
			list = append(list, uint8(pos))
		}
	}
	return list
}

// settles reports whether the proposer knows which shards of the state are durable where. Who only
// made sure of a state that somebody else proposed does not: its unsettled marks stay, until a repair has
// looked.
func (p *proposer) settles() bool { return p.op != nil && p.outcome == nil }

// topRow is the outcome of a quorum read.
type topRow struct {
	row     *Row // nil: absent
	chosen  bool
	who     []int // positions that hold the state
	highest Ballot
}

// judgeRead decides what the replies of a read say; nil entries were not heard. enough is false
// when more replies are needed. An unchosen row must be resolved by an identity round.
func judgeRead(q placement.Quorum, replies []*ReadReply) (top topRow, enough bool) {
	n, carry := 0, 0
	for _, r := range replies {
		if r == nil {
			continue
		}
		n++
		top.highest = maxBallot(top.highest, r.Floor)
		if r.Row == nil {
			continue
		}
		top.highest = maxBallot(top.highest, r.Row.Ballot)
		if top.row == nil || top.row.Ballot.Less(r.Row.Ballot) {
			top.row = r.Row
		}
	}
	if n < q.R {
		return top, false
	}
	if top.row == nil {
		top.chosen = true
		return top, true
	}
	for pos, r := range replies {
		if r == nil || r.Row == nil || r.Row.State.ID != top.row.State.ID {
			continue
		}
		top.who = append(top.who, pos)
		if r.Row.Ballot == top.row.Ballot {
			carry++
		}
		top.chosen = top.chosen || r.Row.Decided
	}
	top.chosen = top.chosen || carry >= q.W
	return top, true
}
