package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rootkeys"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
	"github.com/ostraka/ostraka/s3api"
)

// What one process allows itself.
const (
	maxRequests   = 1024             // S3 requests at a time; beyond it SlowDown
	memTables     = 64 << 20         // write buffers of all record stores together, roughly
	maxMemTable   = 16 << 20         // of one
	idleBuffers   = 16 << 20         // stripe buffers kept for the next stream
	minMemTable   = 2 << 20          // of one
	backlogBound  = 10000            // repair rows that are counted on one drive
	backlogPage   = 1000             // of them at a time
	formingWithin = 30 * time.Second // for the first state of the control plane
)

// stack is everything of a running server between its drives and its listener.
type stack struct {
	set     *node.Set   // the drives of this process
	fleet   *node.Fleet // all drives
	mesh    *mesh       // nil for a process that is alone
	control *control
	meta    *metadata.Client
	store   *object.Store
	handler http.Handler
	waits   func(reason string) // tells clients for what the process waits that opens it

	access   string // root access key
	keysFrom string // file that the root keys are in; "" if they were given

	watching atomic.Pointer[control] // what is told of drives that come and go; nil until it is open

	operator *operator
	inFlight atomic.Int64 // S3 requests
	gathered time.Time    // when all nodes of a new cluster were here, and drives were not open yet; of tend

	stopHeal context.CancelFunc
	healing  sync.WaitGroup              // repairs, and the operator's loop
	healer   atomic.Pointer[heal.Healer] // nil until the stack stands; drives may return before

	cleanups []func(context.Context) error // in the order in which things were opened
}

// layout is the current layout; never nil once open has returned.
func (s *stack) layout() *placement.Layout { return s.control.State().Layout() }

// open builds the stack, from the drives up. What it opened is closed again if it fails. nodes is the listener
// for other nodes; nil for a process that is alone.
func open(ctx context.Context, cfg *config.Server, nodes net.Listener, waits func(reason string), log *slog.Logger) (_ *stack, err error) {
	s := &stack{waits: waits}
	defer func() {
		if err != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
			defer cancel()
			err = errors.Join(err, s.close(closing))
		}
	}()
	want, err := wantedProfile(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.openDrives(ctx, cfg, log); err != nil {
		return nil, err
	}
	if cfg.InCluster() {
		err = s.openCluster(ctx, cfg, nodes, want, log)
	} else {
		err = s.openAlone(ctx, cfg, want, log)
	}
	if err != nil {
		return nil, err
	}
	keys, err := s.rootKeys(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	s.openStore(cfg, log)
	s.startHeal(ctx, cfg, log)
	s.openFront(cfg, keys, log)
	return s, nil
}

// close ends everything, in the reverse order.
func (s *stack) close(ctx context.Context) error {
	var failed []error
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		failed = append(failed, s.cleanups[i](ctx))
	}
	s.cleanups = nil
	return errors.Join(failed...)
}

func (s *stack) onClose(f func(context.Context) error) { s.cleanups = append(s.cleanups, f) }

// wantedProfile is what the configuration asks for a new store: refused before any drive is
// formatted if the drives do not suffice for it.
func wantedProfile(cfg *config.Server) (erasure.Profile, error) {
	if cfg.Role == config.GatewayRole {
		return erasure.Profile{}, nil
	}
	if cfg.Profile == "" {
		return placement.DefaultProfile(len(cfg.Drives))
	}
	p, err := parseProfile(cfg.Profile)
	if err == nil && p.N() > len(cfg.Drives) && len(cfg.Join) == 0 && cfg.Expect == 0 && !cfg.InCluster() {
		err = errs.E("server", errs.Invalid, fmt.Sprintf("profile %s needs %d drives, and %d are named", cfg.Profile, p.N(), len(cfg.Drives)))
	}
	return p, err
}

func parseProfile(text string) (erasure.Profile, error) {
	k, m, err := config.ParseProfile(text)
	p := erasure.Profile{Data: uint8(k), Parity: uint8(m)}
	if err == nil && !p.Valid() {
		err = errs.E("server", errs.Invalid, fmt.Sprintf("profile %s is out of range", text))
	}
	return p, err
}

