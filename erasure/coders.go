package erasure

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/reedsolomon"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// Sink receives one shard file.
//
// Write is called sequentially, from one goroutine at a time. p is valid only during the call, its
// length is a multiple of Align, and its memory starts at a multiple of Align. No Write begins after
// Encode or Rebuild returned, but one that hangs may still be running for a sink reported with
// ErrLagging: whoever closes the sink must expect that.
type Sink interface {
	Write(ctx context.Context, p []byte) error
}

// Source reads a shard file. ReadAt has the contract of io.ReaderAt and may be called concurrently;
// offsets and lengths are multiples of Align, and so is the memory. Close is called once, after
// the last ReadAt returned.
type Source interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Close() error
}

// Open opens one shard for reading. An error of kind errs.NotFound or errs.Corrupt says that the
// shard is damaged and wants repair; any other that it cannot be reached now. It may be called
// concurrently for different shards. ctx lives as long as the reader: a Source may keep it.
type Open func(ctx context.Context, shard int) (Source, error)

// Coders is what streams share: one codec per profile, buffers, what is known of the latency of
// reads, and the count of goroutines that outlive their stream because a drive hangs. Make one per
// process. Its methods are safe for concurrent use.
type Coders struct {
	pool    *bufpool.Pool
	codecs  sync.Map // Profile → reedsolomon.Encoder
	latency latency
	readers atomic.Int64 // ranges being written: they share readMemory

	// mu guards running.
	mu      sync.Mutex
	running int
	idle    chan struct{} // closed when running is 0; nil when nobody waits
}

// NewCoders makes a Coders that takes its buffers from pool; nil makes a pool of its own.
func NewCoders(pool *bufpool.Pool) *Coders {
	if pool == nil {
		pool = bufpool.New(bufpool.Options{})
	}
	return &Coders{pool: pool}
}

// codersOr returns c, or a private Coders whose idle memory release gives back.
func codersOr(c *Coders) (_ *Coders, release func()) {
	if c != nil {
		return c, func() {}
	}
	c = NewCoders(nil)
	return c, c.pool.Close
}

// Wait waits until every goroutine started on behalf of a stream has returned, those included that
// were left behind in a hanging call, or until ctx ends.
func (c *Coders) Wait(ctx context.Context) error {
	c.mu.Lock()
	if c.running == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return errs.Wrap("erasure.Wait", ctx.Err())
	}
}

// Running returns how many goroutines work for streams now. Without streams these are the ones
// that hang.
func (c *Coders) Running() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// spawn runs f on a goroutine that Wait waits for.
func (c *Coders) spawn(f func()) {
	c.mu.Lock()
	c.running++
	c.mu.Unlock()
	go func() {
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.running--; c.running == 0 && c.idle != nil {
				close(c.idle)
				c.idle = nil
			}
		}()
		f()
	}()
}

// codec returns the codec of p. Codecs are deterministic and safe for concurrent use, so that two
// made in a race are equal.
func (c *Coders) codec(p Profile) (reedsolomon.Encoder, error) {
	if rs, ok := c.codecs.Load(p); ok {
		return rs.(reedsolomon.Encoder), nil
	}
	// One goroutine: the coding of a stripe is shorter than handing it to others.
	rs, err := reedsolomon.New(int(p.Data), int(p.Parity), reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, errs.As("erasure.codec", errs.Invalid, err)
	}
	c.codecs.Store(p, rs)
	return rs, nil
}

// encode fills the parity shards of shards, all of equal length, from the data shards.
func (c *Coders) encode(p Profile, shards [][]byte) error {
	if p.Parity == 0 || len(shards[0]) == 0 {
		return nil
	}
	rs, err := c.codec(p)
	if err != nil {
		return err
	}
	return errs.Wrap("erasure.encode", rs.Encode(shards))
}

// reconstruct fills the required shards. Missing ones have length 0 and capacity for the result.
func (c *Coders) reconstruct(p Profile, shards [][]byte, required []bool) error {
	rs, err := c.codec(p)
	if err != nil {
		return err
	}
	return errs.Wrap("erasure.reconstruct", rs.ReconstructSome(shards, required))
}

// latency estimates the 95th percentile of how long a read takes: each sample above it raises it
// a little, each below lowers it by a nineteenth of that.
type latency struct{ p95 atomic.Int64 }

const (
	hedgeStart = 100 * time.Millisecond // before anything was observed
	hedgeMin   = 10 * time.Millisecond  // below, hedging costs more than it saves
	hedgeMax   = 2 * time.Second
)

func (l *latency) observe(d time.Duration) {
	// A lost update under a race costs one sample.
	q := l.p95.Load()
	if q == 0 {
		q = int64(hedgeStart / 2)
	}
	step := max(q/50, 1000)
	if int64(d) > q {
		q += step * 19
	} else {
		q -= step
	}
	l.p95.Store(min(max(q, int64(time.Millisecond)), int64(hedgeMax)))
}

// hedgeAfter is twice the estimate, within bounds.
func (l *latency) hedgeAfter() time.Duration {
	q := l.p95.Load()
	if q == 0 {
		return hedgeStart
	}
	return min(max(2*time.Duration(q), hedgeMin), hedgeMax)
}
