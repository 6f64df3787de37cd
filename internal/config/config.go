// Package config owns the settings of `ostraka server`, `gateway` and `node`: their names, defaults, help texts and
// limits, and the order in which their sources win: flag, then environment (OSTRAKA_…), then the
// YAML file of --config, then the default. The names are the same everywhere: --cache-size is
// OSTRAKA_CACHE_SIZE and `cache-size:`.
//
// It never reads the environment or a file by itself (the caller hands both in), never starts
// anything, and never prints. A setting that is unknown in the file, or out of its limits, is an
// error that names it; nothing is accepted and ignored. Unknown OSTRAKA_ variables are reported
// and not refused, because orchestrators inject such names for a service called ostraka.
package config

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/ostraka/ostraka/internal/errs"
)

// EnvPrefix begins the name of every environment variable of the program.
const EnvPrefix = "OSTRAKA_"

// TestingEnv has to be "yes" for the unsafe test settings to be accepted.
const TestingEnv = "OSTRAKA_UNSAFE_TESTING"

// Limits of the keys, as the S3 clients in use accept them.
const (
	MinAccessKey = 3
	MaxAccessKey = 128
	MinSecretKey = 8
	MaxSecretKey = 128
)

// Server is everything that `ostraka server`, `gateway` and `node` can be told.
type Server struct {
	// Role is which of them it is.
	Role    Role `koanf:"-"`
	Cluster `koanf:",squash"`

	Drives          []string      `koanf:"drives"`
	Address         string        `koanf:"address"`
	Region          string        `koanf:"region"`
	Domains         []string      `koanf:"domain"`
	SigV2           bool          `koanf:"sigv2"`       // also accept Signature Version 2
	Profile         string        `koanf:"profile"`     // "" chooses by the number of drives
	RRSProfile      string        `koanf:"rrs-profile"` // "" derives it from Profile
	TLSCert         string        `koanf:"tls-cert"`
	TLSKey          string        `koanf:"tls-key"`
	CacheSize       Size          `koanf:"cache-size"`
	MemoryLimit     Size          `koanf:"memory-limit"` // 0: chosen from the machine
	LogLevel        string        `koanf:"log-level"`
	LogFormat       string        `koanf:"log-format"`
	ShutdownTimeout time.Duration `koanf:"shutdown-timeout"`

	// RootAccessKey and RootSecretKey have no flag, because arguments are visible to every user
	// of the machine. Both or neither are set.
	RootAccessKey string `koanf:"root-access-key"`
	RootSecretKey Secret `koanf:"root-secret-key"`

	// The following exist for the tests of the project; zero is the real value.
	TestMinPartSize Size     `koanf:"unsafe-test-min-part-size"`
	TestChunkSize   Size     `koanf:"unsafe-test-chunk-size"`
	TestProtocol    Versions `koanf:"unsafe-test-protocol"` // that are spoken between nodes
}

// unsafeTest are the settings that only tests may use.
var unsafeTest = []string{"unsafe-test-min-part-size", "unsafe-test-chunk-size", "unsafe-test-protocol"}

// Versions is a range of versions, such as 1-2. Zero: none is given.
type Versions struct{ Oldest, Newest uint32 }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Versions) UnmarshalText(text []byte) error {
	oldest, newest, ok := strings.Cut(string(text), "-")
	a, err := strconv.ParseUint(oldest, 10, 31)
	b, err2 := strconv.ParseUint(newest, 10, 31)
	if !ok || err != nil || err2 != nil || a == 0 || a > b {
		return errs.E("config.Versions", errs.Invalid, fmt.Sprintf("%q is no range of versions, such as 1-2", text))
	}
	v.Oldest, v.Newest = uint32(a), uint32(b)
	return nil
}

// Secret is a string that never prints itself.
type Secret string

// String hides the secret from logs and %v.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[hidden]"
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// defaults are the values of the settings that nobody set.
var defaults = map[string]any{
	"address":          "127.0.0.1:9000",
	"region":           "us-east-1",
	"cache-size":       "64MiB",
	"log-level":        "info",
	"log-format":       "text",
	"shutdown-timeout": "30s",
}

