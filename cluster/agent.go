package cluster

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// This file is what a process of a cluster does for the leader, and the leader for it. Once a second each process
// reports to the leader which of its drives are here and which raft servers they have. The leader answers which
// drives are to start one, and which are no members any more; it makes members of those that run.
// A process that knows no leader asks the others.

type drive = placement.Drive

const (
	heardFor      = 3 * time.Second // a process that has not reported for longer is away
	withoutServer = 5               // rounds after which a process without a raft server starts one in memory
	lagAllowed    = 256             // commands that a learner may lag behind when it becomes a voter
	forgetNode    = time.Hour       // a node without drives is forgotten that was silent for longer
	maxAsked      = 16              // processes that are asked at a time who leads
	maxReport     = placement.MaxDrives
)

// report is what a process tells.
type report struct {
	start   uint64 // drawn when the process started
	seq     uint64 // rises with each report
	gen     generationID
	applied uint64
	drives  map[uint16]onDrive
	memory  raft.ServerID
}

func (r *report) encode() []byte {
	b := putUint(nil, 1, r.start)
	b = putUint(b, 2, r.seq)
	b = putBytes(b, 3, appendGenerationID(nil, r.gen))
	b = putUint(b, 4, r.applied)
	for _, num := range slices.Sorted(maps.Keys(r.drives)) {
		on := r.drives[num]
		b = putBytes(b, 5, putBool(putString(putUint(nil, 1, uint64(num)), 2, string(on.server)), 3, on.runs))
	}
	return putString(b, 6, string(r.memory))
}

func decodeReport(b []byte) (*report, error) {
	r := &report{drives: map[uint16]onDrive{}}
	return r, fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			r.start = f.u
		case 2:
			r.seq = f.u
		case 3:
			r.gen, err = decodeGenerationID(f.bytes)
		case 4:
			r.applied = f.u
		case 5:
			if len(r.drives) == maxReport {
				return true, errMalformed()
			}
			var num uint16
			var on onDrive
			err = fields(f.bytes, func(f field) (known bool, err error) {
				switch f.num {
				case 1:
					num, err = driveNum(f.u)
				case 2:
					on.server = raft.ServerID(f.bytes)
				case 3:
					on.runs = f.u != 0
				default:
					return false, nil
				}
				return true, err
			})
			r.drives[num] = on
		case 6:
			r.memory = raft.ServerID(f.bytes)
		default:
			return false, nil
		}
		return true, err
	})
}

// reported is the last report of a process.
type reported struct {
	*report
	at time.Time
}

// nudge has the agent look again at once.
func (k *Control) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// agent reports to the leader until Close.
func (k *Control) agent() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with ctx, which ends before Close does
		select {
		case <-k.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	tick := time.NewTicker(stewardEvery)
	defer tick.Stop()
	without := 0 // rounds in which no raft server ran here
	for round := 0; ; round++ {
		k.attend(ctx, round)
		// A node whose drives have all left the layout, or are gone, is asked to start none on them. It may not even
		// know that they have left: their servers were members no more before it heard of it.
		if without++; k.hasServer() {
			without = 0
		}
		if without >= withoutServer && k.clustered() {
			k.startMemory()
		}
		select {
		case <-tick.C:
		case <-k.wake:
		case <-ctx.Done():
			return
		}
	}
}

// hasServer reports whether a raft server runs here.
func (k *Control) hasServer() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.voters) > 0
}

// attend is one round of the agent.
func (k *Control) attend(ctx context.Context, round int) {
	k.greet(ctx, round)
	rep := k.makeReport()
	var r *reply
	var err error
	if node := k.leaderNode(); k.leader() != nil {
		r = new(reply)
		r.gen = k.State().gen.generationID
		err = k.reportTo(ctx, k.self(), rep, r)
	} else if node != (disk.ID{}) && node != k.self() {
		r, err = k.ask(ctx, node, methodReport, rep.encode(), callTimeout)
	} else {
		return
	}
	if err != nil {
		k.log.Debug("the leader of the control plane could not be told", "err", err)
		return
	}
	if r.leads {
		k.obey(r)
	}
}

