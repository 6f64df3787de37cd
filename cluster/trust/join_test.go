package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// member is a node that others join by.
type member struct {
	*Manager
	addr string
	log  *logs
	time *clock

	mu       sync.Mutex // guards below
	asked    []Applicant
	refusing error
}

// newMember serves joins; a public state needs a certificate beside it.
func newMember(t testing.TB, state *State, cert *tls.Certificate) *member {
	t.Helper()
	mb := &member{log: &logs{}, time: newClock()}
	mb.Manager = manager(t, Config{Node: nodeA, State: state, Now: mb.time.now, Logger: mb.log.logger(), Certificate: cert,
		Admit: func(_ context.Context, a Applicant) ([]string, error) {
			mb.mu.Lock()
			defer mb.mu.Unlock()
			mb.asked = append(mb.asked, a)
			return []string{"10.0.0.1:7000", "10.0.0.2:7000", strings.Repeat("x", 300)}, mb.refusing
		}})
	mb.addr = serve(t, mb.Manager, map[string]Handler{JoinProtocol: mb.ServeJoin, testProtocol: echo})
	return mb
}

func joinRequest(t testing.TB, addresses ...string) Request {
	return Request{Addresses: addresses, Secret: testSecret(t), Node: nodeB, Now: newClock().now}
}

func TestAProcessJoinsByTheSecret(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	for _, full := range []bool{true, false} {
		r := joinRequest(t, mb.addr)
		r.Full = full
		g := must(Join(bounded(t), r))(t)
		if g.State.Full() != full || g.State.Cluster() != clusterID || g.State.Number() != mb.State().Number() {
			t.Errorf("full %v: got %v", full, g.State)
		}
		if want := []string{"10.0.0.1:7000", "10.0.0.2:7000"}; !slices.Equal(g.Addresses, want) {
			t.Errorf("got addresses %q, want %q", g.Addresses, want)
		}
		// What was granted is enough to talk, both ways.
		b := manager(t, Config{Node: nodeB, State: g.State, Certificate: g.Certificate, Now: mb.time.now})
		conn := must(b.Dial(bounded(t), mb.addr, nodeA, testProtocol))(t)
		if got := must(hears(conn))(t); got != nodeB {
			t.Errorf("the member saw %x", got)
		}
		conn.Close()
		baddr := serve(t, b, map[string]Handler{testProtocol: echo})
		conn = must(mb.Dial(bounded(t), baddr, nodeB, testProtocol))(t)
		conn.Close()
	}
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if len(mb.asked) != 2 || mb.asked[0].Node != nodeB || !mb.asked[0].Full || mb.asked[1].Full {
		t.Errorf("asked to admit %+v", mb.asked)
	}
}

func TestAWrongSecretIsRefusedClearly(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	r := joinRequest(t, mb.addr)
	r.Secret = NewSecret()
	_, err := Join(bounded(t), r)
	wantKind(t, err, errs.Denied)
	if !strings.Contains(errs.Public(err), "secret") {
		t.Errorf("the text does not say it: %v", err)
	}
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if len(mb.asked) != 0 {
		t.Error("it was asked whether to admit who has not proved the secret")
	}
}

func TestAfterTheSecretChangedTheFormerOneIsWrong(t *testing.T) {
	s := newState(t)
	fresh := NewSecret()
	mb := newMember(t, must(s.WithSecret(fresh, start))(t), nil)
	_, err := Join(bounded(t), joinRequest(t, mb.addr))
	wantKind(t, err, errs.Denied)
	r := joinRequest(t, mb.addr)
	r.Secret = fresh
	must(Join(bounded(t), r))(t)
}

func TestTheMembersReasonIsTold(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	mb.mu.Lock()
	mb.refusing = errs.E("test", errs.Unavailable, "the control plane has no leader")
	mb.mu.Unlock()
	// It is no failed attempt: nobody is locked out because others cannot decide.
	for range attempts + 2 {
		_, err := Join(bounded(t), joinRequest(t, mb.addr))
		wantKind(t, err, errs.Unavailable)
		if !strings.Contains(err.Error(), "no leader") {
			t.Fatalf("the reason is not told: %v", err)
		}
	}
}

