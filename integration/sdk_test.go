package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// put puts a small body and returns the answer.
func put(t *testing.T, c *s3.Client, bucket, key string, b []byte, options ...func(*s3.PutObjectInput)) *s3.PutObjectOutput {
	t.Helper()
	in := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(b)}
	for _, o := range options {
		o(in)
	}
	out, err := c.PutObject(t.Context(), in)
	if err != nil {
		t.Fatalf("put %s/%q: %v", bucket, key, err)
	}
	return out
}

// get reads an object whole.
func get(t *testing.T, c *s3.Client, in *s3.GetObjectInput) ([]byte, *s3.GetObjectOutput) {
	t.Helper()
	out, err := c.GetObject(t.Context(), in)
	if err != nil {
		t.Fatalf("get %s/%q: %v", *in.Bucket, *in.Key, err)
	}
	defer out.Body.Close()
	raw, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatalf("get %s/%q: %v", *in.Bucket, *in.Key, err)
	}
	return raw, out
}

// wants checks that an error has this S3 code and this HTTP status.
func wants(t *testing.T, what string, err error, wantCode string, wantStatus int) {
	t.Helper()
	if code(err) != wantCode && wantCode != "" || status(err) != wantStatus {
		t.Errorf("%s: %v (code %q, status %d), want %s, %d", what, err, code(err), status(err), wantCode, wantStatus)
	}
}

func TestClientSDK(t *testing.T) {
	s := start(t, 4)
	t.Run("buckets", func(t *testing.T) { sdkBuckets(t, s) })
	t.Run("objects of all sizes", func(t *testing.T) { sdkSizes(t, s) })
	t.Run("odd keys", func(t *testing.T) { sdkOddKeys(t, s) })
	t.Run("metadata and system headers", func(t *testing.T) { sdkMetadata(t, s) })
	t.Run("ranges and parts", func(t *testing.T) { sdkRanges(t, s) })
	t.Run("checksums", func(t *testing.T) { sdkChecksums(t, s) })
	t.Run("conditional requests", func(t *testing.T) { sdkConditions(t, s) })
	t.Run("one of many creators wins", func(t *testing.T) { sdkCreators(t, s) })
	t.Run("copies", func(t *testing.T) { sdkCopies(t, s) })
	t.Run("listings", func(t *testing.T) { sdkListings(t, s) })
	t.Run("multipart", func(t *testing.T) { sdkMultipart(t, s) })
	t.Run("versions", func(t *testing.T) { sdkVersions(t, s) })
	t.Run("presigned", func(t *testing.T) { sdkPresigned(t, s) })
	t.Run("virtual host", func(t *testing.T) { sdkVirtualHost(t, s) })
	t.Run("what is not there", func(t *testing.T) { sdkNotImplemented(t, s) })
}

func sdkBuckets(t *testing.T, s *server) {
	c := s.s3()
	ctx := t.Context()
	s.bucket(t, "first.bucket-1")
	s.bucket(t, "second")
	_, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("BAD_NAME")})
	wants(t, "a bad bucket name", err, "InvalidBucketName", 400)
	list, err := c.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range list.Buckets {
		names = append(names, *b.Name)
	}
	if !slices.Contains(names, "first.bucket-1") || !slices.Contains(names, "second") || !slices.IsSorted(names) {
		t.Errorf("the buckets are %q", names)
	}
	if _, err := c.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("second")}); err != nil {
		t.Error(err)
	}
	_, err = c.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("absent")})
	wants(t, "head of an absent bucket", err, "", 404)
	if loc, err := c.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: aws.String("second")}); err != nil || loc.LocationConstraint != "" {
		t.Errorf("the location is %q, %v; want none, which is us-east-1", loc.LocationConstraint, err)
	}
	put(t, c, "second", "k", nil)
	_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: aws.String("second")})
	wants(t, "deleting a bucket with an object", err, "BucketNotEmpty", 409)
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String("second"), Key: aws.String("k")}); err != nil {
		t.Error(err)
	}
	for _, b := range []string{"second", "first.bucket-1"} {
		if _, err := c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &b}); err != nil {
			t.Errorf("delete %s: %v", b, err)
		}
	}
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("second"), Key: aws.String("k")})
	wants(t, "get in a deleted bucket", err, "NoSuchBucket", 404)
	s.bucket(t, "second") // the name is free again, and empty
	if keys, err := allKeys(ctx, c, "second", ""); err != nil || len(keys) != 0 {
		t.Errorf("the new bucket of an old name lists %v, %v", keys, err)
	}
}

