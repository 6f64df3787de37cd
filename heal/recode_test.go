package heal

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// putReduced puts an object of the class whose profile a test can change.
func (w *world) putReduced(key string, size int) []byte {
	w.t.Helper()
	b := bytes.Repeat([]byte(key+"|"), size/(len(key)+1)+1)[:size]
	if _, err := w.store.Put(context.Background(), "bkt", key, bytes.NewReader(b), object.PutOptions{Size: int64(size), Class: object.ClassReduced}); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// upload begins an upload of two parts, and returns what completes it.
func (w *world) upload(key string, sizes ...int) (want []byte, complete func()) {
	w.t.Helper()
	ctx := context.Background()
	up, err := w.store.CreateUpload(ctx, "bkt", key, object.UploadOptions{Class: object.ClassReduced})
	if err != nil {
		w.t.Fatal(err)
	}
	var list []object.CompletedPart
	for i, n := range sizes {
		b := bytes.Repeat([]byte{byte('a' + i)}, n)
		p, err := w.store.PutPart(ctx, "bkt", key, up.UploadID, i+1, bytes.NewReader(b), object.PartOptions{Size: int64(n)})
		if err != nil {
			w.t.Fatal(err)
		}
		want, list = append(want, b...), append(list, object.CompletedPart{Number: i + 1, ETag: p.ETag})
	}
	return want, func() {
		w.t.Helper()
		if _, err := w.store.CompleteUpload(ctx, "bkt", key, up.UploadID, list, object.CompleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// fillReduced puts objects of all sorts, and returns what they are.
func (w *world) fillReduced(n int) map[string][]byte {
	w.t.Helper()
	want := map[string][]byte{}
	for i := range n {
		key := fmt.Sprintf("rrs-%03d", i)
		if i%3 == 0 {
			w.putReduced(key, 77) // an older version, or an overwrite
		}
		want[key] = w.putReduced(key, []int{0, 1, 100, 3000, 20 << 10, 300 << 10, 700 << 10}[i%7])
	}
	for _, key := range []string{"rrs-parts-1", "rrs-parts-2"} {
		b, complete := w.upload(key, 300<<10, 900, 20<<10)
		complete()
		want[key] = b
	}
	want["standard"] = w.put("standard", 5000)
	return want
}

// reduce gives the class another profile.
func (w *world) reduce(k, m uint8) {
	w.t.Helper()
	if err := w.relayout(func(l *placement.Layout) (*placement.Layout, error) {
		return l.WithReduced(erasure.Profile{Data: k, Parity: m})
	}); err != nil {
		w.t.Fatal(err)
	}
}

// recode lets the re-coding look after itself: it meets a layout, and begins once that has lasted.
func (w *world) recode() error {
	return w.recodeIn(context.Background(), w.healer)
}

func (w *world) recodeIn(ctx context.Context, h *Healer) error {
	if err := h.recodeAll(ctx); err != nil {
		return err
	}
	w.clock.pass(h.c.Grace)
	return h.recodeAll(ctx)
}

// old counts, over the rows of all drives, the bodies that are not in the profile of their class, and the parts of
// uploads that are not.
func (w *world) old() (n int) {
	w.t.Helper()
	ctx := context.Background()
	l := w.control.Layout()
	for _, d := range w.healer.c.Local() {
		r, err := d.Rows(ctx, &metadata.RowsRequest{Limit: 10000})
		if err != nil || r.More {
			w.t.Fatalf("more %v, %v", r != nil && r.More, err)
		}
		for _, row := range r.Rows {
			g := l.Group(l.PartitionOf(row.Address.Bucket, row.Address.Key))
			if row.Row == nil || row.Row.State.Current == nil || g.Position(d.Num()) < 0 {
				continue
			}
			look := func(v *metadata.Version) {
				class := v.Class
				if v.Kind == metadata.VersionPart {
					class = object.ClassReduced // of all uploads here
				}
				if v.Data != nil && v.Data.Profile != w.store.ProfileOf(l, class, g.Partition) {
					n++
				}
			}
			look(row.Row.State.Current)
			if row.Row.State.Older == 0 {
				continue
			}
			versions, more, err := versionsOf(ctx, []node.Drive{d}, g, row.Address, row.Row.State.ID, ^uint64(0))
			if err != nil || more {
				w.t.Fatal(err)
			}
			for i := range versions {
				look(&versions[i])
			}
		}
	}
	return n
}

// collected runs passes until what was let go of is gone.
func (w *world) collected() {
	w.t.Helper()
	for range 6 {
		w.heal()
		w.upkeep()
	}
}

func TestDataAreReCodedOnceAndForAll(t *testing.T) {
	w := newWorld(t, object.Enabled)
	want := w.fillReduced(14)
	w.heal()
	for range 2 { // the first layout: there is nothing to do, and that is kept
		if err := w.recode(); err != nil {
			t.Fatal(err)
		}
		w.clock.pass(25 * time.Hour)
	}
	if s := w.healer.Status(); len(s.Jobs) != 0 {
		t.Fatalf("nothing was to be done: %+v", s.Jobs)
	}
	w.reduce(2, 2)
	before := w.old()
	if before == 0 {
		t.Fatal("nothing is old")
	}
	if err := w.recode(); err != nil {
		t.Fatal(err)
	}
	s := w.healer.Status()
	if len(s.Jobs) != 1 || s.Jobs[0].Kind != KindRecode || s.Jobs[0].State != JobDone || s.Jobs[0].Bad != 0 || s.Jobs[0].Shards == 0 || s.Jobs[0].Bytes == 0 {
		t.Errorf("jobs: %+v", s.Jobs)
	}
	w.collected()
	if n := w.old(); n != 0 {
		t.Errorf("%d of %d bodies are still old", n, before)
	}
	w.same(want)
	// The second walk, a day later, is the last.
	states := func() (list []recodeState) {
		for _, d := range w.healer.c.Local() {
			s, err := w.healer.recodeStateOf(context.Background(), d)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, *s)
		}
		return list
	}
	w.clock.pass(25 * time.Hour)
	if err := w.recode(); err != nil {
		t.Fatal(err)
	}
	for _, s := range states() {
		if !s.Done || s.Round != 2 || s.Left != 0 || s.Late != 0 {
			t.Errorf("after the second walk: %+v", s)
		}
	}
	w.reborn()
	w.clock.pass(100 * time.Hour)
	if err := w.recode(); err != nil {
		t.Fatal(err)
	}
	for _, s := range states() {
		if s.Round != 2 {
			t.Errorf("a new process walks again: %+v", s)
		}
	}
	if s := w.healer.Status(); len(s.Jobs) != 0 {
		t.Errorf("jobs of a new process: %+v", s.Jobs)
	}
	w.heal()
	w.healer.StartCheck()
	if s := w.check(); s.State != StateHealthy {
		t.Errorf("after it all: %+v", s)
	}
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left: %+v", n, w.healer.Progress())
	}
}

func TestReCodingWaitsForADriveAndGoesOn(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fillReduced(7)
	w.heal()
	w.reduce(2, 2)
	w.down[2].Store(true)
	if err := w.recode(); err != nil {
		t.Fatal(err)
	}
	s := w.healer.Status()
	if len(s.Jobs) != 1 || s.Jobs[0].Kind != KindRecode || s.Jobs[0].State != JobWaiting || s.Jobs[0].Bad == 0 || s.Jobs[0].LastErr == "" {
		t.Errorf("jobs with a drive away: %+v", s.Jobs)
	}
	if s.State == StateHealthy {
		t.Errorf("healthy: %+v", s)
	}
	for key, b := range want {
		w.reads(key, b)
	}
	w.down[2].Store(false)
	if err := w.recode(); err != nil { // too soon
		t.Fatal(err)
	}
	if n := w.old(); n == 0 {
		t.Error("what could not be re-coded did not wait")
	}
	w.healer.Trigger()
	for range 2 { // that drive's own walk, and the second one of the others
		if err := w.recode(); err != nil {
			t.Fatal(err)
		}
	}
	w.collected()
	if n := w.old(); n != 0 {
		t.Errorf("%d bodies are still old", n)
	}
	w.same(want)
}

func TestReCodingIsPausedWithHealing(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.fillReduced(7)
	w.heal()
	w.reduce(2, 2)
	w.healer.Configure(Settings{Paused: true})
	before := w.old()
	if err := w.recode(); err != nil {
		t.Fatal(err)
	}
	if n := w.old(); n != before {
		t.Errorf("%d of %d bodies are old", n, before)
	}
	w.healer.Configure(Settings{})
	if err := w.recode(); err != nil {
		t.Fatal(err)
	}
	w.collected()
	if n := w.old(); n != 0 {
		t.Errorf("%d bodies are still old", n)
	}
}

// interrupted cuts the re-coding off, as the end of a process does, and counts.
type interrupted struct {
	*object.Store
	after  int64
	cancel context.CancelFunc
	n      atomic.Int64
	fail   func(a metadata.Address) error // nil: never
}

func (r *interrupted) Recode(ctx context.Context, a metadata.Address, seq uint64, pace func(context.Context, int) error) (int, int64, error) {
	if n := r.n.Add(1); r.cancel != nil && n > r.after {
		r.cancel()
		return 0, 0, ctx.Err()
	}
	if r.fail != nil {
		if err := r.fail(a); err != nil {
			return 0, 0, err
		}
	}
	return r.Store.Recode(ctx, a, seq, pace)
}

func TestReCodingGoesOnWhereAProcessEnded(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	const objects = 2*walkPage + 100
	for i := range objects {
		w.putReduced(fmt.Sprintf("k%04d", i), 10)
	}
	w.heal()
	w.reduce(2, 2)
	tries := int64(0)
	runs := 0
	for w.old() > 0 {
		if runs++; runs > 20 {
			t.Fatalf("%d bodies are old after %d runs", w.old(), runs)
		}
		ctx, cancel := context.WithCancel(context.Background())
		r := &interrupted{Store: w.store, after: walkPage + 50, cancel: cancel}
		w.healer.c.Recoder = r
		err := w.recodeIn(ctx, w.healer)
		if err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
		tries += min(r.n.Load(), r.after)
		cancel()
		w.reborn()
		w.heal() // a drive may have missed what was going on when the process ended
	}
	// A page is begun anew, its objects that are done are passed over: they are not given out again.
	if runs < 2 || tries > objects+objects/10 {
		t.Errorf("%d versions were given out for %d objects, in %d runs", tries, objects, runs)
	}
}

// An upload that was begun before, and completed when all else was done, is met by a later walk.
func TestUploadsThatAreOpenWait(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want, complete := w.upload("k", 300<<10, 500)
	w.heal()
	w.reduce(2, 2)
	day := func() {
		t.Helper()
		w.settle()
		w.clock.pass(25 * time.Hour)
		if err := w.recode(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		day()
	}
	for _, d := range w.healer.c.Local() {
		if s, err := w.healer.recodeStateOf(context.Background(), d); err != nil || s.Done || s.Late == 0 {
			t.Errorf("with an open upload: %+v, %v", s, err)
		}
	}
	if s := w.healer.Status(); len(s.Jobs) != 0 {
		t.Errorf("an open upload is nobody's to wait for: %+v", s.Jobs)
	}
	complete()
	w.reads("k", want)
	day()
	w.collected()
	if n := w.old(); n != 0 {
		t.Errorf("%d bodies are still old", n)
	}
	w.reads("k", want)
	day()
	for _, d := range w.healer.c.Local() {
		if s, err := w.healer.recodeStateOf(context.Background(), d); err != nil || !s.Done {
			t.Errorf("at the end: %+v, %v", s, err)
		}
	}
}

// Each partition is re-coded by one of several processes; what one of them leaves, another takes over once the first
// is through.
func TestProcessesShareTheReCoding(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 6)
	want := w.fillReduced(21)
	w.heal()
	w.reduce(2, 2)
	var counted sync.Map // by address: which process
	var healers []*Healer
	var first, failing atomic.Bool
	first.Store(true)
	failing.Store(true)
	for i := range 2 {
		c := w.healer.c
		all := c.Local
		c.Local = func() (list []node.Drive) {
			for _, d := range all() {
				if (d.Num() > 3) == (i == 1) {
					list = append(list, d)
				}
			}
			return list
		}
		c.Recoder = &interrupted{Store: w.store, fail: func(a metadata.Address) error {
			if i == 0 && string(a.Key) == "rrs-006" && failing.Load() {
				return errs.E("test", errs.Unavailable, "not here")
			}
			by, known := counted.LoadOrStore(string(a.Key), i)
			if known && by != i && first.Load() { // later, a drive that missed it still looks as if

				t.Errorf("%s: by process %v, and by process %d", a.Key, by, i)
			}
			return nil
		}}
		healers = append(healers, New(c))
	}
	round := func() {
		t.Helper()
		for _, h := range healers {
			h.Trigger()
			if err := w.recodeIn(context.Background(), h); err != nil {
				t.Fatal(err)
			}
		}
		w.settle()
	}
	round()
	first.Store(false)
	by := [2]int{}
	counted.Range(func(_, v any) bool { by[v.(int)]++; return true })
	if by[0] == 0 || by[1] == 0 {
		t.Errorf("versions by process: %v", by)
	}
	// What the first does not get done, the other does in time, if it is on its drives.
	for range 3 {
		round()
	}
	failing.Store(false)
	round()
	w.collected()
	if n := w.old(); n != 0 {
		t.Errorf("%d bodies are still old", n)
	}
	w.same(want)
}

func TestWhenAWalkIsDue(t *testing.T) {
	t0 := time.Unix(1_800_000_000, 0)
	day := 24 * time.Hour
	for _, c := range []struct {
		name string
		s    recodeState
		now  time.Time
		soon bool
		want bool
	}{
		{"just met", recodeState{Since: t0}, t0, true, false},
		{"never walked", recodeState{Since: t0}, t0.Add(time.Minute), false, true},
		{"under way", recodeState{Since: t0, Round: 1, Begun: t0}, t0.Add(day), true, false},
		{"clean, and writes of before may be under way", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(time.Hour)}, t0.Add(day - 1), true, false},
		{"clean, a day later", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(time.Hour)}, t0.Add(day), false, true},
		{"something is left", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(time.Second), Left: 1}, t0.Add(time.Second + recodeLeast - 1), false, false},
		{"something is left, and somebody asks", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(time.Second), Left: 1}, t0.Add(2 * time.Second), true, true},
		{"something is left, for long enough", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(time.Second), Left: 1}, t0.Add(time.Second + recodeLeast), false, true},
		{"something is left of half a minute", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(30 * time.Second), Left: 1}, t0.Add(330*time.Second - 1), false, false},
		{"something is left of half a minute, for ten times as long", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(30 * time.Second), Left: 1}, t0.Add(330 * time.Second), false, true},
		{"something is left of five minutes", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(5 * time.Minute), Left: 1}, t0.Add(5*time.Minute + recodePause - 1), false, false},
		{"something is left of five minutes, for long enough", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(5 * time.Minute), Left: 1}, t0.Add(5*time.Minute + recodePause), false, true},
		{"something is left of a long walk", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(5 * time.Hour), Left: 1}, t0.Add(9 * time.Hour), false, false},
		{"something is late", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(5 * time.Hour), Late: 1}, t0.Add(day), true, false},
		{"something is late, a day after", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(5 * time.Hour), Late: 1}, t0.Add(29 * time.Hour), false, true},
		{"done", recodeState{Since: t0, Round: 2, Begun: t0, Ended: t0, Done: true}, t0.Add(1000 * day), true, false},
		{"the clock was set back", recodeState{Since: t0, Round: 1, Begun: t0, Ended: t0.Add(time.Hour)}, t0.Add(-day), false, true},
	} {
		if got := c.s.next(c.now, time.Minute, day, c.soon); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	s := recodeState{Since: t0, Round: 1, Begun: t0.Add(day - 1)}
	if s.end(t0.Add(30*time.Hour), day); s.Done {
		t.Error("a walk that began within the day is the last")
	}
	s = recodeState{Since: t0, Round: 2, Begun: t0.Add(day)}
	if s.end(t0.Add(30*time.Hour), day); !s.Done {
		t.Error("a clean walk after the day is not the last")
	}
}

