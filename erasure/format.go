package erasure

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
)

const (
	headerSize  = 4096
	trailerSize = 64
	sumSize     = 16

	formatVersion = 1
	codingRS      = 1
	checksumXXH3  = 1

	// knownMandatory are the mandatory feature flags that this version understands: none so far.
	knownMandatory = 0
)

var (
	headerMagic  = [8]byte{'O', 'S', 'T', 'R', 'K', 'S', 'H', 'D'}
	trailerMagic = [8]byte{'O', 'S', 'T', 'R', 'K', 'E', 'N', 'D'}
)

var le = binary.LittleEndian

// Header is the content of a shard file's first page.
type Header struct {
	Chunk     Chunk
	Shard     uint8  // which shard of the chunk
	Optional  uint32 // optional feature flags, kept though not understood
	ProfileID uint32 // 0: as Chunk.Profile says
}

// ID returns the name of the shard.
func (h Header) ID() ShardID { return ShardID{h.Chunk.Data, h.Chunk.Index, h.Shard} }

// encodeHeader writes h as a page to dst, which has 4096 bytes.
func encodeHeader(dst []byte, h Header) {
	c := h.Chunk
	clear(dst[:headerSize])
	copy(dst, headerMagic[:])
	le.PutUint16(dst[8:], formatVersion)
	le.PutUint16(dst[10:], codingRS)
	le.PutUint32(dst[16:], h.Optional)
	dst[20], dst[21], dst[22], dst[23] = c.Profile.Data, c.Profile.Parity, h.Shard, checksumXXH3
	le.PutUint32(dst[24:], BlockSize)
	le.PutUint32(dst[28:], c.Index)
	copy(dst[32:48], c.Data[:])
	le.PutUint64(dst[48:], uint64(c.Size))
	le.PutUint64(dst[56:], c.Owner.Bucket)
	copy(dst[64:80], c.Owner.Upload[:])
	le.PutUint32(dst[80:], c.Owner.Part)
	le.PutUint16(dst[84:], uint16(len(c.Owner.Key)))
	le.PutUint32(dst[88:], h.ProfileID)
	copy(dst[128:128+MaxKey], c.Owner.Key)
	putSum(dst[headerSize-sumSize:], xxh3.Hash128(dst[:headerSize-sumSize]))
}

// DecodeHeader parses and verifies a header page of 4096 bytes. What does not verify is
// errs.Corrupt; what verifies but is of a newer format is errs.Unsupported.
func DecodeHeader(p []byte) (Header, error) {
	const op = "erasure.DecodeHeader"
	if len(p) != headerSize {
		return Header{}, errs.E(op, errs.Corrupt, "shard header is not one page")
	}
	if !bytes.Equal(p[:8], headerMagic[:]) {
		return Header{}, errs.E(op, errs.Corrupt, "not a shard file")
	}
	if getSum(p[headerSize-sumSize:]) != xxh3.Hash128(p[:headerSize-sumSize]) {
		return Header{}, errs.E(op, errs.Corrupt, "shard header fails its checksum")
	}
	unsupported := func(what string, got any) error {
		return errs.E(op, errs.Unsupported, fmt.Sprintf("shard file with %s %v, unknown to this version", what, got))
	}
	switch {
	case le.Uint16(p[8:]) != formatVersion:
		return Header{}, unsupported("format version", le.Uint16(p[8:]))
	case le.Uint32(p[12:])&^knownMandatory != 0:
		return Header{}, unsupported("mandatory flags", le.Uint32(p[12:]))
	case le.Uint16(p[10:]) != codingRS:
		return Header{}, unsupported("coding", le.Uint16(p[10:]))
	case p[23] != checksumXXH3:
		return Header{}, unsupported("checksum", p[23])
	case le.Uint32(p[24:]) != BlockSize:
		return Header{}, unsupported("block size", le.Uint32(p[24:]))
	case le.Uint16(p[86:]) != 0:
		return Header{}, unsupported("transforms", le.Uint16(p[86:]))
	}
	h := Header{Shard: p[22], Optional: le.Uint32(p[16:]), ProfileID: le.Uint32(p[88:])}
	c := &h.Chunk
	c.Profile = Profile{p[20], p[21]}
	c.Index = le.Uint32(p[28:])
	copy(c.Data[:], p[32:48])
	c.Size = int64(le.Uint64(p[48:]))
	c.Owner.Bucket = le.Uint64(p[56:])
	copy(c.Owner.Upload[:], p[64:80])
	c.Owner.Part = le.Uint32(p[80:])
	keyLen := int(le.Uint16(p[84:]))
	if keyLen > MaxKey || int(h.Shard) >= c.Profile.N() || c.check(op) != nil {
		return Header{}, errs.E(op, errs.Corrupt, "shard header is out of its limits")
	}
	if keyLen > 0 {
		c.Owner.Key = bytes.Clone(p[128 : 128+keyLen])
	}
	// Optional features may use the reserved bytes; without any, they are zero.
	if h.Optional == 0 && !(allZero(p[92:128]) && allZero(p[128+keyLen:headerSize-sumSize])) {
		return Header{}, errs.E(op, errs.Corrupt, "shard header has bytes where zeros belong")
	}
	return h, nil
}

