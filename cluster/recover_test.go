package cluster

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

func openStores(t *testing.T, stores map[uint16]*memKV) *Control {
	t.Helper()
	k, err := Open(context.Background(), Config{Drives: storesOf(stores)})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// crashed is what a crash leaves of stores.
func crashed(stores map[uint16]*memKV) map[uint16]*memKV {
	after := map[uint16]*memKV{}
	for num, kv := range stores {
		after[num] = kv.crash()
	}
	return after
}

// founded makes a cluster of n drives with some changes in it.
func founded(t *testing.T, n int) (*Control, map[uint16]*memKV) {
	t.Helper()
	stores := map[uint16]*memKV{}
	for i := range n {
		stores[uint16(i+1)] = newMemKV()
	}
	k := openStores(t, stores)
	if err := k.Init(context.Background(), [16]byte{9}, testLayout(t, n), Account{ID: "a"}, testKey); err != nil {
		t.Fatal(err)
	}
	createWithin(t, k, 5*time.Second, "aaa")
	createWithin(t, k, 5*time.Second, "bbb")
	b, _ := k.State().Bucket("aaa")
	if err := k.SetVersioning(context.Background(), b.ID, Enabled); err != nil {
		t.Fatal(err)
	}
	if err := k.SetSettings(context.Background(), Settings{HealRate: 77}); err != nil {
		t.Fatal(err)
	}
	return k, stores
}

// settle lets voters come and go before they are stopped: raft leaves futures behind that a bubble would
// wait for.
func settle(k *Control) {
	time.Sleep(5 * time.Second)
	k.Close()
}

// contentOf is what a state says, but for its index and generation.
func contentOf(s *State) []byte {
	bare := *s
	bare.Applied, bare.gen = 0, generation{}
	return bare.encode()
}

func wantContent(t *testing.T, what string, k *Control, want []byte) {
	t.Helper()
	if got := contentOf(k.State()); !bytes.Equal(got, want) {
		t.Fatalf("%s: the state is another; its buckets are %v", what, k.State().Buckets())
	}
}

// lossesOf returns every set of voters of n drives whose loss leaves no majority, and something here.
func lossesOf(n int) (list [][]uint16) {
	if votersWanted(n) == 1 {
		return [][]uint16{{1}}
	}
	list = [][]uint16{{1, 2}, {1, 3}, {2, 3}}
	if n > 3 {
		list = append(list, []uint16{1, 2, 3})
	}
	return list
}

func TestAControlPlaneWithoutAMajorityIsRecovered(t *testing.T) {
	for n := 2; n <= 6; n++ {
		for _, lost := range lossesOf(n) {
			for _, cold := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d drives, %v lost, after a restart: %v", n, lost, cold), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { recoverOne(t, n, lost, cold) })
				})
			}
		}
	}
}

