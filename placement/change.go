package placement

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

// A drive is exchanged in steps, each a layout of its own: the newcomer joins the list
// (WithDrive), takes positions batch by batch (Swap), and the old one leaves the list when it
// stands nowhere (Without).

// PartitionsOf returns the partitions of which a drive is a member, ascending.
func (l *Layout) PartitionsOf(drive uint16) []uint32 {
	var out []uint32
	for p := range l.Partitions() {
		if slices.Contains(l.members(p), drive) {
			out = append(out, p)
		}
	}
	return out
}

// WithDrive returns the next layout, which has one drive more: a member of nothing yet. The error
// is of kind Invalid if the number or the id is taken, or the layout is full.
func (l *Layout) WithDrive(d Drive) (*Layout, error) {
	const op = "placement.WithDrive"
	if len(l.drives) >= MaxDrives {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("the layout has %d drives already", MaxDrives))
	}
	n := l.next()
	i, _ := l.search(d.Num)
	n.drives = slices.Insert(slices.Clone(l.drives), i, d)
	if err := checkDrives(n.drives); err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	return n, nil
}

// Swap returns the next layout, in which newcomer stands in the position of old in each of the
// partitions, and each of these has its next epoch. Their spread f, and hence their quorums, stay: a
// swap changes who is a member, not how many must answer. The error is of kind Invalid if there are
// no partitions, one is named twice or out of range, does not have old or has newcomer already, or
// newcomer is not in the layout.
func (l *Layout) Swap(old, newcomer uint16, partitions []uint32) (*Layout, error) {
	const op = "placement.Swap"
	if len(partitions) == 0 {
		return nil, errs.E(op, errs.Invalid, "no partition is named")
	}
	if _, ok := l.search(newcomer); !ok {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %d is not in the layout", newcomer))
	}
	n := l.next()
	n.table, n.epochs = slices.Clone(l.table), slices.Clone(l.epochs)
	for _, p := range partitions {
		if p >= l.Partitions() {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("there is no partition %d", p))
		}
		// The row of n, not of l: a partition named twice does not have old any more.
		row := n.members(p)
		pos := slices.Index(row, old)
		if pos < 0 {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("partition %d does not have drive %d", p, old))
		}
		if slices.Contains(row, newcomer) {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("partition %d has drive %d already", p, newcomer))
		}
		row[pos] = newcomer
		n.epochs[p]++
	}
	return n, nil
}

// Without returns the next layout, without a drive that is a member of nothing. The error is of
// kind NotFound if it is not in the layout, and Invalid while it is a member of a partition.
func (l *Layout) Without(num uint16) (*Layout, error) {
	const op = "placement.Without"
	i, ok := l.search(num)
	if !ok {
		return nil, errs.E(op, errs.NotFound, fmt.Sprintf("drive %d is not in the layout", num))
	}
	if slices.Contains(l.table, num) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %d is still a member of %d partitions", num, len(l.PartitionsOf(num))))
	}
	n := l.next()
	n.drives = slices.Delete(slices.Clone(l.drives), i, i+1)
	return n, nil
}

// next returns a copy of l with the next number, that shares everything else.
func (l *Layout) next() *Layout {
	n := *l
	n.number++
	return &n
}
