package integration

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// client returns an SDK client for the server. Without retries, so that a test sees each answer.
func (s *server) s3(options ...func(*s3.Options)) *s3.Client {
	o := s3.Options{
		Region:       region,
		BaseEndpoint: aws.String(s.url()),
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
		Retryer:      aws.NopRetryer{},
		HTTPClient:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}},
	}
	return s3.New(o, options...)
}

// bucket makes a bucket.
func (s *server) bucket(t testing.TB, name string) string {
	t.Helper()
	if _, err := s.s3().CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("create bucket %s: %v", name, err)
	}
	return name
}

// body is a repeatable stream of n bytes that follow from a seed: it can be read again from the
// start without being held in memory. It is an io.ReadSeeker.
type body struct {
	seed uint64
	n    int64
	at   int64
}

func newBody(seed uint64, n int64) *body { return &body{seed: seed, n: n} }

// word is the i-th eight bytes of the stream of a seed (SplitMix64).
func word(seed, i uint64) uint64 {
	z := seed*0x9e3779b97f4a7c15 + (i+1)*0xbf58476d1ce4e5b9
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (b *body) Read(p []byte) (int, error) {
	if b.at >= b.n {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.n-b.at)]
	for i := 0; i < len(p); {
		w, off := word(b.seed, uint64(b.at)/8), int(b.at%8)
		if off == 0 && len(p)-i >= 8 {
			binary.LittleEndian.PutUint64(p[i:], w)
			i, b.at = i+8, b.at+8
			continue
		}
		for ; off < 8 && i < len(p); off++ {
			p[i] = byte(w >> (8 * off))
			i++
			b.at++
		}
	}
	return len(p), nil
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.at
	case io.SeekEnd:
		offset += b.n
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	b.at = offset
	return offset, nil
}

// bytes returns the whole stream.
func (b *body) bytes() []byte {
	out := make([]byte, b.n)
	if _, err := io.ReadFull(newBody(b.seed, b.n), out); err != nil && b.n > 0 {
		panic(err) // the stream above does not fail
	}
	return out
}

// sum hashes a stream to its end.
func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return hex(h), n, err
}

func hex(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

func (b *body) sum() string {
	s, _, err := sum(newBody(b.seed, b.n))
	if err != nil {
		panic(err)
	}
	return s
}

// fetch reads an object and compares it with want, by hash.
func fetch(t testing.TB, c *s3.Client, bucket, key string, want *body) {
	t.Helper()
	if err := check(t.Context(), c, bucket, key, want); err != nil {
		t.Errorf("%s/%s: %v", bucket, key, err)
	}
}

func check(ctx context.Context, c *s3.Client, bucket, key string, want *body) error {
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	got, n, err := sum(out.Body)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if n != want.n || got != want.sum() {
		return fmt.Errorf("got %d bytes with hash %.12s, want %d with %.12s", n, got, want.n, want.sum())
	}
	return nil
}

// code is the S3 error code of err, or "" if it is none.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// status is the HTTP status of err, or 0.
func status(err error) int {
	var r interface{ HTTPStatusCode() int }
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}

// allKeys lists a bucket to its end.
func allKeys(ctx context.Context, c *s3.Client, bucket, prefix string) (map[string]int64, error) {
	found := map[string]int64{}
	p := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix})
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, o := range page.Contents {
			if _, twice := found[*o.Key]; twice {
				return nil, fmt.Errorf("the listing names %q twice", *o.Key)
			}
			found[*o.Key] = *o.Size
		}
	}
	return found, nil
}
