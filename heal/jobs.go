package heal

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// The names of the durable values that jobs keep on drives.
const (
	jobRebuild = "rebuild"    // on the newcomer: how far it is
	jobCheck   = "check"      // on every drive of the process: the newest counts
	jobScrub   = "scrub"      // on each drive, of its own scrub
	jobOrphans = "orphans"    // on each drive: when its orphans were collected last
	jobTombs   = "tombstones" // on each drive: when it was searched for tombstones last
	jobMove    = "move"       // on every drive of the process: the newest counts
	jobLost    = "lost"       // on every drive of a process of several: the registers that it knows to be lost
	jobLeft    = "left"       // on each drive: of which layout it has nothing that belongs elsewhere
	jobRecode  = "recode"     // on each drive: of which layout its data have the profiles
)

// load reads the durable value of a job. One that is not there, or cannot be understood, leaves v as it
// is: the job begins anew.
func (h *Healer) load(ctx context.Context, d node.Drive, name string, v any) error {
	b, err := d.Job(ctx, name)
	if errs.Is(err, errs.Corrupt) || err == nil && len(b) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		h.c.Logger.Warn("the state of a job cannot be read: it begins anew", "drive", d.Num(), "job", name, "err", err)
	}
	return nil
}

// save stores the durable value of a job.
func save(ctx context.Context, d node.Drive, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return errs.As("heal.save", errs.Internal, err)
	}
	return d.SetJob(ctx, name, b)
}

// cursor is where a walk goes on, in a durable value; nil: at the start.
type cursor []byte

func cursorOf(a *metadata.Address) cursor {
	if a == nil {
		return nil
	}
	return a.AppendTo(nil)
}

func (c cursor) address() *metadata.Address {
	a := new(metadata.Address)
	if len(c) == 0 || a.Unmarshal(c) != nil || a.Check() != nil {
		return nil
	}
	return a
}

// meter measures how fast a job is, over the last minute or so.
type meter struct {
	marks []meterMark // oldest first
}

type meterMark struct {
	at              time.Time
	registers, data int64
}

const (
	meterSpan  = time.Minute
	meterMarks = 64
)

// mark takes note of what a job has done since this process began with it.
func (m *meter) mark(now time.Time, registers, data int64) {
	if n := len(m.marks); n > 1 && now.Sub(m.marks[n-2].at) < meterSpan/meterMarks {
		m.marks = m.marks[:n-1]
	}
	m.marks = append(m.marks, meterMark{now, registers, data})
	for len(m.marks) > 2 && now.Sub(m.marks[1].at) > meterSpan || len(m.marks) > meterMarks {
		m.marks = m.marks[1:]
	}
}

// rate returns registers and bytes per second; 0: not known.
func (m *meter) rate() (registers, data float64) {
	if len(m.marks) < 2 {
		return 0, 0
	}
	a, b := m.marks[0], m.marks[len(m.marks)-1]
	s := b.at.Sub(a.at).Seconds()
	if s <= 0 {
		return 0, 0
	}
	return float64(b.registers-a.registers) / s, float64(b.data-a.data) / s
}

// fill puts the rates into a job, and what they say of the time that remains. total is how many bytes
// the job has to do, 0: not known.
func (m *meter) fill(j *Job, total int64) {
	j.RegistersPerSecond, j.BytesPerSecond = m.rate()
	if left := j.Total - j.Done; left > 0 && j.RegistersPerSecond > 0 {
		j.Remaining = seconds(float64(left) / j.RegistersPerSecond)
	}
	if left := total - j.Bytes; left > 0 && j.BytesPerSecond > 0 {
		j.Remaining = max(j.Remaining, seconds(float64(left)/j.BytesPerSecond))
	}
}

func seconds(s float64) time.Duration { return time.Duration(min(s, 1e9) * float64(time.Second)) }

// work looks after the jobs once: rebuilds first, then moves, then the check. Before all, partitions that stand
// still for a move.
func (h *Healer) work(ctx context.Context) error {
	if h.c.Layout() == nil {
		return nil
	}
	if err := h.moveAll(ctx, true); err != nil {
		return err
	}
	if err := h.rebuildAll(ctx); err != nil {
		return err
	}
	if err := h.moveAll(ctx, false); err != nil {
		return err
	}
	return h.checkOnce(ctx)
}

// note remembers a register that something was found wrong with, for a repair row. It never blocks.
func (h *Healer) note(a metadata.Address) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.noted) < maxNoted {
		h.noted = append(h.noted, a)
	}
}

const maxNoted = 4096

// keepNoted leaves repair rows for what was noted.
func (h *Healer) keepNoted(ctx context.Context) {
	h.mu.Lock()
	list := h.noted
	h.noted = nil
	h.mu.Unlock()
	seen := make(map[string]bool)
	for _, a := range list {
		if k := string(a.AppendTo(nil)); !seen[k] {
			seen[k] = true
			if err := h.askRepair(ctx, a); err != nil {
				h.note(a)
			}
		}
	}
	if len(seen) > 0 {
		h.Nudge()
	}
}

// askRepair leaves a repair row for all positions of a register on the members that are here.
func (h *Healer) askRepair(ctx context.Context, a metadata.Address) error {
	l := h.c.Layout()
	return h.keep(ctx, &task{addr: a}, l.Group(l.PartitionOf(a.Bucket, a.Key)))
}

// errUnkept: a register could not be repaired, and no drive kept that. Whoever met it must not pass on.
var errUnkept = errs.E("heal.mend", errs.Unavailable, "no drive kept a repair row for what could not be repaired")

// mend repairs a register at once. What cannot be mended keeps a repair row; if none could be kept, the error is
// errUnkept besides what else went wrong.
func (h *Healer) mend(ctx context.Context, a metadata.Address) (outcome, error) {
	got, err := h.register(ctx, &task{addr: a, key: string(a.AppendTo(nil))})
	if got < verified || err != nil {
		if kept := h.askRepair(ctx, a); kept != nil {
			return got, errors.Join(errUnkept, kept, err)
		}
		h.Nudge()
	}
	return got, err
}
