package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// shape is what a cluster is made of: a profile, and the drives of each machine.
type shape struct {
	profile erasure.Profile
	drives  []int
	zones   int
	// alone: it is the store of the first machine, with the profile that its drives give, until a plan makes partitions as
	// wide as the profile.
	alone bool
}

var shapes = []shape{
	{erasure.Profile{Data: 1, Parity: 1}, []int{1, 1, 1}, 1, false},
	{erasure.Profile{Data: 2, Parity: 1}, []int{1, 1, 1}, 3, false},
	{erasure.Profile{Data: 2, Parity: 1}, []int{2, 1, 1, 1}, 2, false},
	{erasure.Profile{Data: 2, Parity: 2}, []int{2, 2, 2}, 3, false},
	{erasure.Profile{Data: 2, Parity: 2}, []int{1, 1, 1, 1}, 2, false},
	{erasure.Profile{Data: 2, Parity: 2}, []int{2, 1, 1, 1, 1}, 3, false},
}

// lonely are the shapes of stores that begin on one machine: 1+0, 1+1 and 2+1 become wider.
var lonely = []shape{
	{erasure.Profile{Data: 2, Parity: 1}, []int{1, 1, 1}, 3, true},
	{erasure.Profile{Data: 1, Parity: 2}, []int{1, 1, 1, 1}, 2, true},
	{erasure.Profile{Data: 2, Parity: 2}, []int{1, 2, 1, 1}, 2, true},
	{erasure.Profile{Data: 2, Parity: 2}, []int{2, 1, 1, 1}, 3, true},
	{erasure.Profile{Data: 2, Parity: 2}, []int{3, 1, 1, 1}, 2, true},
}

// grid is a store of several processes: machines with drives, gateways without, and the network between them.
type grid struct {
	w        *world
	cluster  disk.ID
	wires    *wires
	machines []*machine // guarded by world.mu; those with drives first, and a spare one last
	plans    int        // that were applied, and newcomers
	number   uint64     // of the layout, when everything began
	alone    bool       // it began on one machine
	wider    bool       // partitions were asked to be as wide as the profile of the run
	stock    []stocked
	booting  sync.WaitGroup
	recoding chan struct{} // capacity 1: a body is being written again
	recoded  atomic.Int64  // bodies that were

	mu sync.Mutex // guards doubt
	// doubt is who wrongly believes of whom that it failed: machines, by number. Of a flapping one it changes every second.
	doubt map[[2]int]bool
}

// newGrid draws a cluster.
func newGrid(seed uint64, tracing bool, o options) *world {
	rng := rand.New(rand.NewPCG(seed, 8))
	from := shapes
	if rng.IntN(5) < 2 || o.alone {
		from = lonely
	}
	sh := from[rng.IntN(len(from))]
	w := &world{profile: sh.profile, seed: seed, rng: rng, began: time.Now(), faults: map[string]int{}, tracing: tracing,
		log: slog.New(slog.DiscardHandler), raft: true, brief: true}
	if tracing {
		w.log = w.traceLog()
	}
	w.cache = []int64{-1, 1 << 20}[rng.IntN(2)]
	w.hist = &history{ops: map[string][]porcupine.Operation{}}
	w.values = &values{byETag: map[string]*value{}}
	g := &grid{w: w, wires: newWires(rand.New(rand.NewPCG(rng.Uint64(), 4))), doubt: map[[2]int]bool{}, alone: sh.alone, recoding: make(chan struct{}, 1)}
	g.wires.late = []time.Duration{0, 2 * time.Millisecond, 20 * time.Millisecond}[rng.IntN(3)]
	g.wires.twice = rng.IntN(2) == 0
	w.grid = g
	for i, n := range sh.drives {
		g.machines = append(g.machines, w.newMachine(i, fmt.Sprintf("z%d", i%sh.zones), n))
	}
	for range 1 + rng.IntN(2) {
		g.machines = append(g.machines, w.newMachine(len(g.machines), "z0", 0))
	}
	for _, m := range g.machines {
		w.drives = append(w.drives, m.drives...)
	}
	if rng.IntN(3) == 0 {
		w.count("clocks hours apart")
		for _, m := range g.machines {
			m.setClock(time.Duration(rng.IntN(24)-12) * time.Hour)
		}
	}
	w.tracef("profile %v, drives %v in %d zones, alone %v", w.profile, sh.drives, sh.zones, sh.alone)
	return w
}

