package rpc

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// ClientConfig is what a Client is made of. Dial and Self are required.
type ClientConfig struct {
	// Dial opens an authenticated connection to the peer. It must return when ctx ends.
	Dial func(ctx context.Context) (net.Conn, error)
	Self Identity
	// Peer is the node that must answer; zero: whoever does.
	Peer   [16]byte
	Pool   *bufpool.Pool // for messages of streams; nil makes a pool of its own
	Logger *slog.Logger
	Timing Timing
	// MaxBulk bounds the connections for streams and large messages; default 8. More streams share them.
	MaxBulk int
	// DialTimeout bounds Dial; default 5 s.
	DialTimeout time.Duration
}

const (
	// bulkPayload is the payload from which on a call goes the way of bulk.
	bulkPayload = 128 << 10
	// bulkIdle is how long a connection for bulk is kept that nobody uses.
	bulkIdle = time.Minute
	// attempts bounds how often a request is begun that was not sent.
	attempts = 3

	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 2 * time.Second
	// downPatience is how long a call waits for a connection to a peer that did not answer the last time.
	downPatience = 250 * time.Millisecond

	// loadFor is how long it is believed what a peer said of its load.
	loadFor = time.Second

	// maxPosting bounds the Posts that wait for a connection or for room on one, and postTimeout how long for that.
	maxPosting  = 1024
	postTimeout = 10 * time.Second
)

// Client reaches one peer. Its methods may be called concurrently.
type Client struct {
	c   ClientConfig
	log *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // dialing, and connections

	load   atomic.Int64 // what the peer said of it last
	loadAt atomic.Int64 // and when: nanoseconds since began
	began  time.Time

	// mu guards the fields below.
	mu       sync.Mutex
	closed   bool
	small    *clientConn
	bulk     []*clientConn
	dialing  [2]*dialing // small, bulk
	failures int         // of dialing, in a row
	retryAt  time.Time   // no dialing before
	lastErr  error
	posting  int      // Posts that wait for room on a connection
	posts    []posted // wait for the first small connection, and go ahead of all else on it
}

// posted is a request of Post.
type posted struct {
	m       Method
	payload []byte
}

// dialing is an attempt to connect, which all wait for who need it.
type dialing struct {
	done chan struct{}
	err  error // valid after done
}

// NewClient returns a Client. It connects when it is first used.
func NewClient(c ClientConfig) *Client {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Pool == nil {
		c.Pool = bufpool.New(bufpool.Options{})
	}
	if c.MaxBulk <= 0 {
		c.MaxBulk = 8
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = 5 * time.Second
	}
	c.Timing = c.Timing.withDefaults()
	cl := &Client{c: c, log: c.Logger, began: time.Now()}
	cl.ctx, cl.cancel = context.WithCancel(context.Background())
	return cl
}

// Load returns how many requests the peer had to do with when it answered last, 0 if that was more than loadFor ago, or if it
// speaks version 1, which does not say.
func (cl *Client) Load() int {
	n := cl.load.Load()
	if n == 0 || time.Since(cl.began)-time.Duration(cl.loadAt.Load()) > loadFor {
		return 0
	}
	return int(n)
}

// told notes what the peer says of its load.
func (cl *Client) told(load int) {
	if load > 0 {
		cl.loadAt.Store(int64(time.Since(cl.began)))
	}
	cl.load.Store(int64(load))
}

// Close cuts the connections, and returns when nothing of the client runs any more. Calls under way fail.
func (cl *Client) Close() error {
	cl.mu.Lock()
	cl.closed = true
	conns := append([]*clientConn(nil), cl.bulk...)
	if cl.small != nil {
		conns = append(conns, cl.small)
	}
	cl.mu.Unlock()
	cl.cancel()
	for _, c := range conns {
		c.fail(unavailable("rpc.Close", "the connection was closed", nil))
	}
	cl.work.Wait()
	return nil
}

// Call sends a request and returns the answer, which belongs to the caller. It goes with other small ones if it is
// small. Errors: the peer's, of their kinds; errs.Unavailable when the peer cannot be reached or the connection broke;
// those of ctx. Unless NotSent, a request that failed with one of the last two may have been executed, or may still be.
func (cl *Client) Call(ctx context.Context, m Method, payload []byte) ([]byte, error) {
	b, _, err := cl.do(ctx, m, payload, nil, len(payload) >= bulkPayload)
	return b, err
}

// CallBulk is Call for what has a large answer, or takes long.
func (cl *Client) CallBulk(ctx context.Context, m Method, payload []byte) ([]byte, error) {
	b, _, err := cl.do(ctx, m, payload, nil, true)
	return b, err
}

