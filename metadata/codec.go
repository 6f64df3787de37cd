package metadata

import (
	"encoding/binary"
	"hash/crc32"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// AppendTo appends the encoding of a.
func (a *Address) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(a.Kind))
	b = putUint(b, 2, a.Bucket)
	b = putBytes(b, 3, a.Key)
	b = putID(b, 4, a.Upload)
	return putUint(b, 5, uint64(a.Part))
}

// Unmarshal replaces a by what AppendTo wrote.
func (a *Address) Unmarshal(b []byte) error {
	*a = Address{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			a.Kind = RegisterKind(f.u8())
		case 2:
			a.Bucket = f.uint()
		case 3:
			a.Key = f.bytes(MaxKey)
		case 4:
			a.Upload = f.id()
		case 5:
			a.Part = f.u32()
		default:
			return false
		}
		return true
	})
	return err
}

// Check returns errs.Invalid when a is not the address of a register.
func (a *Address) Check() error {
	ok := len(a.Key) >= 1 && len(a.Key) <= MaxKey
	switch a.Kind {
	case KindObject:
		ok = ok && a.Upload == UploadID{} && a.Part == 0
	case KindUpload:
		ok = ok && a.Upload != UploadID{} && a.Part == 0
	case KindPart:
		ok = ok && a.Upload != UploadID{} && a.Part >= 1 && a.Part <= 10000
	default:
		ok = false
	}
	if !ok {
		return errs.E("metadata.Address", errs.Invalid, "malformed address")
	}
	return nil
}

// AppendTo appends the encoding of d.
func (d *Data) AppendTo(b []byte) []byte {
	b = putID(b, 1, d.ID)
	b = putUint(b, 2, uint64(d.Profile.Data)<<8|uint64(d.Profile.Parity))
	b = putUint(b, 3, uint64(d.Size))
	b = putUint(b, 4, uint64(d.ChunkSize))
	for i := range d.Transforms {
		t := &d.Transforms[i]
		b = putMsg(b, 5, func(b []byte) []byte {
			return putBytes(putUint(b, 1, uint64(t.Kind)), 2, t.Params)
		})
	}
	return putUint(b, 6, uint64(d.Width))
}

// Unmarshal replaces d by what AppendTo wrote.
func (d *Data) Unmarshal(b []byte) error {
	*d = Data{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			d.ID = f.id()
		case 2:
			p := f.u16()
			d.Profile = erasure.Profile{Data: uint8(p >> 8), Parity: uint8(p)}
		case 3:
			d.Size = f.i63()
		case 4:
			d.ChunkSize = f.i63()
		case 5:
			if f.room(len(d.Transforms), maxTransforms) {
				var t Transform
				f.sub(t.unmarshal)
				d.Transforms = append(d.Transforms, t)
			}
		case 6:
			d.Width = uint8(f.uintMax(255))
		default:
			return false
		}
		return true
	})
	return err
}

func (t *Transform) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			t.Kind = f.u16()
		case 2:
			t.Params = f.bytes(maxOpaque)
		default:
			return false
		}
		return true
	})
	return err
}

func putFields(b []byte, num protowire.Number, list []Field) []byte {
	for i := range list {
		l := &list[i]
		b = putMsg(b, num, func(b []byte) []byte { return putString(putString(b, 1, l.Name), 2, l.Value) })
	}
	return b
}

func (f *field) fields(list []Field) []Field {
	if !f.room(len(list), maxFields) {
		return list
	}
	var l Field
	f.sub(func(b []byte) error {
		_, err := decode(b, func(f *field) bool {
			switch f.num {
			case 1:
				l.Name = f.string(maxString)
			case 2:
				l.Value = f.string(maxString)
			default:
				return false
			}
			return true
		})
		return err
	})
	return append(list, l)
}

// AppendTo appends the encoding of c.
func (c *Checksum) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(c.Algorithm))
	b = putBool(b, 2, c.Composite)
	b = putBytes(b, 3, c.Value)
	return putUint(b, 4, uint64(c.Parts))
}