// withoutFlag are the settings that exist in environment and file only.
var withoutFlag = []string{"drives", "root-access-key", "root-secret-key"}

// outside are the variables with the program's prefix that are no settings of the server: those
// of the admin and bench commands, and the test switch.
var outside = map[string]bool{
	EnvPrefix + "CONFIG": true, TestingEnv: true, EnvPrefix + "ENDPOINT": true,
	EnvPrefix + "ACCESS_KEY": true, EnvPrefix + "SECRET_KEY": true,
}

// AddFlags defines the flags of a role on fs. Their defaults are shown and not applied there:
// Load does that, after the environment and the file had their say.
func AddFlags(fs *pflag.FlagSet, role Role) {
	text := func(name, value string) string {
		if d, ok := defaults[name]; ok {
			return fmt.Sprintf("%s (default %v)", value, d)
		}
		return value
	}
	address := "`HOST:PORT` to serve S3 on; :9000 is every interface"
	if role == NodeRole {
		address = "`HOST:PORT` of health, metrics and administration; :9000 is every interface"
	}
	for _, f := range []struct{ name, usage string }{
		{"address", address},
		{"region", "the `REGION` that buckets are in and signatures name"},
		{"profile", "data+parity shards of a new store, such as `2+2`; by default chosen from the number of drives"},
		{"rrs-profile", "`K+M` of the storage class REDUCED_REDUNDANCY; by default half the parity of --profile"},
		{"tls-cert", "PEM `FILE` with the certificate chain: serve HTTPS; read again when it changes"},
		{"tls-key", "PEM `FILE` with the key of --tls-cert"},
		{"cache-size", "memory for decoded blocks, such as `256MiB`; 0 turns the cache off"},
		{"memory-limit", "soft limit of the Go heap, as `SIZE`; GOMEMLIMIT wins over it; by default a quarter of the memory"},
		{"log-level", "`LEVEL`: debug, info, warn or error"},
		{"log-format", "`FORMAT`: text or json"},
		{"shutdown-timeout", "how long running requests may take to end after SIGTERM, such as `30s`"},
	} {
		if role.has(f.name) {
			fs.String(f.name, "", text(f.name, f.usage))
		}
	}
	if role != NodeRole {
		fs.StringSlice("domain", nil, "base `DOMAIN` of virtual-host style addresses (bucket.DOMAIN); may be repeated")
		fs.Bool("sigv2", false, "also accept Signature Version 2, for clients that know no other; off because it is obsolete: it rests on SHA-1 "+
			"and signs neither the body nor most of the query, so that whoever sees a request or a presigned URL can change these")
	}
	addClusterFlags(fs, role)
	fs.String("config", "", "YAML `FILE` with settings of the same names")
	for _, hidden := range unsafeTest {
		fs.String(hidden, "", "for the project's own tests only")
		// The flag was defined a line above, so that this cannot fail.
		if err := fs.MarkHidden(hidden); err != nil {
			panic(err)
		}
	}
}

// Sources are where settings come from. Nothing else is looked at.
type Sources struct {
	Role    Role                              // "" is ServerRole
	Flags   *pflag.FlagSet                    // parsed, defined by AddFlags; nil: none
	Environ []string                          // NAME=value, as os.Environ gives them
	Read    func(name string) ([]byte, error) // reads the file of --config
	Args    []string                          // drives, before expansion
}

