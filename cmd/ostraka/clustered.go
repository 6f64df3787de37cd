package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/cluster/gossip"
	"github.com/ostraka/ostraka/cluster/trust"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rootkeys"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// How a process becomes, or is again, a node of a cluster. Which of the three it is follows from what its
// drives hold:
//
//   - Their copy of the control plane knows the cluster: it starts again. Certificates come from that copy, addresses
//     too, and nobody has to be there.
//   - They are empty (or there are none, of a gateway) and --join is given: it joins. The secret brings a certificate,
//     gossip the others, they the control plane; then the directories get numbers and identities (node.Recruit).
//   - They are a store that is alone, or empty without --join: it is the first node. The store is formed as ever, then it
//     becomes a cluster of one.
//
// Each step may be repeated, and is at the next start if a crash came between.

const (
	askEvery    = time.Second     // what needs the leader is tried again
	watchEvery  = time.Second     // besides when something is told
	tellTimeout = 5 * time.Second // new tags
	openWithin  = time.Minute     // that the last drives of a new cluster may take to open once all its nodes are here
)

// openAlone opens the control plane of a process that is no node of a cluster.
func (s *stack) openAlone(ctx context.Context, cfg *config.Server, want erasure.Profile, log *slog.Logger) error {
	if id := s.set.Node(); !id.IsZero() {
		return errs.E("server", errs.Invalid, fmt.Sprintf("the drives belong to node %s of a cluster: start it with --node-address, as before", id))
	}
	s.fleet = node.NewFleet(node.FleetConfig{Local: s.set})
	return s.openControl(ctx, cfg, want, log)
}

// openCluster brings this process into its cluster.
func (s *stack) openCluster(ctx context.Context, cfg *config.Server, ln net.Listener, want erasure.Profile, log *slog.Logger) error {
	self := s.set.Node()
	if self.IsZero() {
		self = disk.NewID()
	}
	m := newMesh(cfg, ln, self, s.waits, func() int { return int(s.inFlight.Load()) }, log.With("node", self.String()[:8]))
	s.mesh = m
	s.onClose(m.close)
	s.fleet = node.NewFleet(node.FleetConfig{Self: self, Local: s.set, Client: m.client})
	if s.set.Fresh() {
		return s.joinCluster(ctx, cfg, want, log)
	}
	if err := s.openCopies(ctx, m, log); err != nil {
		return err
	}
	st := s.control.State()
	switch raw, _ := st.Trust(); {
	case raw != nil:
		t, err := trust.Decode(raw)
		if err != nil {
			return err
		}
		log.Info("this node starts again", "node", self, "cluster", disk.ID(t.Cluster()))
		if err := m.begin(t, nil, gossipOf(st), s.tags(), s.set.Shards); err != nil {
			return err
		}
		if err := s.set.SetNode(self); err != nil {
			return err
		}
		noteLate(cfg, disk.ID(t.Cluster()), log)
	case !st.Initialized() && !s.set.Forming():
		// Its copies are not there yet, because joining was cut short, or not there any more.
		if len(cfg.Join) == 0 {
			return errors.Join(errNoCopy(), errs.E("server", errs.Invalid, "or let the node join again, with --join"))
		}
		if err := s.enter(ctx, cfg, log); err != nil {
			return err
		}
	case len(cfg.Join) > 0:
		return errs.E("server", errs.Invalid, "these drives are a store of their own: it cannot join another one; --join wants empty directories")
	default:
		if err := s.found(ctx, cfg, want, log); err != nil {
			return err
		}
	}
	return s.goOn(ctx, cfg, want, log)
}

// joinCluster brings empty directories, or none, into the cluster of --join.
func (s *stack) joinCluster(ctx context.Context, cfg *config.Server, want erasure.Profile, log *slog.Logger) error {
	grant, err := s.mesh.join(ctx)
	if err != nil {
		return err
	}
	if err := s.admitted(grant); err != nil {
		return err
	}
	if err := s.openCopies(ctx, s.mesh, log); err != nil {
		return err
	}
	if err := s.becomeKnown(ctx, cfg, log); err != nil {
		return err
	}
	return s.goOn(ctx, cfg, want, log)
}

