package vfsx

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// counted is a file system that counts its open files.
type counted struct {
	vfs.FS
	open int
}

type countedFile struct {
	vfs.File
	fs *counted
}

func (c *counted) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	c.open++
	return &countedFile{f, c}, nil
}

func (c *counted) Create(name string, cat vfs.DiskWriteCategory) (vfs.File, error) {
	return c.wrap(c.FS.Create(name, cat))
}

func (c *counted) OpenDir(name string) (vfs.File, error) { return c.wrap(c.FS.OpenDir(name)) }

func (f *countedFile) Close() error {
	f.fs.open--
	return f.File.Close()
}

// Pebble's log does not close its file when the sync on close fails: the drive would stay busy.
func TestWhatAFaultLeftOpenIsClosed(t *testing.T) {
	under := &counted{FS: vfs.NewMem()}
	g := NewGuard(under, func(string, string, bool, error) {})
	o := NewOpened(g)
	whole, err := o.Create("whole", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := o.OpenDir("")
	if err != nil {
		t.Fatal(err)
	}
	f, err := o.Create("log", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	log := vfs.NewSyncingFile(f, vfs.SyncingFileOptions{})
	if _, err := log.Write([]byte("row")); err != nil {
		t.Fatal(err)
	}
	if err := whole.Close(); err != nil || under.open != 2 {
		t.Fatalf("after a close %d files are open, %v; want 2", under.open, err)
	}
	broken := errors.New("input/output error")
	g.Trip(broken)
	if err := log.Close(); !errors.Is(err, broken) || under.open != 2 {
		t.Fatalf("the close of a log that cannot be synced: %v, %d files open; want the fault, and 2", err, under.open)
	}
	if err := o.CloseLeft(); err != nil || under.open != 0 {
		t.Errorf("CloseLeft: %v, %d files open; want none", err, under.open)
	}
	if err := dir.Close(); err != nil || under.open != 0 {
		t.Errorf("a second close of a directory: %v, %d open; want nil, and none", err, under.open)
	}
}
