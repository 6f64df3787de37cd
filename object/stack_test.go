package object

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// testControl is a control plane of one process, in memory.
type testControl struct {
	mu      sync.Mutex
	layout  *placement.Layout
	next    uint64
	buckets map[string]Bucket
}

func (c *testControl) Layout() *placement.Layout {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.layout
}

func (c *testControl) Bucket(name string) (Bucket, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.buckets[name]
	return b, ok
}

func (c *testControl) Buckets() []Bucket {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Bucket
	for _, n := range slices.Sorted(maps.Keys(c.buckets)) {
		out = append(out, c.buckets[n])
	}
	return out
}

func (c *testControl) Refresh(context.Context) error { return nil }

func (c *testControl) CreateBucket(_ context.Context, b Bucket) (Bucket, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.buckets[b.Name]; ok {
		return have, errs.E("test", errs.Exists, "exists")
	}
	c.next++
	b.ID, b.Epoch = c.next, 1
	c.buckets[b.Name] = b
	return b, nil
}

func (c *testControl) edit(id uint64, f func(*Bucket) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, b := range c.buckets {
		if b.ID == id {
			err := f(&b)
			c.buckets[n] = b
			return err
		}
	}
	return errs.E("test", errs.NotFound, "no such bucket")
}

func (c *testControl) BeginDeleteBucket(_ context.Context, id uint64) (epoch uint64, err error) {
	err = c.edit(id, func(b *Bucket) error {
		if b.Deleting {
			return errs.E("test", errs.Busy, "deleting")
		}
		b.Deleting = true
		b.Epoch++
		epoch = b.Epoch
		return nil
	})
	return epoch, err
}

func (c *testControl) FinishDeleteBucket(_ context.Context, id, epoch uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, b := range c.buckets {
		if b.ID == id && b.Epoch == epoch && b.Deleting {
			delete(c.buckets, n)
			return nil
		}
	}
	return errs.E("test", errs.NotFound, "no such bucket")
}

func (c *testControl) ReopenBucket(_ context.Context, id, epoch uint64) error {
	return c.edit(id, func(b *Bucket) error {
		if b.Epoch == epoch && b.Deleting {
			b.Deleting = false
			b.Epoch++
		}
		return nil
	})
}

func (c *testControl) SetVersioning(_ context.Context, id uint64, v Versioning) error {
	return c.edit(id, func(b *Bucket) error { b.Versioning = v; return nil })
}

func (c *testControl) SetBucketConfig(_ context.Context, id uint64, doc string, value []byte) error {
	return c.edit(id, func(b *Bucket) error {
		m := maps.Clone(b.Config)
		if m == nil {
			m = map[string][]byte{}
		}
		if m[doc] = value; value == nil {
			delete(m, doc)
		}
		b.Config = m
		return nil
	})
}

// stack is a whole cluster in one process: drives on a file system in memory, every message encoded
// and decoded on its way, one or more gateways.
type stack struct {
	t       testing.TB
	fs      vfs.FS
	set     *node.Set
	control *testControl
	meta    *metadata.Client
	paths   []string
	closed  bool
	*Store

	down  []atomic.Bool                                       // by drive number
	fault atomic.Pointer[func(drive uint16, op string) error] // asked before every write to a drive
}

type stackOptions struct {
	drives int
	spare  int // of the drives: no members of the first layout
	prof   erasure.Profile
	bits   uint8
	fs     vfs.FS
	dir    string
	tune   func(*Config)
	raw    bool // no codec, for benchmarks
}

