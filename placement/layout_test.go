package placement

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/zeebo/xxh3"
)

// cluster makes drives 1…len(capacities), spread over nodes round and round.
func cluster(nodes int, capacities ...uint64) []Drive {
	drives := make([]Drive, len(capacities))
	for i := range drives {
		drives[i] = Drive{Num: uint16(i + 1), Capacity: capacities[i]}
		binary.BigEndian.PutUint64(drives[i].ID[:], uint64(i+1))
		drives[i].Node[0] = byte(i % nodes)
	}
	return drives
}

func equal(n int) []uint64 { return slices.Repeat([]uint64{1 << 40}, n) }

func mustLayout(t testing.TB, drives []Drive, k, m int, bits uint8) *Layout {
	t.Helper()
	l, err := NewLayout(drives, profile(k, m), bits)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// counts returns how often each drive stands in each position, and fails on rows that repeat one.
func counts(t *testing.T, l *Layout) map[uint16][]int {
	t.Helper()
	c := map[uint16][]int{}
	for _, d := range l.Drives() {
		c[d.Num] = make([]int, l.N())
	}
	for p := range l.Partitions() {
		g := l.Group(p)
		seen := map[uint16]bool{}
		for pos, d := range g.Drives {
			if seen[d] {
				t.Fatalf("partition %d names drive %d twice: %v", p, d, g.Drives)
			}
			seen[d] = true
			c[d][pos]++
		}
		if g.Epoch != 1 || g.Partition != p || g.Quorum != RecordQuorum(l.Profile(), g.Spread) {
			t.Fatalf("partition %d: %+v", p, g)
		}
	}
	return c
}

func TestEachDriveStandsInEachPositionEquallyOften(t *testing.T) {
	for _, c := range []struct{ drives, k, m int }{
		{1, 1, 0}, {2, 1, 1}, {3, 2, 1}, {4, 2, 1}, {5, 2, 2}, {6, 4, 2}, {7, 4, 2}, {12, 8, 4}, {13, 8, 4}, {16, 8, 4}, {40, 8, 4}, {100, 4, 2},
	} {
		t.Run(fmt.Sprintf("%d drives %d+%d", c.drives, c.k, c.m), func(t *testing.T) {
			l := mustLayout(t, cluster(1, equal(c.drives)...), c.k, c.m, 10)
			whole := float64(l.Partitions()) / float64(c.drives)
			for d, positions := range counts(t, l) {
				for pos, got := range positions {
					if float64(got) < whole-1 || float64(got) > whole+1 {
						t.Errorf("drive %d stands %d times in position %d, want %.1f ± 1", d, got, pos, whole)
					}
				}
			}
			if l.Spread() != 1 {
				t.Errorf("one node: f = %d, want 1", l.Spread())
			}
		})
	}
}

func TestDrivesGetPlacesInProportionToCapacity(t *testing.T) {
	for name, c := range map[string]struct {
		capacities []uint64
		want       []float64 // share of 1024 partitions, of which a drive is at most once in each
	}{
		"one to four":             {[]uint64{1000 << 20, 2000 << 20, 3000 << 20, 4000 << 20}, []float64{204.8, 409.6, 614.4, 819.2}},
		"one far too large":       {[]uint64{1 << 30, 1 << 30, 1 << 30, 100 << 30}, []float64{1024 / 3., 1024 / 3., 1024 / 3., 1024}},
		"unknown counts as mean":  {[]uint64{2 << 40, 0, 4 << 40, 0}, []float64{2048 / 6., 512, 4096 / 6., 512}},
		"all unknown":             {[]uint64{0, 0, 0, 0}, []float64{512, 512, 512, 512}},
		"as large as numbers get": {[]uint64{1<<64 - 1, 1<<64 - 1, 1<<64 - 1, 1<<64 - 1}, []float64{512, 512, 512, 512}},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustLayout(t, cluster(1, c.capacities...), 1, 1, 10)
			for d, positions := range counts(t, l) {
				got := float64(positions[0] + positions[1])
				if want := c.want[d-1]; got < want-1.5 || got > want+1.5 {
					t.Errorf("drive %d has %.0f places, want %.1f", d, got, want)
				}
				if diff := positions[0] - positions[1]; diff < -1 || diff > 1 {
					t.Errorf("drive %d stands %v times in the positions", d, positions)
				}
			}
		})
	}
}

