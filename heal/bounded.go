package heal

import (
	"context"
	"sync"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// slowest is the rate in bytes per second below which a drive counts as hung.
const slowest = 1 << 20

// bound is how long a drive may take over size bytes.
func (h *Healer) bound(size int64) time.Duration {
	return h.c.CallTimeout + time.Duration(size)*time.Second/slowest
}

// hangs is what is known of drives that did not answer in time.
type hangs struct {
	late  map[uint16]bool // in this pass
	stuck map[uint16]int  // calls left behind that have not returned yet
}

// drive returns a drive whose calls are bounded. false: it is away, or counts as that for this pass
// because it let a call run out of time. While such a call has not come back, it counts as away in later
// passes too, so that the calls that hang in a drive are never more than a pass made at once.
func (h *Healer) drive(num uint16) (node.Drive, bool) {
	h.mu.Lock()
	away := h.hangs.late[num] || h.hangs.stuck[num] > 0
	h.mu.Unlock()
	if away {
		return nil, false
	}
	d, ok := h.c.Drives.Shards(num)
	if !ok {
		return nil, false
	}
	return bounded{d, h}, true
}

// local returns the local drives that answer, bounded.
func (h *Healer) local() (out []node.Drive) {
	for _, d := range h.c.Local() {
		h.mu.Lock()
		away := h.hangs.late[d.Num()] || h.hangs.stuck[d.Num()] > 0
		h.mu.Unlock()
		if !away {
			out = append(out, bounded{d, h})
		}
	}
	return out
}

// newPass forgets which drives were late.
func (h *Healer) newPass() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.hangs.late)
}

func (h *Healer) lateDrive(num uint16) {
	h.mu.Lock()
	h.hangs.late[num] = true
	h.mu.Unlock()
	h.c.Logger.Warn("a drive does not answer in time, and counts as away", "drive", num)
}

// bounded is a drive of which no call takes longer than it should, whatever the drive does. The calls
// that are not named here are not made by this package.
type bounded struct {
	node.Drive
	h *Healer
}

// stopwatch tells how long something took without the time that it waited for its turn.
type stopwatch struct {
	mu     sync.Mutex // guards the fields below
	in     int        // waiting now
	since  time.Time  // when the first of them began to
	waited time.Duration
}

// pausing returns throttle, not counted.
func (s *stopwatch) pausing(throttle func(context.Context, int) error) func(context.Context, int) error {
	if throttle == nil {
		return nil
	}
	return func(ctx context.Context, n int) error {
		s.mu.Lock()
		if s.in++; s.in == 1 {
			s.since = time.Now()
		}
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.in--; s.in == 0 {
				s.waited += time.Since(s.since)
			}
		}()
		return throttle(ctx, n)
	}
}

// take returns how long was waited since it was last asked.
func (s *stopwatch) take() (d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, s.waited = s.waited, 0
	if s.in > 0 {
		now := time.Now()
		d, s.since = d+now.Sub(s.since), now
	}
	return d
}

// ask makes a call that is about size bytes. The call may outlast it: it is left behind then, and drop
// gets what it returns in the end.
func ask[T any](ctx context.Context, b bounded, size int64, f func(context.Context) (T, error), drop func(T)) (T, error) {
	return askTimed(ctx, b, size, new(stopwatch), f, drop)
}

// askTimed is ask for a call that waits for its turn now and then, which does not count.
func askTimed[T any](ctx context.Context, b bounded, size int64, w *stopwatch, f func(context.Context) (T, error), drop func(T)) (T, error) {
	h, num := b.h, b.Num()
	type result struct {
		v   T
		err error
	}
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan result, 1)
	h.calls.Go(func() {
		v, err := f(call)
		done <- result{v, err}
	})
	timer := time.NewTimer(h.bound(size))
	defer timer.Stop()
	var zero T
	var cause error
	for cause == nil {
		select {
		case r := <-done:
			return r.v, r.err
		case <-ctx.Done():
			cause = errs.Wrap("heal.drive", ctx.Err())
		case <-timer.C:
			if more := w.take(); more > 0 {
				timer.Reset(more)
				continue
			}
			cause = errs.E("heal.drive", errs.Timeout, "the drive does not answer in time")
			h.lateDrive(num)
		}
	}
	h.mu.Lock()
	h.hangs.stuck[num]++
	h.mu.Unlock()
	h.calls.Go(func() {
		r := <-done
		if r.err == nil && drop != nil {
			drop(r.v)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.hangs.stuck[num]--; h.hangs.stuck[num] == 0 {
			delete(h.hangs.stuck, num)
		}
	})
	return zero, cause
}

