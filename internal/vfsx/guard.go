package vfsx

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// markerPrefix begins the names of Pebble's marker files, which say which file is current.
const markerPrefix = "marker."

// Guard wraps a file system for a store whose writes must not be trusted after one of them
// failed. It reports every failed change and every failed read, and once tripped it refuses every
// change with the error that tripped it; reads go on. Only the sync of a directory and every change of a
// log, a MANIFEST and the like (see guardLog), and a listing once one of those was made, fail in silence, by tripping
// the guard: who relies on them asks Tripped before believing anything. That is reported first as well: whoever waits
// for what now goes nowhere has to learn of it. Locks are not taken through it: whoever makes the guard holds the lock of the directory,
// and can release it although a store that can no longer be closed still uses the guard.
type Guard struct {
	fs      vfs.FS
	onFault func(op, path string, write bool, err error)
	tripped atomic.Pointer[error]
	begun   atomic.Bool // a log or the like was made
	sums    *Sums       // nil: none are kept
}

// refusePause is how long the refusal to make a file takes. Pebble tries a flush that failed again at once and
// for ever: until it is closed, it would keep a processor busy.
const refusePause = 50 * time.Millisecond

// NewGuard wraps fs. onFault is called for each failed operation, on the goroutine that met it,
// before the operation returns; it must not block.
func NewGuard(fs vfs.FS, onFault func(op, path string, write bool, err error)) *Guard {
	return &Guard{fs: fs, onFault: onFault}
}

// KeepSums keeps in s the sums of the logs and MANIFESTs that are written from now on. Call it before the guard is used.
func (g *Guard) KeepSums(s *Sums) { g.sums = s }

// Trip fences the file system off: every later change fails with err. The first call counts.
func (g *Guard) Trip(err error) { g.tripped.CompareAndSwap(nil, &err) }

// Tripped returns the error that tripped the guard, or nil.
func (g *Guard) Tripped() error {
	if p := g.tripped.Load(); p != nil {
		return *p
	}
	return nil
}

// change runs one change of the file system named name.
func (g *Guard) change(op, name string, absentIsFine bool, do func() error) error {
	if err := g.Tripped(); err != nil {
		return err
	}
	err := do()
	if err != nil && !(absentIsFine && IsNotExist(err)) {
		g.onFault(op, name, true, err)
	}
	return err
}

func (g *Guard) read(op, name string, err error) error {
	if err != nil && err != io.EOF && !IsNotExist(err) {
		g.onFault(op, name, false, err)
	}
	return err
}

func (g *Guard) wrap(f vfs.File, name string, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &guardFile{File: f, g: g, name: name}, nil
}

// Create implements vfs.FS.
func (g *Guard) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(g.fs.PathBase(name), markerPrefix) {
		// Pebble syncs what a marker names and the marker with one sync of their directory, and relies on
		// the file system to keep their order if the power fails before it. Not every one does.
		dir := g.fs.PathDir(name)
		births := g.sums.syncing(dir)
		if err := g.change("sync", dir, false, func() error { return SyncDir(g.fs, dir) }); err != nil {
			return g.wrapLog(nil, name, err), nil
		}
		g.sums.namesDurable(births)
	}
	if g.Tripped() != nil && !isLog(g.fs.PathBase(name)) {
		time.Sleep(refusePause)
	}
	var f vfs.File
	err := g.change("create", name, false, func() (err error) { f, err = g.fs.Create(name, c); return err })
	if isLog(g.fs.PathBase(name)) {
		return g.wrapLog(f, name, err), nil
	}
	return g.wrap(f, name, err)
}

// Link implements vfs.FS.
func (g *Guard) Link(oldname, newname string) error {
	return g.change("link", newname, false, func() error { return g.fs.Link(oldname, newname) })
}

// Open implements vfs.FS.
func (g *Guard) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := g.fs.Open(name, opts...)
	return g.wrap(f, name, g.read("open", name, err))
}

// OpenReadWrite implements vfs.FS.
func (g *Guard) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	var f vfs.File
	err := g.change("open", name, false, func() (err error) { f, err = g.fs.OpenReadWrite(name, c, opts...); return err })
	return g.wrap(f, name, err)
}

// OpenDir implements vfs.FS.
func (g *Guard) OpenDir(name string) (vfs.File, error) {
	f, err := g.fs.OpenDir(name)
	if err = g.read("open directory", name, err); err != nil {
		return nil, err
	}
	return &guardDir{File: f, g: g, name: name}, nil
}

// Remove implements vfs.FS.
func (g *Guard) Remove(name string) error {
	return g.change("remove", name, true, func() error { return g.fs.Remove(name) })
}

// RemoveAll implements vfs.FS.
func (g *Guard) RemoveAll(name string) error {
	return g.change("remove", name, true, func() error { return g.fs.RemoveAll(name) })
}

