package heal

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

const (
	installAtOnce = 64 // rows that are written side by side, so that they share their syncs
	// maxBehind bounds what a rebuild remembers of registers that it could not bring to the newcomer yet, in
	// bytes of addresses. Beyond, it waits.
	maxBehind = 32 << 10
	// soonTries is how often in a row a newcomer tries again at once to move in, as long as partitions may be
	// caught in the middle, where they serve nobody.
	soonTries = 60
	// verifyRounds bounds how often rows are compared: what still differs then, and could be brought up
	// each time, is what writers change meanwhile.
	verifyRounds = 4
)

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
	Replacement   uint64
	Begun         time.Time
	After         cursor
	Walked        bool // all registers were met
	Done, Total   int64
	Shards, Bytes int64
	TotalBytes    int64
	Bad, Repaired int64
	Behind        []cursor // registers that could not be brought up
}

func (s *rebuildState) bytesOfBehind() (n int) {
	for _, c := range s.Behind {
		n += len(c)
	}
	return n
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
		h.taint(ctx, "a drive was replaced")
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
		if err := h.rebuildPage(ctx, b, to); err != nil {
			return errs.Wrap(op, err)
		}
	}
	h.show(b, func(j *Job) { j.State, j.Phase, j.LastErr = JobRunning, PhaseVerify, "" })
	if err := h.verifyNewcomer(ctx, b, to); err != nil {
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
	for {
		l := h.c.Layout()
		todo := slices.DeleteFunc(l.PartitionsOf(b.r.Old), func(p uint32) bool { return stay[p] })
		if len(todo) == 0 {
			break
		}
		skipped, err := h.swap(ctx, b, l, todo[:min(len(todo), h.limits.swapBatch)])
		if err != nil {
			b.term = 0 // what is half done goes on under a higher term
			h.mu.Lock()
			if !b.wedged {
				b.wedged, b.fails = true, 0
			}
			h.mu.Unlock()
			return err
		}
		for _, p := range skipped {
			stay[p] = true
		}
	}
	h.mu.Lock()
	b.wedged = false
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

// swap makes the newcomer a member of some partitions. It returns those that had too few drives.
func (h *Healer) swap(ctx context.Context, b *rebuild, l *placement.Layout, partitions []uint32) (skipped []uint32, err error) {
	m := metadata.Swap{Transition: b.r.ID, Term: b.term, Old: b.r.Old, New: b.r.New, OldGone: true, Layout: l,
		Publish: func(ctx context.Context, partitions []uint32) error {
			return h.c.Control.PublishSwap(ctx, b.r.ID, b.term, partitions)
		}}
	for _, p := range partitions {
		m.Groups = append(m.Groups, l.Group(p))
	}
	if h.c.Fences != nil {
		m.Fences = h.c.Fences()
	}
	report, err := h.c.Mover.Swap(ctx, m)
	switch {
	case len(report.Skipped) == len(partitions) && ctx.Err() == nil:
		return report.Skipped, nil
	case err == nil && h.c.Layout().Number() <= l.Number():
		err = errs.E("heal.swap", errs.Unavailable, "the new layout is not known here yet")
	}
	return report.Skipped, err
}

// rebuildPage brings the next page of registers to the newcomer.
func (h *Healer) rebuildPage(ctx context.Context, b *rebuild, to node.Drive) error {
	l := h.c.Layout()
	here, away := h.members(l)
	if !slices.ContainsFunc(here, func(d node.Drive) bool { return d.Num() == to.Num() }) {
		return errs.E("heal.rebuild", errs.Unavailable, "the new drive is not in service")
	}
	if err := readable(l, append(away, to.Num())); err != nil {
		return err
	}
	w, err := h.walk(ctx, l, here, b.state.After.address(), nil)
	if err != nil {
		return err
	}
	if err := h.pace.take(ctx, len(w.list)*nominalBytes); err != nil {
		return err
	}
	failed := h.bringUp(ctx, b, l, to, w.list)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	h.keepNoted(ctx)
	for _, a := range failed {
		c := cursorOf(a)
		if len(c)+b.state.bytesOfBehind() > maxBehind {
			// Those that are lost need not be remembered.
			if err := h.catchUp(ctx, b, to); ctx.Err() != nil || len(c)+b.state.bytesOfBehind() > maxBehind {
				return errors.Join(err, errs.E("heal.rebuild", errs.Unavailable, "too many registers could not be brought to the new drive yet"))
			}
		}
		b.state.Behind = append(b.state.Behind, c)
		b.state.Bad++
	}
	b.state.Done += int64(len(w.list))
	b.state.After, b.state.Walked = cursorOf(w.next), !w.more
	return save(ctx, to, jobRebuild, &b.state) // from here on this page is not looked at again
}

// bringUp gives the newcomer what it lacks of the registers of list. It returns those of which it
// could not be made sure.
func (h *Healer) bringUp(ctx context.Context, b *rebuild, l *placement.Layout, to node.Drive, list []held) (failed []*metadata.Address) {
	bad := make([]error, len(list))
	var fills []*small
	var owners []int // of fills
	type large struct {
		at   int
		data metadata.Data
		i    uint32
	}
	var larges []large
	for at := range list {
		r := &list[at]
		view, err := h.chosen(ctx, r)
		if err == nil {
			err = h.bodies(ctx, r.group, r.addr, view, func(d *metadata.Data) error {
				for i := range d.Chunks() {
					j := shardOn(l, r.group, d, i, to.Num())
					switch {
					case j < 0:
					case d.Inline():
						fills, owners = append(fills, &small{addr: r.addr, group: r.group, data: *d, index: j}), append(owners, at)
					default:
						larges = append(larges, large{at, *d, i})
					}
				}
				return ctx.Err()
			})
		}
		bad[at] = err
	}
	h.fill(ctx, to, fills)
	for i, s := range fills {
		if s.err != nil && bad[owners[i]] == nil {
			bad[owners[i]] = s.err
		}
		if s.written {
			b.state.Shards++
			b.state.Bytes += int64(s.shardBytes())
		}
	}
	var mu sync.Mutex // guards bad and b.state.Shards and Bytes below
	each(h.c.Concurrency, larges, func(x large) {
		r := &list[x.at]
		written, err := h.fillChunk(ctx, l, r.group, r.addr, &x.data, x.i, to)
		mu.Lock()
		if err != nil && bad[x.at] == nil {
			bad[x.at] = err
		}
		if written > 0 {
			b.state.Shards++
			b.state.Bytes += written
		}
		h.show(b, func(*Job) {})
		mu.Unlock()
	})
	var rows []int
	for at := range list {
		if bad[at] == nil && list[at].group.Position(to.Num()) >= 0 {
			rows = append(rows, at)
		}
	}
	each(installAtOnce, rows, func(at int) {
		if err := h.installRow(ctx, &list[at], to); err != nil {
			mu.Lock()
			bad[at] = err
			mu.Unlock()
		}
	})
	for at, err := range bad {
		if err != nil {
			h.c.Logger.Info("a register could not be brought to a new drive yet", "drive", to.Num(), "bucket", list[at].addr.Bucket, "err", err)
			failed = append(failed, &list[at].addr)
		}
	}
	return failed
}

// each calls f for every element of list, at most n at a time, and waits for all.
func each[T any](n int, list []T, f func(T)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, n)
	for _, v := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(v)
		})
	}
	wg.Wait()
}

