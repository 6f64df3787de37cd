package integration

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A network of network namespaces: one for each node, with an interface and an address of its own, and one
// in which a bridge joins them and the test itself runs. Nothing of it has a name outside: the
// namespaces are held by open files of the test and by the nodes in them, and go with the last of these, however
// the test ends.

// privateNetwork in the environment names the test that this process runs in a network namespace of its own.
const privateNetwork = "PRIVATE_NETWORK_OF_TEST"

// inOwnNetwork reports whether the test runs in a network namespace of its own. Where it does not, it runs the test
// again in a process that has one, and reports false when that has ended. Where that cannot be, the test is
// skipped, or fails where faults are required.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(privateNetwork) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		lacking(t, "nodes in network namespaces, because this user is not root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		lacking(t, "nodes in network namespaces, because there is no ip command (package iproute2)")
	}
	args := []string{"-test.run=^" + t.Name() + "$" + subtestsOf(flag.Lookup("test.run").Value.String()), "-test.v", "-test.count=1", "-test.timeout=3h",
		"-ostraka=" + *exe, fmt.Sprintf("-seed=%d", *seedFlag), fmt.Sprintf("-long=%v", *long), fmt.Sprintf("-require-faults=%v", *requireFaults),
		fmt.Sprintf("-require-aws=%v", *requireAWS)}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-5*time.Second))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), privateNetwork+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		lacking(t, fmt.Sprintf("nodes in network namespaces, because this machine makes none: %v", err))
	} else if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("in a network of its own: %v (%v)\n%s", err, context.Cause(ctx), out.Bytes())
	} else {
		t.Logf("in a network of its own:\n%s", out.Bytes())
	}
	return false
}

// subtestsOf is what the flag -run says of subtests, with its slash.
func subtestsOf(run string) string {
	if i := strings.IndexByte(run, '/'); i >= 0 {
		return run[i:]
	}
	return ""
}

// netspace is the network namespace of one node.
type netspace struct {
	net  *testNet
	file *os.File // of the namespace
	addr netip.Addr
}

// testNet is the bridge, in the namespace of the test, and what is joined to it.
type testNet struct {
	t      testing.TB // what fails
	whole  testing.TB // what the namespaces end with
	spaces []*netspace
	next   netip.Addr
}

// newNet makes the bridge. The test must be inOwnNetwork.
func newNet(t testing.TB) *testNet {
	t.Helper()
	n := &testNet{t: t, whole: t, next: netip.MustParseAddr("198.18.0.1")}
	n.ip("link set lo up", "link add hub type bridge", "addr add 198.18.0.254/24 dev hub", "link set hub up")
	return n
}

// ip runs the lines with the ip command in the namespace of the calling thread.
func (n *testNet) ip(lines ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("ip -batch: %v\n%s\n%s", err, strings.Join(lines, "\n"), out)
	}
}

// add makes the namespace of one more node.
func (n *testNet) add() *netspace {
	n.t.Helper()
	s := &netspace{net: n, addr: n.next}
	n.next = n.next.Next()
	home := openNetspace(n.t)
	defer home.Close()
	onThread(n.t, home, func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			n.t.Fatalf("unshare the network: %v", err)
		}
		s.file = openNetspace(n.t)
	})
	n.whole.Cleanup(func() { s.file.Close() })
	near, far := fmt.Sprintf("v%d", len(n.spaces)), fmt.Sprintf("e%d", len(n.spaces))
	n.ip(fmt.Sprintf("link add %s type veth peer name %s", near, far),
		fmt.Sprintf("link set %s netns /proc/%d/fd/%d", far, os.Getpid(), s.file.Fd()),
		fmt.Sprintf("link set %s master hub", near), fmt.Sprintf("link set %s up", near))
	s.do(func() {
		n.ip("link set lo up", fmt.Sprintf("link set %s name eth0", far), fmt.Sprintf("addr add %v/24 dev eth0", s.addr), "link set eth0 up")
	})
	n.spaces = append(n.spaces, s)
	return s
}

func openNetspace(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// onThread runs f on a thread that does nothing else meanwhile and is in the namespace of home afterwards. The thread
// must live on: the death of one that started a node would end the node.
func onThread(t testing.TB, home *os.File, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("back to the namespace of the test: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// do runs f in the namespace. What f starts stays there.
func (s *netspace) do(f func()) {
	s.net.t.Helper()
	home := openNetspace(s.net.t)
	defer home.Close()
	onThread(s.net.t, home, func() {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			s.net.t.Fatalf("into a namespace: %v", err)
		}
		f()
	})
}

// cutKind is how packets to another node are lost.
type cutKind int

const (
	silently  cutKind = iota // they are sent, and nobody takes them
	blackhole                // the sender's kernel has no way for them, and says so
)

// cut loses everything that is sent from here to the others. What they send arrives, and is not acknowledged.
func (s *netspace) cut(kind cutKind, others ...*netspace) {
	s.net.t.Helper()
	var lines []string
	for _, o := range others {
		if kind == blackhole {
			lines = append(lines, fmt.Sprintf("route add blackhole %v/32", o.addr))
		} else {
			lines = append(lines, fmt.Sprintf("neigh replace %v lladdr 02:00:00:00:00:01 nud permanent dev eth0", o.addr))
		}
	}
	s.do(func() { s.net.ip(lines...) })
}

// mend undoes a cut.
func (s *netspace) mend(kind cutKind, others ...*netspace) {
	s.net.t.Helper()
	var lines []string
	for _, o := range others {
		if kind == blackhole {
			lines = append(lines, fmt.Sprintf("route del blackhole %v/32", o.addr))
		} else {
			lines = append(lines, fmt.Sprintf("neigh del %v dev eth0", o.addr))
		}
	}
	s.do(func() { s.net.ip(lines...) })
}

// others are all but this one.
func (s *netspace) others() []*netspace {
	var list []*netspace
	for _, o := range s.net.spaces {
		if o != s {
			list = append(list, o)
		}
	}
	return list
}