// setClock sets how far the clock of a machine is ahead.
func (m *machine) setClock(d time.Duration) {
	m.skew.Store(int64(d))
	m.w.ahead.Store(max(m.w.ahead.Load(), int64(d)))
}

// all are the machines but those that died for good; storage those with drives.
func (g *grid) all() []*machine {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(g.machines), func(m *machine) bool { return m.dead })
}

func (g *grid) storage() []*machine {
	return slices.DeleteFunc(g.all(), func(m *machine) bool { return len(m.drives) == 0 })
}

// running are the processes that are on the network.
func (g *grid) running() (list []*server) {
	g.wires.mu.Lock()
	defer g.wires.mu.Unlock()
	for _, s := range g.wires.up {
		list = append(list, s)
	}
	return list
}

// turnTo is the gateway that a client turns to. The caller holds world.mu.
func (g *grid) turnTo(c *client) *server { return g.machines[c.intn(len(g.machines))].cur }

// suspected reports whether a machine wrongly takes a node for failed.
func (g *grid) suspected(by *machine, of disk.ID) bool {
	g.wires.mu.Lock()
	m := g.wires.at[of]
	g.wires.mu.Unlock()
	if m == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	flaps, ok := g.doubt[[2]int{by.num, m.num}]
	return ok && (!flaps || time.Since(g.w.began)/time.Second%2 == 0)
}

// openDrives are the drives that are open, on all machines.
func (g *grid) openDrives() (list []*disk.Drive) {
	for _, m := range g.all() {
		if s := m.process(); s != nil {
			list = append(list, s.set.Open()...)
		}
	}
	return list
}

func (m *machine) process() *server {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.cur
}

// boot starts the process, if it does not run, and tries again until it does.
func (m *machine) boot() {
	m.w.mu.Lock()
	mine := m.cur == nil && !m.booting && !m.dead
	m.booting = m.booting || mine
	m.w.mu.Unlock()
	if !mine {
		return
	}
	defer func() {
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		m.booting = false
	}()
	for try := 0; ; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		s, err := m.start(ctx, false)
		cancel()
		if err == nil {
			m.w.tracef("%s started as node %v", m.name, s.member.id)
			m.w.mu.Lock()
			m.cur = s
			m.w.mu.Unlock()
			return
		}
		m.w.tracef("%s does not start: %v", m.name, err)
		if try > 60 {
			m.w.failf("%s does not start: %v", m.name, err)
			return
		}
		sleep(2 * time.Second)
	}
}

// bootLater starts it beside everything else.
func (m *machine) bootLater() { m.w.grid.booting.Go(m.boot) }

// takeDown lets no more operations in.
func (m *machine) takeDown() *server {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	s := m.cur
	m.cur = nil
	return s
}

// powerCut ends the process between two instructions. Every drive keeps what was synced. Without power nobody is told
// that the connections are no more.
func (m *machine) powerCut(silent bool) {
	s := m.takeDown()
	if s == nil {
		return
	}
	m.w.tracef("power cut at %s, silent %v", m.name, silent)
	s.crashed.Store(true) // before the first clone: what is answered from here on is not believed
	for _, d := range m.drives {
		d.mu.Lock()
		d.cur.dead.Store(true)
		d.mu.Unlock()
	}
	m.w.grid.wires.edit(func() { m.dark = silent })
	m.w.grid.wires.end(s, silent)
	for _, d := range m.drives {
		d.replug(d.clone())
	}
	s.cancel()
	s.inside.Wait()
	if err := s.stop(); err != nil {
		m.w.tracef("what was left of %s: %v", m.name, err)
	}
}

