package metadata

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
)

// scanHead is what the merge of a listing must know of a row, and the encoding of the row, slim, from
// which the rest is decoded if this drive's is the one that is used.
type scanHead struct {
	ballot  Ballot
	id      Ballot // of the state
	decided bool
	enc     []byte
}

// heading returns what the merge must know.
func (e *ScanEntry) heading() (ballot, id Ballot, decided bool) {
	if r := e.Row; r != nil {
		return r.Ballot, r.State.ID, r.Decided
	}
	return e.head.ballot, e.head.id, e.head.decided
}

// row decodes the row into r, if it did not come decoded.
func (e *ScanEntry) row(r *Row, brief bool) (*Row, error) {
	if e.Row != nil {
		return e.Row, nil
	}
	return r, r.unmarshal(e.head.enc, true, brief)
}

// slimTo appends to b what slim leaves of the encoded row p, and fills h with views of that. It
// looks at the fields of row and state only: what is wrong within them, whoever decodes them finds.
func (h *scanHead) slimTo(b, p []byte) ([]byte, error) {
	at := len(b)
	for len(p) > 0 {
		num, body, n, err := cutField(p)
		if err != nil {
			return nil, err
		}
		f := field{num: num, typ: bytesType, b: body}
		switch {
		case num == 1:
			h.ballot = f.ballot()
		case num == 2:
			if body != nil || n != 2 || p[1] > 1 {
				return nil, corrupt("malformed row")
			}
			h.decided = p[1] == 1
		case num == 3 && body == nil:
			return nil, corrupt("malformed row")
		case num == 3:
			h.id = h.ballot
			b = putMsg(b, 3, func(b []byte) []byte {
				b, err = h.slimState(b, body)
				return b
			})
			if err != nil {
				return nil, err
			}
		case num > 4 && num < optionalField:
			return nil, errs.E("metadata.decode", errs.Unsupported, "a field that this version does not know")
		}
		if f.err != nil {
			return nil, f.err
		}
		if num == 1 || num == 2 {
			b = append(b, p[:n]...)
		}
		p = p[n:]
	}
	h.enc = b[at:len(b):len(b)]
	return b, nil
}

// slimState appends the fields of the encoded state p but for ring, dead list and delta.
func (h *scanHead) slimState(b, p []byte) ([]byte, error) {
	for len(p) > 0 {
		num, body, n, err := cutField(p)
		if err != nil {
			return b, err
		}
		switch {
		case num == 1:
			f := field{num: num, typ: bytesType, b: body}
			if h.id = f.ballot(); f.err != nil {
				return b, f.err
			}
		case num == 8, num == 10, num == 11, num == 12:
			p = p[n:]
			continue
		case num > 12 && num < optionalField:
			return b, errs.E("metadata.decode", errs.Unsupported, "a field that this version does not know")
		}
		b = append(b, p[:n]...)
		p = p[n:]
	}
	return b, nil
}

// cutField returns the field that p begins with: its number, its bytes if it has a length, and its size.
func cutField(p []byte) (num protowire.Number, body []byte, n int, err error) {
	num, typ, n := protowire.ConsumeTag(p)
	if n < 0 {
		return 0, nil, 0, corrupt("malformed tag")
	}
	var m int
	if typ == protowire.BytesType {
		body, m = protowire.ConsumeBytes(p[n:])
	} else {
		m = protowire.ConsumeFieldValue(num, typ, p[n:])
	}
	if m < 0 {
		return 0, nil, 0, corrupt("malformed field")
	}
	return num, body, n + m, nil
}

// arena keeps the bytes of a page in few allocations. Slices of it belong to whoever got them.
type arena struct{ b []byte }

const (
	arenaLeast = 2 << 10 // the first piece; each is twice the one before
	arenaMost  = 64 << 10
)

// room makes room for n bytes behind a.b, which are lost to earlier slices: none of them grows.
func (a *arena) room(n int) {
	if cap(a.b)-len(a.b) < n {
		a.b = make([]byte, 0, max(min(max(2*cap(a.b), arenaLeast), arenaMost), n))
	}
}
