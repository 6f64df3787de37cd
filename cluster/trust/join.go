package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// The versions of the join protocol that are spoken here.
const (
	oldestJoin = 1
	newestJoin = 1
)

// Messages of the join protocol; see the package doc.
const (
	msgHello   = 1
	msgWelcome = 2
	msgRequest = 3
	msgGrant   = 4
	msgRefused = 5
)

// Bounds of the join protocol.
const (
	joinTime     = 15 * time.Second // the whole of one attempt at one address
	maxRequest   = 8 << 10          // bytes of a message of a joiner
	maxGrant     = 256 << 10        // bytes of a message of a member
	maxText      = 512              // bytes of a refusal
	maxAddresses = 1024             // told to a joiner; with the longest a grant stays below maxGrant
	maxAddress   = 128              // bytes of one
	exporterName = "EXPORTER-ostraka-join"
	labelJoiner  = "ostraka join joiner"
	labelMember  = "ostraka join member"
)

// Applicant is a process that has proved the secret and wants to be a node.
type Applicant struct {
	Node   [16]byte
	Full   bool // it has drives and asks for the full state
	Remote net.Addr
}

// Request says who joins, where and by what.
type Request struct {
	Addresses []string // node addresses (host:port) of members; tried in this order
	Secret    Secret
	Node      [16]byte // this process
	Full      bool     // it has drives: it gets the full state, to start from when it is alone

	Now    func() time.Time // nil is time.Now
	Logger *slog.Logger     // nil discards
}

// Grant is what a process gets by joining.
type Grant struct {
	State       *State           // full or public, as was asked
	Certificate *tls.Certificate `json:"-"` // of this process, with its key
	Addresses   []string         // of others: what Config.Admit of the member named, here where they gossip (host:port)
}

// Format prints nothing of the keys.
func (g Grant) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "grant of %v, addresses %q", g.State, g.Addresses)
}

// LogValue prints nothing of the keys.
func (g Grant) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(g)) }

