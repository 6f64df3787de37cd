package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
	"github.com/ostraka/ostraka/metadata"
)

// Options of Open. Epoch is required; the rest has defaults.
type Options struct {
	// Cluster and Drive say which identity is expected at the path; zero accepts any.
	Cluster, Drive ID
	// Epoch returns the epoch in which this drive serves a partition, and whether it is a member.
	Epoch func(partition uint32) (epoch uint64, member bool)
	// Cache is the block cache of the record store, shared between drives; nil: 8 MiB of its own.
	Cache *pebble.Cache
	// Logger; nil discards.
	Logger *slog.Logger
	// Now; nil means time.Now.
	Now func() time.Time
	// MemTableSize bounds each of the up to three write buffers of the record store, in bytes;
	// 0 means 16 MiB.
	MemTableSize int
	// Buffered keeps shard files in the page cache even where direct I/O works.
	Buffered bool
	// ReserveBytes is the watermark: with less free space, new shards are refused. 0 means 5 % of
	// the file system or 1 GiB, whichever is less, but four write buffers or a quarter of a small file
	// system; negative means none.
	ReserveBytes int64
	// Grace is how long shards that a decided row let go of stay for readers; 0 means 60 s.
	Grace time.Duration
	// SweepEvery is the period of the garbage sweeper; 0 means 5 s; negative means never.
	SweepEvery time.Duration
	// MaxInFlight bounds the blocking operations under way; 0 means 512.
	MaxInFlight int
	// StuckAfter is how long nothing may come back from a busy drive before new calls are refused
	// at once; 0 means 5 s.
	StuckAfter time.Duration
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MemTableSize <= 0 {
		o.MemTableSize = defaultMemTable
	}
	if o.Grace <= 0 {
		o.Grace = 60 * time.Second
	}
	if o.SweepEvery == 0 {
		o.SweepEvery = 5 * time.Second
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 512
	}
	if o.StuckAfter <= 0 {
		o.StuckAfter = 5 * time.Second
	}
	if o.Epoch == nil {
		o.Epoch = func(uint32) (uint64, bool) { return 0, false }
	}
	return o
}

// Fault is why a drive no longer serves.
type Fault struct {
	Corrupt bool // rows are damaged: the drive is retired for good
	Reason  string
	At      time.Time
	Err     error
}

// Drive is one open drive. It implements metadata.Replica. Its methods are safe for concurrent use.
type Drive struct {
	fs    vfs.FS
	path  string
	o     Options
	log   *slog.Logger
	lock  io.Closer
	store *store
	files vfsx.Files
	gate  *gate
	inode vfsx.Inode // of the identity file, for Present
	hasIn bool

	acceptor *metadata.Acceptor

	fault   atomic.Pointer[Fault]
	faulted chan struct{} // closed with the first fault
	stats   driveStats
	usage   usageSample

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	owned  sync.WaitGroup // goroutines of the drive but for blocking operations

	amending sync.Mutex // orders the changes of the identity; not held together with mu for I/O

	// shardLocks order what happens to one shard: creation, sealing, removal, sweep.
	shardLocks [64]sync.Mutex

	// mu guards the fields below.
	mu       sync.Mutex
	identity Identity
	writers  map[shardChunk]*shardWriter
	closed   bool
}

type driveStats struct {
	readErrors, writeErrors, slow, swept, deleted atomic.Uint64
	sweeping                                      atomic.Bool
}

// lockDrive takes the drive's lock.
func lockDrive(fsys vfs.FS, path string) (io.Closer, error) {
	l, err := fsys.Lock(fsys.PathJoin(path, lockFile))
	if err == nil {
		return l, nil
	}
	var pe *fs.PathError
	if errors.As(err, &pe) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOLCK) {
		return nil, &StatusError{Path: path, Status: Unreadable, Detail: "has a lock file that cannot be made", Err: err}
	}
	return nil, &StatusError{Path: path, Status: InUse,
		Detail: "is in use: stop the other ostraka process that serves it (the lock is " + fsys.PathJoin(path, lockFile) + ")", Err: err}
}

