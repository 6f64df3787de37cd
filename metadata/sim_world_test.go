package metadata

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

const (
	simBucket = 7
	simDay    = uint64(24 * time.Hour / time.Microsecond)
)

// simConfig is a profile with the record quorum that it gets, or with the least R that is right.
type simConfig struct {
	q placement.Quorum
	k int
}

func (c simConfig) String() string {
	return fmt.Sprintf("n=%d W=%d R=%d k=%d", c.q.N, c.q.W, c.q.R, c.k)
}

// need is the shard quorum.
func (c simConfig) need() int {
	return placement.ShardQuorum(c.profile(), 1)
}

func (c simConfig) profile() erasure.Profile {
	return erasure.Profile{Data: uint8(c.k), Parity: uint8(c.q.N - c.k)}
}

func simProfile(k, m int) simConfig {
	return simConfig{placement.RecordQuorum(erasure.Profile{Data: uint8(k), Parity: uint8(m)}, 1), k}
}

func simLeast(k, m int) simConfig {
	c := simProfile(k, m)
	c.q.R = c.q.N - c.q.W + 1
	return c
}

// simConfigs are those that a server gets by its number of drives, and such as make quorums barely
// intersect.
var simConfigs = []simConfig{
	simProfile(1, 0),
	simProfile(1, 1),
	simProfile(2, 1),
	{placement.Quorum{N: 3, W: 2, R: 2, Z: 2}, 1},
	simProfile(2, 2),
	{placement.Quorum{N: 5, W: 3, R: 3, Z: 3}, 2},
	simLeast(4, 2),
	simProfile(4, 2),
	simProfile(8, 4),
	simLeast(8, 4),
}

type simDrive struct {
	kv     *simKV
	shards *simShards
	acc    *Acceptor // nil: down
	gone   bool      // for good
	cut    bool      // nobody reaches it
	skew   uint64    // of its clock, modulo 2^64
	simCopy
}

// simMsg is on its way to a drive (ask) or back to a process (reply).
type simMsg struct {
	drive int // -1: to a process
	from  int // of a reply
	to    *proc
	ask   func(a *Acceptor) func()
	reply func()
	what  string
}

// features is what a schedule may contain besides the plain.
type features struct {
	wide    bool // bodies of two chunks; keys on two groups of drives
	uploads bool // multipart
	bucket  bool // the bucket is deleted
	skew    bool // clocks differ by a day, and jump
	pause   bool // gateways stand still for days
	swap    bool // drives take the place of others
	away    bool // besides, members are cut off for long, newcomers die in mid-swap, and writes end early
	tombs   bool // one key that comes and goes; doubles come very late, and gateways stand still in between
	lag     bool // drives and gateways have copies of the control plane that lag
	sides   bool // besides, a gateway and some drives are cut off from all others
	oneWay  bool // gateways do not reach some drives for a while, or do not hear them
	movers  bool // movers crash in each phase, and others take over
	onward  bool // listings keep what drives sent, and ask for more where one ended
	widen   bool // partitions become wider
	turns   bool // members are given up once a change of membership has begun
}

type sim struct {
	cfg      simConfig
	mut      mutations
	rng      *rand.Rand
	with     features
	drives   []*simDrive
	layout   []placement.Group // by partition; as published
	stood    [][][]uint16      // by partition and position: drives that have it, or had it
	wide     simConfig         // with features.widen: what partitions become
	log      []simView         // with features.lag: the control plane after each of its changes
	gates    []*simGate        // with features.lag or oneWay
	slowness int               // steps until somebody learns
	lonely   *simGate          // nil: no partition; else it and the drives of minor are on one side
	minor    uint32
	bucket   simBucketState
	moving   *transition // nil: none
	swaps    int
	fallen   int  // movers that crashed in a certain phase
	lost     bool // a drive went with its shards
	widened  bool // a transition that makes partitions wider has begun
	moved    int  // epochs that were published
	turned   int  // partitions in which a change of membership was turned
	keys     []*register
	regs     []*register // of all kinds
	uploads  []*upload
	bodies   map[int]*body    // by operation
	seqsOf   map[int][]uint64 // by op: the sequences that its version was proposed with
	msgs     []simMsg
	slow     []simMsg // doubles that come late
	procs    []*proc  // that are not done
	now      uint64
	clock    int64 // of the history
	ops      int
	uniq     uint64
	err      string
	trace    bool
	commits  int
	checked  int
	viaCodec bool
	promises int
}

func (s *sim) tr(format string, args ...any) {
	if s.trace {
		fmt.Printf(format+"\n", args...)
	}
}

