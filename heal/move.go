package heal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// MoveState is how far a move has come.
type MoveState uint8

// A move is planned; then begun, and members may be wedged for it; then published, and its shards follow.
const (
	MovePlanned MoveState = iota
	MoveBegun
	MovePublished
)

// PlannedMove is one move of a plan that is not over.
type PlannedMove struct {
	placement.Move
	State MoveState
	At    uint64 // published: the number of the layout that it came with
}

// MovePlan is what is left of a plan of moves.
type MovePlan struct {
	ID      uint64
	Begun   time.Time
	Total   int // moves
	Done    int // of them, those that are over
	Moves   []PlannedMove
	Leaving []uint16 // drives that leave the layout when they are nothing in it
	// Elsewhere: another process is to be its mover.
	Elsewhere bool
	Lost      func(uint16) bool // drives that never serve again
}

// MoveControl is the control plane, as far as moves need it. cluster.Control is behind it. Each method with a
// term fails with errs.Stale if somebody else has taken the plan over since.
type MoveControl interface {
	// Plan returns the open plan; false: there is none.
	Plan() (MovePlan, bool)
	// TakeOverPlan makes this process the mover, and returns its term.
	TakeOverPlan(ctx context.Context, id uint64) (term uint64, err error)
	// BeginMoves says that members are being wedged for moves.
	BeginMoves(ctx context.Context, id, term uint64, list []placement.Move) error
	// PublishMoves makes newcomers members, with the spread of each partition. fences are those that the
	// members of the next epochs were told.
	PublishMoves(ctx context.Context, id, term uint64, list []placement.Move, spreads []int, fences []metadata.Fence) error
	// MovesDone says that all shards of positions are verified on their new drives.
	MovesDone(ctx context.Context, id, term uint64, list []placement.Move) error
	// ReleaseDrive takes a drive that is nothing in the layout any more out of it.
	ReleaseDrive(ctx context.Context, id, term uint64, num uint16) error
}

// mover is the job that makes the moves of a plan. It belongs to the goroutine of the jobs, but for what h.mu guards.
//
// Three phases. Membership: batch by batch, positions pass to their newcomers, by metadata.Client.Swap; a partition
// stands still meanwhile, which is measured. Of each partition one position moves at a time, and the next one when
// the shards of the first have moved. A pause of healing holds up what is not begun. Shards: all registers are
// walked, and each newcomer gets the rows and shards of its positions (fill.go). Verify: the newcomers' rows are
// compared with those of the others, and what the former drives still hold is judged, shard by shard: each is on
// the newcomer, or no record names it, and none that names it can be accepted any more. Then the moves are over,
// and the former drives let go (left.go).
//
// Where it is lies on the local drives and on some of the newcomers: whichever process goes on finds it there. The
// moves that were published when a walk began are those that it is for; others are published meanwhile, and theirs is
// the next.
type mover struct {
	plan   MovePlan
	term   uint64          // 0: not the mover yet
	again  bool            // what is begun, or could not be, wants a higher term
	fails  int             // tries in a row to change members that ended where partitions stand still
	tried  time.Time       // when it last tried to change members, of those that stand still as well
	size   int             // of the next batch
	whole  int             // of one of which all rows are copied while partitions stand still
	kept   map[uint16]bool // newcomers on which the state was stored
	state  moverState
	loaded bool
	meter  meter
	job    Job // guarded by h.mu
}

// moverState is what drives keep of it.
type moverState struct {
	Serial uint64
	Plan   uint64
	// Round is the hash of the moves that the walk is for; 0: none is under way. They are those that were published with
	// layouts up to Upto.
	Round uint64
	Upto  uint64
	Moves []placement.Move `json:"-"` // thousands, and the plan has them
	fillState
	Swaps          int           // changes of members
	Pause, Longest time.Duration // of all of them, and of one
}

func newMover(plan MovePlan) *mover {
	return &mover{plan: plan, size: firstBatch, kept: make(map[uint16]bool), job: Job{Kind: KindMove, State: JobRunning, Phase: PhaseMembership, Begun: plan.Begun}}
}

// moving is what a Healer has for moves. The mover belongs to the goroutine of the jobs.
type moving struct {
	mover  *mover
	batch  int // partitions that change their members together
	copies *bufpool.Pool
}

