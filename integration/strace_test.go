package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// injection is a strace that is attached to the server and makes system calls of it fail.
type injection struct {
	t    *testing.T
	cmd  *exec.Cmd
	file string
	end  chan error
	said *logBuffer
}

// inject makes calls of the server fail with EIO: those on exactly these paths, or all where there are
// none. when is strace's expression, counted for each thread: "2" is the second call, "" every call. It
// returns once strace is attached to every thread.
func (s *server) inject(t *testing.T, calls, when string, paths ...string) *injection {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		lacking(t, "no system call was made to fail: it needs strace")
	}
	if when != "" {
		when = ":when=" + when
	}
	i := &injection{t: t, file: filepath.Join(t.TempDir(), "strace"), end: make(chan error, 1), said: new(logBuffer)}
	args := []string{"-f", "-qq", "-p", strconv.Itoa(s.cmd.Process.Pid), "-o", i.file, "-e", "trace=" + calls, "-e", "inject=" + calls + ":error=EIO" + when}
	for _, p := range paths {
		args = append(args, "-P", p)
	}
	i.cmd = exec.Command(strace, args...)
	i.cmd.Stdout, i.cmd.Stderr = i.said, i.said
	if err := i.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { i.end <- i.cmd.Wait() }()
	t.Cleanup(i.stop)
	pid := s.cmd.Process.Pid
	poll(t, 30*time.Second, 10*time.Millisecond, "strace to attach", func() error {
		select {
		case err := <-i.end:
			i.end <- err
			lacking(t, fmt.Sprintf("no system call was made to fail: strace cannot attach (%v): %s", err, i.said.tail()))
		default:
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(threads) == 0 {
			return errors.Join(err, errors.New("no threads"))
		}
		for _, th := range threads {
			// A thread that ended meanwhile is not waited for.
			if raw, err := os.ReadFile(th); err == nil && strings.Contains(string(raw), "TracerPid:\t0\n") {
				return fmt.Errorf("%s is not traced", th)
			}
		}
		return nil
	})
	return i
}

// stop lets the calls succeed again. It may be called again.
func (i *injection) stop() {
	// It may have ended with the server.
	_ = i.cmd.Process.Signal(syscall.SIGTERM)
	err := <-i.end
	i.end <- err
}

// hits counts the calls that were made to fail.
func (i *injection) hits() int {
	raw, err := os.ReadFile(i.file)
	if err != nil {
		i.t.Fatal(err)
	}
	return strings.Count(string(raw), "(INJECTED)")
}

// waitHit waits until a call was made to fail. The load has to be running.
func (i *injection) waitHit() {
	i.t.Helper()
	poll(i.t, time.Minute, 10*time.Millisecond, "a call to fail", func() error {
		if i.hits() == 0 {
			return errors.New("none was met")
		}
		return nil
	})
}

// logFiles are the present log of drive i and those that come after it.
func (s *server) logFiles(i int) (out []string) {
	last := 0
	for _, f := range regularFiles(s.t, filepath.Join(s.dirs[i], "meta")) {
		if n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(f), ".log")); err == nil {
			last = max(last, n)
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		s.t.Fatal("the record store has no log")
	}
	for n := range 40 {
		out = append(out, filepath.Join(s.dirs[i], "meta", fmt.Sprintf("%06d.log", last+1+n)))
	}
	return out
}

// shardDirs are the directories of drive i that hold shard files.
func (s *server) shardDirs(i int) (out []string) {
	for n := range 256 {
		out = append(out, filepath.Join(s.dirs[i], "shards", fmt.Sprintf("%02x", n)))
	}
	return out
}

// onlyRefusals fails the test for each failure since the last call that is not a 503.
func (l *load) onlyRefusals(when string) (refused int) {
	l.t.Helper()
	for _, f := range l.takeFailures() {
		if f.status != http.StatusServiceUnavailable {
			l.t.Errorf("%s: %v, want no failure but 503", when, f)
		}
		refused++
	}
	return refused
}

