package placement

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
)

// host makes a drive of a node and a zone.
func host(num, node int, zone string, capacity uint64) Drive {
	d := Drive{Num: uint16(num), Zone: zone, Capacity: capacity}
	binary.BigEndian.PutUint32(d.ID[:], uint32(num))
	binary.BigEndian.PutUint32(d.Node[:], uint32(node))
	return d
}

// hosts makes equal drives 1, 2, … on nodes 1, 2, … in zones a, b, …
func hosts(nodes, each, zones int) (list []Drive) {
	for i := range nodes * each {
		list = append(list, host(i+1, i/each+1, string(rune('a'+i/each%zones)), 1<<40))
	}
	return list
}

// goalOf is the layout's own drives, as they are.
func goalOf(l *Layout) Goal {
	g := Goal{Average: 1 << 20}
	for _, d := range l.Drives() {
		g.Drives = append(g.Drives, GoalDrive{Drive: d})
	}
	return g
}

func (g *Goal) leave(leaves func(d *Drive) bool) {
	for i := range g.Drives {
		g.Drives[i].Leaving = leaves(&g.Drives[i].Drive)
	}
}

func (g *Goal) add(drives ...Drive) {
	for _, d := range drives {
		g.Drives = append(g.Drives, GoalDrive{Drive: d})
	}
}

func mustPlan(t testing.TB, l *Layout, g Goal) *Plan {
	t.Helper()
	p, err := NewPlan(l, g)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// mostIn is the naive count of members of a row that share a domain.
func mostIn[T comparable](row []uint16, domain map[uint16]T) int {
	count, n := map[T]int{}, 0
	for _, d := range row {
		count[domain[d]]++
		n = max(n, count[domain[d]])
	}
	return n
}

// domainsOf are the node and the zone of each drive.
func domainsOf(g Goal) (node map[uint16][16]byte, zone map[uint16]string) {
	node, zone = map[uint16][16]byte{}, map[uint16]string{}
	for _, d := range g.Drives {
		node[d.Num], zone[d.Num] = d.Node, d.Zone
	}
	return node, zone
}

// checkPlan holds a plan against what it promises, naively, and returns the layout that it ends in.
func checkPlan(t *testing.T, seed uint64, l *Layout, g Goal, p *Plan) *Layout {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("seed %d: %s\n%s", seed, fmt.Sprintf(format, args...), p.Reasons)
	}
	k, m, n := int(l.Profile().Data), int(l.Profile().Parity), l.N()
	node, zone := domainsOf(g)
	table := naive(l)
	places, ins, outs := map[uint16]int{}, map[uint16]uint64{}, map[uint16]uint64{}
	total := uint64(0)
	size := func(partition uint32) uint64 {
		if g.Bytes != nil {
			return g.Bytes[partition]
		}
		return g.Average
	}
	// Move by move, as a store makes them.
	step := &Layout{bits: l.bits, profile: l.profile, drives: p.Drives, table: slices.Clone(l.table), epochs: l.epochs, spreads: slices.Clone(l.spreads)}
	perPart := map[uint32][]Move{}
	for _, mv := range p.Moves {
		row := &table[mv.Partition]
		if row.members[mv.Position] != mv.From || slices.Contains(row.members, mv.To) || slices.Contains(l.Group(mv.Partition).Drives, mv.To) {
			fail("%+v does not fit %v, before %v", mv, row.members, l.Group(mv.Partition).Drives)
		}
		row.spread = step.SpreadAfter(mv)
		step.members(mv.Partition)[mv.Position], step.spreads[mv.Partition] = mv.To, uint8(row.spread)
		row.members[mv.Position] = mv.To
		row.epoch++
		perPart[mv.Partition] = append(perPart[mv.Partition], mv)
		ins[mv.To] += size(mv.Partition)
		outs[mv.From] += size(mv.Partition)
		total += size(mv.Partition)
	}
	if total != p.Bytes {
		fail("%d bytes move, and it says %d", total, p.Bytes)
	}
	next, err := p.Apply(l)
	if err != nil {
		fail("%v", err)
	}
	if got := naive(next); !reflect.DeepEqual(got, table) {
		fail("Apply differs from the moves")
	}
	wantNode, wantZone := naiveCaps(g.Drives, n, m)
	if p.NodeCap != wantNode || p.ZoneCap != wantZone {
		fail("caps %d and %d, want %d and %d", p.NodeCap, p.ZoneCap, wantNode, wantZone)
	}
	for part, row := range table {
		if mostIn(row.members, node) > wantNode || mostIn(row.members, zone) > wantZone {
			fail("partition %d is above the caps of %d and %d: %v", part, wantNode, wantZone, row.members)
		}
		for _, d := range row.members {
			places[d]++
		}
		if before, after := p.Spread(uint32(part)); before != l.Group(uint32(part)).Spread || after != row.spread {
			fail("partition %d: f %d and %d, want %d and %d", part, before, after, l.Group(uint32(part)).Spread, row.spread)
		}
	}
	for _, c := range p.Changes {
		if c.After != places[c.Drive] || c.BytesIn != ins[c.Drive] || c.BytesOut != outs[c.Drive] || c.Before-c.Out+c.In != c.After {
			fail("drive %d: %+v, and it has %d places, gets %d bytes, gives %d", c.Drive, c, places[c.Drive], ins[c.Drive], outs[c.Drive])
		}
	}
	usable := ^uint64(0)
	for _, d := range g.Drives {
		if d.Leaving && places[d.Num] > 0 {
			fail("drive %d leaves, and has %d places", d.Num, places[d.Num])
		}
		if places[d.Num] > 0 {
			usable = min(usable, d.Capacity/uint64(places[d.Num]))
		}
	}
	limit := usableBound(g.Drives, int(l.Partitions()), n, wantNode, wantZone)
	if float64(usable) < 0.95*float64(limit) {
		fail("%d bytes a member can be used, of %d that the greatest flow allows", usable, limit)
	}
	if len(p.Moves) < p.Least {
		fail("%d moves, and it says that %d are the least", len(p.Moves), p.Least)
	}
	for part, moves := range perPart {
		checkOrder(t, seed, l.Group(part).Drives, moves, node, m)
	}
	checkExposure(t, seed, p.Before, naive(l), l, node, zone, k)
	checkExposure(t, seed, p.After, table, l, node, zone, k)
	return next
}

