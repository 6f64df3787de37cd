package object

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // S3 defines ETags by it; nothing relies on it for protection.
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// The life of an upload, in its register on the key's partition:
//
//	open ──CAS: manifest and version are fixed──▶ completing ──after the object has the version──▶ completed
//	  └──▶ aborted ◀──only after the object's register has refused the completion for ever───┘
//
// A completion that is cut short is finished by whoever meets it: a repeated Complete, or any
// operation that is about to let go of the version.

// CreateUpload opens a multipart upload.
func (s *Store) CreateUpload(ctx context.Context, bucket, key string, o UploadOptions) (Upload, error) {
	const op = "CreateUpload"
	p, err := s.locate(ctx, op, bucket, key, true)
	if err != nil {
		return Upload{}, err
	}
	class, ok := normalClass(o.Class)
	if !ok {
		return Upload{}, fail(op, &Failure{Reason: ErrStorageClass, Bucket: bucket, Key: key})
	}
	switch {
	case o.ChecksumAlgorithm == checksum.None && o.ChecksumType != checksum.Unset:
		return Upload{}, fail(op, &Failure{Reason: ErrChecksumType, Bucket: bucket, Key: key})
	case o.ChecksumAlgorithm != checksum.None && o.ChecksumType == checksum.Unset:
		o.ChecksumType = o.ChecksumAlgorithm.DefaultType()
	}
	if o.ChecksumAlgorithm != checksum.None && !o.ChecksumAlgorithm.Permits(o.ChecksumType) {
		return Upload{}, fail(op, &Failure{Reason: ErrChecksumType, Bucket: bucket, Key: key})
	}
	now := s.now()
	v := &metadata.Version{Kind: metadata.VersionUpload, Status: metadata.UploadOpen, ModTime: now.UnixNano(), Headers: o.Headers, Meta: o.Meta,
		Tags: o.Tags, Class: class, Owner: o.Owner, ChecksumAlgo: uint8(o.ChecksumAlgorithm), ChecksumType: uint8(o.ChecksumType),
		RetainMode: o.RetainMode, LegalHold: o.LegalHold, Seq: 1}
	if !o.RetainUntil.IsZero() {
		v.RetainUntil = o.RetainUntil.Unix()
	}
	id := newUploadID(now)
	_, err = s.update(ctx, op, p, p.upload(id), metadata.Operation{},
		func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
			if base != nil && base.Current != nil {
				return nil, errs.E("object."+op, errs.Internal, "an upload id was drawn twice")
			}
			return &metadata.Change{Current: v, NextSeq: 2}, nil
		})
	if err != nil {
		return Upload{}, err
	}
	return uploadOf(p, id, v), nil
}

// newUploadID begins with the time, so that the uploads of a key order by their beginning, as S3
// lists them.
func newUploadID(now time.Time) (id metadata.UploadID) {
	binary.BigEndian.PutUint64(id[:8], uint64(now.UnixNano()))
	rand.Read(id[8:])
	return id
}

func parseUploadID(s string) (id metadata.UploadID, ok bool) {
	if len(s) != 2*len(id) || strings.ToLower(s) != s {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(s))
	return id, err == nil && id != metadata.UploadID{}
}

func uploadOf(p *place, id metadata.UploadID, v *metadata.Version) Upload {
	return Upload{Bucket: p.bucket.Name, Key: string(p.key), UploadID: hex.EncodeToString(id[:]), Initiated: time.Unix(0, v.ModTime).UTC(),
		Class: v.Class, Owner: v.Owner, ChecksumAlgorithm: checksum.Algorithm(v.ChecksumAlgo), ChecksumType: checksum.Type(v.ChecksumType)}
}

// completionOp is the operation id of an upload's completion, the same for whoever drives it.
func completionOp(id metadata.UploadID) metadata.OpID {
	sum := sha256.Sum256(append([]byte("complete"), id[:]...))
	return metadata.OpID(binary.BigEndian.Uint64(sum[:]) | 1)
}

