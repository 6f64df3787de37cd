package node_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
)

// numbering is the control plane, as far as it numbers drives.
type numbering map[disk.ID]uint16

func (n numbering) give(_ context.Context, list []node.Newcomer) (nums []uint16, _ error) {
	for _, c := range list {
		if n[c.Drive] == 0 {
			n[c.Drive] = uint16(7 + len(n))
		}
		nums = append(nums, n[c.Drive])
	}
	return nums, nil
}

// join does what a node does that starts with --join.
func join(s *node.Set, cluster, fresh disk.ID, n numbering) error {
	if !s.Node().IsZero() {
		fresh = s.Node()
	}
	if err := s.Enter(cluster, fresh); err != nil {
		return err
	}
	paths, err := s.Unfinished()
	if err != nil {
		return err
	}
	return s.Recruit(bg, paths, n.give)
}

func TestJoiningIsCompletedAfterACrashAnywhere(t *testing.T) {
	cluster := disk.NewID()
	for i := 0; ; i += 11 { // every eleventh is enough for the time that a test has
		mem := vfs.NewCrashableMem()
		paths := memPaths(t, mem, 3)
		numbers := numbering{}
		var n atomic.Int64
		var hit atomic.Bool
		faulty := wrapFaults(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpRename:
				if n.Add(1) > int64(i) {
					hit.Store(true)
					return syscall.EIO
				}
			}
			return nil
		}))
		o := node.Options{FS: faulty, Disk: diskOptions(), WatchEvery: -1, Join: true}
		s, err := node.OpenSet(bg, paths, o)
		if err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		_ = join(s, cluster, disk.NewID(), numbers) // may have ended before the fault
		after := mem.CrashClone(vfs.CrashCloneCfg{})
		_ = s.Close(bg)
		s2 := openSet(t, after, paths, func(o *node.Options) { o.Join = true })
		if err := join(s2, cluster, disk.NewID(), numbers); err != nil {
			t.Fatalf("change %d: joining does not go on after the crash (%s): %v", i, states(s2), err)
		}
		used := numbering{}
		for _, d := range s2.Open() {
			used[d.Identity().Drive] = d.Num()
			if d.Identity().Forming || d.Identity().Cluster != cluster {
				t.Fatalf("change %d: %+v", i, d.Identity())
			}
		}
		if len(used) != 3 || !maps.Equal(used, numbers) {
			t.Fatalf("change %d: the drives are %v, and numbers were given to %v", i, used, numbers)
		}
		who := s2.Node()
		if err := s2.Close(bg); err != nil {
			t.Fatal(err)
		}
		s3 := openSet(t, after, paths, nil)
		if s3.Node() != who || len(s3.Open()) != 3 || s3.Fresh() {
			t.Fatalf("change %d: started again without --join: node %s (was %s), %s", i, s3.Node(), who, states(s3))
		}
		if !hit.Load() {
			t.Logf("%d changes were failed", i)
			return
		}
	}
}

func TestAnInterruptedJoinFormsNoCluster(t *testing.T) {
	mem := vfs.NewMem()
	paths := memPaths(t, mem, 2)
	s := openSet(t, mem, paths, func(o *node.Options) { o.Join = true })
	if err := s.Enter(disk.NewID(), disk.NewID()); err != nil {
		t.Fatal(err)
	}
	err := s.Recruit(bg, paths, func(context.Context, []node.Newcomer) ([]uint16, error) {
		return nil, errs.E("test", errs.Unavailable, "no leader")
	})
	if !errs.Is(err, errs.Unavailable) {
		t.Fatalf("without numbers: %v", err)
	}
	if err := s.Close(bg); err != nil {
		t.Fatal(err)
	}
	_, err = node.OpenSet(bg, paths, node.Options{FS: mem, Disk: diskOptions(), WatchEvery: -1})
	if err == nil || !strings.Contains(err.Error(), "--join") {
		t.Fatalf("started without --join: %v", err)
	}
}

func TestDrivesOfAnotherNodeAreRefused(t *testing.T) {
	mem := vfs.NewMem()
	paths := memPaths(t, mem, 4)
	a := openSet(t, mem, paths[:2], nil)
	if err := a.MarkFormed(bg); err != nil {
		t.Fatal(err)
	}
	b, numbers := openSet(t, mem, paths[2:], func(o *node.Options) { o.Join = true }), numbering{}
	if err := join(b, a.Cluster(), disk.NewID(), numbers); err != nil {
		t.Fatal(err)
	}
	if err := a.SetNode(disk.NewID()); err != nil {
		t.Fatal(err)
	}
	if err := a.SetNode(disk.NewID()); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second node id: %v", err)
	}
	for _, s := range []*node.Set{a, b} {
		if err := s.Close(bg); err != nil {
			t.Fatal(err)
		}
	}
	_, err := node.OpenSet(bg, paths, node.Options{FS: mem, Disk: diskOptions(), WatchEvery: -1})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "two nodes") {
		t.Errorf("drives of two nodes together: %v", err)
	}
	c := openSet(t, mem, slices.Concat(paths[2:], memPaths(t, mem, 5)[4:]), func(o *node.Options) { o.Join = true })
	if len(c.Open()) != 2 || c.Fresh() {
		t.Errorf("beside its drives the node has an empty directory: %s", states(c))
	}
	if list, err := c.Unfinished(); err != nil || len(list) != 0 {
		t.Errorf("an empty directory beside drives may be a missing mount, and is to become a drive: %v, %v", list, err)
	}
}
