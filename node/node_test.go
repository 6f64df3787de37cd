package node_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/node/nodetest"
)

var bg = context.Background()

func diskOptions() disk.Options { return disk.Options{MemTableSize: 256 << 10, SweepEvery: -1} }

func member(uint16, uint32) (uint64, bool) { return 1, true }

// oneDrive opens a set of one new drive.
func oneDrive(t *testing.T, fs vfs.FS, path string) *disk.Drive {
	s := openSet(t, fs, []string{path}, nil)
	s.SetEpoch(member)
	return s.Open()[0]
}

func openSet(t *testing.T, fs vfs.FS, paths []string, change func(*node.Options)) *node.Set {
	t.Helper()
	o := node.Options{FS: fs, Disk: diskOptions(), WatchEvery: -1}
	if change != nil {
		change(&o)
	}
	s, err := node.OpenSet(bg, paths, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(bg); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func memPaths(t *testing.T, fs *vfs.MemFS, n int) []string {
	t.Helper()
	var paths []string
	for i := range n {
		p := fmt.Sprintf("d%d", i+1)
		if err := fs.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	root, err := fs.OpenDir("")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.Sync(); err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestConformance(t *testing.T) {
	inMemory := func(t *testing.T) node.Drive {
		fs := vfs.NewMem()
		return oneDrive(t, fs, memPaths(t, fs, 1)[0])
	}
	t.Run("in memory", func(t *testing.T) { nodetest.Run(t, inMemory) })
	t.Run("behind the codec", func(t *testing.T) {
		nodetest.Run(t, func(t *testing.T) node.Drive { return node.Codec(inMemory(t)) })
	})
	t.Run("on disk", func(t *testing.T) {
		nodetest.Run(t, func(t *testing.T) node.Drive { return oneDrive(t, vfs.Default, t.TempDir()) })
	})
}

func TestFormingAndOpeningAgain(t *testing.T) {
	fs := vfs.NewMem()
	paths := memPaths(t, fs, 4)
	s := openSet(t, fs, paths, nil)
	if !s.Forming() || len(s.Founders()) != 4 || len(s.Open()) != 4 {
		t.Fatalf("forming %v, founders %v", s.Forming(), s.Founders())
	}
	if err := s.MarkFormed(bg); err != nil {
		t.Fatal(err)
	}
	cluster := s.Cluster()
	if err := s.Close(bg); err != nil {
		t.Fatal(err)
	}
	// In another order, and one missing.
	if err := fs.Rename("d2", "away"); err != nil {
		t.Fatal(err)
	}
	s = openSet(t, fs, []string{"d4", "d3", "d2", "d1"}, nil)
	if s.Forming() || s.Cluster() != cluster || len(s.Open()) != 3 {
		t.Fatalf("forming %v, cluster %v, open %d", s.Forming(), s.Cluster(), len(s.Open()))
	}
	for num, want := range map[uint16]bool{1: true, 2: false, 3: true, 4: true, 5: false} {
		if _, ok := s.Replica(num); ok != want {
			t.Errorf("drive %d: open %v, want %v", num, ok, want)
		}
	}
	st := s.Status()[2]
	if st.Open || disk.StatusOf(st.Err) != disk.Missing || !strings.Contains(st.Err.Error(), "d2") {
		t.Errorf("status of the missing drive: %+v", st)
	}
}

func TestFormingIsCompletedAfterACrashAnywhere(t *testing.T) {
	for i := 0; ; i += 12 { // every twelfth is enough for the time that a test has
		fs := vfs.NewCrashableMem()
		paths := memPaths(t, fs, 3)
		var n atomic.Int64
		var hit atomic.Bool
		faulty := wrapFaults(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpRename:
				if n.Add(1) > int64(i) {
					hit.Store(true)
					return syscall.EIO // and so on: the process is as good as dead
				}
			}
			return nil
		}))
		s, err := node.OpenSet(bg, paths, node.Options{FS: faulty, Disk: diskOptions(), WatchEvery: -1})
		if err == nil {
			_ = s.MarkFormed(bg)
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		if s != nil {
			_ = s.Close(bg)
		}
		s2 := openSet(t, after, paths, nil)
		if len(s2.Open()) != 3 || len(s2.Founders()) != 3 {
			t.Fatalf("change %d: %d drives open: %+v", i, len(s2.Open()), s2.Status())
		}
		seen := map[uint16]bool{}
		for _, d := range s2.Open() {
			if d.Identity().Cluster != s2.Cluster() || seen[d.Num()] {
				t.Fatalf("change %d: %+v", i, d.Identity())
			}
			seen[d.Num()] = true
		}
		if err := s2.MarkFormed(bg); err != nil {
			t.Fatal(err)
		}
		if !hit.Load() {
			t.Logf("%d changes were failed", i)
			return
		}
	}
}

func TestRefusals(t *testing.T) {
	fs := vfs.NewMem()
	paths := memPaths(t, fs, 4)
	for _, p := range [][]string{paths[:2], paths[2:3]} {
		s := openSet(t, fs, p, nil)
		if err := s.MarkFormed(bg); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(bg); err != nil {
			t.Fatal(err)
		}
	}
	open := func(o node.Options, paths ...string) error {
		o.FS, o.Disk, o.WatchEvery = fs, diskOptions(), -1
		s, err := node.OpenSet(bg, paths, o)
		if err == nil {
			err = s.Close(bg)
			if err == nil {
				return nil
			}
		}
		return err
	}
	for _, c := range []struct {
		name  string
		o     node.Options
		paths []string
		kind  errs.Kind
		says  string
	}{
		{"no path", node.Options{}, nil, errs.Invalid, "no drive"},
		{"a path twice", node.Options{}, []string{"d1", "d1"}, errs.Invalid, "twice"},
		{"two clusters", node.Options{}, []string{"d1", "d3"}, errs.Invalid, "two clusters"},
		{"another cluster", node.Options{Cluster: disk.ID{1}}, []string{"d1"}, errs.Invalid, "belongs to cluster"},
		{"only missing", node.Options{}, []string{"nowhere"}, errs.Drive, "does not exist"},
		{"forming with one missing", node.Options{}, []string{"d4", "nowhere"}, errs.Drive, "all there and empty"},
		{"forming when not allowed", node.Options{NoForm: true}, []string{"d4"}, errs.Drive, "mounted"},
	} {
		err := open(c.o, c.paths...)
		if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	// An empty directory beside a formed cluster is left alone.
	s := openSet(t, fs, []string{"d1", "d2", "d4"}, nil)
	if st := s.Status()[2]; st.Open || disk.StatusOf(st.Err) != disk.Empty {
		t.Errorf("status: %+v", st)
	}
	if names, _ := fs.List("d4"); len(names) != 0 {
		t.Errorf("the empty directory now holds %v", names)
	}
}

// wrapFaults lets inj fail operations on fs. errorfs does not see what happens to a log that is used again,
// so logs are made anew, as a file system may.
func wrapFaults(fs vfs.FS, inj errorfs.Injector) vfs.FS { return newLogs{errorfs.Wrap(fs, inj)} }

type newLogs struct{ vfs.FS }

func (n newLogs) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := n.Remove(oldname); err != nil {
		return nil, err
	}
	return n.Create(newname, c)
}

// events records what a set reports.
type events struct {
	mu   sync.Mutex // guards list
	list []string
}

func (e *events) add(s string) { e.mu.Lock(); e.list = append(e.list, s); e.mu.Unlock() }

func (e *events) options(o *node.Options) {
	o.OnLost = func(num uint16, err error) { e.add(fmt.Sprintf("lost %d", num)) }
	o.OnReturn = func(num uint16) { e.add(fmt.Sprintf("back %d", num)) }
}

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.list, ", ")
}

