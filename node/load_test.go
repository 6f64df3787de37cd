package node_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// busyDrive tells of each Read, and holds it up until it is let go.
type busyDrive struct {
	node.Drive
	reading, let chan struct{}
}

func (d busyDrive) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	d.reading <- struct{}{}
	<-d.let
	return d.Drive.Read(ctx, m)
}

// What other nodes do for requests is the load of a node, and they hear of it; what they do in the background is none.
func TestRequestsOfOtherNodesAreTheLoadOfANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := busyDrive{memDrive(t), make(chan struct{}), make(chan struct{})}
		mux, load := rpc.NewMux(), new(node.Load)
		node.Serve(mux, func(num uint16) (node.Drive, bool) { return d, num == d.Num() }, node.ServeOptions{Load: load})
		far := &farNode{server: rpc.NewServer(rpc.ServerConfig{Mux: mux, Self: other, Load: func() int { return load.Now(time.Now()) }})}
		cl := newRPC(t, func(context.Context) (net.Conn, error) {
			a, b := net.Pipe()
			far.serve(b)
			return a, nil
		})
		defer far.serving.Wait()
		defer func() { _ = cl.Close() }() // cannot fail
		r := node.NewRemote(cl, d.Num())
		read := func(ctx context.Context) {
			t.Helper()
			var all sync.WaitGroup
			all.Go(func() {
				if _, err := r.Read(ctx, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1},
					Address: metadata.Address{Kind: metadata.KindObject, Bucket: 5, Key: []byte("k")}}); err != nil {
					t.Error(err)
				}
			})
			<-d.reading
			want := 1
			if rpc.MetaOf(ctx).Priority == rpc.Background {
				want = 0
			}
			if n := load.Now(time.Now()); n != want {
				t.Errorf("a message of priority %d is executed: the load is %d, want %d", rpc.MetaOf(ctx).Priority, n, want)
			}
			d.let <- struct{}{}
			all.Wait()
			if n := cl.Load(); n != want {
				t.Errorf("behind a message of priority %d: the client heard of a load of %d, want %d", rpc.MetaOf(ctx).Priority, n, want)
			}
		}
		background := rpc.WithMeta(bg, rpc.Meta{Priority: rpc.Background})
		read(background)
		read(bg)
		if n := load.Now(time.Now()); n != 1 {
			t.Errorf("right behind a message the load is %d, want 1", n)
		}
		time.Sleep(time.Second)
		read(background)
		if n := load.Now(time.Now()); n != 0 {
			t.Errorf("a second later the load is %d", n)
		}
	})
}
