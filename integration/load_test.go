package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// A load is a number of writers, each with keys of its own that nobody else writes, so that what a
// key may hold is known exactly at any moment: the ledger. A failed request is recorded with its answer and time, and leaves
// both outcomes possible; a body, an absence or a listing that the ledger does not allow fails the
// test at once.

// Sizes of the bodies, and of the parts of a multipart object. The servers that are loaded take
// smaller parts and cut smaller chunks than real ones (loadArgs), so that short bodies do all that
// long ones do.
var loadSizes = []int{0, 1, 4 << 10, 4 << 10, 4 << 10, 64 << 10, 64<<10 + 1, 200 << 10, 200 << 10, 3 << 20}

const (
	loadWorkers = 6
	loadKeys    = 10 // of each worker
	loadPart    = 300 << 10
	loadBucket  = "load"

	// callTimeout is far beyond what any call may take; it ends a test that would hang.
	callTimeout = time.Minute
)

// loadArgs are the flags of a server under load; withTestLimits makes it accept them.
var loadArgs = []string{"--unsafe-test-min-part-size=64KiB", "--unsafe-test-chunk-size=1MiB", "--cache-size=0"}

// withTestLimits lets the server accept the limits that only tests may set.
func (s *server) withTestLimits() { s.env = append(s.env, "OSTRAKA_UNSAFE_TESTING=yes") }

