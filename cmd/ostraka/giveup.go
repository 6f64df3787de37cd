package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// Drives that died for good together with their node are given up: nobody of the same node replaces them. Their
// numbers are retired, which is the commit point, then a plan gives their places to others.

const (
	knockWithin = 2 * time.Second // that a node which seems dead may take to answer all the same
	giveUpTries = 5               // the plan that is carried out goes on meanwhile
)

// JudgeGiveUp implements console.Planner.
func (p planner) JudgeGiveUp(ctx context.Context, q console.GiveUpRequest) (*console.GiveUpAnswer, error) {
	const op = "server.GiveUp"
	st := p.s.control.State()
	a := &console.GiveUpAnswer{Drives: slices.Clone(q.Drives)}
	for _, name := range q.Nodes {
		n, err := nodeNamed(st, name)
		if err != nil {
			return nil, err
		}
		for _, d := range st.DrivesOf(n.ID) {
			a.Drives = append(a.Drives, d.Num)
		}
	}
	slices.Sort(a.Drives)
	a.Drives = slices.Compact(a.Drives)
	if len(a.Drives) == 0 {
		return nil, errs.E(op, errs.Invalid, "the node has no drives in the layout: `ostraka admin node remove` forgets it")
	}
	knocked := map[disk.ID]bool{}
	for _, num := range a.Drives {
		d, ok := st.Layout().Drive(num)
		if !ok {
			return nil, errs.E(op, errs.NotFound, fmt.Sprintf("drive %d is not in the layout", num))
		}
		node, _ := st.Node(d.Node)
		if p.s.here(num) {
			return nil, errs.E(op, errs.Precondition, fmt.Sprintf("drive %d of node %s serves: drain it while it does, or stop it for good first", num, nodeName(node)))
		}
		if p.s.mesh == nil || d.Node == p.s.mesh.self || p.s.alive(d.Node) || knocked[d.Node] {
			continue // the node itself says that it is not open
		}
		knocked[d.Node] = true
		knock, cancel := context.WithTimeout(ctx, knockWithin)
		_, err := p.s.mesh.Call(knock, d.Node, uint16(mDrives), nil)
		cancel()
		if err == nil {
			return nil, errs.E(op, errs.Precondition, fmt.Sprintf("node %s answers, although it seems to have failed: drain its drives while they serve, or stop it for good first", nodeName(node)))
		}
	}
	if err := p.allKnow("drives that are given up", a.Drives); err != nil {
		return nil, err
	}
	x := st.LossesOf(a.Drives)
	if n := len(x.Stuck); n > 0 {
		return nil, errs.E(op, errs.Precondition, fmt.Sprintf("in %d of %d partitions too few members would be left to tell what was decided, and nobody could take the places: "+
			"bring at least one of the drives back", n, st.Layout().Partitions()))
	}
	if n := len(x.Begun); n > 0 {
		return nil, errs.E(op, errs.Precondition, fmt.Sprintf("in %d of %d partitions a change of their members was begun that could not end in any way without one of the drives: "+
			"bring at least one of them back", n, st.Layout().Partitions()))
	}
	if n := len(x.Unreadable); n > 0 {
		a.Losses = append(a.Losses, fmt.Sprintf("in %d of %d partitions fewer shards are left than reading needs: what objects have there is lost", n, st.Layout().Partitions()))
	}
	if n := len(x.Earlier); n > 0 && !p.recoded(ctx, a.Drives) {
		a.Losses = append(a.Losses, fmt.Sprintf("in %d of %d partitions objects may be lost that have an earlier profile still, because they were not re-coded yet "+
			"(`ostraka admin heal status`)", n, st.Layout().Partitions()))
	}
	if n := len(x.Reduced); n > 0 {
		a.Losses = append(a.Losses, fmt.Sprintf("in %d of %d partitions objects of the class REDUCED_REDUNDANCY are lost, if there are any", n, st.Layout().Partitions()))
	}
	if n := len(x.Uncertain); n > 0 {
		a.Losses = append(a.Losses, fmt.Sprintf("in %d of %d partitions just enough members are left if the drives are really dead: one that still answers somewhere, cut off from the rest, "+
			"may tell clients there what was replaced since", n, st.Layout().Partitions()))
	}
	if _, err := st.Successors(a.Drives, p.s.here); err != nil {
		return nil, err
	}
	if open, is := st.Plan(); is && st.TakesOver(a.Drives) {
		return nil, errs.E(op, errs.Precondition, fmt.Sprintf("one of the drives was taking the place of another, and partitions may stand still for it: revert plan %d first, and wait until what it has begun is over", open.ID))
	} else if is {
		a.Problem = inTheWay(open.ID)
	} else if st.TakesOver(a.Drives) {
		a.Problem = "one of the drives was taking the place of another: the places that it has not taken are given to others first; once that is over, plan again"
	} else if plan, l, err := p.plan(ctx, console.PlanRequest{DrainDrives: a.Drives}); err != nil {
		a.Problem = errs.Public(err)
	} else {
		r := p.report(plan, l)
		a.Plan = &r
	}
	return a, nil
}

