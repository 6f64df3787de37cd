package object

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// Inspect says where the rows and the shards of the current version are and how they stand. With
// verify, every shard is read, and the repair of what is missing or damaged is asked for. At most maxInspected chunks are looked at.
func (s *Store) Inspect(ctx context.Context, bucket, key string, verify bool) (*Inspection, error) {
	const op = "Inspect"
	p, err := s.locate(ctx, op, bucket, key, false)
	if err != nil {
		return nil, err
	}
	v, view, err := s.lookup(ctx, op, p, nil, false)
	if err != nil {
		return nil, err
	}
	in := &Inspection{Info: infoOf(p.bucket, key, v, true), Partition: p.group.Partition, Ballot: view.Ballot.String(),
		Rows: s.rowPlaces(ctx, p, view)}
	type body struct {
		part int
		addr metadata.Address
		data *metadata.Data
	}
	var bodies []body
	main := v.Data
	if v.Manifest != nil {
		main = v.Manifest
		parts, err := s.manifestOf(ctx, op, p, v.Upload, v.Manifest, nil)
		if err != nil {
			return nil, err
		}
		for i := range parts {
			bodies = append(bodies, body{parts[i].info.Number, p.part(v.Upload, parts[i].info.Number), &parts[i].data})
		}
	}
	if main != nil {
		in.DataID, in.Profile = main.ID.String(), main.Profile.String()
		bodies = append([]body{{0, p.object(), main}}, bodies...)
	}
	chunks := 0
	for _, b := range bodies {
		for i := range b.data.Chunks() {
			if chunks++; chunks > maxInspected {
				return in, nil
			}
			places := s.shardPlaces(ctx, p, b.part, b.data, i, verify)
			in.Shards = append(in.Shards, places...)
			if verify && slices.ContainsFunc(places, func(x ShardPlace) bool { return x.Status == ShardMissing || x.Status == ShardCorrupt }) {
				s.askRepair(p.group, b.addr) // a read would meet only the data shards
			}
		}
	}
	return in, nil
}

const maxInspected = 1000

// rowPlaces asks each member for its row.
func (s *Store) rowPlaces(ctx context.Context, p *place, view *metadata.View) []RowPlace {
	out := make([]RowPlace, len(p.group.Drives))
	each(len(out), len(out), func(i int) {
		num := p.group.Drives[i]
		out[i] = RowPlace{Drive: num, Offline: true}
		d, ok := s.drives.Shards(num)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, s.c.CallTimeout)
		defer cancel()
		r, err := d.Read(ctx, &metadata.ReadRequest{Address: p.object(),
			Header: metadata.Header{Drive: num, Partition: p.group.Partition, Epoch: p.group.Epoch, BucketEpoch: p.bucket.Epoch}})
		if err != nil {
			return
		}
		out[i].Offline = false
		out[i].Present = r.Row != nil && r.Row.State.ID == view.State.ID
		out[i].Behind = !out[i].Present
	})
	return out
}

// shardPlaces asks for the shards of one chunk.
func (s *Store) shardPlaces(ctx context.Context, p *place, part int, d *metadata.Data, chunk uint32, verify bool) []ShardPlace {
	l := s.control.Layout() // the newest: shards may have moved since the record was read
	g := l.Group(l.ChunkPartition(d.ID, chunk, p.group.Partition))
	positions := g.Places(d.Profile, d.Width, d.ID)
	out := make([]ShardPlace, len(positions))
	var wg sync.WaitGroup
	for j, pos := range positions {
		out[j] = ShardPlace{Part: part, Chunk: int(chunk), Index: j, Drive: g.Drives[pos]}
		wg.Go(func() {
			n, err := s.statShard(ctx, g.Drives[pos], d, chunk, j, verify)
			if former, ok := g.FormerAt(pos); ok && err != nil {
				// Until the shards of the position have moved, that is where this one is.
				if size, e := s.statShard(ctx, former, d, chunk, j, verify); e == nil {
					n, err, out[j].Drive = size, nil, former
				}
			}
			out[j].Bytes = n
			switch {
			case err == nil && verify:
				out[j].Status = ShardVerified
			case err == nil:
				out[j].Status = ShardPresent
			case errs.Is(err, errs.NotFound):
				out[j].Status = ShardMissing
			case errs.Is(err, errs.Corrupt):
				out[j].Status, out[j].Err = ShardCorrupt, errs.Public(err)
			default:
				out[j].Status, out[j].Err = ShardOffline, errs.Public(err)
			}
		})
	}
	wg.Wait()
	return out
}

func (s *Store) statShard(ctx context.Context, num uint16, d *metadata.Data, chunk uint32, index int, verify bool) (int64, error) {
	dr, ok := s.drives.Shards(num)
	if !ok {
		return 0, errs.E("object.Inspect", errs.Drive, fmt.Sprintf("drive %d is not there", num))
	}
	c := chunkOf(d, chunk)
	st, err := dr.StatShard(ctx, c.Shard(index))
	if err != nil {
		return 0, err
	}
	if verify && st.Inline {
		var row []byte
		if row, err = dr.InlineShard(ctx, d.ID); err == nil {
			err = erasure.VerifyInline(d.Profile, d.ID, d.Size, index, row)
		}
	} else if verify {
		err = dr.VerifyShard(ctx, c, index, nil)
	}
	return st.Row.Size, err
}

// chunkOf describes a chunk of a body, without its owner.
func chunkOf(d *metadata.Data, i uint32) erasure.Chunk {
	c := erasure.Chunk{Data: d.ID, Index: i, Profile: d.Profile, Size: d.Size}
	if !d.Inline() {
		start := int64(i) * d.ChunkSize
		c.Size = min(d.ChunkSize, d.Size-start)
	}
	return c
}
