package heal

import (
	"fmt"
	"slices"
	"time"
)

// The states of the store, as far as this process's drives and what heals them know.
const (
	// StateHealthy: a complete check verified every register on all drives within the period of scrubs, every shard
	// that is older was read within two and a half, and nothing is pending since: this process has read all lists, and compared the
	// drives that came back. It says nothing of what was written since Status.VerifiedFrom: Status.Since.
	StateHealthy = "healthy"
	// StateWorking: something is being repaired, rebuilt or checked, and all drives are here.
	StateWorking = "working"
	// StateDegraded: drives are away, or something found could not be repaired.
	StateDegraded = "degraded"
	// StateUnknown: nothing is known to be wrong, and no complete check says so, or none that is young enough.
	StateUnknown = "unknown"
)

// The kinds, states and phases of a Job.
const (
	KindRebuild = "rebuild" // brings a newcomer up in place of a drive that was lost
	KindMove    = "move"    // brings positions from drives that live to others
	KindCheck   = "check"   // verifies every register on all drives
	KindRecode  = "recode"  // writes data again in the profile that their storage class asks for now

	JobRunning = "running"
	JobPaused  = "paused"
	JobWaiting = "waiting" // for drives to return, or after a failure
	JobDone    = "done"

	PhaseMembership = "membership" // partitions pass from the old drive to the newcomer
	PhaseShards     = "shards"     // the newcomer gets its rows and shards
	PhaseVerify     = "verify"     // rows are compared, and what damage was met is gone

	// PhasePresence: of a check that reads no shards; they are there in their lengths.
	PhasePresence = "presence"
)

// Status is what the healer knows of the store. It is a snapshot.
type Status struct {
	State string   // StateHealthy, StateWorking, StateDegraded or StateUnknown
	Why   []string // in words, for people; empty when healthy
	// Verified is when the last complete check without findings ended (zero: never), with what it verified.
	Verified                                         time.Time
	VerifiedRegisters, VerifiedShards, VerifiedBytes int64
	// VerifiedFrom is when that check began, and Since how many shards the local drives have that were written
	// later: counted up to a thousand a drive, else estimated. They are a minute old at most.
	VerifiedFrom time.Time
	Since        int64
	// Read is since when every shard of the local drives that was there then was read, by a scrub or a check; zero:
	// not known.
	Read     time.Time
	Backlog  int    // registers that want work
	Blocked  int    // of them, those that wait for drives; nothing of them is deleted
	Active   int    // registers being tended now
	Failed   uint64 // tries that failed with all drives there, since the start
	LastErr  string // the last failure; empty: none since the start
	Jobs     []Job  // running first, then those that ended since the start, newest first
	Settings Settings
}

// Job is one long piece of work. All counts are of this job, across restarts of the process.
type Job struct {
	Kind  string // KindRebuild, KindMove, KindCheck or KindRecode
	Drive uint16 // rebuild: the newcomer; check: 0
	State string // JobRunning, JobPaused, JobWaiting or JobDone
	Phase string // rebuild: PhaseMembership, PhaseShards or PhaseVerify; check: empty, or PhasePresence
	Begun time.Time
	Ended time.Time // zero: not yet
	// Done of Total registers are through; Total is an estimate until the job has ended, and 0 as long as
	// nothing is known.
	Done, Total        int64
	Shards, Bytes      int64 // rebuild: written and read back; check: verified; recode: bodies, and their bytes without parity
	BytesPerSecond     float64
	RegistersPerSecond float64
	Remaining          time.Duration // an estimate; 0: unknown
	Bad, Repaired      int64         // findings, and how many of them were repaired; recode: what could not be re-coded yet
	LastErr            string
	// Of moves: how many the plan has, and of them those that are over; changes of members, each of a batch of
	// partitions that stood still for it; for how long all together, and the longest.
	Moves, MovesDone    int
	Swaps               int
	Pause, LongestPause time.Duration
}

// Settings steer all background work. The zero value: no limit, nothing paused.
type Settings struct {
	Paused      bool          // all but scrubs: repairs, rebuilds, checks, the collection of what is dead
	Rate        int64         // bytes per second that background work may read and write; 0: no limit
	ScrubPaused bool          //
	ScrubPeriod time.Duration // in which each shard is verified once; 0: DefaultScrubPeriod
}

// DefaultScrubPeriod is the period of scrubs unless set otherwise.
const DefaultScrubPeriod = 30 * 24 * time.Hour

