package sim

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// wires are the network between the machines of a run. What is sent keeps its order on a connection, takes virtual
// time, and waits while messages of that direction are lost, as TCP sends them again until they arrive.
type wires struct {
	// mu guards the fields below.
	mu      sync.Mutex
	rng     *rand.Rand
	late    time.Duration        // longest delay of what is sent
	twice   bool                 // some calls of the control plane arrive twice
	lost    map[[2]int]bool      // from, to: machines
	deaf    map[int]bool         // machines whose messages of the control plane are lost, and those to them
	up      map[disk.ID]*server  // by node
	at      map[disk.ID]*machine // by node, ended ones too
	conns   map[*wire]bool
	changed chan struct{} // closed when it may be possible to connect
}

func newWires(rng *rand.Rand) *wires {
	return &wires{rng: rng, lost: map[[2]int]bool{}, deaf: map[int]bool{}, up: map[disk.ID]*server{}, at: map[disk.ID]*machine{},
		conns: map[*wire]bool{}, changed: make(chan struct{})}
}

// wake has everyone look again. The caller holds mu.
func (n *wires) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
	for w := range n.conns {
		w.wake()
	}
}

// edit changes what is lost.
func (n *wires) edit(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	n.wake()
}

// reset breaks the connections between machines of which messages are lost now, as after a time-out.
func (n *wires) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.conns {
		if n.blocked(w, 0) || n.blocked(w, 1) {
			w.fail(syscall.ECONNRESET)
		}
	}
	n.wake()
}

// cut reports whether nothing arrives that one machine sends to another. The caller holds mu.
func (n *wires) cut(from, to int, control bool) bool {
	return n.lost[[2]int{from, to}] || control && (n.deaf[from] || n.deaf[to])
}

// blocked is cut for what one side of a connection sends. The caller holds mu.
func (n *wires) blocked(w *wire, side int) bool {
	return n.cut(w.ends[side].num, w.ends[1-side].num, w.raft)
}

// reaches reports whether messages pass both ways.
func (n *wires) reaches(a, b int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut(a, b, false) && !n.cut(b, a, false)
}

// delay draws how long something is on its way.
func (n *wires) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delayLocked()
}

func (n *wires) delayLocked() time.Duration {
	if n.late == 0 {
		return 0
	}
	return time.Duration(n.rng.Int64N(int64(n.late)))
}

// dial connects a process with a node. accept has the other end, under mu.
func (n *wires) dial(ctx context.Context, from *server, to disk.ID, raft bool, accept func(*server, net.Conn)) (net.Conn, error) {
	if !sleepCtx(ctx, 2*n.delay()) {
		return nil, errs.As("wires", errs.Timeout, ctx.Err())
	}
	a := from.member.m
	for {
		n.mu.Lock()
		b, s, changed := n.at[to], n.up[to], n.changed
		switch {
		case from.crashed.Load() || n.up[from.member.id] != from:
			n.mu.Unlock()
			return nil, errs.E("wires", errs.Unavailable, "the process has ended")
		case b == nil || s == nil && !b.dark:
			n.mu.Unlock()
			return nil, errs.E("wires", errs.Unavailable, "connection refused")
		case s != nil && !n.cut(a.num, b.num, raft) && !n.cut(b.num, a.num, raft):
			w := &wire{n: n, ends: [2]*machine{a, b}, lives: [2]*server{from, s}, raft: raft, changed: make(chan struct{})}
			n.conns[w] = true
			accept(s, wireEnd{w, 1})
			n.mu.Unlock()
			return wireEnd{w, 0}, nil
		}
		n.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errs.As("wires", errs.Timeout, ctx.Err())
		}
	}
}

// end takes a process off the network. Others hear of it, unless it is silent: then only when the machine is back.
func (n *wires) end(s *server, silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.up[s.member.id] != s {
		return // it was cut off before
	}
	delete(n.up, s.member.id)
	for w := range n.conns {
		for side, life := range w.lives {
			if life == s {
				w.half[side].err, w.half[side].queue = net.ErrClosed, nil
				if !silent {
					w.fail(syscall.ECONNRESET)
				}
				w.half[side].silent = silent
			}
		}
	}
	n.wake()
}

// begin puts a process on the network.
func (n *wires) begin(s *server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up[s.member.id], n.at[s.member.id] = s, s.member.m
	for w := range n.conns { // whom an earlier life was connected with hears that it is no more
		for side := range w.lives {
			if w.ends[side] == s.member.m && w.half[side].silent {
				w.fail(syscall.ECONNRESET)
			}
		}
	}
	n.wake()
}

const wireBuffer = 256 << 10 // bytes under way in one direction

// wire is a connection. Its fields are guarded by wires.mu.
type wire struct {
	n     *wires
	ends  [2]*machine
	lives [2]*server
	raft  bool
	half  [2]half
	// changed is closed when one of the ends may go on.
	changed chan struct{}
}

