package erasure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// ErrLagging is in the chain of the error of a sink that was dropped because it held up the others.
// Its last Write may still be running.
var ErrLagging = errors.New("the shard's writer fell behind and was dropped")

// errAbsent is the error of a nil sink.
var errAbsent = errs.E("erasure.Encode", errs.Unavailable, "no writer for this shard")

// EncoderOptions configure an Encoder. The zero value is good.
type EncoderOptions struct {
	// Coders is what this encoder shares with others; nil makes a private one.
	Coders *Coders
	// Depth is how many stripe groups of one stream may be in flight: one being read from the body, the
	// others being written. Default 3, at least 2.
	Depth int
	// Group is the most stripes that are written with one call, which makes larger writes with small
	// k. Default: as many as make 1 MiB per shard.
	Group int
	// Memory is what the buffers of all streams together should take, in bytes; default 48 MiB. New
	// streams get smaller groups as it fills, down to two groups of one stripe, which they get in
	// any case: a bound on the number of streams is the caller's.
	Memory int64
	// LagTimeout is how long a sink may keep a stream waiting after another one has finished the same group.
	// Then it is dropped. Default 10 s.
	LagTimeout time.Duration
	// TailTimeout is how long, after the whole body was read and `need` sinks have everything, the
	// others may take. Default LagTimeout.
	TailTimeout time.Duration
	// MaxStuck is how many writers may be left behind in a Write that does not return, each holding
	// one group's buffer; above it new streams are refused with errs.Busy. Default 128.
	MaxStuck int
}

// Options is the name under which NewEncoder takes its options.
type Options = EncoderOptions

// Encoder codes bodies into shards. It is safe for concurrent use.
type Encoder struct {
	o      EncoderOptions
	coders *Coders

	// mu guards the fields below.
	mu       sync.Mutex
	reserved int64 // buffer bytes promised to running streams
	stuck    int   // writers that outlived their stream
}

// NewEncoder makes an Encoder.
func NewEncoder(o Options) *Encoder {
	if o.Coders == nil {
		o.Coders = NewCoders(nil)
	}
	if o.Depth == 0 {
		o.Depth = 3
	}
	o.Depth = max(o.Depth, 2)
	if o.Group <= 0 {
		o.Group = 1 << 20 / BlockSize
	}
	if o.Memory <= 0 {
		o.Memory = 48 << 20
	}
	if o.LagTimeout <= 0 {
		o.LagTimeout = 10 * time.Second
	}
	if o.TailTimeout <= 0 {
		o.TailTimeout = o.LagTimeout
	}
	if o.MaxStuck <= 0 {
		o.MaxStuck = 128
	}
	return &Encoder{o: o, coders: o.Coders}
}

// Wait waits for writers that were left behind in a hanging Write, and for running streams.
func (e *Encoder) Wait(ctx context.Context) error { return e.coders.Wait(ctx) }

// Result says what became of each shard.
type Result struct {
	// Failed has one entry per shard: nil when its sink has taken the whole file.
	Failed []error
}

// Stored is the number of shards that were written completely.
func (r Result) Stored() int {
	n := 0
	for _, err := range r.Failed {
		if err == nil {
			n++
		}
	}
	return n
}

// Encode reads exactly c.Size bytes from r and writes the n shard files of c to sinks, where nil
// is a shard that cannot be written now. It succeeds when at least need sinks have taken everything; a
// sink that fails or lags is dropped and reported in the result. On return a sink without error has its
// whole file, which is not yet durable: that is the sink owner's step.
//
// Errors: errs.Incomplete when the body ends early or its reader fails with an error that has no kind
// (an error with a kind keeps it; the reader's error is in the chain either way); errs.Unavailable when fewer
// than need sinks are left; errs.Busy when too many writers hang; errs.Invalid; the end of ctx.
//
// r is read from the calling goroutine; its Read must return when ctx ends. After a failure Encode
// waits up to LagTimeout for writers to return, so that the caller may clean up.
func (e *Encoder) Encode(ctx context.Context, c Chunk, r io.Reader, need int, sinks []Sink) (Result, error) {
	const op = "erasure.Encode"
	if err := c.check(op); err != nil {
		return Result{}, err
	}
	n := c.Profile.N()
	if len(sinks) != n || need < 0 || need > n {
		return Result{}, errs.E(op, errs.Invalid, fmt.Sprintf("%d sinks, %d needed, for profile %s", len(sinks), need, c.Profile))
	}
	s, err := e.newStream(ctx, c, need, sinks)
	if err != nil {
		return Result{}, err
	}
	defer s.close()
	err = s.run(r)
	return s.finish(err), err
}

