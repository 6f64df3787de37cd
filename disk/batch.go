package disk

import (
	"context"
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

const (
	// MaxBatch is the most shards that InlineShards and SealInline take at once.
	MaxBatch = 1024
	// sealBytes is about how much of a SealInline goes into the record store at a time, so that a large
	// one takes no more than a part of a write buffer.
	sealBytes = 2 << 20
)

// InlineSeal is one inline shard of a SealInline.
type InlineSeal struct {
	Address metadata.Address
	Seal    metadata.Seal
}

// InlineShards returns the inline shard rows of up to MaxBatch bodies, by position; nil where there is
// none. They are not verified: who decodes them does.
func (d *Drive) InlineShards(ctx context.Context, ids []erasure.DataID) ([][]byte, error) {
	const op = "disk.InlineShards"
	if len(ids) > MaxBatch {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("%d shards at once: the limit is %d", len(ids), MaxBatch))
	}
	ids = slices.Clone(ids) // the caller may be gone before this ends
	return call(ctx, d, op, func(ctx context.Context) ([][]byte, error) {
		out := make([][]byte, len(ids))
		for i, id := range ids {
			if err := ctx.Err(); err != nil {
				return nil, errs.Wrap(op, err)
			}
			b, err := shardSeals{d}.Inline(ctx, id)
			if err != nil {
				return nil, err
			}
			out[i] = b
		}
		return out, nil
	})
}

// SealInline makes up to MaxBatch inline shards durable with one sync, without promises: for repair,
// which writes only what is known to be chosen. It is SealShard for each, and so idempotent. When one of
// them is no valid shard, the error is errs.Corrupt and none is written; after any other error some may
// be there.
func (d *Drive) SealInline(ctx context.Context, list []InlineSeal) error {
	const op = "disk.SealInline"
	if len(list) > MaxBatch {
		return errs.E(op, errs.Invalid, fmt.Sprintf("%d shards at once: the limit is %d", len(list), MaxBatch))
	}
	for i := range list {
		if !list[i].Seal.Data.Inline() {
			return errs.E(op, errs.Invalid, fmt.Sprintf("data %s is not inline", list[i].Seal.Data.ID))
		}
		if err := verifySeal(&list[i].Seal); err != nil {
			return errs.Wrap(op, err)
		}
	}
	list = slices.Clone(list)
	return run(ctx, d, op, func(context.Context) error { return d.sealInlines(list) })
}

func (d *Drive) sealInlines(list []InlineSeal) error {
	defer d.lockShards(list)()
	b, size := new(metadata.Batch), 0
	apply := func(sync bool) error {
		if len(b.Ops) == 0 {
			return nil
		}
		err := d.store.Apply(b, sync)
		b, size = new(metadata.Batch), 0
		return err
	}
	for i := range list {
		row, err := d.inlineRow(list[i].Address, &list[i].Seal)
		if err != nil {
			return err
		}
		if row == nil {
			continue
		}
		if size >= sealBytes {
			if err := apply(false); err != nil { // the last one's sync covers it
				return err
			}
		}
		value := row.appendTo(nil)
		b.Set(shardKey(row.ID.Data, row.ID.Chunk), value)
		size += len(value)
	}
	return apply(true) // the commit point of all
}

// lockShards takes the locks of all shards of list, always in the same order, and returns what
// gives them back.
func (d *Drive) lockShards(list []InlineSeal) (unlock func()) {
	var held [len(d.shardLocks)]bool
	for i := range list {
		held[d.shardLock(shardChunk{list[i].Seal.Data.ID, 0})] = true
	}
	for i := range held {
		if held[i] {
			d.shardLocks[i].Lock()
		}
	}
	return func() {
		for i := range held {
			if held[i] {
				d.shardLocks[i].Unlock()
			}
		}
	}
}
