package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rootkeys"
)

// endpoint is where a command's requests go, and with which keys.
type endpoint struct {
	url, access, secret, region, ca string
}

// flags defines the flags of an endpoint on c. The environment is the default of each.
func (e *endpoint) flags(c *cobra.Command, p process) {
	or := func(name, value string) string {
		if v := p.getenv(config.EnvPrefix + name); v != "" {
			return v
		}
		return value
	}
	fs := c.PersistentFlags()
	fs.StringVar(&e.url, "endpoint", or("ENDPOINT", "http://127.0.0.1:9000"), "`URL` of the server (OSTRAKA_ENDPOINT)")
	fs.StringVar(&e.access, "access-key", "", "root access `KEY` (OSTRAKA_ACCESS_KEY, OSTRAKA_ROOT_ACCESS_KEY, AWS_ACCESS_KEY_ID)")
	fs.StringVar(&e.secret, "secret-key", "", "its secret; the environment is safer, because arguments are visible to others (OSTRAKA_SECRET_KEY, …)")
	fs.StringVar(&e.region, "region", or("REGION", "us-east-1"), "`REGION` that signatures name (OSTRAKA_REGION)")
	fs.StringVar(&e.ca, "ca", "", "PEM `FILE` with the authority that signed the server's certificate")
	c.PersistentPreRunE = func(*cobra.Command, []string) error {
		for _, from := range [][2]string{{"OSTRAKA_ACCESS_KEY", "OSTRAKA_SECRET_KEY"}, {"OSTRAKA_ROOT_ACCESS_KEY", "OSTRAKA_ROOT_SECRET_KEY"},
			{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}} {
			if e.access == "" && e.secret == "" {
				e.access, e.secret = p.getenv(from[0]), p.getenv(from[1])
			}
		}
		u, err := url.Parse(e.url)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return errs.E("admin", errs.Invalid, fmt.Sprintf("--endpoint %q is not a URL such as http://127.0.0.1:9000", e.url))
		}
		return nil
	}
}

// keys refuses to go on without keys.
func (e *endpoint) keys() error {
	if e.access == "" || e.secret == "" {
		return errs.E("admin", errs.Invalid, "no keys: set OSTRAKA_ACCESS_KEY and OSTRAKA_SECRET_KEY, or --access-key and --secret-key")
	}
	return nil
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// call sends one signed request to the admin interface, with body as JSON unless it is nil.
func (e *endpoint) call(ctx context.Context, method, path string, query url.Values, body any) ([]byte, error) {
	const op = "admin"
	if err := e.keys(); err != nil {
		return nil, err
	}
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return nil, errs.As(op, errs.Internal, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(e.url, "/")+path, bytes.NewReader(raw))
	if err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	// The signature takes the query as it is sent, and url.Values writes a space as +.
	req.URL.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: e.access, Secret: e.secret}, e.region, "s3", auth.HashPayload(raw), time.Now()); err != nil {
		return nil, errs.Wrap(op, err)
	}
	client := &http.Client{Timeout: 5 * time.Minute}
	if e.ca != "" {
		pem, err := os.ReadFile(e.ca)
		if err != nil {
			return nil, &errs.Error{Op: op, Kind: errs.Invalid, Msg: "the file of --ca cannot be read", Err: err}
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, errs.E(op, errs.Invalid, "the file of --ca holds no certificate")
		}
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, &errs.Error{Op: op, Kind: errs.Unavailable, Msg: "the server does not answer", Err: err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, &errs.Error{Op: op, Kind: errs.Unavailable, Msg: "the answer broke off", Err: err}
	}
	if resp.StatusCode == http.StatusOK {
		return answer, nil
	}
	var f console.Failure
	if json.Unmarshal(answer, &f) != nil || f.Error.Message == "" {
		f.Error.Message = "the server answers " + resp.Status
	}
	kind, ok := failureKinds[resp.StatusCode]
	if !ok {
		kind = errs.Unavailable
	}
	return nil, errs.E(op, kind, f.Error.Message)
}

var failureKinds = map[int]errs.Kind{
	http.StatusBadRequest: errs.Invalid, http.StatusForbidden: errs.Denied, http.StatusNotFound: errs.NotFound, http.StatusConflict: errs.Exists,
	http.StatusPreconditionFailed: errs.Precondition, http.StatusNotImplemented: errs.Unsupported, http.StatusInsufficientStorage: errs.Full,
}

