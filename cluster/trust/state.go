package trust

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Times of certificates and keys.
const (
	// NodeLife is how long a node's certificate is good from its issue; it is renewed at half of it.
	NodeLife = 7 * 24 * time.Hour
	// ClockSkew is how far in the past a certificate begins: by so much a clock may be behind the issuer's.
	ClockSkew = 24 * time.Hour
	// AuthorityLife is how long an authority's certificate is good.
	AuthorityLife = 10 * 365 * 24 * time.Hour
	// AuthorityAge is the age at which an authority is due to be replaced.
	AuthorityAge = 365 * 24 * time.Hour
	// GossipAge is the age at which a gossip key is due to be replaced.
	GossipAge = 30 * 24 * time.Hour
)

const (
	keyBytes       = 32  // of a gossip key (AES-256), a verifier, a P-256 private key
	maxRevocations = 512 // nodes
)

// Phase is how far a rotation has come.
type Phase uint8

// The phases of a rotation, in their order.
const (
	Settled    Phase = iota // one is trusted and used
	Introduced              // two are trusted, the old one is used
	Switched                // two are trusted, the new one is used
)

// String names the phase.
func (p Phase) String() string {
	switch p {
	case Settled:
		return "settled"
	case Introduced:
		return "introduced"
	case Switched:
		return "switched"
	}
	return "unknown"
}

// rotation is a phase and when it began.
type rotation struct {
	phase Phase
	since int64 // Unix seconds
}

// used returns the index of the one of n that is used.
func (r rotation) used() int {
	if r.phase == Switched {
		return 1
	}
	return 0
}

// authority is one certificate authority of the cluster.
type authority struct {
	cert *x509.Certificate
	key  func() *ecdsa.PrivateKey // nil in a public state; a function, since nothing prints what one returns
}

// revocation says that a node's certificates are not believed any more.
type revocation struct {
	node [16]byte
	at   int64 // Unix seconds
}

// State is what a cluster trusts. It is immutable and safe for concurrent use. See the package doc.
type State struct {
	cluster  [16]byte
	number   uint64
	verifier hidden // none in a public state

	authorities   []authority // oldest first
	authorityStep rotation
	gossip        []hidden // oldest first
	gossipStep    rotation

	revoked []revocation // ascending by node
}

// New makes the state of a new cluster: number 1, one authority, one gossip key.
func New(cluster [16]byte, secret Secret, now time.Time) (*State, error) {
	const op = "trust.New"
	if cluster == [16]byte{} {
		return nil, errs.E(op, errs.Invalid, "a cluster needs an id")
	}
	if secret.IsZero() {
		return nil, errs.E(op, errs.Invalid, "a cluster needs a secret")
	}
	a, err := newAuthority(cluster, now)
	if err != nil {
		return nil, errs.As(op, errs.Internal, err)
	}
	return &State{cluster: cluster, number: 1, verifier: secret.verifier(),
		authorities: []authority{a}, authorityStep: rotation{since: now.Unix()},
		gossip: []hidden{newGossipKey()}, gossipStep: rotation{since: now.Unix()}}, nil
}

