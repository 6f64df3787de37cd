package heal

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/object"
)

// The loops below fail the i-th change of the file systems under a repair and under the replacement of a drive,
// or cut the power at it, for each i until a run does without. Afterwards another process goes on over healthy
// drives. By default some of the steps are tried.
var (
	faultAll  = flag.Bool("faultop.all", false, "fail every operation in turn, not only some")
	faultSome = flag.Int("faultop.steps", 10, "about how many operations are failed in turn for each kind of work and fault; 3 with -short")
)

var errOp = fmt.Errorf("injected: %w", syscall.EIO)

// opFault counts the changes of a file system while it is armed, and fails one of them, or, if cut is set, this
// one and all that follow.
type opFault struct {
	at    int64 // negative: none
	cut   func()
	armed atomic.Bool
	n     atomic.Int64

	mu   sync.Mutex // guards what
	what string     // what failed
}

func (f *opFault) String() string { return "operation" }

func (f *opFault) MaybeError(op errorfs.Op) error {
	switch {
	case !f.armed.Load(), op.Kind.ReadOrWrite() != errorfs.OpIsWrite:
		return nil
	case op.Kind == errorfs.OpFileClose, op.Kind == errorfs.OpLock, op.Kind == errorfs.OpFilePreallocate, op.Kind == errorfs.OpFileFlush:
		return nil // their failure says nothing
	}
	n := f.n.Add(1) - 1
	if f.at < 0 || n < f.at || n > f.at && f.cut == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.what == "" {
		f.what = fmt.Sprintf("%v of %s", op.Kind, op.Path)
		if f.cut != nil {
			f.cut()
		}
	}
	return errOp
}

func (f *opFault) hit() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.what
}

// wrapFaults lets f fail operations on fs. errorfs does not see what happens to a log that is used again, so
// logs are made anew, as a file system may.
func wrapFaults(fs vfs.FS, f *opFault) vfs.FS { return newLogs{errorfs.Wrap(fs, f)} }

type newLogs struct{ vfs.FS }

func (n newLogs) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := n.Remove(oldname); err != nil {
		return nil, err
	}
	return n.Create(newname, c)
}

// opWork is one kind of work that is disturbed.
type opWork struct {
	name    string
	prepare func(w *world, want map[string][]byte)
	run     func(ctx context.Context, w *world)
	finish  func(w *world) // what the process after that does besides; nil: nothing
}

func opWorks() []opWork {
	return []opWork{
		{"a repair", func(w *world, want map[string][]byte) {
			w.vanish(2, "key-002") // inline
			w.vanish(2, "key-006") // several chunks
			w.ask(3, "key-002")
			w.ask(3, "key-006")
			w.down[1].Store(true)
			want["key-005"] = w.put("key-005", 20<<10)
			want["new"] = w.put("new", 100)
			w.delete("key-004")
			delete(want, "key-004")
			w.settle()
			w.down[1].Store(false)
		}, func(ctx context.Context, w *world) {
			w.clock.pass(time.Hour)
			w.healer.Trigger()
			_ = w.healer.Pass(ctx)   // what fails is seen afterwards
			_ = w.healer.upkeep(ctx) // compares, and drops tombstones
		}, nil},
		{"a replacement", func(w *world, want map[string][]byte) {
			w.replace(1, 6)
		}, func(ctx context.Context, w *world) {
			for range 3 { // membership, shards, verification; the check after it
				_ = w.healer.work(ctx)
			}
		}, nil},
		{"a re-coding", func(w *world, want map[string][]byte) {
			maps.Copy(want, w.fillReduced(7))
			w.heal()
			w.clock.pass(2 * time.Hour)
			w.reduce(2, 2)
		}, func(ctx context.Context, w *world) {
			_ = w.recodeIn(ctx, w.healer)
			w.clock.pass(time.Hour)
			w.healer.Trigger()
			_ = w.healer.Pass(ctx)
		}, func(w *world) {
			for range 4 { // what is on drives that missed something comes with their repair
				w.heal()
				w.upkeep()
				w.healer.Trigger()
				if err := w.recode(); err != nil {
					w.t.Fatal(err)
				}
			}
			w.collected()
			if n := w.old(); n != 0 {
				w.t.Errorf("%d bodies are old in the end: %+v", n, w.healer.Status())
			}
		}},
	}
}

// image is a world that is at rest.
type image struct {
	w    *world // stopped
	want map[string][]byte
}