// startLoaded starts a server with loadArgs over n fresh drives, with the bucket of the load.
func startLoaded(t testing.TB, n int) *server {
	t.Helper()
	s := newServer(t, n, loadArgs...)
	s.withTestLimits()
	s.start()
	c := newMinioStore(t, s, loadBucket)
	if err := c.core.MakeBucket(t.Context(), loadBucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// content is what a key holds: nothing, or a body.
type content struct {
	absent bool
	size   int64
	sum    [sha256.Size]byte
}

var nothing = content{absent: true}

func contentOf(body []byte) content {
	return content{size: int64(len(body)), sum: sha256.Sum256(body)}
}

func (c content) String() string {
	if c.absent {
		return "nothing"
	}
	return fmt.Sprintf("%d bytes %x…", c.size, c.sum[:4])
}

// keyState is one key of the ledger: what was last acknowledged or read, and what requests without an
// acknowledgement since then may have made of it.
type keyState struct {
	is    content
	maybe []content
	past  []string // the end of what happened to it, for the message of a failure
}

const keptPast = 12

func (e *keyState) note(format string, args ...any) {
	if len(e.past) == keptPast {
		e.past = e.past[1:]
	}
	e.past = append(e.past, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// story is what happened to the key, line by line.
func (e *keyState) story() string { return "\n\t" + strings.Join(e.past, "\n\t") }

func (e *keyState) allows(c content) bool { return e.is == c || slices.Contains(e.maybe, c) }

func (e *keyState) String() string {
	if len(e.maybe) == 0 {
		return e.is.String()
	}
	return fmt.Sprintf("%v, or of a request without answer %v", e.is, e.maybe)
}

// seen enters what a read showed. Reads never go back: what came before is ruled out. What was tried
// after it is not: a request without an answer may take effect at any time, but not once a later one
// was acknowledged.
func (e *keyState) seen(c content) {
	if e.is == c {
		return
	}
	i := slices.Index(e.maybe, c) // the first, where there are several: less is ruled out
	e.is, e.maybe = c, slices.Clone(e.maybe[i+1:])
}

// tried enters the end of a request that would have made c of the key.
func (e *keyState) tried(c content, err error) {
	e.note("to become %v: %v", c, err)
	switch status, _ := answered(err); {
	case err == nil:
		e.is, e.maybe = c, nil
	case neverSent(err), status >= 400 && status < 500:
	default:
		e.maybe = append(e.maybe, c)
	}
}

// neverSent reports whether the request did not reach any server.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// errAbsent is the answer NoSuchKey.
var errAbsent = errors.New("no such key")

// answered returns the HTTP status and the S3 code of an error, 0 and "" where there was no answer.
func answered(err error) (status int, code string) {
	var m minio.ErrorResponse
	var r *smithyhttp.ResponseError
	switch {
	case errors.As(err, &m):
		return m.StatusCode, m.Code
	case errors.As(err, &r):
		status = r.HTTPStatusCode()
	}
	var a smithy.APIError
	if errors.As(err, &a) {
		code = a.ErrorCode()
	}
	return status, code
}

// listed is one entry of a listing.
type listed struct {
	key  string
	size int64
}

// store is one bucket seen through a client library.
type store interface {
	put(ctx context.Context, key string, body []byte) error
	get(ctx context.Context, key string) ([]byte, error) // errAbsent where there is none
	del(ctx context.Context, key string) error
	// multipart stores the parts under key. completing reports whether the request that makes the
	// object visible was sent.
	multipart(ctx context.Context, key string, parts [][]byte) (completing bool, err error)
	list(ctx context.Context, prefix string, page int) ([]listed, error)
}

// client returns an HTTP client of its own, with connections of its own.
func ownTransport(t testing.TB) *http.Transport {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.MaxIdleConnsPerHost = 64
	tr.DisableCompression = true
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

type minioStore struct {
	core   *minio.Core
	bucket string
}

func newMinioStore(t testing.TB, s *server, bucket string) *minioStore {
	t.Helper()
	core, err := minio.NewCore(s.addr, &minio.Options{
		Creds:     credentials.NewStaticV4(accessKey, secretKey, ""),
		Region:    region,
		Transport: ownTransport(t), MaxRetries: 1, BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &minioStore{core, bucket}
}

func (m *minioStore) put(ctx context.Context, key string, body []byte) error {
	_, err := m.core.PutObject(ctx, m.bucket, key, bytes.NewReader(body), int64(len(body)), "", "", minio.PutObjectOptions{})
	return err
}

func (m *minioStore) get(ctx context.Context, key string) ([]byte, error) {
	r, info, _, err := m.core.GetObject(ctx, m.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		if status, code := answered(err); status == http.StatusNotFound && code == "NoSuchKey" {
			return nil, errAbsent
		}
		return nil, err
	}
	return readWhole(r, info.Size)
}

func (m *minioStore) del(ctx context.Context, key string) error {
	return m.core.RemoveObject(ctx, m.bucket, key, minio.RemoveObjectOptions{})
}

func (m *minioStore) multipart(ctx context.Context, key string, parts [][]byte) (bool, error) {
	id, err := m.core.NewMultipartUpload(ctx, m.bucket, key, minio.PutObjectOptions{})
	if err != nil {
		return false, err
	}
	var done []minio.CompletePart
	for i, p := range parts {
		part, err := m.core.PutObjectPart(ctx, m.bucket, key, id, i+1, bytes.NewReader(p), int64(len(p)), minio.PutObjectPartOptions{})
		if err != nil {
			return false, err
		}
		done = append(done, minio.CompletePart{PartNumber: i + 1, ETag: part.ETag})
	}
	_, err = m.core.CompleteMultipartUpload(ctx, m.bucket, key, id, done, minio.PutObjectOptions{})
	return true, err
}

func (m *minioStore) list(ctx context.Context, prefix string, page int) ([]listed, error) {
	var out []listed
	token := ""
	for range maxPages {
		r, err := m.core.ListObjectsV2(m.bucket, prefix, "", token, "", page)
		if err != nil {
			return nil, err
		}
		for _, o := range r.Contents {
			out = append(out, listed{o.Key, o.Size})
		}
		if !r.IsTruncated {
			return out, nil
		}
		token = r.NextContinuationToken
	}
	return nil, errors.New("the listing does not end")
}

const maxPages = 100_000

type awsStore struct {
	c      *s3.Client
	bucket string
}

func newAWSStore(t testing.TB, s *server, bucket string) *awsStore {
	t.Helper()
	return &awsStore{s3.New(s3.Options{
		Region: region, BaseEndpoint: aws.String(s.url()), UsePathStyle: true, RetryMaxAttempts: 1,
		HTTPClient: &http.Client{Transport: ownTransport(t)},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: accessKey, SecretAccessKey: secretKey}, nil
		}),
	}), bucket}
}

func (a *awsStore) put(ctx context.Context, key string, body []byte) error {
	_, err := a.c.PutObject(ctx, &s3.PutObjectInput{Bucket: &a.bucket, Key: &key, Body: bytes.NewReader(body)})
	return err
}

func (a *awsStore) get(ctx context.Context, key string) ([]byte, error) {
	o, err := a.c.GetObject(ctx, &s3.GetObjectInput{Bucket: &a.bucket, Key: &key})
	if err != nil {
		var none *s3types.NoSuchKey
		if errors.As(err, &none) {
			return nil, errAbsent
		}
		return nil, err
	}
	return readWhole(o.Body, aws.ToInt64(o.ContentLength))
}

func (a *awsStore) del(ctx context.Context, key string) error {
	_, err := a.c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &a.bucket, Key: &key})
	return err
}

func (a *awsStore) multipart(ctx context.Context, key string, parts [][]byte) (bool, error) {
	up, err := a.c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &a.bucket, Key: &key})
	if err != nil {
		return false, err
	}
	var done []s3types.CompletedPart
	for i, p := range parts {
		n := aws.Int32(int32(i + 1))
		part, err := a.c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &a.bucket, Key: &key, UploadId: up.UploadId, PartNumber: n, Body: bytes.NewReader(p)})
		if err != nil {
			return false, err
		}
		done = append(done, s3types.CompletedPart{PartNumber: n, ETag: part.ETag, ChecksumCRC32: part.ChecksumCRC32})
	}
	_, err = a.c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &a.bucket, Key: &key, UploadId: up.UploadId,
		MultipartUpload: &s3types.CompletedMultipartUpload{Parts: done}})
	return true, err
}

