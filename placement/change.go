package placement

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

// A drive is exchanged in steps, each a layout of its own: the newcomer joins the list
// (WithDrive), takes positions batch by batch (Swap), and the old one leaves the list when it
// stands nowhere (Without).
//
// A drive that lives gives positions away by Move: it is their former then, which readers ask after the
// present one, until all shards of the position have moved (Moved). A position is not moved again before.

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
// swap changes who is a member, not how many must answer. Formers stay: what was on its way to old is on its
// way to newcomer. The error is of kind Invalid if there are no partitions, one is named twice or out of range,
// does not have old or has newcomer already, be it as a former, or newcomer is not in the layout.
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
		if slices.Contains(l.former(p), newcomer) {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("partition %d has drive %d as a former member", p, newcomer))
		}
		row[pos] = newcomer
		n.epochs[p]++
	}
	return n, nil
}

// Move returns the next layout, in which each of the moves is made: To stands in the position, From is its
// former, and the partition has its next epoch, with the spread f, and hence the quorum, of spreads, by move.
// Moves from nobody make their partition as wide as the layout's profile: all of its new positions are among them, with
// the same f.
// The error is of kind Invalid if there are no moves, or one does not fit: the position is not From's, or has a
// former already, a partition is named twice, To is a member or a former of it or not in the layout, or f is
// not between 1 and the number of members.
func (l *Layout) Move(moves []Move, spreads []int) (*Layout, error) {
	const op = "placement.Move"
	refuse := func(format string, args ...any) (*Layout, error) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf(format, args...))
	}
	if len(moves) == 0 || len(spreads) != len(moves) {
		return refuse("%d moves with %d spreads", len(moves), len(spreads))
	}
	n := l.next()
	n.table, n.epochs, n.spreads, n.stages = slices.Clone(l.table), slices.Clone(l.epochs), slices.Clone(l.spreads), slices.Clone(l.stages)
	n.formers = make([]uint16, len(l.table))
	copy(n.formers, l.formers)
	joining := make(map[uint32]int) // by partition that becomes wider: positions that still lack a drive
	for i, m := range moves {
		if err := l.MayMove(m); err != nil {
			return nil, errs.As(op, errs.Invalid, err)
		}
		if spreads[i] < 1 || spreads[i] > l.N() {
			return refuse("a spread of %d in partitions of %d", spreads[i], l.N())
		}
		at, slot := m.Partition, int(m.Partition)*l.N()+m.Position
		_, again := joining[at]
		switch {
		case m.Joins() && again:
			row := n.table[slot-m.Position+l.Width(at) : slot-m.Position+l.N()]
			if n.table[slot] != 0 || slices.Contains(row, m.To) || int(n.spreads[at]) != spreads[i] {
				return refuse("partition %d has a position, a newcomer or a spread twice", at)
			}
			joining[at]--
		case n.epochs[at] != l.epochs[at]:
			return refuse("partition %d moves twice at once", at)
		case m.Joins():
			joining[at] = l.N() - l.Width(at) - 1
		default:
			n.formers[slot] = m.From
		}
		n.epochs[at] = l.epochs[at] + 1
		n.table[slot] = m.To
		n.spreads[at] = uint8(spreads[i])
	}
	for at, left := range joining {
		if left > 0 {
			return refuse("partition %d would be neither as wide as it was nor as wide as it is to be", at)
		}
		n.stages[at] = uint8(len(l.earlier))
	}
	n.trimStages()
	n.trimFormers()
	return n, nil
}

// trimFormers lets go of the formers if no position has one.
func (l *Layout) trimFormers() {
	if !slices.ContainsFunc(l.formers, func(num uint16) bool { return num != 0 }) {
		l.formers = nil
	}
}

// MayMove returns an error of kind Invalid if a move does not fit the layout as it is.
func (l *Layout) MayMove(m Move) error {
	const op = "placement.Move"
	if err := l.checkMove(m); err != nil {
		return errs.As(op, errs.Invalid, err)
	}
	switch former := l.former(m.Partition); {
	case m.To == 0:
		return errs.E(op, errs.Invalid, "drive 0 does not move")
	case former != nil && !m.Joins() && former[m.Position] != 0:
		return errs.E(op, errs.Invalid, fmt.Sprintf("the shards of position %d of partition %d are still moving from drive %d", m.Position, m.Partition, former[m.Position]))
	case slices.Contains(former, m.To):
		// It would have to hold shards of two positions under one name.
		return errs.E(op, errs.Invalid, fmt.Sprintf("drive %d still has shards of another position of partition %d", m.To, m.Partition))
	}
	return nil
}

// Moved returns the next layout, in which the positions of the moves have no former any more: all their
// shards are on the present drives. Those that have none, or another, are passed over; if all are, the layout
// comes back as it is.
func (l *Layout) Moved(moves []Move) *Layout {
	var formers []uint16
	for _, m := range moves {
		if m.Partition >= l.Partitions() || m.Position < 0 || m.Position >= l.N() || l.formers == nil {
			continue
		}
		if i := int(m.Partition)*l.N() + m.Position; l.formers[i] == m.From && m.From != 0 {
			if formers == nil {
				formers = slices.Clone(l.formers)
			}
			formers[i] = 0
		}
	}
	if formers == nil {
		return l
	}
	n := l.next()
	n.formers = formers
	n.trimFormers()
	return n
}

// FormerOf returns the positions of which a drive is the former, as moves that were made.
func (l *Layout) FormerOf(drive uint16) (list []Move) {
	for i, num := range l.formers {
		if num == drive && num != 0 {
			list = append(list, Move{uint32(i / l.N()), i % l.N(), num, l.table[i]})
		}
	}
	return list
}

// Moving returns all positions that have a former, as moves that were made.
func (l *Layout) Moving() (list []Move) {
	for i, num := range l.formers {
		if num != 0 {
			list = append(list, Move{uint32(i / l.N()), i % l.N(), num, l.table[i]})
		}
	}
	return list
}

// WithoutLost is Without for a drive that never comes back: that it was the former of positions does not hold
// it. They keep its number, as a sign that their shards have not all moved.
func (l *Layout) WithoutLost(num uint16) (*Layout, error) {
	return l.without("placement.WithoutLost", num)
}

// Without returns the next layout, without a drive that is a member, and a former member, of nothing. The
// error is of kind NotFound if it is not in the layout, and Invalid while it is one.
func (l *Layout) Without(num uint16) (*Layout, error) {
	const op = "placement.Without"
	if list := l.FormerOf(num); len(list) > 0 {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %d may still have shards of %d positions that it gave away", num, len(list)))
	}
	return l.without(op, num)
}

func (l *Layout) without(op string, num uint16) (*Layout, error) {
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
