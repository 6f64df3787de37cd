package s3api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/minio/minio-go/v7"
	miniocreds "github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/ostraka/ostraka/object"
)

func (w *world) aws(pathStyle bool) *s3.Client {
	return s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(w.server.URL), UsePathStyle: pathStyle, HTTPClient: w.client,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
		Credentials: credentials.NewStaticCredentialsProvider(testKey, testSecret, ""),
	})
}

func (w *world) minio(trailers bool) *minio.Client {
	w.t.Helper()
	c, err := minio.New(strings.TrimPrefix(w.server.URL, "http://"), &minio.Options{
		Creds: miniocreds.NewStaticV4(testKey, testSecret, ""), TrailingHeaders: trailers, Transport: w.client.Transport,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// awsCode is the S3 error code that the AWS SDK saw.
func awsCode(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

func TestAWSSDK(t *testing.T) { onEveryStore(t, testAWSSDK) }

func testAWSSDK(t *testing.T, w *world) {
	c, ctx, b := w.aws(true), t.Context(), aws.String("bucket")
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	_, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: b})
	must("create", err)
	_, err = c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: b, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}})
	must("versioning", err)

	put, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: b, Key: aws.String("k"), Body: strings.NewReader("hello"), Metadata: map[string]string{"a": "1"}, ContentEncoding: aws.String("gzip")})
	must("put", err)
	if put.ChecksumCRC32 == nil || put.ChecksumType != types.ChecksumTypeFullObject || put.VersionId == nil {
		t.Errorf("put: %+v", put)
	}
	for _, a := range []types.ChecksumAlgorithm{types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c, types.ChecksumAlgorithmSha1, types.ChecksumAlgorithmSha256, types.ChecksumAlgorithmCrc64nvme} {
		_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: b, Key: aws.String("sum/" + string(a)), Body: strings.NewReader("sum"), ChecksumAlgorithm: a})
		must("put with "+string(a), err)
		head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: b, Key: aws.String("sum/" + string(a)), ChecksumMode: types.ChecksumModeEnabled})
		must("head", err)
		if head.ChecksumCRC32 == nil && head.ChecksumCRC32C == nil && head.ChecksumSHA1 == nil && head.ChecksumSHA256 == nil && head.ChecksumCRC64NVME == nil {
			t.Errorf("%s is not told", a)
		}
	}
	get, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: aws.String("k")})
	must("get", err)
	body, err := io.ReadAll(get.Body) // the SDK verifies the checksum
	must("read", err)
	if string(body) != "hello" || get.Metadata["a"] != "1" || aws.ToString(get.ContentEncoding) != "gzip" {
		t.Errorf("get: %q %+v", body, get)
	}
	_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: b, Key: aws.String("k"), Body: strings.NewReader("no"), IfNoneMatch: aws.String("*")})
	if awsCode(err) != "PreconditionFailed" {
		t.Errorf("conditional put: %v", err)
	}
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: aws.String("absent")})
	if awsCode(err) != "NoSuchKey" {
		t.Errorf("absent: %v", err)
	}

	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: b, Key: aws.String("multi"), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c})
	must("create upload", err)
	var parts []types.CompletedPart
	for i, data := range [][]byte{bytes.Repeat([]byte("p"), object.MinPartSize), []byte("tail")} {
		p, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: b, Key: aws.String("multi"), UploadId: up.UploadId, PartNumber: aws.Int32(int32(i + 1)), Body: bytes.NewReader(data), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c})
		must("part", err)
		parts = append(parts, types.CompletedPart{ETag: p.ETag, PartNumber: aws.Int32(int32(i + 1)), ChecksumCRC32C: p.ChecksumCRC32C})
	}
	cp, err := c.UploadPartCopy(ctx, &s3.UploadPartCopyInput{Bucket: b, Key: aws.String("multi"), UploadId: up.UploadId, PartNumber: aws.Int32(3), CopySource: aws.String("bucket/k"), CopySourceRange: aws.String("bytes=1-2")})
	must("part copy", err)
	if cp.CopyPartResult == nil || cp.CopyPartResult.ETag == nil || cp.CopySourceVersionId == nil {
		t.Errorf("part copy: %+v", cp)
	}
	list, err := c.ListParts(ctx, &s3.ListPartsInput{Bucket: b, Key: aws.String("multi"), UploadId: up.UploadId})
	must("list parts", err)
	if len(list.Parts) != 3 || list.ChecksumAlgorithm != types.ChecksumAlgorithmCrc32c {
		t.Errorf("parts: %+v", list)
	}
	done, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: b, Key: aws.String("multi"), UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	must("complete", err)
	if !strings.HasSuffix(aws.ToString(done.ETag), `-2"`) || !strings.HasSuffix(aws.ToString(done.ChecksumCRC32C), "-2") {
		t.Errorf("complete: %+v", done)
	}
	part, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: aws.String("multi"), PartNumber: aws.Int32(2)})
	must("get part", err)
	if body, _ := io.ReadAll(part.Body); string(body) != "tail" || aws.ToInt32(part.PartsCount) != 2 {
		t.Errorf("part: %q %+v", body, part)
	}
	attr, err := c.GetObjectAttributes(ctx, &s3.GetObjectAttributesInput{Bucket: b, Key: aws.String("multi"), ObjectAttributes: types.ObjectAttributes("").Values()})
	must("attributes", err)
	if aws.ToInt32(attr.ObjectParts.TotalPartsCount) != 2 || len(attr.ObjectParts.Parts) != 2 || aws.ToInt64(attr.ObjectSize) != object.MinPartSize+4 {
		t.Errorf("attributes: %+v %+v", attr, attr.ObjectParts)
	}

	_, err = c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: b, Key: aws.String("copy +é"), CopySource: aws.String("bucket/" + url.PathEscape("k")), MetadataDirective: types.MetadataDirectiveReplace, Metadata: map[string]string{"b": "2"}})
	must("copy", err)
	p := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: b, MaxKeys: aws.Int32(2)})
	n := 0
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		must("list", err)
		n += len(page.Contents)
	}
	if n != 8 {
		t.Errorf("%d keys listed, want 8", n)
	}
	del, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: b, Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: aws.String("k")}, {Key: aws.String("copy +é")}}}})
	must("delete", err)
	if len(del.Deleted) != 2 || len(del.Errors) != 0 {
		t.Errorf("deleted: %+v", del)
	}
	versions, err := c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: b, Prefix: aws.String("k")})
	must("versions", err)
	if len(versions.Versions) != 1 || len(versions.DeleteMarkers) != 1 {
		t.Errorf("versions: %+v", versions)
	}
	_, err = c.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: aws.String("k"), VersionId: versions.DeleteMarkers[0].VersionId})
	if awsCode(err) != "MethodNotAllowed" {
		t.Errorf("get of a delete marker: %v", err)
	}
	old, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: aws.String("k"), VersionId: put.VersionId})
	must("old version", err)
	old.Body.Close()

	signed, err := s3.NewPresignClient(c).PresignGetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: aws.String("k"), VersionId: put.VersionId, ResponseContentType: aws.String("x/y"), ChecksumMode: types.ChecksumModeEnabled}, s3.WithPresignExpires(time.Minute))
	must("presign", err)
	resp, err := w.client.Get(signed.URL)
	must("presigned get", err)
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || string(b) != "hello" || resp.Header.Get("Content-Type") != "x/y" || resp.Header.Get("X-Amz-Checksum-Crc32") == "" {
		t.Errorf("presigned: %d %s %v", resp.StatusCode, b, resp.Header)
	}
	if _, err = c.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: b}); awsCode(err) != "NotImplemented" {
		t.Errorf("tagging: %v", err)
	}
}

