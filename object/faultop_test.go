package object

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// The loops below fail the i-th change of the file system under one request, once, for each i until a
// request does without. Every step is a cluster of its own; by default some of the steps are tried.
var (
	faultAll  = flag.Bool("faultop.all", false, "fail every operation in turn, not only some")
	faultSome = flag.Int("faultop.steps", 6, "about how many operations are failed in turn for each kind of request")
)

var errOp = fmt.Errorf("injected: %w", syscall.EIO)

// opFault counts the changes of a file system while it is armed, and fails one of them.
type opFault struct {
	armed atomic.Bool
	n     atomic.Int64
	at    atomic.Int64 // which one fails; negative: none
	what  atomic.Value // what failed, a string
}

func (f *opFault) String() string { return "operation" }

func (f *opFault) MaybeError(op errorfs.Op) error {
	switch {
	case !f.armed.Load(), op.Kind.ReadOrWrite() != errorfs.OpIsWrite:
		return nil
	case op.Kind == errorfs.OpFileClose, op.Kind == errorfs.OpLock, op.Kind == errorfs.OpFilePreallocate, op.Kind == errorfs.OpFileFlush:
		return nil // their failure says nothing
	}
	if f.n.Add(1)-1 != f.at.Load() {
		return nil
	}
	f.what.Store(fmt.Sprintf("%v of %s", op.Kind, op.Path))
	return errOp
}

// faultRequest is one kind of request over a key that has a value before.
type faultRequest struct {
	name string
	// prepare runs before the fault; run is the request itself.
	prepare func(s *stack) (run func() error, err error)
	before  []byte // value of the key before; nil: absent
	after   []byte // and after; nil: absent
}

func faultRequests() []faultRequest {
	small, large, old := body(1, 900), body(2, 300<<10), body(3, 2000)
	ctx := context.Background()
	put := func(p []byte) func(s *stack) (func() error, error) {
		return func(s *stack) (func() error, error) {
			return func() error { _, err := s.put("bkt", "k", p, PutOptions{}); return err }, nil
		}
	}
	list := []faultRequest{
		{"a small PUT", put(small), nil, small},
		{"a small PUT over another", put(small), old, small},
		{"a PUT of two chunks over another", put(large), old, large},
		{"a DELETE", func(s *stack) (func() error, error) {
			return func() error { _, err := s.Delete(ctx, "bkt", "k", DeleteOptions{}); return err }, nil
		}, old, nil},
	}
	list = append(list, faultRequest{"a multipart completion", func(s *stack) (func() error, error) {
		up, err := s.CreateUpload(ctx, "bkt", "k", UploadOptions{})
		if err != nil {
			return nil, err
		}
		var parts []CompletedPart
		for i, b := range [][]byte{large, small} {
			p, err := s.PutPart(ctx, "bkt", "k", up.UploadID, i+1, bytes.NewReader(b), PartOptions{Size: int64(len(b))})
			if err != nil {
				return nil, err
			}
			parts = append(parts, CompletedPart{Number: i + 1, ETag: p.ETag})
		}
		return func() error {
			_, err := s.CompleteUpload(ctx, "bkt", "k", up.UploadID, parts, CompleteOptions{})
			return err
		}, nil
	}, old, append(bytes.Clone(large), small...)})
	return list
}

func TestARequestUnderWhichAnyOperationFailsIsDoneOrNot(t *testing.T) {
	for _, r := range faultRequests() {
		t.Run(r.name, func(t *testing.T) {
			total := r.try(t, -1)
			step := int64(1)
			if !*faultAll {
				step = max(1, total/int64(max(*faultSome, 1)))
			}
			tried := 0
			for i := int64(0); i < total && !t.Failed(); i += step {
				r.try(t, i)
				tried++
			}
			t.Logf("%d of %d operations were failed in turn", tried, total)
			if total == 0 {
				t.Error("the request changes nothing in the file system")
			}
		})
	}
}

