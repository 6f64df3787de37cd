package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
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

func TestADirectoryThatIsNotThereIsListedOnceWithTheDriveThatWas(t *testing.T) {
	absent := DriveStatus{State: "absent"}
	one := 1
	for _, c := range []struct {
		name    string
		list    []DriveStatus
		was     map[int]uint16
		nowhere map[uint16]string
		want    []int // numbers, 0: none
	}{
		{"two that were there from the beginning", []DriveStatus{{Number: &one, State: "online"}, absent, absent}, map[int]uint16{0: 1, 1: 3, 2: 2}, map[uint16]string{1: "", 2: "", 3: ""}, []int{1, 3, 2}},
		{"one that came later, and is the only one", []DriveStatus{{Number: &one, State: "online"}, absent}, map[int]uint16{0: 1, 1: 2}, map[uint16]string{1: "", 7: ""}, []int{1, 7}},
		{"two that came later", []DriveStatus{absent, absent}, map[int]uint16{0: 1, 1: 2}, map[uint16]string{7: "", 8: ""}, []int{0, 0}},
		{"one that serves elsewhere by now", []DriveStatus{absent, {Number: &one, State: "online"}}, map[int]uint16{0: 1}, map[uint16]string{1: ""}, []int{0, 1}},
		{"an empty directory is no drive that is away", []DriveStatus{{State: "empty"}}, map[int]uint16{0: 2}, map[uint16]string{2: ""}, []int{0}},
		{"a drive of another node", []DriveStatus{{State: "absent", Node: "a"}}, map[int]uint16{0: 2}, map[uint16]string{2: "b"}, []int{0}},
	} {
		attribute(c.list, c.was, c.nowhere)
		for i, want := range c.want {
			if n := c.list[i].Number; n == nil && want != 0 || n != nil && *n != want {
				t.Errorf("%s: row %d is of drive %v, want %d", c.name, i, n, want)
			}
		}
	}
}

