// Package lint owns the rules of the tree that no general linter knows: which package may import
// which, each with its reason, and which modules may not be linked at all. Its test applies them
// to the tree; `make lint` runs it.
//
// It never reads source: it judges the graph that `go list` prints.
package lint

import (
	"fmt"
	"sort"
	"strings"
)

// Module is the path of this module.
const Module = "github.com/ostraka/ostraka"

// Package is what `go list -json` says of one package.
type Package struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	Module       *struct{ Path string }
}

// Rule is one row of the import table: a package may import the packages of its own row, those
// that May names, and anything outside of this module that Forbidden does not name. Its tests may
// import every earlier row, but for those of a row that may import nothing.
type Rule struct {
	Dir    string   // first element of the path below the module
	May    []string // other Dirs
	Tests  []string // other Dirs, later ones, that only its tests may import
	Reason string
}

// Table is the import table of the design, in the order of its rows. Imports point to earlier rows.
var Table = []Rule{
	{Dir: "internal", May: nil, Reason: "small seams and values; whatever knows the business is above it"},
	{Dir: "erasure", May: []string{"internal"}, Reason: "a byte stream and its shards; it knows neither drives nor networks"},
	{Dir: "placement", May: []string{"internal", "erasure"}, Reason: "pure values: where something belongs, not how to get there"},
	{Dir: "metadata", May: []string{"internal", "erasure", "placement"}, Reason: "the register is simulated without HTTP, S3 and files"},
	{Dir: "disk", May: []string{"internal", "erasure", "placement", "metadata"}, Reason: "one drive, which knows no other"},
	{Dir: "node", May: []string{"internal", "erasure", "placement", "metadata", "disk"}, Reason: "carries drives, decides nothing about data"},
	{Dir: "cluster", May: []string{"internal", "erasure", "placement", "metadata", "disk", "node"}, Reason: "membership and configuration, never object data"},
	{Dir: "object", May: []string{"internal", "erasure", "placement", "metadata", "disk", "node", "cluster"}, Tests: []string{"heal"}, Reason: "the pipeline, without HTTP; its tests collect what a failed request left"},
	{Dir: "heal", May: []string{"internal", "erasure", "placement", "metadata", "disk", "node", "cluster", "object"}, Reason: "repairs beside the request path, never in it"},
	{Dir: "auth", May: []string{"internal"}, Reason: "who asks and may they: independent of what is stored"},
	{Dir: "s3api", May: []string{"internal", "erasure", "placement", "metadata", "cluster", "object", "auth"}, Reason: "the wire; drives and repair are none of its business"},
	{Dir: "console", May: []string{"internal", "erasure", "placement", "metadata", "disk", "node", "cluster", "object", "heal", "auth", "s3api"}, Reason: "shows everything, is imported by the command only"},
	{Dir: "sim", May: []string{"internal", "erasure", "placement", "metadata", "disk", "node", "cluster", "object", "heal", "auth", "s3api", "console"}, Reason: "builds the whole store in a test as the command does; nothing imports it"},
	{Dir: "cmd", May: []string{"internal", "erasure", "placement", "metadata", "disk", "node", "cluster", "object", "heal", "auth", "s3api", "console"}, Reason: "constructors meet here and nowhere else"},
	{Dir: "integration", May: nil, Reason: "drives the real binary from outside; seeing its inside would hide what a user sees"},
}

// Forbidden are modules that must not be linked, in tests neither: prefix of the path and reason.
var Forbidden = []struct{ Prefix, Reason string }{
	{"github.com/minio/minio", "AGPL (minio-go is another module, and Apache)"},
	{"github.com/minio/pkg", "AGPL"},
	{"github.com/minio/mc", "AGPL"},
	{"github.com/minio/madmin-go", "AGPL"},
	{"github.com/minio/kes", "AGPL"},
	{"github.com/minio/console", "AGPL"},
}

// Check returns one line for each violation, sorted. Variants of packages that `go list -test`
// makes for tests, named "path [path.test]", repeat what the package itself says and are passed over.
func Check(pkgs []Package) []string {
	rules, tests := map[string]map[string]bool{}, map[string]map[string]bool{}
	reasons := map[string]string{}
	var earlier []string
	for _, r := range Table {
		rules[r.Dir], tests[r.Dir] = map[string]bool{r.Dir: true}, map[string]bool{r.Dir: true}
		reasons[r.Dir] = r.Reason
		for _, m := range r.May {
			rules[r.Dir][m] = true
		}
		for _, e := range earlier {
			tests[r.Dir][e] = len(r.May) > 0
		}
		for _, t := range r.Tests {
			tests[r.Dir][t] = true
		}
		earlier = append(earlier, r.Dir)
	}
	var bad []string
	imports := func(p Package, dir, what string, list []string, may map[string]bool) {
		for _, imp := range list {
			if why := forbidden(imp); why != "" {
				bad = append(bad, fmt.Sprintf("%s%s imports %s, which must not be linked: %s", p.ImportPath, what, imp, why))
			}
			if to, ours := within(imp); ours && !may[to] {
				bad = append(bad, fmt.Sprintf("%s%s imports %s; %s may not import %s: %s", p.ImportPath, what, imp, dir, to, reasons[dir]))
			}
		}
	}
	for _, p := range pkgs {
		if p.Standard || strings.Contains(p.ImportPath, " ") {
			continue
		}
		if why := forbidden(p.ImportPath); why != "" {
			bad = append(bad, fmt.Sprintf("%s is linked and must not be: %s", p.ImportPath, why))
		}
		dir, ours := within(p.ImportPath)
		if !ours {
			continue
		}
		may, known := rules[dir]
		if !known {
			bad = append(bad, fmt.Sprintf("%s has no row in the import table of internal/lint", p.ImportPath))
			continue
		}
		imports(p, dir, "", p.Imports, may)
		imports(p, dir, " (test)", p.TestImports, tests[dir])
		imports(p, dir, " (test)", p.XTestImports, tests[dir])
	}
	sort.Strings(bad)
	return bad
}

// within returns the row that a package of this module belongs to.
func within(path string) (dir string, ours bool) {
	rest, ok := strings.CutPrefix(path, Module+"/")
	if !ok {
		return "", false
	}
	dir, _, _ = strings.Cut(rest, "/")
	return dir, true
}

func forbidden(path string) string {
	for _, f := range Forbidden {
		if rest, ok := strings.CutPrefix(path, f.Prefix); ok && (rest == "" || rest[0] == '/') {
			return f.Reason
		}
	}
	return ""
}
