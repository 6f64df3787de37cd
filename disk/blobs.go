package disk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
)

// blobFS verifies blob files below Pebble, which panics on its own goroutines, and so ends the process, when
// it meets damage in one: it reports the damage with a description of the file that it does not have
// (DB.reportCorruption of Pebble 2.1). So damage is found here first, and reported, and Pebble is answered with an
// error that it does not take for corruption.
type blobFS struct {
	vfs.FS
	damaged func(name string, err error)
}

// The footer of a blob file: masked CRC32C of the rest (4), offset and length of the index block (16),
// type of the blocks' checksums (1), format (1), number of the file (8), magic (8).
const (
	blobSuffix = ".blob"
	blobFooter = 38
	blobFormat = 1
	blobMagic  = "\xf0\x9f\xaa\xb3\xf0\x9f\xa6\x80"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// maskedCRC is the CRC32C of b as Pebble stores it.
func maskedCRC(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}

// decodeBlobFooter returns the type of the checksums of a blob file's blocks.
func decodeBlobFooter(b []byte) (block.ChecksumType, error) {
	const op = "disk.blob"
	switch {
	case len(b) != blobFooter || binary.LittleEndian.Uint32(b) != maskedCRC(b[4:]):
		return 0, errs.E(op, errs.Corrupt, "the footer of a blob file fails its checksum")
	case string(b[30:]) != blobMagic || b[21] != blobFormat:
		return 0, errs.E(op, errs.Corrupt, "a blob file of an unknown format")
	}
	return block.ChecksumType(b[20]), nil
}

// Open implements vfs.FS.
func (b blobFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := b.FS.Open(name, opts...)
	if err != nil || !strings.HasSuffix(name, blobSuffix) {
		return f, err
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	footer := make([]byte, blobFooter)
	at := fi.Size() - blobFooter
	if at < 0 {
		err = errs.E("disk.blob", errs.Corrupt, "a blob file is too short")
	} else if _, err = f.ReadAt(footer, at); err != nil {
		_ = f.Close()
		return nil, err
	}
	var sum block.ChecksumType
	if err == nil {
		sum, err = decodeBlobFooter(footer)
	}
	if err != nil {
		_ = f.Close()
		b.damaged(name, err)
		return nil, err
	}
	return &blobFile{File: f, fs: b, name: name, end: at, sum: sum}, nil
}

// blobFile is a blob file open for reading.
type blobFile struct {
	vfs.File
	fs   blobFS
	name string
	end  int64 // of the blocks
	sum  block.ChecksumType
}

// ReadAt implements vfs.File. Pebble reads whole blocks, each with its trailer.
func (f *blobFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err != nil || n < len(p) || off+int64(n) > f.end || n <= block.TrailerLen {
		return n, err
	}
	h := block.Handle{Offset: uint64(off), Length: uint64(n - block.TrailerLen)}
	if cause := block.ValidateChecksum(f.sum, p, h); cause != nil {
		err := errs.E("disk.blob", errs.Corrupt, fmt.Sprintf("a block of a blob file fails its checksum: %v", cause))
		f.fs.damaged(f.name, err)
		return 0, err
	}
	return n, nil
}
