package cluster

import (
	"context"
	"net"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// Network reaches the other processes of the cluster. Its methods may be called at any time, from many
// goroutines; none of them may call back into Control before it returns.
type Network interface {
	// Self is the id of this node; zero for a process that is alone.
	Self() disk.ID
	// DialRaft connects to a raft server that runs on a node: its ServeRaft gets the other end.
	DialRaft(ctx context.Context, node disk.ID, voter string) (net.Conn, error)
	// Call has a node's Handle answer a request. The error keeps its kind. One that is not of kind Unavailable,
	// Timeout, Canceled or Unknown comes from Handle; a call may have been handled twice.
	Call(ctx context.Context, node disk.ID, method uint16, payload []byte) ([]byte, error)
}

// ServeRaft takes over a connection that another process made by DialRaft, and returns at once. It is closed
// if no such server runs here.
func (k *Control) ServeRaft(voter string, conn net.Conn) { conn.Close() }

// Handle answers a request that another process made by Call. from is its authenticated id.
func (k *Control) Handle(ctx context.Context, from disk.ID, method uint16, payload []byte) ([]byte, error) {
	return nil, errs.E("cluster.Handle", errs.Unsupported, "no such method")
}
