package cluster

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/ostraka/ostraka/internal/errs"
)

// runOld opens a process whose build does not know one command.
func (p *process) runOld(t *testing.T, unknown opCode) {
	t.Helper()
	p.unknown = unknown
	p.run(t)
}

// A node of an older build meets a change that it does not know: in its log when it comes back, or as it is made. It must not
// pass over it and go on: its state would be another one for good, on its drives and as the leader that it may become.
func TestABuildThatMeetsANewerCommandStopsBeforeIt(t *testing.T) {
	for _, c := range []struct {
		name   string
		drives bool // else it is a gateway, which learns in memory
	}{{"a voter", true}, {"a gateway", false}} {
		synctest.Test(t, func(t *testing.T) {
			f, list := testCluster(t, "a", "b", "c")
			defer func() { stopAll(list) }()
			old := list[2]
			if !c.drives {
				old = join(t, f, 9, "", 0)
				list = append(list, old)
				settled(t)
			}
			old.stop()
			if !c.drives { // it would begin with what the others have
				old.runOld(t, opSetSettings)
				settled(t)
			}
			if err := list[0].SetSettings(t.Context(), Settings{HealPaused: true}); err != nil {
				t.Fatal(err)
			}
			if _, err := list[0].CreateBucket(t.Context(), Bucket{Name: "after"}); err != nil {
				t.Fatal(err)
			}
			at := list[0].State().Applied
			before := uint64(0)
			for _, kv := range old.kvs {
				s, err := readCopy(kv)
				if err != nil {
					t.Fatal(err)
				}
				before = s.Applied
			}
			if c.drives {
				old.runOld(t, opSetSettings)
			}
			settled(t)
			if err := old.Behind(); !errs.Is(err, errs.Unsupported) {
				t.Errorf("%s goes on: %v", c.name, err)
			}
			if s := old.State(); s.Applied >= at || s.Applied < before {
				t.Errorf("%s has applied %d, the others %d, and it had %d", c.name, s.Applied, at, before)
			}
			if _, ok := old.State().Bucket("after"); ok {
				t.Errorf("%s knows what came later", c.name)
			}
			if old.hasServer() {
				t.Errorf("%s still has a raft server", c.name)
			}
			old.stop()
			old.runOld(t, 0) // upgraded
			settled(t)
			settled(t)
			if a, b := old.State(), list[0].State(); !bytes.Equal(a.encode(), b.encode()) || a.Applied < at {
				t.Errorf("after the upgrade %s has the state of %d, the others of %d", c.name, a.Applied, b.Applied)
			}
		})
	}
}

// A copy that a newer build wrote is neither believed as far as it goes nor written over.
func TestABuildThatMeetsANewerCopyDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "a", "b")
		defer stopAll(list)
		old := list[1]
		old.stop()
		for num, kv := range old.kvs {
			s, err := readCopy(kv)
			if err != nil {
				t.Fatal(err)
			}
			next := *s
			next.Applied++
			w := copyOf{kv: kv, at: s.Applied}
			if err := w.write([]applied{{prev: s.Applied, raw: putUint(nil, 1, 200), s: &next}}); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), Config{Drives: []DriveStore{{num, kv}}}); !errs.Is(err, errs.Unsupported) {
				t.Errorf("got %v, want Unsupported", err)
			}
		}
	})
}

func TestALeaderRefusesAChangeThatItDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "a", "b", "c")
		defer stopAll(list)
		for _, p := range list {
			c := command{op: 200, change: changeID{1}}
			var r reply
			if p.handleChange(t.Context(), c.encode(), &r); p.leader() != nil && !errs.Is(r.failed, errs.Unsupported) {
				t.Errorf("got %v, want Unsupported", r.failed)
			}
		}
		if _, err := list[0].CreateBucket(t.Context(), Bucket{Name: "after"}); err != nil {
			t.Fatal(err)
		}
	})
}