const (
	// moveBatch bounds how many partitions stand still together. Of each plan firstBatch do at first; then as many as fit the
	// pause: more after one below shortPause, fewer after one above longPause; where up to fewRows rows were carried, it is not
	// they that take long: more up to longPause, and no fewer than at first. Where all rows are copied, there are about wholeRows of them.
	moveBatch  = 128
	firstBatch = 16
	fewRows    = 256
	wholeRows  = 1024
	shortPause = time.Second
	longPause  = 3 * time.Second
	// begunEvery is how often a walk is left for partitions that stand still. After soonTries they are tried less and less
	// often: each time half as often as before, at the least every 4 minutes (maxRests doublings).
	begunEvery = 30 * time.Second
	maxRests   = 3
	// firstPatience is how long partitions stand still for a drive that they need and that is slow. Each try in a row has
	// twice the patience of the one before, up to CallTimeout.
	firstPatience = 2 * time.Second
	// keepers bounds the newcomers on which the state of the moves lies, besides the local drives.
	keepers = 3
)

func newMoving() moving { return moving{batch: moveBatch, copies: bufpool.New(bufpool.Options{})} }

// planOpen reports whether positions are moving, by whomever.
func (h *Healer) planOpen() bool {
	if h.c.Moves == nil {
		return false
	}
	if _, ok := h.c.Moves.Plan(); ok {
		return true
	}
	return len(h.c.Layout().Moving()) > 0
}

// moveAll works on the open plan. begunOnly: only so far that no partition stands still.
func (h *Healer) moveAll(ctx context.Context, begunOnly bool) error {
	if h.c.Moves == nil {
		return nil
	}
	plan, ok := h.c.Moves.Plan()
	m := h.moving.mover
	if m != nil && (!ok || m.plan.ID != plan.ID) {
		h.endMover(ctx, m)
		m = nil
	}
	if ok && plan.Elsewhere && m != nil {
		h.c.Logger.Info("another process goes on with the moves of a plan", "plan", plan.ID)
		h.mu.Lock()
		h.moving.mover = nil // where it was stays on the drives
		h.mu.Unlock()
	}
	if !ok || plan.Elsewhere {
		return nil
	}
	if m == nil {
		m = newMover(plan)
		h.mu.Lock()
		h.moving.mover = m
		h.mu.Unlock()
	}
	m.plan = plan
	if h.soon.Swap(false) {
		m.tried = time.Time{} // a drive may be back
	}
	if begunOnly && (!m.stands() || m.rests(h.c.Now())) {
		return nil
	}
	h.newPass()
	err := h.moveOn(ctx, m, begunOnly)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		if errs.Is(err, errs.Stale) {
			m.term = 0 // somebody else moves it, or did: look again
		}
		h.c.Logger.Info("moves wait", "plan", plan.ID, "err", err)
		h.showMover(m, func(j *Job) { j.State, j.LastErr = JobWaiting, err.Error() })
	}
	return nil
}

// moveOn goes on with a plan as far as it comes.
func (h *Healer) moveOn(ctx context.Context, m *mover, begunOnly bool) error {
	const op = "heal.move"
	if err := h.loadMover(ctx, m); err != nil {
		return errs.Wrap(op, err)
	}
	if m.term == 0 || m.again {
		term, err := h.c.Moves.TakeOverPlan(ctx, m.plan.ID)
		if err != nil {
			return errs.Wrap(op, err)
		}
		m.term, m.again = term, false
	}
	h.showMover(m, func(j *Job) { j.State, j.Phase, j.LastErr = JobRunning, PhaseMembership, "" })
	waits := h.moveMembers(ctx, m, begunOnly)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if m.fails > 0 && m.fails <= soonTries {
		h.kick(h.jobs) // partitions stand still
		return errs.Wrap(op, waits)
	}
	if begunOnly || errs.Is(waits, errs.Stale) {
		return errs.Wrap(op, waits)
	}
	if h.paused() {
		h.showMover(m, func(j *Job) { j.State = JobPaused })
		return nil
	}
	if err := h.moveShards(ctx, m); err != nil {
		return errs.Wrap(op, errors.Join(waits, err))
	}
	plan, ok := h.c.Moves.Plan()
	if !ok || plan.ID != m.plan.ID {
		h.endMover(ctx, m)
		return nil
	}
	m.plan = plan
	switch {
	case waits != nil:
		return errs.Wrap(op, waits)
	case len(plan.Moves) > 0:
		h.kick(h.jobs) // the next positions of partitions of which one has moved
		return nil
	}
	lost := plan.Lost != nil && slices.ContainsFunc(plan.Leaving, plan.Lost)
	for _, num := range plan.Leaving {
		if err := h.c.Moves.ReleaseDrive(ctx, plan.ID, m.term, num); err != nil {
			return errs.Wrap(op, err)
		}
	}
	if plan, ok := h.c.Moves.Plan(); !ok || plan.ID != m.plan.ID {
		h.endMover(ctx, m)
		if lost {
			h.StartCheck() // what was rebuilt without them is to be proved
		}
	}
	return nil
}

