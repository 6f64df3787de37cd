package disk

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
	"github.com/ostraka/ostraka/metadata"
)

func writeFile(t testing.TB, fs vfs.FS, name string, b []byte) {
	t.Helper()
	if err := vfsx.ReplaceFile(fs, name, b); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFlippedByteOfAnIdentityIsFoundAndSurvived(t *testing.T) {
	want := testIdentity(3)
	want.Format, want.OldestReader, want.Revision = FormatVersion, 1, 1
	good, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []string{identityFile, identityCopy} {
		for at := range good {
			fs := vfs.NewMem()
			mkdir(t, fs, "d")
			bad := bytes.Clone(good)
			bad[at] ^= 1 << (at % 8)
			for _, name := range []string{identityFile, identityCopy} {
				content := good
				if name == damaged {
					content = bad
				}
				writeFile(t, fs, "d/"+name, content)
			}
			in := Inspect(fs, "d")
			if in.Status != Identified || !reflect.DeepEqual(*in.Identity, want) {
				t.Fatalf("byte %d of %s: %v, %+v", at, damaged, in.Status, in.Identity)
			}
			if !strings.Contains(in.Warning, damaged) {
				t.Fatalf("byte %d of %s: warning %q", at, damaged, in.Warning)
			}
			if at%50 == 0 {
				writeFile(t, fs, "d/"+identityFile, bad)
				writeFile(t, fs, "d/"+identityCopy, bad)
				if in := Inspect(fs, "d"); in.Status != Damaged || !errs.Is(in.Err, errs.Corrupt) {
					t.Fatalf("byte %d of both copies: %v, %v", at, in.Status, in.Err)
				}
			}
		}
		for cut := range len(good) {
			if _, err := decodeIdentity(good[:cut]); err == nil {
				t.Fatalf("an identity cut to %d of %d bytes is accepted", cut, len(good))
			}
		}
	}
}

func TestOpeningRenewsADamagedIdentityCopy(t *testing.T) {
	fs := vfs.NewMem()
	mustClose(t, makeDrive(t, fs, testOptions()))
	flip(t, fs, "d/"+identityFile, 40)
	mustClose(t, openDrive(t, fs, testOptions()))
	if in := Inspect(fs, "d"); in.Status != Identified || in.Warning != "" {
		t.Fatalf("%v, %q, %v", in.Status, in.Warning, in.Err)
	}
	// An outdated copy loses to the newer one.
	old := testIdentity(3)
	old.Format, old.OldestReader, old.Forming = FormatVersion, 1, true
	b, _ := old.encode()
	writeFile(t, fs, "d/"+identityFile, b)
	if in := Inspect(fs, "d"); in.Identity.Forming || in.Warning == "" {
		t.Fatalf("the older copy was taken: %+v, %q", in.Identity, in.Warning)
	}
}

func TestInspectSaysWhatItFound(t *testing.T) {
	identity := func(change func(*Identity)) []byte {
		id := testIdentity(3)
		id.Format, id.OldestReader, id.Revision = FormatVersion, 1, 1
		change(&id)
		b, err := id.encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	put := func(content []byte) func(*vfs.MemFS) {
		return func(fs *vfs.MemFS) {
			mkdir(t, fs, "d")
			writeFile(t, fs, "d/"+identityFile, content)
			writeFile(t, fs, "d/"+identityCopy, content)
		}
	}
	for _, c := range []struct {
		name  string
		setup func(*vfs.MemFS)
		want  Status
		says  string
	}{
		{"nothing there", func(*vfs.MemFS) {}, Missing, "mount"},
		{"an empty directory", func(fs *vfs.MemFS) { mkdir(t, fs, "d") }, Empty, ""},
		{"a fresh file system", func(fs *vfs.MemFS) { mkdir(t, fs, "d/lost+found") }, Empty, ""},
		{"what a crashed Format leaves", func(fs *vfs.MemFS) {
			mkdir(t, fs, "d")
			writeFile(t, fs, "d/x", nil)
			fs.Rename("d/x", "d/"+identityFile+".tmp")
		}, Empty, ""},
		{"files of somebody", func(fs *vfs.MemFS) { mkdir(t, fs, "d"); writeFile(t, fs, "d/photo.jpg", []byte("x")) }, Occupied, "photo.jpg"},
		{"a file", func(fs *vfs.MemFS) { writeFile(t, fs, "d", []byte("x")) }, Occupied, "not a directory"},
		{"a drive", put(identity(func(*Identity) {})), Identified, ""},
		{"a newer format that reads as ours", put(identity(func(id *Identity) { id.Format = 9 })), Identified, ""},
		{"a newer format", put(identity(func(id *Identity) { id.Format, id.OldestReader = 9, 2 })), TooNew, "newer ostraka"},
		{"an unknown mandatory feature", put(identity(func(id *Identity) { id.Features.Mandatory = []string{"zoned"} })), TooNew, "zoned"},
		{"an unknown optional feature", put(identity(func(id *Identity) { id.Features.Optional = []string{"hints"} })), Identified, ""},
		{"an identity of nothing", put(identity(func(id *Identity) { id.Drive = ID{} })), Damaged, "replace"},
		{"garbage", put([]byte("{}\n")), Damaged, "replace"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			c.setup(fs)
			before := fs.String()
			in := Inspect(fs, "d")
			if in.Status != c.want {
				t.Fatalf("got %v (%v), want %v", in.Status, in.Err, c.want)
			}
			if (in.Err != nil) != (c.want != Empty && c.want != Identified) || in.Err != nil && !strings.Contains(in.Err.Error(), c.says) {
				t.Fatalf("error %v, want one about %q", in.Err, c.says)
			}
			if in.Err != nil && (StatusOf(in.Err) != c.want || !strings.Contains(in.Err.Error(), "drive d ")) {
				t.Fatalf("error %v does not carry status and path", in.Err)
			}
			if c.want != Empty && Format(fs, "d", testIdentity(4)) == nil {
				t.Fatal("it was formatted over")
			}
			if c.want != Identified {
				if _, err := Open(bg, fs, "d", testOptions()); StatusOf(err) != c.want {
					t.Fatalf("opening it: %v", err)
				}
			}
			if c.want != Empty && c.want != Identified && fs.String() != before {
				t.Fatalf("something was changed: %s", fs.String())
			}
		})
	}
}

func TestOpenRefusesTheWrongDrive(t *testing.T) {
	fs := vfs.NewMem()
	d := makeDrive(t, fs, testOptions())
	_, err := Open(bg, fs, "d", testOptions())
	if StatusOf(err) != InUse {
		t.Fatalf("opened twice: %v", err)
	}
	mustClose(t, d)
	o := testOptions()
	o.Cluster = ID{5}
	if _, err := Open(bg, fs, "d", o); StatusOf(err) != Foreign || !strings.Contains(err.Error(), o.Cluster.String()) {
		t.Fatalf("a foreign drive: %v", err)
	}
	o.Cluster, o.Drive = testIdentity(3).Cluster, ID{7}
	if _, err := Open(bg, fs, "d", o); StatusOf(err) != WrongDrive {
		t.Fatalf("another drive: %v", err)
	}
	o.Drive = testIdentity(3).Drive
	mustClose(t, openDrive(t, fs, o))
}

func TestFormatIsRepeatableAfterACrashAtAnyOperation(t *testing.T) {
	for i := newRand(t).IntN(4); ; i += 4 { // there are many: 256 directories
		fs := vfs.NewCrashableMem()
		mkdir(t, fs, "d")
		inj := failAt(i, errInjected)
		err := func() error {
			f := wrapFaults(fs, inj)
			if err := Format(f, "d", testIdentity(3)); err != nil {
				return err
			}
			d, err := Open(bg, f, "d", testOptions())
			if err != nil {
				return err
			}
			err = d.MarkFormed(bg)
			return errors.Join(err, d.Close(bg))
		}()
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		if err := Format(after, "d", testIdentity(3)); err != nil && StatusOf(err) != Occupied {
			t.Fatalf("operation %d failed, then a crash: %v", i, err)
		}
		d := openDrive(t, after, testOptions())
		if d.Identity().Drive != testIdentity(3).Drive {
			t.Fatalf("operation %d: %+v", i, d.Identity())
		}
		mustClose(t, d)
		if !inj.hit.Load() {
			if err != nil {
				t.Fatalf("without a fault: %v", err)
			}
			break
		}
	}
}

func FuzzIdentity(f *testing.F) {
	id := testIdentity(3)
	id.Format = 1
	b, _ := id.encode()
	f.Add(b)
	f.Add([]byte(identityHead + "{}" + identityMid))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := decodeIdentity(b); err == nil {
			again, err := id.encode()
			if err != nil {
				t.Fatal(err)
			}
			if id2, err := decodeIdentity(again); err != nil || !reflect.DeepEqual(id, id2) {
				t.Fatalf("%+v came back as %+v, %v", id, id2, err)
			}
		}
	})
}

func FuzzShardRow(f *testing.F) {
	for _, r := range []ShardRow{
		{ID: erasure.ShardID{Index: 3}, Size: 8192, Address: testAddr},
		{Inline: []byte{}, Address: metadata.Address{Kind: metadata.KindPart, Key: []byte{0}, Upload: metadata.UploadID{1}, Part: 9}, Profile: one, BodySize: 4},
	} {
		f.Add(r.appendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again ShardRow
		if r.unmarshal(erasure.DataID{1}, 2, b) != nil {
			return
		}
		if err := again.unmarshal(erasure.DataID{1}, 2, r.appendTo(nil)); err != nil || fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", r) {
			t.Fatalf("%+v came back as %+v, %v", r, again, err)
		}
	})
}

func FuzzShardName(f *testing.F) {
	f.Add(shardName(erasure.ShardID{Data: erasure.DataID{1, 2}, Chunk: 77, Index: 5}))
	f.Add("00.1.2")
	f.Fuzz(func(t *testing.T, s string) {
		if id, ok := parseShardName(s); ok && shardName(id) != s {
			t.Fatalf("%q parses as %v, which is named %q", s, id, shardName(id))
		}
	})
}
