package cluster

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// This file moves voters: off drives that are retired, or that stay away, onto drives that are here.

const (
	stewardEvery = time.Second
	awayAfter    = time.Minute // a drive that is away for longer leaves its voter to another
)

// votersWanted returns how many voters a cluster of so many lasting drives has.
func votersWanted(drives int) int {
	if drives >= 3 {
		return 3
	}
	return 1
}

// planVoters decides the next change of raft's configuration: a drive that gets a voter, or a server
// that goes; neither when all is well. bad tells of drives whose voter has to move; free are drives
// that could have one, the best first. A voter goes only once there are enough others.
func planVoters(servers []raft.ServerID, want int, bad func(num uint16) bool, free []uint16) (add uint16, remove raft.ServerID) {
	good := 0
	for _, id := range servers {
		if bad(driveOf(id)) {
			remove = id
		} else {
			good++
			free = slices.DeleteFunc(slices.Clone(free), func(num uint16) bool { return num == driveOf(id) })
		}
	}
	if good >= want {
		return 0, remove
	}
	free = slices.DeleteFunc(slices.Clone(free), bad)
	if len(free) == 0 || len(servers) == good && good%2 == 1 && len(free) == 1 && good+1 < want {
		return 0, "" // of two voters neither may be lost, of four no more than of three
	}
	return free[0], ""
}

// steward looks after the voters until Close.
func (k *Control) steward() {
	tick := time.NewTicker(stewardEvery)
	defer tick.Stop()
	since := map[uint16]time.Time{} // when a drive was first found to be away
	for {
		select {
		case <-tick.C:
		case <-k.closing:
			return
		}
		s := k.State()
		if !s.Initialized() {
			continue
		}
		k.voting() // is remembered
		if k.clustered() {
			if v := k.leader(); v != nil {
				k.lookAround(v)
			}
			continue
		}
		here := k.drivesHere()
		now := time.Now()
		for _, d := range s.Layout().Drives() {
			if slices.Contains(here, d.Num) {
				delete(since, d.Num)
			} else if _, ok := since[d.Num]; !ok {
				since[d.Num] = now
			}
		}
		bad := func(num uint16) bool {
			at, away := since[num]
			return s.Retired(num) || away && now.Sub(at) >= awayAfter
		}
		if _, err := k.moveVoter(bad); err != nil {
			k.log.Debug("the voters could not be changed yet", "err", err)
		}
	}
}

// drivesHere returns the drives whose copies are written, ascending.
func (k *Control) drivesHere() (nums []uint16) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for num := range k.copies {
		nums = append(nums, num)
	}
	slices.Sort(nums)
	return nums
}

// moveVoter does one step of the moves that bad asks for, as the leader. done: there is nothing to do,
// or nothing that can be done.
func (k *Control) moveVoter(bad func(num uint16) bool) (done bool, err error) {
	leader := k.leader()
	if leader == nil {
		return false, errNoLeader
	}
	k.membership.Lock()
	defer k.membership.Unlock()
	f := leader.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return false, err
	}
	var servers []raft.ServerID
	for _, s := range f.Configuration().Servers {
		servers = append(servers, s.ID)
	}
	s := k.State()
	free := slices.DeleteFunc(k.drivesHere(), func(num uint16) bool {
		_, ok := s.Layout().Drive(num)
		return !ok || s.Retired(num)
	})
	add, remove := planVoters(servers, votersWanted(len(s.lasting())), bad, free)
	switch {
	case add != 0:
		return false, k.addVoter(leader, add)
	case remove == "":
		return true, nil
	case remove == leader.id && len(servers) == 2:
		return false, k.handOver(leader, servers)
	}
	// A leader of three that removes itself steps down once that is committed without it.
	if err := leader.settled(leader.raft.RemoveServer(remove, 0, k.c.ChangeTimeout)); err != nil {
		return false, err
	}
	k.log.Info("a voter has left its drive", "drive", driveOf(remove), "voter", string(remove))
	k.stopVoter(driveOf(remove), nil)
	return false, nil
}

