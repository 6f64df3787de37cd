package integration

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

var (
	exe           = flag.String("ostraka", "", "the binary to test; by default it is built")
	long          = flag.Bool("long", false, "run the cases that take minutes or gigabytes")
	oldExe        = flag.String("old-ostraka", "", "an `executable` that speaks version 1 between nodes only, for the old nodes of a cluster that is upgraded; without it the new one stands for it")
	requireAWS    = flag.Bool("require-aws", false, "fail where the aws CLI is missing, instead of skipping its cases")
	requireFaults = flag.Bool("require-faults", false, "fail where root or strace is missing, instead of skipping the faults that need them")
	stockFlag     = flag.Int("stock", 0, "small objects that the store holds when a drive is replaced; 0: 3000, or 200000 with -long")
	seedFlag      = flag.Uint64("seed", 0, "seed of the random loads; 0 takes one from the time")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if code, ended := inPrivate(); ended {
		os.Exit(code)
	}
	os.Exit(run(m))
}

// privateMounts in the environment says that the mounts of this process are its own.
const privateMounts = "PRIVATE_MOUNTS_OF_TESTS"

// inPrivate runs this command again in a mount namespace of its own, where root may make one: what is
// mounted there goes with the last process, however it ends. false: it has to be run here.
func inPrivate() (code int, ended bool) {
	if os.Geteuid() != 0 || os.Getenv(privateMounts) != "" {
		return 0, false
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), privateMounts+"=yes")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	// The death signal is tied to the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, false
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// It may have ended in this instant.
			_ = cmd.Process.Signal(s)
		case err := <-done:
			var exit *exec.ExitError
			switch {
			case err == nil:
				return 0, true
			case errors.As(err, &exit) && exit.ExitCode() > 0:
				return exit.ExitCode(), true
			}
			fmt.Fprintln(os.Stderr, err)
			return 2, true
		}
	}
}

// run builds the binary where none was given, and removes it again.
func run(m *testing.M) int {
	if *seedFlag == 0 {
		*seedFlag = uint64(time.Now().UnixNano())
	}
	fmt.Printf("seed %d (repeat with -args -seed %d)\n", *seedFlag, *seedFlag)
	if *exe != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "ostraka-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	*exe = filepath.Join(dir, "ostraka")
	build := exec.Command("go", "build", "-o", *exe, "github.com/ostraka/ostraka/cmd/ostraka")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the binary: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// random returns the generator of one test; streams of one run differ and repeat with -seed.
func random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(*seedFlag, stream)) }

// needLong skips a case that takes too long for every run.
func needLong(t *testing.T, why string) {
	t.Helper()
	if !*long {
		t.Skipf("not run without -long (make integration): %s", why)
	}
}

// lacking skips a fault that this machine cannot have, or fails where it is required.
func lacking(t *testing.T, why string) {
	t.Helper()
	if *requireFaults {
		t.Fatalf("NOT RUN: %s", why)
	}
	t.Skipf("NOT RUN: %s", why)
}
