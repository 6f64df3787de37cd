package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rootkeys"
)

// command runs one command line and returns its code and what it printed.
func command(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(t.Context(), process{args: args, environ: environ, stdout: &out, stderr: &errOut, interrupted: func() {}})
	return code, out.String(), errOut.String()
}

func TestWrongCommandLinesEndWithTwoAndAReason(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		env  []string
		code int
		says string
	}{
		{"a server without drives", []string{"server"}, nil, 2, "no drive"},
		{"an unknown flag", []string{"server", "--no-such-flag", "/x"}, nil, 2, "--help"},
		{"an unknown command", []string{"serve"}, nil, 1, "unknown command"},
		{"an object without key", []string{"admin", "object", "inspect", "bucket"}, nil, 2, "BUCKET/KEY"},
		{"no object at all", []string{"admin", "object", "inspect"}, nil, 2, "BUCKET/KEY"},
		{"no keys", []string{"admin", "status"}, nil, 2, "OSTRAKA_ACCESS_KEY"},
		{"an endpoint that is no URL", []string{"admin", "status", "--endpoint", "localhost:9000"}, nil, 2, "URL"},
		{"a server that is not there", []string{"admin", "status", "--endpoint", "http://127.0.0.1:1"}, []string{"OSTRAKA_ACCESS_KEY=abc", "OSTRAKA_SECRET_KEY=12345678"}, 1, "does not answer"},
		{"a size that is none", []string{"bench", "--sizes", "big"}, []string{"OSTRAKA_ACCESS_KEY=abc", "OSTRAKA_SECRET_KEY=12345678"}, 2, "big"},
		{"keys of a directory that has none", []string{"admin", "keys", t.TempDir()}, nil, 2, rootkeys.FileName},
	} {
		code, stdout, stderr := command(t, c.env, c.args...)
		if code != c.code || !strings.Contains(stderr, c.says) || stdout != "" {
			t.Errorf("%s: code %d, printed %q and %q; want %d and %q", c.name, code, stdout, stderr, c.code, c.says)
		}
	}
}

func TestKeysArePrintedForAShell(t *testing.T) {
	dir := t.TempDir()
	k := rootkeys.Generate()
	if err := rootkeys.Write([]string{dir}, k); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := command(t, nil, "admin", "keys", dir)
	want := "export AWS_ACCESS_KEY_ID='" + k.Access + "'\nexport AWS_SECRET_ACCESS_KEY='" + k.Secret + "'\n"
	if code != 0 || out != want {
		t.Errorf("code %d, got %q (%s), want %q", code, out, stderr, want)
	}
}

func TestAnErrorIsExplainedWithItsCause(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"text and cause", &errs.Error{Op: "o", Msg: "cannot listen", Err: os.ErrPermission}, "cannot listen: permission denied"},
		{"a text that is wrapped", errs.Wrap("o", errs.E("i", errs.Invalid, "bad drive")), "bad drive"},
		{"the first of several", errors.Join(errs.E("i", errs.Invalid, "bad drive"), errors.New("other")), "bad drive"},
		{"no text at all", errs.E("disk.Open", errs.Drive, ""), "disk.Open: drive fault"},
		{"a stranger", io.ErrUnexpectedEOF, "unexpected EOF"},
	} {
		if got := explain(c.err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestAFirstStartWithoutADirectorySaysWhichAndWhatToDo(t *testing.T) {
	dir := t.TempDir()
	here, gone := filepath.Join(dir, "d1"), filepath.Join(dir, "d2")
	if err := os.Mkdir(here, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, says string
		paths      []string
	}{
		{"one of two", "a new cluster is formed only over directories that are all there and empty: ", []string{here, gone}},
		{"the only one", "no drive could be opened: ", []string{gone}},
	} {
		code, _, stderr := command(t, rootEnv, append([]string{"server", "--address", "127.0.0.1:0"}, c.paths...)...)
		want := "ostraka: " + c.says + "drive " + gone + " does not exist: mount the disk, or create an empty directory for a new drive\n"
		if code != 1 || !strings.HasSuffix(stderr, want) {
			t.Errorf("%s: code %d, %q; want %q", c.name, code, stderr, want)
		}
	}
}

func TestABadCertificateFormsNoStore(t *testing.T) {
	dir := t.TempDir()
	code, _, stderr := command(t, nil, "server", "--address", "127.0.0.1:0", "--tls-cert", "/none", "--tls-key", "/none", dir)
	if code != 2 || !strings.Contains(stderr, "/none") {
		t.Errorf("code %d, %q", code, stderr)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 0 {
		t.Errorf("the directory holds %q, %v; want nothing", left, err)
	}
}

func TestRequestsThatDoNotEndAreCutOffAtTheTimeout(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, l, h, nil, 10*time.Millisecond, slog.New(slog.DiscardHandler)) }()
	answered := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	}()
	<-began
	stop()
	if err := <-ended; !errs.Is(err, errs.Timeout) {
		t.Errorf("serve ended with %v, want kind timeout", err)
	}
	if err := <-answered; err == nil {
		t.Error("the request that was cut off got an answer")
	}
}

func TestTheMemoryLimitIsWhatWasAskedFor(t *testing.T) {
	before := limitMemory(0, "set") // -1: what it is
	defer limitMemory(config.Size(before), "")
	if got := limitMemory(300<<20, ""); got != 300<<20 {
		t.Errorf("asked for 300 MiB, got %d", got)
	}
	if got := limitMemory(0, ""); got < minMemory {
		t.Errorf("the limit of this machine is %d, want at least %d", got, minMemory)
	}
}
