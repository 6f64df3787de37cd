package rpc

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// Peer is the node at the other end.
type Peer struct {
	Node    [16]byte
	Version uint32 // the protocol version that both speak
}

// CallHandler answers a call. payload is valid until it returns; the answer belongs to the caller. ctx ends with
// the caller's deadline, when the caller gives up, and with the connection. The error crosses as
// kind, operation and public text.
type CallHandler func(ctx context.Context, from Peer, payload []byte) ([]byte, error)

// LendHandler is a CallHandler whose answer is memory that is given back: release, if not nil, is called once, when the answer has left
// or will not.
type LendHandler func(ctx context.Context, from Peer, payload []byte) (answer []byte, release func(), err error)

// StreamHandler serves a stream, whose first message is open (valid until it returns). The stream ends, for both,
// when it returns; its error is what the client is told.
type StreamHandler func(ctx context.Context, from Peer, open []byte, s Stream) error

// Mux finds the handler of a method. Register everything before it is used.
type Mux struct {
	calls   map[Method]LendHandler
	inline  map[Method]func(from Peer, payload []byte) error
	streams map[Method]StreamHandler
}

// NewMux returns an empty Mux.
func NewMux() *Mux {
	return &Mux{calls: map[Method]LendHandler{}, inline: map[Method]func(Peer, []byte) error{}, streams: map[Method]StreamHandler{}}
}

// Handle registers the handler of a call. A method that is registered twice is a bug.
func (m *Mux) Handle(method Method, h CallHandler) {
	m.HandleLend(method, func(ctx context.Context, from Peer, payload []byte) ([]byte, func(), error) {
		b, err := h(ctx, from, payload)
		return b, nil, err
	})
}

// HandleLend is Handle for answers in borrowed memory.
func (m *Mux) HandleLend(method Method, h LendHandler) {
	if m.calls[method] != nil || m.inline[method] != nil {
		panic("rpc: a method was registered twice")
	}
	m.calls[method] = h
}

// HandleInline registers the handler of a call that has no answer and must not block: it runs before anything that came
// behind it on its connection.
func (m *Mux) HandleInline(method Method, h func(from Peer, payload []byte) error) {
	if m.calls[method] != nil || m.inline[method] != nil {
		panic("rpc: a method was registered twice")
	}
	m.inline[method] = h
}

// HandleStream registers the handler of a stream.
func (m *Mux) HandleStream(method Method, h StreamHandler) {
	if m.streams[method] != nil {
		panic("rpc: a method was registered twice")
	}
	m.streams[method] = h
}

// ServerConfig is what a Server is made of. Mux and Self are required.
type ServerConfig struct {
	Mux    *Mux
	Self   Identity
	Pool   *bufpool.Pool // for messages of streams; nil makes a pool of its own
	Logger *slog.Logger
	Timing Timing
	// Load returns how many requests the node has to do with; peers are told with each reply. nil: nothing is said. It must not
	// block.
	Load func() int
	// Bounds of what one peer may have here at a time; what is beyond gets errs.Busy. Zero: the default.
	MaxConns   int   // connections, default 64
	MaxCalls   int   // calls being served, default 4096
	MaxStreams int   // default 4096
	MaxBytes   int64 // payloads of calls being served, default 256 MiB
}

// Server serves connections.
type Server struct {
	c   ServerConfig
	log *slog.Logger

	// mu guards the fields below.
	mu     sync.Mutex
	conns  map[*serverConn]bool
	peers  map[[16]byte]*load
	closed bool
	idle   chan struct{} // closed by the last connection after Close; nil before
}

// load is what one peer has here, on all of its connections. Guarded by Server.mu, conns; by its own mu the rest.
type load struct {
	conns int

	mu      sync.Mutex // guards the fields below
	calls   int
	streams int
	bytes   int64
}

// NewServer returns a Server. It cannot fail.
func NewServer(c ServerConfig) *Server {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Pool == nil {
		c.Pool = bufpool.New(bufpool.Options{})
	}
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.MaxConns, 64)
	def(&c.MaxCalls, 4096)
	def(&c.MaxStreams, 4096)
	if c.MaxBytes <= 0 {
		c.MaxBytes = 256 << 20
	}
	c.Timing = c.Timing.withDefaults()
	return &Server{c: c, log: c.Logger, conns: map[*serverConn]bool{}, peers: map[[16]byte]*load{}}
}

