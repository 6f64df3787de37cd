package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// healState is what the tests read of `ostraka admin heal status --json`.
type healState struct {
	State   string    `json:"state"`
	Why     []string  `json:"why"`
	Backlog int       `json:"backlog"`
	Jobs    []healJob `json:"jobs"`

	VerifiedRegisters int64 `json:"verified_registers"`
	VerifiedShards    int64 `json:"verified_shards"`
	VerifiedBytes     int64 `json:"verified_bytes"`
}

type healJob struct {
	Kind      string `json:"kind"`
	Drive     int    `json:"drive"`
	State     string `json:"state"`
	Phase     string `json:"phase"`
	Done      int64  `json:"done_registers"`
	Total     int64  `json:"total_registers"`
	Shards    int64  `json:"shards"`
	Bytes     int64  `json:"bytes"`
	LastError string `json:"last_error"`

	Swaps        int     `json:"swaps"`
	Pause        float64 `json:"pause_seconds"`
	LongestPause float64 `json:"longest_pause_seconds"`
}

func (s *server) healing() (*healState, error) {
	out, stderr, err := s.ostraka("admin", "heal", "status", "--json")
	if err != nil {
		return nil, fmt.Errorf("heal status: %w: %s", err, stderr)
	}
	h := new(healState)
	return h, json.Unmarshal([]byte(out), h)
}

// replacements returns how many drives are being replaced.
func (s *server) replacements() (int, error) {
	out, stderr, err := s.ostraka("admin", "drive", "list", "--json")
	if err != nil {
		return 0, fmt.Errorf("drive list: %w: %s", err, stderr)
	}
	var list struct {
		Replacements []json.RawMessage `json:"replacements"`
	}
	err = json.Unmarshal([]byte(out), &list)
	return len(list.Replacements), err
}

// waitHealthy asks for a complete check and waits until it has verified everything.
func (s *server) waitHealthy(limit time.Duration) *healState {
	s.t.Helper()
	var last *healState
	if _, stderr, err := s.ostraka("admin", "heal", "start", "--json"); err != nil {
		s.t.Fatalf("heal start: %v: %s", err, stderr)
	}
	poll(s.t, limit, 500*time.Millisecond, "the store to be verified as healthy", func() (err error) {
		if last, err = s.healing(); err == nil && last.State != "healthy" {
			err = fmt.Errorf("%+v", last)
		}
		return err
	})
	return last
}

// traffic counts what clients with their usual retries met on the wire.
type traffic struct {
	http.RoundTripper
	requests, unavailable, other5xx, broken atomic.Int64
}

func (c *traffic) RoundTrip(r *http.Request) (*http.Response, error) {
	c.requests.Add(1)
	resp, err := c.RoundTripper.RoundTrip(r)
	switch {
	case err != nil:
		c.broken.Add(1)
	case resp.StatusCode == http.StatusServiceUnavailable:
		c.unavailable.Add(1)
	case resp.StatusCode >= 500:
		c.other5xx.Add(1)
	}
	return resp, err
}

// retryingStore is a minio-go client as people use it: with the retries that it has by default.
func retryingStore(t testing.TB, s *server, bucket string, count *traffic) *minioStore {
	t.Helper()
	core, err := minio.NewCore(s.addr, &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: region,
		Transport: count, BucketLookup: minio.BucketLookupPath})
	if err != nil {
		t.Fatal(err)
	}
	return &minioStore{core, bucket}
}

// stock is many objects that are written once and then only read; each follows from its number.
type stock struct {
	small, large int
	largeSize    int64
}

func (k stock) key(i int) string { return fmt.Sprintf("stock/%07d", i) }

// body of object i: the large ones come last.
func (k stock) body(i int) *body {
	if i >= k.small {
		return newBody(uint64(i), k.largeSize)
	}
	return newBody(uint64(i), int64(word(uint64(i), 0)%(8*kib)))
}

func (k stock) all() int { return k.small + k.large }

// each calls f for the numbers, many at a time, until one fails.
func (k stock) each(numbers []int, many int, f func(i int) error) error {
	var wg sync.WaitGroup
	next := make(chan int)
	failed := make(chan error, many)
	for range many {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					failed <- fmt.Errorf("%s: %w", k.key(i), err)
					return
				}
			}
		})
	}
	var err error
feed:
	for _, i := range numbers {
		select {
		case next <- i:
		case err = <-failed:
			break feed
		}
	}
	close(next)
	wg.Wait()
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}

func (k stock) same(ctx context.Context, c store, i int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	got, err := c.get(ctx, k.key(i))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, k.body(i).bytes()) {
		return errWrongBody
	}
	return nil
}

var errWrongBody = errors.New("the body is not the one that was written")

// outage is a time in which the process was killed and not yet back.
type outage struct{ from, to time.Time }

