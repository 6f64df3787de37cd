package heal

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// check is the job that verifies everything: every register on all of its members, every shard of every
// body on its drive. What is found is repaired at once, and what cannot be is on the work lists then. Only a
// check that left nothing behind makes the store healthy, and a drive that goes away ends that.
//
// What is written later no check has seen, so one begins by itself now and then, too. As long as the scrubs read
// what is there in time, that one reads no shards: it looks whether the rows are equal, and each shard is there in
// its length (checkState.Light). It reads them if most are younger than what was read: so whatever is written
// adds one reading or two to those of the scrubs.
//
// state, loaded and meter belong to the goroutine of the jobs; h.mu guards the other fields.
type check struct {
	state  checkState
	loaded bool
	meter  meter

	shown  checkState // what Status tells: a copy of state
	job    Job        // of the check under way
	wanted bool       // StartCheck was called
	taints string     // why the last result does not hold any more, not durable yet
	lost   lost
	survey survey
	// Of a store of several processes: knows, whether the state was read by this one, which makes the check; and what
	// another one has told.
	knows    bool
	reported reported

	lostRead bool // ownLost was; of the goroutine of the jobs
}

// checkState is kept on every local drive.
type checkState struct {
	Serial uint64 // rises with each save: the newest of the drives' copies counts
	// The check under way, if Begun is not zero.
	Begun         time.Time
	Light         bool // shards are looked for, not read
	After         cursor
	Walked        bool
	Done, Total   int64
	Shards, Bytes int64
	TotalBytes    int64
	Bad, Repaired int64
	// The last complete one.
	Verified          time.Time // zero: none
	VerifiedFrom      time.Time // when it began: what was written since, it may not have seen
	Read              time.Time // when the last one began that read all shards; zero: none did
	VerifiedRegisters int64
	VerifiedShards    int64
	VerifiedBytes     int64
	Tainted           string    // why it does not hold any more; empty: it does
	Again             string    // why that of the check under way will not hold; empty: it will
	Auto              time.Time // when one last began by itself
	Lost              []cursor  // registers that are known to be lost, as many as are named
}

// StartCheck asks for a complete check that reads every shard. One that is under way goes on, and another follows it, unless it
// only looks and does not read: then this one takes its place.
func (h *Healer) StartCheck() {
	h.mu.Lock()
	h.check.wanted = true
	h.mu.Unlock()
	h.kick(h.jobs)
}

// taint says that the result of the last check holds no more, until the next.
func (h *Healer) taint(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.check.taints == "" {
		h.check.taints = why
	}
}

// loadCheck reads the newest copy of the state.
func (h *Healer) loadCheck(ctx context.Context) error {
	if h.check.loaded {
		return nil
	}
	n := 0
	var fails []error
	for _, d := range h.checkDrives() {
		var s checkState
		if err := h.load(ctx, d, jobCheck, &s); err != nil {
			fails = append(fails, err)
			continue
		}
		if n++; s.Serial > h.check.state.Serial {
			h.check.state = s
		}
	}
	if n == 0 {
		return errors.Join(append(fails, errs.E("heal.check", errs.Unavailable, "no drive is here"))...)
	}
	if s := &h.check.state; s.VerifiedFrom.IsZero() { // kept by a version that did not know
		s.VerifiedFrom, s.Read = s.Verified, s.Verified
	}
	h.check.loaded = true
	h.takeLost(h.check.state.Lost)
	h.showCheck(JobRunning, nil)
	h.mu.Lock()
	h.check.knows = true
	h.mu.Unlock()
	return nil
}

// saveCheck stores the state on the local drives; in a store of several processes, how a check begins and ends, on all
// that are here. One that keeps it suffices.
func (h *Healer) saveCheck(ctx context.Context) error {
	s := &h.check.state
	s.Serial++
	if h.c.Checks == nil {
		s.Lost = h.lostNames()
	}
	drives := h.local()
	if s.After == nil {
		drives = h.checkDrives()
	}
	n := 0
	var fails []error
	for _, d := range drives {
		if err := save(ctx, d, jobCheck, s); err != nil {
			fails = append(fails, err)
			continue
		}
		n++
	}
	if n == 0 {
		return errors.Join(append(fails, errs.E("heal.check", errs.Unavailable, "no drive kept the state of the check"))...)
	}
	return nil
}

