package object

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// This file writes data again whose profile is not the one that its storage class asks for now. Package heal
// finds it, decides when, and sets the pace.
//
// A body is read and verified, written under a data id of its own as a PUT would write it, and named by the
// version in place of the old one, by a round that changes nothing else and only if the version still names the
// old data. That round is the one point from which on the new data counts. Whatever comes between (an overwrite, a
// deletion, a crash) leaves data that no record names, which is collected as that of any failed PUT.
//
// The parts of a multipart object belong to registers of their upload, and its manifest names them. So they are
// written again as those of another upload, which no client ever sees, and then the version names that one's
// manifest, and that upload, in one round; the old upload ends as that of an overwritten object does. The new
// upload's id follows from what is re-coded and to which profile, and its registers are written once: who goes on
// after a crash finds what is there, and two who do the same end up with the same. Until the version names it, its
// register says of which upload and version it is (Completed.Upload is not its own id); EndRecode tells by that
// what is left behind.

// ProfileOf returns the profile that a new write of a storage class to a partition has.
func (s *Store) ProfileOf(l *placement.Layout, class string, partition uint32) erasure.Profile {
	return l.ProfileOf(class, partition)
}

// Recode writes what the version seq of an object's register names again, if its profile is not the one that a new
// write would have. pace is waited for before bytes are worked on, read and written together. It returns how
// many bodies it wrote, and their bytes without parity. A version that is not there any more, or has nothing to re-code, is
// no error. Otherwise nothing has changed for anybody; of the kinds, Busy says that it is to wait (the object is
// too young, the bucket is being deleted), and Unavailable that drives are away: every shard is written, or none
// counts.
func (s *Store) Recode(ctx context.Context, a metadata.Address, seq uint64, pace func(context.Context, int) error) (bodies int, size int64, err error) {
	const op = "Recode"
	p, err := s.placeOfID(ctx, op, a.Bucket, a.Key)
	if p == nil || err != nil {
		return 0, 0, err
	}
	v, err := s.versionAt(ctx, op, p, seq)
	if err != nil || !v.IsLive() {
		return 0, 0, err
	}
	r := &recoding{s: s, op: op, p: p, v: v, pace: pace}
	if v.Manifest != nil {
		err = r.multipart(ctx)
	} else if v.Data != nil && v.Data.Profile != s.ProfileOf(p.layout, v.Class, p.group.Partition) {
		err = r.single(ctx)
	}
	if errs.Is(err, errs.Conflict) {
		err = nil // overwritten, deleted, or re-coded by another process
	}
	return r.bodies, r.size, err
}

// placeOfID finds the registers of a key in a bucket that is known by its id; nil: the bucket is gone.
func (s *Store) placeOfID(ctx context.Context, op string, id uint64, key []byte) (*place, error) {
	if _, ok, err := s.BucketEpoch(ctx, id); err != nil || !ok {
		return nil, err
	}
	for _, b := range s.control.Buckets() {
		switch {
		case b.ID != id:
			continue
		case b.Deleting:
			return nil, errs.E("object."+op, errs.Busy, "the bucket is being deleted")
		}
		return s.placeOf(op, b, key)
	}
	return nil, nil
}

// versionAt reads the version of a key that has a sequence; nil: there is none.
func (s *Store) versionAt(ctx context.Context, op string, p *place, seq uint64) (*metadata.Version, error) {
	view, err := s.read(ctx, op, p, p.object(), metadata.ReadOptions{Query: metadata.Query{Seqs: []uint64{seq}}})
	if err != nil {
		return nil, err
	}
	return atSeq(view.State, rows(view.Versions), seq), nil
}

// atSeq returns the version of a record that has a sequence; nil: none of those at hand has.
func atSeq(st *metadata.State, r rows, seq uint64) *metadata.Version {
	switch {
	case st == nil || st.Current == nil:
		return nil
	case st.Current.Seq == seq:
		return st.Current
	case seq > st.Current.Seq:
		return nil
	}
	return r.bySeq(seq)
}

// recoding is one call of Recode.
type recoding struct {
	s    *Store
	op   string
	p    *place
	v    *metadata.Version // as it was read
	pace func(context.Context, int) error

	asked  bool  // the version's row was asked for
	bodies int   // written and named
	size   int64 // of them
}