func recoverOne(t *testing.T, n int, lost []uint16, cold bool) {
	ctx := context.Background()
	k, stores := founded(t, n)
	defer func() { settle(k) }()
	want := contentOf(k.State())
	gone := map[uint16]*memKV{}
	for _, num := range lost {
		gone[num] = stores[num]
		k.DriveLost(num)
		delete(stores, num)
	}
	gone = crashed(gone)
	if cold {
		stores = crashed(stores)
		settle(k)
		k = openStores(t, stores)
	}
	if _, err := k.BeginReplace(ctx, lost[0], newDrive(1), "/p"); !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
		t.Fatalf("without a majority BeginReplace says %v", err)
	}
	plan, err := k.PlanRecovery()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range plan.Former {
		if v.Here == slices.Contains(lost, v.Drive) {
			t.Errorf("the plan says %+v", v)
		}
	}
	done, err := k.Recover(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if done.Generation != 1 || plan.Generation != 1 || !slices.Equal(done.Drives, plan.Drives) || len(done.Drives) != votersWanted(len(stores)) {
		t.Fatalf("planned %+v, done %+v", plan, done)
	}
	wantContent(t, "after recovering", k, want)
	if on := votersOn(t, k); !slices.Equal(on, done.Drives) {
		t.Fatalf("the voters are on %v, and not on %v", on, done.Drives)
	}
	if _, err := k.Recover(ctx); !errs.Is(err, errs.Precondition) {
		t.Fatalf("a second time: %v, want Precondition", err)
	}

	r := begin(t, k, lost[0], newDrive(1))
	stores[r.New] = newMemKV()
	k.DriveReturned(DriveStore{r.New, stores[r.New]})
	createWithin(t, k, 5*time.Second, "ccc")
	want = contentOf(k.State())

	// Killed and started again, without the lost drives.
	stores = crashed(stores)
	settle(k)
	k = openStores(t, stores)
	wantContent(t, "after a restart", k, want)
	createWithin(t, k, 10*time.Second, "ddd")
	want = contentOf(k.State())

	// The lost drives return: to the process, and at a start.
	before, apart := votersOn(t, k), crashed(stores)
	returned := crashed(gone)
	for num, kv := range returned {
		k.DriveReturned(DriveStore{num, kv})
	}
	time.Sleep(10 * time.Second)
	wantContent(t, "with the lost drives", k, want)
	for _, on := range votersOn(t, k) {
		if slices.Contains(lost, on) && slices.Contains(before, on) {
			t.Fatalf("a voter on the lost drive %d has a vote", on)
		}
	}
	for num, kv := range returned {
		if !isOf(kv, k.State().gen.generationID) {
			t.Errorf("drive %d still has its former voter", num)
		}
		if s, err := readCopy(kv); err != nil || s.gen != k.State().gen {
			t.Errorf("the copy of drive %d is of another generation: %v", num, err)
		}
	}
	createWithin(t, k, 10*time.Second, "eee")
	settle(k)
	for num, kv := range crashed(gone) {
		apart[num] = kv
	}
	k = openStores(t, apart)
	createWithin(t, k, 10*time.Second, "fff")
	s := k.State()
	for _, name := range []string{"aaa", "bbb", "ccc", "ddd", "fff"} {
		if _, ok := s.Bucket(name); !ok {
			t.Errorf("%s is lost", name)
		}
	}
	if s.gen.number != 1 || len(s.Replacements()) != 1 || s.Settings().HealRate != 77 {
		t.Errorf("generation %d, replacements %v, %+v", s.gen.number, s.Replacements(), s.Settings())
	}
}

func TestRecoveryIsRefusedWhileAMajorityIsHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, stores := founded(t, 4)
		defer settle(k)
		refused := func(when string) {
			t.Helper()
			before := k.State()
			if _, err := k.Recover(context.Background()); !errs.Is(err, errs.Precondition) {
				t.Errorf("%s: got %v, want Precondition", when, err)
			}
			if k.State() != before {
				t.Errorf("%s: the state has changed", when)
			}
		}
		refused("with all drives")
		k.DriveLost(k.leader().num)
		refused("just after the leader was lost")
		time.Sleep(5 * time.Second)
		refused("with a new leader")
		createWithin(t, k, 5*time.Second, "ccc")
		after := crashed(stores)
		settle(k)
		again := openStores(t, map[uint16]*memKV{2: after[2], 3: after[3]})
		defer settle(again)
		if _, err := again.Recover(context.Background()); !errs.Is(err, errs.Precondition) {
			t.Errorf("before the first election: got %v, want Precondition", err)
		}
		none, err := Open(context.Background(), Config{Drives: drives(mem(2)...)})
		if err != nil {
			t.Fatal(err)
		}
		defer none.Close()
		if _, err := none.Recover(context.Background()); !errs.Is(err, errs.Unavailable) {
			t.Errorf("of nothing: got %v, want Unavailable", err)
		}
	})
}

// mortalKV is a store of a process that dies after some writes of all its stores.
type mortalKV struct {
	*memKV
	life *life
}

type life struct {
	mu   sync.Mutex
	left int // writes; -1: it lives
}

func (m mortalKV) Apply(b *metadata.Batch, sync bool) error {
	m.life.mu.Lock()
	defer m.life.mu.Unlock()
	if m.life.left == 0 {
		return errDrive
	}
	if m.life.left > 0 {
		m.life.left--
	}
	return m.memKV.Apply(b, sync)
}

