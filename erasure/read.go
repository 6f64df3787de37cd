package erasure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// ReadOptions say how a chunk is read. The zero value is good.
type ReadOptions struct {
	// Coders is what this reader shares with others; nil makes a private one.
	Coders *Coders
	// HedgeAfter returns how long a read may take before others are started in its stead. nil derives
	// it from the reads that Coders has seen. 0 or less means never.
	HedgeAfter func() time.Duration
	// Order lists shards, best first (near, fast); those not listed follow in their order. Whole
	// stripes are read from the first k that work, so that a parity shard among them costs a decode, which
	// is much cheaper than a network. A range within fewer than k data shards is read from exactly these
	// if they work. nil prefers the data shards: nothing is decoded while they answer.
	Order []int
	// ReadAhead is how many stripe groups are fetched ahead of the one being written, by default 1;
	// negative means none. A group is up to 1 MiB per shard and about 2 MiB of body.
	ReadAhead int
	// Cache is asked first and told of what was read; may be nil.
	Cache BlockCache
	// OnDamage is told, once per shard and reader, that a shard is missing or corrupt, so that
	// its repair can be queued. It must not block, and may be called from any goroutine. nil ignores.
	OnDamage func(shard int, err error)
}

// BlockCache keeps decoded, verified blocks of bodies: one block is what one data shard holds of one
// stripe, 256 KiB or, in the tail stripe, less. block is its number in the order of the body: stripe×k +
// data shard. Blocks are immutable, so a cache is always coherent. Methods are called concurrently.
type BlockCache interface {
	// Get returns a block, which stays valid and unchanged until release is called.
	Get(id DataID, chunk, block uint32) (p []byte, release func(), ok bool)
	// Put offers a block. p is valid only during the call: a cache that admits it copies it.
	Put(id DataID, chunk, block uint32, p []byte)
}

// ShardsError says why too few shards could be read; errors.As finds it in errors of this package.
type ShardsError struct {
	Missing     []int // not there, each known to be so
	Damaged     []int // there, and not what was written
	Unreachable []int // nothing is known
	Err         error // one cause per shard, joined
}

func (e *ShardsError) Error() string {
	var parts []string
	for _, p := range []struct {
		name   string
		shards []int
	}{{"missing", e.Missing}, {"damaged", e.Damaged}, {"unreachable", e.Unreachable}} {
		if len(p.shards) > 0 {
			parts = append(parts, fmt.Sprintf("shards %s: %v", p.name, p.shards))
		}
	}
	s := "too few shards: " + strings.Join(parts, ", ")
	if e.Err != nil {
		s += ": " + strings.ReplaceAll(e.Err.Error(), "\n", "; ")
	}
	return s
}

// Unwrap returns the causes.
func (e *ShardsError) Unwrap() error { return e.Err }

// ChunkReader reads ranges of one chunk. WriteRange is called by one goroutine at a time; Close may
// be called at any time.
type ChunkReader struct {
	c       Chunk
	g       geometry
	o       ReadOptions
	open    Open
	coders  *Coders
	release func()
	order   []*shard // best first, without excluded ones
	group   int      // stripes per segment
	ctx     context.Context
	cancel  context.CancelFunc

	// mu guards the fields below, the mutable fields of shards, and those of segments.
	mu     sync.Mutex
	shards []*shard
	closed bool
}

// shard is what a reader knows of one shard.
type shard struct {
	index    int
	excluded bool          // never read: it is the one to rebuild
	lock     chan struct{} // capacity 1: held while opening, and while reading the footer

	// Guarded by ChunkReader.mu.
	src     Source
	users   int    // calls of src in flight
	table   []byte // verified sums of all blocks; nil until read
	failed  bool   // not to be used any more
	err     error  // the last failure
	told    bool   // OnDamage was called
	errors  int    // failed reads in a row
	hedged  int    // times that others were started in its stead
	hanging int    // hedged reads still in flight
}

