package rpc

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc/rpctest"
)

var (
	bg      = context.Background()
	cluster = [16]byte{1}
	nodeA   = Identity{Cluster: cluster, Node: [16]byte{0xa}}
	nodeB   = Identity{Cluster: cluster, Node: [16]byte{0xb}}
)

const (
	mEcho Method = 1 + iota
	mFail
	mHang
	mBlob
	mSum
	mFlood
	mDeadline
	mStreamHang
)

// world is a server, and what its handlers saw.
type world struct {
	s       *Server
	serving sync.WaitGroup
	calls   atomic.Int64
	hanging chan struct{} // one element for each call that began to hang
	ended   chan struct{} // and for each that was given up
	let     chan struct{} // closed: let them go
}

func testMux(w *world) *Mux {
	m := NewMux()
	m.Handle(mEcho, func(_ context.Context, _ Peer, p []byte) ([]byte, error) {
		w.calls.Add(1)
		return bytes.Clone(p), nil
	})
	m.Handle(mFail, func(_ context.Context, _ Peer, p []byte) ([]byte, error) {
		return nil, &errs.Error{Op: "test.Fail", Kind: errs.Kind(p[0]), Msg: "as asked", Err: errors.New("a secret")}
	})
	m.Handle(mHang, func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
		w.hanging <- struct{}{}
		select {
		case <-ctx.Done():
			w.calls.Add(1)
			w.ended <- struct{}{}
			return nil, errs.Wrap("test.Hang", ctx.Err())
		case <-w.let:
			return []byte("late"), nil
		}
	})
	m.HandleLend(mBlob, func(_ context.Context, _ Peer, p []byte) ([]byte, func(), error) {
		buf := w.s.c.Pool.Get(len(p) << 10)
		for i := range buf.Bytes() {
			buf.Bytes()[i] = byte(i)
		}
		return buf.Bytes(), buf.Release, nil
	})
	m.HandleStream(mSum, func(ctx context.Context, _ Peer, open []byte, s Stream) error {
		n := 0
		for {
			p, err := s.Recv(ctx)
			if err == io.EOF {
				return s.Send(ctx, fmt.Append(open, n))
			}
			if err != nil {
				return err
			}
			n += len(p)
		}
	})
	m.HandleStream(mFlood, func(ctx context.Context, _ Peer, open []byte, s Stream) error {
		for i := range 200 {
			if err := s.Send(ctx, bytes.Repeat(open, 20000)); err != nil {
				return err
			}
			if i == 199 {
				return errs.E("test", errs.Full, "that is all")
			}
		}
		return nil
	})
	m.Handle(mDeadline, func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
		d, ok := ctx.Deadline()
		m := MetaOf(ctx)
		return fmt.Append(nil, ok, time.Until(d) > 50*time.Second && time.Until(d) < time.Minute, m.Trace[0], m.Priority, m.Account), nil
	})
	m.HandleStream(mStreamHang, func(ctx context.Context, _ Peer, _ []byte, _ Stream) error {
		w.hanging <- struct{}{}
		select {
		case <-ctx.Done():
			w.calls.Add(1)
			return ctx.Err()
		case <-w.let:
			return nil
		}
	})
	return m
}

func newWorld(t testing.TB, change func(*ServerConfig)) *world {
	w := &world{hanging: make(chan struct{}, 1000), ended: make(chan struct{}, 1000), let: make(chan struct{})}
	c := ServerConfig{Self: nodeB, Mux: testMux(w), Pool: bufpool.New(bufpool.Options{Poison: true})}
	if change != nil {
		change(&c)
	}
	w.s = NewServer(c)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(bg)
		cancel()
		_ = w.s.Close(ctx) // cuts what is left
		w.serving.Wait()
		if n := buffers(c.Pool); n != 0 {
			t.Errorf("%d buffers of the server are still in use", n)
		}
	})
	return w
}

// buffers is how many buffers of a pool are in use.
func buffers(p *bufpool.Pool) int64 {
	if p == nil {
		return 0
	}
	return p.Stats().Buffers
}

// pipe connects to w in memory.
func (w *world) pipe(context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	w.serve(b)
	return a, nil
}

func (w *world) serve(c net.Conn) {
	w.serving.Go(func() { _ = w.s.ServeConn(bg, c, nodeA.Node) })
}

func newClient(t testing.TB, dial func(context.Context) (net.Conn, error), change func(*ClientConfig)) *Client {
	c := ClientConfig{Dial: dial, Self: nodeA, Peer: nodeB.Node, Pool: bufpool.New(bufpool.Options{Poison: true})}
	if change != nil {
		change(&c)
	}
	cl := NewClient(c)
	t.Cleanup(func() {
		_ = cl.Close()
		if n := buffers(c.Pool); n != 0 {
			t.Errorf("%d buffers of the client are still in use", n)
		}
	})
	return cl
}