func (s *stack) openDrives(ctx context.Context, cfg *config.Server, log *slog.Logger) error {
	if cfg.Role == config.GatewayRole {
		s.set = node.NoDrives()
		s.onClose(s.set.Close)
		return nil
	}
	set, err := node.OpenSet(ctx, cfg.Drives, node.Options{
		Logger: log,
		Join:   len(cfg.Join) > 0,
		Form:   func() error { return mayForm(cfg) },
		Disk:   disk.Options{MemTableSize: min(max(memTables/len(cfg.Drives), minMemTable), maxMemTable)},
		OnLost: func(num uint16, err error) {
			log.Warn("drive lost", "drive", num, "err", err)
			if c := s.watching.Load(); c != nil {
				c.DriveLost(num)
			}
		},
		OnReturn: func(num uint16) {
			log.Info("drive returned", "drive", num)
			if c := s.watching.Load(); c != nil {
				c.driveReturned(s.set, num)
			}
			if h := s.healer.Load(); h != nil {
				h.Returned(num)
			}
		},
	})
	if err != nil {
		return err
	}
	s.set = set
	s.onClose(set.Close)
	if set.Fresh() {
		return nil // they are about to join
	}
	for _, p := range set.Status() {
		switch {
		case p.State == node.PathEmpty && !p.Known:
			log.Warn("an empty directory: a spare for a replacement, or a disk that is not mounted", "path", p.Path)
		case !p.Open:
			log.Error("drive is not in service", "path", p.Path, "err", p.Err)
		}
	}
	return nil
}

// startHeal runs the repairs beside the requests.
func (s *stack) startHeal(ctx context.Context, cfg *config.Server, log *slog.Logger) {
	s.operator = newOperator(s.set, s.control, func() { s.healer.Load().Trigger() }, log)
	if s.mesh != nil {
		s.operator.self = s.mesh.self
	}
	hc := heal.Config{
		Meta: s.meta, Layout: s.layout, Buckets: s.store, Drives: s.healDrives(), Recoder: s.store, Logger: log,
		Replacements: s.operator.forHealing, Control: movers{s.control.Control}, Fences: s.control.fences, Deletions: s.control.deletions, Load: s.load,
		Settings: settingsOf(s.control.State()),
		Local: func() []node.Drive {
			var open []node.Drive
			for _, d := range s.set.Open() {
				open = append(open, d)
			}
			return open
		},
	}
	if s.mesh != nil {
		hc.Moves = planMover{s.control.Control}
		hc.Checks = checks{s}
		mover := metadata.NewClient(metadata.ClientConfig{Replicas: hereDrives{s}, Logger: log})
		s.onClose(mover.Close)
		hc.Mover = mover
		hc.Retired = func(num uint16) bool { return s.control.State().Retired(num) }
	}
	h := heal.New(hc)
	// Nodes tell what it asks of them from what requests ask.
	ctx, s.stopHeal = context.WithCancel(rpc.WithMeta(context.WithoutCancel(ctx), rpc.Meta{Priority: rpc.Background}))
	s.healer.Store(h)
	if s.mesh != nil {
		s.mesh.answerCheck(h.CheckAnswer)
	}
	if cfg.Role != config.GatewayRole { // what is to be repaired lies on the drives, and so do those who repair it
		s.healing.Go(func() { h.Run(ctx) })
		s.healing.Go(func() { s.operator.run(ctx) })
	}
	s.onClose(func(ctx context.Context) error {
		s.stopHeal()
		s.healing.Wait()
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := h.Wait(ctx); err != nil { // it must not hold up the others: closing the drives fences it off
			log.Warn("a repair is left behind in a drive that hangs", "err", err)
		}
		return nil
	})
}

// load is how many requests there are, here or at the nodes whose drives are worked with: repairs yield to them.
func (s *stack) load() int {
	if s.mesh != nil {
		return s.mesh.busiest()
	}
	return int(s.inFlight.Load())
}

