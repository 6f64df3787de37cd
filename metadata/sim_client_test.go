package metadata

import (
	"bytes"
	"context"
	"math/bits"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// register is what the simulation knows of a register from outside.
type register struct {
	addr      Address
	part      int // partition
	key       int // of the object that it belongs to
	versioned bool
	up        *upload // of uploads and parts

	hist    []porcupine.Operation // objects only
	accepts map[Ballot]uint32     // drives that ever held a row of a ballot
	states  map[Ballot]*State     // by ballot
	stacks  map[Ballot][]*Version // by state id: all versions, newest first
	chosen  Ballot
	chain   Ballot // the highest that W members accepted
}

func (s *sim) register(a Address, part int) *register {
	r := &register{addr: a, part: part, accepts: map[Ballot]uint32{}, states: map[Ballot]*State{}, stacks: map[Ballot][]*Version{}}
	s.regs = append(s.regs, r)
	return r
}

func (s *sim) at(a *Address) *register {
	for _, r := range s.regs {
		if sameAddress(&r.addr, a) {
			return r
		}
	}
	return nil
}

// body is what was, or may be, stored for one operation.
type body struct {
	op    int
	reg   *register // that protects it
	data  Data
	parts []*body // of a manifest: what it names
}

func (c *proc) newBody(op int, reg *register, file bool) *body {
	s := c.s
	b := &body{op: op, reg: reg, data: Data{ID: erasure.DataID{byte(op), byte(op >> 8), 0xd1, 0xd2, 0xd3}, Size: 1}}
	if file {
		b.data.ChunkSize = 1
		if len(s.layout) > 1 && s.rng.IntN(2) == 0 {
			b.data.Size = 2
		}
	}
	// As wide as all partitions of its chunks, as far as the gateway knows.
	least := c.group(reg.part)
	for chunk := range int(b.data.Chunks()) {
		if g := c.group(s.chunkPart(reg, chunk)); g.Quorum.N < least.Quorum.N {
			least = g
		}
	}
	b.data.Profile = least.Profile
	if n := least.Quorum.N; n != least.First {
		b.data.Width = uint8(n)
	}
	s.bodies[op] = b
	return b
}

// places are the positions of a body's shards in the group of one of its chunks.
func (s *sim) places(g *placement.Group, d *Data) []int {
	if s.mut.newPlaces {
		return placement.Positions(d.Profile, len(g.Drives), d.ID)
	}
	return g.Places(d.Profile, d.Width, d.ID)
}

// need is the shard quorum of a body.
func (b *body) need() int { return placement.ShardQuorum(b.data.Profile, 1) }

// proc is one request at a gateway, or one job of a maintainer: rounds and readings, one after the other.
type proc struct {
	s          *sim
	kind       opKind
	op         int // 1…; also the value written
	v          int // delv, gc: the target
	reg        *register
	call       int64
	skew       uint64            // of the gateway's clock
	gate       *simGate          // nil where all gateways are alike
	layout     []placement.Group // as the gateway knew it when it last looked
	epoch      uint64            // of the bucket, as the gateway knows it
	background bool
	paused     bool
	done       bool
	deaf       uint32 // drives that it does not reach

	stage int    // bumped so that late replies are recognized
	tick  int    // since the stage began
	late  func() // what to do when it takes too long

	p       *proposer // of the present round
	of      *register // that the round is about
	wide    *body     // what the round pins
	follows int
	main    bool // the round is the one that the client asked for
	finish  func(p *proposer)
	tries   int
	tried   []bool

	known map[*upload]bool // uploads that are known to be completed
	lacks *upload          // why the round was given up
	up    *upload
	list  []*body // complete: the parts that the client names
}

type opKind uint8

const (
	opGet opKind = iota + 1
	opPeek
	opPut
	opPush
	opInm
	opDel
	opDelv
	opSeal // the bucket is gone
	opGC
	opDrop
	opRepair
	opList
	opPart
	opComplete
	opAbort
	opSweep
	opRemains
	opDelb
	opSwap
)

var opNames = [...]string{"", "get", "peek", "put", "push", "inm", "del", "delv", "seal", "gc", "drop", "repair", "list", "part", "complete",
	"abort", "sweep", "remains", "delb", "swap"}

func (k opKind) String() string { return opNames[k] }

type result uint8

const (
	resOK result = iota + 1
	resDrop
	resUnknown
	resExists
	resNoVersion
)

type in struct {
	kind opKind
	v    int
}
type out struct {
	res result
	val string
}

func (s *sim) newProc(kind opKind, reg *register) *proc {
	s.clock++
	c := &proc{s: s, kind: kind, reg: reg, call: s.clock, skew: s.skew(), deaf: s.deafness(kind)}
	if c.gate = s.someGate(); c.gate != nil {
		c.skew = c.gate.skew
	}
	v := c.view()
	c.layout, c.epoch = slices.Clone(v.layout), v.bucket.epoch
	if v.bucket.deleting {
		c.epoch-- // its copy of the control plane is old: it would refuse otherwise
	}
	s.procs = append(s.procs, c)
	return c
}

func (c *proc) header(part int) Header {
	return Header{Partition: uint32(part), Epoch: c.layout[part].Epoch, BucketEpoch: c.epoch}
}

// behind says whether more changes of membership are known by now than the process has seen.
func (c *proc) behind() bool {
	c.ask()
	return epochs(c.view().layout) != epochs(c.layout)
}

// epochs counts the changes of membership.
func epochs(layout []placement.Group) (n int) {
	for p := range layout {
		n += int(layout[p].Epoch) - 1
	}
	return n
}

// follow looks at the control plane again, and says whether it is worth another try.
func (c *proc) follow() bool {
	c.ask()
	v := c.view()
	if c.follows++; c.follows > 3 || v.bucket.deleting || v.bucket.gone {
		return false
	}
	c.layout, c.epoch = slices.Clone(v.layout), v.bucket.epoch
	return true
}

func (c *proc) group(part int) *placement.Group { return &c.layout[part] }

// end records how a request ended. resDrop: certainly without effect, nothing to check.
func (c *proc) end(res result, val string) {
	if c.done {
		return
	}
	c.done = true
	s := c.s
	s.tr("END op%d %v: %v %q", c.op, c.kind, res, val)
	if res == resDrop || c.kind > opSeal {
		return
	}
	if c.kind <= opPeek && (res == resUnknown || s.bucket.gone) {
		return // a read that outlives its bucket might as well have been refused
	}
	s.clock++
	ret := s.clock
	if res == resUnknown {
		ret = 1<<50 + int64(c.op)
	}
	s.observe(c.reg, in{c.kind, c.v}, out{res, val}, c.call, ret)
}

func (s *sim) observe(r *register, i in, o out, call, ret int64) {
	r.hist = append(r.hist, porcupine.Operation{ClientId: len(r.hist), Input: i, Call: call, Output: o, Return: ret})
}

// kill is the crash of a gateway.
func (c *proc) kill() {
	if c.main && c.p != nil && c.p.sent {
		c.end(resUnknown, "")
	} else {
		c.end(resDrop, "")
	}
	c.done = true
}

// wait begins a stage that late ends when it takes too long.
func (c *proc) wait(late func()) int {
	c.stage++
	c.tick, c.late = 0, late
	return c.stage
}

func (c *proc) timeout() {
	c.deaf = c.s.deafness(c.kind)
	c.late()
}

// on says whether a reply to a stage is still of interest.
func (c *proc) on(stage int) bool { return !c.done && c.stage == stage }

// Rounds.

// update changes a register, and then finish looks at the proposer.
func (c *proc) update(reg *register, op *Operation, finish func(p *proposer)) {
	c.of, c.finish, c.tries, c.wide, c.main = reg, finish, 0, nil, false
	c.p = c.newProposer(reg, op)
	c.begin()
}

func (c *proc) newProposer(reg *register, op *Operation) *proposer {
	p := newProposer(c.group(reg.part).Quorum, reg.addr.Kind, op, c.s.mut)
	p.kept = 2
	return p
}

// ballot is one above seen, by the clock of a gateway.
func (s *sim) ballot(seen Ballot, skew uint64) Ballot {
	s.uniq++
	return Ballot{Counter: max(s.now+skew, seen.Counter+1), Proposer: s.uniq}
}

func (c *proc) begin() {
	s := c.s
	c.tries++
	c.tried = make([]bool, c.p.q.N)
	b := s.ballot(c.p.seen, c.skew)
	c.p.begin(b)
	stage := c.wait(c.roundLate)
	reg := c.of
	for pos, drive := range c.group(reg.part).Drives {
		m := &PrepareRequest{Header: c.header(reg.part), Address: reg.addr, Ballot: b, Seal: c.p.seal(pos), Query: c.p.query, Orphan: c.p.orphan}
		simSend(c, int(drive), "prepare", func(a *Acceptor) (*PrepareReply, error) {
			return a.Prepare(context.Background(), simCarry(s, m))
		}, func(r *PrepareReply, err error) {
			if c.on(stage) {
				if err == nil {
					r = simCarry(s, r)
				}
				c.next(c.p.promise(pos, r, err))
			}
		})
	}
}

// simCarry copies a message through its encoding in some schedules.
func simCarry[T any, P interface {
	unmarshaler[T]
	message
}](s *sim, m P) P {
	if !s.viaCodec {
		return m
	}
	return carry[T, P](m)
}

func (c *proc) accept(pos int, m *AcceptRequest) {
	s, stage, reg, w := c.s, c.stage, c.of, c.p.q.W
	drive := int(c.group(reg.part).Drives[pos])
	simSend(c, drive, "accept", func(a *Acceptor) (*AcceptReply, error) {
		r, err := a.Accept(context.Background(), simCarry(s, m))
		if err == nil && r.Accepted {
			s.holds(drive, reg, m.Ballot, w)
			s.chained(reg, m.Ballot, w)
		}
		return r, err
	}, func(r *AcceptReply, err error) {
		if c.on(stage) {
			c.next(c.p.accepted(pos, r, err))
		}
	})
}

// next does what the proposer asks for.
func (c *proc) next(st step) {
	s := c.s
	switch st {
	case stepPin:
		c.pin()
	case stepAccept:
		c.tick = 0
		if c.kind == opComplete && c.main && !c.p.identity {
			c.up.sent = true
		}
		if s.with.tombs && s.rng.IntN(6) == 0 {
			c.paused = true
		}
		s.proposed(c.of, c.p)
		for pos := range c.group(c.of.part).Drives {
			c.accept(pos, &AcceptRequest{Header: c.header(c.of.part), Address: c.of.addr, Ballot: c.p.ballot, State: *c.p.state})
		}
	case stepCatchUp:
		for pos, behind := range c.p.behind {
			if behind && !c.tried[pos] {
				c.tried[pos] = true
				c.catchUp(pos)
			}
		}
	case stepRetry:
		if c.tries > 6 {
			c.p.surrender(errs.E("sim", errs.Busy, "too many tries"))
			c.finish(c.p)
			return
		}
		c.begin()
	case stepDone:
		if c.p.chosen {
			c.decide()
		}
		c.finish(c.p)
	}
}

func (c *proc) roundLate() {
	if c.p.phase == phaseDone {
		return
	}
	st := c.p.expire()
	if st == stepWait {
		if c.tries > 6 {
			c.p.surrender(errs.E("sim", errs.Timeout, "late"))
			c.finish(c.p)
			return
		}
		st = stepRetry
		c.p.phase = phaseIdle
	}
	c.next(st)
}

// pin holds the later chunk of the round's body under its ballot.
func (c *proc) pin() {
	s, p, b := c.s, c.p, c.wide
	stage := c.wait(func() { c.pinned(p, errs.E("sim", errs.Timeout, "late")) })
	part := s.chunkPart(b.reg, 1)
	var have, heard uint32
	places := s.places(c.group(part), &b.data)
	for _, pos := range places {
		drive := c.group(part).Drives[pos]
		m := &PinRequest{Header: c.header(part), Data: b.data.ID, Chunk: 1, Ballot: p.ballot}
		simSend(c, int(drive), "pin", func(a *Acceptor) (*PinReply, error) {
			return a.Pin(context.Background(), simCarry(s, m))
		}, func(r *PinReply, err error) {
			if !c.on(stage) {
				return
			}
			heard |= 1 << pos
			if err == nil && r.Have {
				have |= 1 << pos
			}
			switch {
			case bits.OnesCount32(have) >= b.need() || s.mut.noHave:
				c.pinned(p, nil)
			case bits.OnesCount32(heard) == len(places):
				c.pinned(p, errs.E("sim", errs.Unavailable, "too few pins"))
			}
		})
	}
}

func (c *proc) pinned(p *proposer, err error) {
	c.wait(c.roundLate)
	c.next(p.pinned(err))
}

// chunkPart is the partition on which a chunk of a body lies.
func (s *sim) chunkPart(r *register, chunk int) int { return (r.part + chunk) % len(s.layout) }

// catchUp brings the version rows of a drive that has the state to the drive at pos.
func (c *proc) catchUp(pos int) {
	stage, p, reg := c.stage, c.p, c.of
	from := slices.Index(p.acks, true)
	m := &VersionsRequest{Header: c.header(reg.part), Address: reg.addr, Below: ^uint64(0)}
	simSend(c, int(c.group(reg.part).Drives[from]), "versions", func(a *Acceptor) (*VersionsReply, error) {
		return a.Versions(context.Background(), m)
	}, func(r *VersionsReply, err error) {
		if !c.on(stage) || p.phase != phaseAccept {
			return
		}
		if err != nil || r.Row == nil || r.Row.State.ID != p.state.ID {
			c.next(p.uncaught(pos))
			return
		}
		c.accept(pos, &AcceptRequest{Header: c.header(reg.part), Address: reg.addr, Ballot: p.ballot, State: *p.state, Whole: true, Full: r.Versions})
	})
}

// decide tells the drives that the state is chosen, and, in half of the schedules, who lacks it: those
// that were not heard yet are given up then.
func (c *proc) decide() {
	s, reg := c.s, c.of
	d := Decision{Header: c.header(reg.part), Address: reg.addr, Ballot: c.p.ballot}
	if s.rng.IntN(2) == 0 {
		d.Settled, d.Missing = c.p.settles(), c.p.missing()
	}
	for _, drive := range c.group(reg.part).Drives {
		if s.rng.IntN(4) == 0 {
			continue
		}
		simSend(c, int(drive), "decide", func(a *Acceptor) (struct{}, error) {
			err := a.Decide(context.Background(), []Decision{d})
			if s.rng.IntN(3) == 0 {
				s.clean(int(drive))
			}
			return struct{}{}, err
		}, nil)
	}
}

// Readings.

// reading is what a read found: the chosen state, which the drive at from has. ok false: nothing.
type simRead struct {
	st   *State
	from int
	at   Ballot
	ok   bool
}

// read finds the chosen state of a register.
func (c *proc) read(reg *register, then func(simRead)) {
	s := c.s
	replies := make([]*ReadReply, c.group(reg.part).Quorum.N)
	stage := c.wait(func() { then(simRead{}) })
	for pos, drive := range c.group(reg.part).Drives {
		m := &ReadRequest{Header: c.header(reg.part), Address: reg.addr}
		simSend(c, int(drive), "read", func(a *Acceptor) (*ReadReply, error) {
			return a.Read(context.Background(), m)
		}, func(r *ReadReply, err error) {
			switch {
			case !c.on(stage):
			case err == nil:
				replies[pos] = simCarry(s, r)
				c.judge(reg, replies, then)
			case errs.Is(err, errs.Stale) && c.behind() && c.follow():
				c.read(reg, then)
			}
		})
	}
}

func (c *proc) judge(reg *register, replies []*ReadReply, then func(simRead)) {
	s := c.s
	top, enough := judgeRead(c.group(reg.part).Quorum, replies)
	if !enough {
		return
	}
	if s.mut.noResolve {
		top.chosen = true
	}
	if !top.chosen && s.rng.IntN(2) == 0 && slices.Contains(replies, nil) {
		return // wait for more
	}
	c.stage++
	switch {
	case !top.chosen:
		c.resolve(reg, top.highest, then)
	case top.row == nil:
		then(simRead{ok: true})
	default:
		then(simRead{&top.row.State, top.who[0], top.row.Ballot, true})
	}
}

// resolve makes the newest state chosen.
func (c *proc) resolve(reg *register, seen Ballot, then func(simRead)) {
	c.of, c.tries, c.wide, c.main = reg, 0, nil, false
	c.p = c.newProposer(reg, nil)
	c.p.seen = seen
	epoch := c.epoch
	if c.kind == opRepair {
		c.epoch = ^uint64(0) // the bucket's fence does not hold up a repair
	}
	c.finish = func(p *proposer) {
		c.epoch = epoch
		if p.err != nil {
			then(simRead{})
			return
		}
		then(simRead{p.view.State, slices.Index(p.acks, true), p.ballot, true})
	}
	c.begin()
}

// versions reads the version rows of a state that was found.
func (c *proc) versions(reg *register, f simRead, then func(list []Version, ok bool)) {
	if f.st.Older == 0 {
		then(nil, true)
		return
	}
	stage := c.wait(func() { then(nil, false) })
	m := &VersionsRequest{Header: c.header(reg.part), Address: reg.addr, Below: ^uint64(0)}
	simSend(c, int(c.group(reg.part).Drives[f.from]), "versions", func(a *Acceptor) (*VersionsReply, error) {
		return a.Versions(context.Background(), m)
	}, func(r *VersionsReply, err error) {
		if c.on(stage) {
			c.stage++
			ok := err == nil && r.Row != nil && r.Row.State.ID == f.st.ID
			if !ok {
				r = &VersionsReply{}
			}
			then(r.Versions, ok)
		}
	})
}

// stackString is what a reader sees of a state: its versions.
func stackString(current *Version, rows []Version) string {
	if current == nil {
		return ""
	}
	out := []byte(current.ETag)
	for i := range rows {
		out = append(out, rows[i].ETag...)
	}
	return string(out)
}

// peekString is what a listing sees.
func peekString(st *State) string {
	if st == nil || st.Current == nil {
		return ""
	}
	return peekOf(st.Current.ETag, int(st.Older))
}

func peekOf(newest string, older int) string { return newest + "+" + string(rune('0'+older)) }

// startRead runs get, peek and repair.
func (c *proc) startRead() {
	c.read(c.reg, func(f simRead) {
		switch {
		case !f.ok:
			c.end(resUnknown, "")
		case c.kind == opPeek:
			c.end(resOK, peekString(f.st))
		case f.st == nil:
			c.end(resOK, "")
		default:
			c.versions(c.reg, f, func(list []Version, ok bool) {
				switch {
				case !ok:
					c.end(resUnknown, "")
				case c.kind == opGet:
					c.end(resOK, stackString(f.st.Current, list))
				default:
					c.install(f, list)
				}
			})
		}
	})
}

// install repairs some drives.
func (c *proc) install(f simRead, list []Version) {
	s, reg := c.s, c.reg
	in := &InstallRequest{Header: c.header(reg.part), Address: reg.addr, Row: Row{Ballot: f.at, Decided: true, State: *f.st}, Whole: true, Full: list}
	w := c.group(reg.part).Quorum.W
	for _, drive := range c.group(reg.part).Drives {
		if s.rng.IntN(3) > 0 {
			continue
		}
		simSend(c, int(drive), "install", func(a *Acceptor) (struct{}, error) {
			err := a.Install(context.Background(), simCarry(s, in))
			if err == nil && s.rowAt(int(drive), reg) == f.at {
				s.holds(int(drive), reg, f.at, w)
			}
			return struct{}{}, err
		}, nil)
	}
	c.end(resDrop, "")
}

func (s *sim) rowAt(i int, reg *register) Ballot {
	row, err := s.drives[i].acc.row(headKey(&reg.addr))
	if err != nil || row == nil {
		return Ballot{}
	}
	return row.Ballot
}

// startDrop drops a tombstone that all members hold.
func (c *proc) startDrop() {
	s, reg := c.s, c.reg
	q := c.group(reg.part).Quorum
	replies := make([]*ReadReply, q.N)
	need := q.N
	if s.mut.dropAtW {
		need = q.W
	}
	n := 0
	stage := c.wait(func() { c.end(resDrop, "") })
	for pos, drive := range c.group(reg.part).Drives {
		m := &ReadRequest{Header: c.header(reg.part), Address: reg.addr}
		simSend(c, int(drive), "read", func(a *Acceptor) (*ReadReply, error) {
			return a.Read(context.Background(), m)
		}, func(r *ReadReply, err error) {
			if !c.on(stage) || err != nil {
				return
			}
			if replies[pos] == nil {
				n++
			}
			if replies[pos] = r; n < need {
				return
			}
			if b, ok := judgeTombstone(replies, need); ok {
				for _, drive := range c.group(reg.part).Drives {
					m := &DropRequest{Header: c.header(reg.part), Address: reg.addr, Ballot: b}
					simSend(c, int(drive), "drop", func(a *Acceptor) (struct{}, error) {
						return struct{}{}, a.Drop(context.Background(), m)
					}, nil)
				}
			}
			c.end(resDrop, "")
		})
	}
}

// scan reads the bucket, one page after the other; each hears of a key, and of what was found of it, nil
// where that is nothing. A candidate that is not known to be chosen comes with ok false. Behind the last
// page, and when a page fails, then is called.
func (c *proc) scan(after []byte, fence uint64, each func(reg *register, row *Row, ok bool, call int64), then func(ok bool)) {
	s := c.s
	l := &simScan{c: c, after: after, fence: fence, call: s.clock, each: each, then: then, waits: map[int]bool{}}
	l.first = 1 + s.rng.IntN(3)
	l.m.member = func(key []byte, drive uint16) bool {
		return c.layout[s.keys[key[1]-'0'].part].Position(drive) >= 0
	}
	s.clock++
	l.stage = c.wait(func() { then(false) })
	for _, i := range s.rng.Perm(len(s.drives)) {
		l.ask(i, nil)
	}
}

// simScan is a listing from after on, by the merge of the server.
type simScan struct {
	c     *proc
	m     merger
	after []byte // what was observed ends here
	fence uint64
	call  int64 // when the first drive was asked
	stage int
	first int          // entries that each drive is asked for at first
	waits map[int]bool // drives that are asked for more
	each  func(reg *register, row *Row, ok bool, call int64)
	then  func(ok bool)
}

// ask asks drive i for what lies behind an entry; nil: for what the listing begins with.
func (l *simScan) ask(i int, behind *ScanEntry) {
	c, s, stage := l.c, l.c.s, l.stage
	m := &ScanRequest{Kind: KindObject, Bucket: simBucket, After: l.after, Limit: l.first, Fenced: l.fence > 0}
	if behind != nil {
		m.After, m.Limit = bytes.Clone(behind.Address.Key), 1+s.rng.IntN(3)
	}
	m.BucketEpoch = l.fence
	simSend(c, i, "scan", func(a *Acceptor) (*ScanReply, error) {
		if !slices.ContainsFunc(s.known(i), func(g placement.Group) bool { return g.Position(uint16(i)) >= 0 }) {
			return nil, errDown // retired: it serves nothing
		}
		return a.Scan(context.Background(), m)
	}, func(r *ScanReply, err error) {
		_, has := l.m.at[uint16(i)]
		switch {
		case !c.on(stage) || has != l.waits[i]: // late, or delivered twice
		case err == nil && overtaken(simCarry(s, r), uint16(i), func(p uint32) (placement.Group, bool) { return c.layout[p], true }):
			if c.relisten() {
				c.scan(l.after, l.fence, l.each, l.then)
			}
		case err == nil:
			delete(l.waits, i)
			l.m.add(uint16(i), simCarry(s, r))
			l.merge()
		case l.waits[i]: // others come in its place
			delete(l.waits, i)
			l.m.drop(uint16(i))
			for _, j := range s.rng.Perm(len(s.drives)) {
				if _, has := l.m.at[uint16(j)]; !has && j != i {
					l.ask(j, l.m.last)
				}
			}
			l.merge()
		}
	})
}

// merge observes as much as can be merged, and asks for the rest.
func (l *simScan) merge() {
	c, s := l.c, l.c.s
	if len(l.waits) > 0 || !c.covered(l.m.sources) {
		return
	}
	c.stage++
	most := len(s.keys)
	if s.with.onward {
		most = 1 + s.rng.IntN(most)
	}
	for i := range l.m.sources {
		l.m.sources[i].more = l.m.sources[i].more && !s.mut.pastEnd
	}
	list := l.m.next(most)
	s.clock++
	done, last := l.m.done(), l.m.last
	for _, reg := range s.keys {
		if string(reg.addr.Key) <= string(l.after) || !done && (last == nil || string(reg.addr.Key) > string(last.Address.Key)) {
			continue
		}
		i := slices.IndexFunc(list, func(x candidate) bool { return sameAddress(&x.addr, &reg.addr) })
		if i < 0 {
			l.each(reg, nil, true, l.call)
		} else {
			l.each(reg, list[i].row, list[i].chosen || s.mut.noResolve, l.call)
		}
	}
	if done {
		l.then(true)
		return
	}
	if last != nil {
		l.after = bytes.Clone(last.Address.Key)
	}
	if !s.with.onward || s.rng.IntN(4) == 0 { // the next page
		c.scan(l.after, l.fence, l.each, l.then)
		return
	}
	l.stage = c.wait(func() { l.then(false) })
	for i := range l.m.sources {
		if x := &l.m.sources[i]; x.dry() || x.more && s.rng.IntN(2) == 0 {
			l.waits[int(x.drive)] = true
		}
	}
	for _, i := range s.rng.Perm(len(s.drives)) {
		if l.waits[i] {
			l.ask(i, l.m.sources[l.m.at[uint16(i)]].end)
		}
	}
	l.merge() // there may be more at hand
}

// relisten looks at the layout again for a listing, and says whether it is worth another try.
func (c *proc) relisten() bool {
	if !c.behind() {
		return false
	}
	c.layout = slices.Clone(c.view().layout)
	c.follows++
	return c.follows < 6
}

// covered says whether a read quorum of each partition was heard.
func (c *proc) covered(scans []scanSource) bool {
	for p := range c.layout {
		n := 0
		for _, x := range scans {
			if c.layout[p].Position(x.drive) >= 0 {
				n++
			}
		}
		if n < c.layout[p].Quorum.R {
			return false
		}
	}
	return true
}

// startList observes what a listing says of each key.
func (c *proc) startList() {
	s := c.s
	c.scan(nil, 0, func(reg *register, row *Row, ok bool, call int64) {
		switch {
		case s.bucket.gone:
		case !ok: // resolved by a read of its own
			p := s.newProc(opPeek, reg)
			p.op, p.background = c.op, true
			p.startRead()
		case row == nil:
			s.observe(reg, in{opPeek, 0}, out{resOK, ""}, call, s.clock)
		default:
			s.observe(reg, in{opPeek, 0}, out{resOK, peekString(&row.State)}, call, s.clock)
		}
	}, func(bool) { c.end(resDrop, "") })
}

// Bodies.

// stream brings the shards of a file to the drives; with enough of each chunk it goes on.
func (c *proc) stream(b *body, then func(ok bool)) {
	s := c.s
	if b.data.Inline() {
		then(true)
		return
	}
	var have [2]uint32
	stage := c.wait(func() { then(false) })
	for chunk := range int(b.data.Chunks()) {
		g := c.group(s.chunkPart(b.reg, chunk))
		for _, pos := range s.places(g, &b.data) {
			drive := g.Drives[pos]
			simSend(c, int(drive), "stream", func(*Acceptor) (struct{}, error) {
				s.drives[drive].shards.stream(b.data.ID, uint32(chunk))
				return struct{}{}, nil
			}, func(struct{}, error) {
				have[chunk] |= 1 << pos
				if !c.on(stage) || bits.OnesCount32(have[0]) < b.need() || b.data.Chunks() > 1 && bits.OnesCount32(have[1]) < b.need() {
					return
				}
				then(true)
			})
		}
	}
}

// sealed makes op one that brings b.
func (c *proc) sealed(op *Operation, b *body) {
	g := c.group(b.reg.part)
	op.Need, op.Seals = b.need(), make([]*Seal, len(g.Drives))
	for j, pos := range c.s.places(g, &b.data) {
		op.Seals[pos] = &Seal{Data: b.data, Index: uint8(j)}
		if b.data.Inline() {
			op.Seals[pos].Inline = []byte{1}
		}
	}
	if b.data.Chunks() > 1 {
		op.Pin = func(context.Context, Ballot) error { panic("the simulation pins by itself") }
	}
}

// abandon takes the body of a failed write away, as far as that is possible now.
func (c *proc) abandon(b *body) {
	if b != nil && c.s.rng.IntN(2) == 0 {
		c.remove(b, b.reg, lastBallot, nil)
	}
}

// remove deletes the shards of a body that reg let go of, under guard; then hears whether all drives said that they did.
func (c *proc) remove(b *body, reg *register, guard Ballot, then func(ok bool)) {
	s := c.s
	stage := 0
	if then != nil {
		stage = c.wait(func() { then(false) })
	}
	var heard [2]uint32
	left := 0
	for chunk := range b.data.Chunks() {
		left += len(c.group(s.chunkPart(reg, int(chunk))).Drives)
	}
	for chunk := range b.data.Chunks() {
		for pos, drive := range c.group(s.chunkPart(reg, int(chunk))).Drives {
			simSend(c, int(drive), "delete", func(*Acceptor) (bool, error) {
				return s.delete(int(drive), b, reg, chunk, guard), nil
			}, func(gone bool, _ error) {
				if then == nil || !c.on(stage) || heard[chunk]>>pos&1 > 0 {
					return
				}
				heard[chunk] |= 1 << pos
				if left--; !gone || left == 0 {
					c.stage++
					then(gone)
				}
			})
		}
	}
}

// delete removes one shard if the drive lets go of it, and says whether it did.
func (s *sim) delete(i int, b *body, reg *register, chunk uint32, guard Ballot) bool {
	gone, err := s.drives[i].acc.MayDelete(reg.addr, b.data.ID, chunk, guard, func() error {
		s.tr("   drive%d deletes op%d/%d", i, b.op, chunk)
		delete(s.drives[i].shards.sealed, simShard{b.data.ID, chunk})
		return nil
	})
	if err != nil {
		s.fail("delete: %v", err)
	}
	if gone {
		s.checkAll()
	}
	return gone
}

// clean removes the garbage of drive i.
func (s *sim) clean(i int) {
	d := s.drives[i]
	if d.acc == nil {
		return
	}
	rows, err := d.acc.Garbage(time.UnixMicro(int64(s.now+d.skew+1)), 0)
	if err != nil {
		s.fail("garbage: %v", err)
		return
	}
	var done []GarbageRow
	for _, r := range rows {
		b := s.bodies[int(r.Dead.Data.ID[0])|int(r.Dead.Data.ID[1])<<8]
		reg := s.at(&r.Address)
		for chunk := range b.data.Chunks() {
			if _, ok := d.shards.sealed[simShard{b.data.ID, chunk}]; ok {
				s.delete(i, b, reg, chunk, r.Guard)
			}
		}
		if b.data.Chunks() > 1 { // repair takes it over
			p := s.newProc(opGC, reg)
			p.remove(b, reg, r.Guard, nil)
			p.end(resDrop, "")
		}
		done = append(done, r)
	}
	if err := d.acc.ClearGarbage(done); err != nil {
		s.fail("garbage: %v", err)
	}
}

// gc collects a body that no record names.
func (c *proc) startGC() {
	s, b := c.s, c.s.bodies[c.v]
	if s.mut.orphanNoRound {
		c.remove(b, b.reg, lastBallot, nil)
		c.end(resDrop, "")
		return
	}
	c.of, c.tries = b.reg, 0
	c.p = c.newProposer(b.reg, nil)
	c.p.orphan = b.data.ID
	c.finish = func(p *proposer) {
		if p.err == nil && !p.referenced {
			c.remove(b, b.reg, p.ballot, nil)
		}
		c.end(resDrop, "")
	}
	c.begin()
}
