package rpc

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/internal/errs"
)

// writes notes what is written at a time, and fails from the write on that is told to.
type writes struct {
	net.Conn
	all    [][]byte
	failAt int // 0: never
}

func (w *writes) Write(p []byte) (int, error) {
	if w.all = append(w.all, bytes.Clone(p)); w.failAt > 0 && len(w.all) >= w.failAt {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestRecordsLeaveTogetherWhileAWireHoldsThem(t *testing.T) {
	record := bytes.Repeat([]byte("r"), 16<<10+22)
	below := &writes{}
	w := Wire(below).(*wire)
	write := func(p []byte) {
		t.Helper()
		if n, err := w.Write(p); n != len(p) || err != nil {
			t.Fatalf("%d of %d bytes, %v", n, len(p), err)
		}
	}
	write(record) // at once
	w.hold()
	var want []byte
	for range 10 {
		write(record)
		want = append(want, record...)
	}
	huge := bytes.Repeat([]byte("h"), heldBytes+1)
	write(huge)
	write(record)
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	write(record) // at once
	want = append(append(append(append(append([]byte{}, record...), want...), huge...), record...), record...)
	if got := bytes.Join(below.all, nil); !bytes.Equal(got, want) {
		t.Errorf("%d bytes came out of %d, or in another order", len(got), len(want))
	}
	if n := len(below.all); n != 1+3+1+1+1 {
		t.Errorf("%d writes; want one at once, ten records in three, a long one, one, and one at once", n)
	}
}

func TestAnErrorOfHeldBytesComesOutLater(t *testing.T) {
	below := &writes{failAt: 1}
	w := Wire(below).(*wire)
	w.hold()
	if _, err := w.Write([]byte("abc")); err != nil {
		t.Fatalf("nothing was written yet: %v", err)
	}
	if err := w.flush(); err != io.ErrClosedPipe {
		t.Fatalf("got %v", err)
	}
	w.hold()
	if _, err := w.Write(make([]byte, heldBytes+1)); err != io.ErrClosedPipe {
		t.Errorf("a write behind it: %v", err)
	}
	if err := w.flush(); err != io.ErrClosedPipe || len(below.all) != 1 {
		t.Errorf("%v, %d writes; nothing may follow what did not leave", err, len(below.all))
	}
}

func TestMessagesOfAStreamArriveOverAWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a, b := net.Pipe()
		w.serve(Wire(b))
		conns := []net.Conn{Wire(a)}
		cl := newClient(t, func(context.Context) (net.Conn, error) {
			if len(conns) == 0 {
				return nil, errs.E("test", errs.Unavailable, "only one")
			}
			c := conns[0]
			conns = nil
			return c, nil
		}, nil)
		s, err := cl.Stream(bg, mSum, []byte("sum "))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for i := range 20 {
			if err := s.Send(bg, make([]byte, i*30_000)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Recv(bg); err != nil || string(got) != "sum 5700000" {
			t.Fatalf("%q, %v", got, err)
		}
	})
}
