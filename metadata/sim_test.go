package metadata

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// The L1 simulation: the acceptor, the proposer, the judgement of reads and the merge of listings
// that the server runs, on one thread, from a seed. Messages are lost, doubled and reordered; drives
// crash and lose what was not synced; gateways crash; operations wait for as long as they like. The
// histories of all keys must be linearizable, chosen data must keep k shards, and after everything
// is healed all drives must hold the same rows.
//
//	go test ./metadata -run 'TestSim$' -seeds 1000000     many schedules
//	go test ./metadata -run 'TestSim$' -seed 4711 -trace  one schedule, told

var (
	simSeeds = flag.Int("seeds", 0, "schedules of the simulation; 0 means a short slice")
	simSeed  = flag.Int64("seed", -1, "run this schedule only")
	simTrace = flag.Bool("trace", false, "print what happens; with -seed")
	simN     = flag.Int("drives", 0, "only configurations with this many drives")
)

type simConfig struct {
	q placement.Quorum
	k int
}

// simConfigs are small, so that quorums barely intersect; R is the least that is right.
var simConfigs = []simConfig{
	{placement.Quorum{N: 3, W: 2, R: 2}, 1},
	{placement.Quorum{N: 4, W: 3, R: 2}, 2},
	{placement.Quorum{N: 5, W: 3, R: 3}, 2},
	{placement.Quorum{N: 6, W: 5, R: 2}, 4},
}

const (
	simKeys   = 2
	simBucket = 7
)

type simDrive struct {
	kv     *memKV
	shards *memShards
	acc    *Acceptor // nil: down
}

// simMsg is on its way to a drive (f) or back to a process (g).
type simMsg struct {
	drive int // -1: to a process
	f     func(a *Acceptor) func()
	g     func()
	what  string
}

type simOp struct {
	kind string // put push inm del delv get peek gc drop repair list
	op   int    // 1…; also the value written
	key  int
	v    int // delv, gc: the target
}

type proc struct {
	simOp
	s       *sim
	p       *proposer
	attempt int
	tries   int
	tick    int
	done    bool
	call    int64
	stage   int // reads: bumped so that late replies are recognized
	replies []*ReadReply
	scans   []scanSource
	after   []byte
	finish  func(p *proposer) // when p is done
	file    bool              // the body is streamed before, and not sent with the Prepare
	streams uint32            // drives that have it
	tried   []bool
}

type in struct {
	kind string
	v    int
}
type out struct {
	res string
	val string
}

type sim struct {
	cfg       simConfig
	mut       mutations
	rng       *rand.Rand
	drives    []*simDrive
	versioned [simKeys]bool
	msgs      []simMsg
	procs     []*proc
	now       uint64
	clock     int64 // of the history
	ops       int
	hist      [simKeys][]porcupine.Operation
	accepts   [simKeys]map[Ballot]uint32 // drives that ever held a row of a ballot
	stateAt   [simKeys]map[Ballot]*State
	stacks    [simKeys]map[Ballot][]*Version // by state id: all versions, newest first
	chosen    [simKeys]Ballot
	seqOf     map[int]uint64 // op → the sequence that it proposed last
	keyOf     map[int]int
	uniq      uint64
	err       string
	trace     bool
	commits   int
	viaCodec  bool
	promises  int
}

func (s *sim) tr(format string, args ...any) {
	if s.trace {
		fmt.Printf(format+"\n", args...)
	}
}

func simAddr(key int) Address {
	return Address{Kind: KindObject, Bucket: simBucket, Key: []byte{'k', byte('0' + key)}}
}

func simData(op, k int) *Data {
	return &Data{ID: erasure.DataID{byte(op), 1}, Profile: erasure.Profile{Data: uint8(k)}, Size: 1}
}

func (s *sim) boot(i int) {
	d := s.drives[i]
	a, err := newAcceptor(AcceptorConfig{KV: d.kv, Shards: d.shards, Epoch: func(uint32) (uint64, bool) { return 1, true },
		Now: func() time.Time { return time.UnixMicro(int64(s.now)) }, Promises: s.promises, Ahead: 3 * time.Microsecond, stripes: 2}, s.mut)
	if err != nil {
		s.err = "boot: " + err.Error()
		return
	}
	d.acc = a
}

func (s *sim) head() Header { return Header{Epoch: 1} }

// send asks drive i something; reply runs at the process when the answer arrives.
func simSend[R any](s *sim, i int, what string, ask func(a *Acceptor) (R, error), reply func(R, error)) {
	s.msgs = append(s.msgs, simMsg{drive: i, what: what, f: func(a *Acceptor) func() {
		r, err := ask(a)
		if reply == nil {
			return nil
		}
		return func() { reply(r, err) }
	}})
}

