package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// cut is a connection that breaks after so many bytes were written to it, with what came before delivered.
type cut struct {
	net.Conn
	mu   sync.Mutex
	left int // bytes; negative: no limit
}

func (c *cut) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < 0 || len(p) <= c.left {
		n, err := c.Conn.Write(p)
		if c.left >= 0 {
			c.left -= n
		}
		return n, err
	}
	n, _ := c.Conn.Write(p[:c.left])
	c.left = 0
	_ = c.Conn.Close()
	return n, io.ErrClosedPipe
}

// counter serves one method that counts how often it was executed.
func counter(m *Mux, n *int, mu *sync.Mutex) {
	m.Handle(500, func(_ context.Context, _ Peer, p []byte) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		*n++
		return bytes.Clone(p), nil
	})
}

// A request is executed at most once wherever its connection breaks, in either direction, and what the caller is told
// of it is true: an answer means executed, NotSent means that it was not. One that certainly did not leave is sent again, on the
// next connection, and succeeds.
func TestAConnectionCutAtAnyByte(t *testing.T) {
	plain := func(c net.Conn) net.Conn { return c }
	for _, c := range []struct {
		toServer bool
		size     int // of the request and of the answer
		step     int
		below    func(net.Conn) net.Conn
	}{{true, 120, 1, plain}, {false, 120, 1, plain}, {true, 40_000, 487, Wire}, {false, 40_000, 487, Wire}} {
		toServer := c.toServer
		payload := bytes.Repeat([]byte("accept"), c.size/6)
		notSent, unknown, whole := 0, 0, 0
		for at := 0; whole < 3; at += c.step {
			if at > 2000*c.step {
				t.Fatal("there is no end")
			}
			synctest.Test(t, func(t *testing.T) {
				mux, n, mu := NewMux(), 0, sync.Mutex{}
				counter(mux, &n, &mu)
				s := NewServer(ServerConfig{Mux: mux, Self: nodeB})
				var serving sync.WaitGroup
				dials := 0
				cl := NewClient(ClientConfig{Self: nodeA, Dial: func(context.Context) (net.Conn, error) {
					if dials++; dials > 1 {
						return nil, errs.E("test", errs.Unavailable, "only one")
					}
					a, b := net.Pipe()
					ca, cb := &cut{Conn: a, left: -1}, &cut{Conn: b, left: -1}
					if toServer {
						ca.left = at
					} else {
						cb.left = at
					}
					serving.Go(func() { _ = s.ServeConn(bg, c.below(cb), nodeA.Node) })
					return c.below(ca), nil
				}})
				got, err := cl.Call(bg, 500, payload)
				_ = cl.Close()
				serving.Wait()
				switch {
				case err == nil:
					whole++
					if n != 1 || !bytes.Equal(got, payload) {
						t.Fatalf("cut at %d: answered, executed %d times", at, n)
					}
				case NotSent(err):
					notSent++
					if n != 0 {
						t.Fatalf("cut at %d: said not to be sent, executed %d times", at, n)
					}
				default:
					unknown++
					if n > 1 {
						t.Fatalf("cut at %d: executed %d times", at, n)
					}
				}
				if err != nil && !errs.Is(err, errs.Unavailable) {
					t.Fatalf("cut at %d: %v (%v)", at, err, errs.KindOf(err))
				}
			})
			if t.Failed() {
				return
			}
		}
		t.Logf("to the server %v, %d bytes: not sent %d, outcome unknown %d", toServer, c.size, notSent, unknown)
		if notSent == 0 || !toServer && unknown == 0 {
			t.Error("a case never came up")
		}
	}
}

func TestWhatDidNotLeaveIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		dials := 0
		cl := newClient(t, func(ctx context.Context) (net.Conn, error) {
			dials++
			c, err := w.pipe(ctx)
			if dials == 1 {
				c = &cut{Conn: c, left: 100} // breaks in the first request
			}
			return c, err
		}, nil)
		got, err := cl.Call(bg, mEcho, make([]byte, 5000))
		if err != nil || len(got) != 5000 || dials != 2 || w.calls.Load() != 1 {
			t.Fatalf("%d bytes, %v, %d connections, executed %d times", len(got), err, dials, w.calls.Load())
		}
	})
}

// deaf never answers, and takes nothing.
func deaf(context.Context) (net.Conn, error) {
	a, _ := net.Pipe()
	return a, nil
}

func TestAPeerThatHangsCostsEachCallerItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer close(w.let)
		var far *stopped
		dials := 0
		cl := newClient(t, func(ctx context.Context) (net.Conn, error) {
			dials++
			a, b := net.Pipe()
			far = &stopped{Conn: b, stop: make(chan struct{}), closed: make(chan struct{})}
			w.serve(far)
			return a, nil
		}, nil)
		_, err := cl.Call(bg, mEcho, nil)
		must(t, err)
		close(far.stop) // the process stands still
		begin := time.Now()
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				d := time.Duration(i+1) * 100 * time.Millisecond
				ctx, cancel := context.WithTimeout(bg, d)
				defer cancel()
				_, err := cl.Call(ctx, mEcho, make([]byte, 1000))
				if took := time.Since(begin); !errs.Is(err, errs.Timeout) || took != d {
					t.Errorf("a call of %v ended after %v with %v", d, took, err)
				}
			})
		}
		all.Wait()
		// Who has no deadline waits until the peer is given up, and then, since nothing has left, goes another way.
		_, err = cl.Call(bg, mEcho, nil)
		must(t, err)
		if took := time.Since(begin); took < 14*time.Second || took > 21*time.Second || dials != 2 {
			t.Errorf("the peer was given up after %v, %d connections", took, dials)
		}
		if n := w.calls.Load(); n != 2 {
			t.Errorf("%d calls were executed", n)
		}
	})
}

// stopped is a connection of a process that can be stopped.
type stopped struct {
	net.Conn
	stop   chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (s *stopped) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	select {
	case <-s.stop: // whatever came meanwhile is not looked at
		<-s.closed
		return 0, io.ErrClosedPipe
	default:
		return n, err
	}
}

func (s *stopped) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

func TestAPeerThatNeverGreets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl := newClient(t, deaf, nil)
		begin := time.Now()
		ctx, cancel := context.WithTimeout(bg, time.Second)
		_, err := cl.Call(ctx, mEcho, nil)
		cancel()
		wantKind(t, err, errs.Timeout)
		if !NotSent(err) || time.Since(begin) != time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		_, err = cl.Call(bg, mEcho, nil)
		wantKind(t, err, errs.Unavailable)
		if !NotSent(err) || time.Since(begin) > 6*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		// From now on nobody waits long.
		for range 10 {
			begin := time.Now()
			_, err = cl.Call(bg, mEcho, nil)
			wantKind(t, err, errs.Unavailable)
			if took := time.Since(begin); took > downPatience || !NotSent(err) {
				t.Errorf("after %v: %v", took, err)
			}
			time.Sleep(downPatience) // virtual
		}
	})
}

func TestAPeerThatVanishesIsGivenUpByBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		var near, far *stopped
		cl := newClient(t, func(context.Context) (net.Conn, error) {
			a, b := net.Pipe()
			near = &stopped{Conn: a, stop: make(chan struct{}), closed: make(chan struct{})}
			far = &stopped{Conn: b, stop: make(chan struct{}), closed: make(chan struct{})}
			w.serve(far)
			return near, nil
		}, nil)
		done := make(chan error)
		go func() {
			_, err := cl.Call(bg, mHang, nil)
			done <- err
		}()
		<-w.hanging
		time.Sleep(time.Minute) // virtual; the peers talk, so nobody is given up
		select {
		case err := <-done:
			t.Fatalf("a call that takes long was given up: %v", err)
		default:
		}
		close(near.stop)
		close(far.stop)
		wantKind(t, <-done, errs.Unavailable)
		w.serving.Wait() // the server's end, too
		if w.calls.Load() != 1 {
			t.Error("the handler was not told")
		}
	})
}

func TestASlowReaderHoldsUpItsOwnStreamOnly(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		var slow []Stream
		for range 12 { // more than there are connections
			s, err := cl.Stream(bg, mFlood, []byte("x"))
			must(t, err)
			defer s.Close()
			_, err = s.Recv(bg)
			must(t, err)
			slow = append(slow, s) // and takes no more
		}
		for range 50 {
			if _, err := cl.Call(bg, mEcho, make([]byte, 2000)); err != nil {
				t.Fatal(err)
			}
		}
		s, err := cl.Stream(bg, mFlood, []byte("y"))
		must(t, err)
		defer s.Close()
		for n := 0; ; n++ {
			if _, err := s.Recv(bg); err != nil {
				wantKind(t, err, errs.Full) // the end of it
				break
			}
		}
		for _, s := range slow {
			st := s.(*stream)
			st.mu.Lock()
			if st.inBytes > Window || st.inBytes == 0 {
				t.Errorf("%d bytes wait for a slow reader", st.inBytes)
			}
			st.mu.Unlock()
		}
	})
}

func TestAStreamThatIsClosedEndsAtTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		cl := newClient(t, w.pipe, nil)
		s, err := cl.Stream(bg, mStreamHang, nil)
		must(t, err)
		<-w.hanging
		must(t, s.Close())
		synctest.Wait()
		if w.calls.Load() != 1 {
			t.Error("the handler runs on")
		}
		_, err = s.Recv(bg)
		wantKind(t, err, errs.Canceled)
		wantKind(t, s.Send(bg, nil), errs.Canceled)
	})
}

func TestGreetingsThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name         string
		client       Identity
		expect, cert [16]byte
		says         string
	}{
		{"another cluster", Identity{Cluster: [16]byte{2}, Node: nodeA.Node}, nodeB.Node, nodeA.Node, "another cluster"},
		{"a version that is too new", Identity{Cluster: cluster, Node: nodeA.Node, Oldest: 8, Newest: 9}, nodeB.Node, nodeA.Node, "here 1 to 2, there 8 to 9"},
		{"another node than was expected", nodeA, [16]byte{0xc}, nodeA.Node, "another node"},
		{"another node than the certificate says", nodeA, nodeB.Node, [16]byte{0xc}, "another node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			cl := newClient(t, func(context.Context) (net.Conn, error) {
				a, b := net.Pipe()
				w.serving.Go(func() { _ = w.s.ServeConn(bg, b, c.cert) })
				return a, nil
			}, func(cc *ClientConfig) { cc.Self, cc.Peer = c.client, c.expect })
			_, err := cl.Call(bg, mEcho, nil)
			wantKind(t, err, errs.Unavailable)
			if !NotSent(err) || !strings.Contains(err.Error(), c.says) || w.calls.Load() != 0 {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestVersionsAreNegotiated(t *testing.T) {
	id := func(oldest, newest uint32) Identity {
		return Identity{Cluster: cluster, Node: nodeA.Node, Oldest: oldest, Newest: newest}
	}
	for _, c := range []struct {
		a, b Identity
		want uint32 // 0: none
	}{
		{id(1, 1), id(1, 1), 1}, {id(1, 2), id(2, 3), 2}, {id(2, 3), id(1, 2), 2}, {id(3, 4), id(3, 4), 4}, {id(1, 2), id(3, 4), 0}, {id(3, 4), id(1, 2), 0},
	} {
		a, b := net.Pipe()
		var got Peer
		var err error
		var server sync.WaitGroup
		server.Go(func() { got, err = greetClient(b, c.b, c.a.Node, time.Now().Add(time.Minute)) })
		p, cerr := greetServer(a, c.a, [16]byte{}, false, time.Now().Add(time.Minute))
		server.Wait()
		if c.want == 0 {
			if !errs.Is(err, errs.Unsupported) || !errs.Is(cerr, errs.Unsupported) {
				t.Errorf("%v with %v: %v, %v", c.a, c.b, err, cerr)
			}
		} else if err != nil || cerr != nil || got.Version != c.want || p.Version != c.want {
			t.Errorf("%v with %v: %d and %d, %v, %v", c.a, c.b, got.Version, p.Version, err, cerr)
		}
		_, _ = a.Close(), b.Close()
	}
}

// raw greets a server and returns the connection, to say to it what no client says.
func raw(t *testing.T, w *world) net.Conn {
	t.Helper()
	a, b := net.Pipe()
	w.serve(b)
	t.Cleanup(func() { _ = a.Close() })
	if _, err := greetServer(a, nodeA, nodeB.Node, false, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestFramesThatAreRefused(t *testing.T) {
	call := func(id uint32, method Method) []byte {
		head := (&request{method: method}).appendTo(nil)
		return append(appendFrame(nil, frameCall, id, len(head), 0), head...)
	}
	for _, c := range []struct {
		name string
		send []byte
	}{
		{"a call of 4 GiB", appendFrame(nil, frameCall, 1, 0, 1<<32-1)},
		{"a call above the limit", appendFrame(nil, frameCall, 1, 0, MaxMessage+1)},
		{"data above the limit", appendFrame(nil, frameData, 1, 0, MaxData+1)},
		{"a head longer than the frame", appendFrame(nil, frameCall, 1, 9, -5)},
		{"a type that nobody knows", appendFrame(nil, 77, 1, 0, 0)},
		{"an answer", appendFrame(nil, frameReply, 1, 0, 0)},
		{"an id that was used", append(call(1, mEcho), call(1, mEcho)...)},
		{"more than the window", func() []byte {
			b := appendFrame(nil, frameOpen, 1, len((&request{method: mStreamHang}).appendTo(nil)), 0)
			b = (&request{method: mStreamHang}).appendTo(b)
			for range Window/MaxData + 1 {
				b = append(appendFrame(b, frameData, 1, 0, MaxData), make([]byte, MaxData)...)
			}
			return b
		}()},
		{"too large a grant", func() []byte {
			b := appendFrame(nil, frameOpen, 1, len((&request{method: mStreamHang}).appendTo(nil)), 0)
			b = (&request{method: mStreamHang}).appendTo(b)
			return binary.LittleEndian.AppendUint32(appendFrame(b, frameWindow, 1, 0, 4), 1)
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				conn := raw(t, w)
				go func() {
					_, _ = conn.Write(c.send) // cut off at the latest by the cleanup
				}()
				// The connection ends long before the peer would be given up for its silence.
				_ = conn.SetReadDeadline(time.Now().Add(time.Second))
				_, err := io.Copy(io.Discard, conn)
				if errors.Is(err, context.DeadlineExceeded) || err != nil && strings.Contains(err.Error(), "timeout") {
					t.Fatalf("the connection goes on: %v", err)
				}
				_ = conn.Close()
			})
		})
	}
}

func TestAPeerThatAsksTooMuchIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *ServerConfig) { c.MaxCalls, c.MaxStreams = 3, 1 })
		defer close(w.let)
		cl := newClient(t, w.pipe, nil)
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		for range 3 {
			go func() { _, _ = cl.Call(ctx, mHang, nil) }()
			<-w.hanging
		}
		_, err := cl.Call(bg, mEcho, nil)
		wantKind(t, err, errs.Busy)
		s, err := cl.Stream(bg, mStreamHang, nil)
		must(t, err)
		defer s.Close()
		<-w.hanging
		s2, err := cl.Stream(bg, mStreamHang, nil)
		must(t, err)
		defer s2.Close()
		_, err = s2.Recv(bg)
		wantKind(t, err, errs.Busy)
		cancel()
		synctest.Wait()
		_, err = cl.Call(bg, mEcho, nil)
		must(t, err)
	})
}

func TestAServerThatClosesFinishesWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		cl := newClient(t, w.pipe, nil)
		running := make(chan error)
		go func() {
			b, err := cl.Call(bg, mHang, nil)
			if err == nil && string(b) != "late" {
				err = errors.New("another answer")
			}
			running <- err
		}()
		<-w.hanging
		closed := make(chan error)
		go func() { closed <- w.s.Close(bg) }()
		synctest.Wait()
		_, err := cl.Call(bg, mEcho, nil) // on a connection that is refused
		wantKind(t, err, errs.Unavailable)
		if w.calls.Load() != 0 {
			t.Error("a call was executed by a server that closes")
		}
		close(w.let)
		must(t, <-running)
		must(t, <-closed)
	})
}

func TestAServerThatMustCloseCutsWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		cl := newClient(t, w.pipe, nil)
		running := make(chan error)
		go func() {
			_, err := cl.Call(bg, mHang, nil)
			running <- err
		}()
		<-w.hanging
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		wantKind(t, w.s.Close(ctx), errs.Timeout)
		err := <-running
		wantKind(t, err, errs.Unavailable)
		if NotSent(err) {
			t.Error("it was executed")
		}
	})
}

func TestAClientThatClosesEndsItsCalls(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world, cl *Client) {
		running := make(chan error)
		go func() {
			_, err := cl.Call(bg, mHang, nil)
			running <- err
		}()
		s, err := cl.Stream(bg, mStreamHang, nil)
		must(t, err)
		defer s.Close()
		<-w.hanging
		<-w.hanging
		must(t, cl.Close())
		wantKind(t, <-running, errs.Unavailable)
		_, err = s.Recv(bg)
		wantKind(t, err, errs.Unavailable)
		_, err = cl.Call(bg, mEcho, nil)
		wantKind(t, err, errs.Unavailable)
		cl.Post(mEcho, nil) // does nothing
	})
}
