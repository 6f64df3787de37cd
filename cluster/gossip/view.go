package gossip

import (
	"bytes"
	"cmp"
	"slices"
	"time"
)

// State is what gossip believes of a member.
type State uint8

// The states of a member. A failed one may be alive, and the other way round.
const (
	Alive  State = iota + 1
	Failed       // it does not answer
	Left         // it said that it goes
)

// String names the state.
func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Failed:
		return "failed"
	case Left:
		return "left"
	}
	return "unknown"
}

// Flapping is having failed so often within so long. It is reported, and changes nothing.
const (
	flapCount  = 3
	flapWindow = 10 * time.Minute
)

// Member is one node as it is seen from here.
type Member struct {
	Tags  Tags
	State State
	Since time.Time // when the state began, as seen here, by the clock here
	// Address is where its gossip is, host:port.
	Address string
	// Failures counts how often it was seen to fail since it was first seen.
	Failures int
	Flapping bool // it failed three times or more within the last ten minutes, as of the View
	Self     bool
}

// Duplicate is a node id that two processes or more claim at the same time, as after the copying of a
// drive. A process that was started again elsewhere looks the same until the former one is seen to have failed.
type Duplicate struct {
	Node      [16]byte
	Addresses []string // of their gossip, ascending
}

// View is who is there, as of one moment. It is immutable and safe for concurrent use.
type View struct {
	Number     uint64   // rises with every View of a Group
	Members    []Member // ascending by node id; one each
	Duplicates []Duplicate
	Foreign    int // members that are not counted: of another cluster, or with tags that do not parse
	Dropped    int // events of members beyond the 8,192 that are remembered
}

// Member returns the member of a node id.
func (v *View) Member(node [16]byte) (Member, bool) {
	i, found := slices.BinarySearchFunc(v.Members, node, func(m Member, id [16]byte) int { return bytes.Compare(m.Tags.Node[:], id[:]) })
	if !found {
		return Member{}, false
	}
	return v.Members[i], true
}

// Alive counts the members that are.
func (v *View) Alive() (n int) {
	for _, m := range v.Members {
		if m.State == Alive {
			n++
		}
	}
	return n
}

// run is one member of serf: one run of a process.
type run struct {
	tags    Tags
	state   State
	since   time.Time
	address string
	foreign bool // tags are not known
	self    bool
}

// maxRuns bounds what is remembered; of further ones the events are counted.
const maxRuns = 8192

// roster gathers serf's events. It reads no clock and makes no I/O.
type roster struct {
	cluster [16]byte
	self    string // serf's name of this process
	runs    map[string]*run
	fails   map[[16]byte]*failures
	dropped int // events of members that did not fit
}

// failures is when a node was seen to fail: how often, and the last times.
type failures struct {
	count int
	last  [flapCount]time.Time // as a ring; the next goes to count % flapCount
}

func newRoster(cluster [16]byte, self string) *roster {
	return &roster{cluster: cluster, self: self, runs: map[string]*run{}, fails: map[[16]byte]*failures{}}
}

// seen notes the state of a member and its tags. It returns why its tags are not used, the first time.
func (r *roster) seen(name, address string, tags map[string]string, state State, now time.Time) (bad error) {
	x := r.runs[name]
	if x == nil {
		if len(r.runs) >= maxRuns {
			r.dropped++
			return nil
		}
		x = &run{self: name == r.self}
		r.runs[name] = x
	}
	t, err := decode(tags, r.cluster)
	if err != nil && !x.foreign {
		bad = err
	}
	if state == Failed && x.state == Alive && err == nil {
		f := r.fails[t.Node]
		if f == nil {
			f = &failures{}
			r.fails[t.Node] = f
		}
		f.last[f.count%flapCount] = now
		f.count++
	}
	if f := r.fails[t.Node]; state == Left && x.state == Failed && f != nil && f.count > 0 {
		// That it goes came after its end was noticed: serf keeps no order there. It has not failed.
		f.count--
		f.last[f.count%flapCount] = time.Time{}
	}
	if x.state != state {
		x.state, x.since = state, now
	}
	x.tags, x.address, x.foreign = t, address, err != nil
	return bad
}

// gone forgets a member.
func (r *roster) gone(name string) {
	x := r.runs[name]
	if x == nil {
		return
	}
	delete(r.runs, name)
	for _, other := range r.runs {
		if !other.foreign && other.tags.Node == x.tags.Node {
			return
		}
	}
	delete(r.fails, x.tags.Node)
}

// view makes a View.
func (r *roster) view(number uint64, now time.Time) *View {
	v := &View{Number: number, Dropped: r.dropped}
	byNode := map[[16]byte][]*run{}
	for _, x := range r.runs {
		if x.foreign {
			v.Foreign++
			continue
		}
		byNode[x.tags.Node] = append(byNode[x.tags.Node], x)
	}
	for node, runs := range byNode {
		best := slices.MinFunc(runs, better)
		m := Member{Tags: best.tags, State: best.state, Since: best.since, Address: best.address, Self: best.self}
		if f := r.fails[node]; f != nil {
			m.Failures = f.count
			// With fewer failures than that the oldest place of the ring is the zero time.
			m.Flapping = now.Sub(f.last[f.count%flapCount]) < flapWindow
		}
		v.Members = append(v.Members, m)
		if d := claimed(runs); len(d) > 1 {
			v.Duplicates = append(v.Duplicates, Duplicate{node, d})
		}
	}
	slices.SortFunc(v.Members, func(a, b Member) int { return bytes.Compare(a.Tags.Node[:], b.Tags.Node[:]) })
	slices.SortFunc(v.Duplicates, func(a, b Duplicate) int { return bytes.Compare(a.Node[:], b.Node[:]) })
	return v
}

// better orders runs of one node: this process, then the living, then by when they began, the last first.
func better(a, b *run) int {
	return cmp.Or(
		-compareBool(a.self, b.self),
		-compareBool(a.state == Alive, b.state == Alive),
		b.tags.Began.Compare(a.tags.Began),
		b.since.Compare(a.since),
		cmp.Compare(a.address, b.address))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// claimed returns the addresses of the runs that are alive. One that was started again at the same address is one.
func claimed(runs []*run) (addresses []string) {
	for _, x := range runs {
		if x.state == Alive {
			addresses = append(addresses, x.address)
		}
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}
