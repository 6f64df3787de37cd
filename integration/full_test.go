package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/minio/minio-go/v7"
)

// needMounts skips a test that mounts file systems where it may not.
func needMounts(t *testing.T) {
	t.Helper()
	if os.Getenv(privateMounts) == "" {
		lacking(t, "nothing was mounted: it needs root and a mount namespace")
	}
}

// onTmpfs puts a file system of size bytes in memory in place of drive i, before the first start.
func (s *server) onTmpfs(t *testing.T, i int, size int64) {
	t.Helper()
	if err := syscall.Mount("tmpfs", s.dirs[i], "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		lacking(t, fmt.Sprintf("nothing was mounted: tmpfs: %v", err))
	}
	t.Cleanup(func() {
		s.kill()
		if err := syscall.Unmount(s.dirs[i], 0); err != nil {
			t.Errorf("unmount %s: %v", s.dirs[i], err)
		}
	})
}

// free is how many bytes the file system of drive i has left.
func (s *server) free(i int) int64 {
	s.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dirs[i], &st); err != nil {
		s.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// stuff fills the file system of drive i to the last byte with a file that is not the server's, and
// returns what removes it.
func (s *server) stuff(i int) (remove func()) {
	s.t.Helper()
	name := filepath.Join(s.dirs[i], "somebody-elses.iso")
	f, err := os.Create(name)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	for page := make([]byte, 64*kib); len(page) > 0; {
		if _, err := f.Write(page); errors.Is(err, syscall.ENOSPC) {
			page = page[:len(page)/2]
		} else if err != nil {
			s.t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			s.t.Error(err)
		}
	}
}

// inState returns how many drives are in one of the states.
func (s *server) inState(states ...string) (n int, err error) {
	for _, state := range states {
		v, err := s.metric("ostraka_drive_state", `state="`+state+`"`)
		if err != nil {
			return 0, err
		}
		n += int(v)
	}
	return n, nil
}

func (s *server) waitState(limit time.Duration, want int, states ...string) {
	s.t.Helper()
	poll(s.t, limit, 50*time.Millisecond, fmt.Sprintf("%d drives %v", want, states), func() error {
		n, err := s.inState(states...)
		if err == nil && n != want {
			err = fmt.Errorf("%d are", n)
		}
		return err
	})
}

// fillBody is small enough that a drive fills in many steps, and large enough that it does so soon.
const fillBody = 2 * mib

// fill puts bodies until done says so, or a PUT fails: then it returns that error.
func (h *held) fill(c store, prefix string, rng *rand.Rand, done func() bool) error {
	h.t.Helper()
	for i := range 1000 {
		if done() {
			return nil
		}
		key, body := fmt.Sprintf("held/%s-%03d", prefix, i), randomBody(rng.Uint64(), fillBody)
		ctx, cancel := context.WithTimeout(h.t.Context(), callTimeout)
		err := c.put(ctx, key, body)
		cancel()
		if err != nil {
			return err
		}
		h.bodies[key] = body
	}
	h.t.Fatal("a thousand bodies do not fill the drives")
	return nil
}

// remove deletes the keys; each has to succeed.
func (h *held) remove(c store, keys []string) {
	h.t.Helper()
	for _, key := range keys {
		ctx, cancel := context.WithTimeout(h.t.Context(), callTimeout)
		err := c.del(ctx, key)
		cancel()
		if err != nil {
			h.t.Errorf("DELETE %s: %v", key, err)
			continue
		}
		delete(h.bodies, key)
		h.gone = append(h.gone, key)
	}
}

// newHeldServer starts a server over n drives, of which those in small are file systems of size bytes.
func newHeldServer(t *testing.T, n int, size int64, small ...int) *server {
	t.Helper()
	s := newServer(t, n, loadArgs...)
	s.withTestLimits()
	for _, i := range small {
		s.onTmpfs(t, i, size)
	}
	s.start()
	if err := newMinioStore(t, s, loadBucket).core.MakeBucket(t.Context(), loadBucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// backAfterDeletes is within which the room of deleted bodies is there again: readers have a minute to end.
const backAfterDeletes = 4 * time.Minute

// TestFaultOneDriveFull fills one of four drives: to its reserve with objects, then to the last byte with
// somebody else's file. Everything goes on, and the drive takes its part again when it has room.
func TestFaultOneDriveFull(t *testing.T) {
	needMounts(t)
	t.Parallel()
	rng := random(50)
	small := rng.IntN(4)
	s := newHeldServer(t, 4, 160*mib, small)
	h, c := &held{t: t, bodies: map[string][]byte{}}, newAWSStore(t, s, loadBucket)
	err := h.fill(c, "filling", rng, func() bool { n, err := s.inState("full"); return err == nil && n == 1 })
	if err != nil {
		t.Fatalf("PUT while one drive fills: %v", err)
	}
	t.Logf("drive %d is full after %d bodies, with %d MiB free", small+1, len(h.bodies), s.free(small)/mib)
	h.hold(s, "beside-a-full-one", rng)
	h.check(s, "one drive full")
	keys := slices.Sorted(maps.Keys(h.bodies))
	h.remove(c, keys[:5])

	restore := s.stuff(small)
	h.hold(s, "beside-a-stuffed-one", rng)
	h.remove(c, keys[5:10])
	s.waitState(30*time.Second, 3, "online")
	h.hold(s, "without-the-stuffed-one", rng)
	h.check(s, "one drive without a single byte")
	restore()
	s.waitState(30*time.Second, 4, "online", "full")
	h.check(s, "the drive is back")

	h.remove(c, keys[10:])
	begin := time.Now()
	s.waitState(backAfterDeletes, 4, "online")
	t.Logf("all drives have room %v after the deletes", time.Since(begin).Round(time.Second))
	h.hold(s, "with-room", rng)
	h.check(s, "with room")
	s.waitHealed(slices.Sorted(maps.Keys(h.bodies)), 3*time.Minute)
}

// TestFaultAllDrivesFull fills all drives. PUT is answered 507 with a message that says why; reads, listings and
// deletes go on; and what the deletes let go of can be written again, without a restart.
func TestFaultAllDrivesFull(t *testing.T) {
	needMounts(t)
	t.Parallel()
	rng := random(51)
	s := newHeldServer(t, 4, 128*mib, 0, 1, 2, 3)
	h, c := &held{t: t, bodies: map[string][]byte{}}, newAWSStore(t, s, loadBucket)
	h.hold(s, "first", rng)
	full := func(what string, err error) {
		t.Helper()
		status, code := answered(err)
		if status != http.StatusInsufficientStorage || code != "InsufficientStorage" || !strings.Contains(err.Error(), "no room") {
			t.Errorf("%s over full drives: %d %s %v, want 507 InsufficientStorage and a message that says that no room is left", what, status, code, err)
		}
	}
	// What is refused gives back what it had, and a log that is not needed any more makes room too: so a
	// PUT is repeated until it is refused, and what was acknowledged before counts.
	more := 0
	untilFull := func(size int) {
		t.Helper()
		for range 200 {
			key, body := fmt.Sprintf("held/more-%04d", more), randomBody(rng.Uint64(), size)
			more++
			begin := time.Now()
			err := c.put(t.Context(), key, body)
			if err != nil {
				full(fmt.Sprintf("PUT of %d bytes", size), err)
				if took := time.Since(begin); took > promptly {
					t.Errorf("PUT of %d bytes is refused after %v, want within %v", size, took, promptly)
				}
				return
			}
			h.bodies[key] = body
		}
		t.Errorf("200 PUTs of %d bytes were acknowledged over full drives", size)
	}
	up, err := c.c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &c.bucket, Key: aws.String("parts")})
	if err != nil {
		t.Fatal(err)
	}
	full("PUT", h.fill(c, "filling", rng, func() bool { return false }))
	for _, size := range []int{fillBody, 200 * kib, 64 * kib, 4 * kib, 1, fillBody} {
		untilFull(size)
	}
	t.Logf("the store is full after %d bodies", len(h.bodies))
	keys := slices.Sorted(maps.Keys(h.bodies))
	_, err = c.c.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: &c.bucket, Key: aws.String("parts"), UploadId: up.UploadId, PartNumber: aws.Int32(1),
		Body: bytes.NewReader(randomBody(2, fillBody))})
	full("UploadPart", err)
	_, err = c.c.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: &c.bucket, Key: aws.String("copy"), CopySource: aws.String(loadBucket + "/held/filling-000")})
	full("CopyObject", err)
	presigned, err := s3.NewPresignClient(c.c).PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: &c.bucket, Key: aws.String("raw")})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("what a person reads: %s", rawPut(t, presigned.URL))
	for range 150 {
		untilFull(64 * kib)
	}
	for i := range s.dirs {
		if s.free(i) == 0 {
			t.Errorf("refused PUTs filled drive %d to the last byte", i+1)
		}
	}
	h.check(s, "all drives full")
	h.remove(c, keys[:10])
	h.check(s, "all drives full, after deletes")

	// To the last byte: no drive can write a row then. What is refused is refused with an answer.
	var restore []func()
	for i := range s.dirs {
		restore = append(restore, s.stuff(i))
	}
	for i, key := range keys[10:20] {
		err := c.put(t.Context(), fmt.Sprintf("stuffed/%d", i), randomBody(4, 4*kib))
		if status, _ := answered(err); status < 500 {
			t.Errorf("PUT without a single byte free: %v, want a 5xx", err)
		}
		switch err := c.del(t.Context(), key); {
		case err == nil:
			delete(h.bodies, key)
			h.gone = append(h.gone, key)
		default:
			if status, _ := answered(err); status < 500 {
				t.Errorf("DELETE without a single byte free: %v, want a 5xx", err)
			}
			delete(h.bodies, key) // either outcome, until it is repeated
		}
	}
	for _, f := range restore {
		f()
	}
	s.waitState(time.Minute, 4, "online", "full")
	// Those deletes without an answer are decided now.
	for _, key := range keys[10:20] {
		if !slices.Contains(h.gone, key) {
			h.remove(c, []string{key})
		}
	}
	h.check(s, "room for rows again")

	half := keys[20 : 20+(len(keys)-20)/2]
	h.remove(c, half)
	begin := time.Now()
	poll(t, backAfterDeletes, 500*time.Millisecond, "a PUT to be acknowledged after deletes", func() error {
		return c.put(t.Context(), "held/again", randomBody(5, fillBody))
	})
	h.bodies["held/again"] = randomBody(5, fillBody)
	t.Logf("a PUT is acknowledged %v after deletes", time.Since(begin).Round(time.Second))
	poll(t, backAfterDeletes, 500*time.Millisecond, "the room of what was deleted", func() error {
		for i := range s.dirs {
			// A quarter of the file system is the reserve.
			if free := s.free(i); free < (32+16)*mib {
				return fmt.Errorf("drive %d has %d MiB free", i+1, free/mib)
			}
		}
		return nil
	})
	s.waitState(time.Minute, 4, "online")
	h.hold(s, "with-room", rng)
	h.check(s, "with room")
	s.waitHealed(slices.Sorted(maps.Keys(h.bodies)), 3*time.Minute)
}

// rawPut returns the answer to a PUT as it is on the wire.
func rawPut(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, bytes.NewReader(randomBody(6, fillBody)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s: %s", resp.Status, raw)
}
