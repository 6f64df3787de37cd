package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

var errInjected = errors.New("injected")

// memSink keeps a shard file, and checks the contract of its caller.
type memSink struct {
	data   []byte
	failAt int // the Write that fails; −1 never
	writes int
	active atomic.Int32
	bad    string
}

func newSink() *memSink { return &memSink{failAt: -1} }

func (s *memSink) Write(_ context.Context, p []byte) error {
	if s.active.Add(1) != 1 {
		s.bad = "concurrent Writes"
	}
	defer s.active.Add(-1)
	if len(p) == 0 || len(p)%Align != 0 || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Align != 0 {
		s.bad = fmt.Sprintf("a Write of %d bytes that is not aligned", len(p))
	}
	s.writes++
	if s.writes-1 == s.failAt {
		return errInjected
	}
	s.data = append(s.data, p...)
	return nil
}

// memFile is a shard file in memory.
type memFile struct {
	data   []byte
	reads  atomic.Int64
	bytes  atomic.Int64
	closed atomic.Int32
	fail   func(i int64) error            // of read i
	block  func(ctx context.Context) bool // called before each read; true: the read fails
	log    func(off int64, n int)
}

func (f *memFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	i := f.reads.Add(1) - 1
	f.bytes.Add(int64(len(p)))
	if f.closed.Load() != 0 {
		panic("ReadAt after Close")
	}
	if f.log != nil {
		f.log(off, len(p))
	}
	if f.block != nil && f.block(ctx) {
		return 0, errInjected
	}
	if f.fail != nil {
		if err := f.fail(i); err != nil {
			return 0, err
		}
	}
	if f.closed.Load() != 0 {
		panic("closed during ReadAt")
	}
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Close() error { f.closed.Add(1); return nil }

// store is the shards of one chunk; nil is a missing one.
type store struct {
	files  []*memFile
	mu     sync.Mutex
	opened map[int]int
}

func (s *store) open(_ context.Context, j int) (Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened == nil {
		s.opened = make(map[int]int)
	}
	s.opened[j]++
	if s.files[j] == nil {
		return nil, errs.E("test.open", errs.NotFound, "no shard")
	}
	s.files[j].closed.Store(0)
	return s.files[j], nil
}

func (s *store) clone() *store {
	c := &store{}
	for _, f := range s.files {
		if f == nil {
			c.files = append(c.files, nil)
		} else {
			c.files = append(c.files, &memFile{data: f.data})
		}
	}
	return c
}

// newTestCoders returns Coders over a poisoned pool; see testCoders.
func newTestCoders(t testing.TB) *Coders { return testCoders(t, true) }

// testCoders returns Coders that check at the end of the test that every
// goroutine and every buffer came back. Poison finds writes to released buffers; the race detector makes
// it dear, so that tests without failures do without.
func testCoders(t testing.TB, poison bool) *Coders {
	pool := bufpool.New(bufpool.Options{Poison: poison, MaxIdle: 32 << 20})
	c := NewCoders(pool)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := c.Wait(ctx); err != nil {
			t.Errorf("%d goroutines were left: %v", c.Running(), err)
		}
		if s := pool.Stats(); s.InUse != 0 || s.Buffers != 0 || s.DoubleRelease != 0 {
			t.Errorf("buffers were left: %+v", s)
		}
		pool.Close()
	})
	return c
}

func testBody(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	r.Read(b)
	return b
}

func testChunk(p Profile, size int) Chunk {
	return Chunk{Data: DataID{1, 2, 3, byte(p.Data), byte(p.Parity), byte(size), byte(size >> 8)}, Index: 7, Profile: p, Size: int64(size),
		Owner: Owner{Bucket: 42, Key: []byte("a/key"), Upload: [16]byte{9}, Part: 3}}
}

func encodeChunk(t testing.TB, coders *Coders, c Chunk, body []byte) *store {
	t.Helper()
	e := NewEncoder(Options{Coders: coders})
	sinks, mem := make([]Sink, c.Profile.N()), make([]*memSink, c.Profile.N())
	for j := range sinks {
		mem[j] = newSink()
		sinks[j] = mem[j]
	}
	res, err := e.Encode(context.Background(), c, bytes.NewReader(body), len(sinks), sinks)
	if err != nil || res.Stored() != len(sinks) {
		t.Fatalf("Encode %s, %d bytes: %v, %v", c.Profile, c.Size, res, err)
	}
	s := &store{}
	for j, m := range mem {
		if m.bad != "" {
			t.Fatalf("sink %d: %s", j, m.bad)
		}
		if int64(len(m.data)) != ShardFileSize(c.Profile, c.Size) {
			t.Fatalf("%s, %d bytes: shard file of %d bytes, want %d", c.Profile, c.Size, len(m.data), ShardFileSize(c.Profile, c.Size))
		}
		s.files = append(s.files, &memFile{data: m.data})
	}
	return s
}

func readChunk(coders *Coders, c Chunk, s *store, off, n int64, o ReadOptions) ([]byte, error) {
	o.Coders = coders
	r, err := OpenChunk(context.Background(), c, s.open, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var buf bytes.Buffer
	buf.Grow(int(max(0, min(n, c.Size))))
	err = r.WriteRange(context.Background(), &buf, off, n)
	return buf.Bytes(), err
}
