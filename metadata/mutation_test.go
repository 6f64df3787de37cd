package metadata

import (
	"testing"
)

// Each mutation breaks the protocol in one place; the simulation must notice, or it proves nothing.
// seeds is how many schedules it may take; it takes far fewer as a rule.
func TestSimCatchesEachMutation(t *testing.T) {
	if testing.Short() {
		t.Skip("the whole set takes a while")
	}
	for _, m := range []struct {
		name  string
		mut   mutations
		seeds int
	}{
		{"a promise is forgotten at restart", mutations{forgetPromises: true}, 40000},
		{"orphans are deleted without a register round", mutations{orphanNoRound: true}, 4000},
		{"orphans are deleted in spite of a promise", mutations{noGuard: true}, 20000},
		{"the shards are not looked for at Prepare", mutations{noHave: true}, 20000},
		{"a preempted write proposes again without the ring", mutations{noRing: true}, 20000},
		{"a read does not resolve", mutations{noResolve: true}, 4000},
		{"a precondition fails on an unchosen row", mutations{noFinish: true}, 20000},
		{"a tombstone is dropped at W", mutations{dropAtW: true}, 40000},
		{"the last write wins", mutations{lastWriteWins: true}, 4000},
		{"a delta is applied to whatever is there", mutations{blindDelta: true}, 4000},
	} {
		t.Run(m.name, func(t *testing.T) {
			for _, cfg := range simConfigs {
				if bad, first, problem, _, _ := simMany(m.seeds, cfg, m.mut, true); bad > 0 {
					t.Logf("n=%d -seed %d: %s", cfg.q.N, first, problem)
					return
				}
			}
			t.Errorf("%d schedules of each configuration did not notice", m.seeds)
		})
	}
}
