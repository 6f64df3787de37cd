package metadata

import (
	"bytes"
	"encoding/binary"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// Namespaces of the record store; the package documentation draws the keys. 'c' belongs to the
// control plane.
const (
	nsHead      = 'a'
	nsVersion   = 'b'
	nsUnsettled = 'd'
	nsRepair    = 'e'
	nsFence     = 'f'
	nsGarbage   = 'g'
	nsCeiling   = 'h'
	nsFloor     = 'i'
	nsDigest    = 'j'
	nsEpoch     = 'k'
)

// appendEscaped appends key so that escaped keys order as the keys do, and none is a prefix of
// another: a zero byte becomes 00 FF, and 00 01 ends the key.
func appendEscaped(b, key []byte) []byte {
	for {
		i := bytes.IndexByte(key, 0)
		if i < 0 {
			return append(append(b, key...), 0x00, 0x01)
		}
		b = append(append(b, key[:i]...), 0x00, 0xff)
		key = key[i+1:]
	}
}

// cutEscaped appends to key the key that b begins with, and returns what follows it.
func cutEscaped(key, b []byte) (_, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 >= len(b) {
			return nil, nil, false
		}
		key = append(key, b[:i]...)
		switch b[i+1] {
		case 0x01:
			return key, b[i+2:], true
		case 0xff:
			key = append(key, 0)
		default:
			return nil, nil, false
		}
		b = b[i+2:]
	}
}

// appendAddress appends kind, bucket, key and sub-address.
func appendAddress(b []byte, a *Address) []byte {
	b = append(b, byte(a.Kind))
	b = binary.BigEndian.AppendUint64(b, a.Bucket)
	b = appendEscaped(b, a.Key)
	if a.Kind != KindObject {
		b = append(b, a.Upload[:]...)
	}
	if a.Kind == KindPart {
		b = binary.BigEndian.AppendUint32(b, a.Part)
	}
	return b
}

// cutAddress is the inverse of appendAddress.
func cutAddress(b []byte) (a Address, rest []byte, err error) {
	a, rest, _, err = cutAddressTo(nil, b)
	return a, rest, err
}

// cutAddressTo is cutAddress with the key appended to mem.
func cutAddressTo(mem, b []byte) (a Address, rest, _ []byte, err error) {
	fail := func() (Address, []byte, []byte, error) {
		return Address{}, nil, mem, errs.E("metadata.cutAddress", errs.Corrupt, "malformed key in the record store")
	}
	if len(b) < 9 {
		return fail()
	}
	a.Kind, a.Bucket = RegisterKind(b[0]), binary.BigEndian.Uint64(b[1:])
	all, b, ok := cutEscaped(mem, b[9:])
	if !ok {
		return fail()
	}
	a.Key = all[len(mem):len(all):len(all)]
	if a.Kind != KindObject {
		if len(b) < 16 {
			return fail()
		}
		b = b[copy(a.Upload[:], b):]
	}
	if a.Kind == KindPart {
		if len(b) < 4 {
			return fail()
		}
		a.Part, b = binary.BigEndian.Uint32(b), b[4:]
	}
	if a.Check() != nil {
		return fail()
	}
	return a, b, all, nil
}

// addressKey returns the key of a's row in one namespace.
func addressKey(ns byte, a *Address) []byte {
	return appendAddress(append(make([]byte, 0, 40+len(a.Key)), ns), a)
}

func headKey(a *Address) []byte { return addressKey(nsHead, a) }

// versionKey orders the versions of a register newest first.
func versionKey(a *Address, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(addressKey(nsVersion, a), ^seq)
}

// versionSpan bounds the version rows with Seq < below; no sequence reaches ^0.
func versionSpan(a *Address, below uint64) (lower, upper []byte) {
	base := addressKey(nsVersion, a)
	upper = successor(base)
	if below == 0 {
		return upper, upper
	}
	return binary.BigEndian.AppendUint64(bytes.Clone(base), ^below+1), upper
}

// successor returns the first key behind all that begin with b, nil if there is none.
func successor(b []byte) []byte {
	b = bytes.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}

// bucketKey begins all heads of one kind in one bucket.
func bucketKey(kind RegisterKind, bucket uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{nsHead, byte(kind)}, bucket)
}

// prefixKey begins all heads whose key begins with prefix.
func prefixKey(kind RegisterKind, bucket uint64, prefix []byte) []byte {
	b := appendEscaped(bucketKey(kind, bucket), prefix)
	return b[:len(b)-2]
}

func fenceKey(bucket uint64) []byte { return binary.BigEndian.AppendUint64([]byte{nsFence}, bucket) }

func floorKey(partition uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{nsFloor}, partition)
}

func ceilingKey() []byte { return []byte{nsCeiling} }

func digestKey(slice uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{nsDigest}, slice)
}

// digestMarker is there once the digests are complete.
func digestMarker() []byte { return []byte{nsDigest} }

func epochKey(partition uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{nsEpoch}, partition)
}

// garbageKey orders garbage by the time at which it became so.
func garbageKey(at int64, id erasure.DataID) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{nsGarbage}, uint64(at)), id[:]...)
}
