// Package bufpool owns large, page-aligned, reference-counted byte buffers that live outside the
// Go heap. First touch of fresh memory costs more than encoding it, so buffers are kept and used
// again; and because they are not heap, they neither trigger nor slow the garbage collector.
//
// Invariants:
//   - memory of a Buf starts at a multiple of 4096, and its capacity is a multiple of 4096;
//   - a Buf goes back to the pool when its last reference is released, and not earlier, so whoever
//     lends it to something that may hang (a drive, a network) keeps a reference until that returns;
//   - idle memory never exceeds Options.MaxIdle; what is in use is bounded by the users.
//
// The package never clears a buffer: its content is whatever the last user left.
//
// Buffers are mapped anonymously on Unix. Under the race detector, which does not see mapped
// memory, and elsewhere they come from the heap.
package bufpool

import (
	"bytes"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Page is the alignment of a buffer and the granule of its size.
	Page = 4096
	// MaxPooled is the largest buffer that is kept for reuse; larger ones are mapped and unmapped.
	MaxPooled = 64 << 20
	// DefaultMaxIdle is the idle memory that a pool keeps unless told otherwise.
	DefaultMaxIdle = 64 << 20

	poisonByte = 0xDB
)

// Options of a Pool. The zero value is good.
type Options struct {
	// MaxIdle is the most memory, in bytes, that is kept idle. 0 means DefaultMaxIdle; negative
	// means none.
	MaxIdle int64
	// Poison overwrites each released buffer and panics when it was written to while idle. It
	// costs a pass over the memory both ways and is meant for tests.
	Poison bool
	// Now is the clock of Trim; nil means time.Now.
	Now func() time.Time
}

// Stats is a snapshot of a pool. Sizes are in bytes of mapped memory; pages that were never
// touched count too, though they are not resident.
type Stats struct {
	InUse, Idle   int64
	PeakInUse     int64
	Buffers       int64  // buffers in use
	Gets, Hits    uint64 // Hits were served from idle memory
	Maps, Unmaps  uint64
	DoubleRelease uint64 // always 0: a double release panics; kept so that a recovered panic shows
}

// Pool hands out buffers. Its methods are safe for concurrent use.
type Pool struct {
	maxIdle int64
	poison  bool
	now     func() time.Time

	doubles atomic.Uint64

	// mu guards all fields below.
	mu     sync.Mutex
	idle   map[int][]*Buf // by capacity, last released last
	stats  Stats
	closed bool
}

// Buf is one buffer. It is in use from Get until as many Releases as there were Gets and Retains.
type Buf struct {
	pool *Pool
	mem  []byte // the whole capacity
	n    int    // what was asked for
	refs atomic.Int32
	free time.Time // when it became idle; guarded by pool.mu
}

// New makes an empty pool.
func New(o Options) *Pool {
	if o.MaxIdle == 0 {
		o.MaxIdle = DefaultMaxIdle
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Pool{maxIdle: max(o.MaxIdle, 0), poison: o.Poison, now: o.Now, idle: make(map[int][]*Buf)}
}

// Get returns a buffer of n bytes with one reference. Its content is arbitrary. n may be 0.
func (p *Pool) Get(n int) *Buf {
	if n < 0 {
		panic(fmt.Sprintf("bufpool: Get(%d)", n))
	}
	size := ClassSize(n)
	p.mu.Lock()
	p.stats.Gets++
	p.stats.InUse += int64(size)
	p.stats.PeakInUse = max(p.stats.PeakInUse, p.stats.InUse)
	p.stats.Buffers++
	var b *Buf
	if list := p.idle[size]; len(list) > 0 {
		b = list[len(list)-1]
		list[len(list)-1] = nil
		p.idle[size] = list[:len(list)-1]
		p.stats.Idle -= int64(size)
		p.stats.Hits++
	} else {
		p.stats.Maps++
	}
	p.mu.Unlock()

	if b == nil {
		b = &Buf{pool: p, mem: mapMemory(size)}
	} else if p.poison {
		checkPoison(b.mem)
	}
	b.n = n
	b.refs.Store(1)
	return b
}

// Stats returns a snapshot.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.DoubleRelease = p.doubles.Load()
	return s
}

