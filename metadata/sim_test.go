package metadata

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The L1 simulation: the acceptor, the proposer, the judgement of reads and the merge of listings
// that the server runs, on one thread, from a seed. Messages are lost, doubled and reordered; drives
// crash and lose what was not synced; gateways crash, stand still for days, and their clocks jump.
// The histories of all keys must be linearizable, chosen data must keep k shards of every chunk, a
// completed upload must be the parts that were named, and after everything is healed all drives must hold
// the same rows.
//
//	go test ./metadata -run 'TestSim$' -seeds 1000000              many schedules, over all configurations
//	go test ./metadata -run 'TestSim$' -config 3 -seed 4711 -trace one schedule, told
//
// Interrupted, a long run ends with the figures so far.
//
// The faults of the reliability table that it covers, and where:
//
//	 2  gateway crash, sealed, no Accept       sim.disturb between stream and Accept; collection by proc.startGC
//	 3  gateway crash, 1..W−1 accepts          sim.disturb, lost messages; proc.resolve
//	 4  gateway crash, W accepts, no reply     proc.kill: the outcome is unknown, and its effect must fit
//	 5  gateway crash before Decide            proc.decide reaches some drives, or none
//	 8  gateway paused for days                sim.disturb with features.pause, against proc.startGC and sim.clean
//	 9  retry after preemption                 proc.next, stepRetry; a ring of two operations
//	10  drive process crash                    sim.crash, simKV.crash; promises above the ceiling
//	30  r drives lost just after the 200       sim.check: k shards at W − r (at the commit, by the shard quorum)
//	32  two-way partition                      features.sides: sim.divide, a gateway and some drives on one side
//	33  one-way partition                      messages and replies are lost apart; features.oneWay: sim.split
//	34  delay, reorder, duplicate              sim.deliver
//	35  clocks ±1 day, jumps                   features.skew: drives and gateways
//	36  If-None-Match from many gateways       opInm
//	40  DELETE with a drive down, it returns   opDel, sim.crash, proc.startDrop
//	41  Complete against re-upload, abort      sim_upload_test.go
//	42  a drive is replaced, dead or live      sim_swap_test.go, mover
//	    a member dies for good in the middle   sim_turn_test.go
//	43  mover crash in each phase, two movers  mover.falls; terms; whoever goes on under a higher one
//	44  stale gateway, old layout              features.lag: copies of the control plane; proc.follow looks again
//	45  control-plane loss                     features.sides: the lonely gateway changes and learns nothing
//	47  bucket deletion against PUT            sim_bucket_test.go
var (
	simSeeds = flag.Int("seeds", 0, "schedules of the simulation, in all; 0 means a short slice")
	simFrom  = flag.Int64("from", 0, "the first seed")
	simSeed  = flag.Int64("seed", -1, "run this schedule only")
	simOnly  = flag.Int("config", -1, "only this configuration")
	simMoves = flag.Bool("moves", false, "changes of membership, and copies of the control plane that lag, in every schedule")
	simWiden = flag.Bool("widen", false, "partitions that become wider in every schedule")
	simTrace = flag.Bool("trace", false, "print what happens; with -seed")
)

// tally is what a number of schedules came to.
type tally struct {
	schedules, ops, commits, checked, bad int64
	widened, turned                       int64 // partitions
	first                                 int64 // the least seed that is wrong; −1: none
	problem                               string
}

func (t *tally) add(o *tally) {
	t.schedules += o.schedules
	t.ops += o.ops
	t.commits += o.commits
	t.checked += o.checked
	t.widened += o.widened
	t.turned += o.turned
	t.bad += o.bad
	if o.first >= 0 && (t.first < 0 || o.first < t.first) {
		t.first, t.problem = o.first, o.problem
	}
}