// Rename implements vfs.FS.
func (g *Guard) Rename(oldname, newname string) error {
	err := g.change("rename", oldname, false, func() error { return g.fs.Rename(oldname, newname) })
	if err != nil && isLog(g.fs.PathBase(newname)) {
		g.Trip(err)
		return nil
	}
	return err
}

// ReuseForWrite implements vfs.FS. A file that is not there while its directory is was lost: the error is then not
// one that IsNotExist knows, as it is where a whole drive went away.
func (g *Guard) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	var f vfs.File
	err := g.change("reuse", oldname, false, func() (err error) {
		f, err = g.fs.ReuseForWrite(oldname, newname, c)
		if IsNotExist(err) {
			if _, serr := g.fs.Stat(g.fs.PathDir(oldname)); serr == nil {
				return fmt.Errorf("the file is lost: %v", err)
			}
		}
		return err
	})
	if isLog(g.fs.PathBase(newname)) {
		return g.wrapLog(f, newname, err), nil
	}
	return g.wrap(f, newname, err)
}

// MkdirAll implements vfs.FS.
func (g *Guard) MkdirAll(dir string, perm os.FileMode) error {
	return g.change("mkdir", dir, false, func() error { return g.fs.MkdirAll(dir, perm) })
}

// Lock implements vfs.FS without a lock: see Guard.
func (g *Guard) Lock(string) (io.Closer, error) { return noLock{}, nil }

type noLock struct{}

func (noLock) Close() error { return nil }

// List implements vfs.FS. Pebble lists its directory once more at the end of its opening, to find what is
// obsolete. By then a listing that fails trips the guard, and nothing is listed: see guardLog.
func (g *Guard) List(dir string) ([]string, error) {
	if g.begun.Load() {
		var names []string
		if err := g.change("list", dir, false, func() (err error) { names, err = g.fs.List(dir); return err }); err != nil {
			g.Trip(err)
			return nil, nil
		}
		return names, nil
	}
	names, err := g.fs.List(dir)
	return names, g.read("list", dir, err)
}

// Stat implements vfs.FS.
func (g *Guard) Stat(name string) (vfs.FileInfo, error) {
	fi, err := g.fs.Stat(name)
	return fi, g.read("stat", name, err)
}

// PathBase implements vfs.FS.
func (g *Guard) PathBase(path string) string { return g.fs.PathBase(path) }

// PathJoin implements vfs.FS.
func (g *Guard) PathJoin(elem ...string) string { return g.fs.PathJoin(elem...) }

// PathDir implements vfs.FS.
func (g *Guard) PathDir(path string) string { return g.fs.PathDir(path) }

// GetDiskUsage implements vfs.FS.
func (g *Guard) GetDiskUsage(path string) (vfs.DiskUsage, error) { return g.fs.GetDiskUsage(path) }

// Unwrap implements vfs.FS.
func (g *Guard) Unwrap() vfs.FS { return g.fs }

type guardFile struct {
	vfs.File
	g    *Guard
	name string
}

func (f *guardFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	return n, f.g.read("read", f.name, err)
}

func (f *guardFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	return n, f.g.read("read", f.name, err)
}

func (f *guardFile) Write(p []byte) (n int, err error) {
	err = f.g.change("write", f.name, false, func() (err error) {
		n, err = f.File.Write(p)
		if err == nil && n < len(p) {
			err = io.ErrShortWrite
		}
		return err
	})
	return n, err
}

func (f *guardFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.g.change("write", f.name, false, func() (err error) {
		n, err = f.File.WriteAt(p, off)
		if err == nil && n < len(p) {
			err = io.ErrShortWrite
		}
		return err
	})
	return n, err
}

func (f *guardFile) Sync() error {
	return f.g.change("sync", f.name, false, f.File.Sync)
}

func (f *guardFile) SyncData() error {
	return f.g.change("sync", f.name, false, f.File.SyncData)
}

func (f *guardFile) SyncTo(length int64) (full bool, err error) {
	err = f.g.change("sync", f.name, false, func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, err
}

// guardDir is an open directory. Its syncs do not fail: Pebble panics, on goroutines of its own, when
// the sync of a directory does. The guard trips instead, so that nothing later can be believed.
type guardDir struct {
	vfs.File
	g    *Guard
	name string
}

func (d *guardDir) Sync() error {
	births := d.g.sums.syncing(d.name)
	if err := d.g.change("sync", d.name, false, d.File.Sync); err != nil {
		d.g.Trip(err)
		return nil
	}
	d.g.sums.namesDurable(births)
	return nil
}

func (d *guardDir) SyncData() error { return d.Sync() }

// Preallocate does not report its failure: it is advice, which some file systems do not take.
func (f *guardFile) Preallocate(offset, length int64) error {
	if err := f.g.Tripped(); err != nil {
		return err
	}
	return f.File.Preallocate(offset, length)
}

var _ vfs.FS = (*Guard)(nil)
