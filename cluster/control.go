package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// DriveStore is a drive as the control plane uses it.
type DriveStore struct {
	Num uint16
	KV  metadata.KV // the 'c' namespace
}

// Config is what a Control needs.
type Config struct {
	Drives []DriveStore // those that are open
	Logger *slog.Logger
	// Network reaches the other processes of the cluster; nil: there are none.
	Network Network
	// Peers returns nodes that may be reached now, as gossip knows them: a process that knows no state yet asks
	// them who leads. It may be nil.
	Peers func() []disk.ID
	// ChangeTimeout bounds one try of a change, and the wait for a leader in it; 0 means 4 s, and 8 s with a Network.
	ChangeTimeout time.Duration

	forgetAfter time.Duration // of a gateway that is silent; 0: forgetNode
	unknown     opCode        // in tests: a command that this build does not know
}

const (
	heartbeat     = 500 * time.Millisecond // long beside a slow sync: a leader that is only slow stays one
	beatOfCluster = 2 * time.Second        // the same among processes, which may wait for a processor and for each other
	copyTimeout   = time.Second            // that a change waits for the copies
	writeTimeout  = 5 * time.Second        // after which a voter's drive counts as stuck
	snapshotAfter = 1024                   // log entries between snapshots
	trailing      = 256                    // entries kept behind a snapshot
)

// Control is this process's part of the control plane.
type Control struct {
	c     Config
	log   *slog.Logger
	state atomic.Pointer[State]

	membership turn       // held while raft's configuration changes; taken before lifecycle
	lifecycle  turn       // held, also across waits, while a voter starts or stops: a drive never has two
	mu         sync.Mutex // guards what follows, and the order in which states are published
	voters     map[uint16]*voter
	copies     map[uint16]*copyOf
	late       map[*copyOf]bool // a write of the drive's voter was not done in time, and is on its way
	members    []raft.ServerID  // the voters, as known last
	tried      uint64           // number of the generation that Recover tried last
	closed     bool
	changed    chan struct{} // closed, and made anew, when the state changes

	// Of a cluster of several processes; see agent.go.
	hint     disk.ID                  // who leads, as another process said
	known    map[disk.ID]reported     // what the others reported to this process
	reports  uint64                   // made by this process
	named    map[uint16]raft.ServerID // what the rows of drives name
	away     map[uint16]time.Time     // since when drives are away, as the leader sees it
	ledTerm  uint64                   // the term in which it began to
	ledSince time.Time
	starting []uint16 // drives that ought to get a server; guarded by membership instead
	start    uint64   // names this run of the process; never changes
	wake     chan struct{}

	tasks   sync.WaitGroup        // copies being written, voters being shut down or replaced
	old     atomic.Pointer[error] // this build is older than what it met; see behind
	closing chan struct{}         // closed by Close
	barrier atomic.Uint64         // the newest term in which the leader's state is known to be current
}

// turn is a lock that is held across waits. A goroutine that waits for it is seen to wait by
// testing/synctest, which it is not on a mutex.
type turn chan struct{}

func newTurn() turn    { return make(turn, 1) }
func (t turn) Lock()   { t <- struct{}{} }
func (t turn) Unlock() { <-t }

// voter is one raft server.
type voter struct {
	num   uint16
	id    raft.ServerID
	raft  *raft.Raft
	trans *transport
	store *storage
	copy  *copyOf // on the same drive: tells this stay of the drive from a later one
	ended chan struct{}

	handed uint64 // the term in which it was to hand over its leadership, guarded by Control.membership
}

// settled waits for what was asked of a leader, or for its end.
func (v *voter) settled(f raft.Future) error {
	v.endsWith(f)
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-v.ended:
		return raft.ErrRaftShutdown
	}
}

// endsWith makes a future of raft end with the voter: raft forgets what was committed, and not yet applied, when it is shut
// down, and who waits for it would wait for ever. raft has a field for that in all of its futures, and sets it in some.
func (v *voter) endsWith(f raft.Future) {
	at := reflect.ValueOf(f)
	if at.Kind() != reflect.Pointer {
		return // answered already
	}
	if end := at.Elem().FieldByName("ShutdownCh"); end.IsValid() && end.CanSet() && end.IsNil() {
		end.Set(reflect.ValueOf(v.ended))
	}
}

