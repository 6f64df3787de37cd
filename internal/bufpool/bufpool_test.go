package bufpool

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func TestClassSizeWastesAtMostAnEighth(t *testing.T) {
	prev := 0
	for n := 0; n <= 8<<20; n += 1021 {
		c := ClassSize(n)
		if c < n || c < Page || c%Page != 0 {
			t.Fatalf("ClassSize(%d) = %d", n, c)
		}
		if c < prev {
			t.Fatalf("ClassSize(%d) = %d is less than that of a smaller buffer, %d", n, c, prev)
		}
		pages := (n + Page - 1) / Page * Page
		if n > 0 && (c-pages)*8 > c {
			t.Fatalf("ClassSize(%d) = %d wastes more than an eighth", n, c)
		}
		if ClassSize(c) != c {
			t.Fatalf("ClassSize(%d) = %d is not a class itself", c, ClassSize(c))
		}
		prev = c
	}
	for _, n := range []int{1 << 20, 4 << 20, MaxPooled} {
		if ClassSize(n) != n {
			t.Errorf("ClassSize(%d) = %d: powers of two must be classes", n, ClassSize(n))
		}
	}
}

func TestBuffersAreAlignedAndReused(t *testing.T) {
	p := New(Options{})
	defer p.Close()
	for _, n := range []int{0, 1, 4096, 5000, 1 << 20, 1<<20 + 16384} {
		b := p.Get(n)
		if len(b.Bytes()) != n {
			t.Fatalf("Get(%d) has %d bytes", n, len(b.Bytes()))
		}
		full := b.Bytes()[:b.Cap()]
		if uintptr(unsafe.Pointer(unsafe.SliceData(full)))%Page != 0 {
			t.Fatalf("Get(%d) is not aligned", n)
		}
		full[0], full[len(full)-1] = 1, 2
		first := unsafe.SliceData(full)
		b.Retain()
		b.Release()
		if s := p.Stats(); s.Buffers != 1 {
			t.Fatalf("a retained buffer went back: %+v", s)
		}
		b.Release()
		c := p.Get(n)
		if unsafe.SliceData(c.Bytes()[:c.Cap()]) != first {
			t.Fatalf("Get(%d) did not reuse the idle buffer", n)
		}
		c.Release()
	}
	s := p.Stats()
	if s.InUse != 0 || s.Buffers != 0 || s.Hits != 8 || s.Gets != 12 {
		t.Fatalf("stats %+v", s)
	}
}

func TestIdleMemoryIsBoundedAndTheOldestGoesFirst(t *testing.T) {
	clock := time.Unix(0, 0)
	p := New(Options{MaxIdle: 3 << 20, Now: func() time.Time { clock = clock.Add(time.Second); return clock }})
	defer p.Close()
	var bufs []*Buf
	for _, n := range []int{1 << 20, 1 << 20, 2 << 20, 4 << 20} {
		bufs = append(bufs, p.Get(n))
	}
	for _, b := range bufs {
		b.Release()
	}
	// 4 MiB is over the bound alone; 1+1+2 is over it together, so the first went.
	if s := p.Stats(); s.Idle != 3<<20 || s.Unmaps != 2 {
		t.Fatalf("stats %+v", s)
	}
	clock = clock.Add(time.Hour)
	p.Trim(time.Hour + 2*time.Second) // released at 2 s and 3 s; now is 3604 s
	if s := p.Stats(); s.Idle != 2<<20 {
		t.Fatalf("after a trim of the older one: %+v", s)
	}
	p.Trim(0)
	if s := p.Stats(); s.Idle != 0 || s.Unmaps != 4 {
		t.Fatalf("after a full trim: %+v", s)
	}
}

func TestCloseLeavesBuffersInUseValid(t *testing.T) {
	p := New(Options{})
	a, b := p.Get(8192), p.Get(8192)
	a.Release()
	p.Close()
	b.Bytes()[8191] = 7
	b.Release()
	if s := p.Stats(); s.Idle != 0 || s.InUse != 0 || s.Maps != s.Unmaps {
		t.Fatalf("stats %+v", s)
	}
}

func TestMisuseIsNoticed(t *testing.T) {
	panics := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		f()
	}
	p := New(Options{Poison: true})
	defer p.Close()
	b := p.Get(10)
	b.Release()
	panics("second release", b.Release)
	if s := p.Stats(); s.DoubleRelease != 1 {
		t.Errorf("stats %+v", s)
	}
	p2 := New(Options{Poison: true})
	defer p2.Close()
	c := p2.Get(10000)
	mem := c.Bytes()
	c.Release()
	panics("retain after release", c.Retain)
	c.refs.Store(0)
	mem[9999] = 0
	panics("write after release", func() { p2.Get(10000) })
}

func TestConcurrentUsersNeverShareABuffer(t *testing.T) {
	p := New(Options{MaxIdle: 2 << 20, Poison: true})
	defer p.Close()
	seed := rand.Uint64()
	var wg sync.WaitGroup
	fail := make(chan string, 16)
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 300 {
				b := p.Get(1 + r.IntN(200<<10))
				mem := b.Bytes()
				mem[0], mem[len(mem)-1] = byte(g), byte(g)
				b.Retain()
				done := make(chan struct{})
				go func() { // a second owner, like a drive that reads the buffer
					defer close(done)
					if mem[0] != byte(g) {
						fail <- fmt.Sprintf("seed %d: buffer of %d was overwritten", seed, g)
					}
					b.Release()
				}()
				if mem[len(mem)-1] != byte(g) {
					fail <- fmt.Sprintf("seed %d: buffer of %d was overwritten", seed, g)
				}
				b.Release()
				<-done
			}
		})
	}
	wg.Wait()
	select {
	case msg := <-fail:
		t.Fatal(msg)
	default:
	}
	if s := p.Stats(); s.InUse != 0 || s.Buffers != 0 || s.Idle > 2<<20 {
		t.Fatalf("seed %d: stats %+v", seed, s)
	}
}

func BenchmarkGetRelease(b *testing.B) {
	p := New(Options{})
	defer p.Close()
	for b.Loop() {
		p.Get(1 << 20).Release()
	}
}
