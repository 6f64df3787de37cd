package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// This file makes changes: by the leader, in this process or another.

// leader returns the voter that leads, or nil.
func (k *Control) leader() *voter {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range k.voters {
		if v.raft.State() == raft.Leader {
			return v
		}
	}
	return nil
}

var errNoLeader = errs.E("cluster", errs.Unavailable, "the control plane has no leader: too few of its drives are here")

// withLeader calls f with the leader, if that is in this process, and again when leadership is lost before f began its work,
// until it succeeds or the time for a change is over.
func (k *Control) withLeader(ctx context.Context, f func(v *voter, timeout time.Duration) error) error {
	return k.withLeaderOr(ctx, f, nil)
}

// withLeaderOr is withLeader that, where another process leads, calls there with its node, until that says that it is
// done.
func (k *Control) withLeaderOr(ctx context.Context, here func(v *voter, timeout time.Duration) error,
	there func(node disk.ID, timeout time.Duration) (done bool, err error)) error {
	end := time.Now().Add(k.c.ChangeTimeout)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if v := k.leader(); v != nil {
			if err := here(v, time.Until(end)); !nothingHappened(err) {
				return outcome(err)
			}
		} else if node := k.leaderNode(); there != nil && node != (disk.ID{}) && node != k.self() {
			if done, err := there(node, time.Until(end)); done {
				return err
			}
		}
		if time.Now().After(end) {
			return errNoLeader
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errs.Wrap("cluster", ctx.Err())
		}
	}
}

// nothingHappened reports whether another leader may do what ended with err. A leader stores an entry, and on failure
// steps down, before it sends it to anybody.
func nothingHappened(err error) bool {
	return !errs.Is(err, errs.Unknown) && (errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrRaftShutdown) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress) || errs.Is(err, errs.Drive))
}

// outcome is what an error of a leader means to who asked.
func outcome(err error) error {
	switch {
	case err == nil || errs.Is(err, errs.Unknown):
		return err
	case errors.Is(err, raft.ErrLeadershipLost):
		return errs.As("cluster", errs.Unknown, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return errs.As("cluster", errs.Unavailable, err)
	}
	return errs.Wrap("cluster", err)
}

// change applies c and returns the result of its application. In a cluster it has an id, and is tried again while the
// outcome is not known.
func (k *Control) change(ctx context.Context, c *command) (any, error) {
	if !k.networked() {
		return k.changeOnce(ctx, c)
	}
	result, _, err := k.repeat(ctx, c)
	return result, err
}

// changeOnce is one try of a change.
func (k *Control) changeOnce(ctx context.Context, c *command) (any, error) {
	raw := c.encode()
	if _, err := decodeCommand(raw); err != nil {
		return nil, errs.As("cluster", errs.Invalid, err) // no voter could apply it
	}
	var result any
	maybe := false // a leader elsewhere may have made it
	err := k.withLeaderOr(ctx, func(v *voter, timeout time.Duration) (err error) {
		result, _, err = k.applyAt(ctx, v, raw, timeout)
		return err
	}, func(node disk.ID, timeout time.Duration) (done bool, err error) {
		result, done, err = k.changeAt(ctx, node, raw, timeout)
		maybe = maybe || !done && err != nil
		return done, err
	})
	if err != nil && maybe && !errs.Is(err, errs.Unknown) {
		err = errs.As("cluster", errs.Unknown, err)
	}
	if err != nil {
		return nil, err
	}
	if refused, ok := result.(error); ok {
		return nil, refused
	}
	return result, nil
}

// applyAt has a leader in this process apply an encoded change.
func (k *Control) applyAt(ctx context.Context, v *voter, raw []byte, timeout time.Duration) (result any, index uint64, err error) {
	a := v.raft.Apply(raw, timeout)
	v.endsWith(a)
	done := make(chan error, 1)
	go func() { done <- a.Error() }() // ends with the future, which ends with the voter
	select {
	case err := <-done:
		if err != nil {
			return nil, 0, changeError(err)
		}
		if !k.copied(ctx, a.Index()) {
			return nil, 0, errs.E("cluster", errs.Unknown, "the change is not yet on enough drives")
		}
		return a.Response(), a.Index(), nil
	case <-ctx.Done():
		return nil, 0, errs.As("cluster", errs.Unknown, ctx.Err())
	case <-time.After(timeout + copyTimeout):
		return nil, 0, errs.E("cluster", errs.Unknown, "the control plane did not answer in time")
	}
}

// changeAt has the leader on another node apply an encoded change, and waits until this process knows it too. Not done,
// with an error: it may have been applied.
func (k *Control) changeAt(ctx context.Context, node disk.ID, raw []byte, timeout time.Duration) (result any, done bool, err error) {
	end := time.Now().Add(timeout)
	r, err := k.ask(ctx, node, methodChange, raw, min(callTimeout, max(timeout, 0)))
	switch {
	case errs.Is(err, errs.Denied) || errs.Is(err, errs.Invalid) || errs.Is(err, errs.Unsupported):
		return nil, true, errs.Wrap("cluster", err) // refused before it was looked at
	case err != nil:
		return nil, false, err
	case !r.leads:
		return nil, false, nil
	case r.failed != nil:
		return nil, true, r.failed
	}
	if result, err = decodeResult(r.result); err != nil {
		return nil, true, errs.As("cluster", errs.Unknown, err)
	}
	return result, true, errs.As("cluster", errs.Unknown, k.catchUp(ctx, node, r, time.Until(end)))
}

// catchUp waits until this process has applied what a leader answered with. One that has no raft server yet asks for the
// state.
func (k *Control) catchUp(ctx context.Context, node disk.ID, r *reply, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, max(timeout, copyTimeout))
	defer cancel()
	if !k.State().Initialized() {
		k.pull(ctx, node)
	}
	return k.waitFor(ctx, r.gen, r.index)
}