func sdkSizes(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "sizes")
	for _, n := range []int64{0, 1, 2, 1023, 64*kib - 1, 64 * kib, 64*kib + 1, 1 * mib, 1*mib + 1, 5*mib - 1, 17*mib + 5, 64 * mib, 64*mib + 1, 130 * mib} {
		b, key := newBody(uint64(n), n), fmt.Sprint(n)
		out, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: newBody(b.seed, n), ContentLength: &n})
		if err != nil {
			t.Errorf("put %d bytes: %v", n, err)
			continue
		}
		fetch(t, c, bucket, key, b)
		head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
		if err != nil || *head.ContentLength != n || aws.ToString(head.ETag) != aws.ToString(out.ETag) {
			t.Errorf("head of %d bytes: %v, %v", n, head, err)
		}
	}
	_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("absent")})
	wants(t, "an absent key", err, "NoSuchKey", 404)
}

func sdkOddKeys(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "odd")
	keys := []string{"a b", "a+b", "a%2Fb", "a//b", "//lead", "trail/", "trail//", "a/../b", "./a", "..", "a/./b", "ü/ñ/日本語", "emoji-🙂", "q?x=1&y=2", "h#ash",
		"semi;colon", "quo\"te'", "back\\slash", "<tag>&amp;", "tab\tkey", "*()!$,:@=", "~tilde_-.", "%", "%zz", "a", "a/b", strings.Repeat("k", 1024), strings.Repeat("é", 512), "-/x", "new\nline"}
	for i, key := range keys {
		put(t, c, bucket, key, []byte(fmt.Sprintf("body %d", i)))
	}
	for i, key := range keys {
		if raw, _ := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key}); string(raw) != fmt.Sprintf("body %d", i) {
			t.Errorf("%q holds %q, want body %d", key, raw, i)
		}
	}
	found, err := allKeys(t.Context(), c, bucket, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if _, ok := found[key]; !ok {
			t.Errorf("%q is not listed", key)
		}
	}
	if len(found) != len(keys) {
		t.Errorf("%d keys are listed, want %d", len(found), len(keys))
	}
	encoded, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket, EncodingType: types.EncodingTypeUrl, Prefix: aws.String("a b")})
	if err != nil || len(encoded.Contents) != 1 {
		t.Errorf("listing with encoding: %v, %v", encoded, err)
	}
	_, err = c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(strings.Repeat("k", 1025)), Body: bytes.NewReader(nil)})
	wants(t, "a key of 1025 bytes", err, "KeyTooLongError", 400)
	var ids []types.ObjectIdentifier
	for _, key := range keys {
		ids = append(ids, types.ObjectIdentifier{Key: aws.String(key)})
	}
	out, err := c.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: ids}})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Deleted) != len(keys) || len(out.Errors) != 0 {
		t.Errorf("%d deleted, errors %v; want %d and none", len(out.Deleted), out.Errors, len(keys))
	}
	if found, err := allKeys(t.Context(), c, bucket, ""); err != nil || len(found) != 0 {
		t.Errorf("after deleting all there are %d keys, %v", len(found), err)
	}
}

