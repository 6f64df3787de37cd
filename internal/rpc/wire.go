package rpc

import (
	"crypto/tls"
	"net"
	"sync"
)

// Wire returns the connection that TLS is to run over between nodes. TLS writes each record of 16 KiB by itself; what a
// connection of this package writes together leaves together, whatever lies between. Nothing else changes: what anybody
// else writes leaves at once.
func Wire(nc net.Conn) net.Conn { return &wire{Conn: nc} }

// wire implements Wire.
type wire struct {
	net.Conn

	// mu guards the fields below.
	mu   sync.Mutex
	held *[]byte // written and not gone yet; nil: everything goes at once
	err  error   // the first of those that held bytes met
}

// heldBytes is what leaves together at most: a message of a stream, with the head and the tail of its records.
const heldBytes = 4 * (16<<10 + 64)

var heldBuffers = sync.Pool{New: func() any { b := make([]byte, 0, heldBytes); return &b }}

// wireOf returns what is below the TLS of a connection, nil if it is no wire.
func wireOf(nc net.Conn) *wire {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	w, _ := nc.(*wire)
	return w
}

// Write implements net.Conn. An error of bytes that were held comes with a later Write, or with flush.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return w.Conn.Write(p)
	}
	if len(*w.held)+len(p) > cap(*w.held) {
		w.send()
	}
	if w.err != nil {
		return 0, w.err
	}
	if len(p) > cap(*w.held) {
		return w.Conn.Write(p)
	}
	*w.held = append(*w.held, p...)
	return len(p), nil
}

// send writes what is held. The caller holds mu.
func (w *wire) send() {
	if w.err == nil && len(*w.held) > 0 {
		_, w.err = w.Conn.Write(*w.held)
	}
	*w.held = (*w.held)[:0]
}

// hold keeps what is written until flush, or until it is much.
func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = heldBuffers.Get().(*[]byte)
	}
}

// flush writes what is held. After an error the connection is of no use.
func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held != nil {
		w.send()
		heldBuffers.Put(w.held)
		w.held = nil
	}
	return w.err
}