// CallInto is CallBulk with the answer in into, and its length. An answer that is too long is errs.Internal. When ctx ends
// while the answer comes in, it still waits for the rest of it, or the end of the connection.
func (cl *Client) CallInto(ctx context.Context, m Method, payload, into []byte) (int, error) {
	_, n, err := cl.do(ctx, m, payload, into, true)
	return n, err
}

func (cl *Client) do(ctx context.Context, m Method, payload, into []byte, bulk bool) ([]byte, int, error) {
	if len(payload) > MaxMessage-maxHead {
		return nil, 0, unsent{errs.E("rpc.Call", errs.Invalid, "the request is too long")}
	}
	for try := 1; ; try++ {
		c, err := cl.connect(ctx, bulk)
		if err != nil {
			return nil, 0, err
		}
		b, n, err := c.call(ctx, m, payload, into)
		if err == nil || try == attempts || !NotSent(err) || ctx.Err() != nil {
			return b, n, err
		}
	}
}

// Post sends a request whose answer nobody waits for, at most once, and never blocks. It is executed before what is called
// afterwards, if its method is inline and it is not lost: with a connection, or because too many wait. payload must not change.
func (cl *Client) Post(m Method, payload []byte) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.closed {
		return
	}
	if cl.small != nil && cl.small.post(m, payload) {
		return
	}
	if cl.posting+len(cl.posts) >= maxPosting {
		return
	}
	if cl.small == nil || !cl.small.usable() {
		if cl.dial(false) != nil {
			cl.posts = append(cl.posts, posted{m, payload})
		}
		return
	}
	cl.posting++
	cl.work.Go(func() {
		ctx, cancel := context.WithTimeout(cl.ctx, postTimeout)
		defer cancel()
		_, _ = cl.Call(ctx, m, payload) // who posts does not care
		cl.mu.Lock()
		cl.posting--
		cl.mu.Unlock()
	})
}

// Stream opens a stream, with open as its first message. It returns as soon as that is on its way: whether the peer accepts it,
// the first Recv tells. ctx bounds the opening only; the stream lives until Close, which must be called.
func (cl *Client) Stream(ctx context.Context, m Method, open []byte) (Stream, error) {
	for try := 1; ; try++ {
		c, err := cl.connect(ctx, true)
		if err != nil {
			return nil, err
		}
		s, err := c.open(ctx, m, open)
		if err == nil {
			return s, nil
		}
		if try == attempts || ctx.Err() != nil {
			return nil, err
		}
	}
}

// connect returns a connection. Its errors are NotSent.
func (cl *Client) connect(ctx context.Context, bulk bool) (*clientConn, error) {
	const op = "rpc.connect"
	var patience <-chan time.Time
	for {
		if ctx.Err() != nil {
			return nil, unsent{ended(op, ctx)}
		}
		cl.mu.Lock()
		if cl.closed {
			cl.mu.Unlock()
			return nil, unsent{unavailable(op, "the connection was closed", nil)}
		}
		if c := cl.pick(bulk); c != nil {
			cl.mu.Unlock()
			return c, nil
		}
		d := cl.dial(bulk)
		down, last := cl.failures > 0, cl.lastErr
		cl.mu.Unlock()
		if d == nil {
			return nil, unsent{last}
		}
		if down && patience == nil {
			t := time.NewTimer(downPatience)
			defer t.Stop()
			patience = t.C
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, unsent{d.err}
			}
		case <-patience:
			return nil, unsent{last}
		case <-ctx.Done():
			return nil, unsent{ended(op, ctx)}
		}
	}
}

// pick returns a connection to use, nil if one must be dialed. The caller holds mu.
func (cl *Client) pick(bulk bool) *clientConn {
	if !bulk {
		if cl.small != nil && cl.small.usable() {
			return cl.small
		}
		return nil
	}
	var best *clientConn
	least := 0
	for _, c := range cl.bulk {
		if n, ok := c.used(); ok && (best == nil || n < least) {
			best, least = c, n
		}
	}
	if best != nil && least > 0 && len(cl.bulk) < cl.c.MaxBulk {
		cl.dial(true) // for the next one
	}
	return best
}

// dial begins to connect, unless that is under way. nil: it is too early after a failure. The caller holds mu.
func (cl *Client) dial(bulk bool) *dialing {
	i := 0
	if bulk {
		i = 1
	}
	if cl.dialing[i] != nil {
		return cl.dialing[i]
	}
	if cl.failures > 0 && time.Now().Before(cl.retryAt) {
		return nil
	}
	d := &dialing{done: make(chan struct{})}
	cl.dialing[i] = d
	cl.work.Go(func() {
		c, err := cl.open(bulk)
		cl.mu.Lock()
		cl.dialing[i] = nil
		d.err = cl.connected(c, err, bulk)
		ok := d.err == nil
		cl.mu.Unlock()
		close(d.done)
		if ok {
			c.run()
			cl.mu.Lock()
			cl.drop(c)
			cl.mu.Unlock()
		} else if c != nil {
			_ = c.nc.Close()
		}
	})
	return d
}

