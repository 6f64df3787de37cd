package console

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// Healer is what heals; *heal.Healer is one.
type Healer interface {
	Status() heal.Status
	Scrubs() []heal.ScrubStatus
	// Outstanding tells what may not be on all drives. It returns within ctx.
	Outstanding(ctx context.Context) heal.Outstanding
	// Lost names records that have too few good shards left, the first of them; more: there are others.
	Lost() (list []metadata.Address, more bool)
	// StartCheck begins a complete check, if none is under way.
	StartCheck()
	// StartScrub begins a round of the scrub of one local drive, or of all (0), now.
	StartScrub(drive uint16)
}

// Tuner keeps the settings of background work; what it stores holds over restarts.
type Tuner interface {
	Settings() heal.Settings
	// SetSettings stores them, and they apply at once.
	SetSettings(ctx context.Context, s heal.Settings) error
}

// HealStatus is the answer of everything under /-/admin/v1/heal.
type HealStatus struct {
	State             string     `json:"state"`         // healthy, working, degraded or unknown
	Why               []string   `json:"why,omitempty"` // in words
	Verified          *time.Time `json:"verified"`      // end of the last complete check without findings; null: never
	VerifiedRegisters int64      `json:"verified_registers"`
	VerifiedShards    int64      `json:"verified_shards"`
	VerifiedBytes     int64      `json:"verified_bytes"`
	VerifiedFrom      *time.Time `json:"verified_from"`        // its begin; null: never
	WrittenSince      int64      `json:"written_since_shards"` // shards on this process's drives that were written since then; above 1024 a drive an estimate
	ReadFrom          *time.Time `json:"read_from"`            // since when every shard here was read and verified, by scrubs or a check; null: not known
	Backlog           int        `json:"backlog"`              // records that want work
	Blocked           int        `json:"blocked"`              // of them, those that wait for drives
	Active            int        `json:"active"`               // being tended now
	Failures          uint64     `json:"failures"`             // tries that failed with all drives there, since the start
	LastError         string     `json:"last_error,omitempty"`
	Jobs              []Job      `json:"jobs"` // running first, then those that ended since the start
	Paused            bool       `json:"paused"`
	Rate              int64      `json:"rate_bytes_per_second"` // limit of background work; 0: none
	Lost              []LostData `json:"lost"`                  // the first records of which data is lost
	MoreLost          bool       `json:"more_lost"`             // there are others
}

// LostData is a record of which too few good shards are left, drives that were given up being gone.
type LostData struct {
	Bucket uint64 `json:"bucket_id"`
	Key    string `json:"key"`
}

// Job is one long piece of work.
type Job struct {
	Kind             string     `json:"kind"`                 // rebuild, move, check or recode
	Drive            uint16     `json:"drive,omitempty"`      // rebuild: the newcomer
	Path             string     `json:"path,omitempty"`       // of that drive
	State            string     `json:"state"`                // running, paused, waiting or done
	Phase            string     `json:"phase,omitempty"`      // rebuild: membership, shards or verify
	Begun            *time.Time `json:"begun"`                // null: not yet
	Ended            *time.Time `json:"ended"`                // null: not yet
	Done             int64      `json:"done_registers"`       // of the records
	Total            int64      `json:"total_registers"`      // estimated; 0: not known
	Shards           int64      `json:"shards"`               // written and read back, or verified; recode: bodies
	Bytes            int64      `json:"bytes"`                // of them
	BytesPerSecond   float64    `json:"bytes_per_second"`     //
	RecordsPerSecond float64    `json:"registers_per_second"` //
	Remaining        *float64   `json:"remaining_seconds"`    // estimated; null: not known
	Bad              int64      `json:"findings"`             // recode: what could not be re-coded yet
	Repaired         int64      `json:"repaired"`             // of the findings
	LastError        string     `json:"last_error,omitempty"` //

	// Of a move: positions that get another drive, those that are over, how often members changed, and how long the
	// partitions concerned stood still for that, in seconds, in all and at most.
	Moves        int     `json:"moves,omitempty"`
	MovesDone    int     `json:"moves_done,omitempty"`
	Swaps        int     `json:"swaps,omitempty"`
	Pause        float64 `json:"pause_seconds,omitempty"`
	LongestPause float64 `json:"longest_pause_seconds,omitempty"`
}

func (h *Handler) heal(*http.Request) (any, error) { return h.healStatus(), nil }

