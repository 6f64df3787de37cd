package heal

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// task is one register that wants work.
type task struct {
	addr      metadata.Address
	key       string
	positions []uint8  // that repair rows name
	repair    []asked  // repair rows that ask for it
	unsettled []uint16 // drives with an unsettled mark
	// spare is how many more shards may be lost before data is: an estimate until the task was looked at.
	spare int
	sound *sound // nil: it was not verified
}

// sound is what was found when everything of a register was verified that is on drives that answered. It does not change
// once it is in a pause.
type sound struct {
	state  metadata.Ballot // of the register
	asked  []asked         // the repair rows that had asked for it; whoever asks later may have found something since
	away   []uint16        // drives with shards or rows of it that did not answer, and may lack some
	wide   bool            // shards of it may lie on drives that are no members
	epoch  uint64          // of its partition
	layout uint64          // the number
}

// asked is a drive with a repair row for a register, and which one it was when it was read or written.
type asked struct {
	num       uint16
	at        uint64  // metadata.RepairRow.Asked
	positions []uint8 // that it named
}

// Pass drains the lists of the local drives once. What waits after a failure is left out.
func (h *Healer) Pass(ctx context.Context) error {
	if h.c.Layout() == nil {
		return nil
	}
	h.newPass()
	h.lookAround(ctx)
	if err := h.c.Buckets.ResumeDeletions(ctx); err != nil && ctx.Err() == nil {
		h.c.Logger.Info("a deletion of a bucket could not be finished yet", "err", err)
	}
	begun, asked := time.Now(), h.asked.Load()
	tasks, err := h.gather(ctx)
	h.gathering = time.Since(begun)
	if err != nil {
		return errs.Wrap("heal.Pass", err)
	}
	if h.paused() {
		tasks = nil
	}
	h.mu.Lock()
	h.progress.Pending = len(tasks)
	h.progress.Passes++
	h.read = asked
	h.mu.Unlock()
	q := newQueue(tasks)
	var wg sync.WaitGroup
	for range min(h.c.Concurrency, len(tasks)) {
		wg.Go(func() {
			for ctx.Err() == nil && !h.paused() {
				for _, t := range q.fresh(lookAhead) {
					h.look(ctx, t)
					q.looked(t)
				}
				t := q.next()
				if t == nil || h.pace.take(ctx, nominalBytes) != nil {
					return
				}
				h.tend(ctx, t)
			}
		})
	}
	wg.Wait()
	if len(tasks) >= h.limits.pending { // there may be more
		h.Nudge()
	}
	return errs.Wrap("heal.Pass", ctx.Err())
}

// queue has the tasks of a pass. Before one is tended, some more are looked at; of those that were, the
// one with the least redundancy left is next. It is safe for concurrent use.
type queue struct {
	mu      sync.Mutex // guards the fields below
	unknown []*task    // not looked at yet, those that seem most urgent first
	looking int        // taken by fresh
	known   tasks
	more    sync.Cond // on mu: known or looking changed
}

func newQueue(list []*task) *queue {
	q := &queue{unknown: slices.Clone(list)}
	slices.SortFunc(q.unknown, compareTasks)
	q.more.L = &q.mu
	return q
}

func compareTasks(a, b *task) int {
	return cmp.Or(cmp.Compare(a.spare, b.spare), cmp.Compare(a.key, b.key))
}

// fresh takes up to n tasks to look at. Each is given back by looked.
func (q *queue) fresh(n int) []*task {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.unknown))
	list := q.unknown[:n:n]
	q.unknown = q.unknown[n:]
	q.looking += n
	return list
}

func (q *queue) looked(t *task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	heap.Push(&q.known, t)
	q.looking--
	q.more.Broadcast()
}

// next takes the most urgent task, and waits if some are still being looked at; nil: none is left.
func (q *queue) next() *task {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.known) == 0 && q.looking > 0 {
		q.more.Wait()
	}
	if len(q.known) == 0 {
		return nil
	}
	return heap.Pop(&q.known).(*task)
}

