package metadata

import (
	"fmt"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// What an operation says that its epoch's end met: whether an Accept of it may have been taken.
func TestAnOperationThatAnEpochsEndMeetsSaysWhetherItWasSent(t *testing.T) {
	stale := errs.E("test", errs.Stale, "wedged")
	timeout := errs.E("test", errs.Timeout, "late")
	q := placement.Quorum{N: 3, W: 2, R: 2}
	for name, c := range map[string]struct {
		prepare [3]error // nil: promised
		accept  [3]error // nil: taken; not reached if the promises do not suffice
		want    errs.Kind
		sent    bool
	}{
		"wedged before the promises":           {[3]error{stale, stale, stale}, [3]error{}, errs.Stale, false},
		"one is gone, another wedged":          {[3]error{nil, errGone, stale}, [3]error{}, errs.Stale, false},
		"gone, without a wedge":                {[3]error{nil, errGone, timeout}, [3]error{}, errs.Unavailable, false},
		"wedged before any took it":            {[3]error{}, [3]error{stale, stale, stale}, errs.Stale, false},
		"wedged before any took it, one gone":  {[3]error{}, [3]error{stale, errGone, stale}, errs.Stale, false},
		"one took it":                          {[3]error{}, [3]error{nil, stale, stale}, errs.Stale, true},
		"one may have taken it":                {[3]error{}, [3]error{timeout, stale, stale}, errs.Stale, true},
		"enough took it":                       {[3]error{}, [3]error{nil, stale, nil}, 0, true},
		"too few took it, and there is no end": {[3]error{}, [3]error{nil, timeout, timeout}, errs.Unknown, true},
	} {
		t.Run(name, func(t *testing.T) {
			op := &Operation{ID: 7, Apply: func(*State, []Version) (*Change, error) { return &Change{Current: &Version{Seq: 1}}, nil }}
			p := newProposer(q, KindObject, op, mutations{})
			first := Ballot{Counter: 5, Proposer: 1}
			p.begin(first)
			next := stepWait
			for pos, err := range c.prepare {
				if next == stepWait {
					next = p.promise(pos, &PrepareReply{Promised: true}, err)
				}
			}
			for pos, err := range c.accept {
				if p.phase == phaseAccept {
					next = p.accepted(pos, &AcceptReply{Accepted: true}, err)
				}
			}
			if next != stepDone {
				t.Fatalf("step %d", next)
			}
			if c.want == 0 {
				if p.err != nil {
					t.Fatal(p.err)
				}
				return
			}
			if !errs.Is(p.err, c.want) {
				t.Fatalf("got %v, want kind %v", p.err, c.want)
			}
			if c.want != errs.Stale {
				return
			}
			sent := SentBallot(fmt.Errorf("wrapped: %w", p.err))
			if c.sent && sent != first || !c.sent && !sent.IsZero() {
				t.Fatalf("sent under %v, want %v", sent, c.sent)
			}
			// The next epoch: a state that came with the image has the operation in its ring.
			again := *op
			again.Sent = sent
			p = newProposer(q, KindObject, &again, mutations{})
			p.begin(Ballot{Counter: 9, Proposer: 2})
			row := &Row{Ballot: Ballot{Counter: 8}, State: State{ID: first, Ring: []RingEntry{{Op: 7, Ballot: first}}}}
			p.promise(0, &PrepareReply{Promised: true, Row: row}, nil)
			if next := p.promise(1, &PrepareReply{Promised: true}, nil); next != stepAccept || !p.identity {
				t.Errorf("step %d, identity %v: an operation that is in the ring is proposed again", next, p.identity)
			}
			// And one that may have fallen out of the ring is not.
			p = newProposer(q, KindObject, &again, mutations{})
			p.begin(Ballot{Counter: 9, Proposer: 3})
			row = &Row{Ballot: Ballot{Counter: 8}, State: State{ID: Ballot{Counter: 7}, Low: Ballot{Counter: 6}}}
			p.promise(0, &PrepareReply{Promised: true, Row: row}, nil)
			next = p.promise(1, &PrepareReply{Promised: true}, nil)
			if c.sent && !errs.Is(p.err, errs.Unknown) || !c.sent && next != stepAccept {
				t.Errorf("step %d, %v; sent before: %v", next, p.err, c.sent)
			}
		})
	}
}