// try runs the request while operation at fails, and returns how many operations there were. Then the
// process begins anew on what is stored: the key is as it was or as it should be, and once what is
// dead was collected, nothing is on the drives that no record names.
func (r *faultRequest) try(t *testing.T, at int64) int64 {
	t.Helper()
	f := new(opFault)
	f.at.Store(at)
	fs := vfs.NewMem()
	s := newStack(t, stackOptions{fs: errorfs.Wrap(fs, f)})
	s.bucketFor("bkt", Unversioned)
	if r.before != nil {
		if _, err := s.put("bkt", "k", r.before, PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	run, err := r.prepare(s)
	if err != nil {
		t.Fatal(err)
	}
	f.armed.Store(true)
	failed := run()
	f.armed.Store(false)
	n := f.n.Load()
	what, _ := f.what.Load().(string)
	name := fmt.Sprintf("operation %d of %d failed (%s), answered with %v", at, n, what, failed)
	if failed != nil {
		t.Errorf("%s: one drive of four is spare", name)
	}
	s.check(name, r, failed)
	s.close()
	again := s.reopen(fs, 2*time.Hour)
	defer again.close()
	again.check(name+", and after a restart", r, failed)
	again.collect(name)
	again.check(name+", and after the collection", r, failed)
	return n
}

// leaks lists the shards that no record names.
func (s *stack) leaks() (list []string) {
	s.t.Helper()
	ctx := context.Background()
	for num := range s.down {
		d, ok := s.set.Shards(uint16(num))
		if !ok {
			continue
		}
		rows, err := d.ShardRows(ctx, erasure.DataID{}, 0, 1000)
		if err != nil {
			s.t.Fatal(err)
		}
		for i := range rows {
			if named, err := d.Names(ctx, rows[i].Address, rows[i].ID.Data); err != nil || !named {
				list = append(list, fmt.Sprintf("%v on drive %d, of a register of kind %v (%v)", rows[i].ID, num, rows[i].Address.Kind, err))
			}
		}
	}
	return list
}

// check looks whether the key is as an answer promises.
func (s *stack) check(name string, r *faultRequest, failed error) {
	s.t.Helper()
	_, got, err := s.get("bkt", "k", GetOptions{})
	is := func(want []byte) bool {
		if want == nil {
			return errors.Is(err, ErrNoSuchKey)
		}
		return err == nil && bytes.Equal(got, want)
	}
	if !is(r.after) && (failed == nil || !is(r.before)) {
		s.t.Errorf("%s: the key has %d bytes, %v", name, len(got), err)
	}
}

// close ends the stack before the test does.
func (s *stack) close() {
	s.t.Helper()
	ctx := context.Background()
	if err := errors.Join(s.Store.Close(ctx), s.meta.Close(ctx)); err != nil {
		s.t.Error(err)
	}
	s.set.Close(ctx) //nolint:errcheck // a drive that failed says so again
	s.closed = true
}

// reopen starts a process over what a closed stack left in fs, some time later.
func (s *stack) reopen(fs vfs.FS, later time.Duration) *stack {
	s.t.Helper()
	now := func() time.Time { return time.Now().Add(later) }
	n := &stack{t: s.t, fs: fs, control: s.control, down: make([]atomic.Bool, len(s.down))}
	var err error
	n.set, err = node.OpenSet(context.Background(), s.paths, node.Options{FS: fs, WatchEvery: -1, Now: now,
		Disk: disk.Options{SweepEvery: -1, MemTableSize: 1 << 20, ReserveBytes: -1}})
	if err != nil {
		s.t.Fatal(err)
	}
	n.set.SetEpoch(func(drive uint16, partition uint32) (uint64, bool) {
		g := n.control.Layout().Group(partition)
		return g.Epoch, g.Position(drive) >= 0
	})
	n.meta = metadata.NewClient(metadata.ClientConfig{Replicas: replicas{n, false}, SettleAfter: 200 * time.Millisecond, Now: now})
	n.Store = n.gateway(n.meta, stackOptions{tune: func(c *Config) { c.Now = now }})
	return n
}

// collect runs the passes of a healer until nothing is left that no record names. Decisions are sent
// beside the passes, so that a few may be needed.
func (s *stack) collect(name string) {
	s.t.Helper()
	s.collectWith(name, s.Store)
}

// collectWith is collect with a gateway that ends re-codings which were cut short.
func (s *stack) collectWith(name string, recoder heal.Recoder) {
	s.t.Helper()
	s.collectUntil(name, recoder, s.leaks)
}

// collectUntil is collectWith until nothing is listed any more.
func (s *stack) collectUntil(name string, recoder heal.Recoder, list func() []string) {
	s.t.Helper()
	ctx := context.Background()
	var late atomic.Int64 // hours
	h := heal.New(heal.Config{Meta: s.meta, Layout: s.control.Layout, Buckets: s.Store, Drives: replicas{s, false},
		Now:        func() time.Time { return time.Now().Add(time.Duration(4+late.Load()) * time.Hour) },
		CheckEvery: -1, OrphanEvery: -1, Recoder: recoder,
		Local: func() (list []node.Drive) {
			for num := range s.down {
				if d, ok := (replicas{s, false}).Shards(uint16(num)); ok {
					list = append(list, d)
				}
			}
			return list
		}})
	end := time.Now().Add(30 * time.Second)
	for {
		late.Add(1)
		h.Trigger()
		if err := h.Pass(ctx); err != nil {
			s.t.Fatalf("%s: the collection: %v", name, err)
		}
		if _, err := h.Orphans(ctx, time.Minute); err != nil {
			s.t.Fatalf("%s: the collection of orphans: %v", name, err)
		}
		if err := s.Flush(ctx); err != nil {
			s.t.Fatal(err)
		}
		left := list()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: to be collected, and nobody does:\n%s", name, strings.Join(left, "\n"))
		}
	}
}
