package heal

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// until waits, in virtual time, for a condition.
func until(t *testing.T, what string, w *world, f func(Status) bool) {
	t.Helper()
	for range 3600 {
		if f(w.healer.Status()) {
			return
		}
		w.clock.pass(time.Second)
		time.Sleep(time.Second) // virtual
	}
	t.Fatalf("%s: %+v", what, w.healer.Status())
}

// The whole, by itself: a check at the start, a drive that is replaced, and the check after that.
func TestRunMakesTheStoreHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, object.Unversioned, 4)
		want := w.fill(14)
		w.healer.c.CheckEvery = time.Hour
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { w.healer.Run(ctx) })
		until(t, "the first check", w, func(s Status) bool { return s.State == StateHealthy })
		first := w.healer.Status().Verified
		w.replace(1, 6)
		w.healer.Trigger()
		until(t, "the rebuild", w, func(s Status) bool { return len(w.replaces.list()) == 0 })
		until(t, "the check after it", w, func(s Status) bool { return s.State == StateHealthy && s.Verified.After(first) })
		w.vanish(2, "key-006")
		began := w.clock.now()
		w.healer.StartScrub(0)
		until(t, "the scrubs of all drives", w, func(Status) bool {
			list := w.healer.Scrubs()
			return len(list) == 4 && !slices.ContainsFunc(list, func(s ScrubStatus) bool { return s.LastDone.Before(began) || s.Shards == 0 })
		})
		w.ask(3, "key-006") // what is gone without a row no scrub sees: a read does
		w.healer.Nudge()
		until(t, "the repair", w, func(s Status) bool { return w.repairs() == 0 && s.Backlog == 0 })
		cancel()
		wg.Wait()
		w.same(want)
	})
}

// A read that finds a shard missing asks for its repair, which begins at once and not with the next period.
func TestReadThatMeetsDamageWakesTheHealer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, object.Unversioned, 4)
		w.put("k", 300<<10)
		w.healer.c.Every = time.Hour
		nudged := object.New(object.Config{Control: w.control, Drives: w, Meta: w.meta, Now: w.clock.now, CacheBytes: -1, OnRepair: w.healer.Nudge})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { w.healer.Run(ctx) })
		until(t, "the first pass", w, func(Status) bool { return w.healer.Progress().Passes > 0 })
		for num := range uint16(2) {
			w.vanish(num+1, "k")
		}
		begun := time.Now() // virtual
		obj, err := nudged.Get(ctx, "bkt", "k", object.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := obj.WriteTo(io.Discard); err != nil {
			t.Fatal(err)
		}
		obj.Close()
		until(t, "the repair", w, func(Status) bool { return w.healer.Progress().Repaired > 0 && w.repairs() == 0 })
		if d := time.Since(begun); d > 10*time.Second {
			t.Errorf("the repair took %v", d)
		}
		cancel()
		wg.Wait()
		if err := nudged.Close(context.Background()); err != nil {
			t.Error(err)
		}
		w.whole("k")
	})
}

func TestNudgesAllTheTimeMakePassesNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, object.Unversioned, 4)
		w.healer.c.Every = time.Hour
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { w.healer.Run(ctx) })
		for range 1000 {
			w.healer.Nudge()
			time.Sleep(10 * time.Millisecond) // virtual: ten seconds in all
		}
		cancel()
		wg.Wait()
		if n := w.healer.Progress().Passes; n < 5 || n > 12 {
			t.Errorf("%d passes in ten seconds", n)
		}
	})
}

// hungInline is a drive that answers nothing about inline shards, until it is released.
type hungInline struct {
	node.Drive
	release chan struct{}
}

func (d *hungInline) InlineShards(ctx context.Context, ids []erasure.DataID) ([][]byte, error) {
	<-d.release
	return d.Drive.InlineShards(ctx, ids)
}

func TestDriveThatHangsDoesNotStopARebuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, object.Unversioned, 4)
		want := w.fill(14)
		w.heal()
		w.replace(1, 6)
		d, _ := w.Shards(2)
		sick := &hungInline{d, make(chan struct{})}
		w.healer.c.Drives = patched{w, map[uint16]node.Drive{2: sick}}
		for range 3 {
			if err := w.healer.work(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		s := w.healer.Status()
		if len(s.Jobs) == 0 || s.Jobs[0].Phase != PhaseVerify || s.Jobs[0].Shards == 0 {
			t.Errorf("while the drive hangs: %+v", s)
		}
		close(sick.release)
		if err := w.healer.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.healer.c.Drives = w
		w.rebuilt()
		w.heal()
		w.same(want)
	})
}
