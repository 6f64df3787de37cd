package heal

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// replaces is a control plane's part in replacements.
type replaces struct {
	mu      sync.Mutex // guards the fields below
	open    []Replacement
	terms   map[uint64]uint64
	retired []uint16
}

func (r *replaces) list() []Replacement {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.open)
}

func (r *replaces) isRetired(num uint16) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.retired, num)
}

// step runs f on a replacement if term is its present one.
func (w *world) step(id, term uint64, f func(r *Replacement) error) error {
	w.replaces.mu.Lock()
	defer w.replaces.mu.Unlock()
	i := slices.IndexFunc(w.replaces.open, func(r Replacement) bool { return r.ID == id })
	if i < 0 {
		return errs.E("test", errs.NotFound, "no such replacement")
	}
	if w.replaces.terms[id] != term {
		return errs.E("test", errs.Stale, "taken over")
	}
	return f(&w.replaces.open[i])
}

func (w *world) relayout(f func(*placement.Layout) (*placement.Layout, error)) error {
	w.control.mu.Lock()
	defer w.control.mu.Unlock()
	l, err := f(w.control.layout)
	if err == nil {
		w.control.layout = l
	}
	return err
}

func (w *world) TakeOver(_ context.Context, id uint64) (uint64, error) {
	w.replaces.mu.Lock()
	defer w.replaces.mu.Unlock()
	w.replaces.terms[id]++
	return w.replaces.terms[id], nil
}

func (w *world) PublishSwap(_ context.Context, id, term uint64, partitions []uint32) error {
	return w.step(id, term, func(r *Replacement) error {
		return w.relayout(func(l *placement.Layout) (*placement.Layout, error) { return l.Swap(r.Old, r.New, partitions) })
	})
}

func (w *world) FinishMembership(_ context.Context, id, term uint64) error {
	return w.step(id, term, func(r *Replacement) error {
		r.Joined = true
		return w.relayout(func(l *placement.Layout) (*placement.Layout, error) {
			if _, ok := l.Drive(r.Old); !ok {
				return l, nil
			}
			return l.WithoutLost(r.Old)
		})
	})
}

func (w *world) FinishReplace(_ context.Context, id, term uint64) error {
	return w.step(id, term, func(r *Replacement) error {
		w.replaces.open = slices.DeleteFunc(w.replaces.open, func(r Replacement) bool { return r.ID == id })
		return nil
	})
}

// replace retires a drive, and puts an empty one in its place.
func (w *world) replace(old, num uint16) {
	w.t.Helper()
	id := disk.NewID()
	w.replaces.mu.Lock()
	w.replaces.retired = append(w.replaces.retired, old)
	if w.replaces.terms == nil {
		w.replaces.terms = make(map[uint64]uint64)
	}
	w.replaces.mu.Unlock()
	if err := w.relayout(func(l *placement.Layout) (*placement.Layout, error) {
		return l.WithDrive(placement.Drive{Num: num, ID: id})
	}); err != nil {
		w.t.Fatal(err)
	}
	var path string
	for _, p := range w.set.Status() {
		if p.Num == old {
			path = p.Path
		}
	}
	if err := w.set.Retire(context.Background(), old); err != nil {
		w.t.Fatal(err)
	}
	list, err := w.fs.List(path)
	for _, name := range list {
		if err == nil {
			err = w.fs.RemoveAll(w.fs.PathJoin(path, name))
		}
	}
	if err == nil {
		err = w.set.Adopt(context.Background(), path, disk.Identity{Cluster: w.set.Cluster(), Drive: id, Num: num})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.replaces.mu.Lock()
	w.replaces.open = append(w.replaces.open, Replacement{ID: uint64(num), Old: old, New: num, Begun: w.clock.now()})
	w.replaces.mu.Unlock()
}

// rebuilt works until no replacement is left.
func (w *world) rebuilt() {
	w.t.Helper()
	for range 20 {
		if len(w.replaces.list()) == 0 {
			return
		}
		w.clock.pass(time.Minute)
		w.upkeep() // a member that was away joins again
		if err := w.healer.work(context.Background()); err != nil {
			w.t.Fatal(err)
		}
	}
	w.t.Fatalf("the replacement does not end: %+v", w.healer.Status())
}

// same fails unless the objects are as wanted, with all rows and shards, and any two drives suffice.
func (w *world) same(want map[string][]byte) {
	w.t.Helper()
	for key := range want {
		w.whole(key)
	}
	l := w.control.Layout()
	for _, a := range l.Drives() {
		for _, b := range l.Drives() {
			if a.Num >= b.Num || l.N() < len(l.Drives()) {
				continue
			}
			w.down[a.Num].Store(true)
			w.down[b.Num].Store(true)
			for key, body := range want {
				w.reads(key, body)
			}
			w.down[a.Num].Store(false)
			w.down[b.Num].Store(false)
		}
	}
}

func (w *world) reads(key string, want []byte) {
	w.t.Helper()
	obj, err := w.store.Get(context.Background(), "bkt", key, object.GetOptions{})
	if err != nil {
		w.t.Fatalf("%s: %v", key, err)
	}
	defer obj.Close()
	var got bytes.Buffer
	if _, err := obj.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
		w.t.Fatalf("%s: %d bytes, not %d, %v", key, got.Len(), len(want), err)
	}
}

