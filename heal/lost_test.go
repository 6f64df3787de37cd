package heal

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// names reports whether the status names a register as lost.
func (s *Status) names(key string) bool {
	return slices.ContainsFunc(s.Why, func(why string) bool {
		return strings.Contains(why, fmt.Sprintf("bucket 1, key %q: data is lost", key))
	})
}

// A second drive was damaged unseen when the first was lost: two objects have too few shards left.
func TestRebuildEndsAlthoughSomethingIsLost(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fill(14)
	w.heal()
	gone := []string{"key-002", "key-006"} // inline, and of several chunks
	for _, k := range gone {
		w.vanish(2, k)
		w.vanish(3, k)
		delete(want, k)
	}
	w.replace(1, 6)
	w.rebuilt()
	s := w.healer.Status()
	i := slices.IndexFunc(s.Jobs, func(j Job) bool { return j.Kind == KindRebuild })
	if i < 0 || s.Jobs[i].State != JobDone || s.Jobs[i].Bad-s.Jobs[i].Repaired != int64(len(gone)) {
		t.Fatalf("the job: %+v", s.Jobs)
	}
	lost := func(when string, s Status) {
		t.Helper()
		if s.State != StateDegraded {
			t.Errorf("%s: %s", when, s.State)
		}
		for _, k := range gone {
			if !s.names(k) {
				t.Errorf("%s: %s is not named: %q", when, k, s.Why)
			}
		}
	}
	lost("after the rebuild", s)
	w.reborn()
	if err := w.healer.loadCheck(context.Background()); err != nil {
		t.Fatal(err)
	}
	lost("right after a restart", w.healer.Status()) // from what the drives keep, before any pass
	w.heal()
	lost("after a restart", w.check())
	w.heal()
	w.equalDigests() // the rows of what is lost are there
	w.same(want)
	if len(w.healer.Status().Why) > 10 || w.repairs() == 0 {
		t.Errorf("%d repair rows; %q", w.repairs(), w.healer.Status().Why)
	}
	// One is deleted, the other written anew.
	w.delete(gone[0])
	want[gone[1]] = w.put(gone[1], 20<<10)
	for range 4 {
		w.heal()
	}
	w.healer.StartCheck()
	for range 3 {
		s = w.check()
	}
	if s.State != StateHealthy {
		t.Errorf("in the end: %+v", s)
	}
	w.reborn()
	w.heal()
	if s = w.check(); s.State != StateHealthy {
		t.Errorf("and after a restart: %+v", s)
	}
	w.same(want)
}

func TestWhatIsLostForNowIsNotLost(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 300<<10)
	w.heal()
	w.vanish(1, "k")
	w.vanish(2, "k")
	w.down[3].Store(true) // one good shard is here, and another on the drive that is away
	w.ask(4, "k")
	w.heal()
	if s := w.healer.Status(); s.names("k") || s.State != StateDegraded {
		t.Fatalf("with a drive away: %+v", s)
	}
	w.down[3].Store(false)
	w.heal()
	w.whole("k")
}

func TestNamesOfWhatIsLostAreBounded(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	for i := range 3 * maxLost {
		k := fmt.Sprintf("k%03d", i)
		w.put(k, 100)
	}
	w.heal()
	for i := range 3 * maxLost {
		for num := range uint16(3) {
			w.vanish(num+1, fmt.Sprintf("k%03d", i))
		}
	}
	w.healer.StartCheck()
	s := w.check()
	n := 0
	for i := range 3 * maxLost {
		if s.names(fmt.Sprintf("k%03d", i)) {
			n++
		}
	}
	if n != maxLost || !slices.ContainsFunc(s.Why, func(why string) bool { return strings.Contains(why, "other records") }) {
		t.Errorf("%d are named: %q", n, s.Why)
	}
	// The lists are emptied unseen: nothing is lost that is not on them.
	for i := range 3 * maxLost {
		w.delete(fmt.Sprintf("k%03d", i))
	}
	for range 5 {
		w.heal()
	}
	if err := w.healer.keepLost(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s := w.healer.Status(); len(w.healer.check.lost.list) != 0 {
		t.Errorf("after all were deleted: %+v", s)
	}
}

// Members change while a register is looked at whose shards are not where the layout of before says: that is no loss.
func TestShardsThatMoveMeanwhileAreNotLost(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100<<10)
	w.heal()
	for i := uint16(1); i <= 3; i++ {
		w.vanish(i, "k")
		w.ask(i, "k")
	}
	old := w.healer.c.Layout
	l := old()
	next, err := l.WithDrive(placement.Drive{Num: 99, ID: [16]byte{99}})
	if err == nil {
		next, err = next.Swap(1, 99, []uint32{l.PartitionOf(1, []byte("k"))})
	}
	if err != nil {
		t.Fatal(err)
	}
	var published atomic.Bool
	w.healer.c.Layout = func() *placement.Layout {
		if published.Load() {
			return next
		}
		return l
	}
	var n atomic.Int32
	by := map[uint16]node.Drive{}
	for i := uint16(1); i <= 4; i++ {
		d, _ := w.Shards(i)
		by[i] = &hook{Drive: d, n: &n, at: 4, f: func() { published.Store(true) }}
	}
	w.healer.c.Drives = patched{w, by}
	w.heal()
	if !published.Load() {
		t.Fatal("no shard was looked at")
	}
	if s := w.healer.Status(); s.names("k") {
		t.Errorf("it counts as lost: %q", s.Why)
	}
	w.healer.c.Layout, w.healer.c.Drives = old, w
	w.heal()
	if s := w.healer.Status(); !s.names("k") {
		t.Errorf("nothing moves, and it does not count as lost: %q", s.Why)
	}
}
