package erasure

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/ostraka/ostraka/internal/errs"
)

const (
	// BlockSize is the stripe unit and the checksum unit of a shard, in bytes.
	BlockSize = 256 << 10
	// ChunkSize is how many bytes of a body make one chunk unless the owner of the body chooses otherwise.
	ChunkSize = 64 << 20
	// Align is the granule of every offset and length in a shard file.
	Align = 4096
	// MaxShards is the largest k+m.
	MaxShards = 32
	// MaxChunkSize is the largest chunk; it bounds the footer that a reader holds in memory.
	MaxChunkSize = 4 << 30
	// MaxKey is the longest owner key in bytes, that of S3.
	MaxKey = 1024
)

// Profile says how a chunk is cut: Data shards hold it, Parity shards more can be lost. Data ≥ 1,
// Parity ≥ 0 (then only checksums protect it), and together at most MaxShards. Coding is fastest up
// to 10 data shards.
type Profile struct{ Data, Parity uint8 }

// Valid reports whether the profile is within its limits.
func (p Profile) Valid() bool { return p.Data >= 1 && p.N() <= MaxShards }

// N is the number of shards.
func (p Profile) N() int { return int(p.Data) + int(p.Parity) }

// String returns "k+m".
func (p Profile) String() string { return fmt.Sprintf("%d+%d", p.Data, p.Parity) }

// ParseProfile reads "k+m". The error is errs.Invalid.
func ParseProfile(s string) (Profile, error) {
	k, m, ok := strings.Cut(s, "+")
	data, err1 := strconv.ParseUint(k, 10, 8)
	parity, err2 := strconv.ParseUint(m, 10, 8)
	p := Profile{uint8(data), uint8(parity)}
	if !ok || err1 != nil || err2 != nil || !p.Valid() || p.String() != s {
		return Profile{}, errs.E("erasure.ParseProfile", errs.Invalid,
			fmt.Sprintf("%q is not a profile: want k+m, k at least 1, k+m at most %d", s, MaxShards))
	}
	return p, nil
}

// DataID names one immutable body. It is random and never used again.
type DataID [16]byte

// NewDataID draws a random id.
func NewDataID() DataID {
	var id DataID
	rand.Read(id[:]) //nolint:errcheck // never fails: the runtime aborts instead
	return id
}

// String returns 32 hexadecimal digits.
func (d DataID) String() string { return hex.EncodeToString(d[:]) }

// ParseDataID reads what String wrote. The error is errs.Invalid.
func ParseDataID(s string) (DataID, error) {
	var id DataID
	if len(s) != 2*len(id) || strings.ToLower(s) != s {
		return DataID{}, errs.E("erasure.ParseDataID", errs.Invalid, "a data id is 32 lower-case hexadecimal digits")
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return DataID{}, errs.E("erasure.ParseDataID", errs.Invalid, "a data id is 32 lower-case hexadecimal digits")
	}
	return id, nil
}

// Owner says to whom a shard belongs. It is written in the header so that records can be rebuilt
// from a drive alone; nothing in this package depends on it. Upload and Part are zero outside multipart uploads.
type Owner struct {
	Bucket uint64
	Key    []byte // at most MaxKey bytes
	Upload [16]byte
	Part   uint32
}

// ShardID names one shard.
type ShardID struct {
	Data  DataID
	Chunk uint32
	Index uint8
}

// String returns "data/chunk/index".
func (s ShardID) String() string { return fmt.Sprintf("%s/%d/%d", s.Data, s.Chunk, s.Index) }

// Chunk is one slice of one body, coded and placed by itself. Size may be 0.
type Chunk struct {
	Data    DataID
	Index   uint32
	Profile Profile
	Size    int64
	Owner   Owner
}

// Shard returns the id of shard j.
func (c Chunk) Shard(j int) ShardID { return ShardID{c.Data, c.Index, uint8(j)} }

// check returns errs.Invalid when the chunk is outside the limits of the format.
func (c Chunk) check(op string) error {
	switch {
	case !c.Profile.Valid():
		return errs.E(op, errs.Invalid, "invalid profile "+c.Profile.String())
	case c.Size < 0 || c.Size > MaxChunkSize:
		return errs.E(op, errs.Invalid, fmt.Sprintf("chunk of %d bytes: the limit is %d", c.Size, int64(MaxChunkSize)))
	case len(c.Owner.Key) > MaxKey:
		return errs.E(op, errs.Invalid, fmt.Sprintf("owner key of %d bytes: the limit is %d", len(c.Owner.Key), MaxKey))
	}
	return nil
}

// ShardFileSize returns the size of each shard file of a chunk of chunkSize bytes.
func ShardFileSize(p Profile, chunkSize int64) int64 { return geometryOf(p, chunkSize).fileSize() }

// geometry is what follows from a profile and a chunk's size.
type geometry struct {
	k, n    int
	size    int64
	full    int // full stripes
	tail    int // bytes of the tail stripe, 0 if none
	tailLen int // bytes of a tail block, before padding
}

func geometryOf(p Profile, size int64) geometry {
	k := int(p.Data)
	stripe := int64(k) * BlockSize
	g := geometry{k: k, n: p.N(), size: size, full: int(size / stripe), tail: int(size % stripe)}
	g.tailLen = (g.tail + k - 1) / k
	return g
}

// blocks is the number of stripes, and so of blocks in each shard.
func (g geometry) blocks() int {
	if g.tail > 0 {
		return g.full + 1
	}
	return g.full
}

// blockLen is how many body bytes each shard's block of stripe t has room for, before padding.
func (g geometry) blockLen(t int) int {
	if t < g.full {
		return BlockSize
	}
	return g.tailLen
}

// span is the stored length of blocks [a, b) of a shard.
func (g geometry) span(a, b int) int {
	if b > g.full && a < b {
		return (b-1-a)*BlockSize + alignUp(g.tailLen)
	}
	return (b - a) * BlockSize
}

// content is how many body bytes data shard j holds in stripe t; the rest of its block is zeros.
func (g geometry) content(t, j int) int {
	if t < g.full {
		return BlockSize
	}
	return min(max(g.tail-j*g.tailLen, 0), g.tailLen)
}

// bodyOff is the offset in the body of data shard j's block of stripe t.
func (g geometry) bodyOff(t, j int) int64 {
	return int64(t)*int64(g.k)*BlockSize + int64(j)*int64(g.blockLen(t))
}

func (g geometry) blockOff(t int) int64 { return headerSize + int64(t)*BlockSize }
func (g geometry) footerOff() int64     { return headerSize + int64(g.span(0, g.blocks())) }
func (g geometry) footerLen() int       { return alignUp(g.blocks()*sumSize + trailerSize) }
func (g geometry) fileSize() int64      { return g.footerOff() + int64(g.footerLen()) }

func alignUp(n int) int { return (n + Align - 1) &^ (Align - 1) }
