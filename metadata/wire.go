package metadata

import (
	"encoding/binary"
	"encoding/hex"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
)

// optionalField is the first field number that a reader may ignore.
const optionalField = 1000

// Limits of what a decoder accepts. They bound memory and work; every one is far above what the
// rest of the system produces.
const (
	MaxKey        = 1024 // bytes of an object key, as S3 has it
	maxString     = 16 << 10
	maxFields     = 4096     // headers, metadata entries, tags of one version
	maxVersions   = 1 << 20  // version rows in one message
	maxEntries    = 1 << 16  // entries of a scan page
	maxDead       = 4096     // dead data of one state
	maxRing       = 64       // ring entries accepted from the wire
	maxPositions  = 64       // positions of a partition
	maxOpaque     = 64 << 10 // bytes of an opaque field
	maxInline     = 1 << 20  // bytes of an inline shard row
	maxTransforms = 16
)

// Encoding. Fields are written in ascending order of number, zero values are left out, and unknown
// optional fields follow at the end, so the same value always has the same bytes.

func putUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func putBool(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return putUint(b, num, 1)
}

func putFixed(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendFixed64(protowire.AppendTag(b, num, protowire.Fixed64Type), v)
}

func putBytes(b []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func putString(b []byte, num protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func putID(b []byte, num protowire.Number, id [16]byte) []byte {
	if id == [16]byte{} {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), id[:])
}

// putHex writes a string of exactly 2·size lower-case hexadecimal digits as size bytes under packed,
// and any other under plain.
func putHex(b []byte, plain, packed protowire.Number, size int, s string) []byte {
	var raw [64]byte
	if len(s) == 2*size && size <= len(raw) {
		if _, err := hex.Decode(raw[:], []byte(s)); err == nil && hex.EncodeToString(raw[:size]) == s {
			return putBytes(b, packed, raw[:size])
		}
	}
	return putString(b, plain, s)
}

// putBallot writes a ballot as a varint counter and eight bytes of proposer.
func putBallot(b []byte, num protowire.Number, v Ballot) []byte {
	if v.IsZero() {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = append(b, byte(protowire.SizeVarint(v.Counter)+8))
	b = protowire.AppendVarint(b, v.Counter)
	return binary.BigEndian.AppendUint64(b, v.Proposer)
}

// putMsg writes what body appends as one length-prefixed field, empty or not.
func putMsg(b []byte, num protowire.Number, body func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	at := len(b)
	b = body(append(b, 0))
	n := len(b) - at - 1
	if n < 0x80 {
		b[at] = byte(n)
		return b
	}
	size := protowire.SizeVarint(uint64(n))
	for range size - 1 {
		b = append(b, 0)
	}
	copy(b[at+size:], b[at+1:at+1+n])
	protowire.AppendVarint(b[at:at:at+size], uint64(n))
	return b
}

// Decoding.

// field is one decoded field: u for varints and fixed, b for bytes.
type field struct {
	num protowire.Number
	typ protowire.Type
	u   uint64
	b   []byte
	err error // the first misuse: wrong wire type or a limit exceeded
}

// fields are for decode: known keeps none of them.
var fields = sync.Pool{New: func() any { return new(field) }}

func corrupt(msg string) error { return errs.E("metadata.decode", errs.Corrupt, msg) }

// decode calls known for each field of b. known returns false for a number that it does not know:
// below optionalField that is refused, else the field is returned in extra byte for byte.
func decode(b []byte, known func(f *field) bool) (extra []byte, err error) {
	f := fields.Get().(*field)
	defer func() {
		*f = field{}
		fields.Put(f)
	}()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, corrupt("malformed tag")
		}
		rest := b[n:]
		var m int
		switch typ {
		case protowire.VarintType:
			f.u, m = protowire.ConsumeVarint(rest)
		case protowire.Fixed64Type:
			f.u, m = protowire.ConsumeFixed64(rest)
		case protowire.BytesType:
			f.b, m = protowire.ConsumeBytes(rest)
		case protowire.Fixed32Type:
			_, m = protowire.ConsumeFixed32(rest)
		default:
			return nil, corrupt("unknown wire type")
		}
		if m < 0 {
			return nil, corrupt("malformed field")
		}
		f.num, f.typ, f.err = num, typ, nil
		ok := known(f)
		switch {
		case f.err != nil:
			return nil, f.err
		case !ok && num < optionalField:
			return nil, errs.E("metadata.decode", errs.Unsupported, "a field that this version does not know")
		case !ok:
			if len(extra)+n+m > maxOpaque {
				return nil, corrupt("too many optional fields")
			}
			extra = append(extra, b[:n+m]...)
		}
		b = rest[m:]
	}
	return extra, nil
}

func (f *field) fail(msg string) {
	if f.err == nil {
		f.err = corrupt(msg)
	}
}

func (f *field) want(t protowire.Type) bool {
	if f.typ != t {
		f.fail("unexpected wire type")
	}
	return f.typ == t
}

func (f *field) uint() uint64 {
	if !f.want(protowire.VarintType) {
		return 0
	}
	return f.u
}

func (f *field) uintMax(limit uint64) uint64 {
	v := f.uint()
	if v > limit {
		f.fail("number out of range")
	}
	return v
}

func (f *field) u8() uint8   { return uint8(f.uintMax(0xff)) }
func (f *field) u16() uint16 { return uint16(f.uintMax(0xffff)) }
func (f *field) u32() uint32 { return uint32(f.uintMax(0xffffffff)) }
func (f *field) i63() int64  { return int64(f.uintMax(1<<63 - 1)) }
func (f *field) bool() bool  { return f.uintMax(1) == 1 }

func (f *field) fixed() uint64 {
	if !f.want(protowire.Fixed64Type) {
		return 0
	}
	return f.u
}

// view returns the bytes themselves, still part of the input.
func (f *field) view(limit int) []byte {
	if !f.want(protowire.BytesType) {
		return nil
	}
	if len(f.b) > limit {
		f.fail("field too long")
		return nil
	}
	return f.b
}

// bytes returns a copy.
func (f *field) bytes(limit int) []byte {
	v := f.view(limit)
	if len(v) == 0 {
		return nil
	}
	return append(make([]byte, 0, len(v)), v...)
}

func (f *field) string(limit int) string { return string(f.view(limit)) }

func (f *field) hex(size int) string {
	v := f.view(size)
	if len(v) != size {
		f.fail("id of wrong length")
	}
	return hex.EncodeToString(v)
}

func (f *field) id() (id [16]byte) {
	if v := f.view(16); copy(id[:], v) != 16 {
		f.fail("id of wrong length")
	}
	return id
}

func (f *field) ballot() (v Ballot) {
	b := f.view(18)
	c, n := protowire.ConsumeVarint(b)
	if n < 0 || len(b) != n+8 {
		f.fail("malformed ballot")
		return Ballot{}
	}
	return Ballot{Counter: c, Proposer: binary.BigEndian.Uint64(b[n:])}
}

// sub decodes a nested message.
func (f *field) sub(parse func([]byte) error) {
	if !f.want(protowire.BytesType) {
		return
	}
	if err := parse(f.b); err != nil && f.err == nil {
		f.err = err
	}
}

// room fails when a list is at its limit.
func (f *field) room(have, limit int) bool {
	if have >= limit {
		f.fail("list too long")
	}
	return have < limit
}
