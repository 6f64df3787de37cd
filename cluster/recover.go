package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// This file begins the control plane anew when the drives with a majority of its voters are lost.
// docs/decisions/0009-recovering-the-control-plane.md says why it is done so, and what its limits are.
//
// What it begins with is the State of this process: there is none newer here. Every copy was read when
// its drive came, and what a process applies is in its State before it is in a copy or answered. A
// change that was answered is in the copies of so many drives (copiesWanted) that one of them is here
// as long as no more drives are lost than the profile allows.

// Voter is one voter of the control plane.
type Voter struct {
	Drive uint16
	ID    string // raft's
	Here  bool   // it takes part
}

// Recovery is what Recover does, or has done.
type Recovery struct {
	Generation uint64  // number of the one that begins; the first has 0
	Applied    uint64  // index of the last command that is kept
	Former     []Voter // ascending by drive; none: on a process that has seen none of them
	Drives     []uint16
}

// String tells it to people.
func (r *Recovery) String() string {
	var former []string
	for _, v := range r.Former {
		is := "here"
		if !v.Here {
			is = "gone"
		}
		former = append(former, fmt.Sprintf("drive %d (%s)", v.Drive, is))
	}
	return fmt.Sprintf("generation %d, voters on drives %v; before: %s", r.Generation, r.Drives, strings.Join(former, ", "))
}

// voting returns the voters, as the one of them that could lead knows them, and the number that makes
// a majority. Of voters that are all away what is remembered is returned.
func (k *Control) voting() (list []Voter, majority int) {
	k.mu.Lock()
	running := slices.Collect(maps.Values(k.voters))
	ids := k.members
	k.mu.Unlock()
	if len(running) > 0 {
		// Only the one with the most recent log can be elected.
		best := slices.MaxFunc(running, func(a, b *voter) int {
			t, i := a.store.lastEntry()
			u, j := b.store.lastEntry()
			return cmp.Or(cmp.Compare(t, u), cmp.Compare(i, j))
		})
		if f := best.raft.GetConfiguration(); f.Error() == nil {
			ids = nil
			for _, s := range f.Configuration().Servers {
				if s.Suffrage == raft.Voter {
					ids = append(ids, s.ID)
				}
			}
			k.mu.Lock()
			k.members = ids
			k.mu.Unlock()
		}
	}
	for _, id := range ids {
		here := slices.ContainsFunc(running, func(v *voter) bool { return v.id == id })
		list = append(list, Voter{driveOf(id), string(id), here})
	}
	slices.SortFunc(list, func(a, b Voter) int {
		return cmp.Or(cmp.Compare(a.Drive, b.Drive), cmp.Compare(a.ID, b.ID))
	})
	return list, len(list)/2 + 1
}

// PlanRecovery says what Recover would do. The error is that of Recover, if it would do nothing.
func (k *Control) PlanRecovery() (Recovery, error) {
	return k.planRecovery(k.consult(context.Background()))
}

// consultation is what other processes say before a recovery.
type consultation struct {
	runs  map[string]bool // raft servers
	leads bool            // one of them leads
}

// consult asks the other processes which servers run there, and takes over their states as far as they are newer.
func (k *Control) consult(ctx context.Context) (c consultation) {
	if !k.networked() {
		return c
	}
	c.runs = map[string]bool{}
	var mu sync.Mutex // guards c
	var asking sync.WaitGroup
	own := appendGenerationID(nil, k.State().gen.generationID)
	for _, node := range k.peers() {
		asking.Go(func() {
			r, err := k.ask(ctx, node, methodHello, own, callTimeout)
			if err != nil {
				return
			}
			k.pull(ctx, node)
			mu.Lock()
			defer mu.Unlock()
			c.leads = c.leads || r.leads
			for _, id := range r.servers {
				c.runs[id] = true
			}
		})
	}
	asking.Wait()
	return c
}