// endMover forgets a plan that is over.
func (h *Healer) endMover(ctx context.Context, m *mover) {
	h.showMover(m, func(j *Job) { j.State, j.Ended = JobDone, h.c.Now() })
	h.mu.Lock()
	h.moving.mover = nil
	h.end(m.job)
	h.mu.Unlock()
	if m.loaded {
		h.c.Logger.Info("the moves of a plan are over", "plan", m.plan.ID, "shards", m.state.Shards, "bytes", m.state.Bytes,
			"swaps", m.state.Swaps, "longest pause", m.state.Longest)
	}
	drives := h.local()
	for num := range m.kept {
		if d, ok := h.drive(num); ok {
			drives = append(drives, d)
		}
	}
	for _, d := range drives {
		if err := d.SetJob(ctx, jobMove, nil); err != nil {
			h.c.Logger.Debug("the state of moves could not be removed", "drive", d.Num(), "err", err)
		}
	}
	h.kick(h.back) // former drives may let go
}

// showMover changes what Status tells of the moves.
func (h *Healer) showMover(m *mover, f func(*Job)) {
	s := &m.state
	m.meter.mark(h.c.Now(), s.Done, s.Bytes)
	h.mu.Lock()
	defer h.mu.Unlock()
	j := &m.job
	j.Done, j.Total, j.Shards, j.Bytes, j.Bad, j.Repaired = s.Done, max(s.Total, s.Done), s.Shards, s.Bytes, s.Bad, s.Repaired
	j.Swaps, j.Pause, j.LongestPause = s.Swaps, s.Pause, s.Longest
	j.Moves, j.MovesDone = m.plan.Total, m.plan.Done
	f(j)
	j.Remaining = 0
	if j.State == JobRunning {
		m.meter.fill(j, s.TotalBytes)
	} else {
		j.RegistersPerSecond, j.BytesPerSecond = 0, 0
		m.meter = meter{}
	}
}

// loadMover reads where the mover is, be it this process or another.
func (h *Healer) loadMover(ctx context.Context, m *mover) error {
	if m.loaded {
		return nil
	}
	drives := h.local()
	for _, num := range newcomersOf(publishedOf(m.plan.Moves, allLayouts)) {
		if d, ok := h.drive(num); ok && !slices.ContainsFunc(drives, func(o node.Drive) bool { return o.Num() == num }) {
			drives = append(drives, d)
		}
	}
	n := 0
	var fails []error
	var best moverState
	for _, d := range drives {
		var s moverState
		if err := h.load(ctx, d, jobMove, &s); err != nil {
			fails = append(fails, err)
			continue
		}
		if n++; s.Plan == m.plan.ID {
			serial := max(s.Serial, best.Serial)
			if best.Plan == 0 || best.behind(&s, m.plan.Moves) {
				best = s
			}
			best.Serial = serial
		}
	}
	if n == 0 {
		return errors.Join(append(fails, errs.E("heal.move", errs.Unavailable, "no drive is here"))...)
	}
	best.Plan = m.plan.ID
	m.state, m.loaded = best, true
	return nil
}

// behind reports whether o has come further with the moves of a plan. Two processes may both have believed to be the
// mover; what either walked was brought to the newcomers.
func (s *moverState) behind(o *moverState, list []PlannedMove) bool {
	valid := func(s *moverState) bool { return s.Round != 0 && roundOf(publishedOf(list, s.Upto)) == s.Round }
	a, b := s.After.address(), o.After.address()
	switch {
	case !valid(s) || !valid(o):
		return !valid(s) && (valid(o) || s.Serial < o.Serial)
	case s.Upto != o.Upto:
		return s.Upto < o.Upto
	case s.Walked || o.Walked:
		return !s.Walked
	case a == nil || b == nil:
		return b != nil
	}
	return compareAddress(a, b) < 0
}

// newcomersOf returns the drives to which shards move, ascending.
func newcomersOf(list []placement.Move) (nums []uint16) {
	for _, x := range list {
		nums = append(nums, x.To)
	}
	slices.Sort(nums)
	return slices.Compact(nums)
}

// keepersOf returns the drives on which the state of the moves lies.
func (h *Healer) keepersOf(m *mover) []node.Drive {
	drives := h.local()
	n := 0
	for _, num := range newcomersOf(m.state.Moves) {
		if d, ok := h.drive(num); ok && n < keepers && !slices.ContainsFunc(drives, func(o node.Drive) bool { return o.Num() == num }) {
			drives = append(drives, d)
			m.kept[num] = true
			n++
		}
	}
	return drives
}

