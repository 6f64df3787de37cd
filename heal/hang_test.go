package heal

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// hung is a drive that lets calls wait, whatever their ctx, until it is released.
type hung struct {
	node.Drive
	verify, create bool
	release        chan struct{}
	calls          atomic.Int32
}

func (d *hung) wait(hangs bool) {
	if hangs {
		d.calls.Add(1)
		<-d.release
	}
}

func (d *hung) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	d.wait(d.verify)
	return d.Drive.VerifyShard(ctx, c, index, throttle)
}

func (d *hung) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	d.wait(d.create)
	return d.Drive.CreateShard(ctx, s)
}

// lose removes the shards of key from a drive, behind the record's back, and asks for the repair.
func (w *world) lose(num uint16, key string) {
	w.t.Helper()
	d, _ := w.Shards(num)
	stranger := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("stranger")}
	id := w.dataOf(key)
	for chunk := range uint32(2) {
		if err := d.DeleteShard(context.Background(), stranger, id, chunk, metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.ask(3, key)
}

func TestDriveThatHangsDoesNotStopRepairs(t *testing.T) {
	for name, d := range map[string]*hung{"while it verifies": {verify: true}, "while it begins a shard": {create: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, object.Unversioned)
				keys := []string{"a", "b", "c", "d", "e", "f"}
				for _, k := range keys {
					w.put(k, 300<<10)
				}
				w.heal()
				for _, k := range keys {
					w.lose(2, k)
					if d.create {
						w.lose(1, k)
					}
				}
				d.Drive, _ = w.Shards(1)
				d.release = make(chan struct{})
				w.healer.c.Drives = patched{w, map[uint16]node.Drive{1: d}}
				before := w.healer.Progress().Shards
				for range 3 {
					w.heal()
				}
				if n := w.healer.Progress().Shards - before; n < int64(len(keys)) {
					t.Errorf("%d shards were written beside the drive that hangs: %+v", n, w.healer.Progress())
				}
				if n := d.calls.Load(); n > int32(w.healer.c.Concurrency) {
					t.Errorf("%d calls hang in the drive", n)
				}
				if w.repairs() < len(keys) {
					t.Errorf("%d repair rows are left while the drive hangs", w.repairs())
				}
				close(d.release)
				if err := w.healer.Wait(context.Background()); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					w.heal()
				}
				for _, k := range keys {
					w.whole(k)
				}
				if n := w.repairs(); n != 0 {
					t.Errorf("%d repair rows are left: %+v", n, w.healer.Progress())
				}
			})
		})
	}
}
