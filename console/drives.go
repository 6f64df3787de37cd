package console

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
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
	// the server was started with, that no drive is served from. doubt says why it may not be the new
	// disk all the same, in words; "": nothing speaks against it. Nothing is changed.
	CheckNew(ctx context.Context, path string) (doubt string, err error)
	// Replace begins to replace the drive old by a new one at path, which CheckNew found fit. Once it
	// returns without error, the replacement is durable and goes on by itself, over restarts too.
	Replace(ctx context.Context, old uint16, path string) (Replacement, error)
	// Quarantine takes a drive out of service until Release, over restarts too.
	Quarantine(ctx context.Context, num uint16, why string) error
	Release(ctx context.Context, num uint16) error
	// PlanRecovery says what Recover would do, and fails as it would. Nothing is changed.
	PlanRecovery(ctx context.Context) (Recovery, error)
	// Recover begins the control plane anew, on drives that are here. While there is a majority of its
	// voters the error is of kind Precondition.
	Recover(ctx context.Context) (Recovery, error)
}

// DriveList is the answer of GET /-/admin/v1/drives.
type DriveList struct {
	Drives       []DriveStatus `json:"drives"`
	Replacements []Replacement `json:"replacements"` // under way
	Redundancy   Redundancy    `json:"redundancy"`
}

func (h *Handler) drives(r *http.Request) (any, error) {
	l := &DriveList{Drives: h.driveStatuses(r.Context()), Replacements: h.Operator.Replacements(), Redundancy: h.shown(r.Context())}
	if l.Replacements == nil {
		l.Replacements = []Replacement{}
	}
	return l, nil
}

// driveStatuses are the paths of this process, then those of the other nodes, then the drives of the layout that are at
// none.
func (h *Handler) driveStatuses(ctx context.Context) []DriveStatus {
	out := driveStatuses(h.Drives.Status(), h.Samples.Sample(ctx))
	was := map[int]uint16{}
	for i, p := range h.Drives.Status() {
		was[i] = p.Was
	}
	at := map[uint16]string{} // the node that a drive belongs to
	for _, n := range h.allNodes(ctx) {
		for i := range out {
			if n.Self && out[i].Node == "" {
				out[i].Node = n.Name
			}
		}
		for _, num := range n.Members {
			at[num] = n.Name
		}
		if n.Self {
			continue
		}
		for _, d := range n.Drives {
			d.Node = n.Name
			out = append(out, d)
		}
	}
	l, under := h.Layout(), h.Operator.Replacements()
	var givenUp []uint16
	if h.Planner != nil {
		givenUp = h.Planner.GivenUp()
	}
	role := func(num uint16) string {
		if slices.Contains(givenUp, num) {
			return "given up"
		}
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
	nowhere := map[uint16]string{} // members at no path that is known, with their nodes
	for _, d := range l.Drives() {
		if role(d.Num) == "member" {
			nowhere[d.Num] = at[d.Num]
		}
	}
	attribute(out, was, nowhere)
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
			s := DriveStatus{Number: &n, State: "absent", Role: role(d.Num), Reason: "it is at none of the paths of this server", Node: at[d.Num]}
			if s.Node != "" {
				s.Reason = "it is at none of the paths of its node, or that does not answer"
			}
			if s.Role == "replaced" {
				s.State, s.Reason = "replaced", "another drive takes its place"
			}
			out = append(out, s)
		}
	}
	return out
}

// attribute gives directories that are not there the numbers of the drives that were, where that can be told: was, by
// index, says which it was when the store was formed; or one directory and one drive of a node are left. nowhere, which it
// uses up, are the members with the names of their nodes. It is for people: nothing rests on it.
func attribute(list []DriveStatus, was map[int]uint16, nowhere map[uint16]string) {
	for i := range list {
		if list[i].Number != nil {
			delete(nowhere, uint16(*list[i].Number))
		}
	}
	left := map[string][]int{} // directories, by node
	for i := range list {
		if list[i].Number != nil || list[i].State != string(node.PathAbsent) {
			continue
		}
		if on, ok := nowhere[was[i]]; ok && on == list[i].Node {
			n := int(was[i])
			list[i].Number = &n
			delete(nowhere, was[i])
			continue
		}
		left[list[i].Node] = append(left[list[i].Node], i)
	}
	away := map[string][]int{} // drives, by node
	for num, on := range nowhere {
		away[on] = append(away[on], int(num))
	}
	for on, paths := range left {
		if len(paths) == 1 && len(away[on]) == 1 {
			list[paths[0]].Number = &away[on][0]
		}
	}
}

