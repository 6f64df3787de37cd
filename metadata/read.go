package metadata

import (
	"context"
	"slices"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// Read returns the chosen state of one register, resolving it first if need be. Errors are of kind
// Unavailable, Stale, Canceled, Timeout.
func (c *Client) Read(ctx context.Context, g placement.Group, a Address, o ReadOptions) (*View, error) {
	if err := a.Check(); err != nil {
		return nil, err
	}
	if len(g.Drives) != g.Quorum.N || g.Quorum.N == 0 {
		return nil, errs.E("metadata.Read", errs.Internal, "the group does not fit its quorum")
	}
	if err := c.enter("metadata.Read"); err != nil {
		return nil, err
	}
	defer c.work.Done()
	r := c.newReading(ctx, &g, &a, &o)
	defer r.cancel()
	if err := r.collect(ctx); err != nil {
		return nil, err
	}
	if r.top.chosen {
		return r.view(ctx)
	}
	// A writer of this process may be at it: then its turn ends first.
	unlock, err := c.keys.lock(ctx, string(headKey(&a)))
	if err != nil {
		return nil, err
	}
	defer unlock()
	again := c.newReading(ctx, &g, &a, &o)
	defer again.cancel()
	again.all = true
	if err := again.collect(ctx); err != nil {
		return nil, err
	}
	if again.top.chosen {
		return again.view(ctx)
	}
	return c.resolve(ctx, &g, &a, &o, again.top.highest)
}

// resolve makes the newest state chosen and returns it. The caller holds the key's lock.
func (c *Client) resolve(ctx context.Context, g *placement.Group, a *Address, o *ReadOptions, seen Ballot) (*View, error) {
	p := newProposer(g.Quorum, a.Kind, nil, mutations{})
	p.seen = seen
	p.query = o.Query
	c.propose(ctx, g, a, p, o.BucketEpoch)
	v, err := c.result(p)
	if err != nil {
		if errs.Is(err, errs.Unknown) {
			err = errs.As("metadata.Read", errs.Unavailable, err)
		}
		return nil, err
	}
	if o.Inline {
		r := c.newReading(ctx, g, a, o)
		defer r.cancel()
		r.top = topRow{row: &Row{Ballot: v.Ballot, State: *v.State}, chosen: true}
		r.versions = v.Versions
		return r.view(ctx)
	}
	return v, nil
}

// reading is one quorum read.
type reading struct {
	c *Client
	g *placement.Group
	a *Address
	o *ReadOptions

	calls   context.Context
	cancel  context.CancelFunc
	order   []int // positions, in the order in which they are asked
	next    int   // index in order
	all     bool  // ask everybody at once, and wait for everybody a while
	waiting int
	events  chan readEvent // has room for all
	replies []*ReadReply   // by position
	errs    []error

	top      topRow
	versions []Version
	inlineID erasure.DataID
}

type readEvent struct {
	pos   int
	reply *ReadReply
	err   error
}

func (c *Client) newReading(ctx context.Context, g *placement.Group, a *Address, o *ReadOptions) *reading {
	n := g.Quorum.N
	r := &reading{c: c, g: g, a: a, o: o, events: make(chan readEvent, 2*n), replies: make([]*ReadReply, n), errs: make([]error, n)}
	r.calls, r.cancel = context.WithCancel(ctx)
	first := 0
	if !o.Inline {
		first = int(c.Rand() % uint64(n)) // spreads the load; data shards come first otherwise
	}
	r.order = make([]int, n)
	for i := range r.order {
		r.order[i] = (first + i) % n
	}
	return r
}

// ask sends the read to up to count drives more.
func (r *reading) ask(count int) {
	for ; count > 0 && r.next < len(r.order); r.next++ {
		pos := r.order[r.next]
		m := &ReadRequest{Header: r.c.header(r.calls, r.g, pos, r.o.BucketEpoch), Address: *r.a, Query: r.o.Query, Inline: r.o.Inline}
		if r.call(pos, m) {
			count--
		}
	}
}

// call returns false when the drive is gone.
func (r *reading) call(pos int, m *ReadRequest) bool {
	rep, ok := r.c.Replicas.Replica(r.g.Drives[pos])
	calls, events := r.calls, r.events // more replaces them while a late call still runs
	if !ok {
		r.errs[pos] = errGone
		return false
	}
	r.c.work.Go(func() {
		e := readEvent{pos: pos}
		e.reply, e.err = rep.Read(calls, m)
		events <- e
	})
	r.waiting++
	return true
}

// collect reads until the row is known to be chosen, or all who answer were asked.
func (r *reading) collect(ctx context.Context) error {
	q := r.g.Quorum
	first := min(max(q.R, r.o.Ask), q.N)
	if r.all {
		first = q.N
	}
	r.ask(first)
	hedge := time.NewTimer(r.c.HedgeAfter)
	defer hedge.Stop()
	end := time.NewTimer(r.c.CallTimeout)
	defer end.Stop()
	late := 0 // ticks of the hedge since everybody was asked
	for {
		top, enough := judgeRead(q, r.replies)
		switch {
		case enough && top.chosen && !r.all:
			r.take(top)
			return nil
		case enough && (r.waiting == 0 && r.next >= len(r.order) || late > 1):
			r.take(top)
			return nil
		case enough && !top.chosen && r.next < len(r.order):
			r.ask(q.N)
			continue
		case r.waiting == 0 && r.next >= len(r.order):
			return r.failed()
		}
		select {
		case e := <-r.events:
			r.waiting--
			r.replies[e.pos], r.errs[e.pos] = e.reply, e.err
			if e.err != nil {
				r.ask(1)
			}
		case <-hedge.C:
			if r.next >= len(r.order) {
				late++
			}
			r.ask(1)
			hedge.Reset(r.c.HedgeAfter)
		case <-end.C:
			return r.failed()
		case <-ctx.Done():
			return errs.Wrap("metadata.Read", ctx.Err())
		}
	}
}

func (r *reading) failed() error {
	const op = "metadata.Read"
	if slices.ContainsFunc(r.errs, func(err error) bool { return errs.Is(err, errs.Stale) }) {
		return errs.E(op, errs.Stale, "the drives serve a newer layout")
	}
	return errs.E(op, errs.Unavailable, "too few drives answered")
}

// take keeps the outcome and what came with it.
func (r *reading) take(top topRow) {
	r.top = top
	for _, pos := range top.who {
		r.versions = r.replies[pos].Versions
		if r.replies[pos].Row.Ballot == top.row.Ballot {
			break
		}
	}
}

// view makes the answer, and asks for more inline shards if there are too few.
func (r *reading) view(ctx context.Context) (*View, error) {
	v := &View{}
	if r.top.row == nil {
		return v, nil
	}
	v.State, v.Ballot, v.Versions = &r.top.row.State, r.top.row.Ballot, r.versions
	if !r.o.Inline {
		return v, nil
	}
	probe := ReadReply{Row: r.top.row, Versions: r.versions}
	r.inlineID = inlineData(&probe, &r.o.Query)
	if r.inlineID == (erasure.DataID{}) {
		return v, nil
	}
	v.Inline = make([][]byte, r.g.Quorum.N)
	for pos, reply := range r.replies {
		if reply != nil && reply.InlineID == r.inlineID {
			v.Inline[pos] = reply.Inline
		}
	}
	k := 1
	if s := subject(r.top.row, r.versions, &r.o.Query); s != nil {
		if s.Data != nil && s.Data.ID == r.inlineID {
			k = int(s.Data.Profile.Data)
		} else if s.Manifest != nil {
			k = int(s.Manifest.Profile.Data)
		}
	}
	return v, r.more(ctx, v, k)
}

// more asks for inline shards by id until k are here, or everybody was asked.
func (r *reading) more(ctx context.Context, v *View, k int) error {
	have := func() (n int) {
		for _, s := range v.Inline {
			if s != nil {
				n++
			}
		}
		return n
	}
	if have() >= k {
		return nil
	}
	for r.waiting > 0 && len(r.events) > 0 { // what came meanwhile
		e := <-r.events
		r.waiting--
		r.replies[e.pos] = e.reply
		if e.err == nil && e.reply.InlineID == r.inlineID {
			v.Inline[e.pos] = e.reply.Inline
		}
	}
	r.cancel() // the calls that are left; their answers are not waited for
	calls, cancel := context.WithTimeout(ctx, r.c.CallTimeout)
	defer cancel()
	r.calls, r.events, r.waiting = calls, make(chan readEvent, r.g.Quorum.N), 0
	for pos := range v.Inline {
		asked := r.replies[pos] != nil && r.replies[pos].InlineID == r.inlineID
		if v.Inline[pos] == nil && !asked {
			r.call(pos, &ReadRequest{Header: r.c.header(calls, r.g, pos, r.o.BucketEpoch), Address: *r.a, InlineID: r.inlineID})
		}
	}
	for r.waiting > 0 && have() < k {
		select {
		case e := <-r.events:
			r.waiting--
			if e.err == nil && e.reply.InlineID == r.inlineID {
				v.Inline[e.pos] = e.reply.Inline
			}
		case <-calls.Done():
			return errs.Wrap("metadata.Read", ctx.Err()) // nil when only the calls were late
		}
	}
	return nil
}

// Resync brings the drives at positions (nil: all) up to the chosen state of a register, with its
// version rows, and settles it, whatever that state names: the caller answers for the shards. It is what repairs a
// Behind drive. The error is Unavailable when a drive wanted could not be brought up.
func (c *Client) Resync(ctx context.Context, g placement.Group, a Address, positions []int) error {
	return c.resync(ctx, g, a, positions, nil)
}

// ResyncVerified is Resync for who looked at the shards of one state: only that one is settled. A mark of a write that
// came meanwhile stays, as nobody else may know of a shard that it lacks. The zero ballot settles nothing.
func (c *Client) ResyncVerified(ctx context.Context, g placement.Group, a Address, positions []int, state Ballot) error {
	return c.resync(ctx, g, a, positions, &state)
}

func (c *Client) resync(ctx context.Context, g placement.Group, a Address, positions []int, verified *Ballot) error {
	const op = "metadata.Resync"
	if err := a.Check(); err != nil {
		return err
	}
	if err := c.enter(op); err != nil {
		return err
	}
	defer c.work.Done()
	unlock, err := c.keys.lock(ctx, string(headKey(&a)))
	if err != nil {
		return err
	}
	defer unlock()
	if positions == nil {
		for pos := range g.Drives {
			positions = append(positions, pos)
		}
	}
	force := false
	for range 3 {
		r := c.newReading(ctx, &g, &a, &ReadOptions{})
		r.all = true
		err := r.collect(ctx)
		r.cancel()
		if err != nil {
			return err
		}
		if !r.top.chosen || force {
			// The bucket's fence does not hold up a repair: nothing new is proposed.
			if _, err := c.resolve(ctx, &g, &a, &ReadOptions{BucketEpoch: ^uint64(0)}, r.top.highest); err != nil {
				return err
			}
			if !force {
				continue
			}
			force = false
			continue
		}
		if r.top.row == nil {
			return nil
		}
		settles := verified == nil || *verified == r.top.row.State.ID
		if force, err = c.bringUp(ctx, &g, &a, r, positions, settles); err != nil || !force {
			return errs.Wrap(op, err)
		}
	}
	return errs.E(op, errs.Unavailable, "the register changes too often to be brought up")
}

// bringUp installs what r found, and settles it if all have it then. floored: a drive wants the state under a newer ballot.
func (c *Client) bringUp(ctx context.Context, g *placement.Group, a *Address, r *reading, positions []int, settles bool) (floored bool, err error) {
	top := *r.top.row
	top.Decided, top.Undo = true, nil
	m := InstallRequest{Address: *a, Row: top}
	if top.State.Older > 0 {
		has := make([]bool, len(g.Drives))
		for _, pos := range r.top.who {
			has[pos] = true
		}
		if m.Full, err = c.fullState(ctx, g, a, top.State.ID, has); err != nil {
			return errs.Is(err, errs.Stale), nil
		}
		m.Whole = true
	}
	all := true
	at := make([]Ballot, len(g.Drives))
	for pos := range g.Drives {
		reply := r.replies[pos]
		if reply != nil && reply.Row != nil && reply.Row.Ballot == top.Ballot {
			at[pos] = top.Ballot
			continue
		}
		if !slices.Contains(positions, pos) {
			all = false
			continue
		}
		rep, ok := c.Replicas.Replica(g.Drives[pos])
		err := errGone
		if ok {
			in := m
			in.Header = c.header(ctx, g, pos, 0)
			call, cancel := context.WithTimeout(ctx, c.CallTimeout)
			err = rep.Install(call, &in)
			cancel()
		}
		switch {
		case err == nil:
			at[pos] = top.Ballot
		case errs.Is(err, errs.Conflict):
			floored = true
		default:
			all = false
			c.Logger.Debug("a drive was not brought up", "drive", g.Drives[pos], "err", err)
		}
	}
	if floored {
		return true, nil
	}
	for pos, b := range at {
		if !b.IsZero() {
			h := Header{Drive: g.Drives[pos], Partition: g.Partition, Epoch: g.Epoch}
			c.decider(h.Drive).add(Decision{Header: h, Address: *a, Ballot: b, Settled: all && settles})
		}
	}
	for _, pos := range positions {
		if at[pos].IsZero() {
			return false, errs.E("metadata.Resync", errs.Unavailable, "a drive could not be brought up")
		}
	}
	return false, nil
}

// Drop removes a tombstone if all n members hold it decided, or have dropped it before. dropped says
// whether they did. One that was cut short is finished by another. Whoever repairs calls it, once Resync has
// brought the tombstone to all n members.
func (c *Client) Drop(ctx context.Context, g placement.Group, a Address) (dropped bool, err error) {
	const op = "metadata.Drop"
	if err := a.Check(); err != nil {
		return false, err
	}
	if err := c.enter(op); err != nil {
		return false, err
	}
	defer c.work.Done()
	r := c.newReading(ctx, &g, &a, &ReadOptions{})
	r.all = true
	err = r.collect(ctx)
	r.cancel()
	if err != nil {
		return false, err
	}
	ballot, ok := judgeTombstone(r.replies, len(r.replies))
	if !ok {
		return false, nil
	}
	for pos, drive := range g.Drives {
		rep, ok := c.Replicas.Replica(drive)
		if !ok {
			return false, errs.Wrap(op, errGone)
		}
		d, ok := rep.(Dropper)
		if !ok {
			return false, errs.E(op, errs.Unsupported, "the drive cannot drop tombstones")
		}
		call, cancel := context.WithTimeout(ctx, c.CallTimeout)
		err := d.Drop(call, &DropRequest{Header: c.header(ctx, &g, pos, 0), Address: a, Ballot: ballot})
		cancel()
		if err != nil {
			return false, errs.Wrap(op, err)
		}
	}
	return true, nil
}

// judgeTombstone reports whether need replies, of all that there are, hold the same decided
// tombstone. need is n: a member that was not heard might resurrect what the tombstone covers. A member
// whose floor has reached the tombstone and that has no row has dropped it already, or began with a later
// epoch: either way it takes nothing older.
func judgeTombstone(replies []*ReadReply, need int) (Ballot, bool) {
	var b Ballot
	held, n := 0, 0
	for _, r := range replies {
		if r == nil || r.Row == nil {
			continue
		}
		if !r.Row.Decided || !droppable(&r.Row.State) || held > 0 && r.Row.Ballot != b {
			return Ballot{}, false
		}
		b = r.Row.Ballot
		held++
	}
	for _, r := range replies {
		if r != nil && (r.Row != nil || !r.Floor.Less(b)) {
			n++
		}
	}
	return b, held > 0 && n >= need
}
