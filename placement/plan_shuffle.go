package placement

import (
	"math/rand/v2"
	"slices"
)

// shuffle finds a table that meets the targets of its drives within the caps, and differs from the
// one it began with in as few places as it can. It works in five steps:
//
//	shed      what must go, goes: members that leave, and those above a cap
//	even      drives that have too much give to those that have too little, one place for one move
//	chain     what is left over goes by way of others: drive a gives to b, b elsewhere to c
//	shortcut  drives that gave in one partition and took in another do neither, where possible
//	polish    newcomers exchange places, so that each stands in each position about equally often
//
// A row within the caps that lost a member can always take some drive in its place: rows within the
// caps are independent sets of a laminar matroid, and what is smaller than a basis can be extended. So shed
// always ends within the caps, and no later step leaves them.
type shuffle struct {
	*domains
	before, table []uint16  // drive indexes by slot (partition·n + position); hole: nobody
	former        []uint16  // by slot: who may still have shards of it, or hole; nil: nobody anywhere
	have, want    []int     // places of each drive, and its target
	at            [][]int32 // slots of each drive, in no order
	index         []int32   // of each slot within at of its drive
	stands        []int32   // drive·n + position: how often
	lacking       []uint16  // a drive for each place that it lacks; stale entries are dropped when met
	rnd           *rand.Rand
	least         int // lower bound of the moves
	stuck         int // places too many that no chain carried away
}

// No drives, for there are not so many.
const (
	hole = ^uint16(0) // nobody
	gone = hole - 1   // who left for ever, and was a former member
)

// How hard it looks for the best of several choices, and for a way at all.
const (
	lookSlots  = 6         // places that a drive may give, compared
	lookDrives = 6         // drives that may take one, compared
	lookPairs  = 64        // ways in which a detour may be cut short
	chainTries = 4         // chains that may fail for one drive
	chainSteps = 400 << 20 // pairs of place and drive that all chains together look at
)

func newShuffle(s *domains, table []uint16) *shuffle {
	drives := len(s.sites)
	w := &shuffle{
		domains: s, before: table, table: slices.Clone(table), have: make([]int, drives),
		at: make([][]int32, drives), index: make([]int32, len(table)), stands: make([]int32, drives*s.n),
		rnd: rand.New(rand.NewPCG(uint64(drives), uint64(len(table)))),
	}
	joins := 0
	for slot, d := range w.table {
		if d == hole { // of a partition that is to become wider
			joins++
			continue
		}
		w.index[slot] = int32(len(w.at[d]))
		w.at[d] = append(w.at[d], int32(slot))
		w.have[d]++
		w.stands[int(d)*s.n+slot%s.n]++
	}
	w.want = w.targets(w.have)
	w.least = joins
	for d := range w.have {
		w.least += max(0, w.have[d]-w.want[d])
		for range w.want[d] - w.have[d] {
			w.lacking = append(w.lacking, uint16(d))
		}
	}
	return w
}

func (w *shuffle) run() {
	w.shed()
	w.even()
	w.chains()
	w.settle()
	w.shortcut()
	w.polish()
}

// put gives a slot to drive d, or to nobody.
func (w *shuffle) put(slot int, d uint16) {
	if old := w.table[slot]; old != hole {
		list, i := w.at[old], w.index[slot]
		last := list[len(list)-1]
		list[i], w.index[last] = last, i
		w.at[old] = list[:len(list)-1]
		w.have[old]--
		w.stands[int(old)*w.n+slot%w.n]--
	}
	w.table[slot] = d
	if d != hole {
		w.index[slot] = int32(len(w.at[d]))
		w.at[d] = append(w.at[d], int32(slot))
		w.have[d]++
		w.stands[int(d)*w.n+slot%w.n]++
	}
}

// row returns the slots of a slot's partition.
func (w *shuffle) row(slot int) []uint16 {
	first := slot - slot%w.n
	return w.table[first : first+w.n]
}

// waits reports whether a slot cannot change hands, since its shards have not all followed the last time.
func (w *shuffle) waits(slot int) bool { return w.former != nil && w.former[slot] != hole }

// fits reports whether drive d may take a slot within the caps, and how many others of the
// partition are on its node and in its zone.
func (w *shuffle) fits(slot int, d uint16) (node, zone int, ok bool) {
	at := &w.sites[d]
	first := slot - slot%w.n
	if at.leaving || w.waits(slot) || w.former != nil && slices.Contains(w.former[first:first+w.n], d) {
		return 0, 0, false
	}
	for i, e := range w.table[first : first+w.n] {
		if e == hole || first+i == slot {
			continue
		}
		if e == d {
			return 0, 0, false
		}
		o := &w.sites[e]
		if o.node == at.node {
			node++
		}
		if o.zone == at.zone {
			zone++
		}
	}
	return node, zone, node < w.nodeCap && zone < w.zoneCap
}

