package node

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
)

// The methods of the node protocol. Numbers are never used again.
const (
	mPrepare      rpc.Method = 1
	mAccept       rpc.Method = 2
	mDecide       rpc.Method = 3
	mRead         rpc.Method = 4
	mVersions     rpc.Method = 5
	mInstall      rpc.Method = 6
	mPin          rpc.Method = 7
	mScan         rpc.Method = 8
	mFence        rpc.Method = 9
	mDrop         rpc.Method = 10
	mDigests      rpc.Method = 11
	mRows         rpc.Method = 12
	mLookup       rpc.Method = 13
	mCopy         rpc.Method = 14
	mWedge        rpc.Method = 15
	mTransfer     rpc.Method = 16
	mInstallEpoch rpc.Method = 17
	mInstalled    rpc.Method = 18

	mCreateShard  rpc.Method = 30 // stream
	mAbortShard   rpc.Method = 31
	mOpenShard    rpc.Method = 32 // stream
	mReadShard    rpc.Method = 33
	mInlineShard  rpc.Method = 34
	mSealShard    rpc.Method = 35
	mSealChunk    rpc.Method = 36
	mStatShard    rpc.Method = 37
	mVerifyShard  rpc.Method = 38 // stream
	mDeleteShard  rpc.Method = 39
	mShardRows    rpc.Method = 40
	mInlineShards rpc.Method = 41
	mSealInline   rpc.Method = 42
	mScrub        rpc.Method = 43 // stream
	mShardUsage   rpc.Method = 44

	mJob            rpc.Method = 60
	mSetJob         rpc.Method = 61
	mRepairs        rpc.Method = 62
	mAddRepair      rpc.Method = 63
	mClearRepair    rpc.Method = 64
	mUnsettled      rpc.Method = 65
	mClearUnsettled rpc.Method = 66
	mGarbage        rpc.Method = 67
	mClearGarbage   rpc.Method = 68
	mNames          rpc.Method = 69
)

// bulk are the calls whose answers, or requests, may be large, or that take long: they do not share a connection
// with the small ones.
var bulk = map[rpc.Method]bool{
	mVersions: true, mScan: true, mDigests: true, mRows: true, mLookup: true, mCopy: true, mWedge: true, mTransfer: true,
	mInstallEpoch: true, mInstalled: true, mShardRows: true, mInlineShards: true, mSealInline: true, mShardUsage: true,
	mRepairs: true, mUnsettled: true, mGarbage: true, mClearGarbage: true,
}

// execute is a method at its server: it decodes the request, calls the drive, and encodes the answer.
type execute func(ctx context.Context, d Drive, request []byte) ([]byte, error)

// ask makes the server's end of a method that has an answer.
func ask[Q, R any, PQ wire[Q], PR wire[R]](f func(ctx context.Context, d Drive, m *Q) (*R, error)) execute {
	return func(ctx context.Context, d Drive, b []byte) ([]byte, error) {
		m := new(Q)
		if err := PQ(m).Unmarshal(b); err != nil {
			return nil, parsed(err)
		}
		r, err := f(ctx, d, m)
		if err != nil {
			return nil, err
		}
		return PR(r).AppendTo(make([]byte, 0, 256)), nil
	}
}

// tell makes the server's end of a method that has none.
func tell[Q any, PQ wire[Q]](f func(ctx context.Context, d Drive, m *Q) error) execute {
	return ask[Q, empty, PQ](func(ctx context.Context, d Drive, m *Q) (*empty, error) {
		return new(empty), f(ctx, d, m)
	})
}

// of is a method of Drive that has an answer, for ask.
func of[Q, R any](f func(Drive, context.Context, *Q) (*R, error)) func(context.Context, Drive, *Q) (*R, error) {
	return func(ctx context.Context, d Drive, m *Q) (*R, error) { return f(d, ctx, m) }
}

// by is a method of Drive that has none, for tell.
func by[Q any](f func(Drive, context.Context, *Q) error) func(context.Context, Drive, *Q) error {
	return func(ctx context.Context, d Drive, m *Q) error { return f(d, ctx, m) }
}

