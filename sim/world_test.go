package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/object"
)

// profiles are what a run draws from, and how many drives there are beyond the profile's own.
var profiles = []erasure.Profile{{Data: 1}, {Data: 1, Parity: 1}, {Data: 2, Parity: 1}, {Data: 2, Parity: 2}, {Data: 2, Parity: 2}, {Data: 4, Parity: 2}}

// world is one run: a store, its users, and what happens to it.
type world struct {
	seed    uint64
	rng     *rand.Rand // of the schedule; used by the main goroutine only
	began   time.Time  // virtual
	profile erasure.Profile
	raft    bool // the real control plane
	brief   bool // no idle hours
	cache   int64
	table   *tableControl
	fs      *simFS
	drives  []*simDrive
	links   *links
	log     *slog.Logger
	tracing bool
	weak    *simDrive      // the one that may lose what it holds, for good
	wanted  *wanted        // a replacement that has not begun yet
	olds    []uint16       // drives that were replaced
	faults  map[string]int // how often each happened
	skew    atomic.Int64   // of the process's clock, in nanoseconds
	grid    *grid          // of a store of several processes; nil: there is one
	ahead   atomic.Int64   // the largest it was

	hist   *history
	values *values

	// mu guards the fields below.
	mu       sync.Mutex
	cur      *server // nil while the process is down; of several, the one that the judge asks
	problems []string
	trace    strings.Builder
	versions []version
	wins     int // increments of the counter that were acknowledged
	maybe    int // of unknown outcome
	flipped  int // shard files that were damaged
}

// version is one that was acknowledged in the versioned bucket.
type version struct {
	key, id string
	v       *value
}

func newWorld(seed uint64, tracing bool) *world {
	rng := rand.New(rand.NewPCG(seed, 3))
	p := profiles[rng.IntN(len(profiles))]
	n := p.N()
	if rng.IntN(3) == 0 {
		n += 1 + rng.IntN(2)
	}
	return newWorldOf(seed, rng, p, n, tracing)
}

// newWorldOf makes a world with a profile over n drives.
func newWorldOf(seed uint64, rng *rand.Rand, p erasure.Profile, n int, tracing bool) *world {
	w := &world{profile: p, seed: seed, rng: rng, began: time.Now(), faults: map[string]int{}, tracing: tracing, log: slog.New(slog.DiscardHandler)}
	if tracing {
		w.log = w.traceLog()
	}
	w.raft = rng.IntN(8) == 0
	w.cache = []int64{-1, 1 << 20}[rng.IntN(2)]
	w.table = &tableControl{buckets: map[string]object.Bucket{}, moves: replacements{retired: map[uint16]bool{}}}
	w.fs, w.drives = newFS(n, rng)
	w.weak = w.drives[rng.IntN(n)]
	w.links = &links{rng: rand.New(rand.NewPCG(rng.Uint64(), 4)), slow: time.Duration(rng.IntN(3)) * 8 * time.Millisecond,
		until: map[uint16]time.Time{}, extra: map[uint16]time.Duration{}}
	w.hist = &history{ops: map[string][]porcupine.Operation{}}
	w.values = &values{byETag: map[string]*value{}}
	w.tracef("profile %v, %d drives, raft %v", w.profile, n, w.raft)
	return w
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.skew.Load())) }

// failf records a broken promise. The run goes on to its end.
func (w *world) failf(format string, args ...any) {
	w.mu.Lock()
	if len(w.problems) < 10 {
		w.problems = append(w.problems, fmt.Sprintf("%v: ", time.Since(w.began).Round(time.Millisecond))+fmt.Sprintf(format, args...))
	}
	w.mu.Unlock()
	w.tracef("PROBLEM "+format, args...)
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.problems) > 0
}

func (w *world) tracef(format string, args ...any) {
	if !w.tracing {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.trace, "%12v  %s\n", time.Since(w.began).Round(time.Microsecond), fmt.Sprintf(format, args...))
}

// acked notes a version that was acknowledged.
func (w *world) acked(bucket, key, id string, v *value) {
	if bucket != versionedBucket {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.versions = append(w.versions, version{key, id, v})
}

// counted keeps the books of the counter.
func (w *world) counted(res string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch res {
	case "ok":
		w.wins++
	case "unknown":
		w.maybe++
	}
}

// enter returns the process that a client turns to, if it is up, for one operation; leave ends it.
func (w *world) enter(c *client) *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.cur
	if w.grid != nil {
		s = w.grid.turnTo(c)
	}
	if s != nil {
		s.inside.Add(1)
	}
	return s
}

func (s *server) leave() { s.inside.Done() }

