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

// What a drive holds of positions that it gave away, and of which all shards have moved, it lets go of: each
// shard once the register that names it was read, and the one in its place was verified.

// leftState is what a drive keeps of it.
type leftState struct {
	Layout uint64    // all shards were looked at as of this layout
	Seen   uint64    // the newest layout that was met, by this drive
	Since  time.Time // when
}

// letGo removes what the local drives hold of positions that have moved away, once nothing is moving any more, and
// gateways have had the grace of readers to learn of it.
func (h *Healer) letGo(ctx context.Context) error {
	l := h.c.Layout()
	if h.c.Moves == nil || h.planOpen() {
		return nil
	}
	var fails []error
	for _, d := range h.local() {
		fails = append(fails, h.letGoOf(ctx, l, d))
	}
	return errs.Wrap("heal.letGo", errors.Join(fails...))
}

func (h *Healer) letGoOf(ctx context.Context, l *placement.Layout, d node.Drive) error {
	var s leftState
	if err := h.load(ctx, d, jobLeft, &s); err != nil || s.Layout == l.Number() {
		return err
	}
	now := h.c.Now()
	if s.Seen != l.Number() {
		s.Seen, s.Since = l.Number(), now
		return save(ctx, d, jobLeft, &s)
	}
	if !passed(now, s.Since, h.c.Grace) {
		return nil
	}
	removed, left, err := h.displacedOn(ctx, l, d)
	if removed > 0 {
		h.c.Logger.Info("shards that have moved to other drives were removed", "drive", d.Num(), "shards", removed)
	}
	if err != nil || left > 0 {
		return err
	}
	s.Layout = l.Number()
	return save(ctx, d, jobLeft, &s)
}

// displacedOn goes through all shards of a drive. left counts those that cannot be removed yet.
func (h *Healer) displacedOn(ctx context.Context, l *placement.Layout, d node.Drive) (removed, left int, err error) {
	var last erasure.ShardID
	for {
		rows, err := d.ShardRows(ctx, last.Data, last.Chunk, page)
		if err != nil {
			return removed, left, err
		}
		for i := range rows {
			if !displaced(l, d.Num(), &rows[i]) {
				continue
			}
			switch gone, err := h.removeDisplaced(ctx, l, d, &rows[i]); {
			case ctx.Err() != nil:
				return removed, left, ctx.Err()
			case gone:
				removed++
			case err != nil:
				left++
				h.c.Logger.Debug("a shard that has moved stays for now", "drive", d.Num(), "shard", rows[i].ID.String(), "err", err)
			}
		}
		if len(rows) < page {
			return removed, left, nil
		}
		last = rows[len(rows)-1].ID
		if err := h.pace.take(ctx, len(rows)*nominalBytes/8); err != nil {
			return removed, left, err
		}
	}
}

// displaced reports whether a drive is neither a member nor a former one of the partition of a shard.
func displaced(l *placement.Layout, num uint16, r *disk.ShardRow) bool {
	g := l.Group(l.ChunkPartition(r.ID.Data, r.ID.Chunk, l.PartitionOf(r.Address.Bucket, r.Address.Key)))
	return g.Position(num) < 0 && !slices.Contains(g.Former, num)
}

// removeDisplaced removes a shard of which the drive is no place. What its register names must be verified where
// it belongs; what it does not name is left to the collection of orphans.
func (h *Healer) removeDisplaced(ctx context.Context, l *placement.Layout, d node.Drive, r *disk.ShardRow) (gone bool, err error) {
	const op = "heal.removeDisplaced"
	a := r.Address
	g := l.Group(l.PartitionOf(a.Bucket, a.Key))
	view, err := h.c.Meta.Read(ctx, g, a, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
	if err != nil {
		return false, err
	}
	var data *metadata.Data
	err = h.bodies(ctx, g, a, view, func(b *metadata.Data) error {
		if b.ID == r.ID.Data {
			c := *b
			data = &c
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	if data == nil {
		return false, nil
	}
	cg := chunkGroup(l, g, data, r.ID.Chunk)
	places, err := placesOf(cg, data)
	if err != nil {
		return false, err
	}
	if int(r.ID.Index) >= len(places) {
		return false, errs.E(op, errs.Corrupt, "a shard of an index that its body does not have")
	}
	if _, moving := cg.FormerAt(places[r.ID.Index]); moving {
		return false, errs.E(op, errs.Busy, "the shards of the position are moving")
	}
	to, ok := h.drive(cg.Drives[places[r.ID.Index]])
	if !ok {
		return false, errs.E(op, errs.Unavailable, "the drive where the shard belongs is away")
	}
	if err := h.verify(ctx, to, chunkOf(a, data, r.ID.Chunk), int(r.ID.Index)); err != nil {
		return false, errors.Join(err, h.askRepair(ctx, a))
	}
	if h.c.Layout() != l {
		return false, errs.E(op, errs.Stale, "the layout has changed meanwhile")
	}
	// The row of this drive may name the body, if it holds another chunk or the key: it says nothing of where this
	// shard lies. So no row is asked.
	err = d.DeleteShard(ctx, nobody, r.ID.Data, r.ID.Chunk, metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)})
	return err == nil || errs.Is(err, errs.NotFound), err
}

// nobody is the address of a register that there is not: buckets count from 1.
var nobody = metadata.Address{Kind: metadata.KindObject, Key: []byte("displaced")}

// namedBy reports whether the chosen record of a register names a body, or has let go of it: then nobody proposes it
// again.
func (h *Healer) namedBy(ctx context.Context, g placement.Group, a metadata.Address, id erasure.DataID) (named, dead bool, err error) {
	view, err := h.c.Meta.Read(ctx, g, a, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
	if err != nil {
		return false, false, err
	}
	if view.State != nil {
		dead = slices.ContainsFunc(view.State.Dead, func(d metadata.DeadData) bool { return d.Data.ID == id })
	}
	err = h.bodies(ctx, g, a, view, func(b *metadata.Data) error {
		named = named || b.ID == id
		return nil
	})
	return named, dead && !named, err
}