func newStack(t testing.TB, o stackOptions) *stack {
	t.Helper()
	ctx := context.Background()
	if o.drives == 0 {
		o.drives, o.prof = 4, erasure.Profile{Data: 2, Parity: 2}
	}
	if o.bits == 0 {
		o.bits = 3
	}
	if o.fs == nil {
		o.fs = vfs.NewMem()
	}
	s := &stack{t: t, fs: o.fs, control: &testControl{buckets: map[string]Bucket{}}}
	var paths []string
	for i := range o.drives {
		p := fmt.Sprintf("%s/d%d", o.dir, i)
		if err := o.fs.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	var err error
	s.set, err = node.OpenSet(ctx, paths, node.Options{FS: o.fs, WatchEvery: -1, Disk: disk.Options{SweepEvery: -1, MemTableSize: 1 << 20, ReserveBytes: -1}})
	if err != nil {
		t.Fatal(err)
	}
	var drives []placement.Drive
	top := uint16(0)
	for _, f := range s.set.Founders() {
		drives = append(drives, placement.Drive{Num: f.Num, ID: f.Drive})
		top = max(top, f.Num)
	}
	s.down = make([]atomic.Bool, top+1)
	slices.SortFunc(drives, func(a, b placement.Drive) int { return int(a.Num) - int(b.Num) })
	s.control.layout, err = placement.NewLayout(drives[:len(drives)-o.spare], o.prof, o.bits)
	if err != nil {
		t.Fatal(err)
	}
	s.set.SetEpoch(func(drive uint16, partition uint32) (uint64, bool) {
		g := s.control.Layout().Group(partition)
		return g.Epoch, g.Position(drive) >= 0
	})
	if err := s.set.MarkFormed(ctx); err != nil {
		t.Fatal(err)
	}
	s.meta = metadata.NewClient(metadata.ClientConfig{Replicas: replicas{s, o.raw}, SettleAfter: 200 * time.Millisecond})
	s.Store = s.gateway(s.meta, o)
	s.paths = paths
	t.Cleanup(func() {
		if s.closed {
			return
		}
		if err := s.Store.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := s.meta.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := s.set.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *stack) gateway(meta *metadata.Client, o stackOptions) *Store {
	c := Config{Control: s.control, Drives: replicas{s, o.raw}, Meta: meta, InlineLimit: 4 << 10, ChunkSize: 256 << 10, MinPartSize: 1, CacheBytes: 1 << 20}
	if o.tune != nil {
		o.tune(&c)
	}
	return New(c)
}

// replicas are the drives as gateways see them.
type replicas struct {
	s   *stack
	raw bool
}

func (r replicas) Shards(num uint16) (node.Drive, bool) {
	d, ok := r.s.set.Shards(num)
	if !ok || r.s.down[num].Load() {
		return nil, false
	}
	if r.raw {
		return d, true
	}
	return faulty{node.Codec(d), r.s}, true
}

func (r replicas) Replica(num uint16) (metadata.Replica, bool) { return r.Shards(num) }

// faulty fails what the test says, before the drive sees it.
type faulty struct {
	node.Drive
	s *stack
}

func (f faulty) fail(op string) error {
	if f.s.down[f.Num()].Load() {
		return errs.E("test", errs.Drive, "drive is down")
	}
	if p := f.s.fault.Load(); p != nil {
		return (*p)(f.Num(), op)
	}
	return nil
}

func (f faulty) Prepare(ctx context.Context, m *metadata.PrepareRequest) (*metadata.PrepareReply, error) {
	if err := f.fail("prepare"); err != nil {
		return nil, err
	}
	return f.Drive.Prepare(ctx, m)
}

func (f faulty) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	if err := f.fail("accept"); err != nil {
		return nil, err
	}
	return f.Drive.Accept(ctx, m)
}

func (f faulty) Pin(ctx context.Context, m *metadata.PinRequest) (*metadata.PinReply, error) {
	if err := f.fail("pin"); err != nil {
		return nil, err
	}
	return f.Drive.Pin(ctx, m)
}

func (f faulty) CreateShard(ctx context.Context, spec disk.ShardSpec) (disk.ShardWriter, error) {
	if err := f.fail("create"); err != nil {
		return nil, err
	}
	return f.Drive.CreateShard(ctx, spec)
}

func (f faulty) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	if f.s.down[f.Num()].Load() {
		return nil, errs.E("test", errs.Drive, "drive is down")
	}
	return f.Drive.Read(ctx, m)
}

func (f faulty) Decide(ctx context.Context, m []metadata.Decision) error {
	if f.s.down[f.Num()].Load() {
		return errs.E("test", errs.Drive, "drive is down")
	}
	return f.Drive.Decide(ctx, m)
}

func (s *stack) bucketFor(name string, v Versioning) {
	s.t.Helper()
	if _, err := s.CreateBucket(context.Background(), name, CreateBucketOptions{Owner: "o"}); err != nil {
		s.t.Fatal(err)
	}
	if v != Unversioned {
		if err := s.SetVersioning(context.Background(), name, v); err != nil {
			s.t.Fatal(err)
		}
	}
}

// body returns n bytes that depend on seed.
func body(seed uint64, n int) []byte {
	b := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

func (s *stack) put(bucket, key string, p []byte, o PutOptions) (Info, error) {
	o.Size = int64(len(p))
	return s.Put(context.Background(), bucket, key, bytes.NewReader(p), o)
}

func (s *stack) get(bucket, key string, o GetOptions) (Info, []byte, error) {
	obj, err := s.Get(context.Background(), bucket, key, o)
	if err != nil {
		return Info{}, nil, err
	}
	defer obj.Close()
	var b bytes.Buffer
	n, err := obj.WriteTo(&b)
	if err == nil && (n != obj.Length || int64(b.Len()) != n) {
		err = fmt.Errorf("%d bytes written, %d counted, %d announced", b.Len(), n, obj.Length)
	}
	return obj.Info, b.Bytes(), err
}
