package s3api

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// fakeStore is the object store as its types document it, in memory, naively: what the handlers
// are tested against.
type fakeStore struct {
	mu      sync.Mutex // guards everything below
	buckets map[string]*fakeBucket
	serial  uint64
	clock   func() time.Time
	fail    func(op string) error // may fail any call
	calls   []string
}

type fakeBucket struct {
	object.Bucket
	keys    map[string][]*fakeVersion // newest first
	uploads map[string]*fakeUpload
}

type fakeVersion struct {
	info  object.Info
	data  []byte
	parts []object.PartInfo
}

type fakeUpload struct {
	object.Upload
	o     object.UploadOptions
	parts map[int]*fakePart
}

type fakePart struct {
	object.PartInfo
	data []byte
}

func newFake() *fakeStore {
	return &fakeStore{buckets: map[string]*fakeBucket{}, clock: time.Now}
}

func refuse(r *object.Reason, key string) error { return &object.Failure{Reason: r, Key: key} }

// enter is called with mu held by every method.
func (s *fakeStore) enter(op, bucket string) (*fakeBucket, error) {
	s.calls = append(s.calls, op)
	if s.fail != nil {
		if err := s.fail(op); err != nil {
			return nil, err
		}
	}
	b := s.buckets[bucket]
	if b == nil {
		return nil, &object.Failure{Reason: object.ErrNoSuchBucket, Bucket: bucket}
	}
	return b, nil
}

func (s *fakeStore) CreateBucket(_ context.Context, name string, o object.CreateBucketOptions) (object.Bucket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[name]; b != nil {
		if b.Owner == o.Owner {
			return b.Bucket, &object.Failure{Reason: object.ErrBucketOwned, Bucket: name}
		}
		return object.Bucket{}, &object.Failure{Reason: object.ErrBucketExists, Bucket: name}
	}
	b := &fakeBucket{Bucket: object.Bucket{Name: name, Owner: o.Owner, Region: o.Region, Created: s.clock(), ObjectLock: o.ObjectLock}, keys: map[string][]*fakeVersion{}, uploads: map[string]*fakeUpload{}}
	if o.ObjectLock {
		b.Versioning = object.Enabled
	}
	s.buckets[name] = b
	return b.Bucket, nil
}

func (s *fakeStore) HeadBucket(_ context.Context, name string) (object.Bucket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("HeadBucket", name)
	if err != nil {
		return object.Bucket{}, err
	}
	return b.Bucket, nil
}