// Unmarshal replaces c by what AppendTo wrote.
func (c *Checksum) Unmarshal(b []byte) error {
	*c = Checksum{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			c.Algorithm = f.u8()
		case 2:
			c.Composite = f.bool()
		case 3:
			c.Value = f.bytes(256)
		case 4:
			c.Parts = f.u32()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of v.
func (v *Version) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(v.Kind))
	b = putUint(b, 2, v.Seq)
	b = putID(b, 3, v.ID)
	b = putFixed(b, 4, uint64(v.ModTime))
	b = putUint(b, 5, uint64(v.Size))
	b = putHex(b, 6, 7, 16, v.ETag) // an MD5 is packed
	b = putString(b, 8, v.Class)
	b = putFields(b, 9, v.Headers)
	b = putFields(b, 10, v.Meta)
	b = putFields(b, 11, v.Tags)
	b = putHex(b, 12, 13, 32, v.Owner) // a canonical id is packed
	for i := range v.Checksums {
		b = putMsg(b, 14, v.Checksums[i].AppendTo)
	}
	if v.Data != nil {
		b = putMsg(b, 15, v.Data.AppendTo)
	}
	b = putUint(b, 16, uint64(v.PartCount))
	if v.Manifest != nil {
		b = putMsg(b, 17, v.Manifest.AppendTo)
	}
	b = putID(b, 18, v.Upload)
	b = putFixed(b, 19, uint64(v.RetainUntil))
	b = putUint(b, 20, uint64(v.RetainMode))
	b = putBool(b, 21, v.LegalHold)
	b = putBytes(b, 22, v.Replication)
	b = putUint(b, 23, uint64(v.Status))
	b = putUint(b, 24, uint64(v.ChecksumAlgo))
	b = putUint(b, 25, uint64(v.ChecksumType))
	if v.Completed != nil {
		b = putMsg(b, 26, v.Completed.AppendTo)
	}
	return append(b, v.Extra...)
}

// Unmarshal replaces v by what AppendTo wrote.
func (v *Version) Unmarshal(b []byte) error { return v.unmarshal(b, true, false) }

// unmarshal with brief leaves out what no listing of objects shows: headers, metadata, tags, and where
// the body lies.
func (v *Version) unmarshal(b []byte, nest, brief bool) (err error) {
	*v = Version{}
	v.Extra, err = decode(b, func(f *field) bool {
		if brief && (f.num >= 9 && f.num <= 11 || f.num == 15 || f.num == 17) {
			return true
		}
		switch f.num {
		case 1:
			v.Kind = VersionKind(f.u8())
		case 2:
			v.Seq = f.uint()
		case 3:
			v.ID = f.id()
		case 4:
			v.ModTime = int64(f.fixed())
		case 5:
			v.Size = f.i63()
		case 6:
			v.ETag = f.string(maxString)
		case 7:
			v.ETag = f.hex(16)
		case 8:
			v.Class = f.string(maxString)
		case 9:
			v.Headers = f.fields(v.Headers)
		case 10:
			v.Meta = f.fields(v.Meta)
		case 11:
			v.Tags = f.fields(v.Tags)
		case 12:
			v.Owner = f.string(maxString)
		case 13:
			v.Owner = f.hex(32)
		case 14:
			if f.room(len(v.Checksums), 64) {
				var c Checksum
				f.sub(c.Unmarshal)
				v.Checksums = append(v.Checksums, c)
			}
		case 15:
			v.Data = new(Data)
			f.sub(v.Data.Unmarshal)
		case 16:
			v.PartCount = f.u32()
		case 17:
			v.Manifest = new(Data)
			f.sub(v.Manifest.Unmarshal)
		case 18:
			v.Upload = f.id()
		case 19:
			v.RetainUntil = int64(f.fixed())
		case 20:
			v.RetainMode = f.u8()
		case 21:
			v.LegalHold = f.bool()
		case 22:
			v.Replication = f.bytes(maxOpaque)
		case 23:
			v.Status = UploadStatus(f.u8())
		case 24:
			v.ChecksumAlgo = f.u8()
		case 25:
			v.ChecksumType = f.u8()
		case 26:
			if !nest { // a completed version is never an upload itself; and recursion has a bound
				f.fail("nested completion")
				return true
			}
			v.Completed = new(Version)
			f.sub(func(b []byte) error { return v.Completed.unmarshal(b, false, false) })
		default:
			return false
		}
		return true
	})
	return err
}

