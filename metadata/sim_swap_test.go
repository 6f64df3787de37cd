package metadata

import (
	"context"
	"math/bits"
	"slices"

	"github.com/ostraka/ostraka/placement"
)

// Changes of membership: the mover of Client.Swap over messages that are lost and doubled, with the decisions
// of swapper. The control plane is a value: terms are given out in order, and who publishes must have the
// last one. Movers crash like gateways do, and others go on under higher terms; two may be at work at once.

// transition is the replacement of one drive, or makes partitions wider.
type transition struct {
	id, term uint64
	old, new uint16
	gone     bool           // old never serves again
	joins    []uint16       // drives that join all partitions; nil: new takes old's place
	turned   map[int]uint16 // by partition, a member that died for good since, in whose place the newcomer comes
}

// newcomers returns the drives that become members.
func (t *transition) newcomers() []uint16 {
	if t.joins != nil {
		return t.joins
	}
	return []uint16{t.new}
}

// startSwap begins a transition, or goes on with one that has not ended.
func (c *proc) startSwap() {
	s := c.s
	if c.away() {
		c.end(resDrop, "")
		return
	}
	if s.moving == nil {
		limit := simSwaps
		if s.with.lag {
			limit = simSwaps2
		}
		if s.swaps++; s.swaps > limit {
			c.end(resDrop, "")
			return
		}
		if s.moving = s.newWidening(); s.moving == nil {
			s.moving = s.newSwap()
		}
	}
	s.turn(s.moving)
	if s.with.sides && s.lonely == nil && s.rng.IntN(2) == 0 {
		if s.divide(); c.away() {
			c.end(resDrop, "")
			return
		}
	}
	t := s.moving
	t.term++
	// What was published before the term was given out, the mover must know.
	m := &mover{proc: c, t: t, plan: t.clone(), term: t.term, layout: slices.Clone(s.layout), bucket: s.bucket}
	if s.mut.staleMover {
		m.layout = slices.Clone(c.layout)
	}
	for p := range m.layout {
		if m.s.concerns(&m.plan, p, &m.layout[p]) {
			m.parts = append(m.parts, p)
		}
	}
	s.tr("op%d moves drive%d → drives %v, transition %d term %d", c.op, t.old, t.newcomers(), t.id, t.term)
	m.move()
}

// newSwap is a transition that replaces a drive.
func (s *sim) newSwap() *transition {
	t := &transition{id: uint64(s.swaps), new: uint16(len(s.drives))}
	g := s.layout[s.rng.IntN(len(s.layout))]
	t.old = g.Drives[s.rng.IntN(len(g.Drives))]
	s.addDrive()
	if t.gone = s.drives[t.old].gone; t.gone {
		return t // it was given up while another changed its place
	}
	// A dead drive takes its shards along, and a live one stays: it leaves when its shards have moved.
	t.gone = s.cfg.spare() && (!s.with.widen || s.wide.spare()) && !s.lost && s.rng.IntN(2) == 0
	if t.gone {
		s.dies(t.old)
	}
	return t
}

// dies takes a drive away for good.
func (s *sim) dies(num uint16) {
	s.lost = true
	s.tr("drive%d is gone", num)
	d := s.drives[num]
	d.acc, d.gone = nil, true
	d.shards.sealed = map[simShard]bool{}
}

// spare says whether a drive may be lost with its shards just after an acknowledgement.
func (c simConfig) spare() bool { return min(c.need(), c.q.W)-1 >= c.k && c.q.N > c.q.W }

// mover moves one partition after the other.
type mover struct {
	*proc
	t      *transition
	plan   transition // as of the term
	term   uint64
	layout []placement.Group // as of the term, and what it published since
	bucket simBucketState    // as of the term
	parts  []int

	part   int
	group  []int // drives by seat
	epoch  uint64
	sw     *swapper
	floor  Ballot
	hint   Ballot
	fences map[uint64]uint64
}

func (m *mover) quit() { m.end(resDrop, "") }