func TestRandomCapacitiesFillEveryTable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		n := 1 + rnd.IntN(8)
		capacities := make([]uint64, n+rnd.IntN(20))
		for i := range capacities {
			capacities[i] = rnd.Uint64() >> rnd.IntN(60)
		}
		k := 1 + rnd.IntN(n)
		l := mustLayout(t, cluster(1+rnd.IntN(6), capacities...), k, n-k, uint8(rnd.IntN(9)))
		for d, positions := range counts(t, l) {
			if !sameNode(l.Drives()) {
				break // trades keep positions too, but the one-node case says it all
			}
			if slices.Max(positions)-slices.Min(positions) > 1 {
				t.Fatalf("seed %d: drive %d stands %v times in the positions", seed, d, positions)
			}
		}
		back, err := Decode(l.Append(nil))
		if err != nil || !bytes.Equal(back.Append(nil), l.Append(nil)) {
			t.Fatalf("seed %d: decoding: %v", seed, err)
		}
	}
}

func TestTheOrderOfDrivesDoesNotMatter(t *testing.T) {
	drives := cluster(3, 5<<40, 3<<40, 4<<40, 1<<40, 2<<40, 6<<40, 1<<40)
	a := mustLayout(t, drives, 2, 2, 8)
	slices.Reverse(drives)
	if b := mustLayout(t, drives, 2, 2, 8); !bytes.Equal(a.Append(nil), b.Append(nil)) {
		t.Error("another order of the same drives gave another layout")
	}
}

func TestNewLayoutRefuses(t *testing.T) {
	twice := cluster(1, equal(4)...)
	twice[3].Num = 1
	same := cluster(1, equal(4)...)
	same[3].ID = same[0].ID
	for name, f := range map[string]func() (*Layout, error){
		"too few drives":    func() (*Layout, error) { return NewLayout(cluster(1, equal(3)...), profile(2, 2), 4) },
		"no data shards":    func() (*Layout, error) { return NewLayout(cluster(1, equal(3)...), profile(0, 2), 4) },
		"too many shards":   func() (*Layout, error) { return NewLayout(cluster(1, equal(99)...), profile(60, 39), 4) },
		"too many bits":     func() (*Layout, error) { return NewLayout(cluster(1, equal(3)...), profile(2, 1), MaxBits+1) },
		"a number twice":    func() (*Layout, error) { return NewLayout(twice, profile(2, 1), 4) },
		"an identity twice": func() (*Layout, error) { return NewLayout(same, profile(2, 1), 4) },
	} {
		if l, err := f(); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: got %v %v, want Invalid", name, l, err)
		}
	}
}

func TestDriveAndPosition(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(5)...), 2, 1, 4)
	if d, ok := l.Drive(3); !ok || d.Num != 3 {
		t.Errorf("drive 3: %+v %v", d, ok)
	}
	if _, ok := l.Drive(9); ok {
		t.Error("drive 9 was found")
	}
	g := l.Group(7)
	for pos, d := range g.Drives {
		if g.Position(d) != pos {
			t.Errorf("drive %d: position %d, want %d", d, g.Position(d), pos)
		}
	}
	if g.Position(99) != -1 {
		t.Error("a drive that is no member has a position")
	}
}

// These hashes find the data of every cluster ever formed: the numbers below may never change.
func TestHashesAreGolden(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(3)...), 2, 1, DefaultBits)
	id := erasure.DataID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	if got := xxh3.HashString("abc"); got != 0x78af5f94892f3950 { // vector of the reference implementation
		t.Errorf("xxh3(abc) = %x", got)
	}
	got := []any{
		l.PartitionOf(1, []byte("a")), l.PartitionOf(2, []byte("a")), l.PartitionOf(1, []byte("photos/2026/cat.jpg")),
		l.PartitionOf(1<<63, bytes.Repeat([]byte("x"), 1024)), l.PartitionOf(7, nil),
		l.ChunkPartition(id, 0, 77), l.ChunkPartition(id, 1, 77), l.ChunkPartition(id, 2, 77),
		Positions(profile(2, 1), 3, id), Positions(profile(8, 3), 12, id), Positions(profile(1, 1), 6, id),
	}
	want := []any{goldenA, goldenB, goldenC, goldenD, goldenE, uint32(77), goldenF, goldenG,
		[]int{0, 1, 2}, goldenH, goldenI}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	one := mustLayout(t, cluster(1, equal(3)...), 2, 1, 0)
	if p := one.PartitionOf(5, []byte("k")); p != 0 {
		t.Errorf("one partition: key in partition %d", p)
	}
}

