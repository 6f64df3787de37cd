package heal

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// Buckets tells whether a bucket is there, and its epoch, and ends deletions left behind. object.Store implements it.
type Buckets interface {
	BucketEpoch(ctx context.Context, id uint64) (epoch uint64, ok bool, err error)
	// ResumeDeletions goes on with deletions of buckets that were cut short. It is called once a pass.
	ResumeDeletions(ctx context.Context) error
}

// Drives finds drives by number, local or remote. false: the drive is known to be gone.
type Drives interface {
	Shards(num uint16) (node.Drive, bool)
}

// Config is what a Healer is made of. Meta, Layout, Buckets, Drives and Local are required.
type Config struct {
	Meta    *metadata.Client
	Layout  func() *placement.Layout // the current one; nil before the first
	Buckets Buckets
	Drives  Drives
	Local   func() []node.Drive // the drives of this process that are open: their lists are drained
	Coders  *erasure.Coders
	Logger  *slog.Logger
	Now     func() time.Time
	// Concurrency is how many registers are tended at a time; 0 means 2.
	Concurrency int
	// Every is the period of passes without a trigger; 0 means 10 s.
	Every time.Duration
	// Grace is how long dead data stays for readers; 0 means 60 s.
	Grace time.Duration
	// SettleAfter is the age at which an unsettled mark counts as left behind; 0 means 30 s.
	SettleAfter time.Duration
	// OrphanEvery is the period of the collection of orphans, and OrphanAge the age from which a shard that
	// no record names counts as one; 0 means 24 hours each. OrphanEvery < 0: never.
	OrphanEvery, OrphanAge time.Duration
	// CallTimeout bounds one call to a drive, besides a second for each MiB that it is about; a drive that
	// takes longer counts as away for the rest of a pass. 0 means 30 s.
	CallTimeout time.Duration
	// Pace, if not nil, is called before each register, and waits while requests need the drives.
	Pace func(ctx context.Context) error
}

const (
	page         = 1000
	maxPending   = 100_000 // registers in one pass; the rest waits for the next
	firstPause   = 5 * time.Second
	longestPause = 10 * time.Minute
)

// Progress is a snapshot of what a Healer did.
type Progress struct {
	Pending  int    // registers of the present pass that still want work
	Active   int    // registers being tended now
	Blocked  int    // registers of which everything was done that the drives at hand allow
	Repaired uint64 // registers that were verified on every drive
	Failed   uint64 // tries that ended otherwise, drives being there
	Shards   int64  // shards written anew, and verified
	Bytes    int64  // of them
	Removed  uint64 // dead bodies of which every holder has let go
	Passes   uint64
	LastErr  string
}

// Healer tends registers. Run or Pass may be called by one goroutine at a time.
type Healer struct {
	c      Config
	wake   chan struct{}
	shards atomic.Int64
	bytes  atomic.Int64
	calls  sync.WaitGroup // to drives; Wait waits for them

	// mu guards the fields below.
	mu       sync.Mutex
	progress Progress
	retry    map[string]*pause            // registers that wait, by address
	since    map[erasure.DataID]time.Time // when dead data was first met
	hangs    hangs
}

type pause struct {
	length  time.Duration
	until   time.Time
	blocked bool
}

// New makes a Healer.
func New(c Config) *Healer {
	if c.Coders == nil {
		c.Coders = erasure.NewCoders(nil)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Concurrency <= 0 {
		c.Concurrency = 2
	}
	for _, d := range []struct {
		at *time.Duration
		by time.Duration
	}{{&c.Every, 10 * time.Second}, {&c.Grace, time.Minute}, {&c.SettleAfter, 30 * time.Second}, {&c.CallTimeout, 30 * time.Second}, {&c.OrphanAge, 24 * time.Hour}} {
		if *d.at <= 0 {
			*d.at = d.by
		}
	}
	if c.OrphanEvery == 0 {
		c.OrphanEvery = 24 * time.Hour
	}
	return &Healer{c: c, wake: make(chan struct{}, 1), retry: make(map[string]*pause), since: make(map[erasure.DataID]time.Time),
		hangs: hangs{late: make(map[uint16]bool), stuck: make(map[uint16]int)}}
}

// Run works until ctx ends.
func (h *Healer) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	orphans := h.c.Now().Add(h.c.OrphanEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-timer.C:
		}
		if err := h.Pass(ctx); err != nil && ctx.Err() == nil {
			h.c.Logger.Warn("a repair pass ended early", "err", err)
		}
		if h.c.OrphanEvery > 0 && !h.c.Now().Before(orphans) {
			if n, err := h.Orphans(ctx, h.c.OrphanAge); err != nil && ctx.Err() == nil {
				h.c.Logger.Warn("the collection of orphans ended early", "err", err)
			} else if n > 0 {
				h.c.Logger.Info("shards that no record names were removed", "chunks", n)
			}
			orphans = h.c.Now().Add(h.c.OrphanEvery)
		}
		timer.Reset(h.c.Every)
	}
}