func (w *wire) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// half is one end of a connection, and what it has sent.
type half struct {
	queue   []packet
	size    int // of the queue
	last    time.Time
	closed  bool      // by its owner
	silent  bool      // its process is no more, and nobody was told
	err     error     // what its owner hears
	reading time.Time // deadlines
	writing time.Time
}

// packet is bytes under way; nil: the end of the stream.
type packet struct {
	at time.Time
	b  []byte
}

// fail ends the connection for both. The caller holds mu.
func (w *wire) fail(err error) {
	for i := range w.half {
		if w.half[i].err == nil {
			w.half[i].err = err
		}
	}
	delete(w.n.conns, w)
	w.wake()
}

// wireEnd is one end of a connection, for its owner.
type wireEnd struct {
	w    *wire
	side int
}

// wait waits until something has changed, a moment has come, or the deadline. The caller holds mu.
func (e wireEnd) wait(until, deadline time.Time) {
	changed := e.w.changed
	e.w.n.mu.Unlock()
	defer e.w.n.mu.Lock()
	if !deadline.IsZero() && (until.IsZero() || deadline.Before(until)) {
		until = deadline
	}
	var moment <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		moment = t.C
	}
	select {
	case <-changed:
	case <-moment:
	}
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// Read implements net.Conn.
func (e wireEnd) Read(p []byte) (int, error) {
	n := e.w.n
	n.mu.Lock()
	defer n.mu.Unlock()
	me, other := &e.w.half[e.side], &e.w.half[1-e.side]
	for {
		var until time.Time
		switch {
		case me.err != nil:
			return 0, me.err
		case passed(me.reading):
			return 0, os.ErrDeadlineExceeded
		case len(other.queue) > 0 && !n.blocked(e.w, 1-e.side):
			head := &other.queue[0]
			if until = head.at; !until.After(time.Now()) {
				if head.b == nil {
					return 0, io.EOF
				}
				k := copy(p, head.b)
				if head.b = head.b[k:]; len(head.b) == 0 {
					other.queue = other.queue[1:]
				}
				if other.size -= k; other.size+k >= wireBuffer {
					e.w.wake()
				}
				return k, nil
			}
		}
		e.wait(until, me.reading)
	}
}

// Write implements net.Conn.
func (e wireEnd) Write(p []byte) (done int, err error) {
	n := e.w.n
	n.mu.Lock()
	defer n.mu.Unlock()
	me, other := &e.w.half[e.side], &e.w.half[1-e.side]
	for len(p) > 0 {
		switch {
		case me.err != nil:
			return done, me.err
		case passed(me.writing):
			return done, os.ErrDeadlineExceeded
		case other.closed && !n.blocked(e.w, e.side) && !n.blocked(e.w, 1-e.side):
			return done, syscall.EPIPE
		case me.size < wireBuffer:
			k := min(len(p), wireBuffer-me.size)
			at := time.Now().Add(n.delayLocked())
			if at.Before(me.last) {
				at = me.last
			}
			me.last = at
			me.queue = append(me.queue, packet{at, append([]byte(nil), p[:k]...)})
			me.size += k
			done, p = done+k, p[k:]
			e.w.wake()
			continue
		}
		e.wait(time.Time{}, me.writing)
	}
	return done, nil
}

// Close implements net.Conn.
func (e wireEnd) Close() error {
	n := e.w.n
	n.mu.Lock()
	defer n.mu.Unlock()
	me := &e.w.half[e.side]
	if me.closed {
		return net.ErrClosed
	}
	me.closed, me.err = true, net.ErrClosed
	at := time.Now()
	if at.Before(me.last) {
		at = me.last
	}
	me.queue = append(me.queue, packet{at: at})
	if other := &e.w.half[1-e.side]; other.closed || other.err != nil {
		delete(n.conns, e.w)
	}
	e.w.wake()
	return nil
}

func (e wireEnd) deadline(f func(*half)) error {
	e.w.n.mu.Lock()
	defer e.w.n.mu.Unlock()
	f(&e.w.half[e.side])
	e.w.wake()
	return nil
}

// SetDeadline implements net.Conn, as do the two below.
func (e wireEnd) SetDeadline(t time.Time) error {
	return e.deadline(func(h *half) { h.reading, h.writing = t, t })
}

func (e wireEnd) SetReadDeadline(t time.Time) error {
	return e.deadline(func(h *half) { h.reading = t })
}

func (e wireEnd) SetWriteDeadline(t time.Time) error {
	return e.deadline(func(h *half) { h.writing = t })
}

// LocalAddr implements net.Conn.
func (e wireEnd) LocalAddr() net.Addr { return wireAddr(e.w.ends[e.side].name) }

// RemoteAddr implements net.Conn.
func (e wireEnd) RemoteAddr() net.Addr { return wireAddr(e.w.ends[1-e.side].name) }

type wireAddr string

func (wireAddr) Network() string  { return "sim" }
func (a wireAddr) String() string { return string(a) }
