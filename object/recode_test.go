package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// reduce gives REDUCED_REDUNDANCY another profile from now on.
func (s *stack) reduce(k, m uint8) erasure.Profile {
	s.t.Helper()
	p := profileFor(k, m)
	l, err := s.control.Layout().WithReduced(p)
	if err != nil {
		s.t.Fatal(err)
	}
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	s.control.layout = l
	return p
}

// later is a gateway two hours ahead: for it, no multipart object is too young.
func (s *stack) later() *Store {
	s.t.Helper()
	g := s.gateway(s.meta, stackOptions{tune: func(c *Config) { c.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } }})
	s.t.Cleanup(func() {
		if err := g.Close(context.Background()); err != nil {
			s.t.Error(err)
		}
	})
	return g
}

func atOnce(context.Context, int) error { return nil }

// bodyOf is one body that a record names, by itself or in a manifest.
type bodyOf struct {
	seq  uint64
	part int // 0: a body of its own; -1: a manifest
	data metadata.Data
}

// bodies lists the data of all versions of a key, as of one state.
func bodies(t testing.TB, g *Store, bucket, key string) (list []bodyOf) {
	t.Helper()
	ctx := context.Background()
	p, err := g.locate(ctx, "test", bucket, key, false)
	if err != nil {
		t.Fatal(err)
	}
	add := func(v *metadata.Version) {
		if v.Data != nil {
			list = append(list, bodyOf{v.Seq, 0, *v.Data})
		}
		if v.Manifest == nil {
			return
		}
		list = append(list, bodyOf{v.Seq, -1, *v.Manifest})
		parts, err := g.manifestOf(ctx, "test", p, v.Upload, v.Manifest, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range parts {
			list = append(list, bodyOf{v.Seq, x.info.Number, x.data})
		}
	}
	for below := ^uint64(0); ; {
		view, err := g.read(ctx, "test", p, p.object(), metadata.ReadOptions{Query: metadata.Query{Below: below}})
		if err != nil {
			t.Fatal(err)
		}
		if view.State == nil || view.State.Current == nil {
			return list
		}
		if below == ^uint64(0) {
			add(view.State.Current)
			below = view.State.Current.Seq
			continue
		}
		next := rows(view.Versions).below(below)
		if next == nil {
			return list
		}
		add(next)
		below = next.Seq
	}
}

// recodeKey re-codes all versions of a key.
func recodeKey(g *Store, bucket uint64, key string, seqs []uint64, pace func(context.Context, int) error) (n int, err error) {
	for _, seq := range seqs {
		bodies, _, e := g.Recode(context.Background(), metadata.Address{Kind: metadata.KindObject, Bucket: bucket, Key: []byte(key)}, seq, pace)
		n += bodies
		err = errors.Join(err, e)
	}
	return n, err
}

func seqsOf(list []bodyOf) (seqs []uint64) {
	for _, b := range list {
		if !slices.Contains(seqs, b.seq) {
			seqs = append(seqs, b.seq)
		}
	}
	return seqs
}

// upload makes a multipart object of parts of these sizes.
func (s *stack) upload(g *Store, bucket, key string, o UploadOptions, sizes ...int) []byte {
	s.t.Helper()
	ctx := context.Background()
	up, err := g.CreateUpload(ctx, bucket, key, o)
	if err != nil {
		s.t.Fatal(err)
	}
	var list []CompletedPart
	var all []byte
	for i, n := range sizes {
		b := body(uint64(n)+77, n)
		p, err := g.PutPart(ctx, bucket, key, up.UploadID, 2*i+1, bytes.NewReader(b), PartOptions{Size: int64(n)})
		if err != nil {
			s.t.Fatal(err)
		}
		list, all = append(list, CompletedPart{Number: 2*i + 1, ETag: p.ETag}), append(all, b...)
	}
	if _, err := g.CompleteUpload(ctx, bucket, key, up.UploadID, list, CompleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
	return all
}

// seen is all that a client sees of a bucket.
type seen struct {
	Versions []Info
	Current  []Info
	Infos    []Info // by version
	Bodies   [][]byte
	Ranges   [][]byte
	Parts    [][]PartInfo
	Uploads  []Upload
}

func (s *stack) see(bucket string) (x seen) {
	s.t.Helper()
	ctx := context.Background()
	vs, err := s.ListVersions(ctx, bucket, ListVersionsOptions{Limit: 1000})
	if err != nil {
		s.t.Fatal(err)
	}
	ls, err := s.List(ctx, bucket, ListOptions{Limit: 1000})
	if err != nil {
		s.t.Fatal(err)
	}
	up, err := s.ListUploads(ctx, bucket, ListUploadsOptions{Limit: 1000})
	if err != nil {
		s.t.Fatal(err)
	}
	x.Versions, x.Current, x.Uploads = vs.Versions, ls.Objects, up.Uploads
	for _, v := range vs.Versions {
		if v.DeleteMarker {
			continue
		}
		info, b, err := s.get(bucket, v.Key, GetOptions{VersionID: &v.VersionID})
		if err != nil {
			s.t.Fatalf("%s, %s: %v", v.Key, v.VersionID, err)
		}
		x.Infos, x.Bodies = append(x.Infos, info), append(x.Bodies, b)
		if v.Size > 0 {
			_, b, err := s.get(bucket, v.Key, GetOptions{VersionID: &v.VersionID, Range: &Range{First: v.Size / 3, Last: v.Size - v.Size/4 - 1}})
			if err != nil {
				s.t.Fatalf("%s, %s: a range: %v", v.Key, v.VersionID, err)
			}
			x.Ranges = append(x.Ranges, b)
		}
		_, parts, _, err := s.Parts(ctx, bucket, v.Key, &v.VersionID, 0, 1000)
		if err != nil {
			s.t.Fatal(err)
		}
		x.Parts = append(x.Parts, parts)
	}
	return x
}

func TestAReCodedVersionIsTheSameToClients(t *testing.T) {
	s := newStack(t, stackOptions{})
	ctx := context.Background()
	s.bucketFor("bkt", Unversioned)
	rrs := PutOptions{Class: ClassReduced, Tags: tagged("one"), Meta: []metadata.Field{{Name: "m", Value: "x"}}, Checksums: []checksum.Algorithm{checksum.CRC32C}}
	put := func(key string, n int, o PutOptions) {
		t.Helper()
		if _, err := s.put("bkt", key, body(uint64(n), n), o); err != nil {
			t.Fatal(err)
		}
	}
	put("stacked", 3000, rrs) // the null version
	put("without md5", 300<<10, PutOptions{Class: ClassReduced, NoMD5: true})
	if err := s.SetVersioning(ctx, "bkt", Enabled); err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{0, 1, 4096, 4097, 256 << 10, 700 << 10} {
		put("size "+strconv.Itoa(n), n, rrs)
		put("stacked", n+1, PutOptions{Class: ClassReduced})
		put("standard", n+2, PutOptions{})
		if i == 2 {
			if _, err := s.Delete(ctx, "bkt", "stacked", DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.upload(s.Store, "bkt", "parts", UploadOptions{Class: ClassReduced}, 300<<10, 5, 600<<10)
	s.upload(s.Store, "bkt", "parts", UploadOptions{Class: ClassReduced, ChecksumAlgorithm: checksum.SHA256, ChecksumType: checksum.Composite}, 100, 6000)
	s.upload(s.Store, "bkt", "stacked", UploadOptions{Class: ClassReduced}, 5000, 10)
	put("stacked", 12, PutOptions{Class: ClassReduced})
	if _, err := s.CreateUpload(ctx, "bkt", "open", UploadOptions{Class: ClassReduced}); err != nil {
		t.Fatal(err)
	}
	before := s.see("bkt")
	old := make(map[erasure.DataID]bool)
	want := s.reduce(1, 3)
	g := s.later()
	keys := []string{"stacked", "without md5", "standard", "parts"}
	for _, n := range []int{0, 1, 4096, 4097, 256 << 10, 700 << 10} {
		keys = append(keys, "size "+strconv.Itoa(n))
	}
	for _, key := range keys {
		list := bodies(t, g, "bkt", key)
		todo := 0
		for _, b := range list {
			if key != "standard" && b.part >= 0 {
				old[b.data.ID] = true
				todo++
			}
		}
		if n, err := recodeKey(g, 1, key, seqsOf(list), atOnce); err != nil || n != todo {
			t.Fatalf("%s: %d bodies were re-coded, %d were to be: %v", key, n, todo, err)
		}
		if n, err := recodeKey(g, 1, key, seqsOf(list), atOnce); err != nil || n != 0 {
			t.Fatalf("%s: %d bodies were re-coded again: %v", key, n, err)
		}
		for _, b := range bodies(t, g, "bkt", key) {
			p := want
			if key == "standard" || b.part < 0 {
				p = s.control.Layout().Profile()
			}
			if b.data.Profile != p || old[b.data.ID] {
				t.Errorf("%s: %+v, want %s", key, b, p)
			}
		}
	}
	if after := s.see("bkt"); !reflect.DeepEqual(before, after) {
		t.Errorf("clients see something else:\n%+v\n%+v", before.Infos, after.Infos)
	}
	s.collectUntil("re-coded", g, func() []string { return append(s.leaks(), s.shardsOf(old)...) })
	s.Store.manifs = manifestCache{} // the old lists of parts are gone, too
	if after := s.see("bkt"); !reflect.DeepEqual(before, after) {
		t.Errorf("once the old data are gone clients see something else:\n%+v\n%+v", before.Infos, after.Infos)
	}
}

// shardsOf lists the shards of data that drives have.
func (s *stack) shardsOf(data map[erasure.DataID]bool) (list []string) {
	s.t.Helper()
	for num := range s.down {
		d, ok := s.set.Shards(uint16(num))
		if !ok {
			continue
		}
		rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 10000)
		if err != nil {
			s.t.Fatal(err)
		}
		for i := range rows {
			if data[rows[i].ID.Data] {
				list = append(list, fmt.Sprintf("old data %v on drive %d", rows[i].ID, num))
			}
		}
	}
	return list
}

// What another gateway does while a version is being re-coded counts; and what turned out to be for nothing is
// collected.
func TestReCodingDuringOtherWrites(t *testing.T) {
	type scene struct {
		name       string
		versioning Versioning
		parts      bool
		meanwhile  func(s *stack, bucket, id string) error
		recoded    bool // the version is there, and re-coded
		gone       bool // the version is gone
	}
	ctx := context.Background()
	overwrite := func(s *stack, bucket, _ string) error {
		_, err := s.put(bucket, "k", body(9, 9000), PutOptions{Class: ClassReduced})
		return err
	}
	remove := func(s *stack, bucket, id string) error {
		o := DeleteOptions{}
		if id != NullVersion {
			o.VersionID = &id
		}
		_, err := s.Delete(ctx, bucket, "k", o)
		return err
	}
	marker := func(s *stack, bucket, _ string) error {
		_, err := s.Delete(ctx, bucket, "k", DeleteOptions{})
		return err
	}
	tag := func(s *stack, bucket, id string) error {
		_, err := s.Modify(ctx, bucket, "k", &id, func(v *metadata.Version) error { v.Tags = tagged("changed"); return nil })
		return err
	}
	again := func(s *stack, bucket, _ string) error {
		b, _ := s.control.Bucket(bucket)
		n, err := recodeKey(s.later(), b.ID, "k", seqsOf(bodies(s.t, s.Store, bucket, "k")), atOnce)
		if err == nil && n == 0 {
			err = errors.New("the other gateway did nothing")
		}
		return err
	}
	var list []scene
	for _, parts := range []bool{false, true} {
		for _, c := range []scene{
			{"overwritten", Unversioned, parts, overwrite, false, true},
			{"deleted", Unversioned, parts, remove, false, true},
			{"covered", Enabled, parts, overwrite, true, false},
			{"covered by a marker", Enabled, parts, marker, true, false},
			{"deleted by its id", Enabled, parts, remove, false, true},
			{"changed", Enabled, parts, tag, true, false},
			{"re-coded by another", Enabled, parts, again, true, false},
		} {
			if parts {
				c.name += ", in parts"
			}
			list = append(list, c)
		}
	}
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) {
			s := newStack(t, stackOptions{})
			s.bucketFor("bkt", c.versioning)
			var want []byte
			if c.parts {
				want = s.upload(s.Store, "bkt", "k", UploadOptions{Class: ClassReduced}, 300<<10, 200<<10, 400<<10)
			} else {
				want = body(4, 900<<10)
				if _, err := s.put("bkt", "k", want, PutOptions{Class: ClassReduced}); err != nil {
					t.Fatal(err)
				}
			}
			was, _, err := s.get("bkt", "k", GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			p := s.reduce(2, 2)
			g := s.later()
			ran := 0
			_, err = recodeKey(g, 1, "k", seqsOf(bodies(t, g, "bkt", "k")), func(context.Context, int) error {
				if ran++; ran == 3 {
					if err := c.meanwhile(s, "bkt", was.VersionID); err != nil {
						t.Error(err)
					}
				}
				return nil
			})
			if err != nil || ran < 3 {
				t.Fatalf("after %d steps: %v", ran, err)
			}
			look := func() {
				t.Helper()
				info, got, err := s.get("bkt", "k", GetOptions{VersionID: &was.VersionID})
				switch {
				case c.gone && err == nil && bytes.Equal(got, want):
					t.Error("what was replaced or deleted is back")
				case !c.gone && (err != nil || !bytes.Equal(got, want) || info.ETag != was.ETag || !info.ModTime.Equal(was.ModTime)):
					t.Errorf("%+v, %d bytes, %v", info, len(got), err)
				}
				if c.name == "changed" && !slices.Equal(info.Tags, tagged("changed")) {
					t.Errorf("a change made meanwhile is lost: %v", info.Tags)
				}
			}
			look()
			for _, b := range bodies(t, g, "bkt", "k") {
				if c.recoded && b.part >= 0 && b.data.Size > 9000 && b.data.Profile != p {
					t.Errorf("%+v is not re-coded", b)
				}
			}
			s.collectWith(c.name, g)
			look()
		})
	}
}

func TestReCodingWaitsForDrivesThatAreAway(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	put := map[string][]byte{"small": body(1, 900), "large": body(2, 700<<10)}
	for key, b := range put {
		if _, err := s.put("bkt", key, b, PutOptions{Class: ClassReduced}); err != nil {
			t.Fatal(err)
		}
	}
	put["parts"] = s.upload(s.Store, "bkt", "parts", UploadOptions{Class: ClassReduced}, 300<<10, 100)
	want := s.reduce(2, 2)
	g := s.later()
	for num := range s.down {
		if _, ok := s.set.Shards(uint16(num)); !ok {
			continue
		}
		s.down[num].Store(true)
		for key, b := range put {
			before := bodies(t, g, "bkt", key)
			if n, err := recodeKey(g, 1, key, seqsOf(before), atOnce); !errs.Is(err, errs.Unavailable) && n == 0 {
				t.Fatalf("%s, drive %d away: %v", key, num, err)
			}
			if after := bodies(t, g, "bkt", key); !reflect.DeepEqual(before, after) {
				t.Fatalf("%s, drive %d away: it was re-coded with fewer shards", key, num)
			}
			if _, got, err := s.get("bkt", key, GetOptions{}); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%s: %d bytes, %v", key, len(got), err)
			}
		}
		s.down[num].Store(false)
	}
	for key, b := range put {
		if _, err := recodeKey(g, 1, key, seqsOf(bodies(t, g, "bkt", key)), atOnce); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		for _, x := range bodies(t, g, "bkt", key) {
			if x.data.Profile != want {
				t.Errorf("%s: %+v", key, x)
			}
		}
		if _, got, err := s.get("bkt", key, GetOptions{}); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%s: %d bytes, %v", key, len(got), err)
		}
	}
	s.collectWith("re-coded", g)
}