// enter lets a node whose copies of the control plane are missing join again.
func (s *stack) enter(ctx context.Context, cfg *config.Server, log *slog.Logger) error {
	grant, err := s.mesh.join(ctx)
	if err != nil {
		return err
	}
	if err := s.admitted(grant); err != nil {
		return err
	}
	return s.becomeKnown(ctx, cfg, log)
}

// admitted opens the ports of a process that was let in.
func (s *stack) admitted(grant *trust.Grant) error {
	if err := s.set.Enter(grant.State.Cluster(), s.mesh.self); err != nil {
		return err
	}
	return s.mesh.begin(grant.State, grant.Certificate, grant.Addresses, s.tags(), s.set.Shards)
}

// becomeKnown waits until the control plane knows this node, and this node the control plane, and gives the empty
// directories their places in it.
func (s *stack) becomeKnown(ctx context.Context, cfg *config.Server, log *slog.Logger) error {
	err := s.insist(ctx, log, "the control plane does not take this node yet; it is asked until it does", func() error {
		if err := s.control.PutNode(ctx, s.self(cfg)); err != nil {
			return err
		}
		return s.control.Refresh(ctx)
	})
	if err != nil {
		return err
	}
	st := s.control.State()
	for _, n := range st.Nodes() {
		if cfg.Role != config.GatewayRole && n.ID != s.mesh.self && n.Address == cfg.Advertise && len(st.DrivesOf(n.ID)) > 0 && s.set.Fresh() {
			if err := s.control.RemoveNode(ctx, s.mesh.self); err != nil {
				log.Debug("this node stays in the list of nodes", "err", err)
			}
			return errs.E("server", errs.Precondition, fmt.Sprintf("at %s was node %s, with %d drives, and all directories here are empty: are their disks mounted? "+
				"If its drives are lost, give the new node another --node-address", n.Address, nodeName(n), len(st.DrivesOf(n.ID))))
		}
	}
	return s.recruit(ctx, log)
}

// recruit makes the directories that are about to become drives of this node.
func (s *stack) recruit(ctx context.Context, log *slog.Logger) error {
	paths, err := s.set.Unfinished()
	if err != nil || len(paths) == 0 {
		return err
	}
	s.watching.Store(s.control) // it is told of each drive that is opened
	return s.insist(ctx, log, "the control plane gives the new drives no numbers yet; it is asked until it does", func() error {
		return s.set.Recruit(ctx, paths, s.number)
	})
}

// insist calls f until it succeeds, or fails for another reason than that nobody answers.
func (s *stack) insist(ctx context.Context, log *slog.Logger, waiting string, f func() error) error {
	for last := ""; ; {
		err := f()
		switch errs.KindOf(err) {
		case errs.Unavailable, errs.Timeout, errs.Unknown:
		default:
			return err
		}
		if text := errs.Public(err); text != last {
			log.Warn(waiting, "err", err)
			s.waits(waiting + ": " + text)
			last = text
		}
		if !pause(ctx, askEvery) {
			return errs.Wrap("server", ctx.Err())
		}
	}
}

// found makes this process the first node of a cluster.
func (s *stack) found(ctx context.Context, cfg *config.Server, want erasure.Profile, log *slog.Logger) error {
	m := s.mesh
	if cfg.Role == config.GatewayRole {
		return errs.E("server", errs.Invalid, "a gateway makes no cluster")
	}
	if cfg.SecretFile == "" {
		return errs.E("server", errs.Invalid, "to make a cluster --cluster-secret-file is needed: a file that is not there is made, with a new secret; to join one --join is needed as well")
	}
	secret, err := m.readSecret()
	if err == nil && secret.IsZero() {
		secret, err = m.makeSecret()
	}
	if err != nil {
		return err
	}
	if err := noteCluster(cfg, s.set.Cluster(), log); err != nil {
		return err
	}
	if !s.control.State().Initialized() {
		if err := s.form(ctx, cfg, want); err != nil {
			return err
		}
	}
	if s.set.Forming() {
		if err := s.set.MarkFormed(ctx); err != nil {
			return err
		}
	}
	if err := s.set.SetNode(m.self); err != nil {
		return err
	}
	t, err := trust.New(s.set.Cluster(), secret, time.Now())
	if err != nil {
		return err
	}
	if err := persist(ctx, func() error { return s.control.BecomeCluster(ctx, s.self(cfg)) }); err != nil {
		return err
	}
	if cfg.Expect > 0 {
		if err := persist(ctx, func() error { return s.expect(ctx, cfg) }); err != nil {
			return err
		}
	}
	// The commit point: from here on the cluster can be joined.
	if err := persist(ctx, func() error { return s.control.PutTrust(ctx, t.AppendTo(nil), 0) }); err != nil {
		return err
	}
	log.Info("the cluster was made; other nodes join with", "join", cfg.Advertise, "cluster", s.set.Cluster())
	return m.begin(t, nil, nil, s.tags(), s.set.Shards)
}