// Join asks the members in turn, once each, until one grants. To try again later is the caller's.
// It ends with errs.Denied when a member does not share the secret or refuses the node, errs.Busy when it has
// had too many failed attempts from here, else with errs.Unavailable; the text has what each address said.
func Join(ctx context.Context, r Request) (*Grant, error) {
	const op = "trust.Join"
	switch {
	case r.Secret.IsZero():
		return nil, errs.E(op, errs.Invalid, "to join a cluster its secret is needed")
	case len(r.Addresses) == 0:
		return nil, errs.E(op, errs.Invalid, "to join a cluster the address of a member is needed")
	case r.Node == [16]byte{}:
		return nil, errs.E(op, errs.Invalid, "no node has the id zero")
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	key, err := newKey()
	if err != nil {
		return nil, errs.As(op, errs.Internal, err)
	}
	kind := errs.Unavailable
	var all []error
	for _, address := range r.Addresses {
		g, err := r.joinAt(ctx, address, key)
		if err == nil {
			return g, nil
		}
		if ctx.Err() != nil {
			return nil, errs.As(op, errs.KindOf(ctx.Err()), err)
		}
		r.Logger.Info("joining failed", "address", address, "err", err)
		// The worst that was said decides: a refusal will not go away by itself.
		if k := errs.KindOf(err); k == errs.Denied || k == errs.Busy && kind != errs.Denied {
			kind = k
		}
		all = append(all, fmt.Errorf("%s: %w", address, err))
	}
	err = errors.Join(all...)
	return nil, &errs.Error{Op: op, Kind: kind, Msg: joinText(kind, all), Err: err}
}

// joinText is what the operator reads.
func joinText(kind errs.Kind, all []error) string {
	for _, err := range all {
		if errs.KindOf(err) == kind {
			return "the cluster was not joined: " + errs.Public(err)
		}
	}
	return "the cluster was not joined: no member answers"
}

// joinAt joins by one member.
func (r *Request) joinAt(ctx context.Context, address string, key *ecdsa.PrivateKey) (*Grant, error) {
	const op = "trust.joinAt"
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, errs.As(op, errs.Unavailable, err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{JoinProtocol},
		// Nothing is known yet that the chain could be verified with: the proof of the secret,
		// which is bound to this channel, takes its place.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection:       negotiated,
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errs.As(op, errs.Unavailable, err)
	}
	cluster, err := r.greet(conn)
	if err != nil {
		return nil, err
	}
	return r.apply(conn, cluster, key)
}

// greet proves the secret and has it proved.
func (r *Request) greet(conn *tls.Conn) (cluster [16]byte, err error) {
	const op = "trust.greet"
	p, err := newProver(conn, r.Secret.verifier())
	if err != nil {
		return cluster, errs.As(op, errs.Internal, err)
	}
	hello := []byte{oldestJoin, newestJoin}
	hello = append(hello, p.proof(labelJoiner, hello)...)
	if err := writeMessage(conn, msgHello, hello); err != nil {
		return cluster, errs.As(op, errs.Unavailable, err)
	}
	typ, body, err := readMessage(conn, maxRequest)
	if err != nil {
		return cluster, errs.As(op, errs.Unavailable, err)
	}
	if typ == msgRefused {
		// Whoever says this has proved nothing: only the kind is looked at.
		rd := reader{b: body}
		return cluster, refusedEarly(errs.Kind(rd.byte()))
	}
	rd := reader{b: body}
	version := rd.byte()
	copy(cluster[:], rd.take(16))
	proof := rd.take(sha256.Size)
	if typ != msgWelcome || rd.bad || len(rd.b) != 0 {
		return cluster, errs.E(op, errs.Unavailable, "what answers there is no member of a cluster")
	}
	if !hmac.Equal(proof, p.proof(labelMember, body[:1+16])) {
		return cluster, errs.E(op, errs.Denied, "what answers there does not know the cluster secret, or somebody stands between")
	}
	if version < oldestJoin || version > newestJoin {
		return cluster, errs.E(op, errs.Unsupported, "the member speaks another version of the join protocol")
	}
	return cluster, nil
}

// refusedEarly is a refusal before the member has proved itself.
func refusedEarly(kind errs.Kind) error {
	const op = "trust.greet"
	switch kind {
	case errs.Denied:
		return errs.E(op, kind, "the cluster secret was refused: it is not this cluster's")
	case errs.Busy:
		return errs.E(op, kind, "too many attempts to join from here, at a time or failed ones; wait a minute")
	case errs.Unsupported:
		return errs.E(op, kind, "the member issues no certificates, as a gateway without drives (join by a node with drives), or speaks no version of the join protocol that is known here")
	}
	return errs.E(op, errs.Unavailable, "the member cannot answer now")
}

// apply asks for certificate and state, and looks whether they fit.
func (r *Request) apply(conn *tls.Conn, cluster [16]byte, key *ecdsa.PrivateKey) (*Grant, error) {
	const op = "trust.apply"
	csr, err := request(r.Node, key)
	if err != nil {
		return nil, errs.As(op, errs.Internal, err)
	}
	if err := writeMessage(conn, msgRequest, appendRequest(nil, r.Node, r.Full, csr)); err != nil {
		return nil, errs.As(op, errs.Unavailable, err)
	}
	typ, body, err := readMessage(conn, maxGrant)
	if err != nil {
		return nil, errs.As(op, errs.Unavailable, err)
	}
	if typ == msgRefused {
		return nil, refusal(body)
	}
	der, encoded, addresses, ok := parseGrant(body)
	if typ != msgGrant || !ok {
		return nil, errs.E(op, errs.Unavailable, "the member's answer does not parse")
	}
	state, err := Decode(encoded)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	cert, err := certificate(der, key)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	return r.accept(conn, &Grant{State: state, Certificate: cert, Addresses: addresses}, cluster)
}

// refusal is what a member says that has proved itself.
func refusal(body []byte) error {
	const op = "trust.apply"
	rd := reader{b: body}
	kind := errs.Kind(rd.byte())
	text := rd.take(int(rd.uint16()))
	if rd.bad || len(rd.b) != 0 || len(text) > maxText {
		return errs.E(op, errs.Unavailable, "the member's refusal does not parse")
	}
	return errs.E(op, kind, "the member refused: "+string(text))
}

// appendGrant appends the body of a grant. Of the addresses it takes what fits; gossip tells the joiner the rest.
func appendGrant(b, der, state []byte, addresses []string) []byte {
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(der))), der...)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(state))), state...)
	var fit []string
	for _, a := range addresses {
		if len(a) > 0 && len(a) <= maxAddress && len(fit) < maxAddresses {
			fit = append(fit, a)
		}
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(fit)))
	for _, a := range fit {
		b = append(append(b, byte(len(a))), a...)
	}
	return b
}