// A repeated completion finds an object that was just completed, so that is not re-coded.
func TestAYoungMultipartObjectIsNotReCoded(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	s.upload(s.Store, "bkt", "k", UploadOptions{Class: ClassReduced}, 100, 200)
	s.reduce(2, 2)
	if n, err := recodeKey(s.Store, 1, "k", seqsOf(bodies(t, s.Store, "bkt", "k")), atOnce); n != 0 || !errs.Is(errors.Unwrap(err), errs.Busy) && !errs.Is(err, errs.Busy) {
		t.Fatalf("%d bodies, %v", n, err)
	}
}

// The object of an upload may be there, and the upload not know of it yet, when it is re-coded. Who repeats the completion
// then makes no second version, of data that is gone.
func TestAReCodedObjectIsNotCompletedAgain(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Enabled)
	ctx := context.Background()
	up, err := s.CreateUpload(ctx, "bkt", "k", UploadOptions{Class: ClassReduced})
	if err != nil {
		t.Fatal(err)
	}
	want := body(3, 300<<10)
	part, err := s.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader(want), PartOptions{Size: int64(len(want))})
	if err != nil {
		t.Fatal(err)
	}
	list := []CompletedPart{{Number: 1, ETag: part.ETag}}
	// The completion ends behind the commit of the object.
	p, id, st, err := s.uploadPlace(ctx, "test", "bkt", "k", up.UploadID, true)
	if err != nil {
		t.Fatal(err)
	}
	etag, err := listETag("test", p, up.UploadID, list)
	if err == nil {
		st, err = s.beginCompletion(ctx, "test", p, id, st, list, etag, &CompleteOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.update(ctx, "test", p, p.object(), metadata.Operation{ID: completionOp(id)},
		func(base *metadata.State, r rows, rm *removal) (*metadata.Change, error) {
			next := *st.Current.Completed
			return push(base, r, &next, p.bucket.Versioning, newSalt(), time.Now(), rm)
		})
	if err != nil {
		t.Fatal(err)
	}
	old := make(map[erasure.DataID]bool)
	for _, b := range bodies(t, s.Store, "bkt", "k") {
		old[b.data.ID] = true
	}
	s.reduce(2, 2)
	g := s.later()
	if n, err := recodeKey(g, 1, "k", seqsOf(bodies(t, g, "bkt", "k")), atOnce); n != 1 || err != nil {
		t.Fatalf("%d bodies, %v", n, err)
	}
	again := func(wantErr error) {
		t.Helper()
		if _, err := s.CompleteUpload(ctx, "bkt", "k", up.UploadID, list, CompleteOptions{}); !errors.Is(err, wantErr) {
			t.Errorf("a repeated completion: %v", err)
		}
		if vs, err := s.ListVersions(ctx, "bkt", ListVersionsOptions{Limit: 10}); err != nil || len(vs.Versions) != 1 {
			t.Errorf("versions: %+v, %v", vs.Versions, err)
		}
		if _, got, err := s.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	again(nil)
	s.collectUntil("re-coded", g, func() []string { return append(s.leaks(), s.shardsOf(old)...) })
	again(ErrNoSuchUpload)
}

// meddler is a writer that, behind its first bytes, lets something happen.
type meddler struct {
	w    io.Writer
	once sync.Once
	f    func()
}

func (m *meddler) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.once.Do(m.f)
	return n, err
}

// Who reads slowly goes on in the new data where the old data are gone.
func TestAReaderOutlivesTheDataThatItBeganWith(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []int // of parts; one: a PUT
		o     GetOptions
	}{
		{"of several chunks", []int{2 << 20}, GetOptions{}},
		{"of several chunks, a range", []int{2 << 20}, GetOptions{Range: &Range{First: 1000, Last: 1900 << 10}}},
		{"of parts", []int{700 << 10, 3000, 300 << 10, 600 << 10}, GetOptions{}},
		{"of parts, a range", []int{700 << 10, 3000, 300 << 10, 600 << 10}, GetOptions{Range: &Range{First: 300 << 10, Last: 1500 << 10}}},
		{"one part", []int{100, 1400 << 10}, GetOptions{PartNumber: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStack(t, stackOptions{})
			s.bucketFor("bkt", Enabled)
			if len(c.sizes) > 1 {
				s.upload(s.Store, "bkt", "k", UploadOptions{Class: ClassReduced}, c.sizes...)
			} else if _, err := s.put("bkt", "k", body(5, c.sizes[0]), PutOptions{Class: ClassReduced}); err != nil {
				t.Fatal(err)
			}
			_, want, err := s.get("bkt", "k", c.o)
			if err != nil {
				t.Fatal(err)
			}
			s.reduce(2, 2)
			g := s.later()
			reader := s.gateway(s.meta, stackOptions{tune: func(c *Config) { c.CacheBytes = -1 }})
			defer reader.Close(context.Background()) //nolint:errcheck // nothing runs
			obj, err := reader.Get(context.Background(), "bkt", "k", c.o)
			if err != nil {
				t.Fatal(err)
			}
			defer obj.Close() //nolint:errcheck // only read
			var got bytes.Buffer
			n, err := obj.WriteTo(&meddler{w: &got, f: func() {
				old := make(map[erasure.DataID]bool)
				for _, b := range bodies(t, g, "bkt", "k") {
					old[b.data.ID] = true
				}
				if _, err := recodeKey(g, 1, "k", seqsOf(bodies(t, g, "bkt", "k")), atOnce); err != nil {
					t.Error(err)
				}
				s.collectUntil("under a reader", g, func() []string { return s.shardsOf(old) })
			}})
			if err != nil || n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("%d of %d bytes: %v", n, len(want), err)
			}
			if reader.Stats().Rereads == 0 {
				t.Error("the reader did not need the new data")
			}
		})
	}
}

