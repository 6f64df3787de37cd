//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// run is the whole: several stores, one after the other, each through several rounds.
type run struct {
	c      *config
	rng    *rand.Rand
	p      pool
	n      counts
	begun  time.Time
	drives []*drive
	s      *server
	l      *ledger
	rounds int // with this store

	forming, starting, loaded, singles int // rounds by the moment of the fault
	broken, repaired                   int // of the singles: by a remount read-only; waited for until the repairs were done
	stores, compared, listings         int
	lost, passing, late                int
	failed                             int // requests without success while one drive was out
	leaderless                         int // of them, buckets that were not created after the drive was seen to be out
	ended                              int // times that the server ended by itself before it answered
	starts                             []time.Duration
}

func newRun(c *config) *run {
	return &run{c: c, rng: rand.New(rand.NewPCG(c.seed, 1)), p: newPool(c.seed), begun: time.Now()}
}

func (r *run) cuts() int { return r.forming + r.starting + r.loaded }

// all makes the drives, runs the rounds, and leaves nothing running or mounted.
func (r *run) all(ctx context.Context) (err error) {
	fmt.Printf("powercut: seed %d (repeat its choices with -seed %d)\n", r.c.seed, r.c.seed)
	defer func() { err = errors.Join(err, r.clean()) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	due := r.plan()
	for i, single := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if r.c.limit > 0 && time.Since(r.begun) > r.c.limit {
			fmt.Printf("powercut: the limit of %v ends the run after %d of %d rounds\n", r.c.limit, i, len(due))
			break
		}
		if err := r.round(ctx, single); err != nil {
			said := ""
			if r.s != nil {
				said = "\nthe end of the server's log:\n" + r.s.log.brief()
			}
			for _, d := range r.drives {
				said += "\n" + d.String()
			}
			return fmt.Errorf("round %d, seed %d: %w%s", i+1, r.c.seed, err, said)
		}
		if r.c.verbose {
			fmt.Printf("%8.1fs  round %d: %d cuts, %d singles, %d acknowledged, %d lost\n",
				time.Since(r.begun).Seconds(), i+1, r.cuts(), r.singles, r.n.allAcked(), r.lost)
		}
	}
	if r.lost > 0 || r.passing > 0 {
		return fmt.Errorf("seed %d: %d lost, %d wrong at first", r.c.seed, r.lost, r.passing)
	}
	return nil
}

// plan mixes the rounds: true is one that takes a single drive.
func (r *run) plan() []bool {
	due := make([]bool, r.c.cuts+r.c.singles)
	for i := range r.c.singles {
		due[i] = true
	}
	r.rng.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	return due
}

// prepare makes the drives and shows on one of them that a cut is a cut. Whatever fails here fails
// for what the machine lacks.
func (r *run) prepare(ctx context.Context) error {
	for i := range r.c.drives {
		d, err := newDrive(r.c.dir, i, r.c.size)
		if d != nil {
			r.drives = append(r.drives, d)
		}
		if err != nil {
			return impossible{err}
		}
	}
	d := r.drives[0]
	if err := d.format(ctx); err != nil {
		return impossible{err}
	}
	if err := d.mount(); err != nil {
		return impossible{err}
	}
	if err := d.method(); err != nil {
		return impossible{err}
	}
	return d.unmount()
}

func (r *run) clean() error {
	if r.s != nil {
		r.s.kill()
	}
	var list []error
	for _, d := range r.drives {
		list = append(list, d.release())
	}
	return errors.Join(list...)
}

// round is one fault and the comparison after it.
func (r *run) round(ctx context.Context, single bool) error {
	if r.s == nil || r.rounds == r.c.fresh || r.l.sent > r.budget()*3/4 {
		if err := r.newStore(ctx); err != nil {
			return err
		}
	}
	if single {
		if err := r.takeOne(ctx); err != nil {
			return err
		}
	} else {
		if err := r.cutAll(ctx); err != nil {
			return err
		}
	}
	r.rounds++
	return r.compare(ctx, r.rounds%4 == 0 || r.rounds == r.c.fresh)
}

// budget is how many bytes of bodies one store may take: with two copies or shards of twice the size,
// and nothing of what was overwritten collected, the drives stay below two thirds.
func (r *run) budget() int64 { return r.c.size * int64(r.c.drives) / 3 }

