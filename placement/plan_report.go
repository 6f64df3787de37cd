package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// describe fills in what w came to.
func (p *Plan) describe(l *Layout, g *Goal, w *shuffle) {
	p.Changes = make([]DriveChange, len(p.Drives))
	for d := range p.Changes {
		p.Changes[d].Drive = p.Drives[d].Num
	}
	for slot, d := range w.before {
		if d != hole {
			p.Changes[d].Before++
		}
		if e := w.table[slot]; e != hole {
			p.Changes[e].After++
		}
	}
	p.Leaving = slices.DeleteFunc(p.Leaving, func(num uint16) bool {
		return slices.ContainsFunc(p.Changes, func(c DriveChange) bool { return c.Drive == num && c.After > 0 })
	})
	p.spreads, p.then = slices.Clone(l.spreads), slices.Clone(l.spreads)
	rough := p.order(l, g, w)
	p.Before = w.exposure(w.before, l, p.spreads)
	p.After = w.exposure(w.table, l, p.then)
	p.measure(w)
	p.explain(l, w, rough)
}

// order gathers the moves, and counts them. Those by which partitions become wider come first. The first moves of all partitions are next, then
// their second ones, and so on; those between the same two drives stand together. It returns how
// many partitions have more than m members on a node on the way, and not before.
func (p *Plan) order(l *Layout, g *Goal, w *shuffle) (rough int) {
	type turn struct {
		round int
		m     Move
	}
	var turns []turn
	o := newOrder(w)
	oneNode := sameNode(p.Drives)
	for part := range w.parts {
		list, bad := o.moves(part)
		size := g.Average
		if g.Bytes != nil {
			size = g.Bytes[part]
		}
		row := slices.Clone(w.before[part*w.n : (part+1)*w.n])
		spread := func() {
			if f := w.rowSpread(row, oneNode); f <= w.m {
				p.then[part] = uint8(f) // the rule of Next
			}
		}
		if slices.Contains(row, hole) {
			if w.table[(part+1)*w.n-1] == hole {
				continue // it stays narrow
			}
			p.Widened++
			for pos, d := range row {
				if d == hole {
					row[pos] = w.table[part*w.n+pos]
					p.Changes[row[pos]].In++
					p.Moves = append(p.Moves, Move{uint32(part), pos, 0, p.Drives[row[pos]].Num})
				}
			}
			spread()
		}
		if bad > max(w.m, w.rowSpread(row, false)) {
			rough++
		}
		for round, m := range list {
			turns = append(turns, turn{round, m})
			from, to := &p.Changes[m.From], &p.Changes[m.To]
			from.Out++
			from.BytesOut += size
			to.In++
			to.BytesIn += size
			p.Bytes += size
			row[m.Position] = m.To
			spread()
		}
	}
	slices.SortFunc(turns, func(a, b turn) int {
		return cmp.Or(a.round-b.round, int(a.m.From)-int(b.m.From), int(a.m.To)-int(b.m.To), int(a.m.Partition)-int(b.m.Partition))
	})
	for _, t := range turns {
		t.m.From, t.m.To = p.Drives[t.m.From].Num, p.Drives[t.m.To].Num
		p.Moves = append(p.Moves, t.m)
	}
	return rough
}

// rowSpread is f of a row of drive indexes.
func (s *domains) rowSpread(row []uint16, oneNode bool) int {
	if oneNode {
		return 1
	}
	f := 0
	for i, d := range row {
		same := 1
		for _, e := range row[:i] {
			if s.sites[d].node == s.sites[e].node {
				same++
			}
		}
		f = max(f, same)
	}
	return f
}

