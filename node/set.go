package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
	"github.com/ostraka/ostraka/metadata"
)

// Options of OpenSet. All have defaults.
type Options struct {
	// FS holds the drives; nil means the operating system's.
	FS vfs.FS
	// Cluster refuses drives of any other cluster; zero accepts that of the first formed drive.
	Cluster disk.ID
	// Disk is what each drive is opened with; Cluster, Drive, Epoch, Logger and Now are set here.
	Disk disk.Options
	// WatchEvery is the period of the watchers; 0 means 1 s, negative none (then Check looks).
	WatchEvery time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
	// Now; nil means time.Now.
	Now func() time.Time
	// Form, if there, is asked before a new cluster is formed over empty directories. An error refuses that: nothing is written,
	// and OpenSet fails with it.
	Form func() error
	// NoForm refuses to form a new cluster over empty directories.
	NoForm bool
	// Join leaves directories that are all empty as they are, for Enter and Recruit: OpenSet succeeds with no
	// drive open then.
	Join bool
	// OnLost is called when an open drive is closed because it is faulty, gone or taken out of service, OnReturn when
	// a drive that was not open is. Both run on the drive's watcher or in the call that brought it about, one at a
	// time per drive.
	OnLost   func(num uint16, err error)
	OnReturn func(num uint16)
}

// Set is the drives of this process. Its methods are safe for concurrent use.
type Set struct {
	o        Options
	fs       vfs.FS
	log      *slog.Logger
	founders []disk.Founder
	epoch    atomic.Pointer[func(drive uint16, partition uint32) (uint64, bool)]
	replaced atomic.Pointer[func(drive uint16) bool]

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	watchers sync.WaitGroup

	slots []*slot // one per path, in the order given

	// mu guards the fields below.
	mu     sync.Mutex
	byNum  map[uint16]*slot
	gone   map[uint16]bool // retired by Retire: never opened again
	formed bool
	// cluster and node are zero until they are known.
	cluster, node disk.ID
}

// slot is one path and the drive that is there, if any.
type slot struct {
	path string
	wake chan struct{} // capacity 1: look now

	// check orders the looks at the path: who has put something in may look. It is held during I/O.
	check chan struct{}

	// mu guards the fields below.
	mu     sync.Mutex
	drive  *disk.Drive // open; nil when not
	known  bool        // the drive id was open here, and no other is expected
	num    uint16      // of the drive that is, was or was seen here; 0: none was
	id     disk.ID
	err    error       // why the drive is not open
	since  time.Time   // when it was lost; zero if it was not
	sticky bool        // do not open again before it went away or an operator asks
	full   bool        // do not open again before there is space
	hold   *disk.Hold  // quarantined by an operator
	last   *disk.Drive // closed, or being closed: something may still hang in it
}

// errNothing: none of the paths holds a usable drive.
var errNothing = errs.E("node.OpenSet", errs.Drive, "no drive could be opened")

// OpenSet opens the drives at paths, and forms a new cluster when all of them are empty. Problems
// with single paths are reported by Status and do not fail it, as long as one drive is open; it fails
// when paths hold drives of two clusters, or the same drive twice.
func OpenSet(ctx context.Context, paths []string, o Options) (*Set, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.WatchEvery == 0 {
		o.WatchEvery = time.Second
	}
	paths, err := cleanPaths(o.FS, paths)
	if err != nil {
		return nil, err
	}
	s := &Set{o: o, fs: o.FS, log: o.Logger, cluster: o.Cluster, byNum: make(map[uint16]*slot), gone: make(map[uint16]bool)}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, p := range paths {
		s.slots = append(s.slots, &slot{path: p, wake: make(chan struct{}, 1), check: make(chan struct{}, 1)})
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close(context.WithoutCancel(ctx)))
	}
	for _, sl := range s.slots {
		if o.WatchEvery > 0 {
			s.watchers.Add(1)
			go s.watch(sl)
		}
	}
	return s, nil
}