// conflict says that the version is not any more what is being re-coded.
func (r *recoding) conflict(what string) error { return errs.E("object."+r.op, errs.Conflict, what) }

// single re-codes a version with one body.
func (r *recoding) single(ctx context.Context) error {
	old := *r.v.Data
	w, err := r.rewrite(ctx, r.p.object(), r.p.object(), &old, r.v.Checksums, r.v.ETag)
	if err != nil {
		return err
	}
	_, err = w.commit(ctx, r.op, r.p, func(base *metadata.State, rs rows, _ *removal) (*metadata.Change, error) {
		at, err := r.still(base, rs)
		if err != nil {
			return nil, err
		}
		if at.Data == nil || at.Data.ID != old.ID {
			return nil, r.conflict("the version has other data now")
		}
		next := *at
		next.Data = &w.data
		c := replaceInPlace(base, &next)
		c.Dead = append(c.Dead, deadOf(at)...)
		return c, nil
	})
	return r.done(err, old.Size)
}

// still finds the version in the base of a round. The error is of kind Conflict if it is not there any more.
func (r *recoding) still(base *metadata.State, rs rows) (*metadata.Version, error) {
	if at := atSeq(base, rs, r.v.Seq); at != nil {
		return at, nil
	}
	if base != nil && base.Current != nil && r.v.Seq < base.Current.Seq && !r.asked {
		r.asked = true
		return nil, &needRow{r.v.Seq}
	}
	return nil, r.conflict("the version is not there any more")
}

func (r *recoding) done(err error, size int64) error {
	if err == nil {
		r.bodies++
		r.size += size
	}
	return err
}