// By itself: a server that is left alone re-codes, and is healthy in the end.
func TestRunReCodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, object.Unversioned, 4)
		want := w.fillReduced(14)
		w.healer.c.CheckEvery = time.Hour
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { w.healer.Run(ctx) })
		until(t, "the first check", w, func(s Status) bool { return s.State == StateHealthy })
		w.clock.pass(2 * time.Hour) // uploads are old enough
		w.reduce(2, 2)
		until(t, "the re-coding", w, func(s Status) bool {
			return slices.ContainsFunc(s.Jobs, func(j Job) bool { return j.Kind == KindRecode && j.State == JobDone })
		})
		until(t, "the collection", w, func(s Status) bool { return w.old() == 0 && s.Backlog == 0 && w.repairs() == 0 })
		w.healer.StartCheck()
		first := w.healer.Status().Verified
		until(t, "a check", w, func(s Status) bool { return s.State == StateHealthy && s.Verified.After(first) })
		cancel()
		wg.Wait()
		w.same(want)
	})
}

func TestAPauseStopsInTheMiddle(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	want := w.fillReduced(14)
	w.heal()
	w.clock.pass(2 * time.Hour)
	w.reduce(2, 2)
	r := &interrupted{Store: w.store}
	r.fail = func(metadata.Address) error {
		if r.n.Load() == 6 {
			w.healer.Configure(Settings{Paused: true})
		}
		return nil
	}
	w.healer.c.Recoder = r
	if err := w.recode(); err != nil {
		t.Fatal(err)
	}
	if n := r.n.Load(); n < 6 || n > 20 {
		t.Errorf("%d versions were given out", n)
	}
	if s := w.healer.Status(); len(s.Jobs) != 1 || s.Jobs[0].State != JobPaused || s.Jobs[0].Shards == 0 {
		t.Errorf("jobs: %+v", s.Jobs)
	}
	for key, b := range want {
		w.reads(key, b)
	}
	w.healer.Configure(Settings{})
	if err := w.healer.recodeAll(context.Background()); err != nil { // no pause follows upon the pause
		t.Fatal(err)
	}
	w.collected()
	if n := w.old(); n != 0 {
		t.Errorf("%d bodies are still old", n)
	}
	w.same(want)
}