// shutDown ends the process as an operator does.
func (m *machine) shutDown() {
	s := m.takeDown()
	if s == nil {
		return
	}
	m.w.tracef("shutdown of %s", m.name)
	s.inside.Wait()
	if err := s.stop(); err != nil {
		m.w.tracef("shutdown of %s: %v", m.name, err)
	}
}

// end stops everything.
func (g *grid) end() {
	g.booting.Wait()
	g.w.mu.Lock()
	g.w.cur = nil
	g.w.mu.Unlock()
	for _, m := range g.all() {
		m.shutDown()
	}
}

// found makes the cluster, and lays it out.
func (g *grid) found() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	first := g.machines[0]
	s, err := first.start(ctx, true)
	if err != nil {
		return err
	}
	g.w.mu.Lock()
	first.cur = s
	g.w.mu.Unlock()
	for _, m := range g.machines[1:] {
		m.bootLater()
	}
	g.booting.Wait()
	err = insist(ctx, func() error {
		st := s.raft.State()
		if g.alone {
			return nil
		}
		l, err := placement.NewLayout(st.Layout().Drives(), g.w.profile, layoutBits)
		if err != nil {
			return err
		}
		return s.raft.LayOut(ctx, l, st.Layout().Number())
	})
	if err != nil {
		return err
	}
	if err := s.raft.Refresh(ctx); err != nil {
		return err
	}
	g.number = s.raft.State().Layout().Number()
	g.name()
	sleep(20 * time.Second) // the voters come to rest
	for _, m := range g.all() {
		if p := m.process(); p != nil {
			if err := p.raft.Refresh(ctx); err != nil {
				return err
			}
		}
	}
	for _, b := range []string{plainBucket, versionedBucket} {
		if _, err := s.store.CreateBucket(ctx, b, object.CreateBucketOptions{Owner: rootAccount}); err != nil {
			return err
		}
	}
	if err := s.store.SetVersioning(ctx, versionedBucket, object.Enabled); err != nil {
		return err
	}
	if err := g.putStock(ctx, s); err != nil {
		return err
	}
	for _, m := range g.all() { // one that has not heard of it would write without versions
		if err := m.process().raft.Refresh(ctx); err != nil {
			return err
		}
	}
	return nil
}

// name notes which drive is in which slot, and which were drained.
func (g *grid) name() {
	for _, m := range g.storage() {
		s := m.process()
		if s == nil {
			continue
		}
		for _, p := range s.set.Status() {
			for _, d := range m.drives {
				if d.dir == p.Path && p.Num > 0 {
					g.w.mu.Lock()
					d.num = p.Num
					g.w.mu.Unlock()
				}
			}
		}
	}
	for _, m := range g.all() {
		if s := m.process(); s != nil {
			for _, d := range g.w.drives {
				d.retired = d.num == 0 || s.control.Retired(d.num)
			}
		}
	}
}

// run plays the seed. It returns with everything stopped.
func (g *grid) run(o options) {
	w := g.w
	defer func() {
		g.end()
		if n := g.recoded.Load(); n > 0 {
			w.faults["written again"] += int(n)
		}
	}()
	if err := g.found(); err != nil {
		w.failf("the cluster cannot be made: %v", err)
		return
	}
	var clients []*client
	for i := range 3 + w.rng.IntN(3) {
		clients = append(clients, &client{w: w, num: i, rng: rand.New(rand.NewPCG(w.rng.Uint64(), 5))})
	}
	for i := range 2 + w.rng.IntN(2) {
		if g.alone && i == 1 {
			g.grow(clients)
		} else {
			g.round(clients, o)
		}
		if !w.failed() {
			g.probe()
		}
		if w.failed() {
			return
		}
	}
	if o.bereave || w.rng.IntN(2) == 0 {
		g.bereave(clients)
	}
	if w.failed() {
		return
	}
	g.recover()
	if !w.failed() {
		g.judge()
	}
}

