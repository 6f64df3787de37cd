package metadata

import (
	"context"
	"slices"
)

// The deletion of a bucket, as package object makes it: an empty listing, `deleting` under a new bucket
// epoch, the fence on n−W+1 members of every partition, an empty listing under it, and then it is final;
// else the bucket reopens. The control plane is one value here, which a gateway copies when it begins.

type simBucketState struct {
	epoch    uint64
	deleting bool
	gone     bool
}

func (c *proc) startDeleteBucket() {
	s := c.s
	if b := c.view().bucket; b.deleting { // that was cut short: taken over from the fence on
		c.fence(b.epoch)
		return
	}
	c.empty(0, func(ok bool, _ int64) {
		if !ok || s.bucket.gone || c.away() {
			c.end(resDrop, "")
			return
		}
		if !s.bucket.deleting {
			s.bucket.epoch++
			s.bucket.deleting = true
			s.published()
		}
		c.told()
		c.layout = slices.Clone(c.view().layout)
		c.fence(s.bucket.epoch)
	})
}

// fence stores the epoch on the drives and goes on when enough of each partition have it.
func (c *proc) fence(epoch uint64) {
	s := c.s
	c.epoch = epoch
	s.tr("op%d closes the bucket under epoch %d", c.op, epoch)
	var have uint32
	reopen := func() {
		if s.rng.IntN(4) > 0 && !c.away() && s.bucket.deleting && s.bucket.epoch == epoch && !s.bucket.gone {
			s.bucket.deleting = false
			s.bucket.epoch++
			s.published()
		}
		c.end(resDrop, "")
	}
	stage := c.wait(reopen)
	for i := range s.drives {
		simSend(c, i, "fence", func(a *Acceptor) (struct{}, error) {
			return struct{}{}, a.Fence(context.Background(), &FenceRequest{Bucket: simBucket, Epoch: epoch})
		}, func(_ struct{}, err error) {
			if !c.on(stage) || err != nil {
				return
			}
			if have |= 1 << i; !c.fenced(have) {
				return
			}
			c.empty(epoch, func(ok bool, call int64) {
				if !ok {
					reopen()
					return
				}
				c.endUploads(0, func(ok bool) {
					if !ok {
						reopen()
						return
					}
					c.finishDelete(epoch, call)
				})
			})
		})
	}
}

func (c *proc) fenced(have uint32) bool {
	for p := range c.layout {
		q, n := c.layout[p].Quorum, 0
		for _, d := range c.layout[p].Drives {
			n += int(have >> d & 1)
		}
		if n < q.N-q.W+1 {
			return false
		}
	}
	return true
}

// empty lists the bucket, under a fence if there is one; then hears whether it is empty, and when the
// listing began.
func (c *proc) empty(fence uint64, then func(ok bool, call int64)) {
	s := c.s
	s.clock++
	call := s.clock
	empty := true
	var open []*register
	var confirm func()
	confirm = func() {
		if len(open) == 0 || !empty {
			then(empty, call)
			return
		}
		reg := open[0]
		open = open[1:]
		c.read(reg, func(f simRead) {
			empty = f.ok && peekString(f.st) == ""
			confirm()
		})
	}
	c.scan(nil, fence, func(reg *register, row *Row, ok bool, _ int64) {
		switch {
		case !ok:
			open = append(open, reg)
		case row != nil && row.State.Current != nil:
			empty = false
		}
	}, func(ok bool) {
		empty = empty && ok
		confirm()
	})
}

// endUploads buries the uploads that are left.
func (c *proc) endUploads(i int, then func(ok bool)) {
	if i == len(c.s.uploads) {
		then(true)
		return
	}
	u := c.s.uploads[i]
	bury := func() {
		c.clearUpload(u, nil, func(ok bool) {
			if !ok {
				then(false)
				return
			}
			c.endUploads(i+1, then)
		})
	}
	c.read(u.reg, func(f simRead) {
		switch {
		case !f.ok:
			then(false)
		case statusOf(f.st) == UploadOpen, isCompleting(f.st):
			// Ended first, so that nobody completes it with parts that are gone, if the bucket reopens.
			c.abort(u, f.st, func(ended bool) {
				if !ended {
					then(false)
					return
				}
				bury()
			})
		default:
			bury()
		}
	})
}

// finishDelete is the commit point: from here on there is no bucket.
func (c *proc) finishDelete(epoch uint64, call int64) {
	s := c.s
	if s.bucket.deleting && s.bucket.epoch == epoch && !s.bucket.gone && !c.away() {
		s.tr("op%d: the bucket is gone", c.op)
		s.bucket.gone = true
		s.published()
		s.clock++
		for _, reg := range s.keys {
			s.observe(reg, in{opSeal, 0}, out{resOK, ""}, call, s.clock)
		}
	}
	c.end(resDrop, "")
}
