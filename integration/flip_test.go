package integration

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// flip changes one bit of a file.
func flip(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// filesUnder returns the files below a directory that have at least one byte, largest first.
func filesUnder(t *testing.T, dir string) []string {
	t.Helper()
	type file struct {
		name string
		size int64
	}
	var all []file
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Size() > 0 {
			all = append(all, file{path, st.Size()})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b file) int { return int(b.size - a.size) })
	names := make([]string, len(all))
	for i, f := range all {
		names[i] = f.name
	}
	return names
}

// filled starts a server, puts objects of all sorts, and returns what was put.
func filled(t *testing.T) (*server, string, map[string]*body) {
	t.Helper()
	s := start(t, 4, "--cache-size", "0")
	c := s.s3()
	bucket := s.bucket(t, "flipped")
	put := map[string]*body{}
	for i, size := range []int64{0, 1, 5000, 64 * kib, 64*kib + 1, 300 * kib, 2 * mib, 6 * mib, 70 * mib} {
		key := fmt.Sprintf("o-%d", size)
		put[key] = newBody(*seedFlag+uint64(i), size)
		if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: newBody(put[key].seed, size), ContentLength: &size}); err != nil {
			t.Fatal(err)
		}
	}
	return s, bucket, put
}

func TestFlippedShardsAreServedRightAndRepaired(t *testing.T) {
	s, bucket, put := filled(t)
	c := s.s3()
	r := random(4)
	flipped := 0
	for _, name := range filesUnder(t, filepath.Join(s.dirs[0], "shards")) {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			flip(t, name, r.Int64N(st.Size()))
		}
		flipped++
	}
	if flipped == 0 {
		t.Fatal("the drive holds no shard file to damage")
	}
	for key, b := range put {
		fetch(t, c, bucket, key, b)
		// A range into the middle takes another way.
		if b.n > 1000 {
			got, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", b.n/2, b.n/2+99))})
			if err != nil {
				t.Errorf("range of %s: %v", key, err)
				continue
			}
			part := new(bytes.Buffer)
			_, err = part.ReadFrom(got.Body)
			got.Body.Close()
			if err != nil || !bytes.Equal(part.Bytes(), b.bytes()[b.n/2:b.n/2+100]) {
				t.Errorf("range of %s: %d bytes, %v; they differ from what was put", key, part.Len(), err)
			}
		}
	}
	for key := range put {
		poll(t, time.Minute, 200*time.Millisecond, key+" to be repaired", func() error {
			in, err := s.inspect(bucket, key)
			if err != nil {
				return err
			}
			return in.wholeOn(len(s.dirs))
		})
	}
	t.Logf("%d shard files damaged, all served and repaired (seed %d)", flipped, *seedFlag)
}

func TestMoreFlippedShardsThanParityAreAnErrorAndNeverWrongBytes(t *testing.T) {
	s, bucket, put := filled(t)
	c := s.s3()
	for _, dir := range s.dirs[:3] {
		for _, name := range filesUnder(t, filepath.Join(dir, "shards")) {
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			// Every 64 KiB, so that no block of the body is left whole.
			for at := int64(0); at < st.Size(); at += 16 * kib {
				flip(t, name, at)
			}
		}
	}
	failed := 0
	for key, b := range put {
		out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
		if err != nil {
			failed++
			continue
		}
		got, n, err := sum(out.Body)
		out.Body.Close()
		switch {
		case err != nil:
			failed++
		case n != b.n || got != b.sum():
			t.Errorf("%s: %d bytes with a wrong hash were delivered as whole", key, n)
		}
	}
	if failed == 0 {
		t.Error("three of four shards are damaged and nothing failed: the damage missed the data")
	}
	t.Logf("%d of %d objects answered with an error, none with wrong bytes", failed, len(put))
}

func TestFlippedRecordStoresAndIdentities(t *testing.T) {
	s, bucket, put := filled(t)
	s.stop(30 * time.Second)
	r := random(5)
	for round, sub := range []string{"meta", "ostraka.json", "meta", "meta"} {
		// One drive at a time, so that the others hold everything that was acknowledged.
		victim := filepath.Join(s.dirs[round%4], sub)
		files := []string{victim}
		if st, err := os.Stat(victim); err != nil {
			t.Fatal(err)
		} else if st.IsDir() {
			files = filesUnder(t, victim)
		}
		for _, name := range files {
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			flip(t, name, r.Int64N(st.Size()))
		}
		if round > 0 {
			break // a second drive: with two damaged, what is decided has to stay readable
		}
		s.start()
		for key, b := range put {
			fetch(t, s.s3(), bucket, key, b)
		}
		if l := s.log.String(); !strings.Contains(l, s.dirs[0]) {
			t.Errorf("the log does not name the damaged drive %s\n%s", s.dirs[0], s.log.tail())
		}
		s.stop(30 * time.Second)
	}
	s.start()
	for key, b := range put {
		fetch(t, s.s3(), bucket, key, b)
	}
	t.Logf("seed %d", *seedFlag)
}
