package trust

import (
	"fmt"
	"slices"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Due says which rotations are to begin by age, or, of the gossip key, because a node was revoked that knows it. One that
// has begun goes on whatever its age: see AdvanceAuthority and AdvanceGossip.
func (s *State) Due(now time.Time) (authority, gossip bool) {
	old := func(r rotation, age time.Duration) bool {
		return r.phase == Settled && now.Unix()-r.since >= int64(age/time.Second)
	}
	known := s.gossipStep.phase == Settled && s.revokedSince(s.gossipStep.since)
	return old(s.authorityStep, AuthorityAge), known || old(s.gossipStep, GossipAge)
}

// revokedSince reports whether a node was revoked at that time, in Unix seconds, or later.
func (s *State) revokedSince(at int64) bool {
	return slices.ContainsFunc(s.revoked, func(r revocation) bool { return r.at >= at })
}

// AdvanceAuthority takes the rotation of the authority one step further: begin, switch, drop. The
// steps after the first need that everyone, which is to say every process of the cluster, holds this very
// state; the last one needs also that certificates which the former authority issued have run out. A process that was away
// during the whole rotation joins again with the secret. Otherwise it ends with errs.Precondition.
func (s *State) AdvanceAuthority(now time.Time, everyone bool) (*State, error) {
	const op = "trust.AdvanceAuthority"
	if err := ready(op, s.authorityStep, everyone); err != nil {
		return nil, err
	}
	if age := s.authorityStep.age(now); s.authorityStep.phase == Switched && age < NodeLife {
		return nil, errs.E(op, errs.Precondition, fmt.Sprintf("certificates of the former authority may be in use for another %s", (NodeLife-age).Round(time.Minute)))
	}
	return s.advanceAuthority(op, now)
}

// ForceAuthority takes the same step at once, for when a key was stolen. Processes that have not followed are shut
// out until they join again with the secret.
func (s *State) ForceAuthority(now time.Time) (*State, error) {
	return s.advanceAuthority("trust.ForceAuthority", now)
}

func (s *State) advanceAuthority(op string, now time.Time) (*State, error) {
	c, err := s.change(op, now)
	if err != nil {
		return nil, err
	}
	switch c.authorityStep.phase {
	case Settled:
		a, err := newAuthority(s.cluster, now)
		if err != nil {
			return nil, errs.As(op, errs.Internal, err)
		}
		c.authorities = append(c.authorities, a)
	case Switched:
		c.authorities = c.authorities[1:]
	}
	c.authorityStep = c.authorityStep.next(now)
	return c, nil
}

// AdvanceGossip takes the rotation of the gossip key one step further: add, use, remove. The steps
// after the first need that everyone holds this very state; otherwise it ends with errs.Precondition.
func (s *State) AdvanceGossip(now time.Time, everyone bool) (*State, error) {
	const op = "trust.AdvanceGossip"
	if err := ready(op, s.gossipStep, everyone); err != nil {
		return nil, err
	}
	c, err := s.change(op, now)
	if err != nil {
		return nil, err
	}
	switch c.gossipStep.phase {
	case Settled:
		c.gossip = append(c.gossip, newGossipKey())
	case Switched:
		c.gossip = c.gossip[1:]
	}
	step := c.gossipStep
	c.gossipStep = step.next(now)
	// Steps come behind the revocations before them, whatever the clocks say: then it is known which were later.
	var last int64
	for _, r := range c.revoked {
		last = max(last, r.at)
	}
	c.gossipStep.since = max(c.gossipStep.since, last+1)
	if step.phase == Switched && last >= step.since {
		c.gossipStep.since = last // who was revoked on the way knows the new key as well: another is due
	}
	return c, nil
}

// ready reports whether a step may be taken as far as others are concerned: the first may always.
func ready(op string, r rotation, everyone bool) error {
	if r.phase == Settled || everyone {
		return nil
	}
	return errs.E(op, errs.Precondition, "not every process of the cluster has followed the last step")
}

func (r rotation) age(now time.Time) time.Duration { return now.Sub(time.Unix(r.since, 0)) }

func (r rotation) next(now time.Time) rotation {
	return rotation{phase: (r.phase + 1) % (Switched + 1), since: now.Unix()}
}
