package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// held is what a bucket has to hold: bodies by key. It is what the damage is measured against.
type held struct {
	t      testing.TB
	bodies map[string][]byte
	gone   []string // keys that were deleted
}

// check reads, in whole and in part, and lists; nothing may fail or differ.
func (h *held) check(s *server, when string) {
	h.t.Helper()
	for _, c := range []store{newMinioStore(h.t, s, loadBucket), newAWSStore(h.t, s, loadBucket)} {
		for _, key := range slices.Sorted(maps.Keys(h.bodies)) {
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			got, err := c.get(ctx, key)
			cancel()
			switch want := h.bodies[key]; {
			case err != nil:
				h.t.Errorf("%s: GET %s: %v, want %v", when, key, err, contentOf(want))
			case !bytes.Equal(got, want):
				h.t.Errorf("%s: GET %s: %v, want %v", when, key, contentOf(got), contentOf(want))
			}
		}
		for _, key := range h.gone {
			if _, err := c.get(context.Background(), key); !errors.Is(err, errAbsent) {
				h.t.Errorf("%s: GET %s: %v, want no such key: it was deleted", when, key, err)
			}
		}
		names, err := c.list(context.Background(), "held/", 5)
		if err != nil {
			h.t.Errorf("%s: LIST: %v", when, err)
			continue
		}
		got := map[string]int64{}
		for _, n := range names {
			got[n.key] = n.size
		}
		want := map[string]int64{}
		for k, b := range h.bodies {
			want[k] = int64(len(b))
		}
		if !maps.Equal(got, want) {
			h.t.Errorf("%s: LIST: %v, want %v", when, got, want)
		}
	}
	h.ranges(s, when)
}

// ranges reads a few random ranges of each body.
func (h *held) ranges(s *server, when string) {
	h.t.Helper()
	c, rng := newMinioStore(h.t, s, loadBucket), random(29)
	for key, want := range h.bodies {
		for range 3 {
			if len(want) == 0 {
				continue
			}
			first := rng.IntN(len(want))
			last := first + rng.IntN(len(want)-first)
			var o minio.GetObjectOptions
			if err := o.SetRange(int64(first), int64(last)); err != nil {
				h.t.Fatal(err)
			}
			if first == 0 && last == 0 {
				continue // SetRange(0, 0) asks for the whole
			}
			r, _, _, err := c.core.GetObject(context.Background(), loadBucket, key, o)
			if err != nil {
				h.t.Errorf("%s: GET %s bytes %d-%d: %v", when, key, first, last, err)
				continue
			}
			got, err := io.ReadAll(r)
			r.Close()
			if err != nil || !bytes.Equal(got, want[first:last+1]) {
				h.t.Errorf("%s: GET %s bytes %d-%d: %d bytes, err %v, that are not those of the body", when, key, first, last, len(got), err)
			}
		}
	}
}

// heldSizes are small enough to be copied often, and cover inline bodies, short and several stripes
// and several chunks.
var heldSizes = []int{0, 1, 4 << 10, 64 << 10, 64<<10 + 1, 200 << 10, 700 << 10, 2<<20 + 17}

// hold writes bodies of all sizes under prefix.
func (h *held) hold(s *server, prefix string, rng *rand.Rand) {
	h.t.Helper()
	c := newMinioStore(h.t, s, loadBucket)
	for i, size := range heldSizes {
		key := fmt.Sprintf("held/%s-%d", prefix, i)
		body := randomBody(rng.Uint64(), size)
		if err := c.put(h.t.Context(), key, body); err != nil {
			h.t.Fatal(err)
		}
		h.bodies[key] = body
	}
	parts := [][]byte{randomBody(rng.Uint64(), 300<<10), randomBody(rng.Uint64(), 5)}
	key := "held/" + prefix + "-parts"
	if _, err := c.multipart(h.t.Context(), key, parts); err != nil {
		h.t.Fatal(err)
	}
	h.bodies[key] = bytes.Join(parts, nil)
}

// shardFile is one file below shards/, named as docs/disk-format.md says.
type shardFile struct {
	name  string // full
	chunk string // data id and chunk
	size  int64
}

