package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/internal/errs"
)

func nodeAdminCommand(p process, e *endpoint) *cobra.Command {
	return group("node", "Look at the nodes of the cluster, drain one, forget one", nodeListCommand(p, e), drainNodeCommand(p, e), removeNodeCommand(p, e), zoneCommand(p, e))
}

func nodeListCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the nodes, and what of the cluster does not serve",
		Long: `Lists the nodes of the cluster, and what does not serve now. A node is added by starting it with --join: see
ostraka server --help. Its drives have places once a plan is applied: ostraka admin layout plan.`,
		Args: exactly(0, "list takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, p, e, request{method: http.MethodGet, path: "nodes"}, asJSON, printNodes)
		},
	}, &asJSON)
}

func printNodes(w io.Writer, l *console.NodeList) error {
	t := table(w)
	if len(l.Nodes) == 0 {
		fmt.Fprint(t, "the store is one process, and no cluster\n")
		return t.Flush()
	}
	fmt.Fprint(t, "NAME\tZONE\tROLES\tSTATE\tNODE ADDRESS\tS3\tDRIVES\tID\n")
	for _, n := range l.Nodes {
		state := n.State
		if n.Leader {
			state += ", leads"
		}
		if n.Flapping {
			state += ", flapping"
		}
		drives := fmt.Sprint(len(n.Members))
		if len(n.Away) > 0 {
			drives += fmt.Sprintf(", %d away", len(n.Away))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Zone, strings.Join(n.Roles, "+"), state, n.Address, n.S3, drives, n.ID)
	}
	for _, what := range l.Warnings {
		fmt.Fprintf(t, "\nWARNING: %s\n", what)
	}
	for _, what := range l.Missing {
		fmt.Fprintf(t, "\nMISSING: %s", what)
	}
	if len(l.Missing) > 0 {
		fmt.Fprintln(t)
	}
	return t.Flush()
}

func layoutCommand(p process, e *endpoint) *cobra.Command {
	return group("layout", "See who has which places, and change it", layoutShowCommand(p, e), layoutPlanCommand(p, e), layoutApplyCommand(p, e),
		layoutRevertCommand(p, e), layoutHistoryCommand(p, e))
}

func layoutShowCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "show",
		Short: "Show the layout: how many places each drive has, and the plan that is carried out",
		Args:  exactly(0, "show takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, p, e, request{method: http.MethodGet, path: "layout"}, asJSON, printLayout)
		},
	}, &asJSON)
}

func printLayout(w io.Writer, l *console.LayoutReport) error {
	t := table(w)
	fmt.Fprintf(t, "layout %d, profile %s, %d partitions\n\nDRIVE\tNODE\tZONE\tSIZE\tPLACES\n", l.Number, l.Profile, l.Partitions)
	for _, d := range l.Drives {
		places := fmt.Sprint(d.Places)
		if d.GivenUp {
			places += ", given up"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", d.Drive, d.Node, d.Zone, sizeOf(d.Capacity), places)
	}
	if l.Expects > 0 {
		fmt.Fprintf(t, "\nthe new cluster waits for %d nodes with drives, and is laid out then\n", l.Expects)
	}
	if l.Narrow > 0 {
		fmt.Fprintf(t, "\n%d of %d partitions are not as wide as %s yet\n", l.Narrow, l.Partitions, l.Profile)
	}
	if x := l.Plan; x != nil {
		fmt.Fprintf(t, "\nplan %d for layout %d, since %s: %d of %d moves are over, the shards of %d follow, %d are not begun\n", x.ID, x.Layout, moment(&x.Begun), x.Done, x.Total, x.Moving, x.Planned)
		if len(x.Leaving) > 0 {
			fmt.Fprintf(t, "%s will leave the layout\n", numbered(x.Leaving))
		}
	}
	return t.Flush()
}

func sizeOf(n uint64) string {
	if n == 0 {
		return "not known"
	}
	return bytesOf(int64(n))
}

func layoutHistoryCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "history",
		Short: "Show the plans that have ended",
		Args:  exactly(0, "history takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, p, e, request{method: http.MethodGet, path: "layout"}, asJSON, func(w io.Writer, l *console.LayoutReport) error {
				t := table(w)
				fmt.Fprint(t, "PLAN\tFOR LAYOUT\tBEGUN\tMOVES\n")
				for _, r := range l.History {
					how := fmt.Sprint(r.Done)
					if r.Reverted {
						how += ", then reverted"
					}
					fmt.Fprintf(t, "%d\t%d\t%s\t%s\n", r.ID, r.Layout, moment(&r.Begun), how)
				}
				return t.Flush()
			})
		},
	}, &asJSON)
}

