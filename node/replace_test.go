package node_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// spare is a cluster of three formed drives with an empty directory beside them, "d4".
func spare(t *testing.T, mem *vfs.MemFS, wrap func(vfs.FS) vfs.FS, change func(*node.Options)) *node.Set {
	t.Helper()
	paths := memPaths(t, mem, 4)
	s := openSet(t, mem, paths[:3], nil)
	if err := errors.Join(s.MarkFormed(bg), s.Close(bg)); err != nil {
		t.Fatal(err)
	}
	return openSet(t, wrap(mem), paths, change)
}

func plain(fs vfs.FS) vfs.FS { return fs }

var newcomer = disk.Identity{Drive: disk.ID{42}, Num: 4}

func states(s *node.Set) string {
	var out []string
	for _, p := range s.Status() {
		out = append(out, fmt.Sprintf("%s=%s", filepath.Base(p.Path), p.State))
	}
	return strings.Join(out, " ")
}

func read(d metadata.Replica) error {
	_, err := d.Read(bg, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1}, Address: metadata.Address{Kind: metadata.KindObject, Key: []byte("k")}})
	return err
}

func TestADriveIsReplacedByASpare(t *testing.T) {
	mem := vfs.NewMem()
	var ev events
	s := spare(t, mem, plain, ev.options)
	s.SetEpoch(member)
	if got := states(s); got != "d1=open d2=open d3=open d4=empty" {
		t.Fatalf("states: %s", got)
	}
	old, _ := s.Local(2)
	if err := s.Retire(bg, 2); err != nil {
		t.Fatal(err)
	}
	if err := read(old); !errs.Is(err, errs.Drive) {
		t.Errorf("the retired drive answers: %v", err)
	}
	if err := s.Adopt(bg, "d4", newcomer); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(bg, "d4", newcomer); err != nil {
		t.Fatalf("again: %v", err)
	}
	for range 2 {
		s.Check()
	}
	if got := states(s); got != "d1=open d2=replaced d3=open d4=open" || ev.String() != "lost 2, back 4" {
		t.Fatalf("states: %s, events: %v", got, &ev)
	}
	d, ok := s.Local(4)
	if !ok || d.Identity().Forming || d.Identity().Drive != newcomer.Drive || read(d) != nil {
		t.Fatalf("the newcomer: %v, %+v", ok, d.Identity())
	}
	if err := s.Reopen(bg, "d2"); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("the retired drive was opened again: %v", err)
	}
	if err := s.Retire(bg, 2); err != nil {
		t.Errorf("retired again: %v", err)
	}
	for _, c := range []struct {
		name string
		path string
		id   disk.Identity
		kind errs.Kind
		says string
	}{
		{"a path that is not here", "d9", newcomer, errs.NotFound, "none of"},
		{"no id", "d4", disk.Identity{Num: 5}, errs.Invalid, "needs"},
		{"a drive in service", "d1", newcomer, errs.Exists, "in service"},
		{"another id for the newcomer", "d4", disk.Identity{Drive: disk.ID{43}, Num: 4}, errs.Exists, "in service"},
		{"the number of a replaced drive", "d4", disk.Identity{Drive: disk.ID{43}, Num: 2}, errs.Invalid, "not used again"},
		{"the replaced drive's directory", "d2", disk.Identity{Drive: disk.ID{43}, Num: 5}, errs.Drive, "nothing is formatted over it"},
	} {
		if err := s.Adopt(bg, c.path, c.id); !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	if err := s.Close(bg); err != nil {
		t.Fatal(err)
	}

	// After a restart: the disk itself says that it was replaced, then the control plane does.
	s = openSet(t, mem, []string{"d1", "d2", "d3", "d4"}, nil)
	if got := states(s); got != "d1=open d2=retired d3=open d4=open" {
		t.Fatalf("after a restart: %s", got)
	}
	s.SetRetired(func(num uint16) bool { return num == 2 || num == 3 })
	s.Check()
	if got := states(s); got != "d1=open d2=replaced d3=replaced d4=open" {
		t.Fatalf("with the control plane: %s", got)
	}
	// Its disk is swapped in place.
	if err := mem.RemoveAll("d2"); err != nil {
		t.Fatal(err)
	}
	s.Check()
	if got := states(s); !strings.Contains(got, "d2=absent") {
		t.Fatalf("with the disk pulled: %s", got)
	}
	if err := mem.MkdirAll("d2", 0o755); err != nil {
		t.Fatal(err)
	}
	s.Check()
	if got := states(s); !strings.Contains(got, "d2=empty") {
		t.Fatalf("with a new disk: %s", got)
	}
	if err := s.Adopt(bg, "d2", disk.Identity{Drive: disk.ID{44}, Num: 5}); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Local(5); !ok || states(s) != "d1=open d2=open d3=replaced d4=open" {
		t.Fatalf("at last: %s", states(s))
	}
	if _, ok := s.Local(2); ok {
		t.Error("the new drive serves under the old number")
	}
}

