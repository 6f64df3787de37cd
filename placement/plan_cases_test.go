package placement

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
)

// The table of docs/decisions/0013.
func TestTheDefaultProfileOutlivesANode(t *testing.T) {
	for _, c := range []struct {
		nodes, each, zones int
		profile            string
		f, w, r, z         int
	}{
		{1, 12, 1, "8+4", 1, 9, 7, 6},
		{2, 1, 1, "1+1", 1, 2, 1, 2},
		{2, 4, 1, "4+4", 4, 5, 4, 5},
		{3, 1, 1, "2+1", 1, 2, 2, 2},
		{3, 2, 1, "3+3", 2, 4, 3, 4},
		{3, 4, 1, "7+5", 4, 8, 7, 6},
		{3, 4, 3, "7+5", 4, 8, 7, 6},
		{4, 1, 1, "2+2", 1, 3, 2, 3},
		{4, 4, 1, "8+4", 3, 9, 7, 6},
		{5, 2, 1, "7+3", 2, 8, 6, 5},
		{6, 2, 3, "8+4", 2, 9, 7, 6},
		{12, 4, 3, "8+4", 1, 9, 7, 6},
	} {
		t.Run(fmt.Sprintf("%d nodes of %d drives in %d zones", c.nodes, c.each, c.zones), func(t *testing.T) {
			drives := hosts(c.nodes, c.each, c.zones)
			p, err := DefaultProfileOf(drives)
			if err != nil || p.String() != c.profile {
				t.Fatalf("got %v %v, want %s", p, err, c.profile)
			}
			l, err := NewLayout(drives, p, 6)
			if err != nil {
				t.Fatal(err)
			}
			for part := range l.Partitions() {
				g := l.Group(part)
				if want := (Quorum{p.N(), c.w, c.r, c.z}); g.Spread != c.f && c.nodes <= 4 || g.Quorum != want {
					t.Fatalf("partition %d: f = %d, %+v, want %d, %+v", part, g.Spread, g.Quorum, c.f, want)
				}
			}
			e := mustPlan(t, l, goalOf(l)).After
			for _, x := range e.Domains {
				if c.nodes > 1 && !x.IsZone && (x.Unreadable > 0 || c.nodes > 2 && x.NoWrites > 0) {
					t.Errorf("the loss of a node: %+v", x)
				}
			}
		})
	}
	if _, err := DefaultProfileOf(nil); !errs.Is(err, errs.Invalid) {
		t.Errorf("no drives: %v, want Invalid", err)
	}
}

// A first layout over several nodes is what a plan would not change.
func TestAFirstLayoutKeepsTheCapsAndIsBalanced(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	for range 40 {
		n := 1 + rnd.IntN(12)
		m := rnd.IntN(n)
		l := mustLayout(t, randomHosts(rnd, 1, n+rnd.IntN(20), 1+rnd.IntN(8), 1+rnd.IntN(4)), n-m, m, uint8(rnd.IntN(8)))
		p := mustPlan(t, l, goalOf(l))
		if len(p.Moves) > 0 {
			t.Fatalf("seed %d: a plan right after moves %d members: %v", seed, len(p.Moves), p.Reasons)
		}
		checkPlan(t, seed, l, goalOf(l), p)
		for d, positions := range counts(t, l) {
			if slices.Max(positions)-slices.Min(positions) > 1 {
				t.Fatalf("seed %d: drive %d stands %v times in the positions", seed, d, positions)
			}
		}
		if sameNode(l.Drives()) {
			continue
		}
		node, _ := domainsOf(goalOf(l))
		for part := range l.Partitions() {
			if g := l.Group(part); g.Spread != mostIn(g.Drives, node) || g.Spread != l.HostSpread(part) {
				t.Fatalf("seed %d: f of %v is %d", seed, g.Drives, g.Spread)
			}
		}
	}
}

func TestMembersAreAsFarApartAsNodesAllow(t *testing.T) {
	for _, c := range []struct{ nodes, zones, f, zone int }{{3, 3, 4, 4}, {4, 2, 3, 6}, {6, 3, 2, 4}, {12, 3, 1, 4}, {24, 6, 1, 2}} {
		l := mustLayout(t, hosts(c.nodes, 5, c.zones), 8, 4, 8)
		node, zone := domainsOf(goalOf(l))
		for part := range l.Partitions() {
			row := l.Group(part).Drives
			if f, z := mostIn(row, node), mostIn(row, zone); f != c.f || z != c.zone {
				t.Fatalf("%d nodes in %d zones: %d on a node, %d in a zone, want %d and %d", c.nodes, c.zones, f, z, c.f, c.zone)
			}
		}
	}
}

