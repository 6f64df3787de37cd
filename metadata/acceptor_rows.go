package metadata

import (
	"bytes"
	"context"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// maxLooked bounds the rows that one page of Rows looks at, whether they match or not.
const maxLooked = 20000

// Rows pages through the heads. Like Scan it takes no locks: a row that is not decided may not be
// durable, unless the partition is wedged.
func (a *Acceptor) Rows(ctx context.Context, m *RowsRequest) (reply *RowsReply, err error) {
	const op = "metadata.Rows"
	ns := byte(nsHead)
	if m.Marked {
		ns = nsUnsettled
	}
	rows, err := a.walk(ns, m.After)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	marks, err := a.walk(nsUnsettled, m.After)
	if err != nil {
		_ = rows.Close()
		return nil, errs.Wrap(op, err)
	}
	defer func() {
		if e := marks.Close(); err == nil {
			err = e
		}
		if e := rows.Close(); err == nil {
			err = e
		}
		if err != nil {
			reply, err = nil, errs.Wrap(op, err)
		}
	}()
	limit := maxPage
	if m.Limit > 0 {
		limit = min(m.Limit, maxPage)
	}
	reply = new(RowsReply)
	size, looked := 0, 0
	marked := marks.First()
	for ok := rows.First(); ok; ok = rows.Next() {
		if len(reply.Rows) >= limit || looked >= maxLooked || size > maxPageBytes {
			reply.More = true
			break
		}
		if looked++; looked%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		addr, rest, err := cutAddress(rows.Key()[1:])
		if err != nil || len(rest) > 0 {
			return nil, errs.E(op, errs.Corrupt, "malformed key in the record store")
		}
		reply.Next = &addr
		if m.Slices != nil {
			if _, ok := slices.BinarySearch(m.Slices, placement.Slice(addr.Bucket, addr.Key)); !ok {
				continue
			}
		}
		r := RegisterRow{Address: addr, Unsettled: m.Marked}
		head := rows.Key()
		value := rows.Value()
		if m.Marked {
			head = headKey(&addr)
			if value, err = a.kv.Get(head); err != nil {
				return nil, err
			}
		} else {
			for marked && bytes.Compare(marks.Key()[1:], head[1:]) < 0 {
				marked = marks.Next()
			}
			r.Unsettled = marked && bytes.Equal(marks.Key()[1:], head[1:])
		}
		if value != nil {
			row, err := decodeRow(head, value)
			if err != nil {
				return nil, err
			}
			r.Row = bare(row)
		}
		size += len(value)
		reply.Rows = append(reply.Rows, r)
	}
	if err := marks.Err(); err != nil {
		return nil, err
	}
	return reply, rows.Err()
}

// walk returns an iterator over a namespace that is keyed by address, behind after.
func (a *Acceptor) walk(ns byte, after *Address) (Iter, error) {
	lower, upper := []byte{ns}, []byte{ns + 1}
	if after != nil {
		lower = append(addressKey(ns, after), 0)
	}
	return a.kv.NewIter(lower, upper)
}

// Lookup returns the rows of some registers.
func (a *Acceptor) Lookup(ctx context.Context, m *LookupRequest) (*RowsReply, error) {
	const op = "metadata.Lookup"
	if len(m.Addresses) > MaxRows {
		return nil, errs.E(op, errs.Invalid, "too many registers")
	}
	reply := &RowsReply{Rows: make([]RegisterRow, len(m.Addresses))}
	for i := range m.Addresses {
		addr := &m.Addresses[i]
		if err := addr.Check(); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, errs.Wrap(op, err)
		}
		r := &reply.Rows[i]
		r.Address = *addr
		head := headKey(addr)
		st := a.stripeOf(addr)
		st.mu.RLock()
		row, err := a.rowOf(st, head)
		var mark []byte
		if err == nil {
			mark, err = a.kv.Get(addressKey(nsUnsettled, addr))
		}
		st.mu.RUnlock()
		if err != nil {
			return nil, errs.Wrap(op, err)
		}
		r.Row, r.Unsettled = bare(row), mark != nil
	}
	return reply, nil
}

// Copy pages through the version rows of one register, whatever the epoch of its partition.
func (a *Acceptor) Copy(_ context.Context, m *VersionsRequest) (*VersionsReply, error) {
	if err := m.Address.Check(); err != nil {
		return nil, err
	}
	st := a.stripeOf(&m.Address)
	st.mu.RLock()
	defer st.mu.RUnlock()
	reply, err := a.rowAndVersions(st, m)
	return reply, errs.Wrap("metadata.Copy", err)
}

// rowAndVersions answers m. The caller holds the lock of st.
func (a *Acceptor) rowAndVersions(st *stripe, m *VersionsRequest) (*VersionsReply, error) {
	row, err := a.rowOf(st, headKey(&m.Address))
	if err != nil {
		return nil, err
	}
	reply := &VersionsReply{Row: bare(row)}
	if row != nil && row.State.Older > 0 {
		reply.Versions, reply.More, err = a.versions(&m.Address, m.Below, pageLimit(m.Limit))
	}
	return reply, err
}
