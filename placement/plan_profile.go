package placement

import "github.com/ostraka/ostraka/erasure"

// DefaultProfileOf returns the profile that a new cluster of these drives gets when the operator
// names none. On one node it is DefaultProfile. On several, n stays, and m rises until it exceeds
// what a node holds of a partition at least: then a node may be lost, writes go on, and what is
// written meanwhile still has a spare shard. Where that would leave fewer data shards than parity,
// it rises to what a node holds, so that a node may be lost at all; and where even that would (two
// nodes are the mirror, k = m), it stays. Zones count as nodes do where a zone can be lost that way. The error is
// that of DefaultProfile.
func DefaultProfileOf(drives []Drive) (erasure.Profile, error) {
	p, err := DefaultProfile(len(drives))
	if err != nil || sameNode(drives) {
		return p, err
	}
	n, m := p.N(), int(p.Parity)
	// With no parity asked for, caps begin at one: the least that drives and nodes allow.
	s := newDomains(drives, nil, n, 1, 1)
	for _, want := range []int{s.zoneCap, s.nodeCap, s.nodeCap + 1} {
		if 2*want <= n {
			m = max(m, want)
		}
	}
	return profile(n-m, m), nil
}
