package main

import (
	"context"
	"testing"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/heal"
)

// distant is a healer without drives of its own.
type distant struct {
	console.Healer
	recoded bool
}

func (distant) Outstanding(context.Context) heal.Outstanding {
	return heal.Outstanding{Behind: []uint16{3}}
}
func (d distant) Recoded(_ context.Context, gone func(uint16) bool) bool {
	return d.recoded && !gone(1)
}

// A gateway without drives has nothing to re-code, which says nothing of the drives of the others.
func TestAGatewayAsksTheDrivesOfTheOthersForOldProfiles(t *testing.T) {
	for _, recoded := range []bool{false, true} {
		o := farHealer{distant{recoded: recoded}}.Outstanding(t.Context())
		if o.OldProfiles == recoded || len(o.Behind) != 1 {
			t.Errorf("recoded %v: %+v", recoded, o)
		}
	}
}
