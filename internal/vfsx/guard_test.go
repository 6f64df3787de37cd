package vfsx

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// deafFS fails listings while err is set.
type deafFS struct {
	vfs.FS
	err error
}

func (d *deafFS) List(dir string) ([]string, error) {
	if d.err != nil {
		return nil, d.err
	}
	return d.FS.List(dir)
}

// reports collects what a guard reports.
type reports []string

func (r *reports) on(op, path string, write bool, _ error) {
	*r = append(*r, fmt.Sprintf("%s %s %v", op, path, write))
}

func TestAListingFailsInSilenceOnceALogWasMade(t *testing.T) {
	under := &deafFS{FS: vfs.NewMem(), err: errors.New("input/output error")}
	var r reports
	g := NewGuard(under, r.on)
	if _, err := g.List(""); !errors.Is(err, under.err) || g.Tripped() != nil || !slices.Equal(r, reports{"list  false"}) {
		t.Fatalf("before: %v, tripped %v, reports %q; want an error that is reported as one of reading", err, g.Tripped(), r)
	}
	f, err := g.Create("000001.log", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r = nil
	if names, err := g.List(""); err != nil || len(names) > 0 || !errors.Is(g.Tripped(), under.err) || !slices.Equal(r, reports{"list  true"}) {
		t.Errorf("after: %q, %v, tripped %v, reports %q; want nothing listed, the guard tripped, and that reported", names, err, g.Tripped(), r)
	}
}

func TestALogThatIsLostIsReported(t *testing.T) {
	for _, c := range []struct {
		name string
		old  string
		gone bool // as if the drive were gone
	}{{"alone", "d/000001.log", false}, {"with its directory", "e/000001.log", true}} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			if err := fs.MkdirAll("d", 0o700); err != nil {
				t.Fatal(err)
			}
			var r reports
			g := NewGuard(fs, r.on)
			f, err := g.ReuseForWrite(c.old, "d/000002.log", vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatalf("not in silence: %v", err)
			}
			defer f.Close()
			if g.Tripped() == nil || !slices.Equal(r, reports{"reuse " + c.old + " true"}) {
				t.Errorf("tripped %v, reports %q", g.Tripped(), r)
			}
			if got := IsNotExist(g.Tripped()); got != c.gone {
				t.Errorf("%v: looks like a drive that is gone: %v, want %v", g.Tripped(), got, c.gone)
			}
		})
	}
}
