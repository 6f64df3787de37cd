package heal

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// narrow is a drive that may be full.
type narrow struct {
	node.Drive
	full    atomic.Bool
	refused atomic.Int64
}

func (d *narrow) room() error {
	if d.full.Load() {
		d.refused.Add(1)
		return errs.E("disk", errs.Full, "drive is full")
	}
	return nil
}

func (d *narrow) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	if err := d.room(); err != nil {
		return nil, err
	}
	return d.Drive.CreateShard(ctx, s)
}

func (d *narrow) SealShard(ctx context.Context, a metadata.Address, s *metadata.Seal) error {
	if err := d.room(); err != nil {
		return err
	}
	return d.Drive.SealShard(ctx, a, s)
}

func (d *narrow) Info() disk.DriveInfo {
	if d.full.Load() {
		return disk.DriveInfo{State: disk.StateFull}
	}
	return disk.DriveInfo{State: disk.Online}
}

func TestRepairsGoOnSoonOnceADriveHasRoomAgain(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("small", 100)
	w.put("large", 300<<10)
	w.heal()
	d, _ := w.Shards(1)
	tight := &narrow{Drive: d}
	tight.full.Store(true)
	w.healer.c.Drives = patched{w, map[uint16]node.Drive{1: tight}}
	others := w.healer.c.Local
	w.healer.c.Local = func() []node.Drive {
		list := others()
		for i := range list {
			if list[i].Num() == 1 {
				list[i] = tight
			}
		}
		return list
	}
	for _, k := range []string{"small", "large"} {
		w.vanish(1, k)
		w.ask(2, k)
	}
	for range 60 {
		w.pass(10 * time.Second)
	}
	if s := w.healer.Status(); s.State != StateDegraded || s.Backlog != 2 {
		t.Fatalf("while the drive is full: %+v", s)
	}
	if n := tight.refused.Load(); n < 2 || n > 2*12 {
		t.Errorf("the full drive was asked %d times in ten minutes", n)
	}
	tight.full.Store(false)
	w.pass(10 * time.Second)
	w.whole("small")
	w.whole("large")
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}

func TestFullIsFoundAmongOtherErrors(t *testing.T) {
	full1 := errs.E("disk", errs.Full, "drive is full")
	other := errs.E("disk", errs.Drive, "gone")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {other, false}, {full1, true}, {errs.Wrap("x", full1), true}, {errs.As("x", errs.Drive, full1), true},
		{errs.Wrap("x", errors.Join(other, errs.Wrap("y", full1))), true}, {errors.Join(other, other), false},
	} {
		if got := full(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

func TestWhatWaitsIsTriedWhenADriveComes(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 300<<10)
	w.heal()
	w.down[3].Store(true)
	w.ask(1, "k")
	for range 30 {
		w.pass(10 * time.Second)
	}
	w.down[3].Store(false) // and nobody calls Returned
	w.pass(time.Second)
	if n := w.repairs(); n != 0 {
		t.Errorf("%d repair rows are left", n)
	}
}