// shardOn returns the index of the shard of a chunk that belongs on a drive; -1: none does.
func shardOn(l *placement.Layout, g placement.Group, d *metadata.Data, i uint32, num uint16) int {
	cg := chunkGroup(l, g, d, i)
	pos := cg.Position(num)
	if pos < 0 {
		return -1
	}
	return slices.Index(placement.Positions(d.Profile, len(cg.Drives), d.ID), pos)
}

// fillChunk makes sure that the shard of one chunk that belongs on drive to is there and right. Only that
// one is rebuilt; the others are sources, verified as far as they are read.
func (h *Healer) fillChunk(ctx context.Context, l *placement.Layout, g placement.Group, a metadata.Address, d *metadata.Data, i uint32, to node.Drive) (written int64, err error) {
	cg, c := chunkGroup(l, g, d, i), chunkOf(a, d, i)
	j := shardOn(l, g, d, i, to.Num())
	err = h.verify(ctx, to, c, j)
	if err == nil || ctx.Err() != nil {
		return 0, err
	}
	if errs.Is(err, errs.NotFound) {
		places := placement.Positions(d.Profile, len(cg.Drives), d.ID)
		shards := make([]shardState, d.Profile.N())
		for x := range shards {
			s := &shards[x]
			s.num = cg.Drives[places[x]]
			if s.drive, _ = h.drive(s.num); s.drive != nil && x != j {
				s.good, s.presumed = true, true
			}
		}
		shards[j].drive = to
		if err = h.rebuildFiles(ctx, a, d, c, shards, []int{j}); err == nil && shards[j].good {
			return erasure.ShardFileSize(c.Profile, c.Size), nil
		}
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	// Something is damaged, here or in a source: all of them are looked at.
	if _, err := h.chunk(ctx, l, g, a, d, i); err != nil {
		return 0, err
	}
	if err := h.verify(ctx, to, c, j); err != nil {
		return 0, err
	}
	return erasure.ShardFileSize(c.Profile, c.Size), nil
}

// installRow gives drive to the chosen row of a register.
func (h *Healer) installRow(ctx context.Context, r *held, to node.Drive) error {
	pos := r.group.Position(to.Num())
	row, chosen := r.top()
	if own := r.rows[pos]; chosen && own != nil && own.Decided && own.State.ID == row.State.ID {
		return nil
	}
	if chosen && row.State.Older == 0 {
		m := &metadata.InstallRequest{Header: metadata.Header{Drive: to.Num(), Partition: r.group.Partition, Epoch: r.group.Epoch},
			Address: r.addr, Row: *row}
		m.Row.Decided, m.Row.Undo = true, nil
		if to.Install(ctx, m) == nil {
			return nil
		}
	}
	return h.c.Meta.Resync(ctx, r.group, r.addr, []int{pos})
}

// verifyNewcomer compares the newcomer with all others, and brings up what differs.
func (h *Healer) verifyNewcomer(ctx context.Context, b *rebuild, to node.Drive) error {
	const op = "heal.verify"
	if err := h.catchUp(ctx, b, to); err != nil {
		return err
	}
	for range verifyRounds {
		if h.paused() {
			return errs.E(op, errs.Busy, "healing is paused")
		}
		l := h.c.Layout()
		here, away := h.members(l)
		if len(away) > 0 {
			return errs.E(op, errs.Unavailable, "a drive is away: the new drive cannot be compared with it")
		}
		differ, err := h.differing(ctx, l, to, here)
		if err != nil || len(differ) == 0 {
			return err
		}
		n := 0
		err = h.walkSlices(ctx, l, here, differ, func(list []held) error {
			list = slices.DeleteFunc(list, func(r held) bool {
				pos := r.group.Position(to.Num())
				top, chosen := r.top()
				return pos < 0 || chosen && r.rows[pos] != nil && r.rows[pos].State.ID == top.State.ID
			})
			n += len(list)
			b.state.Repaired += int64(len(list))
			left, lost := h.mendAll(ctx, h.bringUp(ctx, b, l, to, list))
			b.state.Bad += int64(lost)
			b.state.Repaired -= int64(lost)
			if len(left) > 0 {
				return errs.E(op, errs.Unavailable, "the new drive lacks registers that could not be brought up")
			}
			return ctx.Err()
		})
		if err != nil || n == 0 {
			return err
		}
	}
	return nil // what differs now was written since
}

// mendAll repairs registers one by one that could not be brought to the newcomer together. Those of
// which data is lost for good end here: they have a repair row, are counted, and named by Status. It returns
// those that want another try.
func (h *Healer) mendAll(ctx context.Context, list []*metadata.Address) (left []*metadata.Address, lost int) {
	for _, a := range list {
		if ctx.Err() != nil {
			return append(left, a), lost
		}
		switch got, err := h.mend(ctx, *a); {
		case errors.Is(err, errLost) && !errors.Is(err, errUnkept):
			lost++
		case got < verified || err != nil:
			left = append(left, a)
		}
	}
	return left, lost
}

// catchUp tries what was left behind again.
func (h *Healer) catchUp(ctx context.Context, b *rebuild, to node.Drive) error {
	if len(b.state.Behind) == 0 {
		return nil
	}
	l := h.c.Layout()
	var list []held
	for _, c := range b.state.Behind {
		if a := c.address(); a != nil {
			g := l.Group(l.PartitionOf(a.Bucket, a.Key))
			list = append(list, held{addr: *a, group: g, rows: make([]*metadata.Row, len(g.Drives))}) // read by quorum
		}
	}
	left, lost := h.mendAll(ctx, h.bringUp(ctx, b, l, to, list))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// What is lost is named durably before it is forgotten here.
	if err := h.keepLost(ctx); err != nil {
		return err
	}
	b.state.Repaired += int64(len(b.state.Behind) - len(left) - lost)
	b.state.Behind = nil
	for _, a := range left {
		b.state.Behind = append(b.state.Behind, cursorOf(a))
	}
	if err := save(ctx, to, jobRebuild, &b.state); err != nil {
		return err
	}
	if len(left) > 0 {
		return errs.E("heal.catchUp", errs.Unavailable, "registers could not be brought to the new drive yet")
	}
	return nil
}