// What must move at least: an added drive's share, a drained drive's places, a replaced drive's places.
func TestNoMoreMovesThanMust(t *testing.T) {
	places := func(l *Layout, leaves func(d *Drive) bool) (n int) {
		for _, d := range l.Drives() {
			if leaves(&d) {
				n += len(l.PartitionsOf(d.Num))
			}
		}
		return n
	}
	for _, c := range []struct {
		name   string
		change func(l *Layout, g *Goal) (least int)
	}{
		{"a drive is added", func(l *Layout, g *Goal) int {
			g.add(host(900, 1, "a", 1<<40))
			return l.N() * int(l.Partitions()) / len(g.Drives)
		}},
		{"a large drive is added", func(l *Layout, g *Goal) int {
			g.add(host(900, 1, "a", 2<<40))
			return 2 * l.N() * int(l.Partitions()) / (len(l.Drives()) + 2)
		}},
		{"a drive as large as can be used is added", func(l *Layout, g *Goal) int {
			g.add(host(900, 1, "a", 9<<40))
			return int(l.Partitions())
		}},
		{"a drive is drained", func(l *Layout, g *Goal) int {
			g.leave(func(d *Drive) bool { return d.Num == 7 })
			return places(l, func(d *Drive) bool { return d.Num == 7 })
		}},
		{"a node is drained", func(l *Layout, g *Goal) int {
			g.leave(func(d *Drive) bool { return d.Node[3] == 2 })
			return places(l, func(d *Drive) bool { return d.Node[3] == 2 })
		}},
		{"a drive is replaced", func(l *Layout, g *Goal) int {
			g.leave(func(d *Drive) bool { return d.Num == 7 })
			next, _ := l.Drive(7)
			next.Num, next.ID = 900, [16]byte{9}
			g.add(next)
			return places(l, func(d *Drive) bool { return d.Num == 7 })
		}},
		{"nothing", func(*Layout, *Goal) int { return 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := mustLayout(t, hosts(8, 5, 4), 8, 4, 10)
			g := goalOf(l)
			least := c.change(l, &g)
			p := mustPlan(t, l, g)
			checkPlan(t, 0, l, g, p)
			if len(p.Moves) > least+1 || p.Bytes != uint64(len(p.Moves))*g.Average {
				t.Errorf("%d moves of %d bytes, want %d: %v", len(p.Moves), p.Bytes, least, p.Reasons)
			}
			if len(p.Reasons) > 0 && p.Limit == p.Capacity {
				t.Errorf("not ideal: %v", p.Reasons)
			}
			// Who comes stands in each position about equally often.
			next, err := p.Apply(l)
			if err != nil {
				t.Fatal(err)
			}
			at := make([]int, l.N())
			for part := range next.Partitions() {
				if i := next.Group(part).Position(900); i >= 0 {
					at[i]++
				}
			}
			sum := 0
			for _, times := range at {
				sum += times
			}
			for _, times := range at {
				if off := float64(times) - float64(sum)/12; math.Abs(off) > 1+float64(sum)/120 {
					t.Errorf("the newcomer stands %v times in the positions, want %.1f", at, float64(sum)/12)
				}
			}
		})
	}
}

func TestAStoreGrowsFromOneNodeToMany(t *testing.T) {
	l := mustLayout(t, hosts(1, 12, 1), 8, 4, 8)
	was := l
	for nodes := 2; nodes <= 14; nodes++ {
		g := goalOf(l)
		for i := range 12 {
			g.add(host(100*nodes+i, nodes, string(rune('a'+nodes%3)), 1<<40))
		}
		p := mustPlan(t, l, g)
		l = checkPlan(t, 0, l, g, p)
		// Each new drive gets its share, or more where the caps move members to it.
		if float64(len(p.Moves)) > 1.02*float64(p.Least) {
			t.Errorf("%d nodes: %d moves, %d are the least", nodes, len(p.Moves), p.Least)
		}
		for part := range l.Partitions() {
			want := p.NodeCap
			if nodes == 2 {
				want = 1 // 6 on a node stop with it: the quorum stays what it was on one node
			}
			if f := l.Group(part).Spread; f > want {
				t.Fatalf("%d nodes: f = %d, want at most %d", nodes, f, want)
			}
		}
		switch lost := p.After.Nodes; {
		case nodes == 2 && (lost != 0 || len(p.Reasons) == 0):
			t.Errorf("two nodes: %d may be lost, %v", lost, p.Reasons)
		case nodes >= 3 && lost < 1:
			t.Errorf("%d nodes: %d may be lost, %v", nodes, lost, p.Reasons)
		}
	}
	if l.Number() != was.Number()+13 {
		t.Errorf("number %d after 13 plans from %d", l.Number(), was.Number())
	}
}

