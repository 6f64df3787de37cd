package placement

import (
	"encoding/binary"

	"github.com/ostraka/ostraka/erasure"
	"github.com/zeebo/xxh3"
)

// The four functions below are part of the format. Data are found by them: they never change,
// and golden tests hold them.

// PartitionOf returns the partition of a key: the top Bits bits of xxh3-64 over the bucket id (8
// bytes, little endian) followed by the key.
func (l *Layout) PartitionOf(bucket uint64, key []byte) uint32 {
	return partitionOf(l.bits, bucket, key)
}

// SliceBits is log2 of the number of digest slices, and Slices that number. They do not depend on
// the layout.
const (
	SliceBits = 12
	Slices    = 1 << SliceBits
)

// Slice returns the digest slice of a key: the top SliceBits bits of the hash that PartitionOf
// takes. Both take the top bits, so slices and partitions nest, in order. In a layout of b ≤
// SliceBits bits, partition p is the 2^(SliceBits−b) slices from p·2^(SliceBits−b) on; with
// DefaultBits, slice and partition are the same number. In one of more bits, slice s is the
// 2^(b−SliceBits) partitions from s·2^(b−SliceBits) on.
func Slice(bucket uint64, key []byte) uint16 {
	return uint16(partitionOf(SliceBits, bucket, key))
}

// ChunkPartition returns the partition of one chunk of a body: chunk 0 lies with its key, every
// later chunk on the top Bits bits of xxh3-64 over the data id (16 bytes) followed by the chunk
// number (4 bytes, little endian).
func (l *Layout) ChunkPartition(id erasure.DataID, chunk uint32, keyPartition uint32) uint32 {
	if chunk == 0 {
		return keyPartition
	}
	var b [len(id) + 4]byte
	copy(b[:], id[:])
	binary.LittleEndian.PutUint32(b[len(id):], chunk)
	return top(xxh3.Hash(b[:]), l.bits)
}

// Positions returns, for each shard index of a body with profile p, the position in its partition
// of n ≥ k+m members where that shard lies. A profile as wide as the partition keeps shard i at
// position i. A narrower one takes the first k+m entries of a Fisher-Yates shuffle of the
// positions: step i swaps entry i with entry i + next mod (n−i), next being the i-th output of
// splitmix64 seeded with xxh3-64 of the data id. So each position carries each shard index
// equally often. It returns nil if p does not fit into n.
func Positions(p erasure.Profile, n int, id erasure.DataID) []int {
	w := p.N()
	if w > n {
		return nil
	}
	pos := make([]int, n)
	for i := range pos {
		pos[i] = i
	}
	if w == n {
		return pos
	}
	seed := xxh3.Hash(id[:])
	for i := range w {
		var v uint64
		seed, v = splitmix64(seed)
		j := i + int(v%uint64(n-i))
		pos[i], pos[j] = pos[j], pos[i]
	}
	return pos[:w]
}

// Places returns, for each shard index of a body, the position where that shard lies: see Positions. width is what
// its reference names: how many members partitions had for the body when it was written; 0: as many as at
// first. It returns nil if the body does not fit into the group.
func (g Group) Places(p erasure.Profile, width uint8, id erasure.DataID) []int {
	n := int(width)
	if n == 0 {
		n = g.First
	}
	if n == 0 {
		n = len(g.Drives)
	}
	if n > len(g.Drives) {
		return nil
	}
	return Positions(p, n, id)
}

func partitionOf(bits uint8, bucket uint64, key []byte) uint32 {
	var room [8 + 1024]byte // an S3 key has at most 1024 bytes: no allocation
	b := binary.LittleEndian.AppendUint64(room[:0], bucket)
	return top(xxh3.Hash(append(b, key...)), bits)
}

// top returns the highest bits of h; bits may be 0 (one partition).
func top(h uint64, bits uint8) uint32 { return uint32(h >> (64 - uint(bits))) }

// splitmix64 is Steele, Lea and Flood's generator: the next seed and its output.
func splitmix64(seed uint64) (next, out uint64) {
	seed += 0x9e3779b97f4a7c15
	z := seed
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return seed, z ^ z>>31
}
