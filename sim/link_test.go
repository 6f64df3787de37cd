package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// links are the ways from the gateway to its drives: they take virtual time, and hang.
//
// A hang is injected here and not in the file system: a drive holds locks during its I/O, and a
// goroutine that waits for a lock keeps the virtual clock from advancing.
type links struct {
	// mu guards the fields below.
	mu    sync.Mutex
	rng   *rand.Rand
	slow  time.Duration            // longest delay of a call
	until map[uint16]time.Time     // hangs, by drive; virtual time
	extra map[uint16]time.Duration // longest delay of a slow drive
	twice bool                     // some calls arrive twice
}

// pass waits as long as the call takes on its way. A call that the caller gave up meanwhile may
// still take effect: late tells so.
func (l *links) pass(ctx context.Context, num uint16) (late bool, err error) {
	l.mu.Lock()
	d := time.Duration(0)
	if most := max(l.slow, l.extra[num]); most > 0 && l.rng.IntN(4) > 0 {
		d = time.Duration(l.rng.Int64N(int64(most)))
	}
	if t, ok := l.until[num]; ok {
		if left := time.Until(t); left > 0 {
			d += left
		} else {
			delete(l.until, num)
		}
	}
	happens := l.rng.IntN(2) == 0
	l.mu.Unlock()
	if d == 0 {
		return false, ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return happens, ctx.Err()
	}
}

// atLeast makes calls take some time from now on, so that things can happen meanwhile.
func (l *links) atLeast(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow = max(l.slow, d)
}

func (l *links) hang(num uint16, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until[num] = time.Now().Add(d)
}

func (l *links) slowDown(num uint16, most time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.extra[num] = most
}

// again reports whether a call arrives twice.
func (l *links) again() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.twice && l.rng.IntN(8) == 0
}

func (l *links) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.until)
	clear(l.extra)
}

// gateway is the drives as a gateway sees them: behind links, every message encoded and decoded.
type gateway struct {
	l   *links
	set *node.Set
}

// Shards implements object.Drives and heal.Drives.
func (g gateway) Shards(num uint16) (node.Drive, bool) {
	d, ok := g.set.Shards(num)
	if !ok {
		return nil, false
	}
	return linked{node.Codec(d), g.l}, true
}

// Replica implements metadata.Replicas.
func (g gateway) Replica(num uint16) (metadata.Replica, bool) { return g.Shards(num) }

// linked is a drive behind its link. What is not named here takes no time.
type linked struct {
	node.Drive
	l *links
}

// through runs f at the end of the link. When the caller gives up on the way, f may happen all the same.
func through[T any](ctx context.Context, d linked, f func(context.Context) (T, error)) (T, error) {
	late, err := d.l.pass(ctx, d.Num())
	if err == nil {
		if d.l.again() {
			_, _ = f(ctx) // the second answer counts
		}
		return f(ctx)
	}
	var zero T
	if late {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_, _ = f(ctx) // nobody hears how it went
	}
	return zero, errs.Wrap("link", err)
}

func (d linked) Prepare(ctx context.Context, m *metadata.PrepareRequest) (*metadata.PrepareReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.PrepareReply, error) { return d.Drive.Prepare(ctx, m) })
}

func (d linked) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.AcceptReply, error) { return d.Drive.Accept(ctx, m) })
}

func (d linked) Decide(ctx context.Context, m []metadata.Decision) error {
	_, err := through(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, d.Drive.Decide(ctx, m) })
	return err
}

func (d linked) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.ReadReply, error) { return d.Drive.Read(ctx, m) })
}

func (d linked) Scan(ctx context.Context, m *metadata.ScanRequest) (*metadata.ScanReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.ScanReply, error) { return d.Drive.Scan(ctx, m) })
}

func (d linked) Pin(ctx context.Context, m *metadata.PinRequest) (*metadata.PinReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.PinReply, error) { return d.Drive.Pin(ctx, m) })
}

func (d linked) Install(ctx context.Context, m *metadata.InstallRequest) error {
	_, err := through(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, d.Drive.Install(ctx, m) })
	return err
}

func (d linked) Fence(ctx context.Context, m *metadata.FenceRequest) error {
	_, err := through(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, d.Drive.Fence(ctx, m) })
	return err
}

func (d linked) Digests(ctx context.Context) ([]metadata.Digest, error) {
	return through(ctx, d, d.Drive.Digests)
}

func (d linked) Rows(ctx context.Context, m *metadata.RowsRequest) (*metadata.RowsReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.RowsReply, error) { return d.Drive.Rows(ctx, m) })
}

func (d linked) Lookup(ctx context.Context, m *metadata.LookupRequest) (*metadata.RowsReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.RowsReply, error) { return d.Drive.Lookup(ctx, m) })
}

func (d linked) Copy(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.VersionsReply, error) { return d.Drive.Copy(ctx, m) })
}

func (d linked) Wedge(ctx context.Context, m *metadata.WedgeRequest) (*metadata.WedgeReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.WedgeReply, error) { return d.Drive.Wedge(ctx, m) })
}

func (d linked) Transfer(ctx context.Context, m *metadata.TransferRequest) (*metadata.TransferReply, error) {
	return through(ctx, d, func(ctx context.Context) (*metadata.TransferReply, error) { return d.Drive.Transfer(ctx, m) })
}

func (d linked) InstallEpoch(ctx context.Context, m *metadata.InstallEpochRequest) error {
	_, err := through(ctx, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, d.Drive.InstallEpoch(ctx, m) })
	return err
}

func (d linked) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	if _, err := d.l.pass(ctx, d.Num()); err != nil {
		return nil, errs.Wrap("link", err)
	}
	return d.Drive.CreateShard(ctx, s)
}

func (d linked) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	if _, err := d.l.pass(ctx, d.Num()); err != nil {
		return nil, errs.Wrap("link", err)
	}
	src, err := d.Drive.OpenShard(ctx, id)
	if err != nil {
		return nil, err
	}
	return linkedSource{src, d}, nil
}

func (d linked) DeleteShard(ctx context.Context, a metadata.Address, id erasure.DataID, chunk uint32, guard metadata.Ballot) error {
	_, err := through(ctx, d, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, d.Drive.DeleteShard(ctx, a, id, chunk, guard)
	})
	return err
}

func (d linked) SealShard(ctx context.Context, a metadata.Address, s *metadata.Seal) error {
	if _, err := d.l.pass(ctx, d.Num()); err != nil {
		return errs.Wrap("link", err)
	}
	return d.Drive.SealShard(ctx, a, s)
}

// linkedSource is an open shard behind the link.
type linkedSource struct {
	erasure.Source
	d linked
}

func (s linkedSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if _, err := s.d.l.pass(ctx, s.d.Num()); err != nil {
		return 0, errs.Wrap("link", err)
	}
	return s.Source.ReadAt(ctx, p, off)
}
