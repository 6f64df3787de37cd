package placement

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"strings"
)

// How many places each drive is to have. Places flow from the cluster through zones and nodes to
// drives, and each of them lets through so many: a drive one place of every partition and what its size
// allows, a node NodeCap of every partition, a zone ZoneCap. The network is a tree, so the greatest
// flow is a sum of minima, from the leaves up. And what flows can be laid out: the table of a flow
// always exists, since the sets of n drives within nested caps are the integral points of a totally
// unimodular system (its multiples decompose into integral points).

// site is a drive with its domains, by index, as planning counts them.
type site struct {
	node, zone int
	weight     float64 // capacity, in any unit; above 0
	leaving    bool
}

// domains are the drives of a goal with the caps that they can do with.
type domains struct {
	n, m, parts int
	sites       []site
	nodes       [][16]byte
	zones       []string
	nodeZone    []int // zone of each node
	// nodeCap and zoneCap are the most members of one partition.
	nodeCap, zoneCap int
}

// newDomains sorts drives (of which n stay at least) into nodes and zones. A node whose drives name
// several zones is in the first of them by name.
func newDomains(drives []Drive, leaving []bool, n, m, parts int) *domains {
	s := &domains{n: n, m: m, parts: parts, sites: make([]site, len(drives))}
	zoneOf := map[[16]byte]string{}
	for i := range drives {
		z, ok := zoneOf[drives[i].Node]
		if !ok || drives[i].Zone < z {
			zoneOf[drives[i].Node] = drives[i].Zone
		}
	}
	for node, zone := range zoneOf {
		s.nodes = append(s.nodes, node)
		s.zones = append(s.zones, zone)
	}
	slices.Sort(s.zones)
	s.zones = slices.Compact(s.zones)
	slices.SortFunc(s.nodes, func(a, b [16]byte) int {
		return cmp.Or(strings.Compare(zoneOf[a], zoneOf[b]), bytes.Compare(a[:], b[:]))
	})
	index := map[[16]byte]int{}
	for i, node := range s.nodes {
		index[node] = i
		s.nodeZone = append(s.nodeZone, slices.Index(s.zones, zoneOf[node]))
	}
	weights := weigh(drives)
	for i := range drives {
		node := index[drives[i].Node]
		s.sites[i] = site{node: node, zone: s.nodeZone[node], weight: float64(weights[i]), leaving: leaving != nil && leaving[i]}
	}
	s.setCaps()
	return s
}

// setCaps finds the least caps from m up that leave room for n members. Nodes come first: what a
// zone may take never makes a node take more.
func (s *domains) setCaps() {
	drives := make([]int, len(s.nodes))
	for _, d := range s.sites {
		if !d.leaving {
			drives[d.node]++
		}
	}
	least := max(s.m, 1)
	for s.nodeCap = least; s.nodeCap < s.n; s.nodeCap++ {
		room := 0
		for _, have := range drives {
			room += min(have, s.nodeCap)
		}
		if room >= s.n {
			break
		}
	}
	zones := make([]int, len(s.zones))
	for node, have := range drives {
		zones[s.nodeZone[node]] += min(have, s.nodeCap)
	}
	for s.zoneCap = least; s.zoneCap < s.n; s.zoneCap++ {
		room := 0
		for _, have := range zones {
			room += min(have, s.zoneCap)
		}
		if room >= s.n {
			break
		}
	}
}

// vertex is a vertex of the flow network: a drive, or a domain of vertices.
type vertex struct {
	limit  float64 // places that it lets through
	weight float64 // of a drive, above 0; a domain has none
	drive  int     // index, of a drive
	kids   []*vertex
}

// network returns the tree of zones, nodes and the drives that stay.
func (s *domains) network() *vertex {
	parts := float64(s.parts)
	nodes := make([]*vertex, len(s.nodes))
	root := &vertex{limit: math.Inf(1)}
	for range s.zones {
		root.kids = append(root.kids, &vertex{limit: parts * float64(s.zoneCap)})
	}
	for i := range nodes {
		nodes[i] = &vertex{limit: parts * float64(s.nodeCap)}
		zone := root.kids[s.nodeZone[i]]
		zone.kids = append(zone.kids, nodes[i])
	}
	for i, d := range s.sites {
		if !d.leaving {
			nodes[d.node].kids = append(nodes[d.node].kids, &vertex{limit: parts, weight: d.weight, drive: i})
		}
	}
	return root
}

// flow returns how many places go through v when a drive gets level places for each unit of its
// weight: rising in level.
func (v *vertex) flow(level float64) float64 {
	if v.weight > 0 {
		return min(v.limit, float64(v.weight*level))
	}
	sum := 0.0
	for _, kid := range v.kids {
		sum += kid.flow(level)
	}
	return min(v.limit, sum)
}