// makeReport tells what is here.
func (k *Control) makeReport() *report {
	s := k.State()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reports++
	r := &report{start: k.start, seq: k.reports, gen: s.gen.generationID, applied: s.Applied, drives: map[uint16]onDrive{}}
	for num := range k.copies {
		if v := k.voters[num]; v != nil {
			r.drives[num] = onDrive{v.id, true}
		} else {
			r.drives[num] = onDrive{server: k.named[num]}
		}
	}
	if v := k.voters[0]; v != nil {
		r.memory = v.id
	}
	return r
}

// greet asks the processes that it is the turn of, or many while no leader is known, and takes over what a later
// generation knows.
func (k *Control) greet(ctx context.Context, round int) {
	peers := k.peers()
	if len(peers) == 0 {
		return
	}
	n := 1
	if node := k.leaderNode(); k.leader() == nil && (node == disk.ID{} || node == k.self()) {
		n = min(maxAsked, len(peers))
	}
	own := k.State().gen.generationID
	var asking sync.WaitGroup
	for i := range n {
		node := peers[(round*n+i)%len(peers)]
		asking.Go(func() {
			r, err := k.ask(ctx, node, methodHello, appendGenerationID(nil, own), callTimeout/2)
			if err == nil && (r.gen.compare(own) > 0 || !k.State().Initialized() && r.index > 0) {
				k.pull(ctx, node)
			}
		})
	}
	asking.Wait()
}

// peers returns the other nodes, ascending by id.
func (k *Control) peers() (list []disk.ID) {
	all := map[disk.ID]bool{}
	for _, n := range k.State().nodes {
		all[n.ID] = true
	}
	if k.c.Peers != nil {
		for _, id := range k.c.Peers() {
			all[id] = true
		}
	}
	delete(all, k.self())
	delete(all, disk.ID{})
	return slices.SortedFunc(maps.Keys(all), func(a, b disk.ID) int { return slices.Compare(a[:], b[:]) })
}

// pull takes over the state of another process, if it is newer than that of this one. It holds only what
// was committed.
func (k *Control) pull(ctx context.Context, node disk.ID) {
	r, err := k.ask(ctx, node, methodState, nil, callTimeout)
	if err != nil || len(r.state) == 0 {
		return
	}
	s, err := decodeState(r.state)
	if err != nil {
		k.log.Warn("the state of another process cannot be read; if its build is newer, upgrade this one", "node", node, "err", err)
		return
	}
	own := k.State()
	switch {
	case own.Initialized() && s.ClusterID != own.ClusterID:
		k.log.Error("another process is of another cluster", "node", node)
	case own.Initialized() && s.gen != own.gen && s.newerThan(own):
		k.enter(s)
	default:
		k.publish(0, nil, s)
	}
}

// obey does what the leader answered to a report.
func (k *Control) obey(r *reply) {
	if s := k.State(); s.Initialized() && s.gen.generationID != r.gen {
		return // one of both is behind, and learns of it by greeting
	}
	for _, name := range r.servers {
		k.drop(raft.ServerID(name))
	}
	if k.Behind() != nil {
		return
	}
	for _, num := range r.drives {
		if err := k.startOn(num, r.gen); err != nil {
			k.log.Warn("a raft server could not be started yet", "drive", num, "err", err)
		}
	}
}

// drop stops a server that is no member, and drops its rows.
func (k *Control) drop(id raft.ServerID) {
	num := driveOf(id)
	if num == 0 {
		if v := k.runs(id); v != nil {
			k.stopVoter(0, v)
		}
		return
	}
	k.lifecycle.Lock()
	defer k.lifecycle.Unlock()
	cp := k.copyOn(num)
	if cp == nil {
		return
	}
	if is, _, err := readVoter(cp.kv); err != nil || is != id {
		return
	}
	if v := k.runs(id); v != nil {
		k.stopped(num, v)
	}
	k.mu.Lock()
	late := k.late[cp]
	k.mu.Unlock()
	if late {
		return // a write is on its way that must not meet other rows
	}
	if err := dropVoter(cp.kv); err != nil {
		k.log.Warn("the rows of a former voter could not be dropped", "drive", num, "err", err)
		return
	}
	k.setNamed(num, "")
}

