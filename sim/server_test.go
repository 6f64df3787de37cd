package sim

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
	"github.com/ostraka/ostraka/s3api"
)

// Sizes and periods of a simulated store. They are those of the product, but for what would only
// make a run dearer.
const (
	inlineLimit = 2 << 10
	chunkSize   = 64 << 10
	layoutBits  = 3
	orphanEvery = 40 * time.Minute
	orphanAge   = 30 * time.Minute
	rootAccess  = "AKSIMULATION"
	rootSecret  = "secret-of-the-simulation"
	rootAccount = "1111111111111111111111111111111111111111111111111111111111111111"
)

// server is one life of the process: everything between the drives and the requests.
type server struct {
	w       *world
	ctx     context.Context // ends with the life
	cancel  context.CancelFunc
	crashed atomic.Bool // set before the power goes: what returns later was never answered

	set     *node.Set
	links   *links
	clock   func() time.Time
	member  *member        // what makes it one of a cluster; nil: it is alone
	inside  sync.WaitGroup // operations of clients
	control control
	raft    *cluster.Control // nil with the table
	meta    *metadata.Client
	mover   *metadata.Client // of plans, in a cluster; nil: there are none
	store   *object.Store
	healer  atomic.Pointer[heal.Healer]
	handler http.Handler
	healing sync.WaitGroup
	raftNow atomic.Pointer[cluster.Control]
	asked   chan struct{} // capacity 1

	mu       sync.Mutex        // guards prepared
	prepared map[uint64]uint16 // replacements that healing may work on, with their newcomers
}

