package object

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
)

func TestPutGetOfEverySize(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	for i, n := range []int{0, 1, 100, 4096, 4097, 200 << 10, 256 << 10, 256<<10 + 1, 900 << 10} {
		want := body(uint64(i), n)
		info, err := s.put("bkt", "key", want, PutOptions{Checksums: []checksum.Algorithm{checksum.CRC32C, checksum.SHA256}})
		if err != nil {
			t.Fatalf("put of %d bytes: %v", n, err)
		}
		sum := md5.Sum(want)
		if info.ETag != hex.EncodeToString(sum[:]) || info.Size != int64(n) || info.VersionID != NullVersion {
			t.Errorf("put of %d bytes says %+v", n, info)
		}
		if !bytes.Equal(info.Checksums[0].Value, checksum.CRC32C.Sum(want)) || !bytes.Equal(info.Checksums[1].Value, checksum.SHA256.Sum(want)) {
			t.Errorf("put of %d bytes has wrong checksums", n)
		}
		for range 3 { // the third read finds its blocks in the cache
			got, b, err := s.get("bkt", "key", GetOptions{})
			if err != nil || !bytes.Equal(b, want) || got.ETag != info.ETag {
				t.Fatalf("get of %d bytes: %d bytes, %v", n, len(b), err)
			}
		}
		for _, r := range []Range{{First: 0, Last: 0}, {First: 1, Last: 5}, {First: int64(n) / 2, Last: -1}, {Suffix: 7}, {First: int64(n) - 1, Last: int64(n) + 9}} {
			off, length, ok := r.resolve(int64(n))
			_, b, err := s.get("bkt", "key", GetOptions{Range: &r})
			if !ok {
				if !errors.Is(err, ErrInvalidRange) {
					t.Errorf("range %+v of %d bytes: %v", r, n, err)
				}
				continue
			}
			if err != nil || !bytes.Equal(b, want[off:off+length]) {
				t.Errorf("range %+v of %d bytes: %d bytes, %v", r, n, len(b), err)
			}
		}
	}
	if st := s.Stats(); st.CacheHits == 0 {
		t.Errorf("nothing was served from the cache: %+v", st)
	}
}

