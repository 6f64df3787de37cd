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
	"github.com/ostraka/ostraka/placement"
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
	f    *fabric
	node Node
	kvs  map[uint16]*memKV
	*Control
	unknown opCode // that its build does not know
}

// run opens the process over its drives.
func (p *process) run(t *testing.T) {
	t.Helper()
	var list []DriveStore
	for num, kv := range p.kvs {
		list = append(list, DriveStore{num, kv})
	}
	slices.SortFunc(list, func(a, b DriveStore) int { return int(a.Num) - int(b.Num) })
	k, err := Open(t.Context(), Config{Drives: list, Network: end{p.f, p.node.ID}, Peers: p.f.running, forgetAfter: 2 * awayAfter, unknown: p.unknown})
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
		node := int(leading(list).State().nodeOf(x.ID)[0])
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

// createOn creates a bucket, trying again while the answer is that a retry may succeed.
func createOn(t *testing.T, p *process, name string) {
	t.Helper()
	createWithin(t, p.Control, 20*time.Second, name)
}

// wantBuckets checks that a process knows so many buckets, after asking the leader.
func wantBuckets(t *testing.T, p *process, n int) {
	t.Helper()
	if err := p.Refresh(t.Context()); err != nil {
		t.Errorf("node %d: Refresh: %v", p.node.ID[0], err)
	}
	if got := len(p.State().Buckets()); got != n {
		t.Errorf("node %d has %d buckets, want %d", p.node.ID[0], got, n)
	}
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

func TestVotersAreSpreadOverZonesAndNodes(t *testing.T) {
	for name, c := range map[string]struct {
		zones            []string
		voters, learners []int
	}{
		"two nodes: the first keeps what it has, and one goes over": {[]string{"", ""}, []int{1, 1, 2}, nil},
		"three of four nodes, in as many zones":                     {[]string{"a", "a", "b", "c"}, []int{1, 3, 4}, []int{2}},
		"five nodes":                                                {[]string{"a", "a", "b", "b", "b"}, []int{1, 2, 3, 4, 5}, nil},
		"of two zones one has two":                                  {[]string{"a", "b", "a", "a"}, []int{1, 2, 3}, []int{4}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, list := testCluster(t, c.zones...)
				defer stopAll(list)
				voters, learners := nodesOf(list)
				wantNodes(t, "the voters", voters, c.voters...)
				wantNodes(t, "the learners", learners, c.learners...)
				for i, p := range list {
					createOn(t, p, fmt.Sprint("bucket-", i))
				}
			})
		})
	}
}

func TestAGatewayLearnsInMemoryAndAsksTheLeaderBeforeItSaysNo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, list := testCluster(t, "", "", "")
		g := join(t, f, 9, "", 0)
		list = append(list, g)
		defer func() { stopAll(list) }()
		settled(t)
		voters, learners := nodesOf(list)
		wantNodes(t, "the voters", voters, 1, 2, 3)
		wantNodes(t, "the learners", learners, 9)
		if _, err := g.CreateBucket(t.Context(), Bucket{Name: "mine"}); err != nil {
			t.Errorf("a bucket made on the gateway: %v", err)
		}
		// What was answered elsewhere is known here after asking, at once.
		for i := range 5 {
			name := fmt.Sprint("bucket-", i)
			createOn(t, list[i%3], name)
			if err := g.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := g.State().Bucket(name); !ok {
				t.Errorf("%s is not known", name)
			}
		}
		// One that is cut off must not say that there is no such bucket.
		f.cut(g.node.ID)
		createOn(t, list[1], "unseen")
		if err := g.Refresh(t.Context()); !errs.Is(err, errs.Unavailable) {
			t.Errorf("Refresh without the others: %v, want Unavailable", err)
		}
		if _, ok := g.State().Bucket("bucket-1"); !ok {
			t.Error("what it knew it does not serve")
		}
		if _, err := g.CreateBucket(t.Context(), Bucket{Name: "x"}); !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
			t.Errorf("a change without the others: %v", err)
		}
		f.heal()
		time.Sleep(5 * time.Second)
		if err := g.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := g.State().Bucket("unseen"); !ok {
			t.Error("what it missed is not known")
		}
		// A gateway that starts again is another node; the former one is forgotten after a while.
		g.stop()
		again := join(t, f, 10, "", 0)
		list[3] = again
		time.Sleep(2 * awayAfter)
		_, learners = nodesOf(list)
		wantNodes(t, "the learners", learners, 10)
		time.Sleep(awayAfter)
		if _, ok := list[0].State().Node(g.node.ID); ok {
			t.Error("a gateway that was gone for long is still known")
		}
		if _, ok := list[0].State().Node(again.node.ID); !ok {
			t.Error("a gateway that is here was forgotten")
		}
	})
}

