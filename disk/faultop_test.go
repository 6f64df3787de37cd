package disk

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// The loops below fail the i-th operation of the file system under one request, once, for each i until a
// request does without. Every step has a drive of its own; by default some of the steps are tried.
var (
	faultAll  = flag.Bool("faultop.all", false, "fail every operation in turn, not only some")
	faultSome = flag.Int("faultop.steps", 4, "about how many operations are failed in turn for each kind of request and fault")
)

// opClass says what may go wrong with an operation of a file system.
type opClass uint8

const (
	opRead    opClass = 1 << iota // nothing changes
	opChange                      // of names
	opWrite                       // of data
	opSync                        // of data or of a directory
	opReserve                     // room, which is advice
)

// opCause is how operations fail.
type opCause struct {
	name  string
	err   error
	on    opClass // which ones do
	short bool    // a write takes half of its data, and reports that, but no error
}

var opCauses = []opCause{
	{"EIO", syscall.EIO, opRead | opChange | opWrite | opSync | opReserve, false},
	{"ENOSPC", syscall.ENOSPC, opChange | opWrite | opSync | opReserve, false},
	{"a short write", nil, opWrite, true},
}

// opHit is the operation that was failed.
type opHit struct {
	what, name string
	class      opClass
}

func (h *opHit) String() string { return h.what + " of " + h.name }

// opFS counts the operations of a file system while it is armed, and fails one of them. Closing and locking
// do not count: their failure says nothing. Logs are made anew where they would be used again.
type opFS struct {
	vfs.FS
	cause opCause
	at    int64 // which one fails; negative: none
	armed atomic.Bool
	n     atomic.Int64
	hit   atomic.Pointer[opHit]
}

// fails reports whether this operation is the one.
func (f *opFS) fails(what, name string, class opClass) bool {
	if !f.armed.Load() || class&f.cause.on == 0 || f.n.Add(1)-1 != f.at {
		return false
	}
	f.hit.Store(&opHit{what, name, class})
	return true
}

func (f *opFS) do(what, name string, class opClass, do func() error) error {
	if f.fails(what, name, class) {
		return &os.PathError{Op: what, Path: name, Err: f.cause.err}
	}
	return do()
}

func (f *opFS) file(what, name string, class opClass, open func() (vfs.File, error)) (file vfs.File, err error) {
	if err := f.do(what, name, class, func() (err error) { file, err = open(); return err }); err != nil {
		return nil, err
	}
	return &opFile{file, f, name}, nil
}

func (f *opFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file("create", name, opChange, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *opFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.Remove(oldname); err != nil {
		return nil, err
	}
	return f.Create(newname, c)
}

func (f *opFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.file("open for writing", name, opChange, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, opts...) })
}

func (f *opFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.file("open", name, opRead, func() (vfs.File, error) { return f.FS.Open(name, opts...) })
}

func (f *opFS) OpenDir(name string) (vfs.File, error) {
	return f.file("open directory", name, opRead, func() (vfs.File, error) { return f.FS.OpenDir(name) })
}

func (f *opFS) Remove(name string) error {
	return f.do("remove", name, opChange, func() error { return f.FS.Remove(name) })
}

func (f *opFS) RemoveAll(name string) error {
	return f.do("remove", name, opChange, func() error { return f.FS.RemoveAll(name) })
}

func (f *opFS) Rename(oldname, newname string) error {
	return f.do("rename", newname, opChange, func() error { return f.FS.Rename(oldname, newname) })
}

func (f *opFS) Link(oldname, newname string) error {
	return f.do("link", newname, opChange, func() error { return f.FS.Link(oldname, newname) })
}

func (f *opFS) MkdirAll(dir string, perm os.FileMode) error {
	return f.do("mkdir", dir, opChange, func() error { return f.FS.MkdirAll(dir, perm) })
}

func (f *opFS) List(dir string) (names []string, err error) {
	err = f.do("list", dir, opRead, func() (err error) { names, err = f.FS.List(dir); return err })
	return names, err
}

func (f *opFS) Stat(name string) (fi vfs.FileInfo, err error) {
	err = f.do("stat", name, opRead, func() (err error) { fi, err = f.FS.Stat(name); return err })
	return fi, err
}

type opFile struct {
	vfs.File
	fs   *opFS
	name string
}

func (f *opFile) read(do func() (int, error)) (n int, err error) {
	err = f.fs.do("read", f.name, opRead, func() (err error) { n, err = do(); return err })
	return n, err
}

func (f *opFile) Read(p []byte) (int, error) {
	return f.read(func() (int, error) { return f.File.Read(p) })
}

