package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
)

// A byte that changes anywhere in a shard file is either detected or harmless, never served.
func TestACorruptByteAnywhereIsDetectedOrHarmless(t *testing.T) {
	coders := newTestCoders(t)
	p := Profile{2, 1}
	size := 2*BlockSize + 9001
	c, body := testChunk(p, size), testBody(size, 5)
	s := encodeChunk(t, coders, c, body)
	g := geometryOf(p, c.Size)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 2))
	fileSize := int(g.fileSize())
	spots := []int{0, 8, 10, 12, 16, 20, 21, 22, 23, 24, 28, 32, 48, 84, 86, 92, 127, 128, 133, 200, 4079, 4080, 4095, 4096,
		headerSize + BlockSize - 1, headerSize + BlockSize, int(g.footerOff()) - 1, int(g.footerOff()), int(g.footerOff()) + 31, int(g.footerOff()) + 32,
		fileSize - 65, fileSize - 64, fileSize - 17, fileSize - 16, fileSize - 1}
	for range 6 {
		spots = append(spots, rnd.IntN(fileSize))
	}
	for _, at := range spots {
		for j := range p.N() {
			bad := s.clone()
			data := bytes.Clone(s.files[j].data)
			data[at] ^= byte(1 << rnd.IntN(8))
			bad.files[j] = &memFile{data: data}
			told := 0
			got, err := readChunk(coders, c, bad, 0, c.Size, ReadOptions{HedgeAfter: never, OnDamage: func(int, error) { told++ }})
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("seed %d: byte %d of shard %d: read %d bytes, %v", seed, at, j, len(got), err)
			}
			if j < 2 && at >= headerSize && told != 1 {
				t.Fatalf("seed %d: byte %d of shard %d: damage told %d times", seed, at, j, told)
			}
			if err := VerifyShard(context.Background(), &memFile{data: data}, c, j, coders); err == nil {
				t.Fatalf("seed %d: byte %d of shard %d: VerifyShard found nothing", seed, at, j)
			}
			// With another shard gone too there is nothing left to decode from.
			bad.files[(j+1)%3] = nil
			got, err = readChunk(coders, c, bad, 0, c.Size, ReadOptions{HedgeAfter: never})
			if err == nil && (at >= headerSize || !bytes.Equal(got, body)) || err != nil && (at < headerSize || !errs.Is(err, errs.Corrupt)) {
				t.Fatalf("seed %d: byte %d of shard %d, one lost: %d bytes, %v", seed, at, j, len(got), err)
			}
			if !bytes.Equal(got, body[:len(got)]) {
				t.Fatalf("seed %d: byte %d of shard %d: wrong bytes before the error", seed, at, j)
			}
		}
	}
}