// comeBack takes the directory of a quarantined drive away and returns it, upon which its drive is
// opened again: somebody has seen to it.
func (s *server) comeBack(i int) {
	s.t.Helper()
	reason := func() string {
		by, err := s.drives()
		if err != nil {
			return err.Error()
		}
		return by[s.dirs[i]].Reason
	}
	before := reason()
	s.takeDrive(i)
	poll(s.t, 20*time.Second, 20*time.Millisecond, "the server to see that the drive is away", func() error {
		if now := reason(); now == before {
			return fmt.Errorf("it says %s", now)
		}
		return nil
	})
	s.returnDrive(i)
	s.waitOnline(len(s.dirs))
}

// TestFaultEIOOnOneDrive makes writes and syncs of one drive fail. The drive is quarantined after the
// first failure, also where the next sync would succeed, and stays so; the load goes on; and when
// somebody has seen to the drive it is brought up to date.
func TestFaultEIOOnOneDrive(t *testing.T) {
	t.Parallel()
	ops := int64(80)
	if *long && !testing.Short() {
		ops = 800
	}
	s := startLoaded(t, 4)
	l, rng := newLoad(t, s, 40), random(41)
	l.resume()
	for n, c := range []struct {
		name, calls, when string
		paths             func(i int) []string
	}{
		{"one sync of the log", "fsync,fdatasync", "1", s.logFiles},
		{"every sync of the log", "fsync,fdatasync", "", s.logFiles},
		{"a write of the log", "write,pwrite64,writev", "1", s.logFiles},
		{"a sync of a directory of shards", "fsync", "1", s.shardDirs},
	} {
		if t.Failed() {
			return
		}
		i := (n + rng.IntN(4)) % 4
		l.advance(ops, time.Minute)
		l.noFailures("before " + c.name)
		in := s.inject(t, c.calls, c.when, c.paths(i)...)
		in.waitHit()
		s.waitOnline(3)
		refused := l.onlyRefusals(c.name)
		if refused > loadWorkers {
			t.Errorf("%s: %d requests were refused, want at most the %d in flight", c.name, refused, loadWorkers)
		}
		l.advance(ops, time.Minute)
		l.noFailures(c.name + ", drive out")
		hits := in.hits()
		in.stop()
		l.advance(ops, time.Minute)
		l.noFailures(c.name + ", drive healthy again and out")
		if online, err := s.metric("ostraka_drive_state", `state="online"`); err != nil || online != 3 {
			t.Errorf("%s: %v drives are online, %v, want 3: a failed sync is not healed by the next", c.name, online, err)
		}
		l.pause()
		l.verifyAll()
		by, err := s.drives()
		if err != nil || !strings.Contains(by[s.dirs[i]].Reason, "input/output error") {
			t.Errorf("%s: drive %d is %+v, %v; want it out for an I/O error", c.name, i+1, by[s.dirs[i]], err)
		}
		s.comeBack(i)
		l.verifyAll()
		s.waitHealed(l.present(), 2*time.Minute)
		t.Logf("%s of drive %d: %d calls failed, %d requests in flight were refused", c.name, i+1, hits, refused)
		l.resume()
	}
}