func TestDeleteAndListUnversioned(t *testing.T) {
	s := newStack(t, stackOptions{})
	ctx := context.Background()
	s.bucketFor("bkt", Unversioned)
	for _, k := range []string{"a", "b/1", "b/2", "c"} {
		if _, err := s.put("bkt", k, []byte(k), PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	res, err := s.List(ctx, "bkt", ListOptions{Delimiter: "/", Limit: 1000})
	if err != nil || len(res.Objects) != 2 || len(res.Prefixes) != 1 || res.Prefixes[0] != "b/" || res.Truncated {
		t.Fatalf("list: %+v, %v", res, err)
	}
	if _, err := s.Delete(ctx, "bkt", "a", DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(ctx, "bkt", "never", DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.get("bkt", "a", GetOptions{}); !errors.Is(err, ErrNoSuchKey) || !errs.Is(err, errs.NotFound) {
		t.Fatalf("get of a deleted key: %v", err)
	}
	if err := s.DeleteBucket(ctx, "bkt"); !errors.Is(err, ErrBucketNotEmpty) {
		t.Fatalf("delete of a full bucket: %v", err)
	}
	out, err := s.DeleteMany(ctx, "bkt", []DeleteRequest{{Key: "b/1"}, {Key: "b/2"}, {Key: "c"}, {Key: ""}})
	if err != nil || out[0].Err != nil || out[1].Err != nil || out[2].Err != nil || out[3].Err == nil {
		t.Fatalf("delete of many: %+v, %v", out, err)
	}
	if _, err := s.CreateUpload(ctx, "bkt", "left", UploadOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteBucket(ctx, "bkt"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.put("bkt", "a", nil, PutOptions{}); !errors.Is(err, ErrNoSuchBucket) {
		t.Fatalf("put into a deleted bucket: %v", err)
	}
	s.bucketFor("bkt", Unversioned)
	if res, err := s.List(ctx, "bkt", ListOptions{Limit: 10}); err != nil || len(res.Objects) != 0 {
		t.Fatalf("the new bucket of the same name has %+v, %v", res, err)
	}
}

func TestMultipart(t *testing.T) {
	s := newStack(t, stackOptions{})
	ctx := context.Background()
	s.bucketFor("bkt", Unversioned)
	up, err := s.CreateUpload(ctx, "bkt", "big", UploadOptions{ChecksumAlgorithm: checksum.CRC32C, ChecksumType: checksum.FullObject})
	if err != nil {
		t.Fatal(err)
	}
	var whole []byte
	var list []CompletedPart
	for i, n := range []int{300 << 10, 10, 600 << 10, 1, 77} {
		b := body(uint64(i), n)
		for range 2 { // the second one replaces the first
			p, err := s.PutPart(ctx, "bkt", "big", up.UploadID, 2*i+1, bytes.NewReader(b), PartOptions{Size: int64(n)})
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == i {
				list = append(list, CompletedPart{Number: 2*i + 1, ETag: p.ETag, Checksums: p.Checksums})
			}
		}
		whole = append(whole, b...)
	}
	parts, err := s.ListParts(ctx, "bkt", "big", up.UploadID, 1, 2)
	if err != nil || len(parts.Parts) != 2 || parts.Parts[0].Number != 3 || !parts.Truncated || parts.Next != 5 {
		t.Fatalf("parts: %+v, %v", parts, err)
	}
	ups, err := s.ListUploads(ctx, "bkt", ListUploadsOptions{Limit: 10})
	if err != nil || len(ups.Uploads) != 1 || ups.Uploads[0].UploadID != up.UploadID {
		t.Fatalf("uploads: %+v, %v", ups, err)
	}
	want := checksum.CRC32C.Sum(whole)
	info, err := s.CompleteUpload(ctx, "bkt", "big", up.UploadID, list, CompleteOptions{})
	if err != nil || info.Size != int64(len(whole)) || !bytes.Equal(info.Checksums[0].Value, want) {
		t.Fatalf("complete: %+v, %v", info, err)
	}
	again, err := s.CompleteUpload(ctx, "bkt", "big", up.UploadID, list, CompleteOptions{})
	if err != nil || again.ETag != info.ETag || again.ModTime != info.ModTime {
		t.Fatalf("complete again: %+v, %v", again, err)
	}
	if _, err := s.CompleteUpload(ctx, "bkt", "big", up.UploadID, list[:1], CompleteOptions{}); !errors.Is(err, ErrNoSuchUpload) {
		t.Fatalf("complete with another list: %v", err)
	}
	if err := s.AbortUpload(ctx, "bkt", "big", up.UploadID); !errors.Is(err, ErrNoSuchUpload) {
		t.Fatalf("abort of a completed upload: %v", err)
	}
	_, got, err := s.get("bkt", "big", GetOptions{})
	if err != nil || !bytes.Equal(got, whole) {
		t.Fatalf("get: %d bytes, %v", len(got), err)
	}
	for _, r := range []Range{{First: 299 << 10, Last: 301 << 10}, {First: int64(len(whole)) - 80, Last: -1}, {Suffix: 1}} {
		off, n, _ := r.resolve(int64(len(whole)))
		_, got, err := s.get("bkt", "big", GetOptions{Range: &r})
		if err != nil || !bytes.Equal(got, whole[off:off+n]) {
			t.Fatalf("range %+v: %d bytes, %v", r, len(got), err)
		}
	}
	obj, err := s.Head(ctx, "bkt", "big", GetOptions{PartNumber: 5})
	if err != nil || obj.Length != 600<<10 || obj.Offset != 300<<10+10 || obj.Info.PartCount != 5 {
		t.Fatalf("part 5: %+v, %v", obj, err)
	}
	if ups, err := s.ListUploads(ctx, "bkt", ListUploadsOptions{Limit: 10}); err != nil || len(ups.Uploads) != 0 {
		t.Fatalf("uploads after: %+v, %v", ups, err)
	}
	cp, err := s.Copy(ctx, "bkt", "big", "bkt", "copy", CopyOptions{})
	sum := md5.Sum(whole)
	if err != nil || cp.Info.ETag != hex.EncodeToString(sum[:]) || cp.Info.PartCount != 0 {
		t.Fatalf("copy: %+v, %v", cp, err)
	}
	in, err := s.Inspect(ctx, "bkt", "big", true)
	if err != nil || len(in.Shards) == 0 {
		t.Fatalf("inspect: %v", err)
	}
	for _, sh := range in.Shards {
		if sh.Status != ShardVerified {
			t.Errorf("shard %+v", sh)
		}
	}
	// Replacing it leaves the upload completed, so that a late retry still answers.
	if _, err := s.put("bkt", "big", []byte("new"), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if late, err := s.CompleteUpload(ctx, "bkt", "big", up.UploadID, list, CompleteOptions{}); err != nil || late.ETag != info.ETag {
		t.Fatalf("late retry: %+v, %v", late, err)
	}
	if _, got, err := s.get("bkt", "big", GetOptions{}); err != nil || string(got) != "new" {
		t.Fatalf("get after the late retry: %q, %v", got, err)
	}
}

func TestAnInspectionSaysInWordsWhyAShardCannotBeReached(t *testing.T) {
	s := newStack(t, stackOptions{})
	ctx := context.Background()
	s.bucketFor("bkt", Unversioned)
	if _, err := s.put("bkt", "k", bytes.Repeat([]byte("x"), 300<<10), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	s.down[3].Store(true)
	in, err := s.Inspect(ctx, "bkt", "k", false)
	if err != nil {
		t.Fatal(err)
	}
	offline := 0
	for _, sh := range in.Shards {
		if sh.Status == ShardOffline {
			offline++
		}
		if offline := sh.Status == ShardOffline; offline != (sh.Drive == 3) || offline && sh.Err != "drive 3 is not there" {
			t.Errorf("shard %+v", sh)
		}
	}
	if offline == 0 {
		t.Error("no shard is on the drive that is down")
	}
}

func TestAbort(t *testing.T) {
	s := newStack(t, stackOptions{})
	ctx := context.Background()
	s.bucketFor("bkt", Unversioned)
	up, err := s.CreateUpload(ctx, "bkt", "k", UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader([]byte("x")), PartOptions{Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AbortUpload(ctx, "bkt", "k", up.UploadID); err != nil {
		t.Fatal(err)
	}
	if err := s.AbortUpload(ctx, "bkt", "k", up.UploadID); !errors.Is(err, ErrNoSuchUpload) {
		t.Fatalf("abort again: %v", err)
	}
	if _, err := s.CompleteUpload(ctx, "bkt", "k", up.UploadID, []CompletedPart{{Number: 1, ETag: p.ETag}}, CompleteOptions{}); !errors.Is(err, ErrNoSuchUpload) {
		t.Fatalf("complete of an aborted upload: %v", err)
	}
	if _, err := s.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader([]byte("x")), PartOptions{Size: 1}); !errors.Is(err, ErrNoSuchUpload) {
		t.Fatalf("part of an aborted upload: %v", err)
	}
}

func TestCompletionThatItsConditionRefusesCanBeAborted(t *testing.T) {
	s := newStack(t, stackOptions{})
	ctx := context.Background()
	s.bucketFor("bkt", Unversioned)
	up, err := s.CreateUpload(ctx, "bkt", "k", UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader([]byte("x")), PartOptions{Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	list := []CompletedPart{{Number: 1, ETag: p.ETag}}
	pl, id, st, err := s.uploadPlace(ctx, "test", "bkt", "k", up.UploadID, true)
	if err != nil {
		t.Fatal(err)
	}
	// Between the completion's first look and its round another object comes.
	etag, _ := listETag("test", pl, up.UploadID, list)
	st, err = s.beginCompletion(ctx, "test", pl, id, st, list, etag, &CompleteOptions{If: Conditions{IfNoneMatch: []string{"*"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.put("bkt", "k", []byte("other"), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.finishCompletion(ctx, "test", pl, id, st, &Conditions{IfNoneMatch: []string{"*"}}); !errors.Is(err, ErrPrecondition) {
		t.Fatalf("completion against its condition: %v", err)
	}
	if err := s.AbortUpload(ctx, "bkt", "k", up.UploadID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.finishCompletion(ctx, "test", pl, id, st, nil); !errors.Is(err, ErrNoSuchUpload) {
		t.Fatalf("a helper after the abort: %v", err)
	}
	if _, got, err := s.get("bkt", "k", GetOptions{}); err != nil || string(got) != "other" {
		t.Fatalf("get: %q, %v", got, err)
	}
}
