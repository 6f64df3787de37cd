package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/internal/errs"
)

// jobName says what a job is.
func jobName(j *console.Job) string {
	if j.Kind != "rebuild" {
		return j.Kind
	}
	return fmt.Sprintf("rebuild of drive %d", j.Drive)
}

// fraction is how much of a job is done, 0 to 1, and whether that is known. A job that goes on is
// never said to be all done: its total is an estimate.
func fraction(j *console.Job) (float64, bool) {
	switch {
	case j.State == "done":
		return 1, true
	case j.Total <= 0:
		return 0, false
	}
	return min(max(float64(j.Done)/float64(j.Total), 0), 0.999), true
}

// describeJob is one line about a job.
func describeJob(j *console.Job) string {
	parts := []string{jobName(j) + ": " + j.State}
	if j.Phase != "" && j.State != "done" {
		parts = append(parts, j.Phase)
	}
	return strings.Join(append(parts, counts(j)...), ", ")
}

// counts are the figures of a job.
func counts(j *console.Job) (parts []string) {
	records := humanize.Comma(j.Done) + " records"
	if part, ok := fraction(j); ok && j.State != "done" {
		parts = append(parts, fmt.Sprintf("%.1f%%", 100*part))
		records = humanize.Comma(j.Done) + " of " + humanize.Comma(j.Total) + " records"
	}
	parts = append(parts, records, bytesOf(j.Bytes))
	if j.State == "running" && j.BytesPerSecond > 0 {
		parts = append(parts, bytesOf(int64(j.BytesPerSecond))+"/s")
	}
	if j.Moves > 0 {
		parts = append(parts, fmt.Sprintf("%s of %s positions", humanize.Comma(int64(j.MovesDone)), humanize.Comma(int64(j.Moves))))
	}
	if j.Swaps > 0 {
		parts = append(parts, fmt.Sprintf("longest pause of a partition %.2f s", j.LongestPause))
	}
	switch {
	case j.Bad > 0 && j.Kind == "recode":
		parts = append(parts, humanize.Comma(j.Bad)+" versions could not be re-coded yet")
	case j.Bad > 0:
		parts = append(parts, fmt.Sprintf("%s findings, %s repaired", humanize.Comma(j.Bad), humanize.Comma(j.Repaired)))
	}
	switch {
	case j.State == "done" && j.Begun != nil && j.Ended != nil:
		parts = append(parts, "took "+duration(j.Ended.Sub(*j.Begun)))
	case j.State != "done" && j.Remaining != nil:
		parts = append(parts, "about "+duration(time.Duration(*j.Remaining*float64(time.Second)))+" left")
	}
	return parts
}

const (
	minBar, maxBar = 8, 24
	minWidth       = 20 // of a terminal; narrower ones are taken for this
)

// progressLine is a job as a bar with its figures, in width columns at most. The bar gives way to
// the figures.
func progressLine(j *console.Job, width int) string {
	part, known := fraction(j)
	state := j.State
	if j.Phase != "" && state == "running" {
		state = j.Phase
	}
	figures := []string{state}
	if known {
		figures = append(figures, fmt.Sprintf("%.1f%%", 100*part), humanize.Comma(j.Done)+"/"+humanize.Comma(max(j.Total, j.Done))+" records")
	} else {
		figures = append(figures, humanize.Comma(j.Done)+" records")
	}
	figures = append(figures, bytesOf(j.Bytes))
	if j.State == "running" && j.BytesPerSecond > 0 {
		figures = append(figures, bytesOf(int64(j.BytesPerSecond))+"/s")
	}
	if j.Remaining != nil {
		figures = append(figures, duration(time.Duration(*j.Remaining*float64(time.Second)).Round(time.Second))+" left")
	}
	name, rest := jobName(j), strings.Join(figures, "  ")
	width = max(width, minWidth)
	size := min(max(width-len(name)-len(rest)-len(" [] "), minBar), maxBar)
	full := int(part * float64(size))
	line := name + " [" + strings.Repeat("#", full) + strings.Repeat(".", size-full) + "] " + rest
	return line[:min(len(line), width)] // all of it is ASCII
}

// How often a follower looks, and how long it waits for a server that does not answer.
const (
	lookEvery = time.Second
	saysEvery = 10 * time.Second // where each look would be a line of its own
	giveUp    = 2 * time.Minute
)

