package rpc

import (
	"context"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
)

// Limits of the wire.
const (
	MaxMessage = 80 << 20  // bytes of head and payload of one call, reply or open
	MaxData    = 256 << 10 // bytes of one message of a stream
	Window     = 1 << 20   // bytes of a stream that may be under way

	maxHead       = 4096
	frameHead     = 12
	OptionalField = 1000 // the first field number that may be ignored
)

type frameType uint8

const (
	frameCall frameType = 1 + iota
	frameReply
	frameCancel
	frameOpen
	frameData
	frameWindow
	frameEOS
	frameEnd
	framePing
	framePong
	frameGoAway
)

// frame is the fixed part of a frame.
type frame struct {
	typ  frameType
	id   uint32
	head int // bytes
	size int // bytes of head and payload
}

func appendFrame(b []byte, t frameType, id uint32, head, payload int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(head+payload))
	b = append(b, byte(t), 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(head))
	return binary.LittleEndian.AppendUint32(b, id)
}

// parseFrame checks everything that can be told from the fixed part.
func parseFrame(b []byte) (frame, error) {
	f := frame{typ: frameType(b[4]), id: binary.LittleEndian.Uint32(b[8:]),
		head: int(binary.LittleEndian.Uint16(b[6:])), size: int(binary.LittleEndian.Uint32(b))}
	most := 0
	switch f.typ {
	case frameCall, frameReply, frameOpen:
		most = MaxMessage
	case frameData:
		most = MaxData
	case frameEnd:
		most = maxHead
	case frameWindow, frameGoAway:
		most = 4
	case frameCancel, frameEOS, framePing, framePong:
	default:
		return f, errs.E("rpc.frame", errs.Invalid, "unknown type of frame")
	}
	switch {
	case f.size > most:
		return f, errs.E("rpc.frame", errs.Invalid, "frame is too long")
	case f.head > f.size || f.head > maxHead || b[5] != 0:
		return f, errs.E("rpc.frame", errs.Invalid, "malformed frame")
	}
	return f, nil
}

// ParseFields calls known for each field of b: u is the value of a varint, v that of bytes. known returns false for
// a number that it does not know: below OptionalField that is refused.
func ParseFields(b []byte, known func(num protowire.Number, u uint64, v []byte) bool) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errs.E("rpc.decode", errs.Invalid, "malformed tag")
		}
		var u uint64
		var v []byte
		m := 0
		switch typ {
		case protowire.VarintType:
			u, m = protowire.ConsumeVarint(b[n:])
		case protowire.BytesType:
			v, m = protowire.ConsumeBytes(b[n:])
		default:
			return errs.E("rpc.decode", errs.Invalid, "unknown wire type")
		}
		if m < 0 {
			return errs.E("rpc.decode", errs.Invalid, "malformed field")
		}
		if !known(num, u, v) && num < OptionalField {
			return errs.E("rpc.decode", errs.Unsupported, "a field that this version does not know")
		}
		b = b[n+m:]
	}
	return nil
}

// Background is the Priority of work that no request waits for.
const Background uint8 = 1

// Meta is what travels with a call besides its payload. It is carried on by a ctx.
type Meta struct {
	Trace    [16]byte // zero: none
	Priority uint8    // 0: a request waits for it; Background
	Account  string   // on whose behalf; at most 256 bytes
}

type metaKey struct{}

// WithMeta returns a ctx whose calls carry m.
func WithMeta(ctx context.Context, m Meta) context.Context {
	return context.WithValue(ctx, metaKey{}, m)
}

// MetaOf returns what the call came with in whose ctx this is.
func MetaOf(ctx context.Context) Meta {
	m, _ := ctx.Value(metaKey{}).(Meta)
	return m
}

// Method names what is called. 1–999 are drives (package node), 1000–1999 the control plane (package cluster), above
// is the command's.
type Method uint16

// request is the head of a call or an open.
type request struct {
	method  Method
	timeout time.Duration // 0: none
	meta    Meta
}

// Fields of a request.
const (
	reqMethod   = 1
	reqTimeout  = 2
	reqTrace    = 3
	reqPriority = 4
	reqAccount  = 5
)

const maxAccount = 256

func (r *request) appendTo(b []byte) []byte {
	num := func(n protowire.Number, v uint64) {
		if v != 0 {
			b = protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
		}
	}
	num(reqMethod, uint64(r.method))
	if r.timeout > 0 {
		num(reqTimeout, uint64(max(r.timeout/time.Microsecond, 1)))
	}
	if r.meta.Trace != [16]byte{} {
		b = protowire.AppendBytes(protowire.AppendTag(b, reqTrace, protowire.BytesType), r.meta.Trace[:])
	}
	num(reqPriority, uint64(r.meta.Priority))
	if a := r.meta.Account; a != "" {
		b = protowire.AppendString(protowire.AppendTag(b, reqAccount, protowire.BytesType), a[:min(len(a), maxAccount)])
	}
	return b
}

func parseRequest(b []byte) (r request, err error) {
	bad := false
	err = ParseFields(b, func(num protowire.Number, u uint64, v []byte) bool {
		switch num {
		case reqMethod:
			bad = bad || u > 0xffff
			r.method = Method(u)
		case reqTimeout:
			r.timeout = time.Duration(min(u, uint64(24*time.Hour/time.Microsecond))) * time.Microsecond
		case reqTrace:
			bad = bad || copy(r.meta.Trace[:], v) != 16
		case reqPriority:
			bad = bad || u > 0xff
			r.meta.Priority = uint8(u)
		case reqAccount:
			bad = bad || len(v) > maxAccount
			r.meta.Account = string(v)
		default:
			return false
		}
		return true
	})
	if err == nil && bad {
		err = errs.E("rpc.decode", errs.Invalid, "malformed request")
	}
	return r, err
}
