package object

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// CreateBucket makes a bucket. ErrBucketOwned: the same owner has it already; ErrBucketExists:
// somebody else has.
func (s *Store) CreateBucket(ctx context.Context, name string, o CreateBucketOptions) (Bucket, error) {
	const op = "CreateBucket"
	if !ValidBucketName(name) {
		return Bucket{}, fail(op, &Failure{Reason: ErrInvalidBucketName, Bucket: name})
	}
	want := Bucket{Name: name, Owner: o.Owner, Region: o.Region, ObjectLock: o.ObjectLock, Config: maps.Clone(o.Config), Created: s.now()}
	if want.Config == nil {
		want.Config = make(map[string][]byte)
	}
	want.Config[placement.NoReduced] = []byte("1")
	if o.ObjectLock {
		want.Versioning = Enabled
	}
	b, err := s.control.CreateBucket(ctx, want)
	if errs.Is(err, errs.Exists) {
		if b.Name == "" {
			if b, err = s.bucket(ctx, op, name, false); err != nil {
				return Bucket{}, err
			}
		}
		if b.Owner == o.Owner {
			return b, fail(op, &Failure{Reason: ErrBucketOwned, Bucket: name})
		}
		return Bucket{}, fail(op, &Failure{Reason: ErrBucketExists, Bucket: name})
	}
	return b, errs.Wrap("object."+op, err)
}

// reduces has the control plane know that bodies of the class REDUCED_REDUNDANCY may lie in the bucket, from the first on.
// What may be lost with a drive is judged by it.
func (s *Store) reduces(ctx context.Context, b *Bucket) error {
	if _, none := b.Config[placement.NoReduced]; !none {
		return nil
	}
	return s.control.SetBucketConfig(ctx, b.ID, placement.NoReduced, nil)
}

// HeadBucket returns a bucket.
func (s *Store) HeadBucket(ctx context.Context, name string) (Bucket, error) {
	return s.bucket(ctx, "HeadBucket", name, false)
}

// ListBuckets returns the buckets of one owner, or of all for "", ascending by name.
func (s *Store) ListBuckets(_ context.Context, owner string) ([]Bucket, error) {
	all := s.control.Buckets()
	if owner == "" {
		return all, nil
	}
	return slices.DeleteFunc(slices.Clone(all), func(b Bucket) bool { return b.Owner != owner }), nil
}

// SetVersioning turns versioning on or suspends it.
func (s *Store) SetVersioning(ctx context.Context, name string, v Versioning) error {
	const op = "SetVersioning"
	b, err := s.bucket(ctx, op, name, true)
	if err != nil {
		return err
	}
	if v == Unversioned || v > Suspended {
		return errs.E("object."+op, errs.Invalid, "versioning can be enabled or suspended")
	}
	if v == Suspended && b.ObjectLock {
		return fail(op, &Failure{Reason: ErrInvalidBucketState, Bucket: name})
	}
	return errs.Wrap("object."+op, s.control.SetVersioning(ctx, b.ID, v))
}

// SetBucketConfig stores one configuration document of a bucket; a nil value removes it.
func (s *Store) SetBucketConfig(ctx context.Context, name, document string, value []byte) error {
	const op = "SetBucketConfig"
	b, err := s.bucket(ctx, op, name, true)
	if err != nil {
		return err
	}
	return errs.Wrap("object."+op, s.control.SetBucketConfig(ctx, b.ID, document, value))
}

// DeleteBucket removes an empty bucket. Open uploads do not keep it: they end with it, as on AWS.
//
// The order is that of the protocol: an empty listing; then `deleting` with a new bucket epoch; the
// fence on n−W+1 members of every partition, behind which no older Prepare is answered; an empty
// listing again, from a read quorum of members that hold the fence, where undecided keys are resolved;
// then it is final. Whatever fails in between reopens the bucket.
func (s *Store) DeleteBucket(ctx context.Context, name string) error {
	const op = "DeleteBucket"
	b, err := s.bucket(ctx, op, name, false)
	if err != nil {
		return err
	}
	if b.Deleting {
		// A deletion that was cut short: it is taken over from the fence on.
		return s.finishDelete(ctx, op, b, b.Epoch)
	}
	if err := s.requireEmpty(ctx, op, b, false); err != nil {
		return err
	}
	epoch, err := s.control.BeginDeleteBucket(ctx, b.ID)
	switch {
	case errs.Is(err, errs.NotFound):
		return fail(op, &Failure{Reason: ErrNoSuchBucket, Bucket: name})
	case err != nil:
		return errs.Wrap("object."+op, err)
	}
	return s.finishDelete(ctx, op, b, epoch)
}