// changeError is what a change's error from raft means. ErrRaftShutdown comes before a change was
// taken up as well as after it was committed, when the voter stops under it: unlike a question to
// the leader, a change must not be tried again then.
func changeError(err error) error {
	if errors.Is(err, raft.ErrRaftShutdown) {
		return errs.As("cluster", errs.Unknown, err)
	}
	return err
}

// Refresh makes State at least as new as everything that was answered anywhere before the call.
// Without a leader that can be reached the error is of kind Unavailable.
func (k *Control) Refresh(ctx context.Context) error {
	return k.withLeaderOr(ctx, k.current, func(node disk.ID, timeout time.Duration) (done bool, err error) {
		r, err := k.ask(ctx, node, methodIndex, nil, min(callTimeout, max(timeout, 0)))
		switch {
		case errs.Is(err, errs.Denied) || errs.Is(err, errs.Unsupported):
			return true, errs.Wrap("cluster.Refresh", err)
		case err != nil || !r.leads:
			return false, nil
		case r.failed != nil:
			return true, errs.As("cluster.Refresh", errs.Unavailable, r.failed)
		}
		return true, k.catchUp(ctx, node, r, timeout)
	})
}

// current makes the state of this process, whose voter v leads, at least as new as everything that was answered.
func (k *Control) current(v *voter, timeout time.Duration) error {
	term := v.raft.CurrentTerm()
	if k.barrier.Load() != term {
		// A new leader does not know what is committed before it has committed something.
		if err := v.raft.Barrier(timeout).Error(); err != nil {
			return askAgain(err)
		}
		k.barrier.Store(term)
		return nil
	}
	commit := v.raft.CommitIndex()
	if err := v.raft.VerifyLeader().Error(); err != nil {
		return askAgain(err)
	}
	if v.raft.AppliedIndex() < commit {
		return askAgain(v.raft.Barrier(timeout).Error())
	}
	return nil
}

// askAgain is what an error of a question means: unlike a change, it may be put to the next leader when this one is lost.
func askAgain(err error) error {
	if errors.Is(err, raft.ErrLeadershipLost) {
		return raft.ErrNotLeader
	}
	return err
}

