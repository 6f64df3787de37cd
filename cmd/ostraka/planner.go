package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/cluster/gossip"
	"github.com/ostraka/ostraka/cluster/trust"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// planner implements console.Planner: it plans layouts, and has them applied.
type planner struct {
	s   *stack
	log *slog.Logger
}

var (
	_ console.Planner  = planner{}
	_ heal.MoveControl = planMover{}
)

// usageWithin bounds the question how much the drives hold.
const usageWithin = 5 * time.Second

// plan computes the layout that q asks for.
func (p planner) plan(ctx context.Context, q console.PlanRequest) (*placement.Plan, *placement.Layout, error) {
	const op = "server.Plan"
	st := p.s.control.State()
	l := st.Layout()
	if n := st.Expects().Nodes; n > 0 {
		return nil, nil, errs.E(op, errs.Precondition, fmt.Sprintf("the new cluster waits for %d nodes, and is laid out then", n))
	}
	if len(st.Replacements()) > 0 {
		return nil, nil, errs.E(op, errs.Precondition, "drives are being replaced: wait for that first")
	}
	leaving := map[uint16]bool{}
	for _, num := range q.DrainDrives {
		if _, ok := l.Drive(num); !ok {
			return nil, nil, errs.E(op, errs.NotFound, fmt.Sprintf("drive %d is not in the layout", num))
		}
		leaving[num] = true
	}
	for _, num := range st.GivenUp() {
		leaving[num] = true
	}
	for _, name := range q.DrainNodes {
		n, err := nodeNamed(st, name)
		if err != nil {
			return nil, nil, err
		}
		for _, d := range st.DrivesOf(n.ID) {
			leaving[d.Num] = true
		}
	}
	goal := placement.Goal{Average: p.average(ctx, l)}
	if q.Profile != "" {
		var err error
		if goal.Profile, err = parseProfile(q.Profile); err != nil {
			return nil, nil, err
		}
		if err := p.allKnow("partitions of different width", nil); err != nil {
			return nil, nil, err
		}
	}
	for _, d := range l.Drives() {
		goal.Drives = append(goal.Drives, placement.GoalDrive{Drive: d, Leaving: leaving[d.Num]})
	}
	plan, err := placement.NewPlan(l, goal)
	if err != nil { // what the planner says is about what was asked for
		err = &errs.Error{Op: op, Kind: errs.KindOf(err), Msg: "there is no such layout: " + errors.Unwrap(err).Error(), Err: err}
	}
	return plan, l, err
}

// changesSince is the version of the protocol between nodes since which builds know layouts that were widened, drives that
// were given up, and zones that were set: one that does not would pass over the change, and differ from the others for good.
const changesSince = 2

// allKnow returns an error of kind Precondition if a node runs a build that does not know such changes, or may, beside
// nodes of which no drive comes back: those that are retired, and dead ones.
func (p planner) allKnow(what string, dead []uint16) error {
	if p.s.mesh == nil {
		return nil
	}
	st := p.s.control.State()
	var never []disk.ID
	for _, n := range st.Nodes() {
		if !p.s.alive(n.ID) && !slices.ContainsFunc(st.DrivesOf(n.ID), func(d placement.Drive) bool { return !st.Retired(d.Num) && !slices.Contains(dead, d.Num) }) {
			never = append(never, n.ID)
		}
	}
	return mayMiss(st.Nodes(), p.s.mesh.group.Load().View(), what, never)
}

// mayMiss is allKnow of nodes. One with drives that is away counts by what it said last: it may be a voter, and finds
// the change in its log when it comes back. One without drives begins with what the others have then.
func mayMiss(nodes []cluster.Node, view *gossip.View, what string, never []disk.ID) error {
	const op = "server.Plan"
	for _, is := range view.Members {
		n := slices.IndexFunc(nodes, func(n cluster.Node) bool { return n.ID == is.Tags.Node })
		counts := is.State == gossip.Alive || n >= 0 && nodes[n].Roles&cluster.RoleStorage != 0
		if counts && is.Tags.Protocol.Newest < changesSince && !slices.Contains(never, disk.ID(is.Tags.Node)) {
			return errs.E(op, errs.Precondition, fmt.Sprintf("node %s runs a build that does not know %s: upgrade all nodes first", is.Tags.Name, what))
		}
	}
	for _, n := range nodes {
		if _, ok := view.Member(n.ID); !ok && n.Roles&cluster.RoleStorage != 0 && !slices.Contains(never, n.ID) {
			return errs.E(op, errs.Precondition, fmt.Sprintf("node %s is away, and it is not known here whether its build knows %s: start it, or give it up", nodeName(n), what))
		}
	}
	return nil
}