// Load merges the sources and checks the result. The warnings are for the log.
func Load(src Sources) (*Server, []string, error) {
	const op = "config.Load"
	if src.Role == "" {
		src.Role = ServerRole
	}
	env := map[string]string{}
	for _, e := range src.Environ {
		if name, value, ok := strings.Cut(e, "="); ok && strings.HasPrefix(name, EnvPrefix) {
			env[name] = value
		}
	}
	k := koanf.New("\x00") // no setting is nested, so that no character of a name divides it
	if err := k.Load(confmap.Provider(defaults, ""), nil); err != nil {
		return nil, nil, errs.As(op, errs.Internal, err)
	}
	if err := loadFile(k, src, env); err != nil {
		return nil, nil, err
	}
	warnings, err := loadEnv(k, env, src.Role)
	if err != nil {
		return nil, nil, err
	}
	if src.Flags != nil {
		set := map[string]any{}
		src.Flags.Visit(func(f *pflag.Flag) {
			if !isSetting(src.Role, f.Name) {
				return
			}
			if list, ok := f.Value.(pflag.SliceValue); ok {
				set[f.Name] = list.GetSlice()
			} else {
				set[f.Name] = f.Value.String()
			}
		})
		if err := k.Load(confmap.Provider(set, ""), nil); err != nil {
			return nil, nil, errs.As(op, errs.Internal, err)
		}
	}
	s := &Server{Role: src.Role}
	if err := k.Unmarshal("", s); err != nil {
		return nil, nil, &errs.Error{Op: op, Kind: errs.Invalid, Msg: "a setting has a value of the wrong form", Err: err}
	}
	if len(src.Args) > 0 {
		s.Drives = src.Args
	}
	if s.Drives, err = ExpandAll(s.Drives); err != nil {
		return nil, nil, err
	}
	if err := s.check(env[TestingEnv] == "yes"); err != nil {
		return nil, nil, err
	}
	return s, warnings, nil
}

// loadFile adds the settings of the file that --config or OSTRAKA_CONFIG names, if any.
func loadFile(k *koanf.Koanf, src Sources, env map[string]string) error {
	name := env[EnvPrefix+"CONFIG"]
	if src.Flags != nil {
		if f := src.Flags.Lookup("config"); f != nil && f.Changed {
			name = f.Value.String()
		}
	}
	if name == "" {
		return nil
	}
	const op = "config.Load"
	raw, err := src.Read(name)
	if err != nil {
		return &errs.Error{Op: op, Kind: errs.Invalid, Msg: "the file of --config cannot be read", Err: err}
	}
	file := koanf.New("\x00")
	if err := file.Load(rawbytes.Provider(raw), yaml.Parser()); err != nil {
		return &errs.Error{Op: op, Kind: errs.Invalid, Msg: "the file of --config is not YAML: " + name, Err: err}
	}
	for _, key := range file.Keys() {
		if !isSetting(src.Role, strings.ReplaceAll(key, "\x00", ".")) {
			return errs.E(op, errs.Invalid, fmt.Sprintf("%s: there is no setting %q; the settings are %s",
				name, strings.ReplaceAll(key, "\x00", "."), strings.Join(settings(src.Role), ", ")))
		}
	}
	return k.Merge(file)
}

// loadEnv adds the settings of the environment, and returns a warning for each name that is none.
func loadEnv(k *koanf.Koanf, env map[string]string, role Role) (warnings []string, err error) {
	set := map[string]any{}
	for name, value := range env {
		key := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, EnvPrefix)), "_", "-")
		switch {
		case outside[name]:
		case !isSetting(role, key):
			warnings = append(warnings, name+" is no setting and was ignored")
		case key == "domain" || key == "join":
			set[key] = splitList(value, ',')
		case key == "drives":
			set[key] = splitList(value, ' ')
		default:
			set[key] = value
		}
	}
	sort.Strings(warnings)
	if err := k.Load(confmap.Provider(set, ""), nil); err != nil {
		return nil, errs.As("config.Load", errs.Internal, err)
	}
	return warnings, nil
}

// settings returns every name that the file may use, sorted.
func settings(role Role) []string {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	AddFlags(fs, role)
	var names []string
	for _, name := range withoutFlag {
		if role.has(name) {
			names = append(names, name)
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && !f.Hidden {
			names = append(names, f.Name)
		}
	})
	sort.Strings(names)
	return names
}

func isSetting(role Role, name string) bool {
	if slices.Contains(unsafeTest, name) {
		return true
	}
	for _, s := range settings(role) {
		if s == name {
			return true
		}
	}
	return false
}

func splitList(s string, sep rune) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == sep })
}

