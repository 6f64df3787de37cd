package vfsx

import (
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// isLog reports whether the file base, a name without its directory, is one of those of Pebble of which no
// change may be seen to fail: a write-ahead log, a MANIFEST, a blob file, or one that is written while Pebble
// opens. See guardLog.
func isLog(base string) bool {
	return strings.HasSuffix(base, ".log") || strings.HasSuffix(base, ".blob") || strings.HasSuffix(base, ".dbtmp") || strings.HasPrefix(base, "MANIFEST-") ||
		strings.HasPrefix(base, "OPTIONS-") || strings.HasPrefix(base, markerPrefix)
}

// guardLog is a file, such as a write-ahead log, that is being written. Its changes do not fail. The guard trips
// instead, and what follows goes nowhere:
//
//   - Where Pebble cannot make, write or close a log while it begins a new one, it panics between giving a lock up
//     and taking it again, and the lock's deferred release then ends the process, whoever recovers.
//   - Where it cannot write a MANIFEST it counts on the process to end: its tables are numbered for a version that
//     never comes, and a compaction that ends then looks beyond the old one, and ends the process.
//   - Where it cannot write a blob file it gives the file up twice, and ends the process. The table beside it fails.
//   - Where its opening fails, it takes the file cache away under the compactions and the table statistics that it has
//     begun, and they end the process. None begin before a log or a MANIFEST is made.
//
// The guard keeps the sum of a log and of a MANIFEST, see Sums.
type guardLog struct {
	f    vfs.File // nil: it could not be made
	g    *Guard
	name string
	sum  *summed // nil: none is kept
}

func (g *Guard) wrapLog(f vfs.File, name string, err error) vfs.File {
	g.begun.Store(true)
	if err != nil {
		g.Trip(err)
		f = nil
	}
	l := &guardLog{f: f, g: g, name: name}
	if f != nil {
		l.sum = g.sums.begin(g.fs.PathBase(name))
	}
	return l
}

// change is Guard.change in silence.
func (l *guardLog) change(op string, do func() error) {
	if l.f == nil || l.g.Tripped() != nil {
		return
	}
	if err := l.g.change(op, l.name, false, do); err != nil {
		l.g.Trip(err)
	}
}

// Write implements vfs.File.
func (l *guardLog) Write(p []byte) (int, error) {
	l.change("write", func() error {
		crc := l.sum.next(p)
		n, err := l.f.Write(p)
		if err == nil && n < len(p) {
			err = io.ErrShortWrite
		}
		if err == nil {
			l.sum.wrote(n, crc)
		}
		return err
	})
	return len(p), nil
}

// WriteAt implements vfs.File. Pebble only appends to a file that has a sum; one that is written elsewhere has none.
func (l *guardLog) WriteAt(p []byte, off int64) (int, error) {
	l.change("write", func() error {
		l.sum.forget()
		n, err := l.f.WriteAt(p, off)
		if err == nil && n < len(p) {
			err = io.ErrShortWrite
		}
		return err
	})
	return len(p), nil
}

// Sync implements vfs.File.
func (l *guardLog) Sync() error {
	l.change("sync", func() error { return l.synced(l.f.Sync) })
	return nil
}

// SyncData implements vfs.File.
func (l *guardLog) SyncData() error {
	l.change("sync", func() error { return l.synced(l.f.SyncData) })
	return nil
}

// synced syncs the file and writes the sum of what that covers.
func (l *guardLog) synced(sync func() error) error {
	length, crc := l.sum.written()
	if err := sync(); err != nil {
		return err
	}
	l.sum.durable(length, crc)
	return nil
}

// SyncTo implements vfs.File. Its sum is not written: this is no promise that anything is durable.
func (l *guardLog) SyncTo(length int64) (full bool, err error) {
	l.change("sync", func() (err error) { full, err = l.f.SyncTo(length); return err })
	return full, nil
}

// Preallocate implements vfs.File. It is advice, as for other files.
func (l *guardLog) Preallocate(offset, length int64) error {
	if l.f != nil && l.g.Tripped() == nil {
		_ = l.f.Preallocate(offset, length)
	}
	return nil
}

// Close implements vfs.File. The file is closed even after the guard has tripped.
func (l *guardLog) Close() error {
	if l.f == nil {
		return nil
	}
	l.sum.end()
	if err := l.f.Close(); err != nil && l.g.Tripped() == nil {
		l.g.onFault("close", l.name, true, err)
		l.g.Trip(err)
	}
	return nil
}

// Stat implements vfs.File.
func (l *guardLog) Stat() (vfs.FileInfo, error) {
	if l.f != nil {
		if fi, err := l.f.Stat(); l.g.read("stat", l.name, err) == nil {
			return fi, nil
		}
	}
	return noLog{l.name}, nil
}

// Read implements vfs.File; a log is not read while it is written.
func (l *guardLog) Read([]byte) (int, error) { return 0, fs.ErrInvalid }

// ReadAt implements vfs.File, as Read.
func (l *guardLog) ReadAt([]byte, int64) (int, error) { return 0, fs.ErrInvalid }

// Prefetch implements vfs.File.
func (l *guardLog) Prefetch(int64, int64) error { return nil }

// Fd implements vfs.File.
func (l *guardLog) Fd() uintptr {
	if l.f == nil {
		return vfs.InvalidFd
	}
	return l.f.Fd()
}

// noLog describes a log that could not be made, or not be looked at.
type noLog struct{ name string }

func (n noLog) Name() string         { return n.name }
func (noLog) Size() int64            { return 0 }
func (noLog) Mode() fs.FileMode      { return 0o600 }
func (noLog) ModTime() time.Time     { return time.Time{} }
func (noLog) IsDir() bool            { return false }
func (noLog) Sys() any               { return nil }
func (noLog) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

var _ vfs.File = (*guardLog)(nil)