func (k *Control) planRecovery(others consultation) (Recovery, error) {
	const op = "cluster.Recover"
	s := k.State()
	r := Recovery{Generation: s.gen.number + 1, Applied: s.Applied}
	if !s.Initialized() {
		return r, errs.E(op, errs.Unavailable, "no drive that is here has a readable copy of the control plane")
	}
	var majority int
	r.Former, majority = k.voting()
	here := 0
	for i := range r.Former {
		v := &r.Former[i]
		if v.Here = v.Here || others.runs[v.ID]; v.Here {
			here++
		}
	}
	if others.leads || here > 0 && here >= majority {
		why := "a majority of its voters is here, and elects a leader: wait for that"
		if others.leads || k.leader() != nil {
			why = "it has a leader"
		}
		return r, errs.E(op, errs.Precondition, "the control plane needs no recovery: "+why)
	}
	for _, c := range k.candidates(s, nil) {
		r.Drives = append(r.Drives, c.num)
	}
	if len(r.Drives) == 0 {
		return r, errNotRecovered
	}
	return r, nil
}

// candidate is a drive that may take a voter.
type candidate struct {
	num uint16
	cp  *copyOf
}

// candidates returns the drives that get the voters of a new generation: three that are here, or one
// where there are fewer. A drive that hangs has something on its way that must not meet new rows.
func (k *Control) candidates(s *State, without map[*copyOf]bool) (list []candidate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, num := range s.lasting() {
		if cp := k.copies[num]; cp != nil && !without[cp] && !k.late[cp] && !cp.isSlow() {
			list = append(list, candidate{num, cp})
		}
	}
	return list[:min(len(list), votersWanted(len(list)))]
}

// Recover begins a new generation of the control plane, with voters on drives that are here, from
// the newest state that is known. It is for an operator who has given up the drives of so many voters that there is
// no majority. While there is one the error is of kind Precondition, and nothing changes.
//
// The commit point is the write, to one drive each, that makes a majority of the new voters. A crash
// before leaves the control plane without a majority as it was; after it, the new one. What is
// lost is what was not answered; of what was answered nothing, as long as one drive is here whose
// copy had it. Of drives that return later rows and copies are replaced, whatever they hold.
//
// An error of kind Unknown says that the new generation has begun, and had no leader yet.
func (k *Control) Recover(ctx context.Context) (Recovery, error) {
	r, err := k.beginGeneration(ctx, k.consult(ctx))
	if err != nil {
		return r, err
	}
	k.log.Warn("the control plane was recovered", "generation", r.Generation, "voters", r.Drives, "applied", r.Applied)
	// From the first command on the generation is proven.
	end := time.Now().Add(4 * k.c.ChangeTimeout)
	for {
		_, err := k.change(ctx, &command{op: opBarrier})
		if err == nil {
			return r, nil
		}
		if again := errs.Is(err, errs.Unavailable) || errs.Is(err, errs.Unknown); !again || ctx.Err() != nil || time.Now().After(end) {
			return r, &errs.Error{Op: "cluster.Recover", Kind: errs.Unknown, Msg: "the control plane was begun anew, and has no leader yet", Err: err}
		}
	}
}

// beginGeneration stops the voters, makes new ones, and starts them.
func (k *Control) beginGeneration(ctx context.Context, others consultation) (Recovery, error) {
	k.membership.Lock()
	defer k.membership.Unlock()
	r, err := k.planRecovery(others)
	if err != nil {
		return r, err
	}
	r, err = k.makeVoters(ctx, r)
	k.startVoters()
	return r, err
}

// startVoters starts the voters of all drives that are here, as far as they are of this generation.
func (k *Control) startVoters() {
	k.mu.Lock()
	var list []DriveStore
	for num, cp := range k.copies {
		list = append(list, DriveStore{num, cp.kv})
	}
	k.mu.Unlock()
	slices.SortFunc(list, func(a, b DriveStore) int { return cmp.Compare(a.Num, b.Num) })
	for _, d := range list {
		k.useVoter(d)
	}
	if k.networked() && len(list) == 0 {
		k.startMemory()
	}
}

