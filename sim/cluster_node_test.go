package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// Sizes and periods of a simulated cluster: those of the product, but for what would only make a run dearer.
const (
	clusterOrphanEvery = 4 * time.Minute
	clusterOrphanAge   = 3 * time.Minute
	suspectAfter       = 5 * time.Second // a node that does not answer
	controlMethods     = 64
	checkMethod        = rpc.Method(1000 + controlMethods) // notes about the complete check
)

// machine is one computer of a cluster: its drives, its clock, and the process that runs there, if one does.
type machine struct {
	w      *world
	num    int
	name   string
	zone   string
	fs     *simFS
	drives []*simDrive // none: a gateway
	links  *links
	skew   atomic.Int64 // of its clock, in nanoseconds

	cur  *server // guarded by world.mu; nil while no process runs
	dead bool    // guarded by world.mu: for good
	// booting: somebody starts it. Guarded by world.mu.
	booting bool
	back    bool    // guarded by world.mu: it was given up, and starts with all of its drives all the same
	dark    bool    // guarded by wires.mu: without power, so that nothing refuses a connection
	id      disk.ID // guarded by wires.mu: of the newest process; a gateway draws one each time
}

func (m *machine) now() time.Time { return time.Now().Add(time.Duration(m.skew.Load())) }

// member is what makes a process one of a cluster.
type member struct {
	s       *server
	m       *machine
	n       *wires
	id      disk.ID
	peers   *rpc.Peers
	rpc     *rpc.Server
	fleet   *node.Fleet
	control atomic.Pointer[cluster.Control]
	serving sync.WaitGroup // connections; added to under wires.mu while the process is on the network

	// mu guards the fields below: what this process believes of the others, as gossip would tell it.
	mu   sync.Mutex
	seen map[disk.ID]sighting
}

// sighting is what is believed of another node.
type sighting struct {
	last   time.Time
	drives []uint16 // that it says are open
}