// tasks is a heap of tasks by urgency.
type tasks []*task

func (t tasks) Len() int           { return len(t) }
func (t tasks) Less(i, j int) bool { return compareTasks(t[i], t[j]) < 0 }
func (t tasks) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *tasks) Push(x any)        { *t = append(*t, x.(*task)) }
func (t *tasks) Pop() any {
	n := len(*t) - 1
	x := (*t)[n]
	*t = (*t)[:n]
	return x
}

const (
	// noBodies is the redundancy of a register that names no data: only rows are to be mended.
	noBodies = 1 << 10
	// lookBodies and lookChunks bound what look counts.
	lookBodies, lookChunks = 16, 16
	// lookAhead is how many tasks are looked at for each one that is tended.
	lookAhead = 32
)

// look counts the shards of a register that are there, and so learns what redundancy it has left. It is
// cheap: rows, no shards, are read. Where it fails, the estimate stays.
func (h *Healer) look(ctx context.Context, t *task) {
	l := h.c.Layout()
	g := l.Group(l.PartitionOf(t.addr.Bucket, t.addr.Key))
	view, err := h.c.Meta.Read(ctx, g, t.addr, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
	if err != nil {
		return
	}
	spare, bodies := noBodies, 0
	enough := errors.New("enough")
	err = h.bodies(ctx, g, t.addr, view, func(d *metadata.Data) error {
		for i := range min(d.Chunks(), lookChunks) {
			spare = min(spare, h.spareOf(ctx, l, g, d, i))
		}
		if bodies++; bodies == lookBodies {
			return enough
		}
		return ctx.Err()
	})
	if err == nil || errors.Is(err, enough) {
		t.spare = spare
	}
}

// spareOf counts how many shards more than needed a chunk has on drives that are here.
func (h *Healer) spareOf(ctx context.Context, l *placement.Layout, g placement.Group, d *metadata.Data, i uint32) int {
	cg := chunkGroup(l, g, d, i)
	have := 0
	for j, pos := range cg.Places(d.Profile, d.Width, d.ID) {
		id := erasure.ShardID{Data: d.ID, Chunk: i, Index: uint8(j)}
		if drive, ok := h.drive(cg.Drives[pos]); ok {
			if _, err := drive.StatShard(ctx, id); err == nil {
				have++
				continue
			}
		}
		if former := h.formerOf(cg, pos); former != nil {
			if _, err := former.StatShard(ctx, id); err == nil {
				have++
			}
		}
	}
	return have - int(d.Profile.Data)
}

// placesOf returns the positions of the shards of a body in the group of one of its chunks. The error is of kind Stale
// if the partition was wider when the body was written than it is known to be here.
func placesOf(g placement.Group, d *metadata.Data) ([]int, error) {
	if places := g.Places(d.Profile, d.Width, d.ID); len(places) == d.Profile.N() {
		return places, nil
	}
	return nil, errs.E("heal.placesOf", errs.Stale, "a body is wider than its partition is known to be")
}

// chunkGroup returns the members that hold chunk i of a body of a register in g.
func chunkGroup(l *placement.Layout, g placement.Group, d *metadata.Data, i uint32) placement.Group {
	if i == 0 {
		return g
	}
	return l.Group(l.ChunkPartition(d.ID, i, g.Partition))
}

// tend works on one register and keeps the books.
func (h *Healer) tend(ctx context.Context, t *task) {
	h.mu.Lock()
	h.progress.Active++
	h.mu.Unlock()
	got, err := h.register(ctx, t)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress.Active--
	h.progress.Pending--
	if got == whole && err == nil {
		h.progress.Repaired++
		h.backlog = max(h.backlog-1, 0)
		delete(h.retry, t.key)
		h.check.lost.found(t.addr)
		return
	}
	if ctx.Err() != nil {
		return
	}
	p := h.retry[t.key]
	if p == nil {
		p = &pause{length: firstPause / 2}
		h.retry[t.key] = p
	}
	if p.sound = t.sound; p.sound != nil {
		p.sound.asked = slices.Clone(t.repair)
	}
	if got == verified && err == nil {
		if !p.late {
			h.backlog = max(h.backlog-1, 0)
		}
		*p = pause{length: firstPause, until: h.c.Now().Add(firstPause), late: true, sound: p.sound}
		return
	}
	p.length = min(2*p.length, longestPause)
	p.until = h.c.Now().Add(p.length)
	p.late = false
	if p.full = full(err); p.full {
		h.room.short = true
	}
	p.blocked = got == blocked && err == nil || level(err) < 0 && !errors.Is(err, errLost)
	if err != nil {
		h.progress.LastErr = err.Error()
	}
	if !p.blocked {
		h.progress.Failed++
		if err == nil {
			err = errChanged
		}
		h.c.Logger.Info("a register could not be repaired yet", "bucket", t.addr.Bucket, "err", err)
	}
}

// errChanged is why a register was not verified although nothing failed.
var errChanged = errs.E("heal.register", errs.Conflict, "it changed meanwhile, or something was damaged that has been written anew since")

// level says how bad an error is: below 0 drives are merely away, 0 is none, above 0 something is wrong.
func level(err error) int {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Drive, errs.Busy, errs.Stale, errs.Conflict, errs.Timeout:
		if err != nil {
			return -1
		}
	}
	if err == nil {
		return 0
	}
	return 1
}