// Who met only what is others' to do walks again when they are through, not before.
func TestAnotherWalkWaitsForTheOthers(t *testing.T) {
	w := newWorldOf(t, object.Unversioned, 4)
	w.fillReduced(14)
	w.heal()
	w.reduce(2, 2)
	all := w.healer.c.Local
	of := func(nums ...uint16) *Healer {
		c := w.healer.c
		c.Local = func() []node.Drive {
			return slices.DeleteFunc(all(), func(d node.Drive) bool { return !slices.Contains(nums, d.Num()) })
		}
		return New(c)
	}
	mine, theirs := of(1), of(2, 3, 4)
	state := func() recodeState {
		t.Helper()
		d, _ := w.Shards(1)
		s, err := mine.recodeStateOf(context.Background(), d)
		if err != nil {
			t.Fatal(err)
		}
		return *s
	}
	for range 5 {
		if err := w.recodeIn(context.Background(), mine); err != nil {
			t.Fatal(err)
		}
		w.clock.pass(time.Hour)
	}
	if s := state(); s.Round != 1 || s.Others == 0 || s.Left != 0 {
		t.Errorf("before the others are through: %+v", s)
	}
	if err := w.recodeIn(context.Background(), theirs); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.clock.pass(time.Hour)
	if err := mine.recodeAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s := state(); s.Round != 2 || s.Others+s.Left != 0 {
		t.Errorf("once the others are through: %+v", s)
	}
	w.collected()
	if n := w.old(); n != 0 {
		t.Errorf("%d bodies are still old", n)
	}
}
