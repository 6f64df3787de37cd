package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"

	iradix "github.com/hashicorp/go-immutable-radix"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
)

// This file is about what a change ends with, as it crosses the wire and as it is remembered. In a cluster
// a change travels to the leader, and may arrive there twice. So it has an id, and the state remembers
// what the last changes ended with: a repeated one changes nothing, and has the same answer. A store
// of one process gives none.

// changeID names one change, drawn at random by who asks for it; zero for none.
type changeID [16]byte

// maxRemembered bounds what is remembered. A change is tried again for seconds, and the control plane makes
// tens of changes a second.
const maxRemembered = 1024

// remembered are the outcomes of the last changes. Like State it is immutable.
type remembered struct {
	byID    *iradix.Tree // id → index, then the encoded result
	byIndex *iradix.Tree // index, big endian → id
}

func newRemembered() remembered { return remembered{iradix.New(), iradix.New()} }

// find returns what a change ended with.
func (r remembered) find(id changeID) ([]byte, bool) {
	v, ok := r.byID.Get(id[:])
	if !ok {
		return nil, false
	}
	return v.([]byte)[8:], true
}

// with returns r with one outcome more; the oldest goes.
func (r remembered) with(id changeID, index uint64, result []byte) remembered {
	key := idKey(index)
	r.byID, _, _ = r.byID.Insert(id[:], append(bytes.Clone(key), result...))
	r.byIndex, _, _ = r.byIndex.Insert(key, id)
	if r.byIndex.Len() > maxRemembered {
		oldest, was, _ := r.byIndex.Root().Minimum()
		gone := was.(changeID)
		r.byIndex, _, _ = r.byIndex.Delete(oldest)
		r.byID, _, _ = r.byID.Delete(gone[:])
	}
	return r
}

// each calls f for what is remembered, oldest first.
func (r remembered) each(f func(id changeID, index uint64, result []byte)) {
	r.byIndex.Root().Walk(func(key []byte, v any) bool {
		id := v.(changeID)
		result, _ := r.find(id)
		f(id, binary.BigEndian.Uint64(key), result)
		return false
	})
}

// applyOnce applies c, unless a change of its id was applied before: then it ends as that did.
func (s *State) applyOnce(index uint64, c *command) (*State, any) {
	if c.change == (changeID{}) {
		return s.apply(index, c)
	}
	if raw, ok := s.recent.find(c.change); ok {
		next := *s
		next.Applied = index
		result, err := decodeResult(raw)
		if err != nil {
			return &next, err
		}
		if b, ok := result.(Bucket); ok { // its documents are not remembered
			if is := s.numbered(b.ID); is != nil {
				b.Config = is.Config
			}
			result = b
		}
		return &next, result
	}
	next, result := s.apply(index, c)
	if next.Initialized() {
		kept := result
		if b, ok := result.(Bucket); ok {
			b.Config = nil
			kept = b
		}
		next.recent = next.recent.with(c.change, index, encodeResult(kept))
	}
	return next, result
}

// encoded is the result of a command whose own code encodes it.
type encoded []byte

// The kinds of results. The numbers are part of the format.
const (
	resultNone        = 0
	resultBucket      = 1
	resultReplacement = 2
	resultNumbers     = 3
	resultError       = 4
	resultEncoded     = 5
)

func encodeResult(result any) []byte {
	kind, body := uint64(resultNone), []byte(nil)
	switch x := result.(type) {
	case Bucket:
		kind, body = resultBucket, appendBucket(nil, &x)
	case Replacement:
		kind, body = resultReplacement, appendReplacement(nil, &x)
	case []uint16:
		kind, body = resultNumbers, appendNumbers(nil, x)
	case encoded:
		kind, body = resultEncoded, x
	case error:
		kind, body = resultError, appendRefusal(nil, x)
	}
	return append(protowire.AppendVarint(nil, kind), body...)
}

func decodeResult(b []byte) (any, error) {
	kind, n := protowire.ConsumeVarint(b)
	if n < 0 {
		return nil, errMalformed()
	}
	b = b[n:]
	switch kind {
	case resultNone:
		return nil, nil
	case resultBucket:
		return decodeBucket(b)
	case resultReplacement:
		return decodeReplacement(b)
	case resultNumbers:
		return decodeNumbers[uint16](b, 1<<16, 1<<16-1)
	case resultEncoded:
		return encoded(bytes.Clone(b)), nil
	case resultError:
		refused, err := decodeRefusal(b)
		if err != nil {
			return nil, err
		}
		return refused, nil
	}
	return nil, errs.E("cluster.decode", errs.Unsupported, "a result of a newer version")
}

// appendRefusal encodes an error with its kind and public text, and what was in the way.
func appendRefusal(b []byte, err error) []byte {
	var e *errs.Error
	if errors.As(err, &e) {
		b = putString(b, 1, e.Op)
	}
	b = putUint(b, 2, uint64(errs.KindOf(err)))
	b = putString(b, 3, errs.Public(err))
	var exists *existsError
	if errors.As(err, &exists) {
		was := exists.bucket
		was.Config = nil
		b = putBytes(b, 4, appendBucket(nil, &was))
	}
	var replacing *replacingError
	if errors.As(err, &replacing) {
		b = putBytes(b, 5, appendReplacement(nil, &replacing.r))
	}
	return b
}

func decodeRefusal(b []byte) (refused, err error) {
	e := &errs.Error{Op: "cluster.apply"}
	err = fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			e.Op = string(f.bytes)
		case 2:
			if e.Kind = errs.Kind(f.u); f.u > 255 {
				err = errMalformed()
			}
		case 3:
			e.Msg = string(f.bytes)
		case 4:
			var was Bucket
			was, err = decodeBucket(f.bytes)
			refused = &existsError{was}
		case 5:
			var r Replacement
			r, err = decodeReplacement(f.bytes)
			refused = &replacingError{r}
		default:
			return false, nil
		}
		return true, err
	})
	if refused == nil {
		refused = e
	}
	return refused, err
}

func appendRemembered(b []byte, id changeID, index uint64, result []byte) []byte {
	b = putBytes(b, 1, id[:])
	b = putUint(b, 2, index)
	return putBytes(b, 3, result)
}

func (r remembered) decodeOne(b []byte) (remembered, error) {
	var id changeID
	var index uint64
	var result []byte
	err := fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			err = fixed(id[:], f.bytes)
		case 2:
			index = f.u
		case 3:
			result = f.bytes
		default:
			return false, nil
		}
		return true, err
	})
	if _, twice := r.find(id); err == nil && (twice || id == (changeID{}) || r.byIndex.Len() == maxRemembered) {
		err = errMalformed()
	}
	if _, twice := r.byIndex.Get(idKey(index)); err == nil && twice {
		err = errMalformed()
	}
	if err == nil {
		if _, e := decodeResult(result); e != nil {
			err = e
		}
	}
	if err != nil {
		return r, err
	}
	return r.with(id, index, result), nil
}