// Open opens the drive at path. It refuses with a *StatusError what is not a drive, not the
// expected one, in use, newer than this build, retired, or corrupt; nothing is then changed, but
// that a corrupt drive is marked as retired. A drive that is still forming is completed as far as
// its own files go.
func Open(ctx context.Context, fsys vfs.FS, path string, o Options) (*Drive, error) {
	o = o.withDefaults()
	if err := ctx.Err(); err != nil {
		return nil, errs.Wrap("disk.Open", err)
	}
	in := Inspect(fsys, path)
	if in.Status == Empty {
		return nil, &StatusError{Path: path, Status: Empty, Detail: "is empty, where a drive with an identity is expected: is its disk mounted?"}
	}
	if in.Err != nil {
		return nil, in.Err
	}
	if err := expect(path, in.Identity, &o); err != nil {
		return nil, err
	}
	lock, err := lockDrive(fsys, path)
	if err != nil {
		return nil, err
	}
	d := &Drive{fs: fsys, path: path, o: o, lock: lock, identity: *in.Identity, faulted: make(chan struct{}),
		writers: make(map[shardChunk]*shardWriter)}
	d.log = o.Logger.With("drive", in.Identity.Num, "path", path)
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.gate = newGate(o.MaxInFlight, o.StuckAfter, o.Now)
	if err := d.open(ctx, in.Warning); err != nil {
		d.cancel()
		d.owned.Wait()
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// expect checks the identity found against the one that is wanted.
func expect(path string, id *Identity, o *Options) error {
	switch {
	case !o.Cluster.IsZero() && id.Cluster != o.Cluster:
		return &StatusError{Path: path, Status: Foreign, Identity: id,
			Detail: fmt.Sprintf("belongs to cluster %s, not to this one, %s: mount the right disk", id.Cluster, o.Cluster)}
	case !o.Drive.IsZero() && id.Drive != o.Drive:
		return &StatusError{Path: path, Status: WrongDrive, Identity: id,
			Detail: fmt.Sprintf("is drive %d (%s), where drive %s is expected: mount the right disk", id.Num, id.Drive, o.Drive)}
	case id.Retired != "":
		return &StatusError{Path: path, Status: Retired, Identity: id,
			Detail: fmt.Sprintf("was retired as drive %d: %s; replace it, or empty it and add it as a new drive", id.Num, id.Retired)}
	case id.Hold != nil:
		return &StatusError{Path: path, Status: Held, Identity: id,
			Detail: fmt.Sprintf("(drive %d) was quarantined by an operator: %s; release it to use it again", id.Num, id.Hold.Why)}
	}
	return nil
}

func (d *Drive) open(ctx context.Context, warning string) error {
	if warning != "" {
		d.log.Warn(warning)
		// A second copy is worth more than the evidence of how the first one broke.
		d.identity.Revision++
		if err := writeIdentity(d.fs, d.path, &d.identity); err != nil {
			return &StatusError{Path: d.path, Status: Unreadable, Detail: "cannot be written: its damaged identity copy was not renewed", Err: err}
		}
	}
	if err := d.makeDirs(); err != nil {
		return err
	}
	if fi, err := d.fs.Stat(d.fs.PathJoin(d.path, metaDir)); err == nil {
		d.inode, d.hasIn = vfsx.InodeOf(fi)
	}
	d.files = vfsx.NewFiles(d.fs, d.path, !d.o.Buffered)
	meta := d.fs.PathJoin(d.path, metaDir)
	st := newStore(d.fs, d.log, storeEvents{
		writeFailed: d.onWriteFailed, readFailed: d.onReadFailed, corrupt: d.retire, slow: d.onSlow, fault: d.faultError})
	d.store = st
	sums, err := checkLogs(d.fs, meta, d.identity.Forming, d.log)
	if err != nil {
		return d.storeFailed(err)
	}
	st.keepSums(d.fs, meta, sums)
	if err := st.open(ctx, meta, &d.o, d.identity.Forming); err != nil {
		return d.storeFailed(err)
	}
	if err := d.start(ctx); err != nil {
		err = d.storeFailed(err)
		wait := closeTimeout
		if d.fault.Load() != nil {
			wait = faultyTimeout
		}
		ctx, cancel := context.WithTimeout(d.ctx, wait)
		defer cancel()
		return errors.Join(err, st.close(ctx))
	}
	d.spawn(d.sweepUnsealed)
	d.spawn(d.sweepGarbage)
	return nil
}

// start binds the record store to the identity and makes the acceptor. When the drive fails meanwhile, what waits
// inside the record store is left behind: it may wait for ever.
func (d *Drive) start(ctx context.Context) error {
	type result struct {
		a   *metadata.Acceptor
		err error
	}
	id := d.identity
	done := make(chan result, 1)
	go func() {
		err := d.store.bind(&id)
		var a *metadata.Acceptor
		if err == nil {
			a, err = metadata.NewAcceptor(metadata.AcceptorConfig{KV: d.store, Shards: shardSeals{d}, Epoch: d.o.Epoch, Now: d.o.Now})
		}
		done <- result{a, err}
	}()
	select {
	case r := <-done:
		d.acceptor = r.a
		return r.err
	case <-d.faulted:
		return d.faultError()
	case <-ctx.Done():
		d.Quarantine("it did not open in time", ctx.Err())
		return errs.Wrap("disk.Open", ctx.Err())
	}
}

// spawn runs f on a goroutine that Close waits for; f ends with d.ctx. After Close it does nothing
// and reports false.
func (d *Drive) spawn(f func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.owned.Add(1)
	go func() {
		defer d.owned.Done()
		f()
	}()
	return true
}

// storeFailed classifies a record store that does not open. Damage retires the drive.
func (d *Drive) storeFailed(err error) error {
	if f := d.fault.Load(); f != nil && f.Corrupt {
		err = f.Err
	} else if errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EMFILE) || f != nil {
		return &StatusError{Path: d.path, Status: Unreadable, Detail: "has a record store that cannot be opened", Err: err}
	}
	damaged := pebble.IsCorruptionError(err) || errs.Is(err, errs.Corrupt) || vfsx.IsNotExist(err) || errors.Is(err, pebble.ErrDBDoesNotExist)
	if !damaged || d.Identity().Forming {
		return &StatusError{Path: d.path, Status: Unreadable, Detail: "has a record store that cannot be opened", Err: err}
	}
	id := d.Identity()
	d.retire("opening it", err)
	return &StatusError{Path: d.path, Status: Corrupt, Identity: &id,
		Detail: fmt.Sprintf("(drive %d): record store corrupt; replace the drive", id.Num), Err: err}
}

// makeDirs makes the directories of a forming drive, and checks that a formed one has them.
func (d *Drive) makeDirs() error {
	meta, shards := d.fs.PathJoin(d.path, metaDir), d.fs.PathJoin(d.path, shardsDir)
	if !d.identity.Forming {
		for _, dir := range []string{meta, shards} {
			if _, err := d.fs.Stat(dir); vfsx.IsNotExist(err) {
				id := d.Identity()
				d.retire("opening it", err)
				return &StatusError{Path: d.path, Status: Corrupt, Identity: &id,
					Detail: fmt.Sprintf("(drive %d) has lost its directory %s; replace the drive", id.Num, dir), Err: err}
			} else if err != nil {
				return &StatusError{Path: d.path, Status: Unreadable, Detail: "cannot be read", Err: err}
			}
		}
		return nil
	}
	// For the owner of the process alone: what lies below are the bodies and records of all buckets,
	// and the records of the control plane, which keep the secret of the root keys.
	err := d.fs.MkdirAll(meta, privateDir)
	for i := 0; i < 256 && err == nil; i++ {
		err = d.fs.MkdirAll(d.fs.PathJoin(shards, fmt.Sprintf("%02x", i)), privateDir)
	}
	if err == nil {
		err = vfsx.SyncDir(d.fs, shards)
	}
	if err == nil {
		err = vfsx.SyncDir(d.fs, d.path)
	}
	if err != nil {
		return &StatusError{Path: d.path, Status: Unreadable, Detail: "cannot be formatted", Err: err}
	}
	return nil
}

// privateDir is the mode of the directories of a drive.
const privateDir = 0o700

// MarkFormed ends the forming of the drive: from now on its record store must be there.
func (d *Drive) MarkFormed(ctx context.Context) error {
	return run(ctx, d, "disk.MarkFormed", func(context.Context) error {
		err := d.amend(func(id *Identity) bool {
			formed := id.Forming
			id.Forming = false
			return formed
		})
		if err != nil {
			return d.failed("write identity", identityFile, err)
		}
		return nil
	})
}

// SetHold writes an operator's quarantine into the identity. The drive goes on until it is closed,
// and does not open again before the hold has ended: see the function SetHold.
func (d *Drive) SetHold(ctx context.Context, hold Hold) error {
	return run(ctx, d, "disk.SetHold", func(context.Context) error {
		if err := d.amend(func(id *Identity) bool { id.Hold = &hold; return true }); err != nil {
			return d.failed("write identity", identityFile, err)
		}
		return nil
	})
}

// SetRetired writes into the identity why the drive never serves again, such as that it was replaced. It goes on
// until it is closed.
func (d *Drive) SetRetired(ctx context.Context, why string) error {
	return run(ctx, d, "disk.SetRetired", func(context.Context) error {
		if err := d.amend(func(id *Identity) bool { id.Retired = why; return true }); err != nil {
			return d.failed("write identity", identityFile, err)
		}
		return nil
	})
}

// amend changes the identity, on the drive first, unless change returns false.
func (d *Drive) amend(change func(*Identity) bool) error {
	d.amending.Lock()
	defer d.amending.Unlock()
	id := d.Identity()
	if !change(&id) {
		return nil
	}
	id.Revision++
	if err := writeIdentity(d.fs, d.path, &id); err != nil {
		return err
	}
	d.mu.Lock()
	d.identity = id
	d.mu.Unlock()
	return nil
}

// Identity returns what the drive is.
func (d *Drive) Identity() Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.identity
}

