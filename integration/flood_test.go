package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// Bounds of the resident set under a flood of distinct keys, with a limit of 256 MiB for the heap and no
// read cache, four drives. A drive remembers at most 131072 promises and as many pins, whatever comes.
const (
	floodHeap  = "256MiB"
	floodBound = 450e6
)

// resident is what the process holds now, in bytes (VmRSS).
func (s *server) resident() int64 {
	s.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(raw), "VmRSS:")
	if !ok {
		s.t.Fatal("no VmRSS in /proc/PID/status")
	}
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return kb << 10
}

// TestFloodOfDistinctKeys asks for very many keys, each once: conditional PUTs that fail leave a promise and
// nothing else, small PUTs leave a row. Neither may make the process grow without end.
func TestFloodOfDistinctKeys(t *testing.T) {
	t.Parallel()
	keys := 40_000
	if *long && !testing.Short() {
		keys = 1_000_000
	}
	s := newServer(t, 4, "--cache-size=0", "--memory-limit="+floodHeap)
	s.start()
	c := newMinioStore(t, s, loadBucket)
	if err := c.core.MakeBucket(t.Context(), loadBucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	var absent minio.PutObjectOptions
	absent.SetMatchETag("5d41402abc4b2a76b9719d911017c592")
	body := []byte("flood")
	var acked, refused atomic.Int64
	flood := func(from, to int) {
		next := make(chan int, 256)
		var wg sync.WaitGroup
		for range 48 {
			wg.Go(func() {
				for i := range next {
					key := fmt.Sprintf("flood/%08d", i)
					o := minio.PutObjectOptions{}
					if i%4 > 0 {
						o = absent
					}
					_, err := c.core.PutObject(t.Context(), loadBucket, key, bytes.NewReader(body), int64(len(body)), "", "", o)
					switch status, _ := answered(err); {
					case err == nil && i%4 == 0:
						acked.Add(1)
					case i%4 > 0 && (status == http.StatusPreconditionFailed || status == http.StatusNotFound):
						refused.Add(1)
					default:
						t.Errorf("PUT %s: %v", key, err)
						return
					}
					if i%16 == 0 {
						_, err := c.core.StatObject(t.Context(), loadBucket, key, minio.StatObjectOptions{})
						if err != nil {
							t.Errorf("HEAD %s: %v", key, err)
							return
						}
					}
				}
			})
		}
		for i := from; i < to && !t.Failed(); i++ {
			next <- i
		}
		close(next)
		wg.Wait()
	}
	begin := time.Now()
	var last int64
	for step := range 4 {
		flood(step*keys/4, (step+1)*keys/4)
		if t.Failed() {
			return
		}
		last = s.resident()
		t.Logf("%d keys after %v: %d MB resident, at most %d MB", (step+1)*keys/4, time.Since(begin).Round(time.Second), last/1e6, s.highWater()/1e6)
	}
	if peak := s.highWater(); peak > floodBound {
		t.Errorf("%d MB resident, want at most %d MB", peak/1e6, int64(floodBound)/1e6)
	}
	t.Logf("%d PUTs acknowledged, %d conditional PUTs refused", acked.Load(), refused.Load())
	for i := 0; i < keys; i += max(keys/200, 1) {
		got, err := c.get(t.Context(), fmt.Sprintf("flood/%08d", i-i%4))
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("GET of key %d: %q, %v", i-i%4, got, err)
		}
	}
}
