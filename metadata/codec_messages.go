package metadata

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/placement"
)

// AppendTo appends the encoding of h.
func (h *Header) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(h.Drive))
	b = putUint(b, 2, uint64(h.Partition))
	b = putUint(b, 3, h.Epoch)
	b = putUint(b, 4, h.BucketEpoch)
	b = putFixed(b, 5, uint64(h.Deadline))
	return putID(b, 6, h.Trace)
}

// Unmarshal replaces h by what AppendTo wrote.
func (h *Header) Unmarshal(b []byte) error {
	*h = Header{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			h.Drive = f.u16()
		case 2:
			h.Partition = f.u32()
		case 3:
			h.Epoch = f.uint()
		case 4:
			h.BucketEpoch = f.uint()
		case 5:
			h.Deadline = int64(f.fixed())
		case 6:
			h.Trace = f.id()
		default:
			return false
		}
		return true
	})
	return err
}

// putHead writes what nearly every message begins with.
func putHead(b []byte, h *Header, a *Address) []byte {
	b = putMsg(b, 1, h.AppendTo)
	return putMsg(b, 2, a.AppendTo)
}

func (f *field) head(h *Header, a *Address) bool {
	switch f.num {
	case 1:
		f.sub(h.Unmarshal)
	case 2:
		f.sub(a.Unmarshal)
	default:
		return false
	}
	return true
}

func putQuery(b []byte, num protowire.Number, q *Query) []byte {
	if len(q.Seqs) == 0 && q.Below == 0 {
		return b
	}
	return putMsg(b, num, func(b []byte) []byte { return putUint(putUints(b, 1, q.Seqs), 2, q.Below) })
}

func (f *field) query(q *Query) {
	f.sub(func(b []byte) error {
		_, err := decode(b, func(f *field) bool {
			switch f.num {
			case 1:
				q.Seqs = f.uints(maxFields)
			case 2:
				q.Below = f.uint()
			default:
				return false
			}
			return true
		})
		return err
	})
}

func putRow(b []byte, num protowire.Number, r *Row) []byte {
	if r == nil {
		return b
	}
	return putMsg(b, num, r.AppendTo)
}

func (f *field) row() *Row {
	r := new(Row)
	f.sub(r.Unmarshal)
	return r
}

// AppendTo appends the encoding of s.
func (s *Seal) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, s.Data.AppendTo)
	b = putUint(b, 2, uint64(s.Index))
	return putBytes(b, 3, s.Inline)
}

// Unmarshal replaces s by what AppendTo wrote.
func (s *Seal) Unmarshal(b []byte) error {
	*s = Seal{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(s.Data.Unmarshal)
		case 2:
			s.Index = f.u8()
		case 3:
			s.Inline = f.bytes(maxInline)
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *PrepareRequest) AppendTo(b []byte) []byte {
	b = putHead(b, &m.Header, &m.Address)
	b = putBallot(b, 3, m.Ballot)
	if m.Seal != nil {
		b = putMsg(b, 4, m.Seal.AppendTo)
	}
	b = putQuery(b, 5, &m.Query)
	return putID(b, 6, m.Orphan)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *PrepareRequest) Unmarshal(b []byte) error {
	*m = PrepareRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 3:
			m.Ballot = f.ballot()
		case 4:
			m.Seal = new(Seal)
			f.sub(m.Seal.Unmarshal)
		case 5:
			f.query(&m.Query)
		case 6:
			m.Orphan = f.id()
		default:
			return f.head(&m.Header, &m.Address)
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *PrepareReply) AppendTo(b []byte) []byte {
	b = putBool(b, 1, m.Promised)
	b = putBallot(b, 2, m.Hint)
	b = putRow(b, 3, m.Row)
	b = putBallot(b, 4, m.Floor)
	b = putBool(b, 5, m.Have)
	b = putUint(b, 6, uint64(m.SealKind))
	b = putVersions(b, 7, m.Versions)
	return putBool(b, 8, m.Names)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *PrepareReply) Unmarshal(b []byte) error {
	*m = PrepareReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Promised = f.bool()
		case 2:
			m.Hint = f.ballot()
		case 3:
			m.Row = f.row()
		case 4:
			m.Floor = f.ballot()
		case 5:
			m.Have = f.bool()
		case 6:
			m.SealKind = f.u8()
		case 7:
			m.Versions = f.versions(m.Versions)
		case 8:
			m.Names = f.bool()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *AcceptRequest) AppendTo(b []byte) []byte {
	b = putHead(b, &m.Header, &m.Address)
	b = putBallot(b, 3, m.Ballot)
	b = putMsg(b, 4, func(b []byte) []byte { return m.State.appendState(b, m.Ballot) })
	b = putBool(b, 5, m.Whole)
	return putVersions(b, 6, m.Full)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *AcceptRequest) Unmarshal(b []byte) error {
	*m = AcceptRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 3:
			m.Ballot = f.ballot()
		case 4:
			f.sub(func(b []byte) error { return m.State.unmarshalState(b, m.Ballot, false) })
		case 5:
			m.Whole = f.bool()
		case 6:
			m.Full = f.versions(m.Full)
		default:
			return f.head(&m.Header, &m.Address)
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *AcceptReply) AppendTo(b []byte) []byte {
	b = putBool(b, 1, m.Accepted)
	b = putBool(b, 2, m.Behind)
	return putBallot(b, 3, m.Hint)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *AcceptReply) Unmarshal(b []byte) error {
	*m = AcceptReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Accepted = f.bool()
		case 2:
			m.Behind = f.bool()
		case 3:
			m.Hint = f.ballot()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *Decision) AppendTo(b []byte) []byte {
	b = putHead(b, &m.Header, &m.Address)
	b = putBallot(b, 3, m.Ballot)
	b = putBool(b, 4, m.Settled)
	return putBytes(b, 5, m.Missing)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *Decision) Unmarshal(b []byte) error {
	*m = Decision{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 3:
			m.Ballot = f.ballot()
		case 4:
			m.Settled = f.bool()
		case 5:
			m.Missing = f.bytes(maxPositions)
		default:
			return f.head(&m.Header, &m.Address)
		}
		return true
	})
	return err
}

