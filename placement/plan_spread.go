package placement

// A partition's quorum follows from its spread f, which stands in the layout and changes only with
// the epoch. So a move says which f the epoch has that it begins, and the change of membership works
// with two quorums: it ends one epoch under the old, and begins the next under the new.

// HostSpread returns the most members of a partition on one node, as the layout knows its drives
// now: what f would be in a first layout of several nodes. In a cluster of one node it is 1, since
// there the failure domain is the drive.
func (l *Layout) HostSpread(partition uint32) int {
	return l.hostSpread(l.members(partition))
}

// SpreadAfter returns f of the epoch that a move begins: see Next.
func (l *Layout) SpreadAfter(m Move) int { return l.Next([]Move{m}).Spread }

// Next returns the group of the epoch that moves of one partition begin: one of a position that is given away, or all
// that make the partition wider. They must fit the layout. Formers are not told.
//
// f is the spread over nodes that comes about, if a node may then be lost (at most m members on one); otherwise f
// stays. With more than m on a node its loss stops the partition whatever the quorum is, so there is nothing to be
// gained by giving up the spare shard, and a store that grows from one node keeps its quorum until its members are
// far enough apart.
func (l *Layout) Next(moves []Move) Group {
	g := l.Group(moves[0].Partition)
	g.Epoch++
	g.Former = nil
	if moves[0].Joins() {
		g.Profile = l.profile
	}
	row := make([]uint16, g.Profile.N())
	copy(row, g.Drives)
	for _, m := range moves {
		row[m.Position] = m.To
	}
	g.Drives = row
	if f := l.hostSpread(row); f <= int(g.Profile.Parity) {
		g.Spread = f
	}
	g.Quorum = RecordQuorum(g.Profile, g.Spread)
	return g
}

// hostSpread is spread of a row of drive numbers. Drives that are not in the layout count as one node.
func (l *Layout) hostSpread(row []uint16) int {
	if sameNode(l.drives) {
		return 1
	}
	var room [64][16]byte
	nodes := room[:0]
	for _, num := range row {
		d, _ := l.Drive(num)
		nodes = append(nodes, d.Node)
	}
	f := 0
	for i := range nodes {
		same := 0
		for j := range nodes {
			if nodes[i] == nodes[j] {
				same++
			}
		}
		f = max(f, same)
	}
	return f
}

// Handover is what a change of one member needs when the quorum changes with it.
type Handover struct {
	Old, New Quorum
	// Learn members of the old epoch must tell what they hold: each chosen state of the old epoch,
	// which W of them accepted, is met in so many.
	Learn int
	// Wedge members of the old epoch must be wedged, or retired for ever: what is left is too few for a
	// write of the old epoch, and for a read.
	Wedge int
	// Install members of the new epoch must have the image before it is published: every write of the
	// new epoch meets one of them, and every read.
	Install int
}

// NewHandover returns what a change needs that ends an epoch of one quorum and begins one of another: with another
// spread, or more members.
func NewHandover(old, next Quorum) Handover {
	return Handover{Old: old, New: next, Learn: old.N - old.W + 1, Wedge: old.Z, Install: next.W}
}
