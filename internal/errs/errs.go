// Package errs is the one vocabulary of failure. An error has a Kind, from a small closed set
// that crosses the wire between nodes intact, the operation that failed, a public text and a
// private cause. Code decides by Kind (errs.Is, errs.KindOf), never by text; only s3api turns a
// kind into an S3 code and an HTTP status.
//
// The package owns the kinds. It never logs, and it never hides a cause: Unwrap reaches it.
package errs

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// Kind says what sort of failure an error is. The numbers are part of the node protocol: append,
// never renumber.
type Kind uint8

// The kinds. Each says what the caller may conclude.
const (
	// Internal is a bug or a condition that nobody foresaw.
	Internal Kind = iota
	// Invalid means the request is malformed or out of its limits; nothing changed.
	Invalid
	// NotFound means that the thing named does not exist, and that this is known.
	NotFound
	// Exists means that the thing to be created exists already.
	Exists
	// Precondition means that a condition of the request did not hold; nothing changed.
	Precondition
	// Denied means that the identity may not do this; nothing changed.
	Denied
	// Unavailable means that too few drives answered to decide; a retry may succeed; nothing was
	// acknowledged.
	Unavailable
	// Unknown means that the outcome of a write cannot be known here: it may or may not have
	// happened. To a client it is Unavailable.
	Unknown
	// Conflict means that another proposer holds a higher ballot; retry above the hint.
	Conflict
	// Stale means that the caller's bucket epoch, layout number or state is old; refresh and retry.
	Stale
	// Behind means that a replica lacks the state that a delta applies to; it must be resynchronized.
	Behind
	// Corrupt means that stored bytes failed their checksum or do not parse.
	Corrupt
	// Full means that no room is left (drive watermark or ENOSPC).
	Full
	// Drive means that the drive is faulty, quarantined, closed or gone.
	Drive
	// Unsupported means that the request is valid but not implemented here.
	Unsupported
	// Timeout means that the deadline passed.
	Timeout
	// Canceled means that the caller gave up.
	Canceled
	// Busy means that a bound was reached; slow down and retry.
	Busy
	// Incomplete means that a body ended before its announced length, or its source failed.
	Incomplete
)

var kindNames = [...]string{"internal", "invalid", "not found", "exists", "precondition failed", "denied",
	"unavailable", "outcome unknown", "conflict", "stale", "behind", "corrupt", "full", "drive fault",
	"unsupported", "timeout", "canceled", "busy", "incomplete body"}

// String names the kind for people; it is not part of any format.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// Error is a failure of one operation. The zero Kind is Internal.
type Error struct {
	Op   string // package.Operation, such as "disk.Accept"
	Kind Kind
	Msg  string // may be shown to a client; no secret, no path of a server
	Err  error  // the cause, for the log
}

// Error returns operation, public text and cause, for logs.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	b.WriteString(": ")
	if e.Msg != "" {
		b.WriteString(e.Msg)
	} else {
		b.WriteString(e.Kind.String())
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// E makes an error of kind k with public text msg.
func E(op string, k Kind, msg string) error { return &Error{Op: op, Kind: k, Msg: msg} }

// Wrap gives err an operation and keeps its kind. Wrap(op, nil) is nil.
func Wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Kind: KindOf(err), Err: err}
}

// As gives err an operation and kind k, whatever its kind was. As(op, k, nil) is nil.
func As(op string, k Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Kind: k, Err: err}
}

// KindOf returns the kind of the outermost *Error in err's chain, or the kind that a context,
// syscall or file system error stands for.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return Full
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return Drive
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrExist):
		return Exists
	}
	return Internal
}

// Is reports whether err is not nil and of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Public returns the text that a client may see: the outermost Msg in the chain, or the kind's name.
func Public(err error) string {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if x, ok := e.(*Error); ok && x.Msg != "" {
			return x.Msg
		}
	}
	return KindOf(err).String()
}
