package metadata

import (
	"slices"

	"github.com/ostraka/ostraka/placement"
)

// What many machines add to the simulation. With features.lag each drive and each gateway has a copy of the
// control plane of its own, which is as of some change and may stay there for long; a drive that restarts may
// even know less than before. With features.sides a gateway and some drives are for a while on the one side of
// a partition, and all others, the leader of the control plane among them, on the other. With features.oneWay
// what a gateway sends does not arrive at some drives, or what these answer does not come back. With
// features.movers a mover falls in a certain phase, and others take over while its messages still arrive.

// simView is the control plane as of one of its changes.
type simView struct {
	layout []placement.Group
	bucket simBucketState
}

// simCopy is somebody's copy of the control plane.
type simCopy struct {
	knows int  // index into sim.log
	blind bool // it does not learn by itself
}

// simGate is a gateway, at which several requests are at work.
type simGate struct {
	simCopy
	skew       uint64
	deaf, mute uint32 // drives that its requests do not reach; whose replies do not reach it
}

const (
	simGates  = 3
	simFalls  = 6 // of movers, in one schedule
	simSwaps  = 2 // transitions of a schedule
	simSwaps2 = 4 // the same with features.lag, so that a copy may be several epochs old

	simReunite = 120 // idle steps after which partitions end: many time-outs
)

// published keeps the control plane as it is now. It is called after each change.
func (s *sim) published() {
	if s.with.lag {
		s.log = append(s.log, simView{slices.Clone(s.layout), s.bucket})
	}
}

// known is the layout of drive i.
func (s *sim) known(i int) []placement.Group {
	if !s.with.lag {
		return s.layout
	}
	return s.log[s.drives[i].knows].layout
}

// view is the control plane as the gateway knows it.
func (c *proc) view() simView {
	if !c.s.with.lag {
		return simView{c.s.layout, c.s.bucket}
	}
	return c.s.log[c.gate.knows]
}

// ask brings the gateway's copy up to date, if it reaches the leader.
func (c *proc) ask() {
	s := c.s
	if !s.with.lag || c.gate == s.lonely {
		return
	}
	if odds := 4; !c.gate.blind && s.rng.IntN(odds) > 0 || s.rng.IntN(odds) == 0 {
		c.gate.knows = len(s.log) - 1
	}
}

// away says that the leader of the control plane is on the other side.
func (c *proc) away() bool { return c.s.lonely != nil && c.gate == c.s.lonely }

// told says that the gateway has the newest control plane, as whoever changed it does.
func (c *proc) told() {
	if c.s.with.lag {
		c.gate.knows = len(c.s.log) - 1
	}
}

// learn lets somebody hear of changes.
func (s *sim) learn() {
	last := len(s.log) - 1
	if last == 0 {
		return
	}
	var who *simCopy
	if i := s.rng.IntN(len(s.drives) + len(s.gates)); i < len(s.drives) {
		if s.minor>>i&1 > 0 {
			return
		}
		who = &s.drives[i].simCopy
	} else {
		if g := s.gates[i-len(s.drives)]; g != s.lonely {
			who = &g.simCopy
		} else {
			return
		}
	}
	switch {
	case s.rng.IntN(10) == 0:
		who.blind = !who.blind
	case !who.blind:
		who.knows += s.rng.IntN(last - who.knows + 1)
	}
}

// split cuts a gateway off from some drives, in one direction or both, or ends that.
func (s *sim) split() {
	g := s.gates[s.rng.IntN(len(s.gates))]
	if g.deaf|g.mute != 0 {
		g.deaf, g.mute = 0, 0
		s.tr("a gateway reaches all drives again")
		return
	}
	mask := uint32(1) << s.rng.IntN(len(s.drives))
	if s.rng.IntN(2) == 0 {
		for i := range s.drives {
			if s.rng.IntN(3) == 0 {
				mask |= 1 << i
			}
		}
	}
	way := s.rng.IntN(3)
	if way != 0 {
		g.deaf = mask
	}
	if way != 1 {
		g.mute = mask
	}
	s.tr("a gateway does not reach %b, and does not hear %b", g.deaf, g.mute)
}

// someGate picks the gateway of a request.
func (s *sim) someGate() *simGate {
	switch {
	case len(s.gates) == 0:
		return nil
	case s.lonely != nil && s.rng.IntN(3) == 0:
		return s.lonely
	}
	return s.gates[s.rng.IntN(len(s.gates))]
}

// divide begins a partition into two sides, or ends it.
func (s *sim) divide() {
	if s.lonely != nil {
		if s.rng.IntN(4) == 0 {
			s.tr("one side again")
			s.lonely, s.minor = nil, 0
		}
		return
	}
	s.lonely = s.gates[s.rng.IntN(len(s.gates))]
	for _, i := range s.rng.Perm(len(s.drives))[:1+s.rng.IntN(s.cfg.q.R)] {
		s.minor |= 1 << i
	}
	s.tr("drives %b are on one side, with one gateway", s.minor)
}

// reunite ends partitions, and lets the drives know what is published.
func (s *sim) reunite() {
	s.lonely, s.minor = nil, 0
	for _, g := range s.gates {
		g.deaf, g.mute = 0, 0
	}
	if s.with.lag {
		for _, d := range s.drives {
			d.knows, d.blind = len(s.log)-1, false
		}
	}
}

// blocked says whether a partition holds m up; then it is lost, or comes late.
func (s *sim) blocked(m *simMsg) bool {
	g := m.to.gate
	if g == nil {
		return false
	}
	i, hit := m.drive, false
	if i >= 0 {
		hit = g.deaf>>i&1 > 0
	} else {
		i = m.from
		hit = g.mute>>i&1 > 0
	}
	if !hit && (s.lonely == nil || (g == s.lonely) == (s.minor>>i&1 > 0)) {
		return false
	}
	if s.rng.IntN(3) == 0 {
		s.slow = append(s.slow, *m)
	}
	return true
}

// falls says whether the mover has crashed at the border of a phase. In some cases another takes over at once,
// and in some another takes over though this one has not crashed.
func (m *mover) falls(phase string) bool {
	s := m.s
	if !s.with.movers || s.fallen >= simFalls || s.rng.IntN(10) > 0 {
		return false
	}
	s.fallen++
	what := s.rng.IntN(3)
	if what > 0 {
		s.tr("the mover of op%d crashes: %s", m.op, phase)
		m.kill()
		keep := s.msgs[:0]
		for _, x := range s.msgs {
			if x.to == m.proc && s.rng.IntN(2) == 0 {
				s.slow = append(s.slow, x)
				continue
			}
			keep = append(keep, x)
		}
		s.msgs = keep
	}
	if what < 2 && s.moving != nil {
		s.ops++
		c := s.newProc(opSwap, nil)
		c.op, c.background = s.ops, true
		c.startSwap()
	}
	return what > 0
}
