package disk

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
)

// Pebble reads its MANIFEST up to the first record that does not verify, and takes that for the torn end
// that a crash leaves. What is damaged in the middle would so be cut off in silence, and rows with it. Each
// record is synced before the next is begun: if one follows that verifies, the one before it is damaged.

const (
	manifestBlock  = 32 << 10
	manifestHeader = 7       // masked CRC32C of what follows the length (4), length (2), type (1)
	maxManifest    = 1 << 30 // beyond, it is not looked at
)

// checkManifests verifies the MANIFEST files of the record store in dir. The error is errs.Corrupt.
func checkManifests(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "MANIFEST-") {
			continue
		}
		b, err := vfsx.ReadFile(fsys, fsys.PathJoin(dir, name), maxManifest)
		if err != nil {
			return err
		}
		if at := damagedRecord(b); at >= 0 {
			return errs.E("disk.Open", errs.Corrupt, fmt.Sprintf("%s is damaged at %d", name, at))
		}
	}
	return nil
}

// chunk returns the length of the valid chunk at off, with its header, and its type; 0 if there is none.
func chunk(b []byte, off int) (n int, typ byte) {
	if off+manifestHeader > len(b) || manifestBlock-off%manifestBlock < manifestHeader {
		return 0, 0
	}
	n = manifestHeader + int(binary.LittleEndian.Uint16(b[off+4:]))
	typ = b[off+6]
	if typ < 1 || typ > 4 || off+n > len(b) || off%manifestBlock+n > manifestBlock || binary.LittleEndian.Uint32(b[off:]) != maskedCRC(b[off+6:off+n]) {
		return 0, 0
	}
	return n, typ
}

// damagedRecord returns where b, a file of records, has a damaged one that another follows; −1 if nowhere.
func damagedRecord(b []byte) int {
	off := 0
	for off < len(b) {
		if left := manifestBlock - off%manifestBlock; left < manifestHeader {
			off += left
			continue
		}
		n, _ := chunk(b, off)
		if n == 0 {
			break
		}
		off += n
	}
	for next := off + 1; next < len(b); next++ {
		if n, typ := chunk(b, next); n > 0 && typ <= 2 { // whole, or the first of a record
			return off
		}
	}
	return -1
}