// Every shard may have a bad block, as long as no stripe has more than m.
func TestDamageIsCountedByStripe(t *testing.T) {
	coders := newTestCoders(t)
	p := Profile{2, 1}
	size := 3 * 2 * BlockSize
	c, body := testChunk(p, size), testBody(size, 5)
	s := encodeChunk(t, coders, c, body)
	for j, f := range s.files {
		f.data = bytes.Clone(f.data)
		f.data[headerSize+j*BlockSize+17] ^= 1
	}
	got, err := readChunk(coders, c, s, 0, c.Size, ReadOptions{HedgeAfter: never})
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	s.files[2].data[headerSize+1*BlockSize] ^= 1 // stripe 1 has two now
	got, err = readChunk(coders, c, s, 0, c.Size, ReadOptions{HedgeAfter: never})
	var se *ShardsError
	if !errs.Is(err, errs.Corrupt) || !errors.As(err, &se) || len(se.Damaged) != 2 || !bytes.Equal(got, body[:len(got)]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestSwappedShardsAndBlocksAreDetected(t *testing.T) {
	coders := newTestCoders(t)
	p := Profile{2, 2}
	size := 2*2*BlockSize + 100
	c, body := testChunk(p, size), testBody(size, 5)
	s := encodeChunk(t, coders, c, body)
	other := c
	other.Data[0]++
	otherChunk := c
	otherChunk.Index++
	otherSize := c
	otherSize.Size -= 1
	so, sc, ss := encodeChunk(t, coders, other, testBody(size, 6)), encodeChunk(t, coders, otherChunk, body), encodeChunk(t, coders, otherSize, body[:size-1])
	block := func(f *memFile, b int) []byte { return f.data[headerSize+b*BlockSize : headerSize+(b+1)*BlockSize] }
	for name, change := range map[string]func(f []byte) []byte{
		"the shard of another body":         func([]byte) []byte { return so.files[0].data },
		"the shard of another chunk":        func([]byte) []byte { return sc.files[0].data },
		"the shard of another size":         func([]byte) []byte { return ss.files[0].data },
		"another shard of the chunk":        func([]byte) []byte { return s.files[1].data },
		"a block of another body":           func(f []byte) []byte { copy(f[headerSize:], block(so.files[0], 0)); return f },
		"a block of another shard":          func(f []byte) []byte { copy(f[headerSize:], block(s.files[1], 0)); return f },
		"another block of the shard":        func(f []byte) []byte { copy(f[headerSize:], block(s.files[0], 1)); return f },
		"a block and the footer of another": func(f []byte) []byte { return append(f[:headerSize], so.files[0].data[headerSize:]...) },
		"two blocks exchanged with their checksums": func(f []byte) []byte {
			copy(f[headerSize:], block(s.files[0], 1))
			copy(f[headerSize+BlockSize:], block(s.files[0], 0))
			foot := f[geometryOf(p, c.Size).footerOff():]
			first := getSum(foot)
			putSum(foot, getSum(foot[sumSize:]))
			putSum(foot[sumSize:], first)
			putSum(foot[len(foot)-sumSize:], xxh3.Hash128(foot[:len(foot)-sumSize]))
			return f
		},
		"a file that ends early":             func(f []byte) []byte { return f[:len(f)-1] },
		"a file that ends after the header":  func(f []byte) []byte { return f[:headerSize] },
		"an empty file":                      func(f []byte) []byte { return nil },
		"zeros where the file should be":     func(f []byte) []byte { return make([]byte, len(f)) },
		"zeros where a block should be":      func(f []byte) []byte { clear(f[headerSize : headerSize+BlockSize]); return f },
		"zeros from the middle to the end":   func(f []byte) []byte { clear(f[headerSize+BlockSize:]); return f },
		"the first page of zeros in a block": func(f []byte) []byte { clear(f[headerSize : headerSize+4096]); return f },
	} {
		bad := s.clone()
		data := change(bytes.Clone(s.files[0].data))
		bad.files[0] = &memFile{data: data}
		told := 0
		got, err := readChunk(coders, c, bad, 0, c.Size, ReadOptions{HedgeAfter: never, OnDamage: func(j int, _ error) { told += 1 + 10*j }})
		if err != nil || !bytes.Equal(got, body) || told != 1 {
			t.Errorf("%s: %d bytes, told %d, %v", name, len(got), told, err)
		}
		if err := VerifyShard(context.Background(), &memFile{data: data}, c, 0, coders); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: VerifyShard: %v", name, err)
		}
	}
}

func TestNewerFormatsAreRefusedAndNotCalledDamage(t *testing.T) {
	page := make([]byte, headerSize)
	for at, name := range map[int]string{8: "version", 12: "mandatory flag", 10: "coding", 23: "checksum", 26: "block size", 86: "transform"} {
		encodeHeader(page, Header{Chunk: testChunk(Profile{2, 2}, 10), Shard: 1})
		page[at] ^= 0x40
		resealHeader(page)
		if _, err := DecodeHeader(page); !errs.Is(err, errs.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	encodeHeader(page, Header{Chunk: testChunk(Profile{2, 2}, 10), Shard: 1})
	page[16] = 4
	resealHeader(page)
	if h, err := DecodeHeader(page); err != nil || h.Optional != 4 {
		t.Errorf("an optional flag: %+v, %v", h, err)
	}
}

func TestASinkThatFailsAtAnyWriteIsDroppedAlone(t *testing.T) {
	coders := newTestCoders(t)
	p := Profile{2, 2}
	size := 9*2*BlockSize + 77
	c, body := testChunk(p, size), testBody(size, 5)
	whole := encodeChunk(t, coders, c, body)
	for i := 0; ; i++ {
		failed := false
		for _, bad := range [][]int{{1}, {0, 3}} {
			e := NewEncoder(Options{Coders: coders})
			sinks, mem := make([]Sink, 4), make([]*memSink, 4)
			for j := range sinks {
				mem[j] = newSink()
				sinks[j] = mem[j]
			}
			for _, j := range bad {
				mem[j].failAt = i
			}
			res, err := e.Encode(context.Background(), c, bytes.NewReader(body), 3, sinks)
			failed = mem[bad[0]].writes > i
			if failed && len(bad) == 2 {
				if !errs.Is(err, errs.Unavailable) || !errors.Is(err, errInjected) {
					t.Fatalf("write %d of %v fails: %v; want errs.Unavailable", i, bad, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("write %d of %v fails: %v", i, bad, err)
			}
			for j := range sinks {
				if want := failed && j == bad[0]; (res.Failed[j] != nil) != want {
					t.Fatalf("write %d of %v fails: Failed[%d] = %v", i, bad, j, res.Failed[j])
				}
				if res.Failed[j] == nil && !bytes.Equal(mem[j].data, whole.files[j].data) {
					t.Fatalf("write %d of %v fails: shard %d differs", i, bad, j)
				}
			}
		}
		if !failed {
			if i < 2 {
				t.Fatalf("only %d writes: the test covers too little", i)
			}
			return
		}
	}
}

func TestAbsentSinksCountAsFailed(t *testing.T) {
	coders := newTestCoders(t)
	e := NewEncoder(Options{Coders: coders})
	c, body := testChunk(Profile{2, 2}, 5000), testBody(5000, 1)
	sinks := []Sink{nil, newSink(), newSink(), newSink()}
	res, err := e.Encode(context.Background(), c, bytes.NewReader(body), 3, sinks)
	if err != nil || res.Failed[0] == nil || res.Stored() != 3 {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err := e.Encode(context.Background(), c, bytes.NewReader(body), 4, sinks); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("%v; want errs.Unavailable", err)
	}
	if _, err := e.Encode(context.Background(), c, bytes.NewReader(body), 0, make([]Sink, 4)); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("no sink at all: %v; want errs.Unavailable", err)
	}
}

func TestABodyThatFailsKeepsItsError(t *testing.T) {
	coders := newTestCoders(t)
	e := NewEncoder(Options{Coders: coders})
	c := testChunk(Profile{2, 1}, 3*2*BlockSize)
	wrong := errs.E("auth.body", errs.Denied, "signature mismatch")
	for _, n := range []int{0, 1, BlockSize, 2*BlockSize + 1, 6*BlockSize - 1} {
		for _, x := range []struct {
			r    io.Reader
			kind errs.Kind
			is   error
		}{
			{bytes.NewReader(make([]byte, n)), errs.Incomplete, io.EOF},
			{io.MultiReader(bytes.NewReader(make([]byte, n)), iotest.ErrReader(io.ErrUnexpectedEOF)), errs.Incomplete, io.ErrUnexpectedEOF},
			{io.MultiReader(bytes.NewReader(make([]byte, n)), iotest.ErrReader(wrong)), errs.Denied, wrong},
			{io.MultiReader(bytes.NewReader(make([]byte, n)), iotest.ErrReader(errInjected)), errs.Incomplete, errInjected},
			{io.MultiReader(bytes.NewReader(make([]byte, n)), idleReader{}), errs.Incomplete, io.ErrNoProgress},
		} {
			res, err := e.Encode(context.Background(), c, x.r, 2, []Sink{newSink(), newSink(), newSink()})
			if !errs.Is(err, x.kind) || !errors.Is(err, x.is) || res.Stored() != 0 {
				t.Errorf("after %d bytes: %v, %d stored; want kind %v and %v", n, err, res.Stored(), x.kind, x.is)
			}
		}
	}
	// Readers that return little at a time, or data together with EOF, are fine.
	body := testBody(int(c.Size), 1)
	for _, r := range []io.Reader{iotest.HalfReader(bytes.NewReader(body)), iotest.DataErrReader(bytes.NewReader(body))} {
		sinks := []Sink{newSink(), newSink(), newSink()}
		if _, err := e.Encode(context.Background(), c, r, 3, sinks); err != nil {
			t.Error(err)
		}
	}
}

type idleReader struct{}

func (idleReader) Read([]byte) (int, error) { return 0, nil }

// hungSink blocks in Write number at, deaf to its context, until released.
type hungSink struct {
	memSink
	at      int
	release chan struct{}
}

func (s *hungSink) Write(ctx context.Context, p []byte) error {
	if s.writes == s.at {
		before := bytes.Clone(p)
		<-s.release
		if !bytes.Equal(before, p) {
			s.bad = "the buffer of a hanging Write was used again"
		}
	}
	return s.memSink.Write(ctx, p)
}

func TestALaggingSinkIsDroppedAndItsBufferKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		coders := newTestCoders(t)
		e := NewEncoder(Options{Coders: coders, LagTimeout: 10 * time.Second, TailTimeout: 2 * time.Second})
		p := Profile{2, 2}
		size := 20 * 2 * BlockSize
		c, body := testChunk(p, size), testBody(size, 5)
		counter := newSink()
		if _, err := e.Encode(context.Background(), c, bytes.NewReader(body), 1, []Sink{counter, nil, nil, nil}); err != nil {
			t.Fatal(err)
		}
		last := counter.writes - 1
		for _, at := range []int{0, 1, last} {
			hung := &hungSink{memSink: memSink{failAt: -1}, at: at, release: make(chan struct{})}
			mem := []*memSink{newSink(), newSink(), newSink()}
			began := time.Now()
			res, err := e.Encode(context.Background(), c, bytes.NewReader(body), 3, []Sink{mem[0], hung, mem[1], mem[2]})
			if err != nil || !errors.Is(res.Failed[1], ErrLagging) || res.Stored() != 3 {
				t.Fatalf("hangs at %d: %v, %v", at, res, err)
			}
			took, want := time.Since(began), 10*time.Second
			if at == last {
				want = 2 * time.Second
			}
			if took < want || took > want+time.Second {
				t.Fatalf("hangs at %d: Encode took %v, want about %v", at, took, want)
			}
			synctest.Wait() // the other writers are about to return
			if coders.Running() != 1 {
				t.Fatalf("%d goroutines, want the one that hangs", coders.Running())
			}
			// Other streams use the pool meanwhile.
			encodeChunk(t, coders, c, body)
			close(hung.release)
			synctest.Wait()
			if coders.Running() != 0 || hung.bad != "" || e.stuck != 0 || e.reserved != 0 {
				t.Fatalf("hangs at %d: running %d, stuck %d, reserved %d, %s", at, coders.Running(), e.stuck, e.reserved, hung.bad)
			}
			if hung.writes > at+1 {
				t.Fatalf("hangs at %d: %d more Writes after it was dropped", at, hung.writes-at-1)
			}
		}
	})
}

func TestTooManyHangingWritersRefuseNewStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		coders := newTestCoders(t)
		e := NewEncoder(Options{Coders: coders, MaxStuck: 1, LagTimeout: time.Second})
		c, body := testChunk(Profile{1, 1}, 5000), testBody(5000, 5)
		hung := &hungSink{memSink: memSink{failAt: -1}, release: make(chan struct{})}
		if _, err := e.Encode(context.Background(), c, bytes.NewReader(body), 1, []Sink{newSink(), hung}); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Encode(context.Background(), c, bytes.NewReader(body), 1, []Sink{newSink(), newSink()}); !errs.Is(err, errs.Busy) {
			t.Fatalf("%v; want errs.Busy", err)
		}
		close(hung.release)
		synctest.Wait()
		if _, err := e.Encode(context.Background(), c, bytes.NewReader(body), 1, []Sink{newSink(), newSink()}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestACanceledEncodeStopsItsWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		coders := newTestCoders(t)
		e := NewEncoder(Options{Coders: coders, LagTimeout: time.Second})
		size := 30 * 2 * BlockSize
		c, body := testChunk(Profile{2, 1}, size), testBody(size, 5)
		ctx, cancel := context.WithCancel(context.Background())
		all := []*hungSink{}
		sinks := []Sink{}
		for range 3 {
			h := &hungSink{memSink: memSink{failAt: -1}, at: 1, release: make(chan struct{})}
			all, sinks = append(all, h), append(sinks, h)
		}
		time.AfterFunc(time.Minute, cancel) // they all hang, so none lags: only the caller ends it
		began := time.Now()
		res, err := e.Encode(ctx, c, bytes.NewReader(body), 2, sinks)
		if !errs.Is(err, errs.Canceled) || res.Stored() != 0 || time.Since(began) > 62*time.Second || !errors.Is(res.Failed[0], ErrLagging) {
			t.Fatalf("%v, %v after %v", res, err, time.Since(began))
		}
		for _, h := range all {
			close(h.release)
		}
		synctest.Wait()
		for _, h := range all {
			if h.bad != "" {
				t.Fatal(h.bad)
			}
		}
	})
}

