package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Nodes of a cluster as processes in network namespaces of their own (netns_test.go), with directories of their own:
// they share nothing but the network, which the tests cut.

// site is a node in a namespace.
type site struct {
	*server
	net  *netspace
	name string
	zone string

	secret string // the file
}

// sites is a cluster.
type sites struct {
	t     *testing.T // what fails
	whole *testing.T // what the processes and their directories end with
	net   *testNet
	first *site
	all   []*site
	rng   *rand.Rand

	bucket string // of the load
}

// joining is how long a process may take until it serves, on a machine that is busy.
const joining = 2 * time.Minute

// newSite makes a node and starts nothing. The first one of a cluster makes its secret, the others get a copy.
func (c *sites) newSite(role, zone string, drives int, args ...string) *site {
	c.t.Helper()
	m := &site{server: newServer(c.whole, drives, loadArgs...), net: c.net.add(), zone: zone}
	m.t = c.t
	m.name = fmt.Sprintf("n%d", len(c.all)+1)
	m.role = role
	m.addr = m.net.addr.String() + ":9000"
	m.withTestLimits()
	m.secret = filepath.Join(c.whole.TempDir(), "secret")
	m.args = append(m.args, "--node-address", m.net.addr.String()+":7000", "--zone", zone, "--name", m.name, "--cluster-secret-file", m.secret)
	m.args = append(m.args, args...)
	if c.first == nil {
		c.first = m
	} else {
		poll(c.t, joining, 10*time.Millisecond, "the secret of the cluster", func() error {
			raw, err := os.ReadFile(c.first.secret)
			if err == nil && len(raw) == 0 {
				err = errors.New("it is empty")
			}
			if err != nil {
				return err
			}
			return os.WriteFile(m.secret, raw, 0o600)
		})
		m.args = append(m.args, "--join", c.nodes()[0].net.addr.String()+":7000")
	}
	c.all = append(c.all, m)
	return m
}

// launch starts the process in its namespace and does not wait.
func (m *site) launch() { m.net.do(m.server.launch) }

// start launches it and waits until it serves.
func (m *site) start() {
	m.t.Helper()
	m.launch()
	m.ready()
}

func (m *site) ready() {
	m.t.Helper()
	poll(m.t, joining, 20*time.Millisecond, m.name+" to be ready", func() error {
		select {
		case <-m.exited:
			m.t.Fatalf("%s ended before it was ready: %v\n%s", m.name, m.code, m.log.tail())
		default:
		}
		return m.probe("/-/ready")
	})
}

// forget takes from the command line what a node needs to join, and not to start again.
func (m *site) forget() {
	if m.role == "gateway" {
		return // keeps nothing, joins each time
	}
	for _, flag := range []string{"--join", "--cluster-secret-file", "--expect"} {
		if i := slices.Index(m.args, flag); i >= 0 {
			m.args = slices.Delete(m.args, i, i+2)
		}
	}
}

// complete waits until the node sees that many nodes, and misses none. A gateway that was killed may still be counted
// besides the one that was started after it.
func (m *site) complete(nodes int) {
	m.t.Helper()
	poll(m.t, joining, 200*time.Millisecond, m.name+" to see all nodes", func() error {
		out, stderr, err := m.ostraka("admin", "info", "--json")
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr)
		}
		var info struct {
			Nodes   int      `json:"nodes"`
			Missing []string `json:"missing"`
		}
		if err := json.Unmarshal([]byte(out), &info); err != nil {
			return err
		}
		if info.Nodes < nodes || len(info.Missing) > 0 {
			return fmt.Errorf("%d nodes, missing %q, want at least %d", info.Nodes, info.Missing, nodes)
		}
		return nil
	})
}

func (c *sites) complete() {
	c.t.Helper()
	for _, m := range c.all {
		m.complete(len(c.all))
	}
}

