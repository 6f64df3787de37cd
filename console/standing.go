package console

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/placement"
)

// Changes is what of the open plan was begun and not published: partitions may stand still for it.
type Changes struct {
	Moves   []placement.Move
	Retired func(num uint16) bool // drives that never serve again; nil: none
}

// retired reports whether a drive never serves again.
func (c *Changes) retired(num uint16) bool { return c.Retired != nil && c.Retired(num) }

// standing counts the partitions whose change of members was begun and cannot go on with the drives that are here. until
// says in words what they wait for; "": nothing that is away would help. backs reports whether a drive that is
// away may come back.
func standing(l *placement.Layout, c Changes, here, backs func(num uint16) bool) (n int, until string) {
	var stuck [][]placement.Move
	for _, moves := range changesOf(l, c.Moves) {
		if !goesOn(l, moves, here, c.retired) {
			stuck = append(stuck, moves)
		}
	}
	var away []uint16
	partitions := map[uint32]bool{}
	for _, moves := range stuck {
		partitions[moves[0].Partition] = true
		for _, num := range slices.Concat(l.Group(moves[0].Partition).Drives, l.Next(moves).Drives) {
			if !here(num) && backs(num) && !c.retired(num) {
				away = append(away, num)
			}
		}
	}
	slices.Sort(away)
	away = slices.Compact(away)
	var alone []uint16 // each of them would do
	for _, num := range away {
		with := func(x uint16) bool { return x == num || here(x) }
		if !slices.ContainsFunc(stuck, func(moves []placement.Move) bool { return !goesOn(l, moves, with, c.retired) }) {
			alone = append(alone, num)
		}
	}
	switch {
	case len(alone) == 1:
		until = "drive " + numbers(alone) + " is back"
	case len(alone) > 1:
		until = "one of the drives " + numbers(alone) + " is back"
	case len(away) > 0:
		until = "enough of the drives " + numbers(away) + " are back"
	}
	return len(partitions), until
}

// changesOf returns the moves that are made together, those that the layout has already left out: one position, or all
// that join a partition.
func changesOf(l *placement.Layout, list []placement.Move) (out [][]placement.Move) {
	joins := map[uint32]int{} // by partition: index in out
	for _, m := range list {
		if m.Partition >= l.Partitions() || m.Position < 0 || m.Position >= l.N() {
			continue
		}
		g := l.Group(m.Partition)
		at, again := joins[m.Partition]
		switch {
		case m.Joins() != (m.Position >= len(g.Drives)) || !m.Joins() && g.Drives[m.Position] != m.From:
			// It was published meanwhile.
		case again && m.Joins():
			out[at] = append(out[at], m)
		default:
			if m.Joins() {
				joins[m.Partition] = len(out)
			}
			out = append(out, []placement.Move{m})
		}
	}
	return out
}

// goesOn reports whether a change of members that was begun can end with the drives that are here: enough of the
// members tell what was chosen and stand still, and enough of the next ones hold it (docs/protocol.md, "Change of membership").
func goesOn(l *placement.Layout, moves []placement.Move, here, retired func(num uint16) bool) bool {
	g, next := l.Group(moves[0].Partition), l.Next(moves)
	q := g.Quorum
	gone, old := 0, 0 // members that never answer again, and those that are here
	for _, num := range g.Drives {
		switch {
		case num == moves[0].From && !moves[0].Joins() && retired(num):
			gone++
		case here(num):
			old++
		}
	}
	hold := 0
	for _, num := range next.Drives {
		if here(num) {
			hold++
		}
	}
	return old >= q.N-q.W+1 && old+gone >= q.Z && 2*old > q.N-gone && hold >= max(q.W, next.Quorum.W)
}

// standing says which partitions stand still, without the drive gone if it is not 0.
func (h *Handler) standing(gone uint16) (n int, until string) {
	if h.Changes == nil {
		return 0, ""
	}
	c := h.Changes()
	if len(c.Moves) == 0 {
		return 0, ""
	}
	stays := func(num uint16) bool {
		return num != gone && !slices.ContainsFunc(h.Operator.Replacements(), func(r Replacement) bool { return r.Old == num })
	}
	return standing(h.Layout(), c, func(num uint16) bool { return num != gone && h.serves(num) }, stays)
}

// stillText says in words which of so many partitions stand still.
func stillText(n int, of uint32, until string) string {
	verb, answers := "stand", "answer"
	if n == 1 {
		verb, answers = "stands", "answers"
	}
	text := fmt.Sprintf("%d of %d partitions %s still in a change of members, and %s 503", n, of, verb, answers)
	if until != "" {
		text += ", until " + until
	}
	return text
}
