package cluster

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// stuckKV is a store whose writes wait while its gate is shut, as on a drive that hangs.
type stuckKV struct {
	*memKV
	mu   sync.Mutex
	gate chan struct{}
}

func (s *stuckKV) Apply(b *metadata.Batch, sync bool) error {
	s.mu.Lock()
	gate := s.gate
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return s.memKV.Apply(b, sync)
}

func (s *stuckKV) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = make(chan struct{})
}

func (s *stuckKV) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.gate)
	s.gate = nil
}

// openOn opens a control plane, initialized, over any stores.
func openOn(t *testing.T, stores ...metadata.KV) *Control {
	t.Helper()
	var list []DriveStore
	for i, kv := range stores {
		list = append(list, DriveStore{uint16(i + 1), kv})
	}
	k, err := Open(t.Context(), Config{Drives: list})
	if err == nil {
		err = k.Init(context.Background(), [16]byte{9}, testLayout(t, len(stores)), Account{ID: "a"}, testKey)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// createWithin creates a bucket, trying again while the answer is that a retry may succeed.
func createWithin(t *testing.T, k *Control, d time.Duration, name string) {
	t.Helper()
	var err error
	for end := time.Now().Add(d); time.Now().Before(end); {
		if _, err = k.CreateBucket(context.Background(), Bucket{Name: name, Owner: "a"}); err == nil || errs.Is(err, errs.Exists) {
			return
		}
		if !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
			break
		}
	}
	t.Fatalf("CreateBucket(%s): %v", name, err)
}

// members returns the ids in raft's configuration.
func members(t *testing.T, k *Control) (ids []string) {
	t.Helper()
	v := k.leader()
	if v == nil {
		t.Fatal("no leader")
	}
	f := v.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	for _, s := range f.Configuration().Servers {
		ids = append(ids, string(s.ID))
	}
	slices.Sort(ids)
	return ids
}

func TestAVoteThatIsNotStoredIsNotGiven(t *testing.T) {
	kv := newMemKV()
	cut := 0
	s, err := openStorage(kv, func(error, <-chan error) { cut++ })
	if err != nil {
		t.Fatal(err)
	}
	vote := func(term uint64, who string) error {
		if err := s.SetUint64([]byte(stableVoteTerm), term); err != nil {
			return err
		}
		return s.Set([]byte(stableCandidate), []byte(who))
	}
	stored := func() (uint64, string) {
		again, err := openStorage(kv.crash(), func(error, <-chan error) {})
		if err != nil {
			t.Fatal(err)
		}
		term, _ := again.GetUint64([]byte(stableVoteTerm))
		who, _ := again.Get([]byte(stableCandidate))
		return term, string(who)
	}
	if err := vote(4, "x"); err != nil {
		t.Fatal(err)
	}
	// A crash after the first half of a vote leaves the former one whole.
	if err := s.SetUint64([]byte(stableVoteTerm), 5); err != nil {
		t.Fatal(err)
	}
	if term, who := stored(); term != 4 || who != "x" {
		t.Fatalf("half a vote was stored: term %d, %s", term, who)
	}
	if err := s.Set([]byte(stableCandidate), []byte("y")); err != nil {
		t.Fatal(err)
	}
	if term, who := stored(); term != 5 || who != "y" {
		t.Fatalf("stored is term %d, %s", term, who)
	}
	kv.mu.Lock()
	kv.left = 0
	kv.mu.Unlock()
	if err := vote(6, "z"); !errs.Is(err, errs.Drive) || cut != 1 {
		t.Fatalf("a vote on a failed drive: %v, cut off %d times; want Drive and once", err, cut)
	}
	if term, _ := s.GetUint64([]byte(stableVoteTerm)); term != 5 {
		t.Errorf("term %d is remembered for a vote that failed", term)
	}
	if err := s.SetUint64([]byte(stableTerm), 7); err != nil {
		t.Errorf("the term: %v, which raft answers with a panic", err)
	}
	if err := s.StoreLog(&raft.Log{Index: 1, Term: 7}); !errs.Is(err, errs.Drive) {
		t.Errorf("an entry on a failed drive: %v, want Drive", err)
	}
	kv.mu.Lock()
	kv.left = -1
	kv.mu.Unlock()
	if err := vote(8, "z"); !errs.Is(err, errs.Drive) {
		t.Errorf("a vote after the drive recovered: %v; what is in memory is not what is stored", err)
	}
}

// A drive that hangs, whichever it is, does not stop changes, nor what tells of its loss, and is
// up to date soon after it goes on.
func TestADriveThatHangsStopsNothing(t *testing.T) {
	for hung := range 4 {
		t.Run(fmt.Sprint("drive ", hung+1), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stores []metadata.KV
				var list []*stuckKV
				for range 4 {
					kv := &stuckKV{memKV: newMemKV()}
					stores, list = append(stores, kv), append(list, kv)
				}
				k := openOn(t, stores...)
				defer k.Close()
				createWithin(t, k, time.Second, "before")
				list[hung].shut()
				createWithin(t, k, 12*time.Second, "during")
				start := time.Now()
				createWithin(t, k, 2*time.Second, "after")
				if took := time.Since(start); took > copyTimeout/2 {
					t.Errorf("the second change waits for the drive again: %v", took)
				}
				list[hung].open()
				time.Sleep(5 * time.Second)
				for _, name := range []string{"before", "during", "after"} {
					for i := range list {
						s, err := readCopy(list[i])
						if err != nil || s == nil {
							t.Fatalf("copy of drive %d: %v", i+1, err)
						}
						if _, ok := s.Bucket(name); !ok {
							t.Errorf("the copy of drive %d lacks %s", i+1, name)
						}
					}
				}
				// The voter that hung counts again: the next loss is survived.
				if hung < 3 {
					k.DriveLost(uint16((hung+1)%3 + 1))
					createWithin(t, k, 5*time.Second, "again")
				}
			})
		})
	}
}

