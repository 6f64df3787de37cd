package metadata

import (
	"bytes"
	"context"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// What a simulated drive stores. Both stores are for one thread, and lose what was not synced when
// the drive crashes.

// simKV is a KV: a sorted list of pairs, and how to return to what was synced.
type simKV struct {
	rows  table
	undo  [][]pair // for each batch since the last sync: what was there before; v nil: nothing
	iters int
}

func (m *simKV) Get(key []byte) ([]byte, error) {
	if i, ok := m.find(key); ok {
		return m.rows[i].v, nil
	}
	return nil, nil
}

func (m *simKV) find(k []byte) (int, bool) {
	lo, hi := 0, len(m.rows)
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := bytes.Compare(m.rows[mid].k, k); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

func (m *simKV) set(k, v []byte) (old []byte) {
	i, ok := m.find(k)
	switch {
	case ok && v != nil:
		old, m.rows[i].v = m.rows[i].v, v
	case ok:
		old = m.rows[i].v
		m.rows = slices.Delete(m.rows, i, i+1)
	case v != nil:
		m.rows = slices.Insert(m.rows, i, pair{k, v})
	}
	return old
}

func (m *simKV) Apply(b *Batch, sync bool) error {
	if m.iters > 0 {
		panic("a batch is applied under an open iterator")
	}
	var undo []pair
	put := func(k, v []byte) {
		if old := m.set(k, v); !sync {
			undo = append(undo, pair{k, old})
		}
	}
	for _, op := range b.Ops {
		switch op.Kind {
		case OpSet:
			put(op.Key, op.Value)
		case OpDelete:
			put(op.Key, nil)
		case OpDeleteRange:
			i, _ := m.find(op.Key)
			j, _ := m.find(op.Value)
			for ; i < j; j-- {
				put(m.rows[i].k, nil)
			}
		}
	}
	if sync {
		m.undo = m.undo[:0]
	} else {
		m.undo = append(m.undo, undo)
	}
	return nil
}

// crash keeps what was synced, and the first keep batches of what was not.
func (m *simKV) crash(keep int) {
	for len(m.undo) > keep {
		last := m.undo[len(m.undo)-1]
		for i := len(last) - 1; i >= 0; i-- {
			m.set(last[i].k, last[i].v)
		}
		m.undo = m.undo[:len(m.undo)-1]
	}
	m.undo, m.iters = m.undo[:0], 0
}

func (m *simKV) NewIter(lower, upper []byte) (Iter, error) {
	i, _ := m.find(lower)
	j := len(m.rows)
	if upper != nil {
		j, _ = m.find(upper)
	}
	m.iters++
	return &simIter{memIter{t: m.rows[i:max(i, j)], at: -1}, m}, nil
}

type simIter struct {
	memIter
	m *simKV
}

func (i *simIter) Close() error {
	i.m.iters--
	return nil
}

// simShard names a shard on a drive.
type simShard struct {
	id    erasure.DataID
	chunk uint32
}

// simShards is a shard store. What was streamed and not sealed may be gone after a crash.
type simShards struct {
	sealed map[simShard]bool
}

func (m *simShards) stream(id erasure.DataID, chunk uint32) {
	if name := (simShard{id, chunk}); !m.sealed[name] {
		m.sealed[name] = false
	}
}

func (m *simShards) Seal(_ context.Context, _ Address, s *Seal) error {
	if s.Inline != nil {
		m.sealed[simShard{s.Data.ID, 0}] = true
		return nil
	}
	return m.SealChunk(context.Background(), s.Data.ID, 0)
}

var errNotStreamed = errs.E("sim", errs.NotFound, "not streamed")

func (m *simShards) SealChunk(_ context.Context, id erasure.DataID, chunk uint32) error {
	name := simShard{id, chunk}
	if _, ok := m.sealed[name]; !ok {
		return errNotStreamed
	}
	m.sealed[name] = true
	return nil
}

func (m *simShards) Have(_ context.Context, id erasure.DataID, chunk uint32) (bool, error) {
	return m.sealed[simShard{id, chunk}], nil
}

func (m *simShards) Inline(_ context.Context, id erasure.DataID) ([]byte, error) {
	if m.sealed[simShard{id, 0}] {
		return []byte{1}, nil
	}
	return nil, nil
}

func (m *simShards) crash() {
	for name, sealed := range m.sealed {
		if !sealed {
			delete(m.sealed, name)
		}
	}
}
