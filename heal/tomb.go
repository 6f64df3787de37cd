package heal

import (
	"context"
	"slices"
	"time"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// A tombstone is dropped when all members are here and hold it decided (metadata.Client.Drop). Until then
// listings pass over it. Deletions are learned of from the garbage that they make, and from every walk; once
// in OrphanEvery the rows of each drive are searched for what was forgotten in between.
type tombs struct {
	at     map[string]*tomb     // registers that may be tombstones, by address
	slices map[uint16]time.Time // slices with more of them than are remembered, by when that was
}

type tomb struct {
	addr  metadata.Address
	due   time.Time
	tries int
}

const (
	maxTombs  = 1 << 16 // registers that are remembered
	tombBatch = 4096    // registers that are taken together
	// tombsAtOnce are dropped side by side, so that they share their syncs.
	tombsAtOnce = 8
	tombTries   = 8 // the walks find it after that
	// tombAfter is how long after a hint a tombstone is looked at: decisions are on their way.
	tombAfter = 10 * time.Second
)

// hintTomb takes note of a register that may be a tombstone.
func (h *Healer) hintTomb(a *metadata.Address) {
	now := h.c.Now()
	key := string(a.AppendTo(nil))
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.tombs.at[key] != nil:
	case len(h.tombs.at) < maxTombs:
		h.tombs.at[key] = &tomb{addr: *a, due: now.Add(tombAfter)}
	default:
		h.tombs.slices[placement.Slice(a.Bucket, a.Key)] = now
	}
}

// dropTombs drops the tombstones that are due, as far as all members are here.
func (h *Healer) dropTombs(ctx context.Context) error {
	l := h.c.Layout()
	for ctx.Err() == nil && !h.paused() {
		now := h.c.Now()
		var due []*tomb
		h.mu.Lock()
		for _, t := range h.tombs.at {
			if !now.Before(t.due) {
				if due = append(due, t); len(due) == tombBatch {
					break
				}
			}
		}
		h.mu.Unlock()
		each(tombsAtOnce, due, func(t *tomb) {
			over := ctx.Err() != nil || h.dropTomb(ctx, l, t.addr)
			h.mu.Lock()
			defer h.mu.Unlock()
			if t.tries++; over || t.tries >= tombTries {
				delete(h.tombs.at, string(t.addr.AppendTo(nil)))
			} else {
				t.due = now.Add(tombAfter << t.tries)
			}
		})
		if len(due) < tombBatch {
			break
		}
	}
	return h.dropSlices(ctx, l)
}

// dropTomb drops one tombstone. over: there is none, or it is gone.
func (h *Healer) dropTomb(ctx context.Context, l *placement.Layout, a metadata.Address) (over bool) {
	g := l.Group(l.PartitionOf(a.Bucket, a.Key))
	// A look at each member tells most that are none, and most that cannot be dropped yet, without a round.
	there := false
	for _, num := range g.Drives {
		d, ok := h.drive(num)
		if !ok {
			return false
		}
		r, err := d.Read(ctx, &metadata.ReadRequest{Header: metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: ^uint64(0)}, Address: a})
		switch {
		case err != nil:
			return false
		case r.Row == nil:
			continue // dropped here before: the others follow
		case r.Row.State.Current != nil || r.Row.State.Older > 0:
			return true
		}
		there = true
		break
	}
	if !there {
		return true
	}
	if h.pace.take(ctx, nominalBytes) != nil {
		return false
	}
	dropped, err := h.c.Meta.Drop(ctx, g, a)
	if err != nil {
		return false
	}
	if !dropped {
		h.levelTomb(ctx, g, a)
		return false
	}
	h.mu.Lock()
	h.progress.Dropped++
	h.mu.Unlock()
	return true
}

// levelTomb makes all members hold a tombstone under the same ballot, if all hold it: a newcomer got it under that
// with which its epoch began, and nothing else would ever bring the others there. The next try drops it.
func (h *Healer) levelTomb(ctx context.Context, g placement.Group, a metadata.Address) {
	var first *metadata.Row
	differ := false
	for _, num := range g.Drives {
		d, ok := h.drive(num)
		if !ok {
			return
		}
		r, err := d.Read(ctx, &metadata.ReadRequest{Header: metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: ^uint64(0)}, Address: a})
		if err != nil || r.Row == nil || first != nil && r.Row.State.ID != first.State.ID {
			return
		}
		if first == nil {
			first = r.Row
		}
		differ = differ || r.Row.Ballot != first.Ballot
	}
	if !differ {
		return // decisions are on their way
	}
	if err := h.c.Meta.ResyncVerified(ctx, g, a, nil, first.State.ID); err != nil && ctx.Err() == nil {
		h.c.Logger.Debug("a tombstone could not be brought to one ballot yet", "bucket", a.Bucket, "err", err)
	}
}

// dropSlices searches the slices of which hints were lost.
func (h *Healer) dropSlices(ctx context.Context, l *placement.Layout) error {
	now := h.c.Now()
	h.mu.Lock()
	room := len(h.tombs.at) < maxTombs/2
	only := make([]uint16, 0, len(h.tombs.slices))
	for s := range uint16(placement.Slices) {
		if at, ok := h.tombs.slices[s]; ok && now.Sub(at) >= tombAfter {
			only = append(only, s)
		}
	}
	h.mu.Unlock()
	if len(only) == 0 || !room {
		return nil
	}
	for _, d := range h.local() {
		if err := h.findTombs(ctx, d, only); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range only {
		delete(h.tombs.slices, s)
	}
	return nil
}

// hintLeft takes note of what a register's state leaves to be done: a tombstone that may be dropped, and dead
// data that no drive ends alone. The latter is on the lists from the first; but what a drive lost of those, nothing
// else names again.
func (h *Healer) hintLeft(a *metadata.Address, st *metadata.State) {
	if st.Current == nil && st.Older == 0 {
		h.hintTomb(a)
	}
	if !(a.Kind == metadata.KindPart && st.Current != nil) && slices.ContainsFunc(st.Dead, func(d metadata.DeadData) bool { return wide(&d) }) {
		h.note(*a)
	}
}

// findTombs looks for tombstones, and for forgotten dead data, among the rows of a drive.
func (h *Healer) findTombs(ctx context.Context, d node.Drive, only []uint16) error {
	var after *metadata.Address
	for {
		r, err := d.Rows(ctx, &metadata.RowsRequest{After: after, Slices: only, Limit: page})
		if err != nil {
			return err
		}
		for i := range r.Rows {
			if w := r.Rows[i].Row; w != nil {
				h.hintLeft(&r.Rows[i].Address, &w.State)
			}
		}
		if !r.More {
			return nil
		}
		after = r.Next
		if err := h.pace.take(ctx, page*nominalBytes/8); err != nil {
			return err
		}
	}
}
