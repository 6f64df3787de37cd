package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// fakeSet is the drives of a process, as an operator's loop sees them.
type fakeSet struct {
	mu     sync.Mutex // guards all below
	did    []string
	retire error
	adopt  error
	paths  []node.PathStatus
}

func (f *fakeSet) Cluster() disk.ID          { return disk.ID{9} }
func (f *fakeSet) Status() []node.PathStatus { return f.paths }
func (f *fakeSet) note(what string, err *error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, what)
	return *err
}
func (f *fakeSet) Retire(_ context.Context, num uint16) error {
	return f.note(fmt.Sprintf("retire %d", num), &f.retire)
}
func (f *fakeSet) Adopt(_ context.Context, path string, id disk.Identity) error {
	return f.note(fmt.Sprintf("adopt %s as %d", path, id.Num), &f.adopt)
}
func (f *fakeSet) Quarantine(context.Context, uint16, string) error { return nil }
func (f *fakeSet) Release(context.Context, uint16) error            { return nil }

func (f *fakeSet) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	did := f.did
	f.did = nil
	return did
}

// testControl is the control plane of a store of four drives, which is not served.
func testControl(t *testing.T) *cluster.Control {
	t.Helper()
	s := newStore(t, 4)
	s.stop()
	set, err := node.OpenSet(t.Context(), s.dirs, node.Options{WatchEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	var stores []cluster.DriveStore
	for _, d := range set.Open() {
		stores = append(stores, cluster.DriveStore{Num: d.Num(), KV: d.Control()})
	}
	c, err := cluster.Open(t.Context(), cluster.Config{Drives: stores})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := set.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestAReplacementIsPreparedAgainUntilItSucceeds(t *testing.T) {
	c := testControl(t)
	set := &fakeSet{retire: errs.E("x", errs.Timeout, "hangs"), adopt: errs.E("x", errs.Drive, "no room on it")}
	var prepared int
	o := newOperator(set, c, func() { prepared++ }, slog.New(slog.DiscardHandler))
	var r cluster.Replacement
	if err := persist(t.Context(), func() (err error) {
		r, err = c.BeginReplace(t.Context(), 2, placement.Drive{ID: disk.ID{5}}, "/new")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"retire 2", fmt.Sprintf("adopt /new as %d", r.New)}
	for range 2 {
		o.prepare(t.Context())
		if got := set.taken(); !slices.Equal(got, want) {
			t.Errorf("done: %q, want %q: a drive that hangs is fenced off, and the newcomer is tried", got, want)
		}
		if got := o.Replacements(); len(got) != 1 || got[0].Problem != "no room on it" || len(o.forHealing()) != 0 || prepared != 0 {
			t.Errorf("while it cannot be prepared: %+v, for healing %v, prepared %d", got, o.forHealing(), prepared)
		}
	}
	set.adopt = nil
	o.prepare(t.Context())
	o.prepare(t.Context())
	if got := set.taken(); !slices.Equal(got, want) {
		t.Errorf("done: %q, want %q, once", got, want)
	}
	heals := o.forHealing()
	if got := o.Replacements(); len(got) != 1 || got[0].Problem != "" || prepared != 1 || len(heals) != 1 || heals[0].Old != 2 || heals[0].New != r.New || heals[0].Joined {
		t.Errorf("after it was prepared: %+v, for healing %v, prepared %d", got, heals, prepared)
	}
	// A process that begins anew does it again.
	again := newOperator(set, c, func() { prepared++ }, slog.New(slog.DiscardHandler))
	again.prepare(t.Context())
	if got := set.taken(); !slices.Equal(got, want) || prepared != 2 {
		t.Errorf("after a restart: %q, prepared %d", got, prepared)
	}
}

func TestAPathForANewDriveIsCheckedBeforeAnythingIsBegun(t *testing.T) {
	c := testControl(t)
	root := t.TempDir()
	mk := func(name string, files ...string) string {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	empty, full, broken, open, missing := mk("empty"), mk("full", "photo.jpg"), mk("broken", "ostraka.json"), mk("open"), filepath.Join(root, "missing")
	set := &fakeSet{paths: []node.PathStatus{{Path: empty}, {Path: full}, {Path: broken}, {Path: open, Num: 3, Known: true, Open: true}, {Path: missing}}}
	o := newOperator(set, c, func() {}, slog.New(slog.DiscardHandler))
	for path, want := range map[string]string{empty: "", full: "holds files", broken: "holds a drive", open: "in service", missing: "does not exist", root: "not one of the paths"} {
		doubt, err := o.CheckNew(t.Context(), path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(errs.Public(err), want) || doubt != "" {
			t.Errorf("%s: %v, want %q", filepath.Base(path), err, want)
		}
	}
}

func TestAChangeIsTriedAgainOnlyWhileItsOutcomeIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unknown, no := errs.E("x", errs.Unknown, ""), errs.E("x", errs.Invalid, "no")
		for _, c := range []struct {
			name    string
			answers []error
			want    errs.Kind
			ok      bool
		}{
			{"at once", []error{nil}, 0, true},
			{"in the third try", []error{unknown, errs.E("x", errs.Unavailable, ""), nil}, 0, true},
			{"a refusal", []error{unknown, no}, errs.Invalid, false},
			{"never", []error{unknown}, errs.Unavailable, false},
		} {
			n := 0
			err := persist(t.Context(), func() error {
				n++
				return c.answers[min(n, len(c.answers))-1]
			})
			if (err == nil) != c.ok || err != nil && errs.KindOf(err) != c.want || n < len(c.answers) {
				t.Errorf("%s: %v after %d tries", c.name, err, n)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := persist(ctx, func() error { return unknown }); !errs.Is(err, errs.Unknown) || time.Since(begun) > 2*time.Second {
			t.Errorf("with an impatient caller: %v after %v", err, time.Since(begun))
		}
	})
}

// s3 sends one signed S3 request.
func (s *store) s3(method, path string, body []byte) (int, []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: "rootaccess", Secret: "rootsecretkey"}, "us-east-1", "s3", auth.HashPayload(body), time.Now()); err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, got
}

// wipe removes everything in a directory, as a new disk does.
func wipe(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	for _, e := range list {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A drive that missed a write and is back does not count until it was brought up to date: no other is
// retired meanwhile, since it may have what that one lacks.
func TestNoDriveIsRetiredWhileAnotherIsNotUpToDate(t *testing.T) {
	s := newStore(t, 5)
	s.stop()
	s.start(5)
	s.compared()
	if code, body := s.s3(http.MethodPut, "/bucket", nil); code != http.StatusOK {
		t.Fatalf("making a bucket: %d %s", code, body)
	}
	s.must([]string{"paused         true"}, "heal", "pause")
	s.must([]string{"out of service"}, "drive", "quarantine", "1")
	body := bytes.Repeat([]byte{1, 2, 3}, 1<<20)
	if code, answer := s.s3(http.MethodPut, "/bucket/key", body); code != http.StatusOK {
		t.Fatalf("PUT: %d %s", code, answer)
	}
	s.must([]string{"is open"}, "drive", "release", "1")
	for _, args := range [][]string{{"drive", "replace", s.dirs[4], "--old", "4"}, {"drive", "quarantine", "3"}} {
		code, stdout, stderr := s.admin(args...)
		if code != 3 || !strings.Contains(stderr, "drive "+args[len(args)-1]) {
			t.Errorf("admin %q: code %d, want 3: %s%s", args, code, stdout, stderr)
		}
	}
	if out := s.must(nil, "drive", "list"); strings.Contains(out, "2 further drives may be lost") {
		t.Errorf("while a record is to be repaired it says:\n%s", out)
	}
	s.must([]string{"paused         false"}, "heal", "resume")
	s.compared()
	s.must([]string{"rebuilt and verified"}, "drive", "replace", s.dirs[4], "--old", "4", "--wait")
	if code, got := s.s3(http.MethodGet, "/bucket/key", nil); code != http.StatusOK || !bytes.Equal(got, body) {
		t.Errorf("GET: %d, %d bytes", code, len(got))
	}
}

// The whole way: a drive is lost with all it held, a new one takes its place, and everything is
// there again; then the old one comes back, and never serves.
func TestADriveIsReplacedOverARealServer(t *testing.T) {
	s := newStore(t, 5)
	if code, body := s.s3(http.MethodPut, "/bucket", nil); code != http.StatusOK {
		t.Fatalf("making a bucket: %d %s", code, body)
	}
	bodies := map[string][]byte{}
	for i := range 24 {
		name := fmt.Sprintf("/bucket/o%d", i)
		bodies[name] = bytes.Repeat([]byte{byte(i), byte(i >> 1), 7}, []int{100, 20_000, 200_000}[i%3])
		if code, body := s.s3(http.MethodPut, name, bodies[name]); code != http.StatusOK {
			t.Fatalf("PUT %s: %d %s", name, code, body)
		}
	}
	s.stop()
	old := filepath.Join(t.TempDir(), "old") // the disk, pulled
	if err := os.Rename(s.dirs[1], old); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.dirs[1], 0o700); err != nil {
		t.Fatal(err)
	}
	s.start(5)
	s.compared()
	s.must([]string{"empty", "3 of 4 drives"}, "drive", "list")
	s.must([]string{"retire", "drive 2", "1 further drive"}, "drive", "replace", s.dirs[1], "--dry-run")
	s.must([]string{"drive 5 takes the place of drive 2"}, "drive", "replace", s.dirs[1])
	s.must([]string{"rebuilt and verified", "2 further drives may be lost"}, "drive", "replace", s.dirs[1], "--wait")
	check := func() {
		t.Helper()
		for name, want := range bodies {
			if code, got := s.s3(http.MethodGet, name, nil); code != http.StatusOK || !bytes.Equal(got, want) {
				t.Errorf("GET %s: %d, %d bytes, want %d", name, code, len(got), len(want))
			}
		}
		s.must([]string{"whole    yes", "verified"}, "object", "inspect", "--verify", "bucket/o1")
		s.must([]string{"whole    yes", "verified"}, "object", "inspect", "--verify", "bucket/o2")
	}
	check()

	if testing.Short() {
		return // each of the others is another rebuild or restart
	}

	t.Run("the old drive is refused when it comes back", func(t *testing.T) {
		s.stop()
		if err := os.Remove(s.dirs[4]); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(old, s.dirs[4]); err != nil {
			t.Fatal(err)
		}
		s.start(5)
		out := s.must([]string{"replaced", "never serves again"}, "drive", "list")
		if strings.Count(out, "online") != 4 {
			t.Errorf("four drives should be online:\n%s", out)
		}
		code, _, stderr := s.admin("drive", "replace", s.dirs[4], "--old", "1")
		if code != 2 || !strings.Contains(stderr, "empty the directory") {
			t.Errorf("making a new drive over it: code %d, %s", code, stderr)
		}
		check()
	})

	t.Run("a drive that serves gives its place to a spare", func(t *testing.T) {
		wipe(t, s.dirs[4])
		s.compared()
		s.must([]string{"out of service"}, "drive", "quarantine", "1", "--reason", "noisy")
		s.must([]string{"quarantined", "noisy"}, "drive", "list")
		s.must([]string{"is open"}, "drive", "release", "1")
		s.must([]string{"which is online", "drive 6 takes the place of drive 1", "rebuilt and verified"}, "drive", "replace", s.dirs[4], "--old", "1", "--wait")
		check()
	})
}
