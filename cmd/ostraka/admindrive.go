package main

import (
	"bufio"
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

func driveCommand(p process, e *endpoint) *cobra.Command {
	return group("drive", "Look at drives, replace them, take them out of service", driveListCommand(p, e), replaceCommand(p, e),
		quarantineCommand(p, e), releaseCommand(p, e), reopenCommand(p, e), addDriveCommand(p, e), drainDriveCommand(p, e))
}

func driveListCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the drives, what is being replaced, and how redundancy stands",
		Example: "  ostraka admin drive list",
		Args:    exactly(0, "list takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, p, e, request{method: http.MethodGet, path: "drives"}, asJSON, printDrives)
		},
	}, &asJSON)
}

func printDrives(w io.Writer, l *console.DriveList) error {
	t := table(w)
	printDriveRows(t, l.Drives)
	for _, r := range l.Replacements {
		fmt.Fprintf(t, "\ndrive %d replaces drive %d at %s, since %s: %s\n", r.New, r.Old, r.Path, moment(&r.Begun), r.Phase)
		if r.Problem != "" {
			fmt.Fprintf(t, "  it does not go on: %s\n", r.Problem)
		}
	}
	fmt.Fprintf(t, "\n%s\n", l.Redundancy)
	return t.Flush()
}

// named is the drive that an argument means: a number, or a path, which is made absolute. A
// directory whose name is a number is written ./7.
func named(arg string) (num uint16, path string, err error) {
	if n, err := strconv.ParseUint(arg, 10, 16); err == nil && n > 0 {
		return uint16(n), "", nil
	}
	if arg == "" {
		return 0, "", errs.E("admin", errs.Invalid, "a drive has to be named: its number or its path, as `ostraka admin drive list` shows them")
	}
	path, err = filepath.Abs(arg)
	return 0, path, errs.As("admin", errs.Invalid, err)
}

// ask asks whether to go on, when somebody is there to be asked.
func (p process) ask(sure bool) error {
	if sure || p.terminal == nil || p.stdin == nil {
		return nil
	}
	if _, ok := p.terminal(); !ok {
		return nil
	}
	fmt.Fprint(p.stderr, "Go on? [y/N] ")
	line, err := bufio.NewReader(p.stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return errs.As("admin", errs.Internal, err)
	}
	if a := strings.ToLower(strings.TrimSpace(line)); a != "y" && a != "yes" {
		return errs.E("admin", errs.Canceled, "nothing was changed")
	}
	return nil
}

// mayGoOn refuses what was not said to be wanted where nobody can be asked. It is for changes that are not to begin by a
// pipe or a script that forgot to say so. With --json nobody is asked either.
func (p process) mayGoOn(sure, asJSON bool) error {
	if asJSON && !sure {
		return errs.E("admin", errs.Invalid, "with --json nobody is asked: add --yes to begin it; nothing was changed")
	}
	asks := p.terminal != nil && p.stdin != nil
	if asks {
		_, asks = p.terminal()
	}
	if sure || asks {
		return nil
	}
	return errs.E("admin", errs.Invalid, "nobody can be asked here, as this is no terminal: add --yes to begin it all the same; nothing was changed")
}

func replaceCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, sure, wait, noWait bool
	var q console.ReplaceRequest
	c := &cobra.Command{
		Use:   "replace PATH",
		Short: "Put a new drive in the place of one that is lost, and rebuild what it held",
		Long: `Makes the empty directory PATH a new drive of the store, in the place of one that is lost, and
rebuilds what belongs on it while the store serves. PATH is one of those that the server was started
with: normally that of the lost drive, after the new disk was mounted there. Files are never
overwritten: a directory that holds anything is refused.

It is refused, unless --force, when afterwards not everything could be read, or no longer be written,
while a drive that is still in service may be needed to bring others up to date, and when PATH looks
like a mount point without its disk.

The old drive is retired for good: it never serves again, even if it comes back. Which one that is
follows from PATH, or it is the only one that is away; otherwise --old names it by its number.

On a terminal it asks, and then follows the rebuild until that is verified. Stopping to follow, or
the server, does not stop the replacement: the server goes on by itself when it starts again.`,
		Example: `  # the disk at /mnt/d3 died; a new one is mounted there
  ostraka admin drive replace /mnt/d3

  # the spare /mnt/d7 in the place of drive 3, from a script that waits until all is rebuilt
  ostraka admin drive replace /mnt/d7 --old 3 --wait

  # only say what would happen
  ostraka admin drive replace /mnt/d3 --dry-run`,
		Args: exactly(1, "the path of the new, empty drive has to be given, as `ostraka admin drive list` shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait && noWait {
				return errs.E("admin", errs.Invalid, "--wait and --no-wait exclude each other")
			}
			var err error
			if q.Path, err = filepath.Abs(args[0]); err != nil {
				return errs.As("admin", errs.Invalid, err)
			}
			if !wait && !noWait && !asJSON && p.terminal != nil {
				_, wait = p.terminal()
			}
			return replaceDrive(cmd, p, e, q, asJSON, sure, wait)
		},
	}
	fs := c.Flags()
	fs.Uint16Var(&q.Old, "old", 0, "`NUMBER` of the drive that is replaced, if PATH does not tell")
	fs.BoolVar(&q.Force, "force", false, "even if data becomes unavailable by it, for good, or PATH seems not to be mounted")
	fs.BoolVar(&q.DryRun, "dry-run", false, "say what would happen, and change nothing")
	fs.BoolVarP(&sure, "yes", "y", false, "do not ask")
	fs.BoolVar(&wait, "wait", false, "follow the rebuild to its end, as on a terminal")
	fs.BoolVar(&noWait, "no-wait", false, "begin the replacement and return")
	return jsonFlag(c, &asJSON)
}