// start starts the process over what the drives hold.
func (w *world) start(ctx context.Context) (_ *server, err error) {
	s := &server{w: w, links: w.links, clock: w.now, asked: make(chan struct{}, 1), prepared: map[uint64]uint16{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	log := w.log
	var paths []string
	for _, d := range w.drives {
		paths = append(paths, d.dir)
	}
	s.set, err = node.OpenSet(ctx, paths, node.Options{
		FS: w.fs, WatchEvery: 10 * time.Second, Now: w.now, Logger: log,
		Disk: disk.Options{MemTableSize: 512 << 10, SweepEvery: 20 * time.Second},
		OnLost: func(num uint16, err error) {
			w.tracef("drive %d lost: %v", num, err)
			if c := s.raftNow.Load(); c != nil {
				c.DriveLost(num)
			}
		},
		OnReturn: func(num uint16) {
			w.tracef("drive %d returned", num)
			if c := s.raftNow.Load(); c != nil {
				if d, ok := s.set.Local(num); ok {
					c.DriveReturned(cluster.DriveStore{Num: num, KV: d.Control()})
				}
			}
			if h := s.healer.Load(); h != nil {
				h.Returned(num)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	if err := s.openControl(ctx, log); err != nil {
		return nil, err
	}
	for _, d := range s.set.Open() {
		if s.raft != nil && s.control.Retired(d.Num()) {
			s.raft.DriveLost(d.Num())
		}
	}
	s.set.SetRetired(s.control.Retired)
	s.set.SetEpoch(func(drive uint16, partition uint32) (uint64, bool) {
		l := s.control.Layout()
		if partition >= l.Partitions() || s.control.Retired(drive) {
			return 0, false
		}
		g := l.Group(partition)
		return g.Epoch, g.Position(drive) >= 0
	})
	drives := gateway{s.links, s.set}
	s.assemble(drives, heal.Config{Drives: drives, Replacements: s.forHealing, OrphanEvery: orphanEvery, OrphanAge: orphanAge})
	s.healing.Go(s.operate)
	return s, nil
}

// drives are all drives, as the register and the object plane find them.
type drives interface {
	object.Drives
	metadata.Replicas
}

// assemble builds what is above the drives and the control plane, and lets it work. h says what is particular
// about repairs.
func (s *server) assemble(all drives, h heal.Config) {
	log := s.w.log
	s.meta = metadata.NewClient(metadata.ClientConfig{Replicas: all, Logger: log, Now: s.now})
	s.store = object.New(object.Config{Control: s.control, Drives: all, Meta: s.meta, Logger: log, Now: s.now,
		InlineLimit: inlineLimit, ChunkSize: chunkSize, MinPartSize: 1, CacheBytes: s.w.cache, RecodeAfter: 2 * time.Second})
	h.Meta, h.Layout, h.Buckets, h.Recoder, h.Logger, h.Now = s.meta, s.control.Layout, s.store, s.store, log, s.now
	if s.member != nil {
		h.Recoder = slowRecoder{s.store, s.member.m}
	}
	h.Control, h.Fences, h.Deletions, h.Every = s.control, s.fences, s.deletions, time.Minute
	local := gateway{s.links, s.set}
	h.Local = func() (open []node.Drive) {
		for _, d := range s.set.Open() {
			if v, ok := local.Shards(d.Num()); ok {
				open = append(open, v)
			}
		}
		return open
	}
	healer := heal.New(h)
	s.healer.Store(healer)
	if len(s.set.Status()) > 0 { // what is to be repaired lies on the drives, and so do those who repair it
		s.healing.Go(func() { healer.Run(s.ctx) })
	}
	verifier := auth.NewVerifier(auth.Config{Keys: rootKey{}, AnyRegion: true, Now: s.now})
	s.handler = s3api.New(s3api.Config{Store: s3api.Adapt(s.store), Verifier: verifier, Authorizer: auth.RootOnly{}, AnyRegion: true,
		Logger: log, Now: s.now, MaxRequests: 100, HostID: "sim"})
}

// now is the time as this process knows it.
func (s *server) now() time.Time { return s.clock() }

func (s *server) openControl(ctx context.Context, log *slog.Logger) error {
	w := s.w
	if !w.raft {
		if s.set.Forming() {
			l, err := s.firstLayout()
			if err != nil {
				return err
			}
			w.table.layout = l
			if err := s.set.MarkFormed(ctx); err != nil {
				return err
			}
		}
		s.control = w.table
		return nil
	}
	var stores []cluster.DriveStore
	for _, d := range s.set.Open() {
		stores = append(stores, cluster.DriveStore{Num: d.Num(), KV: d.Control()})
	}
	c, err := cluster.Open(ctx, cluster.Config{Drives: stores, Logger: log})
	if err != nil {
		return err
	}
	s.raft, s.control = c, raftControl{c}
	if !c.State().Initialized() {
		if !s.set.Forming() {
			return errs.E("sim", errs.Corrupt, "no drive that is here has a copy of the control plane")
		}
		l, err := s.firstLayout()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := c.Init(ctx, s.set.Cluster(), l, cluster.Account{ID: rootAccount, Name: "root"}, cluster.AccessKey{}); err != nil {
			return err
		}
	}
	if s.set.Forming() {
		if err := s.set.MarkFormed(ctx); err != nil {
			return err
		}
	}
	s.raftNow.Store(c)
	return nil
}

func (s *server) firstLayout() (*placement.Layout, error) {
	var list []placement.Drive
	for _, f := range s.set.Founders() {
		list = append(list, placement.Drive{Num: f.Num, ID: f.Drive})
	}
	l, err := placement.NewLayout(list, s.w.profile, layoutBits)
	if err != nil {
		return nil, err
	}
	return l.WithReduced(s.w.profile) // one with less parity would lose more
}

// stop ends the process. After a power cut nothing of it reaches a disk any more.
func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	s.cancel()
	s.healing.Wait()
	var list []error
	if h := s.healer.Load(); h != nil {
		list = append(list, h.Wait(ctx))
	}
	if s.store != nil {
		list = append(list, s.store.Close(ctx))
	}
	if s.meta != nil {
		list = append(list, s.meta.Close(ctx))
	}
	if s.mover != nil {
		list = append(list, s.mover.Close(ctx))
	}
	if s.raft != nil {
		s.raft.Close()
	}
	if s.member != nil {
		list = append(list, s.member.stop(ctx))
	}
	if s.set != nil {
		list = append(list, s.set.Close(ctx))
	}
	return errors.Join(list...)
}

// rootKey knows the one key.
type rootKey struct{}

// Secret implements auth.KeySource.
func (rootKey) Secret(_ context.Context, id string) (string, auth.Identity, bool) {
	if id != rootAccess {
		return "", auth.Identity{}, false
	}
	return rootSecret, auth.Identity{AccountID: rootAccount, AccountName: "root", AccessKeyID: id, Root: true}, true
}