func TestASourceThatFailsAtAnyReadIsReadAround(t *testing.T) {
	coders := newTestCoders(t)
	p := Profile{2, 1}
	size := 9*2*BlockSize + 77
	c, body := testChunk(p, size), testBody(size, 5)
	whole := encodeChunk(t, coders, c, body)
	for i := int64(0); ; i++ {
		reached := false
		for _, bad := range [][]int{{0}, {1}, {0, 1}} {
			s := whole.clone()
			for _, j := range bad {
				s.files[j].fail = func(n int64) error {
					if n >= i {
						return errs.E("test", errs.Unavailable, "gone")
					}
					return nil
				}
			}
			told := 0
			got, err := readChunk(coders, c, s, 0, c.Size, ReadOptions{HedgeAfter: never, OnDamage: func(int, error) { told++ },
				ReadAhead: -1}) // one group after the other, so that read i is the same one on both shards
			reached = s.files[bad[0]].reads.Load() > i
			switch {
			case reached && len(bad) == 2:
				if !errs.Is(err, errs.Unavailable) || !bytes.Equal(got, body[:len(got)]) {
					t.Fatalf("read %d of %v fails: %d bytes, %v; want errs.Unavailable", i, bad, len(got), err)
				}
			case err != nil || !bytes.Equal(got, body):
				t.Fatalf("read %d of %v fails: %d bytes, %v", i, bad, len(got), err)
			}
			if told != 0 {
				t.Fatalf("read %d of %v fails: damage told of what is only unreachable", i, bad)
			}
		}
		if !reached {
			if i < 3 {
				t.Fatalf("only %d reads: the test covers too little", i)
			}
			return
		}
	}
}