// shown is how things stand, for people who look.
func (h *Handler) shown(ctx context.Context) Redundancy {
	return h.redundancy(h.outstanding(ctx, false), 0)
}

// redundancy is how things stand without the drives that are away, and without the drive gone,
// if it is not 0.
func (h *Handler) redundancy(o heal.Outstanding, gone uint16) Redundancy {
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
	if h.Here != nil {
		replaced := map[uint16]bool{}
		for _, r := range h.Operator.Replacements() {
			replaced[r.Old] = true
		}
		here = func(num uint16) bool { return h.Here(num) && !replaced[num] && num != gone }
	}
	r := judge(h.Layout(), here, func(num uint16) bool { return !incomplete[num] }, o)
	lost, _ := h.Healer.Lost()
	r.Doubtful = max(r.Doubtful, len(lost))
	h.recent.mu.Lock()
	full := h.recent.full
	h.recent.mu.Unlock()
	if r.Crowded = crowded(h.Layout(), here, full); r.Crowded > 0 {
		r.Writable = false
	}
	n, until := h.standing(gone)
	return r.halted(n, h.Layout().Partitions(), until)
}

// serves reports whether a drive is open and was not given up.
func (h *Handler) serves(num uint16) bool {
	for _, r := range h.Operator.Replacements() {
		if r.Old == num {
			return false
		}
	}
	if h.Here != nil {
		return h.Here(num)
	}
	return slices.ContainsFunc(h.Drives.Status(), func(p node.PathStatus) bool { return p.Known && p.Open && p.Num == num })
}

// recent is what was outstanding lately: to count it reads lists of every drive.
type recent struct {
	mu    sync.Mutex // guards all below; held while it is counted
	last  heal.Outstanding
	full  map[uint16]bool // drives that take no new shards, as they last said; never changed once it is here
	until time.Time       // for people who look
}

// How long what is outstanding is shown: at least recentFor, and so long that counting takes a
// fifth of the time at most.
const (
	recentFor    = time.Second
	recentFactor = 4
)

// outstanding returns what may not be everywhere, counted now, or, unless fresh, a moment ago.
func (h *Handler) outstanding(ctx context.Context, fresh bool) heal.Outstanding {
	wait := sampleWait
	if fresh {
		wait = judgeWait
	}
	h.recent.mu.Lock()
	defer h.recent.mu.Unlock()
	begun := h.Now()
	if !fresh && begun.Before(h.recent.until) {
		return h.recent.last
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	h.recent.last = h.Healer.Outstanding(ctx)
	h.recent.full = h.fullDrives(ctx)
	now := h.Now()
	h.recent.until = now.Add(max(recentFor, recentFactor*now.Sub(begun)))
	return h.recent.last
}

// fullDrives are the drives that say that they take no new shards.
func (h *Handler) fullDrives(ctx context.Context) map[uint16]bool {
	full := map[uint16]bool{}
	list := driveStatuses(h.Drives.Status(), h.Samples.Sample(ctx))
	for _, n := range h.allNodes(ctx) {
		if !n.Self {
			list = append(list, n.Drives...)
		}
	}
	for _, d := range list {
		if d.State == string(disk.StateFull) && d.Number != nil {
			full[uint16(*d.Number)] = true
		}
	}
	return full
}

// judgeWait is the longest that what is outstanding is counted for a decision.
const judgeWait = 5 * time.Second

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
		return 0, "", errs.E(op, errs.NotFound, fmt.Sprintf("there is no drive %d; `ostraka admin drive list` (GET /-/admin/v1/drives) lists them", num))
	}
	return 0, "", errs.E(op, errs.NotFound, "no drive of this process has that path; `ostraka admin drive list` (GET /-/admin/v1/drives) lists them")
}

const maxReason = 200