// rewrite reads a body of the register from, and writes it for the register to, in the profile of the version's
// class. sums and etag are what the body must have: it is not only the same blocks that are written again, but
// what the client sent.
func (r *recoding) rewrite(ctx context.Context, from, to metadata.Address, d *metadata.Data, sums []metadata.Checksum, etag string) (*written, error) {
	if len(d.Transforms) > 0 {
		return nil, errs.E("object."+r.op, errs.Unsupported, "the object is stored in a form that this version does not read")
	}
	for _, num := range r.p.group.Drives {
		if _, ok := r.s.drives.Shards(num); !ok {
			return nil, r.away(num)
		}
	}
	want := r.s.ProfileOf(r.p.layout, r.v.Class, r.p.group.Partition)
	proof := proofOf(sums, etag)
	src := &Object{Length: d.Size, ctx: ctx, s: r.s, p: r.p}
	if d.Size > 0 {
		src.pieces = []piece{{data: d, addr: from, n: d.Size}}
	}
	defer src.Close() //nolint:errcheck // files that were only read
	var w *written
	err := src.feed(func(body io.Reader) (err error) {
		h := newHasher(r.s.pool, &paced{r: body, ctx: ctx, take: r.pace, cost: costOf(want)},
			d.Size, proof.algorithms(), !proof.md5)
		defer h.close()
		w, err = r.s.write(ctx, r.op, r.p, to, r.v.Class, h)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !proof.holds(&w.sums) {
		w.abort()
		return nil, errs.E("object."+r.op, errs.Corrupt, "the body does not have the checksum that it was stored with")
	}
	if w.data.Profile != want {
		w.abort()
		return nil, errs.E("object."+r.op, errs.Unavailable, "the profile of the storage class is changing")
	}
	if num, ok := w.lacks(); ok {
		w.abort()
		return nil, r.away(num)
	}
	return w, nil
}

func (r *recoding) away(num uint16) error {
	return errs.E("object."+r.op, errs.Unavailable, fmt.Sprintf("drive %d, which is to have a shard, is away", num))
}

// lacks returns a drive that was not given its shard of a body. A PUT may do without, and leave a repair row; what is
// stored with all its shards is not to have fewer for being re-coded.
func (w *written) lacks() (drive uint16, ok bool) {
	if w.data.Inline() {
		g := w.s.groupOf(w.addr)
		for pos, seal := range w.seals {
			if _, here := w.s.drives.Shards(g.Drives[pos]); seal != nil && !here {
				return g.Drives[pos], true
			}
		}
		return 0, false
	}
	chunks := []*chunkShards{&w.first}
	for i := range w.later {
		chunks = append(chunks, &w.later[i].chunkShards)
	}
	for _, c := range chunks {
		if j := slices.Index(c.writers, nil); j >= 0 {
			return c.drive(j), true
		}
	}
	return 0, false
}

// proof is what shows that a body is the one that was stored: a checksum over all of it, or its MD5.
type proof struct {
	sum  metadata.Checksum // Value nil: none
	md5  bool
	etag string
}

// proofOf picks the cheapest of what a version has.
func proofOf(sums []metadata.Checksum, etag string) (p proof) {
	for _, c := range sums {
		a := checksum.Algorithm(c.Algorithm)
		if !a.Valid() || c.Composite || p.sum.Value != nil && a.Size() >= len(p.sum.Value) {
			continue
		}
		p.sum = c
	}
	if p.sum.Value == nil {
		p.etag = strings.ToLower(etag)
		_, err := hex.DecodeString(p.etag)
		p.md5 = err == nil && len(p.etag) == 32
	}
	return p
}

func (p *proof) algorithms() []checksum.Algorithm {
	if p.sum.Value == nil {
		return nil
	}
	return []checksum.Algorithm{checksum.Algorithm(p.sum.Algorithm)}
}

// holds reports whether a body that was read has the proof. One without any is taken as its blocks are, each of
// which was verified.
func (p *proof) holds(got *Sums) bool {
	switch {
	case p.sum.Value != nil:
		return len(got.Checksums) == 1 && slices.Equal(got.Checksums[0].Value, p.sum.Value)
	case p.md5:
		return hex.EncodeToString(got.MD5) == p.etag
	}
	return true
}

// paced reads at the pace of background work.
type paced struct {
	r    io.Reader
	ctx  context.Context
	take func(context.Context, int) error
	cost float64 // bytes read and written for each one of the body
	owed float64
}

// costOf is what a byte of a body costs: it is read once, and written with its parity.
func costOf(to erasure.Profile) float64 { return 1 + float64(to.N())/float64(to.Data) }

// pacedUnit is how many bytes are asked for together.
const pacedUnit = 256 << 10

func (p *paced) Read(b []byte) (int, error) {
	if p.owed >= pacedUnit {
		if err := p.take(p.ctx, int(p.owed)); err != nil {
			return 0, err
		}
		p.owed = 0
	}
	n, err := p.r.Read(b)
	p.owed += p.cost * float64(n)
	return n, err
}

// farOff is more than the clocks of gateways differ.
const farOff = 24 * time.Hour

// multipart re-codes a version with parts, all of them if one of them or the manifest is to be.
func (r *recoding) multipart(ctx context.Context) error {
	s, p := r.s, r.p
	parts, err := s.manifestOf(ctx, r.op, p, r.v.Upload, r.v.Manifest, nil)
	if err != nil {
		return err
	}
	want, list := s.ProfileOf(p.layout, r.v.Class, p.group.Partition), s.ProfileOf(p.layout, "", p.group.Partition)
	if r.v.Manifest.Profile == list && !slices.ContainsFunc(parts, func(x manifestPart) bool { return x.data.Profile != want }) {
		return nil
	}
	// A time in the future is that of another clock: of a moment ago, for all that is known, unless it is far off.
	if age := s.now().Sub(time.Unix(0, r.v.ModTime)); age < s.c.RecodeAfter && age > -farOff {
		return errs.E("object."+r.op, errs.Busy, "the upload was completed a moment ago")
	}
	id := recodedUpload(r.v, want, list)
	if err := r.beginUpload(ctx, id); err != nil {
		return err
	}
	next := make([]manifestPart, len(parts))
	for i := range parts {
		d, err := r.part(ctx, id, &parts[i])
		if err != nil {
			return r.left(ctx, id, err)
		}
		next[i] = manifestPart{info: parts[i].info, data: *d}
	}
	manifest, err := r.manifest(ctx, id, next)
	if err == nil {
		err = r.commitUpload(ctx, id, manifest)
	}
	return r.left(ctx, id, err)
}

// left ends what a re-coding made that turned out to be for nothing.
func (r *recoding) left(ctx context.Context, id metadata.UploadID, err error) error {
	if errs.Is(err, errs.Conflict) {
		if e := r.s.endRecode(ctx, r.op, r.p, id); e != nil {
			r.s.log.Debug("the parts of a re-coding stay for now", "bucket", r.p.bucket.Name, "error", e)
		}
	}
	return err
}

// recodedUpload is the id of the upload that the parts of a version belong to once they are re-coded. It follows
// from what is re-coded, and to which profiles.
func recodedUpload(v *metadata.Version, parts, manifest erasure.Profile) (id metadata.UploadID) {
	h := sha256.New()
	h.Write([]byte("ostraka re-coding\x00"))        //nolint:errcheck // a hash never fails
	h.Write(v.Upload[:])                            //nolint:errcheck // as above
	h.Write(v.Manifest.ID[:])                       //nolint:errcheck // as above
	h.Write([]byte{parts.Data, parts.Parity})       //nolint:errcheck // as above
	h.Write([]byte{manifest.Data, manifest.Parity}) //nolint:errcheck // as above
	copy(id[:], h.Sum(nil))
	return id
}

// underRecoding reports whether an upload is that of a re-coding which no version names yet, as far as is known.
func underRecoding(st *metadata.State, id metadata.UploadID) bool {
	return st != nil && st.Current != nil && st.Current.Status == metadata.UploadCompleted && st.Current.Completed != nil &&
		st.Current.Completed.Upload != (metadata.UploadID{}) && st.Current.Completed.Upload != id
}

// beginUpload makes the upload that the new parts belong to. For everybody else it is one that has ended.
func (r *recoding) beginUpload(ctx context.Context, id metadata.UploadID) error {
	v := &metadata.Version{Kind: metadata.VersionUpload, Status: metadata.UploadCompleted, Seq: 1, ModTime: r.v.ModTime, Class: r.v.Class, Owner: r.v.Owner,
		Completed: &metadata.Version{Kind: metadata.VersionObject, Seq: r.v.Seq, ModTime: r.v.ModTime, Upload: r.v.Upload}}
	_, err := r.s.update(ctx, r.op, r.p, r.p.upload(id), metadata.Operation{},
		func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
			if base != nil && base.Current != nil {
				return nil, nothing{} // somebody began before
			}
			c := keep(base)
			c.Current = v
			return c, nil
		})
	return err
}

// part re-codes one part. Its register is written once: what is there already is taken.
func (r *recoding) part(ctx context.Context, id metadata.UploadID, mp *manifestPart) (*metadata.Data, error) {
	s, p := r.s, r.p
	n := mp.info.Number
	view, err := s.read(ctx, r.op, p, p.part(id, n), metadata.ReadOptions{})
	if err != nil {
		return nil, err
	}
	if d := partData(view.State); d != nil {
		return d, nil
	}
	w, err := r.rewrite(ctx, p.part(r.v.Upload, n), p.part(id, n), &mp.data, mp.info.Checksums, mp.info.ETag)
	if err != nil {
		return nil, err
	}
	v := &metadata.Version{Kind: metadata.VersionPart, Size: mp.info.Size, ETag: mp.info.ETag, Checksums: mp.info.Checksums, ModTime: r.v.ModTime, Data: &w.data}
	var other *metadata.Data
	done, err := w.commit(ctx, r.op, p, func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
		if other = partData(base); other != nil {
			return nil, r.conflict("another process has re-coded the part")
		}
		next := *v
		c := keep(base)
		next.Seq = c.NextSeq
		c.NextSeq++
		c.Current = &next
		return c, nil
	})
	switch {
	case other != nil && errs.Is(err, errs.Conflict):
		return other, nil
	case err != nil:
		return nil, err
	}
	// The upload may have been ended meanwhile. Then nothing names the part, and it must not stay.
	up, err := s.readUpload(ctx, r.op, p, id)
	if err != nil {
		return nil, err
	}
	if up == nil {
		s.dropPart(ctx, r.op, p, id, n)
		return nil, r.conflict("the re-coding was ended")
	}
	d := partData(done.view.State)
	if d == nil {
		return nil, r.conflict("the re-coding was ended")
	}
	return d, r.done(nil, d.Size)
}