// TestAnEmptyDirectoryOfALivingDriveIsNotAdopted: it may be the mount point of a disk that is away.
func TestAnEmptyDirectoryOfALivingDriveIsNotAdopted(t *testing.T) {
	mem := vfs.NewMem()
	s := spare(t, mem, plain, nil)
	if err := errors.Join(mem.Rename("d2", "away"), mem.MkdirAll("d2", 0o755)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.Check()
	}
	if err := s.Adopt(bg, "d2", newcomer); !errs.Is(err, errs.Conflict) {
		t.Fatalf("got %v", err)
	}
	if names, _ := mem.List("d2"); len(names) != 0 {
		t.Fatalf("the directory now holds %v", names)
	}
}

// TestAdoptIsCompletedAfterACrashAnywhere fails every change from the i-th on, cuts the power, and starts again.
func TestAdoptIsCompletedAfterACrashAnywhere(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := 0; ; i++ {
		mem := vfs.NewCrashableMem()
		var on, hit atomic.Bool
		var n atomic.Int64
		s := spare(t, mem, func(fs vfs.FS) vfs.FS {
			return wrapFaults(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if !on.Load() || op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose || !strings.HasPrefix(op.Path, "d4") {
					return nil
				}
				if n.Add(1) > int64(i) {
					hit.Store(true)
					return syscall.EIO
				}
				return nil
			}))
		}, nil)
		on.Store(true)
		err := s.Adopt(bg, "d4", newcomer)
		if err == nil && hit.Load() && s.Status()[3].State == node.PathOpen {
			d, _ := s.Local(4)
			if d != nil && d.Identity().Forming {
				t.Fatalf("change %d failed, and the drive is in service while it forms", i)
			}
		}
		after := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		if err := s.Close(bg); err != nil {
			t.Fatalf("change %d: close: %v", i, err)
		}
		s2 := openSet(t, after, []string{"d1", "d2", "d3", "d4"}, nil)
		s2.SetEpoch(member)
		if len(s2.Open()) < 3 || s2.Forming() {
			t.Fatalf("change %d: after the crash: %s", i, states(s2))
		}
		if err := s2.Adopt(bg, "d4", newcomer); err != nil {
			t.Fatalf("change %d: Adopt does not go on after the crash (%s): %v", i, states(s2), err)
		}
		d, ok := s2.Local(4)
		if !ok || d.Identity().Forming || d.Identity().Drive != newcomer.Drive || states(s2) != "d1=open d2=open d3=open d4=open" {
			t.Fatalf("change %d: %s", i, states(s2))
		}
		if err := read(d); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		if err := s2.Close(bg); err != nil {
			t.Fatal(err)
		}
		if !hit.Load() {
			if err != nil {
				t.Fatalf("without a fault: %v", err)
			}
			t.Logf("%d changes were failed", i)
			return
		}
		if testing.Short() {
			i += 15
		}
	}
}