func (h *Handler) quarantine(r *http.Request, q *DriveRequest) (any, error) {
	const op = "console.quarantine"
	if len(q.Reason) > maxReason || strings.ContainsFunc(q.Reason, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("reason is longer than %d bytes, or has characters that cannot be printed", maxReason))
	}
	num, path, err := h.find(op, q.Drive, q.Path)
	if err != nil {
		return nil, err
	}
	h.replacing.Lock() // what is judged is what is done
	defer h.replacing.Unlock()
	o := h.outstanding(r.Context(), true)
	a := &DriveAnswer{DryRun: q.DryRun, Drive: num, Path: path, Before: h.redundancy(o, 0), After: h.redundancy(o, num)}
	if a.After != a.Before {
		a.Refused = h.refusal(a.Before, a.After, o, num)
	}
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

// refusal says why a drive is not taken out without force; "" if it may be.
func (h *Handler) refusal(before, after Redundancy, o heal.Outstanding, num uint16) string {
	if !after.Readable || after.Doubtful > before.Doubtful || before.Writable && !after.Writable {
		return "afterwards " + after.String()
	}
	if !h.serves(num) {
		return ""
	}
	// What others lack, this one may have.
	records, late := leaning(h.Layout(), o, num)
	switch {
	case len(late) > 0:
		return fmt.Sprintf("drives that are back are not up to date yet, and drive %d may have what they lack (drives %s); healing brings them up", num, numbers(late))
	case o.More || records > 0:
		return fmt.Sprintf("%s to be repaired, for which drive %d may be needed; wait until healing has done that", counted(records, "record"), num)
	}
	return ""
}

func numbers(list []uint16) string {
	text := make([]string, len(list))
	for i, num := range list {
		text[i] = fmt.Sprint(num)
	}
	return strings.Join(text, ", ")
}

func (h *Handler) guard(op, refused string, force bool) error {
	if refused == "" || force {
		return nil
	}
	return errs.E(op, errs.Precondition, "refused, because "+refused+"; wait, or bring drives back, or say force if nothing else helps")
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
	if h.givenUp(num) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %d was replaced: it never serves again", num))
	}
	a := &DriveAnswer{DryRun: q.DryRun, Drive: num, Path: path, Before: h.shown(r.Context())}
	if !q.DryRun {
		if err := h.Operator.Release(r.Context(), num); err != nil {
			return nil, err
		}
		h.Logger.Info("drive released by an operator", "drive", num)
	}
	a.After = h.redundancy(h.outstanding(r.Context(), true), 0)
	return a, nil
}

// givenUp reports whether a drive was replaced, or is being.
func (h *Handler) givenUp(num uint16) bool {
	_, member := h.Layout().Drive(num)
	return !member || slices.ContainsFunc(h.Operator.Replacements(), func(r Replacement) bool { return r.Old == num })
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
			a := &DriveAnswer{Drive: p.Num, Path: path, Before: h.shown(r.Context())}
			if err := h.Drives.Reopen(r.Context(), path); err != nil {
				return nil, err
			}
			h.Logger.Info("drive reopened by an operator", "path", path)
			a.After = h.redundancy(h.outstanding(r.Context(), true), 0)
			return a, nil
		}
	}
	return nil, errs.E(op, errs.NotFound, "no drive of this process has that path; `ostraka admin drive list` (GET /-/admin/v1/drives) lists them")
}

// ReplaceRequest is the body of POST drives/replace.
type ReplaceRequest struct {
	// Path is the empty directory that becomes the new drive: one of those that the server was started with.
	Path string `json:"path"`
	// Old is the number of the drive that is replaced. 0: the one that was at Path, or else the only one that is away.
	Old    uint16 `json:"old,omitempty"`
	Force  bool   `json:"force,omitempty"`   // even if data becomes unavailable
	DryRun bool   `json:"dry_run,omitempty"` // say what would happen, and change nothing
	// Plan is what the answer to a dry run had: if things are not as they were then, it is refused, even by
	// force. "": whatever they are.
	Plan string `json:"plan,omitempty"`
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
	// Plan names how things stand, for the request that follows a dry run.
	Plan string `json:"plan,omitempty"`
}