// A node that has lost its last drive, for a while or because it was drained, still learns what is decided.
func TestANodeWhoseDrivesAreGoneLearnsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "", "", "", "")
		defer stopAll(list)
		gone := list[3]
		num := gone.State().DrivesOf(gone.node.ID)[0].Num
		gone.DriveLost(num)
		time.Sleep(2 * awayAfter)
		createOn(t, list[0], "while-it-is-away")
		wantBuckets(t, gone, 1)
		createOn(t, gone, "made-there")
		gone.DriveReturned(DriveStore{num, gone.kvs[num]})
		time.Sleep(30 * time.Second)
		_, learners := nodesOf(list)
		wantNodes(t, "the learners", learners, 4)
		for _, x := range configuration(list) {
			if driveOf(x.ID) == 0 {
				t.Errorf("%s is still a member, although the drive is back", x.ID)
			}
		}
		createOn(t, list[1], "afterwards")
		wantBuckets(t, gone, 3)
	})
}

func TestTheLossOfALeadersNodeStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "", "", "", "")
		defer stopAll(list)
		for round := range 3 {
			gone := leading(list)
			for i, p := range list {
				createOn(t, p, fmt.Sprintf("before-%d-%d", round, i))
			}
			gone.kill()
			for i, p := range list {
				if p != gone {
					createOn(t, p, fmt.Sprintf("after-%d-%d", round, i))
				}
			}
			gone.run(t)
			time.Sleep(10 * time.Second)
			for _, p := range list {
				wantBuckets(t, p, 7*(round+1))
			}
		}
		voters, learners := nodesOf(list)
		if len(voters) != 3 || len(learners) != 1 {
			t.Errorf("voters on %v, learners on %v", voters, learners)
		}
	})
}

func TestAMinorityReadsAndCannotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, list := testCluster(t, "", "", "")
		defer stopAll(list)
		for round := range 3 { // whichever leads
			alone := list[round]
			createOn(t, alone, fmt.Sprint("before-", round))
			f.cut(alone.node.ID)
			if _, err := alone.CreateBucket(t.Context(), Bucket{Name: "never"}); !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
				t.Errorf("a change on the minority: %v", err)
			}
			if err := alone.Refresh(t.Context()); !errs.Is(err, errs.Unavailable) {
				t.Errorf("Refresh on the minority: %v", err)
			}
			if _, ok := alone.State().Bucket(fmt.Sprint("before-", round)); !ok {
				t.Error("the minority does not serve what it knows")
			}
			createOn(t, list[(round+1)%3], fmt.Sprint("during-", round))
			f.heal()
			time.Sleep(15 * time.Second)
			wantBuckets(t, alone, 2*(round+1))
			if _, ok := alone.State().Bucket("never"); ok {
				t.Error("a change that could not be made was made later")
			}
		}
	})
}

// While the leader's messages to one node are lost, but not those of that node, changes go on everywhere else.
func TestAOneWayPartitionStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, list := testCluster(t, "", "", "")
		defer stopAll(list)
		for i, to := range list {
			from := leading(list)
			if from == to {
				continue
			}
			f.cutOneWay(from.node.ID, to.node.ID)
			for j, p := range list {
				if p != to {
					createOn(t, p, fmt.Sprintf("bucket-%d-%d", i, j))
				}
			}
			f.heal()
			time.Sleep(10 * time.Second)
		}
		n := len(leading(list).State().Buckets())
		for _, p := range list {
			wantBuckets(t, p, n)
		}
	})
}

