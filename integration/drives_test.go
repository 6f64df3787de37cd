package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// driveState is one drive of `ostraka admin status --json`.
type driveState struct {
	Path   string `json:"path"`
	State  string `json:"state"`
	Reason string `json:"reason"`
}

// drives asks the status of all drives, by path.
func (s *server) drives() (map[string]driveState, error) {
	out, stderr, err := s.ostraka("admin", "status", "--json")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr)
	}
	var st struct {
		Drives []driveState `json:"drives"`
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return nil, err
	}
	by := map[string]driveState{}
	for _, d := range st.Drives {
		by[d.Path] = d
	}
	return by, nil
}

// waitOnline waits until exactly n drives are online.
func (s *server) waitOnline(n int) {
	s.t.Helper()
	poll(s.t, 30*time.Second, 20*time.Millisecond, fmt.Sprintf("%d drives online", n), func() error {
		online, err := s.metric("ostraka_drive_state", `state="online"`)
		if err == nil && int(online) != n {
			err = fmt.Errorf("%v are", online)
		}
		return err
	})
}

// inspection is what the tests read of `ostraka admin object inspect --json`.
type inspection struct {
	Profile string `json:"profile"`
	DataID  string `json:"data_id"`
	Whole   bool   `json:"whole"`
	Rows    []struct {
		Drive int    `json:"drive"`
		State string `json:"state"`
	} `json:"rows"`
	Shards []struct {
		Part   int    `json:"part"`
		Chunk  int    `json:"chunk"`
		Index  int    `json:"index"`
		Drive  int    `json:"drive"`
		Path   string `json:"path"`
		State  string `json:"state"`
		Detail string `json:"detail"`
	} `json:"shards"`
}

// inspect asks where the rows and shards of an object are; every shard is read.
func (s *server) inspect(bucket, key string) (*inspection, error) {
	out, stderr, err := s.ostraka("admin", "object", "inspect", "--verify", "--json", bucket+"/"+key)
	if err != nil {
		return nil, fmt.Errorf("inspect %s/%s: %w: %s", bucket, key, err, stderr)
	}
	in := new(inspection)
	return in, json.Unmarshal([]byte(out), in)
}

// wholeOn returns an error unless every one of n drives has a record of the object, and a verified
// shard of each of its chunks, each with another index.
func (in *inspection) wholeOn(n int) error {
	if len(in.Rows) != n {
		return fmt.Errorf("%d rows, want %d", len(in.Rows), n)
	}
	for _, r := range in.Rows {
		if r.State != "ok" {
			return fmt.Errorf("the record on drive %d is %s", r.Drive, r.State)
		}
	}
	drives, indexes := map[[3]int]bool{}, map[[3]int]bool{}
	chunks := map[[2]int]int{}
	for _, sh := range in.Shards {
		if sh.State != "verified" {
			return fmt.Errorf("part %d chunk %d shard %d on drive %d is %s %s", sh.Part, sh.Chunk, sh.Index, sh.Drive, sh.State, sh.Detail)
		}
		c := [2]int{sh.Part, sh.Chunk}
		chunks[c]++
		drives[[3]int{c[0], c[1], sh.Drive}] = true
		indexes[[3]int{c[0], c[1], sh.Index}] = true
	}
	for c, have := range chunks {
		if have != n {
			return fmt.Errorf("part %d chunk %d has %d shards, want %d", c[0], c[1], have, n)
		}
	}
	if len(drives) != n*len(chunks) || len(indexes) != n*len(chunks) {
		return errors.New("two shards of a chunk share a drive or an index")
	}
	if !in.Whole {
		return errors.New("the inspector does not call it whole")
	}
	return nil
}

// waitHealed waits until every object of the load is whole on every drive. In the long form it then
// waits until no repair is outstanding: those of replaced bodies stay for the grace of readers. The
// load has to be paused and verified.
func (s *server) waitHealed(keys []string, limit time.Duration) {
	s.t.Helper()
	begin := time.Now()
	deadline := begin.Add(limit)
	for _, key := range keys {
		poll(s.t, max(time.Until(deadline), time.Second), 100*time.Millisecond, key+" to be whole", func() error {
			in, err := s.inspect(loadBucket, key)
			if err != nil {
				return err
			}
			return in.wholeOn(len(s.dirs))
		})
	}
	s.t.Logf("%d objects verified on each of %d drives after %v", len(keys), len(s.dirs), time.Since(begin).Round(time.Millisecond))
	if !*long || testing.Short() {
		return
	}
	poll(s.t, 5*time.Minute, 100*time.Millisecond, "the repairs to drain", func() error {
		n, err := s.metric("ostraka_repair_backlog")
		if err == nil && n > 0 {
			err = fmt.Errorf("%v are outstanding", n)
		}
		return err
	})
	s.t.Logf("no repair outstanding after %v", time.Since(begin).Round(time.Millisecond))
}

// noFailures fails the test for each recorded failure of the load.
func (l *load) noFailures(when string) {
	l.t.Helper()
	for i, f := range l.takeFailures() {
		l.t.Errorf("%s: %v", when, f)
		if i == 20 {
			break
		}
	}
}

// checkLoss holds the failures around the loss of one drive against what is promised: only requests
// in flight at that moment may have failed, and only with 503.
func (l *load) checkLoss(when string, at time.Time) {
	l.t.Helper()
	failed := l.takeFailures()
	for _, f := range failed {
		if f.status != http.StatusServiceUnavailable || f.begin.After(at) {
			l.t.Errorf("%s: %v (begun %v after the loss), want no failure but 503 for what was in flight", when, f, f.begin.Sub(at))
		}
	}
	if len(failed) > loadWorkers {
		l.t.Errorf("%s: %d requests failed, want at most the %d in flight", when, len(failed), loadWorkers)
	}
	l.t.Logf("%s: %d requests in flight were answered 503", when, len(failed))
}

