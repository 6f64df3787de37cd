package placement

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
)

// covers is the definition, said plainly.
func covers(l *Layout, drives []uint16) bool {
	for p := range l.Partitions() {
		have := 0
		for _, d := range l.Group(p).Drives {
			if slices.Contains(drives, d) {
				have++
			}
		}
		if have < l.Group(p).Quorum.R {
			return false
		}
	}
	return true
}

func TestAnyRDrivesCoverWhereEveryDriveIsInEveryPartition(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(12)...), 8, 4, 8)
	asked := map[uint16]int{}
	for salt := range uint64(12) {
		c, err := l.Cover(salt)
		if err != nil || len(c.Drives()) != 7 || !covers(l, c.Drives()) {
			t.Fatalf("salt %d: %v %v, want 7 drives", salt, c.Drives(), err)
		}
		for _, d := range c.Drives() {
			asked[d]++
		}
	}
	for d := uint16(1); d <= 12; d++ {
		if asked[d] != 7 {
			t.Errorf("drive %d was asked %d times of 12, want 7: %v", d, asked[d], asked)
		}
	}
}

func TestACoverIsExtendedWhenDrivesFailUntilItIsImpossible(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(6)...), 4, 2, 6) // R = 4: two may fail
	c, err := l.Cover(0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		dead := c.Drives()[1]
		next, added, err := c.Extend(0, dead)
		if err != nil || len(added) != 1 || !covers(l, next.Drives()) || slices.Contains(next.Drives(), dead) {
			t.Fatalf("without %d: %v, added %v, %v", dead, next.Drives(), added, err)
		}
		if !slices.Contains(c.Drives(), dead) {
			t.Fatal("the cover itself was changed")
		}
		c = next
	}
	if _, _, err := c.Extend(0, c.Drives()[0]); !errs.Is(err, errs.Unavailable) {
		t.Errorf("three of six failed: %v, want Unavailable", err)
	}
	if _, err := l.Cover(3, 1, 2, 3); !errs.Is(err, errs.Unavailable) {
		t.Errorf("three of six failed from the start: %v, want Unavailable", err)
	}
}

func TestCoversOfRandomLayouts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 40 {
		n := 1 + rnd.IntN(6)
		k := 1 + rnd.IntN(n)
		capacities := make([]uint64, n+rnd.IntN(12))
		for i := range capacities {
			capacities[i] = 1 + rnd.Uint64N(8)<<40
		}
		l := mustLayout(t, cluster(1+rnd.IntN(4), capacities...), k, n-k, 6)
		var failed []uint16
		c, err := l.Cover(rnd.Uint64())
		for err == nil {
			if !covers(l, c.Drives()) || !c.Satisfied(func(d uint16) bool { return slices.Contains(c.Drives(), d) }) {
				t.Fatalf("seed %d: %v does not cover", seed, c.Drives())
			}
			// No drive of it is superfluous to a cover that lacks it by definition alone: at least
			// the whole set of drives must satisfy, and the empty set must not.
			if c.Satisfied(func(uint16) bool { return false }) {
				t.Fatalf("seed %d: nothing satisfies the cover", seed)
			}
			d := c.Drives()[rnd.IntN(len(c.Drives()))]
			failed = append(failed, d)
			c, _, err = c.Extend(rnd.Uint64(), d)
		}
		var left []uint16
		for _, d := range l.Drives() {
			if !slices.Contains(failed, d.Num) {
				left = append(left, d.Num)
			}
		}
		if !errs.Is(err, errs.Unavailable) || covers(l, left) {
			t.Fatalf("seed %d: gave up with %v, though %v cover: %v", seed, failed, left, covers(l, left))
		}
	}
}

func BenchmarkCover(b *testing.B) {
	l := mustLayout(b, cluster(1, equal(100)...), 8, 4, DefaultBits)
	for b.Loop() {
		if _, err := l.Cover(0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewLayout(b *testing.B) {
	for b.Loop() {
		mustLayout(b, cluster(20, equal(100)...), 8, 4, DefaultBits)
	}
}
