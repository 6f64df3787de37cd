package metadata

import (
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

// Operations on objects, as package object makes them.

var (
	errExists    = errs.E("sim", errs.Precondition, "exists")
	errNoVersion = errs.E("sim", errs.NotFound, "no such version")
	errNothing   = errs.E("sim", errs.Precondition, "nothing to change")
	errLacks     = errs.E("sim", errs.Precondition, "an upload is not known to be completed")
)

// startAny begins one operation.
func (s *sim) startAny() {
	rng := s.rng
	if s.bucket.gone && !s.with.lag {
		return
	}
	reg := s.keys[rng.IntN(len(s.keys))]
	kinds := []opKind{opPut, opPut, opInm, opDel, opDel, opGet, opGet, opGet, opGC, opDrop, opRepair, opList}
	if reg.versioned {
		kinds = []opKind{opPush, opPush, opPush, opInm, opDelv, opDelv, opGet, opGet, opGet, opGC, opDrop, opRepair, opList}
	}
	if s.with.tombs {
		kinds = []opKind{opPut, opPut, opInm, opDel, opDel, opDrop, opDrop, opDrop, opGet, opRepair, opList}
	}
	if s.with.uploads && rng.IntN(3) > 0 {
		kinds = []opKind{opPart, opPart, opPart, opComplete, opComplete, opComplete, opAbort, opSweep, opRemains, opDrop, opRepair}
	}
	if s.with.bucket {
		if kinds = append(kinds, opDelb); !reg.versioned {
			kinds = append(kinds, opDel)
		}
	}
	if s.with.swap {
		kinds = append(kinds, opSwap, opSwap, opSwap)
	}
	if s.with.away {
		kinds = append(kinds, opGC, opInm, opGC, opInm)
	}
	if s.with.lag && s.with.swap {
		if kinds = append(kinds, opGet, opGet, opPush); !reg.versioned {
			kinds[len(kinds)-1] = opPut
		}
	}
	kind := kinds[rng.IntN(len(kinds))]
	if s.with.lag && s.with.swap && s.swaps == 0 && rng.IntN(3) == 0 {
		kind = opSwap // early, so that much comes after it
	}
	if s.with.wide && kind == opDrop && rng.IntN(2) == 0 {
		kind = opRemains
	}
	if kind == opDrop || kind == opRepair {
		reg = s.regs[rng.IntN(len(s.regs))]
	}
	v := 0
	switch kind {
	case opGC:
		if s.ops == 0 {
			return
		}
		if v = 1 + rng.IntN(s.ops); s.bodies[v] == nil {
			return
		}
	case opDelv:
		if s.ops == 0 {
			return
		}
		v = 1 + rng.IntN(s.ops)
		if len(s.seqsOf[v]) == 0 {
			if len(s.uploads) > 0 && len(s.seqsOf[s.uploads[0].op]) > 0 {
				v = s.uploads[0].op
			} else {
				kind, v = opPush, 0
				break
			}
		}
		if reg = s.keyOf(v); !reg.versioned {
			return
		}
	}
	s.ops++
	c := s.newProc(kind, reg)
	if c.op, c.v = s.ops, v; v == 0 {
		c.v = c.op
	}
	s.tr("START op%d %v %s v=%d", c.op, kind, reg.addr.Key, c.v)
	if c.view().bucket.gone {
		c.end(resDrop, "")
		return
	}
	switch kind {
	case opGet, opPeek, opRepair:
		c.startRead()
	case opList:
		c.startList()
	case opDrop:
		c.startDrop()
	case opGC:
		c.startGC()
	case opPart, opComplete, opAbort, opSweep:
		c.up = s.uploads[rng.IntN(len(s.uploads))]
		c.startUpload()
	case opRemains:
		c.startRemains()
	case opSwap:
		if s.moved > 0 && rng.IntN(2) == 0 {
			c.startJoin(rng.IntN(len(s.layout)))
		} else {
			c.startSwap()
		}
	case opDelb:
		c.startDeleteBucket()
	default:
		c.startWrite()
	}
}

// keyOf is the object that operation v, or upload v, wrote to.
func (s *sim) keyOf(v int) *register {
	if b := s.bodies[v]; b != nil && b.reg.up == nil {
		return b.reg
	}
	for _, u := range s.uploads {
		if u.op == v {
			return u.object
		}
	}
	return nil
}

// startWrite runs what changes an object.
func (c *proc) startWrite() {
	s := c.s
	if c.view().bucket.deleting && s.rng.IntN(4) > 0 { // else its copy of the control plane is old
		c.end(resDrop, "")
		return
	}
	var b *body
	if c.kind == opPut || c.kind == opPush || c.kind == opInm {
		b = c.newBody(c.op, c.reg, s.rng.IntN(2) == 0)
		c.stream(b, func(ok bool) {
			if !ok {
				c.end(resDrop, "")
				return
			}
			c.write(b, Ballot{})
		})
		return
	}
	c.write(nil, Ballot{})
}

// write commits; it comes again when an upload had to be looked at first, or when the drives serve another
// epoch. sent is the ballot of an Accept that went out in the epoch before.
func (c *proc) write(b *body, sent Ballot) {
	op := &Operation{ID: OpID(c.op), Sent: sent, Apply: func(base *State, named []Version) (*Change, error) { return c.apply(b, base, named) }}
	if b != nil {
		c.sealed(op, b)
	}
	if c.kind == opDelv {
		op.Query = Query{Seqs: c.s.seqsOf[c.v], Below: ^uint64(0)}
	}
	c.update(c.reg, op, func(p *proposer) {
		switch kind := errs.KindOf(p.err); {
		case p.err == nil:
			c.end(resOK, "")
		case p.err == errLacks:
			c.ensureCompleted(c.lacks, func(ok bool) {
				if !ok {
					c.abandon(b)
					c.end(resDrop, "")
					return
				}
				c.write(b, Ballot{})
			})
		case kind == errs.Stale && c.follow():
			c.write(b, SentBallot(p.err))
		case p.err == errExists:
			c.abandon(b)
			c.end(resExists, "")
		case p.err == errNoVersion:
			c.end(resNoVersion, "")
		case !certain(p):
			c.end(resUnknown, "")
		default:
			c.abandon(b)
			c.end(resDrop, "")
		}
	})
	c.main, c.wide = true, b
}

// keepState is a change that changes nothing.
func keepState(base *State) *Change {
	ch := &Change{NextSeq: 1}
	if base != nil {
		ch.Current, ch.Older, ch.NextSeq = base.Current, base.Older, max(base.NextSeq, 1)
	}
	return ch
}

// mayGo says whether a version may be pushed or removed: that of an upload only once the upload says
// that it is completed.
func (c *proc) mayGo(v *Version) error {
	if v == nil || v.Upload == (UploadID{}) {
		return nil
	}
	if c.lacks = c.s.uploadOf(v.Upload); c.known[c.lacks] {
		return nil
	}
	return errLacks
}

func deadOf(v *Version) DeadData {
	if v.Manifest != nil {
		return DeadData{Data: *v.Manifest, Manifest: true, Upload: v.Upload}
	}
	return DeadData{Data: *v.Data}
}

// put makes v the current version.
func (c *proc) put(ch *Change, base *State, versioned bool, v Version) error {
	if base != nil && base.Current != nil {
		if err := c.mayGo(base.Current); err != nil {
			return err
		}
		if versioned {
			ch.Put, ch.Older = []Version{*base.Current}, base.Older+1
		} else {
			ch.Dead = append(ch.Dead, deadOf(base.Current))
		}
	}
	v.Seq = ch.NextSeq
	ch.NextSeq++
	ch.Current = &v
	if op := int(v.ETag[0]); !slices.Contains(c.s.seqsOf[op], v.Seq) {
		c.s.seqsOf[op] = append(c.s.seqsOf[op], v.Seq) // whichever of them comes to be chosen
	}
	return nil
}

// apply computes the change of a write.
func (c *proc) apply(b *body, base *State, named []Version) (*Change, error) {
	ch := keepState(base)
	live := base != nil && base.Current != nil
	switch c.kind {
	case opInm, opPut, opPush:
		if c.kind == opInm && live {
			return nil, errExists
		}
		data := b.data
		return ch, c.put(ch, base, c.reg.versioned, Version{Kind: VersionObject, ETag: string([]byte{byte(c.op)}), Data: &data})
	case opDel:
		if live {
			if err := c.mayGo(base.Current); err != nil {
				return nil, err
			}
			ch.Dead = append(ch.Dead, deadOf(base.Current))
		}
		ch.Current = nil
	case opDelv:
		want := string([]byte{byte(c.v)})
		if live && base.Current.ETag == want {
			if err := c.mayGo(base.Current); err != nil {
				return nil, err
			}
			ch.Dead, ch.Current = append(ch.Dead, deadOf(base.Current)), nil
			if base.Older > 0 {
				newest := slices.MaxFunc(named, func(a, b Version) int { return int(a.Seq) - int(b.Seq) })
				ch.Current, ch.Older, ch.Drop = &newest, base.Older-1, []uint64{newest.Seq}
			}
			break
		}
		i := slices.IndexFunc(named, func(v Version) bool { return v.ETag == want })
		if !live || i < 0 {
			return nil, errNoVersion
		}
		if err := c.mayGo(&named[i]); err != nil {
			return nil, err
		}
		ch.Dead = append(ch.Dead, deadOf(&named[i]))
		ch.Older, ch.Drop = base.Older-1, []uint64{named[i].Seq}
	}
	return ch, nil
}

// startRemains ends what hangs on the dead list of an object: bodies of several chunks, and manifests
// with the parts of their uploads.
func (c *proc) startRemains() {
	s := c.s
	c.read(c.reg, func(f simRead) {
		if !f.ok || f.st == nil {
			c.end(resDrop, "")
			return
		}
		i := slices.IndexFunc(f.st.Dead, func(d DeadData) bool { return keepDead(&d) })
		if i < 0 {
			c.end(resDrop, "")
			return
		}
		d := f.st.Dead[i]
		b := s.bodies[int(d.Data.ID[0])|int(d.Data.ID[1])<<8]
		shards := func() {
			c.remove(b, c.reg, lastBallot, func(ok bool) {
				if !ok {
					c.end(resDrop, "")
					return
				}
				s.ops++
				c.update(c.reg, &Operation{ID: OpID(s.ops), Apply: func(base *State, _ []Version) (*Change, error) {
					if base == nil || !slices.ContainsFunc(base.Dead, func(e DeadData) bool { return e.Data.ID == d.Data.ID }) {
						return nil, errNothing
					}
					ch := keepState(base)
					ch.ClearDead = append(ch.ClearDead, d.Data.ID)
					return ch, nil
				}}, func(*proposer) { c.end(resDrop, "") })
			})
		}
		if d.Manifest {
			c.clearUpload(s.uploadOf(d.Upload), nil, func(ok bool) {
				if !ok {
					c.end(resDrop, "")
					return
				}
				shards()
			})
			return
		}
		shards()
	})
}