func tell(ctx context.Context, b bounded, size int64, f func(context.Context) error) error {
	_, err := ask(ctx, b, size, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) }, nil)
	return err
}

// What CreateShard and OpenShard return may keep its ctx: it is that of the caller.
func (b bounded) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	return ask(ctx, b, s.FileSize, func(context.Context) (disk.ShardWriter, error) { return b.Drive.CreateShard(ctx, s) },
		func(w disk.ShardWriter) { w.Abort() })
}

func (b bounded) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	return ask(ctx, b, 0, func(context.Context) (erasure.Source, error) { return b.Drive.OpenShard(ctx, id) },
		func(s erasure.Source) { _ = s.Close() }) // it was only to be read
}

func (b bounded) InlineShard(ctx context.Context, id erasure.DataID) ([]byte, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([]byte, error) { return b.Drive.InlineShard(ctx, id) }, nil)
}

func (b bounded) SealShard(ctx context.Context, addr metadata.Address, s *metadata.Seal) error {
	return tell(ctx, b, min(s.Data.Size, erasure.ChunkSize), func(ctx context.Context) error { return b.Drive.SealShard(ctx, addr, s) })
}

func (b bounded) SealChunk(ctx context.Context, id erasure.DataID, chunk uint32) error {
	return tell(ctx, b, erasure.ChunkSize, func(ctx context.Context) error { return b.Drive.SealChunk(ctx, id, chunk) })
}

func (b bounded) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	w := new(stopwatch)
	_, err := askTimed(ctx, b, erasure.ShardFileSize(c.Profile, c.Size), w, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, b.Drive.VerifyShard(ctx, c, index, w.pausing(throttle))
	}, nil)
	return err
}

func (b bounded) DeleteShard(ctx context.Context, addr metadata.Address, id erasure.DataID, chunk uint32, guard metadata.Ballot) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.DeleteShard(ctx, addr, id, chunk, guard) })
}

func (b bounded) ShardRows(ctx context.Context, after erasure.DataID, chunk uint32, limit int) ([]disk.ShardRow, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([]disk.ShardRow, error) { return b.Drive.ShardRows(ctx, after, chunk, limit) }, nil)
}

func (b bounded) Versions(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return ask(ctx, b, 0, func(ctx context.Context) (*metadata.VersionsReply, error) { return b.Drive.Versions(ctx, m) }, nil)
}

func (b bounded) Repairs(ctx context.Context, after *metadata.Address, limit int) ([]metadata.RepairRow, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([]metadata.RepairRow, error) { return b.Drive.Repairs(ctx, after, limit) }, nil)
}

func (b bounded) AddRepair(ctx context.Context, r metadata.RepairRow) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.AddRepair(ctx, r) })
}

func (b bounded) ClearRepair(ctx context.Context, r metadata.RepairRow) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.ClearRepair(ctx, r) })
}

func (b bounded) Unsettled(ctx context.Context, after *metadata.Address, limit int) ([]metadata.UnsettledRow, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([]metadata.UnsettledRow, error) {
		return b.Drive.Unsettled(ctx, after, limit)
	}, nil)
}

func (b bounded) ClearUnsettled(ctx context.Context, u metadata.UnsettledRow) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.ClearUnsettled(ctx, u) })
}

func (b bounded) Garbage(ctx context.Context, before time.Time, limit int) ([]metadata.GarbageRow, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([]metadata.GarbageRow, error) { return b.Drive.Garbage(ctx, before, limit) }, nil)
}

func (b bounded) ClearGarbage(ctx context.Context, rows []metadata.GarbageRow) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.ClearGarbage(ctx, rows) })
}

func (b bounded) Names(ctx context.Context, addr metadata.Address, id erasure.DataID) (bool, error) {
	return ask(ctx, b, 0, func(ctx context.Context) (bool, error) { return b.Drive.Names(ctx, addr, id) }, nil)
}

func (b bounded) StatShard(ctx context.Context, id erasure.ShardID) (disk.ShardStat, error) {
	return ask(ctx, b, 0, func(ctx context.Context) (disk.ShardStat, error) { return b.Drive.StatShard(ctx, id) }, nil)
}

func (b bounded) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	return ask(ctx, b, 0, func(ctx context.Context) (*metadata.ReadReply, error) { return b.Drive.Read(ctx, m) }, nil)
}

func (b bounded) Install(ctx context.Context, m *metadata.InstallRequest) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.Install(ctx, m) })
}