// saveMover stores it. One drive that keeps it suffices.
func (h *Healer) saveMover(ctx context.Context, m *mover) error {
	m.state.Serial++
	drives := h.keepersOf(m)
	fails := make([]error, len(drives))
	indexes := make([]int, len(drives))
	for i := range indexes {
		indexes[i] = i
	}
	each(max(len(drives), 1), indexes, func(i int) { fails[i] = save(ctx, drives[i], jobMove, &m.state) })
	if !slices.Contains(fails, nil) {
		return errors.Join(append(fails, errs.E("heal.move", errs.Unavailable, "no drive kept the state of the moves"))...)
	}
	return nil
}

// moveMembers makes newcomers members as far as that can be done now.
func (h *Healer) moveMembers(ctx context.Context, m *mover, begunOnly bool) error {
	const op = "heal.moveMembers"
	stay := make(map[placement.Move]bool) // could not change
	stand := 0                            // partitions of them that stand still
	rests := m.rests(h.c.Now())
	for _, x := range m.plan.Moves {
		if rests && x.State == MoveBegun {
			stay[x.Move] = true
		}
	}
	resting := len(stay)
	if !rests {
		m.tried = h.c.Now()
	}
	m.whole = h.wholeBatch(ctx)
	for ctx.Err() == nil {
		l := h.c.Layout()
		batch, begun := h.nextMoves(l, m, stay, begunOnly || h.paused())
		if len(batch) == 0 {
			break
		}
		if !begun {
			// The plan's own record, before anybody is wedged: from here on the moves cannot be dropped.
			if err := h.c.Moves.BeginMoves(ctx, m.plan.ID, m.term, batch); err != nil {
				return err
			}
		}
		report, err := h.moveSwap(ctx, m, l, batch)
		if err != nil {
			m.size = min(m.size, firstBatch)
			m.halted()
			return err
		}
		for _, x := range batch {
			if slices.Contains(report.Skipped, x.Partition) {
				stay[x] = true
			}
		}
		stand += len(report.Wedged)
		plan, ok := h.c.Moves.Plan()
		if !ok || plan.ID != m.plan.ID {
			return errs.E(op, errs.Stale, "the plan is over")
		}
		m.plan = plan
		h.showMover(m, func(*Job) {})
	}
	switch {
	case stand > 0:
		m.halted()
		return errs.E(op, errs.Unavailable, fmt.Sprintf("%d partitions stand still: too few of their drives answer in time", stand))
	case !rests:
		m.fails = 0
	}
	if len(stay) > 0 {
		m.again = m.again || len(stay) > resting // those that rest were not tried
		return errs.E(op, errs.Unavailable, fmt.Sprintf("%d positions could not change their drive yet: too few of the drives of their partitions answer", len(stay)))
	}
	return ctx.Err()
}

// halted takes note that partitions stand still: what is half done goes on under a higher term.
func (m *mover) halted() {
	m.again = true
	m.fails++
}

// rests reports whether partitions that stand still are left alone for now: they have been tried often, and lately.
func (m *mover) rests(now time.Time) bool {
	return m.fails > soonTries && !passed(now, m.tried, m.rest())
}

// rest is how long it may be until partitions that stand still are tried again.
func (m *mover) rest() time.Duration {
	return begunEvery << min(max(m.fails-soonTries-1, 0), maxRests)
}

// patience is that of the next change of members, after so many in a row that ended where partitions stand still.
func (h *Healer) patience(fails int) time.Duration {
	return min(firstPatience<<min(fails, 16), h.c.CallTimeout)
}