// Path returns the directory of the drive.
func (d *Drive) Path() string { return d.path }

// Num returns the drive's number in its cluster.
func (d *Drive) Num() uint16 { return d.Identity().Num }

// Fault returns why the drive no longer serves, or nil.
func (d *Drive) Fault() *Fault { return d.fault.Load() }

// Faulted is closed when the drive is quarantined or retired.
func (d *Drive) Faulted() <-chan struct{} { return d.faulted }

// Present reports, as an error, that the directory at the drive's path is no longer the one that
// was opened, or has lost its identity. It reads the directory, and may block as long as that does.
func (d *Drive) Present() error {
	fi, err := d.fs.Stat(d.fs.PathJoin(d.path, metaDir))
	if err != nil {
		return &StatusError{Path: d.path, Status: Missing, Detail: "is gone", Err: err}
	}
	if in, ok := vfsx.InodeOf(fi); ok && d.hasIn && in != d.inode {
		return &StatusError{Path: d.path, Status: WrongDrive, Detail: "is another directory than the one that was opened"}
	}
	main, err := readIdentity(d.fs, d.fs.PathJoin(d.path, identityFile))
	if err != nil {
		main, err = readIdentity(d.fs, d.fs.PathJoin(d.path, identityCopy))
	}
	if err != nil {
		return &StatusError{Path: d.path, Status: Missing, Detail: "has lost its identity", Err: err}
	}
	if main.Drive != d.Identity().Drive {
		return &StatusError{Path: d.path, Status: WrongDrive, Identity: main, Detail: "is another drive than the one that was opened"}
	}
	return nil
}

