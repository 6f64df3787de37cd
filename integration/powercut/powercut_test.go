//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The flags are those of package integration, because one command runs both.
var (
	exe  = flag.String("ostraka", "", "the binary to test; by default it is built")
	long = flag.Bool("long", false, "cut more often")
	_    = flag.Bool("require-aws", false, "not used here")
	must = flag.Bool("require-faults", false, "fail where no power can be cut, instead of skipping")
	seed = flag.Uint64("seed", 0, "seed; 0 takes one from the time")
)

// built is a binary of this command and one of the server.
type built struct{ powercut, ostraka string }

func build(t *testing.T) built {
	t.Helper()
	dir := t.TempDir()
	b := built{filepath.Join(dir, "powercut"), *exe}
	compile := func(out, pkg string) {
		if out, err := exec.Command("go", "build", "-o", out, pkg).CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", pkg, err, out)
		}
	}
	compile(b.powercut, "github.com/ostraka/ostraka/integration/powercut")
	if b.ostraka == "" {
		b.ostraka = filepath.Join(dir, "ostraka")
		compile(b.ostraka, "github.com/ostraka/ostraka/cmd/ostraka")
	}
	return b
}

// cut runs the command and returns what it printed and its exit code; it skips the test where no
// power can be cut.
func (b built) cut(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.powercut, append([]string{"-ostraka", b.ostraka, "-seed", strconv.FormatUint(*seed, 10)}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, out)
	}
	code := cmd.ProcessState.ExitCode()
	if code == exitImpossible {
		lacking(t, "no power was cut: "+string(lastLine(out)))
	}
	return string(out), code
}

// lacking skips what this machine cannot do, or fails where it is required.
func lacking(t *testing.T, why string) {
	t.Helper()
	if *must {
		t.Fatalf("NOT RUN: %s", why)
	}
	t.Skipf("NOT RUN: %s", why)
}

func lastLine(out []byte) []byte {
	out = bytes.TrimSpace(out)
	return out[bytes.LastIndexByte(out, '\n')+1:]
}

// TestPowerCut is the slice of `make powercut` that runs every time.
func TestPowerCut(t *testing.T) {
	cuts, limit := 12, 45*time.Second
	if *long && !testing.Short() {
		cuts, limit = 100, 10*time.Minute
	}
	out, code := build(t).cut(t, "-cuts", strconv.Itoa(cuts), "-singles", "0", "-limit", limit.String())
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, out)
	}
	t.Log(out)
}

// TestOneDriveFails takes one drive from a living server, by a shutdown of its file system or by an error
// after which the kernel remounts it read-only: the drive is quarantined, nothing hangs, the load goes on.
func TestOneDriveFails(t *testing.T) {
	singles := 3
	if *long && !testing.Short() {
		singles = 30
	}
	out, code := build(t).cut(t, "-cuts", "0", "-singles", strconv.Itoa(singles), "-drained=false")
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, out)
	}
	t.Log(out)
}

// TestPowerCutOfUnsynced runs the server with syncs that do nothing: the harness has to see losses.
func TestPowerCutOfUnsynced(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		lacking(t, "no syncs were suppressed: it needs strace")
	}
	b := build(t)
	const syncs = "fsync,fdatasync,sync_file_range,msync"
	server := fmt.Sprintf("%s -f -qq -o /dev/null -e trace=%s -e inject=%s:retval=0 %s server --address {address} {drives}", strace, syncs, syncs, b.ostraka)
	out, code := b.cut(t, "-cuts", "3", "-singles", "0", "-load", "2s", "-server", server)
	if code != exitLoss || strings.Contains(out, "acknowledged  0,") || strings.Contains(out, "power cuts    0:") {
		t.Fatalf("a server that syncs nothing: exit %d, want %d\n%s", code, exitLoss, out)
	}
	t.Log(out)
}