// Open loads the state from the newest copy and starts the voters of the drives. A drive whose
// rows are damaged is left out, and reported in the log.
func Open(ctx context.Context, c Config) (*Control, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.ChangeTimeout <= 0 {
		c.ChangeTimeout = 4 * time.Second
		if c.Network != nil {
			c.ChangeTimeout = 4 * beatOfCluster // within which another leads
		}
	}
	if c.forgetAfter <= 0 {
		c.forgetAfter = forgetNode
	}
	k := &Control{c: c, log: c.Logger, voters: map[uint16]*voter{}, copies: map[uint16]*copyOf{}, late: map[*copyOf]bool{},
		membership: newTurn(), lifecycle: newTurn(), closing: make(chan struct{}), changed: make(chan struct{}),
		known: map[disk.ID]reported{}, named: map[uint16]raft.ServerID{}, away: map[uint16]time.Time{}, start: random(), wake: make(chan struct{}, 1)}
	k.state.Store(emptyState())
	for _, d := range c.Drives {
		s, err := readCopy(d.KV)
		if errs.Is(err, errs.Unsupported) { // left out, it would be overwritten with what this build knows
			return nil, errs.E("cluster.Open", errs.Unsupported, fmt.Sprintf("a newer build wrote the control plane's copy on drive %d: upgrade this one (%v)", d.Num, err))
		}
		if err != nil {
			k.log.Error("a drive's copy of the control plane is damaged and left out", "drive", d.Num, "err", err)
			continue
		}
		if s != nil && s.newerThan(k.State()) {
			k.state.Store(s)
		}
	}
	for _, d := range c.Drives {
		k.addCopy(d)
	}
	for _, d := range c.Drives {
		k.useVoter(d)
	}
	k.tasks.Go(k.steward)
	if k.networked() {
		if len(c.Drives) == 0 {
			k.startMemory()
		}
		k.tasks.Go(k.agent)
	}
	return k, ctx.Err()
}

// State returns what is known here now. It never blocks.
func (k *Control) State() *State { return k.state.Load() }

// Changed returns a channel that is closed when the state becomes another than it is at the call: take it
// first, and State then.
func (k *Control) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// show makes s the state. The caller holds mu.
func (k *Control) show(s *State) {
	k.state.Store(s)
	close(k.changed)
	k.changed = make(chan struct{})
}

// addCopy begins to write to a drive's copy, and brings it up to the state. A copy that is newer
// than the state becomes the state. Where the state is of another generation, the drive's voter is
// dropped together with what the copy had.
func (k *Control) addCopy(d DriveStore) {
	old, err := readCopy(d.KV)
	if errs.Is(err, errs.Unsupported) {
		k.log.Error("a newer build wrote the control plane's copy on a drive: upgrade this one; the copy stays as it is", "drive", d.Num, "err", err)
		return
	}
	if s := k.State(); err == nil && old != nil && old.gen != s.gen && old.newerThan(s) {
		k.enter(old)
	}
	k.mu.Lock()
	if err == nil && old != nil && old.newerThan(k.State()) {
		k.show(old)
	}
	s := k.State()
	cp := &copyOf{kv: d.KV, log: k.log.With("drive", d.Num), tasks: &k.tasks, gen: s.gen}
	k.copies[d.Num] = cp
	if err == nil && old != nil && old.gen == s.gen && old.Applied == s.Applied {
		cp.has = s.Applied // up to date; the next write is whole
	} else if s.Initialized() {
		var drop func(*metadata.Batch)
		if err == nil && !isOf(d.KV, s.gen.generationID) {
			drop = dropRows
		}
		cp.submitWith(s, drop)
	}
	k.mu.Unlock()
	k.await(s.Applied, cp)
}

