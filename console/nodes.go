package console

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// NodeStatus is one node of the cluster.
type NodeStatus struct {
	ID      string   `json:"id"` // 32 hex digits
	Name    string   `json:"name"`
	Zone    string   `json:"zone"`
	Roles   []string `json:"roles"` // gateway, storage
	Address string   `json:"address"`
	S3      string   `json:"s3,omitempty"`
	// State is alive, failed (it does not answer), left (it said that it goes) or unknown.
	State    string        `json:"state"`
	Since    *time.Time    `json:"since"` // when the state began, as seen from the node that was asked; null: not known
	Flapping bool          `json:"flapping,omitempty"`
	Self     bool          `json:"self,omitempty"`   // the node that was asked
	Leader   bool          `json:"leader,omitempty"` // it leads the control plane
	Members  []uint16      `json:"drive_numbers"`    // drives of the layout that belong to it
	Away     []uint16      `json:"drives_away"`      // of them, those that do not serve
	Drives   []DriveStatus `json:"drives,omitempty"` // as the node says; none if it does not answer
}

// NodeList is the answer of GET /-/admin/v1/nodes.
type NodeList struct {
	Nodes   []NodeStatus `json:"nodes"`
	Missing []string     `json:"missing"` // in words: what does not serve now
	// Warnings are in the answer to a change: what an operator has to know of it, in words.
	Warnings []string `json:"warnings,omitempty"`
}

// Readiness is the answer of GET /-/ready.
type Readiness struct {
	Status  string   `json:"status"`            // ready or not ready
	Reason  string   `json:"reason,omitempty"`  // why it is not ready
	Missing []string `json:"missing,omitempty"` // in words: what of the cluster does not serve now
}

// allNodes returns the nodes, none of a process that is alone.
func (h *Handler) allNodes(ctx context.Context) []NodeStatus {
	if h.Nodes == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sampleWait)
	defer cancel()
	return h.Nodes(ctx)
}

// missing says what does not serve, and which partitions stand still. It asks nobody.
func (h *Handler) missing() (list []string) {
	if h.Nodes == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // what is known is enough
	for _, n := range h.Nodes(ctx) {
		if len(n.Away) == 0 {
			continue
		}
		what := "drive"
		if len(n.Away) > 1 {
			what = "drives"
		}
		text := fmt.Sprintf("%s %s of node %s", what, numbers(n.Away), n.Name)
		if n.State != "alive" {
			text = fmt.Sprintf("node %s (%s), with %s %s", n.Name, n.State, what, numbers(n.Away))
		}
		list = append(list, text)
	}
	if n, until := h.standing(0); n > 0 {
		list = append(list, stillText(n, h.Layout().Partitions(), until))
	}
	return list
}

func (h *Handler) nodes(r *http.Request) (any, error) { return h.nodeList(r), nil }

func (h *Handler) nodeList(r *http.Request) *NodeList {
	l := &NodeList{Nodes: h.allNodes(r.Context()), Missing: h.missing()}
	if l.Nodes == nil {
		l.Nodes = []NodeStatus{}
	}
	if l.Missing == nil {
		l.Missing = []string{}
	}
	return l
}
