package metadata

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

const (
	stripes        = 2048
	maxPage        = 10000   // entries of one scan or versions page
	maxPageBytes   = 4 << 20 // of stored rows behind one page
	maxLost        = 1024    // let-go data remembered in one undo record
	decideTogether = 64      // decisions applied in one batch
)

// Acceptor is one drive's side of the registers, and the only writer of its rows. It implements Replica and Dropper for a drive
// whose records lie in a KV, and it is safe for concurrent use. What it promised survives a
// restart because everything up to the ceiling counts as promised then.
type Acceptor struct {
	kv     KV
	shards Shards
	epoch  func(uint32) (uint64, bool)
	now    func() time.Time
	ahead  uint64 // microseconds
	mut    mutations

	ceiling atomic.Uint64 // the durable promise ceiling
	raising sync.Mutex    // held while the ceiling is raised

	// fence is held for reading by whatever a fence or a wedge may refuse, until it is applied. It is
	// taken before the lock of a stripe.
	fence  sync.RWMutex
	fences map[uint64]uint64                   // bucket → epoch
	epochs atomic.Pointer[map[uint32]epochRow] // by partition; replaced as a whole, under fence
	over   atomic.Pointer[[]EndedEpoch]        // what follows from epochs for ScanReply; replaced with it

	floorMu sync.RWMutex
	floors  map[uint32]Ballot // of dropped tombstones, by partition; guarded by floorMu

	keys []stripe
	pins []stripe

	digests []sliceDigest // by slice; each is guarded by the lock of its stripe
}

// stripe serializes the registers (or the pins) that hash to it. Its lock is held over the synced
// batch of an Accept, so that no reader sees what is not durable.
type stripe struct {
	mu       sync.RWMutex
	promises promises // guarded by mu
	high     Ballot   // the highest promised or accepted, as far as is remembered; guarded by mu
	removed  uint64   // deletions of shards so far, guarded by mu

	// The row last seen under a write lock, guarded by mu: Prepare, Accept and Decide of one write
	// follow each other. Rows are never changed once they are here. nil with known: absent.
	known bool
	head  string
	row   *Row
	plain bool // its mark, as far as it has one, inherits nothing; guarded by mu
}

// keep remembers the row of head; forget, that the store may have another.
func (st *stripe) keep(head []byte, row *Row) {
	if !st.known || st.head != string(head) {
		st.known, st.head, st.plain = true, string(head), false
	}
	st.row = row
}
func (st *stripe) forget() { st.known, st.row, st.plain = false, nil, false }

// isPlain reports whether the mark of head is known to inherit nothing.
func (st *stripe) isPlain(head []byte) bool { return st.known && st.plain && st.head == string(head) }

// mutations break the protocol on purpose, for the tests that prove the checker. All are off.
type mutations struct {
	forgetPromises bool // a restart forgets the promises
	noGuard        bool // shards are deleted in spite of a promise
	keepFloor      bool // a tombstone is dropped without raising the floor
	noFenceAccept  bool // the fence of a bucket refuses Prepares only
	hastyRefusal   bool // an Accept that comes too late counts as never taken
	noFencedScan   bool // a listing under the fence also hears drives without it
	noHave         bool // the proposer does not look whether the shards are there
	noRing         bool // a preempted operation proposes again blindly
	noResolve      bool // a read answers with an unchosen row
	noFinish       bool // a precondition fails on an unchosen row
	dropAtW        bool // a tombstone is dropped when W drives hold it
	orphanNoRound  bool // orphans are deleted without a register round
	noFloorLow     bool // a state over an absent row does not inherit the floor
	lastWriteWins  bool // an accept overwrites whatever is older, and promises are ignored
	blindDelta     bool // a delta is applied to whatever is there
	wedgeTooFew    bool // a change of membership wedges n−W+1 members, where reads need more
	noAborting     bool // an abort calls a completion off before the upload says so
	noFloorTravels bool // a new epoch begins without a floor
	noReballot     bool // what is undecided keeps its ballot in a new epoch
	noLevel        bool // a member of the image may hold what is decided under a lower ballot than the image
	keepNamed      bool // what was let go of is garbage though its writer proposed it again
	staleList      bool // a listing hears drives on which the epochs of its layout are over
	staleMover     bool // a mover does not know what was published before its term
	pastEnd        bool // a listing goes on behind where a drive ended that has more
	noVoid         bool // what a member that was away holds undecided keeps its ballot
	oldQuorum      bool // the image of a partition that becomes wider is on as many as its old quorum asks for
	newZ           bool // a partition becomes wider once as many are wedged as its new quorum asks for, newcomers too
	bareJoin       bool // who joins a partition that becomes wider counts without the rows
	newPlaces      bool // where a body lies follows from how wide its partition is now
	awayGone       bool // a member that is only away counts as one that never returns, once a change of membership has begun
}

// NewAcceptor reads ceiling, floors and fences. Errors are those of the KV, Corrupt, Unsupported.
func NewAcceptor(c AcceptorConfig) (*Acceptor, error) { return newAcceptor(c, mutations{}) }

