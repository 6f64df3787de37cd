package object

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// This file decides what a request makes of a record: values in, values out, no clock, no I/O. The
// register may run each decision several times, on different bases.

// needRow asks that the decision run again with the version row Seq at hand.
type needRow struct{ seq uint64 }

func (e *needRow) Error() string { return fmt.Sprintf("object: version row %d is needed", e.seq) }

// needCompleted asks that the upload that made a version be marked completed before the version
// goes, so that a late retry of its completion can tell that it happened.
type needCompleted struct{ upload metadata.UploadID }

func (e *needCompleted) Error() string {
	return fmt.Sprintf("object: upload %x must be completed first", e.upload)
}

// nothing says that the record is already as the request wants it.
type nothing struct{}

func (nothing) Error() string { return "object: nothing to do" }

// rows are the version rows at hand, by sequence.
type rows []metadata.Version

func (r rows) bySeq(seq uint64) *metadata.Version {
	for i := range r {
		if r[i].Seq == seq {
			return &r[i]
		}
	}
	return nil
}

// below returns the newest row with a sequence below seq.
func (r rows) below(seq uint64) *metadata.Version {
	var best *metadata.Version
	for i := range r {
		if r[i].Seq < seq && (best == nil || r[i].Seq > best.Seq) {
			best = &r[i]
		}
	}
	return best
}

// parseVersionID reads what a client sent: null, or 32 hex digits.
func parseVersionID(s string) (metadata.VersionID, bool) {
	var id metadata.VersionID
	if s == NullVersion {
		return id, true
	}
	if len(s) != 2*len(id) {
		return id, false
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, false
	}
	return id, id != metadata.VersionID{}
}

// formatVersionID prints id for clients.
func formatVersionID(id metadata.VersionID) string {
	if id == (metadata.VersionID{}) {
		return NullVersion
	}
	return hex.EncodeToString(id[:])
}

func newVersionID(seq uint64, salt [8]byte) metadata.VersionID {
	var id metadata.VersionID
	binary.BigEndian.PutUint64(id[:8], seq)
	copy(id[8:], salt[:])
	return id
}

// seqOf returns the sequence that a version id other than null carries.
func seqOf(id metadata.VersionID) uint64 { return binary.BigEndian.Uint64(id[:8]) }

// find returns the version id of a record: its current one or one of rows. The second result is
// the sequence of the row that is needed to tell; 0 when the answer is certain.
func find(st *metadata.State, r rows, id metadata.VersionID) (*metadata.Version, uint64) {
	if st == nil || st.Current == nil {
		return nil, 0
	}
	if st.Current.ID == id {
		return st.Current, 0
	}
	seq := st.NullSeq
	if id != (metadata.VersionID{}) {
		seq = seqOf(id)
	}
	if seq == 0 || seq >= st.Current.Seq {
		return nil, 0
	}
	v := r.bySeq(seq)
	if v == nil {
		return nil, seq
	}
	if v.ID != id {
		return nil, 0
	}
	return v, 0
}

// deadOf lists the data that goes with v.
func deadOf(v *metadata.Version) []metadata.DeadData {
	switch {
	case v == nil:
		return nil
	case v.Manifest != nil:
		return []metadata.DeadData{{Data: *v.Manifest, Manifest: true, Upload: v.Upload}}
	case v.Data != nil:
		return []metadata.DeadData{{Data: *v.Data}}
	}
	return nil
}

// removal remembers which uploads are known to be completed, so that their versions may go.
type removal struct{ completed map[metadata.UploadID]bool }

func (r *removal) check(v *metadata.Version) error {
	if v == nil || v.Upload == (metadata.UploadID{}) || r.completed[v.Upload] {
		return nil
	}
	return &needCompleted{v.Upload}
}

func (r *removal) add(id metadata.UploadID) {
	if r.completed == nil {
		r.completed = make(map[metadata.UploadID]bool)
	}
	r.completed[id] = true
}

// keep starts a change from base: nothing changes yet.
func keep(base *metadata.State) *metadata.Change {
	c := &metadata.Change{NextSeq: 1}
	if base != nil {
		c.Current, c.Older, c.NullSeq = base.Current, base.Older, base.NullSeq
		if base.NextSeq > 1 {
			c.NextSeq = base.NextSeq
		}
	}
	return c
}

