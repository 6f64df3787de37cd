package node

import (
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
)

// The messages of the node protocol that are not those of the register, which package metadata encodes. As there, a
// field that is zero is left out, one from rpc.OptionalField on may be skipped, and any other that is not
// known is refused. docs/node-protocol.md lists them.

// wire is what every message is.
type wire[T any] interface {
	*T
	AppendTo([]byte) []byte
	Unmarshal([]byte) error
}

// maxList bounds the entries of a list in a message.
const maxList = 1 << 20

func putUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func putBool(b []byte, num protowire.Number, v bool) []byte {
	if v {
		return putUint(b, num, 1)
	}
	return b
}

// putBytes writes v, empty or not; nil is left out.
func putBytes(b []byte, num protowire.Number, v []byte) []byte {
	if v == nil {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func putMsg(b []byte, num protowire.Number, m interface{ AppendTo([]byte) []byte }) []byte {
	return putBytes(b, num, m.AppendTo([]byte{}))
}

func putBallot(b []byte, num protowire.Number, v metadata.Ballot) []byte {
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], v.Counter)
	binary.BigEndian.PutUint64(raw[8:], v.Proposer)
	return putBytes(b, num, raw[:])
}

func putProfile(b []byte, num protowire.Number, v erasure.Profile) []byte {
	return putUint(b, num, uint64(v.Data)<<8|uint64(v.Parity))
}

// field is one field of a message that is being decoded; err is the first thing wrong with it.
type field struct {
	num protowire.Number
	u   uint64
	b   []byte
	err error
}

func (f *field) fail(msg string) {
	if f.err == nil {
		f.err = errs.E("node.decode", errs.Invalid, msg)
	}
}

func (f *field) uint(most uint64) uint64 {
	if f.u > most {
		f.fail("number out of range")
		return 0
	}
	return f.u
}

func (f *field) u8() uint8   { return uint8(f.uint(0xff)) }
func (f *field) u32() uint32 { return uint32(f.uint(0xffffffff)) }
func (f *field) i63() int64  { return int64(f.uint(1<<63 - 1)) }
func (f *field) bool() bool  { return f.uint(1) == 1 }

// bytes returns a copy that is not nil.
func (f *field) bytes(most int) []byte {
	if len(f.b) > most {
		f.fail("field too long")
		return []byte{}
	}
	return append([]byte{}, f.b...)
}

func (f *field) id() (id [16]byte) {
	if len(f.b) != 16 {
		f.fail("id of wrong length")
		return id
	}
	return [16]byte(f.b)
}

func (f *field) ballot() metadata.Ballot {
	id := f.id()
	return metadata.Ballot{Counter: binary.BigEndian.Uint64(id[:8]), Proposer: binary.BigEndian.Uint64(id[8:])}
}

func (f *field) profile() erasure.Profile {
	v := f.uint(0xffff)
	return erasure.Profile{Data: uint8(v >> 8), Parity: uint8(v)}
}

func (f *field) msg(m interface{ Unmarshal([]byte) error }) {
	if err := m.Unmarshal(f.b); err != nil && f.err == nil {
		f.err = err
	}
}

func (f *field) time() time.Time {
	if f.u == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(f.u))
}

func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

// decode calls known for each field. What does not parse is errs.Invalid, or errs.Unsupported: it says nothing of
// what a drive has, as errs.Corrupt would.
func decode(b []byte, known func(f *field) bool) error {
	var f field
	err := rpc.ParseFields(b, func(num protowire.Number, u uint64, v []byte) bool {
		f.num, f.u, f.b = num, u, v
		return f.err != nil || known(&f)
	})
	if f.err != nil {
		err = f.err
	}
	return parsed(err)
}

// parsed turns an error of parsing a message into what the other end may conclude of it.
func parsed(err error) error {
	switch {
	case err == nil:
		return nil
	case errs.Is(err, errs.Unsupported):
		return err
	}
	return &errs.Error{Op: "node.decode", Kind: errs.Invalid, Msg: "the message does not parse", Err: err}
}

// list appends an element to a list, unless it is full.
func list[T any](f *field, to []T, v T) []T {
	if len(to) >= maxList {
		f.fail("list too long")
		return to
	}
	return append(to, v)
}

// empty is the answer that says nothing.
type empty struct{}

func (*empty) AppendTo(b []byte) []byte { return b }
func (*empty) Unmarshal(b []byte) error { return decode(b, func(*field) bool { return false }) }

// ids is a list of ids, all in one field.
type ids[T ~[16]byte] []T

type (
	digests = ids[metadata.Digest]
	dataIDs = ids[erasure.DataID]
)

