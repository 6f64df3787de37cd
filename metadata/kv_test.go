package metadata

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sort"
	"sync"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

type pair struct{ k, v []byte }

// table is a sorted list of pairs.
type table []pair

func (t table) find(k []byte) (int, bool) {
	i := sort.Search(len(t), func(i int) bool { return bytes.Compare(t[i].k, k) >= 0 })
	return i, i < len(t) && bytes.Equal(t[i].k, k)
}

func (t table) apply(b *Batch) table {
	for _, op := range b.Ops {
		i, ok := t.find(op.Key)
		switch op.Kind {
		case OpSet:
			if ok {
				t[i] = pair{op.Key, op.Value}
			} else {
				t = slices.Insert(t, i, pair{op.Key, op.Value})
			}
		case OpDelete:
			if ok {
				t = slices.Delete(t, i, i+1)
			}
		case OpDeleteRange:
			j, _ := t.find(op.Value)
			if i < j {
				t = slices.Delete(t, i, j)
			}
		}
	}
	return t
}

// memKV is a KV that loses what was not synced when it crashes.
type memKV struct {
	mu      sync.Mutex // guards what follows
	live    table
	durable table
	log     []*Batch // applied, not synced
	fail    int      // the operation that fails, counted down; 0: none
}

var errInjected = errors.New("injected")

func (m *memKV) step() error {
	if m.fail > 0 {
		if m.fail--; m.fail == 0 {
			return errs.As("memKV", errs.Drive, errInjected)
		}
	}
	return nil
}

func (m *memKV) Get(key []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return nil, err
	}
	if i, ok := m.live.find(key); ok {
		return bytes.Clone(m.live[i].v), nil
	}
	return nil, nil
}

func (m *memKV) Apply(b *Batch, sync bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return err
	}
	m.live = m.live.apply(b)
	m.log = append(m.log, b)
	if sync {
		for _, b := range m.log {
			m.durable = m.durable.apply(b)
		}
		m.log = nil
	}
	return nil
}

// crash keeps what was synced, and the first keep batches of what was not.
func (m *memKV) crash(keep int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.log[:min(keep, len(m.log))] {
		m.durable = m.durable.apply(b)
	}
	m.log = nil
	m.live = slices.Clone(m.durable)
}

func (m *memKV) NewIter(lower, upper []byte) (Iter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.step(); err != nil {
		return nil, err
	}
	i, _ := m.live.find(lower)
	j := len(m.live)
	if upper != nil {
		j, _ = m.live.find(upper)
	}
	return &memIter{t: slices.Clone(m.live[i:max(i, j)]), at: -1}, nil
}

type memIter struct {
	t  table
	at int
}

func (i *memIter) ok() bool             { return i.at >= 0 && i.at < len(i.t) }
func (i *memIter) SeekGE(k []byte) bool { i.at, _ = i.t.find(k); return i.ok() }
func (i *memIter) SeekLT(k []byte) bool { i.at, _ = i.t.find(k); i.at--; return i.ok() }
func (i *memIter) First() bool          { i.at = 0; return i.ok() }
func (i *memIter) Last() bool           { i.at = len(i.t) - 1; return i.ok() }
func (i *memIter) Next() bool           { i.at++; return i.ok() }
func (i *memIter) Prev() bool           { i.at--; return i.ok() }
func (i *memIter) Key() []byte          { return i.t[i.at].k }
func (i *memIter) Value() []byte        { return i.t[i.at].v }
func (i *memIter) Err() error           { return nil }
func (i *memIter) Close() error         { return nil }

// memShards is a shard store in memory. Everything in it is durable at once.
type memShards struct {
	mu     sync.Mutex // guards what follows
	shards map[string][]byte
	full   bool
}

func newMemShards() *memShards { return &memShards{shards: map[string][]byte{}} }

func (m *memShards) Seal(_ context.Context, _ Address, s *Seal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full {
		return errs.E("memShards", errs.Full, "full")
	}
	if s.Inline == nil {
		if m.shards[pinName(s.Data.ID, 0)] == nil {
			return errs.E("memShards", errs.NotFound, "not streamed")
		}
		return nil
	}
	m.shards[pinName(s.Data.ID, 0)] = s.Inline
	return nil
}

func (m *memShards) SealChunk(_ context.Context, id erasure.DataID, chunk uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shards[pinName(id, chunk)] == nil {
		return errs.E("memShards", errs.NotFound, "not streamed")
	}
	return nil
}

func (m *memShards) Have(_ context.Context, id erasure.DataID, chunk uint32) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shards[pinName(id, chunk)] != nil, nil
}

func (m *memShards) Inline(_ context.Context, id erasure.DataID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shards[pinName(id, 0)], nil
}
