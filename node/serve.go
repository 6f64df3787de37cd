package node

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
)

const (
	// maxRead bounds one read of a shard, in bytes.
	maxRead = 4 << 20
	// maxWritten and writtenFor bound the complete shards whose writers are kept for an abort that may come. What is
	// forgotten earlier, the drive's own sweep removes.
	maxWritten = 8192
	writtenFor = time.Hour
)

// ServeOptions of Serve. All have defaults.
type ServeOptions struct {
	Pool *bufpool.Pool    // for what is read; nil makes a pool of its own
	Now  func() time.Time // nil: time.Now
	Load *Load            // is told of the requests of other nodes; nil: nobody is
}

// foreground are the methods by which requests of clients reach a drive.
var foreground = map[rpc.Method]bool{
	mPrepare: true, mAccept: true, mRead: true, mVersions: true, mPin: true, mScan: true,
	mCreateShard: true, mReadShard: true,
}

// Load counts what the drives of a node do for requests of clients that other nodes serve. Work in the background yields to
// it. The zero value is ready.
type Load struct {
	running atomic.Int64
	ended   atomic.Int64 // when the last one did, in nanoseconds of Unix time
}

// loadLasts is how long a message counts that is over: a request is several, and between two of them its node is not idle.
const loadLasts = 100 * time.Millisecond

// Now returns how many messages of requests are being executed, or 1 if there was one a moment ago.
func (l *Load) Now(now time.Time) int {
	n := int(l.running.Load())
	if n == 0 && now.UnixNano()-l.ended.Load() < int64(loadLasts) {
		return 1
	}
	return n
}

// begin counts a message, unless it is of work in the background, and returns what ends it.
func (l *Load) begin(ctx context.Context, method rpc.Method, now func() time.Time) (end func()) {
	if l == nil || !foreground[method] || rpc.MetaOf(ctx).Priority >= rpc.Background {
		return func() {}
	}
	l.running.Add(1)
	return func() {
		l.ended.Store(now().UnixNano())
		l.running.Add(-1)
	}
}

