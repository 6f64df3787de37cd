package sim

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// control is the control plane as the rest of the stack uses it.
type control interface {
	object.Control
	heal.Control
	BucketByID(id uint64) (object.Bucket, bool)
	Replacements() []cluster.Replacement
	Retired(num uint16) bool
	BeginReplace(ctx context.Context, old uint16, d placement.Drive, path string) (cluster.Replacement, error)
}

// raftControl is the real control plane. Its heartbeats cost a run of many virtual hours too much,
// so that only some runs have it.
type raftControl struct{ *cluster.Control }

func (c raftControl) Layout() *placement.Layout { return c.State().Layout() }

func (c raftControl) Bucket(name string) (object.Bucket, bool) {
	b, ok := c.State().Bucket(name)
	return bucketOf(b), ok
}

func (c raftControl) BucketByID(id uint64) (object.Bucket, bool) {
	b, ok := c.State().BucketByID(id)
	return bucketOf(b), ok
}

func (c raftControl) Buckets() (out []object.Bucket) {
	for _, b := range c.State().Buckets() {
		out = append(out, bucketOf(b))
	}
	return out
}

func (c raftControl) CreateBucket(ctx context.Context, b object.Bucket) (object.Bucket, error) {
	made, err := c.Control.CreateBucket(ctx, cluster.Bucket{Name: b.Name, Owner: b.Owner, Region: b.Region, Created: b.Created.UnixNano(),
		Versioning: cluster.Versioning(b.Versioning), ObjectLock: b.ObjectLock, Config: b.Config})
	if was, ok := cluster.ExistingBucket(err); ok {
		made = was
	}
	return bucketOf(made), err
}

func (c raftControl) SetVersioning(ctx context.Context, id uint64, v object.Versioning) error {
	return c.Control.SetVersioning(ctx, id, cluster.Versioning(v))
}

func bucketOf(b cluster.Bucket) object.Bucket {
	return object.Bucket{ID: b.ID, Name: b.Name, Owner: b.Owner, Region: b.Region, Created: time.Unix(0, b.Created).UTC(),
		Versioning: object.Versioning(b.Versioning), ObjectLock: b.ObjectLock, Config: b.Config, Deleting: b.Deleting, Epoch: b.Epoch}
}

// tableControl is a control plane that never fails and forgets nothing, not even when the process dies.
type tableControl struct {
	// mu guards the fields below.
	mu      sync.Mutex
	layout  *placement.Layout
	last    uint64
	buckets map[string]object.Bucket
	moves   replacements
}

func (c *tableControl) Layout() *placement.Layout {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.layout
}

func (c *tableControl) Refresh(ctx context.Context) error { return ctx.Err() }

func (c *tableControl) Bucket(name string) (object.Bucket, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.buckets[name]
	return b, ok
}

func (c *tableControl) BucketByID(id uint64) (object.Bucket, bool) {
	for _, b := range c.Buckets() {
		if b.ID == id {
			return b, true
		}
	}
	return object.Bucket{}, false
}

func (c *tableControl) Buckets() (out []object.Bucket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(c.buckets)) {
		out = append(out, c.buckets[n])
	}
	return out
}

func (c *tableControl) CreateBucket(_ context.Context, b object.Bucket) (object.Bucket, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.buckets[b.Name]; ok {
		return have, errs.E("sim", errs.Exists, "the bucket exists")
	}
	c.last++
	b.ID, b.Epoch = c.last, 1
	c.buckets[b.Name] = b
	return b, nil
}

func (c *tableControl) edit(id uint64, f func(*object.Bucket) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, b := range c.buckets {
		if b.ID == id {
			err := f(&b)
			c.buckets[n] = b
			return err
		}
	}
	return errs.E("sim", errs.NotFound, "no such bucket")
}

func (c *tableControl) BeginDeleteBucket(_ context.Context, id uint64) (epoch uint64, err error) {
	err = c.edit(id, func(b *object.Bucket) error {
		if b.Deleting {
			return errs.E("sim", errs.Busy, "the bucket is being deleted")
		}
		b.Deleting = true
		b.Epoch++
		epoch = b.Epoch
		return nil
	})
	return epoch, err
}

func (c *tableControl) FinishDeleteBucket(_ context.Context, id, epoch uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, b := range c.buckets {
		switch {
		case b.ID != id:
		case b.Epoch != epoch || !b.Deleting:
			return errs.E("sim", errs.Stale, "the deletion was given up")
		default:
			delete(c.buckets, n)
			return nil
		}
	}
	return errs.E("sim", errs.NotFound, "no such bucket")
}

func (c *tableControl) ReopenBucket(_ context.Context, id, epoch uint64) error {
	return c.edit(id, func(b *object.Bucket) error {
		if b.Epoch == epoch && b.Deleting {
			b.Deleting = false
			b.Epoch++
		}
		return nil
	})
}

func (c *tableControl) SetVersioning(_ context.Context, id uint64, v object.Versioning) error {
	return c.edit(id, func(b *object.Bucket) error { b.Versioning = v; return nil })
}

func (c *tableControl) SetBucketConfig(_ context.Context, id uint64, doc string, value []byte) error {
	return c.edit(id, func(b *object.Bucket) error {
		m := maps.Clone(b.Config)
		if m == nil {
			m = map[string][]byte{}
		}
		m[doc] = value
		b.Config = m
		return nil
	})
}
