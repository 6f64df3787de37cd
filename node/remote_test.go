package node_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/internal/rpc/rpctest"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/node/nodetest"
)

var (
	self  = rpc.Identity{Cluster: [16]byte{1}, Node: [16]byte{0xa}}
	other = rpc.Identity{Cluster: [16]byte{1}, Node: [16]byte{0xb}}
)

// farNode is a node that serves drives to clients of the same test.
type farNode struct {
	server  *rpc.Server
	serving sync.WaitGroup
}

// newFarNode serves d, until the test ends.
func newFarNode(t testing.TB, d node.Drive) *farNode {
	mux := rpc.NewMux()
	pool := bufpool.New(bufpool.Options{Poison: true})
	node.Serve(mux, func(num uint16) (node.Drive, bool) { return d, num == d.Num() }, node.ServeOptions{Pool: pool})
	f := &farNode{server: rpc.NewServer(rpc.ServerConfig{Mux: mux, Self: other, Pool: pool})}
	t.Cleanup(func() {
		over, cancel := context.WithCancel(bg)
		cancel()
		_ = f.server.Close(over) // cuts what is left
		f.serving.Wait()
		if n := pool.Stats().Buffers; n != 0 {
			t.Errorf("%d buffers of the node are still in use", n)
		}
	})
	return f
}

func (f *farNode) serve(c net.Conn) {
	f.serving.Go(func() { _ = f.server.ServeConn(bg, c, self.Node) })
}

// pipe connects in memory.
func (f *farNode) pipe(context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	f.serve(b)
	return a, nil
}

func newRPC(t testing.TB, dial func(context.Context) (net.Conn, error)) *rpc.Client {
	pool := bufpool.New(bufpool.Options{Poison: true})
	c := rpc.NewClient(rpc.ClientConfig{Dial: dial, Self: self, Peer: other.Node, Pool: pool})
	t.Cleanup(func() {
		_ = c.Close()
		if n := pool.Stats().Buffers; n != 0 {
			t.Errorf("%d buffers of the client are still in use", n)
		}
	})
	return c
}

func TestARemoteDriveConforms(t *testing.T) {
	inMemory := func(t *testing.T) node.Drive {
		fs := vfs.NewMem()
		return oneDrive(t, fs, memPaths(t, fs, 1)[0])
	}
	t.Run("over a pipe", func(t *testing.T) {
		nodetest.Run(t, func(t *testing.T) node.Drive {
			d := inMemory(t)
			return node.NewRemote(newRPC(t, newFarNode(t, d).pipe), d.Num())
		})
	})
	t.Run("over TLS", func(t *testing.T) {
		nodetest.Run(t, func(t *testing.T) node.Drive {
			d := inMemory(t)
			return node.NewRemote(newRPC(t, rpctest.TLS(t, newFarNode(t, d).serve, rpc.Wire)), d.Num())
		})
	})
}
