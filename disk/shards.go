package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
	"github.com/ostraka/ostraka/metadata"
)

// ShardSpec describes a shard file that is about to be written.
type ShardSpec struct {
	ID       erasure.ShardID
	FileSize int64 // its exact size: erasure.ShardFileSize
	Owner    erasure.Owner
	// Replace drops what the drive has under the id first, sealed or not: for the repair of a
	// shard that is known to be damaged or misplaced.
	Replace bool
}

// ShardWriter takes one shard file. It belongs to the drive until it is sealed (by Seal in Prepare,
// Pin or SealShard) or aborted. Write may be cut off by Abort, and then fails.
type ShardWriter interface {
	erasure.Sink
	// Abort removes the file. After a seal it does nothing; it may be called while a Write hangs.
	Abort()
}

// ShardStat is what StatShard found.
type ShardStat struct {
	Row ShardRow // without the inline shard
	// Inline says that the shard is a row.
	Inline bool
}

// shardChunk names what one drive has at most one shard of.
type shardChunk struct {
	data  erasure.DataID
	chunk uint32
}

func (c shardChunk) key() []byte { return shardKey(c.data, c.chunk) }

// lockShard takes the lock that orders what happens to one shard.
func (d *Drive) lockShard(c shardChunk) *sync.Mutex {
	m := &d.shardLocks[d.shardLock(c)]
	m.Lock()
	return m
}

// shardLock is the number of the lock of c. Who takes several takes them in the order of their numbers.
func (d *Drive) shardLock(c shardChunk) int {
	return (int(c.data[0]) + int(c.chunk%uint32(len(d.shardLocks)))) % len(d.shardLocks)
}

func (d *Drive) shardDir(id erasure.DataID) string {
	return d.fs.PathJoin(d.path, shardsDir, id.String()[:2])
}

func (d *Drive) shardPath(id erasure.ShardID) string {
	return d.fs.PathJoin(d.shardDir(id.Data), shardName(id))
}

// shardName is the file name of a shard: data id in hex, chunk and index in decimal.
func shardName(id erasure.ShardID) string {
	return id.Data.String() + "." + strconv.FormatUint(uint64(id.Chunk), 10) + "." + strconv.Itoa(int(id.Index))
}

func parseShardName(s string) (id erasure.ShardID, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return id, false
	}
	data, err1 := erasure.ParseDataID(parts[0])
	chunk, err2 := strconv.ParseUint(parts[1], 10, 32)
	index, err3 := strconv.ParseUint(parts[2], 10, 8)
	id = erasure.ShardID{Data: data, Chunk: uint32(chunk), Index: uint8(index)}
	return id, err1 == nil && err2 == nil && err3 == nil && shardName(id) == s
}

// row reads a shard row; nil when there is none.
func (d *Drive) row(c shardChunk) (*ShardRow, error) {
	b, err := d.store.Get(c.key())
	if err != nil || b == nil {
		return nil, err
	}
	r := new(ShardRow)
	if err := r.unmarshal(c.data, c.chunk, b); err != nil {
		d.retire("a shard row", err)
		return nil, err
	}
	return r, nil
}

// CreateShard begins a shard file, with room reserved for it. Errors: errs.Exists when the shard is
// here already, or being written; errs.Full below the watermark; errs.Drive. With Replace, a writer
// that is in the way is aborted: what it has written goes in the background, and the next try
// succeeds. It is one that a request left behind whose outcome it did not learn.
func (d *Drive) CreateShard(ctx context.Context, spec ShardSpec) (ShardWriter, error) {
	const op = "disk.CreateShard"
	if spec.FileSize < 0 || spec.FileSize%erasure.Align != 0 {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("a shard file of %d bytes is not whole pages", spec.FileSize))
	}
	w := &shardWriter{d: d, spec: spec, touched: d.o.Now(), c: shardChunk{spec.ID.Data, spec.ID.Chunk}}
	if spec.Replace {
		if left := d.writer(w.c); left != nil {
			left.Abort()
		}
	}
	err := run(ctx, d, op, func(context.Context) error { return d.create(w) })
	if err != nil {
		w.Abort() // create may still be running: it removes then what it makes
		return nil, err
	}
	return w, nil
}