func putVersions(b []byte, num protowire.Number, list []Version) []byte {
	for i := range list {
		b = putMsg(b, num, list[i].AppendTo)
	}
	return b
}

func (f *field) versions(list []Version) []Version {
	if !f.room(len(list), maxVersions) {
		return list
	}
	list = append(list, Version{})
	f.sub(list[len(list)-1].Unmarshal)
	return list
}

// putUints writes a list of numbers packed into one field.
func putUints(b []byte, num protowire.Number, list []uint64) []byte {
	if len(list) == 0 {
		return b
	}
	return putMsg(b, num, func(b []byte) []byte {
		for _, v := range list {
			b = protowire.AppendVarint(b, v)
		}
		return b
	})
}

func (f *field) uints(limit int) (list []uint64) {
	b := f.view(1 << 30)
	for len(b) > 0 {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			f.fail("malformed list")
			return nil
		}
		if !f.room(len(list), limit) {
			return nil
		}
		list, b = append(list, v), b[n:]
	}
	return list
}

// AppendTo appends the encoding of d.
func (d *DeadData) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, d.Data.AppendTo)
	b = putBool(b, 2, d.Manifest)
	return putID(b, 3, d.Upload)
}

// Unmarshal replaces d by what AppendTo wrote.
func (d *DeadData) Unmarshal(b []byte) error {
	*d = DeadData{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(d.Data.Unmarshal)
		case 2:
			d.Manifest = f.bool()
		case 3:
			d.Upload = f.id()
		default:
			return false
		}
		return true
	})
	return err
}

func (f *field) dead(list []DeadData) []DeadData {
	if !f.room(len(list), maxDead) {
		return list
	}
	list = append(list, DeadData{})
	f.sub(list[len(list)-1].Unmarshal)
	return list
}

// appendState appends s. A ballot in it that equals at, the ballot that the state travels or lies
// under, is left out: it mostly does, and a ballot has sixteen bytes.
func (s *State) appendState(b []byte, at Ballot) []byte {
	if s.ID != at {
		b = putBallot(b, 1, s.ID)
	}
	b = putBallot(b, 2, s.Prev)
	b = putUint(b, 3, s.Index)
	if s.Current != nil {
		b = putMsg(b, 4, s.Current.AppendTo)
	}
	b = putUint(b, 5, s.Older)
	b = putUint(b, 6, s.NextSeq)
	b = putUint(b, 7, s.NullSeq)
	for i := range s.Ring {
		r := &s.Ring[i]
		b = putMsg(b, 8, func(b []byte) []byte {
			b = putFixed(b, 1, uint64(r.Op))
			if r.Ballot != s.ID {
				b = putBallot(b, 2, r.Ballot)
			}
			return b
		})
	}
	b = putBallot(b, 9, s.Low)
	for i := range s.Dead {
		b = putMsg(b, 10, s.Dead[i].AppendTo)
	}
	b = putVersions(b, 11, s.Delta.Put)
	b = putUints(b, 12, s.Delta.Drop)
	return append(b, s.Extra...)
}

func (s *State) unmarshalState(b []byte, at Ballot, brief bool) (err error) {
	*s = State{ID: at}
	s.Extra, err = decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			s.ID = f.ballot()
		case 2:
			s.Prev = f.ballot()
		case 3:
			s.Index = f.uint()
		case 4:
			s.Current = new(Version)
			f.sub(func(b []byte) error { return s.Current.unmarshal(b, true, brief) })
		case 5:
			s.Older = f.uint()
		case 6:
			s.NextSeq = f.uint()
		case 7:
			s.NullSeq = f.uint()
		case 8:
			if f.room(len(s.Ring), maxRing) {
				r := RingEntry{Ballot: s.ID}
				f.sub(r.unmarshal)
				s.Ring = append(s.Ring, r)
			}
		case 9:
			s.Low = f.ballot()
		case 10:
			s.Dead = f.dead(s.Dead)
		case 11:
			s.Delta.Put = f.versions(s.Delta.Put)
		case 12:
			s.Delta.Drop = f.uints(maxVersions)
		default:
			return false
		}
		return true
	})
	return err
}

