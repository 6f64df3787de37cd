package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/internal/config"
)

var rootEnv = []string{"OSTRAKA_ACCESS_KEY=rootaccess", "OSTRAKA_SECRET_KEY=rootsecretkey"}

// store is a whole server in this process, over directories of its own.
type store struct {
	t    *testing.T
	dirs []string
	url  string
	stop func()
}

// newStore makes directories and serves a store of 2+2 from the first four of n.
func newStore(t *testing.T, n int) *store {
	t.Helper()
	root := t.TempDir()
	s := &store{t: t}
	for i := range n {
		dir := filepath.Join(root, "d"+string(rune('1'+i)))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s.dirs = append(s.dirs, dir)
	}
	s.start(4)
	t.Cleanup(func() { s.stop() })
	return s
}

// start serves from the first n directories.
func (s *store) start(n int) {
	s.t.Helper()
	cfg := &config.Server{Drives: s.dirs[:n], RootAccessKey: "rootaccess", RootSecretKey: "rootsecretkey", Region: "us-east-1", ShutdownTimeout: 20 * time.Second}
	st, err := open(s.t.Context(), cfg, nil, func(string) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatal(err)
	}
	h := httptest.NewServer(st.handler)
	s.url = h.URL
	s.stop = sync.OnceFunc(func() {
		h.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := st.close(ctx); err != nil {
			s.t.Errorf("closing the store: %v", err)
		}
	})
}

// admin runs an admin command against the store.
func (s *store) admin(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	return adminAt(s.t, s.url, process{}, args...)
}

// adminAt runs an admin command against an endpoint, as the process p.
func adminAt(t *testing.T, url string, p process, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	p.args = append([]string{"admin", "--endpoint", url}, args...)
	p.environ, p.stdout, p.stderr, p.interrupted, p.lookEvery = rootEnv, &out, &errOut, func() {}, 5*time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	code = run(ctx, p)
	return code, out.String(), errOut.String()
}

// compared waits until no drive is behind the others, for all that is known.
func (s *store) compared() {
	s.t.Helper()
	for range 600 {
		var l console.DriveList
		code, out, stderr := s.admin("drive", "list", "--json")
		if err := json.Unmarshal([]byte(out), &l); err != nil || code != 0 {
			s.t.Fatalf("the drives: code %d, %v, %s", code, err, stderr)
		}
		if l.Redundancy.Behind+l.Redundancy.Wanting == 0 {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-s.t.Context().Done():
		}
	}
	s.t.Fatal("after a minute drives are not compared, or records to be repaired")
}

// must runs a command that has to end well and to print all of has.
func (s *store) must(has []string, args ...string) string {
	s.t.Helper()
	code, out, stderr := s.admin(args...)
	if code != 0 {
		s.t.Errorf("admin %q: code %d, %s%s", args, code, out, stderr)
	}
	for _, want := range has {
		if !strings.Contains(out, want) {
			s.t.Errorf("admin %q does not print %q:\n%s", args, want, out)
		}
	}
	return out
}