// copyOn returns what writes the copy of a drive; nil if the drive is not here.
func (k *Control) copyOn(num uint16) *copyOf {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.copies[num]
}

// publish makes s the state, if it is newer, and begins to write the copies.
func (k *Control) publish(prev uint64, raw []byte, s *State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !s.newerThan(k.State()) {
		return
	}
	k.show(s)
	for _, cp := range k.copies {
		cp.submit(prev, raw, s)
	}
}

// await waits until copies (none named: those of all drives) have what was applied up to index, and
// returns the copies that do. A drive that is stuck holds it up for copyTimeout once, and is not waited
// for after that until it has caught up.
func (k *Control) await(index uint64, copies ...*copyOf) (have []*copyOf) {
	if copies == nil {
		k.mu.Lock()
		copies = slices.Collect(maps.Values(k.copies))
		k.mu.Unlock()
	}
	timer := time.NewTimer(copyTimeout)
	defer timer.Stop()
	late := false
	for _, cp := range copies {
		done := cp.reached(index)
		ok := false
		if late {
			select {
			case ok = <-done:
			default:
				cp.stuck()
			}
		} else {
			select {
			case ok = <-done:
			case <-timer.C:
				late = true
				cp.stuck()
			}
		}
		if ok {
			have = append(have, cp)
		}
	}
	return have
}

// copied reports whether a change is in enough copies to be answered, once those of this process were awaited, and
// those of others if these do not suffice.
func (k *Control) copied(ctx context.Context, index uint64) bool {
	have := k.numbers(k.await(index))
	s := k.State()
	return !s.Initialized() || s.enoughCopies(k.drivesHeard(), have) || k.clustered() && k.copiedElsewhere(ctx, index, have)
}

// numbers returns the drives whose copies these are, of those in the layout that are not retired.
func (k *Control) numbers(copies []*copyOf) (nums []uint16) {
	s := k.State()
	if !s.Initialized() {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, num := range s.lasting() {
		if cp := k.copies[num]; cp != nil && slices.Contains(copies, cp) {
			nums = append(nums, num)
		}
	}
	return nums
}

// enoughCopies decides whether a change that the copies of some drives have can be answered: they are so many that
// one of them is left when as much is lost as the profile allows. Drives that are away count as lost. A store of at most
// two drives relies on its copies, since there the one voter's log is the only other place: a change needs those of all
// drives that are here.
//
// What the profile allows is parity drives, or whole nodes, of which each may have up to f members of a
// partition. So a node counts for f copies at most, however many it has.
func (s *State) enoughCopies(here, have []uint16) bool {
	lasting, parity := s.lasting(), int(s.layout.Profile().Parity)
	if len(have) < copiesWanted(len(lasting), len(here), parity) {
		return false
	}
	all, left := s.weight(lasting), s.weight(here)
	return s.weight(have) >= min(left, max(1, parity+1-(all-left)))
}

// weight counts drives, and those of one node no higher than the members that a partition may have on it.
func (s *State) weight(nums []uint16) (sum int) {
	f, nodes := s.layout.Spread(), map[disk.ID]int{}
	for _, num := range nums {
		node, _ := s.NodeOfDrive(num)
		if nodes[node]++; nodes[node] <= f {
			sum++
		}
	}
	return sum
}

// copiesWanted returns how many of the copies that are here a change needs.
func copiesWanted(drives, here, parity int) int {
	if drives <= 2 {
		return here
	}
	return min(here, max(1, parity+1-(drives-here)))
}

// fsm is the state machine of one voter.
type fsm struct {
	k *Control
	v *voter
	// Used by raft's FSM goroutine only:
	s    *State
	stop error // it met an entry that it cannot apply, and applies none from there on
}

// Apply implements raft.FSM, as do the next two.
func (f *fsm) Apply(l *raft.Log) any {
	if f.stop != nil {
		return f.stop
	}
	if l.Index <= f.s.Applied {
		return nil // the copy had it
	}
	c, err := decodeCommand(l.Data)
	if err == nil && f.k.c.unknown != 0 && c.op == f.k.c.unknown {
		err = errs.E("cluster.decode", errs.Unsupported, "a command of a newer version")
	}
	if err != nil {
		f.stop = err
		f.k.behind(f.v, l.Index, err)
		return err
	}
	prev := f.s.Applied
	next, result := f.s.applyOnce(l.Index, c)
	f.s = next
	f.k.publish(prev, l.Data, next)
	return result
}

// Snapshot returns the state, which is immutable. There is none once an entry could not be applied: raft would drop
// the log up to behind it.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.stop != nil {
		return nil, f.stop
	}
	return fsmSnapshot{f.s}, nil
}

