package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// retriable reports whether a client would simply try again.
func retriable(err error) bool {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Unknown, errs.Busy, errs.Conflict, errs.Timeout:
		return true
	}
	return false
}

func TestOneOfManyCreatesWins(t *testing.T) {
	o := stackOptions{}
	s := newStack(t, o)
	s.bucketFor("bkt", Unversioned)
	// A second gateway, with nothing in common but the drives.
	meta := metadata.NewClient(metadata.ClientConfig{Replicas: replicas{s, false}})
	other := s.gateway(meta, o)
	defer func() {
		if err := errors.Join(other.Close(context.Background()), meta.Close(context.Background())); err != nil {
			t.Error(err)
		}
	}()
	for round := range 4 {
		key := fmt.Sprintf("k%d", round)
		var won atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				g := s.Store
				if i%2 == 1 {
					g = other
				}
				b := body(uint64(round*100+i), []int{10, 5000}[i%2])
				_, err := g.Put(context.Background(), "bkt", key, bytes.NewReader(b), PutOptions{Size: int64(len(b)), If: Conditions{IfNoneMatch: []string{"*"}}})
				switch {
				case err == nil:
					won.Add(1)
					winner.Store(b)
				case !errors.Is(err, ErrPrecondition) && !retriable(err):
					t.Errorf("put: %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of 24 creates won", won.Load())
		}
		if _, got, err := s.get("bkt", key, GetOptions{}); err != nil || !bytes.Equal(got, winner.Load().([]byte)) {
			t.Fatalf("the winner's body is not what is read: %v", err)
		}
	}
}