func (s *sim) newProc(o simOp) *proc {
	s.clock++
	c := &proc{simOp: o, s: s, call: s.clock}
	s.procs = append(s.procs, c)
	s.tr("START op%d %s key%d v=%d", o.op, o.kind, o.key, o.v)
	return c
}

// record ends a process. res "drop": certainly without effect, nothing to check.
func (c *proc) record(res, val string) {
	if c.done {
		return
	}
	c.done = true
	c.s.tr("END op%d %s key%d: %s %q", c.op, c.kind, c.key, res, val)
	kind := c.kind
	switch {
	case res == "drop" || kind == "gc" || kind == "drop" || kind == "repair" || kind == "list":
		return
	case res == "unknown" && (kind == "get" || kind == "peek"):
		return
	}
	c.s.clock++
	ret := c.s.clock
	if res == "unknown" {
		ret = 1<<50 + int64(c.op)
	}
	c.s.observe(c.key, in{kind, c.v}, out{res, val}, c.call, ret)
}

func (s *sim) observe(key int, i in, o out, call, ret int64) {
	s.hist[key] = append(s.hist[key], porcupine.Operation{ClientId: len(s.hist[key]), Input: i, Call: call, Output: o, Return: ret})
}

var errExists = errs.E("sim", errs.Precondition, "exists")
var errNoVersion = errs.E("sim", errs.NotFound, "no such version")

// operation makes what the proposer runs.
func (c *proc) operation() *Operation {
	s := c.s
	op := &Operation{ID: OpID(c.op)}
	data := simData(c.op, s.cfg.k)
	if c.kind == "put" || c.kind == "push" || c.kind == "inm" {
		op.Need = s.cfg.q.W
		for pos := range s.drives {
			seal := &Seal{Data: *data, Index: uint8(pos), Inline: []byte{1}}
			if c.file {
				seal.Inline = nil
			}
			op.Seals = append(op.Seals, seal)
		}
	}
	if c.kind == "delv" {
		op.Query = Query{Seqs: []uint64{s.seqOf[c.v]}, Below: ^uint64(0)}
	}
	op.Apply = func(base *State, named []Version) (*Change, error) {
		ch := &Change{NextSeq: 1}
		live := base != nil && base.Current != nil
		if base != nil {
			ch.NextSeq, ch.Current, ch.Older = base.NextSeq, base.Current, base.Older
		}
		add := func() {
			ch.Current = &Version{Kind: VersionObject, Seq: ch.NextSeq, ETag: string([]byte{byte(c.op)}), Data: data}
			s.seqOf[c.op] = ch.NextSeq
			ch.NextSeq++
		}
		dead := func(v *Version) { ch.Dead = append(ch.Dead, DeadData{Data: *v.Data}) }
		switch c.kind {
		case "inm":
			if live {
				return nil, errExists
			}
			add()
		case "put":
			if live {
				dead(base.Current)
			}
			add()
		case "push":
			if live {
				ch.Put, ch.Older = []Version{*base.Current}, base.Older+1
			}
			add()
		case "del":
			if live {
				dead(base.Current)
			}
			ch.Current = nil
		case "delv":
			want := string([]byte{byte(c.v)})
			switch {
			case live && base.Current.ETag == want:
				dead(base.Current)
				ch.Current = nil
				if base.Older > 0 {
					newest := slices.MaxFunc(named, func(a, b Version) int { return int(a.Seq) - int(b.Seq) })
					ch.Current, ch.Older, ch.Drop = &newest, base.Older-1, []uint64{newest.Seq}
				}
			default:
				i := slices.IndexFunc(named, func(v Version) bool { return v.ETag == want })
				if !live || i < 0 {
					return nil, errNoVersion
				}
				dead(&named[i])
				ch.Older, ch.Drop = base.Older-1, []uint64{named[i].Seq}
			}
		}
		return ch, nil
	}
	return op
}

// start begins one operation.
func (s *sim) start(kind string, key, v int) {
	s.ops++
	c := s.newProc(simOp{kind: kind, op: s.ops, key: key, v: v})
	if c.v == 0 {
		c.v = c.op
	}
	s.keyOf[c.op] = key
	switch kind {
	case "get", "peek", "drop", "repair":
		c.startRead()
	case "list":
		c.startScan()
	case "gc":
		if s.mut.orphanNoRound {
			c.collect(lastBallot)
			c.record("drop", "")
			return
		}
		c.p = s.newProposer(nil)
		c.p.orphan = simData(v, 1).ID
		c.finish = func(p *proposer) {
			if p.err == nil && !p.referenced {
				c.collect(p.ballot)
			}
			c.record("drop", "")
		}
		c.begin()
	default:
		c.file = s.rng.IntN(2) == 0
		c.p = s.newProposer(c.operation())
		c.finish = func(p *proposer) {
			switch {
			case p.err == nil:
				c.record("ok", "")
			case p.err == errExists:
				c.record("412", "")
			case p.err == errNoVersion:
				c.record("404", "")
			case p.sent:
				c.record("unknown", "")
			default:
				c.record("drop", "")
			}
		}
		if c.file && len(c.p.op.Seals) > 0 {
			c.stream()
			return
		}
		c.begin()
	}
}

