package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/internal/vfsx"
)

// sumsOf returns the sums that lie on the drive at d.
func sumsOf(t *testing.T, fs vfs.FS) map[string]vfsx.Sum {
	t.Helper()
	list, err := vfsx.ReadSums(fs, "d/"+metaDir+"/"+sumsFile)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]vfsx.Sum{}
	for _, s := range list {
		m[s.Name] = s
	}
	return m
}

// logOf returns the newest log of the drive at d.
func logOf(t *testing.T, fs vfs.FS) string {
	t.Helper()
	names, err := fs.List("d/" + metaDir)
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for _, n := range names {
		if strings.HasSuffix(n, logSuffix) {
			last = max(last, n)
		}
	}
	return last
}

// everything is what a process leaves that is killed: all that it wrote, synced or not.
func everything(rng *rand.Rand) vfs.CrashCloneCfg {
	return vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng}
}

// TestEveryFlipInWhatALogSyncedIsRefused flips every byte of the last record, and others, of a log that was killed or
// closed, new or used again.
func TestEveryFlipInWhatALogSyncedIsRefused(t *testing.T) {
	rng := newRand(t)
	for _, again := range []bool{false, true} {
		for _, closed := range []bool{false, true} {
			t.Run(fmt.Sprintf("used again %v, closed %v", again, closed), func(t *testing.T) {
				fs := vfs.NewCrashableMem()
				d := makeDrive(t, fs, testOptions())
				if again {
					for range 3 {
						if err := errors.Join(newBody(rng, 9000, true).put(d), flush(d)); err != nil {
							t.Fatal(err)
						}
					}
				}
				for range 3 {
					if err := newBody(rng, 1+rng.IntN(200), true).put(d); err != nil {
						t.Fatal(err)
					}
				}
				image := fs.CrashClone(everything(rng))
				mustClose(t, d)
				if closed {
					image = fs.CrashClone(everything(rng))
				}
				log := "d/" + metaDir + "/" + logOf(t, image)
				sum, ok := sumsOf(t, image)[path.Base(log)]
				if !ok {
					t.Fatalf("%s has no sum", log)
				}
				fi, err := image.Stat(log)
				if err != nil {
					t.Fatal(err)
				}
				if again != (fi.Size() > sum.Length) {
					t.Fatalf("the log has %d bytes, and %d were synced", fi.Size(), sum.Length)
				}
				places := []int64{0}
				for i := int64(1); i <= min(sum.Length, 120); i++ {
					places = append(places, sum.Length-i)
				}
				for range 30 {
					places = append(places, rng.Int64N(sum.Length))
				}
				for _, at := range places {
					clone := image.CrashClone(vfs.CrashCloneCfg{})
					flip(t, clone, log, at)
					if _, err := Open(bg, clone, "d", testOptions()); StatusOf(err) != Corrupt || !strings.Contains(err.Error(), path.Base(log)) {
						t.Fatalf("at %d of %d: %v", at, sum.Length, err)
					}
				}
			})
		}
	}
}

