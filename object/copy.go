package object

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// Copy makes a new version of dst from one of src. The body is read and written again, so that the
// copy has data of its own; a multipart source becomes a single body with a fresh ETag.
func (s *Store) Copy(ctx context.Context, srcBucket, srcKey, bucket, key string, o CopyOptions) (CopyResult, error) {
	const op = "Copy"
	p, err := s.locate(ctx, op, bucket, key, true)
	if err != nil {
		return CopyResult{}, err
	}
	src, err := s.source(ctx, op, srcBucket, srcKey, nil, &o)
	if err != nil {
		return CopyResult{}, err
	}
	defer src.Close() //nolint:errcheck // files that were only read
	put := o.Put
	put.Size, put.Verify = src.Length, nil
	class, _ := normalClass(put.Class)
	self := srcBucket == bucket && srcKey == key
	if self && o.SourceVersionID == nil && !o.ReplaceMeta && !o.ReplaceTags && !o.ForceChange && class == src.Info.Class {
		return CopyResult{}, fail(op, &Failure{Reason: ErrCopySelf, Bucket: bucket, Key: key})
	}
	if !o.ReplaceMeta {
		put.Headers, put.Meta = src.Info.Headers, src.Info.Meta
	}
	if !o.ReplaceTags {
		put.Tags = src.Info.Tags
	}
	if put.Checksums == nil {
		// The copy has a checksum of the source's algorithm, over the whole body.
		put.Checksums = algorithmsOf(src.Info.Checksums)
	}
	v, err := newVersion(op, &put)
	if err != nil {
		return CopyResult{}, err
	}
	if !put.If.zero() {
		if err := s.lookAhead(ctx, op, p, &put.If); err != nil {
			return CopyResult{}, err
		}
	}
	var info Info
	err = src.feed(func(body io.Reader) (err error) {
		info, err = s.put(ctx, op, p, body, v, &put)
		return err
	})
	if err != nil {
		return CopyResult{}, err
	}
	return CopyResult{Info: info, SourceVersionID: src.sourceVersion()}, nil
}

// CopyPart makes a part of an upload from a range of an object.
func (s *Store) CopyPart(ctx context.Context, srcBucket, srcKey, bucket, key, uploadID string, number int, r *Range, o CopyOptions) (CopyResult, error) {
	const op = "CopyPart"
	src, err := s.source(ctx, op, srcBucket, srcKey, r, &o)
	if err != nil {
		return CopyResult{}, err
	}
	defer src.Close() //nolint:errcheck // files that were only read
	var part PartInfo
	err = src.feed(func(body io.Reader) (err error) {
		part, err = s.putPart(ctx, op, bucket, key, uploadID, number, body, PartOptions{Size: src.Length, Checksums: o.Put.Checksums})
		return err
	})
	if err != nil {
		return CopyResult{}, err
	}
	return CopyResult{SourceVersionID: src.sourceVersion(), Info: Info{Bucket: bucket, Key: key, Size: part.Size, ETag: part.ETag,
		ModTime: part.ModTime, Checksums: part.Checksums}}, nil
}

// source opens the source of a copy and decides its conditions.
func (s *Store) source(ctx context.Context, op, bucket, key string, r *Range, o *CopyOptions) (*Object, error) {
	g := GetOptions{VersionID: o.SourceVersionID, If: o.SourceIf}
	if r != nil {
		if r.Suffix != 0 || r.Last < r.First || r.First < 0 {
			return nil, fail(op, &Failure{Reason: ErrInvalidRange, Bucket: bucket, Key: key})
		}
		g.Range = r
	}
	src, err := s.open(ctx, op, bucket, key, &g, true)
	if err != nil {
		return nil, sourceFailure(op, err)
	}
	if o.CheckSource != nil {
		err = o.CheckSource(src.Info)
	}
	switch {
	case err != nil:
	case r != nil && src.Offset+src.Length <= r.Last:
		err = fail(op, &Failure{Reason: ErrInvalidRange, Bucket: bucket, Key: key, Size: src.Info.Size})
	case src.Length > MaxPutSize:
		err = fail(op, &Failure{Reason: ErrCopySource, Bucket: bucket, Key: key, Size: src.Length})
	}
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return src, nil
}

// sourceFailure makes of a failed read what a copy answers: a condition that does not hold is 412,
// also where a read would have said 304; a delete marker named by its version id is not a source.
func sourceFailure(op string, err error) error {
	var f *Failure
	if !errors.As(err, &f) {
		return err
	}
	switch f.Reason {
	case ErrNotModified:
		g := *f
		g.Reason = ErrPrecondition
		return fail(op, &g)
	case ErrMethodNotAllowed:
		return fail(op, &Failure{Reason: ErrCopyMarker, Bucket: f.Bucket, Key: f.Key, VersionID: f.VersionID})
	}
	return err
}

func (o *Object) sourceVersion() string {
	if o.Info.Versioning == Unversioned {
		return ""
	}
	return o.Info.VersionID
}

func algorithmsOf(sums []metadata.Checksum) (out []checksum.Algorithm) {
	for _, c := range sums {
		if a := checksum.Algorithm(c.Algorithm); a.Valid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// feed runs sink with the answer as its body. The answer is written by a goroutine that ends before
// feed returns.
func (o *Object) feed(sink func(body io.Reader) error) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := o.WriteTo(w)
		if err != nil {
			// A source that fails in mid-stream is the store's fault, not an incomplete body.
			err = errs.As("object.copy", errs.Unavailable, err)
		}
		w.CloseWithError(err) //nolint:errcheck // always nil
		done <- err
	}()
	err := sink(r)
	r.CloseWithError(io.ErrClosedPipe) //nolint:errcheck // always nil
	<-done
	return err
}