// fail keeps the first thing that is wrong.
func (s *sim) fail(format string, args ...any) {
	if s.err == "" {
		s.err = fmt.Sprintf(format, args...)
		s.tr("WRONG: %s", s.err)
	}
}

func newSim(seed uint64, cfg simConfig, mut mutations, trace bool) *sim {
	rng := rand.New(rand.NewPCG(seed, 7))
	s := &sim{cfg: cfg, mut: mut, rng: rng, now: 1000 * simDay, seqsOf: map[int][]uint64{}, bodies: map[int]*body{}, trace: trace,
		viaCodec: rng.IntN(16) == 0, promises: 64}
	if rng.IntN(4) == 0 {
		s.promises = 4 // eviction
	}
	s.with = features{wide: rng.IntN(4) == 0, uploads: rng.IntN(4) == 0, bucket: rng.IntN(8) == 0, skew: rng.IntN(4) == 0, pause: rng.IntN(6) == 0,
		swap: rng.IntN(4) == 0, tombs: rng.IntN(6) == 0}
	// Drawn apart, so that a seed without these is the schedule that it was before they came.
	more := rand.New(rand.NewPCG(seed, 8))
	s.with.lag, s.with.oneWay, s.with.movers = more.IntN(3) == 0, more.IntN(5) == 0, more.IntN(3) == 0
	s.with.sides = more.IntN(2) == 0
	s.with.onward = more.IntN(2) == 0
	if mut.moves() {
		s.with.swap = true // the others prove nothing
	}
	if *simMoves {
		s.with.swap, s.with.lag = true, true
	}
	if mut != (mutations{}) && !mut.moves() && !mut.noFloorLow && !mut.noAborting {
		s.with.lag, s.with.sides, s.with.oneWay, s.with.movers = false, false, false, false // they show without
	}
	if mut != (mutations{}) {
		s.with.onward = mut.pastEnd
	}
	if mut.staleMover {
		s.with.lag, s.with.movers = true, true
	}
	if mut.wedgeTooFew || mut.newZ || mut.awayGone {
		s.with.lag, s.with.sides = true, true // who knows what is published refuses the old epoch by itself
	}
	if mut.forgetPromises {
		s.with.swap = false // a mover that meets such a drive gets nowhere, which proves nothing
	}
	if mut.noFloorLow {
		s.with.tombs = true
	}
	if mut.noAborting {
		s.with.uploads, s.with.tombs = true, false
	}
	s.with.sides = s.with.sides && s.with.lag
	s.with.away = s.with.swap && rng.IntN(2) == 0
	s.drawWidening(seed)
	s.drawTurns(seed)
	n := cfg.q.N
	shift := 0
	if s.with.wide {
		shift = min(n, 2)
	}
	for p := range 1 + min(shift, 1) {
		g := placement.Group{Partition: uint32(p), Epoch: 1, Quorum: cfg.q, Profile: cfg.profile(), Spread: 1, First: n}
		for i := range n {
			g.Drives = append(g.Drives, uint16(i+p*shift))
		}
		s.layout = append(s.layout, g)
		s.stood = append(s.stood, nil)
		s.stands(p)
	}
	for range n + shift {
		s.addDrive()
	}
	s.bucket = simBucketState{epoch: 1}
	s.published()
	if s.with.lag {
		s.slowness = 10 << rng.IntN(6)
		for _, d := range s.drives {
			d.blind = rng.IntN(4) == 0
		}
	}
	if s.with.lag || s.with.oneWay {
		for range simGates {
			s.gates = append(s.gates, &simGate{simCopy: simCopy{blind: s.with.lag && rng.IntN(3) == 0}, skew: s.skew()})
		}
	}
	keys := 1 + rng.IntN(3)
	switch {
	case s.with.tombs || s.with.away && rng.IntN(2) == 0:
		keys = 1
	case rng.IntN(8) == 0:
		keys = 8
	}
	for i := range keys {
		r := s.register(Address{Kind: KindObject, Bucket: simBucket, Key: []byte{'k', byte('0' + i)}}, i%len(s.layout))
		r.key, r.versioned = i, rng.IntN(2) == 0 && !s.with.tombs
		s.keys = append(s.keys, r)
	}
	if s.with.uploads {
		for i := range 1 + rng.IntN(2) {
			s.newUpload(s.keys[min(i, keys-1)])
		}
	}
	return s
}

