package gossip

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"github.com/ostraka/ostraka/internal/errs"
)

// Config starts a Group.
type Config struct {
	Tags      Tags     // Cluster and Node are needed; Began is set by Start
	Bind      string   // host:port, UDP and TCP; port 0 takes one that is free
	Advertise string   // host:port told to others; empty is Bind, or an address of this machine if Bind has none
	Keys      [][]byte // 32 bytes each, the one to encrypt with first

	Timing Timing           // zero fields are the defaults
	Now    func() time.Time // for what is shown; nil is time.Now
	Logger *slog.Logger     // nil discards
}

// Timing is how fast gossip is. The defaults are those of a local network: a process that ended is seen to have failed after a few seconds.
type Timing struct {
	Probe     time.Duration // between two probes of one process
	Answer    time.Duration // that a probe waits for its answer
	Gossip    time.Duration // between two messages
	Sync      time.Duration // between two exchanges of everything
	TCP       time.Duration // that a connection may take
	Suspicion int           // probes times log(members) that a suspect has to defend itself
	Leaving   time.Duration // that Leave lets the message spread
	Reconnect time.Duration // between two attempts to reach a member that failed
	Remember  time.Duration // that a member which failed or left is kept
	JoinFirst time.Duration // until an address that did not answer is tried again
	JoinLast  time.Duration // the same, after many attempts
}

// orDefaults fills in what is zero.
func (t Timing) orDefaults() Timing {
	d := Timing{Probe: time.Second, Answer: 500 * time.Millisecond, Gossip: 200 * time.Millisecond, Sync: 30 * time.Second, TCP: 5 * time.Second, Suspicion: 4,
		Leaving: time.Second, Reconnect: 15 * time.Second, Remember: 24 * time.Hour, JoinFirst: time.Second, JoinLast: 30 * time.Second}
	for _, x := range []struct{ p, def *time.Duration }{{&t.Probe, &d.Probe}, {&t.Answer, &d.Answer}, {&t.Gossip, &d.Gossip}, {&t.Sync, &d.Sync},
		{&t.TCP, &d.TCP}, {&t.Leaving, &d.Leaving}, {&t.Reconnect, &d.Reconnect}, {&t.Remember, &d.Remember}, {&t.JoinFirst, &d.JoinFirst}, {&t.JoinLast, &d.JoinLast}} {
		if *x.p == 0 {
			*x.p = *x.def
		}
	}
	if t.Suspicion == 0 {
		t.Suspicion = d.Suspicion
	}
	return t
}

const (
	keyBytes      = 32
	maxKeys       = 4
	eventBuffer   = 1024
	maxJoin       = 1024            // addresses that are tried
	broadcastTime = 5 * time.Second // that a broadcast may take to leave this process
)

// Group is this process's part in the gossip. It is safe for concurrent use.
type Group struct {
	cfg     Config
	log     *slog.Logger
	serf    *serf.Serf
	keyring *memberlist.Keyring
	events  chan serf.Event
	view    atomic.Pointer[View]

	ctx     context.Context // of the goroutines; ends with Close
	cancel  context.CancelFunc
	ended   chan struct{} // closed by stop: serf sends no more events
	stop    func()
	running sync.WaitGroup
	joiner  *joiner

	change sync.Mutex // held during a change of tags or keys, and guards tags
	tags   Tags

	mu       sync.Mutex // guards watchers
	watchers map[chan struct{}]bool
}