func sdkMetadata(t *testing.T, s *server) {
	c, bucket, key := s.s3(), s.bucket(t, "headers"), "k"
	put(t, c, bucket, key, []byte("x"), func(in *s3.PutObjectInput) {
		in.ContentType, in.CacheControl, in.ContentLanguage = aws.String("text/x-odd; a=b"), aws.String("max-age=3"), aws.String("de")
		in.ContentDisposition, in.ContentEncoding = aws.String(`attachment; filename="a b"`), aws.String("x-own")
		in.Metadata = map[string]string{"plain": "value", "with-dash": "a, b;c"}
		in.StorageClass = types.StorageClassReducedRedundancy
	})
	_, out := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][3]string{
		"content type":        {"text/x-odd; a=b", aws.ToString(out.ContentType), aws.ToString(head.ContentType)},
		"cache control":       {"max-age=3", aws.ToString(out.CacheControl), aws.ToString(head.CacheControl)},
		"content language":    {"de", aws.ToString(out.ContentLanguage), aws.ToString(head.ContentLanguage)},
		"content disposition": {`attachment; filename="a b"`, aws.ToString(out.ContentDisposition), aws.ToString(head.ContentDisposition)},
		"content encoding":    {"x-own", aws.ToString(out.ContentEncoding), aws.ToString(head.ContentEncoding)},
		"metadata":            {"value", out.Metadata["plain"], head.Metadata["plain"]},
		"metadata with dash":  {"a, b;c", out.Metadata["with-dash"], head.Metadata["with-dash"]},
		"storage class":       {"REDUCED_REDUNDANCY", string(out.StorageClass), string(head.StorageClass)},
	} {
		if pair[1] != pair[0] || pair[2] != pair[0] {
			t.Errorf("%s: GET says %q, HEAD says %q, want %q", what, pair[1], pair[2], pair[0])
		}
	}
	_, other := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key, ResponseContentType: aws.String("a/b"), ResponseCacheControl: aws.String("no-store")})
	if aws.ToString(other.ContentType) != "a/b" || aws.ToString(other.CacheControl) != "no-store" {
		t.Errorf("overridden headers are %q and %q", aws.ToString(other.ContentType), aws.ToString(other.CacheControl))
	}
	_, err = c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("big"), Body: bytes.NewReader(nil), Metadata: map[string]string{"m": strings.Repeat("v", 3000)}})
	wants(t, "3000 bytes of metadata", err, "MetadataTooLarge", 400)
	_, err = c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("class"), Body: bytes.NewReader(nil), StorageClass: "GOLD"})
	wants(t, "an unknown storage class", err, "InvalidStorageClass", 400)
}

func sdkRanges(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "ranges")
	for _, n := range []int64{1000, 3*mib + 17, 65 * mib} {
		key, b := fmt.Sprint(n), newBody(uint64(n), n)
		if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: newBody(b.seed, n), ContentLength: &n}); err != nil {
			t.Fatal(err)
		}
		raw := b.bytes()
		for _, r := range []struct {
			spec     string
			from, to int64 // to is exclusive
		}{{"bytes=0-0", 0, 1}, {"bytes=0-99", 0, 100}, {fmt.Sprintf("bytes=%d-", n-7), n - 7, n}, {"bytes=-5", n - 5, n}, {fmt.Sprintf("bytes=%d-%d", n/2-3, n/2+300), n/2 - 3, min(n, n/2+301)},
			{fmt.Sprintf("bytes=10-%d", n+1000), 10, n}, {fmt.Sprintf("bytes=-%d", n+5), 0, n}} {
			got, out := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key, Range: &r.spec})
			if want := fmt.Sprintf("bytes %d-%d/%d", r.from, r.to-1, n); !bytes.Equal(got, raw[r.from:r.to]) || aws.ToString(out.ContentRange) != want {
				t.Errorf("%s of %d bytes: %d bytes, %q; want %d, %q", r.spec, n, len(got), aws.ToString(out.ContentRange), r.to-r.from, want)
			}
		}
		_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key, Range: aws.String(fmt.Sprintf("bytes=%d-", n))})
		wants(t, "a range behind the end", err, "InvalidRange", 416)
	}
}

