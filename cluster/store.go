package cluster

import (
	"bytes"
	"encoding/binary"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// The rows of the control plane in a drive's record store. Every value is followed by its
// checksum, seeded with its key.
//
//	'c' 'C'          copy: a whole state
//	'c' 'D' index    copy: a command since
//	'c' 'L' index    voter: log entry
//	'c' 'S' name     voter: stable value
//	'c' 'N' id       voter: snapshot: its description, then the state
//	'c' 'V'          voter: its raft id, and its generation
const (
	rowCopy     = 'C'
	rowCommand  = 'D'
	rowLog      = 'L'
	rowStable   = 'S'
	rowSnapshot = 'N'
	rowVoter    = 'V'
)

func rowKey(kind byte, rest ...byte) []byte { return append([]byte{'c', kind}, rest...) }

func indexKey(kind byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(rowKey(kind), index)
}

const sumSize = 8

func seal(key, value []byte) []byte {
	return binary.BigEndian.AppendUint64(append([]byte{}, value...), xxh3.HashSeed(value, xxh3.Hash(key)))
}

func open(key, value []byte) ([]byte, error) {
	if len(value) < sumSize {
		return nil, errMalformed()
	}
	body := value[:len(value)-sumSize]
	if binary.BigEndian.Uint64(value[len(body):]) != xxh3.HashSeed(body, xxh3.Hash(key)) {
		return nil, errs.E("cluster.open", errs.Corrupt, "a row of the control plane fails its checksum")
	}
	return body, nil
}

func get(kv metadata.KV, key []byte) ([]byte, error) {
	v, err := kv.Get(key)
	if err != nil || v == nil {
		return nil, err
	}
	return open(key, v)
}

// each calls f for every row of a kind, in order of key. rest is the key behind its kind.
func each(kv metadata.KV, kind byte, f func(rest, value []byte) error) (err error) {
	it, err := kv.NewIter(rowKey(kind), rowKey(kind+1))
	if err != nil {
		return err
	}
	defer func() {
		if e := it.Close(); err == nil {
			err = e
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := open(it.Key(), it.Value())
		if err == nil {
			err = f(bytes.Clone(it.Key()[2:]), bytes.Clone(v))
		}
		if err != nil {
			return err
		}
	}
	return it.Err()
}

// storage is a voter's log, stable values and snapshots on one drive. What is read after opening
// comes from memory, because raft panics on failed reads of its log and on failed writes of its
// term. Once a write failed, or was not done within writeTimeout, the storage is broken: fail is
// called first, which cuts the voter off, and every later write fails. late brings the outcome of a
// write that took too long.
//
// A vote is two values to raft, and one batch here: a crash between them would leave an earlier
// candidate as the one voted for in the new term, whom raft grants that vote again without
// looking at its log.
type storage struct {
	kv   metadata.KV
	fail func(err error, late <-chan error)

	writing turn       // one write at a time; taken before mu, which no write holds up
	mu      sync.Mutex // guards what follows
	broken  error
	voted   []byte // the term of a vote whose candidate comes next
	logs    map[uint64]*raft.Log
	first   uint64
	last    uint64
	stable  map[string][]byte
	snaps   []*raft.SnapshotMeta // newest first
	bodies  map[string][]byte
}

func openStorage(kv metadata.KV, fail func(err error, late <-chan error)) (*storage, error) {
	s := &storage{kv: kv, fail: fail, writing: newTurn(), logs: map[uint64]*raft.Log{}, stable: map[string][]byte{}, bodies: map[string][]byte{}}
	err := each(kv, rowLog, func(rest, v []byte) error {
		l, err := decodeLog(v)
		if err != nil || len(rest) != 8 || binary.BigEndian.Uint64(rest) != l.Index {
			return errMalformed()
		}
		s.logs[l.Index] = l
		if s.first == 0 {
			s.first = l.Index
		} else if l.Index != s.last+1 {
			return errs.E("cluster.openStorage", errs.Corrupt, "the control plane's log has a hole")
		}
		s.last = l.Index
		return nil
	})
	if err == nil {
		err = each(kv, rowStable, func(rest, v []byte) error { s.stable[string(rest)] = v; return nil })
	}
	if err == nil {
		err = each(kv, rowSnapshot, func(rest, v []byte) error {
			m, body, err := decodeSnapshot(v)
			if err != nil {
				return err
			}
			s.snaps = append([]*raft.SnapshotMeta{m}, s.snaps...)
			s.bodies[m.ID] = body
			return nil
		})
	}
	return s, errs.Wrap("cluster.openStorage", err)
}

// write applies b durably. The caller holds writing.
func (s *storage) write(b *metadata.Batch) error {
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken != nil {
		return broken
	}
	done := make(chan error, 1)
	go func() { done <- s.kv.Apply(b, true) }() // waited for here, or by who gets late
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	var late <-chan error
	var err error
	select {
	case err = <-done:
	case <-timer.C:
		err, late = errs.E("cluster.storage", errs.Drive, "the drive is stuck"), done
	}
	if err == nil {
		return nil
	}
	err = errs.As("cluster.storage", errs.Drive, err)
	s.mu.Lock()
	s.broken = err
	s.mu.Unlock()
	s.fail(err, late)
	return err
}

// FirstIndex implements raft.LogStore, as do the next five.
func (s *storage) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, nil
}

// LastIndex returns the index of the last entry, 0 for none.
func (s *storage) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

// lastEntry tells how recent the log is, as elections compare it.
func (s *storage) lastEntry() (term, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.logs[s.last]; l != nil {
		return l.Term, l.Index
	}
	if len(s.snaps) > 0 {
		return s.snaps[0].Term, s.snaps[0].Index
	}
	return 0, 0
}

// GetLog reads an entry. Of the entry that a snapshot ends with, where the log begins behind it, only
// the term is known: raft asks for that when what follows is in conflict with the leader's. Without
// the answer the leader would send the snapshot again and again. It is never sent on, since who sends
// an entry needs the one before it.
func (s *storage) GetLog(index uint64, log *raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[index]
	if l == nil && len(s.snaps) > 0 && s.snaps[0].Index == index {
		l = &raft.Log{Index: index, Term: s.snaps[0].Term, Type: raft.LogNoop}
	}
	if l == nil {
		return raft.ErrLogNotFound
	}
	*log = *l
	return nil
}

// StoreLog stores one entry.
func (s *storage) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs stores entries durably.
func (s *storage) StoreLogs(logs []*raft.Log) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	var b metadata.Batch
	for _, l := range logs {
		k := indexKey(rowLog, l.Index)
		b.Set(k, seal(k, encodeLog(l)))
	}
	if err := s.write(&b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range logs {
		kept := *l
		s.logs[l.Index] = &kept
		if s.first == 0 {
			s.first = l.Index
		}
		s.last = max(s.last, l.Index)
	}
	return nil
}

// DeleteRange removes entries min to max.
func (s *storage) DeleteRange(low, high uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	var b metadata.Batch
	b.DeleteRange(indexKey(rowLog, low), indexKey(rowLog, high+1))
	if err := s.write(&b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.logs {
		if i >= low && i <= high {
			delete(s.logs, i)
		}
	}
	s.first, s.last = 0, 0
	for i := range s.logs {
		if s.first == 0 || i < s.first {
			s.first = i
		}
		s.last = max(s.last, i)
	}
	return nil
}

// The values that raft keeps, by its own names.
const (
	stableTerm      = "CurrentTerm"
	stableVoteTerm  = "LastVoteTerm"
	stableCandidate = "LastVoteCand"
)

// Set implements raft.StableStore, as do the next three. Only that of the term does not fail, since
// raft would panic: the voter is cut off before it returns, and what follows from the term, a vote
// or an entry, fails.
func (s *storage) Set(key, val []byte) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	values := map[string][]byte{string(key): bytes.Clone(val)}
	s.mu.Lock()
	if string(key) == stableVoteTerm && s.broken == nil {
		s.voted = bytes.Clone(val)
		s.mu.Unlock()
		return nil
	}
	if string(key) == stableCandidate && s.voted != nil {
		values[stableVoteTerm], s.voted = s.voted, nil
	}
	s.mu.Unlock()
	var b metadata.Batch
	for name, v := range values {
		k := rowKey(rowStable, []byte(name)...)
		b.Set(k, seal(k, v))
	}
	if err := s.write(&b); err != nil && string(key) != stableTerm {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.stable, values)
	return nil
}

// Get returns a value, empty when there is none.
func (s *storage) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.stable[string(key)]), nil
}