func partData(st *metadata.State) *metadata.Data {
	if st == nil || st.Current == nil {
		return nil
	}
	return st.Current.Data
}

// manifest stores the list of the new parts. It is written once, too.
func (r *recoding) manifest(ctx context.Context, id metadata.UploadID, parts []manifestPart) (*metadata.Data, error) {
	s, p := r.s, r.p
	up, err := s.readUpload(ctx, r.op, p, id)
	switch {
	case err != nil:
		return nil, err
	case up == nil || up.Current.Completed == nil:
		return nil, r.conflict("the re-coding was ended")
	case up.Current.Completed.Manifest != nil:
		return up.Current.Completed.Manifest, nil
	}
	body := encodeManifest(parts)
	h := newHasher(s.pool, bytes.NewReader(body), int64(len(body)), nil, true)
	defer h.close()
	w, err := s.write(ctx, r.op, p, p.upload(id), "", h)
	if err != nil {
		return nil, err
	}
	if num, ok := w.lacks(); ok {
		w.abort()
		return nil, r.away(num)
	}
	var other *metadata.Data
	_, err = w.commit(ctx, r.op, p, func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
		other = nil
		if base == nil || base.Current == nil || base.Current.Completed == nil {
			return nil, r.conflict("the re-coding was ended")
		}
		if other = base.Current.Completed.Manifest; other != nil {
			return nil, r.conflict("another process has stored the list of parts")
		}
		c := keep(base)
		next, final := *base.Current, *base.Current.Completed
		final.Manifest = &w.data
		next.Completed = &final
		c.Current = &next
		return c, nil
	})
	if other != nil && errs.Is(err, errs.Conflict) {
		return other, nil
	}
	return &w.data, err
}