// nextMoves returns moves that can be made together: of one pair of drives, each of another partition; or such as make
// partitions wider, all that do of each. Those that are begun come first. Of a partition one position moves at a time.
func (h *Healer) nextMoves(l *placement.Layout, m *mover, stay map[placement.Move]bool, begunOnly bool) (batch []placement.Move, begun bool) {
	limit := min(h.moving.batch, max(m.size, 1))
	for _, state := range []MoveState{MoveBegun, MovePlanned} {
		if state == MovePlanned && begunOnly {
			break
		}
		met := make(map[uint32]bool) // partitions, with an earlier move in the plan
		n := 0                       // partitions of the batch
		for _, x := range m.plan.Moves {
			if x.State == MovePublished {
				continue
			}
			first := !met[x.Partition]
			met[x.Partition] = true
			if x.State != state || stay[x.Move] || state == MovePlanned && !first || !m.plan.mayMove(l, x.Move) {
				continue
			}
			if x.Joins() {
				if slices.ContainsFunc(batch, func(o placement.Move) bool { return o.Partition == x.Partition || !o.Joins() }) {
					continue
				}
				set := m.plan.joining(l, x.Partition)
				if set == nil || state == MovePlanned && !h.mayJoin(l, set) {
					stay[x.Move] = true
					continue
				}
				if batch = append(batch, set...); n == 0 && h.joinsWhole(l, set) {
					limit = min(limit, max(m.whole, 1))
				}
				if n++; n == limit {
					break
				}
				continue
			}
			if state == MovePlanned && !h.mayBegin(l, x.Move) {
				stay[x.Move] = true
				continue
			}
			if len(batch) > 0 && (batch[0].From != x.From || batch[0].To != x.To || slices.ContainsFunc(batch, func(o placement.Move) bool { return o.Partition == x.Partition })) {
				continue
			}
			if batch = append(batch, x.Move); len(batch) == 1 && h.copiesRows(l, x.Move) {
				limit = min(limit, max(m.whole, 1))
			}
			if len(batch) == limit {
				break
			}
		}
		if len(batch) > 0 {
			return batch, state == MoveBegun
		}
	}
	return nil, false
}

// mayMove reports whether a position may pass to its newcomer now: no shards of the partition are moving; or those
// of this position are, to a drive that was given up meanwhile, and that one has a successor.
func (p *MovePlan) mayMove(l *placement.Layout, x placement.Move) bool {
	g := l.Group(x.Partition)
	if g.Former == nil {
		return l.MayMove(x) == nil
	}
	if _, moving := g.FormerAt(x.Position); !moving || p.Lost == nil || !p.Lost(x.From) {
		return false
	}
	_, err := l.Swap(x.From, x.To, []uint32{x.Partition})
	return err == nil
}

// mayBegin reports whether enough drives seem to be here to begin a move: one that is begun cannot be dropped.
func (h *Healer) mayBegin(l *placement.Layout, x placement.Move) bool {
	_, to := h.drive(x.To)
	g := l.Group(x.Partition)
	return to && h.staying(g, x)+1 >= max(g.Quorum.W, l.Next([]placement.Move{x}).Quorum.W)
}

// staying counts the members besides the one that leaves that are here.
func (h *Healer) staying(g placement.Group, x placement.Move) (n int) {
	for _, num := range g.Drives {
		if _, ok := h.drive(num); ok && num != x.From {
			n++
		}
	}
	return n
}

// copiesRows reports whether too few members stay for the image, so that the newcomer gets every row while the
// partition stands still.
func (h *Healer) copiesRows(l *placement.Layout, x placement.Move) bool {
	g := l.Group(x.Partition)
	return h.staying(g, x) < max(g.Quorum.W, l.Next([]placement.Move{x}).Quorum.W)
}

// wholeBatch returns how many partitions have about as many rows as may be copied while they stand still, as far as the
// local drives tell.
func (h *Healer) wholeBatch(ctx context.Context) int {
	l := h.c.Layout()
	least := moveBatch
	local := h.local()
	for _, d := range local {
		shards, _, err := d.ShardUsage(ctx)
		if err != nil {
			return 1
		}
		each := int(shards) / max(len(l.PartitionsOf(d.Num())), 1)
		least = min(least, wholeRows/(each+1))
	}
	if len(local) == 0 {
		return 1
	}
	return max(least, 1)
}

// moveSwap makes the newcomer of moves a member. That partitions had too few drives is no error.
func (h *Healer) moveSwap(ctx context.Context, m *mover, l *placement.Layout, batch []placement.Move) (report metadata.SwapReport, err error) {
	s, spreads := m.changeOf(l, batch)
	s.Patience = h.patience(m.fails)
	h.letDeletionsThrough(ctx)
	if h.c.Fences != nil {
		s.Fences = h.c.Fences()
	}
	s.Publish = func(ctx context.Context, partitions []uint32) error {
		var list []placement.Move
		var fs []int
		for _, x := range batch {
			if slices.Contains(partitions, x.Partition) {
				list, fs = append(list, x), append(fs, spreads[x.Partition])
			}
		}
		return h.c.Moves.PublishMoves(ctx, m.plan.ID, m.term, list, fs, s.Fences)
	}
	report, err = h.c.Mover.Swap(ctx, s)
	if len(report.Swapped) > 0 {
		m.state.Swaps++
		m.state.Pause += report.Pause
		m.state.Longest = max(m.state.Longest, report.Pause)
		switch {
		case report.Pause > longPause && report.Rows > fewRows:
			m.size = max(m.size/2, 1)
		case report.Pause > longPause:
			m.size = max(m.size/2, min(m.size, firstBatch)) // fewer would stand still for as long
		case (report.Pause < shortPause || report.Rows <= fewRows) && len(s.Groups) == m.size:
			m.size = min(2*m.size, h.moving.batch)
		}
		level := slog.LevelDebug
		if report.Pause > longPause {
			level = slog.LevelInfo
		}
		h.c.Logger.Log(ctx, level, "partitions have other members", "from", batch[0].From, "to", batch[0].To, "partitions", len(report.Swapped), "rows", report.Rows, "pause", report.Pause)
	}
	switch {
	case len(report.Skipped) == len(s.Groups) && ctx.Err() == nil:
		return report, nil
	case err == nil && h.c.Layout().Number() <= l.Number():
		err = errs.E("heal.moveSwap", errs.Unavailable, "the new layout is not known here yet")
	}
	return report, err
}