// Quarantine takes the drive out of service for reason; a second call changes nothing.
func (d *Drive) Quarantine(reason string, err error) {
	d.setFault(&Fault{Reason: reason, Err: err, At: d.o.Now()})
}

func (d *Drive) setFault(f *Fault) bool {
	if !d.fault.CompareAndSwap(nil, f) {
		return false
	}
	if d.store != nil && !(f.Corrupt && d.store.opening.Load()) { // see openPebble
		d.store.guard.Trip(d.faultError())
	}
	d.log.Error("drive is out of service", "reason", f.Reason, "retired", f.Corrupt, "cause", f.Err)
	close(d.faulted)
	return true
}

// faultError is what every operation answers after a fault.
func (d *Drive) faultError() error {
	f := d.fault.Load()
	if f == nil {
		return nil
	}
	what := "drive is quarantined: "
	if f.Corrupt {
		what = "drive is retired: "
	}
	return &errs.Error{Op: "disk", Kind: errs.Drive, Msg: what + f.Reason, Err: f.Err}
}

// retire takes the drive out of service for good, because rows are damaged, and writes that into
// its identity as well as the drive lets it.
func (d *Drive) retire(where string, err error) {
	d.mu.Lock()
	num, forming := d.identity.Num, d.identity.Forming
	d.mu.Unlock()
	if forming {
		d.Quarantine("record store damaged while forming, "+where, err)
		return
	}
	reason := fmt.Sprintf("drive %d (%s) record store corrupt, found at %s: %v; replace the drive", num, d.path, where, err)
	// Begun before anybody hears of the fault: a Close that follows waits for it.
	first := make(chan bool, 1)
	d.spawn(func() {
		if !<-first {
			return
		}
		if err := d.amend(func(id *Identity) bool { id.Retired = reason; return true }); err != nil {
			d.log.Error("the drive could not be marked as retired", "cause", err)
		}
	})
	first <- d.setFault(&Fault{Corrupt: true, Reason: reason, Err: err, At: d.o.Now()})
}

