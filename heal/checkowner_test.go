package heal

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// several are two processes of one store.
type several struct {
	healers [2]*Healer
	one     atomic.Int64 // who makes the check
	pages   atomic.Int64 // looks whether it is the one, after which the other is; 0: never
	cut     atomic.Bool
}

// member is one of them.
type member struct {
	s  *several
	me int64
}

func (m member) Mine() bool {
	if m.s.one.Load() == m.me && m.s.pages.Load() > 0 && m.s.pages.Add(-1) == 0 {
		m.s.one.Store(1 - m.me)
	}
	return m.s.one.Load() == m.me
}

func (m member) Exchange(_ context.Context, note []byte) ([]byte, error) {
	if m.s.cut.Load() {
		return nil, errs.E("test", errs.Unavailable, "cut off")
	}
	return m.s.healers[1-m.me].CheckAnswer(note)
}

// two makes two processes of the world, each with half of the drives.
func (w *world) two() *several {
	s := &several{}
	for i := range s.healers {
		c := w.healer.c
		c.Checks = member{s, int64(i)}
		c.Local = func() (out []node.Drive) {
			for num := range w.down {
				if d, ok := w.Shards(uint16(num)); ok && num%2 == i {
					out = append(out, d)
				}
			}
			return out
		}
		s.healers[i] = New(c)
	}
	return s
}

// work has both processes do what is due: passes, upkeep, then the jobs.
func (s *several) work(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	for _, h := range s.healers {
		h.Trigger()
		if err := h.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.upkeep(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.work(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneProcessMakesTheCheckAndAllKnowTheResult(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(24)
	w.heal()
	s := w.two()
	a, b := s.healers[0], s.healers[1]
	b.StartCheck() // asked of the one that does not make it
	s.work(t)
	s.work(t)
	sa, sb := a.Status(), b.Status()
	if sa.State != StateHealthy || sb.State != StateHealthy {
		t.Fatalf("the one that checks: %s %q; the other: %s %q", sa.State, sa.Why, sb.State, sb.Why)
	}
	if !sb.Verified.Equal(sa.Verified) || sb.VerifiedShards != sa.VerifiedShards || sa.VerifiedShards == 0 {
		t.Errorf("they tell of different checks: %+v; %+v", sa, sb)
	}
	if n := len(b.ended); n != 0 || len(sb.Jobs) != 1 || sb.Jobs[0].Kind != KindCheck || sb.Jobs[0].State != JobDone {
		t.Errorf("the other has %d jobs that ended itself, and tells of %+v", n, sb.Jobs)
	}
	// What the other sees ends it for both.
	b.taint("a drive was away")
	if st := b.Status(); st.State == StateHealthy {
		t.Error("healthy, and a drive was away")
	}
	s.work(t)
	if sa, sb = a.Status(), b.Status(); sa.State == StateHealthy || sb.State == StateHealthy {
		t.Errorf("a drive was away: %s, %s", sa.State, sb.State)
	}
	a.StartCheck()
	s.work(t)
	s.cut.Store(true) // from here on it knows only what it was told
	s.work(t)
	if sa, sb = a.Status(), b.Status(); sa.State != StateHealthy || sb.State != StateHealthy {
		t.Errorf("after another check: %s %q; %s %q", sa.State, sa.Why, sb.State, sb.Why)
	}
}

// The process that leads changes in the middle: the next one goes on, and reads nothing again.
func TestACheckGoesOnInAnotherProcess(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(24)
	w.heal()
	s := w.two()
	a, b := s.healers[0], s.healers[1]
	s.work(t)
	a.StartCheck()
	s.pages.Store(3) // when it begins, before the page, and after it
	ctx := context.Background()
	if err := a.work(ctx); err != nil {
		t.Fatal(err)
	}
	if s.one.Load() != 1 || !a.Status().Verified.IsZero() {
		t.Fatalf("the first process was not stopped in the middle: %+v", a.Status())
	}
	done := a.check.state.Shards
	if done == 0 {
		t.Fatal("the first process has read nothing")
	}
	s.work(t)
	s.work(t)
	if sa, sb := a.Status(), b.Status(); sb.Verified.IsZero() || sb.VerifiedShards != done || !sa.Verified.Equal(sb.Verified) {
		t.Errorf("%d shards were read; the second process tells of %+v, the first of %+v", done, sb, sa)
	}
	// The result lies on all drives: it is known at a start at which nobody answers.
	s = w.two()
	s.one.Store(-1)
	s.cut.Store(true)
	s.work(t)
	for i, h := range s.healers {
		if h.Status().Verified.IsZero() {
			t.Errorf("process %d has forgotten the check", i)
		}
	}
}

// A drive that is added has a number before it is open, and no places: nobody misses it, and nothing that was verified
// is in doubt.
func TestADriveWithoutPlacesIsMissedByNobody(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fill(6)
	w.heal()
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy {
		t.Fatalf("before: %s %q", s.State, s.Why)
	}
	if err := w.relayout(func(l *placement.Layout) (*placement.Layout, error) {
		return l.WithDrive(placement.Drive{Num: 9, ID: [16]byte{9}})
	}); err != nil {
		t.Fatal(err)
	}
	w.heal()
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("with a drive that is not open yet: %s %q", s.State, s.Why)
	}
	w.healer.Returned(9)
	w.heal()
	w.upkeep()
	w.heal()
	for _, why := range w.check().Why {
		if strings.Contains(why, "away") {
			t.Errorf("once it is open: %s", why)
		}
	}
}
