package metadata

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// naiveList is what a listing should say, computed from everything.
func naiveList(live map[string]bool, o ScanOptions) (names []string) {
	keys := slices.Sorted(maps.Keys(live))
	last := ""
	for _, k := range keys {
		if !live[k] || !strings.HasPrefix(k, string(o.Prefix)) {
			continue
		}
		if o.AfterPrefix && (k <= string(o.After) || strings.HasPrefix(k, string(o.After))) || !o.AfterPrefix && len(o.After) > 0 && k <= string(o.After) {
			continue
		}
		name := k
		if len(o.Delimiter) > 0 {
			if i := strings.Index(k[len(o.Prefix):], string(o.Delimiter)); i >= 0 {
				name = k[:len(o.Prefix)+i+len(o.Delimiter)] + "*"
			}
		}
		if name != last {
			names = append(names, name)
			last = name
		}
	}
	return names
}

func nameOf(it *ScanItem) string {
	if it.Prefix != nil {
		return string(it.Prefix) + "*"
	}
	return string(it.Address.Key)
}

// TestScanEqualsTheNaiveList writes and removes at random with drives away, so that drives disagree,
// and compares pages of all sorts with a list computed from everything.
func TestScanEqualsTheNaiveList(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for seed := range uint64(rounds) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			drives, p := 4, erasure.Profile{Data: 2, Parity: 2}
			if seed%2 == 1 {
				drives, p = 7, erasure.Profile{Data: 2, Parity: 1}
			}
			c := newCluster(t, drives, p, 4)
			cl := c.client()
			live := map[string]bool{}
			key := func() string {
				var b []byte
				for range 1 + rng.IntN(4) {
					b = append(b, []byte{'a', 'b', '/', 0, 0xff}[rng.IntN(5)])
				}
				return string(b)
			}
			for range 80 {
				away := rng.IntN(drives)
				if rng.IntN(3) == 0 {
					c.set(away, func(d *testDrive) { d.gone = true })
				}
				k := key()
				var err error
				remove := rng.IntN(3) == 0
				if remove {
					err = c.remove(t.Context(), cl, k)
				} else {
					_, err = c.put(t.Context(), cl, k, "e")
				}
				must(t, err)
				live[k] = !remove
				c.set(away, func(d *testDrive) { d.gone = false })
				if rng.IntN(2) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			for range 60 {
				o := ScanOptions{Kind: KindObject, Bucket: 7, Limit: 1 + rng.IntN(6)}
				if rng.IntN(2) == 0 {
					o.Prefix = []byte(key())[:1]
				}
				if rng.IntN(2) == 0 {
					o.Delimiter = []byte("/")
				}
				if rng.IntN(3) == 0 {
					o.After = []byte(key())
				}
				away := -1
				if rng.IntN(3) == 0 {
					away = rng.IntN(drives)
					c.set(away, func(d *testDrive) { d.gone = true })
				}
				want := naiveList(live, o)
				var got []string
				page := o
				for n := 0; ; n++ {
					cover, err := c.layout.Cover(rng.Uint64())
					must(t, err)
					r, err := cl.Scan(t.Context(), cover, page)
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					for i := range r.Items {
						got = append(got, nameOf(&r.Items[i]))
						if r.Items[i].State == nil || r.Items[i].State.Current == nil {
							t.Fatalf("seed %d: %q has no live version", seed, nameOf(&r.Items[i]))
						}
					}
					if !r.Truncated {
						break
					}
					if len(r.Items) != o.Limit || n > 200 {
						t.Fatalf("seed %d: a truncated page of %d items, limit %d", seed, len(r.Items), o.Limit)
					}
					page.After, page.AfterPrefix = r.After, r.AfterPrefix
				}
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d: prefix %q delimiter %q after %q limit %d:\ngot  %q\nwant %q", seed, o.Prefix, o.Delimiter, o.After, o.Limit, got, want)
				}
				if away >= 0 {
					c.set(away, func(d *testDrive) { d.gone = false })
				}
			}
			must(t, cl.Close(t.Context()))
		})
	}
}