// moveShards brings the published positions their shards, and ends their moves.
func (h *Healer) moveShards(ctx context.Context, m *mover) error {
	const op = "heal.moveShards"
	if err := h.beginRound(ctx, m); err != nil || len(m.state.Moves) == 0 {
		return err
	}
	f := &filling{state: &m.state.fillState, drives: make(map[uint16]node.Drive), show: func() { h.showMover(m, func(*Job) {}) },
		save: func(ctx context.Context) error { return h.saveMover(ctx, m) }}
	type place struct {
		partition uint32
		position  int
	}
	places, slicesIn := make(map[place]bool), make(map[uint16]bool)
	l := h.c.Layout()
	for _, x := range m.state.Moves {
		to, ok := h.drive(x.To)
		if !ok {
			return errs.E(op, errs.Unavailable, fmt.Sprintf("drive %d, to which shards move, is not in service", x.To))
		}
		f.drives[x.To] = to
		places[place{x.Partition, x.Position}] = true
		for s := range uint16(placement.Slices) {
			if first, n := slicesOf(l, s); first <= x.Partition && x.Partition < first+n {
				slicesIn[s] = true
			}
		}
	}
	f.want = func(g placement.Group, pos int) bool { return places[place{g.Partition, pos}] }
	// Their rows go before their shards do: until then they keep dead data. Who is away is asked again below.
	if err := h.leaveAll(ctx, l, m, false); err != nil {
		return err
	}
	for !m.state.Walked {
		h.showMover(m, func(j *Job) { j.State, j.Phase = JobRunning, PhaseShards })
		if h.paused() {
			h.showMover(m, func(j *Job) { j.State = JobPaused })
			return errs.E(op, errs.Busy, "healing is paused")
		}
		if h.moversWait() {
			h.kick(h.jobs) // a newcomer in a lost drive's place is to move in first
			return errs.E(op, errs.Busy, "a drive is being replaced")
		}
		if m.stands() && passed(h.c.Now(), m.tried, m.rest()) {
			h.kick(h.jobs)
			return errs.E(op, errs.Busy, "partitions stand still: their members change first")
		}
		if err := h.fillPage(ctx, f); err != nil {
			return err
		}
	}
	h.showMover(m, func(j *Job) { j.State, j.Phase = JobRunning, PhaseVerify })
	if err := h.level(ctx, f, func(s uint16) bool { return slicesIn[s] }); err != nil {
		return err
	}
	if err := h.leaveAll(ctx, h.c.Layout(), m, true); err != nil {
		return err
	}
	if err := h.judgeFormers(ctx, m, f); err != nil {
		return err
	}
	if plan, ok := h.c.Moves.Plan(); !ok || plan.ID != m.plan.ID || roundOf(publishedOf(plan.Moves, m.state.Upto)) != m.state.Round {
		return errs.E(op, errs.Stale, "the moves have changed meanwhile")
	}
	if err := h.c.Moves.MovesDone(ctx, m.plan.ID, m.term, m.state.Moves); err != nil {
		return err
	}
	m.plan.Done += len(m.state.Moves)
	m.state.Round, m.state.Upto = 0, 0
	return h.saveMover(ctx, m)
}

// stands reports whether partitions stand still, as far as the plan tells.
func (m *mover) stands() bool {
	return slices.ContainsFunc(m.plan.Moves, func(x PlannedMove) bool { return x.State == MoveBegun })
}