// finishDelete is DeleteBucket from the fence on.
func (s *Store) finishDelete(ctx context.Context, op string, b Bucket, epoch uint64) error {
	b.Epoch, b.Deleting = epoch, true
	defer s.deletions.begin(b.ID)()
	err := s.fence(ctx, b)
	if err == nil {
		err = s.requireEmpty(ctx, op, b, true)
	}
	if err == nil {
		// Before it is final, although uploads are lost then when it does not become that: once the bucket is
		// gone nobody comes back to it, and what a crash left of their parts would stay for ever. Nothing but
		// the last step can fail behind this, and who finds the bucket closed goes on from here.
		err = s.endUploads(ctx, op, b)
	}
	if err == nil {
		err = s.control.FinishDeleteBucket(ctx, b.ID, epoch)
		if errs.Is(err, errs.NotFound) {
			// Another request finished the same deletion, and answers for it. A repetition of this very step
			// is not told so: the control plane knows it again.
			return fail(op, &Failure{Reason: ErrNoSuchBucket, Bucket: b.Name})
		}
		if errs.Is(err, errs.Stale) {
			err = errs.As("object."+op, errs.Busy, err) // or it gave it up
		}
		return errs.Wrap("object."+op, err)
	}
	// The bucket must not stay closed because the client went away.
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.c.CallTimeout)
	defer cancel()
	if e := s.control.ReopenBucket(undo, b.ID, epoch); e != nil && !errs.Is(e, errs.NotFound) {
		s.log.Warn("a bucket whose deletion failed could not be reopened; deleting it again repairs that",
			"bucket", b.Name, "error", e)
	}
	return err
}

// staleAfter is how long a bucket stays closed by a deletion that nobody goes on with.
const staleAfter = time.Minute

// deletions is what is known of deletions of buckets that are under way.
type deletions struct {
	mu     sync.Mutex // guards the fields below
	active map[uint64]int
	closed map[uint64]closedBucket
}

// closedBucket is a bucket that was met closed.
type closedBucket struct {
	epoch uint64
	since time.Time
}

func (d *deletions) init() {
	d.active, d.closed = make(map[uint64]int), make(map[uint64]closedBucket)
}

// begin notes that this process deletes a bucket, until end is called.
func (d *deletions) begin(id uint64) (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active[id]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.active[id]--; d.active[id] == 0 {
			delete(d.active, id)
			delete(d.closed, id) // from now on it is stale, if it is still closed
		}
	}
}

// stale lists the buckets that have been closed for long and that nobody here deletes.
func (d *deletions) stale(all []Bucket, now time.Time) (list []Bucket) {
	d.mu.Lock()
	defer d.mu.Unlock()
	closed := make(map[uint64]closedBucket)
	for _, b := range all {
		if !b.Deleting || d.active[b.ID] > 0 {
			continue
		}
		c := d.closed[b.ID]
		if c.epoch != b.Epoch {
			c = closedBucket{b.Epoch, now}
		}
		closed[b.ID] = c
		if now.Sub(c.since) >= staleAfter {
			list = append(list, b)
		}
	}
	d.closed = closed
	return list
}

// ResumeDeletions goes on with deletions of buckets that were cut short, by a crash or because their last
// step had no answer: the bucket is gone then, or open again if it is not empty. It is called from time to
// time, and takes a deletion for cut short that has stood still for a minute. It returns what failed.
func (s *Store) ResumeDeletions(ctx context.Context) error {
	const op = "ResumeDeletions"
	var fails []error
	for _, b := range s.deletions.stale(s.control.Buckets(), s.now()) {
		err := s.finishDelete(ctx, op, b, b.Epoch)
		switch {
		case err == nil:
			s.log.Info("a deletion that was cut short is finished", "bucket", b.Name)
		case errors.Is(err, ErrNoSuchBucket): // by somebody else
		case errors.Is(err, ErrBucketNotEmpty):
			s.log.Info("a deletion that was cut short is given up: the bucket is not empty", "bucket", b.Name)
		default:
			fails = append(fails, err)
		}
	}
	return errors.Join(fails...)
}

