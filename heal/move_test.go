package heal

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// plans is a control plane's part in moves.
type plans struct {
	w         *world
	mu        sync.Mutex // guards the fields below
	plan      *MovePlan
	term      uint64
	last      uint64
	elsewhere bool
	// fail ends a call of a name with an error before it does anything; nil: none.
	fail func(call string) error
}

func (p *plans) Plan() (MovePlan, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plan == nil {
		return MovePlan{}, false
	}
	c := *p.plan
	c.Moves, c.Leaving = slices.Clone(c.Moves), slices.Clone(c.Leaving)
	c.Lost, c.Elsewhere = p.w.replaces.isRetired, p.elsewhere
	return c, true
}

// open opens a plan.
func (p *plans) open(list []placement.Move, leaving ...uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last += 1000 // apart from the replacements
	p.plan = &MovePlan{ID: p.last, Begun: p.w.clock.now(), Total: len(list), Leaving: leaving}
	for _, m := range list {
		p.plan.Moves = append(p.plan.Moves, PlannedMove{Move: m})
	}
}

// step runs f on the plan if term is its present one.
func (p *plans) step(call string, id, term uint64, f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		if err := p.fail(call); err != nil {
			return err
		}
	}
	switch {
	case p.plan == nil || p.plan.ID != id:
		return errs.E("test", errs.NotFound, "no such plan")
	case term != p.term:
		return errs.E("test", errs.Stale, "taken over")
	}
	err := f()
	if len(p.plan.Moves) == 0 && len(p.plan.Leaving) == 0 {
		p.plan = nil
	}
	return err
}

func (p *plans) TakeOverPlan(_ context.Context, id uint64) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.term++
	return p.term, nil
}

func (p *plans) at(m placement.Move) *PlannedMove {
	i := slices.IndexFunc(p.plan.Moves, func(x PlannedMove) bool { return x.Move == m })
	if i < 0 {
		return nil
	}
	return &p.plan.Moves[i]
}

func (p *plans) BeginMoves(_ context.Context, id, term uint64, list []placement.Move) error {
	return p.step("begin", id, term, func() error {
		for _, m := range list {
			if x := p.at(m); x.State == MovePlanned {
				x.State = MoveBegun
			}
		}
		return nil
	})
}

func (p *plans) PublishMoves(_ context.Context, id, term uint64, list []placement.Move, spreads []int, _ []metadata.Fence) error {
	return p.step("publish", id, term, func() error {
		var todo []placement.Move
		var fs []int
		for i, m := range list {
			switch x := p.at(m); {
			case x.State == MovePlanned:
				return errs.E("test", errs.Invalid, "a move was not begun")
			case x.State == MoveBegun && p.succeeds(m):
				if err := p.succeed(m); err != nil {
					return err
				}
			case x.State == MoveBegun:
				todo, fs = append(todo, m), append(fs, spreads[i])
			}
		}
		if len(todo) == 0 {
			return nil
		}
		return p.w.relayout(func(l *placement.Layout) (*placement.Layout, error) {
			n, err := l.Move(todo, fs)
			for _, m := range todo {
				if err == nil {
					x := p.at(m)
					x.State, x.At = MovePublished, n.Number()
				}
			}
			return n, err
		})
	})
}

func (p *plans) MovesDone(_ context.Context, id, term uint64, list []placement.Move) error {
	return p.step("done", id, term, func() error {
		p.plan.Moves = slices.DeleteFunc(p.plan.Moves, func(x PlannedMove) bool { return slices.Contains(list, x.Move) })
		p.plan.Done += len(list)
		return p.w.relayout(func(l *placement.Layout) (*placement.Layout, error) { return l.Moved(list), nil })
	})
}

func (p *plans) ReleaseDrive(_ context.Context, id, term uint64, num uint16) error {
	return p.step("release", id, term, func() error {
		p.plan.Leaving = slices.DeleteFunc(p.plan.Leaving, func(n uint16) bool { return n == num })
		return p.w.relayout(func(l *placement.Layout) (*placement.Layout, error) { return l.Without(num) })
	})
}

// plan gives the world plans. Each new healer has them, too.
func (w *world) planned() *plans {
	p := &plans{w: w}
	w.healer.c.Moves = p
	return p
}

