package metadata

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

const (
	carryRows   = 256     // registers that are judged together, and rows of one transfer
	carryBytes  = 1 << 20 // of version rows in one transfer, about
	maxWedges   = 8       // times that a floor is raised
	maxRemember = 100_000 // registers that one Swap remembers to have carried
	// How long partitions stand still for a drive that does not answer, once the others have: one that they can do
	// without, and at least any other, of which the next term asks again (Swap.Patience).
	straggle, patience = time.Second, 2 * time.Second
	noDrive            = ^uint16(0) // of a seat that nobody is asked at
)

// Swap puts a drive into the place of another, or makes partitions wider. Groups that have too few drives are left as they are, and
// reported; the error is Unavailable if that is so of all. Any other error leaves some of them wedged, as may
// a process that ends meanwhile: they serve again once another Swap, under a higher term of the same
// transition, has succeeded, and until then their messages are refused as Stale. Nothing is lost in either case.
func (c *Client) Swap(ctx context.Context, sw Swap) (SwapReport, error) {
	const op = "metadata.Swap"
	if err := c.enter(op); err != nil {
		return SwapReport{}, err
	}
	defer c.work.Done()
	s, err := c.newSwapping(&sw, mutations{})
	if err != nil {
		return SwapReport{}, err
	}
	return s.run(ctx)
}

// swapping is one run of Swap.
type swapping struct {
	c       *Client
	sw      *Swap
	parts   []*swapPart
	drives  []*swapDrive
	number  map[uint32]*swapPart // by partition, of those that go on
	floor   Ballot
	fences  map[uint64]uint64
	carried map[string]bool
	report  SwapReport
	wedging bool          // members may be wedged by this term
	stands  atomic.Bool   // partitions stand still
	wedged  bool          // all who will be
	slowest time.Duration // answer so far
}

// swapPart is one partition.
type swapPart struct {
	*swapper
	g     placement.Group
	seats []uint16 // drives by seat
	clean []bool   // by seat: the newcomer was wedged, hence has no rows but those that were carried to it
}

// swapDrive is one drive and where it sits.
type swapDrive struct {
	num   uint16
	m     Membership
	sits  []swapSeat
	slice []Digest
	err   error // of the last step
}

type swapSeat struct {
	p    *swapPart
	seat int
}

func (c *Client) newSwapping(sw *Swap, mut mutations) (*swapping, error) {
	const op = "metadata.Swap"
	if sw.Transition == 0 || sw.Term == 0 || sw.Layout == nil || sw.Publish == nil || len(sw.Groups) > MaxBatch ||
		(sw.Old == sw.New) != (sw.Join != nil) || sw.Next != nil && len(sw.Next) != len(sw.Groups) || sw.Join != nil && len(sw.Join) != len(sw.Next) {
		return nil, errs.E(op, errs.Invalid, "malformed change of membership")
	}
	s := &swapping{c: c, sw: sw, fences: map[uint64]uint64{}, carried: map[string]bool{}}
	for _, f := range sw.Fences {
		s.fences[f.Bucket] = max(s.fences[f.Bucket], f.Epoch)
	}
	at := map[uint16]*swapDrive{}
	for i := range sw.Groups {
		p, err := sw.part(i, mut)
		if err != nil {
			return nil, err
		}
		p.clean = make([]bool, len(p.seats))
		s.parts = append(s.parts, p)
		for seat, num := range p.seats {
			if !p.asks(seat) {
				p.seats[seat] = noDrive
				continue
			}
			d := at[num]
			if d == nil {
				d = &swapDrive{num: num}
				d.m, d.err = c.membership(num)
				at[num] = d
				s.drives = append(s.drives, d)
			}
			d.sits = append(d.sits, swapSeat{p, seat})
		}
	}
	return s, nil
}

