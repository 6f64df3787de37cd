package metadata

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
)

// The work lists of one drive: what is to be repaired, settled, removed. Each is a namespace of its
// record store, paged through by address or by time.

const bytesType = protowire.BytesType

// appendBallot appends a ballot as it stands in a field.
func appendBallot(b []byte, v Ballot) []byte {
	return binary.BigEndian.AppendUint64(protowire.AppendVarint(b, v.Counter), v.Proposer)
}

// unsettledMark says which accepts on this drive are not known to be settled: that of the row, and those
// before it whose data the row still names. The latter must outlive the settling of the row, which says
// nothing of them.
type unsettledMark struct {
	ballot    Ballot // zero: the row is settled
	partition uint32
	since     int64
	inherited []inheritedMark // oldest first
}

// inheritedMark is one accept before that of the row. The zero ballot stands for those beyond
// maxInherited: only a repair settles them.
type inheritedMark struct {
	ballot Ballot
	since  int64
}

// maxInherited bounds what one mark remembers: accepts of one key between two flushes of decisions.
const maxInherited = 32

func (u *unsettledMark) put(b *Batch, addr *Address) {
	key := addressKey(nsUnsettled, addr)
	if u.ballot.IsZero() && len(u.inherited) == 0 {
		b.Delete(key)
		return
	}
	v := putBallot([]byte{rowFormat}, 1, u.ballot)
	v = putUint(v, 2, uint64(u.partition))
	v = putFixed(v, 3, uint64(u.since))
	for _, i := range u.inherited {
		v = putMsg(v, 4, func(b []byte) []byte { return putFixed(putBallot(b, 1, i.ballot), 2, uint64(i.since)) })
	}
	b.Set(key, sealValue(key, v))
}

func (i *inheritedMark) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			i.ballot = f.ballot()
		case 2:
			i.since = int64(f.fixed())
		default:
			return false
		}
		return true
	})
	return err
}

func (u *unsettledMark) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			u.ballot = f.ballot()
		case 2:
			u.partition = f.u32()
		case 3:
			u.since = int64(f.fixed())
		case 4:
			var i inheritedMark
			f.sub(i.unmarshal)
			u.inherited = append(u.inherited, i)
		default:
			return false
		}
		return true
	})
	return err
}

func (u *UnsettledRow) unmarshal(b []byte) error {
	var m unsettledMark
	if err := m.unmarshal(b); err != nil {
		return err
	}
	u.Ballot, u.Partition, u.Since = m.ballot, m.partition, m.since
	if len(m.inherited) > 0 {
		u.Since = m.inherited[0].since
	}
	return nil
}

// keepsData reports whether next may go on naming data that row names. It errs on that side.
func keepsData(kind RegisterKind, row *Row, next *State) bool {
	if row == nil {
		return false
	}
	kept := keepsMore(kind, next)
	for v := row.State.Current; v != nil && !kept; v = v.Completed {
		kept = v.Data != nil && stateNames(kind, next, v.Data.ID) || v.Manifest != nil && stateNames(kind, next, v.Manifest.ID)
	}
	return kept
}

// keepsMore reports whether s names data besides that of its current version.
func keepsMore(kind RegisterKind, s *State) bool {
	return s.Older > 0 || kind == KindPart && len(s.Dead) > 0
}

// markOf reads the mark of a register; nil: it is settled. A damaged one counts as one that only a
// repair settles. The caller holds the register's lock.
func (a *Acceptor) markOf(addr *Address) (*unsettledMark, error) {
	key := addressKey(nsUnsettled, addr)
	value, err := a.kv.Get(key)
	if err != nil || value == nil {
		return nil, err
	}
	u := new(unsettledMark)
	b, err := openValue(key, value)
	if err == nil {
		err = u.unmarshal(b)
	}
	if errs.Is(err, errs.Corrupt) {
		return &unsettledMark{inherited: []inheritedMark{{}}}, nil
	}
	return u, err
}

// inherit returns what the mark of a new row takes over from the mark there is.
func (a *Acceptor) inherit(addr *Address) ([]inheritedMark, error) {
	u, err := a.markOf(addr)
	if err != nil || u == nil {
		return nil, err
	}
	list := u.inherited
	if !u.ballot.IsZero() {
		list = append(list, inheritedMark{u.ballot, u.since})
	}
	if len(list) > maxInherited {
		list[1] = inheritedMark{since: list[0].since}
		list = list[1:]
	}
	return list, nil
}

