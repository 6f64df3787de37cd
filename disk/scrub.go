package disk

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// maxScrub bounds the shards that one Scrub verifies.
const maxScrub = 1024

// ScrubReport is what one Scrub verified.
type ScrubReport struct {
	Next   erasure.ShardID // where the next Scrub goes on
	More   bool            // there are rows behind Next
	Shards int             // verified, those in Bad included
	Bytes  int64           // stored bytes of these shards
	Bad    []ScrubFinding
}

// ScrubFinding is a shard that has a row here and is not as the row says.
type ScrubFinding struct {
	Row ShardRow // without the inline shard
	// Err is of kind errs.Corrupt for what is damaged or gone, errs.Unsupported for a newer format,
	// errs.Drive for what cannot be read although the drive serves.
	Err error
}

// Scrub verifies the next up to limit shards behind after, in the order of their ids, each by itself:
// its row; of a file the header (which shard, whose, and that its profile makes a file of the row's
// length), every block's checksum and the footer; of an inline shard its checksum. The zero id begins. A
// file that is missing while its row is there is a finding. throttle, if not nil, is called with a
// number of bytes before they are read.
//
// A shard that is deleted or replaced meanwhile is no finding. The error is that of ctx, of throttle, or says
// that the drive does not serve; the report then has what was verified before, and Next goes on behind it.
func (d *Drive) Scrub(ctx context.Context, after erasure.ShardID, limit int, throttle func(context.Context, int) error) (ScrubReport, error) {
	r := ScrubReport{Next: after}
	limit = min(max(limit, 1), maxScrub)
	rows, err := d.ShardRows(ctx, after.Data, after.Chunk, limit)
	if err != nil {
		return r, err
	}
	pool := bufpool.New(bufpool.Options{})
	defer pool.Close()
	coders := erasure.NewCoders(pool)
	for i := range rows {
		row := &rows[i]
		finding, err := d.scrub(ctx, row, coders, throttle)
		if err != nil {
			r.More = true
			return r, err
		}
		r.Next = row.ID
		r.Shards++
		r.Bytes += row.Size
		if finding != nil {
			row.Inline = nil
			r.Bad = append(r.Bad, ScrubFinding{Row: *row, Err: finding})
		}
	}
	r.More = len(rows) == limit
	return r, nil
}

// scrub verifies one shard. finding is what is wrong with it; err that it could not be told.
func (d *Drive) scrub(ctx context.Context, row *ShardRow, coders *erasure.Coders, throttle func(context.Context, int) error) (finding, err error) {
	asked := false // an error of throttle is none of the shard
	ask := func(ctx context.Context, n int) error {
		if throttle == nil {
			return nil
		}
		err := throttle(ctx, n)
		asked = asked || err != nil
		return err
	}
	found := d.verifyRow(ctx, row, coders, ask)
	switch {
	case found == nil:
		return nil, nil
	case ctx.Err() != nil || asked:
		return nil, found
	}
	switch errs.KindOf(found) {
	case errs.Corrupt, errs.Unsupported, errs.NotFound, errs.Drive:
	default:
		return nil, found // such as errs.Busy: the process is at a limit
	}
	// What was deleted or replaced while it was read is not damaged. A drive that has failed does not
	// answer here.
	same, err := call(ctx, d, "disk.Scrub", func(context.Context) (bool, error) {
		c := shardChunk{row.ID.Data, row.ID.Chunk}
		defer d.lockShard(c).Unlock()
		now, err := d.row(c)
		return err == nil && now != nil && now.ID == row.ID && now.Size == row.Size && now.Sealed.Equal(row.Sealed) &&
			(now.Inline != nil) == (row.Inline != nil), err
	})
	if err != nil || !same {
		return nil, err
	}
	return found, nil
}