// executes are all methods that are calls to a drive.
var executes = map[rpc.Method]execute{
	mPrepare:      ask(of(Drive.Prepare)),
	mAccept:       ask(of(Drive.Accept)),
	mDecide:       tell(func(ctx context.Context, d Drive, m *metadata.Decisions) error { return d.Decide(ctx, *m) }),
	mRead:         ask(of(Drive.Read)),
	mVersions:     ask(of(Drive.Versions)),
	mInstall:      tell(by(Drive.Install)),
	mPin:          ask(of(Drive.Pin)),
	mScan:         ask(of(Drive.Scan)),
	mFence:        tell(by(Drive.Fence)),
	mDrop:         tell(by(Drive.Drop)),
	mRows:         ask(of(Drive.Rows)),
	mLookup:       ask(of(Drive.Lookup)),
	mCopy:         ask(of(Drive.Copy)),
	mWedge:        ask(of(Drive.Wedge)),
	mTransfer:     ask(of(Drive.Transfer)),
	mInstallEpoch: tell(by(Drive.InstallEpoch)),
	mDigests: ask(func(ctx context.Context, d Drive, _ *empty) (*digests, error) {
		list, err := d.Digests(ctx)
		return (*digests)(&list), err
	}),
	mInstalled: ask(func(ctx context.Context, d Drive, m *numbers) (*numbers, error) {
		partitions := make([]uint32, len(*m))
		for i, p := range *m {
			partitions[i] = uint32(p)
		}
		list, err := d.Installed(ctx, partitions)
		return (*numbers)(&list), err
	}),

	mInlineShard: ask(func(ctx context.Context, d Drive, m *shardID) (*inlineShard, error) {
		b, err := d.InlineShard(ctx, m.Data)
		return (*inlineShard)(&b), err
	}),
	mSealShard: tell(func(ctx context.Context, d Drive, m *sealRequest) error { return d.SealShard(ctx, m.Address, &m.Seal) }),
	mSealChunk: tell(func(ctx context.Context, d Drive, m *shardID) error { return d.SealChunk(ctx, m.Data, m.Chunk) }),
	mStatShard: ask(func(ctx context.Context, d Drive, m *shardID) (*statReply, error) {
		st, err := d.StatShard(ctx, erasure.ShardID(*m))
		return &statReply{st, failure{err}}, nil
	}),
	mDeleteShard: tell(func(ctx context.Context, d Drive, m *dataRequest) error {
		return d.DeleteShard(ctx, m.Address, m.Data, m.Chunk, m.Guard)
	}),
	mShardRows: ask(func(ctx context.Context, d Drive, m *shardsRequest) (*shardRows, error) {
		list, err := d.ShardRows(ctx, m.After.Data, m.After.Chunk, m.Limit)
		return (*shardRows)(&list), err
	}),
	mInlineShards: ask(func(ctx context.Context, d Drive, m *dataIDs) (*inlineShards, error) {
		list, err := d.InlineShards(ctx, *m)
		return (*inlineShards)(&list), err
	}),
	mSealInline: tell(func(ctx context.Context, d Drive, m *sealRequests) error { return d.SealInline(ctx, *m) }),
	mShardUsage: ask(func(ctx context.Context, d Drive, _ *empty) (*usage, error) {
		shards, bytes, err := d.ShardUsage(ctx)
		return &usage{shards, bytes}, err
	}),

	mJob: ask(func(ctx context.Context, d Drive, m *job) (*job, error) {
		v, err := d.Job(ctx, m.Name)
		return &job{Value: v}, err
	}),
	mSetJob: tell(func(ctx context.Context, d Drive, m *job) error { return d.SetJob(ctx, m.Name, m.Value) }),
	mRepairs: ask(func(ctx context.Context, d Drive, m *pageRequest) (*repairRows, error) {
		list, err := d.Repairs(ctx, m.After, m.Limit)
		return (*repairRows)(&list), err
	}),
	mAddRepair: tell(func(ctx context.Context, d Drive, m *repairRow) error {
		return d.AddRepair(ctx, metadata.RepairRow(*m))
	}),
	mClearRepair: tell(func(ctx context.Context, d Drive, m *repairRow) error {
		return d.ClearRepair(ctx, metadata.RepairRow(*m))
	}),
	mUnsettled: ask(func(ctx context.Context, d Drive, m *pageRequest) (*unsettledRows, error) {
		list, err := d.Unsettled(ctx, m.After, m.Limit)
		return (*unsettledRows)(&list), err
	}),
	mClearUnsettled: tell(func(ctx context.Context, d Drive, m *unsettledRow) error {
		return d.ClearUnsettled(ctx, metadata.UnsettledRow(*m))
	}),
	mGarbage: ask(func(ctx context.Context, d Drive, m *pageRequest) (*garbageRows, error) {
		list, err := d.Garbage(ctx, m.Before, m.Limit)
		return (*garbageRows)(&list), err
	}),
	mClearGarbage: tell(func(ctx context.Context, d Drive, m *garbageRows) error { return d.ClearGarbage(ctx, *m) }),
	mNames: ask(func(ctx context.Context, d Drive, m *dataRequest) (*flag, error) {
		named, err := d.Names(ctx, m.Address, m.Data)
		return (*flag)(&named), err
	}),
}

