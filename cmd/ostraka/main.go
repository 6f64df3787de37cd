// Command ostraka is an S3-compatible object store that erasure-codes objects over drives.
//
// This package owns the command line: flags → configuration → constructors → run. It is the only
// place where the environment is read, where packages meet (wire.go), and where the process ends.
// It never decides anything about data.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, process{args: os.Args[1:], environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, interrupted: stop, terminal: terminal})
	stop()
	os.Exit(code)
}

// process is what a command knows of the process that it runs in.
type process struct {
	args           []string
	environ        []string
	stdin          io.Reader // nil: nobody is there to be asked
	stdout, stderr io.Writer
	interrupted    func() // a second signal ends the process at once after this was called
	// terminal says how wide the terminal is that stdin and stdout are, if they are one; nil: they are none.
	terminal  func() (width int, ok bool)
	lookEvery time.Duration // how often work that is followed is looked at; 0: as is good for people
}

// terminal looks at the process's own stdin and stdout.
func terminal() (width int, ok bool) {
	if _, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err != nil {
		return 0, false
	}
	size, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if size.Col == 0 {
		return 80, true
	}
	return int(size.Col), true
}

// getenv looks a variable up in p.environ.
func (p process) getenv(name string) string {
	for i := len(p.environ) - 1; i >= 0; i-- {
		if e := p.environ[i]; len(e) > len(name) && e[len(name)] == '=' && e[:len(name)] == name {
			return e[len(name)+1:]
		}
	}
	return ""
}

// run runs one command line and returns the exit code: 0, 1 for a failure, 2 for a wrong command
// line or configuration, or one that names what is not there, 3 for what was refused because of what it would do, 4 for what was stopped
// by whoever began it.
func run(ctx context.Context, p process) int {
	root := &cobra.Command{
		Use:   "ostraka",
		Short: "An S3-compatible object store, erasure-coded over drives",
		Long: `Ostraka serves the S3 API over directories, each normally one mounted disk. Objects are cut into
erasure-coded shards, one on each drive of a set, so that drives may fail and nothing is lost.

Start with: ostraka server --help`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.SetArgs(p.args)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &errs.Error{Op: c.CommandPath(), Kind: errs.Invalid, Msg: fmt.Sprintf("%v; see %s --help", err, c.CommandPath())}
	})
	root.AddCommand(serverCommand(p), gatewayCommand(p), nodeCommand(p), adminCommand(p), benchCommand(p), versionCommand(p))
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	printError(p.stderr, err, wantsJSON(c, p.args))
	switch errs.KindOf(err) {
	case errs.Invalid, errs.NotFound:
		return 2
	case errs.Precondition:
		return 3
	case errs.Canceled:
		return 4
	}
	return 1
}

// wantsJSON reports whether a command was called with --json. A command line that is wrong may not have been read so far.
func wantsJSON(c *cobra.Command, args []string) bool {
	f := c.Flags().Lookup("json")
	return f != nil && (f.Value.String() == "true" || !f.Changed && slices.Contains(args, "--json"))
}

// printError prints why a command failed: for people, or as the object that the admin interface answers.
// stdout is left to answers.
func printError(w io.Writer, err error, asJSON bool) {
	if !asJSON {
		fmt.Fprintln(w, "ostraka:", explain(err))
		return
	}
	var f console.Failure
	f.Error.Kind, f.Error.Message = errs.KindOf(err).String(), explain(err)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(f); err != nil {
		fmt.Fprintln(w, "ostraka:", f.Error.Message)
	}
}

// explain is the text of an error for a person at a terminal: what may be said, then the cause.
// Of joined errors it explains the first.
func explain(err error) string {
	var texts []string
	for err != nil {
		if at, ok := err.(*disk.StatusError); ok { // it names the path, and says what to do
			texts = append(texts, at.Error())
			break
		}
		e, ok := err.(*errs.Error)
		if ok && e.Msg != "" {
			texts = append(texts, e.Msg)
		}
		next := errors.Unwrap(err)
		if many, ok := err.(interface{ Unwrap() []error }); ok && len(many.Unwrap()) > 0 {
			next = many.Unwrap()[0]
		}
		if next == nil && !ok { // the cause itself, such as that of the operating system
			texts = append(texts, err.Error())
		} else if next == nil && e.Msg == "" {
			texts = append(texts, e.Error())
		}
		err = next
	}
	return strings.Join(slices.Compact(texts), ": ")
}

func versionCommand(p process) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(p.stdout, "ostraka %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
