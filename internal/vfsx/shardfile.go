package vfsx

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Align is the alignment of memory, offset and length that direct I/O asks for here. It covers
// every block size up to 4 KiB.
const Align = 4096

// Writer is a new file that is written once, front to back, by one goroutine.
type Writer interface {
	// Write appends p. It may be given any length; whole pages in aligned memory are not copied.
	Write(p []byte) (int, error)
	// SyncData writes out what is buffered and makes data and length durable. No Write follows.
	SyncData() error
	// Size returns the bytes appended.
	Size() int64
	// Close releases the file; a Writer that was not synced leaves an undefined tail.
	Close() error
}

// Reader is an open file. It stays readable after its name was removed. ReadAt may be called
// concurrently.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Files creates and opens files in bulk, past the page cache where the file system can.
type Files struct {
	fs     vfs.FS
	direct bool
}

// NewFiles returns the files of fsys. With direct set and fsys being the operating system's, a
// probe file in dir tells whether direct I/O works there; if not, files are buffered.
func NewFiles(fsys vfs.FS, dir string, direct bool) Files {
	return Files{fs: fsys, direct: direct && fsys == vfs.Default && probeDirect(fsys.PathJoin(dir, "probe"+TempSuffix))}
}

// Direct reports whether files bypass the page cache.
func (f Files) Direct() bool { return f.direct }

// Create makes a new file, which must not exist, and reserves size bytes for it if the file system
// can. Callers keep two creations of one name apart themselves where the file system is not the
// operating system's.
func (f Files) Create(name string, size int64) (Writer, error) {
	if f.direct {
		return createDirect(name, size)
	}
	if _, err := f.fs.Stat(name); err == nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	} else if !IsNotExist(err) {
		return nil, err
	}
	file, err := f.fs.Create(name, WriteCategory)
	if err != nil {
		return nil, err
	}
	if size > 0 {
		if err := file.Preallocate(0, size); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return nil, errors.Join(err, file.Close(), f.fs.Remove(name))
		}
	}
	return &bufferedWriter{file: file, clone: f.fs != vfs.Default}, nil
}

// Open opens a file for reading.
func (f Files) Open(name string) (Reader, error) {
	if f.direct {
		return openDirect(name)
	}
	file, err := f.fs.Open(name, vfs.RandomReadsOption)
	if err != nil {
		return nil, err
	}
	fi, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &bufferedReader{File: file, size: fi.Size()}, nil
}

type bufferedWriter struct {
	file  vfs.File
	clone bool // the file may change what it is given; that of the operating system does not
	size  int64
}

func (w *bufferedWriter) Write(p []byte) (int, error) {
	if w.clone {
		p = slices.Clone(p)
	}
	n, err := w.file.Write(p)
	w.size += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

func (w *bufferedWriter) SyncData() error { return w.file.SyncData() }
func (w *bufferedWriter) Size() int64     { return w.size }
func (w *bufferedWriter) Close() error    { return w.file.Close() }

type bufferedReader struct {
	vfs.File
	size int64
}

func (r *bufferedReader) Size() int64 { return r.size }

// bounceSize is the size of the buffers through which unaligned ranges go.
const bounceSize = 256 << 10

var bouncePool = sync.Pool{New: func() any { return alignedBuffer(bounceSize) }}

// alignedBuffer returns n bytes whose address is a multiple of Align.
func alignedBuffer(n int) *[]byte {
	b := make([]byte, n+Align)
	skip := 0
	if r := int(uintptr(unsafe.Pointer(&b[0])) % Align); r != 0 {
		skip = Align - r
	}
	b = b[skip : skip+n : skip+n]
	return &b
}

func isAligned(p []byte) bool {
	return len(p) > 0 && uintptr(unsafe.Pointer(&p[0]))%Align == 0
}
