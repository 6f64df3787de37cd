package metadata

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// Update changes one register. The View's state is the one written; when the operation was found
// finished by somebody else (same ID), the newest one. Errors of Apply and Pin are returned as they
// are; the others are of kind Unavailable (nothing happened), Unknown (it may have happened, or
// happen), Full, Stale (refresh the layout or the bucket, and see SentBallot), Busy, Canceled, Timeout.
func (c *Client) Update(ctx context.Context, g placement.Group, a Address, op Operation) (*View, error) {
	if err := a.Check(); err != nil {
		return nil, err
	}
	if op.ID == 0 || op.Apply == nil {
		return nil, errs.E("metadata.Update", errs.Invalid, "an operation needs an id and a change")
	}
	if err := c.enter("metadata.Update"); err != nil {
		return nil, err
	}
	defer c.work.Done()
	unlock, err := c.keys.lock(ctx, string(headKey(&a)))
	if err != nil {
		return nil, err
	}
	defer unlock()
	p := newProposer(g.Quorum, a.Kind, &op, mutations{})
	c.propose(ctx, &g, &a, p, op.BucketEpoch)
	return c.result(p)
}

func (c *Client) result(p *proposer) (*View, error) {
	if p.err != nil {
		return nil, p.err
	}
	return &p.view, nil
}

// Orphan runs the round that protects the deletion of data that no record seems to name. free says
// that nobody refers to id, and then its shards may be deleted through MayDelete with guard.
func (c *Client) Orphan(ctx context.Context, g placement.Group, a Address, id erasure.DataID, bucketEpoch uint64) (guard Ballot, free bool, err error) {
	if err := a.Check(); err != nil {
		return Ballot{}, false, err
	}
	if err := c.enter("metadata.Orphan"); err != nil {
		return Ballot{}, false, err
	}
	defer c.work.Done()
	unlock, err := c.keys.lock(ctx, string(headKey(&a)))
	if err != nil {
		return Ballot{}, false, err
	}
	defer unlock()
	p := newProposer(g.Quorum, a.Kind, nil, mutations{})
	p.orphan = id
	c.propose(ctx, &g, &a, p, bucketEpoch)
	if p.err != nil || p.referenced {
		return Ballot{}, false, p.err
	}
	return p.ballot, true, nil
}

// propose runs p to its end. The caller holds the key's lock.
func (c *Client) propose(ctx context.Context, g *placement.Group, a *Address, p *proposer, bucketEpoch uint64) {
	if len(g.Drives) != g.Quorum.N || g.Quorum.W > g.Quorum.N {
		p.surrender(errs.E("metadata.Update", errs.Internal, "the group does not fit its quorum"))
		return
	}
	for try := 0; ; try++ {
		if try >= c.Attempts {
			p.surrender(errs.E("metadata.Update", errs.Busy, "too many writers compete for this key"))
			return
		}
		if try > 0 && !c.pause(ctx, try) {
			p.surrender(ctx.Err())
			return
		}
		p.begin(c.ballot(p.seen))
		r := &round{c: c, g: g, a: a, p: p, bucketEpoch: bucketEpoch, events: make(chan event, 3*g.Quorum.N)}
		r.run(ctx)
		if p.phase == phaseDone {
			return
		}
	}
}

