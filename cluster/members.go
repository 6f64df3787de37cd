package cluster

import (
	"cmp"
	"maps"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/disk"
)

// This file decides which raft servers a cluster of several processes has: voters spread over zones and nodes, and
// a learner on every other node. It is pure: what is known goes in, one step comes out.

// seat is a drive that could have a voter.
type seat struct {
	num   uint16
	node  disk.ID
	zone  string
	voter bool // it has one
	ready bool // it has a learner
}

// chooseVoters returns the drives that ought to have the voters: over as many zones as possible, then over as many
// nodes. Among equals those stay that are, so that what is well is left alone; then learners, which know everything.
func chooseVoters(seats []seat, want int) (nums []uint16) {
	zones, nodes := map[string]int{}, map[disk.ID]int{}
	seats = slices.Clone(seats)
	for len(nums) < want && len(seats) > 0 {
		i := 0
		for j := range seats {
			if compareSeats(seats[j], seats[i], zones, nodes) < 0 {
				i = j
			}
		}
		zones[seats[i].zone]++
		nodes[seats[i].node]++
		nums = append(nums, seats[i].num)
		seats = slices.Delete(seats, i, i+1)
	}
	return nums
}

func compareSeats(a, b seat, zones map[string]int, nodes map[disk.ID]int) int {
	return cmp.Or(cmp.Compare(zones[a.zone], zones[b.zone]), cmp.Compare(nodes[a.node], nodes[b.node]),
		compareBool(b.voter, a.voter), compareBool(b.ready, a.ready), cmp.Compare(a.num, b.num))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// clusterVoters returns how many voters a cluster with these lasting drives has: five where five nodes have drives.
func (s *State) clusterVoters() int {
	lasting, nodes := s.lasting(), map[disk.ID]bool{}
	for _, num := range lasting {
		node, _ := s.NodeOfDrive(num)
		nodes[node] = true
	}
	if len(nodes) >= 5 {
		return 5
	}
	return votersWanted(len(lasting))
}

// heard is what a node reported lately.
type heard struct {
	drives  map[uint16]onDrive // that are here
	memory  raft.ServerID      // of its server in memory; "" for none
	current bool               // it lags little behind the leader
}

// onDrive is the server that the rows of a drive name.
type onDrive struct {
	server raft.ServerID // "" for none
	runs   bool
}

// membership is what is known when a step is decided.
type membership struct {
	s       *State
	servers []raft.Server // raft's configuration
	heard   map[disk.ID]heard
	bad     func(num uint16) bool // the drive may have no server: it is retired, or has been away for long
	silent  func(node disk.ID) bool
}

// stepKind is what a step does.
type stepKind uint8

const (
	noStep stepKind = iota
	addLearner
	addVoter
	demote
	remove
)

// step is one change of raft's configuration.
type step struct {
	kind stepKind
	id   raft.ServerID
}

// next returns the next step, and the drives on which a server has to be started, or to catch up, for one later.
func (m *membership) next() (st step, start []uint16) {
	if id := m.forgotten(); id != "" {
		return step{remove, id}, nil
	}
	st, start, target := m.nextVoter()
	if st.kind != noStep {
		return st, start
	}
	learner, more := m.nextLearner(target)
	return learner, append(start, more...)
}

// forgotten returns a server whose rows are lost: its drive is here, and names another or none.
func (m *membership) forgotten() raft.ServerID {
	for _, x := range m.servers {
		h, ok := m.heard[m.s.nodeOf(x.ID)]
		if !ok {
			continue
		}
		if num := driveOf(x.ID); num == 0 {
			if h.memory != x.ID {
				return x.ID
			}
		} else if is, here := h.drives[num]; here && is.server != x.ID {
			return x.ID
		}
	}
	return ""
}

// nextVoter moves the voters towards where they ought to be. target are the drives that ought to have one.
func (m *membership) nextVoter() (st step, start, target []uint16) {
	var voters []raft.ServerID
	has := map[uint16]raft.Server{}
	for _, x := range m.servers {
		has[driveOf(x.ID)] = x
		if x.Suffrage == raft.Voter {
			voters = append(voters, x.ID)
		}
	}
	var seats []seat
	for _, num := range m.s.lasting() {
		d, _ := m.s.layout.Drive(num)
		_, here := m.onDrive(num)
		x, member := has[num]
		voter := member && x.Suffrage == raft.Voter
		if !m.bad(num) && (here || voter) {
			seats = append(seats, seat{num, d.Node, d.Zone, voter, member})
		}
	}
	want := m.s.clusterVoters()
	target = chooseVoters(seats, want)
	var free []uint16
	for _, num := range target {
		if x, member := has[num]; !member || x.Suffrage != raft.Voter {
			free = append(free, num)
		}
	}
	bad := func(num uint16) bool {
		return m.bad(num) || len(target) == want && !slices.Contains(target, num)
	}
	add, gone := planVoters(voters, want, bad, free)
	switch {
	case add != 0:
		return m.towardsVoter(add, has[add]), m.pending(add), target
	case gone == "":
		return step{}, nil, target
	}
	// Fewer are wanted now. Without another that serves, a vote that nobody casts could be needed for a majority, and so could
	// that of a drive that is about to be closed: they go first.
	for _, id := range voters {
		if m.useless(id) > m.useless(gone) {
			gone = id
		}
	}
	if num := driveOf(gone); m.stays(gone) && !m.bad(num) {
		return step{demote, gone}, nil, target
	}
	return step{remove, gone}, nil, target
}

// useless says how little the vote of a voter is worth: 2 if its drive may have none and it does not run, 1 if it still runs.
func (m *membership) useless(id raft.ServerID) int {
	num := driveOf(id)
	switch on, here := m.heard[m.s.nodeOf(id)].drives[num]; {
	case !m.bad(num):
		return 0
	case here && on.runs && on.server == id:
		return 1
	}
	return 2
}

// stays reports whether a voter that is one no more is of use as the learner of its node.
func (m *membership) stays(id raft.ServerID) bool {
	node := m.s.nodeOf(id)
	_, here := m.onDrive(driveOf(id))
	return here && !slices.ContainsFunc(m.servers, func(x raft.Server) bool { return x.ID != id && m.s.nodeOf(x.ID) == node })
}

// onDrive returns what was heard of a drive; false if it is not here.
func (m *membership) onDrive(num uint16) (onDrive, bool) {
	node, _ := m.s.NodeOfDrive(num)
	is, ok := m.heard[node].drives[num]
	return is, ok
}

// pending returns the drive if a server has to be started on it, or to catch up.
func (m *membership) pending(num uint16) []uint16 {
	if _, here := m.onDrive(num); here {
		return []uint16{num}
	}
	return nil
}

// towardsVoter makes a learner of what runs on a drive, and then a voter, when it knows what the others do.
func (m *membership) towardsVoter(num uint16, is raft.Server) step {
	on, _ := m.onDrive(num)
	node, _ := m.s.NodeOfDrive(num)
	switch {
	case !on.runs:
		return step{}
	case is.ID == "":
		return step{addLearner, on.server}
	case m.heard[node].current:
		return step{addVoter, on.server}
	}
	return step{}
}

// nextLearner sees to it that every node that was heard of has one server, and that no other is left. Servers on
// the drives in target stay.
func (m *membership) nextLearner(target []uint16) (st step, start []uint16) {
	of := map[disk.ID][]raft.Server{}
	for _, x := range m.servers {
		node := m.s.nodeOf(x.ID)
		of[node] = append(of[node], x)
		if x.Suffrage == raft.Voter {
			continue
		}
		num := driveOf(x.ID)
		_, lasts := m.s.layout.Drive(num)
		_, known := m.s.Node(node)
		if !known || num != 0 && (!lasts || m.bad(num)) || num == 0 && m.silent(node) {
			return step{remove, x.ID}, nil
		}
	}
	for _, n := range m.s.nodes {
		h, ok := m.heard[n.ID]
		if !ok {
			continue
		}
		one, more := m.learnerOf(h, of[n.ID], target)
		start = append(start, more...)
		if st.kind == noStep {
			st = one
		}
	}
	return st, start
}

func (m *membership) learnerOf(h heard, servers []raft.Server, target []uint16) (st step, start []uint16) {
	onDrives := slices.ContainsFunc(servers, func(x raft.Server) bool { return driveOf(x.ID) != 0 })
	if !onDrives {
		for _, num := range slices.Sorted(maps.Keys(h.drives)) {
			if _, lasts := m.s.layout.Drive(num); !lasts || m.bad(num) {
				continue
			}
			if on := h.drives[num]; on.runs {
				return step{addLearner, on.server}, nil
			} else if start == nil && on.server == "" {
				start = []uint16{num}
			}
		}
		if len(servers) == 0 && h.memory != "" {
			st = step{addLearner, h.memory}
		}
		return st, start
	}
	keep := slices.IndexFunc(servers, func(x raft.Server) bool { return x.Suffrage == raft.Voter })
	if keep < 0 {
		keep = slices.IndexFunc(servers, func(x raft.Server) bool { return driveOf(x.ID) != 0 })
	}
	for i, x := range servers {
		if i != keep && x.Suffrage != raft.Voter && !slices.Contains(target, driveOf(x.ID)) {
			return step{remove, x.ID}, nil
		}
	}
	return step{}, nil
}

// dropped returns the servers on a node that are no members, and that nobody is going to make members.
func (m *membership) dropped(node disk.ID, wanted func(num uint16) bool) (ids []raft.ServerID) {
	h := m.heard[node]
	has := slices.ContainsFunc(m.servers, func(x raft.Server) bool { return m.s.nodeOf(x.ID) == node && driveOf(x.ID) != 0 })
	member := func(id raft.ServerID) bool {
		return slices.ContainsFunc(m.servers, func(x raft.Server) bool { return x.ID == id })
	}
	for num, on := range h.drives {
		if on.server == "" || member(on.server) || wanted(num) {
			continue
		}
		if _, lasts := m.s.layout.Drive(num); has || !lasts || m.bad(num) {
			ids = append(ids, on.server)
		}
	}
	if h.memory != "" && has && !member(h.memory) {
		ids = append(ids, h.memory)
	}
	slices.Sort(ids)
	return ids
}
