package heal

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// A drive that was away is brought up to date from what differs. When nothing differs, nothing is scanned. Where a slice
// of the keys differs, the drives that share it pass over all their heads to find its rows: they stand in the order of keys.
//
// Rows: every accept leaves a mark on the drives that took it, and the mark goes only once all members
// were heard, or a repair row names those that were not. So the lists of the others name each register of
// which the drive missed a write. Digests prove it: one exchange compares all slices, and only the rows
// of slices that differ are compared.
//
// Shards: a drive lacks shards of what was written while it was away. Such a write was not settled with
// it: Seal and Accept go to the same drives, and a position that did not answer, or answered without its
// shard, is named by the same repair row; so is every position when a later chunk is not on all its
// members (Operation.Lacking). The row stays until each shard of each body was read back on its drive. What
// was there before it went, it still has: whatever took shards from it meanwhile would be damage, which
// is for the scrub to find. So shards need no comparison of their own.
type returned struct {
	here map[uint16]bool // local drives, at the last look
	todo map[uint16]bool // came back, and were not compared since
	// times counts how often a drive came back: a comparison during which it did so again proves nothing.
	times map[uint16]uint64
	away  map[uint16]bool // drives of the layout, of any process, that were away at the last look
	// judge: what was set aside because drives were away is to be looked at again.
	judge bool
	// epochs is the number of the layout for which the members were seen to be installed; 0: they are to be
	// looked at.
	epochs uint64
}

// add takes note of a drive that came back. The healer's mutex is held.
func (r *returned) add(num uint16) {
	r.todo[num] = true
	r.times[num]++
}

// Returned says that a local drive was away and is back. It triggers a pass.
func (h *Healer) Returned(num uint16) {
	h.mu.Lock()
	h.returned.add(num)
	h.judgeAgain()
	h.mu.Unlock()
	if l := h.c.Layout(); l != nil && placed(l, num) { // one that was added has nothing that could have been missed
		h.taint("a drive was away")
	}
	h.Trigger()
	h.kick(h.back)
}

