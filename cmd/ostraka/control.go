package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rootkeys"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// control is the control plane as the object plane asks for it.
type control struct {
	*cluster.Control
	account string
	asks    *refresher
	// tellGateways has the other gateways learn what was decided, those that answer; nil in a process that is alone.
	tellGateways func(context.Context)
}

var _ object.Control = (*control)(nil)

// openControl opens the control plane of a process that is alone on the drives that are there; at the first start it makes
// the store.
func (s *stack) openControl(ctx context.Context, cfg *config.Server, want erasure.Profile, log *slog.Logger) error {
	if err := s.openCopies(ctx, nil, log); err != nil {
		return err
	}
	if !s.control.State().Initialized() {
		if !s.set.Forming() {
			return errNoCopy()
		}
		if err := s.form(ctx, cfg, want); err != nil {
			return err
		}
	}
	if s.set.Forming() {
		if err := s.set.MarkFormed(ctx); err != nil {
			return err
		}
	}
	return s.useControl(cfg, want, log)
}

func errNoCopy() error {
	return errs.E("server", errs.Corrupt, "no drive that is here has a readable copy of the control plane; bring more drives of the store")
}

// openCopies opens the control plane on the drives that are there. m is nil for a process that is alone.
func (s *stack) openCopies(ctx context.Context, m *mesh, log *slog.Logger) error {
	var stores []cluster.DriveStore
	for _, d := range s.set.Open() {
		stores = append(stores, cluster.DriveStore{Num: d.Num(), KV: d.Control()})
	}
	cfg := cluster.Config{Drives: stores, Logger: log}
	if m != nil {
		cfg.Network, cfg.Peers = m, m.reachable
	}
	c, err := cluster.Open(ctx, cfg)
	if err != nil {
		return err
	}
	asks := &refresher{ask: c.Refresh}
	s.control = &control{Control: c, account: s.account(), asks: asks}
	if m != nil {
		s.control.tellGateways = s.tellGateways
		follow := s.control.Refresh
		m.catchUp.Store(&follow)
	}
	s.onClose(func(context.Context) error {
		c.Close()
		asks.close()
		return nil
	})
	if m != nil {
		m.control.Store(c)
	}
	return nil
}

// useControl takes the control plane, which knows a layout, into use: from here on the drives serve.
func (s *stack) useControl(cfg *config.Server, want erasure.Profile, log *slog.Logger) error {
	waits := s.control.State().Expects().Nodes > 0 // and has a layout for the time being
	if cfg.Profile != "" && !waits && !slices.ContainsFunc(s.layout().Profiles(), func(p placement.Profiles) bool { return p.Standard == want }) {
		return errs.E("server", errs.Invalid, fmt.Sprintf("the store has profile %s, and --profile asks for %s, which it never had; "+
			"`ostraka admin layout plan --profile` makes it wider", s.layout().Profile(), want))
	}
	if cfg.RRSProfile != "" && !waits {
		reduced, err := parseProfile(cfg.RRSProfile)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(s.layout().Profiles(), func(p placement.Profiles) bool { return p.Reduced == reduced }) {
			return errs.E("server", errs.Invalid, fmt.Sprintf("the store was formed with profile %s for REDUCED_REDUNDANCY, and --rrs-profile asks for %s", s.layout().Reduced(), reduced))
		}
	}
	s.closeRetired(log)
	s.set.SetEpoch(func(drive uint16, partition uint32) (uint64, bool) {
		st := s.control.State()
		l := st.Layout()
		if partition >= l.Partitions() || st.Retired(drive) {
			return 0, false
		}
		g := l.Group(partition)
		return g.Epoch, g.Position(drive) >= 0
	})
	s.watching.Store(s.control)
	return nil
}

