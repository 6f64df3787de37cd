package heal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// Recoder writes bodies again in the profile that their storage class asks for. object.Store is one.
type Recoder interface {
	// ProfileOf returns the profile that a new write of a storage class to a partition has.
	ProfileOf(l *placement.Layout, class string, partition uint32) erasure.Profile
	// Recode writes what a version of an object's register names again, if its profile is another one: how many bodies,
	// of how many bytes without parity. pace is waited for before bytes are worked on. An error of kind Busy
	// says that it is to wait for long, Unavailable that drives are away; on any error the version is as it was. It may be called by
	// several goroutines, and by several processes for one version.
	Recode(ctx context.Context, a metadata.Address, seq uint64, pace func(context.Context, int) error) (bodies int, size int64, err error)
	// EndRecode ends what a re-coding that was cut short left of an upload, if no version can come to name it.
	EndRecode(ctx context.Context, a metadata.Address) error
}

// Data keep the profile that they were written with, until they are re-coded here: when the layout has another
// profile for their storage class. Each drive's rows are walked once for each layout, when nothing is moving any
// more. What a walk meets in another profile is given to the Recoder by one process: the one that has the first
// member of the partition that is here. Where a drive is, it keeps itself. It is done with a layout when a walk of it
// met nothing left, and began when no write could be under way any more that knew only the layout before: so there
// are at least two walks of the rows for a layout, the second a day after the first, and then none.
//
// Registers of which that process does not see the row, because its drive missed it, are met on other members: once
// that process is through with its walk, whoever still meets old data takes care of it. It is safe that two
// do: the register decides.

// recodeState is how far a drive is. The drive keeps it.
type recodeState struct {
	Mark  string    // the layout that it is for
	Since time.Time // when the drive first met that
	Done  bool      // all of the drive's rows are known to name data in its profiles
	Round int       // walks that have begun
	Begun time.Time // of the last walk
	Ended time.Time // of the last walk; zero: it is under way
	After cursor
	Rows  int64 // registers that the walk has passed
	Total int64 // estimated when it began
	// Of what it met: versions that could not be re-coded, that are another process's, and that are to wait for long, as
	// those of uploads that are not completed.
	Left, Others, Late int64
	// What was re-coded from this drive's walks since Since.
	Bodies, Bytes int64
	// Clean names the profiles, by profilesOf, for which a walk met nothing to be re-coded: data that have others can only
	// come of writes that were under way then.
	Clean string
}

// recoding is what a Healer has for it. states, meter and asked belong to the goroutine that re-codes.
type recoding struct {
	states map[uint16]*recodeState
	meter  meter

	asked map[uint16]time.Time // by local drive: when the others were last asked whether they are through

	// h.mu guards the fields below.
	job    Job
	clean  map[uint16]string // by local drive: recodeState.Clean
	active bool              // there is something to re-code, as far as is known
	soon   bool              // what could not be re-coded is tried again now
}

const (
	// recodeLeast is how long what could not be re-coded waits at least, as for a drive that is away. A walk that met such
	// takes at most a tenth of the time, as long as that means to wait for less than recodePause, and else a half.
	recodeLeast = time.Minute
	recodePause = 10 * time.Minute
	// recodeLongest bounds that.
	recodeLongest = 24 * time.Hour
)

// pause is how long to wait after a walk that met what it could not re-code.
func (s *recodeState) pause() time.Duration {
	walk := s.Ended.Sub(s.Begun)
	return min(max(10*walk, recodeLeast), max(walk, recodePause), recodeLongest)
}

// markOf names a layout, as far as re-coding is concerned.
func markOf(l *placement.Layout) string {
	return fmt.Sprintf("%d %s %s", l.Number(), l.Profile(), l.Reduced())
}

// next decides whether a walk is to begin now: grace after the layout was met, as in the middle of a plan one follows
// upon the other; look is after how long no write is under way any more that knew only the layout before.
func (s *recodeState) next(now time.Time, grace, look time.Duration, soon bool) bool {
	switch {
	case s.Done || s.Round > 0 && s.Ended.IsZero():
		return false
	case s.Round == 0:
		return passed(now, s.Since, grace)
	case s.Left+s.Others > 0:
		return soon || passed(now, s.Ended, s.pause())
	case s.Late > 0:
		return passed(now, s.Ended, look)
	}
	return passed(now, s.Since, look)
}