func (s *stack) openStore(cfg *config.Server, log *slog.Logger) {
	s.meta = metadata.NewClient(metadata.ClientConfig{Replicas: s.fleet, Logger: log})
	s.onClose(s.meta.Close)
	cache := int64(cfg.CacheSize)
	if cache == 0 {
		cache = -1 // off; 0 would mean the store's own default
	}
	s.store = object.New(object.Config{
		Control: s.control, Drives: s.fleet, Meta: s.meta, Buffers: bufpool.New(bufpool.Options{MaxIdle: idleBuffers}), Logger: log,
		CacheBytes: cache, MinPartSize: int64(cfg.TestMinPartSize), ChunkSize: int64(cfg.TestChunkSize),
		OnRepair: func() {
			if h := s.healer.Load(); h != nil {
				h.Nudge()
			}
		},
	})
	s.onClose(s.store.Close)
}

// rootKeys returns the root keys: given ones win; otherwise those that the drives or the control
// plane keep, or new ones. Drives without the file get it.
func (s *stack) rootKeys(ctx context.Context, cfg *config.Server, log *slog.Logger) (rootkeys.Keys, error) {
	given := rootkeys.Keys{Access: cfg.RootAccessKey, Secret: string(cfg.RootSecretKey)}
	if !given.IsZero() {
		s.access = given.Access
		return given, s.shareKeys(ctx, given, log)
	}
	if cfg.Role == config.GatewayRole {
		keys, err := s.control.RootKeys(ctx)
		if err == nil && keys.IsZero() {
			err = errs.E("server", errs.Unavailable, "the cluster has no root keys yet: start a node that has drives and serves S3 first")
		}
		s.access = keys.Access
		return keys, err
	}
	var dirs []string
	for _, p := range s.set.Status() {
		if p.Open { // never write into a directory that is not ours
			dirs = append(dirs, p.Path)
		}
	}
	keys, missing, err := rootkeys.Read(dirs)
	if err != nil {
		return rootkeys.Keys{}, err
	}
	if keys.IsZero() {
		if keys, err = s.control.RootKeys(ctx); err != nil {
			return rootkeys.Keys{}, err
		}
	}
	if keys.IsZero() {
		keys = rootkeys.Generate()
		log.Info("root keys were made", "access_key", keys.Access)
	}
	if err := s.control.KeepRootKeys(ctx, keys); err != nil {
		return rootkeys.Keys{}, err
	}
	if err := rootkeys.Write(missing, keys); err != nil {
		// The keys are known and kept elsewhere: a drive that cannot be written is no reason not to serve.
		log.Error("the root keys could not be stored on every drive", "err", err)
	}
	s.access, s.keysFrom = keys.Access, filepath.Join(dirs[0], rootkeys.FileName)
	return keys, nil
}

// openFront builds what requests meet first.
func (s *stack) openFront(cfg *config.Server, keys rootkeys.Keys, log *slog.Logger) {
	check := auth.Config{Keys: rootSource{keys: keys, account: s.account()}, Region: cfg.Region, AnyRegion: true}
	adminVerifier := auth.NewVerifier(check) // never version 2, which leaves what admin requests say uncovered
	check.V2, check.PostV2, check.HostBucket = cfg.SigV2, cfg.SigV2, s3api.HostBucket(cfg.Domains)
	verifier := auth.NewVerifier(check)
	samples := console.NewSampler(func() map[uint16]func() disk.DriveInfo {
		open := map[uint16]func() disk.DriveInfo{}
		for _, d := range s.set.Open() {
			open[d.Num()] = d.Info
		}
		return open
	})
	backlog := repairBacklog{s.set}
	metrics := console.NewMetrics(console.Sources{Drives: s.set, Samples: samples, Stats: s.store.Stats, Backlog: backlog,
		Healer: s.healer.Load(), Version: version})
	cfgConsole := console.Config{
		Version: version, Profile: profileName(s.layout().Profile()), Cluster: s.set.Cluster(), Region: cfg.Region, Started: time.Now(),
		Layout: s.layout, Buckets: func() int { return len(s.control.State().Buckets()) }, Operator: s.operator, Healer: s.healer.Load(),
		Tuner: tuner{s.control.Control, s.healer.Load().Configure}, Usager: usager{s.store}, Drives: s.set, Samples: samples,
		Inspector: s.store, Backlog: backlog, Verifier: adminVerifier, Ready: s.ready, Metrics: metrics.Handler(), Logger: log,
	}
	if s.mesh != nil {
		s.mesh.tellDrives(func(ctx context.Context) []console.DriveStatus { return console.LocalStatuses(ctx, s.set, samples) })
		cfgConsole.Here, cfgConsole.Nodes, cfgConsole.Planner, cfgConsole.Changes = s.here, s.nodeStatuses, planner{s, log}, s.changes
	}
	if cfg.Role == config.GatewayRole {
		cfgConsole.Healer = farHealer{s.healer.Load()}
	}
	admin := console.New(cfgConsole)
	if cfg.Role == config.NodeRole {
		s.handler = admin
		return
	}
	s.handler = s.counted(s3api.New(s3api.Config{
		Store: s3api.Adapt(s.store), Verifier: verifier, Authorizer: auth.RootOnly{}, Domains: cfg.Domains, Region: cfg.Region, AnyRegion: true,
		Next: admin, Observer: metrics, Logger: log, MaxRequests: maxRequests, OwnerName: func(string) string { return "root" },
	}))
}