// inTheWay says what an open plan means to drives that are given up.
func inTheWay(plan uint64) string {
	return fmt.Sprintf("plan %d is carried out, and goes on without them; once it is over, plan again: their other places are given to others then", plan)
}

// GiveUp implements console.Planner.
func (p planner) GiveUp(ctx context.Context, drives []uint16) (*console.GiveUpAnswer, error) {
	var leaving []uint16
	if open, is := p.s.control.State().Plan(); is {
		leaving = open.Leaving
	}
	for try := 1; ; try++ {
		successors, err := p.s.control.State().Successors(drives, p.s.here)
		if err == nil {
			err = persist(ctx, func() error { return p.s.control.GiveUp(ctx, drives, successors) }) // the commit point
		}
		if err == nil {
			break
		}
		if !errs.Is(err, errs.Stale) || try == giveUpTries {
			return nil, err
		}
	}
	p.log.Warn("drives are given up: they never serve again", "drives", drives)
	a := &console.GiveUpAnswer{}
	if err := p.s.control.Refresh(ctx); err != nil {
		p.log.Debug("it is not known yet that the drives are given up", "err", err)
	}
	st := p.s.control.State()
	if open, is := st.Plan(); is {
		a.Problem = inTheWay(open.ID)
		stay := slices.DeleteFunc(slices.Clone(leaving), func(num uint16) bool { return slices.Contains(open.Leaving, num) || st.Retired(num) })
		if len(stay) > 0 {
			a.Problem += fmt.Sprintf("; %s cannot leave with it any more: drain again once it is over", numbered(stay))
		}
		p.s.healer.Load().Trigger()
		return a, nil
	}
	r, err := p.Apply(ctx, console.ApplyRequest{Layout: st.Layout().Number()})
	if err != nil {
		a.Problem = "the drives are given up; their places are not given to others yet: " + errs.Public(err) + "; plan again"
		return a, nil //nolint:nilerr // what was asked for is done
	}
	a.Plan = &r
	return a, nil
}

// GivenUp implements console.Planner.
func (p planner) GivenUp() []uint16 { return p.s.control.State().GivenUp() }

// abandon shows what giving drives up means, asks, and does it. As JSON it prints what was done, and nothing else.
func abandon(cmd *cobra.Command, p process, e *endpoint, q console.GiveUpRequest, asJSON, sure bool) error {
	if err := p.mayGoOn(sure, asJSON); err != nil {
		return err
	}
	q.DryRun = true
	var a console.GiveUpAnswer
	post := func() (raw []byte, err error) {
		a = console.GiveUpAnswer{}
		return e.send(cmd.Context(), request{method: http.MethodPost, path: "drives/give-up", body: q}, &a)
	}
	if _, err := post(); err != nil {
		return err
	}
	if !asJSON {
		if err := printGiveUp(p.stdout, &a); err != nil {
			return err
		}
	}
	if a.Refused != "" && !q.AcceptLoss {
		return errs.E("admin", errs.Precondition, "refused, because "+a.Refused+"; bring drives back, or say --accept-loss if nothing else helps")
	}
	if err := p.ask(sure); err != nil {
		return err
	}
	q.DryRun = false
	raw, err := post()
	if err != nil {
		return err
	}
	if asJSON {
		_, err = p.stdout.Write(raw)
		return err
	}
	if a.Plan == nil {
		_, err = fmt.Fprintf(p.stdout, "%s given up; %s\n", areGiven(a.Drives), a.Problem)
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "%s given up; plan %d is carried out; ostraka admin layout show tells how far it is\n", areGiven(a.Drives), a.Plan.ID)
	return err
}

func areGiven(drives []uint16) string {
	if len(drives) == 1 {
		return numbered(drives) + " is"
	}
	return numbered(drives) + " are"
}

func printGiveUp(w io.Writer, a *console.GiveUpAnswer) error {
	if a.Plan != nil {
		if err := printPlan(w, a.Plan); err != nil {
			return err
		}
	}
	t := table(w)
	fmt.Fprintf(t, "\nto be given up for good, and refused if they ever come back: %s; be sure that they are dead\n", numbered(a.Drives))
	for _, text := range a.Losses {
		fmt.Fprintf(t, "LOSS\t%s\n", text)
	}
	if a.Problem != "" {
		fmt.Fprintf(t, "for now\t%s\n", a.Problem)
	}
	return t.Flush()
}

// recoded reports whether all data are known to have the present profile, by the drives that are left.
func (p planner) recoded(ctx context.Context, gone []uint16) bool {
	h := p.s.healer.Load()
	return h != nil && h.Recoded(ctx, func(num uint16) bool { return slices.Contains(gone, num) })
}
