package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
	"github.com/ostraka/ostraka/metadata"
)

// storeFormat pins the format of the record store, so that a new build of the library never
// upgrades a drive in passing. It has WAL sync chunks, which tell a torn tail from corruption in
// the middle of the log, and value separation.
const storeFormat = pebble.FormatValueSeparation

const (
	defaultMemTable = 16 << 20
	// separateFrom is the size from which values live in blob files: inline shards do, records
	// hardly ever. Listings then read none of the former.
	separateFrom = 2 << 10
	// slowWrite is how long a single write of the record store may take before the drive is
	// called slow.
	slowWrite = 5 * time.Second
)

// bindingKey holds cluster and drive id, so that a record store cannot be used under another
// identity. It sorts before the shard rows, which are longer.
var bindingKey = []byte{nsShard}

// store is the record store of one drive: Pebble behind a guard.
//
// Pebble answers a failed write of its log by ending the process, and stumbles on where it is told
// not to. Here the guard sees the failure first and quarantines the drive; from then on nothing
// that Pebble does reaches the disk, and no result of it is believed.
type store struct {
	db     *pebble.DB
	guard  *vfsx.Guard
	opened *vfsx.Opened // what Pebble has open; set by open
	sums   *vfsx.Sums   // of its logs; nil: none are kept
	health io.Closer
	log    *slog.Logger
	ev     storeEvents

	opening atomic.Bool
	stall   sync.Once
	stalled chan struct{} // closed when Pebble cannot open for a failed write
	flushed atomic.Value  // flushEnd: of the last flush

	// mu guards the fields below.
	mu       sync.Mutex
	active   int           // operations and iterators inside Pebble
	closing  bool          // no more may enter
	idle     chan struct{} // closed when active is 0 after closing
	poisoned bool          // Pebble panicked with its locks held, and cannot be closed
}

// storeEvents is what the store tells its drive. The functions must not block.
type storeEvents struct {
	writeFailed func(op, path string, err error)
	readFailed  func(op, path string, err error)
	corrupt     func(where string, err error)
	slow        func(path string, d time.Duration)
	fault       func() error // why the drive is not to be used, or nil
}

// newStore makes the store of a drive, not yet open.
func newStore(fsys vfs.FS, log *slog.Logger, ev storeEvents) *store {
	s := &store{log: log, ev: ev, idle: make(chan struct{}), stalled: make(chan struct{})}
	s.guard = vfsx.NewGuard(fsys, func(op, path string, write bool, err error) {
		if write {
			ev.writeFailed(op, path, err)
		} else {
			ev.readFailed(op, path, err)
		}
	})
	return s
}

// open opens Pebble in dir; create allows it to be new. After an error the store is closed.
//
// When a write fails while Pebble opens, it would try the same flush again for ever. Its flush is
// then ended from within (backgroundError), and the opening, which waits for it, is left behind. So it is
// when ctx ends first. Either way the guard has tripped: what is left behind changes nothing.
func (s *store) open(ctx context.Context, dir string, o *Options, create bool) (err error) {
	var watched vfs.FS
	watched, s.health = vfs.WithDiskHealthChecks(s.guard, slowWrite, nil, func(i vfs.DiskSlowInfo) { s.ev.slow(i.Path, i.Duration) })
	s.opened = vfsx.NewOpened(watched)
	defer func() {
		if err != nil {
			s.guard.Trip(err)
			s.health.Close()
		}
	}()
	opts := &pebble.Options{
		FS:                          blobFS{s.opened, s.ev.corrupt},
		Cache:                       o.Cache,
		ErrorIfNotExists:            !create,
		FormatMajorVersion:          storeFormat,
		MemTableSize:                uint64(o.MemTableSize),
		MemTableStopWritesThreshold: 3,
		MaxOpenFiles:                500,
		MaxManifestFileSize:         16 << 20,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       32,
		LBaseMaxBytes:               64 << 20,
		BytesPerSync:                1 << 20,
		WALBytesPerSync:             0, // the log is synced whole, by the commits
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      storeLog{s},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { s.backgroundError(dir, err) },
			FlushEnd:        func(i pebble.FlushInfo) { s.flushed.Store(flushEnd{i.Err}) },
			DataCorruption:  func(i pebble.DataCorruptionInfo) { s.ev.corrupt(i.Path, i.Details) },
			DiskSlow:        func(i pebble.DiskSlowInfo) { s.ev.slow(i.Path, i.Duration) },
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
				o.Logger.Warn("record store stalls writes", "dir", dir, "reason", i.Reason)
			},
		},
	}
	opts.Levels[0].FilterPolicy = bloom.FilterPolicy(10)
	for i := 1; i < len(opts.Levels); i++ {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	opts.Experimental.EnableColumnarBlocks = func() bool { return true }
	opts.Experimental.FileCacheShards = 2
	opts.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		return pebble.ValueSeparationPolicy{Enabled: true, MinimumSize: separateFrom, MaxBlobReferenceDepth: 10,
			RewriteMinimumAge: 5 * time.Minute, TargetGarbageRatio: 0.3}
	}
	return s.openPebble(ctx, dir, opts)
}