// follower shows work until it has ended: one line that is written anew on a terminal, a line now
// and then elsewhere, one JSON line for each look with --json.
type follower struct {
	p      process
	e      *endpoint
	asJSON bool

	every  time.Duration // between looks
	giveUp time.Duration
	width  int // of the terminal, 0: none

	said   string    // last line without its figures
	spoken time.Time // when
	open   bool      // the cursor stands behind a line that is written anew
	silent time.Time // since when the server does not answer
}

func newFollower(p process, e *endpoint, asJSON bool) *follower {
	f := &follower{p: p, e: e, asJSON: asJSON, every: lookEvery, giveUp: giveUp}
	if p.lookEvery > 0 {
		f.every = p.lookEvery
	}
	if p.terminal != nil {
		if w, ok := p.terminal(); ok && !asJSON {
			f.width = max(w-1, minWidth)
		}
	}
	return f
}

// replacement follows one until it is over: rebuilt and verified.
func (f *follower) replacement(ctx context.Context, r console.Replacement) error {
	var drives console.DriveList
	var last *console.Job
	err := f.follow(ctx, func(ctx context.Context) (bool, error) {
		drives = console.DriveList{}
		if _, err := f.e.send(ctx, request{method: http.MethodGet, path: "drives"}, &drives); err != nil {
			return false, err
		}
		var h console.HealStatus
		raw, err := f.e.send(ctx, request{method: http.MethodGet, path: "heal"}, &h)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(drives.Replacements, func(x console.Replacement) bool { return x.ID == r.ID })
		for _, j := range h.Jobs {
			if j.Kind == "rebuild" && j.Drive == r.New {
				last = &j
				break
			}
		}
		switch {
		case f.asJSON:
			f.json(raw)
		case i < 0:
		case drives.Replacements[i].Problem != "":
			f.line("it does not go on: "+drives.Replacements[i].Problem, "problem")
		case last != nil:
			f.job(last, 0)
		default:
			f.line(fmt.Sprintf("drive %d: waiting for healing to begin", r.New), "waiting")
		}
		return i < 0, nil
	})
	f.end()
	if err != nil {
		return err
	}
	left := last != nil && last.Bad > last.Repaired
	if !f.asJSON {
		if last != nil {
			last.State = "done"
			fmt.Fprintln(f.p.stdout, describeJob(last))
		}
		end := "rebuilt and verified"
		if left {
			end = "but not all of it could be rebuilt"
		}
		if _, err = fmt.Fprintf(f.p.stdout, "drive %d has taken the place of drive %d, %s\n%s\n", r.New, r.Old, end, drives.Redundancy); err != nil {
			return err
		}
	}
	if left {
		return errs.E("admin", errs.Unavailable, fmt.Sprintf("%s could not be repaired (%s); `ostraka admin heal status` names what is lost",
			humanize.Comma(last.Bad-last.Repaired), cmp.Or(last.LastError, "too few good shards are left")))
	}
	return nil
}

// begun tells whether a check that was asked for has begun, from the answers of GET heal.
type begun struct {
	former []time.Time // when those that had ended before began
	seen   bool
}

// before notes the checks that ended before the new one was asked for.
func (b *begun) before(h *console.HealStatus) {
	for _, j := range h.Jobs {
		if j.Kind == "check" && j.State == "done" && j.Begun != nil {
			b.former = append(b.former, *j.Begun)
		}
	}
}

// look reports whether the check is there, or was.
func (b *begun) look(h *console.HealStatus) bool {
	for _, j := range h.Jobs {
		former := func(at time.Time) bool { return j.Begun != nil && j.Begun.Equal(at) }
		b.seen = b.seen || j.Kind == "check" && (j.State != "done" || !slices.ContainsFunc(b.former, former))
	}
	return b.seen
}

