package cluster

import (
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// Network reaches the other processes of the cluster. Its methods may be called at any time, from many
// goroutines; none of them may call back into Control before it returns.
type Network interface {
	// Self is the id of this node; zero for a process that is alone. It never changes.
	Self() disk.ID
	// DialRaft connects to a raft server that runs on a node: its ServeRaft gets the other end.
	DialRaft(ctx context.Context, node disk.ID, voter string) (net.Conn, error)
	// Call has a node's Handle answer a request. A call that fails may have been handled all the same, and one
	// that succeeds may have been handled twice.
	Call(ctx context.Context, node disk.ID, method uint16, payload []byte) ([]byte, error)
}

// The requests between processes. The numbers are part of the protocol: append, never renumber.
const (
	methodHello    = 1000 // who leads, and which generation is known
	methodChange   = 1001 // a change, to the leader
	methodIndex    = 1002 // which index is current, to the leader
	methodReport   = 1003 // what a process has, to the leader
	methodCopied   = 1004 // wait until an index is in the copies of a process, and tell in which
	methodState    = 1005 // the whole state
	methodEvacuate = 1006 // move the voter of a drive away, to the leader
)

// callTimeout bounds a request to another process: a leader that hangs is asked again, or another.
const callTimeout = 2 * time.Second

// networked reports whether there may be other processes.
func (k *Control) networked() bool { return k.c.Network != nil && k.self() != disk.ID{} }

func (k *Control) self() disk.ID {
	if k.c.Network == nil {
		return disk.ID{}
	}
	return k.c.Network.Self()
}

// clustered reports whether the voters are looked after as those of a cluster.
func (k *Control) clustered() bool { return k.networked() && len(k.State().nodes) > 0 }

// dialRaft returns what connects to raft servers of other processes; nil if there are none.
func (k *Control) dialRaft() dialer {
	if !k.networked() {
		return nil
	}
	return func(ctx context.Context, id raft.ServerID) (net.Conn, error) {
		node := k.State().nodeOf(id)
		if node == (disk.ID{}) || node == k.self() {
			return nil, errs.E("cluster.DialRaft", errs.Unavailable, "the raft server does not run now")
		}
		return k.c.Network.DialRaft(ctx, node, string(id))
	}
}

// runs returns a raft server of this process by its id; nil if it does not run.
func (k *Control) runs(id raft.ServerID) *voter {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range k.voters {
		if v.id == id {
			return v
		}
	}
	return nil
}

// ServeRaft takes over a connection that another process made by DialRaft. It returns as soon as the server has
// it. It is closed if no such server runs here.
func (k *Control) ServeRaft(voter string, conn net.Conn) {
	v := k.runs(raft.ServerID(voter))
	if v == nil || v.trans.wire == nil {
		conn.Close() //nolint:errcheck // nobody has used it
		return
	}
	v.trans.wire.serve(conn)
}

// reply is the answer to any request.
type reply struct {
	leads   bool         // the process leads, and did what was asked
	leader  disk.ID      // who leads, as far as known
	gen     generationID // of its state
	index   uint64       // of the change; of the state
	result  []byte       // of a change, encoded
	failed  error        // why it was not done
	state   []byte
	drives  []uint16 // that have the index; that are to start a server
	servers []string // that run; that are to be dropped
	known   bool     // the state has the node that asked
}

func (r *reply) encode() []byte {
	b := putBool(nil, 1, r.leads)
	if r.leader != (disk.ID{}) {
		b = putBytes(b, 2, r.leader[:])
	}
	b = putBytes(b, 3, appendGenerationID(nil, r.gen))
	b = putUint(b, 4, r.index)
	b = putBytes(b, 5, r.result)
	if r.failed != nil {
		b = putBytes(b, 6, appendRefusal(nil, r.failed))
	}
	b = putBytes(b, 7, r.state)
	b = putBytes(b, 8, appendNumbers(nil, r.drives))
	for _, id := range r.servers {
		b = putString(b, 9, id)
	}
	return putBool(b, 10, r.known)
}

func decodeReply(b []byte) (*reply, error) {
	r := new(reply)
	return r, fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			r.leads = f.u != 0
		case 2:
			err = fixed(r.leader[:], f.bytes)
		case 3:
			r.gen, err = decodeGenerationID(f.bytes)
		case 4:
			r.index = f.u
		case 5:
			r.result = bytes.Clone(f.bytes)
		case 6:
			r.failed, err = decodeRefusal(f.bytes)
		case 7:
			r.state = bytes.Clone(f.bytes)
		case 8:
			r.drives, err = decodeNumbers[uint16](f.bytes, 1<<16, 1<<16-1)
		case 9:
			r.servers = append(r.servers, string(f.bytes))
		case 10:
			r.known = f.u != 0
		default:
			return false, nil
		}
		return true, err
	})
}