func TestCompareAndSwapCounter(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	if _, err := s.put("bkt", "n", []byte("0"), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var added atomic.Int64
	for range 4 {
		wg.Go(func() {
			for done := 0; done < 8; {
				info, b, err := s.get("bkt", "n", GetOptions{})
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				n, _ := strconv.Atoi(string(b))
				_, err = s.put("bkt", "n", []byte(strconv.Itoa(n+1)), PutOptions{If: Conditions{IfMatch: []string{info.ETag}}})
				switch {
				case err == nil:
					added.Add(1)
					done++
				case !errors.Is(err, ErrPrecondition) && !retriable(err):
					t.Errorf("put: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	_, b, err := s.get("bkt", "n", GetOptions{})
	if err != nil || string(b) != strconv.FormatInt(added.Load(), 10) {
		t.Fatalf("the counter is %s after %d successes, %v", b, added.Load(), err)
	}
}

// slowWriter lets the test act between two writes.
type slowWriter struct {
	bytes.Buffer
	act func()
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.act()
	return w.Buffer.Write(p)
}

func TestOverwriteDuringGetNeverMixesVersions(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := newStack(t, stackOptions{tune: func(c *Config) { c.CacheBytes = -1 }})
	s.bucketFor("bkt", Unversioned)
	const size = 900 << 10 // four chunks
	want := body(seed, size)
	if _, err := s.put("bkt", "k", want, PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for round := range 6 {
		obj, err := s.Get(context.Background(), "bkt", "k", GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		next := body(seed+uint64(round)+1, size)
		once := false
		w := &slowWriter{act: func() {
			if !once {
				once = true
				if _, err := s.put("bkt", "k", next, PutOptions{}); err != nil {
					t.Error(err)
				}
			}
		}}
		n, err := obj.WriteTo(w)
		obj.Close()
		if err == nil && n != size || !bytes.Equal(w.Bytes(), want[:w.Len()]) {
			t.Fatalf("round %d: %d bytes, %v, and they are not those of the version that was opened", round, n, err)
		}
		want = next
	}
}

func TestMultipartRaces(t *testing.T) {
	s := newStack(t, stackOptions{})
	ctx := context.Background()
	s.bucketFor("bkt", Enabled)
	for round := range 12 {
		key := fmt.Sprintf("k%d", round)
		up, err := s.CreateUpload(ctx, "bkt", key, UploadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		first := body(uint64(round), 20<<10)
		p, err := s.PutPart(ctx, "bkt", key, up.UploadID, 1, bytes.NewReader(first), PartOptions{Size: int64(len(first))})
		if err != nil {
			t.Fatal(err)
		}
		list := []CompletedPart{{Number: 1, ETag: p.ETag}}
		var wg sync.WaitGroup
		var completed, aborted atomic.Int32
		var etag atomic.Value
		for range 3 {
			wg.Go(func() {
				info, err := s.CompleteUpload(ctx, "bkt", key, up.UploadID, list, CompleteOptions{})
				switch {
				case err == nil:
					completed.Add(1)
					etag.Store(info.ETag)
				case errors.Is(err, ErrNoSuchUpload), errors.Is(err, ErrInvalidPart), retriable(err):
				default:
					t.Errorf("complete: %v", err)
				}
			})
		}
		wg.Go(func() {
			other := body(uint64(round)+1000, 20<<10)
			_, err := s.PutPart(ctx, "bkt", key, up.UploadID, 1, bytes.NewReader(other), PartOptions{Size: int64(len(other))})
			if err != nil && !errors.Is(err, ErrNoSuchUpload) && !retriable(err) {
				t.Errorf("part: %v", err)
			}
		})
		if round%2 == 1 {
			wg.Go(func() {
				err := s.AbortUpload(ctx, "bkt", key, up.UploadID)
				switch {
				case err == nil:
					aborted.Add(1)
				case !errors.Is(err, ErrNoSuchUpload) && !retriable(err):
					t.Errorf("abort: %v", err)
				}
			})
		}
		wg.Wait()
		if completed.Load() > 0 && aborted.Load() > 0 {
			t.Fatalf("round %d: completed %d times and aborted %d times", round, completed.Load(), aborted.Load())
		}
		versions, err := s.ListVersions(ctx, "bkt", ListVersionsOptions{Prefix: key, KeyMarker: "", Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, v := range versions.Versions {
			if v.Key == key {
				n++
			}
		}
		if completed.Load() > 0 && n != 1 || aborted.Load() > 0 && n != 0 || n > 1 {
			t.Fatalf("round %d: %d versions after %d completions and %d aborts", round, n, completed.Load(), aborted.Load())
		}
		if completed.Load() > 0 {
			if _, got, err := s.get("bkt", key, GetOptions{}); err != nil || !bytes.Equal(got, first) {
				t.Fatalf("round %d: the object is not the part that was named: %d bytes, %v", round, len(got), err)
			}
		}
	}
}

// Every request is run with its i-th write to a drive failing, for i = 0, 1, 2, … until it runs without
// a failure left. One failing drive never stops a request here, and every drive failing from i on leaves
// either the old or the new version.
func TestFailOperationI(t *testing.T) {
	for _, size := range []int{100, 600 << 10} {
		for _, all := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, all %v", size, all), func(t *testing.T) {
				s := newStack(t, stackOptions{tune: func(c *Config) { c.CacheBytes = -1 }})
				s.bucketFor("bkt", Unversioned)
				old := body(1, size)
				if _, err := s.put("bkt", "k", old, PutOptions{}); err != nil {
					t.Fatal(err)
				}
				for i := 0; ; i++ {
					var count atomic.Int64
					f := func(uint16, string) error {
						if n := count.Add(1) - 1; n == int64(i) || all && n > int64(i) {
							return errs.E("test", errs.Drive, "injected")
						}
						return nil
					}
					s.fault.Store(&f)
					next := body(uint64(i)+2, size)
					_, err := s.put("bkt", "k", next, PutOptions{})
					s.fault.Store(nil)
					_, got, e := s.get("bkt", "k", GetOptions{})
					switch {
					case e != nil:
						t.Fatalf("i=%d: get: %v (put: %v)", i, e, err)
					case err == nil && !bytes.Equal(got, next):
						t.Fatalf("i=%d: the put succeeded, and the get has another body", i)
					case err != nil && !all:
						t.Fatalf("i=%d: put with one failure: %v", i, err)
					case !bytes.Equal(got, next) && !bytes.Equal(got, old):
						t.Fatalf("i=%d: neither the old nor the new body", i)
					case err != nil && errs.KindOf(err) != errs.Unknown && !bytes.Equal(got, old):
						t.Fatalf("i=%d: the put failed for certain (%v), and its body is there", i, err)
					}
					old = got
					if int(count.Load()) <= i {
						break
					}
				}
			})
		}
	}
}

func TestShortLongAndFailingBodies(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	for _, size := range []int{100, 600 << 10} {
		want := body(uint64(size), size)
		if _, err := s.put("bkt", "k", want, PutOptions{}); err != nil {
			t.Fatal(err)
		}
		broken := errors.New("connection reset")
		for name, r := range map[string]io.Reader{
			"short":   bytes.NewReader(want[:size-1]),
			"long":    bytes.NewReader(append(bytes.Clone(want), 'x')),
			"failing": io.MultiReader(bytes.NewReader(want[:size/2]), readerFunc(func([]byte) (int, error) { return 0, broken })),
		} {
			_, err := s.Put(context.Background(), "bkt", "k", r, PutOptions{Size: int64(size)})
			if !errs.Is(err, errs.Incomplete) {
				t.Errorf("%s body of %d bytes: %v", name, size, err)
			}
		}
		refused := errors.New("refused")
		if _, err := s.put("bkt", "k", []byte("other"), PutOptions{Verify: func(Sums) error { return refused }}); !errors.Is(err, refused) {
			t.Errorf("a refused body: %v", err)
		}
		if _, got, err := s.get("bkt", "k", GetOptions{}); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the old version is not there: %v", err)
		}
	}
}
