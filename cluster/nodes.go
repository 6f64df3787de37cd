package cluster

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// Roles says what a node does.
type Roles uint8

// The roles; a node has one or both.
const (
	RoleGateway Roles = 1 << iota // it serves S3
	RoleStorage                   // it serves drives to the others
)

// Node is a process of the cluster. A store that never was more than one process has none.
type Node struct {
	ID      disk.ID
	Name    string // for people
	Zone    string // failure domain above the node; "" is one like any other
	Roles   Roles
	Address string // host:port of its node port
	Gossip  string // host:port
	S3      string // host:port; "" if it serves none
	Since   int64  // when it was first put, Unix nanoseconds
	// ZoneSet: an operator said which zone it is (SetZone), and what the node says itself counts no more.
	ZoneSet bool
}

// NewDrive is a drive that has no number yet.
type NewDrive struct {
	ID       disk.ID
	Capacity uint64 // bytes
	Class    string
}

// Limits of what nodes bring.
const (
	maxNodes     = 4096
	maxNodeText  = 255     // bytes of each of a node's texts
	maxTrust     = 1 << 20 // bytes
	maxNewDrives = placement.MaxDrives
)

// Nodes returns the nodes, ascending by id; none in a store of one process. Read only.
func (s *State) Nodes() []Node { return s.nodes }

// Node returns a node by its id.
func (s *State) Node(id disk.ID) (Node, bool) {
	i, ok := s.searchNode(id)
	if !ok {
		return Node{}, false
	}
	return s.nodes[i], true
}

// DrivesOf returns the drives of the layout that belong to a node, ascending by number.
func (s *State) DrivesOf(node disk.ID) (list []placement.Drive) {
	if s.layout == nil {
		return nil
	}
	for _, d := range s.layout.Drives() {
		if d.Node == node {
			list = append(list, d)
		}
	}
	return list
}

// Trust returns what the cluster keeps for its certificates, nil for none, and how often that was put.
// Read only.
func (s *State) Trust() (b []byte, revision uint64) { return s.trust, s.trustRevision }

// NodeOfDrive returns the node of a drive of the layout; zero for the one node of a store that never was
// a cluster.
func (s *State) NodeOfDrive(num uint16) (disk.ID, bool) {
	if s.layout == nil {
		return disk.ID{}, false
	}
	d, ok := s.layout.Drive(num)
	return d.Node, ok
}

func (s *State) searchNode(id disk.ID) (int, bool) {
	return slices.BinarySearchFunc(s.nodes, id, func(n Node, id disk.ID) int { return bytes.Compare(n.ID[:], id[:]) })
}

// topDrive returns the highest number of a drive that was ever given.
func (s *State) topDrive() uint16 {
	top := s.lastDrive
	for _, d := range s.layout.Drives() {
		top = max(top, d.Num)
	}
	if n := len(s.retired); n > 0 {
		top = max(top, s.retired[n-1])
	}
	return top
}

