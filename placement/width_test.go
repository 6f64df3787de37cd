package placement

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// joins makes the moves that make a partition as wide as its layout's profile, with the given newcomers.
func joins(l *Layout, partition uint32, newcomers ...uint16) (list []Move) {
	for i, num := range newcomers {
		list = append(list, Move{partition, l.Width(partition) + i, 0, num})
	}
	return list
}

func ones(n int) []int { return slices.Repeat([]int{1}, n) }

// widened is a layout of 1+0 of which some partitions are 2+2.
func widened(t *testing.T, partitions ...uint32) *Layout {
	t.Helper()
	l := mustLayout(t, cluster(1, equal(1)...), 1, 0, 3)
	for i := range 4 {
		var err error
		if l, err = l.WithDrive(host(50+i, 2+i, "a", 1<<40)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := l.WithProfile(profile(2, 2), profile(2, 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range partitions {
		if l, err = l.Move(joins(l, p, 50, 52, 53), ones(3)); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestAPartitionBecomesWiderInOneStep(t *testing.T) {
	l := widened(t)
	if l.N() != 4 || l.FirstWidth() != 1 || l.Narrow() != 8 || !l.Widening() || l.Profile() != profile(2, 2) {
		t.Fatalf("n %d, first %d, %d narrow, profile %s", l.N(), l.FirstWidth(), l.Narrow(), l.Profile())
	}
	number := l.Number()
	next := widened(t, 5)
	for p := range next.Partitions() {
		g, was := next.Group(p), l.Group(p)
		if p != 5 {
			if !slices.Equal(g.Drives, []uint16{1}) || g.Quorum != (Quorum{1, 1, 1, 1}) || g.Profile != profile(1, 0) || next.ProfileOf("", p) != profile(1, 0) {
				t.Errorf("partition %d: %+v", p, g)
			}
			continue
		}
		if !slices.Equal(g.Drives, []uint16{1, 50, 52, 53}) || g.Epoch != was.Epoch+1 || g.Quorum != (Quorum{4, 3, 2, 3}) || g.Former != nil ||
			g.Profile != profile(2, 2) || next.ProfileOf(ClassReduced, p) != profile(2, 1) || next.Width(p) != 4 {
			t.Errorf("partition %d: %+v", p, g)
		}
	}
	if next.Number() != number+1 || next.Narrow() != 7 {
		t.Errorf("layout %d after %d, %d narrow", next.Number(), number, next.Narrow())
	}
	all := widened(t, 0, 1, 2, 3, 4, 5, 6, 7)
	if all.Widening() || all.Narrow() != 0 || all.FirstWidth() != 1 {
		t.Errorf("widening %v, %d narrow, first %d", all.Widening(), all.Narrow(), all.FirstWidth())
	}
	if l.WithoutProfile().Profile() != profile(1, 0) || l.WithoutProfile().Widening() || l.WithoutProfile().N() != 1 {
		t.Errorf("without it: %s", l.WithoutProfile().Profile())
	}
	if _, err := Decode(l.WithoutProfile().Append(nil)); err != nil {
		t.Errorf("without it: %v", err)
	}
	if next.WithoutProfile() != next || all.WithoutProfile() != all {
		t.Error("a profile goes that partitions have")
	}
}

func TestALayoutMayBecomeWiderTwice(t *testing.T) {
	l := widened(t, 2, 3)
	for i := range 3 {
		var err error
		if l, err = l.WithDrive(host(60+i, 12+i, "a", 1<<40)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := l.WithProfile(profile(4, 2), profile(4, 1))
	if err != nil {
		t.Fatal(err)
	}
	if l, err = l.Move(append(joins(l, 2, 60, 61), joins(l, 7, 50, 60, 61, 62, 53)...), ones(7)); err != nil {
		t.Fatal(err)
	}
	want := map[uint32]int{0: 1, 2: 6, 3: 4, 7: 6}
	for p, n := range want {
		if g := l.Group(p); len(g.Drives) != n || g.Quorum.N != n || g.First != 1 {
			t.Errorf("partition %d: %+v, want %d members", p, g, n)
		}
	}
	if !slices.Equal(l.Group(2).Drives, []uint16{1, 50, 52, 53, 60, 61}) {
		t.Errorf("members %v", l.Group(2).Drives)
	}
	got, err := Decode(l.Append(nil))
	if err != nil || !bytes.Equal(got.Append(nil), l.Append(nil)) {
		t.Fatal(err)
	}
	// A body of several chunks fits the narrowest of its partitions.
	seen := map[int]bool{}
	for i := range 200 {
		id := erasure.DataID{byte(i), 7}
		least := 6
		for c := range uint32(3) {
			least = min(least, len(l.Group(l.ChunkPartition(id, c, 2)).Drives))
		}
		prof := l.BodyProfiles(id, 3, 2)
		if prof.Width() != least {
			t.Errorf("%x: profiles of width %d, its partitions have %d members at least", id, prof.Width(), least)
		}
		seen[least] = true
	}
	if len(seen) != 3 {
		t.Errorf("only widths %v were met", seen)
	}
}

func TestAProfileThatIsNotWiderIsRefused(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(6)...), 2, 2, 3)
	for _, p := range []erasure.Profile{profile(1, 1), profile(2, 2), profile(3, 1), profile(4, 1), profile(5, 2), profile(20, 20), {}} {
		if _, err := l.WithProfile(p, p); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want Invalid", p, err)
		}
	}
	if _, err := l.WithProfile(profile(4, 2), profile(5, 2)); !errs.Is(err, errs.Invalid) {
		t.Errorf("a reduced profile that is wider: %v, want Invalid", err)
	}
}

func TestWideningsThatDoNotFitAreRefused(t *testing.T) {
	l := widened(t, 5)
	for name, moves := range map[string][]Move{
		"too few newcomers":           joins(l, 3, 50, 51),
		"a newcomer twice":            joins(l, 3, 50, 51, 50),
		"a member":                    joins(l, 3, 50, 51, 1),
		"a drive that is not there":   joins(l, 3, 50, 51, 99),
		"nobody":                      joins(l, 3, 50, 51, 0),
		"a position twice":            {{3, 1, 0, 50}, {3, 1, 0, 51}, {3, 2, 0, 52}},
		"a position that is there":    {{3, 0, 0, 50}, {3, 1, 0, 51}, {3, 2, 0, 52}},
		"a partition that is wide":    {{5, 3, 0, 51}},
		"a move of a new position":    {{3, 1, 50, 51}},
		"a move and a widening":       append([]Move{{3, 0, 1, 50}}, joins(l, 3, 51, 52, 53)...),
		"a widening and a move of it": append(joins(l, 3, 51, 52, 53), Move{3, 0, 1, 50}),
	} {
		if _, err := l.Move(moves, ones(len(moves))); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if _, err := l.Move(joins(l, 3, 51, 52, 53), []int{1, 1, 2}); !errs.Is(err, errs.Invalid) {
		t.Errorf("two spreads: %v, want Invalid", err)
	}
}

// Where a body lies follows from its reference and the members, whatever became of the width since.
func TestABodyLiesWhereItLayWhenItsPartitionBecomesWider(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	for range 300 {
		m := rnd.IntN(3)
		k := 1 + rnd.IntN(4)
		l := mustLayout(t, cluster(1, equal(k+m+rnd.IntN(4))...), k, m, 2)
		type body struct {
			id    erasure.DataID
			p     erasure.Profile
			width uint8
			at    []uint16
		}
		var bodies []body
		put := func(g Group, l *Layout) {
			for _, class := range []string{"", ClassReduced} {
				b := body{p: l.ProfileOf(class, 1)}
				b.id[0], b.id[1], b.id[2] = byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32())
				if n := len(g.Drives); n != l.FirstWidth() {
					b.width = uint8(n)
				}
				for _, pos := range g.Places(b.p, b.width, b.id) {
					b.at = append(b.at, g.Drives[pos])
				}
				bodies = append(bodies, b)
			}
		}
		put(l.Group(1), l)
		for step := range 2 {
			p := profile(k+1+step, m+1+step)
			var newcomers []uint16
			var err error
			for i := range p.N() - l.N() {
				num := 100 + 10*step + i
				if l, err = l.WithDrive(host(num, num, "a", 1<<40)); err != nil {
					t.Fatal(err)
				}
				newcomers = append(newcomers, uint16(num))
			}
			if l, err = l.WithProfile(p, profile(k+1, m)); err != nil {
				t.Fatal(err)
			}
			if l, err = l.Move(joins(l, 1, newcomers...), ones(len(newcomers))); err != nil {
				t.Fatal(err)
			}
			put(l.Group(1), l)
		}
		g := l.Group(1)
		for _, b := range bodies {
			var at []uint16
			for _, pos := range g.Places(b.p, b.width, b.id) {
				at = append(at, g.Drives[pos])
			}
			if !slices.Equal(at, b.at) || len(at) != b.p.N() {
				t.Fatalf("seed %d: a body of %s, width %d, lies on %v, and lay on %v", seed, b.p, b.width, at, b.at)
			}
		}
		if g.Places(profile(1, 0), uint8(len(g.Drives)+1), erasure.DataID{}) != nil {
			t.Fatal("a body that is wider than its partition has places")
		}
	}
}

// The encoding is kept by every drive: an old one opens, and a layout that was never widened has no trace of it.
func TestEncodedWidthsAreGolden(t *testing.T) {
	narrow := mustLayout(t, cluster(1, equal(4)...), 2, 1, 4)
	var never Layout = *narrow
	never.earlier = nil
	if !bytes.Equal(never.Append(nil), narrow.Append(nil)) || bytes.Contains(narrow.Append(nil), []byte{11<<3 | 2, 4}) {
		t.Error("a layout that was never widened names earlier profiles")
	}
	l := widened(t, 5)
	b := l.Append(nil)
	const want = "4f4c415901080710031a02020222020201"
	if got := hex.EncodeToString(b[:17]); got != want {
		t.Errorf("it begins with %s, want %s", got, want)
	}
	// Earlier 1+0, 1+0; stages 0 ×5, 1 ×1, 0 ×2.
	if tail := b[len(b)-8-14 : len(b)-8]; hex.EncodeToString(tail) != "5a0401000100"+"6206"+"000501010002" {
		t.Errorf("it ends with %x", tail)
	}
	// Six rows are {1, nobody ×3}, one is {1, 50, 52, 53}: five drives, so 5 is nobody.
	if !bytes.Contains(b, []byte{6<<3 | 2, 8, 0, 5, 5, 5, 0, 1, 3, 4}) {
		t.Errorf("rows are not as drawn: %x", b)
	}
	got, err := Decode(b)
	if err != nil || got.Number() != l.Number() || !slices.Equal(got.Group(5).Drives, l.Group(5).Drives) || got.Width(0) != 1 || got.FirstWidth() != 1 {
		t.Fatalf("%v, %+v", err, got)
	}
	for name, spoil := range map[string]func(l *Layout){
		"a stage for each partition, none narrow": func(l *Layout) { l.stages = bytes.Repeat([]byte{1}, 8) },
		"an earlier profile that is as wide":      func(l *Layout) { l.earlier = []Profiles{{profile(2, 2), profile(1, 0)}} },
		"an earlier reduced profile that is wide": func(l *Layout) { l.earlier = []Profiles{{profile(1, 0), profile(2, 0)}} },
		"a former of a position that nobody had":  func(l *Layout) { l.formers = make([]uint16, 32); l.formers[1] = 51 },
	} {
		x := *l
		spoil(&x)
		if _, err := Decode(x.Append(nil)); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v, want Corrupt", name, err)
		}
	}
	// A row that is as long as another of its width is not: flip a stage behind the checksum's back.
	i := bytes.LastIndex(b, []byte{0, 5, 1, 1, 0, 2})
	x := slices.Clone(b)
	copy(x[i:], []byte{0, 6, 1, 1, 0, 1})
	if _, err := Decode(sealed(x[:len(x)-8])); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a narrow row of a wide partition: %v, want Corrupt", err)
	}
}