// uploadPlace finds an upload's register and reads it. Without a register the error is
// ErrNoSuchUpload; the caller looks at the status.
func (s *Store) uploadPlace(ctx context.Context, op, bucket, key, uploadID string, write bool) (*place, metadata.UploadID, *metadata.State, error) {
	p, err := s.locate(ctx, op, bucket, key, write)
	if err != nil {
		return nil, metadata.UploadID{}, nil, err
	}
	id, ok := parseUploadID(uploadID)
	if !ok {
		return nil, id, nil, noUpload(op, p, uploadID)
	}
	st, err := s.readUpload(ctx, op, p, id)
	if err == nil && st == nil {
		err = noUpload(op, p, uploadID)
	}
	return p, id, st, err
}

func noUpload(op string, p *place, uploadID string) error {
	return fail(op, &Failure{Reason: ErrNoSuchUpload, Bucket: p.bucket.Name, Key: string(p.key), UploadID: uploadID})
}

// readUpload returns the state of an upload's register, nil when there is none.
func (s *Store) readUpload(ctx context.Context, op string, p *place, id metadata.UploadID) (*metadata.State, error) {
	view, err := s.read(ctx, op, p, p.upload(id), metadata.ReadOptions{})
	if err != nil || view.State == nil || view.State.Current == nil {
		return nil, err
	}
	return view.State, nil
}

// PutPart stores one part of an open upload; a part of the same number is replaced.
func (s *Store) PutPart(ctx context.Context, bucket, key, uploadID string, number int, body io.Reader, o PartOptions) (PartInfo, error) {
	return s.putPart(ctx, "PutPart", bucket, key, uploadID, number, body, o)
}

func (s *Store) putPart(ctx context.Context, op, bucket, key, uploadID string, number int, body io.Reader, o PartOptions) (PartInfo, error) {
	if number < 1 || number > MaxParts {
		return PartInfo{}, fail(op, &Failure{Reason: ErrPartNumber, Bucket: bucket, Key: key, UploadID: uploadID, PartNumber: number})
	}
	if o.Size < 0 {
		return PartInfo{}, errs.E("object."+op, errs.Invalid, "the size of the body is not known")
	}
	if o.Size > MaxPutSize {
		return PartInfo{}, fail(op, &Failure{Reason: ErrEntityTooLarge, Bucket: bucket, Key: key, Size: o.Size})
	}
	p, id, st, err := s.uploadPlace(ctx, op, bucket, key, uploadID, true)
	if err != nil {
		return PartInfo{}, err
	}
	if st.Current.Status != metadata.UploadOpen {
		return PartInfo{}, noUpload(op, p, uploadID)
	}
	algos := slices.Clone(o.Checksums)
	if a := checksum.Algorithm(st.Current.ChecksumAlgo); a != checksum.None && !slices.Contains(algos, a) {
		algos = append(algos, a) // the completion will want it
	}
	for _, a := range algos {
		if !a.Valid() {
			return PartInfo{}, errs.E("object."+op, errs.Invalid, "unknown checksum algorithm")
		}
	}
	h := newHasher(s.pool, body, o.Size, algos, false)
	defer h.close()
	w, err := s.write(ctx, op, p, p.part(id, number), st.Current.Class, h)
	if err != nil {
		return PartInfo{}, err
	}
	if o.Verify != nil {
		sums := w.sums
		sums.Checksums = sums.Checksums[:len(o.Checksums)]
		if err := o.Verify(sums); err != nil {
			w.abort()
			return PartInfo{}, err
		}
	}
	v := &metadata.Version{Kind: metadata.VersionPart, Size: w.sums.Size, ETag: hex.EncodeToString(w.sums.MD5), Checksums: w.sums.Checksums,
		Data: &w.data, ModTime: s.now().UnixNano()}
	_, err = w.commit(ctx, op, p, func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
		next := *v
		c := keep(base)
		next.Seq = c.NextSeq
		c.NextSeq++
		if c.Current != nil {
			if len(base.Dead) >= maxDeadOfUpload {
				return nil, errs.E("object."+op, errs.Busy, "this part was uploaded too often; complete or abort the upload")
			}
			// It stays on the drives while the upload is open: a completion may name it.
			c.Dead = deadOf(c.Current)
		}
		c.Current = &next
		return c, nil
	})
	if err != nil {
		return PartInfo{}, err
	}
	// The upload may have ended meanwhile. Then nothing names the part, and it must not stay.
	after, err := s.readUpload(ctx, op, p, id)
	if err != nil {
		return PartInfo{}, err
	}
	if after == nil || after.Current.Status != metadata.UploadOpen {
		if after == nil || after.Current.Status == metadata.UploadAborted {
			s.dropPart(ctx, op, p, id, number)
			return PartInfo{}, noUpload(op, p, uploadID)
		}
		if named, err := s.inCompletion(ctx, op, p, id, after, number, v.Data.ID); err != nil || !named {
			s.cleanup(func(ctx context.Context) { s.clearRest(ctx, p, id, after.Current.Completed.Manifest) })
			return PartInfo{}, firstError(err, noUpload(op, p, uploadID))
		}
	}
	return partOf(number, v), nil
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// inCompletion reports whether a completion that has begun names the data of a part.
func (s *Store) inCompletion(ctx context.Context, op string, p *place, id metadata.UploadID, st *metadata.State, number int, data [16]byte) (bool, error) {
	c := st.Current.Completed
	if c == nil || c.Manifest == nil {
		return false, nil
	}
	parts, err := s.manifestOf(ctx, op, p, id, c.Manifest, nil)
	if err != nil {
		return false, err
	}
	for i := range parts {
		if parts[i].info.Number == number {
			return parts[i].data.ID == data, nil
		}
	}
	return false, nil
}

