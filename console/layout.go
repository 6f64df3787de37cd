package console

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Planner plans who has which places, and has plans carried out. Its methods may be called by several goroutines.
type Planner interface {
	Layout() LayoutReport
	// Plan computes a plan and changes nothing. The same layout and request give the same plan.
	Plan(ctx context.Context, q PlanRequest) (PlanReport, error)
	// Apply begins the plan that Plan gave for q.Layout, which is not 0. If the layout is another one by now, or q.Number is
	// not "" and the plan has another, the error is of kind Precondition. What was begun goes on by itself, over restarts too.
	Apply(ctx context.Context, q ApplyRequest) (PlanReport, error)
	// Revert drops what of a plan was not begun.
	Revert(ctx context.Context, id uint64) error
	// JudgeGiveUp says what giving up drives for good would mean, and fails as GiveUp would. Nothing is changed.
	JudgeGiveUp(ctx context.Context, q GiveUpRequest) (*GiveUpAnswer, error)
	// GiveUp retires drives that never come back, and gives their places to others as soon as no other plan is in the
	// way. It may be asked again.
	GiveUp(ctx context.Context, drives []uint16) (*GiveUpAnswer, error)
	// GivenUp returns those of the layout that were.
	GivenUp() []uint16
	// RemoveNode forgets a node that does not run and has no drives in the layout. The node is named by its name or id.
	// warning says what an operator has to know of it; "" as a rule.
	RemoveNode(ctx context.Context, node string) (warning string, err error)
	// SetZone says in which failure domain a node is, whatever it is started with.
	SetZone(ctx context.Context, node, zone string) error
	// AddDrive makes an empty directory of this process a drive that has no places yet. Unless force it fails with kind
	// Precondition while a drive with places is away that may have been at the path.
	AddDrive(ctx context.Context, path string, force bool) (num uint16, err error)
}

// LayoutReport is the answer of GET /-/admin/v1/layout.
type LayoutReport struct {
	Number     uint64        `json:"number"`
	Profile    string        `json:"profile"`
	Partitions uint32        `json:"partitions"`
	Narrow     int           `json:"narrow,omitempty"`  // partitions that are not as wide as Profile yet
	Expects    int           `json:"expects,omitempty"` // nodes that a new cluster waits for
	Drives     []LayoutDrive `json:"drives"`
	Plan       *OpenPlan     `json:"plan"`    // that is carried out; null: none
	History    []PlanRecord  `json:"history"` // plans that have ended, oldest first
}

// LayoutDrive is a drive of the layout.
type LayoutDrive struct {
	Drive    uint16 `json:"drive"`
	Node     string `json:"node,omitempty"`
	Zone     string `json:"zone,omitempty"`
	Capacity uint64 `json:"capacity_bytes"` // 0: not known, counts as the mean of the others
	Places   int    `json:"places"`         // in partitions
	GivenUp  bool   `json:"given_up,omitempty"`
}

// OpenPlan is a plan that is carried out.
type OpenPlan struct {
	ID       uint64    `json:"id"`
	Layout   uint64    `json:"layout"` // that it was made for
	Begun    time.Time `json:"begun"`
	Total    int       `json:"moves"`
	Done     int       `json:"done"`
	Moving   int       `json:"moving"`  // begun: the shards follow
	Planned  int       `json:"planned"` // not begun
	Reverted bool      `json:"reverted,omitempty"`
	Leaving  []uint16  `json:"leaving,omitempty"` // drives that leave the layout at its end
}

// PlanRecord is a plan that has ended.
type PlanRecord struct {
	ID       uint64    `json:"id"`
	Layout   uint64    `json:"layout"`
	Begun    time.Time `json:"begun"`
	Done     int       `json:"done"` // moves that were made
	Reverted bool      `json:"reverted,omitempty"`
}

// PlanRequest is what a plan is made for: places by size over all drives of the layout, but for those that are drained.
type PlanRequest struct {
	DrainDrives []uint16 `json:"drain_drives,omitempty"`
	DrainNodes  []string `json:"drain_nodes,omitempty"` // names or ids
	Profile     string   `json:"profile,omitempty"`     // wider than the store's, such as "4+2"; "": partitions stay as wide as they are
}

// ApplyRequest is the body of POST layout/apply.
type ApplyRequest struct {
	Layout uint64 `json:"layout,omitempty"` // the number that the plan was made for; 0: Number says it
	// Number is that of the plan which was shown: no other is begun. "": whatever is planned now for Layout.
	Number string `json:"plan_number,omitempty"`
	PlanRequest
}

// planHash is how many hexadecimal digits of a plan's number are a hash of the plan.
const planHash = 8

// PlanNumber names a plan for a layout by a hash of what it does, of which the first 4 bytes count.
func PlanNumber(layout uint64, hash []byte) string {
	return fmt.Sprintf("%d-%x", layout, hash[:planHash/2])
}

// LayoutOf returns the number of the layout for which the plan with a number was made. It fails with kind Invalid.
func LayoutOf(plan string) (uint64, error) {
	text, hash, _ := strings.Cut(plan, "-")
	layout, err := strconv.ParseUint(text, 10, 64)
	if err != nil || layout == 0 || len(hash) != planHash || strings.Trim(hash, "0123456789abcdef") != "" {
		return 0, errs.E("console.apply", errs.Invalid, fmt.Sprintf("%q is no number of a plan, such as 377-9f2c41d0", plan))
	}
	return layout, nil
}

// RevertRequest is the body of POST layout/revert.
type RevertRequest struct {
	Plan uint64 `json:"plan"`
}

