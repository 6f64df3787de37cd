package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

const testProtocol = "ostraka-test/1"

// logs collects what was logged. It is safe for concurrent use.
type logs struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// clock is a time that a test sets.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.set(start)
	return c
}

func (c *clock) set(t time.Time)     { c.at.Store(t.UnixNano()) }
func (c *clock) add(d time.Duration) { c.at.Add(int64(d)) }
func (c *clock) now() time.Time      { return time.Unix(0, c.at.Load()) }

// bounded is the context of a test: far more than it needs.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func manager(t testing.TB, cfg Config) *Manager {
	t.Helper()
	return must(NewManager(cfg))(t)
}

// echo answers what it reads, after the id that it was told.
func echo(_ context.Context, conn *tls.Conn, peer [16]byte) {
	conn.Write(peer[:])
	io.Copy(conn, conn)
}

// serve serves until the test ends, and returns the address.
func serve(t testing.TB, m *Manager, handlers map[string]Handler) string {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, ln, handlers) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// says sends a word and reads it back.
func says(conn net.Conn, word string) error {
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	b := make([]byte, len(word))
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	if string(b) != word {
		return errors.New("another word came back: " + string(b))
	}
	return nil
}

// hears reads the id that the server saw.
func hears(conn net.Conn) (id [16]byte, err error) {
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, err = io.ReadFull(conn, id[:])
	return id, err
}

func TestTwoNodesKnowEachOther(t *testing.T) {
	s, c := newState(t), newClock()
	a := manager(t, Config{Node: nodeA, State: s, Now: c.now})
	b := manager(t, Config{Node: nodeB, State: s, Now: c.now})
	addr := serve(t, a, map[string]Handler{testProtocol: echo, JoinProtocol: a.ServeJoin})
	conn := must(b.Dial(bounded(t), addr, nodeA, testProtocol))(t)
	defer conn.Close()
	if got := must(hears(conn))(t); got != nodeB {
		t.Errorf("the server saw %x, want %x", got, nodeB)
	}
	if err := says(conn, "ostraka"); err != nil {
		t.Error(err)
	}
	if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("version %x", v)
	}
	_, err := b.Dial(bounded(t), addr, nodeB, testProtocol)
	wantKind(t, err, errs.Denied)
	if !strings.Contains(errs.Public(err), "another node") {
		t.Errorf("the text says nothing: %v", err)
	}
	_, err = b.Dial(bounded(t), addr, [16]byte{}, testProtocol)
	wantKind(t, err, errs.Denied)
}

func TestWhoHasNoCertificateOfTheClusterIsRefused(t *testing.T) {
	c := newClock()
	a := manager(t, Config{Node: nodeA, State: newState(t), Now: c.now})
	addr := serve(t, a, map[string]Handler{testProtocol: echo, JoinProtocol: a.ServeJoin})
	stranger := manager(t, Config{Node: nodeB, State: newState(t), Now: c.now}) // same cluster id, another authority
	inside := manager(t, Config{Node: nodeB, State: a.State(), Now: c.now})
	plain := func() *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, NextProtos: []string{testProtocol}}
	}
	for _, x := range []struct {
		name string
		cfg  func() *tls.Config
	}{
		{"no certificate", plain},
		{"no certificate, hiding behind the join protocol", func() *tls.Config {
			cfg := plain()
			cfg.NextProtos = []string{JoinProtocol, testProtocol}
			return cfg
		}},
		{"no certificate, the join protocol last", func() *tls.Config {
			cfg := plain()
			cfg.NextProtos = []string{testProtocol, JoinProtocol}
			return cfg
		}},
		{"no protocol named", func() *tls.Config {
			cfg := inside.ClientConfig(nodeA, testProtocol)
			cfg.NextProtos, cfg.VerifyConnection = nil, nil
			return cfg
		}},
		{"an unknown protocol", func() *tls.Config { return inside.ClientConfig(nodeA, "h2") }},
		{"another authority's certificate", func() *tls.Config {
			cfg := stranger.ClientConfig(nodeA, testProtocol)
			cfg.VerifyConnection = nil
			return cfg
		}},
		{"TLS 1.2", func() *tls.Config {
			cfg := inside.ClientConfig(nodeA, testProtocol)
			cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return cfg
		}},
	} {
		conn, err := tls.Dial("tcp", addr, x.cfg())
		if err == nil {
			_, err = hears(conn) // with TLS 1.3 the client learns it here
			conn.Close()
		}
		if err == nil {
			t.Errorf("%s: was let in", x.name)
		}
	}
	// The check can fail: with what is right the same steps lead in.
	conn := must(tls.Dial("tcp", addr, inside.ClientConfig(nodeA, testProtocol)))(t)
	defer conn.Close()
	must(hears(conn))(t)

	_, err := stranger.Dial(bounded(t), addr, nodeA, testProtocol)
	wantKind(t, err, errs.Denied)
}