// dropPart makes a part's register a tombstone; its data goes with it. Failures are left to the
// collection of the upload's remains.
func (s *Store) dropPart(ctx context.Context, op string, p *place, id metadata.UploadID, number int) {
	_, err := s.update(ctx, op, p, p.part(id, number), metadata.Operation{}, dropRegister)
	if err != nil {
		s.log.Debug("a part of an ended upload stays for now", "bucket", p.bucket.Name, "part", number, "error", err)
	}
}

// dropRegister makes a register a tombstone that lets go of all that it held. The dead list of a part
// keeps data, so a part's goes empty.
func dropRegister(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
	if base == nil || base.Current == nil {
		return nil, nothing{}
	}
	c := keep(base)
	if base.Current.Kind == metadata.VersionPart {
		for i := range base.Dead {
			c.ClearDead = append(c.ClearDead, base.Dead[i].Data.ID)
		}
	} else if done := base.Current.Completed; done != nil && done.Manifest != nil {
		c.Dead = append(c.Dead, metadata.DeadData{Data: *done.Manifest})
	}
	c.Current = nil
	return c, nil
}

func partOf(number int, v *metadata.Version) PartInfo {
	return PartInfo{Number: number, Size: v.Size, ETag: v.ETag, ModTime: time.Unix(0, v.ModTime).UTC(), Checksums: v.Checksums}
}

// HeadUpload returns an open upload.
func (s *Store) HeadUpload(ctx context.Context, bucket, key, uploadID string) (Upload, error) {
	const op = "HeadUpload"
	p, id, st, err := s.uploadPlace(ctx, op, bucket, key, uploadID, false)
	if err != nil {
		return Upload{}, err
	}
	if st.Current.Status != metadata.UploadOpen {
		return Upload{}, noUpload(op, p, uploadID)
	}
	return uploadOf(p, id, st.Current), nil
}

// ListParts lists the parts of an open upload behind part number after.
func (s *Store) ListParts(ctx context.Context, bucket, key, uploadID string, after, limit int) (ListPartsResult, error) {
	const op = "ListParts"
	p, id, st, err := s.uploadPlace(ctx, op, bucket, key, uploadID, false)
	if err != nil {
		return ListPartsResult{}, err
	}
	if st.Current.Status != metadata.UploadOpen {
		return ListPartsResult{}, noUpload(op, p, uploadID)
	}
	res := ListPartsResult{Upload: uploadOf(p, id, st.Current), Next: after}
	if limit <= 0 {
		return res, nil
	}
	err = s.eachPart(ctx, op, p, id, after+1, func(number int, st *metadata.State) bool {
		if len(res.Parts) == limit {
			res.Truncated = true
			return false
		}
		res.Parts = append(res.Parts, partOf(number, st.Current))
		res.Next = number
		return true
	})
	return res, err
}