func TestOpenFailuresBeforeTheFirstByte(t *testing.T) {
	coders := newTestCoders(t)
	c, body := testChunk(Profile{2, 2}, 5000), testBody(5000, 5)
	s := encodeChunk(t, coders, c, body)
	down := map[int]bool{}
	open := func(ctx context.Context, j int) (Source, error) {
		if down[j] {
			return nil, errs.E("test", errs.Unavailable, "node is down")
		}
		return s.open(ctx, j)
	}
	for _, x := range []struct {
		down, lost []int
		kind       errs.Kind
	}{{[]int{0, 1, 2}, nil, errs.Unavailable}, {[]int{0}, []int{1, 2}, errs.Unavailable}, {[]int{0}, []int{1, 2, 3}, errs.Corrupt}} {
		clear(down)
		s = encodeChunk(t, coders, c, body)
		for _, j := range x.down {
			down[j] = true
		}
		for _, j := range x.lost {
			s.files[j] = nil
		}
		_, err := OpenChunk(context.Background(), c, open, ReadOptions{Coders: coders})
		var se *ShardsError
		if !errs.Is(err, x.kind) || !errors.As(err, &se) || fmt.Sprint(se.Missing) != fmt.Sprint(x.lost) || fmt.Sprint(se.Unreachable) != fmt.Sprint(x.down) {
			t.Errorf("down %v, lost %v: %v", x.down, x.lost, err)
		}
	}
}

