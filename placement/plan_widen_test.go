package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// A plan for a wider profile: every partition becomes as wide, within the caps and by size, members stay where they are as
// far as the caps allow, and a plan right after it moves nothing.
func TestPlansMakePartitionsWider(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	for try := range 60 {
		k, m := 1+rnd.IntN(3), rnd.IntN(3)
		l := mustLayout(t, randomHosts(rnd, 1, k+m+rnd.IntN(3), 1+rnd.IntN(2), 1), k, m, uint8(4+rnd.IntN(4)))
		g := goalOf(l)
		others := randomHosts(rnd, 500, 6+rnd.IntN(14), 2+rnd.IntN(5), 1+rnd.IntN(3))
		for i := range others {
			others[i].Node[0] = 1 // machines of their own
		}
		g.add(others...)
		wide := profile(k+rnd.IntN(3), m+rnd.IntN(2))
		if wide.N() <= l.N() {
			wide = profile(k+1, m+1)
		}
		if g.Profile = wide; wide.N() > len(g.Drives) {
			continue
		}
		name := fmt.Sprintf("seed %d, try %d, %d+%d to %s over %d drives", seed, try, k, m, wide, len(g.Drives))
		p := mustPlan(t, l, g)
		if p.Layout != l.Number() || p.Profiles != (Profiles{wide, ReducedProfile(wide)}) || p.Widened != int(l.Partitions()) || len(p.Moves) < p.Least {
			t.Fatalf("%s: layout %d, %+v, %d widened, %d moves of %d", name, p.Layout, p.Profiles, p.Widened, len(p.Moves), p.Least)
		}
		next, err := p.Apply(l)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		node, zone := domainsOf(g)
		wantNode, wantZone := naiveCaps(g.Drives, wide.N(), int(wide.Parity))
		given := map[uint32]int{}
		joined := map[uint32]bool{}
		for i, mv := range p.Moves {
			if !mv.Joins() {
				given[mv.Partition]++
				continue
			}
			if given[mv.Partition] > 0 || joined[mv.Partition] && p.Moves[i-1].Partition != mv.Partition {
				t.Fatalf("%s: the drives that join partition %d do not do so first, and together", name, mv.Partition)
			}
			joined[mv.Partition] = true
		}
		places, usable := map[uint16]int{}, ^uint64(0)
		for part := range next.Partitions() {
			was, is := l.Group(part), next.Group(part)
			if len(is.Drives) != wide.N() || is.Quorum != RecordQuorum(wide, is.Spread) || len(slices.Compact(slices.Sorted(slices.Values(is.Drives)))) != wide.N() {
				t.Fatalf("%s: partition %d: %+v", name, part, is)
			}
			if is.Epoch != was.Epoch+1+uint64(given[part]) {
				t.Fatalf("%s: partition %d went from epoch %d to %d by %d moves besides", name, part, was.Epoch, is.Epoch, given[part])
			}
			if mostIn(is.Drives, node) > wantNode || mostIn(is.Drives, zone) > wantZone {
				t.Fatalf("%s: partition %d is above the caps of %d and %d: %v", name, part, wantNode, wantZone, is.Drives)
			}
			stay := 0
			for pos, num := range was.Drives {
				if is.Drives[pos] == num {
					stay++
				} else if is.Position(num) >= 0 {
					t.Fatalf("%s: drive %d of partition %d changed its position", name, num, part)
				}
			}
			if stay+given[part] < len(was.Drives) {
				t.Fatalf("%s: partition %d has %d of its members still, after %d moves", name, part, stay, given[part])
			}
			for _, num := range is.Drives {
				places[num]++
			}
		}
		for _, d := range g.Drives {
			if places[d.Num] > 0 {
				usable = min(usable, d.Capacity/uint64(places[d.Num]))
			}
		}
		if limit := usableBound(g.Drives, int(l.Partitions()), wide.N(), wantNode, wantZone); float64(usable) < 0.95*float64(limit) && l.Partitions() >= 64 {
			t.Errorf("%s: %d bytes a member can be used, of %d that the greatest flow allows: %v", name, usable, limit, p.Reasons)
		}
		if again := mustPlan(t, next, goalOf(next)); len(again.Moves) > 0 || again.Profiles != (Profiles{}) {
			t.Fatalf("%s: a plan right after moves %d members", name, len(again.Moves))
		}
		if p.Before.Drives != m || p.After.Drives != int(wide.Parity) {
			t.Fatalf("%s: %d drives may be lost before, %d after", name, p.Before.Drives, p.After.Drives)
		}
	}
}

func TestAStoreOfOneMachineSpreadsOverThree(t *testing.T) {
	l := mustLayout(t, hosts(1, 1, 1), 1, 0, 8)
	g := goalOf(l)
	g.add(host(2, 2, "b", 1<<40), host(3, 3, "c", 1<<40))
	g.Profile = profile(2, 1)
	p := mustPlan(t, l, g)
	if len(p.Moves) != 512 || p.Least != 512 || p.Bytes != 0 || p.After.Nodes != 1 || p.Before.Nodes != 0 || len(p.Reasons) != 0 {
		t.Errorf("%d moves of at least %d, %d bytes, %d nodes may be lost, before %d: %v", len(p.Moves), p.Least, p.Bytes, p.After.Nodes, p.Before.Nodes, p.Reasons)
	}
}

// What cannot be is refused, and what waits is said, and goes on with another plan.
func TestPlansForAProfileThatCannotBe(t *testing.T) {
	l := mustLayout(t, hosts(4, 1, 1), 2, 2, 4)
	for name, p := range map[string]erasure.Profile{
		"too few drives": profile(3, 2), "narrower": profile(1, 1), "as wide": profile(3, 1), "less parity": profile(5, 1), "out of range": profile(0, 5),
	} {
		g := goalOf(l)
		g.Profile = p
		if _, err := NewPlan(l, g); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	g := goalOf(l)
	if g.Profile = l.Profile(); len(mustPlan(t, l, g).Moves) > 0 {
		t.Error("a plan for the profile that the layout has moves something")
	}
}

func TestAPlanGoesOnWithWhatIsStillNarrow(t *testing.T) {
	l := widened(t, 1, 6)
	g := goalOf(l)
	p := mustPlan(t, l, g)
	joins := map[uint32]int{}
	for _, mv := range p.Moves {
		if mv.Joins() {
			joins[mv.Partition]++
		}
	}
	if p.Profiles != (Profiles{}) || p.Widened != 6 || len(joins) != 6 || joins[1]+joins[6] > 0 {
		t.Fatalf("%+v, %d widened, %v", p.Profiles, p.Widened, joins)
	}
	next, err := p.Apply(l)
	if err != nil || next.Widening() || next.Number() != l.Number()+1 {
		t.Fatalf("%v, %d narrow", err, next.Narrow())
	}
}