// drain moves everything that a drive has to others, in turn.
func (w *world) drain(num uint16) (list []placement.Move) {
	l := w.control.Layout()
	for i, p := range l.PartitionsOf(num) {
		g := l.Group(p)
		var free []uint16
		for _, d := range l.Drives() {
			if g.Position(d.Num) < 0 {
				free = append(free, d.Num)
			}
		}
		list = append(list, placement.Move{Partition: p, Position: g.Position(num), From: num, To: free[i%len(free)]})
	}
	return list
}

// moved works until the plan is over, and until nothing is left where it does not belong.
func (w *world) moved(p *plans) {
	w.t.Helper()
	for range 30 {
		if _, ok := p.Plan(); !ok {
			for range 3 {
				w.clock.pass(2 * time.Minute)
				w.upkeep()
			}
			return
		}
		w.clock.pass(time.Minute)
		w.upkeep()
		if err := w.healer.work(context.Background()); err != nil {
			w.t.Fatal(err)
		}
	}
	plan, _ := p.Plan()
	w.t.Fatalf("the moves do not end: %+v\n%+v", plan.Moves, w.healer.Status())
}

// displaced returns the shards that lie where they do not belong, after a collection of orphans. What a drive lists
// as its own garbage is not among them: it removes that by itself.
func (w *world) displaced() (list []string) {
	w.t.Helper()
	for range 3 {
		w.clock.pass(25 * time.Hour)
		w.upkeep()
	}
	l := w.control.Layout()
	for num := range w.down {
		d, ok := w.set.Shards(uint16(num))
		if _, there := l.Drive(uint16(num)); !ok || !there {
			continue
		}
		rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 10000)
		if err != nil {
			w.t.Fatal(err)
		}
		garbage, err := d.Garbage(context.Background(), w.clock.now().Add(time.Hour), 10000)
		if err != nil {
			w.t.Fatal(err)
		}
		listed := make(map[erasure.DataID]bool)
		for _, g := range garbage {
			listed[g.Dead.Data.ID] = true
		}
		for i := range rows {
			if !listed[rows[i].ID.Data] && displaced(l, uint16(num), &rows[i]) {
				list = append(list, fmt.Sprintf("drive %d: %v", num, rows[i].ID))
			}
		}
	}
	return list
}

// enough fails unless all objects can be read whichever single drive is away.
func (w *world) enough(want map[string][]byte) {
	w.t.Helper()
	for num := range w.down {
		if _, ok := w.set.Shards(uint16(num)); !ok {
			continue
		}
		w.down[num].Store(true)
		for key, body := range want {
			w.reads(key, body)
		}
		w.down[num].Store(false)
	}
}

func TestADrainedDriveIsEmptyAndLeaves(t *testing.T) {
	w := newWorldOf(t, object.Enabled, 6)
	want := w.fill(24)
	w.delete("key-007")
	delete(want, "key-007")
	w.heal()
	p := w.planned()
	p.open(w.drain(2), 2)
	w.moved(p)
	l := w.control.Layout()
	if _, ok := l.Drive(2); ok || len(l.Moving()) > 0 {
		t.Fatalf("drive 2 is still in the layout, or shards are moving: %v", l.Moving())
	}
	j := w.healer.Status().Jobs
	i := slices.IndexFunc(j, func(j Job) bool { return j.Kind == KindMove })
	if i < 0 || j[i].State != JobDone || j[i].Shards == 0 || j[i].Swaps == 0 || j[i].Bad != 0 {
		t.Errorf("the job: %+v", j)
	} else {
		t.Logf("%d changes of members", j[i].Swaps)
	}
	w.heal()
	w.equalDigests()
	w.same(want)
	w.enough(want)
	if list := w.displaced(); len(list) > 0 {
		t.Errorf("shards lie where they do not belong: %v", list)
	}
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after the moves: %+v", s)
	}
}

