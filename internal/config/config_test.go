package config

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/ostraka/ostraka/internal/errs"
)

// load runs Load with flags given as on a command line, and one file.
func load(t *testing.T, args []string, env []string, file string) (*Server, []string, error) {
	t.Helper()
	set := pflag.NewFlagSet("server", pflag.ContinueOnError)
	AddFlags(set, ServerRole)
	if err := set.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	return Load(Sources{Flags: set, Environ: env, Args: set.Args(), Read: func(name string) ([]byte, error) {
		if name != "o.yaml" {
			return nil, fs.ErrNotExist
		}
		return []byte(file), nil
	}})
}

func TestAFlagWinsOverEnvironmentOverFileOverDefault(t *testing.T) {
	file := "region: from-file\naddress: 127.0.0.1:1\nlog-level: warn\ncache-size: 1MiB\ndomain: [a.test, b.test]\n"
	env := []string{"OSTRAKA_ADDRESS=127.0.0.1:2", "OSTRAKA_LOG_LEVEL=error", "HOME=/nowhere"}
	s, warnings, err := load(t, []string{"--config", "o.yaml", "--log-level", "debug", "/d1"}, env, file)
	if err != nil {
		t.Fatal(err)
	}
	want := &Server{
		Role:   ServerRole,
		Drives: []string{"/d1"}, Region: "from-file", Address: "127.0.0.1:2", LogLevel: "debug", LogFormat: "text",
		CacheSize: 1 << 20, ShutdownTimeout: 30 * time.Second, Domains: []string{"a.test", "b.test"},
	}
	if !reflect.DeepEqual(s, want) || len(warnings) != 0 {
		t.Errorf("got  %+v (warnings %q)\nwant %+v", s, warnings, want)
	}
}

func TestTheEnvironmentCanSetEverything(t *testing.T) {
	env := []string{"OSTRAKA_DRIVES=/a{1...2} /b", "OSTRAKA_DOMAIN=x.test,y.test", "OSTRAKA_PROFILE=2+1", "OSTRAKA_SIGV2=true", "OSTRAKA_RRS_PROFILE=3+0",
		"OSTRAKA_ROOT_ACCESS_KEY=abc", "OSTRAKA_ROOT_SECRET_KEY=12345678", "OSTRAKA_MEMORY_LIMIT=1GiB", "OSTRAKA_SHUTDOWN_TIMEOUT=5s",
		"OSTRAKA_TLS_CERT=c.pem", "OSTRAKA_TLS_KEY=k.pem", "OSTRAKA_SERVICE_HOST=10.0.0.1", "OSTRAKA_ENDPOINT=http://x"}
	s, warnings, err := load(t, nil, env, "")
	if err != nil {
		t.Fatal(err)
	}
	want := &Server{
		Role:   ServerRole,
		Drives: []string{"/a1", "/a2", "/b"}, Domains: []string{"x.test", "y.test"}, Profile: "2+1", SigV2: true, RRSProfile: "3+0",
		RootAccessKey: "abc", RootSecretKey: "12345678", MemoryLimit: 1 << 30, ShutdownTimeout: 5 * time.Second,
		TLSCert: "c.pem", TLSKey: "k.pem", Address: "127.0.0.1:9000", Region: "us-east-1", CacheSize: 64 << 20, LogLevel: "info", LogFormat: "text",
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "OSTRAKA_SERVICE_HOST") {
		t.Errorf("warnings %q, want one about OSTRAKA_SERVICE_HOST", warnings)
	}
	if text := fmt.Sprintf("%v %+v %#v", s.RootSecretKey, s, *s); strings.Contains(text, "12345678") {
		t.Errorf("the secret prints itself: %s", text)
	}
}

func TestBadSettingsAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		name, file, says string
		args, env        []string
	}{
		{name: "no drive", says: "no drive"},
		{name: "an unknown key in the file", args: []string{"--config", "o.yaml", "/d"}, file: "adress: x\n", says: `"adress"`},
		{name: "a nested key in the file", args: []string{"--config", "o.yaml", "/d"}, file: "tls:\n  cert: x\n", says: "tls.cert"},
		{name: "a file that is not YAML", args: []string{"--config", "o.yaml", "/d"}, file: "a: b: c", says: "not YAML"},
		{name: "a file that is not there", args: []string{"--config", "p.yaml", "/d"}, says: "cannot be read"},
		{name: "an address without port", args: []string{"--address", "localhost", "/d"}, says: "HOST:PORT"},
		{name: "a region with a space", args: []string{"--region", "a b", "/d"}, says: "region"},
		{name: "a domain with a port", args: []string{"--domain", "a:80", "/d"}, says: "domain"},
		{name: "a profile without data", args: []string{"--profile", "0+2", "/d"}, says: "profile"},
		{name: "a profile that is too wide", args: []string{"--profile", "250+6", "/d"}, says: "profile"},
		{name: "a certificate without key", args: []string{"--tls-cert", "c", "/d"}, says: "go together"},
		{name: "a switch that is neither on nor off", env: []string{"OSTRAKA_SIGV2=perhaps"}, args: []string{"/d"}, says: "wrong form"},
		{name: "a log level nobody knows", args: []string{"--log-level", "loud", "/d"}, says: "log-level"},
		{name: "a log format nobody knows", args: []string{"--log-format", "xml", "/d"}, says: "log-format"},
		{name: "a negative timeout", args: []string{"--shutdown-timeout", "-1s", "/d"}, says: "shutdown-timeout"},
		{name: "a timeout without unit", args: []string{"--shutdown-timeout", "soon", "/d"}, says: "wrong form"},
		{name: "a size that is none", args: []string{"--cache-size", "big", "/d"}, says: "wrong form"},
		{name: "a tiny memory limit", args: []string{"--memory-limit", "1MiB", "/d"}, says: "memory-limit"},
		{name: "a secret alone", args: []string{"/d"}, env: []string{"OSTRAKA_ROOT_SECRET_KEY=12345678"}, says: "go together"},
		{name: "a short access key", args: []string{"/d"}, env: []string{"OSTRAKA_ROOT_ACCESS_KEY=ab", "OSTRAKA_ROOT_SECRET_KEY=12345678"}, says: "access key"},
		{name: "a short secret key", args: []string{"/d"}, env: []string{"OSTRAKA_ROOT_ACCESS_KEY=abc", "OSTRAKA_ROOT_SECRET_KEY=1234567"}, says: "secret key"},
		{name: "a slash in the access key", args: []string{"/d"}, env: []string{"OSTRAKA_ROOT_ACCESS_KEY=a/c", "OSTRAKA_ROOT_SECRET_KEY=12345678"}, says: "slash"},
		{name: "a drive twice", args: []string{"/d1", "/d{1...2}"}, says: "twice"},
		{name: "a drive inside another", args: []string{"/d", "/d/x"}, says: "inside"},
		{name: "a test setting outside of tests", args: []string{"--unsafe-test-chunk-size", "1MiB", "/d"}, says: "refused"},
		{name: "another test setting outside of tests", args: []string{"--unsafe-test-protocol", "1-1", "/d"}, says: "refused"},
		{name: "versions that are no range", args: []string{"--unsafe-test-protocol", "2-1", "/d"}, says: "wrong form"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := load(t, c.args, c.env, c.file)
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("got error %v, want kind invalid", err)
			}
			if got := errs.Public(err); !strings.Contains(got, c.says) {
				t.Errorf("the message %q does not say %q", got, c.says)
			}
			if strings.Contains(err.Error(), "12345678") {
				t.Errorf("the message shows the secret: %v", err)
			}
		})
	}
	if _, _, err := load(t, []string{"--unsafe-test-chunk-size", "1MiB", "/d"}, []string{TestingEnv + "=yes"}, ""); err != nil {
		t.Errorf("a test setting in a test: %v", err)
	}
	c, _, err := load(t, []string{"--unsafe-test-protocol", "1-2", "/d"}, []string{TestingEnv + "=yes"}, "")
	if err != nil || c.TestProtocol != (Versions{Oldest: 1, Newest: 2}) {
		t.Errorf("versions 1-2: %+v, %v", c, err)
	}
}