// fiveNodes forms a cluster of five nodes with two drives each in three zones, and a gateway.
func fiveNodes(t *testing.T, stream uint64) *sites {
	t.Helper()
	begin := time.Now()
	c := &sites{t: t, whole: t, net: newNet(t), rng: random(stream)}
	c.newSite("server", "a", 2, "--expect", "5").launch()
	for _, zone := range []string{"a", "b", "b", "c"} {
		c.newSite("server", zone, 2).launch()
	}
	for _, m := range c.all {
		m.ready()
	}
	for _, m := range c.all {
		m.forget()
	}
	c.newSite("gateway", "a", 0).start()
	t.Logf("five nodes and a gateway are one store after %v", time.Since(begin).Round(time.Millisecond))
	return c
}

// nodes are those with drives.
func (c *sites) nodes() []*site {
	return slices.DeleteFunc(slices.Clone(c.all), func(m *site) bool { return len(m.dirs) == 0 })
}

// dialer connects to the next gateway that takes the connection, as a balancer in front of them does.
func (c *sites) dialer(only ...*site) func(ctx context.Context, network, addr string) (net.Conn, error) {
	if len(only) == 0 {
		only = slices.Clone(c.all)
	}
	var turn atomic.Uint32
	return func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		for range only {
			m := only[int(turn.Add(1))%len(only)]
			if conn, err = d.DialContext(ctx, network, m.addr); err == nil {
				return conn, nil
			}
		}
		return nil, err
	}
}

// client is a minio-go client of gateways behind a balancer, by default of all. It repeats nothing. Each request
// goes to another gateway.
func (c *sites) client(only ...*site) *minioStore {
	c.t.Helper()
	tr := ownTransport(c.t)
	tr.DialContext = c.dialer(only...)
	tr.DisableKeepAlives = true
	return c.clientBy(tr, 1)
}

// impatient is a client of all gateways that gives up when an answer takes long: one that is cut off or stopped would
// hold the load up. Whether the request took effect is not known then.
func (c *sites) impatient() *minioStore {
	c.t.Helper()
	tr := ownTransport(c.t)
	tr.DialContext = c.dialer()
	tr.DisableKeepAlives = true
	tr.ResponseHeaderTimeout = 3 * time.Second
	if *long && !testing.Short() {
		tr.ResponseHeaderTimeout = 15 * time.Second
	}
	return c.clientBy(tr, 1)
}

func (c *sites) clientBy(tr http.RoundTripper, tries int) *minioStore {
	c.t.Helper()
	core, err := minio.NewCore("gateways.test:9000", &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: region,
		Transport: tr, MaxRetries: tries, BucketLookup: minio.BucketLookupPath})
	if err != nil {
		c.t.Fatal(err)
	}
	return &minioStore{core, c.bucket}
}

// makeBucket makes a bucket, with some patience.
func (c *sites) makeBucket(name string) {
	c.t.Helper()
	core := c.client().core
	poll(c.t, joining, 100*time.Millisecond, "bucket "+name, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		err := core.MakeBucket(ctx, name, minio.MakeBucketOptions{})
		if _, code := answered(err); code == "BucketAlreadyOwnedByYou" {
			return nil
		}
		return err
	})
}

// load is a load whose requests go to all gateways in turn.
func (c *sites) load(stream uint64, client func() store) *load {
	c.t.Helper()
	l := newLoadOf(c.t, c.first.server, stream, func(int) store { return client() })
	l.check = []store{c.client()}
	return l
}

// verify compares everything with what every gateway answers, body by body and listing by listing. The load has to
// be paused.
func (c *sites) verify(l *load) {
	c.t.Helper()
	for _, m := range c.all {
		own := c.client(m)
		l.check = []store{own}
		was := map[*worker]store{}
		for _, w := range l.workers {
			was[w], w.client = w.client, own
		}
		l.verifyAll()
		for w, client := range was {
			w.client = client
		}
	}
}

// fault is something that is done to one node and undone.
type fault struct {
	name string
	do   func(m *site)
	undo func(m *site)
}

func (m *site) signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatalf("%s: %v: %v", m.name, s, err)
	}
}