// replans is how often a plan is made again because things changed under it, as while another rebuild goes on.
const replans = 5

// replaceDrive shows the plan, asks, begins, and follows.
func replaceDrive(cmd *cobra.Command, p process, e *endpoint, q console.ReplaceRequest, asJSON, sure, wait bool) error {
	var err error
	for range replans {
		var again bool
		if again, err = replaceOnce(cmd, p, e, q, asJSON, sure, wait); !again {
			return err
		}
		if !asJSON {
			fmt.Fprintln(p.stderr, "things have changed since the plan was made; the plan now:")
		}
	}
	return err
}

// replaceOnce is replaceDrive for one plan. again: the plan was refused because it had become old.
func replaceOnce(cmd *cobra.Command, p process, e *endpoint, q console.ReplaceRequest, asJSON, sure, wait bool) (again bool, err error) {
	ctx := cmd.Context()
	plan := q
	plan.DryRun = true
	var a console.ReplaceAnswer
	raw, err := e.send(ctx, request{method: http.MethodPost, path: "drives/replace", body: plan}, &a)
	if err != nil {
		return false, err
	}
	if asJSON && q.DryRun {
		_, err = p.stdout.Write(raw)
		return false, err
	}
	if !asJSON {
		if err := printReplace(p.stdout, &a); err != nil {
			return false, err
		}
	}
	if a.Refused != "" && !q.Force {
		return false, errs.E("admin", errs.Precondition, "refused, because "+a.Refused+"; wait, or bring drives back, or add --force if nothing else helps")
	}
	if q.DryRun {
		return false, nil
	}
	if !a.Continued {
		if err := p.ask(sure || asJSON); err != nil {
			return false, err
		}
		q.Old, q.Plan = a.Old, a.Plan // what was shown is what is done
		a = console.ReplaceAnswer{}
		if raw, err = e.send(ctx, request{method: http.MethodPost, path: "drives/replace", body: q}, &a); err != nil {
			return errs.Is(err, errs.Precondition), err
		}
	}
	if a.Replacement == nil {
		return false, errs.E("admin", errs.Internal, "the server does not say which replacement it began")
	}
	if asJSON {
		if _, err := p.stdout.Write(raw); err != nil {
			return false, err
		}
	} else if r := a.Replacement; r.Problem != "" {
		fmt.Fprintf(p.stderr, "drive %d is to take the place of drive %d; it does not go on yet: %s\n", r.New, r.Old, r.Problem)
	} else {
		fmt.Fprintf(p.stdout, "drive %d takes the place of drive %d\n", r.New, r.Old)
	}
	if !wait {
		if !asJSON {
			fmt.Fprintln(p.stdout, "the rebuild goes on in the server; follow it with: ostraka admin heal status --watch")
		}
		return false, nil
	}
	f := newFollower(p, e, asJSON)
	return false, f.replacement(ctx, *a.Replacement)
}