// full reports whether a drive had no room, among whatever else went wrong.
func full(err error) bool {
	switch e := err.(type) {
	case nil:
		return false
	case *errs.Error:
		return e.Kind == errs.Full || full(e.Err)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), full)
	case interface{ Unwrap() error }:
		return full(e.Unwrap())
	}
	return errs.Is(err, errs.Full)
}

// gather reads the lists of the local drives: each register once.
func (h *Healer) gather(ctx context.Context) ([]*task, error) {
	by := make(map[string]*task)
	get := func(a metadata.Address) *task {
		k := string(a.AppendTo(nil))
		t := by[k]
		if t == nil {
			t = &task{addr: a, key: k}
			by[k] = t
		}
		return t
	}
	var fails []error
	future := make(map[erasure.DataID]bool)
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for id := range future {
			delete(h.since, id)
		}
	}()
	local := h.local()
	all := true // the lists were read from end to end
	for i := range local {
		d := local[(i+h.turn)%len(local)]
		from := h.from[d.Num()]
		all = all && from == (places{})
		first := func() (more bool, err error) {
			from.repairs, more, err = h.repairsFrom(ctx, d, from.repairs, get, by)
			return more, err
		}
		second := func() (more bool, err error) {
			from.unsettled, more, err = h.unsettledFrom(ctx, d, from.unsettled, get, by)
			return more, err
		}
		if h.turn%2 == 1 {
			first, second = second, first
		}
		more1, err1 := first()
		more2, err2 := second()
		all = all && !more1 && !more2
		h.from[d.Num()] = from
		err := errors.Join(err1, err2, h.wideGarbage(ctx, d, get, future))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil { // the other drives name most of the same registers
			fails = append(fails, err)
			h.c.Logger.Debug("the work lists of a drive could not be read", "drive", d.Num(), "err", err)
		}
	}
	if !all {
		h.turn++ // another drive, and another list, is read first
	}
	h.mu.Lock()
	switch {
	case all:
		for k := range h.retry {
			if by[k] == nil {
				delete(h.retry, k)
			}
		}
		h.backlog = len(by)
	case len(h.retry) > maxWaiting*h.limits.pending:
		clear(h.retry) // it is not known which of them are still on the lists
		fallthrough
	default:
		h.backlog = max(h.backlog, len(by), 1)
	}
	h.emptied = all && len(by) == 0 && len(fails) == 0 && len(local) == len(h.c.Layout().Drives())
	for k := range by {
		if p := h.retry[k]; p != nil && p.late && all {
			h.backlog--
		}
	}
	h.mu.Unlock()
	if len(by) == 0 {
		return nil, errors.Join(fails...)
	}
	return h.due(by), nil
}