func (f *opFile) ReadAt(p []byte, off int64) (int, error) {
	return f.read(func() (int, error) { return f.File.ReadAt(p, off) })
}

func (f *opFile) write(p []byte, do func([]byte) (int, error)) (int, error) {
	if !f.fs.fails("write", f.name, opWrite) {
		return do(p)
	}
	n, err := 0, f.fs.cause.err
	if f.fs.cause.short || errors.Is(err, syscall.ENOSPC) { // what there was room for is there
		n, _ = do(p[:len(p)/2])
	}
	return n, err
}

func (f *opFile) Write(p []byte) (int, error) { return f.write(p, f.File.Write) }

func (f *opFile) WriteAt(p []byte, off int64) (int, error) {
	return f.write(p, func(p []byte) (int, error) { return f.File.WriteAt(p, off) })
}

func (f *opFile) Sync() error     { return f.fs.do("sync", f.name, opSync, f.File.Sync) }
func (f *opFile) SyncData() error { return f.fs.do("sync", f.name, opSync, f.File.SyncData) }

func (f *opFile) SyncTo(length int64) (full bool, err error) {
	err = f.fs.do("sync", f.name, opSync, func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, err
}

func (f *opFile) Preallocate(off, length int64) error {
	return f.fs.do("preallocate", f.name, opReserve, func() error { return f.File.Preallocate(off, length) })
}

// opImage is the drive that every step begins with, and what the requests do to it.
type opImage struct {
	formed, empty *vfs.MemFS
	file, row     body   // stored, touched by no request
	oldFile       body   // stored
	oldRow        body   // stored
	newFile       body   // not stored
	newRow        body   // not stored
	batch         []body // not stored
}

const (
	opJob    = "loop"
	opBefore = "before"
)

func newOpImage(t *testing.T, rng *rand.Rand) *opImage {
	m := &opImage{file: newBody(rng, 20<<10, false), row: newBody(rng, 3000, true), oldFile: newBody(rng, 300<<10, false),
		oldRow: newBody(rng, 3000, true), newFile: newBody(rng, 300<<10, false), newRow: newBody(rng, 3000, true)}
	for range 30 { // less than would stall writes if the write buffer could not be flushed
		m.batch = append(m.batch, newBody(rng, 4000, true))
	}
	fs := vfs.NewCrashableMem()
	mkdir(t, fs, "d")
	m.empty = fs.CrashClone(vfs.CrashCloneCfg{})
	fs = vfs.NewCrashableMem()
	d := makeDrive(t, fs, testOptions())
	for _, b := range []body{m.file, m.row, m.oldFile, m.oldRow} {
		if err := b.put(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.SetJob(bg, opJob, []byte(opBefore)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, d)
	m.formed = fs.CrashClone(vfs.CrashCloneCfg{})
	return m
}

// opRequest is one kind of request.
type opRequest struct {
	name   string
	bodies []body // what it stores or removes
	gone   bool   // it removes them
	job    string // the job's value after it; "": as before
	drive  bool   // it makes or opens the drive itself
	empty  bool   // in an empty directory
	run    func(fs vfs.FS, d *Drive) (*Drive, error)
}

func on(do func(d *Drive) error) func(vfs.FS, *Drive) (*Drive, error) {
	return func(_ vfs.FS, d *Drive) (*Drive, error) { return d, do(d) }
}

func (m *opImage) requests() []opRequest {
	remove := func(b body) func(vfs.FS, *Drive) (*Drive, error) {
		return on(func(d *Drive) error { return d.DeleteShard(bg, testAddr, b.data.ID, 0, metadata.Ballot{Counter: 1}) })
	}
	return []opRequest{
		{name: "a PUT of a shard file", bodies: []body{m.newFile}, run: on(m.newFile.put)},
		{name: "a seal of an inline shard", bodies: []body{m.newRow}, run: on(m.newRow.put)},
		{name: "a seal of a batch and a flush", bodies: m.batch, run: on(func(d *Drive) error {
			var list []InlineSeal
			for _, b := range m.batch {
				rows, err := erasure.EncodeInline(one, b.data.ID, b.bytes)
				if err != nil {
					return err
				}
				list = append(list, InlineSeal{testAddr, metadata.Seal{Data: b.data, Inline: rows[0]}})
			}
			return errors.Join(d.SealInline(bg, list), flush(d))
		})},
		{name: "a DELETE of a shard file", bodies: []body{m.oldFile}, gone: true, run: remove(m.oldFile)},
		{name: "a DELETE of an inline shard", bodies: []body{m.oldRow}, gone: true, run: remove(m.oldRow)},
		{name: "a scrub", run: on(scrubClean)},
		{name: "a shard file written over another", bodies: []body{m.oldFile}, run: on(func(d *Drive) error {
			spec := m.oldFile.spec()
			spec.Replace = true
			w, err := d.CreateShard(bg, spec)
			if err != nil {
				return err
			}
			if _, err := erasure.NewEncoder(erasure.EncoderOptions{}).Encode(bg, m.oldFile.chunk(), bytes.NewReader(m.oldFile.bytes), 1, []erasure.Sink{w}); err != nil {
				w.Abort()
				return err
			}
			return m.oldFile.seal(d)
		})},
		{name: "a value of a job", job: "after", run: on(func(d *Drive) error { return d.SetJob(bg, opJob, []byte("after")) })},
		{name: "the opening of a drive", drive: true, run: func(fs vfs.FS, _ *Drive) (*Drive, error) { return Open(bg, fs, "d", testOptions()) }},
		{name: "an adoption", drive: true, empty: true, run: func(fs vfs.FS, _ *Drive) (*Drive, error) {
			if in := Inspect(fs, "d"); in.Status != Identified {
				if err := Format(fs, "d", testIdentity(3)); err != nil {
					return nil, err
				}
			}
			d, err := Open(bg, fs, "d", testOptions())
			if err == nil {
				err = d.MarkFormed(bg)
			}
			return d, err
		}},
	}
}

// flush waits until the write buffers are in tables, or the drive has failed.
func flush(d *Drive) error {
	if err := d.faultError(); err != nil {
		return err
	}
	done, err := d.store.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
		return d.faultError()
	case <-d.Faulted():
		return d.faultError()
	}
}

// scrubClean scrubs all of d; every finding is an error.
func scrubClean(d *Drive) error {
	r, err := d.Scrub(bg, erasure.ShardID{}, maxScrub, nil)
	for _, bad := range r.Bad {
		err = errors.Join(err, fmt.Errorf("shard %s: %w", bad.Row.ID, bad.Err))
	}
	return err
}

func TestARequestUnderWhichAnyOperationFailsIsDoneOrNot(t *testing.T) {
	rng := newRand(t)
	m := newOpImage(t, rng)
	for _, r := range m.requests() {
		for _, cause := range opCauses {
			t.Run(r.name+" under "+cause.name, func(t *testing.T) {
				total := m.try(t, rng, &r, cause, -1)
				step := int64(1)
				if !*faultAll {
					step = max(1, total/int64(max(*faultSome, 1)))
				}
				tried, first := 0, int64(0)
				if step > 1 {
					first = rng.Int64N(step) // each run takes others
				}
				for i := first; i < total && !t.Failed(); i += step {
					m.try(t, rng, &r, cause, i)
					tried++
				}
				t.Logf("%d of %d operations were failed in turn", tried, total)
				if total == 0 && cause.on&opRead != 0 {
					t.Error("the request does nothing in the file system")
				}
			})
		}
	}
}

// try runs a request whose i-th operation fails, then cuts the power. It returns how many operations there were.
func (m *opImage) try(t *testing.T, rng *rand.Rand, r *opRequest, cause opCause, i int64) int64 {
	base := m.formed
	if r.empty {
		base = m.empty
	}
	mem := base.CrashClone(vfs.CrashCloneCfg{})
	fs := &opFS{FS: mem, cause: cause, at: i}
	var d *Drive
	if !r.drive {
		var err error
		if d, err = Open(bg, fs, "d", testOptions()); err != nil {
			t.Fatal(err)
		}
	}
	fs.armed.Store(true)
	d, err := r.run(fs, d)
	if d != nil && d.Fault() == nil && !r.drive {
		d.settled()
	}
	fs.armed.Store(false)
	hit := fs.hit.Load()
	where := fmt.Sprintf("operation %d (%v) fails", i, hit)
	switch {
	case hit == nil && err != nil:
		t.Fatalf("without a fault: %v", err)
	case hit == nil && i >= 0:
		where = fmt.Sprintf("without an operation %d", i) // the drive's own work does not always take as many
	case d != nil && hit != nil:
		m.checkLive(t, where, d, r, cause, hit)
	}
	var percent int
	if percent = rng.IntN(101); rng.IntN(3) == 0 {
		percent = 100 * rng.IntN(2)
	}
	after := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	if d != nil {
		mustClose(t, d)
	}
	m.checkAfter(t, where, after, r, err == nil)
	return fs.n.Load()
}

// settled waits for whoever is at work on a shard.
func (d *Drive) settled() {
	for c := range d.shardLocks {
		d.shardLocks[c].Lock()
		//lint:ignore SA2001 whoever held it has ended
		d.shardLocks[c].Unlock()
	}
}

// checkLive looks at a drive on which an operation failed: either it is out of service, and stays so, or
// it goes on, and has lost nothing.
func (m *opImage) checkLive(t *testing.T, where string, d *Drive, r *opRequest, cause opCause, hit *opHit) {
	t.Helper()
	// A shard file that finds no room is given up alone; so is the drive's identity, which is written anew. The sums of
	// the logs are given up whatever happens to them.
	spared := errors.Is(cause.err, syscall.ENOSPC) && !strings.Contains(hit.name, metaDir+"/") || strings.HasSuffix(hit.name, sumsFile)
	if hit.class&(opWrite|opSync|opChange) != 0 && !spared {
		select {
		case <-d.Faulted():
		case <-time.After(30 * time.Second):
			t.Fatalf("%s, and the drive goes on", where)
		}
	}
	if d.Fault() != nil {
		_, err := d.Job(bg, opJob)
		for what, err := range map[string]error{"reads a value": err, "reads a file": m.file.check(d), "reads a row": m.row.check(d),
			"takes a value": d.SetJob(bg, opJob, []byte("x")), "takes a row": m.newRow.seal(d), "scrubs": scrubClean(d)} {
			if !errs.Is(err, errs.Drive) {
				t.Errorf("%s: the drive is out of service and %s: %v", where, what, err)
			}
		}
		return
	}
	if r.empty {
		return
	}
	// What runs in the background may meet the fault only now: then the drive says so.
	out := func(err error) bool { return errs.Is(err, errs.Drive) && d.Fault() != nil }
	for _, b := range []body{m.file, m.row} {
		if err := b.check(d); err != nil && !out(err) {
			t.Errorf("%s: the drive goes on, and a shard of before: %v", where, err)
		}
	}
	if err := newBody(rand.New(rand.NewPCG(1, 1)), 5000, false).put(d); err != nil && !out(err) {
		t.Errorf("%s: the drive goes on, and takes no shard: %v", where, err)
	}
}

// checkAfter opens the drive after the power was cut: what was acknowledged is there, what was not is
// there whole or not at all, and the request can be made again.
func (m *opImage) checkAfter(t *testing.T, where string, fs vfs.FS, r *opRequest, acked bool) {
	t.Helper()
	if !r.empty {
		d := m.reopen(t, where, fs)
		m.checkState(t, where, d, r, acked)
		if !r.drive {
			// What had no answer may be there all the same.
			if _, err := r.run(fs, d); err != nil && !errs.Is(err, errs.Exists) {
				t.Errorf("%s, then a crash: the request made again: %v", where, err)
			}
			m.checkState(t, where+", made again", d, r, true)
		}
		mustClose(t, d)
		return
	}
	d, err := r.run(fs, nil)
	if err != nil {
		t.Fatalf("%s, then a crash: the drive is not completed: %v", where, err)
	}
	if id := d.Identity(); id.Forming || id.Drive != testIdentity(3).Drive || id.Retired != "" {
		t.Errorf("%s, then a crash: identity %+v", where, id)
	}
	if err := m.file.put(d); err != nil {
		t.Errorf("%s, then a crash: the new drive takes no shard: %v", where, err)
	}
	mustClose(t, d)
}

func (m *opImage) reopen(t *testing.T, where string, fs vfs.FS) *Drive {
	t.Helper()
	d, err := Open(bg, fs, "d", testOptions())
	if err != nil {
		t.Fatalf("%s, then a crash: %v", where, err)
	}
	return d
}

func (m *opImage) checkState(t *testing.T, where string, d *Drive, r *opRequest, acked bool) {
	t.Helper()
	for _, b := range []body{m.file, m.row} {
		if err := b.check(d); err != nil {
			t.Errorf("%s: a shard of before: %v", where, err)
		}
	}
	for _, b := range r.bodies {
		err := b.check(d)
		here, absent := err == nil, errs.Is(err, errs.NotFound)
		if !here && !absent || acked && here == r.gone {
			t.Errorf("%s: acknowledged %v, and a shard that was to go (%v): %v", where, acked, r.gone, err)
		}
	}
	if err := scrubClean(d); err != nil {
		t.Errorf("%s: scrub: %v", where, err)
	}
	v, err := d.Job(bg, opJob)
	want := []string{opBefore}
	if r.job != "" {
		if want = []string{r.job}; !acked {
			want = append(want, opBefore)
		}
	}
	if err != nil || string(v) != want[0] && string(v) != want[len(want)-1] {
		t.Errorf("%s: acknowledged %v, and the value of a job is %q, %v", where, acked, v, err)
	}
}
