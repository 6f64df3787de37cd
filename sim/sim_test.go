package sim

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	flagRuns    = flag.Int("runs", 0, "how many seeds to run; 0: a short slice")
	flagSeed    = flag.Uint64("seed", 0, "run this seed alone")
	flagFrom    = flag.Uint64("from", 1, "the first seed")
	flagTrace   = flag.Bool("trace", false, "print what happened")
	flagKeep    = flag.String("keep", "", "a directory that gets the trace of each run that fails")
	flagCluster = flag.Bool("cluster", false, "seeds are of clusters of several processes")
	flagAlone   = flag.Bool("alone", false, "clusters begin on one machine, and lose a node at the end")
	flagFaults  = flag.String("faults", "", "only these faults, by name, separated by commas")
)

// shortRuns fit into a run of all tests. They are brief, and fewer under the race detector: idle
// hours are thousands of timers, which it makes dear.
const shortRuns = 10

// shortClusterRuns is the same of clusters; under the race detector there is one.
const shortClusterRuns = 2

// manyRuns of clusters meet everything that they are for.
const manyRuns = 200

// hungAfter is how long, in this world, a run may take.
const hungAfter = 10 * time.Minute

type options struct {
	faults  []string
	cluster bool // several processes
	brief   bool // minutes of virtual time instead of hours
	alone   bool // of a cluster: it begins on one machine
	bereave bool // of a cluster: a node dies for good
}

func TestSim(t *testing.T) {
	runs, from := *flagRuns, *flagFrom
	var o options
	if *flagCluster {
		t.Skip("-cluster is given")
	}
	if runs == 0 && *flagSeed == 0 {
		o.brief = true
		if runs = shortRuns; raceEnabled {
			runs = shortRuns / 2
		}
	}
	if *flagSeed != 0 {
		runs, from = 1, *flagSeed
	}
	playAll(t, from, runs, o)
}

// playAll runs seeds, and says what they were.
func playAll(t *testing.T, from uint64, runs int, o options) {
	if *flagFaults != "" {
		o.faults = strings.Split(*flagFaults, ",")
	}
	ops, virtual, faults := 0, time.Duration(0), map[string]int{}
	for seed := from; seed < from+uint64(runs); seed++ {
		w, d := play(t, seed, o)
		ops += w.hist.count
		virtual += d
		for kind, n := range w.faults {
			faults[kind] += n
		}
	}
	t.Logf("%d runs, %d operations, %v of virtual time, faults: %v", runs, ops, virtual.Round(time.Minute), faults)
	if o.cluster && runs >= manyRuns && len(o.faults) == 0 {
		reached(t, faults, slices.Concat(clusterFaults, clusterReached))
	}
}

// reached makes sure that runs met what they are for: what never happens is not tested.
func reached(t *testing.T, faults map[string]int, want []string) {
	t.Helper()
	for _, kind := range want {
		if faults[kind] == 0 {
			t.Errorf("%q never happened in these runs", kind)
		}
	}
}

// play runs one seed and judges it.
func play(t *testing.T, seed uint64, o options) (w *world, virtual time.Duration) {
	t.Helper()
	// A goroutine that waits for a lock stops the virtual clock, and a test that hangs says nothing.
	watchdog := time.AfterFunc(hungAfter, func() {
		fmt.Fprintf(os.Stderr, "seed %d hangs\n%s\n", seed, stacks())
		os.Exit(2)
	})
	defer watchdog.Stop()
	began := time.Now()
	left := bubble(t, func() {
		if tracing := *flagTrace || *flagKeep != ""; o.cluster {
			w = newGrid(seed, tracing, o)
			w.grid.run(o)
		} else {
			w = newWorld(seed, tracing)
			w.brief = o.brief
			w.raft = w.raft && !o.brief
			w.run(o)
		}
		w.bury()
		virtual = time.Since(w.began)
	})
	if left != "" {
		w.problems = append(w.problems, left)
	}
	if err := w.hist.check(); err != nil {
		w.problems = append(w.problems, err.Error())
	}
	if *flagTrace {
		fmt.Print(w.trace.String())
	}
	if testing.Verbose() {
		fmt.Printf("seed %d: %v, %d drives, raft %v: %d operations, %v of virtual time in %v, %v\n",
			seed, w.profile, len(w.drives), w.raft, w.hist.count, virtual.Round(time.Second), time.Since(began).Round(time.Millisecond), w.faults)
	}
	if *flagKeep != "" && len(w.problems) > 0 {
		file := filepath.Join(*flagKeep, fmt.Sprintf("seed-%d.txt", seed))
		if err := os.WriteFile(file, []byte(w.trace.String()+strings.Join(w.problems, "\n")), 0o600); err != nil {
			t.Error(err)
		}
	}
	for _, p := range w.problems {
		t.Errorf("seed %d: %s", seed, p)
	}
	return w, virtual
}

// bubble runs f in a bubble of its own, at whose end every goroutine must have ended; it returns those that have not.
func bubble(t *testing.T, f func()) (problem string) {
	t.Helper()
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		left := bubbled(string(stacks()))
		// An opening whose flush fails is left behind for good: it would try again for ever. One that fails
		// late leaves goroutines of Pebble behind, but of one store only: more would be stores that nobody closed.
		stores := 0
		for _, g := range left {
			if strings.Contains(g, "LogWriter).flushLoop") {
				stores++
			}
		}
		if stores <= 1 || slices.ContainsFunc(left, func(g string) bool { return strings.Contains(g, "disk.(*store).openPebble") }) {
			left = slices.DeleteFunc(left, func(g string) bool { return strings.Contains(g, "cockroachdb/pebble") })
		}
		if !strings.Contains(fmt.Sprint(p), "main bubble goroutine has exited") || len(left) > 0 {
			problem = fmt.Sprintf("%v\n%s", p, strings.Join(left, "\n\n"))
		}
	}()
	synctest.Test(t, func(*testing.T) { f() })
	return ""
}

// bubbled are the goroutines of the newest bubble.
func bubbled(all string) (out []string) {
	newest := 0
	for _, g := range strings.Split(all, "\n\n") {
		head, _, _ := strings.Cut(g, "\n")
		_, num, ok := strings.Cut(head, "synctest bubble ")
		n, err := strconv.Atoi(strings.TrimRight(num, "]:"))
		if !ok || err != nil || n < newest {
			continue
		}
		if n > newest {
			newest, out = n, nil
		}
		out = append(out, g)
	}
	return out
}

// stacks is where every goroutine stands.
func stacks() []byte {
	buf := make([]byte, 16<<20)
	return buf[:runtime.Stack(buf, true)]
}
