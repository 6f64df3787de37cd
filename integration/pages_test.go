package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The commands of the pages that take a reader by the hand, as they stand there, one after the other, in a network of
// their own, where the ports that they name are free.

// commandsOf returns the indented blocks of a page, from one heading up to, and without, another.
func commandsOf(t *testing.T, page, from, to string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n## "+from+"\n")
	if !ok {
		t.Fatalf("%s has no heading %q", page, from)
	}
	rest, _, ok = strings.Cut(rest, "\n## "+to+"\n")
	if !ok {
		t.Fatalf("%s has no heading %q", page, to)
	}
	var script strings.Builder
	fenced := false
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if command, ok := strings.CutPrefix(line, "    "); ok && !fenced {
			script.WriteString(command)
		}
	}
	return script.String()
}

// follow runs commands in an empty directory that has what a checkout has, and returns what they print. The first that
// fails ends them. Whatever they started ends with the test.
func follow(t *testing.T, script string) string {
	t.Helper()
	newAWS(t, nil) // fails or skips where there is no aws CLI
	dir := t.TempDir()
	readme, err := os.ReadFile("../README.md")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "README.md"), readme, 0o600)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "bin"), 0o700)
	}
	if err == nil {
		err = os.Symlink(*exe, filepath.Join(dir, "bin", "ostraka"))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -eu; shopt -s expand_aliases; trap 'echo \"ended by: $BASH_COMMAND\" >&2' ERR\n"+script)
	cmd.Dir = dir
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "AWS_") && !strings.HasPrefix(e, "OSTRAKA_") && !strings.HasPrefix(e, "HOME=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, "HOME="+dir, "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=")
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second // for what it started and still writes
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	defer func() {
		if cmd.Process != nil {
			_ = kill() // nothing is left of the group, as a rule
		}
	}()
	if err := cmd.Run(); err != nil {
		logs, _ := filepath.Glob(filepath.Join(dir, "data", "c", "*.log"))
		for _, name := range logs {
			text, _ := os.ReadFile(name)
			t.Logf("%s:\n%s", filepath.Base(name), text[max(0, len(text)-4<<10):])
		}
		t.Fatalf("%v (%v)\n%s\n%s", err, context.Cause(ctx), &out, &log)
	}
	t.Logf("%s\n%s", &out, &log)
	return out.String()
}

// firstLines checks that each command that shows the first lines of an object did.
func firstLines(t *testing.T, script, out string) {
	t.Helper()
	want := strings.Count(script, "- | head -n")
	if got := strings.Count(out, "# Ostraka\n"); got != want || want == 0 {
		t.Errorf("the first line of the README is printed %d times by %d commands", got, want)
	}
}

func TestTheClusterPageAsWritten(t *testing.T) {
	t.Parallel()
	needLong(t, "nodes come, go and are given up, in minutes")
	if !inOwnNetwork(t) {
		return
	}
	newNet(t)
	script := commandsOf(t, "docs/cluster.md", "Three machines", "Roles")
	firstLines(t, script, follow(t, script))
}

func TestTheFirstSessionOfTheREADMEAsWritten(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	newNet(t)
	script := commandsOf(t, "README.md", "A first session", "Many machines")
	// What make run does, in another terminal.
	begin := "mkdir -p data/d{1,2,3,4}; bin/ostraka server 'data/d{1...4}' > data/log 2>&1 & server=$!\n" +
		"until curl -sf http://127.0.0.1:9000/-/ready; do sleep 0.2; done\n"
	firstLines(t, script, follow(t, begin+script+"\nkill $server; wait $server\n"))
}