// round lets the clients work while things happen.
func (g *grid) round(clients []*client, o options) {
	w := g.w
	var wg sync.WaitGroup
	ops := 5 + w.rng.IntN(8)
	think := []time.Duration{20 * time.Millisecond, time.Second, 4 * time.Second}[w.rng.IntN(3)]
	for _, c := range clients {
		wg.Go(func() {
			for range ops {
				sleep(time.Duration(c.intn(int(think))))
				c.act()
			}
		})
	}
	var undo []func()
	for range 1 + w.rng.IntN(3) {
		sleep(time.Duration(w.rng.Int64N(int64(think) * int64(ops) / 2)))
		if f := g.fault(o); f != nil {
			undo = append(undo, f)
		}
	}
	if len(undo) > 0 && w.rng.IntN(2) == 0 {
		sleep(time.Duration(w.rng.IntN(40)) * time.Second)
		undo[0]() // while they still work
		undo = undo[1:]
	}
	wg.Wait()
	for _, f := range undo {
		f()
	}
	sleep(time.Duration(w.rng.IntN(60)) * time.Second)
}

// clusterFaults are the faults of the schedule.
var clusterFaults = []string{"cut", "cut", "cut-zone", "one-way", "one-way", "power", "power", "leader", "power-all", "restart", "hang", "slow",
	"clock", "no-control", "stale", "suspect", "flap", "plan", "plan"}

// fault makes something happen and returns what undoes it; nil for nothing to undo.
func (g *grid) fault(o options) func() {
	w := g.w
	kind := clusterFaults[w.rng.IntN(len(clusterFaults))]
	if len(o.faults) > 0 {
		kind = o.faults[w.rng.IntN(len(o.faults))]
	}
	list := g.all()
	m := list[w.rng.IntN(len(list))]
	w.count(kind)
	w.tracef("fault: %s of %s", kind, m.name)
	switch kind {
	case "none":
	case "cut":
		return g.part(func(o *machine) bool { return o == m }, true, true)
	case "cut-zone":
		return g.part(func(o *machine) bool { return o.zone == m.zone }, true, true)
	case "one-way":
		out := w.rng.IntN(2) == 0
		return g.part(func(o *machine) bool { return o == m }, out, !out)
	case "power", "leader":
		if kind == "leader" {
			m = g.leader(m)
		}
		m.powerCut(w.rng.IntN(2) == 0)
		sleep(time.Duration(w.rng.IntN(60)) * time.Second)
		m.bootLater()
	case "power-all":
		for _, i := range w.rng.Perm(len(list)) {
			list[i].powerCut(w.rng.IntN(2) == 0)
		}
		for _, i := range w.rng.Perm(len(list)) {
			sleep(time.Duration(w.rng.IntN(8)) * time.Second)
			list[i].bootLater()
		}
	case "restart":
		m.shutDown()
		m.bootLater()
	case "hang", "slow":
		store := g.storage()
		m = store[w.rng.IntN(len(store))]
		d := m.drives[w.rng.IntN(len(m.drives))]
		if kind == "hang" {
			m.links.hang(d.num, 60*time.Second)
			break
		}
		m.links.slowDown(d.num, time.Duration(1+w.rng.IntN(3000))*time.Millisecond)
		return func() { m.links.slowDown(d.num, 0) }
	case "clock":
		m.setClock(time.Duration(w.rng.IntN(3)-1)*24*time.Hour + time.Duration(w.rng.Int64N(int64(time.Hour))))
	case "no-control":
		// After a plan drives may still be finding out that they are members.
		calm := g.calm() && (g.plans == 0 || len(g.used()) == 0) && g.calm()
		for _, o := range list {
			g.wires.edit(func() { g.wires.deaf[o.num] = true })
		}
		g.wires.reset()
		if calm {
			g.withoutControl()
		}
		return func() { g.wires.edit(func() { clear(g.wires.deaf) }) }
	case "stale": // it goes on by what it knows
		g.wires.edit(func() { g.wires.deaf[m.num] = true })
		g.wires.reset()
		if w.rng.IntN(2) == 0 {
			g.plan()
		}
		return func() {
			g.noteBehind(m)
			g.wires.edit(func() { delete(g.wires.deaf, m.num) })
		}
	case "suspect", "flap":
		g.mu.Lock()
		for _, by := range list {
			if w.rng.IntN(3) > 0 {
				g.doubt[[2]int{by.num, m.num}] = kind == "flap"
			}
		}
		g.mu.Unlock()
		return func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			clear(g.doubt)
		}
	case "plan":
		g.plan()
	}
	return nil
}