// repeat makes a change that may be made twice: it tries again, for twice the time of a change, while
// the outcome is not known, such as when its leader is lost. asked tells that an earlier try may have
// had its effect.
func (k *Control) repeat(ctx context.Context, c *command) (result any, asked bool, err error) {
	if k.networked() && c.change == (changeID{}) {
		rand.Read(c.change[:]) //nolint:errcheck // never fails
	}
	end := time.Now().Add(2 * k.c.ChangeTimeout)
	for {
		result, err = k.changeOnce(ctx, c)
		if !errs.Is(err, errs.Unknown) || ctx.Err() != nil || time.Now().After(end) {
			return result, asked, err
		}
		asked = true
		select {
		case <-time.After(heartbeat / 10):
		case <-ctx.Done():
			return nil, true, err
		}
	}
}

func bucketOf(result any, err error) (Bucket, error) {
	if err != nil {
		return Bucket{}, err
	}
	b, _ := result.(Bucket)
	return b, nil
}

// CreateBucket makes a bucket; ID and Epoch are given by the state. When the name is taken the
// error is of kind Exists, and ExistingBucket tells by whom.
func (k *Control) CreateBucket(ctx context.Context, b Bucket) (Bucket, error) {
	result, asked, err := k.repeat(ctx, &command{op: opCreateBucket, bucket: b})
	if was, ok := ExistingBucket(err); ok && asked && was.Created == b.Created && was.Owner == b.Owner {
		return was, nil // it was made by the try whose outcome was not known
	}
	return bucketOf(result, err)
}

// ExistingBucket returns the bucket that was in the way of CreateBucket.
func ExistingBucket(err error) (Bucket, bool) {
	var e *existsError
	if errors.As(err, &e) {
		return e.bucket, true
	}
	return Bucket{}, false
}

// BeginDeleteBucket marks a bucket as being deleted, and returns its new epoch.
func (k *Control) BeginDeleteBucket(ctx context.Context, id uint64) (epoch uint64, err error) {
	result, _, err := k.repeat(ctx, &command{op: opBeginDelete, id: id})
	b, err := bucketOf(result, err)
	return b.Epoch, err
}

// FinishDeleteBucket removes a bucket whose deletion began at epoch.
func (k *Control) FinishDeleteBucket(ctx context.Context, id, epoch uint64) error {
	_, asked, err := k.repeat(ctx, &command{op: opFinishDelete, id: id, epoch: epoch})
	if asked && errs.Is(err, errs.NotFound) {
		return nil // ids are never used again: an earlier try removed it
	}
	return err
}

// ReopenBucket gives up the deletion that began at epoch.
func (k *Control) ReopenBucket(ctx context.Context, id, epoch uint64) error {
	_, err := k.change(ctx, &command{op: opReopen, id: id, epoch: epoch})
	return err
}

// SetVersioning changes the versioning state of a bucket.
func (k *Control) SetVersioning(ctx context.Context, id uint64, v Versioning) error {
	if v > Suspended {
		return errs.E("cluster.SetVersioning", errs.Invalid, "no such versioning state")
	}
	_, _, err := k.repeat(ctx, &command{op: opSetVersioning, id: id, versioning: v})
	return err
}

// SetBucketConfig stores a configuration document of a bucket; nil removes it.
func (k *Control) SetBucketConfig(ctx context.Context, id uint64, document string, value []byte) error {
	if len(value) > maxDocument {
		return errs.E("cluster.SetBucketConfig", errs.Invalid, "the document is too large")
	}
	_, _, err := k.repeat(ctx, &command{op: opSetConfig, id: id, document: document, value: value})
	return err
}

// PutAccessKey stores a pair of keys.
func (k *Control) PutAccessKey(ctx context.Context, key AccessKey) error {
	_, _, err := k.repeat(ctx, &command{op: opPutKey, key: key})
	return err
}

// DeleteAccessKey removes a pair of keys.
func (k *Control) DeleteAccessKey(ctx context.Context, id string) error {
	_, _, err := k.repeat(ctx, &command{op: opDeleteKey, key: AccessKey{ID: id}})
	return err
}