// verifyRow verifies the shard that row says is here. Of an inline one, row lacks the payload.
func (d *Drive) verifyRow(ctx context.Context, row *ShardRow, coders *erasure.Coders, ask func(context.Context, int) error) error {
	const op = "disk.Scrub"
	if row.Inline != nil {
		if err := ask(ctx, int(row.Size)); err != nil {
			return err
		}
		b, err := d.InlineShard(ctx, row.ID.Data)
		if errs.Is(err, errs.NotFound) {
			return errs.E(op, errs.Corrupt, "the shard is gone") // or was replaced: the caller looks
		}
		if err != nil {
			return err
		}
		if int64(len(b)) != row.Size {
			return errs.E(op, errs.Corrupt, fmt.Sprintf("inline row of %d bytes, not %d", len(b), row.Size))
		}
		err = erasure.VerifyInline(row.Profile, row.ID.Data, row.BodySize, int(row.ID.Index), b)
		if errs.Is(err, errs.Invalid) {
			return errs.As(op, errs.Corrupt, err) // the row's own numbers are out of their limits
		}
		return errs.Wrap(op, err)
	}
	if _, err := d.StatShard(ctx, row.ID); err != nil {
		if errs.Is(err, errs.NotFound) { // replaced by another index, or deleted
			return errs.As(op, errs.Corrupt, err)
		}
		return err
	}
	file, err := d.OpenShard(ctx, row.ID)
	if err != nil {
		if errs.Is(err, errs.NotFound) {
			return errs.E(op, errs.Corrupt, "the file of the shard is gone")
		}
		return err
	}
	src := throttled{d.bounded(file), ask}
	defer src.Close()
	h, err := erasure.ReadHeader(ctx, src)
	if err != nil {
		return errs.Wrap(op, err)
	}
	if err := matches(&h, row); err != nil {
		return err
	}
	return errs.Wrap(op, erasure.VerifyShard(ctx, src, h.Chunk, int(row.ID.Index), coders))
}

// matches compares the header of a shard file with its row.
func matches(h *erasure.Header, row *ShardRow) error {
	const op = "disk.Scrub"
	o, a := &h.Chunk.Owner, &row.Address
	switch {
	case h.ID() != row.ID:
		return errs.E(op, errs.Corrupt, fmt.Sprintf("the file is that of shard %s", h.ID()))
	case row.Profile.Valid() && h.Chunk.Profile != row.Profile:
		return errs.E(op, errs.Corrupt, fmt.Sprintf("the file is of profile %s, not %s", h.Chunk.Profile, row.Profile))
	case erasure.ShardFileSize(h.Chunk.Profile, h.Chunk.Size) != row.Size:
		return errs.E(op, errs.Corrupt, fmt.Sprintf("the file's header makes %d bytes, not %d", erasure.ShardFileSize(h.Chunk.Profile, h.Chunk.Size), row.Size))
	case o.Bucket != a.Bucket || !bytes.Equal(o.Key, a.Key) || o.Upload != [16]byte(a.Upload) || o.Part != a.Part:
		return errs.E(op, errs.Corrupt, "the file belongs to another register than its row says")
	}
	return nil
}

// bounded returns src with reads that end with their ctx even when the drive hangs: scrub and
// verification read on their own account, and nobody would ask another drive in their stead. What is left
// behind keeps a place of the drive's operations, and the file open, until it ends.
func (d *Drive) bounded(src erasure.Source) erasure.Source { return &boundedSource{d: d, src: src} }

type boundedSource struct {
	d   *Drive
	src erasure.Source

	// mu guards the fields below.
	mu      sync.Mutex
	buf     []byte // between two reads
	reading int
	closed  bool
}

// ReadAt implements erasure.Source. The kernel fills memory of the read's own: p is the caller's
// again when ctx ends.
func (s *boundedSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.mu.Lock()
	buf := s.buf
	s.buf = nil
	s.mu.Unlock()
	if cap(buf) < len(p) {
		buf = make([]byte, len(p))
	}
	type result struct {
		n   int
		err error
	}
	r, err := call(ctx, s.d, "disk.ReadAt", func(ctx context.Context) (result, error) {
		if !s.begin() {
			return result{}, errs.E("disk.ReadAt", errs.Canceled, "the shard was closed")
		}
		defer s.end()
		n, err := s.src.ReadAt(ctx, buf[:len(p)], off)
		return result{n, err}, nil
	})
	if err != nil {
		return 0, err // buf may still be written to
	}
	s.mu.Lock()
	s.buf = buf
	s.mu.Unlock()
	return copy(p, buf[:r.n]), r.err
}

func (s *boundedSource) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.reading++
	return true
}

func (s *boundedSource) end() {
	s.mu.Lock()
	s.reading--
	last := s.closed && s.reading == 0
	s.mu.Unlock()
	if last {
		_ = s.src.Close() // it was only read
	}
}

// Close closes the file, or leaves that to the last read in it.
func (s *boundedSource) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	busy := s.reading > 0
	s.mu.Unlock()
	if busy || again {
		return nil
	}
	return s.src.Close()
}
