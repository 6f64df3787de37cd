package object

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// Delete removes the current version or puts a delete marker upon it, or removes one version for
// ever. Deleting what is not there succeeds.
func (s *Store) Delete(ctx context.Context, bucket, key string, o DeleteOptions) (DeleteResult, error) {
	return s.deleteKey(ctx, bucket, key, &o, nil)
}

// deleteKey is Delete; patience is that of a request for many keys, or nil.
func (s *Store) deleteKey(ctx context.Context, bucket, key string, o *DeleteOptions, patience *sharedPatience) (DeleteResult, error) {
	const op = "Delete"
	p, err := s.locate(ctx, op, bucket, key, true)
	if err != nil {
		return DeleteResult{}, err
	}
	p.patience = patience
	return s.delete(ctx, op, p, o)
}

func (s *Store) delete(ctx context.Context, op string, p *place, o *DeleteOptions) (DeleteResult, error) {
	if o.VersionID != nil {
		return s.deleteVersion(ctx, op, p, o)
	}
	salt, now := newSalt(), s.now()
	var res DeleteResult
	said := make(map[*metadata.Change]DeleteResult, 1)
	done, err := s.update(ctx, op, p, p.object(), metadata.Operation{},
		func(base *metadata.State, r rows, rm *removal) (*metadata.Change, error) {
			var cur *metadata.Version
			if base != nil {
				cur = base.Current
			}
			if err := checkDelete(op, p, o, cur); err != nil {
				return nil, err
			}
			if p.bucket.Versioning == Unversioned && cur != nil && o.Allow != nil {
				if err := o.Allow(cur); err != nil {
					return nil, err
				}
			}
			marker := &metadata.Version{Kind: metadata.VersionDeleteMarker, Owner: o.Owner}
			c, err := deleteCurrent(base, r, marker, p.bucket.Versioning, salt, now, rm)
			res = DeleteResult{Versioning: p.bucket.Versioning}
			if err == nil && p.bucket.Versioning != Unversioned {
				res.DeleteMarker, res.VersionID = true, formatVersionID(marker.ID)
			}
			said[c] = res
			return c, err
		})
	if done.change != nil {
		res = said[done.change]
	}
	return res, err
}

func checkDelete(op string, p *place, o *DeleteOptions, v *metadata.Version) error {
	if r := o.If.checkDelete(v); r != nil {
		return fail(op, &Failure{Reason: r, Bucket: p.bucket.Name, Key: string(p.key)})
	}
	return nil
}

// deleteVersion removes one version for ever.
func (s *Store) deleteVersion(ctx context.Context, op string, p *place, o *DeleteOptions) (DeleteResult, error) {
	id, ok := parseVersionID(*o.VersionID)
	if !ok {
		return DeleteResult{}, fail(op, &Failure{Reason: ErrInvalidVersionID, Bucket: p.bucket.Name, Key: string(p.key), VersionID: *o.VersionID})
	}
	// The newest row comes along: it becomes current when the current version goes.
	q := metadata.Query{Below: ^uint64(0)}
	if id != (metadata.VersionID{}) {
		q.Seqs = []uint64{seqOf(id)}
	}
	res := DeleteResult{Versioning: p.bucket.Versioning, VersionID: *o.VersionID}
	marker := make(map[*metadata.Change]bool, 1) // null may name several versions in turn
	done, err := s.update(ctx, op, p, p.object(), metadata.Operation{Query: q},
		func(base *metadata.State, r rows, rm *removal) (*metadata.Change, error) {
			v, need := find(base, r, id)
			if need != 0 && r.bySeq(need) == nil && id == (metadata.VersionID{}) {
				return nil, &needRow{need}
			}
			if err := checkDelete(op, p, o, v); err != nil {
				return nil, err
			}
			if v == nil {
				return nil, nothing{}
			}
			if o.Allow != nil {
				if err := o.Allow(v); err != nil {
					return nil, err
				}
			}
			c, err := removeVersion(base, r, v, rm)
			marker[c] = v.Kind == metadata.VersionDeleteMarker
			return c, err
		})
	if done.change != nil {
		res.DeleteMarker = marker[done.change]
	}
	return res, err
}

// DeleteMany deletes up to MaxDeleteKeys entries, each as Delete would, and answers them in order. All of them
// together wait for partitions that change their members no longer than one alone would.
func (s *Store) DeleteMany(ctx context.Context, bucket string, keys []DeleteRequest) ([]DeleteOutcome, error) {
	const op = "DeleteMany"
	if len(keys) > MaxDeleteKeys {
		return nil, errs.E("object."+op, errs.Invalid, "too many keys")
	}
	if _, err := s.bucket(ctx, op, bucket, true); err != nil {
		return nil, err
	}
	out := make([]DeleteOutcome, len(keys))
	// Entries of one key keep their order: the second sees what the first did.
	byKey := make(map[string][]int, len(keys))
	var order []string
	for i := range keys {
		if _, ok := byKey[keys[i].Key]; !ok {
			order = append(order, keys[i].Key)
		}
		byKey[keys[i].Key] = append(byKey[keys[i].Key], i)
	}
	var wait sharedPatience
	each(len(order), drivesAtOnce, func(i int) {
		for _, n := range byKey[order[i]] {
			out[n].DeleteResult, out[n].Err = s.deleteKey(ctx, bucket, order[i], &keys[n].DeleteOptions, &wait)
		}
	})
	return out, nil
}

// notLive is the failure of a request for a version that is a delete marker, or nil: not there.
func notLive(bucket, key string, versionID *string, v *metadata.Version) *Failure {
	f := &Failure{Reason: ErrNoSuchKey, Bucket: bucket, Key: key}
	if versionID != nil {
		f.Reason, f.VersionID = ErrNoSuchVersion, *versionID
	}
	if v != nil {
		f.DeleteMarker, f.VersionID, f.ModTime = true, formatVersionID(v.ID), time.Unix(0, v.ModTime).UTC()
		if versionID != nil {
			f.Reason = ErrMethodNotAllowed
		}
	}
	return f
}

// Modify changes one version in place: its tags, its lock. change gets a copy, may run several times,
// and must not touch Seq, ID or what describes the body; its error ends the request unchanged.
func (s *Store) Modify(ctx context.Context, bucket, key string, versionID *string, change func(*metadata.Version) error) (Info, error) {
	const op = "Modify"
	p, err := s.locate(ctx, op, bucket, key, true)
	if err != nil {
		return Info{}, err
	}
	// The first look finds the row, and answers for what is not there.
	v, _, err := s.lookup(ctx, op, p, versionID, false)
	if err != nil {
		return Info{}, err
	}
	seq, id := v.Seq, v.ID
	said := make(map[*metadata.Change]Info, 1) // without a version id each round may find another
	done, err := s.update(ctx, op, p, p.object(), metadata.Operation{Query: metadata.Query{Seqs: []uint64{seq}}},
		func(base *metadata.State, r rows, _ *removal) (*metadata.Change, error) {
			var at *metadata.Version
			if versionID == nil {
				if base != nil {
					at = base.Current
				}
			} else {
				// The null version may be another one by now.
				var need uint64
				if at, need = find(base, r, id); need != 0 && need != seq && r.bySeq(need) == nil {
					return nil, &needRow{need}
				}
			}
			if at == nil || !at.IsLive() {
				return nil, fail(op, notLive(bucket, key, versionID, at))
			}
			next := *at
			if err := change(&next); err != nil {
				return nil, err
			}
			c := replaceInPlace(base, &next)
			said[c] = infoOf(p.bucket, key, &next, base.Current.Seq == next.Seq)
			return c, nil
		})
	return said[done.change], err
}