// An overwrite under a reader is not the same version: the answer breaks off.
func TestAReaderDoesNotGoOnInAnotherVersion(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	want := body(5, 2<<20)
	if _, err := s.put("bkt", "k", want, PutOptions{}); err != nil {
		t.Fatal(err)
	}
	obj, err := s.Get(context.Background(), "bkt", "k", GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer obj.Close() //nolint:errcheck // only read
	var got bytes.Buffer
	n, err := obj.WriteTo(&meddler{w: &got, f: func() {
		if _, err := s.put("bkt", "k", want, PutOptions{}); err != nil { // the same bytes, even
			t.Error(err)
		}
		s.collectWith("under a reader", s.Store)
	}})
	if err == nil || n >= int64(len(want)) || !bytes.HasPrefix(want, got.Bytes()) {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// A process that ends in the middle of a re-coding leaves the object as it is. Another one goes on, or, if the
// object is gone by then, what was made is collected.
func TestAReCodingThatIsCutShort(t *testing.T) {
	for _, remove := range []bool{false, true} {
		for _, sizes := range [][]int{{900 << 10}, {300 << 10, 3000, 280 << 10}} {
			t.Run(fmt.Sprintf("%d parts, object removed %v", len(sizes), remove), func(t *testing.T) {
				done := false
				for at := int64(0); !done && !t.Failed(); at++ {
					done = cutShort(t, at, sizes, remove)
					if at > 500 {
						t.Fatal("it never runs to its end")
					}
				}
			})
		}
	}
}

func cutShort(t *testing.T, at int64, sizes []int, remove bool) (done bool) {
	t.Helper()
	s := newStack(t, stackOptions{})
	defer s.close()
	s.bucketFor("bkt", Unversioned)
	want := body(5, sizes[0])
	if len(sizes) > 1 {
		want = s.upload(s.Store, "bkt", "k", UploadOptions{Class: ClassReduced}, sizes...)
	} else if _, err := s.put("bkt", "k", want, PutOptions{Class: ClassReduced}); err != nil {
		t.Fatal(err)
	}
	p := s.reduce(2, 2)
	seqs := seqsOf(bodies(t, s.Store, "bkt", "k"))
	later := func() *Store {
		return s.gateway(s.meta, stackOptions{tune: func(c *Config) { c.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } }})
	}
	first := later()
	// From its at-th message to a drive on, the first process reaches nobody any more. Messages that are out arrive.
	var n atomic.Int64
	gone := errs.E("test", errs.Drive, "the process has ended")
	fault := func(uint16, string) error {
		if n.Add(1) > 4*at {
			return gone
		}
		return nil
	}
	s.fault.Store(&fault)
	_, err := recodeKey(first, 1, "k", seqs, atOnce)
	s.fault.Store(nil)
	done = n.Load() <= 4*at
	if done && err != nil {
		t.Fatalf("undisturbed: %v", err)
	}
	if err := first.Close(context.Background()); err != nil {
		t.Error(err)
	}
	name := fmt.Sprintf("cut off after %d messages (%v)", 4*at, err)
	if _, got, err := s.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, %v", name, len(got), err)
	}
	second := later()
	defer second.Close(context.Background()) //nolint:errcheck // nothing runs
	if remove {
		if _, err := s.Delete(context.Background(), "bkt", "k", DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	} else if _, err := recodeKey(second, 1, "k", seqs, atOnce); err != nil {
		t.Fatalf("%s: it cannot be gone on with: %v", name, err)
	}
	s.collectWith(name, second)
	if !remove {
		for _, b := range bodies(t, second, "bkt", "k") {
			if b.data.Profile != p {
				t.Errorf("%s: %+v", name, b)
			}
		}
		if _, got, err := s.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s, and gone on with: %d bytes, %v", name, len(got), err)
		}
	}
	return done
}

func TestAReCodingUnderWhichAnyOperationFailsLosesNothing(t *testing.T) {
	for _, sizes := range [][]int{{900}, {600 << 10}, {300 << 10, 900}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			total := recodeWithFault(t, -1, sizes)
			step := int64(1)
			if !*faultAll {
				step = max(1, total/int64(max(*faultSome, 1)))
			}
			tried := 0
			for i := int64(0); i < total && !t.Failed(); i += step {
				recodeWithFault(t, i, sizes)
				tried++
			}
			t.Logf("%d of %d operations were failed in turn", tried, total)
			if total == 0 {
				t.Error("a re-coding changes nothing in the file system")
			}
		})
	}
}