func printReplace(w io.Writer, a *console.ReplaceAnswer) error {
	t := table(w)
	if a.Continued {
		fmt.Fprintf(t, "the replacement of drive %d by drive %d at %s is under way since %s\n", a.Old, a.Replacement.New, a.Path, moment(&a.Replacement.Begun))
		fmt.Fprintf(t, "now\t%s\n", a.Before)
		return t.Flush()
	}
	where := ""
	if a.OldPath != "" {
		where = " at " + a.OldPath
	}
	fmt.Fprintf(t, "retire\tdrive %d%s, which is %s, for good: it never serves again\n", a.Old, where, a.OldState)
	fmt.Fprintf(t, "make\ta new drive in the empty directory %s\n", a.Path)
	fmt.Fprint(t, "rebuild\twhat drive ", a.Old, " held, while the store serves\n")
	fmt.Fprintf(t, "now\t%s\n", a.Before)
	fmt.Fprintf(t, "until then\t%s\n", a.After)
	for _, warning := range a.Warnings {
		fmt.Fprintf(t, "note\t%s\n", warning)
	}
	return t.Flush()
}

func quarantineCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, sure bool
	var q console.DriveRequest
	c := &cobra.Command{
		Use:   "quarantine DRIVE",
		Short: "Take a drive out of service, until it is released or replaced",
		Long: `Takes a drive, named by its number or path, out of service, over restarts too: for one that makes
trouble, or before its disk is pulled. Nothing on it is changed, and it is brought up to date when it
is released. It is refused, unless --force, when afterwards not everything could be read, or no longer
be written, or while it may be needed to bring others up to date.`,
		Example: `  ostraka admin drive quarantine 3 --reason 'SMART: reallocated sectors'
  ostraka admin drive quarantine /mnt/d3 --yes`,
		Args: exactly(1, "the drive has to be named: its number or its path, as `ostraka admin drive list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if q.Drive, q.Path, err = named(args[0]); err != nil {
				return err
			}
			plan := q
			plan.DryRun = true
			var a console.DriveAnswer
			raw, err := e.send(cmd.Context(), request{method: http.MethodPost, path: "drives/quarantine", body: plan}, &a)
			if err != nil {
				return err
			}
			if !asJSON {
				t := table(p.stdout)
				fmt.Fprintf(t, "take out\tdrive %d %s, until it is released\nnow\t%s\nafterwards\t%s\n", a.Drive, a.Path, a.Before, a.After)
				if err := t.Flush(); err != nil {
					return err
				}
			}
			if a.Refused != "" && !q.Force {
				return errs.E("admin", errs.Precondition, "refused, because "+a.Refused+"; wait, or bring drives back, or add --force")
			}
			if !q.DryRun {
				if err := p.ask(sure || asJSON); err != nil {
					return err
				}
				a = console.DriveAnswer{}
				if raw, err = e.send(cmd.Context(), request{method: http.MethodPost, path: "drives/quarantine", body: q}, &a); err != nil {
					return err
				}
			}
			switch {
			case asJSON:
				_, err = p.stdout.Write(raw)
			case !q.DryRun:
				_, err = fmt.Fprintf(p.stdout, "drive %d is out of service; back with: ostraka admin drive release %d\n", a.Drive, a.Drive)
			}
			return err
		},
	}
	fs := c.Flags()
	fs.StringVar(&q.Reason, "reason", "", "`WHY`, for whoever looks at the list of drives")
	fs.BoolVar(&q.Force, "force", false, "even if data becomes unavailable by it")
	fs.BoolVar(&q.DryRun, "dry-run", false, "say what would happen, and change nothing")
	fs.BoolVarP(&sure, "yes", "y", false, "do not ask")
	return jsonFlag(c, &asJSON)
}

func releaseCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:     "release DRIVE",
		Short:   "Take a drive back into service that was quarantined",
		Example: "  ostraka admin drive release 3",
		Args:    exactly(1, "the drive has to be named: its number or its path, as `ostraka admin drive list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			num, path, err := named(args[0])
			if err != nil {
				return err
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "drives/release", body: console.DriveRequest{Drive: num, Path: path}}, asJSON, printReturned)
		},
	}, &asJSON)
}

func reopenCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "reopen DRIVE",
		Short: "Take a drive back into service that had a fault, after that was mended",
		Long: `A drive on which a write or a sync failed is out of service until somebody has looked at it. When
the fault is mended, this opens it again; it is then brought up to date.`,
		Example: "  ostraka admin drive reopen /mnt/d3",
		Args:    exactly(1, "the drive has to be named: its number or its path, as `ostraka admin drive list` shows them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			num, path, err := named(args[0])
			if err != nil {
				return err
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "drives/reopen", body: console.ReopenRequest{Drive: num, Path: path}}, asJSON, printReturned)
		},
	}, &asJSON)
}

func printReturned(w io.Writer, a *console.DriveAnswer) error {
	_, err := fmt.Fprintf(w, "drive %d at %s is open, and is brought up to date\n%s\n", a.Drive, a.Path, a.After)
	return err
}
