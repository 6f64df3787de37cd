package metadata

import (
	"context"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// A drive that is a newcomer of a partition must have no rows of it: a tombstone may have been dropped, by all
// members, since it was one itself. So a drive that has left a partition lets go of its rows, and a newcomer is
// made empty before it is wedged. Its promises, floors and shards stay.

// clean makes newcomers empty in the partitions in which they were not wedged by this transition yet; those that
// cannot be are given up, and nothing was changed in them.
func (s *swapping) clean(ctx context.Context) error {
	for _, d := range s.drives {
		var list []uint32
		for _, t := range d.sits {
			if t.p.joins(t.seat) && !t.p.clean[t.seat] && t.p.present[t.seat] {
				list = append(list, t.p.g.Partition)
			}
		}
		if len(list) == 0 {
			continue
		}
		_, err := s.c.leave(ctx, s.sw.Layout, d.num, list)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.err = err
		for _, t := range d.sits {
			t.p.present[t.seat] = false
		}
		s.lose(d)
		// In what was begun the newcomer is one that was away, as before: it was empty when it was wedged, or it was
		// never a member.
		s.keep((*swapper).enough)
	}
	return nil
}

// Leave removes the rows that a drive has of partitions of which it is no member. Who learns anything from
// them was told before: the image of the epoch that began without it. It returns how many it removed. The error
// is of kind Stale if the drive is a member, or about to be one.
func (c *Client) Leave(ctx context.Context, l *placement.Layout, drive uint16, partitions []uint32) (removed int, err error) {
	const op = "metadata.Leave"
	if err := c.enter(op); err != nil {
		return 0, err
	}
	defer c.work.Done()
	removed, err = c.leave(ctx, l, drive, partitions)
	return removed, errs.Wrap(op, err)
}

func (c *Client) leave(ctx context.Context, l *placement.Layout, drive uint16, partitions []uint32) (removed int, err error) {
	m, err := c.membership(drive)
	if err != nil {
		return 0, err
	}
	call := func(f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, c.SealTimeout)
		defer cancel()
		return f(ctx)
	}
	var digests []Digest
	if err := call(func(ctx context.Context) (err error) { digests, err = m.Digests(ctx); return err }); err != nil {
		return 0, err
	}
	if len(digests) != placement.Slices {
		return 0, errs.E("metadata.leave", errs.Internal, "an answer of another length")
	}
	of := make(map[uint32]bool, len(partitions))
	var only []uint16 // slices that have rows, if not only of these partitions
	for _, p := range partitions {
		of[p] = true
		first, n := spanOf(l, p)
		for s := first; s < first+uint16(n); s++ {
			if digests[s] != (Digest{}) {
				only = append(only, s)
			}
		}
	}
	slices.Sort(only)
	only = slices.Compact(only)
	var after *Address
	for len(only) > 0 {
		var page *RowsReply
		if err := call(func(ctx context.Context) (err error) {
			page, err = m.Rows(ctx, &RowsRequest{After: after, Slices: only, Limit: MaxRows})
			return err
		}); err != nil {
			return removed, err
		}
		t := &TransferRequest{Drive: drive}
		for i := range page.Rows {
			a := page.Rows[i].Address
			if p := l.PartitionOf(a.Bucket, a.Key); of[p] {
				t.Rows = append(t.Rows, TransferRow{Address: a, Partition: p})
			}
		}
		if len(t.Rows) > 0 {
			if err := call(func(ctx context.Context) error { _, err := m.Transfer(ctx, t); return err }); err != nil {
				return removed, err
			}
			removed += len(t.Rows)
		}
		if !page.More || page.Next == nil {
			break
		}
		after = page.Next
	}
	return removed, nil
}

// remove deletes rows of partitions that are not this drive's. What they named is garbage here, or on its way to
// whoever has its place: that is for others to judge.
func (a *Acceptor) remove(ctx context.Context, m *TransferRequest) (*TransferReply, error) {
	const op = "metadata.remove"
	if len(m.Rows) > MaxRows {
		return nil, errs.E(op, errs.Invalid, "malformed removal")
	}
	for i := range m.Rows {
		if err := m.Rows[i].Address.Check(); err != nil {
			return nil, err
		}
		if !m.Rows[i].State.ID.IsZero() {
			return nil, errs.E(op, errs.Invalid, "a row that is to be removed has no state")
		}
	}
	a.fence.RLock() // no wedge and no installation comes between
	defer a.fence.RUnlock()
	for i := range m.Rows {
		if err := ctx.Err(); err != nil {
			return nil, errs.Wrap(op, err)
		}
		t := &m.Rows[i]
		// Once it is wedged as a newcomer, what it has was carried to it. One that is installed in an epoch before the
		// published one was a member, and away when it ceased to be: nobody has wedged it, and it becomes none. One that is
		// installed in the published epoch, and no member of it, was to be one and another was taken: it becomes none in that epoch either.
		epoch, member := a.epoch(t.Partition)
		if r := a.epochRow(t.Partition); member || r.installed > r.wedged && r.installed > epoch || r.wedged > 0 && epoch <= r.wedged {
			return nil, errs.E(op, errs.Stale, "this drive is a member of the partition, or becomes one")
		}
		if err := a.removeRow(&t.Address); err != nil {
			return nil, errs.Wrap(op, err)
		}
	}
	if len(m.Rows) == 0 {
		return new(TransferReply), nil
	}
	// One sync for all.
	var b Batch
	r := a.epochRow(m.Rows[0].Partition)
	r.put(&b, m.Rows[0].Partition)
	return new(TransferReply), errs.Wrap(op, a.kv.Apply(&b, true))
}

// removeRow deletes one register, without a sync.
func (a *Acceptor) removeRow(addr *Address) error {
	head := headKey(addr)
	st := a.stripeOf(addr)
	st.mu.Lock()
	defer st.mu.Unlock()
	row, err := a.rowOf(st, head)
	if err != nil || row == nil {
		return err
	}
	var b Batch
	b.Delete(head)
	b.Delete(addressKey(nsUnsettled, addr))
	lower, upper := versionSpan(addr, ^uint64(0))
	b.DeleteRange(lower, upper)
	return a.write(st, addr, head, row, nil, &b, false)
}
