package placement

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
)

// naiveRow is a partition as the naive oracle of these tests keeps it.
type naiveRow struct {
	members []uint16
	epoch   uint64
	spread  int
}

func naive(l *Layout) (rows []naiveRow) {
	for p := range l.Partitions() {
		g := l.Group(p)
		rows = append(rows, naiveRow{slices.Clone(g.Drives), g.Epoch, g.Spread})
	}
	return rows
}

func TestRandomReplacementsAgreeWithANaiveTable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 12 {
		n := 1 + rnd.IntN(6)
		k := 1 + rnd.IntN(n)
		l := mustLayout(t, cluster(1+rnd.IntN(3), equal(n+rnd.IntN(4))...), k, n-k, uint8(rnd.IntN(8)))
		table := naive(l)
		fresh := uint16(1000)
		for range 3 {
			old := l.Drives()[rnd.IntN(len(l.Drives()))].Num
			fresh++
			d := Drive{Num: fresh, ID: [16]byte{byte(fresh >> 8), byte(fresh)}}
			number := l.Number()
			l = must(t, seed)(l.WithDrive(d))
			for {
				var want []uint32
				for p, row := range table {
					if slices.Contains(row.members, old) {
						want = append(want, uint32(p))
					}
				}
				if got := l.PartitionsOf(old); !slices.Equal(got, want) {
					t.Fatalf("seed %d: drive %d is in %v, want %v", seed, old, got, want)
				}
				if len(want) == 0 {
					break
				}
				if _, err := l.Without(old); !errs.Is(err, errs.Invalid) {
					t.Fatalf("seed %d: a member left the layout: %v", seed, err)
				}
				rnd.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
				batch := want[:1+rnd.IntN(len(want))]
				before, encoded := l, l.Append(nil)
				l = must(t, seed)(l.Swap(old, fresh, batch))
				if !bytes.Equal(before.Append(nil), encoded) {
					t.Fatalf("seed %d: the layout before the swap has changed", seed)
				}
				for _, p := range batch {
					row := &table[p]
					row.members[slices.Index(row.members, old)] = fresh
					row.epoch++
				}
				if got := naive(l); fmt.Sprint(got) != fmt.Sprint(table) {
					t.Fatalf("seed %d: after the swap of %v\ngot  %v\nwant %v", seed, batch, got, table)
				}
				if l.Number() != before.Number()+1 {
					t.Fatalf("seed %d: number %d after %d", seed, l.Number(), before.Number())
				}
				if back, err := Decode(l.Append(nil)); err != nil || fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", l) {
					t.Fatalf("seed %d: decoding: %v", seed, err)
				}
			}
			last := l.Number()
			l = must(t, seed)(l.Without(old))
			if _, ok := l.Drive(old); ok || l.Number() != last+1 || last <= number {
				t.Fatalf("seed %d: drive %d is still there, or the numbers %d, %d, %d do not rise", seed, old, number, last, l.Number())
			}
		}
	}
}

func must(t *testing.T, seed uint64) func(*Layout, error) *Layout {
	return func(l *Layout, err error) *Layout {
		t.Helper()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		return l
	}
}

