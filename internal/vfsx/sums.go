package vfsx

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Sum says of a file that only grows what it began with when it was last synced.
type Sum struct {
	Name   string // without its directory
	Length int64  // of the bytes that were synced
	CRC    uint32 // CRC-32C of these bytes

	seq uint64 // the higher, the later the file was first synced; 0: no sum
}

// Sums keeps a Sum of each of the logs and MANIFESTs in a directory, in one small file beside them: what a log ends with
// can so be told from what a crash left of it.
//
// A sum is written only after the file was synced to the length that it gives, and the directory after the file was
// made. It is never synced itself. So it never claims what is not durable, whatever a power cut leaves of it: an older
// sum of the file, which is as true, or none. After the end of the process alone, however sudden, it is exact.
//
// The file has 64 slots of 64 bytes, each in a sector, and a slot that is torn counts as empty (integers little-endian):
//
//	0  CRC-32C of the rest of the slot (4)
//	4  version, 1 (1); length of the name (1); 0 (2)
//	8  sequence number (8)
//	16 length (8)
//	24 CRC-32C of that many bytes of the file (4)
//	28 name (36), padded with 0
//
// A new file takes the slot with the lowest sequence number whose file is not open. There are far more slots than Pebble
// has files that it still needs, all of them late.
type Sums struct {
	dir    string
	failed func(error)

	// mu guards the fields below. It is held while a slot is written.
	mu     sync.Mutex
	f      vfs.File // nil: closed or given up
	slots  [sumSlots]Sum
	seq    uint64             // the highest
	births uint64             // files that were begun
	open   map[*summed]uint64 // and which of them they were
	buf    [sumSlot]byte
}

const (
	sumSlots   = 64
	sumSlot    = 64
	sumVersion = 1
	sumName    = sumSlot - 28
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// isSummed reports whether the file base, a name without its directory, is a log or a MANIFEST: what Pebble only
// appends to, and reads up to the first record that it takes for torn.
func isSummed(base string) bool {
	return len(base) <= sumName && (strings.HasSuffix(base, ".log") || strings.HasPrefix(base, "MANIFEST-"))
}

// ReadSums returns the sums in the file name; none if there is no such file.
func ReadSums(fsys vfs.FS, name string) ([]Sum, error) {
	b, err := ReadFile(fsys, name, 1<<20)
	if err != nil {
		if IsNotExist(err) {
			return nil, nil
		}
		return nil, err
	}
	var list []Sum
	for i := 0; i < sumSlots && (i+1)*sumSlot <= len(b); i++ {
		if s := decodeSum(b[i*sumSlot : (i+1)*sumSlot]); s.seq > 0 {
			list = append(list, s)
		}
	}
	return list, nil
}

// OpenSums begins to keep sums in the file name, beside those of before, which it writes back. It syncs nothing: the
// directory is synced by who makes the first log in it. failed is called once, when a sum cannot be written; no more are
// then kept, and those that were remain true. It must not block.
func OpenSums(fsys vfs.FS, name string, before []Sum, failed func(error)) (*Sums, error) {
	s := &Sums{dir: fsys.PathDir(name), failed: failed, open: map[*summed]uint64{}}
	copy(s.slots[:], before)
	image := make([]byte, 0, sumSlots*sumSlot)
	for i := range s.slots {
		s.seq = max(s.seq, s.slots[i].seq)
		s.encode(s.slots[i])
		image = append(image, s.buf[:]...)
	}
	// Not emptied first: it is of use until it is whole again.
	f, err := fsys.OpenReadWrite(name, WriteCategory)
	if err != nil {
		return nil, err
	}
	n, err := f.WriteAt(image, 0)
	if err == nil && n < len(image) {
		err = io.ErrShortWrite
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	s.f = f
	return s, nil
}

// Close closes the file. A nil Sums has nothing to close.
func (s *Sums) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}

func decodeSum(b []byte) Sum {
	n := int(b[5])
	if binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) || b[4] != sumVersion || n > sumName {
		return Sum{}
	}
	return Sum{Name: string(b[28 : 28+n]), Length: int64(binary.LittleEndian.Uint64(b[16:])),
		CRC: binary.LittleEndian.Uint32(b[24:]), seq: binary.LittleEndian.Uint64(b[8:])}
}

