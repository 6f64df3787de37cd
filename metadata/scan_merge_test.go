package metadata

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// sortedDrive has rows in order, and answers as an acceptor does.
type sortedDrive struct {
	Replica // nothing else is called
	rows    []ScanEntry
	fails   func() bool
	sent    *atomic.Int64
	asked   *atomic.Int64
}

func (d *sortedDrive) Scan(_ context.Context, m *ScanRequest) (*ScanReply, error) {
	d.asked.Add(1)
	if d.fails != nil && d.fails() {
		return nil, errs.E("test", errs.Drive, "gone")
	}
	lower, upper, err := scanSpan(m)
	if err != nil {
		return nil, err
	}
	r := &ScanReply{}
	for i := range d.rows {
		e := d.rows[i]
		at := headKey(&e.Address)[1:]
		if low := lower[1:]; bytes.Compare(at, low) < 0 || upper != nil && bytes.Compare(at, upper[1:]) >= 0 {
			continue
		}
		if m.Kind != KindPart {
			e.Prefix = commonPrefix(e.Address.Key, m.Prefix, m.Delimiter)
		}
		if n := len(r.Entries); e.Prefix != nil && n > 0 && bytes.Equal(r.Entries[n-1].Prefix, e.Prefix) {
			continue
		}
		if len(r.Entries) == m.Limit {
			r.Truncated = true
			break
		}
		r.Entries = append(r.Entries, e)
	}
	d.sent.Add(int64(len(r.Entries)))
	return r, nil
}

// sortedStore is a store of many drives, whose rows are all decided.
type sortedStore struct {
	layout *placement.Layout
	drives map[uint16]*sortedDrive
	sent   atomic.Int64
	asked  atomic.Int64
}

func (s *sortedStore) Replica(drive uint16) (Replica, bool) {
	d, ok := s.drives[drive]
	return d, ok
}

func newSortedStore(t *testing.T, drives int, p erasure.Profile, bits uint8) *sortedStore {
	t.Helper()
	var list []placement.Drive
	for i := range drives {
		list = append(list, placement.Drive{Num: uint16(i + 1), ID: [16]byte{byte(i + 1), byte(i >> 8)}, Node: [16]byte{1}})
	}
	l, err := placement.NewLayout(list, p, bits)
	must(t, err)
	s := &sortedStore{layout: l, drives: map[uint16]*sortedDrive{}}
	for _, d := range list {
		s.drives[d.Num] = &sortedDrive{sent: &s.sent, asked: &s.asked}
	}
	return s
}

// fill gives the members of each key's partition its row; some keep an older one, W do not.
func (s *sortedStore) fill(rng *rand.Rand, addrs []Address, live map[string]bool) {
	for i, a := range addrs {
		g := s.layout.Group(s.layout.PartitionOf(a.Bucket, a.Key))
		b := Ballot{Counter: uint64(i)*2 + 2}
		row := &Row{Ballot: b, Decided: true, State: State{ID: b}}
		if live[string(a.Key)] {
			row.State.Current = &Version{Kind: VersionObject, ETag: fmt.Sprint(i)}
		}
		old := &Row{Ballot: Ballot{Counter: b.Counter - 1}, Decided: true, State: State{ID: Ballot{Counter: b.Counter - 1}, Current: &Version{Kind: VersionObject, ETag: "old"}}}
		for n, pos := range rng.Perm(len(g.Drives)) {
			e := ScanEntry{Address: a, Row: row}
			switch {
			case n < g.Quorum.W:
			case rng.IntN(2) == 0:
				e.Row = old
			default:
				continue
			}
			d := s.drives[g.Drives[pos]]
			d.rows = append(d.rows, e)
		}
	}
	for _, d := range s.drives {
		slices.SortFunc(d.rows, func(a, b ScanEntry) int { return bytes.Compare(headKey(&a.Address), headKey(&b.Address)) })
	}
}

// sharedRand returns random numbers for many goroutines.
func sharedRand(seed uint64) func() uint64 {
	var mu sync.Mutex // guards rng
	rng := rand.New(rand.NewPCG(seed, 2))
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return rng.Uint64()
	}
}