// commitUpload makes the version name the new parts in place of the old ones.
func (r *recoding) commitUpload(ctx context.Context, id metadata.UploadID, manifest *metadata.Data) error {
	r.asked = true
	_, err := r.s.update(ctx, r.op, r.p, r.p.object(), metadata.Operation{Query: metadata.Query{Seqs: []uint64{r.v.Seq}}},
		func(base *metadata.State, rs rows, rm *removal) (*metadata.Change, error) {
			at, err := r.still(base, rs)
			switch {
			case err != nil:
				return nil, err
			case at.Upload == id:
				return nil, nothing{} // somebody else was as far
			case at.Manifest == nil || at.Manifest.ID != r.v.Manifest.ID:
				return nil, r.conflict("the version has other data now")
			}
			// The old upload ends with its manifest: a late repetition of its completion must find that it was applied.
			if err := rm.check(at); err != nil {
				return nil, err
			}
			next := *at
			next.Manifest, next.Upload = manifest, id
			c := replaceInPlace(base, &next)
			c.Dead = append(c.Dead, deadOf(at)...)
			return c, nil
		})
	if err != nil {
		return err
	}
	if err := r.s.endRecode(ctx, r.op, r.p, id); err != nil {
		// The object is there; who meets the upload again sets the mark.
		r.s.log.Debug("a re-coding is not yet marked as over", "bucket", r.p.bucket.Name, "error", err)
	}
	return nil
}

// EndRecode looks after the upload of a re-coding: one that a version names is over, and one that no version names,
// nor can come to name, is removed with its parts. Others, and those of clients, are left alone. a is the address of the upload or of
// one of its parts.
func (s *Store) EndRecode(ctx context.Context, a metadata.Address) error {
	const op = "EndRecode"
	p, err := s.placeOfID(ctx, op, a.Bucket, a.Key)
	if p == nil || err != nil {
		return err
	}
	return s.endRecode(ctx, op, p, a.Upload)
}

func (s *Store) endRecode(ctx context.Context, op string, p *place, id metadata.UploadID) error {
	st, err := s.readUpload(ctx, op, p, id)
	if err != nil || !underRecoding(st, id) {
		return err
	}
	of := st.Current.Completed
	// A version that names neither upload never will: it named the old one first, and what replaced that stays.
	v, err := s.versionAt(ctx, op, p, of.Seq)
	switch {
	case err != nil:
		return err
	case v == nil || v.Upload != of.Upload && v.Upload != id:
		return s.clearUpload(ctx, op, p, id, nil)
	case v.Upload == of.Upload:
		return nil // under way, or to be gone on with
	}
	final := *v
	_, err = s.update(ctx, op, p, p.upload(id), metadata.Operation{},
		func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
			if !underRecoding(base, id) {
				return nil, nothing{}
			}
			c := keep(base)
			next := *base.Current
			next.Completed = &final
			c.Current = &next
			return c, nil
		})
	return err
}
