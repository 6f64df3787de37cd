package placement

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// NewPlan computes how l becomes what the goal asks for: no partition has more than m members in one
// failure domain (node first, then zone) wherever there are enough of them; within that,
// each drive has places in proportion to its size; within that, as few members move as can be
// found; and where it costs no move, each drive stands in each position about equally often.
// Members that stay keep their positions. A position whose shards have not all followed its last move stays
// as it is, and the plan says so where that matters: plan again later. The same layout and goal give the same plan. It
// takes seconds for a thousand drives and 65,536 partitions.
//
// If the goal's profile is wider than a partition, drives join it first, all together, at the positions behind its members.
//
// The error is of kind Invalid if the goal lacks a drive of the layout or contradicts itself, if its profile is not
// wider than the layout's, or if fewer drives stay than a partition is to have members.
func NewPlan(l *Layout, g Goal) (*Plan, error) {
	const op = "placement.NewPlan"
	p := &Plan{Layout: l.number, bits: l.bits}
	for _, d := range g.Drives {
		p.Drives = append(p.Drives, d.Drive)
		if d.Leaving {
			p.Leaving = append(p.Leaving, d.Num)
		}
	}
	slices.SortFunc(p.Drives, func(a, b Drive) int { return int(a.Num) - int(b.Num) })
	slices.Sort(p.Leaving)
	if err := l.checkGoal(p, &g); err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	wide := l
	if g.Profile != (erasure.Profile{}) && g.Profile != l.profile {
		p.Profiles = Profiles{g.Profile, ReducedProfile(g.Profile)}
		room := *l // with room for the drives that are not in it yet
		room.drives = p.Drives
		var err error
		if wide, err = room.WithProfile(p.Profiles.Standard, p.Profiles.Reduced); err != nil {
			return nil, errs.As(op, errs.Invalid, errors.Unwrap(err))
		}
		wide.number = l.number
	}
	p.plan(wide, &g)
	return p, nil
}

// plan fills in what becomes of a layout, that has the profile which the goal asks for.
func (p *Plan) plan(l *Layout, g *Goal) {
	leaving := make([]bool, len(p.Drives))
	for i := range p.Drives {
		_, leaving[i] = slices.BinarySearch(p.Leaving, p.Drives[i].Num)
	}
	s := newShuffle(newDomains(p.Drives, leaving, l.N(), int(l.profile.Parity), int(l.Partitions())), indexes(l.table, p.Drives))
	if l.formers != nil {
		s.former = indexes(l.formers, p.Drives)
	}
	s.run()
	p.narrow = s.giveUpHalf()
	p.NodeCap, p.ZoneCap, p.Least = s.nodeCap, s.zoneCap, s.least
	p.describe(l, g, s)
}

// checkGoal reports a goal that does not fit the layout. p has its drives, sorted.
func (l *Layout) checkGoal(p *Plan, g *Goal) error {
	if len(p.Drives) > MaxDrives {
		return fmt.Errorf("at most %d drives, not %d", MaxDrives, len(p.Drives))
	}
	if err := checkDrives(p.Drives); err != nil {
		return err
	}
	if len(p.Drives) > 0 && p.Drives[0].Num == 0 {
		return errors.New("number 0 is no drive's")
	}
	goal := &Layout{drives: p.Drives}
	for i := range l.drives {
		d, ok := goal.Drive(l.drives[i].Num)
		if !ok {
			return fmt.Errorf("the goal does not say what becomes of drive %d", l.drives[i].Num)
		}
		if d.ID != l.drives[i].ID {
			return fmt.Errorf("drive %d has another id in the goal", d.Num)
		}
	}
	for _, num := range p.Leaving {
		if _, ok := l.search(num); !ok {
			return fmt.Errorf("drive %d is to leave, and is not in the layout", num)
		}
	}
	prof := l.profile
	if g.Profile != (erasure.Profile{}) && g.Profile != prof {
		if err := l.checkWider(g.Profile); err != nil {
			return err
		}
		prof = g.Profile
	}
	if stay := len(p.Drives) - len(p.Leaving); stay < prof.N() {
		return fmt.Errorf("profile %s needs %d drives, and %d would stay", prof, prof.N(), stay)
	}
	if g.Bytes != nil && len(g.Bytes) != int(l.Partitions()) {
		return fmt.Errorf("the sizes of %d partitions are given, of %d", len(g.Bytes), l.Partitions())
	}
	return nil
}

// indexes returns a table as indexes into drives. Number 0 is nobody, a hole; a former member that
// the layout does not have any more is gone.
func indexes(table []uint16, drives []Drive) []uint16 {
	index := make(map[uint16]uint16, len(drives))
	for i := range drives {
		index[drives[i].Num] = uint16(i)
	}
	out := make([]uint16, len(table))
	for i, num := range table {
		d, ok := index[num]
		switch {
		case num == 0:
			d = hole
		case !ok:
			d = gone
		}
		out[i] = d
	}
	return out
}
