package rpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

const (
	// maxQueued is how many bytes of copied frames wait for the writer of a connection; beyond it, calls wait.
	maxQueued = 4 << 20
	// copyLimit is the largest payload that is copied into the queue; the memory of a larger one is lent.
	copyLimit = 16 << 10
	// firstRecord is how much of a lent payload is written together with what stands before it, so that no
	// TLS record is wasted on a frame's head.
	firstRecord = 16 << 10
	// readBuffer takes what the peer wrote together.
	readBuffer = 32 << 10
	// maxID ends the life of a connection that has served so many calls.
	maxID = 1 << 31
)

// Timing says when a silent peer is asked, and when it is given up. Zero fields have defaults.
type Timing struct {
	PingEvery time.Duration // default 5 s
	DeadAfter time.Duration // default 15 s
	Greeting  time.Duration // how long the greeting may take; default 5 s
}

func (t Timing) withDefaults() Timing {
	if t.PingEvery <= 0 {
		t.PingEvery = 5 * time.Second
	}
	if t.DeadAfter <= 0 {
		t.DeadAfter = 15 * time.Second
	}
	if t.Greeting <= 0 {
		t.Greeting = 5 * time.Second
	}
	return t
}

// handler takes the frames that only one end understands. Each is called by the reader of the connection, and
// must not block. payload is read from the connection by the handler, to the last byte.
type handler interface {
	frame(c *conn, f frame) error
	// lost is called once, when the connection has failed.
	lost(c *conn, err error)
	// tick is called every PingEvery.
	tick(c *conn)
}

// conn is one connection, of either end.
type conn struct {
	nc       net.Conn
	wire     *wire // below nc; nil if it is none
	r        *bufio.Reader
	peer     Peer
	pool     *bufpool.Pool
	timing   Timing
	h        handler
	lastRead atomic.Int64 // nanoseconds since began
	began    time.Time

	dead chan struct{} // closed when the connection has failed
	wake chan struct{} // capacity 1: there is something to write

	// mu guards the fields below.
	mu      sync.Mutex
	timer   *time.Timer // asks a silent peer
	err     error       // why it failed
	queue   []byte
	lent    []*lent
	room    chan struct{} // closed when the queue is taken; nil: nobody waits
	batch   uint64        // how many times the queue was taken
	cut     bool          // the writer knows how far it came:
	sentOf  uint64        // in this batch …
	sentTo  int           // … so much of the copied bytes left
	closing bool          // fail once everything is written
	streams map[uint32]*stream
}

// lent is a payload that the writer takes from its owner's memory.
type lent struct {
	at      int // its place in the queue
	head    []byte
	payload []byte
	gone    bool // withdrawn
	taken   bool
	release func() // called when the writer has let go of the memory
}

func newConn(nc net.Conn, peer Peer, h handler, pool *bufpool.Pool, t Timing) *conn {
	c := &conn{nc: nc, wire: wireOf(nc), r: bufio.NewReaderSize(nc, readBuffer), peer: peer, pool: pool, timing: t, h: h, began: time.Now(),
		dead: make(chan struct{}), wake: make(chan struct{}, 1), streams: map[uint32]*stream{}}
	return c
}

// run reads and writes until the connection fails, and returns when nobody uses it any more but those
// whom the handler owns.
func (c *conn) run() {
	var writer sync.WaitGroup
	writer.Go(c.write)
	c.mu.Lock()
	c.timer = time.AfterFunc(c.timing.PingEvery, c.watch)
	c.mu.Unlock()
	c.fail(c.read())
	c.timer.Stop()
	writer.Wait()
}

// fail ends the connection.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	streams := c.streams
	c.streams = nil
	close(c.dead)
	c.mu.Unlock()
	// A TLS connection is not closed politely: that could block.
	if t, ok := c.nc.(*tls.Conn); ok {
		_ = t.NetConn().Close()
	} else {
		_ = c.nc.Close()
	}
	for _, s := range streams {
		s.fail(err)
	}
	c.h.lost(c, err)
}

// failed returns why the connection failed, nil if it works.
func (c *conn) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// watch asks a peer that is silent, and gives it up in the end. It runs on the timer.
func (c *conn) watch() {
	silent := time.Since(c.began) - time.Duration(c.lastRead.Load())
	if silent >= c.timing.DeadAfter {
		c.fail(unavailable("rpc", "the node does not answer", nil))
		return
	}
	if silent >= c.timing.PingEvery/2 {
		c.post(framePing, 0, nil)
	}
	c.h.tick(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.timer.Reset(c.timing.PingEvery)
	}
}