func TestTheAdminCommandsAgainstAServer(t *testing.T) {
	s := newStore(t, 4)
	s.compared()
	s.must([]string{"2+2", "4 of 4 online", "2 further drives may be lost"}, "info")
	s.must([]string{"ready", "online", s.dirs[3]}, "status")
	s.must([]string{"member", s.dirs[0], "4 of 4 drives"}, "drive", "list")
	s.must([]string{"health", "outstanding"}, "heal", "status")
	s.must([]string{"30d00h", s.dirs[2]}, "scrub", "status")

	s.must([]string{"total", "counted at"}, "usage")

	t.Run("settings hold over a restart", func(t *testing.T) {
		s.must([]string{"50 MiB/s"}, "heal", "limit", "50MiB/s")
		s.must([]string{"paused         true"}, "heal", "pause")
		s.must([]string{"14d00h"}, "scrub", "period", "14d")
		s.must([]string{"paused  true"}, "scrub", "pause")
		s.stop()
		s.start(4)
		s.must([]string{"50 MiB/s", "paused         true"}, "heal", "status")
		s.must([]string{"14d00h", "paused  true"}, "scrub", "status")
		s.must([]string{"limit          none"}, "heal", "limit", "off")
		s.must([]string{"paused         false"}, "heal", "resume")
		s.must([]string{"30d00h"}, "scrub", "period", "default")
		s.must([]string{"paused  false"}, "scrub", "resume")
	})

	t.Run("every command answers JSON", func(t *testing.T) {
		for _, args := range [][]string{{"info"}, {"status"}, {"drive", "list"}, {"heal", "status"}, {"heal", "start"}, {"heal", "pause"}, {"heal", "resume"},
			{"heal", "limit", "off"}, {"scrub", "status"}, {"scrub", "start"}, {"scrub", "start", s.dirs[0]}, {"scrub", "pause"}, {"scrub", "resume"},
			{"scrub", "period", "30d"}, {"drive", "quarantine", "1", "--dry-run"}, {"heal", "status", "--watch"}, {"usage", "--fresh"}} {
			code, out, stderr := s.admin(append(args, "--json")...)
			if code != 0 || out == "" {
				t.Errorf("%q: code %d, %s", args, code, stderr)
			}
			for d := json.NewDecoder(strings.NewReader(out)); ; {
				var v map[string]any
				if err := d.Decode(&v); err == io.EOF {
					break
				} else if err != nil {
					t.Errorf("%q prints %q: %v", args, out, err)
					break
				}
			}
		}
	})

	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"a new drive where one serves", []string{"drive", "replace", s.dirs[0]}, 1, "in service"},
		{"a new drive at a strange path", []string{"drive", "replace", "/no/such/path", "--old", "1"}, 2, "not one of the paths"},
		{"a new drive without need", []string{"drive", "replace", "/no/such/path"}, 2, "all drives are here"},
		{"a drive that is none", []string{"drive", "quarantine", "77"}, 2, "no drive 77"},
		{"waiting and not waiting", []string{"drive", "replace", s.dirs[0], "--wait", "--no-wait"}, 2, "exclude"},
		{"a rate that is none", []string{"heal", "limit", "fast"}, 2, "50MiB"},
		{"a rate that is too low", []string{"heal", "limit", "10"}, 2, "64 KiB"},
		{"a period that is none", []string{"scrub", "period", "soon"}, 2, "14d"},
		{"a period that is too short", []string{"scrub", "period", "1m"}, 2, "1h"},
		{"an object that is not there", []string{"object", "inspect", "no-bucket/key"}, 2, "bucket"},
		{"a scrub of a drive that is none", []string{"scrub", "start", "/no/such/drive"}, 2, "drive list"},
		{"a flag that is none", []string{"drive", "list", "--colour"}, 2, "ostraka: unknown flag: --colour; see ostraka admin drive list --help\n"},
		{"a command that is none", []string{"drive", "destroy"}, 2, "destroy"},
	} {
		code, stdout, stderr := s.admin(c.args...)
		if code != c.code || !strings.Contains(stderr, c.says) || stdout != "" {
			t.Errorf("%s: code %d, printed %q and %q; want %d and %q", c.name, code, stdout, stderr, c.code, c.says)
		}
	}
}

// scripted answers the admin interface from a script: one list of answers for each path, the last
// of which stays. It does not look at signatures.
type scripted struct {
	mu    sync.Mutex // guards all below
	next  map[string][]any
	asked []string
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/-/admin/v1/")
	body, err := io.ReadAll(r.Body)
	list := s.next[path]
	if err != nil || len(list) == 0 {
		http.Error(w, "not in the script", http.StatusTeapot)
		return
	}
	s.asked = append(s.asked, path+" "+string(body))
	if len(list) > 1 {
		s.next[path] = list[1:]
	}
	if code, ok := list[0].(int); ok {
		w.WriteHeader(code)
		return
	}
	if err := json.NewEncoder(w).Encode(list[0]); err != nil {
		panic(err)
	}
}

