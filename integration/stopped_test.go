package integration

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// TestFaultProcessStopped stops the process with SIGSTOP under load, for longer than its clients and its
// own calls wait, and lets it go on. Clients that gave up and tried again have what they were told; nothing
// acknowledged is lost, and the drives are still trusted.
func TestFaultProcessStopped(t *testing.T) {
	t.Parallel()
	stops, pauseFor := 2, 6*time.Second
	if *long && !testing.Short() {
		stops, pauseFor = 10, 20*time.Second
	}
	s := startLoaded(t, 4)
	l, rng := newLoad(t, s, 60), random(61)

	// Impatient clients give up after half a second and repeat the request, many times. Each key is written
	// once, so that an attempt that was given up and takes effect late changes nothing.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var acked, attempts atomic.Int64
	var mu sync.Mutex // guards stored
	stored := map[string][]byte{}
	for w := range 4 {
		tr := ownTransport(t)
		c := s.s3(func(o *s3.Options) {
			o.HTTPClient = &http.Client{Timeout: 500 * time.Millisecond, Transport: counting{tr, &attempts}}
			o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
				r.MaxAttempts, r.MaxBackoff, r.RateLimiter = 1000, 200*time.Millisecond, nolimit{}
			})
		})
		own := random(62 + uint64(w))
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key, body := fmt.Sprintf("held/impatient-%d-%d", w, i), randomBody(own.Uint64(), 1+own.IntN(100*kib))
				// The request outlives the end of the test's load: it ends by itself.
				_, err := c.PutObject(context.WithoutCancel(ctx), &s3.PutObjectInput{Bucket: aws.String(loadBucket), Key: &key, Body: bytes.NewReader(body)})
				if err != nil {
					t.Errorf("PUT %s with retries: %v", key, err)
					return
				}
				acked.Add(1)
				mu.Lock()
				stored[key] = body
				mu.Unlock()
			}
		})
	}
	l.resume()
	for stop := range stops {
		l.advance(100, time.Minute)
		moment := time.NewTimer(time.Duration(rng.IntN(300)) * time.Millisecond)
		<-moment.C
		before := attempts.Load()
		if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		stopped := time.NewTimer(pauseFor)
		<-stopped.C
		if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		l.advance(100, time.Minute)
		refused := l.onlyRefusals(fmt.Sprintf("stop %d", stop))
		s.waitOnline(4)
		l.advance(100, time.Minute)
		l.noFailures("after it went on")
		t.Logf("stopped for %v: %d requests refused, %d attempts of impatient clients meanwhile", pauseFor, refused, attempts.Load()-before)
	}
	cancel()
	wg.Wait()
	l.pause()
	l.noFailures("at the end")
	l.verifyAll()
	h := &held{t: t, bodies: stored}
	h.check(s, "after all stops")
	s.waitHealed(append(l.present(), slices.Collect(maps.Keys(stored))...), 3*time.Minute)
	t.Logf("%d acknowledged to impatient clients in %d attempts", acked.Load(), attempts.Load())
}

// counting counts the requests that go through it.
type counting struct {
	http.RoundTripper
	n *atomic.Int64
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

// nolimit lets a client repeat a request as often as it wants.
type nolimit struct{}

func (nolimit) GetToken(context.Context, uint) (func() error, error) {
	return func() error { return nil }, nil
}
func (nolimit) AddTokens(uint) error { return nil }
