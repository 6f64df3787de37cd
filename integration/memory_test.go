package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// putStream puts a body that may be larger than memory, through a presigned URL: the SDK would
// want to hash it first.
func putStream(ctx context.Context, c *s3.Client, bucket, key string, b *body) error {
	req, err := s3.NewPresignClient(c).PresignPutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return err
	}
	put, err := http.NewRequestWithContext(ctx, http.MethodPut, req.URL, newBody(b.seed, b.n))
	if err != nil {
		return err
	}
	put.ContentLength = b.n
	resp, err := http.DefaultClient.Do(put)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, raw)
	}
	return nil
}

func TestMemoryStaysBoundedUnderConcurrentLargeBodies(t *testing.T) {
	s := start(t, 4)
	c := s.s3()
	bucket := s.bucket(t, "memory")
	const each, many = 64 * mib, 16
	at := func(i int) *body { return newBody(uint64(i), each) }
	first := at(100)
	if err := putStream(t.Context(), c, bucket, "first", first); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			if err := putStream(t.Context(), c, bucket, fmt.Sprint(i), at(i)); err != nil {
				t.Errorf("put %d: %v", i, err)
			}
		})
		wg.Go(func() { fetch(t, c, bucket, "first", first) })
	}
	wg.Wait()
	peak := s.highWater()
	t.Logf("16 PUTs and 16 GETs of 64 MiB at once: at most %d MB resident", peak/1e6)
	if peak >= 300e6 {
		t.Errorf("%d MB resident, want less than 300 MB", peak/1e6)
	}
	for i := range many {
		fetch(t, c, bucket, fmt.Sprint(i), at(i))
	}
}

func TestMemoryOfOneLargePut(t *testing.T) {
	needLong(t, "writes 5 GiB, 10 GiB on the drives")
	s := start(t, 4)
	c := s.s3()
	bucket := s.bucket(t, "large")
	b := newBody(5, 5*gib)
	begin := time.Now()
	if err := putStream(t.Context(), c, bucket, "five", b); err != nil {
		t.Fatal(err)
	}
	t.Logf("5 GiB PUT in %v", time.Since(begin))
	fetch(t, c, bucket, "five", b)
	peak := s.highWater()
	t.Logf("at most %d MB resident", peak/1e6)
	if peak >= 300e6 {
		t.Errorf("%d MB resident, want less than 300 MB", peak/1e6)
	}
}

func TestTenThousandParts(t *testing.T) {
	parts := 1000
	if *long {
		parts = 10000
	}
	s := newServer(t, 4, "--unsafe-test-min-part-size", "1KiB")
	s.env = append(s.env, "OSTRAKA_UNSAFE_TESTING=yes")
	s.start()
	c := s.s3()
	bucket, key := s.bucket(t, "parts"), "many"
	const size = 2 * kib
	whole := newBody(11, int64(parts)*size)
	raw := whole.bytes()
	up, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	done := make([]types.CompletedPart, parts)
	next := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range next {
				out, err := c.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId,
					PartNumber: aws.Int32(int32(i + 1)), Body: bytes.NewReader(raw[i*size : (i+1)*size])})
				if err != nil {
					t.Errorf("part %d: %v", i+1, err)
					continue
				}
				done[i] = types.CompletedPart{PartNumber: aws.Int32(int32(i + 1)), ETag: out.ETag}
			}
		})
	}
	for i := range parts {
		next <- i
	}
	close(next)
	wg.Wait()
	if t.Failed() {
		return
	}
	begin := time.Now()
	if _, err := c.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: done}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("completing %d parts took %v", parts, time.Since(begin))
	fetch(t, c, bucket, key, whole)
	got, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key, PartNumber: aws.Int32(int32(parts / 2))})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	part, err := io.ReadAll(got.Body)
	if err != nil || !bytes.Equal(part, raw[(parts/2-1)*size:parts/2*size]) || aws.ToInt32(got.PartsCount) != int32(parts) {
		t.Errorf("part %d by number: %d bytes, %d parts, %v", parts/2, len(part), aws.ToInt32(got.PartsCount), err)
	}
	if os.Getenv("OSTRAKA_UNSAFE_TESTING") != "" {
		t.Error("the test switch leaked into the environment of the tests")
	}
}