// expect has the new cluster wait for nodes, as the configuration asks.
func (s *stack) expect(ctx context.Context, cfg *config.Server) error {
	e := cluster.Expectation{Nodes: uint32(cfg.Expect)}
	var err error
	if cfg.Profile != "" {
		if e.Profile, err = parseProfile(cfg.Profile); err != nil {
			return err
		}
	}
	if cfg.RRSProfile != "" {
		if e.Reduced, err = parseProfile(cfg.RRSProfile); err != nil {
			return err
		}
	}
	return s.control.Expect(ctx, e)
}

// nodesWithDrives names the nodes that are alive and have drives in the layout.
func (s *stack) nodesWithDrives() (names []string) {
	if s.mesh == nil {
		return nil
	}
	st := s.control.State()
	for _, n := range st.Nodes() {
		if len(st.DrivesOf(n.ID)) > 0 && s.alive(n.ID) {
			names = append(names, nodeName(n))
		}
	}
	return names
}

// layOut lays a new cluster out once the nodes that it waits for are here. The leader's process does it.
func (s *stack) layOut(ctx context.Context, cfg *config.Server, log *slog.Logger) error {
	st := s.control.State()
	e := st.Expects()
	if e.Nodes > 0 && cfg.Expect > 0 && e.Nodes != uint32(cfg.Expect) {
		return s.expect(ctx, cfg) // the operator has thought better of it
	}
	if e.Nodes == 0 || !s.control.Leads() || len(s.nodesWithDrives()) < int(e.Nodes) {
		return nil
	}
	drives := st.Layout().Drives()
	// Drives have their numbers a moment before they are open. One that does not open holds up nobody for long.
	if slices.ContainsFunc(drives, func(d placement.Drive) bool { return !s.here(d.Num) }) {
		if s.gathered.IsZero() {
			s.gathered = time.Now()
		}
		if time.Since(s.gathered) < openWithin {
			return nil
		}
	}
	p := e.Profile
	if !p.Valid() {
		var err error
		if p, err = placement.DefaultProfileOf(drives); err != nil {
			return err
		}
	}
	l, err := placement.NewLayout(drives, p, st.Layout().Bits())
	if err == nil && e.Reduced.Valid() {
		l, err = l.WithReduced(e.Reduced)
	}
	if err != nil {
		return err
	}
	if err := s.control.LayOut(ctx, l, st.Layout().Number()); err != nil {
		return err
	}
	log.Info("the new cluster was laid out", "nodes", len(s.nodesWithDrives()), "drives", len(drives), "profile", p.String())
	return nil
}

// goOn takes the control plane into use, and looks after the cluster from then on.
func (s *stack) goOn(ctx context.Context, cfg *config.Server, want erasure.Profile, log *slog.Logger) error {
	if err := s.useControl(cfg, want, log); err != nil {
		return err
	}
	s.locate()
	m := s.mesh
	m.running.Go(func() { s.watch(m.ctx, log) })
	m.running.Go(func() { s.tell(m.ctx, log) })
	m.running.Go(func() { s.tend(m.ctx, cfg, log) })
	return nil
}