// recodeWithFault re-codes while operation at of the file system fails, and returns how many there were. Then the
// process begins anew over healthy drives, and goes on.
func recodeWithFault(t *testing.T, at int64, sizes []int) int64 {
	t.Helper()
	f := new(opFault)
	f.at.Store(at)
	fs := vfs.NewMem()
	s := newStack(t, stackOptions{fs: errorfs.Wrap(fs, f)})
	s.bucketFor("bkt", Unversioned)
	want := body(5, sizes[0])
	if len(sizes) > 1 {
		want = s.upload(s.Store, "bkt", "k", UploadOptions{Class: ClassReduced}, sizes...)
	} else if _, err := s.put("bkt", "k", want, PutOptions{Class: ClassReduced}); err != nil {
		t.Fatal(err)
	}
	p := s.reduce(2, 2)
	seqs := seqsOf(bodies(t, s.Store, "bkt", "k"))
	g := s.gateway(s.meta, stackOptions{tune: func(c *Config) { c.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } }})
	f.armed.Store(true)
	_, failed := recodeKey(g, 1, "k", seqs, atOnce)
	f.armed.Store(false)
	n := f.n.Load()
	what, _ := f.what.Load().(string)
	name := fmt.Sprintf("operation %d of %d failed (%s), answered with %v", at, n, what, failed)
	if _, got, err := s.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, %v", name, len(got), err)
	}
	if err := g.Close(context.Background()); err != nil {
		t.Error(err)
	}
	s.close()
	again := s.reopen(fs, 2*time.Hour)
	defer again.close()
	if _, got, err := again.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s, and after a restart: %d bytes, %v", name, len(got), err)
	}
	if _, err := recodeKey(again.Store, 1, "k", seqs, atOnce); err != nil {
		t.Fatalf("%s: it cannot be gone on with: %v", name, err)
	}
	again.collectWith(name, again.Store)
	for _, b := range bodies(t, again.Store, "bkt", "k") {
		if b.data.Profile != p {
			t.Errorf("%s: %+v", name, b)
		}
	}
	if _, got, err := again.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s, and after the collection: %d bytes, %v", name, len(got), err)
	}
	return n
}