// stub is the client's end of the methods that are calls: send delivers an encoded request and returns the encoded
// answer, or the error that crossed.
type stub struct {
	num  uint16
	send func(ctx context.Context, m rpc.Method, request []byte) ([]byte, error)
}

// request sends a request and returns the answer.
func request[R, Q any, PR wire[R], PQ wire[Q]](ctx context.Context, s stub, method rpc.Method, m *Q) (*R, error) {
	b, err := s.send(ctx, method, PQ(m).AppendTo(make([]byte, 0, 256)))
	if err != nil {
		return nil, err
	}
	r := new(R)
	if err := PR(r).Unmarshal(b); err != nil {
		return nil, unreadable(err)
	}
	return r, nil
}

// inform sends a request that has no answer.
func inform[Q any, PQ wire[Q]](ctx context.Context, s stub, method rpc.Method, m *Q) error {
	_, err := request[empty, Q, *empty, PQ](ctx, s, method, m)
	return err
}

// Num returns the number of the drive.
func (s stub) Num() uint16 { return s.num }

func (s stub) Prepare(ctx context.Context, m *metadata.PrepareRequest) (*metadata.PrepareReply, error) {
	return request[metadata.PrepareReply](ctx, s, mPrepare, m)
}

func (s stub) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	return request[metadata.AcceptReply](ctx, s, mAccept, m)
}

func (s stub) Decide(ctx context.Context, m []metadata.Decision) error {
	return inform(ctx, s, mDecide, (*metadata.Decisions)(&m))
}

func (s stub) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	return request[metadata.ReadReply](ctx, s, mRead, m)
}

func (s stub) Versions(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return request[metadata.VersionsReply](ctx, s, mVersions, m)
}

func (s stub) Install(ctx context.Context, m *metadata.InstallRequest) error {
	return inform(ctx, s, mInstall, m)
}

func (s stub) Pin(ctx context.Context, m *metadata.PinRequest) (*metadata.PinReply, error) {
	return request[metadata.PinReply](ctx, s, mPin, m)
}

func (s stub) Scan(ctx context.Context, m *metadata.ScanRequest) (*metadata.ScanReply, error) {
	return request[metadata.ScanReply](ctx, s, mScan, m)
}

func (s stub) Fence(ctx context.Context, m *metadata.FenceRequest) error {
	return inform(ctx, s, mFence, m)
}

func (s stub) Drop(ctx context.Context, m *metadata.DropRequest) error {
	return inform(ctx, s, mDrop, m)
}

func (s stub) Digests(ctx context.Context) ([]metadata.Digest, error) {
	r, err := request[digests](ctx, s, mDigests, new(empty))
	return deref(r), err
}

func (s stub) Rows(ctx context.Context, m *metadata.RowsRequest) (*metadata.RowsReply, error) {
	return request[metadata.RowsReply](ctx, s, mRows, m)
}

func (s stub) Lookup(ctx context.Context, m *metadata.LookupRequest) (*metadata.RowsReply, error) {
	return request[metadata.RowsReply](ctx, s, mLookup, m)
}

func (s stub) Copy(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return request[metadata.VersionsReply](ctx, s, mCopy, m)
}

func (s stub) Wedge(ctx context.Context, m *metadata.WedgeRequest) (*metadata.WedgeReply, error) {
	return request[metadata.WedgeReply](ctx, s, mWedge, m)
}

func (s stub) Transfer(ctx context.Context, m *metadata.TransferRequest) (*metadata.TransferReply, error) {
	return request[metadata.TransferReply](ctx, s, mTransfer, m)
}

func (s stub) InstallEpoch(ctx context.Context, m *metadata.InstallEpochRequest) error {
	return inform(ctx, s, mInstallEpoch, m)
}

func (s stub) Installed(ctx context.Context, partitions []uint32) ([]uint64, error) {
	m := make(numbers, len(partitions))
	for i, p := range partitions {
		m[i] = uint64(p)
	}
	r, err := request[numbers](ctx, s, mInstalled, &m)
	return deref(r), err
}

func (s stub) InlineShard(ctx context.Context, id erasure.DataID) ([]byte, error) {
	r, err := request[inlineShard](ctx, s, mInlineShard, &shardID{Data: id})
	return deref(r), err
}