func cleanPaths(fsys vfs.FS, paths []string) ([]string, error) {
	const op = "node.OpenSet"
	if len(paths) == 0 {
		return nil, errs.E(op, errs.Invalid, "no drive was given")
	}
	var out []string
	for _, p := range paths {
		if fsys == vfs.Default {
			abs, err := filepath.Abs(p)
			if err != nil {
				return nil, errs.As(op, errs.Invalid, err)
			}
			p = abs
		}
		if slices.Contains(out, p) {
			return nil, errs.E(op, errs.Invalid, "drive "+p+" is given twice")
		}
		out = append(out, p)
	}
	return out, nil
}

// open inspects all paths, forms or completes a cluster where one is to be formed, and opens what
// can be opened.
func (s *Set) open(ctx context.Context) error {
	found := make([]disk.Inspection, len(s.slots))
	for i, sl := range s.slots {
		found[i] = disk.Inspect(s.fs, sl.path)
	}
	joining, err := s.findNode(found)
	if err != nil {
		return err
	}
	p, err := plan(found, s.cluster, s.o.NoForm, s.o.Join || joining)
	if err != nil {
		return err
	}
	if len(p.format) == len(s.slots) && s.o.Form != nil {
		if err := s.o.Form(); err != nil {
			return err
		}
	}
	s.cluster, s.founders = p.cluster, p.founders
	for i, id := range p.format {
		if err := disk.Format(s.fs, s.slots[i].path, id); err != nil {
			return err
		}
		s.log.Info("new drive formatted", "path", s.slots[i].path, "drive", id.Num, "cluster", id.Cluster)
	}
	any := false
	for _, sl := range s.slots {
		sl.check <- struct{}{}
		err := s.openSlot(ctx, sl)
		<-sl.check
		switch {
		case err == nil:
			any = true
		case disk.StatusOf(err) == disk.Empty: // nothing is wrong if it is a spare
			s.log.Warn("directory is empty: a spare for a replacement, or its disk is not mounted", "path", sl.path)
		default:
			s.log.Error("drive is not used", "path", sl.path, "cause", err)
		}
	}
	if !any && s.o.Join && s.Fresh() {
		return nil
	}
	if !any {
		msg := "no drive could be opened"
		if joining {
			msg = "the directories were about to join a cluster, and that was interrupted: give --join again"
		}
		var list []error
		retired := 0
		for _, st := range s.Status() {
			list = append(list, st.Err)
			if st.State == PathRetired || st.State == PathReplaced {
				retired++
			}
		}
		if retired == len(list) {
			msg = "no drive here serves ever again: each was replaced, drained or given up, or its records were damaged. In a cluster take the directories out of the command, " +
				"or empty them, and let them join as new drives, with --join"
		}
		return &errs.Error{Op: "node.OpenSet", Kind: errs.Drive, Msg: msg, Err: errors.Join(list...)}
	}
	s.formed = p.formed
	if p.formed {
		return s.MarkFormed(ctx)
	}
	return nil
}

// forming is what is to be done about a set of inspected paths.
type forming struct {
	cluster  disk.ID
	founders []disk.Founder
	formed   bool
	format   map[int]disk.Identity // by index of path
}

