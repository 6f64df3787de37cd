package console

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Replacement is the replacement of a drive that is under way.
type Replacement struct {
	ID      uint64    `json:"id"`
	Old     uint16    `json:"old"`   // number of the drive that is replaced; it never serves again
	New     uint16    `json:"new"`   // number of the newcomer
	Path    string    `json:"path"`  // of the newcomer
	Phase   string    `json:"phase"` // membership, then shards
	Begun   time.Time `json:"begun"`
	Problem string    `json:"problem,omitempty"` // what holds it up
}

// Operator carries out what changes the set of drives. Its methods may be called by several
// goroutines.
type Operator interface {
	// Replacements returns those that are under way.
	Replacements() []Replacement
	// CheckNew says whether a new drive can be made at path: an empty directory, one of those that
	// the server was started with, that no drive is served from. Nothing is changed.
	CheckNew(ctx context.Context, path string) error
	// Replace begins to replace the drive old by a new one at path, which CheckNew found fit. Once it
	// returns without error, the replacement is durable and goes on by itself, over restarts too.
	Replace(ctx context.Context, old uint16, path string) (Replacement, error)
	// Quarantine takes a drive out of service until Release, over restarts too.
	Quarantine(ctx context.Context, num uint16, why string) error
	Release(ctx context.Context, num uint16) error
}

// DriveList is the answer of GET /-/admin/v1/drives.
type DriveList struct {
	Drives       []DriveStatus `json:"drives"`
	Replacements []Replacement `json:"replacements"` // under way
	Redundancy   Redundancy    `json:"redundancy"`
}

func (h *Handler) drives(r *http.Request) (any, error) {
	l := &DriveList{Drives: h.driveStatuses(r.Context()), Replacements: h.Operator.Replacements(), Redundancy: h.redundancy(0)}
	if l.Replacements == nil {
		l.Replacements = []Replacement{}
	}
	return l, nil
}

// driveStatuses are the paths of this process, then the drives of the layout that are at none.
func (h *Handler) driveStatuses(ctx context.Context) []DriveStatus {
	out := driveStatuses(h.Drives.Status(), h.Samples.Sample(ctx))
	l, under := h.Layout(), h.Operator.Replacements()
	role := func(num uint16) string {
		for _, r := range under {
			switch num {
			case r.Old:
				return "replaced"
			case r.New:
				return "rebuilding"
			}
		}
		if _, ok := l.Drive(num); ok {
			return "member"
		}
		return "retired"
	}
	seen := map[uint16]bool{}
	for i := range out {
		out[i].Role = "none"
		if out[i].Number != nil {
			num := uint16(*out[i].Number)
			seen[num] = true
			out[i].Role = role(num)
		}
	}
	for _, d := range l.Drives() {
		if !seen[d.Num] {
			n := int(d.Num)
			s := DriveStatus{Number: &n, State: "absent", Role: role(d.Num), Reason: "it is at none of the paths of this server"}
			if s.Role == "replaced" {
				s.State, s.Reason = "replaced", "another drive takes its place"
			}
			out = append(out, s)
		}
	}
	return out
}

// redundancy is how things stand without the drives that are away, and without the drive gone,
// if it is not 0.
func (h *Handler) redundancy(gone uint16) Redundancy {
	open := map[uint16]bool{}
	for _, p := range h.Drives.Status() {
		if p.Known && p.Open {
			open[p.Num] = true
		}
	}
	incomplete := map[uint16]bool{}
	for _, r := range h.Operator.Replacements() {
		delete(open, r.Old)
		incomplete[r.New] = true
	}
	here := func(num uint16) bool { return open[num] && num != gone }
	return redundancyOf(h.Layout(), here, func(num uint16) bool { return !incomplete[num] })
}

// DriveRequest is the body of POST drives/quarantine and drives/release. The drive is named by its
// number or by its path.
type DriveRequest struct {
	Drive  uint16 `json:"drive,omitempty"`
	Path   string `json:"path,omitempty"`
	Reason string `json:"reason,omitempty"`  // quarantine: for people, at most 200 bytes
	Force  bool   `json:"force,omitempty"`   // quarantine: even if data becomes unavailable
	DryRun bool   `json:"dry_run,omitempty"` // say what would happen, and change nothing
}

// DriveAnswer is the answer to what takes one drive in or out.
type DriveAnswer struct {
	DryRun bool       `json:"dry_run"`
	Drive  uint16     `json:"drive"`
	Path   string     `json:"path,omitempty"`
	Before Redundancy `json:"before"`
	After  Redundancy `json:"after"`
	// Refused says why it is not done without force; only in the answer to a dry run.
	Refused string `json:"refused,omitempty"`
}