// calm reports whether nothing is wrong just now, and nothing is under way.
func (g *grid) calm() bool {
	g.wires.mu.Lock()
	quiet := len(g.wires.lost) == 0 && len(g.wires.deaf) == 0
	g.wires.mu.Unlock()
	numbers := map[uint64]bool{}
	for _, m := range g.all() {
		m.links.mu.Lock()
		quiet = quiet && len(m.links.until) == 0 && len(m.links.extra) == 0
		m.links.mu.Unlock()
		s := m.process()
		if s == nil {
			return false
		}
		st := s.raft.State()
		_, open := st.Plan()
		numbers[st.Layout().Number()] = true
		quiet = quiet && !open
	}
	return quiet && len(numbers) == 1
}

// used reports which gateways do not both read and write. Clients try thrice.
func (g *grid) used() (bad []string) {
	w := g.w
	for i, m := range g.all() {
		s := m.process()
		ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
		o := &session{client: &client{w: w, num: 200 + i, rng: rand.New(rand.NewPCG(w.seed, uint64(i)))}, s: s, ctx: ctx, quick: true,
			bucket: plainBucket, key: plainKeys[i%len(plainKeys)]}
		wrote, read := false, false
		for range 3 {
			if !wrote {
				wrote = o.write("put", w.values.single(o.size(), 0), nil) == "ok"
			}
			if !read {
				_, read = o.read(nil)
			}
		}
		cancel()
		if !wrote || !read {
			bad = append(bad, fmt.Sprintf("%s: written %v, read %v", m.name, wrote, read))
		}
	}
	return bad
}

// withoutControl makes sure that every gateway that could still reads and writes once the control plane has lost its
// quorum, and none changes the configuration.
func (g *grid) withoutControl() {
	w := g.w
	sleep(15 * time.Second) // a leader finds out
	w.count("used without control plane")
	if bad := g.used(); len(bad) > 0 {
		w.failf("while the control plane has no quorum: %v", bad)
	}
	for _, m := range g.all() {
		s := m.process()
		if s.raft.Leads() {
			continue // the only voter of a small store is a quorum
		}
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		if _, err := s.store.CreateBucket(ctx, "too-much", object.CreateBucketOptions{Owner: rootAccount}); err == nil {
			w.failf("%s: a bucket was made while the control plane has no quorum", m.name)
		}
		cancel()
	}
}

// part loses the messages of one side to the other, out, and those to it, in.
func (g *grid) part(side func(*machine) bool, out, in bool) func() {
	list := g.all()
	var lost [][2]int
	for _, a := range list {
		for _, b := range list {
			if side(a) && !side(b) {
				if out {
					lost = append(lost, [2]int{a.num, b.num})
				}
				if in {
					lost = append(lost, [2]int{b.num, a.num})
				}
			}
		}
	}
	g.wires.edit(func() {
		for _, x := range lost {
			g.wires.lost[x] = true
		}
	})
	if g.w.rng.IntN(2) == 0 {
		g.wires.reset()
	}
	return func() {
		if g.w.rng.IntN(2) == 0 {
			g.wires.reset()
		}
		g.wires.edit(func() {
			for _, x := range lost {
				delete(g.wires.lost, x)
			}
		})
	}
}

