package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// What parses prints back to what parses the same.
func FuzzDecoders(f *testing.F) {
	h := hello{oldest: 1, newest: 2, cluster: cluster, node: nodeA.Node, bulk: true, refusal: errs.E("x", errs.Denied, "no")}
	f.Add(h.appendTo(nil)[11:])
	r := request{method: 7, timeout: time.Second, meta: Meta{Trace: [16]byte{1}, Priority: 2, Account: "a"}}
	f.Add(r.appendTo(nil))
	f.Add(appendReply(nil, errs.E("x.Y", errs.Stale, "old"), 3))
	f.Add(appendFrame(nil, frameData, 3, 0, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRequest(b); err == nil {
			again, err := parseRequest(r.appendTo(nil))
			if err != nil || again != r {
				t.Errorf("request %+v came back as %+v, %v", r, again, err)
			}
		}
		if h, err := parseHello(b); err == nil {
			again, err := parseHello(h.appendTo(nil)[11:])
			if err != nil || again.oldest != h.oldest || again.newest != h.newest || again.node != h.node || again.bulk != h.bulk || (again.refusal == nil) != (h.refusal == nil) {
				t.Errorf("greeting %+v came back as %+v, %v", h, again, err)
			}
			_, _ = agree(nodeB, &h, nodeA.Node)
		}
		if e, load, err := parseReply(b); err == nil {
			again, same, err := parseReply(appendReply(nil, e, load))
			if err != nil || same != load || (again == nil) != (e == nil) || e != nil && (errs.KindOf(again) != errs.KindOf(e) || errs.Public(again) != errs.Public(e)) {
				t.Errorf("error %v, load %d came back as %v, %d, %v", e, load, again, same, err)
			}
		}
		if len(b) >= frameHead {
			if fr, err := parseFrame(b); err == nil && (fr.size > MaxMessage || fr.head > fr.size) {
				t.Errorf("a frame beyond the limits was accepted: %+v", fr)
			}
		}
	})
}

// Whatever a peer sends, a server ends its connection or serves it, and nothing of it is left.
func FuzzServer(f *testing.F) {
	call := func(t frameType, m Method, payload []byte) []byte {
		head := (&request{method: m}).appendTo(nil)
		return append(append(appendFrame(nil, t, 1, len(head), len(payload)), head...), payload...)
	}
	f.Add(call(frameCall, mEcho, []byte("abc")))
	f.Add(append(call(frameOpen, mSum, []byte("abc")), appendFrame(nil, frameEOS, 1, 0, 0)...))
	f.Add(append(call(frameOpen, mFlood, []byte("abc")), appendFrame(nil, frameCancel, 1, 0, 0)...))
	f.Add(appendFrame(nil, framePing, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t, nil)
		x, y := net.Pipe()
		w.serve(y)
		if _, err := greetServer(x, nodeA, nodeB.Node, false, time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(io.Discard, x) }()
		_, _ = x.Write(b)
		_ = x.Close()
		<-done
		w.serving.Wait()
	})
}

// Whatever a server sends, a client ends the connection, or its caller gets an answer or gives up.
func FuzzClient(f *testing.F) {
	f.Add(append(appendFrame(nil, frameReply, 1, 0, 3), "abc"...))
	f.Add(append(appendFrame(nil, frameEnd, 1, 0, 0), appendFrame(nil, frameGoAway, 0, 0, 4)...))
	head := AppendError(nil, errs.E("x", errs.Stale, "old"))
	f.Add(append(appendFrame(nil, frameReply, 1, len(head), 0), head...))
	f.Fuzz(func(t *testing.T, b []byte) {
		done := make(chan struct{})
		dials := 0
		cl := NewClient(ClientConfig{Self: nodeA, Dial: func(context.Context) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, errors.New("only one")
			}
			x, y := net.Pipe()
			go func() {
				defer close(done)
				defer y.Close()
				if _, err := greetClient(y, nodeB, nodeA.Node, time.Now().Add(time.Minute)); err != nil {
					t.Error(err)
					return
				}
				head := make([]byte, frameHead)
				if _, err := io.ReadFull(y, head); err != nil {
					t.Error(err)
					return
				}
				go func() { _, _ = io.Copy(io.Discard, y) }() // ends with y
				_, _ = y.Write(b)
			}()
			return x, nil
		}})
		into := make([]byte, 16)
		n, err := cl.CallInto(bg, mEcho, nil, into)
		if err == nil && !bytes.Contains(b, into[:n]) {
			t.Errorf("an answer that nobody sent: %x", into[:n])
		}
		_ = cl.Close()
		<-done
	})
}
