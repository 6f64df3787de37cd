package object

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// naive is what S3's documents say a bucket does, in a few lines without any storage.
type naive struct {
	state Versioning
	keys  map[string][]naiveVersion // newest first
}

type naiveVersion struct {
	id     string
	marker bool
	body   []byte
}

func (n *naive) put(key string, v naiveVersion) {
	list := n.keys[key]
	if n.state != Enabled {
		list = slices.DeleteFunc(slices.Clone(list), func(v naiveVersion) bool { return v.id == NullVersion })
		v.id = NullVersion
	}
	n.keys[key] = append([]naiveVersion{v}, list...)
}

func (n *naive) current(key string) *naiveVersion {
	if list := n.keys[key]; len(list) > 0 && !list[0].marker {
		return &list[0]
	}
	return nil
}

func (n *naive) remove(key, id string) {
	n.keys[key] = slices.DeleteFunc(slices.Clone(n.keys[key]), func(v naiveVersion) bool { return v.id == id })
}

// list is ListObjects of all keys, by brute force.
func (n *naive) list(prefix, delimiter string) (keys, prefixes []string) {
	for k := range n.keys {
		if n.current(k) == nil || !strings.HasPrefix(k, prefix) {
			continue
		}
		if i := strings.Index(k[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			prefixes = append(prefixes, k[:len(prefix)+i+len(delimiter)])
		} else {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	sort.Strings(prefixes)
	return keys, slices.Compact(prefixes)
}

func profileFor(k, m uint8) erasure.Profile { return erasure.Profile{Data: k, Parity: m} }

func TestRandomOperationsAgainstTheModel(t *testing.T) {
	for _, o := range []stackOptions{
		{},
		{drives: 3, prof: profileFor(2, 1)},
		{drives: 6, prof: profileFor(4, 2), bits: 5},
		{drives: 1, prof: profileFor(1, 0)},
	} {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%d drives, seed %d", max(o.drives, 4), seed), func(t *testing.T) { randomOperations(t, o, seed) })
	}
}

func randomOperations(t *testing.T, o stackOptions, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	s := newStack(t, o)
	ctx := context.Background()
	s.bucketFor("bkt", Unversioned)
	m := &naive{keys: map[string][]naiveVersion{}}
	names := []string{"a", "a/b", "a/c", "b", "b/x/y", "b/x/z", "\xff", "ä", "a//", "\x00z"}
	steps := 120
	if testing.Short() {
		steps = 60
	}
	for step := range steps {
		key := names[rnd.IntN(len(names))]
		where := fmt.Sprintf("step %d, key %q, %d", step, key, m.state)
		switch c := rnd.IntN(20); {
		case c < 6:
			size := []int{0, 10, 5000, 5000, 10, 300 << 10}[rnd.IntN(6)]
			b := body(rnd.Uint64(), size)
			put := PutOptions{}
			if rnd.IntN(8) == 0 {
				put.Class = ClassReduced
			}
			if rnd.IntN(4) == 0 {
				put.If.IfNoneMatch = []string{"*"}
			}
			info, err := s.put("bkt", key, b, put)
			if put.If.IfNoneMatch != nil && m.current(key) != nil {
				if !errors.Is(err, ErrPrecondition) {
					t.Fatalf("%s: conditional put: %v", where, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s: put: %v", where, err)
			}
			m.put(key, naiveVersion{id: info.VersionID, body: b})
		case c < 8:
			var whole []byte
			up, err := s.CreateUpload(ctx, "bkt", key, UploadOptions{})
			if err != nil {
				t.Fatalf("%s: upload: %v", where, err)
			}
			var list []CompletedPart
			for i := range 1 + rnd.IntN(3) {
				b := body(rnd.Uint64(), 1+rnd.IntN(60<<10))
				p, err := s.PutPart(ctx, "bkt", key, up.UploadID, i+1, bytes.NewReader(b), PartOptions{Size: int64(len(b))})
				if err != nil {
					t.Fatalf("%s: part: %v", where, err)
				}
				whole = append(whole, b...)
				list = append(list, CompletedPart{Number: i + 1, ETag: p.ETag})
			}
			info, err := s.CompleteUpload(ctx, "bkt", key, up.UploadID, list, CompleteOptions{})
			if err != nil {
				t.Fatalf("%s: complete: %v", where, err)
			}
			m.put(key, naiveVersion{id: info.VersionID, body: whole})
		case c < 10:
			res, err := s.Delete(ctx, "bkt", key, DeleteOptions{})
			if err != nil {
				t.Fatalf("%s: delete: %v", where, err)
			}
			if m.state == Unversioned {
				delete(m.keys, key)
			} else {
				m.put(key, naiveVersion{id: res.VersionID, marker: true})
			}
		case c < 12:
			list := m.keys[key]
			id := NullVersion
			if len(list) > 0 && rnd.IntN(4) > 0 {
				id = list[rnd.IntN(len(list))].id
			}
			if _, err := s.Delete(ctx, "bkt", key, DeleteOptions{VersionID: &id}); err != nil {
				t.Fatalf("%s: delete of version %s: %v", where, id, err)
			}
			m.remove(key, id)
		case c < 14:
			if v := Versioning(1 + rnd.IntN(2)); rnd.IntN(6) == 0 {
				if err := s.SetVersioning(ctx, "bkt", v); err != nil {
					t.Fatal(err)
				}
				m.state = v
			}
		case c < 16:
			src := names[rnd.IntN(len(names))]
			res, err := s.Copy(ctx, "bkt", src, "bkt", key, CopyOptions{ReplaceMeta: true})
			if from := m.current(src); from == nil {
				if !errors.Is(err, ErrNoSuchKey) {
					t.Fatalf("%s: copy of nothing: %v", where, err)
				}
			} else if err != nil {
				t.Fatalf("%s: copy: %v", where, err)
			} else {
				m.put(key, naiveVersion{id: res.Info.VersionID, body: from.body})
			}
		case c < 18:
			checkList(t, s, m, rnd, where)
		default:
			checkKeyAgainst(t, s, m, key, where)
		}
	}
	for _, key := range names {
		checkKeyAgainst(t, s, m, key, "at the end, key "+key)
	}
	checkVersions(t, s, m, rnd)
}

func checkKeyAgainst(t *testing.T, s *stack, m *naive, key, where string) {
	t.Helper()
	info, b, err := s.get("bkt", key, GetOptions{})
	want := m.current(key)
	switch {
	case want == nil:
		var f *Failure
		if !errors.As(err, &f) || f.Reason != ErrNoSuchKey || f.DeleteMarker != (len(m.keys[key]) > 0) {
			t.Fatalf("%s: get: %v", where, err)
		}
	case err != nil || !bytes.Equal(b, want.body) || info.VersionID != want.id:
		t.Fatalf("%s: get: %d bytes of %s, %v; want %d of %s", where, len(b), info.VersionID, err, len(want.body), want.id)
	}
	for _, v := range m.keys[key] {
		_, b, err := s.get("bkt", key, GetOptions{VersionID: &v.id})
		if v.marker {
			if !errors.Is(err, ErrMethodNotAllowed) {
				t.Fatalf("%s: get of delete marker %s: %v", where, v.id, err)
			}
		} else if err != nil || !bytes.Equal(b, v.body) {
			t.Fatalf("%s: get of version %s: %d bytes, %v", where, v.id, len(b), err)
		}
	}
	none := hex.EncodeToString(body(9, 16))
	if _, _, err := s.get("bkt", key, GetOptions{VersionID: &none}); !errors.Is(err, ErrNoSuchVersion) {
		t.Fatalf("%s: get of no version: %v", where, err)
	}
}

func checkList(t *testing.T, s *stack, m *naive, rnd *rand.Rand, where string) {
	t.Helper()
	prefix, delimiter := []string{"", "a", "a/", "b/"}[rnd.IntN(4)], []string{"", "/"}[rnd.IntN(2)]
	limit := 1 + rnd.IntN(4)
	keys, prefixes := m.list(prefix, delimiter)
	var gotKeys, gotPrefixes []string
	after := ""
	for page := 0; ; page++ {
		res, err := s.List(context.Background(), "bkt", ListOptions{Prefix: prefix, Delimiter: delimiter, After: after, Limit: limit})
		if err != nil || page > 100 {
			t.Fatalf("%s: list: page %d, %v", where, page, err)
		}
		for _, o := range res.Objects {
			gotKeys = append(gotKeys, o.Key)
		}
		gotPrefixes = append(gotPrefixes, res.Prefixes...)
		if len(res.Objects)+len(res.Prefixes) > limit {
			t.Fatalf("%s: a page of more than %d", where, limit)
		}
		if !res.Truncated {
			break
		}
		after = res.Next
	}
	if !slices.Equal(keys, gotKeys) || !slices.Equal(prefixes, gotPrefixes) {
		t.Fatalf("%s: list of %q by %q: %q %q, want %q %q", where, prefix, delimiter, gotKeys, gotPrefixes, keys, prefixes)
	}
}

func checkVersions(t *testing.T, s *stack, m *naive, rnd *rand.Rand) {
	t.Helper()
	var want, got []string
	var keys []string
	for k := range m.keys {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		for i, v := range m.keys[k] {
			want = append(want, fmt.Sprintf("%s %s %v %v", k, v.id, v.marker, i == 0))
		}
	}
	o := ListVersionsOptions{Limit: 1 + rnd.IntN(3)}
	for page := 0; ; page++ {
		res, err := s.ListVersions(context.Background(), "bkt", o)
		if err != nil || page > 1000 {
			t.Fatalf("versions: page %d, %v", page, err)
		}
		for _, v := range res.Versions {
			got = append(got, fmt.Sprintf("%s %s %v %v", v.Key, v.VersionID, v.DeleteMarker, v.IsLatest))
		}
		if !res.Truncated {
			break
		}
		o.KeyMarker, o.VersionMarker = res.NextKeyMarker, res.NextVersionMarker
	}
	if !slices.Equal(want, got) {
		t.Fatalf("versions:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDriveLossAndReturn(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	m := &naive{keys: map[string][]naiveVersion{}}
	for round := range 12 {
		down := 1 + rnd.IntN(len(s.down)-1)
		s.down[down].Store(true)
		for range 8 {
			key := fmt.Sprintf("k%d", rnd.IntN(6))
			if rnd.IntN(4) == 0 {
				if _, err := s.Delete(context.Background(), "bkt", key, DeleteOptions{}); err != nil {
					t.Fatalf("round %d: delete with drive %d down: %v", round, down, err)
				}
				delete(m.keys, key)
				continue
			}
			b := body(rnd.Uint64(), []int{100, 300 << 10}[rnd.IntN(2)])
			if _, err := s.put("bkt", key, b, PutOptions{}); err != nil {
				t.Fatalf("round %d: put with drive %d down: %v", round, down, err)
			}
			m.put(key, naiveVersion{body: b, id: NullVersion})
		}
		checkList(t, s, m, rnd, fmt.Sprintf("round %d, drive %d down", round, down))
		for i := range 6 {
			key := fmt.Sprintf("k%d", i)
			_, b, err := s.get("bkt", key, GetOptions{})
			if want := m.current(key); want == nil && !errors.Is(err, ErrNoSuchKey) || want != nil && (err != nil || !bytes.Equal(b, want.body)) {
				t.Fatalf("round %d: get %s with drive %d down: %d bytes, %v", round, key, down, len(b), err)
			}
		}
		s.down[down].Store(false)
	}
	// Two of four away: nothing is written, and promptly so.
	s.down[1].Store(true)
	s.down[2].Store(true)
	read := false
	_, err := s.Put(context.Background(), "bkt", "k0", readerFunc(func(p []byte) (int, error) { read = true; return len(p), nil }), PutOptions{Size: 1 << 20})
	if !errs.Is(err, errs.Unavailable) || read {
		t.Fatalf("put without a quorum: %v, body read: %v", err, read)
	}
	s.down[1].Store(false)
	s.down[2].Store(false)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
