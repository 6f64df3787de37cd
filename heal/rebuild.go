package heal

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// soonTries is how often in a row a newcomer tries again at once to move in, as long as partitions may be
// caught in the middle, where they serve nobody.
const soonTries = 60

// rebuild is the job that brings a newcomer up. It belongs to the goroutine of the jobs, but for what h.mu
// guards.
//
// Three phases. Membership: partition by partition the newcomer takes the place of the old drive, by
// metadata.Client.Swap; from then on it gets what is written. A pause of healing does not hold this up, as a
// partition that is caught in the middle serves nobody. Shards: all registers are walked in order
// of address; of each that the newcomer has a part in, the shards come first, read back and verified, then
// the row, so that a row never stands without its shard. Verify: what was left behind is tried again, and the
// newcomer's rows are compared with those of the others, slice by slice. A register of which data is lost, all
// drives being there, does not hold the end up: it is brought up as far as it goes, and named (lost.go).
//
// Where it is lies on the newcomer, after each page; whatever came after that is done again, and found to
// be there. A register that is overwritten or deleted meanwhile leaves at most a shard that no row names,
// which the collection of orphans judges like that of a writer that died.
type rebuild struct {
	r     Replacement
	term  uint64    // 0: not the mover yet
	tried time.Time // when it last tried to move in; guarded by h.mu
	// wedged: a change of members ended in the middle, and fails tries since did so, or came to nothing. Guarded by h.mu.
	wedged bool
	fails  int
	state  rebuildState
	known  bool // state was read from the newcomer
	meter  meter
	job    Job // guarded by h.mu, as a whole
}

// rebuildState is what the newcomer keeps.
type rebuildState struct {
	Replacement uint64
	Begun       time.Time
	fillState
}

// rebuildAll works on the replacements of which this process has the newcomer, one after the other.
func (h *Healer) rebuildAll(ctx context.Context) error {
	list := h.c.Replacements()
	h.mu.Lock()
	for id := range h.rebuilds {
		if !slices.ContainsFunc(list, func(r Replacement) bool { return r.ID == id }) {
			delete(h.rebuilds, id)
		}
	}
	var jobs []*rebuild
	for _, r := range list {
		b := h.rebuilds[r.ID]
		if b == nil || b.r.New != r.New {
			b = &rebuild{job: Job{Kind: KindRebuild, Drive: r.New, State: JobRunning, Phase: PhaseMembership, Begun: r.Begun}}
			h.rebuilds[r.ID] = b
		}
		b.r = r
		jobs = append(jobs, b)
	}
	h.mu.Unlock()
	// All move in before the first gets its shards: until then writes lack a drive. The members of a
	// partition change one at a time, so nobody moves in before an older replacement has.
	step := func(b *rebuild, f func(context.Context, *rebuild) error) bool {
		err := f(ctx, b)
		if err != nil && ctx.Err() == nil {
			if errs.Is(err, errs.Stale) {
				b.term = 0 // somebody else moves it, or did: look again
			}
			h.c.Logger.Info("a rebuild waits", "drive", b.r.New, "err", err)
			h.show(b, func(j *Job) { j.State, j.LastErr = JobWaiting, err.Error() })
		}
		return err == nil
	}
	var in []*rebuild
	for _, b := range jobs {
		h.taint("a drive was replaced")
		h.show(b, func(*Job) { b.tried = h.c.Now() })
		if b.r.Joined && h.paused() {
			h.show(b, func(j *Job) { j.State = JobPaused })
			continue
		}
		if !b.r.Joined && slices.ContainsFunc(jobs, func(o *rebuild) bool { return !o.r.Joined && o.r.ID < b.r.ID }) {
			h.show(b, func(j *Job) { j.State, j.LastErr = JobWaiting, "an earlier replacement comes first" })
			continue
		}
		if step(b, h.beginRebuild) {
			in = append(in, b)
			continue
		}
		h.mu.Lock()
		if b.fails++; b.soon() {
			h.kick(h.jobs)
		}
		h.mu.Unlock()
	}
	for _, b := range in {
		if ctx.Err() == nil {
			step(b, h.fillNewcomer)
		}
	}
	return ctx.Err()
}