// newStore puts a server over empty drives. In one of three the power goes while it forms.
func (r *run) newStore(ctx context.Context) error {
	if r.s != nil {
		r.s.kill()
	}
	var points []string
	for _, d := range r.drives {
		if err := errors.Join(d.unmount(), d.format(ctx), d.mount()); err != nil {
			return err
		}
		points = append(points, d.point)
	}
	var err error
	if r.s, err = newServer(r.c, points); err != nil {
		return err
	}
	r.rounds = 0
	r.l = newLedger(r.budget())
	r.stores++
	if r.rng.IntN(3) == 0 {
		if err := r.s.launch(); err != nil {
			return err
		}
		pause(ctx, time.Duration(r.rng.Int64N(int64(400*time.Millisecond))))
		if err := r.power(); err != nil {
			return err
		}
		r.forming++
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	w := &load{s: r.s, l: r.l, p: r.p, n: &r.n}
	if o := w.create(mainBucket); o != acknowledged {
		return fmt.Errorf("the first bucket was not created")
	}
	return nil
}

// start starts the server, and again where it ended by itself before it answered, as whatever supervises a
// service does. Each is counted and reported.
func (r *run) start(ctx context.Context) error {
	var took time.Duration
	var err error
	for range 3 {
		took, err = r.s.start(ctx)
		if err == nil {
			r.starts = append(r.starts, took)
			return nil
		}
		if ctx.Err() != nil || !errors.Is(err, errEnded) {
			return err
		}
		r.s.gone()
		r.ended++
		fmt.Printf("powercut: the server ended before it answered: %s\n", r.s.log.last())
	}
	return err
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// power takes it from all drives and the server within about two milliseconds, in random order, and
// brings the file systems back.
func (r *run) power() error {
	var handles []*os.File
	defer func() {
		for _, f := range handles {
			f.Close()
		}
	}()
	for _, d := range r.drives {
		f, err := os.Open(d.point)
		if err != nil {
			return err
		}
		handles = append(handles, f)
	}
	acts := []func() error{func() error { r.s.strike(); return nil }}
	for _, f := range handles {
		acts = append(acts, func() error { return cut(f) })
	}
	switch r.rng.IntN(3) {
	case 0: // the server first
	case 1: // the server last
		acts = append(acts[1:], acts[0])
	default:
		r.rng.Shuffle(len(acts), func(i, j int) { acts[i], acts[j] = acts[j], acts[i] })
	}
	gap := time.Duration(r.rng.Int64N(int64(500 * time.Microsecond)))
	if r.rng.IntN(2) == 0 {
		gap = 0
	}
	errs := make([]error, len(acts))
	var wg sync.WaitGroup
	for i, act := range acts {
		wg.Go(func() { errs[i] = act() })
		if gap > 0 {
			time.Sleep(gap)
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, f := range handles {
		f.Close()
	}
	handles = nil
	r.s.gone()
	for _, d := range r.drives {
		if err := errors.Join(d.unmount(), d.mount()); err != nil {
			return err
		}
	}
	return nil
}

// cutAll loads the server, cuts the power at some moment, and starts it again. In one of six the
// power goes again while it starts.
func (r *run) cutAll(ctx context.Context) error {
	w := begin(r.s, r.l, r.p, &r.n, r.rng)
	pause(ctx, time.Duration(r.rng.Int64N(int64(r.c.load)+1)))
	err := r.power()
	w.end()
	if err != nil {
		return err
	}
	r.loaded++
	for r.rng.IntN(6) == 0 && r.cuts() < r.c.cuts {
		if err := r.s.launch(); err != nil {
			return err
		}
		pause(ctx, time.Duration(r.rng.Int64N(int64(500*time.Millisecond))))
		if err := r.power(); err != nil {
			return err
		}
		r.starting++
	}
	return r.start(ctx)
}

// Promises for one drive that goes: how long until writes go on, the state is told, and the drive is
// back.
const (
	goesOn     = 10 * time.Second
	tells      = 15 * time.Second
	awayFor    = 3 * time.Second // longer than a server takes to see that a mount has gone
	comesBack  = 30 * time.Second
	isRepaired = 5 * time.Minute
	inspected  = 10
)

// takeOne takes one drive from the living server: the load goes on. Then it is mounted again.
func (r *run) takeOne(ctx context.Context) error {
	w := begin(r.s, r.l, r.p, &r.n, r.rng)
	err := r.outage(ctx)
	w.end()
	if err != nil {
		return err
	}
	r.singles++
	// Repairs take minutes: they are waited for in the last of these rounds and in some others, and
	// in the rest the next fault meets them under way.
	if !r.c.ostraka() || r.singles < r.c.singles && r.rng.IntN(8) > 0 {
		return nil
	}
	r.repaired++
	if r.c.drained {
		if err := r.s.waitMetric(ctx, isRepaired, "ostraka_repair_backlog", "", 0); err != nil {
			return err
		}
		return r.inspectSome(ctx)
	}
	deadline := time.Now().Add(isRepaired)
	for {
		err := r.inspectSome(ctx)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func (r *run) outage(ctx context.Context) error {
	pause(ctx, time.Duration(r.rng.Int64N(int64(r.c.load)+1)))
	d := r.drives[r.rng.IntN(len(r.drives))]
	before := r.n.allUnknown()
	readOnly := r.rng.IntN(2) == 0
	if readOnly {
		if err := d.breakDown(); errors.Is(err, os.ErrNotExist) {
			readOnly = false // an older kernel
		} else if err != nil {
			return err
		}
	}
	if readOnly {
		r.broken++
	} else {
		f, err := os.Open(d.point)
		if err != nil {
			return err
		}
		err = cut(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	// Requests that run into the fault may fail; then requests succeed again, with few failures.
	pause(ctx, 500*time.Millisecond)
	acked := r.n.allAcked()
	deadline := time.Now().Add(goesOn)
	for r.n.allAcked() < acked+int64(2*r.c.clients) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is out, and in %v only %d requests were acknowledged", d.point, goesOn, r.n.allAcked()-acked)
		}
		pause(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if r.c.ostraka() {
		if err := r.s.waitMetric(ctx, tells, "ostraka_drive_state", `state="online"`, r.c.drives-1); err != nil {
			return err
		}
	}
	settled, buckets := r.n.allUnknown(), r.n.unknown[makeBucket].Load()
	if err := d.unmount(); err != nil {
		return fmt.Errorf("the server does not let go of a drive that failed: %w; it holds %v", err, r.s.holds(d.point))
	}
	pause(ctx, awayFor)
	// Where the drive carried the leader of the control plane, what changes its configuration waits for
	// the next one and may fail meanwhile. Objects do not depend on it.
	led := r.n.unknown[makeBucket].Load() - buckets
	r.leaderless += int(led)
	if n := r.n.allUnknown() - settled - led; n > 0 && r.c.ostraka() {
		return fmt.Errorf("%d requests failed after %s was out of service", n, d.point)
	}
	if led > int64(r.c.clients) && r.c.ostraka() {
		return fmt.Errorf("%d buckets were not created after %s was out of service", led, d.point)
	}
	r.failed += int(r.n.allUnknown() - before)
	if left, err := os.ReadDir(d.point); err != nil || len(left) > 0 {
		return fmt.Errorf("something was written under %s while it was not mounted (%d entries, %v)", d.point, len(left), err)
	}
	if err := d.mount(); err != nil {
		return err
	}
	if r.c.ostraka() {
		return r.s.waitMetric(ctx, comesBack, "ostraka_drive_state", `state="online"`, r.c.drives)
	}
	pause(ctx, awayFor)
	return nil
}

// inspectSome looks at the shards of some keys on every drive.
func (r *run) inspectSome(ctx context.Context) error {
	names := r.names(true)
	r.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	looked := 0
	for _, at := range names {
		e := r.l.keys[at]
		if e.is == nothing || len(e.maybe) > 0 {
			continue
		}
		if err := r.s.inspect(ctx, at.bucket, at.key); err != nil {
			return fmt.Errorf("after the repair: %w%s", err, e.story())
		}
		if looked++; looked == inspected {
			break
		}
	}
	return nil
}

// names are the keys to look at, sorted: all, or those that were written since the last look and
// some others.
func (r *run) names(all bool) []name {
	var out []name
	for at, e := range r.l.keys {
		if all || r.l.touched[at] || len(e.maybe) > 0 {
			out = append(out, at)
		}
	}
	slices.SortFunc(out, func(a, b name) int { return strings.Compare(a.bucket+"/"+a.key, b.bucket+"/"+b.key) })
	return out
}

// Reads that fail are asked again, because a server may need a moment; wrong answers are counted,
// right ones in the second instance too.
const (
	readPatience = 20 * time.Second
	again        = 2 * time.Second
)

// compare reads everything that matters. No load is running.
func (r *run) compare(ctx context.Context, all bool) error {
	var bad []string
	say := func(format string, args ...any) {
		r.lost++
		bad = append(bad, fmt.Sprintf(format, args...))
	}
	if err := r.compareBuckets(ctx, say); err != nil {
		return err
	}
	names := r.names(all)
	got := make([]content, len(names))
	errs := make([]error, len(names))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(r.c.clients, 8) {
		wg.Go(func() {
			for i := range next {
				got[i], errs[i] = r.patientGet(ctx, names[i])
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	waited := false
	for i, at := range names {
		e := r.l.keys[at]
		r.compared++
		if errs[i] == nil && e.allows(got[i]) {
			if !r.l.touched[at] && e.is != got[i] {
				r.late++
			}
			e.seen(got[i])
			continue
		}
		if !waited { // once for all
			pause(ctx, again)
			waited = true
		}
		c, err := r.patientGet(ctx, at)
		if err == nil && e.allows(c) {
			r.passing++
			bad = append(bad, fmt.Sprintf("%s/%s: wrong at first: %v, %v; want %v%s", at.bucket, at.key, got[i], errs[i], e, e.story()))
			continue
		}
		say("%s/%s: %v, %v; want %v%s", at.bucket, at.key, c, err, e, e.story())
	}
	clear(r.l.touched)
	if err := r.compareList(ctx, say); err != nil {
		bad = append(bad, err.Error())
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d differences:\n%s", len(bad), strings.Join(bad, "\n"))
	}
	return nil
}

// patientGet asks again when there is no answer. A damaged body is an answer.
func (r *run) patientGet(ctx context.Context, at name) (content, error) {
	deadline := time.Now().Add(readPatience)
	for {
		c, err := get(ctx, r.s, r.p, at)
		var d damage
		if err == nil || errors.As(err, &d) || ctx.Err() != nil || time.Now().After(deadline) {
			return c, err
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (r *run) compareBuckets(ctx context.Context, say func(string, ...any)) error {
	list, err := r.s.core.ListBuckets(ctx)
	if err != nil {
		return fmt.Errorf("ListBuckets: %w", err)
	}
	have := map[string]bool{}
	for _, b := range list {
		have[b.Name] = true
		if _, known := r.l.buckets[b.Name]; !known {
			say("bucket %s: nobody has created it", b.Name)
		}
	}
	for b, acked := range r.l.buckets {
		switch {
		case have[b]:
			r.l.buckets[b] = true
		case acked:
			say("bucket %s is lost", b)
		}
	}
	return nil
}

func (r *run) compareList(ctx context.Context, say func(string, ...any)) error {
	have := map[string]int64{}
	for token, pages := "", 0; ; pages++ {
		page, err := r.s.core.ListObjectsV2(mainBucket, "", "", token, "", 37)
		if err != nil {
			return fmt.Errorf("LIST: %w", err)
		}
		for _, o := range page.Contents {
			if _, twice := have[o.Key]; twice {
				say("LIST names %s twice", o.Key)
			}
			have[o.Key] = o.Size
		}
		if !page.IsTruncated {
			break
		}
		if pages > 10_000 {
			return errors.New("LIST does not end")
		}
		token = page.NextContinuationToken
	}
	r.listings++
	for at, e := range r.l.keys {
		if at.bucket != mainBucket {
			continue
		}
		size, listed := have[at.key]
		delete(have, at.key)
		// A size of 0 stands for nothing in the ledger too.
		fits := func(c content) bool { return listed == (c != nothing) && size == c.size }
		if !fits(e.is) && !slices.ContainsFunc(e.maybe, fits) {
			say("LIST says %v, %d bytes of %s; want %v%s", listed, size, at.key, e, e.story())
		}
	}
	for key := range have {
		say("LIST names %s, which nobody has written", key)
	}
	return ctx.Err()
}

// report prints the figures.
func (r *run) report(w io.Writer) {
	n := &r.n
	fmt.Fprintf(w, "powercut: seed %d, %v, %d stores of %d drives\n", r.c.seed, time.Since(r.begun).Round(time.Second), r.stores, r.c.drives)
	fmt.Fprintf(w, "  power cuts    %d: %d under load, %d while it started, %d while it formed\n", r.cuts(), r.loaded, r.starting, r.forming)
	fmt.Fprintf(w, "  single drives %d: %d shut down, %d read-only; %d requests failed on the way, %d of them buckets that waited for a leader; %d seen repaired\n",
		r.singles, r.singles-r.broken, r.broken, r.failed, r.leaderless, r.repaired)
	fmt.Fprintf(w, "  acknowledged  %d, of them %d overwrites; slowest %v\n", n.allAcked(), n.overwrites.Load(), time.Duration(n.slowest.Load()).Round(time.Millisecond))
	for k := range kinds {
		fmt.Fprintf(w, "    %-11s %7d acknowledged %6d without an answer %6d refused\n", kindNames[k], n.acked[k].Load(), n.unknown[k].Load(), n.refused[k].Load())
	}
	fmt.Fprintf(w, "  compared      %d reads, %d listings; %d outcomes showed late\n", r.compared, r.listings, r.late)
	if len(r.starts) > 0 {
		s := slices.Sorted(slices.Values(r.starts))
		fmt.Fprintf(w, "  start         median %v, longest %v; %d times it ended by itself and was started again\n",
			s[len(s)/2].Round(time.Millisecond), s[len(s)-1].Round(time.Millisecond), r.ended)
	}
	fmt.Fprintf(w, "  lost          %d; wrong at first %d\n", r.lost, r.passing)
}