// ServeConn serves one connection until it ends, and returns when all of its handlers have. conn is authenticated, peer is
// the node at its other end; zero: not known, the greeting is believed. It closes conn. The error says why the greeting
// failed; the end of a connection is no error.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn, peer [16]byte) error {
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	p, err := greetClient(nc, s.c.Self, peer, time.Now().Add(s.c.Timing.Greeting))
	stop()
	if err != nil {
		s.log.Warn("a node was refused", "remote", nc.RemoteAddr(), "cause", err)
		return err
	}
	sc := &serverConn{s: s, running: map[uint32]context.CancelFunc{}}
	sc.conn = newConn(nc, p, sc, s.c.Pool, s.c.Timing)
	sc.ctx, sc.cancel = context.WithCancel(ctx)
	defer sc.cancel()
	if err := s.add(sc); err != nil {
		return err
	}
	defer s.remove(sc)
	defer context.AfterFunc(ctx, func() { sc.fail(ended("rpc.ServeConn", ctx)) })()
	sc.run()
	sc.cancel()
	sc.handlers.Wait()
	return nil
}

func (s *Server) add(sc *serverConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.peers[sc.peer.Node]
	if l == nil {
		l = &load{}
	}
	if s.closed {
		return unavailable("rpc.ServeConn", "the node shuts down", nil)
	}
	if l.conns >= s.c.MaxConns {
		s.log.Warn("a node has too many connections here", "node", sc.peer.Node, "limit", s.c.MaxConns)
		return errs.E("rpc.ServeConn", errs.Busy, "too many connections")
	}
	l.conns++
	s.peers[sc.peer.Node], sc.load = l, l
	s.conns[sc] = true
	return nil
}

func (s *Server) remove(sc *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, sc)
	if sc.load.conns--; sc.load.conns == 0 {
		delete(s.peers, sc.peer.Node)
	}
	if len(s.conns) == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// Close executes nothing more, and returns when what runs has ended, answers included. When ctx ends first, the connections
// are cut, and it still waits for the handlers, which are told: it is they who must end.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	idle := s.idle
	if len(s.conns) > 0 && idle == nil {
		idle = make(chan struct{})
		s.idle = idle
	}
	var list []*serverConn
	for sc := range s.conns {
		list = append(list, sc)
	}
	s.mu.Unlock()
	if idle == nil {
		return nil
	}
	for _, sc := range list {
		sc.drain()
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	for _, sc := range list {
		sc.fail(unavailable("rpc.Close", "the node shuts down", nil))
	}
	<-idle
	return errs.Wrap("rpc.Close", ctx.Err())
}

// serverConn is a connection of a server.
type serverConn struct {
	*conn
	s        *Server
	load     *load
	ctx      context.Context // ends with the connection
	cancel   context.CancelFunc
	handlers sync.WaitGroup

	// The following are guarded by conn.mu.
	running  map[uint32]context.CancelFunc
	lastID   uint32
	draining bool
}

func (sc *serverConn) lost(*conn, error) { sc.cancel() }
func (sc *serverConn) tick(*conn)        {}

// drain tells the peer that nothing more is executed here, and ends the connection when nothing runs.
func (sc *serverConn) drain() {
	sc.mu.Lock()
	sc.draining = true
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], sc.lastID)
	idle := len(sc.running) == 0
	sc.mu.Unlock()
	sc.post(frameGoAway, 0, b[:])
	if idle {
		sc.closeWhenWritten()
	}
}

// frame implements handler.
func (sc *serverConn) frame(_ *conn, f frame) error {
	switch f.typ {
	case frameCall, frameOpen:
		return sc.request(f)
	case frameCancel:
		sc.mu.Lock()
		cancel := sc.running[f.id]
		sc.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		if s := sc.stream(f.id); s != nil {
			s.end(errs.E("rpc.Stream", errs.Canceled, "the caller gave up"))
		}
		return nil
	}
	return errs.E("rpc.read", errs.Invalid, "a frame that no client sends")
}

// request begins a call or a stream.
func (sc *serverConn) request(f frame) error {
	head, err := sc.head(f)
	if err != nil {
		return err
	}
	req, refusal := parseRequest(head)
	size := f.size - f.head
	sc.mu.Lock()
	if f.id <= sc.lastID {
		sc.mu.Unlock()
		return errs.E("rpc.read", errs.Invalid, "an id was used twice")
	}
	if !sc.draining {
		sc.lastID = f.id
	}
	draining := sc.draining
	sc.mu.Unlock()
	open := f.typ == frameOpen
	switch {
	case draining: // the peer knows
		return sc.discard(size)
	case refusal != nil:
	case !open && size <= smallPayload && sc.s.c.Mux.inline[req.method] != nil:
		buf := getPayload(size)
		defer putPayload(buf)
		if err := sc.fill(buf); err != nil {
			return err
		}
		sc.refuse(f, sc.s.c.Mux.inline[req.method](sc.peer, buf))
		return nil
	case open && sc.s.c.Mux.streams[req.method] == nil, !open && sc.s.c.Mux.calls[req.method] == nil:
		refusal = errs.E("rpc.serve", errs.Unsupported, "the node does not know this method")
	default:
		refusal = sc.load.take(&sc.s.c, open, int64(size))
	}
	if refusal != nil {
		if err := sc.discard(size); err != nil {
			return err
		}
		sc.refuse(f, refusal)
		return nil
	}
	buf := getPayload(size)
	if err := sc.fill(buf); err != nil {
		sc.load.give(open, int64(size))
		return err
	}
	sc.begin(f.id, req, buf, open)
	return nil
}