func sdkChecksums(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "sums")
	raw := newBody(3, 200*kib).bytes()
	for _, a := range []types.ChecksumAlgorithm{types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmSha1, types.ChecksumAlgorithmSha256, types.ChecksumAlgorithmCrc64nvme} {
		key := string(a)
		out := put(t, c, bucket, key, raw, func(in *s3.PutObjectInput) { in.ChecksumAlgorithm = a })
		got, read := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
		sums := func(crc32, crc32c, sha1, sha256, crc64 *string) string {
			for _, p := range []*string{crc32, crc32c, sha1, sha256, crc64} {
				if p != nil {
					return *p
				}
			}
			return ""
		}
		put, back := sums(out.ChecksumCRC32, out.ChecksumCRC32C, out.ChecksumSHA1, out.ChecksumSHA256, out.ChecksumCRC64NVME),
			sums(read.ChecksumCRC32, read.ChecksumCRC32C, read.ChecksumSHA1, read.ChecksumSHA256, read.ChecksumCRC64NVME)
		if !bytes.Equal(got, raw) || put == "" || put != back {
			t.Errorf("%s: PUT says %q, GET says %q", a, put, back)
		}
		attr, err := c.GetObjectAttributes(t.Context(), &s3.GetObjectAttributesInput{Bucket: &bucket, Key: &key,
			ObjectAttributes: []types.ObjectAttributes{types.ObjectAttributesChecksum, types.ObjectAttributesEtag, types.ObjectAttributesObjectSize, types.ObjectAttributesStorageClass}})
		if err != nil {
			t.Errorf("attributes with %s: %v", a, err)
			continue
		}
		if k := attr.Checksum; k == nil || sums(k.ChecksumCRC32, k.ChecksumCRC32C, k.ChecksumSHA1, k.ChecksumSHA256, k.ChecksumCRC64NVME) != put || *attr.ObjectSize != int64(len(raw)) {
			t.Errorf("attributes with %s: %+v", a, attr)
		}
	}
	_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("wrong"), Body: bytes.NewReader(raw), ChecksumSHA256: aws.String("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")})
	wants(t, "a wrong checksum", err, "BadDigest", 400)
	_, err = c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("wrong"), Body: bytes.NewReader(raw), ContentMD5: aws.String("AAAAAAAAAAAAAAAAAAAAAA==")})
	wants(t, "a wrong MD5", err, "BadDigest", 400)
	_, err = c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("wrong")})
	wants(t, "what was refused", err, "NoSuchKey", 404)

	t.Log("an unseekable body travels in chunks with a trailer")
	secure := s.s3(func(o *s3.Options) { o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenSupported })
	pr, pw := io.Pipe()
	go func() { _, err := pw.Write(raw); pw.CloseWithError(err) }()
	n := int64(len(raw))
	_, err = secure.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("trailer"), Body: pr, ContentLength: &n}, s3.WithAPIOptions())
	if err != nil {
		// Over plain HTTP the SDK refuses by itself to send an unsigned trailer; that is no answer of the server.
		if status(err) != 0 {
			t.Errorf("a chunked body: %v", err)
		}
		pr.CloseWithError(err)
	} else {
		fetch(t, c, bucket, "trailer", newBody(3, 200*kib))
	}
}

func sdkConditions(t *testing.T, s *server) {
	c, bucket, key := s.s3(), s.bucket(t, "conditions"), "k"
	ctx := t.Context()
	first := put(t, c, bucket, key, []byte("one"), func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
	_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x"), IfNoneMatch: aws.String("*")})
	wants(t, "creating what exists", err, "PreconditionFailed", 412)
	_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x"), IfMatch: aws.String(`"00000000000000000000000000000000"`)})
	wants(t, "replacing another etag", err, "PreconditionFailed", 412)
	_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("absent"), Body: strings.NewReader("x"), IfMatch: first.ETag})
	wants(t, "replacing what is not there", err, "NoSuchKey", 404)
	second := put(t, c, bucket, key, []byte("two"), func(in *s3.PutObjectInput) { in.IfMatch = first.ETag })
	if raw, _ := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key, IfMatch: second.ETag}); string(raw) != "two" {
		t.Errorf("got %q", raw)
	}
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key, IfMatch: first.ETag})
	wants(t, "get of an old etag", err, "PreconditionFailed", 412)
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key, IfNoneMatch: second.ETag})
	wants(t, "get of what is known", err, "", 304)
	_, err = c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: &key, IfMatch: first.ETag})
	wants(t, "deleting another etag", err, "PreconditionFailed", 412)
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: &key, IfMatch: second.ETag}); err != nil {
		t.Errorf("deleting the right etag: %v", err)
	}
}

