package main

import (
	"bytes"
	"cmp"
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

const callTimeout = 5 * time.Minute

// call sends one signed request to the admin interface.
func (e *endpoint) call(ctx context.Context, r request) ([]byte, error) {
	const op = "admin"
	if err := e.keys(); err != nil {
		return nil, err
	}
	var raw []byte
	if r.body != nil {
		var err error
		if raw, err = json.Marshal(r.body); err != nil {
			return nil, errs.As(op, errs.Internal, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, strings.TrimSuffix(e.url, "/")+"/-/admin/v1/"+r.path, bytes.NewReader(raw))
	if err != nil {
		return nil, errs.As(op, errs.Invalid, err)
	}
	// The signature takes the query as it is sent, and url.Values writes a space as +.
	req.URL.RawQuery = strings.ReplaceAll(r.query.Encode(), "+", "%20")
	if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: e.access, Secret: e.secret}, e.region, "s3", auth.HashPayload(raw), time.Now()); err != nil {
		return nil, errs.Wrap(op, err)
	}
	client := &http.Client{Timeout: cmp.Or(r.timeout, callTimeout)}
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
	c := group("admin", "Look into a running store, and operate it", infoCommand(p, &e), statusCommand(p, &e), driveCommand(p, &e), nodeAdminCommand(p, &e),
		zoneCommand(p, &e), layoutCommand(p, &e), healCommand(p, &e), scrubCommand(p, &e), objectCommand(p, &e), usageCommand(p, &e), recoverCommand(p, &e), keysCommand(p))
	c.Long = `The admin commands talk to a running server, signed with its root keys. All but keys take --json,
which prints what the server answers (docs/admin.md documents it).

They end with 0 when what was asked for is done, 1 when it failed, 2 when the command line or what it
names is wrong, 3 when it was refused because data would become unavailable (--force does it all the
same), and 4 when following work was stopped before the work ended; the work goes on in the server.`
	c.Example = `  eval "$(ostraka admin keys /mnt/d1)"
  ostraka admin info
  ostraka admin drive list
  ostraka admin drive replace /mnt/d3
  ostraka admin heal status --watch`
	e.flags(c, p)
	return c
}

// group is a command that only has others below it.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return errs.E("admin", errs.Invalid, fmt.Sprintf("there is no command %q; see %s --help", args[0], cmd.CommandPath()))
		}
		return cmd.Help()
	}}
	c.AddCommand(below...)
	return c
}

// jsonFlag adds --json to c.
func jsonFlag(c *cobra.Command, to *bool) *cobra.Command {
	c.Flags().BoolVar(to, "json", false, "print the server's answer, as JSON")
	return c
}

// request is one call of the admin interface.
type request struct {
	method, path string // the path below /-/admin/v1/
	query        url.Values
	body         any           // sent as JSON unless it is nil
	timeout      time.Duration // 0: callTimeout
}

// send sends r and decodes the answer into to, which is zero before.
func (e *endpoint) send(ctx context.Context, r request, to any) (raw []byte, err error) {
	if raw, err = e.call(ctx, r); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return nil, &errs.Error{Op: "admin", Kind: errs.Internal, Msg: "the answer is not what this version expects: is the server of another version?", Err: err}
	}
	return raw, nil
}

// show sends r and prints the answer: as it is, or for people.
func show[T any](cmd *cobra.Command, p process, e *endpoint, r request, asJSON bool, people func(io.Writer, *T) error) error {
	answer := new(T)
	raw, err := e.send(cmd.Context(), r, answer)
	switch {
	case err != nil:
		return err
	case asJSON:
		_, err = p.stdout.Write(raw)
		return err
	}
	return people(p.stdout, answer)
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
