// Package checksum owns the checksums that S3 clients send, ask for and get back: their names,
// their headers, their text form, how the sum of a whole object follows from those of its parts,
// and which algorithm allows which kind of sum.
//
// Invariants: the numbers of Algorithm and Type are stored in records and never change meaning; a
// raw sum is big-endian and exactly Algorithm.Size bytes long; nothing here reads or writes bodies.
//
// Text forms, as in the x-amz-checksum-* headers:
//
//	base64(sum)        of a body, a part, or a FULL_OBJECT sum of parts
//	base64(sum)-N      COMPOSITE: sum of the N parts' raw sums, concatenated in order of part number
//
// Source: Amazon S3 User Guide, "Checking object integrity".
package checksum

import (
	"crypto/md5"  //nolint:gosec // S3 defines it as an integrity check, not as protection.
	"crypto/sha1" //nolint:gosec // as above
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/minio/crc64nvme"
	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
)

// Algorithm is one of S3's checksum algorithms. The numbers are part of the disk format.
type Algorithm uint8

// The algorithms.
const (
	None      Algorithm = 0
	CRC32     Algorithm = 1
	CRC32C    Algorithm = 2
	SHA1      Algorithm = 3
	SHA256    Algorithm = 4
	CRC64NVME Algorithm = 5
	SHA512    Algorithm = 6
	MD5       Algorithm = 7
	XXHASH64  Algorithm = 8
	XXHASH3   Algorithm = 9
	XXHASH128 Algorithm = 10
)

// Default is what S3 computes when the client names no algorithm.
const Default = CRC64NVME

// HeaderPrefix begins the name of every header or trailer that carries a checksum. Note that
// x-amz-checksum-algorithm, -type and -mode begin with it too; FromHeader knows the difference.
const HeaderPrefix = "x-amz-checksum-"

// Type says what a multipart object's checksum covers. The numbers are part of the disk format.
type Type uint8

// The types. A body stored by one PUT has a FullObject sum whatever the algorithm.
const (
	Unset      Type = 0
	Composite  Type = 1
	FullObject Type = 2
)

type info struct {
	name string
	size int
	// multipart types that S3 documents for the algorithm; the first is the default
	types []Type
}

var infos = [...]info{
	CRC32:     {"CRC32", 4, []Type{Composite, FullObject}},
	CRC32C:    {"CRC32C", 4, []Type{Composite, FullObject}},
	SHA1:      {"SHA1", sha1.Size, []Type{Composite}},
	SHA256:    {"SHA256", sha256.Size, []Type{Composite}},
	CRC64NVME: {"CRC64NVME", 8, []Type{FullObject}},
	SHA512:    {"SHA512", sha512.Size, []Type{Composite}},
	MD5:       {"MD5", md5.Size, []Type{Composite}},
	XXHASH64:  {"XXHASH64", 8, []Type{Composite}},
	XXHASH3:   {"XXHASH3", 8, []Type{Composite}},
	XXHASH128: {"XXHASH128", 16, []Type{Composite}},
}

// Algorithms returns every algorithm, in order of number.
func Algorithms() []Algorithm {
	out := make([]Algorithm, 0, len(infos)-1)
	for a := CRC32; int(a) < len(infos); a++ {
		out = append(out, a)
	}
	return out
}

// Parse returns the algorithm with S3's name for it, such as "CRC32C", in any case: SDKs send both.
func Parse(name string) (Algorithm, error) {
	for a := CRC32; int(a) < len(infos); a++ {
		if strings.EqualFold(name, infos[a].name) {
			return a, nil
		}
	}
	return None, errs.E("checksum.Parse", errs.Invalid, "unknown checksum algorithm")
}

// FromHeader returns the algorithm whose value a header or trailer of this name carries.
func FromHeader(name string) (Algorithm, bool) {
	if len(name) <= len(HeaderPrefix) || !strings.EqualFold(name[:len(HeaderPrefix)], HeaderPrefix) {
		return None, false
	}
	a, err := Parse(name[len(HeaderPrefix):])
	return a, err == nil
}

// Valid reports whether a is an algorithm; None is not.
func (a Algorithm) Valid() bool { return a != None && int(a) < len(infos) }

// String returns S3's name for a, "" for None and for numbers that this build does not know.
func (a Algorithm) String() string {
	if !a.Valid() {
		return ""
	}
	return infos[a].name
}

// Header returns the lower case name of the header, and of the trailer, that carries a's value.
func (a Algorithm) Header() string {
	if !a.Valid() {
		return ""
	}
	return HeaderPrefix + strings.ToLower(infos[a].name)
}

