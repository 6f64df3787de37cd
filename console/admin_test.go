package console

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// layoutOf is a layout of n drives, numbered from 1.
func layoutOf(t testing.TB, profile erasure.Profile, n int) *placement.Layout {
	t.Helper()
	var list []placement.Drive
	for i := range n {
		list = append(list, placement.Drive{Num: uint16(i + 1), ID: [16]byte{byte(i + 1)}})
	}
	l, err := placement.NewLayout(list, profile, 4)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// send asks with a body.
func send(t *testing.T, h *Handler, method, target, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestTheAdminInterface(t *testing.T) {
	status := heal.Status{State: heal.StateWorking, Why: []string{"drive 2 is away"}, Backlog: 5, Jobs: []heal.Job{{Kind: heal.KindRebuild, Drive: 1,
		State: heal.JobRunning, Phase: heal.PhaseShards, Begun: time.Unix(100, 0), Done: 3, Total: 10, Remaining: 90 * time.Second, BytesPerSecond: math.NaN()}}}
	scrubs := []heal.ScrubStatus{{Drive: 1, State: heal.JobRunning, Done: 0.25, Shards: 9}}
	under := []Replacement{{ID: 7, Old: 2, New: 9, Path: "/d2", Phase: "shards"}}
	twoAway := func(f *fake) { f.paths[2].Open = false }
	const v1 = "/-/admin/v1/"
	for _, c := range []struct {
		name, method, path, body string
		change                   func(*fake)
		status                   int
		has                      []string
		did                      []string // what the operator, the healer and the tuner were told
	}{
		{name: "info", path: "info", status: 200, has: []string{`"profile": "2+2"`, `"cluster": "0102`, `"drives_online": 3`, `"drives": 4`, `"heal_state": "unknown"`, `"readable": true`, `"buckets": 3`}},
		{name: "info with a parameter", path: "info?x=1", status: 400, has: []string{"x"}},
		{name: "the drives", path: "drives", status: 200, has: []string{`"path": "/d2"`, `"role": "member"`, `"may_lose": 1`, `"replacements": []`}},
		{name: "a drive that an operator took out", path: "drives", change: func(f *fake) {
			f.paths[1].State, f.paths[1].By, f.paths[1].Why, f.paths[1].Since = node.PathQuarantined, node.ByOperator, "noisy", time.Unix(60, 0)
		}, status: 200, has: []string{`"state": "quarantined"`, `"quarantined_by": "operator"`, `"reason": "noisy"`, `"since": "1970-01-01T00:01:00Z"`}},
		{name: "a spare", path: "drives", status: 200, has: []string{`"state": "empty"`, `"number": null`}},
		{name: "the drives during a replacement", path: "drives", change: func(f *fake) { f.under = under }, status: 200, has: []string{`"role": "replaced"`, `"phase": "shards"`}},
		{name: "a member that is at no path", path: "drives", change: func(f *fake) { f.paths = f.paths[:3] }, status: 200, has: []string{"at none of the paths"}},

		{name: "replace the drive that was at the path", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, status: 200,
			has: []string{`"old": 2`, `"new": 12`}, did: []string{"check /d2", "replace 2 /d2"}},
		{name: "replace the only one that is away", method: "POST", path: "drives/replace", body: `{"path":"/spare"}`, status: 200,
			has: []string{`"old": 2`, `"path": "/spare"`}, did: []string{"check /spare", "replace 2 /spare"}},
		{name: "replace a drive that serves", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, status: 200,
			has: []string{`"old": 1`, `"old_state": "online"`}, did: []string{"check /spare", "replace 1 /spare"}},
		{name: "replace only in thought", method: "POST", path: "drives/replace", body: `{"path":"/d2","dry_run":true}`, status: 200,
			has: []string{`"dry_run": true`, `"old_state": "absent"`}, did: []string{"check /d2"}},
		{name: "replace what is being replaced", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) { f.under = under }, status: 200, has: []string{`"continued": true`, `"new": 9`}},
		{name: "replace it at another path", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":2}`, change: func(f *fake) { f.under = under }, status: 409, has: []string{"already"}},
		{name: "replace with several away", method: "POST", path: "drives/replace", body: `{"path":"/spare"}`, change: twoAway, status: 400, has: []string{"2, 3", "old"}},
		{name: "replace with all here", method: "POST", path: "drives/replace", body: `{"path":"/spare"}`, change: func(f *fake) { f.paths[1].Open = true }, status: 400, has: []string{"all drives are here"}},
		{name: "replace one too many", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, change: twoAway, status: 412, has: []string{"UNAVAILABLE", "force"}, did: []string{"check /spare"}},
		{name: "replace one too many in thought", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1,"dry_run":true}`, change: twoAway, status: 200, has: []string{`"refused": "afterwards`}, did: []string{"check /spare"}},
		{name: "replace one too many by force", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1,"force":true}`, change: twoAway, status: 200, did: []string{"check /spare", "replace 1 /spare"}},
		{name: "replace at a path that is not fit", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) { f.unfit = errs.E("x", errs.Invalid, "holds files") }, status: 400, has: []string{"holds files"}, did: []string{"check /d2"}},
		{name: "replace what is no drive", method: "POST", path: "drives/replace", body: `{"path":"/d2","old":77}`, status: 404},
		{name: "replace without a path", method: "POST", path: "drives/replace", status: 400, has: []string{"path"}},
		{name: "a body with an unknown field", method: "POST", path: "drives/replace", body: `{"path":"/d2","force_it":true}`, status: 400, has: []string{"force_it"}},
		{name: "a body that is no JSON", method: "POST", path: "drives/replace", body: `path=/d2`, status: 400},
		{name: "a body with more behind", method: "POST", path: "drives/replace", body: `{"path":"/d2"}{}`, status: 400},
		{name: "a number out of range", method: "POST", path: "drives/replace", body: `{"path":"/d2","old":70000}`, status: 400, has: []string{"old"}},
		{name: "a body that is too long", method: "POST", path: "drives/replace", body: `{"path":"` + strings.Repeat("x", maxBody) + `"}`, status: 400, has: []string{"longer"}},
		{name: "a body that does not match its signature", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) { f.torn = errs.E("auth", errs.Invalid, "no match") }, status: 400},
		{name: "a body that the signature leaves out", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) { f.hash = "" }, status: 400, has: []string{"cover the body"}},
		{name: "a query where a body belongs", method: "POST", path: "drives/replace?path=/d2", body: `{}`, status: 400, has: []string{"body"}},
		{name: "replace by somebody else", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) { f.id.Root = false }, status: 403},
		{name: "replace by GET", path: "drives/replace", status: 404},

		{name: "quarantine by number", method: "POST", path: "drives/quarantine", body: `{"drive":1,"reason":"noisy"}`, status: 200, has: []string{`"may_lose": 0`}, did: []string{"quarantine 1 noisy"}},
		{name: "quarantine by path", method: "POST", path: "drives/quarantine", body: `{"path":"/d3"}`, status: 200, did: []string{"quarantine 3 taken out of service by an operator"}},
		{name: "quarantine what is away changes nothing", method: "POST", path: "drives/quarantine", body: `{"drive":2}`, change: twoAway, status: 200, did: []string{"quarantine 2 taken out of service by an operator"}},
		{name: "quarantine one too many", method: "POST", path: "drives/quarantine", body: `{"drive":1}`, change: twoAway, status: 412, has: []string{"force"}},
		{name: "quarantine one too many by force", method: "POST", path: "drives/quarantine", body: `{"drive":1,"force":true}`, change: twoAway, status: 200, did: []string{"quarantine 1 taken out of service by an operator"}},
		{name: "quarantine in thought", method: "POST", path: "drives/quarantine", body: `{"drive":1,"dry_run":true}`, status: 200, has: []string{`"dry_run": true`}},
		{name: "quarantine nothing", method: "POST", path: "drives/quarantine", body: `{}`, status: 400},
		{name: "quarantine two names", method: "POST", path: "drives/quarantine", body: `{"drive":1,"path":"/d1"}`, status: 400},
		{name: "quarantine what is no drive", method: "POST", path: "drives/quarantine", body: `{"path":"/etc"}`, status: 404},
		{name: "quarantine a path without drive", method: "POST", path: "drives/quarantine", body: `{"path":"/spare"}`, status: 404},
		{name: "quarantine for a long reason", method: "POST", path: "drives/quarantine", body: `{"drive":1,"reason":"` + strings.Repeat("x", 201) + `"}`, status: 400},
		{name: "release", method: "POST", path: "drives/release", body: `{"drive":2}`, status: 200, did: []string{"release 2"}},
		{name: "release that fails", method: "POST", path: "drives/release", body: `{"drive":2}`, change: func(f *fake) { f.fails = errs.E("x", errs.Precondition, "not quarantined") }, status: 412, did: []string{"release 2"}},
		{name: "reopen", method: "POST", path: "drives/reopen", body: `{"path":"/d2"}`, status: 200, did: []string{"reopen /d2"}},
		{name: "reopen by number", method: "POST", path: "drives/reopen", body: `{"drive":2}`, status: 200, did: []string{"reopen /d2"}},
		{name: "reopen what is no drive", method: "POST", path: "drives/reopen", body: `{"path":"/etc"}`, status: 404},
		{name: "reopen by GET", path: "drives/reopen", status: 404},

		{name: "healing", path: "heal", change: func(f *fake) { f.heal = status }, status: 200, has: []string{`"state": "working"`, "drive 2 is away", `"kind": "rebuild"`,
			`"path": "/d1"`, `"remaining_seconds": 90`, `"bytes_per_second": 0`, `"verified": null`}},
		{name: "a complete check", method: "POST", path: "heal/start", status: 200, did: []string{"check all"}},
		{name: "a complete check with something in the body", method: "POST", path: "heal/start", body: `{"all":true}`, status: 400},
		{name: "pause", method: "POST", path: "heal/pause", status: 200, has: []string{`"paused": true`}, did: []string{"tune {true 0 false 0s}"}},
		{name: "resume", method: "POST", path: "heal/resume", change: func(f *fake) { f.settings.Paused, f.settings.Rate = true, 1<<20 }, status: 200, has: []string{`"paused": false`}, did: []string{"tune {false 1048576 false 0s}"}},
		{name: "a limit", method: "POST", path: "heal/settings", body: `{"rate_bytes_per_second":1048576}`, status: 200, has: []string{"1048576"}, did: []string{"tune {false 1048576 false 0s}"}},
		{name: "no limit", method: "POST", path: "heal/settings", body: `{"rate_bytes_per_second":0}`, change: func(f *fake) { f.settings.Rate = 1 << 20 }, status: 200, did: []string{"tune {false 0 false 0s}"}},
		{name: "a limit that is too low", method: "POST", path: "heal/settings", body: `{"rate_bytes_per_second":1}`, status: 400},
		{name: "a limit below zero", method: "POST", path: "heal/settings", body: `{"rate_bytes_per_second":-1}`, status: 400},
		{name: "a limit that is none", method: "POST", path: "heal/settings", body: `{}`, status: 400},
		{name: "settings that cannot be stored", method: "POST", path: "heal/pause", change: func(f *fake) { f.fails = errs.E("x", errs.Unavailable, "no quorum") }, status: 503, has: []string{"no quorum"}, did: []string{"tune {true 0 false 0s}"}},

		{name: "scrub", path: "scrub", change: func(f *fake) { f.scrubs = scrubs }, status: 200, has: []string{`"period_seconds": 2592000`, `"done": 0.25`, `"path": "/d1"`}},
		{name: "scrub all now", method: "POST", path: "scrub/start", status: 200, did: []string{"scrub 0"}},
		{name: "scrub one now", method: "POST", path: "scrub/start", body: `{"path":"/d3"}`, status: 200, did: []string{"scrub 3"}},
		{name: "scrub what is no drive", method: "POST", path: "scrub/start", body: `{"drive":70}`, status: 404},
		{name: "a period", method: "POST", path: "scrub/settings", body: `{"period_seconds":86400}`, status: 200, has: []string{`"period_seconds": 86400`}, did: []string{"tune {false 0 false 24h0m0s}"}},
		{name: "a pause of scrubs", method: "POST", path: "scrub/settings", body: `{"paused":true}`, status: 200, has: []string{`"paused": true`}, did: []string{"tune {false 0 true 0s}"}},
		{name: "a period that is too short", method: "POST", path: "scrub/settings", body: `{"period_seconds":1}`, status: 400},
		{name: "a period that is too long", method: "POST", path: "scrub/settings", body: `{"period_seconds":1e300}`, status: 400},
		{name: "scrub settings that are none", method: "POST", path: "scrub/settings", status: 400},

		{name: "usage", path: "usage", status: 200, has: []string{`"bucket": "b"`, `"objects": 2`, `"objects": 7`}},
		{name: "usage counted anew", path: "usage?fresh=true", status: 200, did: []string{"count"}},
		{name: "usage that is somewhat fresh", path: "usage?fresh=somewhat", status: 400},
		{name: "usage that cannot be counted", path: "usage", change: func(f *fake) { f.fails = errs.E("x", errs.Unavailable, "too few drives") }, status: 503},
		{name: "usage of nobody", path: "usage", change: func(f *fake) { f.id = auth.Identity{Anonymous: true} }, status: 403},
		{name: "an object with a strange parameter", path: "object?bucket=b&key=k&version=1", status: 400, has: []string{"version"}},
		{name: "an object with two keys", path: "object?bucket=b&key=k&key=l", status: 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			f.paths = []node.PathStatus{{Path: "/d1", Num: 1, Known: true, Open: true}, {Path: "/d2", Num: 2, Known: true, State: node.PathAbsent, Err: errors.New("gone")},
				{Path: "/d3", Num: 3, Known: true, Open: true}, {Path: "/d4", Num: 4, Known: true, Open: true}, {Path: "/spare", State: node.PathEmpty, Err: errors.New("empty")}}
			if c.change != nil {
				c.change(f)
			}
			method := c.method
			if method == "" {
				method = http.MethodGet
			}
			code, body := send(t, f.handlerOf(layoutOf(t, erasure.Profile{Data: 2, Parity: 2}, 4)), method, v1+c.path, c.body)
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

// The redundancy of every set of drives that are here, against the definition counted by hand.
func TestRedundancyIsThatOfTheWorstPartition(t *testing.T) {
	for _, p := range []erasure.Profile{{Data: 1}, {Data: 1, Parity: 1}, {Data: 2, Parity: 1}, {Data: 2, Parity: 2}, {Data: 4, Parity: 2}} {
		for _, drives := range []int{p.N(), p.N() + 2} {
			l := layoutOf(t, p, drives)
			for here := range 1 << drives {
				for _, sound := range []int{here, here &^ 1, 0} {
					on := func(set int) func(uint16) bool { return func(num uint16) bool { return set>>(num-1)&1 == 1 } }
					got := redundancyOf(l, on(here), on(sound))
					readable, writable, lose := true, true, drives
					for i := range l.Partitions() {
						g := l.Group(i)
						h, s := 0, 0
						for _, num := range g.Drives {
							if on(here)(num) {
								h++
								if on(sound)(num) {
									s++
								}
							}
						}
						readable = readable && h >= g.Quorum.R && s >= int(p.Data)
						writable = writable && h >= g.Quorum.W
						lose = max(min(lose, h-g.Quorum.R, s-int(p.Data)), 0)
					}
					if got.Readable != readable || got.MayLose != lose || got.Writable != (readable && writable) {
						t.Fatalf("%v over %d drives, here %b, sound %b: %+v; want readable %v, writable %v, may lose %d", p, drives, here, sound, got, readable, writable, lose)
					}
				}
			}
		}
	}
}

func TestEveryMetricOfHealingIsThere(t *testing.T) {
	f := newFake()
	f.heal = heal.Status{State: heal.StateDegraded, Backlog: 4, Blocked: 1, Verified: time.Unix(50, 0), Jobs: []heal.Job{
		{Kind: heal.KindRebuild, Drive: 1, State: heal.JobRunning, Done: 3, Total: 9, Remaining: time.Minute},
		{Kind: heal.KindRebuild, Drive: 1, State: heal.JobDone}}, Settings: heal.Settings{Paused: true, Rate: 5}}
	f.scrubs = []heal.ScrubStatus{{Drive: 1, State: heal.JobRunning, Done: 0.5, Bad: 2}, {Drive: 99}}
	_, body := ask(t, f.handler(), http.MethodGet, "/-/metrics")
	for _, want := range []string{`ostraka_heal_state{state="degraded"} 1`, `ostraka_heal_state{state="healthy"} 0`, "ostraka_heal_wanting_registers 4",
		"ostraka_heal_blocked_registers 1", "ostraka_heal_paused 1", "ostraka_heal_verified_timestamp_seconds 50", `ostraka_heal_job_done_registers{kind="rebuild",path="/d1"} 3`,
		`ostraka_heal_job_remaining_seconds{kind="rebuild",path="/d1"} 60`, `ostraka_scrub_progress_ratio{path="/d1"} 0.5`, `ostraka_scrub_round_findings{path="/d1"} 2`} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("the metrics do not have %s", want)
		}
	}
}

func (f *fake) Replacements() []Replacement { return f.under }
func (f *fake) CheckNew(_ context.Context, path string) error {
	f.did = append(f.did, "check "+path)
	return f.unfit
}
func (f *fake) Replace(_ context.Context, old uint16, path string) (Replacement, error) {
	f.note("replace", old, path)
	return Replacement{ID: 1, Old: old, New: 12, Path: path}, f.fails
}
func (f *fake) Quarantine(_ context.Context, num uint16, why string) error {
	f.note("quarantine", num, why)
	return f.fails
}
func (f *fake) Release(_ context.Context, num uint16) error { f.note("release", num); return f.fails }
func (f *fake) StartCheck()                                 { f.note("check all") }
func (f *fake) StartScrub(num uint16)                       { f.note("scrub", num) }
func (f *fake) Scrubs() []heal.ScrubStatus                  { return f.scrubs }
func (f *fake) Settings() heal.Settings                     { return f.settings }
func (f *fake) SetSettings(_ context.Context, s heal.Settings) error {
	f.note("tune", s)
	return f.fails
}
func (f *fake) Usage(_ context.Context, fresh bool) (*Usage, error) {
	if fresh {
		f.note("count")
	}
	return &Usage{Buckets: []BucketUsage{{Bucket: "b", Objects: 2}, {Bucket: "c", Objects: 5}}}, f.fails
}

// fakeHealer is the Healer of a fake, whose Status is taken by that of its drives.
type fakeHealer struct{ *fake }

func (f fakeHealer) Status() heal.Status { return f.heal }
