package config

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/ostraka/ostraka/internal/errs"
)

// Role is what a process does for the store.
type Role string

// The roles.
const (
	ServerRole  Role = "server"  // it serves S3 and has drives
	GatewayRole Role = "gateway" // it serves S3 and has no drives: they are other nodes'
	NodeRole    Role = "node"    // it has drives and serves no S3
)

// Cluster is what a process is told of the cluster that it belongs to. All zero: it is alone.
type Cluster struct {
	NodeAddress   string   `koanf:"node-address"`   // to listen on for other nodes; "": alone
	GossipAddress string   `koanf:"gossip-address"` // to gossip on; Load fills it in
	Advertise     string   `koanf:"advertise"`      // node address as others reach it; Load fills it in
	Join          []string `koanf:"join"`           // node addresses of members
	SecretFile    string   `koanf:"cluster-secret-file"`
	Name          string   `koanf:"name"` // for people
	Zone          string   `koanf:"zone"`
	Expect        int      `koanf:"expect"` // nodes that a new cluster waits for; 0: none
}

// InCluster reports whether the process is a node of a cluster.
func (c *Cluster) InCluster() bool { return c.NodeAddress != "" }

// GossipAdvertised is where others reach the gossip of this process.
func (c *Cluster) GossipAdvertised() string {
	host, _, _ := net.SplitHostPort(c.Advertise)
	_, port, _ := net.SplitHostPort(c.GossipAddress)
	return net.JoinHostPort(host, port)
}

// MaxName bounds the name and the zone of a node, in bytes.
const MaxName = 48

const maxExpect = 256 // nodes

// foreign are the settings that a role does not have.
var foreign = map[Role][]string{
	GatewayRole: {"profile", "rrs-profile", "expect"},
	NodeRole:    {"domain", "sigv2", "cache-size"},
}

// has reports whether a role knows a setting.
func (r Role) has(name string) bool { return !slices.Contains(foreign[r], name) }

func addClusterFlags(fs *pflag.FlagSet, role Role) {
	alone := "; without it the process is alone"
	if role != ServerRole {
		alone = ""
	}
	fs.String("node-address", "", "`HOST:PORT` for the other nodes of the cluster"+alone)
	fs.String("gossip-address", "", "`HOST:PORT` to gossip on, UDP and TCP (default: the port after that of --node-address)")
	fs.String("advertise", "", "`HOST:PORT` at which others reach the node address (default: --node-address)")
	fs.StringSlice("join", nil, "node addresses (`HOST:PORT`) of members of the cluster to join; not needed to start again")
	fs.String("cluster-secret-file", "", "`FILE` with the secret of the cluster, needed to make or to join one; who makes one, and has no such file, gets it made")
	fs.String("name", "", "`NAME` of this node, for people (default: the name of the machine)")
	fs.String("zone", "", "failure domain above the node, such as `rack-2`")
	if role.has("expect") {
		fs.String("expect", "", "`NODES` with drives that a new cluster waits for before it is laid out; until then it takes no data")
	}
}

// checkCluster refuses what cannot work, and fills in what follows from other settings.
func (s *Server) checkCluster() error {
	bad := func(format string, args ...any) error {
		return errs.E("config.Load", errs.Invalid, fmt.Sprintf(format, args...))
	}
	c := &s.Cluster
	if !c.InCluster() {
		if s.Role != ServerRole {
			return bad("a %s belongs to a cluster: set node-address, at which other nodes reach it", s.Role)
		}
		for name, set := range map[string]bool{"gossip-address": c.GossipAddress != "", "advertise": c.Advertise != "", "join": len(c.Join) > 0,
			"cluster-secret-file": c.SecretFile != "", "name": c.Name != "", "zone": c.Zone != "", "expect": c.Expect != 0} {
			if set {
				return bad("%s is about clusters: it needs node-address, at which other nodes reach this one", name)
			}
		}
		return nil
	}
	host, port, err := splitAddress(c.NodeAddress)
	if err != nil {
		return bad("node-address %q is not HOST:PORT with a number as port", c.NodeAddress)
	}
	if c.Advertise == "" {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			return bad("node-address %q is every interface: say in advertise at which HOST:PORT others reach it", c.NodeAddress)
		}
		c.Advertise = c.NodeAddress
	}
	if host, _, err := splitAddress(c.Advertise); err != nil || host == "" {
		return bad("advertise %q is not HOST:PORT", c.Advertise)
	}
	if c.GossipAddress == "" {
		if port == 65535 {
			return bad("there is no port after that of node-address: set gossip-address")
		}
		c.GossipAddress = net.JoinHostPort(host, strconv.Itoa(port+1))
	}
	if _, _, err := splitAddress(c.GossipAddress); err != nil {
		return bad("gossip-address %q is not HOST:PORT with a number as port", c.GossipAddress)
	}
	for _, a := range c.Join {
		if host, _, err := splitAddress(a); err != nil || host == "" {
			return bad("join %q is not HOST:PORT", a)
		}
	}
	if len(c.Join) > 0 && c.SecretFile == "" {
		return bad("join needs cluster-secret-file, a copy of the file of the node that made the cluster")
	}
	if s.Role == GatewayRole && len(c.Join) == 0 {
		return bad("a gateway keeps nothing: it needs join and cluster-secret-file at every start")
	}
	for name, text := range map[string]string{"name": c.Name, "zone": c.Zone} {
		if len(text) > MaxName || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return bad("%s %q is longer than %d bytes, or not printable", name, text, MaxName)
		}
	}
	switch {
	case c.Expect < 0 || c.Expect > maxExpect:
		return bad("expect %d is not a number of nodes up to %d", c.Expect, maxExpect)
	case c.Expect > 0 && len(c.Join) > 0:
		return bad("expect is for the node that makes a cluster, not for one that joins")
	}
	return nil
}

// splitAddress takes HOST:PORT apart, of which the port is a number from 1.
func splitAddress(a string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(a)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil && n == 0 || strings.ContainsAny(host, " /") {
		err = fmt.Errorf("%q is no address of a node", a)
	}
	return host, int(n), err
}
