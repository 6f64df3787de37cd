package metadata

import "google.golang.org/protobuf/encoding/protowire"

// maxSlices bounds a list of slices.
const maxSlices = 1 << 16

func putMany[T any](b []byte, num protowire.Number, list []T, put func(b []byte, v T) []byte) []byte {
	if len(list) == 0 {
		return b
	}
	return putMsg(b, num, func(b []byte) []byte {
		for _, v := range list {
			b = put(b, v)
		}
		return b
	})
}

func appendU32(b []byte, v uint32) []byte { return protowire.AppendVarint(b, uint64(v)) }
func appendU16(b []byte, v uint16) []byte { return protowire.AppendVarint(b, uint64(v)) }

// narrow converts a list of numbers that must not exceed most.
func narrow[T uint16 | uint32](f *field, limit int, most uint64) []T {
	wide := f.uints(limit)
	if len(wide) == 0 {
		return nil
	}
	list := make([]T, len(wide))
	for i, v := range wide {
		if v > most {
			f.fail("number out of range")
		}
		list[i] = T(v)
	}
	return list
}

func (f *field) u16s(limit int) []uint16 { return narrow[uint16](f, limit, 0xffff) }
func (f *field) u32s(limit int) []uint32 { return narrow[uint32](f, limit, 0xffffffff) }

// putBallots writes each ballot as a field of its own, zero ones too.
func putBallots(b []byte, num protowire.Number, list []Ballot) []byte {
	for _, v := range list {
		b = putMsg(b, num, func(b []byte) []byte { return appendBallot(b, v) })
	}
	return b
}

func (f *field) ballots(list []Ballot) []Ballot {
	if !f.room(len(list), MaxBatch) {
		return list
	}
	return append(list, f.ballot())
}

func putFences(b []byte, num protowire.Number, list []Fence) []byte {
	for _, v := range list {
		b = putMsg(b, num, func(b []byte) []byte { return putUint(putUint(b, 1, v.Bucket), 2, v.Epoch) })
	}
	return b
}

func (f *field) fences(list []Fence) []Fence {
	if !f.room(len(list), maxVersions) {
		return list
	}
	var v Fence
	f.sub(func(b []byte) error {
		_, err := decode(b, func(f *field) bool {
			switch f.num {
			case 1:
				v.Bucket = f.uint()
			case 2:
				v.Epoch = f.uint()
			default:
				return false
			}
			return true
		})
		return err
	})
	return append(list, v)
}

// AppendTo appends the encoding of m.
func (m *RowsRequest) AppendTo(b []byte) []byte {
	if m.After != nil {
		b = putMsg(b, 1, m.After.AppendTo)
	}
	b = putMany(b, 2, m.Slices, appendU16)
	b = putUint(b, 3, uint64(m.Limit))
	return putBool(b, 4, m.Marked)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *RowsRequest) Unmarshal(b []byte) error {
	*m = RowsRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.After = new(Address)
			f.sub(m.After.Unmarshal)
		case 2:
			m.Slices = f.u16s(maxSlices)
		case 3:
			m.Limit = int(f.u32())
		case 4:
			m.Marked = f.bool()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *RowsReply) AppendTo(b []byte) []byte {
	for i := range m.Rows {
		r := &m.Rows[i]
		b = putMsg(b, 1, func(b []byte) []byte {
			b = putMsg(b, 1, r.Address.AppendTo)
			return putBool(putRow(b, 2, bare(r.Row)), 3, r.Unsettled)
		})
	}
	if m.Next != nil {
		b = putMsg(b, 2, m.Next.AppendTo)
	}
	return putBool(b, 3, m.More)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *RowsReply) Unmarshal(b []byte) error {
	*m = RowsReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			if f.room(len(m.Rows), maxEntries) {
				m.Rows = append(m.Rows, RegisterRow{})
				f.sub(m.Rows[len(m.Rows)-1].unmarshal)
			}
		case 2:
			m.Next = new(Address)
			f.sub(m.Next.Unmarshal)
		case 3:
			m.More = f.bool()
		default:
			return false
		}
		return true
	})
	return err
}