// show changes what Status tells of a rebuild.
func (h *Healer) show(b *rebuild, f func(*Job)) {
	b.meter.mark(h.c.Now(), b.state.Done, b.state.Bytes)
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &b.state
	b.job.Done, b.job.Total, b.job.Shards, b.job.Bytes, b.job.Bad, b.job.Repaired = s.Done, max(s.Total, s.Done), s.Shards, s.Bytes, s.Bad, s.Repaired
	f(&b.job)
	b.job.Remaining = 0
	if b.job.State == JobRunning {
		b.meter.fill(&b.job, s.TotalBytes)
	} else {
		b.job.RegistersPerSecond, b.job.BytesPerSecond = 0, 0
		b.meter = meter{}
	}
}

// beginRebuild makes the newcomer a member wherever the old drive was.
func (h *Healer) beginRebuild(ctx context.Context, b *rebuild) error {
	const op = "heal.rebuild"
	if _, ok := h.c.Drives.Shards(b.r.Old); ok {
		return errs.E(op, errs.Busy, "the drive that is replaced is still in service")
	}
	h.newPass()
	to, ok := h.drive(b.r.New)
	if !ok {
		return errs.E(op, errs.Unavailable, "the new drive is not in service")
	}
	if !b.known {
		if err := h.loadRebuild(ctx, b, to); err != nil {
			return errs.Wrap(op, err)
		}
	}
	if b.term == 0 {
		term, err := h.c.Control.TakeOver(ctx, b.r.ID)
		if err != nil {
			return errs.Wrap(op, err)
		}
		b.term = term
	}
	if b.r.Joined {
		return nil
	}
	h.show(b, func(j *Job) { j.State, j.Phase = JobRunning, PhaseMembership })
	return errs.Wrap(op, h.moveIn(ctx, b))
}

// soon reports whether a newcomer is to try again at once. h.mu is held.
func (b *rebuild) soon() bool { return b.wedged && b.fails <= soonTries }

// moveAgain is how often one that could not move in yet tries again while others get their shards.
const moveAgain = time.Minute

// moversWait reports whether a newcomer is to move in that has not tried, or not lately.
func (h *Healer) moversWait() bool {
	list, now := h.c.Replacements(), h.c.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(list, func(r Replacement) bool {
		b := h.rebuilds[r.ID]
		return !r.Joined && (b == nil || b.soon() || now.Sub(b.tried) >= moveAgain)
	})
}

// fillNewcomer brings a newcomer that is a member its rows and shards, and ends the replacement.
func (h *Healer) fillNewcomer(ctx context.Context, b *rebuild) error {
	const op = "heal.rebuild"
	to, ok := h.drive(b.r.New)
	if !ok {
		return errs.E(op, errs.Unavailable, "the new drive is not in service")
	}
	f := &filling{state: &b.state.fillState, drives: map[uint16]node.Drive{b.r.New: to}, show: func() { h.show(b, func(*Job) {}) },
		save: func(ctx context.Context) error { return save(ctx, to, jobRebuild, &b.state) }}
	for !b.state.Walked {
		h.show(b, func(j *Job) { j.State, j.Phase, j.LastErr = JobRunning, PhaseShards, "" })
		if h.paused() {
			h.show(b, func(j *Job) { j.State = JobPaused })
			return nil
		}
		if h.moversWait() {
			h.kick(h.jobs) // another one is to move in first
			return nil
		}
		if err := h.fillPage(ctx, f); err != nil {
			return errs.Wrap(op, err)
		}
		if h.partitionsStand() {
			break
		}
	}
	if h.partitionsStand() {
		h.kick(h.jobs) // for moves of a plan: they go on first
		return nil
	}
	h.show(b, func(j *Job) { j.State, j.Phase, j.LastErr = JobRunning, PhaseVerify, "" })
	if err := h.level(ctx, f, nil); err != nil {
		return errs.Wrap(op, err)
	}
	// The end of the replacement. What follows is only tidying.
	if err := h.c.Control.FinishReplace(ctx, b.r.ID, b.term); err != nil {
		return errs.Wrap(op, err)
	}
	b.state.Total = b.state.Done
	h.show(b, func(j *Job) { j.State, j.Ended = JobDone, h.c.Now() })
	h.c.Logger.Info("a drive was rebuilt", "drive", b.r.New, "registers", b.state.Done, "shards", b.state.Shards, "bytes", b.state.Bytes,
		"lost", b.state.Bad-b.state.Repaired)
	h.mu.Lock()
	h.end(b.job)
	delete(h.rebuilds, b.r.ID)
	h.mu.Unlock()
	h.StartCheck()
	return errs.Wrap(op, to.SetJob(ctx, jobRebuild, nil))
}

// end keeps an ended job for Status. h.mu is held.
func (h *Healer) end(j Job) {
	h.ended = append([]Job{j}, h.ended...)
	h.ended = h.ended[:min(len(h.ended), maxEnded)]
}