func TestChangesThatDoNotFitAreRefused(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(4)...), 2, 1, 3)
	with, err := l.WithDrive(Drive{Num: 9, ID: [16]byte{9}})
	if err != nil {
		t.Fatal(err)
	}
	has := l.PartitionsOf(1)
	lacks := slices.DeleteFunc([]uint32{0, 1, 2, 3, 4, 5, 6, 7}, func(p uint32) bool { return slices.Contains(has, p) })
	both := slices.DeleteFunc(slices.Clone(has), func(p uint32) bool { return !slices.Contains(l.PartitionsOf(2), p) })
	full := mustLayout(t, cluster(1, equal(MaxDrives)...), 1, 0, 0)
	for name, c := range map[string]struct {
		f    func() (*Layout, error)
		want errs.Kind
	}{
		"a number that is taken":         {func() (*Layout, error) { return l.WithDrive(Drive{Num: 2, ID: [16]byte{7}}) }, errs.Invalid},
		"an id that is taken":            {func() (*Layout, error) { return l.WithDrive(Drive{Num: 9, ID: l.Drives()[0].ID}) }, errs.Invalid},
		"a drive too many":               {func() (*Layout, error) { return full.WithDrive(Drive{Num: 9999, ID: [16]byte{7}}) }, errs.Invalid},
		"a newcomer that is not there":   {func() (*Layout, error) { return l.Swap(1, 9, has) }, errs.Invalid},
		"no partitions":                  {func() (*Layout, error) { return with.Swap(1, 9, nil) }, errs.Invalid},
		"a partition out of range":       {func() (*Layout, error) { return with.Swap(1, 9, []uint32{8}) }, errs.Invalid},
		"a partition twice":              {func() (*Layout, error) { return with.Swap(1, 9, []uint32{has[0], has[0]}) }, errs.Invalid},
		"a partition without old":        {func() (*Layout, error) { return with.Swap(1, 9, lacks[:1]) }, errs.Invalid},
		"a partition with the newcomer":  {func() (*Layout, error) { return with.Swap(1, 2, both[:1]) }, errs.Invalid},
		"a drive for itself":             {func() (*Layout, error) { return with.Swap(1, 1, has) }, errs.Invalid},
		"a member that leaves":           {func() (*Layout, error) { return with.Without(1) }, errs.Invalid},
		"a drive that is not there, out": {func() (*Layout, error) { return l.Without(9) }, errs.NotFound},
	} {
		if got, err := c.f(); !errs.Is(err, c.want) {
			t.Errorf("%s: got %v %v, want %v", name, got, err, c.want)
		}
	}
}

// Each partition swapped by itself, and some more often: the encoding has an entry for each.
func TestALayoutOfManyEpochsStaysCompact(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(12)...), 8, 4, DefaultBits)
	l, err := l.WithDrive(Drive{Num: 13, ID: [16]byte{13}})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		old, newcomer := uint16(1), uint16(13)
		if i%2 == 1 {
			old, newcomer = newcomer, old
		}
		some := slices.DeleteFunc(l.PartitionsOf(old), func(uint32) bool { return rnd.IntN(2) == 0 })
		if l, err = l.Swap(old, newcomer, some); err != nil {
			t.Fatal(err)
		}
	}
	b := l.Append(nil)
	if len(b) > 32<<10 {
		t.Errorf("the layout takes %d bytes", len(b))
	}
	if back, err := Decode(b); err != nil || !bytes.Equal(back.Append(nil), b) {
		t.Errorf("decoding: %v", err)
	}
}

func TestSlicesAndPartitionsNest(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	for bits := uint8(0); bits <= MaxBits; bits++ {
		l := mustLayout(t, cluster(1, equal(1)...), 1, 0, bits)
		for range 200 {
			bucket, key := rnd.Uint64(), fmt.Append(nil, rnd.Uint64())
			slice, p := uint32(Slice(bucket, key)), l.PartitionOf(bucket, key)
			if bits <= SliceBits && slice>>(SliceBits-bits) != p || bits > SliceBits && p>>(bits-SliceBits) != slice {
				t.Fatalf("seed %d: %d bits: partition %d, slice %d", seed, bits, p, slice)
			}
		}
	}
	for _, c := range []struct {
		bucket uint64
		key    string
		want   uint32
	}{{1, "a", goldenA}, {2, "a", goldenB}, {1, "photos/2026/cat.jpg", goldenC}, {7, "", goldenE}} {
		if got := Slice(c.bucket, []byte(c.key)); uint32(got) != c.want {
			t.Errorf("slice of %d %q: %d, want %d", c.bucket, c.key, got, c.want)
		}
	}
}

func TestAWedgeQuorumLeavesNeitherAWriteNorARead(t *testing.T) {
	for n := 1; n <= 64; n++ {
		for k := 1; k <= n; k++ {
			for f := range n + 1 {
				q := RecordQuorum(profile(k, n-k), f)
				z := WedgeQuorum(q)
				if left := n - z; z > n || left >= q.W || left >= q.R {
					t.Fatalf("%d+%d f=%d %+v: %d wedged leave %d", k, n-k, f, q, z, left)
				}
				if z != q.Z {
					t.Fatalf("%d+%d f=%d: Z is %d and %d", k, n-k, f, q.Z, z)
				}
				// One wedged less would not do.
				if left := n - z + 1; left < q.W && left < q.R {
					t.Fatalf("%d+%d f=%d %+v: %d is more than needed", k, n-k, f, q, z)
				}
			}
		}
	}
}