// parseGrant reads what appendGrant wrote.
func parseGrant(body []byte) (der, state []byte, addresses []string, ok bool) {
	rd := reader{b: body}
	der = rd.take(int(rd.uint32()))
	state = rd.take(int(rd.uint32()))
	n := rd.uint16()
	rd.check(n <= maxAddresses)
	for ; n > 0 && !rd.bad; n-- {
		length := int(rd.byte())
		rd.check(length > 0 && length <= maxAddress)
		addresses = append(addresses, string(rd.take(length)))
	}
	return der, state, addresses, !rd.bad && len(rd.b) == 0
}

// accept looks whether a grant is what was asked for.
func (r *Request) accept(conn *tls.Conn, g *Grant, cluster [16]byte) (*Grant, error) {
	const op = "trust.accept"
	if g.State.Cluster() != cluster || g.State.Full() != r.Full {
		return nil, errs.E(op, errs.Unavailable, "the member granted something else than was asked for")
	}
	node, err := g.State.verify(g.Certificate.Leaf, r.Now())
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	if node != r.Node {
		return nil, errs.E(op, errs.Unavailable, "the member granted another node's certificate")
	}
	// The secret has proved the member already; that its own certificate is of the cluster is a second look.
	if _, err := g.State.verify(conn.ConnectionState().PeerCertificates[0], r.Now()); err != nil {
		return nil, errs.Wrap(op, err)
	}
	return g, nil
}

// ServeJoin is the Handler of JoinProtocol. A process with a public state refuses: it issues nothing.
func (m *Manager) ServeJoin(ctx context.Context, conn *tls.Conn, _ [16]byte) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	defer stop()
	remote := conn.RemoteAddr()
	ok, first := m.joins.begin(remote, m.cfg.Now())
	if !ok {
		if first {
			m.cfg.Logger.Warn("too many failed attempts to join; further ones are refused for a while", "remote", remote)
		}
		// What was sent is read and not looked at: closing over it would reset the connection, and the refusal be lost.
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		_, _, _ = readMessage(conn, maxRequest)
		refuse(conn, errs.E("trust.ServeJoin", errs.Busy, "too many attempts to join"))
		return
	}
	a, proven, err := m.admit(ctx, conn)
	m.joins.end(remote, proven)
	if err != nil {
		m.cfg.Logger.Warn("a process was not let in", "remote", remote, "err", err)
		refuse(conn, err)
		return
	}
	m.cfg.Logger.Info("a process has joined", "remote", remote, "node", fmt.Sprintf("%x", a.Node), "full", a.Full)
}

// admit is one attempt to join, as the member sees it, and whether the applicant has proved the secret. The error is told to
// the joiner: before the proof only its kind counts there.
func (m *Manager) admit(ctx context.Context, conn *tls.Conn) (a Applicant, proven bool, err error) {
	const op = "trust.ServeJoin"
	if err := welcome(conn, m.State()); err != nil {
		return a, false, err
	}
	a, csr, err := readRequest(conn)
	if err != nil {
		return a, true, err
	}
	var addresses []string
	if m.cfg.Admit != nil {
		if addresses, err = m.cfg.Admit(ctx, a); err != nil {
			return a, true, errs.Wrap(op, err)
		}
	}
	// What Admit did may have changed the state; what is granted is the newest.
	state := m.State()
	der, err := state.Issue(csr, a.Node, m.cfg.Now())
	if err != nil {
		return a, true, errs.Wrap(op, err)
	}
	if !a.Full {
		state = state.Public()
	}
	grant := appendGrant(nil, der, state.AppendTo(nil), addresses)
	return a, true, errs.As(op, errs.Unavailable, writeMessage(conn, msgGrant, grant))
}

