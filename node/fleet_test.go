package node_test

import (
	"context"
	"net"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

func TestAFleetFindsLocalAndRemoteDrives(t *testing.T) {
	fs := vfs.NewMem()
	paths := memPaths(t, fs, 3)
	here := openSet(t, fs, paths, nil)
	here.SetEpoch(member)
	there := &numbered{here.Open()[2], 9}
	far := newFarNode(t, there)
	asked := map[disk.ID]int{}
	peers := rpc.NewPeers(func(ctx context.Context, id [16]byte) (net.Conn, error) {
		asked[id]++
		if id == other.Node {
			return far.pipe(ctx)
		}
		return nil, errs.E("test", errs.Unavailable, "nobody is there")
	}, rpc.ClientConfig{Self: self})
	defer peers.Close()
	f := node.NewFleet(node.FleetConfig{Self: self.Node, Local: here, Client: peers.Client})
	find := func(num uint16, kind string) node.Drive {
		t.Helper()
		d, ok := f.Shards(num)
		r, same := f.Replica(num)
		got := "none"
		switch d.(type) {
		case *disk.Drive:
			got = "local"
		case *node.Remote:
			got = "remote"
		}
		if got != kind || ok != (kind != "none") || same != ok || !ok && (d != nil || r != nil) {
			t.Errorf("drive %d: got %s, want %s", num, got, kind)
		}
		return d
	}
	find(1, "local")
	find(9, "none")
	dead := disk.ID{0xdd}
	f.SetNodes(map[uint16]node.NodeOfDrive{1: {Node: disk.ID(self.Node)}, 4: {Node: disk.ID(self.Node)}, 9: {Node: disk.ID(other.Node)},
		10: {Node: dead}, 11: {Node: dead, Gone: true}})
	find(1, "local")
	find(4, "none") // of this node, and not open
	find(11, "none")
	d := find(9, "remote")
	if d.Num() != 9 {
		t.Errorf("drive 9 says it is %d", d.Num())
	}
	r, err := d.Read(bg, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1}, Address: metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("k")}})
	if err != nil || r.Row != nil {
		t.Errorf("read: %+v, %v", r, err)
	}
	_, err = find(10, "remote").Read(bg, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1}})
	if !errs.Is(err, errs.Unavailable) || !rpc.NotSent(err) {
		t.Errorf("a node that is not there: %v", err)
	}
	f.SetNodes(map[uint16]node.NodeOfDrive{9: {Node: disk.ID(other.Node)}})
	if again := find(9, "remote"); again != d {
		t.Error("a drive that stays where it is has changed")
	}
	find(10, "none")
	if len(f.Nodes()) != 1 || asked[other.Node] != 1 {
		t.Errorf("nodes %v, dialed %v", f.Nodes(), asked)
	}
	// A drive that its node does not have says so, and nothing about what it holds.
	_, err = node.NewRemote(peers.Client(other.Node), 77).StatShard(bg, erasure.ShardID{})
	if !errs.Is(err, errs.Drive) {
		t.Errorf("a drive that is not open there: %v", err)
	}
}

// numbered is a drive under another number.
type numbered struct {
	node.Drive
	num uint16
}

func (n *numbered) Num() uint16 { return n.num }