// leader returns the machine that leads the control plane; other if it is not known.
func (g *grid) leader(other *machine) *machine {
	for _, m := range g.storage() {
		if s := m.process(); s != nil && s.raft.Leads() {
			return m
		}
	}
	return other
}

// plan applies a plan: a new machine gets its share, another one is drained, or both. The mover may be hit in the middle.
func (g *grid) plan() {
	w := g.w
	store := g.storage()
	kind := w.rng.IntN(3)
	if kind != 1 { // somebody joins
		if len(store) >= 6 {
			return
		}
		zone := store[w.rng.IntN(len(store))].zone
		m := w.newMachine(len(g.machines), zone, 1+w.rng.IntN(2))
		w.mu.Lock()
		g.machines = append(g.machines, m)
		w.mu.Unlock()
		w.drives = append(w.drives, m.drives...)
		g.plans++ // the layout gets a number for the new drives
		m.bootLater()
		w.tracef("%s joins with %d drives", m.name, len(m.drives))
		sleep(time.Duration(5+w.rng.IntN(20)) * time.Second)
		g.name()
	}
	var leaving *machine
	if kind != 0 {
		leaving = store[w.rng.IntN(len(store))]
	}
	s := store[w.rng.IntN(len(store))].process()
	if s == nil {
		return
	}
	p, id, err := g.apply(s, leaving)
	if err != nil {
		return
	}
	w.count("planned")
	if comes := slices.ContainsFunc(p.Changes, func(c placement.DriveChange) bool { return c.Before == 0 && c.After > 0 }); comes && len(p.Leaving) > 0 {
		w.count("added and drained together")
	}
	g.trouble(s, id)
}