// ReadHeader reads and verifies the header of a shard file.
func ReadHeader(ctx context.Context, src Source) (Header, error) {
	p := make([]byte, headerSize)
	if err := readFull(ctx, src, p, 0); err != nil {
		return Header{}, errs.Wrap("erasure.ReadHeader", err)
	}
	return DecodeHeader(p)
}

// encodeFooter fills dst, which has the length of the footer, from the sums of all blocks, and
// seals it.
func encodeFooter(dst []byte, c Chunk, index int, sums []byte) {
	n := copy(dst, sums)
	clear(dst[n:])
	t := dst[len(dst)-trailerSize:]
	copy(t, trailerMagic[:])
	le.PutUint16(t[8:], formatVersion)
	t[10], t[11], t[12] = c.Profile.Data, c.Profile.Parity, uint8(index)
	le.PutUint32(t[16:], uint32(len(sums)/sumSize))
	le.PutUint32(t[20:], c.Index)
	copy(t[24:40], c.Data[:])
	le.PutUint64(t[40:], uint64(c.Size))
	putSum(t[48:], xxh3.Hash128(dst[:len(dst)-sumSize]))
}

// decodeFooter verifies that p is the footer of shard index of c and returns its table of sums,
// which aliases p. The error is errs.Corrupt.
func decodeFooter(p []byte, c Chunk, index int) ([]byte, error) {
	const op = "erasure.decodeFooter"
	g := geometryOf(c.Profile, c.Size)
	if len(p) != g.footerLen() {
		return nil, errs.E(op, errs.Corrupt, "shard footer has the wrong length")
	}
	t := p[len(p)-trailerSize:]
	if !bytes.Equal(t[:8], trailerMagic[:]) || getSum(t[48:]) != xxh3.Hash128(p[:len(p)-sumSize]) {
		return nil, errs.E(op, errs.Corrupt, "shard footer fails its checksum")
	}
	if v := le.Uint16(t[8:]); v != formatVersion {
		return nil, errs.E(op, errs.Unsupported, fmt.Sprintf("shard footer of version %d, unknown here", v))
	}
	if t[10] != c.Profile.Data || t[11] != c.Profile.Parity || int(t[12]) != index ||
		le.Uint32(t[20:]) != c.Index || DataID(t[24:40]) != c.Data || le.Uint64(t[40:]) != uint64(c.Size) {
		return nil, errs.E(op, errs.Corrupt, "shard footer belongs to another shard")
	}
	n := g.blocks() * sumSize
	if int(le.Uint32(t[16:])) != g.blocks() || !allZero(t[13:16]) || !allZero(p[n:len(p)-trailerSize]) {
		return nil, errs.E(op, errs.Corrupt, "shard footer is malformed")
	}
	return p[:n], nil
}

// blockSum is the checksum of block t, as stored, of a shard.
func blockSum(id ShardID, t int, p []byte) xxh3.Uint128 {
	var b [25]byte
	copy(b[:], id.Data[:])
	le.PutUint32(b[16:], id.Chunk)
	b[20] = id.Index
	le.PutUint32(b[21:], uint32(t))
	return xxh3.Hash128Seed(p, xxh3.Hash(b[:]))
}

func putSum(dst []byte, s xxh3.Uint128) {
	le.PutUint64(dst, s.Lo)
	le.PutUint64(dst[8:], s.Hi)
}

func getSum(p []byte) xxh3.Uint128 { return xxh3.Uint128{Lo: le.Uint64(p), Hi: le.Uint64(p[8:])} }

var zeros [4096]byte

func allZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// readFull reads all of p. A file that ends early is damaged, not unreachable.
func readFull(ctx context.Context, src Source, p []byte, off int64) error {
	n, err := src.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.E("erasure.read", errs.Corrupt, "shard file is too short")
	}
	return err
}