// Positions go to other drives, and come back by another plan. What was there is overwritten, deleted and dropped
// meanwhile; nothing comes back with them.
func TestMovesThereAndBackLeaveNothing(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(24)
	w.heal()
	p := w.planned()
	there := w.drain(1)
	p.open(there)
	w.moved(p)
	if list := w.displaced(); len(list) > 0 {
		t.Errorf("drive 1 let not go of %v", list)
	}
	for i := range 24 {
		key := fmt.Sprintf("key-%03d", i)
		if _, ok := want[key]; !ok {
			continue
		}
		switch i % 3 {
		case 0:
			w.delete(key)
			delete(want, key)
		case 1:
			want[key] = w.put(key, []int{60, 300 << 10, 6000}[i%3])
		}
	}
	for range 4 {
		w.heal()
		w.upkeep()
	}
	var back []placement.Move
	for _, m := range there {
		back = append(back, placement.Move{Partition: m.Partition, Position: m.Position, From: m.To, To: m.From})
	}
	p.open(back)
	w.moved(p)
	for range 3 {
		w.heal()
		w.upkeep()
	}
	w.equalDigests()
	w.same(want)
	w.enough(want)
	for i := range 24 {
		key := fmt.Sprintf("key-%03d", i)
		if _, ok := want[key]; ok {
			continue
		}
		if _, err := w.store.Get(context.Background(), "bkt", key, object.GetOptions{}); !errs.Is(err, errs.NotFound) {
			t.Errorf("%s, which was deleted: %v", key, err)
		}
	}
	if list := w.displaced(); len(list) > 0 {
		t.Errorf("shards lie where they do not belong: %v", list)
	}
}

// The shards are where they were until they have moved, and readers find them; also with others away.
func TestReadersLookAtTheFormerPlace(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(20)
	w.heal()
	p := w.planned()
	p.open(w.drain(1))
	m := p.mover()
	if err := w.healer.moveMembers(context.Background(), m, false); err != nil {
		t.Fatal(err)
	}
	if len(w.control.Layout().Moving()) == 0 {
		t.Fatal("nothing is moving")
	}
	w.enough(want)
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows for shards that are on their way", n)
	}
	// Overwritten, a body is dead on the former drive as well.
	for key := range want {
		want[key] = w.put(key, len(want[key])+1)
	}
	w.moved(p)
	for range 4 {
		w.heal()
		w.upkeep()
	}
	w.equalDigests()
	w.same(want)
	if list := w.displaced(); len(list) > 0 {
		t.Errorf("shards lie where they do not belong: %v", list)
	}
}

// The former drive is lost before its shards have moved.
func TestALostFormerDriveIsRebuiltFromTheOthers(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	want := w.fill(20)
	w.heal()
	p := w.planned()
	list := w.drain(1)
	p.open(list[:len(list)/2+1])
	m := p.mover()
	if err := w.healer.moveMembers(context.Background(), m, false); err != nil {
		t.Fatal(err)
	}
	w.replace(1, 9)
	w.rebuilt()
	w.moved(p)
	w.heal()
	w.heal()
	w.equalDigests()
	w.same(want)
	w.enough(want)
}

// Whatever call of the control plane fails, in whatever phase, the next try goes on. A later term is begun in
// between: what the earlier mover still wants is refused.
func TestAMoverThatEndsInAnyPhaseIsContinued(t *testing.T) {
	for _, call := range []string{"begin", "publish", "done", "release"} {
		t.Run(call, func(t *testing.T) {
			w := newWorldOf(t, object.Unversioned, 5)
			want := w.fill(10)
			w.heal()
			p := w.planned()
			w.healer.moving.batch = 2
			n := 0
			p.fail = func(c string) error {
				if c != call {
					return nil
				}
				if n++; n%2 == 1 && n < 6 {
					return errs.E("test", errs.Unavailable, "no leader")
				}
				return nil
			}
			p.open(w.drain(1), 1)
			for range 6 {
				_ = w.healer.work(context.Background())
				if call != "publish" { // else partitions stand still
					w.enoughOnce(want)
				}
				w.reborn()
				w.healer.c.Moves = p
				w.healer.moving.batch = 2
			}
			w.moved(p)
			w.heal()
			w.equalDigests()
			w.same(want)
		})
	}
}

// enoughOnce fails unless all objects can be read with all drives.
func (w *world) enoughOnce(want map[string][]byte) {
	w.t.Helper()
	for key, body := range want {
		w.reads(key, body)
	}
}

// timed measures changes of members by the wall clock: that of the world stands still.
type timed struct {
	Mover
	n            int
	all, longest time.Duration
}

