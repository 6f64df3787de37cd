package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/cluster/gossip"
	"github.com/ostraka/ostraka/cluster/trust"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/node"
)

// What a connection between nodes is for, by ALPN; trust has the third, for joining.
const (
	rpcProtocol  = "ostraka-rpc/1"
	raftProtocol = "ostraka-raft/1"
)

// The methods of the command; numbers are never used again.
const (
	mRenew  rpc.Method = 2000 // a certificate request → a certificate
	mDrives rpc.Method = 2001 // what a node says of its drives, as JSON
	mCheck  rpc.Method = 2002 // a note to the process that makes the complete check → how that stands
	mFollow rpc.Method = 2003 // nothing → nothing, once the node knows of the control plane what was answered before
)

// The methods of the control plane.
const firstControl, lastControl rpc.Method = 1000, 1063

const (
	raftHello   = 5 * time.Second  // that a connection of raft may take to say whom it is for
	rejoinEvery = 15 * time.Second // a node that finds nobody asks the addresses of --join
	tendEvery   = 30 * time.Second // rotations are looked after
	leaveWithin = 3 * time.Second  // that leaving may take at the end
)

// mesh is this process's part of a cluster: its port for other nodes, what it believes them by, and who they
// are. It implements cluster.Network. Its parts come one after the other: before there is trust every call to
// another node fails, with errs.Unavailable.
type mesh struct {
	cfg     *config.Server
	log     *slog.Logger
	ln      net.Listener
	self    disk.ID
	cluster disk.ID
	mux     *rpc.Mux

	manager atomic.Pointer[trust.Manager]
	group   atomic.Pointer[gossip.Group]
	control atomic.Pointer[cluster.Control]
	peers   atomic.Pointer[rpc.Peers]
	server  *rpc.Server

	drives  atomic.Pointer[func(context.Context) []console.DriveStatus] // of this node
	check   atomic.Pointer[func(note []byte) ([]byte, error)]           // what answers notes about the check
	catchUp atomic.Pointer[func(context.Context) error]                 // asks the leader for what is new

	requests func() int          // of clients, in flight in this process
	waits    func(reason string) // tells clients for what this process waits
	load     node.Load           // by those of other processes

	refused atomic.Bool // other nodes did not believe this node's certificate; see refused.go
	denied  string      // why the addresses of --join refused last; of tend

	ctx     context.Context // of what serves and watches; ends with close
	cancel  context.CancelFunc
	running sync.WaitGroup
}

var _ cluster.Network = (*mesh)(nil)

// newMesh makes a mesh of one node, which knows nobody yet. It takes the listener over. requests counts those of clients that
// this process serves.
func newMesh(cfg *config.Server, ln net.Listener, self disk.ID, waits func(reason string), requests func() int, log *slog.Logger) *mesh {
	m := &mesh{cfg: cfg, log: log, ln: ln, self: self, waits: waits, requests: requests, mux: rpc.NewMux()}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	for method := firstControl; method <= lastControl; method++ {
		m.mux.Handle(method, func(ctx context.Context, from rpc.Peer, payload []byte) ([]byte, error) {
			c := m.control.Load()
			if c == nil {
				return nil, errs.E("server.Control", errs.Unavailable, "the node is starting")
			}
			return c.Handle(ctx, from.Node, uint16(method), payload)
		})
	}
	m.mux.Handle(mRenew, func(_ context.Context, from rpc.Peer, csr []byte) ([]byte, error) {
		return m.manager.Load().Issue(csr, from.Node)
	})
	m.mux.Handle(mDrives, func(ctx context.Context, _ rpc.Peer, _ []byte) ([]byte, error) {
		tell := m.drives.Load()
		if tell == nil {
			return nil, errs.E("server.Drives", errs.Unavailable, "the node is starting")
		}
		b, err := json.Marshal((*tell)(ctx))
		return b, errs.As("server.Drives", errs.Internal, err)
	})
	m.mux.Handle(mFollow, func(ctx context.Context, _ rpc.Peer, _ []byte) ([]byte, error) {
		follow := m.catchUp.Load()
		if follow == nil {
			return nil, nil // it serves nobody yet
		}
		return nil, (*follow)(ctx)
	})
	m.mux.Handle(mCheck, func(_ context.Context, _ rpc.Peer, note []byte) ([]byte, error) {
		answer := m.check.Load()
		if answer == nil {
			return nil, errs.E("server.Check", errs.Unavailable, "the node is starting")
		}
		return (*answer)(note)
	})
	return m
}

