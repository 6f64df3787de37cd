package heal

import (
	"context"
	"slices"

	"github.com/ostraka/ostraka/metadata"
)

// lost names registers with data of which all drives together have too few good shards left. They stay
// on the work lists, as a shard may yet turn up, until they are whole again, overwritten or deleted; none is
// ever removed because it is lost. The names are kept with the state of the check, or, in a store of several
// processes, by each its own. h.mu guards it.
type lost struct {
	list    []metadata.Address // at most maxLost, in the order in which they were found
	more    bool               // there are more
	changed bool               // and that is not durable yet
}

// maxLost is how many registers are named.
const maxLost = 10

func (l *lost) index(a metadata.Address) int {
	return slices.IndexFunc(l.list, func(b metadata.Address) bool { return compareAddress(&a, &b) == 0 })
}

// found takes off the list what is whole again, or gone.
func (l *lost) found(a metadata.Address) {
	if i := l.index(a); i >= 0 {
		// Those that had no room are met again by the passes.
		l.list, l.more, l.changed = slices.Delete(l.list, i, i+1), false, true
	}
}

// lose puts a register on the list.
func (h *Healer) lose(a metadata.Address) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := &h.check.lost
	switch {
	case l.index(a) >= 0:
		return
	case len(l.list) >= maxLost:
		l.more = true
		return
	}
	l.list, l.changed, h.emptied = append(l.list, a), true, false
	h.c.Logger.Error("data is lost: too few good shards are left", "bucket", a.Bucket, "key", string(a.Key))
}

// lostNames returns the list as the state of the check keeps it.
func (h *Healer) lostNames() (names []cursor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.check.lost.changed = false
	for i := range h.check.lost.list {
		names = append(names, cursorOf(&h.check.lost.list[i]))
	}
	return names
}

// takeLost puts names on the list that were kept.
func (h *Healer) takeLost(names []cursor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := &h.check.lost
	for _, c := range names {
		if a := c.address(); a != nil && l.index(*a) < 0 && len(l.list) < maxLost {
			l.list = append(l.list, *a)
		}
	}
}

// keepLost makes the list durable if it changed.
func (h *Healer) keepLost(ctx context.Context) error {
	load, keep := h.loadCheck, h.saveCheck
	if h.c.Checks != nil {
		load, keep = h.loadOwnLost, h.saveOwnLost
	}
	if err := load(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	// All that is lost is on the work lists: if a pass found them empty, somebody deleted it unseen.
	if l := &h.check.lost; len(l.list) > 0 && h.backlog == 0 && h.emptied {
		*l = lost{changed: true}
	}
	changed := h.check.lost.changed
	h.mu.Unlock()
	if !changed {
		return nil
	}
	err := keep(ctx)
	if err != nil {
		h.mu.Lock()
		h.check.lost.changed = true
		h.mu.Unlock()
	}
	return err
}