// connected notes what came of dialing. The caller holds mu.
func (cl *Client) connected(c *clientConn, err error, bulk bool) error {
	if err == nil && cl.closed {
		return unavailable("rpc.connect", "the connection was closed", nil)
	}
	if err != nil {
		text := "the node cannot be reached"
		if k := errs.KindOf(err); k == errs.Denied || k == errs.Unsupported {
			text = errs.Public(err)
		}
		// Denied and the like would be taken for what the peer says of the call.
		err = unavailable("rpc.connect", text, err)
		if cl.failures == 0 && !cl.closed {
			cl.log.Warn("a node cannot be reached", "node", hex.EncodeToString(cl.c.Peer[:]), "cause", err)
		}
		if !bulk {
			cl.posts = nil
		}
		cl.failures++
		cl.retryAt = time.Now().Add(min(firstBackoff<<min(cl.failures-1, 10), lastBackoff))
		cl.lastErr = err
		return err
	}
	if cl.failures > 0 {
		cl.log.Info("a node is reached again", "node", hex.EncodeToString(cl.c.Peer[:]))
	}
	cl.failures, cl.lastErr = 0, nil
	if bulk {
		cl.bulk = append(cl.bulk, c)
	} else {
		cl.small = c
		for _, p := range cl.posts {
			c.post(p.m, p.payload)
		}
		cl.posts = nil
	}
	return nil
}

// drop takes a connection out of use. The caller holds mu.
func (cl *Client) drop(c *clientConn) {
	if cl.small == c {
		cl.small = nil
	}
	for i, b := range cl.bulk {
		if b == c {
			cl.bulk = append(cl.bulk[:i:i], cl.bulk[i+1:]...)
			return
		}
	}
}

// open dials and greets.
func (cl *Client) open(bulk bool) (*clientConn, error) {
	ctx, cancel := context.WithTimeout(cl.ctx, cl.c.DialTimeout)
	defer cancel()
	nc, err := cl.c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(cl.ctx, func() { _ = nc.Close() })()
	peer, err := greetServer(nc, cl.c.Self, cl.c.Peer, bulk, time.Now().Add(cl.c.Timing.Greeting))
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	c := &clientConn{cl: cl, bulk: bulk, calls: map[uint32]*call{}, lastUsed: time.Now()}
	c.conn = newConn(nc, peer, c, cl.c.Pool, cl.c.Timing)
	return c, nil
}

// clientConn is a connection of a client.
type clientConn struct {
	*conn
	cl   *Client
	bulk bool

	// The following are guarded by conn.mu.
	calls    map[uint32]*call
	lastID   uint32
	away     bool // the peer executes nothing more
	lastUsed time.Time
}

// call is a request that waits for its answer.
type call struct {
	at   spot
	into []byte
	done chan struct{}

	// Valid after done.
	answer []byte
	n      int
	err    error
}

// used returns how many requests the connection has, and whether it takes more.
func (c *clientConn) used() (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calls) + len(c.streams), c.takes()
}

func (c *clientConn) usable() bool {
	_, ok := c.used()
	return ok
}

// takes reports whether the connection takes more requests. The caller holds mu.
func (c *clientConn) takes() bool { return c.err == nil && !c.away && c.lastID < maxID }

// tick implements handler: a connection that is not needed goes.
func (c *clientConn) tick(*conn) {
	c.mu.Lock()
	n := len(c.calls) + len(c.streams)
	over := n == 0 && (!c.takes() || c.bulk && time.Since(c.lastUsed) > bulkIdle)
	if over {
		c.away = true
	}
	c.mu.Unlock()
	if over {
		c.fail(unavailable("rpc", "the connection was closed", nil))
	}
}

// request appends a request to the queue, under a new id. The caller holds mu, by way of put.
func (c *clientConn) request(b []byte, ctx context.Context, t frameType, m Method, payload []byte) ([]byte, uint32, error) {
	if !c.takes() {
		return nil, 0, unsent{unavailable("rpc.send", "the node shuts down", nil)}
	}
	req := request{method: m, meta: MetaOf(ctx)}
	if d, ok := ctx.Deadline(); ok && t == frameCall {
		if req.timeout = time.Until(d); req.timeout <= 0 {
			return nil, 0, unsent{errs.Wrap("rpc.send", context.DeadlineExceeded)}
		}
	}
	c.lastID++
	c.lastUsed = time.Now()
	var head [64]byte
	h := req.appendTo(head[:0])
	b = appendFrame(b, t, c.lastID, len(h), len(payload))
	return append(append(b, h...), payload...), c.lastID, nil
}

