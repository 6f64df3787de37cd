package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"github.com/ostraka/ostraka/internal/errs"
)

// Pebble reads its MANIFEST up to the first record that does not verify, and takes that for the torn end
// that a crash leaves. What is damaged in the middle would so be cut off in silence, and rows with it.
//
// In the file that the marker names, each record is synced before the next is begun: if one follows that
// verifies, the one before it is damaged. That holds of no other file. One that is being made has its first two
// records synced at once, and the marker names it only then; one from before is not read again.

const (
	manifestMarker = "manifest"
	manifestBlock  = 32 << 10
	manifestHeader = 7 // masked CRC32C of what follows the length (4), length (2), type (1)
)

// checkManifest verifies the MANIFEST that the record store in dir will be opened with. It returns its name, "" if there
// is none. The error is errs.Corrupt where the file is damaged.
func checkManifest(fsys vfs.FS, dir string) (name string, err error) {
	name, err = atomicfs.ReadMarker(fsys, dir, manifestMarker)
	if err != nil || name == "" {
		return "", err
	}
	f, err := fsys.Open(fsys.PathJoin(dir, name), vfs.SequentialReadsOption)
	if err != nil {
		return "", err
	}
	at, err := damagedRecord(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if at >= 0 {
		return "", errs.E("disk.Open", errs.Corrupt, fmt.Sprintf("%s is damaged at %d", name, at))
	}
	return name, nil
}

// The tags of a version edit that come before all others, in this order.
const (
	tagComparer = 1 // length, name
	tagMinLog   = 2 // number
)

// maxEditHead is how much of a version edit holds these tags.
const maxEditHead = 256

// firstLog returns the number of the first log that r, a MANIFEST, still needs: those before it are in tables. As
// Pebble does, it reads up to the first record that does not verify.
func firstLog(r io.Reader) (first uint64, err error) {
	records := record.NewReader(r, 0)
	var head [maxEditHead]byte
	for {
		rec, err := records.Next()
		n := 0
		if err == nil {
			n, err = io.ReadFull(rec, head[:])
		}
		if n > 0 && (err == io.EOF || err == io.ErrUnexpectedEOF) {
			err = nil
		}
		switch {
		case err == io.EOF || record.IsInvalidRecord(err):
			return first, nil
		case err != nil:
			return 0, err
		}
		if log := editLog(head[:n]); log != 0 {
			first = log
		}
	}
}

// editLog returns the number of the first log that the version edit b needs, 0 if it does not say.
func editLog(b []byte) uint64 {
	tag, b := uvarint(b)
	if tag == tagComparer {
		n, rest := uvarint(b)
		if n > uint64(len(rest)) {
			return 0
		}
		tag, b = uvarint(rest[n:])
	}
	if tag != tagMinLog {
		return 0
	}
	log, _ := uvarint(b)
	return log
}

// uvarint returns the number that b begins with, and what follows it; 0 if there is none.
func uvarint(b []byte) (uint64, []byte) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil
	}
	return v, b[n:]
}

// damagedRecord returns where r, a file of records, has a damaged one that another follows; −1 if nowhere.
func damagedRecord(r io.Reader) (int64, error) {
	block := make([]byte, manifestBlock)
	damaged := int64(-1)
	for base := int64(0); ; base += manifestBlock {
		n, err := io.ReadFull(r, block)
		if err == io.EOF {
			return -1, nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return -1, err
		}
		b, off := block[:n], 0
		if damaged < 0 {
			if off = wholeChunks(b); off == len(b) {
				continue
			}
			damaged = base + int64(off)
			off++
		}
		for ; off < len(b); off++ {
			if n, typ := chunk(b, off); n > 0 && typ <= 2 { // whole, or the first of a record
				return damaged, nil
			}
		}
	}
}

// wholeChunks returns where in the block b the first chunk begins that does not verify; its length if none does.
func wholeChunks(b []byte) int {
	for off := 0; off < len(b); {
		if manifestBlock-off < manifestHeader { // too short for a chunk: padding
			break
		}
		n, _ := chunk(b, off)
		if n == 0 {
			return off
		}
		off += n
	}
	return len(b)
}

// chunk returns the length of the valid chunk at off in the block b, with its header, and its type; 0 if there
// is none. No chunk spans two blocks.
func chunk(b []byte, off int) (n int, typ byte) {
	if off+manifestHeader > len(b) {
		return 0, 0
	}
	n = manifestHeader + int(binary.LittleEndian.Uint16(b[off+4:]))
	typ = b[off+6]
	if typ < 1 || typ > 4 || off+n > len(b) || binary.LittleEndian.Uint32(b[off:]) != maskedCRC(b[off+6:off+n]) {
		return 0, 0
	}
	return n, typ
}