func adminCommand(p process) *cobra.Command {
	var e endpoint
	c := &cobra.Command{
		Use:   "admin",
		Short: "Look into a running store, and operate it",
		Long:  "The admin commands talk to a running server, signed with its root keys.",
	}
	e.flags(c, p)
	object := &cobra.Command{Use: "object", Short: "Look at objects"}
	object.AddCommand(inspectCommand(p, &e))
	drive := &cobra.Command{Use: "drive", Short: "Operate drives"}
	drive.AddCommand(reopenCommand(p, &e))
	c.AddCommand(object, drive, statusCommand(p, &e), keysCommand(p))
	return c
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
			q := url.Values{"bucket": {bucket}, "key": {key}}
			if verify {
				q.Set("verify", "true")
			}
			raw, err := e.call(cmd.Context(), http.MethodGet, "/-/admin/v1/object", q, nil)
			if err != nil {
				return err
			}
			if asJSON {
				_, err = p.stdout.Write(raw)
				return err
			}
			var o console.ObjectReport
			if err := json.Unmarshal(raw, &o); err != nil {
				return &errs.Error{Op: "admin", Kind: errs.Internal, Msg: "the answer is not what this version expects", Err: err}
			}
			return printObject(p.stdout, &o)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&verify, "verify", false, "read every shard and check its checksums")
	return c
}

func printObject(w io.Writer, o *console.ObjectReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "object\t%s/%s\n", o.Bucket, o.Key)
	fmt.Fprintf(t, "version\t%s, %d bytes, etag %s, modified %s\n", o.VersionID, o.Size, o.ETag, o.Modified.UTC().Format(time.RFC3339))
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
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%s\t%d\t%s\n", s.Part, s.Chunk, s.Index, s.Drive, strings.TrimSpace(s.State+" "+s.Detail), s.Bytes, s.Path)
	}
	return t.Flush()
}

func statusCommand(p process, e *endpoint) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the drives and the outstanding repairs",
		Args:  exactly(0, "status takes no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, err := e.call(cmd.Context(), http.MethodGet, "/-/admin/v1/status", nil, nil)
			if err != nil {
				return err
			}
			if asJSON {
				_, err = p.stdout.Write(raw)
				return err
			}
			var s console.Status
			if err := json.Unmarshal(raw, &s); err != nil {
				return &errs.Error{Op: "admin", Kind: errs.Internal, Msg: "the answer is not what this version expects", Err: err}
			}
			return printStatus(p.stdout, &s)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printStatus(w io.Writer, s *console.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	ready := "yes"
	if !s.Ready {
		ready = "NO: " + s.Reason
	}
	backlog := "not known"
	if s.Repairs != nil {
		backlog = fmt.Sprint(*s.Repairs)
	}
	fmt.Fprintf(t, "version\t%s\nprofile\t%s\nready\t%s\nrepairs outstanding\t%s\n\nDRIVE\tSTATE\tFREE\tTOTAL\tPATH\n", s.Version, s.Profile, ready, backlog)
	for _, d := range s.Drives {
		num := "?"
		if d.Number != nil {
			num = fmt.Sprint(*d.Number)
		}
		fmt.Fprintf(t, "%s\t%s\t%d MiB\t%d MiB\t%s  %s\n", num, d.State, d.Free>>20, d.Total>>20, d.Path, d.Reason)
	}
	return t.Flush()
}

func reopenCommand(p process, e *endpoint) *cobra.Command {
	return &cobra.Command{
		Use:   "reopen PATH",
		Short: "Take a quarantined drive back into service, after its fault was mended",
		Args:  exactly(1, "the drive has to be named by its path, as the status shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := e.call(cmd.Context(), http.MethodPost, "/-/admin/v1/drives/reopen", nil, console.ReopenRequest{Path: args[0]}); err != nil {
				return err
			}
			_, err := fmt.Fprintln(p.stdout, "open:", args[0])
			return err
		},
	}
}

func keysCommand(p process) *cobra.Command {
	return &cobra.Command{
		Use:   "keys DRIVE",
		Short: "Print the root keys that a drive keeps, as shell exports",
		Long: `Prints the root keys that the first start made and stored on each drive, in the form that a shell
evaluates. It reads the file on this machine and talks to no server. The output holds the secret.`,
		Example: `  eval "$(ostraka admin keys data/d1)"
  aws --endpoint-url http://127.0.0.1:9000 s3 ls`,
		Args: exactly(1, "the directory of a drive has to be named"),
		RunE: func(_ *cobra.Command, args []string) error {
			k, _, err := rootkeys.Read(args)
			if err != nil {
				return err
			}
			if k.IsZero() {
				return errs.E("admin", errs.NotFound, filepath.Join(args[0], rootkeys.FileName)+" is not there: the store was given its keys by the environment, or this is no drive")
			}
			_, err = fmt.Fprintf(p.stdout, "export AWS_ACCESS_KEY_ID='%s'\nexport AWS_SECRET_ACCESS_KEY='%s'\n", shellQuoted(k.Access), shellQuoted(k.Secret))
			return err
		},
	}
}

// shellQuoted makes s safe between single quotes.
func shellQuoted(s string) string { return strings.ReplaceAll(s, "'", `'\''`) }

// exactly is cobra's check of the number of arguments, with a text that helps.
func exactly(n int, otherwise string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return errs.E("admin", errs.Invalid, otherwise)
		}
		return nil
	}
}