// readRequest reads what a joiner asks for.
func readRequest(conn *tls.Conn) (a Applicant, csr []byte, err error) {
	const op = "trust.ServeJoin"
	typ, body, err := readMessage(conn, maxRequest)
	if err != nil {
		return a, nil, errs.As(op, errs.Invalid, err)
	}
	a, csr, ok := parseRequest(body)
	if typ != msgRequest || !ok {
		return a, nil, errs.E(op, errs.Invalid, "the request does not parse")
	}
	a.Remote = conn.RemoteAddr()
	return a, csr, nil
}

// appendRequest appends the body of a request.
func appendRequest(b []byte, node [16]byte, full bool, csr []byte) []byte {
	b = append(b, node[:]...)
	flag := byte(0)
	if full {
		flag = 1
	}
	b = binary.BigEndian.AppendUint16(append(b, flag), uint16(len(csr)))
	return append(b, csr...)
}

// parseRequest reads what appendRequest wrote.
func parseRequest(body []byte) (a Applicant, csr []byte, ok bool) {
	rd := reader{b: body}
	copy(a.Node[:], rd.take(16))
	full := rd.byte()
	csr = rd.take(int(rd.uint16()))
	a.Full = full == 1
	return a, csr, !rd.bad && len(rd.b) == 0 && full <= 1
}

// welcome has the secret proved, then proves it.
func welcome(conn *tls.Conn, state *State) error {
	const op = "trust.ServeJoin"
	p, err := newProver(conn, state.verifier)
	if err != nil {
		return errs.As(op, errs.Internal, err)
	}
	typ, body, err := readMessage(conn, maxRequest)
	if err != nil {
		return errs.As(op, errs.Invalid, err)
	}
	if !state.Full() {
		return errs.E(op, errs.Unsupported, "this process issues no certificates; join by a node with drives")
	}
	rd := reader{b: body}
	oldest, newest := rd.byte(), rd.byte()
	proof := rd.take(sha256.Size)
	if typ != msgHello || rd.bad || len(rd.b) != 0 || !hmac.Equal(proof, p.proof(labelJoiner, body[:2])) {
		// One answer for all that is wrong.
		return errs.E(op, errs.Denied, "it does not know the cluster secret")
	}
	version := min(newest, newestJoin)
	if version < max(oldest, oldestJoin) {
		return errs.E(op, errs.Unsupported, "it speaks another version of the join protocol")
	}
	answer := append([]byte{version}, state.cluster[:]...)
	answer = append(answer, p.proof(labelMember, answer)...)
	return errs.As(op, errs.Unavailable, writeMessage(conn, msgWelcome, answer))
}

// refuse tells the other side; that it may not hear it is no matter.
func refuse(conn *tls.Conn, err error) {
	text := errs.Public(err)
	if len(text) > maxText {
		text = text[:maxText]
	}
	body := []byte{byte(errs.KindOf(err))}
	body = binary.BigEndian.AppendUint16(body, uint16(len(text)))
	_ = writeMessage(conn, msgRefused, append(body, text...))
}

// prover makes the proofs of one channel.
type prover struct {
	verifier hidden
	exporter []byte
}

func newProver(conn *tls.Conn, verifier hidden) (*prover, error) {
	cs := conn.ConnectionState()
	exporter, err := cs.ExportKeyingMaterial(exporterName, nil, 32)
	return &prover{verifier, exporter}, err
}

// proof shows that a side knows the secret, on this channel and no other, and stands for what it says.
func (p *prover) proof(label string, body []byte) []byte {
	h := hmac.New(sha256.New, p.verifier.bytes())
	io.WriteString(h, label)
	h.Write([]byte{0})
	h.Write(p.exporter)
	h.Write(body)
	return h.Sum(nil)
}

func writeMessage(w io.Writer, typ byte, body []byte) error {
	b := binary.BigEndian.AppendUint32([]byte{typ}, uint32(len(body)))
	_, err := w.Write(append(b, body...))
	return err
}

// readMessage reads a message whose body has at most limit bytes.
func readMessage(r io.Reader, limit int) (typ byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > uint32(limit) {
		return 0, nil, errs.E("trust.readMessage", errs.Invalid, "a message is too long")
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}