// isolate cuts a node off: what it sends, what is sent to it, or both.
func (m *site) isolate(kind cutKind, out, in bool) {
	m.t.Helper()
	if out {
		m.net.cut(kind, m.net.others()...)
	}
	if in {
		for _, o := range m.net.others() {
			o.cut(kind, m.net)
		}
	}
}

func (m *site) rejoin(kind cutKind, out, in bool) {
	m.t.Helper()
	if out {
		m.net.mend(kind, m.net.others()...)
	}
	if in {
		for _, o := range m.net.others() {
			o.mend(kind, m.net)
		}
	}
}

func cutting(name string, kind cutKind, out, in bool) fault {
	return fault{name: name, do: func(m *site) { m.isolate(kind, out, in) }, undo: func(m *site) { m.rejoin(kind, out, in) }}
}

// faults are what may befall one node.
func faults() []fault {
	return []fault{
		{name: "killed", do: func(m *site) { m.kill() }, undo: (*site).start},
		cutting("cut off both ways", silently, true, true),
		{name: "stopped", do: func(m *site) { m.signal(syscall.SIGSTOP) }, undo: func(m *site) { m.signal(syscall.SIGCONT) }},
		cutting("cut off one way: nobody hears it", silently, true, false),
		cutting("cut off one way: it hears nobody", silently, false, true),
		cutting("cut off both ways by routes", blackhole, true, true),
		cutting("cut off one way by routes", blackhole, true, false),
	}
}

// acknowledged waits until the load has stored n more objects.
func (l *load) acknowledged(n int64, limit time.Duration) {
	l.t.Helper()
	target := l.puts.Load() + n
	poll(l.t, limit, 5*time.Millisecond, fmt.Sprintf("%d objects to be stored", n), func() error {
		if left := target - l.puts.Load(); left > 0 {
			return fmt.Errorf("%d are outstanding; the last failures: %v", left, l.lastFailures())
		}
		return nil
	})
}

// onlyUnavailable fails the test for recorded failures other than no answer and 503.
func (l *load) onlyUnavailable(when string) (n int) {
	l.t.Helper()
	for _, f := range l.takeFailures() {
		if f.status != 0 && f.status != http.StatusServiceUnavailable {
			l.t.Errorf("%s: %v, want no failure but 503 and none without an answer", when, f)
		}
		n++
	}
	return n
}

// TestFaultClusterOfNodes forms one cluster of real nodes and has done to them what networks and machines do.
func TestFaultClusterOfNodes(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	c := fiveNodes(t, 90)
	for i, part := range []struct {
		name string
		run  func(t *testing.T, c *sites)
	}{
		{"nothing acknowledged is lost while nodes are killed, stopped and cut off", nodesUnderFaults},
		{"one of a hundred creates over all gateways wins", createsOverGateways},
		{"a counter over all gateways is the number of successes", counterOverGateways},
		{"a rolling restart is not noticed", rollingRestart},
		{"a drive of a node is replaced under load and faults", driveOfANodeReplaced},
		{"a node is added and one is drained under load and faults", nodesComeAndGo},
		{"everything starts again, with a node missing", restartOfAll},
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			own := c.of(t, fmt.Sprintf("part-%d", i))
			part.run(t, own)
			c.all, c.first = own.all, own.first
		})
		c.heldBy(t)
		if !ok {
			return // what comes after it would say the same
		}
	}
	for _, m := range c.all {
		m.stop(time.Minute)
	}
}

// of is the cluster for a subtest, with a bucket of its own.
func (c *sites) of(t *testing.T, bucket string) *sites {
	t.Helper()
	own := *c
	own.t, own.bucket = t, bucket
	own.heldBy(t)
	own.makeBucket(bucket)
	return &own
}

// heldBy has what fails from now on fail t.
func (c *sites) heldBy(t *testing.T) {
	c.net.t = t
	for _, m := range c.all {
		m.t = t
	}
}

