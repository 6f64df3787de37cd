package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// member is a process of a cluster, with its own addresses on the loopback interface.
type member struct {
	*server
	node, gossip string
	secret       string
}

// newMember makes a member and starts nothing. first is who made the cluster; nil makes this one the first.
func newMember(t *testing.T, role string, drives int, first *member, zone string, args ...string) *member {
	t.Helper()
	m := &member{server: newServer(t, drives), node: freeAddress(t), gossip: freeAddress(t)}
	m.role = role
	m.args = append([]string{"--node-address", m.node, "--gossip-address", m.gossip, "--zone", zone, "--name", zone}, args...)
	if first != nil {
		m.secret = first.secret
		m.args = append(m.args, "--join", first.node)
	} else {
		m.secret = filepath.Join(t.TempDir(), "secret")
	}
	m.args = append(m.args, "--cluster-secret-file", m.secret)
	return m
}

// onlyDrives takes from the command line what a node needs to join, and not to start again.
func (m *member) onlyDrives() {
	for _, flag := range []string{"--join", "--cluster-secret-file", "--expect", "--zone"} {
		if i := slices.Index(m.args, flag); i >= 0 {
			m.args = slices.Delete(m.args, i, i+2)
		}
	}
}

func (m *member) minio() *minio.Client {
	m.t.Helper()
	c, err := minio.New(m.addr, &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: region})
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// put stores an object; get compares it.
func (m *member) put(bucket, key string, body []byte) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := m.minio().PutObject(ctx, bucket, key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{}); err != nil {
		m.t.Fatalf("PUT %s by %s: %v", key, m.addr, err)
	}
}

func (m *member) get(bucket, key string, want []byte) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o, err := m.minio().GetObject(ctx, bucket, key, minio.GetObjectOptions{})
	if err != nil {
		m.t.Fatalf("GET %s by %s: %v", key, m.addr, err)
	}
	defer o.Close()
	got, err := io.ReadAll(o)
	if err != nil || !bytes.Equal(got, want) {
		m.t.Fatalf("GET %s by %s: %d bytes, %v; want %d", key, m.addr, len(got), err, len(want))
	}
}

func (m *member) makeBucket(name string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := m.minio().MakeBucket(ctx, name, minio.MakeBucketOptions{}); err != nil {
		m.t.Fatalf("bucket %s by %s: %v", name, m.addr, err)
	}
}

// complete waits until a member knows of nodes, so many, and misses nothing.
func (m *member) complete(nodes int) {
	m.t.Helper()
	poll(m.t, time.Minute, 200*time.Millisecond, "the cluster to be complete", func() error {
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
		if info.Nodes != nodes || len(info.Missing) > 0 {
			return fmt.Errorf("%d nodes, missing %q", info.Nodes, info.Missing)
		}
		return nil
	})
}

// zones returns the zones of all nodes, in order.
func (m *member) zones() (zones []string) {
	m.t.Helper()
	out, stderr, err := m.ostraka("admin", "node", "list", "--json")
	var list struct {
		Nodes []struct {
			Zone string `json:"zone"`
		} `json:"nodes"`
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil {
		m.t.Fatalf("the nodes: %v\n%s", err, stderr)
	}
	for _, n := range list.Nodes {
		zones = append(zones, n.Zone)
	}
	slices.Sort(zones)
	return zones
}

// formCluster starts three servers that wait for each other, and returns them ready.
func formCluster(t *testing.T) []*member {
	t.Helper()
	first := newMember(t, "server", 2, nil, "z1", "--expect", "3")
	first.launch()
	poll(t, 30*time.Second, 10*time.Millisecond, "the secret of the cluster", func() error {
		_, err := os.Stat(first.secret)
		return err
	})
	all := []*member{first, newMember(t, "server", 2, first, "z2"), newMember(t, "server", 2, first, "z3")}
	for _, m := range all[1:] {
		m.launch()
	}
	for _, m := range all {
		poll(t, time.Minute, 50*time.Millisecond, "the cluster to be laid out", func() error { return m.probe("/-/ready") })
	}
	return all
}

func TestThreeServersAreOneStore(t *testing.T) {
	t.Parallel()
	all := formCluster(t)
	small, large := randomBody(1, 20_000), randomBody(2, 3_000_000)

	all[0].makeBucket("shared")
	for i, m := range all { // usable at once, by everyone
		m.put("shared", fmt.Sprintf("small-%d", i), small)
		m.put("shared", fmt.Sprintf("large-%d", i), large)
	}
	for _, m := range all {
		for i := range all {
			m.get("shared", fmt.Sprintf("small-%d", i), small)
			m.get("shared", fmt.Sprintf("large-%d", i), large)
		}
	}

	gateway := newMember(t, "gateway", 0, all[1], "z9")
	gateway.start()
	gateway.get("shared", "large-2", large)
	gateway.makeBucket("by-gateway")
	all[2].put("by-gateway", "k", small)
	gateway.get("by-gateway", "k", small)

	// Nobody overwrites what a version is to be kept of, once somebody was told that versions are kept.
	ctx := t.Context()
	for i := range 12 {
		bucket := fmt.Sprintf("versions-%d", i)
		all[0].makeBucket(bucket)
		if err := all[i%3].minio().EnableVersioning(ctx, bucket); err != nil {
			t.Fatal(err)
		}
		for _, m := range append([]*member{gateway}, all...) {
			info, err := m.minio().PutObject(ctx, bucket, "k", strings.NewReader("x"), 1, minio.PutObjectOptions{})
			if err != nil || info.VersionID == "" {
				t.Fatalf("%s put version %q: %v", m.addr, info.VersionID, err)
			}
		}
	}

	stranger := newMember(t, "server", 1, all[0], "z4")
	stranger.secret = filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(stranger.secret, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"server", "--address", stranger.addr}, stranger.args...)
	args[slices.Index(args, "--cluster-secret-file")+1] = stranger.secret
	if out := refused(t, stranger.env, append(args, stranger.dirs...)...); !strings.Contains(out, "secret") {
		t.Errorf("who has another secret is told %q", out)
	}

	all[1].kill()
	for i, m := range []*member{all[0], all[2], gateway} {
		key := fmt.Sprintf("without-%d", i)
		m.put("shared", key, large)
		m.get("shared", key, large)
		m.get("shared", "small-1", small)
	}
	all[0].makeBucket("while-one-is-away")
	all[1].onlyDrives()
	all[1].start()
	all[1].complete(4)
	if zones := all[0].zones(); !slices.Equal(zones, []string{"z1", "z2", "z3", "z9"}) {
		t.Errorf("the zones are %q after a start that named none", zones)
	}
	all[1].get("shared", "without-2", large)
	all[1].put("while-one-is-away", "k", small)
	gateway.get("while-one-is-away", "k", small)
	gateway.stop(time.Minute)

	// Without its disks the first node makes no other cluster, however it is started.
	bare := newMember(t, "server", 1, all[0], "z5")
	bare.onlyDrives()
	for i, args := range [][]string{{"--cluster-secret-file", all[0].secret}, nil} {
		empty := t.TempDir()
		if out := refused(t, bare.env, slices.Concat([]string{"server", "--address", bare.addr}, bare.args, args, []string{empty})...); !strings.Contains(out, "mounted") {
			t.Errorf("start %d over an empty directory is told %q", i, out)
		}
		if list, err := os.ReadDir(empty); err != nil || len(list) > 0 {
			t.Errorf("it wrote %v, %v", list, err)
		}
	}

	// The power fails everywhere. Nobody is told where the others are.
	for _, m := range all {
		m.kill()
		m.onlyDrives()
	}
	for _, m := range all {
		m.launch()
	}
	for _, m := range all {
		m.waitReady()
	}
	for _, m := range all {
		for i := range all {
			m.get("shared", fmt.Sprintf("small-%d", i), small)
			m.get("shared", fmt.Sprintf("without-%d", i), large)
		}
	}
	all[2].put("shared", "after", small)
	all[0].get("shared", "after", small)
	for _, m := range all {
		m.stop(time.Minute)
	}
}

