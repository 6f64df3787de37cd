package metadata

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"slices"
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
	{"a promise is forgotten at restart", mutations{forgetPromises: true}, 3, 1996, 40000},
	{"orphans are deleted without a register round", mutations{orphanNoRound: true}, 3, 884, 4000},
	{"orphans are deleted in spite of a promise", mutations{noGuard: true}, 3, 4287, 40000},
	{"the shards are not looked for at Prepare", mutations{noHave: true}, 3, 98, 40000},
	{"a preempted write proposes again without the ring", mutations{noRing: true}, 3, 90, 40000},
	{"a read does not resolve", mutations{noResolve: true}, 3, 112, 4000},
	{"a precondition fails on an unchosen row", mutations{noFinish: true}, 3, 372, 20000},
	{"a tombstone is dropped at W", mutations{dropAtW: true}, 3, 4942, 40000},
	{"a tombstone is dropped without raising the floor", mutations{keepFloor: true}, 3, 7104, 100000},
	{"the fence of a bucket refuses Prepares only", mutations{noFenceAccept: true}, 3, 12381, 40000},
	{"a listing under the fence hears drives without it", mutations{noFencedScan: true}, 4, 100029000, 60000},
	{"the last write wins", mutations{lastWriteWins: true}, 3, 17, 4000},
	{"a delta is applied to whatever is there", mutations{blindDelta: true}, 3, 45, 4000},
}

// unshown are the mutations for which no schedule was found so far: in 10,000 schedules of the
// configuration named, which is few for what they need. The arguments say why the rules that they break
// stand all the same. -mutations searches for them too.
var unshown = []struct {
	mutant
	argument string
}{
	{mutant{"a state over an absent row does not inherit the floor", mutations{noFloorLow: true}, 3, 0, 10000},
		"An operation that stood still with an Accept out may have been finished by another, deleted, and its tombstone dropped: the ring that " +
			"named it is gone with the row. Only a low at the floor, which is above its first ballot, keeps it from being applied again."},
	{mutant{"a change of membership wedges n−W+1 members", mutations{wedgeTooFew: true}, 1, 0, 10000},
		"With R < W a read of the old epoch is answered by R members that are not wedged, after the new epoch has chosen something newer. " +
			"Z ≥ n−R+1 leaves fewer than R of them."},
	{mutant{"a new epoch begins without a floor", mutations{noFloorTravels: true}, 3, 0, 10000},
		"A member that was away keeps what it accepted below the floor, and the newcomer has nothing: an Accept that was promised in the old " +
			"epoch is refused by its epoch alone. The floor also keeps a dropped tombstone's key from being written under an older ballot."},
	{mutant{"what is undecided keeps its ballot in a new epoch", mutations{noReballot: true}, 3, 0, 10000},
		"A member that was away may hold another undecided row above the one that the image chose. When it joins, its row would be the newest, " +
			"and outrank what the new epoch has decided on, unless the image lies above every ballot of the old epoch."},
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
	for _, m := range unshown {
		t.Run(m.name, func(t *testing.T) {
			if !*simMutations {
				t.Skip("no schedule is known: " + m.argument)
			}
			m.search(ctx, t)
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
	if !found && !slices.ContainsFunc(mutants, func(o mutant) bool { return o.mut == m.mut }) {
		t.Skipf("no configuration notices within %d schedules", m.budget)
	}
	if !found {
		t.Errorf("no configuration notices within %d schedules", m.budget)
	}
}
