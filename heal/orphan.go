package heal

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// orphanID names what the collection of orphans has judged in one pass.
type orphanID struct {
	data  erasure.DataID
	chunk uint32
}

// Orphans removes the shards on the local drives, older than age, that no record names: those of
// writers that died between seal and accept. Each is judged by a fenced round on its register, so that
// a writer that wakes up late finds its shards gone, or keeps them by its promise. It returns how many
// chunks were removed.
func (h *Healer) Orphans(ctx context.Context, age time.Duration) (removed int, err error) {
	l := h.c.Layout()
	if l == nil {
		return 0, nil
	}
	h.newPass()
	seen := make(map[orphanID]bool)
	var fails []error
	for _, d := range h.local() {
		n, err := h.orphansOf(ctx, l, d, h.c.Now().Add(-age), seen)
		removed += n
		fails = append(fails, err)
	}
	return removed, errs.Wrap("heal.Orphans", errors.Join(fails...))
}

// orphansOf collects the orphans of one drive. What cannot be judged, because drives do not answer, stays: it
// is counted, and comes again with the next pass.
func (h *Healer) orphansOf(ctx context.Context, l *placement.Layout, d node.Drive, before time.Time, seen map[orphanID]bool) (removed int, err error) {
	var last erasure.ShardID
	aside := 0
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.aside[d.Num()] = aside; aside == 0 {
			delete(h.aside, d.Num())
		}
	}()
	for {
		rows, err := d.ShardRows(ctx, last.Data, last.Chunk, page)
		if err != nil {
			return removed, err
		}
		for i := range rows {
			r := &rows[i]
			id := orphanID{r.ID.Data, r.ID.Chunk}
			if !r.Sealed.Before(before) || seen[id] {
				continue
			}
			if len(seen) < maxPending {
				seen[id] = true
			}
			gone, err := h.orphan(ctx, l, d, r)
			if err != nil {
				if ctx.Err() != nil {
					return removed, err
				}
				aside++
				h.c.Logger.Debug("a shard could not be judged", "drive", d.Num(), "shard", r.ID.String(), "err", err)
			}
			if gone {
				removed++
			}
		}
		if len(rows) < page {
			return removed, nil
		}
		last = rows[len(rows)-1].ID
		if err := h.pace.take(ctx, len(rows)*nominalBytes/8); err != nil {
			return removed, err
		}
	}
}

// orphan judges one shard, and removes its chunk everywhere if nothing refers to its data.
func (h *Healer) orphan(ctx context.Context, l *placement.Layout, d node.Drive, r *disk.ShardRow) (gone bool, err error) {
	if r.Address.Kind == metadata.KindPart {
		if err := h.endAborted(ctx, l, &r.Address); err != nil {
			return false, err
		}
	}
	// The drive's own row is the cheap answer to nearly all.
	if named, err := d.Names(ctx, r.Address, r.ID.Data); err != nil || named {
		return false, err
	}
	g := l.Group(l.PartitionOf(r.Address.Bucket, r.Address.Key))
	epoch, ok, err := h.c.Buckets.BucketEpoch(ctx, r.Address.Bucket)
	if err != nil {
		return false, err
	}
	if !ok {
		epoch = ^uint64(0) // no fence of a bucket that is gone stands against an empty state
	}
	view, err := h.c.Meta.Read(ctx, g, r.Address, metadata.ReadOptions{BucketEpoch: epoch})
	if err != nil {
		return false, err
	}
	named := false
	err = h.bodies(ctx, g, r.Address, view, func(b *metadata.Data) error {
		named = named || b.ID == r.ID.Data
		return nil
	})
	if err != nil || named {
		return false, err
	}
	guard, free, err := h.c.Meta.Orphan(ctx, g, r.Address, r.ID.Data, epoch)
	if err != nil || !free {
		return false, err
	}
	cg := l.Group(l.ChunkPartition(r.ID.Data, r.ID.Chunk, g.Partition))
	var fails []error
	places := holders(cg)
	if !slices.Contains(places, d.Num()) {
		places = append(places, d.Num()) // it gave its place away
	}
	for _, num := range places {
		holder, ok := h.drive(num)
		if !ok {
			continue // it judges its own when it is back
		}
		err := holder.DeleteShard(ctx, r.Address, r.ID.Data, r.ID.Chunk, guard)
		if err != nil && !errs.Is(err, errs.NotFound) {
			fails = append(fails, err)
		}
	}
	return len(fails) == 0, errors.Join(fails...)
}

// uploadNamed reports whether a version of a key names the upload of a part.
func (h *Healer) uploadNamed(ctx context.Context, g placement.Group, epoch uint64, part *metadata.Address) (named bool, err error) {
	a := metadata.Address{Kind: metadata.KindObject, Bucket: part.Bucket, Key: part.Key}
	view, err := h.c.Meta.Read(ctx, g, a, metadata.ReadOptions{BucketEpoch: epoch})
	if err != nil {
		return false, err
	}
	err = h.eachVersion(ctx, g, a, view, func(v *metadata.Version) error {
		named = named || v.Upload == part.Upload
		return nil
	})
	return named, err
}

// endAborted ends the registers of the upload of a part, if it was aborted, or is gone, and its parts were
// left behind: who ended it died before it came to them. Neither can ever be completed again.
func (h *Healer) endAborted(ctx context.Context, l *placement.Layout, part *metadata.Address) error {
	epoch, ok, err := h.c.Buckets.BucketEpoch(ctx, part.Bucket)
	if err != nil || !ok {
		return err
	}
	g := l.Group(l.PartitionOf(part.Bucket, part.Key))
	a := metadata.Address{Kind: metadata.KindUpload, Bucket: part.Bucket, Key: part.Key, Upload: part.Upload}
	view, err := h.c.Meta.Read(ctx, g, a, metadata.ReadOptions{BucketEpoch: epoch})
	if err != nil {
		return err
	}
	if view.State == nil {
		// Its tombstone is gone, or it never was: a part was chosen after its upload had ended, and whoever wrote it
		// did not live to see that. No version can come to name it. That none does was seen when the upload ended.
		switch named, err := h.uploadNamed(ctx, g, epoch, part); {
		case err != nil:
			return err
		case named:
			return errs.E("heal.endAborted", errs.Corrupt, "a version is there whose upload has no register")
		}
		return h.parts(ctx, l, g, epoch, &a, part.Upload)
	}
	if cur := view.State.Current; cur != nil && cur.Status != metadata.UploadAborted {
		if cur.Completed != nil && cur.Completed.Upload != part.Upload && h.c.Recoder != nil {
			return h.c.Recoder.EndRecode(ctx, *part)
		}
		return nil
	}
	return h.parts(ctx, l, g, epoch, &a, part.Upload)
}
