package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/cluster/trust"
	"github.com/ostraka/ostraka/internal/errs"
)

// managers are two nodes of one cluster; the second is revoked in the eyes of the first if so.
func managers(t *testing.T, revoked bool) (a, b *trust.Manager) {
	t.Helper()
	now := time.Now()
	st, err := trust.New([16]byte{1}, trust.NewSecret(), now)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = trust.NewManager(trust.Config{Node: [16]byte{2}, State: st}); err != nil {
		t.Fatal(err)
	}
	if revoked {
		if st, err = st.Revoke([16]byte{2}, now); err != nil {
			t.Fatal(err)
		}
	}
	if a, err = trust.NewManager(trust.Config{Node: [16]byte{1}, State: st}); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// What a node that was removed hears of the others is said in words, once; one that was not removed hears nothing.
func TestANodeThatWasRemovedIsToldSoInWords(t *testing.T) {
	for _, revoked := range []bool{false, true} {
		a, b := managers(t, revoked)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		served := make(chan struct{})
		go func() { // ends with the listener
			defer close(served)
			a.Serve(ctx, ln, map[string]trust.Handler{"p": func(_ context.Context, c *tls.Conn, _ [16]byte) { c.Close() }}) //nolint:errcheck // it ends with ctx
		}()
		var out bytes.Buffer
		waits := ""
		m := &mesh{log: slog.New(slog.NewTextHandler(&out, nil)), waits: func(s string) { waits = s }}
		for range 2 {
			conn, err := b.Dial(ctx, ln.Addr().String(), [16]byte{1}, "p")
			if err != nil {
				t.Fatalf("revoked %v: %v", revoked, err)
			}
			_, err = conn.Read(make([]byte, 1))
			m.heed(errs.As("rpc", errs.Unavailable, err))
			if !revoked && err != io.EOF || refusedUs(err) != revoked {
				t.Errorf("revoked %v: the read ends with %v", revoked, err)
			}
			conn.Close()
		}
		if n := strings.Count(out.String(), "was removed from the cluster"); n != map[bool]int{true: 1}[revoked] || (waits != "") != revoked {
			t.Errorf("revoked %v: said %d times, waits for %q", revoked, n, waits)
		}
		cancel()
		ln.Close()
		<-served
	}
	if refusedUs(errs.E("x", errs.Unavailable, "bad certificate")) || refusedUs(nil) {
		t.Error("other errors are taken for a refusal")
	}
}
