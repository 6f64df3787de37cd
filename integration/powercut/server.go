//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
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
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// startPatience is how long a server may take to answer after its start.
const startPatience = 60 * time.Second

// server is one command that is started again and again over the same drives.
type server struct {
	c      *config
	addr   string
	points []string
	core   *minio.Core
	web    *http.Client

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	end    error         // of cmd; valid once exited is closed
	log    *tail
}

// tail keeps the end of what the server prints.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

const keptLog = 1 << 20

func (b *tail) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	if len(b.buf) > 2*keptLog {
		b.buf = append(b.buf[:0], b.buf[len(b.buf)-keptLog:]...)
	}
	return len(p), nil
}

func (b *tail) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) > keptLog {
		return "…" + string(b.buf[len(b.buf)-keptLog:])
	}
	return string(b.buf)
}

// last is the last line.
func (b *tail) last() string {
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	return lines[len(lines)-1]
}

// brief is the end of the log, with only a few of the requests that failed, of which there are many.
func (b *tail) brief() string {
	var kept []string
	var left []string
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, "request failed") {
			left = append(left, line)
			continue
		}
		kept = append(kept, line)
	}
	return fmt.Sprintf("%s(%d lines about failed requests; the last of them:)\n%s", strings.Join(kept[max(0, len(kept)-150):], ""),
		len(left), strings.Join(left[max(0, len(left)-4):], ""))
}

func newServer(c *config, points []string) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{c: c, addr: l.Addr().String(), points: points, log: new(tail)}
	if err := l.Close(); err != nil {
		return nil, err
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.MaxIdleConnsPerHost = c.clients + 4
	tr.DisableCompression = true
	s.web = &http.Client{Transport: tr, Timeout: 5 * time.Second}
	s.core, err = minio.NewCore(s.addr, &minio.Options{
		Creds: credentials.NewStaticV4(c.access, c.secret, ""), Region: c.region,
		Transport: tr, MaxRetries: 1, BucketLookup: minio.BucketLookupPath,
	})
	return s, err
}

// launch starts the process, in a group of its own, and does not wait for it.
func (s *server) launch() error {
	var cmd *exec.Cmd
	if s.c.ostraka() {
		cmd = exec.Command(s.c.exe, append([]string{"server", "--address", s.addr}, s.points...)...)
	} else {
		line := strings.NewReplacer("{drives}", strings.Join(s.points, " "), "{address}", s.addr,
			"{access}", s.c.access, "{secret}", s.c.secret).Replace(s.c.server)
		cmd = exec.Command("/bin/sh", "-c", "exec "+line)
	}
	cmd.Env = append(os.Environ(), "OSTRAKA_ROOT_ACCESS_KEY="+s.c.access, "OSTRAKA_ROOT_SECRET_KEY="+s.c.secret)
	fmt.Fprintf(s.log, "--- start %s\n", time.Now().UTC().Format("15:04:05.000"))
	cmd.Stdout, cmd.Stderr = s.log, s.log
	// Descendants that keep the pipe must not keep Wait.
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.cmd, s.exited = cmd, exited
	go func() {
		s.end = cmd.Wait()
		close(exited)
	}()
	return nil
}

// start launches the process and waits until it answers; it returns how long that took.
func (s *server) start(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	if err := s.launch(); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	var last error
	for {
		call, done := context.WithTimeout(ctx, 5*time.Second)
		_, err := s.core.ListBuckets(call)
		done()
		if err == nil {
			return time.Since(begin), nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-s.exited:
			return 0, fmt.Errorf("%w: %v", errEnded, s.end)
		case <-ctx.Done():
			return 0, fmt.Errorf("the server did not answer within %v: %w", startPatience, last)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// strike kills the process and what it started, and does not wait.
func (s *server) strike() {
	if s.cmd != nil {
		// The group was made for it; it may have ended already.
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// gone waits for the end of the process that was struck.
func (s *server) gone() {
	if s.cmd != nil {
		<-s.exited
		s.cmd = nil
		s.web.CloseIdleConnections()
	}
}

func (s *server) kill() { s.strike(); s.gone() }

// holds lists what the process has open under a directory.
func (s *server) holds(dir string) (out []string) {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
	if err != nil {
		return []string{err.Error()}
	}
	for _, fd := range fds {
		// One that is closed between the two looks is not held.
		if to, err := os.Readlink(fd); err == nil && (to == dir || strings.HasPrefix(to, dir+"/")) {
			out = append(out, strings.TrimPrefix(to, dir))
		}
	}
	return out
}

// metric reads the sum of the samples of one metric whose labels contain label.
func (s *server) metric(name, label string) (int, error) {
	resp, err := s.web.Get("http://" + s.addr + "/-/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	sum, found := 0.0, false
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 8<<20))
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' || !strings.Contains(rest, label) {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, err
		}
		sum, found = sum+v, true
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	if !found {
		return 0, fmt.Errorf("no metric %s %s", name, label)
	}
	return int(sum), nil
}

// waitMetric polls until the metric has the value.
func (s *server) waitMetric(ctx context.Context, limit time.Duration, name, label string, want int) error {
	deadline := time.Now().Add(limit)
	for {
		got, err := s.metric(name, label)
		if err == nil && got == want {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v %s{%s} is %d, want %d: %w", limit, name, label, got, want, errors.Join(err, errNotYet))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var errEnded = errors.New("the server ended before it answered")

var errNotYet = errors.New("not yet")

// inspect returns an error unless every drive has the record and a verified shard of every chunk.
func (s *server) inspect(ctx context.Context, bucket, key string) error {
	cmd := exec.CommandContext(ctx, s.c.exe, "admin", "object", "inspect", "--verify", "--json", bucket+"/"+key)
	cmd.Env = append(os.Environ(), "OSTRAKA_ACCESS_KEY="+s.c.access, "OSTRAKA_SECRET_KEY="+s.c.secret, "OSTRAKA_ENDPOINT=http://"+s.addr)
	var out, say bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &say
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("inspect %s/%s: %w: %s", bucket, key, err, bytes.TrimSpace(say.Bytes()))
	}
	var in struct {
		Rows []struct {
			Drive int    `json:"drive"`
			State string `json:"state"`
		} `json:"rows"`
		Shards []struct {
			Part, Chunk, Drive int
			State, Detail      string
		} `json:"shards"`
	}
	if err := json.Unmarshal(out.Bytes(), &in); err != nil {
		return fmt.Errorf("inspect %s/%s: %w", bucket, key, err)
	}
	if len(in.Rows) != s.c.drives {
		return fmt.Errorf("%s/%s has %d records", bucket, key, len(in.Rows))
	}
	for _, r := range in.Rows {
		if r.State != "ok" {
			return fmt.Errorf("%s/%s: the record on drive %d is %s", bucket, key, r.Drive, r.State)
		}
	}
	chunks := map[[2]int]int{}
	for _, sh := range in.Shards {
		if sh.State != "verified" {
			return fmt.Errorf("%s/%s: part %d chunk %d on drive %d is %s %s", bucket, key, sh.Part, sh.Chunk, sh.Drive, sh.State, sh.Detail)
		}
		chunks[[2]int{sh.Part, sh.Chunk}]++
	}
	for c, n := range chunks {
		if n != s.c.drives {
			return fmt.Errorf("%s/%s: part %d chunk %d has %d shards", bucket, key, c[0], c[1], n)
		}
	}
	return nil
}