func TestAFormingNewcomerAloneFormsNoCluster(t *testing.T) {
	mem := vfs.NewMem()
	s := spare(t, mem, plain, nil)
	id := newcomer
	id.Cluster, id.Founders = s.Cluster(), s.Founders()
	if err := errors.Join(s.Close(bg), disk.Format(mem, "d4", id)); err != nil {
		t.Fatal(err)
	}
	s = openSet(t, mem, []string{"d4"}, nil)
	if s.Forming() {
		t.Fatal("a drive that joins a cluster forms one")
	}
}

// hangFS lets syncs of files below a path wait for stop while hang is set, and says so.
type hangFS struct {
	vfs.FS
	below string
	hang  atomic.Bool
	hung  chan struct{} // capacity 1: something waits
	stop  chan struct{}
}

func (h *hangFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := h.FS.Create(name, c)
	if err != nil || !strings.HasPrefix(name, h.below) {
		return f, err
	}
	return &hangFile{f, h}, nil
}

func (h *hangFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := h.Remove(oldname); err != nil {
		return nil, err
	}
	return h.Create(newname, c)
}

type hangFile struct {
	vfs.File
	h *hangFS
}

func (f *hangFile) wait() {
	if f.h.hang.Load() {
		select {
		case f.h.hung <- struct{}{}:
		default:
		}
		<-f.h.stop
	}
}

func (f *hangFile) Sync() error     { f.wait(); return f.File.Sync() }
func (f *hangFile) SyncData() error { f.wait(); return f.File.SyncData() }

func TestRetireOfADriveThatHangsIsBoundedAndSaysSo(t *testing.T) {
	h := &hangFS{FS: vfs.NewMem(), below: "d2/", hung: make(chan struct{}, 1), stop: make(chan struct{})}
	var ev events
	s := spare(t, h.FS.(*vfs.MemFS), func(vfs.FS) vfs.FS { return h }, ev.options)
	s.SetEpoch(member)
	d, _ := s.Local(2)
	h.hang.Store(true)
	acked := make(chan error, 1)
	sent, cancel := context.WithCancel(bg)
	defer cancel()
	go func() { acked <- d.SetJob(sent, "test", []byte("x")) }()
	<-h.hung
	ctx, stop := context.WithTimeout(bg, 50*time.Millisecond)
	defer stop()
	if err := s.Retire(ctx, 2); !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "fenced off") {
		t.Fatalf("got %v", err)
	}
	if _, ok := s.Local(2); ok || states(s) != "d1=open d2=replaced d3=open d4=empty" {
		t.Errorf("states: %s", states(s))
	}
	if err := s.Retire(ctx, 2); !errs.Is(err, errs.Timeout) {
		t.Errorf("while it still hangs: %v", err)
	}
	h.hang.Store(false)
	close(h.stop)
	if err := <-acked; !errs.Is(err, errs.Drive) {
		t.Errorf("what hung was acknowledged after the drive was retired: %v", err)
	}
	if err := s.Retire(bg, 2); err != nil { // waits for what is on its way
		t.Errorf("after it woke up: %v", err)
	}
	if n := d.InFlight(); n != 0 {
		t.Errorf("%d operations are under way after that", n)
	}
	if ev.String() != "lost 2" {
		t.Errorf("events: %v", &ev)
	}
}

