package metadata

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"slices"
	"testing"
)

var (
	simMutations = flag.Bool("mutations", false, "search a schedule for each mutation afresh, over all configurations")
	simBudget    = flag.Int("budget", 0, "schedules of a configuration in which -mutations searches; 0 means what the table says")
)

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
	{"an Accept that comes too late counts as never taken", mutations{hastyRefusal: true}, 2, 300004957, 60000},
	{"a listing under the fence hears drives without it", mutations{noFencedScan: true}, 4, 100029941, 60000},
	{"a listing goes on behind where a drive ended that has more", mutations{pastEnd: true}, 3, 11, 4000},
	{"the last write wins", mutations{lastWriteWins: true}, 3, 17, 4000},
	{"a delta is applied to whatever is there", mutations{blindDelta: true}, 3, 45, 4000},
	{"a change of membership wedges n−W+1 members", mutations{wedgeTooFew: true}, 1, 968, 20000},
	{"a listing hears drives on which the epochs of its layout are over", mutations{staleList: true}, 0, 500009836, 20000},
	{"a mover does not know what was published before its term", mutations{staleMover: true}, 2, 135, 10000},
	{"a partition that becomes wider is published on as many as its old quorum asks for", mutations{oldQuorum: true}, 1, 16, 10000},
	{"a partition becomes wider once as many are wedged as its new quorum asks for", mutations{newZ: true}, 1, 6231, 40000},
	{"who joins a partition counts without its rows", mutations{bareJoin: true}, 1, 16, 10000},
	{"where a body lies follows from how wide its partition is now", mutations{newPlaces: true}, 0, 225, 4000},
	{"a member that is only away counts as dead once a change of membership has begun", mutations{awayGone: true}, 1, 0, 20000},
	{"what was let go of is garbage though its writer proposed it again", mutations{keepNamed: true}, 2, 274168, 200},
}

// moves reports whether m breaks changes of membership.
func (m mutations) moves() bool {
	return m.wedgeTooFew || m.noFloorTravels || m.noReballot || m.noLevel || m.noVoid || m.staleMover || m.staleList || m.awayGone
}

// unshown are the mutations for which no schedule was found so far, in the configuration named and as many
// schedules as the argument says; those of changes of membership have one in each schedule. The arguments say why
// the rules that they break stand all the same. -mutations searches for them too.
var unshown = []struct {
	mutant
	argument string
}{
	{mutant{"a state over an absent row does not inherit the floor", mutations{noFloorLow: true}, 3, 0, 10000},
		"An operation that stood still with an Accept out may have been finished by another, deleted, and its tombstone dropped: the ring that " +
			"named it is gone with the row. Only a low at the floor, which is above its first ballot, keeps it from being applied again. " +
			"93,295 schedules, each with tombstones."},
	{mutant{"a new epoch begins without a floor", mutations{noFloorTravels: true}, 3, 0, 10000},
		"A member that was away keeps what it accepted below the floor, and the newcomer has nothing: an Accept that was promised in the old " +
			"epoch is refused by its epoch alone. The floor also keeps a dropped tombstone's key from being written under an older ballot. It can " +
			"only show where a ballot of the new epoch is below one of the old: the wedged drives keep F, and any W hear one of them unless the newcomer had to get every row. " +
			"77,917 schedules, and 56,695 of n=5, W=3."},
	{mutant{"what is undecided keeps its ballot in a new epoch", mutations{noReballot: true}, 5, 0, 10000},
		"A member that was away may hold another undecided row above the one that the image chose. When it joins, its row would be the newest, " +
			"and outrank what the new epoch has decided on, unless the image lies above every ballot of the old epoch. Since what such a member " +
			"holds undecided becomes void, only a row that it knows as decided can do so. 68,944 schedules of n=5, W=3."},
	{mutant{"a member of the image keeps the lower ballot of what is decided", mutations{noLevel: true}, 5, 0, 10000},
		"A member that was away may know the state before as decided, under a ballot between the two: TestAChosenWriteIsNotOutrankedByTheOneBefore " +
			"shows it, message by message. 47,391 schedules."},
	{mutant{"a member that was away keeps the rank of what it holds undecided", mutations{noVoid: true}, 5, 0, 10000},
		"It may have been refused for good since, by a round that a member of the image missed: TestAWriteThatWasRefusedForGoodDoesNotReturnWithItsDrive " +
			"shows it, message by message. 55,627 schedules, and 48,156 of both this and the mutation above."},
	{mutant{"an abort from completing does not say so first", mutations{noAborting: true}, 3, 0, 10000},
		"The object's ring forgets in time that the completion was refused. Somebody who looked at the upload before it said aborted then " +
			"applies it in a later round, acknowledges it, and its parts go. 22,213 schedules, each with uploads."},
	{mutant{"both of these", mutations{noVoid: true, noLevel: true}, 5, 0, 10000},
		"See the two above."},
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
	found, budget := false, m.budget
	if *simBudget > 0 {
		budget = *simBudget
	}
	for i, cfg := range simConfigs {
		if *simOnly >= 0 && *simOnly != i {
			continue
		}
		r := simMany(ctx, *simFrom, budget, cfg, m.mut)
		if r.bad > 0 {
			found = true
			t.Logf("config %d, %v: seed %d after %d schedules: %.120s", i, cfg, r.first, r.schedules, r.problem)
		} else {
			t.Logf("config %d, %v: not in %d schedules", i, cfg, r.schedules)
		}
	}
	if !found && !slices.ContainsFunc(mutants, func(o mutant) bool { return o.mut == m.mut }) {
		t.Skipf("no configuration notices within %d schedules", budget)
	}
	if !found {
		t.Errorf("no configuration notices within %d schedules", budget)
	}
}
