package disk

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"github.com/ostraka/ostraka/internal/errs"
)

// manifestSyncs calls before ahead of every sync of a MANIFEST.
type manifestSyncs struct {
	vfs.FS
	before func()
}

func (m *manifestSyncs) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := m.FS.Create(name, c)
	if err == nil && strings.HasPrefix(m.PathBase(name), "MANIFEST-") {
		f = &manifestFile{f, m}
	}
	return f, err
}

type manifestFile struct {
	vfs.File
	m *manifestSyncs
}

func (f *manifestFile) Sync() error {
	if f.m.before != nil {
		f.m.before()
	}
	return f.File.Sync()
}

func (f *manifestFile) SyncData() error { return f.Sync() }

// manyTables makes a record store in "db" whose MANIFEST begins with a record of several pages.
func manyTables(t *testing.T, fs vfs.FS, o func(vfs.FS) *pebble.Options) {
	t.Helper()
	db, err := pebble.Open("db", o(fs))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		for j := range 2 {
			if err := db.Set(fmt.Appendf(nil, "%04d-%d-%s", i, j, strings.Repeat("k", 300)), []byte("v"), pebble.Sync); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func tableOptions(fs vfs.FS) *pebble.Options {
	return &pebble.Options{FS: fs, FormatMajorVersion: storeFormat, DisableAutomaticCompactions: true, L0StopWritesThreshold: 1000,
		Logger: storeLog{&store{log: slog.New(slog.DiscardHandler)}}}
}

// TestACrashWhileAManifestIsMadeIsNotDamage cuts the power before each sync of a MANIFEST: while one is made, when a
// store opens or when the file has grown too large, and while an edit is added. What Pebble can open is not refused.
func TestACrashWhileAManifestIsMadeIsNotDamage(t *testing.T) {
	rng := newRand(t)
	for _, c := range []struct {
		name string
		max  int64 // size from which Pebble makes a new MANIFEST; 0: only when it opens
	}{{"when a store opens", 0}, {"when it has grown", 1}} {
		t.Run(c.name, func(t *testing.T) {
			o := func(fs vfs.FS) *pebble.Options {
				o := tableOptions(fs)
				o.MaxManifestFileSize = c.max
				return o
			}
			mem := vfs.NewCrashableMem()
			m := &manifestSyncs{FS: mem}
			manyTables(t, m, o)
			clones, torn := 0, 0
			m.before = func() {
				for range 50 {
					clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
					clones++
					if anyDamaged(t, clone) {
						torn++
					}
					if _, err := checkManifest(clone, "db"); err != nil {
						t.Fatalf("after a crash: %v", err)
					}
					db, err := pebble.Open("db", tableOptions(clone))
					if err != nil {
						t.Fatalf("after a crash, Pebble: %v", err)
					}
					if err := db.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
			db, err := pebble.Open("db", o(m))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Set([]byte("k"), []byte("v"), pebble.Sync), db.Flush()); err != nil {
				t.Fatal(err)
			}
			m.before = nil
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d crashes, %d with a torn record before a whole one", clones, torn)
			if torn == 0 {
				t.Error("no crash tore a new MANIFEST: the test does not test")
			}
		})
	}
}

// anyDamaged reports whether any MANIFEST in db, current or not, looks damaged.
func anyDamaged(t *testing.T, fs vfs.FS) bool {
	t.Helper()
	names, err := fs.List("db")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "MANIFEST-") {
			continue
		}
		f, err := fs.Open(fs.PathJoin("db", name))
		if err != nil {
			t.Fatal(err)
		}
		at, err := damagedRecord(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		if at >= 0 {
			return true
		}
	}
	return false
}

func TestAFlipInTheCurrentManifestIsFoundAndInAnOldOneIsNot(t *testing.T) {
	rng := newRand(t)
	mem := vfs.NewCrashableMem()
	manyTables(t, mem, tableOptions)
	db, err := pebble.Open("db", tableOptions(mem))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := errors.Join(db.Set([]byte{byte(i)}, []byte("v"), pebble.Sync), db.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	current, err := atomicfs.ReadMarker(mem, "db", manifestMarker)
	if err != nil {
		t.Fatal(err)
	}
	names, err := mem.List("db")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[bool]int{}
	for _, name := range names {
		if !strings.HasPrefix(name, "MANIFEST-") {
			continue
		}
		seen[name == current]++
		for range 20 {
			clone := mem.CrashClone(vfs.CrashCloneCfg{})
			at := rng.Int64N(4 << 10) // in the first record of the current one
			flip(t, clone, "db/"+name, at)
			_, err := checkManifest(clone, "db")
			if name == current {
				wantKind(t, err, errs.Corrupt)
			} else if err != nil {
				t.Errorf("a flip in %s, where %s is current: %v", name, current, err)
			}
		}
	}
	if seen[true] != 1 || seen[false] == 0 {
		t.Errorf("%d current and %d old MANIFESTs", seen[true], seen[false])
	}
}

// TestDamagedRecordTellsDamageFromATornEnd compares with what was written: wherever a file of records is cut, and
// wherever its last record is flipped, nothing is said; a flip before is found in the chunk that has it.
func TestDamagedRecordTellsDamageFromATornEnd(t *testing.T) {
	rng := newRand(t)
	var buf bytes.Buffer
	w := record.NewWriter(&buf)
	last := 0
	for _, size := range []int{100, 70 << 10, 0, 32<<10 - 200, 9, 3 << 10, 500} {
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		last = buf.Len()
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(rng.Uint32())
		}
		if _, err := w.WriteRecord(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	whole := buf.Bytes()
	find := func(b []byte) int64 {
		t.Helper()
		at, err := damagedRecord(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	if at := find(whole); at >= 0 {
		t.Fatalf("whole: damaged at %d", at)
	}
	for range 300 {
		if cut := rng.IntN(len(whole)); find(whole[:cut]) >= 0 {
			t.Fatalf("cut at %d: damaged", cut)
		}
		b := bytes.Clone(whole)
		at := rng.IntN(len(b))
		b[at] ^= 1 << rng.IntN(8)
		switch got := find(b); {
		case at >= last && got >= 0:
			t.Fatalf("a flip at %d, in the last record: damaged at %d", at, got)
		case at < last && got < 0 && !padding(whole, at):
			t.Fatalf("a flip at %d of %d is not found", at, len(b))
		case got > int64(at):
			t.Fatalf("a flip at %d is found at %d", at, got)
		}
	}
	if _, err := damagedRecord(&brokenReader{}); err == nil {
		t.Error("a read that fails is taken for the end")
	}
}

// padding reports whether at is in the end of a block that is too short for a chunk.
func padding(b []byte, at int) bool {
	block := b[at/manifestBlock*manifestBlock : min(len(b), (at/manifestBlock+1)*manifestBlock)]
	return len(block) == manifestBlock && at%manifestBlock > manifestBlock-manifestHeader
}

type brokenReader struct{}

func (*brokenReader) Read([]byte) (int, error) { return 0, errInjected }
