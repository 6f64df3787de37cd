package metadata

import (
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/placement"
)

func TestWhoMayBeGivenUpFollowsFromTheQuorums(t *testing.T) {
	for _, c := range []struct {
		k, m, f              int
		certain, replaceable int // the least members that must be left
	}{
		{1, 1, 1, 2, 1},
		{2, 1, 1, 2, 2},
		{2, 2, 1, 3, 2},
		{4, 2, 1, 4, 4},
		{4, 2, 2, 3, 3},
		{8, 4, 1, 8, 8},
		{6, 6, 1, 7, 6},
	} {
		q := placement.RecordQuorum(erasure.Profile{Data: uint8(c.k), Parity: uint8(c.m)}, c.f)
		for left := range q.N {
			got := SurvivalOf(q, left)
			if want := (Survival{left >= c.replaceable, left >= c.certain}); got != want {
				t.Errorf("%d+%d, spread %d, %d of %d left: %+v, want %+v", c.k, c.m, c.f, left, q.N, got, want)
			}
		}
		if got := SurvivalOf(q, q.N); got != (Survival{true, true}) {
			t.Errorf("%d+%d, all left: %+v", c.k, c.m, got)
		}
	}
}