func TestScanVersionsListsEveryVersionOnceAcrossPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		var want []string
		for k := range 5 {
			key := fmt.Sprint("k", k)
			n := 1 + k*2%5
			for v := range n {
				must(t, c.push(t.Context(), cl, key, fmt.Sprint(v)))
			}
			for v := n - 1; v >= 0; v-- {
				want = append(want, fmt.Sprint(key, "#", v))
			}
		}
		for limit := 1; limit < 20; limit++ {
			var got []string
			o := ScanOptions{Bucket: 7, Limit: limit}
			for n := 0; ; n++ {
				cover, err := c.layout.Cover(uint64(n))
				must(t, err)
				page, err := cl.ScanVersions(t.Context(), cover, o)
				must(t, err)
				seen := ""
				for _, it := range page.Items {
					got = append(got, string(it.Address.Key)+"#"+it.Version.ETag)
					if it.Latest != (it.Version.Seq == it.State.Current.Seq) {
						t.Fatalf("latest is wrong for %s", got[len(got)-1])
					}
					seen = string(it.Address.Key)
				}
				if !page.Truncated {
					break
				}
				if len(page.Items) != limit || n > 100 || string(page.After) != seen {
					t.Fatalf("limit %d: page of %d, after %q", limit, len(page.Items), page.After)
				}
				o.After, o.AfterPrefix, o.AfterSeq = page.After, page.AfterPrefix, page.AfterSeq
			}
			if !slices.Equal(got, want) {
				t.Fatalf("limit %d:\ngot  %v\nwant %v", limit, got, want)
			}
		}
		must(t, cl.Close(t.Context()))
	})
}

func TestScanOfUploadsAndParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		write := func(a Address, v *Version) {
			c.ids++
			_, err := cl.Update(t.Context(), c.group(string(a.Key)), a, Operation{ID: c.ids, Apply: func(*State, []Version) (*Change, error) {
				return &Change{Current: v, NextSeq: 1}, nil
			}})
			must(t, err)
		}
		for _, key := range []string{"a", "b/1", "b/2"} {
			for u := range 3 {
				write(Address{Kind: KindUpload, Bucket: 7, Key: []byte(key), Upload: UploadID{byte(u + 1)}}, &Version{Kind: VersionUpload, Status: UploadOpen})
			}
		}
		for p := range uint32(5) {
			write(Address{Kind: KindPart, Bucket: 7, Key: []byte("a"), Upload: UploadID{2}, Part: p*2 + 1}, &Version{Kind: VersionPart})
		}
		write(Address{Kind: KindUpload, Bucket: 7, Key: []byte("a"), Upload: UploadID{2}}, nil) // gone
		list := func(o ScanOptions) (got []string) {
			for {
				cover, err := c.layout.Cover(1)
				must(t, err)
				page, err := cl.Scan(t.Context(), cover, o)
				must(t, err)
				for _, it := range page.Items {
					got = append(got, fmt.Sprint(nameOf(&it), it.Address.Upload[0], it.Address.Part))
				}
				if !page.Truncated {
					return got
				}
				o.After, o.AfterPrefix, o.AfterSub = page.After, page.AfterPrefix, page.AfterSub
				if o.Kind == KindPart {
					o.From = page.Items[len(page.Items)-1].Address.Part + 1
				}
			}
		}
		for limit := 1; limit < 12; limit++ {
			if got, want := list(ScanOptions{Kind: KindUpload, Bucket: 7, Limit: limit}), []string{"a1 0", "a3 0", "b/11 0", "b/12 0", "b/13 0", "b/21 0", "b/22 0", "b/23 0"}; !slices.Equal(got, want) {
				t.Errorf("limit %d: uploads %q, want %q", limit, got, want)
			}
			if got, want := list(ScanOptions{Kind: KindUpload, Bucket: 7, Limit: limit, Delimiter: []byte("/")}), []string{"a1 0", "a3 0", "b/*1 0"}; !slices.Equal(got, want) {
				t.Errorf("limit %d: uploads %q, want %q", limit, got, want)
			}
			if got, want := list(ScanOptions{Kind: KindPart, Bucket: 7, Prefix: []byte("a"), Upload: UploadID{2}, From: 2, Limit: limit}), []string{"a2 3", "a2 5", "a2 7", "a2 9"}; !slices.Equal(got, want) {
				t.Errorf("limit %d: parts %q, want %q", limit, got, want)
			}
		}
		must(t, cl.Close(t.Context()))
	})
}