// applyNodes is apply for the commands of this file.
func (s *State) applyNodes(next *State, c *command) (any, error) {
	refuse := func(k errs.Kind, format string, args ...any) (any, error) {
		return nil, errs.E("cluster.apply", k, fmt.Sprintf(format, args...))
	}
	at, known := s.searchNode(c.node.ID)
	switch c.op {
	case opBecomeCluster:
		if len(s.nodes) > 0 && !known {
			return refuse(errs.Exists, "the store is a cluster already, of other nodes")
		}
		zone := c.node.Zone
		if known && s.nodes[at].ZoneSet {
			zone = s.nodes[at].Zone
		}
		if err := next.ownDrives(s.DrivesOf(disk.ID{}), c.node.ID, zone); err != nil {
			return nil, err
		}
		return nil, next.putNode(at, known, c)
	case opPutNode:
		if len(s.nodes) == 0 {
			return refuse(errs.Precondition, "the store is not a cluster yet")
		}
		if !known && len(s.nodes) == maxNodes {
			return refuse(errs.Invalid, "a cluster has at most %d nodes", maxNodes)
		}
		return nil, next.putNode(at, known, c)
	case opSetZone:
		if !known {
			return refuse(errs.NotFound, "there is no such node")
		}
		n := s.nodes[at]
		n.Zone, n.ZoneSet = c.node.Zone, true
		next.nodes = slices.Clone(s.nodes)
		next.nodes[at] = n
		return nil, next.ownDrives(s.DrivesOf(n.ID), n.ID, n.Zone)
	case opRemoveNode:
		if drives := s.DrivesOf(c.node.ID); len(drives) > 0 {
			return refuse(errs.Precondition, "the node has %d drives in the layout", len(drives))
		}
		if known {
			next.nodes = slices.Delete(slices.Clone(s.nodes), at, at+1)
		}
		return nil, nil
	case opAddDrives:
		if !known {
			return refuse(errs.NotFound, "there is no such node")
		}
		return s.addDrives(next, c)
	}
	if c.epoch != s.trustRevision {
		if c.epoch+1 == s.trustRevision && bytes.Equal(c.value, s.trust) {
			return nil, nil
		}
		return refuse(errs.Stale, "the certificates' state was changed meanwhile: it is revision %d, not %d", s.trustRevision, c.epoch)
	}
	next.trust, next.trustRevision = c.value, s.trustRevision+1
	return nil, nil
}

// putNode stores c.node at its place. A zone that changed becomes that of its drives.
func (s *State) putNode(at int, known bool, c *command) error {
	n := c.node
	n.Since, n.ZoneSet = c.time, false
	s.nodes = slices.Clone(s.nodes)
	if !known {
		s.nodes = slices.Insert(s.nodes, at, n)
		return nil
	}
	n.Since = s.nodes[at].Since
	if s.nodes[at].ZoneSet {
		n.Zone, n.ZoneSet = s.nodes[at].Zone, true
	}
	moved := n.Zone != s.nodes[at].Zone
	s.nodes[at] = n
	if !moved {
		return nil
	}
	return s.ownDrives(s.DrivesOf(n.ID), n.ID, n.Zone)
}

func (s *State) ownDrives(drives []placement.Drive, node disk.ID, zone string) error {
	var nums []uint16
	for _, d := range drives {
		nums = append(nums, d.Num)
	}
	if len(nums) == 0 {
		return nil
	}
	l, err := s.layout.WithNode(nums, node, zone)
	if err == nil {
		s.layout = l
	}
	return err
}

// addDrives gives numbers to the drives of a node. One that has a number on that node keeps it.
func (s *State) addDrives(next *State, c *command) (any, error) {
	byID := map[disk.ID]placement.Drive{}
	for _, d := range s.layout.Drives() {
		byID[d.ID] = d
	}
	node, _ := s.Node(c.node.ID)
	l, top := s.layout, s.topDrive()
	var nums []uint16
	for _, d := range c.drives {
		if is, ok := byID[d.ID]; ok {
			if is.Node != node.ID {
				return nil, errs.E("cluster.apply", errs.Exists, fmt.Sprintf("it is drive %d of another node", is.Num))
			}
			nums = append(nums, is.Num)
			continue
		}
		if top == ^uint16(0) {
			return nil, errs.E("cluster.apply", errs.Invalid, "the numbers of drives are used up")
		}
		top++
		d.Num, d.Node, d.Zone = top, node.ID, node.Zone
		var err error
		if l, err = l.WithDrive(d); err != nil {
			return nil, err
		}
		byID[d.ID] = d
		nums = append(nums, d.Num)
	}
	next.layout, next.lastDrive = l, top
	return nums, nil
}

// BecomeCluster makes a store of one process the first node of a cluster: its drives belong to n from now
// on. Of a cluster that has the node it does what PutNode does; of another the error is of kind Exists.
func (k *Control) BecomeCluster(ctx context.Context, n Node) error {
	return k.putNode(ctx, opBecomeCluster, n)
}

// PutNode adds a node, or changes what is known of it. Since is kept from the first time.
func (k *Control) PutNode(ctx context.Context, n Node) error { return k.putNode(ctx, opPutNode, n) }

func (k *Control) putNode(ctx context.Context, op opCode, n Node) error {
	if err := n.check(); err != nil {
		return err
	}
	_, _, err := k.repeat(ctx, &command{op: op, node: n, time: time.Now().UnixNano()})
	return err
}