// post sends a request whose answer is dropped, and reports whether it could without waiting.
func (c *clientConn) post(m Method, payload []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) >= maxQueued {
		return false
	}
	b, _, err := c.request(c.queue, context.Background(), frameCall, m, payload)
	if err != nil {
		return false
	}
	c.queue = b
	c.poke()
	return true
}

// call sends a request and waits for the answer.
func (c *clientConn) call(ctx context.Context, m Method, payload, into []byte) ([]byte, int, error) {
	ca := &call{into: into, done: make(chan struct{})}
	var id uint32
	if _, err := c.put(ctx, func(b []byte) (_ []byte, err error) {
		if b, id, err = c.request(b, ctx, frameCall, m, payload); err == nil {
			ca.at = spot{c.batch, len(b)}
			c.calls[id] = ca
		}
		return b, err
	}); err != nil {
		return nil, 0, unsent{err}
	}
	select {
	case <-ca.done:
		return ca.answer, ca.n, ca.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	_, waits := c.calls[id]
	delete(c.calls, id)
	c.mu.Unlock()
	if waits {
		c.conn.post(frameCancel, id, nil)
	} else if into != nil { // somebody writes to it
		<-ca.done
		return nil, ca.n, ca.err
	}
	return nil, 0, ended("rpc.Call", ctx)
}

// open sends the beginning of a stream. Its errors are NotSent.
func (c *clientConn) open(ctx context.Context, m Method, open []byte) (*stream, error) {
	var s *stream
	_, err := c.put(ctx, func(b []byte) (_ []byte, err error) {
		var id uint32
		if b, id, err = c.request(b, ctx, frameOpen, m, open); err == nil {
			s = newStream(c.conn, id, true)
			c.streams[id] = s
		}
		return b, err
	})
	if err != nil {
		return nil, unsent{err}
	}
	return s, nil
}

// lost implements handler.
func (c *clientConn) lost(_ *conn, err error) {
	c.mu.Lock()
	calls := c.calls
	c.calls = map[uint32]*call{}
	for _, ca := range calls {
		if ca.err = err; !c.left(ca.at) {
			ca.err = unsent{err}
		}
	}
	c.mu.Unlock()
	for _, ca := range calls {
		close(ca.done)
	}
}

// frame implements handler.
func (c *clientConn) frame(_ *conn, f frame) error {
	switch f.typ {
	case frameReply:
		return c.reply(f)
	case frameEnd:
		head, err := c.head(f)
		if err != nil {
			return err
		}
		remote, load, err := parseReply(head)
		if err != nil {
			return err
		}
		c.cl.told(load)
		if err := c.discard(f.size - f.head); err != nil {
			return err
		}
		if s := c.stream(f.id); s != nil {
			s.end(orEOF(remote))
		}
		return nil
	case frameGoAway:
		var b [4]byte
		if f.size != 4 || f.head != 0 {
			return errs.E("rpc.read", errs.Invalid, "malformed frame")
		}
		if err := c.fill(b[:]); err != nil {
			return err
		}
		c.goAway(binary.LittleEndian.Uint32(b[:]))
		return nil
	}
	return errs.E("rpc.read", errs.Invalid, "a frame that no server sends")
}

// reply takes an answer.
func (c *clientConn) reply(f frame) error {
	head, err := c.head(f)
	if err != nil {
		return err
	}
	remote, load, err := parseReply(head)
	if err != nil {
		return err
	}
	c.cl.told(load)
	c.mu.Lock()
	ca := c.calls[f.id]
	delete(c.calls, f.id)
	c.mu.Unlock()
	size := f.size - f.head
	if ca == nil { // nobody waits any more
		return c.discard(size)
	}
	defer close(ca.done)
	switch {
	case remote != nil:
		ca.err = remote
	case ca.into == nil:
		ca.answer = make([]byte, size)
		if ca.err = c.fill(ca.answer); ca.err != nil {
			ca.answer = nil
		}
		return ca.err
	case size > len(ca.into):
		ca.err = errs.E("rpc.Call", errs.Internal, "the answer is too long")
	default:
		if ca.err = c.fill(ca.into[:size]); ca.err == nil {
			ca.n = size
		}
		return ca.err
	}
	return c.discard(size)
}

// orEOF is the end of a stream.
func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// goAway: nothing above last is executed.
func (c *clientConn) goAway(last uint32) {
	err := unavailable("rpc", "the node shuts down", nil)
	c.mu.Lock()
	c.away = true
	var gone []*call
	for id, ca := range c.calls {
		if id > last {
			ca.err = unsent{err}
			gone = append(gone, ca)
			delete(c.calls, id)
		}
	}
	var over []*stream
	for id, s := range c.streams {
		if id > last {
			over = append(over, s)
		}
	}
	c.mu.Unlock()
	for _, ca := range gone {
		close(ca.done)
	}
	for _, s := range over {
		s.end(unsent{err})
	}
}