// replacing is the script of a replacement that takes some looks, with a server that is away for one.
func replacing() *scripted {
	r := console.Replacement{ID: 4, Old: 2, New: 7, Path: "/d2", Phase: "membership"}
	plan := console.ReplaceAnswer{DryRun: true, Old: 2, OldState: "absent", Path: "/d2", Before: console.Redundancy{Members: 4, Here: 3, Readable: true, Writable: true, MayLose: 1},
		After: console.Redundancy{Members: 4, Here: 3, Readable: true, Writable: true, MayLose: 1}, Warnings: []string{"healing is paused"}}
	done := plan
	done.DryRun, done.Replacement = false, &r
	job := func(state string, n int64) console.HealStatus {
		left := 90.0
		return console.HealStatus{State: "working", Jobs: []console.Job{{Kind: "rebuild", Drive: 7, State: state, Phase: "shards", Done: n, Total: 1000, Bytes: n << 20, BytesPerSecond: 5 << 20, Remaining: &left}}}
	}
	under := console.DriveList{Replacements: []console.Replacement{r}}
	stuck := console.DriveList{Replacements: []console.Replacement{r}}
	stuck.Replacements[0].Problem = "the path is not empty"
	return &scripted{next: map[string][]any{
		"drives/replace": {plan, done},
		"drives":         {stuck, under, http.StatusServiceUnavailable, under, under, console.DriveList{Redundancy: console.Redundancy{Members: 4, Here: 4, Sound: 4, Readable: true, Writable: true, MayLose: 2}}},
		"heal":           {console.HealStatus{}, job("running", 250), job("running", 500), job("running", 1200), job("done", 1000)},
	}}
}

func TestAReplacementIsFollowedToItsEnd(t *testing.T) {
	script := replacing()
	h := httptest.NewServer(script)
	defer h.Close()
	code, out, stderr := adminAt(t, h.URL, process{}, "drive", "replace", "/d2", "--wait")
	if code != 0 {
		t.Fatalf("code %d: %s%s", code, out, stderr)
	}
	for _, want := range []string{"retire", "drive 2", "healing is paused", "1 further drive", "does not go on: the path is not empty", "shards, 25.0%, 250 of 1,000 records, 250 MiB, 5.0 MiB/s, about 1m30s left",
		"waiting for the server", "rebuilt and verified", "2 further drives may be lost"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not print %q:\n%s", want, out)
		}
	}
	if strings.ContainsAny(out, "\r\x1b") {
		t.Errorf("lines are written anew where there is no terminal: %q", out)
	}
	if first, second := script.asked[0], script.asked[1]; !strings.Contains(first, `"dry_run":true`) || strings.Contains(second, "dry_run") || !strings.Contains(second, `"old":2`) {
		t.Errorf("asked for %q, then for %q; want the plan, then what it showed", first, second)
	}
}

func TestAReplacementThatCouldNotRebuildAllEndsWithOne(t *testing.T) {
	script := replacing()
	jobs := script.next["heal"]
	last := jobs[len(jobs)-1].(console.HealStatus)
	last.Jobs[0].Bad, last.Jobs[0].Repaired = 3, 1
	for _, asJSON := range []string{"--json=false", "--json"} {
		h := httptest.NewServer(script)
		code, out, stderr := adminAt(t, h.URL, process{}, "drive", "replace", "/d2", "--wait", asJSON)
		h.Close()
		if code != 1 || !strings.Contains(stderr, "2 could not be repaired") || strings.Contains(out, "rebuilt and verified") {
			t.Errorf("%s: code %d, %q, %q", asJSON, code, out, stderr)
		}
		script = replacing()
		script.next["heal"] = []any{last}
	}
}

func TestOnATerminalItAsksAndDrawsABar(t *testing.T) {
	on := func(width int) func() (int, bool) { return func() (int, bool) { return width, true } }
	h := httptest.NewServer(replacing())
	defer h.Close()
	code, out, stderr := adminAt(t, h.URL, process{terminal: on(120), stdin: strings.NewReader("y\n")}, "drive", "replace", "/d2")
	if code != 0 || !strings.Contains(stderr, "Go on?") || !strings.Contains(out, "\rrebuild of drive 7 [######..................] shards  25.0%  250/1,000 records  250 MiB") || !strings.Contains(out, "99.9%") || !strings.Contains(out, "1m30s left") {
		t.Errorf("code %d, printed %q and %q", code, out, stderr)
	}
	for line := range strings.SplitSeq(out[strings.Index(out, "\r"):strings.LastIndex(out, "\r")], "\r") {
		if n := len(strings.TrimSuffix(line, "\x1b[K")); n > 119 {
			t.Errorf("a line of %d columns: %q", n, line)
		}
	}
	script := replacing()
	h2 := httptest.NewServer(script)
	defer h2.Close()
	code, _, stderr = adminAt(t, h2.URL, process{terminal: on(100), stdin: strings.NewReader("\n")}, "drive", "replace", "/d2")
	if code != 4 || !strings.Contains(stderr, "nothing was changed") || len(script.asked) != 1 {
		t.Errorf("with no for an answer: code %d, %q, asked %q", code, stderr, script.asked)
	}
}

