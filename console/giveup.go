package console

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/ostraka/ostraka/internal/errs"
)

// GiveUpRequest is the body of POST drives/give-up: drives that never come back, and that none of the same node
// replaces.
type GiveUpRequest struct {
	Drives []uint16 `json:"drives,omitempty"`
	Nodes  []string `json:"nodes,omitempty"` // names or ids: all of their drives
	// AcceptLoss gives them up although something is lost, or may be.
	AcceptLoss bool `json:"accept_loss,omitempty"`
	DryRun     bool `json:"dry_run,omitempty"` // say what would happen, and change nothing
}

// GiveUpAnswer is its answer.
type GiveUpAnswer struct {
	DryRun bool     `json:"dry_run"`
	Drives []uint16 `json:"drives"`           // that are given up
	Losses []string `json:"losses,omitempty"` // in words: what is lost, or may be
	// Plan gives their places to others: the one that would be begun, or was. Null while another plan is carried out,
	// or when there is none: Problem says why.
	Plan    *PlanReport `json:"plan"`
	Problem string      `json:"problem,omitempty"`
	// Refused says why it is not done without accept_loss; only in the answer to a dry run.
	Refused string `json:"refused,omitempty"`
}

func (h *Handler) giveUp(r *http.Request, q *GiveUpRequest) (any, error) {
	const op = "console.giveUp"
	if len(q.Drives) == 0 && len(q.Nodes) == 0 {
		return nil, errs.E(op, errs.Invalid, "drives or nodes have to be named")
	}
	h.replacing.Lock() // what is judged is what is done
	defer h.replacing.Unlock()
	a, err := h.Planner.JudgeGiveUp(r.Context(), *q)
	if err != nil {
		return nil, err
	}
	a.DryRun = q.DryRun
	a.Losses = append(a.Losses, h.needed(r, a.Drives)...)
	if len(a.Losses) > 0 {
		a.Refused = "something is lost, or may be: " + strings.Join(a.Losses, "; ")
	}
	switch {
	case q.DryRun:
		return a, nil
	case a.Refused != "" && !q.AcceptLoss:
		return nil, errs.E(op, errs.Precondition, "refused, because "+a.Refused+"; bring drives back, or accept the loss if nothing else helps")
	}
	done, err := h.Planner.GiveUp(r.Context(), a.Drives)
	if err != nil {
		return nil, err
	}
	done.Drives, done.Losses = a.Drives, a.Losses
	h.Logger.Warn("drives were given up by an operator", "drives", a.Drives, "accept_loss", q.AcceptLoss)
	return done, nil
}

// needed says for which records the drives may be needed that are given up, as far as the drives of this process
// know.
func (h *Handler) needed(r *http.Request, drives []uint16) (list []string) {
	o := h.outstanding(r.Context(), true)
	l := h.Layout()
	gone := func(num uint16) bool { return slices.Contains(drives, num) }
	records := 0
	for _, w := range o.Wants {
		here := func(num uint16) bool { return !gone(num) && h.serves(num) }
		good, known := goodOf(l, w, here)
		helps := known && slices.ContainsFunc(l.Group(w.Partition).Drives, func(num uint16) bool { return gone(num) && !slices.Contains(w.Drives, num) })
		if helps && good < int(l.Profile().Data) {
			records += w.Registers
		}
	}
	if records > 0 {
		list = append(list, fmt.Sprintf("%s can perhaps be read only with them", counted(records, "record")))
	}
	if late := slices.DeleteFunc(slices.Concat(o.Behind, o.Silent), gone); len(late) > 0 {
		slices.Sort(late)
		list = append(list, fmt.Sprintf("drives that are back are not up to date yet, and these may have what they lack (drives %s); healing brings them up", numbers(slices.Compact(late))))
	}
	return list
}
