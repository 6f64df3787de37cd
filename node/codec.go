package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// Codec returns d behind its own wire format: every message and answer is encoded and decoded, every
// error is reduced to what crosses between nodes, and nothing is shared by pointer with the caller.
// Tests run every drive behind it, so that what works in one process works over a network.
func Codec(d Drive) Drive { return codec{d} }

type codec struct{ d Drive }

// wire is what every message of the register is.
type wire[T any] interface {
	*T
	AppendTo([]byte) []byte
	Unmarshal([]byte) error
}

// pass carries a message to the other side. nil stays nil.
func pass[T any, P wire[T]](m *T) (*T, error) {
	if m == nil {
		return nil, nil
	}
	out := new(T)
	if err := P(out).Unmarshal(P(m).AppendTo(nil)); err != nil {
		return nil, errs.Wrap("node.Codec", err)
	}
	return out, nil
}

// passError keeps of an error what crosses between nodes: kind, operation and public text. The end of
// a stream is no error of a drive.
func passError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	op := "node"
	var e *errs.Error
	if errors.As(err, &e) {
		op = e.Op
	}
	return errs.E(op, errs.KindOf(err), errs.Public(err))
}

// exchange sends a request and returns the answer.
func exchange[Q, R any, PQ wire[Q], PR wire[R]](ctx context.Context, m *Q, f func(context.Context, *Q) (*R, error)) (*R, error) {
	m, err := pass[Q, PQ](m)
	if err != nil {
		return nil, err
	}
	r, err := f(ctx, m)
	if err != nil {
		return nil, passError(err)
	}
	return pass[R, PR](r)
}

// send sends a request that has no answer.
func send[Q any, PQ wire[Q]](ctx context.Context, m *Q, f func(context.Context, *Q) error) error {
	m, err := pass[Q, PQ](m)
	if err != nil {
		return err
	}
	return passError(f(ctx, m))
}

func (c codec) Num() uint16 { return c.d.Num() }

func (c codec) Prepare(ctx context.Context, m *metadata.PrepareRequest) (*metadata.PrepareReply, error) {
	return exchange(ctx, m, c.d.Prepare)
}

func (c codec) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	return exchange(ctx, m, c.d.Accept)
}

func (c codec) Decide(ctx context.Context, m []metadata.Decision) error {
	list := metadata.Decisions(m)
	return send(ctx, &list, func(ctx context.Context, m *metadata.Decisions) error { return c.d.Decide(ctx, *m) })
}

func (c codec) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	return exchange(ctx, m, c.d.Read)
}

func (c codec) Versions(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return exchange(ctx, m, c.d.Versions)
}

func (c codec) Install(ctx context.Context, m *metadata.InstallRequest) error {
	return send(ctx, m, c.d.Install)
}

func (c codec) Pin(ctx context.Context, m *metadata.PinRequest) (*metadata.PinReply, error) {
	return exchange(ctx, m, c.d.Pin)
}

func (c codec) Scan(ctx context.Context, m *metadata.ScanRequest) (*metadata.ScanReply, error) {
	return exchange(ctx, m, c.d.Scan)
}

func (c codec) Fence(ctx context.Context, m *metadata.FenceRequest) error {
	return send(ctx, m, c.d.Fence)
}

func (c codec) Drop(ctx context.Context, m *metadata.DropRequest) error {
	return send(ctx, m, c.d.Drop)
}

func (c codec) Digests(ctx context.Context) ([]metadata.Digest, error) {
	list, err := c.d.Digests(ctx)
	return slices.Clone(list), passError(err)
}

func (c codec) Rows(ctx context.Context, m *metadata.RowsRequest) (*metadata.RowsReply, error) {
	return exchange(ctx, m, c.d.Rows)
}

func (c codec) Lookup(ctx context.Context, m *metadata.LookupRequest) (*metadata.RowsReply, error) {
	return exchange(ctx, m, c.d.Lookup)
}

func (c codec) Copy(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return exchange(ctx, m, c.d.Copy)
}

