package erasure

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

var someProfiles = []Profile{{1, 0}, {1, 1}, {2, 0}, {2, 1}, {2, 2}, {3, 2}, {4, 2}, {5, 3}, {8, 4}, {10, 4}, {12, 4}}

func sizesFor(k int) []int {
	b := BlockSize
	if k > 4 {
		return []int{0, 1, k - 1, k, k + 1, 4096*k + 1, b + 1, b*k - 1, b * k, b*k + 1}
	}
	s := []int{0, 1, 2, k - 1, k, k + 1, 4095, 4096, 4096*k + 1, b - 1, b, b + 1, b*k - 1, b * k, b*k + 1, b*k + b, b*k + b + 1}
	s = append(s, 5*b*k-1, 5*b*k+k*100+1)
	slices.Sort(s)
	return slices.Compact(s)
}

func TestWhatIsEncodedReadsBackInEveryProfileAroundEveryBoundary(t *testing.T) {
	coders := testCoders(t, false)
	for _, p := range someProfiles {
		for _, size := range sizesFor(int(p.Data)) {
			c, body := testChunk(p, size), testBody(size, uint64(size))
			s := encodeChunk(t, coders, c, body)
			got, err := readChunk(coders, c, s, 0, c.Size, ReadOptions{HedgeAfter: never})
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%s, %d bytes: read %d bytes, %v", p, size, len(got), err)
			}
			for j, f := range s.files {
				if j >= int(p.Data) && f.reads.Load() != 0 {
					t.Fatalf("%s, %d bytes: parity shard %d was read though nothing is wrong", p, size, j)
				}
				if err := VerifyShard(context.Background(), &memFile{data: f.data}, c, j, coders); err != nil {
					t.Fatalf("%s, %d bytes: VerifyShard(%d): %v", p, size, j, err)
				}
				h, err := ReadHeader(context.Background(), f2(f))
				if err != nil || h.ID() != c.Shard(j) || h.Chunk.Size != c.Size || string(h.Chunk.Owner.Key) != "a/key" || h.Chunk.Owner.Part != 3 || h.Chunk.Owner.Bucket != 42 {
					t.Fatalf("header %+v, %v", h, err)
				}
			}
			// With the first m shards gone everything is decoded.
			lost := s.clone()
			for j := range int(p.Parity) {
				lost.files[j] = nil
			}
			if got, err := readChunk(coders, c, lost, 0, c.Size, ReadOptions{}); err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%s, %d bytes, first %d lost: read %d bytes, %v", p, size, p.Parity, len(got), err)
			}
		}
	}
}

func f2(f *memFile) *memFile { return &memFile{data: f.data} }

func never() time.Duration { return 0 }