func TestExpand(t *testing.T) {
	for in, want := range map[string][]string{
		"/d":                {"/d"},
		"d{1...4}":          {"d1", "d2", "d3", "d4"},
		"d{08...10}/x":      {"d08/x", "d09/x", "d10/x"},
		"h{1...2}/d{3...4}": {"h1/d3", "h1/d4", "h2/d3", "h2/d4"},
		"d{5...5}":          {"d5"},
	} {
		got, err := Expand(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Expand(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "d{", "d}", "d{}", "d{1}", "d{1..4}", "d{4...1}", "d{a...b}", "d{1...4}}", "d{1...2}{", "d{1...99999999}", "{1...100}{1...100}", "d{-1...2}"} {
		if got, err := Expand(in); !errs.Is(err, errs.Invalid) {
			t.Errorf("Expand(%q) = %q, %v; want a refusal", in, got, err)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]Size{"0": 0, "17": 17, "5B": 5, "64KiB": 64 << 10, "256 MiB": 256 << 20, "2GiB": 2 << 30, "1TiB": 1 << 40, "3kB": 3000, "1GB": 1e9} {
		var z Size
		if err := z.UnmarshalText([]byte(in)); err != nil || z != want {
			t.Errorf("%q reads as %d, %v; want %d", in, z, err, want)
		}
		var back Size
		if err := back.UnmarshalText([]byte(z.String())); err != nil || back != z {
			t.Errorf("%d prints as %q, which reads as %d, %v", z, z.String(), back, err)
		}
	}
	for _, in := range []string{"", "MiB", "-1", "1.5GiB", "1PiB", "9999999999TiB", "1 M"} {
		var z Size
		var e *errs.Error
		if err := z.UnmarshalText([]byte(in)); !errors.As(err, &e) {
			t.Errorf("%q reads as %d, %v; want a refusal", in, z, err)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"d{1...4}", "{", "}", "{01...3}x{2...2}", "{...}", "{1...4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out, err := Expand(s)
		if err == nil && (len(out) == 0 || len(out) > MaxDrives) {
			t.Errorf("Expand(%q) gives %d drives", s, len(out))
		}
		for _, d := range out {
			if strings.ContainsAny(d, "{}") {
				t.Errorf("Expand(%q) leaves braces in %q", s, d)
			}
		}
	})
}

func TestSettingsOfANodeOfACluster(t *testing.T) {
	args := []string{"--node-address", "127.0.0.2:7000", "--join", "10.0.0.1:7000,10.0.0.2:7000", "--cluster-secret-file", "s", "--zone", "z1", "/d1"}
	s, _, err := load(t, args, []string{"OSTRAKA_NAME=one"}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := Cluster{NodeAddress: "127.0.0.2:7000", GossipAddress: "127.0.0.2:7001", Advertise: "127.0.0.2:7000", Join: []string{"10.0.0.1:7000", "10.0.0.2:7000"},
		SecretFile: "s", Name: "one", Zone: "z1"}
	if !reflect.DeepEqual(s.Cluster, want) || !s.InCluster() || s.GossipAdvertised() != "127.0.0.2:7001" {
		t.Errorf("got  %+v\nwant %+v", s.Cluster, want)
	}
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"a zone of a process that is alone", []string{"--zone", "z", "/d"}, "zone is about clusters"},
		{"joining without the secret", []string{"--node-address", "127.0.0.1:7000", "--join", "127.0.0.1:8000", "/d"}, "cluster-secret-file"},
		{"every interface without another address", []string{"--node-address", ":7000", "/d"}, "advertise"},
		{"a port that is a name", []string{"--node-address", "127.0.0.1:http", "/d"}, "node-address"},
		{"who joins waits for nobody", []string{"--node-address", "127.0.0.1:7000", "--join", "127.0.0.1:8000", "--cluster-secret-file", "s", "--expect", "3", "/d"}, "expect"},
	} {
		if _, _, err := load(t, c.args, nil, ""); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}

func TestRolesHaveTheirOwnSettings(t *testing.T) {
	loadAs := func(role Role, args ...string) error {
		set := pflag.NewFlagSet(string(role), pflag.ContinueOnError)
		AddFlags(set, role)
		if err := set.Parse(args); err != nil {
			return err
		}
		_, _, err := Load(Sources{Role: role, Flags: set, Args: set.Args()})
		return err
	}
	in := []string{"--node-address", "127.0.0.1:7000"}
	join := append(in, "--join", "127.0.0.1:8000", "--cluster-secret-file", "s")
	for _, c := range []struct {
		name string
		role Role
		args []string
		says string // "" if it is fine
	}{
		{"a gateway", GatewayRole, join, ""},
		{"a gateway with a drive", GatewayRole, append(join, "/d"), "no drives"},
		{"a gateway that joins nothing", GatewayRole, in, "join"},
		{"a gateway with a profile", GatewayRole, append(join, "--profile", "2+2"), "unknown flag"},
		{"a node", NodeRole, append(in, "/d"), ""},
		{"a node that is alone", NodeRole, []string{"/d"}, "node-address"},
		{"a node with a cache", NodeRole, append(in, "--cache-size", "1MiB", "/d"), "unknown flag"},
	} {
		err := loadAs(c.role, c.args...)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}