func (h *Handler) healStatus() *HealStatus {
	s := h.Healer.Status()
	out := &HealStatus{State: s.State, Why: s.Why, Verified: instant(s.Verified), VerifiedRegisters: s.VerifiedRegisters,
		VerifiedShards: s.VerifiedShards, VerifiedBytes: s.VerifiedBytes, VerifiedFrom: instant(s.VerifiedFrom), WrittenSince: s.Since,
		ReadFrom: instant(s.Read), Backlog: s.Backlog, Blocked: s.Blocked, Active: s.Active,
		Failures: s.Failed, LastError: s.LastErr, Jobs: []Job{}, Paused: s.Settings.Paused, Rate: s.Settings.Rate,
		Lost: []LostData{}}
	var lost []metadata.Address
	lost, out.MoreLost = h.Healer.Lost()
	for _, a := range lost {
		out.Lost = append(out.Lost, LostData{Bucket: a.Bucket, Key: string(a.Key)})
	}
	at := h.paths()
	for _, j := range s.Jobs {
		job := Job{Kind: j.Kind, Drive: j.Drive, Path: at[j.Drive], State: j.State, Phase: j.Phase, Begun: instant(j.Begun), Ended: instant(j.Ended),
			Done: j.Done, Total: j.Total, Shards: j.Shards, Bytes: j.Bytes, BytesPerSecond: finite(j.BytesPerSecond),
			RecordsPerSecond: finite(j.RegistersPerSecond), Bad: j.Bad, Repaired: j.Repaired, LastError: j.LastErr,
			Moves: j.Moves, MovesDone: j.MovesDone, Swaps: j.Swaps, Pause: j.Pause.Seconds(), LongestPause: j.LongestPause.Seconds()}
		if j.Remaining > 0 {
			sec := j.Remaining.Seconds()
			job.Remaining = &sec
		}
		out.Jobs = append(out.Jobs, job)
	}
	return out
}

// paths are the paths of the drives that are or were open here, by number.
func (h *Handler) paths() map[uint16]string {
	at := map[uint16]string{}
	for _, p := range h.Drives.Status() {
		if p.Known {
			at[p.Num] = p.Path
		}
	}
	return at
}

func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// finite makes a rate something that JSON can say.
func finite(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	return x
}

func (h *Handler) startCheck(_ *http.Request, _ *struct{}) (any, error) {
	h.Healer.StartCheck()
	h.Logger.Info("a complete check was asked for by an operator")
	return h.healStatus(), nil
}

func (h *Handler) pauseHeal(r *http.Request, _ *struct{}) (any, error) {
	return h.tuneHeal(r, func(s *heal.Settings) { s.Paused = true })
}

func (h *Handler) resumeHeal(r *http.Request, _ *struct{}) (any, error) {
	return h.tuneHeal(r, func(s *heal.Settings) { s.Paused = false })
}

// HealSettings is the body of POST heal/settings.
type HealSettings struct {
	// Rate is what background work may read and write, in bytes per second; 0 takes the limit away.
	Rate *int64 `json:"rate_bytes_per_second"`
}

// The limits of settings.
const (
	MinRate        = 64 << 10 // bytes per second; 0 is no limit
	MaxRate        = 1 << 40
	MinScrubPeriod = time.Hour
	MaxScrubPeriod = 366 * 24 * time.Hour
)

func (h *Handler) setHeal(r *http.Request, q *HealSettings) (any, error) {
	const op = "console.heal"
	if q.Rate == nil {
		return nil, errs.E(op, errs.Invalid, "rate_bytes_per_second has to be given; 0 takes the limit away")
	}
	if *q.Rate != 0 && (*q.Rate < MinRate || *q.Rate > MaxRate) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("rate_bytes_per_second is 0, for no limit, or from %d to %d", MinRate, int64(MaxRate)))
	}
	return h.tuneHeal(r, func(s *heal.Settings) { s.Rate = *q.Rate })
}

func (h *Handler) tuneHeal(r *http.Request, change func(*heal.Settings)) (any, error) {
	s, err := h.tune(r.Context(), change)
	if err != nil {
		return nil, err
	}
	out := h.healStatus()
	out.Paused, out.Rate = s.Paused, s.Rate // the healer may be about to learn them
	return out, nil
}