func (a *awsStore) list(ctx context.Context, prefix string, page int) ([]listed, error) {
	var out []listed
	pages := s3.NewListObjectsV2Paginator(a.c, &s3.ListObjectsV2Input{Bucket: &a.bucket, Prefix: &prefix, MaxKeys: aws.Int32(int32(page))})
	for range maxPages {
		if !pages.HasMorePages() {
			return out, nil
		}
		r, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, o := range r.Contents {
			out = append(out, listed{aws.ToString(o.Key), aws.ToInt64(o.Size)})
		}
	}
	return nil, errors.New("the listing does not end")
}

// readWhole reads a body to its announced end. A body that broke off is an error, never content.
func readWhole(r io.ReadCloser, size int64) ([]byte, error) {
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != size {
		err = fmt.Errorf("the body has %d bytes and its head announced %d", len(b), size)
	}
	return b, err
}

// randomBody returns size bytes that follow from seed.
func randomBody(seed uint64, size int) []byte {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	b := make([]byte, size)
	// ChaCha8 never fails.
	_, _ = rand.NewChaCha8(s).Read(b)
	return b
}

// failure is a request of the load that was not answered as it should be without faults.
type failure struct {
	op, key    string
	begin, end time.Time
	status     int // 0: no answer
	code       string
	err        error
}

func (f failure) writes() bool { return f.op != "GET" && f.op != "LIST" }

func (f failure) String() string {
	return fmt.Sprintf("%s %s: %d %s after %v: %v", f.op, f.key, f.status, f.code, f.end.Sub(f.begin).Round(time.Millisecond), f.err)
}

type worker struct {
	name   string
	rng    *rand.Rand
	client store
	// ledger is used by the worker under the gate's read lock, by others under its write lock.
	ledger map[string]*keyState
	keys   []string
}