func sdkCreators(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "creators")
	for round := range 5 {
		key := fmt.Sprint("k", round)
		var wg sync.WaitGroup
		var mu sync.Mutex // guards won and odd
		var won []int
		var odd []error
		for i := range 20 {
			wg.Go(func() {
				_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader(fmt.Sprint(i)), IfNoneMatch: aws.String("*")})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = append(won, i)
				} else if code(err) != "PreconditionFailed" && code(err) != "ConditionalRequestConflict" {
					odd = append(odd, err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 || len(odd) != 0 {
			t.Fatalf("of twenty creators %v won; other errors %v", won, odd)
		}
		if raw, _ := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key}); string(raw) != fmt.Sprint(won[0]) {
			t.Errorf("creator %d won, and the object holds %q", won[0], raw)
		}
	}
}

func sdkCopies(t *testing.T, s *server) {
	c, bucket, other := s.s3(), s.bucket(t, "copy-from"), s.bucket(t, "copy-to")
	b := newBody(8, 3*mib)
	src := "dir/a b+c"
	out := put(t, c, bucket, src, b.bytes(), func(in *s3.PutObjectInput) {
		in.Metadata, in.ContentType = map[string]string{"m": "1"}, aws.String("a/b")
	})
	from := aws.String(bucket + "/dir/a%20b%2Bc")
	if _, err := c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &other, Key: aws.String("same"), CopySource: from}); err != nil {
		t.Fatal(err)
	}
	fetch(t, c, other, "same", b)
	head, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &other, Key: aws.String("same")})
	if err != nil || head.Metadata["m"] != "1" || aws.ToString(head.ContentType) != "a/b" {
		t.Errorf("the copy has metadata %v and type %q, %v", head.Metadata, aws.ToString(head.ContentType), err)
	}
	if _, err := c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &other, Key: aws.String("new"), CopySource: from, MetadataDirective: types.MetadataDirectiveReplace,
		Metadata: map[string]string{"n": "2"}, ContentType: aws.String("c/d")}); err != nil {
		t.Fatal(err)
	}
	head, err = c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &other, Key: aws.String("new")})
	if err != nil || head.Metadata["m"] != "" || head.Metadata["n"] != "2" || aws.ToString(head.ContentType) != "c/d" {
		t.Errorf("the replaced copy has metadata %v and type %q, %v", head.Metadata, aws.ToString(head.ContentType), err)
	}
	_, err = c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &bucket, Key: &src, CopySource: from})
	wants(t, "a copy onto itself", err, "InvalidRequest", 400)
	_, err = c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &other, Key: aws.String("x"), CopySource: from, CopySourceIfNoneMatch: out.ETag})
	wants(t, "a copy of what is known", err, "PreconditionFailed", 412)
	_, err = c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &other, Key: aws.String("x"), CopySource: aws.String(bucket + "/absent")})
	wants(t, "a copy of nothing", err, "NoSuchKey", 404)
	if _, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &src}); err != nil {
		t.Fatal(err)
	}
	fetch(t, c, other, "same", b) // a copy does not depend on its source
}

func sdkListings(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "listings")
	var want []string
	var wg sync.WaitGroup
	for d := range 5 {
		for i := range 30 {
			key := fmt.Sprintf("d%d/%03d", d, i)
			want = append(want, key)
			wg.Go(func() { put(t, c, bucket, key, []byte(key)) })
		}
		wg.Wait()
	}
	want = append(want, "top")
	put(t, c, bucket, "top", nil)
	slices.Sort(want)
	for _, limit := range []int32{1, 7, 50, 1000} {
		if limit == 1 && !*long {
			continue
		}
		var got []string
		p := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: &bucket, MaxKeys: &limit})
		for p.HasMorePages() {
			page, err := p.NextPage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(page.Contents) > int(limit) {
				t.Errorf("a page of at most %d has %d", limit, len(page.Contents))
			}
			for _, o := range page.Contents {
				got = append(got, *o.Key)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d list %d keys, want %d in order", limit, len(got), len(want))
		}
	}
	var prefixes, keys []string
	var marker *string
	for {
		page, err := c.ListObjects(t.Context(), &s3.ListObjectsInput{Bucket: &bucket, Delimiter: aws.String("/"), MaxKeys: aws.Int32(2), Marker: marker})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.CommonPrefixes {
			prefixes = append(prefixes, *p.Prefix)
		}
		for _, o := range page.Contents {
			keys = append(keys, *o.Key)
		}
		if !aws.ToBool(page.IsTruncated) {
			break
		}
		marker = page.NextMarker
	}
	if !slices.Equal(prefixes, []string{"d0/", "d1/", "d2/", "d3/", "d4/"}) || !slices.Equal(keys, []string{"top"}) {
		t.Errorf("with a delimiter: prefixes %q, keys %q", prefixes, keys)
	}
	after, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket, StartAfter: aws.String("d4/028"), FetchOwner: aws.Bool(true)})
	if err != nil || len(after.Contents) != 2 || *after.Contents[0].Key != "d4/029" || after.Contents[0].Owner == nil || *after.KeyCount != 2 {
		t.Errorf("start-after: %+v, %v", after, err)
	}
	inside, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: aws.String("d3/01"), Delimiter: aws.String("/")})
	if err != nil || len(inside.Contents) != 10 || len(inside.CommonPrefixes) != 0 {
		t.Errorf("a prefix within a prefix: %d keys, %v", len(inside.Contents), err)
	}
}