// SetUint64 stores a number.
func (s *storage) SetUint64(key []byte, val uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// GetUint64 returns a number, 0 when there is none.
func (s *storage) GetUint64(key []byte) (uint64, error) {
	v, _ := s.Get(key)
	if len(v) != 8 {
		return 0, nil
	}
	return binary.BigEndian.Uint64(v), nil
}

const keptSnapshots = 2

// snapshotSink gathers a snapshot, which is stored as one row at Close.
type snapshotSink struct {
	s    *storage
	meta raft.SnapshotMeta
	bytes.Buffer
	done bool
}

// snapshotID names a snapshot: names ascend as snapshots become newer.
func snapshotID(index, term uint64) string {
	return string(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, index), term))
}

// Create implements raft.SnapshotStore, as do the next two.
func (s *storage) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &snapshotSink{s: s, meta: raft.SnapshotMeta{Version: version, ID: snapshotID(index, term), Index: index, Term: term, Configuration: c, ConfigurationIndex: cIndex}}, nil
}

// List returns the snapshots, newest first.
func (s *storage) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*raft.SnapshotMeta{}, s.snaps...), nil
}

// Open returns the body of a snapshot.
func (s *storage) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.snaps {
		if m.ID == id {
			return m, io.NopCloser(bytes.NewReader(s.bodies[id])), nil
		}
	}
	return nil, nil, errs.E("cluster.Open", errs.NotFound, "no such snapshot")
}