type load struct {
	t       testing.TB
	workers []*worker
	check   []store // clients of the checks

	// gate is read-locked during each operation of a worker; its write lock pauses the load.
	gate   sync.RWMutex
	paused bool // of the goroutine of the test alone

	ops    atomic.Int64 // ended, well or not
	puts   atomic.Int64 // acknowledged PUTs and completed multipart objects
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the field below
	failures []failure
}

// newLoad makes a load with an empty ledger over the bucket of the load, paused. Half of its workers use
// minio-go, half aws-sdk-go-v2, none retries.
func newLoad(t testing.TB, s *server, stream uint64) *load {
	t.Helper()
	return newLoadOf(t, s, stream, func(i int) store {
		if i%2 == 1 {
			return newAWSStore(t, s, loadBucket)
		}
		return newMinioStore(t, s, loadBucket)
	})
}

// newLoadOf makes a load whose workers use the clients that client makes.
func newLoadOf(t testing.TB, s *server, stream uint64, client func(worker int) store) *load {
	t.Helper()
	l := &load{t: t, check: []store{newAWSStore(t, s, loadBucket), newMinioStore(t, s, loadBucket)}, paused: true}
	l.gate.Lock()
	for i := range loadWorkers {
		w := &worker{name: fmt.Sprintf("w%d", i), rng: random(stream<<16 + uint64(i)), ledger: map[string]*keyState{}}
		w.client = client(i)
		for j := range loadKeys {
			key := fmt.Sprintf("%s/%02d", w.name, j)
			w.keys = append(w.keys, key)
			w.ledger[key] = &keyState{is: nothing}
		}
		l.workers = append(l.workers, w)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for _, w := range l.workers {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				l.gate.RLock()
				if ctx.Err() == nil {
					l.step(w)
				}
				l.gate.RUnlock()
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// end stops the workers and waits for them.
func (l *load) end() {
	l.cancel()
	if l.paused {
		l.resume()
	}
	l.wg.Wait()
}

// pause waits for what is in flight and holds the workers.
func (l *load) pause() {
	l.gate.Lock()
	l.paused = true
}

func (l *load) resume() {
	l.paused = false
	l.gate.Unlock()
}

// advance waits until the load has ended n more operations.
func (l *load) advance(n int64, limit time.Duration) {
	l.t.Helper()
	target := l.ops.Load() + n
	poll(l.t, limit, 5*time.Millisecond, fmt.Sprintf("%d operations of the load", n), func() error {
		if left := target - l.ops.Load(); left > 0 {
			return fmt.Errorf("%d are outstanding; the last failures: %v", left, l.lastFailures())
		}
		return nil
	})
}

func (l *load) lastFailures() []failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.failures[max(0, len(l.failures)-3):])
}

// takeFailures returns the failures since the last call.
func (l *load) takeFailures() []failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.failures
	l.failures = nil
	return f
}

// step does one random operation of a worker.
func (l *load) step(w *worker) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	key := w.keys[w.rng.IntN(len(w.keys))]
	e := w.ledger[key]
	begin := time.Now()
	op, err := "", error(nil)
	switch n := w.rng.IntN(100); {
	case n < 45:
		op = "PUT"
		body := randomBody(w.rng.Uint64(), loadSizes[w.rng.IntN(len(loadSizes))])
		err = w.client.put(ctx, key, body)
		e.tried(contentOf(body), err)
		if err == nil {
			l.puts.Add(1)
		}
	case n < 52:
		op = "multipart"
		parts := make([][]byte, 1+w.rng.IntN(3))
		for i := range parts {
			parts[i] = randomBody(w.rng.Uint64(), loadPart+i)
		}
		var completing bool
		completing, err = w.client.multipart(ctx, key, parts)
		if completing {
			e.tried(contentOf(bytes.Join(parts, nil)), err)
		}
		if err == nil {
			l.puts.Add(1)
		}
	case n < 66:
		op = "DELETE"
		err = w.client.del(ctx, key)
		e.tried(nothing, err)
	case n < 92:
		op = "GET"
		err = l.compare(ctx, w.client, key, e)
	default:
		op = "LIST"
		err = l.compareList(ctx, w, 1+w.rng.IntN(loadKeys))
	}
	if err != nil {
		f := failure{op: op, key: key, begin: begin, end: time.Now(), err: err}
		f.status, f.code = answered(err)
		l.mu.Lock()
		l.failures = append(l.failures, f)
		l.mu.Unlock()
	}
	l.ops.Add(1)
}

