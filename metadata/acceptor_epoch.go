package metadata

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

// epochRow is what a drive holds, durably, of its membership in one partition. Without one, it serves
// epoch 1 and no other.
type epochRow struct {
	installed uint64 // epoch in which it was made a member; 0: never
	before    uint64 // installed, before the transition named here installed
	wedged    uint64 // epochs up to this one are refused
	// The transition that wedged last, while it has not ended, and the highest term met of it.
	transition, term uint64
	floor            Ballot // promised for every register by wedges, or begun with by epochs
}

// serves reports whether a drive with r serves epoch e.
func (r epochRow) serves(e uint64) bool { return e > r.wedged && (e == 1 || e == r.installed) }

// over returns the last epoch that the drive will not serve again; 0: none.
func (r epochRow) over() uint64 {
	if r.installed > r.wedged {
		return r.installed - 1
	}
	return r.wedged
}

// ended reports whether the drive is wedged and not yet in the next epoch.
func (r epochRow) ended() bool { return r.wedged > 0 && r.installed <= r.wedged }

// judgeWedge decides a wedge of epoch by a mover, and returns the row that follows.
func judgeWedge(r epochRow, epoch, transition, term uint64, floor Ballot) (next epochRow, ok bool) {
	switch {
	case r.wedged > epoch || r.installed > epoch+1:
		return r, false
	case r.transition == transition && term < r.term:
		return r, false
	case r.installed == epoch+1:
		// Installed, and not published, or the mover would not ask: what the term before prepared is void.
		// Its Publish fails by its term. Under the same term it might still succeed.
		if r.transition != transition || term == r.term {
			return r, false
		}
		r.installed = r.before
	case r.wedged == epoch && r.transition != transition && r.transition != 0:
		return r, false
	}
	r.wedged, r.transition, r.term = epoch, transition, term
	r.floor = maxBallot(r.floor, floor)
	return r, true
}

// judgeInstallEpoch decides whether epoch begins on a drive.
func judgeInstallEpoch(r epochRow, epoch, transition, term uint64, floor Ballot, published bool) (next epochRow, ok bool) {
	switch {
	case transition == 0 && !published:
		return r, false
	case r.installed >= epoch:
		// Done before. By somebody else it must not be believed to be this image.
		return r, r.installed == epoch && (transition == 0 || r.transition == transition && r.term == term)
	case transition != 0 && (r.wedged != epoch-1 || r.transition != transition || r.term != term):
		return r, false
	}
	r.before, r.installed = r.installed, epoch
	if transition == 0 && r.wedged < epoch {
		r.transition, r.term = 0, 0 // over for this drive, too late
	}
	r.floor = maxBallot(r.floor, floor)
	return r, true
}

func (r *epochRow) appendTo(b []byte) []byte {
	b = putUint(b, 1, r.installed)
	b = putUint(b, 2, r.before)
	b = putUint(b, 3, r.wedged)
	b = putUint(b, 4, r.transition)
	b = putUint(b, 5, r.term)
	return putBallot(b, 6, r.floor)
}

func (r *epochRow) unmarshal(b []byte) error {
	*r = epochRow{}
	_, err := decode(b, func(f *field) bool {
		switch f.num {
		case 1:
			r.installed = f.uint()
		case 2:
			r.before = f.uint()
		case 3:
			r.wedged = f.uint()
		case 4:
			r.transition = f.uint()
		case 5:
			r.term = f.uint()
		case 6:
			r.floor = f.ballot()
		default:
			return false
		}
		return true
	})
	return err
}

func (r *epochRow) put(b *Batch, partition uint32) {
	key := epochKey(partition)
	b.Set(key, sealValue(key, r.appendTo([]byte{rowFormat})))
}

// loadEpochs reads the memberships of the drive.
func (a *Acceptor) loadEpochs() error {
	rows := map[uint32]epochRow{}
	err := a.each([]byte{nsEpoch}, func(key, b []byte) error {
		var r epochRow
		if len(key) != 5 {
			return errs.E("metadata.loadEpochs", errs.Corrupt, "malformed key in the record store")
		}
		err := r.unmarshal(b)
		rows[binary.BigEndian.Uint32(key[1:])] = r
		return err
	})
	a.storeEpochs(rows)
	return err
}