// A process that dies after any write of a recovery loses nothing that was answered, and what it leaves
// is recovered again, with and without the lost drives.
func TestCrashesDuringARecovery(t *testing.T) {
	for _, n := range []int{2, 4, 5, 6} {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d drives, the lost ones return: %v", n, back), func(t *testing.T) {
				lost := lossesOf(n)[0]
				runs := 0
				for i, ended := 0, false; !ended; i++ {
					synctest.Test(t, func(t *testing.T) { ended = recoverAndDie(t, n, lost, i, back) })
					if runs++; t.Failed() || runs > 200 {
						t.Fatalf("after write %d", i)
					}
				}
				t.Logf("%d runs", runs)
			})
		}
	}
}

func recoverAndDie(t *testing.T, n int, lost []uint16, i int, back bool) (ended bool) {
	k, stores := founded(t, n)
	want := contentOf(k.State())
	settle(k)
	stores = crashed(stores)
	span := &life{left: -1}
	here, gone := map[uint16]*memKV{}, map[uint16]*memKV{}
	var list []DriveStore
	for _, d := range storesOf(stores) {
		if slices.Contains(lost, d.Num) {
			gone[d.Num] = stores[d.Num]
			continue
		}
		here[d.Num] = stores[d.Num]
		list = append(list, DriveStore{d.Num, mortalKV{stores[d.Num], span}})
	}
	k, err := Open(context.Background(), Config{Drives: list})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	span.mu.Lock()
	span.left = i
	span.mu.Unlock()
	_, err = k.Recover(context.Background())
	span.mu.Lock()
	ended = span.left > 0
	span.left = 0
	span.mu.Unlock()
	after := crashed(here)
	settle(k)
	if back {
		for num, kv := range crashed(gone) {
			after[num] = kv
		}
	}
	k = openStores(t, after)
	defer func() { settle(k) }()
	wantContent(t, fmt.Sprintf("write %d, which ended with %v", i, err), k, want)
	time.Sleep(10 * time.Second)
	_, again := k.Recover(context.Background())
	if again != nil && !errs.Is(again, errs.Precondition) || err == nil && again == nil {
		t.Fatalf("write %d: recovering ended with %v, and again with %v", i, err, again)
	}
	wantContent(t, "recovered again", k, want)
	createWithin(t, k, 10*time.Second, "ccc")
	settle(k)
	after = crashed(after)
	if !back {
		for num, kv := range crashed(gone) { // as they were when they were lost
			after[num] = kv
		}
	}
	k = openStores(t, after)
	createWithin(t, k, 10*time.Second, "ddd")
	if got := len(k.State().Buckets()); got != 4 {
		t.Errorf("write %d: %d buckets, want 4", i, got)
	}
	return ended
}

// A recovery that ended in a crash must not take away what the former voters did after they came back.
func TestAGenerationThatWasNeverCompleteGivesWayToTheOneBefore(t *testing.T) {
	for _, cold := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			k, stores := founded(t, 6)
			settle(k)
			stores = crashed(stores)
			// A recovery over drives 3 to 6 made a voter on drive 3 only.
			begun := crashed(stores)
			s, err := readCopy(begun[3])
			if err != nil {
				t.Fatal(err)
			}
			next := s.nextGeneration(generationID{1, 1, 1})
			c := &copyOf{kv: begun[3]}
			if err := c.write([]applied{{s: next, with: func(b *metadata.Batch) { voterRow(b, "drive-3-x", next.gen.generationID) }}}); err != nil {
				t.Fatal(err)
			}
			// Without drive 3 the former voters go on.
			third := begun[3]
			delete(stores, 3)
			k = openStores(t, stores)
			defer func() { settle(k) }()
			createWithin(t, k, 10*time.Second, "ccc")
			if cold {
				settle(k)
				stores = crashed(stores)
				stores[3] = third
				k = openStores(t, stores)
			} else {
				k.DriveReturned(DriveStore{3, third})
			}
			createWithin(t, k, 10*time.Second, "ddd")
			if got := len(k.State().Buckets()); got != 4 || k.State().gen.number != 0 {
				t.Errorf("%d buckets in generation %d, want 4 in 0", got, k.State().gen.number)
			}
			time.Sleep(5 * time.Second)
			if on := votersOn(t, k); !slices.Equal(on, []uint16{1, 2, 3}) {
				t.Errorf("the voters are on %v", on)
			}
		})
	}
}