// equalDigests fails unless all members hold the same rows.
func (w *world) equalDigests() {
	w.t.Helper()
	l := w.control.Layout()
	here, away := w.healer.members(l)
	if len(away) > 0 {
		w.t.Fatalf("drives %v are away", away)
	}
	for _, d := range here {
		differ, err := w.healer.differing(context.Background(), l, d, here)
		if err != nil || len(differ) > 0 {
			w.t.Errorf("drive %d differs in %d slices: %v", d.Num(), len(differ), err)
		}
	}
}

func TestReplacedDriveIsRebuiltAndVerified(t *testing.T) {
	for _, drives := range []int{4, 6} {
		t.Run(fmt.Sprint(drives, " drives"), func(t *testing.T) {
			w := newWorldOf(t, object.Enabled, drives)
			want := w.fill(40)
			w.delete("key-007")
			delete(want, "key-007")
			w.heal()
			w.replace(1, 9)
			want["late"] = w.put("late", 700<<10) // before the newcomer is a member
			w.rebuilt()
			s := w.healer.Status()
			if len(s.Jobs) == 0 {
				t.Fatalf("no job: %+v", s)
			}
			i := slices.IndexFunc(s.Jobs, func(j Job) bool { return j.Kind == KindRebuild })
			if j := s.Jobs[i]; j.State != JobDone || j.Drive != 9 || j.Done < int64(len(want)) || j.Shards < 30 || j.Bytes == 0 || j.Bad != 0 {
				t.Errorf("the job: %+v", j)
			}
			w.heal()
			w.equalDigests()
			w.same(want)
			if s := w.check(); s.State != StateHealthy {
				t.Errorf("after the rebuild: %+v", s)
			}
		})
	}
}

func TestRebuildGoesOnWhereItWasAfterRestarts(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := map[string][]byte{}
	for i := range 3*walkPage + 20 {
		k := fmt.Sprintf("k%05d", i)
		want[k] = w.put(k, 20)
	}
	w.heal()
	w.replace(2, 7)
	counted := &sealing{world: w}
	for pages := 0; len(w.replaces.list()) > 0; pages++ {
		if pages > 10 {
			t.Fatalf("%+v", w.healer.Status())
		}
		w.reborn() // a new process: only what is durable is known
		w.healer.c.Drives = counted
		ctx, cancel := context.WithCancel(context.Background())
		counted.stop, counted.now = cancel, 0
		_ = w.healer.work(ctx) // ends after a page or so
		cancel()
	}
	if n := counted.seals; n < len(want) || n > len(want)+len(want)/2 {
		t.Errorf("%d shards were sealed for %d objects", n, len(want))
	}
	w.heal()
	w.equalDigests()
	for _, k := range []string{"k00000", "k00700", "k01555"} {
		w.whole(k)
	}
}

// sealing ends the process after each batch of seals.
type sealing struct {
	*world
	stop       func()
	seals, now int // in all, and since the last restart
}

type sealingDrive struct {
	node.Drive
	s *sealing
}

func (d sealingDrive) SealInline(ctx context.Context, list []disk.InlineSeal) error {
	d.s.seals += len(list)
	d.s.now += len(list)
	return d.Drive.SealInline(ctx, list)
}

func (d sealingDrive) SetJob(ctx context.Context, name string, value []byte) error {
	err := d.Drive.SetJob(ctx, name, value)
	if name == jobRebuild && d.s.now > 0 && value != nil {
		d.s.stop()
	}
	return err
}

func (s *sealing) Shards(num uint16) (node.Drive, bool) {
	d, ok := s.world.Shards(num)
	return sealingDrive{d, s}, ok
}