func sdkMultipart(t *testing.T, s *server) {
	c, bucket, key := s.s3(), s.bucket(t, "multipart"), "dir/big file"
	ctx := t.Context()
	b := newBody(21, 5*mib+5*mib+100*kib)
	raw := b.bytes()
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key, ContentType: aws.String("x/y"), Metadata: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, bucket, "source", raw)
	part := func(n int32, data []byte) types.CompletedPart {
		t.Helper()
		out, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, PartNumber: &n, Body: bytes.NewReader(data)})
		if err != nil {
			t.Fatal(err)
		}
		return types.CompletedPart{PartNumber: &n, ETag: out.ETag}
	}
	part(1, raw[:100]) // replaced by the next
	one := part(1, raw[:5*mib])
	copied, err := c.UploadPartCopy(ctx, &s3.UploadPartCopyInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, PartNumber: aws.Int32(5),
		CopySource: aws.String(bucket + "/source"), CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", 5*mib, 10*mib-1))})
	if err != nil {
		t.Fatal(err)
	}
	five := types.CompletedPart{PartNumber: aws.Int32(5), ETag: copied.CopyPartResult.ETag}
	last := part(9, raw[10*mib:])
	listed, err := c.ListParts(ctx, &s3.ListPartsInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId})
	if err != nil || len(listed.Parts) != 3 || *listed.Parts[1].PartNumber != 5 || *listed.Parts[0].Size != 5*mib {
		t.Errorf("the parts are %+v, %v", listed, err)
	}
	uploads, err := c.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &bucket, Prefix: aws.String("dir/")})
	if err != nil || len(uploads.Uploads) != 1 || *uploads.Uploads[0].UploadId != *up.UploadId {
		t.Errorf("the uploads are %+v, %v", uploads, err)
	}
	complete := func(parts ...types.CompletedPart) (*s3.CompleteMultipartUploadOutput, error) {
		return c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	}
	_, err = complete(five, one)
	wants(t, "parts out of order", err, "InvalidPartOrder", 400)
	_, err = complete(one, types.CompletedPart{PartNumber: aws.Int32(5), ETag: one.ETag})
	wants(t, "a part with another etag", err, "InvalidPart", 400)
	_, err = complete(one, types.CompletedPart{PartNumber: aws.Int32(10), ETag: one.ETag})
	wants(t, "a part that is not there", err, "InvalidPart", 400)
	done, err := complete(one, five, last)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(aws.ToString(done.ETag), `-3"`) {
		t.Errorf("the etag is %s, want one that ends in -3", aws.ToString(done.ETag))
	}
	if again, err := complete(one, five, last); err != nil || aws.ToString(again.ETag) != aws.ToString(done.ETag) {
		t.Errorf("completing again: %v, %v; want the same answer", again, err)
	}
	fetch(t, c, bucket, key, b)
	for n, want := range map[int32][]byte{1: raw[:5*mib], 5: raw[5*mib : 10*mib], 9: raw[10*mib:]} {
		if got, out := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key, PartNumber: &n}); !bytes.Equal(got, want) || aws.ToInt32(out.PartsCount) != 3 {
			t.Errorf("part %d by number: %d bytes of %d, %d parts", n, len(got), len(want), aws.ToInt32(out.PartsCount))
		}
	}
	head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
	if err != nil || aws.ToString(head.ContentType) != "x/y" || head.Metadata["a"] != "b" {
		t.Errorf("the object has type %q and metadata %v, %v", aws.ToString(head.ContentType), head.Metadata, err)
	}
	spec := fmt.Sprintf("bytes=%d-%d", 5*mib-10, 5*mib+9)
	if got, _ := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key, Range: &spec}); !bytes.Equal(got, raw[5*mib-10:5*mib+10]) {
		t.Error("a range over two parts differs")
	}
	attr, err := c.GetObjectAttributes(ctx, &s3.GetObjectAttributesInput{Bucket: &bucket, Key: &key, ObjectAttributes: []types.ObjectAttributes{types.ObjectAttributesObjectParts}})
	if err != nil || attr.ObjectParts == nil || aws.ToInt32(attr.ObjectParts.TotalPartsCount) != 3 {
		t.Errorf("attributes: %+v, %v", attr, err)
	}

	gone, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: aws.String("gone")})
	if err != nil {
		t.Fatal(err)
	}
	up, key = gone, "gone"
	small := part(1, raw[:100])
	tail := part(2, raw[:100])
	_, err = complete(small, tail)
	wants(t, "a small part that is not the last", err, "EntityTooSmall", 400)
	if _, err := c.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId}); err != nil {
		t.Error(err)
	}
	_, err = complete(small)
	wants(t, "completing an aborted upload", err, "NoSuchUpload", 404)
	_, err = c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, PartNumber: aws.Int32(1), Body: strings.NewReader("x")})
	wants(t, "a part of an aborted upload", err, "NoSuchUpload", 404)
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	wants(t, "the object of an aborted upload", err, "NoSuchKey", 404)
}