// part seats the drives of a group.
func (sw *Swap) part(i int, mut mutations) (*swapPart, error) {
	const op = "metadata.Swap"
	g := sw.Groups[i]
	p := &swapPart{g: g, seats: slices.Clone(g.Drives)}
	if sw.Join != nil {
		p.seats = append(p.seats, sw.Join[i]...)
		if len(g.Drives) != g.Quorum.N || len(sw.Join[i]) == 0 || len(p.seats) != sw.Next[i].N || len(slices.Compact(slices.Sorted(slices.Values(p.seats)))) != len(p.seats) {
			return nil, errs.E(op, errs.Invalid, "drives that join do not make a group as wide as it is to be, or are there already")
		}
		p.swapper = newJoiner(g.Quorum, sw.Next[i], mut)
		return p, nil
	}
	old := g.Position(sw.Old)
	if old < 0 || g.Position(sw.New) >= 0 || len(g.Drives) != g.Quorum.N {
		return nil, errs.E(op, errs.Invalid, "a group has not the drive to be replaced, or has the other already")
	}
	p.seats = append(p.seats, sw.New)
	p.swapper = newSwapper(g.Quorum, old, sw.OldGone, mut)
	if sw.Next != nil {
		p.w = max(p.w, sw.Next[i].W)
	}
	return p, nil
}

// membership finds the Membership of a drive.
func (c *Client) membership(num uint16) (Membership, error) {
	rep, ok := c.Replicas.Replica(num)
	if !ok {
		return nil, errGone
	}
	m, ok := rep.(Membership)
	if !ok {
		return nil, errs.E("metadata.Client", errs.Unsupported, "the drive takes no part in changes of membership")
	}
	return m, nil
}

func (s *swapping) run(ctx context.Context) (SwapReport, error) {
	const op = "metadata.Swap"
	if err := s.ask(ctx); err != nil {
		return s.report, errs.Wrap(op, err)
	}
	if len(s.parts) == 0 && len(s.report.Skipped) == 0 {
		return s.report, nil // nothing was asked for
	}
	if len(s.parts) == 0 {
		return s.report, errs.E(op, errs.Unavailable, "too few drives answered to change a membership")
	}
	if err := s.clean(ctx); err != nil {
		return s.report, errs.Wrap(op, err)
	}
	if len(s.parts) == 0 {
		return s.report, errs.E(op, errs.Unavailable, "the new member could not be made empty")
	}
	begun := s.c.Now()
	s.wedging = true
	s.stands.Store(true)
	err := s.move(ctx)
	s.report.Pause = s.c.Now().Sub(begun)
	if err == nil && len(s.report.Swapped) == 0 {
		err = errs.E(op, errs.Unavailable, "too few drives answered to change a membership")
	}
	return s.report, errs.Wrap(op, err)
}

// move does what follows the first wedge.
func (s *swapping) move(ctx context.Context) error {
	if err := s.wedge(ctx); err != nil {
		return err
	}
	if err := s.carryMarked(ctx); err != nil {
		return err
	}
	if err := s.carryDifferent(ctx); err != nil {
		return err
	}
	if err := s.install(ctx); err != nil {
		return err
	}
	ready := s.keep((*swapper).ready)
	if len(ready) == 0 {
		return nil
	}
	// The commit point: from here on the next epoch is served, by whom it is installed on.
	if err := s.sw.Publish(ctx, ready); err != nil {
		return err
	}
	s.report.Swapped = ready
	return nil
}

// keep goes on with the partitions of which f is true.
func (s *swapping) keep(f func(*swapper) bool) (list []uint32) {
	var parts []*swapPart
	s.number = map[uint32]*swapPart{}
	for _, p := range s.parts {
		if !f(p.swapper) {
			s.report.Skipped = append(s.report.Skipped, p.g.Partition)
			if s.wedging || p.begun {
				s.report.Wedged = append(s.report.Wedged, p.g.Partition)
			}
			continue
		}
		parts = append(parts, p)
		list = append(list, p.g.Partition)
		s.number[p.g.Partition] = p
	}
	s.parts = parts
	for _, d := range s.drives {
		d.sits = slices.DeleteFunc(d.sits, func(t swapSeat) bool { return s.number[t.p.g.Partition] != t.p })
	}
	return list
}

// each calls f for all drives that are not lost, at once, and loses those that fail or take longer than a
// call may. It returns ctx's error only.
func (s *swapping) each(ctx context.Context, f func(context.Context, *swapDrive) error) error {
	return s.eachWithin(ctx, s.c.CallTimeout, f)
}