// move begins with the next partition, or ends the transition.
func (m *mover) move() {
	s := m.s
	if len(m.parts) == 0 {
		if s.moving == m.t && m.t.term == m.term {
			s.tr("transition %d has ended", m.t.id)
			s.moving = nil
		}
		m.quit()
		return
	}
	m.part, m.parts = m.parts[0], m.parts[1:]
	g := m.layout[m.part]
	if !s.concerns(&m.plan, m.part, &g) {
		m.move()
		return
	}
	m.epoch, m.group = g.Epoch, nil
	for _, d := range g.Drives {
		m.group = append(m.group, int(d))
	}
	for _, d := range m.plan.newcomersOf(m.part) {
		m.group = append(m.group, int(d))
	}
	if m.plan.joinsOf(m.part) != nil {
		m.sw = newJoiner(g.Quorum, s.wide.q, s.mut)
	} else {
		m.sw = newSwapper(g.Quorum, g.Position(m.plan.oldOf(m.part)), m.plan.goneIn(m.part), s.mut)
	}
	m.hint, m.fences = Ballot{}, map[uint64]uint64{}
	m.wedge(Ballot{})
}

// concerns reports whether a transition has yet to change the members of a partition.
func (s *sim) concerns(t *transition, part int, g *placement.Group) bool {
	if t.joinsOf(part) != nil {
		return s.narrow(g)
	}
	return g.Position(t.oldOf(part)) >= 0
}

// each asks the seats for which it may, and goes on when all have answered or it has taken too long.
// after, if not nil, may go on earlier.
func (m *mover) each(what string, may func(seat int) bool, ask func(seat int, a *Acceptor) error, heard func(seat int, err error), after func(all bool)) {
	stage := 0
	done := uint32(0)
	left := 0
	for seat := range m.group {
		if may(seat) {
			left++
		}
	}
	over := func(all bool) {
		m.stage++
		after(all)
	}
	stage = m.wait(func() { over(true) })
	if left == 0 {
		over(true)
		return
	}
	for seat, drive := range m.group {
		if !may(seat) {
			continue
		}
		simSend(m.proc, drive, what, func(a *Acceptor) (struct{}, error) { return struct{}{}, ask(seat, a) }, func(_ struct{}, err error) {
			if !m.on(stage) || done>>seat&1 > 0 {
				return
			}
			done |= 1 << seat
			heard(seat, err)
			if left--; left == 0 {
				over(true)
			} else {
				after(false)
			}
		})
	}
}

// wedge asks under the zero floor, and then ends the epoch.
func (m *mover) wedge(floor Ballot) {
	m.floor = floor
	if m.falls("wedge") {
		return
	}
	replies := make([]*WedgeReply, len(m.group))
	again := false
	m.each("wedge", m.sw.asks, func(seat int, a *Acceptor) (err error) {
		replies[seat], err = a.Wedge(context.Background(), &WedgeRequest{Transition: m.t.id, Term: m.term, Floor: floor,
			Partitions: []uint32{uint32(m.part)}, Epochs: []uint64{m.epoch}})
		return err
	}, func(seat int, err error) {
		r := replies[seat]
		if err != nil {
			return
		}
		m.hint = maxBallot(m.hint, r.Hint)
		for _, f := range r.Fences {
			m.fences[f.Bucket] = max(m.fences[f.Bucket], f.Epoch)
		}
		switch {
		case len(r.Begun) > 0 && floor.IsZero():
			m.sw.began()
			if len(r.Refused) == 0 {
				m.sw.here(seat)
			}
		case len(r.Refused) > 0:
		case floor.IsZero():
			m.sw.here(seat)
		case r.Done:
			m.sw.wedge(seat)
		default:
			again = true
		}
	}, func(all bool) {
		// The mutation shows only if the mover goes on as soon as it may.
		if !all && (!m.s.mut.wedgeTooFew && !m.s.mut.newZ || floor.IsZero() || again || !m.sw.wedged()) {
			return
		}
		m.stage++
		switch {
		case floor.IsZero():
			if !m.sw.enough() {
				m.quit()
				return
			}
			m.newcomerDies()
			m.s.uniq++
			m.wedge(Ballot{m.hint.Counter + 1, m.s.uniq})
		case again && m.hint.Counter < MaxCounter:
			m.s.uniq++
			m.sw.held = make([]bool, len(m.group))
			if m.tries++; m.tries > 4 {
				m.quit()
				return
			}
			m.wedge(Ballot{m.hint.Counter + 1, m.s.uniq})
		case !m.sw.wedged():
			m.quit()
		default:
			m.newcomerDies()
			m.carry(0)
		}
	})
}

