package disk

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

const (
	exactRows   = 1024 // up to so many shard rows are counted
	sampleSpots = 16   // places of the id space that are looked at when there are more
	sampleRows  = 64   // rows read at each
)

// ShardUsage returns how many shards the drive has and how many bytes they take, inline shards
// included. Up to 1024 shards are counted; of more it is an estimate from as many, good to some per cent, since
// data ids are drawn at random. It costs the same however much the drive holds.
func (d *Drive) ShardUsage(ctx context.Context) (shards, bytes int64, err error) {
	type usage struct{ shards, bytes int64 }
	u, err := call(ctx, d, "disk.ShardUsage", func(ctx context.Context) (u usage, err error) {
		n, size, _, err := d.sampleShards(ctx, 0, exactRows+1)
		if err != nil || n <= exactRows {
			return usage{n, size}, err
		}
		var width float64
		n, size = 0, 0
		for i := range uint64(sampleSpots) {
			from := i << 60
			rows, bytes, last, err := d.sampleShards(ctx, from, sampleRows)
			if err != nil {
				return u, err
			}
			n, size = n+rows, size+bytes
			// With fewer rows than asked for, the rest of the id space is empty.
			width += float64(last-from) + 1
		}
		scale := (1 << 64) / width
		return usage{int64(float64(n) * scale), int64(float64(size) * scale)}, nil
	})
	return u.shards, u.bytes, err
}

// sampleShards adds up the next up to limit shards of which the data ids begin with from or more.
// last is what the last one's begins with, the highest number when there are no more.
func (d *Drive) sampleShards(ctx context.Context, from uint64, limit int) (n, bytes int64, last uint64, err error) {
	var id erasure.DataID
	binary.BigEndian.PutUint64(id[:], from)
	it, err := d.store.NewIter(shardKey(id, 0), []byte{nsShard + 1})
	if err != nil {
		return 0, 0, 0, err
	}
	last = ^uint64(0)
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return 0, 0, 0, errors.Join(errs.Wrap("disk.ShardUsage", err), it.Close())
		}
		if n == int64(limit) {
			break
		}
		id, chunk, ok := parseShardKey(it.Key())
		var r ShardRow
		if !ok || r.unmarshal(id, chunk, it.Value()) != nil {
			continue // who reads it by its name says so
		}
		n++
		bytes += r.Size
		if n == int64(limit) {
			last = binary.BigEndian.Uint64(id[:])
		}
	}
	return n, bytes, last, it.Close()
}