// answerCheck says what answers notes of other nodes about the check.
func (m *mesh) answerCheck(f func(note []byte) ([]byte, error)) { m.check.Store(&f) }

// tellDrives says what other nodes are told of the drives of this one.
func (m *mesh) tellDrives(f func(context.Context) []console.DriveStatus) { m.drives.Store(&f) }

// close ends everything. Leaving is announced, so that nobody takes this process for failed.
func (m *mesh) close(ctx context.Context) error {
	var err error
	if g := m.group.Load(); g != nil {
		leave, cancel := context.WithTimeout(ctx, leaveWithin)
		if failed := g.Leave(leave); failed != nil {
			m.log.Debug("leaving was not announced", "err", failed)
		}
		cancel()
		err = g.Close()
	}
	if m.server != nil {
		stop, cancel := context.WithTimeout(ctx, leaveWithin)
		err = errors.Join(err, m.server.Close(stop))
		cancel()
	}
	if p := m.peers.Load(); p != nil {
		p.Close()
	}
	m.cancel()
	m.ln.Close() // Serve may have closed it
	m.running.Wait()
	return err
}

// busy returns how many requests this node has to do with.
func (m *mesh) busy() int { return m.requests() + m.load.Now(time.Now()) }

// busiest is busy, of this node or of those whose drives it works with, whoever has the most to do.
func (m *mesh) busiest() int {
	n := m.busy()
	if p := m.peers.Load(); p != nil {
		n = max(n, p.Load())
	}
	return n
}

// protocol are the versions that this process speaks with other nodes.
func (m *mesh) protocol() gossip.Versions {
	if v := m.cfg.TestProtocol; v.Newest != 0 {
		return gossip.Versions{Oldest: v.Oldest, Newest: v.Newest}
	}
	return gossip.Versions{Oldest: rpc.OldestVersion, Newest: rpc.NewestVersion}
}

// Self implements cluster.Network.
func (m *mesh) Self() disk.ID { return m.self }

// addresses are where a node may be reached, the best first: what it says itself, then what is kept of it.
func (m *mesh) addresses(id disk.ID) (list []string) {
	if g := m.group.Load(); g != nil {
		if is, ok := g.View().Member(id); ok && is.Tags.Address != "" {
			list = append(list, is.Tags.Address)
		}
	}
	if c := m.control.Load(); c != nil {
		if n, ok := c.State().Node(id); ok && n.Address != "" && !slices.Contains(list, n.Address) {
			list = append(list, n.Address)
		}
	}
	return list
}