func (m *ids[T]) AppendTo(b []byte) []byte {
	raw := make([]byte, 0, 16*len(*m))
	for _, id := range *m {
		raw = append(raw, id[:]...)
	}
	return putBytes(b, 1, raw)
}

func (m *ids[T]) Unmarshal(b []byte) error {
	*m = nil
	return decode(b, func(f *field) bool {
		if f.num != 1 {
			return false
		}
		if len(f.b)%16 != 0 {
			f.fail("ids of wrong length")
			return true
		}
		*m = make(ids[T], len(f.b)/16)
		for i := range *m {
			(*m)[i] = T(f.b[16*i : 16*i+16])
		}
		return true
	})
}

// items is a list of messages. As says how one of the values is a message.
type items[E any, As interface{ message(*E) message }] []E

// message is what every message is, without its type.
type message interface {
	AppendTo([]byte) []byte
	Unmarshal([]byte) error
}

type (
	asSeal      struct{}
	asShardRow  struct{}
	asRepair    struct{}
	asUnsettled struct{}
	asGarbage   struct{}
)

func (asSeal) message(e *disk.InlineSeal) message            { return (*sealRequest)(e) }
func (asShardRow) message(e *disk.ShardRow) message          { return (*shardRow)(e) }
func (asRepair) message(e *metadata.RepairRow) message       { return (*repairRow)(e) }
func (asUnsettled) message(e *metadata.UnsettledRow) message { return (*unsettledRow)(e) }
func (asGarbage) message(e *metadata.GarbageRow) message     { return (*garbageRow)(e) }

type (
	sealRequests  = items[disk.InlineSeal, asSeal] // inline shards to be made durable
	shardRows     = items[disk.ShardRow, asShardRow]
	repairRows    = items[metadata.RepairRow, asRepair]
	unsettledRows = items[metadata.UnsettledRow, asUnsettled]
	garbageRows   = items[metadata.GarbageRow, asGarbage]
)

func (m *items[E, As]) AppendTo(b []byte) []byte {
	var as As
	for i := range *m {
		b = putMsg(b, 1, as.message(&(*m)[i]))
	}
	return b
}

func (m *items[E, As]) Unmarshal(b []byte) error {
	*m = nil
	var as As
	return decode(b, func(f *field) bool {
		if f.num != 1 {
			return false
		}
		var e E
		f.msg(as.message(&e))
		*m = list(f, *m, e)
		return true
	})
}

// numbers is a list of numbers.
type numbers []uint64

func (m *numbers) AppendTo(b []byte) []byte {
	raw := []byte{}
	for _, v := range *m {
		raw = protowire.AppendVarint(raw, v)
	}
	return putBytes(b, 1, raw)
}

func (m *numbers) Unmarshal(b []byte) error {
	*m = nil
	return decode(b, func(f *field) bool {
		if f.num != 1 {
			return false
		}
		for b := f.b; len(b) > 0 && f.err == nil; {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				f.fail("malformed number")
				return true
			}
			*m = list(f, *m, v)
			b = b[n:]
		}
		return true
	})
}

// flag is yes or no.
type flag bool

func (m *flag) AppendTo(b []byte) []byte { return putBool(b, 1, bool(*m)) }

func (m *flag) Unmarshal(b []byte) error {
	*m = false
	return decode(b, func(f *field) bool {
		*m = flag(f.num == 1 && f.bool())
		return f.num == 1
	})
}

// shardID names a shard.
type shardID erasure.ShardID

func (m *shardID) AppendTo(b []byte) []byte {
	b = putBytes(b, 1, m.Data[:])
	b = putUint(b, 2, uint64(m.Chunk))
	return putUint(b, 3, uint64(m.Index))
}

func (m *shardID) Unmarshal(b []byte) error {
	*m = shardID{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Data = f.id()
		case 2:
			m.Chunk = f.u32()
		case 3:
			m.Index = f.u8()
		default:
			return false
		}
		return true
	})
}

// owner is whose data a shard is.
type owner erasure.Owner

func (m *owner) AppendTo(b []byte) []byte {
	b = putUint(b, 1, m.Bucket)
	b = putBytes(b, 2, m.Key)
	if m.Upload != [16]byte{} {
		b = putBytes(b, 3, m.Upload[:])
	}
	return putUint(b, 4, uint64(m.Part))
}

func (m *owner) Unmarshal(b []byte) error {
	*m = owner{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Bucket = f.u
		case 2:
			m.Key = f.bytes(metadata.MaxKey)
		case 3:
			m.Upload = f.id()
		case 4:
			m.Part = f.u32()
		default:
			return false
		}
		return true
	})
}