func sdkVersions(t *testing.T, s *server) {
	c, bucket, key := s.s3(), s.bucket(t, "versions"), "k"
	ctx := t.Context()
	set := func(v types.BucketVersioningStatus) {
		t.Helper()
		if _, err := c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: &bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: v}}); err != nil {
			t.Fatal(err)
		}
		if got, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &bucket}); err != nil || got.Status != v {
			t.Fatalf("versioning is %v, %v; want %v", got, err, v)
		}
	}
	put(t, c, bucket, key, []byte("null"))
	set(types.BucketVersioningStatusEnabled)
	ids := map[string]string{"null": "null"}
	for _, v := range []string{"one", "two"} {
		ids[v] = aws.ToString(put(t, c, bucket, key, []byte(v)).VersionId)
	}
	for want, id := range ids {
		if raw, out := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key, VersionId: &id}); string(raw) != want || aws.ToString(out.VersionId) != id {
			t.Errorf("version %q holds %q under id %q, want %q", id, raw, aws.ToString(out.VersionId), want)
		}
	}
	del, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: &key})
	if err != nil || !aws.ToBool(del.DeleteMarker) {
		t.Fatalf("delete: %+v, %v", del, err)
	}
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	wants(t, "a deleted object", err, "NoSuchKey", 404)
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key, VersionId: del.VersionId})
	wants(t, "a delete marker by id", err, "", 405)
	list, err := c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: &bucket})
	if err != nil || len(list.Versions) != 3 || len(list.DeleteMarkers) != 1 || !aws.ToBool(list.DeleteMarkers[0].IsLatest) || aws.ToString(list.Versions[2].VersionId) != "null" {
		t.Errorf("the versions are %+v, %v", list, err)
	}
	if keys, err := allKeys(ctx, c, bucket, ""); err != nil || len(keys) != 0 {
		t.Errorf("a deleted object is listed: %v, %v", keys, err)
	}
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: &key, VersionId: del.VersionId}); err != nil {
		t.Fatal(err)
	}
	fetchBytes(t, c, bucket, key, "two")
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: &key, VersionId: aws.String(ids["two"])}); err != nil {
		t.Fatal(err)
	}
	fetchBytes(t, c, bucket, key, "one")
	set(types.BucketVersioningStatusSuspended)
	if out := put(t, c, bucket, key, []byte("null again")); aws.ToString(out.VersionId) != "null" && out.VersionId != nil {
		t.Errorf("a suspended bucket gives the version id %q", aws.ToString(out.VersionId))
	}
	fetchBytes(t, c, bucket, key, "null again")
	list, err = c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: &bucket})
	if err != nil || len(list.Versions) != 2 {
		t.Errorf("after suspension the versions are %+v, %v; want the null version replaced", list, err)
	}
	_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket})
	wants(t, "deleting a bucket with versions", err, "BucketNotEmpty", 409)
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key, VersionId: aws.String(ids["two"])})
	wants(t, "a version that was removed", err, "NoSuchVersion", 404)
}

