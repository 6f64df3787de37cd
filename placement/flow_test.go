package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// graph is a flow network for the naive oracle: capacities, and the greatest flow by augmenting paths
// (Edmonds and Karp 1972).
type graph struct {
	to, room []int // edges: i and i^1 are each other's reverse
	out      [][]int
}

func (g *graph) vertex() int {
	g.out = append(g.out, nil)
	return len(g.out) - 1
}

func (g *graph) edge(a, b, room int) {
	g.out[a] = append(g.out[a], len(g.to))
	g.out[b] = append(g.out[b], len(g.to)+1)
	g.to, g.room = append(g.to, b, a), append(g.room, room, 0)
}

func (g *graph) greatest(source, sink int) (flow int) {
	for {
		by := slices.Repeat([]int{-1}, len(g.out))
		queue := []int{source}
		for len(queue) > 0 && by[sink] < 0 {
			v := queue[0]
			queue = queue[1:]
			for _, e := range g.out[v] {
				if w := g.to[e]; g.room[e] > 0 && by[w] < 0 && w != source {
					by[w] = e
					queue = append(queue, w)
				}
			}
		}
		if by[sink] < 0 {
			return flow
		}
		least := 1 << 60
		for v := sink; v != source; v = g.to[by[v]^1] {
			least = min(least, g.room[by[v]])
		}
		for v := sink; v != source; v = g.to[by[v]^1] {
			g.room[by[v]] -= least
			g.room[by[v]^1] += least
		}
		flow += least
	}
}

// naiveFlow is the number of members that parts partitions can have, when nobody is in one twice, at most
// nodeCap are on a node and zoneCap in a zone of each, and drive d has room for so many in all.
func naiveFlow(drives []GoalDrive, room []int, parts, n, nodeCap, zoneCap int) int {
	g := &graph{}
	source, sink := g.vertex(), g.vertex()
	last := make([]int, len(drives))
	for d := range drives {
		last[d] = g.vertex()
		g.edge(last[d], sink, room[d])
	}
	for range parts {
		p := g.vertex()
		g.edge(source, p, n)
		zones, nodes := map[string]int{}, map[[16]byte]int{}
		for d := range drives {
			if drives[d].Leaving {
				continue
			}
			if _, ok := zones[drives[d].Zone]; !ok {
				zones[drives[d].Zone] = g.vertex()
				g.edge(p, zones[drives[d].Zone], zoneCap)
			}
			if _, ok := nodes[drives[d].Node]; !ok {
				nodes[drives[d].Node] = g.vertex()
				g.edge(zones[drives[d].Zone], nodes[drives[d].Node], nodeCap)
			}
			g.edge(nodes[drives[d].Node], last[d], 1)
		}
	}
	return g.greatest(source, sink)
}

// usableBound is the most bytes that one member may hold so that a table with these caps exists in
// which no drive holds more than its capacity: by trying. Of many partitions the flow is that of the tree, which
// a test below compares with the network.
func usableBound(goal []GoalDrive, parts, n, nodeCap, zoneCap int) uint64 {
	drives, leaving := make([]Drive, len(goal)), make([]bool, len(goal))
	for i := range goal {
		drives[i], leaving[i] = goal[i].Drive, goal[i].Leaving
	}
	tree := newDomains(drives, leaving, n, nodeCap, parts)
	tree.nodeCap, tree.zoneCap = nodeCap, zoneCap
	low, high := uint64(0), uint64(1)<<50
	for high-low > high>>10 {
		mid := low + (high-low)/2
		flow := 0
		if parts > 8 {
			for d := range tree.sites {
				tree.sites[d].weight = max(float64(drives[d].Capacity/mid), 1e-3)
			}
			flow = int(tree.network().whole(1))
		} else {
			room := make([]int, len(drives))
			for d := range drives {
				room[d] = int(min(drives[d].Capacity/mid, uint64(parts)))
			}
			flow = naiveFlow(goal, room, parts, n, nodeCap, zoneCap)
		}
		if flow >= n*parts {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}

// naiveCaps are the least caps from m up that have room for one partition, nodes first.
func naiveCaps(drives []GoalDrive, n, m int) (nodeCap, zoneCap int) {
	one := slices.Repeat([]int{1}, len(drives))
	for nodeCap = max(m, 1); naiveFlow(drives, one, 1, n, nodeCap, n) < n; nodeCap++ {
	}
	for zoneCap = max(m, 1); naiveFlow(drives, one, 1, n, nodeCap, zoneCap) < n; zoneCap++ {
	}
	return nodeCap, zoneCap
}

// randomHosts makes drives of random sizes on random nodes in random zones, from number first on.
func randomHosts(rnd *rand.Rand, first, drives, nodes, zones int) []Drive {
	list := make([]Drive, drives)
	for i := range list {
		node := rnd.IntN(nodes)
		list[i] = host(first+i, node, fmt.Sprint("zone ", node%zones), (1+rnd.Uint64N(4))<<40)
		if rnd.IntN(4) == 0 {
			list[i].Capacity += rnd.Uint64N(8 << 40)
		}
	}
	return list
}

func TestTheFlowOfTheTreeIsTheGreatestFlowOfTheNetwork(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	for range 60 {
		parts, n := 1+rnd.IntN(6), 1+rnd.IntN(7)
		drives := randomHosts(rnd, 1, n+rnd.IntN(8), 1+rnd.IntN(6), 1+rnd.IntN(3))
		goal := make([]GoalDrive, len(drives))
		for i := range drives {
			goal[i].Drive = drives[i]
		}
		s := newDomains(drives, nil, n, rnd.IntN(n), parts)
		if node, zone := naiveCaps(goal, n, s.m); node != s.nodeCap || zone != s.zoneCap {
			t.Fatalf("seed %d: caps %d and %d, want %d and %d", seed, s.nodeCap, s.zoneCap, node, zone)
		}
		for range 4 {
			level := rnd.Float64() * 1e-8 * float64(parts)
			room := make([]int, len(drives))
			for d := range room {
				room[d] = floor(s.sites[d].weight * level)
			}
			got := min(s.network().whole(level), float64(n*parts))
			if want := naiveFlow(goal, room, parts, n, s.nodeCap, s.zoneCap); int(got) != want {
				t.Fatalf("seed %d: %v for room %v in %d partitions of %d, want %d", seed, got, room, parts, n, want)
			}
		}
	}
}
