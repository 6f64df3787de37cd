package cluster

import (
	"bytes"
	"cmp"
	"encoding/binary"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// generationID names a generation of the control plane: a set of voters, with those that joined
// them, and the history that they committed. The first one is zero; each Recover begins another.
type generationID struct {
	number uint64 // one more than any that was known when it began
	at     int64  // when it began, Unix nanoseconds
	tag    uint64 // drawn at random
}

// compare orders generations. Two of one number were begun over drives that did not know of each
// other; there the later one counts.
func (g generationID) compare(o generationID) int {
	return cmp.Or(cmp.Compare(g.number, o.number), cmp.Compare(g.at, o.at), cmp.Compare(g.tag, o.tag))
}

// generation is what a state knows of its own.
type generation struct {
	generationID
	began       uint64       // Applied of the state that it began with
	from        generationID // the last one before it in which something was committed
	fromApplied uint64       // what of that is in it
}

// proven reports whether something was committed in the state's generation. One that is not proven
// may have been left by a crash, with too few of its voters made; nothing was ever answered in it.
func (s *State) proven() bool { return s.gen.number == 0 || s.Applied > s.gen.began }

// content tells which commands are in the state.
func (s *State) content() (of generationID, applied uint64) {
	if s.proven() {
		return s.gen.generationID, s.Applied
	}
	return s.gen.from, s.gen.fromApplied
}

// newerThan decides which of two states is served from. The later generation wins, since it was begun
// by an operator who gave up the earlier. But a generation that is not proven is worth what it began
// with: the one before it wins if that went on.
func (s *State) newerThan(o *State) bool {
	a, n := s.content()
	b, m := o.content()
	return cmp.Or(a.compare(b), cmp.Compare(n, m), s.gen.compare(o.gen.generationID)) > 0
}

// nextGeneration is the state that a new generation begins with. Its index is one more, so that
// within a process indexes rise.
func (s *State) nextGeneration(id generationID) *State {
	next := *s
	next.Applied++
	next.gen = generation{generationID: id, began: next.Applied}
	next.gen.from, next.gen.fromApplied = s.content()
	return &next
}

func appendGenerationID(b []byte, g generationID) []byte {
	b = putUint(b, 1, g.number)
	b = putUint(b, 2, uint64(g.at))
	return putUint(b, 3, g.tag)
}

func decodeGenerationID(b []byte) (g generationID, err error) {
	err = fields(b, func(f field) (bool, error) {
		switch f.num {
		case 1:
			g.number = f.u
		case 2:
			g.at = int64(f.u)
		case 3:
			g.tag = f.u
		default:
			return false, nil
		}
		return true, nil
	})
	return g, err
}

func appendGeneration(b []byte, g *generation) []byte {
	b = putBytes(b, 1, appendGenerationID(nil, g.generationID))
	b = putUint(b, 2, g.began)
	b = putBytes(b, 3, appendGenerationID(nil, g.from))
	return putUint(b, 4, g.fromApplied)
}

func decodeGeneration(b []byte) (g generation, err error) {
	err = fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			g.generationID, err = decodeGenerationID(f.bytes)
		case 2:
			g.began = f.u
		case 3:
			g.from, err = decodeGenerationID(f.bytes)
		case 4:
			g.fromApplied = f.u
		default:
			return false, nil
		}
		return true, err
	})
	if err == nil && g.from.number >= g.number {
		err = errMalformed()
	}
	return g, err
}

// The row of a voter is its id, which says nothing of a first generation, as written before there were
// others; otherwise a zero byte and the generation follow.

func voterRow(b *metadata.Batch, id raft.ServerID, g generationID) {
	v := []byte(id)
	if g != (generationID{}) {
		v = appendGenerationID(append(v, 0), g)
	}
	key := rowKey(rowVoter)
	b.Set(key, seal(key, v))
}

// readVoter returns the voter that a drive's rows name; "" for none.
func readVoter(kv metadata.KV) (id raft.ServerID, g generationID, err error) {
	v, err := get(kv, rowKey(rowVoter))
	if err != nil || v == nil {
		return "", g, err
	}
	name, rest, _ := bytes.Cut(v, []byte{0})
	g, err = decodeGenerationID(rest)
	return raft.ServerID(name), g, err
}

// dropRows drops the rows of a drive's voter.
func dropRows(b *metadata.Batch) {
	for _, kind := range []byte{rowLog, rowStable, rowSnapshot, rowVoter} {
		b.DeleteRange(rowKey(kind), rowKey(kind+1))
	}
}

// replaceVoter drops the rows of a drive's voter and names a new one.
func replaceVoter(kv metadata.KV, id raft.ServerID, g generationID) error {
	var b metadata.Batch
	dropRows(&b)
	voterRow(&b, id, g)
	return kv.Apply(&b, true)
}

// dropVoter drops the rows of a drive's voter.
func dropVoter(kv metadata.KV) error {
	var b metadata.Batch
	dropRows(&b)
	return kv.Apply(&b, true)
}

// foundVoter names a voter that begins with the state s in the configuration conf: in place of a log
// it has a snapshot. It has voted for nobody in term.
func foundVoter(b *metadata.Batch, id raft.ServerID, s *State, term uint64, conf raft.Configuration) {
	dropRows(b)
	voterRow(b, id, s.gen.generationID)
	body := s.encode()
	m := raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: snapshotID(s.Applied, term), Index: s.Applied, Term: term,
		Configuration: conf, ConfigurationIndex: s.Applied, Size: int64(len(body))}
	key := rowKey(rowSnapshot, []byte(m.ID)...)
	b.Set(key, seal(key, encodeSnapshot(&m, body)))
	key = rowKey(rowStable, []byte(stableTerm)...)
	b.Set(key, seal(key, binary.BigEndian.AppendUint64(nil, term)))
}

// isOf reports whether a drive's voter, if it has one, is of generation g. What cannot be read is.
func isOf(kv metadata.KV, g generationID) bool {
	id, of, err := readVoter(kv)
	return err != nil || id == "" || of == g
}

var errNotRecovered = errs.E("cluster.Recover", errs.Unavailable, "no drive that is here could take a voter of the control plane")
