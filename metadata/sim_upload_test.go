package metadata

import (
	"context"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

// Multipart uploads, as package object makes them: the upload and each of its parts are registers of the
// object's partition. The upload goes open → completing, with the manifest fixed, → completed; or → aborted.

const simParts = 2

// upload is what the simulation knows of an upload from outside.
type upload struct {
	op     int // its number; also the value that a completion writes
	id     UploadID
	object *register
	reg    *register
	parts  [simParts]*register
	bodies [simParts][]*body // what was ever uploaded, in order of the requests

	sent    bool  // a completion may have been applied
	call    int64 // of the first completion
	ret     int64 // of the first that was acknowledged; 0: none
	aborted bool  // an abort was acknowledged
}

func (s *sim) newUpload(object *register) {
	s.ops++
	u := &upload{op: s.ops, id: UploadID{byte(s.ops), 0xaa}, object: object}
	s.uploads = append(s.uploads, u)
	a := object.addr
	a.Kind, a.Upload = KindUpload, u.id
	u.reg = s.register(a, object.part)
	u.reg.up, u.reg.key = u, object.key
	for i := range u.parts {
		a.Kind, a.Part = KindPart, uint32(i+1)
		u.parts[i] = s.register(a, object.part)
		u.parts[i].up, u.parts[i].key = u, object.key
	}
	c := s.newProc(opSweep, u.reg)
	c.op = u.op
	p := c.instant(u.reg, &Operation{ID: OpID(u.op), Apply: func(base *State, _ []Version) (*Change, error) {
		ch := keepState(base)
		ch.Current = &Version{Kind: VersionUpload, Status: UploadOpen}
		return ch, nil
	}}, true)
	if p.err != nil {
		s.fail("create: %v", p.err)
	}
	c.done = true
}

func (s *sim) uploadOf(id UploadID) *upload {
	i := slices.IndexFunc(s.uploads, func(u *upload) bool { return u.id == id })
	return s.uploads[i]
}

// completionOp is the same for whoever drives a completion.
func (u *upload) completionOp() OpID { return OpID(1000 + u.op) }

// instant runs a whole operation at once over the drives that are up, without loss. all: with those too
// that the quorum does not need.
func (c *proc) instant(reg *register, op *Operation, all bool) *proposer {
	s, ctx := c.s, context.Background()
	p := c.newProposer(reg, op)
	g := c.group(reg.part)
	for try := 0; p.phase != phaseDone; try++ {
		if try > 20 {
			p.surrender(errs.E("sim", errs.Busy, "too many tries"))
			return p
		}
		p.begin(s.ballot(p.seen, c.skew))
		st := stepWait
		order := s.rng.Perm(len(g.Drives))
		for _, pos := range order {
			if st != stepWait && !all {
				break
			}
			var r *PrepareReply
			err := error(errDown)
			if a := s.drives[g.Drives[pos]].acc; a != nil {
				r, err = a.Prepare(ctx, &PrepareRequest{Header: c.header(reg.part), Address: reg.addr, Ballot: p.ballot, Seal: p.seal(pos), Query: p.query})
			}
			if n := p.promise(pos, r, err); n != stepWait {
				st = n
			}
		}
		if st != stepAccept {
			continue
		}
		s.proposed(reg, p)
		var lagging []int
		send := func(pos int, m *AcceptRequest) (behind bool) {
			var r *AcceptReply
			err := error(errDown)
			if a := s.drives[g.Drives[pos]].acc; a != nil {
				r, err = a.Accept(ctx, m)
			}
			if err == nil && r.Accepted {
				s.holds(int(g.Drives[pos]), reg, p.ballot, g.Quorum.W)
			}
			p.accepted(pos, r, err)
			return err == nil && r.Behind
		}
		m := AcceptRequest{Header: c.header(reg.part), Address: reg.addr, Ballot: p.ballot, State: *p.state}
		for _, pos := range order {
			if (all || p.phase == phaseAccept) && send(pos, &m) {
				lagging = append(lagging, pos)
			}
		}
		for _, pos := range lagging {
			from := slices.Index(p.acks, true)
			if from < 0 {
				continue
			}
			full, err := s.drives[g.Drives[from]].acc.Versions(ctx, &VersionsRequest{Header: c.header(reg.part), Address: reg.addr, Below: ^uint64(0)})
			if err != nil {
				continue
			}
			whole := m
			whole.Whole, whole.Full = true, full.Versions
			send(pos, &whole)
		}
	}
	return p
}

// instantRead is a read within the change of another register.
func (c *proc) instantRead(reg *register) (*State, bool) {
	s := c.s
	g := c.group(reg.part)
	replies := make([]*ReadReply, len(g.Drives))
	for n, pos := range s.rng.Perm(len(g.Drives)) {
		if a := s.drives[g.Drives[pos]].acc; a != nil {
			replies[pos], _ = a.Read(context.Background(), &ReadRequest{Header: c.header(reg.part), Address: reg.addr})
		}
		if top, enough := judgeRead(g.Quorum, replies); enough && top.chosen {
			if top.row == nil {
				return nil, true
			}
			return &top.row.State, true
		} else if !enough || n < len(replies)-1 {
			continue
		}
		p := c.instant(reg, nil, false)
		return p.view.State, p.err == nil
	}
	return nil, false
}

func statusOf(st *State) UploadStatus {
	if st == nil || st.Current == nil {
		return 0
	}
	return st.Current.Status
}

func (c *proc) startUpload() {
	c.reg = c.up.object
	c.read(c.up.reg, func(f simRead) {
		if !f.ok {
			c.end(resDrop, "")
			return
		}
		switch c.kind {
		case opPart:
			c.startPart(f.st)
		case opComplete:
			c.startComplete(f.st)
		case opAbort:
			c.startAbort(f.st)
		case opSweep:
			c.startSweep(f.st)
		}
	})
}

// newOp is an operation with an id of its own.
func (c *proc) newOp(apply func(base *State) (*Change, error)) *Operation {
	c.s.ops++
	return &Operation{ID: OpID(c.s.ops), Apply: func(base *State, _ []Version) (*Change, error) { return apply(base) }}
}

// certain says whether an operation that failed is known never to happen.
func certain(p *proposer) bool {
	return errs.KindOf(p.err) != errs.Unknown && SentBallot(p.err).IsZero()
}

// startPart uploads a part; the one of the same number before it stays while the upload is open.
func (c *proc) startPart(st *State) {
	s, u := c.s, c.up
	if statusOf(st) != UploadOpen {
		c.end(resDrop, "")
		return
	}
	i := s.rng.IntN(simParts)
	reg := u.parts[i]
	b := c.newBody(c.op, reg, s.rng.IntN(2) == 0)
	u.bodies[i] = append(u.bodies[i], b)
	c.stream(b, func(ok bool) {
		if !ok {
			c.end(resDrop, "")
			return
		}
		op := c.newOp(func(base *State) (*Change, error) {
			ch := keepState(base)
			if ch.Current != nil {
				ch.Dead = append(ch.Dead, deadOf(ch.Current))
			}
			data := b.data
			ch.Current = &Version{Kind: VersionPart, Seq: ch.NextSeq, ETag: string([]byte{byte(c.op)}), Data: &data}
			ch.NextSeq++
			return ch, nil
		})
		op.ID = OpID(c.op)
		c.sealed(op, b)
		c.update(reg, op, func(p *proposer) {
			if p.err != nil {
				if certain(p) {
					c.abandon(b)
				}
				c.end(resDrop, "")
				return
			}
			c.read(u.reg, func(f simRead) { c.partAfter(i, b, f) })
		})
		c.wide = b
	})
}

// partAfter looks whether the upload has ended meanwhile.
func (c *proc) partAfter(i int, b *body, f simRead) {
	if !f.ok || statusOf(f.st) == UploadOpen {
		c.end(resDrop, "")
		return
	}
	done := func(bool) { c.end(resDrop, "") }
	switch statusOf(f.st) {
	case UploadCompleting, UploadAborting:
		c.end(resDrop, "")
	case UploadCompleted:
		c.clearRest(f.st, done)
	default:
		c.bury([]*register{c.up.parts[i]}, done)
	}
}

// bury makes registers tombstones that let go of all that they held.
func (c *proc) bury(list []*register, then func(ok bool)) {
	if len(list) == 0 {
		then(true)
		return
	}
	c.update(list[0], c.newOp(func(base *State) (*Change, error) {
		if base == nil || base.Current == nil {
			return nil, errNothing
		}
		ch := keepState(base)
		if base.Current.Kind == VersionPart {
			for i := range base.Dead {
				ch.ClearDead = append(ch.ClearDead, base.Dead[i].Data.ID)
			}
		} else if v := base.Current.Completed; v != nil && v.Manifest != nil {
			ch.Dead = append(ch.Dead, DeadData{Data: *v.Manifest})
		}
		ch.Current = nil
		return ch, nil
	}), func(p *proposer) {
		if p.err != nil && p.err != errNothing {
			then(false)
			return
		}
		c.bury(list[1:], then)
	})
}

// clearUpload buries the parts that are not named, and, when none is, the upload last.
func (c *proc) clearUpload(u *upload, named []*register, then func(ok bool)) {
	var list []*register
	for _, r := range u.parts {
		if !slices.Contains(named, r) {
			list = append(list, r)
		}
	}
	if named == nil {
		list = append(list, u.reg)
	}
	c.bury(list, then)
}

// named lists the parts of a manifest by their registers.
func (s *sim) manifest(v *Version) *body {
	return s.bodies[int(v.Manifest.ID[0])|int(v.Manifest.ID[1])<<8]
}

// clearRest ends what the manifest of a completed upload does not name.
func (c *proc) clearRest(st *State, then func(ok bool)) {
	var named []*register
	parts := c.s.manifest(st.Current.Completed).parts
	for _, b := range parts {
		named = append(named, b.reg)
	}
	var mend func(i int)
	mend = func(i int) {
		if i == len(parts) {
			c.clearUpload(c.up, named, then)
			return
		}
		want := parts[i]
		c.update(want.reg, c.newOp(func(base *State) (*Change, error) {
			if base == nil || base.Current == nil {
				return nil, errNothing
			}
			ch := keepState(base)
			next := *base.Current
			for j := range base.Dead {
				if base.Dead[j].Data.ID == want.data.ID {
					data := base.Dead[j].Data
					next.Data = &data
				}
				ch.ClearDead = append(ch.ClearDead, base.Dead[j].Data.ID)
			}
			if next.Data.ID != want.data.ID || len(ch.ClearDead) == 0 {
				return nil, errNothing
			}
			ch.Current = &next
			return ch, nil
		}), func(p *proposer) {
			if p.err != nil && p.err != errNothing {
				then(false)
				return
			}
			mend(i + 1)
		})
	}
	mend(0)
}

// startSweep is the collection of what ended uploads left behind.
func (c *proc) startSweep(st *State) {
	done := func(bool) { c.end(resDrop, "") }
	switch {
	case st == nil:
		done(true)
	case statusOf(st) == UploadCompleted:
		c.clearRest(st, done)
	case statusOf(st) == UploadAborted, statusOf(st) == 0:
		c.clearUpload(c.up, nil, done)
	default:
		done(true)
	}
}

// startComplete completes the upload with a list of parts that the client remembers.
func (c *proc) startComplete(st *State) {
	s, u := c.s, c.up
	for _, list := range u.bodies {
		if len(list) > 0 && (len(c.list) == 0 || s.rng.IntN(4) > 0) {
			at := len(list) - 1
			if s.rng.IntN(4) == 0 {
				at = s.rng.IntN(len(list))
			}
			c.list = append(c.list, list[at])
		}
	}
	switch {
	case len(c.list) == 0 || st == nil:
		c.end(resDrop, "")
	case statusOf(st) == UploadOpen:
		c.pick(0)
	default:
		c.complete(st)
	}
}

// pick checks the parts, one after the other, against the list.
func (c *proc) pick(i int) {
	if i == len(c.list) {
		c.beginCompletion()
		return
	}
	c.read(c.list[i].reg, func(f simRead) {
		if !f.ok || f.st == nil || f.st.Current == nil || f.st.Current.Data.ID != c.list[i].data.ID {
			c.end(resDrop, "")
			return
		}
		c.pick(i + 1)
	})
}

// beginCompletion stores the manifest and moves the upload from open to completing.
func (c *proc) beginCompletion() {
	u := c.up
	b := c.newBody(c.op, u.reg, false)
	b.parts = c.list
	lost := false
	op := c.newOp(func(base *State) (*Change, error) {
		if lost = statusOf(base) != UploadOpen; lost {
			return nil, errNothing
		}
		ch := keepState(base)
		next := *base.Current
		data := b.data
		next.Status = UploadCompleting
		next.Completed = &Version{Kind: VersionObject, ETag: string([]byte{byte(u.op)}), Manifest: &data, Upload: u.id}
		ch.Current = &next
		return ch, nil
	})
	op.ID = OpID(c.op)
	c.sealed(op, b)
	c.update(u.reg, op, func(p *proposer) {
		switch {
		case p.err == nil:
			c.complete(p.view.State)
		case lost && certain(p):
			c.abandon(b)
			c.read(u.reg, func(f simRead) {
				if !f.ok || f.st == nil {
					c.end(resDrop, "")
					return
				}
				c.complete(f.st)
			})
		default:
			if certain(p) {
				c.abandon(b)
			}
			c.end(resDrop, "")
		}
	})
}

// names says whether the completion of an upload's state is of the parts that the client names.
func (c *proc) names(v *Version) bool {
	return v != nil && v.Manifest != nil && slices.Equal(c.s.manifest(v).parts, c.list)
}

// complete goes on from completing.
func (c *proc) complete(st *State) {
	s, u := c.s, c.up
	if st.Current == nil || !c.names(st.Current.Completed) {
		c.end(resDrop, "") // completed with another list, or aborted
		return
	}
	switch st.Current.Status {
	case UploadCompleted:
		c.completed(st.Current.Completed)
		return
	case UploadAborting:
		c.whatBecame()
		return
	case UploadCompleting:
	default:
		c.end(resDrop, "")
		return
	}
	if u.call == 0 {
		u.call = c.call
	}
	u.call = min(u.call, c.call)
	v := *st.Current.Completed
	c.update(u.object, &Operation{ID: u.completionOp(), Apply: func(base *State, _ []Version) (*Change, error) {
		if holdsUpload(base, u) {
			return nil, errNothing
		}
		again, ok := c.instantRead(u.reg)
		if !ok {
			return nil, errDown
		}
		if statusOf(again) != UploadCompleting {
			return nil, errNothing
		}
		ch := keepState(base)
		return ch, c.put(ch, base, u.object.versioned, v)
	}}, func(p *proposer) {
		switch {
		case p.err == errLacks:
			c.ensureCompleted(c.lacks, func(ok bool) {
				if !ok {
					c.end(resDrop, "")
					return
				}
				c.complete(st)
			})
			return
		case p.err != nil && p.err != errNothing:
			c.end(resDrop, "")
			return
		}
		at := versionOf(p.view.State, u)
		if at == nil {
			c.whatBecame() // done, and replaced since; or called off
			return
		}
		final := *at
		c.markCompleted(u, &final, func(bool) {
			c.completed(&final)
		})
	})
	c.main = true
	s.tr("op%d applies the completion of op%d", c.op, u.op)
}

// completed acknowledges a completion.
func (c *proc) completed(v *Version) {
	s, u := c.s, c.up
	if !c.names(v) {
		s.fail("upload %d was acknowledged with parts that the client did not name", u.op)
	}
	s.clock++
	if u.ret == 0 {
		u.ret = s.clock
	}
	s.tr("the completion of op%d is acknowledged by op%d", u.op, c.op)
	if u.aborted {
		s.fail("upload %d was completed although it was aborted", u.op)
	}
	c.background = true
	c.read(u.reg, func(f simRead) {
		if statusOf(f.st) != UploadCompleted || s.rng.IntN(2) == 0 {
			c.end(resDrop, "")
			return
		}
		c.clearRest(f.st, func(bool) { c.end(resDrop, "") })
	})
}

// isCompleting says whether the completion of an upload may have been applied without a mark of it.
func isCompleting(st *State) bool {
	return statusOf(st) == UploadCompleting || statusOf(st) == UploadAborting
}

func holdsUpload(st *State, u *upload) bool {
	return st != nil && st.Current != nil && st.Current.Upload == u.id
}

// versionOf finds the version of an upload in a state: current, or just pushed.
func versionOf(st *State, u *upload) *Version {
	if st == nil {
		return nil
	}
	if holdsUpload(st, u) {
		return st.Current
	}
	for i := range st.Delta.Put {
		if st.Delta.Put[i].Upload == u.id {
			return &st.Delta.Put[i]
		}
	}
	return nil
}

// whatBecame answers for a completion that was found to be over.
func (c *proc) whatBecame() {
	u := c.up
	c.read(u.reg, func(f simRead) {
		switch statusOf(f.st) {
		case UploadCompleted:
			c.completed(f.st.Current.Completed)
		case UploadCompleting, UploadAborting:
			c.findVersion(u, func(v *Version, ok bool) {
				if v == nil {
					c.end(resDrop, "")
					return
				}
				c.markCompleted(u, v, func(ok bool) {
					if !ok {
						c.end(resDrop, "")
						return
					}
					c.completed(v)
				})
			})
		default:
			c.end(resDrop, "")
		}
	})
}

// findVersion looks through all versions of the key for that of an upload.
func (c *proc) findVersion(u *upload, then func(v *Version, ok bool)) {
	c.read(u.object, func(f simRead) {
		switch {
		case !f.ok || f.st == nil:
			then(nil, f.ok)
		case holdsUpload(f.st, u):
			then(f.st.Current, true)
		default:
			c.versions(u.object, f, func(list []Version, ok bool) {
				if i := slices.IndexFunc(list, func(v Version) bool { return v.Upload == u.id }); i >= 0 {
					then(&list[i], true)
					return
				}
				then(nil, ok)
			})
		}
	})
}

// markCompleted moves an upload from completing to completed.
func (c *proc) markCompleted(u *upload, v *Version, then func(ok bool)) {
	c.update(u.reg, c.newOp(func(base *State) (*Change, error) {
		if !isCompleting(base) {
			return nil, errNothing
		}
		ch := keepState(base)
		next := *base.Current
		next.Status, next.Completed = UploadCompleted, v
		ch.Current = &next
		return ch, nil
	}), func(p *proposer) { then(p.err == nil || p.err == errNothing) })
}

// ensureCompleted makes the upload of a version that is about to go say completed.
func (c *proc) ensureCompleted(u *upload, then func(ok bool)) {
	ready := func(ok bool) {
		if ok {
			if c.known == nil {
				c.known = map[*upload]bool{}
			}
			c.known[u] = true
		}
		then(ok)
	}
	c.read(u.reg, func(f simRead) {
		if !f.ok || !isCompleting(f.st) {
			ready(f.ok)
			return
		}
		c.findVersion(u, func(v *Version, ok bool) {
			if v == nil {
				ready(ok)
				return
			}
			c.markCompleted(u, v, ready)
		})
	})
}

// startAbort ends an upload, and then lets go of its parts.
func (c *proc) startAbort(st *State) {
	c.abort(c.up, st, func(ended bool) {
		if !ended {
			c.end(resDrop, "")
			return
		}
		c.clearUpload(c.up, nil, func(bool) { c.end(resDrop, "") })
	})
}

// setStatus moves an upload on.
func (c *proc) setStatus(u *upload, from, to UploadStatus, then func(ok bool)) {
	c.update(u.reg, c.newOp(func(base *State) (*Change, error) {
		if statusOf(base) != from {
			return nil, errNothing
		}
		ch := keepState(base)
		next := *base.Current
		next.Status = to
		ch.Current = &next
		return ch, nil
	}), func(p *proposer) { then(p.err == nil) })
}

// abort moves an upload to aborted. One that is completing is aborting first, and then called off by spending
// its operation. ended is false when that could not be, or it is completed.
func (c *proc) abort(u *upload, st *State, then func(ended bool)) {
	abort := func(from UploadStatus) {
		c.setStatus(u, from, UploadAborted, func(ok bool) {
			if ok {
				c.s.tr("op%d has aborted op%d", c.op, u.op)
				u.aborted = true
				if u.ret != 0 {
					c.s.fail("upload %d was aborted although it was completed", u.op)
				}
			}
			then(ok)
		})
	}
	switch statusOf(st) {
	case UploadOpen:
		abort(UploadOpen)
	case UploadCompleting:
		if c.s.mut.noAborting {
			c.callOff(u, then, func() { abort(UploadCompleting) })
			return
		}
		c.setStatus(u, UploadCompleting, UploadAborting, func(ok bool) {
			if !ok {
				then(false)
				return
			}
			c.callOff(u, then, func() { abort(UploadAborting) })
		})
	case UploadAborting:
		c.callOff(u, then, func() { abort(UploadAborting) })
	default:
		then(false)
	}
}

// callOff spends the operation of an upload's completion, and calls abort if it was not applied.
func (c *proc) callOff(u *upload, then func(ended bool), abort func()) {
	c.update(u.object, &Operation{ID: u.completionOp(), Apply: func(base *State, _ []Version) (*Change, error) {
		if holdsUpload(base, u) {
			return nil, errNothing
		}
		return keepState(base), nil
	}}, func(p *proposer) {
		if p.err != nil && p.err != errNothing {
			then(false)
			return
		}
		c.findVersion(u, func(v *Version, ok bool) {
			switch {
			case !ok:
				then(false)
				return
			case v != nil:
				c.markCompleted(u, v, func(bool) { then(false) })
				return
			}
			c.read(u.reg, func(f simRead) {
				if !f.ok || f.st == nil || statusOf(f.st) == UploadCompleted {
					then(false)
					return
				}
				abort()
			})
		})
	})
}