// unseekable hides everything of a reader but Read, so that SDKs stream with trailers.
type unseekable struct{ io.Reader }

func TestMinioClient(t *testing.T) { onEveryStore(t, testMinioClient) }

func testMinioClient(t *testing.T, w *world) {
	ctx := t.Context()
	c := w.minio(false)
	if err := c.MakeBucket(ctx, "bucket", minio.MakeBucketOptions{Region: "eu-central-1"}); err != nil {
		t.Fatal(err)
	}
	if loc, err := c.GetBucketLocation(ctx, "bucket"); err != nil || loc != "eu-central-1" {
		t.Errorf("location %q, %v", loc, err)
	}
	for i, key := range oddKeys {
		if strings.HasPrefix(key, "/") || strings.Contains(key, "//") || key == "." || key == ".." || strings.Contains(key, "/./") || strings.Contains(key, "/../") {
			continue // this client cleans or refuses them
		}
		body := fmt.Sprint("body ", i)
		if _, err := c.PutObject(ctx, "bucket", key, strings.NewReader(body), int64(len(body)), minio.PutObjectOptions{UserMetadata: map[string]string{"Mark": "é"}}); err != nil {
			t.Errorf("put %q: %v", key, err)
			continue
		}
		o, err := c.GetObject(ctx, "bucket", key, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(o)
		if err != nil || string(got) != body {
			t.Errorf("get %q: %q, %v", key, got, err)
		}
		info, err := o.Stat()
		if err != nil || info.UserMetadata["Mark"] != "é" {
			t.Errorf("metadata of %q: %v, %v", key, info.UserMetadata, err)
		}
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
	for _, trailers := range []bool{false, true} {
		c := w.minio(trailers)
		key := fmt.Sprint("streamed ", trailers)
		opts := minio.PutObjectOptions{PartSize: 5 << 20}
		if trailers {
			opts.Checksum = minio.ChecksumSHA256
		}
		if _, err := c.PutObject(ctx, "bucket", key, unseekable{bytes.NewReader(data)}, -1, opts); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		o, err := c.GetObject(ctx, "bucket", key, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(o); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", key, len(got), err)
		}
	}
	names := 0
	for o := range c.ListObjects(ctx, "bucket", minio.ListObjectsOptions{Recursive: true, WithMetadata: true, MaxKeys: 7}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		names++
	}
	if names < 20 {
		t.Errorf("%d objects listed", names)
	}
	if err := c.RemoveBucketWithOptions(ctx, "bucket", minio.RemoveBucketOptions{ForceDelete: true}); minio.ToErrorResponse(err).Code != "NotImplemented" {
		t.Errorf("a forced removal: %v", err)
	}
}

// With a domain, the SDK's own choice of address works.
func TestVirtualHostStyleWithTheSDK(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	tr := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, strings.TrimPrefix(w.server.URL, "http://"))
	}}
	defer tr.CloseIdleConnections()
	c := s3.New(s3.Options{Region: "us-east-1", BaseEndpoint: aws.String("http://s3.example.test"), HTTPClient: &http.Client{Transport: tr}, Credentials: credentials.NewStaticCredentialsProvider(testKey, testSecret, "")})
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bucket"), Key: aws.String("a//b/../c"), Body: strings.NewReader("x")}); err != nil {
		t.Fatal(err)
	}
	if a := w.want(200, "GET", "/bucket/a//b/../c", ""); a.body != "x" {
		t.Errorf("%q", a.body)
	}
}
