package placement

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
)

// naiveMoved is one position as the naive oracle of the test below keeps it.
type naiveMoved struct{ member, former uint16 }

func TestRandomMovesAgreeWithANaiveTable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	for range 20 {
		n := 1 + rnd.IntN(5)
		k := 1 + rnd.IntN(n)
		l := mustLayout(t, cluster(1+rnd.IntN(4), equal(n+1+rnd.IntN(4))...), k, n-k, uint8(rnd.IntN(6)))
		table := make([][]naiveMoved, l.Partitions())
		for p := range table {
			for _, num := range l.Group(uint32(p)).Drives {
				table[p] = append(table[p], naiveMoved{member: num})
			}
		}
		for range 200 {
			p, pos := uint32(rnd.IntN(len(table))), rnd.IntN(n)
			m := Move{p, pos, table[p][pos].member, l.Drives()[rnd.IntN(len(l.Drives()))].Num}
			at := &table[p][pos]
			if rnd.IntN(3) == 0 {
				// The shards of a position have moved.
				done := Move{p, pos, at.former, at.member}
				before := l.Number()
				l = l.Moved([]Move{done})
				if (l.Number() != before) != (at.former != 0) {
					t.Fatalf("seed %d: %+v: layout %d became %d", seed, done, before, l.Number())
				}
				at.former = 0
			} else {
				taken := slices.ContainsFunc(table[p], func(x naiveMoved) bool { return x.member == m.To || x.former == m.To })
				f := 1 + rnd.IntN(n)
				next, err := l.Move([]Move{m}, []int{f})
				if (err == nil) != (!taken && at.former == 0) {
					t.Fatalf("seed %d: move %+v in %v: %v", seed, m, table[p], err)
				}
				if err != nil {
					if !errs.Is(err, errs.Invalid) {
						t.Fatalf("seed %d: %v", seed, err)
					}
					continue
				}
				if g, h := l.Group(p), next.Group(p); h.Epoch != g.Epoch+1 || h.Spread != f || h.Quorum != RecordQuorum(l.Profile(), f) || next.Number() != l.Number()+1 {
					t.Fatalf("seed %d: %+v became %+v", seed, g, h)
				}
				l = next
				*at = naiveMoved{m.To, m.From}
			}
			b := l.Append(nil)
			back, err := Decode(b)
			if err != nil || !bytes.Equal(back.Append(nil), b) {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for _, x := range []*Layout{l, back} {
				for p, row := range table {
					g := x.Group(uint32(p))
					for pos, want := range row {
						if former, _ := g.FormerAt(pos); g.Drives[pos] != want.member || former != want.former {
							t.Fatalf("seed %d: partition %d is %+v, want %v", seed, p, g, row)
						}
					}
				}
			}
		}
		// Who is a former of something does not leave, unless it is lost.
		for _, d := range l.Drives() {
			former := slices.ContainsFunc(table, func(row []naiveMoved) bool {
				return slices.ContainsFunc(row, func(x naiveMoved) bool { return x.former == d.Num })
			})
			member := slices.ContainsFunc(table, func(row []naiveMoved) bool {
				return slices.ContainsFunc(row, func(x naiveMoved) bool { return x.member == d.Num })
			})
			if len(l.FormerOf(d.Num)) > 0 != former {
				t.Fatalf("seed %d: drive %d is a former of %v", seed, d.Num, l.FormerOf(d.Num))
			}
			_, err := l.Without(d.Num)
			_, lost := l.WithoutLost(d.Num)
			if (err == nil) != (!member && !former) || (lost == nil) != !member {
				t.Fatalf("seed %d: drive %d (member %v, former %v) leaves: %v, lost: %v", seed, d.Num, member, former, err, lost)
			}
		}
	}
}

func TestLayoutsWithoutFormersAreEncodedAsBefore(t *testing.T) {
	l := mustLayout(t, cluster(1, equal(5)...), 2, 2, 3)
	g := l.Group(0)
	to := uint16(0)
	for _, d := range l.Drives() {
		if g.Position(d.Num) < 0 {
			to = d.Num
		}
	}
	m := Move{0, 1, g.Drives[1], to}
	moved, err := l.Move([]Move{m}, []int{1})
	if err != nil {
		t.Fatal(err)
	}
	done := moved.Moved([]Move{m})
	for _, x := range []*Layout{l, done} {
		if b := x.Append(nil); bytes.Contains(b[len(b)-20:], []byte{10<<3 | 2}) && x.formers != nil {
			t.Errorf("layout %d has a list of formers", x.Number())
		}
	}
	if len(moved.Append(nil)) <= len(done.Append(nil)) {
		t.Error("the former is not encoded")
	}
}