// newAuthority makes a key and its self-signed certificate.
func newAuthority(cluster [16]byte, now time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	serial := newSerial()
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial makes the names of two authorities differ, so that a verifier picks the right one at once.
		Subject:               pkix.Name{CommonName: "ostraka " + hex.EncodeToString(cluster[:]), SerialNumber: serial.Text(16)},
		NotBefore:             now.Add(-ClockSkew),
		NotAfter:              now.Add(AuthorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return authority{cert, func() *ecdsa.PrivateKey { return key }}, err
}

func newGossipKey() hidden {
	key := make([]byte, keyBytes)
	rand.Read(key) // never fails
	return hide(key)
}

// newSerial draws 127 bits, so that the number is positive and at most 16 bytes.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// Cluster returns the id of the cluster.
func (s *State) Cluster() [16]byte { return s.cluster }

// Number says how many changes led here; of two states the one with the higher number holds.
func (s *State) Number() uint64 { return s.number }

// Full reports whether the state has the keys that issue certificates, and the verifier of the secret.
func (s *State) Full() bool { return s.verifier.text != nil }

// Public returns the state without the keys of the authorities and the verifier.
func (s *State) Public() *State {
	p := s.clone()
	p.verifier = hidden{}
	for i := range p.authorities {
		p.authorities[i].key = nil
	}
	return p
}

// GossipKeys returns the keys of the gossip, 32 bytes each, the one to encrypt with first. The caller owns them.
func (s *State) GossipKeys() [][]byte {
	used := s.gossipStep.used()
	keys := [][]byte{s.gossip[used].bytes()}
	for i, k := range s.gossip {
		if i != used {
			keys = append(keys, k.bytes())
		}
	}
	return keys
}

// Authorities returns the phase of the rotation of the authority and when it began.
func (s *State) Authorities() (Phase, time.Time) {
	return s.authorityStep.phase, time.Unix(s.authorityStep.since, 0)
}

// Gossip returns the phase of the rotation of the gossip key and when it began.
func (s *State) Gossip() (Phase, time.Time) {
	return s.gossipStep.phase, time.Unix(s.gossipStep.since, 0)
}

// Revoked reports whether the node's certificates are not believed.
func (s *State) Revoked(node [16]byte) bool {
	_, is := slices.BinarySearchFunc(s.revoked, node, byNode)
	return is
}

func byNode(r revocation, node [16]byte) int { return slices.Compare(r.node[:], node[:]) }

// signing returns the authority that issues.
func (s *State) signing() authority { return s.authorities[s.authorityStep.used()] }

// clone copies what changes alter; certificates and keys are shared, since nothing alters those.
func (s *State) clone() *State {
	c := *s
	c.authorities, c.gossip, c.revoked = slices.Clone(s.authorities), slices.Clone(s.gossip), slices.Clone(s.revoked)
	return &c
}

// change returns a copy with the next number, without revocations that have done their work; only a
// full state can be changed.
func (s *State) change(op string, now time.Time) (*State, error) {
	if !s.Full() {
		return nil, errs.E(op, errs.Denied, "this process holds no keys of the cluster")
	}
	c := s.clone()
	c.number++
	c.revoked = slices.DeleteFunc(c.revoked, func(r revocation) bool {
		// Twice over: the issuer's clock and this one may each be off.
		return now.Unix()-r.at > int64((NodeLife+2*ClockSkew)/time.Second)
	})
	return c, nil
}

// WithSecret changes the cluster secret. Nodes that have joined are not concerned.
func (s *State) WithSecret(secret Secret, now time.Time) (*State, error) {
	const op = "trust.WithSecret"
	if secret.IsZero() {
		return nil, errs.E(op, errs.Invalid, "a cluster needs a secret")
	}
	c, err := s.change(op, now)
	if err != nil {
		return nil, err
	}
	c.verifier = secret.verifier()
	return c, nil
}

// Revoke makes the certificates of a node worthless, and issues none for it, for as long as any that it may have is
// good. It does not help against a node that held the full state, which can make itself another name: for that the authority must be replaced.
func (s *State) Revoke(node [16]byte, now time.Time) (*State, error) {
	const op = "trust.Revoke"
	if node == [16]byte{} {
		return nil, errs.E(op, errs.Invalid, "no node has the id zero")
	}
	c, err := s.change(op, now)
	if err != nil {
		return nil, err
	}
	at := max(now.Unix(), c.gossipStep.since) // the node knows the keys of this step
	if c.gossipStep.phase == Introduced {     // but nobody uses the new one yet: it becomes one that the node does not know
		c.gossip[1] = newGossipKey()
	}
	i, is := slices.BinarySearchFunc(c.revoked, node, byNode)
	switch {
	case is:
		c.revoked[i].at = at
	case len(c.revoked) == maxRevocations:
		return nil, errs.E(op, errs.Full, fmt.Sprintf("%d nodes are revoked already; replace the authority instead", maxRevocations))
	default:
		c.revoked = slices.Insert(c.revoked, i, revocation{node, at})
	}
	return c, nil
}

// Format prints which state it is, and no key.
func (s State) Format(f fmt.State, _ rune) { io.WriteString(f, s.describe()) }

// LogValue prints which state it is, and no key.
func (s State) LogValue() slog.Value { return slog.StringValue(s.describe()) }

func (s State) describe() string {
	return fmt.Sprintf("trust state %d of cluster %x (authority %s, gossip key %s)", s.number, s.cluster, s.authorityStep.phase, s.gossipStep.phase)
}

// Newer compares two states of a cluster: positive if s holds, negative if t does.
func (s *State) Newer(t *State) int { return cmp.Compare(s.number, t.number) }
