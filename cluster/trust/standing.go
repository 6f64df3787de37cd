package trust

import (
	"io"
	"net"
	"sync"
)

// Connections that stand outlive a rotation, and the end of the certificate that opened them. They do not outlive
// the revocation of the node at their other end: whoever adopts it cuts them, at once.

// stands takes note of a connection to a node. false: the node is revoked.
func (m *Manager) stands(c io.Closer, node [16]byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Revoked(node) {
		return false
	}
	m.standing[c] = node
	return true
}

// fell forgets a connection.
func (m *Manager) fell(c io.Closer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.standing, c)
}

// cut closes the connections to nodes that are revoked. It waits for nobody.
func (m *Manager) cut() {
	m.mu.Lock()
	var list []io.Closer
	for c, node := range m.standing {
		if m.state.Revoked(node) {
			list = append(list, c)
		}
	}
	m.mu.Unlock()
	for _, c := range list {
		c.Close() //nolint:errcheck // whoever uses it is told
	}
	if len(list) > 0 {
		m.cfg.Logger.Warn("connections to nodes that were removed are cut", "connections", len(list))
	}
}

// dialed is what lies below the TLS of a connection that was opened here.
type dialed struct {
	net.Conn
	m    *Manager
	once sync.Once
}

// Close implements net.Conn.
func (c *dialed) Close() error {
	c.once.Do(func() { c.m.fell(c) })
	return c.Conn.Close()
}
