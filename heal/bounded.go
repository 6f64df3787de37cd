package heal

import (
	"context"
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

// ask makes a call that is about size bytes. The call may outlast it: it is left behind then, and drop
// gets what it returns in the end.
func ask[T any](ctx context.Context, b bounded, size int64, f func(context.Context) (T, error), drop func(T)) (T, error) {
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
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		cause = errs.Wrap("heal.drive", ctx.Err())
	case <-timer.C:
		cause = errs.E("heal.drive", errs.Timeout, "the drive does not answer in time")
		h.lateDrive(num)
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
	return tell(ctx, b, erasure.ShardFileSize(c.Profile, c.Size), func(ctx context.Context) error {
		return b.Drive.VerifyShard(ctx, c, index, throttle)
	})
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

// rebuild is erasure.Rebuild, bounded. A sink that makes no headway says so itself; a source that hangs is
// passed over by the reader, which asks others, and what remains is bounded as a whole.
func (h *Healer) rebuild(ctx context.Context, c erasure.Chunk, shards []shardState, sinks map[int]erasure.Sink) error {
	size := erasure.ShardFileSize(c.Profile, c.Size)
	ctx, cancel := context.WithTimeout(ctx, h.bound(size*int64(int(c.Profile.Data)+len(sinks))))
	defer cancel()
	timed := make(map[int]erasure.Sink, len(sinks))
	for j, s := range sinks {
		timed[j] = timedSink{s, h, shards[j].num}
	}
	return erasure.Rebuild(ctx, c, sources(c, shards), timed, erasure.ReadOptions{Coders: h.c.Coders})
}

// timedSink tells of a write that takes too long. It cannot leave it: the memory is the caller's.
type timedSink struct {
	erasure.Sink
	h   *Healer
	num uint16
}

func (s timedSink) Write(ctx context.Context, p []byte) error {
	timer := time.AfterFunc(s.h.bound(int64(len(p))), func() { s.h.lateDrive(s.num) })
	defer timer.Stop()
	return s.Sink.Write(ctx, p)
}