// checkOrder fails if the spread rises on the way though another order avoids it.
func checkOrder(t *testing.T, seed uint64, before []uint16, moves []Move, node map[uint16][16]byte, m int) {
	t.Helper()
	smooth := func(moves []Move) bool {
		row := slices.Clone(before)
		f := mostIn(row, node)
		for _, mv := range moves {
			row[mv.Position] = mv.To
			g := mostIn(row, node)
			if g > f {
				return false
			}
			f = g
		}
		return true
	}
	if smooth(moves) || len(moves) > 6 {
		return
	}
	var try func(done, left []Move) []Move
	try = func(done, left []Move) []Move {
		if len(left) == 0 && smooth(done) {
			return done
		}
		for i := range left {
			if got := try(append(slices.Clone(done), left[i]), slices.Delete(slices.Clone(left), i, i+1)); got != nil {
				return got
			}
		}
		return nil
	}
	if better := try(nil, moves); better != nil {
		t.Fatalf("seed %d: the spread of %v rises by %v, and not by %v", seed, before, moves, better)
	}
}

// checkExposure compares with a count of each domain by itself.
func checkExposure(t *testing.T, seed uint64, e Exposure, table []naiveRow, l *Layout, node map[uint16][16]byte, zone map[uint16]string, k int) {
	t.Helper()
	n := l.N()
	for _, x := range e.Domains {
		most, noWrites, unreadable := 0, 0, 0
		for _, row := range table {
			lost := 0
			for _, d := range row.members {
				if x.IsZone && zone[d] == x.Zone || !x.IsZone && node[d] == x.Node {
					lost++
				}
			}
			most = max(most, lost)
			q := RecordQuorum(l.Profile(), row.spread)
			if lost > 0 && n-lost < q.W {
				noWrites++
			}
			if lost > 0 && (n-lost < q.R || n-lost < k) {
				unreadable++
			}
		}
		if most != x.Most || noWrites != x.NoWrites || unreadable != x.Unreadable {
			t.Fatalf("seed %d: %+v, want most %d, no writes %d, unreadable %d", seed, x, most, noWrites, unreadable)
		}
	}
	if wantNodes := naiveSurvives(table, node, n-k); e.Nodes != wantNodes {
		t.Fatalf("seed %d: any %d nodes may be lost, want %d", seed, e.Nodes, wantNodes)
	}
	if wantZones := naiveSurvives(table, zone, n-k); e.Zones != wantZones {
		t.Fatalf("seed %d: any %d zones may be lost, want %d", seed, e.Zones, wantZones)
	}
}

