package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// fabric joins the processes of a test. Messages between two of them can be lost in either direction, delayed, and
// delivered twice.
type fabric struct {
	mu    sync.Mutex // guards what follows
	up    map[disk.ID]*Control
	lost  map[[2]disk.ID]bool // from, to
	conns map[net.Conn][2]disk.ID
	late  time.Duration // most that a call is delayed
	twice bool          // every call is handled twice
	rnd   *rand.Rand
	calls map[uint16]int // by method
}

func newFabric(t *testing.T) *fabric {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &fabric{up: map[disk.ID]*Control{}, lost: map[[2]disk.ID]bool{}, conns: map[net.Conn][2]disk.ID{}, rnd: rand.New(rand.NewPCG(seed, 1)), calls: map[uint16]int{}}
}

// end is the fabric as one process sees it.
type end struct {
	f    *fabric
	self disk.ID
}

func (e end) Self() disk.ID { return e.self }

// reach returns the process of a node, and whether a message to it and one back arrive.
func (e end) reach(node disk.ID) (k *Control, to, back bool) {
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	k = e.f.up[node]
	return k, k != nil && !e.f.lost[[2]disk.ID{e.self, node}], !e.f.lost[[2]disk.ID{node, e.self}]
}

func (e end) DialRaft(ctx context.Context, node disk.ID, voter string) (net.Conn, error) {
	k, to, back := e.reach(node)
	if !to || !back {
		<-ctx.Done()
		return nil, errs.E("fabric", errs.Timeout, "no answer")
	}
	a, b := net.Pipe()
	e.f.mu.Lock()
	e.f.conns[a], e.f.conns[b] = [2]disk.ID{e.self, node}, [2]disk.ID{e.self, node}
	e.f.mu.Unlock()
	go k.ServeRaft(voter, b)
	return a, nil
}

func (e end) Call(ctx context.Context, node disk.ID, method uint16, payload []byte) ([]byte, error) {
	e.f.mu.Lock()
	e.f.calls[method]++
	wait, twice := time.Duration(0), e.f.twice
	if e.f.late > 0 {
		wait = time.Duration(e.f.rnd.Int64N(int64(e.f.late)))
	}
	e.f.mu.Unlock()
	time.Sleep(wait)
	k, to, _ := e.reach(node)
	if !to {
		<-ctx.Done()
		return nil, errs.E("fabric", errs.Timeout, "no answer")
	}
	if twice {
		k.Handle(ctx, e.self, method, payload) //nolint:errcheck // the second answer counts
	}
	b, err := k.Handle(ctx, e.self, method, payload)
	if _, _, back := e.reach(node); !back || ctx.Err() != nil {
		<-ctx.Done()
		return nil, errs.E("fabric", errs.Timeout, "no answer")
	}
	return b, err
}

// cut loses all messages between the nodes of one side and the others; heal ends that.
func (f *fabric) cut(side ...disk.ID) {
	f.mu.Lock()
	for a := range f.up {
		for b := range f.up {
			if slices.Contains(side, a) != slices.Contains(side, b) {
				f.lost[[2]disk.ID{a, b}] = true
			}
		}
	}
	f.mu.Unlock()
	f.closeLost()
}

// cutOneWay loses the messages of one node to another.
func (f *fabric) cutOneWay(from, to disk.ID) {
	f.mu.Lock()
	f.lost[[2]disk.ID{from, to}] = true
	f.mu.Unlock()
	f.closeLost()
}

func (f *fabric) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = map[[2]disk.ID]bool{}
}

func (f *fabric) closeLost() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c, x := range f.conns {
		if f.lost[x] || f.lost[[2]disk.ID{x[1], x[0]}] || f.up[x[0]] == nil || f.up[x[1]] == nil {
			c.Close()
			delete(f.conns, c)
		}
	}
}

// process is one node of a test.
type process struct {
	f     *fabric
	node  Node
	kvs   map[uint16]*memKV
	extra metadata.KV // instead of the first drive's
	*Control
}

// run opens the process over its drives.
func (p *process) run(t *testing.T) {
	t.Helper()
	var list []DriveStore
	for num, kv := range p.kvs {
		list = append(list, DriveStore{num, kv})
	}
	slices.SortFunc(list, func(a, b DriveStore) int { return int(a.Num) - int(b.Num) })
	k, err := Open(t.Context(), Config{Drives: list, Network: end{p.f, p.node.ID}, Peers: p.f.running})
	if err != nil {
		t.Fatal(err)
	}
	p.Control = k
	p.f.mu.Lock()
	p.f.up[p.node.ID] = k
	p.f.mu.Unlock()
}

func (f *fabric) running() (ids []disk.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.up {
		ids = append(ids, id)
	}
	return ids
}

// stop ends the process; kill does so with what was not synced lost.
func (p *process) stop() {
	p.f.mu.Lock()
	delete(p.f.up, p.node.ID)
	p.f.mu.Unlock()
	p.f.closeLost()
	if p.Control != nil {
		p.Close()
		p.Control = nil
	}
}

func (p *process) kill() {
	after := map[uint16]*memKV{}
	for num, kv := range p.kvs {
		after[num] = kv.crash()
	}
	p.stop()
	p.kvs = after
}

