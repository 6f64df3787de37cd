package heal

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

const (
	scrubShards = 64      // shards of one step
	scrubBytes  = 1 << 30 // what one step is expected not to exceed
	scrubTick   = 10 * time.Second
	// scrubSpread is the part of the period over which a round is spread: the rest is slack.
	scrubSpread = 0.95
)

// scrubState is how far the scrub of a drive is; the drive keeps it.
type scrubState struct {
	Begun         time.Time // of the round under way; zero: none is
	Fast          bool      // at the limit's pace: somebody wants it now
	After         []byte    // data id
	Chunk         uint32
	Total         int64 // shards, estimated when the round began
	Shards, Bytes int64
	Bad           int64
	LastBegun     time.Time
	PrevBegun     time.Time // of the round before, if it ended: what LastDone is of while one is under way
	LastDone      time.Time
}

// next decides when the next step of a scrub is due, at now or later. begin says that it is the first
// of a round. Rounds begin a period apart, and the steps of one are spread evenly over the period.
func (s *scrubState) next(now time.Time, period time.Duration) (at time.Time, begin bool) {
	if s.Begun.IsZero() {
		if s.LastBegun.IsZero() || s.Fast {
			return now, true
		}
		return later(now, s.LastBegun.Add(period)), true
	}
	if s.Fast || s.Total <= 0 {
		return now, false
	}
	part := min(float64(s.Shards)/float64(s.Total), 1)
	return later(now, s.Begun.Add(time.Duration(part*scrubSpread*float64(period)))), false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// scrubbing is the scrub of one local drive. state belongs to its goroutine; h.mu guards the rest.
type scrubbing struct {
	state scrubState
	wake  chan struct{} // asks for a look

	shown   scrubState
	waiting bool // not under way: it is not time, or it failed
	running bool // there is a goroutine
	wanted  bool // StartScrub was called
	known   bool // shown holds
}

// StartScrub begins a round of the scrub of one local drive, or of all (0), now. A round that is under
// way goes on, at the limit's pace.
func (h *Healer) StartScrub(drive uint16) {
	local := h.c.Local()
	h.mu.Lock()
	for _, d := range local {
		if drive == 0 || d.Num() == drive {
			h.scrubOf(d.Num()).wanted = true
		}
	}
	h.mu.Unlock()
	h.kick(h.scrub)
}

// scrubOf returns the scrub of a drive. h.mu is held.
func (h *Healer) scrubOf(num uint16) *scrubbing {
	if h.scrubs[num] == nil {
		h.scrubs[num] = &scrubbing{wake: make(chan struct{}, 1)}
	}
	return h.scrubs[num]
}

// scrubAll keeps one goroutine for each local drive, and waits for them.
func (h *Healer) scrubAll(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, d := range h.local() {
			h.mu.Lock()
			s := h.scrubOf(d.Num())
			begin := !s.running
			s.running = true
			h.mu.Unlock()
			if begin {
				wg.Go(func() {
					h.scrubDrive(ctx, d, s)
					h.mu.Lock()
					s.running, s.waiting = false, true
					h.mu.Unlock()
				})
			}
		}
		timer := time.NewTimer(scrubTick)
		select {
		case <-timer.C:
		case <-h.scrub: // settings changed, or somebody wants a round
			h.mu.Lock()
			for _, s := range h.scrubs {
				h.kick(s.wake)
			}
			h.mu.Unlock()
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// scrubDrive scrubs one drive until it fails, goes away, or ctx ends. Between steps it sleeps until the next is
// due, or somebody asks; at most Every, to notice a drive that went away.
func (h *Healer) scrubDrive(ctx context.Context, d node.Drive, s *scrubbing) {
	if err := h.load(ctx, d, jobScrub, &s.state); err != nil {
		return
	}
	for {
		wait, err := h.scrubStep(ctx, d, s)
		if err != nil {
			if ctx.Err() == nil {
				h.c.Logger.Info("a scrub waits", "drive", d.Num(), "err", err)
			}
			return
		}
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-s.wake:
			case <-ctx.Done():
			}
			timer.Stop()
		}
		if ctx.Err() != nil || !slices.ContainsFunc(h.c.Local(), func(l node.Drive) bool { return l.Num() == d.Num() }) {
			return
		}
	}
}

// scrubStep verifies the next shards of a drive if it is time. wait is how long there is nothing to do.
func (h *Healer) scrubStep(ctx context.Context, d node.Drive, s *scrubbing) (wait time.Duration, err error) {
	st := &s.state
	now := h.c.Now()
	h.mu.Lock()
	paused, period := h.settings.ScrubPaused, h.settings.ScrubPeriod
	if s.wanted {
		s.wanted, st.Fast = false, true
	}
	at, begin := st.next(now, period)
	rests := paused || at.After(now)
	s.shown, s.known, s.waiting = *st, true, rests && st.Begun.IsZero()
	h.mu.Unlock()
	if rests {
		if wait = max(h.c.Every, time.Second); !paused {
			wait = min(wait, at.Sub(now))
		}
		return wait, ctx.Err()
	}
	// What a step has changed holds only once its findings and itself are kept: else it is made again.
	after := *st
	if begin {
		after = scrubState{Begun: now, Fast: st.Fast, LastBegun: now, PrevBegun: st.LastBegun, LastDone: st.LastDone}
		if after.Total, _, err = d.ShardUsage(ctx); err != nil {
			return 0, err
		}
	}
	from := erasure.ShardID{Chunk: after.Chunk}
	copy(from.Data[:], after.After)
	r, err := d.Scrub(ctx, from, scrubShards, h.pace.take)
	after.After, after.Chunk = r.Next.Data[:], r.Next.Chunk
	after.Shards += int64(r.Shards)
	after.Bytes += r.Bytes
	for i := range r.Bad {
		if kept := h.finding(ctx, d, &r.Bad[i]); kept != nil {
			return 0, kept
		}
		after.Bad++
	}
	if err != nil {
		return 0, err
	}
	if !r.More {
		// One round is over: what it counted stays for Status until the next begins.
		after.Begun, after.Fast, after.LastDone = time.Time{}, false, h.c.Now()
		after.After, after.Chunk = nil, 0
		h.c.Logger.Info("a drive was scrubbed", "drive", d.Num(), "shards", after.Shards, "bytes", after.Bytes, "bad", after.Bad)
	}
	if err := save(ctx, d, jobScrub, &after); err != nil {
		return 0, err
	}
	*st = after
	h.mu.Lock()
	s.shown, s.waiting = *st, st.Begun.IsZero()
	h.mu.Unlock()
	return 0, nil
}

// finding makes a repair row of what a scrub found.
func (h *Healer) finding(ctx context.Context, d node.Drive, f *disk.ScrubFinding) error {
	h.c.Logger.Warn("a scrub found a bad shard", "drive", d.Num(), "shard", f.Row.ID.String(), "err", f.Err)
	l := h.c.Layout()
	if l == nil {
		return nil
	}
	a := f.Row.Address
	g := l.Group(l.PartitionOf(a.Bucket, a.Key))
	row := metadata.RepairRow{Address: a, Partition: g.Partition}
	if f.Row.ID.Chunk == 0 {
		if pos := g.Position(d.Num()); pos >= 0 {
			row.Positions = []uint8{uint8(pos)}
		}
	}
	if row.Positions == nil {
		for pos := range g.Drives {
			row.Positions = append(row.Positions, uint8(pos))
		}
	}
	if err := d.AddRepair(ctx, row); err != nil {
		return err
	}
	h.Nudge()
	return nil
}

// Scrubs tells how far the scrubs of the local drives are, in order of their numbers.
func (h *Healer) Scrubs() []ScrubStatus {
	local := h.c.Local()
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []ScrubStatus
	for _, d := range local {
		s := h.scrubOf(d.Num())
		st := &s.shown
		o := ScrubStatus{Drive: d.Num(), State: JobRunning, Begun: st.Begun, LastDone: st.LastDone, Shards: st.Shards, Bytes: st.Bytes,
			Bad: st.Bad, Period: h.settings.ScrubPeriod}
		if st.Total > 0 && !st.Begun.IsZero() {
			o.Done = min(float64(st.Shards)/float64(st.Total), 1)
		}
		switch {
		case h.settings.ScrubPaused:
			o.State = JobPaused
		case s.waiting || !s.running || !s.known:
			o.State = JobWaiting
		}
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b ScrubStatus) int { return int(a.Drive) - int(b.Drive) })
	return list
}
