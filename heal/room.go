package heal

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/node"
)

// room is what is known of drives that have none. Registers that a full drive holds up wait longer and
// longer; once it has room again they are tried at once.
type room struct {
	short bool            // a repair failed for want of room, since drives were last looked at
	full  map[uint16]bool // local drives that were full then
	again bool            // one of them has room again, and nobody was told
	told  time.Time
}

// roomPause is how often at most what waits for room is tried before its pause is over: another drive, of
// which nothing can be known here, may be the full one.
const roomPause = time.Minute

// lookForRoom notices local drives that were full and are not. While nothing waits for room, no
// drive is asked.
func (h *Healer) lookForRoom(ctx context.Context, local []node.Drive) {
	h.mu.Lock()
	ask := h.room.short || len(h.room.full) > 0
	h.mu.Unlock()
	full := make(map[uint16]bool)
	for i := 0; ask && i < len(local); i++ {
		if h.isFull(ctx, local[i]) {
			full[local[i].Num()] = true
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &h.room
	r.again = r.again || r.short && len(full) == 0
	for num := range r.full {
		r.again = r.again || !full[num]
	}
	r.short, r.full = r.short && ctx.Err() != nil, full
	now := h.c.Now()
	if !r.again || !r.told.IsZero() && !passed(now, r.told, roomPause) {
		return
	}
	r.again, r.told = false, now
	for _, p := range h.retry {
		if p.full {
			p.until, p.length = time.Time{}, firstPause/2
		}
	}
}

// isFull reports whether a local drive says that it is full.
func (h *Healer) isFull(ctx context.Context, d node.Drive) bool {
	i, ok := d.(interface{ Info() disk.DriveInfo })
	if !ok {
		return false
	}
	info, err := ask(ctx, bounded{d, h}, 0, func(context.Context) (disk.DriveInfo, error) { return i.Info(), nil }, nil)
	return err == nil && info.State == disk.StateFull
}