// nodesUnderFaults injects each fault into a node under load. One node may be away: whatever it is, objects are
// stored meanwhile. With -long there are many rounds, and in every third a second node suffers too.
func nodesUnderFaults(t *testing.T, c *sites) {
	kinds := faults()
	c.rng.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	rounds := 4
	if *long && !testing.Short() {
		rounds = 20 * len(kinds)
	}
	l := c.load(91, func() store { return c.impatient() })
	l.resume()
	l.advance(30, 2*time.Minute)
	for round := range rounds {
		kind, m := kinds[round%len(kinds)], c.all[c.rng.IntN(len(c.all))]
		what := fmt.Sprintf("round %d, %s (zone %s, %s) %s", round, m.name, m.zone, m.role, kind.name)
		var also *site
		second := kinds[c.rng.IntN(len(kinds))]
		if *long && round%3 == 2 {
			for also == nil || also == m {
				also = c.all[c.rng.IntN(len(c.all))]
			}
			if kind.name != "killed" && kind.name != "stopped" && second.name != "killed" && second.name != "stopped" {
				second = faults()[0] // two cuts would undo each other
			}
			what += fmt.Sprintf(", and %s (zone %s) %s", also.name, also.zone, second.name)
		}
		begin, ops, puts := time.Now(), l.ops.Load(), l.puts.Load()
		kind.do(m)
		if also != nil {
			second.do(also)
			l.advance(40, 3*time.Minute)
			second.undo(also)
		}
		l.acknowledged(8, 2*time.Minute)
		kind.undo(m)
		l.acknowledged(4, 2*time.Minute)
		t.Logf("%s: %d operations and %d objects in %v; %d were not answered, or 503", what, l.ops.Load()-ops, l.puts.Load()-puts,
			time.Since(begin).Round(time.Millisecond), l.onlyUnavailable(what))
		if t.Failed() {
			return
		}
	}
	c.complete()
	l.pause()
	l.onlyUnavailable("at the end")
	c.verify(l)
	t.Logf("%d operations, %d objects stored; %d keys compared by %d gateways", l.ops.Load(), l.puts.Load(), len(l.entries()), len(c.all))
}

// createsOverGateways has a hundred clients create a key at once, over all gateways. The last rounds have a fault each.
func createsOverGateways(t *testing.T, c *sites) {
	kinds := faults()
	plain, some := 20, kinds[:4]
	if *long && !testing.Short() {
		plain, some = 1000, slices.Repeat(kinds, 15)
	}
	const clients = 100
	bucket := c.bucket
	by := make([]*s3.Client, len(c.all))
	for i, m := range c.all {
		by[i] = m.s3()
	}
	unsettled, unclear := 0, int64(0)
	begin := time.Now()
	for round := range plain + len(some) {
		if round == plain {
			t.Logf("%d rounds of %d clients over %d gateways without faults in %v: one was told each time that it created the key", plain, clients, len(by), time.Since(begin).Round(time.Millisecond))
		}
		key := fmt.Sprintf("created/%05d", round)
		var kind fault
		faulty, m := round >= plain, c.all[c.rng.IntN(len(c.all))]
		if faulty {
			kind = some[round-plain]
		}
		var won, lost, unanswered, winner atomic.Int64
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				defer cancel()
				_, err := by[i%len(by)].PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, IfNoneMatch: aws.String("*"), Body: strings.NewReader(fmt.Sprint(i))})
				switch status := status(err); {
				case err == nil:
					won.Add(1)
					winner.Store(int64(i))
				case status == http.StatusPreconditionFailed || status == http.StatusConflict:
					lost.Add(1)
				case faulty && (status == 0 || status == http.StatusServiceUnavailable):
					unanswered.Add(1)
				default:
					t.Errorf("%s, client %d: %v, want 200 or 412", key, i, err)
				}
			})
		}
		if faulty {
			moment := time.NewTimer(time.Duration(c.rng.IntN(100)) * time.Millisecond)
			<-moment.C
			kind.do(m)
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			enough := time.NewTimer(3 * time.Second)
			select {
			case <-done:
			case <-enough.C:
			}
			enough.Stop()
			kind.undo(m)
		}
		wg.Wait()
		if n := won.Load(); n > 1 || n == 0 && !faulty {
			t.Errorf("%s: %d clients were told that they created it (%s %s: %v)", key, n, m.name, kind.name, faulty)
		}
		if won.Load() == 0 {
			unsettled++
		}
		unclear += unanswered.Load()
		if faulty {
			c.complete() // the next round is to have no other fault than its own
		}
		var bodies []string
		for i := range by {
			got, _, err := getOrAbsent(t, by[i], bucket, key)
			switch {
			case err != nil:
				t.Errorf("GET %s by %s: %v", key, c.all[i].name, err)
			case won.Load() == 1 && string(got) != fmt.Sprint(winner.Load()):
				t.Errorf("%s holds %q by %s, and client %d was told that it created it", key, got, c.all[i].name, winner.Load())
			case won.Load() == 0 && lost.Load() > 0 && got == nil:
				t.Errorf("%s is absent by %s, and %d clients were told that it exists", key, c.all[i].name, lost.Load())
			}
			bodies = append(bodies, string(got))
		}
		if slices.Sort(bodies); len(slices.Compact(bodies)) != 1 {
			t.Errorf("%s: gateways answer different bodies", key)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d rounds with a fault each; %d requests without a clear answer; in %d rounds nobody was told, and in none two", len(some), unclear, unsettled)
}