func (d *Drive) create(w *shardWriter) error {
	if err := d.room(); err != nil {
		return err
	}
	defer d.lockShard(w.c).Unlock()
	d.mu.Lock()
	_, writing := d.writers[w.c]
	closed := d.closed
	if !writing && !closed {
		d.writers[w.c] = w
	}
	d.mu.Unlock()
	switch {
	case closed:
		return errs.E("disk.CreateShard", errs.Drive, "drive is closed")
	case writing:
		return errs.E("disk.CreateShard", errs.Exists, "shard is being written")
	}
	err := d.createFile(w)
	if err != nil {
		d.forget(w)
	}
	return err
}

func (d *Drive) createFile(w *shardWriter) error {
	row, err := d.row(w.c)
	if err != nil {
		return err
	}
	if row != nil {
		if !w.spec.Replace {
			return errs.E("disk.CreateShard", errs.Exists, "shard is here")
		}
		if err := d.dropShard(w.c, row); err != nil {
			return err
		}
	}
	name := d.shardPath(w.spec.ID)
	file, err := d.files.Create(name, w.spec.FileSize)
	if errs.Is(err, errs.Exists) {
		// No row and no writer: left behind by an earlier process.
		if err = d.removeFile(name); err != nil {
			return err
		}
		file, err = d.files.Create(name, w.spec.FileSize)
	}
	if err != nil {
		return d.failed("create", name, err)
	}
	return w.opened(file)
}

// forget takes w off the register of writers.
func (d *Drive) forget(w *shardWriter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writers[w.c] == w {
		delete(d.writers, w.c)
	}
}

func (d *Drive) writer(c shardChunk) *shardWriter {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writers[c]
}

// removeFile removes a file that has no row. One that is not there is fine.
func (d *Drive) removeFile(name string) error {
	if err := d.faultError(); err != nil {
		return err
	}
	if err := d.fs.Remove(name); err != nil && !vfsx.IsNotExist(err) {
		return d.failed("remove", name, err)
	}
	return nil
}

// dropShard removes row and file, in this order. The shard's lock is held.
func (d *Drive) dropShard(c shardChunk, row *ShardRow) error {
	b := new(metadata.Batch)
	b.Delete(c.key())
	if err := d.store.Apply(b, true); err != nil {
		return err
	}
	d.stats.deleted.Add(1)
	if row.Inline != nil {
		return nil
	}
	return d.removeFile(d.shardPath(row.ID))
}

// shardWriter is a shard file being written.
type shardWriter struct {
	d    *Drive
	spec ShardSpec
	c    shardChunk

	// mu guards the fields below. It is not held during I/O.
	mu      sync.Mutex
	file    vfsx.Writer // nil before it is opened and after it is closed
	busy    bool        // a Write or a sync uses file
	written int64
	touched time.Time
	err     error // sticky: why no more is written
	aborted bool
	sealed  bool
	left    bool // the drive is closed: who has the file closes it
}

var errAborted = errs.E("disk.ShardWriter", errs.Canceled, "shard was aborted")

// opened hands the file over, unless the writer was aborted meanwhile.
func (w *shardWriter) opened(file vfsx.Writer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.aborted {
		return errors.Join(errAborted, file.Close(), w.d.removeFile(w.d.shardPath(w.spec.ID)))
	}
	if w.left {
		return errors.Join(w.err, file.Close())
	}
	w.file = file
	return nil
}

// use claims the file for I/O.
func (w *shardWriter) use() (vfsx.Writer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.aborted:
		return nil, errAborted
	case w.err != nil:
		return nil, w.err
	case w.file == nil || w.busy || w.sealed:
		return nil, errs.E("disk.ShardWriter", errs.Internal, "shard writer is in use or done")
	}
	if err := w.d.faultError(); err != nil {
		return nil, err
	}
	w.busy = true
	w.touched = w.d.o.Now()
	return w.file, nil
}

// idleSince reports whether nobody used w after limit.
func (w *shardWriter) idleSince(limit time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.busy && w.touched.Before(limit)
}

// unuse gives the file back. An Abort, or the end of the drive, that came meanwhile is carried out.
func (w *shardWriter) unuse(n int64, err error) {
	w.mu.Lock()
	w.busy = false
	w.written += n
	if w.err == nil {
		w.err = err
	}
	ended := w.aborted || w.left
	w.mu.Unlock()
	if ended {
		w.discard()
	}
}