// eachPart calls f for the part registers of an upload, ascending, until it returns false.
func (s *Store) eachPart(ctx context.Context, op string, p *place, id metadata.UploadID, from int, f func(number int, st *metadata.State) bool) error {
	for from <= MaxParts {
		page, err := s.scan(ctx, op, &p.bucket, metadata.ScanOptions{Kind: metadata.KindPart, Prefix: p.key, Upload: id, From: uint32(from), Limit: partsPage}, false)
		if err != nil {
			return err
		}
		for i := range page.Items {
			it := &page.Items[i]
			if it.State == nil || it.State.Current == nil {
				continue
			}
			if !f(int(it.Address.Part), it.State) {
				return nil
			}
		}
		if !page.Truncated || len(page.Items) == 0 {
			return nil
		}
		from = int(page.Items[len(page.Items)-1].Address.Part) + 1
	}
	return nil
}

// partsPage is how many parts a scan is asked for: an upload of 10,000 parts takes a few scans.
const partsPage = 2500

// AbortUpload ends an open upload; its parts go. Aborting what was aborted says ErrNoSuchUpload, as S3
// does. An upload whose completion has begun is finished by it, not aborted: but where the completion
// was refused by its conditions, it can never come to pass after the abort.
func (s *Store) AbortUpload(ctx context.Context, bucket, key, uploadID string) error {
	const op = "AbortUpload"
	p, id, st, err := s.uploadPlace(ctx, op, bucket, key, uploadID, true)
	if err != nil {
		return err
	}
	if err := s.abort(ctx, op, p, id, st); err != nil {
		return err
	}
	// From here on no part is named by anything, and none can be added that stays. What this pass
	// does not reach, the collection of ended uploads finds.
	return s.clearUpload(ctx, op, p, id, nil)
}

// abort moves an upload from the status in st to aborted. One whose completion was applied is not: the error is
// ErrNoSuchUpload, as for one that ended otherwise.
//
// One in completing is aborting first. Whoever applies its completion looks at that after the promises of its round, so
// that only rounds from before may still apply it, and these are found or ended by settleCompletion. It has to come
// after: the object's ring soon forgets that an operation was refused.
func (s *Store) abort(ctx context.Context, op string, p *place, id metadata.UploadID, st *metadata.State) error {
	from := st.Current.Status
	if from == metadata.UploadCompleting {
		if err := s.setStatus(ctx, op, p, id, from, metadata.UploadAborting); err != nil {
			return err
		}
		from = metadata.UploadAborting
	}
	if from == metadata.UploadAborting {
		applied, err := s.settleCompletion(ctx, op, p, id, true)
		if err != nil {
			return err
		}
		if applied {
			return noUpload(op, p, hex.EncodeToString(id[:]))
		}
	}
	if from != metadata.UploadOpen && from != metadata.UploadAborting {
		return noUpload(op, p, hex.EncodeToString(id[:]))
	}
	return s.setStatus(ctx, op, p, id, from, metadata.UploadAborted)
}

// setStatus moves an upload on. The error is ErrNoSuchUpload if it is not in from.
func (s *Store) setStatus(ctx context.Context, op string, p *place, id metadata.UploadID, from, to metadata.UploadStatus) error {
	_, err := s.update(ctx, op, p, p.upload(id), metadata.Operation{},
		func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
			if base == nil || base.Current == nil || base.Current.Status != from {
				return nil, noUpload(op, p, hex.EncodeToString(id[:]))
			}
			c := keep(base)
			next := *base.Current
			next.Status = to
			c.Current = &next
			return c, nil
		})
	return err
}

// clearUpload drops the part registers of an ended upload, but those that named says to keep, and, with
// nothing kept, the upload's own register last, so that the work is found again if it is cut short.
func (s *Store) clearUpload(ctx context.Context, op string, p *place, id metadata.UploadID, named map[int]bool) error {
	var numbers []int
	err := s.eachPart(ctx, op, p, id, 1, func(n int, _ *metadata.State) bool {
		if !named[n] {
			numbers = append(numbers, n)
		}
		return true
	})
	if err != nil {
		return err
	}
	failed := make([]error, len(numbers))
	each(len(numbers), drivesAtOnce, func(i int) {
		own := *p // an update follows its partition into the next epoch
		_, failed[i] = s.update(ctx, op, &own, p.part(id, numbers[i]), metadata.Operation{}, dropRegister)
	})
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	if named != nil {
		return nil
	}
	_, err = s.update(ctx, op, p, p.upload(id), metadata.Operation{}, dropRegister)
	return err
}