// Start begins to gossip, alone; Join finds others. The tags' limits are those of the package doc. It ends with errs.Invalid for what cannot
// work, errs.Unavailable when the address cannot be had.
func Start(cfg Config) (*Group, error) {
	const op = "gossip.Start"
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Timing = cfg.Timing.orDefaults()
	cfg.Tags.Began = time.UnixMilli(time.Now().UnixMilli())
	cfg.Tags.Drives = slices.Clone(cfg.Tags.Drives)
	tags, err := cfg.Tags.encode()
	if err != nil {
		return nil, err
	}
	keyring, err := newKeyring(cfg.Keys)
	if err != nil {
		return nil, err
	}
	cfg.Keys = nil // the keyring has them
	var tail [4]byte
	rand.Read(tail[:]) // never fails
	name := hex.EncodeToString(cfg.Tags.Node[:]) + "-" + hex.EncodeToString(tail[:])
	g := &Group{cfg: cfg, log: cfg.Logger, keyring: keyring, events: make(chan serf.Event, eventBuffer), tags: cfg.Tags, watchers: map[chan struct{}]bool{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.ended = make(chan struct{})
	g.stop = sync.OnceFunc(func() { close(g.ended) })
	conf, err := g.serfConfig(name, tags)
	if err != nil {
		g.cancel()
		return nil, err
	}
	roster := newRoster(cfg.Tags.Cluster, name)
	g.view.Store(roster.view(0, cfg.Now()))
	// Before serf is there: it says that this process has joined while it is made.
	g.running.Go(func() { g.drain(roster) })
	s, err := serf.Create(conf)
	if err != nil {
		g.cancel()
		g.stop()
		g.running.Wait()
		return nil, &errs.Error{Op: op, Kind: errs.Unavailable, Msg: "gossip cannot use the address " + cfg.Bind, Err: err}
	}
	g.serf = s
	g.joiner = newJoiner(g)
	g.running.Go(g.joiner.run)
	return g, nil
}

// serfConfig makes serf's configuration.
func (g *Group) serfConfig(name string, tags map[string]string) (*serf.Config, error) {
	t := g.cfg.Timing
	logger := log.New(&serfLog{log: g.log, now: g.cfg.Now}, "", 0)
	ml := memberlist.DefaultLANConfig()
	ml.Logger, ml.LogOutput = logger, nil
	ml.Keyring = g.keyring
	ml.ProbeInterval, ml.ProbeTimeout, ml.GossipInterval, ml.PushPullInterval = t.Probe, t.Answer, t.Gossip, t.Sync
	ml.SuspicionMult, ml.TCPTimeout = t.Suspicion, t.TCP
	ml.GossipToTheDeadTime = t.Sync
	var err error
	if ml.BindAddr, ml.BindPort, err = g.resolve(g.cfg.Bind); err != nil {
		return nil, err
	}
	ml.AdvertisePort = ml.BindPort
	if g.cfg.Advertise != "" {
		if ml.AdvertiseAddr, ml.AdvertisePort, err = g.resolve(g.cfg.Advertise); err != nil {
			return nil, err
		}
	}
	conf := serf.DefaultConfig()
	conf.NodeName, conf.Tags, conf.EventCh = name, tags, g.events
	conf.MemberlistConfig = ml
	conf.Logger, conf.LogOutput = logger, nil
	conf.BroadcastTimeout, conf.LeavePropagateDelay = broadcastTime, t.Leaving
	conf.ReconnectInterval, conf.ReconnectTimeout, conf.TombstoneTimeout = t.Reconnect, t.Remember, t.Remember
	conf.ReapInterval = min(15*time.Second, t.Remember)
	// Names are drawn at random; two processes of one node id are reported in the View, and neither is ended.
	conf.EnableNameConflictResolution = false
	conf.DisableCoordinates = true
	conf.MsgpackUseNewTimeFormat = true
	return conf, nil
}

// resolve reads host:port into an IP address and a port. An empty host is every address.
func (g *Group) resolve(address string) (ip string, port int, err error) {
	const op = "gossip.Start"
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, &errs.Error{Op: op, Kind: errs.Invalid, Msg: fmt.Sprintf("the gossip address %q is not host:port", address), Err: err}
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, errs.E(op, errs.Invalid, fmt.Sprintf("the gossip address %q has no port from 0 to 65535", address))
	}
	if host == "" {
		return "0.0.0.0", int(n), nil
	}
	ctx, cancel := context.WithTimeout(g.ctx, g.cfg.Timing.TCP)
	defer cancel()
	addr, err := lookup(ctx, host)
	if err != nil {
		return "", 0, &errs.Error{Op: op, Kind: errs.Unavailable, Msg: fmt.Sprintf("the gossip address %q has no IP address", address), Err: err}
	}
	return addr.String(), int(n), nil
}

// lookup finds one IP address of a host, an IPv4 one if there is any.
func lookup(ctx context.Context, host string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap(), nil
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range all {
		if a.Unmap().Is4() {
			return a.Unmap(), nil
		}
	}
	return all[0], nil
}

// View returns who is there now. It never blocks and is never nil.
func (g *Group) View() *View { return g.view.Load() }

// Watch returns a channel of capacity 1 that has a value whenever the View has changed since it was last read, and
// once at the beginning. stop ends it; the channel is never closed.
func (g *Group) Watch() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watchers[c] = true
	return c, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.watchers, c)
	}
}

// drain takes serf's events until it has ended, and what is left then. Whatever came meanwhile becomes one View.
func (g *Group) drain(r *roster) {
	number := uint64(0)
	reported := map[[16]byte]bool{}
	for {
		select {
		case e := <-g.events:
			changed := g.apply(r, e)
			for n := len(g.events); n > 0; n-- {
				changed = g.apply(r, <-g.events) || changed
			}
			if changed {
				number++
				g.publish(r.view(number, g.cfg.Now()), reported)
			}
		case <-g.ended:
			for {
				select {
				case <-g.events:
				default:
					return
				}
			}
		}
	}
}

// apply notes one event, and reports whether it was one of members.
func (g *Group) apply(r *roster, e serf.Event) bool {
	me, ok := e.(serf.MemberEvent)
	if !ok {
		return false // queries and user events are not used
	}
	for _, m := range me.Members {
		state := Alive
		switch me.Type {
		case serf.EventMemberFailed:
			state = Failed
		case serf.EventMemberLeave:
			state = Left
		case serf.EventMemberReap:
			r.gone(m.Name)
			continue
		}
		address := net.JoinHostPort(m.Addr.String(), strconv.Itoa(int(m.Port)))
		if bad := r.seen(m.Name, address, m.Tags, state, g.cfg.Now()); bad != nil {
			g.log.Warn("a member of the gossip is passed over", "address", address, "err", bad)
		}
	}
	return true
}