// ScrubStatus is how far the scrub of one local drive is.
type ScrubStatus struct {
	Drive              uint16
	State              string    // JobRunning, JobPaused, JobWaiting (the drive is away, or it is not time yet)
	Begun              time.Time // of the present round; zero: none is under way
	LastDone           time.Time // zero: never
	Done               float64   // of the present round, 0…1, estimated
	Shards, Bytes, Bad int64     // of the present round, or of the last one if none is under way
	Period             time.Duration
}

// Status returns a snapshot. It asks no drive.
func (h *Healer) Status() Status {
	var away []uint16
	if l := h.c.Layout(); l != nil {
		for _, d := range l.Drives() {
			if _, ok := h.drive(d.Num); !ok && placed(l, d.Num) {
				away = append(away, d.Num)
			}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &h.check.shown
	s := Status{Verified: c.Verified, VerifiedRegisters: c.VerifiedRegisters, VerifiedShards: c.VerifiedShards, VerifiedBytes: c.VerifiedBytes,
		VerifiedFrom: c.VerifiedFrom, Since: h.check.survey.since, Read: h.check.survey.read,
		Backlog: h.backlog, Active: h.progress.Active, Failed: h.progress.Failed, LastErr: h.progress.LastErr, Settings: h.settings}
	failing := 0
	for _, r := range h.retry {
		switch {
		case r.blocked:
			s.Blocked++
		case !r.late:
			failing++
		}
	}
	for _, n := range h.aside {
		s.Blocked += n
	}
	for _, b := range h.rebuilds {
		s.Jobs = append(s.Jobs, b.job)
	}
	slices.SortFunc(s.Jobs, func(a, b Job) int { return a.Begun.Compare(b.Begun) })
	if m := h.moving.mover; m != nil {
		s.Jobs = append(s.Jobs, m.job)
	}
	if !c.Begun.IsZero() {
		s.Jobs = append(s.Jobs, h.check.job)
	}
	if h.recoding.active {
		s.Jobs = append(s.Jobs, h.recoding.job)
	}
	moving, running := len(h.rebuilds) > 0, len(s.Jobs) > 0
	s.Jobs = append(s.Jobs, h.allEnded()...)
	why := func(format string, args ...any) { s.Why = append(s.Why, fmt.Sprintf(format, args...)) }
	for _, num := range away {
		if h.c.Retired(num) {
			why("drive %d was given up, and others do not have all that it had yet", num)
		} else {
			why("drive %d is away", num)
		}
	}
	if failing > 0 {
		why("%d records could not be repaired although their drives are there", failing)
	}
	if s.Blocked > 0 {
		why("%d records or shards wait for drives", s.Blocked)
	}
	lost, moreLost := h.allLost()
	for i := range lost {
		a := &lost[i]
		why("bucket %d, key %q: data is lost, too few good shards are left", a.Bucket, a.Key)
	}
	if moreLost {
		why("other records have lost data as well")
	}
	if moving {
		why("a drive is being rebuilt")
	}
	if h.moving.mover != nil {
		why("data are moving to other drives")
	}
	if h.recoding.active {
		why("data are being written again in the profile that their storage class asks for")
	}
	if s.Backlog > 0 {
		why("%d records are to be repaired", s.Backlog)
	}
	unread := h.progress.Passes == 0 || h.read != h.asked.Load()
	if unread {
		why("the lists of what is to be repaired are yet to be read")
	}
	if len(h.returned.todo) > 0 {
		why("drives that came back are yet to be compared with the others")
	}
	tainted := c.Tainted
	if tainted == "" {
		tainted = h.check.taints
	}
	if c.Verified.IsZero() {
		why("no complete check has ended yet")
	} else if tainted != "" {
		why("%s, and no complete check has ended since", tainted)
	}
	now, period := h.c.Now(), h.settings.ScrubPeriod
	if !c.Verified.IsZero() && now.Sub(c.Verified) > period {
		why("the last complete check ended on %s, longer ago than the period of scrubs", day(c.Verified))
	}
	if !s.Read.IsZero() && now.Sub(s.Read) > 5*period/2 {
		why("some drive was last read from end to end on %s, longer ago than two and a half periods of scrubs", day(s.Read))
	}
	switch {
	case len(away) > 0 || failing > 0 || s.Blocked > 0 || len(lost) > 0:
		s.State = StateDegraded
	case len(s.Why) == 0:
		s.State = StateHealthy
	case running || s.Backlog > 0 || len(h.returned.todo) > 0 || h.progress.Passes > 0 && unread:
		s.State = StateWorking
	default:
		s.State = StateUnknown
	}
	return s
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
