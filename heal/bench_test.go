package heal

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/ostraka/ostraka/object"
)

// cpu returns the processor time of the process.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchmarkRebuild replaces one of four drives (2+2, in memory) that hold n objects, and reports what the
// rebuild costs for each object, without the check after it.
func benchmarkRebuild(b *testing.B, n, size int) {
	w := newWorldOf(b, object.Unversioned, 4)
	for i := range n {
		w.put(fmt.Sprintf("k%07d", i), size)
	}
	w.heal()
	w.replace(1, 5)
	b.SetBytes(int64(n) * int64(size))
	b.ResetTimer()
	begin, used := time.Now(), cpu()
	num := uint16(5)
	for i := range b.N {
		if i > 0 {
			b.StopTimer()
			w.replace(num, num+1)
			num++
			b.StartTimer()
		}
		if err := w.healer.rebuildAll(context.Background()); err != nil {
			b.Fatal(err)
		}
		if len(w.replaces.list()) > 0 {
			b.Fatalf("%+v", w.healer.Status())
		}
	}
	b.StopTimer()
	objects := float64(n) * float64(b.N)
	b.ReportMetric(float64((cpu()-used).Microseconds())/objects, "cpu-µs/object")
	b.ReportMetric(float64(time.Since(begin).Microseconds())/objects, "µs/object")
}

func BenchmarkRebuildSmall(b *testing.B) {
	for _, size := range []int{100, 4 << 10} {
		b.Run(fmt.Sprint(size, " bytes"), func(b *testing.B) { benchmarkRebuild(b, 10_000, size) })
	}
}

func BenchmarkRebuildLarge(b *testing.B) {
	b.Run("8 MiB", func(b *testing.B) { benchmarkRebuild(b, 8, 8<<20) })
}
