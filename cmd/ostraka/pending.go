package main

import (
	"context"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
)

// What the packages below do not offer yet is answered as unsupported.

func errPending() error { return errs.E("server", errs.Unsupported, "this build cannot do that yet") }

// driveOperations are the drives of this process as replacing drives needs them.
type driveOperations struct{ *node.Set }

func (d driveOperations) Retire(ctx context.Context, num uint16) error {
	if s, ok := any(d.Set).(interface {
		Retire(context.Context, uint16) error
	}); ok {
		return s.Retire(ctx, num)
	}
	return errPending()
}

func (d driveOperations) Adopt(ctx context.Context, path string, id disk.Identity) error {
	if s, ok := any(d.Set).(interface {
		Adopt(context.Context, string, disk.Identity) error
	}); ok {
		return s.Adopt(ctx, path, id)
	}
	return errPending()
}

func (d driveOperations) Quarantine(ctx context.Context, num uint16, why string) error {
	if s, ok := any(d.Set).(interface {
		Quarantine(context.Context, uint16, string) error
	}); ok {
		return s.Quarantine(ctx, num, why)
	}
	return errPending()
}

func (d driveOperations) Release(ctx context.Context, num uint16) error {
	if s, ok := any(d.Set).(interface {
		Release(context.Context, uint16) error
	}); ok {
		return s.Release(ctx, num)
	}
	return errPending()
}

func setRetired(set *node.Set, f func(num uint16) bool) {
	if s, ok := any(set).(interface{ SetRetired(func(uint16) bool) }); ok {
		s.SetRetired(f)
	}
}
