package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/internal/errs"
)

func healCommand(p process, e *endpoint) *cobra.Command {
	simple := func(use, short, path string) *cobra.Command {
		var asJSON bool
		return jsonFlag(&cobra.Command{Use: use, Short: short, Args: exactly(0, use+" takes no argument"), Example: "  ostraka admin heal " + use,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return show(cmd, p, e, request{method: http.MethodPost, path: path, body: struct{}{}}, asJSON, printHeal)
			}}, &asJSON)
	}
	return group("heal", "Repairs, rebuilds and complete checks", healStatusCommand(p, e), healStartCommand(p, e),
		simple("pause", "Pause repairs, rebuilds and checks, over restarts too", "heal/pause"),
		simple("resume", "Let repairs, rebuilds and checks go on", "heal/resume"),
		limitCommand(p, e))
}

func healStatusCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show whether all is well, what wants repair, and long work under way",
		Long: `Shows what healing knows. "healthy" is said only when a complete check has verified every object on
every drive, and nothing was found wanting since; "unknown" when nothing is known to be wrong.

With --watch it follows the work that is under way, and ends with 0 once nothing is left to do and
no drive is missing, and with 1 if something is left that cannot be done.`,
		Example: `  ostraka admin heal status
  ostraka admin heal status --watch`,
		Args: exactly(0, "status takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return newFollower(p, e, asJSON).work(cmd.Context(), nil)
			}
			return show(cmd, p, e, request{method: http.MethodGet, path: "heal"}, asJSON, printHeal)
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "follow until nothing is left to do; with --json, one line for each look")
	return jsonFlag(c, &asJSON)
}

func healStartCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, watch bool
	c := &cobra.Command{
		Use:   "start",
		Short: "Begin a complete check: every object, on every drive, every checksum",
		Long: `Begins a complete check, unless one is under way. It goes on in the server, over restarts too;
with --watch it is followed to its end, as by heal status --watch, with the same exit codes.`,
		Example: `  ostraka admin heal start
  ostraka admin heal start --watch`,
		Args: exactly(0, "start takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			start := request{method: http.MethodPost, path: "heal/start", body: struct{}{}}
			if !watch {
				return show(cmd, p, e, start, asJSON, printStarted)
			}
			var h console.HealStatus
			var check begun
			if _, err := e.send(cmd.Context(), request{method: http.MethodGet, path: "heal"}, &h); err != nil {
				return err
			}
			check.before(&h)
			if _, err := e.send(cmd.Context(), start, &console.HealStatus{}); err != nil {
				return err
			}
			return newFollower(p, e, asJSON).work(cmd.Context(), &check)
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "follow the check, and all other work, to the end; with --json, one line for each look")
	return jsonFlag(c, &asJSON)
}

// printStarted says that a check was begun. What the answer says of health is from before it.
func printStarted(w io.Writer, h *console.HealStatus) error {
	when := "begins now"
	for _, j := range h.Jobs {
		if j.Kind == "check" && j.State != "done" {
			when = "is under way"
		}
	}
	if h.Paused {
		when += ", and is paused: ostraka admin heal resume lets it go on"
	}
	_, err := fmt.Fprintf(w, "a complete check %s\nfollow it with: ostraka admin heal status --watch\n", when)
	return err
}

func printHeal(w io.Writer, h *console.HealStatus) error {
	t := table(w)
	fmt.Fprintf(t, "health\t%s\n", health(h.State, h.Why))
	fmt.Fprintf(t, "last verified\t%s", moment(h.Verified))
	if h.Verified != nil {
		fmt.Fprintf(t, ": %s records, %s shards, %s", humanize.Comma(h.VerifiedRegisters), humanize.Comma(h.VerifiedShards), bytesOf(h.VerifiedBytes))
		fmt.Fprintf(t, "; %s shards written since it began", humanize.Comma(h.WrittenSince))
	}
	if h.ReadFrom != nil {
		fmt.Fprintf(t, "\nread\twhat was here then: every shard was read and verified since %s", moment(h.ReadFrom))
	}
	fmt.Fprintf(t, "\nrepairs\t%s outstanding, %s of them wait for drives, %s under way\n", humanize.Comma(int64(h.Backlog)), humanize.Comma(int64(h.Blocked)), humanize.Comma(int64(h.Active)))
	fmt.Fprintf(t, "limit\t%s\n", rate(h.Rate))
	fmt.Fprintf(t, "paused\t%v\n", h.Paused)
	for i, x := range h.Lost {
		fmt.Fprintf(t, "%s\tbucket %d, key %q\n", map[bool]string{true: "LOST"}[i == 0], x.Bucket, x.Key)
	}
	if h.MoreLost {
		fmt.Fprint(t, "\tand others\n")
	}
	if h.Failures > 0 {
		fmt.Fprintf(t, "failures\t%s since the start; the last: %s\n", humanize.Comma(int64(h.Failures)), h.LastError)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i, j := range h.Jobs {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, describeJob(&j))
		if j.LastError != "" && j.State != "done" {
			fmt.Fprintln(w, "  "+j.LastError)
		}
	}
	return nil
}

func rate(n int64) string {
	if n == 0 {
		return "none; it yields to requests"
	}
	return bytesOf(n) + "/s"
}

func limitCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "limit RATE",
		Short: "Limit what repairs, rebuilds, checks and scrubs read and write a second",
		Long: `Limits all background work together to RATE bytes a second, over restarts too. "off" takes the
limit away; background work then is as fast as the drives are, and yields to requests.`,
		Example: `  ostraka admin heal limit 50MiB
  ostraka admin heal limit off`,
		Args: exactly(1, "a rate has to be given, such as 50MiB, or off"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := parseRate(args[0])
			if err != nil {
				return err
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "heal/settings", body: console.HealSettings{Rate: &n}}, asJSON, printHeal)
		},
	}, &asJSON)
}

func parseRate(text string) (int64, error) {
	if text == "off" || text == "none" || text == "0" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(strings.TrimSuffix(text, "/s"))
	if err != nil || n < console.MinRate || n > console.MaxRate {
		return 0, errs.E("admin", errs.Invalid, fmt.Sprintf("%q is no rate: give bytes a second, from %s to %s, such as 50MiB; or off",
			text, humanize.IBytes(console.MinRate), humanize.IBytes(console.MaxRate)))
	}
	return int64(n), nil
}

func scrubCommand(p process, e *endpoint) *cobra.Command {
	set := func(use, short string, paused bool) *cobra.Command {
		var asJSON bool
		return jsonFlag(&cobra.Command{Use: use, Short: short, Args: exactly(0, use+" takes no argument"), Example: "  ostraka admin scrub " + use,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return show(cmd, p, e, request{method: http.MethodPost, path: "scrub/settings", body: console.ScrubSettings{Paused: &paused}}, asJSON, printScrub)
			}}, &asJSON)
	}
	var asJSON bool
	status := jsonFlag(&cobra.Command{Use: "status", Short: "Show how far the scrub of each drive is, and what it found", Args: exactly(0, "status takes no argument"),
		Example: "  ostraka admin scrub status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, p, e, request{method: http.MethodGet, path: "scrub"}, asJSON, printScrub)
		}}, &asJSON)
	return group("scrub", "Reading and verifying every shard, once in a period", status, scrubStartCommand(p, e),
		set("pause", "Pause scrubs, over restarts too", true), set("resume", "Let scrubs go on", false), periodCommand(p, e))
}

func scrubStartCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "start [DRIVE]",
		Short: "Begin a round now, of one drive or of all",
		Example: `  ostraka admin scrub start
  ostraka admin scrub start /mnt/d3`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errs.E("admin", errs.Invalid, "one drive, or none for all of them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var q console.ScrubStart
			if len(args) == 1 {
				var err error
				if q.Drive, q.Path, err = named(args[0]); err != nil {
					return err
				}
			}
			return show(cmd, p, e, request{method: http.MethodPost, path: "scrub/start", body: q}, asJSON, func(w io.Writer, s *console.ScrubReport) error {
				return printScrubStarted(w, s, cmp.Or(strings.Join(args, ""), "all drives"))
			})
		},
	}, &asJSON)
}

// printScrubStarted says that a round was begun. The counts of the answer are from before it.
func printScrubStarted(w io.Writer, s *console.ScrubReport, of string) error {
	if _, err := strconv.Atoi(of); err == nil {
		of = "drive " + of
	}
	when := "begins now, or goes on faster where one is under way"
	if s.Paused {
		when = "was asked for, and scrubs are paused: ostraka admin scrub resume lets it begin"
	}
	_, err := fmt.Fprintf(w, "a round of the scrub of %s %s\nsee how far it is with: ostraka admin scrub status\n", of, when)
	return err
}

func periodCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "period TIME",
		Short: "Set in which time every shard is verified once (default 30 days)",
		Example: `  ostraka admin scrub period 14d
  ostraka admin scrub period default`,
		Args: exactly(1, "a time has to be given, such as 14d or 36h, or default"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := parsePeriod(args[0])
			if err != nil {
				return err
			}
			sec := d.Seconds()
			return show(cmd, p, e, request{method: http.MethodPost, path: "scrub/settings", body: console.ScrubSettings{Period: &sec}}, asJSON, printScrub)
		},
	}, &asJSON)
}

func parsePeriod(text string) (time.Duration, error) {
	if text == "default" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n float64
		if n, err = strconv.ParseFloat(days, 64); err == nil && n > 0 && n < 1000 {
			d = time.Duration(n * float64(24*time.Hour))
		}
	}
	if err != nil || d < console.MinScrubPeriod || d > console.MaxScrubPeriod {
		return 0, errs.E("admin", errs.Invalid, fmt.Sprintf("%q is no period: give a time from 1h to 366d, such as 14d or 36h; or default", text))
	}
	return d, nil
}

func printScrub(w io.Writer, s *console.ScrubReport) error {
	t := table(w)
	fmt.Fprintf(t, "period\t%s\npaused\t%v\n\nDRIVE\tSTATE\tDONE\tSHARDS\tBYTES\tFINDINGS\tBEGUN\tLAST DONE\tPATH\n", duration(time.Duration(s.Period*float64(time.Second))), s.Paused)
	for _, d := range s.Drives {
		done, begun := "-", "-"
		if d.Begun != nil {
			done, begun = fmt.Sprintf("%.1f%%", 100*d.Done), moment(d.Begun)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Drive, d.State, done, humanize.Comma(d.Shards), bytesOf(d.Bytes), humanize.Comma(d.Bad), begun, moment(d.LastDone), d.Path)
	}
	return t.Flush()
}