func TestRebuildUnderWritersAndAnotherLoss(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fill(30)
	w.heal()
	w.replace(3, 8)
	ctx := context.Background()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex // guards want
	for g := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("key-%03d", (7*i+g)%40)
				if i%40%2 != g {
					continue // each key has one writer
				}
				key = fmt.Sprintf("g%d-%s", g, key)
				if i%5 == 4 {
					if _, err := w.store.Delete(ctx, "bkt", key, object.DeleteOptions{}); err != nil {
						t.Errorf("delete: %v", err)
					}
					mu.Lock()
					delete(want, key)
					mu.Unlock()
					continue
				}
				body := bytes.Repeat([]byte{byte(i)}, []int{10, 3000, 300 << 10}[i%3])
				if _, err := w.store.Put(ctx, "bkt", key, bytes.NewReader(body), object.PutOptions{Size: int64(len(body))}); err != nil {
					t.Errorf("put: %v", err)
				}
				mu.Lock()
				want[key] = body
				mu.Unlock()
			}
		})
	}
	w.rebuilt()
	close(stop)
	wg.Wait()
	for range 4 {
		w.heal()
		w.upkeep()
	}
	w.equalDigests()
	w.same(want)
}

func TestRebuildWaitsForADriveThatIsLostMeanwhile(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fill(20)
	w.heal()
	w.replace(1, 6)
	w.healer.c.Drives = w
	if err := w.healer.moveIn(context.Background(), w.mover(6)); err != nil {
		t.Fatal(err)
	}
	w.down[2].Store(true)
	for range 3 {
		if err := w.healer.work(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	s := w.healer.Status()
	if len(w.replaces.list()) != 1 || len(s.Jobs) == 0 || s.Jobs[0].State != JobWaiting || s.Jobs[0].Phase != PhaseVerify || s.Jobs[0].Done == 0 {
		t.Fatalf("with another drive away: %+v", s)
	}
	w.down[2].Store(false)
	w.rebuilt()
	w.heal()
	w.heal()
	w.equalDigests()
	w.same(want)
}

// mover takes a replacement over, as a process that died in the middle of it did.
func (w *world) mover(num uint16) *rebuild {
	r := w.replaces.list()[0]
	term, err := w.TakeOver(context.Background(), r.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return &rebuild{r: r, term: term}
}

// An overwrite or a delete while a shard of the old body is on its way leaves an orphan at most.
func TestShardsOfBodiesThatDiedMeanwhileAreOrphans(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100)
	w.put("big", 700<<10)
	w.heal()
	old := []erasure.DataID{w.dataOf("k"), w.dataOf("big")}
	w.replace(1, 6)
	racing := &overwriting{world: w, do: func() {
		w.put("k", 200)
		w.delete("big")
		w.settle()
	}}
	w.healer.c.Drives = racing
	w.rebuilt()
	w.healer.c.Drives = w
	if racing.do != nil {
		t.Fatal("nothing was overwritten")
	}
	for range 4 {
		w.heal()
		w.upkeep()
		w.clock.pass(25 * time.Hour)
	}
	for i, id := range old { // on each drive its own garbage is its sweeper's; the newcomer has no row that let go of it
		d, _ := w.Shards(6)
		rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.ID.Data == id {
				t.Errorf("body %d: the newcomer still has %v", i, r.ID)
			}
		}
	}
	w.whole("k")
	w.equalDigests()
}

// overwriting runs do between the reading of the rows and the first seal on a drive.
type overwriting struct {
	*world
	mu sync.Mutex // guards do
	do func()
}

type overwritingDrive struct {
	node.Drive
	o *overwriting
}

func (d overwritingDrive) SealInline(ctx context.Context, list []disk.InlineSeal) error {
	d.o.mu.Lock()
	do := d.o.do
	d.o.do = nil
	d.o.mu.Unlock()
	if do != nil {
		do()
	}
	return d.Drive.SealInline(ctx, list)
}

func (o *overwriting) Shards(num uint16) (node.Drive, bool) {
	d, ok := o.world.Shards(num)
	return overwritingDrive{d, o}, ok
}

// seedOf draws the seed of a test, or takes it from OSTRAKA_SEED.
func seedOf(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("OSTRAKA_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = v
	}
	return seed
}

// The process ends at any operation on any file, and the power with it: what was not synced is lost in
// part. Another one goes on.
func TestHealAndReplaceSurviveACrashAtAnyOperation(t *testing.T) {
	seed := seedOf(t)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	limit := int64(400)
	for round := range rounds {
		crashed := false
		t.Run(fmt.Sprint("round ", round), func(t *testing.T) {
			w := newWorldOf(t, object.Unversioned, 4)
			want := w.fill(14)
			w.heal()
			w.replace(1, 6)
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
			mu.Lock()
			armed = true
			mu.Unlock()
			_ = w.healer.Pass(context.Background())
			_ = w.healer.work(context.Background())
			mu.Lock()
			after := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			mu.Unlock()
			w.stop()
			w.fs, w.crashed = after, false
			w.start(w.fs)
			for _, p := range w.set.Status() {
				if !p.Open {
					t.Fatalf("%s does not open: %v", p.Path, p.Err)
				}
			}
			w.rebuilt()
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

var _ metadata.Replicas = (*world)(nil)

// Two drives are lost: both newcomers move in before the first has its shards.
func TestTwoReplacementsAtOnce(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fill(20)
	w.heal()
	w.replace(1, 6)
	w.replace(2, 7)
	w.rebuilt()
	w.heal()
	w.equalDigests()
	w.same(want)
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after both: %+v", s)
	}
}

// publishing fails to publish a number of times, which leaves partitions wedged.
type publishing struct {
	*world
	fails int
}

func (p *publishing) PublishSwap(ctx context.Context, id, term uint64, partitions []uint32) error {
	if p.fails > 0 {
		p.fails--
		return errs.E("test", errs.Unavailable, "no leader")
	}
	return p.world.PublishSwap(ctx, id, term, partitions)
}

func TestPausedHealingLeavesNoPartitionWedged(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fill(10)
	w.heal()
	w.healer.c.Control = &publishing{w, 1}
	w.replace(1, 9)
	w.check() // wedged, and not published
	w.healer.Configure(Settings{Paused: true})
	s := w.check()
	for key := range want {
		l := w.control.Layout()
		a := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(key)}
		if _, err := w.meta.Read(context.Background(), l.Group(l.PartitionOf(1, a.Key)), a, metadata.ReadOptions{BucketEpoch: 1}); err != nil {
			t.Errorf("%s, while healing is paused: %v", key, err)
		}
	}
	if r := w.replaces.list(); len(r) != 1 || !r[0].Joined || s.Jobs[0].State != JobPaused || s.Jobs[0].Done != 0 {
		t.Errorf("only the membership is to change: %+v", s.Jobs)
	}
	w.healer.Configure(Settings{})
	w.rebuilt()
	w.heal()
	w.same(want)
}

// Clients wait for a partition that is wedged no longer than for an election.
func TestSwapThatEndedInTheMiddleIsTriedAgainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, object.Unversioned, 4)
		w.fill(5)
		w.healer.c.Every = time.Hour
		w.healer.c.Control = &publishing{w, 3}
		w.replace(1, 9)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { w.healer.Run(ctx) })
		begun := time.Now() // virtual
		until(t, "the newcomer is a member", w, func(Status) bool {
			r := w.replaces.list()
			return len(r) == 0 || r[0].Joined
		})
		if d := time.Since(begun); d > 10*time.Second {
			t.Errorf("it took %v", d)
		}
		cancel()
		wg.Wait()
	})
}

func TestPartitionsThatCannotChangeDoNotHoldUpOthers(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 6)
	w.healer.limits.swapBatch = 1
	want := w.fill(5)
	w.heal()
	w.replace(1, 9)
	// The first partition of the old drive cannot change: two more of its members are away.
	l := w.control.Layout()
	away := 0
	for _, num := range l.Group(l.PartitionsOf(1)[0]).Drives {
		if num != 1 && away < 2 {
			w.down[num].Store(true)
			away++
		}
	}
	before := len(l.PartitionsOf(1))
	w.check()
	l = w.control.Layout()
	for _, p := range l.PartitionsOf(1) {
		here := 0
		for _, num := range l.Group(p).Drives {
			if num != 1 && !w.down[num].Load() {
				here++
			}
		}
		if here >= 2 {
			t.Errorf("partition %d has %d members here, and still waits", p, here)
		}
	}
	if left := len(l.PartitionsOf(1)); left == 0 || left == before {
		t.Fatalf("%d of %d partitions wait: this shows nothing", left, before)
	}
	for i := range w.down {
		w.down[i].Store(false)
	}
	w.rebuilt()
	w.upkeep() // those that were away join
	w.heal()
	w.heal()
	w.same(want)
}