// counterOverGateways has clients of all gateways append their marks to one object with If-Match while faults go on.
// The object is a counter that remembers who raised it: a mark that was acknowledged is there once, one
// that was refused is not there, and one without a clear answer at most once.
func counterOverGateways(t *testing.T, c *sites) {
	each := 6
	if *long && !testing.Short() {
		each = 300
	}
	bucket, key := c.bucket, "counter"
	put(t, c.first.s3(), bucket, key, []byte(";"))
	const (
		success = iota
		refusal
		unclear
	)
	var mu sync.Mutex // guards the field below
	marks := map[string]int{}
	var wg sync.WaitGroup
	deadline := time.Now().Add(time.Minute * time.Duration(3+each/5))
	for i, m := range c.all {
		api := m.s3()
		wg.Go(func() {
			for n, done := 0, 0; done < each; n++ {
				if time.Now().After(deadline) {
					t.Errorf("%s raised the counter %d times of %d until the deadline", m.name, done, each)
					return
				}
				pause := time.NewTimer(10 * time.Millisecond) // where connections are refused
				<-pause.C
				got, tag, err := getOrAbsent(t, api, bucket, key)
				switch status := status(err); {
				case err != nil && (status == 0 || status == http.StatusServiceUnavailable):
					continue
				case err != nil || got == nil:
					t.Errorf("GET by %s: %q, %v", m.name, got, err)
					return
				}
				mark := fmt.Sprintf("%d.%d", i, n)
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				_, err = api.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, IfMatch: &tag, Body: bytes.NewReader(append(got, mark+";"...))})
				cancel()
				outcome := unclear
				switch status := status(err); {
				case err == nil:
					outcome = success
					done++
				case status == http.StatusPreconditionFailed || status == http.StatusConflict:
					outcome = refusal
				case neverSent(err):
					outcome = refusal
				case status == 0 || status == http.StatusServiceUnavailable:
				default:
					t.Errorf("PUT by %s: %v", m.name, err)
					return
				}
				mu.Lock()
				marks[mark] = outcome
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	go func() { wg.Wait(); close(stop) }()
	kinds := faults()
	injected := 0
	for going := true; going; injected++ {
		kind, m := kinds[injected%len(kinds)], c.all[c.rng.IntN(len(c.all))]
		kind.do(m)
		hold := time.NewTimer(time.Duration(500+c.rng.IntN(2500)) * time.Millisecond)
		select {
		case <-hold.C:
		case <-stop:
			going = false
		}
		hold.Stop()
		kind.undo(m)
	}
	wg.Wait()
	c.complete()
	counts := [3]int{}
	for _, o := range marks {
		counts[o]++
	}
	var first string
	for _, m := range c.all {
		got, _, err := getOrAbsent(t, m.s3(), bucket, key)
		if err != nil {
			t.Fatalf("the counter by %s: %v", m.name, err)
		}
		if first == "" {
			first = string(got)
		}
		if string(got) != first {
			t.Errorf("the counter by %s is %q, and %q by %s", m.name, got, first, c.all[0].name)
		}
	}
	times := map[string]int{}
	for mark := range strings.SplitSeq(strings.Trim(first, ";"), ";") {
		times[mark]++
	}
	took := 0
	for mark, o := range marks {
		switch n := times[mark]; {
		case n > 1, o == success && n != 1, o == refusal && n != 0:
			t.Errorf("mark %s (outcome %d: 0 is success, 1 refused, 2 unclear) is there %d times (seed %d)", mark, o, n, *seedFlag)
		case o == unclear:
			took += n
		}
	}
	if len(times) != counts[success]+took {
		t.Errorf("the counter is %d after %d successes, and %d that were not told of theirs", len(times), counts[success], took)
	}
	t.Logf("%d faults; the counter is %d: %d successes, and %d of the %d requests without a clear answer; %d refused", injected, len(times), counts[success], took, counts[unclear], counts[refusal])
}

// rollingRestart restarts one node after the other under the load of clients with their usual retries behind a
// balancer. They see nothing but 503 and broken connections, and these only in what they try again.
func rollingRestart(t *testing.T, c *sites) {
	turns, some := 1, []*site{c.all[0], c.all[c.rng.IntN(len(c.all)-1)], c.all[len(c.all)-1]}
	if *long && !testing.Short() {
		turns, some = 5, c.all
	}
	tr := ownTransport(t)
	tr.DialContext = c.dialer()
	count := &traffic{RoundTripper: tr}
	l := c.load(92, func() store { return c.clientBy(count, minio.MaxRetry) })
	l.resume()
	l.advance(30, 2*time.Minute)
	begin := time.Now()
	for range turns {
		for _, m := range some {
			m.stop(time.Minute)
			l.advance(5, 2*time.Minute)
			m.start()
			m.complete(len(c.all))
			l.advance(10, 2*time.Minute)
		}
	}
	l.pause()
	l.noFailures("during the restarts")
	if n := count.other5xx.Load(); n > 0 {
		t.Errorf("%d requests were answered 5xx other than 503", n)
	}
	c.verify(l)
	t.Logf("%d restarts in %v; %d operations of the load, %d requests on the wire; tried again by the client: %d 503, %d broken connections",
		turns*len(some), time.Since(begin).Round(time.Millisecond), l.ops.Load(), count.requests.Load(), count.unavailable.Load(), count.broken.Load())
}

// planned waits until no plan is carried out any more, by any gateway that answers.
func (c *sites) planned(limit time.Duration) {
	c.t.Helper()
	poll(c.t, limit, 500*time.Millisecond, "the plan to be carried out", func() (err error) {
		for _, m := range c.all {
			out, stderr, failed := m.ostraka("admin", "layout", "show", "--json")
			if failed != nil {
				err = fmt.Errorf("layout show by %s: %w: %s", m.name, failed, stderr)
				continue
			}
			var show struct {
				Plan json.RawMessage `json:"plan"`
			}
			if err = json.Unmarshal([]byte(out), &show); err != nil {
				return err
			}
			if len(show.Plan) > 0 && string(show.Plan) != "null" {
				return fmt.Errorf("%s", show.Plan)
			}
			return nil
		}
		return err
	})
}

// suffer has so many nodes killed, stopped and cut off one after the other, and then waits until what is under way is done.
// only: they are among these, if it is not empty.
func (c *sites) suffer(l *load, what string, times int, done func(limit time.Duration), only ...*site) {
	c.t.Helper()
	begin, ops, puts := time.Now(), l.ops.Load(), l.puts.Load()
	kinds := faults()
	if len(only) == 0 {
		only = c.all
	}
	for i := range times {
		kind, m := kinds[c.rng.IntN(len(kinds))], only[c.rng.IntN(len(only))]
		at := time.Now()
		kind.do(m)
		l.acknowledged(8, 2*time.Minute)
		kind.undo(m)
		l.acknowledged(4, 2*time.Minute)
		c.t.Logf("%s, fault %d: %s %s for %v", what, i, m.name, kind.name, time.Since(at).Round(time.Millisecond))
	}
	suffered := time.Since(begin)
	done(40 * time.Minute)
	c.t.Logf("%s: carried out in %v, with faults for %v; %d operations and %d objects meanwhile; %d were not answered, or 503", what,
		time.Since(begin).Round(time.Millisecond), suffered.Round(time.Millisecond), l.ops.Load()-ops, l.puts.Load()-puts, l.onlyUnavailable(what))
	for _, m := range c.all {
		h, err := m.healing()
		if err != nil {
			continue
		}
		for _, j := range h.Jobs {
			if j.Kind == "move" && j.Swaps > 0 {
				c.t.Logf("%s: the last mover, %s, changed members %d times; partitions stood still for %.3f s in all, the longest %.3f s", what, m.name, j.Swaps, j.Pause, j.LongestPause)
				return
			}
		}
	}
}

// driveOfANodeReplaced has the disk of a node die, and an empty one in its place become a drive, while nodes are killed,
// stopped and cut off, the node itself among them.
func driveOfANodeReplaced(t *testing.T, c *sites) {
	times := 2
	if *long && !testing.Short() {
		times = 8
	}
	// What was missed while nodes were away, before, is repaired first: with one drive more away it could perhaps be read only
	// with that one, which is then not given up.
	for _, n := range c.nodes() {
		poll(t, 5*time.Minute, time.Second, "what was missed to be repaired", func() error {
			h, err := n.healing()
			if err == nil && h.Backlog > 0 {
				err = fmt.Errorf("%s has %d registers on its lists", n.name, h.Backlog)
			}
			return err
		})
	}
	l := c.load(95, func() store { return c.impatient() })
	l.resume()
	l.acknowledged(30, 2*time.Minute)
	m := c.nodes()[c.rng.IntN(len(c.nodes()))]
	i := c.rng.IntN(len(m.dirs))
	m.takeDrive(i)
	poll(t, joining, 200*time.Millisecond, "the drive to be missed", func() error {
		online, err := m.metric("ostraka_drive_state", `state="online"`)
		if err == nil && int(online) == len(m.dirs) {
			err = errors.New("all drives are online")
		}
		return err
	})
	if err := os.Mkdir(m.dirs[i], 0o755); err != nil {
		t.Fatal(err)
	}
	l.acknowledged(10, 2*time.Minute)
	// What is to be repaired first, as the command says, is.
	poll(t, joining, time.Second, "the drive to be replaced", func() error {
		out, stderr, err := m.ostraka("admin", "drive", "replace", "--json", m.dirs[i])
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, out, stderr)
		}
		return nil
	})
	what := fmt.Sprintf("drive %s of %s is replaced", filepath.Base(m.dirs[i]), m.name)
	c.suffer(l, what, times, func(limit time.Duration) {
		poll(t, limit, 500*time.Millisecond, "the replacement to end", func() error {
			left, err := m.replacements()
			if err == nil && left > 0 {
				h, failed := m.healing()
				err = fmt.Errorf("%d are under way: %+v, %w", left, h, failed)
			}
			return err
		})
	})
	c.complete()
	l.pause()
	l.onlyUnavailable("at the end")
	c.verify(l)
	// What it has is needed when another node is away.
	other := c.nodes()[0]
	if other == m {
		other = c.nodes()[1]
	}
	other.kill()
	rest := *c
	rest.all = slices.DeleteFunc(slices.Clone(c.all), func(o *site) bool { return o == other })
	rest.verify(l)
	other.start()
	c.complete()
}