// end takes note of the end of a walk.
func (s *recodeState) end(now time.Time, look time.Duration) {
	s.Ended, s.After = now, nil
	s.Done = s.Left+s.Others+s.Late == 0 && passed(s.Begun, s.Since, look)
}

// walking reports whether a walk is under way.
func (s *recodeState) walking() bool { return s.Round > 0 && s.Ended.IsZero() }

// recodeSoon has what could not be re-coded tried again. h.mu is held.
func (h *Healer) recodeSoon() {
	h.recoding.soon = true
	h.kick(h.recode)
}

// recodeAll walks the local drives that are not done with the present layout, one after the other.
func (h *Healer) recodeAll(ctx context.Context) error {
	l := h.c.Layout()
	if h.c.Recoder == nil || l == nil {
		return nil
	}
	mark := markOf(l)
	h.mu.Lock()
	soon := h.recoding.soon
	h.recoding.soon = false
	h.mu.Unlock()
	var fails []error
	for _, d := range h.local() {
		if err := h.recodeDrive(ctx, d, mark, soon); err != nil {
			fails = append(fails, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	err := errors.Join(fails...)
	state, ok := h.still(mark)
	if ok {
		state = JobWaiting
	}
	h.showRecode(mark, state, err)
	return errs.Wrap("heal.recode", err)
}

// still reports whether re-coding may go on: nothing is paused, nothing is moving, and the layout is the same.
func (h *Healer) still(mark string) (state string, ok bool) {
	l := h.c.Layout()
	switch {
	case h.paused():
		return JobPaused, false
	case l.Widening() || h.planOpen() || len(h.c.Replacements()) > 0 || markOf(l) != mark:
		return JobWaiting, false
	}
	return JobRunning, true
}

// recodeDrive begins a walk of a drive if one is due, and goes on with it as far as it comes.
func (h *Healer) recodeDrive(ctx context.Context, d node.Drive, mark string, soon bool) error {
	s, err := h.recodeStateOf(ctx, d)
	if err != nil {
		return err
	}
	h.noteClean(d.Num(), s)
	if s.Mark == mark && s.Done {
		return nil
	}
	if _, ok := h.still(mark); !ok {
		return nil
	}
	now := h.c.Now()
	if s.Mark != mark {
		*s = recodeState{Mark: mark, Since: now, Clean: s.Clean}
	}
	if s.next(now, h.c.Grace, h.c.OrphanAge, soon) && (soon || h.worthIt(ctx, d.Num(), s, now)) {
		s.Round++
		s.Begun, s.Ended, s.After, s.Rows, s.Left, s.Others, s.Late = now, time.Time{}, nil, 0, 0, 0, 0
		if s.Total, _, err = d.ShardUsage(ctx); err == nil {
			err = save(ctx, d, jobRecode, s)
		}
		if err != nil {
			s.Mark = "" // it begins anew
			return err
		}
	}
	others := make(map[uint16]bool)
	for s.walking() {
		state, ok := h.still(mark)
		h.showRecode(mark, state, nil)
		if !ok {
			return nil
		}
		h.newPass()
		// What a page has changed holds only once it is kept: else it is walked again.
		after := *s
		if err := h.recodePage(ctx, d, &after, others); err != nil {
			s.Bodies, s.Bytes = after.Bodies, after.Bytes // it was done all the same
			if errors.Is(err, errPaused) {
				continue
			}
			return err
		}
		if err := save(ctx, d, jobRecode, &after); err != nil {
			return err
		}
		*s = after
		h.noteClean(d.Num(), s)
	}
	return nil
}

// profilesOf names the profiles that data have once all are re-coded.
func profilesOf(l *placement.Layout) string {
	return fmt.Sprintf("%s %s %d", l.Profile(), l.Reduced(), l.Narrow())
}

func (h *Healer) noteClean(num uint16, s *recodeState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.recoding.clean == nil {
		h.recoding.clean = make(map[uint16]string)
	}
	h.recoding.clean[num] = s.Clean
}

// oldProfiles reports whether some data of partitions that became wider may still have the profile of before, as far as
// the local drives tell. h.mu is held.
func (h *Healer) oldProfiles(l *placement.Layout, local []uint16) bool {
	return len(l.Profiles()) > 1 && slices.ContainsFunc(local, func(num uint16) bool { return h.recoding.clean[num] != profilesOf(l) })
}

// Recoded reports whether walks of all drives of the layout, but for those that are gone, have met nothing that is to be
// re-coded. It is false where one of them does not answer.
func (h *Healer) Recoded(ctx context.Context, gone func(num uint16) bool) bool {
	l := h.c.Layout()
	if len(l.Profiles()) == 1 {
		return true
	}
	for _, d := range l.Drives() {
		if gone(d.Num) || len(l.PartitionsOf(d.Num)) == 0 {
			continue
		}
		var s recodeState
		at, ok := h.drive(d.Num)
		if !ok || h.load(ctx, at, jobRecode, &s) != nil || s.Clean != profilesOf(l) {
			return false
		}
	}
	return true
}

// worthIt reports whether another walk may find something to do: not as long as all that the last one met is others', and
// they are not through.
func (h *Healer) worthIt(ctx context.Context, num uint16, s *recodeState, now time.Time) bool {
	if s.Others == 0 || s.Left > 0 {
		return true
	}
	if at, ok := h.recoding.asked[num]; ok && !passed(now, at, recodeLeast) {
		return false
	}
	if h.recoding.asked == nil {
		h.recoding.asked = make(map[uint16]time.Time)
	}
	h.recoding.asked[num] = now
	here, _ := h.members(h.c.Layout())
	return !slices.ContainsFunc(here, func(d node.Drive) bool { return !h.through(ctx, d, s.Mark) })
}

// through reports whether a drive, of whichever process, has been walked for a layout.
func (h *Healer) through(ctx context.Context, d node.Drive, mark string) bool {
	var s recodeState
	return h.load(ctx, d, jobRecode, &s) == nil && s.Mark == mark && (s.Round > 1 || !s.Ended.IsZero())
}

// recodeStateOf returns the state of a local drive.
func (h *Healer) recodeStateOf(ctx context.Context, d node.Drive) (*recodeState, error) {
	if s := h.recoding.states[d.Num()]; s != nil {
		return s, nil
	}
	s := new(recodeState)
	if err := h.load(ctx, d, jobRecode, s); err != nil {
		return nil, err
	}
	if h.recoding.states == nil {
		h.recoding.states = make(map[uint16]*recodeState)
	}
	h.recoding.states[d.Num()] = s
	return s, nil
}

// errPaused: healing was paused in the middle of a page, which is walked again.
var errPaused = errs.E("heal.recode", errs.Unavailable, "healing is paused")

// oldBody is a version whose data may have to be re-coded.
type oldBody struct {
	addr metadata.Address
	seq  uint64
	size int64
}

// recodePage walks the next rows of a drive, and re-codes what is this process's to do. others remembers, for the
// length of a walk, which drives are through with theirs.
func (h *Healer) recodePage(ctx context.Context, d node.Drive, s *recodeState, others map[uint16]bool) error {
	l := h.c.Layout()
	r, err := d.Rows(ctx, &metadata.RowsRequest{After: s.After.address(), Limit: walkPage})
	if err != nil {
		return err
	}
	if r.More && r.Next == nil {
		return errs.E("heal.recode", errs.Internal, "a page of rows does not say where it ends")
	}
	if err := h.pace.take(ctx, len(r.Rows)*nominalBytes/8); err != nil {
		return err
	}
	var list []oldBody
	var part metadata.Address // the upload that was last looked at for its parts
	for i := range r.Rows {
		w := &r.Rows[i]
		g := l.Group(l.PartitionOf(w.Address.Bucket, w.Address.Key))
		if w.Row == nil || w.Row.State.Current == nil || g.Position(d.Num()) < 0 {
			continue
		}
		switch w.Address.Kind {
		case metadata.KindObject:
			old, err := h.oldBodies(ctx, l, g, d, w)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				s.Left++ // it changes, or too few drives tell
			case len(old) == 0:
			case !h.mine(ctx, g, s, others):
				s.Others += int64(len(old))
			case !h.allHere(g):
				s.Left += int64(len(old))
			default:
				list = append(list, old...)
			}
		case metadata.KindUpload:
			// Objects come before uploads: what is being re-coded now was cut short.
			if cur := w.Row.State.Current; cur.Completed != nil && cur.Completed.Upload != w.Address.Upload && h.mine(ctx, g, s, others) {
				if err := h.c.Recoder.EndRecode(ctx, w.Address); err != nil {
					s.Left++
				}
			}
		case metadata.KindPart:
			up := metadata.Address{Kind: metadata.KindUpload, Bucket: w.Address.Bucket, Key: w.Address.Key, Upload: w.Address.Upload}
			if compareAddress(&up, &part) != 0 && h.mine(ctx, g, s, others) {
				part = up
				if h.openWithOld(ctx, l, g, &up, w.Row.State.Current) {
					s.Late++
				}
			}
		}
	}
	h.recodeList(ctx, s, list)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case h.paused():
		return errPaused
	}
	s.Rows += int64(len(r.Rows))
	s.After = cursorOf(r.Next)
	if !r.More {
		if s.end(h.c.Now(), h.c.OrphanAge); s.Left+s.Others+s.Late == 0 {
			s.Clean = profilesOf(l)
		}
	}
	return nil
}

// oldBodies lists the versions of an object's register that may have to be re-coded: those with data in another
// profile, and those with parts, of which only their manifest tells. An undecided row is not believed.
func (h *Healer) oldBodies(ctx context.Context, l *placement.Layout, g placement.Group, d node.Drive, w *metadata.RegisterRow) (list []oldBody, err error) {
	look := func(v *metadata.Version) {
		if v.IsLive() && (v.Manifest != nil || v.Data != nil && v.Data.Profile != h.c.Recoder.ProfileOf(l, v.Class, g.Partition)) {
			list = append(list, oldBody{w.Address, v.Seq, v.Size})
		}
	}
	st := &w.Row.State
	members := []node.Drive{d}
	if !w.Row.Decided {
		view, err := h.c.Meta.Read(ctx, g, w.Address, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
		if err != nil || view.State == nil || view.State.Current == nil {
			return nil, err
		}
		st, members = view.State, nil
		for _, num := range g.Drives {
			if m, ok := h.drive(num); ok {
				members = append(members, m)
			}
		}
	}
	look(st.Current)
	if st.Older == 0 {
		return list, nil
	}
	for below := ^uint64(0); ; {
		versions, more, err := versionsOf(ctx, members, g, w.Address, st.ID, below)
		if err != nil {
			return nil, err
		}
		for i := range versions {
			look(&versions[i])
			below = versions[i].Seq
		}
		if !more || len(versions) == 0 {
			return list, nil
		}
	}
}

// versionsOf reads a page of the version rows of a state from one of the members that holds it.
func versionsOf(ctx context.Context, members []node.Drive, g placement.Group, a metadata.Address, id metadata.Ballot, below uint64) ([]metadata.Version, bool, error) {
	for _, d := range members {
		reply, err := d.Versions(ctx, &metadata.VersionsRequest{
			Header:  metadata.Header{Drive: d.Num(), Partition: g.Partition, Epoch: g.Epoch},
			Address: a, Below: below, Limit: page,
		})
		if err == nil && reply.Row != nil && reply.Row.State.ID == id {
			return reply.Versions, reply.More, nil
		}
	}
	return nil, false, errs.E("heal.recode", errs.Unavailable, "no drive holds the state that was read")
}

// mine reports whether old data of a partition is for this process to re-code: it has the first member that is
// here, or that one is through with its own walk.
func (h *Healer) mine(ctx context.Context, g placement.Group, s *recodeState, others map[uint16]bool) bool {
	for _, num := range g.Drives {
		first, ok := h.drive(num)
		if !ok {
			continue
		}
		if slices.ContainsFunc(h.c.Local(), func(d node.Drive) bool { return d.Num() == num }) {
			return true
		}
		if s.Round < 2 {
			return false
		}
		over, known := others[num]
		if !known {
			over = h.through(ctx, first, s.Mark)
			others[num] = over
		}
		return over
	}
	return false
}

// allHere reports whether all members of a partition are here: what is re-coded has all its shards, so that nothing
// need be tried before. Of bodies of several chunks that says not all.
func (h *Healer) allHere(g placement.Group) bool {
	for _, num := range g.Drives {
		if _, ok := h.drive(num); !ok {
			h.mu.Lock()
			h.recoding.job.LastErr = fmt.Sprintf("drive %d is away", num)
			h.mu.Unlock()
			return false
		}
	}
	return true
}

// openWithOld reports whether a part belongs to an upload that is not completed, and is not in the profile that the
// upload's class asks for: the object that it becomes may have to be re-coded then.
func (h *Healer) openWithOld(ctx context.Context, l *placement.Layout, g placement.Group, up *metadata.Address, part *metadata.Version) bool {
	view, err := h.c.Meta.Read(ctx, g, *up, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
	if err != nil {
		return true // it is not known
	}
	if view.State == nil || view.State.Current == nil {
		return false
	}
	switch cur := view.State.Current; cur.Status {
	case metadata.UploadOpen, metadata.UploadCompleting, metadata.UploadAborting:
		return part.Data != nil && part.Data.Profile != h.c.Recoder.ProfileOf(l, cur.Class, g.Partition)
	}
	return false
}

// recodeList re-codes some versions, and keeps count in s.
func (h *Healer) recodeList(ctx context.Context, s *recodeState, list []oldBody) {
	var mu sync.Mutex // guards s
	each(h.c.Concurrency, list, func(o oldBody) {
		if ctx.Err() != nil {
			return
		}
		bodies, size, err := h.recodeOne(ctx, &o)
		mu.Lock()
		defer mu.Unlock()
		s.Bodies += int64(bodies)
		s.Bytes += size
		switch {
		case err == nil || ctx.Err() != nil:
		case errs.Is(err, errs.Busy):
			s.Late++
		default:
			s.Left++
			h.mu.Lock()
			h.recoding.job.LastErr = err.Error()
			h.mu.Unlock()
			h.c.Logger.Debug("a version could not be re-coded yet", "bucket", o.addr.Bucket, "err", err)
		}
	})
}

// recodeOne re-codes one version. A call that hangs is cut off: it may take as long as all that it reads and writes may,
// besides what it waits for its turn.
func (h *Healer) recodeOne(ctx context.Context, o *oldBody) (bodies int, size int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := new(stopwatch)
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		timer := time.NewTimer(h.bound(recodeWork * o.size))
		defer timer.Stop()
		for {
			select {
			case <-done:
				return
			case <-timer.C:
			}
			more := w.take()
			if more <= 0 {
				cancel(context.DeadlineExceeded)
				return
			}
			timer.Reset(more)
		}
	})
	bodies, size, err = h.c.Recoder.Recode(ctx, o.addr, o.seq, w.pausing(func(ctx context.Context, n int) error {
		if h.paused() {
			return errPaused // the data that was begun goes; parts that are done stay
		}
		return h.pace.take(ctx, n)
	}))
	close(done)
	watch.Wait()
	return bodies, size, err
}

// recodeWork is how many bytes are read and written for each byte of a body, at most about that.
const recodeWork = 4

// showRecode updates what Status tells, and ends the job when nothing is left of it.
func (h *Healer) showRecode(mark, state string, err error) {
	j := Job{Kind: KindRecode, State: state}
	walking, found := false, false
	for _, s := range h.recoding.states {
		if s.Mark != mark {
			continue
		}
		walking = walking || s.walking()
		found = found || s.Bodies > 0 || s.Left > 0
		j.Bad += s.Left
		j.Shards += s.Bodies
		j.Bytes += s.Bytes
		j.Done += s.Rows
		j.Total += s.Rows
		if s.walking() {
			j.Total += max(s.Total-s.Rows, 0)
		}
		if j.Begun.IsZero() || s.Since.Before(j.Begun) {
			j.Begun = s.Since
		}
	}
	h.recoding.meter.mark(h.c.Now(), j.Done, j.Bytes)
	if state == JobRunning {
		h.recoding.meter.fill(&j, 0)
	} else {
		h.recoding.meter = meter{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &h.recoding
	was := r.active
	r.active = found && (walking || j.Bad > 0)
	if j.Bad > 0 {
		j.LastErr = r.job.LastErr
	}
	if err != nil {
		j.LastErr = err.Error()
	}
	r.job = j
	if was && !r.active && found {
		j.State, j.Ended, j.LastErr = JobDone, h.c.Now(), ""
		h.end(j)
		h.c.Logger.Info("data were re-coded to the profile of their storage class", "bodies", j.Shards, "bytes", j.Bytes)
	}
}
