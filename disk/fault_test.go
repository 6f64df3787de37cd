package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
	"github.com/ostraka/ostraka/metadata"
)

// The faults of FAULTS.md rows 10 to 27, on one drive.

var errInjected = fmt.Errorf("injected: %w", syscall.EIO)

// fault fails the operations that its rule picks.
type fault struct {
	rule func(op errorfs.Op) error
	hit  atomic.Bool
}

func (f *fault) String() string { return "fault" }

func (f *fault) MaybeError(op errorfs.Op) error {
	err := f.rule(op)
	if err != nil {
		f.hit.Store(true)
	}
	return err
}

// wrapFaults lets f fail operations on fs. errorfs does not know locks from creations, and does not see what
// happens to a log that is used again: logs are made anew, as a file system may.
func wrapFaults(fs vfs.FS, f *fault) vfs.FS { return newLogs{errorfs.Wrap(fs, f)} }

type newLogs struct{ vfs.FS }

func (n newLogs) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := n.Remove(oldname); err != nil {
		return nil, err
	}
	return n.Create(newname, c)
}

// failAt fails the i-th change once. The sums of the logs do not count: the drive goes on without.
func failAt(i int, err error) *fault {
	var n atomic.Int64
	return &fault{rule: func(op errorfs.Op) error {
		if !strings.HasSuffix(op.Path, sumsFile) && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose && op.Kind != errorfs.OpLock &&
			op.Kind != errorfs.OpFilePreallocate && op.Kind != errorfs.OpFileFlush && n.Add(1) == int64(i+1) {
			return err
		}
		return nil
	}}
}

// failWhile fails operations of the kinds on files below a directory while on is set.
func failWhile(on *atomic.Bool, dir string, err error, kinds ...errorfs.OpKind) *fault {
	return &fault{rule: func(op errorfs.Op) error {
		if !on.Load() || !strings.Contains(op.Path, dir) && path.Dir(op.Path) != dir {
			return nil
		}
		for _, k := range kinds {
			if op.Kind == k {
				return err
			}
		}
		return nil
	}}
}

// TestNoFaultMakesAFalseAcknowledgement fails the i-th change, for growing i, of a history of
// writes and deletes, then cuts the power: what was acknowledged is there.
func TestNoFaultMakesAFalseAcknowledgement(t *testing.T) {
	start := newRand(t).IntN(3) // each run takes every third change
	for i := start; ; i += 3 {
		rng := rand.New(rand.NewPCG(uint64(i), 2))
		fs := vfs.NewCrashableMem()
		mustClose(t, makeDrive(t, fs, testOptions()))
		inj := failAt(i, errInjected)
		var acked, deleted []body
		var faulty *Drive
		if d, err := Open(bg, wrapFaults(fs, inj), "d", testOptions()); err == nil {
			faulty = d
			for n := range 6 {
				b := newBody(rng, 1+rng.IntN(60<<10), n%2 == 0)
				if err := b.put(d); err == nil {
					acked = append(acked, b)
				} else if !errs.Is(err, errs.Drive) && !errs.Is(err, errs.Unavailable) {
					t.Fatalf("change %d: put: %v (%v)", i, err, errs.KindOf(err))
				}
				if n == 4 && len(acked) > 1 {
					if d.DeleteShard(bg, testAddr, acked[0].data.ID, 0, metadata.Ballot{Counter: 1}) == nil {
						deleted = append(deleted, acked[0])
					}
					acked = acked[1:] // without an answer, it may be there or not
				}
			}
			if inj.hit.Load() && d.Fault() == nil {
				t.Fatalf("change %d failed, and the drive goes on", i)
			}
		} else if !inj.hit.Load() {
			t.Fatalf("without a fault: %v", err)
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		if faulty != nil {
			mustClose(t, faulty)
		}
		d := openDrive(t, after, testOptions())
		for _, b := range acked {
			if err := b.check(d); err != nil {
				t.Fatalf("change %d failed, then a crash: an acknowledged shard: %v", i, err)
			}
		}
		for _, b := range deleted {
			if err := b.check(d); !errs.Is(err, errs.NotFound) {
				t.Fatalf("change %d failed, then a crash: a deleted shard: %v", i, err)
			}
		}
		mustClose(t, d)
		if !inj.hit.Load() {
			if len(acked) != 5 || len(deleted) != 1 {
				t.Fatalf("without a fault: %d stored, %d deleted", len(acked), len(deleted))
			}
			t.Logf("%d changes were made", i)
			return
		}
	}
}

func TestAfterACrashEveryRowHasItsShard(t *testing.T) {
	rng := newRand(t)
	for range 6 {
		fs := vfs.NewCrashableMem()
		d := makeDrive(t, fs, testOptions())
		var acked, pending []body
		for range 2 + rng.IntN(12) {
			b := newBody(rng, 1+rng.IntN(50<<10), rng.IntN(2) == 0)
			switch {
			case rng.IntN(3) > 0 || b.data.Inline():
				if err := b.put(d); err != nil {
					t.Fatal(err)
				}
				acked = append(acked, b)
			default:
				if _, err := b.stream(d); err != nil {
					t.Fatal(err)
				}
				pending = append(pending, b)
			}
		}
		// The power fails in the middle of a seal.
		halfway := make(chan struct{})
		go func() {
			defer close(halfway)
			for _, b := range pending {
				_ = b.seal(d) // it may or may not have happened
			}
		}()
		after := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 10 + rng.IntN(81), RNG: rng})
		<-halfway
		mustClose(t, d)
		d = openDrive(t, after, testOptions())
		for _, b := range acked {
			if err := b.check(d); err != nil {
				t.Fatalf("an acknowledged shard: %v", err)
			}
		}
		rows, err := d.ShardRows(bg, [16]byte{}, 0, 1000)
		if err != nil || len(rows) < len(acked) {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		for _, b := range pending {
			if err := b.check(d); err != nil && !errs.Is(err, errs.NotFound) {
				t.Fatalf("a shard that was being sealed is there and not whole: %v", err)
			}
		}
		mustClose(t, d)
	}
}

