package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A store that was one process becomes a cluster, and its partitions become wider under load, while nodes are killed and cut off.

// wholes is a client that stores bodies in one request only: multipart objects are written again when they are an hour
// old, which no test waits for.
type wholes struct{ *minioStore }

func (w wholes) multipart(ctx context.Context, key string, parts [][]byte) (bool, error) {
	return true, w.put(ctx, key, bytes.Join(parts, nil))
}

// holding is objects that are written once and never again.
type holding map[string][]byte

// putStock stores so many small objects and large ones.
func putStock(t *testing.T, to store, small, large int) holding {
	t.Helper()
	s := holding{}
	for i := range small {
		s[fmt.Sprintf("stock/s%05d", i)] = randomBody(uint64(1000+i), 100+37*i%9000)
	}
	for i := range large {
		s[fmt.Sprintf("stock/l%03d", i)] = randomBody(uint64(900_000+i), 300<<10+i*150<<10)
	}
	s.each(t, slices.Sorted(maps.Keys(s)), func(ctx context.Context, key string) error { return to.put(ctx, key, s[key]) })
	return s
}

// each calls f for keys, several at a time; all must succeed.
func (s holding) each(t *testing.T, keys []string, f func(ctx context.Context, key string) error) {
	t.Helper()
	work := make(chan string)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for key := range work {
				ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
				if err := f(ctx, key); err != nil {
					t.Errorf("%s: %v", key, err)
				}
				cancel()
			}
		})
	}
	for _, key := range keys {
		work <- key
	}
	close(work)
	wg.Wait()
}

// compareStock reads all of it by way of gateways.
func (c *sites) compareStock(s holding, by ...*site) {
	c.t.Helper()
	for _, m := range by {
		own := c.client(m)
		s.each(c.whole, slices.Sorted(maps.Keys(s)), func(ctx context.Context, key string) error {
			got, err := own.get(ctx, key)
			if err == nil && !bytes.Equal(got, s[key]) {
				err = fmt.Errorf("%d bytes by %s that are not those that were stored, %d", len(got), m.name, len(s[key]))
			}
			return err
		})
	}
}

// startAlone starts the process as a store of one machine.
func (m *site) startAlone() {
	m.t.Helper()
	args := m.args
	m.args = loadArgs
	m.start()
	m.args = args
}

// narrow returns how many partitions are not as wide as the profile yet.
func (m *site) narrow() (int, error) {
	out, stderr, err := m.ostraka("admin", "layout", "show", "--json")
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, stderr)
	}
	var show struct {
		Narrow int `json:"narrow"`
	}
	return show.Narrow, json.Unmarshal([]byte(out), &show)
}

// settled waits until no list of a node has anything on it: what was stored has all its shards.
func (c *sites) settled(limit time.Duration) {
	c.t.Helper()
	for _, n := range c.nodes() {
		poll(c.t, limit, 500*time.Millisecond, "what was missed to be repaired", func() error {
			h, err := n.healing()
			if err == nil && h.Backlog > 0 {
				err = fmt.Errorf("%s has %d registers on its lists", n.name, h.Backlog)
			}
			return err
		})
	}
}

// outlives waits until every node says that so many further drives may be lost: all data have the profile of their partitions.
func (c *sites) outlives(drives int, limit time.Duration) {
	c.t.Helper()
	for _, n := range c.nodes() {
		poll(c.t, limit, time.Second, "all data to be written again", func() error {
			out, stderr, err := n.ostraka("admin", "info", "--json")
			if err != nil {
				return fmt.Errorf("%w: %s", err, stderr)
			}
			var info struct {
				Redundancy struct {
					MayLose int `json:"may_lose"`
				} `json:"redundancy"`
				Why []string `json:"heal_why"`
			}
			if err := json.Unmarshal([]byte(out), &info); err != nil {
				return err
			}
			if got := info.Redundancy.MayLose; got != drives {
				return fmt.Errorf("by %s %d further drives may be lost, want %d: %q", n.name, got, drives, info.Why)
			}
			return nil
		})
	}
}