func (m *timed) Swap(ctx context.Context, s metadata.Swap) (metadata.SwapReport, error) {
	begun := time.Now()
	r, err := m.Mover.Swap(ctx, s)
	d := time.Since(begun)
	m.n++
	m.all += d
	m.longest = max(m.longest, d)
	return r, err
}

// underLoad runs f while writers, readers and listers go on, with bodies of these sizes, and enters in want what they leave.
// Then it heals. It returns how many operations there were.
func (w *world) underLoad(sizes []int, want map[string][]byte, f func()) (ops int) {
	w.t.Helper()
	ctx := context.Background()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex // guards want and ops
	for g := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("g%d-%03d", g, 7*i%20)
				body := w.operate(ctx, key, i, sizes)
				mu.Lock()
				if want[key] = body; body == nil {
					delete(want, key)
				}
				ops++
				mu.Unlock()
			}
		})
	}
	f()
	close(stop)
	wg.Wait()
	for range 4 {
		w.heal()
		w.upkeep()
	}
	return ops
}

// operate is the i-th operation on a key: it is deleted, or written, read and listed. It returns what the key holds then.
func (w *world) operate(ctx context.Context, key string, i int, sizes []int) []byte {
	if i%5 == 4 {
		if _, err := w.store.Delete(ctx, "bkt", key, object.DeleteOptions{}); err != nil {
			w.t.Errorf("delete: %v", err)
		}
		return nil
	}
	body := bytes.Repeat([]byte{byte(i)}, sizes[i%len(sizes)])
	if _, err := w.store.Put(ctx, "bkt", key, bytes.NewReader(body), object.PutOptions{Size: int64(len(body))}); err != nil {
		w.t.Errorf("put: %v", err)
	}
	obj, err := w.store.Get(ctx, "bkt", key, object.GetOptions{})
	if err != nil {
		w.t.Errorf("get: %v", err)
		return body
	}
	var got bytes.Buffer
	if _, err := obj.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), body) {
		w.t.Errorf("%s: %d bytes, not %d: %v", key, got.Len(), len(body), err)
	}
	obj.Close()
	page, err := w.store.List(ctx, "bkt", object.ListOptions{Prefix: key, Limit: 2})
	if err != nil || len(page.Objects) != 1 {
		w.t.Errorf("list of %s: %d, %v", key, len(page.Objects), err)
	}
	return body
}

// Writers, readers and listers go on while a drive is drained.
func TestMovesUnderLoad(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 6)
	want := w.fill(20)
	w.heal()
	p := w.planned()
	w.healer.moving.batch = 2
	p.open(w.drain(3), 3)
	clock := &timed{Mover: w.healer.c.Mover}
	w.healer.c.Mover = clock
	ops := w.underLoad([]int{10, 3000, 300 << 10}, want, func() { w.moved(p) })
	t.Logf("%d operations meanwhile; %d changes of members, %v each, %v the longest", ops, clock.n, clock.all/time.Duration(max(clock.n, 1)), clock.longest)
	w.equalDigests()
	w.same(want)
	if _, ok := w.control.Layout().Drive(3); ok {
		t.Error("the drive is still in the layout")
	}
}