// Write implements erasure.Sink. It returns when the kernel has taken p, however long that takes:
// the memory is the caller's.
func (w *shardWriter) Write(ctx context.Context, p []byte) error {
	if err := ctx.Err(); err != nil {
		return errs.Wrap("disk.Write", err)
	}
	file, err := w.use()
	if err != nil {
		return err
	}
	n := 0
	if w.written+int64(len(p)) > w.spec.FileSize {
		err = errs.E("disk.Write", errs.Invalid, "shard is longer than announced")
	} else if n, err = file.Write(p); err != nil {
		err = w.d.failed("write", w.d.shardPath(w.spec.ID), err)
	}
	w.unuse(int64(n), err)
	return err
}

// Abort implements ShardWriter.
func (w *shardWriter) Abort() {
	w.mu.Lock()
	if w.aborted || w.sealed {
		w.mu.Unlock()
		return
	}
	w.aborted = true
	busy := w.busy
	w.mu.Unlock()
	if !busy {
		w.discard()
	}
}

// abandon ends the writer without touching the drive's names: at Close, the sweep of the next
// Open removes the file. Nobody need abort it: a file that stays open would keep a drive that is out of
// service from being unmounted. What is being opened or used is closed by whoever does that.
func (w *shardWriter) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = true
	w.err = errs.E("disk.ShardWriter", errs.Drive, "drive is closed")
	if !w.busy && w.file != nil {
		_ = w.file.Close() // nothing was promised of it
		w.file = nil
	}
}

// discard closes and removes the file of an aborted writer, in the background of the drive, since
// a drive that hangs must not hold up the one who aborts.
func (w *shardWriter) discard() {
	w.mu.Lock()
	file := w.file
	w.file = nil
	w.mu.Unlock()
	if file == nil {
		w.d.forget(w)
		return
	}
	removing := w.d.spawn(func() {
		_ = file.Close() // an aborted file has nothing to lose
		// The name is free for another writer only when the file is gone.
		defer w.d.lockShard(w.c).Unlock()
		_ = w.d.removeFile(w.d.shardPath(w.spec.ID)) // quarantines by itself
		w.d.forget(w)
	})
	if !removing { // the drive is closed: the sweep of its next Open removes the file
		_ = file.Close()
	}
}

// sealFile makes the file of w durable and writes its row: the commit point of a shard. The shard's lock is held.
func (d *Drive) sealFile(w *shardWriter, addr metadata.Address) error {
	const op = "disk.Seal"
	file, err := w.use()
	if err != nil {
		return err
	}
	if w.written != w.spec.FileSize {
		err = errs.E(op, errs.NotFound, fmt.Sprintf("shard is not here: %d of %d bytes were written", w.written, w.spec.FileSize))
		w.mu.Lock()
		w.busy = false
		ended := w.aborted || w.left
		w.mu.Unlock()
		if ended {
			w.discard()
		}
		return err
	}
	name := d.shardPath(w.spec.ID)
	if err = file.SyncData(); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = d.failed("sync", name, err) // only this file lost pages, and it is given up
	} else if err != nil {
		err = d.failedSync("sync", name, err)
	} else if err = vfsx.SyncDir(d.fs, d.shardDir(w.spec.ID.Data)); err != nil {
		err = d.failedSync("sync directory of", name, err)
	} else {
		err = d.putRow(&ShardRow{ID: w.spec.ID, Size: w.spec.FileSize, Address: addr, Sealed: d.o.Now()})
	}
	w.mu.Lock()
	if err == nil {
		w.sealed, w.aborted = true, false // an Abort during the seal came too late
	} else if w.err == nil {
		w.err = err
	}
	w.busy = false
	aborted := w.aborted
	if !aborted {
		w.file = nil
	}
	w.mu.Unlock()
	if aborted {
		w.discard()
		return err
	}
	_ = file.Close() // its data is durable, or the drive is out
	if err == nil {
		d.forget(w)
	}
	return err
}

// failedSync judges a failed sync: whatever its error, the data cannot be trusted any more.
func (d *Drive) failedSync(op, path string, err error) error {
	d.onWriteFailed(op, path, err)
	return d.faultError()
}

func (d *Drive) putRow(r *ShardRow) error {
	b := new(metadata.Batch)
	b.Set(shardKey(r.ID.Data, r.ID.Chunk), r.appendTo(nil))
	return d.store.Apply(b, true)
}

// shardSeals is the shard store as the acceptor sees it: the calls are made within blocking
// operations of the drive.
type shardSeals struct{ d *Drive }

// Seal implements metadata.Shards.
func (s shardSeals) Seal(_ context.Context, addr metadata.Address, m *metadata.Seal) error {
	if m.Data.Inline() {
		return s.d.sealInline(addr, m)
	}
	return s.d.seal(shardChunk{m.Data.ID, 0}, &addr, int(m.Index))
}