// form makes the cluster: its first layout over the founding drives, and its first account.
func (s *stack) form(ctx context.Context, cfg *config.Server, want erasure.Profile) error {
	var list []placement.Drive
	for _, f := range s.set.Founders() {
		d := placement.Drive{Num: f.Num, ID: f.Drive}
		if cfg.InCluster() { // others of other sizes will come
			if local, ok := s.set.Local(f.Num); ok {
				d.Capacity = local.Info().Total
			}
		}
		list = append(list, d)
	}
	var err error
	if cfg.Expect > 0 { // for the time being: see cluster.Expectation
		if want, err = placement.DefaultProfile(len(list)); err != nil {
			return err
		}
	}
	l, err := placement.NewLayout(list, want, placement.DefaultBits)
	if err == nil && cfg.RRSProfile != "" && cfg.Expect == 0 {
		var p erasure.Profile
		if p, err = parseProfile(cfg.RRSProfile); err == nil {
			l, err = l.WithReduced(p)
		}
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, formingWithin)
	defer cancel()
	return persist(ctx, func() error {
		return s.control.Init(ctx, s.set.Cluster(), l, cluster.Account{ID: s.account(), Name: "root"}, cluster.AccessKey{})
	})
}

// driveReturned takes a drive that came back into use again.
func (c *control) driveReturned(set *node.Set, num uint16) {
	if d, ok := set.Local(num); ok {
		c.DriveReturned(cluster.DriveStore{Num: num, KV: d.Control()})
	}
}

// Layout returns the current layout; nil as long as a new cluster is not laid out, so that nothing is stored by the layout
// that it has until then.
func (c *control) Layout() *placement.Layout {
	s := c.State()
	if s.Expects().Nodes > 0 {
		return nil
	}
	return s.Layout()
}

// Refresh implements object.Control.
func (c *control) Refresh(ctx context.Context) error { return c.asks.Refresh(ctx) }

// Bucket returns a bucket as this process knows it.
func (c *control) Bucket(name string) (object.Bucket, bool) {
	b, ok := c.State().Bucket(name)
	return fromCluster(b), ok
}

// BucketByID returns a bucket by its id, as this process knows it.
func (c *control) BucketByID(id uint64) (object.Bucket, bool) {
	b, ok := c.State().BucketByID(id)
	return fromCluster(b), ok
}

// Buckets returns all buckets, ascending by name.
func (c *control) Buckets() []object.Bucket {
	list := c.State().Buckets()
	out := make([]object.Bucket, len(list))
	for i := range list {
		out[i] = fromCluster(list[i])
	}
	return out
}

// CreateBucket makes a bucket. When the name is taken, the bucket that has it comes with the error.
func (c *control) CreateBucket(ctx context.Context, b object.Bucket) (object.Bucket, error) {
	made, err := c.Control.CreateBucket(ctx, cluster.Bucket{Name: b.Name, Owner: b.Owner, Region: b.Region, Created: b.Created.UnixNano(),
		Versioning: cluster.Versioning(b.Versioning), ObjectLock: b.ObjectLock, Config: b.Config})
	if was, ok := cluster.ExistingBucket(err); ok {
		made = was
	}
	return fromCluster(made), err
}

// SetVersioning changes the versioning state of a bucket. Once it has returned all gateways write by it, but for those that did
// not answer in time: one that does not know of it yet would overwrite what a version is to be kept of.
func (c *control) SetVersioning(ctx context.Context, id uint64, v object.Versioning) error {
	err := c.Control.SetVersioning(ctx, id, cluster.Versioning(v))
	if err == nil && c.tellGateways != nil {
		c.tellGateways(ctx)
	}
	return err
}

func fromCluster(b cluster.Bucket) object.Bucket {
	return object.Bucket{ID: b.ID, Name: b.Name, Owner: b.Owner, Region: b.Region, Created: time.Unix(0, b.Created).UTC(),
		Versioning: object.Versioning(b.Versioning), ObjectLock: b.ObjectLock, Config: b.Config, Deleting: b.Deleting, Epoch: b.Epoch}
}

// RootKeys returns the root keys that the control plane keeps; zero for none.
func (c *control) RootKeys(context.Context) (rootkeys.Keys, error) {
	k, ok := c.State().RootKey()
	if !ok {
		return rootkeys.Keys{}, nil
	}
	return rootkeys.Keys{Access: k.ID, Secret: k.Secret}, nil
}

// KeepRootKeys makes the control plane keep the root keys.
func (c *control) KeepRootKeys(ctx context.Context, keys rootkeys.Keys) error {
	if have, ok := c.State().RootKey(); ok && have.ID == keys.Access && have.Secret == keys.Secret {
		return nil
	}
	return persist(ctx, func() error {
		return c.PutAccessKey(ctx, cluster.AccessKey{ID: keys.Access, Secret: keys.Secret, Account: c.account, Root: true})
	})
}