func TestAnOperatorsQuarantineLasts(t *testing.T) {
	mem := vfs.NewMem()
	var ev events
	s := spare(t, mem, plain, ev.options)
	if err := s.Quarantine(bg, 3, "it clicks"); err != nil {
		t.Fatal(err)
	}
	quarantined := func(s *node.Set) {
		t.Helper()
		for range 2 {
			s.Check()
		}
		p := s.Status()[2]
		if p.State != node.PathQuarantined || p.By != node.ByOperator || p.Why != "it clicks" || p.Num != 3 || !p.Known || p.Open || p.Since.IsZero() {
			t.Fatalf("status: %+v", p)
		}
		if _, ok := s.Local(3); ok {
			t.Fatal("it serves")
		}
		if err := s.Reopen(bg, "d3"); err == nil {
			t.Fatal("it was opened without being released")
		}
	}
	quarantined(s)
	if err := s.Close(bg); err != nil {
		t.Fatal(err)
	}
	s = openSet(t, mem, []string{"d1", "d2", "d3", "d4"}, ev.options)
	quarantined(s)
	// Quarantined while it is away: nothing can be noted on it, and that is said.
	if err := mem.Rename("d1", "gone"); err != nil {
		t.Fatal(err)
	}
	s.Check()
	if err := s.Quarantine(bg, 1, "loose"); !errs.Is(err, errs.Drive) || !strings.Contains(err.Error(), "after a restart") {
		t.Fatalf("got %v", err)
	}
	if err := mem.Rename("gone", "d1"); err != nil {
		t.Fatal(err)
	}
	s.Check()
	if p := s.Status()[0]; p.Open {
		t.Fatalf("it came back: %+v", p)
	}
	for _, num := range []uint16{1, 3} {
		if err := s.Release(bg, num); err != nil {
			t.Fatalf("release of %d: %v", num, err)
		}
	}
	if got := states(s); got != "d1=open d2=open d3=open d4=empty" {
		t.Fatalf("after the release: %s", got)
	}
	if err := s.Close(bg); err != nil {
		t.Fatal(err)
	}
	s = openSet(t, mem, []string{"d1", "d2", "d3", "d4"}, nil)
	if got := states(s); got != "d1=open d2=open d3=open d4=empty" {
		t.Fatalf("after a restart: %s", got)
	}
	if err := s.Release(bg, 9); !errs.Is(err, errs.NotFound) {
		t.Errorf("release of a drive that is not here: %v", err)
	}
}

func TestADriveThatRanOutOfSpaceReturnsWhenThereIsSome(t *testing.T) {
	mem := vfs.NewMem()
	var full atomic.Bool
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 2 << 30})
	var ev events
	s := spare(t, mem, func(fs vfs.FS) vfs.FS {
		return wrapFaults(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && strings.HasPrefix(op.Path, "d2/meta") && op.Kind == errorfs.OpFileWrite {
				return syscall.ENOSPC
			}
			return nil
		}))
	}, ev.options)
	d, _ := s.Local(2)
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 0, TotalBytes: 2 << 30})
	full.Store(true)
	if err := d.SetJob(bg, "test", []byte("x")); !errs.Is(err, errs.Drive) {
		t.Fatalf("got %v", err)
	}
	for range 3 {
		s.Check()
	}
	if p := s.Status()[1]; p.State != node.PathFull || p.Open || ev.String() != "lost 2" {
		t.Fatalf("status: %+v, events: %v", p, &ev)
	}
	full.Store(false)
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 2 << 30})
	s.Check()
	if p := s.Status()[1]; p.State != node.PathOpen || ev.String() != "lost 2, back 2" {
		t.Fatalf("status: %+v, events: %v", p, &ev)
	}
}

func TestStatesOfPathsThatCannotServe(t *testing.T) {
	mem := vfs.NewMem()
	s := spare(t, mem, plain, nil)
	if err := s.Close(bg); err != nil {
		t.Fatal(err)
	}
	f, err := mem.Create("d4/notes.txt", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), mem.RemoveAll("d3/meta")); err != nil {
		t.Fatal(err)
	}
	s = openSet(t, mem, []string{"d1", "d2", "d3", "d4", "d5"}, nil)
	if got := states(s); got != "d1=open d2=open d3=retired d4=foreign d5=absent" {
		t.Fatalf("states: %s", got)
	}
	for _, p := range s.Status() {
		if p.State != node.PathOpen && p.Why == "" {
			t.Errorf("nothing says why: %+v", p)
		}
	}
}
