package console

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// hosts is a layout over nodes with two drives each, numbered from 1; the capacities are by drive.
func hosts(t *testing.T, profile erasure.Profile, capacities ...uint64) *placement.Layout {
	t.Helper()
	var list []placement.Drive
	for i, c := range capacities {
		list = append(list, placement.Drive{Num: uint16(i + 1), ID: [16]byte{byte(i + 1)}, Node: [16]byte{byte(i/2 + 1)}, Capacity: c})
	}
	l, err := placement.NewLayout(list, profile, 4)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serving are the drives of a layout, all here.
func serving(l *placement.Layout) (list []node.PathStatus) {
	for _, d := range l.Drives() {
		list = append(list, node.PathStatus{Path: "/d", Num: d.Num, Known: true, Open: true})
	}
	return list
}

// What objects may take is no more than the planner says that a store full of shards can use of the drives.
func TestTheRoomIsNoMoreThanTheCapsAllow(t *testing.T) {
	const mib = 1 << 20
	for name, free := range map[string][]uint64{
		"alike":              {100 * mib, 100 * mib, 100 * mib, 100 * mib, 100 * mib, 100 * mib},
		"one node is small":  {1024 * mib, 1024 * mib, 1024 * mib, 1024 * mib, 40 * mib, 40 * mib},
		"more than a row":    {1024 * mib, 1024 * mib, 1024 * mib, 1024 * mib, 900 * mib, 900 * mib, 10 * mib, 500 * mib},
		"one is nearly full": {1024 * mib, 1024 * mib, 1024 * mib, 1024 * mib, 1024 * mib, 1 * mib},
	} {
		l := hosts(t, erasure.Profile{Data: 4, Parity: 2}, free...)
		var goal placement.Goal
		infos := map[uint16]func() disk.DriveInfo{}
		for i, d := range l.Drives() {
			goal.Drives = append(goal.Drives, placement.GoalDrive{Drive: d})
			infos[d.Num] = func() disk.DriveInfo {
				return disk.DriveInfo{State: disk.Online, Total: 1024 * mib, Avail: free[i] + mib, Reserve: mib}
			}
		}
		plan, err := placement.NewPlan(l, goal)
		if err != nil {
			t.Fatal(err)
		}
		f := newFake()
		f.paths = serving(l)
		h := f.handlerOf(l, func(c *Config) {
			c.Samples = NewSampler(func() map[uint16]func() disk.DriveInfo { return infos })
		})
		_, body := ask(t, h, http.MethodGet, "/-/admin/v1/info")
		var i Info
		if err := json.Unmarshal([]byte(body), &i); err != nil {
			t.Fatal(err)
		}
		limit := plan.Limit / 6 * 4
		if i.Usable > limit+6 || i.Usable == 0 {
			t.Errorf("%s: objects may take %d bytes more, and the caps let %d be used", name, i.Usable, limit)
		}
		// Where there are more drives than members, a small one has few places.
		if small := len(free) == 6 && slices.Min(free) < slices.Max(free)/2; (i.FullFirst != 0) != small {
			t.Errorf("%s: drive %d is full first", name, i.FullFirst)
		}
	}
}

// Drives that are full take nothing more, whatever their file system has.
func TestNothingHasRoomWhereADriveIsFull(t *testing.T) {
	l := hosts(t, erasure.Profile{Data: 2, Parity: 2}, 100, 100, 100, 100)
	if room, first, ok := roomOf(l, map[uint16]uint64{1: 100, 2: 100, 3: 0, 4: 100}); room != 0 || first != 3 || !ok {
		t.Errorf("room %d, drive %d first, %v", room, first, ok)
	}
}

// Records of which it is not known what they lack count as doubtful where more drives are away than they had shards to
// spare when they were acknowledged: none where a node has as many members as there is parity.
func TestRecordsThatMayHaveTooFewShardsAreNotSaidToBeReadable(t *testing.T) {
	all := func(uint16) bool { return true }
	o := heal.Outstanding{Wants: []heal.Want{{Partition: 1, Registers: 342}}}
	p := erasure.Profile{Data: 4, Parity: 2}
	for _, c := range []struct {
		name     string
		l        *placement.Layout
		away     []uint16
		doubtful int
	}{
		{"three nodes, all here", hosts(t, p, 1, 1, 1, 1, 1, 1), nil, 0},
		{"three nodes, one drive away", hosts(t, p, 1, 1, 1, 1, 1, 1), []uint16{1}, 342},
		{"one machine, one drive away", layoutOf(t, p, 6), []uint16{1}, 0},
		{"one machine, two drives away", layoutOf(t, p, 6), []uint16{1, 4}, 342},
	} {
		r := judge(c.l, func(num uint16) bool { return !slices.Contains(c.away, num) }, all, o)
		if r.Doubtful != c.doubtful || (c.doubtful > 0) == strings.Contains(r.String(), "everything can be read") ||
			(c.doubtful > 0) != strings.Contains(r.String(), "342 records can perhaps not be read now") {
			t.Errorf("%s: %q", c.name, r)
		}
	}
}

// With too few drives that have room nothing says that everything can be written: not before a drive is taken out, and not after.
func TestTooFewDrivesWithRoomAreTold(t *testing.T) {
	l := hosts(t, erasure.Profile{Data: 4, Parity: 2}, 1, 1, 1, 1, 1, 1)
	infos := map[uint16]func() disk.DriveInfo{}
	for _, d := range l.Drives() {
		state := disk.Online
		if d.Num > 4 {
			state = disk.StateFull
		}
		infos[d.Num] = func() disk.DriveInfo { return disk.DriveInfo{State: state, Total: 100, Avail: 5} }
	}
	f := newFake()
	f.paths = serving(l)
	h := f.handlerOf(l, func(c *Config) {
		c.Samples = NewSampler(func() map[uint16]func() disk.DriveInfo { return infos })
	})
	if _, body := ask(t, h, http.MethodGet, "/-/admin/v1/drives"); !strings.Contains(body, `"writable": true`) {
		t.Errorf("four of six drives have room, and that suffices: %s", body)
	}
	code, body := send(t, h, http.MethodPost, "/-/admin/v1/drives/quarantine", `{"drive":1}`)
	if code != http.StatusPreconditionFailed || !strings.Contains(body, "new data answers 507 in 16 partitions") {
		t.Errorf("the quarantine: %d %s", code, body)
	}
}
