package placement

import (
	"math/bits"
	"math/rand/v2"
)

// mixing is how many exchanges are tried for each place of a new table.
const mixing = 6

// table lays out the targets of a cluster of several nodes, as rows of indexes into drives.
//
// Deal: the places of all drives stand in one line, drive by drive, node by node, zone by zone, and
// row p takes every parts-th of them from p on. A drive with at most parts places is met at most once by
// a row, and a domain with x places ⌊x/parts⌋ or ⌈x/parts⌉ times: members are as far apart
// as the sizes allow. Mix: random exchanges between rows, that keep all this, spread the partners of a
// drive over the cluster, so that all of it takes part when a drive is rebuilt. Seat: each drive in
// each position equally often (±1).
func (s *domains) table() [][]int {
	want := s.targets(make([]int, len(s.sites)))
	rows := make([][]int, s.parts)
	room := make([]int, s.n*s.parts)
	for p := range rows {
		rows[p] = room[p*s.n : p*s.n : (p+1)*s.n]
	}
	cell := 0
	for node := range s.nodes { // which are in the order of zones
		for d, at := range s.sites {
			for range want[d] {
				if at.node != node {
					break
				}
				rows[cell%s.parts] = append(rows[cell%s.parts], d)
				cell++
			}
		}
	}
	s.mix(rows, want)
	seat(rows, s.n, len(s.sites))
	return rows
}

// mix exchanges members of rows at random, never beyond what dealing gave to a domain.
func (s *domains) mix(rows [][]int, want []int) {
	nodes, zones := make([]int, len(s.nodes)), make([]int, len(s.zones))
	for d, at := range s.sites {
		nodes[at.node] += want[d]
		zones[at.zone] += want[d]
	}
	fits := func(row []int, i, d int) bool {
		at := &s.sites[d]
		node, zone := 1, 1
		for j, e := range row {
			if e == d {
				return false
			}
			if j == i {
				continue
			}
			if s.sites[e].node == at.node {
				node++
			}
			if s.sites[e].zone == at.zone {
				zone++
			}
		}
		// At most ⌈x/parts⌉ each.
		return (node-1)*s.parts < nodes[at.node] && (zone-1)*s.parts < zones[at.zone]
	}
	rnd := rand.New(rand.NewPCG(uint64(s.n), uint64(s.parts)))
	for range mixing * s.n * s.parts {
		p, q := rows[rnd.IntN(s.parts)], rows[rnd.IntN(s.parts)]
		i, j := rnd.IntN(s.n), rnd.IntN(s.n)
		if d, e := p[i], q[j]; fits(p, i, e) && fits(q, j, d) {
			p[i], q[j] = e, d
		}
	}
}

// seat orders the members of each row so that every drive stands in each of the n positions
// equally often (±1). Take each drive apart into groups of n of its places; rows and groups
// form a bipartite graph in which nothing has a degree above n, so its edges can be coloured with n
// colours (Kőnig), and a colour is a position.
func seat(rows [][]int, n, drives int) {
	c := &seating{n: n}
	first := make([]int, drives+1) // the first group of each drive
	places := make([]int, drives)
	for _, row := range rows {
		for _, d := range row {
			places[d]++
		}
	}
	for d := range drives {
		first[d+1] = first[d] + (places[d]+n-1)/n
		places[d] = 0
	}
	groups := first[drives]
	c.rows, c.groups = fill(len(rows)*n), fill(groups*n)
	c.freeRows, c.freeGroups = make([]uint32, len(rows)), make([]uint32, groups)
	all := uint32(1<<n - 1) // erasure.MaxShards is 32: for n = 32 this is all ones too
	for i := range c.freeRows {
		c.freeRows[i] = all
	}
	for i := range c.freeGroups {
		c.freeGroups[i] = all
	}
	drive := make([]int, groups)
	for r, row := range rows {
		for _, d := range row {
			g := first[d] + places[d]/n
			places[d]++
			drive[g] = d
			c.place(r, g)
		}
	}
	for r, row := range rows {
		for pos := range row {
			row[pos] = drive[c.rows[r*n+pos]]
		}
	}
}

func fill(n int) []int32 {
	list := make([]int32, n)
	for i := range list {
		list[i] = -1
	}
	return list
}

// seating is a partial edge colouring: rows[row·n + colour] = group, and the same seen from the group,
// groups[group·n + colour] = row; -1 where there is none. The masks have a bit for each colour that is free.
type seating struct {
	n                    int
	rows, groups         []int32
	freeRows, freeGroups []uint32
	path                 []edge // room
}

type edge struct{ row, group int }

// place adds the edge row–group.
func (c *seating) place(row, group int) {
	if both := c.freeRows[row] & c.freeGroups[group]; both != 0 {
		c.set(row, group, bits.TrailingZeros32(both))
		return
	}
	// Both have some colour free, since neither degree has reached n. Exchange colours a and b along
	// the path that leaves group by a: it comes to rows by a, so it never meets row, which lacks a; and
	// then a is free at both.
	a, b := bits.TrailingZeros32(c.freeRows[row]), bits.TrailingZeros32(c.freeGroups[group])
	path := c.path[:0]
	for g := group; ; {
		r := c.groups[g*c.n+a]
		if r < 0 {
			break
		}
		path = append(path, edge{int(r), g})
		next := c.rows[int(r)*c.n+b]
		if next < 0 {
			break
		}
		g = int(next)
		path = append(path, edge{int(r), g})
	}
	for i, e := range path {
		c.clear(e.row, e.group, [2]int{a, b}[i%2])
	}
	for i, e := range path {
		c.set(e.row, e.group, [2]int{b, a}[i%2])
	}
	c.set(row, group, a)
	c.path = path
}

func (c *seating) set(row, group, colour int) {
	c.rows[row*c.n+colour], c.groups[group*c.n+colour] = int32(group), int32(row)
	c.freeRows[row] &^= 1 << colour
	c.freeGroups[group] &^= 1 << colour
}

func (c *seating) clear(row, group, colour int) {
	c.rows[row*c.n+colour], c.groups[group*c.n+colour] = -1, -1
	c.freeRows[row] |= 1 << colour
	c.freeGroups[group] |= 1 << colour
}