// plan decides, from what was found, whether a cluster is there, is to be formed, or its forming is to
// be completed.
func plan(found []disk.Inspection, want disk.ID, noForm, join bool) (*forming, error) {
	const op = "node.OpenSet"
	p := &forming{cluster: want, format: map[int]disk.Identity{}}
	at := map[disk.ID]string{}
	var first *disk.Inspection
	var empty, bad []int
	for i := range found {
		in := &found[i]
		switch in.Status {
		case disk.Empty:
			empty = append(empty, i)
			continue
		case disk.Identified:
		default:
			bad = append(bad, i)
			continue
		}
		id := in.Identity
		if other, twice := at[id.Drive]; twice {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drives %s and %s are copies of one drive, %d (%s): remove one of them", other, in.Path, id.Num, id.Drive))
		}
		at[id.Drive] = in.Path
		if first != nil && first.Identity.Cluster != id.Cluster {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drives of two clusters are given: %s belongs to %s, %s to %s",
				first.Path, first.Identity.Cluster, in.Path, id.Cluster))
		}
		if first == nil {
			first = in
		}
		founder := slices.ContainsFunc(id.Founders, func(f disk.Founder) bool { return f.Drive == id.Drive })
		if !id.Forming || !founder { // who is forming and no founder joins a cluster that is formed
			p.formed = true
		}
		if len(id.Founders) > len(p.founders) {
			p.founders = id.Founders
		}
	}
	if first != nil {
		if !want.IsZero() && first.Identity.Cluster != want {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %s belongs to cluster %s, not to %s", first.Path, first.Identity.Cluster, want))
		}
		p.cluster = first.Identity.Cluster
	}
	if p.formed || join && first == nil {
		return p, nil
	}
	if len(bad) > 0 && (first != nil || len(empty) > 0) {
		// Nothing is lost yet, and forming without all drives would leave one out for ever.
		return nil, &errs.Error{Op: op, Kind: errs.Drive, Msg: "a new cluster is formed only over directories that are all there and empty", Err: found[bad[0]].Err}
	}
	if first == nil {
		if len(empty) == 0 {
			return p, nil // nothing usable; each path has its own error
		}
		if noForm {
			return nil, errs.E(op, errs.Drive, "all drives are empty: is their disk mounted?")
		}
		p.found(found)
		return p, nil
	}
	return p, p.complete(found, at, empty)
}

// found plans a new cluster over all paths, which are empty.
func (p *forming) found(found []disk.Inspection) {
	if p.cluster.IsZero() {
		p.cluster = disk.NewID()
	}
	for i, in := range found {
		p.founders = append(p.founders, disk.Founder{Num: uint16(i + 1), Drive: disk.NewID(), Path: in.Path})
	}
	for i, f := range p.founders {
		p.format[i] = p.identity(f)
	}
}

func (p *forming) identity(f disk.Founder) disk.Identity {
	return disk.Identity{Cluster: p.cluster, Drive: f.Drive, Num: f.Num, Founders: p.founders, Created: time.Now().UTC().Truncate(time.Second)}
}

// complete gives the identities of the founding set that were not written to the empty paths.
func (p *forming) complete(found []disk.Inspection, at map[disk.ID]string, empty []int) error {
	var missing []disk.Founder
	for _, f := range p.founders {
		if at[f.Drive] == "" {
			missing = append(missing, f)
		}
	}
	if len(missing) != len(empty) {
		return errs.E("node.OpenSet", errs.Drive, fmt.Sprintf("the forming of cluster %s was interrupted with %d drives; give the same %d paths to complete it, or empty all of them to begin anew",
			p.cluster, len(p.founders), len(p.founders)))
	}
	// A drive goes to the path that it was meant for, if that is still among the empty ones.
	for _, i := range empty {
		n := slices.IndexFunc(missing, func(f disk.Founder) bool { return f.Path == found[i].Path })
		if n >= 0 {
			p.format[i] = p.identity(missing[n])
			missing = slices.Delete(missing, n, n+1)
		}
	}
	for _, i := range empty {
		if _, done := p.format[i]; !done {
			p.format[i] = p.identity(missing[0])
			missing = missing[1:]
		}
	}
	return nil
}

// openSlot opens the drive at the slot's path and puts it in service. sl.check is held.
func (s *Set) openSlot(ctx context.Context, sl *slot) error {
	d, err := s.openDrive(ctx, sl)
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.err = err
	if err != nil {
		// A drive that is there and fails while it opens is not tried again every second.
		if disk.StatusOf(err) == disk.Unreadable && disk.Inspect(s.fs, sl.path).Status == disk.Identified {
			sl.full = errors.Is(err, syscall.ENOSPC)
			sl.sticky = !sl.full
		}
		return err
	}
	sl.drive, sl.known, sl.num, sl.id = d, true, d.Num(), d.Identity().Drive
	sl.sticky, sl.full, sl.since = false, false, time.Time{}
	return nil
}

