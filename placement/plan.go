package placement

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// Move is one member of one partition that gives its position to another drive, or a drive that joins a partition
// which becomes wider.
type Move struct {
	Partition uint32
	Position  int
	From, To  uint16 // drive numbers; From 0: nobody, the position is new
}

// Joins reports whether the move takes a position that nobody had. All that do of one partition are made together.
func (m Move) Joins() bool { return m.From == 0 }

// GoalDrive is a drive as it is to be.
type GoalDrive struct {
	Drive
	Leaving bool // it is to have no places any more: drained, or dead
}

// Goal is what a plan is made for.
type Goal struct {
	// Drives are those of the layout, all of them, with node, zone and capacity as they are now, and newcomers.
	Drives []GoalDrive
	// Profile is what partitions are to be as wide as; zero: as the layout's profile. It is wider than that, or the same.
	Profile erasure.Profile
	// Bytes is what one member of each partition holds, by partition; nil: Average in each. They
	// count what moves, and decide nothing.
	Bytes   []uint64
	Average uint64
}

// Plan is how a layout becomes the one that a goal asks for: a value to be looked at, then applied,
// or not. It is good only for the layout that it was computed from (Fits).
type Plan struct {
	// Layout is the number of the layout that the plan was computed from.
	Layout uint64
	// Profiles are what the layout is to have, if partitions become wider than its profile; zero: they stay.
	Profiles Profiles
	// Widened is how many partitions become wider, by Moves from nobody: all of their new positions, together.
	Widened int
	// Drives are those of the next layouts, ascending by number: with what the goal says of them,
	// newcomers and those that leave included.
	Drives []Drive
	// Leaving are the drives that have no places once all moves are made, and leave the list once nothing
	// refers to them. Ascending. One that the goal names is not here if it keeps a place for now (Reasons says why).
	Leaving []uint16
	// Moves in the order in which they are to be made. Those of one partition are in an order in
	// which its spread never gets worse on the way, where there is one. Partitions are independent
	// of each other.
	Moves []Move
	// Least is a lower bound of the moves: with fewer, no table reaches the shares that the
	// capacities ask for, and the caps.
	Least int
	// Bytes is what moves in all. A position that is new gets nothing but rows.
	Bytes uint64
	// NodeCap and ZoneCap are the most members of a partition that the plan puts on one node, and
	// into one zone: m, or the least that the cluster can do with.
	NodeCap, ZoneCap int
	// Capacity is what the drives that stay hold together, in bytes, and Usable how much of it a full store
	// fills, all shards counted, before and after; Limit is the most that any table within the
	// caps could fill. All are 0 if a capacity is unknown.
	Capacity, UsableBefore, UsableAfter, Limit uint64
	// Changes says what the plan does to each drive, in the order of Drives.
	Changes []DriveChange
	// Before and After say what the loss of failure domains means.
	Before, After Exposure
	// Reasons says, for people, why the outcome is not ideal; empty if it is.
	Reasons []string

	bits          uint8
	spreads, then []uint8 // by partition: f of the quorum before, and once all is moved
	narrow        int     // partitions that cannot become wider yet
}

// DriveChange is what a plan does to one drive.
type DriveChange struct {
	Drive         uint16
	Before, After int // places
	In, Out       int // moves to and from it
	BytesIn       uint64
	BytesOut      uint64
}

// Exposure is what the loss of failure domains means to a table.
type Exposure struct {
	// Drives, Nodes and Zones say how many may be lost at once, whichever they are, with every
	// partition keeping k members.
	Drives, Nodes, Zones int
	// Domains has each node and each zone, nodes first.
	Domains []DomainLoss
}

// DomainLoss is what the loss of one failure domain means.
type DomainLoss struct {
	Node       [16]byte // of a node; zero for a zone
	Zone       string   // of a zone, or the node's
	IsZone     bool
	Drives     int // that stay or leave, with places
	Most       int // most members of one partition in it
	NoWrites   int // partitions that could not be written without it: fewer than W members are left
	Unreadable int // partitions that could not be read: fewer than k or R members are left
}