// post queues a frame without head, copied. It never waits: such frames are few and short.
func (c *conn) post(t frameType, id uint32, payload []byte) {
	c.mu.Lock()
	if c.err == nil {
		c.queue = append(appendFrame(c.queue, t, id, 0, len(payload)), payload...)
	}
	c.mu.Unlock()
	c.poke()
}

func (c *conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// spot is where a copied frame ends.
type spot struct {
	batch uint64
	end   int
}

// left reports whether all of a frame may have reached the peer; less of it is never understood. The caller holds mu, and
// the connection has failed.
func (c *conn) left(s spot) bool {
	switch {
	case s.batch >= c.batch: // never taken
		return false
	case c.cut && s.batch == c.sentOf:
		return s.end <= c.sentTo
	}
	return true
}

// put queues a frame, copied. add appends it and is called with mu held, once the queue has room. The error is
// of the connection or of ctx, and nothing was queued then.
func (c *conn) put(ctx context.Context, add func(b []byte) ([]byte, error)) (spot, error) {
	for {
		c.mu.Lock()
		if c.err != nil {
			defer c.mu.Unlock()
			return spot{}, c.err
		}
		if len(c.queue) < maxQueued {
			b, err := add(c.queue)
			if err != nil {
				c.mu.Unlock()
				return spot{}, err
			}
			c.queue = b
			at := spot{c.batch, len(b)}
			c.mu.Unlock()
			c.poke()
			return at, nil
		}
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		select {
		case <-room:
		case <-c.dead:
		case <-ctx.Done():
			return spot{}, ended("rpc.send", ctx)
		}
	}
}

// lend queues a frame whose payload stays where it is, and returns when the writer has let go of it. When ctx ends
// before the writer has come to it, it is withdrawn; when it ends later, lend still waits: at the latest, the connection is
// given up. The error is of the connection or of ctx; sent is false if no part of the payload left.
func (c *conn) lend(ctx context.Context, head, payload []byte) (sent bool, err error) {
	done := make(chan struct{})
	l := &lent{head: head, payload: payload, release: func() { close(done) }}
	if err := c.give(l); err != nil {
		return false, err
	}
	select {
	case <-done:
	case <-ctx.Done():
		c.mu.Lock()
		l.gone = !l.taken
		gone := l.gone
		c.mu.Unlock()
		if gone {
			return false, ended("rpc.send", ctx)
		}
		<-done
	}
	// Written as a whole, unless the connection failed.
	return true, c.failed()
}

// give queues a frame whose payload is lent. Unless there is an error, its release will be called.
func (c *conn) give(l *lent) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	l.at = len(c.queue)
	c.lent = append(c.lent, l)
	c.poke()
	return nil
}

// closeWhenWritten ends the connection as soon as what is queued has left.
func (c *conn) closeWhenWritten() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.poke()
}

// write is the writer: it takes all that is queued and writes it, again and again.
func (c *conn) write() {
	var spare, scratch []byte
	var idle []*lent
	for {
		c.mu.Lock()
		if c.err != nil {
			c.dropLent()
			c.mu.Unlock()
			return
		}
		if len(c.queue) == 0 && len(c.lent) == 0 {
			closing := c.closing
			c.mu.Unlock()
			if closing {
				c.fail(unavailable("rpc", "the connection was closed", nil))
				continue
			}
			select {
			case <-c.wake:
			case <-c.dead:
			}
			continue
		}
		queue, list := c.queue, c.lent
		c.queue, c.lent = spare[:0], idle[:0]
		c.batch++
		if c.room != nil {
			close(c.room)
			c.room = nil
		}
		for _, l := range list {
			l.taken = !l.gone
		}
		batch := c.batch - 1
		c.mu.Unlock()

		n, err := 0, error(nil)
		if n, scratch, err = c.writeAll(queue, list, scratch); err != nil {
			c.mu.Lock()
			if c.err == nil {
				c.cut, c.sentOf, c.sentTo = true, batch, n
			}
			c.mu.Unlock()
			c.fail(unavailable("rpc.write", "the connection to the node broke", err))
		}
		clear(list)
		spare, idle = queue, list
		if cap(spare) > maxQueued {
			spare = nil
		}
	}
}

