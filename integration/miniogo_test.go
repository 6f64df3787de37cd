package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// notYet reads the list of cases that do not apply yet: name, tab, reason.
func notYet(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open("testdata/minio-go-not-yet.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list := map[string]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, reason, ok := strings.Cut(line, "\t")
		if _, twice := list[name]; !ok || reason == "" || twice {
			t.Fatalf("the list's line %q is not a case, a tab and its reason, or stands twice", line)
		}
		list[name] = reason
	}
	return list
}

// outcomes reads the suite's report: the worst status of each case. The same case reports again
// for each of its steps.
func outcomes(out []byte) (worst, why map[string]string) {
	rank := map[string]int{"PASS": 1, "NA": 2, "FAIL": 3}
	worst, why = map[string]string{}, map[string]string{}
	for line := range bytes.Lines(out) {
		var r struct{ Name, Status, Alert, Message, Error string }
		if json.Unmarshal(line, &r) != nil || rank[r.Status] == 0 {
			continue
		}
		name := strings.TrimPrefix(r.Name, "minio-go: ")
		if rank[r.Status] > rank[worst[name]] {
			worst[name], why[name] = r.Status, strings.TrimSpace(r.Message+" "+r.Error+" "+r.Alert)
		}
	}
	return worst, why
}

func TestClientMinioGo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	dir, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/minio/minio-go/v7").Output()
	if err != nil {
		t.Fatalf("the module cache has no minio-go: %v", err)
	}
	suite := filepath.Join(t.TempDir(), "functional_tests")
	// The file is built from the module cache by its path, within this module.
	build := exec.CommandContext(ctx, "go", "build", "-o", suite, filepath.Join(strings.TrimSpace(string(dir)), "functional_tests.go"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building functional_tests.go: %v\n%s", err, out)
	}
	s := start(t, 4, "--sigv2")
	cmd := exec.CommandContext(ctx, suite)
	cmd.Dir = t.TempDir() // it leaves files behind
	cmd.Env = append(os.Environ(), "SERVER_ENDPOINT="+s.addr, "ACCESS_KEY="+accessKey, "SECRET_KEY="+secretKey, "ENABLE_HTTPS=0", "ENABLE_KMS=0",
		"MINT_MODE=full", "RUN_ON_FAIL=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()
	worst, why := outcomes(stdout.Bytes())
	list := notYet(t)
	var names []string
	count := map[string]int{}
	for n, status := range worst {
		names = append(names, n)
		count[status]++
	}
	sort.Strings(names)
	for _, n := range names {
		_, listed := list[n]
		switch {
		case worst[n] == "PASS" && listed:
			t.Errorf("%s passes: take it off the list", n)
		case worst[n] != "PASS" && !listed:
			t.Errorf("%s: %s: %s", n, worst[n], why[n])
		}
	}
	for n := range list {
		if worst[n] == "" {
			t.Errorf("%s is on the list, and the suite has no such case", n)
		}
	}
	if len(worst) < 60 {
		t.Errorf("only %d cases reported; the suite ended early: %v\n%s", len(worst), runErr, tailOf(stderr.String()))
	}
	t.Logf("minio-go: %d pass, %d fail, %d not applicable; %d are listed as not yet applicable", count["PASS"], count["FAIL"], count["NA"], len(list))
}

func tailOf(s string) string {
	if len(s) > 3000 {
		return "…" + s[len(s)-3000:]
	}
	return s
}

func TestTheReportOfTheSuiteIsReadRight(t *testing.T) {
	worst, _ := outcomes([]byte(`{"name":"minio-go: a","status":"PASS"}
{"name":"minio-go: a","status":"FAIL","message":"m"}
{"name":"minio-go: a","status":"PASS"}
{"name":"minio-go: b","status":"NA"}
not JSON
{"name":"minio-go: c","status":"PASS"}
`))
	if fmt.Sprint(worst) != "map[a:FAIL b:NA c:PASS]" {
		t.Errorf("got %v", worst)
	}
}