// openPebble opens Pebble. Compactions and statistics start while it opens. Were it made to fail then,
// it would take the file cache away under them, and they end the process: so damage that they meet
// does not trip the guard before Pebble is open, and can be closed, which waits for them.
func (s *store) openPebble(ctx context.Context, dir string, opts *pebble.Options) error {
	type result struct {
		db  *pebble.DB
		err error
	}
	done := make(chan result, 1)
	var settled atomic.Bool
	s.opening.Store(true)
	go func() {
		r := result{err: errors.New("the record store failed to open")}
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("the record store failed to open: %v", p)
			}
			if settled.CompareAndSwap(false, true) {
				done <- r
				return
			}
			if r.db != nil {
				_ = r.db.Close() // too late to be of use
			}
			_ = s.sums.Close()
		}()
		r.db, r.err = pebble.Open(dir, opts)
	}()
	var err error
	select {
	case r := <-done:
		s.db, err = r.db, r.err
	case <-s.stalled:
		err = s.guard.Tripped()
	case <-ctx.Done():
		err = errs.Wrap("disk.Open", ctx.Err())
	}
	left := s.db == nil && settled.CompareAndSwap(false, true)
	if s.db == nil && !left && err == nil {
		err = errors.New("the record store failed to open")
	}
	s.opening.Store(false)
	if err == nil && (s.guard.Tripped() != nil || s.ev.fault() != nil) {
		err = errors.Join(s.guard.Tripped(), s.ev.fault(), s.db.Close())
	}
	if err != nil && !left {
		_ = s.sums.Close()
	}
	return err
}

// flushEnd is how a flush ended.
type flushEnd struct{ err error }

// backgroundError hears of failed flushes, compactions and statistics, on their goroutine. Only a flush is ended from
// within, see open. The others are not tried for ever, and the closing of Pebble waits for them.
func (s *store) backgroundError(dir string, err error) {
	if pebble.IsCorruptionError(err) || errs.Is(err, errs.Corrupt) {
		s.ev.corrupt("compaction", err)
		return
	}
	if s.guard.Tripped() == nil {
		s.ev.writeFailed("background work", dir, err)
	}
	if f, _ := s.flushed.Load().(flushEnd); f.err == err && s.opening.Load() { //nolint:errorlint // whose it is, not which
		s.guard.Trip(err)
		s.stall.Do(func() { close(s.stalled) })
		runtime.Goexit() // see open
	}
}

// bind checks that the store belongs to the drive id, and says so in a new store.
func (s *store) bind(id *Identity) error {
	want := append(append([]byte{1}, id.Cluster[:]...), id.Drive[:]...)
	got, err := s.Get(bindingKey)
	switch {
	case err != nil:
		return err
	case got == nil && id.Forming:
		b := new(metadata.Batch)
		b.Set(bindingKey, want)
		return s.Apply(b, true)
	case got == nil:
		return errs.E("disk.Open", errs.Corrupt, "the record store does not say whose it is: its rows are lost")
	case !slices.Equal(got, want):
		return errs.E("disk.Open", errs.Corrupt, "the record store belongs to another drive")
	}
	return nil
}