func (s *Set) openDrive(ctx context.Context, sl *slot) (*disk.Drive, error) {
	in := disk.Inspect(s.fs, sl.path)
	cluster := s.Cluster()
	if in.Status == disk.Identified && in.Identity.Cluster == cluster {
		if err := s.belongs(sl.path, in.Identity); err != nil {
			return nil, err
		}
		num := in.Identity.Num
		if s.isReplaced(num) {
			sl.see(in.Identity)
			return nil, &disk.StatusError{Path: sl.path, Status: disk.Replaced, Identity: in.Identity,
				Detail: fmt.Sprintf("is drive %d, which was replaced, drained or given up, and never serves again: empty it to use it as a new drive", num)}
		}
		// The number is reserved before the drive is touched, so that two slots never serve one drive.
		if err := s.claim(sl, in.Identity); err != nil {
			return nil, err
		}
		sl.see(in.Identity)
	}
	o := s.o.Disk
	o.Cluster, o.Logger, o.Now = cluster, s.log, s.o.Now
	sl.mu.Lock()
	if sl.known {
		o.Drive = sl.id
	}
	sl.mu.Unlock()
	if in.Identity != nil {
		num := in.Identity.Num
		o.Epoch = func(partition uint32) (uint64, bool) {
			if f := s.epoch.Load(); f != nil {
				return (*f)(num, partition)
			}
			return 0, false
		}
	}
	return disk.Open(ctx, s.fs, sl.path, o)
}

// see remembers which drive was found at the path, for people, unless another one is expected there.
func (sl *slot) see(id *disk.Identity) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if !sl.known {
		sl.num, sl.id = id.Num, id.Drive
	}
}

// claim makes sl the slot of the drive id.
func (s *Set) claim(sl *slot, id *disk.Identity) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.byNum[id.Num]; other != nil && other != sl && other.get() != nil {
		return &disk.StatusError{Path: sl.path, Status: disk.WrongDrive, Identity: id,
			Detail: fmt.Sprintf("is drive %d, which is served from %s", id.Num, other.path)}
	}
	s.byNum[id.Num] = sl
	return nil
}

// Cluster returns the id of the cluster that the drives belong to; zero as long as it is not known.
func (s *Set) Cluster() disk.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

// Founders returns the drives that the cluster was formed over.
func (s *Set) Founders() []disk.Founder { return slices.Clone(s.founders) }

// Forming reports whether the cluster is new and MarkFormed was not called yet.
func (s *Set) Forming() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.formed
}

// MarkFormed ends the forming of the cluster on all open drives: call it once the control plane
// has its first state. A drive on which it fails is quarantined; the error says so only when all fail.
func (s *Set) MarkFormed(ctx context.Context) error {
	var failed []error
	done := false
	for _, d := range s.Open() {
		if err := d.MarkFormed(ctx); err != nil {
			failed = append(failed, err)
			continue
		}
		done = true
	}
	if !done {
		return errs.Wrap("node.MarkFormed", errors.Join(append(failed, errNothing)...))
	}
	s.mu.Lock()
	s.formed = true
	s.mu.Unlock()
	return nil
}

// SetEpoch says in which epoch a local drive serves a partition, once the layout is known. Before,
// drives are members of nothing.
func (s *Set) SetEpoch(f func(drive uint16, partition uint32) (epoch uint64, member bool)) {
	s.epoch.Store(&f)
}

// Open returns the drives that are open, by number.
func (s *Set) Open() []*disk.Drive {
	var out []*disk.Drive
	for _, sl := range s.slots {
		if d := sl.get(); d != nil {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *disk.Drive) int { return int(a.Num()) - int(b.Num()) })
	return out
}

