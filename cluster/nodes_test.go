package cluster

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

func testNode(n byte, zone string) Node {
	return Node{ID: disk.ID{n}, Name: fmt.Sprint("node-", n), Zone: zone, Roles: RoleGateway | RoleStorage,
		Address: fmt.Sprintf("127.0.0.%d:7000", n), Gossip: fmt.Sprintf("127.0.0.%d:7001", n), S3: fmt.Sprintf("127.0.0.%d:9000", n)}
}

// applied applies commands to a state, one after the other, and returns the result of the last.
func applyAll(s *State, list ...*command) (*State, any) {
	var result any
	for _, c := range list {
		s, result = s.applyOnce(s.Applied+1, c)
	}
	return s, result
}

func TestAStoreBecomesAClusterAndGrows(t *testing.T) {
	s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 4), account: Account{"a", "b"}, key: testKey})
	before := s.encode()
	if _, result := applyAll(s, &command{op: opPutNode, node: testNode(1, "")}); !errs.Is(result.(error), errs.Precondition) {
		t.Errorf("a node of a store that is no cluster: %v", result)
	}
	groups := s.Layout().Group(3)
	s, result := applyAll(s, &command{op: opBecomeCluster, node: testNode(1, "east"), time: 7})
	if result != nil {
		t.Fatal(result)
	}
	if on := s.DrivesOf(disk.ID{1}); len(on) != 4 || on[2].Zone != "east" {
		t.Fatalf("the drives of the node are %+v", on)
	}
	if now := s.Layout().Group(3); !reflect.DeepEqual(now, groups) {
		t.Errorf("a partition changed: %+v, was %+v", now, groups)
	}
	if _, result := applyAll(s, &command{op: opBecomeCluster, node: testNode(2, "")}); !errs.Is(result.(error), errs.Exists) {
		t.Errorf("another first node: %v", result)
	}
	number := s.Layout().Number()
	if again, result := applyAll(s, &command{op: opBecomeCluster, node: testNode(1, "east"), time: 8}); result != nil || again.Layout().Number() != number || again.Nodes()[0].Since != 7 {
		t.Errorf("becoming a cluster again: %v, %+v", result, again.Nodes())
	}
	add := &command{op: opAddDrives, node: Node{ID: disk.ID{2}}, drives: []placement.Drive{newDrive(1), newDrive(2)}}
	if _, result := applyAll(s, add); !errs.Is(result.(error), errs.NotFound) {
		t.Errorf("drives of an unknown node: %v", result)
	}
	s, result = applyAll(s, &command{op: opPutNode, node: testNode(2, "west")}, add)
	if nums, ok := result.([]uint16); !ok || !slices.Equal(nums, []uint16{5, 6}) {
		t.Fatalf("the drives got %v", result)
	}
	if s, result = applyAll(s, add); !slices.Equal(result.([]uint16), []uint16{5, 6}) || len(s.Layout().Drives()) != 6 {
		t.Fatalf("asked again, the drives got %v", result)
	}
	if d, _ := s.Layout().Drive(6); d.Node != (disk.ID{2}) || d.Zone != "west" || len(s.Layout().PartitionsOf(6)) != 0 {
		t.Errorf("drive 6 is %+v", d)
	}
	if _, result := applyAll(s, &command{op: opPutNode, node: testNode(3, "")}, &command{op: opAddDrives, node: Node{ID: disk.ID{3}}, drives: add.drives}); !errs.Is(result.(error), errs.Exists) {
		t.Errorf("drives of another node: %v", result)
	}
	// The zone of a node is that of its drives.
	s, _ = applyAll(s, &command{op: opPutNode, node: testNode(2, "north")})
	if d, _ := s.Layout().Drive(5); d.Zone != "north" {
		t.Errorf("drive 5 is in zone %q", d.Zone)
	}
	if _, result := applyAll(s, &command{op: opRemoveNode, node: Node{ID: disk.ID{2}}}); !errs.Is(result.(error), errs.Precondition) {
		t.Errorf("removing a node with drives: %v", result)
	}
	// Its drives leave. Their numbers are not given again.
	l, _ := s.layout.Without(5)
	l, _ = l.Without(6)
	left := *s
	left.layout = l
	gone, result := applyAll(&left, &command{op: opRemoveNode, node: Node{ID: disk.ID{2}}}, &command{op: opRemoveNode, node: Node{ID: disk.ID{2}}})
	if result != nil || len(gone.Nodes()) != 1 {
		t.Errorf("removing it: %v, %+v", result, gone.Nodes())
	}
	_, result = applyAll(gone, &command{op: opAddDrives, node: Node{ID: disk.ID{1}}, drives: []placement.Drive{newDrive(9)}})
	if nums, ok := result.([]uint16); !ok || !slices.Equal(nums, []uint16{7}) {
		t.Errorf("the next number is %v, want 7", result)
	}
	for _, x := range []*State{s, gone} {
		back, err := decodeState(x.encode())
		if err != nil || !bytes.Equal(back.encode(), x.encode()) || !reflect.DeepEqual(back.nodes, x.nodes) {
			t.Errorf("a state does not round-trip: %v", err)
		}
	}
	// The state before is as it was.
	if first, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 4), account: Account{"a", "b"}, key: testKey}); !bytes.Equal(before, first.encode()) {
		t.Error("a state was changed in place")
	}
}