// ID returns the snapshot's id.
func (k *snapshotSink) ID() string { return k.meta.ID }

// Cancel drops the snapshot.
func (k *snapshotSink) Cancel() error {
	k.done = true
	return nil
}

// Close stores the snapshot, and removes older ones.
func (k *snapshotSink) Close() error {
	if k.done {
		return nil
	}
	k.done = true
	k.meta.Size = int64(k.Len())
	s := k.s
	s.writing.Lock()
	defer s.writing.Unlock()
	var b metadata.Batch
	key := rowKey(rowSnapshot, []byte(k.meta.ID)...)
	b.Set(key, seal(key, encodeSnapshot(&k.meta, k.Bytes())))
	keep := []*raft.SnapshotMeta{&k.meta}
	was, _ := s.List()
	for _, m := range was {
		if len(keep) < keptSnapshots && m.ID != k.meta.ID {
			keep = append(keep, m)
		} else if m.ID != k.meta.ID {
			b.Delete(rowKey(rowSnapshot, []byte(m.ID)...))
		}
	}
	if err := s.write(&b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies[k.meta.ID] = bytes.Clone(k.Bytes())
	s.snaps = keep
	maps.DeleteFunc(s.bodies, func(id string, _ []byte) bool {
		return !slices.ContainsFunc(keep, func(m *raft.SnapshotMeta) bool { return m.ID == id })
	})
	return nil
}

func encodeLog(l *raft.Log) []byte {
	b := putUint(nil, 1, l.Index)
	b = putUint(b, 2, l.Term)
	b = putUint(b, 3, uint64(l.Type))
	b = putBytes(b, 4, l.Data)
	return putBytes(b, 5, l.Extensions)
}

func decodeLog(b []byte) (*raft.Log, error) {
	l := new(raft.Log)
	return l, fields(b, func(f field) (bool, error) {
		switch f.num {
		case 1:
			l.Index = f.u
		case 2:
			l.Term = f.u
		case 3:
			l.Type = raft.LogType(f.u)
		case 4:
			l.Data = bytes.Clone(f.bytes)
		case 5:
			l.Extensions = bytes.Clone(f.bytes)
		default:
			return false, nil
		}
		return true, nil
	})
}

func encodeSnapshot(m *raft.SnapshotMeta, body []byte) []byte {
	b := putUint(nil, 1, uint64(m.Version))
	b = putString(b, 2, m.ID)
	b = putUint(b, 3, m.Index)
	b = putUint(b, 4, m.Term)
	b = putBytes(b, 5, raft.EncodeConfiguration(m.Configuration))
	b = putUint(b, 6, m.ConfigurationIndex)
	return putBytes(b, 7, body)
}

func decodeSnapshot(b []byte) (*raft.SnapshotMeta, []byte, error) {
	m := new(raft.SnapshotMeta)
	var body, conf []byte
	err := fields(b, func(f field) (bool, error) {
		switch f.num {
		case 1:
			m.Version = raft.SnapshotVersion(f.u)
		case 2:
			m.ID = string(f.bytes)
		case 3:
			m.Index = f.u
		case 4:
			m.Term = f.u
		case 5:
			conf = f.bytes
		case 6:
			m.ConfigurationIndex = f.u
		case 7:
			body = f.bytes
		default:
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		return nil, nil, err
	}
	if m.Configuration, err = decodeConfiguration(conf); err != nil {
		return nil, nil, err
	}
	m.Size = int64(len(body))
	return m, body, nil
}

// decodeConfiguration is raft.DecodeConfiguration, which panics on malformed input.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if recover() != nil {
			err = errMalformed()
		}
	}()
	return raft.DecodeConfiguration(b), nil
}