// check refuses what cannot work. testing admits the unsafe test settings.
func (s *Server) check(testing bool) error {
	bad := func(format string, args ...any) error {
		return errs.E("config.Load", errs.Invalid, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Role == GatewayRole && len(s.Drives) > 0:
		return bad("a gateway has no drives, and %q is named; `ostraka server` serves S3 and has drives", s.Drives[0])
	case s.Role != GatewayRole && len(s.Drives) == 0:
		return bad("no drive was named; give at least one directory, such as: ostraka server /mnt/d{1...4}")
	}
	if host, port, err := net.SplitHostPort(s.Address); err != nil || port == "" || strings.ContainsAny(host, " /") {
		return bad("address %q is not HOST:PORT", s.Address)
	}
	if s.Region == "" || strings.Trim(strings.ToLower(s.Region), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return bad("region %q may have letters, digits and dashes only", s.Region)
	}
	for _, d := range s.Domains {
		if d == "" || strings.Trim(strings.ToLower(d), "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || strings.HasPrefix(d, ".") {
			return bad("domain %q is not a host name (without port and leading dot)", d)
		}
	}
	for name, p := range map[string]string{"profile": s.Profile, "rrs-profile": s.RRSProfile} {
		if p == "" {
			continue
		}
		if _, _, err := ParseProfile(p); err != nil {
			return bad("%s %q is not K+M with K from 1 and M from 0, such as 2+2", name, p)
		}
	}
	if (s.TLSCert == "") != (s.TLSKey == "") {
		return bad("tls-cert and tls-key go together: only one of them is set")
	}
	if err := new(slog.LevelVar).UnmarshalText([]byte(s.LogLevel)); err != nil {
		return bad("log-level %q is none of debug, info, warn, error", s.LogLevel)
	}
	if s.LogFormat != "text" && s.LogFormat != "json" {
		return bad("log-format %q is neither text nor json", s.LogFormat)
	}
	if s.ShutdownTimeout < 0 {
		return bad("shutdown-timeout %v is negative", s.ShutdownTimeout)
	}
	if s.MemoryLimit != 0 && s.MemoryLimit < 64<<20 {
		return bad("memory-limit %v is below 64MiB, with which nothing runs well", s.MemoryLimit)
	}
	if !testing && (s.TestMinPartSize != 0 || s.TestChunkSize != 0 || s.TestProtocol != Versions{}) {
		return bad("the unsafe-test settings exist for the project's own tests and are refused: they break S3 clients and the layout of data")
	}
	if err := s.checkCluster(); err != nil {
		return err
	}
	return s.checkKeys()
}

func (s *Server) checkKeys() error {
	return CheckKeys(s.RootAccessKey, string(s.RootSecretKey))
}

// CheckKeys refuses a pair of root keys that clients could not use. Both empty is fine: none.
func CheckKeys(access, secret string) error {
	bad := func(msg string) error { return errs.E("config.CheckKeys", errs.Invalid, msg) }
	switch {
	case access == "" && secret == "":
		return nil
	case access == "" || secret == "":
		return bad("OSTRAKA_ROOT_ACCESS_KEY and OSTRAKA_ROOT_SECRET_KEY go together: only one of them is set")
	case len(access) < MinAccessKey || len(access) > MaxAccessKey:
		return bad(fmt.Sprintf("the root access key has %d characters; it needs %d to %d", len(access), MinAccessKey, MaxAccessKey))
	case len(secret) < MinSecretKey || len(secret) > MaxSecretKey:
		return bad(fmt.Sprintf("the root secret key has %d characters; it needs %d to %d", len(secret), MinSecretKey, MaxSecretKey))
	}
	for _, c := range []byte(access) {
		if c <= ' ' || c > '~' || strings.IndexByte("/,=", c) >= 0 {
			return bad("the root access key may have printable ASCII without space, slash, comma and equals sign only")
		}
	}
	for _, c := range []byte(secret) {
		if c <= ' ' || c > '~' {
			return bad("the root secret key may have printable ASCII without space only")
		}
	}
	return nil
}

// Level is the parsed log level.
func (s *Server) Level() slog.Level {
	var l slog.LevelVar
	// check refused what does not parse; the zero level is info.
	if l.UnmarshalText([]byte(s.LogLevel)) != nil {
		return slog.LevelInfo
	}
	return l.Level()
}

// TLS reports whether the server speaks HTTPS.
func (s *Server) TLS() bool { return s.TLSCert != "" }
