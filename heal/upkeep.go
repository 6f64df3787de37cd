package heal

import (
	"context"
	"errors"
	"time"

	"github.com/ostraka/ostraka/node"
)

// schedule is when something was done last for a drive; the drive keeps it.
type schedule struct {
	Last time.Time
}

// upkeep does what is due besides repairs: drives that came back are compared, tombstones dropped,
// orphans collected.
func (h *Healer) upkeep(ctx context.Context) error {
	if h.c.Layout() == nil {
		return nil
	}
	err := errors.Join(h.compareReturned(ctx))
	h.keepNoted(ctx)
	if h.paused() || ctx.Err() != nil {
		return err
	}
	err = errors.Join(err, h.dropTombs(ctx), h.judgeAside(ctx))
	err = errors.Join(err, h.letGo(ctx))
	if h.c.OrphanEvery < 0 {
		return err
	}
	for _, d := range h.local() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = errors.Join(err, h.scheduled(ctx, d, jobTombs, func() error { return h.findTombs(ctx, d, nil) }))
	}
	return errors.Join(err, h.scheduledOrphans(ctx))
}

// scheduled calls f if OrphanEvery has passed since it last succeeded for a drive, whichever process
// that was. For a drive that has never seen it the first period begins now.
func (h *Healer) scheduled(ctx context.Context, d node.Drive, name string, f func() error) error {
	var s schedule
	if err := h.load(ctx, d, name, &s); err != nil {
		return err
	}
	now := h.c.Now()
	if s.Last.IsZero() {
		return save(ctx, d, name, schedule{now})
	}
	if !passed(now, s.Last, h.c.OrphanEvery) {
		return nil
	}
	if err := f(); err != nil {
		return err
	}
	return save(ctx, d, name, schedule{now})
}

// scheduledOrphans collects the orphans of the drives on which that is due.
func (h *Healer) scheduledOrphans(ctx context.Context) error {
	l := h.c.Layout()
	seen := make(map[orphanID]bool)
	var fails []error
	for _, d := range h.local() {
		fails = append(fails, h.scheduled(ctx, d, jobOrphans, func() error {
			n, err := h.orphansOf(ctx, l, d, h.c.Now().Add(-h.c.OrphanAge), seen)
			if n > 0 {
				h.c.Logger.Info("shards that no record names were removed", "chunks", n)
			}
			return err
		}))
	}
	return errors.Join(fails...)
}