// due returns the tasks that do not wait, with a first estimate of the redundancy that is left.
func (h *Healer) due(by map[string]*task) []*task {
	l := h.c.Layout()
	here := make(map[uint16]bool)
	for _, d := range l.Drives() {
		_, here[d.Num] = h.drive(d.Num)
	}
	now := h.c.Now()
	tasks := make([]*task, 0, len(by))
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, t := range by {
		if p := h.retry[k]; p == nil || p.over(now) {
			t.spare = estimate(l, t, here)
			tasks = append(tasks, t)
		}
	}
	return tasks
}

// estimate is the parity of the layout less the positions that rows name or whose drives are away.
func estimate(l *placement.Layout, t *task, here map[uint16]bool) int {
	g := l.Group(l.PartitionOf(t.addr.Bucket, t.addr.Key))
	spare := int(g.Profile.Parity)
	for pos, num := range g.Drives {
		if !here[num] || slices.Contains(t.positions, uint8(pos)) {
			spare--
		}
	}
	return spare
}

// places is where the next pass goes on in the lists of a drive; nil: at the start. A pass that has met as many
// registers as it may stops there: those that wait at the front of a long list do not hide the ones behind them.
type places struct {
	repairs, unsettled *metadata.Address
}

// maxWaiting is how many times the registers of one pass are remembered as waiting, at most.
const maxWaiting = 4

func (h *Healer) repairs(ctx context.Context, d node.Drive, get func(metadata.Address) *task, by map[string]*task) error {
	_, _, err := h.repairsFrom(ctx, d, nil, get, by)
	return err
}

// repairsFrom reads the repair rows of a drive behind after, until by has as many registers as a pass may have. It
// returns where it stopped, and whether that was for them; else it is nil.
func (h *Healer) repairsFrom(ctx context.Context, d node.Drive, after *metadata.Address, get func(metadata.Address) *task, by map[string]*task) (at *metadata.Address, more bool, err error) {
	for len(by) < h.limits.pending {
		list, err := d.Repairs(ctx, after, h.limits.page)
		if err != nil {
			return nil, false, err
		}
		for i := range list {
			t := get(list[i].Address)
			t.repair = append(t.repair, asked{d.Num(), list[i].Asked, list[i].Positions})
			for _, p := range list[i].Positions {
				if !slices.Contains(t.positions, p) {
					t.positions = append(t.positions, p)
				}
			}
		}
		if len(list) < h.limits.page {
			return nil, false, nil
		}
		after = &list[len(list)-1].Address
	}
	return after, true, nil
}

// unsettledFrom reads the marks of a drive as repairsFrom does the repair rows.
func (h *Healer) unsettledFrom(ctx context.Context, d node.Drive, after *metadata.Address, get func(metadata.Address) *task, by map[string]*task) (at *metadata.Address, more bool, err error) {
	// A mark from the future was left before the clock was set back. It is safe to settle it at any time.
	now := h.c.Now()
	old, ahead := now.Add(-h.c.SettleAfter).UnixNano(), now.Add(clockSkew).UnixNano()
	for len(by) < h.limits.pending {
		list, err := d.Unsettled(ctx, after, h.limits.page)
		if err != nil {
			return nil, false, err
		}
		for i := range list {
			if list[i].Since <= old || list[i].Since > ahead {
				t := get(list[i].Address)
				t.unsettled = append(t.unsettled, d.Num())
			}
		}
		if len(list) < h.limits.page {
			return nil, false, nil
		}
		after = &list[len(list)-1].Address
	}
	return after, true, nil
}