// find names the drive that a request means.
func (h *Handler) find(op string, num uint16, path string) (uint16, string, error) {
	if (num == 0) == (path == "") {
		return 0, "", errs.E(op, errs.Invalid, "the drive has to be named: either by drive, its number, or by path")
	}
	for _, p := range h.Drives.Status() {
		if num != 0 && p.Known && p.Num == num || num == 0 && p.Path == path {
			if !p.Known {
				return 0, "", errs.E(op, errs.NotFound, "at "+path+" there is no drive of this store that is known; name it by its number")
			}
			return p.Num, p.Path, nil
		}
	}
	if num != 0 {
		if _, ok := h.Layout().Drive(num); ok {
			return num, "", nil
		}
		return 0, "", errs.E(op, errs.NotFound, fmt.Sprintf("there is no drive %d; GET /-/admin/v1/drives lists them", num))
	}
	return 0, "", errs.E(op, errs.NotFound, "no drive of this process has that path; GET /-/admin/v1/drives lists them")
}

const maxReason = 200

func (h *Handler) quarantine(r *http.Request, q *DriveRequest) (any, error) {
	const op = "console.quarantine"
	if len(q.Reason) > maxReason || strings.ContainsFunc(q.Reason, func(r rune) bool { return r < ' ' }) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("reason is longer than %d bytes, or has control characters", maxReason))
	}
	num, path, err := h.find(op, q.Drive, q.Path)
	if err != nil {
		return nil, err
	}
	a := &DriveAnswer{DryRun: q.DryRun, Drive: num, Path: path, Before: h.redundancy(0), After: h.redundancy(num)}
	a.Refused = refusal(a.Before, a.After)
	if err := h.guard(op, a.Refused, q.Force || q.DryRun); err != nil || q.DryRun {
		return a, err
	}
	a.Refused = ""
	why := q.Reason
	if why == "" {
		why = "taken out of service by an operator"
	}
	if err := h.Operator.Quarantine(r.Context(), num, why); err != nil {
		return nil, err
	}
	h.Logger.Info("drive quarantined by an operator", "drive", num, "reason", why)
	return a, nil
}

// refusal says why a step is not taken without force; "" if it may be.
func refusal(before, after Redundancy) string {
	if after.Readable || after == before {
		return ""
	}
	return "afterwards " + after.String()
}

func (h *Handler) guard(op, refused string, force bool) error {
	if refused == "" || force {
		return nil
	}
	return errs.E(op, errs.Precondition, "refused, because "+refused+"; bring drives back first, or say force if nothing else helps")
}

func (h *Handler) release(r *http.Request, q *DriveRequest) (any, error) {
	const op = "console.release"
	if q.Reason != "" || q.Force {
		return nil, errs.E(op, errs.Invalid, "reason and force are of no use here")
	}
	num, path, err := h.find(op, q.Drive, q.Path)
	if err != nil {
		return nil, err
	}
	a := &DriveAnswer{DryRun: q.DryRun, Drive: num, Path: path, Before: h.redundancy(0)}
	if !q.DryRun {
		if err := h.Operator.Release(r.Context(), num); err != nil {
			return nil, err
		}
		h.Logger.Info("drive released by an operator", "drive", num)
	}
	a.After = h.redundancy(0)
	return a, nil
}

// ReopenRequest is the body of POST drives/reopen.
type ReopenRequest struct {
	Drive uint16 `json:"drive,omitempty"`
	Path  string `json:"path,omitempty"`
}

func (h *Handler) reopen(r *http.Request, q *ReopenRequest) (any, error) {
	const op = "console.reopen"
	path := q.Path
	if q.Drive != 0 || path == "" {
		var err error
		if _, path, err = h.find(op, q.Drive, q.Path); err != nil {
			return nil, err
		}
	}
	for _, p := range h.Drives.Status() {
		if p.Path == path {
			a := &DriveAnswer{Drive: p.Num, Path: path, Before: h.redundancy(0)}
			if err := h.Drives.Reopen(r.Context(), path); err != nil {
				return nil, err
			}
			h.Logger.Info("drive reopened by an operator", "path", path)
			a.After = h.redundancy(0)
			return a, nil
		}
	}
	return nil, errs.E(op, errs.NotFound, "no drive of this process has that path; GET /-/admin/v1/drives lists them")
}

// ReplaceRequest is the body of POST drives/replace.
type ReplaceRequest struct {
	// Path is the empty directory that becomes the new drive: one of those that the server was started with.
	Path string `json:"path"`
	// Old is the number of the drive that is replaced. 0: the one that was at Path, or else the only one that is away.
	Old    uint16 `json:"old,omitempty"`
	Force  bool   `json:"force,omitempty"`   // even if data becomes unavailable
	DryRun bool   `json:"dry_run,omitempty"` // say what would happen, and change nothing
}

