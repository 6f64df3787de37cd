package main

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
)

// checks implements heal.Checks: the process that leads the control plane makes the complete check.
type checks struct{ s *stack }

var _ heal.Checks = checks{}

// exchangeWithin bounds a note and its answer.
const exchangeWithin = 5 * time.Second

// Mine implements heal.Checks.
func (c checks) Mine() bool { return c.s.control.Leads() }

// Exchange implements heal.Checks.
func (c checks) Exchange(ctx context.Context, note []byte) ([]byte, error) {
	leader := c.s.control.Leader()
	if leader == (disk.ID{}) || leader == c.s.mesh.self {
		return nil, errs.E("server.Check", errs.Unavailable, "it is not known which process makes the check")
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeWithin)
	defer cancel()
	return c.s.mesh.Call(ctx, leader, uint16(mCheck), note)
}