// behind ends the part that this process takes in the control plane, because it cannot apply an entry of the log that
// others have applied. Its state stays that of the entry before, which is as sound as that of a node that
// is cut off from the leader; it goes on from there once it is started with a build that knows the entry. It is called from within raft, so the server is shut down elsewhere.
func (k *Control) behind(v *voter, index uint64, err error) {
	what := "an entry of the control plane's log is damaged; this process"
	if errs.Is(err, errs.Unsupported) {
		what = "this build is older than an entry of the control plane's log: upgrade it; until then it"
	}
	// Of kind Unsupported, whatever it is: the rows of other voters here are not damaged.
	err = &errs.Error{Op: "cluster.apply", Kind: errs.Unsupported, Msg: what + " takes no part in the control plane, and serves by what it knows", Err: err}
	if k.old.Swap(&err) == nil {
		k.log.Error(what+" takes no part in the control plane, and serves by what it knows", "entry", index, "err", errs.Public(err))
	}
	v.trans.cut()
	k.tasks.Go(func() { k.stopVoter(v.num, v) })
}

// Behind returns why this process takes no part in the control plane any more, of kind Unsupported if its build is older
// than what was changed; nil as a rule. What it knows stays as it is.
func (k *Control) Behind() error {
	if err := k.old.Load(); err != nil {
		return *err
	}
	return nil
}

// Restore replaces the state.
func (f *fsm) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	s, err := decodeState(b)
	if err != nil {
		f.stop = err
		f.k.behind(f.v, 0, err)
		return err
	}
	if s.newerThan(f.s) {
		f.s = s
		f.k.publish(0, nil, s)
	}
	return nil
}

type fsmSnapshot struct{ s *State }

func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := io.Copy(sink, bytes.NewReader(s.s.encode())); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (fsmSnapshot) Release() {}

// useVoter starts the voter that a drive's rows name. A drive that ought to have one and whose rows
// are lost or damaged gets another under a new id, as soon as there is a leader.
func (k *Control) useVoter(d DriveStore) {
	id, err := k.startVoter(d)
	if err != nil {
		k.log.Error("the voter on a drive cannot start", "drive", d.Num, "err", err)
	}
	k.setNamed(d.Num, id)
	if k.clustered() || k.networked() && !k.State().Initialized() {
		if errs.Is(err, errs.Corrupt) { // its former id goes, and another comes, as the leader decides
			if err := dropVoter(d.KV); err != nil {
				k.log.Error("the damaged rows of a voter could not be dropped", "drive", d.Num, "err", err)
			}
			k.setNamed(d.Num, "")
		}
		k.nudge()
		return
	}
	if k.State().Initialized() && (err == nil || errs.Is(err, errs.Corrupt)) {
		cp := k.copyOn(d.Num)
		k.tasks.Go(func() { k.admit(d, cp, id, err != nil) })
	}
}

// startVoter starts the voter that a drive's rows name, and returns its id; "" for none. One of another
// generation than the state's does not count.
func (k *Control) startVoter(d DriveStore) (raft.ServerID, error) {
	k.lifecycle.Lock()
	defer k.lifecycle.Unlock()
	id, gen, err := readVoter(d.KV)
	if err != nil || id == "" {
		return "", err
	}
	s := k.State()
	if s.Initialized() && gen != s.gen.generationID {
		k.log.Warn("the voter on a drive is of another generation of the control plane, and does not start", "drive", d.Num, "generation", gen.number, "now", s.gen.number)
		return "", nil
	}
	k.mu.Lock()
	is, late := k.voters[d.Num], k.late[k.copies[d.Num]]
	stop := k.closed || is != nil
	k.mu.Unlock()
	if stop {
		return id, nil
	}
	if late { // it is tried again when that is done
		return id, errs.E("cluster.startVoter", errs.Drive, "the drive is stuck")
	}
	return id, k.startServer(d, id)
}