// TestSharesOfAPageAddUpToTheNaiveList lists over many drives: keys that fall at random, all into one partition, or
// half gone, in pages for which the drives' shares do and do not suffice, while drives fail between the rounds.
func TestSharesOfAPageAddUpToTheNaiveList(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 1))
		shape := [...]struct {
			drives int
			p      erasure.Profile
		}{{4, erasure.Profile{Data: 2, Parity: 2}}, {30, erasure.Profile{Data: 2, Parity: 1}}, {90, erasure.Profile{Data: 4, Parity: 2}}}[rng.IntN(3)]
		s := newSortedStore(t, shape.drives, shape.p, 7)
		skewed, sparse := rng.IntN(3) == 0, rng.IntN(3) == 0
		live := map[string]bool{}
		for n := rng.IntN(500); len(live) < n; {
			k := fmt.Sprintf("%c%s%03d", 'a'+rng.IntN(3), []string{"", "/", "/x/", "\x00"}[rng.IntN(4)], rng.IntN(1000))
			if !skewed || s.layout.PartitionOf(7, []byte(k)) == 5 || rng.IntN(40) == 0 {
				live[k] = !sparse || rng.IntN(20) == 0
			}
		}
		var addrs []Address
		for _, k := range slices.Sorted(maps.Keys(live)) {
			addrs = append(addrs, addr(k))
		}
		s.fill(rng, addrs, live)
		cl := NewClient(ClientConfig{Replicas: s, Rand: sharedRand(seed)})
		for range 6 {
			o := ScanOptions{Kind: KindObject, Bucket: 7, Limit: 1 + rng.IntN(200)}
			if rng.IntN(2) == 0 {
				o.Prefix = []byte{'a' + byte(rng.IntN(3))}
			}
			if rng.IntN(3) == 0 {
				o.Delimiter = []byte("/")
			}
			if rng.IntN(3) == 0 && len(addrs) > 0 {
				o.After = addrs[rng.IntN(len(addrs))].Key
			}
			var down atomic.Int64 // calls until a drive is gone for good
			down.Store(int64(rng.IntN(3 * shape.drives)))
			gone := s.drives[uint16(1+rng.IntN(shape.drives))]
			gone.fails = func() bool { return down.Add(-int64(shape.drives)/2-1) < 0 }
			want := naiveList(live, o)
			var got []string
			for page := o; ; {
				cover, err := s.layout.Cover(rng.Uint64())
				must(t, err)
				r, err := cl.Scan(t.Context(), cover, page)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				for i := range r.Items {
					it := &r.Items[i]
					got = append(got, nameOf(it))
					if it.Version == nil || it.Version.ETag == "old" {
						t.Fatalf("seed %d: %q with version %+v", seed, nameOf(it), it.Version)
					}
				}
				if !r.Truncated {
					break
				}
				if len(r.Items) != o.Limit {
					t.Fatalf("seed %d: a truncated page of %d items, limit %d", seed, len(r.Items), o.Limit)
				}
				page.After, page.AfterPrefix = r.After, r.AfterPrefix
			}
			if gone.fails = nil; !slices.Equal(got, want) {
				t.Fatalf("seed %d: %d drives, prefix %q delimiter %q after %q limit %d:\ngot  %q\nwant %q", seed, shape.drives, o.Prefix, o.Delimiter, o.After, o.Limit, got, want)
			}
		}
		must(t, cl.Close(t.Context()))
	}
}

// However keys fall, a page takes few rounds, and nothing is sent twice.
func TestNothingIsSentTwiceWhereverTheKeysAre(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, skewed := range []bool{false, true} {
		s := newSortedStore(t, 90, erasure.Profile{Data: 4, Parity: 2}, 7)
		live := map[string]bool{}
		var addrs []Address
		for i := 0; len(addrs) < 1500; i++ {
			if k := fmt.Sprintf("k%07d", i); !skewed || s.layout.PartitionOf(7, []byte(k)) == 5 {
				live[k] = true
				addrs = append(addrs, addr(k))
			}
		}
		s.fill(rng, addrs, live)
		cover, err := s.layout.Cover(1)
		must(t, err)
		cl := NewClient(ClientConfig{Replicas: s})
		page, err := cl.Scan(t.Context(), cover, ScanOptions{Kind: KindObject, Bucket: 7, Limit: 1000})
		must(t, err)
		must(t, cl.Close(t.Context()))
		if len(page.Items) != 1000 || !page.Truncated || string(page.After) != string(addrs[999].Key) {
			t.Fatalf("skewed %v: %d items up to %q", skewed, len(page.Items), page.After)
		}
		drives, n := int64(len(cover.Drives())), int64(s.layout.N())
		// One partition: its members' shares are too small, and each of them is asked for all the rest at once.
		most, sent := drives+4, 1001*n*3/2+drives*10
		if skewed {
			most, sent = drives+4*n, 1001*n+drives
		}
		if s.asked.Load() > most || s.sent.Load() > sent {
			t.Errorf("skewed %v: %d drives of the cover took %d messages, want at most %d, and sent %d entries, want at most %d", skewed, drives, s.asked.Load(), most, s.sent.Load(), sent)
		}
	}
}

// A listing of parts asks the members of the one partition in which they are.
func TestPartsAreAskedOfTheirPartition(t *testing.T) {
	s := newSortedStore(t, 90, erasure.Profile{Data: 4, Parity: 2}, 7)
	var addrs []Address
	for p := range uint32(300) {
		addrs = append(addrs, Address{Kind: KindPart, Bucket: 7, Key: []byte("k"), Upload: UploadID{1}, Part: p + 1})
	}
	s.fill(rand.New(rand.NewPCG(1, 1)), addrs, map[string]bool{"k": true})
	cover, err := s.layout.Cover(1)
	must(t, err)
	cl := NewClient(ClientConfig{Replicas: s})
	page, err := cl.Scan(t.Context(), cover, ScanOptions{Kind: KindPart, Bucket: 7, Prefix: []byte("k"), Upload: UploadID{1}, From: 11, Limit: 200})
	must(t, err)
	must(t, cl.Close(t.Context()))
	if len(page.Items) != 200 || !page.Truncated || page.Items[0].Address.Part != 11 || page.Items[199].Address.Part != 210 {
		t.Errorf("%d parts, truncated %v", len(page.Items), page.Truncated)
	}
	if n := s.asked.Load(); n > int64(s.layout.N()) {
		t.Errorf("%d drives were asked", n)
	}
}