// TestAcceptorFailsCleanlyWhenAnyStoreOperationFails fails the store's operation i, for i = 1, 2, …,
// until everything runs through, and then finds no half-applied state.
func TestAcceptorFailsCleanlyWhenAnyStoreOperationFails(t *testing.T) {
	for i := 1; ; i++ {
		c := newCluster(t, 1, erasure.Profile{Data: 1}, 4)
		d := c.drives[0]
		g := c.group("a")
		h := Header{Drive: 1, Partition: g.Partition, Epoch: g.Epoch}
		b1, b2 := Ballot{10, 1}, Ballot{20, 1}
		s1 := State{ID: b1, Current: &Version{Kind: VersionObject, Seq: 1, ETag: "1"}, NextSeq: 2}
		s2 := State{ID: b2, Prev: b1, Index: 1, Current: &Version{Kind: VersionObject, Seq: 2, ETag: "2"}, Older: 1, NextSeq: 3,
			Delta: Delta{Put: []Version{*s1.Current}}}
		d.kv.fail = i
		failed := 0
		run := func(err error) {
			if err != nil {
				failed++
				if !errs.Is(err, errs.Drive) {
					t.Fatalf("operation %d: kind %v of %v", i, errs.KindOf(err), err)
				}
			}
		}
		ctx := t.Context()
		_, err := d.Prepare(ctx, &PrepareRequest{Header: h, Address: addr("a"), Ballot: b1})
		run(err)
		r1, err := d.Accept(ctx, &AcceptRequest{Header: h, Address: addr("a"), Ballot: b1, State: s1})
		run(err)
		r2, err := d.Accept(ctx, &AcceptRequest{Header: h, Address: addr("a"), Ballot: b2, State: s2})
		run(err)
		run(d.Decide(ctx, []Decision{{Header: h, Address: addr("a"), Ballot: b2, Missing: []uint8{0}}}))
		_, err = d.Scan(ctx, &ScanRequest{Kind: KindObject, Bucket: 7})
		run(err)
		_, err = d.Versions(ctx, &VersionsRequest{Header: h, Address: addr("a"), Below: ^uint64(0)})
		run(err)
		run(d.Fence(ctx, &FenceRequest{Bucket: 9, Epoch: 2}))
		run(d.Drop(ctx, &DropRequest{Header: h, Address: addr("a"), Ballot: b2}))
		d.kv.fail = 0
		a := addr("a")
		row, err := d.row(headKey(&a))
		must(t, err)
		rows, _, err := d.versions(&a, ^uint64(0), 10)
		must(t, err)
		switch {
		case r2 != nil && r2.Accepted:
			if row == nil || row.Ballot != b2 || len(rows) != 1 {
				t.Fatalf("operation %d: accepted, and the store has %+v, %+v", i, row, rows)
			}
		case r1 != nil && r1.Accepted:
			if row == nil || row.Ballot != b1 || len(rows) != 0 {
				t.Fatalf("operation %d: accepted the first, and the store has %+v, %+v", i, row, rows)
			}
		}
		if failed == 0 {
			if i < 10 {
				t.Fatalf("only %d operations of the store were reached", i)
			}
			return
		}
	}
}

// FuzzScanSpan: whatever the request, the span is well formed and lies within its bucket.
func FuzzScanSpan(f *testing.F) {
	f.Add(uint8(1), []byte("p"), []byte("q"), []byte{}, true)
	f.Fuzz(func(t *testing.T, kind uint8, prefix, after, sub []byte, afterPrefix bool) {
		m := &ScanRequest{Kind: RegisterKind(kind), Bucket: 7, Prefix: prefix, After: after, AfterSub: sub, AfterPrefix: afterPrefix}
		lower, upper, err := scanSpan(m)
		if err != nil {
			return
		}
		base := bucketKey(m.Kind, 7)
		if bytes.Compare(lower, upper) > 0 || bytes.Compare(lower, base) < 0 || bytes.Compare(upper, successor(base)) > 0 {
			t.Fatalf("span [%x, %x) of bucket %x", lower, upper, base)
		}
	})
}
