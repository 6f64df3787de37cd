package erasure

import (
	"fmt"
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
)

const (
	// InlineOverhead is how many bytes an inline row has besides its payload of ⌈size/k⌉.
	InlineOverhead = 24

	inlineVersion        = 1
	inlineKnownMandatory = 0
)

// EncodeInline is Coders.EncodeInline without a cache of codecs, which costs about a microsecond.
func EncodeInline(p Profile, id DataID, body []byte) ([][]byte, error) {
	return new(Coders).EncodeInline(p, id, body)
}

// DecodeInline is Coders.DecodeInline without a cache of codecs.
func DecodeInline(p Profile, id DataID, size int64, rows [][]byte) (body []byte, damaged []int, err error) {
	return new(Coders).DecodeInline(p, id, size, rows)
}

// RebuildInline is Coders.RebuildInline without a cache of codecs.
func RebuildInline(p Profile, id DataID, size int64, rows [][]byte, missing []int) (map[int][]byte, error) {
	return new(Coders).RebuildInline(p, id, size, rows, missing)
}

// EncodeInline cuts a small body into n rows for the record store. The rows share one allocation
// and do not alias body. The only error is errs.Invalid.
func (c *Coders) EncodeInline(p Profile, id DataID, body []byte) ([][]byte, error) {
	const op = "erasure.EncodeInline"
	if !p.Valid() || len(body) > ChunkSize {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("inline body of %d bytes, profile %s", len(body), p))
	}
	n, k := p.N(), int(p.Data)
	payload := (len(body) + k - 1) / k
	rowLen := InlineOverhead + payload
	mem := make([]byte, n*rowLen)
	rows, shards := make([][]byte, n), make([][]byte, n)
	for j := range rows {
		rows[j] = mem[j*rowLen : (j+1)*rowLen : (j+1)*rowLen]
		shards[j] = rows[j][InlineOverhead:]
		if j < k {
			copy(shards[j], body[min(j*payload, len(body)):])
		}
	}
	if err := c.encode(p, shards); err != nil {
		return nil, errs.Wrap(op, err)
	}
	for j := range rows {
		sealInline(rows[j], p, id, int64(len(body)), j)
	}
	return rows, nil
}

// DecodeInline returns the body from at least k of its n rows, where nil is a row that is missing.
// Rows that do not verify are treated as missing too, and are listed in damaged. With fewer than k good
// rows the error is errs.Corrupt if the damaged ones would have sufficed, else errs.Unavailable: more
// rows may still come.
func (c *Coders) DecodeInline(p Profile, id DataID, size int64, rows [][]byte) (body []byte, damaged []int, err error) {
	const op = "erasure.DecodeInline"
	shards, damaged, err := openInline(op, p, id, size, rows)
	if err != nil {
		return nil, damaged, err
	}
	k := int(p.Data)
	payload := int(size+int64(k)-1) / k
	body = make([]byte, k*payload)
	required := make([]bool, len(shards))
	decode := false
	for j := range k {
		place := body[j*payload : (j+1)*payload : (j+1)*payload]
		if shards[j] != nil {
			copy(place, shards[j])
			continue
		}
		shards[j] = place[:0]
		required[j], decode = true, true
	}
	if decode && payload > 0 {
		if err := c.reconstruct(p, shards, required); err != nil {
			return nil, damaged, errs.Wrap(op, err)
		}
	}
	return body[:size], damaged, nil
}