// Size returns the length of a raw sum in bytes, 0 for what is not Valid.
func (a Algorithm) Size() int {
	if !a.Valid() {
		return 0
	}
	return infos[a].size
}

// New returns a fresh hash whose Sum is the raw, big-endian sum. It returns nil for what is not Valid.
func (a Algorithm) New() hash.Hash {
	switch a {
	case CRC32:
		return crc32.NewIEEE()
	case CRC32C:
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case SHA1:
		return sha1.New() //nolint:gosec // see the import
	case SHA256:
		return sha256.New()
	case CRC64NVME:
		return crc64nvme.New()
	case SHA512:
		return sha512.New()
	case MD5:
		return md5.New() //nolint:gosec // see the import
	case XXHASH64:
		return xxhash.New()
	case XXHASH3:
		return xxh3.New()
	case XXHASH128:
		return xxh128{xxh3.New()}
	}
	return nil
}

// Sum returns the raw sum of data.
func (a Algorithm) Sum(data []byte) []byte {
	h := a.New()
	if h == nil {
		return nil
	}
	h.Write(data) //nolint:errcheck // a hash never fails
	return h.Sum(nil)
}

// xxh128 gives xxh3's hasher the 16 byte, big-endian sum.
type xxh128 struct{ *xxh3.Hasher }

func (h xxh128) Size() int { return 16 }

func (h xxh128) Sum(b []byte) []byte {
	s := h.Sum128().Bytes()
	return append(b, s[:]...)
}

// Encode returns the text form of a raw sum of one body.
func (a Algorithm) Encode(sum []byte) string { return base64.StdEncoding.EncodeToString(sum) }

// Decode returns the raw sum of its text form. It accepts only canonical base64 of exactly Size
// bytes; anything else is errs.Invalid.
func (a Algorithm) Decode(text string) ([]byte, error) {
	if !a.Valid() {
		return nil, errs.E("checksum.Decode", errs.Invalid, "unknown checksum algorithm")
	}
	if len(text) != base64.StdEncoding.EncodedLen(a.Size()) || strings.ContainsAny(text, "\r\n") {
		return nil, errs.E("checksum.Decode", errs.Invalid, "value for "+a.Header()+" header is invalid")
	}
	sum, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(sum) != a.Size() {
		return nil, errs.E("checksum.Decode", errs.Invalid, "value for "+a.Header()+" header is invalid")
	}
	return sum, nil
}

// MaxParts is the largest N of a composite value: S3's limit of parts.
const MaxParts = 10000

// EncodeComposite returns the text form of a COMPOSITE sum over n parts.
func (a Algorithm) EncodeComposite(sum []byte, n int) string {
	return a.Encode(sum) + "-" + strconv.Itoa(n)
}

// DecodeValue parses either text form. parts is 0 where the text has no "-N".
func (a Algorithm) DecodeValue(text string) (sum []byte, parts int, err error) {
	// Standard base64 has no '-', so the first one separates.
	b64, n, composite := strings.Cut(text, "-")
	if composite {
		parts, err = strconv.Atoi(n)
		if err != nil || parts < 1 || parts > MaxParts || strconv.Itoa(parts) != n {
			return nil, 0, errs.E("checksum.DecodeValue", errs.Invalid, "number of parts in a checksum is invalid")
		}
	}
	if sum, err = a.Decode(b64); err != nil {
		return nil, 0, err
	}
	return sum, parts, nil
}

// ParseType returns the type with S3's name for it; the names are upper case only.
func ParseType(name string) (Type, error) {
	switch name {
	case "COMPOSITE":
		return Composite, nil
	case "FULL_OBJECT":
		return FullObject, nil
	}
	return Unset, errs.E("checksum.ParseType", errs.Invalid, "unknown checksum type")
}

// String returns S3's name for t, "" for Unset.
func (t Type) String() string {
	switch t {
	case Composite:
		return "COMPOSITE"
	case FullObject:
		return "FULL_OBJECT"
	}
	return ""
}

// Permits reports whether S3 allows a multipart upload with algorithm a and type t.
func (a Algorithm) Permits(t Type) bool {
	if !a.Valid() {
		return false
	}
	for _, x := range infos[a].types {
		if x == t {
			return true
		}
	}
	return false
}

// DefaultType returns the type of a multipart upload that names a and no type.
func (a Algorithm) DefaultType() Type {
	if !a.Valid() {
		return Unset
	}
	return infos[a].types[0]
}