// showCheck updates what Status tells.
func (h *Healer) showCheck(state string, err error) {
	s := &h.check.state
	h.check.meter.mark(h.c.Now(), s.Done, s.Bytes)
	j := Job{Kind: KindCheck, State: state, Begun: s.Begun, Done: s.Done, Total: max(s.Total, s.Done), Shards: s.Shards, Bytes: s.Bytes,
		Phase: phaseOf(s), Bad: s.Bad, Repaired: s.Repaired}
	if err != nil {
		j.LastErr = err.Error()
	}
	if state == JobRunning {
		h.check.meter.fill(&j, s.TotalBytes)
	} else {
		h.check.meter = meter{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.check.shown, h.check.job = *s, j
}

// checkOnce begins a check if one is due, and goes on with it as far as it comes. Where another process makes it, it asks
// that one how things stand.
func (h *Healer) checkOnce(ctx context.Context) error {
	if !h.checksHere() {
		return h.followCheck(ctx)
	}
	if err := h.loadCheck(ctx); err != nil {
		return err
	}
	s := &h.check.state
	if err := h.keepTaint(ctx); err != nil {
		return err
	}
	if err := h.keepLost(ctx); err != nil {
		return err
	}
	h.lookOver(ctx)
	if due := h.checkDue(); due != notDue && (s.Begun.IsZero() || s.Light && due == dueAsked) {
		h.beginCheck(ctx, due)
		if err := h.saveCheck(ctx); err != nil {
			return err
		}
	}
	if s.Begun.IsZero() {
		return nil
	}
	if h.paused() {
		h.showCheck(JobPaused, nil)
		return nil
	}
	err := h.checkAll(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		h.showCheck(JobWaiting, err)
	}
	return h.keepLost(ctx)
}

// keepTaint makes durable that the last result does not hold.
func (h *Healer) keepTaint(ctx context.Context) error {
	h.mu.Lock()
	why := h.check.taints
	h.mu.Unlock()
	s := &h.check.state
	changed := false
	for _, at := range []*string{&s.Tainted, &s.Again} {
		if why != "" && *at == "" && (at == &s.Tainted || !s.Begun.IsZero()) {
			*at, changed = why, true
		}
	}
	if changed {
		if err := h.saveCheck(ctx); err != nil {
			return err
		}
		h.mu.Lock()
		h.check.shown.Tainted = s.Tainted
		h.mu.Unlock()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.check.taints == why {
		h.check.taints = ""
	}
	return nil
}

// due says why a check is to begin.
type due uint8

const (
	notDue   due = iota
	dueAsked     // somebody wants one
	dueProof     // none says that all is well
	dueAgain     // the last one is old, and the scrubs are late, or most shards were written since they passed
	dueLight     // the last one is old
)

// checkDue reports whether a check is to begin: somebody wants one; or, if nothing is pending, none says that
// all is well and it is long enough since one last began for that, or the last one is old.
func (h *Healer) checkDue() due {
	s := &h.check.state
	now := h.c.Now()
	_, away := h.members(h.c.Layout())
	moving := len(h.c.Replacements()) > 0 || h.planOpen()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.check.wanted {
		return dueAsked
	}
	calm := len(away) == 0 && !moving && h.backlog == 0 && h.progress.Passes > 0 && !h.settings.Paused
	period := h.settings.ScrubPeriod
	switch {
	case !calm || h.c.CheckEvery < 0:
	case s.Verified.IsZero() || s.Tainted != "":
		if s.Auto.IsZero() || passed(now, s.Auto, h.c.CheckEvery) {
			return dueProof
		}
	case !passed(now, s.Verified, min(h.c.CheckEvery, period/2)):
	case h.check.survey.fresh || passed(now, h.check.survey.read, 2*period) && !h.settings.ScrubPaused:
		return dueAgain
	default:
		return dueLight
	}
	return notDue
}

func (h *Healer) beginCheck(ctx context.Context, why due) {
	s := &h.check.state
	now := h.c.Now()
	*s = checkState{Serial: s.Serial, Begun: now, Light: why == dueLight, Verified: s.Verified, VerifiedFrom: s.VerifiedFrom, Read: s.Read,
		VerifiedRegisters: s.VerifiedRegisters, VerifiedShards: s.VerifiedShards, VerifiedBytes: s.VerifiedBytes, Tainted: s.Tainted, Auto: s.Auto}
	if why == dueProof {
		s.Auto = now
	}
	if s.Tainted == "" && !s.Verified.IsZero() {
		s.Total = s.VerifiedRegisters
	}
	for _, d := range h.local() {
		if shards, bytes, err := d.ShardUsage(ctx); err == nil {
			s.TotalBytes += bytes
			s.Total = max(s.Total, shards)
		}
	}
	h.mu.Lock()
	h.check.wanted = false
	h.mu.Unlock()
	h.check.meter = meter{}
}

// checkAll goes through all registers and ends the check.
func (h *Healer) checkAll(ctx context.Context) error {
	s := &h.check.state
	for !s.Walked {
		h.showCheck(JobRunning, nil)
		if h.paused() {
			h.showCheck(JobPaused, nil)
			return nil
		}
		if !h.checksHere() {
			return nil // another process goes on
		}
		if len(h.c.Replacements()) > 0 {
			h.kick(h.jobs)
			return errs.E("heal.check", errs.Busy, "a drive is being replaced")
		}
		if h.planOpen() {
			return errs.E("heal.check", errs.Busy, "data are moving to other drives")
		}
		if err := h.checkPage(ctx); err != nil {
			return errs.Wrap("heal.check", err)
		}
		if err := h.saveCheck(ctx); err != nil {
			return err
		}
	}
	if !h.checksHere() {
		return nil
	}
	return h.endCheck(ctx)
}

// endCheck ends the check if nothing that it found is left, and no drive went away since.
func (h *Healer) endCheck(ctx context.Context) error {
	const op = "heal.check"
	s := &h.check.state
	if err := h.keepTaint(ctx); err != nil {
		return err
	}
	left := 0
	if s.Bad > s.Repaired { // what could not be mended at once is on the lists until it is
		for _, d := range h.checkDrives() {
			list, err := d.Repairs(ctx, nil, 1)
			if err != nil {
				return errs.Wrap(op, err)
			}
			left += len(list)
		}
	}
	if left > 0 {
		return errs.E(op, errs.Unavailable, "findings could not be repaired yet")
	}
	if _, gone := h.members(h.c.Layout()); len(gone) > 0 {
		return errs.E(op, errs.Unavailable, "a drive is away")
	}
	before := *s
	s.Repaired = s.Bad
	s.Total = s.Done
	s.Verified, s.VerifiedRegisters, s.VerifiedShards, s.VerifiedBytes = h.c.Now(), s.Done, s.Shards, s.Bytes
	s.VerifiedFrom = s.Begun
	if !s.Light {
		s.Read = s.Begun
	}
	s.Tainted, s.Again = s.Again, ""
	s.Begun, s.Light, s.After, s.Walked = time.Time{}, false, nil, false
	// The one point from which on the store counts as verified.
	if err := h.saveCheck(ctx); err != nil {
		*s = before
		return err
	}
	h.showCheck(JobDone, nil)
	h.mu.Lock()
	h.check.job.Begun, h.check.job.Ended, h.check.job.Phase = before.Begun, s.Verified, phaseOf(&before)
	h.end(h.check.job)
	h.check.survey.at = time.Time{}
	h.mu.Unlock()
	what := "everything was verified"
	if before.Light {
		what = "everything is there"
	}
	h.c.Logger.Info(what, "registers", s.Done, "shards", s.Shards, "bytes", s.Bytes, "repaired", s.Repaired)
	h.lookOver(ctx)
	return nil
}

// checkPage verifies the next page of registers, and repairs what is wrong. It does not pass on before each
// register was verified, or has a repair row that holds up the end of the check.
func (h *Healer) checkPage(ctx context.Context) error {
	s := &h.check.state
	l := h.c.Layout()
	h.newPass()
	here, away := h.members(l)
	if len(away) > 0 {
		return errs.E("heal.checkPage", errs.Unavailable, "a drive is away: nothing can be verified on all drives")
	}
	for _, d := range here {
		if late, err := h.incomplete(ctx, d); late || err != nil {
			return errors.Join(err, errs.E("heal.checkPage", errs.Busy, "a drive is being rebuilt"))
		}
	}
	w, err := h.walk(ctx, l, here, s.After.address(), nil)
	if err != nil {
		return err
	}
	if err := h.pace.take(ctx, len(w.list)*nominalBytes); err != nil {
		return err
	}
	bad, shards, bytes := h.inspect(ctx, l, w.list, s.Light)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var found, repaired int64
	for at := range w.list {
		r := &w.list[at]
		if !bad[at] {
			if row, _ := r.top(); row != nil && row.State.Current == nil {
				h.hintTomb(&r.addr)
			}
			continue
		}
		written := h.shards.Load()
		got, err := h.mend(ctx, r.addr)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, errUnkept):
			return err
		case got < verified || err != nil:
			found++
			if err == nil {
				err = errChanged
			}
			h.c.Logger.Warn("a check found damage that cannot be repaired yet", "bucket", r.addr.Bucket, "err", err)
		case h.shards.Load() != written || !r.equal(func(uint16) bool { return true }) && !r.unsettled:
			found++
			repaired++
		}
		// Else a writer was at it: all is there now.
	}
	s.Bad += found
	s.Repaired += repaired
	s.Done += int64(len(w.list))
	s.Shards += shards
	s.Bytes += bytes
	s.After, s.Walked = cursorOf(w.next), !w.more
	return nil
}

// inspect verifies the registers of list on all drives: equal rows, all decided, and every shard; light: of a
// shard, that it is there in its length. bad marks those of which something is not so.
func (h *Healer) inspect(ctx context.Context, l *placement.Layout, list []held, light bool) (bad []bool, shards, bytes int64) {
	bad = make([]bool, len(list))
	type place struct {
		at   int
		d    metadata.Data
		j    int
		size int
	}
	inline := make(map[uint16][]place) // by drive
	type large struct {
		at    int
		chunk erasure.Chunk
		num   uint16
		j     int
	}
	var larges []large
	for at := range list {
		r := &list[at]
		if !r.equal(func(uint16) bool { return true }) {
			bad[at] = true
			continue
		}
		row, _ := r.top()
		err := h.bodies(ctx, r.group, r.addr, &metadata.View{State: &row.State, Ballot: row.Ballot}, func(d *metadata.Data) error {
			for i := range d.Chunks() {
				cg := chunkGroup(l, r.group, d, i)
				places, err := placesOf(cg, d)
				if err != nil {
					return err
				}
				for j, pos := range places {
					if num := cg.Drives[pos]; d.Inline() && !light {
						inline[num] = append(inline[num], place{at, *d, j, inlineSize(d)})
					} else {
						larges = append(larges, large{at, chunkOf(r.addr, d, i), num, j})
					}
				}
			}
			return ctx.Err()
		})
		bad[at] = err != nil
	}
	var mu sync.Mutex // guards bad, shards and bytes
	var wg sync.WaitGroup
	for num, places := range inline {
		wg.Go(func() { // one for each drive
			for len(places) > 0 {
				n, size := 0, 0
				for n < len(places) && n < smallBatch && (n == 0 || size < smallBytes) {
					size += places[n].size
					n++
				}
				rows := h.inlineOf(ctx, num, size, n, func(i int) erasure.DataID { return places[i].d.ID })
				mu.Lock()
				for i, p := range places[:n] {
					if rows == nil || rows[i] == nil || erasure.VerifyInline(p.d.Profile, p.d.ID, p.d.Size, p.j, rows[i]) != nil {
						bad[p.at] = true
					}
					shards++
					bytes += int64(p.size)
				}
				mu.Unlock()
				places = places[n:]
			}
		})
	}
	wg.Wait()
	each(h.c.Concurrency, larges, func(x large) {
		var err error = errs.E("heal.inspect", errs.Unavailable, "the drive is away")
		size := erasure.ShardFileSize(x.chunk.Profile, x.chunk.Size)
		if d, ok := h.drive(x.num); ok && light {
			var st disk.ShardStat
			if err = h.pace.take(ctx, nominalBytes/8); err == nil {
				st, err = d.StatShard(ctx, x.chunk.Shard(x.j))
			}
			size = st.Row.Size
		} else if ok {
			err = h.verify(ctx, d, x.chunk, x.j)
		}
		mu.Lock()
		defer mu.Unlock()
		bad[x.at] = bad[x.at] || err != nil
		shards++
		bytes += size
	})
	return bad, shards, bytes
}

// inlineOf reads n inline shards of a drive; nil: it did not answer.
func (h *Healer) inlineOf(ctx context.Context, num uint16, size, n int, id func(int) erasure.DataID) [][]byte {
	d, ok := h.drive(num)
	if !ok || h.pace.take(ctx, size) != nil {
		return nil
	}
	ids := make([]erasure.DataID, n)
	for i := range ids {
		ids[i] = id(i)
	}
	rows, err := d.InlineShards(ctx, ids)
	if err != nil || len(rows) != n {
		return nil
	}
	return rows
}

var _ node.Drive = bounded{}
