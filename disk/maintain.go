package disk

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// DeleteShard removes the shard that the drive has of a chunk, on behalf of the collection of
// orphans or of garbage, unless a row here names the data or a promise or pin above guard may still
// come to name it: then the error is errs.Conflict. A shard that is not here is fine. The row goes
// first, synced, then the file; handles that are open stay readable.
func (d *Drive) DeleteShard(ctx context.Context, addr metadata.Address, id erasure.DataID, chunk uint32, guard metadata.Ballot) error {
	return run(ctx, d, "disk.DeleteShard", func(context.Context) error { return d.deleteShard(addr, id, chunk, guard) })
}

func (d *Drive) deleteShard(addr metadata.Address, id erasure.DataID, chunk uint32, guard metadata.Ballot) error {
	c := shardChunk{id, chunk}
	deleted, err := d.acceptor.MayDelete(addr, id, chunk, guard, func() error {
		defer d.lockShard(c).Unlock()
		row, err := d.row(c)
		if err != nil {
			return err
		}
		if row != nil {
			err = d.dropShard(c, row)
		}
		return err
	})
	if err == nil && !deleted {
		err = errs.E("disk.DeleteShard", errs.Conflict, "shard is in use, or may come to be")
	}
	if err == nil {
		// One that was never sealed goes too: whoever writes it finds it missing.
		if w := d.writer(c); w != nil {
			w.Abort()
		}
	}
	return err
}

// Drop implements metadata.Dropper.
func (d *Drive) Drop(ctx context.Context, m *metadata.DropRequest) error {
	return run(ctx, d, "disk.Drop", func(ctx context.Context) error { return d.acceptor.Drop(ctx, m) })
}

// Repairs lists registers of which row or shard may be missing somewhere; see metadata.Acceptor.
func (d *Drive) Repairs(ctx context.Context, after *metadata.Address, limit int) ([]metadata.RepairRow, error) {
	return call(ctx, d, "disk.Repairs", func(context.Context) ([]metadata.RepairRow, error) { return d.acceptor.Repairs(after, limit) })
}

// AddRepair asks for a repair, durably.
func (d *Drive) AddRepair(ctx context.Context, r metadata.RepairRow) error {
	return run(ctx, d, "disk.AddRepair", func(context.Context) error { return d.acceptor.AddRepair(r) })
}

// ClearRepair takes positions that were repaired off the list.
func (d *Drive) ClearRepair(ctx context.Context, r metadata.RepairRow) error {
	return run(ctx, d, "disk.ClearRepair", func(context.Context) error { return d.acceptor.ClearRepair(r) })
}

// Unsettled lists registers of which it is not known that all members were heard.
func (d *Drive) Unsettled(ctx context.Context, after *metadata.Address, limit int) ([]metadata.UnsettledRow, error) {
	return call(ctx, d, "disk.Unsettled", func(context.Context) ([]metadata.UnsettledRow, error) { return d.acceptor.Unsettled(after, limit) })
}

// ClearUnsettled removes the mark of a register that is settled.
func (d *Drive) ClearUnsettled(ctx context.Context, u metadata.UnsettledRow) error {
	return run(ctx, d, "disk.ClearUnsettled", func(context.Context) error { return d.acceptor.ClearUnsettled(u) })
}

// Garbage lists data that became garbage before a time by this drive's clock, oldest first. The
// drive removes its own shards of it by itself.
func (d *Drive) Garbage(ctx context.Context, before time.Time, limit int) ([]metadata.GarbageRow, error) {
	return call(ctx, d, "disk.Garbage", func(context.Context) ([]metadata.GarbageRow, error) { return d.acceptor.Garbage(before, limit) })
}

// ClearGarbage removes rows of which the shards are gone, or left to the collection of orphans.
func (d *Drive) ClearGarbage(ctx context.Context, rows []metadata.GarbageRow) error {
	return run(ctx, d, "disk.ClearGarbage", func(context.Context) error { return d.acceptor.ClearGarbage(rows) })
}

// Names reports whether a row of the register here names the data, decided or not.
func (d *Drive) Names(ctx context.Context, addr metadata.Address, id erasure.DataID) (bool, error) {
	return call(ctx, d, "disk.Names", func(context.Context) (bool, error) { return d.acceptor.Names(addr, id) })
}

const (
	garbagePage = 256
	// garbageTries is how many graces a row of garbage is tried for before its shards are left to the
	// collection of orphans, which asks a quorum.
	garbageTries = 10
)

// collect removes the shards here of garbage whose grace has passed. What has shards or parts beyond this
// drive is repair's to end: a repair row of its register takes the place of the row, whatever the clock says
// of its age, since the register's dead list announces nothing again.
func (d *Drive) collect(ctx context.Context) error {
	now := d.o.Now()
	for {
		rows, err := d.Garbage(ctx, now.Add(-d.o.Grace), garbagePage)
		if err != nil {
			return err
		}
		var done []metadata.GarbageRow
		for _, g := range rows {
			gone, err := d.collectData(ctx, &g)
			if err != nil {
				return err
			}
			wide := g.Dead.Manifest || g.Dead.Data.Chunks() > 1
			switch {
			case wide && g.Address.Kind != metadata.KindPart:
				err := d.AddRepair(ctx, metadata.RepairRow{Address: g.Address, Partition: g.Partition, Positions: []uint8{0}})
				if err != nil {
					return err
				}
				done = append(done, g)
			case gone && !wide || now.Sub(time.Unix(0, g.At)) > garbageTries*d.o.Grace:
				// A part's register lists nothing as dead once it is gone: the row waits for repair as long as
				// it may, and what is left is an orphan.
				done = append(done, g)
			}
		}
		if err := d.ClearGarbage(ctx, done); err != nil {
			return err
		}
		if len(rows) < garbagePage || len(done) == 0 {
			return nil
		}
	}
}

// collectData removes all shards here of one dead body; gone is false when one had to stay. A manifest
// stays: its upload names it until repair has ended that.
func (d *Drive) collectData(ctx context.Context, g *metadata.GarbageRow) (gone bool, err error) {
	if g.Dead.Manifest {
		return false, nil
	}
	id := g.Dead.Data.ID
	chunks, err := d.chunksOf(id)
	if err != nil {
		return false, err
	}
	gone = true
	for _, c := range chunks {
		if ctx.Err() != nil {
			return false, errs.Wrap("disk.collect", ctx.Err())
		}
		err := d.DeleteShard(ctx, g.Address, id, c, g.Guard)
		if errs.Is(err, errs.Conflict) {
			gone = false
		} else if err != nil {
			return false, err
		}
	}
	return gone, nil
}

// chunksOf lists the chunks of a body that the drive has a shard of.
func (d *Drive) chunksOf(id erasure.DataID) (chunks []uint32, err error) {
	it, err := d.store.NewIter(shardKey(id, 0), append(shardKey(id, ^uint32(0)), 0))
	if err != nil {
		return nil, err
	}
	for ok := it.First(); ok; ok = it.Next() {
		if _, chunk, ok := parseShardKey(it.Key()); ok {
			chunks = append(chunks, chunk)
		}
	}
	return chunks, it.Close()
}
