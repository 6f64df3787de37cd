package cluster

import (
	"context"
	"fmt"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// This file lays a new cluster out once, over the drives of the nodes that it was told to wait for. Until then
// it has the layout of its first node, which nothing may be stored by: no bucket can be made, and who serves objects
// treats the cluster as one without a layout. So the layout may be replaced as a whole, without any
// drive being asked: no register was ever written.

// Expectation is what a new cluster waits for.
type Expectation struct {
	Nodes uint32 // with drives; 0: it waits for nothing
	// Profile and Reduced are those of the layout that follows; zero: chosen then.
	Profile, Reduced erasure.Profile
}

// maxExpected bounds the nodes that are waited for.
const maxExpected = maxNodes

func (e Expectation) waiting() string {
	return fmt.Sprintf("the new cluster waits for %d nodes with drives before it is laid out", e.Nodes)
}

// Expects returns what a new cluster waits for; zero for none.
func (s *State) Expects() Expectation { return s.expects }

// pristine reports whether nothing was ever stored by the layout.
func (s *State) pristine() bool {
	return s.nextID == 1 && len(s.retired) == 0 && len(s.replacements) == 0 && s.moves.plan == nil
}

// Expect has a cluster wait for nodes before it is laid out. Once a bucket was made, or a drive was replaced, the error
// is of kind Precondition. It may be changed as long as the cluster waits.
func (k *Control) Expect(ctx context.Context, e Expectation) error {
	if e.Nodes == 0 || e.Nodes > maxExpected {
		return errs.E("cluster.Expect", errs.Invalid, fmt.Sprintf("a cluster waits for 1 to %d nodes", maxExpected))
	}
	_, _, err := k.repeat(ctx, &command{op: opExpect, value: e.append(nil)})
	return err
}

// LayOut ends the waiting with a layout over drives that have numbers. It is for the layout number that it replaces:
// if that was changed meanwhile the error is of kind Stale.
func (k *Control) LayOut(ctx context.Context, l *placement.Layout, number uint64) error {
	_, _, err := k.repeat(ctx, &command{op: opLayOut, layout: l, epoch: number})
	return err
}

func (s *State) applyFound(next *State, c *command) (any, error) {
	refuse := func(k errs.Kind, msg string) (any, error) { return nil, errs.E("cluster.apply", k, msg) }
	if !s.pristine() {
		return refuse(errs.Precondition, "the cluster holds data, or did: its layout changes by plans")
	}
	if c.op == opExpect {
		e, err := decodeExpectation(c.value)
		if err != nil {
			return nil, err
		}
		next.expects = e
		return nil, nil
	}
	switch {
	case s.expects.Nodes == 0:
		return refuse(errs.Precondition, "the cluster is laid out already")
	case c.layout == nil || c.layout.Bits() != s.layout.Bits():
		return refuse(errs.Invalid, "the layout has another number of partitions")
	case c.epoch != s.layout.Number():
		return refuse(errs.Stale, fmt.Sprintf("the layout is %d now, not %d", s.layout.Number(), c.epoch))
	}
	l, err := c.layout.Succeeding(s.layout)
	if err != nil {
		return nil, err
	}
	next.layout, next.expects = l, Expectation{} // the commit point of the first layout
	return nil, nil
}

func (e Expectation) append(b []byte) []byte {
	b = putUint(b, 1, uint64(e.Nodes))
	b = putUint(b, 2, uint64(e.Profile.Data))
	b = putUint(b, 3, uint64(e.Profile.Parity))
	b = putUint(b, 4, uint64(e.Reduced.Data))
	return putUint(b, 5, uint64(e.Reduced.Parity))
}

func decodeExpectation(b []byte) (e Expectation, err error) {
	err = fields(b, func(f field) (bool, error) {
		limit := uint64(255)
		switch f.num {
		case 1:
			e.Nodes, limit = uint32(f.u), maxExpected
		case 2:
			e.Profile.Data = uint8(f.u)
		case 3:
			e.Profile.Parity = uint8(f.u)
		case 4:
			e.Reduced.Data = uint8(f.u)
		case 5:
			e.Reduced.Parity = uint8(f.u)
		default:
			return false, nil
		}
		if f.u > limit {
			return true, errMalformed()
		}
		return true, nil
	})
	return e, err
}