// setNamed remembers which server the rows of a drive name, so that reports need no drive.
func (k *Control) setNamed(num uint16, id raft.ServerID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.named[num] = id
}

// startOn starts a server on a drive that has none, under an id that was never used. The caller holds nothing.
func (k *Control) startOn(num uint16, gen generationID) error {
	cp := k.copyOn(num)
	if cp == nil {
		return errs.E("cluster.startOn", errs.Drive, "the drive is gone")
	}
	if done, err := k.nameVoter(num, cp, gen); done || err != nil {
		return err
	}
	_, err := k.startVoter(DriveStore{num, cp.kv})
	return err
}

// nameVoter writes the row of a new voter, unless the drive has one.
func (k *Control) nameVoter(num uint16, cp *copyOf, gen generationID) (has bool, err error) {
	k.lifecycle.Lock()
	defer k.lifecycle.Unlock()
	k.mu.Lock()
	has = k.voters[num] != nil || k.late[cp] || k.closed
	k.mu.Unlock()
	if has {
		return true, nil
	}
	if id, of, err := readVoter(cp.kv); err == nil && id != "" && of == gen {
		return false, nil // it only has to be started
	}
	id := withNode(raft.ServerID(voterID(num)+"-"+rand.Text()), k.self())
	if err := replaceVoter(cp.kv, id, gen); err != nil {
		return false, err
	}
	k.setNamed(num, id)
	return false, nil
}

// startMemory starts the server of a process without drives, unless it runs.
func (k *Control) startMemory() {
	id := withNode(raft.ServerID(memoryID+rand.Text()), k.self())
	k.lifecycle.Lock()
	defer k.lifecycle.Unlock()
	k.mu.Lock()
	stop := k.closed || k.voters[0] != nil
	k.mu.Unlock()
	if stop {
		return
	}
	d := DriveStore{KV: nowhere{}}
	if err := k.startServer(d, id); err != nil && k.Behind() == nil {
		k.log.Error("the raft server in memory cannot start", "err", err)
	}
}

// nowhere stores nothing: a voter's storage has all that it reads in memory.
type nowhere struct{}

func (nowhere) Get([]byte) ([]byte, error)                    { return nil, nil }
func (nowhere) Apply(*metadata.Batch, bool) error             { return nil }
func (nowhere) NewIter([]byte, []byte) (metadata.Iter, error) { return nothing{}, nil }

type nothing struct{}

func (nothing) First() bool        { return false }
func (nothing) Last() bool         { return false }
func (nothing) Next() bool         { return false }
func (nothing) Prev() bool         { return false }
func (nothing) SeekGE([]byte) bool { return false }
func (nothing) SeekLT([]byte) bool { return false }
func (nothing) Key() []byte        { return nil }
func (nothing) Value() []byte      { return nil }
func (nothing) Err() error         { return nil }
func (nothing) Close() error       { return nil }

// handleReport is reportTo for another process.
func (k *Control) handleReport(ctx context.Context, from disk.ID, payload []byte, r *reply) error {
	rep, err := decodeReport(payload)
	if err != nil {
		return err
	}
	if rep.gen.compare(r.gen) > 0 {
		k.nudge()
	}
	return k.reportTo(ctx, from, rep, r)
}

// reportTo takes a report, if this process leads, and answers what is to be done about it.
func (k *Control) reportTo(ctx context.Context, from disk.ID, rep *report, r *reply) error {
	v := k.leader()
	if v == nil {
		return nil
	}
	k.mu.Lock()
	last, ok := k.known[from]
	if !ok || last.start != rep.start || last.seq < rep.seq {
		k.known[from] = reported{rep, time.Now()}
	}
	k.mu.Unlock()
	select {
	case k.membership <- struct{}{}:
		defer k.membership.Unlock()
	case <-ctx.Done():
		return errs.Wrap("cluster.report", ctx.Err())
	}
	s := k.State()
	if _, known := s.Node(from); !known || rep.gen != s.gen.generationID && rep.applied > 0 {
		r.leads = true
		return nil // it is made known, or learns of the generation, first
	}
	m, err := k.membershipNow(v, k.isBad(nil))
	if err != nil {
		return err
	}
	_, start := m.next()
	drop := m.dropped(from, func(num uint16) bool { return slices.Contains(start, num) || slices.Contains(k.starting, num) })
	if len(drop) > 0 {
		// One that leads no more must not have a voter dropped.
		if err := v.raft.VerifyLeader().Error(); err != nil {
			return errs.As("cluster.report", errs.Unavailable, err)
		}
		k.forget(from, drop)
	}
	for _, id := range drop {
		r.servers = append(r.servers, string(id))
	}
	for _, num := range append(start, k.starting...) {
		if is, here := m.heard[from].drives[num]; here && is.server == "" && !slices.Contains(r.drives, num) {
			r.drives = append(r.drives, num)
		}
	}
	r.leads = true
	return nil
}