func TestAConnectionOutlivesTheRotationOfTheAuthority(t *testing.T) {
	s, c := newState(t), newClock()
	a := manager(t, Config{Node: nodeA, State: s, Now: c.now})
	b := manager(t, Config{Node: nodeB, State: s, Now: c.now})
	addr := serve(t, a, map[string]Handler{testProtocol: echo})
	old := must(b.Dial(bounded(t), addr, nodeA, testProtocol))(t)
	defer old.Close()
	must(hears(old))(t)
	former := b.cert.Leaf
	for step := range 3 {
		c.add(NodeLife)
		s = must(s.AdvanceAuthority(c.now(), true))(t)
		// One after the other: in between they are one step apart, and must still understand each other.
		for _, m := range []*Manager{a, b} {
			if err := m.Adopt(s); err != nil {
				t.Fatal(err)
			}
			if step != 1 { // what was issued at the step before has run out in this test's time
				if err := errors.Join(a.renew(bounded(t)), b.renew(bounded(t))); err != nil {
					t.Fatal(err)
				}
			}
			conn := must(b.Dial(bounded(t), addr, nodeA, testProtocol))(t)
			must(hears(conn))(t)
			conn.Close()
		}
		if err := says(old, "still here"); err != nil {
			t.Fatalf("step %d: the connection broke: %v", step, err)
		}
	}
	if _, err := a.State().verify(former, start); err == nil {
		t.Error("what the former authority issued is still believed")
	}
	if err := a.Adopt(newer(t, a.State(), nodeB)); err != nil {
		t.Fatal(err)
	}
	conn, err := b.Dial(bounded(t), addr, nodeA, testProtocol)
	if err == nil {
		_, err = hears(conn)
		conn.Close()
	}
	if err == nil {
		t.Error("a revoked node was let in")
	}
}

func newer(t testing.TB, s *State, revoked [16]byte) *State {
	t.Helper()
	return must(s.Revoke(revoked, start.Add(3*NodeLife)))(t)
}

func TestOnlyANewerStateOfTheClusterIsAdopted(t *testing.T) {
	s := newState(t)
	next := must(s.AdvanceGossip(start, false))(t)
	last := must(next.AdvanceGossip(start, true))(t)
	m := manager(t, Config{Node: nodeA, State: next, Now: newClock().now})
	wantKind(t, m.Adopt(s), errs.Stale)
	wantKind(t, m.Adopt(last.Public()), errs.Invalid)
	wantKind(t, m.Adopt(must(New([16]byte{9}, testSecret(t), start))(t)), errs.Invalid)
	if err := errors.Join(m.Adopt(next), m.Adopt(next.Public())); err != nil || m.State() != next {
		t.Errorf("adopting what is held: %v", err)
	}
	if err := m.Adopt(last); err != nil || m.State() != last {
		t.Errorf("adopting a newer one: %v", err)
	}
	// A process with a public state takes the keys when it is given them.
	cert := must(s.issueOwn(nodeB, start))(t)
	p := manager(t, Config{Node: nodeB, State: s.Public(), Certificate: cert, Now: newClock().now})
	if err := p.Adopt(s); err != nil || !p.State().Full() {
		t.Errorf("adopting the keys: %v", err)
	}
}