func fetchBytes(t *testing.T, c *s3.Client, bucket, key, want string) {
	t.Helper()
	if raw, _ := get(t, c, &s3.GetObjectInput{Bucket: &bucket, Key: &key}); string(raw) != want {
		t.Errorf("%s/%s holds %q, want %q", bucket, key, raw, want)
	}
}

func sdkPresigned(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "presigned")
	b := newBody(31, 100*kib)
	if err := putStream(t.Context(), c, bucket, "a b/c+d", b); err != nil {
		t.Fatal(err)
	}
	req, err := s3.NewPresignClient(c).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("a b/c+d")})
	if err != nil {
		t.Fatal(err)
	}
	fetchURL(t, req.URL, b)
	for what, link := range map[string]string{"another key": strings.Replace(req.URL, "c%2Bd", "c%2Be", 1), "no signature": strings.SplitN(req.URL, "?", 2)[0],
		"a longer life": strings.Replace(req.URL, "X-Amz-Expires=900", "X-Amz-Expires=901", 1)} {
		if link == req.URL {
			t.Fatalf("the link has no place for %s: %s", what, link)
		}
		resp, err := http.Get(link)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("a presigned link with %s answers %s, want 403", what, resp.Status)
		}
	}
	bad := s.s3(func(o *s3.Options) {
		o.Credentials = credentials.NewStaticCredentialsProvider(accessKey, "wrong-secret", "")
	})
	_, err = bad.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	wants(t, "a wrong secret", err, "SignatureDoesNotMatch", 403)
	unknown := s.s3(func(o *s3.Options) {
		o.Credentials = credentials.NewStaticCredentialsProvider("nobody", "wrong-secret", "")
	})
	_, err = unknown.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	wants(t, "an unknown key", err, "InvalidAccessKeyId", 403)
}

func sdkVirtualHost(t *testing.T, s *server) {
	bucket := s.bucket(t, "virtual")
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards hosts
	var hosts []string
	c := s.s3(func(o *s3.Options) {
		o.UsePathStyle = false
		o.BaseEndpoint = aws.String("http://localhost:" + port)
		o.HTTPClient = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			hosts = append(hosts, addr)
			mu.Unlock()
			return new(net.Dialer).DialContext(ctx, network, s.addr)
		}}}
	})
	for _, key := range []string{"plain", "a b/c+d", "virtual/virtual", "x//y"} {
		put(t, c, bucket, key, []byte(key))
		fetchBytes(t, c, bucket, key, key)
		fetchBytes(t, s.s3(), bucket, key, key) // the same object by its path
	}
	if keys, err := allKeys(t.Context(), c, bucket, ""); err != nil || len(keys) != 4 {
		t.Errorf("the listing has %v, %v", keys, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Contains(hosts, "virtual.localhost:"+port) {
		t.Errorf("the client used the hosts %q and no virtual one", hosts)
	}
}

func sdkNotImplemented(t *testing.T, s *server) {
	c, bucket := s.s3(), s.bucket(t, "not-there")
	_, err := c.PutBucketWebsite(t.Context(), &s3.PutBucketWebsiteInput{Bucket: &bucket, WebsiteConfiguration: &types.WebsiteConfiguration{IndexDocument: &types.IndexDocument{Suffix: aws.String("i")}}})
	wants(t, "a website", err, "NotImplemented", 501)
	_, err = c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("k"), Body: strings.NewReader("x"), ServerSideEncryption: types.ServerSideEncryptionAwsKms})
	if err == nil {
		t.Error("a header that asks for encryption is accepted and ignored")
	}
	var re interface{ ServiceRequestID() string }
	if !errors.As(err, &re) || re.ServiceRequestID() == "" {
		t.Errorf("the refusal carries no request id: %v", err)
	}
}
