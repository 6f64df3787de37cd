package vfsx

import (
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Opened remembers the files that are open through it. Pebble does not close a log whose last sync fails;
// the drive could then not be unmounted, and whatever watches the file would go on for ever.
type Opened struct {
	vfs.FS

	// mu guards the field below.
	mu   sync.Mutex
	open map[*openedFile]struct{}
}

// NewOpened wraps fs. It has to be the outermost layer, so that closing what is left reaches all of them.
func NewOpened(fs vfs.FS) *Opened { return &Opened{FS: fs, open: map[*openedFile]struct{}{}} }

// CloseLeft closes the files that are open still. Call it when nobody uses them any more.
func (o *Opened) CloseLeft() error {
	o.mu.Lock()
	left := o.open
	o.open = map[*openedFile]struct{}{}
	o.mu.Unlock()
	var list []error
	for f := range left {
		list = append(list, f.File.Close())
	}
	return errors.Join(list...)
}

func (o *Opened) hold(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	h := &openedFile{f, o}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open[h] = struct{}{}
	return h, nil
}

// Create implements vfs.FS.
func (o *Opened) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return o.hold(o.FS.Create(name, c))
}

// Open implements vfs.FS.
func (o *Opened) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return o.hold(o.FS.Open(name, opts...))
}

// OpenReadWrite implements vfs.FS.
func (o *Opened) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return o.hold(o.FS.OpenReadWrite(name, c, opts...))
}

// OpenDir implements vfs.FS.
func (o *Opened) OpenDir(name string) (vfs.File, error) { return o.hold(o.FS.OpenDir(name)) }

// ReuseForWrite implements vfs.FS.
func (o *Opened) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return o.hold(o.FS.ReuseForWrite(oldname, newname, c))
}

// Unwrap implements vfs.FS.
func (o *Opened) Unwrap() vfs.FS { return o.FS }

type openedFile struct {
	vfs.File
	o *Opened
}

// Close closes the file, unless CloseLeft has done so.
func (f *openedFile) Close() error {
	f.o.mu.Lock()
	_, held := f.o.open[f]
	delete(f.o.open, f)
	f.o.mu.Unlock()
	if !held {
		return nil
	}
	return f.File.Close()
}

var _ vfs.FS = (*Opened)(nil)
