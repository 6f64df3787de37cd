package main

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/cluster/gossip"
	"github.com/ostraka/ostraka/cluster/trust"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// A change that some build does not know waits for all that may meet it: also in the log, after their return.
func TestAChangeWaitsForBuildsThatDoNotKnowIt(t *testing.T) {
	one, two := disk.ID{1}, disk.ID{2}
	is := func(id disk.ID, state gossip.State, newest uint32) gossip.Member {
		return gossip.Member{State: state, Tags: gossip.Tags{Node: id, Protocol: gossip.Versions{Oldest: 1, Newest: newest}}}
	}
	for _, c := range []struct {
		name   string
		second cluster.Roles
		view   []gossip.Member
		never  []disk.ID
		waits  bool
	}{
		{"all know it", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Alive, 2)}, nil, false},
		{"one that is here does not", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Alive, 1)}, nil, true},
		{"one that is away does not", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Failed, 1)}, nil, true},
		{"one that left does not", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Left, 1)}, nil, true},
		{"one that is away, and knows it", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Failed, 2)}, nil, false},
		{"one that never comes back", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Failed, 1)}, []disk.ID{two}, false},
		{"one of which nobody has heard", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2)}, nil, true},
		{"one of which nobody has heard, and that never comes back", cluster.RoleStorage, []gossip.Member{is(one, gossip.Alive, 2)}, []disk.ID{two}, false},
		{"a gateway that is away does not", cluster.RoleGateway, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Failed, 1)}, nil, false},
		{"a gateway that is here does not", cluster.RoleGateway, []gossip.Member{is(one, gossip.Alive, 2), is(two, gossip.Alive, 1)}, nil, true},
	} {
		nodes := []cluster.Node{{ID: one, Roles: cluster.RoleStorage}, {ID: two, Roles: c.second}}
		err := mayMiss(nodes, &gossip.View{Members: c.view}, "it", c.never)
		if (err != nil) != c.waits || c.waits && !errs.Is(err, errs.Precondition) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// keeper is a trustKeeper of its own.
type keeper struct {
	b        []byte
	revision uint64
}

func (k *keeper) Trust() ([]byte, uint64)       { return k.b, k.revision }
func (k *keeper) Refresh(context.Context) error { return nil }
func (k *keeper) PutTrust(_ context.Context, b []byte, revision uint64) error {
	if revision != k.revision {
		return errs.E("test", errs.Stale, "changed")
	}
	k.b, k.revision = b, revision+1
	return nil
}

// So many are revoked that there is no room for one more: it is removed all the same, and whoever removes it is told.
func TestANodeThatCannotBeRevokedIsToldOf(t *testing.T) {
	now := time.Now()
	st, err := trust.New([16]byte{1}, trust.NewSecret(), now)
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{b: st.AppendTo(nil)}
	p := planner{log: slog.New(slog.DiscardHandler)}
	if warning, err := p.revoke(t.Context(), disk.ID{9}, k); warning != "" || err != nil || k.revision != 1 {
		t.Fatalf("the first: %q, %v, revision %d", warning, err, k.revision)
	}
	if st, err = trust.Decode(k.b); err != nil {
		t.Fatal(err)
	}
	for i := 1; err == nil; i++ {
		if i > 1000 {
			t.Fatal("there is no end to it")
		}
		var next *trust.State
		if next, err = st.Revoke([16]byte{1, byte(i), byte(i >> 8)}, now); err == nil {
			st = next
		}
	}
	k.b = st.AppendTo(nil)
	warning, err := p.revoke(t.Context(), disk.ID{8}, k)
	if err != nil || !strings.Contains(warning, "stays good") || k.revision != 1 {
		t.Errorf("one too many: %q, %v, revision %d", warning, err, k.revision)
	}
}

// What a plan does is in its number, and apply begins no other plan than the one that was shown.
func TestOnlyThePlanThatWasShownIsBegun(t *testing.T) {
	shown := func() *placement.Plan {
		return &placement.Plan{Layout: 377, Moves: []placement.Move{{Partition: 1, From: 1, To: 2}, {Partition: 2, Position: 1, From: 1, To: 3}}, Leaving: []uint16{1}, Bytes: 9}
	}
	number := planNumber(shown())
	if layout, err := console.LayoutOf(number); err != nil || layout != 377 {
		t.Fatalf("%q: layout %d, %v", number, layout, err)
	}
	for _, c := range []struct {
		name   string
		change func(*placement.Plan)
		number string
		begins bool
	}{
		{"the same", func(*placement.Plan) {}, number, true},
		{"the same, while more is written", func(p *placement.Plan) { p.Bytes++ }, number, true},
		{"another move", func(p *placement.Plan) { p.Moves[1].To = 4 }, number, false},
		{"another position", func(p *placement.Plan) { p.Moves[1].Position = 0 }, number, false},
		{"a move less", func(p *placement.Plan) { p.Moves = p.Moves[:1] }, number, false},
		{"another order", func(p *placement.Plan) { slices.Reverse(p.Moves) }, number, false},
		{"a profile", func(p *placement.Plan) { p.Profiles.Standard = erasure.Profile{Data: 4, Parity: 4} }, number, false},
		{"nobody leaves", func(p *placement.Plan) { p.Leaving = nil }, number, false},
		{"another layout", func(p *placement.Plan) { p.Layout++ }, number, false},
		{"another plan, and only the layout was said", func(p *placement.Plan) { p.Moves[1].To = 4 }, "", true},
		{"another layout, and only the layout was said", func(p *placement.Plan) { p.Layout++ }, "", false},
	} {
		p := shown()
		c.change(p)
		err := sameAsShown(p, console.ApplyRequest{Layout: 377, Number: c.number})
		if (err == nil) != c.begins || err != nil && !errs.Is(err, errs.Precondition) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A directory that was emptied looks like a new disk: whoever adds it is told of the drive that is missing.
func TestADriveThatIsAwayMayHaveBeenAtThePathOfANewOne(t *testing.T) {
	own := []placement.Drive{{Num: 8}, {Num: 9}}
	eight := node.PathStatus{Path: "/d2", Num: 8, Known: true, Open: true}
	for _, c := range []struct {
		name    string
		paths   []node.PathStatus
		places  int // of drive 9
		retired bool
		away    []uint16
	}{
		{"all serve, and one more comes", []node.PathStatus{eight, {Path: "/d1", Num: 9, Known: true, Open: true}, {Path: "/new"}}, 5, false, nil},
		{"it was emptied before the start", []node.PathStatus{eight, {Path: "/new"}}, 5, false, []uint16{9}},
		{"it was emptied while the node ran", []node.PathStatus{eight, {Path: "/new", Num: 9, Known: true}}, 5, false, []uint16{9}},
		{"it was at another path", []node.PathStatus{eight, {Path: "/d1", Num: 9, Known: true}, {Path: "/new"}}, 5, false, nil},
		{"it serves at this path", []node.PathStatus{eight, {Path: "/new", Num: 9, Known: true, Open: true}}, 5, false, nil},
		{"it has no places", []node.PathStatus{eight, {Path: "/new"}}, 0, false, nil},
		{"it was given up", []node.PathStatus{eight, {Path: "/new"}}, 5, true, nil},
	} {
		places := func(num uint16) int { return map[uint16]int{8: 7, 9: c.places}[num] }
		if away := awayAt("/new", own, c.paths, places, func(num uint16) bool { return c.retired && num == 9 }); !slices.Equal(away, c.away) {
			t.Errorf("%s: %d are away, want %d", c.name, away, c.away)
		}
	}
}