func TestAPlanSaysWhatIsNotIdeal(t *testing.T) {
	for _, c := range []struct {
		name string
		l    *Layout
		add  []Drive
		want string
	}{
		{"one node", mustLayout(t, hosts(1, 6, 1), 4, 2, 4), nil, "all drives are on one node"},
		{"no parity", mustLayout(t, hosts(3, 2, 1), 4, 0, 4), nil, "has no parity"},
		{"two nodes", mustLayout(t, hosts(2, 3, 1), 4, 2, 4), nil, "2 nodes are too few"},
		{"two zones", mustLayout(t, hosts(6, 3, 2), 4, 2, 4), nil, "2 zones are too few"},
		{"a drive too large", mustLayout(t, hosts(6, 1, 1), 4, 2, 4), []Drive{host(9, 9, "a", 90<<40)}, "1 drives are larger than one member of every partition"},
		{"a node too large", mustLayout(t, hosts(5, 1, 1), 2, 1, 4), []Drive{host(9, 9, "a", 5<<40), host(10, 9, "a", 5<<40)}, "1 of 6 nodes are full with 1 members"},
		{"a size that is not known", mustLayout(t, hosts(6, 1, 1), 4, 2, 4), []Drive{host(9, 9, "a", 0)}, "the capacity of drives 9 is not known"},
		{"few partitions", mustLayout(t, hosts(7, 1, 1), 4, 2, 1), nil, "with 2 partitions a drive cannot have exactly its share"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := goalOf(c.l)
			g.add(c.add...)
			if p := mustPlan(t, c.l, g); !strings.Contains(strings.Join(p.Reasons, "\n"), c.want) {
				t.Errorf("got %q, want %q", p.Reasons, c.want)
			}
		})
	}
	l := mustLayout(t, hosts(6, 3, 6), 4, 2, 8)
	if p := mustPlan(t, l, goalOf(l)); p.Reasons != nil || p.After.Nodes != 2 || p.After.Zones != 2 || p.After.Drives != 2 {
		t.Errorf("an ideal layout: %q, %+v", p.Reasons, p.After)
	}
}

func TestGoalsThatDoNotFitAreRefused(t *testing.T) {
	l := mustLayout(t, hosts(2, 2, 1), 2, 1, 3)
	for name, change := range map[string]func(g *Goal){
		"a drive is not spoken of":           func(g *Goal) { g.Drives = g.Drives[1:] },
		"a drive twice":                      func(g *Goal) { g.Drives = append(g.Drives, g.Drives[0]) },
		"number 0":                           func(g *Goal) { g.add(host(0, 7, "a", 1<<40)) },
		"another id":                         func(g *Goal) { g.Drives[0].ID[9]++ },
		"too few drives stay":                func(g *Goal) { g.Drives[0].Leaving, g.Drives[1].Leaving = true, true },
		"who is not there leaves":            func(g *Goal) { g.Drives = append(g.Drives, GoalDrive{host(9, 1, "", 1), true}) },
		"sizes of other partitions":          func(g *Goal) { g.Bytes = make([]uint64, 7) },
		"more drives than a layout can have": func(g *Goal) { g.add(cluster(1, equal(MaxDrives)...)...) },
	} {
		g := goalOf(l)
		change(&g)
		if p, err := NewPlan(l, g); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: got %v %v, want Invalid", name, p, err)
		}
	}
}

// What PROTOCOL demands of a change of membership, for each pair of profiles and spreads, the next as wide or wider:
// checked against sets.
func TestAHandoverLosesNothingWhateverBothQuorums(t *testing.T) {
	type pair struct{ a, b int }
	met := map[int]map[pair]bool{} // by number of members
	meet := func(n, a, b int) bool {
		if met[n] == nil {
			met[n] = map[pair]bool{}
		}
		ok, known := met[n][pair{a, b}]
		if !known {
			ok = alwaysIntersect(n, a, b)
			met[n][pair{a, b}] = ok
		}
		return ok
	}
	each := func(most int, call func(k, m, f int)) {
		for n := 1; n <= most; n++ {
			for k := 1; k <= n; k++ {
				for f := 1; f <= n; f++ {
					call(k, n-k, f)
				}
			}
		}
	}
	each(7, func(k, m, f int) {
		each(8, func(x, y, g int) {
			if x+y < k+m {
				return
			}
			h := NewHandover(RecordQuorum(profile(k, m), f), RecordQuorum(profile(x, y), g))
			for what, set := range map[string][3]int{
				"who tells and a write of the old epoch":       {k + m, h.Learn, h.Old.W},
				"the wedged and a write of the old epoch":      {k + m, h.Wedge, h.Old.W},
				"the wedged and a read of the old epoch":       {k + m, h.Wedge, h.Old.R},
				"the installed and a write of the new epoch":   {x + y, h.Install, h.New.W},
				"the installed and a read of the new epoch":    {x + y, h.Install, h.New.R},
				"the installed and who tells of the new epoch": {x + y, h.Install, h.New.N - h.New.W + 1},
			} {
				if !meet(set[0], set[1], set[2]) {
					t.Errorf("%d+%d, f %d, then %d+%d, f %d: %s may be disjoint: %+v", k, m, f, x, y, g, what, h)
				}
			}
			if h.Wedge < h.Learn || h.Wedge > h.Old.N || h.Install > h.New.N {
				t.Errorf("%d+%d, f %d, then %d+%d, f %d: %+v", k, m, f, x, y, g, h)
			}
		})
	})
}