func TestTheNextAddressIsTried(t *testing.T) {
	dead := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	dead.Close()
	s := newState(t)
	gateway := newMember(t, s.Public(), must(s.issueOwn(nodeA, start))(t))
	mb := newMember(t, s, nil)
	must(Join(bounded(t), joinRequest(t, dead.Addr().String(), gateway.addr, mb.addr)))(t)
	_, err := Join(bounded(t), joinRequest(t, dead.Addr().String()))
	wantKind(t, err, errs.Unavailable)
	_, err = Join(bounded(t), joinRequest(t, gateway.addr))
	wantKind(t, err, errs.Unavailable)
	if !strings.Contains(err.Error(), "issues no certificates") {
		t.Errorf("the reason is not told: %v", err)
	}
}

func TestFailedAttemptsAreBounded(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	wrong := joinRequest(t, mb.addr)
	wrong.Secret = NewSecret()
	for i := range attempts {
		if _, err := Join(bounded(t), wrong); !errs.Is(err, errs.Denied) {
			t.Fatalf("attempt %d: %v", i, err)
		}
	}
	for range 3 {
		_, err := Join(bounded(t), wrong)
		wantKind(t, err, errs.Busy)
		_, err = Join(bounded(t), joinRequest(t, mb.addr)) // from there not even the right one
		wantKind(t, err, errs.Busy)
	}
	if n := strings.Count(mb.log.String(), "too many failed attempts"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
	mb.time.add(attemptWindow)
	for range attempts + 2 {
		must(Join(bounded(t), joinRequest(t, mb.addr)))(t)
	}
}

func TestTheLimiterIsBoundedItself(t *testing.T) {
	l := newLimiter()
	now := start
	remote := func(i int) net.Addr {
		return &net.TCPAddr{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)), Port: 1000 + i%7}
	}
	let := 0
	for i := range 3 * maxSources {
		if ok, _ := l.begin(remote(i), now); ok {
			let++
			l.end(remote(i), false)
		}
	}
	if want := maxSources + otherSources; let != want || len(l.sources) != maxSources {
		t.Errorf("%d attempts of %d sources were let through, %d remembered; want %d", let, 3*maxSources, len(l.sources), want)
	}
	// Another port is the same source, and so is another address of the same IPv6 network.
	six := func(last byte) net.Addr {
		return &net.TCPAddr{IP: net.IP{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last}}
	}
	if source(remote(1)) != source(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 9}) || source(six(1)) != source(six(2)) {
		t.Error("one source counts as two")
	}
	if source(remote(1)) == source(remote(2)) {
		t.Error("two sources count as one")
	}
	// After the window all of that is forgotten.
	if ok, _ := l.begin(remote(2*maxSources), now.Add(attemptWindow)); !ok {
		t.Error("refused after the window")
	}
	// No more than so many at a time, whoever they are.
	l = newLimiter()
	for i := range maxJoins {
		if ok, _ := l.begin(remote(i), now); !ok {
			t.Fatalf("attempt %d was refused", i)
		}
	}
	if ok, _ := l.begin(remote(maxJoins), now); ok {
		t.Error("too many at a time")
	}
}

// TestAManInTheMiddleGainsNothing has a relay with a TLS channel to either side, which passes on
// what it reads in clear.
func TestAManInTheMiddleGainsNothing(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	own := must(must(New(clusterID, NewSecret(), start))(t).issueOwn(nodeA, start))(t)
	ln := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*own}, NextProtos: []string{JoinProtocol}}))(t)
	var running sync.WaitGroup
	var mu sync.Mutex // guards seen
	var seen []byte
	running.Go(func() {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := tls.Dial("tcp", mb.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{JoinProtocol}})
		if err != nil {
			return
		}
		defer out.Close()
		both := make(chan struct{}, 2)
		tap := func(dst, src net.Conn) {
			defer func() { both <- struct{}{} }()
			var b [4096]byte
			for {
				n, err := src.Read(b[:])
				mu.Lock()
				seen = append(seen, b[:n]...)
				mu.Unlock()
				dst.Write(b[:n])
				if err != nil {
					dst.Close()
					return
				}
			}
		}
		go tap(in, out)
		go tap(out, in)
		<-both
		<-both
	})
	_, err := Join(bounded(t), joinRequest(t, ln.Addr().String()))
	wantKind(t, err, errs.Denied)
	ln.Close()
	running.Wait()
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if len(mb.asked) != 0 {
		t.Error("the member let it in")
	}
	for _, s := range secretsOf(mb.State()) {
		if strings.Contains(string(seen), s) {
			t.Error("it saw a secret")
		}
	}
	if len(seen) == 0 {
		t.Error("it saw nothing: the test has no relay")
	}
}

