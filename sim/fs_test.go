package sim

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/vfsx"
)

// medium is what a drive's slot holds for a while: a file system in memory. It dies with a power
// cut or when the drive is pulled; a crash clone of it may take its place.
type medium struct {
	fs   *vfs.MemFS
	dead atomic.Bool
}

// simDrive is the slot of one drive and the faults that are injected there.
type simDrive struct {
	dir string
	// num is the drive that belongs here. A retired slot has none any more, or none yet. Both are the main
	// goroutine's.
	num     uint16
	retired bool

	gone atomic.Bool // the directory is not there
	low  atomic.Bool // free space is below the watermark
	full atomic.Bool // ENOSPC

	// mu guards the fields below.
	mu        sync.Mutex
	rng       *rand.Rand
	cur       *medium
	after     *vfs.MemFS // what is left on the platter since a sync failed; nil: no sync failed
	readEIO   float64    // probability that a read of a shard file fails
	writeEIO  bool       // the next change fails
	shortOnce bool       // the next write writes half
	syncEIO   bool       // the next sync fails, and those after it pretend to succeed
}

// clone returns what a power cut leaves of the medium: what was synced, and some of the rest.
func (d *simDrive) clone() *vfs.MemFS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cloneLocked()
}

func (d *simDrive) cloneLocked() *vfs.MemFS {
	if d.after != nil {
		return d.after
	}
	rng := rand.New(rand.NewPCG(d.rng.Uint64(), 1))
	return d.cur.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 10 + d.rng.IntN(81), RNG: rng})
}

// replug puts fs in the slot. What is open on the earlier medium answers with errors.
func (d *simDrive) replug(fs *vfs.MemFS) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cur.dead.Store(true)
	d.cur, d.after = &medium{fs: fs}, nil
	d.readEIO, d.writeEIO, d.shortOnce, d.syncEIO = 0, false, false, false
}

