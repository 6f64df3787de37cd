package metadata

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"testing"
)

var simMutations = flag.Bool("mutations", false, "search a schedule for each mutation afresh, over all configurations")

// mutant breaks the protocol in one place; the simulation must notice, or it proves nothing.
type mutant struct {
	name   string
	mut    mutations
	config int   // of simConfigs, for which it was noticed
	seed   int64 // of the first schedule there that noticed it
	budget int   // schedules of a configuration within which it must be noticed
}

var mutants = []mutant{
	{"a promise is forgotten at restart", mutations{forgetPromises: true}, 3, 59, 40000},
	{"orphans are deleted without a register round", mutations{orphanNoRound: true}, 3, 59, 4000},
	{"orphans are deleted in spite of a promise", mutations{noGuard: true}, 3, 1924, 40000},
	{"the shards are not looked for at Prepare", mutations{noHave: true}, 3, 98, 40000},
	{"a preempted write proposes again without the ring", mutations{noRing: true}, 3, 8, 40000},
	{"a read does not resolve", mutations{noResolve: true}, 3, 54, 4000},
	{"a precondition fails on an unchosen row", mutations{noFinish: true}, 3, 152, 20000},
	{"a tombstone is dropped at W", mutations{dropAtW: true}, 3, 2999, 40000},
	{"the fence of a bucket refuses Prepares only", mutations{noFenceAccept: true}, 3, 0, 40000},
	{"the last write wins", mutations{lastWriteWins: true}, 3, 0, 4000},
	{"a delta is applied to whatever is there", mutations{blindDelta: true}, 3, 0, 4000},
}

func TestSimCatchesEachMutation(t *testing.T) {
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt)
	defer stop()
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			if *simMutations {
				m.search(ctx, t)
				return
			}
			// The code under a seed moves: the search goes on from the one that is known.
			r := simMany(ctx, m.seed, m.budget, simConfigs[m.config], m.mut)
			if r.bad == 0 {
				t.Fatalf("%v: %d schedules from seed %d on did not notice", simConfigs[m.config], r.schedules, m.seed)
			}
			t.Logf("%v, seed %d: %s", simConfigs[m.config], r.first, r.problem)
		})
	}
}

// search looks for the first schedule that notices, in each configuration.
func (m *mutant) search(ctx context.Context, t *testing.T) {
	found := false
	for i, cfg := range simConfigs {
		if *simOnly >= 0 && *simOnly != i {
			continue
		}
		r := simMany(ctx, *simFrom, m.budget, cfg, m.mut)
		if r.bad > 0 {
			found = true
			t.Logf("config %d, %v: seed %d after %d schedules: %.120s", i, cfg, r.first, r.schedules, r.problem)
		} else {
			t.Logf("config %d, %v: not in %d schedules", i, cfg, r.schedules)
		}
	}
	if !found {
		t.Errorf("no configuration notices within %d schedules", m.budget)
	}
}