const maxEnded = 8

func (h *Healer) loadRebuild(ctx context.Context, b *rebuild, to node.Drive) error {
	var s rebuildState
	if err := h.load(ctx, to, jobRebuild, &s); err != nil {
		return err
	}
	if s.Replacement != b.r.ID {
		s = rebuildState{Replacement: b.r.ID, Begun: b.r.Begun}
		// Who else has how much is the best guess at what there is to do.
		l := h.c.Layout()
		here, _ := h.members(l)
		for _, d := range here {
			if d.Num() != b.r.New {
				if shards, bytes, err := d.ShardUsage(ctx); err == nil {
					s.Total, s.TotalBytes = max(s.Total, shards), max(s.TotalBytes, bytes)
				}
			}
		}
	}
	// From here on the newcomer is known as one that lacks nearly everything; see incomplete.
	if err := save(ctx, to, jobRebuild, &s); err != nil {
		return err
	}
	b.state, b.known = s, true
	return nil
}

// incomplete reports whether a drive is a newcomer that has not met all registers yet: to compare it with
// others would find what the rebuild does anyway.
func (h *Healer) incomplete(ctx context.Context, d node.Drive) (bool, error) {
	var s rebuildState
	err := h.load(ctx, d, jobRebuild, &s)
	return s.Replacement != 0 && !s.Walked, err
}

// moveIn makes the newcomer a member of every partition that has the old drive. Those that cannot change now do
// not hold up the others.
func (h *Healer) moveIn(ctx context.Context, b *rebuild) error {
	const op = "heal.moveIn"
	stay := make(map[uint32]bool) // could not change
	stand := 0                    // of them, those that stand still
	for {
		l := h.c.Layout()
		todo := slices.DeleteFunc(l.PartitionsOf(b.r.Old), func(p uint32) bool { return stay[p] })
		if len(todo) == 0 {
			break
		}
		report, err := h.swap(ctx, b, l, todo[:min(len(todo), h.limits.swapBatch)])
		if err != nil {
			h.halted(b)
			return err
		}
		for _, p := range report.Skipped {
			stay[p] = true
		}
		stand += len(report.Wedged)
	}
	if stand > 0 {
		h.halted(b)
		return errs.E(op, errs.Unavailable, fmt.Sprintf("%d partitions stand still: too few of their drives answer in time", stand))
	}
	h.mu.Lock()
	b.wedged, b.fails = false, 0
	h.mu.Unlock()
	if len(stay) > 0 {
		b.term = 0
		return errs.E(op, errs.Unavailable, "partitions could not change their member yet: too few of their drives answer")
	}
	if err := h.c.Control.FinishMembership(ctx, b.r.ID, b.term); err != nil {
		return err
	}
	h.mu.Lock()
	b.r.Joined = true
	h.mu.Unlock()
	return nil
}

// halted takes note that partitions stand still for a newcomer: what is half done goes on under a higher term.
func (h *Healer) halted(b *rebuild) {
	b.term = 0
	h.mu.Lock()
	defer h.mu.Unlock()
	if !b.wedged {
		b.wedged, b.fails = true, 0
	}
}

// swap makes the newcomer a member of some partitions. That some had too few drives is no error.
func (h *Healer) swap(ctx context.Context, b *rebuild, l *placement.Layout, partitions []uint32) (report metadata.SwapReport, err error) {
	m := metadata.Swap{Transition: b.r.ID, Term: b.term, Old: b.r.Old, New: b.r.New, OldGone: true, Layout: l,
		Publish: func(ctx context.Context, partitions []uint32) error {
			return h.c.Control.PublishSwap(ctx, b.r.ID, b.term, partitions)
		}}
	for _, p := range partitions {
		m.Groups = append(m.Groups, l.Group(p))
	}
	h.mu.Lock()
	fails := 0
	if b.wedged {
		fails = b.fails
	}
	h.mu.Unlock()
	m.Patience = h.patience(fails)
	h.letDeletionsThrough(ctx)
	if h.c.Fences != nil {
		m.Fences = h.c.Fences()
	}
	report, err = h.c.Mover.Swap(ctx, m)
	switch {
	case len(report.Skipped) == len(partitions) && ctx.Err() == nil:
		return report, nil
	case err == nil && h.c.Layout().Number() <= l.Number():
		err = errs.E("heal.swap", errs.Unavailable, "the new layout is not known here yet")
	}
	return report, err
}
