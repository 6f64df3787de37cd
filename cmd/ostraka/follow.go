package main

import (
	"context"
	"sync"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/internal/errs"
)

// followWithin is how long the gateways may take to hear of a change.
const followWithin = 5 * time.Second

// tellGateways has all other gateways that seem to be alive learn what the control plane has decided, and waits for them. One
// that does not answer in time is not waited for: what was decided stays, and it learns of it when it is back.
func (s *stack) tellGateways(ctx context.Context) {
	m := s.mesh
	if m.group.Load() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, followWithin)
	defer cancel()
	var asking sync.WaitGroup
	for _, n := range s.control.State().Nodes() {
		if n.ID == m.self || n.Roles&cluster.RoleGateway == 0 || !s.alive(n.ID) {
			continue
		}
		asking.Go(func() {
			_, err := m.client(n.ID).Call(ctx, mFollow, nil)
			if err != nil && !errs.Is(err, errs.Unsupported) { // by a build that does not know the question
				m.log.Warn("a gateway may not know yet of a change of a bucket", "gateway", nodeName(n), "err", err)
			}
		})
	}
	asking.Wait()
}
