// Package vfsx adds to Pebble's file-system seam (vfs.FS) what the drive needs and the seam lacks:
// direct I/O for shard files, a guard that fences a file system off after its first failed write,
// and small helpers for synced files and directories.
//
// The package never decides what a failure means for a drive, and it holds no state beyond the
// files it opened.
//
// Invariants:
//   - A [Guard] that has tripped lets no further change through, so a store that goes on in the
//     background after a failed sync cannot turn a loss into an apparent success.
//   - A [File] opened with direct I/O accepts any offset, length and buffer: what is not aligned
//     goes through a bounce buffer.
package vfsx

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// WriteCategory labels the files of this project in Pebble's write statistics.
const WriteCategory = vfs.WriteCategoryUnspecified

// SyncDir makes the entries of directory dir durable.
func SyncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// ReplaceFile puts data in the file name, durably and all or nothing: a temporary file beside it
// is synced, renamed over it, and the directory is synced.
func ReplaceFile(fsys vfs.FS, name string, data []byte) error {
	tmp := name + TempSuffix
	f, err := fsys.Create(tmp, WriteCategory)
	if err != nil {
		return err
	}
	n, err := f.Write(slices.Clone(data)) // a vfs.File may change what it is given
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return SyncDir(fsys, fsys.PathDir(name))
}

// TempSuffix ends the names of the temporary files of ReplaceFile.
const TempSuffix = ".tmp"

// ReadFile returns the content of a file of at most limit bytes.
func ReadFile(fsys vfs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, errors.New("file is larger than it can be")
	}
	return b, nil
}

// IsNotExist reports whether err says that a file or directory does not exist.
func IsNotExist(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// Inode names a file of the operating system independently of its path.
type Inode struct {
	Dev, Ino uint64
}

// InodeOf returns the inode behind fi; ok is false on file systems without inodes (in memory).
func InodeOf(fi vfs.FileInfo) (Inode, bool) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return Inode{Dev: uint64(st.Dev), Ino: st.Ino}, true
	}
	return Inode{}, false
}