// createRequest opens the stream that writes a shard. Handle is drawn by the client, and names the writer.
type createRequest struct {
	Handle [16]byte
	Spec   disk.ShardSpec
}

func (m *createRequest) AppendTo(b []byte) []byte {
	b = putBytes(b, 1, m.Handle[:])
	b = putMsg(b, 2, (*shardID)(&m.Spec.ID))
	b = putUint(b, 3, uint64(m.Spec.FileSize))
	b = putMsg(b, 4, (*owner)(&m.Spec.Owner))
	return putBool(b, 5, m.Spec.Replace)
}

func (m *createRequest) Unmarshal(b []byte) error {
	*m = createRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Handle = f.id()
		case 2:
			f.msg((*shardID)(&m.Spec.ID))
		case 3:
			m.Spec.FileSize = f.i63()
		case 4:
			f.msg((*owner)(&m.Spec.Owner))
		case 5:
			m.Spec.Replace = f.bool()
		default:
			return false
		}
		return true
	})
}

// openRequest opens the stream that keeps a shard open for reading.
type openRequest struct {
	Handle [16]byte
	ID     shardID
}

func (m *openRequest) AppendTo(b []byte) []byte {
	return putMsg(putBytes(b, 1, m.Handle[:]), 2, &m.ID)
}

func (m *openRequest) Unmarshal(b []byte) error {
	*m = openRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Handle = f.id()
		case 2:
			f.msg(&m.ID)
		default:
			return false
		}
		return true
	})
}

// handleRequest is about an open shard: with Length, it reads; for a writer, it aborts.
type handleRequest struct {
	Handle [16]byte
	Offset int64
	Length uint32
}

func (m *handleRequest) AppendTo(b []byte) []byte {
	b = putBytes(b, 1, m.Handle[:])
	b = putUint(b, 2, uint64(m.Offset))
	return putUint(b, 3, uint64(m.Length))
}

func (m *handleRequest) Unmarshal(b []byte) error {
	*m = handleRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Handle = f.id()
		case 2:
			m.Offset = f.i63()
		case 3:
			m.Length = f.u32()
		default:
			return false
		}
		return true
	})
}

// sealRequest makes one shard durable.
type sealRequest disk.InlineSeal

func (m *sealRequest) AppendTo(b []byte) []byte {
	return putMsg(putMsg(b, 1, &m.Address), 2, &m.Seal)
}

func (m *sealRequest) Unmarshal(b []byte) error {
	*m = sealRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg(&m.Address)
		case 2:
			f.msg(&m.Seal)
		default:
			return false
		}
		return true
	})
}

// inlineShard is an inline shard, or that there is none.
type inlineShard []byte

func (m *inlineShard) AppendTo(b []byte) []byte { return putBytes(b, 1, *m) }

func (m *inlineShard) Unmarshal(b []byte) error {
	*m = nil
	return decode(b, func(f *field) bool {
		if f.num == 1 {
			*m = f.bytes(rpc.MaxMessage)
		}
		return f.num == 1
	})
}

// inlineShards are inline shards by position; nil: there is none.
type inlineShards [][]byte

func (m *inlineShards) AppendTo(b []byte) []byte {
	for _, v := range *m {
		b = putMsg(b, 1, (*inlineShard)(&v))
	}
	return b
}

func (m *inlineShards) Unmarshal(b []byte) error {
	*m = inlineShards{}
	return decode(b, func(f *field) bool {
		if f.num != 1 {
			return false
		}
		var v inlineShard
		f.msg(&v)
		*m = list(f, *m, []byte(v))
		return true
	})
}

// verifyRequest is about one shard of a chunk.
type verifyRequest struct {
	Chunk     erasure.Chunk
	Index     int
	Throttled bool
}

func (m *verifyRequest) AppendTo(b []byte) []byte {
	b = putBytes(b, 1, m.Chunk.Data[:])
	b = putUint(b, 2, uint64(m.Chunk.Index))
	b = putProfile(b, 3, m.Chunk.Profile)
	b = putUint(b, 4, uint64(m.Chunk.Size))
	b = putMsg(b, 5, (*owner)(&m.Chunk.Owner))
	b = putUint(b, 6, uint64(m.Index))
	return putBool(b, 7, m.Throttled)
}

func (m *verifyRequest) Unmarshal(b []byte) error {
	*m = verifyRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Chunk.Data = f.id()
		case 2:
			m.Chunk.Index = f.u32()
		case 3:
			m.Chunk.Profile = f.profile()
		case 4:
			m.Chunk.Size = f.i63()
		case 5:
			f.msg((*owner)(&m.Chunk.Owner))
		case 6:
			m.Index = int(f.u8())
		case 7:
			m.Throttled = f.bool()
		default:
			return false
		}
		return true
	})
}