func (s *swapping) eachWithin(ctx context.Context, limit time.Duration, f func(context.Context, *swapDrive) error) error {
	waiting := map[*swapDrive]context.CancelFunc{}
	ended := make(chan *swapDrive, len(s.drives))
	begun := time.Now()
	for _, d := range s.drives {
		if d.err != nil || len(d.sits) == 0 {
			continue
		}
		call, cancel := context.WithTimeout(ctx, limit)
		waiting[d] = cancel
		go func() { // is waited for below
			d.err = f(call, d)
			ended <- d
		}()
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for len(waiting) > 0 {
		select {
		case d := <-ended:
			waiting[d]()
			delete(waiting, d)
			if d.err == nil {
				s.slowest = max(s.slowest, time.Since(begun))
			}
			switch {
			case !s.stands.Load():
			case s.spares(waiting):
				timer.Reset(min(limit, s.atLeast(straggle)))
			case 2*len(waiting) <= len(s.drives):
				timer.Reset(min(limit, s.patience()))
			}
		case <-timer.C:
			for _, cancel := range waiting {
				cancel()
			}
		}
	}
	for _, d := range s.drives {
		if d.err != nil {
			s.lose(d)
		}
	}
	return ctx.Err()
}

// atLeast is how long a drive is waited for, where the machines are slow: longer than others have needed.
func (s *swapping) atLeast(limit time.Duration) time.Duration { return max(limit, 3*s.slowest) }

// patience is how long a drive that partitions need is waited for while they stand still.
func (s *swapping) patience() time.Duration {
	return s.atLeast(min(max(patience, s.sw.Patience), s.c.CallTimeout))
}

// spares reports whether all partitions go on without the drives of waiting, and those that failed.
func (s *swapping) spares(waiting map[*swapDrive]context.CancelFunc) bool {
	away := map[uint16]bool{}
	for _, d := range s.drives {
		_, waits := waiting[d]
		away[d.num] = waits || d.err != nil
	}
	return !slices.ContainsFunc(s.parts, func(p *swapPart) bool {
		return !p.spares(s.wedged, func(seat int) bool { return away[p.seats[seat]] })
	})
}

func (s *swapping) lose(d *swapDrive) {
	if len(d.sits) > 0 {
		s.c.Logger.Debug("a drive takes no further part in a change of membership", "drive", d.num, "err", d.err)
	}
	for _, t := range d.sits {
		t.p.lose(t.seat)
	}
	d.sits = nil
}

func (s *swapping) request(d *swapDrive, floor Ballot) *WedgeRequest {
	m := &WedgeRequest{Drive: d.num, Transition: s.sw.Transition, Term: s.sw.Term, Floor: floor}
	for _, t := range d.sits {
		m.Partitions, m.Epochs = append(m.Partitions, t.p.g.Partition), append(m.Epochs, t.p.g.Epoch)
	}
	return m
}

// ask looks who is there, and changes nothing.
func (s *swapping) ask(ctx context.Context) error {
	var mu sync.Mutex // guards s.floor and the swappers
	err := s.each(ctx, func(ctx context.Context, d *swapDrive) error {
		r, err := d.m.Wedge(ctx, s.request(d, Ballot{}))
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		s.floor = maxBallot(s.floor, r.Hint)
		for _, t := range d.sits {
			if !slices.Contains(r.Refused, t.p.g.Partition) {
				t.p.here(t.seat)
			}
			if slices.Contains(r.Begun, t.p.g.Partition) {
				s.stands.Store(true)
				t.p.began()
				t.p.clean[t.seat] = true
			}
		}
		return nil
	})
	s.keep((*swapper).enough)
	return err
}

// wedge ends the epochs under a floor that is above all that the drives ever promised.
func (s *swapping) wedge(ctx context.Context) error {
	for range maxWedges {
		s.floor = s.c.ballot(s.floor)
		replies := map[*swapDrive]*WedgeReply{}
		var mu sync.Mutex // guards replies
		err := s.each(ctx, func(ctx context.Context, d *swapDrive) error {
			r, err := d.m.Wedge(ctx, s.request(d, s.floor))
			if err == nil {
				mu.Lock()
				replies[d] = r
				mu.Unlock()
			}
			return err
		})
		if err != nil {
			return err
		}
		again := false
		for d, r := range replies {
			again = again || !r.Done
			s.floor = maxBallot(s.floor, r.Hint)
			for _, f := range r.Fences {
				s.fences[f.Bucket] = max(s.fences[f.Bucket], f.Epoch)
			}
			for _, t := range d.sits {
				if r.Done && !slices.Contains(r.Refused, t.p.g.Partition) {
					t.p.wedge(t.seat)
				} else {
					t.p.lose(t.seat)
				}
			}
		}
		if !again {
			s.keep((*swapper).wedged)
			s.wedged = true
			return nil
		}
	}
	return errs.E("metadata.wedge", errs.Busy, "the drives go on promising higher ballots")
}

// carryMarked carries the registers that are not known as settled: all that may be undecided.
func (s *swapping) carryMarked(ctx context.Context) error {
	slices := make([][]uint16, len(s.drives))
	for i, d := range s.drives {
		slices[i] = s.slicesOf(d, func(*swapPart) bool { return true })
	}
	asks, first := map[*swapDrive]*RowsRequest{}, map[*swapDrive]*RowsReply{}
	for i, d := range s.drives {
		asks[d] = &RowsRequest{Slices: slices[i], Limit: carryRows, Marked: true}
	}
	var mu sync.Mutex // guards first
	// All are asked at once: as a rule that is all that there is.
	err := s.each(ctx, func(ctx context.Context, d *swapDrive) error {
		if len(asks[d].Slices) == 0 {
			return nil
		}
		r, err := d.m.Rows(ctx, asks[d])
		if err == nil {
			mu.Lock()
			first[d] = r
			mu.Unlock()
		}
		return err
	})
	for _, d := range s.drives {
		r := first[d]
		if err != nil || r == nil {
			continue
		}
		if err = s.carry(ctx, r.Rows); err == nil && r.More && r.Next != nil {
			next := *asks[d]
			next.After = r.Next
			err = s.pass(ctx, d, &next)
		}
	}
	return err
}

// pass carries the registers that one drive names in answer to m.
func (s *swapping) pass(ctx context.Context, d *swapDrive, m *RowsRequest) error {
	for d.err == nil && len(d.sits) > 0 && len(m.Slices) > 0 {
		call, cancel := context.WithTimeout(ctx, min(s.c.CallTimeout, s.patience()))
		r, err := d.m.Rows(call, m)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			d.err = err
			s.lose(d)
			return nil
		}
		if err := s.carry(ctx, r.Rows); err != nil {
			return err
		}
		if !r.More || r.Next == nil {
			return nil
		}
		next := *m
		next.After = r.Next
		m = &next
	}
	return nil
}