// dropLent lets go of what will not be written. The caller holds mu.
func (c *conn) dropLent() {
	for _, l := range c.lent {
		l.release()
	}
	c.lent = nil
}

// writeAll writes the copied bytes and, in between, what is lent. n is how many of the copied bytes left, or may have.
func (c *conn) writeAll(queue []byte, list []*lent, scratch []byte) (n int, _ []byte, err error) {
	if c.wire != nil && (len(list) > 0 || len(queue) > firstRecord) { // more than one record
		c.wire.hold()
		defer func() {
			if failed := c.wire.flush(); err == nil {
				err = failed
			}
		}()
	}
	at := 0
	for i, l := range list {
		if l.taken && err == nil {
			var m int
			m, scratch, err = c.writeLent(queue[at:l.at], l, scratch)
			n, at = n+m, l.at
		}
		l.release()
		list[i] = nil
	}
	if err != nil || at == len(queue) {
		return n, scratch, err
	}
	m, err := c.nc.Write(queue[at:])
	return n + m, scratch, err
}

// writeLent writes what stands before a lent payload, and the payload. n is how much of before left.
func (c *conn) writeLent(before []byte, l *lent, scratch []byte) (n int, _ []byte, err error) {
	if len(before) > firstRecord {
		if n, err = c.nc.Write(before); err != nil {
			return n, scratch, err
		}
		before = nil
	}
	first := min(len(l.payload), firstRecord)
	scratch = append(append(append(scratch[:0], before...), l.head...), l.payload[:first]...)
	m, err := c.nc.Write(scratch)
	n += min(m, len(before))
	if err == nil && first < len(l.payload) {
		_, err = c.nc.Write(l.payload[first:])
	}
	return n, scratch, err
}

// read is the reader: it returns why there is no more.
func (c *conn) read() error {
	for {
		b, err := c.r.Peek(frameHead)
		if err != nil {
			return broken(err)
		}
		c.lastRead.Store(int64(time.Since(c.began)))
		f, err := parseFrame(b)
		if err != nil {
			return err
		}
		_, _ = c.r.Discard(frameHead) // it was peeked
		switch f.typ {
		case framePing:
			c.post(framePong, 0, nil)
		case framePong:
		case frameData:
			err = c.readData(f)
		case frameWindow:
			err = c.readWindow(f)
		case frameEOS:
			if s := c.stream(f.id); s != nil {
				s.finishRecv(io.EOF)
			}
		default:
			err = c.h.frame(c, f)
		}
		if err != nil {
			return err
		}
	}
}

func broken(err error) error { return unavailable("rpc.read", "the connection to the node broke", err) }

// head returns the head of a frame, valid until the next read.
func (c *conn) head(f frame) ([]byte, error) {
	b, err := c.r.Peek(f.head)
	if err != nil {
		return nil, broken(err)
	}
	_, _ = c.r.Discard(f.head)
	return b, nil
}

// fill reads p, and notes that the peer is alive as it comes.
func (c *conn) fill(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), 1<<20)
		if _, err := io.ReadFull(c.r, p[:n]); err != nil {
			return broken(err)
		}
		c.lastRead.Store(int64(time.Since(c.began)))
		p = p[n:]
	}
	return nil
}

func (c *conn) discard(n int) error {
	if _, err := c.r.Discard(n); err != nil {
		return broken(err)
	}
	return nil
}

func (c *conn) stream(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// readData takes a message of a stream. What comes for a stream that is over is dropped.
func (c *conn) readData(f frame) error {
	if f.head != 0 {
		return errs.E("rpc.read", errs.Invalid, "malformed frame")
	}
	s := c.stream(f.id)
	if s == nil {
		return c.discard(f.size)
	}
	buf := c.pool.Get(f.size)
	if err := c.fill(buf.Bytes()); err != nil {
		buf.Release()
		return err
	}
	return s.deliver(buf)
}

func (c *conn) readWindow(f frame) error {
	var b [4]byte
	if f.size != 4 || f.head != 0 {
		return errs.E("rpc.read", errs.Invalid, "malformed frame")
	}
	if err := c.fill(b[:]); err != nil {
		return err
	}
	if s := c.stream(f.id); s != nil {
		return s.grant(int(binary.LittleEndian.Uint32(b[:])))
	}
	return nil
}
