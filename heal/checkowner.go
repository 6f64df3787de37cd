package heal

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// In a store of several processes one makes the complete check, of all drives. The others tell it what they know
// against the last result, and that somebody wants a check; it tells them how things stand. When another process
// becomes the one, it goes on where the drives, or what it was told last, say that the check is.

// Checks is the connection of the processes over the check.
type Checks interface {
	// Mine reports whether this process is the one. If two think so for a moment, work is done twice, and no more.
	Mine() bool
	// Exchange brings a note to the process that is, whose Healer answers it by CheckAnswer.
	Exchange(ctx context.Context, note []byte) (answer []byte, err error)
}

// checkNote is what a process tells the one that checks.
type checkNote struct {
	Taint string // why the last result does not hold any more; empty: nothing is known
	Want  bool   // somebody wants a check
}

// checkReport is what that one tells.
type checkReport struct {
	State    checkState
	Job      Job      // if State.Begun is not zero
	Ended    []Job    // checks that have ended, newest first
	Lost     []cursor // registers of which data is lost, as far as it knows
	MoreLost bool
}

// checksHere reports whether this process makes the check.
func (h *Healer) checksHere() bool { return h.c.Checks == nil || h.c.Checks.Mine() }

// CheckAnswer answers the note of another process. The error is of kind Unavailable if this one does not make the
// check, or does not know yet how things stand.
func (h *Healer) CheckAnswer(note []byte) ([]byte, error) {
	const op = "heal.CheckAnswer"
	var n checkNote
	if err := json.Unmarshal(note, &n); err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	if !h.checksHere() {
		return nil, errs.E(op, errs.Unavailable, "another process makes the check")
	}
	h.mu.Lock()
	knows := h.check.knows
	h.mu.Unlock()
	if !knows {
		return nil, errs.E(op, errs.Unavailable, "the state of the check is not read yet")
	}
	if n.Taint != "" {
		h.taint(n.Taint)
	}
	if n.Want {
		h.StartCheck()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := checkReport{State: h.check.shown, Job: h.check.job, MoreLost: h.check.lost.more}
	if r.State.Tainted == "" {
		r.State.Tainted = h.check.taints
	}
	for _, j := range h.ended {
		if j.Kind == KindCheck {
			r.Ended = append(r.Ended, j)
		}
	}
	for i := range h.check.lost.list {
		r.Lost = append(r.Lost, cursorOf(&h.check.lost.list[i]))
	}
	b, err := json.Marshal(&r)
	return b, errs.As(op, errs.Internal, err)
}

// followCheck tells the process that makes the check what is known here, and takes over what it says.
func (h *Healer) followCheck(ctx context.Context) error {
	h.mu.Lock()
	n := checkNote{Taint: h.check.taints, Want: h.check.wanted}
	h.check.knows = false
	h.mu.Unlock()
	h.check.loaded = false // whoever becomes the one looks what the drives say
	if err := h.keepLost(ctx); err != nil {
		return err
	}
	note, err := json.Marshal(&n)
	if err != nil {
		return errs.As("heal.followCheck", errs.Internal, err)
	}
	answer, err := h.c.Checks.Exchange(ctx, note)
	var r checkReport
	if err == nil {
		err = json.Unmarshal(answer, &r)
	}
	if err != nil {
		h.c.Logger.Debug("the process that makes the check does not answer", "err", err)
		if h.check.state.Serial > 0 {
			return nil // it is asked again
		}
		return h.recall(ctx) // what the drives say is better than nothing
	}
	h.check.state = r.State
	h.mu.Lock()
	if h.check.taints == n.Taint {
		h.check.taints = ""
	}
	if n.Want {
		h.check.wanted = false
	}
	h.check.shown, h.check.job = r.State, r.Job
	h.check.reported = reported{more: r.MoreLost, ended: r.Ended}
	for _, c := range r.Lost {
		if a := c.address(); a != nil {
			h.check.reported.lost = append(h.check.reported.lost, *a)
		}
	}
	h.mu.Unlock()
	h.lookOver(ctx)
	return nil
}

// recall takes over what the drives say, as long as nobody has told how things stand.
func (h *Healer) recall(ctx context.Context) error {
	err := h.loadCheck(ctx)
	h.check.loaded = false
	h.mu.Lock()
	h.check.knows = false
	h.mu.Unlock()
	return err
}

// reported is what the process that makes the check has told besides its state. h.mu guards it.
type reported struct {
	lost  []metadata.Address
	more  bool
	ended []Job
}

// allLost returns the registers that are known to be lost, here or where the check is made. h.mu is held.
func (h *Healer) allLost() (list []metadata.Address, more bool) {
	list, more = slices.Clone(h.check.lost.list), h.check.lost.more
	if h.checkedElsewhere() {
		more = more || h.check.reported.more
		for _, a := range h.check.reported.lost {
			if h.check.lost.index(a) >= 0 {
				continue
			}
			if len(list) == maxLost {
				more = true
				break
			}
			list = append(list, a)
		}
	}
	return list, more
}

// allEnded returns the jobs that have ended, newest first, the checks of whoever made them. h.mu is held.
func (h *Healer) allEnded() []Job {
	if !h.checkedElsewhere() {
		return h.ended
	}
	list := slices.DeleteFunc(slices.Clone(h.ended), func(j Job) bool { return j.Kind == KindCheck })
	list = append(list, h.check.reported.ended...)
	slices.SortStableFunc(list, func(a, b Job) int { return b.Ended.Compare(a.Ended) })
	return list
}

// checkedElsewhere reports whether what Status tells of the check comes from another process. h.mu is held.
func (h *Healer) checkedElsewhere() bool { return h.c.Checks != nil && !h.check.knows }

// checkDrives are the drives that may have a copy of the state of the check.
func (h *Healer) checkDrives() []node.Drive {
	l := h.c.Layout()
	if h.c.Checks == nil || l == nil {
		return h.local()
	}
	here, _ := h.members(l)
	return here
}

// ownLost is what a local drive keeps of the registers that this process knows to be lost, in a store of several.
type ownLost struct{ Names []cursor }

// loadOwnLost reads them once.
func (h *Healer) loadOwnLost(ctx context.Context) error {
	if h.check.lostRead {
		return nil
	}
	for _, d := range h.local() {
		var s ownLost
		if err := h.load(ctx, d, jobLost, &s); err != nil {
			return err
		}
		h.takeLost(s.Names)
	}
	h.check.lostRead = true
	return nil
}

// saveOwnLost stores them on the local drives. One that keeps them suffices.
func (h *Healer) saveOwnLost(ctx context.Context) error {
	s := ownLost{Names: h.lostNames()}
	n := 0
	var fails []error
	for _, d := range h.local() {
		if err := save(ctx, d, jobLost, &s); err != nil {
			fails = append(fails, err)
			continue
		}
		n++
	}
	if n == 0 {
		return errors.Join(append(fails, errs.E("heal.keepLost", errs.Unavailable, "no drive kept which data is lost"))...)
	}
	return nil
}
