package heal

import (
	"context"
	"log/slog"
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

// Replacement is a drive that takes the place of another, which never comes back.
type Replacement struct {
	ID       uint64
	Old, New uint16
	// Joined: the newcomer is a member wherever the old drive was; its rows and shards come.
	Joined bool
	Begun  time.Time
}

// Control is the control plane, as far as replacements need it. cluster.Control is behind it. Each method
// but TakeOver fails with errs.Stale if somebody else has taken over since.
type Control interface {
	// TakeOver makes this process the mover of a replacement, and returns its term.
	TakeOver(ctx context.Context, id uint64) (term uint64, err error)
	// PublishSwap makes the newcomer a member of partitions in the old drive's place.
	PublishSwap(ctx context.Context, id, term uint64, partitions []uint32) error
	// FinishMembership takes the old drive out of the layout.
	FinishMembership(ctx context.Context, id, term uint64) error
	// FinishReplace ends a replacement that was verified.
	FinishReplace(ctx context.Context, id, term uint64) error
}

// Mover changes the members of partitions. metadata.Client is one.
type Mover interface {
	Swap(ctx context.Context, m metadata.Swap) (metadata.SwapReport, error)
	// Join makes a member that was away when its epochs began serve them.
	Join(ctx context.Context, drive uint16, groups []placement.Group) error
}

// Config is what a Healer is made of. Meta, Layout, Buckets, Drives and Local are required.
type Config struct {
	Meta    *metadata.Client
	Layout  func() *placement.Layout // the current one; nil before the first
	Buckets Buckets
	Drives  Drives
	// Local are the drives of this process that are open: their lists are drained. Those that have the
	// method Info of disk.Drive are asked whether they are full.
	Local func() []node.Drive
	// Recoder writes data again whose profile is not that of their storage class any more; nil: nothing is.
	Recoder Recoder
	Coders  *erasure.Coders
	Logger  *slog.Logger
	Now     func() time.Time
	// Replacements are those under way of which the newcomer is a drive of this process; nil: none ever.
	// Control is required with it.
	Replacements func() []Replacement
	Control      Control
	// Mover moves members; nil: Meta. Fences are the epochs of buckets that it must know: of those that were
	// reopened or are being deleted.
	Mover  Mover
	Fences func() []metadata.Fence
	// Deletions are the fences of the deletions of buckets that are under way: members do not change before them; nil: none ever.
	Deletions func() []metadata.Fence
	// Moves are the plans of moves; nil: none ever.
	Moves MoveControl
	// Retired reports whether a drive never serves again, though the layout may still have it; nil: none ever.
	Retired func(num uint16) bool
	// Checks is how the processes of a store agree about the check; nil: this one makes it.
	Checks Checks
	// Load returns how many requests are in flight: background work yields to them. nil: none ever.
	Load func() int
	// Settings are those to begin with; Configure changes them.
	Settings Settings
	// Concurrency is how many registers are tended at a time; 0 means 2.
	Concurrency int
	// Every is the period of passes without a trigger; 0 means 10 s.
	Every time.Duration
	// Grace is how long dead data stays for readers; 0 means 60 s.
	Grace time.Duration
	// SettleAfter is the age at which an unsettled mark counts as left behind; 0 means 30 s.
	SettleAfter time.Duration
	// OrphanEvery is the period of the collection of orphans and of the search for tombstones, and OrphanAge
	// the age from which a shard that no record names counts as one; 0 means 24 hours each. OrphanEvery < 0: never.
	OrphanEvery, OrphanAge time.Duration
	// CheckEvery is the least time between two checks that begin by themselves, because none says yet that
	// all is well, or a drive was away since; 0 means 7 days, < 0 never. After a rebuild one begins at once.
	CheckEvery time.Duration
	// CallTimeout bounds one call to a drive, besides a second for each MiB that it is about; a drive that
	// takes longer counts as away for the rest of a pass. 0 means 30 s.
	CallTimeout time.Duration
}

// limits are those that tests make smaller.
type limits struct {
	swapBatch int // partitions that change their members together
	pending   int // registers in one pass; the rest waits for the next
	page      int // rows of a work list that are read together
	graces    int // dead bodies whose grace is remembered
}

const (
	page         = 1000
	swapBatch    = 256
	maxPending   = 100_000
	maxGraces    = 1 << 18
	firstPause   = 5 * time.Second
	longestPause = 10 * time.Minute
	// nominalBytes is what a register costs in the books of the limiter, besides the shards that are read.
	nominalBytes = 4 << 10
	// nudgePause keeps passes apart that nobody triggered by hand.
	nudgePause = time.Second
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
	Dropped  uint64 // tombstones that are gone
	Passes   uint64
	LastErr  string
}

// Healer tends registers. Run is called once; without it, its steps may be called by one goroutine at a time.
type Healer struct {
	c      Config
	pace   *Pace
	wake   chan struct{} // asks for a pass
	jobs   chan struct{} // asks for a look at the jobs
	scrub  chan struct{} // asks for a look at the scrubs
	back   chan struct{} // asks to compare drives that came back
	recode chan struct{} // asks for a look at what is to be re-coded
	asked  atomic.Uint64 // calls of Nudge
	soon   atomic.Bool   // partitions that stand still for long are to be tried again
	shards atomic.Int64
	bytes  atomic.Int64
	calls  sync.WaitGroup // to drives; Wait waits for them

	// mu guards the fields below.
	mu       sync.Mutex
	settings Settings
	progress Progress
	read     uint64                 // asked, when the lists were last read
	backlog  int                    // registers on the lists, as far as they were read
	retry    map[string]*pause      // registers that wait, by address
	since    map[erasure.DataID]met // when dead data was met; graceOver bounds it
	swept    time.Time              // when it was last rid of what nobody asks for
	hangs    hangs
	returned returned
	rebuilds map[uint64]*rebuild // by replacement
	moving   moving
	recoding recoding
	ended    []Job // newest first
	check    check
	scrubs   map[uint16]*scrubbing
	tombs    tombs
	noted    []metadata.Address // something was found wrong with them
	aside    map[uint16]int     // shards that no record seems to name, left alone because drives did not answer, by drive
	emptied  bool               // the lists were read on all drives, and nothing was on them
	room     room
	yielded  map[metadata.Fence]time.Duration // to deletions of buckets, by changes of members

	limits    limits
	gathering time.Duration // how long it took to read the lists; of the goroutine that makes passes
	// from is where the passes are in the lists, by drive, and turn which is read first; of the same goroutine.
	from map[uint16]places
	turn int
}

type pause struct {
	length  time.Duration
	until   time.Time
	blocked bool   // for drives
	late    bool   // nothing is wrong: what is dead waits for its grace
	full    bool   // a drive had no room
	sound   *sound // what the last look found; nil if that was not complete
}

// over reports whether a pause has passed.
func (p *pause) over(now time.Time) bool {
	return !now.Before(p.until) || p.until.Sub(now) > longestPause // the clock was set back
}

// passed reports whether d has passed since a time that was stored. One that lies in the future says
// nothing: the clock was set back since, so it counts as passed.
func passed(now, since time.Time, d time.Duration) bool {
	return since.After(now) || now.Sub(since) >= d
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
	if c.Replacements == nil {
		c.Replacements = func() []Replacement { return nil }
	}
	if c.Retired == nil {
		c.Retired = func(uint16) bool { return false }
	}
	if c.Mover == nil {
		c.Mover, _ = any(c.Meta).(Mover)
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
	if c.CheckEvery == 0 {
		c.CheckEvery = 7 * 24 * time.Hour
	}
	h := &Healer{c: c, limits: limits{swapBatch, maxPending, page, maxGraces}, pace: newPace(c.Load, c.Now), wake: make(chan struct{}, 1), jobs: make(chan struct{}, 1), scrub: make(chan struct{}, 1), back: make(chan struct{}, 1), recode: make(chan struct{}, 1),
		from: make(map[uint16]places), retry: make(map[string]*pause), since: make(map[erasure.DataID]met),
		hangs:    hangs{late: make(map[uint16]bool), stuck: make(map[uint16]int)},
		returned: returned{here: make(map[uint16]bool), todo: make(map[uint16]bool), times: make(map[uint16]uint64)},
		rebuilds: make(map[uint64]*rebuild), moving: newMoving(), scrubs: make(map[uint16]*scrubbing), aside: make(map[uint16]int),
		tombs: tombs{at: make(map[string]*tomb), slices: make(map[uint16]time.Time)}}
	h.Configure(c.Settings)
	return h
}

// Run works until ctx ends. Its goroutines (repairs, jobs, upkeep, re-coding, and one scrub for each local drive) end
// before it returns.
func (h *Healer) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { h.every(ctx, h.jobs, h.c.Every, "a job ended early", h.work) })
	wg.Go(func() { h.every(ctx, h.back, h.c.Every, "the upkeep ended early", h.upkeep) })
	wg.Go(func() { h.scrubAll(ctx) })
	wg.Go(func() { h.every(ctx, h.recode, h.c.Every, "the re-coding ended early", h.recodeAll) })
	h.every(ctx, h.wake, h.c.Every, "a repair pass ended early", func(ctx context.Context) error {
		err := h.Pass(ctx)
		h.kick(h.jobs)
		// However often somebody nudges, reading the lists does not take more than a fifth of the time.
		sleep(ctx, min(restFactor*h.gathering, h.c.Every))
		return err
	})
}