func (c codec) Wedge(ctx context.Context, m *metadata.WedgeRequest) (*metadata.WedgeReply, error) {
	return exchange(ctx, m, c.d.Wedge)
}

func (c codec) Transfer(ctx context.Context, m *metadata.TransferRequest) (*metadata.TransferReply, error) {
	return exchange(ctx, m, c.d.Transfer)
}

func (c codec) InstallEpoch(ctx context.Context, m *metadata.InstallEpochRequest) error {
	return send(ctx, m, c.d.InstallEpoch)
}

func (c codec) Installed(ctx context.Context, partitions []uint32) ([]uint64, error) {
	list, err := c.d.Installed(ctx, slices.Clone(partitions))
	return slices.Clone(list), passError(err)
}

func (c codec) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	s.Owner.Key = bytes.Clone(s.Owner.Key)
	w, err := c.d.CreateShard(ctx, s)
	if err != nil {
		return nil, passError(err)
	}
	return codecWriter{w}, nil
}

// codecWriter passes errors; the bytes of a shard are not shared, as a sink keeps none.
type codecWriter struct{ disk.ShardWriter }

func (w codecWriter) Write(ctx context.Context, p []byte) error {
	return passError(w.ShardWriter.Write(ctx, p))
}

func (c codec) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	s, err := c.d.OpenShard(ctx, id)
	if err != nil {
		return nil, passError(err)
	}
	return codecSource{s}, nil
}

type codecSource struct{ erasure.Source }

func (s codecSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.Source.ReadAt(ctx, p, off)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, passError(err)
}

func (c codec) InlineShard(ctx context.Context, id erasure.DataID) ([]byte, error) {
	b, err := c.d.InlineShard(ctx, id)
	return bytes.Clone(b), passError(err)
}

func (c codec) SealShard(ctx context.Context, addr metadata.Address, s *metadata.Seal) error {
	a, err := pass(&addr)
	if err != nil {
		return err
	}
	return send(ctx, s, func(ctx context.Context, s *metadata.Seal) error { return c.d.SealShard(ctx, *a, s) })
}

func (c codec) SealChunk(ctx context.Context, id erasure.DataID, chunk uint32) error {
	return passError(c.d.SealChunk(ctx, id, chunk))
}

func (c codec) StatShard(ctx context.Context, id erasure.ShardID) (disk.ShardStat, error) {
	st, err := c.d.StatShard(ctx, id)
	st.Row = cloneRow(st.Row)
	return st, passError(err)
}

func cloneRow(r disk.ShardRow) disk.ShardRow {
	r.Inline = bytes.Clone(r.Inline)
	r.Address.Key = bytes.Clone(r.Address.Key)
	return r
}

func (c codec) VerifyShard(ctx context.Context, ch erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	return passError(c.d.VerifyShard(ctx, ch, index, throttle))
}

func (c codec) DeleteShard(ctx context.Context, addr metadata.Address, id erasure.DataID, chunk uint32, guard metadata.Ballot) error {
	return send(ctx, &addr, func(ctx context.Context, a *metadata.Address) error {
		return c.d.DeleteShard(ctx, *a, id, chunk, guard)
	})
}

func (c codec) ShardRows(ctx context.Context, after erasure.DataID, chunk uint32, limit int) ([]disk.ShardRow, error) {
	rows, err := c.d.ShardRows(ctx, after, chunk, limit)
	for i := range rows {
		rows[i] = cloneRow(rows[i])
	}
	return rows, passError(err)
}

func (c codec) InlineShards(ctx context.Context, ids []erasure.DataID) ([][]byte, error) {
	rows, err := c.d.InlineShards(ctx, slices.Clone(ids))
	out := make([][]byte, len(rows))
	for i := range rows {
		out[i] = bytes.Clone(rows[i])
	}
	return out, passError(err)
}

func (c codec) SealInline(ctx context.Context, list []disk.InlineSeal) error {
	out := make([]disk.InlineSeal, len(list))
	for i := range list {
		a, err := pass(&list[i].Address)
		if err != nil {
			return err
		}
		s, err := pass(&list[i].Seal)
		if err != nil {
			return err
		}
		out[i] = disk.InlineSeal{Address: *a, Seal: *s}
	}
	return passError(c.d.SealInline(ctx, out))
}