// NodeRequest is the body of POST nodes/remove.
type NodeRequest struct {
	Node string `json:"node"` // name or id
}

// ZoneRequest is the body of POST nodes/zone.
type ZoneRequest struct {
	Node string `json:"node"` // name or id
	Zone string `json:"zone"` // "" is one like any other
}

// AddDriveRequest is the body of POST drives/add.
type AddDriveRequest struct {
	Path  string `json:"path"`
	Force bool   `json:"force,omitempty"` // even if a drive is away that may have been at Path
}

// AddDriveAnswer is its answer.
type AddDriveAnswer struct {
	Drive uint16 `json:"drive"`
	Path  string `json:"path"`
}

// PlanReport is a plan.
type PlanReport struct {
	ID           uint64        `json:"id,omitempty"` // of the plan that was applied
	Layout       uint64        `json:"layout"`       // that it was made for
	Number       string        `json:"plan_number"`  // the layout, and a hash of what is done: apply takes it
	Moves        int           `json:"moves"`
	Least        int           `json:"least_moves"` // a lower bound for any such plan
	Profile      string        `json:"profile,omitempty"`
	Widened      int           `json:"widened,omitempty"` // partitions that become as wide as Profile
	Bytes        uint64        `json:"bytes"`             // that move, as estimated from what drives hold
	UsableBefore uint64        `json:"usable_bytes_before"`
	UsableAfter  uint64        `json:"usable_bytes_after"` // all shards counted; 0: a capacity is not known
	Limit        uint64        `json:"usable_bytes_limit"` // the most that any layout within the constraints can use
	Before       Exposure      `json:"may_lose_before"`
	After        Exposure      `json:"may_lose_after"`
	Drives       []DriveChange `json:"drives"`
	Domains      []DomainLoss  `json:"domains"`
	Leaving      []uint16      `json:"leaving,omitempty"`
	Reasons      []string      `json:"reasons,omitempty"` // why it is not ideal
}

// Exposure says how many may be lost at once, whichever they are, with every partition keeping enough members.
type Exposure struct {
	Drives int `json:"drives"`
	Nodes  int `json:"nodes"`
	Zones  int `json:"zones"`
}

// DriveChange is what a plan does to a drive.
type DriveChange struct {
	Drive    uint16 `json:"drive"`
	Node     string `json:"node,omitempty"`
	Zone     string `json:"zone,omitempty"`
	Capacity uint64 `json:"capacity_bytes"`
	Before   int    `json:"places_before"`
	After    int    `json:"places_after"`
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	Leaving  bool   `json:"leaving,omitempty"`
}

// DomainLoss is what the loss of a node or a zone means once a plan is carried out.
type DomainLoss struct {
	Name       string `json:"name"`
	Most       int    `json:"most_members"` // of one partition
	NoWrites   int    `json:"partitions_without_writes"`
	Unreadable int    `json:"partitions_unreadable"`
}

func (h *Handler) planLayout(r *http.Request, q *PlanRequest) (any, error) {
	return h.Planner.Plan(r.Context(), *q)
}

func (h *Handler) applyLayout(r *http.Request, q *ApplyRequest) (any, error) {
	const op = "console.apply"
	if q.Number != "" {
		layout, err := LayoutOf(q.Number)
		if err != nil {
			return nil, err
		}
		if q.Layout != 0 && q.Layout != layout {
			return nil, errs.E(op, errs.Invalid, "layout and plan_number name different layouts")
		}
		q.Layout = layout
	}
	if q.Layout == 0 {
		return nil, errs.E(op, errs.Invalid, "plan_number is needed, as the plan has it, or layout: the number that the plan was made for")
	}
	h.replacing.Lock() // what is planned is what is done
	defer h.replacing.Unlock()
	return h.Planner.Apply(r.Context(), *q)
}

func (h *Handler) revertLayout(r *http.Request, q *RevertRequest) (any, error) {
	if err := h.Planner.Revert(r.Context(), q.Plan); err != nil {
		return nil, err
	}
	return h.Planner.Layout(), nil
}

func (h *Handler) removeNode(r *http.Request, q *NodeRequest) (any, error) {
	warning, err := h.Planner.RemoveNode(r.Context(), q.Node)
	if err != nil {
		return nil, err
	}
	h.Logger.Warn("a node was removed by an operator", "node", q.Node, "warning", warning)
	l := h.nodeList(r)
	if warning != "" {
		l.Warnings = append(l.Warnings, warning)
	}
	return l, nil
}

func (h *Handler) setZone(r *http.Request, q *ZoneRequest) (any, error) {
	if q.Node == "" {
		return nil, errs.E("console.setZone", errs.Invalid, "node is needed, and zone")
	}
	if err := h.Planner.SetZone(r.Context(), q.Node, q.Zone); err != nil {
		return nil, err
	}
	h.Logger.Warn("the zone of a node was changed by an operator", "node", q.Node, "zone", q.Zone)
	return h.nodes(r)
}

func (h *Handler) addDrive(r *http.Request, q *AddDriveRequest) (any, error) {
	if q.Path == "" {
		return nil, errs.E("console.addDrive", errs.Invalid, "path is needed: an empty directory that the node was started with")
	}
	num, err := h.Planner.AddDrive(r.Context(), q.Path, q.Force)
	if err != nil {
		return nil, err
	}
	h.Logger.Info("a drive was added by an operator", "drive", num, "path", q.Path)
	return &AddDriveAnswer{Drive: num, Path: q.Path}, nil
}
