// Command bench starts the real binary over fresh drives, loads it with `ostraka bench`, and ends
// it: what `make bench` runs. It prints the server's CPU per operation beside the floor that the
// same machine sets, measured in the same run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	binary := flag.String("ostraka", "bin/ostraka", "the binary to measure")
	dir := flag.String("dir", "", "directory for the drives; empty: a temporary one")
	drives := flag.Int("drives", 4, "number of drives")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *binary, *dir, *drives, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures; args go to `ostraka bench`.
func run(ctx context.Context, binary, dir string, drives int, args []string) (err error) {
	dir, err = os.MkdirTemp(dir, "ostraka-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	serve := []string{"server", "--address", addr, "--log-level", "warn"}
	for i := range drives {
		d := filepath.Join(dir, "d"+strconv.Itoa(i+1))
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		serve = append(serve, d)
	}
	keys := append(os.Environ(), "OSTRAKA_ROOT_ACCESS_KEY=benchmarkkey", "OSTRAKA_ROOT_SECRET_KEY=benchmark-secret")
	server := exec.Command(binary, serve...)
	server.Env, server.Stderr = keys, os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	defer func() {
		// It was started here and is waited for here; that it has ended by itself shows in Wait.
		_ = server.Process.Signal(syscall.SIGTERM)
		err = errors.Join(err, server.Wait())
	}()
	if err := ready(ctx, "http://"+addr+"/-/ready"); err != nil {
		return err
	}
	floor := filepath.Join(dir, "floor")
	if err := os.Mkdir(floor, 0o755); err != nil {
		return err
	}
	load := exec.CommandContext(ctx, binary, append([]string{"bench", "--endpoint", "http://" + addr,
		"--server-pid", strconv.Itoa(server.Process.Pid), "--floor-dir", floor}, args...)...)
	load.Env, load.Stdout, load.Stderr = keys, os.Stdout, os.Stderr
	return load.Run()
}

// ready polls until the server can serve.
func ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.New("the server did not become ready within 30 s")
		case <-tick.C:
		}
	}
}
