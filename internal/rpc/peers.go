package rpc

import (
	"context"
	"net"
	"sync"
)

// Peers keeps one Client for each node. Its methods may be called concurrently.
type Peers struct {
	dial func(ctx context.Context, node [16]byte) (net.Conn, error)
	c    ClientConfig

	// mu guards the fields below.
	mu      sync.Mutex
	clients map[[16]byte]*Client
	closed  bool
}

// NewPeers returns a Peers whose clients are made like c, but for Dial and Peer. dial finds out for itself where a node
// is now, each time.
func NewPeers(dial func(ctx context.Context, node [16]byte) (net.Conn, error), c ClientConfig) *Peers {
	return &Peers{dial: dial, c: c, clients: map[[16]byte]*Client{}}
}

// Client returns the client of a node. After Close its calls fail.
func (p *Peers) Client(node [16]byte) *Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cl := p.clients[node]; cl != nil {
		return cl
	}
	c := p.c
	c.Peer = node
	c.Dial = func(ctx context.Context) (net.Conn, error) { return p.dial(ctx, node) }
	cl := NewClient(c)
	if p.closed {
		_ = cl.Close() // nothing runs yet
		return cl
	}
	p.clients[node] = cl
	return cl
}

// Load returns the most that any of the nodes said of its load, within a moment; see [Client.Load].
func (p *Peers) Load() (most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cl := range p.clients {
		most = max(most, cl.Load())
	}
	return most
}

// Forget closes the client of a node that left the cluster. One that is asked for again is a new one.
func (p *Peers) Forget(node [16]byte) {
	p.mu.Lock()
	cl := p.clients[node]
	delete(p.clients, node)
	p.mu.Unlock()
	if cl != nil {
		_ = cl.Close() // cannot fail
	}
}

// Close closes all clients, and waits for them.
func (p *Peers) Close() {
	p.mu.Lock()
	p.closed = true
	list := p.clients
	p.clients = map[[16]byte]*Client{}
	p.mu.Unlock()
	var all sync.WaitGroup
	for _, cl := range list {
		all.Go(func() { _ = cl.Close() }) // cannot fail
	}
	all.Wait()
}
