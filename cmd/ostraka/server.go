package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rootkeys"
	"github.com/ostraka/ostraka/internal/tlsfiles"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

func serverCommand(p process) *cobra.Command {
	c := &cobra.Command{
		Use:   "server [flags] DRIVE...",
		Short: "Serve the S3 API over directories",
		Long: `Serves the S3 API over one or more directories, the drives: each should be a disk of its own,
mounted, and empty at the first start. A range names several: /mnt/d{1...4} is /mnt/d1 to /mnt/d4
(quote it for shells that expand braces).

The first start forms the store over exactly these drives and writes an identity to each; a
directory that holds anything else is refused and never formatted. Later starts may miss drives, as
long as enough are there; one that comes back is taken in while the server runs.

Root keys come from OSTRAKA_ROOT_ACCESS_KEY and OSTRAKA_ROOT_SECRET_KEY. Without them the first start
makes a pair and keeps it in ` + rootkeys.FileName + ` on each drive, readable by its owner only.

With --node-address it is a node of a cluster. The first one makes the cluster, and the file of
--cluster-secret-file with it; a store that was alone becomes one in the same way. The others join, with
empty directories, --join and a copy of that file. To start again neither is needed. docs/cluster.md is
the whole story.

Every flag can be set by the environment (--cache-size is OSTRAKA_CACHE_SIZE) and in the file of
--config (cache-size:). A flag wins over the environment, and the environment over the file.`,
		Example: `  # four directories: two may be lost without losing data
  ostraka server '/mnt/d{1...4}'

  # on all interfaces with HTTPS, and keys of your own
  export OSTRAKA_ROOT_ACCESS_KEY=admin OSTRAKA_ROOT_SECRET_KEY=change-me-please
  ostraka server --address :9000 --tls-cert cert.pem --tls-key key.pem '/mnt/d{1...6}'

  # twelve drives with four parity shards, buckets also at bucket.s3.example.net
  ostraka server --profile 8+4 --domain s3.example.net '/mnt/d{01...12}'

  # the first node of a cluster, and one that joins it
  ostraka server --node-address 10.0.0.1:7000 --cluster-secret-file /etc/ostraka/secret '/mnt/d{1...4}'
  ostraka server --node-address 10.0.0.2:7000 --cluster-secret-file /etc/ostraka/secret --join 10.0.0.1:7000 '/mnt/d{1...4}'

  # everything in a file
  ostraka server --config /etc/ostraka.yaml`,
	}
	return roleCommand(p, c, config.ServerRole)
}

func gatewayCommand(p process) *cobra.Command {
	return roleCommand(p, &cobra.Command{
		Use:   "gateway [flags]",
		Short: "Serve the S3 API without drives, over those of a cluster",
		Long: `Serves the S3 API over the drives of a cluster's other nodes. It keeps nothing: each start joins anew, with
--join and --cluster-secret-file, and root keys come from the cluster unless they are given.`,
		Example: `  ostraka gateway --address :9000 --node-address 10.0.0.9:7000 --join 10.0.0.1:7000,10.0.0.2:7000 --cluster-secret-file /etc/ostraka/secret`,
	}, config.GatewayRole)
}

func nodeCommand(p process) *cobra.Command {
	return roleCommand(p, &cobra.Command{
		Use:   "node [flags] DRIVE...",
		Short: "Serve drives to the other nodes of a cluster, and no S3",
		Long: `Serves its directories, the drives, to the gateways and servers of a cluster. On --address it answers health,
metrics and the admin commands only. For directories, joining and starting again see ostraka server --help.`,
		Example: `  ostraka node --node-address 10.0.0.4:7000 --join 10.0.0.1:7000 --cluster-secret-file /etc/ostraka/secret --zone rack-2 '/mnt/d{1...4}'`,
	}, config.NodeRole)
}

// roleCommand is a command that runs a role.
func roleCommand(p process, c *cobra.Command, role config.Role) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, warnings, err := config.Load(config.Sources{Role: role, Flags: cmd.Flags(), Environ: p.environ, Read: os.ReadFile, Args: args})
		if err != nil {
			return err
		}
		if cfg.InCluster() && cfg.Name == "" {
			if host, err := os.Hostname(); err == nil {
				cfg.Name = host[:min(len(host), config.MaxName)]
			}
		}
		log := newLogger(p.stderr, cfg)
		for _, w := range warnings {
			log.Warn("environment: " + w)
		}
		return runServer(cmd.Context(), p, cfg, log)
	}
	config.AddFlags(c.Flags(), role)
	return c
}