// Decisions is a batch of decisions as a message.
type Decisions []Decision

// AppendTo appends the encoding of m.
func (m Decisions) AppendTo(b []byte) []byte {
	for i := range m {
		b = putMsg(b, 1, m[i].AppendTo)
	}
	return b
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *Decisions) Unmarshal(b []byte) error {
	*m = nil
	_, err := decode(b, func(f *field) bool {
		if f.num != 1 {
			return false
		}
		if f.room(len(*m), maxEntries) {
			*m = append(*m, Decision{})
			f.sub((*m)[len(*m)-1].Unmarshal)
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *ReadRequest) AppendTo(b []byte) []byte {
	b = putHead(b, &m.Header, &m.Address)
	b = putQuery(b, 3, &m.Query)
	b = putBool(b, 4, m.Inline)
	return putID(b, 5, m.InlineID)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *ReadRequest) Unmarshal(b []byte) error {
	*m = ReadRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 3:
			f.query(&m.Query)
		case 4:
			m.Inline = f.bool()
		case 5:
			m.InlineID = f.id()
		default:
			return f.head(&m.Header, &m.Address)
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *ReadReply) AppendTo(b []byte) []byte {
	b = putRow(b, 1, m.Row)
	b = putBallot(b, 2, m.Floor)
	b = putVersions(b, 3, m.Versions)
	b = putBytes(b, 4, m.Inline)
	return putID(b, 5, m.InlineID)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *ReadReply) Unmarshal(b []byte) error {
	*m = ReadReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Row = f.row()
		case 2:
			m.Floor = f.ballot()
		case 3:
			m.Versions = f.versions(m.Versions)
		case 4:
			m.Inline = f.bytes(maxInline)
		case 5:
			m.InlineID = f.id()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *VersionsRequest) AppendTo(b []byte) []byte {
	b = putHead(b, &m.Header, &m.Address)
	b = putUint(b, 3, m.Below)
	return putUint(b, 4, uint64(m.Limit))
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *VersionsRequest) Unmarshal(b []byte) error {
	*m = VersionsRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 3:
			m.Below = f.uint()
		case 4:
			m.Limit = int(f.u32())
		default:
			return f.head(&m.Header, &m.Address)
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *VersionsReply) AppendTo(b []byte) []byte {
	b = putRow(b, 1, m.Row)
	b = putVersions(b, 2, m.Versions)
	return putBool(b, 3, m.More)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *VersionsReply) Unmarshal(b []byte) error {
	*m = VersionsReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Row = f.row()
		case 2:
			m.Versions = f.versions(m.Versions)
		case 3:
			m.More = f.bool()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *InstallRequest) AppendTo(b []byte) []byte {
	b = putHead(b, &m.Header, &m.Address)
	b = putRow(b, 3, &m.Row)
	b = putBool(b, 4, m.Whole)
	return putVersions(b, 5, m.Full)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *InstallRequest) Unmarshal(b []byte) error {
	*m = InstallRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 3:
			f.sub(m.Row.Unmarshal)
		case 4:
			m.Whole = f.bool()
		case 5:
			m.Full = f.versions(m.Full)
		default:
			return f.head(&m.Header, &m.Address)
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *PinRequest) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, m.Header.AppendTo)
	b = putID(b, 2, m.Data)
	b = putUint(b, 3, uint64(m.Chunk))
	return putBallot(b, 4, m.Ballot)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *PinRequest) Unmarshal(b []byte) error {
	*m = PinRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(m.Header.Unmarshal)
		case 2:
			m.Data = f.id()
		case 3:
			m.Chunk = f.u32()
		case 4:
			m.Ballot = f.ballot()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *PinReply) AppendTo(b []byte) []byte {
	return putBallot(putBool(b, 1, m.Have), 2, m.Hint)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *PinReply) Unmarshal(b []byte) error {
	*m = PinReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Have = f.bool()
		case 2:
			m.Hint = f.ballot()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *ScanRequest) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, m.Header.AppendTo)
	b = putUint(b, 2, uint64(m.Kind))
	b = putUint(b, 3, m.Bucket)
	b = putBytes(b, 4, m.Prefix)
	b = putBytes(b, 5, m.After)
	b = putBool(b, 6, m.AfterPrefix)
	b = putBytes(b, 7, m.AfterSub)
	b = putBytes(b, 8, m.Delimiter)
	b = putUint(b, 9, uint64(m.Limit))
	b = putID(b, 10, m.Upload)
	b = putUint(b, 11, uint64(m.From))
	return putBool(b, 12, m.Fenced)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *ScanRequest) Unmarshal(b []byte) error {
	*m = ScanRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(m.Header.Unmarshal)
		case 2:
			m.Kind = RegisterKind(f.u8())
		case 3:
			m.Bucket = f.uint()
		case 4:
			m.Prefix = f.bytes(MaxKey)
		case 5:
			m.After = f.bytes(2 * MaxKey)
		case 6:
			m.AfterPrefix = f.bool()
		case 7:
			m.AfterSub = f.bytes(16)
		case 8:
			m.Delimiter = f.bytes(MaxKey)
		case 9:
			m.Limit = int(f.u32())
		case 10:
			m.Upload = f.id()
		case 11:
			m.From = f.u32()
		case 12:
			m.Fenced = f.bool()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *ScanReply) AppendTo(b []byte) []byte {
	for i := range m.Entries {
		e := &m.Entries[i]
		b = putMsg(b, 1, func(b []byte) []byte {
			b = putMsg(b, 1, e.Address.AppendTo)
			b = putBytes(b, 2, e.Prefix)
			if e.Row == nil && e.head.enc != nil {
				return putBytes(b, 3, e.head.enc)
			}
			return putRow(b, 3, e.Row)
		})
	}
	b = putBool(b, 2, m.Truncated)
	if len(m.Over) == 0 {
		return b
	}
	over := make([]uint64, 0, 2*len(m.Over)) // by turns: the step from the partition before, and the epoch
	var last uint32
	for _, o := range m.Over {
		over = append(over, uint64(o.Partition-last), o.Epoch)
		last = o.Partition
	}
	return putUints(b, 3, over)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *ScanReply) Unmarshal(b []byte) error {
	*m = ScanReply{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			if f.room(len(m.Entries), maxEntries) {
				m.Entries = append(m.Entries, ScanEntry{})
				f.sub(m.Entries[len(m.Entries)-1].unmarshal)
			}
		case 2:
			m.Truncated = f.bool()
		case 3:
			m.Over = f.ended()
		default:
			return false
		}
		return true
	})
	return err
}

