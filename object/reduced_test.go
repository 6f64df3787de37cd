package object

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// mutedControl changes no bucket while it is told so.
type mutedControl struct {
	*testControl
	muted atomic.Bool
}

func (c *mutedControl) SetBucketConfig(ctx context.Context, id uint64, document string, value []byte) error {
	if c.muted.Load() {
		return errs.E("test", errs.Unavailable, "no leader")
	}
	return c.testControl.SetBucketConfig(ctx, id, document, value)
}

// What may be lost with a drive is judged by whether a bucket has data of fewer shards: that is known before they are written.
func TestTheFirstBodyOfReducedRedundancyIsAnnounced(t *testing.T) {
	ctx := context.Background()
	for name, write := range map[string]func(s *stack) error{
		"put": func(s *stack) error {
			_, err := s.put("bkt", "k", []byte("x"), PutOptions{Class: ClassReduced})
			return err
		},
		"copy": func(s *stack) error {
			_, err := s.Copy(ctx, "bkt", "standard", "bkt", "k", CopyOptions{Put: PutOptions{Class: ClassReduced}})
			return err
		},
		"part": func(s *stack) error {
			up, err := s.CreateUpload(ctx, "bkt", "k", UploadOptions{Class: ClassReduced})
			if err != nil {
				return err
			}
			_, err = s.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader([]byte("x")), PartOptions{Size: 1})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var control *mutedControl
			s := newStack(t, stackOptions{tune: func(c *Config) {
				control = &mutedControl{testControl: c.Control.(*testControl)}
				c.Control = control
			}})
			s.bucketFor("bkt", Unversioned)
			control.muted.Store(true)
			if _, err := s.put("bkt", "standard", []byte("x"), PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := write(s); !errs.Is(err, errs.Unavailable) {
				t.Fatalf("nobody was told, and the answer is %v", err)
			}
			if _, err := s.Head(ctx, "bkt", "k", GetOptions{}); !errors.Is(err, ErrNoSuchKey) {
				t.Errorf("it is there: %v", err)
			}
			if b, _ := control.Bucket("bkt"); b.Config[placement.NoReduced] == nil {
				t.Error("the bucket is said to have such data")
			}
			control.muted.Store(false)
			if err := write(s); err != nil {
				t.Fatal(err)
			}
			if b, _ := control.Bucket("bkt"); b.Config[placement.NoReduced] != nil {
				t.Error("the bucket is said to have no such data")
			}
			control.muted.Store(true)
			if err := write(s); err != nil {
				t.Errorf("it was announced before, and the answer is %v", err)
			}
		})
	}
}