func (b bounded) InlineShards(ctx context.Context, ids []erasure.DataID) ([][]byte, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([][]byte, error) { return b.Drive.InlineShards(ctx, ids) }, nil)
}

func (b bounded) SealInline(ctx context.Context, list []disk.InlineSeal) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.SealInline(ctx, list) })
}

func (b bounded) Job(ctx context.Context, name string) ([]byte, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([]byte, error) { return b.Drive.Job(ctx, name) }, nil)
}

func (b bounded) SetJob(ctx context.Context, name string, value []byte) error {
	return tell(ctx, b, 0, func(ctx context.Context) error { return b.Drive.SetJob(ctx, name, value) })
}

func (b bounded) Scrub(ctx context.Context, after erasure.ShardID, limit int, throttle func(context.Context, int) error) (disk.ScrubReport, error) {
	w := new(stopwatch)
	return askTimed(ctx, b, scrubBytes, w, func(ctx context.Context) (disk.ScrubReport, error) {
		return b.Drive.Scrub(ctx, after, limit, w.pausing(throttle))
	}, nil)
}

func (b bounded) ShardUsage(ctx context.Context) (shards, bytes int64, err error) {
	type usage struct{ shards, bytes int64 }
	u, err := ask(ctx, b, 0, func(ctx context.Context) (u usage, err error) {
		u.shards, u.bytes, err = b.Drive.ShardUsage(ctx)
		return u, err
	}, nil)
	return u.shards, u.bytes, err
}

func (b bounded) Rows(ctx context.Context, m *metadata.RowsRequest) (*metadata.RowsReply, error) {
	return ask(ctx, b, rowsBytes, func(ctx context.Context) (*metadata.RowsReply, error) { return b.Drive.Rows(ctx, m) }, nil)
}

func (b bounded) Digests(ctx context.Context) ([]metadata.Digest, error) {
	return ask(ctx, b, digestBytes, func(ctx context.Context) ([]metadata.Digest, error) { return b.Drive.Digests(ctx) }, nil)
}

func (b bounded) Installed(ctx context.Context, partitions []uint32) ([]uint64, error) {
	return ask(ctx, b, 0, func(ctx context.Context) ([]uint64, error) { return b.Drive.Installed(ctx, partitions) }, nil)
}

const (
	rowsBytes   = 64 << 20 // what a page of rows may have to pass over
	digestBytes = 1 << 30  // a drive of an earlier build scans its records first
)

// rebuild is erasure.Rebuild, bounded, at the pace of background work. A sink that makes no headway says
// so itself; a source that hangs is passed over by the reader, which asks others, and what remains is
// bounded as a whole. damaged, if not nil, is told of each source that is missing or corrupt; from any
// goroutine.
func (h *Healer) rebuild(ctx context.Context, c erasure.Chunk, shards []shardState, sinks map[int]erasure.Sink, damaged func(j int, err error)) error {
	size := erasure.ShardFileSize(c.Profile, c.Size)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := new(stopwatch)
	var mu sync.Mutex // guards timer, which its function resets
	mu.Lock()
	var timer *time.Timer
	timer = time.AfterFunc(h.bound(size*int64(int(c.Profile.Data)+len(sinks))), func() {
		mu.Lock()
		defer mu.Unlock()
		if more := w.take(); more > 0 {
			timer.Reset(more)
			return
		}
		cancel(context.DeadlineExceeded)
	})
	mu.Unlock()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		timer.Stop()
	}()
	timed := make(map[int]erasure.Sink, len(sinks))
	for j, s := range sinks {
		// What is read is charged with what is written of it.
		timed[j] = timedSink{s, h, shards[j].num, w.pausing(h.pace.take), 1 + int(c.Profile.Data)/len(sinks)}
	}
	return erasure.Rebuild(ctx, c, sources(c, shards), timed, erasure.ReadOptions{Coders: h.c.Coders, OnDamage: damaged})
}

// timedSink tells of a write that takes too long. It cannot leave it: the memory is the caller's.
type timedSink struct {
	erasure.Sink
	h      *Healer
	num    uint16
	pace   func(context.Context, int) error
	factor int // bytes of work for each one written
}

func (s timedSink) Write(ctx context.Context, p []byte) error {
	if err := s.pace(ctx, len(p)*s.factor); err != nil {
		return err
	}
	timer := time.AfterFunc(s.h.bound(int64(len(p))), func() { s.h.lateDrive(s.num) })
	defer timer.Stop()
	return s.Sink.Write(ctx, p)
}