// Calls are delayed and delivered twice, nodes die and are cut off: no change is made twice, none that was answered is lost,
// and of each name there is one bucket.
func TestChangesOnManyNodesUnderFaultsAreMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, list := testCluster(t, "", "", "", "")
		list = append(list, join(t, f, 9, "", 0))
		defer stopAll(list)
		f.mu.Lock()
		f.late, f.twice = 100*time.Millisecond, true
		f.mu.Unlock()
		var wg sync.WaitGroup
		var mu sync.Mutex // guards what follows
		made := map[string]uint64{}
		shared, doubtful := map[string]int{}, map[string]bool{}
		controls := make([]*Control, len(list)) // those that are not stopped below
		for i, p := range list {
			controls[i] = p.Control
		}
		for i, k := range controls {
			if i == 2 {
				continue
			}
			wg.Go(func() {
				for n := range 25 {
					own := fmt.Sprintf("own-%d-%d", i, n)
					b, err := k.CreateBucket(t.Context(), Bucket{Name: own})
					switch {
					case err == nil:
						mu.Lock()
						made[own] = b.ID
						mu.Unlock()
					case !errs.Is(err, errs.Unknown) && !errs.Is(err, errs.Unavailable):
						t.Errorf("%s: %v", own, err)
					}
					name := fmt.Sprint("shared-", n)
					_, err = k.CreateBucket(t.Context(), Bucket{Name: name, Owner: fmt.Sprint(i)})
					mu.Lock()
					if err == nil {
						shared[name]++
					} else if !errs.Is(err, errs.Exists) {
						doubtful[name] = true
					}
					mu.Unlock()
				}
			})
		}
		wg.Go(func() {
			for i := range 6 {
				time.Sleep(2 * time.Second)
				switch i % 3 {
				case 0:
					list[2].kill()
					time.Sleep(time.Second)
					list[2].run(t)
				case 1:
					f.cut(list[i%2].node.ID)
					time.Sleep(4 * time.Second)
					f.heal()
				case 2:
					if p := leading(list); p != nil {
						f.cut(p.node.ID)
						time.Sleep(3 * time.Second)
						f.heal()
					}
				}
			}
		})
		wg.Wait()
		time.Sleep(10 * time.Second)
		for _, p := range list {
			if err := p.Refresh(t.Context()); err != nil {
				t.Fatalf("node %d: %v", p.node.ID[0], err)
			}
			for name, id := range made {
				if b, ok := p.State().Bucket(name); !ok || b.ID != id {
					t.Errorf("node %d: %s was answered with id %d, and is %d", p.node.ID[0], name, id, b.ID)
				}
			}
		}
		for name, n := range shared {
			if n > 1 || n == 0 && !doubtful[name] {
				t.Errorf("%s was made %d times", name, n)
			}
		}
		if len(made) < 50 {
			t.Errorf("only %d of 100 were answered", len(made))
		}
	})
}

func TestTheVoterOfANodeThatStaysAwayMovesAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "a", "b", "c", "c")
		defer stopAll(list)
		list[2].kill()
		time.Sleep(awayAfter / 2)
		voters, _ := nodesOf(list)
		wantNodes(t, "half a minute later the voters", voters, 1, 2, 3)
		time.Sleep(awayAfter)
		voters, _ = nodesOf(list)
		wantNodes(t, "the voters", voters, 1, 2, 4)
		createOn(t, list[3], "during")
		list[2].run(t)
		time.Sleep(20 * time.Second)
		voters, learners := nodesOf(list)
		wantNodes(t, "the voters", voters, 1, 2, 4)
		wantNodes(t, "the learners", learners, 3)
		wantBuckets(t, list[2], 1)
	})
}

// A drive of a node is replaced from another node: the voter leaves it before it is closed, and the node keeps a server.
func TestTheVoterLeavesADriveThatIsReplacedFromAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "", "", "")
		defer stopAll(list)
		for i, p := range list[1:] {
			old := p.State().DrivesOf(p.node.ID)[0].Num
			from := list[(i+2)%3]
			r, err := from.BeginReplace(t.Context(), old, newDrive(uint64(40+i)), "/p")
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range configuration(list) {
				if driveOf(x.ID) == old && x.Suffrage == raft.Voter {
					t.Errorf("the voter is on drive %d still: %v", old, x.ID)
				}
			}
			p.DriveLost(old)
			delete(p.kvs, old)
			p.kvs[r.New] = newMemKV()
			p.DriveReturned(DriveStore{r.New, p.kvs[r.New]})
			settled(t)
			voters, _ := nodesOf(list)
			wantNodes(t, "the voters", voters, 1, 2, 3)
			createOn(t, p, fmt.Sprint("bucket-", i))
		}
	})
}