func TestTheLossOfADriveThatHangsIsTold(t *testing.T) {
	for hung := range 4 {
		synctest.Test(t, func(t *testing.T) {
			kv := &stuckKV{memKV: newMemKV()}
			stores := []metadata.KV{newMemKV(), newMemKV(), newMemKV(), newMemKV()}
			stores[hung] = kv
			k := openOn(t, stores...)
			kv.shut()
			k.CreateBucket(t.Context(), Bucket{Name: "aaa"}) //nolint:errcheck // brings the drive to hang
			start := time.Now()
			k.DriveLost(uint16(hung + 1))
			if took := time.Since(start); took > 2*writeTimeout {
				t.Errorf("drive %d: DriveLost took %v", hung+1, took)
			}
			createWithin(t, k, 5*time.Second, "bbb")
			kv.open()
			k.Close()
		})
	}
}

func TestAVoterWhoseRowsAreLostIsReplacedUnderANewID(t *testing.T) {
	for lost := uint16(1); lost <= 3; lost++ {
		t.Run(fmt.Sprint("drive ", lost), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := openOn(t, newMemKV(), newMemKV(), newMemKV(), newMemKV())
				createWithin(t, k, time.Second, "aaa")
				k.DriveLost(lost)
				createWithin(t, k, 5*time.Second, "bbb")
				empty := newMemKV()
				k.DriveReturned(DriveStore{lost, empty})
				time.Sleep(10 * time.Second)
				ids := members(t, k)
				if len(ids) != 3 || slices.Contains(ids, voterID(lost)) {
					t.Fatalf("members are %v", ids)
				}
				// It counts: another voter may go.
				k.DriveLost(lost%3 + 1)
				createWithin(t, k, 5*time.Second, "ccc")
				k.Close()
				alone, err := Open(context.Background(), Config{Drives: []DriveStore{{lost, empty.crash()}}})
				if err != nil {
					t.Fatal(err)
				}
				defer alone.Close()
				if n := len(alone.State().Buckets()); n != 3 {
					t.Errorf("the copy on the new drive has %d buckets, want 3", n)
				}
			})
		})
	}
}

// A voter is also replaced if its rows are damaged at start, whichever row it is.
func TestAVoterWithADamagedRowIsReplaced(t *testing.T) {
	kvs := mem(3)
	synctest.Test(t, func(t *testing.T) {
		k := openOn(t, kvs[0], kvs[1], kvs[2])
		createWithin(t, k, time.Second, "aaa")
		k.Close()
	})
	for key := range kvs[0].rows {
		if key[1] == rowCopy || key[1] == rowCommand {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			bad := kvs[0].crash()
			bad.rows[key][len(bad.rows[key])-1] ^= 1
			k := openOn(t, bad, kvs[1].crash(), kvs[2].crash())
			defer k.Close()
			time.Sleep(10 * time.Second)
			if ids := members(t, k); len(ids) != 3 || slices.Contains(ids, voterID(1)) {
				t.Errorf("row %q: members are %v", key, ids)
			}
			k.DriveLost(2)
			createWithin(t, k, 5*time.Second, "bbb")
		})
	}
}