// SealChunk implements metadata.Shards.
func (s shardSeals) SealChunk(_ context.Context, id erasure.DataID, chunk uint32) error {
	return s.d.seal(shardChunk{id, chunk}, nil, -1)
}

// Have implements metadata.Shards.
func (s shardSeals) Have(_ context.Context, id erasure.DataID, chunk uint32) (bool, error) {
	r, err := s.d.row(shardChunk{id, chunk})
	return r != nil, err
}

// Inline implements metadata.Shards.
func (s shardSeals) Inline(_ context.Context, id erasure.DataID) ([]byte, error) {
	r, err := s.d.row(shardChunk{id, 0})
	if err != nil || r == nil {
		return nil, err
	}
	return r.Inline, nil
}

// seal makes the shard durable that a writer has here. index −1 accepts any.
func (d *Drive) seal(c shardChunk, addr *metadata.Address, index int) error {
	const op = "disk.Seal"
	defer d.lockShard(c).Unlock()
	row, err := d.row(c)
	if err != nil {
		return err
	}
	if row != nil {
		if index >= 0 && int(row.ID.Index) != index {
			return errs.E(op, errs.NotFound, fmt.Sprintf("shard %d of the data is here, not %d", row.ID.Index, index))
		}
		return nil
	}
	w := d.writer(c)
	if w == nil || index >= 0 && int(w.spec.ID.Index) != index {
		return errs.E(op, errs.NotFound, "shard is not here")
	}
	if addr == nil {
		a := ownerAddress(w.spec.Owner)
		addr = &a
	}
	return d.sealFile(w, *addr)
}

// verifySeal checks the inline shard that a seal carries.
func verifySeal(m *metadata.Seal) error {
	return erasure.VerifyInline(m.Data.Profile, m.Data.ID, m.Data.Size, int(m.Index), m.Inline)
}

func (d *Drive) sealInline(addr metadata.Address, m *metadata.Seal) error {
	if err := verifySeal(m); err != nil {
		return errs.Wrap("disk.Seal", err)
	}
	defer d.lockShard(shardChunk{m.Data.ID, 0}).Unlock()
	row, err := d.inlineRow(addr, m)
	if err != nil || row == nil {
		return err
	}
	return d.putRow(row)
}

// inlineRow returns the row to write for a verified seal, nil when it is here already. The shard's
// lock is held.
func (d *Drive) inlineRow(addr metadata.Address, m *metadata.Seal) (*ShardRow, error) {
	row, err := d.row(shardChunk{m.Data.ID, 0})
	if err != nil {
		return nil, err
	}
	if row != nil && row.Inline != nil && row.ID.Index == m.Index {
		// A damaged row is replaced: to leave it would make its damage last.
		err := erasure.VerifyInline(row.Profile, m.Data.ID, row.BodySize, int(m.Index), row.Inline)
		if err == nil || errs.Is(err, errs.Unsupported) {
			return nil, nil
		}
	}
	if err := d.room(); err != nil {
		return nil, err
	}
	return &ShardRow{ID: erasure.ShardID{Data: m.Data.ID, Index: m.Index}, Inline: m.Inline, Size: int64(len(m.Inline)),
		Address: addr, Sealed: d.o.Now(), Profile: m.Data.Profile, BodySize: m.Data.Size}, nil
}

// ownerAddress is the register that an owner means.
func ownerAddress(o erasure.Owner) metadata.Address {
	a := metadata.Address{Kind: metadata.KindObject, Bucket: o.Bucket, Key: o.Key, Upload: o.Upload, Part: o.Part}
	switch {
	case o.Part != 0:
		a.Kind = metadata.KindPart
	case o.Upload != [16]byte{}:
		a.Kind = metadata.KindUpload
	}
	return a
}

// SealShard makes chunk 0, or an inline shard, durable without a promise: for repair, which writes
// only what is known to be chosen.
func (d *Drive) SealShard(ctx context.Context, addr metadata.Address, s *metadata.Seal) error {
	return run(ctx, d, "disk.SealShard", func(ctx context.Context) error { return shardSeals{d}.Seal(ctx, addr, s) })
}