// A voter whose rows are lost or damaged never returns under its id.
func TestAVoterWhoseRowsAreLostIsReplacedOverNodes(t *testing.T) {
	for _, how := range []string{"lost", "damaged"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, list := testCluster(t, "", "", "")
				defer stopAll(list)
				createOn(t, list[0], "aaa")
				for _, p := range list[1:] {
					num := p.State().DrivesOf(p.node.ID)[0].Num
					var was raft.ServerID
					for _, x := range configuration(list) {
						if driveOf(x.ID) == num {
							was = x.ID
						}
					}
					p.kill()
					if how == "lost" {
						p.kvs[num] = newMemKV()
					} else {
						for key, v := range p.kvs[num].rows {
							if key[1] == rowLog || key[1] == rowStable {
								v[len(v)-1] ^= 1
							}
						}
					}
					p.run(t)
					settled(t)
					for _, x := range configuration(list) {
						if x.ID == was {
							t.Errorf("%s is a member again", was)
						}
					}
					voters, _ := nodesOf(list)
					wantNodes(t, "the voters", voters, 1, 2, 3)
					wantBuckets(t, p, 1)
				}
			})
		})
	}
}

// What was answered survives the loss of as many drives, or whole nodes, as the profile allows, whoever is left: it is in
// the copies that are left.
func TestAnAnsweredChangeIsInCopiesOnOtherNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "", "", "", "")
		defer stopAll(list)
		for n := range 12 {
			p := list[n%4]
			name := fmt.Sprint("bucket-", n)
			if _, err := p.CreateBucket(t.Context(), Bucket{Name: name}); err != nil {
				t.Fatal(err)
			}
			// A power cut everywhere, at the moment of the answer.
			var have []uint16
			for _, q := range list {
				for num, kv := range q.kvs {
					if s, err := readCopy(kv.crash()); err == nil && s != nil {
						if _, ok := s.Bucket(name); ok {
							have = append(have, num)
						}
					}
				}
			}
			s := p.State()
			if !s.enoughCopies(s.lasting(), have) {
				t.Errorf("%s was answered and is on drives %v only", name, have)
			}
		}
	})
}

func TestEnoughCopies(t *testing.T) {
	s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 4)}, &command{op: opBecomeCluster, node: testNode(1, "")}) // 2+2
	for n := byte(2); n <= 4; n++ {
		s, _ = applyAll(s, &command{op: opPutNode, node: testNode(n, "")},
			&command{op: opAddDrives, node: Node{ID: disk.ID{n}}, drives: []placement.Drive{newDrive(uint64(n) * 2), newDrive(uint64(n)*2 + 1)}})
	}
	// Node 1 has drives 1–4, node 2 has 5 and 6, node 3 has 7 and 8, node 4 has 9 and 10. Two may be lost.
	all := s.lasting()
	for _, c := range []struct {
		here, have []uint16
		enough     bool
	}{
		{all, []uint16{1, 5, 7}, true},
		{all, []uint16{1, 2, 3, 4}, false},    // one node
		{all, []uint16{1, 2, 3, 4, 5}, false}, // two nodes, which may both be lost
		{all, []uint16{1, 5}, false},
		{[]uint16{1, 2, 3, 4}, []uint16{1, 2}, true},              // three nodes are away: all that are left may not be lost
		{[]uint16{1, 2, 3, 4, 5, 6}, []uint16{1, 2}, true},        // two nodes are away
		{[]uint16{1, 2, 3, 4, 5, 6, 7, 8}, []uint16{1, 2}, false}, // one node is away: one more may be
		{[]uint16{1, 2, 3, 4, 5, 6, 7, 8}, []uint16{1, 5}, true},
	} {
		if got := s.enoughCopies(c.here, c.have); got != c.enough {
			t.Errorf("of %v, %v have it: enough is %v", c.here, c.have, got)
		}
	}
}