// lookAround notices local drives that came or went.
func (h *Healer) lookAround(ctx context.Context) {
	local := h.c.Local()
	h.lookForRoom(ctx, local)
	h.mu.Lock()
	now := make(map[uint16]bool, len(local))
	for _, d := range local {
		now[d.Num()] = true
		if !h.returned.here[d.Num()] {
			h.returned.add(d.Num())
			h.judgeAgain()
			clear(h.retry) // what waits, waits for drives
			h.kick(h.back)
		}
	}
	h.returned.here = now
	h.mu.Unlock()
	l := h.c.Layout()
	h.forgetAside(l, now)
	away := make(map[uint16]bool)
	for _, m := range l.Drives() {
		if _, ok := h.c.Drives.Shards(m.Num); !ok && placed(l, m.Num) {
			away[m.Num] = true
		}
	}
	if len(away) > 0 {
		h.taint("a drive was away")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for num := range h.returned.away {
		if !away[num] {
			h.judgeAgain()
		}
	}
	h.returned.away = away
}

// forgetAside forgets what was set aside on drives that are neither here nor in the layout: they have been replaced,
// or have given all away, and nobody waits for what they held.
func (h *Healer) forgetAside(l *placement.Layout, here map[uint16]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for num := range h.aside {
		if _, member := l.Drive(num); !member && !here[num] {
			delete(h.aside, num)
		}
	}
}

// judgeAgain asks for another look at the shards that were set aside. The mutex is held.
func (h *Healer) judgeAgain() {
	if len(h.aside) > 0 {
		h.returned.judge = true
		h.kick(h.back)
	}
}

// judgeAside looks again at the drives whose orphans could not be judged, once a drive is back: they would
// count as blocked until the next collection.
func (h *Healer) judgeAside(ctx context.Context) error {
	h.mu.Lock()
	var list []uint16
	if h.returned.judge {
		list = slices.Collect(maps.Keys(h.aside))
	}
	h.returned.judge = false
	h.mu.Unlock()
	l, seen := h.c.Layout(), make(map[orphanID]bool)
	var fails []error
	for _, d := range h.local() {
		if slices.Contains(list, d.Num()) {
			_, err := h.orphansOf(ctx, l, d, h.c.Now().Add(-h.c.OrphanAge), seen)
			fails = append(fails, err)
		}
	}
	err := errors.Join(fails...)
	if err != nil {
		h.mu.Lock()
		h.returned.judge = true
		h.mu.Unlock()
	}
	return err
}

// compareReturned brings the drives that came back up to date.
func (h *Healer) compareReturned(ctx context.Context) error {
	h.mu.Lock()
	var todo []uint16
	times := make(map[uint16]uint64)
	for num := range h.returned.todo {
		todo = append(todo, num)
		times[num] = h.returned.times[num]
	}
	h.mu.Unlock()
	slices.Sort(todo)
	l := h.c.Layout()
	fails := []error{h.join(ctx, l, todo)}
	for _, num := range todo {
		if _, member := l.Drive(num); member {
			d, ok := h.drive(num)
			if !ok {
				continue
			}
			if err := h.compare(ctx, l, d); err != nil {
				fails = append(fails, err)
				continue
			}
		}
		h.mu.Lock()
		if h.returned.times[num] == times[num] {
			delete(h.returned.todo, num)
		} else {
			h.kick(h.back)
		}
		h.mu.Unlock()
	}
	return errors.Join(fails...)
}

// join installs the epochs of partitions whose members changed while one was away, or hung. All local drives are
// looked at when the layout is new, else those that came back.
func (h *Healer) join(ctx context.Context, l *placement.Layout, returned []uint16) error {
	h.mu.Lock()
	all := h.returned.epochs != l.Number()
	h.mu.Unlock()
	var fails []error
	answers := make(map[uint16]bool)
	for _, d := range h.local() {
		answers[d.Num()] = true
		if _, member := l.Drive(d.Num()); !member || !all && !slices.Contains(returned, d.Num()) {
			continue
		}
		var groups []placement.Group
		partitions := l.PartitionsOf(d.Num())
		partitions = slices.DeleteFunc(partitions, func(p uint32) bool { return l.Group(p).Epoch <= 1 })
		if len(partitions) == 0 {
			continue
		}
		epochs, err := d.Installed(ctx, partitions)
		for i := 0; err == nil && i < len(epochs); i++ {
			if g := l.Group(partitions[i]); epochs[i] < g.Epoch {
				groups = append(groups, g)
			}
		}
		if err == nil && len(groups) > 0 {
			err = h.c.Mover.Join(ctx, d.Num(), groups)
		}
		fails = append(fails, err)
	}
	err := errors.Join(fails...)
	// A drive that hangs was not looked at. It has never left, so nobody says that it came back.
	hangs := slices.ContainsFunc(h.c.Local(), func(d node.Drive) bool { return !answers[d.Num()] })
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.returned.epochs = l.Number(); err != nil || hangs {
		h.returned.epochs = 0 // once enough members answer: whoever is not installed does not serve
	}
	return err
}

// compare finds out what a drive lacks, and leaves repair rows for it.
func (h *Healer) compare(ctx context.Context, l *placement.Layout, d node.Drive) error {
	all, _ := h.members(l)
	var here []node.Drive
	for _, o := range all {
		switch late, err := h.incomplete(ctx, o); {
		case err != nil:
			return err
		case !late:
			here = append(here, o)
		case o.Num() == d.Num():
			return nil // the rebuild brings it up
		}
	}
	differ, err := h.differing(ctx, l, d, here)
	if err != nil || len(differ) == 0 {
		return err
	}
	n := 0
	err = h.walkSlices(ctx, l, here, differ, func(list []held) error {
		for i := range list {
			r := &list[i]
			// What has yet to come to a position that is moving, its mover brings.
			moving := func(num uint16) bool {
				_, ok := r.group.FormerAt(r.group.Position(num))
				return ok
			}
			if r.unsettled || r.group.Position(d.Num()) < 0 || moving(d.Num()) || r.equal(func(num uint16) bool {
				return !moving(num) && slices.ContainsFunc(here, func(d node.Drive) bool { return d.Num() == num })
			}) {
				continue // the mark names it
			}
			n++
			if err := h.askRepair(ctx, r.addr); err != nil {
				return err
			}
		}
		return nil
	})
	if n > 0 {
		h.c.Logger.Info("a drive that came back differs from the others", "drive", d.Num(), "slices", len(differ), "registers", n)
		h.Nudge()
	}
	return err
}

// slicesOf returns the partitions whose registers lie in a slice of the digests, as first and count.
func slicesOf(l *placement.Layout, slice uint16) (first, count uint32) {
	if bits := int(l.Bits()); bits > placement.SliceBits {
		extra := bits - placement.SliceBits
		return uint32(slice) << extra, 1 << extra
	}
	return uint32(slice) >> (placement.SliceBits - int(l.Bits())), 1
}

// differing returns the slices, ascending, in which a drive holds other rows than another member does. Of
// slices with several partitions only those count that have the same members, or all are returned.
//
// Digests of several drives are not read in one moment, so a slice that is being written differs now and then. One that
// was equal once needs no look: digestLooks looks, and what differed in each.
func (h *Healer) differing(ctx context.Context, l *placement.Layout, d node.Drive, others []node.Drive) ([]uint16, error) {
	list, err := h.differingOnce(ctx, l, d, others)
	for i := 1; i < digestLooks && err == nil && len(list) > 0; i++ {
		if !sleep(ctx, digestPause) {
			return nil, ctx.Err()
		}
		var again []uint16
		again, err = h.differingOnce(ctx, l, d, others)
		list = slices.DeleteFunc(list, func(s uint16) bool { _, still := slices.BinarySearch(again, s); return !still })
	}
	return list, err
}

const (
	digestLooks = 3
	digestPause = 100 * time.Millisecond
)

func (h *Healer) differingOnce(ctx context.Context, l *placement.Layout, d node.Drive, others []node.Drive) ([]uint16, error) {
	own, err := d.Digests(ctx)
	if err != nil {
		return nil, err
	}
	differ := make([]bool, placement.Slices)
	for _, o := range others {
		if o.Num() == d.Num() {
			continue
		}
		theirs, err := o.Digests(ctx)
		if err != nil {
			return nil, err
		}
		if len(own) != len(differ) || len(theirs) != len(differ) {
			return nil, errs.E("heal.compare", errs.Internal, "not as many digests as there are slices")
		}
		for s := range differ {
			if differ[s] || own[s] == theirs[s] {
				continue
			}
			first, count := slicesOf(l, uint16(s))
			for p := first; p < first+count; p++ {
				g := l.Group(p)
				if g.Position(d.Num()) >= 0 && (g.Position(o.Num()) >= 0 || count > 1) {
					differ[s] = true
					break
				}
			}
		}
	}
	var list []uint16
	for s, yes := range differ {
		if yes {
			list = append(list, uint16(s))
		}
	}
	return list, nil
}

// walkSlices calls f with all registers of some slices, page by page.
func (h *Healer) walkSlices(ctx context.Context, l *placement.Layout, drives []node.Drive, only []uint16, f func([]held) error) error {
	var after *metadata.Address
	for {
		w, err := h.walk(ctx, l, drives, after, only)
		if err != nil {
			return err
		}
		if err := h.pace.take(ctx, len(w.list)*nominalBytes); err != nil {
			return err
		}
		if err := f(w.list); err != nil {
			return err
		}
		if !w.more {
			return nil
		}
		after = w.next
	}
}
