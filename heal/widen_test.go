package heal

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// newLoneWorld is a store whose partitions all lie on its first drive, without parity; n−1 others have come to it.
func newLoneWorld(t *testing.T, versioning object.Versioning, n int) *world {
	t.Helper()
	w := newWorldOf(t, versioning, n)
	drives := w.control.Layout().Drives()
	l, err := placement.NewLayout(drives[:1], erasure.Profile{Data: 1}, 3)
	for _, d := range drives[1:] {
		if err == nil {
			l, err = l.WithDrive(d)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	w.control.layout = l
	return w
}

// widen opens a plan that makes all partitions as wide as a profile.
func (w *world) widen(p *plans, k, m uint8) {
	w.t.Helper()
	prof := erasure.Profile{Data: k, Parity: m}
	if err := w.relayout(func(l *placement.Layout) (*placement.Layout, error) {
		return l.WithProfile(prof, placement.ReducedProfile(prof))
	}); err != nil {
		w.t.Fatal(err)
	}
	l := w.control.Layout()
	var list []placement.Move
	for part := range l.Partitions() {
		g := l.Group(part)
		drives := slices.Clone(l.Drives())
		for i, pos := int(part), len(g.Drives); pos < l.N(); i++ {
			if d := drives[i%len(drives)]; g.Position(d.Num) < 0 {
				list = append(list, placement.Move{Partition: part, Position: pos, To: d.Num})
				pos++
			}
		}
	}
	p.open(list)
}

// recodeAllOf re-codes all that is of an old profile. What a drive that was slow held up comes with another try.
func (w *world) recodeAllOf() {
	w.t.Helper()
	for range 5 {
		if err := w.recode(); err == nil && w.old() == 0 {
			return
		}
		w.heal()
		w.clock.pass(time.Hour)
	}
	w.t.Fatalf("%d bodies are not re-coded: %+v", w.old(), w.healer.Status().Jobs)
}

func TestAStoreOfOneDriveBecomesOneOfMany(t *testing.T) {
	w := newLoneWorld(t, object.Enabled, 6)
	want := w.fill(24)
	w.delete("key-007")
	delete(want, "key-007")
	w.heal()
	p := w.planned()
	w.widen(p, 2, 2)
	w.moved(p)
	l := w.control.Layout()
	if l.Widening() || l.Group(3).Quorum.W != 3 {
		t.Fatalf("%d partitions are narrow, %+v", l.Narrow(), l.Group(3))
	}
	j := w.healer.Status().Jobs
	if i := slices.IndexFunc(j, func(j Job) bool { return j.Kind == KindMove }); i < 0 || j[i].State != JobDone || j[i].Swaps == 0 || j[i].MovesDone != 24 {
		t.Errorf("the job: %+v", j)
	}
	w.equalDigests()
	w.same(want)
	want["new"], want["new and large"] = w.put("new", 100), w.put("new and large", 700<<10)
	// What was written before lies on one drive, and is found by all that look for it.
	w.vanish(l.Group(l.PartitionOf(1, []byte("new and large"))).Drives[3], "new and large")
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after the check: %+v", s)
	}
	for key := range want {
		w.whole(key)
	}
	if w.old() == 0 {
		t.Fatal("nothing is left of the old profile: this shows nothing")
	}
	if !w.healer.Outstanding(t.Context()).OldProfiles {
		t.Error("it does not tell that data of the old profile may be there")
	}
	w.recodeAllOf()
	if w.healer.Outstanding(t.Context()).OldProfiles {
		if err := w.recode(); err != nil { // a walk that meets nothing any more
			t.Fatal(err)
		}
		w.clock.pass(time.Hour)
		if err := w.recode(); err != nil || w.healer.Outstanding(t.Context()).OldProfiles {
			t.Errorf("all is re-coded, and it tells that data of the old profile may be there: %v", err)
		}
	}
	w.collected()
	w.equalDigests()
	w.same(want)
	w.enough(want)
	if list := w.displaced(); len(list) > 0 {
		t.Errorf("shards lie where they do not belong: %v", list)
	}
	w.heal() // what drives that were slow missed of the rounds since
	w.heal()
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}

// A drive of a partition that has become wider is drained, and one is lost and replaced, while data of the old
// profile lie there.
func TestDrivesOfAWidenedPartitionAreDrainedAndReplaced(t *testing.T) {
	w := newLoneWorld(t, object.Unversioned, 6)
	want := w.fill(16)
	w.heal()
	p := w.planned()
	w.widen(p, 2, 2)
	w.moved(p)
	for i := range 6 {
		key := fmt.Sprint("wide-", i)
		want[key] = w.put(key, 300<<10*(i%3))
	}
	w.heal()
	p.open(w.drain(1), 1) // all data of the old profile are on it
	w.moved(p)
	l := w.control.Layout()
	if _, there := l.Drive(1); there {
		t.Fatal("drive 1 is still in the layout")
	}
	w.equalDigests()
	w.same(want)
	if list := w.displaced(); len(list) > 0 {
		t.Errorf("shards lie where they do not belong: %v", list)
	}
	w.same(want)
	w.recodeAllOf()
	w.collected()
	w.replace(2, 9)
	w.rebuilt()
	w.heal()
	w.equalDigests()
	w.same(want)
	w.enough(want)
}

// Writers, readers and listers go on while partitions become wider.
func TestPartitionsBecomeWiderUnderLoad(t *testing.T) {
	w := newLoneWorld(t, object.Unversioned, 5)
	want := w.fill(20)
	w.heal()
	p := w.planned()
	w.healer.moving.batch = 2
	w.widen(p, 2, 2)
	clock := &timed{Mover: w.healer.c.Mover}
	w.healer.c.Mover = clock
	ops := w.underLoad([]int{10, 3000, 300 << 10, 700 << 10}, want, func() { w.moved(p) })
	t.Logf("%d operations meanwhile; %d changes of members, %v each, %v the longest", ops, clock.n, clock.all/time.Duration(max(clock.n, 1)), clock.longest)
	w.equalDigests()
	w.same(want)
	if w.control.Layout().Widening() {
		t.Error("partitions are narrow")
	}
}