// lags refuses to change a record that has versions with ids in a bucket that, as far as is known here, never kept any: versioning was turned
// on, it is never turned off, and this process has not heard of it yet. What is to be kept would be lost.
func lags(base *metadata.State, state Versioning) error {
	if state != Unversioned || base == nil || base.Current == nil || base.Older == 0 && base.Current.ID == (metadata.VersionID{}) {
		return nil
	}
	return errs.E("object", errs.Unavailable, "the bucket keeps versions by now, and this process does not know that yet")
}

// push makes v the current version, under the bucket's versioning state. v's ID, Seq and ModTime
// are set: ModTime is now, or the time of the version before where that is later.
func push(base *metadata.State, r rows, v *metadata.Version, state Versioning, salt [8]byte, now time.Time, rm *removal) (*metadata.Change, error) {
	if err := lags(base, state); err != nil {
		return nil, err
	}
	c := keep(base)
	old := c.Current
	v.Seq = c.NextSeq
	c.NextSeq++
	v.ModTime = now.UnixNano()
	if old != nil && old.ModTime > v.ModTime {
		v.ModTime = old.ModTime
	}
	if state == Enabled {
		v.ID = newVersionID(v.Seq, salt)
	} else {
		v.ID = metadata.VersionID{}
		switch {
		case c.NullSeq == 0:
		case old != nil && c.NullSeq == old.Seq:
			if err := rm.check(old); err != nil {
				return nil, err
			}
			c.Dead = append(c.Dead, deadOf(old)...)
			old = nil
		default:
			row := r.bySeq(c.NullSeq)
			if row == nil {
				return nil, &needRow{c.NullSeq}
			}
			if err := rm.check(row); err != nil {
				return nil, err
			}
			c.Dead = append(c.Dead, deadOf(row)...)
			c.Drop = append(c.Drop, row.Seq)
			c.Older--
		}
		c.NullSeq = v.Seq
	}
	if old != nil {
		// It stays, but no longer where a repeated completion looks for it.
		if err := rm.check(old); err != nil {
			return nil, err
		}
		c.Put = append(c.Put, *old)
		c.Older++
	}
	c.Current = v
	return c, nil
}

// deleteCurrent is the delete without a version id: a tombstone in an unversioned bucket, else a
// delete marker. nothing is returned when an unversioned key is absent.
func deleteCurrent(base *metadata.State, r rows, marker *metadata.Version, state Versioning, salt [8]byte, now time.Time, rm *removal) (*metadata.Change, error) {
	if state != Unversioned {
		return push(base, r, marker, state, salt, now, rm)
	}
	if base == nil || base.Current == nil {
		return nil, nothing{}
	}
	if err := lags(base, state); err != nil {
		return nil, err
	}
	return removeVersion(base, r, base.Current, rm)
}

// removeVersion takes v, which is base's current version or one of r, out of the record for ever.
func removeVersion(base *metadata.State, r rows, v *metadata.Version, rm *removal) (*metadata.Change, error) {
	if err := rm.check(v); err != nil {
		return nil, err
	}
	c := keep(base)
	c.Dead = append(c.Dead, deadOf(v)...)
	if v.Seq == c.NullSeq {
		c.NullSeq = 0
	}
	if v.Seq != c.Current.Seq {
		c.Drop = append(c.Drop, v.Seq)
		c.Older--
		return c, nil
	}
	c.Current = nil
	if c.Older > 0 {
		next := r.below(v.Seq)
		if next == nil {
			return nil, fmt.Errorf("object: %d older versions are counted but no row was returned", c.Older)
		}
		promoted := *next
		c.Current = &promoted
		c.Drop = append(c.Drop, next.Seq)
		c.Older--
	}
	return c, nil
}

// replaceInPlace puts changed where the version of the same sequence stands.
func replaceInPlace(base *metadata.State, changed *metadata.Version) *metadata.Change {
	c := keep(base)
	if c.Current.Seq == changed.Seq {
		c.Current = changed
	} else {
		c.Put = append(c.Put, *changed)
	}
	return c
}
