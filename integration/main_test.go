package integration

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

var (
	exe        = flag.String("ostraka", "", "the binary to test; by default it is built")
	long       = flag.Bool("long", false, "run the cases that take minutes or gigabytes")
	requireAWS = flag.Bool("require-aws", false, "fail where the aws CLI is missing, instead of skipping its cases")
	seedFlag   = flag.Uint64("seed", 0, "seed of the random loads; 0 takes one from the time")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
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