func TestAHungSourceIsHedgedAroundAndItsBufferKept(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		for hang := int64(0); hang < 3; hang++ {
			synctest.Test(t, func(t *testing.T) {
				coders := newTestCoders(t)
				size := 12 * 2 * BlockSize
				c, body := testChunk(Profile{2, 2}, size), testBody(size, 5)
				s := encodeChunk(t, coders, c, body)
				release := make(chan struct{})
				s.files[1].block = func(ctx context.Context) bool {
					if s.files[1].reads.Load() <= hang {
						return false
					}
					if deaf {
						<-release
						return false
					}
					select {
					case <-release:
						return false
					case <-ctx.Done():
						return true
					}
				}
				r, err := OpenChunk(context.Background(), c, s.open, ReadOptions{Coders: coders, HedgeAfter: func() time.Duration { return 50 * time.Millisecond }})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				var buf bytes.Buffer
				if err := r.WriteRange(context.Background(), &buf, 0, c.Size); err != nil || !bytes.Equal(buf.Bytes(), body) {
					t.Fatalf("hangs at %d: %d bytes, %v", hang, buf.Len(), err)
				}
				if took := time.Since(began); took > 200*time.Millisecond {
					t.Fatalf("hangs at %d: took %v", hang, took)
				}
				r.Close()
				synctest.Wait()
				if deaf && (coders.Running() == 0 || s.files[1].closed.Load() != 0) {
					t.Fatalf("hangs at %d: %d goroutines, closed %d times while a read runs", hang, coders.Running(), s.files[1].closed.Load())
				}
				close(release)
				synctest.Wait()
				if n := s.files[1].closed.Load(); n != 1 || coders.Running() != 0 {
					t.Fatalf("hangs at %d: source closed %d times, %d goroutines", hang, n, coders.Running())
				}
			})
		}
	}
}