func TestAFailedSyncQuarantinesForGood(t *testing.T) {
	for _, c := range []struct {
		name string
		dir  string
		kind []errorfs.OpKind
		put  bool // inline
	}{
		{"of a shard file", shardsDir, []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData}, false},
		{"of a shard's write", shardsDir, []errorfs.OpKind{errorfs.OpFileWrite}, false},
		{"of the log", metaDir, []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData}, true},
		{"of the log's write", metaDir, []errorfs.OpKind{errorfs.OpFileWrite}, true},
	} {
		for _, cause := range []error{syscall.EIO, syscall.EROFS} {
			t.Run(c.name+" with "+cause.Error(), func(t *testing.T) {
				var on atomic.Bool
				fs := vfs.NewMem()
				d := makeDrive(t, wrapFaults(fs, failWhile(&on, c.dir, cause, c.kind...)), testOptions())
				rng := newRand(t)
				before := newBody(rng, 20<<10, false)
				if err := before.put(d); err != nil {
					t.Fatal(err)
				}
				on.Store(true)
				if err := newBody(rng, 20<<10, c.put).put(d); !errs.Is(err, errs.Drive) && !errs.Is(err, errs.Unavailable) {
					t.Fatalf("got %v", err) // Unavailable: Encode has no sink left
				}
				on.Store(false)
				// It would work now, and must not be believed.
				err := newBody(rng, 20<<10, c.put).put(d)
				wantKind(t, err, errs.Drive)
				if !strings.Contains(errs.Public(err), "quarantined") {
					t.Errorf("error %v does not say that the drive is quarantined", err)
				}
				wantKind(t, before.check(d), errs.Drive)
				_, err = d.Read(bg, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1}, Address: testAddr})
				wantKind(t, err, errs.Drive)
				select {
				case <-d.Faulted():
				default:
					t.Error("Faulted is not closed")
				}
				if i := d.Info(); i.State != Quarantined || i.Reason == "" {
					t.Errorf("info: %+v", i)
				}
				mustClose(t, d)
				d = openDrive(t, fs, testOptions())
				if err := before.check(d); err != nil {
					t.Errorf("after an operator opened it again: %v", err)
				}
			})
		}
	}
}

// TestALogThatIsLostQuarantines removes the logs of an open drive. Pebble writes on into files that have no name,
// and notices when it wants to use one of them again.
func TestALogThatIsLostQuarantines(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions()
	o.MemTableSize = 64 << 10
	d := makeDrive(t, fs, o)
	rng := newRand(t)
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			for range 50 {
				for range 20 { // more than a write buffer
					if err := newBody(rng, 4000, true).put(d); err != nil {
						return err
					}
				}
				names, err := fs.List("d/" + metaDir)
				if err != nil {
					return err
				}
				for _, name := range names {
					if strings.HasSuffix(name, ".log") {
						if err := fs.Remove("d/" + metaDir + "/" + name); err != nil && !vfsx.IsNotExist(err) {
							return err
						}
					}
				}
			}
			return nil
		}()
	}()
	select {
	case err := <-done:
		wantKind(t, err, errs.Drive)
	case <-time.After(time.Minute):
		t.Error("a put hangs")
	}
	switch f := d.Fault(); {
	case f == nil:
		t.Fatal("the drive goes on, without its logs")
	case !strings.Contains(f.Reason, ".log") || !strings.Contains(f.Reason, "lost"):
		t.Errorf("the reason does not say that a log is lost: %s", f.Reason)
	case vfsx.IsNotExist(f.Err):
		t.Errorf("%v looks as if the whole drive were gone, and would be opened again", f.Err)
	}
}