// pause waits a random time that doubles with the tries, up to about a second.
func (c *Client) pause(ctx context.Context, try int) bool {
	limit := time.Millisecond << min(try, 9)
	t := time.NewTimer(time.Duration(c.Rand() % uint64(limit)))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// round is one ballot of one operation.
type round struct {
	c           *Client
	g           *placement.Group
	a           *Address
	p           *proposer
	bucketEpoch uint64

	events  chan event // has room for all that the calls of the round send
	waiting int        // events still to come
	calls   context.Context
	tried   []bool // positions that were sent the whole state
}

// event is what a call to the drive at pos brought.
type event struct {
	pos     int
	prepare *PrepareReply
	accept  *AcceptReply
	err     error
	phase   phase
}

func (r *round) run(ctx context.Context) {
	p := r.p
	// The calls outlive the caller's wish to know: stragglers are waited for in the background.
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.calls = calls
	timer := time.NewTimer(r.timeout(phasePrepare))
	defer timer.Stop()
	r.each(ctx, phasePrepare)
	next := stepWait
	for next != stepDone && next != stepRetry {
		select {
		case e := <-r.events:
			next = r.take(e)
		case <-timer.C:
			next = p.expire()
			if next == stepWait {
				next = stepRetry
				p.surrender(errs.E("metadata.Update", errs.Unavailable, "too few drives answered in time"))
			}
		case <-ctx.Done():
			p.surrender(ctx.Err())
			next = stepDone
		}
		if next == stepPin {
			next = p.pinned(p.op.Pin(ctx, p.ballot))
		}
		if next == stepAccept {
			timer.Reset(r.timeout(phaseAccept))
			r.each(ctx, phaseAccept)
			next = stepWait
		}
		if next == stepCatchUp {
			next = r.catchUp(ctx)
		}
	}
	if !p.chosen {
		cancel()
		return
	}
	r.settle(cancel)
}

func (r *round) timeout(ph phase) time.Duration {
	if ph == phasePrepare && r.p.op != nil {
		for _, s := range r.p.op.Seals {
			if s != nil && s.Inline == nil {
				return r.c.SealTimeout
			}
		}
	}
	return r.c.CallTimeout
}

// take reports an event to the proposer.
func (r *round) take(e event) step {
	r.waiting--
	if e.phase == phasePrepare {
		return r.p.promise(e.pos, e.prepare, e.err)
	}
	return r.p.accepted(e.pos, e.accept, e.err)
}

// each calls every drive of the group.
func (r *round) each(ctx context.Context, ph phase) {
	for pos := range r.g.Drives {
		h := r.c.header(ctx, r.g, pos, r.bucketEpoch)
		if ph == phasePrepare {
			m := &PrepareRequest{Header: h, Address: *r.a, Ballot: r.p.ballot, Seal: r.p.seal(pos), Query: r.p.query, Orphan: r.p.orphan}
			r.call(pos, ph, func(ctx context.Context, rep Replica) (e event) {
				e.prepare, e.err = rep.Prepare(ctx, m)
				return e
			})
			continue
		}
		m := &AcceptRequest{Header: h, Address: *r.a, Ballot: r.p.ballot, State: *r.p.state}
		r.sendAccept(pos, m)
	}
}

func (r *round) sendAccept(pos int, m *AcceptRequest) {
	r.call(pos, phaseAccept, func(ctx context.Context, rep Replica) (e event) {
		e.accept, e.err = rep.Accept(ctx, m)
		return e
	})
}

func (r *round) call(pos int, ph phase, f func(context.Context, Replica) event) {
	r.waiting++
	rep, ok := r.c.Replicas.Replica(r.g.Drives[pos])
	if !ok {
		r.events <- event{pos: pos, phase: ph, err: errGone}
		return
	}
	r.c.work.Go(func() {
		e := f(r.calls, rep)
		e.pos, e.phase = pos, ph
		r.events <- e
	})
}

// catchUp sends the state with all its version rows to the drives that are behind.
func (r *round) catchUp(ctx context.Context) step {
	p := r.p
	if r.tried == nil {
		r.tried = make([]bool, len(p.acks))
	}
	var full []Version
	loaded := false
	next := stepWait
	for pos, behind := range p.behind {
		if !behind || r.tried[pos] {
			continue
		}
		r.tried[pos] = true
		if !loaded {
			loaded = true
			var err error
			if full, err = r.c.fullState(ctx, r.g, r.a, p.state.ID, p.acks); err != nil {
				r.c.Logger.Debug("no drive could bring the others up to the state", "err", err)
				full, loaded = nil, false
				next = p.uncaught(pos)
				continue
			}
		}
		r.sendAccept(pos, &AcceptRequest{Header: r.c.header(ctx, r.g, pos, r.bucketEpoch), Address: *r.a,
			Ballot: p.ballot, State: *p.state, Whole: true, Full: full})
	}
	return next
}

// fullState reads all version rows of the state id from one of the drives that have it.
func (c *Client) fullState(ctx context.Context, g *placement.Group, a *Address, id Ballot, has []bool) (full []Version, err error) {
	err = errs.E("metadata.fullState", errs.Unavailable, "no drive has the version rows")
	for pos, ok := range has {
		if !ok {
			continue
		}
		if full, err = c.allVersions(ctx, g, a, id, pos); err == nil {
			return full, nil
		}
	}
	return nil, err
}

func (c *Client) allVersions(ctx context.Context, g *placement.Group, a *Address, id Ballot, pos int) (full []Version, err error) {
	rep, ok := c.Replicas.Replica(g.Drives[pos])
	if !ok {
		return nil, errGone
	}
	ctx, cancel := context.WithTimeout(ctx, c.CallTimeout)
	defer cancel()
	m := &VersionsRequest{Header: c.header(ctx, g, pos, 0), Address: *a, Below: ^uint64(0), Limit: maxPage}
	for {
		r, err := rep.Versions(ctx, m)
		if err != nil {
			return nil, err
		}
		if r.Row == nil || r.Row.State.ID != id {
			return nil, errs.E("metadata.allVersions", errs.Stale, "the state has changed meanwhile")
		}
		full = append(full, r.Versions...)
		if !r.More || len(r.Versions) == 0 {
			return full, nil
		}
		next := *m
		next.Below = r.Versions[len(r.Versions)-1].Seq
		m = &next
	}
}

// settle tells the drives that the state is chosen, and, when all were heard or given up, who
// lacks it. The waiting is done in the background, for a bounded number of operations.
func (r *round) settle(cancel context.CancelFunc) {
	p := r.p
	queued := make([]*pending, len(p.acks))
	announce := func() {
		for pos, ok := range p.acks {
			if ok && queued[pos] == nil {
				h := Header{Drive: r.g.Drives[pos], Partition: r.g.Partition, Epoch: r.g.Epoch, BucketEpoch: r.bucketEpoch}
				queued[pos] = r.c.decider(h.Drive).add(Decision{Header: h, Address: *r.a, Ballot: p.ballot})
			}
		}
	}
	finish := func() {
		cancel()
		announce()
		missing := p.missing()
		for pos, q := range queued {
			if q != nil {
				r.c.decider(r.g.Drives[pos]).settle(q, missing, p.settles())
			}
		}
	}
	announce()
	for r.waiting > 0 && len(r.events) > 0 {
		r.take(<-r.events)
	}
	if r.waiting == 0 {
		finish()
		return
	}
	select {
	case r.c.slots <- struct{}{}:
	default:
		finish()
		return
	}
	r.c.work.Go(func() {
		defer func() { <-r.c.slots }()
		timer := time.NewTimer(r.c.SettleAfter)
		defer timer.Stop()
		for late := false; r.waiting > 0 && !late; {
			select {
			case e := <-r.events:
				r.take(e)
			case <-timer.C:
				late = true
			}
		}
		finish()
	})
}