// simulate plays the schedule of seed.
func simulate(seed uint64, cfg simConfig, mut mutations, trace bool) (t tally) {
	t.schedules, t.first = 1, -1
	s := newSim(seed, cfg, mut, trace)
	if s.err == "" {
		s.run()
	}
	if s.err == "" {
		s.heal()
	}
	if s.err == "" {
		s.completions()
	}
	for _, reg := range s.keys {
		t.ops += int64(len(reg.hist))
		if s.err == "" && !s.linearizable(reg) {
			s.fail("%s is not linearizable", reg.addr.Key)
			for _, o := range reg.hist {
				s.tr("   [%d,%d] %v -> %q", o.Call, o.Return, o.Input, o.Output)
			}
		}
	}
	t.commits, t.checked, t.turned = int64(s.commits), int64(s.checked), int64(s.turned)
	for i := range s.layout {
		if s.layout[i].Quorum.N > s.cfg.q.N {
			t.widened++
		}
	}
	if s.err != "" {
		t.bad, t.first, t.problem = 1, int64(seed), s.err
	}
	return t
}

// simMany plays schedules from a seed on, on all processors, until one is wrong or ctx ends.
func simMany(ctx context.Context, from int64, seeds int, cfg simConfig, mut mutations) tally {
	// Schedules leave much garbage and keep nothing.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	var next, wrong atomic.Int64
	var mu sync.Mutex // guards sum
	sum := tally{first: -1}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			mine := tally{first: -1}
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				sum.add(&mine)
			}()
			for {
				i := next.Add(1) - 1
				if i >= int64(seeds) || wrong.Load() > 0 || ctx.Err() != nil {
					return
				}
				t := simulate(uint64(from+i), cfg, mut, false)
				mine.add(&t)
				wrong.Add(t.bad)
			}
		})
	}
	wg.Wait()
	return sum
}

func TestSim(t *testing.T) {
	if *simSeed >= 0 {
		for i, cfg := range simConfigs {
			if *simOnly < 0 || *simOnly == i {
				if r := simulate(uint64(*simSeed), cfg, mutations{}, *simTrace); r.bad > 0 {
					t.Errorf("configuration %d (%v), seed %d: %s", i, cfg, *simSeed, r.problem)
				}
			}
		}
		return
	}
	seeds := *simSeeds
	if seeds == 0 {
		if seeds = 5000; testing.Short() {
			seeds = 500
		}
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt)
	defer stop()
	start := time.Now()
	var all tally
	all.first = -1
	each := seeds
	if *simOnly < 0 {
		each = (seeds + len(simConfigs) - 1) / len(simConfigs)
	}
	for i, cfg := range simConfigs {
		if *simOnly >= 0 && *simOnly != i || ctx.Err() != nil {
			continue
		}
		begun := time.Now()
		r := simMany(ctx, *simFrom, each, cfg, mutations{})
		if r.bad > 0 {
			t.Errorf("configuration %d (%v), seed %d: %s\n\tgo test ./metadata -run 'TestSim$' -args -config %d -seed %d -trace", i, cfg, r.first, r.problem, i, r.first)
		}
		if r.bad == 0 && r.schedules == int64(each) && (r.commits < r.schedules || r.ops < r.schedules || r.checked == 0) {
			t.Errorf("%v: %d commits, %d operations and %d concurrent histories in %d schedules: nothing was tested", cfg, r.commits, r.ops, r.checked, r.schedules)
		}
		t.Logf("%-22v %s %v", cfg, r.String(), time.Since(begun).Round(time.Millisecond))
		all.add(&r)
	}
	t.Logf("%-22s %s %v", "all", all.String(), time.Since(start).Round(time.Millisecond))
	if ctx.Err() != nil && all.bad == 0 {
		t.Skip("interrupted")
	}
}

func (t *tally) String() string {
	return fmt.Sprintf("%9d schedules %11d operations %11d commits %10d concurrent histories %9d widened %8d turned %d violations", t.schedules, t.ops, t.commits, t.checked, t.widened, t.turned, t.bad)
}