// makeVoters is the durable part of a recovery. Drives that cannot be written are passed over.
func (k *Control) makeVoters(ctx context.Context, r Recovery) (Recovery, error) {
	k.lifecycle.Lock()
	defer k.lifecycle.Unlock()
	term := k.stopAll() + 1
	failed := map[*copyOf]bool{}
	for ctx.Err() == nil {
		s := k.State() // nothing is applied any more: only a drive that comes brings another
		chosen := k.candidates(s, failed)
		if len(chosen) == 0 {
			return r, errNotRecovered
		}
		k.mu.Lock()
		k.tried = max(k.tried, s.gen.number) + 1
		id := generationID{k.tried, time.Now().UnixNano(), random()}
		k.mu.Unlock()
		next := s.nextGeneration(id)
		r.Generation, r.Applied, r.Drives = id.number, s.Applied, nil
		var conf raft.Configuration
		for _, c := range chosen {
			id := withNode(raft.ServerID(voterID(c.num)+"-"+rand.Text()), k.self())
			conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id)})
			r.Drives = append(r.Drives, c.num)
		}
		written := k.writeVoters(chosen, conf, next, term)
		for _, c := range chosen {
			failed[c.cp] = !written[c.cp]
		}
		// The commit point, in this process: a majority of the voters has been made. Elsewhere it is the write
		// that made it.
		if n := count(written); n >= len(chosen)/2+1 && k.enterNew(s, next, conf, written) {
			return r, nil
		}
	}
	return r, errs.Wrap("cluster.Recover", ctx.Err())
}

// writeVoters makes the voters of conf, each with the copy of its drive in one batch, and returns
// those that were made in time.
func (k *Control) writeVoters(chosen []candidate, conf raft.Configuration, s *State, term uint64) map[*copyOf]bool {
	for i, c := range chosen {
		c.cp.submitWith(s, func(b *metadata.Batch) { foundVoter(b, conf.Servers[i].ID, s, term, conf) })
	}
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	written, late := map[*copyOf]bool{}, false
	for _, c := range chosen {
		done := c.cp.reached(s.Applied)
		if !late {
			select {
			case written[c.cp] = <-done:
				continue
			case <-timer.C:
				late = true
			}
		}
		select {
		case written[c.cp] = <-done:
		default:
			c.cp.stuck()
		}
	}
	return written
}

// enterNew makes next the state, unless s is not any more. The copies of all drives follow, and
// voters of earlier generations are dropped.
func (k *Control) enterNew(s, next *State, conf raft.Configuration, written map[*copyOf]bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.State() != s {
		return false
	}
	k.show(next)
	k.members = nil
	for _, x := range conf.Servers {
		k.members = append(k.members, x.ID)
	}
	k.barrier.Store(0)
	for _, cp := range k.copies {
		if !written[cp] {
			cp.submitWith(next, dropRows)
		}
	}
	return true
}

// enter takes over s, which a drive that came brought from a later generation than that of this process. The
// voters of this one stop for good.
func (k *Control) enter(s *State) {
	k.membership.Lock()
	defer k.membership.Unlock()
	if k.enterLater(s) {
		k.startVoters()
	}
}

func (k *Control) enterLater(s *State) bool {
	k.lifecycle.Lock()
	defer k.lifecycle.Unlock()
	if !s.newerThan(k.State()) {
		return false
	}
	k.log.Error("a drive has a later generation of the control plane, which is used from now on; changes that were made here since are lost",
		"generation", s.gen.number, "instead", k.State().gen.number)
	k.stopAll()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.show(s)
	k.members = nil
	k.barrier.Store(0)
	for _, cp := range k.copies {
		var drop func(*metadata.Batch)
		if !isOf(cp.kv, s.gen.generationID) {
			drop = dropRows
		}
		cp.submitWith(s, drop)
	}
	return true
}

// stopAll stops all voters, and returns a term that none of them was beyond. The caller holds lifecycle.
func (k *Control) stopAll() (term uint64) {
	k.mu.Lock()
	list := slices.Collect(maps.Values(k.voters))
	k.mu.Unlock()
	for _, v := range list {
		k.stopped(v.num, v)
		term = max(term, v.raft.CurrentTerm())
	}
	return max(term, k.barrier.Load())
}

func count(set map[*copyOf]bool) (n int) {
	for _, in := range set {
		if in {
			n++
		}
	}
	return n
}

func random() uint64 {
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	return binary.BigEndian.Uint64(b[:])
}