// shardFiles returns the shard files of all drives by chunk, in the order of the drives.
func (s *server) shardFiles() map[string][]shardFile {
	s.t.Helper()
	by := map[string][]shardFile{}
	for _, dir := range s.dirs {
		for _, f := range regularFiles(s.t, filepath.Join(dir, "shards")) {
			base := filepath.Base(f)
			dot := strings.LastIndexByte(base, '.')
			if dot < 0 {
				s.t.Fatalf("%s is not <data id>.<chunk>.<index>", f)
			}
			st, err := os.Stat(f)
			if err != nil {
				s.t.Fatal(err)
			}
			by[base[:dot]] = append(by[base[:dot]], shardFile{f, base[:dot], st.Size()})
		}
	}
	if len(by) == 0 {
		s.t.Fatal("there is no shard file to damage")
	}
	return by
}

// regularFiles returns the files below dir that are not empty, sorted.
func regularFiles(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Size() > 0 {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// invert flips random bits of n random bytes of a file that is not empty.
func invert(t testing.TB, rng *rand.Rand, name string, n int) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		at, b := rng.Int64N(st.Size()), make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= byte(1 + rng.IntN(255))
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}

// ruin inverts a byte of each 4 KiB of a file, so that no block of it is left.
func ruin(t testing.TB, name string) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(raw); i += 4 << 10 {
		raw[i] ^= 0xff
	}
	rewrite(t, name, raw)
}

