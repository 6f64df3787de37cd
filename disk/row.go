package disk

import (
	"bytes"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// nsShard is the first byte of the keys of this package in the record store.
const nsShard = 's'

// shardKeyLen is the length of a shard row's key: namespace, data id, chunk (big endian).
const shardKeyLen = 1 + 16 + 4

func shardKey(id erasure.DataID, chunk uint32) []byte {
	b := make([]byte, 0, shardKeyLen)
	b = append(b, nsShard)
	b = append(b, id[:]...)
	return binary.BigEndian.AppendUint32(b, chunk)
}

func parseShardKey(b []byte) (id erasure.DataID, chunk uint32, ok bool) {
	if len(b) != shardKeyLen || b[0] != nsShard {
		return id, 0, false
	}
	copy(id[:], b[1:17])
	return id, binary.BigEndian.Uint32(b[17:]), true
}

// ShardRow is the row that says that a shard is here, durable and whole. Its existence is what
// the register counts.
type ShardRow struct {
	ID     erasure.ShardID
	Inline []byte // the inline row itself; nil: a file
	Size   int64  // bytes stored
	// Address is the register that the data belongs to, as far as it is known: that of the Seal
	// for chunk 0, that of the owner in the file for later chunks.
	Address metadata.Address
	Sealed  time.Time // by this drive's clock
	// Profile and BodySize describe the body of an inline row, so that it can be verified alone.
	Profile  erasure.Profile
	BodySize int64
}

// Fields of a shard row. Numbers below 1000 are mandatory to understand.
const (
	rowIndex    = 1
	rowSize     = 2
	rowSealed   = 3
	rowKind     = 4
	rowBucket   = 5
	rowKey      = 6
	rowUpload   = 7
	rowPart     = 8
	rowData     = 9
	rowParity   = 10
	rowBodySize = 11
	rowInline   = 12
)

func (r *ShardRow) appendTo(b []byte) []byte {
	num := func(field protowire.Number, v uint64) {
		if v != 0 {
			b = protowire.AppendTag(b, field, protowire.VarintType)
			b = protowire.AppendVarint(b, v)
		}
	}
	raw := func(field protowire.Number, v []byte) {
		b = protowire.AppendTag(b, field, protowire.BytesType)
		b = protowire.AppendBytes(b, v)
	}
	b = protowire.AppendTag(b, rowIndex, protowire.VarintType) // always there: a value is never empty
	b = protowire.AppendVarint(b, uint64(r.ID.Index))
	num(rowSize, uint64(r.Size))
	if !r.Sealed.IsZero() { // whose nanoseconds are not defined
		num(rowSealed, uint64(r.Sealed.UnixNano()))
	}
	num(rowKind, uint64(r.Address.Kind))
	num(rowBucket, r.Address.Bucket)
	if len(r.Address.Key) > 0 {
		raw(rowKey, r.Address.Key)
	}
	if r.Address.Upload != (metadata.UploadID{}) {
		raw(rowUpload, r.Address.Upload[:])
	}
	num(rowPart, uint64(r.Address.Part))
	num(rowData, uint64(r.Profile.Data))
	num(rowParity, uint64(r.Profile.Parity))
	num(rowBodySize, uint64(r.BodySize))
	if r.Inline != nil {
		raw(rowInline, r.Inline)
	}
	return b
}

// unmarshal reads a row; ID.Data and ID.Chunk come from the key. The result shares no memory with b.
func (r *ShardRow) unmarshal(id erasure.DataID, chunk uint32, b []byte) error {
	*r = ShardRow{ID: erasure.ShardID{Data: id, Chunk: chunk}}
	bad := errs.E("disk.ShardRow", errs.Corrupt, "shard row does not parse")
	var last protowire.Number
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return bad
		}
		b = b[n:]
		if field <= last && field < 1000 {
			return bad // fields stand in order, each once, so that what parses prints back
		}
		last = field
		var v uint64
		var raw []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			raw, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, typ, b)
		}
		if n < 0 {
			return bad
		}
		b = b[n:]
		wantRaw := field == rowKey || field == rowUpload || field == rowInline
		if field < 1000 && (wantRaw != (typ == protowire.BytesType) || !wantRaw && typ != protowire.VarintType) {
			return bad
		}
		switch field {
		case rowIndex:
			r.ID.Index = uint8(v)
		case rowSize:
			r.Size = int64(v)
		case rowSealed:
			if v != 0 { // 0 is not written
				r.Sealed = time.Unix(0, int64(v))
			}
		case rowKind:
			r.Address.Kind = metadata.RegisterKind(v)
		case rowBucket:
			r.Address.Bucket = v
		case rowKey:
			r.Address.Key = bytes.Clone(raw)
		case rowUpload:
			if len(raw) != len(r.Address.Upload) {
				return bad
			}
			copy(r.Address.Upload[:], raw)
		case rowPart:
			r.Address.Part = uint32(v)
		case rowData:
			r.Profile.Data = uint8(v)
		case rowParity:
			r.Profile.Parity = uint8(v)
		case rowBodySize:
			r.BodySize = int64(v)
		case rowInline:
			r.Inline = append([]byte{}, raw...)
		default:
			if field < 1000 {
				return errs.E("disk.ShardRow", errs.Unsupported, "shard row has a field that this build does not know")
			}
		}
	}
	if last == 0 {
		return bad
	}
	return nil
}
