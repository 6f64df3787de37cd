package object

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// Control is what Store needs of the control plane. Reads answer from this process's copy; changes
// return once they are applied here. Errors are of the kinds of package errs: NotFound for a bucket
// that is not there, Exists for one that is, Unavailable without a leader.
type Control interface {
	Layout() *placement.Layout // the current one; nil before the first
	Bucket(name string) (Bucket, bool)
	Buckets() []Bucket // ascending by name
	// Refresh makes the copy at least as new as the leader's was when it was called.
	Refresh(ctx context.Context) error
	CreateBucket(ctx context.Context, b Bucket) (Bucket, error)
	BeginDeleteBucket(ctx context.Context, id uint64) (epoch uint64, err error)
	FinishDeleteBucket(ctx context.Context, id, epoch uint64) error
	ReopenBucket(ctx context.Context, id, epoch uint64) error
	SetVersioning(ctx context.Context, id uint64, v Versioning) error
	SetBucketConfig(ctx context.Context, id uint64, document string, value []byte) error
}

// Drives finds drives by number, local or remote. false: the drive is known to be gone.
type Drives interface {
	Shards(num uint16) (node.Drive, bool)
}

// Config is what a Store is made of. Control, Drives and Meta are required.
type Config struct {
	Control Control
	Drives  Drives
	Meta    *metadata.Client
	Coders  *erasure.Coders // shared codecs and buffers; nil makes its own
	Encoder *erasure.Encoder
	Buffers *bufpool.Pool
	Logger  *slog.Logger
	Now     func() time.Time
	// InlineLimit is the largest body that is kept in the record store; 0 means 64 KiB, negative none.
	InlineLimit int
	// ChunkSize of larger bodies; 0 means 64 MiB.
	ChunkSize int64
	// MinPartSize of every part but the last; 0 means 5 MiB. Smaller values are for tests.
	MinPartSize int64
	// CacheBytes bounds the cache of decoded blocks; 0 means 64 MiB, negative none.
	CacheBytes int64
	// CallTimeout bounds one call to one drive outside of streams; 0 means 10 s.
	CallTimeout time.Duration
	// RecodeAfter is how old a multipart object has to be to be re-coded: until then a repeated completion, which asks its
	// upload, should find it; 0 means an hour.
	RecodeAfter time.Duration
	// OnRepair is told that a read left a repair row, once a drive has it. It must not block; nil: nobody is.
	OnRepair func()
}

// Store is the object plane of one process. Its methods may be called concurrently.
type Store struct {
	c        Config
	meta     *metadata.Client
	control  Control
	drives   Drives
	coders   *erasure.Coders
	encoder  *erasure.Encoder
	pool     *bufpool.Pool
	log      *slog.Logger
	now      func() time.Time
	cache    *blockCache
	manifs   manifestCache
	covers   covers
	asked    recently
	releases releases
	stats    counters
	usage    usageCache

	// background counts goroutines that outlive their request: cleaning up after failures.
	background sync.WaitGroup
	ending     chan struct{} // closed when Close begins: nothing is put off any more
	end        sync.Once
	closing    context.Context
	stop       context.CancelFunc
	cleanSlots chan struct{} // bounds cleanups in flight
	deletions  deletions
}

const (
	defaultInline  = 64 << 10
	defaultTimeout = 10 * time.Second
	maxCleanups    = 64 // cleanups of failed writes at a time; what does not fit is left to the drives
	attempts       = 8  // rounds of one request: rows asked for, vanished shards
	drivesAtOnce   = 64 // calls to drives in flight of one request, outside of streams
)