// dataRequest deletes a shard, asks for whatever names data (Names), or seals a chunk.
type dataRequest struct {
	Address metadata.Address
	Data    erasure.DataID
	Chunk   uint32
	Guard   metadata.Ballot
}

func (m *dataRequest) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, &m.Address)
	b = putBytes(b, 2, m.Data[:])
	b = putUint(b, 3, uint64(m.Chunk))
	return putBallot(b, 4, m.Guard)
}

func (m *dataRequest) Unmarshal(b []byte) error {
	*m = dataRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg(&m.Address)
		case 2:
			m.Data = f.id()
		case 3:
			m.Chunk = f.u32()
		case 4:
			m.Guard = f.ballot()
		default:
			return false
		}
		return true
	})
}

// pageRequest asks for a page of a work list.
type pageRequest struct {
	After  *metadata.Address
	Before time.Time // garbage only
	Limit  int
}

func (m *pageRequest) AppendTo(b []byte) []byte {
	if m.After != nil {
		b = putMsg(b, 1, m.After)
	}
	b = putUint(b, 2, nanos(m.Before))
	return putUint(b, 3, uint64(max(m.Limit, 0)))
}

func (m *pageRequest) Unmarshal(b []byte) error {
	*m = pageRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.After = new(metadata.Address)
			f.msg(m.After)
		case 2:
			m.Before = f.time()
		case 3:
			m.Limit = int(f.u32())
		default:
			return false
		}
		return true
	})
}

// shardsRequest asks for a page of shard rows, or for a scrub of one.
type shardsRequest struct {
	After     shardID
	Limit     int
	Throttled bool
}

func (m *shardsRequest) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, &m.After)
	b = putUint(b, 2, uint64(max(m.Limit, 0)))
	return putBool(b, 3, m.Throttled)
}

func (m *shardsRequest) Unmarshal(b []byte) error {
	*m = shardsRequest{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg(&m.After)
		case 2:
			m.Limit = int(f.u32())
		case 3:
			m.Throttled = f.bool()
		default:
			return false
		}
		return true
	})
}

// shardRow is a shard row.
type shardRow disk.ShardRow

func (m *shardRow) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, (*shardID)(&m.ID))
	b = putBytes(b, 2, m.Inline)
	b = putUint(b, 3, uint64(m.Size))
	b = putMsg(b, 4, &m.Address)
	b = putUint(b, 5, nanos(m.Sealed))
	b = putProfile(b, 6, m.Profile)
	return putUint(b, 7, uint64(m.BodySize))
}

func (m *shardRow) Unmarshal(b []byte) error {
	*m = shardRow{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg((*shardID)(&m.ID))
		case 2:
			m.Inline = f.bytes(rpc.MaxMessage)
		case 3:
			m.Size = f.i63()
		case 4:
			f.msg(&m.Address)
		case 5:
			m.Sealed = f.time()
		case 6:
			m.Profile = f.profile()
		case 7:
			m.BodySize = f.i63()
		default:
			return false
		}
		return true
	})
}

// failure is an error within an answer: of one among many, or beside a result.
type failure struct{ err error }

func (m *failure) AppendTo(b []byte) []byte { return rpc.AppendError(b, m.err) }

func (m *failure) Unmarshal(b []byte) (err error) {
	m.err, err = rpc.ParseError(b)
	return parsed(err)
}

// statReply has a result also beside some errors.
type statReply struct {
	Stat disk.ShardStat
	Err  failure
}

func (m *statReply) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, (*shardRow)(&m.Stat.Row))
	b = putBool(b, 2, m.Stat.Inline)
	return putMsg(b, 3, &m.Err)
}

func (m *statReply) Unmarshal(b []byte) error {
	*m = statReply{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg((*shardRow)(&m.Stat.Row))
		case 2:
			m.Stat.Inline = f.bool()
		case 3:
			f.msg(&m.Err)
		default:
			return false
		}
		return true
	})
}

// scrubFinding is one shard that is not as its row says.
type scrubFinding disk.ScrubFinding

func (m *scrubFinding) AppendTo(b []byte) []byte {
	return putMsg(putMsg(b, 1, (*shardRow)(&m.Row)), 2, &failure{m.Err})
}

func (m *scrubFinding) Unmarshal(b []byte) error {
	*m = scrubFinding{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg((*shardRow)(&m.Row))
		case 2:
			var e failure
			f.msg(&e)
			m.Err = e.err
		default:
			return false
		}
		return true
	})
}