// self is this node as the control plane keeps it.
func (s *stack) self(cfg *config.Server) cluster.Node {
	n := cluster.Node{ID: s.mesh.self, Name: cfg.Name, Zone: cfg.Zone, Address: cfg.Advertise, Gossip: cfg.GossipAdvertised()}
	if n.Zone == "" && s.control != nil {
		is, _ := s.control.State().Node(n.ID) // it is not named at each start
		n.Zone = is.Zone
	}
	if cfg.Role != config.NodeRole {
		n.Roles |= cluster.RoleGateway
		n.S3 = s3Address(cfg)
	}
	if cfg.Role != config.GatewayRole {
		n.Roles |= cluster.RoleStorage
	}
	return n
}

// s3Address is where clients on other machines reach S3, as far as this process can tell.
func s3Address(cfg *config.Server) string {
	host, port, _ := net.SplitHostPort(cfg.Address)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host, _, _ = net.SplitHostPort(cfg.Advertise)
	}
	return net.JoinHostPort(host, port)
}

// tags are what this process says of itself.
func (s *stack) tags() gossip.Tags {
	m := s.mesh
	n := s.self(m.cfg)
	t := gossip.Tags{Cluster: s.set.Cluster(), Node: n.ID, Name: n.Name, Zone: n.Zone, Gateway: n.Roles&cluster.RoleGateway != 0, Storage: n.Roles&cluster.RoleStorage != 0,
		Address: n.Address, S3: n.S3, Drives: []uint16{}, Protocol: m.protocol(),
		Format: gossip.Versions{Oldest: 1, Newest: disk.FormatVersion}}
	for _, d := range s.set.Open() {
		if _, ok := s.set.Local(d.Num()); ok {
			t.Drives = append(t.Drives, d.Num())
		}
	}
	if s.control != nil && s.layout() != nil {
		t.Layout = s.layout().Number()
	}
	if manager := m.manager.Load(); manager != nil {
		t.Trust = manager.State().Number()
	}
	return t
}

// gossipOf are the addresses of gossip that a state knows.
func gossipOf(st *cluster.State) (list []string) {
	for _, n := range st.Nodes() {
		list = append(list, n.Gossip)
	}
	return list
}

// locate tells the fleet where the drives are. Only what a node says of its own drives makes one known to be gone,
// or that it is retired.
func (s *stack) locate() {
	st, view := s.control.State(), s.mesh.group.Load().View()
	where := map[uint16]node.NodeOfDrive{}
	for _, d := range st.Layout().Drives() {
		is, ok := view.Member(d.Node)
		gone := st.Retired(d.Num) || ok && is.State == gossip.Alive && is.Tags.Drives != nil && !slices.Contains(is.Tags.Drives, d.Num)
		where[d.Num] = node.NodeOfDrive{Node: d.Node, Gone: gone}
	}
	s.fleet.SetNodes(where)
}

// here reports whether a drive serves, as far as is known.
func (s *stack) here(num uint16) bool {
	if _, ok := s.set.Local(num); ok || s.mesh == nil {
		return ok
	}
	n, ok := s.fleet.Nodes()[num]
	return ok && !n.Gone && s.alive(n.Node)
}

// alive reports whether gossip believes that a node is.
func (s *stack) alive(id disk.ID) bool {
	is, ok := s.mesh.group.Load().View().Member(id)
	return ok && is.State == gossip.Alive
}

// hereDrives are the drives as repair wants them: those of a node that does not answer are away, and are
// compared with the others when it is back.
type hereDrives struct{ s *stack }

// Shards implements heal.Drives.
func (h hereDrives) Shards(num uint16) (node.Drive, bool) {
	if !h.s.here(num) {
		return nil, false
	}
	return h.s.fleet.Shards(num)
}

// Replica implements metadata.Replicas: who is known to be away is not waited for while partitions stand still.
func (h hereDrives) Replica(num uint16) (metadata.Replica, bool) {
	if d, ok := h.Shards(num); ok {
		return d, true
	}
	return nil, false // and no interface that holds a nil pointer
}

// healDrives are the drives as repair wants them.
func (s *stack) healDrives() heal.Drives {
	if s.mesh == nil {
		return s.set
	}
	return hereDrives{s}
}