func (s *fakeStore) ListBuckets(_ context.Context, owner string) ([]object.Bucket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []object.Bucket
	for _, b := range s.buckets {
		if owner == "" || b.Owner == owner {
			out = append(out, b.Bucket)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func (s *fakeStore) DeleteBucket(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("DeleteBucket", name)
	if err != nil {
		return err
	}
	if len(b.keys) > 0 {
		return &object.Failure{Reason: object.ErrBucketNotEmpty, Bucket: name}
	}
	delete(s.buckets, name)
	return nil
}

func (s *fakeStore) SetVersioning(_ context.Context, name string, v object.Versioning) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("SetVersioning", name)
	if err != nil {
		return err
	}
	if v == object.Suspended && b.ObjectLock {
		return &object.Failure{Reason: object.ErrInvalidBucketState, Bucket: name}
	}
	b.Versioning = v
	return nil
}

func matchesAny(tags []string, etag string) bool {
	return slices.Contains(tags, "*") || slices.Contains(tags, etag)
}

func checkWriteIf(c object.Conditions, cur *fakeVersion, key string) error {
	live := cur != nil && !cur.info.DeleteMarker
	if c.IfNoneMatch != nil && live && matchesAny(c.IfNoneMatch, cur.info.ETag) {
		return refuse(object.ErrPrecondition, key)
	}
	if c.IfMatch != nil {
		if !live {
			return refuse(object.ErrNoSuchKey, key)
		}
		if !matchesAny(c.IfMatch, cur.info.ETag) {
			return refuse(object.ErrPrecondition, key)
		}
	}
	return nil
}

func checkReadIf(c object.Conditions, i *object.Info) *object.Reason {
	mod := i.ModTime.Unix()
	if c.IfMatch != nil {
		if !matchesAny(c.IfMatch, i.ETag) {
			return object.ErrPrecondition
		}
	} else if !c.IfUnmodifiedSince.IsZero() && mod > c.IfUnmodifiedSince.Unix() {
		return object.ErrPrecondition
	}
	if c.IfNoneMatch != nil {
		if matchesAny(c.IfNoneMatch, i.ETag) {
			return object.ErrNotModified
		}
	} else if !c.IfModifiedSince.IsZero() && mod <= c.IfModifiedSince.Unix() {
		return object.ErrNotModified
	}
	return nil
}

// absorb reads a body and its digests.
func absorb(body io.Reader, size int64, algorithms []checksum.Algorithm, verify func(object.Sums) error) ([]byte, object.Sums, error) {
	data, err := io.ReadAll(io.LimitReader(body, size+1))
	if err != nil {
		return nil, object.Sums{}, errs.Wrap("fake.absorb", err)
	}
	if int64(len(data)) != size {
		return nil, object.Sums{}, refuse(object.ErrIncompleteBody, "")
	}
	m := md5.Sum(data)
	sums := object.Sums{Size: size, MD5: m[:]}
	for _, a := range algorithms {
		sums.Checksums = append(sums.Checksums, metadata.Checksum{Algorithm: uint8(a), Value: a.Sum(data)})
	}
	if verify != nil {
		if err := verify(sums); err != nil {
			return nil, sums, err
		}
	}
	return data, sums, nil
}

func (s *fakeStore) push(b *fakeBucket, v *fakeVersion) {
	s.serial++
	v.info.Bucket, v.info.Versioning, v.info.VersionID = b.Name, b.Versioning, object.NullVersion
	v.info.ModTime = s.clock().UTC()
	if b.Versioning == object.Enabled {
		v.info.VersionID = fmt.Sprintf("%032x", s.serial)
	}
	old := b.keys[v.info.Key]
	if v.info.VersionID == object.NullVersion {
		old = slices.DeleteFunc(slices.Clone(old), func(x *fakeVersion) bool { return x.info.VersionID == object.NullVersion })
	}
	b.keys[v.info.Key] = append([]*fakeVersion{v}, old...)
}

func (b *fakeBucket) current(key string) *fakeVersion {
	if v := b.keys[key]; len(v) > 0 {
		return v[0]
	}
	return nil
}

func (s *fakeStore) Put(_ context.Context, bucket, key string, body io.Reader, o object.PutOptions) (object.Info, error) {
	s.mu.Lock()
	b, err := s.enter("Put", bucket)
	if err == nil {
		err = checkWriteIf(o.If, b.current(key), key)
	}
	s.mu.Unlock()
	if err != nil {
		return object.Info{}, err
	}
	data, sums, err := absorb(body, o.Size, o.Checksums, o.Verify)
	if err != nil {
		return object.Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := checkWriteIf(o.If, b.current(key), key); err != nil {
		return object.Info{}, err
	}
	v := &fakeVersion{data: data, info: object.Info{Key: key, Size: o.Size, ETag: hex.EncodeToString(sums.MD5), Class: o.Class, Owner: o.Owner, Headers: o.Headers, Meta: o.Meta, Tags: o.Tags, Checksums: sums.Checksums}}
	s.push(b, v)
	return v.info, nil
}

// find returns a version for reading.
func (b *fakeBucket) find(key string, id *string) (*fakeVersion, error) {
	if id == nil {
		v := b.current(key)
		switch {
		case v == nil:
			return nil, refuse(object.ErrNoSuchKey, key)
		case v.info.DeleteMarker:
			return nil, &object.Failure{Reason: object.ErrNoSuchKey, Key: key, DeleteMarker: true, VersionID: v.info.VersionID}
		}
		return v, nil
	}
	if *id != object.NullVersion && len(*id) != 32 {
		return nil, refuse(object.ErrInvalidVersionID, key)
	}
	for _, v := range b.keys[key] {
		if v.info.VersionID != *id {
			continue
		}
		if v.info.DeleteMarker {
			return nil, &object.Failure{Reason: object.ErrMethodNotAllowed, Key: key, DeleteMarker: true, VersionID: *id, ModTime: v.info.ModTime}
		}
		return v, nil
	}
	return nil, &object.Failure{Reason: object.ErrNoSuchVersion, Key: key, VersionID: *id}
}

type fakeBody struct{ *bytes.Reader }

func (fakeBody) Close() error { return nil }

func (s *fakeStore) Get(_ context.Context, bucket, key string, o object.GetOptions) (Content, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("Get", bucket)
	if err != nil {
		return Content{}, err
	}
	v, err := b.find(key, o.VersionID)
	if err != nil {
		return Content{}, err
	}
	info := v.info
	info.Versioning = b.Versioning
	if r := checkReadIf(o.If, &info); r != nil {
		return Content{}, &object.Failure{Reason: r, Bucket: bucket, Key: key, Info: &info}
	}
	first, last, partial := int64(0), info.Size-1, false
	switch {
	case o.PartNumber > 0 && info.PartCount > 0:
		if o.PartNumber > len(v.parts) {
			return Content{}, &object.Failure{Reason: object.ErrInvalidPartNumber, PartNumber: len(v.parts)}
		}
		p := v.parts[o.PartNumber-1]
		info.Part = &p
		first, last, partial = p.Offset, p.Offset+p.Size-1, true
	case o.PartNumber > 1:
		return Content{}, &object.Failure{Reason: object.ErrInvalidPartNumber, PartNumber: 1}
	case o.Range != nil && (o.IfRange == "" || o.IfRange == info.ETag) && (o.IfRangeTime.IsZero() || o.IfRangeTime.Unix() == info.ModTime.Unix()):
		partial = true
		switch r := o.Range; {
		case r.Suffix > 0:
			first = max(0, info.Size-r.Suffix)
		default:
			first = r.First
			if r.Last >= 0 {
				last = min(last, r.Last)
			}
		}
		if first > last {
			return Content{}, &object.Failure{Reason: object.ErrInvalidRange, Size: info.Size}
		}
	}
	return Content{Info: info, Offset: first, Length: last - first + 1, Partial: partial, Body: fakeBody{bytes.NewReader(v.data[first : last+1])}}, nil
}

func (s *fakeStore) Head(ctx context.Context, bucket, key string, o object.GetOptions) (Content, error) {
	c, err := s.Get(ctx, bucket, key, o)
	c.Body = nil
	return c, err
}

func (s *fakeStore) Delete(_ context.Context, bucket, key string, o object.DeleteOptions) (object.DeleteResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("Delete", bucket)
	if err != nil {
		return object.DeleteResult{}, err
	}
	res := object.DeleteResult{Versioning: b.Versioning}
	cur := b.current(key)
	if o.VersionID != nil {
		res.VersionID = *o.VersionID
		at := slices.IndexFunc(b.keys[key], func(v *fakeVersion) bool { return v.info.VersionID == *o.VersionID })
		if at < 0 {
			return res, nil
		}
		v := b.keys[key][at]
		if o.Allow != nil {
			if err := o.Allow(&metadata.Version{}); err != nil {
				return res, err
			}
		}
		res.DeleteMarker = v.info.DeleteMarker
		if b.keys[key] = slices.Delete(b.keys[key], at, at+1); len(b.keys[key]) == 0 {
			delete(b.keys, key)
		}
		return res, nil
	}
	if o.If.IfMatch != nil {
		if cur == nil {
			return res, refuse(object.ErrNoSuchKey, key)
		}
		if !matchesAny(o.If.IfMatch, cur.info.ETag) {
			return res, refuse(object.ErrPrecondition, key)
		}
	}
	if o.If.MatchSize != nil && cur != nil && cur.info.Size != *o.If.MatchSize {
		return res, refuse(object.ErrPrecondition, key)
	}
	if b.Versioning == object.Unversioned {
		delete(b.keys, key)
		return res, nil
	}
	m := &fakeVersion{info: object.Info{Key: key, DeleteMarker: true, Owner: o.Owner}}
	s.push(b, m)
	res.DeleteMarker, res.VersionID = true, m.info.VersionID
	return res, nil
}

func (s *fakeStore) DeleteMany(ctx context.Context, bucket string, keys []object.DeleteRequest) ([]object.DeleteOutcome, error) {
	out := make([]object.DeleteOutcome, len(keys))
	for i, k := range keys {
		out[i].DeleteResult, out[i].Err = s.Delete(ctx, bucket, k.Key, k.DeleteOptions)
	}
	return out, nil
}

func (s *fakeStore) source(ctx context.Context, bucket, key string, r *object.Range, o *object.CopyOptions) (Content, []byte, error) {
	c, err := s.Get(ctx, bucket, key, object.GetOptions{VersionID: o.SourceVersionID, If: o.SourceIf, Range: r})
	if err != nil {
		var f *object.Failure
		if errors.As(err, &f) && f.Reason == object.ErrNotModified {
			f.Reason = object.ErrPrecondition
		}
		return c, nil, err
	}
	if o.CheckSource != nil {
		if err := o.CheckSource(c.Info); err != nil {
			return c, nil, err
		}
	}
	if r != nil && r.Last >= c.Info.Size {
		return c, nil, &object.Failure{Reason: object.ErrInvalidRange, Size: c.Info.Size}
	}
	var b bytes.Buffer
	c.Body.WriteTo(&b)
	return c, b.Bytes(), nil
}

func (s *fakeStore) Copy(ctx context.Context, srcBucket, srcKey, bucket, key string, o object.CopyOptions) (object.CopyResult, error) {
	c, data, err := s.source(ctx, srcBucket, srcKey, nil, &o)
	if err != nil {
		return object.CopyResult{}, err
	}
	if srcBucket == bucket && srcKey == key && o.SourceVersionID == nil && !o.ReplaceMeta && !o.ReplaceTags && classOf(o.Put.Class) == classOf(c.Info.Class) {
		return object.CopyResult{}, refuse(object.ErrCopySelf, key)
	}
	put := o.Put
	put.Size = int64(len(data))
	if !o.ReplaceMeta {
		put.Headers, put.Meta = c.Info.Headers, c.Info.Meta
	}
	if !o.ReplaceTags {
		put.Tags = c.Info.Tags
	}
	if put.Checksums == nil {
		for _, x := range c.Info.Checksums {
			put.Checksums = append(put.Checksums, checksum.Algorithm(x.Algorithm))
		}
	}
	info, err := s.Put(ctx, bucket, key, bytes.NewReader(data), put)
	res := object.CopyResult{Info: info}
	if c.Info.Versioning != object.Unversioned {
		res.SourceVersionID = c.Info.VersionID
	}
	return res, err
}

func (s *fakeStore) Modify(_ context.Context, bucket, key string, id *string, change func(*metadata.Version) error) (object.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("Modify", bucket)
	if err != nil {
		return object.Info{}, err
	}
	v, err := b.find(key, id)
	if err != nil {
		return object.Info{}, err
	}
	m := metadata.Version{Tags: slices.Clone(v.info.Tags)}
	if err := change(&m); err != nil {
		return object.Info{}, err
	}
	v.info.Tags = m.Tags
	info := v.info
	info.Versioning = b.Versioning
	return info, nil
}

func (s *fakeStore) Parts(_ context.Context, bucket, key string, id *string, after, limit int) (object.Info, []object.PartInfo, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("Parts", bucket)
	if err != nil {
		return object.Info{}, nil, false, err
	}
	v, err := b.find(key, id)
	if err != nil {
		return object.Info{}, nil, false, err
	}
	var out []object.PartInfo
	for _, p := range v.parts {
		if p.Number > after {
			out = append(out, p)
		}
	}
	more := len(out) > limit
	if more {
		out = out[:limit]
	}
	return v.info, out, more, nil
}

// page walks sorted names and rolls them up; it is shared by all listings. A name's rest behind
// after is skipped with its prefix.
func rollUp(names []string, prefix, delimiter, after string, limit int, take func(name string)) (prefixes []string, truncated bool, next string) {
	n := 0
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) || name <= after {
			continue
		}
		entry := name
		isPrefix := false
		if delimiter != "" {
			if i := strings.Index(name[len(prefix):], delimiter); i >= 0 {
				entry, isPrefix = name[:len(prefix)+i+len(delimiter)], true
			}
		}
		if isPrefix && (strings.HasPrefix(after, entry) || len(prefixes) > 0 && prefixes[len(prefixes)-1] == entry) {
			continue
		}
		if n == limit {
			return prefixes, true, next
		}
		n++
		next = entry
		if isPrefix {
			prefixes = append(prefixes, entry)
		} else {
			take(name)
		}
	}
	return prefixes, false, ""
}

func (s *fakeStore) List(_ context.Context, bucket string, o object.ListOptions) (object.ListResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("List", bucket)
	if err != nil {
		return object.ListResult{}, err
	}
	var names []string
	for k, v := range b.keys {
		if !v[0].info.DeleteMarker {
			names = append(names, k)
		}
	}
	sort.Strings(names)
	res := object.ListResult{Bucket: b.Bucket}
	res.Prefixes, res.Truncated, res.Next = rollUp(names, o.Prefix, o.Delimiter, o.After, o.Limit, func(k string) {
		i := b.keys[k][0].info
		i.Headers, i.Meta, i.Tags = nil, nil, nil
		res.Objects = append(res.Objects, i)
	})
	return res, nil
}

func (s *fakeStore) ListVersions(_ context.Context, bucket string, o object.ListVersionsOptions) (object.ListVersionsResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("ListVersions", bucket)
	if err != nil {
		return object.ListVersionsResult{}, err
	}
	// Entries sort by key, then newest first: name, NUL, and a number.
	var names []string
	entries := map[string]object.Info{}
	after := o.KeyMarker + "\x00\xff"
	if o.KeyMarker == "" {
		after = ""
	}
	for k, vs := range b.keys {
		for i, v := range vs {
			name := fmt.Sprintf("%s\x00%08d", k, i)
			info := v.info
			info.IsLatest = i == 0
			entries[name] = info
			names = append(names, name)
			if k == o.KeyMarker && info.VersionID == o.VersionMarker {
				after = name
			}
		}
	}
	sort.Strings(names)
	res := object.ListVersionsResult{Bucket: b.Bucket}
	var last string
	res.Prefixes, res.Truncated, last = rollUp(names, o.Prefix, o.Delimiter, after, o.Limit, func(n string) { res.Versions = append(res.Versions, entries[n]) })
	if res.Truncated {
		res.NextKeyMarker, _, _ = strings.Cut(last, "\x00")
		res.NextVersionMarker = entries[last].VersionID
	}
	return res, nil
}

func (s *fakeStore) CreateUpload(_ context.Context, bucket, key string, o object.UploadOptions) (object.Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("CreateUpload", bucket)
	if err != nil {
		return object.Upload{}, err
	}
	s.serial++
	u := &fakeUpload{Upload: object.Upload{Bucket: bucket, Key: key, UploadID: fmt.Sprintf("%032x", s.serial), Initiated: s.clock(), Class: o.Class, Owner: o.Owner, ChecksumAlgorithm: o.ChecksumAlgorithm, ChecksumType: o.ChecksumType}, o: o, parts: map[int]*fakePart{}}
	b.uploads[u.UploadID] = u
	return u.Upload, nil
}

func (s *fakeStore) upload(op, bucket, key, id string) (*fakeBucket, *fakeUpload, error) {
	b, err := s.enter(op, bucket)
	if err != nil {
		return nil, nil, err
	}
	u := b.uploads[id]
	if u == nil || u.Key != key {
		return nil, nil, &object.Failure{Reason: object.ErrNoSuchUpload, Key: key, UploadID: id}
	}
	return b, u, nil
}

func (s *fakeStore) HeadUpload(_ context.Context, bucket, key, id string) (object.Upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, u, err := s.upload("HeadUpload", bucket, key, id)
	if err != nil {
		return object.Upload{}, err
	}
	return u.Upload, nil
}

func (s *fakeStore) PutPart(_ context.Context, bucket, key, id string, number int, body io.Reader, o object.PartOptions) (object.PartInfo, error) {
	data, sums, err := absorb(body, o.Size, o.Checksums, o.Verify)
	if err != nil {
		return object.PartInfo{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, u, err := s.upload("PutPart", bucket, key, id)
	if err != nil {
		return object.PartInfo{}, err
	}
	p := &fakePart{data: data, PartInfo: object.PartInfo{Number: number, Size: o.Size, ETag: hex.EncodeToString(sums.MD5), ModTime: s.clock(), Checksums: sums.Checksums}}
	u.parts[number] = p
	return p.PartInfo, nil
}

func (s *fakeStore) CopyPart(ctx context.Context, srcBucket, srcKey, bucket, key, id string, number int, r *object.Range, o object.CopyOptions) (object.CopyResult, error) {
	c, data, err := s.source(ctx, srcBucket, srcKey, r, &o)
	if err != nil {
		return object.CopyResult{}, err
	}
	p, err := s.PutPart(ctx, bucket, key, id, number, bytes.NewReader(data), object.PartOptions{Size: int64(len(data)), Checksums: o.Put.Checksums})
	res := object.CopyResult{Info: object.Info{Key: key, ETag: p.ETag, ModTime: p.ModTime, Size: p.Size, Checksums: p.Checksums}}
	if c.Info.Versioning != object.Unversioned {
		res.SourceVersionID = c.Info.VersionID
	}
	return res, err
}

func (s *fakeStore) ListParts(_ context.Context, bucket, key, id string, after, limit int) (object.ListPartsResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, u, err := s.upload("ListParts", bucket, key, id)
	if err != nil {
		return object.ListPartsResult{}, err
	}
	res := object.ListPartsResult{Upload: u.Upload}
	for n := after + 1; n <= object.MaxParts; n++ {
		if p := u.parts[n]; p != nil {
			if len(res.Parts) == limit {
				res.Truncated, res.Next = true, res.Parts[limit-1].Number
				break
			}
			res.Parts = append(res.Parts, p.PartInfo)
		}
	}
	return res, nil
}

func (s *fakeStore) ListUploads(_ context.Context, bucket string, o object.ListUploadsOptions) (object.ListUploadsResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.enter("ListUploads", bucket)
	if err != nil {
		return object.ListUploadsResult{}, err
	}
	var names []string
	for id, u := range b.uploads {
		names = append(names, u.Key+"\x00"+id)
	}
	sort.Strings(names)
	after := ""
	if o.KeyMarker != "" {
		after = o.KeyMarker + "\x00\xff"
		if o.UploadMarker != "" {
			after = o.KeyMarker + "\x00" + o.UploadMarker
		}
	}
	var res object.ListUploadsResult
	var last string
	res.Prefixes, res.Truncated, last = rollUp(names, o.Prefix, o.Delimiter, after, o.Limit, func(n string) {
		_, id, _ := strings.Cut(n, "\x00")
		res.Uploads = append(res.Uploads, b.uploads[id].Upload)
	})
	if res.Truncated {
		res.NextKeyMarker, res.NextUploadMarker, _ = strings.Cut(last, "\x00")
	}
	return res, nil
}

func (s *fakeStore) CompleteUpload(_ context.Context, bucket, key, id string, parts []object.CompletedPart, o object.CompleteOptions) (object.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, u, err := s.upload("CompleteUpload", bucket, key, id)
	if err != nil {
		return object.Info{}, err
	}
	if err := checkWriteIf(o.If, b.current(key), key); err != nil {
		return object.Info{}, err
	}
	v := &fakeVersion{}
	h := md5.New()
	algo, kind := u.ChecksumAlgorithm, u.ChecksumType
	if algo == checksum.None {
		algo, kind = checksum.Default, checksum.FullObject
	}
	var sums []byte
	for i, c := range parts {
		if i > 0 && c.Number <= parts[i-1].Number {
			return object.Info{}, &object.Failure{Reason: object.ErrInvalidPartOrder, UploadID: id}
		}
		p := u.parts[c.Number]
		if p == nil || p.ETag != c.ETag {
			return object.Info{}, &object.Failure{Reason: object.ErrInvalidPart, UploadID: id, PartNumber: c.Number, ETag: c.ETag}
		}
		for _, want := range c.Checksums {
			if !slices.ContainsFunc(p.Checksums, func(x metadata.Checksum) bool {
				return x.Algorithm == want.Algorithm && bytes.Equal(x.Value, want.Value)
			}) {
				return object.Info{}, &object.Failure{Reason: object.ErrInvalidPart, UploadID: id, PartNumber: c.Number, ETag: c.ETag}
			}
		}
		if p.Size < object.MinPartSize && i < len(parts)-1 {
			return object.Info{}, &object.Failure{Reason: object.ErrEntityTooSmall, Size: p.Size, PartNumber: c.Number, ETag: c.ETag}
		}
		info := p.PartInfo
		info.Offset, info.ModTime = int64(len(v.data)), time.Time{}
		v.parts = append(v.parts, info)
		v.data = append(v.data, p.data...)
		sum, _ := hex.DecodeString(p.ETag)
		h.Write(sum)
		sums = append(sums, algo.Sum(p.data)...)
	}
	whole := metadata.Checksum{Algorithm: uint8(algo), Value: algo.Sum(v.data)}
	if kind == checksum.Composite {
		whole = metadata.Checksum{Algorithm: uint8(algo), Composite: true, Parts: uint32(len(parts)), Value: algo.Sum(sums)}
	}
	switch {
	case o.Size != nil && *o.Size != int64(len(v.data)):
		return object.Info{}, refuse(object.ErrObjectSize, key)
	case o.ChecksumType != checksum.Unset && o.ChecksumType != kind:
		return object.Info{}, refuse(object.ErrChecksumType, key)
	case o.Checksum != nil && !bytes.Equal(o.Checksum.Value, whole.Value):
		return object.Info{}, refuse(object.ErrBadDigest, key)
	}
	v.info = object.Info{Key: key, Size: int64(len(v.data)), ETag: fmt.Sprintf("%x-%d", h.Sum(nil), len(parts)), Class: u.Class, Owner: u.Owner, Headers: u.o.Headers, Meta: u.o.Meta, Tags: u.o.Tags, Checksums: []metadata.Checksum{whole}, PartCount: len(parts), Upload: true}
	s.push(b, v)
	delete(b.uploads, id)
	return v.info, nil
}

func (s *fakeStore) AbortUpload(_ context.Context, bucket, key, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, _, err := s.upload("AbortUpload", bucket, key, id)
	if err != nil {
		return err
	}
	delete(b.uploads, id)
	return nil
}