// reserve decides how many stripes a group of a new stream has and takes its buffers from the budget.
// A stream gets at most a fifth of what is left, so that many can start at about the same time.
func (e *Encoder) reserve(c Chunk, g geometry) (group, depth int, bytes int64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stuck >= e.o.MaxStuck {
		return 0, 0, 0, errs.E("erasure.Encode", errs.Busy, fmt.Sprintf("%d shard writers hang", e.stuck))
	}
	perBlock := int64(c.Profile.N()) * BlockSize
	group, depth = e.o.Group, e.o.Depth
	for left := e.o.Memory - e.reserved; int64(group)*int64(depth)*perBlock > left/5; {
		if group > 1 {
			group = (group + 1) / 2
		} else if depth > 2 {
			depth--
		} else {
			break
		}
	}
	groups := (g.blocks() + group - 1) / group
	bytes = min(int64(g.n)*g.fileSize(), int64(min(groups, depth)*group)*perBlock)
	e.reserved += bytes
	return group, depth, bytes, nil
}

// stream is one Encode.
type stream struct {
	e        *Encoder
	c        Chunk
	g        geometry
	need     int
	group    int // stripes per group
	depth    int
	reserved int64
	sums     [][]byte // per shard, the table of its footer

	ctx    context.Context // ends all writers
	cancel context.CancelFunc
	outer  context.Context // the caller's

	event chan struct{} // capacity 1: a writer made progress

	// mu guards everything below, and the mutable parts of groups and writers.
	mu      sync.Mutex
	writers []*writer
	groups  []*group // in flight, oldest first
	sent    int      // groups handed out
}

// group is a run of stripes on its way to the sinks. Its buffer has one region per shard.
type group struct {
	seq     int
	buf     *bufpool.Buf
	region  int // length of a region
	pending int // writers that are neither finished with it nor dropped
	done    time.Time
}

func (g *group) shard(j int) []byte { return g.buf.Bytes()[j*g.region : (j+1)*g.region] }

// writer feeds one sink from its queue.
type writer struct {
	s     *stream
	index int
	sink  Sink

	// The following are guarded by stream.mu.
	queue   []*group
	closed  bool  // no more groups will come
	running bool  // the goroutine lives
	busy    bool  // in a Write
	err     error // why it was dropped
	wrote   int   // groups taken
	wake    chan struct{}
}