// briefly has something befall a node for a while. It is not asked whether anything can be stored meanwhile: while partitions
// have their members on one node, nothing can.
func (c *sites) briefly(l *load, what string, kind fault, m *site, while time.Duration) {
	c.t.Helper()
	begin, ops := time.Now(), l.ops.Load()
	kind.do(m)
	hold := time.NewTimer(while)
	<-hold.C
	kind.undo(m)
	l.acknowledged(6, 3*time.Minute)
	c.t.Logf("%s: %s (zone %s) %s; after %v objects are stored again; %d operations, %d not answered, or 503", what, m.name, m.zone, kind.name,
		time.Since(begin).Round(time.Millisecond), l.ops.Load()-ops, l.onlyUnavailable(what))
}

// TestFaultClusterThatBecomesWider begins a store as one process with two directories, profile 1+1. It becomes the
// first node of a cluster, others join, and all partitions become 2+2 wide under load, while nodes are killed and
// cut off. Then a node is taken away for good. In the long form what was stored before is written again first, and the
// node that goes is the first one, which had all of it.
func TestFaultClusterThatBecomesWider(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	small, large, drives, more := 60, 4, 1, 0
	whole := *long && !testing.Short()
	if whole {
		small, large, drives, more = 1000, 20, 2, 6
	}
	c := &sites{t: t, whole: t, net: newNet(t), rng: random(96), bucket: "kept"}
	first := c.newSite("server", "a", 2)
	first.startAlone()
	c.makeBucket(c.bucket)
	kept := putStock(t, c.client(), small, large)
	first.stop(time.Minute)

	begin := time.Now()
	first.start()
	for _, zone := range []string{"b", "c", "d"} {
		c.newSite("server", zone, drives).launch()
	}
	for _, m := range c.all {
		m.ready()
		m.forget()
	}
	c.complete()
	c.compareStock(kept, c.all[1])
	t.Logf("a store of one process is the first of %d nodes after %v; %d objects compared by another", len(c.all), time.Since(begin).Round(time.Millisecond), len(kept))

	l := c.load(97, func() store { return wholes{c.impatient()} })
	l.check = []store{wholes{c.client()}}
	l.resume()
	l.acknowledged(20, 2*time.Minute)
	l.noFailures("before anything happens")

	begin = time.Now()
	ops, puts := l.ops.Load(), l.puts.Load()
	var plan struct {
		Layout  int `json:"layout"`
		Widened int `json:"widened"`
	}
	if err := json.Unmarshal([]byte(c.all[1].admin("layout", "plan", "--profile", "2+2", "--json")), &plan); err != nil || plan.Widened == 0 {
		t.Fatalf("a plan for 2+2 makes %d partitions wider: %v", plan.Widened, err)
	}
	c.all[1].admin("layout", "apply", strconv.Itoa(plan.Layout), "--profile", "2+2", "--json")
	// One is killed and one cut off, whoever they are, the first node among them: at the beginning, and while some partitions are
	// wide and others are not.
	kinds := faults()
	list := append([]fault{kinds[0], kinds[1]}, kinds[:more]...)
	for i, kind := range list {
		left := 0
		poll(t, 10*time.Minute, 100*time.Millisecond, "partitions to become wider", func() (err error) {
			if left, err = c.all[1].narrow(); err == nil && left > plan.Widened*(len(list)-i)/len(list) {
				err = fmt.Errorf("%d are narrow still", left)
			}
			return err
		})
		m := c.all[c.rng.IntN(len(c.all))]
		c.briefly(l, fmt.Sprintf("fault %d, with %d partitions narrow", i, left), kind, m, time.Duration(1000+c.rng.IntN(3000))*time.Millisecond)
	}
	c.planned(40 * time.Minute)
	for _, m := range c.all {
		poll(t, joining, 500*time.Millisecond, "all partitions to be as wide as 2+2", func() error {
			n, err := m.narrow()
			if err == nil && n > 0 {
				err = fmt.Errorf("%d partitions are narrow by %s, and no plan is open", n, m.name)
			}
			return err
		})
	}
	t.Logf("%d partitions became wider in %v; %d operations and %d objects meanwhile", plan.Widened, time.Since(begin).Round(time.Millisecond), l.ops.Load()-ops, l.puts.Load()-puts)
	l.pause()
	l.onlyUnavailable("while partitions became wider")
	c.complete()
	if whole {
		c.verify(l)
		c.compareStock(kept, c.all...)
	}
	goer := c.all[len(c.all)-1] // has nothing that was stored before
	drain := []string{"admin", "node", "drain", goer.name, "--dead", "--yes"}
	if whole {
		goer = first
		l.resume()
		begin = time.Now()
		c.rewritten(l)
		l.pause()
		l.onlyUnavailable("while data are written again")
		c.settled(10 * time.Minute)
		c.outlives(2, 40*time.Minute) // of what is being stored it is not known yet
		t.Logf("all data were written again after %v", time.Since(begin).Round(time.Second))
		// Two of the four members of some partitions go with it. That they are dead rests on the operator's word.
		drain = []string{"admin", "node", "drain", goer.name, "--dead", "--yes", "--accept-loss"}
	}
	c.settled(5 * time.Minute)
	c.goesForGood(l, goer, drain)
	c.verify(l)
	c.compareStock(kept, c.all...)
	t.Logf("without %s: %d keys of the load and %d of the stock compared by %d gateways", goer.name, len(l.entries()), len(kept), len(c.all))
	for _, m := range c.all {
		m.stop(time.Minute)
	}
}