// A process that was started with lost drives only comes up as they were. It follows as soon as it
// meets a drive of the later generation.
func TestALaterGenerationIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, stores := founded(t, 6)
		gone := map[uint16]*memKV{}
		for _, num := range []uint16{1, 2} {
			k.DriveLost(num)
			gone[num] = stores[num].crash()
			delete(stores, num)
		}
		if _, err := k.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		createWithin(t, k, 5*time.Second, "ccc")
		settle(k)
		stores = crashed(stores)
		old := openStores(t, gone)
		defer settle(old)
		for range 5 {
			createWithin(t, old, 10*time.Second, fmt.Sprint("astray-", len(old.State().Buckets())))
		}
		for num := uint16(6); num >= 3; num-- {
			old.DriveReturned(DriveStore{num, stores[num]})
			if _, ok := old.State().Bucket("ccc"); !ok || len(old.State().Buckets()) != 3 {
				t.Fatalf("with drive %d the buckets are %v", num, old.State().Buckets())
			}
		}
		createWithin(t, old, 10*time.Second, "ddd")
		if on := votersOn(t, old); !slices.Equal(on, []uint16{3, 4, 5}) {
			t.Errorf("the voters are on %v", on)
		}
		for num, kv := range gone {
			if !isOf(kv, old.State().gen.generationID) {
				t.Errorf("drive %d has its former voter", num)
			}
			if s, err := readCopy(kv); err != nil || len(s.Buckets()) != 4 {
				t.Errorf("the copy of drive %d: %v", num, err)
			}
		}
	})
}

// What hangs on a drive must not meet the rows of a new voter, and its former voter never returns.
func TestARecoveryPassesOverADriveThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var list []*stuckKV
		var stores []metadata.KV
		for range 6 {
			kv := &stuckKV{memKV: newMemKV()}
			list, stores = append(list, kv), append(stores, kv)
		}
		k := openOn(t, stores...)
		defer settle(k)
		createWithin(t, k, 5*time.Second, "aaa")
		k.DriveLost(1)
		createWithin(t, k, 10*time.Second, "bbb")
		list[1].shut()
		if _, err := k.CreateBucket(context.Background(), Bucket{Name: "xxx"}); err == nil {
			t.Fatal("a change without a majority was answered")
		}
		time.Sleep(2 * writeTimeout)
		r, err := k.Recover(context.Background())
		if err != nil || !slices.Equal(r.Drives, []uint16{3, 4, 5}) {
			t.Fatalf("got %+v, %v", r, err)
		}
		createWithin(t, k, 5*time.Second, "ccc")
		list[1].open()
		time.Sleep(10 * time.Second)
		if !isOf(list[1], k.State().gen.generationID) {
			t.Error("the former voter is still on the drive that hung")
		}
		if s, err := readCopy(list[1]); err != nil || s.gen != k.State().gen {
			t.Errorf("its copy is behind: %v", err)
		}
		if on := votersOn(t, k); !slices.Equal(on, []uint16{3, 4, 5}) {
			t.Errorf("the voters are on %v", on)
		}
		createWithin(t, k, 5*time.Second, "ddd")
	})
}

// Every answered change is there after a recovery, however many are on their way when drives go, and
// when the process is killed.
func TestARecoveryKeepsWhatWasAnswered(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	for range 12 {
		n := 3 + rnd.IntN(4)
		lost := lossesOf(n)[rnd.IntN(3)]
		if n == 3 {
			lost = []uint16{1, 3}
		}
		synctest.Test(t, func(t *testing.T) {
			k, stores := founded(t, n)
			defer func() { settle(k) }()
			var wg sync.WaitGroup
			var mu sync.Mutex
			var answered []string
			for w := range 4 {
				wg.Go(func() {
					for i := range 10 {
						name := fmt.Sprintf("b-%d-%d", w, i)
						if _, err := k.CreateBucket(context.Background(), Bucket{Name: name}); err == nil {
							mu.Lock()
							answered = append(answered, name)
							mu.Unlock()
						}
						time.Sleep(time.Millisecond)
					}
				})
			}
			time.Sleep(time.Duration(rnd.IntN(12)) * time.Millisecond)
			for _, num := range lost {
				k.DriveLost(num)
				delete(stores, num)
			}
			wg.Wait()
			settle(k)
			k = openStores(t, crashed(stores))
			if _, err := k.Recover(context.Background()); err != nil {
				t.Fatalf("%d drives without %v: %v", n, lost, err)
			}
			for _, name := range answered {
				if _, ok := k.State().Bucket(name); !ok {
					t.Errorf("%d drives without %v: %s was answered and is lost", n, lost, name)
				}
			}
		})
	}
}