// tune changes the settings, one change at a time.
func (h *Handler) tune(ctx context.Context, change func(*heal.Settings)) (heal.Settings, error) {
	h.tuning.Lock()
	defer h.tuning.Unlock()
	s := h.Tuner.Settings()
	change(&s)
	if err := h.Tuner.SetSettings(ctx, s); err != nil {
		return s, err
	}
	h.Logger.Info("settings of background work were changed by an operator", "paused", s.Paused, "rate", s.Rate,
		"scrub_paused", s.ScrubPaused, "scrub_period", s.ScrubPeriod)
	return s, nil
}

// ScrubReport is the answer of everything under /-/admin/v1/scrub.
type ScrubReport struct {
	Paused bool    `json:"paused"`
	Period float64 `json:"period_seconds"` // in which every shard is verified once
	Drives []Scrub `json:"drives"`
}

// Scrub is how far the scrub of one drive is.
type Scrub struct {
	Drive    uint16     `json:"drive"`
	Path     string     `json:"path,omitempty"`
	State    string     `json:"state"`     // running, paused or waiting
	Begun    *time.Time `json:"begun"`     // of the round that is under way; null: none is
	LastDone *time.Time `json:"last_done"` // null: never
	Done     float64    `json:"done"`      // of the round, 0 to 1, estimated
	Shards   int64      `json:"shards"`    // verified in this round, or in the last one
	Bytes    int64      `json:"bytes"`
	Bad      int64      `json:"findings"`
}

func (h *Handler) scrub(*http.Request) (any, error) { return h.scrubReport(h.Tuner.Settings()), nil }

func (h *Handler) scrubReport(s heal.Settings) *ScrubReport {
	period := s.ScrubPeriod
	if period == 0 {
		period = heal.DefaultScrubPeriod
	}
	out := &ScrubReport{Paused: s.ScrubPaused, Period: period.Seconds(), Drives: []Scrub{}}
	at := h.paths()
	for _, d := range h.Healer.Scrubs() {
		out.Drives = append(out.Drives, Scrub{Drive: d.Drive, Path: at[d.Drive], State: d.State, Begun: instant(d.Begun), LastDone: instant(d.LastDone),
			Done: min(max(finite(d.Done), 0), 1), Shards: d.Shards, Bytes: d.Bytes, Bad: d.Bad})
	}
	return out
}

// ScrubStart is the body of POST scrub/start: one drive, by number or path, or all.
type ScrubStart struct {
	Drive uint16 `json:"drive,omitempty"`
	Path  string `json:"path,omitempty"`
}

func (h *Handler) startScrub(_ *http.Request, q *ScrubStart) (any, error) {
	const op = "console.scrub"
	num := q.Drive
	if num != 0 || q.Path != "" {
		var path string
		var err error
		if num, path, err = h.find(op, q.Drive, q.Path); err != nil {
			return nil, err
		}
		if !h.serves(num) {
			where := ""
			if path != "" {
				where = " at " + path
			}
			return nil, errs.E(op, errs.Unavailable, fmt.Sprintf("drive %d%s is not in service", num, where))
		}
	}
	h.Healer.StartScrub(num)
	h.Logger.Info("a scrub was asked for by an operator", "drive", num)
	return h.scrubReport(h.Tuner.Settings()), nil
}

// ScrubSettings is the body of POST scrub/settings. What is left out stays.
type ScrubSettings struct {
	Paused *bool    `json:"paused,omitempty"`
	Period *float64 `json:"period_seconds,omitempty"` // 0: the default, 30 days
}

func (h *Handler) setScrub(r *http.Request, q *ScrubSettings) (any, error) {
	const op = "console.scrub"
	if q.Paused == nil && q.Period == nil {
		return nil, errs.E(op, errs.Invalid, "paused or period_seconds has to be given")
	}
	if p := q.Period; p != nil && *p != 0 && !(*p >= MinScrubPeriod.Seconds() && *p <= MaxScrubPeriod.Seconds()) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("period_seconds is 0, for the default, or from %.0f to %.0f", MinScrubPeriod.Seconds(), MaxScrubPeriod.Seconds()))
	}
	s, err := h.tune(r.Context(), func(s *heal.Settings) {
		if q.Paused != nil {
			s.ScrubPaused = *q.Paused
		}
		if q.Period != nil {
			s.ScrubPeriod = time.Duration(*q.Period * float64(time.Second))
		}
	})
	if err != nil {
		return nil, err
	}
	return h.scrubReport(s), nil
}