// TestDriveReplaced replaces one of six drives by an empty one, under the load of clients with their usual
// retries, and kills the process three times on the way. The replacement goes on by itself, no client
// sees an error but those of connections cut by a kill, no read is stale, and the end is verified.
func TestDriveReplaced(t *testing.T) {
	t.Parallel()
	k := stock{small: 3000, large: 6, largeSize: 16 * mib}
	limit := 5 * time.Minute
	if *long && !testing.Short() {
		k = stock{small: 200_000, large: 200, largeSize: 16 * mib}
		limit = 3 * time.Hour
	}
	if *stockFlag > 0 {
		k.small, k.large = *stockFlag, *stockFlag/1000
		limit = 3 * time.Hour
	}
	s := newServer(t, 6, append([]string{"--profile=4+2"}, loadArgs...)...)
	s.withTestLimits()
	s.start()
	count := &traffic{RoundTripper: ownTransport(t)}
	c := retryingStore(t, s, loadBucket, count)
	if err := c.core.MakeBucket(t.Context(), loadBucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	numbers := make([]int, k.all())
	for i := range numbers {
		numbers[i] = i
	}
	err := k.each(numbers, 24, func(i int) error { return c.put(t.Context(), k.key(i), k.body(i).bytes()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d small and %d large objects written in %v", k.small, k.large, time.Since(begin).Round(time.Second))

	l := newLoadOf(t, s, 70, func(int) store { return retryingStore(t, s, loadBucket, count) })
	l.resume()
	l.advance(100, time.Minute)
	reading, stopReading := context.WithCancel(t.Context())
	defer stopReading()
	var readers sync.WaitGroup
	var reads atomic.Int64
	for i := range 2 {
		rng := random(71 + uint64(i))
		readers.Go(func() {
			for reading.Err() == nil {
				n := rng.IntN(k.all())
				at := time.Now()
				err := k.same(t.Context(), c, n)
				reads.Add(1)
				if errors.Is(err, errWrongBody) {
					t.Errorf("GET %s: %v", k.key(n), err)
				} else if err != nil {
					f := failure{op: "GET", key: k.key(n), begin: at, end: time.Now(), err: err}
					f.status, f.code = answered(err)
					l.mu.Lock()
					l.failures = append(l.failures, f)
					l.mu.Unlock()
				}
			}
		})
	}

	// The disk dies, and an empty one is mounted in its place.
	rng := random(73)
	dead := rng.IntN(6)
	s.takeDrive(dead)
	s.waitOnline(5)
	if err := os.Mkdir(s.dirs[dead], 0o755); err != nil {
		t.Fatal(err)
	}
	l.advance(100, time.Minute)
	begin = time.Now()
	if out, stderr, err := s.ostraka("admin", "drive", "replace", "--json", s.dirs[dead]); err != nil {
		t.Fatalf("drive replace: %v\n%s%s", err, out, stderr)
	}
	var outages []outage
	kill := func(when string) {
		o := outage{from: time.Now()}
		s.kill()
		s.start()
		o.to = time.Now()
		outages = append(outages, o)
		t.Logf("killed %v after the begin, %s; ready after %v", o.from.Sub(begin).Round(time.Millisecond), when, o.to.Sub(o.from).Round(time.Millisecond))
	}
	// Three kills: at the very begin, and at a third and two thirds of the rebuild, or wherever it is.
	kill("right after the command")
	for n := range 2 {
		where := "when nothing was seen of it yet"
		poll(t, limit, 50*time.Millisecond, "the rebuild to advance", func() error {
			left, err := s.replacements()
			if err != nil || left == 0 {
				where = fmt.Sprintf("after the end (%v)", err)
				return err
			}
			h, err := s.healing()
			if err != nil {
				return err
			}
			for _, j := range h.Jobs {
				if j.Kind != "rebuild" {
					continue
				}
				where = fmt.Sprintf("in phase %q, %d of %d registers", j.Phase, j.Done, j.Total)
				if j.Phase == "verify" || j.Phase == "shards" && j.Done*3 >= j.Total*int64(n+1) && j.Total > 0 {
					return nil
				}
			}
			return fmt.Errorf("%s: %+v", where, h)
		})
		kill(where)
	}
	var last *healState
	poll(t, limit, 200*time.Millisecond, "the replacement to end", func() (err error) {
		left, err := s.replacements()
		if err != nil || left == 0 {
			return err
		}
		if last, err = s.healing(); err != nil {
			return err
		}
		return fmt.Errorf("%+v", last)
	})
	took := time.Since(begin)
	if h, err := s.healing(); err == nil {
		for _, j := range h.Jobs {
			if j.Kind == "rebuild" {
				t.Logf("the rebuild says: %+v", j)
			}
		}
	}
	s.waitOnline(6)
	l.advance(100, time.Minute)
	stopReading()
	readers.Wait()
	l.pause()

	cut, bad := 0, 0
	for _, f := range l.takeFailures() {
		meets := func(o outage) bool { return f.begin.Before(o.to) && f.end.After(o.from) }
		switch {
		case f.status == 0 && slices.ContainsFunc(outages, meets):
			cut++
		default:
			bad++
			t.Errorf("a client error: %v (%v after the begin)", f, f.begin.Sub(begin))
		}
	}
	t.Logf("replaced in %v, with %d kills; %d operations of the load, %d reads of the stock, %d requests on the wire; %d client errors, and %d requests cut by a kill; tried again by the client: %d 503, %d other 5xx, %d broken connections",
		took.Round(time.Millisecond), len(outages), l.ops.Load(), reads.Load(), count.requests.Load(), bad, cut, count.unavailable.Load(), count.other5xx.Load(), count.broken.Load())
	l.verifyAll()
	if err := k.each(numbers, 8, func(i int) error { return k.same(t.Context(), c, i) }); err != nil {
		t.Error(err)
	}
	h := s.waitHealthy(limit)
	t.Logf("verified as healthy: %d registers, %d shards, %d bytes", h.VerifiedRegisters, h.VerifiedShards, h.VerifiedBytes)
	if h.VerifiedRegisters < int64(k.all()) {
		t.Errorf("healthy after a check of %d registers, want at least %d", h.VerifiedRegisters, k.all())
	}
	sample := l.present()
	for i := range k.large {
		sample = append(sample, k.key(k.small+i))
	}
	for range 40 {
		sample = append(sample, k.key(rng.IntN(k.small)))
	}
	s.waitHealed(sample, time.Minute)
	s.stop(30 * time.Second)
}