// apply makes a plan of a process for all drives but those that leave, or were given up, and has it carried out. Where
// partitions are to become wider it asks for that.
func (g *grid) apply(s *server, leaving *machine) (*placement.Plan, uint64, error) {
	w := g.w
	st := s.raft.State()
	l := st.Layout()
	goal := placement.Goal{Drives: nil}
	if g.wider && l.Profile() != w.profile {
		goal.Profile = w.profile
	}
	given := st.GivenUp()
	left := 0
	for _, d := range l.Drives() {
		goes := slices.Contains(given, d.Num) || leaving != nil && slices.ContainsFunc(leaving.drives, func(x *simDrive) bool { return x.num == d.Num })
		goal.Drives = append(goal.Drives, placement.GoalDrive{Drive: d, Leaving: goes})
		if !goes {
			left++
		}
	}
	if left < w.profile.N() { // what the run is to end with would not be possible any more
		return nil, 0, errs.E("sim", errs.Precondition, "too few drives would be left")
	}
	p, err := placement.NewPlan(l, goal)
	if err != nil {
		w.tracef("no plan: %v", err)
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	g.plans++
	id, err := s.raft.ApplyPlan(ctx, p.Layout, p.Moves, p.Leaving, p.Profiles)
	w.tracef("plan %d of %d moves, leaving %v, %d partitions become wider: %v", id, len(p.Moves), p.Leaving, p.Widened, err)
	return p, id, err
}

// trouble has the plan reverted, or the mover hit in the middle, once or twice.
func (g *grid) trouble(s *server, plan uint64) {
	w := g.w
	moment := func() {
		sleep(time.Duration(w.rng.Int64N(int64([]time.Duration{400 * time.Millisecond, 4 * time.Second, 20 * time.Second}[w.rng.IntN(3)]))))
	}
	if w.rng.IntN(5) == 0 {
		moment()
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		err := s.raft.RevertPlan(ctx, plan)
		cancel()
		w.tracef("plan %d is reverted: %v", plan, err)
		if err == nil {
			w.count("reverted")
		}
	}
	for i := range w.rng.IntN(3) {
		if i > 0 || w.rng.IntN(2) == 0 || !g.begun() {
			moment()
		}
		m := g.leader(nil)
		if m == nil {
			continue
		}
		w.count(g.phase())
		m.powerCut(w.rng.IntN(2) == 0)
		sleep(time.Duration(w.rng.IntN(10)) * time.Second)
		m.bootLater()
	}
}

// begun waits for the moment in which members of partitions are changed, and reports whether it came.
func (g *grid) begun() bool {
	for range 1000 {
		for _, s := range g.running() {
			p, ok := s.raft.State().Plan()
			if ok && s.raft.Leads() && slices.ContainsFunc(p.Moves, func(x cluster.PlannedMove) bool { return x.State == cluster.MoveBegun }) {
				return true
			}
		}
		sleep(10 * time.Millisecond)
	}
	return false
}

// phase names what a power cut of the mover hits now.
func (g *grid) phase() string {
	for _, s := range g.running() {
		p, ok := s.raft.State().Plan()
		if !ok || !s.raft.Leads() {
			continue
		}
		published := false
		for _, x := range p.Moves {
			switch {
			case x.State == cluster.MoveBegun && x.Joins():
				return "mover down while partitions become wider"
			case x.State == cluster.MoveBegun:
				return "mover down in a swap"
			}
			published = published || x.State == cluster.MovePublished
		}
		if published {
			return "mover down while shards follow"
		}
		return "mover down before a swap"
	}
	return "leader down after a plan"
}

// recover undoes every fault, and waits until everything is whole.
func (g *grid) recover() {
	w := g.w
	w.tracef("everything is repaired")
	g.wires.edit(func() {
		clear(g.wires.lost)
		clear(g.wires.deaf)
	})
	g.mu.Lock()
	clear(g.doubt)
	g.mu.Unlock()
	for _, m := range g.all() {
		m.skew.Store(w.ahead.Load()) // what was stamped with a later time would only be waited for
		m.links.reset()
	}
	w.skew.Store(w.ahead.Load())
	g.booting.Wait()
	sleep(20 * time.Second)
	g.name()
	g.await("all nodes to be here, and no plan open", func() string {
		for _, m := range g.all() {
			s := m.process()
			if s == nil {
				return m.name + " does not run"
			}
			ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
			err := s.raft.Refresh(ctx)
			cancel()
			if err != nil {
				return fmt.Sprintf("%s: %v", m.name, err)
			}
			st := s.raft.State()
			if p, open := st.Plan(); open {
				return fmt.Sprintf("plan %+v", p)
			}
			if left := g.pursue(s); left != "" {
				return left
			}
			for _, d := range st.Layout().Drives() {
				if !s.member.here(d.Num) {
					return fmt.Sprintf("%s does not see drive %d", m.name, d.Num)
				}
			}
		}
		return ""
	})
}

// await waits up to a virtual hour until nothing is missing.
func (g *grid) await(what string, missing func() string) bool {
	left := ""
	step := 10 * time.Second
	for t := time.Duration(0); t < time.Hour; t += step {
		if left = missing(); left == "" {
			return true
		}
		sleep(step)
		step = min(step*3/2, 5*time.Minute)
	}
	for _, s := range g.running() {
		g.w.tracef("%s %v: leads %v, leader %v, applied %d", s.member.m.name, s.member.id, s.raft.Leads(), s.raft.Leader(), s.raft.State().Applied)
	}
	g.w.failf("waited an hour for %s: %s", what, left)
	return false
}

// ask makes the judge ask a machine from here on.
func (g *grid) ask(m *machine) {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.w.cur = m.cur
}

// judge compares the store, whole and idle again, with what it promised, by way of every gateway.
func (g *grid) judge() {
	w := g.w
	c := &client{w: w, num: 100, rng: rand.New(rand.NewPCG(w.seed, 6))}
	all := append(slices.Clone(plainKeys), counterKey)
	g.ask(g.all()[0])
	if !g.await("empty lists of work", w.pending) {
		return
	}
	for _, m := range g.all() {
		g.ask(m)
		w.readAll(c, all)
		g.readStock(m.process(), 0)
		w.listing(c, all)
		w.checkVersions(c)
	}
	sleep(time.Minute)
	if !g.await("data to have the profile of their partitions", g.oldData) || !g.await("empty lists of work", w.pending) || w.failed() {
		return
	}
	w.inspect(all, true)
	g.inspectStock()
	w.checkWhole()
	w.checkCounter(c)
	g.checkMembers()
	if w.failed() {
		return
	}
	g.lose(c, all)
	w.endUploads()
	if w.failed() {
		return
	}
	// What a writer left behind without sealing it is swept when the process starts.
	for _, m := range g.all() {
		m.powerCut(true)
	}
	for _, m := range g.all() {
		m.bootLater()
	}
	g.recover()
	sleep(2*clusterOrphanEvery + clusterOrphanAge)
	g.ask(g.all()[0])
	if !g.await("empty lists of work", w.pending) {
		return
	}
	w.orphans()
	w.readAll(c, all)
	g.readStock(g.all()[0].process(), 0)
}

// checkMembers makes sure that only plans changed who is a member of what.
func (g *grid) checkMembers() {
	l := g.w.cur.control.Layout()
	if g.plans == 0 && l.Number() != g.number {
		g.w.failf("the layout is number %d, and was %d; nobody has asked for another one", l.Number(), g.number)
	}
	for p := range l.Partitions() {
		if f := l.Group(p).Former; slices.ContainsFunc(f, func(n uint16) bool { return n != 0 }) {
			g.w.failf("partition %d has former members %v, and no plan is open", p, f)
		}
	}
	for _, m := range g.all() {
		if s := m.process(); s != nil && s.control.Layout().Number() != l.Number() {
			g.w.failf("%s knows layout %d, and the layout is %d", m.name, s.control.Layout().Number(), l.Number())
		}
	}
}

// lose takes a node away that the profile can do without. Everything can be read at every other gateway.
func (g *grid) lose(c *client, plain []string) {
	w := g.w
	l := w.cur.control.Layout()
	store := g.storage()
	m := store[w.rng.IntN(len(store))]
	for p := range l.Partitions() {
		n := 0
		for _, num := range l.Group(p).Drives {
			if slices.ContainsFunc(m.drives, func(d *simDrive) bool { return d.num == num }) {
				n++
			}
		}
		if n > int(w.profile.Parity) || l.N()-n < l.Group(p).Quorum.R {
			w.tracef("%s is needed", m.name)
			return
		}
	}
	w.count("node lost at the end")
	m.powerCut(w.rng.IntN(2) == 0)
	for _, o := range g.all() {
		if o != m {
			g.ask(o)
			w.readAll(c, plain)
			g.readStock(o.process(), 0)
		}
	}
	m.boot()
	g.recover()
	g.await("empty lists of work", w.pending)
}

func TestSimCluster(t *testing.T) {
	o := options{cluster: true, alone: *flagAlone, bereave: *flagAlone}
	runs, from := *flagRuns, *flagFrom
	switch {
	case !*flagCluster && (runs > 0 || *flagSeed > 0):
		t.Skip("-cluster is not given")
	case *flagSeed != 0:
		runs, from = 1, *flagSeed
	case runs == 0:
		if runs = shortClusterRuns; raceEnabled {
			runs, from = 1, 13 // a small one
		}
	}
	playAll(t, from, runs, o)
}