// healthy says that a shard is a first choice. The caller holds mu.
func (s *shard) healthy() bool { return !s.failed && !s.excluded && s.hanging == 0 && s.hedged < 2 }

// OpenChunk opens k shards of c, so that it is known before the first byte whether the chunk can be
// read. (When Cache holds all of the chunk, shards are opened only if it forgets.) ctx must live as long
// as the reader. Errors: errs.Corrupt when more than m shards are missing or damaged, errs.Unavailable when
// too few can be reached; both with a *ShardsError.
func OpenChunk(ctx context.Context, c Chunk, open func(ctx context.Context, shard int) (Source, error), o ReadOptions) (*ChunkReader, error) {
	r, err := newReader(ctx, c, open, o, nil)
	if err != nil {
		return nil, err
	}
	if r.cached() {
		return r, nil
	}
	if err := r.openEnough(ctx); err != nil {
		r.Close() //nolint:errcheck // the first error is the one that counts
		return nil, err
	}
	return r, nil
}

func newReader(ctx context.Context, c Chunk, open Open, o ReadOptions, excluded func(int) bool) (*ChunkReader, error) {
	if err := c.check("erasure.OpenChunk"); err != nil {
		return nil, err
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = 1
	}
	r := &ChunkReader{c: c, g: geometryOf(c.Profile, c.Size), o: o, open: open}
	r.coders, r.release = codersOr(o.Coders)
	r.group = max(1, min(1<<20/BlockSize, 2<<20/(r.g.k*BlockSize)))
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.shards = make([]*shard, r.g.n)
	for j := range r.shards {
		r.shards[j] = &shard{index: j, excluded: excluded != nil && excluded(j), lock: make(chan struct{}, 1)}
	}
	add := func(j int) {
		if j >= 0 && j < r.g.n && !r.shards[j].excluded && !slices.Contains(r.order, r.shards[j]) {
			r.order = append(r.order, r.shards[j])
		}
	}
	for _, j := range o.Order {
		add(j)
	}
	for j := range r.shards {
		add(j)
	}
	return r, nil
}

// Close ends all reads and closes the sources. It does not wait for a call that hangs: the goroutine
// in that call closes its source and gives its buffer back when it returns.
func (r *ChunkReader) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	var idle []Source
	for _, s := range r.shards {
		if s.src != nil && s.users == 0 {
			idle = append(idle, s.src)
			s.src = nil
		}
	}
	r.mu.Unlock()
	r.cancel()
	var all []error
	for _, src := range idle {
		all = append(all, src.Close())
	}
	r.release()
	return errs.Wrap("erasure.Close", errors.Join(all...))
}

// WriteRange writes bytes [off, off+n) of the chunk to w, verified. After an error, w has received
// a correct prefix. Errors: those of OpenChunk, those of w (in the chain), errs.Invalid, and the end of
// ctx. w's slices are valid only during its Write.
func (r *ChunkReader) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	const op = "erasure.WriteRange"
	if off < 0 || n < 0 || off > r.c.Size-n {
		return errs.E(op, errs.Invalid, fmt.Sprintf("range %d+%d of a chunk of %d bytes", off, n, r.c.Size))
	}
	if n == 0 {
		return nil
	}
	r.coders.readers.Add(1)
	defer r.coders.readers.Add(-1)
	fetching, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()

	var ahead []*segment // started, oldest first
	defer func() {
		for _, s := range ahead {
			s.finish()
		}
	}()
	next, end := off, off+n
	for next < end || len(ahead) > 0 {
		for next < end && len(ahead) <= max(r.o.ReadAhead, 0) {
			var s *segment
			s, next = r.segmentAt(next, end)
			s.start(fetching)
			ahead = append(ahead, s)
		}
		s := ahead[0]
		if err := s.collect(fetching); err != nil {
			if ctx.Err() != nil {
				return errs.Wrap(op, ctx.Err())
			}
			return err
		}
		if err := s.emit(w); err != nil {
			return err
		}
		s.finish()
		ahead = ahead[1:]
	}
	return nil
}