// Fits returns an error of kind Stale unless the plan was computed from l, by its number.
func (p *Plan) Fits(l *Layout) error {
	if p.Layout != l.number || p.bits != l.bits {
		return errs.E("placement.Plan", errs.Stale, fmt.Sprintf("the plan is for layout %d, and the layout is %d now: plan again", p.Layout, l.number))
	}
	return nil
}

// Spread returns f of a partition's quorum as it is, and as it is once all moves are made.
func (p *Plan) Spread(partition uint32) (before, after int) {
	return int(p.spreads[partition]), int(p.then[partition])
}

// Apply returns the layout in which all is moved: what the operator is shown, and what a simulation
// goes on with. A store gets there move by move. The error is that of Fits, or of kind Invalid if a
// move does not fit its partition.
func (p *Plan) Apply(l *Layout) (*Layout, error) {
	const op = "placement.Plan.Apply"
	if err := p.Fits(l); err != nil {
		return nil, err
	}
	n := l.next()
	n.drives = slices.Clone(p.Drives)
	if err := checkDrives(n.drives); err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	n.table, n.epochs, n.spreads, n.stages = slices.Clone(l.table), slices.Clone(l.epochs), slices.Clone(l.spreads), slices.Clone(l.stages)
	if p.Profiles != (Profiles{}) {
		var err error
		if n, err = n.WithProfile(p.Profiles.Standard, p.Profiles.Reduced); err != nil {
			return nil, err
		}
		n.number = l.number + 1
	}
	for moves := p.Moves; len(moves) > 0; {
		set := togetherIn(moves)
		for _, m := range set {
			if err := n.checkMove(m); err != nil {
				return nil, errs.As(op, errs.Invalid, err)
			}
		}
		part := set[0].Partition
		g := n.Next(set)
		if n.epochs[part]++; set[0].Joins() {
			if n.Width(part)+len(set) != n.N() {
				return nil, errs.E(op, errs.Invalid, fmt.Sprintf("partition %d would not be as wide as it is to be", part))
			}
			n.stages[part] = uint8(len(n.earlier))
		}
		copy(n.members(part), g.Drives)
		n.spreads[part] = uint8(g.Spread)
		moves = moves[len(set):]
	}
	n.trimStages()
	n.drives = slices.DeleteFunc(n.drives, func(d Drive) bool {
		return slices.Contains(p.Leaving, d.Num) && !slices.Contains(n.formers, d.Num)
	})
	for _, num := range n.table {
		if _, ok := n.search(num); !ok {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %d is a member and not in the layout", num))
		}
	}
	return n, nil
}

// togetherIn returns the first moves of a list that are made together: one, or all by which a partition becomes wider.
func togetherIn(moves []Move) []Move {
	n := 1
	for moves[0].Joins() && n < len(moves) && moves[n].Joins() && moves[n].Partition == moves[0].Partition {
		n++
	}
	return moves[:n]
}

// checkMove reports a move that does not fit the table.
func (l *Layout) checkMove(m Move) error {
	if m.Partition >= l.Partitions() || m.Position < 0 || m.Position >= l.N() {
		return fmt.Errorf("there is no position %d in partition %d", m.Position, m.Partition)
	}
	row := l.members(m.Partition)
	switch {
	case m.Joins() && m.Position < len(row):
		return fmt.Errorf("position %d of partition %d is drive %d's, and nobody can join it there", m.Position, m.Partition, row[m.Position])
	case !m.Joins() && m.Position >= len(row):
		return fmt.Errorf("partition %d has no position %d yet", m.Partition, m.Position)
	case !m.Joins() && row[m.Position] != m.From:
		return fmt.Errorf("position %d of partition %d is drive %d's, not drive %d's", m.Position, m.Partition, row[m.Position], m.From)
	}
	if slices.Contains(row, m.To) {
		return fmt.Errorf("drive %d is in partition %d already", m.To, m.Partition)
	}
	if _, ok := l.search(m.To); !ok {
		return fmt.Errorf("drive %d is not in the layout", m.To)
	}
	return nil
}