// Voters come and go under changes: no change is applied twice, so no creation of a new name says
// that it exists, and none that was answered is lost.
func TestNoChangeIsAppliedTwiceWhenLeadersComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kvs := mem(3)
		k := openOn(t, kvs[0], kvs[1], kvs[2])
		defer k.Close()
		var wg sync.WaitGroup
		var mu sync.Mutex
		answered := []string{}
		for w := range 4 {
			wg.Go(func() {
				for i := range 40 {
					name := fmt.Sprintf("b-%d-%d", w, i)
					_, err := k.CreateBucket(context.Background(), Bucket{Name: name})
					switch {
					case err == nil:
						mu.Lock()
						answered = append(answered, name)
						mu.Unlock()
					case !errs.Is(err, errs.Unknown) && !errs.Is(err, errs.Unavailable):
						t.Errorf("%s: %v", name, err)
					}
				}
			})
		}
		wg.Go(func() {
			for range 15 {
				if v := k.leader(); v != nil {
					k.DriveLost(v.num)
					k.DriveReturned(DriveStore{v.num, kvs[v.num-1]})
				}
				time.Sleep(700 * time.Millisecond)
			}
		})
		wg.Wait()
		for _, name := range answered {
			if _, ok := k.State().Bucket(name); !ok {
				t.Errorf("%s was answered and is lost", name)
			}
		}
		if len(answered) < 20 {
			t.Errorf("only %d of 160 were answered", len(answered))
		}
		// All three are connected again: any one may go.
		for num := uint16(1); num <= 3; num++ {
			k.DriveLost(num)
			createWithin(t, k, 5*time.Second, fmt.Sprint("without-", num))
			k.DriveReturned(DriveStore{num, kvs[num-1]})
			time.Sleep(2 * time.Second)
		}
	})
}

// What may have happened is not tried again: a creation would find its own bucket.
func TestOnlyWhatDidNotHappenIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := openOn(t, newMemKV())
		defer k.Close()
		for _, c := range []struct {
			err   error
			again bool
		}{
			{changeError(raft.ErrNotLeader), true},
			{changeError(raft.ErrLeadershipTransferInProgress), true},
			{changeError(errDrive), true},
			{raft.ErrRaftShutdown, true}, // of a question
			{changeError(raft.ErrRaftShutdown), false},
			{changeError(raft.ErrLeadershipLost), false},
		} {
			calls := 0
			err := k.withLeader(t.Context(), func(*voter, time.Duration) error {
				if calls++; calls > 1 {
					return nil
				}
				return c.err
			})
			switch {
			case c.again && (calls != 2 || err != nil):
				t.Errorf("%v: %d calls, %v; want another call", c.err, calls, err)
			case !c.again && (calls != 1 || !errs.Is(err, errs.Unknown)):
				t.Errorf("%v: %d calls, %v; want one, and Unknown", c.err, calls, err)
			}
		}
	})
}

// Many changes are on their way when the leader stops, and a copy is stuck.
func TestALeaderStopsUnderManyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &stuckKV{memKV: newMemKV()}
		k := openOn(t, newMemKV(), newMemKV(), newMemKV(), slow)
		defer k.Close()
		createWithin(t, k, time.Second, "aaa")
		slow.shut()
		defer slow.open()
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				_, err := k.CreateBucket(context.Background(), Bucket{Name: fmt.Sprint("bucket-", i)})
				if err != nil && !errs.Is(err, errs.Unknown) && !errs.Is(err, errs.Unavailable) {
					t.Errorf("bucket %d: %v", i, err)
				}
			})
			time.Sleep(copyTimeout / 400)
		}
		k.DriveLost(k.leader().num)
		wg.Wait()
		createWithin(t, k, 5*time.Second, "bbb")
	})
}