func TestTheAdminInterface(t *testing.T) {
	status := heal.Status{State: heal.StateWorking, Why: []string{"drive 2 is away"}, Backlog: 5, Jobs: []heal.Job{{Kind: heal.KindRebuild, Drive: 1,
		State: heal.JobRunning, Phase: heal.PhaseShards, Begun: time.Unix(100, 0), Done: 3, Total: 10, Remaining: 90 * time.Second, BytesPerSecond: math.NaN()}}}
	scrubs := []heal.ScrubStatus{{Drive: 1, State: heal.JobRunning, Done: 0.25, Shards: 9}}
	under := []Replacement{{ID: 7, Old: 2, New: 9, Path: "/d2", Phase: "shards"}}
	twoAway := func(f *fake) { f.paths[2].Open = false }
	allHere := func(f *fake) { f.paths[1].Open, f.paths[1].State, f.paths[1].Err = true, node.PathOpen, nil }
	// with all drives here, registers of each partition want a repair of the same drives.
	wants := func(drives ...uint16) func(f *fake) {
		return func(f *fake) {
			allHere(f)
			f.outstanding.Wants = []heal.Want{{Partition: 1, Drives: drives, Registers: 2}}
		}
	}
	behind := func(num uint16) func(f *fake) {
		return func(f *fake) { allHere(f); f.outstanding.Behind = []uint16{num} }
	}
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
		{name: "the drives of a store that has lost data", path: "drives", change: func(f *fake) { f.lost = []metadata.Address{{Bucket: 3}} }, status: 200, has: []string{`"doubtful": 1`}},
		{name: "a spare", path: "drives", status: 200, has: []string{`"state": "empty"`, `"number": null`}},
		{name: "the drives during a replacement", path: "drives", change: func(f *fake) { f.under = under }, status: 200, has: []string{`"role": "replaced"`, `"phase": "shards"`}},
		{name: "a member that is at no path", path: "drives", change: func(f *fake) { f.paths = f.paths[:3] }, status: 200, has: []string{"at none of the paths"}},

		{name: "replace the drive that was at the path", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, status: 200,
			has: []string{`"old": 2`, `"new": 12`}, did: []string{"check /d2", "replace 2 /d2"}},
		{name: "replace the only one that is away", method: "POST", path: "drives/replace", body: `{"path":"/spare"}`, status: 200,
			has: []string{`"old": 2`, `"path": "/spare"`}, did: []string{"check /spare", "replace 2 /spare"}},
		{name: "replace a drive that serves", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, change: allHere, status: 200,
			has: []string{`"old": 1`, `"old_state": "online"`}, did: []string{"check /spare", "replace 1 /spare"}},
		{name: "replace only in thought", method: "POST", path: "drives/replace", body: `{"path":"/d2","dry_run":true}`, status: 200,
			has: []string{`"dry_run": true`, `"old_state": "absent"`}, did: []string{"check /d2"}},
		{name: "replace what is being replaced", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) { f.under = under }, status: 200, has: []string{`"continued": true`, `"new": 9`}},
		{name: "replace it at another path", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":2}`, change: func(f *fake) { f.under = under }, status: 409, has: []string{"already"}},
		{name: "replace with several away", method: "POST", path: "drives/replace", body: `{"path":"/spare"}`, change: twoAway, status: 400, has: []string{"2, 3", "old"}},
		{name: "replace with all here", method: "POST", path: "drives/replace", body: `{"path":"/spare"}`, change: func(f *fake) { f.paths[1].Open = true }, status: 400, has: []string{"all drives are here"}},
		{name: "replace one too many", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, change: twoAway, status: 412, has: []string{"UNAVAILABLE", "force"}, did: []string{"check /spare"}},
		{name: "replace one too many in thought", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1,"dry_run":true}`, change: twoAway, status: 200, has: []string{`"refused": "afterwards`}, did: []string{"check /spare"}},
		{name: "replace one without which nothing can be written", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, status: 412, has: []string{"writes need 3", "force"}, did: []string{"check /spare"}},
		{name: "replace a drive that serves while others want repair", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, change: wants(3), status: 412, has: []string{"2 records to be repaired"}, did: []string{"check /spare"}},
		{name: "replace a drive that serves while healing does not know which want repair", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, change: wants(), status: 412, has: []string{"to be repaired"}, did: []string{"check /spare"}},
		{name: "replace the drive that alone wants repair", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, change: wants(1), status: 200, did: []string{"check /spare", "replace 1 /spare"}},
		{name: "replace a drive that serves while another is not up to date", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1}`, change: behind(4), status: 412, has: []string{"drives 4", "up to date"}, did: []string{"check /spare"}},
		{name: "replace it by force", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1,"force":true}`, change: behind(4), status: 200, did: []string{"check /spare", "replace 1 /spare"}},
		{name: "replace the drive that is not up to date", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":4}`, change: behind(4), status: 200, did: []string{"check /spare", "replace 4 /spare"}},
		{name: "replace a dead drive that missed writes", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) {
			f.outstanding.Wants = []heal.Want{{Partition: 1, Drives: []uint16{2}, Registers: 9}}
		}, status: 200, has: []string{"9 records to be repaired"}, did: []string{"check /d2", "replace 2 /d2"}},
		{name: "replace a dead drive that has what others lack", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) {
			f.outstanding.Wants = []heal.Want{{Partition: 1, Drives: []uint16{3, 4}, Registers: 9}}
		}, status: 412, has: []string{"9 records can perhaps be read only with drive 2"}, did: []string{"check /d2"}},
		{name: "a pause of healing hides no other warning", method: "POST", path: "drives/replace", body: `{"path":"/spare","old":1,"dry_run":true}`, change: func(f *fake) { wants(3)(f); f.heal.Settings.Paused = true }, status: 200,
			has: []string{"healing is paused", "2 records to be repaired", `"refused": "2 records`}, did: []string{"check /spare"}},
		{name: "replace where no disk seems to be mounted", method: "POST", path: "drives/replace", body: `{"path":"/d2"}`, change: func(f *fake) { f.doubt = "nothing is mounted" }, status: 412, has: []string{"nothing is mounted"}, did: []string{"check /d2"}},
		{name: "replace there by force", method: "POST", path: "drives/replace", body: `{"path":"/d2","force":true}`, change: func(f *fake) { f.doubt = "nothing is mounted" }, status: 200, has: []string{`"nothing is mounted"`}, did: []string{"check /d2", "replace 2 /d2"}},
		{name: "replace by an old plan", method: "POST", path: "drives/replace", body: `{"path":"/d2","force":true,"plan":"00"}`, status: 412, has: []string{"look again"}, did: []string{"check /d2"}},
		{name: "a body that is a list", method: "POST", path: "drives/replace", body: `[1]`, status: 400, has: []string{"object is wanted"}},
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

		{name: "quarantine by number", method: "POST", path: "drives/quarantine", body: `{"drive":1,"reason":"noisy"}`, change: allHere, status: 200, has: []string{`"may_lose": 1`}, did: []string{"quarantine 1 noisy"}},
		{name: "quarantine by path", method: "POST", path: "drives/quarantine", body: `{"path":"/d3"}`, change: allHere, status: 200, did: []string{"quarantine 3 taken out of service by an operator"}},
		{name: "quarantine what is away changes nothing", method: "POST", path: "drives/quarantine", body: `{"drive":2}`, change: twoAway, status: 200, did: []string{"quarantine 2 taken out of service by an operator"}},
		{name: "quarantine one too many", method: "POST", path: "drives/quarantine", body: `{"drive":1}`, change: twoAway, status: 412, has: []string{"force"}},
		{name: "quarantine one without which nothing can be written", method: "POST", path: "drives/quarantine", body: `{"drive":1}`, status: 412, has: []string{"writes need 3"}},
		{name: "quarantine while others want repair", method: "POST", path: "drives/quarantine", body: `{"drive":1}`, change: wants(3), status: 412, has: []string{"2 records to be repaired"}},
		{name: "quarantine while another is not up to date", method: "POST", path: "drives/quarantine", body: `{"drive":1}`, change: behind(2), status: 412, has: []string{"drives 2"}},
		{name: "quarantine for a reason that reverses the line", method: "POST", path: "drives/quarantine", body: `{"drive":1,"reason":"a\u202eb"}`, status: 400, has: []string{"printed"}},
		{name: "quarantine for a reason with a control character above ASCII", method: "POST", path: "drives/quarantine", body: `{"drive":1,"reason":"a\u009bb"}`, status: 400, has: []string{"printed"}},
		{name: "quarantine for a reason in words of other languages", method: "POST", path: "drives/quarantine", body: `{"drive":1,"reason":"laut – schlägt"}`, change: allHere, status: 200, did: []string{"quarantine 1 laut – schlägt"}},
		{name: "quarantine one too many by force", method: "POST", path: "drives/quarantine", body: `{"drive":1,"force":true}`, change: twoAway, status: 200, did: []string{"quarantine 1 taken out of service by an operator"}},
		{name: "quarantine in thought", method: "POST", path: "drives/quarantine", body: `{"drive":1,"dry_run":true}`, status: 200, has: []string{`"dry_run": true`}},
		{name: "quarantine nothing", method: "POST", path: "drives/quarantine", body: `{}`, status: 400},
		{name: "quarantine two names", method: "POST", path: "drives/quarantine", body: `{"drive":1,"path":"/d1"}`, status: 400},
		{name: "quarantine what is no drive", method: "POST", path: "drives/quarantine", body: `{"path":"/etc"}`, status: 404},
		{name: "quarantine a path without drive", method: "POST", path: "drives/quarantine", body: `{"path":"/spare"}`, status: 404},
		{name: "quarantine for a long reason", method: "POST", path: "drives/quarantine", body: `{"drive":1,"reason":"` + strings.Repeat("x", 201) + `"}`, status: 400},
		{name: "release", method: "POST", path: "drives/release", body: `{"drive":2}`, status: 200, did: []string{"release 2"}},
		{name: "release that fails", method: "POST", path: "drives/release", body: `{"drive":2}`, change: func(f *fake) { f.fails = errs.E("x", errs.Precondition, "not quarantined") }, status: 412, did: []string{"release 2"}},
		{name: "release what was replaced", method: "POST", path: "drives/release", body: `{"drive":2}`, change: func(f *fake) { f.under = under }, status: 400, has: []string{"never serves again"}},
		{name: "release what was replaced, in thought", method: "POST", path: "drives/release", body: `{"drive":2,"dry_run":true}`, change: func(f *fake) { f.under = under }, status: 400, has: []string{"never serves again"}},
		{name: "reopen", method: "POST", path: "drives/reopen", body: `{"path":"/d2"}`, status: 200, did: []string{"reopen /d2"}},
		{name: "reopen by number", method: "POST", path: "drives/reopen", body: `{"drive":2}`, status: 200, did: []string{"reopen /d2"}},
		{name: "reopen what is no drive", method: "POST", path: "drives/reopen", body: `{"path":"/etc"}`, status: 404},
		{name: "reopen by GET", path: "drives/reopen", status: 404},

		{name: "recover", method: "POST", path: "recover", status: 200, has: []string{`"generation": 1`, `"dry_run": false`, `"away": []`}, did: []string{"recover"}},
		{name: "recover in thought", method: "POST", path: "recover", body: `{"dry_run":true}`, status: 200, has: []string{`"dry_run": true`, `"here": false`}},
		{name: "recover what has a leader", method: "POST", path: "recover", change: func(f *fake) { f.fails = errs.E("x", errs.Precondition, "a leader") }, status: 412, has: []string{"a leader"}, did: []string{"recover"}},
		{name: "recover by somebody else", method: "POST", path: "recover", change: func(f *fake) { f.id.Root = false }, status: 403},
		{name: "recover by GET", path: "recover", status: 404},

		{name: "healing", path: "heal", change: func(f *fake) { f.heal = status }, status: 200, has: []string{`"state": "working"`, "drive 2 is away", `"kind": "rebuild"`,
			`"path": "/d1"`, `"remaining_seconds": 90`, `"bytes_per_second": 0`, `"verified": null`}},
		{name: "data that is lost", path: "heal", change: func(f *fake) { f.lost = []metadata.Address{{Bucket: 3, Key: []byte("boat.jpg")}} }, status: 200, has: []string{`"bucket_id": 3`, `"key": "boat.jpg"`, `"more_lost": true`}},
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
		{name: "scrub a drive that is away", method: "POST", path: "scrub/start", body: `{"path":"/d2"}`, status: 503, has: []string{"drive 2 at /d2 is not in service"}},
		{name: "scrub a drive that was replaced", method: "POST", path: "scrub/start", body: `{"drive":3}`, change: func(f *fake) { f.under = []Replacement{{Old: 3, New: 9}} }, status: 503},
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
		{name: "an object that is read", method: "POST", path: "object/verify", body: `{"bucket":"b","key":"k"}`, change: func(f *fake) { f.inspect = &object.Inspection{} }, status: 200, has: []string{`"verified": true`}},
		{name: "an object that is read by GET", path: "object?bucket=b&key=k&verify=true", status: 400, has: []string{"verify"}},
		{name: "an object that is read, without a key", method: "POST", path: "object/verify", body: `{"bucket":"b"}`, status: 400},
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

