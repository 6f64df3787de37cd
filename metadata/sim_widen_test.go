package metadata

import (
	"math/rand/v2"
	"slices"

	"github.com/ostraka/ostraka/placement"
)

// Partitions that become wider in mid-load, by the same mover: newcomers join at the positions behind the members, which
// all stay, and the next epoch has another quorum. Bodies that were written before stay where they are, under their own
// profile; so do those that were begun before, and are committed after it. With two partitions, one is wider than the
// other for a while, and bodies with chunks in both are coded for the narrower.

// simWidths are what the configurations become, by their index in simConfigs; more than one: one of them.
var simWidths = map[int][]simConfig{
	0: {simProfile(1, 1), simProfile(2, 1), simProfile(2, 2)},
	1: {simProfile(2, 1), simProfile(2, 2), simProfile(3, 3)},
	2: {simProfile(2, 2), simLeast(4, 2), simProfile(2, 3)},
	3: {{placement.Quorum{N: 5, W: 3, R: 3, Z: 3}, 2}, simProfile(2, 2)},
	4: {simProfile(4, 2), simLeast(4, 2), simProfile(3, 3)},
	5: {simProfile(3, 3), simLeast(4, 3)},
	6: {simLeast(6, 2), simProfile(4, 3)},
	7: {simProfile(6, 3)},
}

// drawWidening decides, apart from all else, whether partitions become wider.
func (s *sim) drawWidening(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 9))
	i := slices.IndexFunc(simConfigs, func(c simConfig) bool { return c == s.cfg })
	widths := simWidths[i]
	if len(widths) == 0 || s.mut != (mutations{}) && !s.mut.widens() {
		return
	}
	s.wide = widths[rng.IntN(len(widths))]
	s.with.widen = s.with.swap && rng.IntN(3) == 0 || s.mut.widens() || *simWiden
	s.with.swap = s.with.swap || s.with.widen
}

// widens reports whether m breaks what makes partitions wider.
func (m mutations) widens() bool { return m.oldQuorum || m.newZ || m.bareJoin || m.newPlaces }

// stands notes who has the positions of a partition.
func (s *sim) stands(part int) {
	for pos, d := range s.layout[part].Drives {
		if pos == len(s.stood[part]) {
			s.stood[part] = append(s.stood[part], nil)
		}
		if !slices.Contains(s.stood[part][pos], d) {
			s.stood[part][pos] = append(s.stood[part][pos], d)
		}
	}
}

// narrow reports whether a partition is not as wide as it is to become.
func (s *sim) narrow(g *placement.Group) bool { return s.with.widen && g.Quorum.N < s.wide.q.N }

// newWidening is a transition that makes all partitions wider; nil: not this time.
func (s *sim) newWidening() *transition {
	if !slices.ContainsFunc(s.layout, func(g placement.Group) bool { return s.narrow(&g) }) || s.widened || s.rng.IntN(3) == 0 {
		return nil
	}
	s.widened = true // once: a transition that does not end holds up all others
	t := &transition{id: uint64(s.swaps)}
	for range s.wide.q.N - s.cfg.q.N {
		t.joins = append(t.joins, uint16(len(s.drives)))
		s.addDrive()
	}
	return t
}

// next is the group that a mover publishes.
func (m *mover) next(g placement.Group) placement.Group {
	next := g
	next.Drives = slices.Clone(g.Drives)
	next.Epoch++
	if joins := m.plan.joinsOf(m.part); joins != nil {
		next.Drives = append(next.Drives, joins...)
		next.Quorum, next.Profile = m.s.wide.q, m.s.wide.profile()
		return next
	}
	next.Drives[g.Position(m.plan.oldOf(m.part))] = m.plan.newcomersOf(m.part)[0]
	return next
}

// imaged notes, once an epoch is published, which registers are chosen by the image that it begins with.
func (m *mover) imaged(g *placement.Group) {
	s := m.s
	for _, reg := range s.regs {
		if reg.part != m.part || reg.states[m.floor] == nil {
			continue
		}
		for _, d := range g.Drives {
			if s.drives[d].acc != nil && s.rowAt(int(d), reg) == m.floor {
				s.holds(int(d), reg, m.floor, g.Quorum.W)
			}
		}
	}
}