// every calls f until ctx ends: at once, when asked, and periodically.
func (h *Healer) every(ctx context.Context, ask <-chan struct{}, period time.Duration, ended string, f func(context.Context) error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ask:
		case <-timer.C:
		}
		if err := f(ctx); err != nil && ctx.Err() == nil {
			h.c.Logger.Warn(ended, "err", err)
		}
		timer.Reset(period)
		// Who asks all the time gets an answer now and then.
		if !sleep(ctx, min(nudgePause, period)) {
			return
		}
	}
}

// sleep waits, and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
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

// kick asks a loop to run, and never waits.
func (h *Healer) kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Trigger asks for a pass soon: a drive is back, or somebody wants it. What waits after a failure is tried
// at once.
func (h *Healer) Trigger() {
	h.mu.Lock()
	clear(h.retry)
	h.recodeSoon()
	h.mu.Unlock()
	h.soon.Store(true)
	h.kick(h.wake)
	h.kick(h.jobs)
}

// Nudge asks for a pass soon: a request or a scrub left a repair row. It costs nothing, and may be called as
// often as one likes: passes are at least a second apart.
func (h *Healer) Nudge() {
	h.asked.Add(1)
	h.kick(h.wake)
}

// Lead says that this process has become the mover of plans: partitions may stand still since the last one ended.
func (h *Healer) Lead() { h.kick(h.jobs) }

// Configure changes the settings. They apply at once, to what runs as well.
func (h *Healer) Configure(s Settings) {
	s.Rate = max(s.Rate, 0)
	if s.ScrubPeriod <= 0 {
		s.ScrubPeriod = DefaultScrubPeriod
	}
	h.mu.Lock()
	h.settings = s
	h.mu.Unlock()
	h.pace.setRate(s.Rate)
	h.kick(h.wake)
	h.kick(h.jobs)
	h.kick(h.scrub)
	h.kick(h.recode)
}

// paused reports whether repairs, rebuilds and checks have to stand still.
func (h *Healer) paused() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.settings.Paused
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
