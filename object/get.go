package object

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// Object is an open version. It belongs to one goroutine.
type Object struct {
	Info    Info
	Offset  int64 // of the answer within the object
	Length  int64 // bytes of the answer
	Partial bool  // a range or a part was asked for

	ctx    context.Context
	s      *Store
	p      *place
	seq    uint64   // of the version; 0: a body that is not read for a client
	pieces []piece  // what WriteTo writes, in order
	body   []byte   // bytes of the first piece, when it is inline
	rows   [][]byte // inline rows that came with the record, by position: of the body, or of the manifest
	ahead  *opened  // reader of the first chunk of the first piece, when it is not
}

// piece is a range of one body.
type piece struct {
	data *metadata.Data
	addr metadata.Address // of the register that owns it
	off  int64
	n    int64
}

// Get opens a version for reading: the record is read, conditions and range are decided, and the
// first chunk is open, so that an error after this one is a fault in mid-stream. ctx must live until
// Close.
func (s *Store) Get(ctx context.Context, bucket, key string, o GetOptions) (*Object, error) {
	return s.open(ctx, "Get", bucket, key, &o, true)
}

// Head is Get without the body; Close is not needed.
func (s *Store) Head(ctx context.Context, bucket, key string, o GetOptions) (*Object, error) {
	return s.open(ctx, "Head", bucket, key, &o, false)
}

func (s *Store) open(ctx context.Context, op, bucket, key string, o *GetOptions, body bool) (*Object, error) {
	p, err := s.locate(ctx, op, bucket, key, false)
	if err != nil {
		return nil, err
	}
	var last erasure.DataID
	for i := 0; ; i++ {
		v, view, err := s.lookup(ctx, op, p, o.VersionID, body)
		if err != nil {
			return nil, err
		}
		obj, err := s.answer(ctx, op, p, v, view, o)
		if err != nil {
			return nil, err
		}
		if !body || obj.Length == 0 {
			return obj, nil
		}
		if err = obj.openFirst(view); err == nil {
			return obj, nil
		}
		// The shards may be gone because the version was replaced since: then the record says so.
		id := obj.pieces[0].data.ID
		if !gone(err) || i == attempts || i > 1 && id == last {
			return nil, errs.Wrap("object."+op, err)
		}
		last = id
		s.stats.rereads.Add(1)
		// Or they have moved on, and this process did not know yet.
		if err := s.refresh(ctx, op, p, false); err != nil {
			return nil, err
		}
	}
}

// gone reports whether err is about shards that are missing, rather than about drives.
func gone(err error) bool {
	var se *erasure.ShardsError
	return errors.As(err, &se) && len(se.Missing) > 0 || errs.Is(err, errs.NotFound)
}

// lookup reads the record and finds the version asked for. What S3 answers for delete markers and for
// what is not there comes as an error.
func (s *Store) lookup(ctx context.Context, op string, p *place, versionID *string, inline bool) (*metadata.Version, *metadata.View, error) {
	ro := metadata.ReadOptions{Inline: inline}
	if inline {
		ro.Ask = int(p.group.Profile.Data) // so that a small body comes with the record
	}
	var id metadata.VersionID
	failure := &Failure{Bucket: p.bucket.Name, Key: string(p.key)}
	if versionID != nil {
		var ok bool
		if id, ok = parseVersionID(*versionID); !ok {
			failure.Reason, failure.VersionID = ErrInvalidVersionID, *versionID
			return nil, nil, fail(op, failure)
		}
		if id != (metadata.VersionID{}) {
			ro.Query.Seqs = []uint64{seqOf(id)}
		}
	}
	for i := 0; ; i++ {
		view, err := s.read(ctx, op, p, p.object(), ro)
		if err != nil {
			return nil, nil, err
		}
		if versionID == nil {
			switch {
			case view.State == nil || view.State.Current == nil:
				failure.Reason = ErrNoSuchKey
				return nil, nil, fail(op, failure)
			case !view.State.Current.IsLive():
				failure.Reason, failure.DeleteMarker = ErrNoSuchKey, true
				failure.VersionID, failure.ModTime = formatVersionID(view.State.Current.ID), time.Unix(0, view.State.Current.ModTime).UTC()
				return nil, nil, fail(op, failure)
			}
			return view.State.Current, view, nil
		}
		v, need := find(view.State, rows(view.Versions), id)
		switch {
		case need != 0 && i < attempts:
			ro.Query.Seqs = []uint64{need}
			continue
		case v == nil:
			failure.Reason, failure.VersionID = ErrNoSuchVersion, *versionID
			return nil, nil, fail(op, failure)
		case !v.IsLive():
			failure.Reason, failure.DeleteMarker = ErrMethodNotAllowed, true
			failure.VersionID, failure.ModTime = formatVersionID(v.ID), time.Unix(0, v.ModTime).UTC()
			return nil, nil, fail(op, failure)
		}
		return v, view, nil
	}
}