// Wait waits, once nothing runs any more, for calls that were left behind in drives that hang, or until
// ctx ends.
func (h *Healer) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { // ends with the calls: it is one of them
		defer close(done)
		h.calls.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errs.Wrap("heal.Wait", ctx.Err())
	}
}

// Trigger asks for a pass soon: a drive is back, or a read or a scrub found something. What waits after
// a failure is tried at once.
func (h *Healer) Trigger() {
	h.mu.Lock()
	clear(h.retry)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Progress returns a snapshot.
func (h *Healer) Progress() Progress {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.progress
	p.Shards, p.Bytes = h.shards.Load(), h.bytes.Load()
	for _, r := range h.retry {
		if r.blocked {
			p.Blocked++
		}
	}
	return p
}

// task is one register that wants work.
type task struct {
	addr      metadata.Address
	key       string
	positions []uint8  // that repair rows name
	repair    []uint16 // drives with a repair row
	unsettled []uint16 // drives with an unsettled mark
}

// Pass drains the lists of the local drives once. What waits after a failure is left out.
func (h *Healer) Pass(ctx context.Context) error {
	if h.c.Layout() == nil {
		return nil
	}
	h.newPass()
	if err := h.c.Buckets.ResumeDeletions(ctx); err != nil && ctx.Err() == nil {
		h.c.Logger.Info("a deletion of a bucket could not be finished yet", "err", err)
	}
	tasks, err := h.gather(ctx)
	if err != nil {
		return errs.Wrap("heal.Pass", err)
	}
	h.mu.Lock()
	h.progress.Pending = len(tasks)
	h.progress.Passes++
	h.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, h.c.Concurrency)
	for _, t := range tasks {
		if h.c.Pace != nil {
			if err := h.c.Pace(ctx); err != nil {
				return errs.Wrap("heal.Pass", err)
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return errs.Wrap("heal.Pass", ctx.Err())
		}
		wg.Go(func() {
			defer func() { <-slots }()
			h.tend(ctx, t)
		})
	}
	return nil
}

// tend works on one register and keeps the books.
func (h *Healer) tend(ctx context.Context, t *task) {
	h.mu.Lock()
	h.progress.Active++
	h.mu.Unlock()
	got, err := h.register(ctx, t)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress.Active--
	h.progress.Pending--
	if got == whole && err == nil {
		h.progress.Repaired++
		delete(h.retry, t.key)
		return
	}
	if ctx.Err() != nil {
		return
	}
	p := h.retry[t.key]
	if p == nil {
		p = &pause{length: firstPause / 2}
		h.retry[t.key] = p
	}
	p.length = min(2*p.length, longestPause)
	p.until = h.c.Now().Add(p.length)
	p.blocked = got == blocked && err == nil || level(err) < 0
	if err != nil {
		h.progress.LastErr = err.Error()
	}
	if !p.blocked {
		h.progress.Failed++
		h.c.Logger.Info("a register could not be repaired yet", "bucket", t.addr.Bucket, "err", err)
	}
}

// level says how bad an error is: below 0 drives are merely away, 0 is none, above 0 something is wrong.
func level(err error) int {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Drive, errs.Busy, errs.Stale, errs.Conflict, errs.Timeout:
		if err != nil {
			return -1
		}
	}
	if err == nil {
		return 0
	}
	return 1
}

