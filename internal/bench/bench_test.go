package bench

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

func TestFloorMeasuresEveryStage(t *testing.T) {
	f, err := measureFloor(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range f.stages {
		// A stage of a microsecond may round to nothing where the clock is coarse; less is a bug.
		if s.Micros < 0 {
			t.Errorf("%s: %v µs", s.Name, s.Micros)
		}
	}
	for _, op := range []string{"PUT", "GET", "HEAD"} {
		small, large := f.of(op, 4<<10), f.of(op, 64<<20)
		if small <= 0 || op != "HEAD" && large <= small {
			t.Errorf("%s: floor of 4 KiB is %v, of 64 MiB %v; want rising and above zero", op, small, large)
		}
	}
	if got := f.of("LIST", 1); got != 0 {
		t.Errorf("LIST has no floor, got %v", got)
	}
}

func TestCPUTimeOfThisProcessRises(t *testing.T) {
	before, err := cpuTime([]int{os.Getpid()})
	if err != nil {
		t.Skipf("no /proc here: %v", err)
	}
	for x, end := 0, ownCPU()+50*time.Millisecond; ownCPU() < end; x++ {
	}
	after, err := cpuTime([]int{os.Getpid()})
	if err != nil || after[0] <= before[0] {
		t.Fatalf("CPU time %v then %v, error %v; want it to rise", before, after, err)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"endpoint without scheme": {Endpoint: "127.0.0.1:9000", MaxOps: 1, Duration: 1, Sizes: []int64{1}},
		"no bound":                {Endpoint: "http://127.0.0.1:1", Duration: 1, Sizes: []int64{1}},
		"no size":                 {Endpoint: "http://127.0.0.1:1", Duration: 1, MaxOps: 1},
	} {
		if _, err := Run(context.Background(), o); err == nil || !strings.HasPrefix(err.Error(), "bench: ") {
			t.Errorf("%s: got %v, want a clear refusal", name, err)
		}
	}
}

func TestReportPrintsTheRatioToTheFloor(t *testing.T) {
	r := Report{Results: []Result{{Op: "PUT", Size: 4096, Ops: 10, CPUMicros: 300, FloorMicro: 100}}}
	var b bytes.Buffer
	if err := r.Print(&b); err != nil || !strings.Contains(b.String(), "3.00") {
		t.Fatalf("got %q, %v; want the ratio 3.00 in it", b.String(), err)
	}
}