// answer decides conditions and range.
func (s *Store) answer(ctx context.Context, op string, p *place, v *metadata.Version, view *metadata.View, o *GetOptions) (*Object, error) {
	obj := &Object{ctx: ctx, s: s, p: p, seq: v.Seq, Length: v.Size, rows: view.Inline}
	obj.Info = infoOf(p.bucket, string(p.key), v, view.State != nil && view.State.Current != nil && view.State.Current.Seq == v.Seq)
	if r := o.If.checkRead(v); r != nil {
		return nil, fail(op, &Failure{Reason: r, Bucket: p.bucket.Name, Key: string(p.key), Info: &obj.Info})
	}
	switch {
	case o.PartNumber != 0:
		if err := obj.part(op, v, o.PartNumber); err != nil {
			return nil, err
		}
	case o.Range != nil && o.rangeHolds(v):
		var ok bool
		if obj.Offset, obj.Length, ok = o.Range.resolve(v.Size); !ok {
			return nil, fail(op, &Failure{Reason: ErrInvalidRange, Bucket: p.bucket.Name, Key: string(p.key), Size: v.Size, Info: &obj.Info})
		}
		obj.Partial = true
	}
	return obj, obj.plan(op, v)
}

// rangeHolds decides If-Range: a range of another version than the client has a piece of would make
// a mixture of the two.
func (o *GetOptions) rangeHolds(v *metadata.Version) bool {
	return (o.IfRange == "" || o.IfRange == v.ETag) &&
		(o.IfRangeTime.IsZero() || seconds(o.IfRangeTime) == seconds(time.Unix(0, v.ModTime)))
}

// resolve returns offset and length of a range of an object of size bytes.
func (r *Range) resolve(size int64) (off, n int64, ok bool) {
	if r.Suffix > 0 {
		n = min(r.Suffix, size)
		return size - n, n, n > 0
	}
	if r.First < 0 || r.First >= size || r.Last >= 0 && r.Last < r.First {
		return 0, 0, false
	}
	last := size - 1
	if r.Last >= 0 {
		last = min(last, r.Last)
	}
	return r.First, last - r.First + 1, true
}

// part narrows the answer to one part. A body that was not uploaded in parts is part 1.
func (o *Object) part(op string, v *metadata.Version, n int) error {
	o.Partial = true
	if v.Manifest == nil {
		if n == 1 {
			return nil
		}
		return fail(op, &Failure{Reason: ErrInvalidPartNumber, Bucket: o.Info.Bucket, Key: o.Info.Key, PartNumber: 1})
	}
	parts, err := o.s.manifestOf(o.ctx, op, o.p, v.Upload, v.Manifest, o.rows)
	if err != nil {
		return err
	}
	i, ok := slices.BinarySearchFunc(parts, n, func(p manifestPart, n int) int { return p.info.Number - n })
	if !ok {
		// Clients count parts from 1 whatever numbers were uploaded.
		return fail(op, &Failure{Reason: ErrInvalidPartNumber, Bucket: o.Info.Bucket, Key: o.Info.Key, PartNumber: len(parts)})
	}
	info := parts[i].info
	o.Info.Part = &info
	o.Offset, o.Length = info.Offset, info.Size
	return nil
}

