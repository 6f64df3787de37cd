package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/internal/errs"
)

// table aligns columns that tabs separate.
func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

func yes(ok bool, otherwise string) string {
	if ok {
		return "yes"
	}
	return strings.TrimSuffix("NO: "+otherwise, ": ")
}

func infoCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:     "info",
		Short:   "Show the store: version, profile, room, redundancy, health",
		Example: "  ostraka admin info",
		Args:    exactly(0, "info takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, p, e, request{method: http.MethodGet, path: "info"}, asJSON, printInfo)
		},
	}, &asJSON)
}

func printInfo(w io.Writer, i *console.Info) error {
	t := table(w)
	fmt.Fprintf(t, "version\t%s (%s), up %s\n", i.Version, i.Go, duration(time.Duration(i.Uptime*float64(time.Second))))
	fmt.Fprintf(t, "cluster\t%s, region %s\n", i.Cluster, i.Region)
	fmt.Fprintf(t, "ready\t%s\n", yes(i.Ready, i.Reason))
	fmt.Fprintf(t, "profile\t%s, REDUCED_REDUNDANCY %s\n", i.Profile, i.Reduced)
	fmt.Fprintf(t, "layout\tnumber %d, %s partitions\n", i.Layout, humanize.Comma(int64(i.Partitions)))
	if i.Nodes > 0 {
		fmt.Fprintf(t, "nodes\t%d\n", i.Nodes)
	}
	for _, what := range i.Missing {
		fmt.Fprintf(t, "MISSING\t%s\n", what)
	}
	fmt.Fprintf(t, "drives\t%d of %d online", i.Online, i.Members)
	if i.Replacing > 0 {
		fmt.Fprintf(t, ", %d being replaced", i.Replacing)
	}
	fmt.Fprintf(t, "\nroom\t%s free of %s; objects may take about %s more", humanize.IBytes(i.Free), humanize.IBytes(i.Total), humanize.IBytes(i.Usable))
	if i.FullFirst != 0 {
		fmt.Fprintf(t, ", then drive %d is full", i.FullFirst)
	}
	fmt.Fprintln(t)
	fmt.Fprintf(t, "redundancy\t%s\n", i.Redundancy)
	fmt.Fprintf(t, "health\t%s\n", health(i.Heal, i.HealWhy))
	fmt.Fprintf(t, "last verified\t%s\n", moment(i.Verified))
	fmt.Fprintf(t, "buckets\t%s\n", humanize.Comma(int64(i.Buckets)))
	return t.Flush()
}

func health(state string, why []string) string {
	if len(why) > 0 {
		state += ": " + strings.Join(why, "; ")
	}
	return state
}

// moment is a time that may not have come.
func moment(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// duration is a length of time with two units at most.
func duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

func statusCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	return jsonFlag(&cobra.Command{
		Use:   "status",
		Short: "Show the drives and the outstanding repairs",
		Args:  exactly(0, "status takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd, p, e, request{method: http.MethodGet, path: "status"}, asJSON, printStatus)
		},
	}, &asJSON)
}

func printStatus(w io.Writer, s *console.Status) error {
	t := table(w)
	backlog := "not known"
	if s.Repairs != nil {
		backlog = humanize.Comma(int64(*s.Repairs))
	}
	fmt.Fprintf(t, "version\t%s\nprofile\t%s\nready\t%s\n", s.Version, s.Profile, yes(s.Ready, s.Reason))
	for _, what := range s.Missing {
		fmt.Fprintf(t, "MISSING\t%s\n", what)
	}
	fmt.Fprintf(t, "repairs outstanding\t%s\n\n", backlog)
	printDriveRows(t, s.Drives)
	return t.Flush()
}

func printDriveRows(t io.Writer, list []console.DriveStatus) {
	fmt.Fprint(t, "DRIVE\tSTATE\tROLE\tFREE\tTOTAL\tERRORS\tPATH\n")
	for _, d := range list {
		num, free, total, errors := "-", "-", "-", "-"
		if d.Number != nil {
			num = fmt.Sprint(*d.Number)
		}
		if d.Total > 0 {
			free, total, errors = humanize.IBytes(d.Free), humanize.IBytes(d.Total), humanize.Comma(int64(d.ReadErrors+d.WriteErrors))
		}
		state := d.State
		if d.Stale {
			state += " (does not answer)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", num, state, d.Role, free, total, errors, strings.TrimSpace(d.Path+"  "+d.Reason))
	}
}

func usageCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, fresh bool
	c := &cobra.Command{
		Use:   "usage",
		Short: "Count what each bucket holds",
		Long: `Counts the objects, versions and bytes of each bucket. That reads every record, a second or more for
each 100,000 versions, so the server keeps an answer for some minutes; --fresh counts anew.`,
		Example: "  ostraka admin usage --fresh",
		Args:    exactly(0, "usage takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := request{method: http.MethodGet, path: "usage", timeout: usageTimeout}
			if fresh {
				r.query = url.Values{"fresh": {"true"}}
			}
			return show(cmd, p, e, r, asJSON, printUsage)
		},
	}
	c.Flags().BoolVar(&fresh, "fresh", false, "count anew, even if it was counted some minutes ago")
	return jsonFlag(c, &asJSON)
}

// usageTimeout is for counting: a store of a hundred million versions takes a while.
const usageTimeout = 2 * time.Hour

func printUsage(w io.Writer, u *console.Usage) error {
	t := table(w)
	fmt.Fprint(t, "BUCKET\tOBJECTS\tVERSIONS\tBYTES\n")
	row := func(name string, b console.BucketUsage) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, humanize.Comma(b.Objects), humanize.Comma(b.Versions), bytesOf(b.Bytes))
	}
	for _, b := range u.Buckets {
		row(b.Bucket, b)
	}
	row("total", u.Total)
	fmt.Fprintf(t, "\ncounted at %s, in %s\n", moment(&u.At), duration(time.Duration(u.Took*float64(time.Second))))
	return t.Flush()
}

func bytesOf(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func objectCommand(p process, e *endpoint) *cobra.Command {
	return group("object", "Look at objects", inspectCommand(p, e))
}

func inspectCommand(p process, e *endpoint) *cobra.Command {
	var asJSON, verify bool
	c := &cobra.Command{
		Use:   "inspect BUCKET/KEY",
		Short: "Show where each record and shard of an object is, and its state",
		Example: `  ostraka admin object inspect photos/2026/boat.jpg
  ostraka admin object inspect --verify --json photos/2026/boat.jpg`,
		Args: exactly(1, "an object has to be named: BUCKET/KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			bucket, key, ok := strings.Cut(args[0], "/")
			if !ok || bucket == "" || key == "" {
				return errs.E("admin", errs.Invalid, fmt.Sprintf("%q is not BUCKET/KEY", args[0]))
			}
			r := request{method: http.MethodGet, path: "object", query: url.Values{"bucket": {bucket}, "key": {key}}}
			if verify {
				r = request{method: http.MethodPost, path: "object/verify", body: console.ObjectRequest{Bucket: bucket, Key: key}}
			}
			return show(cmd, p, e, r, asJSON, printObject)
		},
	}
	c.Flags().BoolVar(&verify, "verify", false, "read every shard and check its checksums; what is found is repaired")
	return jsonFlag(c, &asJSON)
}

func printObject(w io.Writer, o *console.ObjectReport) error {
	t := table(w)
	fmt.Fprintf(t, "object\t%s/%s\n", o.Bucket, o.Key)
	fmt.Fprintf(t, "version\t%s, %s bytes, etag %s, modified %s\n", o.VersionID, humanize.Comma(o.Size), o.ETag, o.Modified.UTC().Format(time.RFC3339))
	fmt.Fprintf(t, "data\t%s, profile %s, partition %d, ballot %s\n", o.DataID, o.Profile, o.Partition, o.Ballot)
	whole := "yes: every record and shard is in its place"
	if !o.Whole {
		whole = "NO"
	}
	fmt.Fprintf(t, "whole\t%s\n\nDRIVE\tRECORD\tPATH\n", whole)
	for _, r := range o.Rows {
		fmt.Fprintf(t, "%d\t%s\t%s\n", r.Drive, r.State, r.Path)
	}
	fmt.Fprint(t, "\nPART\tCHUNK\tSHARD\tDRIVE\tSTATE\tBYTES\tPATH\n")
	for _, s := range o.Shards {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%s\t%d\t%s\n", s.Part, s.Chunk, s.Index, s.Drive, s.State, s.Bytes, strings.TrimSpace(s.Path+"  "+s.Detail))
	}
	return t.Flush()
}