// Voters are lost for good: nothing can be changed, everything is read, and an operator begins anew from one node. Those
// that were lost may return.
func TestAClusterWithoutAMajorityIsRecoveredFromTheNodesThatAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, list := testCluster(t, "", "", "", "")
		list = append(list, join(t, f, 9, "", 0))
		defer stopAll(list)
		createOn(t, list[0], "aaa")
		settled(t)
		voters, _ := nodesOf(list)
		if _, err := list[3].PlanRecovery(); !errs.Is(err, errs.Precondition) {
			t.Errorf("a recovery while all is well: %v", err)
		}
		var left, gone []*process
		for _, p := range list {
			if slices.Contains(voters[:2], int(p.node.ID[0])) {
				gone = append(gone, p)
			} else {
				left = append(left, p)
			}
		}
		for _, p := range gone {
			p.kill()
		}
		for _, p := range left {
			if _, err := p.CreateBucket(t.Context(), Bucket{Name: "never"}); !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
				t.Errorf("a change without a majority: %v", err)
			}
			if err := p.Refresh(t.Context()); !errs.Is(err, errs.Unavailable) {
				t.Errorf("Refresh without a majority: %v", err)
			}
			if _, ok := p.State().Bucket("aaa"); !ok {
				t.Error("aaa is not served")
			}
		}
		r, err := left[0].Recover(t.Context())
		if err != nil || r.Generation != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		settled(t)
		for _, p := range left {
			createOn(t, p, fmt.Sprint("after-", p.node.ID[0]))
		}
		want := 1 + len(left)
		for _, p := range left {
			wantBuckets(t, p, want)
		}
		for _, p := range gone {
			p.run(t)
		}
		time.Sleep(30 * time.Second)
		for _, p := range list {
			wantBuckets(t, p, want)
			if p.State().gen.number != 1 {
				t.Errorf("node %d is of generation %d", p.node.ID[0], p.State().gen.number)
			}
		}
		now, learners := nodesOf(list)
		if len(now) != 3 || now[0] == now[1] || now[1] == now[2] || len(learners) != 2 {
			t.Errorf("voters on %v, learners on %v", now, learners)
		}
		createOn(t, gone[0], "last")
	})
}

// A store that was one process opens as it is, and becomes the first node of a cluster.
func TestAnOldStoreBecomesTheFirstNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kvs := mem(3)
		k := openOn(t, kvs[0], kvs[1], kvs[2])
		createWithin(t, k, time.Second, "aaa")
		settle(k)
		f := newFabric(t)
		p := &process{f: f, node: testNode(1, "z"), kvs: map[uint16]*memKV{1: kvs[0].crash(), 2: kvs[1].crash(), 3: kvs[2].crash()}}
		p.run(t)
		createOn(t, p, "bbb")
		if err := p.BecomeCluster(t.Context(), p.node); err != nil {
			t.Fatal(err)
		}
		settled(t)
		if ids := members(t, p.Control); !slices.Equal(ids, []string{voterID(1), voterID(2), voterID(3)}) {
			t.Errorf("the voters are %v", ids)
		}
		list := []*process{p, join(t, f, 2, "y", 2), join(t, f, 3, "x", 2)}
		defer stopAll(list)
		settled(t)
		voters, _ := nodesOf(list)
		wantNodes(t, "the voters", voters, 1, 2, 3)
		for _, q := range list {
			wantBuckets(t, q, 2)
		}
		for _, q := range list {
			q.kill()
		}
		for _, q := range list {
			q.run(t)
		}
		createOn(t, list[2], "ccc")
	})
}

// A gateway has a new id at each start. It is listed once all the same, soon after. One at another address, and nodes with
// drives, are not forgotten as soon.
func TestAGatewayThatStartsAgainIsListedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, list := testCluster(t, "", "")
		defer func() { stopAll(list) }()
		a, b, c := join(t, f, 7, "", 0), join(t, f, 8, "", 0), &process{f: f, node: testNode(9, ""), kvs: map[uint16]*memKV{}}
		a.stop()
		b.stop()
		c.node.Roles, c.node.Address = RoleGateway, a.node.Address
		c.run(t)
		list = append(list, c)
		if err := c.PutNode(t.Context(), c.node); err != nil {
			t.Fatal(err)
		}
		time.Sleep(awayAfter + 20*time.Second)
		var ids []byte
		for _, n := range list[0].State().Nodes() {
			ids = append(ids, n.ID[0])
		}
		if want := []byte{1, 2, 8, 9}; !slices.Equal(ids, want) {
			t.Errorf("the nodes are %v, want %v", ids, want)
		}
	})
}

func TestANodeThatWasRemovedIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, list := testCluster(t, "", "")
		g := join(t, f, 9, "", 0)
		list = append(list, g)
		defer stopAll(list)
		settled(t)
		if err := list[1].RemoveNode(t.Context(), list[0].node.ID); !errs.Is(err, errs.Precondition) {
			t.Errorf("removing a node with drives: %v", err)
		}
		if err := list[1].RemoveNode(t.Context(), g.node.ID); err != nil {
			t.Fatal(err)
		}
		settled(t)
		_, learners := nodesOf(list)
		wantNodes(t, "the learners", learners)
		if _, err := g.CreateBucket(t.Context(), Bucket{Name: "x"}); err == nil {
			t.Error("a node that was removed made a bucket")
		}
		if err := g.Refresh(t.Context()); err == nil {
			t.Error("a node that was removed was told the state")
		}
	})
}

// threeVoters is a cluster of three nodes with a drive and a voter each, one of them retired. One is away for long, unless that is 0.
func threeVoters(t *testing.T, retired, away uint16) *membership {
	t.Helper()
	s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 1)}, &command{op: opBecomeCluster, node: testNode(1, "a")},
		&command{op: opPutNode, node: testNode(2, "b")}, &command{op: opAddDrives, node: Node{ID: disk.ID{2}}, drives: []placement.Drive{newDrive(11)}},
		&command{op: opPutNode, node: testNode(3, "c")}, &command{op: opAddDrives, node: Node{ID: disk.ID{3}}, drives: []placement.Drive{newDrive(12)}})
	next := *s
	next.retire(retired)
	m := &membership{s: &next, heard: map[disk.ID]heard{}, silent: func(disk.ID) bool { return false },
		bad: func(num uint16) bool { return next.Retired(num) || num == away }}
	for _, n := range next.Nodes() {
		h := heard{drives: map[uint16]onDrive{}, current: true}
		for _, d := range next.DrivesOf(n.ID) {
			id := raft.ServerID(voterID(d.Num))
			m.servers = append(m.servers, raft.Server{ID: id, Suffrage: raft.Voter})
			if d.Num != away {
				h.drives[d.Num] = onDrive{id, true}
			}
		}
		m.heard[n.ID] = h
	}
	if len(m.servers) != 3 {
		t.Fatalf("%d voters, want 3", len(m.servers))
	}
	return m
}

// A drive is drained of three, so that one voter is wanted and no longer three. Whichever it is, its voter goes before one
// that serves: of two voters, one of them on a drive that is closed, there is no majority.
func TestTheVoterOfADriveThatIsRetiredGoesBeforeOnesThatServe(t *testing.T) {
	for retired := uint16(1); retired <= 3; retired++ {
		if st, _ := threeVoters(t, retired, 0).next(); st.kind != remove || driveOf(st.id) != retired {
			t.Errorf("drive %d is retired, and the next step is: %v %s; want its voter to go", retired, st.kind, st.id)
		}
	}
}

// Of three voters one serves, one is on a drive that is retired and still open, and one is away for long. The one that is away
// goes first: of the other two with it there would be no majority once the drive is closed, or the leader is lost.
func TestTheVoterThatIsAwayGoesBeforeTheOneThatStillRuns(t *testing.T) {
	for retired := uint16(1); retired <= 3; retired++ {
		for away := uint16(1); away <= 3; away++ {
			if away == retired {
				continue
			}
			if st, _ := threeVoters(t, retired, away).next(); st.kind != remove || driveOf(st.id) != away {
				t.Errorf("drive %d is retired, and drive %d away: the next step is %v %s; want the vote of the one that is away to go", retired, away, st.kind, st.id)
			}
		}
	}
}