// SealChunk makes the shard of a later chunk durable without a pin: for repair.
func (d *Drive) SealChunk(ctx context.Context, id erasure.DataID, chunk uint32) error {
	return run(ctx, d, "disk.SealChunk", func(ctx context.Context) error { return shardSeals{d}.SealChunk(ctx, id, chunk) })
}

// InlineShard returns the inline shard row of a body. The error is errs.NotFound when absent.
func (d *Drive) InlineShard(ctx context.Context, id erasure.DataID) ([]byte, error) {
	return call(ctx, d, "disk.InlineShard", func(ctx context.Context) ([]byte, error) {
		b, err := shardSeals{d}.Inline(ctx, id)
		if err == nil && b == nil {
			err = errs.E("disk.InlineShard", errs.NotFound, "no such shard")
		}
		return b, err
	})
}

// OpenShard opens a shard file for reading. It stays readable after the shard was deleted. The
// error is errs.NotFound when the file is absent.
func (d *Drive) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	src, err := callOr(ctx, d, "disk.OpenShard", func(context.Context) (*shardSource, error) {
		name := d.shardPath(id)
		r, err := d.files.Open(name)
		if vfsx.IsNotExist(err) {
			return nil, d.noFile(name, errs.E("disk.OpenShard", errs.NotFound, "no such shard"))
		}
		if err != nil {
			return nil, d.readFailed(name, err)
		}
		return &shardSource{d: d, r: r, name: name}, nil
	}, func(s *shardSource) { _ = s.Close() })
	if err != nil {
		return nil, err
	}
	return src, nil
}

// noFile returns the error to answer when a file does not exist: missing if the drive's directory is there. Else
// nothing is known of the shard: the disk was unmounted, and nobody has noticed yet.
func (d *Drive) noFile(name string, missing error) error {
	if err := d.Present(); err != nil {
		return d.readFailed(name, err)
	}
	return missing
}

// readFailed counts a failed read and returns the error to answer.
func (d *Drive) readFailed(name string, err error) error {
	if k := errs.KindOf(err); k == errs.Canceled || k == errs.Timeout {
		return err
	}
	d.onReadFailed("read", name, err)
	if f := d.faultError(); f != nil {
		return f
	}
	return &errs.Error{Op: "disk.Read", Kind: errs.Drive, Msg: "shard cannot be read", Err: err}
}

// shardSource implements erasure.Source.
type shardSource struct {
	d    *Drive
	r    vfsx.Reader
	name string
}

// ReadAt implements erasure.Source. It returns when the kernel does: the memory is the caller's.
func (s *shardSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, errs.Wrap("disk.ReadAt", err)
	}
	if err := s.d.faultError(); err != nil {
		return 0, err
	}
	n, err := s.r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = s.d.readFailed(s.name, err)
	}
	return n, err
}

func (s *shardSource) Close() error { return s.r.Close() }

// StatShard tells what the drive has of a shard. The error is errs.NotFound when there is no row,
// errs.Corrupt when there is a row but its file is gone or has another size.
func (d *Drive) StatShard(ctx context.Context, id erasure.ShardID) (ShardStat, error) {
	return call(ctx, d, "disk.StatShard", func(context.Context) (ShardStat, error) { return d.stat(id) })
}

func (d *Drive) stat(id erasure.ShardID) (ShardStat, error) {
	const op = "disk.StatShard"
	row, err := d.row(shardChunk{id.Data, id.Chunk})
	if err != nil {
		return ShardStat{}, err
	}
	if row == nil || row.ID.Index != id.Index {
		return ShardStat{}, errs.E(op, errs.NotFound, "no such shard")
	}
	st := ShardStat{Row: *row, Inline: row.Inline != nil}
	st.Row.Inline = nil
	if st.Inline {
		return st, nil
	}
	name := d.shardPath(id)
	fi, err := d.fs.Stat(name)
	switch {
	case vfsx.IsNotExist(err):
		return st, d.noFile(name, errs.E(op, errs.Corrupt, "the file of the shard is gone"))
	case err != nil:
		return st, d.readFailed(name, err)
	case fi.Size() != row.Size:
		return st, errs.E(op, errs.Corrupt, fmt.Sprintf("the file of the shard has %d bytes, not %d", fi.Size(), row.Size))
	}
	return st, nil
}