// gather reads the lists of the local drives: each register once, those with the least redundancy left first.
func (h *Healer) gather(ctx context.Context) ([]*task, error) {
	by := make(map[string]*task)
	get := func(a metadata.Address) *task {
		k := string(a.AppendTo(nil))
		t := by[k]
		if t == nil {
			t = &task{addr: a, key: k}
			by[k] = t
		}
		return t
	}
	var fails []error
	for _, d := range h.local() {
		err := errors.Join(h.repairs(ctx, d, get, by), h.unsettled(ctx, d, get, by), h.wideGarbage(ctx, d, get))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil { // the other drives name most of the same registers
			fails = append(fails, err)
			h.c.Logger.Debug("the work lists of a drive could not be read", "drive", d.Num(), "err", err)
		}
	}
	if len(by) == 0 {
		return nil, errors.Join(fails...)
	}
	now := h.c.Now()
	tasks := make([]*task, 0, len(by))
	h.mu.Lock()
	for k, t := range by {
		if p := h.retry[k]; p == nil || !now.Before(p.until) {
			tasks = append(tasks, t)
		}
	}
	for k := range h.retry {
		if by[k] == nil {
			delete(h.retry, k)
		}
	}
	h.mu.Unlock()
	slices.SortFunc(tasks, func(a, b *task) int {
		return cmp.Or(cmp.Compare(len(b.positions), len(a.positions)), cmp.Compare(a.key, b.key))
	})
	return tasks, nil
}

func (h *Healer) repairs(ctx context.Context, d node.Drive, get func(metadata.Address) *task, by map[string]*task) error {
	var after *metadata.Address
	for len(by) < maxPending {
		list, err := d.Repairs(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range list {
			t := get(list[i].Address)
			t.repair = append(t.repair, d.Num())
			for _, p := range list[i].Positions {
				if !slices.Contains(t.positions, p) {
					t.positions = append(t.positions, p)
				}
			}
		}
		if len(list) < page {
			return nil
		}
		after = &list[len(list)-1].Address
	}
	return nil
}

func (h *Healer) unsettled(ctx context.Context, d node.Drive, get func(metadata.Address) *task, by map[string]*task) error {
	old := h.c.Now().Add(-h.c.SettleAfter).UnixNano()
	var after *metadata.Address
	for len(by) < maxPending {
		list, err := d.Unsettled(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range list {
			if list[i].Since <= old {
				t := get(list[i].Address)
				t.unsettled = append(t.unsettled, d.Num())
			}
		}
		if len(list) < page {
			return nil
		}
		after = &list[len(list)-1].Address
	}
	return nil
}

// wideGarbage takes over the garbage that a drive cannot end alone. It becomes a repair row, which
// stays until every holder has let go, as the register's dead list does.
func (h *Healer) wideGarbage(ctx context.Context, d node.Drive, get func(metadata.Address) *task) error {
	list, err := d.Garbage(ctx, h.c.Now().Add(time.Hour), page) // whatever its age, and a little skew
	if err != nil {
		return err
	}
	var done []metadata.GarbageRow
	for i := range list {
		g := &list[i]
		if !wide(&g.Dead) {
			continue
		}
		if g.Address.Kind == metadata.KindPart {
			// A part's register lists nothing as dead once it is gone: its garbage row is all there is.
			if h.graceOver(g.Dead.Data.ID) && h.dead(ctx, g) == nil {
				done = append(done, *g)
				h.forget(g.Dead.Data.ID)
			}
			continue
		}
		if err := d.AddRepair(ctx, metadata.RepairRow{Address: g.Address, Partition: g.Partition, Positions: []uint8{0}}); err != nil {
			return err
		}
		h.graceOver(g.Dead.Data.ID) // the grace begins now
		t := get(g.Address)
		t.repair = append(t.repair, d.Num())
		done = append(done, *g)
	}
	if len(done) == 0 {
		return nil
	}
	return d.ClearGarbage(ctx, done)
}

// forget drops the memory of dead data that is gone.
func (h *Healer) forget(id erasure.DataID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.since, id)
	h.progress.Removed++
}

// wide reports whether dead data has shards, or parts, that no drive finds by its own rows.
func wide(d *metadata.DeadData) bool { return d.Manifest || d.Data.Chunks() > 1 }

// graceOver reports whether dead data was met long enough ago by this process.
func (h *Healer) graceOver(id erasure.DataID) bool {
	now := h.c.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	since, ok := h.since[id]
	if !ok {
		h.since[id] = now
		return false
	}
	return now.Sub(since) >= h.c.Grace
}