// work follows everything that healing does until nothing is left, and check, if it is not nil, has begun.
func (f *follower) work(ctx context.Context, check *begun) error {
	var h console.HealStatus
	asked := time.Now()
	err := f.follow(ctx, func(ctx context.Context) (bool, error) {
		h = console.HealStatus{}
		raw, err := f.e.send(ctx, request{method: http.MethodGet, path: "heal"}, &h)
		if err != nil {
			return false, err
		}
		var drives console.DriveList
		if _, err := f.e.send(ctx, request{method: http.MethodGet, path: "drives"}, &drives); err != nil {
			return false, err
		}
		var todo []console.Job
		for _, j := range h.Jobs {
			if j.State != "done" {
				todo = append(todo, j)
			}
		}
		if check != nil && !check.look(&h) && len(todo) == 0 && time.Since(asked) >= f.giveUp {
			return false, errs.E("admin", errs.Internal, "the check does not begin; the server's log may say why")
		}
		waiting := check != nil && !check.seen
		switch {
		case f.asJSON:
			f.json(raw)
		case len(todo) > 0:
			f.job(&todo[0], len(todo)-1)
		case len(drives.Replacements) > 0: // which healing is about to begin
			r := drives.Replacements[0]
			text := fmt.Sprintf("drive %d takes the place of drive %d: waiting for healing to begin", r.New, r.Old)
			if r.Problem != "" {
				text = fmt.Sprintf("drive %d does not take the place of drive %d yet: %s", r.New, r.Old, r.Problem)
			}
			f.line(text, text)
		case h.Backlog > 0:
			f.line(fmt.Sprintf("repairs: %s outstanding, %s of them wait for drives", humanize.Comma(int64(h.Backlog)), humanize.Comma(int64(h.Blocked))), "repairs")
		case waiting:
			f.line("check: waiting for it to begin", "check")
		}
		hopeless := h.Blocked + len(h.Lost)
		if h.MoreLost {
			hopeless = h.Backlog
		}
		return !waiting && len(todo)+len(drives.Replacements) == 0 && (h.Backlog == 0 || hopeless >= h.Backlog && h.Active == 0), nil
	})
	f.end()
	if err != nil {
		return err
	}
	if !f.asJSON {
		if err := printHeal(f.p.stdout, &h); err != nil {
			return err
		}
	}
	if h.State == "degraded" || h.Backlog > 0 || len(h.Lost) > 0 {
		return errs.E("admin", errs.Unavailable, "something is left that cannot be done now: "+health(h.State, h.Why))
	}
	return nil
}

// follow looks until done. A server that does not answer, such as one that is being started again,
// is waited for.
func (f *follower) follow(ctx context.Context, look func(ctx context.Context) (done bool, err error)) error {
	for {
		done, err := look(ctx)
		switch {
		case ctx.Err() != nil:
			f.end()
			return errs.E("admin", errs.Canceled, "following was stopped; the work goes on in the server: ostraka admin heal status --watch")
		case err != nil && errs.KindOf(err) != errs.Unavailable:
			return err
		case err != nil && f.silent.IsZero():
			f.silent = time.Now()
			fallthrough
		case err != nil:
			if time.Since(f.silent) >= f.giveUp {
				f.end()
				return err
			}
			if !f.asJSON {
				f.line("waiting for the server: "+explain(err), "silent")
			}
		case done:
			return nil
		default:
			f.silent = time.Time{}
		}
		timer := time.NewTimer(f.every)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// job shows one job, and how many others there are.
func (f *follower) job(j *console.Job, more int) {
	text := describeJob(j)
	if f.width > 0 {
		text = progressLine(j, f.width)
	}
	if more > 0 {
		text += fmt.Sprintf("  (+%d)", more)
	}
	f.line(text, jobName(j)+j.State+j.Phase)
}

// line shows a line. Where lines cannot be written anew it is left out, unless subject is another
// than before, or some time has passed.
func (f *follower) line(text, subject string) {
	if f.width > 0 {
		if len(text) > f.width {
			text = text[:f.width]
		}
		fmt.Fprint(f.p.stdout, "\r"+text+"\x1b[K")
		f.open = true
		return
	}
	if subject == f.said && time.Since(f.spoken) < saysEvery {
		return
	}
	f.said, f.spoken = subject, time.Now()
	fmt.Fprintln(f.p.stdout, text)
}

// json prints an answer on one line.
func (f *follower) json(raw []byte) {
	var b strings.Builder
	var v any
	if json.Unmarshal(raw, &v) == nil && json.NewEncoder(&b).Encode(v) == nil {
		fmt.Fprint(f.p.stdout, b.String())
	}
}

// end leaves the line that was written anew.
func (f *follower) end() {
	if f.open {
		fmt.Fprintln(f.p.stdout)
		f.open = false
	}
}