// plan lists the pieces of the answer.
func (o *Object) plan(op string, v *metadata.Version) error {
	if o.Length == 0 {
		return nil
	}
	if v.Manifest == nil {
		if v.Data == nil || len(v.Data.Transforms) > 0 {
			return errs.E("object."+op, errs.Unsupported, "the object is stored in a form that this version does not read")
		}
		o.pieces = []piece{{data: v.Data, addr: o.p.object(), off: o.Offset, n: o.Length}}
		return nil
	}
	parts, err := o.s.manifestOf(o.ctx, op, o.p, v.Upload, v.Manifest, o.rows)
	if err != nil {
		return err
	}
	i, ok := slices.BinarySearchFunc(parts, o.Offset, func(p manifestPart, off int64) int {
		switch {
		case p.info.Offset+p.info.Size <= off:
			return -1
		case p.info.Offset > off:
			return 1
		}
		return 0
	})
	if !ok {
		return errs.E("object."+op, errs.Corrupt, "the manifest does not cover the object")
	}
	for off, left := o.Offset-parts[i].info.Offset, o.Length; left > 0; i++ {
		if i == len(parts) {
			return errs.E("object."+op, errs.Corrupt, "the manifest does not cover the object")
		}
		n := min(left, parts[i].info.Size-off)
		if n > 0 {
			o.pieces = append(o.pieces, piece{data: &parts[i].data, addr: o.p.part(v.Upload, parts[i].info.Number), off: off, n: n})
		}
		off, left = 0, left-n
	}
	return nil
}

// openFirst makes the first bytes certain.
func (o *Object) openFirst(view *metadata.View) error {
	first := &o.pieces[0]
	if first.data.Inline() {
		var have [][]byte
		if view != nil && first.addr.Kind == metadata.KindObject {
			have = view.Inline
		}
		body, err := o.s.inlineBody(o.ctx, o.p.group, first.addr, first.data, have)
		o.body = body
		return err
	}
	a, err := o.s.openAt(o.ctx, o.p, first)
	o.ahead = a
	return err
}

// WriteTo writes the answer to w, once. An error after the first byte is final: what w has is a
// correct prefix. Only if the version was re-coded meanwhile does the answer go on in its new data.
func (o *Object) WriteTo(w io.Writer) (int64, error) {
	c := counter{w: w}
	for i := 0; ; i++ {
		err := o.writePieces(&c)
		if err == nil || i == attempts || !gone(err) || !o.recoded("Get", c.n) {
			return c.n, err
		}
	}
}

// writePieces writes what is planned.
func (o *Object) writePieces(w io.Writer) error {
	const op = "object.Get"
	for i := range o.pieces {
		p := &o.pieces[i]
		if p.data.Inline() {
			body := o.body
			o.body = nil
			if body == nil {
				var err error
				if body, err = o.s.inlineBody(o.ctx, o.p.group, p.addr, p.data, nil); err != nil {
					return errs.Wrap(op, err)
				}
			}
			if _, err := w.Write(body[p.off : p.off+p.n]); err != nil {
				return errs.As(op, errs.Canceled, err)
			}
			continue
		}
		if err := o.writeChunks(w, i); err != nil {
			return errs.Wrap(op, err)
		}
	}
	return nil
}

// writeChunks writes one piece that lies in shard files. The chunk after each, be it of the next
// piece, is opened while the one before is written.
func (o *Object) writeChunks(w io.Writer, i int) error {
	p := o.pieces[i]
	for p.n > 0 {
		cur := o.ahead
		o.ahead = nil
		if cur == nil {
			var err error
			if cur, err = o.s.openAt(o.ctx, o.p, &p); err != nil {
				return err
			}
		}
		next := p
		step := min(p.n, cur.end-p.off)
		next.off, next.n = p.off+step, p.n-step
		want := &next
		if next.n == 0 {
			want = nil
			if i+1 < len(o.pieces) && !o.pieces[i+1].data.Inline() {
				want = &o.pieces[i+1]
			}
		}
		var opening sync.WaitGroup
		var ahead *opened
		if want != nil {
			opening.Go(func() { ahead, _ = o.s.openAt(o.ctx, o.p, want) }) // an error shows again when it is tried in turn
		}
		err := cur.r.WriteRange(o.ctx, w, p.off-cur.start, step)
		opening.Wait()
		cur.close()
		o.ahead = ahead
		if err != nil {
			return err
		}
		p = next
	}
	return nil
}