func TestAFailedReadIsNotSticky(t *testing.T) {
	var on atomic.Bool
	d := makeDrive(t, wrapFaults(vfs.NewMem(), failWhile(&on, shardsDir, syscall.EIO, errorfs.OpFileReadAt, errorfs.OpFileRead)), testOptions())
	b := newBody(newRand(t), 100<<10, false)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	wantKind(t, b.check(d), errs.Drive)
	on.Store(false)
	if err := b.check(d); err != nil {
		t.Fatal(err)
	}
	if i := d.Info(); i.ReadErrors == 0 || i.State != Online {
		t.Fatalf("info: %+v", i)
	}
}

func TestAFullDisk(t *testing.T) {
	t.Run("under a shard file costs that shard", func(t *testing.T) {
		for _, kind := range []errorfs.OpKind{errorfs.OpFileWrite, errorfs.OpCreate, errorfs.OpFileSyncData} {
			var on atomic.Bool
			d := makeDrive(t, wrapFaults(vfs.NewMem(), failWhile(&on, shardsDir, syscall.ENOSPC, kind)), testOptions())
			rng := newRand(t)
			old := newBody(rng, 100<<10, false)
			if err := old.put(d); err != nil {
				t.Fatal(err)
			}
			on.Store(true)
			b := newBody(rng, 100<<10, false)
			_, err := b.stream(d)
			if err == nil {
				err = b.seal(d)
			} else if kind == errorfs.OpFileWrite {
				err = nil // Encode reports too few sinks
			}
			if err != nil {
				wantKind(t, err, errs.Full)
			}
			if d.Fault() != nil {
				t.Fatalf("quarantined: %+v", d.Fault())
			}
			if err := errors.Join(old.check(d), d.DeleteShard(bg, testAddr, old.data.ID, 0, metadata.Ballot{Counter: 1})); err != nil {
				t.Fatalf("reading and deleting: %v", err)
			}
			on.Store(false)
			if err := newBody(rng, 100<<10, false).put(d); err != nil {
				t.Fatalf("with room again: %v", err)
			}
		}
	})
	t.Run("under the log quarantines", func(t *testing.T) {
		var on atomic.Bool
		d := makeDrive(t, wrapFaults(vfs.NewMem(), failWhile(&on, metaDir, syscall.ENOSPC, errorfs.OpFileWrite)), testOptions())
		on.Store(true)
		wantKind(t, newBody(newRand(t), 900, true).put(d), errs.Drive)
		if f := d.Fault(); f == nil || !errors.Is(f.Err, syscall.ENOSPC) {
			t.Fatalf("fault: %+v", f)
		}
	})
}

// TestEveryFlipInTheRecordStoreIsFoundOrHarmless flips bytes of every file of the record store, after its process was
// killed and after it was closed, and opens the drive again: it serves what was acknowledged, or it is retired; it never
// forgets. Most flips of a log and of a MANIFEST are in what was synced last.
func TestEveryFlipInTheRecordStoreIsFoundOrHarmless(t *testing.T) {
	rng := newRand(t)
	fs := vfs.NewCrashableMem()
	o := testOptions()
	d := makeDrive(t, fs, o)
	var acked []body
	put := func(n int) {
		for range n {
			b := newBody(rng, 1+rng.IntN(12<<10), true)
			if err := b.put(d); err != nil {
				t.Fatal(err)
			}
			acked = append(acked, b)
		}
	}
	put(40) // several write buffers: tables, blob files and a log
	mustClose(t, d)
	d = openDrive(t, fs, o)
	for range 3 { // the last log is one that is used again
		put(5)
		if err := flush(d); err != nil {
			t.Fatal(err)
		}
	}
	put(20)
	// What a process wrote is there after its end, synced or not.
	kept := vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng}
	killed := fs.CrashClone(kept)
	mustClose(t, d)
	for _, c := range []struct {
		name  string
		image *vfs.MemFS
	}{{"killed", killed}, {"closed", fs.CrashClone(kept)}} {
		t.Run(c.name, func(t *testing.T) { everyFlip(t, rng, c.image, o, acked) })
	}
}