// segmentAt returns the segment that begins at body offset off, for a range that ends at end, and where
// it ends. Stripes of which the range covers only some shards are segments of their own, so that no
// block is read that the range does not touch.
func (r *ChunkReader) segmentAt(off, end int64) (*segment, int64) {
	stripe := int64(r.g.k) * BlockSize
	a := int(off / stripe)
	last := r.blockAt(end - 1)
	s := &segment{r: r, a: a, b: a + 1, from: off, want: make([]bool, r.g.n), event: make(chan struct{}, 1)}
	first := r.blockAt(off) % r.g.k
	to := r.g.k - 1
	if last/r.g.k == a {
		to = last % r.g.k
	}
	for j := first; j <= to; j++ {
		s.want[j] = true
	}
	if first == 0 && to == r.g.k-1 { // a whole stripe: take more of them
		for group := r.groupNow(); s.b-s.a < group && (last+1)/r.g.k > s.b; {
			s.b++
		}
	}
	s.to = min(int64(s.b)*stripe, end)
	return s, s.to
}

// readMemory is what the segments of all readers together should take, in bytes, without those of
// hedged reads: with few readers each takes large ones, with many small ones.
const readMemory = 32 << 20

// groupNow returns how many whole stripes a segment may have.
func (r *ChunkReader) groupNow() int {
	segments := max(r.coders.readers.Load(), 1) * int64(max(r.o.ReadAhead, 0)+1)
	return max(1, min(r.group, int(readMemory/segments/int64(r.g.k*BlockSize))))
}

// blockAt returns the number, in the order of the body, of the block that holds the byte at off.
func (r *ChunkReader) blockAt(off int64) int {
	stripe := int64(r.g.k) * BlockSize
	t := int(off / stripe)
	return t*r.g.k + int(off%stripe)/r.g.blockLen(t)
}

// cached reports whether the cache holds the whole chunk. It gives up at the first miss.
func (r *ChunkReader) cached() bool {
	if r.o.Cache == nil || r.c.Size == 0 {
		return false
	}
	for b := 0; b <= r.blockAt(r.c.Size-1); b++ {
		_, release, ok := r.o.Cache.Get(r.c.Data, r.c.Index, uint32(b))
		if !ok {
			return false
		}
		release()
	}
	return true
}

// hedgeAfter returns how long to wait before hedging; 0 means for ever.
func (r *ChunkReader) hedgeAfter() time.Duration {
	if r.o.HedgeAfter != nil {
		return max(r.o.HedgeAfter(), 0)
	}
	return r.coders.latency.hedgeAfter()
}

// openEnough opens the first k shards that can be opened, starting another one whenever one fails or
// is late.
func (r *ChunkReader) openEnough(ctx context.Context) error {
	type outcome struct {
		s   *shard
		err error
	}
	results := make(chan outcome, r.g.n)
	next, opened := 0, 0
	pending := make(map[*shard]bool)
	defer func() { // those still opening are no first choice for what follows
		r.mu.Lock()
		defer r.mu.Unlock()
		for s := range pending {
			s.hedged = 2
		}
	}()
	more := func() bool {
		if next == len(r.order) {
			return false
		}
		s := r.order[next]
		next++
		pending[s] = true
		r.coders.spawn(func() {
			_, err := r.acquire(r.ctx, s)
			if err == nil {
				r.done(s)
			}
			results <- outcome{s, err}
		})
		return true
	}
	for range r.g.k {
		more()
	}
	hedge := r.hedgeAfter()
	var timer *time.Timer
	var late, grace <-chan time.Time
	if hedge > 0 {
		timer = time.NewTimer(hedge)
		defer timer.Stop()
		late = timer.C
	}
	for opened < r.g.k {
		if opened+len(pending) < r.g.k && !more() {
			// It has failed. What is still opening may tell whether the chunk is lost or out of reach.
			if len(pending) == 0 {
				return r.shortage("erasure.OpenChunk", nil)
			}
			if grace == nil {
				t := time.NewTimer(max(hedge, hedgeMin))
				defer t.Stop()
				grace = t.C
			}
		}
		select {
		case <-grace:
			return r.shortage("erasure.OpenChunk", nil)
		case res := <-results:
			delete(pending, res.s)
			if res.err == nil {
				opened++
			}
		case <-late:
			if more() {
				timer.Reset(hedge)
			}
		case <-ctx.Done():
			return errs.Wrap("erasure.OpenChunk", ctx.Err())
		}
	}
	return nil
}