// handOver lets the other of two voters lead, which then removes this one: a leader of two that removed
// itself and crashed would leave a log that is newer than the other's, and vote for nobody. It is tried
// once in a term, and only if the other is level: raft refuses every change for ever when a second
// attempt in a term is cut short.
func (k *Control) handOver(leader *voter, servers []raft.ServerID) error {
	to := servers[0]
	if to == leader.id {
		to = servers[1]
	}
	k.mu.Lock()
	other := k.voters[driveOf(to)]
	k.mu.Unlock()
	term := leader.raft.CurrentTerm()
	if other == nil || other.id != to || other.raft.LastIndex() < leader.raft.LastIndex() || leader.handed == term {
		return errs.E("cluster.handOver", errs.Unavailable, "the other voter cannot lead yet")
	}
	leader.handed = term
	return leader.settled(leader.raft.LeadershipTransferToServer(to, raft.ServerAddress(to)))
}

// addVoter starts a voter on a drive that has none, and makes it a member. One that an earlier attempt
// left is used; it has never had a vote.
func (k *Control) addVoter(leader *voter, num uint16) error {
	cp := k.copyOn(num)
	if cp == nil {
		return errs.E("cluster.addVoter", errs.Drive, "the drive is gone")
	}
	d := DriveStore{Num: num, KV: cp.kv}
	k.mu.Lock()
	v := k.voters[num]
	k.mu.Unlock()
	var id raft.ServerID
	if v != nil {
		id = v.id
	} else {
		id = raft.ServerID(voterID(num) + "-" + rand.Text())
		if err := replaceVoter(d.KV, id, k.State().gen.generationID); err != nil {
			return err
		}
		if _, err := k.startVoter(d); err != nil {
			return err
		}
	}
	if err := leader.settled(leader.raft.AddVoter(id, raft.ServerAddress(id), 0, k.c.ChangeTimeout)); err != nil {
		return err
	}
	k.log.Info("a drive has a voter now", "drive", num, "voter", string(id))
	return nil
}

// evacuate moves the voter of a drive that is to be retired, so that the drive can be closed. Where
// that cannot be done in time it is left to the steward, unless the drive has the only voter: then
// the error is of kind Unavailable.
func (k *Control) evacuate(ctx context.Context, num uint16) error {
	s := k.State()
	if !s.Initialized() || s.Retired(num) {
		return nil
	}
	if !k.clustered() {
		return k.evacuateHere(ctx, num)
	}
	return k.withLeaderOr(ctx, func(*voter, time.Duration) error {
		return k.evacuateHere(ctx, num)
	}, func(node disk.ID, _ time.Duration) (done bool, err error) {
		r, err := k.ask(ctx, node, methodEvacuate, evacuateRequest(num), 2*k.c.ChangeTimeout+callTimeout)
		switch {
		case errs.Is(err, errs.Denied) || errs.Is(err, errs.Unsupported):
			return true, errs.Wrap("cluster.evacuate", err)
		case err != nil || !r.leads:
			return false, nil // nothing is lost by doing it again
		}
		return true, r.failed
	})
}

// evacuateHere is evacuate for the process that leads.
func (k *Control) evacuateHere(ctx context.Context, num uint16) error {
	s := k.State()
	bad := func(n uint16) bool { return n == num || s.Retired(n) }
	end := time.Now().Add(2 * k.c.ChangeTimeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var done bool
		var err error
		if k.clustered() {
			if k.leader() == nil { // it let another lead, perhaps because it was on that drive
				return raft.ErrNotLeader
			}
			done, err = k.moveAway(num)
		} else {
			done, err = k.moveVoter(bad)
		}
		if done || time.Now().After(end) {
			break
		}
		if err != nil {
			k.log.Debug("a voter could not be moved yet", "drive", num, "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errs.Wrap("cluster.evacuate", ctx.Err())
		}
	}
	v := k.leader()
	if v == nil && k.clustered() {
		return raft.ErrNotLeader
	} else if v == nil {
		return errNoLeader
	}
	f := v.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return errs.As("cluster.evacuate", errs.Unavailable, err)
	}
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter && driveOf(s.ID) != num {
			return nil
		}
	}
	return errs.E("cluster.evacuate", errs.Unavailable, "the drive has the only voter of the control plane, and no other drive can take it")
}