// From any beginning, what next asks for leads to voters on as many zones and nodes as there can be, and to one server on every node.
func TestMembershipComesToRest(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	for range 300 {
		nodes, zones := 1+rnd.IntN(7), 1+rnd.IntN(4)
		s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 1+rnd.IntN(4))}, &command{op: opBecomeCluster, node: testNode(1, "z0")})
		id := uint64(10)
		for n := 2; n <= nodes; n++ {
			var fresh []placement.Drive
			for range 1 + rnd.IntN(2) {
				id++
				fresh = append(fresh, newDrive(id))
			}
			s, _ = applyAll(s, &command{op: opPutNode, node: testNode(byte(n), fmt.Sprint("z", rnd.IntN(zones)))},
				&command{op: opAddDrives, node: Node{ID: disk.ID{byte(n)}}, drives: fresh})
		}
		m := &membership{s: s, heard: map[disk.ID]heard{}, silent: func(disk.ID) bool { return false }}
		away := map[uint16]bool{}
		m.bad = func(num uint16) bool { return away[num] }
		for _, n := range s.Nodes() {
			h := heard{drives: map[uint16]onDrive{}, current: true}
			dead := n.ID != (disk.ID{1}) && rnd.IntN(5) == 0
			for _, d := range s.DrivesOf(n.ID) {
				server := raft.ServerID(voterID(d.Num))
				if rnd.IntN(2) == 0 { // something is a member at first
					m.servers = append(m.servers, raft.Server{ID: server, Address: raft.ServerAddress(server), Suffrage: raft.ServerSuffrage(rnd.IntN(2))})
				} else if rnd.IntN(2) == 0 {
					server = ""
				}
				h.drives[d.Num] = onDrive{server, server != ""}
				away[d.Num] = dead
			}
			if !dead {
				m.heard[n.ID] = h
			}
		}
		if len(m.servers) == 0 {
			m.servers = []raft.Server{{ID: "drive-1-1"}}
			m.heard[disk.ID{1}].drives[1] = onDrive{"drive-1-1", true}
		}
		rest := false
		for range 100 {
			st, start := m.next()
			for _, num := range start {
				node, _ := s.NodeOfDrive(num)
				if on := m.heard[node].drives[num]; on.server == "" {
					m.heard[node].drives[num] = onDrive{raft.ServerID(voterID(num) + "-new"), true}
				}
			}
			i := slices.IndexFunc(m.servers, func(x raft.Server) bool { return x.ID == st.id })
			switch st.kind {
			case noStep:
				rest = len(start) == 0
			case addLearner:
				m.servers = append(m.servers, raft.Server{ID: st.id, Suffrage: raft.Nonvoter})
			case addVoter:
				m.servers[i].Suffrage = raft.Voter
			case demote:
				m.servers[i].Suffrage = raft.Nonvoter
			case remove:
				m.servers = slices.Delete(m.servers, i, i+1)
			}
			if rest {
				break
			}
		}
		if !rest {
			t.Fatalf("%d nodes: no rest: %v", nodes, m.servers)
		}
		alive, zonesAlive := map[disk.ID]bool{}, map[string]bool{}
		for _, n := range s.Nodes() {
			if _, ok := m.heard[n.ID]; ok {
				alive[n.ID], zonesAlive[n.Zone] = true, true
			}
		}
		voterNodes, voterZones, voters, has := map[disk.ID]bool{}, map[string]bool{}, 0, map[disk.ID]bool{}
		for _, x := range m.servers {
			node := s.nodeOf(x.ID)
			has[node] = true
			if n, _ := s.Node(node); x.Suffrage == raft.Voter && alive[node] {
				voters++
				voterNodes[node], voterZones[n.Zone] = true, true
			}
		}
		for n := range alive {
			if !has[n] {
				t.Errorf("node %d has no server: %v", n[0], m.servers)
			}
		}
		want := s.clusterVoters()
		if voters >= want && len(voterZones) != min(voters, len(zonesAlive)) {
			t.Errorf("%d voters are in %d of %d zones: %v", voters, len(voterZones), len(zonesAlive), m.servers)
		}
		if voters > want {
			t.Errorf("%d voters, want %d: %v", voters, want, m.servers)
		}
	}
}
