package heal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"slices"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

func mapKeys[V any](m map[int]V) iter.Seq[int] { return maps.Keys(m) }

// createShard begins a shard in place of whatever the drive has under its id.
func createShard(ctx context.Context, d node.Drive, c erasure.Chunk, j int, size int64) (disk.ShardWriter, error) {
	return d.CreateShard(ctx, disk.ShardSpec{ID: c.Shard(j), FileSize: size, Owner: c.Owner, Replace: true})
}

// remains ends what the drives cannot end alone: the dead list of a register, bodies with later chunks and
// the parts of dead manifests. done is false while anything of it has to wait. Once the bucket is deleted,
// the list cannot be changed any more, and the grace of each body ends only once: one that began anew with its
// removal would have the others wait for it, in turn, for ever.
func (h *Healer) remains(ctx context.Context, a metadata.Address, st *metadata.State, deleted bool) (done bool, err error) {
	if st == nil || a.Kind == metadata.KindPart && st.Current != nil {
		return true, nil // while its upload is open, a completion may name what a part has let go of
	}
	done = true
	var fails []error
	for i := range st.Dead {
		d := &st.Dead[i]
		if !wide(d) {
			continue
		}
		if !h.graceOver(d.Data.ID) {
			done = false
			continue
		}
		// What a chosen state lets go of can never be proposed again: no ballot stands against it.
		err := h.dead(ctx, &metadata.GarbageRow{Address: a, Dead: *d, Guard: metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}})
		if err != nil {
			done = false
			fails = append(fails, err)
			continue
		}
		if !deleted {
			h.forget(d.Data.ID)
		}
	}
	if deleted && done {
		for i := range st.Dead {
			if wide(&st.Dead[i]) {
				h.forget(st.Dead[i].Data.ID)
			}
		}
	}
	return done, errors.Join(fails...)
}

// dead removes all shards of one dead body, its parts first, and then takes it off the dead list
// of its register.
func (h *Healer) dead(ctx context.Context, r *metadata.GarbageRow) error {
	const op = "heal.dead"
	l := h.c.Layout()
	g := l.Group(l.PartitionOf(r.Address.Bucket, r.Address.Key))
	epoch, ok, err := h.c.Buckets.BucketEpoch(ctx, r.Address.Bucket)
	if err != nil {
		return errs.Wrap(op, err)
	}
	if r.Dead.Manifest && ok {
		if err := h.parts(ctx, l, g, epoch, &r.Address, r.Dead.Upload); err != nil {
			return errs.Wrap(op, err)
		}
	}
	var away error
	for i := range r.Dead.Data.Chunks() {
		cg := g
		if i > 0 {
			cg = l.Group(l.ChunkPartition(r.Dead.Data.ID, i, g.Partition))
		}
		for _, num := range holders(cg) {
			d, ok := h.drive(num)
			if _, there := l.Drive(num); !there || h.c.Retired(num) {
				continue // a member, or a former one, that is lost
			}
			if !ok {
				away = errs.E(op, errs.Unavailable, "a drive that may hold garbage is away")
				continue
			}
			if err := d.DeleteShard(ctx, r.Address, r.Dead.Data.ID, i, r.Guard); err != nil {
				return errs.Wrap(op, err)
			}
		}
	}
	if away != nil || !ok {
		return away
	}
	return errs.Wrap(op, h.clearDead(ctx, g, epoch, r))
}

// holders returns the drives that may have shards of a chunk: its members, and former ones whose shards are
// moving.
func holders(g placement.Group) []uint16 {
	list := slices.Clone(g.Drives)
	for _, num := range g.Former {
		if num != 0 {
			list = append(list, num)
		}
	}
	return list
}

// parts ends the registers of an upload whose object is gone: first its parts, by tombstones that
// let go of their data, then the upload itself.
func (h *Healer) parts(ctx context.Context, l *placement.Layout, g placement.Group, epoch uint64, a *metadata.Address, upload metadata.UploadID) error {
	var away []uint16
	for _, d := range l.Drives() {
		if _, ok := h.drive(d.Num); !ok {
			away = append(away, d.Num)
		}
	}
	cover, err := l.Cover(0, away...)
	if err != nil {
		return err
	}
	from := uint32(1)
	for {
		p, err := h.c.Meta.Scan(ctx, cover, metadata.ScanOptions{Kind: metadata.KindPart, Bucket: a.Bucket, BucketEpoch: epoch,
			Prefix: a.Key, Upload: upload, From: from, Limit: 1000})
		if err != nil {
			return err
		}
		for i := range p.Items {
			if err := h.bury(ctx, g, epoch, p.Items[i].Address); err != nil {
				return err
			}
			from = p.Items[i].Address.Part + 1
		}
		if !p.Truncated || len(p.Items) == 0 {
			break
		}
	}
	return h.bury(ctx, g, epoch, metadata.Address{Kind: metadata.KindUpload, Bucket: a.Bucket, Key: a.Key, Upload: upload})
}

// bury makes a register's state a tombstone. An object's is one only in a bucket that was deleted, and then it has
// no older versions: the bucket was found empty of them. One that has is left alone.
func (h *Healer) bury(ctx context.Context, g placement.Group, epoch uint64, a metadata.Address) error {
	_, err := h.c.Meta.Update(ctx, g, a, metadata.Operation{ID: newOpID(), BucketEpoch: epoch,
		Apply: func(base *metadata.State, _ []metadata.Version) (*metadata.Change, error) {
			if base == nil || base.Current == nil || base.Older > 0 {
				return nil, errNothing
			}
			if a.Kind == metadata.KindObject {
				c := &metadata.Change{NextSeq: base.NextSeq}
				switch v := base.Current; {
				case v.Manifest != nil:
					c.Dead = []metadata.DeadData{{Data: *v.Manifest, Manifest: true, Upload: v.Upload}}
				case v.Data != nil:
					c.Dead = []metadata.DeadData{{Data: *v.Data}}
				}
				return c, nil
			}
			// A part's dead list keeps data: it goes empty, so that all of it becomes garbage.
			c := &metadata.Change{NextSeq: base.NextSeq}
			for i := range base.Dead {
				c.ClearDead = append(c.ClearDead, base.Dead[i].Data.ID)
			}
			return c, nil
		}})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// errNothing ends an operation that has nothing to change.
var errNothing = errs.E("heal.apply", errs.Precondition, "nothing to change")

// clearDead takes data off the dead list of its register.
func (h *Healer) clearDead(ctx context.Context, g placement.Group, epoch uint64, r *metadata.GarbageRow) error {
	_, err := h.c.Meta.Update(ctx, g, r.Address, metadata.Operation{ID: newOpID(), BucketEpoch: epoch,
		Apply: func(base *metadata.State, _ []metadata.Version) (*metadata.Change, error) {
			if base == nil {
				return nil, errNothing
			}
			listed := false
			for i := range base.Dead {
				listed = listed || base.Dead[i].Data.ID == r.Dead.Data.ID
			}
			if !listed {
				return nil, errNothing
			}
			return &metadata.Change{Current: base.Current, Older: base.Older, NextSeq: base.NextSeq, NullSeq: base.NullSeq,
				ClearDead: []erasure.DataID{r.Dead.Data.ID}}, nil
		}})
	if errors.Is(err, errNothing) {
		return nil
	}
	return err
}

// newOpID draws the id of an operation.
func newOpID() metadata.OpID {
	var b [8]byte
	rand.Read(b[:])
	return metadata.OpID(binary.BigEndian.Uint64(b[:]) | 1)
}