// draining is the script of drains and of drives that are given up.
func draining() *scripted {
	plan := console.PlanReport{Layout: 377, Number: "377-9f2c41d0", Moves: 12, Leaving: []uint16{9}}
	begun := plan
	begun.ID = 3
	return &scripted{next: map[string][]any{"layout/plan": {plan}, "layout/apply": {begun},
		"drives/give-up": {console.GiveUpAnswer{DryRun: true, Drives: []uint16{9}, Plan: &plan}, console.GiveUpAnswer{Drives: []uint16{9}, Plan: &begun}}}}
}

var drainCommands = [][]string{{"node", "drain", "n1"}, {"drive", "drain", "9"}, {"node", "drain", "n1", "--dead"}, {"drive", "drain", "9", "--dead"}}

func TestADrainBeginsWithoutATerminalOnlyIfItIsSaidToBeSure(t *testing.T) {
	none := func() (int, bool) { return 0, false }
	is := func() (int, bool) { return 80, true }
	for _, args := range drainCommands {
		for _, c := range []struct {
			name  string
			p     process
			more  []string
			code  int
			says  string
			asked int
		}{
			{"a pipe that says no", process{terminal: none, stdin: strings.NewReader("n\n")}, nil, 2, "--yes", 0},
			{"a pipe that says yes", process{terminal: none, stdin: strings.NewReader("y\n")}, nil, 2, "no terminal", 0},
			{"nothing to read from", process{terminal: is}, nil, 2, "--yes", 0},
			{"sure", process{terminal: none, stdin: strings.NewReader("n\n")}, []string{"--yes"}, 0, "", 2},
			{"a terminal that says no", process{terminal: is, stdin: strings.NewReader("n\n")}, nil, 4, "nothing was changed", 1},
			{"a terminal that says yes", process{terminal: is, stdin: strings.NewReader("y\n")}, nil, 0, "Go on?", 2},
		} {
			script := draining()
			h := httptest.NewServer(script)
			code, out, stderr := adminAt(t, h.URL, c.p, slices.Concat(args, c.more)...)
			h.Close()
			if code != c.code || !strings.Contains(stderr, c.says) || len(script.asked) != c.asked || c.asked == 0 && out != "" {
				t.Errorf("%q, %s: code %d, printed %q and %q, asked the server %q; want %d, %q and %d requests", args, c.name, code, out, stderr, script.asked, c.code, c.says, c.asked)
			}
		}
	}
}