// RebuildInline computes the rows of the missing indices from at least k others. Errors are those
// of DecodeInline.
func (c *Coders) RebuildInline(p Profile, id DataID, size int64, rows [][]byte, missing []int) (map[int][]byte, error) {
	const op = "erasure.RebuildInline"
	shards, _, err := openInline(op, p, id, size, rows)
	if err != nil {
		return nil, err
	}
	payload := int(size+int64(p.Data)-1) / int(p.Data)
	out := make(map[int][]byte, len(missing))
	required := make([]bool, len(shards))
	decode := false
	for _, j := range missing {
		if j < 0 || j >= len(shards) {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("shard %d of profile %s", j, p))
		}
		row := make([]byte, InlineOverhead+payload)
		out[j] = row
		if shards[j] != nil {
			copy(row[InlineOverhead:], shards[j])
			continue
		}
		shards[j] = row[InlineOverhead:InlineOverhead]
		required[j], decode = true, true
	}
	if decode && payload > 0 {
		if err := c.reconstruct(p, shards, required); err != nil {
			return nil, errs.Wrap(op, err)
		}
	}
	for j, row := range out {
		sealInline(row, p, id, size, j)
	}
	return out, nil
}

// VerifyInline checks that row is row index of the body. The error is errs.Corrupt, or
// errs.Unsupported for a newer format.
func VerifyInline(p Profile, id DataID, size int64, index int, row []byte) error {
	const op = "erasure.VerifyInline"
	if !p.Valid() || size < 0 || index < 0 || index >= p.N() {
		return errs.E(op, errs.Invalid, fmt.Sprintf("row %d of an inline body of %d bytes, profile %s", index, size, p))
	}
	payload := (size + int64(p.Data) - 1) / int64(p.Data)
	if int64(len(row)) != InlineOverhead+payload {
		return errs.E(op, errs.Corrupt, "inline row has the wrong length")
	}
	if getSum(row[8:]) != inlineSum(row, id, size) {
		return errs.E(op, errs.Corrupt, "inline row fails its checksum")
	}
	if row[0] != inlineVersion || row[1]&^inlineKnownMandatory != 0 {
		return errs.E(op, errs.Unsupported, fmt.Sprintf("inline row of version %d, flags %#x, unknown here", row[0], row[1]))
	}
	if int(row[3]) != index || row[4] != p.Data || row[5] != p.Parity || row[6] != 0 || row[7] != 0 {
		return errs.E(op, errs.Corrupt, "inline row belongs to another shard")
	}
	return nil
}

// openInline returns the payloads of the good rows, nil for others, and the indices of damaged ones.
func openInline(op string, p Profile, id DataID, size int64, rows [][]byte) (shards [][]byte, damaged []int, err error) {
	if !p.Valid() || size < 0 || size > ChunkSize || len(rows) != p.N() {
		return nil, nil, errs.E(op, errs.Invalid, fmt.Sprintf("%d rows of an inline body of %d bytes, profile %s", len(rows), size, p))
	}
	shards = make([][]byte, len(rows))
	good := 0
	for j, row := range rows {
		if row == nil {
			continue
		}
		if e := VerifyInline(p, id, size, j, row); e != nil {
			damaged, err = append(damaged, j), e
			continue
		}
		shards[j] = row[InlineOverhead:]
		good++
	}
	if good >= int(p.Data) {
		return shards, slices.Clip(damaged), nil
	}
	kind := errs.Unavailable
	if good+len(damaged) >= int(p.Data) {
		kind = errs.Corrupt
	}
	if err == nil {
		err = fmt.Errorf("%d of %d rows, %d needed", good, len(rows), p.Data)
	}
	return nil, damaged, errs.As(op, kind, err)
}

func sealInline(row []byte, p Profile, id DataID, size int64, index int) {
	clear(row[:InlineOverhead])
	row[0], row[3], row[4], row[5] = inlineVersion, uint8(index), p.Data, p.Parity
	putSum(row[8:], inlineSum(row, id, size))
}

// inlineSum covers the 8 bytes of the head, through the seed, and the payload.
func inlineSum(row []byte, id DataID, size int64) xxh3.Uint128 {
	var b [32]byte
	copy(b[:], id[:])
	le.PutUint64(b[16:], uint64(size))
	copy(b[24:], row[:8])
	return xxh3.Hash128Seed(row[InlineOverhead:], xxh3.Hash(b[:]))
}