// storeEpochs makes rows true.
func (a *Acceptor) storeEpochs(rows map[uint32]epochRow) {
	over := make([]EndedEpoch, 0, len(rows))
	for p, r := range rows {
		if e := r.over(); e > 0 && !a.mut.staleList {
			over = append(over, EndedEpoch{p, e})
		}
	}
	slices.SortFunc(over, func(x, y EndedEpoch) int { return cmp.Compare(x.Partition, y.Partition) })
	a.over.Store(&over) // first: no row of a new epoch comes before
	a.epochs.Store(&rows)
}

// epochRow returns the membership of a partition; the zero one if nothing was ever moved.
func (a *Acceptor) epochRow(partition uint32) epochRow { return (*a.epochs.Load())[partition] }

// setEpochs makes rows durable and then true. In the partitions of away, the drive did not take part in the epoch
// before: what it holds undecided there becomes void in the same batch. The caller holds a.fence for writing.
func (a *Acceptor) setEpochs(b *Batch, rows map[uint32]epochRow, away map[uint32]bool) error {
	for p, r := range rows {
		r.put(b, p)
	}
	done := func() {}
	if len(away) > 0 && !a.mut.noVoid {
		var err error
		if done, err = a.voidRows(b, away); err != nil {
			return err
		}
	}
	err := a.kv.Apply(b, true)
	done() // before the epochs, and with them these rows, are served
	if err != nil {
		return err
	}
	all := maps.Clone(*a.epochs.Load())
	maps.Copy(all, rows)
	a.storeEpochs(all)
	return nil
}

// asVoid returns the ballot of a row that lost its rank: below all that are proposed, and in the order in
// which they were.
func (b Ballot) asVoid() Ballot { return Ballot{0, b.Counter} }

// void reports whether a row lost its rank.
func (b Ballot) void() bool { return b.Counter == 0 }

// voidRows takes the rank from the undecided rows of partitions, in b. They go on naming their data, so that
// nothing of it is deleted. done must be called when b was applied, or failed. The caller holds a.fence for
// writing, so that nobody else writes rows, or marks of undecided ones.
func (a *Acceptor) voidRows(b *Batch, partitions map[uint32]bool) (done func(), err error) {
	const op = "metadata.voidRows"
	var list []Address
	err = a.each([]byte{nsUnsettled}, func(key, value []byte) error {
		var mark unsettledMark
		if err := mark.unmarshal(value); err != nil {
			return err
		}
		if !partitions[mark.partition] {
			return nil
		}
		addr, rest, err := cutAddress(bytes.Clone(key[1:]))
		if err != nil || len(rest) > 0 {
			return errs.E(op, errs.Corrupt, "malformed key in the record store")
		}
		list = append(list, addr)
		return nil
	})
	if err != nil {
		return nil, err
	}
	locked := map[*stripe]bool{}
	done = func() {
		for st := range locked {
			st.forget()
			st.mu.Unlock()
		}
	}
	slices.SortFunc(list, func(x, y Address) int { return cmp.Compare(a.stripeNum(&x), a.stripeNum(&y)) }) // in one order with other batches
	for i := range list {
		head := headKey(&list[i])
		row, err := a.row(head)
		if err != nil {
			done()
			return nil, err
		}
		if row == nil || row.Decided || row.Ballot.void() {
			continue
		}
		if st := a.stripeOf(&list[i]); !locked[st] {
			st.mu.Lock()
			locked[st] = true
		}
		row.Ballot = row.Ballot.asVoid()
		b.Set(head, encodeRow(head, row))
	}
	return done, nil
}