func (n *Node) check() error {
	if n.ID == (disk.ID{}) {
		return errs.E("cluster.PutNode", errs.Invalid, "a node has an id")
	}
	for _, text := range []string{n.Name, n.Zone, n.Address, n.Gossip, n.S3} {
		if len(text) > maxNodeText {
			return errs.E("cluster.PutNode", errs.Invalid, fmt.Sprintf("a text of a node has at most %d bytes", maxNodeText))
		}
	}
	return nil
}

// SetZone says in which failure domain a node is, with all its drives. It holds whatever the node says of itself
// from then on. The error is of kind NotFound if there is no such node.
func (k *Control) SetZone(ctx context.Context, id disk.ID, zone string) error {
	n := Node{ID: id, Zone: zone}
	if err := n.check(); err != nil {
		return err
	}
	_, _, err := k.repeat(ctx, &command{op: opSetZone, node: n})
	return err
}

// RemoveNode forgets a node. While it has drives in the layout the error is of kind Precondition. One that
// is not known is no error.
func (k *Control) RemoveNode(ctx context.Context, id disk.ID) error {
	_, _, err := k.repeat(ctx, &command{op: opRemoveNode, node: Node{ID: id}})
	return err
}

// AddDrives takes drives of a node into the layout's list, as members of nothing, and returns their numbers in
// the order of drives. A drive that is there already keeps its number; if it is another node's the error is of kind Exists.
func (k *Control) AddDrives(ctx context.Context, node disk.ID, drives []NewDrive) ([]uint16, error) {
	const op = "cluster.AddDrives"
	if len(drives) == 0 {
		return nil, nil
	}
	if len(drives) > maxNewDrives {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("at most %d drives at a time", maxNewDrives))
	}
	c := &command{op: opAddDrives, node: Node{ID: node}}
	for _, d := range drives {
		if d.ID == (disk.ID{}) || len(d.Class) > maxNodeText {
			return nil, errs.E(op, errs.Invalid, "a drive has an id, and the name of its class is short")
		}
		c.drives = append(c.drives, placement.Drive{ID: d.ID, Capacity: d.Capacity, Class: d.Class})
	}
	result, _, err := k.repeat(ctx, c)
	if err != nil {
		return nil, err
	}
	nums, _ := result.([]uint16)
	return nums, nil
}

// PutTrust stores what the cluster keeps for its certificates, in place of what State.Trust returned with
// revision. If that was changed meanwhile the error is of kind Stale.
func (k *Control) PutTrust(ctx context.Context, b []byte, revision uint64) error {
	if len(b) > maxTrust {
		return errs.E("cluster.PutTrust", errs.Invalid, "the certificates' state is too large")
	}
	_, _, err := k.repeat(ctx, &command{op: opPutTrust, value: bytes.Clone(b), epoch: revision})
	return err
}

func appendNode(b []byte, n *Node) []byte {
	b = putBytes(b, 1, n.ID[:])
	b = putString(b, 2, n.Name)
	b = putString(b, 3, n.Zone)
	b = putUint(b, 4, uint64(n.Roles))
	b = putString(b, 5, n.Address)
	b = putString(b, 6, n.Gossip)
	b = putString(b, 7, n.S3)
	b = putUint(b, 8, uint64(n.Since))
	return putBool(b, 9, n.ZoneSet)
}

func decodeNode(b []byte) (n Node, err error) {
	err = fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			err = fixed(n.ID[:], f.bytes)
		case 2:
			n.Name = string(f.bytes)
		case 3:
			n.Zone = string(f.bytes)
		case 4:
			if n.Roles = Roles(f.u); f.u > 255 {
				err = errMalformed()
			}
		case 5:
			n.Address = string(f.bytes)
		case 6:
			n.Gossip = string(f.bytes)
		case 7:
			n.S3 = string(f.bytes)
		case 8:
			n.Since = int64(f.u)
		case 9:
			n.ZoneSet = f.u != 0
		default:
			return false, nil
		}
		return true, err
	})
	return n, err
}