func (r *RegisterRow) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(r.Address.Unmarshal)
		case 2:
			r.Row = f.row()
			r.Row.Undo = nil // never sent
		case 3:
			r.Unsettled = f.bool()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *LookupRequest) AppendTo(b []byte) []byte {
	for i := range m.Addresses {
		b = putMsg(b, 1, m.Addresses[i].AppendTo)
	}
	return b
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *LookupRequest) Unmarshal(b []byte) error {
	*m = LookupRequest{}
	_, err := decode(b, func(f *field) bool {
		if f.num != 1 {
			return false
		}
		if f.room(len(m.Addresses), MaxRows) {
			m.Addresses = append(m.Addresses, Address{})
			f.sub(m.Addresses[len(m.Addresses)-1].Unmarshal)
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *WedgeRequest) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(m.Drive))
	b = putUint(b, 2, m.Transition)
	b = putUint(b, 3, m.Term)
	b = putBallot(b, 4, m.Floor)
	b = putMany(b, 5, m.Partitions, appendU32)
	return putUints(b, 6, m.Epochs)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *WedgeRequest) Unmarshal(b []byte) error {
	*m = WedgeRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Drive = f.u16()
		case 2:
			m.Transition = f.uint()
		case 3:
			m.Term = f.uint()
		case 4:
			m.Floor = f.ballot()
		case 5:
			m.Partitions = f.u32s(MaxBatch)
		case 6:
			m.Epochs = f.uints(MaxBatch)
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *WedgeReply) AppendTo(b []byte) []byte {
	b = putBool(b, 1, m.Done)
	b = putBallot(b, 2, m.Hint)
	b = putMany(b, 3, m.Refused, appendU32)
	b = putBallots(b, 4, m.Floors)
	b = putUints(b, 5, m.Installed)
	b = putFences(b, 6, m.Fences)
	return putMany(b, 7, m.Begun, appendU32)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *WedgeReply) Unmarshal(b []byte) error {
	*m = WedgeReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Done = f.bool()
		case 2:
			m.Hint = f.ballot()
		case 3:
			m.Refused = f.u32s(MaxBatch)
		case 4:
			m.Floors = f.ballots(m.Floors)
		case 5:
			m.Installed = f.uints(MaxBatch)
		case 6:
			m.Fences = f.fences(m.Fences)
		case 7:
			m.Begun = f.u32s(MaxBatch)
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *TransferRequest) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(m.Drive))
	b = putUint(b, 2, m.Transition)
	b = putUint(b, 3, m.Term)
	b = putBallot(b, 4, m.Floor)
	for i := range m.Rows {
		r := &m.Rows[i]
		b = putMsg(b, 5, func(b []byte) []byte { return r.appendTo(b, m.Floor) })
	}
	return b
}

func (r *TransferRow) appendTo(b []byte, floor Ballot) []byte {
	b = putMsg(b, 1, r.Address.AppendTo)
	b = putUint(b, 2, uint64(r.Partition))
	b = putBool(b, 3, r.Decided)
	b = putMsg(b, 4, func(b []byte) []byte { return r.State.appendState(b, floor) })
	b = putBool(b, 5, r.Whole)
	return putVersions(b, 6, r.Full)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *TransferRequest) Unmarshal(b []byte) error {
	*m = TransferRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Drive = f.u16()
		case 2:
			m.Transition = f.uint()
		case 3:
			m.Term = f.uint()
		case 4:
			m.Floor = f.ballot()
		case 5:
			if f.room(len(m.Rows), MaxRows) {
				m.Rows = append(m.Rows, TransferRow{})
				r := &m.Rows[len(m.Rows)-1]
				f.sub(func(b []byte) error { return r.unmarshal(b, m.Floor) })
			}
		default:
			return false
		}
		return true
	})
	return err
}

func (r *TransferRow) unmarshal(b []byte, floor Ballot) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(r.Address.Unmarshal)
		case 2:
			r.Partition = f.u32()
		case 3:
			r.Decided = f.bool()
		case 4:
			f.sub(func(b []byte) error { return r.State.unmarshalState(b, floor, false) })
		case 5:
			r.Whole = f.bool()
		case 6:
			r.Full = f.versions(r.Full)
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *TransferReply) AppendTo(b []byte) []byte { return putMany(b, 1, m.Behind, appendU32) }

// Unmarshal replaces m by what AppendTo wrote.
func (m *TransferReply) Unmarshal(b []byte) error {
	*m = TransferReply{}
	_, err := decode(b, func(f *field) bool {
		if f.num == 1 {
			m.Behind = f.u32s(MaxRows)
		}
		return f.num == 1
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *InstallEpochRequest) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(m.Drive))
	b = putUint(b, 2, m.Transition)
	b = putUint(b, 3, m.Term)
	b = putMany(b, 4, m.Partitions, appendU32)
	b = putUints(b, 5, m.Epochs)
	b = putBallots(b, 6, m.Floors)
	return putFences(b, 7, m.Fences)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *InstallEpochRequest) Unmarshal(b []byte) error {
	*m = InstallEpochRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Drive = f.u16()
		case 2:
			m.Transition = f.uint()
		case 3:
			m.Term = f.uint()
		case 4:
			m.Partitions = f.u32s(MaxBatch)
		case 5:
			m.Epochs = f.uints(MaxBatch)
		case 6:
			m.Floors = f.ballots(m.Floors)
		case 7:
			m.Fences = f.fences(m.Fences)
		default:
			return false
		}
		return true
	})
	return err
}