// grows adds a drive to a node, which then is in the layout, without places. via is where the layout is looked at.
func (m *member) grows(via *member) {
	m.t.Helper()
	m.stop(time.Minute)
	path := m.dirs[0] + "-new"
	if err := os.Mkdir(path, 0o755); err != nil {
		m.t.Fatal(err)
	}
	m.onlyDrives()
	m.dirs = append(m.dirs, path)
	m.start()
	via.complete(3)
	if out, stderr, err := m.ostraka("admin", "drive", "add", path); err != nil || !strings.Contains(out, "is drive 5") {
		m.t.Fatalf("drive add: %v: %s%s", err, out, stderr)
	}
	var exit *exec.ExitError
	if _, stderr, err := via.ostraka("admin", "layout", "apply", "1"); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		m.t.Errorf("a plan for a layout that is past: %v: %s", err, stderr)
	}
	out, stderr, err := via.ostraka("admin", "layout", "plan", "--json")
	var plan struct {
		Moves  int `json:"moves"`
		Drives []struct {
			Drive  int `json:"drive"`
			Before int `json:"places_before"`
			After  int `json:"places_after"`
		} `json:"drives"`
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &plan)
	}
	if err != nil || plan.Moves == 0 || len(plan.Drives) != 5 || plan.Drives[4].Before != 0 || plan.Drives[4].After == 0 {
		m.t.Errorf("a plan for five drives: %v: %s%s", err, out, stderr)
	}

	// Its disks are not mounted at the next start.
	m.stop(time.Minute)
	empty := m.t.TempDir()
	args := []string{"node", "--address", m.addr, "--join", via.node, "--cluster-secret-file", m.secret}
	if out := refused(m.t.(*testing.T), m.env, append(append(args, m.args...), empty)...); !strings.Contains(out, "mounted") {
		m.t.Errorf("a node that had drives starts with an empty directory: %q", out)
	}
	m.start()
	via.complete(3)
}

func TestAStoreThatWasAloneBecomesACluster(t *testing.T) {
	t.Parallel()
	body := randomBody(3, 200_000)
	first := newMember(t, "server", 2, nil, "z1")
	inCluster := first.args
	first.args = nil
	first.start()
	first.makeBucket("old")
	first.put("old", "k", body)
	first.stop(time.Minute)
	first.args = inCluster
	first.start()
	drives := newMember(t, "node", 2, first, "z2")
	drives.start()
	drives.complete(2)
	first.get("old", "k", body)
	gateway := newMember(t, "gateway", 0, drives, "z3")
	gateway.start()
	gateway.get("old", "k", body)
	gateway.put("old", "new", body)
	first.get("old", "new", body)

	drives.grows(first)

	// The drives are a node's now: alone they would not see what others write.
	first.stop(time.Minute)
	if out := refused(t, first.env, append([]string{"server", "--address", first.addr}, first.dirs...)...); !strings.Contains(out, "--node-address") {
		t.Errorf("drives of a node, started alone: %q", out)
	}
}