func TestAPlanIsAppliedByTheNumberThatItIsShownWith(t *testing.T) {
	script := draining()
	h := httptest.NewServer(script)
	defer h.Close()
	code, out, stderr := adminAt(t, h.URL, process{}, "layout", "plan", "--profile", "4+4", "--drain-node", "n1", "--drain-drive", "9,12")
	_, line, _ := strings.Cut(out, "to begin it: ostraka admin ")
	if want := "layout apply 377-9f2c41d0 --profile 4+4 --drain-drive 9 --drain-drive 12 --drain-node n1\n"; code != 0 || line != want {
		t.Errorf("code %d, says %q, want %q; %s", code, line, want, stderr)
	}
	for _, args := range [][]string{strings.Fields(line), {"layout", "apply", "377"}, {"node", "drain", "n1", "--yes"}} {
		if code, out, stderr := adminAt(t, h.URL, process{}, args...); code != 0 || !strings.Contains(out, "plan 3 is carried out") || strings.Contains(out, "to begin it") {
			t.Errorf("%q: code %d, printed %q and %q", args, code, out, stderr)
		}
	}
	for i, want := range map[int]string{1: `"layout":377,"plan_number":"377-9f2c41d0","drain_drives":[9,12],"drain_nodes":["n1"],"profile":"4+4"`, 2: `{"layout":377}`, 4: `"plan_number":"377-9f2c41d0"`} {
		if !strings.Contains(script.asked[i], want) {
			t.Errorf("asked for %q, want %s", script.asked[i], want)
		}
	}
	for _, number := range []string{"x", "0", "-1", "377-", "377-9f2c41d", "377-9F2C41D0", "0-9f2c41d0", "377-9f2c41d0-"} {
		if code, _, stderr := adminAt(t, h.URL, process{}, "layout", "apply", "--", number); code != 2 {
			t.Errorf("%q: code %d, %q", number, code, stderr)
		}
	}
	if len(script.asked) != 5 {
		t.Errorf("asked %q", script.asked)
	}
}

func TestADriveIsAddedByForceOnlyIfThatIsSaid(t *testing.T) {
	script := &scripted{next: map[string][]any{"drives/add": {http.StatusPreconditionFailed, console.AddDriveAnswer{Drive: 14, Path: "/d1"}}}}
	h := httptest.NewServer(script)
	defer h.Close()
	if code, _, stderr := adminAt(t, h.URL, process{}, "drive", "add", "/d1"); code != 3 {
		t.Errorf("refused: code %d, %q", code, stderr)
	}
	if code, out, stderr := adminAt(t, h.URL, process{}, "drive", "add", "/d1", "--force"); code != 0 || !strings.Contains(out, "is drive 14") {
		t.Errorf("by force: code %d, %q, %q", code, out, stderr)
	}
	if want := []string{`drives/add {"path":"/d1"}`, `drives/add {"path":"/d1","force":true}`}; !slices.Equal(script.asked, want) {
		t.Errorf("asked %q, want %q", script.asked, want)
	}
}

func TestADrainAnswersJSON(t *testing.T) {
	for _, args := range drainCommands {
		script := draining()
		h := httptest.NewServer(script)
		code, out, stderr := adminAt(t, h.URL, process{}, slices.Concat(args, []string{"--yes", "--json"})...)
		var a struct {
			ID   uint64 // of a plan
			Plan struct{ ID uint64 }
		}
		if err := json.Unmarshal([]byte(out), &a); err != nil || code != 0 || a.ID+a.Plan.ID != 3 {
			t.Errorf("%q: code %d, printed %q and %q, %v; want plan 3", args, code, out, stderr, err)
		}
		script.next = map[string][]any{"layout/plan": {http.StatusPreconditionFailed}, "drives/give-up": {console.GiveUpAnswer{DryRun: true, Refused: "much is lost"}}}
		for _, c := range []struct {
			more []string
			code int
			kind string
		}{{[]string{"--yes", "--json"}, 3, "precondition failed"}, {[]string{"--json"}, 2, "invalid"}} {
			code, out, stderr := adminAt(t, h.URL, process{terminal: func() (int, bool) { return 80, true }, stdin: strings.NewReader("y\n")}, slices.Concat(args, c.more)...)
			var f console.Failure
			if err := json.Unmarshal([]byte(stderr), &f); err != nil || code != c.code || out != "" || f.Error.Kind != c.kind {
				t.Errorf("%q %q: code %d, printed %q and %q, %v; want %d and %q", args, c.more, code, out, stderr, err, c.code, c.kind)
			}
		}
		h.Close()
	}
}

func TestWithoutForceARefusalEndsWithThree(t *testing.T) {
	bad := console.Redundancy{Members: 4, Here: 1, ReadsNeed: 2}
	script := &scripted{next: map[string][]any{
		"drives/replace":    {console.ReplaceAnswer{DryRun: true, Old: 2, Refused: "afterwards data is away", After: bad}},
		"drives/quarantine": {console.DriveAnswer{DryRun: true, Drive: 2, Refused: "afterwards data is away", After: bad}},
	}}
	h := httptest.NewServer(script)
	defer h.Close()
	for _, args := range [][]string{{"drive", "replace", "/d2"}, {"drive", "quarantine", "2"}} {
		code, _, stderr := adminAt(t, h.URL, process{}, args...)
		if code != 3 || !strings.Contains(stderr, "--force") {
			t.Errorf("%q: code %d, %q", args, code, stderr)
		}
	}
	if len(script.asked) != 2 {
		t.Errorf("asked %q, want only the plans", script.asked)
	}
}

