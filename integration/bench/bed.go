package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// startWithin is how long a store may take to be ready.
const startWithin = time.Minute

// bed is where stores are started, and who ends them.
type bed struct {
	binary string
	dir    string
	all    []*exec.Cmd
}

// store is a store that runs: one process, or a gateway and then its nodes.
type store struct {
	endpoint  string
	processes []*exec.Cmd
}

func (b *bed) environ() []string {
	return append(os.Environ(), "OSTRAKA_ROOT_ACCESS_KEY=benchmarkkey", "OSTRAKA_ROOT_SECRET_KEY=benchmark-secret")
}

// start starts a process with drives of its own.
func (b *bed) start(role, name, address string, drives int, args ...string) (*exec.Cmd, error) {
	args = append([]string{role, "--address", address, "--log-level", "error"}, args...)
	for i := range drives {
		d := filepath.Join(b.dir, name, "d"+strconv.Itoa(i+1))
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
		args = append(args, d)
	}
	p := exec.Command(b.binary, args...)
	p.Env, p.Stderr = b.environ(), os.Stderr
	if err := p.Start(); err != nil {
		return nil, err
	}
	b.all = append(b.all, p)
	return p, nil
}

// end ends what runs, and waits for it. That one has ended by itself shows in Wait.
func (b *bed) end() (err error) {
	for _, p := range b.all {
		_ = p.Process.Signal(syscall.SIGTERM)
	}
	for _, p := range b.all {
		err = errors.Join(err, p.Wait())
	}
	return err
}

// alone starts a store of one process.
func (b *bed) alone(ctx context.Context, drives int, args ...string) (*store, error) {
	at, err := free(1)
	if err != nil {
		return nil, err
	}
	p, err := b.start("server", "alone", at[0], drives, args...)
	if err != nil {
		return nil, err
	}
	return &store{"http://" + at[0], []*exec.Cmd{p}}, ready(ctx, at[0])
}

// cluster starts nodes with one drive each, and a gateway.
func (b *bed) cluster(ctx context.Context, nodes int, profile string) (*store, error) {
	at, err := free(3 * (nodes + 1)) // each: S3 or health, other nodes, gossip
	if err != nil {
		return nil, err
	}
	secret := filepath.Join(b.dir, "secret")
	addresses := func(i int) []string {
		return []string{"--node-address", at[3*i+1], "--gossip-address", at[3*i+2], "--cluster-secret-file", secret, "--name", fmt.Sprint("n", i)}
	}
	first, err := b.start("node", "n1", at[3], 1, append(addresses(1), "--expect", strconv.Itoa(nodes), "--profile", profile)...)
	if err != nil {
		return nil, err
	}
	all := []*exec.Cmd{nil, first}
	if err := until(ctx, "the secret of the cluster", func(context.Context) bool { _, err := os.Stat(secret); return err == nil }); err != nil {
		return nil, err
	}
	for i := 2; i <= nodes; i++ {
		p, err := b.start("node", fmt.Sprint("n", i), at[3*i], 1, append(addresses(i), "--join", at[4])...)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	if all[0], err = b.start("gateway", "", at[0], 0, append(addresses(0), "--join", at[4])...); err != nil {
		return nil, err
	}
	return &store{"http://" + at[0], all}, ready(ctx, at[0])
}

// free finds loopback ports that nobody listens on now.
func free(n int) (addresses []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all at once, so that none comes twice
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// ready polls until the server can serve.
func ready(ctx context.Context, address string) error {
	return until(ctx, "the server to become ready", func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/-/ready", nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// until polls, with a bound.
func until(ctx context.Context, what string, done func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done(ctx) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s: %w", startWithin, what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}