// settle takes the ballot of m off the mark of its register. own: it is the row's, and whatever the mark
// says of the row goes. marks has the marks that the batch changes.
func (a *Acceptor) settle(b *Batch, marks map[string]*unsettledMark, m *Decision, own bool) error {
	name := string(m.Address.AppendTo(nil))
	u, ok := marks[name]
	if !ok {
		var err error
		if u, err = a.markOf(&m.Address); err != nil {
			return err
		}
		marks[name] = u
	}
	if u == nil {
		return nil
	}
	n := len(u.inherited)
	u.inherited = slices.DeleteFunc(u.inherited, func(i inheritedMark) bool { return i.ballot == m.Ballot })
	if own {
		u.ballot = Ballot{}
	}
	if own || len(u.inherited) < n {
		u.put(b, &m.Address)
	}
	return nil
}

// repairAsk is a repair row without its address.
type repairAsk struct {
	positions []uint8
	asked     uint64
}

func appendRepair(partition uint32, r repairAsk) []byte {
	return putFixed(putBytes(putUint([]byte{rowFormat}, 1, uint64(partition)), 2, r.positions), optionalField, r.asked) // builds before it pass it over
}

// askedBy is RepairRow.Asked of what a decision says: another one for each ballot, and for each change of the row.
func askedBy(b Ballot, before uint64) uint64 {
	var v [24]byte
	binary.BigEndian.PutUint64(v[:], b.Counter)
	binary.BigEndian.PutUint64(v[8:], b.Proposer)
	binary.BigEndian.PutUint64(v[16:], before)
	return xxh3.Hash(v[:]) | 1
}

func (r *RepairRow) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			r.Partition = f.u32()
		case 2:
			r.Positions = f.bytes(maxPositions)
		case optionalField:
			r.Asked = f.fixed()
		default:
			return false
		}
		return true
	})
	return err
}

func (g *GarbageRow) appendTo(b []byte) []byte {
	b = putMsg(b, 1, g.Address.AppendTo)
	b = putUint(b, 2, uint64(g.Partition))
	b = putMsg(b, 3, g.Dead.AppendTo)
	return putBallot(b, 4, g.Guard)
}

func (g *GarbageRow) unmarshal(b []byte) error {
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			f.sub(g.Address.Unmarshal)
		case 2:
			g.Partition = f.u32()
		case 3:
			f.sub(g.Dead.Unmarshal)
		case 4:
			g.Guard = f.ballot()
		default:
			return false
		}
		return true
	})
	return err
}

// page calls f with up to limit keys of a namespace that are above after and below upper (nil: the
// end of the namespace).
func (a *Acceptor) page(ns byte, after, upper []byte, limit int, f func(key, payload []byte) error) (err error) {
	lower := []byte{ns}
	if after != nil {
		lower = append(append([]byte{}, after...), 0)
	}
	if upper == nil {
		upper = []byte{ns + 1}
	}
	it, err := a.kv.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer func() {
		if e := it.Close(); err == nil {
			err = e
		}
	}()
	for ok := it.First(); ok && limit > 0; ok = it.Next() {
		b, err := openValue(it.Key(), it.Value())
		if err == nil {
			err = f(it.Key(), b)
		}
		if err != nil {
			return err
		}
		limit--
	}
	return it.Err()
}

// addresses pages through a namespace that is keyed by address.
func (a *Acceptor) addresses(ns byte, after *Address, limit int, f func(addr Address, payload []byte) error) error {
	var key []byte
	if after != nil {
		key = addressKey(ns, after)
	}
	return a.page(ns, key, nil, pageLimit(limit), func(key, b []byte) error {
		addr, rest, err := cutAddress(key[1:])
		if err == nil && len(rest) > 0 {
			err = errs.E("metadata.addresses", errs.Corrupt, "malformed key in the record store")
		}
		if err != nil {
			return err
		}
		return f(addr, b)
	})
}

// Repairs lists registers of which row or shard may be missing somewhere, in order of address,
// behind after (nil: from the start).
func (a *Acceptor) Repairs(after *Address, limit int) (list []RepairRow, err error) {
	err = a.addresses(nsRepair, after, limit, func(addr Address, b []byte) error {
		list = append(list, RepairRow{Address: addr})
		return list[len(list)-1].unmarshal(b)
	})
	return list, errs.Wrap("metadata.Repairs", err)
}

func (a *Acceptor) repairOf(key []byte) (repairAsk, error) {
	value, err := a.kv.Get(key)
	if err != nil || value == nil {
		return repairAsk{}, err
	}
	b, err := openValue(key, value)
	if err != nil {
		return repairAsk{}, err
	}
	var r RepairRow
	err = r.unmarshal(b)
	return repairAsk{r.Positions, r.Asked}, err
}

