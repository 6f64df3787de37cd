package rpc

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// sample is a frame, or a greeting, with a name.
type sample struct {
	name string
	b    []byte
}

// samplesOf are what both ends of a version write.
func samplesOf(version uint32) []sample {
	framed := func(t frameType, id uint32, head, payload []byte) []byte {
		return append(append(appendFrame(nil, t, id, len(head), len(payload)), head...), payload...)
	}
	greeting := hello{oldest: 1, newest: version, cluster: cluster, node: nodeA.Node}
	forBulk, refusal := greeting, greeting
	forBulk.bulk = true
	refusal.refusal = errs.E("rpc.hello", errs.Denied, "the peer belongs to another cluster")
	request := (&request{method: 4, timeout: 1500 * time.Millisecond, meta: Meta{Trace: [16]byte{1, 2}, Priority: Background, Account: "a"}}).appendTo(nil)
	failure := errs.E("disk.Read", errs.Stale, "an epoch that is over")
	list := []sample{
		{"greeting", greeting.appendTo(nil)},
		{"greeting for bulk", forBulk.appendTo(nil)},
		{"refusal", refusal.appendTo(nil)},
		{"call", framed(frameCall, 1, request, []byte("payload"))},
		{"open", framed(frameOpen, 2, request, []byte("first"))},
		{"cancel", framed(frameCancel, 2, nil, nil)},
		{"reply", framed(frameReply, 1, appendReply(nil, nil, 0), []byte("answer"))},
		{"error", framed(frameReply, 1, appendReply(nil, failure, 0), nil)},
		{"end", framed(frameEnd, 2, appendReply(nil, nil, 0), nil)},
		{"end with error", framed(frameEnd, 2, appendReply(nil, failure, 0), nil)},
		{"data", framed(frameData, 2, nil, []byte("data"))},
		{"window", framed(frameWindow, 2, nil, []byte{0, 0, 4, 0})},
		{"eos", framed(frameEOS, 2, nil, nil)},
		{"ping", framed(framePing, 0, nil, nil)},
		{"pong", framed(framePong, 0, nil, nil)},
		{"goaway", framed(frameGoAway, 0, nil, []byte{9, 0, 0, 0})},
	}
	if version >= loadVersion {
		list = append(list, sample{"reply with load", framed(frameReply, 1, appendReply(nil, nil, 300), []byte("answer"))},
			sample{"error with load", framed(frameReply, 1, appendReply(nil, failure, 1), nil)},
			sample{"end with load", framed(frameEnd, 2, appendReply(nil, nil, 1), nil)})
	}
	return list
}

func TestFramesOfEachVersionAreAsTheyWere(t *testing.T) {
	for version := OldestVersion; version <= NewestVersion; version++ {
		name := fmt.Sprintf("testdata/frames-v%d.txt", version)
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		golden := map[string]string{}
		for line := range strings.Lines(string(raw)) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
				golden[name] = value
			}
		}
		list := samplesOf(version)
		for _, s := range list {
			if got := hex.EncodeToString(s.b); got != golden[s.name] {
				t.Errorf("version %d, %s: written now\n%s\n, and then\n%s", version, s.name, got, golden[s.name])
			}
		}
		if len(golden) != len(list) {
			t.Errorf("%s has %d frames, want %d", name, len(golden), len(list))
		}
	}
}

// What an end of version 1 hears is what there was in version 1, to the byte.
func TestAPeerOfVersionOneHearsNothingNewer(t *testing.T) {
	for version := OldestVersion; version <= NewestVersion; version++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(c *ServerConfig) { c.Load = func() int { return 7 } })
			a, b := net.Pipe()
			w.serve(b)
			defer a.Close()
			self := nodeA
			self.Oldest, self.Newest = 1, version
			p, err := greetServer(a, self, nodeB.Node, false, time.Now().Add(time.Minute))
			if err != nil || p.Version != version {
				t.Fatalf("version %d was agreed on, want %d: %v", p.Version, version, err)
			}
			head := (&request{method: mEcho}).appendTo(nil)
			if _, err := a.Write(append(append(appendFrame(nil, frameCall, 1, len(head), 3), head...), "abc"...)); err != nil {
				t.Fatal(err)
			}
			said := appendReply(nil, nil, 7)
			if version == 1 {
				said = nil
			}
			want := append(append(appendFrame(nil, frameReply, 1, len(said), 3), said...), "abc"...)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("version %d: %x, want %x, %v", version, got, want, err)
			}
		})
	}
}

func TestBuildsOfTwoVersionsWorkTogether(t *testing.T) {
	for _, c := range []struct {
		client, server [2]uint32
		agreed         uint32 // 0: refused
	}{
		{[2]uint32{1, 1}, [2]uint32{1, 1}, 1}, {[2]uint32{1, 1}, [2]uint32{1, 2}, 1}, {[2]uint32{1, 2}, [2]uint32{1, 1}, 1},
		{[2]uint32{1, 2}, [2]uint32{1, 2}, 2}, {[2]uint32{1, 2}, [2]uint32{2, 3}, 2}, {[2]uint32{2, 3}, [2]uint32{1, 2}, 2},
		{[2]uint32{1, 1}, [2]uint32{2, 3}, 0}, {[2]uint32{2, 3}, [2]uint32{1, 1}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(s *ServerConfig) {
				s.Self.Oldest, s.Self.Newest = c.server[0], c.server[1]
				s.Load = func() int { return 7 }
			})
			cl := newClient(t, w.pipe, func(s *ClientConfig) { s.Self.Oldest, s.Self.Newest = c.client[0], c.client[1] })
			got, err := cl.Call(bg, mEcho, []byte("abc"))
			if c.agreed == 0 {
				if !errs.Is(err, errs.Unavailable) || !NotSent(err) || !strings.Contains(errs.Public(err), "no common protocol version") {
					t.Errorf("%v: %v, want that there is no common version", c, err)
				}
				return
			}
			if err != nil || string(got) != "abc" {
				t.Fatalf("%v: %q, %v", c, got, err)
			}
			if _, err := cl.Call(bg, mFail, []byte{byte(errs.Full)}); !errs.Is(err, errs.Full) {
				t.Errorf("%v: %v, want the error of the other end", c, err)
			}
			s, err := cl.Stream(bg, mSum, []byte("sum "))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := s.Send(bg, make([]byte, 600_000)); err != nil {
				t.Fatal(err)
			}
			_ = s.CloseSend() // cannot fail
			if p, err := s.Recv(bg); err != nil || string(p) != "sum 600000" {
				t.Errorf("%v: %q, %v", c, p, err)
			}
			want := 0
			if c.agreed >= loadVersion {
				want = 7
			}
			if n := cl.Load(); n != want {
				t.Errorf("%v: the load of the node is %d, want %d", c, n, want)
			}
			time.Sleep(loadFor + time.Nanosecond)
			if n := cl.Load(); n != 0 {
				t.Errorf("%v: a load of the past is believed: %d", c, n)
			}
		})
	}
}