// cost rates a slot for drive d, less being better: fewer than m members in one domain if possible,
// since then a spare shard is kept; then positions in which d stands seldom, and he who has it now
// often; then members far apart.
func (w *shuffle) cost(slot int, d uint16, node, zone int) float64 {
	c := float64(node)/2 + float64(zone)/8
	if node+1 >= w.m && w.m > 1 {
		c += 1000
	}
	c += 16 * w.standing(d, slot)
	if old := w.table[slot]; old != hole && !w.sites[old].leaving {
		c -= 4 * w.standing(old, slot)
	}
	return c
}

// standing says how often a drive has a slot's position: 1 is as often as it should.
func (w *shuffle) standing(d uint16, slot int) float64 {
	return float64(int(w.stands[int(d)*w.n+slot%w.n])*w.n) / float64(max(w.want[d], 1))
}

// draw returns a drive that lacks a place, the more often the more it lacks.
func (w *shuffle) draw() (uint16, bool) {
	for len(w.lacking) > 0 {
		i := w.rnd.IntN(len(w.lacking))
		d := w.lacking[i]
		if w.have[d] < w.want[d] {
			return d, true
		}
		w.lacking[i] = w.lacking[len(w.lacking)-1]
		w.lacking = w.lacking[:len(w.lacking)-1]
	}
	return 0, false
}

// taker finds a drive that lacks places for a slot: the best of a few, or any there is.
func (w *shuffle) taker(slot int) (best uint16, found bool) {
	least := 0.0
	try := func(d uint16) {
		if node, zone, ok := w.fits(slot, d); ok {
			if c := w.cost(slot, d, node, zone); !found || c < least {
				best, least, found = d, c, true
			}
		}
	}
	for range 2 * lookDrives {
		d, ok := w.draw()
		if !ok {
			return 0, false
		}
		try(d)
	}
	if found {
		return best, true
	}
	for d := range w.have {
		if w.have[d] < w.want[d] {
			try(uint16(d))
		}
	}
	return best, found
}

// anyone finds the drive for a slot that has the smallest part of its target, whoever it is.
func (w *shuffle) anyone(slot int) (best uint16, found bool) {
	for d := range w.have {
		if _, _, ok := w.fits(slot, uint16(d)); ok && (!found || w.excess(uint16(d)) < w.excess(best)) {
			best, found = uint16(d), true
		}
	}
	return best, found
}

// excess says how much of its target a drive has: above 1 it has to give.
func (w *shuffle) excess(d uint16) float64 {
	if w.sites[d].leaving {
		return 1e9
	}
	return float64(w.have[d]) / float64(max(w.want[d], 1))
}

// shed takes from each partition what must go, and fills the holes.
func (w *shuffle) shed() {
	nodes, zones := make([]int, len(w.nodes)), make([]int, len(w.zones))
	must := 0
	for _, p := range w.rnd.Perm(w.parts) {
		var holes []int
		first := p * w.n
		for i, d := range w.row(first) {
			if d == hole || w.sites[d].leaving && !w.waits(first+i) {
				w.put(first+i, hole)
				holes = append(holes, first+i)
			}
		}
		for _, over := range []struct {
			count []int
			limit int
			of    func(s *site) int
		}{
			{nodes, w.nodeCap, func(s *site) int { return s.node }},
			{zones, w.zoneCap, func(s *site) int { return s.zone }},
		} {
			for slot := w.above(first, over.count, over.limit, over.of); slot >= 0; slot = w.above(first, over.count, over.limit, over.of) {
				w.put(slot, hole)
				holes = append(holes, slot)
			}
		}
		must += len(holes)
		for _, slot := range holes {
			d, ok := w.taker(slot)
			if !ok {
				d, ok = w.anyone(slot) // there is one: see shuffle
			}
			if !ok {
				d = w.before[slot] // but not where the others wait, or the one who would fit is a former member
			}
			w.put(slot, d)
		}
	}
	w.least = max(w.least, must)
}

// giveUpHalf leaves partitions narrow, and as they were, that did not get a drive for each new position: where others
// wait, or the one who would fit is a former member. It returns how many.
func (w *shuffle) giveUpHalf() (narrow int) {
	for first := 0; first < len(w.table); first += w.n {
		if !slices.Contains(w.row(first), hole) {
			continue
		}
		narrow++
		for i, d := range w.before[first : first+w.n] {
			w.put(first+i, d)
		}
	}
	return narrow
}