// naiveSurvives loses the domains with most members of one partition, one after another.
func naiveSurvives[T comparable](table []naiveRow, domain map[uint16]T, m int) int {
	least := 1 << 30
	for _, row := range table {
		left, lost, n := slices.Clone(row.members), 0, 0
		for len(left) > 0 {
			count := map[T]int{}
			var worst T
			for _, d := range left {
				if count[domain[d]]++; count[domain[d]] > count[worst] {
					worst = domain[d]
				}
			}
			if lost += count[worst]; lost > m {
				break
			}
			n++
			left = slices.DeleteFunc(left, func(d uint16) bool { return domain[d] == worst })
		}
		least = min(least, n)
	}
	return least
}

// Any cluster, changed in any way, again and again: each plan keeps what it promises.
func TestPlansOfRandomClusters(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	made, least := 0, 0
	for range 40 {
		n := 1 + rnd.IntN(7)
		m := rnd.IntN(n)
		nodes, zones := 1+rnd.IntN(7), 1+rnd.IntN(3)
		l := mustLayout(t, randomHosts(rnd, 1, n+rnd.IntN(12), nodes, zones), n-m, m, uint8(2+rnd.IntN(6)))
		fresh := 100
		for range 4 {
			g := goalOf(l)
			if rnd.IntN(2) == 0 {
				g.Bytes = make([]uint64, l.Partitions())
				for i := range g.Bytes {
					g.Bytes[i] = rnd.Uint64N(1 << 30)
				}
			}
			stay := len(g.Drives)
			switch rnd.IntN(5) {
			case 0: // a drive goes
				g.Drives[rnd.IntN(len(g.Drives))].Leaving = true
				stay--
			case 1: // a drive is replaced
				old := &g.Drives[rnd.IntN(len(g.Drives))]
				old.Leaving = true
				fresh++
				next := old.Drive
				next.Num, next.ID = uint16(fresh), host(fresh, 0, "", 0).ID
				g.add(next)
			case 2: // a node comes
				nodes++
				for range 1 + rnd.IntN(4) {
					fresh++
					g.add(host(fresh, nodes, fmt.Sprint("zone ", nodes%zones), (1+rnd.Uint64N(4))<<40))
				}
			case 3: // a node goes
				gone := g.Drives[rnd.IntN(len(g.Drives))].Node
				g.leave(func(d *Drive) bool { return d.Node == gone })
				stay = len(slices.DeleteFunc(slices.Clone(g.Drives), func(d GoalDrive) bool { return d.Leaving }))
			case 4: // a size was wrong
				g.Drives[rnd.IntN(len(g.Drives))].Capacity = (1 + rnd.Uint64N(6)) << 40
			}
			p, err := NewPlan(l, g)
			if stay < n {
				if !errs.Is(err, errs.Invalid) {
					t.Fatalf("seed %d: %d drives for %d members: %v", seed, stay, n, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			made, least = made+len(p.Moves), least+p.Least
			if float64(len(p.Moves)) > 1.25*float64(p.Least)+8 {
				t.Fatalf("seed %d: %d moves, and %d are the least", seed, len(p.Moves), p.Least)
			}
			shuffled := g
			shuffled.Drives = slices.Clone(g.Drives)
			rnd.Shuffle(len(shuffled.Drives), func(i, j int) {
				shuffled.Drives[i], shuffled.Drives[j] = shuffled.Drives[j], shuffled.Drives[i]
			})
			if again := mustPlan(t, l, shuffled); !reflect.DeepEqual(again, p) {
				t.Fatalf("seed %d: the same goal in another order gave another plan", seed)
			}
			l = checkPlan(t, seed, l, g, p)
			if idle := mustPlan(t, l, goalOf(l)); len(idle.Moves) != 0 {
				t.Fatalf("seed %d: right after a plan, another moves %d members: %v", seed, len(idle.Moves), p.Reasons)
			}
		}
	}
	t.Logf("%d moves, %d are the least: %.3f", made, least, float64(made)/float64(max(least, 1)))
	if float64(made) > 1.05*float64(least) {
		t.Errorf("seed %d: all together %d moves, and %d are the least", seed, made, least)
	}
}

func TestAPlanOfAnotherLayoutIsStale(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(6)...), 2, 2, 4)
	g := goalOf(l)
	g.add(host(7, 0, "", 1<<40))
	p := mustPlan(t, l, g)
	if err := p.Fits(l); err != nil || len(p.Moves) == 0 {
		t.Fatalf("its own layout: %v, %d moves", err, len(p.Moves))
	}
	next, err := p.Apply(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Fits(next); !errs.Is(err, errs.Stale) {
		t.Errorf("the next layout: %v, want Stale", err)
	}
	if _, err := p.Apply(next); !errs.Is(err, errs.Stale) {
		t.Errorf("applied twice: %v, want Stale", err)
	}
}