// Serve registers the methods of the node protocol, which call the drives that find finds: those that are open here. It is
// called for every request, so that a drive may leave and return.
func Serve(mux *rpc.Mux, find func(num uint16) (Drive, bool), o ServeOptions) {
	if o.Pool == nil {
		o.Pool = bufpool.New(bufpool.Options{})
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &server{find: find, o: o, writers: map[handle]*openWriter{}, sources: map[handle]*openSource{}}
	for method, f := range executes {
		mux.Handle(method, func(ctx context.Context, _ rpc.Peer, b []byte) ([]byte, error) {
			d, m, err := s.drive(b)
			if err != nil {
				return nil, err
			}
			defer o.Load.begin(ctx, method, o.Now)()
			return f(ctx, d, m)
		})
	}
	mux.HandleStream(mCreateShard, s.createShard)
	mux.HandleInline(mAbortShard, s.abortShard)
	mux.HandleStream(mOpenShard, s.openShard)
	mux.HandleLend(mReadShard, s.readShard)
	mux.HandleStream(mVerifyShard, s.verifyShard)
	mux.HandleStream(mScrub, s.scrub)
}

// server is what the requests of all peers share.
type server struct {
	find func(num uint16) (Drive, bool)
	o    ServeOptions

	// mu guards the fields below, and those of writers and sources.
	mu      sync.Mutex
	writers map[handle]*openWriter
	written []writtenShard // complete ones, oldest first
	sources map[handle]*openSource
}

// handle names an open shard. The peer draws the id.
type handle struct {
	peer [16]byte
	id   [16]byte
}

// openWriter is a shard that a peer writes or has written.
type openWriter struct {
	w        disk.ShardWriter // nil until it is created
	complete bool
	aborted  bool
}

type writtenShard struct {
	h  handle
	at time.Time
}

// openSource is a shard that a peer reads. It is closed when its stream has ended and nobody reads.
type openSource struct {
	src   erasure.Source
	users int // readers, and the stream
}

// drive finds the drive that a request is for, and returns the request without its number.
func (s *server) drive(b []byte) (Drive, []byte, error) {
	if len(b) < 2 {
		return nil, nil, errs.E("node.Serve", errs.Invalid, "the message does not parse")
	}
	d, ok := s.find(binary.LittleEndian.Uint16(b))
	if !ok {
		return nil, nil, errs.E("node.Serve", errs.Drive, "the drive is not open at its node")
	}
	return d, b[2:], nil
}

// createShard receives a shard. The stream's messages are the bytes of the file, as they are; the server sends one empty
// message once the writer exists, and ends the stream without an error when it has given all bytes to the
// drive. The shard is then the drive's, until it is sealed or aborted.
func (s *server) createShard(ctx context.Context, from rpc.Peer, open []byte, st rpc.Stream) (err error) {
	d, b, err := s.drive(open)
	if err != nil {
		return err
	}
	var m createRequest
	if err := m.Unmarshal(b); err != nil {
		return err
	}
	defer s.o.Load.begin(ctx, mCreateShard, s.o.Now)()
	h := handle{from.Node, m.Handle}
	ow := &openWriter{}
	if err := s.addWriter(h, ow); err != nil {
		return err
	}
	defer func() {
		if !s.finishWriter(h, ow, err == nil) && ow.w != nil {
			ow.w.Abort()
		}
	}()
	w, err := d.CreateShard(ctx, m.Spec)
	if err != nil {
		return err
	}
	s.mu.Lock()
	ow.w = w
	s.mu.Unlock()
	if err := st.Send(ctx, nil); err != nil {
		return err
	}
	for left := m.Spec.FileSize; left > 0; {
		p, err := st.Recv(ctx)
		if errors.Is(err, io.EOF) {
			return errs.E("node.CreateShard", errs.Incomplete, "the shard is shorter than announced")
		}
		if err != nil {
			return err
		}
		if err := w.Write(ctx, p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	return nil
}

func (s *server) addWriter(h handle, ow *openWriter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writers[h] != nil {
		return errs.E("node.CreateShard", errs.Invalid, "a handle was used twice")
	}
	s.writers[h] = ow
	return nil
}

// finishWriter notes that a shard is complete, and reports whether it is and nobody has aborted it.
func (s *server) finishWriter(h handle, ow *openWriter, whole bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !whole || ow.aborted {
		delete(s.writers, h)
		return false
	}
	ow.complete = true
	now := s.o.Now()
	for len(s.written) > 0 && (len(s.written) >= maxWritten || now.Sub(s.written[0].at) > writtenFor) {
		delete(s.writers, s.written[0].h)
		s.written = s.written[1:]
	}
	s.written = append(s.written, writtenShard{h, now})
	return true
}

// abortShard aborts a shard, complete or not. One that is not known was never begun, or has ended long ago.
func (s *server) abortShard(from rpc.Peer, b []byte) error {
	var m handleRequest
	if err := m.Unmarshal(b); err != nil {
		return err
	}
	h := handle{from.Node, m.Handle}
	s.mu.Lock()
	ow := s.writers[h]
	if ow == nil {
		s.mu.Unlock()
		return nil
	}
	ow.aborted = true
	w := ow.w
	if ow.complete {
		delete(s.writers, h)
	}
	s.mu.Unlock()
	if w != nil {
		w.Abort() // does not block
	}
	return nil
}

// openShard keeps a shard open for reading until the peer gives the stream up. The server sends one empty message once it is open.
func (s *server) openShard(ctx context.Context, from rpc.Peer, open []byte, st rpc.Stream) error {
	d, b, err := s.drive(open)
	if err != nil {
		return err
	}
	var m openRequest
	if err := m.Unmarshal(b); err != nil {
		return err
	}
	src, err := d.OpenShard(ctx, erasure.ShardID(m.ID))
	if err != nil {
		return err
	}
	h := handle{from.Node, m.Handle}
	os := &openSource{src: src, users: 1}
	s.mu.Lock()
	twice := s.sources[h] != nil
	if !twice {
		s.sources[h] = os
	}
	s.mu.Unlock()
	if twice {
		return errors.Join(errs.E("node.OpenShard", errs.Invalid, "a handle was used twice"), src.Close())
	}
	defer func() {
		s.mu.Lock()
		delete(s.sources, h)
		s.mu.Unlock()
		s.letGo(os)
	}()
	if err := st.Send(ctx, nil); err != nil {
		return err
	}
	_, err = st.Recv(ctx)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// letGo ends a use of a source. The last closes it.
func (s *server) letGo(os *openSource) {
	s.mu.Lock()
	os.users--
	last := os.users == 0
	s.mu.Unlock()
	if last {
		_ = os.src.Close() // it was only read
	}
}

// readShard reads from an open shard. The answer is the bytes; fewer than asked for are the end of the file.
func (s *server) readShard(ctx context.Context, from rpc.Peer, b []byte) ([]byte, func(), error) {
	const op = "node.ReadShard"
	var m handleRequest
	if err := m.Unmarshal(b); err != nil {
		return nil, nil, err
	}
	if m.Length > maxRead {
		return nil, nil, errs.E(op, errs.Invalid, "too much is read at once")
	}
	defer s.o.Load.begin(ctx, mReadShard, s.o.Now)()
	s.mu.Lock()
	os := s.sources[handle{from.Node, m.Handle}]
	if os != nil {
		os.users++
	}
	s.mu.Unlock()
	if os == nil {
		return nil, nil, errs.E(op, errs.Unavailable, "the shard is not open any more")
	}
	defer s.letGo(os)
	buf := s.o.Pool.Get(int(m.Length))
	n, err := os.src.ReadAt(ctx, buf.Bytes(), m.Offset)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		buf.Release()
		return nil, nil, err
	}
	return buf.Bytes()[:n], buf.Release, nil
}

// The messages of the streams that verify: their first byte.
const (
	askBytes   = 1 // ← u32: may so many bytes be read?
	grantBytes = 2 // → yes
	stopBytes  = 3 // → an error: no, and go no further
	result     = 4 // ← scrubReply: the last message
)

// throttle asks the peer before each read, if it wants to be asked.
func throttle(st rpc.Stream, wanted bool) func(context.Context, int) error {
	if !wanted {
		return nil
	}
	return func(ctx context.Context, n int) error {
		if err := st.Send(ctx, binary.LittleEndian.AppendUint32([]byte{askBytes}, uint32(n))); err != nil {
			return err
		}
		p, err := st.Recv(ctx)
		switch {
		case err != nil:
			return err
		case len(p) == 1 && p[0] == grantBytes:
			return nil
		case len(p) > 1 && p[0] == stopBytes:
			stop, bad := rpc.ParseError(p[1:])
			if bad == nil && stop != nil {
				return stop
			}
		}
		return errs.E("node.Serve", errs.Invalid, "the message does not parse")
	}
}

// conclude sends the result of a verification.
func conclude(ctx context.Context, st rpc.Stream, r disk.ScrubReport, err error) error {
	m := scrubReply{r, failure{err}}
	// It may be longer than one message of a stream.
	for b := m.AppendTo(nil); ; {
		n := min(len(b), rpc.MaxData-1)
		part := append([]byte{result}, b[:n]...)
		if err := st.Send(ctx, part); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

func (s *server) verifyShard(ctx context.Context, _ rpc.Peer, open []byte, st rpc.Stream) error {
	d, b, err := s.drive(open)
	if err != nil {
		return err
	}
	var m verifyRequest
	if err := m.Unmarshal(b); err != nil {
		return err
	}
	err = d.VerifyShard(ctx, m.Chunk, m.Index, throttle(st, m.Throttled))
	return conclude(ctx, st, disk.ScrubReport{}, err)
}

func (s *server) scrub(ctx context.Context, _ rpc.Peer, open []byte, st rpc.Stream) error {
	d, b, err := s.drive(open)
	if err != nil {
		return err
	}
	var m shardsRequest
	if err := m.Unmarshal(b); err != nil {
		return err
	}
	r, err := d.Scrub(ctx, erasure.ShardID(m.After), m.Limit, throttle(st, m.Throttled))
	return conclude(ctx, st, r, err)
}