func TestADriveGoesAwayAndComesBack(t *testing.T) {
	root := t.TempDir()
	var paths []string
	for i := range 3 {
		paths = append(paths, filepath.Join(root, fmt.Sprintf("d%d", i+1)))
		if err := os.Mkdir(paths[i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var ev events
	s := openSet(t, vfs.Default, paths, ev.options)
	s.SetEpoch(member)
	if err := s.MarkFormed(bg); err != nil {
		t.Fatal(err)
	}
	s.Check()
	for round := range 2 {
		ev.list = nil
		gone := paths[2] + ".gone"
		if err := os.Rename(paths[2], gone); err != nil {
			t.Fatal(err)
		}
		if round == 1 { // another directory at its place is not the drive
			if err := os.Mkdir(paths[2], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		s.Check()
		if _, ok := s.Replica(3); ok || ev.String() != "lost 3" {
			t.Fatalf("round %d: still there; events: %v", round, &ev)
		}
		s.Check()
		if len(s.Open()) != 2 {
			t.Fatalf("round %d: %d open", round, len(s.Open()))
		}
		if round == 1 {
			if names, _ := os.ReadDir(paths[2]); len(names) != 0 {
				t.Fatalf("the other directory now holds %v", names)
			}
			if err := os.Remove(paths[2]); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(gone, paths[2]); err != nil {
			t.Fatal(err)
		}
		s.Check()
		if ev.String() != "lost 3, back 3" {
			t.Fatalf("round %d: events: %v; %+v", round, &ev, s.Status())
		}
		r, ok := s.Replica(3)
		if !ok {
			t.Fatalf("round %d: not in service", round)
		}
		if _, err := r.Read(bg, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1}, Address: metadata.Address{Kind: metadata.KindObject, Key: []byte("k")}}); err != nil {
			t.Fatalf("round %d: reading: %v", round, err)
		}
	}
}

func TestAQuarantinedDriveStaysOutUntilAnOperatorAsks(t *testing.T) {
	fs := vfs.NewMem()
	paths := memPaths(t, fs, 2)
	var on atomic.Bool
	faulty := wrapFaults(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if on.Load() && strings.HasPrefix(op.Path, "d2/") && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) {
			return syscall.EIO
		}
		return nil
	}))
	var ev events
	s := openSet(t, faulty, paths, ev.options)
	if err := s.MarkFormed(bg); err != nil {
		t.Fatal(err)
	}
	d, _ := s.Local(2)
	on.Store(true)
	var b metadata.Batch
	b.Set([]byte("c"), []byte("x"))
	if err := d.Control().Apply(&b, true); !errs.Is(err, errs.Drive) {
		t.Fatalf("a failed sync: %v", err)
	}
	if _, ok := s.Replica(2); ok {
		t.Error("a quarantined drive is still offered")
	}
	on.Store(false)
	for range 3 {
		s.Check()
	}
	if ev.String() != "lost 2" {
		t.Fatalf("events: %v", &ev)
	}
	if err := s.Reopen(bg, "d2"); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Replica(2); !ok || ev.String() != "lost 2, back 2" {
		t.Fatalf("after Reopen: events: %v", &ev)
	}
	if err := s.Reopen(bg, "d9"); !errs.Is(err, errs.NotFound) {
		t.Errorf("reopening nothing: %v", err)
	}
}

func TestTheWatcherNoticesWithinTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		paths := memPaths(t, fs, 2)
		var ev events
		o := node.Options{FS: fs, Disk: diskOptions()}
		ev.options(&o)
		s, err := node.OpenSet(bg, paths, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.MarkFormed(bg); err != nil {
			t.Fatal(err)
		}
		if err := fs.Rename("d1", "gone"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond) // of the bubble
		synctest.Wait()
		if ev.String() != "lost 1" {
			t.Errorf("events: %v", &ev)
		}
		if err := fs.Rename("gone", "d1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if ev.String() != "lost 1, back 1" {
			t.Errorf("events: %v", &ev)
		}
		if err := s.Close(bg); err != nil {
			t.Error(err)
		}
	})
}
