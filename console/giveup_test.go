package console

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
)

// fakePlanner knows drives that are away, and takes note of what it is asked for.
type fakePlanner struct {
	Planner
	f       *fake
	losses  []string
	fails   error
	givenUp []uint16
}

func (p *fakePlanner) GivenUp() []uint16 { return p.givenUp }

func (p *fakePlanner) JudgeGiveUp(_ context.Context, q GiveUpRequest) (*GiveUpAnswer, error) {
	a := &GiveUpAnswer{Drives: slices.Clone(q.Drives), Losses: slices.Clone(p.losses), Plan: &PlanReport{Layout: 4}}
	if len(q.Nodes) > 0 {
		a.Drives = append(a.Drives, 2)
	}
	return a, p.fails
}

func (p *fakePlanner) GiveUp(_ context.Context, drives []uint16) (*GiveUpAnswer, error) {
	p.f.note("give up", drives)
	return &GiveUpAnswer{Plan: &PlanReport{ID: 7, Layout: 4}}, nil
}

func (p *fakePlanner) Apply(_ context.Context, q ApplyRequest) (PlanReport, error) {
	p.f.note("apply", q.Layout, q.Number, q.Profile)
	return PlanReport{ID: 7, Layout: q.Layout}, p.fails
}

func (p *fakePlanner) AddDrive(_ context.Context, path string, force bool) (uint16, error) {
	p.f.note("add", path, force)
	return 14, p.fails
}

func (p *fakePlanner) RemoveNode(_ context.Context, node string) (string, error) {
	if node == "n2" {
		return "its certificate stays good", nil
	}
	return "", p.fails
}

func (p *fakePlanner) SetZone(_ context.Context, node, zone string) error {
	p.f.note("zone", node, zone)
	return p.fails
}

func TestDrivesAreGivenUpOnlyWithTheirLossesAccepted(t *testing.T) {
	for _, c := range []struct {
		name, body string
		change     func(*fake, *fakePlanner)
		status     int
		has        []string
		did        []string
	}{
		{name: "a node", body: `{"nodes":["n5"]}`, status: 200, has: []string{`"id": 7`, `"dry_run": false`}, did: []string{"give up [2]"}},
		{name: "in thought", body: `{"drives":[2],"dry_run":true}`, status: 200, has: []string{`"dry_run": true`, `"layout": 4`}},
		{name: "nothing", body: `{}`, status: 400, has: []string{"have to be named"}},
		{name: "what serves", body: `{"drives":[1]}`, change: func(_ *fake, p *fakePlanner) { p.fails = errs.E("x", errs.Precondition, "drive 1 serves") }, status: 412, has: []string{"drive 1 serves"}},
		{name: "with a loss", body: `{"drives":[2]}`, change: func(_ *fake, p *fakePlanner) { p.losses = []string{"much"} }, status: 412, has: []string{"much", "accept"}},
		{name: "with a loss, in thought", body: `{"drives":[2],"dry_run":true}`, change: func(_ *fake, p *fakePlanner) { p.losses = []string{"much"} }, status: 200, has: []string{`"refused": "something is lost`, `"much"`}},
		{name: "with a loss that is accepted", body: `{"drives":[2],"accept_loss":true}`, change: func(_ *fake, p *fakePlanner) { p.losses = []string{"much"} }, status: 200, has: []string{`"much"`}, did: []string{"give up [2]"}},
		{name: "what has shards that others lack", body: `{"drives":[2]}`, change: func(f *fake, _ *fakePlanner) {
			f.outstanding.Wants = []heal.Want{{Partition: 1, Drives: []uint16{3, 4}, Registers: 9}}
		}, status: 412, has: []string{"9 records can perhaps be read only with them"}},
		{name: "what lacks shards itself", body: `{"drives":[2]}`, change: func(f *fake, _ *fakePlanner) {
			f.outstanding.Wants = []heal.Want{{Partition: 1, Drives: []uint16{2}, Registers: 9}}
		}, status: 200, did: []string{"give up [2]"}},
		{name: "while another is not up to date", body: `{"drives":[2]}`, change: func(f *fake, _ *fakePlanner) { f.outstanding.Behind = []uint16{4} }, status: 412, has: []string{"drives 4", "up to date"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			f.paths = []node.PathStatus{{Path: "/d1", Num: 1, Known: true, Open: true}, {Path: "/d2", Num: 2, Known: true, State: node.PathAbsent, Err: errors.New("gone")},
				{Path: "/d3", Num: 3, Known: true, Open: true}, {Path: "/d4", Num: 4, Known: true, Open: true}}
			p := &fakePlanner{f: f}
			if c.change != nil {
				c.change(f, p)
			}
			h := f.handlerOf(layoutOf(t, erasure.Profile{Data: 2, Parity: 2}, 4), func(c *Config) { c.Planner = p })
			code, body := send(t, h, http.MethodPost, "/-/admin/v1/drives/give-up", c.body)
			if code != c.status {
				t.Errorf("status %d, want %d: %s", code, c.status, body)
			}
			for _, want := range c.has {
				if !strings.Contains(body, want) {
					t.Errorf("the answer does not have %s:\n%s", want, body)
				}
			}
			if !slices.Equal(f.did, c.did) {
				t.Errorf("done: %q, want %q", f.did, c.did)
			}
		})
	}
}