// TestPowerCutLeavesNothing ends runs in their middle.
func TestPowerCutLeavesNothing(t *testing.T) {
	b := build(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(b.powercut, "-ostraka", b.ostraka, "-cuts", "1000", "-dir", dir, "-size", "256", "-v")
			var out tail
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.WaitDelay = time.Minute
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = cmd.Wait() // its code is looked at below
			}()
			await(t, "the first round", func() bool {
				select {
				case <-ended:
					return true
				default:
					return strings.Contains(out.String(), "round 1:")
				}
			})
			if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			<-ended
			if cmd.ProcessState.ExitCode() == exitImpossible {
				lacking(t, "no power was cut: "+string(lastLine([]byte(out.String()))))
			}
			if cmd.ProcessState.Success() {
				t.Errorf("a run that was cut short ended well\n%s", out.String())
			}
			await(t, "the loop devices to go", func() bool { return len(loops(t, dir)) == 0 })
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(mounts, []byte(dir)) {
				t.Errorf("a mount is left under %s", dir)
			}
			if left, err := os.ReadDir(dir); sig != syscall.SIGKILL && (err != nil || len(left) > 0) {
				t.Errorf("%d directories are left, %v", len(left), err)
			}
		})
	}
}

// loops are the loop devices with a file under dir.
func loops(t *testing.T, dir string) (out []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		// One that detaches between the two looks is none.
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			out = append(out, f)
		}
	}
	return out
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !done() {
		select {
		case <-limit:
			t.Fatalf("waited a minute for %s", what)
		case <-tick.C:
		}
	}
}

func TestLedger(t *testing.T) {
	a, b, c, d := content{1, small}, content{2, small}, content{3, small}, content{4, small}
	e := new(entry)
	check := func(step string, want ...content) {
		t.Helper()
		for _, x := range []content{nothing, a, b, c, d} {
			allowed := false
			for _, w := range want {
				allowed = allowed || w == x
			}
			if e.allows(x) != allowed {
				t.Errorf("%s: %v is allowed: %v, want %v", step, x, e.allows(x), allowed)
			}
		}
	}
	check("a key that nobody wrote", nothing)
	e.tried(a, acknowledged, nil)
	check("an acknowledged body", a)
	e.tried(b, refused, errGoneWrong)
	check("a refused one after it", a)
	e.tried(b, unknown, errGoneWrong)
	e.tried(nothing, unknown, errGoneWrong)
	e.tried(c, unknown, errGoneWrong)
	check("three without an answer", a, b, nothing, c)
	e.seen(a)
	check("the old one was read, and they may still take effect", a, b, nothing, c)
	e.seen(nothing)
	check("the second was read: no way back", nothing, c)
	e.tried(d, acknowledged, nil)
	check("a later one was acknowledged", d)
	e.tried(nothing, acknowledged, nil)
	check("an acknowledged delete", nothing)
}

var errGoneWrong = errors.New("gone wrong")

func TestBodies(t *testing.T) {
	p := newPool(7)
	for _, size := range []int64{small, middle, part + lastPart, large} {
		c := content{uint64(size) * 3, size}
		body := p.body(c)
		got, err := p.read(bytes.NewReader(body), size)
		if got != c || err != nil {
			t.Fatalf("read %v, %v, want %v", got, err, c)
		}
		other := p.body(content{c.id + 1, size})
		copy(other, body[:8])
		var d damage
		if _, err := p.read(bytes.NewReader(other), size); !errors.As(err, &d) {
			t.Errorf("another body under this id: %v, want damage", err)
		}
		for _, at := range []int64{8, size / 2, size - 1} {
			body[at] ^= 1
			if _, err := p.read(bytes.NewReader(body), size); !errors.As(err, &d) {
				t.Errorf("a flipped bit at %d of %d: %v, want damage", at, size, err)
			}
			body[at] ^= 1
		}
		if _, err := p.read(bytes.NewReader(body[:size-1]), size); err == nil {
			t.Error("a body that ends early was taken as whole")
		}
		if _, err := p.read(bytes.NewReader(append(body, 0)), size); !errors.As(err, &d) {
			t.Errorf("a body that goes on: %v, want damage", err)
		}
	}
}
