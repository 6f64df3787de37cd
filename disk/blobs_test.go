package disk

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
)

// TestADamagedBlobFileRetiresTheDrive flips bytes of a blob file's footer, which made Pebble panic, and of its
// blocks, and reads what lies there.
func TestADamagedBlobFileRetiresTheDrive(t *testing.T) {
	rng := newRand(t)
	fs := vfs.NewCrashableMem()
	d := makeDrive(t, fs, testOptions())
	var acked []body
	for range 12 {
		b := newBody(rng, 9000, true)
		if err := b.put(d); err != nil {
			t.Fatal(err)
		}
		acked = append(acked, b)
	}
	if err := d.store.db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, d)
	names, err := fs.List("d/" + metaDir)
	if err != nil {
		t.Fatal(err)
	}
	blob := ""
	for _, name := range names {
		if strings.HasSuffix(name, blobSuffix) {
			blob = "d/" + metaDir + "/" + name
		}
	}
	fi, err := fs.Stat(blob)
	if err != nil {
		t.Fatal(err)
	}
	var places []int64
	for i := range int64(blobFooter) {
		places = append(places, fi.Size()-1-i)
	}
	for range 20 {
		places = append(places, rng.Int64N(fi.Size()-blobFooter))
	}
	for _, at := range places {
		clone := fs.CrashClone(vfs.CrashCloneCfg{})
		flip(t, clone, blob, at)
		d, err := Open(bg, clone, "d", testOptions())
		if err != nil {
			if StatusOf(err) != Corrupt {
				t.Fatalf("at %d: %v", at, err)
			}
			continue
		}
		for _, b := range acked {
			if err = b.check(d); err != nil {
				break
			}
		}
		if f := d.Fault(); err == nil || f == nil || !f.Corrupt {
			t.Fatalf("at %d of %d: got %v, fault %+v", at, fi.Size(), err, d.Fault())
		}
		mustClose(t, d)
		if _, err := Open(bg, clone, "d", testOptions()); StatusOf(err) != Retired {
			t.Fatalf("at %d: after it was retired: %v", at, err)
		}
	}
}

// TestAPanicOfTheRecordStoreRetiresTheDrive: what reads damaged bytes may panic in ways nobody has met.
func TestAPanicOfTheRecordStoreRetiresTheDrive(t *testing.T) {
	// On real files: Pebble, which is not closed after a panic, may still use what is closed under it.
	path := t.TempDir()
	if err := Format(vfs.Default, path, testIdentity(1)); err != nil {
		t.Fatal(err)
	}
	d, err := Open(bg, vfs.Default, path, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.MarkFormed(bg); err != nil {
		t.Fatal(err)
	}
	err = func() (err error) {
		defer d.store.contain("test", &err)
		panic("damaged")
	}()
	wantKind(t, err, errs.Corrupt)
	if f := d.Fault(); f == nil || !f.Corrupt {
		t.Fatalf("fault: %+v", f)
	}
	mustClose(t, d)
}

func FuzzBlobFooter(f *testing.F) {
	b := make([]byte, blobFooter)
	b[20], b[21] = 1, blobFormat
	copy(b[30:], blobMagic)
	binary.LittleEndian.PutUint32(b, maskedCRC(b[4:]))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if sum, err := decodeBlobFooter(b); err == nil && (len(b) != blobFooter || byte(sum) != b[20]) {
			t.Fatalf("%x passes as a footer", b)
		}
	})
}