// CompleteUpload makes the object of an upload's parts. It is idempotent: repeated with the same list
// it answers the same, whoever finished it.
func (s *Store) CompleteUpload(ctx context.Context, bucket, key, uploadID string, list []CompletedPart, o CompleteOptions) (Info, error) {
	const op = "CompleteUpload"
	p, id, st, err := s.uploadPlace(ctx, op, bucket, key, uploadID, true)
	if err != nil {
		return Info{}, err
	}
	etag, err := listETag(op, p, uploadID, list)
	if err != nil {
		return Info{}, err
	}
	if st.Current.Status == metadata.UploadOpen {
		if st, err = s.beginCompletion(ctx, op, p, id, st, list, etag, &o); err != nil {
			return Info{}, err
		}
	}
	switch {
	case st.Current.Completed == nil || st.Current.Completed.ETag != etag:
		// Completed with another list, or aborted.
		return Info{}, noUpload(op, p, uploadID)
	case st.Current.Status == metadata.UploadCompleted:
		return infoOf(p.bucket, key, st.Current.Completed, true), nil
	case st.Current.Status == metadata.UploadAborting:
		return s.whatBecame(ctx, op, p, id)
	case st.Current.Status != metadata.UploadCompleting:
		return Info{}, noUpload(op, p, uploadID)
	}
	return s.finishCompletion(ctx, op, p, id, st, &o.If)
}

// listETag checks the list alone and returns the object's ETag.
func listETag(op string, p *place, uploadID string, list []CompletedPart) (string, error) {
	refuse := func(r *Reason, c CompletedPart) error {
		return fail(op, &Failure{Reason: r, Bucket: p.bucket.Name, Key: string(p.key), UploadID: uploadID, PartNumber: c.Number, ETag: c.ETag})
	}
	if len(list) == 0 || len(list) > MaxParts {
		return "", refuse(ErrInvalidPart, CompletedPart{})
	}
	h := md5.New() //nolint:gosec // see the import
	for i, c := range list {
		if c.Number < 1 || c.Number > MaxParts {
			return "", refuse(ErrInvalidPart, c)
		}
		if i > 0 && c.Number <= list[i-1].Number {
			return "", refuse(ErrInvalidPartOrder, c)
		}
		sum, err := hex.DecodeString(strings.Trim(c.ETag, `"`))
		if err != nil || len(sum) != md5.Size {
			return "", refuse(ErrInvalidPart, c)
		}
		h.Write(sum) //nolint:errcheck // a hash never fails
	}
	return fmt.Sprintf("%x-%d", h.Sum(nil), len(list)), nil
}

