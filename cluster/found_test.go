package cluster

import (
	"testing"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

func TestANewClusterIsLaidOutOnceItsNodesAreHere(t *testing.T) {
	ids := []placement.Drive{{Num: 1, ID: disk.NewID()}, {Num: 2, ID: disk.NewID()}}
	l, err := placement.NewLayout(ids, erasure.Profile{Data: 1, Parity: 1}, 4)
	if err != nil {
		t.Fatal(err)
	}
	s := emptyState()
	index := uint64(0)
	do := func(c *command, want errs.Kind) any {
		t.Helper()
		c2, err := decodeCommand(c.encode())
		if err != nil {
			t.Fatal(err)
		}
		index++
		next, result := s.apply(index, c2)
		failed, _ := result.(error)
		if (failed != nil) != (want != 0) || failed != nil && errs.KindOf(failed) != want {
			t.Fatalf("%d: %v, want kind %v", c.op, failed, want)
		}
		if s, err = decodeState(next.encode()); err != nil {
			t.Fatal(err)
		}
		return result
	}
	one, two := Node{ID: disk.NewID(), Zone: "a"}, Node{ID: disk.NewID(), Zone: "b"}
	do(&command{op: opInit, cluster: disk.NewID(), layout: l}, 0)
	do(&command{op: opLayOut, layout: l, epoch: l.Number()}, errs.Precondition)
	do(&command{op: opExpect, value: Expectation{Nodes: 2, Profile: erasure.Profile{Data: 2, Parity: 2}}.append(nil)}, 0)
	do(&command{op: opCreateBucket, bucket: Bucket{Name: "early"}}, errs.Unavailable)
	do(&command{op: opBecomeCluster, node: one}, 0)
	do(&command{op: opPutNode, node: two}, 0)
	before := s.Layout()
	do(&command{op: opAddDrives, node: Node{ID: two.ID}, drives: []placement.Drive{{ID: disk.NewID()}, {ID: disk.NewID()}}}, 0)
	wide, err := placement.NewLayout(s.Layout().Drives(), s.Expects().Profile, 4)
	if err != nil {
		t.Fatal(err)
	}
	do(&command{op: opLayOut, layout: wide, epoch: before.Number()}, errs.Stale)
	do(&command{op: opLayOut, layout: before, epoch: s.Layout().Number()}, errs.Invalid)
	number := s.Layout().Number()
	do(&command{op: opLayOut, layout: wide, epoch: number}, 0)
	if got := s.Layout(); got.Number() != number+1 || got.Profile() != wide.Profile() || len(got.Drives()) != 4 || got.Group(3).Epoch != 1 || s.Expects().Nodes != 0 {
		t.Errorf("layout %d, profile %s, %d drives, epoch %d, expects %v", got.Number(), got.Profile(), len(got.Drives()), got.Group(3).Epoch, s.Expects())
	}
	do(&command{op: opCreateBucket, bucket: Bucket{Name: "first"}}, 0)
	do(&command{op: opExpect, value: Expectation{Nodes: 3}.append(nil)}, errs.Precondition)
}