func (sl *slot) get() *disk.Drive {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.drive
}

// Local returns the open drive of that number.
func (s *Set) Local(num uint16) (*disk.Drive, bool) {
	s.mu.Lock()
	sl := s.byNum[num]
	s.mu.Unlock()
	if sl == nil {
		return nil, false
	}
	d := sl.get()
	if d == nil || d.Fault() != nil || d.Num() != num {
		return nil, false
	}
	return d, true
}

// Replica implements metadata.Replicas over the open drives.
func (s *Set) Replica(num uint16) (metadata.Replica, bool) {
	if d, ok := s.Local(num); ok {
		return d, true
	}
	return nil, false // and no interface that holds a nil *disk.Drive
}

// Shards returns the drive of that number, if it is open.
func (s *Set) Shards(num uint16) (Drive, bool) {
	if d, ok := s.Local(num); ok {
		return d, true
	}
	return nil, false // and no interface that holds a nil *disk.Drive
}

// Close stops the watchers and closes all drives. It waits for operations under way, but not
// beyond ctx.
func (s *Set) Close(ctx context.Context) error {
	s.cancel()
	done := make(chan struct{})
	go func() { s.watchers.Wait(); close(done) }()
	var list []error
	select {
	case <-done:
	case <-ctx.Done():
		list = append(list, errs.As("node.Close", errs.Timeout, ctx.Err()))
	}
	var wg sync.WaitGroup
	results := make([]error, len(s.slots))
	for i, sl := range s.slots {
		sl.mu.Lock()
		d := sl.drive
		sl.drive, sl.err = nil, errs.E("node.Close", errs.Drive, "closed")
		sl.mu.Unlock()
		if d != nil {
			wg.Go(func() { results[i] = d.Close(ctx) }) // each returns soon after ctx ends
		}
	}
	wg.Wait()
	return errors.Join(append(list, results...)...)
}

// watch looks at one path until the Set closes.
func (s *Set) watch(sl *slot) {
	defer s.watchers.Done()
	tick := time.NewTicker(s.o.WatchEvery)
	defer tick.Stop()
	for {
		var faulted <-chan struct{}
		if d := sl.get(); d != nil {
			faulted = d.Faulted()
		}
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		case <-faulted:
		case <-sl.wake:
		}
		s.look(sl)
	}
}

// Check looks at every path once, now, and returns when that is done.
func (s *Set) Check() {
	var wg sync.WaitGroup
	for _, sl := range s.slots {
		wg.Go(func() { s.look(sl) })
	}
	wg.Wait()
}

// enter waits for the right to look at the path, but not beyond ctx: a path that hangs keeps it.
func (sl *slot) enter(ctx context.Context, op string) error {
	select {
	case sl.check <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &errs.Error{Op: op, Kind: errs.Timeout, Msg: "the drive's directory does not answer", Err: ctx.Err()}
	}
}

func (sl *slot) leave() { <-sl.check }

// look compares one path with what is open there, and acts.
func (s *Set) look(sl *slot) {
	sl.check <- struct{}{}
	defer func() { <-sl.check }()
	s.lookLocked(sl)
}

// lookLocked is look for who has sl.check.
func (s *Set) lookLocked(sl *slot) {
	if s.ctx.Err() != nil {
		return
	}
	if d := sl.get(); d != nil {
		if s.isReplaced(d.Num()) {
			_, _ = s.retire(s.ctx, sl, d) // what hangs is logged
			return
		}
		err := d.Present()
		f := d.Fault()
		if err == nil && f == nil {
			return
		}
		s.lose(sl, d, f, err)
		return
	}
	if !s.mayReturn(sl) {
		return
	}
	sl.mu.Lock()
	before := sl.err
	sl.mu.Unlock()
	if err := s.openSlot(s.ctx, sl); err != nil {
		if before == nil || before.Error() != err.Error() {
			s.log.Warn("drive is still not used", "path", sl.path, "cause", err)
		}
		return
	}
	d := sl.get()
	s.log.Info("drive is back", "path", sl.path, "drive", d.Num())
	s.mu.Lock()
	formed := s.formed
	s.mu.Unlock()
	if formed {
		if err := d.MarkFormed(s.ctx); err != nil {
			return // quarantined: the next look sees it
		}
	}
	if err := s.noteNode(sl.path, d.Identity()); err != nil {
		s.log.Warn("whose drive it is could not be noted on it", "path", sl.path, "drive", d.Num(), "cause", err)
	}
	if s.o.OnReturn != nil {
		s.o.OnReturn(d.Num())
	}
}