// dial connects to a node for one protocol.
func (m *mesh) dial(ctx context.Context, id disk.ID, protocol string) (net.Conn, error) {
	const op = "server.dial"
	manager := m.manager.Load()
	if manager == nil {
		return nil, errs.E(op, errs.Unavailable, "this node has not joined yet")
	}
	failed := errs.E(op, errs.Unavailable, "the address of node "+id.String()+" is not known")
	for _, address := range m.addresses(id) {
		conn, err := manager.Dial(ctx, address, id, protocol)
		if err == nil {
			return conn, nil
		}
		if failed = errs.Wrap(op, err); ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// DialRaft implements cluster.Network: the first bytes name the voter.
func (m *mesh) DialRaft(ctx context.Context, id disk.ID, voter string) (net.Conn, error) {
	if len(voter) > 255 {
		return nil, errs.E("server.DialRaft", errs.Invalid, "the name of a voter is too long")
	}
	conn, err := m.dial(ctx, id, raftProtocol)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append([]byte{byte(len(voter))}, voter...)); err != nil {
		conn.Close() // it is of no use
		return nil, errs.As("server.DialRaft", errs.Unavailable, err)
	}
	return conn, nil
}

// Call implements cluster.Network.
func (m *mesh) Call(ctx context.Context, id disk.ID, method uint16, payload []byte) ([]byte, error) {
	p := m.peers.Load()
	if p == nil {
		return nil, errs.E("server.Call", errs.Unavailable, "this node has not joined yet")
	}
	b, err := p.Client(id).Call(ctx, rpc.Method(method), payload)
	m.heed(err)
	return b, err
}

// reachable returns the nodes that gossip sees, for a process that knows no state yet.
func (m *mesh) reachable() (list []disk.ID) {
	g := m.group.Load()
	if g == nil {
		return nil
	}
	for _, is := range g.View().Members {
		if !is.Self && is.State == gossip.Alive && is.Tags.Address != "" {
			list = append(list, is.Tags.Node)
		}
	}
	return list
}

// client returns the client of another node.
func (m *mesh) client(id [16]byte) *rpc.Client { return m.peers.Load().Client(id) }

// readSecret reads the secret of the cluster. Zero if there is no such file, or none is named.
func (m *mesh) readSecret() (trust.Secret, error) {
	if m.cfg.SecretFile == "" {
		return trust.Secret{}, nil
	}
	raw, err := os.ReadFile(m.cfg.SecretFile)
	if errors.Is(err, os.ErrNotExist) {
		return trust.Secret{}, nil
	}
	if err != nil {
		return trust.Secret{}, &errs.Error{Op: "server", Kind: errs.Invalid, Msg: "the file of --cluster-secret-file cannot be read", Err: err}
	}
	return trust.ParseSecret(raw)
}

// makeSecret writes a new secret to the file that is named and is not there.
func (m *mesh) makeSecret() (trust.Secret, error) {
	s := trust.NewSecret()
	if err := makeFile(m.cfg.SecretFile, s.Reveal()+"\n"); err != nil {
		return trust.Secret{}, &errs.Error{Op: "server", Kind: errs.Invalid, Msg: "the secret of the cluster cannot be written to " + m.cfg.SecretFile, Err: err}
	}
	m.log.Warn("the secret of the new cluster was made; whoever has it can join: copy it to the other nodes, by a safe way", "file", m.cfg.SecretFile)
	return s, nil
}

// makeFile makes a file that is not there, durably, for this user only.
func makeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	if err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// join becomes a node of the cluster of --join, however long it takes to reach it; a refusal ends it.
func (m *mesh) join(ctx context.Context) (*trust.Grant, error) {
	secret, err := m.readSecret()
	if err != nil {
		return nil, err
	}
	if secret.IsZero() {
		return nil, errs.E("server", errs.Invalid, "the file of --cluster-secret-file is not there: copy it from the node that made the cluster")
	}
	for last := ""; ; {
		g, err := trust.Join(ctx, trust.Request{Addresses: m.cfg.Join, Secret: secret, Node: m.self, Full: m.cfg.Role != config.GatewayRole})
		if err == nil {
			return g, nil
		}
		if k := errs.KindOf(err); k == errs.Denied || k == errs.Invalid || ctx.Err() != nil {
			return nil, errs.Wrap("server", err)
		}
		if text := errs.Public(err); text != last {
			m.log.Warn("the cluster cannot be joined yet; it is tried again until it can", "addresses", m.cfg.Join, "err", err)
			m.waits("the cluster cannot be joined yet: " + text)
			last = text
		}
		if !pause(ctx, time.Second) {
			return nil, errs.Wrap("server", ctx.Err())
		}
	}
}

// pause waits, and reports whether ctx is still there.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// begin opens the port to other nodes and the gossip: from here on this process is one of the cluster. cert
// is what a grant brought, else nil. seeds are addresses of others' gossip.
func (m *mesh) begin(state *trust.State, cert *tls.Certificate, seeds []string, own gossip.Tags, drives func(uint16) (node.Drive, bool)) error {
	m.cluster = state.Cluster()
	manager, err := trust.NewManager(trust.Config{Node: m.self, State: state, Certificate: cert, Renew: m.renew, Admit: m.admit, Logger: m.log})
	if err != nil {
		return err
	}
	id := rpc.Identity{Cluster: m.cluster, Node: m.self, Oldest: m.cfg.TestProtocol.Oldest, Newest: m.cfg.TestProtocol.Newest}
	node.Serve(m.mux, drives, node.ServeOptions{Load: &m.load})
	m.server = rpc.NewServer(rpc.ServerConfig{Mux: m.mux, Self: id, Load: m.busy, Logger: m.log})
	m.peers.Store(rpc.NewPeers(func(ctx context.Context, to [16]byte) (net.Conn, error) { return m.dial(ctx, to, rpcProtocol) },
		rpc.ClientConfig{Self: id, Logger: m.log}))
	m.manager.Store(manager)
	m.running.Go(func() { manager.Run(m.ctx) })
	m.running.Go(func() {
		err := manager.Serve(m.ctx, m.ln, map[string]trust.Handler{
			rpcProtocol: func(ctx context.Context, conn *tls.Conn, peer [16]byte) {
				if err := m.server.ServeConn(ctx, conn, peer); err != nil {
					m.log.Debug("a node was not served", "node", disk.ID(peer), "err", err)
				}
			},
			raftProtocol:       m.serveRaft,
			trust.JoinProtocol: manager.ServeJoin,
		})
		if err != nil {
			m.log.Error("other nodes are not served any more", "err", err)
		}
	})
	g, err := gossip.Start(gossip.Config{Tags: own, Bind: m.cfg.GossipAddress, Advertise: m.cfg.GossipAdvertised(), Keys: state.GossipKeys(), Logger: m.log})
	if err != nil {
		return err
	}
	m.group.Store(g)
	g.Join(slices.DeleteFunc(seeds, func(a string) bool { return a == "" || a == m.cfg.GossipAdvertised() }))
	return nil
}

// serveRaft hands a connection to the voter that it names, and waits for its end.
func (m *mesh) serveRaft(ctx context.Context, conn *tls.Conn, peer [16]byte) {
	defer conn.Close()
	var head [256]byte
	if conn.SetReadDeadline(time.Now().Add(raftHello)) != nil {
		return
	}
	if _, err := io.ReadFull(conn, head[:1]); err != nil {
		return
	}
	n := int(head[0])
	if _, err := io.ReadFull(conn, head[:n]); err != nil || conn.SetReadDeadline(time.Time{}) != nil {
		return
	}
	c := m.control.Load()
	if c == nil {
		return
	}
	held := &heldConn{Conn: conn, closed: make(chan struct{})}
	c.ServeRaft(string(head[:n]), held)
	select {
	case <-held.closed:
	case <-ctx.Done():
	}
}

// heldConn tells when it is closed.
type heldConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *heldConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// admit tells an applicant where the others gossip.
func (m *mesh) admit(_ context.Context, a trust.Applicant) ([]string, error) {
	g := m.group.Load()
	if g == nil {
		return nil, errs.E("server.Admit", errs.Unavailable, "the node is starting")
	}
	list := []string{m.cfg.GossipAdvertised()}
	for _, is := range g.View().Members {
		if is.State == gossip.Alive && !is.Self && is.Tags.Node != a.Node {
			list = append(list, is.Address)
		}
	}
	return list, nil
}

// renew has another node certify a key: one with drives, which issues certificates.
func (m *mesh) renew(ctx context.Context, csr []byte) ([]byte, error) {
	failed := errs.E("server.Renew", errs.Unavailable, "no node that issues certificates is here")
	for _, is := range m.group.Load().View().Members {
		if is.Self || is.State != gossip.Alive || !is.Tags.Storage {
			continue
		}
		der, err := m.client(is.Tags.Node).Call(ctx, mRenew, csr)
		if err == nil {
			return der, nil
		}
		failed = err
	}
	return nil, failed
}

// follow takes over what the control plane says of trust.
func (m *mesh) follow(state *cluster.State) {
	raw, _ := state.Trust()
	manager, g := m.manager.Load(), m.group.Load()
	if raw == nil || manager == nil {
		return
	}
	t, err := trust.Decode(raw)
	if err == nil && m.cfg.Role == config.GatewayRole {
		t = t.Public()
	}
	if err == nil && t.Number() <= manager.State().Number() {
		return
	}
	if err == nil {
		err = manager.Adopt(t)
	}
	if err == nil && g != nil {
		err = g.UpdateKeys(t.GossipKeys())
	}
	if err != nil {
		m.log.Error("the certificates' state of the cluster is not followed", "err", err)
	}
}

// rotate takes due rotations of certificates and gossip keys one step further, where this process leads.
func (m *mesh) rotate(ctx context.Context, c *cluster.Control) {
	state := c.State()
	raw, revision := state.Trust()
	t, err := trust.Decode(raw)
	if err != nil {
		return
	}
	everyone := true // holds this very state: also who is away, or nobody could tell
	view := m.group.Load().View()
	for _, n := range state.Nodes() {
		is, ok := view.Member(n.ID)
		everyone = everyone && ok && is.State == gossip.Alive && is.Tags.Trust == t.Number()
	}
	now := time.Now()
	authority, keys := t.Due(now)
	pa, _ := t.Authorities()
	pk, _ := t.Gossip()
	var next *trust.State
	switch {
	case pk != trust.Settled || keys:
		next, err = t.AdvanceGossip(now, everyone)
	case pa != trust.Settled || authority:
		next, err = t.AdvanceAuthority(now, everyone)
	default:
		return
	}
	if err == nil {
		err = c.PutTrust(ctx, next.AppendTo(nil), revision)
	}
	if err != nil && !errs.Is(err, errs.Precondition) && !errs.Is(err, errs.Stale) {
		m.log.Warn("a rotation of keys was not taken further", "err", err)
	}
}

// rejoin asks the addresses of --join again while this node finds nobody: the others may have moved, or have
// rotated their keys while it was away.
func (m *mesh) rejoin(ctx context.Context) {
	if len(m.cfg.Join) == 0 || len(m.reachable()) > 0 {
		return
	}
	secret, err := m.readSecret()
	if err != nil || secret.IsZero() {
		return
	}
	g, err := trust.Join(ctx, trust.Request{Addresses: m.cfg.Join, Secret: secret, Node: m.self, Full: m.cfg.Role != config.GatewayRole})
	switch text := errs.Public(err); {
	case errs.Is(err, errs.Denied) && text != m.denied:
		m.denied = text
		m.log.Warn("the cluster does not take this node back: it was removed, or the secret is another one; a node that was removed joins as a new one, with empty directories", "err", err)
		return
	case err != nil:
		m.log.Debug("nobody of --join answers", "err", err)
		return
	}
	if err := m.manager.Load().Adopt(g.State); err != nil && !errs.Is(err, errs.Stale) {
		m.log.Error("the cluster of --join is not this node's", "err", err)
		return
	}
	if err := m.group.Load().UpdateKeys(m.manager.Load().State().GossipKeys()); err != nil {
		m.log.Warn("the keys of the gossip were not taken over", "err", err)
	}
	m.group.Load().Join(g.Addresses)
}

// nodeName is a node as people know it.
func nodeName(n cluster.Node) string {
	if n.Name == "" {
		return n.ID.String()[:8]
	}
	return fmt.Sprintf("%s (%s)", n.Name, n.ID.String()[:8])
}
