package cluster

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// raftTimeout bounds a message of raft between processes: above writeTimeout it would hide a drive that hangs.
const raftTimeout = 3 * time.Second

// transport carries raft's messages: to servers of this process in memory, to those of others over the
// network. The address of a server is its id, wherever it runs.
type transport struct {
	*raft.InmemTransport
	remote *raft.NetworkTransport // nil in a process that is alone
	wire   *wire
	isHere func(raft.ServerAddress) bool
	rpcs   chan raft.RPC // from both
	ended  chan struct{} // closed by cut
	once   sync.Once
}

// newTransport makes the transport of a server. dial is nil in a process that is alone. Its owner cuts it.
func newTransport(id raft.ServerID, dial dialer, isHere func(raft.ServerAddress) bool, log *slog.Logger) *transport {
	_, mem := raft.NewInmemTransportWithTimeout(raft.ServerAddress(id), heartbeat)
	t := &transport{InmemTransport: mem, isHere: isHere, ended: make(chan struct{})}
	if dial == nil {
		return t
	}
	t.wire = newWire(string(id), dial)
	t.remote = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: t.wire, MaxPool: 2, Timeout: raftTimeout, Logger: raftLog(log)})
	t.rpcs = make(chan raft.RPC)
	for _, from := range []<-chan raft.RPC{mem.Consumer(), t.remote.Consumer()} {
		go t.pass(from) // ends with the transport
	}
	return t
}

func (t *transport) pass(from <-chan raft.RPC) {
	for {
		select {
		case rpc := <-from:
			select {
			case t.rpcs <- rpc:
			case <-t.ended: // who sent it waits no longer than for one that is lost
				return
			}
		case <-t.ended:
			return
		}
	}
}

// cut ends the transport: no message leaves any more. It does not wait.
func (t *transport) cut() {
	t.DisconnectAll()
	if t.remote == nil {
		return
	}
	t.once.Do(func() {
		close(t.ended)
		t.remote.Close() //nolint:errcheck // never fails
		t.wire.closeAll()
	})
}

// Close implements raft.WithClose.
func (t *transport) Close() error {
	t.cut()
	return nil
}

func (t *transport) to(target raft.ServerAddress) interface {
	raft.Transport
	raft.WithPreVote
} {
	if t.remote == nil || t.isHere(target) {
		return t.InmemTransport
	}
	return t.remote
}

// Consumer implements raft.Transport, as do the next ones.
func (t *transport) Consumer() <-chan raft.RPC {
	if t.remote == nil {
		return t.InmemTransport.Consumer()
	}
	return t.rpcs
}

// AppendEntriesPipeline opens a pipeline to a server.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.to(target).AppendEntriesPipeline(id, target)
}

// AppendEntries sends entries.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return t.to(target).AppendEntries(id, target, args, resp)
}

// RequestVote asks for a vote.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.to(target).RequestVote(id, target, args, resp)
}

// RequestPreVote asks whether a vote would be given.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.to(target).RequestPreVote(id, target, args, resp)
}

// InstallSnapshot sends a snapshot.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.to(target).InstallSnapshot(id, target, args, resp, data)
}

// TimeoutNow asks a server to lead.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.to(target).TimeoutNow(id, target, args, resp)
}

// SetHeartbeatHandler lets heartbeats of other processes pass what waits for a drive.
func (t *transport) SetHeartbeatHandler(f func(raft.RPC)) {
	if t.remote != nil {
		t.remote.SetHeartbeatHandler(f)
	}
}

// dialer connects to a raft server of another process.
type dialer func(ctx context.Context, id raft.ServerID) (net.Conn, error)

// wire is raft's view of the connections of one server with other processes.
type wire struct {
	id       string
	dial     dialer
	incoming chan net.Conn
	ctx      context.Context
	cancel   context.CancelFunc

	mu    sync.Mutex // guards what follows
	open  map[*tracked]bool
	ended bool
}

func newWire(id string, dial dialer) *wire {
	w := &wire{id: id, dial: dial, incoming: make(chan net.Conn), open: map[*tracked]bool{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// tracked is a connection that ends with its wire.
type tracked struct {
	net.Conn
	w *wire
}

func (c *tracked) Close() error {
	c.w.mu.Lock()
	delete(c.w.open, c)
	c.w.mu.Unlock()
	return c.Conn.Close()
}

var errWireEnded = errs.E("cluster.raft", errs.Unavailable, "the raft server has stopped")

func (w *wire) track(c net.Conn) (net.Conn, error) {
	t := &tracked{c, w}
	w.mu.Lock()
	ended := w.ended
	if !ended {
		w.open[t] = true
	}
	w.mu.Unlock()
	if ended {
		c.Close() //nolint:errcheck // nobody has used it
		return nil, errWireEnded
	}
	return t, nil
}

// Dial implements raft.StreamLayer, as do the next three.
func (w *wire) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(w.ctx, timeout)
	defer cancel()
	c, err := w.dial(ctx, raft.ServerID(to))
	if err != nil {
		return nil, err
	}
	return w.track(c)
}

// Accept returns the next connection of another process.
func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.incoming:
		return w.track(c)
	case <-w.ctx.Done():
		return nil, errWireEnded
	}
}

// Close ends Accept and Dial.
func (w *wire) Close() error {
	w.cancel()
	return nil
}

// Addr returns the server's address.
func (w *wire) Addr() net.Addr { return wireAddr(w.id) }

// serve hands over a connection that another process made.
func (w *wire) serve(c net.Conn) {
	select {
	case w.incoming <- c:
	case <-w.ctx.Done():
		c.Close() //nolint:errcheck // nobody has used it
	}
}

func (w *wire) closeAll() {
	w.mu.Lock()
	w.ended = true
	var list []*tracked
	for c := range w.open {
		list = append(list, c)
	}
	w.mu.Unlock()
	for _, c := range list {
		c.Close() //nolint:errcheck // what is on its way fails, as it should
	}
}

type wireAddr string

func (a wireAddr) Network() string { return "raft" }
func (a wireAddr) String() string  { return string(a) }

// The id of a server of a cluster names its node behind an '@', for those who do not know yet whose the drive
// is. That of a server in memory, on a node without drives, begins with memoryID.

const memoryID = "memory-"

func withNode(id raft.ServerID, node disk.ID) raft.ServerID {
	if node == (disk.ID{}) {
		return id
	}
	return id + "@" + raft.ServerID(hex.EncodeToString(node[:]))
}

// nodeIn returns the node that an id names; zero for none.
func nodeIn(id raft.ServerID) (node disk.ID) {
	_, text, _ := strings.Cut(string(id), "@")
	if b, err := hex.DecodeString(text); err == nil && len(b) == len(node) {
		copy(node[:], b)
	}
	return node
}

// nodeOf returns the node of a server. What the state says of its drive comes first, since a drive may have
// moved. Zero: the one node of a store that never was a cluster.
func (s *State) nodeOf(id raft.ServerID) disk.ID {
	if node, ok := s.NodeOfDrive(driveOf(id)); ok && node != (disk.ID{}) {
		return node
	}
	return nodeIn(id)
}
