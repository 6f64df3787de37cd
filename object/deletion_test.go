package object

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// silentControl does not answer the last step of a deletion while it is told so.
type silentControl struct {
	*testControl
	silent atomic.Bool
	before atomic.Pointer[func()] // called once, before the last step of a deletion
}

func (c *silentControl) FinishDeleteBucket(ctx context.Context, id, epoch uint64) error {
	if f := c.before.Swap(nil); f != nil {
		(*f)()
	}
	if c.silent.Load() {
		return errs.E("test", errs.Unknown, "the leader was lost")
	}
	return c.testControl.FinishDeleteBucket(ctx, id, epoch)
}

func newDeletionStack(t *testing.T) (s *stack, control *silentControl, now *atomic.Int64) {
	now = new(atomic.Int64)
	now.Store(1_800_000_000)
	s = newStack(t, stackOptions{tune: func(c *Config) {
		control = &silentControl{testControl: c.Control.(*testControl)}
		c.Control, c.Now = control, func() time.Time { return time.Unix(now.Load(), 0) }
	}})
	s.bucketFor("bkt", Unversioned)
	return s, control, now
}

func TestDeletionWhoseLastStepHadNoAnswerIsFinished(t *testing.T) {
	ctx := context.Background()
	s, control, now := newDeletionStack(t)
	control.silent.Store(true)
	if err := s.DeleteBucket(ctx, "bkt"); err == nil {
		t.Fatal("the deletion was answered")
	}
	if b, ok := control.Bucket("bkt"); !ok || !b.Deleting {
		t.Fatalf("bucket: %+v, %v", b, ok)
	}
	control.silent.Store(false)
	for range 2 { // it is young: somebody else may be at it
		if err := s.ResumeDeletions(ctx); err != nil {
			t.Fatal(err)
		}
		now.Add(50)
	}
	if _, ok := control.Bucket("bkt"); !ok {
		t.Fatal("a young deletion was taken over")
	}
	now.Add(50)
	if err := s.ResumeDeletions(ctx); err != nil {
		t.Fatal(err)
	}
	if b, ok := control.Bucket("bkt"); ok {
		t.Fatalf("the bucket is still there: %+v", b)
	}
}

func TestDeletionOfABucketThatIsNotEmptyIsGivenUp(t *testing.T) {
	ctx := context.Background()
	s, control, now := newDeletionStack(t)
	if _, err := s.put("bkt", "k", []byte("body"), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	up, err := s.CreateUpload(ctx, "bkt", "left", UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Its process was killed right after this.
	b, _ := control.Bucket("bkt")
	if _, err := control.BeginDeleteBucket(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.put("bkt", "k2", []byte("body"), PutOptions{}); err == nil {
		t.Fatal("a bucket that is being deleted took an object")
	}
	for range 2 {
		if err := s.ResumeDeletions(ctx); err != nil {
			t.Fatal(err)
		}
		now.Add(61)
	}
	if _, err := s.put("bkt", "k2", []byte("body"), PutOptions{}); err != nil {
		t.Fatalf("the bucket was not opened again: %v", err)
	}
	list, err := s.ListUploads(ctx, "bkt", ListUploadsOptions{Limit: 10})
	if err != nil || len(list.Uploads) != 1 || list.Uploads[0].UploadID != up.UploadID {
		t.Fatalf("uploads: %+v, %v", list, err)
	}
}

func TestDeletionUnderWayIsNotTakenOver(t *testing.T) {
	var d deletions
	d.init()
	b := Bucket{ID: 1, Epoch: 2, Deleting: true}
	at := time.Unix(1_800_000_000, 0)
	end := d.begin(1)
	if got := d.stale([]Bucket{b}, at); len(got) != 0 {
		t.Fatalf("stale at first: %v", got)
	}
	if got := d.stale([]Bucket{b}, at.Add(time.Hour)); len(got) != 0 {
		t.Fatalf("stale while it is under way: %v", got)
	}
	end()
	if got := d.stale([]Bucket{b}, at.Add(time.Hour)); len(got) != 0 {
		t.Fatalf("stale at once: %v", got)
	}
	b.Epoch++ // another deletion
	if got := d.stale([]Bucket{b}, at.Add(2*time.Hour)); len(got) != 0 {
		t.Fatalf("the age of the deletion before counts: %v", got)
	}
	if got := d.stale([]Bucket{b}, at.Add(3*time.Hour)); len(got) != 1 {
		t.Fatalf("not stale: %v", got)
	}
}

func TestOfTwoOverlappingDeletionsOneSucceeds(t *testing.T) {
	ctx := context.Background()
	s, control, _ := newDeletionStack(t)
	var second error
	f := func() { second = s.DeleteBucket(ctx, "bkt") }
	control.before.Store(&f)
	if err := s.DeleteBucket(ctx, "bkt"); !errors.Is(err, ErrNoSuchBucket) {
		t.Errorf("the deletion that another one overtook: %v", err)
	}
	if second != nil {
		t.Errorf("the deletion that ended first: %v", second)
	}
	if _, ok := control.Bucket("bkt"); ok {
		t.Error("the bucket is still there")
	}
}

func TestADeletionThatIsResumedWhileItEndsIsNoFailure(t *testing.T) {
	ctx := context.Background()
	s, control, now := newDeletionStack(t)
	control.silent.Store(true)
	if err := s.DeleteBucket(ctx, "bkt"); err == nil {
		t.Fatal("the deletion was answered")
	}
	control.silent.Store(false)
	if err := s.ResumeDeletions(ctx); err != nil {
		t.Fatal(err)
	}
	now.Add(61)
	var other error
	f := func() { other = s.DeleteBucket(ctx, "bkt") }
	control.before.Store(&f)
	if err := s.ResumeDeletions(ctx); err != nil || other != nil {
		t.Errorf("resumed: %v, the other: %v", err, other)
	}
}