// TestFaultReadEIO makes every read of one drive's shards fail, then every read of its tables. Reads
// are served from the others; what was damaged only on the way is whole afterwards.
func TestFaultReadEIO(t *testing.T) {
	t.Parallel()
	s := startLoaded(t, 4)
	h := &held{t: t, bodies: map[string][]byte{}}
	h.hold(s, "a", random(43))
	var keys []string
	for k := range h.bodies {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	s.waitHealed(keys, time.Minute)
	s.stop(30 * time.Second)
	s.start() // what was in the log becomes tables
	i := random(44).IntN(4)
	for _, dir := range []string{"shards", "meta"} {
		in := s.inject(t, "pread64,read,preadv", "", regularFiles(t, filepath.Join(s.dirs[i], dir))...)
		h.check(s, "reads of "+dir+" fail")
		hits := in.hits()
		if dir == "shards" && hits == 0 {
			t.Error("no read was met")
		}
		in.stop()
		h.check(s, "reads succeed again")
		by, err := s.drives()
		if err != nil {
			t.Fatal(err)
		}
		if by[s.dirs[i]].State != "online" {
			t.Logf("drive %d is out: %s", i+1, by[s.dirs[i]].Reason)
			s.comeBack(i)
		}
		s.waitHealed(keys, time.Minute)
		t.Logf("%s of drive %d: %d reads failed", dir, i+1, hits)
	}
}

// TestFaultEIOAnywhere makes the n-th call of some kind of any thread fail, whatever drives that hits. No
// acknowledged write may be lost, whether one drive is out afterwards or all; after a restart all
// serve again.
func TestFaultEIOAnywhere(t *testing.T) {
	t.Parallel()
	rounds, ops := 3, int64(60)
	if *long && !testing.Short() {
		rounds, ops = 60, 200
	}
	s := startLoaded(t, 4)
	l, rng := newLoad(t, s, 45), random(46)
	l.resume()
	calls := []string{"fdatasync", "pwrite64", "fsync", "ftruncate", "fallocate", "unlinkat", "fdatasync,fsync,pwrite64"}
	hit := map[string]int{}
	out := map[int]int{}
	for round := range rounds {
		l.advance(ops, time.Minute)
		l.noFailures("before")
		call := calls[round%len(calls)]
		if round >= len(calls) {
			call = calls[rng.IntN(len(calls))]
		}
		when := 1 + rng.IntN(4)
		in := s.inject(t, call, strconv.Itoa(when))
		met := l.tryHit(in, rng)
		in.stop()
		hit[call] += in.hits()
		online := s.settledOnline()
		out[len(s.dirs)-online]++
		name := fmt.Sprintf("round %d: call %d of %s fails (met %v), %d drives online", round, when, call, met, online)
		l.onlyRefusals(name)
		l.advance(ops, 2*time.Minute)
		l.pause()
		refused := l.onlyRefusals(name)
		if online >= 3 && refused > loadWorkers {
			t.Errorf("%s: %d requests were refused", name, refused)
		}
		if online >= 3 {
			l.verifyAll()
		}
		s.stop(30 * time.Second)
		s.start()
		s.waitOnline(4)
		l.verifyAll()
		if t.Failed() {
			t.Fatalf("%s (seed %d)", name, *seedFlag)
		}
		s.waitHealed(l.present(), 2*time.Minute)
		l.resume()
	}
	t.Logf("%d rounds, %d operations; calls that failed %v; rounds by drives lost %v", rounds, l.ops.Load(), hit, out)
}

// tryHit waits until a call was made to fail, or a number of operations went by without.
func (l *load) tryHit(in *injection, rng *rand.Rand) bool {
	l.t.Helper()
	target := l.ops.Load() + 200
	poll(l.t, time.Minute, 10*time.Millisecond, "a call to fail", func() error {
		if in.hits() == 0 && l.ops.Load() < target {
			return errors.New("none yet")
		}
		return nil
	})
	return in.hits() > 0
}

// settledOnline returns how many drives are online once two looks agree: a drive that has failed leaves within a
// moment.
func (s *server) settledOnline() int {
	s.t.Helper()
	last := -1
	poll(s.t, 30*time.Second, 300*time.Millisecond, "the drives to settle", func() error {
		n, err := s.metric("ostraka_drive_state", `state="online"`)
		if err != nil {
			return err
		}
		before := last
		if last = int(n); before != last {
			return fmt.Errorf("%d and %d are online", before, last)
		}
		return nil
	})
	return last
}
