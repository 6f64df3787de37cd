package heal

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// settlesWithin is the age from which an unsettled mark counts as outstanding: younger ones belong to writes
// that are under way.
const settlesWithin = firstPause

// Outstanding is what may not be on all drives on which it belongs.
type Outstanding struct {
	// Behind are the local drives, ascending, that were not compared with the others since they came back, or
	// since the process began: what they lack may not be on the lists yet.
	Behind []uint16
	// Silent are the local drives, ascending, whose lists could not be read in time.
	Silent []uint16
	Wants  []Want
	More   bool // there is more than Wants tells
	// OldProfiles: data of partitions that became wider may still have the profile of before.
	OldProfiles bool
}

// Want is registers of one partition that want the same repair.
type Want struct {
	Partition uint32
	// Drives, ascending, are those that may lack a row or a shard. nil: it is not known which.
	Drives    []uint16
	Registers int
}

// Outstanding reads the lists of the local drives. It returns at the end of ctx at the latest, changes nothing,
// and sees all that was acknowledged settlesWithin ago or earlier. What the lists name although it lacks nothing, such
// as what only has to be told that it was chosen, or waits for its dead data to go, does not count.
func (h *Healer) Outstanding(ctx context.Context) Outstanding {
	var o Outstanding
	var all []uint16
	h.mu.Lock()
	for _, d := range h.c.Local() {
		num := d.Num()
		all = append(all, num)
		if !h.returned.here[num] || h.returned.todo[num] {
			o.Behind = append(o.Behind, num)
		}
	}
	h.mu.Unlock()
	l := h.c.Layout()
	if l == nil {
		return o
	}
	h.mu.Lock()
	o.OldProfiles = h.oldProfiles(l, all)
	h.mu.Unlock()
	type read struct {
		drive uint16
		by    map[string]*task
		err   error
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards reads
	reads := map[uint16]read{}
	for _, d := range h.local() {
		wg.Go(func() {
			by, err := h.lists(ctx, d)
			mu.Lock()
			defer mu.Unlock()
			reads[d.Num()] = read{d.Num(), by, err}
		})
	}
	wg.Wait()
	tasks := map[string]*task{}
	for _, num := range all {
		r, ok := reads[num]
		if !ok || r.err != nil {
			o.Silent = append(o.Silent, num)
		}
		o.More = o.More || len(r.by) >= maxPending
		for k, t := range r.by {
			if in := tasks[k]; in != nil {
				in.positions, in.unsettled = append(in.positions, t.positions...), append(in.unsettled, t.unsettled...)
				in.repair = append(in.repair, t.repair...)
			} else {
				tasks[k] = t
			}
		}
	}
	h.dropComplete(ctx, l, tasks)
	found := h.stillSound(ctx, l, tasks)
	wants := map[string]*Want{}
	for _, t := range tasks {
		g := l.Group(l.PartitionOf(t.addr.Bucket, t.addr.Key))
		var drives []uint16
		for _, p := range t.positions {
			if int(p) < len(g.Drives) {
				drives = append(drives, g.Drives[p])
			}
		}
		is := found[t.key]
		switch {
		case is != nil && is.wide: // a later chunk may lie on any of them
			drives = slices.Clone(is.away)
		case is != nil:
			drives = slices.DeleteFunc(drives, func(num uint16) bool { return !slices.Contains(is.away, num) })
		}
		slices.Sort(drives)
		drives = slices.Compact(drives)
		switch {
		case is != nil && len(drives) == 0:
			continue // it waits for what is dead to go
		case is == nil && (len(t.unsettled) > 0 || len(drives) == len(g.Drives)):
			// A row that names all says that somebody lacks something; shards of later chunks lie elsewhere.
			drives = nil
		}
		key := strconv.Itoa(int(g.Partition))
		for _, d := range drives {
			key += "," + strconv.Itoa(int(d))
		}
		if wants[key] == nil {
			wants[key] = &Want{Partition: g.Partition, Drives: drives}
		}
		wants[key].Registers++
	}
	for _, key := range slices.Sorted(maps.Keys(wants)) {
		o.Wants = append(o.Wants, *wants[key])
	}
	slices.Sort(o.Behind)
	slices.Sort(o.Silent)
	return o
}

const (
	// lookOutstanding is how many registers Outstanding looks at on the drives, and completeAtOnce how many of them
	// side by side. The others count as wanting.
	lookOutstanding = 256
	completeAtOnce  = 4
	// lateFor is how many periods of passes what was verified is believed to have good shards where shards are: by
	// then a pass has read them again.
	lateFor = 3
)

// dropComplete takes the registers that lack nothing off tasks. A mark says merely that not all members were heard, so a
// look at what they hold tells. What a repair row names may be there and damaged: that is dropped only if a pass
// has just verified it, and the look says that nothing was written since that not all hold.
func (h *Healer) dropComplete(ctx context.Context, l *placement.Layout, tasks map[string]*task) {
	now := h.c.Now()
	var look []*task
	h.mu.Lock()
	for k, t := range tasks {
		p := h.retry[k]
		late := p != nil && p.late && (!p.over(now) || now.Sub(p.until) < lateFor*h.c.Every)
		if (late || len(t.repair) == 0) && len(look) < lookOutstanding {
			look = append(look, t)
		}
	}
	h.mu.Unlock()
	var mu sync.Mutex // guards tasks
	each(completeAtOnce, look, func(t *task) {
		if h.complete(ctx, l, t.addr) {
			mu.Lock()
			defer mu.Unlock()
			delete(tasks, t.key)
		}
	})
}

// stillSound are those of the registers, by key, of which a pass has verified everything but what is on drives that did not
// answer, and for which, as far as this process can tell, nobody has asked since, nor written. While all drives are here
// there are none: dropComplete looks at every member then.
func (h *Healer) stillSound(ctx context.Context, l *placement.Layout, tasks map[string]*task) map[string]*sound {
	here := func(num uint16) bool { _, ok := h.drive(num); return ok }
	all := true
	for _, d := range l.Drives() {
		all = all && here(d.Num)
	}
	if all {
		return nil
	}
	found := map[string]*sound{}
	h.mu.Lock()
	for k, t := range tasks {
		p := h.retry[k]
		if p == nil || p.sound == nil || len(t.unsettled) > 0 || len(t.repair) == 0 || len(found) >= lookSound ||
			slices.ContainsFunc(t.repair, func(a asked) bool {
				return !slices.ContainsFunc(p.sound.asked, func(b asked) bool { return a.num == b.num && a.at == b.at })
			}) {
			continue
		}
		found[k] = p.sound
	}
	h.mu.Unlock()
	maps.DeleteFunc(found, func(k string, is *sound) bool {
		// One that is back may lack a shard of a later chunk, and what that means for its partition no Want tells.
		return is.wide && (l.Number() != is.layout || slices.ContainsFunc(is.away, here)) || !h.holds(ctx, l, tasks[k], is)
	})
	return found
}

// lookSound is how many registers stillSound reads at a drive of this process.
const lookSound = 10_000

// holds reports whether a drive of this process with a repair row for a register still holds the state that was verified.
func (h *Healer) holds(ctx context.Context, l *placement.Layout, t *task, is *sound) bool {
	g := l.Group(l.PartitionOf(t.addr.Bucket, t.addr.Key))
	num := t.repair[0].num
	d, ok := h.drive(num)
	if !ok || g.Position(num) < 0 || g.Epoch != is.epoch {
		return false
	}
	r, err := d.Read(ctx, &metadata.ReadRequest{Header: metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: ^uint64(0)}, Address: t.addr})
	switch {
	case err != nil:
		return false
	case r.Row == nil:
		return is.state.IsZero()
	}
	return r.Row.State.ID == is.state
}