// plan names what a decision about a replacement rests on, without counts that change all the time.
func (a *ReplaceAnswer) plan(layout uint64) string {
	x := a.After
	sum := sha256.Sum256(fmt.Append(nil, layout, a.Old, a.OldState, a.Path, x.Here, x.Sound, x.Partitions, x.Readable, x.Writable, x.Doubtful > 0, a.Refused != ""))
	return hex.EncodeToString(sum[:8])
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
			now := h.shown(r.Context())
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
	doubt, err := h.Operator.CheckNew(r.Context(), q.Path)
	if err != nil {
		return nil, err
	}
	o := h.outstanding(r.Context(), true)
	a := &ReplaceAnswer{DryRun: q.DryRun, Old: old, Path: q.Path, Before: h.redundancy(o, 0), After: h.redundancy(o, old)}
	for _, d := range h.driveStatuses(r.Context()) {
		if d.Number != nil && uint16(*d.Number) == old {
			a.OldState, a.OldPath = d.State, d.Path
		}
	}
	a.Warnings = h.warnings(a.After)
	a.Refused = h.givesUp(a, o)
	if doubt != "" {
		a.Warnings = append(a.Warnings, doubt)
		if a.Refused == "" {
			a.Refused = doubt
		}
	}
	a.Plan = a.plan(h.Layout().Number())
	if q.Plan != "" && q.Plan != a.Plan {
		return nil, errs.E(op, errs.Precondition, "refused, because things are not as they were when the plan was made; look again")
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

// givesUp says why a drive is not given up for good without force; "" if it may be.
func (h *Handler) givesUp(a *ReplaceAnswer, o heal.Outstanding) string {
	// For one that is away it counts, too, that some can be read only with it.
	for _, w := range o.Wants {
		here := func(num uint16) bool { return num != a.Old && h.serves(num) }
		good, known := goodOf(h.Layout(), w, here)
		if known && good < int(h.Layout().Group(w.Partition).Profile.Data) && !slices.Contains(w.Drives, a.Old) && slices.Contains(h.Layout().Group(w.Partition).Drives, a.Old) {
			return fmt.Sprintf("%s can perhaps be read only with drive %d, which is given up for good", counted(w.Registers, "record"), a.Old)
		}
	}
	if why := h.refusal(a.Before, a.After, o, a.Old); why != "" {
		return strings.Replace(why, "afterwards ", "afterwards, and for good, ", 1)
	}
	return ""
}

// warnings say what an operator should know before a drive is replaced.
func (h *Handler) warnings(after Redundancy) (list []string) {
	// A membership changes only among drives that can tell all that was decided before.
	if need := max(after.Members-after.WritesNeed+1, after.WritesNeed-1); after.Here < need {
		list = append(list, fmt.Sprintf("the new drive takes its place only once %d of the other drives of each partition are here", need))
	}
	if h.Healer.Status().Settings.Paused {
		list = append(list, "healing is paused: the rebuild waits until it is resumed")
	}
	if after.Wanting > 0 {
		list = append(list, counted(after.Wanting, "record")+" to be repaired")
	}
	if after.Behind > 0 {
		list = append(list, counted(after.Behind, "drive")+" not known to be up to date")
	}
	return list
}

// replaced names the drive that a request wants to replace.
func (h *Handler) replaced(op string, q *ReplaceRequest) (uint16, error) {
	l := h.Layout()
	if q.Old != 0 {
		if _, ok := l.Drive(q.Old); !ok {
			return 0, errs.E(op, errs.NotFound, fmt.Sprintf("there is no drive %d; `ostraka admin drive list` (GET /-/admin/v1/drives) lists them", q.Old))
		}
		return q.Old, nil
	}
	open := map[uint16]bool{}
	own := map[[16]byte]bool{} // this node, as its drives know it
	for _, p := range h.Drives.Status() {
		d, member := l.Drive(p.Num)
		if p.Path == q.Path && p.Known && member {
			return p.Num, nil
		}
		if p.Known && member {
			own[d.Node] = true
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
		if !open[d.Num] && !h.serves(d.Num) && (len(own) == 0 || own[d.Node]) {
			away, last = append(away, fmt.Sprint(d.Num)), d.Num
		}
	}
	switch len(away) {
	case 0:
		return 0, errs.E(op, errs.Invalid, "all drives are here: say by its number (--old N) which one the new drive replaces")
	case 1:
		return last, nil
	}
	return 0, errs.E(op, errs.Invalid, "several drives are away ("+strings.Join(slices.Compact(away), ", ")+"): say by its number (--old N) which one the new drive replaces")
}
