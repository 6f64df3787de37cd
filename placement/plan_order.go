package placement

import "slices"

// orderSteps is how many moves one search for an order tries.
const orderSteps = 500

// order finds the order in which the moves of one partition are made. Moves are of drive indexes.
type order struct {
	w            *shuffle
	before       []uint16 // who is a member at first
	row          []uint16 // the same, on the way
	nodes, zones []int    // members in each
	left, made   []Move
	steps        int
}

func newOrder(w *shuffle) *order {
	return &order{w: w, nodes: make([]int, len(w.nodes)), zones: make([]int, len(w.zones))}
}

// moves returns what changed in a partition once drives have joined it, ordered so that the most members on one node never
// become more on the way, nor those in one zone; failing that, those on one node; failing that, the least
// bad step comes first each time. bad is then the spread over nodes of the worst epoch on the way.
func (o *order) moves(partition int) (list []Move, bad int) {
	w := o.w
	first := partition * w.n
	before := append(o.before[:0], w.before[first:first+w.n]...)
	o.before, o.left, o.made = before, o.left[:0], nil
	for pos, d := range before {
		e := w.table[first+pos]
		if d == hole {
			before[pos] = e // joined
		} else if e != d {
			o.left = append(o.left, Move{uint32(partition), pos, d, e})
		}
	}
	if len(o.left) == 0 {
		return nil, 0
	}
	o.row = append(o.row[:0], before...)
	o.tally(1)
	defer func() { o.tally(-1) }()
	node, zone := o.spread()
	for _, m := range o.left {
		o.count(m, m.To)
	}
	nodeThen, zoneThen := o.spread()
	for _, m := range o.left {
		o.count(m, m.From)
	}
	for _, zones := range []bool{true, false} {
		o.steps = orderSteps
		if nodeThen <= node && (zoneThen <= zone || !zones) && o.search(zones) {
			return o.made, 0
		}
	}
	for len(o.left) > 0 {
		best := slices.MinFunc(o.left, func(a, b Move) int { return o.after(a) - o.after(b) })
		o.make(slices.Index(o.left, best))
		if n, _ := o.spread(); len(o.left) > 0 {
			bad = max(bad, n)
		}
	}
	return o.made, bad
}

// search makes all moves that are left without the spread over nodes (and zones) ever rising, or none.
func (o *order) search(zones bool) bool {
	if len(o.left) == 0 {
		return true
	}
	node, zone := o.spread()
	for i := range o.left {
		if o.steps--; o.steps < 0 {
			return false
		}
		m := o.make(i)
		if n, z := o.spread(); n <= node && (z <= zone || !zones) && o.search(zones) {
			return true
		}
		o.undo(i, m)
	}
	return false
}

// after says how bad a move is: the spread over nodes that it leads to, then that over zones.
func (o *order) after(m Move) int {
	o.count(m, m.To)
	node, zone := o.spread()
	o.count(m, m.From)
	return node<<8 + zone
}

func (o *order) make(i int) Move {
	m := o.left[i]
	o.left = slices.Delete(o.left, i, i+1)
	o.made = append(o.made, m)
	o.count(m, m.To)
	return m
}

func (o *order) undo(i int, m Move) {
	o.left = slices.Insert(o.left, i, m)
	o.made = o.made[:len(o.made)-1]
	o.count(m, m.From)
}

// count gives the position of a move to drive d.
func (o *order) count(m Move, d uint16) {
	old, now := &o.w.sites[o.row[m.Position]], &o.w.sites[d]
	o.nodes[old.node]--
	o.zones[old.zone]--
	o.nodes[now.node]++
	o.zones[now.zone]++
	o.row[m.Position] = d
}

// tally counts the members of the row, or takes them away again.
func (o *order) tally(by int) {
	for _, d := range o.row {
		o.nodes[o.w.sites[d].node] += by
		o.zones[o.w.sites[d].zone] += by
	}
}

// spread returns the most members on one node, and in one zone.
func (o *order) spread() (node, zone int) {
	for _, d := range o.row {
		node, zone = max(node, o.nodes[o.w.sites[d].node]), max(zone, o.zones[o.w.sites[d].zone])
	}
	return node, zone
}
