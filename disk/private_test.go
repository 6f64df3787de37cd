package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Other users of the machine read neither bodies nor records: those of the control plane keep the
// secret of the root keys.
func TestDirectoriesArePrivate(t *testing.T) {
	path := t.TempDir()
	if err := Format(vfs.Default, path, testIdentity(1)); err != nil {
		t.Fatal(err)
	}
	d, err := Open(bg, vfs.Default, path, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(bg); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	dirs := 0
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dirs++
		info, err := os.Stat(filepath.Join(path, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if perm := info.Mode().Perm(); perm&0o077 != 0 {
			t.Errorf("%s has mode %v, open to others", e.Name(), perm)
		}
	}
	if dirs < 2 {
		t.Errorf("%d directories on a drive, want the records and the shards", dirs)
	}
}