// complete reports whether all members of a register hold the same row, and every shard of it is there in its
// length. false: it is not, or it cannot be told cheaply.
func (h *Healer) complete(ctx context.Context, l *placement.Layout, a metadata.Address) bool {
	g := l.Group(l.PartitionOf(a.Bucket, a.Key))
	var row *metadata.Row
	for pos, num := range g.Drives {
		d, ok := h.drive(num)
		if !ok {
			return false
		}
		r, err := d.Read(ctx, &metadata.ReadRequest{Header: metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: ^uint64(0)}, Address: a})
		if err != nil || pos > 0 && (r.Row == nil) != (row == nil) || row != nil && r.Row.State.ID != row.State.ID {
			return false
		}
		row = r.Row
	}
	if row == nil {
		return true
	}
	incomplete := errs.E("heal.complete", errs.NotFound, "a shard is missing, or there are too many to look at")
	bodies := 0
	return h.bodies(ctx, g, a, &metadata.View{State: &row.State, Ballot: row.Ballot}, func(d *metadata.Data) error {
		if bodies++; bodies > lookBodies || d.Chunks() > lookChunks {
			return incomplete
		}
		for i := range d.Chunks() {
			if h.spareOf(ctx, l, g, d, i) < int(d.Profile.Parity) {
				return incomplete
			}
		}
		return nil
	}) == nil
}

// lists reads what one drive says wants work: repair rows, and marks that ought to be settled.
func (h *Healer) lists(ctx context.Context, d node.Drive) (map[string]*task, error) {
	by := make(map[string]*task)
	get := func(a metadata.Address) *task {
		k := string(a.AppendTo(nil))
		if by[k] == nil {
			by[k] = &task{addr: a, key: k}
		}
		return by[k]
	}
	if err := h.repairs(ctx, d, get, by); err != nil {
		return by, err
	}
	now := h.c.Now()
	old, ahead := now.Add(-settlesWithin).UnixNano(), now.Add(clockSkew).UnixNano()
	var after *metadata.Address
	for len(by) < maxPending {
		list, err := d.Unsettled(ctx, after, page)
		if err != nil {
			return by, err
		}
		for i := range list {
			if list[i].Since <= old || list[i].Since > ahead {
				t := get(list[i].Address)
				t.unsettled = append(t.unsettled, d.Num())
			}
		}
		if len(list) < page {
			return by, nil
		}
		after = &list[len(list)-1].Address
	}
	return by, nil
}

// Lost names records of which too few good shards are left, the first of them; more: there are others.
func (h *Healer) Lost() (list []metadata.Address, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.allLost()
}