// stream brings the shards of a file to the drives; at W of them the operation goes on.
func (c *proc) stream() {
	s := c.s
	id := simData(c.op, 1).ID
	for i := range s.drives {
		simSend(s, i, fmt.Sprintf("stream op%d", c.op), func(*Acceptor) (struct{}, error) {
			s.drives[i].shards.shards[pinName(id, 0)] = []byte{1}
			return struct{}{}, nil
		}, func(struct{}, error) {
			c.streams |= 1 << i
			if bits.OnesCount32(c.streams) == s.cfg.q.W && !c.done && c.attempt == 0 {
				c.begin()
			}
		})
	}
}

func (s *sim) newProposer(op *Operation) *proposer {
	p := newProposer(s.cfg.q, KindObject, op, s.mut)
	p.kept = 2
	return p
}

// collect deletes the shards of the process's target under guard.
func (c *proc) collect(guard Ballot) {
	s, target, key := c.s, c.v, c.key
	for i := range s.drives {
		simSend(s, i, fmt.Sprintf("delete %d guard %v", target, guard), func(a *Acceptor) (struct{}, error) {
			s.delete(i, key, simData(target, 1).ID, guard)
			return struct{}{}, nil
		}, nil)
	}
}

func (s *sim) delete(i, key int, id erasure.DataID, guard Ballot) {
	_, err := s.drives[i].acc.MayDelete(simAddr(key), id, 0, guard, func() error {
		s.tr("   drive%d deletes %x", i, id[0])
		s.drives[i].shards.remove(id, 0)
		return nil
	})
	if err != nil {
		s.err = "delete: " + err.Error()
	}
	s.check()
}