func newAcceptor(c AcceptorConfig, mut mutations) (*Acceptor, error) {
	const op = "metadata.NewAcceptor"
	a := &Acceptor{kv: c.KV, shards: c.Shards, epoch: c.Epoch, now: c.Now, mut: mut,
		ahead: uint64(c.Ahead.Microseconds()), fences: map[uint64]uint64{}, floors: map[uint32]Ballot{}}
	if a.ahead == 0 {
		a.ahead = 10e6
	}
	limit := c.Promises
	if limit == 0 {
		limit = 131072
	}
	key := ceilingKey()
	value, err := a.kv.Get(key)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	var mark Ballot
	if value != nil {
		b, err := openValue(key, value)
		if err != nil {
			return nil, errs.Wrap(op, err)
		}
		h, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errs.E(op, errs.Corrupt, "malformed promise ceiling")
		}
		a.ceiling.Store(h)
		mark = Ballot{h, ^uint64(0)}
	}
	if mut.forgetPromises {
		mark = Ballot{}
	}
	n := c.stripes
	if n == 0 {
		n = stripes
	}
	a.keys, a.pins = make([]stripe, n), make([]stripe, n)
	a.digests = make([]sliceDigest, placement.Slices)
	for i := range n {
		a.keys[i].promises, a.keys[i].high = newPromises(limit/n, mark), mark
		a.pins[i].promises = newPromises(limit/n, mark)
	}
	err = a.each([]byte{nsFence}, func(key, b []byte) error {
		epoch, n := binary.Uvarint(b)
		if len(key) != 9 || n <= 0 {
			return errs.E(op, errs.Corrupt, "malformed fence")
		}
		a.fences[binary.BigEndian.Uint64(key[1:])] = epoch
		return nil
	})
	if err == nil {
		err = a.each([]byte{nsFloor}, func(key, b []byte) error {
			f := field{typ: bytesType, b: b}
			v := f.ballot()
			if len(key) != 5 || f.err != nil {
				return errs.E(op, errs.Corrupt, "malformed floor")
			}
			a.floors[binary.BigEndian.Uint32(key[1:])] = v
			return nil
		})
	}
	if err == nil {
		err = a.loadEpochs()
	}
	if err == nil {
		err = a.loadDigests()
	}
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	return a, nil
}