func TestFollowingStopsWithFourAndSaysThatTheWorkGoesOn(t *testing.T) {
	script := &scripted{next: map[string][]any{"drives": {console.DriveList{}}, "heal": {console.HealStatus{Jobs: []console.Job{{Kind: "check", State: "running", Total: 10, Done: 1}}}}}}
	h := httptest.NewServer(script)
	defer h.Close()
	ctx, stop := context.WithCancel(t.Context())
	var out, errOut bytes.Buffer
	first := writerFunc(func(b []byte) (int, error) { stop(); return out.Write(b) }) // as soon as something is shown
	code := run(ctx, process{args: []string{"admin", "--endpoint", h.URL, "heal", "status", "--watch"}, environ: rootEnv, stdout: first, stderr: &errOut, lookEvery: time.Millisecond})
	if code != 4 || !strings.Contains(errOut.String(), "goes on in the server") || !strings.Contains(out.String(), "check: running, 10.0%") {
		t.Errorf("code %d, %q, %q", code, out.String(), errOut.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestWatchingEndsWithOneIfSomethingIsLeft(t *testing.T) {
	for _, c := range []struct {
		name string
		last console.HealStatus
		code int
	}{
		{"all is done", console.HealStatus{State: "healthy"}, 0},
		{"nothing is known to be wrong", console.HealStatus{State: "unknown"}, 0},
		{"data is lost, and nothing waits", console.HealStatus{State: "degraded", Backlog: 2, Lost: []console.LostData{{Bucket: 1, Key: "a"}, {Bucket: 1, Key: "b"}}}, 1},
		{"more is lost than is named", console.HealStatus{State: "degraded", Backlog: 20, Lost: []console.LostData{{Bucket: 1, Key: "a"}}, MoreLost: true}, 1},
		{"a drive is away", console.HealStatus{State: "degraded", Why: []string{"drive 2 is away"}, Backlog: 3, Blocked: 3}, 1},
	} {
		h := httptest.NewServer(&scripted{next: map[string][]any{
			"drives": {console.DriveList{}, console.DriveList{Replacements: []console.Replacement{{ID: 1, Old: 2, New: 7}}}, console.DriveList{}},
			"heal":   {console.HealStatus{State: "working", Backlog: 9, Active: 1}, console.HealStatus{State: "unknown"}, c.last}}})
		code, out, stderr := adminAt(t, h.URL, process{}, "heal", "status", "--watch")
		h.Close()
		if code != c.code || !strings.Contains(out, "repairs: 9 outstanding") || !strings.Contains(out, "drive 7 takes the place of drive 2: waiting") {
			t.Errorf("%s: code %d, want %d: %s%s", c.name, code, c.code, out, stderr)
		}
	}
}

func TestACheckThatIsBegunIsSaidAndFollowed(t *testing.T) {
	at := func(n int64) *time.Time { x := time.Unix(n, 0); return &x }
	former := console.Job{Kind: "check", State: "done", Begun: at(100), Ended: at(110)}
	is := func(state string, jobs ...console.Job) console.HealStatus {
		return console.HealStatus{State: state, Jobs: append(jobs, former)}
	}
	next := console.Job{Kind: "check", State: "running", Begun: at(200), Total: 10, Done: 1}
	ended := next
	ended.State, ended.Done, ended.Ended = "done", 10, at(203)
	script := &scripted{next: map[string][]any{"drives": {console.DriveList{}}, "heal/start": {is("healthy"), is("working", next)},
		"heal": {is("healthy"), is("healthy"), is("working", next), is("healthy", ended)}, "scrub/start": {console.ScrubReport{}, console.ScrubReport{Paused: true}}}}
	h := httptest.NewServer(script)
	defer h.Close()
	for _, c := range []struct {
		args []string
		says []string
		not  string
	}{
		{[]string{"heal", "start"}, []string{"a complete check begins now\n", "heal status --watch"}, "healthy"},
		{[]string{"heal", "start"}, []string{"a complete check is under way\n"}, "working"},
		{[]string{"heal", "start", "--watch"}, []string{"check: waiting for it to begin\n", "check: running, 10.0%", "healthy", "took 3.0s"}, "begins now"},
		{[]string{"scrub", "start", "3"}, []string{"a round of the scrub of drive 3 begins now", "scrub status"}, "period"},
		{[]string{"scrub", "start"}, []string{"all drives", "scrubs are paused", "scrub resume"}, "begins now"},
	} {
		code, out, stderr := adminAt(t, h.URL, process{}, c.args...)
		for _, want := range c.says {
			if code != 0 || !strings.Contains(out, want) || strings.Contains(out, c.not) {
				t.Errorf("%q: code %d, %q, %q; want %q and no %q", c.args, code, out, stderr, want, c.not)
			}
		}
	}
}

func TestWithJSONAFailureIsAnObjectOnStderr(t *testing.T) {
	script := &scripted{next: map[string][]any{"drives/quarantine": {console.DriveAnswer{DryRun: true, Refused: "data <would be> away"}}, "heal": {http.StatusServiceUnavailable}}}
	h := httptest.NewServer(script)
	defer h.Close()
	for _, c := range []struct {
		name string
		args []string
		code int
		kind string
		says string
	}{
		{"what the server refuses", []string{"drive", "quarantine", "2", "--json"}, 3, "precondition failed", "data <would be> away"},
		{"a server that cannot", []string{"heal", "status", "--json"}, 1, "unavailable", "503"},
		{"an argument that is wrong", []string{"heal", "limit", "fast", "--json"}, 2, "invalid", "50MiB"},
		{"an argument too many", []string{"heal", "start", "x", "--json"}, 2, "invalid", "no argument"},
		{"a flag that is none", []string{"drive", "list", "--colour", "--json"}, 2, "invalid", "--colour"},
		{"no drive to drain", []string{"drive", "drain", "--json"}, 2, "invalid", "drive list"},
	} {
		code, out, stderr := adminAt(t, h.URL, process{}, c.args...)
		var f console.Failure
		if err := json.Unmarshal([]byte(stderr), &f); err != nil || code != c.code || out != "" || f.Error.Kind != c.kind || !strings.Contains(f.Error.Message, c.says) {
			t.Errorf("%s: code %d, printed %q and %q, %v; want %d, %q and %q", c.name, code, out, stderr, err, c.code, c.kind, c.says)
		}
	}
	if code, _, stderr := adminAt(t, h.URL, process{}, "heal", "status", "--json=false"); code != 1 || !strings.HasPrefix(stderr, "ostraka: ") {
		t.Errorf("without --json: code %d, %q", code, stderr)
	}
}

func TestProgressLinesFitAndNeverSayAllBeforeTheEnd(t *testing.T) {
	for done := int64(-5); done <= 120; done++ {
		for _, total := range []int64{0, 1, 50, 100} {
			j := console.Job{Kind: "check", State: "running", Done: done, Total: total}
			line := progressLine(&j, 60)
			if len(line) > 60 || strings.Contains(line, "100.0%") || !strings.Contains(line, "]") {
				t.Errorf("%d of %d: %q", done, total, line)
			}
		}
	}
	move := console.Job{Kind: "move", State: "running", Moves: 6826, MovesDone: 12, Swaps: 56, LongestPause: 1.234}
	if got, want := describeJob(&move), "longest pause of a partition 1.23 s"; !strings.Contains(got, want) || !strings.Contains(got, "12 of 6,826 positions") {
		t.Errorf("%q, want the positions and %q", got, want)
	}
	for d, want := range map[time.Duration]string{-1: "0s", 1500 * time.Millisecond: "1.5s", 59 * time.Second: "59s", 90 * time.Second: "1m30s",
		3*time.Hour + 7*time.Minute: "3h07m", 50 * time.Hour: "2d02h"} {
		if got := duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