// begin starts a round.
func (c *proc) begin() {
	s := c.s
	c.attempt++
	c.tries++
	c.tick = 0
	c.tried = make([]bool, len(s.drives))
	s.uniq++
	b := Ballot{Counter: max(s.now, c.p.seen.Counter+1), Proposer: s.uniq}
	c.p.begin(b)
	attempt := c.attempt
	for i := range s.drives {
		m := &PrepareRequest{Header: s.head(), Address: simAddr(c.key), Ballot: b, Seal: c.p.seal(i), Query: c.p.query, Orphan: c.p.orphan}
		simSend(s, i, fmt.Sprintf("prepare op%d %v", c.op, b), func(a *Acceptor) (*PrepareReply, error) {
			return a.Prepare(context.Background(), simCarry(s, m))
		}, func(r *PrepareReply, err error) {
			if !c.done && c.attempt == attempt {
				if err == nil {
					r = simCarry(s, r)
				}
				c.next(c.p.promise(i, r, err))
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

func (c *proc) accept(i int, m *AcceptRequest) {
	s, attempt := c.s, c.attempt
	simSend(s, i, fmt.Sprintf("accept op%d %v whole=%v", c.op, m.Ballot, m.Whole), func(a *Acceptor) (*AcceptReply, error) {
		r, err := a.Accept(context.Background(), simCarry(s, m))
		if err == nil && r.Accepted {
			s.held(i, c.key, m.Ballot)
		}
		return r, err
	}, func(r *AcceptReply, err error) {
		if !c.done && c.attempt == attempt {
			c.next(c.p.accepted(i, r, err))
		}
	})
}

// next does what the proposer asks for.
func (c *proc) next(st step) {
	s := c.s
	switch st {
	case stepAccept:
		c.tick = 0
		s.proposed(c.key, c.p)
		for i := range s.drives {
			c.accept(i, &AcceptRequest{Header: s.head(), Address: simAddr(c.key), Ballot: c.p.ballot, State: *c.p.state})
		}
	case stepCatchUp:
		for i, behind := range c.p.behind {
			if !behind || c.tried[i] {
				continue
			}
			c.tried[i] = true
			c.catchUp(i)
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

// catchUp brings the version rows of a drive that has the state to drive i.
func (c *proc) catchUp(i int) {
	s, attempt, p := c.s, c.attempt, c.p
	from := slices.Index(p.acks, true)
	m := &VersionsRequest{Header: s.head(), Address: simAddr(c.key), Below: ^uint64(0)}
	simSend(s, from, "versions", func(a *Acceptor) (*VersionsReply, error) {
		return a.Versions(context.Background(), m)
	}, func(r *VersionsReply, err error) {
		if c.done || c.attempt != attempt || p.phase != phaseAccept {
			return
		}
		if err != nil || r.Row == nil || r.Row.State.ID != p.state.ID {
			c.next(p.uncaught(i))
			return
		}
		c.accept(i, &AcceptRequest{Header: s.head(), Address: simAddr(c.key), Ballot: p.ballot, State: *p.state, Whole: true, Full: r.Versions})
	})
}

func (c *proc) decide() {
	s := c.s
	d := Decision{Header: s.head(), Address: simAddr(c.key), Ballot: c.p.ballot, Settled: s.rng.IntN(2) == 0}
	for i := range s.drives {
		if s.rng.IntN(4) == 0 {
			continue
		}
		simSend(s, i, fmt.Sprintf("decide %v", d.Ballot), func(a *Acceptor) (struct{}, error) {
			err := a.Decide(context.Background(), []Decision{d})
			if s.rng.IntN(3) == 0 {
				s.clean(i)
			}
			return struct{}{}, err
		}, nil)
	}
}

// clean removes the garbage of drive i.
func (s *sim) clean(i int) {
	a := s.drives[i].acc
	rows, err := a.Garbage(time.UnixMicro(int64(s.now+1)), 0)
	if err != nil {
		s.err = "garbage: " + err.Error()
		return
	}
	for _, r := range rows {
		s.delete(i, int(r.Address.Key[1]-'0'), r.Dead.Data.ID, r.Guard)
	}
	if err := a.ClearGarbage(rows); err != nil {
		s.err = "garbage: " + err.Error()
	}
}

// proposed keeps what each state should look like.
func (s *sim) proposed(key int, p *proposer) {
	st := p.state
	if _, ok := s.stacks[key][st.ID]; ok {
		return
	}
	var stack []*Version
	if st.Current != nil {
		stack = append(stack, st.Current)
	}
	rows := map[uint64]*Version{}
	if !st.Prev.IsZero() {
		prev := s.stacks[key][st.Prev]
		for i, v := range prev {
			if i > 0 {
				rows[v.Seq] = v
			}
		}
	}
	for i := range st.Delta.Put {
		rows[st.Delta.Put[i].Seq] = &st.Delta.Put[i]
	}
	for _, seq := range st.Delta.Drop {
		delete(rows, seq)
	}
	if len(rows) != int(st.Older) {
		s.err = fmt.Sprintf("state %v says %d older versions, and has %d", st.ID, st.Older, len(rows))
	}
	seqs := slices.Sorted(maps.Keys(rows))
	slices.Reverse(seqs)
	for _, seq := range seqs {
		stack = append(stack, rows[seq])
	}
	s.stacks[key][st.ID] = stack
	s.stateAt[key][p.ballot] = st
}

// held notes that drive i accepted under b.
func (s *sim) held(i, key int, b Ballot) {
	s.accepts[key][b] |= 1 << i
	if bits.OnesCount32(s.accepts[key][b]) >= s.cfg.q.W && s.chosen[key].Less(b) {
		s.chosen[key] = b
		s.commits++
	}
	s.check()
}

// check looks whether all chosen data has k shards.
func (s *sim) check() {
	if s.err != "" || s.mut.lastWriteWins {
		return
	}
	for key := range simKeys {
		row := s.chosenState(key)
		if row == nil {
			continue
		}
		for _, v := range s.stacks[key][row.ID] {
			n := 0
			for _, d := range s.drives {
				if d.shards.shards[pinName(v.Data.ID, 0)] != nil {
					n++
				}
			}
			if n < s.cfg.k {
				s.err = fmt.Sprintf("data loss: key %d: data %d has %d shards, needs %d", key, v.Data.ID[0], n, s.cfg.k)
			}
		}
	}
}

// chosenState is the newest chosen state of a key.
func (s *sim) chosenState(key int) *State {
	b := s.chosen[key]
	if b.IsZero() {
		return nil
	}
	return s.stateAt[key][b]
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
	return fmt.Sprintf("%s+%d", st.Current.ETag, st.Older)
}

func (c *proc) startRead() {
	s := c.s
	c.stage++
	c.tries++
	c.tick = 0
	c.replies = make([]*ReadReply, len(s.drives))
	stage := c.stage
	for i := range s.drives {
		m := &ReadRequest{Header: s.head(), Address: simAddr(c.key)}
		simSend(s, i, fmt.Sprintf("read op%d", c.op), func(a *Acceptor) (*ReadReply, error) {
			return a.Read(context.Background(), m)
		}, func(r *ReadReply, err error) {
			if !c.done && c.stage == stage && err == nil {
				c.replies[i] = simCarry(s, r)
				c.judge(false)
			}
		})
	}
}

// judge looks at the replies; last says that no more are waited for.
func (c *proc) judge(last bool) {
	s := c.s
	switch c.kind {
	case "drop":
		need := len(s.drives)
		if s.mut.dropAtW {
			need = s.cfg.q.W
		}
		n := 0
		for _, r := range c.replies {
			if r != nil {
				n++
			}
		}
		if n < need {
			return
		}
		if b, ok := judgeTombstone(c.replies, need); ok {
			for i := range s.drives {
				m := &DropRequest{Header: s.head(), Address: simAddr(c.key), Ballot: b}
				simSend(s, i, fmt.Sprintf("drop %v", b), func(a *Acceptor) (struct{}, error) {
					return struct{}{}, a.Drop(context.Background(), m)
				}, nil)
			}
		}
		c.record("drop", "")
		return
	}
	top, enough := judgeRead(s.cfg.q, c.replies)
	if !enough {
		return
	}
	if s.mut.noResolve {
		top.chosen = true
	}
	if !top.chosen && !last && s.rng.IntN(2) == 0 && slices.Contains(c.replies, nil) {
		return // wait for more
	}
	c.stage++
	if !top.chosen {
		c.p = s.newProposer(nil)
		c.p.seen = top.highest
		c.tries = 0
		c.finish = func(p *proposer) {
			if p.err != nil {
				c.record("unknown", "")
				return
			}
			c.found(p.view.State, slices.Index(p.acks, true), p.ballot)
		}
		c.begin()
		return
	}
	if top.row == nil {
		c.found(nil, 0, Ballot{})
		return
	}
	c.found(&top.row.State, top.who[0], top.row.Ballot)
}

// found ends a read with the chosen state, which drive from has.
func (c *proc) found(st *State, from int, at Ballot) {
	s := c.s
	switch {
	case c.kind == "peek":
		c.record("ok", peekString(st))
		return
	case st == nil && c.kind == "get":
		c.record("ok", "")
		return
	case st == nil:
		c.record("drop", "")
		return
	case st.Older == 0 && c.kind == "get":
		c.record("ok", stackString(st.Current, nil))
		return
	}
	c.stage++
	stage := c.stage
	c.tick = 0
	m := &VersionsRequest{Header: s.head(), Address: simAddr(c.key), Below: ^uint64(0)}
	simSend(s, from, "versions", func(a *Acceptor) (*VersionsReply, error) {
		return a.Versions(context.Background(), m)
	}, func(r *VersionsReply, err error) {
		if c.done || c.stage != stage {
			return
		}
		if err != nil || r.Row == nil || r.Row.State.ID != st.ID {
			c.record("unknown", "")
			return
		}
		if c.kind == "get" {
			c.record("ok", stackString(st.Current, r.Versions))
			return
		}
		row := Row{Ballot: at, Decided: true, State: *st}
		for i := range s.drives {
			if s.rng.IntN(3) > 0 {
				continue
			}
			in := &InstallRequest{Header: s.head(), Address: simAddr(c.key), Row: row, Whole: true, Full: r.Versions}
			simSend(s, i, fmt.Sprintf("install %v", at), func(a *Acceptor) (struct{}, error) {
				err := a.Install(context.Background(), simCarry(s, in))
				if err == nil && s.rowAt(i, c.key) == at {
					s.held(i, c.key, at)
				}
				return struct{}{}, err
			}, nil)
		}
		c.record("drop", "")
	})
}

func (s *sim) rowAt(i, key int) Ballot {
	a := simAddr(key)
	row, err := s.drives[i].acc.row(headKey(&a))
	if err != nil || row == nil {
		return Ballot{}
	}
	return row.Ballot
}

// startScan lists, one page after the other.
func (c *proc) startScan() {
	s := c.s
	c.stage++
	c.tick = 0
	c.scans = nil
	c.call = s.clock
	s.clock++
	stage, after := c.stage, c.after
	m := &ScanRequest{Kind: KindObject, Bucket: simBucket, After: after, Limit: 1 + s.rng.IntN(3)}
	need := s.cfg.q.R
	for _, i := range s.rng.Perm(len(s.drives)) {
		simSend(s, i, "scan", func(a *Acceptor) (*ScanReply, error) {
			return a.Scan(context.Background(), m)
		}, func(r *ScanReply, err error) {
			if c.done || c.stage != stage || err != nil ||
				slices.ContainsFunc(c.scans, func(x scanSource) bool { return x.drive == uint16(i) }) {
				return
			}
			c.scans = append(c.scans, scanSource{uint16(i), simCarry(s, r)})
			if len(c.scans) < need {
				return
			}
			c.merge()
		})
	}
}

func (c *proc) merge() {
	s := c.s
	list, last, complete := mergeScan(c.scans, func([]byte, uint16) bool { return true })
	s.clock++
	for key := range simKeys {
		a := simAddr(key)
		if string(a.Key) <= string(c.after) || !complete && string(a.Key) > string(last.Address.Key) {
			continue
		}
		i := slices.IndexFunc(list, func(x candidate) bool { return sameAddress(&x.addr, &a) })
		switch {
		case i < 0:
			s.observe(key, in{"peek", 0}, out{"ok", ""}, c.call, s.clock)
		case list[i].chosen || s.mut.noResolve:
			s.observe(key, in{"peek", 0}, out{"ok", peekString(&list[i].row.State)}, c.call, s.clock)
		default: // resolved by a read of its own
			s.newProc(simOp{kind: "peek", op: c.op, key: key}).startRead()
		}
	}
	if complete {
		c.record("drop", "")
		return
	}
	c.after = last.Address.Key
	c.startScan()
}

// timeout says that c waits no longer.
func (c *proc) timeout() {
	if c.file && c.attempt == 0 && c.p != nil {
		c.record("drop", "") // streaming failed
		return
	}
	if c.p != nil && c.p.phase != phaseDone && c.finish != nil {
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
		return
	}
	switch c.kind {
	case "list", "drop", "repair", "get", "peek":
		c.record("unknown", "")
	}
}

// kill is the crash of a gateway.
func (c *proc) kill() {
	if c.p != nil && c.p.sent {
		c.record("unknown", "")
	} else {
		c.record("drop", "")
	}
}

// run plays one schedule.
func (s *sim) run() {
	rng := s.rng
	planned := 6 + rng.IntN(12)
	lost, doubled, crash := rng.Float64()*0.15, rng.Float64()*0.1, rng.Float64()*0.02
	started := 0
	for step := 0; step < 6000 && s.err == ""; step++ {
		s.now++
		x := rng.Float64()
		active := 0
		for _, c := range s.procs {
			if !c.done {
				active++
			}
		}
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
		case x < 0.05+2*crash+0.003 && len(s.procs) > 0:
			if c := s.procs[rng.IntN(len(s.procs))]; !c.done {
				s.tr("gateway of op%d crashes", c.op)
				c.kill()
			}
			continue
		}
		if len(s.msgs) == 0 || x > 0.97 {
			idle := true
			for _, c := range s.procs { // those that a timeout starts are asked the next time
				if c.done {
					continue
				}
				idle = false
				if c.tick++; c.tick > 20+rng.IntN(40) {
					c.tick = 0
					c.timeout()
				}
			}
			if idle && started >= planned && len(s.msgs) == 0 {
				break
			}
			if len(s.msgs) == 0 {
				if rng.IntN(10) == 0 {
					for i, d := range s.drives {
						if d.acc == nil {
							s.boot(i)
						}
					}
				}
				continue
			}
		}
		i := rng.IntN(len(s.msgs))
		m := s.msgs[i]
		if rng.Float64() >= doubled {
			s.msgs[i] = s.msgs[len(s.msgs)-1]
			s.msgs = s.msgs[:len(s.msgs)-1]
		}
		if rng.Float64() < lost {
			continue
		}
		if m.drive < 0 {
			m.g()
			continue
		}
		d := s.drives[m.drive]
		if d.acc == nil {
			continue
		}
		s.tr("  drive%d <- %s", m.drive, m.what)
		if g := m.f(d.acc); g != nil {
			s.msgs = append(s.msgs, simMsg{drive: -1, g: g})
		}
	}
	for _, c := range s.procs {
		if !c.done {
			c.kill()
		}
	}
}

func (s *sim) crash(i int) {
	s.tr("drive%d crashes", i)
	d := s.drives[i]
	d.acc = nil
	d.kv.crash(s.rng.IntN(len(d.kv.log) + 1))
}

func (s *sim) startAny() {
	rng := s.rng
	key := rng.IntN(simKeys)
	kinds := []string{"put", "put", "inm", "del", "del", "get", "get", "get", "gc", "drop", "repair", "list"}
	if s.versioned[key] {
		kinds = []string{"push", "push", "push", "inm", "delv", "delv", "get", "get", "get", "gc", "drop", "repair", "list"}
	}
	kind := kinds[rng.IntN(len(kinds))]
	v := 0
	if kind == "gc" || kind == "delv" {
		if s.ops == 0 {
			return
		}
		v = 1 + rng.IntN(s.ops)
		if kind == "delv" && s.seqOf[v] == 0 {
			kind, v = "push", 0
		} else {
			key = s.keyOf[v]
			if kind == "delv" && !s.versioned[key] {
				return
			}
		}
	}
	s.start(kind, key, v)
}

// heal brings all drives up and every key to one state, over perfect calls.
func (s *sim) heal() {
	s.msgs = nil
	for i, d := range s.drives {
		if d.acc == nil {
			s.boot(i)
		}
	}
	for key := 0; key < simKeys && s.err == ""; key++ {
		s.healKey(key)
	}
	for i := range s.drives {
		if s.err == "" {
			s.clean(i)
		}
	}
}

func (s *sim) healKey(key int) {
	ctx := context.Background()
	a := simAddr(key)
	c := &proc{s: s, simOp: simOp{kind: "heal", key: key}}
	p := s.newProposer(nil)
	c.p = p
	for try := 0; p.phase != phaseDone; try++ {
		if try > 20 {
			s.err = "healing does not come to an end"
			return
		}
		s.now += 10
		s.uniq++
		p.begin(Ballot{max(s.now, p.seen.Counter+1), s.uniq})
		st := stepWait
		for i, d := range s.drives {
			r, err := d.acc.Prepare(ctx, &PrepareRequest{Header: s.head(), Address: a, Ballot: p.ballot})
			if n := p.promise(i, r, err); n != stepWait {
				st = n
			}
		}
		if st != stepAccept {
			continue
		}
		s.proposed(key, p)
		lagging := make([]bool, len(s.drives))
		for i, d := range s.drives {
			r, err := d.acc.Accept(ctx, &AcceptRequest{Header: s.head(), Address: a, Ballot: p.ballot, State: *p.state})
			if err == nil && r.Accepted {
				s.held(i, key, p.ballot)
			}
			lagging[i] = err == nil && r.Behind
			p.accepted(i, r, err)
		}
		for i, behind := range lagging {
			if !behind {
				continue
			}
			from := slices.Index(p.acks, true)
			if from < 0 {
				continue
			}
			full, err := s.drives[from].acc.Versions(ctx, &VersionsRequest{Header: s.head(), Address: a, Below: ^uint64(0)})
			if err != nil {
				s.err = "heal: " + err.Error()
				return
			}
			r, err := s.drives[i].acc.Accept(ctx, &AcceptRequest{Header: s.head(), Address: a, Ballot: p.ballot, State: *p.state, Whole: true, Full: full.Versions})
			if err != nil || !r.Accepted {
				s.err = fmt.Sprintf("heal: drive %d does not take the whole state: %v", i, err)
				return
			}
			s.held(i, key, p.ballot)
			p.accepted(i, r, nil)
		}
	}
	if p.err != nil {
		s.err = "heal: " + p.err.Error()
		return
	}
	want := ""
	for _, v := range s.stacks[key][p.state.ID] {
		want += v.ETag
	}
	for i, d := range s.drives {
		if err := d.acc.Decide(ctx, []Decision{{Header: s.head(), Address: a, Ballot: p.ballot, Settled: true}}); err != nil {
			s.err = "heal: " + err.Error()
		}
		if err := d.acc.ClearUnsettled(UnsettledRow{Address: a, State: p.state.ID}); err != nil {
			s.err = "heal: " + err.Error()
		}
		row, err := d.acc.row(headKey(&a))
		if err != nil || row == nil || row.State.ID != p.state.ID || !row.Decided || row.Undo != nil {
			s.err = fmt.Sprintf("key %d: drive %d did not converge: %+v, %v", key, i, row, err)
			return
		}
		rows, _, err := d.acc.versions(&a, ^uint64(0), 1000)
		if got := stackString(row.State.Current, rows); err != nil || got != want || row.State.Current == nil && len(rows) > 0 {
			s.err = fmt.Sprintf("key %d: drive %d holds versions %x, want %x (%v)", key, i, got, want, err)
			return
		}
		if u, err := d.acc.Unsettled(nil, 0); err != nil || slices.ContainsFunc(u, func(u UnsettledRow) bool { return sameAddress(&u.Address, &a) }) {
			s.err = fmt.Sprintf("key %d: drive %d is not settled (%v)", key, i, err)
			return
		}
	}
	s.clock++
	s.observe(key, in{"get", 0}, out{"ok", want}, s.clock, s.clock+1)
	s.clock++
}

var simModel = porcupine.Model{
	Init: func() any { return "" },
	Step: func(st, i, o any) (bool, any) {
		stack, a, r := st.(string), i.(in), o.(out)
		v := string([]byte{byte(a.v)})
		switch a.kind {
		case "get":
			return r.val == stack, stack
		case "peek":
			if stack == "" {
				return r.val == "", stack
			}
			return r.val == fmt.Sprintf("%s+%d", stack[:1], len(stack)-1), stack
		case "put":
			return true, v
		case "push":
			return true, v + stack
		case "del":
			return true, ""
		case "delv":
			has := strings.Contains(stack, v)
			return r.res == "unknown" || has == (r.res == "ok"), strings.ReplaceAll(stack, v, "")
		case "inm":
			switch {
			case r.res == "412":
				return stack != "", stack
			case r.res == "ok" || stack == "":
				return stack == "", v
			}
			return true, stack // unknown, and refused
		}
		return false, stack
	},
	DescribeOperation: func(i, o any) string { return fmt.Sprint(i, o) },
}

// simulate plays the schedule of seed and returns what is wrong.
func simulate(seed uint64, cfg simConfig, mut mutations, trace bool) (problem string, commits, ops int) {
	rng := rand.New(rand.NewPCG(seed, 7))
	s := &sim{cfg: cfg, mut: mut, rng: rng, now: 1000, seqOf: map[int]uint64{}, keyOf: map[int]int{}, trace: trace,
		viaCodec: rng.IntN(16) == 0, promises: 64}
	if rng.IntN(4) == 0 {
		s.promises = 4 // eviction
	}
	for key := range simKeys {
		s.versioned[key] = rng.IntN(2) == 0
		s.accepts[key] = map[Ballot]uint32{}
		s.stacks[key] = map[Ballot][]*Version{}
		s.stateAt[key] = map[Ballot]*State{}
	}
	for i := range cfg.q.N {
		s.drives = append(s.drives, &simDrive{kv: &memKV{}, shards: newMemShards()})
		s.boot(i)
	}
	s.run()
	if s.err == "" {
		s.heal()
	}
	for key := range simKeys {
		ops += len(s.hist[key])
		if s.err != "" {
			break
		}
		switch porcupine.CheckOperationsTimeout(simModel, s.hist[key], 20*time.Second) {
		case porcupine.Illegal:
			s.err = fmt.Sprintf("key %d is not linearizable", key)
			if trace {
				for _, o := range s.hist[key] {
					fmt.Printf("   [%d,%d] %v -> %q\n", o.Call, o.Return, o.Input, o.Output)
				}
			}
		case porcupine.Unknown:
			s.err = "the checker ran out of time"
		}
	}
	return s.err, s.commits, ops
}

// simMany plays schedules on all processors until stop says so, and returns the first that is wrong.
func simMany(seeds int, cfg simConfig, mut mutations, stopAtFirst bool) (bad int64, first int64, problem string, commits, ops int64) {
	var next, wrong, c, o atomic.Int64
	first = -1
	var mu sync.Mutex // guards first and problem
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(seeds) || stopAtFirst && wrong.Load() > 0 {
					return
				}
				p, commits, ops := simulate(uint64(i), cfg, mut, false)
				c.Add(int64(commits))
				o.Add(int64(ops))
				if p != "" {
					wrong.Add(1)
					mu.Lock()
					if first < 0 || i < first {
						first, problem = i, p
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return wrong.Load(), first, problem, c.Load(), o.Load()
}

func TestSim(t *testing.T) {
	seeds := *simSeeds
	if seeds == 0 {
		seeds = 2000
		if testing.Short() {
			seeds = 100
		}
	}
	for _, cfg := range simConfigs {
		if *simN != 0 && *simN != cfg.q.N {
			continue
		}
		t.Run(fmt.Sprint("n=", cfg.q.N), func(t *testing.T) {
			if *simSeed >= 0 {
				if p, _, _ := simulate(uint64(*simSeed), cfg, mutations{}, *simTrace); p != "" {
					t.Errorf("seed %d: %s", *simSeed, p)
				}
				return
			}
			start := time.Now()
			bad, first, problem, commits, ops := simMany(seeds, cfg, mutations{}, true)
			if bad > 0 {
				t.Errorf("n=%d -seed %d: %s", cfg.q.N, first, problem)
			}
			if commits == 0 || ops < int64(seeds) {
				t.Errorf("%d commits and %d operations in %d schedules: nothing was tested", commits, ops, seeds)
			}
			t.Logf("%d schedules, %d operations, %d commits, %v", seeds, ops, commits, time.Since(start).Round(time.Millisecond))
		})
	}
}