func (c codec) Scrub(ctx context.Context, after erasure.ShardID, limit int, throttle func(context.Context, int) error) (disk.ScrubReport, error) {
	r, err := c.d.Scrub(ctx, after, limit, throttle)
	bad := make([]disk.ScrubFinding, len(r.Bad))
	for i, f := range r.Bad {
		bad[i] = disk.ScrubFinding{Row: cloneRow(f.Row), Err: passError(f.Err)}
	}
	r.Bad = bad
	return r, passError(err)
}

func (c codec) ShardUsage(ctx context.Context) (shards, bytes int64, err error) {
	shards, bytes, err = c.d.ShardUsage(ctx)
	return shards, bytes, passError(err)
}

func (c codec) Job(ctx context.Context, name string) ([]byte, error) {
	b, err := c.d.Job(ctx, name)
	return bytes.Clone(b), passError(err)
}

func (c codec) SetJob(ctx context.Context, name string, value []byte) error {
	return passError(c.d.SetJob(ctx, name, bytes.Clone(value)))
}

func cloneAddress(a *metadata.Address) *metadata.Address {
	if a == nil {
		return nil
	}
	b := *a
	b.Key = bytes.Clone(a.Key)
	return &b
}

func cloneRepair(r metadata.RepairRow) metadata.RepairRow {
	return metadata.RepairRow{Address: *cloneAddress(&r.Address), Partition: r.Partition, Positions: slices.Clone(r.Positions)}
}

func (c codec) Repairs(ctx context.Context, after *metadata.Address, limit int) ([]metadata.RepairRow, error) {
	rows, err := c.d.Repairs(ctx, cloneAddress(after), limit)
	for i := range rows {
		rows[i] = cloneRepair(rows[i])
	}
	return rows, passError(err)
}

func (c codec) AddRepair(ctx context.Context, r metadata.RepairRow) error {
	return passError(c.d.AddRepair(ctx, cloneRepair(r)))
}

func (c codec) ClearRepair(ctx context.Context, r metadata.RepairRow) error {
	return passError(c.d.ClearRepair(ctx, cloneRepair(r)))
}

func (c codec) Unsettled(ctx context.Context, after *metadata.Address, limit int) ([]metadata.UnsettledRow, error) {
	rows, err := c.d.Unsettled(ctx, cloneAddress(after), limit)
	for i := range rows {
		rows[i].Address = *cloneAddress(&rows[i].Address)
	}
	return rows, passError(err)
}

func (c codec) ClearUnsettled(ctx context.Context, u metadata.UnsettledRow) error {
	u.Address = *cloneAddress(&u.Address)
	return passError(c.d.ClearUnsettled(ctx, u))
}

// passGarbage carries rows of garbage to the other side.
func passGarbage(rows []metadata.GarbageRow) ([]metadata.GarbageRow, error) {
	out := make([]metadata.GarbageRow, len(rows))
	for i, g := range rows {
		dead, err := pass(&g.Dead)
		if err != nil {
			return nil, err
		}
		g.Address, g.Dead = *cloneAddress(&g.Address), *dead
		out[i] = g
	}
	return out, nil
}

func (c codec) Garbage(ctx context.Context, before time.Time, limit int) ([]metadata.GarbageRow, error) {
	rows, err := c.d.Garbage(ctx, before, limit)
	if err != nil {
		return nil, passError(err)
	}
	return passGarbage(rows)
}

func (c codec) ClearGarbage(ctx context.Context, rows []metadata.GarbageRow) error {
	rows, err := passGarbage(rows)
	if err != nil {
		return err
	}
	return passError(c.d.ClearGarbage(ctx, rows))
}

func (c codec) Names(ctx context.Context, addr metadata.Address, id erasure.DataID) (bool, error) {
	a, err := pass(&addr)
	if err != nil {
		return false, err
	}
	named, err := c.d.Names(ctx, *a, id)
	return named, passError(err)
}

var _ Drive = codec{}
