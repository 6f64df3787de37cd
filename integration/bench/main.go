// Command bench starts the real binary over fresh drives, loads it with `ostraka bench`, and ends
// it: what `make bench` runs. It prints the server's CPU per operation beside the floor that the
// same machine sets, measured in the same run. With -cluster it prints it beside that of a gateway and
// four nodes on the loopback interface, with as many drives in all and the same profile.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	binary := flag.String("ostraka", "bin/ostraka", "the binary to measure")
	dir := flag.String("dir", "", "directory for the drives; empty: a temporary one")
	drives := flag.Int("drives", 4, "number of drives")
	cluster := flag.Bool("cluster", false, "compare one process with a gateway and four nodes")
	sizes := flag.String("sizes", "4KiB,1MiB,64MiB", "with -cluster: sizes of the objects")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	measure := func(dir string) error { return floor(ctx, *binary, dir, *drives, flag.Args()) }
	if *cluster {
		measure = func(dir string) error {
			return compare(ctx, *binary, dir, strings.Split(*sizes, ","), flag.Args())
		}
	}
	err := within(*dir, measure)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// within calls f with a directory of its own below dir, which is removed again.
func within(dir string, f func(string) error) error {
	dir, err := os.MkdirTemp(dir, "ostraka-bench-")
	if err != nil {
		return err
	}
	return errors.Join(f(dir), os.RemoveAll(dir))
}

// floor measures one process; args go to `ostraka bench`.
func floor(ctx context.Context, binary, dir string, drives int, args []string) (err error) {
	b := &bed{binary: binary, dir: dir}
	defer func() { err = errors.Join(err, b.end()) }()
	s, err := b.alone(ctx, drives)
	if err != nil {
		return err
	}
	on := filepath.Join(dir, "floor")
	if err := os.Mkdir(on, 0o755); err != nil {
		return err
	}
	load := b.load(ctx, s, append([]string{"--floor-dir", on}, args...))
	load.Stdout = os.Stdout
	return load.Run()
}

// load is `ostraka bench` against a store.
func (b *bed) load(ctx context.Context, s *store, args []string) *exec.Cmd {
	all := []string{"bench", "--endpoint", s.endpoint}
	for _, p := range s.processes {
		all = append(all, "--server-pid", fmt.Sprint(p.Process.Pid))
	}
	load := exec.CommandContext(ctx, b.binary, append(all, args...)...)
	load.Env, load.Stderr = b.environ(), os.Stderr
	return load
}
