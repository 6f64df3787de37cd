package object

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

func TestBucketNames(t *testing.T) {
	for name, want := range map[string]bool{
		"abc": true, "a-b.c1": true, "1.2.3": true, strings.Repeat("a", 63): true, "docexamplewebsite.com": true,
		"": false, "ab": false, strings.Repeat("a", 64): false, "Abc": false, "a_b": false, "-ab": false, "ab-": false, ".ab": false, "ab.": false,
		"a..b": false, "192.168.5.4": false, "999.1.1.1": false, "xn--abc": false, "sthree-abc": false, "amzn-s3-demo-x": false,
		"abc-s3alias": false, "abc--ol-s3": false, "abc--x-s3": false, "abc.mrap": false, "abc--table-s3": false, "äbc": false, "a/b": false,
	} {
		if got := ValidBucketName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestConditions(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	v := &metadata.Version{Kind: metadata.VersionObject, ETag: "aa", ModTime: at.UnixNano(), Size: 5}
	five, six := int64(5), int64(6)
	for _, c := range []struct {
		c             Conditions
		read, write   *Reason
		absent, erase *Reason // write to nothing, delete of v
	}{
		{c: Conditions{}},
		{c: Conditions{IfMatch: []string{"aa"}}, absent: ErrNoSuchKey},
		{c: Conditions{IfMatch: []string{"*"}}, absent: ErrNoSuchKey},
		{c: Conditions{IfMatch: []string{`"aa"`, "bb"}}, absent: ErrNoSuchKey},
		{c: Conditions{IfMatch: []string{"bb"}}, read: ErrPrecondition, write: ErrPrecondition, absent: ErrNoSuchKey, erase: ErrPrecondition},
		{c: Conditions{IfNoneMatch: []string{"*"}}, read: ErrNotModified, write: ErrPrecondition},
		{c: Conditions{IfNoneMatch: []string{"bb"}}},
		{c: Conditions{IfModifiedSince: at}, read: ErrNotModified},
		{c: Conditions{IfModifiedSince: at.Add(-time.Second)}},
		{c: Conditions{IfUnmodifiedSince: at}},
		{c: Conditions{IfUnmodifiedSince: at.Add(-time.Second)}, read: ErrPrecondition},
		{c: Conditions{IfMatch: []string{"aa"}, IfUnmodifiedSince: at.Add(-time.Hour)}, absent: ErrNoSuchKey},
		{c: Conditions{IfNoneMatch: []string{"bb"}, IfModifiedSince: at}},
		{c: Conditions{MatchSize: &five}},
		{c: Conditions{MatchSize: &six}, erase: ErrPrecondition},
		{c: Conditions{MatchModTime: at.Truncate(time.Second)}},
		{c: Conditions{MatchModTime: at.Add(time.Second)}, erase: ErrPrecondition},
	} {
		for what, got := range map[string][2]*Reason{"read": {c.c.checkRead(v), c.read}, "write": {c.c.checkWrite(v), c.write},
			"write to nothing": {c.c.checkWrite(nil), c.absent}, "delete": {c.c.checkDelete(v), c.erase}} {
			if got[0] != got[1] {
				t.Errorf("%+v: %s: %v, want %v", c.c, what, got[0], got[1])
			}
		}
	}
}

func TestHasher(t *testing.T) {
	pool := bufpool.New(bufpool.Options{Poison: true})
	for _, size := range []int{0, 1, hashBlock - 1, hashBeside, hashBeside + hashBlock + 7, 3 << 20} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"plain": func(r io.Reader) io.Reader { return r }, "halves": iotest.HalfReader, "with EOF": iotest.DataErrReader} {
			b := body(uint64(size), size)
			h := newHasher(pool, wrap(bytes.NewReader(b)), int64(size), []checksum.Algorithm{checksum.SHA256, checksum.CRC32C}, false)
			var got bytes.Buffer
			if _, err := io.Copy(&got, struct{ io.Reader }{h}); err != nil {
				t.Fatal(err)
			}
			sums, err := h.finish()
			h.close()
			want := md5.Sum(b)
			if err != nil || !bytes.Equal(got.Bytes(), b) || !bytes.Equal(sums.MD5, want[:]) ||
				!bytes.Equal(sums.Checksums[0].Value, checksum.SHA256.Sum(b)) || !bytes.Equal(sums.Checksums[1].Value, checksum.CRC32C.Sum(b)) {
				t.Errorf("%d bytes, %s: wrong sums or bytes, %v", size, name, err)
			}
		}
	}
	if st := pool.Stats(); st.Buffers != 0 {
		t.Errorf("%d buffers were not given back", st.Buffers)
	}
}