func TestADriveThatWasGivenUpIsListedAsSuch(t *testing.T) {
	f := newFake()
	f.paths = []node.PathStatus{{Path: "/d1", Num: 1, Known: true, Open: true}}
	h := f.handlerOf(layoutOf(t, erasure.Profile{Data: 1, Parity: 1}, 2), func(c *Config) { c.Planner = &fakePlanner{f: f, givenUp: []uint16{2}} })
	_, body := send(t, h, http.MethodGet, "/-/admin/v1/drives", "")
	var l DriveList
	if err := json.Unmarshal([]byte(body), &l); err != nil || len(l.Drives) != 2 || l.Drives[0].Role != "member" || l.Drives[1].Role != "given up" {
		t.Errorf("got %+v, %v", l.Drives, err)
	}
}

func TestTheZoneOfANodeIsChangedByItsName(t *testing.T) {
	f := newFake()
	h := f.handlerOf(layoutOf(t, erasure.Profile{Data: 1, Parity: 1}, 2), func(c *Config) { c.Planner = &fakePlanner{f: f} })
	if code, body := send(t, h, http.MethodPost, "/-/admin/v1/nodes/zone", `{"node":"n1","zone":"b"}`); code != http.StatusOK {
		t.Errorf("status %d: %s", code, body)
	}
	if code, body := send(t, h, http.MethodPost, "/-/admin/v1/nodes/zone", `{"zone":"b"}`); code != http.StatusBadRequest {
		t.Errorf("without a node: status %d: %s", code, body)
	}
	if !slices.Equal(f.did, []string{"zone n1 b"}) {
		t.Errorf("done: %q", f.did)
	}
}

func TestTheAnswerToARemovalHasWhatIsToBeKnown(t *testing.T) {
	f := newFake()
	h := f.handlerOf(layoutOf(t, erasure.Profile{Data: 1, Parity: 1}, 2), func(c *Config) { c.Planner = &fakePlanner{f: f} })
	for node, warns := range map[string]bool{"n1": false, "n2": true} {
		code, body := send(t, h, http.MethodPost, "/-/admin/v1/nodes/remove", `{"node":"`+node+`"}`)
		if code != http.StatusOK || strings.Contains(body, "its certificate stays good") != warns {
			t.Errorf("%s: %d %s", node, code, body)
		}
	}
}

func TestAPlanIsAppliedByItsNumberOrThatOfTheLayout(t *testing.T) {
	for _, c := range []struct {
		name, body string
		fails      error
		status     int
		did        []string
	}{
		{"by its number", `{"plan_number":"377-9f2c41d0","profile":"4+4"}`, nil, 200, []string{"apply 377 377-9f2c41d0 4+4"}},
		{"by both", `{"layout":377,"plan_number":"377-9f2c41d0"}`, nil, 200, []string{"apply 377 377-9f2c41d0 "}},
		{"by the layout", `{"layout":377}`, nil, 200, []string{"apply 377  "}},
		{"by two that differ", `{"layout":378,"plan_number":"377-9f2c41d0"}`, nil, 400, nil},
		{"by none", `{"profile":"4+4"}`, nil, 400, nil},
		{"by half a number", `{"plan_number":"377-9f2c"}`, nil, 400, nil},
		{"by no number", `{"plan_number":"377"}`, nil, 400, nil},
		{"when it is another", `{"plan_number":"377-9f2c41d0"}`, errs.E("x", errs.Precondition, "plan again"), 412, []string{"apply 377 377-9f2c41d0 "}},
	} {
		f := newFake()
		h := f.handlerOf(layoutOf(t, erasure.Profile{Data: 1, Parity: 1}, 2), func(to *Config) { to.Planner = &fakePlanner{f: f, fails: c.fails} })
		if code, body := send(t, h, http.MethodPost, "/-/admin/v1/layout/apply", c.body); code != c.status || !slices.Equal(f.did, c.did) {
			t.Errorf("%s: status %d, done %q; want %d, %q: %s", c.name, code, f.did, c.status, c.did, body)
		}
	}
}

func TestADriveIsAddedByForceOnlyIfThatIsAsked(t *testing.T) {
	f := newFake()
	h := f.handlerOf(layoutOf(t, erasure.Profile{Data: 1, Parity: 1}, 2), func(c *Config) { c.Planner = &fakePlanner{f: f} })
	for _, body := range []string{`{"path":"/d3"}`, `{"path":"/d3","force":true}`} {
		if code, answer := send(t, h, http.MethodPost, "/-/admin/v1/drives/add", body); code != http.StatusOK || !strings.Contains(answer, `"drive": 14`) {
			t.Errorf("%s: status %d: %s", body, code, answer)
		}
	}
	if !slices.Equal(f.did, []string{"add /d3 false", "add /d3 true"}) {
		t.Errorf("done: %q", f.did)
	}
}