// scrubReply is what came of a scrub, or of the verification of one shard, which only has an error.
type scrubReply struct {
	Report disk.ScrubReport
	Err    failure
}

func (m *scrubReply) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, (*shardID)(&m.Report.Next))
	b = putBool(b, 2, m.Report.More)
	b = putUint(b, 3, uint64(m.Report.Shards))
	b = putUint(b, 4, uint64(m.Report.Bytes))
	for i := range m.Report.Bad {
		b = putMsg(b, 5, (*scrubFinding)(&m.Report.Bad[i]))
	}
	return putMsg(b, 6, &m.Err)
}

func (m *scrubReply) Unmarshal(b []byte) error {
	*m = scrubReply{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg((*shardID)(&m.Report.Next))
		case 2:
			m.Report.More = f.bool()
		case 3:
			m.Report.Shards = int(f.u32())
		case 4:
			m.Report.Bytes = f.i63()
		case 5:
			var x scrubFinding
			f.msg(&x)
			m.Report.Bad = list(f, m.Report.Bad, disk.ScrubFinding(x))
		case 6:
			f.msg(&m.Err)
		default:
			return false
		}
		return true
	})
}

// usage is how much a drive holds.
type usage struct{ Shards, Bytes int64 }

func (m *usage) AppendTo(b []byte) []byte {
	return putUint(putUint(b, 1, uint64(m.Shards)), 2, uint64(m.Bytes))
}

func (m *usage) Unmarshal(b []byte) error {
	*m = usage{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Shards = f.i63()
		case 2:
			m.Bytes = f.i63()
		default:
			return false
		}
		return true
	})
}

// job is the value of a job; nil: none.
type job struct {
	Name  string
	Value []byte
}

func (m *job) AppendTo(b []byte) []byte {
	if m.Name != "" {
		b = putBytes(b, 1, []byte(m.Name))
	}
	return putBytes(b, 2, m.Value)
}

func (m *job) Unmarshal(b []byte) error {
	*m = job{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.Name = string(f.bytes(1 << 10))
		case 2:
			m.Value = f.bytes(rpc.MaxMessage)
		default:
			return false
		}
		return true
	})
}

// repairAsked is optional: a build that does not know it keeps a row rather than clear it too early.
const repairAsked = rpc.OptionalField

// repairRow is a row of the repairs.
type repairRow metadata.RepairRow

func (m *repairRow) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, &m.Address)
	b = putUint(b, 2, uint64(m.Partition))
	b = putBytes(b, 3, m.Positions)
	b = putBallot(b, 4, m.State)
	return putUint(b, repairAsked, m.Asked)
}

func (m *repairRow) Unmarshal(b []byte) error {
	*m = repairRow{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg(&m.Address)
		case 2:
			m.Partition = f.u32()
		case 3:
			m.Positions = f.bytes(256)
		case 4:
			m.State = f.ballot()
		case repairAsked:
			m.Asked = f.u
		default:
			return false
		}
		return true
	})
}

// unsettledRow is a row of the unsettled.
type unsettledRow metadata.UnsettledRow

func (m *unsettledRow) AppendTo(b []byte) []byte {
	b = putMsg(b, 1, &m.Address)
	b = putUint(b, 2, uint64(m.Partition))
	b = putBallot(b, 3, m.Ballot)
	b = putUint(b, 4, uint64(m.Since))
	return putBallot(b, 5, m.State)
}

func (m *unsettledRow) Unmarshal(b []byte) error {
	*m = unsettledRow{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.msg(&m.Address)
		case 2:
			m.Partition = f.u32()
		case 3:
			m.Ballot = f.ballot()
		case 4:
			m.Since = int64(f.u)
		case 5:
			m.State = f.ballot()
		default:
			return false
		}
		return true
	})
}

// garbageRow is a row of the garbage.
type garbageRow metadata.GarbageRow

func (m *garbageRow) AppendTo(b []byte) []byte {
	b = putUint(b, 1, uint64(m.At))
	b = putMsg(b, 2, &m.Address)
	b = putUint(b, 3, uint64(m.Partition))
	b = putMsg(b, 4, &m.Dead)
	return putBallot(b, 5, m.Guard)
}

func (m *garbageRow) Unmarshal(b []byte) error {
	*m = garbageRow{}
	return decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			m.At = int64(f.u)
		case 2:
			f.msg(&m.Address)
		case 3:
			m.Partition = f.u32()
		case 4:
			f.msg(&m.Dead)
		case 5:
			m.Guard = f.ballot()
		default:
			return false
		}
		return true
	})
}