// each calls f with every key that begins with prefix and its payload, valid during the call.
func (a *Acceptor) each(prefix []byte, f func(key, payload []byte) error) (err error) {
	it, err := a.kv.NewIter(prefix, successor(prefix))
	if err != nil {
		return err
	}
	defer func() {
		if e := it.Close(); err == nil {
			err = e
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		b, err := openValue(it.Key(), it.Value())
		if err == nil {
			err = f(it.Key(), b)
		}
		if err != nil {
			return err
		}
	}
	return it.Err()
}

func (a *Acceptor) stripeOf(addr *Address) *stripe { return &a.keys[a.stripeNum(addr)] }

func (a *Acceptor) stripeNum(addr *Address) int {
	return a.sliceStripe(placement.Slice(addr.Bucket, addr.Key))
}

// sliceStripe spreads the slices of few partitions over all stripes, as slices of one follow each other.
func (a *Acceptor) sliceStripe(slice uint16) int { return int(slice) % len(a.keys) }

func (a *Acceptor) pinStripe(name string) *stripe {
	return &a.pins[crc32.Checksum([]byte(name), castagnoli)%uint32(len(a.pins))]
}

func pinName(id erasure.DataID, chunk uint32) string {
	return string(binary.BigEndian.AppendUint32(id[:], chunk))
}

// member refuses messages for another epoch of the partition than the one that this drive serves: that of
// the layout, if it was made a member of that one, and it is not wedged.
func (a *Acceptor) member(op string, h *Header) error {
	if epoch, ok := a.epoch(h.Partition); !ok || epoch != h.Epoch || !a.epochRow(h.Partition).serves(epoch) {
		return errs.E(op, errs.Stale, "this drive serves another epoch of the partition")
	}
	return nil
}

// fenced refuses messages from before a bucket's deletion began. The caller holds a.fence.
func (a *Acceptor) fenced(op string, h *Header, bucket uint64) error {
	if h.BucketEpoch < a.fences[bucket] {
		return errs.E(op, errs.Stale, "the bucket is being deleted, or was reopened since")
	}
	return nil
}

// dropped returns the highest tombstone of a partition that was dropped here.
func (a *Acceptor) dropped(partition uint32) Ballot {
	a.floorMu.RLock()
	defer a.floorMu.RUnlock()
	return a.floors[partition]
}

// floor returns the ballot that everything new in a partition must exceed.
func (a *Acceptor) floor(partition uint32) Ballot {
	return maxBallot(a.dropped(partition), a.epochRow(partition).floor)
}

// ensureCeiling makes sure that a promise of counter c survives a restart.
func (a *Acceptor) ensureCeiling(c uint64) error {
	if c <= a.ceiling.Load() {
		return nil
	}
	a.raising.Lock()
	defer a.raising.Unlock()
	if c <= a.ceiling.Load() {
		return nil
	}
	h := c + a.ahead
	key := ceilingKey()
	var b Batch
	b.Set(key, sealValue(key, binary.AppendUvarint([]byte{rowFormat}, h)))
	if err := a.kv.Apply(&b, true); err != nil {
		return err
	}
	a.ceiling.Store(h)
	return nil
}

// rowOf returns the row of head without looking into the store if it was seen last.
func (a *Acceptor) rowOf(st *stripe, head []byte) (*Row, error) {
	if st.known && st.head == string(head) {
		return st.row, nil
	}
	return a.row(head)
}

// write applies a batch that makes next the row of addr in the place of row, with the digest that
// follows. The caller holds st's lock.
func (a *Acceptor) write(st *stripe, addr *Address, head []byte, row, next *Row, b *Batch, sync bool) error {
	done, err := a.digest(b, addr, head, row, next)
	if err != nil {
		return err
	}
	err = a.kv.Apply(b, sync)
	done(err)
	if err != nil {
		st.forget()
		return err
	}
	st.keep(head, next)
	return nil
}

func (a *Acceptor) row(head []byte) (*Row, error) {
	value, err := a.kv.Get(head)
	if err != nil || value == nil {
		return nil, err
	}
	return decodeRow(head, value)
}

// bare returns row as it is sent: without undo.
func bare(row *Row) *Row {
	if row == nil || row.Undo == nil {
		return row
	}
	r := *row
	r.Undo = nil
	return &r
}

// Prepare seals the data that comes with m, then promises.
func (a *Acceptor) Prepare(ctx context.Context, m *PrepareRequest) (*PrepareReply, error) {
	const op = "metadata.Prepare"
	if err := m.Address.Check(); err != nil {
		return nil, err
	}
	if m.Ballot.Counter == 0 || m.Ballot.Counter > MaxCounter {
		return nil, errs.E(op, errs.Invalid, "ballot out of range")
	}
	head := headKey(&m.Address)
	st := a.stripeOf(&m.Address)
	reply := new(PrepareReply)
	// Sealing can take long, and is done outside the locks. A deletion between it and the promise
	// is noticed by the stripe's count.
	var removed uint64
	if m.Seal != nil {
		if err := a.admit(op, &m.Header, m.Address.Bucket); err != nil {
			return nil, err
		}
		st.mu.RLock()
		removed = st.removed
		st.mu.RUnlock()
		if err := a.shards.Seal(ctx, m.Address, m.Seal); err != nil {
			reply.SealKind = uint8(errs.KindOf(err))
			if reply.SealKind == 0 {
				reply.SealKind = uint8(errs.Drive)
			}
		} else {
			reply.Have = true
		}
	}
	if err := a.ensureCeiling(m.Ballot.Counter); err != nil {
		return nil, errs.Wrap(op, err)
	}
	a.fence.RLock()
	defer a.fence.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := a.member(op, &m.Header); err != nil {
		return nil, err
	}
	if err := a.fenced(op, &m.Header, m.Address.Bucket); err != nil {
		return nil, err
	}
	row, err := a.rowOf(st, head)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	st.keep(head, row)
	l := local{row: row, promise: st.promises.of(string(head)), floor: a.dropped(m.Partition), begun: a.epochRow(m.Partition).floor}
	if bar := l.bar(); !bar.Less(m.Ballot) {
		reply.Hint = bar
		return reply, nil
	}
	if reply.Have && st.removed != removed {
		if reply.Have, err = a.shards.Have(ctx, m.Seal.Data.ID, 0); err != nil {
			return nil, errs.Wrap(op, err)
		}
		if !reply.Have {
			reply.SealKind = uint8(errs.NotFound)
		}
	}
	if reply.Versions, err = a.query(&m.Address, row, &m.Query); err != nil {
		return nil, errs.Wrap(op, err)
	}
	if m.Orphan != (erasure.DataID{}) {
		if reply.Names, err = a.names(&m.Address, row, m.Orphan); err != nil {
			return nil, errs.Wrap(op, err)
		}
	}
	st.promises.raise(string(head), m.Ballot)
	st.high = maxBallot(st.high, m.Ballot)
	reply.Promised, reply.Row, reply.Floor = true, bare(row), maxBallot(l.floor, l.begun)
	return reply, nil
}

// admit refuses early what Prepare would refuse later.
func (a *Acceptor) admit(op string, h *Header, bucket uint64) error {
	if err := a.member(op, h); err != nil {
		return err
	}
	a.fence.RLock()
	defer a.fence.RUnlock()
	return a.fenced(op, h, bucket)
}

// Accept writes row, version rows, and the mark of what is not settled in one synced batch.
func (a *Acceptor) Accept(_ context.Context, m *AcceptRequest) (*AcceptReply, error) {
	const op = "metadata.Accept"
	if err := m.Address.Check(); err != nil {
		return nil, err
	}
	if m.Ballot.Counter == 0 || m.Ballot.Counter > MaxCounter || m.State.ID.IsZero() || m.Ballot.Less(m.State.ID) {
		return nil, errs.E(op, errs.Invalid, "ballot out of range")
	}
	head := headKey(&m.Address)
	st := a.stripeOf(&m.Address)
	a.fence.RLock()
	defer a.fence.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	row, err := a.rowOf(st, head)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	if err := a.member(op, &m.Header); err != nil {
		published, _ := a.epoch(m.Partition)
		return nil, a.refusal(op, m, row, a.epochRow(m.Partition).wedged >= m.Epoch || published > m.Epoch, err)
	}
	if !a.mut.noFenceAccept {
		if err := a.fenced(op, &m.Header, m.Address.Bucket); err != nil {
			return nil, a.refusal(op, m, row, true, err)
		}
	}
	l := local{row: row, promise: st.promises.of(string(head)), floor: a.dropped(m.Partition), begun: a.epochRow(m.Partition).floor}
	if a.mut.lastWriteWins {
		l.promise = Ballot{}
	}
	v, h := judgeAccept(&l, m.Ballot, &m.State, m.Whole)
	if a.mut.blindDelta && v == verdictBehind {
		v, h = verdictApply, howDelta
	}
	switch v {
	case verdictRefuse:
		return &AcceptReply{Hint: l.bar()}, nil
	case verdictAgain:
		return &AcceptReply{Accepted: true}, nil
	case verdictBehind:
		return &AcceptReply{Behind: true}, nil
	}
	var b Batch
	next, err := a.replace(&b, &m.Address, row, m.Ballot, &m.State, h, m.Full)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	b.Set(head, encodeRow(head, next))
	mark := unsettledMark{ballot: m.Ballot, partition: m.Partition, since: a.now().UnixNano()}
	if keepsData(m.Address.Kind, row, &next.State) {
		// Nobody may know yet which shards of what stays named are missing.
		if mark.inherited, err = a.inherit(&m.Address); err != nil {
			return nil, errs.Wrap(op, err)
		}
	}
	mark.put(&b, &m.Address)
	if err := a.write(st, &m.Address, head, row, next, &b, true); err != nil {
		return nil, errs.Wrap(op, err)
	}
	st.plain = len(mark.inherited) == 0
	st.high = maxBallot(st.high, m.Ballot)
	st.promises.forget(string(head), m.Ballot)
	return &AcceptReply{Accepted: true}, nil
}

// refusal is the answer to an Accept that comes too late: Stale promises that the drive has not taken it
// and never will, so that a writer that hears it from all members may say that nothing happened. A copy of
// the message may have been taken before, or still come: without lasting it is refused for now only.
func (a *Acceptor) refusal(op string, m *AcceptRequest, row *Row, lasting bool, stale error) error {
	never := lasting && a.dropped(m.Partition).Less(m.Ballot) && (row == nil || !row.Ballot.void() && row.Ballot.Less(m.Ballot))
	if never || a.mut.hastyRefusal {
		return stale
	}
	return errs.As(op, errs.Unknown, stale)
}

// replace writes the version rows that make s the state under b, and returns the row.
func (a *Acceptor) replace(b *Batch, addr *Address, row *Row, ballot Ballot, s *State, h how, full []Version) (*Row, error) {
	next := &Row{Ballot: ballot, State: *s}
	v := versionEdit{a: a, addr: addr, b: b}
	switch h {
	case howBallot:
		next.Decided, next.State, next.Undo = row.Decided, row.State, row.Undo
	case howDelta:
		u := &Undo{}
		if row != nil {
			u.Row = bare(row)
			if !row.Decided {
				// Its own decision comes too late now; what it let go of is remembered here.
				u.Lost, _ = garbageOf(addr.Kind, row)
				u.Guarded = row.Undo == nil || row.Undo.Lossy || row.Undo.Guarded
			}
		}
		next.Undo = u
		if err := v.apply(&s.Delta, u); err != nil {
			return nil, err
		}
	case howRedo:
		v.revert(row.Undo)
		next.Undo = &Undo{Row: row.Undo.Row, Lost: row.Undo.Lost, Guarded: row.Undo.Guarded}
		if err := v.apply(&s.Delta, next.Undo); err != nil {
			return nil, err
		}
	case howRevert:
		v.revert(row.Undo)
		next.State, next.Decided = row.Undo.Row.State, row.Undo.Row.Decided
		if !next.Decided {
			next.Undo = &Undo{Lossy: true, Lost: row.Undo.Lost}
		}
	case howReplace, howWhole:
		u := &Undo{Lossy: true}
		next.Undo = u
		if row == nil {
			break
		}
		var was []Version
		if row.State.Older > 0 {
			var err error
			if was, _, err = a.versions(addr, ^uint64(0), maxLost); err != nil {
				return nil, err
			}
			lower, upper := versionSpan(addr, ^uint64(0))
			b.DeleteRange(lower, upper)
		}
		if row.Undo != nil {
			u.Lost = append(u.Lost, row.Undo.Lost...)
			if row.Undo.Row != nil {
				u.Lost = append(u.Lost, letGo(addr.Kind, &row.Undo.Row.State, s, row.Undo.Put, full)...)
			}
		}
		u.Lost = append(u.Lost, letGo(addr.Kind, &row.State, s, was, full)...)
	}
	if h == howWhole {
		for i := range full {
			v.set(&full[i])
		}
	}
	if next.Undo != nil && len(next.Undo.Lost) > 0 && h != howBallot {
		u := *next.Undo
		if !a.mut.keepNamed {
			u.Lost = unnamed(addr.Kind, u.Lost, &next.State, full)
		}
		u.Lost = u.Lost[:min(len(u.Lost), maxLost)]
		next.Undo = &u
	}
	return next, nil
}

// versionEdit changes the version rows of one register within a batch.
type versionEdit struct {
	a    *Acceptor
	addr *Address
	b    *Batch
	over map[uint64]*Version // what revert changed: nil is removed
}

func (v *versionEdit) set(row *Version) {
	key := versionKey(v.addr, row.Seq)
	v.b.Set(key, encodeVersion(key, row))
}

// get returns a row as it is before the delta.
func (v *versionEdit) get(seq uint64) (*Version, error) {
	if row, ok := v.over[seq]; ok {
		return row, nil
	}
	key := versionKey(v.addr, seq)
	value, err := v.a.kv.Get(key)
	if err != nil || value == nil {
		return nil, err
	}
	row, err := decodeVersion(key, value)
	return &row, err
}

// revert puts back what u remembers.
func (v *versionEdit) revert(u *Undo) {
	v.over = map[uint64]*Version{}
	for _, seq := range u.Added {
		v.over[seq] = nil
		v.b.Delete(versionKey(v.addr, seq))
	}
	for i := range u.Put {
		v.over[u.Put[i].Seq] = &u.Put[i]
		v.set(&u.Put[i])
	}
}

// apply writes d, and notes in u how to return.
func (v *versionEdit) apply(d *Delta, u *Undo) error {
	for i := range d.Put {
		old, err := v.get(d.Put[i].Seq)
		if err != nil {
			return err
		}
		if old != nil {
			u.Put = append(u.Put, *old)
		} else {
			u.Added = append(u.Added, d.Put[i].Seq)
		}
		v.set(&d.Put[i])
	}
	for _, seq := range d.Drop {
		old, err := v.get(seq)
		if err != nil {
			return err
		}
		if old != nil {
			u.Put = append(u.Put, *old)
			v.b.Delete(versionKey(v.addr, seq))
		}
	}
	return nil
}

// decided marks row as chosen and writes the garbage that follows from it.
func (a *Acceptor) decided(b *Batch, addr *Address, partition uint32, row *Row) {
	if row.Decided {
		return
	}
	list, guard := garbageOf(addr.Kind, row)
	at := a.now().UnixNano()
	for i := range list {
		g := GarbageRow{At: at, Address: *addr, Partition: partition, Dead: list[i], Guard: guard}
		key := garbageKey(at, list[i].Data.ID)
		b.Set(key, sealValue(key, g.appendTo([]byte{rowFormat})))
	}
	row.Decided, row.Undo = true, nil
}

// Decide marks rows as chosen. That need not be durable, as it can be found out again; the repair
// rows for what is missing are.
func (a *Acceptor) Decide(_ context.Context, list []Decision) error {
	const op = "metadata.Decide"
	for len(list) > 0 {
		n := min(len(list), decideTogether)
		if err := a.decideSome(list[:n]); err != nil {
			return errs.Wrap(op, err)
		}
		list = list[n:]
	}
	return nil
}

func (a *Acceptor) decideSome(list []Decision) error {
	heads := make([][]byte, len(list))
	locks := make([]int, 0, len(list))
	for i := range list {
		if err := list[i].Address.Check(); err != nil {
			return err
		}
		heads[i] = headKey(&list[i].Address)
		locks = append(locks, a.stripeNum(&list[i].Address))
	}
	a.fence.RLock()
	defer a.fence.RUnlock()
	slices.Sort(locks) // in one order, so that two batches cannot wait for each other
	locks = slices.Compact(locks)
	for _, s := range locks {
		a.keys[s].mu.Lock()
	}
	defer func() {
		for _, s := range locks {
			a.keys[s].mu.Unlock()
		}
	}()
	var b Batch
	sync := false
	rows := map[string]*Row{} // as changed by this batch
	repairs := map[string]repairAsk{}
	marks := map[string]*unsettledMark{}
	for i := range list {
		m := &list[i]
		if a.member("metadata.Decide", &m.Header) != nil {
			continue // the partition has moved on; the row with it
		}
		row, ok := rows[string(heads[i])]
		if !ok {
			var err error
			if row, err = a.rowOf(a.stripeOf(&m.Address), heads[i]); err != nil {
				return err
			}
			rows[string(heads[i])] = row
		}
		if row != nil && row.Ballot == m.Ballot {
			if !row.Decided {
				changed := *row
				row = &changed
				rows[string(heads[i])] = row
				a.decided(&b, &m.Address, m.Partition, row)
				b.Set(heads[i], encodeRow(heads[i], row))
			}
			if m.Settled && a.stripeOf(&m.Address).isPlain(heads[i]) {
				b.Delete(addressKey(nsUnsettled, &m.Address))
			} else if m.Settled {
				if err := a.settle(&b, marks, m, true); err != nil {
					return err
				}
			}
		} else if row != nil && m.Settled && keepsMore(m.Address.Kind, &row.State) && !a.stripeOf(&m.Address).isPlain(heads[i]) {
			if err := a.settle(&b, marks, m, false); err != nil { // too late for the row, not for what it inherits
				return err
			}
		}
		if len(m.Missing) > 0 {
			key := addressKey(nsRepair, &m.Address)
			have, ok := repairs[string(key)]
			if !ok {
				var err error
				if have, err = a.repairOf(key); err != nil {
					return err
				}
			}
			have = repairAsk{union(have.positions, m.Missing), askedBy(m.Ballot, have.asked)}
			repairs[string(key)] = have
			b.Set(key, sealValue(key, appendRepair(m.Partition, have)))
			sync = true
		}
	}
	if len(b.Ops) == 0 {
		return nil
	}
	if err := a.kv.Apply(&b, sync); err != nil {
		for _, s := range locks {
			a.keys[s].forget()
		}
		return err
	}
	for i := range list {
		if row, ok := rows[string(heads[i])]; ok {
			a.stripeOf(&list[i].Address).keep(heads[i], row)
		}
	}
	return nil
}

func union(a, b []uint8) []uint8 {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// Read returns the row, the version rows asked for, and an inline shard.
func (a *Acceptor) Read(ctx context.Context, m *ReadRequest) (*ReadReply, error) {
	const op = "metadata.Read"
	if err := m.Address.Check(); err != nil {
		return nil, err
	}
	reply, err := a.read(op, m)
	if err != nil {
		return nil, err
	}
	id := m.InlineID
	if id == (erasure.DataID{}) && m.Inline {
		id = inlineData(reply, &m.Query)
	}
	if id != (erasure.DataID{}) {
		if reply.Inline, err = a.shards.Inline(ctx, id); err != nil {
			// The row is worth having without it.
			reply.Inline = nil
		}
		reply.InlineID = id
	}
	return reply, nil
}

func (a *Acceptor) read(op string, m *ReadRequest) (*ReadReply, error) {
	head := headKey(&m.Address)
	st := a.stripeOf(&m.Address)
	st.mu.RLock()
	defer st.mu.RUnlock()
	if err := a.member(op, &m.Header); err != nil {
		return nil, err
	}
	row, err := a.rowOf(st, head)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	reply := &ReadReply{Row: bare(row), Floor: a.floor(m.Partition)}
	if reply.Versions, err = a.query(&m.Address, row, &m.Query); err != nil {
		return nil, errs.Wrap(op, err)
	}
	// No wedge waits for readers: the epoch may have ended since.
	return reply, a.member(op, &m.Header)
}

// inlineData returns the id of the inline body that a read is about: of the version queried first,
// else of the current one.
func inlineData(reply *ReadReply, q *Query) (id erasure.DataID) {
	v := subject(reply.Row, reply.Versions, q)
	if v != nil && v.Data != nil && v.Data.Inline() {
		id = v.Data.ID
	}
	if v != nil && v.Manifest != nil && v.Manifest.Inline() {
		id = v.Manifest.ID
	}
	return id
}

// subject returns the version that a read is about.
func subject(row *Row, versions []Version, q *Query) *Version {
	if row == nil {
		return nil
	}
	current := row.State.Current
	if len(q.Seqs) == 0 && q.Below == 0 {
		return current
	}
	if len(q.Seqs) > 0 {
		if current != nil && current.Seq == q.Seqs[0] {
			return current
		}
		for i := range versions {
			if versions[i].Seq == q.Seqs[0] {
				return &versions[i]
			}
		}
		return nil
	}
	for i := range versions {
		if versions[i].Seq < q.Below {
			return &versions[i]
		}
	}
	return nil
}

// query reads the version rows that q names.
func (a *Acceptor) query(addr *Address, row *Row, q *Query) (list []Version, err error) {
	if row == nil || row.State.Older == 0 {
		return nil, nil
	}
	for _, seq := range q.Seqs {
		key := versionKey(addr, seq)
		value, err := a.kv.Get(key)
		if err != nil {
			return nil, err
		}
		if value == nil {
			continue
		}
		v, err := decodeVersion(key, value)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	if q.Below != 0 {
		below, _, err := a.versions(addr, q.Below, 1)
		if err != nil {
			return nil, err
		}
		for _, v := range below {
			if !slices.Contains(q.Seqs, v.Seq) {
				list = append(list, v)
			}
		}
	}
	return list, nil
}

// versions reads up to limit version rows, newest first.
func (a *Acceptor) versions(addr *Address, below uint64, limit int) (list []Version, more bool, err error) {
	lower, upper := versionSpan(addr, below)
	it, err := a.kv.NewIter(lower, upper)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if e := it.Close(); err == nil {
			err = e
		}
	}()
	size := 0
	for ok := it.First(); ok; ok = it.Next() {
		if len(list) >= limit || size > maxPageBytes {
			return list, true, it.Err()
		}
		v, err := decodeVersion(it.Key(), it.Value())
		if err != nil {
			return nil, false, err
		}
		size += len(it.Value())
		list = append(list, v)
	}
	return list, false, it.Err()
}

// Versions pages through the version rows of one register, newest first.
func (a *Acceptor) Versions(_ context.Context, m *VersionsRequest) (*VersionsReply, error) {
	const op = "metadata.Versions"
	if err := m.Address.Check(); err != nil {
		return nil, err
	}
	st := a.stripeOf(&m.Address)
	st.mu.RLock()
	defer st.mu.RUnlock()
	if err := a.member(op, &m.Header); err != nil {
		return nil, err
	}
	reply, err := a.rowAndVersions(st, m)
	if err == nil {
		err = a.member(op, &m.Header)
	}
	return reply, errs.Wrap(op, err)
}

func pageLimit(n int) int {
	if n <= 0 {
		return 1000
	}
	return min(n, maxPage)
}

// Install repairs: it writes a state that is known to be chosen. The error is Behind when the
// version rows are needed, and Conflict when the row may be older than a tombstone dropped here: then
// the state must be accepted again under a new ballot.
func (a *Acceptor) Install(_ context.Context, m *InstallRequest) error {
	const op = "metadata.Install"
	if err := m.Address.Check(); err != nil {
		return err
	}
	if m.Row.Ballot.Counter == 0 || m.Row.Ballot.Counter > MaxCounter || m.Row.State.ID.IsZero() {
		return errs.E(op, errs.Invalid, "ballot out of range")
	}
	head := headKey(&m.Address)
	st := a.stripeOf(&m.Address)
	a.fence.RLock()
	defer a.fence.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := a.member(op, &m.Header); err != nil {
		return err
	}
	row, err := a.rowOf(st, head)
	if err != nil {
		return errs.Wrap(op, err)
	}
	l := local{row: row, floor: a.dropped(m.Partition)}
	h, ok, conflict := judgeInstall(&l, &m.Row, m.Whole)
	switch {
	case conflict:
		return errs.E(op, errs.Conflict, "the row is not above the floor")
	case !ok:
		return nil
	case h == howBehind:
		return errs.E(op, errs.Behind, "the version rows are needed")
	}
	var b Batch
	ballot := m.Row.Ballot
	if row != nil {
		ballot = maxBallot(ballot, row.Ballot)
	}
	next, err := a.replace(&b, &m.Address, row, ballot, &m.Row.State, h, m.Full)
	if err != nil {
		return errs.Wrap(op, err)
	}
	a.decided(&b, &m.Address, m.Partition, next)
	b.Set(head, encodeRow(head, next))
	return errs.Wrap(op, a.write(st, &m.Address, head, row, next, &b, true))
}

// Pin makes the shard of a later chunk durable and protects it as a promise does.
func (a *Acceptor) Pin(ctx context.Context, m *PinRequest) (*PinReply, error) {
	const op = "metadata.Pin"
	if m.Ballot.Counter == 0 || m.Ballot.Counter > MaxCounter {
		return nil, errs.E(op, errs.Invalid, "ballot out of range")
	}
	if err := a.member(op, &m.Header); err != nil {
		return nil, err
	}
	name := pinName(m.Data, m.Chunk)
	st := a.pinStripe(name)
	st.mu.RLock()
	removed := st.removed
	st.mu.RUnlock()
	if err := a.shards.SealChunk(ctx, m.Data, m.Chunk); err != nil {
		if errs.Is(err, errs.NotFound) {
			return &PinReply{}, nil
		}
		return nil, errs.Wrap(op, err)
	}
	if err := a.ensureCeiling(m.Ballot.Counter); err != nil {
		return nil, errs.Wrap(op, err)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.removed != removed {
		have, err := a.shards.Have(ctx, m.Data, m.Chunk)
		if err != nil || !have {
			return &PinReply{}, errs.Wrap(op, err)
		}
	}
	if st.promises.of(name).Less(m.Ballot) {
		st.promises.raise(name, m.Ballot)
	}
	return &PinReply{Have: true}, nil
}

// Fence refuses from now on what comes from an older epoch of the bucket.
func (a *Acceptor) Fence(_ context.Context, m *FenceRequest) error {
	a.fence.Lock() // waits for what is being applied
	defer a.fence.Unlock()
	if a.fences[m.Bucket] >= m.Epoch {
		return nil
	}
	if a.moving() {
		// Its fences were told to the members of the next epoch already.
		return errs.E("metadata.Fence", errs.Stale, "a partition of this drive is between two epochs")
	}
	var b Batch
	putFence(&b, m.Bucket, m.Epoch)
	if err := a.kv.Apply(&b, true); err != nil {
		return errs.Wrap("metadata.Fence", err)
	}
	a.fences[m.Bucket] = m.Epoch
	return nil
}

func putFence(b *Batch, bucket, epoch uint64) {
	key := fenceKey(bucket)
	b.Set(key, sealValue(key, binary.AppendUvarint([]byte{rowFormat}, epoch)))
}

// Drop removes a decided tombstone and raises the floor in the same batch. Only when all n members
// hold the tombstone decided may it be called.
func (a *Acceptor) Drop(_ context.Context, m *DropRequest) error {
	const op = "metadata.Drop"
	if err := m.Address.Check(); err != nil {
		return err
	}
	head := headKey(&m.Address)
	st := a.stripeOf(&m.Address)
	a.fence.RLock()
	defer a.fence.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := a.member(op, &m.Header); err != nil {
		return err
	}
	row, err := a.rowOf(st, head)
	if err != nil {
		return errs.Wrap(op, err)
	}
	if row != nil && !judgeDrop(row, m.Ballot) {
		return nil
	}
	a.floorMu.Lock()
	defer a.floorMu.Unlock()
	raise := a.floors[m.Partition].Less(m.Ballot) && !a.mut.keepFloor
	if row == nil && !raise {
		return nil
	}
	var b Batch
	b.Delete(head)
	b.Delete(addressKey(nsUnsettled, &m.Address))
	if raise {
		key := floorKey(m.Partition)
		b.Set(key, sealValue(key, appendBallot([]byte{rowFormat}, m.Ballot)))
	}
	if err := a.write(st, &m.Address, head, row, nil, &b, true); err != nil {
		return errs.Wrap(op, err)
	}
	if raise {
		a.floors[m.Partition] = m.Ballot
	}
	return nil
}

// MayDelete calls remove, which removes the shard of chunk of id from this drive, if no row here
// names id and no promise or pin above guard may yet come to: true then, with remove's error. The
// register is locked meanwhile. The guard is the ballot of the round that found nobody who refers to
// id, or that of a GarbageRow.
func (a *Acceptor) MayDelete(addr Address, id erasure.DataID, chunk uint32, guard Ballot, remove func() error) (bool, error) {
	const op = "metadata.MayDelete"
	if err := addr.Check(); err != nil {
		return false, err
	}
	head := headKey(&addr)
	st := a.stripeOf(&addr)
	st.mu.Lock()
	defer st.mu.Unlock()
	row, err := a.rowOf(st, head)
	if err != nil {
		return false, errs.Wrap(op, err)
	}
	named, err := a.names(&addr, row, id)
	if err != nil || named {
		return false, errs.Wrap(op, err)
	}
	if !a.mut.noGuard {
		if chunk == 0 && guard.Less(st.promises.of(string(head))) {
			return false, nil
		}
		if chunk == 0 && row != nil && (guard.Less(row.Ballot) || row.Ballot.void()) {
			return false, nil
		}
	}
	if chunk > 0 {
		name := pinName(id, chunk)
		pin := a.pinStripe(name)
		pin.mu.Lock()
		defer pin.mu.Unlock()
		if guard.Less(pin.promises.of(name)) {
			return false, nil
		}
		pin.removed++
	}
	st.removed++
	return true, remove()
}

// Names reports whether a row of the register here names id, decided or not.
func (a *Acceptor) Names(addr Address, id erasure.DataID) (bool, error) {
	if err := addr.Check(); err != nil {
		return false, err
	}
	head := headKey(&addr)
	st := a.stripeOf(&addr)
	st.mu.RLock()
	defer st.mu.RUnlock()
	row, err := a.rowOf(st, head)
	if err != nil {
		return false, err
	}
	return a.names(&addr, row, id)
}

// names reports whether row, what it can return to, or a version row names id.
func (a *Acceptor) names(addr *Address, row *Row, id erasure.DataID) (found bool, err error) {
	if row == nil {
		return false, nil
	}
	look := func(d DeadData) { found = found || d.Data.ID == id }
	found = stateNames(addr.Kind, &row.State, id)
	if u := row.Undo; u != nil {
		if u.Row != nil && stateNames(addr.Kind, &u.Row.State, id) {
			found = true
		}
		for i := range u.Put {
			namedBy(&u.Put[i], look)
		}
	}
	if found || row.State.Older == 0 {
		return found, nil
	}
	lower, upper := versionSpan(addr, ^uint64(0))
	it, err := a.kv.NewIter(lower, upper)
	if err != nil {
		return false, err
	}
	defer func() {
		if e := it.Close(); err == nil {
			err = e
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		// Ids are random: bytes that look like one are one, or keep the shard for nothing.
		if bytes.Contains(it.Value(), id[:]) {
			return true, nil
		}
	}
	return false, it.Err()
}