func (r *RingEntry) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			r.Op = OpID(f.fixed())
		case 2:
			r.Ballot = f.ballot()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of s by itself.
func (s *State) AppendTo(b []byte) []byte { return s.appendState(b, Ballot{}) }

// Unmarshal replaces s by what AppendTo wrote.
func (s *State) Unmarshal(b []byte) error { return s.unmarshalState(b, Ballot{}, false) }

// AppendTo appends the encoding of r, as it travels and as it lies in the store (there followed by
// a checksum).
func (r *Row) AppendTo(b []byte) []byte {
	b = putBallot(b, 1, r.Ballot)
	b = putBool(b, 2, r.Decided)
	b = putMsg(b, 3, func(b []byte) []byte { return r.State.appendState(b, r.Ballot) })
	if u := r.Undo; u != nil {
		b = putMsg(b, 4, func(b []byte) []byte {
			if u.Row != nil {
				b = putMsg(b, 1, u.Row.AppendTo)
			}
			b = putVersions(b, 2, u.Put)
			b = putUints(b, 3, u.Added)
			b = putBool(b, 4, u.Lossy)
			for i := range u.Lost {
				b = putMsg(b, 5, u.Lost[i].AppendTo)
			}
			return putBool(b, 6, u.Guarded)
		})
	}
	return b
}

// Unmarshal replaces r by what AppendTo wrote.
func (r *Row) Unmarshal(b []byte) error { return r.unmarshal(b, true, false) }

func (r *Row) unmarshal(b []byte, nest, brief bool) error {
	*r = Row{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			r.Ballot = f.ballot()
		case 2:
			r.Decided = f.bool()
		case 3:
			f.sub(func(b []byte) error { return r.State.unmarshalState(b, r.Ballot, brief) })
		case 4:
			if !nest {
				f.fail("nested undo")
				return true
			}
			r.Undo = new(Undo)
			f.sub(r.Undo.unmarshal)
		default:
			return false
		}
		return true
	})
	return err
}

func (u *Undo) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			u.Row = new(Row)
			f.sub(func(b []byte) error { return u.Row.unmarshal(b, false, false) })
		case 2:
			u.Put = f.versions(u.Put)
		case 3:
			u.Added = f.uints(maxVersions)
		case 4:
			u.Lossy = f.bool()
		case 5:
			u.Lost = f.dead(u.Lost)
		case 6:
			u.Guarded = f.bool()
		default:
			return false
		}
		return true
	})
	return err
}

// rowFormat is the first byte of every value in the record store.
const rowFormat = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealValue finishes a value whose first byte is rowFormat: four bytes of CRC32C over key and value
// follow, so that a value under the wrong key fails as well.
func sealValue(key, value []byte) []byte {
	return binary.LittleEndian.AppendUint32(value, crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value))
}

// openValue checks a stored value and returns its payload, still part of it.
func openValue(key, value []byte) ([]byte, error) {
	const op = "metadata.openValue"
	n := len(value) - 4
	if n < 1 {
		return nil, errs.E(op, errs.Corrupt, "a stored row is too short")
	}
	if crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value[:n]) != binary.LittleEndian.Uint32(value[n:]) {
		return nil, errs.E(op, errs.Corrupt, "a stored row fails its checksum")
	}
	if value[0] != rowFormat {
		return nil, errs.E(op, errs.Unsupported, "a stored row has a format that this version does not know")
	}
	return value[1:n], nil
}

func encodeRow(key []byte, r *Row) []byte {
	return sealValue(key, r.AppendTo(append(make([]byte, 0, 320), rowFormat)))
}

func decodeRow(key, value []byte) (*Row, error) {
	b, err := openValue(key, value)
	if err != nil {
		return nil, err
	}
	r := new(Row)
	if err := r.Unmarshal(b); err != nil {
		return nil, err
	}
	return r, nil
}

func encodeVersion(key []byte, v *Version) []byte {
	return sealValue(key, v.AppendTo(append(make([]byte, 0, 256), rowFormat)))
}

func decodeVersion(key, value []byte) (Version, error) {
	var v Version
	b, err := openValue(key, value)
	if err == nil {
		err = v.Unmarshal(b)
	}
	return v, err
}
