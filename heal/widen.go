package heal

import (
	"slices"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// A partition that becomes wider: all drives that join it do so together, in one change of its membership. What was
// written before lies where it lay, so no shards follow, only rows, as far as the newcomers did not get them while
// the partition stood still.

// joining returns the moves of a plan that make a partition wider, if they can be made now.
func (p *MovePlan) joining(l *placement.Layout, partition uint32) (list []placement.Move) {
	g := l.Group(partition)
	for _, x := range p.Moves {
		if x.Partition == partition && x.Joins() && x.State != MovePublished {
			if l.MayMove(x.Move) != nil {
				return nil
			}
			list = append(list, x.Move)
		}
	}
	if g.Former != nil || len(g.Drives)+len(list) != l.N() {
		return nil
	}
	return list
}

// mayJoin reports whether enough drives seem to be here to begin with moves that make a partition wider: all
// newcomers, and as many members as have to be wedged, and to hold the image with them.
func (h *Healer) mayJoin(l *placement.Layout, list []placement.Move) bool {
	for _, x := range list {
		if _, ok := h.drive(x.To); !ok {
			return false
		}
	}
	g := l.Group(list[0].Partition)
	stay := h.staying(g, list[0])
	return stay >= max(g.Quorum.Z, g.Quorum.N-g.Quorum.W+1, g.Quorum.N/2+1) && stay+len(list) >= max(g.Quorum.W, l.Next(list).Quorum.W)
}

// joinsWhole reports whether too few members are there for the image, so that newcomers get every row while the
// partition stands still.
func (h *Healer) joinsWhole(l *placement.Layout, list []placement.Move) bool {
	g := l.Group(list[0].Partition)
	return h.staying(g, list[0]) < max(g.Quorum.W, l.Next(list).Quorum.W)
}

// changeOf returns the change of membership that moves of one kind are, and the spread that each partition has then.
func (m *mover) changeOf(l *placement.Layout, batch []placement.Move) (s metadata.Swap, spreads map[uint32]int) {
	s = metadata.Swap{Transition: m.plan.ID, Term: m.term, Layout: l}
	spreads = make(map[uint32]int)
	if !batch[0].Joins() {
		s.Old, s.New = batch[0].From, batch[0].To
		s.OldGone = m.plan.Lost != nil && m.plan.Lost(s.Old)
	}
	for len(batch) > 0 {
		n := 1
		for n < len(batch) && batch[n].Partition == batch[0].Partition {
			n++
		}
		g, next := l.Group(batch[0].Partition), l.Next(batch[:n])
		s.Groups, s.Next = append(s.Groups, g), append(s.Next, next.Quorum)
		if batch[0].Joins() {
			s.Join = append(s.Join, next.Drives[len(g.Drives):])
		}
		spreads[g.Partition] = next.Spread
		batch = batch[n:]
	}
	return s, spreads
}

// onlyJoined reports whether nothing but rows may have to follow moves: those that newcomers lack, which the comparison
// with the other members finds.
func onlyJoined(list []placement.Move) bool {
	return !slices.ContainsFunc(list, func(x placement.Move) bool { return !x.Joins() })
}
