package vfsx

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// probeDirect reports whether a file called name can be made, written and read with O_DIRECT.
func probeDirect(name string) bool {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC|unix.O_DIRECT, 0o666)
	if err != nil {
		return false
	}
	defer os.Remove(name)
	defer f.Close()
	buf := bouncePool.Get().(*[]byte)
	defer bouncePool.Put(buf)
	n, err := pwrite(int(f.Fd()), (*buf)[:Align], 0)
	if err != nil || n != Align {
		return false
	}
	n, err = pread(int(f.Fd()), (*buf)[:Align], 0)
	return err == nil && n == Align
}

func createDirect(name string, size int64) (Writer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC|unix.O_DIRECT, 0o666)
	if err != nil {
		return nil, err
	}
	w := &directWriter{file: f, fd: int(f.Fd())}
	if size > 0 {
		err := ignoringEINTR(func() error { return unix.Fallocate(w.fd, unix.FALLOC_FL_KEEP_SIZE, 0, size) })
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return nil, errors.Join(&fs.PathError{Op: "fallocate", Path: name, Err: err}, f.Close(), os.Remove(name))
		}
	}
	return w, nil
}

// directWriter writes whole pages past the page cache. stage holds what does not fill a page yet,
// or came in unaligned memory; off is where it belongs.
type directWriter struct {
	file   *os.File
	fd     int
	off    int64
	stage  *[]byte
	staged int
	err    error
}

func (w *directWriter) Size() int64 { return w.off + int64(w.staged) }

func (w *directWriter) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	total := len(p)
	for len(p) > 0 {
		if whole := len(p) &^ (Align - 1); w.staged == 0 && whole > 0 && isAligned(p) {
			if w.err = w.writeAll(p[:whole]); w.err != nil {
				return total - len(p), w.err
			}
			p = p[whole:]
			continue
		}
		if w.stage == nil {
			w.stage = bouncePool.Get().(*[]byte)
		}
		n := copy((*w.stage)[w.staged:], p)
		w.staged += n
		p = p[n:]
		if w.staged == len(*w.stage) {
			if w.err = w.writeAll(*w.stage); w.err != nil {
				return total - len(p), w.err
			}
			w.staged = 0
		}
	}
	return total, nil
}

// writeAll writes whole pages at off and moves it.
func (w *directWriter) writeAll(p []byte) error {
	for len(p) > 0 {
		n, err := pwrite(w.fd, p, w.off)
		if err != nil {
			return &fs.PathError{Op: "write", Path: w.file.Name(), Err: err}
		}
		if n <= 0 || n%Align != 0 {
			return &fs.PathError{Op: "write", Path: w.file.Name(), Err: io.ErrShortWrite}
		}
		w.off += int64(n)
		p = p[n:]
	}
	return nil
}

func (w *directWriter) SyncData() error {
	if w.err != nil {
		return w.err
	}
	if w.staged > 0 {
		size := w.Size()
		end := (w.staged + Align - 1) &^ (Align - 1)
		clear((*w.stage)[w.staged:end])
		if w.err = w.writeAll((*w.stage)[:end]); w.err != nil {
			return w.err
		}
		w.off, w.staged = size, 0
		if w.err = ignoringEINTR(func() error { return unix.Ftruncate(w.fd, size) }); w.err != nil {
			return w.err
		}
	}
	// fdatasync also makes a changed length durable. It is never repeated after a failure.
	w.err = ignoringEINTR(func() error { return unix.Fdatasync(w.fd) })
	return w.err
}

func (w *directWriter) Close() error {
	if w.stage != nil {
		bouncePool.Put(w.stage)
		w.stage = nil
	}
	if w.err == nil {
		w.err = fs.ErrClosed
	}
	return w.file.Close()
}

func openDirect(name string) (Reader, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &directReader{file: f, size: fi.Size()}, nil
}

type directReader struct {
	file *os.File
	size int64
}

func (r *directReader) Size() int64  { return r.size }
func (r *directReader) Close() error { return r.file.Close() }

func (r *directReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: r.file.Name(), Err: fs.ErrInvalid}
	}
	if off >= r.size {
		return 0, io.EOF
	}
	want := p
	if rest := r.size - off; int64(len(want)) > rest {
		want = want[:rest]
	}
	rc, err := r.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	done := 0
	// The connection holds the descriptor open while the reads run, whoever closes the file.
	if cerr := rc.Control(func(fd uintptr) { done, err = r.readPages(int(fd), p, want, off) }); cerr != nil {
		return 0, cerr
	}
	if err == nil && done < len(p) {
		err = io.EOF
	}
	return done, err
}

// readPages fills want from off. p is want with whatever room the caller has behind it.
func (r *directReader) readPages(fd int, p, want []byte, off int64) (int, error) {
	done := 0
	var bounce *[]byte
	defer func() {
		if bounce != nil {
			bouncePool.Put(bounce)
		}
	}()
	for done < len(want) {
		at := off + int64(done)
		rest := want[done:]
		// The last page may be read straight into the caller's memory where it has room for it.
		whole := min(len(p)-done, (len(rest)+Align-1)&^(Align-1)) &^ (Align - 1)
		if at%Align == 0 && whole > 0 && isAligned(rest) {
			n, err := pread(fd, p[done:done+whole], at)
			if err != nil {
				return done, &fs.PathError{Op: "read", Path: r.file.Name(), Err: err}
			}
			n = min(n, len(rest))
			if n <= 0 || n < len(rest) && n%Align != 0 {
				return done, io.ErrUnexpectedEOF // shorter than it was at Open
			}
			done += n
			continue
		}
		if bounce == nil {
			bounce = bouncePool.Get().(*[]byte)
		}
		skip := int(at % Align)
		n, err := pread(fd, (*bounce)[:min(len(*bounce), (skip+len(rest)+Align-1)&^(Align-1))], at-int64(skip))
		if err != nil {
			return done, &fs.PathError{Op: "read", Path: r.file.Name(), Err: err}
		}
		if n <= skip {
			return done, io.ErrUnexpectedEOF
		}
		done += copy(rest, (*bounce)[skip:n])
	}
	return done, nil
}

func pwrite(fd int, p []byte, off int64) (n int, err error) {
	err = ignoringEINTR(func() error { n, err = unix.Pwrite(fd, p, off); return err })
	return n, err
}

func pread(fd int, p []byte, off int64) (n int, err error) {
	err = ignoringEINTR(func() error { n, err = unix.Pread(fd, p, off); return err })
	return n, err
}

func ignoringEINTR(do func() error) error {
	for {
		if err := do(); err != unix.EINTR {
			return err
		}
	}
}
