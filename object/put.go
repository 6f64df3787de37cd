package object

import (
	"context"
	"encoding/hex"
	"io"
	"time"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// Put stores a body of o.Size bytes under key. It returns once the record is chosen: the object is
// durable and visible. An error of kind Unknown or Unavailable leaves open whether it is; every
// other error means that nothing changed. body is read from the calling goroutine, and must return
// when ctx ends.
func (s *Store) Put(ctx context.Context, bucket, key string, body io.Reader, o PutOptions) (Info, error) {
	const op = "Put"
	p, err := s.locate(ctx, op, bucket, key, true)
	if err != nil {
		return Info{}, err
	}
	if o.Size < 0 {
		return Info{}, errs.E("object."+op, errs.Invalid, "the size of the body is not known")
	}
	if o.Size > MaxPutSize {
		return Info{}, fail(op, &Failure{Reason: ErrEntityTooLarge, Size: o.Size})
	}
	v, err := newVersion(op, &o)
	if err != nil {
		return Info{}, err
	}
	if !o.If.zero() && o.Size > int64(s.c.InlineLimit) {
		// A first look, so that a large body is not sent in vain. What counts is decided below.
		if err := s.lookAhead(ctx, op, p, &o.If); err != nil {
			return Info{}, err
		}
	}
	return s.put(ctx, op, p, body, v, &o)
}

// newVersion makes the version that a write with options o stores, as far as it is known before the body.
func newVersion(op string, o *PutOptions) (*metadata.Version, error) {
	class, ok := normalClass(o.Class)
	if !ok {
		return nil, fail(op, &Failure{Reason: ErrStorageClass})
	}
	for _, a := range o.Checksums {
		if !a.Valid() {
			return nil, errs.E("object."+op, errs.Invalid, "unknown checksum algorithm")
		}
	}
	v := &metadata.Version{Kind: metadata.VersionObject, Class: class, Headers: o.Headers, Meta: o.Meta, Tags: o.Tags,
		Owner: o.Owner, RetainMode: o.RetainMode, LegalHold: o.LegalHold}
	if !o.RetainUntil.IsZero() {
		v.RetainUntil = o.RetainUntil.Unix()
	}
	return v, nil
}

// lookAhead decides conditions on the record as it is now.
func (s *Store) lookAhead(ctx context.Context, op string, p *place, c *Conditions) error {
	view, err := s.read(ctx, op, p, p.object(), metadata.ReadOptions{})
	if err != nil {
		return err
	}
	return checkWrite(op, p, c, view.State)
}

func checkWrite(op string, p *place, c *Conditions, base *metadata.State) error {
	var cur *metadata.Version
	if base != nil {
		cur = base.Current
	}
	if r := c.checkWrite(cur); r != nil {
		return fail(op, &Failure{Reason: r, Bucket: p.bucket.Name, Key: string(p.key)})
	}
	return nil
}

// put writes the body and commits v.
func (s *Store) put(ctx context.Context, op string, p *place, body io.Reader, v *metadata.Version, o *PutOptions) (Info, error) {
	algos := o.Checksums
	if o.NoMD5 && len(algos) == 0 {
		algos = []checksum.Algorithm{checksum.Default}
	}
	h := newHasher(s.pool, body, o.Size, algos, o.NoMD5)
	defer h.close()
	w, err := s.write(ctx, op, p, p.object(), v.Class, h)
	if err != nil {
		return Info{}, err
	}
	if o.Verify != nil {
		if err := o.Verify(w.sums); err != nil {
			w.abort()
			return Info{}, err
		}
	}
	v.Size, v.Data, v.Checksums, v.ETag = w.sums.Size, &w.data, w.sums.Checksums, etagOf(w.sums)
	salt, now := newSalt(), s.now()
	done, err := w.commit(ctx, op, p, func(base *metadata.State, r rows, rm *removal) (*metadata.Change, error) {
		if err := checkWrite(op, p, &o.If, base); err != nil {
			return nil, err
		}
		next := *v
		return push(base, r, &next, p.bucket.Versioning, salt, now, rm)
	})
	if err != nil {
		return Info{}, err
	}
	return infoOf(p.bucket, string(p.key), done.change.Current, true), nil
}

// etagOf is the MD5 in hex, or, where none was computed, the first checksum in the form of a
// multipart ETag, which no client takes for an MD5.
func etagOf(sums Sums) string {
	if sums.MD5 != nil {
		return hex.EncodeToString(sums.MD5)
	}
	var b [16]byte
	copy(b[:], sums.Checksums[0].Value)
	return hex.EncodeToString(b[:]) + "-1"
}

// infoOf describes a version.
func infoOf(b Bucket, key string, v *metadata.Version, latest bool) Info {
	i := Info{Bucket: b.Name, Key: key, VersionID: formatVersionID(v.ID), Versioning: b.Versioning, IsLatest: latest,
		DeleteMarker: v.Kind == metadata.VersionDeleteMarker, Size: v.Size, ETag: v.ETag, ModTime: time.Unix(0, v.ModTime).UTC(),
		Class: v.Class, Owner: v.Owner, Headers: v.Headers, Meta: v.Meta, Tags: v.Tags, Checksums: v.Checksums,
		PartCount: int(v.PartCount), Upload: v.Upload != metadata.UploadID{}, RetainMode: v.RetainMode, LegalHold: v.LegalHold}
	if v.RetainUntil != 0 {
		i.RetainUntil = time.Unix(v.RetainUntil, 0).UTC()
	}
	return i
}
