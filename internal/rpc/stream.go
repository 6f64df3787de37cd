package rpc

import (
	"context"
	"encoding/binary"
	"sync"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// Stream is one end of a two-way stream of messages. One goroutine at a time may send, and one receive.
type Stream interface {
	// Send sends one message; one of more than MaxData arrives as several. It returns when the connection has taken p,
	// which says nothing of the peer, and waits while Window bytes are under way. When ctx ends before the
	// message could leave, the stream stays as it was if p fits one message; else it is broken. Errors: how the peer ended the stream, the
	// connection's, those of ctx.
	Send(ctx context.Context, p []byte) error
	// CloseSend says that no message follows.
	CloseSend() error
	// Recv returns the next message, in page-aligned memory that is valid until the next Recv or Close. The error is io.EOF at the
	// clean end: of what the peer sends, for a server; of the stream, for a client.
	Recv(ctx context.Context) ([]byte, error)
	// Close gives the stream up, and frees what it holds. A server's ends with its handler. It may be called at any time, and
	// again.
	Close() error
}

// stream implements Stream.
type stream struct {
	c      *conn
	id     uint32
	client bool

	recvWake chan struct{} // capacity 1
	sendWake chan struct{} // capacity 1

	// mu guards the fields below.
	mu       sync.Mutex
	in       []*bufpool.Buf
	inBytes  int          // what in and cur take of the window
	cur      *bufpool.Buf // lent to the receiver
	taken    int          // bytes taken by the receiver and not granted again
	recvErr  error        // after in; nil: more comes
	sendErr  error        // nil: the stream is open
	credit   int          // bytes that may be sent
	sendDone bool         // CloseSend was called
	closed   bool
}

func newStream(c *conn, id uint32, client bool) *stream {
	return &stream{c: c, id: id, client: client, recvWake: make(chan struct{}, 1), sendWake: make(chan struct{}, 1), credit: Window}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

var errClosed = errs.E("rpc.Stream", errs.Canceled, "the stream is closed")

// deliver takes a message from the connection. The error is the peer's fault.
func (s *stream) deliver(buf *bufpool.Buf) error {
	n := cost(len(buf.Bytes()))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.recvErr != nil {
		buf.Release()
		return nil
	}
	if s.inBytes+s.taken+n > Window {
		buf.Release()
		return errs.E("rpc.Stream", errs.Invalid, "the peer sent more than it may")
	}
	s.in = append(s.in, buf)
	s.inBytes += n
	poke(s.recvWake)
	return nil
}

// finishRecv says that nothing more comes.
func (s *stream) finishRecv(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recvErr == nil {
		s.recvErr = err
	}
	poke(s.recvWake)
}

// end ends both directions; err is what the other end says, io.EOF if it ended well.
func (s *stream) end(err error) {
	s.finishRecv(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sendErr == nil {
		s.sendErr = err
	}
	poke(s.sendWake)
}

// fail ends the stream with its connection.
func (s *stream) fail(err error) { s.end(err) }

// grant adds to what may be sent. The error is the peer's fault.
func (s *stream) grant(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.credit += n; s.credit > Window {
		return errs.E("rpc.Stream", errs.Invalid, "the peer granted more than it may")
	}
	poke(s.sendWake)
	return nil
}

// reserve waits until n bytes may be sent, and takes them.
func (s *stream) reserve(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return errClosed
		case s.sendErr != nil:
			defer s.mu.Unlock()
			return s.sendErr
		case s.sendDone:
			s.mu.Unlock()
			return errs.E("rpc.Send", errs.Internal, "sending has ended")
		case s.credit >= n:
			s.credit -= n
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-s.sendWake:
		case <-ctx.Done():
			return ended("rpc.Send", ctx)
		}
	}
}

// cost is what a message of n bytes takes of the window: empty ones are not free.
func cost(n int) int { return max(n, 64) }

// Send implements Stream.
func (s *stream) Send(ctx context.Context, p []byte) error {
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), MaxData)
		if err := s.send(ctx, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (s *stream) send(ctx context.Context, p []byte) error {
	if err := ctx.Err(); err != nil {
		return ended("rpc.Send", ctx)
	}
	if err := s.reserve(ctx, cost(len(p))); err != nil {
		return err
	}
	var err error
	if len(p) <= copyLimit {
		_, err = s.c.put(ctx, func(b []byte) ([]byte, error) {
			return append(appendFrame(b, frameData, s.id, 0, len(p)), p...), nil
		})
	} else {
		var head [frameHead]byte
		_, err = s.c.lend(ctx, appendFrame(head[:0], frameData, s.id, 0, len(p)), p)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil { // withdrawn
		s.mu.Lock()
		s.credit += cost(len(p))
		s.mu.Unlock()
	}
	return err
}

// CloseSend implements Stream.
func (s *stream) CloseSend() error {
	s.mu.Lock()
	again := s.sendDone || s.closed
	s.sendDone = true
	s.mu.Unlock()
	if !again {
		s.c.post(frameEOS, s.id, nil)
	}
	return nil
}

// Recv implements Stream.
func (s *stream) Recv(ctx context.Context) ([]byte, error) {
	for {
		s.mu.Lock()
		s.giveBack()
		switch {
		case s.closed:
			s.mu.Unlock()
			return nil, errClosed
		case len(s.in) > 0:
			s.cur = s.in[0]
			s.in[0] = nil
			s.in = s.in[1:]
			p := s.cur.Bytes()
			s.mu.Unlock()
			return p, nil
		case s.recvErr != nil:
			defer s.mu.Unlock()
			return nil, s.recvErr
		}
		s.mu.Unlock()
		select {
		case <-s.recvWake:
		case <-ctx.Done():
			return nil, ended("rpc.Recv", ctx)
		}
	}
}

// giveBack releases what the receiver had, and grants the peer more when that is worth a frame. The caller holds mu.
func (s *stream) giveBack() {
	if s.cur == nil {
		return
	}
	n := cost(len(s.cur.Bytes()))
	s.cur.Release()
	s.cur = nil
	s.inBytes -= n
	s.taken += n
	if s.taken >= Window/4 && s.recvErr == nil {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], uint32(s.taken))
		s.taken = 0
		s.c.post(frameWindow, s.id, b[:])
	}
}

// Close implements Stream.
func (s *stream) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	over := s.sendErr != nil // the peer, or the connection, has ended it
	if s.cur != nil {
		s.cur.Release()
		s.cur = nil
	}
	for _, b := range s.in {
		b.Release()
	}
	s.in = nil
	s.mu.Unlock()
	poke(s.recvWake)
	poke(s.sendWake)
	s.c.forget(s.id)
	if s.client && !over {
		s.c.post(frameCancel, s.id, nil)
	}
	return nil
}

func (c *conn) forget(id uint32) {
	c.mu.Lock()
	delete(c.streams, id)
	c.mu.Unlock()
}

var _ Stream = (*stream)(nil)