// nodeNamed finds a node by its name, which only one may have, or its id.
func nodeNamed(st *cluster.State, name string) (cluster.Node, error) {
	var of []cluster.Node
	for _, n := range st.Nodes() {
		if n.Name == name || n.ID.String() == name {
			of = append(of, n)
		}
	}
	if len(of) != 1 {
		return cluster.Node{}, errs.E("server.Node", errs.NotFound, fmt.Sprintf("%d nodes have the name or id %q; `ostraka admin node list` shows them", len(of), name))
	}
	return of[0], nil
}

// RemoveNode implements console.Planner.
func (p planner) RemoveNode(ctx context.Context, name string) (warning string, err error) {
	n, err := nodeNamed(p.s.control.State(), name)
	if err != nil {
		return "", err
	}
	if p.s.alive(n.ID) {
		return "", errs.E("server.RemoveNode", errs.Precondition, "the node is alive: stop it first")
	}
	if list := p.s.control.State().DrivesOf(n.ID); len(list) > 0 {
		return "", errs.E("server.RemoveNode", errs.Precondition, fmt.Sprintf("the node has %d drives in the layout: drain it first, with --dead if they never come back", len(list)))
	}
	// Before it is forgotten: one that is not listed any more could not be named again.
	if p.s.mesh != nil {
		warning, err = p.revoke(ctx, n.ID, trustIn{p.s.control})
	}
	if err != nil {
		return "", err
	}
	return warning, p.s.control.RemoveNode(ctx, n.ID)
}

// trustKeeper keeps what the cluster has for its certificates.
type trustKeeper interface {
	Trust() (b []byte, revision uint64)
	PutTrust(ctx context.Context, b []byte, revision uint64) error
	Refresh(ctx context.Context) error
}

// trustIn is the control plane as a trustKeeper.
type trustIn struct{ *control }

func (c trustIn) Trust() (b []byte, revision uint64) { return c.State().Trust() }

// revoke makes what a node's certificates prove worthless in all processes, which cut the connections that it has. The
// gossip key, which it knows as well, is replaced step by step (mesh.rotate). Where no more can be revoked, that is the warning.
func (p planner) revoke(ctx context.Context, id disk.ID, keeper trustKeeper) (warning string, err error) {
	err = persist(ctx, func() error {
		for {
			raw, revision := keeper.Trust()
			t, err := trust.Decode(raw)
			if err != nil {
				return err
			}
			if t.Revoked(id) {
				return nil
			}
			next, err := t.Revoke(id, time.Now())
			if errs.Is(err, errs.Full) {
				p.log.Warn("a node is removed, and its certificate stays good until it runs out", "node", id, "err", err)
				warning = "its certificate stays good until it runs out, as no more can be revoked: whoever has the directories of the node can take part in the cluster for so long (" + errs.Public(err) + ")"
				return nil
			}
			if err != nil {
				return err
			}
			if err = keeper.PutTrust(ctx, next.AppendTo(nil), revision); !errs.Is(err, errs.Stale) {
				return err
			}
			if err := keeper.Refresh(ctx); err != nil { // somebody was faster: look again
				return err
			}
		}
	})
	return warning, err
}

// SetZone implements console.Planner.
func (p planner) SetZone(ctx context.Context, name, zone string) error {
	n, err := nodeNamed(p.s.control.State(), name)
	if err != nil {
		return err
	}
	if p.s.mesh == nil {
		return errs.E("server.SetZone", errs.Unsupported, "this store is one process, and has no zones")
	}
	if err := p.allKnow("zones that are set", nil); err != nil {
		return err
	}
	return persist(ctx, func() error { return p.s.control.SetZone(ctx, n.ID, zone) })
}

// average is what one member of one partition holds, in bytes, as far as drives answer.
func (p planner) average(ctx context.Context, l *placement.Layout) uint64 {
	ctx, cancel := context.WithTimeout(ctx, usageWithin)
	defer cancel()
	type answer struct {
		bytes  int64
		places int
	}
	answers := make(chan answer)
	for _, d := range l.Drives() {
		go func() { // ends with ctx
			var a answer
			if drive, ok := p.s.fleet.Shards(d.Num); ok {
				if _, bytes, err := drive.ShardUsage(ctx); err == nil {
					a = answer{bytes, len(l.PartitionsOf(d.Num))}
				}
			}
			answers <- a
		}()
	}
	var bytes, places uint64
	for range l.Drives() {
		a := <-answers
		bytes, places = bytes+uint64(a.bytes), places+uint64(a.places)
	}
	return bytes / max(places, 1)
}

// planNumber names a plan by what it does: who passes what to whom, in this order, how wide partitions become, and who leaves.
func planNumber(plan *placement.Plan) string {
	h := sha256.New()
	fmt.Fprintln(h, plan.Layout, plan.Profiles.Standard, plan.Profiles.Reduced, plan.Leaving)
	for _, m := range plan.Moves {
		fmt.Fprintln(h, m.Partition, m.Position, m.From, m.To)
	}
	return console.PlanNumber(plan.Layout, h.Sum(nil))
}