func TestAHungOpenIsHedgedAround(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		coders := newTestCoders(t)
		c, body := testChunk(Profile{2, 2}, 1<<20), testBody(1<<20, 5)
		s := encodeChunk(t, coders, c, body)
		release := make(chan struct{})
		open := func(ctx context.Context, j int) (Source, error) {
			if j == 0 {
				<-release
			}
			return s.open(ctx, j)
		}
		began := time.Now()
		r, err := OpenChunk(context.Background(), c, open, ReadOptions{Coders: coders})
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		if err := r.WriteRange(context.Background(), &buf, 0, c.Size); err != nil || !bytes.Equal(buf.Bytes(), body) {
			t.Fatal(err)
		}
		if took := time.Since(began); took > hedgeStart+50*time.Millisecond {
			t.Fatalf("took %v", took)
		}
		r.Close()
		close(release)
		synctest.Wait()
		if s.files[0].closed.Load() != 1 {
			t.Fatal("the source that was opened late was not closed")
		}
	})
}

func TestWhenAllHangTheContextEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		coders := newTestCoders(t)
		c, body := testChunk(Profile{2, 1}, 1<<20), testBody(1<<20, 5)
		s := encodeChunk(t, coders, c, body)
		release := make(chan struct{})
		for _, f := range s.files {
			f.block = func(context.Context) bool { <-release; return false }
		}
		r, err := OpenChunk(context.Background(), c, s.open, ReadOptions{Coders: coders})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := r.WriteRange(ctx, io.Discard, 0, c.Size); !errs.Is(err, errs.Timeout) {
			t.Fatalf("%v; want errs.Timeout", err)
		}
		r.Close()
		close(release)
		synctest.Wait()
	})
}