// atLength bounds how long a busy machine may take for some of a load.
const atLength = 10 * time.Minute

// promptly is within what a write that cannot succeed is refused.
const promptly = 2 * time.Second

// TestDrivesLostAndReturned takes drives away under load. With one of four everything goes on, with
// two everything stays readable and writes are refused promptly, and when they are back every drive
// gets everything that it missed.
func TestDrivesLostAndReturned(t *testing.T) {
	rounds, ops := 1, int64(150)
	if *long && !testing.Short() {
		rounds, ops = 6, 1500
	}
	s := startLoaded(t, 4)
	l := newLoad(t, s, 1)
	rng := random(2)
	l.resume()
	l.advance(ops, atLength)
	l.noFailures("with all drives")
	for round := range rounds {
		// The first drive first: it must not be more than the others.
		first := round % 4
		second := (first + 1 + rng.IntN(3)) % 4

		at := time.Now()
		s.takeDrive(first)
		l.advance(ops, atLength)
		l.checkLoss(fmt.Sprintf("round %d, drive %d lost", round, first+1), at)
		s.waitOnline(3)
		bucket := "made-without-drive-" + strconv.Itoa(round)
		if err := newMinioStore(t, s, "").core.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{}); err != nil {
			t.Errorf("making a bucket with drive %d away: %v", first+1, err)
		}
		l.advance(ops, atLength)
		l.noFailures("with one drive away")

		// What is acknowledged and decided has to stay readable. Decisions are written right after
		// their acknowledgement; that they are there shows in nothing but the reads below.
		l.pause()
		l.verifyAll()
		s.takeDrive(second)
		probeLoss(t, s, rng.Uint64())
		s.waitOnline(2)
		l.verifyAll()
		acked := l.puts.Load()
		l.resume()
		l.advance(ops, atLength)
		refusals := 0
		for _, f := range l.takeFailures() {
			switch took := f.end.Sub(f.begin); {
			case !f.writes():
				t.Errorf("with two drives away: %v, want what was acknowledged to be readable", f)
			case f.status != http.StatusServiceUnavailable || f.code != "SlowDown":
				t.Errorf("with two drives away: %v, want 503 SlowDown", f)
			case took > promptly:
				t.Errorf("with two drives away: %v, want an answer within %v", f, promptly)
			default:
				refusals++
			}
		}
		if n := l.puts.Load() - acked; n > 0 || refusals == 0 {
			t.Errorf("with two drives away %d writes were acknowledged and %d refused, want none and some", n, refusals)
		}

		// They come back, in either order; the load goes on meanwhile.
		back := []int{first, second}
		if rng.IntN(2) == 0 {
			slices.Reverse(back)
		}
		s.returnDrive(back[0])
		s.waitOnline(3)
		l.pause() // what was in flight may still have been refused
		l.takeFailures()
		l.resume()
		l.advance(ops, atLength)
		l.noFailures("with one of two drives back")
		s.returnDrive(back[1])
		s.waitOnline(4)
		l.advance(ops, atLength)
		l.noFailures("with all drives back")
		l.pause()
		l.verifyAll()
		s.waitHealed(l.present(), 2*time.Minute)
		if t.Failed() {
			return
		}
		if round < rounds-1 {
			l.resume()
		}
	}
	s.stop(30 * time.Second)
	s.start()
	l.verifyAll()
}

// probeLoss writes from the moment of the second loss until the first refusal: what the store does
// not know yet it may still acknowledge, but it must not hang.
func probeLoss(t *testing.T, s *server, seed uint64) {
	t.Helper()
	c := newAWSStore(t, s, loadBucket)
	begin, acked := time.Now(), 0
	poll(t, 20*time.Second, time.Millisecond, "writes to be refused", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		at := time.Now()
		err := c.put(ctx, fmt.Sprintf("probe/%d", acked), randomBody(seed, 200<<10))
		if took := time.Since(at); took > promptly {
			t.Errorf("PUT right after the second loss took %v, want at most %v: %v", took, promptly, err)
		}
		if err == nil {
			acked++
			return errors.New("acknowledged")
		}
		if status, code := answered(err); status != http.StatusServiceUnavailable || code != "SlowDown" {
			t.Errorf("PUT right after the second loss: %d %s %v, want 503 SlowDown", status, code, err)
		}
		return nil
	})
	t.Logf("the second loss was noticed after %v and %d writes", time.Since(begin).Round(time.Millisecond), acked)
}

// TestStartWithADriveAway starts over three of four drives. Nothing may be made in place of the
// missing one, and it takes its place again when it is back.
func TestStartWithADriveAway(t *testing.T) {
	s := startLoaded(t, 4)
	l := newLoad(t, s, 3)
	l.resume()
	l.advance(100, time.Minute)
	l.pause()
	for i := range s.dirs {
		s.stop(30 * time.Second)
		s.takeDrive(i)
		s.start()
		l.verifyAll()
		l.resume()
		l.advance(50, time.Minute)
		l.pause()
		l.noFailures(fmt.Sprintf("started without drive %d", i+1))
		s.returnDrive(i) // fails where something was made in its place
		s.waitOnline(4)
		l.verifyAll()
	}
	s.waitHealed(l.present(), time.Minute)
}
