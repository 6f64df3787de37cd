package object

import (
	"crypto/md5" //nolint:gosec // S3 defines ETags by it; nothing relies on it for protection.
	"errors"
	"hash"
	"io"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/metadata"
)

const (
	hashBlock  = 256 << 10 // bytes handed to the hashing goroutine at a time
	hashBlocks = 4         // blocks of one stream on their way to it
	hashBeside = 512 << 10 // bodies from this size on are hashed beside the encoding
)

// hasher computes the sums of a body while it is read. It is the io.Reader that the encoder reads:
// what passes is copied into a ring of pooled blocks, which a goroutine hashes, since the encoder's
// own buffers are gone by then; a copy costs a fiftieth of MD5. Small bodies, and bodies with fast
// checksums only, are hashed in passing.
type hasher struct {
	body  io.Reader
	left  int64 // of the announced size
	size  int64
	algos []checksum.Algorithm
	md5   hash.Hash   // nil: not asked for
	sums  []hash.Hash // by algos

	pool *bufpool.Pool
	cur  *bufpool.Buf      // block being filled
	n    int               // bytes in it
	full chan hashJob      // to the goroutine; nil: hashed in passing
	free chan *bufpool.Buf // blocks that were hashed
	made int               // blocks taken from the pool
	done chan struct{}
}

type hashJob struct {
	buf *bufpool.Buf
	n   int
}

// newHasher wraps a body of size bytes. close must be called.
func newHasher(pool *bufpool.Pool, body io.Reader, size int64, algos []checksum.Algorithm, noMD5 bool) *hasher {
	h := &hasher{body: body, left: size, size: size, algos: algos, pool: pool}
	slow := !noMD5
	if !noMD5 {
		h.md5 = md5.New() //nolint:gosec // see the import
	}
	for _, a := range algos {
		h.sums = append(h.sums, a.New())
		slow = slow || a.Size() >= 16
	}
	if slow && size >= hashBeside {
		h.full = make(chan hashJob, hashBlocks)
		h.free = make(chan *bufpool.Buf, hashBlocks)
		h.done = make(chan struct{})
		go h.run() // ends when close closes full; close waits
	}
	return h
}

func (h *hasher) run() {
	defer close(h.done)
	for j := range h.full {
		h.hash(j.buf.Bytes()[:j.n])
		h.free <- j.buf
	}
}

func (h *hasher) hash(p []byte) {
	if h.md5 != nil {
		h.md5.Write(p) //nolint:errcheck // a hash never fails
	}
	for _, s := range h.sums {
		s.Write(p) //nolint:errcheck // as above
	}
}

// Read reads from the body, not beyond its announced size.
func (h *hasher) Read(p []byte) (int, error) {
	if h.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > h.left {
		p = p[:h.left]
	}
	n, err := h.body.Read(p)
	if n > 0 && n <= len(p) {
		h.left -= int64(n)
		if h.full == nil {
			h.hash(p[:n])
		} else {
			h.hand(p[:n])
		}
	}
	if h.left == 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// hand copies p into the ring.
func (h *hasher) hand(p []byte) {
	for len(p) > 0 {
		if h.cur == nil {
			select {
			case h.cur = <-h.free:
			default:
				if h.made < hashBlocks {
					h.cur = h.pool.Get(hashBlock)
					h.made++
				} else {
					h.cur = <-h.free
				}
			}
			h.n = 0
		}
		n := copy(h.cur.Bytes()[h.n:hashBlock], p)
		h.n += n
		p = p[n:]
		if h.n == hashBlock {
			h.flush()
		}
	}
}

func (h *hasher) flush() {
	if h.cur != nil {
		h.full <- hashJob{h.cur, h.n}
		h.cur = nil
	}
}

// finish reads to the end of the body, whose announced bytes were all read, and returns the sums. A
// body with more bytes than announced is refused: whoever announced it is confused.
func (h *hasher) finish() (Sums, error) {
	if h.left > 0 {
		return Sums{}, ErrIncompleteBody
	}
	var extra [1]byte
	for range 100 {
		n, err := h.body.Read(extra[:])
		if n > 0 {
			return Sums{}, ErrIncompleteBody
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Sums{}, err
		}
	}
	h.close()
	out := Sums{Size: h.size}
	if h.md5 != nil {
		out.MD5 = h.md5.Sum(nil)
	}
	for i, a := range h.algos {
		out.Checksums = append(out.Checksums, metadata.Checksum{Algorithm: uint8(a), Value: h.sums[i].Sum(nil)})
	}
	return out, nil
}

// close ends the goroutine and returns its blocks. It may be called twice.
func (h *hasher) close() {
	if h.full == nil {
		return
	}
	h.flush()
	close(h.full)
	<-h.done
	for range h.made {
		(<-h.free).Release()
	}
	h.full = nil
}