// forget takes servers that are dropped out of what was reported, so that none is made a member. The caller
// holds membership.
func (k *Control) forget(node disk.ID, ids []raft.ServerID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	was, ok := k.known[node]
	if !ok {
		return
	}
	now := *was.report
	now.drives = maps.Clone(now.drives)
	for num, on := range now.drives {
		if slices.Contains(ids, on.server) {
			now.drives[num] = onDrive{server: on.server}
		}
	}
	if slices.Contains(ids, now.memory) {
		now.memory = ""
	}
	was.report = &now
	k.known[node] = was
}

// heardNow returns what was reported lately. The process's own drives need no report.
func (k *Control) heardNow() map[disk.ID]heard {
	own := k.makeReport()
	s := k.State()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known[k.self()] = reported{own, time.Now()}
	out := map[disk.ID]heard{}
	for node, r := range k.known {
		if time.Since(r.at) <= heardFor {
			behind := r.gen != s.gen.generationID || r.applied+lagAllowed < s.Applied
			out[node] = heard{r.drives, r.memory, !behind}
		}
	}
	return out
}

// drivesHeard returns the drives of the layout that are here, or on a process that reported lately, ascending.
func (k *Control) drivesHeard() (nums []uint16) {
	s := k.State()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, num := range s.lasting() {
		node, _ := s.NodeOfDrive(num)
		r, ok := k.known[node]
		_, reported := r.drivesOrNone()[num]
		if k.copies[num] != nil || ok && node != k.self() && reported && time.Since(r.at) <= heardFor {
			nums = append(nums, num)
		}
	}
	return nums
}

func (r reported) drivesOrNone() map[uint16]onDrive {
	if r.report == nil {
		return nil
	}
	return r.drives
}

// membershipNow gathers what a step is decided from. The caller holds membership.
func (k *Control) membershipNow(leader *voter, bad func(num uint16) bool) (*membership, error) {
	f := leader.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, err
	}
	silent := func(node disk.ID) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		r, ok := k.known[node]
		return time.Since(k.ledSince) >= awayAfter && (!ok || time.Since(r.at) >= awayAfter)
	}
	return &membership{s: k.State(), servers: f.Configuration().Servers, heard: k.heardNow(), bad: bad, silent: silent}, nil
}

// isBad reports which drives may have no server: those that are retired or away for long, and those for which also says so.
func (k *Control) isBad(also func(num uint16) bool) func(num uint16) bool {
	s := k.State()
	k.mu.Lock()
	away := maps.Clone(k.away)
	k.mu.Unlock()
	now := time.Now()
	return func(num uint16) bool {
		at, gone := away[num]
		return s.Retired(num) || gone && now.Sub(at) >= awayAfter || also != nil && also(num)
	}
}

// lookAround is what the steward of a cluster's leader does: it notes who is away, and changes what it can.
func (k *Control) lookAround(leader *voter) {
	s := k.State()
	term := leader.raft.CurrentTerm()
	here := k.drivesHeard()
	now := time.Now()
	k.mu.Lock()
	if k.ledTerm != term { // what another leader was told is not known here
		k.ledTerm, k.ledSince, k.away = term, now, map[uint16]time.Time{}
	}
	for _, num := range s.lasting() {
		if slices.Contains(here, num) {
			delete(k.away, num)
		} else if _, ok := k.away[num]; !ok {
			k.away[num] = now
		}
	}
	k.mu.Unlock()
	for range maxSteps {
		kind, _, err := k.arrange(nil)
		if err != nil {
			k.log.Debug("the voters could not be changed yet", "err", err)
		}
		if kind == noStep || err != nil {
			break
		}
	}
	k.forgetNodes(s, now)
}

