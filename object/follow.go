package object

import (
	"context"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// This file follows what changes under a request: a bucket's epoch, or the members of a partition. A
// drive answers both with errs.Stale, which never reaches a caller.

// patience bounds how long one step of a request waits for a partition that is between two epochs.
type patience struct {
	since   time.Time // zero: it was not needed yet
	counted time.Time // up to when shared knows of it
	try     int
	shared  *sharedPatience // of a request of many steps; nil: the step has its own
}

// sharedPatience is what all steps of a request have together: the time in which some step is patient, the tries
// between its pauses included. Times of several steps that overlap count once; those in which none is do not count.
type sharedPatience struct {
	mu    sync.Mutex // guards all below
	spent time.Duration
	until time.Time // the end of what was counted
}

// left counts the time from a moment until now, and returns what is left.
func (w *sharedPatience) left(from, now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if from.Before(w.until) {
		from = w.until
	}
	if now.After(from) {
		w.spent += now.Sub(from)
		w.until = now
	}
	return maxPatience - w.spent
}

const (
	maxPatience = 10 * time.Second // a partition is between epochs for a few milliseconds
	maxPause    = 128 * time.Millisecond
)

// left is how much patience a step has now, which is patient since its first call.
func (w *patience) left(now time.Time) time.Duration {
	if w.since.IsZero() {
		w.since, w.counted = now, now
	}
	left := maxPatience - now.Sub(w.since)
	if w.shared != nil {
		left = min(left, w.shared.left(w.counted, now))
		w.counted = now
	}
	return left
}

// pause waits a moment, longer with each try. It returns false when the patience is over, or ctx is.
func (w *patience) pause(ctx context.Context) bool {
	left := w.left(time.Now())
	if left <= 0 {
		return false
	}
	d := min(time.Millisecond<<min(w.try, 10), maxPause, left)
	w.try++
	t := time.NewTimer(d)
	defer t.Stop()
	defer func() { w.left(time.Now()) }() // counted also if the next try succeeds
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// outdated reports whether an operation ended with err because p is not up to date: a drive said so, or
// too few members of an epoch that is over were there to answer.
func (s *Store) outdated(p *place, err error) bool {
	switch errs.KindOf(err) {
	case errs.Stale:
		return true
	case errs.Unknown:
		if metadata.SentBallot(err).IsZero() {
			return false
		}
	case errs.Unavailable:
	default:
		return false
	}
	l := s.control.Layout()
	return l.Number() != p.layout.Number() && l.Group(p.group.Partition).Epoch != p.group.Epoch
}

// follow brings p up to date after drives called it stale with cause. Where nothing newer is known yet, as
// while members of the partition are wedged, it waits a moment. The error is of kind Unavailable when the
// patience is over.
func (s *Store) follow(ctx context.Context, op string, p *place, write bool, w *patience, cause error) error {
	was := *p
	if err := s.refresh(ctx, op, p, write); err != nil {
		return err
	}
	if p.layout.Number() != was.layout.Number() || p.bucket.Epoch != was.bucket.Epoch {
		s.stats.followed.Add(1)
		return nil
	}
	if w.pause(ctx) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return errs.Wrap("object."+op, err)
	}
	return errs.As("object."+op, errs.Unavailable, cause)
}

// refresh asks the control plane for what is newest of p. Without a leader what is known here is taken:
// it may be newer than p, and if it is not, whoever asked waits.
func (s *Store) refresh(ctx context.Context, op string, p *place, write bool) error {
	asked := s.control.Refresh(ctx)
	if ctx.Err() != nil {
		return errs.Wrap("object."+op, ctx.Err())
	}
	l, err := s.layout(op) // before the bucket, as in locate
	if err != nil {
		return err
	}
	b, ok := s.control.Bucket(p.bucket.Name)
	switch {
	case !ok && asked != nil:
		return errs.Wrap("object."+op, asked)
	case !ok || b.ID != p.bucket.ID:
		return fail(op, &Failure{Reason: ErrNoSuchBucket, Bucket: p.bucket.Name})
	case write && b.Deleting:
		return errs.E("object."+op, errs.Busy, "the bucket is being deleted")
	}
	next := placeIn(l, b, p.key)
	next.patience = p.patience
	*p = *next
	return nil
}

// sentIsUnknown gives an error that ends an operation the kind Unknown if an Accept of it went out: a
// member may bring it into the next epoch.
func sentIsUnknown(op string, o *metadata.Operation, err error) error {
	if o.Sent.IsZero() {
		return err
	}
	return errs.As("object."+op, errs.Unknown, err)
}