// above returns the slot of a partition to be given up, of those in domains with more than limit
// members: that of the drive which has most to give; -1 if there are none. count is room for counting.
func (w *shuffle) above(first int, count []int, limit int, of func(*site) int) int {
	row := w.row(first)
	for _, d := range row {
		if d != hole {
			count[of(&w.sites[d])]++
		}
	}
	best := -1
	for i, d := range row {
		if d != hole && !w.waits(first+i) && count[of(&w.sites[d])] > limit && (best < 0 || w.excess(d) > w.excess(w.table[best])) {
			best = first + i
		}
	}
	for _, d := range row {
		if d != hole {
			count[of(&w.sites[d])] = 0
		}
	}
	return best
}

// even moves places from drives that have too many to drives that have too few, directly.
func (w *shuffle) even() {
	var giving []uint16
	for d := range w.have {
		for range w.have[d] - w.want[d] {
			giving = append(giving, uint16(d))
		}
	}
	w.rnd.Shuffle(len(giving), func(i, j int) { giving[i], giving[j] = giving[j], giving[i] })
	for _, from := range giving {
		if slot, to, ok := w.pair(from); ok {
			w.put(slot, to)
		}
	}
}

// pair finds a slot of a drive and one that lacks places for it: the best of a few, or any.
func (w *shuffle) pair(from uint16) (slot int, to uint16, found bool) {
	least := 0.0
	for range lookSlots {
		at := int(w.at[from][w.rnd.IntN(len(w.at[from]))])
		for range lookDrives {
			d, ok := w.draw()
			if !ok {
				return 0, 0, false
			}
			if node, zone, ok := w.fits(at, d); ok {
				if c := w.cost(at, d, node, zone); !found || c < least {
					slot, to, least, found = at, d, c, true
				}
			}
		}
	}
	if found {
		return slot, to, true
	}
	for _, at := range w.at[from] {
		for range lookDrives {
			d, _ := w.draw()
			if _, _, ok := w.fits(int(at), d); ok {
				return int(at), d, true
			}
		}
	}
	return 0, 0, false
}

// chains moves what even left over, each by the shortest way there is.
func (w *shuffle) chains() {
	steps := chainSteps
	for from := range w.have {
		for tries := 0; w.have[from] > w.want[from]; {
			if w.chain(uint16(from), &steps) {
				continue
			}
			if tries++; tries == chainTries {
				w.stuck += w.have[from] - w.want[from]
				break
			}
		}
	}
}

// chain carries one place from a drive to one that lacks places: from gives to the next, which
// gives elsewhere to the one after. What it looks for is the way with the fewest new moves. A slot that changed
// hands already may change them again for nothing; and a drive that gave up its place in a partition may
// have it back, when another gives one up there instead.
func (w *shuffle) chain(from uint16, steps *int) bool {
	via := make([]int32, len(w.have)) // the slot by which a drive is reached
	var rest []uint16                 // drives not reached
	for d := range via {
		via[d] = -1
		if uint16(d) != from && !w.sites[d].leaving {
			rest = append(rest, uint16(d))
		}
	}
	reach := func(slot int32, d uint16) bool {
		*steps--
		if via[d] >= 0 || d == from {
			return false
		}
		if _, _, ok := w.fits(int(slot), d); !ok {
			return false
		}
		via[d] = slot
		return true
	}
	for front := []uint16{from}; len(front) > 0 && *steps > 0; {
		// What is reached without another move.
		for i := 0; i < len(front); i++ {
			for _, slot := range w.at[front[i]] {
				free := rest
				if w.table[slot] == w.before[slot] {
					first := int(slot) - int(slot)%w.n
					free = w.before[first : first+w.n]
				}
				for _, e := range free {
					if e == hole || !reach(slot, e) {
						continue
					}
					if w.have[e] < w.want[e] {
						return w.follow(from, e, via)
					}
					front = append(front, e)
				}
			}
		}
		// What is reached with one.
		var next []uint16
		for _, d := range front {
			for _, slot := range w.at[d] {
				rest = slices.DeleteFunc(rest, func(e uint16) bool { return via[e] >= 0 })
				for _, e := range rest {
					if !reach(slot, e) {
						continue
					}
					if w.have[e] < w.want[e] {
						return w.follow(from, e, via)
					}
					next = append(next, e)
				}
			}
		}
		front = next
	}
	return false
}