// sameAsShown refuses a plan that is not the one which q names: the layout has changed, or it was asked for otherwise.
func sameAsShown(plan *placement.Plan, q console.ApplyRequest) error {
	const op = "server.Apply"
	if plan.Layout != q.Layout {
		return errs.E(op, errs.Precondition, fmt.Sprintf("the plan was for layout %d, and the layout is %d now: plan again", q.Layout, plan.Layout))
	}
	if number := planNumber(plan); q.Number != "" && q.Number != number {
		return errs.E(op, errs.Precondition, fmt.Sprintf("what is asked for is plan %s now, and not %s: say what that was made for, with all of its flags, or plan again", number, q.Number))
	}
	return nil
}

// report says a plan in the words of the console.
func (p planner) report(plan *placement.Plan, l *placement.Layout) console.PlanReport {
	r := console.PlanReport{Layout: plan.Layout, Number: planNumber(plan), Moves: len(plan.Moves), Least: plan.Least, Widened: plan.Widened, Bytes: plan.Bytes, Reasons: plan.Reasons,
		UsableBefore: plan.UsableBefore, UsableAfter: plan.UsableAfter, Limit: plan.Limit,
		Before: exposure(plan.Before), After: exposure(plan.After), Leaving: plan.Leaving}
	if plan.Profiles != (placement.Profiles{}) {
		r.Profile = plan.Profiles.Standard.String()
	}
	st := p.s.control.State()
	for _, c := range plan.Changes {
		d, _ := l.Drive(c.Drive)
		n, _ := st.Node(d.Node)
		r.Drives = append(r.Drives, console.DriveChange{Drive: c.Drive, Node: n.Name, Zone: d.Zone, Capacity: d.Capacity, Before: c.Before, After: c.After,
			BytesIn: c.BytesIn, BytesOut: c.BytesOut, Leaving: slices.Contains(plan.Leaving, c.Drive)})
	}
	for i := range plan.After.Domains {
		a := plan.After.Domains[i]
		name := "zone " + a.Zone
		if !a.IsZone {
			n, _ := st.Node(a.Node)
			n.ID = a.Node
			name = "node " + nodeName(n)
		}
		r.Domains = append(r.Domains, console.DomainLoss{Name: name, Most: a.Most, NoWrites: a.NoWrites, Unreadable: a.Unreadable})
	}
	return r
}

func exposure(e placement.Exposure) console.Exposure {
	return console.Exposure{Drives: e.Drives, Nodes: e.Nodes, Zones: e.Zones}
}

// Plan implements console.Planner.
func (p planner) Plan(ctx context.Context, q console.PlanRequest) (console.PlanReport, error) {
	plan, l, err := p.plan(ctx, q)
	if err != nil {
		return console.PlanReport{}, err
	}
	return p.report(plan, l), nil
}

// Apply implements console.Planner. The same layout and goal give the same plan, so that its number and what it was
// asked for are all that has to be said again.
func (p planner) Apply(ctx context.Context, q console.ApplyRequest) (console.PlanReport, error) {
	const op = "server.Apply"
	plan, l, err := p.plan(ctx, q.PlanRequest)
	if err != nil {
		return console.PlanReport{}, err
	}
	if err := sameAsShown(plan, q); err != nil {
		return console.PlanReport{}, err
	}
	r := p.report(plan, l)
	if r.ID, err = p.s.control.ApplyPlan(ctx, plan.Layout, plan.Moves, plan.Leaving, plan.Profiles); err != nil {
		if errs.Is(err, errs.Stale) {
			err = errs.As(op, errs.Precondition, err)
		}
		return console.PlanReport{}, err
	}
	p.log.Warn("a plan is applied", "plan", r.ID, "number", r.Number, "moves", len(plan.Moves), "leaving", plan.Leaving, "profile", r.Profile)
	p.s.healer.Load().Trigger()
	return r, nil
}

// Revert implements console.Planner.
func (p planner) Revert(ctx context.Context, id uint64) error {
	err := p.s.control.RevertPlan(ctx, id)
	if err == nil {
		p.log.Warn("a plan is reverted: what was not begun is dropped", "plan", id)
	}
	return err
}