// exposure says what the loss of domains means to a table whose partitions have quorums by spreads.
func (s *domains) exposure(table []uint16, l *Layout, spreads []uint8) Exposure {
	e := Exposure{Drives: s.n, Nodes: s.n, Zones: s.n, Domains: make([]DomainLoss, len(s.nodes)+len(s.zones))}
	for i := range s.nodes {
		e.Domains[i] = DomainLoss{Node: s.nodes[i], Zone: s.zones[s.nodeZone[i]]}
	}
	for i, zone := range s.zones {
		e.Domains[len(s.nodes)+i] = DomainLoss{Zone: zone, IsZone: true}
	}
	seen := make([]bool, len(s.sites))
	for _, d := range table {
		if d != hole && !seen[d] {
			seen[d] = true
			e.Domains[s.sites[d].node].Drives++
			e.Domains[len(s.nodes)+s.sites[d].zone].Drives++
		}
	}
	count := make([]int, len(e.Domains))
	var nodes, zones []int
	for part := range s.parts {
		row, prof := table[part*s.n:(part+1)*s.n], l.profile
		if row[s.n-1] == hole {
			prof = l.ProfilesOf(uint32(part)).Standard
			row = row[:prof.N()]
		}
		for _, d := range row {
			count[s.sites[d].node]++
			count[len(s.nodes)+s.sites[d].zone]++
		}
		q := RecordQuorum(prof, int(spreads[part]))
		e.Drives = min(e.Drives, int(prof.Parity))
		nodes, zones = nodes[:0], zones[:0]
		lose := func(domain int, list []int) []int {
			lost := count[domain]
			if lost == 0 {
				return list // met already
			}
			count[domain] = 0
			x := &e.Domains[domain]
			x.Most = max(x.Most, lost)
			if q.N-lost < q.W {
				x.NoWrites++
			}
			if q.N-lost < max(q.R, int(prof.Data)) {
				x.Unreadable++
			}
			return append(list, lost)
		}
		for _, d := range row {
			nodes = lose(s.sites[d].node, nodes)
			zones = lose(len(s.nodes)+s.sites[d].zone, zones)
		}
		e.Nodes, e.Zones = min(e.Nodes, survives(nodes, int(prof.Parity))), min(e.Zones, survives(zones, int(prof.Parity)))
	}
	return e
}

// survives returns how many domains may be lost, whichever they are, with at most m members in all.
func survives(members []int, m int) int {
	slices.SortFunc(members, func(a, b int) int { return b - a })
	for i, lost := range members {
		if m -= lost; m < 0 {
			return i
		}
	}
	return len(members)
}

// measure says how much of the drives a full store fills.
func (p *Plan) measure(w *shuffle) {
	before, after := math.Inf(1), math.Inf(1)
	sum, was, is := 0.0, 0, 0 // places, before and after
	for d := range p.Drives {
		capacity, c := float64(p.Drives[d].Capacity), &p.Changes[d]
		if capacity == 0 {
			return
		}
		if !w.sites[d].leaving {
			sum += capacity
		}
		was, is = was+c.Before, is+c.After
		if c.Before > 0 {
			before = min(before, capacity/float64(c.Before))
		}
		if c.After > 0 {
			after = min(after, capacity/float64(c.After))
		}
	}
	total := float64(w.n * w.parts)
	_, fullest := w.shares()
	p.Capacity, p.UsableBefore, p.UsableAfter = clip(sum), clip(before*float64(was)), clip(after*float64(is))
	p.Limit = min(p.Capacity, clip(total/fullest*weightUnit))
}

// clip converts to bytes, as far as they fit.
func clip(v float64) uint64 {
	if v >= math.MaxUint64 {
		return math.MaxUint64
	}
	return uint64(v)
}

