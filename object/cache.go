package object

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/erasure"
)

// blockCache keeps decoded, verified blocks under (data id, chunk, block). They are immutable and
// their ids never come again, so it is coherent by construction; the record that leads to them is
// read by quorum every time.
//
// A block is admitted when it is asked for a second time within the memory of a small table: a body
// that is read once costs neither a copy nor an eviction. Among what is admitted, ristretto's
// frequency sketch decides.
type blockCache struct {
	c    *ristretto.Cache[uint64, *cachedBlock] // nil: no cache
	seen []atomic.Uint64                        // hashes of blocks that were missed lately, by hash

	hits, misses, hitBytes, added atomic.Uint64
}

// cachedBlock carries its whole name, so that a collision of hashes is a miss.
type cachedBlock struct {
	id           erasure.DataID
	chunk, block uint32
	data         []byte
}

const (
	seenSlots    = 1 << 16 // 512 KiB: half of what was missed among as many blocks is remembered
	blockGuess   = 64 << 10
	minBlockCost = 256
)

func newBlockCache(size int64) *blockCache {
	b := new(blockCache)
	if size <= 0 {
		return b
	}
	c, err := ristretto.NewCache(&ristretto.Config[uint64, *cachedBlock]{
		NumCounters: max(10*size/blockGuess, 1024),
		MaxCost:     size,
		BufferItems: 64,
		// The cost given is the memory taken, head included.
		IgnoreInternalCost: true,
		KeyToHash:          func(k uint64) (uint64, uint64) { return k, 0 },
	})
	if err != nil {
		return b // only a size that is not positive is refused
	}
	b.c = c
	b.seen = make([]atomic.Uint64, seenSlots)
	return b
}

func blockKey(id erasure.DataID, chunk, block uint32) uint64 {
	var b [len(id) + 8]byte
	copy(b[:], id[:])
	binary.LittleEndian.PutUint32(b[len(id):], chunk)
	binary.LittleEndian.PutUint32(b[len(id)+4:], block)
	return xxh3.Hash(b[:])
}

// Get implements erasure.BlockCache. The memory is left to the garbage collector.
func (b *blockCache) Get(id erasure.DataID, chunk, block uint32) ([]byte, func(), bool) {
	v, ok := b.c.Get(blockKey(id, chunk, block))
	if !ok || v.id != id || v.chunk != chunk || v.block != block {
		b.misses.Add(1)
		return nil, nil, false
	}
	b.hits.Add(1)
	b.hitBytes.Add(uint64(len(v.data)))
	return v.data, func() {}, true
}

// Put implements erasure.BlockCache.
func (b *blockCache) Put(id erasure.DataID, chunk, block uint32, p []byte) {
	k := blockKey(id, chunk, block)
	slot := &b.seen[k%seenSlots]
	if slot.Load() != k {
		slot.Store(k)
		return
	}
	v := &cachedBlock{id: id, chunk: chunk, block: block, data: append([]byte(nil), p...)}
	if b.c.Set(k, v, int64(cap(v.data))+minBlockCost) {
		b.added.Add(1)
	}
}

// reader is what readers are given: nil where there is no cache.
func (b *blockCache) reader() erasure.BlockCache {
	if b.c == nil {
		return nil
	}
	return b
}

func (b *blockCache) close() {
	if b.c != nil {
		b.c.Close()
	}
}

// manifestCache keeps decoded manifests, at most maxManifestParts parts in all, the least recently
// used go first. A manifest is immutable under its data id.
type manifestCache struct {
	mu    sync.Mutex // guards the fields below
	by    map[erasure.DataID]*manifestEntry
	clock uint64
	parts int
}

type manifestEntry struct {
	parts []manifestPart
	used  uint64
}

const maxManifestParts = 100_000 // some 20 MB

func (m *manifestCache) get(id erasure.DataID) ([]manifestPart, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.by[id]
	if e == nil {
		return nil, false
	}
	m.clock++
	e.used = m.clock
	return e.parts, true
}

func (m *manifestCache) put(id erasure.DataID, parts []manifestPart) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.by == nil {
		m.by = make(map[erasure.DataID]*manifestEntry)
	}
	if m.by[id] != nil {
		return
	}
	m.clock++
	m.by[id] = &manifestEntry{parts: parts, used: m.clock}
	m.parts += len(parts)
	for m.parts > maxManifestParts && len(m.by) > 1 {
		var oldest erasure.DataID
		least := ^uint64(0)
		for k, e := range m.by {
			if e.used < least {
				oldest, least = k, e.used
			}
		}
		m.parts -= len(m.by[oldest].parts)
		delete(m.by, oldest)
	}
}

// counters of a Store.
type counters struct {
	repairsAsked, damaged, rereads, followed atomic.Uint64
}

// Stats is a snapshot of what a Store counts.
type Stats struct {
	CacheHits, CacheMisses, CacheHitBytes, CacheAdded uint64 // blocks; HitRate = hits / (hits + misses)
	RepairsAsked                                      uint64 // repair rows left for what reads and writes noticed
	DamagedShards                                     uint64 // shards found missing or corrupt by reads
	Rereads                                           uint64 // reads that began again at the record
	Followed                                          uint64 // steps of requests that went on in a newer layout or bucket epoch
}

// Stats returns a snapshot.
func (s *Store) Stats() Stats {
	return Stats{CacheHits: s.cache.hits.Load(), CacheMisses: s.cache.misses.Load(), CacheHitBytes: s.cache.hitBytes.Load(),
		CacheAdded: s.cache.added.Load(), RepairsAsked: s.stats.repairsAsked.Load(), DamagedShards: s.stats.damaged.Load(),
		Rereads: s.stats.rereads.Load(), Followed: s.stats.followed.Load()}
}