// TestAFalseMemberIsFound answers every hello with a welcome that proves nothing.
func TestAFalseMemberIsFound(t *testing.T) {
	own := must(newState(t).issueOwn(nodeA, start))(t)
	ln := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*own}, NextProtos: []string{JoinProtocol}}))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, hello, err := readMessage(conn, maxRequest)
		if err != nil {
			return
		}
		// The joiner's own proof, sent back, is no proof of the member.
		writeMessage(conn, msgWelcome, append(append([]byte{1}, clusterID[:]...), hello[2:]...))
		if n, _ := io.Copy(io.Discard, conn); n != 0 {
			t.Errorf("the joiner told %d bytes more", n)
		}
	}()
	_, err := Join(bounded(t), joinRequest(t, ln.Addr().String()))
	wantKind(t, err, errs.Denied)
	ln.Close()
	<-done
}

func TestWhatIsMalformedIsRefusedAndBounded(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	long := make([]byte, maxRequest+1)
	for _, c := range []struct {
		name string
		typ  byte
		body []byte
	}{
		{"an empty hello", msgHello, nil},
		{"a hello without a proof", msgHello, []byte{1, 1}},
		{"a hello with a proof of zeros", msgHello, append([]byte{1, 1}, make([]byte, 32)...)},
		{"a request first", msgRequest, make([]byte, 100)},
		{"a message that is too long", msgHello, long},
		{"a later version only, unproven", msgHello, append([]byte{9, 9}, make([]byte, 32)...)},
	} {
		mb.time.add(attemptWindow)
		conn := must(tls.Dial("tcp", mb.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{JoinProtocol}}))(t)
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		err := writeMessage(conn, c.typ, c.body)
		var typ byte
		var body []byte
		if err == nil { // the member may hang up over what is too long
			typ, body, err = readMessage(conn, maxRequest)
		}
		if err == nil && (typ != msgRefused || len(body) > 3+maxText) {
			t.Errorf("%s: got message %d with %d bytes", c.name, typ, len(body))
		}
		conn.Close()
	}
}

func TestOfASmallerVersionRangeTheCommonOneIsSpoken(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	for _, c := range []struct {
		oldest, newest byte
		want           byte
	}{{1, 1, msgWelcome}, {1, 9, msgWelcome}, {0, 1, msgWelcome}, {2, 9, msgRefused}, {0, 0, msgRefused}} {
		conn := must(tls.Dial("tcp", mb.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{JoinProtocol}}))(t)
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		p := must(newProver(conn, mb.State().verifier))(t)
		hello := []byte{c.oldest, c.newest}
		if err := writeMessage(conn, msgHello, append(hello, p.proof(labelJoiner, hello)...)); err != nil {
			t.Fatal(err)
		}
		typ, body, err := readMessage(conn, maxRequest)
		if err != nil || typ != c.want {
			t.Errorf("versions %d to %d: got message %d, %v", c.oldest, c.newest, typ, err)
		} else if typ == msgWelcome && body[0] != 1 {
			t.Errorf("versions %d to %d: %d is spoken", c.oldest, c.newest, body[0])
		}
		conn.Close()
	}
}

