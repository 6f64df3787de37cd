package console

import "net/http"

// RecoverRequest is the body of POST recover.
type RecoverRequest struct {
	DryRun bool `json:"dry_run,omitempty"` // say what would happen, and change nothing
}

// Recovery is the answer of POST recover.
type Recovery struct {
	DryRun     bool     `json:"dry_run"`
	Generation uint64   `json:"generation"` // of the control plane that begins; the first has 0
	Former     []Voter  `json:"former"`     // voters so far; empty when none of them was here since the server started
	Drives     []uint16 `json:"drives"`     // that get the voters
	Away       []uint16 `json:"away"`       // of the layout: whatever they hold of the control plane is given up
}

// Voter is a voter of the control plane.
type Voter struct {
	Drive uint16 `json:"drive"`
	Here  bool   `json:"here"` // it takes part
}

func (h *Handler) recover(r *http.Request, q *RecoverRequest) (any, error) {
	h.replacing.Lock() // what is planned is what is done
	defer h.replacing.Unlock()
	do := h.Operator.Recover
	if q.DryRun {
		do = h.Operator.PlanRecovery
	}
	a, err := do(r.Context())
	if err != nil {
		return nil, err
	}
	if a.Former == nil {
		a.Former = []Voter{}
	}
	if a.Away == nil {
		a.Away = []uint16{}
	}
	a.DryRun = q.DryRun
	if !q.DryRun {
		h.Logger.Warn("the control plane was recovered by an operator", "generation", a.Generation, "voters", a.Drives)
	}
	return &a, nil
}