// endUploads removes every upload of a bucket that has no object any more.
func (s *Store) endUploads(ctx context.Context, op string, b Bucket) error {
	o := metadata.ScanOptions{Kind: metadata.KindUpload, Limit: MaxListKeys, Fenced: true}
	for {
		page, err := s.scan(ctx, op, &b, o, false)
		if err != nil {
			return err
		}
		for i := range page.Items {
			a := &page.Items[i].Address
			p, err := s.placeOf(op, b, a.Key)
			if err != nil {
				return err
			}
			if err := s.endUpload(ctx, op, p, a.Upload); err != nil {
				return err
			}
		}
		if !page.Truncated {
			return nil
		}
		o.After, o.AfterPrefix, o.AfterSub = page.After, page.AfterPrefix, page.AfterSub
	}
}

// endUpload removes an upload of a bucket that has no object. It is aborted before its parts go: if the
// bucket reopens because this is cut short, nobody may complete it without them.
func (s *Store) endUpload(ctx context.Context, op string, p *place, id metadata.UploadID) error {
	st, err := s.readUpload(ctx, op, p, id)
	if err != nil {
		return err
	}
	if st != nil && (st.Current.Status == metadata.UploadOpen || completing(st)) {
		if err := s.abort(ctx, op, p, id, st); err != nil {
			now, e := s.readUpload(ctx, op, p, id)
			switch {
			case e != nil:
				return e
			case now != nil && now.Current.Status == metadata.UploadCompleted:
				return fail(op, &Failure{Reason: ErrBucketNotEmpty, Bucket: p.bucket.Name})
			case now != nil && now.Current.Status != metadata.UploadAborted:
				return err
			}
		}
	}
	return s.clearUpload(ctx, op, p, id, nil)
}

// fence stores the bucket's epoch on every drive that answers, and succeeds when every partition
// has n−W+1 members among them. Drives refuse it while a partition of theirs is between two epochs: they
// are asked again within the request.
func (s *Store) fence(ctx context.Context, b Bucket) error {
	var wait patience
	for {
		stale, err := s.fenceOnce(ctx, b)
		if err == nil || !stale || !wait.pause(ctx) {
			return err
		}
	}
}

// fenceOnce asks every drive once. stale: one of them said to try again.
func (s *Store) fenceOnce(ctx context.Context, b Bucket) (stale bool, err error) {
	const op = "object.fence"
	l, err := s.layout("fence")
	if err != nil {
		return false, err
	}
	drives := l.Drives()
	fenced := make([]atomic.Bool, len(drives))
	var refused atomic.Bool
	each(len(drives), drivesAtOnce, func(i int) {
		d, ok := s.drives.Shards(drives[i].Num)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, s.c.CallTimeout)
		defer cancel()
		err := d.Fence(ctx, &metadata.FenceRequest{Header: metadata.Header{Drive: drives[i].Num}, Bucket: b.ID, Epoch: b.Epoch})
		fenced[i].Store(err == nil)
		if errs.Is(err, errs.Stale) {
			refused.Store(true)
		}
	})
	yes := make(map[uint16]bool, len(drives))
	for i := range drives {
		yes[drives[i].Num] = fenced[i].Load()
	}
	for p := range l.Partitions() {
		if g := l.Group(p); !fencedEnough(g, yes) {
			return refused.Load(), errs.E(op, errs.Unavailable, fmt.Sprintf("too few drives of partition %d answered to close the bucket", p))
		}
	}
	return false, nil
}

func fencedEnough(g placement.Group, yes map[uint16]bool) bool {
	n := 0
	for _, d := range g.Drives {
		if yes[d] {
			n++
		}
	}
	return n >= g.Quorum.N-g.Quorum.W+1
}

// requireEmpty reports ErrBucketNotEmpty unless the bucket has neither versions nor delete markers. fenced:
// only drives that hold the fence are heard.
func (s *Store) requireEmpty(ctx context.Context, op string, b Bucket, fenced bool) error {
	page, err := s.scan(ctx, op, &b, metadata.ScanOptions{Kind: metadata.KindObject, Limit: 1, Fenced: fenced}, true)
	if err != nil {
		return err
	}
	if len(page.Items) > 0 {
		return fail(op, &Failure{Reason: ErrBucketNotEmpty, Bucket: b.Name})
	}
	return nil
}

// BucketEpoch tells whether a bucket is there, and its epoch, for those who know it by its id.
func (s *Store) BucketEpoch(ctx context.Context, id uint64) (epoch uint64, ok bool, err error) {
	find := func() bool {
		for _, b := range s.control.Buckets() {
			if b.ID == id {
				epoch = b.Epoch
				return true
			}
		}
		return false
	}
	if find() {
		return epoch, true, nil
	}
	if err := s.control.Refresh(ctx); err != nil {
		return 0, false, errs.Wrap("object.BucketEpoch", err)
	}
	return epoch, find(), nil
}
