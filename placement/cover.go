package placement

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

// Cover is a set of drives of which each partition has at least R members, so that what they all
// answer together is a quorum read of every partition: what a LIST asks. A Cover is immutable, and
// may be kept for as long as its layout is current.
type Cover struct {
	layout *Layout
	drives []uint16 // in the order in which they were chosen
	failed []uint16 // never chosen
}

// Cover returns a small set of drives that covers all partitions, none of failed among it. Where
// every drive is a member of every partition, that is any R of them, and the smallest set there
// is; elsewhere the set is chosen greedily. Ties are broken by salt, so that different salts
// spread the load. The error is of kind Unavailable if some partition has fewer than R members
// outside failed.
func (l *Layout) Cover(salt uint64, failed ...uint16) (Cover, error) {
	return Cover{layout: l}.grow(salt, failed)
}

// Layout returns the layout that is covered.
func (c Cover) Layout() *Layout { return c.layout }

// Drives returns the drives to ask, the most useful first. Read only.
func (c Cover) Drives() []uint16 { return c.drives }

// Extend returns a cover without the failed drives, that keeps the others and adds as few as it
// can, and the drives that it added. Drives that failed before stay excluded. The error is of kind
// Unavailable if that is impossible.
func (c Cover) Extend(salt uint64, failed ...uint16) (next Cover, added []uint16, err error) {
	failed = append(slices.Clone(c.failed), failed...)
	kept := slices.DeleteFunc(slices.Clone(c.drives), func(d uint16) bool { return slices.Contains(failed, d) })
	next, err = Cover{layout: c.layout, drives: kept}.grow(salt, failed)
	if err != nil {
		return Cover{}, nil, err
	}
	return next, next.drives[len(kept):], nil
}

// Satisfied reports whether the drives for which answered is true have R members of every
// partition among them.
func (c Cover) Satisfied(answered func(drive uint16) bool) bool {
	yes := map[uint16]bool{}
	for _, d := range c.layout.drives {
		yes[d.Num] = answered(d.Num)
	}
	for p := range c.layout.Partitions() {
		have := 0
		for _, d := range c.layout.members(p) {
			if yes[d] {
				have++
			}
		}
		if have < c.layout.Group(p).Quorum.R {
			return false
		}
	}
	return true
}

// grow adds drives to c until it covers.
func (c Cover) grow(salt uint64, failed []uint16) (Cover, error) {
	l := c.layout
	c.failed = slices.Compact(slices.Sorted(slices.Values(failed)))
	c.drives = slices.Clone(c.drives)
	index := make(map[uint16]int, len(l.drives))
	usable := make([]bool, len(l.drives))
	for i := range l.drives {
		index[l.drives[i].Num] = i
		usable[i] = !slices.Contains(c.failed, l.drives[i].Num) && !slices.Contains(c.drives, l.drives[i].Num)
	}
	need := make([]int, l.Partitions()) // members still wanted
	missing := 0
	memberOf := make([][]uint32, len(l.drives))
	gain := make([]int, len(l.drives)) // partitions that still want the drive
	for p := range l.Partitions() {
		need[p] = l.Group(p).Quorum.R
		for _, d := range l.members(p) {
			if slices.Contains(c.drives, d) {
				need[p]--
			}
		}
		if need[p] <= 0 {
			continue
		}
		missing += need[p]
		for _, d := range l.members(p) {
			if i := index[d]; usable[i] {
				memberOf[i] = append(memberOf[i], p)
				gain[i]++
			}
		}
	}
	for missing > 0 {
		best := -1
		for j := range l.drives {
			i := int((salt + uint64(j)) % uint64(len(l.drives)))
			if usable[i] && gain[i] > 0 && (best < 0 || gain[i] > gain[best]) {
				best = i
			}
		}
		if best < 0 {
			return Cover{}, errs.E("placement.Cover", errs.Unavailable,
				fmt.Sprintf("without %d failed drives some partitions have no read quorum", len(c.failed)))
		}
		usable[best] = false
		c.drives = append(c.drives, l.drives[best].Num)
		for _, p := range memberOf[best] {
			if need[p] == 0 {
				continue
			}
			need[p]--
			missing--
			if need[p] > 0 {
				continue
			}
			for _, d := range l.members(p) {
				gain[index[d]]--
			}
		}
	}
	return c, nil
}
