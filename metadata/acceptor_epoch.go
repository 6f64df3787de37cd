package metadata

import (
	"context"

	"github.com/ostraka/ostraka/internal/errs"
)

func (a *Acceptor) Wedge(_ context.Context, m *WedgeRequest) (*WedgeReply, error) {
	return nil, errs.E("metadata.Wedge", errs.Unsupported, "not yet")
}

func (a *Acceptor) Transfer(_ context.Context, m *TransferRequest) (*TransferReply, error) {
	return nil, errs.E("metadata.Transfer", errs.Unsupported, "not yet")
}

func (a *Acceptor) InstallEpoch(_ context.Context, m *InstallEpochRequest) error {
	return errs.E("metadata.InstallEpoch", errs.Unsupported, "not yet")
}

func (a *Acceptor) Installed(_ context.Context, partitions []uint32) ([]uint64, error) {
	return make([]uint64, len(partitions)), nil
}
