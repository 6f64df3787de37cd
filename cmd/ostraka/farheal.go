package main

import (
	"context"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/heal"
)

// recoder is a Healer that can ask the drives of all nodes how far re-coding is.
type recoder interface {
	console.Healer
	Recoded(ctx context.Context, gone func(num uint16) bool) bool
}

// farHealer is the healer of a process without drives. Nothing is re-coded there, so whether data still have an earlier
// profile is what the drives of the others say; one that does not answer may have such.
type farHealer struct{ recoder }

// Outstanding implements console.Healer.
func (f farHealer) Outstanding(ctx context.Context) heal.Outstanding {
	o := f.recoder.Outstanding(ctx)
	o.OldProfiles = o.OldProfiles || !f.Recoded(ctx, func(uint16) bool { return false })
	return o
}