const maxSteps = 32 // of the steward in one round

// forgetNodes removes nodes without drives that were silent for long: a gateway has a new id at each start. Where
// another is heard from at its address by now, awayAfter is long.
func (k *Control) forgetNodes(s *State, now time.Time) {
	for _, n := range s.nodes {
		k.mu.Lock()
		last := k.ledSince
		if r, ok := k.known[n.ID]; ok && r.at.After(last) {
			last = r.at
		}
		limit := k.c.forgetAfter
		if slices.ContainsFunc(s.nodes, func(o Node) bool {
			return o.ID != n.ID && o.Address == n.Address && o.Address != "" && k.known[o.ID].at.After(last)
		}) {
			limit = min(limit, awayAfter)
		}
		k.mu.Unlock()
		if n.ID != k.self() && n.Roles&RoleStorage == 0 && now.Sub(last) >= limit && len(s.DrivesOf(n.ID)) == 0 {
			ctx, cancel := context.WithTimeout(context.Background(), k.c.ChangeTimeout)
			if err := k.RemoveNode(ctx, n.ID); err == nil {
				k.log.Info("a gateway that was silent for long is forgotten", "node", n.ID)
			}
			cancel()
			return // one a second is enough
		}
	}
}

// moveAway does the next step that takes a voter off a drive. done: there is none, or nothing that can be done.
func (k *Control) moveAway(num uint16) (done bool, err error) {
	kind, pending, err := k.arrange(func(n uint16) bool { return n == num })
	if kind != noStep || pending || err != nil {
		return false, err
	}
	return true, nil
}

// arrange does the next step towards the servers that a cluster ought to have. pending: one has to be started, or to
// catch up, before the next.
func (k *Control) arrange(also func(num uint16) bool) (did stepKind, pending bool, err error) {
	leader := k.leader()
	if leader == nil {
		return noStep, false, errNoLeader
	}
	k.membership.Lock()
	defer k.membership.Unlock()
	m, err := k.membershipNow(leader, k.isBad(also))
	if err != nil {
		return noStep, false, err
	}
	st, start := m.next()
	k.starting = start
	for _, num := range start {
		if is, here := m.heard[k.self()].drives[num]; here && is.server == "" {
			if err := k.startOn(num, m.s.gen.generationID); err != nil {
				return noStep, true, err
			}
		}
	}
	if st.kind == noStep {
		return noStep, len(start) > 0, nil
	}
	r, addr := leader.raft, raft.ServerAddress(st.id)
	switch st.kind {
	case addLearner:
		err = leader.settled(r.AddNonvoter(st.id, addr, 0, k.c.ChangeTimeout))
	case addVoter:
		err = leader.settled(r.AddVoter(st.id, addr, 0, k.c.ChangeTimeout))
	default:
		err = k.take(leader, st)
	}
	if err == nil {
		k.log.Info("the raft servers of the cluster have changed", "change", st.kind.String(), "server", string(st.id))
	}
	return st.kind, false, err
}

// take takes a voter's vote, or removes a server. A leader lets another lead first, once in a term (see handOver).
func (k *Control) take(leader *voter, st step) error {
	if st.id == leader.id {
		if term := leader.raft.CurrentTerm(); leader.handed != term {
			leader.handed = term
			return leader.settled(leader.raft.LeadershipTransfer())
		}
		st.kind = remove // raft would stop a leader that has no vote any more, and keep it a member
	}
	if st.kind == demote {
		return leader.settled(leader.raft.DemoteVoter(st.id, 0, k.c.ChangeTimeout))
	}
	return leader.settled(leader.raft.RemoveServer(st.id, 0, k.c.ChangeTimeout))
}

func (s stepKind) String() string {
	return [...]string{"none", "a learner came", "a voter came", "a voter became a learner", "a server went"}[s]
}