func (s stub) SealShard(ctx context.Context, addr metadata.Address, m *metadata.Seal) error {
	return inform(ctx, s, mSealShard, &sealRequest{Address: addr, Seal: *m})
}

func (s stub) SealChunk(ctx context.Context, id erasure.DataID, chunk uint32) error {
	return inform(ctx, s, mSealChunk, &shardID{Data: id, Chunk: chunk})
}

func (s stub) StatShard(ctx context.Context, id erasure.ShardID) (disk.ShardStat, error) {
	r, err := request[statReply](ctx, s, mStatShard, (*shardID)(&id))
	if err != nil {
		return disk.ShardStat{}, err
	}
	return r.Stat, r.Err.err
}

func (s stub) DeleteShard(ctx context.Context, addr metadata.Address, id erasure.DataID, chunk uint32, guard metadata.Ballot) error {
	return inform(ctx, s, mDeleteShard, &dataRequest{Address: addr, Data: id, Chunk: chunk, Guard: guard})
}

func (s stub) ShardRows(ctx context.Context, after erasure.DataID, chunk uint32, limit int) ([]disk.ShardRow, error) {
	r, err := request[shardRows](ctx, s, mShardRows, &shardsRequest{After: shardID{Data: after, Chunk: chunk}, Limit: limit})
	return deref(r), err
}

func (s stub) InlineShards(ctx context.Context, ids []erasure.DataID) ([][]byte, error) {
	r, err := request[inlineShards](ctx, s, mInlineShards, (*dataIDs)(&ids))
	return deref(r), err
}

func (s stub) SealInline(ctx context.Context, list []disk.InlineSeal) error {
	return inform(ctx, s, mSealInline, (*sealRequests)(&list))
}

func (s stub) ShardUsage(ctx context.Context) (shards, bytes int64, err error) {
	r, err := request[usage](ctx, s, mShardUsage, new(empty))
	if err != nil {
		return 0, 0, err
	}
	return r.Shards, r.Bytes, nil
}

func (s stub) Job(ctx context.Context, name string) ([]byte, error) {
	r, err := request[job](ctx, s, mJob, &job{Name: name})
	if err != nil {
		return nil, err
	}
	return r.Value, nil
}

func (s stub) SetJob(ctx context.Context, name string, value []byte) error {
	return inform(ctx, s, mSetJob, &job{Name: name, Value: value})
}

func (s stub) Repairs(ctx context.Context, after *metadata.Address, limit int) ([]metadata.RepairRow, error) {
	r, err := request[repairRows](ctx, s, mRepairs, &pageRequest{After: after, Limit: limit})
	return deref(r), err
}

func (s stub) AddRepair(ctx context.Context, r metadata.RepairRow) error {
	return inform(ctx, s, mAddRepair, (*repairRow)(&r))
}

func (s stub) ClearRepair(ctx context.Context, r metadata.RepairRow) error {
	return inform(ctx, s, mClearRepair, (*repairRow)(&r))
}

func (s stub) Unsettled(ctx context.Context, after *metadata.Address, limit int) ([]metadata.UnsettledRow, error) {
	r, err := request[unsettledRows](ctx, s, mUnsettled, &pageRequest{After: after, Limit: limit})
	return deref(r), err
}

func (s stub) ClearUnsettled(ctx context.Context, u metadata.UnsettledRow) error {
	return inform(ctx, s, mClearUnsettled, (*unsettledRow)(&u))
}

func (s stub) Garbage(ctx context.Context, before time.Time, limit int) ([]metadata.GarbageRow, error) {
	r, err := request[garbageRows](ctx, s, mGarbage, &pageRequest{Before: before, Limit: limit})
	return deref(r), err
}

func (s stub) ClearGarbage(ctx context.Context, rows []metadata.GarbageRow) error {
	return inform(ctx, s, mClearGarbage, (*garbageRows)(&rows))
}

func (s stub) Names(ctx context.Context, addr metadata.Address, id erasure.DataID) (bool, error) {
	r, err := request[flag](ctx, s, mNames, &dataRequest{Address: addr, Data: id})
	return r != nil && bool(*r), err
}

// deref returns what p points to, nil for nil.
func deref[L ~[]E, E any](p *L) []E {
	if p == nil {
		return nil
	}
	return *p
}

// unreadable is the error of a request that was executed, and whose answer does not parse.
func unreadable(err error) error {
	return &errs.Error{Op: "node.decode", Kind: errs.Unavailable, Msg: "the node's answer does not parse", Err: err}
}
