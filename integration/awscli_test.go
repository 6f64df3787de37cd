package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// aws runs the aws CLI against the server, away from the user's own configuration.
type awsCLI struct {
	t    *testing.T
	s    *server
	home string
}

func newAWS(t *testing.T, s *server) awsCLI {
	t.Helper()
	// A shim that stands for nothing also counts as missing.
	if err := exec.Command("aws", "--version").Run(); err != nil {
		if *requireAWS {
			t.Fatalf("the aws CLI does not run (%v), and -require-aws asks for it", err)
		}
		t.Skipf("NOT RUN: the aws CLI is not installed (%v); apt-get install awscli", err)
	}
	a := awsCLI{t: t, s: s, home: t.TempDir()}
	// Version 1 of the CLI presigns with Signature Version 2 unless it is told, and the store has that off.
	if err := os.WriteFile(filepath.Join(a.home, "config"), []byte("[default]\ns3 =\n  signature_version = s3v4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a awsCLI) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "aws", append([]string{"--endpoint-url", a.s.url()}, args...)...)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "AWS_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, "AWS_ACCESS_KEY_ID="+accessKey, "AWS_SECRET_ACCESS_KEY="+secretKey, "AWS_DEFAULT_REGION="+region,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE="+filepath.Join(a.home, "config"),
		"AWS_SHARED_CREDENTIALS_FILE="+filepath.Join(a.home, "credentials"), "AWS_PAGER=")
	return cmd
}

// run runs a command that must succeed, and returns what it printed.
func (a awsCLI) run(args ...string) string {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 5*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := a.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		a.t.Fatalf("aws %s: %v\n%s%s", strings.Join(args, " "), err, tailOf(stdout.String()), tailOf(stderr.String()))
	}
	return stdout.String()
}

// writeFile writes a body to a file.
func writeFile(t *testing.T, name string, b *body) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, newBody(b.seed, b.n)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// sameFile compares a file with a body, by hash.
func sameFile(t *testing.T, name string, want *body) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	got, n, err := sum(f)
	if err != nil || n != want.n || got != want.sum() {
		t.Errorf("%s: %d bytes with hash %.12s, %v; want %d with %.12s", name, n, got, err, want.n, want.sum())
	}
}

func TestClientAWSCLI(t *testing.T) {
	s := start(t, 4)
	a := newAWS(t, s)
	dir := t.TempDir()
	a.run("s3", "mb", "s3://cli")

	sizes := map[string]int64{"0": 0, "1": 1, "5MiB-1": 5*mib - 1, "100MiB": 100 * mib}
	if *long {
		sizes["1GiB"] = gib
	}
	for name, size := range sizes {
		b := newBody(uint64(size), size)
		file := filepath.Join(dir, "up-"+name)
		writeFile(t, file, b)
		a.run("s3", "cp", "--only-show-errors", file, "s3://cli/cp/"+name)
		fetch(t, s.s3(), "cli", "cp/"+name, b)
		back := filepath.Join(dir, "down-"+name)
		a.run("s3", "cp", "--only-show-errors", "s3://cli/cp/"+name, back)
		sameFile(t, back, b)
		a.run("s3", "cp", "--only-show-errors", "s3://cli/cp/"+name, "s3://cli/copied/"+name)
		fetch(t, s.s3(), "cli", "copied/"+name, b)
	}

	t.Log("sync of a tree, with names that are not easy")
	tree := map[string]*body{}
	for i, name := range []string{"a.txt", "dir/b c.txt", "dir/deep/er/d+e.txt", "ü/ñ.txt", "dir/100%.txt", "dir/[x]&y=z.txt", "empty"} {
		b := newBody(uint64(1000+i), int64(i*i*3000))
		if name == "empty" {
			b = newBody(0, 0)
		}
		tree[name] = b
		writeFile(t, filepath.Join(dir, "tree", name), b)
	}
	a.run("s3", "sync", "--only-show-errors", filepath.Join(dir, "tree"), "s3://cli/tree")
	if out := a.run("s3", "sync", filepath.Join(dir, "tree"), "s3://cli/tree"); strings.TrimSpace(out) != "" {
		t.Errorf("a second sync uploads again:\n%s", out)
	}
	a.run("s3", "sync", "--only-show-errors", "s3://cli/tree", filepath.Join(dir, "back"))
	for name, b := range tree {
		sameFile(t, filepath.Join(dir, "back", name), b)
		fetch(t, s.s3(), "cli", "tree/"+name, b)
	}

	t.Log("recursive ls")
	listed := a.run("s3", "ls", "--recursive", "s3://cli/tree/")
	var got []string
	for line := range strings.Lines(listed) {
		f := strings.SplitN(strings.TrimSpace(line), " tree/", 2)
		if len(f) != 2 {
			t.Errorf("the line %q has no key", line)
			continue
		}
		got = append(got, f[1])
	}
	var want []string
	for name := range tree {
		want = append(want, name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("ls --recursive prints %q, want %q", got, want)
	}
	if out := a.run("s3", "ls", "s3://cli"); !strings.Contains(out, "PRE tree/") || !strings.Contains(out, "PRE cp/") {
		t.Errorf("ls prints no prefixes:\n%s", out)
	}

	t.Log("presign, fetched by another client")
	link := strings.TrimSpace(a.run("s3", "presign", "s3://cli/tree/dir/deep/er/d+e.txt"))
	fetchURL(t, link, tree["dir/deep/er/d+e.txt"])
	if curl, err := exec.LookPath("curl"); err == nil {
		out, err := exec.CommandContext(t.Context(), curl, "-sSf", link).Output()
		if b := tree["dir/deep/er/d+e.txt"]; err != nil || fmt.Sprintf("%x", sha256.Sum256(out)) != b.sum() {
			t.Errorf("curl: %d bytes, %v", len(out), err)
		}
	}

	t.Log("rm and rb")
	a.run("s3", "rm", "--only-show-errors", "s3://cli/tree/empty")
	a.run("s3", "rm", "--only-show-errors", "--recursive", "s3://cli")
	if out := a.run("s3", "ls", "--recursive", "s3://cli"); strings.TrimSpace(out) != "" {
		t.Errorf("after rm --recursive there is still:\n%s", out)
	}
	a.run("s3", "rb", "s3://cli")
	if out := a.run("s3", "ls"); strings.Contains(out, "cli") {
		t.Errorf("after rb the bucket is listed:\n%s", out)
	}
}

// fetchURL gets a URL and compares the body, by hash.
func fetchURL(t *testing.T, link string, want *body) {
	t.Helper()
	resp, err := http.Get(link)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	got, n, err := sum(resp.Body)
	if err != nil || resp.StatusCode != 200 || n != want.n || got != want.sum() {
		t.Errorf("%s: %s, %d bytes with hash %.12s, %v; want %d with %.12s", link, resp.Status, n, got, err, want.n, want.sum())
	}
}