// newcomerDies lets the newcomer fail, sometimes; it comes back like others.
func (m *mover) newcomerDies() {
	s, list := m.s, m.plan.newcomersOf(m.part)
	if s.with.away && s.rng.IntN(6) == 0 {
		d := list[0]
		if len(list) > 1 {
			d = list[s.rng.IntN(len(list))]
		}
		if s.drives[d].acc != nil {
			s.crash(int(d))
		}
	}
}

func (m *mover) heldSeat(seat int) bool { return m.sw.held[seat] }

// carry brings one register after the other to the members of the next epoch.
func (m *mover) carry(i int) {
	s := m.s
	if m.falls("carry") {
		return
	}
	for i < len(s.regs) && s.regs[i].part != m.part {
		i++
	}
	if i == len(s.regs) {
		if !m.sw.carried() {
			m.quit()
			return
		}
		m.install()
		return
	}
	reg := s.regs[i]
	rows := make([]*Row, len(m.group))
	got := make([]bool, len(m.group))
	m.each("lookup", m.heldSeat, func(seat int, a *Acceptor) error {
		r, err := a.Lookup(context.Background(), &LookupRequest{Addresses: []Address{reg.addr}})
		if err == nil {
			rows[seat] = r.Rows[0].Row
		}
		return err
	}, func(seat int, err error) { got[seat] = err == nil }, func(all bool) {
		if !all {
			return
		}
		for seat := range m.group {
			if m.sw.held[seat] && !got[seat] {
				m.sw.lose(seat)
			}
		}
		top, decided, from, need := m.sw.judge(rows, m.floor)
		if top == nil || len(need) == 0 {
			m.carry(i + 1)
			return
		}
		m.transfer(reg, TransferRow{Address: reg.addr, Partition: uint32(m.part), Decided: decided, State: top.State}, from, need, func() { m.carry(i + 1) })
	})
}

func (m *mover) transfer(reg *register, row TransferRow, from int, need []int, then func()) {
	ok := make([]bool, len(m.group))
	var behind []int
	m.each("transfer", func(seat int) bool { return slices.Contains(need, seat) }, func(seat int, a *Acceptor) error {
		r, err := a.Transfer(context.Background(), &TransferRequest{Transition: m.t.id, Term: m.term, Floor: m.floor, Rows: []TransferRow{row}})
		if err == nil && len(r.Behind) == 0 && m.s.rowAt(m.group[seat], reg) == m.floor {
			reg.states[m.floor] = &row.State
			if m.plan.joinsOf(m.part) == nil {
				m.s.holds(m.group[seat], reg, m.floor, m.sw.w)
			} // else once it is published: so many newcomers meet no later mover of this epoch
		}
		if err == nil && len(r.Behind) > 0 {
			return errDown
		}
		return err
	}, func(seat int, err error) {
		if ok[seat] = err == nil; err == errDown && !row.Whole {
			behind = append(behind, seat)
		}
	}, func(all bool) {
		if !all {
			return
		}
		for _, seat := range need {
			if !ok[seat] && !slices.Contains(behind, seat) {
				m.sw.lose(seat)
			}
		}
		if len(behind) == 0 {
			then()
			return
		}
		var full []Version
		whole := false
		m.each("copy", func(seat int) bool { return seat == from }, func(_ int, a *Acceptor) error {
			r, err := a.Copy(context.Background(), &VersionsRequest{Address: reg.addr, Below: ^uint64(0)})
			if err == nil && r.Row != nil && r.Row.State.ID == row.State.ID {
				full, whole = r.Versions, true
			}
			return err
		}, func(int, error) {}, func(all bool) {
			if !all {
				return
			}
			if !whole {
				for _, seat := range behind {
					m.sw.lose(seat)
				}
				then()
				return
			}
			row.Whole, row.Full = true, full
			m.transfer(reg, row, from, behind, then)
		})
	})
}

