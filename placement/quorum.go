package placement

import (
	"fmt"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// Quorum is the record quorum of a partition.
type Quorum struct {
	N int // members
	W int // promises and accepts that a write needs
	R int // replies that a read needs; a read of an inline body asks max(R, k)
	Z int // members that a change of membership must wedge
}

// RecordQuorum returns the record quorum of a partition with profile p, of which at most f shards
// lie in one failure domain (f below 1 counts as 1).
func RecordQuorum(p erasure.Profile, f int) Quorum {
	n, k := p.N(), int(p.Data)
	w := max(n/2+1, k+spare(p, f))
	q := Quorum{N: n, W: w, R: max(n-w+1, min(k, n/2+1))}
	q.Z = WedgeQuorum(q)
	return q
}

// WedgeQuorum returns Z, which follows from N, W and R: with so many members wedged, those that are
// left are too few for a write, and too few for a read. A retired drive, which never answers again,
// counts as wedged.
func WedgeQuorum(q Quorum) int { return max(q.N-q.W+1, q.N-q.R+1) }

// ShardQuorum returns how many shards of a body with profile p must be durable before a record may
// name it: k plus one spare where the profile still has one after the loss of a failure domain
// with f shards.
func ShardQuorum(p erasure.Profile, f int) int { return int(p.Data) + spare(p, f) }

// spare is r = clamp(m − f, 0, 1).
func spare(p erasure.Profile, f int) int { return min(max(int(p.Parity)-max(f, 1), 0), 1) }

// DefaultProfile returns the profile that a new cluster of the given number of drives gets when
// the operator names none: it survives one drive from two drives on, two from four, three from
// eight, four from twelve.
func DefaultProfile(drives int) (erasure.Profile, error) {
	if drives < 1 {
		return erasure.Profile{}, errs.E("placement.DefaultProfile", errs.Invalid,
			fmt.Sprintf("a cluster needs at least one drive, not %d", drives))
	}
	m := 0
	switch {
	case drives >= 12:
		drives, m = 12, 4
	case drives >= 8:
		m = 3
	case drives >= 4:
		m = 2
	case drives >= 2:
		m = 1
	}
	return profile(drives-m, m), nil
}

// ReducedProfile returns the profile of the storage class REDUCED_REDUNDANCY beside p: the same k
// with one parity shard less, but never less than one where p has any.
func ReducedProfile(p erasure.Profile) erasure.Profile {
	if p.Parity <= 1 {
		return p
	}
	return profile(int(p.Data), int(p.Parity)-1)
}