// drains defines the flags of what a plan is made for.
func drains(c *cobra.Command, q *console.PlanRequest) (drives *[]string) {
	c.Flags().StringVar(&q.Profile, "profile", "", "`K+M`: make every partition as wide as this profile; it has to be wider than the store's")
	c.Flags().StringSliceVar(&q.DrainNodes, "drain-node", nil, "`NODE` (name or id) whose drives are to have no places any more; may be repeated")
	return c.Flags().StringSlice("drain-drive", nil, "`NUMBER` of a drive that is to have no places any more; may be repeated")
}

func driveNumbersOf(list []string) (nums []uint16, err error) {
	for _, text := range list {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return nil, errs.E("admin", errs.Invalid, fmt.Sprintf("%q is no number of a drive, as `ostraka admin drive list` shows them", text))
		}
		nums = append(nums, uint16(n))
	}
	return nums, nil
}

func layoutPlanCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	var q console.PlanRequest
	var drives *[]string
	c := &cobra.Command{
		Use:   "plan",
		Short: "Plan a layout over all drives: who gets what, how much moves, what may be lost. Nothing is changed",
		Long: `Plans a layout in which all drives of the cluster have places by their size, but for those that are drained. It
says how much moves, what may be lost afterwards, and why anything is not ideal. Nothing is changed.
ostraka admin layout apply, with the number that it prints and the same flags, begins it.

With --profile drives join every partition, until it is as wide as the profile: so a store that was begun on one
machine spreads over many. What is written from then on has the new profile; what was written before is written again
in the background (ostraka admin heal status). Partitions never become narrower.`,
		Example: `  ostraka admin layout plan
  ostraka admin layout plan --drain-node node5
  ostraka admin layout plan --profile 4+2`,
		Args: exactly(0, "plan takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.DrainDrives, err = driveNumbersOf(*drives); err != nil {
				return err
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "layout/plan", body: q}, asJSON, func(w io.Writer, r *console.PlanReport) error {
				if err := printPlan(w, r); err != nil {
					return err
				}
				_, err := fmt.Fprintf(w, "\nto begin it: ostraka admin layout apply %s%s\n", cmp.Or(r.Number, fmt.Sprint(r.Layout)), planFlags(q))
				return err
			})
		},
	}
	drives = drains(c, &q)
	return jsonFlag(c, &asJSON)
}

func printPlan(w io.Writer, r *console.PlanReport) error {
	t := table(w)
	fmt.Fprint(t, "DRIVE\tNODE\tZONE\tSIZE\tPLACES\tTHEN\tMOVES IN\tMOVES OUT\n")
	for _, d := range r.Drives {
		then := fmt.Sprint(d.After)
		if d.Leaving {
			then = "leaves"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", d.Drive, d.Node, d.Zone, sizeOf(d.Capacity), d.Before, then, bytesOf(int64(d.BytesIn)), bytesOf(int64(d.BytesOut)))
	}
	fmt.Fprintf(t, "\nmoves\t%d of places (at least %d are needed), about %s\n", r.Moves, r.Least, bytesOf(int64(r.Bytes)))
	if r.Widened > 0 {
		fmt.Fprintf(t, "profile\t%d partitions become as wide as %s; what they hold is written again after that\n", r.Widened, r.Profile)
	}
	if r.UsableAfter > 0 {
		fmt.Fprintf(t, "room\t%s usable, before %s; within the constraints at most %s\n", bytesOf(int64(r.UsableAfter)), bytesOf(int64(r.UsableBefore)), bytesOf(int64(r.Limit)))
	}
	fmt.Fprintf(t, "may be lost\tdrives %d, nodes %d, zones %d; before: drives %d, nodes %d, zones %d\n", r.After.Drives, r.After.Nodes, r.After.Zones,
		r.Before.Drives, r.Before.Nodes, r.Before.Zones)
	for _, d := range r.Domains {
		says := "nothing stops"
		if d.Unreadable > 0 {
			says = fmt.Sprintf("%d partitions cannot be read, %d not be written", d.Unreadable, d.NoWrites)
		} else if d.NoWrites > 0 {
			says = fmt.Sprintf("all can be read, %d partitions not be written", d.NoWrites)
		}
		fmt.Fprintf(t, "without %s\t%s\n", d.Name, says)
	}
	for _, why := range r.Reasons {
		fmt.Fprintf(t, "not ideal\t%s\n", why)
	}
	if r.ID != 0 {
		fmt.Fprintf(t, "\nplan %d is carried out; ostraka admin layout show tells how far it is\n", r.ID)
	}
	return t.Flush()
}

// planFlags are the flags that ask for the same plan again.
func planFlags(q console.PlanRequest) string {
	var b strings.Builder
	if q.Profile != "" {
		fmt.Fprintf(&b, " --profile %s", q.Profile)
	}
	for _, num := range q.DrainDrives {
		fmt.Fprintf(&b, " --drain-drive %d", num)
	}
	for _, name := range q.DrainNodes {
		fmt.Fprintf(&b, " --drain-node %s", name)
	}
	return b.String()
}

func layoutApplyCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	var q console.ApplyRequest
	var drives *[]string
	c := &cobra.Command{
		Use:   "apply NUMBER",
		Short: "Begin the plan with this number",
		Long: `Begins the plan that ostraka admin layout plan showed with this number, such as 377-9f2c41d0, with the same flags. If
the layout has changed since, or the flags ask for another plan, it is refused (exit code 3): plan again. The
moves go on by themselves, over restarts, while the store serves.

A number without the part behind the hyphen is that of the layout alone, and stands for whatever the flags ask for.`,
		Example: `  ostraka admin layout apply 377-9f2c41d0
  ostraka admin layout apply 377-51b20c9e --profile 4+2`,
		Args: exactly(1, "the number of the plan has to be given, as `ostraka admin layout plan` prints it"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.Layout, err = strconv.ParseUint(args[0], 10, 64); err != nil {
				q.Number = args[0]
				q.Layout, err = console.LayoutOf(q.Number)
			}
			if err != nil {
				return err
			}
			if q.Layout == 0 {
				return errs.E("admin", errs.Invalid, "there is no layout 0")
			}
			if q.DrainDrives, err = driveNumbersOf(*drives); err != nil {
				return err
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "layout/apply", body: q}, asJSON, printPlan)
		},
	}
	drives = drains(c, &q.PlanRequest)
	return jsonFlag(c, &asJSON)
}

func layoutRevertCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "revert PLAN",
		Short: "Drop what was not begun of the plan with this id; what was begun is completed",
		Args:  exactly(1, "the id of the plan has to be given, as `ostraka admin layout show` prints it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return errs.E("admin", errs.Invalid, fmt.Sprintf("%q is no id of a plan", args[0]))
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "layout/revert", body: console.RevertRequest{Plan: id}}, asJSON, printLayout)
		},
	}, &asJSON)
}

// drain plans without some drives, shows that, asks, and begins it. As JSON it prints what was begun, and nothing else.
func drain(cmd *cobra.Command, p process, e *endpoint, q console.PlanRequest, asJSON, sure bool) error {
	if err := p.mayGoOn(sure, asJSON); err != nil {
		return err
	}
	var r console.PlanReport
	if _, err := e.send(cmd.Context(), request{method: http.MethodPost, path: "layout/plan", body: q}, &r); err != nil {
		return err
	}
	if !asJSON {
		if err := printPlan(p.stdout, &r); err != nil {
			return err
		}
	}
	if err := p.ask(sure); err != nil {
		return err
	}
	var begun console.PlanReport
	raw, err := e.send(cmd.Context(), request{method: http.MethodPost, path: "layout/apply", body: console.ApplyRequest{Layout: r.Layout, Number: r.Number, PlanRequest: q}}, &begun)
	if err != nil {
		return err
	}
	if asJSON {
		_, err = p.stdout.Write(raw)
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "plan %d is carried out; ostraka admin layout show tells how far it is\n", begun.ID)
	return err
}

// deadFlags defines the flags that give drives up instead of emptying them.
func deadFlags(c *cobra.Command, dead, accept *bool) {
	c.Flags().BoolVar(dead, "dead", false, "give them up: they never come back, and what they held is rebuilt from the others")
	c.Flags().BoolVar(accept, "accept-loss", false, "with --dead: even if something is lost by it, as it is listed")
}

// checkDead refuses one of the flags without the other.
func checkDead(dead, accept bool) error {
	if accept && !dead {
		return errs.E("admin", errs.Invalid, "--accept-loss is of no use without --dead")
	}
	return nil
}

const longDead = `

With --dead they need not be here any more: they are given up for good. Their numbers are retired, others get their
places, and what they held is rebuilt from the other shards. If they ever come back they are refused. It is refused
while they serve, and, unless --accept-loss, where something would be lost, or may be; that is listed.`

func drainDriveCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, sure, dead, accept bool
	c := &cobra.Command{
		Use:   "drain NUMBER...",
		Short: "Move everything off drives, and take them out of the layout",
		Long: `Moves everything off drives that still serve, and takes them out of the layout. A drive that died is replaced as
a rule: ostraka admin drive replace.` + longDead,
		Example: `  ostraka admin drive drain 7 8
  ostraka admin drive drain 9 --dead`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errs.E("admin", errs.Invalid, "the drives have to be named by their numbers, as `ostraka admin drive list` shows them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			nums, err := driveNumbersOf(args)
			if err != nil {
				return err
			}
			if err := checkDead(dead, accept); err != nil {
				return err
			}
			if dead {
				return abandon(cmd, p, e, console.GiveUpRequest{Drives: nums, AcceptLoss: accept}, asJSON, sure)
			}
			return drain(cmd, p, e, console.PlanRequest{DrainDrives: nums}, asJSON, sure)
		},
	}
	deadFlags(c, &dead, &accept)
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask; needed with --json, and where this is no terminal")
	return jsonFlag(c, &asJSON)
}

func drainNodeCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, sure, dead, accept bool
	c := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move everything off the drives of a node, and take them out of the layout",
		Long: `Moves everything off the drives of a node, and takes them out of the layout. Once that is over the node can be
stopped for good, and forgotten: ostraka admin node remove.` + longDead,
		Example: `  ostraka admin node drain node5
  ostraka admin node drain node5 --dead`,
		Args: exactly(1, "the name or the id of the node has to be given, as `ostraka admin node list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkDead(dead, accept); err != nil {
				return err
			}
			if dead {
				return abandon(cmd, p, e, console.GiveUpRequest{Nodes: args, AcceptLoss: accept}, asJSON, sure)
			}
			return drain(cmd, p, e, console.PlanRequest{DrainNodes: args}, asJSON, sure)
		},
	}
	deadFlags(c, &dead, &accept)
	c.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask; needed with --json, and where this is no terminal")
	return jsonFlag(c, &asJSON)
}

func removeNodeCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "remove NODE",
		Short: "Forget a node that was stopped for good and has no drives in the layout any more",
		Args:  exactly(1, "the name or the id of the node has to be given, as `ostraka admin node list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd, p, e, request{method: http.MethodPost, path: "nodes/remove", body: console.NodeRequest{Node: args[0]}}, asJSON, printNodes)
		},
	}, &asJSON)
}

func zoneCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "zone NODE ZONE",
		Short: "Say in which zone, the failure domain above the node, a node is",
		Long: `Says in which zone, the failure domain above the node, a node and all its drives are. It holds from then on,
whatever --zone the node is started with. Nothing moves by itself: ostraka admin layout plan shows what
would, so that no zone has more shards of an object than may be lost.`,
		Example: `  ostraka admin node zone node5 rack2`,
		Args:    exactly(2, "the name or the id of the node has to be given, as `ostraka admin node list` shows them, and the zone"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd, p, e, request{method: http.MethodPost, path: "nodes/zone", body: console.ZoneRequest{Node: args[0], Zone: args[1]}}, asJSON, func(w io.Writer, l *console.NodeList) error {
				if err := printNodes(w, l); err != nil {
					return err
				}
				_, err := fmt.Fprint(w, "\nthe places are as they were; ostraka admin layout plan shows what the zones ask for\n")
				return err
			})
		},
	}, &asJSON)
}

func addDriveCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, force bool
	c := &cobra.Command{
		Use:   "add PATH",
		Short: "Make an empty directory of a node of a cluster a new drive",
		Long: `Makes the empty directory PATH, one of those that the addressed node was started with, a drive of the cluster. It
has no places before a plan is applied: ostraka admin layout plan.

It is refused, unless --force, while a drive of the node is away that may have been at PATH: a new disk in the place of
a lost one is for ostraka admin drive replace.`,
		Example: "  ostraka admin drive add /mnt/d5 --endpoint http://10.0.0.3:9000",
		Args:    exactly(1, "the path of the new, empty drive has to be given, as `ostraka admin drive list` shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return errs.As("admin", errs.Invalid, err)
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "drives/add", body: console.AddDriveRequest{Path: path, Force: force}}, asJSON, func(w io.Writer, a *console.AddDriveAnswer) error {
				_, err := fmt.Fprintf(w, "%s is drive %d; it has places once a plan is applied: ostraka admin layout plan\n", a.Path, a.Drive)
				return err
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "even if a drive is away that may have been at PATH")
	return jsonFlag(c, &asJSON)
}