// admin runs an admin command at a node; it must succeed.
func (m *site) admin(args ...string) string {
	m.t.Helper()
	out, stderr, err := m.ostraka(append([]string{"admin"}, args...)...)
	if err != nil {
		m.t.Fatalf("admin %q at %s: %v\n%s%s", args, m.name, err, out, stderr)
	}
	return out
}

// nodesComeAndGo adds a node, and drains another, while nodes are killed, stopped and cut off.
func nodesComeAndGo(t *testing.T, c *sites) {
	needLong(t, "thousands of positions move, in minutes")
	l := c.load(94, func() store { return c.impatient() })
	l.resume()
	l.acknowledged(30, 2*time.Minute)
	comer := c.newSite("server", "c", 2)
	comer.start()
	comer.forget()
	c.complete()
	var plan struct {
		Layout int `json:"layout"`
		Moves  int `json:"moves"`
	}
	if err := json.Unmarshal([]byte(comer.admin("layout", "plan", "--json")), &plan); err != nil || plan.Moves == 0 {
		t.Fatalf("a plan for a new node has %d moves: %v", plan.Moves, err)
	}
	comer.admin("layout", "apply", fmt.Sprint(plan.Layout), "--json")
	c.suffer(l, fmt.Sprintf("%s is added, %d moves", comer.name, plan.Moves), 5, c.planned)
	c.complete()

	olds := slices.DeleteFunc(c.nodes(), func(m *site) bool { return m == comer })
	goer := olds[c.rng.IntN(len(olds))]
	for _, m := range c.all {
		if m.role == "gateway" { // it joins at each start
			m.args[slices.Index(m.args, "--join")+1] = comer.net.addr.String() + ":7000"
		}
	}
	comer.admin("node", "drain", goer.name, "--yes")
	c.suffer(l, goer.name+" is drained", 5, c.planned)
	c.complete()
	l.pause()
	l.onlyUnavailable("at the end")
	c.verify(l)
	goer.stop(time.Minute)
	c.all = slices.DeleteFunc(c.all, func(m *site) bool { return m == goer })
	for _, w := range l.workers {
		w.client = c.impatient()
	}
	poll(t, joining, 500*time.Millisecond, "the drained node to be forgotten", func() error {
		_, stderr, err := comer.ostraka("admin", "node", "remove", goer.name)
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr)
		}
		return nil
	})
	c.complete()
	l.resume()
	l.acknowledged(10, 2*time.Minute)
	l.pause()
	l.onlyUnavailable("without " + goer.name)
	c.verify(l)
}

