package object

import (
	"context"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
)

// This file ends what uploads leave behind. Package heal calls it from its durable work lists; the
// requests themselves call it first, so that there is seldom anything left.

// ClearCompleted drops the part registers of a completed upload that its manifest does not name,
// and lets go of the bodies that re-uploads left in those that it does.
func (s *Store) ClearCompleted(ctx context.Context, b Bucket, key []byte, id metadata.UploadID, manifest *metadata.Data) error {
	const op = "ClearCompleted"
	p, err := s.placeOf(op, b, key)
	if err != nil {
		return err
	}
	st, err := s.readUpload(ctx, op, p, id)
	if err != nil || st == nil || st.Current.Status != metadata.UploadCompleted {
		return err
	}
	parts, err := s.manifestOf(ctx, op, p, id, manifest, nil)
	if err != nil {
		return err
	}
	named := make(map[int]erasure.DataID, len(parts))
	for i := range parts {
		named[parts[i].info.Number] = parts[i].data.ID
	}
	keepOf := make(map[int]bool, len(parts))
	var mend []int
	err = s.eachPart(ctx, op, p, id, 1, func(n int, st *metadata.State) bool {
		want, ok := named[n]
		keepOf[n] = ok
		// Seq counts the uploads of the part: only where there were several is anything left over.
		if ok && (st.Current.Data.ID != want || st.Current.Seq > 1) {
			mend = append(mend, n)
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, n := range mend {
		if err := s.keepOnly(ctx, op, p, id, n, named[n]); err != nil {
			return err
		}
	}
	return s.clearUpload(ctx, op, p, id, keepOf)
}

// keepOnly makes a part's register name only the body that the manifest names.
func (s *Store) keepOnly(ctx context.Context, op string, p *place, id metadata.UploadID, number int, keepID erasure.DataID) error {
	_, err := s.update(ctx, op, p, p.part(id, number), metadata.Operation{},
		func(base *metadata.State, _ rows, _ *removal) (*metadata.Change, error) {
			if base == nil || base.Current == nil || base.Current.Data == nil {
				return nil, nothing{}
			}
			c := keep(base)
			next := *base.Current
			for i := range base.Dead {
				d := &base.Dead[i]
				if d.Data.ID == keepID {
					// The manifest named an earlier body of the part: it comes back. What is neither current
					// nor on the list any more becomes garbage.
					data := d.Data
					next.Data, next.Size = &data, data.Size
				}
				c.ClearDead = append(c.ClearDead, d.Data.ID)
			}
			if next.Data.ID != keepID {
				return nil, nothing{} // not a part that the manifest knows: left alone
			}
			if len(c.ClearDead) == 0 {
				return nil, nothing{}
			}
			c.Current = &next
			return c, nil
		})
	return err
}
