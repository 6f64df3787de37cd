package placement

import (
	"math/rand/v2"
	"slices"

	"github.com/ostraka/ostraka/erasure"
)

// assign fills a table of parts rows of k+m distinct drives (indexes into drives, which are sorted).
// Drives of several nodes are laid out by domains.table. The rest is for those of one node.
//
// It works in two steps, once each drive has its number of places. Columns: the places of one drive go to consecutive positions, round
// and round, so each position gets its share ±1 and exactly parts places. Rows: places form a
// bipartite graph, drives on one side, positions on the other, in which nothing has a degree above
// parts, so its edges can be coloured with parts colours (Kőnig); a colour is a row, and being a
// matching it names no drive twice.
//
// When every drive is in every row, rotations do all that.
func assign(drives []Drive, p erasure.Profile, parts int) [][]int {
	n := p.N()
	s := newDomains(drives, nil, n, int(p.Parity), parts)
	if !sameNode(drives) {
		return s.table()
	}
	rows := make([][]int, parts)
	room := make([]int, n*parts)
	for i := range rows {
		rows[i] = room[i*n : (i+1)*n : (i+1)*n]
	}
	if len(drives) == n {
		for i, row := range rows {
			for pos := range row {
				row[pos] = (pos + i) % n
			}
		}
		return rows
	}
	c := &colouring{rows: rows, at: make([][]int8, len(drives)), rnd: rand.New(rand.NewPCG(uint64(n), uint64(parts)))}
	for _, row := range rows {
		for pos := range row {
			row[pos] = -1
		}
	}
	for d := range c.at {
		c.at[d] = slices.Repeat([]int8{-1}, parts)
	}
	// Places of one position at a time, in random order, so that rows mix drives well.
	columns := make([][]int, n)
	next := 0
	for d, share := range s.targets(make([]int, len(drives))) {
		for range share {
			columns[next] = append(columns[next], d)
			next = (next + 1) % n
		}
	}
	for pos, column := range columns {
		c.rnd.Shuffle(len(column), func(i, j int) { column[i], column[j] = column[j], column[i] })
		for _, d := range column {
			c.place(d, pos)
		}
	}
	return rows
}

// weightUnit is how many bytes one unit of weight is: so many that the weights of MaxDrives drives
// cannot overflow when they are added.
const weightUnit = 2 * MaxDrives

// weigh returns capacities scaled so that their sum cannot overflow; unknown ones count as the
// mean of the known ones.
func weigh(drives []Drive) []uint64 {
	weights := make([]uint64, len(drives))
	sum, known := uint64(0), uint64(0)
	for d := range drives {
		if c := drives[d].Capacity; c > 0 {
			weights[d] = c/weightUnit + 1
			sum += weights[d]
			known++
		}
	}
	mean := uint64(1)
	if known > 0 {
		mean = max(sum/known, 1)
	}
	for d := range weights {
		if weights[d] == 0 {
			weights[d] = mean
		}
	}
	return weights
}

// colouring is a partial edge colouring: rows[colour][position] = drive, and the same seen from the
// drive, at[drive][colour] = position; -1 where there is none.
type colouring struct {
	rows [][]int
	at   [][]int8
	rnd  *rand.Rand
}

// place adds the edge drive–position.
func (c *colouring) place(d, pos int) {
	// A row where both are free, if chance or a search finds one.
	start := c.rnd.IntN(len(c.rows))
	forDrive, forPos := -1, -1
	for i := range c.rows {
		row := start + i
		if row >= len(c.rows) {
			row -= len(c.rows)
		}
		freeDrive, freePos := c.at[d][row] < 0, c.rows[row][pos] < 0
		if freeDrive && freePos {
			c.set(row, pos, d)
			return
		}
		if freeDrive && forDrive < 0 {
			forDrive = row
		}
		if freePos && forPos < 0 {
			forPos = row
		}
	}
	// Otherwise the row a = forDrive lacks the drive and b = forPos lacks the position. Both are
	// there, since neither degree has reached the number of rows. Swap a and b along the path that
	// leaves pos by a: in a bipartite graph it cannot end at d, and then a is free at both.
	c.swapPath(pos, forDrive, forPos)
	c.set(forDrive, pos, d)
}

// swapPath moves the member at pos in row a to row b, the member of b that is in its way (the same
// drive at another position) to a, and so on.
func (c *colouring) swapPath(pos, a, b int) {
	type held struct{ d, pos int }
	var path []held
	from := a
	for p := pos; ; {
		d := c.rows[from][p]
		if d < 0 {
			break
		}
		path = append(path, held{d, p})
		// At drive d continue with the other colour, then from its position with this one again.
		other := a + b - from
		q := int(c.at[d][other])
		if q < 0 {
			break
		}
		path = append(path, held{d, q})
		p = q
	}
	// Edges alternate a, b, a, …: clear all, then set each in the other row.
	for i, e := range path {
		row := a
		if i%2 == 1 {
			row = b
		}
		c.rows[row][e.pos] = -1
		c.at[e.d][row] = -1
	}
	for i, e := range path {
		row := b
		if i%2 == 1 {
			row = a
		}
		c.set(row, e.pos, e.d)
	}
}

func (c *colouring) set(row, pos, d int) {
	c.rows[row][pos] = d
	c.at[d][row] = int8(pos)
}