// install begins the next epoch, and publishes it.
func (m *mover) install() {
	s := m.s
	if m.falls("install") {
		return
	}
	m.newcomerDies()
	fences := m.fenceList()
	m.each("install epoch", m.sw.begins, func(_ int, a *Acceptor) error {
		return a.InstallEpoch(context.Background(), &InstallEpochRequest{Transition: m.t.id, Term: m.term, Partitions: []uint32{uint32(m.part)},
			Epochs: []uint64{m.epoch + 1}, Floors: []Ballot{m.floor}, Fences: fences})
	}, func(seat int, err error) {
		if err == nil {
			m.sw.begin(seat)
		}
	}, func(all bool) {
		if !all && (!m.sw.ready() || s.rng.IntN(2) == 0) {
			return
		}
		m.stage++
		if m.falls("publish") {
			return
		}
		g := &s.layout[m.part]
		if !m.sw.ready() || m.t.term != m.term || g.Epoch != m.epoch || m.away() {
			m.quit()
			return
		}
		// The commit point of the swap.
		next := m.next(*g)
		s.layout[m.part], m.layout[m.part] = next, next
		s.stands(m.part)
		if m.plan.joinsOf(m.part) != nil {
			m.imaged(&next)
		}
		s.moved++
		s.published()
		m.tell()
		s.quorums(m.part)
		s.tr("partition %d is in epoch %d: %v", m.part, next.Epoch, next.Drives)
		if !m.falls("published") {
			m.move()
		}
	})
}

// tell tells all drives what is published, as far as they are reached.
func (m *mover) tell() {
	s := m.s
	if !s.with.lag {
		return
	}
	at := len(s.log) - 1
	for i, d := range s.drives {
		if s.rng.IntN(2) == 0 {
			continue
		}
		simSend(m.proc, i, "published", func(*Acceptor) (struct{}, error) {
			if !d.blind && s.minor>>i&1 == 0 {
				d.knows = max(d.knows, at)
			}
			return struct{}{}, nil
		}, nil)
	}
}

func (m *mover) fenceList() (list []Fence) {
	for b, e := range m.fences {
		list = append(list, Fence{b, e})
	}
	if b := m.bucket; b.epoch > 1 || b.deleting {
		list = append(list, Fence{simBucket, b.epoch})
	}
	return list
}

// startJoin makes members of a partition that were away when its epoch began.
func (c *proc) startJoin(part int) {
	s := c.s
	m := &mover{proc: c, part: part, fences: map[uint64]uint64{}}
	g := c.layout[m.part]
	m.epoch = g.Epoch
	if g.Epoch < 2 {
		m.quit()
		return
	}
	for _, d := range g.Drives {
		m.group = append(m.group, int(d))
	}
	var installed, heard uint32
	all := func(int) bool { return true }
	replies := make([]*WedgeReply, len(m.group))
	m.each("look", all, func(seat int, a *Acceptor) (err error) {
		replies[seat], err = a.Wedge(context.Background(), &WedgeRequest{Partitions: []uint32{uint32(m.part)}, Epochs: []uint64{m.epoch}})
		return err
	}, func(seat int, err error) {
		if err != nil {
			return
		}
		heard |= 1 << seat
		r := replies[seat]
		if r.Installed[0] >= m.epoch {
			installed |= 1 << seat
			m.floor = maxBallot(m.floor, r.Floors[0])
		}
		for _, f := range r.Fences {
			m.fences[f.Bucket] = max(m.fences[f.Bucket], f.Epoch)
		}
	}, func(done bool) {
		if !done {
			return
		}
		if bits.OnesCount32(installed) < g.Quorum.N-g.Quorum.W+1 {
			m.quit()
			return
		}
		fences := m.fenceList()
		for seat, drive := range m.group {
			if heard>>seat&1 > 0 && installed>>seat&1 == 0 {
				simSend(c, drive, "join", func(a *Acceptor) (struct{}, error) {
					err := a.InstallEpoch(context.Background(), &InstallEpochRequest{Partitions: []uint32{uint32(m.part)}, Epochs: []uint64{m.epoch},
						Floors: []Ballot{m.floor}, Fences: fences})
					if err == nil {
						s.quorums(m.part)
					}
					return struct{}{}, err
				}, nil)
			}
		}
		m.quit()
	})
}