// startServer starts a raft server from the rows of a drive. The caller holds lifecycle.
func (k *Control) startServer(d DriveStore, id raft.ServerID) (err error) {
	if err := k.Behind(); err != nil {
		return err
	}
	v := &voter{num: d.Num, id: id, copy: k.copyOn(d.Num), ended: make(chan struct{})}
	if v.store, err = openStorage(d.KV, func(err error, late <-chan error) { k.cutOff(d, v, err, late) }); err != nil {
		return err
	}
	isHere := func(addr raft.ServerAddress) bool { return k.runs(raft.ServerID(addr)) != nil }
	v.trans = newTransport(id, k.dialRaft(), isHere, k.log.With("voter", string(id)))
	c := raft.DefaultConfig()
	c.LocalID = v.id
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = heartbeat, heartbeat, heartbeat/2
	if k.networked() {
		// Nothing is answered on the strength of the lease alone, so it may last until the others lose patience.
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = beatOfCluster, beatOfCluster, beatOfCluster
	}
	c.SnapshotThreshold, c.TrailingLogs = snapshotAfter, trailing
	c.SnapshotInterval = time.Minute
	c.NoLegacyTelemetry = true
	c.Logger = raftLog(k.log.With("voter", string(id)))
	if v.raft, err = raft.NewRaft(c, &fsm{k: k, v: v, s: k.State()}, v.store, v.store, v.store, v.trans); err != nil {
		v.trans.cut()
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range k.voters {
		o.trans.Connect(v.trans.LocalAddr(), v.trans.InmemTransport)
		v.trans.Connect(o.trans.LocalAddr(), o.trans.InmemTransport)
	}
	k.voters[d.Num], k.named[d.Num] = v, id
	return nil
}

// cutOff isolates a voter whose storage failed. It is called with the storage's lock held, from
// within raft, so the voter is shut down elsewhere. late is not nil if the write was merely not
// done in time: it brings the outcome, and when that is good the voter starts again.
func (k *Control) cutOff(d DriveStore, v *voter, err error, late <-chan error) {
	k.log.Error("the drive of a voter failed; the voter is stopped", "drive", v.num, "err", err)
	v.trans.cut()
	if late != nil {
		k.mu.Lock()
		k.late[v.copy] = true
		k.mu.Unlock()
	}
	k.tasks.Go(func() {
		k.stopVoter(v.num, v)
		if late == nil {
			return
		}
		select {
		case err = <-late:
		case <-k.closing:
			return
		}
		k.mu.Lock()
		delete(k.late, v.copy)
		k.mu.Unlock()
		if err == nil && k.copyOn(d.Num) == v.copy { // neither lost nor returned meanwhile
			k.useVoter(d)
		}
	})
}

// stopVoter stops the voter of a drive, if it is v (nil: whichever), and reports whether it did.
func (k *Control) stopVoter(num uint16, v *voter) bool {
	k.lifecycle.Lock()
	defer k.lifecycle.Unlock()
	return k.stopped(num, v)
}

// stopped is stopVoter for who holds lifecycle.
func (k *Control) stopped(num uint16, v *voter) bool {
	k.mu.Lock()
	at := k.voters[num]
	if at == nil || v != nil && at != v {
		k.mu.Unlock()
		return false
	}
	delete(k.voters, num)
	for _, o := range k.voters {
		o.trans.Disconnect(at.trans.LocalAddr())
	}
	k.mu.Unlock()
	at.trans.cut()
	if err := at.raft.Shutdown().Error(); err != nil {
		k.log.Warn("a voter did not stop cleanly", "drive", num, "err", err)
	}
	close(at.ended)
	return true
}

// admit sees to it that the voter of a drive is a member of raft's configuration, where the drive
// ought to have one: it waits for a leader, and ends when the drive goes away.
func (k *Control) admit(d DriveStore, cp *copyOf, id raft.ServerID, damaged bool) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		if k.copyOn(d.Num) != cp {
			return
		}
		if v := k.leader(); v != nil {
			done, err := k.admitBy(v, d, &id, &damaged)
			if done {
				return
			}
			if err != nil {
				k.log.Warn("the voter on a drive could not be admitted yet", "drive", d.Num, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-k.closing:
			return
		}
	}
}

// admitBy is one attempt of admit. raft must never meet a server that forgot its votes under the
// same id, so what replaces lost or damaged rows has a new, random one.
func (k *Control) admitBy(leader *voter, d DriveStore, id *raft.ServerID, damaged *bool) (done bool, err error) {
	k.membership.Lock()
	defer k.membership.Unlock()
	k.mu.Lock()
	if v := k.voters[d.Num]; v != nil {
		*id, *damaged = v.id, false // it may have got one since
	}
	k.mu.Unlock()
	f := leader.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return false, err
	}
	var former []raft.ServerID // voters that this drive had before
	for _, s := range f.Configuration().Servers {
		if s.ID == *id && !*damaged {
			return true, nil
		}
		if driveOf(s.ID) == d.Num {
			former = append(former, s.ID)
		}
	}
	s := k.State()
	enough := len(f.Configuration().Servers) >= votersWanted(len(s.lasting()))
	if len(former) == 0 && (enough || s.Retired(d.Num) || *id == "" && !*damaged) {
		// Not one of those with a voter, or not any more: it moved while the drive was away.
		k.stopVoter(d.Num, nil)
		if *id == "" {
			return true, nil
		}
		return true, dropVoter(d.KV)
	}
	if *id == "" || *damaged {
		fresh := raft.ServerID(voterID(d.Num) + "-" + rand.Text())
		if err := replaceVoter(d.KV, fresh, s.gen.generationID); err != nil {
			return errs.Is(err, errs.Drive), err
		}
		*id, *damaged = fresh, false
		k.log.Warn("a drive gets a new voter, because the rows of its former one are lost", "drive", d.Num, "voter", string(fresh))
	}
	started, err := k.startVoter(d)
	if err != nil {
		return errs.Is(err, errs.Drive), err
	}
	if started != *id { // it was of an earlier generation
		*id = started
		return false, nil
	}
	for _, old := range former {
		if err := leader.settled(leader.raft.RemoveServer(old, 0, k.c.ChangeTimeout)); err != nil {
			return false, err
		}
	}
	err = leader.settled(leader.raft.AddVoter(*id, raft.ServerAddress(*id), 0, k.c.ChangeTimeout))
	return err == nil, err
}