// found makes the first process of a cluster, with so many drives.
func found(t *testing.T, f *fabric, n byte, zone string, drives int) *process {
	t.Helper()
	p := &process{f: f, node: testNode(n, zone), kvs: map[uint16]*memKV{}}
	for i := range drives {
		p.kvs[uint16(i+1)] = newMemKV()
	}
	p.run(t)
	if err := p.Init(t.Context(), [16]byte{9}, testLayout(t, drives), Account{ID: "a"}, testKey); err != nil {
		t.Fatal(err)
	}
	if err := p.BecomeCluster(t.Context(), p.node); err != nil {
		t.Fatal(err)
	}
	return p
}

// join adds a process with so many drives; none makes a gateway.
func join(t *testing.T, f *fabric, n byte, zone string, drives int) *process {
	t.Helper()
	p := &process{f: f, node: testNode(n, zone), kvs: map[uint16]*memKV{}}
	if drives == 0 {
		p.node.Roles = RoleGateway
	}
	p.run(t)
	if err := p.PutNode(t.Context(), p.node); err != nil {
		t.Fatalf("node %d: PutNode: %v", n, err)
	}
	var fresh []NewDrive
	for i := range drives {
		fresh = append(fresh, NewDrive{ID: disk.ID{n, byte(i + 1)}, Capacity: 1 << 30})
	}
	nums, err := p.AddDrives(t.Context(), p.node.ID, fresh)
	if err != nil {
		t.Fatalf("node %d: AddDrives: %v", n, err)
	}
	for _, num := range nums {
		p.kvs[num] = newMemKV()
		p.DriveReturned(DriveStore{num, p.kvs[num]})
	}
	return p
}

// testCluster makes a cluster whose first node has three drives, and the others one each, one node per zone named.
func testCluster(t *testing.T, zones ...string) (*fabric, []*process) {
	t.Helper()
	f := newFabric(t)
	list := []*process{found(t, f, 1, zones[0], 3)}
	for i, zone := range zones[1:] {
		list = append(list, join(t, f, byte(i+2), zone, 1))
	}
	settled(t)
	return f, list
}

// settled waits until the voters are where they ought to be.
func settled(t *testing.T) {
	t.Helper()
	time.Sleep(15 * time.Second)
}

func stopAll(list []*process) {
	for _, p := range list {
		p.stop()
	}
}

// configuration returns raft's, as the leader knows it; nil without one.
func configuration(list []*process) []raft.Server {
	for _, p := range list {
		if p.Control == nil {
			continue
		}
		if v := p.leader(); v != nil {
			if f := v.raft.GetConfiguration(); f.Error() == nil && v.raft.VerifyLeader().Error() == nil {
				return f.Configuration().Servers
			}
		}
	}
	return nil
}

// nodesOf returns the nodes, by their number, that have voters and learners.
func nodesOf(list []*process) (voters, learners []int) {
	for _, x := range configuration(list) {
		node := int(list[0].State().nodeOf(x.ID)[0])
		for _, p := range list {
			if p.Control != nil {
				node = int(p.State().nodeOf(x.ID)[0])
				break
			}
		}
		if x.Suffrage == raft.Voter {
			voters = append(voters, node)
		} else {
			learners = append(learners, node)
		}
	}
	slices.Sort(voters)
	slices.Sort(learners)
	return voters, learners
}

func leading(list []*process) *process {
	for _, p := range list {
		if p.Control != nil {
			if v := p.leader(); v != nil && v.raft.VerifyLeader().Error() == nil {
				return p
			}
		}
	}
	return nil
}

func wantNodes(t *testing.T, what string, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s are on nodes %v, want %v", what, got, want)
	}
}

func TestAClusterOfThreeHasAVoterOnEachNodeAndChangesAreMadeOnAny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "", "", "")
		defer stopAll(list)
		voters, learners := nodesOf(list)
		wantNodes(t, "the voters", voters, 1, 2, 3)
		wantNodes(t, "the learners", learners)
		for i, p := range list {
			name := fmt.Sprint("bucket-", i)
			b, err := p.CreateBucket(t.Context(), Bucket{Name: name, Owner: "a"})
			if err != nil {
				t.Fatalf("node %d: %v", i+1, err)
			}
			// Who was answered reads what it wrote.
			if is, ok := p.State().Bucket(name); !ok || is.ID != b.ID {
				t.Errorf("node %d: the bucket is %+v, %v", i+1, is, ok)
			}
			if _, err := p.CreateBucket(t.Context(), Bucket{Name: name, Owner: "b"}); !errs.Is(err, errs.Exists) {
				t.Errorf("node %d: a second bucket of the name: %v", i+1, err)
			} else if was, ok := ExistingBucket(err); !ok || was.ID != b.ID {
				t.Errorf("node %d: in the way is %+v", i+1, was)
			}
		}
		for i, p := range list {
			if err := p.Refresh(t.Context()); err != nil {
				t.Errorf("node %d: Refresh: %v", i+1, err)
			}
			if n := len(p.State().Buckets()); n != 3 {
				t.Errorf("node %d has %d buckets", i+1, n)
			}
		}
	})
}