func TestTheSpreadOfAMove(t *testing.T) {
	// Six members on two nodes, three each: above m = 2, so the quorum is whatever the layout says.
	l := mustLayout(t, hosts(2, 3, 1), 4, 2, 0)
	if f := l.HostSpread(0); f != 3 || l.Group(0).Spread != 3 {
		t.Fatalf("f = %d, %d in the layout, want 3", f, l.Group(0).Spread)
	}
	row := l.Group(0).Drives
	var err error
	if l, err = l.WithDrive(host(50, 3, "a", 1<<40)); err != nil {
		t.Fatal(err)
	}
	if l, err = l.WithDrive(host(51, 3, "a", 1<<40)); err != nil {
		t.Fatal(err)
	}
	one, two := slices.Index(row, 1), slices.Index(row, 4)
	if f := l.SpreadAfter(Move{0, one, 1, 50}); f != 3 {
		t.Errorf("three are still on a node: f = %d, want 3", f)
	}
	if l, err = l.Swap(1, 50, []uint32{0}); err != nil {
		t.Fatal(err)
	}
	if f := l.SpreadAfter(Move{0, two, 4, 51}); f != 2 {
		t.Errorf("two on each of three nodes: f = %d, want 2", f)
	}
	// On one node the domain is the drive.
	single := mustLayout(t, hosts(1, 7, 1), 4, 2, 0)
	if f := single.SpreadAfter(Move{0, 0, single.Group(0).Drives[0], 7}); f != 1 || single.HostSpread(0) != 1 {
		t.Errorf("one node: f = %d, want 1", f)
	}
}

// Plans are made while the shards of earlier moves are still on their way, and leave those positions alone.
func TestAPositionThatWaitsForItsShardsStays(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 6))
	waited := 0
	for range 30 {
		n := 2 + rnd.IntN(5)
		m := rnd.IntN(n)
		l := mustLayout(t, randomHosts(rnd, 1, n+2+rnd.IntN(8), 2+rnd.IntN(5), 2), n-m, m, 5)
		for fresh := 200; fresh < 203; fresh++ {
			g := goalOf(l)
			g.Drives[rnd.IntN(len(g.Drives))].Leaving = true
			g.add(host(fresh, 9+fresh%2, "zone 1", 2<<40))
			p := mustPlan(t, l, g)
			// The newcomers join, and some of the moves are made, whose shards stay behind.
			next := *l
			next.drives = p.Drives
			l = &next
			begun := map[uint32]bool{}
			for _, mv := range p.Moves {
				was := l.Group(mv.Partition)
				if _, waits := was.FormerAt(mv.Position); waits {
					t.Fatalf("seed %d: %+v of a position that waits", seed, mv)
				}
				if slices.Contains(was.Former, mv.To) {
					t.Fatalf("seed %d: %+v to a former member", seed, mv)
				}
				if rnd.IntN(3) == 0 && !begun[mv.Partition] {
					begun[mv.Partition] = true
					var err error
					if l, err = l.Move([]Move{mv}, []int{l.SpreadAfter(mv)}); err != nil {
						t.Fatalf("seed %d: %+v: %v", seed, mv, err)
					}
				}
			}
			if n := len(l.Moving()); n > 0 {
				waited += n
				last := mustPlan(t, l, goalOf(l))
				if !strings.Contains(strings.Join(last.Reasons, "\n"), "wait for the shards") {
					t.Fatalf("seed %d: %d positions wait: %q", seed, n, last.Reasons)
				}
			}
			if rnd.IntN(2) == 0 {
				l = l.Moved(l.Moving())
			}
		}
	}
	if waited == 0 {
		t.Errorf("seed %d: nothing waited", seed)
	}
}