// Trim gives memory back to the system that has been idle for longer than age. The owner of the
// pool calls it from time to time.
func (p *Pool) Trim(age time.Duration) {
	limit := p.now().Add(-age)
	p.mu.Lock()
	var out []*Buf
	for size, list := range p.idle {
		keep := 0 // lists are ordered by the time of release: the oldest come first
		for keep < len(list) && !list[keep].free.After(limit) {
			keep++
		}
		if keep == 0 {
			continue
		}
		out = append(out, list[:keep]...)
		p.setIdle(size, append([]*Buf(nil), list[keep:]...))
		p.stats.Idle -= int64(keep) * int64(size)
	}
	p.stats.Unmaps += uint64(len(out))
	p.mu.Unlock()
	p.unmap(out)
}

// Close gives all idle memory back. Buffers in use stay valid; they are unmapped as they are
// released. Get still works afterwards, without reuse.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	var out []*Buf
	for _, list := range p.idle {
		out = append(out, list...)
	}
	clear(p.idle)
	p.stats.Idle = 0
	p.stats.Unmaps += uint64(len(out))
	p.mu.Unlock()
	p.unmap(out)
}

// put takes a buffer whose last reference went away.
func (p *Pool) put(b *Buf) {
	size := len(b.mem)
	if p.poison {
		poison(b.mem)
	}
	p.mu.Lock()
	p.stats.InUse -= int64(size)
	p.stats.Buffers--
	var out []*Buf
	if p.closed || size > MaxPooled || int64(size) > p.maxIdle {
		out = append(out, b)
	} else {
		b.free = p.now()
		p.idle[size] = append(p.idle[size], b)
		p.stats.Idle += int64(size)
		for p.stats.Idle > p.maxIdle {
			out = append(out, p.evictOldest())
		}
	}
	p.stats.Unmaps += uint64(len(out))
	p.mu.Unlock()
	p.unmap(out)
}

// evictOldest removes the buffer that has been idle longest, so that a class that fell out of use
// does not hold the room of one in use. The caller holds mu and knows that there is one.
func (p *Pool) evictOldest() *Buf {
	var oldest *Buf
	for _, list := range p.idle {
		if len(list) > 0 && (oldest == nil || list[0].free.Before(oldest.free)) {
			oldest = list[0]
		}
	}
	size := len(oldest.mem)
	list := p.idle[size]
	copy(list, list[1:])
	list[len(list)-1] = nil
	p.setIdle(size, list[:len(list)-1])
	p.stats.Idle -= int64(size)
	return oldest
}

// setIdle replaces the list of one class, dropping empty ones. The caller holds mu.
func (p *Pool) setIdle(size int, list []*Buf) {
	if len(list) == 0 {
		delete(p.idle, size)
		return
	}
	p.idle[size] = list
}

func (p *Pool) unmap(bufs []*Buf) {
	for _, b := range bufs {
		mem := b.mem
		b.mem = nil // a late user gets a Go panic, not a segmentation fault
		unmapMemory(mem)
	}
}

// Bytes returns the n bytes that were asked for. Its capacity reaches to the end of the class.
// It is valid as long as the caller holds a reference.
func (b *Buf) Bytes() []byte { return b.mem[:b.n] }

// Cap returns the size of the buffer's class.
func (b *Buf) Cap() int { return len(b.mem) }

// Retain adds a reference. The caller must hold one.
func (b *Buf) Retain() {
	if b.refs.Add(1) <= 1 {
		panic("bufpool: Retain of a released buffer")
	}
}

// Release drops a reference; the last one returns the buffer to its pool. It panics when there is
// none to drop.
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		b.pool.put(b)
	case n < 0:
		b.pool.doubles.Add(1)
		panic("bufpool: buffer released twice")
	}
}

// ClassSize returns the memory that a buffer of n bytes takes: n rounded up to pages, and from
// 32 KiB on to one of eight steps per power of two, so that at most an eighth is lost.
func ClassSize(n int) int {
	pages := max((n+Page-1)/Page, 1)
	if pages*Page > MaxPooled || pages <= 8 {
		return pages * Page
	}
	shift := bits.Len(uint(pages-1)) - 4 // leaves four significant bits
	step := 1 << max(shift, 0)
	return (pages + step - 1) &^ (step - 1) * Page
}

func poison(p []byte) {
	if len(p) == 0 {
		return
	}
	p[0] = poisonByte
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}

var poisoned = bytes.Repeat([]byte{poisonByte}, Page)

func checkPoison(p []byte) {
	for i := 0; i < len(p); i += Page {
		if !bytes.Equal(p[i:i+Page], poisoned) {
			panic("bufpool: buffer was written to after its release")
		}
	}
}