// compare reads a key and holds it against the ledger. What the ledger does not allow fails the
// test; a read that fails is returned.
func (l *load) compare(ctx context.Context, c store, key string, e *keyState) error {
	body, err := c.get(ctx, key)
	got := contentOf(body)
	if errors.Is(err, errAbsent) {
		got, err = nothing, nil
	}
	if err != nil {
		return err
	}
	if !e.allows(got) {
		l.t.Errorf("GET %s: %v, want %v (seed %d)%s", key, got, e, *seedFlag, e.story())
		return nil
	}
	e.note("read %v", got)
	e.seen(got)
	return nil
}

// compareList lists the keys of a worker and holds them against its ledger.
func (l *load) compareList(ctx context.Context, w *worker, page int) error {
	names, err := w.client.list(ctx, w.name+"/", page)
	if err != nil {
		return err
	}
	if !slices.IsSortedFunc(names, func(a, b listed) int { return strings.Compare(a.key, b.key) }) {
		l.t.Errorf("LIST %s/: not in order: %v", w.name, names)
	}
	sizes := map[string]int64{}
	for _, n := range names {
		if _, twice := sizes[n.key]; twice {
			l.t.Errorf("LIST %s/: %s is listed twice", w.name, n.key)
		}
		if w.ledger[n.key] == nil {
			l.t.Errorf("LIST %s/: %s was never written", w.name, n.key)
		}
		sizes[n.key] = n.size
	}
	for _, key := range w.keys {
		size, there := sizes[key]
		ok := func(c content) bool { return c.absent && !there || !c.absent && there && c.size == size }
		if e := w.ledger[key]; !ok(e.is) && !slices.ContainsFunc(e.maybe, ok) {
			l.t.Errorf("LIST %s/ (pages of %d): %s listed %v with %d bytes, want %v (seed %d)%s", w.name, page, key, there, size, e, *seedFlag, e.story())
		}
	}
	return nil
}

// entries returns the ledger. The load has to be paused.
func (l *load) entries() map[string]*keyState {
	all := map[string]*keyState{}
	for _, w := range l.workers {
		for k, e := range w.ledger {
			all[k] = e
		}
	}
	return all
}

// present returns the keys that hold a body and whose last request was answered, sorted. The load has
// to be paused and verified.
func (l *load) present() []string {
	var keys []string
	for k, e := range l.entries() {
		if !e.is.absent && len(e.maybe) == 0 {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// verify reads the keys and holds each against the ledger; nothing may fail. The load has to be
// paused.
func (l *load) verify(keys []string) {
	l.t.Helper()
	all := l.entries()
	work := make(chan string)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for key := range work {
				ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
				if err := l.compare(ctx, l.check[i%len(l.check)], key, all[key]); err != nil {
					status, code := answered(err)
					l.t.Errorf("GET %s: %d %s %v, want %v (seed %d)", key, status, code, err, all[key], *seedFlag)
				}
				cancel()
			}
		})
	}
	for _, key := range keys {
		work <- key
	}
	close(work)
	wg.Wait()
}

// verifyAll reads every key of the ledger, and then lists: the listing has to agree with the ledger,
// and so with the reads.
func (l *load) verifyAll() {
	l.t.Helper()
	var keys []string
	for k := range l.entries() {
		keys = append(keys, k)
	}
	l.verify(keys)
	for _, w := range l.workers {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		if err := l.compareList(ctx, w, 7); err != nil {
			l.t.Errorf("LIST %s/: %v", w.name, err)
		}
		cancel()
	}
}
