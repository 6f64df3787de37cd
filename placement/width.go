package placement

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// A partition becomes wider in one step: drives join its members, at the positions behind theirs, and its next
// epoch has the layout's profile (WithProfile, then Move with moves from nobody). What was written before lies
// where it lay, under its own profile: positions are counted within the width that the partition had then, which
// references name unless it is the first one that the layout ever had. A partition never becomes narrower.

// Storage classes, by which a profile is chosen. "" is STANDARD.
const (
	ClassStandard = "STANDARD"
	ClassReduced  = "REDUCED_REDUNDANCY"
)

// NoReduced is the document of a bucket (cluster.Bucket.Config) into which no body of the class REDUCED_REDUNDANCY was
// ever begun to be written. It is there from the creation on, is removed before the first such body, and never returns;
// older buckets lack it.
const NoReduced = "no-reduced-redundancy"

// Profiles are what new bodies are coded with in partitions of one width: as wide as the partition for the
// class STANDARD, and any that fits for REDUCED_REDUNDANCY.
type Profiles struct{ Standard, Reduced erasure.Profile }

// Of returns the profile of a storage class.
func (p Profiles) Of(class string) erasure.Profile {
	if class == ClassReduced {
		return p.Reduced
	}
	return p.Standard
}

// Width returns the number of members of the partitions that have these profiles.
func (p Profiles) Width() int { return p.Standard.N() }

// Width returns the number of members of a partition.
func (l *Layout) Width(partition uint32) int { return l.ProfilesOf(partition).Width() }

// FirstWidth returns the number of members that partitions had in the first layout: within so many positions
// lies what names no width.
func (l *Layout) FirstWidth() int {
	if len(l.earlier) > 0 {
		return l.earlier[0].Width()
	}
	return l.N()
}

// ProfilesOf returns the profiles of a partition.
func (l *Layout) ProfilesOf(partition uint32) Profiles {
	if l.stages != nil {
		if stage := int(l.stages[partition]); stage < len(l.earlier) {
			return l.earlier[stage]
		}
	}
	return Profiles{l.profile, l.reduced}
}

// ProfileOf returns the profile with which a new body of a storage class is coded that lies in one partition. One of
// several chunks takes the least of those of its partitions: see BodyProfiles.
func (l *Layout) ProfileOf(class string, partition uint32) erasure.Profile {
	return l.ProfilesOf(partition).Of(class)
}

// Profiles returns all profiles that the layout had, oldest first, and the present ones last: bodies of any of them may
// be stored.
func (l *Layout) Profiles() []Profiles {
	return append(slices.Clone(l.earlier), Profiles{l.profile, l.reduced})
}

// BodyProfiles returns the profiles for a new body of several chunks, the first of which lies in keyPartition: the
// widest that all partitions of its chunks can hold.
func (l *Layout) BodyProfiles(id erasure.DataID, chunks, keyPartition uint32) Profiles {
	least := l.ProfilesOf(keyPartition)
	if !l.Widening() {
		return least
	}
	for i := uint32(1); i < chunks; i++ {
		if p := l.ProfilesOf(l.ChunkPartition(id, i, keyPartition)); p.Width() < least.Width() {
			least = p
		}
	}
	return least
}

// Widening reports whether some partition is narrower than the profile of the layout.
func (l *Layout) Widening() bool { return l.stages != nil }

// Narrow returns how many partitions are narrower than the profile of the layout.
func (l *Layout) Narrow() (n int) {
	for _, stage := range l.stages {
		if int(stage) < len(l.earlier) {
			n++
		}
	}
	return n
}

// WithProfile returns the next layout, whose partitions are to become as wide as p. None does by this. reduced is the
// profile of REDUCED_REDUNDANCY beside it. The error is of kind Invalid if p is not wider than the layout's profile,
// has fewer parity shards, or needs more drives than there are.
func (l *Layout) WithProfile(p, reduced erasure.Profile) (*Layout, error) {
	if err := l.checkWider(p); err != nil {
		return nil, errs.As("placement.WithProfile", errs.Invalid, err)
	}
	if !reduced.Valid() || reduced.N() > p.N() {
		return nil, errs.E("placement.WithProfile", errs.Invalid, fmt.Sprintf("profile %s does not fit into partitions of %d drives", reduced, p.N()))
	}
	if len(l.drives) < p.N() {
		return nil, errs.E("placement.WithProfile", errs.Invalid, fmt.Sprintf("profile %s needs %d drives, and there are %d", p, p.N(), len(l.drives)))
	}
	n := l.next()
	n.restride(p.N())
	n.stages = slices.Clone(l.stages)
	if n.stages == nil {
		n.stages = slices.Repeat([]uint8{uint8(len(l.earlier))}, int(l.Partitions()))
	}
	n.earlier = append(slices.Clone(l.earlier), Profiles{l.profile, l.reduced})
	n.profile, n.reduced = p, reduced
	return n, nil
}

// checkWider reports a profile that partitions cannot be widened to.
func (l *Layout) checkWider(p erasure.Profile) error {
	switch {
	case !p.Valid():
		return fmt.Errorf("profile %d+%d is out of range", p.Data, p.Parity)
	case p.N() < l.N():
		return fmt.Errorf("profile %s is narrower than %s, which the store has: partitions can only become wider", p, l.profile)
	case p.N() == l.N():
		return fmt.Errorf("profile %s is as wide as %s, which the store has: partitions can only become wider", p, l.profile)
	case p.Parity < l.profile.Parity:
		return fmt.Errorf("profile %s has fewer parity shards than %s, which the store has: it would outlive fewer losses", p, l.profile)
	}
	return nil
}

// WithoutProfile returns the next layout, with the profile that it had before the last WithProfile; l itself if
// there was none, or some partition has become as wide since.
func (l *Layout) WithoutProfile() *Layout {
	last := len(l.earlier) - 1
	if l.Narrow() < int(l.Partitions()) {
		return l
	}
	n := l.next()
	n.profile, n.reduced = l.earlier[last].Standard, l.earlier[last].Reduced
	if n.earlier = nil; last > 0 {
		n.earlier = slices.Clone(l.earlier[:last])
	}
	n.restride(n.N())
	n.stages = slices.Clone(l.stages)
	n.trimStages()
	return n
}

// restride gives every row of the table width places.
func (l *Layout) restride(width int) {
	old := len(l.table) >> l.bits
	move := func(from []uint16) []uint16 {
		if from == nil {
			return nil
		}
		to := make([]uint16, width<<l.bits)
		for p := range int(l.Partitions()) {
			copy(to[p*width:(p+1)*width], from[p*old:(p+1)*old])
		}
		return to
	}
	l.table, l.formers = move(l.table), move(l.formers)
}

// trimStages lets go of the stages of partitions if none is narrower than it is to be.
func (l *Layout) trimStages() {
	if l.Narrow() == 0 {
		l.stages = nil
	}
}
