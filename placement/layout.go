package placement

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// Limits of a layout.
const (
	DefaultBits = 12   // 4096 partitions
	MaxBits     = 16   // 65536 partitions
	MaxDrives   = 4096 // drives of one cluster
)

// Drive is one drive as the layout knows it.
type Drive struct {
	Num      uint16   // number in the cluster, never reused
	ID       [16]byte // identity on the drive
	Node     [16]byte // the node (host) that it belongs to
	Zone     string
	Capacity uint64 // bytes; 0: unknown, counts as the mean of the others
	Class    string // drive class (a door): "" is the only one yet
}

// Group is the membership of one partition in one epoch.
type Group struct {
	Partition uint32
	Epoch     uint64
	Drives    []uint16 // numbers by position; read only
	Quorum    Quorum
	Profile   erasure.Profile // as wide as the partition
	Spread    int             // f: most members in one failure domain
	// First is how many members partitions had in the first layout; 0: as many as this one has.
	First int
	// Former are, by position, the drives that stood there before and may still have shards that the
	// present one lacks (0: none); nil: no position has one. Read only.
	Former []uint16
}

// FormerAt returns the drive that may still have shards of a position, besides the one that stands there.
func (g Group) FormerAt(position int) (drive uint16, ok bool) {
	if position >= len(g.Former) || g.Former[position] == 0 {
		return 0, false
	}
	return g.Former[position], true
}

// Position returns the position of a drive in the group, or -1.
func (g Group) Position(drive uint16) int { return slices.Index(g.Drives, drive) }

// Layout is a numbered, immutable table partition → n drives.
type Layout struct {
	number  uint64
	bits    uint8
	profile erasure.Profile // what partitions have, or are on their way to
	reduced erasure.Profile
	earlier []Profiles // profiles that it had before, ascending by width
	drives  []Drive    // ascending by Num
	table   []uint16   // drive numbers, partition·n + position; 0 behind the members of a narrower partition
	stages  []uint8    // by partition: index into earlier, or its length; nil: no partition is narrower
	epochs  []uint64   // by partition
	spreads []uint8    // by partition: f
	formers []uint16   // like table: who stood there before its shards moved, 0: nobody; nil: nobody anywhere
	extra   []byte     // optional fields of a newer build, as they were
}

// NewLayout makes the first layout, number 1, every partition in epoch 1: partitions get drives in
// proportion to capacity (as far as n distinct drives a partition allow it), and each drive stands
// in each position equally often (±1). Drives of several nodes are spread as a plan would: never more than m
// members of a partition on one node, nor in one zone, wherever there are enough of them. The quorums follow
// from the spread that came about. bits is log2 of the number of partitions. The same arguments, in any order of
// drives, give the same layout.
func NewLayout(drives []Drive, p erasure.Profile, bits uint8) (*Layout, error) {
	const op = "placement.NewLayout"
	n := p.N()
	switch {
	case !p.Valid():
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("profile %d+%d is out of range", p.Data, p.Parity))
	case bits > MaxBits:
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("at most 2^%d partitions, not 2^%d", MaxBits, bits))
	case len(drives) < n:
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("profile %d+%d needs %d drives, not %d", p.Data, p.Parity, n, len(drives)))
	case len(drives) > MaxDrives:
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("at most %d drives, not %d", MaxDrives, len(drives)))
	}
	drives = slices.Clone(drives)
	slices.SortFunc(drives, func(a, b Drive) int { return int(a.Num) - int(b.Num) })
	if err := checkDrives(drives); err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	rows := assign(drives, p, 1<<bits)
	l := &Layout{
		number: 1, bits: bits, profile: p, reduced: ReducedProfile(p), drives: drives,
		table:   make([]uint16, 0, n<<bits),
		epochs:  make([]uint64, 1<<bits),
		spreads: make([]uint8, 1<<bits),
	}
	oneNode := sameNode(drives)
	for i, row := range rows {
		for _, d := range row {
			l.table = append(l.table, drives[d].Num)
		}
		l.epochs[i] = 1
		l.spreads[i] = uint8(spread(drives, row, oneNode))
	}
	return l, nil
}