// VerifyShard reads the whole shard index of c and checks every checksum. The profile of c may be
// zero: then the file's own header says what it is. throttle, if not nil, is called before each read
// with its length. The error is errs.NotFound, errs.Corrupt, or says that the shard could not be read.
func (d *Drive) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	const op = "disk.VerifyShard"
	id := c.Shard(index)
	st, err := d.StatShard(ctx, id)
	if err != nil {
		return err
	}
	if st.Inline {
		b, err := d.InlineShard(ctx, id.Data)
		if err != nil {
			return err
		}
		return errs.Wrap(op, erasure.VerifyInline(st.Row.Profile, id.Data, st.Row.BodySize, index, b))
	}
	file, err := d.OpenShard(ctx, id)
	if err != nil {
		return err
	}
	src := d.bounded(file)
	defer src.Close()
	if throttle != nil {
		src = throttled{src, throttle}
	}
	if !c.Profile.Valid() {
		h, err := erasure.ReadHeader(ctx, src)
		if err != nil {
			return errs.Wrap(op, err)
		}
		c.Profile, c.Size = h.Chunk.Profile, h.Chunk.Size
	}
	return errs.Wrap(op, erasure.VerifyShard(ctx, src, c, index, nil))
}

// throttled asks before each read.
type throttled struct {
	erasure.Source
	ask func(context.Context, int) error
}

func (t throttled) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := t.ask(ctx, len(p)); err != nil {
		return 0, err
	}
	return t.Source.ReadAt(ctx, p, off)
}

// ShardRows returns up to limit shard rows behind (after, chunk), in the order of their ids, without
// inline payloads: the work list of scrub and of the collection of orphans. The zero id begins.
func (d *Drive) ShardRows(ctx context.Context, after erasure.DataID, chunk uint32, limit int) ([]ShardRow, error) {
	return call(ctx, d, "disk.ShardRows", func(ctx context.Context) ([]ShardRow, error) {
		lower := append(shardKey(after, chunk), 0)
		if after == (erasure.DataID{}) && chunk == 0 {
			lower = shardKey(after, 0)
		}
		it, err := d.store.NewIter(lower, []byte{nsShard + 1})
		if err != nil {
			return nil, err
		}
		var rows []ShardRow
		for ok := it.First(); ok && len(rows) < limit && ctx.Err() == nil; ok = it.Next() {
			id, n, ok := parseShardKey(it.Key())
			var r ShardRow
			value := it.Value()
			if it.Err() != nil {
				break // the value could not be read, which is no damage: Close returns the error
			}
			if !ok {
				err = errs.E("disk.ShardRows", errs.Corrupt, "a key of the shard rows does not parse")
			} else {
				err = r.unmarshal(id, n, value)
			}
			if err != nil {
				d.retire("a shard row", err)
				return nil, errors.Join(err, it.Close())
			}
			if r.Inline != nil {
				r.Inline = []byte{}
			}
			rows = append(rows, r)
		}
		return rows, it.Close()
	})
}

// usageSample caches what the file system says of its free space.
type usageSample struct {
	// mu guards the fields below.
	mu           sync.Mutex
	at           time.Time
	valid        bool
	total, avail uint64
	known        bool // false: the file system does not tell
}

// usageEvery is how long a sample of free space is good for.
const usageEvery = time.Second

func (u *usageSample) forget() {
	u.mu.Lock()
	u.valid = false
	u.mu.Unlock()
}

func (d *Drive) sampleUsage() (total, avail uint64, known bool) {
	u := &d.usage
	now := d.o.Now()
	u.mu.Lock()
	if u.valid && now.Sub(u.at) < usageEvery && now.Sub(u.at) >= 0 {
		defer u.mu.Unlock()
		return u.total, u.avail, u.known
	}
	u.mu.Unlock()
	du, err := d.fs.GetDiskUsage(d.path)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.at, u.valid, u.known = now, true, err == nil
	u.total, u.avail = du.TotalBytes, du.AvailBytes
	return u.total, u.avail, u.known
}

// reserve is the watermark in bytes of free space.
func (d *Drive) reserve(total uint64) uint64 {
	switch {
	case d.o.ReserveBytes < 0:
		return 0
	case d.o.ReserveBytes > 0:
		return uint64(d.o.ReserveBytes)
	}
	// The log of a record store grows by its write buffers: on a small file system 5 % would not
	// hold them.
	return max(min(total/20, 1<<30), min(4*uint64(d.o.MemTableSize), total/4))
}

// room refuses new shards below the watermark.
func (d *Drive) room() error {
	total, avail, known := d.sampleUsage()
	if known && avail < d.reserve(total) {
		return errs.E("disk", errs.Full, "drive is full")
	}
	return nil
}