// partitionsStand reports whether partitions stand still for moves that are to be tried now, by this process: its mover may
// be new, and other work under way.
func (h *Healer) partitionsStand() bool {
	if h.c.Moves == nil {
		return false
	}
	plan, ok := h.c.Moves.Plan()
	if !ok || plan.Elsewhere || !(&mover{plan: plan}).stands() {
		return false
	}
	m := h.moving.mover
	return m == nil || m.plan.ID != plan.ID || passed(h.c.Now(), m.tried, m.rest())
}

// allLayouts is a number that no layout has.
const allLayouts = ^uint64(0)

// publishedOf returns the moves of which the shards follow, that came with layouts up to upto.
func publishedOf(list []PlannedMove, upto uint64) (out []placement.Move) {
	for _, x := range list {
		if x.State == MovePublished && x.At <= upto {
			out = append(out, x.Move)
		}
	}
	return out
}

// roundOf names a set of moves; 0 is none.
func roundOf(list []placement.Move) uint64 {
	if len(list) == 0 {
		return 0
	}
	var b []byte
	for _, x := range list {
		b = binary.BigEndian.AppendUint32(b, x.Partition)
		b = binary.BigEndian.AppendUint32(b, uint32(x.Position))
		b = binary.BigEndian.AppendUint16(b, x.From)
		b = binary.BigEndian.AppendUint16(b, x.To)
	}
	return max(xxh3.Hash(b), 1)
}

// beginRound begins a walk, unless one for the same moves is under way.
func (h *Healer) beginRound(ctx context.Context, m *mover) error {
	plan, ok := h.c.Moves.Plan()
	if !ok || plan.ID != m.plan.ID {
		return errs.E("heal.moveShards", errs.Stale, "the plan is over")
	}
	m.plan = plan
	s := &m.state
	if s.Moves = publishedOf(plan.Moves, s.Upto); s.Round != 0 && roundOf(s.Moves) == s.Round {
		return nil
	}
	s.Moves = publishedOf(plan.Moves, allLayouts)
	var upto uint64
	for _, x := range plan.Moves {
		if x.State == MovePublished {
			upto = max(upto, x.At)
		}
	}
	s.Round, s.Upto = roundOf(s.Moves), upto
	s.After, s.Walked, s.Behind, s.Done, s.Total, s.TotalBytes = nil, onlyJoined(s.Moves), nil, 0, 0, 0
	here, _ := h.members(h.c.Layout())
	for _, d := range here {
		if shards, _, err := d.ShardUsage(ctx); err == nil {
			s.Total = max(s.Total, shards) // the best guess at how many registers there are
		}
	}
	return h.saveMover(ctx, m)
}

// leaveAll has the former drives let go of their rows of what they gave away. With all, none may be away but those
// that are lost.
func (h *Healer) leaveAll(ctx context.Context, l *placement.Layout, m *mover, all bool) error {
	by := make(map[uint16][]uint32)
	for _, x := range m.state.Moves {
		if !x.Joins() {
			by[x.From] = append(by[x.From], x.Partition)
		}
	}
	for num, partitions := range by {
		if m.plan.Lost != nil && m.plan.Lost(num) {
			continue
		}
		d, ok := h.drive(num)
		if !ok {
			if all {
				return errs.E("heal.leave", errs.Unavailable, fmt.Sprintf("drive %d is away: it may have shards that belong to others now", num))
			}
			continue
		}
		if err := h.leave(ctx, l, d, partitions); err != nil {
			if all || ctx.Err() != nil {
				return err
			}
			h.c.Logger.Debug("a drive could not let go of its rows yet", "drive", num, "err", err)
		}
	}
	return nil
}