// TestALogThatIsLostOrCutIsRefused: Pebble takes both for a log that has nothing more to say.
func TestALogThatIsLostOrCutIsRefused(t *testing.T) {
	rng := newRand(t)
	fs := vfs.NewCrashableMem()
	d := makeDrive(t, fs, testOptions())
	b := newBody(rng, 900, true)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	mustClose(t, d)
	for _, c := range []struct {
		name string
		do   func(fs *vfs.MemFS, log string) error
		want string
	}{
		{"lost", func(fs *vfs.MemFS, log string) error { return fs.Remove(log) }, "is lost"},
		{"cut", func(fs *vfs.MemFS, log string) error {
			whole, err := vfsx.ReadFile(fs, log, 1<<20)
			if err != nil {
				return err
			}
			f, err := fs.Create(log, vfs.WriteCategoryUnspecified)
			if err != nil {
				return err
			}
			_, err = f.Write(whole[:len(whole)/2])
			return errors.Join(err, f.Sync(), f.Close())
		}, "is cut short"},
	} {
		t.Run(c.name, func(t *testing.T) {
			clone := fs.CrashClone(everything(rng))
			if err := c.do(clone, "d/"+metaDir+"/"+logOf(t, clone)); err != nil {
				t.Fatal(err)
			}
			_, err := Open(bg, clone, "d", testOptions())
			if StatusOf(err) != Corrupt || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// TestAFlipInTheLastRecordOfAManifestIsRefused: it is not told from a torn end by what follows it.
func TestAFlipInTheLastRecordOfAManifestIsRefused(t *testing.T) {
	rng := newRand(t)
	fs := vfs.NewCrashableMem()
	d := makeDrive(t, fs, testOptions())
	if err := errors.Join(newBody(rng, 900, true).put(d), flush(d)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, d)
	image := fs.CrashClone(everything(rng))
	name, err := checkManifest(image, "d/"+metaDir)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := image.Stat("d/" + metaDir + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(40) {
		clone := image.CrashClone(vfs.CrashCloneCfg{})
		flip(t, clone, "d/"+metaDir+"/"+name, fi.Size()-1-i)
		if _, err := Open(bg, clone, "d", testOptions()); StatusOf(err) != Corrupt || !strings.Contains(err.Error(), name) {
			t.Fatalf("at %d of %d: %v", fi.Size()-1-i, fi.Size(), err)
		}
	}
}

// crashes takes copies of a file system, as a crash may leave it, before operations on it.
type crashes struct {
	mem   *vfs.MemFS
	acked atomic.Int64 // how many bodies are there for certain

	// mu guards the fields below.
	mu     sync.Mutex
	rng    *rand.Rand
	copies []*vfs.MemFS
	counts []int64
}

func (c *crashes) String() string { return "crashes" }

// MaybeError implements errorfs.Injector.
func (c *crashes) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// What touches the sums is rare beside the rest.
	if odds := 16; len(c.copies) < 60 && (c.rng.IntN(odds) == 0 || strings.HasSuffix(op.Path, sumsFile) && c.rng.IntN(odds/4) == 0) {
		c.counts = append(c.counts, c.acked.Load())
		c.copies = append(c.copies, c.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.rng.IntN(101), RNG: c.rng}))
	}
	return nil
}

// TestNoCrashIsTakenForDamage crashes a drive before operations of its file system, at random, while its logs are used
// again, and opens what is left, and what a crash leaves of that: whatever part of the unsynced data is there, nothing is
// refused.
func TestNoCrashIsTakenForDamage(t *testing.T) {
	rng := newRand(t)
	o := testOptions()
	o.MemTableSize = 64 << 10
	c := &crashes{mem: vfs.NewCrashableMem(), rng: rand.New(rand.NewPCG(rng.Uint64(), 1))}
	mustClose(t, makeDrive(t, c.mem, o))
	fs := errorfs.Wrap(c.mem, c)
	var acked []body
	for range 3 {
		d := openDrive(t, fs, o)
		for range 30 {
			b := newBody(rng, 1+rng.IntN(9000), true)
			if err := b.put(d); err != nil {
				t.Fatal(err)
			}
			acked = append(acked, b)
			c.acked.Add(1)
		}
		mustClose(t, d)
	}
	t.Logf("%d crashes", len(c.copies))
	if len(c.copies) == 0 {
		t.Error("nothing crashed: the test does not test")
	}
	for i, left := range c.copies {
		for range 2 {
			d := openDrive(t, left, o)
			for _, b := range acked[:c.counts[i]] {
				if err := b.check(d); err != nil {
					t.Fatalf("after a crash: an acknowledged shard: %v", err)
				}
			}
			next := left.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			mustClose(t, d)
			left = next
		}
	}
}

// TestAStoreWithoutSumsOpens: one of an earlier build, and one whose sums are damaged, cut or of no use.
func TestAStoreWithoutSumsOpens(t *testing.T) {
	rng := newRand(t)
	fs := vfs.NewCrashableMem()
	d := makeDrive(t, fs, testOptions())
	b := newBody(rng, 900, true)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	mustClose(t, d)
	file := "d/" + metaDir + "/" + sumsFile
	for _, keep := range []int{-1, 0, 100, 4096, 9000} {
		clone := fs.CrashClone(everything(rng))
		if err := clone.Remove(file); err != nil {
			t.Fatal(err)
		}
		if keep >= 0 {
			junk := make([]byte, keep)
			for i := range junk {
				junk[i] = byte(rng.Uint32())
			}
			f, err := clone.Create(file, vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.Write(junk)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
		d := openDrive(t, clone, testOptions())
		if err := errors.Join(b.check(d), newBody(rng, 100, true).put(d)); err != nil {
			t.Fatal(err)
		}
		mustClose(t, d)
		if _, ok := sumsOf(t, clone)[logOf(t, clone)]; !ok {
			t.Errorf("%d bytes of junk: the log has no sum now", keep)
		}
	}
}

// TestSumsThatCannotBeWrittenCostNothing: the drive goes on, and what it wrote later is not taken for damage.
func TestSumsThatCannotBeWrittenCostNothing(t *testing.T) {
	rng := newRand(t)
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC, syscall.EROFS} {
		for _, early := range []bool{false, true} {
			mem := vfs.NewCrashableMem()
			mustClose(t, makeDrive(t, mem, testOptions()))
			var on atomic.Bool
			on.Store(early)
			f := &fault{rule: func(op errorfs.Op) error {
				if on.Load() && strings.HasSuffix(op.Path, sumsFile) && op.Kind != errorfs.OpFileClose {
					return cause
				}
				return nil
			}}
			d := openDrive(t, wrapFaults(mem, f), testOptions())
			var acked []body
			for i := range 12 {
				if i == 3 {
					on.Store(true)
				}
				b := newBody(rng, 3000, true)
				if err := b.put(d); err != nil {
					t.Fatal(err)
				}
				acked = append(acked, b)
			}
			if !f.hit.Load() || d.Fault() != nil {
				t.Fatalf("%v: met %v, fault %+v", cause, f.hit.Load(), d.Fault())
			}
			clone := mem.CrashClone(everything(rng))
			mustClose(t, d)
			d = openDrive(t, clone, testOptions())
			for _, b := range acked {
				if err := b.check(d); err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, d)
		}
	}
}

// TestFirstLogIsTheOneThatPebbleNeeds compares with what Pebble says: were a log taken for needed that is not, its removal
// would be taken for a loss.
func TestFirstLogIsTheOneThatPebbleNeeds(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var newest atomic.Uint64
	o := tableOptions(mem)
	o.EventListener = &pebble.EventListener{WALCreated: func(i pebble.WALCreateInfo) { newest.Store(uint64(i.FileNum)) }}
	first := func() uint64 {
		t.Helper()
		name, err := checkManifest(mem, "db")
		if err != nil {
			t.Fatal(err)
		}
		f, err := mem.Open("db/" + name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := firstLog(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 3 {
		db, err := pebble.Open("db", o)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			before := newest.Load()
			if err := db.Set([]byte{byte(i)}, []byte("v"), pebble.Sync); err != nil {
				t.Fatal(err)
			}
			if n := first(); n > before {
				t.Fatalf("log %d is needed, and the first is %d", before, n)
			}
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
			if n := first(); n != newest.Load() || n == before {
				t.Fatalf("after a flush the first log is %d, want %d", n, newest.Load())
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSumsOfAStoreThatWasNeverFinishedAreForgotten: the numbers of files begin anew.
func TestSumsOfAStoreThatWasNeverFinishedAreForgotten(t *testing.T) {
	rng := newRand(t)
	fs := vfs.NewCrashableMem()
	d := makeDrive(t, fs, testOptions())
	if err := newBody(rng, 900, true).put(d); err != nil {
		t.Fatal(err)
	}
	mustClose(t, d)
	sums, err := vfsx.ReadFile(fs, "d/"+metaDir+"/"+sumsFile, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	fresh := vfs.NewCrashableMem()
	mkdir(t, fresh, "d")
	if err := errors.Join(Format(fresh, "d", testIdentity(3)), fresh.MkdirAll("d/"+metaDir, privateDir)); err != nil {
		t.Fatal(err)
	}
	f, err := fresh.Create("d/"+metaDir+"/"+sumsFile, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(sums)
	if err := errors.Join(err, f.Sync(), f.Close(), vfsx.SyncDir(fresh, "d/"+metaDir)); err != nil {
		t.Fatal(err)
	}
	d = openDrive(t, fresh, testOptions())
	after := fresh.CrashClone(vfs.CrashCloneCfg{})
	mustClose(t, d)
	mustClose(t, openDrive(t, after, testOptions()))
}

// BenchmarkSyncedCommit commits a small value with a sync, on a real file system.
func BenchmarkSyncedCommit(b *testing.B) {
	dir := b.TempDir()
	if err := Format(vfs.Default, dir, testIdentity(1)); err != nil {
		b.Fatal(err)
	}
	d, err := Open(bg, vfs.Default, dir, testOptions())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close(bg) })
	b.ReportAllocs()
	for b.Loop() {
		if err := d.SetJob(bg, "bench", []byte("a small value")); err != nil {
			b.Fatal(err)
		}
	}
}