// boot starts the process, and tries again while drives are away.
func (w *world) boot() bool {
	for try := 0; ; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		s, err := w.start(ctx)
		cancel()
		if err == nil {
			w.tracef("process started")
			w.mu.Lock()
			w.cur = s
			w.mu.Unlock()
			return true
		}
		w.tracef("start failed: %v", err)
		if try >= 2 {
			for _, d := range w.drives {
				d.gone.Store(false)
				d.full.Store(false)
				d.low.Store(false)
			}
		}
		if try >= 5 {
			w.failf("the process does not start although every drive is here: %v", err)
			return false
		}
		sleep(30 * time.Second)
	}
}

// takeDown lets no more operations in.
func (w *world) takeDown() *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.cur
	w.cur = nil
	return s
}

// powerCut ends the process between two instructions. Every drive keeps what was synced.
func (w *world) powerCut() {
	s := w.takeDown()
	if s == nil {
		return
	}
	w.tracef("power cut")
	s.crashed.Store(true) // before the first clone: what is answered from here on is not believed
	for _, d := range w.drives {
		d.mu.Lock()
		d.cur.dead.Store(true)
		d.mu.Unlock()
	}
	for _, d := range w.drives {
		d.replug(d.clone())
	}
	s.cancel()
	s.inside.Wait()
	if err := s.stop(); err != nil {
		w.tracef("what was left of the process: %v", err)
	}
}

// shutDown ends the process as an operator does.
func (w *world) shutDown() {
	s := w.takeDown()
	if s == nil {
		return
	}
	w.tracef("shutdown")
	s.inside.Wait()
	if err := s.stop(); err != nil {
		w.tracef("shutdown: %v", err)
	}
}

// run plays the seed. It returns with everything stopped.
func (w *world) run(o options) {
	defer w.shutDown()
	if !w.boot() {
		return
	}
	for _, b := range []string{plainBucket, versionedBucket} {
		if _, err := w.cur.store.CreateBucket(context.Background(), b, object.CreateBucketOptions{Owner: rootAccount}); err != nil {
			w.failf("the first bucket: %v", err)
			return
		}
	}
	if err := w.cur.store.SetVersioning(context.Background(), versionedBucket, object.Enabled); err != nil {
		w.failf("versioning: %v", err)
		return
	}
	var clients []*client
	for i := range 2 + w.rng.IntN(3) {
		clients = append(clients, &client{w: w, num: i, rng: rand.New(rand.NewPCG(w.rng.Uint64(), 5))})
	}
	rounds := 2 + w.rng.IntN(4)
	for range rounds {
		w.recast()
		w.round(clients, o)
		if w.failed() {
			return
		}
	}
	w.recover()
	w.judge()
}

// round lets the clients work while things happen, and then time passes.
func (w *world) round(clients []*client, o options) {
	var undo []func()
	if f := w.rest(); f != nil {
		undo = append(undo, f)
	}
	var wg sync.WaitGroup
	ops := 4 + w.rng.IntN(9)
	think := []time.Duration{20 * time.Millisecond, time.Second, 30 * time.Second}[w.rng.IntN(3)]
	for _, c := range clients {
		wg.Go(func() {
			for range ops {
				sleep(time.Duration(c.intn(int(think))))
				c.act()
			}
		})
	}
	for range w.rng.IntN(3) {
		sleep(time.Duration(w.rng.Int64N(int64(think) * int64(ops) / 2)))
		if f := w.fault(o); f != nil {
			undo = append(undo, f)
		}
	}
	if len(undo) > 0 && w.rng.IntN(2) == 0 {
		undo[0]() // while they still work
		undo = undo[1:]
	}
	wg.Wait()
	idle := []time.Duration{time.Minute, 20 * time.Minute, time.Hour}[w.rng.IntN(3)]
	if w.raft || w.brief {
		idle = min(idle, 2*time.Minute)
	}
	if len(undo) > 0 && w.rng.IntN(2) == 0 {
		sleep(idle / 2)
	}
	for _, f := range undo {
		f()
	}
	w.pursue()
	sleep(time.Duration(w.rng.Int64N(int64(idle))))
}

// bury lets go of what a goroutine that was left behind would keep in memory.
func (w *world) bury() {
	for _, d := range w.drives {
		d.mu.Lock()
		d.cur, d.after = &medium{fs: vfs.NewMem()}, nil
		d.cur.dead.Store(true)
		d.mu.Unlock()
	}
}

// traceLog is a log of the product that goes into the trace.
func (w *world) traceLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(traceWriter{w}, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// traceWriter takes the log of the product into the trace, but for the chatter of the record stores.
type traceWriter struct{ w *world }

func (t traceWriter) Write(p []byte) (int, error) {
	if !strings.Contains(string(p), "msg=\"record store: ") && (!strings.Contains(string(p), "raft") || strings.Contains(string(p), "raft servers")) {
		t.w.tracef("  log %s", strings.TrimSpace(string(p)))
	}
	return len(p), nil
}