// quorums looks, of each register, at every quorum of members that serve the partition: what a Prepare would
// take as base must be what W members accepted last, or something that was proposed after it.
func (s *sim) quorums(part int) {
	g := s.layout[part]
	var serve []*Acceptor
	for _, d := range g.Drives {
		if a := s.drives[d].acc; a != nil && a.epochRow(uint32(part)).serves(g.Epoch) {
			serve = append(serve, a)
		}
	}
	for _, reg := range s.regs {
		last := reg.states[reg.chain]
		if reg.part != part || last == nil {
			continue
		}
		rows := make([]*Row, len(serve))
		for i, a := range serve {
			var err error
			if rows[i], err = a.row(headKey(&reg.addr)); err != nil {
				s.fail("quorums: %v", err)
			}
		}
		for set := range uint(1) << len(serve) {
			if bits.OnesCount(set) != g.Quorum.W {
				continue
			}
			var top *Row
			for i, r := range rows {
				if set>>i&1 > 0 && r != nil && (top == nil || top.Ballot.Less(r.Ballot)) {
					top = r
				}
			}
			if top == nil && !droppable(last) || top != nil && top.State.ID != last.ID && !reg.chain.Less(top.State.ID) {
				s.fail("%s: after %v was accepted by W under %v, a quorum of epoch %d has %+v on top", reg.addr.Key, last.ID, reg.chain, g.Epoch, top)
				return
			}
		}
	}
}

// settleSwaps ends, over perfect messages, what was begun, and makes members of those that were away.
func (s *sim) settleSwaps() {
	s.procs = nil
	s.mut.wedgeTooFew, s.mut.newZ = false, false // who goes on with so few seldom comes to an end
	play := func(c *proc) {
		for i := 0; !c.done && i < 100000; i++ {
			if len(s.msgs) == 0 {
				c.timeout()
				continue
			}
			s.deliver(0, 0, 0)
		}
		for len(s.msgs) > 0 {
			s.deliver(0, 0, 0)
		}
		if !c.done {
			s.fail("a change of membership does not come to an end")
		}
	}
	for try := 0; s.moving != nil; try++ {
		if try > 5 {
			s.fail("transition %d cannot be ended", s.moving.id)
			return
		}
		c := s.newProc(opSwap, nil)
		c.startSwap()
		play(c)
	}
	if s.moving = s.leftBehind(); s.moving != nil {
		s.settleSwaps()
		return
	}
	for p := range s.layout {
		c := s.newProc(opSwap, nil)
		c.startJoin(p)
		play(c)
		for _, d := range s.layout[p].Drives {
			if s.drives[d].gone {
				s.fail("drive %d is gone, and a member of partition %d", d, p)
				return
			}
			e, err := s.drives[d].acc.Installed(context.Background(), []uint32{uint32(p)})
			if err != nil || s.layout[p].Epoch > 1 && e[0] != s.layout[p].Epoch {
				s.fail("drive %d is no member of partition %d in epoch %d: %v, %v", d, p, s.layout[p].Epoch, e, err)
			}
		}
	}
}
