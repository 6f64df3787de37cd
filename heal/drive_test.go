package heal

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// patched is the world with some drives replaced, for the healer alone.
type patched struct {
	*world
	by map[uint16]node.Drive
}

func (p patched) Shards(num uint16) (node.Drive, bool) {
	if d := p.by[num]; d != nil {
		return d, true
	}
	return p.world.Shards(num)
}

// badSector is a drive on which the first chunk of a body cannot be read until it is written anew.
type badSector struct {
	node.Drive
	id     erasure.DataID
	failed bool // the whole drive has failed

	mu  sync.Mutex // guards new
	new bool
}

var errSector = &errs.Error{Op: "disk.Read", Kind: errs.Drive, Msg: "shard cannot be read", Err: errors.New("input/output error")}

func (b *badSector) bad(id erasure.DataID, chunk uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return id == b.id && chunk == 0 && !b.new
}

func (b *badSector) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	if b.bad(c.Data, c.Index) || b.failed {
		return errSector
	}
	return b.Drive.VerifyShard(ctx, c, index, throttle)
}

func (b *badSector) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	src, err := b.Drive.OpenShard(ctx, id)
	if err != nil || !b.bad(id.Data, id.Chunk) {
		return src, err
	}
	return unreadable{src}, nil
}

type unreadable struct{ io.Closer }

func (unreadable) ReadAt(context.Context, []byte, int64) (int, error) { return 0, errSector }

func (b *badSector) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	w, err := b.Drive.CreateShard(ctx, s)
	if err == nil && s.ID.Data == b.id && s.ID.Chunk == 0 && s.Replace {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.new = true
	}
	return w, err
}

func (b *badSector) ShardRows(ctx context.Context, after erasure.DataID, chunk uint32, limit int) ([]disk.ShardRow, error) {
	if b.failed {
		return nil, errSector
	}
	return b.Drive.ShardRows(ctx, after, chunk, limit)
}

// ask leaves a repair row for key on one drive.
func (w *world) ask(num uint16, key string) {
	w.t.Helper()
	d, _ := w.Shards(num)
	g := w.control.layout.Group(w.control.layout.PartitionOf(1, []byte(key)))
	err := d.AddRepair(context.Background(), metadata.RepairRow{Partition: g.Partition, Positions: []uint8{0, 1, 2, 3},
		Address: metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(key)}})
	if err != nil {
		w.t.Fatal(err)
	}
}

// dataOf returns the body of key.
func (w *world) dataOf(key string) erasure.DataID {
	w.t.Helper()
	in, err := w.store.Inspect(context.Background(), "bkt", key, false)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := erasure.ParseDataID(in.DataID)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func TestShardThatCannotBeReadIsWrittenAnew(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 300<<10)
	w.heal()
	d, _ := w.Shards(1)
	sick := &badSector{Drive: d, id: w.dataOf("k")}
	w.healer.c.Drives = patched{w, map[uint16]node.Drive{1: sick}}
	w.ask(2, "k")
	w.heal()
	if !sick.new || w.repairs() != 0 {
		t.Fatalf("written: %v, %d repair rows are left: %+v", sick.new, w.repairs(), w.healer.Progress())
	}
	w.whole("k")
}

func TestShardOnADriveThatHasFailedIsLeftAlone(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 300<<10)
	w.heal()
	d, _ := w.Shards(1)
	sick := &badSector{Drive: d, id: w.dataOf("k"), failed: true}
	w.healer.c.Drives = patched{w, map[uint16]node.Drive{1: sick}}
	w.ask(2, "k")
	w.heal()
	if sick.new || w.repairs() == 0 {
		t.Fatalf("written: %v, %d repair rows are left", sick.new, w.repairs())
	}
	w.whole("k")
}

// counted is a bucket table that counts how often it is asked to end deletions.
type counted struct {
	Buckets
	resumed int
}

func (c *counted) ResumeDeletions(ctx context.Context) error {
	c.resumed++
	return errors.Join(c.Buckets.ResumeDeletions(ctx), errSector)
}

func TestPassResumesDeletionsAndGoesOnIfThatFails(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100)
	w.heal()
	w.lose(2, "k")
	c := &counted{Buckets: w.healer.c.Buckets}
	w.healer.c.Buckets = c
	w.heal()
	if c.resumed != 1 {
		t.Errorf("asked %d times", c.resumed)
	}
	w.whole("k")
}