func TestANodeThatIsAloneStartsFromItsOwnCopy(t *testing.T) {
	copyOfState := newState(t).AppendTo(nil)
	// Years later, when every certificate has run out, and nobody else is there.
	c := newClock()
	c.add(3 * 365 * 24 * time.Hour)
	m := manager(t, Config{Node: nodeA, State: must(Decode(copyOfState))(t), Now: c.now})
	addr := serve(t, m, map[string]Handler{testProtocol: echo})
	conn := must(m.Dial(bounded(t), addr, nodeA, testProtocol))(t)
	defer conn.Close()
	must(hears(conn))(t)
}

func TestACertificateOfSomebodyElseIsNotShown(t *testing.T) {
	s := newState(t)
	cert := must(s.issueOwn(nodeB, start))(t)
	_, err := NewManager(Config{Node: nodeA, State: s.Public(), Certificate: cert, Now: newClock().now})
	wantKind(t, err, errs.Invalid)
	_, err = NewManager(Config{Node: nodeA, State: s.Public(), Now: newClock().now})
	wantKind(t, err, errs.Denied)
}

func TestACertificateIsRenewedAtHalfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := must(New(clusterID, testSecret(t), time.Now()))(t)
		full := manager(t, Config{Node: nodeA, State: s})
		var asked atomic.Int64
		var answering atomic.Bool
		public := manager(t, Config{Node: nodeB, State: s.Public(), Certificate: must(s.issueOwn(nodeB, time.Now()))(t),
			Renew: func(_ context.Context, csr []byte) ([]byte, error) {
				if asked.Add(1); !answering.Load() {
					return nil, errs.E("test", errs.Unavailable, "nobody is there")
				}
				return full.Issue(csr, nodeB)
			}})
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		for _, m := range []*Manager{full, public} {
			running.Go(func() { m.Run(ctx) })
		}
		end := func(m *Manager) time.Time {
			_, cert := m.current()
			return cert.Leaf.NotAfter
		}
		first, begun := end(full), time.Now()
		good := func(what string, m *Manager) {
			t.Helper()
			if err := m.own(m.current()); err != nil {
				t.Errorf("%s after %s: %v", what, time.Since(begun), err)
			}
		}
		time.Sleep(NodeLife/2 - time.Hour)
		synctest.Wait()
		if !end(full).Equal(first) || asked.Load() != 0 {
			t.Error("renewed before half life")
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if end(full).Equal(first) || asked.Load() == 0 {
			t.Error("not renewed at half life")
		}
		// Nobody answers for three days: a bounded number of attempts, and then it goes well in time.
		time.Sleep(3 * 24 * time.Hour)
		synctest.Wait()
		if n := asked.Load(); n < 10 || n > 100 {
			t.Errorf("%d attempts in three days", n)
		}
		good("the gateway's certificate", public)
		answering.Store(true)
		for range 100 {
			time.Sleep(12 * time.Hour)
			synctest.Wait()
			good("the node's certificate", full)
			good("the gateway's certificate", public)
		}
		// A change of the authority does not wait for half life.
		for range 2 {
			s = must(s.AdvanceAuthority(time.Now(), true))(t)
			for _, x := range []struct {
				m *Manager
				s *State
			}{{full, s}, {public, s.Public()}} {
				if err := x.m.Adopt(x.s); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		for _, m := range []*Manager{full, public} {
			m.mu.Lock()
			if !m.bySigning() {
				t.Error("the certificate is still the former authority's")
			}
			m.mu.Unlock()
		}
		cancel()
		running.Wait()
	})
}

func TestAnIssuerWhoseClockIsBehindIsNotAskedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := must(New(clusterID, testSecret(t), time.Now().Add(-5*24*time.Hour)))(t)
		var asked atomic.Int64
		m := manager(t, Config{Node: nodeB, State: s.Public(), Certificate: must(s.issueOwn(nodeB, time.Now().Add(-5*24*time.Hour)))(t),
			Renew: func(_ context.Context, csr []byte) ([]byte, error) {
				asked.Add(1)
				return s.Issue(csr, nodeB, time.Now().Add(-5*24*time.Hour))
			}})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); m.Run(ctx) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := asked.Load(); n == 0 || n > 61 {
			t.Errorf("asked %d times within an hour", n)
		}
		cancel()
		<-done
	})
}