func (e *Encoder) newStream(ctx context.Context, c Chunk, need int, sinks []Sink) (*stream, error) {
	g := geometryOf(c.Profile, c.Size)
	groupLen, depth, reserved, err := e.reserve(c, g)
	if err != nil {
		return nil, err
	}
	s := &stream{e: e, c: c, g: g, need: need, group: groupLen, depth: depth, reserved: reserved,
		outer: ctx, event: make(chan struct{}, 1), writers: make([]*writer, g.n), sums: make([][]byte, g.n)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	table := g.blocks() * sumSize
	tables := make([]byte, g.n*table)
	for j, sink := range sinks {
		s.sums[j] = tables[j*table : (j+1)*table]
		w := &writer{s: s, index: j, sink: sink, wake: make(chan struct{}, 1)}
		s.writers[j] = w
		if sink == nil {
			w.err = errAbsent
			continue
		}
		w.running = true
		e.coders.spawn(w.run)
	}
	return s, nil
}

// close gives the budget back. Buffers that writers still hold go back by themselves.
func (s *stream) close() {
	s.cancel()
	s.e.mu.Lock()
	s.e.reserved -= s.reserved
	s.e.mu.Unlock()
}

// run reads, codes and hands out all groups, and waits until they are written.
func (s *stream) run(r io.Reader) error {
	blocks := s.g.blocks()
	for a := 0; ; a += s.group {
		if err := s.waitRoom(); err != nil {
			return err
		}
		b := min(a+s.group, blocks)
		if err := s.fill(r, a, b); err != nil {
			return err
		}
		if b == blocks {
			break
		}
	}
	return s.waitWritten()
}

// fill reads stripes [a, b) into a fresh group, straight to their places in the shards, codes them,
// and hands the group to the writers.
func (s *stream) fill(r io.Reader, a, b int) error {
	head, foot := 0, 0
	if a == 0 {
		head = headerSize
	}
	if b == s.g.blocks() {
		foot = s.g.footerLen()
	}
	gr := &group{region: head + s.g.span(a, b) + foot}
	gr.buf = s.e.coders.pool.Get(gr.region * s.g.n)
	if err := s.fillGroup(r, gr, a, b, head, foot); err != nil {
		gr.buf.Release()
		return err
	}
	s.handOut(gr)
	return nil
}

func (s *stream) fillGroup(r io.Reader, gr *group, a, b, head, foot int) error {
	shards := make([][]byte, s.g.n)
	for j := range shards {
		if head > 0 {
			encodeHeader(gr.shard(j), Header{Chunk: s.c, Shard: uint8(j)})
		}
	}
	at := head
	for t := a; t < b; t++ {
		stored := s.g.span(t, t+1)
		for j := range shards {
			shards[j] = gr.shard(j)[at : at+stored]
			if j < s.g.k {
				n := s.g.content(t, j)
				if err := s.read(r, shards[j][:n]); err != nil {
					return err
				}
				clear(shards[j][n:])
			}
		}
		if err := s.e.coders.encode(s.c.Profile, shards); err != nil {
			return err
		}
		for j, p := range shards { // while the stripe is in the processor's cache
			putSum(s.sums[j][t*sumSize:], blockSum(s.c.Shard(j), t, p))
		}
		at += stored
	}
	if foot > 0 {
		for j := range shards {
			encodeFooter(gr.shard(j)[at:], s.c, j, s.sums[j])
		}
	}
	return nil
}

// read fills p from the body.
func (s *stream) read(r io.Reader, p []byte) error {
	const op = "erasure.Encode"
	for empty := 0; len(p) > 0; {
		if err := s.outer.Err(); err != nil {
			return errs.Wrap(op, err)
		}
		n, err := r.Read(p)
		if n < 0 || n > len(p) {
			return errs.E(op, errs.Internal, "the body's reader returned an impossible count")
		}
		p = p[n:]
		switch {
		case len(p) == 0:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return &errs.Error{Op: op, Kind: errs.Incomplete, Msg: "the body is shorter than announced", Err: err}
		case err != nil:
			var known *errs.Error
			if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
				return errs.Wrap(op, err)
			}
			return errs.As(op, errs.Incomplete, err)
		case n == 0:
			if empty++; empty == 100 {
				return errs.As(op, errs.Incomplete, io.ErrNoProgress)
			}
		default:
			empty = 0
		}
	}
	return nil
}

// handOut queues a group for each live writer.
func (s *stream) handOut(gr *group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gr.seq = s.sent
	s.sent++
	for _, w := range s.writers {
		if w.err == nil {
			gr.buf.Retain()
			gr.pending++
			w.queue = append(w.queue, gr)
			poke(w.wake)
		}
	}
	s.groups = append(s.groups, gr)
	gr.buf.Release() // the writers' references remain
}

// waitRoom waits until another group may be filled.
func (s *stream) waitRoom() error {
	return s.wait(s.e.o.LagTimeout, func() bool { return len(s.groups) < s.depth })
}

// waitWritten waits until every writer has everything or was dropped. Once need of them have it, the
// others get TailTimeout.
func (s *stream) waitWritten() error {
	s.mu.Lock()
	for _, w := range s.writers {
		w.closed = true
		poke(w.wake)
	}
	s.mu.Unlock()
	if err := s.wait(s.e.o.LagTimeout, func() bool {
		whole := 0
		for _, w := range s.writers {
			if w.err == nil && w.wrote == s.sent {
				whole++
			}
		}
		return len(s.groups) == 0 || whole >= max(s.need, 1)
	}); err != nil {
		return err
	}
	return s.wait(s.e.o.TailTimeout, func() bool { return len(s.groups) == 0 })
}

// wait waits until ready holds, which is called under mu. Meanwhile a writer that has not finished
// the oldest group lag after both the start of this wait and another writer's finishing it is
// dropped. It fails when too few writers are left or the caller gave up.
func (s *stream) wait(lag time.Duration, ready func() bool) error {
	var timer *time.Timer
	var began time.Time
	for {
		s.mu.Lock()
		s.retire()
		if err := s.enough(); err != nil {
			s.mu.Unlock()
			return err
		}
		if ready() {
			s.mu.Unlock()
			return nil
		}
		now := time.Now()
		if began.IsZero() {
			began = now
		}
		left := time.Duration(-1)
		if oldest := s.groups[0]; !oldest.done.IsZero() {
			since := oldest.done
			if since.Before(began) {
				since = began
			}
			if left = since.Add(lag).Sub(now); left <= 0 {
				s.dropLaggards(oldest)
				s.mu.Unlock()
				continue
			}
		}
		s.mu.Unlock()

		var expired <-chan time.Time
		if left > 0 {
			if timer == nil {
				timer = time.NewTimer(left)
				defer timer.Stop()
			} else {
				timer.Reset(left)
			}
			expired = timer.C
		}
		select {
		case <-s.event:
		case <-expired:
		case <-s.outer.Done():
			return errs.Wrap("erasure.Encode", s.outer.Err())
		}
	}
}