func TestPositionsAreDistinctAndBalanced(t *testing.T) {
	const n, rounds = 6, 60000
	p := profile(3, 1)
	count := make([][n]int, p.N())
	for i := range rounds {
		var id erasure.DataID
		binary.LittleEndian.PutUint64(id[:], uint64(i))
		pos := Positions(p, n, id)
		if len(slices.Compact(slices.Sorted(slices.Values(pos)))) != p.N() {
			t.Fatalf("%v repeats a position", pos)
		}
		for shard, at := range pos {
			count[shard][at]++
		}
	}
	for shard := range count {
		for at, got := range count[shard] {
			if want := rounds / n; got < want*95/100 || got > want*105/100 {
				t.Errorf("shard %d is %d times at position %d, want about %d", shard, got, at, want)
			}
		}
	}
	if Positions(profile(4, 4), 6, erasure.DataID{}) != nil {
		t.Error("a profile wider than the partition got positions")
	}
}

func TestPartitionOfDoesNotAllocate(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(3)...), 2, 1, DefaultBits)
	key := bytes.Repeat([]byte("k"), 1024)
	if n := testing.AllocsPerRun(100, func() { l.Group(l.PartitionOf(3, key)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEncodingIsCompactAndPrintsBack(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(12)...), 8, 4, DefaultBits)
	b := l.Append([]byte("before"))[6:]
	if len(b) > 16<<10 {
		t.Errorf("a layout of 12 drives takes %d bytes", len(b))
	}
	back, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", l) {
		t.Errorf("got  %+v\nwant %+v", back, l)
	}
}

func TestDecodeRefusesDamageAndTheUnknown(t *testing.T) {
	good := mustLayout(t, cluster(2, equal(4)...), 2, 1, 3).Append(nil)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if _, err := Decode(bad); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("byte %d flipped: %v, want Corrupt", i, err)
		}
		if _, err := Decode(good[:i]); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("cut at %d: %v, want Corrupt", i, err)
		}
	}
	body := good[:len(good)-8]
	if _, err := Decode(sealed(appendUint(bytes.Clone(body), 13, 1))); !errs.Is(err, errs.Unsupported) {
		t.Errorf("unknown mandatory field: %v, want Unsupported", err)
	}
	newer := bytes.Clone(body)
	newer[4] = 2
	if _, err := Decode(sealed(newer)); !errs.Is(err, errs.Unsupported) {
		t.Errorf("newer format: %v, want Unsupported", err)
	}
	optional := sealed(appendUint(bytes.Clone(body), 1000, 1))
	if l, err := Decode(optional); err != nil || !bytes.Equal(l.Append(nil), optional) {
		t.Errorf("an optional field is not kept: %v", err)
	}
}

// sealed appends the checksum, so that what lies behind it is tested.
func sealed(body []byte) []byte {
	return binary.LittleEndian.AppendUint64(body, xxh3.Hash(body))
}

func FuzzDecode(f *testing.F) {
	for _, l := range []*Layout{
		mustLayout(f, cluster(1, equal(1)...), 1, 0, 0), mustLayout(f, cluster(2, equal(5)...), 2, 1, 4),
	} {
		b := l.Append(nil)
		f.Add(b[:len(b)-8])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		b := sealed(body)
		l, err := Decode(b)
		if err != nil {
			return
		}
		if !bytes.Equal(l.Append(nil), b) {
			t.Fatalf("%x does not print back", b)
		}
		for p := range l.Partitions() {
			if g := l.Group(p); len(g.Drives) != l.N() {
				t.Fatalf("partition %d: %+v", p, g)
			}
		}
	})
}
