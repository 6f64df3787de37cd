package sim

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
)

func TestMoreDamageThanParityIsAnErrorAndNeverWrongBytes(t *testing.T) {
	const seed = 1
	left := bubble(t, func() {
		w := newWorldOf(seed, rand.New(rand.NewPCG(seed, 3)), erasure.Profile{Data: 2, Parity: 2}, 4, false)
		w.cache = -1
		defer w.bury()
		defer w.shutDown()
		if !w.boot() {
			t.Fatal(w.problems)
		}
		ctx, s := context.Background(), w.cur.store
		if _, err := s.CreateBucket(ctx, plainBucket, object.CreateBucketOptions{Owner: rootAccount}); err != nil {
			t.Fatal(err)
		}
		v := w.values.single(3*chunkSize/2, 0)
		if _, err := s.Put(ctx, plainBucket, "k", bytes.NewReader(v.body), object.PutOptions{Size: int64(len(v.body))}); err != nil {
			t.Fatal(err)
		}
		c := &client{w: w, rng: rand.New(rand.NewPCG(seed, 7))}
		for i := range 3 { // the first two can be made up for
			wreck(t, w.drives[i])
			v, res := w.session(c, plainBucket, "k").fetch(ctx, object.GetOptions{})
			if want := map[bool]string{true: "ok", false: "unknown"}[i < 2]; res != want || i < 2 && v == nil {
				t.Errorf("with the shards of %d drives damaged a GET ends as %s, want %s", i+1, res, want)
			}
			s.Flush(ctx) //nolint:errcheck // ctx does not end
		}
		_, err := s.Head(ctx, plainBucket, "k", object.GetOptions{})
		if err != nil {
			t.Errorf("the record of a damaged object: %v", err)
		}
		obj, err := s.Get(ctx, plainBucket, "k", object.GetOptions{})
		if err == nil {
			_, err = obj.WriteTo(io.Discard)
			obj.Close() //nolint:errcheck // read
		}
		if err == nil || errs.Is(err, errs.NotFound) {
			t.Errorf("GET of a damaged object: %v, want an error that does not say that it is gone", err)
		}
		for _, p := range w.problems {
			t.Error(p)
		}
	})
	if left != "" {
		t.Error(left)
	}
}

// wreck damages every page of every shard file of a drive.
func wreck(t *testing.T, d *simDrive) {
	t.Helper()
	files := shardFiles(d)
	if len(files) == 0 {
		t.Fatal("there is no shard file to damage")
	}
	for _, name := range files {
		f, err := d.cur.fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		for off := int64(0); off < fi.Size(); off += 512 {
			if _, err := f.ReadAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 0x10
			if _, err := f.WriteAt(b[:], off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
