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

// SpreadAfter returns f of the epoch that a move begins: the spread over nodes that comes about, if
// a node may then be lost (at most m members on one); otherwise f stays. With more than m on a node
// its loss stops the partition whatever the quorum is, so there is nothing to be gained by giving up
// the spare shard, and a store that grows from one node keeps its quorum until its members are far
// enough apart. The move must fit the layout.
func (l *Layout) SpreadAfter(m Move) int {
	var room [64]uint16
	row := append(room[:0], l.members(m.Partition)...)
	row[m.Position] = m.To
	if f := l.hostSpread(row); f <= int(l.profile.Parity) {
		return f
	}
	return int(l.spreads[m.Partition])
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

// NewHandover returns what a change needs that ends an epoch with spread f and begins one with
// spread g, of the same profile.
func (l *Layout) NewHandover(f, g int) Handover {
	h := Handover{Old: RecordQuorum(l.profile, f), New: RecordQuorum(l.profile, g)}
	h.Learn, h.Wedge, h.Install = h.Old.N-h.Old.W+1, h.Old.Z, h.New.W
	return h
}