// slicesOf lists, ascending, the slices of the partitions of a drive of which f is true.
func (s *swapping) slicesOf(d *swapDrive, f func(*swapPart) bool) (list []uint16) {
	for _, t := range d.sits {
		if f(t.p) {
			first, n := s.span(t.p.g.Partition)
			for i := range n {
				list = append(list, first+uint16(i))
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// span returns the slices of a partition.
func (s *swapping) span(partition uint32) (first uint16, n int) {
	return spanOf(s.sw.Layout, partition)
}

func spanOf(l *placement.Layout, partition uint32) (first uint16, n int) {
	bits := int(l.Bits())
	if bits > placement.SliceBits {
		return uint16(partition >> (bits - placement.SliceBits)), 1
	}
	n = 1 << (placement.SliceBits - bits)
	return uint16(int(partition) * n), n
}

// carry brings registers to the drives that need them. The rows themselves are read again, of all drives.
func (s *swapping) carry(ctx context.Context, rows []RegisterRow) error {
	type register struct {
		addr Address
		p    *swapPart
		rows []*Row // by seat
	}
	var list []*register
	asked := map[*swapDrive]*LookupRequest{}
	whose := map[*swapDrive][]*register{}
	flush := func() error {
		defer func() { list, asked, whose = nil, map[*swapDrive]*LookupRequest{}, map[*swapDrive][]*register{} }()
		err := s.each(ctx, func(ctx context.Context, d *swapDrive) error {
			m := asked[d]
			if m == nil {
				return nil
			}
			r, err := d.m.Lookup(ctx, m)
			if err != nil {
				return err
			}
			if len(r.Rows) != len(m.Addresses) {
				return errs.E("metadata.carry", errs.Internal, "an answer of another length")
			}
			for i, reg := range whose[d] {
				reg.rows[slices.Index(reg.p.seats, d.num)] = r.Rows[i].Row
			}
			return nil
		})
		if err != nil {
			return err
		}
		out := s.newCarrier()
		for _, reg := range list {
			top, decided, from, need := reg.p.judge(reg.rows, s.floor)
			if len(need) == 0 {
				continue
			}
			s.report.Rows += len(need)
			t := TransferRow{Address: reg.addr, Partition: reg.p.g.Partition, Decided: decided, State: top.State}
			if err := out.add(ctx, reg.p, from, need, t); err != nil {
				return err
			}
		}
		return out.flush(ctx)
	}
	for i := range rows {
		addr := rows[i].Address
		p := s.number[s.sw.Layout.PartitionOf(addr.Bucket, addr.Key)]
		if p == nil {
			continue
		}
		if name := string(headKey(&addr)); s.carried[name] {
			continue
		} else if len(s.carried) < maxRemember {
			s.carried[name] = true
		}
		reg := &register{addr: addr, p: p, rows: make([]*Row, len(p.seats))}
		list = append(list, reg)
		for _, d := range s.drives {
			seat := slices.Index(p.seats, d.num)
			if d.err != nil || seat < 0 || !p.held[seat] {
				continue
			}
			if asked[d] == nil {
				asked[d] = new(LookupRequest)
			}
			asked[d].Addresses, whose[d] = append(asked[d].Addresses, addr), append(whose[d], reg)
		}
		if len(list) == carryRows {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	return flush()
}

// carrier collects the rows for each drive.
type carrier struct {
	s     *swapping
	queue map[*swapDrive]*carrying
}

type carrying struct {
	rows []TransferRow
	from []*swapDrive // by row: who has its version rows
}

func (s *swapping) newCarrier() *carrier { return &carrier{s, map[*swapDrive]*carrying{}} }

func (s *swapping) drive(num uint16) *swapDrive {
	for _, d := range s.drives {
		if d.num == num {
			return d
		}
	}
	return nil
}

func (o *carrier) add(ctx context.Context, p *swapPart, from int, need []int, t TransferRow) error {
	for _, seat := range need {
		d := o.s.drive(p.seats[seat])
		q := o.queue[d]
		if q == nil {
			q = new(carrying)
			o.queue[d] = q
		}
		q.rows, q.from = append(q.rows, t), append(q.from, o.s.drive(p.seats[from]))
		if len(q.rows) >= carryRows {
			if err := o.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush sends what waits. What a drive can only take whole is sent again, with the version rows.
func (o *carrier) flush(ctx context.Context) error {
	queue := o.queue
	o.queue = map[*swapDrive]*carrying{}
	return o.s.eachWithin(ctx, o.s.c.SealTimeout, func(ctx context.Context, d *swapDrive) error {
		q := queue[d]
		if q == nil {
			return nil
		}
		r, err := d.m.Transfer(ctx, o.s.transfer(d, q.rows))
		if err != nil {
			return err
		}
		var whole []TransferRow
		size := 0
		send := func() error {
			if len(whole) == 0 {
				return nil
			}
			r, err := d.m.Transfer(ctx, o.s.transfer(d, whole))
			if err == nil && len(r.Behind) > 0 {
				err = errs.E("metadata.carry", errs.Behind, "a drive does not take a whole state")
			}
			whole, size = nil, 0
			return err
		}
		for _, i := range r.Behind {
			if int(i) >= len(q.rows) {
				return errs.E("metadata.carry", errs.Internal, "an answer about a row that was not sent")
			}
			t := q.rows[i]
			if t.Full, err = o.s.full(ctx, q.from[i], &t); err != nil {
				return err
			}
			t.Whole = true
			for j := range t.Full {
				size += 256 + len(t.Full[j].Headers)*32
			}
			whole = append(whole, t)
			if size > carryBytes {
				if err := send(); err != nil {
					return err
				}
			}
		}
		return send()
	})
}

func (s *swapping) transfer(d *swapDrive, rows []TransferRow) *TransferRequest {
	return &TransferRequest{Drive: d.num, Transition: s.sw.Transition, Term: s.sw.Term, Floor: s.floor, Rows: rows}
}

// full reads the version rows of a state from a drive that has it. Nothing changes it meanwhile.
func (s *swapping) full(ctx context.Context, d *swapDrive, t *TransferRow) (list []Version, err error) {
	m := &VersionsRequest{Header: Header{Drive: d.num, Partition: t.Partition}, Address: t.Address, Below: ^uint64(0), Limit: maxPage}
	for {
		r, err := d.m.Copy(ctx, m)
		if err != nil {
			return nil, err
		}
		if r.Row == nil || r.Row.State.ID != t.State.ID {
			return nil, errs.E("metadata.carry", errs.Stale, "the state has changed meanwhile")
		}
		list = append(list, r.Versions...)
		if !r.More || len(r.Versions) == 0 {
			return list, nil
		}
		next := *m
		next.Below = r.Versions[len(r.Versions)-1].Seq
		m = &next
	}
}

// carryDifferent carries what differs besides: the digests of those who count must agree in the end.
// Where the digests of a partition are those of others too, everything is looked at.
func (s *swapping) carryDifferent(ctx context.Context) error {
	exact := s.sw.Layout.Bits() <= placement.SliceBits
	s.carried = map[string]bool{}
	current := false // nothing was carried since the digests were read; nobody else writes what is wedged
	for _, d := range s.drives {
		if exact && !current {
			if err := s.digests(ctx); err != nil {
				return err
			}
			current = true
		}
		list := s.slicesOf(d, func(p *swapPart) bool { return !exact || !s.agree(p, true) })
		if len(list) == 0 {
			continue
		}
		current = false
		if err := s.pass(ctx, d, &RowsRequest{Slices: list, Limit: maxPage}); err != nil {
			return err
		}
	}
	if !exact {
		s.keep((*swapper).carried)
		return nil
	}
	if !current {
		if err := s.digests(ctx); err != nil {
			return err
		}
	}
	agree := map[*swapper]bool{}
	for _, p := range s.parts {
		agree[p.swapper] = s.agree(p, false)
	}
	s.keep(func(p *swapper) bool { return p.carried() && agree[p] })
	return nil
}

func (s *swapping) digests(ctx context.Context) error {
	return s.each(ctx, func(ctx context.Context, d *swapDrive) (err error) {
		if d.slice, err = d.m.Digests(ctx); err == nil && len(d.slice) != placement.Slices {
			err = errs.E("metadata.carry", errs.Internal, "an answer of another length")
		}
		return err
	})
}

// agree reports whether those who count have the same states in a partition, and with all, whoever
// leaves it as well.
func (s *swapping) agree(p *swapPart, all bool) bool {
	first, n := s.span(p.g.Partition)
	var want []Digest
	for _, d := range s.drives {
		seat := slices.Index(p.seats, d.num)
		if d.err != nil || seat < 0 || !p.counts(seat) && !(all && p.held[seat] && !p.target(seat)) {
			continue
		}
		got := d.slice[first : int(first)+n]
		if want != nil && !slices.Equal(got, want) {
			return false
		}
		want = got
	}
	return true
}

// install begins the next epochs on whoever has what they begin with, and on the newcomer if it is there.
func (s *swapping) install(ctx context.Context) error {
	fences := make([]Fence, 0, len(s.fences))
	for bucket, epoch := range s.fences {
		fences = append(fences, Fence{bucket, epoch})
	}
	var mu sync.Mutex // guards the swappers
	return s.each(ctx, func(ctx context.Context, d *swapDrive) error {
		m := &InstallEpochRequest{Drive: d.num, Transition: s.sw.Transition, Term: s.sw.Term, Fences: fences}
		var seats []swapSeat
		for _, t := range d.sits {
			if !t.p.begins(t.seat) {
				continue
			}
			seats = append(seats, t)
			m.Partitions, m.Epochs = append(m.Partitions, t.p.g.Partition), append(m.Epochs, t.p.g.Epoch+1)
			m.Floors = append(m.Floors, s.floor)
		}
		if len(seats) == 0 {
			return nil
		}
		if err := d.m.InstallEpoch(ctx, m); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, t := range seats {
			t.p.begin(t.seat)
		}
		return nil
	})
}

// Join makes a drive that was away when epochs began a member in them. Its own rows stay, and repair brings
// them up: every ballot of them is below the floors, and what is undecided ranks below all others. Groups in which too few members answer are left;
// the error, of kind Unavailable, tells.
func (c *Client) Join(ctx context.Context, drive uint16, groups []placement.Group) error {
	const op = "metadata.Join"
	if err := c.enter(op); err != nil {
		return err
	}
	defer c.work.Done()
	m, err := c.membership(drive)
	if err != nil {
		return errs.Wrap(op, err)
	}
	var short error
	for len(groups) > 0 {
		n := min(len(groups), MaxBatch)
		err := c.join(ctx, drive, m, groups[:n])
		if err != nil && !errors.Is(err, errTooFew) {
			return errs.Wrap(op, err)
		}
		if err != nil {
			short = err
		}
		groups = groups[n:]
	}
	return errs.Wrap(op, short)
}

var errTooFew = errs.E("metadata.Join", errs.Unavailable, "too few members of the epoch answered")

func (c *Client) join(ctx context.Context, drive uint16, m Membership, groups []placement.Group) error {
	var partitions []uint32
	for _, g := range groups {
		partitions = append(partitions, g.Partition)
	}
	call, cancel := context.WithTimeout(ctx, c.CallTimeout)
	have, err := m.Installed(call, partitions)
	cancel()
	if err != nil || len(have) != len(groups) {
		return errors.Join(err, ctx.Err())
	}
	asks := map[uint16]*WedgeRequest{}
	var order []uint16
	for i, g := range groups {
		if g.Position(drive) < 0 || g.Epoch < 2 || have[i] >= g.Epoch {
			continue
		}
		for _, num := range g.Drives {
			if num == drive {
				continue
			}
			if asks[num] == nil {
				asks[num] = &WedgeRequest{Drive: num}
				order = append(order, num)
			}
			asks[num].Partitions, asks[num].Epochs = append(asks[num].Partitions, g.Partition), append(asks[num].Epochs, g.Epoch)
		}
	}
	type heard struct {
		members int
		floor   Ballot
	}
	what := map[uint32]*heard{}
	fences := map[uint64]uint64{}
	for _, num := range order {
		member, err := c.membership(num)
		if err != nil {
			continue
		}
		q := asks[num]
		call, cancel := context.WithTimeout(ctx, c.CallTimeout)
		r, err := member.Wedge(call, q)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || len(r.Floors) != len(q.Partitions) || len(r.Installed) != len(q.Partitions) {
			continue
		}
		for i, p := range q.Partitions {
			h := what[p]
			if h == nil {
				h = new(heard)
				what[p] = h
			}
			if r.Installed[i] >= q.Epochs[i] {
				h.members++
				h.floor = maxBallot(h.floor, r.Floors[i])
			}
		}
		for _, f := range r.Fences {
			fences[f.Bucket] = max(fences[f.Bucket], f.Epoch)
		}
	}
	in := &InstallEpochRequest{Drive: drive}
	var short error
	for i, g := range groups {
		if g.Position(drive) < 0 || g.Epoch < 2 || have[i] >= g.Epoch {
			continue
		}
		h := what[g.Partition]
		if h == nil || h.members < g.Quorum.N-g.Quorum.W+1 {
			short = errTooFew
			continue
		}
		in.Partitions, in.Epochs, in.Floors = append(in.Partitions, g.Partition), append(in.Epochs, g.Epoch), append(in.Floors, h.floor)
	}
	if len(in.Partitions) == 0 {
		return short
	}
	for bucket, epoch := range fences {
		in.Fences = append(in.Fences, Fence{bucket, epoch})
	}
	call, cancel = context.WithTimeout(ctx, c.CallTimeout)
	defer cancel()
	if err := m.InstallEpoch(call, in); err != nil {
		return err
	}
	return short
}