// addDrive adds an empty drive, which is a member of nothing by itself.
func (s *sim) addDrive() {
	kv := &simKV{}
	kv.set(digestMarker(), sealValue(digestMarker(), []byte{rowFormat})) // an empty store has its digests
	s.drives = append(s.drives, &simDrive{kv: kv, shards: &simShards{map[simShard]bool{}}, skew: s.skew()})
	d := s.drives[len(s.drives)-1]
	if len(s.log) > 0 {
		d.knows, d.blind = s.rng.IntN(len(s.log)), s.rng.IntN(5) == 0
	}
	s.boot(len(s.drives) - 1)
}

// skew is how far a clock is off.
func (s *sim) skew() uint64 {
	if !s.with.skew {
		return 0
	}
	return uint64(s.rng.IntN(3)-1) * simDay
}

func (s *sim) boot(i int) {
	d := s.drives[i]
	if d.gone {
		return
	}
	if s.with.lag && s.rng.IntN(3) == 0 {
		d.knows = s.rng.IntN(d.knows + 1) // it may have the last snapshot, and not know yet what of its log is committed
	}
	a, err := newAcceptor(AcceptorConfig{KV: d.kv, Shards: d.shards, Epoch: func(p uint32) (uint64, bool) { return s.epoch(p, i) },
		Now: func() time.Time { return time.UnixMicro(int64(s.now + d.skew)) }, Promises: s.promises, Ahead: 3 * time.Microsecond, stripes: 2}, s.mut)
	if err != nil {
		s.fail("boot: %v", err)
		return
	}
	d.acc = a
}

// epoch is what drive i knows of partition p.
func (s *sim) epoch(p uint32, i int) (uint64, bool) {
	layout := s.known(i)
	if int(p) >= len(layout) {
		return 0, false
	}
	g := &layout[p]
	return g.Epoch, g.Position(uint16(i)) >= 0
}

func (s *sim) crash(i int) {
	s.tr("drive%d crashes", i)
	d := s.drives[i]
	d.acc = nil
	d.kv.crash(s.rng.IntN(len(d.kv.undo) + 1))
	if s.rng.IntN(2) == 0 {
		d.shards.crash()
	}
}

// simSend asks drive i something for c; reply runs at c when the answer arrives.
func simSend[R any](c *proc, i int, what string, ask func(a *Acceptor) (R, error), reply func(R, error)) {
	if c.s.with.away && c.deaf>>i&1 > 0 {
		return
	}
	c.s.msgs = append(c.s.msgs, simMsg{drive: i, to: c, what: what, ask: func(a *Acceptor) func() {
		r, err := ask(a)
		if reply == nil {
			return nil
		}
		return func() { reply(r, err) }
	}})
}

var errDown = errs.E("sim", errs.Drive, "down")

// run plays one schedule.
func (s *sim) run() {
	rng := s.rng
	planned := 6 + rng.IntN(12)
	if s.with.lag && s.with.swap {
		planned += rng.IntN(12)
	}
	lost, doubled, crash := rng.Float64()*0.15, rng.Float64()*0.1, rng.Float64()*0.02
	started, closed := 0, 0
	for step := 0; step < 8000 && s.err == ""; step++ {
		s.now++
		if s.with.lag && rng.IntN(s.slowness) == 0 {
			s.learn()
		}
		if s.with.sides && rng.IntN(100) == 0 {
			s.divide()
		}
		if s.with.oneWay && rng.IntN(150) == 0 {
			s.split()
		}
		x := rng.Float64()
		active := 0
		live := s.procs[:0]
		for _, c := range s.procs {
			if !c.done {
				live = append(live, c)
				if !c.background {
					active++
				}
			}
		}
		s.procs = live
		switch {
		case started < planned && active < 4 && (x < 0.05 || active == 0 && len(s.msgs) == 0):
			started++
			s.startAny()
			continue
		case x < 0.05+crash:
			i := rng.IntN(len(s.drives))
			if s.drives[i].acc != nil {
				s.crash(i)
			} else {
				s.boot(i)
			}
			continue
		case x < 0.05+2*crash:
			if i := rng.IntN(len(s.drives)); s.drives[i].acc != nil {
				s.crash(i)
				s.boot(i)
			}
			continue
		case x < 0.05+2*crash+0.004:
			s.disturb()
			continue
		case s.with.away && x > 0.95 && x < 0.96:
			s.cutOff()
			continue
		}
		if len(s.msgs) == 0 || x > 0.97 {
			idle := len(s.procs) == 0
			for i := 0; i < len(s.procs); i++ { // those that a timeout starts are asked the next time
				c := s.procs[i]
				if c.done || c.paused {
					continue
				}
				if c.tick++; c.tick > 20+rng.IntN(40) {
					c.tick = 0
					c.timeout()
				}
			}
			if len(s.msgs) == 0 {
				if idle && started >= planned {
					if len(s.slow) == 0 {
						break
					}
					s.msgs, s.slow, lost, doubled = s.slow, nil, 0, 0
					continue
				}
				if closed++; closed%10 == 0 {
					s.recover()
				}
				if closed%simReunite == 0 {
					s.reunite()
				}
				continue
			}
		}
		s.deliver(rng.IntN(len(s.msgs)), lost, doubled)
		if len(s.slow) > 0 && rng.IntN(100) == 0 {
			i := rng.IntN(len(s.slow))
			s.msgs = append(s.msgs, s.slow[i])
			s.slow = slices.Delete(s.slow, i, i+1)
		}
	}
	for _, c := range s.procs {
		if !c.done {
			c.kill()
		}
	}
}