// Layout implements console.Planner.
func (p planner) Layout() console.LayoutReport {
	st := p.s.control.State()
	l := st.Layout()
	r := console.LayoutReport{Number: l.Number(), Profile: l.Profile().String(), Partitions: l.Partitions(), Narrow: l.Narrow(), Expects: int(st.Expects().Nodes), History: []console.PlanRecord{}}
	places := map[uint16]int{}
	for i := range l.Partitions() {
		for _, num := range l.Group(i).Drives {
			places[num]++
		}
	}
	for _, d := range l.Drives() {
		n, _ := st.Node(d.Node)
		r.Drives = append(r.Drives, console.LayoutDrive{Drive: d.Num, Node: n.Name, Zone: d.Zone, Capacity: d.Capacity, Places: places[d.Num],
			GivenUp: slices.Contains(st.GivenUp(), d.Num)})
	}
	if open, ok := st.Plan(); ok {
		x := &console.OpenPlan{ID: open.ID, Layout: open.Layout, Begun: time.Unix(0, open.Begun).UTC(), Total: open.Total, Done: open.Done, Reverted: open.Reverted, Leaving: open.Leaving}
		for _, m := range open.Moves {
			switch m.State {
			case cluster.MovePlanned:
				x.Planned++
			default:
				x.Moving++
			}
		}
		r.Plan = x
	}
	for _, e := range st.EndedPlans() {
		r.History = append(r.History, console.PlanRecord{ID: e.ID, Layout: e.Layout, Begun: time.Unix(0, e.Begun).UTC(), Done: e.Done, Reverted: e.Reverted})
	}
	return r
}

// AddDrive implements console.Planner: an empty directory of this process becomes a drive, a member of nothing until a
// plan is applied.
func (p planner) AddDrive(ctx context.Context, path string, force bool) (uint16, error) {
	const op = "server.AddDrive"
	if p.s.mesh == nil {
		return 0, errs.E(op, errs.Unsupported, "this store is one process: start it with --node-address first, then it can grow")
	}
	st := p.s.control.State()
	places := func(num uint16) int { return len(st.Layout().PartitionsOf(num)) }
	if away := awayAt(path, st.DrivesOf(p.s.mesh.self), p.s.set.Status(), places, st.Retired); len(away) > 0 && !force {
		return 0, errs.E(op, errs.Precondition, fmt.Sprintf("%s away, and may have been at %s: `ostraka admin drive replace %s --old %d` gives a lost drive's place to it. "+
			"If it is one more drive, say force", areGiven(away), path, path, away[0]))
	}
	if err := p.s.set.Recruit(ctx, []string{path}, p.s.number); err != nil {
		return 0, err
	}
	for _, is := range p.s.set.Status() {
		if is.Path == path && is.Open {
			return is.Num, nil
		}
	}
	return 0, errs.E(op, errs.Drive, "the drive has a number, and could not be opened: see `ostraka admin drive list`")
}

// awayAt returns those of a node's own drives that are away and may have been at a path of it: they serve at none of its
// paths, and no other is known as theirs. One without places has nothing to lose; it may be the very one whose addition
// was broken off. One that is retired is seen to.
func awayAt(path string, own []placement.Drive, paths []node.PathStatus, places func(uint16) int, retired func(uint16) bool) (away []uint16) {
	for _, d := range own {
		known := slices.ContainsFunc(paths, func(is node.PathStatus) bool {
			return is.Known && is.Num == d.Num && (is.Open || is.Path != path)
		})
		if !known && places(d.Num) > 0 && !retired(d.Num) {
			away = append(away, d.Num)
		}
	}
	return away
}

// number has the control plane give numbers to new drives of this node.
func (s *stack) number(ctx context.Context, list []node.Newcomer) ([]uint16, error) {
	var drives []cluster.NewDrive
	for _, n := range list {
		drives = append(drives, cluster.NewDrive{ID: n.Drive, Capacity: n.Capacity})
	}
	return s.control.AddDrives(ctx, s.mesh.self, drives)
}

// planMover is the control plane as moves need it. The process that leads the control plane is the mover; if two
// think that they are for a moment, the term of the plan lets only one of them go on.
type planMover struct{ *cluster.Control }

// Plan implements heal.MoveControl.
func (m planMover) Plan() (heal.MovePlan, bool) {
	st := m.State()
	p, open := st.Plan()
	if !open {
		return heal.MovePlan{}, false
	}
	out := heal.MovePlan{Elsewhere: !m.Leads(), ID: p.ID, Begun: time.Unix(0, p.Begun), Total: p.Total, Done: p.Done, Leaving: p.Leaving, Lost: func(num uint16) bool { return m.State().Retired(num) }}
	for _, x := range p.Moves {
		out.Moves = append(out.Moves, heal.PlannedMove{Move: x.Move, State: heal.MoveState(x.State), At: x.At})
	}
	return out, true
}

// PublishMoves implements heal.MoveControl.
func (m planMover) PublishMoves(ctx context.Context, id, term uint64, list []placement.Move, spreads []int, fences []metadata.Fence) error {
	var told []cluster.BucketFence
	for _, f := range fences {
		told = append(told, cluster.BucketFence{Bucket: f.Bucket, Epoch: f.Epoch})
	}
	return m.Control.PublishMoves(ctx, id, term, list, spreads, told)
}