// New makes a Store.
func New(c Config) *Store {
	if c.Buffers == nil {
		c.Buffers = bufpool.New(bufpool.Options{})
	}
	if c.Coders == nil {
		c.Coders = erasure.NewCoders(c.Buffers)
	}
	if c.Encoder == nil {
		c.Encoder = erasure.NewEncoder(erasure.Options{Coders: c.Coders})
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.InlineLimit == 0 {
		c.InlineLimit = defaultInline
	}
	if c.ChunkSize == 0 {
		c.ChunkSize = erasure.ChunkSize
	}
	if c.MinPartSize == 0 {
		c.MinPartSize = MinPartSize
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 64 << 20
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = defaultTimeout
	}
	if c.RecodeAfter == 0 {
		c.RecodeAfter = time.Hour
	}
	s := &Store{c: c, meta: c.Meta, control: c.Control, drives: c.Drives, coders: c.Coders, encoder: c.Encoder,
		pool: c.Buffers, log: c.Logger, now: c.Now, cache: newBlockCache(c.CacheBytes),
		cleanSlots: make(chan struct{}, maxCleanups), usage: usageCache{turn: make(chan struct{}, 1), page: usagePage}}
	s.deletions.init()
	s.ending = make(chan struct{})
	s.closing, s.stop = context.WithCancel(context.Background())
	return s
}

// Close waits for what requests left running, until ctx ends, and frees the cache. No method may be
// running.
func (s *Store) Close(ctx context.Context) error {
	s.end.Do(func() { close(s.ending) })
	done := make(chan struct{})
	go func() { // ends with the cleanups, which ctx below cuts short
		s.background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.stop()
		<-done
	}
	s.stop()
	s.releaseAll()
	s.cache.close()
	return errs.Wrap("object.Close", s.coders.Wait(ctx))
}

// cleanup runs f beside the request, within the bound; beyond it f does not run, which costs only
// that drives find the garbage by themselves later.
func (s *Store) cleanup(f func(ctx context.Context)) {
	select {
	case s.cleanSlots <- struct{}{}:
	default:
		return
	}
	s.background.Go(func() {
		defer func() { <-s.cleanSlots }()
		ctx, cancel := context.WithTimeout(s.closing, s.c.CallTimeout)
		defer cancel()
		f(ctx)
	})
}

// place is where the registers of one key are, as this request knows it.
type place struct {
	bucket Bucket
	layout *placement.Layout
	group  placement.Group
	key    []byte

	patience *sharedPatience // of the request, if it is about many keys; else nil
}

func (p *place) object() metadata.Address {
	return metadata.Address{Kind: metadata.KindObject, Bucket: p.bucket.ID, Key: p.key}
}

func (p *place) upload(id metadata.UploadID) metadata.Address {
	return metadata.Address{Kind: metadata.KindUpload, Bucket: p.bucket.ID, Key: p.key, Upload: id}
}

func (p *place) part(id metadata.UploadID, n int) metadata.Address {
	return metadata.Address{Kind: metadata.KindPart, Bucket: p.bucket.ID, Key: p.key, Upload: id, Part: uint32(n)}
}

// bucket finds a bucket; one that is unknown here is asked for at the leader before it is said to be
// missing. With write, a bucket that is being deleted is refused as busy: its deletion ends soon,
// one way or the other.
func (s *Store) bucket(ctx context.Context, op, name string, write bool) (Bucket, error) {
	b, ok := s.control.Bucket(name)
	if !ok || write && b.Deleting {
		if !ok && !ValidBucketName(name) {
			return Bucket{}, fail(op, &Failure{Reason: ErrNoSuchBucket, Bucket: name})
		}
		if err := s.control.Refresh(ctx); err != nil {
			return Bucket{}, errs.Wrap("object."+op, err)
		}
		b, ok = s.control.Bucket(name)
	}
	switch {
	case !ok:
		return Bucket{}, fail(op, &Failure{Reason: ErrNoSuchBucket, Bucket: name})
	case write && b.Deleting:
		return Bucket{}, errs.E("object."+op, errs.Busy, "the bucket is being deleted")
	}
	return b, nil
}

// locate finds the registers of key, which may not be one that S3 refuses.
func (s *Store) locate(ctx context.Context, op, bucket, key string, write bool) (*place, error) {
	if r := checkKey(key); r != nil {
		return nil, fail(op, &Failure{Reason: r, Bucket: bucket, Key: key})
	}
	// The layout comes first: whoever uses one that was published after the fence of a bucket's deletion
	// then knows of the deletion, so the members that joined since need no fence.
	l, err := s.layout(op)
	if err != nil {
		return nil, err
	}
	b, err := s.bucket(ctx, op, bucket, write)
	if err != nil {
		return nil, err
	}
	return placeIn(l, b, []byte(key)), nil
}

func (s *Store) layout(op string) (*placement.Layout, error) {
	l := s.control.Layout()
	if l == nil {
		return nil, errs.E("object."+op, errs.Unavailable, "the cluster has no layout yet")
	}
	return l, nil
}

func placeIn(l *placement.Layout, b Bucket, key []byte) *place {
	return &place{bucket: b, layout: l, key: key, group: l.Group(l.PartitionOf(b.ID, key))}
}

// placeOf finds the registers of a key in a bucket that the caller knows.
func (s *Store) placeOf(op string, b Bucket, key []byte) (*place, error) {
	l, err := s.layout(op)
	if err != nil {
		return nil, err
	}
	return placeIn(l, b, key), nil
}

// read reads a register of p by quorum.
func (s *Store) read(ctx context.Context, op string, p *place, a metadata.Address, o metadata.ReadOptions) (*metadata.View, error) {
	w := patience{shared: p.patience}
	for {
		o.BucketEpoch = p.bucket.Epoch
		v, err := s.meta.Read(ctx, p.group, a, o)
		if err == nil || !s.outdated(p, err) {
			return v, errs.Wrap("object."+op, err)
		}
		if err := s.follow(ctx, op, p, false, &w, err); err != nil {
			return nil, err
		}
	}
}

// decide is the pure decision of an update.
type decide func(base *metadata.State, r rows, rm *removal) (*metadata.Change, error)

// update runs one operation on a register of p until it is decided. It serves the wishes that a
// decision may return: rows, completed uploads. nothing counts as success.
func (s *Store) update(ctx context.Context, op string, p *place, a metadata.Address, o metadata.Operation, d decide) (outcome, error) {
	return s.updateBody(ctx, op, p, a, o, d, nil)
}

// outcome is how an update ended.
type outcome struct {
	view *metadata.View // nil where there was nothing to do
	// change is the one that was chosen, which need not be the last that was decided: see proposals. Where
	// somebody else decided, under the same operation id, it is the last one of this process, or nil.
	change *metadata.Change
}

// proposals are the changes that the rounds of one update sent out, by ballot. A round may be preempted
// behind its first Accept, and the next decide anew, on another base; then a third finds that the change of
// the first was chosen after all, in the round of another writer. The ring of the state says which.
type proposals struct {
	last *metadata.Change
	sent []proposal
}

type proposal struct {
	ballot metadata.Ballot
	change *metadata.Change
}

// chosen returns the change that st says was chosen for an operation.
func (m *proposals) chosen(st *metadata.State, id metadata.OpID) *metadata.Change {
	for i := range st.Ring {
		if st.Ring[i].Op != id {
			continue
		}
		for _, p := range m.sent {
			if p.ballot == st.Ring[i].Ballot {
				return p.change
			}
		}
	}
	return m.last
}

// updateBody is update for an operation that names a body, or nil. A partition that changes its members
// meanwhile is followed into its next epoch under the same operation id, without another upload.
func (s *Store) updateBody(ctx context.Context, op string, p *place, a metadata.Address, o metadata.Operation, d decide, body *written) (outcome, error) {
	rm := new(removal)
	wait := patience{shared: p.patience}
	var made proposals
	if o.ID == 0 {
		o.ID = newOpID()
	}
	o.Apply = func(base *metadata.State, named []metadata.Version) (c *metadata.Change, err error) {
		c, err = d(base, rows(named), rm)
		made.last = c
		return c, err
	}
	pin := o.Pin
	o.Pin = func(ctx context.Context, b metadata.Ballot) error {
		made.sent = append(made.sent, proposal{b, made.last})
		if pin == nil {
			return nil
		}
		return pin(ctx, b)
	}
	for i := 0; ; {
		if body != nil {
			if err := body.follow(p.layout); err != nil {
				return outcome{}, sentIsUnknown(op, &o, err)
			}
			o.Seals = body.seals
		}
		o.BucketEpoch = p.bucket.Epoch
		v, err := s.meta.Update(ctx, p.group, a, o)
		if err == nil {
			return outcome{v, made.chosen(v.State, o.ID)}, nil
		}
		var row *needRow
		var up *needCompleted
		switch {
		case errors.As(err, &nothing{}):
			return outcome{}, nil
		case s.outdated(p, err):
			if o.Sent.IsZero() {
				o.Sent = metadata.SentBallot(err)
			}
			if err := s.follow(ctx, op, p, true, &wait, err); err != nil {
				return outcome{}, sentIsUnknown(op, &o, err)
			}
		case i == attempts:
			return outcome{}, errs.As("object."+op, errs.Busy, err)
		case errors.As(err, &row):
			i++
			o.Query.Seqs = []uint64{row.seq}
		case errors.As(err, &up):
			i++
			if err := s.ensureCompleted(ctx, op, p, up.upload); err != nil {
				return outcome{}, err
			}
			rm.add(up.upload)
		default:
			return outcome{}, errs.Wrap("object."+op, err)
		}
	}
}

func newOpID() metadata.OpID {
	var b [8]byte
	for {
		rand.Read(b[:])
		if id := binary.BigEndian.Uint64(b[:]); id != 0 {
			return metadata.OpID(id)
		}
	}
}

func newSalt() (b [8]byte) {
	rand.Read(b[:])
	return b
}

// each runs f for i in [0, n), at most limit at a time, and waits for all.
func each(n, limit int, f func(i int)) {
	if n == 1 {
		f(0)
		return
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, limit)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// Flush waits for what requests that have ended left running beside.
func (s *Store) Flush(ctx context.Context) error {
	for range maxCleanups { // whoever holds every slot is alone
		select {
		case s.cleanSlots <- struct{}{}:
			defer func() { <-s.cleanSlots }()
		case <-ctx.Done():
			return errs.Wrap("object.Flush", ctx.Err())
		}
	}
	return nil
}