// beginCompletion checks the parts, stores the manifest, and moves the upload from open to
// completing. It returns the upload's state after that, which another completion may have made.
func (s *Store) beginCompletion(ctx context.Context, op string, p *place, id metadata.UploadID, st *metadata.State, list []CompletedPart, etag string, o *CompleteOptions) (*metadata.State, error) {
	if !o.If.zero() {
		// A condition that fails now leaves the upload open; one that fails only against a write that
		// comes between is found in finishCompletion.
		if err := s.lookAhead(ctx, op, p, &o.If); err != nil {
			return nil, err
		}
	}
	parts, err := s.pickParts(ctx, op, p, id, list)
	if err != nil {
		return nil, err
	}
	up := st.Current
	v := &metadata.Version{Kind: metadata.VersionObject, Class: up.Class, Headers: up.Headers, Meta: up.Meta, Tags: up.Tags, Owner: up.Owner,
		RetainUntil: up.RetainUntil, RetainMode: up.RetainMode, LegalHold: up.LegalHold, ETag: etag, PartCount: uint32(len(parts)), Upload: id,
		ChecksumAlgo: up.ChecksumAlgo, ChecksumType: up.ChecksumType}
	for i := range parts {
		v.Size += parts[i].info.Size
	}
	refuse := func(r *Reason) error {
		return fail(op, &Failure{Reason: r, Bucket: p.bucket.Name, Key: string(p.key), Size: v.Size})
	}
	switch {
	case v.Size > MaxObjectSize:
		return nil, refuse(ErrEntityTooLarge)
	case o.Size != nil && *o.Size != v.Size:
		return nil, refuse(ErrObjectSize)
	case o.ChecksumType != checksum.Unset && o.ChecksumType != checksum.Type(up.ChecksumType):
		return nil, refuse(ErrChecksumType)
	}
	if v.Checksums, err = wholeChecksum(up, parts); err != nil {
		return nil, errs.Wrap("object."+op, err)
	}
	if c := o.Checksum; c != nil {
		switch {
		case len(v.Checksums) == 0 || v.Checksums[0].Algorithm != c.Algorithm:
			return nil, refuse(ErrChecksumType)
		case !bytes.Equal(v.Checksums[0].Value, c.Value) || c.Parts != 0 && c.Parts != v.Checksums[0].Parts:
			return nil, refuse(ErrBadDigest)
		}
	}
	body := encodeManifest(parts)
	h := newHasher(s.pool, bytes.NewReader(body), int64(len(body)), nil, true)
	defer h.close()
	w, err := s.write(ctx, op, p, p.upload(id), "", h)
	if err != nil {
		return nil, err
	}
	v.Manifest = &w.data
	lost := false
	done, err := w.commit(ctx, op, p, func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
		if lost = base == nil || base.Current == nil || base.Current.Status != metadata.UploadOpen; lost {
			return nil, noUpload(op, p, hex.EncodeToString(id[:]))
		}
		c := keep(base)
		next := *base.Current
		next.Status, next.Completed = metadata.UploadCompleting, v
		c.Current = &next
		return c, nil
	})
	if err == nil && done.view.State.Current == nil {
		// It was chosen in somebody else's round; the upload was aborted and cleared since.
		return nil, noUpload(op, p, hex.EncodeToString(id[:]))
	}
	if err == nil {
		return done.view.State, nil
	}
	if !lost {
		return nil, err
	}
	// Somebody else ended the upload first; the caller looks how.
	now, e := s.readUpload(ctx, op, p, id)
	if e == nil && now == nil {
		e = err
	}
	return now, e
}

// pickParts finds the parts of a list and checks them against it.
func (s *Store) pickParts(ctx context.Context, op string, p *place, id metadata.UploadID, list []CompletedPart) ([]manifestPart, error) {
	parts := make([]manifestPart, 0, len(list))
	refuse := func(r *Reason, c CompletedPart) error {
		return fail(op, &Failure{Reason: r, Bucket: p.bucket.Name, Key: string(p.key), UploadID: hex.EncodeToString(id[:]), PartNumber: c.Number, ETag: c.ETag})
	}
	var bad error
	err := s.eachPart(ctx, op, p, id, list[0].Number, func(n int, st *metadata.State) bool {
		c := list[len(parts)]
		if n < c.Number {
			return true // uploaded, and not listed
		}
		v := st.Current
		switch {
		case n > c.Number || v.Data == nil || !strings.EqualFold(strings.Trim(c.ETag, `"`), v.ETag) || !sameSums(c.Checksums, v.Checksums):
			bad = refuse(ErrInvalidPart, c)
		case v.Size < s.c.MinPartSize && len(parts) < len(list)-1:
			bad = fail(op, &Failure{Reason: ErrEntityTooSmall, Bucket: p.bucket.Name, Key: string(p.key), Size: v.Size, PartNumber: c.Number, ETag: c.ETag})
		default:
			parts = append(parts, manifestPart{info: PartInfo{Number: n, Size: v.Size, ETag: v.ETag, Checksums: v.Checksums}, data: *v.Data})
			return len(parts) < len(list)
		}
		return false
	})
	if err == nil {
		err = bad
	}
	if err == nil && len(parts) < len(list) {
		err = refuse(ErrInvalidPart, list[len(parts)])
	}
	return parts, err
}

// sameSums reports whether every sum in want is among have.
func sameSums(want, have []metadata.Checksum) bool {
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h metadata.Checksum) bool { return h.Algorithm == w.Algorithm && bytes.Equal(h.Value, w.Value) }) {
			return false
		}
	}
	return true
}