// ask sends a request to a node.
func (k *Control) ask(ctx context.Context, node disk.ID, method uint16, payload []byte, timeout time.Duration) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	b, err := k.c.Network.Call(ctx, node, method, payload)
	if err != nil {
		return nil, err
	}
	r, err := decodeReply(b)
	if err != nil {
		return nil, err
	}
	k.heardOf(node, r)
	return r, nil
}

// heardOf remembers who leads, as another process says.
func (k *Control) heardOf(node disk.ID, r *reply) {
	leader := r.leader
	if r.leads {
		leader = node
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if leader != (disk.ID{}) && leader != k.self() {
		k.hint = leader
	} else if k.hint == node {
		k.hint = disk.ID{}
	}
}

// leaderNode returns the node that leads, as far as this process knows; zero for unknown. It may be this one.
func (k *Control) leaderNode() disk.ID {
	k.mu.Lock()
	hint := k.hint
	var list []*voter
	for _, v := range k.voters {
		list = append(list, v)
	}
	k.mu.Unlock()
	s := k.State()
	for _, v := range list {
		if _, id := v.raft.LeaderWithID(); id != "" {
			if node := s.nodeOf(id); node != (disk.ID{}) {
				return node
			}
		}
	}
	return hint
}

// Handle answers a request that another process made by Call. from is its authenticated id. A node that was
// removed is refused with an error of kind Denied.
func (k *Control) Handle(ctx context.Context, from disk.ID, method uint16, payload []byte) ([]byte, error) {
	s := k.State()
	r := &reply{gen: s.gen.generationID, index: s.Applied, leader: k.leaderNode()}
	_, r.known = s.Node(from)
	if err := k.admits(r.known, from, method, payload); err != nil {
		return nil, err
	}
	var err error
	switch method {
	case methodHello:
		err = k.handleHello(payload, r)
	case methodChange:
		k.handleChange(ctx, payload, r)
	case methodIndex:
		k.handleIndex(ctx, r)
	case methodReport:
		err = k.handleReport(ctx, from, payload, r)
	case methodCopied:
		err = k.handleCopied(ctx, payload, r)
	case methodState:
		if s.Initialized() {
			r.state = s.encode()
		}
	case methodEvacuate:
		err = k.handleEvacuate(ctx, payload, r)
	default:
		err = errs.E("cluster.Handle", errs.Unsupported, "no such method")
	}
	if err != nil {
		return nil, err
	}
	return r.encode(), nil
}

// admits decides whether a node may ask. One that is not known may become so, and may ask who leads.
func (k *Control) admits(known bool, from disk.ID, method uint16, payload []byte) error {
	if known || !k.State().Initialized() || method == methodHello || method == methodReport {
		return nil
	}
	if method == methodChange {
		if c, err := decodeCommand(payload); err == nil && c.op == opPutNode && c.node.ID == from {
			return nil
		}
	}
	return errs.E("cluster.Handle", errs.Denied, "the node is not one of the cluster")
}

// handleHello tells which servers run here.
func (k *Control) handleHello(payload []byte, r *reply) error {
	other, err := decodeGenerationID(payload)
	if err != nil {
		return err
	}
	if other.compare(r.gen) > 0 {
		k.nudge()
	}
	k.mu.Lock()
	for _, v := range k.voters {
		r.servers = append(r.servers, string(v.id))
	}
	k.mu.Unlock()
	slices.Sort(r.servers)
	r.leads = k.leader() != nil
	return nil
}

// handleChange applies a change, if this process leads.
func (k *Control) handleChange(ctx context.Context, payload []byte, r *reply) {
	v := k.leader()
	if v == nil {
		return
	}
	c, err := decodeCommand(payload)
	if errs.Is(err, errs.Unsupported) {
		r.leads, r.failed = true, errs.E("cluster.Handle", errs.Unsupported, "the node that leads the control plane runs a build that does not know this change: upgrade all nodes first")
		return
	}
	if err != nil || c.change == (changeID{}) {
		r.leads, r.failed = true, errs.E("cluster.Handle", errs.Invalid, "the change cannot be read, or has no id")
		return
	}
	result, index, err := k.applyAt(ctx, v, bytes.Clone(payload), k.c.ChangeTimeout)
	k.answer(r, err)
	if r.leads && err == nil {
		r.index, r.gen, r.result = index, k.State().gen.generationID, encodeResult(result)
	}
}

// answer says in a reply how what only a leader does has ended. Where nothing happened, another may do it.
func (k *Control) answer(r *reply, err error) {
	if nothingHappened(err) {
		r.leader = disk.ID{}
		return
	}
	r.leads = true
	if err != nil {
		r.failed = outcome(err)
	}
}

// handleIndex tells which index is current, if this process leads.
func (k *Control) handleIndex(ctx context.Context, r *reply) {
	v := k.leader()
	if v == nil || ctx.Err() != nil {
		return
	}
	err := k.current(v, callTimeout)
	k.answer(r, err)
	if err == nil {
		s := k.State()
		r.index, r.gen = s.Applied, s.gen.generationID
	}
}

// copiedRequest names an index of a generation.
func copiedRequest(gen generationID, index uint64) []byte {
	return putUint(putBytes(nil, 1, appendGenerationID(nil, gen)), 2, index)
}

// handleCopied waits until the copies of this process have an index.
func (k *Control) handleCopied(ctx context.Context, payload []byte, r *reply) error {
	var gen generationID
	var index uint64
	err := fields(payload, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			gen, err = decodeGenerationID(f.bytes)
		case 2:
			index = f.u
		default:
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	if k.waitFor(ctx, gen, index) != nil || k.State().gen.generationID != gen {
		return nil
	}
	r.drives = k.numbers(k.await(index))
	return nil
}

// waitFor waits until this process has applied what was applied up to index.
func (k *Control) waitFor(ctx context.Context, gen generationID, index uint64) error {
	for {
		changed := k.Changed()
		s := k.State()
		if c := s.gen.compare(gen); s.Initialized() && (c > 0 || c == 0 && s.Applied >= index) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errs.E("cluster", errs.Unavailable, "this process does not know the newest state of the control plane yet")
		case <-k.closing:
			return errs.E("cluster", errs.Unavailable, "the control plane is closed")
		}
	}
}

// copiedElsewhere asks the other processes for the copies that have an index, until there are enough.
func (k *Control) copiedElsewhere(ctx context.Context, index uint64, have []uint16) bool {
	s := k.State()
	here := k.drivesHeard()
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	answers := make(chan []uint16, len(s.nodes))
	waiting := 0
	for _, n := range s.nodes {
		if n.ID == k.self() || !slices.ContainsFunc(s.DrivesOf(n.ID), func(d drive) bool { return slices.Contains(here, d.Num) }) {
			continue
		}
		waiting++
		asking.Go(func() {
			r, err := k.ask(ctx, n.ID, methodCopied, copiedRequest(s.gen.generationID, index), copyTimeout)
			if err != nil {
				answers <- nil
				return
			}
			answers <- r.drives
		})
	}
	for ; waiting > 0; waiting-- {
		have = append(have, <-answers...)
		if s.enoughCopies(here, have) {
			return true
		}
	}
	return s.enoughCopies(here, have)
}

func evacuateRequest(num uint16) []byte { return protowire.AppendVarint(nil, uint64(num)) }

// handleEvacuate moves a voter, if this process leads.
func (k *Control) handleEvacuate(ctx context.Context, payload []byte, r *reply) error {
	v, n := protowire.ConsumeVarint(payload)
	if n < 0 || v > uint64(^uint16(0)) {
		return errMalformed()
	}
	if k.leader() == nil {
		return nil
	}
	k.answer(r, k.evacuateHere(ctx, uint16(v)))
	return nil
}