// start starts the process of a machine over what its drives hold.
func (m *machine) start(ctx context.Context, founder bool) (_ *server, err error) {
	w := m.w
	s := &server{w: w, links: m.links, clock: m.now, asked: make(chan struct{}, 1), prepared: map[uint64]uint16{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if paths := m.paths(); len(paths) == 0 {
		s.set = node.NoDrives()
	} else {
		s.set, err = node.OpenSet(ctx, paths, node.Options{
			FS: m.fs, WatchEvery: 10 * time.Second, Now: m.now, Logger: w.log, Join: !founder,
			Disk: disk.Options{MemTableSize: 512 << 10, SweepEvery: 20 * time.Second},
			OnLost: func(num uint16, err error) {
				w.tracef("%s: drive %d lost: %v", m.name, num, err)
				if c := s.raftNow.Load(); c != nil {
					c.DriveLost(num)
				}
			},
			OnReturn: func(num uint16) {
				if c := s.raftNow.Load(); c != nil {
					if d, ok := s.set.Local(num); ok {
						c.DriveReturned(cluster.DriveStore{Num: num, KV: d.Control()})
					}
				}
				if h := s.healer.Load(); h != nil {
					h.Returned(num)
				}
			},
		})
		if err != nil {
			s.set = nil
			return nil, err
		}
	}
	s.enlist(m)
	if err := s.openNode(ctx, founder); err != nil {
		return nil, err
	}
	for _, d := range s.set.Open() {
		if s.control.Retired(d.Num()) {
			s.raft.DriveLost(d.Num())
		}
	}
	s.set.SetRetired(s.control.Retired)
	s.set.SetEpoch(func(drive uint16, partition uint32) (uint64, bool) {
		l := s.control.Layout()
		if l == nil || partition >= l.Partitions() || s.control.Retired(drive) {
			return 0, false
		}
		g := l.Group(partition)
		return g.Epoch, g.Position(drive) >= 0
	})
	s.member.look()
	s.mover = metadata.NewClient(metadata.ClientConfig{Replicas: hereDrives{s.member}, Logger: w.log})
	s.assemble(s.member.fleet, heal.Config{Drives: hereDrives{s.member}, Moves: planMover{s.raft}, Mover: s.mover, Retired: s.control.Retired,
		Checks: leaderChecks{s.member}, OrphanEvery: clusterOrphanEvery, OrphanAge: clusterOrphanAge})
	s.healing.Go(s.member.follow)
	s.healing.Go(s.member.introduce)
	return s, nil
}

// paths are the directories of the drives that are not given up. An operator takes those out that were drained.
func (m *machine) paths() (list []string) {
	g := m.w.grid
	drained := func(num uint16) bool {
		return num > 0 && slices.ContainsFunc(g.running(), func(s *server) bool {
			c := s.member.control.Load()
			return c != nil && c.State().Retired(num)
		})
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	for _, d := range m.drives {
		if m.back || !drained(d.num) {
			list = append(list, d.dir)
		}
	}
	return list
}

// enlist puts the process on the network.
func (s *server) enlist(m *machine) {
	n := m.w.grid.wires
	id := s.set.Node()
	n.mu.Lock()
	if id.IsZero() {
		id = m.id
	}
	if id.IsZero() || len(s.set.Status()) == 0 {
		id = disk.NewID()
	}
	m.id, m.dark = id, false
	n.mu.Unlock()
	x := &member{s: s, m: m, n: n, id: id, seen: map[disk.ID]sighting{}}
	s.member = x
	if m.w.grid.cluster.IsZero() {
		m.w.grid.cluster = s.set.Cluster() // of the founder
	}
	self := rpc.Identity{Cluster: m.w.grid.cluster, Node: id}
	mux := rpc.NewMux()
	for method := rpc.Method(1000); method < 1000+controlMethods; method++ {
		mux.Handle(method, func(ctx context.Context, from rpc.Peer, payload []byte) ([]byte, error) {
			c := x.control.Load()
			if c == nil {
				return nil, errs.E("sim", errs.Unavailable, "the node is starting")
			}
			return c.Handle(ctx, from.Node, uint16(method), payload)
		})
	}
	mux.Handle(checkMethod, func(_ context.Context, _ rpc.Peer, note []byte) ([]byte, error) {
		h := s.healer.Load()
		if h == nil {
			return nil, errs.E("sim", errs.Unavailable, "the node is starting")
		}
		return h.CheckAnswer(note)
	})
	served := gateway{m.links, s.set}
	node.Serve(mux, served.Shards, node.ServeOptions{})
	x.rpc = rpc.NewServer(rpc.ServerConfig{Mux: mux, Self: self, Logger: m.w.log})
	x.peers = rpc.NewPeers(x.dialRPC, rpc.ClientConfig{Self: self, Logger: m.w.log})
	x.fleet = node.NewFleet(node.FleetConfig{Self: id, Local: served, Client: x.peers.Client})
	n.begin(s)
}

// openNode opens the control plane, as one that founds the cluster, joins it, or was one of it before.
func (s *server) openNode(ctx context.Context, founder bool) error {
	w, m, x := s.w, s.member.m, s.member
	fresh := s.set.Fresh()
	if fresh && !founder {
		if err := s.set.Enter(w.grid.cluster, x.id); err != nil {
			return err
		}
	}
	var stores []cluster.DriveStore
	for _, d := range s.set.Open() {
		stores = append(stores, cluster.DriveStore{Num: d.Num(), KV: d.Control()})
	}
	c, err := cluster.Open(ctx, cluster.Config{Drives: stores, Logger: w.log, Network: x, Peers: x.reachable})
	if err != nil {
		return err
	}
	s.raft, s.control = c, raftControl{c}
	s.raftNow.Store(c)
	x.control.Store(c)
	switch {
	case c.State().Initialized():
		return s.set.SetNode(x.id)
	case founder && s.set.Forming():
		return s.foundCluster(ctx)
	}
	if err := insist(ctx, func() error { return errors.Join(c.PutNode(ctx, m.node(x.id)), c.Refresh(ctx)) }); err != nil {
		return err
	}
	paths, err := s.set.Unfinished()
	if err != nil || len(paths) == 0 {
		return err
	}
	return insist(ctx, func() error { return s.set.Recruit(ctx, paths, s.number) })
}

// number has the control plane give numbers to new drives.
func (s *server) number(ctx context.Context, list []node.Newcomer) ([]uint16, error) {
	var drives []cluster.NewDrive
	for _, d := range list {
		drives = append(drives, cluster.NewDrive{ID: d.Drive, Capacity: d.Capacity})
	}
	return s.raft.AddDrives(ctx, s.member.id, drives)
}

// foundCluster makes this process the first node.
func (s *server) foundCluster(ctx context.Context) error {
	g := s.w.grid
	var list []placement.Drive
	for _, f := range s.set.Founders() {
		list = append(list, placement.Drive{Num: f.Num, ID: f.Drive, Capacity: 1 << 40})
	}
	p, err := placement.DefaultProfile(len(list))
	if err != nil {
		return err
	}
	l, err := placement.NewLayout(list, p, layoutBits)
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error {
			return s.raft.Init(ctx, s.set.Cluster(), l, cluster.Account{ID: rootAccount, Name: "root"}, cluster.AccessKey{})
		},
		func() error { return s.set.MarkFormed(ctx) },
		func() error { return s.set.SetNode(s.member.id) },
		func() error { return s.raft.BecomeCluster(ctx, s.member.m.node(s.member.id)) },
	}
	if !g.alone {
		steps = append(steps, func() error {
			return s.raft.Expect(ctx, cluster.Expectation{Nodes: uint32(len(g.storage())), Profile: s.w.profile})
		})
	}
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// insist tries again what needs a leader.
func insist(ctx context.Context, f func() error) error {
	for {
		err := f()
		switch errs.KindOf(err) {
		case errs.Unavailable, errs.Timeout, errs.Unknown:
		default:
			return err
		}
		if !sleepCtx(ctx, time.Second) {
			return err
		}
	}
}

// node is the machine as the control plane keeps it.
func (m *machine) node(id disk.ID) cluster.Node {
	n := cluster.Node{ID: id, Name: m.name, Zone: m.zone, Roles: cluster.RoleGateway, Address: m.name + ":7000", Gossip: m.name + ":7001", S3: m.name + ":9000"}
	if len(m.drives) > 0 {
		n.Roles |= cluster.RoleStorage
	}
	return n
}

// stop ends what is the cluster's of a process.
func (x *member) stop(ctx context.Context) error {
	x.n.end(x.s, false)
	err := x.rpc.Close(ctx)
	x.peers.Close()
	x.serving.Wait()
	return err
}

// dialRPC connects to the drives and the control plane of a node.
func (x *member) dialRPC(ctx context.Context, to [16]byte) (net.Conn, error) {
	return x.n.dial(ctx, x.s, to, false, func(s *server, c net.Conn) {
		s.member.serving.Go(func() {
			if err := s.member.rpc.ServeConn(s.ctx, c, x.id); err != nil {
				s.w.tracef("%s does not serve %s: %v", s.member.m.name, x.m.name, err)
			}
		})
	})
}

// Self implements cluster.Network.
func (x *member) Self() disk.ID { return x.id }

// DialRaft implements cluster.Network.
func (x *member) DialRaft(ctx context.Context, to disk.ID, voter string) (net.Conn, error) {
	return x.n.dial(ctx, x.s, to, true, func(s *server, c net.Conn) {
		s.member.serving.Go(func() {
			if k := s.member.control.Load(); k != nil {
				k.ServeRaft(voter, c)
			} else {
				c.Close() //nolint:errcheck // nobody has used it
			}
		})
	})
}

// Call implements cluster.Network. Messages of the control plane can be lost apart from the others, and come twice.
func (x *member) Call(ctx context.Context, to disk.ID, method uint16, payload []byte) ([]byte, error) {
	cut, twice := x.unheard(to)
	if cut {
		<-ctx.Done()
		return nil, errs.As("sim", errs.Timeout, ctx.Err())
	}
	c := x.peers.Client(to)
	if twice {
		_, _ = c.Call(ctx, rpc.Method(method), payload) // the second answer counts
	}
	b, err := c.Call(ctx, rpc.Method(method), payload)
	if cut, _ := x.unheard(to); cut {
		<-ctx.Done()
		return nil, errs.As("sim", errs.Timeout, ctx.Err())
	}
	return b, err
}

// unheard reports whether calls of the control plane to a node are lost, or this one comes twice.
func (x *member) unheard(to disk.ID) (cut, twice bool) {
	x.n.mu.Lock()
	defer x.n.mu.Unlock()
	m := x.n.at[to]
	return m != nil && (x.n.deaf[x.m.num] || x.n.deaf[m.num]), x.n.twice && x.n.rng.IntN(3) == 0
}

// reachable are the nodes that gossip sees.
func (x *member) reachable() (list []disk.ID) {
	for _, o := range x.m.w.grid.running() {
		if o.member.id != x.id && x.n.reaches(x.m.num, o.member.m.num) {
			list = append(list, o.member.id)
		}
	}
	return list
}

// look is what gossip tells: whom it sees, and what they say of their drives. Where the run says so it is wrong.
func (x *member) look() {
	g := x.m.w.grid
	now := time.Now()
	for _, o := range g.running() {
		if o.set != nil && x.n.reaches(x.m.num, o.member.m.num) {
			var nums []uint16
			for _, d := range o.set.Open() {
				nums = append(nums, d.Num())
			}
			x.mu.Lock()
			x.seen[o.member.id] = sighting{now, nums}
			x.mu.Unlock()
		}
	}
	l := x.s.raft.State().Layout()
	if l == nil {
		return
	}
	where := map[uint16]node.NodeOfDrive{}
	for _, d := range l.Drives() {
		x.mu.Lock()
		is := x.seen[d.Node]
		x.mu.Unlock()
		where[d.Num] = node.NodeOfDrive{Node: d.Node, Gone: x.s.control.Retired(d.Num) || x.alive(d.Node) && !slices.Contains(is.drives, d.Num)}
	}
	x.fleet.SetNodes(where)
}

// alive reports whether a node is believed to be.
func (x *member) alive(id disk.ID) bool {
	if x.m.w.grid.suspected(x.m, id) {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return time.Since(x.seen[id].last) < suspectAfter
}

// here reports whether a drive serves, as far as is known.
func (x *member) here(num uint16) bool {
	if _, ok := x.s.set.Local(num); ok {
		return true
	}
	n, ok := x.fleet.Nodes()[num]
	return ok && !n.Gone && x.alive(n.Node)
}

// follow keeps up with what is told of the others, until the life ends.
func (x *member) follow() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var before map[uint16]bool
	led := false
	for {
		changed := x.s.raft.Changed()
		x.look()
		now := map[uint16]bool{}
		for num := range x.fleet.Nodes() {
			now[num] = x.here(num)
		}
		for num, is := range now {
			if was, known := before[num]; is && known && !was {
				x.s.healer.Load().Returned(num)
			}
		}
		before = now
		leads := x.s.raft.Leads()
		if leads && !led {
			x.s.healer.Load().Lead()
		}
		led = leads
		select {
		case <-x.s.ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// introduce makes the control plane know this node as it is now.
func (x *member) introduce() {
	for x.s.raft.PutNode(x.s.ctx, x.m.node(x.id)) != nil {
		if !sleepCtx(x.s.ctx, time.Second) {
			return
		}
	}
}

// hereDrives are the drives as repair wants them.
type hereDrives struct{ x *member }

// Shards implements heal.Drives.
func (h hereDrives) Shards(num uint16) (node.Drive, bool) {
	if !h.x.here(num) {
		return nil, false
	}
	return h.x.fleet.Shards(num)
}

// Replica implements metadata.Replicas, for the mover.
func (h hereDrives) Replica(num uint16) (metadata.Replica, bool) {
	if d, ok := h.Shards(num); ok {
		return d, true
	}
	return nil, false // and no interface that holds a nil pointer
}

// leaderChecks implements heal.Checks: the process that leads the control plane makes the complete check.
type leaderChecks struct{ x *member }

func (c leaderChecks) Mine() bool { return c.x.s.raft.Leads() }

func (c leaderChecks) Exchange(ctx context.Context, note []byte) ([]byte, error) {
	leader := c.x.s.raft.Leader()
	if leader.IsZero() || leader == c.x.id {
		return nil, errs.E("sim", errs.Unavailable, "it is not known who leads")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return c.x.Call(ctx, leader, uint16(checkMethod), note)
}

// planMover is the control plane as moves need it: the process that leads is the mover.
type planMover struct{ *cluster.Control }

// Plan implements heal.MoveControl.
func (m planMover) Plan() (heal.MovePlan, bool) {
	p, open := m.State().Plan()
	if !open {
		return heal.MovePlan{}, false
	}
	out := heal.MovePlan{Elsewhere: !m.Leads(), ID: p.ID, Begun: time.Unix(0, p.Begun), Total: p.Total, Done: p.Done, Leaving: p.Leaving,
		Lost: func(num uint16) bool { return m.State().Retired(num) }}
	for _, x := range p.Moves {
		out.Moves = append(out.Moves, heal.PlannedMove{Move: x.Move, State: heal.MoveState(x.State), At: x.At})
	}
	return out, true
}

// PublishMoves implements heal.MoveControl.
func (m planMover) PublishMoves(ctx context.Context, id, term uint64, list []placement.Move, spreads []int, fences []metadata.Fence) error {
	var told []cluster.BucketFence
	for _, f := range fences {
		told = append(told, cluster.BucketFence{Bucket: f.Bucket, Epoch: f.Epoch})
	}
	return m.Control.PublishMoves(ctx, id, term, list, spreads, told)
}

// newMachine makes a machine with empty drives.
func (w *world) newMachine(num int, zone string, drives int) *machine {
	m := &machine{w: w, num: num, zone: zone, name: fmt.Sprintf("m%d", num)}
	m.fs, m.drives = newFS(drives, w.rng)
	for _, d := range m.drives {
		d.num, d.retired = 0, true // until it has a number
	}
	m.links = &links{rng: rand.New(rand.NewPCG(w.rng.Uint64(), 4)), until: map[uint16]time.Time{}, extra: map[uint16]time.Duration{},
		twice: w.rng.IntN(3) == 0}
	return m
}
