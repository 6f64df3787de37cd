package trust

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
)

// JoinProtocol is the ALPN name of the one protocol that needs no certificate of the client.
const JoinProtocol = "ostraka-join/1"

const (
	handshakeTime = 10 * time.Second // of one handshake
	maxHandshakes = 256              // at a time; more wait in the listener
	acceptPause   = 50 * time.Millisecond
)

// Handler serves one connection until it ends, and closes it. peer is the node of the other side's certificate, zero for JoinProtocol.
type Handler func(ctx context.Context, conn *tls.Conn, peer [16]byte)

// ServerConfig returns the configuration of a listener that serves these protocols, by ALPN. Clients of all
// but JoinProtocol must show a certificate of the cluster.
func (m *Manager) ServerConfig(protocols ...string) *tls.Config {
	var proven []string
	join := false
	for _, p := range protocols {
		if p == JoinProtocol {
			join = true
		} else {
			proven = append(proven, p)
		}
	}
	strict := m.base(proven)
	strict.ClientAuth = tls.RequireAnyClientCert // which one, VerifyConnection judges
	strict.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := negotiated(cs); err != nil {
			return err
		}
		_, err := m.peer(cs)
		return err
	}
	open := m.base([]string{JoinProtocol})
	open.VerifyConnection = negotiated
	outer := strict.Clone()
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// Only a client that offers nothing else is let in without a certificate: what it may then
		// speak is settled before it has said a word.
		if join && len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == JoinProtocol {
			return open, nil
		}
		return strict, nil
	}
	return outer
}

// ClientConfig returns the configuration of one connection to a node, for one protocol. No other node is accepted.
func (m *Manager) ClientConfig(node [16]byte, protocol string) *tls.Config {
	c := m.base([]string{protocol})
	// The names of hosts mean nothing here: VerifyConnection checks the chain, and the one name that counts.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := negotiated(cs); err != nil {
			return err
		}
		got, err := m.peer(cs)
		if err == nil && (got != node || node == [16]byte{}) {
			err = errs.E("trust.Verify", errs.Denied, "another node answers at this address")
		}
		return err
	}
	return c
}

// base is what both sides have in common.
func (m *Manager) base(protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		Time:       m.cfg.Now,
		// Each handshake is verified against the authorities of its time.
		SessionTicketsDisabled: true,
		// Shards are streams: records that begin small cost them much, and gain the small messages nothing.
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			_, cert := m.current()
			return cert, nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			_, cert := m.current()
			return cert, nil
		},
	}
}

// negotiated refuses a peer that named no protocol: TLS lets it pass.
func negotiated(cs tls.ConnectionState) error {
	if cs.NegotiatedProtocol == "" {
		return errs.E("trust.Verify", errs.Unsupported, "the peer named no protocol")
	}
	return nil
}

// peer returns the node on the other side, verified against what is trusted now.
func (m *Manager) peer(cs tls.ConnectionState) (node [16]byte, err error) {
	if len(cs.PeerCertificates) == 0 {
		return node, errs.E("trust.Verify", errs.Denied, "the peer shows no certificate")
	}
	return m.State().verify(cs.PeerCertificates[0], m.cfg.Now())
}

// Serve accepts connections and gives each to the handler of its protocol, until ctx ends or the
// listener fails. Then it closes the listener and all connections, and waits for the handlers. What wants to end in order does so before ctx.
func (m *Manager) Serve(ctx context.Context, ln net.Listener, handlers map[string]Handler) error {
	const op = "trust.Serve"
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var names []string
	for name := range handlers {
		names = append(names, name)
	}
	cfg := m.ServerConfig(names...)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	slots := make(chan struct{}, maxHandshakes)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := ln.Accept()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return errs.As(op, errs.Unavailable, err)
			}
			// Out of descriptors, most likely: others close theirs.
			m.cfg.Logger.Warn("a connection of a node was not accepted", "err", err)
			if !pause(ctx, acceptPause) {
				return nil
			}
			continue
		}
		running.Go(func() {
			m.serveConn(ctx, tls.Server(rpc.Wire(conn), cfg), handlers, func() { <-slots })
		})
	}
}

// serveConn shakes hands within its bound, then hands the connection on.
func (m *Manager) serveConn(ctx context.Context, conn *tls.Conn, handlers map[string]Handler, shaken func()) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	defer stop()
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	err := conn.HandshakeContext(hctx)
	cancel()
	shaken()
	if err != nil {
		if ctx.Err() == nil {
			m.cfg.Logger.Debug("a connection of a node was refused", "remote", conn.RemoteAddr(), "err", err)
		}
		return
	}
	cs := conn.ConnectionState()
	var peer [16]byte
	if cs.NegotiatedProtocol != JoinProtocol {
		// VerifyConnection has verified the chain a moment ago; this only reads the name again, unless the state changed since.
		if peer, err = m.peer(cs); err != nil {
			m.cfg.Logger.Debug("a connection of a node was refused", "remote", conn.RemoteAddr(), "err", err)
			return
		}
		if !m.stands(conn.NetConn(), peer) {
			return
		}
		defer m.fell(conn.NetConn())
	}
	handlers[cs.NegotiatedProtocol](ctx, conn, peer)
}

// pause waits, and reports whether ctx is still there.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Dial connects to a node for one protocol. The connection is there for the caller to close. It ends with errs.Unavailable
// when nobody answers at the address, errs.Denied when it is not that node, errs.Timeout.
func (m *Manager) Dial(ctx context.Context, address string, node [16]byte, protocol string) (*tls.Conn, error) {
	const op = "trust.Dial"
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, errs.As(op, dialKind(ctx), err)
	}
	below := &dialed{Conn: raw, m: m}
	conn := tls.Client(rpc.Wire(below), m.ClientConfig(node, protocol))
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := conn.HandshakeContext(hctx); err != nil {
		raw.Close()
		var known *errs.Error
		if errors.As(err, &known) {
			return nil, errs.Wrap(op, err)
		}
		return nil, errs.As(op, dialKind(ctx), err)
	}
	if !m.stands(below, node) {
		conn.Close() // nothing was said on it
		return nil, errs.E(op, errs.Denied, "the peer was revoked")
	}
	return conn, nil
}

// dialKind is the kind of a connection that did not come about.
func dialKind(ctx context.Context) errs.Kind {
	if err := ctx.Err(); err != nil {
		return errs.KindOf(err)
	}
	return errs.Unavailable
}