// everyFlip flips bytes in copies of image, a drive that was not open and has acked.
func everyFlip(t *testing.T, rng *rand.Rand, image *vfs.MemFS, o Options, acked []body) {
	lengths := map[string]int64{}
	sums, err := vfsx.ReadSums(image, "d/"+metaDir+"/"+sumsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sums {
		lengths[s.Name] = s.Length
	}
	names, err := image.List("d/" + metaDir)
	if err != nil {
		t.Fatal(err)
	}
	retired, served, refused := 0, 0, 0
	kinds := map[string]int{}
	for _, name := range names {
		file := "d/" + metaDir + "/" + name
		fi, err := image.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size, tries := fi.Size(), 2
		if strings.HasSuffix(name, ".log") || strings.HasPrefix(name, "MANIFEST") {
			tries = 10
		}
		for n := range tries {
			if size == 0 {
				break
			}
			at := rng.Int64N(size)
			if l := min(lengths[name], size); l > 0 && n >= 2 {
				at = l - 1 - rng.Int64N(min(l, 60))
			}
			clone := image.CrashClone(vfs.CrashCloneCfg{})
			flip(t, clone, file, at)
			d, err := Open(bg, clone, "d", o)
			if err != nil {
				switch StatusOf(err) {
				case Corrupt:
					retired++
					if _, err := Open(bg, clone, "d", o); StatusOf(err) != Retired {
						t.Fatalf("%s at %d: after it was retired: %v", name, at, err)
					}
					if !strings.Contains(err.Error(), "replace") || !strings.Contains(err.Error(), "drive d") {
						t.Errorf("%s at %d: %v does not say what to do", name, at, err)
					}
				case Unreadable:
					refused++
				default:
					t.Fatalf("%s at %d: %v", name, at, err)
				}
				kinds[path.Ext(name)]++
				continue
			}
			for _, b := range acked {
				if err := b.check(d); err != nil {
					if f := d.Fault(); f == nil || !f.Corrupt {
						t.Fatalf("%s at %d of %d: an acknowledged shard: %v, and the drive goes on", name, at, size, err)
					}
					break
				}
			}
			if f := d.Fault(); f != nil {
				retired++
				kinds[path.Ext(name)]++
				mustClose(t, d)
				if _, err := Open(bg, clone, "d", o); StatusOf(err) != Retired {
					t.Fatalf("%s at %d: after it was retired: %v", name, at, err)
				}
				continue
			}
			served++
			mustClose(t, d)
		}
	}
	t.Logf("retired %d, refused %d, served in full %d; found in %v", retired, refused, served, kinds)
	if retired == 0 || kinds[".log"] == 0 || kinds[".sst"]+kinds[".blob"] == 0 {
		t.Error("nothing was found: the test does not test")
	}
}

func TestLostRecordStoreIsRefused(t *testing.T) {
	for _, lost := range []string{metaDir, metaDir + "/*", shardsDir} {
		t.Run(lost, func(t *testing.T) {
			fs := vfs.NewMem()
			d := makeDrive(t, fs, testOptions())
			if err := newBody(newRand(t), 100, true).put(d); err != nil {
				t.Fatal(err)
			}
			mustClose(t, d)
			if err := fs.RemoveAll("d/" + strings.TrimSuffix(lost, "/*")); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(lost, "*") {
				mkdir(t, fs, "d/"+metaDir)
			}
			if _, err := Open(bg, fs, "d", testOptions()); StatusOf(err) != Corrupt {
				t.Fatalf("got %v", err)
			}
			if _, err := Open(bg, fs, "d", testOptions()); StatusOf(err) != Retired {
				t.Fatalf("the second time: %v", err)
			}
		})
	}
	t.Run("that of another drive", func(t *testing.T) {
		fs := vfs.NewMem()
		mustClose(t, makeDrive(t, fs, testOptions()))
		id := testIdentity(3)
		id.Drive, id.Format, id.OldestReader, id.Revision = ID{77}, FormatVersion, 1, 9
		if err := writeIdentity(fs, "d", &id); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(bg, fs, "d", testOptions()); StatusOf(err) != Corrupt {
			t.Fatalf("got %v", err)
		}
	})
}

func TestADirectoryThatWasMovedAwayIsNoticed(t *testing.T) {
	fs := vfs.NewMem()
	d := makeDrive(t, fs, testOptions())
	if err := d.Present(); err != nil {
		t.Fatal(err)
	}
	b := newBody(newRand(t), 9000, false)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	if err := fs.Rename("d", "gone"); err != nil {
		t.Fatal(err)
	}
	if err := d.Present(); StatusOf(err) != Missing {
		t.Fatalf("got %v", err)
	}
	// Its shards are not missing: they are where the disk is.
	_, err := d.OpenShard(bg, b.chunk().Shard(0))
	wantKind(t, err, errs.Drive)
	_, err = d.StatShard(bg, b.chunk().Shard(0))
	wantKind(t, err, errs.Drive)
	wantKind(t, newBody(newRand(t), 9000, false).put(d), errs.Drive)
	if d.Fault() == nil {
		t.Fatal("not quarantined")
	}
}

// hangFS blocks syncs below the shard directories while stop is open.
type hangFS struct {
	vfs.FS
	hang atomic.Bool
	stop chan struct{}
}

func (h *hangFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := h.FS.Create(name, c)
	return &hangFile{f, h}, err
}

type hangFile struct {
	vfs.File
	h *hangFS
}

func (f *hangFile) SyncData() error {
	if f.h.hang.Load() {
		<-f.h.stop
	}
	return f.File.SyncData()
}

func TestADriveThatHangsHoldsNobodyUp(t *testing.T) {
	h := &hangFS{FS: vfs.NewMem(), stop: make(chan struct{})}
	var now atomic.Int64
	o := testOptions()
	o.MaxInFlight = 4
	o.Now = func() time.Time { return time.Unix(1e9+now.Load(), 0) }
	d := makeDrive(t, h, o)
	rng := newRand(t)
	var bodies []body
	for i := range 5 {
		b := newBody(rng, 5000, false)
		b.data.ID[0] = byte(i) // different locks
		if _, err := b.stream(d); err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, b)
	}
	h.hang.Store(true)
	seal := func(b body) error {
		ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
		defer cancel()
		return d.SealShard(ctx, testAddr, &metadata.Seal{Data: b.data})
	}
	for _, b := range bodies {
		wantKind(t, seal(b), errs.Timeout)
	}
	if n := d.Info().InFlight; n != 4 {
		t.Errorf("%d operations in flight, want 4", n)
	}
	now.Store(60)
	_, err := d.Read(bg, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1}, Address: testAddr})
	wantKind(t, err, errs.Drive) // at once, although ctx has no end
	close(h.stop)
	waitFor(t, func() bool { return d.Info().InFlight == 0 })
	for _, b := range bodies[:4] {
		if err := b.check(d); err != nil {
			t.Errorf("after the drive woke up: %v", err)
		}
	}
	if err := d.Close(bg); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestCloseDoesNotWaitForAHangingDrive(t *testing.T) {
	h := &hangFS{FS: vfs.NewMem(), stop: make(chan struct{})}
	d := makeDrive(t, h, testOptions())
	b := newBody(newRand(t), 5000, false)
	if _, err := b.stream(d); err != nil {
		t.Fatal(err)
	}
	h.hang.Store(true)
	ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
	defer cancel()
	wantKind(t, d.SealShard(ctx, testAddr, &metadata.Seal{Data: b.data}), errs.Timeout)
	wantKind(t, d.Close(ctx), errs.Timeout)
	close(h.stop)
	if _, err := d.Read(bg, &metadata.ReadRequest{Address: testAddr}); !errs.Is(err, errs.Drive) {
		t.Errorf("reading a closed drive: %v", err)
	}
}

