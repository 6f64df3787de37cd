package node

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
)

// Drive is one drive, local or remote, as gateways and repair see it. The methods are those of
// disk.Drive, which says what each promises; errors are of the kinds of package errs. All may be
// called concurrently, and none outlasts its ctx but for Write and ReadAt of an open shard, whose
// memory belongs to the caller.
type Drive interface {
	metadata.Replica
	metadata.Dropper
	metadata.Membership
	Shards
	Batches
	Maintenance
	Scrubber
	Jobs
	Num() uint16
}

// Shards is the shard store of a drive.
type Shards interface {
	CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error)
	OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error)
	InlineShard(ctx context.Context, id erasure.DataID) ([]byte, error)
	SealShard(ctx context.Context, addr metadata.Address, s *metadata.Seal) error
	SealChunk(ctx context.Context, id erasure.DataID, chunk uint32) error
	StatShard(ctx context.Context, id erasure.ShardID) (disk.ShardStat, error)
	VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error
	DeleteShard(ctx context.Context, addr metadata.Address, id erasure.DataID, chunk uint32, guard metadata.Ballot) error
	ShardRows(ctx context.Context, after erasure.DataID, chunk uint32, limit int) ([]disk.ShardRow, error)
}

// Batches is the shard store for many small bodies at once; see disk.MaxBatch.
type Batches interface {
	InlineShards(ctx context.Context, ids []erasure.DataID) ([][]byte, error)
	SealInline(ctx context.Context, list []disk.InlineSeal) error
}

// Scrubber verifies what a drive holds, shard by shard, and tells how much that is.
type Scrubber interface {
	Scrub(ctx context.Context, after erasure.ShardID, limit int, throttle func(context.Context, int) error) (disk.ScrubReport, error)
	ShardUsage(ctx context.Context) (shards, bytes int64, err error)
}

// Jobs keeps small values of background jobs durably on a drive.
type Jobs interface {
	Job(ctx context.Context, name string) ([]byte, error)
	SetJob(ctx context.Context, name string, value []byte) error
}

// Maintenance is the work lists of a drive.
type Maintenance interface {
	Repairs(ctx context.Context, after *metadata.Address, limit int) ([]metadata.RepairRow, error)
	AddRepair(ctx context.Context, r metadata.RepairRow) error
	ClearRepair(ctx context.Context, r metadata.RepairRow) error
	Unsettled(ctx context.Context, after *metadata.Address, limit int) ([]metadata.UnsettledRow, error)
	ClearUnsettled(ctx context.Context, u metadata.UnsettledRow) error
	Garbage(ctx context.Context, before time.Time, limit int) ([]metadata.GarbageRow, error)
	ClearGarbage(ctx context.Context, rows []metadata.GarbageRow) error
	Names(ctx context.Context, addr metadata.Address, id erasure.DataID) (bool, error)
}

var _ Drive = (*disk.Drive)(nil)
