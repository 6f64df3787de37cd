package node

import (
	"sync/atomic"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
)

// NodeOfDrive says where a drive is.
type NodeOfDrive struct {
	Node disk.ID
	// Gone says that the drive will not come back, or that its node itself says that it is not open. That a node
	// is suspected to have failed is no reason: its drives are asked, and fail by themselves.
	Gone bool
}

// FleetConfig is what a Fleet is made of.
type FleetConfig struct {
	Self disk.ID // the id of this node
	// Local are the drives of this process; nil: it has none. A *Set is one.
	Local interface {
		Shards(num uint16) (Drive, bool)
	}
	// Client returns the client of another node; the same one each time. rpc.Peers has it. nil: there are no others.
	Client func(node [16]byte) *rpc.Client
}

// Fleet finds all drives of the cluster by number. Those of this process are called directly, the others by way of their
// nodes. It holds no drive open, and has no goroutines; its methods may be called concurrently.
type Fleet struct {
	c FleetConfig
	// drives are those of other nodes; the map is never changed once it is here.
	drives atomic.Pointer[map[uint16]placed]
}

// placed is a drive of another node.
type placed struct {
	NodeOfDrive
	remote *Remote
}

// NewFleet returns a Fleet that knows the local drives only, until SetNodes.
func NewFleet(c FleetConfig) *Fleet {
	f := &Fleet{c: c}
	f.drives.Store(&map[uint16]placed{})
	return f
}

// SetNodes says where all drives of the cluster are; call it whenever that changes. Drives of this node may be among them.
// Operations under way go on where they began.
func (f *Fleet) SetNodes(nodes map[uint16]NodeOfDrive) {
	before := *f.drives.Load()
	after := make(map[uint16]placed, len(nodes))
	for num, n := range nodes {
		if n.Node == f.c.Self || f.c.Client == nil {
			continue
		}
		p := placed{NodeOfDrive: n}
		if old, ok := before[num]; ok && old.Node == n.Node {
			p.remote = old.remote
		} else {
			p.remote = NewRemote(f.c.Client(n.Node), num)
		}
		after[num] = p
	}
	f.drives.Store(&after)
}

// Nodes returns where the drives of other nodes are.
func (f *Fleet) Nodes() map[uint16]NodeOfDrive {
	out := make(map[uint16]NodeOfDrive)
	for num, p := range *f.drives.Load() {
		out[num] = p.NodeOfDrive
	}
	return out
}

// Shards returns the drive of that number. false: it is known to be gone, or nothing is known of it; a drive whose node does
// not answer is returned all the same.
func (f *Fleet) Shards(num uint16) (Drive, bool) {
	if f.c.Local != nil {
		if d, ok := f.c.Local.Shards(num); ok {
			return d, true
		}
	}
	if p, ok := (*f.drives.Load())[num]; ok && !p.Gone {
		return p.remote, true
	}
	return nil, false // and no interface that holds a nil pointer
}

// Replica is Shards for the register.
func (f *Fleet) Replica(num uint16) (metadata.Replica, bool) {
	if d, ok := f.Shards(num); ok {
		return d, true
	}
	return nil, false
}
