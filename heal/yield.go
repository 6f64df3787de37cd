package heal

import (
	"context"
	"maps"
	"time"

	"github.com/ostraka/ostraka/metadata"
)

// A drive takes the fence of a bucket's deletion only while none of its partitions is between two epochs. Batch after
// batch would leave it no such moment, so a batch is not begun while a deletion is under way, for at most this long for
// each deletion: far longer than a deletion takes that can succeed, and less than it is tried (object.Store.DeleteBucket).
const (
	deletionGoesFirst = 3 * time.Second
	deletionLook      = 20 * time.Millisecond
)

// letDeletionsThrough waits before a batch of partitions changes its members.
func (h *Healer) letDeletionsThrough(ctx context.Context) {
	if h.c.Deletions == nil {
		return
	}
	for {
		if !h.deletionWaits(h.c.Deletions(), deletionLook) || !sleep(ctx, deletionLook) {
			return
		}
	}
}

// deletionWaits reports whether one of the deletions that are under way is to be let through, and counts a wait of d.
func (h *Healer) deletionWaits(list []metadata.Fence, d time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	under := make(map[metadata.Fence]bool, len(list))
	waits := false
	for _, f := range list {
		under[f] = true
		waits = waits || h.yielded[f] < deletionGoesFirst
	}
	maps.DeleteFunc(h.yielded, func(f metadata.Fence, _ time.Duration) bool { return !under[f] })
	if !waits {
		return false
	}
	if h.yielded == nil {
		h.yielded = make(map[metadata.Fence]time.Duration)
	}
	for f := range under {
		h.yielded[f] += d
	}
	return true
}