// acquire returns the source of s, opening it first if need be, and counts the caller as its user
// until done.
func (r *ChunkReader) acquire(ctx context.Context, s *shard) (Source, error) {
	if src, err := r.ready(s); src != nil || err != nil {
		return src, err
	}
	select {
	case s.lock <- struct{}{}:
		defer func() { <-s.lock }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if src, err := r.ready(s); src != nil || err != nil {
		return src, err
	}
	src, err := r.open(r.ctx, s.index)
	if err == nil && src == nil {
		err = errs.E("erasure.open", errs.Internal, "no source and no error")
	}
	if err != nil {
		r.fail(s, err, true)
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.src = src
	s.users++ // if the reader was closed meanwhile, done closes the source
	return src, nil
}

// ready returns the source of s if it is open, an error if it cannot be used, or neither.
func (r *ChunkReader) ready(s *shard) (Source, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, errs.E("erasure.read", errs.Canceled, "the reader is closed")
	case s.failed:
		return nil, s.err
	case s.src != nil:
		s.users++
		return s.src, nil
	}
	return nil, nil
}

// done ends a use of s's source. The last user of a closed reader closes it.
func (r *ChunkReader) done(s *shard) {
	r.mu.Lock()
	s.users--
	var src Source
	if r.closed && s.users == 0 {
		src, s.src = s.src, nil
	}
	r.mu.Unlock()
	if src != nil {
		src.Close() //nolint:errcheck // nobody is left to tell
	}
}

// damage reports whether err says that a shard wants repair, rather than that it cannot be reached.
func damage(err error) bool { return errs.Is(err, errs.NotFound) || errs.Is(err, errs.Corrupt) }

// fail notes a failure of s; final means that it is not to be tried again.
func (r *ChunkReader) fail(s *shard, err error, final bool) {
	r.mu.Lock()
	if r.closed || r.ctx.Err() != nil {
		r.mu.Unlock()
		return // what fails because the reader ends says nothing of the shard
	}
	s.err = err
	s.errors++
	s.failed = s.failed || final || s.errors >= 2
	tell := damage(err) && !s.told && r.o.OnDamage != nil
	s.told = s.told || tell
	r.mu.Unlock()
	if tell {
		r.o.OnDamage(s.index, err)
	}
}

// shortage makes the error of a read for which too few shards are left. bad lists, by shard, what else
// is wrong with the blocks in question; may be nil.
func (r *ChunkReader) shortage(op string, bad map[int]error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &ShardsError{}
	var causes []error
	lost := 0
	for j, s := range r.shards {
		err := bad[j]
		if err == nil {
			err = s.err
		}
		switch {
		case s.excluded, errs.Is(err, errs.NotFound):
			e.Missing = append(e.Missing, j)
			lost++
		case damage(err):
			e.Damaged = append(e.Damaged, j)
			lost++
		case err != nil:
			e.Unreachable = append(e.Unreachable, j)
		}
		if err != nil {
			causes = append(causes, fmt.Errorf("shard %d: %w", j, err))
		}
	}
	e.Err = errors.Join(causes...)
	kind := errs.Unavailable
	if r.g.n-lost < r.g.k {
		kind = errs.Corrupt
	}
	return errs.As(op, kind, e)
}