func TestRecordDecisions(t *testing.T) {
	now := time.Unix(100, 0)
	rm := new(removal)
	var salt [8]byte
	obj := func(upload byte) *metadata.Version {
		v := &metadata.Version{Kind: metadata.VersionObject, Data: &metadata.Data{ID: erasure.NewDataID()}}
		v.Upload[0] = upload
		return v
	}
	state := func(c *metadata.Change) *metadata.State {
		return &metadata.State{Current: c.Current, Older: c.Older, NextSeq: c.NextSeq, NullSeq: c.NullSeq}
	}
	first, err := push(nil, nil, obj(0), Unversioned, salt, now, rm)
	if err != nil || first.Current.Seq != 1 || first.NullSeq != 1 || first.Older != 0 || len(first.Dead) != 0 {
		t.Fatalf("first: %+v, %v", first, err)
	}
	// A clock that went back does not show.
	second, err := push(state(first), nil, obj(7), Enabled, salt, now.Add(-time.Hour), rm)
	if err != nil || second.Older != 1 || len(second.Put) != 1 || second.NullSeq != 1 || second.Current.ModTime != now.UnixNano() {
		t.Fatalf("second: %+v, %v", second, err)
	}
	// The null version lies among the rows: it is asked for.
	var row *needRow
	if _, err := push(state(second), nil, obj(0), Suspended, salt, now, rm); !errors.As(err, &row) || row.seq != 1 {
		t.Fatalf("null version among the rows: %v", err)
	}
	// The version that an upload made is not moved before the upload says that it was completed.
	var up *needCompleted
	if _, err := push(state(second), second.Put, obj(0), Suspended, salt, now, rm); !errors.As(err, &up) || up.upload[0] != 7 {
		t.Fatalf("version of an upload: %v", err)
	}
	rm.add(up.upload)
	third, err := push(state(second), second.Put, obj(0), Suspended, salt, now, rm)
	if err != nil || third.Older != 1 || len(third.Drop) != 1 || len(third.Put) != 1 || len(third.Dead) != 1 || third.NullSeq != 3 {
		t.Fatalf("third: %+v, %v", third, err)
	}
	// Removing the current version promotes the newest row.
	fourth, err := removeVersion(state(third), third.Put, third.Current, rm)
	if err != nil || fourth.Current.Seq != 2 || fourth.Older != 0 || fourth.NullSeq != 0 || len(fourth.Drop) != 1 {
		t.Fatalf("fourth: %+v, %v", fourth, err)
	}
	fifth, err := removeVersion(state(fourth), nil, fourth.Current, rm)
	if err != nil || fifth.Current != nil || fifth.Older != 0 {
		t.Fatalf("fifth: %+v, %v", fifth, err)
	}
	if _, err := deleteCurrent(state(fifth), nil, nil, Unversioned, salt, now, rm); !errors.As(err, &nothing{}) {
		t.Fatalf("delete of a tombstone: %v", err)
	}
	// Who has not heard yet that versions are kept changes none of them.
	for _, c := range []struct {
		name   string
		of     *metadata.Change
		refuse bool
	}{{"a null version", first, false}, {"a version with an id", second, true}, {"a null version above another", third, true}} {
		_, put := push(state(c.of), nil, obj(0), Unversioned, salt, now, rm)
		_, del := deleteCurrent(state(c.of), nil, nil, Unversioned, salt, now, rm)
		if errs.Is(put, errs.Unavailable) != c.refuse || errs.Is(del, errs.Unavailable) != c.refuse {
			t.Errorf("over %s: put %v, delete %v", c.name, put, del)
		}
	}
	if fifth.NextSeq != 4 {
		t.Errorf("sequences must never come again: next is %d", fifth.NextSeq)
	}
}

func sampleManifest(n int) []manifestPart {
	var parts []manifestPart
	off := int64(0)
	for i := range n {
		size := int64(i*1000 + 1)
		parts = append(parts, manifestPart{
			info: PartInfo{Number: i + 1, Offset: off, Size: size, ETag: fmt.Sprintf("%032x", i), Checksums: []metadata.Checksum{{Algorithm: 2, Value: []byte{1, 2, 3, byte(i)}}}},
			data: metadata.Data{ID: erasure.NewDataID(), Profile: erasure.Profile{Data: 2, Parity: 2}, Size: size, ChunkSize: 64 << 20},
		})
		off += size
	}
	return parts
}

func TestManifestRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 300, MaxParts} {
		parts := sampleManifest(n)
		b := encodeManifest(parts)
		got, err := decodeManifest(b)
		if err != nil || len(got) != n || fmt.Sprint(got) != fmt.Sprint(parts) {
			t.Fatalf("%d parts: %v", n, err)
		}
		for _, i := range []int{0, 4, len(b) / 2, len(b) - 1} {
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if _, err := decodeManifest(bad); !errs.Is(err, errs.Corrupt) {
				t.Errorf("%d parts, byte %d flipped: %v", n, i, err)
			}
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add(encodeManifest(sampleManifest(3)))
	f.Add([]byte("OSMF\x01\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := decodeManifest(b)
		if err != nil {
			return
		}
		again, err := decodeManifest(encodeManifest(parts))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(parts) {
			t.Fatalf("a manifest does not survive: %v", err)
		}
	})
}

func TestBlockCacheAdmitsWhatIsAskedForTwice(t *testing.T) {
	c := newBlockCache(1 << 20)
	defer c.close()
	id := erasure.NewDataID()
	want := body(1, 1000)
	for i := range 3 {
		if p, release, ok := c.Get(id, 1, 2); ok {
			if i < 2 {
				t.Errorf("round %d: a hit", i)
			}
			if !bytes.Equal(p, want) {
				t.Error("other bytes")
			}
			release()
		} else if i == 2 {
			t.Error("the third read missed")
		}
		c.Put(id, 1, 2, want)
		c.c.Wait()
	}
	if _, _, ok := c.Get(id, 2, 1); ok {
		t.Error("another block was found")
	}
}
