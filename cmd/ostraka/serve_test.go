package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// serving runs serve over h until the test ends, and returns its address.
func serving(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, h, nil, 10*time.Second, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

// A refusal reaches a client that waits for 100 Continue, or that announces more than a server
// takes in before it answers: neither has sent a byte of its body by then.
func TestRefusalsAreNotHeldBackByTheBody(t *testing.T) {
	addr := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusForbidden)
	}))
	for name, head := range map[string]string{
		"expect":       "PUT /b/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n",
		"expect large": "PUT /b/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5000000000\r\n\r\n",
		"large":        "PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // read to its end, or failed
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, head); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			defer resp.Body.Close() //nolint:errcheck // read to its end
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("status %d, want 403", resp.StatusCode)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Error(err)
			}
		})
	}
}

// A client that sends its whole body before it looks at the answer gets the answer, and no reset.
func TestARefusalReachesAClientThatIsStillSending(t *testing.T) {
	for name, c := range map[string]struct {
		read   int64
		expect string
		again  bool // the connection serves another request
	}{
		"nothing was read":        {0, "", true},
		"some was read":           {1 << 20, "", true},
		"it did not wait for 100": {0, "Expect: 100-continue\r\n", false},
	} {
		read := c.read
		t.Run(name, func(t *testing.T) {
			requests := 1
			if c.again {
				requests = 2
			}
			expect := c.expect
			addr := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.CopyN(io.Discard, r.Body, read); err != nil {
					t.Error(err)
				}
				r.Body.Close() //nolint:errcheck // as handlers do
				w.Header().Set("Content-Length", "3")
				w.WriteHeader(http.StatusServiceUnavailable)
				io.WriteString(w, "no\n") //nolint:errcheck // the client tells
			}))
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // read to its end, or failed
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			br := bufio.NewReader(c)
			for i := range requests {
				body := make([]byte, 16<<20)
				if _, err := fmt.Fprintf(c, "PUT /b/k HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n", expect, len(body)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write(body); err != nil {
					t.Fatalf("request %d: sending: %v", i, err)
				}
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatalf("request %d: no answer: %v", i, err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("request %d: status %d, %v; want 503", i, resp.StatusCode, err)
				}
			}
		})
	}
}

// deadlines records what a handler's connection is told.
type deadlines struct {
	http.ResponseWriter
	read []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.read = append(d.read, t); return nil }
func (d *deadlines) SetWriteDeadline(time.Time) error  { return nil }

// A body that its handler never reads is read by net/http, which has no deadline of its own for it.
func TestUnreadBodiesHaveADeadline(t *testing.T) {
	d := &deadlines{ResponseWriter: httptest.NewRecorder()}
	r := httptest.NewRequest(http.MethodPut, "/b/k", io.LimitReader(nil, 0))
	own := r.Body
	noStall(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(d, r)
	if len(d.read) == 0 || d.read[len(d.read)-1].IsZero() {
		t.Error("there is no read deadline when the handler has returned")
	}
	if r.Body != own {
		t.Error("the server's own request has another body now")
	}
}