func wantKind(t *testing.T, err error, k errs.Kind) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("got error %v (%v), want %v", err, errs.KindOf(err), k)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// onBoth runs a test over a pipe and over TLS.
func onBoth(t *testing.T, f func(t *testing.T, w *world, cl *Client)) {
	t.Run("pipe", func(t *testing.T) {
		w := newWorld(t, nil)
		f(t, w, newClient(t, w.pipe, nil))
	})
	t.Run("TLS", func(t *testing.T) {
		w := newWorld(t, nil)
		f(t, w, newClient(t, rpctest.TLS(t, w.serve, Wire), nil))
	})
}

func TestCallsAreAnswered(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				p := bytes.Repeat([]byte{byte(i)}, i*97)
				got, err := cl.Call(bg, mEcho, p)
				if err != nil || !bytes.Equal(got, p) {
					t.Errorf("call %d: %d bytes, %v", i, len(got), err)
				}
			})
		}
		all.Wait()
		big := make([]byte, 3<<20)
		_, _ = rand.Read(big)
		got, err := cl.Call(bg, mEcho, big)
		if err != nil || !bytes.Equal(got, big) {
			t.Errorf("a large call: %d bytes, %v", len(got), err)
		}
		into := make([]byte, 600<<10)
		n, err := cl.CallInto(bg, mBlob, make([]byte, 500), into)
		if err != nil || n != 500<<10 || into[257] != 1 {
			t.Errorf("into: %d, %v", n, err)
		}
		_, err = cl.CallInto(bg, mBlob, make([]byte, 700), into)
		wantKind(t, err, errs.Internal)
	})
}

func TestErrorsKeepKindAndText(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		for k := errs.Internal; k <= lastKind; k++ {
			_, err := cl.Call(bg, mFail, []byte{byte(k)})
			want := k
			if k == errs.Canceled { // the caller has not given up
				want = errs.Unavailable
			}
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != want || e.Msg != "as asked" || NotSent(err) {
				t.Errorf("kind %v: got %v (%v)", k, err, errs.KindOf(err))
			}
			if bytes.Contains([]byte(err.Error()), []byte("secret")) {
				t.Errorf("the cause crossed: %v", err)
			}
		}
		_, err := cl.Call(bg, 999, nil)
		wantKind(t, err, errs.Unsupported)
	})
}

func TestDeadlineAndMetaTravel(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		ctx, cancel := context.WithTimeout(bg, time.Minute)
		defer cancel()
		ctx = WithMeta(ctx, Meta{Trace: [16]byte{7}, Priority: 3, Account: "acc"})
		got, err := cl.Call(ctx, mDeadline, nil)
		must(t, err)
		if string(got) != "true true 7 3acc" {
			t.Errorf("got %q", got)
		}
	})
}

func TestACallThatIsGivenUpEndsAtTheServer(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		ctx, cancel := context.WithCancel(bg)
		done := make(chan error)
		go func() {
			_, err := cl.Call(ctx, mHang, nil)
			done <- err
		}()
		<-w.hanging
		cancel()
		err := <-done
		wantKind(t, err, errs.Canceled)
		if NotSent(err) {
			t.Error("the call was executed")
		}
		select {
		case <-w.ended:
		case <-time.After(time.Minute):
			t.Fatal("the call goes on at the server")
		}
		_, err = cl.Call(ctx, mEcho, nil)
		wantKind(t, err, errs.Canceled)
		if !NotSent(err) {
			t.Error("a call under an ended ctx was sent")
		}
	})
}

func TestStreams(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				s, err := cl.Stream(bg, mSum, []byte("sum "))
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				want := 0
				for j := range 20 {
					p := make([]byte, j*i*1000)
					want += len(p)
					if err := s.Send(bg, p); err != nil {
						t.Error(err)
						return
					}
				}
				_ = s.CloseSend()
				got, err := s.Recv(bg)
				if err != nil || string(got) != fmt.Sprint("sum ", want) {
					t.Errorf("stream %d: got %q, %v", i, got, err)
				}
				if _, err := s.Recv(bg); err != io.EOF {
					t.Errorf("stream %d: the end is %v", i, err)
				}
			})
		}
		all.Wait()
		s, err := cl.Stream(bg, 999, nil)
		must(t, err)
		defer s.Close()
		_, err = s.Recv(bg)
		wantKind(t, err, errs.Unsupported)
	})
}

func TestAStreamEndsWithTheErrorOfItsHandler(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		s, err := cl.Stream(bg, mFlood, []byte("x"))
		must(t, err)
		defer s.Close()
		n := 0
		for {
			p, err := s.Recv(bg)
			if err != nil {
				wantKind(t, err, errs.Full)
				break
			}
			n += len(p)
		}
		if n != 200*20000 {
			t.Errorf("%d bytes came", n)
		}
	})
}
