package integration

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// TestFaultDuringConcurrentCreates has a hundred clients create each key with If-None-Match: *. Without
// a fault exactly one of them is told 200; with the process killed in their midst at most one, and the
// key then holds a body of one of them, which is that one's where one was told.
func TestFaultDuringConcurrentCreates(t *testing.T) {
	t.Parallel()
	rounds := 4
	if *long && !testing.Short() {
		rounds = 100
	}
	const clients = 100
	s := start(t, 4)
	bucket := s.bucket(t, "races")
	c, rng := s.s3(), random(80)
	killed, without := 0, 0
	for round := range rounds {
		key := fmt.Sprintf("key-%d", round)
		kill := round%2 == 1
		var won, lost, unanswered atomic.Int64
		var winner atomic.Int64
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				defer cancel()
				_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, IfNoneMatch: aws.String("*"), Body: bytes.NewReader([]byte(strconv.Itoa(i)))})
				switch status := status(err); {
				case err == nil:
					won.Add(1)
					winner.Store(int64(i))
				case status == http.StatusPreconditionFailed || status == http.StatusConflict:
					lost.Add(1)
				default:
					unanswered.Add(1)
					if !kill {
						t.Errorf("%s, client %d: %v, want 200 or 412", key, i, err)
					}
				}
			})
		}
		if kill {
			moment := time.NewTimer(time.Duration(rng.IntN(150)) * time.Millisecond)
			<-moment.C
			s.kill()
		}
		wg.Wait()
		if kill {
			killed++
			s.start()
		}
		if n := won.Load(); n > 1 || n == 0 && !kill {
			t.Errorf("%s: %d clients were told that they created it (killed %v)", key, n, kill)
		}
		if won.Load() == 0 {
			without++
		}
		got, _, err := getOrAbsent(t, c, bucket, key)
		switch {
		case err != nil:
			t.Errorf("GET %s: %v", key, err)
		case won.Load() == 1 && string(got) != strconv.FormatInt(winner.Load(), 10):
			t.Errorf("%s holds %q, and client %d was told that it created it", key, got, winner.Load())
		case won.Load() == 0 && lost.Load() > 0 && got == nil:
			t.Errorf("%s is absent, and %d clients were told that it exists", key, lost.Load())
		}
	}
	t.Logf("%d rounds of %d clients, %d with a kill; in %d nobody was told", rounds, clients, killed, without)
}

// TestFaultDuringCompareAndSwap has clients raise a counter with If-Match while a drive goes away and comes
// back: the counter ends at the number of successes.
func TestFaultDuringCompareAndSwap(t *testing.T) {
	t.Parallel()
	each := 25
	if *long && !testing.Short() {
		each = 400
	}
	s := start(t, 4)
	bucket, key := s.bucket(t, "counter"), "n"
	c := s.s3()
	put(t, c, bucket, key, []byte("0"))
	var raised, conflicts, unclear atomic.Int64
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for done := 0; done < each; {
				got, tag, err := getOrAbsent(t, c, bucket, key)
				if err != nil || got == nil {
					if status(err) != http.StatusServiceUnavailable {
						t.Errorf("GET: %q, %v", got, err)
						return
					}
					continue
				}
				n, err := strconv.Atoi(string(got))
				if err != nil {
					t.Errorf("the counter holds %q", got)
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, IfMatch: &tag, Body: bytes.NewReader([]byte(strconv.Itoa(n + 1)))})
				cancel()
				switch status := status(err); {
				case err == nil:
					raised.Add(1)
					done++
				case status == http.StatusPreconditionFailed || status == http.StatusConflict:
					conflicts.Add(1)
				case status == http.StatusServiceUnavailable:
					unclear.Add(1) // it may have happened
					done++
				default:
					t.Errorf("PUT of %d: %v", n+1, err)
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	go func() { wg.Wait(); close(stop) }()
	for i, rng := 0, random(81); ; i++ {
		drive := rng.IntN(4)
		s.takeDrive(drive)
		s.waitOnline(3)
		s.returnDrive(drive)
		s.waitOnline(4)
		select {
		case <-stop:
			got, _, err := getOrAbsent(t, c, bucket, key)
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.ParseInt(string(got), 10, 64)
			if low, high := raised.Load(), raised.Load()+unclear.Load(); err != nil || n < low || n > high {
				t.Errorf("the counter is %q after %d successes and %d requests whose outcome is unknown", got, low, high-low)
			}
			t.Logf("%d successes, %d conflicts, %d without a clear answer, while drives went and came %d times: the counter is %d", raised.Load(), conflicts.Load(), unclear.Load(), i+1, n)
			return
		default:
		}
	}
}

// getOrAbsent reads a small body and its ETag; nil where there is none.
func getOrAbsent(t *testing.T, c *s3.Client, bucket, key string) (body []byte, tag string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	o, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if status(err) == http.StatusNotFound {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	body, err = readWhole(o.Body, aws.ToInt64(o.ContentLength))
	return body, aws.ToString(o.ETag), err
}