// AddRepair asks for a repair, durably.
func (a *Acceptor) AddRepair(r RepairRow) error {
	if r.Asked == 0 {
		r.Asked = NewAsked()
	}
	return a.editRepair("metadata.AddRepair", &r, true, func(have repairAsk) repairAsk {
		return repairAsk{union(have.positions, r.Positions), r.Asked}
	})
}

// ClearRepair takes positions off the list, those that were repaired, if nobody has asked since the row was read,
// and the row of the register here still holds the state that was verified.
func (a *Acceptor) ClearRepair(r RepairRow) error {
	return a.editRepair("metadata.ClearRepair", &r, false, func(have repairAsk) repairAsk {
		if have.asked == r.Asked {
			have.positions = slices.DeleteFunc(have.positions, func(p uint8) bool { return slices.Contains(r.Positions, p) })
		}
		return have
	})
}

func (a *Acceptor) editRepair(op string, r *RepairRow, sync bool, edit func(repairAsk) repairAsk) error {
	if err := r.Address.Check(); err != nil {
		return err
	}
	key := addressKey(nsRepair, &r.Address)
	st := a.stripeOf(&r.Address)
	st.mu.Lock()
	defer st.mu.Unlock()
	if !r.State.IsZero() {
		row, err := a.row(headKey(&r.Address))
		if err != nil || row == nil || row.State.ID != r.State {
			return errs.Wrap(op, err)
		}
	}
	have, err := a.repairOf(key)
	if err != nil {
		return errs.Wrap(op, err)
	}
	var b Batch
	if left := edit(have); len(left.positions) > 0 {
		b.Set(key, sealValue(key, appendRepair(r.Partition, left)))
	} else {
		b.Delete(key)
	}
	return errs.Wrap(op, a.kv.Apply(&b, sync))
}

// Unsettled lists registers whose row was accepted here and of which it is not known that all
// members were heard. Client.Resync settles them.
func (a *Acceptor) Unsettled(after *Address, limit int) (list []UnsettledRow, err error) {
	err = a.addresses(nsUnsettled, after, limit, func(addr Address, b []byte) error {
		list = append(list, UnsettledRow{Address: addr})
		return list[len(list)-1].unmarshal(b)
	})
	return list, errs.Wrap("metadata.Unsettled", err)
}

// ClearUnsettled removes the mark of a register that has no row here any more, or whose row is not
// the one that the mark is about and is decided. With State, all data that that state names was verified,
// or is named by a repair row: if the row here holds it, the mark forgets what it inherited.
func (a *Acceptor) ClearUnsettled(u UnsettledRow) error {
	const op = "metadata.ClearUnsettled"
	if err := u.Address.Check(); err != nil {
		return err
	}
	head := headKey(&u.Address)
	st := a.stripeOf(&u.Address)
	st.mu.Lock()
	defer st.mu.Unlock()
	row, err := a.row(head)
	if err != nil {
		return errs.Wrap(op, err)
	}
	var b Batch
	switch {
	case !u.State.IsZero():
		if row == nil || row.State.ID != u.State {
			return nil
		}
		mark, err := a.markOf(&u.Address)
		if err != nil || mark == nil || len(mark.inherited) == 0 {
			return errs.Wrap(op, err)
		}
		mark.inherited = nil
		mark.put(&b, &u.Address)
	case row != nil && (!row.Decided || row.Ballot == u.Ballot):
		return nil
	default:
		b.Delete(addressKey(nsUnsettled, &u.Address))
	}
	return errs.Wrap(op, a.kv.Apply(&b, false))
}

// Garbage lists data that became garbage before a time, oldest first.
func (a *Acceptor) Garbage(before time.Time, limit int) (list []GarbageRow, err error) {
	upper := binary.BigEndian.AppendUint64([]byte{nsGarbage}, uint64(before.UnixNano()))
	err = a.page(nsGarbage, nil, upper, pageLimit(limit), func(key, b []byte) error {
		if len(key) != 1+8+16 {
			return errs.E("metadata.Garbage", errs.Corrupt, "malformed key in the record store")
		}
		list = append(list, GarbageRow{At: int64(binary.BigEndian.Uint64(key[1:]))})
		return list[len(list)-1].unmarshal(b)
	})
	return list, errs.Wrap("metadata.Garbage", err)
}

// ClearGarbage removes rows of which the shards are gone, or left to the collection of orphans. It
// is not synced: to delete twice does no harm.
func (a *Acceptor) ClearGarbage(rows []GarbageRow) error {
	var b Batch
	for i := range rows {
		b.Delete(garbageKey(rows[i].At, rows[i].Dead.Data.ID))
	}
	if len(b.Ops) == 0 {
		return nil
	}
	return errs.Wrap("metadata.ClearGarbage", a.kv.Apply(&b, false))
}