func (d *Drive) onWriteFailed(op, path string, err error) {
	d.stats.writeErrors.Add(1)
	d.Quarantine(fmt.Sprintf("%s of %s failed: %v", op, path, err), err)
}

func (d *Drive) onReadFailed(op, path string, err error) {
	d.stats.readErrors.Add(1)
	d.log.Warn("read failed", "op", op, "file", path, "cause", err)
}

func (d *Drive) onSlow(path string, took time.Duration) {
	d.stats.slow.Add(1)
	d.log.Warn("drive is slow", "file", path, "took", took)
}

// failed judges a failed change of a file of the drive, and returns the error to answer.
func (d *Drive) failed(op, path string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		d.usage.forget()
		return &errs.Error{Op: "disk", Kind: errs.Full, Msg: "drive is full", Err: err}
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
		// The process or the machine is at its limit; the drive is not to blame.
		return &errs.Error{Op: "disk", Kind: errs.Busy, Err: err}
	case errs.Is(err, errs.Exists):
		return &errs.Error{Op: "disk", Kind: errs.Exists, Err: err}
	}
	d.onWriteFailed(op, path, err)
	return d.faultError()
}

// closeTimeout bounds how long Close waits for a drive that hangs, unless ctx ends before.
const closeTimeout = 10 * time.Second

// faultyTimeout bounds how long the record store of a drive that failed while it opened is waited for.
const faultyTimeout = time.Second

// Close closes the drive and releases its lock. It waits for operations under way, but not beyond
// ctx, or ten seconds: what hangs is left behind, fenced off, and reported as an error, unless the drive is
// faulty.
func (d *Drive) Close(ctx context.Context) error {
	left, err := d.close(ctx)
	if d.fault.Load() == nil {
		return errors.Join(left, err)
	}
	if left != nil {
		d.log.Warn("a faulty drive did not close cleanly", "cause", left)
	}
	return err
}

// Retire takes the drive out of service for reason and closes it. Once it returns nil, nothing that was
// begun on the drive is under way any more. errs.Timeout says that something still hangs in it: that
// can change no record and is answered to nobody, since the drive was fenced off before.
func (d *Drive) Retire(ctx context.Context, reason string) error {
	d.Quarantine(reason, nil)
	left, err := d.close(ctx)
	if errs.Is(left, errs.Timeout) || errs.Is(left, errs.Canceled) {
		return d.stillHangs("disk.Retire", left)
	}
	return err // how the record store took its end is of no interest: its drive is not used again
}

// Settle waits until nothing that was begun on a closed drive is under way any more, but not beyond ctx, or
// ten seconds: then the error is errs.Timeout, with the meaning that it has for Retire.
func (d *Drive) Settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := d.gate.close(ctx); err != nil {
		return d.stillHangs("disk.Settle", err)
	}
	return nil
}

func (d *Drive) stillHangs(op string, err error) error {
	return &errs.Error{Op: op, Kind: errs.Timeout, Msg: fmt.Sprintf("%d operations still hang in the drive; it is fenced off", d.gate.inFlight()), Err: err}
}

// close returns why something was left behind, or how the record store failed to close, and apart from it
// whether the lock was released.
func (d *Drive) close(ctx context.Context) (left, err error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, nil
	}
	d.closed = true
	open := d.writers
	d.writers = map[shardChunk]*shardWriter{}
	d.mu.Unlock()
	d.cancel()
	d.store.refuse()
	for _, w := range open {
		w.abandon()
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	left = d.gate.close(ctx)
	left = errors.Join(left, d.store.close(ctx))
	done := make(chan struct{})
	go func() { d.owned.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		left = errors.Join(left, errs.As("disk.Close", errs.Timeout, ctx.Err()))
	}
	return left, d.lock.Close()
}
