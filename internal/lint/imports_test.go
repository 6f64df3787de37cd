package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// root finds the directory of go.mod above the package.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
}

func TestTheTreeKeepsTheImportTable(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-test", "-json=ImportPath,Standard,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var pkgs []Package
	own := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(p.ImportPath, ".test") {
			continue // the generated main of a test
		}
		if _, ours := within(p.ImportPath); ours {
			own++
		}
		pkgs = append(pkgs, p)
	}
	if own < 5 {
		t.Fatalf("go list names %d packages of this module; the check saw nothing", own)
	}
	for _, line := range Check(pkgs) {
		t.Error(line)
	}
}

func TestTheCheckSeesAViolation(t *testing.T) {
	pkg := func(path string, imports ...string) Package { return Package{ImportPath: path, Imports: imports} }
	for _, c := range []struct {
		name string
		in   Package
		want string // part of the one line; "" for none
	}{
		{"an earlier row", pkg(Module+"/disk", Module+"/metadata", "fmt"), ""},
		{"its own row", pkg(Module+"/erasure/x", Module+"/erasure"), ""},
		{"a later row", pkg(Module+"/erasure", Module+"/disk"), "erasure may not import disk"},
		{"the wire to the drives", pkg(Module+"/s3api", Module+"/node"), "s3api may not import node"},
		{"an inner package of a row", pkg(Module+"/internal/errs", Module+"/placement"), "internal may not import placement"},
		{"a test", Package{ImportPath: Module + "/erasure", TestImports: []string{Module + "/object"}}, "erasure may not import object"},
		{"a test from outside", Package{ImportPath: Module + "/auth", XTestImports: []string{Module + "/s3api"}}, "auth may not import s3api"},
		{"a variant for a test, whose package says the same", pkg(Module+"/auth ["+Module+"/auth.test]", Module+"/s3api"), ""},
		{"the test of the wire over real drives", Package{ImportPath: Module + "/s3api", TestImports: []string{Module + "/node"}}, ""},
		{"a test from outside that looks inside", Package{ImportPath: Module + "/integration", TestImports: []string{Module + "/disk"}}, "integration may not import disk"},
		{"integration looks inside", pkg(Module+"/integration", Module+"/internal/errs"), "integration may not import internal"},
		{"a room without a row", pkg(Module + "/gossip"), "no row"},
		{"an AGPL import", pkg(Module+"/cmd/ostraka", "github.com/minio/pkg/v3/env"), "AGPL"},
		{"an AGPL module behind another", pkg("github.com/minio/madmin-go/v3"), "AGPL"},
		{"a module with a similar name", pkg(Module+"/integration", "github.com/minio/minio-go/v7"), ""},
	} {
		got := Check([]Package{c.in})
		if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s: got %q, want a line with %q", c.name, got, c.want)
		}
	}
}

func TestImportsPointToEarlierRows(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Table {
		for _, m := range r.May {
			if !seen[m] {
				t.Errorf("row %s names %s, which is not an earlier row", r.Dir, m)
			}
		}
		if seen[r.Dir] || r.Reason == "" {
			t.Errorf("row %s stands twice or gives no reason", r.Dir)
		}
		seen[r.Dir] = true
	}
}