func TestAChangeIsAnsweredOnceSoManyCopiesHaveItThatLossesLeaveOne(t *testing.T) {
	for _, c := range []struct{ drives, here, parity, want int }{
		{1, 1, 0, 1}, {2, 2, 1, 2}, {2, 1, 1, 1}, {3, 3, 1, 2}, {3, 2, 1, 1}, {4, 4, 2, 3}, {4, 3, 2, 2}, {4, 2, 2, 1}, {6, 6, 2, 3}, {6, 4, 2, 1}, {6, 3, 2, 1}, {4, 0, 2, 0},
	} {
		if got := copiesWanted(c.drives, c.here, c.parity); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		k, stores := founded(t, 4)
		defer settle(k)
		for _, num := range []uint16{3, 4} {
			stores[num].mu.Lock()
			stores[num].left = 0
			stores[num].mu.Unlock()
		}
		if _, err := k.CreateBucket(context.Background(), Bucket{Name: "ccc", Created: 3}); !errs.Is(err, errs.Unknown) {
			t.Errorf("on two of four: got %v, want Unknown", err)
		}
		k.DriveLost(3)
		k.DriveLost(4)
		if _, err := k.CreateBucket(context.Background(), Bucket{Name: "ddd"}); err != nil {
			t.Errorf("with two of four away: %v", err)
		}
	})
}

func TestTheOrderOfStates(t *testing.T) {
	at := func(applied uint64, g generation) *State { return &State{Applied: applied, gen: g} }
	first := generation{}
	// Two generations that were begun over drives that did not know of each other, from index 10.
	x := generation{generationID: generationID{1, 100, 7}, began: 11, fromApplied: 10}
	y := generation{generationID: generationID{1, 200, 3}, began: 11, fromApplied: 10}
	// One that was begun from x before anything was committed in that, and one after.
	unproven := generation{generationID: generationID{2, 300, 1}, began: 12, fromApplied: 10}
	later := generation{generationID: generationID{2, 300, 2}, began: 16, from: x.generationID, fromApplied: 15}
	order := []*State{at(0, first), at(9, first), at(10, first), at(11, x), at(11, y), at(12, unproven), at(11, first), at(50, first),
		at(12, x), at(15, x), at(16, later), at(16, x), at(12, y), at(40, y), at(13, unproven), at(17, later)}
	for i, a := range order {
		for j, b := range order {
			if got := a.newerThan(b); got != (i > j) {
				t.Errorf("%d before %d: got %v: %d of %+v, %d of %+v", j, i, got, a.Applied, a.gen, b.Applied, b.gen)
			}
		}
	}
	if !at(11, x).proven() == at(12, x).proven() == false {
		t.Error("a generation is proven by its first command")
	}
	if g := at(11, x).nextGeneration(unproven.generationID).gen; g != unproven {
		t.Errorf("begun from what is not proven: %+v", g)
	}
	if g := at(15, x).nextGeneration(later.generationID).gen; g != later {
		t.Errorf("begun from what is proven: %+v", g)
	}
}

func TestGenerationsRoundTrip(t *testing.T) {
	s, _ := emptyState().apply(1, &command{op: opInit, layout: testLayout(t, 3), account: Account{"a", "b"}, key: testKey})
	if len(s.encode()) != len(contentOf(s))+2 {
		t.Error("a first generation is not encoded as before there were others")
	}
	s = s.nextGeneration(generationID{3, 4, 5}).nextGeneration(generationID{6, 1 << 62, ^uint64(0)})
	back, err := decodeState(s.encode())
	if err != nil || back.gen != s.gen || !bytes.Equal(back.encode(), s.encode()) {
		t.Errorf("%+v, %v; want %+v", back.gen, err, s.gen)
	}
	kv := newMemKV()
	for _, g := range []generationID{{}, {1, 2, 3}} {
		if err := replaceVoter(kv, "drive-1-x", g); err != nil {
			t.Fatal(err)
		}
		if id, got, err := readVoter(kv); err != nil || id != "drive-1-x" || got != g {
			t.Errorf("got %q of %+v, %v; want %+v", id, got, err, g)
		}
	}
}
