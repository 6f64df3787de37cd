package s3api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// bucketTable is a control plane of one process, in memory.
type bucketTable struct {
	layout  *placement.Layout
	mu      sync.Mutex // guards the rest
	last    uint64
	buckets map[string]object.Bucket
}

func (b *bucketTable) Layout() *placement.Layout { return b.layout }

func (b *bucketTable) Refresh(context.Context) error { return nil }

func (b *bucketTable) Bucket(name string) (object.Bucket, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x, ok := b.buckets[name]
	return x, ok
}

func (b *bucketTable) Buckets() (out []object.Bucket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(b.buckets)) {
		out = append(out, b.buckets[name])
	}
	return out
}

func (b *bucketTable) CreateBucket(_ context.Context, x object.Bucket) (object.Bucket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if have, ok := b.buckets[x.Name]; ok {
		return have, errs.E("test", errs.Exists, "exists")
	}
	b.last++
	x.ID, x.Epoch = b.last, 1
	b.buckets[x.Name] = x
	return x, nil
}

// edit changes the bucket of an id.
func (b *bucketTable) edit(id uint64, f func(*object.Bucket)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, x := range b.buckets {
		if x.ID == id {
			f(&x)
			b.buckets[name] = x
			return nil
		}
	}
	return errs.E("test", errs.NotFound, "no such bucket")
}

func (b *bucketTable) BeginDeleteBucket(_ context.Context, id uint64) (epoch uint64, err error) {
	err = b.edit(id, func(x *object.Bucket) {
		x.Deleting = true
		x.Epoch++
		epoch = x.Epoch
	})
	return epoch, err
}

func (b *bucketTable) FinishDeleteBucket(_ context.Context, id, _ uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.buckets, func(_ string, x object.Bucket) bool { return x.ID == id })
	return nil
}

func (b *bucketTable) ReopenBucket(_ context.Context, id, _ uint64) error {
	return b.edit(id, func(x *object.Bucket) {
		x.Deleting = false
		x.Epoch++
	})
}

func (b *bucketTable) SetVersioning(_ context.Context, id uint64, v object.Versioning) error {
	return b.edit(id, func(x *object.Bucket) { x.Versioning = v })
}

func (b *bucketTable) SetBucketConfig(_ context.Context, id uint64, document string, value []byte) error {
	return b.edit(id, func(x *object.Bucket) {
		config := maps.Clone(x.Config)
		if config == nil {
			config = map[string][]byte{}
		}
		config[document] = value
		x.Config = config
	})
}

// setDrives are the drives of a set as a gateway sees them: every message is encoded and decoded.
type setDrives struct{ set *node.Set }

func (d setDrives) Shards(num uint16) (node.Drive, bool) {
	x, ok := d.set.Shards(num)
	if !ok {
		return nil, false
	}
	return node.Codec(x), true
}

func (d setDrives) Replica(num uint16) (metadata.Replica, bool) { return d.Shards(num) }

// realStore is the object store over four drives in memory.
func realStore(t testing.TB) Store {
	t.Helper()
	ctx := context.Background() // outlives the test's own, for closing
	fs := vfs.NewMem()
	var paths []string
	for i := range 4 {
		paths = append(paths, fmt.Sprintf("/d%d", i))
		if err := fs.MkdirAll(paths[i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	set, err := node.OpenSet(ctx, paths, node.Options{FS: fs, WatchEvery: -1, Disk: disk.Options{SweepEvery: -1, MemTableSize: 1 << 20, ReserveBytes: -1}})
	if err != nil {
		t.Fatal(err)
	}
	var drives []placement.Drive
	for _, f := range set.Founders() {
		drives = append(drives, placement.Drive{Num: f.Num, ID: f.Drive})
	}
	layout, err := placement.NewLayout(drives, erasure.Profile{Data: 2, Parity: 2}, 3)
	if err != nil {
		t.Fatal(err)
	}
	set.SetEpoch(func(drive uint16, partition uint32) (uint64, bool) {
		g := layout.Group(partition)
		return g.Epoch, g.Position(drive) >= 0
	})
	if err := set.MarkFormed(ctx); err != nil {
		t.Fatal(err)
	}
	seen := setDrives{set}
	meta := metadata.NewClient(metadata.ClientConfig{Replicas: seen})
	store := object.New(object.Config{Control: &bucketTable{layout: layout, buckets: map[string]object.Bucket{}}, Drives: seen, Meta: meta})
	t.Cleanup(func() {
		for _, err := range []error{store.Close(ctx), meta.Close(ctx), set.Close(ctx)} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return Adapt(store)
}

// onEveryStore runs a test over the fake, which shows that the test is right about the handlers,
// and over the real store, which shows that the fake is right about the store.
func onEveryStore(t *testing.T, test func(t *testing.T, w *world), change ...func(*Config)) {
	t.Run("fake", func(t *testing.T) { test(t, newWorld(t, change...)) })
	t.Run("real", func(t *testing.T) {
		test(t, newWorld(t, append(change, func(c *Config) { c.Store = realStore(t) })...))
	})
}