// Wedge ends epochs on this drive. The batch with all of them is the commit point.
func (a *Acceptor) Wedge(_ context.Context, m *WedgeRequest) (*WedgeReply, error) {
	const op = "metadata.Wedge"
	if len(m.Partitions) != len(m.Epochs) || len(m.Partitions) > MaxBatch || m.Floor.Counter > MaxCounter {
		return nil, errs.E(op, errs.Invalid, "malformed wedge")
	}
	if m.Floor.IsZero() {
		a.fence.RLock()
		defer a.fence.RUnlock()
	} else {
		a.fence.Lock() // waits for what is being applied, and nothing is promised meanwhile
		defer a.fence.Unlock()
	}
	reply := &WedgeReply{Floors: make([]Ballot, len(m.Partitions)), Installed: make([]uint64, len(m.Partitions))}
	for bucket, epoch := range a.fences {
		reply.Fences = append(reply.Fences, Fence{bucket, epoch})
	}
	slices.SortFunc(reply.Fences, func(a, b Fence) int { return cmp.Compare(a.Bucket, b.Bucket) })
	for i := range a.keys {
		st := &a.keys[i]
		st.mu.RLock()
		reply.Hint = maxBallot(reply.Hint, st.high)
		st.mu.RUnlock()
	}
	rows, away := map[uint32]epochRow{}, map[uint32]bool{}
	for i, p := range m.Partitions {
		r := a.epochRow(p)
		if m.Transition != 0 && r.wedged == m.Epochs[i] && r.transition == m.Transition {
			reply.Begun = append(reply.Begun, p)
		}
		reply.Floors[i], reply.Installed[i] = a.floor(p), r.installed
		reply.Hint = maxBallot(reply.Hint, reply.Floors[i])
		next, ok := judgeWedge(r, m.Epochs[i], m.Transition, m.Term, m.Floor)
		published, member := a.epoch(p)
		if !ok || published > m.Epochs[i] {
			reply.Refused = append(reply.Refused, p)
			continue
		}
		rows[p] = next
		if member && m.Epochs[i] > 1 && next.installed != m.Epochs[i] {
			away[p] = true
		}
	}
	if !reply.Hint.Less(m.Floor) {
		return reply, nil
	}
	if len(rows) > 0 {
		if err := a.setEpochs(new(Batch), rows, away); err != nil {
			return nil, errs.Wrap(op, err)
		}
	}
	reply.Done = true
	return reply, nil
}

// Transfer writes rows of the image that the next epoch begins with.
func (a *Acceptor) Transfer(ctx context.Context, m *TransferRequest) (*TransferReply, error) {
	const op = "metadata.Transfer"
	if m.Transition == 0 {
		return a.remove(ctx, m)
	}
	if len(m.Rows) > MaxRows || m.Floor.IsZero() || m.Floor.Counter > MaxCounter {
		return nil, errs.E(op, errs.Invalid, "malformed transfer")
	}
	for i := range m.Rows {
		r := &m.Rows[i]
		if err := r.Address.Check(); err != nil {
			return nil, err
		}
		if r.State.ID.IsZero() || m.Floor.Less(r.State.ID) {
			return nil, errs.E(op, errs.Invalid, "ballot out of range")
		}
	}
	a.fence.RLock() // no other mover comes between
	defer a.fence.RUnlock()
	reply := new(TransferReply)
	wrote := false
	for i := range m.Rows {
		if err := ctx.Err(); err != nil {
			return nil, errs.Wrap(op, err)
		}
		t := &m.Rows[i]
		if r := a.epochRow(t.Partition); !r.ended() || r.transition != m.Transition || r.term != m.Term || r.floor != m.Floor {
			return nil, errs.E(op, errs.Stale, "the partition is not wedged by this mover")
		}
		w, behind, err := a.transfer(m.Floor, t)
		if err != nil {
			return nil, errs.Wrap(op, err)
		}
		if behind {
			reply.Behind = append(reply.Behind, uint32(i))
		}
		wrote = wrote || w
	}
	if wrote {
		// One sync for all: nobody but movers reads a partition that is wedged.
		var b Batch
		r := a.epochRow(m.Rows[0].Partition)
		r.put(&b, m.Rows[0].Partition)
		if err := a.kv.Apply(&b, true); err != nil {
			return nil, errs.Wrap(op, err)
		}
	}
	return reply, nil
}