// restartOfAll kills every process, and starts all but one; the one comes later. Nobody is told where the others
// are. Someone with another secret is refused.
func restartOfAll(t *testing.T, c *sites) {
	l := c.load(93, func() store { return c.client() })
	l.resume()
	l.acknowledged(30, 2*time.Minute)
	for _, m := range c.all {
		m.kill()
	}
	l.pause()
	missing := c.nodes()[c.rng.IntN(len(c.nodes()))]
	var here []*site
	for _, m := range c.all {
		if m == missing {
			continue
		}
		here = append(here, m)
		if m.role == "gateway" {
			there := slices.DeleteFunc(c.nodes(), func(n *site) bool { return n == missing })
			m.args[slices.Index(m.args, "--join")+1] = there[0].net.addr.String() + ":7000"
		}
		m.launch()
	}
	for _, m := range here {
		m.ready()
	}
	l.takeFailures()
	some := *c
	some.all = here
	some.verify(l)
	for _, w := range l.workers {
		w.client = some.client()
	}
	l.resume()
	l.acknowledged(20, 2*time.Minute)
	l.pause()
	l.noFailures("with " + missing.name + " missing")
	missing.start()
	c.complete()
	c.verify(l)

	stranger := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(stranger, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	out := refused(t, c.first.env, "server", "--address", "198.18.0.254:9000", "--node-address", "198.18.0.254:7000", "--join", missing.net.addr.String()+":7000",
		"--cluster-secret-file", stranger, t.TempDir())
	if !strings.Contains(out, "secret") {
		t.Errorf("who has another secret is told %q", out)
	}
	t.Logf("all were killed and started without %s, which came later; %d keys compared", missing.name, len(slices.Collect(maps.Keys(l.entries()))))
}