// naiveMerge computes a merged listing from all that all drives have.
func naiveMerge(drives map[uint16][]ScanEntry, member func([]byte, uint16) bool) (list []candidate) {
	type group struct {
		least *ScanEntry
		of    map[uint16]*ScanEntry
	}
	groups := map[string]*group{}
	for d, es := range drives {
		for i := range es {
			e := &es[i]
			name := string(e.name()) + fmt.Sprint("\x00", e.Prefix == nil)
			g := groups[name]
			if g == nil {
				g = &group{e, map[uint16]*ScanEntry{}}
				groups[name] = g
			}
			g.of[d] = e
			if bytes.Compare(e.Address.Key, g.least.Address.Key) < 0 {
				g.least = e
			}
		}
	}
	for _, g := range groups {
		c := candidate{addr: g.least.Address, prefix: g.least.Prefix}
		for d, e := range g.of {
			if sameAddress(&e.Address, &g.least.Address) && member(e.Address.Key, d) && (c.row == nil || c.row.Ballot.Less(e.Row.Ballot)) {
				c.row = e.Row
			}
		}
		for d, e := range g.of {
			if sameAddress(&e.Address, &g.least.Address) && member(e.Address.Key, d) {
				c.chosen = c.chosen || e.Row.Decided && e.Row.State.ID == c.row.State.ID
			}
		}
		if c.row != nil || c.prefix != nil {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b candidate) int { return strings.Compare(nameOfCandidate(&a), nameOfCandidate(&b)) })
	return list
}

func nameOfCandidate(c *candidate) string {
	if c.prefix != nil {
		return string(c.prefix)
	}
	return string(c.addr.Key)
}

// TestMergeInPiecesEqualsTheMergeOfEverything feeds the merger pieces of any size, in any order, of drives that have
// rows of the same keys, so that pieces end at the same names and at different ones.
func TestMergeInPiecesEqualsTheMergeOfEverything(t *testing.T) {
	for range 2000 {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 2))
		member := func(key []byte, drive uint16) bool { return (int(key[len(key)-1])+int(drive))%4 > 0 }
		drives, left := map[uint16][]ScanEntry{}, map[uint16][]ScanEntry{}
		for d := range uint16(1 + rng.IntN(20)) {
			keys := map[string]bool{}
			for range rng.IntN(12) {
				keys[fmt.Sprintf("%s%c", []string{"", "commonbytes", "commonbytes/"}[rng.IntN(3)], 'a'+rng.IntN(6))] = true
			}
			var es []ScanEntry
			for _, k := range slices.Sorted(maps.Keys(keys)) {
				e := ScanEntry{Address: addr(k), Prefix: commonPrefix([]byte(k), nil, []byte("/"))}
				if n := len(es); n > 0 && e.Prefix != nil && es[n-1].Prefix != nil {
					continue
				}
				b := Ballot{Counter: uint64(rng.IntN(3) + 1)}
				e.Row = &Row{Ballot: b, Decided: b.Counter < 3 && rng.IntN(2) == 0, State: State{ID: b}}
				es = append(es, e)
			}
			drives[d], left[d] = es, es
		}
		m := merger{member: member}
		more := func(d uint16) {
			n := min(1+rng.IntN(4), len(left[d]))
			m.add(d, &ScanReply{Entries: slices.Clone(left[d][:n]), Truncated: n < len(left[d])})
			left[d] = left[d][n:]
		}
		for d := range drives {
			more(d)
		}
		var got []candidate
		for !m.done() {
			most := 1 + rng.IntN(8)
			list := m.next(most)
			if got = append(got, list...); len(list) < most && !m.dry() && !m.done() {
				t.Fatalf("seed %d: %d candidates of %d, neither dry nor done", seed, len(list), most)
			}
			for i := range m.sources {
				if x := &m.sources[i]; x.dry() || x.more && rng.IntN(4) == 0 {
					more(x.drive)
				}
			}
		}
		want := naiveMerge(drives, member)
		if len(got) != len(want) {
			t.Fatalf("seed %d: %d candidates, want %d", seed, len(got), len(want))
		}
		for i := range got {
			g, w := got[i], want[i]
			same := g.row == nil && w.row == nil || g.row != nil && w.row != nil && g.row.Ballot == w.row.Ballot
			if !same || g.chosen != w.chosen || !reflect.DeepEqual(g.addr, w.addr) || !bytes.Equal(g.prefix, w.prefix) {
				t.Fatalf("seed %d: candidate %d is %+v, want %+v", seed, i, g, w)
			}
		}
	}
}