// Number returns the number of the layout: 1 for the first.
func (l *Layout) Number() uint64 { return l.number }

// Bits returns log2 of the number of partitions.
func (l *Layout) Bits() uint8 { return l.bits }

// Partitions returns the number of partitions.
func (l *Layout) Partitions() uint32 { return 1 << l.bits }

// Profile returns the profile of the storage class STANDARD, as wide as a partition, or as all are to become.
func (l *Layout) Profile() erasure.Profile { return l.profile }

// Reduced returns the profile of the storage class REDUCED_REDUNDANCY.
func (l *Layout) Reduced() erasure.Profile { return l.reduced }

// WithReduced returns the layout with another profile for REDUCED_REDUNDANCY: any that fits into a
// partition.
func (l *Layout) WithReduced(p erasure.Profile) (*Layout, error) {
	if !p.Valid() || p.N() > l.N() {
		return nil, errs.E("placement.WithReduced", errs.Invalid,
			fmt.Sprintf("profile %s does not fit into partitions of %d drives", p, l.N()))
	}
	n := *l
	n.reduced = p
	return &n, nil
}

// N returns the number of members of a partition, once all are as wide as they are to become; see Width.
func (l *Layout) N() int { return l.profile.N() }

// Drives returns the drives, ascending by number. Read only.
func (l *Layout) Drives() []Drive { return l.drives }

// Drive returns the drive with number num.
func (l *Layout) Drive(num uint16) (Drive, bool) {
	i, ok := l.search(num)
	if !ok {
		return Drive{}, false
	}
	return l.drives[i], true
}

// search returns the index of a drive in drives, or where it would be.
func (l *Layout) search(num uint16) (int, bool) {
	return slices.BinarySearchFunc(l.drives, num, func(d Drive, n uint16) int { return int(d.Num) - int(n) })
}

// Group returns the membership of a partition. The partition must be below Partitions().
func (l *Layout) Group(partition uint32) Group {
	f, prof := int(l.spreads[partition]), l.ProfilesOf(partition).Standard
	return Group{
		Partition: partition, Epoch: l.epochs[partition], Drives: l.members(partition), Quorum: RecordQuorum(prof, f),
		Profile: prof, Spread: f, First: l.FirstWidth(), Former: l.former(partition),
	}
}

// Spread returns the largest f of any partition.
func (l *Layout) Spread() int { return int(slices.Max(l.spreads)) }

// members returns the row of a partition, without room behind it that an append could overwrite.
func (l *Layout) members(partition uint32) []uint16 {
	i, n := int(partition)*l.N(), l.Width(partition)
	return l.table[i : i+n : i+n]
}

// former returns the row of formers of a partition; nil: it has none.
func (l *Layout) former(partition uint32) []uint16 {
	if l.formers == nil {
		return nil
	}
	i, n := int(partition)*l.N(), l.Width(partition)
	row := l.formers[i : i+n : i+n]
	for _, num := range row {
		if num != 0 {
			return row
		}
	}
	return nil
}

// spread is f of a row of indexes into drives: the most members on one node, or, when the whole
// cluster is one node, the most on one drive, which is 1 since members are distinct.
func spread(drives []Drive, row []int, oneNode bool) int {
	if oneNode {
		return 1
	}
	f := 0
	for _, d := range row {
		same := 0
		for _, e := range row {
			if drives[d].Node == drives[e].Node {
				same++
			}
		}
		f = max(f, same)
	}
	return f
}

func sameNode(drives []Drive) bool {
	return !slices.ContainsFunc(drives, func(d Drive) bool { return d.Node != drives[0].Node })
}

// checkDrives reports drives (ascending by Num) that share a number or an id.
func checkDrives(drives []Drive) error {
	byID := slices.Clone(drives)
	slices.SortFunc(byID, func(a, b Drive) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	for i := 1; i < len(drives); i++ {
		if drives[i-1].Num == drives[i].Num {
			return fmt.Errorf("drive number %d is there twice", drives[i].Num)
		}
		if byID[i-1].ID == byID[i].ID {
			return fmt.Errorf("drives %d and %d have the same id", byID[i-1].Num, byID[i].Num)
		}
	}
	return nil
}