// failListFS fails the i-th listing of the record store.
type failListFS struct {
	vfs.FS
	n atomic.Int64 // how many are left before the one that fails
}

func (f *failListFS) List(dir string) ([]string, error) {
	if strings.HasSuffix(dir, metaDir) && f.n.Add(-1) == -1 {
		return nil, errInjected
	}
	return f.FS.List(dir)
}

// TestAnOpeningThatCannotListIsRefused fails each listing of an opening in turn. At the last one Pebble has begun to flush
// and to collect statistics: an opening that it gave up there would end the process, now and then.
func TestAnOpeningThatCannotListIsRefused(t *testing.T) {
	m := newOpImage(t, newRand(t))
	for i := int64(0); ; i++ {
		hit := false
		for range 5 {
			fs := &failListFS{FS: m.formed.CrashClone(vfs.CrashCloneCfg{})}
			fs.n.Store(i)
			d, err := Open(bg, fs, "d", testOptions())
			if hit = fs.n.Load() < 0; !hit {
				if err != nil {
					t.Fatalf("without a fault: %v", err)
				}
				mustClose(t, d)
				break
			}
			if StatusOf(err) != Unreadable {
				t.Fatalf("listing %d fails: %v", i, err)
			}
			mustClose(t, openDrive(t, fs.FS, testOptions()))
		}
		if !hit {
			t.Logf("an opening lists %d times", i)
			if i < 2 {
				t.Error("the last listing was not failed")
			}
			return
		}
	}
}