func (s *store) enter() error {
	if err := s.ev.fault(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errs.E("disk.store", errs.Drive, "drive is closed")
	}
	s.active++
	return nil
}

func (s *store) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active--; s.active == 0 && s.closing {
		close(s.idle)
	}
}

// result turns an error of Pebble into one of this project; corruption retires the drive.
func (s *store) result(op string, err error) error {
	if err == nil {
		return nil
	}
	if pebble.IsCorruptionError(err) {
		s.ev.corrupt("reading a row", err)
		return errs.As(op, errs.Corrupt, err)
	}
	if f := s.ev.fault(); f != nil {
		return f
	}
	return errs.As(op, errs.Drive, err)
}

// contain turns a panic of Pebble while it reads into damage of the record store, which retires the drive: what
// else would make it panic there. Pebble is not used after it, nor closed: it may have left its locks held. Put it
// in a defer of its own. What panics on Pebble's own goroutines ends the process; see blobFS for what is known to.
func (s *store) contain(op string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	s.mu.Lock()
	s.poisoned = true
	s.mu.Unlock()
	cause := fmt.Errorf("record store: %v", p)
	s.ev.corrupt("reading a row", cause)
	*err = errs.As(op, errs.Corrupt, cause)
}

// Get implements metadata.KV.
func (s *store) Get(key []byte) (_ []byte, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	defer s.contain("disk.Get", &err)
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, s.result("disk.Get", err)
	}
	out := make([]byte, len(v))
	copy(out, v)
	if err := closer.Close(); err != nil {
		return nil, s.result("disk.Get", err)
	}
	return out, nil
}

// Apply implements metadata.KV. It is the commit point of everything that a drive promises: once
// it returns nil with sync, the batch survives a power cut.
func (s *store) Apply(b *metadata.Batch, sync bool) (err error) {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	pb := s.db.NewBatch()
	for i := range b.Ops {
		op := &b.Ops[i]
		switch op.Kind {
		case metadata.OpSet:
			err = pb.Set(op.Key, op.Value, nil)
		case metadata.OpDelete:
			err = pb.Delete(op.Key, nil)
		case metadata.OpDeleteRange:
			err = pb.DeleteRange(op.Key, op.Value, nil)
		default:
			err = errs.E("disk.Apply", errs.Internal, "unknown operation in a batch")
		}
		if err != nil {
			return errors.Join(err, pb.Close())
		}
	}
	defer func() {
		// Pebble panics when it cannot rotate its log, with the commit pipeline locked.
		if p := recover(); p != nil {
			s.mu.Lock()
			s.poisoned = true
			s.mu.Unlock()
			storeLog{s}.Fatalf("record store: %v", p)
			err = s.result("disk.Apply", fmt.Errorf("%v", p))
		}
	}()
	opts := pebble.NoSync
	if sync {
		opts = pebble.Sync
	}
	if err := s.db.Apply(pb, opts); err != nil {
		return s.result("disk.Apply", err)
	}
	// Pebble returns nil after a fatal error that its logger let pass. The guard tripped before.
	if err := s.guard.Tripped(); err != nil {
		return s.result("disk.Apply", err)
	}
	return pb.Close()
}

// NewIter implements metadata.KV.
func (s *store) NewIter(lower, upper []byte) (_ metadata.Iter, err error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	left := false
	defer func() {
		if err != nil && !left {
			s.leave() // after a panic
		}
	}()
	defer s.contain("disk.NewIter", &err)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: slices.Clone(lower), UpperBound: slices.Clone(upper)})
	if err != nil {
		s.leave()
		left = true
		return nil, s.result("disk.NewIter", err)
	}
	return &storeIter{it: it, s: s}, nil
}

// storeIter implements metadata.Iter. After a fault of the drive it has no more rows, and an error.
type storeIter struct {
	it  *pebble.Iterator
	s   *store
	err error
}