// encode puts v in s.buf; an empty slot is zeros.
func (s *Sums) encode(v Sum) {
	b := s.buf[:]
	clear(b)
	if v.seq == 0 {
		return
	}
	b[4], b[5] = sumVersion, byte(len(v.Name))
	binary.LittleEndian.PutUint64(b[8:], v.seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(v.Length))
	binary.LittleEndian.PutUint32(b[24:], v.CRC)
	copy(b[28:], v.Name)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
}

// put writes slot i. s.mu is held.
func (s *Sums) put(i int) {
	if s.f == nil {
		return
	}
	s.encode(s.slots[i])
	n, err := s.f.WriteAt(s.buf[:], int64(i*sumSlot))
	if err == nil && n < sumSlot {
		err = io.ErrShortWrite
	}
	if err != nil {
		_ = s.f.Close()
		s.f = nil
		s.failed(err)
	}
}

// slot returns the slot for a new file. s.mu is held.
func (s *Sums) slot() int {
	var held [sumSlots]bool
	for u := range s.open {
		if u.slot >= 0 {
			held[u.slot] = true
		}
	}
	best := -1
	for i := range s.slots {
		if !held[i] && (best < 0 || s.slots[i].seq < s.slots[best].seq) {
			best = i
		}
	}
	return best
}

// summed is one file of a Sums while it is written. A nil one keeps no sum.
type summed struct {
	s    *Sums
	name string

	// Guarded by s.mu, but for what the goroutine that writes reads back.
	length int64 // written
	crc    uint32
	synced int64 // of the length
	sumcrc uint32
	named  bool // the directory was synced since the file was made
	slot   int  // −1: none yet
}

// begin begins the sum of a new file, or one that is written anew.
func (s *Sums) begin(base string) *summed {
	if s == nil || !isSummed(base) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := &summed{s: s, name: base, slot: -1}
	s.births++
	s.open[u] = s.births
	return u
}

// end lets the file go; its sum stays.
func (u *summed) end() {
	if u == nil {
		return
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	delete(u.s.open, u)
}

// forget drops the sum for good.
func (u *summed) forget() {
	if u == nil {
		return
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	delete(u.s.open, u)
	u.named = false
	if u.slot >= 0 {
		u.s.slots[u.slot] = Sum{}
		u.s.put(u.slot)
		u.slot = -1
	}
}

// next returns the checksum with p appended, before it is written: a vfs.File may change what it is given. Writes of one
// file are not concurrent.
func (u *summed) next(p []byte) uint32 {
	if u == nil {
		return 0
	}
	return crc32.Update(u.crc, castagnoli, p)
}

// wrote tells that n bytes were appended, after which the checksum is crc.
func (u *summed) wrote(n int, crc uint32) {
	if u == nil {
		return
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	u.length += int64(n)
	u.crc = crc
}

// written returns what a sync that begins now covers.
func (u *summed) written() (int64, uint32) {
	if u == nil {
		return 0, 0
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	return u.length, u.crc
}

// durable tells that the first length bytes, of which crc is the checksum, were synced.
func (u *summed) durable(length int64, crc uint32) {
	if u == nil {
		return
	}
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if length > u.synced {
		u.synced, u.sumcrc = length, crc
		u.put()
	}
}

// put writes the sum, if the file is durable under its name. s.mu is held.
func (u *summed) put() {
	s := u.s
	if !u.named || u.synced == 0 || s.f == nil {
		return
	}
	if u.slot < 0 {
		if u.slot = s.slot(); u.slot < 0 {
			return
		}
		s.seq++
		s.slots[u.slot] = Sum{Name: u.name, seq: s.seq}
	}
	v := &s.slots[u.slot]
	v.Length, v.CRC = u.synced, u.sumcrc
	s.put(u.slot)
}

// syncing returns which files a sync of dir that begins now covers.
func (s *Sums) syncing(dir string) uint64 {
	if s == nil || dir != s.dir {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.births
}

// namesDurable tells that a sync of the directory covered the files that syncing named.
func (s *Sums) namesDurable(births uint64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for u, birth := range s.open {
		if birth <= births && !u.named {
			u.named = true
			u.put()
		}
	}
}
