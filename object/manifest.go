package object

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

const (
	manifestMagic   = "OSMF"
	manifestVersion = 1
	maxManifest     = 64 << 20 // bytes; 10,000 parts with every checksum take less than 4 MiB
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifestPart is one part of a completed multipart upload.
type manifestPart struct {
	info PartInfo
	data metadata.Data
}

// encodeManifest appends the manifest of parts, which are in order.
func encodeManifest(parts []manifestPart) []byte {
	b := make([]byte, 0, 16+128*len(parts))
	b = append(b, manifestMagic...)
	b = append(b, manifestVersion)
	b = binary.AppendUvarint(b, uint64(len(parts)))
	var one []byte
	for i := range parts {
		p := &parts[i]
		v := metadata.Version{Kind: metadata.VersionPart, Seq: uint64(p.info.Number), Size: p.info.Size, ETag: p.info.ETag,
			Checksums: p.info.Checksums, Data: &p.data}
		one = v.AppendTo(one[:0])
		b = binary.AppendUvarint(b, uint64(len(one)))
		b = append(b, one...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeManifest parses what encodeManifest wrote; offsets are filled in. The error is errs.Corrupt, or
// errs.Unsupported for a newer format.
func decodeManifest(b []byte) ([]manifestPart, error) {
	const op = "object.decodeManifest"
	corrupt := func(what string) ([]manifestPart, error) { return nil, errs.E(op, errs.Corrupt, "manifest "+what) }
	if len(b) < len(manifestMagic)+1+1+4 || string(b[:4]) != manifestMagic {
		return corrupt("is not one")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return corrupt("fails its checksum")
	}
	if body[4] != manifestVersion {
		return nil, errs.E(op, errs.Unsupported, fmt.Sprintf("manifest of version %d, unknown here", body[4]))
	}
	b = body[5:]
	n, used := binary.Uvarint(b)
	if used <= 0 || n == 0 || n > MaxParts {
		return corrupt("has an impossible number of parts")
	}
	b = b[used:]
	parts := make([]manifestPart, 0, n)
	var off int64
	for range n {
		size, used := binary.Uvarint(b)
		if used <= 0 || size > uint64(len(b)-used) {
			return corrupt("ends within a part")
		}
		var v metadata.Version
		if err := v.Unmarshal(bytes.Clone(b[used : used+int(size)])); err != nil {
			return nil, errs.Wrap(op, err)
		}
		b = b[used+int(size):]
		switch {
		case v.Kind != metadata.VersionPart || v.Data == nil || v.Seq < 1 || v.Seq > MaxParts || v.Size < 0 || v.Size > MaxPutSize || v.Data.Size != v.Size:
			return corrupt("has a malformed part")
		case len(parts) > 0 && int(v.Seq) <= parts[len(parts)-1].info.Number:
			return corrupt("has parts out of order")
		}
		parts = append(parts, manifestPart{data: *v.Data, info: PartInfo{Number: int(v.Seq), Offset: off, Size: v.Size, ETag: v.ETag,
			Checksums: v.Checksums}})
		off += v.Size
	}
	if len(b) != 0 {
		return corrupt("has bytes behind its last part")
	}
	return parts, nil
}

// manifestOf returns the parts of a multipart version. have are inline rows that are at hand already.
func (s *Store) manifestOf(ctx context.Context, op string, p *place, upload metadata.UploadID, d *metadata.Data, have [][]byte) ([]manifestPart, error) {
	if parts, ok := s.manifs.get(d.ID); ok {
		return parts, nil
	}
	b, err := s.readBody(ctx, p, p.upload(upload), d, maxManifest, have)
	if err != nil {
		return nil, errs.Wrap("object."+op, err)
	}
	parts, err := decodeManifest(b)
	if err != nil {
		return nil, errs.Wrap("object."+op, err)
	}
	s.manifs.put(d.ID, parts)
	return parts, nil
}

// Parts lists parts of a multipart object behind part number after; more says that others follow. A
// body that was not uploaded in parts has none.
func (s *Store) Parts(ctx context.Context, bucket, key string, versionID *string, after, limit int) (i Info, parts []PartInfo, more bool, err error) {
	const op = "Parts"
	p, err := s.locate(ctx, op, bucket, key, false)
	if err != nil {
		return Info{}, nil, false, err
	}
	v, view, err := s.lookup(ctx, op, p, versionID, false)
	if err != nil {
		return Info{}, nil, false, err
	}
	i = infoOf(p.bucket, key, v, view.State.Current.Seq == v.Seq)
	if v.Manifest == nil {
		return i, nil, false, nil
	}
	all, err := s.manifestOf(ctx, op, p, v.Upload, v.Manifest, nil)
	if err != nil {
		return Info{}, nil, false, err
	}
	for _, mp := range all {
		if mp.info.Number <= after {
			continue
		}
		if len(parts) >= limit {
			return i, parts, true, nil
		}
		parts = append(parts, mp.info)
	}
	return i, parts, false, nil
}