// Data that were written when partitions had one drive are lost with it, until they are re-coded.
func TestRedundancyCountsDataOfBeforePartitionsBecameWider(t *testing.T) {
	l := layoutOf(t, erasure.Profile{Data: 1}, 1)
	for i := range 3 {
		var err error
		if l, err = l.WithDrive(placement.Drive{Num: uint16(50 + i), ID: [16]byte{50, byte(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := l.WithProfile(erasure.Profile{Data: 2, Parity: 2}, erasure.Profile{Data: 2, Parity: 1})
	if err != nil {
		t.Fatal(err)
	}
	var moves []placement.Move
	for p := range l.Partitions() {
		for i := range 3 {
			moves = append(moves, placement.Move{Partition: p, Position: 1 + i, To: uint16(50 + i)})
		}
	}
	if l, err = l.Move(moves, slices.Repeat([]int{1}, len(moves))); err != nil {
		t.Fatal(err)
	}
	first := l.Group(0).Drives[0]
	all := func(uint16) bool { return true }
	without := func(gone uint16) func(uint16) bool { return func(num uint16) bool { return num != gone } }
	for _, c := range []struct {
		name     string
		here     func(uint16) bool
		old      bool
		readable bool
		lose     int
	}{
		{"all are here, and old data may be", all, true, true, 0},
		{"all are here, and all is re-coded", all, false, true, 2},
		{"a newcomer is away", without(51), true, true, 0},
		{"the first drive is away", without(first), true, false, 0},
		{"the first drive is away, and all is re-coded", without(first), false, true, 1},
	} {
		if got := redundancyOf(l, c.here, all, c.old); got.Readable != c.readable || got.MayLose != c.lose {
			t.Errorf("%s: readable %v, %d may be lost; want %v, %d", c.name, got.Readable, got.MayLose, c.readable, c.lose)
		}
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
					got := redundancyOf(l, on(here), on(sound), false)
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

// What is outstanding counts against what may be lost, and is said.
func TestRedundancyCountsWhatIsOutstanding(t *testing.T) {
	l := layoutOf(t, erasure.Profile{Data: 4, Parity: 2}, 6)
	all := func(uint16) bool { return true }
	want := func(drives ...uint16) []heal.Want { return []heal.Want{{Partition: 2, Drives: drives, Registers: 3}} }
	for _, c := range []struct {
		name string
		away uint16
		o    heal.Outstanding
		lose int
		says string
	}{
		{"nothing", 0, heal.Outstanding{}, 2, "everything can be read and written; 2 further drives may be lost"},
		{"one drive lacks records", 0, heal.Outstanding{Wants: want(1)}, 1, "1 further drive may be lost, with 3 records to be repaired"},
		{"two drives do", 0, heal.Outstanding{Wants: want(1, 5)}, 0, "NO further drive may be lost, with 3 records to be repaired"},
		{"three drives do", 0, heal.Outstanding{Wants: want(1, 3, 5)}, 0, "3 records can perhaps not be read now, all else can be read"},
		{"some drive does", 0, heal.Outstanding{Wants: want()}, 0, "NO further drive"},
		{"different ones do", 0, heal.Outstanding{Wants: append(want(1), want(2)...)}, 1, "with 6 records"},
		{"the one that is away does", 1, heal.Outstanding{Wants: want(1)}, 1, "1 further drive may be lost"},
		{"another than the one that is away does", 1, heal.Outstanding{Wants: want(2)}, 0, "NO further drive"},
		{"a drive is behind", 0, heal.Outstanding{Behind: []uint16{3}}, 1, "1 drive to be brought up to date"},
		{"drives do not tell", 0, heal.Outstanding{Behind: []uint16{3}, Silent: []uint16{3, 4}}, 0, "2 drives to be"},
		{"there is more than is known", 0, heal.Outstanding{More: true}, 0, "NO further drive"},
	} {
		got := judge(l, func(num uint16) bool { return num != c.away }, all, c.o)
		if got.MayLose != c.lose || !strings.Contains(got.String(), c.says) || !got.Readable {
			t.Errorf("%s: %+v, %q; want %d and %q", c.name, got, got, c.lose, c.says)
		}
	}
}

// What a dry run showed is what is done, or nothing is.
func TestAPlanHoldsOnlyWhileThingsAreAsTheyWere(t *testing.T) {
	for name, later := range map[string]func(*fake){"": func(*fake) {}, "look again": func(f *fake) { f.paths[0].Open = false }} {
		f := newFake()
		f.paths = nil
		for i := range 6 {
			f.paths = append(f.paths, node.PathStatus{Path: fmt.Sprintf("/d%d", i+1), Num: uint16(i + 1), Known: true, Open: true})
		}
		h := f.handlerOf(layoutOf(t, erasure.Profile{Data: 2, Parity: 2}, 6))
		code, body := send(t, h, http.MethodPost, "/-/admin/v1/drives/replace", `{"path":"/spare","old":6,"dry_run":true}`)
		var a ReplaceAnswer
		if err := json.Unmarshal([]byte(body), &a); err != nil || code != http.StatusOK || a.Plan == "" {
			t.Fatalf("the plan: %d %s", code, body)
		}
		later(f)
		code, body = send(t, h, http.MethodPost, "/-/admin/v1/drives/replace", `{"path":"/spare","old":6,"force":true,"plan":"`+a.Plan+`"}`)
		if want := map[bool]int{true: 200, false: 412}[name == ""]; code != want || !strings.Contains(body, name) {
			t.Errorf("afterwards: %d %s, want %d", code, body, want)
		}
	}
}

func TestEveryMetricOfHealingIsThere(t *testing.T) {
	f := newFake()
	f.heal = heal.Status{State: heal.StateDegraded, Backlog: 4, Blocked: 1, Verified: time.Unix(50, 0), Jobs: []heal.Job{
		{Kind: heal.KindRebuild, Drive: 1, State: heal.JobRunning, Done: 3, Total: 9, Remaining: time.Minute},
		{Kind: heal.KindRebuild, Drive: 1, State: heal.JobDone}}, Settings: heal.Settings{Paused: true, Rate: 5}}
	f.scrubs = []heal.ScrubStatus{{Drive: 1, State: heal.JobRunning, Done: 0.5, Bad: 2}, {Drive: 99}}
	f.lost = []metadata.Address{{Bucket: 1}}
	_, body := ask(t, f.handler(), http.MethodGet, "/-/metrics")
	for _, want := range []string{`ostraka_heal_state{state="degraded"} 1`, `ostraka_heal_state{state="healthy"} 0`, "ostraka_heal_wanting_registers 4",
		"ostraka_heal_blocked_registers 1", "ostraka_heal_paused 1", "ostraka_heal_lost_registers 1", "ostraka_heal_verified_timestamp_seconds 50", `ostraka_heal_job_done_registers{kind="rebuild",path="/d1"} 3`,
		`ostraka_heal_job_remaining_seconds{kind="rebuild",path="/d1"} 60`, `ostraka_scrub_progress_ratio{path="/d1"} 0.5`, `ostraka_scrub_round_findings{path="/d1"} 2`} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("the metrics do not have %s", want)
		}
	}
}

func (f *fake) Replacements() []Replacement { return f.under }
func (f *fake) CheckNew(_ context.Context, path string) (string, error) {
	f.did = append(f.did, "check "+path)
	return f.doubt, f.unfit
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
func (f *fake) PlanRecovery(context.Context) (Recovery, error) {
	return Recovery{Generation: 1, Former: []Voter{{Drive: 2}}, Drives: []uint16{1}}, f.fails
}
func (f *fake) Recover(ctx context.Context) (Recovery, error) {
	f.note("recover")
	return f.PlanRecovery(ctx)
}
func (f *fake) StartCheck()                { f.note("check all") }
func (f *fake) StartScrub(num uint16)      { f.note("scrub", num) }
func (f *fake) Scrubs() []heal.ScrubStatus { return f.scrubs }
func (f *fake) Settings() heal.Settings    { return f.settings }
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

func (f *fake) Outstanding(context.Context) heal.Outstanding { return f.outstanding }
func (f *fake) Lost() ([]metadata.Address, bool)             { return f.lost, len(f.lost) > 0 }
