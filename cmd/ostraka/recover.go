package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/internal/errs"
)

// recovery is what the console tells of a recovery.
func (o *operator) recovery(r cluster.Recovery, err error) (console.Recovery, error) {
	out := console.Recovery{Generation: r.Generation, Drives: r.Drives}
	for _, v := range r.Former {
		out.Former = append(out.Former, console.Voter{Drive: v.Drive, Here: v.Here})
	}
	s := o.control.State()
	if !s.Initialized() {
		return out, err
	}
	open := map[uint16]bool{}
	for _, p := range o.set.Status() {
		open[p.Num] = open[p.Num] || p.Known && p.Open
	}
	for _, d := range s.Layout().Drives() {
		if !open[d.Num] && !s.Retired(d.Num) {
			out.Away = append(out.Away, d.Num)
		}
	}
	return out, err
}

// PlanRecovery implements console.Operator.
func (o *operator) PlanRecovery(context.Context) (console.Recovery, error) {
	return o.recovery(o.control.PlanRecovery())
}

// Recover implements console.Operator.
func (o *operator) Recover(ctx context.Context) (console.Recovery, error) {
	return o.recovery(o.control.Recover(ctx))
}

// withoutMajority is the error of a change if the control plane lacks a majority, and else err.
func (o *operator) withoutMajority(err error) error {
	if err != nil && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
		return err
	}
	if _, planned := o.control.PlanRecovery(); planned != nil {
		return err
	}
	return &errs.Error{Op: "server", Kind: errs.Unavailable, Err: err,
		Msg: "the control plane has no majority of its voters: bring their drives back, or, if they are lost for good, run `ostraka admin recover` first"}
}

func recoverCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, sure bool
	var q console.RecoverRequest
	c := &cobra.Command{
		Use:   "recover",
		Short: "Begin the control plane anew, when the drives with most of its voters are lost",
		Long: `Changes of the configuration, such as the replacement of a drive, need most of the voters of the control
plane, which lie on up to three of the drives. When the drives of two of three are lost for good, this
gives the control plane new voters on drives that are here, with all that it knows. Objects are not
touched, and are served meanwhile. It is refused while most voters are here.

Drives that are away now may come back later, and get the new state. But never start another server with
only those: it would take their old state for the present one.`,
		Example: `  ostraka admin recover --dry-run
  ostraka admin recover
  ostraka admin drive replace /mnt/d1`,
		Args: exactly(0, "recover takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return recoverControl(cmd, p, e, q, asJSON, sure)
		},
	}
	fs := c.Flags()
	fs.BoolVar(&q.DryRun, "dry-run", false, "say what would happen, and change nothing")
	fs.BoolVarP(&sure, "yes", "y", false, "do not ask")
	return jsonFlag(c, &asJSON)
}

// recoverControl shows the plan, asks, and recovers.
func recoverControl(cmd *cobra.Command, p process, e *endpoint, q console.RecoverRequest, asJSON, sure bool) error {
	var a console.Recovery
	raw, err := e.send(cmd.Context(), request{method: http.MethodPost, path: "recover", body: console.RecoverRequest{DryRun: true}}, &a)
	if err != nil {
		return err
	}
	if !asJSON {
		if err := printRecovery(p.stdout, &a); err != nil {
			return err
		}
	}
	if !q.DryRun {
		if err := p.ask(sure || asJSON); err != nil {
			return err
		}
		a = console.Recovery{}
		if raw, err = e.send(cmd.Context(), request{method: http.MethodPost, path: "recover", body: q}, &a); err != nil {
			return err
		}
	}
	switch {
	case asJSON:
		_, err = p.stdout.Write(raw)
	case !q.DryRun:
		_, err = fmt.Fprintf(p.stdout, "the control plane goes on as generation %d, with voters on %s\n", a.Generation, numbered(a.Drives))
	}
	return err
}

func printRecovery(w io.Writer, a *console.Recovery) error {
	var here, gone []uint16
	for _, v := range a.Former {
		if v.Here {
			here = append(here, v.Drive)
		} else {
			gone = append(gone, v.Drive)
		}
	}
	t := table(w)
	if len(a.Former) == 0 {
		fmt.Fprint(t, "voters gone\tall, on drives that are away\n")
	} else {
		fmt.Fprintf(t, "voters gone\t%s\nvoters here\t%s\n", numbered(gone), numbered(here))
	}
	fmt.Fprintf(t, "give up\tall voters, for good\nmake\tnew voters, of generation %d, on %s\n", a.Generation, numbered(a.Drives))
	fmt.Fprintf(t, "away\t%s: never start another server with only these\n", numbered(a.Away))
	return t.Flush()
}

// numbered names drives to people.
func numbered(nums []uint16) string {
	if len(nums) == 0 {
		return "none"
	}
	var list []string
	for _, n := range slices.Sorted(slices.Values(nums)) {
		list = append(list, fmt.Sprint(n))
	}
	if len(list) == 1 {
		return "drive " + list[0]
	}
	return "drives " + strings.Join(list, ", ")
}