// Close frees what is open. The answer cannot be written after it.
func (o *Object) Close() error {
	if o.ahead != nil {
		o.ahead.close()
		o.ahead = nil
	}
	o.body = nil
	return nil
}

// opened is a chunk open for reading, which holds bytes [start, end) of its body.
type opened struct {
	r          *erasure.ChunkReader
	start, end int64
}

func (c *opened) close() { c.r.Close() } //nolint:errcheck // files that were only read

// openAt opens the chunk that holds the first byte of a piece.
func (s *Store) openAt(ctx context.Context, p *place, pc *piece) (*opened, error) {
	d := pc.data
	i := uint32(pc.off / d.ChunkSize)
	c := &opened{start: int64(i) * d.ChunkSize}
	c.end = min(c.start+d.ChunkSize, d.Size)
	// Shards may have moved since the record was read, and those of a long answer while it is written.
	g, positions, err := s.placesOf(ctx, d, i, p.group.Partition)
	if err != nil {
		return nil, err
	}
	chunk := erasure.Chunk{Data: d.ID, Index: i, Profile: d.Profile, Size: c.end - c.start,
		Owner: erasure.Owner{Bucket: pc.addr.Bucket, Key: pc.addr.Key, Upload: pc.addr.Upload, Part: pc.addr.Part}}
	open := func(ctx context.Context, shard int) (src erasure.Source, err error) {
		err = s.present(g, positions[shard], func(dr node.Drive) error {
			src, err = dr.OpenShard(ctx, chunk.Shard(shard))
			return err
		})
		return src, err
	}
	addr, keyGroup := pc.addr, p.group
	c.r, err = erasure.OpenChunk(ctx, chunk, open, erasure.ReadOptions{Coders: s.coders, Cache: s.cache.reader(),
		OnDamage: func(int, error) {
			s.stats.damaged.Add(1)
			s.askRepair(keyGroup, addr)
		}})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// placesOf returns the group of a chunk, and the position of each of its shards. If the partition was wider when the
// body was written than it is known to be here, a newer layout is asked for.
func (s *Store) placesOf(ctx context.Context, d *metadata.Data, chunk, keyPartition uint32) (placement.Group, []int, error) {
	var asked error
	for again := false; ; again = true {
		l := s.control.Layout()
		g := l.Group(l.ChunkPartition(d.ID, chunk, keyPartition))
		if positions := g.Places(d.Profile, d.Width, d.ID); positions != nil {
			return g, positions, nil
		}
		switch {
		case asked != nil:
			return g, nil, errs.Wrap("object.open", asked)
		case again:
			return g, nil, errs.E("object.open", errs.Corrupt, "the body's profile is wider than its partition")
		}
		asked = s.control.Refresh(ctx)
	}
}

// present calls f with the drive of a position, and if it fails with the one that stood there before, as long as
// that may still have shards which the present one lacks. What the one does not have is missing only if the
// other says so too.
func (s *Store) present(g placement.Group, position int, f func(node.Drive) error) error {
	err := errs.E("object.present", errs.Drive, "drive is not there")
	if dr, ok := s.drives.Shards(g.Drives[position]); ok {
		if err = f(dr); err == nil {
			return nil
		}
	}
	if former, ok := g.FormerAt(position); ok {
		elsewhere := errs.E("object.present", errs.Drive, "the former drive is not there")
		if dr, ok := s.drives.Shards(former); ok {
			elsewhere = f(dr)
		}
		if elsewhere == nil || errs.Is(err, errs.NotFound) {
			return elsewhere
		}
	}
	return err
}

// inlineBody returns a body that lies in the record store, from the rows at hand by position, and
// from as many other drives as it takes.
func (s *Store) inlineBody(ctx context.Context, g placement.Group, addr metadata.Address, d *metadata.Data, have [][]byte) ([]byte, error) {
	positions := g.Places(d.Profile, d.Width, d.ID)
	if positions == nil {
		return nil, errs.E("object.inline", errs.Corrupt, "the body's profile is wider than its partition")
	}
	got := make([][]byte, len(positions))
	n := 0
	for j, pos := range positions {
		if pos < len(have) && have[pos] != nil && erasure.VerifyInline(d.Profile, d.ID, d.Size, j, have[pos]) == nil {
			got[j] = have[pos]
			n++
		}
	}
	if n < int(d.Profile.Data) {
		if err := s.fetchInline(ctx, g, addr, d, positions, got); err != nil {
			return nil, err
		}
	}
	body, _, err := s.coders.DecodeInline(d.Profile, d.ID, d.Size, got)
	return body, err
}

// fetchInline asks the drives for the rows that got lacks.
func (s *Store) fetchInline(ctx context.Context, g placement.Group, addr metadata.Address, d *metadata.Data, positions []int, got [][]byte) error {
	bad := make([]error, len(positions))
	// Once enough rows are here, nobody waits for a drive that is slow.
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var good atomic.Int32
	for _, row := range got {
		if row != nil {
			good.Add(1)
		}
	}
	each(len(positions), len(positions), func(j int) {
		if got[j] != nil {
			return
		}
		bad[j] = s.present(g, positions[j], func(dr node.Drive) error {
			ctx, cancel := context.WithTimeout(ctx, s.c.CallTimeout)
			defer cancel()
			row, err := dr.InlineShard(ctx, d.ID)
			if err == nil && row == nil {
				err = errs.E("object.inline", errs.NotFound, "no such inline shard")
			}
			if err == nil {
				err = erasure.VerifyInline(d.Profile, d.ID, d.Size, j, row)
			}
			if err == nil {
				got[j] = row
			}
			return err
		})
		if bad[j] != nil {
			return
		}
		if int(good.Add(1)) == int(d.Profile.Data) {
			enough()
		}
	})
	se := &erasure.ShardsError{Err: errors.Join(bad...)}
	n := 0
	for j, err := range bad {
		switch {
		case got[j] != nil:
			n++
		case errs.Is(err, errs.NotFound):
			se.Missing = append(se.Missing, j)
		case errs.Is(err, errs.Corrupt):
			se.Damaged = append(se.Damaged, j)
		default:
			se.Unreachable = append(se.Unreachable, j)
		}
	}
	if lost := len(se.Missing) + len(se.Damaged); lost > 0 {
		s.stats.damaged.Add(uint64(lost))
		s.askRepair(g, addr)
	}
	switch {
	case n >= int(d.Profile.Data):
		return nil
	case n+len(se.Unreachable) >= int(d.Profile.Data):
		return errs.As("object.inline", errs.Unavailable, se)
	}
	return errs.As("object.inline", errs.Corrupt, se)
}

// readBody returns a whole body, of at most limit bytes, that no version names as its content: a manifest.
func (s *Store) readBody(ctx context.Context, p *place, addr metadata.Address, d *metadata.Data, limit int64, have [][]byte) ([]byte, error) {
	if d.Size > limit {
		return nil, errs.E("object.read", errs.Corrupt, "a body is larger than its kind can be")
	}
	if d.Inline() {
		return s.inlineBody(ctx, p.group, addr, d, have)
	}
	buf := make(appender, 0, d.Size)
	pc := piece{data: d, addr: addr, n: d.Size}
	for pc.n > 0 {
		c, err := s.openAt(ctx, p, &pc)
		if err != nil {
			return nil, err
		}
		n := c.end - pc.off
		err = c.r.WriteRange(ctx, &buf, pc.off-c.start, n)
		c.close()
		if err != nil {
			return nil, err
		}
		pc.off, pc.n = pc.off+n, pc.n-n
	}
	return buf, nil
}

// appender is an io.Writer over a slice with room.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}
