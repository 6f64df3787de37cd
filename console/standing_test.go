package console

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// spareOf is a layout of n drives of which each partition has all but one, and one move of each of the first partitions to that one.
func spareOf(t *testing.T, profile erasure.Profile, n, partitions int) (*placement.Layout, []placement.Move) {
	t.Helper()
	l := layoutOf(t, profile, n)
	var moves []placement.Move
	for p := range uint32(partitions) {
		g := l.Group(p)
		for _, d := range l.Drives() {
			if g.Position(d.Num) < 0 {
				moves = append(moves, placement.Move{Partition: p, Position: 0, From: g.Drives[0], To: d.Num})
				break
			}
		}
	}
	return l, moves
}

// A change that was begun goes on with as many members that tell, and as many next ones that hold, as the swap asks.
func TestAChangeThatWasBegunStandsStillWithoutItsDrives(t *testing.T) {
	l, moves := spareOf(t, erasure.Profile{Data: 3, Parity: 3}, 7, 1)
	g, to := l.Group(0), moves[0].To
	q := g.Quorum // 3+3: W 4, learn 3, Z
	for _, c := range []struct {
		name    string
		away    []uint16
		retired []uint16
		stands  bool
		until   string
	}{
		{"all are here", nil, nil, false, ""},
		{"the newcomer is away, and the members hold", []uint16{to}, nil, false, ""},
		{"two are away that stay", g.Drives[4:6], nil, false, ""},
		{"three are away that stay", g.Drives[3:6], nil, true, "one of the drives"},
		{"two that stay are away, and the newcomer", []uint16{g.Drives[4], g.Drives[5], to}, nil, true, "one of the drives"},
		{"who leaves is away, and one that stays, and the newcomer", []uint16{g.Drives[0], g.Drives[5], to}, nil, false, ""},
		{"who leaves never comes back", []uint16{g.Drives[0]}, g.Drives[:1], false, ""},
		{"five of six are away", g.Drives[:5], nil, true, "enough of the drives"},
		{"all others never come back", g.Drives[1:], g.Drives[1:], true, ""},
	} {
		here := func(num uint16) bool { return !slices.Contains(c.away, num) }
		n, until := standing(l, Changes{Moves: moves, Retired: func(num uint16) bool { return slices.Contains(c.retired, num) }}, here, func(uint16) bool { return true })
		if (n == 1) != c.stands || c.until == "" && until != "" || !strings.HasPrefix(until, c.until) {
			t.Errorf("%s: %d partitions stand still, until %q; W is %d, Z %d", c.name, n, until, q.W, q.Z)
		}
	}
	// One drive of all would do: it is named alone.
	if _, until := standing(l, Changes{Moves: moves}, func(num uint16) bool { return !slices.Contains(g.Drives[3:6], num) },
		func(num uint16) bool { return true }); !strings.Contains(until, "one of the drives ") {
		t.Errorf("until %q", until)
	}
	// What was published meanwhile stands still no more.
	gone := slices.Clone(moves)
	gone[0].From = to
	if n, _ := standing(l, Changes{Moves: gone}, func(uint16) bool { return false }, func(uint16) bool { return true }); n != 0 {
		t.Errorf("a move that the layout has already: %d stand still", n)
	}
}

// Where partitions stand still nothing says that everything can be read, and all that is asked says which drive is missed.
func TestPartitionsThatStandStillAreTold(t *testing.T) {
	f := newFake()
	l, moves := spareOf(t, erasure.Profile{Data: 3, Parity: 3}, 7, 1)
	g := l.Group(0)
	away := g.Drives[3:6]
	f.paths = nil
	for _, d := range l.Drives() {
		f.paths = append(f.paths, node.PathStatus{Path: "/d", Num: d.Num, Known: true, Open: !slices.Contains(away, d.Num)})
	}
	h := f.handlerOf(l, func(c *Config) {
		c.Changes = func() Changes { return Changes{Moves: moves} }
		c.Nodes = func(context.Context) []NodeStatus { return nil }
	})
	const says = "1 of 16 partitions stands still in a change of members, and answers 503, until one of the drives "
	for _, path := range []string{"/-/ready", "/-/admin/v1/info", "/-/admin/v1/status", "/-/admin/v1/nodes"} {
		if _, body := ask(t, h, http.MethodGet, path); !strings.Contains(body, says) {
			t.Errorf("%s does not tell: %s", path, body)
		}
	}
	_, body := ask(t, h, http.MethodGet, "/-/admin/v1/drives")
	var list DriveList
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	r := list.Redundancy
	if r.Readable || r.Writable || r.MayLose != 0 || r.Still != 1 || !strings.HasPrefix(r.String(), says) || strings.Contains(r.String(), "everything can be") {
		t.Errorf("the list of drives says %q: %+v", r, r)
	}
	// A drive more out of service would let one stand still: that is refused, and told.
	for i := range f.paths {
		f.paths[i].Open = !slices.Contains(away[1:], f.paths[i].Num)
	}
	if code, body := send(t, h, http.MethodPost, "/-/admin/v1/drives/quarantine", strings.Replace(`{"drive":N}`, "N", numbers(away[:1]), 1)); code != http.StatusPreconditionFailed || !strings.Contains(body, "still in a change") {
		t.Errorf("the quarantine: %d %s", code, body)
	}
}