// lose closes a drive that is gone or faulty.
func (s *Set) lose(sl *slot, d *disk.Drive, f *disk.Fault, gone error) {
	err := gone
	if f != nil {
		err = errs.E("node.watch", errs.Drive, f.Reason)
	} else {
		d.Quarantine(gone.Error(), gone)
	}
	if !sl.take(d, err, s.o.Now()) {
		return // by Retire or Quarantine
	}
	sl.mu.Lock()
	sl.full = gone == nil && f != nil && errors.Is(f.Err, syscall.ENOSPC)
	sl.sticky = gone == nil && f != nil && !sl.full && !vfsx.IsNotExist(f.Err)
	sl.mu.Unlock()
	s.log.Error("drive is lost", "path", sl.path, "drive", d.Num(), "cause", err)
	if cerr := d.Close(s.ctx); cerr != nil {
		s.log.Warn("a lost drive did not close cleanly", "path", sl.path, "cause", cerr)
	}
	if s.o.OnLost != nil {
		s.o.OnLost(d.Num(), err)
	}
}

// take takes the drive d out of the slot; err says why. It reports false when it is not there any more:
// whoever took it closes it.
func (sl *slot) take(d *disk.Drive, err error, now time.Time) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.drive != d {
		return false
	}
	sl.drive, sl.err, sl.since, sl.last = nil, err, now, d
	return true
}

// mayReturn reports whether the drive of a slot that is not open may be opened again.
func (s *Set) mayReturn(sl *slot) bool {
	sl.mu.Lock()
	sticky, full, hold := sl.sticky, sl.full, sl.hold
	sl.mu.Unlock()
	switch {
	case hold != nil:
		return false
	case sticky:
		// A drive that went away and comes back has been seen to by somebody.
		if st := disk.Inspect(s.fs, sl.path).Status; st == disk.Missing || st == disk.Empty {
			sl.mu.Lock()
			sl.sticky = false
			sl.mu.Unlock()
		}
		return false
	case full:
		du, err := s.fs.GetDiskUsage(sl.path)
		return err == nil && du.AvailBytes > min(du.TotalBytes/20, 1<<30)
	}
	return true
}

// Reopen opens a drive that is out of service, such as one that was quarantined, on behalf of an
// operator. The path is one of those given to OpenSet. What an operator has quarantined wants Release.
func (s *Set) Reopen(ctx context.Context, path string) error {
	const op = "node.Reopen"
	i := slices.IndexFunc(s.slots, func(sl *slot) bool { return sl.path == path })
	if i < 0 {
		return errs.E(op, errs.NotFound, "no such drive")
	}
	sl := s.slots[i]
	if err := sl.enter(ctx, op); err != nil {
		return err
	}
	defer sl.leave()
	return s.reopen(ctx, op, sl)
}

// reopen is Reopen for who has sl.check.
func (s *Set) reopen(ctx context.Context, op string, sl *slot) error {
	s.lookLocked(sl)
	sl.mu.Lock()
	sl.sticky, sl.full = false, false
	open := sl.drive != nil
	sl.mu.Unlock()
	if !open {
		s.lookLocked(sl)
	}
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.drive == nil {
		return errs.Wrap(op, sl.err)
	}
	return ctx.Err()
}