func (i *storeIter) move(step func() bool) bool {
	if i.err != nil {
		return false
	}
	defer i.s.contain("disk.Iter", &i.err)
	ok := step()
	if !ok {
		if err := i.it.Error(); err != nil {
			i.err = i.s.result("disk.Iter", err)
		}
	}
	return ok && i.err == nil
}

func (i *storeIter) SeekGE(key []byte) bool {
	return i.move(func() bool { return i.it.SeekGE(key) })
}
func (i *storeIter) SeekLT(key []byte) bool {
	return i.move(func() bool { return i.it.SeekLT(key) })
}
func (i *storeIter) First() bool { return i.move(i.it.First) }
func (i *storeIter) Last() bool  { return i.move(i.it.Last) }
func (i *storeIter) Next() bool  { return i.move(i.it.Next) }
func (i *storeIter) Prev() bool  { return i.move(i.it.Prev) }
func (i *storeIter) Key() []byte { return i.it.Key() }

func (i *storeIter) Value() []byte {
	defer i.s.contain("disk.Iter", &i.err)
	v, err := i.it.ValueAndErr()
	if err != nil {
		i.err = i.s.result("disk.Iter", err)
		return nil
	}
	return v
}

func (i *storeIter) Err() error { return i.err }

func (i *storeIter) Close() error {
	if i.it == nil {
		return nil
	}
	err := i.close()
	i.it = nil
	i.s.leave()
	if i.err != nil {
		return i.err
	}
	return i.s.result("disk.Iter", err)
}

func (i *storeIter) close() (err error) {
	defer i.s.contain("disk.Iter", &err)
	return i.it.Close()
}

// refuse lets no more operations in.
func (s *store) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.closing = true
		if s.active == 0 {
			close(s.idle)
		}
	}
}

// close waits for the operations inside and closes Pebble, but not beyond ctx. What then still
// hangs in the kernel or in Pebble is left behind: it can change nothing, because the guard has
// tripped, and it ends with the operation that it waits for.
func (s *store) close(ctx context.Context) error {
	s.refuse()
	defer s.health.Close()
	select {
	case <-s.idle:
	case <-ctx.Done():
		s.guard.Trip(errs.E("disk.Close", errs.Drive, "drive is closed"))
		return errs.As("disk.Close", errs.Timeout, ctx.Err())
	}
	s.mu.Lock()
	poisoned := s.poisoned
	s.mu.Unlock()
	if poisoned {
		_ = errors.Join(s.opened.CloseLeft(), s.sums.Close()) // of a drive that is out
		return nil
	}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("record store: %v", p)
			}
		}()
		err := s.db.Close()
		done <- errors.Join(err, s.opened.CloseLeft(), s.sums.Close())
	}()
	select {
	case err := <-done:
		s.guard.Trip(errs.E("disk.Close", errs.Drive, "drive is closed"))
		return err
	case <-ctx.Done():
		s.guard.Trip(errs.E("disk.Close", errs.Drive, "drive is closed"))
		return errs.As("disk.Close", errs.Timeout, ctx.Err())
	}
}

// storeLog routes Pebble's messages to the log, the chatter at debug level.
type storeLog struct{ s *store }

func (l storeLog) Infof(format string, args ...any) {
	if l.s.log.Enabled(context.Background(), slog.LevelDebug) {
		l.s.log.Debug("record store: " + fmt.Sprintf(format, args...))
	}
}

func (l storeLog) Errorf(format string, args ...any) {
	l.s.log.Warn("record store: " + fmt.Sprintf(format, args...))
}

// Fatalf is called where Pebble cannot go on. It returns: the drive is out, the process is not.
func (l storeLog) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	for _, a := range args {
		if e, ok := a.(error); ok && pebble.IsCorruptionError(e) {
			l.s.ev.corrupt("commit", err)
		}
	}
	l.s.ev.writeFailed("commit", metaDir, err)
	l.s.guard.Trip(err)
}

var (
	_ metadata.KV   = (*store)(nil)
	_ metadata.Iter = (*storeIter)(nil)
)