// driveOf returns the drive of a voter.
func driveOf(id raft.ServerID) uint16 {
	var num uint16
	if _, err := fmt.Sscanf(string(id), "drive-%d-", &num); err != nil {
		return 0
	}
	return num
}

// DriveLost stops what runs on a drive that went away. It does not wait for writes to its copy.
func (k *Control) DriveLost(num uint16) {
	k.mu.Lock()
	delete(k.copies, num)
	delete(k.named, num)
	k.mu.Unlock()
	k.stopVoter(num, nil)
}

// DriveReturned takes a drive into use again, from its own rows. No write to an earlier DriveStore
// of the drive may still be on its way: its owner closed that before.
func (k *Control) DriveReturned(d DriveStore) {
	k.DriveLost(d.Num)
	k.addCopy(d)
	k.useVoter(d)
}

// voterID is the raft id of the first voter that a drive has; that of one which replaces it goes on
// with something random.
func voterID(num uint16) string { return fmt.Sprintf("drive-%d-1", num) }

// Init makes the cluster: it chooses the voters, and applies the first state. It is idempotent,
// also over a crash in the middle: what was made first stays.
func (k *Control) Init(ctx context.Context, id [16]byte, l *placement.Layout, a Account, key AccessKey) error {
	const op = "cluster.Init"
	if k.State().Initialized() {
		return nil
	}
	drives := slices.Clone(k.c.Drives)
	slices.SortFunc(drives, func(a, b DriveStore) int { return int(a.Num) - int(b.Num) })
	if len(drives) >= 3 {
		drives = drives[:3]
	} else if len(drives) > 1 {
		drives = drives[:1]
	}
	if len(drives) == 0 {
		return errs.E(op, errs.Unavailable, "no drive is open")
	}
	var conf raft.Configuration
	for _, d := range drives {
		id := voterID(d.Num)
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	for _, d := range drives {
		if err := bootstrap(d, conf); err != nil {
			return errs.Wrap(op, err)
		}
	}
	for _, d := range drives {
		if _, err := k.startVoter(d); err != nil {
			return errs.Wrap(op, err)
		}
	}
	// The first election may take a few rounds.
	for {
		_, err := k.change(ctx, &command{op: opInit, cluster: id, layout: l, account: a, key: key})
		if !errs.Is(err, errs.Unavailable) || ctx.Err() != nil {
			return errs.Wrap(op, err)
		}
	}
}

// bootstrap writes the first raft configuration to a drive, unless it has one.
func bootstrap(d DriveStore, conf raft.Configuration) error {
	s, err := openStorage(d.KV, func(error, <-chan error) {})
	if err != nil {
		return err
	}
	has, err := raft.HasExistingState(s, s, s)
	if err != nil {
		return err
	}
	if !has {
		id := voterID(d.Num)
		c := raft.DefaultConfig()
		c.LocalID, c.Logger = raft.ServerID(id), hclog.NewNullLogger()
		_, trans := raft.NewInmemTransport(raft.ServerAddress(id))
		if err := raft.BootstrapCluster(c, s, s, s, trans, conf); err != nil {
			return err
		}
	}
	var b metadata.Batch
	voterRow(&b, raft.ServerID(voterID(d.Num)), generationID{})
	return d.KV.Apply(&b, true)
}

// HasLeader reports whether changes are possible now.
func (k *Control) HasLeader() bool {
	return k.leader() != nil || k.networked() && k.leaderNode() != disk.ID{}
}

// Close lets another process lead, if this one does, stops the voters, and waits for what is being written.
func (k *Control) Close() {
	if k.clustered() {
		k.handOverAll()
	}
	k.mu.Lock()
	if !k.closed {
		close(k.closing)
	}
	k.closed = true
	var nums []uint16
	for n := range k.voters {
		nums = append(nums, n)
	}
	k.mu.Unlock()
	for _, n := range nums {
		k.stopVoter(n, nil)
	}
	k.tasks.Wait()
}

// handOverAll lets another process lead, if this one does and another can, so that the cluster need not find out that its leader has
// gone. It waits for that a moment.
func (k *Control) handOverAll() {
	timer := time.NewTimer(beatOfCluster)
	defer timer.Stop()
	select {
	case k.membership <- struct{}{}:
		defer k.membership.Unlock()
	case <-timer.C:
		return
	}
	v := k.leader()
	if v == nil {
		return
	}
	term := v.raft.CurrentTerm()
	if v.handed == term {
		return
	}
	v.handed = term
	done := make(chan error, 1)
	go func() { done <- v.settled(v.raft.LeadershipTransfer()) }() // ends with the voter, which is stopped next
	select {
	case err := <-done:
		if err != nil {
			k.log.Debug("no other process leads the control plane yet", "err", err)
		}
	case <-timer.C:
	}
}

// raftLog passes raft's log on: its warnings as details, because elections are ordinary.
func raftLog(l *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Info, Output: slogWriter{l}, DisableTime: true})
}

type slogWriter struct{ l *slog.Logger }

func (w slogWriter) Write(p []byte) (int, error) {
	w.l.Debug(string(bytes.TrimSpace(p)))
	return len(p), nil
}
