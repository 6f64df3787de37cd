package metadata

import (
	"bytes"
	"context"
	"encoding/binary"

	"github.com/ostraka/ostraka/internal/errs"
)

// Scan reads heads in key order and jumps over common prefixes. It takes no locks: what it returns
// undecided is resolved by the reader, and what is decided is durable at a quorum. It names no epoch either, as
// it reads all partitions of the drive: the reader learns from Over whether it went by a layout that is too old.
func (a *Acceptor) Scan(ctx context.Context, m *ScanRequest) (reply *ScanReply, err error) {
	const op = "metadata.Scan"
	lower, upper, err := scanSpan(m)
	if err != nil {
		return nil, err
	}
	if m.Fenced && !a.mut.noFencedScan {
		a.fence.RLock()
		held := a.fences[m.Bucket] >= m.BucketEpoch
		a.fence.RUnlock()
		if !held {
			return nil, errs.E(op, errs.Stale, "this drive does not hold the bucket's fence")
		}
	}
	it, err := a.kv.NewIter(lower, upper)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	defer func() {
		if e := it.Close(); err == nil && e != nil {
			reply, err = nil, errs.Wrap(op, e)
		}
	}()
	limit, size := pageLimit(m.Limit), 0
	expect := min(limit, 1001)
	if len(m.Delimiter) > 0 {
		expect = min(limit, 64) // a page of prefixes may be short, and what it skips is long
	}
	reply = &ScanReply{Entries: make([]ScanEntry, 0, expect)}
	var mem arena
	for ok := it.SeekGE(lower); ok; {
		if len(reply.Entries) >= limit || size > maxPageBytes {
			reply.Truncated = true
			break
		}
		if len(reply.Entries)%256 == 255 && ctx.Err() != nil {
			return nil, errs.Wrap(op, ctx.Err())
		}
		key, value := it.Key(), it.Value()
		size += len(value)
		reply.Entries = append(reply.Entries, ScanEntry{})
		e := &reply.Entries[len(reply.Entries)-1]
		if err := e.load(&mem, key, value); err != nil {
			return nil, errs.Wrap(op, err)
		}
		if m.Kind != KindPart {
			e.Prefix = commonPrefix(e.Address.Key, m.Prefix, m.Delimiter)
		}
		if e.Prefix == nil {
			ok = it.Next()
			continue
		}
		next := successor(prefixKey(m.Kind, m.Bucket, e.Prefix))
		ok = next != nil && it.SeekGE(next)
	}
	if err := it.Err(); err != nil {
		return nil, errs.Wrap(op, err)
	}
	reply.Over = *a.over.Load() // now, as no wedge waits for readers
	return reply, nil
}

// load fills e from a stored row. It keeps nothing of key and value.
func (e *ScanEntry) load(mem *arena, key, value []byte) error {
	payload, err := openValue(key, value)
	if err != nil {
		return err
	}
	mem.room(len(key) + len(payload) + 16)
	var rest []byte
	if e.Address, rest, mem.b, err = cutAddressTo(mem.b, key[1:]); err != nil {
		return err
	}
	if len(rest) > 0 {
		return errs.E("metadata.Scan", errs.Corrupt, "malformed key in the record store")
	}
	mem.b, err = e.head.slimTo(mem.b, payload)
	return err
}

// commonPrefix returns what key is rolled up to, or nil.
func commonPrefix(key, prefix, delimiter []byte) []byte {
	if len(delimiter) == 0 || len(key) < len(prefix) {
		return nil
	}
	i := bytes.Index(key[len(prefix):], delimiter)
	if i < 0 {
		return nil
	}
	return key[:len(prefix)+i+len(delimiter)]
}

// slim is a row as a listing needs it.
func slim(row *Row) Row {
	s := row.State
	s.Ring, s.Dead, s.Delta = nil, nil, Delta{}
	return Row{Ballot: row.Ballot, Decided: row.Decided, State: s}
}

// scanSpan returns the keys that m asks for.
func scanSpan(m *ScanRequest) (lower, upper []byte, err error) {
	if m.Kind == KindPart {
		base := append(appendEscaped(bucketKey(m.Kind, m.Bucket), m.Prefix), m.Upload[:]...)
		return binary.BigEndian.AppendUint32(bytes.Clone(base), m.From), successor(base), nil
	}
	if m.Kind != KindObject && m.Kind != KindUpload {
		return nil, nil, errs.E("metadata.Scan", errs.Invalid, "unknown kind of register")
	}
	lower = prefixKey(m.Kind, m.Bucket, m.Prefix)
	upper = successor(lower)
	var from []byte
	switch {
	case len(m.After) == 0:
	case m.AfterPrefix:
		from = successor(prefixKey(m.Kind, m.Bucket, m.After))
	case len(m.AfterSub) == 16 && m.Kind == KindUpload:
		from = append(append(appendEscaped(bucketKey(m.Kind, m.Bucket), m.After), m.AfterSub...), 0)
	default:
		from = successor(appendEscaped(bucketKey(m.Kind, m.Bucket), m.After))
	}
	if bytes.Compare(from, lower) > 0 {
		lower = from
	}
	if bytes.Compare(lower, upper) > 0 {
		lower = upper
	}
	return lower, upper, nil
}