// rewritten waits until data are being written again, and has nodes killed and cut off meanwhile.
func (c *sites) rewritten(l *load) {
	c.t.Helper()
	begun := func() error {
		for _, n := range c.nodes() {
			h, err := n.healing()
			if err != nil {
				return err
			}
			if slices.ContainsFunc(h.Jobs, func(j healJob) bool { return j.Kind == "recode" }) {
				return nil
			}
		}
		return errors.New("no node does")
	}
	poll(c.t, 10*time.Minute, 500*time.Millisecond, "data to be written again", begun)
	kinds := faults()
	for i := range 4 {
		m := c.all[c.rng.IntN(len(c.all))]
		c.briefly(l, fmt.Sprintf("fault %d while data are written again", i), kinds[i%len(kinds)], m, time.Duration(1000+c.rng.IntN(4000))*time.Millisecond)
	}
	c.complete()
}

// goesForGood kills a node and has it given up: others take its places, and what it held is rebuilt, under load.
func (c *sites) goesForGood(l *load, m *site, drain []string) {
	c.t.Helper()
	begin := time.Now()
	m.kill()
	c.all = slices.DeleteFunc(c.all, func(o *site) bool { return o == m })
	for _, w := range l.workers {
		w.client = wholes{c.impatient()}
	}
	l.takeFailures()
	l.resume()
	var said string
	poll(c.t, 3*time.Minute, time.Second, m.name+" to be given up", func() error {
		out, stderr, err := c.all[0].ostraka(drain...)
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, out, stderr)
		}
		said = out
		return nil
	})
	if strings.Contains(said, "LOSS") {
		c.t.Logf("giving up %s says:\n%s", m.name, said)
	}
	if strings.Contains(said, "earlier profile") {
		c.t.Errorf("what was stored before is said to be lost with %s", m.name)
	}
	l.acknowledged(10, 2*time.Minute)
	c.planned(40 * time.Minute)
	l.acknowledged(10, 2*time.Minute)
	l.pause()
	l.onlyUnavailable("without " + m.name)
	poll(c.t, joining, 500*time.Millisecond, m.name+" to be forgotten", func() error {
		_, stderr, err := c.all[0].ostraka("admin", "node", "remove", m.name)
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr)
		}
		return nil
	})
	c.complete()
	c.t.Logf("%s was taken away for good; others have its places after %v", m.name, time.Since(begin).Round(time.Millisecond))
}
