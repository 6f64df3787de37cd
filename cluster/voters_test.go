package cluster

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

func TestPlanVoters(t *testing.T) {
	ids := func(nums ...uint16) (out []raft.ServerID) {
		for _, n := range nums {
			out = append(out, raft.ServerID(voterID(n)))
		}
		return out
	}
	for name, c := range map[string]struct {
		servers   []raft.ServerID
		want      int
		bad, free []uint16
		add       uint16
		remove    raft.ServerID
	}{
		"all is well":                    {ids(1, 2, 3), 3, nil, []uint16{1, 2, 3, 4}, 0, ""},
		"first another comes":            {ids(1, 2, 3), 3, []uint16{2}, []uint16{1, 3, 4, 5}, 4, ""},
		"then the bad one goes":          {ids(1, 2, 3, 4), 3, []uint16{2}, []uint16{1, 3, 4, 5}, 0, "drive-2-1"},
		"no drive is free: it stays":     {ids(1, 2, 3), 3, []uint16{2}, []uint16{1, 3}, 0, ""},
		"the free ones are bad":          {ids(1, 2, 3), 3, []uint16{2, 4}, []uint16{1, 3, 4}, 0, ""},
		"the only voter moves":           {ids(1), 1, []uint16{1}, []uint16{1, 2}, 2, ""},
		"the only voter has moved":       {ids(1, 2), 1, []uint16{1}, []uint16{1, 2}, 0, "drive-1-1"},
		"a third drive makes three":      {ids(1), 3, nil, []uint16{1, 2, 3}, 2, ""},
		"two are bad, one at a time":     {ids(1, 2, 3), 3, []uint16{2, 3}, []uint16{1, 4, 5}, 4, ""},
		"two are bad, a second newcomer": {ids(1, 2, 3, 4), 3, []uint16{2, 3}, []uint16{1, 4, 5}, 5, ""},
	} {
		add, remove := planVoters(c.servers, c.want, func(n uint16) bool { return slices.Contains(c.bad, n) }, c.free)
		if add != c.add || remove != c.remove {
			t.Errorf("%s: add %d, remove %q; want %d, %q", name, add, remove, c.add, c.remove)
		}
	}
}

// votersOn returns the drives that have voters, ascending.
func votersOn(t *testing.T, k *Control) (nums []uint16) {
	for _, id := range members(t, k) {
		nums = append(nums, driveOf(raft.ServerID(id)))
	}
	slices.Sort(nums)
	return nums
}

// begin begins a replacement, trying again while the answer is that a retry may succeed.
func begin(t *testing.T, k *Control, old uint16, d placement.Drive) Replacement {
	t.Helper()
	var err error
	for range 20 {
		var r Replacement
		if r, err = k.BeginReplace(context.Background(), old, d, "/p"); err == nil {
			return r
		}
		if !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
			break
		}
	}
	t.Fatalf("BeginReplace(%d): %v", old, err)
	return Replacement{}
}

// finish takes a replacement to its end.
func finish(t *testing.T, k *Control, r Replacement) {
	t.Helper()
	ctx := context.Background()
	r, err := k.TakeOver(ctx, r.ID)
	if err == nil {
		err = k.PublishSwap(ctx, r.ID, r.Term, k.State().Layout().PartitionsOf(r.Old))
	}
	if err == nil {
		err = k.FinishMembership(ctx, r.ID, r.Term)
	}
	if err == nil {
		err = k.FinishReplace(ctx, r.ID, r.Term)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Every drive is replaced, one after the other; in the end only new ones are there, and are enough.
func TestAClusterWhoseDrivesWereAllReplacedComesUpWithTheNewOnesOnly(t *testing.T) {
	for _, n := range []int{2, 3, 4, 6} {
		for _, alive := range []bool{true, false} {
			if n == 2 && !alive {
				continue // a dead drive with the only voter takes the control plane with it
			}
			t.Run(fmt.Sprintf("%d drives, the old one alive: %v", n, alive), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					stores := map[uint16]*memKV{}
					for i := range n {
						stores[uint16(i+1)] = newMemKV()
					}
					k, err := Open(t.Context(), Config{Drives: storesOf(stores)})
					if err == nil {
						err = k.Init(context.Background(), [16]byte{9}, testLayout(t, n), Account{ID: "a"}, testKey)
					}
					if err != nil {
						t.Fatal(err)
					}
					for old := uint16(1); old <= uint16(n); old++ {
						if !alive {
							k.DriveLost(old)
						}
						r := begin(t, k, old, newDrive(uint64(old)))
						if alive {
							k.DriveLost(old) // closed, as it is retired
						}
						delete(stores, old)
						stores[r.New] = newMemKV()
						k.DriveReturned(DriveStore{r.New, stores[r.New]})
						createWithin(t, k, 5*time.Second, fmt.Sprint("bucket-", old))
						finish(t, k, r)
						time.Sleep(5 * time.Second)
						if on := votersOn(t, k); len(on) != votersWanted(n) || slices.Contains(on, old) {
							t.Fatalf("after the replacement of drive %d the voters are on %v", old, on)
						}
						// Now and then the process is killed.
						if old%2 == 0 {
							for num, kv := range stores {
								stores[num] = kv.crash()
							}
							k.Close()
							if k, err = Open(t.Context(), Config{Drives: storesOf(stores)}); err != nil {
								t.Fatal(err)
							}
						}
					}
					createWithin(t, k, 5*time.Second, "last")
					if got := len(k.State().Buckets()); got != n+1 {
						t.Errorf("%d buckets, want %d", got, n+1)
					}
					for _, d := range k.State().Layout().Drives() {
						if d.Num <= uint16(n) {
							t.Errorf("drive %d is in the layout", d.Num)
						}
					}
					k.Close()
				})
			})
		}
	}
}