// counted counts the S3 requests in flight, to which work in the background yields. Scrapes and
// operators' requests are none.
func (s *stack) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/-/") {
			s.inFlight.Add(1)
			defer s.inFlight.Add(-1)
		}
		h.ServeHTTP(w, r)
	})
}

// ready says whether S3 can be served at all: the control plane is known, and enough drives are
// here that some records can be read. Fewer drives make single requests fail, with 503.
func (s *stack) ready(context.Context) error {
	const op = "server"
	l := s.layout()
	if n := s.control.State().Expects().Nodes; n > 0 {
		return errs.E(op, errs.Unavailable, fmt.Sprintf("the new cluster waits for %d nodes with drives; here are %s", n, strings.Join(s.nodesWithDrives(), ", ")))
	}
	if err := s.control.Behind(); err != nil {
		return err
	}
	open := map[uint16]bool{}
	for _, d := range l.Drives() {
		open[d.Num] = s.here(d.Num)
	}
	most := 0
	for p := range l.Partitions() {
		g := l.Group(p)
		n := 0
		for _, num := range g.Drives {
			if open[num] {
				n++
			}
		}
		if n >= g.Quorum.R {
			return nil
		}
		most = max(most, n)
	}
	text := fmt.Sprintf("%d of %d drives are here; reading needs %d", most, l.N(), l.Group(0).Quorum.R)
	if s.mesh != nil {
		text = fmt.Sprintf("of no partition more than %d of %d drives are here, and reading needs %d; missing: %s", most, l.N(), l.Group(0).Quorum.R, strings.Join(s.missing(), "; "))
	}
	return errs.E(op, errs.Unavailable, text)
}

// account is the canonical id of the one account of a store.
func (s *stack) account() string {
	id := s.set.Cluster()
	sum := sha256.Sum256(append([]byte("ostraka root account "), id[:]...))
	return hex.EncodeToString(sum[:])
}

// rootSource knows one key: the root's.
type rootSource struct {
	keys    rootkeys.Keys
	account string
}

// Secret implements auth.KeySource.
func (r rootSource) Secret(_ context.Context, access string) (string, auth.Identity, bool) {
	if access != r.keys.Access {
		return "", auth.Identity{}, false
	}
	return r.keys.Secret, auth.Identity{AccountID: r.account, AccountName: "root", AccessKeyID: access, Root: true}, true
}

// repairBacklog counts the repair rows of the drives that are here.
type repairBacklog struct{ set *node.Set }

// Backlog implements console.Backlog. A register that several drives ask to repair counts for each.
func (r repairBacklog) Backlog(ctx context.Context) (int, error) {
	total := 0
	for _, d := range r.set.Open() {
		var after *metadata.Address
		for n := 0; n < backlogBound; {
			rows, err := d.Repairs(ctx, after, backlogPage)
			if err != nil {
				return 0, errs.Wrap("server.Backlog", err)
			}
			n += len(rows)
			total += len(rows)
			if len(rows) < backlogPage {
				break
			}
			after = &rows[len(rows)-1].Address
		}
	}
	return total, nil
}