// publish makes a View the current one and tells the watchers. A duplicate is logged when it appears.
func (g *Group) publish(v *View, reported map[[16]byte]bool) {
	g.view.Store(v)
	now := map[[16]byte]bool{}
	for _, d := range v.Duplicates {
		now[d.Node] = true
		if !reported[d.Node] {
			g.log.Error("two processes claim one node id; if it stays so, a drive was copied: stop one of them", "node", hex.EncodeToString(d.Node[:]), "addresses", d.Addresses)
		}
	}
	clear(reported)
	for node := range now {
		reported[node] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Address returns where this process gossips, host:port, as it tells others.
func (g *Group) Address() string {
	n := g.serf.Memberlist().LocalNode()
	return net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port)))
}

// UpdateTags tells others new tags of this process; cluster, node and beginning stay as they are. It
// may take seconds. errs.Timeout means that they are in use, and spread later.
func (g *Group) UpdateTags(t Tags) error {
	const op = "gossip.UpdateTags"
	g.change.Lock()
	defer g.change.Unlock()
	t.Cluster, t.Node, t.Began = g.tags.Cluster, g.tags.Node, g.tags.Began
	t.Drives = slices.Clone(t.Drives)
	m, err := t.encode()
	if err != nil {
		return err
	}
	if g.ctx.Err() != nil {
		return errs.E(op, errs.Unavailable, "the gossip has ended")
	}
	g.tags = t
	if err := g.serf.SetTags(m); err != nil {
		return errs.As(op, errs.Timeout, err)
	}
	return nil
}

// newKeyring makes the keyring of memberlist.
func newKeyring(keys [][]byte) (*memberlist.Keyring, error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	ring, err := memberlist.NewKeyring(clones(keys), slices.Clone(keys[0]))
	return ring, errs.As("gossip.Start", errs.Invalid, err)
}

func checkKeys(keys [][]byte) error {
	if len(keys) == 0 || len(keys) > maxKeys {
		return errs.E("gossip.UpdateKeys", errs.Invalid, fmt.Sprintf("gossip needs 1 to %d keys", maxKeys))
	}
	for _, k := range keys {
		if len(k) != keyBytes {
			return errs.E("gossip.UpdateKeys", errs.Invalid, fmt.Sprintf("a gossip key has %d bytes", keyBytes))
		}
	}
	return nil
}

func clones(keys [][]byte) (c [][]byte) {
	for _, k := range keys {
		c = append(c, slices.Clone(k))
	}
	return c
}

// UpdateKeys makes these the keys: the first encrypts, all decrypt. Members stay; between two members that
// share no key they would fail. See trust for the order of a rotation.
func (g *Group) UpdateKeys(keys [][]byte) error {
	const op = "gossip.UpdateKeys"
	if err := checkKeys(keys); err != nil {
		return err
	}
	keys = clones(keys)
	g.change.Lock()
	defer g.change.Unlock()
	for _, k := range keys {
		if err := g.keyring.AddKey(k); err != nil {
			return errs.As(op, errs.Invalid, err)
		}
	}
	// memberlist removes a key by shifting a slice that it reads without a lock elsewhere. The last
	// key it cuts off without a write: so what is to stay is brought to the front, the one to use at last.
	for _, k := range slices.Backward(keys) {
		if err := g.keyring.UseKey(k); err != nil {
			return errs.As(op, errs.Internal, err)
		}
	}
	for _, k := range slices.Backward(g.keyring.GetKeys()) {
		if slices.ContainsFunc(keys, func(x []byte) bool { return bytes.Equal(x, k) }) {
			continue
		}
		if err := g.keyring.RemoveKey(k); err != nil {
			return errs.As(op, errs.Internal, err)
		}
	}
	return nil
}

// Join has members sought at these addresses (host:port of their gossip), in the background, until each has answered once; when this
// process is left alone all are sought again. It may be called at any time, with what is known already. At most 1,024 are kept.
func (g *Group) Join(addresses []string) { g.joiner.add(addresses) }

// Leave says that this process goes, so that it is not taken for failed, and waits until that has spread: seconds. Close must follow.
func (g *Group) Leave(ctx context.Context) error {
	const op = "gossip.Leave"
	done := make(chan error, 1)
	g.running.Go(func() { done <- g.serf.Leave() })
	select {
	case err := <-done:
		return errs.As(op, errs.Unavailable, err)
	case <-ctx.Done():
		return errs.Wrap(op, ctx.Err())
	}
}

// Close ends the gossip and waits for all of it: seconds if an address is being tried that does not answer. Without Leave others take this process for failed.
func (g *Group) Close() error {
	g.cancel()
	err := g.serf.Shutdown()
	g.stop()
	g.running.Wait()
	return errs.As("gossip.Close", errs.Internal, err)
}