// explain says why the outcome is not ideal.
func (p *Plan) explain(l *Layout, w *shuffle, rough int) {
	say := func(format string, args ...any) { p.Reasons = append(p.Reasons, fmt.Sprintf(format, args...)) }
	nodes, zones := w.staying()
	switch {
	case w.m == 0:
		say("profile %s has no parity: whatever is lost loses data", l.profile)
	case nodes == 1:
		say("all drives are on one node: its loss stops the store, and nothing can be done about it with one node")
	case w.nodeCap > w.m:
		say("%d nodes are too few, or have too few drives, for profile %s: up to %d members of a partition are on one node, and its loss stops them (at most %d would not)",
			nodes, l.profile, w.nodeCap, w.m)
	}
	if zones > 1 && w.m > 0 && w.zoneCap > w.m {
		say("%d zones are too few, or have too few drives, for profile %s: up to %d members of a partition are in one zone, and its loss stops them (at most %d would not)",
			zones, l.profile, w.zoneCap, w.m)
	}
	if unknown := p.unknown(); len(unknown) > 0 {
		say("the capacity of drives %s is not known, and counts as the mean of the others", strings.Join(unknown, ", "))
	}
	if p.Capacity > 0 && float64(p.Limit) < 0.95*float64(p.Capacity) {
		say("the caps let %.0f %% of the capacity be used: %s", 100*float64(p.Limit)/float64(p.Capacity), w.tooLarge())
	}
	if p.Capacity > 0 && float64(p.UsableAfter) < 0.95*float64(p.Limit) {
		say("%.0f %% of what the caps allow can be used: with %d partitions a drive cannot have exactly its share", 100*float64(p.UsableAfter)/float64(p.Limit), w.parts)
	}
	if p.narrow > 0 {
		say("%d partitions stay as narrow as they are: no drives were found that may join them now; plan again later", p.narrow)
	}
	if waiting := w.waiting(); waiting > 0 {
		say("%d positions wait for the shards of their last move, and stay as they are: plan again when that is done", waiting)
	}
	if w.stuck > 0 {
		say("%d places stay with drives that have more than their share: no way was found that keeps the caps", w.stuck)
	}
	if more := len(p.Moves) - p.Least; more > p.Least/20 {
		say("%d moves are more than the %d that any plan needs: the caps ask for them, or the search found no better", len(p.Moves), p.Least)
	}
	if rough > 0 {
		say("in %d partitions more than %d members are on one node for a while: no order of the moves avoids that", rough, w.m)
	}
}

// waiting counts slots that could not be moved.
func (w *shuffle) waiting() (n int) {
	for slot := range w.former {
		if w.waits(slot) {
			n++
		}
	}
	return n
}

// staying counts the nodes and zones with drives that stay.
func (s *domains) staying() (nodes, zones int) {
	node, zone := make([]bool, len(s.nodes)), make([]bool, len(s.zones))
	for _, d := range s.sites {
		if !d.leaving && !node[d.node] {
			node[d.node] = true
			nodes++
		}
		if !d.leaving && !zone[d.zone] {
			zone[d.zone] = true
			zones++
		}
	}
	return nodes, zones
}

// unknown returns the numbers of drives without a capacity, the first few of them.
func (p *Plan) unknown() (list []string) {
	for i := range p.Drives {
		if p.Drives[i].Capacity > 0 {
			continue
		}
		if len(list) == 8 {
			return append(list, "…")
		}
		list = append(list, fmt.Sprint(p.Drives[i].Num))
	}
	return list
}

// tooLarge names what is larger than the caps let it be used.
func (s *domains) tooLarge() string {
	share, fullest := s.shares()
	drives, nodes, zones := 0, make([]float64, len(s.nodes)), make([]float64, len(s.zones))
	for d, at := range s.sites {
		if at.leaving {
			continue
		}
		nodes[at.node] += share[d]
		zones[at.zone] += share[d]
		if share[d] > float64(s.parts)*0.9999 && at.weight*fullest > float64(s.parts)*1.01 {
			drives++
		}
	}
	var list []string
	if drives > 0 {
		list = append(list, fmt.Sprintf("%d drives are larger than one member of every partition", drives))
	}
	full := func(kind string, places []float64, limit int) {
		n := 0
		for _, have := range places {
			if have > float64(limit*s.parts)*0.9999 {
				n++
			}
		}
		if n > 0 && n < len(places) {
			list = append(list, fmt.Sprintf("%d of %d %s are full with %d members of every partition", n, len(places), kind, limit))
		}
	}
	full("nodes", nodes, s.nodeCap)
	full("zones", zones, s.zoneCap)
	if list == nil {
		return "sizes differ too much"
	}
	return strings.Join(list, "; ")
}