// The process ends at any operation on any file, and the power with it. Another one goes on.
func TestMovesSurviveACrashAtAnyOperation(t *testing.T) {
	seed := seedOf(t)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	rounds := 3
	if testing.Short() {
		rounds = 2
	}
	limit := int64(400)
	for round := range rounds {
		crashed := false
		t.Run(fmt.Sprint("round ", round), func(t *testing.T) {
			w := newWorldOf(t, object.Unversioned, 5)
			want := w.fill(12)
			w.heal()
			p := w.planned()
			p.open(w.drain(1), 1)
			w.vanish(2, "key-006") // something to heal besides
			w.ask(3, "key-006")
			w.stop()
			var mu sync.Mutex // guards left and armed
			left, armed := rng.Int64N(limit), false
			faulty := errorfs.Wrap(w.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				if !armed {
					return nil
				}
				if left--; left < 0 {
					crashed = true
					return errorfs.ErrInjected
				}
				return nil
			}))
			w.crashed = true
			w.start(faulty)
			w.healer.c.Moves = p
			w.healer.moving.batch = 3
			mu.Lock()
			armed = true
			mu.Unlock()
			_ = w.healer.Pass(context.Background())
			for range 4 {
				_ = w.healer.work(context.Background())
				w.clock.pass(time.Minute)
				_ = w.healer.upkeep(context.Background())
			}
			mu.Lock()
			after := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			mu.Unlock()
			w.stop()
			w.fs, w.crashed = after, false
			w.start(w.fs)
			w.healer.c.Moves = p
			w.moved(p)
			for range 3 {
				w.heal()
			}
			w.equalDigests()
			w.same(want)
			if n := w.repairs(); n != 0 {
				t.Errorf("%d repair rows are left", n)
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
		if !crashed {
			limit = max(limit/2, 50)
		} else {
			limit += limit / 8
		}
	}
}

// late holds the first Accept that names a body until it is let go.
type late struct {
	*world
	reached chan *metadata.AcceptRequest
	go_     chan struct{}
	once    sync.Once
}

type lateDrive struct {
	metadata.Replica
	o *late
}

func (o *late) Replica(num uint16) (metadata.Replica, bool) {
	d, ok := o.world.Replica(num)
	return lateDrive{d, o}, ok
}

func (d lateDrive) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	if m.State.Current != nil && string(m.Address.Key) == "big" {
		d.o.once.Do(func() { d.o.reached <- m })
		<-d.o.go_
	}
	return d.Replica.Accept(ctx, m)
}

// A later chunk was pinned on a drive that gives its position away before any record names the body. The walk passes
// the register first. What is accepted then must not count the shard there.
func TestAPinnedShardOfAWriteUnderWayIsNotLeftBehind(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 5)
	w.fill(6)
	w.heal()
	ctx := context.Background()
	w.settle() // nobody looks for its drives while they change
	o := &late{world: w, reached: make(chan *metadata.AcceptRequest, 1), go_: make(chan struct{})}
	letGo := sync.OnceFunc(func() { close(o.go_) })
	defer letGo() // also if what follows fails: the world waits for its writes
	w.meta.Replicas = o
	// The healer is another process, as far as the register knows.
	other := metadata.NewClient(metadata.ClientConfig{Replicas: w, Now: w.clock.now, SettleAfter: 50 * time.Millisecond})
	w.healer.c.Meta, w.healer.c.Mover = other, other
	body := bytes.Repeat([]byte("pinned "), 400<<10) // eleven chunks: they do not all lie with the key
	done := make(chan error, 1)
	go func() { // ends with the write, which the channel below lets go
		_, err := w.store.Put(ctx, "bkt", "big", bytes.NewReader(body), object.PutOptions{Size: int64(len(body))})
		done <- err
	}()
	m := <-o.reached
	l := w.control.Layout()
	key := l.PartitionOf(1, []byte("big"))
	var list []placement.Move
	for i := uint32(1); i < m.State.Current.Data.Chunks(); i++ {
		g := l.Group(l.ChunkPartition(m.State.Current.Data.ID, i, key))
		if g.Partition == key || slices.ContainsFunc(list, func(x placement.Move) bool { return x.Partition == g.Partition }) {
			continue
		}
		for _, d := range l.Drives() {
			if g.Position(d.Num) < 0 {
				list = append(list, placement.Move{Partition: g.Partition, Position: 1, From: g.Drives[1], To: d.Num})
			}
		}
	}
	if len(list) == 0 {
		t.Fatal("no chunk lies elsewhere than the key")
	}
	p := w.planned()
	p.open(list)
	for range 10 {
		if _, ok := p.Plan(); !ok {
			break
		}
		if err := w.healer.work(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if plan, ok := p.Plan(); ok {
		t.Fatalf("the moves do not end: %+v %+v", plan, w.healer.Status())
	}
	letGo()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.meta.Replicas = w
	in, err := w.store.Inspect(ctx, "bkt", "big", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range in.Shards {
		if s.Status != object.ShardPresent && w.repairs() == 0 {
			t.Errorf("shard %+v is missing, and nobody knows", s)
		}
	}
	for range 3 {
		w.heal()
		w.upkeep()
	}
	w.reads("big", body)
	w.whole("big")
	if err := other.Close(ctx); err != nil {
		t.Fatal(err)
	}
}
