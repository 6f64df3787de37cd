//go:build linux

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
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitLoss       = 1
	exitUsage      = 2
	exitImpossible = 3
)

// impossible is an error that says why no power can be cut on this machine.
type impossible struct{ err error }

func (e impossible) Error() string { return "not possible here: " + e.err.Error() }
func (e impossible) Unwrap() error { return e.err }

// config is what the flags say.
type config struct {
	cuts, singles int
	limit         time.Duration
	seed          uint64
	exe           string
	server        string
	drives        int
	size          int64 // bytes of each file system
	fresh         int   // rounds until the store is formed anew
	load          time.Duration
	clients       int
	access        string
	secret        string
	region        string
	dir           string
	keep          bool
	verbose       bool
	drained       bool
	inside        bool
}

// ostraka says that the default server runs, of which more is known than of others.
func (c *config) ostraka() bool { return c.server == "" }

func main() {
	c := new(config)
	flag.IntVar(&c.cuts, "cuts", 100, "power cuts of all drives and the server")
	flag.IntVar(&c.singles, "singles", -1, "rounds that take one drive of a living server; -1: one for every twelve cuts")
	flag.DurationVar(&c.limit, "limit", 0, "begin no round after this time; 0: no limit")
	flag.Uint64Var(&c.seed, "seed", 0, "seed of loads and moments; 0 takes one from the time")
	flag.StringVar(&c.exe, "ostraka", "bin/ostraka", "the binary of the default server")
	flag.StringVar(&c.server, "server", "", "another server: a shell command with {drives} {address} {access} {secret}")
	flag.IntVar(&c.drives, "drives", 4, "number of drives")
	size := flag.Int64("size", 2048, "MiB of each drive, whose file is sparse")
	flag.IntVar(&c.fresh, "fresh", 12, "rounds after which the store is formed anew on empty drives")
	flag.DurationVar(&c.load, "load", 1200*time.Millisecond, "the longest load before a cut")
	flag.IntVar(&c.clients, "clients", 8, "concurrent clients")
	flag.StringVar(&c.access, "access-key", "powercutkey", "root access key of the server")
	flag.StringVar(&c.secret, "secret-key", "powercut-secret-key", "its secret")
	flag.StringVar(&c.region, "region", "us-east-1", "region of the signatures")
	flag.StringVar(&c.dir, "dir", "", "where to make the directory of the images; empty: the system's temporary one")
	flag.BoolVar(&c.keep, "keep", false, "keep the images when something was lost")
	flag.BoolVar(&c.drained, "drained", true, "wait until no repair is outstanding before shards are looked at, and not only until they are whole")
	flag.BoolVar(&c.verbose, "v", false, "a line for each round")
	flag.BoolVar(&c.inside, "inside", false, "internal: run in this mount namespace")
	flag.Parse()
	c.size = *size << 20
	if c.singles < 0 {
		c.singles = c.cuts / 12
	}
	if c.seed == 0 {
		c.seed = uint64(time.Now().UnixNano())
	}
	if flag.NArg() > 0 || c.drives < 1 || c.drives > 16 || c.size < 64<<20 || c.fresh < 1 || c.clients < 1 || c.clients > 64 ||
		c.load < 0 || c.cuts < 0 {
		fmt.Fprintln(os.Stderr, "powercut: wrong arguments (-h lists them)")
		os.Exit(exitUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var code int
	if c.inside {
		code = inside(ctx, c)
	} else {
		code = outside(ctx, c)
	}
	stop()
	os.Exit(code)
}

// outside makes the directory, runs the same command in a mount namespace of its own, and removes
// the directory when that has ended, however it ended.
func outside(ctx context.Context, c *config) int {
	if err := able(c); err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		return code(err)
	}
	dir, err := os.MkdirTemp(c.dir, "powercut-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		return exitUsage
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.Command(self, append(os.Args[1:len(os.Args):len(os.Args)], "-inside", "-dir", dir, "-seed", strconv.FormatUint(c.seed, 10))...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// The death signal is tied to the thread that starts the child.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", impossible{fmt.Errorf("a mount namespace: %w", err)})
		return errors2code(os.RemoveAll(dir), exitImpossible)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		// It may have ended in this instant; Wait tells.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err = <-ended
	}
	result := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		result = exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "powercut:", err)
		result = exitLoss
	}
	if c.keep && result == exitLoss {
		fmt.Println("powercut: the images are kept in", dir)
		return result
	}
	return errors2code(os.RemoveAll(dir), result)
}

// errors2code prints an error of cleaning up, which fails a run that was good.
func errors2code(err error, result int) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		if result == 0 {
			return exitLoss
		}
	}
	return result
}

// able looks at what can be seen without trying.
func able(c *config) error {
	if os.Geteuid() != 0 {
		return impossible{errors.New("it needs root, for loop devices and mounts")}
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return impossible{errors.New("it needs mkfs.ext4 (e2fsprogs)")}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return impossible{errors.New("it needs loop devices: there is no /dev/loop-control")}
	}
	if c.ostraka() {
		if _, err := os.Stat(c.exe); err != nil {
			return fmt.Errorf("the server: %w (make build)", err)
		}
	}
	return nil
}

func code(err error) int {
	var no impossible
	switch {
	case errors.As(err, &no):
		return exitImpossible
	case err != nil:
		return exitLoss
	}
	return 0
}

// inside does everything else.
func inside(ctx context.Context, c *config) int {
	exe, err := filepath.Abs(c.exe)
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		return exitUsage
	}
	c.exe = exe
	r := newRun(c)
	err = r.all(ctx)
	r.report(os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		return code(err)
	}
	return 0
}