// whole is flow with drives that have whole places only.
func (v *vertex) whole(level float64) float64 {
	if v.weight > 0 {
		return min(v.limit, float64(floor(float64(v.weight*level))))
	}
	sum := 0.0
	for _, kid := range v.kids {
		sum += kid.whole(level)
	}
	return min(v.limit, sum)
}

// levelFor returns the lowest level at which flow reaches amount, if any does.
func levelFor(amount float64, flow func(level float64) float64) float64 {
	amount -= amount * 1e-12 // so many digits are lost in sums
	low, high := 0.0, 1e-18
	for flow(high) < amount {
		if high *= 2; high > 1e30 {
			return high // more than there is: all are full
		}
	}
	for range 80 {
		mid := low + (high-low)/2
		if flow(mid) < amount {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// fill divides amount among the drives under v in proportion to weight, as far as the limits allow.
func (v *vertex) fill(amount float64, share []float64) {
	if v.weight > 0 {
		share[v.drive] = amount
		return
	}
	level := levelFor(amount, func(level float64) float64 {
		sum := 0.0
		for _, kid := range v.kids {
			sum += kid.flow(level)
		}
		return sum
	})
	for _, kid := range v.kids {
		kid.fill(kid.flow(level), share)
	}
}

// shares returns how many places each drive is to have, in fractions: the flow that lets the most
// bytes in. fullest is its level, which any table has at least: the places of a drive for a unit of weight.
func (s *domains) shares() (share []float64, fullest float64) {
	root := s.network()
	share = make([]float64, len(s.sites))
	total := float64(s.n * s.parts)
	root.fill(total, share)
	return share, levelFor(total, root.flow)
}

// targets returns whole places for each drive, n·parts in all, within the caps: each drive's share
// rounded down, and the rest first to those that have more than that now (what is left in place
// need not move), then to those that it fills least.
func (s *domains) targets(have []int) []int {
	share, _ := s.shares()
	t := &tally{domains: s, out: make([]int, len(share)), nodes: make([]int, len(s.nodes)), zones: make([]int, len(s.zones)), left: s.n * s.parts}
	nodes, zones := make([]float64, len(s.nodes)), make([]float64, len(s.zones))
	for d, at := range s.sites {
		t.add(d, floor(share[d]))
		nodes[at.node] += share[d]
		zones[at.zone] += share[d]
	}
	// No drive is to have more than the best whole table gives the fullest, and no domain a whole
	// place more than its share, or else some partition has a member more in it than it must. The latter gives way.
	level := levelFor(float64(s.n*s.parts), s.network().whole)
	most := func(d int) int { return floor(s.sites[d].weight * level) }
	apart := func(d int) bool {
		at := &s.sites[d]
		return t.nodes[at.node] < ceil(nodes[at.node]) && t.zones[at.zone] < ceil(zones[at.zone])
	}
	t.fill(func(d int) bool { return t.out[d] < min(have[d], most(d)) && apart(d) })
	t.fill(func(d int) bool { return t.out[d] < most(d) && apart(d) })
	t.fill(func(d int) bool { return t.out[d] < most(d) })
	t.fill(func(d int) bool { return true }) // not reached: the flow at that level exists
	return t.out
}

// floor and ceil round, and take what is a whole number but for lost digits as that.
func floor(v float64) int { return int(math.Floor(v + 1e-6)) }
func ceil(v float64) int  { return int(math.Ceil(v - 1e-6)) }

// tally gives out places.
type tally struct {
	*domains
	out, nodes, zones []int // of each drive, node and zone
	left              int   // that nobody has yet
}

func (t *tally) add(d, places int) {
	t.out[d] += places
	t.nodes[t.sites[d].node] += places
	t.zones[t.sites[d].zone] += places
	t.left -= places
}

// fill gives one place after another to drives that may have one and want one, the emptiest
// first, until there are none, or no places.
func (t *tally) fill(wants func(d int) bool) {
	order := make([]int, len(t.out))
	for d := range order {
		order[d] = d
	}
	for again := true; again && t.left > 0; {
		again = false
		slices.SortStableFunc(order, func(a, b int) int {
			return cmp.Compare(float64(t.out[a]+1)/t.sites[a].weight, float64(t.out[b]+1)/t.sites[b].weight)
		})
		for _, d := range order {
			at := &t.sites[d]
			if t.left > 0 && !at.leaving && t.out[d] < t.parts && t.nodes[at.node] < t.nodeCap*t.parts &&
				t.zones[at.zone] < t.zoneCap*t.parts && wants(d) {
				t.add(d, 1)
				again = true
			}
		}
	}
}
