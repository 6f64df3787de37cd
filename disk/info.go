package disk

import (
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// State is the condition of a drive, for people and metrics.
type State string

// The states.
const (
	Online      State = "online"
	Quarantined State = "quarantined"
	StateFull   State = "full"
	OutForGood  State = "retired"
)

// DriveInfo describes an open drive.
type DriveInfo struct {
	Identity Identity
	Path     string
	State    State
	Reason   string    // why it is quarantined or retired
	Since    time.Time // when that was
	// Total and Avail are bytes of the file system, 0 when it does not tell; Reserve is the watermark.
	Total, Avail, Reserve uint64
	// Direct says that shard files bypass the page cache.
	Direct bool
	// Sweeping says that the sweep for unsealed files of an earlier run is under way.
	Sweeping bool

	ReadErrors, WriteErrors, SlowWrites uint64
	Swept                               uint64 // unsealed files removed since Open
	Deleted                             uint64 // shards removed since Open
	InFlight                            int    // blocking operations
	Writing                             int    // shard files not yet sealed
	StoreBytes                          uint64 // size of the record store
	CompactionDebt                      uint64 // bytes that the record store has yet to compact
}

// Info returns the condition of the drive. It may block as long as the file system takes to tell its
// free space.
func (d *Drive) Info() DriveInfo {
	i := DriveInfo{Identity: d.Identity(), Path: d.path, State: Online, Direct: d.files.Direct(), Sweeping: d.stats.sweeping.Load(),
		ReadErrors: d.stats.readErrors.Load(), WriteErrors: d.stats.writeErrors.Load(), SlowWrites: d.stats.slow.Load(),
		Swept: d.stats.swept.Load(), Deleted: d.stats.deleted.Load(), InFlight: d.gate.inFlight()}
	d.mu.Lock()
	i.Writing = len(d.writers)
	d.mu.Unlock()
	if f := d.fault.Load(); f != nil {
		i.State, i.Reason, i.Since = Quarantined, f.Reason, f.At
		if f.Corrupt {
			i.State = OutForGood
		}
		return i
	}
	total, avail, known := d.sampleUsage()
	if known {
		i.Total, i.Avail, i.Reserve = total, avail, d.reserve(total)
		if avail < i.Reserve {
			i.State = StateFull
		}
	}
	if m := d.store.metrics(); m != nil {
		i.StoreBytes, i.CompactionDebt = m.DiskSpaceUsage(), m.Compact.EstimatedDebt
	}
	return i
}

func (s *store) metrics() *pebble.Metrics {
	if s.enter() != nil {
		return nil
	}
	defer s.leave()
	return s.db.Metrics()
}

// nsControl is the namespace of the control plane in the record store.
const nsControl = 'c'

// Control returns the part of the record store that belongs to the control plane: keys that begin
// with 'c'. It refuses other keys.
func (d *Drive) Control() metadata.KV { return controlKV{d} }

type controlKV struct{ d *Drive }

func errNamespace() error {
	return errs.E("disk.Control", errs.Invalid, "the control plane's keys begin with 'c'")
}

func isControl(key []byte) bool { return len(key) > 0 && key[0] == nsControl }

// Get implements metadata.KV.
func (c controlKV) Get(key []byte) ([]byte, error) {
	if !isControl(key) {
		return nil, errNamespace()
	}
	return c.d.store.Get(key)
}

// NewIter implements metadata.KV. Bounds are clipped to the namespace.
func (c controlKV) NewIter(lower, upper []byte) (metadata.Iter, error) {
	if len(lower) == 0 {
		lower = []byte{nsControl}
	}
	if upper == nil {
		upper = []byte{nsControl + 1}
	}
	if !isControl(lower) || !isControl(upper) && string(upper) != string(rune(nsControl+1)) {
		return nil, errNamespace()
	}
	return c.d.store.NewIter(lower, upper)
}

// Apply implements metadata.KV.
func (c controlKV) Apply(b *metadata.Batch, sync bool) error {
	for i := range b.Ops {
		op := &b.Ops[i]
		if !isControl(op.Key) || op.Kind == metadata.OpDeleteRange && !isControl(op.Value) && string(op.Value) != string(rune(nsControl+1)) {
			return errNamespace()
		}
	}
	return c.d.store.Apply(b, sync)
}

// Full reports whether the drive refused new shards when it last looked at its free space. It does no I/O.
func (d *Drive) Full() bool {
	u := &d.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.valid && u.known && u.avail < d.reserve(u.total)
}

// InFlight returns how many blocking operations are under way. On a closed drive these are the ones that hang.
func (d *Drive) InFlight() int { return d.gate.inFlight() }