// again starts a world like that of the image, on fs.
func (m *image) again(t *testing.T, mem *vfs.MemFS, fs vfs.FS, faulty bool) *world {
	t.Helper()
	w := &world{t: t, fs: mem, paths: m.w.paths, down: make([]atomic.Bool, len(m.w.down)), crashed: faulty,
		control:  &control{layout: m.w.control.layout, bucket: m.w.control.bucket},
		replaces: &replaces{open: m.w.replaces.list(), terms: maps.Clone(m.w.replaces.terms), retired: slices.Clone(m.w.replaces.retired)}}
	w.clock.at = m.w.clock.now()
	w.start(fs)
	return w
}

func TestWorkUnderWhichAnyOperationFailsIsContinued(t *testing.T) {
	for _, work := range opWorks() {
		for _, cut := range []bool{false, true} {
			name := work.name + ", an operation fails"
			if cut {
				name = work.name + ", the power is cut"
			}
			t.Run(name, func(t *testing.T) {
				seed := seedOf(t)
				rng := rand.New(rand.NewPCG(seed, 2))
				m := &image{w: newWorldOf(t, object.Unversioned, 4)}
				m.want = m.w.fill(7)
				m.w.heal()
				work.prepare(m.w, m.want)
				m.w.stop()
				_, total := work.try(t, m, -1, cut, rng)
				if total == 0 {
					t.Fatal("the work changes nothing in the file system")
				}
				steps := max(*faultSome, 1)
				if testing.Short() {
					steps = min(steps, 3)
				}
				step := max(1, total/int64(steps))
				first := rng.Int64N(step)
				if *faultAll {
					first, step = 0, 1
				}
				tried, hits := 0, 0
				for i := first; i < 2*total && !t.Failed(); i += step {
					hit, _ := work.try(t, m, i, cut, rng)
					tried++
					if !hit {
						break // a run that does without
					}
					hits++
				}
				t.Logf("seed %d: %d of about %d operations were disturbed, in %d runs", seed, hits, total, tried)
				if hits == 0 {
					t.Error("nothing was disturbed")
				}
			})
		}
	}
}

// try does the work while operation at is disturbed, and then lets another process end it.
func (work *opWork) try(t *testing.T, m *image, at int64, cut bool, rng *rand.Rand) (hit bool, ops int64) {
	t.Helper()
	mem := m.w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng})
	f := &opFault{at: at}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var after *vfs.MemFS // what a power cut left
	if cut {
		f.cut = func() {
			after = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			cancel()
		}
	}
	w := m.again(t, mem, wrapFaults(mem, f), true)
	f.armed.Store(true)
	work.run(ctx, w)
	f.armed.Store(false)
	name := fmt.Sprintf("operation %d of %d (%s)", at, f.n.Load(), f.hit())
	hit = f.hit() != ""
	// A newcomer that fails while members change leaves partitions that answer nobody until it is back.
	stuck := slices.ContainsFunc(w.replaces.list(), func(r Replacement) bool {
		_, here := w.Shards(r.New)
		return !r.Joined && !here
	})
	if !cut && !stuck { // at most one drive was lost besides the one that is replaced
		for key, body := range m.want {
			w.reads(key, body)
		}
	}
	f.armed.Store(hit && cut) // whatever ends now is lost
	w.stop()
	f.armed.Store(false)
	if hit && cut {
		w.fs = after
	}
	w.crashed = false
	w.start(w.fs)
	defer w.stop()
	for _, p := range w.set.Status() {
		if !p.Open {
			t.Fatalf("%s: %s does not open: %v", name, p.Path, p.Err)
		}
	}
	w.rebuilt()
	if work.finish != nil {
		work.finish(w)
	}
	for range 4 {
		w.heal()
		w.upkeep()
	}
	w.equalDigests()
	w.same(m.want)
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left: %+v", n, w.healer.Progress())
	}
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after another process went on: %+v", s)
	}
	if unsettled, _ := w.marks(); unsettled != 0 {
		t.Errorf("%d unsettled marks are left", unsettled)
	}
	if _, err := w.store.Get(context.Background(), "bkt", "key-004", object.GetOptions{}); (err == nil) != (m.want["key-004"] != nil) {
		t.Errorf("key-004: %v", err)
	}
	if t.Failed() {
		t.Fatalf("%s: see above", name)
	}
	return hit, f.n.Load()
}