// transfer writes one row, without a sync.
func (a *Acceptor) transfer(floor Ballot, t *TransferRow) (wrote, behind bool, err error) {
	head := headKey(&t.Address)
	st := a.stripeOf(&t.Address)
	st.mu.Lock()
	defer st.mu.Unlock()
	row, err := a.rowOf(st, head)
	if err != nil || row != nil && !row.Ballot.Less(floor) {
		return false, false, err
	}
	h := judgeState(row, &t.State, t.Whole)
	if h == howBehind {
		return false, true, nil
	}
	ballot := floor
	if a.mut.noReballot && !t.Decided {
		if ballot = t.State.ID; row != nil {
			ballot = maxBallot(ballot, row.Ballot)
		}
	}
	var b Batch
	next, err := a.replace(&b, &t.Address, row, ballot, &t.State, h, t.Full)
	if err != nil {
		return false, false, err
	}
	if t.Decided {
		a.decided(&b, &t.Address, t.Partition, next)
	}
	b.Set(head, encodeRow(head, next))
	if !next.Decided {
		mark := unsettledMark{ballot: ballot, partition: t.Partition, since: a.now().UnixNano()}
		if mark.inherited, err = a.inherit(&t.Address); err != nil {
			return false, false, err
		}
		mark.put(&b, &t.Address)
	}
	err = a.write(st, &t.Address, head, row, next, &b, false)
	st.high = maxBallot(st.high, ballot)
	return err == nil, false, err
}

// InstallEpoch makes this drive a member in new epochs. The batch with all of them, their floors and the
// fences, and what becomes void, is the commit point.
func (a *Acceptor) InstallEpoch(_ context.Context, m *InstallEpochRequest) error {
	const op = "metadata.InstallEpoch"
	if len(m.Partitions) != len(m.Epochs) || len(m.Partitions) != len(m.Floors) || len(m.Partitions) > MaxBatch {
		return errs.E(op, errs.Invalid, "malformed installation")
	}
	a.fence.Lock()
	defer a.fence.Unlock()
	rows, away := map[uint32]epochRow{}, map[uint32]bool{}
	for i, p := range m.Partitions {
		epoch, member := a.epoch(p)
		next, ok := judgeInstallEpoch(a.epochRow(p), m.Epochs[i], m.Transition, m.Term, m.Floors[i], member && epoch == m.Epochs[i])
		if !ok || m.Epochs[i] < 2 || m.Floors[i].Counter > MaxCounter {
			return errs.E(op, errs.Stale, "another mover, or a newer epoch, is here")
		}
		if a.mut.noFloorTravels {
			next.floor = Ballot{}
		}
		if next != a.epochRow(p) {
			rows[p] = next
			if m.Transition == 0 {
				away[p] = true
			}
		}
	}
	var b Batch
	fences := map[uint64]uint64{}
	for _, f := range m.Fences {
		if f.Epoch > max(a.fences[f.Bucket], fences[f.Bucket]) {
			fences[f.Bucket] = f.Epoch
		}
	}
	for bucket, epoch := range fences {
		putFence(&b, bucket, epoch)
	}
	if len(rows) == 0 && len(fences) == 0 {
		return nil
	}
	if err := a.setEpochs(&b, rows, away); err != nil {
		return errs.Wrap(op, err)
	}
	maps.Copy(a.fences, fences)
	return nil
}

// Installed returns the epochs in which this drive was made a member of partitions.
func (a *Acceptor) Installed(_ context.Context, partitions []uint32) ([]uint64, error) {
	list := make([]uint64, len(partitions))
	for i, p := range partitions {
		list[i] = a.epochRow(p).installed
	}
	return list, nil
}

// moving reports whether a partition of the drive is between two epochs. One that it has left, as the layout
// tells, is not.
func (a *Acceptor) moving() bool {
	for p, r := range *a.epochs.Load() {
		if epoch, member := a.epoch(p); r.ended() && (member || epoch <= r.wedged) {
			return true
		}
	}
	return false
}