// disturb lets a gateway crash or stand still, or a clock jump.
func (s *sim) disturb() {
	rng := s.rng
	if len(s.procs) > 0 && rng.IntN(2) == 0 {
		c := s.procs[rng.IntN(len(s.procs))]
		s.tr("gateway of op%d crashes", c.op)
		c.kill()
		return
	}
	if s.with.skew {
		if rng.IntN(2) == 0 {
			s.drives[rng.IntN(len(s.drives))].skew = s.skew()
		} else if len(s.procs) > 0 {
			c := s.procs[rng.IntN(len(s.procs))]
			if c.skew = s.skew(); c.gate != nil {
				c.gate.skew = c.skew
			}
		}
	}
	if s.with.pause && len(s.procs) > 0 {
		c := s.procs[rng.IntN(len(s.procs))]
		if c.paused = !c.paused; c.paused {
			s.tr("gateway of op%d stands still", c.op)
			s.now += 2 * simDay
		}
	}
}

// deafness draws the drives that a process does not reach: in many schedules about as many as it can do without,
// so that the rounds of a register leave much that is not the same everywhere.
func (s *sim) deafness(kind opKind) (mask uint32) {
	if !s.with.away {
		return 0
	}
	for i := range s.drives {
		if one := s.rng.IntN(20); kind == opSwap && one < 2 || kind != opSwap && one < 6 {
			mask |= 1 << i
		}
	}
	return mask
}

// cutOff cuts a drive off for a while, or brings back the one that is, or ends a write early.
func (s *sim) cutOff() {
	i := slices.IndexFunc(s.drives, func(d *simDrive) bool { return d.cut })
	switch {
	case s.rng.IntN(2) == 0:
		for _, c := range s.procs {
			if !c.done && c.main && c.p != nil && c.p.sent && s.rng.IntN(2) == 0 {
				s.tr("gateway of op%d crashes", c.op)
				c.kill()
			}
		}
	case i < 0:
		i = s.rng.IntN(len(s.drives))
		s.tr("drive%d is cut off", i)
		s.drives[i].cut = true
	case s.rng.IntN(2) == 0:
		s.tr("drive%d is reached again", i)
		s.drives[i].cut = false
	}
}

// recover brings back whoever is down, or cut off, or stands still.
func (s *sim) recover() {
	for i, d := range s.drives {
		d.cut = false
		if d.acc == nil {
			s.boot(i)
		}
	}
	for _, c := range s.procs {
		c.paused = false
	}
}

// deliver takes message i to where it goes, or loses it, or keeps it to come again.
func (s *sim) deliver(i int, lost, doubled float64) {
	m := s.msgs[i]
	if m.drive < 0 && m.to.paused {
		if s.rng.IntN(50) == 0 {
			m.to.paused = false
		}
		return
	}
	if again := s.rng.Float64() < doubled; !again || s.with.tombs {
		if again && m.drive >= 0 {
			s.slow = append(s.slow, m)
		}
		last := len(s.msgs) - 1
		s.msgs[i] = s.msgs[last]
		s.msgs[last] = simMsg{}
		s.msgs = s.msgs[:last]
	}
	if s.rng.Float64() < lost || s.blocked(&m) {
		return
	}
	if m.drive < 0 {
		m.reply()
		return
	}
	d := s.drives[m.drive]
	if d.acc == nil || d.cut {
		return
	}
	if s.trace {
		s.tr("  drive%d <- op%d %s", m.drive, m.to.op, m.what)
	}
	if g := m.ask(d.acc); g != nil {
		s.msgs = append(s.msgs, simMsg{drive: -1, from: m.drive, to: m.to, reply: g})
	}
}