// ReplaceAnswer is the answer of POST drives/replace.
type ReplaceAnswer struct {
	DryRun      bool         `json:"dry_run"`
	Old         uint16       `json:"old"`
	OldState    string       `json:"old_state"` // as in the list of drives
	OldPath     string       `json:"old_path,omitempty"`
	Path        string       `json:"path"`
	Continued   bool         `json:"continued"`             // it was under way already
	Replacement *Replacement `json:"replacement,omitempty"` // not in the answer to a dry run, unless Continued
	Before      Redundancy   `json:"before"`
	// After is how things stand until the newcomer is complete, without the old drive and the newcomer.
	After    Redundancy `json:"after"`
	Warnings []string   `json:"warnings,omitempty"` // in words
	// Refused says why it is not done without force; only in the answer to a dry run.
	Refused string `json:"refused,omitempty"`
}

func (h *Handler) replace(r *http.Request, q *ReplaceRequest) (any, error) {
	const op = "console.replace"
	if q.Path == "" {
		return nil, errs.E(op, errs.Invalid, "path has to be given: the empty directory that becomes the new drive")
	}
	h.replacing.Lock() // what is judged is what is done
	defer h.replacing.Unlock()
	for _, under := range h.Operator.Replacements() {
		if under.Path == q.Path && (q.Old == 0 || q.Old == under.Old) {
			now := h.redundancy(0)
			return &ReplaceAnswer{DryRun: q.DryRun, Old: under.Old, OldState: "retired", Path: q.Path, Continued: true, Replacement: &under, Before: now, After: now}, nil
		}
		if q.Old != 0 && q.Old == under.Old {
			return nil, errs.E(op, errs.Exists, fmt.Sprintf("drive %d is being replaced already, by drive %d at %s", under.Old, under.New, under.Path))
		}
	}
	old, err := h.replaced(op, q)
	if err != nil {
		return nil, err
	}
	if err := h.Operator.CheckNew(r.Context(), q.Path); err != nil {
		return nil, err
	}
	a := &ReplaceAnswer{DryRun: q.DryRun, Old: old, Path: q.Path, Before: h.redundancy(0), After: h.redundancy(old)}
	for _, d := range h.driveStatuses(r.Context()) {
		if d.Number != nil && uint16(*d.Number) == old {
			a.OldState, a.OldPath = d.State, d.Path
		}
	}
	a.Warnings = h.warnings(a.After)
	// A drive that is away is given up for good: then it counts that nothing can be read without it.
	if !a.After.Readable {
		a.Refused = "afterwards, and for good, " + a.After.String()
	}
	if err := h.guard(op, a.Refused, q.Force || q.DryRun); err != nil || q.DryRun {
		return a, err
	}
	a.Refused = ""
	under, err := h.Operator.Replace(r.Context(), old, q.Path)
	if err != nil {
		return nil, err
	}
	a.Replacement = &under
	h.Logger.Info("an operator replaces a drive", "old", old, "new", under.New, "path", q.Path)
	return a, nil
}

// warnings say what an operator should know before a drive is replaced.
func (h *Handler) warnings(after Redundancy) (list []string) {
	// A membership changes only among drives that can tell all that was decided before.
	if need := max(after.Members-after.WritesNeed+1, after.WritesNeed-1); after.Here < need {
		list = append(list, fmt.Sprintf("the new drive takes its place only once %d of the other drives of each partition are here", need))
	}
	if s := h.Healer.Status(); s.Settings.Paused {
		list = append(list, "healing is paused: the rebuild waits until it is resumed")
	} else if s.Backlog > 0 {
		list = append(list, fmt.Sprintf("%d records want repair: until that is done, less may be lost than is said here", s.Backlog))
	}
	return list
}

// replaced names the drive that a request wants to replace.
func (h *Handler) replaced(op string, q *ReplaceRequest) (uint16, error) {
	l := h.Layout()
	if q.Old != 0 {
		if _, ok := l.Drive(q.Old); !ok {
			return 0, errs.E(op, errs.NotFound, fmt.Sprintf("there is no drive %d; GET /-/admin/v1/drives lists them", q.Old))
		}
		return q.Old, nil
	}
	open := map[uint16]bool{}
	for _, p := range h.Drives.Status() {
		if _, member := l.Drive(p.Num); p.Path == q.Path && p.Known && member {
			return p.Num, nil
		}
		if p.Known && p.Open {
			open[p.Num] = true
		}
	}
	for _, r := range h.Operator.Replacements() {
		open[r.Old] = true // seen to
	}
	var away []string
	var last uint16
	for _, d := range l.Drives() {
		if !open[d.Num] {
			away, last = append(away, fmt.Sprint(d.Num)), d.Num
		}
	}
	switch len(away) {
	case 0:
		return 0, errs.E(op, errs.Invalid, "all drives are here: say with old which one the new drive replaces")
	case 1:
		return last, nil
	}
	return 0, errs.E(op, errs.Invalid, "several drives are away ("+strings.Join(slices.Compact(away), ", ")+"): say with old which one the new drive replaces")
}