// wholeChecksum computes the checksum of the object from those of its parts: of the upload's algorithm
// and type, or, where none was asked for, a full CRC64NVME if every part has one.
func wholeChecksum(up *metadata.Version, parts []manifestPart) ([]metadata.Checksum, error) {
	algo, kind := checksum.Algorithm(up.ChecksumAlgo), checksum.Type(up.ChecksumType)
	asked := algo != checksum.None
	if !asked {
		algo, kind = checksum.Default, checksum.FullObject
	}
	sums := make([][]byte, len(parts))
	for i := range parts {
		at := slices.IndexFunc(parts[i].info.Checksums, func(c metadata.Checksum) bool { return c.Algorithm == uint8(algo) })
		if at < 0 {
			if !asked {
				return nil, nil
			}
			return nil, errs.E("object.checksum", errs.Internal, fmt.Sprintf("part %d has no %s", parts[i].info.Number, algo))
		}
		sums[i] = parts[i].info.Checksums[at].Value
	}
	if kind == checksum.Composite {
		c, err := checksum.NewComposer(algo)
		if err != nil {
			return nil, err
		}
		for _, sum := range sums {
			if err := c.Add(sum); err != nil {
				return nil, err
			}
		}
		value, n := c.Sum()
		return []metadata.Checksum{{Algorithm: uint8(algo), Composite: true, Value: value, Parts: uint32(n)}}, nil
	}
	list := make([]checksum.Part, len(parts))
	for i := range parts {
		list[i] = checksum.Part{Sum: sums[i], Length: parts[i].info.Size}
	}
	value, err := algo.Combine(list)
	if err != nil {
		return nil, err
	}
	return []metadata.Checksum{{Algorithm: uint8(algo), Value: value}}, nil
}

// finishCompletion puts the version of a completing upload into the object's register, and then marks
// the upload completed. conditions may be nil: a helper's part is not to judge them.
func (s *Store) finishCompletion(ctx context.Context, op string, p *place, id metadata.UploadID, st *metadata.State, conditions *Conditions) (Info, error) {
	v := st.Current.Completed
	salt, now := newSalt(), s.now()
	over := false
	done, err := s.update(ctx, op, p, p.object(), metadata.Operation{ID: completionOp(id)},
		func(base *metadata.State, r rows, rm *removal) (*metadata.Change, error) {
			if over = holds(base, id); over {
				return nil, nothing{}
			}
			// The ring may have forgotten that this completion was applied, and its version be replaced.
			// Whoever replaced it made sure first that the upload says so; it is asked after the promises
			// of this round, so that nothing comes between. Ballots of two registers are not compared:
			// they follow clocks.
			again, err := s.readUpload(ctx, op, p, id)
			if err != nil {
				return nil, err
			}
			if again == nil || again.Current.Status != metadata.UploadCompleting {
				over = true
				return nil, nothing{}
			}
			if conditions != nil {
				if err := checkWrite(op, p, conditions, base); err != nil {
					return nil, err
				}
			}
			next := *v
			return push(base, r, &next, p.bucket.Versioning, salt, now, rm)
		})
	if err != nil {
		return Info{}, err
	}
	var at *metadata.Version
	if done.view != nil && done.view.State != nil {
		at = versionOf(done.view.State, id)
	}
	if over || at == nil {
		// The operation is over, and its version is not in the state that this round found or made: it was
		// applied and replaced, or called off, perhaps between two rounds of this very update.
		return s.whatBecame(ctx, op, p, id)
	}
	final := *at
	if err := s.markCompleted(ctx, op, p, id, &final); err != nil {
		// The object is there; the mark is set by whoever needs it.
		s.log.Debug("an upload is not yet marked as completed", "bucket", p.bucket.Name, "error", err)
	}
	s.cleanup(func(ctx context.Context) { s.clearRest(ctx, p, id, v.Manifest) })
	return infoOf(p.bucket, string(p.key), &final, true), nil
}

// completing reports whether the completion of an upload may have been applied without a mark of it.
func completing(st *metadata.State) bool {
	return st != nil && st.Current != nil && (st.Current.Status == metadata.UploadCompleting || st.Current.Status == metadata.UploadAborting)
}

// holds reports whether a record's head holds the version of an upload.
func holds(st *metadata.State, id metadata.UploadID) bool {
	return st != nil && st.Current != nil && st.Current.Upload == id
}

// versionOf finds the version of an upload in a state: current, or just pushed.
func versionOf(st *metadata.State, id metadata.UploadID) *metadata.Version {
	if holds(st, id) {
		return st.Current
	}
	for i := range st.Delta.Put {
		if st.Delta.Put[i].Upload == id {
			return &st.Delta.Put[i]
		}
	}
	return nil
}

