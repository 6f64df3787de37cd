package placement

import (
	"encoding/binary"
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

// goalOf is the layout's own drives, as they are.
func goalOf(l *Layout) Goal {
	g := Goal{Average: 1 << 30}
	for _, d := range l.Drives() {
		g.Drives = append(g.Drives, GoalDrive{Drive: d})
	}
	return g
}

func (g *Goal) leave(nums ...uint16) {
	for i := range g.Drives {
		if slices.Contains(nums, g.Drives[i].Num) {
			g.Drives[i].Leaving = true
		}
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
