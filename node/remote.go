package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
)

// Remote is a drive of another node. A call is sent once; only one that certainly did not arrive (rpc.NotSent) is tried on another
// connection. An error that the drive itself gave has its kind; errs.Stale, errs.NotFound and errs.Corrupt are
// never made up on the way. Where the answer is lost, the error is errs.Unavailable or that of ctx, and the request may have
// been executed.
type Remote struct {
	stub
	client *rpc.Client
}

// NewRemote returns the drive num of the node that client reaches.
func NewRemote(client *rpc.Client, num uint16) *Remote {
	r := &Remote{client: client}
	r.stub = stub{num, r.send}
	return r
}

// address puts the number of the drive before a request.
func (r *Remote) address(b []byte) []byte {
	return binary.LittleEndian.AppendUint16(b, r.num)
}

// send implements stub.
func (r *Remote) send(ctx context.Context, m rpc.Method, request []byte) ([]byte, error) {
	b := append(r.address(make([]byte, 0, 2+len(request))), request...)
	if bulk[m] {
		return r.client.CallBulk(ctx, m, b)
	}
	return r.client.Call(ctx, m, b)
}

// start opens a stream and waits until the server says that it is ready.
func (r *Remote) start(ctx context.Context, m rpc.Method, request []byte) (rpc.Stream, error) {
	s, err := r.client.Stream(ctx, m, request)
	if err != nil {
		return nil, err
	}
	if _, err := s.Recv(ctx); err != nil {
		_ = s.Close() // cannot fail
		return nil, lost(err)
	}
	return s, nil
}

// lost turns a clean end that comes too early into an error.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		return errs.E("node.Remote", errs.Unavailable, "the node ended the stream early")
	}
	return err
}

func newHandle() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails: the runtime aborts instead
	return id
}

// CreateShard implements Drive. The writer has no round trip for each Write: they return when the connection has taken the
// bytes, up to rpc.Window ahead of the drive. The last one, which completes the file, returns when the drive has
// all of it, so that a seal on any connection finds it. An error of an earlier Write shows in a later one.
func (r *Remote) CreateShard(ctx context.Context, spec disk.ShardSpec) (disk.ShardWriter, error) {
	w := &remoteWriter{r: r, handle: newHandle(), left: spec.FileSize}
	m := createRequest{Handle: w.handle, Spec: spec}
	s, err := r.start(ctx, mCreateShard, m.AppendTo(r.address(nil)))
	if err != nil {
		w.Abort() // it may have been created
		return nil, err
	}
	w.s = s
	return w, nil
}

// remoteWriter implements disk.ShardWriter.
type remoteWriter struct {
	r      *Remote
	handle [16]byte
	s      rpc.Stream
	left   int64 // used by the one Write at a time

	once sync.Once // of Abort
}

// Write implements erasure.Sink.
func (w *remoteWriter) Write(ctx context.Context, p []byte) error {
	const op = "node.Write"
	if int64(len(p)) > w.left {
		return errs.E(op, errs.Invalid, "shard is longer than announced")
	}
	w.left -= int64(len(p))
	if len(p) > 0 {
		if err := w.s.Send(ctx, p); err != nil {
			return lost(err)
		}
	}
	if w.left > 0 || len(p) == 0 {
		return nil
	}
	_, err := w.s.Recv(ctx)
	if errors.Is(err, io.EOF) { // the drive has everything
		return w.s.Close()
	}
	if err == nil {
		err = errs.E(op, errs.Unavailable, "the node's answer does not parse")
	}
	return err
}

// Abort implements disk.ShardWriter. It does not wait: the abort goes ahead of what is called afterwards. If it is lost with the
// connection, an incomplete shard goes with it, and of a complete one the drive's own sweep takes care.
func (w *remoteWriter) Abort() {
	w.once.Do(func() {
		if w.s != nil {
			_ = w.s.Close() // cannot fail
		}
		w.r.client.Post(mAbortShard, (&handleRequest{Handle: w.handle}).AppendTo(nil))
	})
}

// OpenShard implements Drive. Reads of the source may overlap; each is one request, and the bytes come straight into the
// caller's memory. A source whose connection broke does not come back.
func (r *Remote) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	m := openRequest{Handle: newHandle(), ID: shardID(id)}
	s, err := r.start(ctx, mOpenShard, m.AppendTo(r.address(nil)))
	if err != nil {
		return nil, err
	}
	return &remoteSource{r: r, handle: m.Handle, s: s}, nil
}

// remoteSource implements erasure.Source.
type remoteSource struct {
	r      *Remote
	handle [16]byte
	s      rpc.Stream // keeps the shard open
}

// ReadAt implements erasure.Source.
func (s *remoteSource) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	for {
		part := p[n:min(len(p), n+maxRead)]
		m := handleRequest{Handle: s.handle, Offset: off + int64(n), Length: uint32(len(part))}
		got, err := s.r.client.CallInto(ctx, mReadShard, m.AppendTo(nil), part)
		n += got
		switch {
		case err != nil:
			return n, err
		case got < len(part):
			return n, io.EOF
		case n == len(p):
			return n, nil
		}
	}
}

// Close implements erasure.Source.
func (s *remoteSource) Close() error { return s.s.Close() }

// VerifyShard implements Drive. throttle runs here: the node asks before each read.
func (r *Remote) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	m := verifyRequest{Chunk: c, Index: index, Throttled: throttle != nil}
	_, err := r.verify(ctx, mVerifyShard, m.AppendTo(r.address(nil)), throttle)
	return err
}

// Scrub implements Drive. throttle runs here: the node asks before each read.
func (r *Remote) Scrub(ctx context.Context, after erasure.ShardID, limit int, throttle func(context.Context, int) error) (disk.ScrubReport, error) {
	m := shardsRequest{After: shardID(after), Limit: limit, Throttled: throttle != nil}
	report, err := r.verify(ctx, mScrub, m.AppendTo(r.address(nil)), throttle)
	if report == nil { // nothing is known to have been verified
		return disk.ScrubReport{Next: after, More: true}, err
	}
	return *report, err
}

// verify runs a verification at the node. report is nil when its result did not come.
func (r *Remote) verify(ctx context.Context, method rpc.Method, request []byte, throttle func(context.Context, int) error) (*disk.ScrubReport, error) {
	s, err := r.client.Stream(ctx, method, request)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var stopped error
	var answer []byte
	for {
		p, err := s.Recv(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, first(stopped, err)
		}
		switch {
		case len(p) == 5 && p[0] == askBytes && throttle != nil && stopped == nil:
			reply := []byte{grantBytes}
			if stopped = throttle(ctx, int(binary.LittleEndian.Uint32(p[1:]))); stopped != nil {
				reply = rpc.AppendError([]byte{stopBytes}, stopped)
			}
			if err := s.Send(ctx, reply); err != nil {
				return nil, first(stopped, lost(err))
			}
		case len(p) > 0 && p[0] == result && len(answer)+len(p) <= rpc.MaxMessage:
			answer = append(answer, p[1:]...)
		default:
			return nil, unreadable(errs.E("node.verify", errs.Invalid, "a message that nobody sends"))
		}
	}
	var m scrubReply
	if err := m.Unmarshal(answer); err != nil {
		return nil, unreadable(err)
	}
	if stopped != nil && m.Err.err != nil {
		return &m.Report, stopped
	}
	return &m.Report, m.Err.err
}

// first returns the first error that is one.
func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

var _ Drive = (*Remote)(nil)