func storesOf(stores map[uint16]*memKV) (list []DriveStore) {
	for num, kv := range stores {
		list = append(list, DriveStore{num, kv})
	}
	slices.SortFunc(list, func(a, b DriveStore) int { return int(a.Num) - int(b.Num) })
	return list
}

func TestTheVoterOfADriveThatStaysAwayMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kvs := mem(5)
		k := openOn(t, kvs[0], kvs[1], kvs[2], kvs[3], kvs[4])
		defer k.Close()
		k.DriveLost(2)
		time.Sleep(awayAfter / 2)
		if on := votersOn(t, k); !slices.Equal(on, []uint16{1, 2, 3}) {
			t.Fatalf("after half a minute the voters are on %v", on)
		}
		time.Sleep(awayAfter)
		if on := votersOn(t, k); !slices.Equal(on, []uint16{1, 3, 4}) {
			t.Fatalf("the voters are on %v", on)
		}
		// Two more go, each for long enough: what is left leads on.
		k.DriveLost(1)
		time.Sleep(2 * awayAfter)
		createWithin(t, k, 5*time.Second, "aaa")
		if on := votersOn(t, k); !slices.Equal(on, []uint16{3, 4, 5}) {
			t.Fatalf("the voters are on %v", on)
		}
		// Who returns has no voter any more, and does not ask for one.
		k.DriveReturned(DriveStore{2, kvs[1]})
		k.DriveReturned(DriveStore{1, kvs[0]})
		time.Sleep(10 * time.Second)
		createWithin(t, k, 5*time.Second, "bbb")
		if on := votersOn(t, k); !slices.Equal(on, []uint16{3, 4, 5}) {
			t.Fatalf("the voters are on %v", on)
		}
		if id, err := get(kvs[1], rowKey(rowVoter)); err != nil || id != nil {
			t.Errorf("drive 2 still names the voter %q, %v", id, err)
		}
	})
}

// A crash between any two writes of a replacement's beginning, on each drive, leaves a control plane that
// comes up without the old drive, once the beginning was answered.
func TestCrashesWhileAVoterMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, n := range []int{2, 4} {
			for failing := range n - 1 { // not the one that is replaced
				for i := 0; ; i++ {
					kvs := mem(n)
					var list []DriveStore
					for j := range kvs {
						list = append(list, DriveStore{uint16(j + 1), kvs[j]})
					}
					k, err := Open(t.Context(), Config{Drives: list})
					if err == nil {
						err = k.Init(context.Background(), [16]byte{9}, testLayout(t, n), Account{ID: "a"}, testKey)
					}
					if err != nil {
						t.Fatal(err)
					}
					at := kvs[failing+1]
					at.mu.Lock()
					at.left = i
					at.mu.Unlock()
					_, err = k.BeginReplace(context.Background(), 1, newDrive(1), "/p")
					at.mu.Lock()
					spare := at.left
					at.mu.Unlock()
					after := make([]DriveStore, 0, n)
					for j := range kvs {
						if j > 0 || err != nil { // not answered: the old drive is not closed
							after = append(after, DriveStore{uint16(j + 1), kvs[j].crash()})
						}
					}
					k.Close()
					again, e := Open(t.Context(), Config{Drives: after})
					if e != nil {
						t.Fatal(e)
					}
					name := fmt.Sprintf("%d drives, write %d of drive %d, answered with %v", n, i, failing+2, err)
					if err == nil && len(again.State().Replacements()) != 1 {
						t.Fatalf("%s: the replacement is lost", name)
					}
					r := begin(t, again, 1, newDrive(1))
					if r.ID != 1 || !again.State().Retired(1) {
						t.Fatalf("%s: %+v", name, r)
					}
					again.DriveLost(1)
					createWithin(t, again, 20*time.Second, "aaa")
					again.Close()
					if spare > 0 {
						break
					}
					if i > 200 {
						t.Fatal("no run without a failure")
					}
				}
			}
		}
	})
}

// What a voter was asked for, and was shut down over, ends. It rests on a field of raft's futures that a newer raft
// may not have.
func TestWhatAVoterWasAskedEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := founded(t, 1)
		defer settle(k)
		var v *voter
		k.mu.Lock()
		for _, v = range k.voters {
		}
		k.mu.Unlock()
		f := v.raft.Apply((&command{op: opBarrier}).encode(), time.Second)
		v.endsWith(f)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		end := reflect.ValueOf(f).Elem().FieldByName("ShutdownCh")
		if !end.IsValid() || end.IsNil() {
			t.Error("a future of raft cannot be made to end with its voter")
		}
	})
}