// ended reads the list of ScanReply.Over.
func (f *field) ended() []EndedEpoch {
	list := f.uints(2 << placement.MaxBits)
	over := make([]EndedEpoch, 0, len(list)/2)
	at := uint64(0)
	for i := 0; i+1 < len(list); i += 2 {
		if at += list[i]; list[i] >= 1<<placement.MaxBits || at >= 1<<placement.MaxBits || i > 0 && list[i] == 0 {
			break
		}
		over = append(over, EndedEpoch{uint32(at), list[i+1]})
	}
	if len(list) == 0 || 2*len(over) != len(list) {
		f.fail("malformed list")
		return nil
	}
	return over
}

func (e *ScanEntry) unmarshal(b []byte) error {
	e.Row = new(Row)
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(e.Address.Unmarshal)
		case 2:
			e.Prefix = f.bytes(MaxKey)
		case 3:
			f.sub(e.Row.Unmarshal)
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *FenceRequest) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, m.Header.AppendTo)
	b = putUint(b, 2, m.Bucket)
	return putUint(b, 3, m.Epoch)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *FenceRequest) Unmarshal(b []byte) error {
	*m = FenceRequest{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(m.Header.Unmarshal)
		case 2:
			m.Bucket = f.uint()
		case 3:
			m.Epoch = f.uint()
		default:
			return false
		}
		return true
	})
	return err
}

// AppendTo appends the encoding of m.
func (m *DropRequest) AppendTo(b []byte) []byte {
	return putBallot(putHead(b, &m.Header, &m.Address), 3, m.Ballot)
}

// Unmarshal replaces m by what AppendTo wrote.
func (m *DropRequest) Unmarshal(b []byte) error {
	*m = DropRequest{}
	_, err := decode(b, func(f *field) bool {
		if f.num == 3 {
			m.Ballot = f.ballot()
			return true
		}
		return f.head(&m.Header, &m.Address)
	})
	return err
}