// follow makes the moves of a chain, from its end on. It reports whether all were made: a chain
// may cross a partition twice, and stand in its own way; the search then begins anew.
func (w *shuffle) follow(from, to uint16, via []int32) bool {
	for to != from {
		slot := int(via[to])
		d := w.table[slot]
		if _, _, ok := w.fits(slot, to); !ok {
			return false
		}
		w.put(slot, to)
		to = d
	}
	return true
}

// settle gives members that stay their former positions.
func (w *shuffle) settle() {
	for first := 0; first < len(w.table); first += w.n {
		w.settleRow(first)
	}
}

func (w *shuffle) settleRow(first int) {
	row, before := w.row(first), w.before[first:first+w.n]
	for i, d := range before {
		for row[i] != d {
			j := slices.Index(row, d)
			if j < 0 {
				break
			}
			w.swap(first+i, first+j)
		}
	}
}

// swap exchanges who has two slots.
func (w *shuffle) swap(a, b int) {
	d, e := w.table[a], w.table[b]
	w.put(a, e)
	w.put(b, d)
}

// shortcut undoes detours: drive b gave its slot t to c and took slot s instead. If b may keep t, and c take s,
// one move is saved.
func (w *shuffle) shortcut() {
	gave, took := make([][]int32, len(w.have)), make([][]int32, len(w.have))
	for slot, d := range w.table {
		if b := w.before[slot]; b != d {
			if b != hole {
				gave[b] = append(gave[b], int32(slot))
			}
			took[d] = append(took[d], int32(slot))
		}
	}
	for b := range w.have {
		if len(took[b]) == 0 || w.sites[b].leaving {
			continue
		}
		for _, t := range gave[b] {
			for range min(lookPairs, 4*len(took[b])) {
				if s := took[b][w.rnd.IntN(len(took[b]))]; w.cut(int(s), int(t), uint16(b)) {
					break
				}
			}
		}
	}
}

// cut exchanges slots s and t if b, which has s, may have t back.
func (w *shuffle) cut(s, t int, b uint16) bool {
	c := w.table[t]
	if w.before[t] != b || w.table[s] != b || w.before[s] == b || c == b || !w.exchange(s, t) {
		return false
	}
	w.settleRow(s - s%w.n)
	return true
}

// exchange exchanges two slots of different partitions if both drives fit.
func (w *shuffle) exchange(s, t int) bool {
	if s-s%w.n == t-t%w.n {
		return false
	}
	d, e := w.table[s], w.table[t]
	if _, _, ok := w.fits(s, e); !ok {
		return false
	}
	if _, _, ok := w.fits(t, d); !ok {
		return false
	}
	w.swap(s, t)
	return true
}

// polish exchanges newcomers among the slots that changed hands, where positions even out by it.
func (w *shuffle) polish() {
	var moved []int
	for slot, d := range w.table {
		if d != w.before[slot] {
			moved = append(moved, slot)
		}
	}
	if len(moved) < 2 {
		return
	}
	for range 6 * len(moved) {
		s, t := moved[w.rnd.IntN(len(moved))], moved[w.rnd.IntN(len(moved))]
		d, e := w.table[s], w.table[t]
		i, j := s%w.n, t%w.n
		if i == j || d == e || d == w.before[s] || e == w.before[t] || w.gain(d, i, j)+w.gain(e, j, i) <= 0 {
			continue
		}
		if s-s%w.n == t-t%w.n {
			w.swap(s, t)
			continue
		}
		// A member that came back would not stand where it stood.
		if slices.Contains(w.before[s-s%w.n:s-s%w.n+w.n], e) || slices.Contains(w.before[t-t%w.n:t-t%w.n+w.n], d) || !w.noCloser(s, t) {
			continue
		}
		w.exchange(s, t)
	}
}

// gain says by how much more evenly a drive stands when it gives up position i for j.
func (w *shuffle) gain(d uint16, i, j int) int {
	return int(w.stands[int(d)*w.n+i]) - int(w.stands[int(d)*w.n+j]) - 1
}

// noCloser reports whether an exchange of two slots puts no drive among more of its node than were
// there of the one that it replaces.
func (w *shuffle) noCloser(s, t int) bool {
	sNow, _, _ := w.fits(s, w.table[s])
	tNow, _, _ := w.fits(t, w.table[t])
	sThen, _, _ := w.fits(s, w.table[t])
	tThen, _, _ := w.fits(t, w.table[s])
	return max(sThen, tThen) <= max(sNow, tNow)
}
