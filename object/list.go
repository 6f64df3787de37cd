package object

import (
	"context"
	"encoding/hex"
	"strings"
	"sync"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// covers keeps the drives to ask for a listing, by layout and salt.
type covers struct {
	mu     sync.Mutex // guards the fields below
	number uint64
	turn   uint64
	by     [coverSalts]*placement.Cover
}

const coverSalts = 8 // different sets of drives that listings take in turn

func (c *covers) get(l *placement.Layout) (placement.Cover, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.number != l.Number() {
		c.number, c.by = l.Number(), [coverSalts]*placement.Cover{}
	}
	c.turn++
	i := c.turn % coverSalts
	if c.by[i] == nil {
		cover, err := l.Cover(i)
		if err != nil {
			return placement.Cover{}, err
		}
		c.by[i] = &cover
	}
	return *c.by[i], nil
}

// scan runs one page of a listing of registers, or of versions, and follows a bucket or partitions whose
// epoch is old.
func (s *Store) scan(ctx context.Context, op string, b *Bucket, o metadata.ScanOptions, versions bool) (metadata.ScanPage, error) {
	var wait patience
	for {
		l, err := s.layout(op)
		if err != nil {
			return metadata.ScanPage{}, err
		}
		cover, err := s.covers.get(l)
		if err != nil {
			return metadata.ScanPage{}, errs.Wrap("object."+op, err)
		}
		o.Bucket, o.BucketEpoch = b.ID, b.Epoch
		var page metadata.ScanPage
		if versions {
			page, err = s.meta.ScanVersions(ctx, cover, o)
		} else {
			page, err = s.meta.Scan(ctx, cover, o)
		}
		if err == nil || !errs.Is(err, errs.Stale) && (!errs.Is(err, errs.Unavailable) || s.control.Layout().Number() == l.Number()) {
			return page, errs.Wrap("object."+op, err)
		}
		p := &place{bucket: *b, layout: l}
		if err := s.follow(ctx, op, p, false, &wait, err); err != nil {
			return metadata.ScanPage{}, err
		}
		*b = p.bucket
	}
}

func bytesOrNil(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// isPrefix reports whether after is what a page ended with when it ended with a common prefix.
func isPrefix(after, prefix, delimiter string) bool {
	return delimiter != "" && len(after) > len(prefix) && strings.HasPrefix(after, prefix) && strings.HasSuffix(after, delimiter) &&
		!strings.Contains(strings.TrimSuffix(after[len(prefix):], delimiter), delimiter)
}

// List lists the keys of a bucket that have a current version, and common prefixes, in the order of bytes.
func (s *Store) List(ctx context.Context, bucket string, o ListOptions) (ListResult, error) {
	const op = "List"
	b, err := s.bucket(ctx, op, bucket, false)
	if err != nil {
		return ListResult{}, err
	}
	res := ListResult{Bucket: b}
	limit := min(o.Limit, MaxListKeys)
	if limit <= 0 {
		return res, nil
	}
	so := metadata.ScanOptions{Kind: metadata.KindObject, Brief: true, Prefix: bytesOrNil(o.Prefix), Delimiter: bytesOrNil(o.Delimiter),
		After: bytesOrNil(o.After), AfterPrefix: isPrefix(o.After, o.Prefix, o.Delimiter)}
	for {
		so.Limit = limit - len(res.Objects) - len(res.Prefixes)
		page, err := s.scan(ctx, op, &b, so, false)
		if err != nil {
			return ListResult{}, err
		}
		if o.Delimiter == "" && res.Objects == nil {
			res.Objects = make([]Info, 0, len(page.Items))
		}
		for i := range page.Items {
			it := &page.Items[i]
			switch {
			case it.Prefix != nil:
				res.Prefixes = append(res.Prefixes, string(it.Prefix))
				res.Next = string(it.Prefix)
			case it.State != nil && it.State.Current.IsLive():
				res.Objects = append(res.Objects, listed(b, string(it.Address.Key), it.State.Current, true))
				res.Next = string(it.Address.Key)
			}
		}
		res.Truncated = page.Truncated
		if !page.Truncated {
			res.Next = ""
			return res, nil
		}
		if len(res.Objects)+len(res.Prefixes) >= limit {
			return res, nil
		}
		so.After, so.AfterPrefix = page.After, page.AfterPrefix
	}
}

// listed is infoOf without what no listing shows.
func listed(b Bucket, key string, v *metadata.Version, latest bool) Info {
	i := infoOf(b, key, v, latest)
	i.Headers, i.Meta, i.Tags = nil, nil, nil
	return i
}

// ListVersions lists versions and delete markers, newest first within a key.
func (s *Store) ListVersions(ctx context.Context, bucket string, o ListVersionsOptions) (ListVersionsResult, error) {
	const op = "ListVersions"
	b, err := s.bucket(ctx, op, bucket, false)
	if err != nil {
		return ListVersionsResult{}, err
	}
	res := ListVersionsResult{Bucket: b}
	limit := min(o.Limit, MaxListKeys)
	if limit <= 0 {
		return res, nil
	}
	so := metadata.ScanOptions{Kind: metadata.KindObject, Prefix: bytesOrNil(o.Prefix), Delimiter: bytesOrNil(o.Delimiter),
		After: bytesOrNil(o.KeyMarker), AfterPrefix: o.VersionMarker == "" && isPrefix(o.KeyMarker, o.Prefix, o.Delimiter)}
	if o.VersionMarker != "" {
		if so.AfterSeq, err = s.markerSeq(ctx, op, b, o.KeyMarker, o.VersionMarker); err != nil {
			return ListVersionsResult{}, err
		}
	}
	for {
		so.Limit = limit - len(res.Versions) - len(res.Prefixes)
		page, err := s.scan(ctx, op, &b, so, true)
		if err != nil {
			return ListVersionsResult{}, err
		}
		for i := range page.Items {
			it := &page.Items[i]
			switch {
			case it.Prefix != nil:
				res.Prefixes = append(res.Prefixes, string(it.Prefix))
				res.NextKeyMarker, res.NextVersionMarker = string(it.Prefix), ""
			case it.Version != nil:
				res.Versions = append(res.Versions, listed(b, string(it.Address.Key), it.Version, it.Latest))
				res.NextKeyMarker, res.NextVersionMarker = string(it.Address.Key), formatVersionID(it.Version.ID)
			}
		}
		res.Truncated = page.Truncated
		if !page.Truncated {
			res.NextKeyMarker, res.NextVersionMarker = "", ""
			return res, nil
		}
		if len(res.Versions)+len(res.Prefixes) >= limit {
			return res, nil
		}
		so.After, so.AfterPrefix, so.AfterSeq = page.After, page.AfterPrefix, page.AfterSeq
	}
}

// markerSeq returns the sequence behind which a listing of versions continues.
func (s *Store) markerSeq(ctx context.Context, op string, b Bucket, key, marker string) (uint64, error) {
	id, ok := parseVersionID(marker)
	if !ok || key == "" {
		return 0, fail(op, &Failure{Reason: ErrInvalidVersionID, Bucket: b.Name, Key: key, VersionID: marker})
	}
	if id != (metadata.VersionID{}) {
		return seqOf(id), nil
	}
	if checkKey(key) != nil {
		return 0, nil
	}
	p, err := s.placeOf(op, b, []byte(key))
	if err != nil {
		return 0, err
	}
	view, err := s.read(ctx, op, p, p.object(), metadata.ReadOptions{})
	if err != nil || view.State == nil {
		return 0, err
	}
	return view.State.NullSeq, nil // 0, behind the key, when the null version went since
}

// ListUploads lists the uploads of a bucket that have not ended, by key and then by their beginning.
func (s *Store) ListUploads(ctx context.Context, bucket string, o ListUploadsOptions) (ListUploadsResult, error) {
	const op = "ListUploads"
	b, err := s.bucket(ctx, op, bucket, false)
	if err != nil {
		return ListUploadsResult{}, err
	}
	var res ListUploadsResult
	limit := min(o.Limit, MaxListKeys)
	if limit <= 0 {
		return res, nil
	}
	// Common prefixes are made here, from uploads that have not ended: the registers of ended ones are
	// there as well.
	so := metadata.ScanOptions{Kind: metadata.KindUpload, Prefix: bytesOrNil(o.Prefix), After: bytesOrNil(o.KeyMarker),
		AfterPrefix: o.UploadMarker == "" && isPrefix(o.KeyMarker, o.Prefix, o.Delimiter), Limit: MaxListKeys}
	if o.UploadMarker != "" && o.KeyMarker != "" {
		if id, ok := parseUploadID(o.UploadMarker); ok {
			so.AfterSub = id[:]
		}
	}
	for {
		page, err := s.scan(ctx, op, &b, so, false)
		if err != nil {
			return ListUploadsResult{}, err
		}
		jumped := false
		for i := range page.Items {
			it := &page.Items[i]
			if it.State == nil || it.State.Current == nil || it.State.Current.Status != metadata.UploadOpen && !completing(it.State) {
				continue
			}
			if len(res.Uploads)+len(res.Prefixes) == limit {
				res.Truncated = true
				return res, nil
			}
			key := string(it.Address.Key)
			if o.Delimiter != "" {
				if n := strings.Index(key[len(o.Prefix):], o.Delimiter); n >= 0 {
					prefix := key[:len(o.Prefix)+n+len(o.Delimiter)]
					res.Prefixes = append(res.Prefixes, prefix)
					res.NextKeyMarker, res.NextUploadMarker = prefix, ""
					so.After, so.AfterPrefix, so.AfterSub = []byte(prefix), true, nil
					jumped = true
					break
				}
			}
			p := place{bucket: b, key: it.Address.Key}
			res.Uploads = append(res.Uploads, uploadOf(&p, it.Address.Upload, it.State.Current))
			res.NextKeyMarker, res.NextUploadMarker = key, hex.EncodeToString(it.Address.Upload[:])
		}
		if jumped {
			continue
		}
		if !page.Truncated {
			res.NextKeyMarker, res.NextUploadMarker = "", ""
			return res, nil
		}
		so.After, so.AfterPrefix, so.AfterSub = page.After, page.AfterPrefix, page.AfterSub
	}
}