func TestTheLargestGrantIsRead(t *testing.T) {
	many := make([]string, 2*maxAddresses)
	for i := range many {
		many[i] = strings.Repeat("a", maxAddress)
	}
	body := appendGrant(nil, make([]byte, maxCert), make([]byte, MaxState), many)
	if len(body) > maxGrant {
		t.Errorf("%d bytes, more than %d", len(body), maxGrant)
	}
	if _, _, got, ok := parseGrant(body); !ok || len(got) != maxAddresses {
		t.Errorf("%d addresses were read, want %d", len(got), maxAddresses)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(appendRequest(nil, nodeA, true, []byte("request")))
	f.Add(appendGrant(nil, []byte("certificate"), []byte("state"), []string{"10.0.0.1:7000", "h:1"}))
	f.Fuzz(func(t *testing.T, body []byte) {
		if a, csr, ok := parseRequest(body); ok && string(appendRequest(nil, a.Node, a.Full, csr)) != string(body) {
			t.Error("a request prints as another one")
		}
		if der, state, addresses, ok := parseGrant(body); ok && string(appendGrant(nil, der, state, addresses)) != string(body) {
			t.Error("a grant prints as another one")
		}
		refusal(body) // must not panic
	})
}

// secretsOf are the spellings of all that must not be seen.
func secretsOf(s *State, certs ...*tls.Certificate) (all []string) {
	add := func(raw []byte) {
		all = append(all, string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)),
			base64.StdEncoding.EncodeToString(raw), strings.Trim(fmt.Sprint(raw), "[]"), strings.ReplaceAll(strings.Trim(fmt.Sprint(raw), "[]"), " ", ", "))
	}
	addKey := func(key *ecdsa.PrivateKey) {
		raw, _ := key.Bytes()
		add(raw)
		// What a careless print or marshalling would show of it.
		d := new(big.Int).SetBytes(raw)
		all = append(all, d.String(), strings.Trim(fmt.Sprint(d.Bits()), "[]"))
	}
	all = append(all, secretText)
	for _, cert := range certs {
		addKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	}
	if s.Full() {
		add(s.verifier.bytes())
	}
	for _, k := range s.GossipKeys() {
		add(k)
	}
	for _, a := range s.authorities {
		if a.key != nil {
			addKey(a.key())
		}
	}
	return all
}

func TestSecretsAreNeitherLoggedNorPrinted(t *testing.T) {
	mb := newMember(t, newState(t), nil)
	joiner := &logs{}
	r := joinRequest(t, mb.addr)
	r.Full, r.Logger = true, joiner.logger()
	g := must(Join(bounded(t), r))(t)
	var errors []error
	for range attempts + 2 {
		wrong := r
		wrong.Secret = must(ParseSecret([]byte(secretText + "x")))(t)
		_, err := Join(bounded(t), wrong)
		errors = append(errors, err)
	}
	if _, err := ParseSecret([]byte(secretText + " " + secretText)); err == nil {
		t.Error("two words are a secret")
	} else {
		errors = append(errors, err)
	}

	var printed strings.Builder
	holder := struct {
		Shown  Secret
		hidden Secret
		state  *State
		value  State
		grant  Grant
		config Config
	}{r.Secret, r.Secret, g.State, *g.State, *g, Config{State: g.State, Certificate: g.Certificate}}
	jsonLog := slog.New(slog.NewJSONHandler(&printed, nil))
	for _, x := range []any{r.Secret, &r.Secret, r, &r, g.State, *g.State, g, *g, mb.Manager, holder, &holder, errors} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&printed, verb+"\n", x)
		}
		slog.New(slog.NewTextHandler(&printed, nil)).Info("x", "x", x)
		jsonLog.Info("x", "x", x)
		if b, err := json.Marshal(x); err == nil {
			printed.Write(b)
		}
	}
	all := printed.String() + mb.log.String() + joiner.String()
	for _, s := range secretsOf(g.State, g.Certificate, mb.cert) {
		if i := strings.Index(all, s); i >= 0 {
			t.Errorf("a secret is seen: %q", all[max(0, i-60):min(len(all), i+len(s)+20)])
		}
	}
	// The search finds what is there.
	if !strings.Contains(all+string(g.State.AppendTo(nil)), secretsOf(g.State)[1]) {
		t.Error("the search is blind")
	}
	if len(mb.log.String()) == 0 || len(joiner.String()) == 0 {
		t.Error("nothing was logged at all")
	}
}