// take counts a request, unless the peer has too many.
func (l *load) take(c *ServerConfig, open bool, size int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls, limit := &l.calls, c.MaxCalls
	if open {
		calls, limit = &l.streams, c.MaxStreams
	}
	if *calls >= limit || l.bytes > 0 && l.bytes+size > c.MaxBytes {
		return errs.E("rpc.serve", errs.Busy, "the node does too much for this peer already")
	}
	*calls++
	l.bytes += size
	return nil
}

func (l *load) give(open bool, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if open {
		l.streams--
	} else {
		l.calls--
	}
	l.bytes -= size
}

// refuse answers from the reader, which does not wait for room; nil: it was executed inline.
func (sc *serverConn) refuse(f frame, err error) {
	t := frameReply
	if f.typ == frameOpen {
		t = frameEnd
	}
	head := sc.replyHead(err)
	sc.mu.Lock()
	if sc.err == nil {
		sc.queue = append(appendFrame(sc.queue, t, f.id, len(head), 0), head...)
	}
	sc.mu.Unlock()
	sc.poke()
}

// begin runs the handler on a goroutine.
func (sc *serverConn) begin(id uint32, req request, payload []byte, open bool) {
	ctx := sc.ctx
	var cancel context.CancelFunc
	if req.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, req.timeout)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	if req.meta != (Meta{}) {
		ctx = WithMeta(ctx, req.meta)
	}
	var st *stream
	sc.mu.Lock()
	if sc.err != nil {
		sc.mu.Unlock()
		cancel()
		sc.load.give(open, int64(len(payload)))
		return
	}
	sc.running[id] = cancel
	if open {
		st = newStream(sc.conn, id, false)
		sc.streams[id] = st
	}
	sc.mu.Unlock()
	sc.handlers.Go(func() {
		size := int64(len(payload))
		if open {
			err := sc.s.c.Mux.streams[req.method](ctx, sc.peer, payload, st)
			_ = st.Close() // cannot fail
			sc.answer(frameEnd, id, nil, nil, sc.judge(ctx, err))
		} else {
			b, release, err := sc.s.c.Mux.calls[req.method](ctx, sc.peer, payload)
			if err == nil && len(b) > MaxMessage-maxHead {
				err = errs.E("rpc.serve", errs.Internal, "the answer is too long")
			}
			sc.answer(frameReply, id, b, release, sc.judge(ctx, err))
		}
		cancel()
		putPayload(payload)
		sc.load.give(open, size)
		sc.mu.Lock()
		delete(sc.running, id)
		last := sc.draining && len(sc.running) == 0
		sc.mu.Unlock()
		if last {
			sc.closeWhenWritten()
		}
	})
}

// judge turns the end of a handler's ctx that the caller did not bring about into what it is for the caller: this
// node gave up, not he.
func (sc *serverConn) judge(ctx context.Context, err error) error {
	if errs.Is(err, errs.Canceled) && (sc.ctx.Err() != nil || ctx.Err() == nil) {
		return errs.As("rpc.serve", errs.Unavailable, err)
	}
	return err
}

// answer sends a reply or the end of a stream. What cannot be sent is dropped: the connection is gone.
func (sc *serverConn) answer(t frameType, id uint32, payload []byte, release func(), err error) {
	if release == nil {
		release = func() {}
	}
	if err != nil {
		payload = nil
	}
	head := sc.replyHead(err)
	if len(payload) <= copyLimit {
		_, _ = sc.put(sc.ctx, func(b []byte) ([]byte, error) {
			return append(append(appendFrame(b, t, id, len(head), len(payload)), head...), payload...), nil
		})
		release()
		return
	}
	l := &lent{head: append(appendFrame(nil, t, id, len(head), len(payload)), head...), payload: payload, release: release}
	if sc.give(l) != nil {
		release()
	}
}

// replyHead makes the head of a reply or of the end of a stream.
func (sc *serverConn) replyHead(err error) []byte {
	load := 0
	if sc.peer.Version >= loadVersion && sc.s.c.Load != nil {
		load = sc.s.c.Load()
	}
	return appendReply(nil, err, load)
}

// payloads keeps the memory of small requests.
var payloads = sync.Pool{New: func() any { b := make([]byte, smallPayload); return &b }}

const smallPayload = 8 << 10

func getPayload(n int) []byte {
	if n > smallPayload {
		return make([]byte, n)
	}
	return (*payloads.Get().(*[]byte))[:n]
}

func putPayload(b []byte) {
	if cap(b) == smallPayload {
		b = b[:smallPayload]
		payloads.Put(&b)
	}
}