// wideGarbage takes over the garbage that a drive cannot end alone. It becomes a repair row, which
// stays until every holder has let go, as the register's dead list does. All garbage also hints at tombstones.
// What is removed because its time lies in the future goes into future.
func (h *Healer) wideGarbage(ctx context.Context, d node.Drive, get func(metadata.Address) *task, future map[erasure.DataID]bool) error {
	list, err := d.Garbage(ctx, time.Unix(0, math.MaxInt64), garbagePage) // whatever its age
	if err != nil {
		return err
	}
	ahead := h.c.Now().Add(clockSkew).UnixNano()
	var done []metadata.GarbageRow
	for i := range list {
		g := &list[i]
		h.hintTomb(&g.Address)
		if !wide(&g.Dead) {
			// The drive's own to remove, unless the clock was set back: then it would wait until its time has
			// come again, and the grace begins anew with this process.
			if g.At > ahead && h.graceOver(g.Dead.Data.ID) {
				if err := d.DeleteShard(ctx, g.Address, g.Dead.Data.ID, 0, g.Guard); err != nil && !errs.Is(err, errs.NotFound) {
					h.c.Logger.Debug("garbage from the future stays", "drive", d.Num(), "err", err)
					continue
				}
				future[g.Dead.Data.ID] = true
				done = append(done, *g)
			}
			continue
		}
		if g.Address.Kind == metadata.KindPart {
			// A part's register lists nothing as dead once it is gone: its garbage row is all there is.
			if h.graceOver(g.Dead.Data.ID) && h.dead(ctx, g) == nil {
				done = append(done, *g)
				h.forget(g.Dead.Data.ID)
			}
			continue
		}
		row := metadata.RepairRow{Address: g.Address, Partition: g.Partition, Positions: []uint8{0}, Asked: metadata.NewAsked()}
		if err := d.AddRepair(ctx, row); err != nil {
			return err
		}
		h.graceOver(g.Dead.Data.ID) // the grace begins now
		t := get(g.Address)
		t.repair = append(t.repair, asked{d.Num(), row.Asked, row.Positions})
		if !slices.Contains(t.positions, row.Positions[0]) {
			t.positions = append(t.positions, row.Positions[0])
		}
		done = append(done, *g)
	}
	if len(done) == 0 {
		return nil
	}
	return d.ClearGarbage(ctx, done)
}

// clockSkew is how far ahead of the clock a time may lie that a drive kept before the clock counts as set back.
const clockSkew = time.Minute

// garbagePage is how much of the garbage of a drive one pass looks at.
const garbagePage = 10_000

// forget drops the memory of dead data that is gone.
func (h *Healer) forget(id erasure.DataID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.since, id)
	h.progress.Removed++
}

// wide reports whether dead data has shards, or parts, that no drive finds by its own rows.
func wide(d *metadata.DeadData) bool { return d.Manifest || d.Data.Chunks() > 1 }

// graceOver reports whether dead data was met long enough ago by this process. What cannot be remembered waits
// until there is room.
func (h *Healer) graceOver(id erasure.DataID) bool {
	now := h.c.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	m, ok := h.since[id]
	if !ok || m.first.After(now) {
		if h.forgetUnasked(now); ok || len(h.since) < h.limits.graces {
			h.since[id] = met{now, now}
		}
		return false
	}
	m.last = now
	h.since[id] = m
	return now.Sub(m.first) >= h.c.Grace
}

// met is when dead data was first met, and when it was last asked for.
type met struct{ first, last time.Time }

// forgetUnasked drops, once in a while, the memory of dead data that nobody asks for any more: somebody else has
// removed it, or a pass that found it gone had no reason to say so. Where that is wrong its grace begins anew. The
// mutex is held.
func (h *Healer) forgetUnasked(now time.Time) {
	unasked := max(unaskedAfter, 2*h.c.Grace)
	if !passed(now, h.swept, unasked/2) {
		return
	}
	h.swept = now
	for id, m := range h.since {
		if passed(now, m.last, unasked) {
			delete(h.since, id)
		}
	}
}

// unaskedAfter is how long dead data is remembered that nobody asks for: longer than what failed waits.
const unaskedAfter = time.Hour
