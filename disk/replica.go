package disk

import (
	"context"

	"github.com/ostraka/ostraka/metadata"
)

// The register's messages go to the drive's acceptor, as blocking operations.

// Prepare implements metadata.Replica.
func (d *Drive) Prepare(ctx context.Context, m *metadata.PrepareRequest) (*metadata.PrepareReply, error) {
	return call(ctx, d, "disk.Prepare", func(ctx context.Context) (*metadata.PrepareReply, error) { return d.acceptor.Prepare(ctx, m) })
}

// Accept implements metadata.Replica.
func (d *Drive) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	return call(ctx, d, "disk.Accept", func(ctx context.Context) (*metadata.AcceptReply, error) { return d.acceptor.Accept(ctx, m) })
}

// Decide implements metadata.Replica.
func (d *Drive) Decide(ctx context.Context, m []metadata.Decision) error {
	return run(ctx, d, "disk.Decide", func(ctx context.Context) error { return d.acceptor.Decide(ctx, m) })
}

// Read implements metadata.Replica.
func (d *Drive) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	return call(ctx, d, "disk.Read", func(ctx context.Context) (*metadata.ReadReply, error) { return d.acceptor.Read(ctx, m) })
}

// Versions implements metadata.Replica.
func (d *Drive) Versions(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return call(ctx, d, "disk.Versions", func(ctx context.Context) (*metadata.VersionsReply, error) { return d.acceptor.Versions(ctx, m) })
}

// Install implements metadata.Replica.
func (d *Drive) Install(ctx context.Context, m *metadata.InstallRequest) error {
	return run(ctx, d, "disk.Install", func(ctx context.Context) error { return d.acceptor.Install(ctx, m) })
}

// Pin implements metadata.Replica.
func (d *Drive) Pin(ctx context.Context, m *metadata.PinRequest) (*metadata.PinReply, error) {
	return call(ctx, d, "disk.Pin", func(ctx context.Context) (*metadata.PinReply, error) { return d.acceptor.Pin(ctx, m) })
}

// Scan implements metadata.Replica.
func (d *Drive) Scan(ctx context.Context, m *metadata.ScanRequest) (*metadata.ScanReply, error) {
	return call(ctx, d, "disk.Scan", func(ctx context.Context) (*metadata.ScanReply, error) { return d.acceptor.Scan(ctx, m) })
}

// Fence implements metadata.Replica.
func (d *Drive) Fence(ctx context.Context, m *metadata.FenceRequest) error {
	return run(ctx, d, "disk.Fence", func(ctx context.Context) error { return d.acceptor.Fence(ctx, m) })
}

// Digests implements metadata.Membership.
func (d *Drive) Digests(ctx context.Context) ([]metadata.Digest, error) {
	return call(ctx, d, "disk.Digests", func(ctx context.Context) ([]metadata.Digest, error) { return d.acceptor.Digests(ctx) })
}

// Rows implements metadata.Membership.
func (d *Drive) Rows(ctx context.Context, m *metadata.RowsRequest) (*metadata.RowsReply, error) {
	return call(ctx, d, "disk.Rows", func(ctx context.Context) (*metadata.RowsReply, error) { return d.acceptor.Rows(ctx, m) })
}

// Lookup implements metadata.Membership.
func (d *Drive) Lookup(ctx context.Context, m *metadata.LookupRequest) (*metadata.RowsReply, error) {
	return call(ctx, d, "disk.Lookup", func(ctx context.Context) (*metadata.RowsReply, error) { return d.acceptor.Lookup(ctx, m) })
}

// Copy implements metadata.Membership.
func (d *Drive) Copy(ctx context.Context, m *metadata.VersionsRequest) (*metadata.VersionsReply, error) {
	return call(ctx, d, "disk.Copy", func(ctx context.Context) (*metadata.VersionsReply, error) { return d.acceptor.Copy(ctx, m) })
}

// Wedge implements metadata.Membership.
func (d *Drive) Wedge(ctx context.Context, m *metadata.WedgeRequest) (*metadata.WedgeReply, error) {
	return call(ctx, d, "disk.Wedge", func(ctx context.Context) (*metadata.WedgeReply, error) { return d.acceptor.Wedge(ctx, m) })
}

// Transfer implements metadata.Membership.
func (d *Drive) Transfer(ctx context.Context, m *metadata.TransferRequest) (*metadata.TransferReply, error) {
	return call(ctx, d, "disk.Transfer", func(ctx context.Context) (*metadata.TransferReply, error) { return d.acceptor.Transfer(ctx, m) })
}

// InstallEpoch implements metadata.Membership.
func (d *Drive) InstallEpoch(ctx context.Context, m *metadata.InstallEpochRequest) error {
	return run(ctx, d, "disk.InstallEpoch", func(ctx context.Context) error { return d.acceptor.InstallEpoch(ctx, m) })
}

// Installed implements metadata.Membership.
func (d *Drive) Installed(ctx context.Context, partitions []uint32) ([]uint64, error) {
	return call(ctx, d, "disk.Installed", func(ctx context.Context) ([]uint64, error) { return d.acceptor.Installed(ctx, partitions) })
}

var (
	_ metadata.Replica    = (*Drive)(nil)
	_ metadata.Dropper    = (*Drive)(nil)
	_ metadata.Membership = (*Drive)(nil)
)