func newLogger(w io.Writer, cfg *config.Server) *slog.Logger {
	o := &slog.HandlerOptions{Level: cfg.Level()}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// runServer serves until ctx ends, and closes what it opened in the reverse order.
func runServer(ctx context.Context, p process, cfg *config.Server, log *slog.Logger) (err error) {
	limit := limitMemory(cfg.MemoryLimit, p.getenv("GOMEMLIMIT"))
	log.Debug("memory", "limit", limit)
	var pair *tlsfiles.Pair
	if cfg.TLS() {
		if pair, err = tlsfiles.Load(cfg.TLSCert, cfg.TLSKey, time.Now, log); err != nil {
			return err
		}
	}
	// Before any drive is touched: an address that is in use must not form a store.
	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return &errs.Error{Op: "server", Kind: errs.Invalid, Msg: "cannot listen on " + cfg.Address, Err: err}
	}
	defer l.Close() // a second time after serve, harmlessly
	var nodes net.Listener
	if cfg.InCluster() {
		if nodes, err = net.Listen("tcp", cfg.NodeAddress); err != nil {
			return &errs.Error{Op: "server", Kind: errs.Invalid, Msg: "cannot listen on " + cfg.NodeAddress + " for other nodes", Err: err}
		}
		defer nodes.Close() // likewise
	}
	// Whoever asks hears that it is not ready yet, and why, however long it waits for others.
	serving, stop := context.WithCancel(ctx)
	defer stop()
	early := newFront(serving, cfg.Role != config.NodeRole)
	var secure *tls.Config
	if pair != nil {
		secure = pair.Config()
	}
	served := make(chan error, 1)
	go func() { served <- serve(serving, l, early, secure, cfg.ShutdownTimeout, log) }() // is waited for below
	s, err := open(ctx, cfg, nodes, early.waits, log)
	if err != nil {
		stop()
		return errors.Join(err, <-served)
	}
	defer func() {
		// Requests have ended; what is left is quick, or a drive that hangs.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout+5*time.Second)
		defer cancel()
		switch failed := s.close(closing); {
		case err != nil && failed != nil:
			log.Error("closing failed too", "err", failed)
		case failed != nil:
			err = failed
		case err == nil:
			log.Info("stopped")
		}
	}()
	early.open(s.handler)
	if err := s.banner(p.stdout, cfg, l.Addr()); err != nil {
		stop()
		return errors.Join(errs.Wrap("server", err), <-served)
	}
	if ctx.Err() == nil {
		context.AfterFunc(ctx, p.interrupted)
	}
	return <-served
}

// banner prints what a person who started the server wants to know.
func (s *stack) banner(w io.Writer, cfg *config.Server, addr net.Addr) error {
	scheme := "http"
	if cfg.TLS() {
		scheme = "https"
	}
	url := scheme + "://" + dialable(addr)
	var text bytes.Buffer // printed in one piece
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	if cfg.Role == config.NodeRole {
		fmt.Fprintf(t, "ostraka %s serves drives to other nodes on %s\n", version, cfg.Advertise)
	} else {
		fmt.Fprintf(t, "ostraka %s serves S3 on %s (region %s)\n", version, url, cfg.Region)
	}
	if lines := driveLines(s.set.Status()); len(lines) > 0 {
		fmt.Fprintf(t, "  drives\t%s\n", strings.Join(lines, "\n  \t"))
	}
	if s.mesh != nil {
		fmt.Fprintf(t, "  cluster\t%s, of %d nodes with %d drives", s.set.Cluster(), len(s.control.State().Nodes()), len(s.layout().Drives()))
		if cfg.Role != config.GatewayRole { // which issues no certificates
			fmt.Fprintf(t, "; others join with --join %s", cfg.Advertise)
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintf(t, "  profile\t%s\n", describe(s.layout()))
	try := "aws --endpoint-url " + url + " s3 ls"
	if cfg.Role == config.GatewayRole && cfg.RootAccessKey == "" {
		fmt.Fprintf(t, "  root keys\tthose of the cluster (the access key is %s)\n", s.access)
	} else if s.keysFrom == "" {
		fmt.Fprintf(t, "  root keys\tas given (OSTRAKA_ROOT_ACCESS_KEY is %s)\n", s.access)
	} else {
		fmt.Fprintf(t, "  root keys\tin %s, the same on every drive, readable by you only\n", s.keysFrom)
		try = fmt.Sprintf("eval \"$(%s admin keys %s)\" && %s", os.Args[0], filepath.Dir(s.keysFrom), try)
	}
	if cfg.Role != config.NodeRole {
		fmt.Fprintf(t, "  try\t%s\n", try)
	}
	fmt.Fprintf(t, "  operate\t%s/-/ready, %s/-/metrics, ostraka admin status --endpoint %s\n", url, url, url)
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := w.Write(text.Bytes())
	return err
}

// dialable is an address that a client on this machine can use.
func dialable(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if ok && t.IP.IsUnspecified() {
		return fmt.Sprintf("127.0.0.1:%d", t.Port)
	}
	return a.String()
}

func driveLines(paths []node.PathStatus) []string {
	var lines []string
	for _, p := range paths {
		state := "online"
		if !p.Open {
			state = "NOT THERE"
			if p.State == node.PathEmpty && !p.Known {
				state = "empty: a spare, or a disk that is not mounted"
			} else if p.Err != nil {
				state += ": " + p.Err.Error()
			}
		}
		lines = append(lines, p.Path+"\t"+state)
	}
	return lines
}

// describe says in words what a profile promises.
func describe(l *placement.Layout) string {
	p := l.Profile()
	q := placement.RecordQuorum(p, l.Spread())
	says := fmt.Sprintf("%s, so %s may be lost for good without losing data; with %s away writes go on, with %s reads do",
		profileName(p), drives(int(p.Parity)), drives(q.N-q.W), drives(q.N-q.R))
	if n := l.Narrow(); n > 0 {
		says += fmt.Sprintf(", once all partitions are as wide: %d of %d are not", n, l.Partitions())
	}
	return says
}

func drives(n int) string {
	if n == 1 {
		return "1 drive"
	}
	if n == 0 {
		return "no drive"
	}
	return fmt.Sprintf("%d drives", n)
}

func profileName(p erasure.Profile) string { return fmt.Sprintf("%d+%d", p.Data, p.Parity) }
