package trust

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

var (
	clusterID = [16]byte{0xc1, 1, 2, 3}
	nodeA     = [16]byte{0xa0, 1}
	nodeB     = [16]byte{0xb0, 2}
	start     = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
)

const secretText = "0123456789abcdef-fedcba9876543210-open-sesame"

func testSecret(t testing.TB) Secret {
	t.Helper()
	s, err := ParseSecret([]byte(secretText + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newState(t testing.TB) *State {
	t.Helper()
	return must(New(clusterID, testSecret(t), start))(t)
}

// must ends the test unless a call went well.
func must[T any](x T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
}

func wantKind(t testing.TB, err error, kind errs.Kind) {
	t.Helper()
	if !errs.Is(err, kind) {
		t.Fatalf("got %v, want an error of kind %s", err, kind)
	}
}

// variants are states of every shape.
func variants(t testing.TB) []*State {
	s := newState(t)
	all := []*State{s}
	next := func(f func() (*State, error)) {
		t.Helper()
		s = must(f())(t)
		all = append(all, s)
	}
	next(func() (*State, error) { return s.AdvanceAuthority(start, false) })
	next(func() (*State, error) { return s.AdvanceGossip(start, false) })
	next(func() (*State, error) { return s.AdvanceAuthority(start, true) })
	next(func() (*State, error) { return s.AdvanceGossip(start, true) })
	next(func() (*State, error) { return s.Revoke(nodeB, start) })
	next(func() (*State, error) { return s.Revoke(nodeA, start) })
	next(func() (*State, error) { return s.AdvanceGossip(start, true) })
	next(func() (*State, error) { return s.AdvanceAuthority(start.Add(NodeLife), true) })
	for _, s := range slices.Clone(all) {
		all = append(all, s.Public())
	}
	return all
}

func TestAStateReadsBackByteForByte(t *testing.T) {
	for i, s := range variants(t) {
		b := s.AppendTo([]byte("before"))[len("before"):]
		got := must(Decode(b))(t)
		if !bytes.Equal(got.AppendTo(nil), b) {
			t.Errorf("variant %d encodes to other bytes after reading", i)
		}
		if got.Number() != s.Number() || got.Full() != s.Full() || got.Cluster() != clusterID {
			t.Errorf("variant %d: got %v, want %v", i, got, s)
		}
		if !slices.EqualFunc(got.GossipKeys(), s.GossipKeys(), bytes.Equal) {
			t.Errorf("variant %d: other gossip keys", i)
		}
		if len(b) > MaxState {
			t.Errorf("variant %d has %d bytes", i, len(b))
		}
	}
}

func TestTheLargestStateFitsItsBound(t *testing.T) {
	s := must(newState(t).AdvanceAuthority(start, false))(t)
	for i := range maxRevocations {
		s = must(s.Revoke([16]byte{1, byte(i), byte(i >> 8)}, start))(t)
	}
	if b := s.AppendTo(nil); len(b) > MaxState {
		t.Errorf("%d bytes, more than %d", len(b), MaxState)
	} else {
		must(Decode(b))(t)
	}
	_, err := s.Revoke(nodeA, start)
	wantKind(t, err, errs.Full)
	// Once they have done their work they go.
	if s = must(s.Revoke(nodeA, start.Add(NodeLife+3*ClockSkew)))(t); len(s.revoked) != 1 {
		t.Errorf("%d revocations are left, want 1", len(s.revoked))
	}
}

func TestADamagedStateIsRefused(t *testing.T) {
	b := newState(t).AppendTo(nil)
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 0x10
		if _, err := Decode(bad); err == nil {
			t.Fatalf("byte %d changed: it was read", i)
		}
		if _, err := Decode(b[:i]); err == nil {
			t.Fatalf("cut to %d bytes: it was read", i)
		}
	}
	later := slices.Clone(b)
	later[4] = stateVersion + 1
	_, err := Decode(later)
	wantKind(t, err, errs.Unsupported)
}

func FuzzDecode(f *testing.F) {
	for _, s := range variants(f) {
		b := s.AppendTo(nil)
		f.Add(b[:len(b)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// With a good checksum, so that the parser behind it is reached.
		b := binary.BigEndian.AppendUint32(slices.Clone(body), crc32.Checksum(body, castagnoli))
		s, err := Decode(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.AppendTo(nil), b) {
			t.Fatal("what was read encodes to other bytes")
		}
	})
}

func TestOneStepBehindIsAlwaysTrusted(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s, now := newState(t), start
	for range 20 {
		now = now.Add(NodeLife)
		next := s
		if rnd.IntN(2) == 0 {
			next = must(s.AdvanceAuthority(now, true))(t)
		} else {
			next = must(s.AdvanceGossip(now, true))(t)
		}
		for _, pair := range [][2]*State{{s, next}, {next, s}} {
			cert := must(pair[0].issueOwn(nodeA, now))(t)
			if _, err := pair[1].verify(cert.Leaf, now); err != nil {
				t.Fatalf("a certificate of %v is not trusted by %v: %v", pair[0], pair[1], err)
			}
			if !slices.ContainsFunc(pair[1].GossipKeys(), func(k []byte) bool { return bytes.Equal(k, pair[0].GossipKeys()[0]) }) {
				t.Fatalf("the gossip key of %v is unknown to %v", pair[0], pair[1])
			}
		}
		if next.Number() != s.Number()+1 {
			t.Fatalf("number %d follows %d", next.Number(), s.Number())
		}
		s = next
	}
}

func TestAStepWaitsForEveryoneAndForCertificates(t *testing.T) {
	s := newState(t)
	first := must(s.issueOwn(nodeA, start))(t)
	s = must(s.AdvanceAuthority(start, false))(t)
	_, err := s.AdvanceAuthority(start.Add(NodeLife), false)
	wantKind(t, err, errs.Precondition)
	switched := must(s.AdvanceAuthority(start, true))(t)
	_, err = switched.AdvanceAuthority(start.Add(NodeLife-time.Minute), true)
	wantKind(t, err, errs.Precondition)
	dropped := must(switched.AdvanceAuthority(start.Add(NodeLife), true))(t)
	if p, _ := dropped.Authorities(); p != Settled {
		t.Errorf("phase %s after the last step", p)
	}

	g := must(s.AdvanceGossip(start, false))(t)
	_, err = g.AdvanceGossip(start, false)
	wantKind(t, err, errs.Precondition)

	// By force the former authority goes at once, and with it what it issued.
	forced := must(switched.ForceAuthority(start))(t)
	_, err = forced.verify(first.Leaf, start)
	wantKind(t, err, errs.Denied)
}

func TestRotationsAreDueByAge(t *testing.T) {
	s := newState(t)
	for _, c := range []struct {
		age               time.Duration
		authority, gossip bool
	}{{0, false, false}, {GossipAge, false, true}, {AuthorityAge, true, true}} {
		if a, g := s.Due(start.Add(c.age)); a != c.authority || g != c.gossip {
			t.Errorf("at the age of %s: authority %v, gossip %v", c.age, a, g)
		}
	}
	begun := must(must(s.AdvanceAuthority(start, false))(t).AdvanceGossip(start, false))(t)
	if a, g := begun.Due(start.Add(AuthorityAge)); a || g {
		t.Error("a rotation is to begin while one is under way")
	}
}

func TestAPublicStateIssuesAndChangesNothing(t *testing.T) {
	p := newState(t).Public()
	_, err := p.issueOwn(nodeA, start)
	wantKind(t, err, errs.Denied)
	_, err = p.AdvanceAuthority(start, true)
	wantKind(t, err, errs.Denied)
	_, err = p.Revoke(nodeA, start)
	wantKind(t, err, errs.Denied)
	for _, a := range p.authorities {
		if a.key != nil || p.Full() {
			t.Error("a public state has keys")
		}
	}
}

func TestACertificateIsIssuedForTheNodeThatWasFound(t *testing.T) {
	s := newState(t)
	key := must(newKey())(t)
	csr := must(request(nodeA, key))(t)
	der := must(s.Issue(csr, nodeA, start))(t)
	cert := must(certificate(der, key))(t)
	if node := must(s.verify(cert.Leaf, start))(t); node != nodeA {
		t.Errorf("got node %x, want %x", node, nodeA)
	}
	_, err := s.Issue(csr, nodeB, start)
	wantKind(t, err, errs.Invalid)
	_, err = s.Issue(append(csr, 0), nodeA, start)
	wantKind(t, err, errs.Invalid)
	forged := slices.Clone(csr)
	forged[len(forged)-1] ^= 1
	_, err = s.Issue(forged, nodeA, start)
	wantKind(t, err, errs.Invalid)
	_, err = must(s.Revoke(nodeA, start))(t).Issue(csr, nodeA, start)
	wantKind(t, err, errs.Denied)
	_, err = s.Issue(csr, nodeA, start.Add(AuthorityLife))
	wantKind(t, err, errs.Denied)
	_, err = certificate(der, must(newKey())(t))
	wantKind(t, err, errs.Invalid)
}

func TestACertificateIsBelievedWhileItIsGood(t *testing.T) {
	s := newState(t)
	cert := must(s.issueOwn(nodeA, start))(t)
	other := must(New([16]byte{0xdd}, testSecret(t), start))(t)
	again := must(New(clusterID, testSecret(t), start))(t)
	for _, c := range []struct {
		name string
		by   *State
		at   time.Time
		ok   bool
	}{
		{"at its issue", s, start, true},
		{"by a clock that is hours behind", s, start.Add(-5 * time.Hour), true},
		{"by a clock that is days behind", s, start.Add(-2 * ClockSkew), false},
		{"at half life by a clock that is hours ahead", s, start.Add(NodeLife/2 + 5*time.Hour), true},
		{"after its life", s, start.Add(NodeLife + time.Minute), false},
		{"by another cluster", other, start, false},
		{"by a cluster of the same id and another authority", again, start, false},
		{"once it is revoked", must(s.Revoke(nodeA, start))(t), start, false},
		{"while another node is revoked", must(s.Revoke(nodeB, start))(t), start, true},
	} {
		_, err := c.by.verify(cert.Leaf, c.at)
		if (err == nil) != c.ok {
			t.Errorf("%s: got %v", c.name, err)
		} else if err != nil {
			wantKind(t, err, errs.Denied)
		}
	}
}

func TestASecretMustLookRandom(t *testing.T) {
	for _, c := range []struct {
		name, text string
		ok         bool
	}{
		{"hexadecimal digits", "d0a1f3b2c4956e7788d0a1f3b2c4956e", true},
		{"with a line end", " d0a1f3b2c4956e7788d0a1f3b2c4956e\r\n", true},
		{"nothing", "", false},
		{"a password", "correct horse", false},
		{"one character many times", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
		{"several words", "d0a1f3b2c4956e7788 d0a1f3b2c4956e7788", false},
		{"what is too long", string(bytes.Repeat([]byte("0123456789"), 30)), false},
	} {
		if _, err := ParseSecret([]byte(c.text)); (err == nil) != c.ok {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	a, b := NewSecret(), NewSecret()
	if a.Reveal() == b.Reveal() {
		t.Error("two secrets are equal")
	}
	if got := must(ParseSecret([]byte(a.Reveal())))(t); !bytes.Equal(got.verifier().bytes(), a.verifier().bytes()) {
		t.Error("a secret does not read back")
	}
}
