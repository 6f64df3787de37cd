package disk

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// heldFS counts the shard files that are open, and stops in the operation that at names until
// goOn is closed.
type heldFS struct {
	vfs.FS
	open    atomic.Int64
	at      atomic.Pointer[string]
	entered chan struct{} // one for each operation that stopped
	goOn    chan struct{}
}

func (h *heldFS) stop(op string) {
	if at := h.at.Load(); at != nil && *at == op {
		h.entered <- struct{}{}
		<-h.goOn
	}
}

func (h *heldFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if !strings.Contains(name, "/"+shardsDir+"/") {
		return h.FS.Create(name, c)
	}
	h.stop("create")
	f, err := h.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	h.open.Add(1)
	return &heldFile{f, h}, nil
}

type heldFile struct {
	vfs.File
	h *heldFS
}

func (f *heldFile) Write(p []byte) (int, error) { f.h.stop("write"); return f.File.Write(p) }
func (f *heldFile) SyncData() error             { f.h.stop("sync"); return f.File.SyncData() }
func (f *heldFile) Close() error                { f.h.open.Add(-1); return f.File.Close() }

// TestACloseLeavesNoShardFileOpen closes a drive while a writer is at work that nobody aborts: its
// file system could not be unmounted otherwise.
func TestACloseLeavesNoShardFileOpen(t *testing.T) {
	start := func(t *testing.T, at string) (*heldFS, *Drive, body) {
		h := &heldFS{FS: vfs.NewMem(), entered: make(chan struct{}, 1), goOn: make(chan struct{})}
		d := makeDrive(t, h, testOptions())
		h.at.Store(&at)
		return h, d, newBody(newRand(t), 5000, false)
	}
	check := func(t *testing.T, h *heldFS) {
		t.Helper()
		if n := h.open.Load(); n != 0 {
			t.Errorf("%d shard files are open", n)
		}
	}
	t.Run("while the file is made", func(t *testing.T) {
		h, d, b := start(t, "create")
		created, closed := make(chan error, 1), make(chan error, 1)
		go func() { _, err := d.CreateShard(bg, b.spec()); created <- err }()
		<-h.entered
		w := d.writer(shardChunk{b.data.ID, 0})
		go func() { closed <- d.Close(bg) }()
		waitFor(t, func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.left })
		close(h.goOn)
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
		wantKind(t, <-created, errs.Drive)
		check(t, h)
	})
	t.Run("while it is written", func(t *testing.T) {
		h, d, b := start(t, "write")
		w, err := d.CreateShard(bg, b.spec())
		if err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() { wrote <- w.Write(bg, make([]byte, erasure.Align)) }()
		<-h.entered
		mustClose(t, d)
		close(h.goOn)
		if err := <-wrote; err != nil {
			t.Errorf("write: %v", err)
		}
		check(t, h)
		wantKind(t, w.Write(bg, make([]byte, erasure.Align)), errs.Drive)
	})
	t.Run("after it was written", func(t *testing.T) {
		h, d, b := start(t, "")
		if _, err := b.stream(d); err != nil {
			t.Fatal(err)
		}
		mustClose(t, d)
		check(t, h)
	})
}