// medium returns the file system that a path operation meets.
func (d *simDrive) medium(op, name string) (*medium, error) {
	if d.gone.Load() {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cur.dead.Load() {
		return nil, &fs.PathError{Op: op, Path: name, Err: syscall.EIO}
	}
	return d.cur, nil
}

func eio(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// change is asked before every change of a file or directory.
func (d *simDrive) change(op, name string) error {
	if d.full.Load() && (op == "write" || op == "create" || op == "mkdir") {
		return eio(op, name, syscall.ENOSPC)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writeEIO {
		d.writeEIO = false
		return eio(op, name, syscall.EIO)
	}
	return nil
}

// sync is asked before every sync. The pages that a failed sync did not write are gone, although
// the file system has them marked as clean.
func (d *simDrive) sync(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.syncEIO {
		d.syncEIO = false
		d.after = d.cloneLocked()
		return eio("sync", name, syscall.EIO)
	}
	return nil
}

func (d *simDrive) read(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.readEIO > 0 && isShard(name) && d.rng.Float64() < d.readEIO {
		return eio("read", name, syscall.EIO)
	}
	return nil
}

func isShard(name string) bool { return strings.Contains(name, "/shards/") }

// simFS is the file system of the process: each drive below a directory of its own.
type simFS struct {
	mu     sync.RWMutex // guards drives
	drives map[string]*simDrive
}

func (f *simFS) add(d *simDrive) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drives[d.dir] = d
}

func newFS(n int, rng *rand.Rand) (*simFS, []*simDrive) {
	f := &simFS{drives: map[string]*simDrive{}}
	var list []*simDrive
	for i := range n {
		d := &simDrive{num: uint16(i + 1), dir: fmt.Sprintf("/d%d", i+1), rng: rand.New(rand.NewPCG(rng.Uint64(), 2)), cur: &medium{fs: newDisk(fmt.Sprintf("/d%d", i+1))}}
		f.add(d)
		list = append(list, d)
	}
	return f, list
}

// newDisk is an empty disk that is mounted at dir.
func newDisk(dir string) *vfs.MemFS {
	m := vfs.NewCrashableMem()
	if err := m.MkdirAll(dir, 0o755); err != nil {
		panic(err)
	}
	if err := vfsx.SyncDir(m, "/"); err != nil {
		panic(err)
	}
	return m
}

func (f *simFS) at(op, name string) (*simDrive, *medium, error) {
	first, _, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	f.mu.RLock()
	d := f.drives["/"+first]
	f.mu.RUnlock()
	if d == nil {
		return nil, nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	m, err := d.medium(op, name)
	return d, m, err
}

func (f *simFS) open(op, name string, change bool, do func(*vfs.MemFS) (vfs.File, error)) (vfs.File, error) {
	d, m, err := f.at(op, name)
	if err != nil {
		return nil, err
	}
	if change {
		err = d.change(op, name)
	} else {
		err = d.read(name)
	}
	if err != nil {
		return nil, err
	}
	file, err := do(m.fs)
	if err != nil {
		return nil, err
	}
	return &simFile{File: file, d: d, m: m, name: name}, nil
}

func (f *simFS) change(op, name string, do func(*vfs.MemFS) error) error {
	d, m, err := f.at(op, name)
	if err != nil {
		return err
	}
	if err := d.change(op, name); err != nil {
		return err
	}
	return do(m.fs)
}

func (f *simFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open("create", name, true, func(m *vfs.MemFS) (vfs.File, error) { return m.Create(name, c) })
}

func (f *simFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.open("open", name, false, func(m *vfs.MemFS) (vfs.File, error) { return m.Open(name, opts...) })
}

func (f *simFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.open("open", name, true, func(m *vfs.MemFS) (vfs.File, error) { return m.OpenReadWrite(name, c, opts...) })
}

func (f *simFS) OpenDir(name string) (vfs.File, error) {
	return f.open("open", name, false, func(m *vfs.MemFS) (vfs.File, error) { return m.OpenDir(name) })
}

func (f *simFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open("create", to, true, func(m *vfs.MemFS) (vfs.File, error) { return m.ReuseForWrite(from, to, c) })
}

func (f *simFS) Link(from, to string) error {
	return f.change("link", to, func(m *vfs.MemFS) error { return m.Link(from, to) })
}

func (f *simFS) Remove(name string) error {
	return f.change("remove", name, func(m *vfs.MemFS) error { return m.Remove(name) })
}

func (f *simFS) RemoveAll(name string) error {
	return f.change("remove", name, func(m *vfs.MemFS) error { return m.RemoveAll(name) })
}

func (f *simFS) Rename(from, to string) error {
	return f.change("rename", to, func(m *vfs.MemFS) error { return m.Rename(from, to) })
}

func (f *simFS) MkdirAll(name string, perm os.FileMode) error {
	return f.change("mkdir", name, func(m *vfs.MemFS) error { return m.MkdirAll(name, perm) })
}

func (f *simFS) Lock(name string) (io.Closer, error) {
	_, m, err := f.at("lock", name)
	if err != nil {
		return nil, err
	}
	return m.fs.Lock(name)
}

func (f *simFS) List(name string) ([]string, error) {
	_, m, err := f.at("list", name)
	if err != nil {
		return nil, err
	}
	list, err := m.fs.List(name)
	slices.Sort(list)
	return list, err
}

func (f *simFS) Stat(name string) (vfs.FileInfo, error) {
	_, m, err := f.at("stat", name)
	if err != nil {
		return nil, err
	}
	return m.fs.Stat(name)
}

func (f *simFS) PathBase(p string) string       { return path.Base(p) }
func (f *simFS) PathJoin(elem ...string) string { return path.Join(elem...) }
func (f *simFS) PathDir(p string) string        { return path.Dir(p) }
func (f *simFS) Unwrap() vfs.FS                 { return nil }

// GetDiskUsage answers for a disk of 1 TiB.
func (f *simFS) GetDiskUsage(name string) (vfs.DiskUsage, error) {
	d, _, err := f.at("statfs", name)
	if err != nil {
		return vfs.DiskUsage{}, err
	}
	avail := uint64(1 << 39)
	switch {
	case d.full.Load():
		avail = 0
	case d.low.Load():
		avail = 1 << 20
	}
	return vfs.DiskUsage{AvailBytes: avail, TotalBytes: 1 << 40, UsedBytes: 1<<40 - avail}, nil
}

// simFile is an open file or directory.
type simFile struct {
	vfs.File
	d    *simDrive
	m    *medium
	name string
}

func (f *simFile) alive(op string) error {
	if f.m.dead.Load() || f.d.gone.Load() {
		return eio(op, f.name, syscall.EIO)
	}
	return nil
}

func (f *simFile) reading() error {
	if err := f.alive("read"); err != nil {
		return err
	}
	return f.d.read(f.name)
}

func (f *simFile) Read(p []byte) (int, error) {
	if err := f.reading(); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.reading(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// writing returns how many of n bytes are to be written, and the error after them.
func (f *simFile) writing(n int) (int, error) {
	if err := f.alive("write"); err != nil {
		return 0, err
	}
	if err := f.d.change("write", f.name); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.shortOnce && n > 1 {
		f.d.shortOnce = false
		return n / 2, io.ErrShortWrite
	}
	return n, nil
}

func (f *simFile) Write(p []byte) (int, error) {
	n, err := f.writing(len(p))
	if n > 0 {
		m, werr := f.File.Write(p[:n])
		if werr != nil {
			return m, werr
		}
	}
	return n, err
}

func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.writing(len(p))
	if n > 0 {
		m, werr := f.File.WriteAt(p[:n], off)
		if werr != nil {
			return m, werr
		}
	}
	return n, err
}

func (f *simFile) syncing() error {
	if err := f.alive("sync"); err != nil {
		return err
	}
	return f.d.sync(f.name)
}

func (f *simFile) Sync() error {
	if err := f.syncing(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *simFile) SyncData() error {
	if err := f.syncing(); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *simFile) SyncTo(n int64) (bool, error) {
	if err := f.syncing(); err != nil {
		return false, err
	}
	return f.File.SyncTo(n)
}

func (f *simFile) Stat() (vfs.FileInfo, error) {
	if err := f.alive("stat"); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

var _ vfs.FS = (*simFS)(nil)
