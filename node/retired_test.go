package node_test

import (
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
)

// A process all of whose drives were drained or given up learns at its next start why it has none.
func TestASetOfRetiredDrivesSaysWhyItDoesNotOpen(t *testing.T) {
	mem := vfs.NewMem()
	s := spare(t, mem, plain, nil)
	for _, d := range s.Open() {
		if err := s.Retire(bg, d.Num()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(bg); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, p := range s.Status() {
		if p.State == node.PathReplaced {
			paths = append(paths, p.Path)
		}
	}
	if len(paths) == 0 {
		t.Fatalf("nothing was retired: %s", states(s))
	}
	again, err := node.OpenSet(bg, paths, node.Options{FS: mem, WatchEvery: -1})
	if err == nil {
		_ = again.Close(bg) // the test has failed
	}
	if !errs.Is(err, errs.Drive) || !strings.Contains(err.Error(), "drained or given up") || !strings.Contains(err.Error(), "--join") {
		t.Errorf("got %v", err)
	}
}
