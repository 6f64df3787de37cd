package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	accessKey = "integrationkey"
	secretKey = "integration-secret-key"
	region    = "us-east-1"
)

// server is one process of the binary under test. It outlives restarts: the directories, the
// address and the keys stay.
type server struct {
	t      testing.TB
	role   string // the command; "" is server
	dirs   []string
	exe    string // "": the one under test
	addr   string
	args   []string
	env    []string
	scheme string
	client *http.Client // for /-/ready

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	code   error         // of cmd; valid once exited is closed
	log    *logBuffer
}

// logBuffer keeps the end of what the process prints.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

const keptLog = 256 << 10

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	if len(b.buf) > 2*keptLog {
		b.buf = append(b.buf[:0], b.buf[len(b.buf)-keptLog:]...)
	}
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf)
}

// tail is the end of the log for the message of a failure.
func (b *logBuffer) tail() string { return b.last(6000) }

// last is the end of the log, at most so many bytes.
func (b *logBuffer) last(n int) string {
	s := b.String()
	if len(s) > n {
		s = "…" + s[len(s)-n:]
	}
	return s
}

// freeAddress finds a loopback port. Another process could take it before the server does; the
// kernel hands ports out in turn, so that this is rare, and start then says so.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newServer makes the directories of n drives and starts nothing.
func newServer(t testing.TB, n int, args ...string) *server {
	t.Helper()
	base := t.TempDir()
	s := &server{t: t, addr: freeAddress(t), args: args, scheme: "http", client: &http.Client{Timeout: 5 * time.Second}}
	s.env = append(os.Environ(), "OSTRAKA_ROOT_ACCESS_KEY="+accessKey, "OSTRAKA_ROOT_SECRET_KEY="+secretKey)
	for i := range n {
		dir := filepath.Join(base, "d"+strconv.Itoa(i+1))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		s.dirs = append(s.dirs, dir)
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() && s.log != nil {
			t.Logf("the end of the server's log:\n%s", s.log.tail())
		}
	})
	return s
}

// start starts a server over n fresh drives and waits until it is ready.
func start(t testing.TB, n int, args ...string) *server {
	t.Helper()
	s := newServer(t, n, args...)
	s.start()
	return s
}

// start launches the process and waits until it is ready; it returns how long that took.
func (s *server) start() time.Duration {
	s.t.Helper()
	begin := time.Now()
	s.launch()
	s.waitReady()
	return time.Since(begin)
}

// launch starts the process and does not wait.
func (s *server) launch() {
	s.t.Helper()
	role := s.role
	if role == "" {
		role = "server"
	}
	args := append([]string{role, "--address", s.addr}, s.args...)
	args = append(args, s.dirs...)
	cmd := exec.Command(cmp.Or(s.exe, *exe), args...)
	cmd.Env = s.env
	if s.log == nil {
		s.log = new(logBuffer)
	}
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("start %s: %v", *exe, err)
	}
	exited := make(chan struct{})
	s.cmd, s.exited = cmd, exited
	go func() {
		s.code = cmd.Wait()
		close(exited)
	}()
}

// waitReady polls /-/ready until it answers 200. It fails when the process ends or time is up.
func (s *server) waitReady() {
	s.t.Helper()
	poll(s.t, 30*time.Second, 5*time.Millisecond, "the server to be ready", func() error {
		select {
		case <-s.exited:
			s.t.Fatalf("the server ended before it was ready: %v\n%s", s.code, s.log.tail())
		default:
		}
		return s.probe("/-/ready")
	})
}

func (s *server) probe(path string) error {
	resp, err := s.client.Get(s.url() + path)
	if err != nil {
		return err
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return nil
}

func (s *server) url() string { return s.scheme + "://" + s.addr }

// kill ends the process without warning, if it runs.
func (s *server) kill() {
	if s.cmd == nil {
		return
	}
	// The process may have ended already; there is nothing left to do then.
	_ = s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

// stop asks the process to end, and fails if it takes longer than within or ends badly.
func (s *server) stop(within time.Duration) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatalf("SIGTERM: %v", err)
	}
	select {
	case <-s.exited:
	case <-time.After(within):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // it says where it hangs
		select {
		case <-s.exited:
		case <-time.After(10 * time.Second):
		}
		s.t.Fatalf("the server did not end within %v of SIGTERM\n%s", within, s.log.last(200_000))
	}
	if s.code != nil {
		s.t.Errorf("the server ended with %v after SIGTERM\n%s", s.code, s.log.tail())
	}
	s.cmd = nil
}

// takeDrive moves the directory of drive i away, as if its disk were pulled.
func (s *server) takeDrive(i int) {
	s.t.Helper()
	if err := os.Rename(s.dirs[i], s.dirs[i]+".away"); err != nil {
		s.t.Fatal(err)
	}
}

// returnDrive moves it back.
func (s *server) returnDrive(i int) {
	s.t.Helper()
	// A server that started without the drive must not have made a directory in its place.
	if err := os.Rename(s.dirs[i]+".away", s.dirs[i]); err != nil {
		s.t.Fatal(err)
	}
}

// ostraka runs a command of the binary to its end, with the keys in the environment.
func (s *server) ostraka(args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, *exe, args...)
	cmd.Env = append(os.Environ(), "OSTRAKA_ACCESS_KEY="+accessKey, "OSTRAKA_SECRET_KEY="+secretKey, "OSTRAKA_ENDPOINT="+s.url())
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err = cmd.Run()
	return o.String(), e.String(), err
}

// highWater is the most memory that the process ever held, in bytes (VmHWM).
func (s *server) highWater() int64 {
	s.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return kb << 10
		}
	}
	s.t.Fatal("no VmHWM in /proc/PID/status")
	return 0
}

// metric reads the sum of the samples of one metric whose labels contain all of match.
func (s *server) metric(name string, match ...string) (float64, error) {
	resp, err := s.client.Get(s.url() + "/-/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
lines:
	for line := range strings.Lines(string(raw)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, m := range match {
			if !strings.Contains(rest, m) {
				continue lines
			}
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, err
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("no metric %s %v", name, match)
	}
	return sum, nil
}

// poll asks check again and again until it returns nil; at the deadline it fails with the last
// error.
func poll(t testing.TB, limit, every time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		case <-tick.C:
		}
	}
}

// refused starts the binary with arguments that it must refuse, and returns what it said.
func refused(t *testing.T, env []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, *exe, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%q was not refused within 30 s\n%s", args, out)
	case !errors.As(err, &exit) || exit.ExitCode() <= 0:
		t.Fatalf("%q ended with %v, want an exit code that is not 0\n%s", args, err, out)
	}
	return string(out)
}