// rewrite changes the content of a file in place, as a failing disk would: it stays the same file to
// those that have it open.
func rewrite(t testing.TB, name string, raw []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(raw, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// damage does one of the things that happen to files, and says what.
func damage(t testing.TB, rng *rand.Rand, f, other shardFile) string {
	t.Helper()
	switch rng.IntN(6) {
	case 0:
		if err := os.Truncate(f.name, rng.Int64N(f.size)); err != nil {
			t.Fatal(err)
		}
		return "truncated"
	case 1:
		if err := os.Remove(f.name); err != nil {
			t.Fatal(err)
		}
		return "removed"
	case 2:
		// A misdirected write: whole, valid blocks, of something else.
		raw, err := os.ReadFile(other.name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return "given the content of another shard"
	case 3:
		ruin(t, f.name)
		return "ruined"
	default:
		invert(t, rng, f.name, 1+rng.IntN(4))
		return "flipped"
	}
}

// TestShardsDamaged damages shard files on up to m drives of each chunk, with the server running and
// not. Reads have to be right meanwhile, and every shard has to be whole again afterwards.
func TestShardsDamaged(t *testing.T) {
	rounds := 2
	if *long && !testing.Short() {
		rounds = 20
	}
	s := startLoaded(t, 4)
	h, rng := &held{t: t, bodies: map[string][]byte{}}, random(20)
	h.hold(s, "a", rng)
	h.hold(s, "b", rng)
	s.waitHealed(slices.Sorted(maps.Keys(h.bodies)), time.Minute)
	for round := range rounds {
		stopped := round%2 == 1
		if stopped {
			s.stop(30 * time.Second)
		}
		by := s.shardFiles()
		chunks := slices.Sorted(maps.Keys(by))
		did := map[string]int{}
		for i, c := range chunks {
			files := slices.Clone(by[c])
			if len(files) < 4 {
				t.Fatalf("chunk %s has %d shard files before the damage, want 4", c, len(files))
			}
			rng.Shuffle(len(files), func(a, b int) { files[a], files[b] = files[b], files[a] })
			other := by[chunks[(i+1)%len(chunks)]][0]
			if i+1 == len(chunks) {
				other = files[3] // the first chunk has been damaged already: take another of this one
			}
			for _, f := range files[:1+rng.IntN(2)] {
				did[damage(t, rng, f, other)]++
			}
		}
		if stopped {
			s.start()
		}
		when := fmt.Sprintf("round %d (stopped %v)", round, stopped)
		h.check(s, when)
		for key := range h.bodies { // reads meet only the data shards; an inspection meets all, and asks for their repair
			if _, err := s.inspect(loadBucket, key); err != nil {
				t.Error(err)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(h.bodies)) {
			poll(t, time.Minute, 100*time.Millisecond, key+" to be whole again", func() error {
				in, err := s.inspect(loadBucket, key)
				if err != nil {
					return err
				}
				return in.wholeOn(4)
			})
		}
		h.check(s, when+", repaired")
		t.Logf("%s: %d chunks, shards %v: all served and repaired", when, len(by), did)
		if t.Failed() {
			t.Fatalf("seed %d", *seedFlag)
		}
	}
}

// TestMoreShardsDamagedThanParity leaves fewer shards than are needed: an error or a broken body,
// never a whole answer with wrong bytes; and when the bytes are back, so is the object.
func TestMoreShardsDamagedThanParity(t *testing.T) {
	s := startLoaded(t, 4)
	h, rng := &held{t: t, bodies: map[string][]byte{}}, random(21)
	h.hold(s, "a", rng)
	s.waitHealed(slices.Sorted(maps.Keys(h.bodies)), time.Minute)
	before := map[string][]byte{}
	for _, files := range s.shardFiles() {
		for _, f := range files[:3] {
			raw, err := os.ReadFile(f.name)
			if err != nil {
				t.Fatal(err)
			}
			before[f.name] = raw
			ruin(t, f.name)
		}
	}
	failed := 0
	for key, want := range h.bodies {
		for _, c := range []store{newMinioStore(t, s, loadBucket), newAWSStore(t, s, loadBucket)} {
			ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
			got, err := c.get(ctx, key)
			cancel()
			switch {
			case errors.Is(err, errAbsent):
				t.Errorf("GET %s: no such key, want an error that does not deny the object", key)
			case err == nil && !bytes.Equal(got, want):
				t.Errorf("GET %s: %v, want %v or an error", key, contentOf(got), contentOf(want))
			case err != nil:
				failed++
			case len(want) > 64<<10:
				t.Errorf("GET %s: whole, although three of four shards were ruined: the damage missed", key)
			}
		}
	}
	if failed == 0 {
		t.Error("no read failed")
	}
	for name, raw := range before {
		// A repair must not have removed what it could not replace.
		if _, err := os.Stat(name); err != nil {
			t.Errorf("a damaged shard that could not be repaired is gone: %v", err)
			continue
		}
		rewrite(t, name, raw)
	}
	h.check(s, "bytes back")
}

// history makes a stopped store, in which the last drive has missed a part of what was written, and
// returns it with what it holds. killed: the process had no time to write anything more.
func history(t *testing.T, killed bool, stream uint64) (*server, *held) {
	t.Helper()
	s := startLoaded(t, 4)
	h, rng := &held{t: t, bodies: map[string][]byte{}}, random(stream)
	h.hold(s, "all", rng)
	h.hold(s, "overwritten", rng)
	h.hold(s, "deleted", rng)
	s.waitHealed(slices.Sorted(maps.Keys(h.bodies)), time.Minute)
	s.stop(30 * time.Second)
	s.start() // what was in the log becomes tables: both are there to be damaged
	s.takeDrive(3)
	s.waitOnline(3)
	h.hold(s, "overwritten", rng)
	h.hold(s, "three", rng)
	c := newMinioStore(t, s, loadBucket)
	for key := range h.bodies {
		if strings.HasPrefix(key, "held/deleted") {
			if err := c.del(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			delete(h.bodies, key)
			h.gone = append(h.gone, key)
		}
	}
	h.check(s, "before any damage")
	if killed {
		s.kill()
	} else {
		s.stop(30 * time.Second)
	}
	s.returnDrive(3)
	return s, h
}

// copyOf returns a server over copies of the drives of s, not started.
func copyOf(t *testing.T, s *server) *server {
	t.Helper()
	c := newServer(t, len(s.dirs), s.args...)
	c.env = s.env
	for i, dir := range s.dirs {
		if err := os.Remove(c.dirs[i]); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(c.dirs[i], os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// explained fails unless each damaged drive is in service, or is not and the status and the log say
// which and why. It returns how many are not.
func (s *server) explained(damaged ...int) (refused int) {
	s.t.Helper()
	by, err := s.drives()
	if err != nil {
		s.t.Error(err)
		return 0
	}
	for _, i := range damaged {
		d := by[s.dirs[i]]
		if d.State == "online" {
			continue
		}
		refused++
		if d.State == "" || d.Reason == "" || !strings.Contains(d.Reason, s.dirs[i]) {
			s.t.Errorf("drive %s is %q in the status, because %q; want a reason that names it", s.dirs[i], d.State, d.Reason)
		}
		if !strings.Contains(s.log.String(), s.dirs[i]) {
			s.t.Errorf("the log does not name %s\n%s", s.dirs[i], s.log.tail())
		}
	}
	return refused
}

// metaClasses are the files of a record store, by what they are.
var metaClasses = map[string]func(base string) bool{
	"tables":    func(b string) bool { return strings.HasSuffix(b, ".sst") },
	"logs":      func(b string) bool { return strings.HasSuffix(b, ".log") },
	"manifests": func(b string) bool { return strings.HasPrefix(b, "MANIFEST") },
	"the rest": func(b string) bool {
		return !strings.HasSuffix(b, ".sst") && !strings.HasSuffix(b, ".log") && !strings.HasPrefix(b, "MANIFEST")
	},
	"everything": func(string) bool { return true },
}

// TestRecordStoreDamaged flips bytes in the files of one drive's record store, while another drive is
// behind: what the damaged drive alone knew besides two others must not be lost to a reader that asks
// it and the one that is behind.
func TestRecordStoreDamaged(t *testing.T) {
	copies := 1
	if *long && !testing.Short() {
		copies = 10
	}
	for _, killed := range []bool{false, true} {
		t.Run(map[bool]string{false: "after a clean stop", true: "after SIGKILL"}[killed], func(t *testing.T) {
			base, h := history(t, killed, 22)
			rng := random(23)
			for _, class := range slices.Sorted(maps.Keys(metaClasses)) {
				for n := range copies {
					t.Run(fmt.Sprintf("%s %d", class, n), func(t *testing.T) {
						s := copyOf(t, base)
						victim := rng.IntN(3) // the last drive is the one that is behind
						var files []string
						for _, f := range regularFiles(t, filepath.Join(s.dirs[victim], "meta")) {
							if metaClasses[class](filepath.Base(f)) {
								invert(t, rng, f, 1+rng.IntN(8))
								files = append(files, filepath.Base(f))
							}
						}
						if len(files) == 0 {
							t.Skip("the store has no such file")
						}
						s.start()
						own := &held{t: t, bodies: maps.Clone(h.bodies), gone: h.gone}
						when := fmt.Sprintf("%v of drive %d flipped (seed %d)", files, victim+1, *seedFlag)
						own.check(s, when)
						own.hold(s, "after", rng)
						own.check(s, when+", after writes")
						t.Logf("%v flipped: %d drives refused", files, s.explained(victim))
						s.stop(30 * time.Second)
					})
				}
			}
		})
	}
}

// TestRecordStoreDamagedWhileRunning flips bytes of one drive's record store under load.
func TestRecordStoreDamagedWhileRunning(t *testing.T) {
	ops := int64(200)
	if *long && !testing.Short() {
		ops = 3000
	}
	s := startLoaded(t, 4)
	l, rng := newLoad(t, s, 24), random(25)
	l.resume()
	l.advance(ops, time.Minute)
	l.noFailures("before the damage")
	at := time.Now()
	flipped := 0
	for _, f := range regularFiles(t, filepath.Join(s.dirs[1], "meta")) {
		if b := filepath.Base(f); strings.HasSuffix(b, ".sst") || strings.HasSuffix(b, ".log") {
			invert(t, rng, f, 16)
			flipped++
		}
	}
	l.advance(ops, time.Minute)
	l.pause()
	for _, f := range l.takeFailures() {
		if f.status != 503 {
			t.Errorf("%v after the damage: %v, want no failure but 503 for what was in flight when it was found", f.begin.Sub(at), f)
		}
	}
	l.verifyAll()
	s.stop(30 * time.Second)
	s.start()
	l.verifyAll()
	t.Logf("%d files flipped: %d drives refused after a restart", flipped, s.explained(1))
	l.resume()
	l.advance(ops, time.Minute)
	l.pause()
	l.noFailures("after the restart")
	l.verifyAll()
}

// TestIdentityDamaged flips bytes of the identity files, and puts other things in place of a drive.
// The drive serves from its other copy, or is refused with a message; nothing is formatted.
func TestIdentityDamaged(t *testing.T) {
	base, h := history(t, false, 26)
	rng := random(27)
	first := func(s *server, i int) string { return filepath.Join(s.dirs[i], "ostraka.json") }
	second := func(s *server, i int) string { return first(s, i) + ".bak" }
	for _, c := range []struct {
		name    string
		drives  []int // damaged
		refused int   // how many of them have to be
		damage  func(t *testing.T, s *server, i int)
		after   func(t *testing.T, s *server, i int)
	}{
		{"the first copy is flipped on all drives", []int{0, 1, 2, 3}, 0, func(t *testing.T, s *server, i int) {
			invert(t, rng, first(s, i), 1)
		}, nil},
		{"the second copy is flipped on all drives", []int{0, 1, 2, 3}, 0, func(t *testing.T, s *server, i int) {
			invert(t, rng, second(s, i), 1)
		}, nil},
		{"both copies of one drive are flipped", []int{1}, 1, func(t *testing.T, s *server, i int) {
			invert(t, rng, first(s, i), 1)
			invert(t, rng, second(s, i), 1)
		}, nil},
		{"both copies of one drive are cut short", []int{0}, 1, func(t *testing.T, s *server, i int) {
			for _, f := range []string{first(s, i), second(s, i)} {
				if err := os.Truncate(f, 20); err != nil {
					t.Fatal(err)
				}
			}
		}, nil},
		{"both copies of one drive are gone", []int{2}, 1, func(t *testing.T, s *server, i int) {
			for _, f := range []string{first(s, i), second(s, i)} {
				if err := os.Remove(f); err != nil {
					t.Fatal(err)
				}
			}
		}, func(t *testing.T, s *server, i int) {
			if _, err := os.Stat(first(s, i)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an identity was written over a drive without one: %v", err)
			}
		}},
		{"one drive is an empty directory, as when its disk is not mounted", []int{0}, 1, func(t *testing.T, s *server, i int) {
			if err := os.Rename(s.dirs[i], s.dirs[i]+".unmounted"); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(s.dirs[i], 0o755); err != nil {
				t.Fatal(err)
			}
		}, func(t *testing.T, s *server, i int) {
			if left, err := os.ReadDir(s.dirs[i]); err != nil || len(left) > 0 {
				t.Errorf("the empty directory holds %v (%v), want nothing: a missing mount must not be formatted", left, err)
			}
		}},
		{"one drive is of another store", []int{1}, 1, func(t *testing.T, s *server, i int) {
			other := start(t, 1)
			other.stop(30 * time.Second)
			if err := os.Rename(s.dirs[i], s.dirs[i]+".ours"); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(s.dirs[i], os.DirFS(other.dirs[0])); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"one drive is wiped but for its identity", []int{1}, 1, func(t *testing.T, s *server, i int) {
			entries, err := os.ReadDir(s.dirs[i])
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), "ostraka.json") {
					continue
				}
				if err := os.RemoveAll(filepath.Join(s.dirs[i], e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}, func(t *testing.T, s *server, i int) {
			for _, name := range []string{"meta", "shards"} {
				if _, err := os.Stat(filepath.Join(s.dirs[i], name)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s was made anew on a drive that lost it: %v", name, err)
				}
			}
		}},
		{"the record store of one drive is gone", []int{2}, 1, func(t *testing.T, s *server, i int) {
			if err := os.RemoveAll(filepath.Join(s.dirs[i], "meta")); err != nil {
				t.Fatal(err)
			}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := copyOf(t, base)
			for _, i := range c.drives {
				c.damage(t, s, i)
			}
			own := &held{t: t, bodies: maps.Clone(h.bodies), gone: h.gone}
			s.launch()
			ended := s.exited
			if c.name == "one drive is of another store" && !waitReadyOrEnd(t, s) {
				// Refusing to start at all is as good, where it says which drive.
				<-ended
				if !strings.Contains(s.log.String(), s.dirs[1]) {
					t.Errorf("the refusal does not name %s:\n%s", s.dirs[1], s.log.tail())
				}
				return
			}
			s.waitReady()
			own.check(s, c.name)
			own.hold(s, "after", rng)
			own.check(s, c.name+", after writes")
			if n := s.explained(c.drives...); n != c.refused {
				t.Errorf("%d drives are refused, want %d", n, c.refused)
			}
			for _, i := range c.drives {
				if c.after != nil {
					c.after(t, s, i)
				}
			}
			s.stop(30 * time.Second)
		})
	}
	t.Run("both copies of one drive are flipped while the server runs", func(t *testing.T) {
		s := copyOf(t, base)
		own := &held{t: t, bodies: maps.Clone(h.bodies), gone: h.gone}
		s.start()
		invert(t, rng, first(s, 0), 1)
		invert(t, rng, second(s, 0), 1)
		own.hold(s, "after", rng)
		own.check(s, "running")
		s.stop(30 * time.Second)
		s.start()
		own.check(s, "after a restart")
		t.Logf("%d drives refused", s.explained(0))
	})
}

// waitReadyOrEnd waits until the server is ready, or has ended: then it returns false.
func waitReadyOrEnd(t *testing.T, s *server) bool {
	t.Helper()
	ready := false
	poll(t, 30*time.Second, 5*time.Millisecond, "the server to be ready or to end", func() error {
		select {
		case <-s.exited:
			return nil
		default:
		}
		err := s.probe("/-/ready")
		ready = err == nil
		return err
	})
	return ready
}
