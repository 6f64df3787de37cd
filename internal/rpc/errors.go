package rpc

import (
	"context"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
)

// unsent marks an error of a request that was certainly not executed.
type unsent struct{ error }

func (e unsent) Unwrap() error { return e.error }

// NotSent reports whether the request that failed with err was certainly not executed by the peer,
// because it did not leave, or because the peer has refused to look at it.
func NotSent(err error) bool {
	var u unsent
	return errors.As(err, &u)
}

// unavailable is an error of the connection.
func unavailable(op, msg string, cause error) error {
	return &errs.Error{Op: op, Kind: errs.Unavailable, Msg: msg, Err: cause}
}

// ended is the error of a caller whose ctx is over.
func ended(op string, ctx context.Context) error { return errs.Wrap(op, ctx.Err()) }

// maxLoad bounds what a node may say of its load.
const maxLoad = 1 << 20

// maxErrorText bounds operation and text of an error on the wire, in bytes.
const maxErrorText = 1024

// Fields of an error.
const (
	errKind = 1
	errOp   = 2
	errMsg  = 3
)

// AppendError appends what crosses of err between nodes: kind, operation and public text. nil appends
// nothing.
func AppendError(b []byte, err error) []byte {
	if err == nil {
		return b
	}
	op := "rpc"
	var e *errs.Error
	if errors.As(err, &e) {
		op = e.Op
	}
	b = protowire.AppendTag(b, errKind, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(errs.KindOf(err))+1)
	b = protowire.AppendTag(b, errOp, protowire.BytesType)
	b = protowire.AppendString(b, clip(op))
	b = protowire.AppendTag(b, errMsg, protowire.BytesType)
	return protowire.AppendString(b, clip(errs.Public(err)))
}

func clip(s string) string { return s[:min(len(s), maxErrorText)] }

// ParseError is the inverse of AppendError: remote is the error that crossed, nil if there was none. A kind that
// this version does not know is errs.Internal. bad says that b is no error at all.
func ParseError(b []byte) (remote, bad error) {
	remote, _, bad = parseReply(b)
	return remote, bad
}

// replyLoad is the field of a reply that says how many requests the node has to do with. Optional: version 1 has none.
const replyLoad = OptionalField

// appendReply appends the head of a reply, or of the end of a stream. load: 0 is left out.
func appendReply(b []byte, err error, load int) []byte {
	b = AppendError(b, err)
	if load > 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, replyLoad, protowire.VarintType), uint64(load))
	}
	return b
}

// parseReply is the inverse of appendReply.
func parseReply(b []byte) (remote error, load int, bad error) {
	var e errs.Error
	failed := false
	err := ParseFields(b, func(num protowire.Number, u uint64, v []byte) bool {
		switch num {
		case replyLoad:
			load = int(min(u, maxLoad))
		case errKind:
			failed = u > 0
			if u > 0 && u-1 <= uint64(lastKind) {
				e.Kind = errs.Kind(u - 1)
			}
		case errOp:
			e.Op = clip(string(v))
		case errMsg:
			e.Msg = clip(string(v))
		default:
			return false
		}
		return true
	})
	if err != nil || !failed {
		return nil, load, err
	}
	return &e, load, nil
}

// lastKind is the highest kind of this version.
const lastKind = errs.Incomplete