// retire forgets the groups, from the oldest on, that nobody works on any more. The caller holds mu.
func (s *stream) retire() {
	for len(s.groups) > 0 && s.groups[0].pending == 0 {
		s.groups = s.groups[1:]
	}
}

// enough fails when fewer than need writers are left. The caller holds mu.
func (s *stream) enough() error {
	live := 0
	var causes []error
	for _, w := range s.writers {
		if w.err == nil {
			live++
		} else {
			causes = append(causes, fmt.Errorf("shard %d: %w", w.index, w.err))
		}
	}
	// Without any writer there is no one to write to, even when none is needed.
	if live >= max(s.need, 1) {
		return nil
	}
	if s.outer.Err() != nil { // that is why they failed
		return errs.Wrap("erasure.Encode", s.outer.Err())
	}
	return errs.As("erasure.Encode", errs.Unavailable, errors.Join(causes...))
}

// dropLaggards drops the writers that still have the group before them. The caller holds mu.
func (s *stream) dropLaggards(gr *group) {
	for _, w := range s.writers {
		if w.err == nil && w.wrote <= gr.seq {
			s.drop(w, errs.As("erasure.Encode", errs.Timeout, ErrLagging))
		}
	}
}

// drop takes a writer out of the stream. What it has queued is released here; the group that it is
// writing, if any, only when its Write returns. The caller holds mu.
func (s *stream) drop(w *writer, err error) {
	w.err = err
	w.closed = true
	// The groups that it has not finished are the last ones, in order.
	for _, gr := range s.groups {
		if gr.seq >= w.wrote {
			gr.pending--
		}
	}
	for _, gr := range w.queue {
		gr.buf.Release()
	}
	w.queue = nil
	poke(w.wake)
	poke(s.event)
}

// finish ends all writers and reports. err is why the stream failed, nil if it did not.
func (s *stream) finish(err error) Result {
	if err != nil {
		s.cancel()
		s.mu.Lock()
		for _, w := range s.writers {
			if w.err == nil {
				s.drop(w, err)
			}
		}
		s.mu.Unlock()
		s.waitWriters()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	res := Result{Failed: make([]error, len(s.writers))}
	for j, w := range s.writers {
		res.Failed[j] = w.err
		if w.busy && w.err != nil {
			if !errors.Is(w.err, ErrLagging) {
				res.Failed[j] = errs.As("erasure.Encode", errs.KindOf(w.err), errors.Join(ErrLagging, w.err))
			}
		}
	}
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	for _, w := range s.writers {
		if w.running && w.busy {
			w.running = false // tells run to count down
			s.e.stuck++
		}
	}
	return res
}

// waitWriters waits, up to LagTimeout, until no writer is in a Write.
func (s *stream) waitWriters() {
	timer := time.NewTimer(s.e.o.LagTimeout)
	defer timer.Stop()
	for {
		s.mu.Lock()
		busy := false
		for _, w := range s.writers {
			busy = busy || w.busy
		}
		s.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-s.event:
		case <-timer.C:
			return
		}
	}
}

// run is the goroutine of a writer.
func (w *writer) run() {
	s := w.s
	for {
		s.mu.Lock()
		if len(w.queue) == 0 {
			if w.closed {
				w.running = false
				s.mu.Unlock()
				return
			}
			s.mu.Unlock()
			<-w.wake // handOut, drop and waitWritten poke; one of the latter two always comes
			continue
		}
		gr := w.queue[0]
		w.queue = w.queue[1:]
		w.busy = true
		s.mu.Unlock()

		err := w.sink.Write(s.ctx, gr.shard(w.index))
		gr.buf.Release()

		s.mu.Lock()
		w.busy = false
		switch {
		case w.err != nil: // dropped meanwhile
			if !w.running { // and left behind
				s.e.mu.Lock()
				s.e.stuck--
				s.e.mu.Unlock()
			}
		case err != nil:
			s.drop(w, err)
		default:
			w.wrote++
			gr.pending--
			if gr.done.IsZero() {
				gr.done = time.Now()
			}
		}
		s.mu.Unlock()
		poke(s.event)
	}
}

// poke wakes the receiver of a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
