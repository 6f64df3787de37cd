package checksum

import (
	"encoding/binary"
	"hash"
	"hash/crc32"

	"github.com/minio/crc64nvme"

	"github.com/ostraka/ostraka/internal/errs"
)

// Part is the raw sum and the length in bytes of one part of a body.
type Part struct {
	Sum    []byte
	Length int64
}

// Combine returns the raw sum of the parts' concatenation. Only the CRCs allow it (those that
// permit FullObject); any other algorithm, a sum of the wrong length or a negative length is
// errs.Invalid. No part at all gives the sum of an empty body.
//
// A CRC is a remainder of polynomials over GF(2), so appending n bytes multiplies it by x^8n, and
// the sums add: crc(A·B) = crc(A)·x^(8·len B) + crc(B). The inversions before and after, which
// both CRC-32s and CRC-64/NVME have, cancel out.
func (a Algorithm) Combine(parts []Part) ([]byte, error) {
	f, ok := fields[a]
	if !ok {
		return nil, errs.E("checksum.Combine", errs.Invalid, "this checksum algorithm has no full object type")
	}
	var crc uint64
	for _, p := range parts {
		if len(p.Sum) != a.Size() || p.Length < 0 {
			return nil, errs.E("checksum.Combine", errs.Invalid, "checksum of a part is invalid")
		}
		crc = f.mul(crc, f.power(uint64(p.Length))) ^ f.load(p.Sum)
	}
	return f.store(crc), nil
}

// field is arithmetic modulo the polynomial of one CRC, in the reflected form: the highest bit is x^0.
type field struct {
	poly uint64
	top  uint64 // the bit of x^0
}

var fields = map[Algorithm]field{
	CRC32:     {uint64(crc32.IEEE), 1 << 31},
	CRC32C:    {uint64(crc32.Castagnoli), 1 << 31},
	CRC64NVME: {crc64nvme.NVME, 1 << 63},
}

// timesX returns a·x.
func (f field) timesX(a uint64) uint64 {
	if a&1 != 0 {
		return a>>1 ^ f.poly
	}
	return a >> 1
}

// mul returns a·b.
func (f field) mul(a, b uint64) uint64 {
	var p uint64
	for m := f.top; m != 0 && a != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
			a &^= m
		}
		b = f.timesX(b)
	}
	return p
}

// power returns x^(8n), by squaring.
func (f field) power(n uint64) uint64 {
	result, base := f.top, f.top>>8
	for ; n != 0; n >>= 1 {
		if n&1 != 0 {
			result = f.mul(result, base)
		}
		base = f.mul(base, base)
	}
	return result
}

func (f field) load(sum []byte) uint64 {
	if f.top == 1<<31 {
		return uint64(binary.BigEndian.Uint32(sum))
	}
	return binary.BigEndian.Uint64(sum)
}

func (f field) store(crc uint64) []byte {
	if f.top == 1<<31 {
		return binary.BigEndian.AppendUint32(nil, uint32(crc))
	}
	return binary.BigEndian.AppendUint64(nil, crc)
}

// Composer computes a COMPOSITE sum: the sum of the parts' raw sums, in order of part number.
// It is not safe for concurrent use.
type Composer struct {
	a Algorithm
	h hash.Hash
	n int
}

// NewComposer returns an empty composer; an algorithm that does not permit Composite is errs.Invalid.
func NewComposer(a Algorithm) (*Composer, error) {
	if !a.Permits(Composite) {
		return nil, errs.E("checksum.NewComposer", errs.Invalid, "this checksum algorithm has no composite type")
	}
	return &Composer{a: a, h: a.New()}, nil
}

// Add appends the raw sum of the next part.
func (c *Composer) Add(sum []byte) error {
	if len(sum) != c.a.Size() {
		return errs.E("checksum.Add", errs.Invalid, "checksum of a part is invalid")
	}
	c.h.Write(sum) //nolint:errcheck // a hash never fails
	c.n++
	return nil
}

// Sum returns the composite raw sum and the number of parts so far.
func (c *Composer) Sum() (sum []byte, parts int) { return c.h.Sum(nil), c.n }