// leave hands the work lists of a drive for partitions that it gave away to the members, and removes its rows.
func (h *Healer) leave(ctx context.Context, l *placement.Layout, d node.Drive, partitions []uint32) error {
	gone := make(map[uint32]bool, len(partitions))
	for _, p := range partitions {
		gone[p] = l.Group(p).Position(d.Num()) < 0
	}
	hand := func(a metadata.Address) error {
		return h.keep(ctx, &task{addr: a}, l.Group(l.PartitionOf(a.Bucket, a.Key)))
	}
	var after *metadata.Address
	for {
		list, err := d.Repairs(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range list {
			r := &list[i]
			if !gone[l.PartitionOf(r.Address.Bucket, r.Address.Key)] {
				continue
			}
			if err := hand(r.Address); err != nil {
				return err
			}
			if err := d.ClearRepair(ctx, *r); err != nil {
				return err
			}
		}
		if len(list) < page {
			break
		}
		after = &list[len(list)-1].Address
	}
	after = nil
	for {
		list, err := d.Unsettled(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range list {
			if a := list[i].Address; gone[l.PartitionOf(a.Bucket, a.Key)] {
				if err := hand(a); err != nil { // its mark goes with the row
					return err
				}
			}
		}
		if len(list) < page {
			break
		}
		after = &list[len(list)-1].Address
	}
	_, err := h.c.Meta.Leave(ctx, l, d.Num(), partitions)
	return err
}

// judgeAtOnce bounds the shards of a former drive that are looked at side by side.
const judgeAtOnce = 8

// judgeFormers looks at each shard that former drives still hold of the positions of this round. It must be on the
// newcomer. If it is not, its register decides: what is named is brought there. What is not may belong to a write
// under way, that counted this shard before the position changed: a fenced round makes it count again.
func (h *Healer) judgeFormers(ctx context.Context, m *mover, f *filling) error {
	var froms []uint16
	for _, x := range m.state.Moves {
		if !x.Joins() && (m.plan.Lost == nil || !m.plan.Lost(x.From)) {
			froms = append(froms, x.From)
		}
	}
	slices.Sort(froms)
	for _, num := range slices.Compact(froms) {
		d, ok := h.drive(num)
		if !ok {
			return errs.E("heal.judgeFormers", errs.Unavailable, fmt.Sprintf("drive %d is away: it may have shards that belong to others now", num))
		}
		if err := h.judgeFormer(ctx, f, d); err != nil {
			return err
		}
	}
	return nil
}

func (h *Healer) judgeFormer(ctx context.Context, f *filling, d node.Drive) error {
	l := h.c.Layout()
	var last disk.ShardRow
	for {
		if h.paused() {
			return errs.E("heal.judgeFormer", errs.Busy, "healing is paused")
		}
		rows, err := d.ShardRows(ctx, last.ID.Data, last.ID.Chunk, page)
		if err != nil {
			return err
		}
		fails := make([]error, len(rows))
		var indexes []int
		for i := range rows {
			indexes = append(indexes, i)
		}
		each(judgeAtOnce, indexes, func(i int) {
			r := &rows[i]
			cg := l.Group(l.ChunkPartition(r.ID.Data, r.ID.Chunk, l.PartitionOf(r.Address.Bucket, r.Address.Key)))
			pos := slices.Index(cg.Former, d.Num())
			if pos < 0 || !f.want(cg, pos) {
				return
			}
			to := f.drives[cg.Drives[pos]]
			if to == nil {
				fails[i] = errs.E("heal.judgeFormer", errs.Stale, "the members have changed")
				return
			}
			if st, err := to.StatShard(ctx, r.ID); err == nil && st.Row.ID == r.ID {
				return // written there by a client, or by the walk, which verified it
			}
			fails[i] = h.judgeShard(ctx, f, l, r, to)
		})
		if err := errors.Join(fails...); err != nil {
			return err
		}
		if len(rows) < page {
			return ctx.Err()
		}
		last = rows[len(rows)-1]
		if err := h.pace.take(ctx, len(rows)*nominalBytes/8); err != nil {
			return err
		}
	}
}

// judgeShard judges a shard that is on a former drive and not on the newcomer.
func (h *Healer) judgeShard(ctx context.Context, f *filling, l *placement.Layout, r *disk.ShardRow, to node.Drive) error {
	a := r.Address
	g := l.Group(l.PartitionOf(a.Bucket, a.Key))
	named, dead, err := h.namedBy(ctx, g, a, r.ID.Data)
	if err != nil || dead {
		return err
	}
	if !named {
		epoch, ok, err := h.c.Buckets.BucketEpoch(ctx, a.Bucket)
		if err != nil {
			return err
		}
		if !ok {
			epoch = ^uint64(0)
		}
		// The round: whoever was about to name it has to prepare, and to count its shards, again. Its position has
		// another drive since, so this one does not count.
		if _, free, err := h.c.Meta.Orphan(ctx, g, a, r.ID.Data, epoch); err != nil || free {
			return err
		}
		// Somebody refers to it: it is settled now, or is once it was read.
		if named, dead, err = h.namedBy(ctx, g, a, r.ID.Data); err != nil || dead {
			return err
		}
		if !named {
			return errs.E("heal.judgeShard", errs.Conflict, "it is not decided yet whether a record names a shard")
		}
	}
	if _, err := h.mend(ctx, a); err != nil {
		return err
	}
	if _, err := to.StatShard(ctx, r.ID); err == nil {
		return nil
	}
	// It may be gone meanwhile. If it is not, the mending did not reach it.
	if named, _, err = h.namedBy(ctx, g, a, r.ID.Data); err != nil || !named {
		return err
	}
	return errs.E("heal.judgeShard", errs.Unavailable, "a shard could not be brought to its new drive yet")
}
