package metadata

import (
	"context"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// What must hold.

// proposed keeps what each state should look like.
func (s *sim) proposed(reg *register, p *proposer) {
	st := p.state
	reg.states[p.ballot] = st
	if _, ok := reg.stacks[st.ID]; ok {
		return
	}
	var stack []*Version
	if st.Current != nil {
		stack = append(stack, st.Current)
	}
	if st.Older > 0 || len(st.Delta.Put) > 0 || len(st.Delta.Drop) > 0 {
		rows := map[uint64]*Version{}
		if !st.Prev.IsZero() {
			for i, v := range reg.stacks[st.Prev] {
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
			s.fail("state %v says %d older versions, and has %d", st.ID, st.Older, len(rows))
		}
		seqs := slices.Sorted(maps.Keys(rows))
		slices.Reverse(seqs)
		for _, seq := range seqs {
			stack = append(stack, rows[seq])
		}
	}
	reg.stacks[st.ID] = stack
}

// holds notes that drive i accepted under b, in an epoch in which w members are enough.
func (s *sim) holds(i int, reg *register, b Ballot, w int) {
	mask := reg.accepts[b] | 1<<i
	reg.accepts[b] = mask
	if reg.chosen.Less(b) && bits.OnesCount32(mask) >= w {
		reg.chosen = b
		s.commits++
		s.check(reg)
	}
}

// chained looks, once W members accepted b, whether its state follows from what was chosen before.
func (s *sim) chained(reg *register, b Ballot, w int) {
	if !reg.chain.Less(b) || bits.OnesCount32(reg.accepts[b]) < w {
		return
	}
	old, st := reg.states[reg.chain], reg.states[b]
	reg.chain = b
	if old == nil || st == nil || droppable(old) || s.mut.lastWriteWins {
		return
	}
	for id := st.ID; id != old.ID; {
		at := reg.states[id]
		if at == nil {
			return // proposed before this register was looked at
		}
		if id = at.Prev; id.IsZero() {
			s.fail("%s: what was chosen at %v does not follow from what was at %v", reg.addr.Key, b, old.ID)
			return
		}
	}
}

func (s *sim) checkAll() {
	for _, reg := range s.regs {
		s.check(reg)
	}
}

// check looks whether all data that the chosen state of a register protects has k shards.
func (s *sim) check(reg *register) {
	if s.err != "" || s.mut.lastWriteWins || reg.chosen.IsZero() {
		return
	}
	st := reg.states[reg.chosen]
	if st == nil {
		return
	}
	switch reg.addr.Kind {
	case KindObject:
		for _, v := range reg.stacks[st.ID] {
			s.checkVersion(reg, v)
		}
	case KindPart:
		if st.Current != nil {
			s.checkVersion(reg, st.Current)
		}
		for i := range st.Dead {
			s.checkData(reg, &st.Dead[i].Data)
		}
	case KindUpload:
		if isCompleting(st) {
			s.checkVersion(reg, st.Current.Completed)
		}
	}
}

func (s *sim) checkVersion(reg *register, v *Version) {
	if v.Data != nil {
		s.checkData(reg, v.Data)
	}
	if v.Manifest != nil {
		s.checkData(reg, v.Manifest)
		for _, b := range s.manifest(v).parts {
			s.checkData(reg, &b.data)
		}
	}
}

func (s *sim) checkData(reg *register, d *Data) {
	for chunk := range d.Chunks() {
		n := 0
		part := s.chunkPart(reg, int(chunk))
		for _, pos := range s.layout[part].Places(d.Profile, d.Width, d.ID) {
			// Shards do not move here: one is where it was when its position had another drive.
			if slices.ContainsFunc(s.stood[part][pos], func(i uint16) bool { return s.drives[i].shards.sealed[simShard{d.ID, chunk}] }) {
				n++
			}
		}
		if n < int(d.Profile.Data) {
			s.fail("data loss: %q kind %d: data of op%d has %d shards of chunk %d where they belong, needs %d", reg.addr.Key, reg.addr.Kind,
				int(d.ID[0])|int(d.ID[1])<<8, n, chunk, d.Profile.Data)
			return
		}
	}
}

// heal brings all drives up and every register to one state, over perfect calls.
func (s *sim) heal() {
	s.msgs, s.slow = nil, nil
	s.recover()
	s.now += 10 * simDay // above every promise
	s.with.skew, s.with.away = false, false
	s.with.lag, s.with.sides, s.with.oneWay, s.with.movers = false, false, false, false
	s.reunite()
	s.gates = nil
	if s.settleSwaps(); s.err != "" {
		return
	}
	for _, reg := range s.regs {
		if s.err == "" {
			s.healRegister(reg)
		}
	}
	s.procs = nil
	for i := range s.drives {
		if s.err == "" {
			s.clean(i)
		}
	}
}

func (s *sim) healRegister(reg *register) {
	ctx := context.Background()
	c := s.newProc(opRepair, reg)
	c.epoch = ^uint64(0) // the bucket's fence does not hold up a repair
	a := reg.addr
	p := c.instant(reg, nil, true)
	if p.err != nil {
		s.fail("healing: %v", p.err)
		return
	}
	want := ""
	for _, v := range reg.stacks[p.state.ID] {
		want += v.ETag
	}
	for _, i := range c.group(reg.part).Drives {
		d := s.drives[i]
		if err := d.acc.Decide(ctx, []Decision{{Header: c.header(reg.part), Address: a, Ballot: p.ballot, Settled: true}}); err != nil {
			s.fail("healing: %v", err)
		}
		if err := d.acc.ClearUnsettled(UnsettledRow{Address: a, State: p.state.ID}); err != nil {
			s.fail("healing: %v", err)
		}
		row, err := d.acc.row(headKey(&a))
		if err != nil || row == nil || row.State.ID != p.state.ID || !row.Decided || row.Undo != nil {
			s.fail("%s: drive %d did not converge: %+v, %v", a.Key, i, row, err)
			return
		}
		rows, _, err := d.acc.versions(&a, ^uint64(0), 1000)
		if got := stackString(row.State.Current, rows); err != nil || got != want || row.State.Current == nil && len(rows) > 0 {
			s.fail("%s: drive %d holds versions %x, want %x (%v)", a.Key, i, got, want, err)
			return
		}
		if u, err := d.acc.Unsettled(nil, 0); err != nil || slices.ContainsFunc(u, func(u UnsettledRow) bool { return sameAddress(&u.Address, &a) }) {
			s.fail("%s: drive %d is not settled (%v)", a.Key, i, err)
			return
		}
	}
	if reg.addr.Kind == KindObject && !s.bucket.gone {
		s.clock++
		s.observe(reg, in{opGet, 0}, out{resOK, want}, s.clock, s.clock+1)
		s.clock++
	}
}

// completions adds what uploads did to the histories of their objects: one write each, whoever drove it.
func (s *sim) completions() {
	for _, u := range s.uploads {
		if u.aborted && u.ret != 0 {
			s.fail("upload %d was completed and aborted", u.op)
		}
		if u.aborted || !u.sent {
			continue // no reader may ever see it
		}
		kind, o, ret := opPut, out{resOK, ""}, u.ret
		if u.object.versioned {
			kind = opPush
		}
		if ret == 0 {
			o.res, ret = resUnknown, 1<<50+int64(u.op)
		}
		s.observe(u.object, in{kind, u.op}, o, u.call, ret)
	}
}

const sealedBucket = "\xff"

var simModel = porcupine.Model{Init: func() any { return "" }, Step: func(st, i, o any) (bool, any) {
	ok, next := simStep(st.(string), i.(in), o.(out))
	return ok, next
}, DescribeOperation: func(i, o any) string { return fmt.Sprint(i, o) }}

// simStep is one operation on one key. The state is the versions, newest first, a byte each.
func simStep(stack string, a in, r out) (bool, string) {
	v := string([]byte{byte(a.v)})
	if stack == sealedBucket {
		switch a.kind {
		case opGet, opPeek:
			return r.val == "", stack
		case opPut, opPush, opInm:
			return r.res != resOK, stack
		}
		return true, stack
	}
	switch a.kind {
	case opGet:
		return r.val == stack, stack
	case opPeek:
		if stack == "" {
			return r.val == "", stack
		}
		return r.val == peekOf(stack[:1], len(stack)-1), stack
	case opPut:
		return true, v
	case opPush:
		return true, v + stack
	case opDel:
		return true, ""
	case opDelv:
		has := strings.Contains(stack, v)
		return r.res == resUnknown || has == (r.res == resOK), strings.ReplaceAll(stack, v, "")
	case opInm:
		switch {
		case r.res == resExists:
			return stack != "", stack
		case r.res == resOK || stack == "":
			return stack == "", v
		}
		return true, stack // unknown, and refused
	case opSeal:
		return stack == "", sealedBucket
	}
	return false, stack
}

// linearizable checks the history of a key. One in which nothing overlaps has one order only.
func (s *sim) linearizable(reg *register) bool {
	slices.SortFunc(reg.hist, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	end, alone := int64(-1), true
	for i := range reg.hist {
		alone = alone && reg.hist[i].Call > end
		end = max(end, reg.hist[i].Return)
	}
	if alone {
		stack := ""
		for i := range reg.hist {
			ok, next := simStep(stack, reg.hist[i].Input.(in), reg.hist[i].Output.(out))
			if !ok {
				return false
			}
			stack = next
		}
		return true
	}
	s.checked++
	switch porcupine.CheckOperationsTimeout(simModel, reg.hist, 5*time.Minute) {
	case porcupine.Unknown:
		s.fail("the checker ran out of time")
	case porcupine.Illegal:
		return false
	}
	return true
}