// whatBecame answers for a completion that was found to be over.
func (s *Store) whatBecame(ctx context.Context, op string, p *place, id metadata.UploadID) (Info, error) {
	st, err := s.readUpload(ctx, op, p, id)
	if err != nil {
		return Info{}, err
	}
	if st == nil || st.Current.Completed == nil || st.Current.Status == metadata.UploadAborted {
		return Info{}, noUpload(op, p, hex.EncodeToString(id[:]))
	}
	final := *st.Current.Completed
	if completing(st) {
		v, seen, err := s.findUploadVersion(ctx, op, p, id)
		if err != nil {
			return Info{}, err
		}
		if !seen {
			return Info{}, noUpload(op, p, hex.EncodeToString(id[:]))
		}
		final = *v
		if err := s.markCompleted(ctx, op, p, id, &final); err != nil {
			return Info{}, err
		}
	}
	return infoOf(p.bucket, string(p.key), &final, true), nil
}

// findUploadVersion looks through all versions of the key for the one that an upload made.
func (s *Store) findUploadVersion(ctx context.Context, op string, p *place, id metadata.UploadID) (*metadata.Version, bool, error) {
	q := metadata.Query{Below: ^uint64(0)}
	for {
		view, err := s.read(ctx, op, p, p.object(), metadata.ReadOptions{Query: q})
		if err != nil || view.State == nil {
			return nil, false, err
		}
		if holds(view.State, id) {
			return view.State.Current, true, nil
		}
		next := rows(view.Versions).below(q.Below)
		if next == nil {
			return nil, false, nil
		}
		if next.Upload == id {
			return next, true, nil
		}
		q.Below = next.Seq
	}
}

// markCompleted moves an upload from completing, or aborting, to completed, with the version as it was applied.
func (s *Store) markCompleted(ctx context.Context, op string, p *place, id metadata.UploadID, final *metadata.Version) error {
	_, err := s.update(ctx, op, p, p.upload(id), metadata.Operation{},
		func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
			if !completing(base) {
				return nil, nothing{}
			}
			c := keep(base)
			next := *base.Current
			next.Status, next.Completed = metadata.UploadCompleted, final
			c.Current = &next
			return c, nil
		})
	return err
}

// ensureCompleted makes the upload of a version that is about to go say completed. The version is in
// the record, so the completion was applied; only its mark may be missing.
func (s *Store) ensureCompleted(ctx context.Context, op string, p *place, id metadata.UploadID) error {
	st, err := s.readUpload(ctx, op, p, id)
	if err != nil || !completing(st) {
		return err
	}
	v, seen, err := s.findUploadVersion(ctx, op, p, id)
	if err != nil || !seen {
		return err
	}
	return s.markCompleted(ctx, op, p, id, v)
}

// settleCompletion finds out whether the completion of an upload in completing, or aborting, was applied. With
// refuse, one that was not never will be: its operation id is spent on a round that changes nothing, so
// that whoever still tries to apply it finds it done.
func (s *Store) settleCompletion(ctx context.Context, op string, p *place, id metadata.UploadID, refuse bool) (applied bool, err error) {
	if refuse {
		_, err = s.update(ctx, op, p, p.object(), metadata.Operation{ID: completionOp(id)},
			func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
				if holds(base, id) {
					return nil, nothing{}
				}
				return keep(base), nil
			})
		if err != nil {
			return false, err
		}
	}
	v, seen, err := s.findUploadVersion(ctx, op, p, id)
	if err != nil {
		return false, err
	}
	if seen {
		return true, s.markCompleted(ctx, op, p, id, v)
	}
	// Applied and replaced since: then the upload says completed by now.
	now, err := s.readUpload(ctx, op, p, id)
	if err != nil {
		return false, err
	}
	return now == nil || now.Current.Status == metadata.UploadCompleted, nil
}

// clearRest drops the parts of a completed upload that its manifest does not name, and the bodies that
// re-uploads left in those that it does.
func (s *Store) clearRest(ctx context.Context, p *place, id metadata.UploadID, manifest *metadata.Data) {
	if err := s.ClearCompleted(ctx, p.bucket, p.key, id, manifest); err != nil {
		s.log.Debug("remains of a completed upload stay for now", "bucket", p.bucket.Name, "error", err)
	}
}