func TestAWriterThatFailsKeepsItsError(t *testing.T) {
	coders := newTestCoders(t)
	c := testChunk(Profile{2, 1}, 3<<20)
	s := encodeChunk(t, coders, c, testBody(3<<20, 1))
	r, err := OpenChunk(context.Background(), c, s.open, ReadOptions{Coders: coders})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pr, pw := io.Pipe()
	pr.CloseWithError(errInjected)
	if err := r.WriteRange(context.Background(), pw, 0, c.Size); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	if err := r.WriteRange(context.Background(), io.Discard, 0, c.Size); err != nil {
		t.Fatalf("the reader is not usable after a failed writer: %v", err)
	}
}

func TestRebuildWhoseSinkFailsAtAnyWriteCompletesTheOthers(t *testing.T) {
	coders := newTestCoders(t)
	size := 9*2*BlockSize + 77
	c, body := testChunk(Profile{2, 2}, size), testBody(size, 5)
	s := encodeChunk(t, coders, c, body)
	for i := 0; ; i++ {
		bad, good := newSink(), newSink()
		bad.failAt = i
		err := Rebuild(context.Background(), c, s.open, map[int]Sink{1: bad, 3: good}, ReadOptions{Coders: coders})
		if !bytes.Equal(good.data, s.files[3].data) {
			t.Fatalf("write %d fails: the other shard differs", i)
		}
		if bad.writes <= i {
			if err != nil || i < 3 {
				t.Fatalf("%d writes: %v", i, err)
			}
			return
		}
		var re *RebuildError
		if !errors.As(err, &re) || len(re.Failed) != 1 || !errors.Is(re.Failed[1], errInjected) {
			t.Fatalf("write %d fails: %v", i, err)
		}
	}
}

func TestRebuildDoesNotSpreadCorruption(t *testing.T) {
	coders := newTestCoders(t)
	size := 3*2*BlockSize + 77
	c, body := testChunk(Profile{2, 2}, size), testBody(size, 5)
	s := encodeChunk(t, coders, c, body)
	want := s.files[3].data
	s.files[0] = &memFile{data: bytes.Clone(s.files[0].data)}
	s.files[0].data[headerSize+BlockSize] ^= 1
	out := newSink()
	if err := Rebuild(context.Background(), c, s.open, map[int]Sink{3: out}, ReadOptions{Coders: coders}); err != nil || !bytes.Equal(out.data, want) {
		t.Fatalf("equal %v, %v", bytes.Equal(out.data, want), err)
	}
	s.files[1] = nil
	if err := Rebuild(context.Background(), c, s.open, map[int]Sink{3: newSink()}, ReadOptions{Coders: coders}); !errs.Is(err, errs.Corrupt) {
		t.Fatalf("%v; want errs.Corrupt", err)
	}
}

func TestSixteenStreamsStayWithinTheMemoryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		coders := newTestCoders(t)
		e := NewEncoder(Options{Coders: coders})
		c := testChunk(Profile{2, 2}, ChunkSize)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 16)
		for range 16 { // sinks that wait keep all buffers of a stream in use
			go func() {
				sinks := make([]Sink, 4)
				for j := range sinks {
					sinks[j] = waitingSink{}
				}
				_, err := e.Encode(ctx, c, zeroReader{}, 3, sinks)
				done <- err
			}()
		}
		synctest.Wait()
		if n := coders.pool.Stats().InUse; n > 68<<20 || n < 30<<20 {
			t.Errorf("16 streams hold %d MiB of buffers", n>>20)
		}
		cancel()
		for range 16 {
			if err := <-done; !errs.Is(err, errs.Canceled) {
				t.Error(err)
			}
		}
		if e.reserved != 0 {
			t.Errorf("%d bytes stay reserved", e.reserved)
		}
	})
}

type waitingSink struct{}

func (waitingSink) Write(ctx context.Context, p []byte) error { <-ctx.Done(); return ctx.Err() }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