// watch follows what gossip and the control plane say until ctx ends.
func (s *stack) watch(ctx context.Context, log *slog.Logger) {
	m := s.mesh
	seen, stop := m.group.Load().Watch()
	defer stop()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var before map[uint16]bool
	var missing []string
	led := false
	for {
		changed := s.control.Changed()
		m.follow(s.control.State())
		s.locate()
		now := map[uint16]bool{}
		for num := range s.fleet.Nodes() {
			now[num] = s.here(num)
		}
		if h := s.healer.Load(); h != nil {
			for num, is := range now {
				if was, known := before[num]; is && known && !was {
					h.Returned(num)
				}
			}
			before = now
			leads := s.control.Leads()
			if leads && !led {
				h.Lead()
			}
			led = leads
		}
		if list := s.missing(); !slices.Equal(list, missing) {
			if missing = list; len(list) > 0 {
				log.Warn("the cluster is not complete; it serves what it can, and waits for the rest", "missing", strings.Join(list, "; "))
			} else {
				log.Info("the cluster is complete")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-seen:
		case <-tick.C:
		}
	}
}

// tell has gossip say what this node is now, until ctx ends. Telling may take seconds.
func (s *stack) tell(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var told gossip.Tags
	for {
		if t := s.tags(); !sameTags(t, told) {
			if err := s.mesh.group.Load().UpdateTags(t); err == nil || errs.Is(err, errs.Timeout) { // it spreads later
				told = t
			} else if ctx.Err() == nil {
				log.Warn("what this node says of itself could not be told", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func sameTags(a, b gossip.Tags) bool {
	return slices.Equal(a.Drives, b.Drives) && a.Layout == b.Layout && a.Trust == b.Trust
}

// tend does what is to be done now and then, until ctx ends: this node is made known as it is now, new drives are
// completed, keys are rotated.
func (s *stack) tend(ctx context.Context, cfg *config.Server, log *slog.Logger) {
	m := s.mesh
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	tendAt := time.Now()
	rejoinAt := time.Now().Add(rejoinEvery)
	known, told := false, false
	for {
		if !known {
			want := s.self(cfg)
			if is, ok := s.control.State().Node(m.self); ok {
				want.Since = is.Since
				if is.ZoneSet {
					if want.Zone != is.Zone && !told {
						told = true
						log.Warn("an operator has set the zone of this node, and that holds: --zone is of no account", "zone", is.Zone, "given", want.Zone)
					}
					want.Zone, want.ZoneSet = is.Zone, true
				}
				known = is == want
			}
			if !known {
				try, cancel := context.WithTimeout(ctx, tellTimeout)
				if err := s.control.PutNode(try, s.self(cfg)); err != nil {
					log.Debug("the control plane could not be told of this node yet", "err", err)
				}
				cancel()
			}
		}
		if paths, err := s.set.Unfinished(); err == nil && len(paths) > 0 && known {
			if err := s.recruit(ctx, log); err != nil && ctx.Err() == nil {
				log.Error("new drives could not be completed", "paths", paths, "err", err)
			}
		}
		if err := s.layOut(ctx, cfg, log); err != nil && !errs.Is(err, errs.Stale) && ctx.Err() == nil {
			log.Warn("the new cluster is not laid out yet", "err", err)
		}
		if time.Now().After(tendAt) {
			tendAt = time.Now().Add(tendEvery)
			if s.control.Leads() {
				m.rotate(ctx, s.control.Control)
				s.forgetLeft(ctx, log)
			}
		}
		if time.Now().After(rejoinAt) {
			m.rejoin(ctx)
			rejoinAt = time.Now().Add(rejoinEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// forgetLeft forgets gateways that said that they go: at their next start they have another id.
func (s *stack) forgetLeft(ctx context.Context, log *slog.Logger) {
	st, view := s.control.State(), s.mesh.group.Load().View()
	for _, n := range st.Nodes() {
		is, ok := view.Member(n.ID)
		if !ok || is.State != gossip.Left || n.Roles&cluster.RoleStorage != 0 || len(st.DrivesOf(n.ID)) > 0 {
			continue
		}
		if err := s.control.RemoveNode(ctx, n.ID); err != nil {
			log.Debug("a gateway that left is not forgotten yet", "node", n.ID, "err", err)
			return
		}
		log.Info("a gateway that left is forgotten", "node", nodeName(n))
	}
}

// missing says in words which nodes and drives of the cluster are not here.
func (s *stack) missing() (list []string) {
	if s.mesh == nil {
		return nil
	}
	st := s.control.State()
	away := map[disk.ID][]uint16{}
	for _, d := range st.Layout().Drives() {
		if !s.here(d.Num) && !st.Retired(d.Num) {
			away[d.Node] = append(away[d.Node], d.Num)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(away), func(a, b disk.ID) int { return slices.Compare(a[:], b[:]) }) {
		n, ok := st.Node(id)
		if !ok {
			n.ID = id
		}
		what := "node " + nodeName(n)
		if id == s.mesh.self || s.alive(id) {
			what = "of node " + nodeName(n)
		}
		list = append(list, fmt.Sprintf("%s, %s", what, numbered(away[id])))
	}
	return list
}

// changes are the moves of the open plan that were begun and not published.
func (s *stack) changes() console.Changes {
	st := s.control.State()
	c := console.Changes{Retired: st.Retired}
	if p, open := st.Plan(); open {
		for _, m := range p.Moves {
			if m.State == cluster.MoveBegun {
				c.Moves = append(c.Moves, m.Move)
			}
		}
	}
	return c
}

// shareKeys keeps root keys that were given in the control plane of a cluster, for gateways and nodes that are
// given none.
func (s *stack) shareKeys(ctx context.Context, given rootkeys.Keys, log *slog.Logger) error {
	if s.mesh == nil {
		return nil
	}
	have, err := s.control.RootKeys(ctx)
	if err != nil || have == given {
		return err
	}
	if !have.IsZero() {
		log.Warn("the root keys that were given are not those of the cluster: they hold for this process only", "given", given.Access, "cluster", have.Access)
		return nil
	}
	return s.control.KeepRootKeys(ctx, given)
}

// nodeStatuses tells of all nodes. Others are asked for their drives, unless ctx is over already.
func (s *stack) nodeStatuses(ctx context.Context) []console.NodeStatus {
	st, view, leader := s.control.State(), s.mesh.group.Load().View(), s.control.Leader()
	list := make([]console.NodeStatus, len(st.Nodes()))
	var asking sync.WaitGroup
	for i, n := range st.Nodes() {
		x := &list[i]
		*x = console.NodeStatus{ID: n.ID.String(), Name: n.Name, Zone: n.Zone, Roles: []string{}, Address: n.Address, S3: n.S3, State: "unknown",
			Self: n.ID == s.mesh.self, Leader: n.ID == leader, Members: []uint16{}, Away: []uint16{}}
		if n.Name == "" {
			x.Name = nodeName(n)
		}
		if n.Roles&cluster.RoleGateway != 0 {
			x.Roles = append(x.Roles, "gateway")
		}
		if n.Roles&cluster.RoleStorage != 0 {
			x.Roles = append(x.Roles, "storage")
		}
		if is, ok := view.Member(n.ID); ok {
			since := is.Since.UTC()
			x.State, x.Since, x.Flapping = is.State.String(), &since, is.Flapping
		}
		for _, d := range st.DrivesOf(n.ID) {
			x.Members = append(x.Members, d.Num)
			if !s.here(d.Num) && !st.Retired(d.Num) {
				x.Away = append(x.Away, d.Num)
			}
		}
		if x.Self || n.Roles&cluster.RoleStorage == 0 || x.State != gossip.Alive.String() || ctx.Err() != nil {
			continue
		}
		asking.Go(func() {
			raw, err := s.mesh.client(n.ID).Call(ctx, mDrives, nil)
			if err == nil {
				err = json.Unmarshal(raw, &x.Drives)
			}
			if err != nil {
				x.Drives = nil // the list says that they do not answer
			}
		})
	}
	asking.Wait()
	return list
}
