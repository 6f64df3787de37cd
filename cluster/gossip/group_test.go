package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// deadline is how long a test waits for what must come: far more than it takes.
const deadline = time.Minute

// fast is a gossip of small groups on one machine. It suspects for so long that a machine under load makes nobody fail.
var fast = Timing{Probe: 200 * time.Millisecond, Answer: 150 * time.Millisecond, Gossip: 10 * time.Millisecond, Sync: 500 * time.Millisecond,
	TCP: 2 * time.Second, Suspicion: 100, Leaving: 50 * time.Millisecond, Reconnect: 100 * time.Millisecond, JoinFirst: 20 * time.Millisecond, JoinLast: 100 * time.Millisecond}

// nervous is for tests in which somebody is to be seen to fail.
func nervous(c *Config) { c.Timing.Suspicion = 3 }

func key(n byte) []byte { return bytes.Repeat([]byte{n, 7}, 16) }

// logs collects what was logged. It is safe for concurrent use.
type logs struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// node is one member of a test.
type node struct {
	*Group
	log *logs
}

func begin(t *testing.T, n byte, alter ...func(*Config)) *node {
	t.Helper()
	nd := &node{log: &logs{}}
	// An address of its own, as a machine has it.
	cfg := Config{Tags: tagsOf(n), Bind: fmt.Sprintf("127.0.0.%d:0", 10+n), Keys: [][]byte{key(1)}, Timing: fast,
		Logger: slog.New(slog.NewTextHandler(nd.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range alter {
		f(&cfg)
	}
	nd.Group = must(Start(cfg))(t)
	t.Cleanup(func() {
		if err := nd.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if t.Failed() {
			t.Logf("log of node %d:\n%.8000s", n, nd.log)
		}
	})
	return nd
}

// until waits for a View.
func (n *node) until(t *testing.T, what string, ok func(*View) bool) *View {
	t.Helper()
	changed, stop := n.Watch()
	defer stop()
	timer := time.NewTimer(deadline)
	defer timer.Stop()
	for {
		select {
		case <-changed:
			if v := n.View(); ok(v) {
				return v
			}
		case <-timer.C:
			t.Fatalf("%s: not within %s; the view is %+v", what, deadline, n.View())
		}
	}
}

// is waits until a node has a state.
func (n *node) is(t *testing.T, of byte, want State) Member {
	t.Helper()
	v := n.until(t, fmt.Sprintf("node %d is %s", of, want), func(v *View) bool {
		m, ok := v.Member(id(of))
		return ok && m.State == want
	})
	m, _ := v.Member(id(of))
	return m
}

// group starts nodes 1 to n that all know each other.
func group(t *testing.T, n byte, alter ...func(*Config)) (all []*node) {
	t.Helper()
	for i := byte(1); i <= n; i++ {
		nd := begin(t, i, alter...)
		if i > 1 {
			nd.Join([]string{all[0].Address()})
		}
		all = append(all, nd)
	}
	for _, nd := range all {
		for i := byte(1); i <= n; i++ {
			nd.is(t, i, Alive)
		}
	}
	return all
}

func TestNodesFindEachOtherWithWhatTheySay(t *testing.T) {
	all := group(t, 4)
	for i, nd := range all {
		v := nd.until(t, "all are there", func(v *View) bool { return v.Alive() == 4 })
		if v.Alive() != 4 || v.Foreign != 0 || len(v.Duplicates) != 0 {
			t.Errorf("node %d sees %d alive, %d foreign, %d duplicates", i+1, v.Alive(), v.Foreign, len(v.Duplicates))
		}
		for j, m := range v.Members {
			if m.Self != (i == j) || m.Address != all[j].Address() || m.Tags.Name != fmt.Sprintf("node-%d", j+1) {
				t.Errorf("node %d sees %+v in place %d", i+1, m, j)
			}
		}
	}
}

func TestNewTagsReachEverybody(t *testing.T) {
	all := group(t, 3)
	tags := tagsOf(1)
	tags.Node, tags.Layout, tags.Drives = id(9), 99, []uint16{5, 6}
	if err := all[0].UpdateTags(tags); err != nil {
		t.Fatal(err)
	}
	for _, nd := range all {
		v := nd.until(t, "the layout number is told", func(v *View) bool {
			m, _ := v.Member(id(1))
			return m.Tags.Layout == 99 && len(m.Tags.Drives) == 2
		})
		if len(v.Members) != 3 {
			t.Errorf("a change of tags changed who it is: %d members", len(v.Members))
		}
	}
	tags.Zone = strings.Repeat("z", 100)
	if err := all[0].UpdateTags(tags); !errs.Is(err, errs.Invalid) {
		t.Errorf("a zone that is too long: got %v", err)
	}
}

func TestWhoLeavesHasNotFailed(t *testing.T) {
	all := group(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	// Of two messages at the same Lamport time the first counts, and the first may be that of its joining: who leaves within
	// milliseconds of that is taken for failed.
	clock := func(i int) int {
		n, err := strconv.Atoi(all[i].serf.Stats()["member_time"])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	waitFor(t, "the clock of who leaves", func() bool { return clock(2) >= max(clock(0), clock(1)) && clock(2) > 1 })
	if err := all[2].Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if err := all[2].Close(); err != nil {
		t.Fatal(err)
	}
	for _, nd := range all[:2] {
		if m := nd.is(t, 3, Left); m.Failures != 0 {
			t.Errorf("%d failures", m.Failures)
		}
	}
}

func TestWhoEndsIsSeenToFailAndComesBack(t *testing.T) {
	all := group(t, 3, nervous)
	former := all[2].View()
	before := former.Alive()
	if err := all[2].Close(); err != nil {
		t.Fatal(err)
	}
	for _, nd := range all[:2] {
		if m := nd.is(t, 3, Failed); m.Failures < 1 {
			t.Errorf("%d failures, want 1 at least", m.Failures)
		}
	}
	// It comes back at another port, in a zone of another name.
	back := begin(t, 3, func(c *Config) { c.Tags.Zone = "z9" })
	back.Join([]string{all[0].Address()})
	for _, nd := range all[:2] {
		m := nd.is(t, 3, Alive)
		if m.Tags.Zone != "z9" || m.Address != back.Address() {
			t.Errorf("it is seen as %+v", m)
		}
		if v := nd.View(); len(v.Members) != 3 || len(v.Duplicates) != 0 {
			t.Errorf("%d members, %d duplicates", len(v.Members), len(v.Duplicates))
		}
	}
	if len(former.Members) != 3 || former.Alive() != before {
		t.Error("a view has changed")
	}
}

func TestJoiningIsPatient(t *testing.T) {
	a := begin(t, 1)
	// Nobody is there yet: of the first address nothing will ever come, at the second somebody begins later.
	later := begin(t, 3)
	address := later.Address()
	if err := later.Close(); err != nil {
		t.Fatal(err)
	}
	a.Join([]string{"127.0.0.99:1", "no such address", address})
	a.until(t, "it is there itself", func(v *View) bool { return v.Alive() == 1 })
	b := begin(t, 2, func(c *Config) { c.Bind = address })
	a.is(t, 2, Alive)
	b.is(t, 1, Alive)
}

func TestAloneAgainItSeeksThoseItKnew(t *testing.T) {
	a, b := begin(t, 1), begin(t, 2)
	address := b.Address()
	a.Join([]string{address})
	a.is(t, 2, Alive)
	b.is(t, 1, Alive)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	// It leaves, so that serf itself does not seek it any more.
	if err := errors.Join(b.Leave(ctx), b.Close()); err != nil {
		t.Fatal(err)
	}
	a.is(t, 2, Left)
	begin(t, 2, func(c *Config) { c.Bind = address })
	a.is(t, 2, Alive)
}

func TestAnotherKeyIsNotAdmitted(t *testing.T) {
	all := group(t, 2)
	stranger := begin(t, 3, func(c *Config) { c.Keys = [][]byte{key(9)} })
	stranger.Join([]string{all[0].Address()})
	waitFor(t, "both sides say why", func() bool {
		return strings.Contains(stranger.log.String(), "does not admit this process") && strings.Contains(all[0].log.String(), "gossip under another key")
	})
	// Several more attempts add no line.
	before := strings.Count(stranger.log.String(), "Initiating push/pull")
	waitFor(t, "it tries again", func() bool { return strings.Count(stranger.log.String(), "Initiating push/pull") > before+3 })
	for _, x := range []struct {
		log  *logs
		text string
	}{{stranger.log, "does not admit this process"}, {all[0].log, "gossip under another key"}} {
		if n := strings.Count(x.log.String(), x.text); n != 1 {
			t.Errorf("%q was logged %d times, want once", x.text, n)
		}
	}
	if v := all[0].View(); len(v.Members) != 2 || v.Foreign != 0 {
		t.Errorf("%d members, %d foreign", len(v.Members), v.Foreign)
	}
	if v := stranger.View(); len(v.Members) != 1 {
		t.Errorf("the stranger sees %d members", len(v.Members))
	}
	// With the right key it gets in without another word.
	if err := stranger.UpdateKeys([][]byte{key(1)}); err != nil {
		t.Fatal(err)
	}
	all[1].is(t, 3, Alive)
	for _, nd := range append(all, stranger) {
		for _, k := range [][]byte{key(1), key(9)} {
			if strings.Contains(nd.log.String(), string(k)) || strings.Contains(nd.log.String(), fmt.Sprintf("%x", k)) {
				t.Error("a key was logged")
			}
		}
	}
}

// waitFor waits for what no View shows. It yields between two looks.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timer := time.NewTimer(deadline)
	defer timer.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-timer.C:
			t.Fatalf("%s: not within %s", what, deadline)
		}
	}
}

func TestTheKeyOfARunningGroupIsChanged(t *testing.T) {
	all := group(t, 3)
	// Add, use, remove; at each step one after the other, and between any two tags still spread.
	layout := uint64(100)
	for _, keys := range [][][]byte{{key(1), key(2)}, {key(2), key(1)}, {key(2)}, {key(2), key(3), key(4)}, {key(4), key(2)}} {
		for _, nd := range all {
			if err := nd.UpdateKeys(keys); err != nil {
				t.Fatal(err)
			}
			layout++
			tags := tagsOf(1)
			tags.Layout = layout
			if err := all[0].UpdateTags(tags); err != nil {
				t.Fatal(err)
			}
			for _, other := range all {
				other.until(t, "tags spread", func(v *View) bool {
					m, _ := v.Member(id(1))
					return m.Tags.Layout == layout
				})
			}
		}
		for i, nd := range all {
			if got := nd.keyring.GetKeys(); len(got) != len(keys) || !bytes.Equal(got[0], keys[0]) {
				t.Errorf("node %d has %d keys, want %d, the one to use first", i+1, len(got), len(keys))
			}
		}
	}
	for _, nd := range all {
		for _, m := range nd.View().Members {
			if m.State != Alive || m.Failures != 0 {
				t.Errorf("the change made %x fail", m.Tags.Node)
			}
		}
	}
	// The first key opens nothing any more.
	late := begin(t, 4)
	late.Join([]string{all[0].Address()})
	waitFor(t, "it is told why", func() bool { return strings.Contains(late.log.String(), "does not admit this process") })
	for _, bad := range [][][]byte{nil, {key(1)[:16]}, {key(1), key(2), key(3), key(4), key(5)}} {
		if err := all[0].UpdateKeys(bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("%d keys: got %v", len(bad), err)
		}
	}
}

func TestTwoProcessesOfOneNodeAreReported(t *testing.T) {
	all := group(t, 2, nervous)
	twin := begin(t, 2, func(c *Config) { c.Bind = "127.0.0.42:0" })
	twin.Join([]string{all[0].Address()})
	for _, nd := range append(all, twin) {
		v := nd.until(t, "the duplicate is seen", func(v *View) bool { return len(v.Duplicates) == 1 })
		if d := v.Duplicates[0]; d.Node != id(2) || len(d.Addresses) != 2 {
			t.Errorf("got %+v", d)
		}
		if len(v.Members) != 2 {
			t.Errorf("%d members", len(v.Members))
		}
		waitFor(t, "it is logged", func() bool { return strings.Contains(nd.log.String(), "two processes claim one node id") })
	}
	if err := twin.Close(); err != nil {
		t.Fatal(err)
	}
	all[0].until(t, "the duplicate is gone", func(v *View) bool { return len(v.Duplicates) == 0 })
}

func TestAMemberOfSomethingElseIsPassedOver(t *testing.T) {
	all := group(t, 2)
	other := begin(t, 3, func(c *Config) { c.Tags.Cluster = id(77) })
	other.Join([]string{all[0].Address()})
	for _, nd := range all {
		v := nd.until(t, "it is counted", func(v *View) bool { return v.Foreign == 1 })
		if len(v.Members) != 2 {
			t.Errorf("%d members", len(v.Members))
		}
	}
	waitFor(t, "it is logged", func() bool { return strings.Contains(all[0].log.String(), "another cluster") })
}

func TestASlowWatcherMissesNothingAndHoldsNobodyUp(t *testing.T) {
	a := begin(t, 1)
	changed, stop := a.Watch()
	defer stop()
	for i := range uint64(200) { // nobody reads meanwhile
		tags := tagsOf(1)
		tags.Layout = i
		if err := a.UpdateTags(tags); err != nil {
			t.Fatal(err)
		}
	}
	a.until(t, "the last tags are there", func(v *View) bool {
		m, _ := v.Member(id(1))
		return m.Tags.Layout == 199
	})
	<-changed // one value stands for all of them
	stop()
	for i := range uint64(3) {
		tags := tagsOf(1)
		tags.Layout = 1000 + i
		if err := a.UpdateTags(tags); err != nil {
			t.Fatal(err)
		}
	}
	a.until(t, "tags after the watcher ended", func(v *View) bool {
		m, _ := v.Member(id(1))
		return m.Tags.Layout == 1002
	})
}

func TestWhatCannotStartSaysWhy(t *testing.T) {
	taken := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close()
	for _, c := range []struct {
		name, text string
		kind       errs.Kind
		alter      func(*Config)
	}{
		{"no port", "host:port", errs.Invalid, func(c *Config) { c.Bind = "127.0.0.1" }},
		{"a port that is none", "port", errs.Invalid, func(c *Config) { c.Bind = "127.0.0.1:99999" }},
		{"an advertised address without a port", "host:port", errs.Invalid, func(c *Config) { c.Advertise = "somewhere" }},
		{"an address that is taken", taken.Addr().String(), errs.Unavailable, func(c *Config) { c.Bind = taken.Addr().String() }},
		{"no key", "keys", errs.Invalid, func(c *Config) { c.Keys = nil }},
		{"a short key", "32 bytes", errs.Invalid, func(c *Config) { c.Keys = [][]byte{{1}} }},
		{"no node id", "id", errs.Invalid, func(c *Config) { c.Tags.Node = [16]byte{} }},
	} {
		cfg := Config{Tags: tagsOf(1), Bind: "127.0.0.1:0", Keys: [][]byte{key(1)}, Timing: fast}
		c.alter(&cfg)
		g, err := Start(cfg)
		if err == nil {
			g.Close()
		}
		if !errs.Is(err, c.kind) || !strings.Contains(errs.Public(err), c.text) {
			t.Errorf("%s: got %v, want %s and %q", c.name, err, c.kind, c.text)
		}
	}
	g := must(Start(Config{Tags: tagsOf(1), Bind: "127.0.0.1:0", Keys: [][]byte{key(1)}, Timing: fast}))(t)
	if err := errors.Join(g.Close(), g.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if err := g.UpdateTags(tagsOf(1)); !errs.Is(err, errs.Unavailable) {
		t.Errorf("tags after the end: got %v", err)
	}
}