// What an operator says of a zone holds over what the node says of itself at its next start.
func TestTheZoneThatAnOperatorSetHolds(t *testing.T) {
	s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 4)}, &command{op: opBecomeCluster, node: testNode(1, "east"), time: 7})
	set := &command{op: opSetZone, node: Node{ID: disk.ID{1}, Zone: "west"}}
	if raw, err := decodeCommand(set.encode()); err != nil || raw.node.Zone != "west" {
		t.Fatalf("the command does not come back: %+v, %v", raw, err)
	}
	if _, result := applyAll(s, &command{op: opSetZone, node: Node{ID: disk.ID{2}, Zone: "west"}}); !errs.Is(result.(error), errs.NotFound) {
		t.Errorf("the zone of an unknown node: %v", result)
	}
	s, result := applyAll(s, set)
	if result != nil {
		t.Fatal(result)
	}
	for _, c := range []*command{set, {op: opPutNode, node: testNode(1, "east")}, {op: opBecomeCluster, node: testNode(1, "east")}} {
		s, _ = applyAll(s, c)
		n, _ := s.Node(disk.ID{1})
		if d, _ := s.Layout().Drive(3); d.Zone != "west" || n.Zone != "west" || !n.ZoneSet || n.Name != "node-1" {
			t.Errorf("after op %d: node %+v, drive %+v", c.op, n, d)
		}
	}
	if back, err := decodeState(s.encode()); err != nil || !reflect.DeepEqual(back.nodes, s.nodes) {
		t.Errorf("the state does not come back: %v", err)
	}
}

func TestTrustIsChangedByOneAtATime(t *testing.T) {
	s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 3)})
	s, result := applyAll(s, &command{op: opPutTrust, value: []byte("one")}, &command{op: opPutTrust, value: []byte("one")})
	if b, revision := s.Trust(); result != nil || string(b) != "one" || revision != 1 {
		t.Fatalf("%v; %q, revision %d", result, b, revision)
	}
	if _, result := applyAll(s, &command{op: opPutTrust, value: []byte("two")}); !errs.Is(result.(error), errs.Stale) {
		t.Errorf("from an old revision: %v", result)
	}
}

// A change that arrives twice is applied once, and has the same answer, also after the state was stored.
func TestARepeatedChangeHasTheSameAnswer(t *testing.T) {
	s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 4)})
	config := map[string][]byte{"cors": []byte("x")}
	for i, c := range []*command{
		{op: opCreateBucket, bucket: Bucket{Name: "one", Config: config}},
		{op: opCreateBucket, bucket: Bucket{Name: "one"}},
		{op: opBeginDelete, id: 1},
		{op: opFinishDelete, id: 77},
		{op: opBecomeCluster, node: testNode(1, "")},
		{op: opBeginReplace, old: 2, drive: newDrive(5), path: "/p"},
		{op: opBeginReplace, old: 2, drive: newDrive(6), path: "/p"},
		{op: opTakeOver, id: 1},
		{op: opAddDrives, node: Node{ID: disk.ID{1}}, drives: []placement.Drive{newDrive(7)}},
	} {
		c.change = changeID{byte(i + 1)}
		once, first := applyAll(s, c)
		stored, err := decodeState(once.encode())
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []*State{once, stored} {
			twice, second := applyAll(at, c)
			if e, ok := first.(error); ok {
				got, ok := second.(error)
				if !ok || errs.KindOf(got) != errs.KindOf(e) || errs.Public(got) != errs.Public(e) {
					t.Errorf("change %d: %v, and then %v", i, first, second)
				}
				was, _ := ExistingBucket(e)
				if is, _ := ExistingBucket(got); is.ID != was.ID {
					t.Errorf("change %d: bucket %d was in the way, and then %d", i, was.ID, is.ID)
				}
			} else if !reflect.DeepEqual(first, second) {
				t.Errorf("change %d: %+v, and then %+v", i, first, second)
			}
			twice.Applied = once.Applied
			if !bytes.Equal(twice.encode(), once.encode()) {
				t.Errorf("change %d had an effect twice", i)
			}
		}
		s = once
	}
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	s, _ := applyAll(emptyState(), &command{op: opInit, layout: testLayout(t, 3)})
	id := func(i int) changeID { return changeID{byte(i), byte(i >> 8), 1} }
	for i := range maxRemembered + 10 {
		s, _ = applyAll(s, &command{op: opSetSettings, settings: Settings{HealRate: uint64(i)}, change: id(i)})
	}
	if n := s.recent.byID.Len(); n != maxRemembered || n != s.recent.byIndex.Len() {
		t.Errorf("%d are remembered", n)
	}
	if _, ok := s.recent.find(id(9)); ok {
		t.Error("the oldest is remembered")
	}
	if _, ok := s.recent.find(id(10)); !ok {
		t.Error("one of the last is forgotten")
	}
}
