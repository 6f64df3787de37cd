package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// A build speaks the newest protocol between nodes and the one before it. A process of a test is told to speak others, so
// that one binary stands for the build of then, of now, and of the time to come.

const (
	oldBuild  = "1-1"
	thisBuild = "1-2"
	newBuild  = "2-3"
)

// speaks has the process speak these versions from its next start on.
func (m *member) speaks(versions string) {
	m.args = slices.DeleteFunc(m.args, func(a string) bool { return strings.HasPrefix(a, "--unsafe-test-protocol=") })
	if m.exe = ""; versions == oldBuild && *oldExe != "" {
		m.exe = *oldExe
		return
	}
	m.args = append(m.args, "--unsafe-test-protocol="+versions)
}

// missesNobody waits until a member sees all that belong to the cluster.
func (m *member) missesNobody() {
	m.t.Helper()
	poll(m.t, time.Minute, 200*time.Millisecond, "the cluster to be complete", func() error {
		out, stderr, err := m.ostraka("admin", "info", "--json")
		if err != nil {
			return fmt.Errorf("%w: %s", err, stderr)
		}
		var info struct {
			Missing []string `json:"missing"`
		}
		if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Missing) > 0 {
			return fmt.Errorf("missing %q, %v", info.Missing, err)
		}
		return nil
	})
}

// patient is a store whose client tries again when it is told to slow down, as clients do, and only then.
type patient struct {
	store
	slowed *atomic.Int64
}

const patience = 100 // tries

func (p patient) insist(ctx context.Context, f func() error) (err error) {
	for range patience {
		err = f()
		if status, _ := answered(err); status != http.StatusServiceUnavailable {
			return err
		}
		p.slowed.Add(1)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
	return err
}

func (p patient) put(ctx context.Context, key string, body []byte) error {
	return p.insist(ctx, func() error { return p.store.put(ctx, key, body) })
}

func (p patient) get(ctx context.Context, key string) (body []byte, err error) {
	err = p.insist(ctx, func() error {
		body, err = p.store.get(ctx, key)
		return err
	})
	return body, err
}

func (p patient) del(ctx context.Context, key string) error {
	return p.insist(ctx, func() error { return p.store.del(ctx, key) })
}

func (p patient) multipart(ctx context.Context, key string, parts [][]byte) (completing bool, err error) {
	err = p.insist(ctx, func() error {
		sent, err := p.store.multipart(ctx, key, parts)
		completing = completing || sent
		return err
	})
	return completing, err
}

func (p patient) list(ctx context.Context, prefix string, page int) (names []listed, err error) {
	err = p.insist(ctx, func() error {
		names, err = p.store.list(ctx, prefix, page)
		return err
	})
	return names, err
}

// A cluster is brought from one build to the next, node by node, under load, and from that one to the one after. Clients
// are at two gateways, of two builds, and see no error but 503, after which they try again.
func TestAClusterIsUpgradedNodeByNodeUnderLoad(t *testing.T) {
	t.Parallel()
	const drives = 4
	build := func(role string, n int, first *member, name, versions string, args ...string) *member {
		m := newMember(t, role, n, first, name, args...)
		m.withTestLimits()
		m.speaks(versions)
		return m
	}
	first := build("node", 1, nil, "n1", oldBuild, "--expect", fmt.Sprint(drives), "--profile", "2+2")
	first.launch()
	poll(t, 30*time.Second, 10*time.Millisecond, "the secret of the cluster", func() error {
		_, err := os.Stat(first.secret)
		return err
	})
	nodes := []*member{first}
	for i, versions := range []string{oldBuild, thisBuild, thisBuild} {
		m := build("node", 1, first, fmt.Sprintf("n%d", i+2), versions)
		m.launch()
		nodes = append(nodes, m)
	}
	old := build("gateway", 0, first, "old", oldBuild, loadArgs...)
	current := build("gateway", 0, first, "current", thisBuild, loadArgs...)
	for _, m := range []*member{old, current} {
		m.launch()
	}
	for _, m := range append(slices.Clone(nodes), old, current) {
		poll(t, time.Minute, 50*time.Millisecond, "the cluster to be laid out", func() error { return m.probe("/-/ready") })
	}
	if err := newMinioStore(t, old.server, loadBucket).core.MakeBucket(t.Context(), loadBucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}

	var slowed atomic.Int64
	l := newLoadOf(t, current.server, 77, func(i int) store {
		at := []*member{old, current}[i/2%2]
		if i%2 == 1 {
			return patient{newAWSStore(t, at.server, loadBucket), &slowed}
		}
		return patient{newMinioStore(t, at.server, loadBucket), &slowed}
	})
	l.resume()
	l.advance(100, 2*time.Minute)
	upgrade := func(m *member, versions string) {
		t.Helper()
		m.stop(time.Minute)
		l.advance(20, 2*time.Minute)
		m.onlyDrives()
		m.speaks(versions)
		m.start()
		m.missesNobody()
		l.advance(50, 2*time.Minute)
	}
	for _, m := range []*member{nodes[0], nodes[1]} {
		upgrade(m, thisBuild)
	}
	fine := func(what string) {
		t.Helper()
		for _, f := range l.takeFailures() {
			t.Errorf("%s: %v", what, f)
		}
	}
	fine("from version 1 to 2")

	// Who speaks nothing that the others do stays outside, and is told why.
	l.pause()
	old.stop(time.Minute)
	old.speaks(newBuild)
	old.start()
	l.resume()
	l.advance(50, 2*time.Minute)
	upgrade(nodes[0], newBuild)
	upgrade(nodes[1], newBuild)
	fine("from version 2 to 3")
	relic := build("gateway", 0, nodes[0], "relic", oldBuild)
	relic.launch()
	poll(t, time.Minute, 100*time.Millisecond, "a node of another time to be refused", func() error {
		if strings.Contains(nodes[0].log.String(), "no common protocol version: here 2 to 3, there 1 to 1") {
			return nil
		}
		return errors.New("nothing is said of it")
	})
	relic.kill()
	l.advance(50, 2*time.Minute)
	fine("beside a node of another time")
	l.pause()
	l.verifyAll()
	t.Logf("%d operations, %d writes acknowledged; %d times a client was told to slow down", l.ops.Load(), l.puts.Load(), slowed.Load())
	for _, m := range nodes {
		if strings.Contains(m.log.String(), "panic") {
			t.Errorf("a node panicked:\n%s", m.log.tail())
		}
	}
}