func TestEverySubsetOfLostShards(t *testing.T) {
	coders := testCoders(t, false)
	for _, p := range []Profile{{1, 1}, {2, 1}, {2, 2}, {4, 2}, {3, 3}} {
		for _, size := range []int{0, 5, int(p.Data)*BlockSize + 70001} {
			c, body := testChunk(p, size), testBody(size, 3)
			s := encodeChunk(t, coders, c, body)
			for lost := range 1 << p.N() {
				l := s.clone()
				missing := make(map[int]Sink)
				told := make(map[int]bool)
				var mu sync.Mutex
				for j := range p.N() {
					if lost>>j&1 == 1 {
						l.files[j] = nil
						missing[j] = newSink()
					}
				}
				o := ReadOptions{OnDamage: func(j int, err error) {
					mu.Lock()
					defer mu.Unlock()
					if told[j] || !errs.Is(err, errs.NotFound) {
						t.Errorf("OnDamage(%d, %v), told before: %v", j, err, told[j])
					}
					told[j] = true
				}}
				got, err := readChunk(coders, c, l, 0, c.Size, o)
				enough := bits.OnesCount(uint(lost)) <= int(p.Parity)
				if enough && (err != nil || !bytes.Equal(got, body)) {
					t.Fatalf("%s, %d bytes, lost %b: %d bytes, %v", p, size, lost, len(got), err)
				}
				if !enough && (!errs.Is(err, errs.Corrupt) || len(got) != 0) {
					t.Fatalf("%s, %d bytes, lost %b: %d bytes, %v; want errs.Corrupt", p, size, lost, len(got), err)
				}
				mu.Lock() // a hedged open may still report
				for j := range told {
					if lost>>j&1 == 0 {
						t.Errorf("lost %b: damage of %d reported", lost, j)
					}
				}
				mu.Unlock()
				err = Rebuild(context.Background(), c, l.open, missing, ReadOptions{Coders: coders})
				if !enough {
					if !errs.Is(err, errs.Corrupt) {
						t.Fatalf("%s, lost %b: Rebuild: %v; want errs.Corrupt", p, lost, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s, lost %b: Rebuild: %v", p, lost, err)
				}
				for j, sink := range missing {
					if m := sink.(*memSink); m.bad != "" || !bytes.Equal(m.data, s.files[j].data) {
						t.Fatalf("%s, %d bytes, lost %b: rebuilt shard %d differs %s", p, size, lost, j, m.bad)
					}
				}
			}
		}
	}
}

func TestRangesMatchTheBodyAndTouchOnlyTheirBlocks(t *testing.T) {
	coders := testCoders(t, false)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, p := range []Profile{{1, 0}, {2, 2}, {3, 2}, {4, 2}} {
		size := 2*int(p.Data)*BlockSize + 123457
		c, body := testChunk(p, size), testBody(size, seed)
		s := encodeChunk(t, coders, c, body)
		lost := s.clone()
		for j := range int(p.Parity) {
			lost.files[j] = nil
		}
		cuts := []int{0, 1, BlockSize - 1, BlockSize, BlockSize + 1, int(p.Data) * BlockSize, 2*int(p.Data)*BlockSize - 1, 2 * int(p.Data) * BlockSize, size - 1, size}
		pick := func() int {
			if rnd.IntN(2) == 0 {
				return cuts[rnd.IntN(len(cuts))]
			}
			return rnd.IntN(size + 1)
		}
		for range 25 {
			off, end := pick(), pick()
			if off > end {
				off, end = end, off
			}
			fresh := s.clone()
			var mu sync.Mutex
			touched := make(map[string]bool)
			for j, f := range fresh.files {
				f.log = func(at int64, n int) {
					mu.Lock()
					defer mu.Unlock()
					for x := int64(0); x < int64(n); x += BlockSize {
						if b := (at + x - headerSize) / BlockSize; at+x < geometryOf(p, c.Size).footerOff() {
							touched[fmt.Sprint(j, ":", b)] = true
						}
					}
				}
			}
			got, err := readChunk(coders, c, fresh, int64(off), int64(end-off), ReadOptions{HedgeAfter: never})
			if err != nil || !bytes.Equal(got, body[off:end]) {
				t.Fatalf("seed %d: %s range [%d,%d): %d bytes, %v", seed, p, off, end, len(got), err)
			}
			want := make(map[string]bool)
			g := geometryOf(p, c.Size)
			for b := 0; b < g.blocks(); b++ {
				for j := range g.k {
					lo := int(g.bodyOff(b, j))
					if hi := lo + g.content(b, j); max(lo, off) < min(hi, end) {
						want[fmt.Sprint(j, ":", b)] = true
					}
				}
			}
			if len(touched) != len(want) {
				t.Fatalf("seed %d: %s range [%d,%d): read blocks %v, want %v", seed, p, off, end, touched, want)
			}
			got, err = readChunk(coders, c, lost.clone(), int64(off), int64(end-off), ReadOptions{})
			if err != nil || !bytes.Equal(got, body[off:end]) {
				t.Fatalf("seed %d: %s degraded range [%d,%d): %d bytes, %v", seed, p, off, end, len(got), err)
			}
		}
	}
}

func TestRangesOutsideTheChunkAreInvalid(t *testing.T) {
	coders := testCoders(t, false)
	c := testChunk(Profile{2, 1}, 100)
	s := encodeChunk(t, coders, c, testBody(100, 1))
	for _, r := range [][2]int64{{-1, 1}, {0, 101}, {100, 1}, {101, 0}, {0, -1}, {1, 1<<63 - 1}} {
		if _, err := readChunk(coders, c, s, r[0], r[1], ReadOptions{}); !errs.Is(err, errs.Invalid) {
			t.Errorf("range %v: %v", r, err)
		}
	}
}

func TestOrderPrefersNearShardsAndStillGivesTheBody(t *testing.T) {
	coders := testCoders(t, false)
	p := Profile{2, 2}
	size := 3*2*BlockSize + 99
	c, body := testChunk(p, size), testBody(size, 1)
	s := encodeChunk(t, coders, c, body)
	got, err := readChunk(coders, c, s, 0, int64(size)-99, ReadOptions{Order: []int{3, 1, 17, 3}, HedgeAfter: never})
	if err != nil || !bytes.Equal(got, body[:size-99]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if s.files[0].reads.Load() != 0 || s.files[2].reads.Load() != 0 {
		t.Fatalf("far shards were read: %d, %d", s.files[0].reads.Load(), s.files[2].reads.Load())
	}
}

func TestASmallShardIsOneRead(t *testing.T) {
	coders := testCoders(t, false)
	c, body := testChunk(Profile{2, 2}, 300<<10), testBody(300<<10, 1)
	s := encodeChunk(t, coders, c, body)
	if got, err := readChunk(coders, c, s, 0, c.Size, ReadOptions{HedgeAfter: never}); err != nil || !bytes.Equal(got, body) {
		t.Fatal(err)
	}
	for j := range 2 {
		if n := s.files[j].reads.Load(); n != 1 {
			t.Errorf("shard %d: %d reads", j, n)
		}
	}
}

// mapCache keeps everything.
type mapCache struct {
	mu   sync.Mutex
	m    map[string][]byte
	held int
}

func (m *mapCache) Get(id DataID, chunk, block uint32) ([]byte, func(), bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.m[fmt.Sprint(id, chunk, block)]
	if !ok {
		return nil, nil, false
	}
	m.held++
	return p, func() { m.mu.Lock(); m.held--; m.mu.Unlock() }, true
}

func (m *mapCache) Put(id DataID, chunk, block uint32, p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.m[fmt.Sprint(id, chunk, block)] = bytes.Clone(p)
}

func TestTheCacheServesWhatItHas(t *testing.T) {
	coders := testCoders(t, false)
	p := Profile{3, 2}
	size := 4*3*BlockSize + 100000
	c, body := testChunk(p, size), testBody(size, 1)
	s := encodeChunk(t, coders, c, body)
	cache := &mapCache{m: make(map[string][]byte)}
	for i := range 3 {
		fresh := s.clone()
		got, err := readChunk(coders, c, fresh, 0, c.Size, ReadOptions{Cache: cache})
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("pass %d: %d bytes, %v", i, len(got), err)
		}
		if i == 2 && len(fresh.opened) != 0 {
			t.Fatalf("everything is cached, yet shards were opened: %v", fresh.opened)
		}
		if i == 0 { // holes: every third block, so that segments mix
			n := 0
			for b := uint32(0); b < 13; b++ {
				if b%3 == 1 || b == 5 {
					delete(cache.m, fmt.Sprint(c.Data, c.Index, b))
					n++
				}
			}
			lost := s.clone()
			lost.files[0], lost.files[1] = nil, nil
			tmp := &mapCache{m: make(map[string][]byte)}
			for k, v := range cache.m {
				tmp.m[k] = v
			}
			if got, err := readChunk(coders, c, lost, 0, c.Size, ReadOptions{Cache: tmp}); err != nil || !bytes.Equal(got, body) {
				t.Fatalf("degraded with %d holes: %d bytes, %v", n, len(got), err)
			}
		}
	}
	if cache.held != 0 {
		t.Fatalf("%d blocks were not released", cache.held)
	}
}