func TestADriveThatReturnsWithANewerCopyIsServedFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kvs := mem(4)
		k := openOn(t, kvs[0], kvs[1], kvs[2], kvs[3])
		createWithin(t, k, time.Second, "aaa")
		old := kvs[3].crash()
		createWithin(t, k, time.Second, "bbb")
		k.Close()
		// Drive 4 missed bbb and is here first; no quorum of voters is.
		k, err := Open(context.Background(), Config{Drives: []DriveStore{{4, old}}})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if _, ok := k.State().Bucket("bbb"); ok {
			t.Fatal("bbb is known already: the test shows nothing")
		}
		first := kvs[0].crash()
		k.DriveReturned(DriveStore{1, first})
		if _, ok := k.State().Bucket("bbb"); !ok {
			t.Error("bbb is not served")
		}
		if s, err := readCopy(first); err != nil || len(s.Buckets()) != 2 {
			t.Errorf("the newer copy was overwritten: %v", err)
		}
	})
}

func TestWithTwoDrivesAChangeThatIsNotOnBothIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kvs := mem(2)
		k := openOn(t, kvs[0], kvs[1])
		defer k.Close()
		createWithin(t, k, time.Second, "aaa")
		kvs[1].mu.Lock()
		kvs[1].left = 0
		kvs[1].mu.Unlock()
		if _, err := k.CreateBucket(t.Context(), Bucket{Name: "bbb"}); !errs.Is(err, errs.Unknown) {
			t.Errorf("got %v, want Unknown", err)
		}
	})
}

func with10000Buckets(t testing.TB) *State {
	s, _ := emptyState().apply(1, &command{op: opInit, layout: testLayout(t, 4)})
	for i := range 10000 {
		s, _ = s.apply(s.Applied+1, &command{op: opCreateBucket, bucket: Bucket{Name: fmt.Sprintf("bucket-%05d", i)}})
	}
	return s
}

// A change costs what it changes, not what there is: every voter applies it, and a copy replays
// hundreds of them at start.
func TestAChangeWith10000BucketsIsCheap(t *testing.T) {
	s := with10000Buckets(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const changes = 200
	next := s
	for i := range changes {
		next, _ = next.apply(next.Applied+1, &command{op: opSetVersioning, id: uint64(i*50 + 1), versioning: Enabled})
	}
	runtime.ReadMemStats(&after)
	if per := (after.TotalAlloc - before.TotalAlloc) / changes; per > 32<<10 {
		t.Errorf("a change allocates %d bytes", per)
	}
	// The state before is as it was.
	if b, _ := s.Bucket("bucket-00050"); b.Versioning != Unversioned {
		t.Error("a state was changed in place")
	}
	if b, _ := next.Bucket("bucket-00050"); b.Versioning != Enabled {
		t.Error("the change is not there")
	}
	back, err := decodeState(next.encode())
	if err != nil || len(back.Buckets()) != 10000 {
		t.Errorf("encoding: %v", err)
	}
}

func BenchmarkApplyWith10000Buckets(b *testing.B) {
	s := with10000Buckets(b)
	for b.Loop() {
		s.apply(s.Applied+1, &command{op: opCreateBucket, bucket: Bucket{Name: "bucket-x"}})
	}
}

// TestABucketIsMadeThoughItsLeaderIsLost loses the leader's drive while a bucket is being made: the
// caller need not know, and the bucket is made once.
func TestABucketIsMadeThoughItsLeaderIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stores := []*stuckKV{{memKV: newMemKV()}, {memKV: newMemKV()}, {memKV: newMemKV()}}
		k := openOn(t, stores[0], stores[1], stores[2])
		defer k.Close()
		var lost uint16
		k.mu.Lock()
		for num, v := range k.voters {
			if v.raft.State() == raft.Leader {
				lost = num
			}
		}
		k.mu.Unlock()
		if lost == 0 {
			t.Fatal("no leader")
		}
		stores[lost-1].shut()
		type result struct {
			b   Bucket
			err error
		}
		done := make(chan result, 1)
		go func() {
			b, err := k.CreateBucket(context.Background(), Bucket{Name: "b", Owner: "a", Created: 1})
			done <- result{b, err}
		}()
		synctest.Wait()
		k.DriveLost(lost)
		r := <-done
		stores[lost-1].open()
		if r.err != nil || r.b.ID == 0 {
			t.Errorf("CreateBucket: %+v, %v", r.b, r.err)
		}
		if got, ok := k.State().Bucket("b"); !ok || got.ID != r.b.ID {
			t.Errorf("the bucket is %+v, and %+v was answered", got, r.b)
		}
		if _, err := k.CreateBucket(context.Background(), Bucket{Name: "b", Owner: "a", Created: 2}); !errs.Is(err, errs.Exists) {
			t.Errorf("a second bucket of the name: %v", err)
		}
	})
}
