package trust

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Config makes a Manager.
type Config struct {
	Node  [16]byte // this process; not zero
	State *State   // full, or public together with Certificate

	// Certificate is the one that Join brought. Without it the process issues its own, which needs a full state.
	Certificate *tls.Certificate
	// Renew has a certificate request (DER) answered by a node that holds the full state, and returns the certificate (DER).
	// It is called by Run, one call at a time, only while this process holds a public state. Nil: the certificate runs out.
	Renew func(ctx context.Context, csr []byte) ([]byte, error)
	// Admit decides whether an applicant that has proved the secret becomes a node, and returns
	// the addresses (host:port) that it is told, to find the others by gossip. It is called by several goroutines. Its error is told to the applicant by
	// errs.Public. Nil admits everyone and tells no address.
	Admit func(ctx context.Context, a Applicant) ([]string, error)

	Now    func() time.Time // nil is time.Now
	Logger *slog.Logger     // nil discards
}

// Manager holds what this process trusts and what it shows, and follows changes of both. It is safe for concurrent use.
type Manager struct {
	cfg   Config
	wake  chan struct{} // capacity 1: Run looks again
	joins *limiter

	mu       sync.Mutex // guards the fields below
	state    *State
	cert     *tls.Certificate       // replaced, never altered
	standing map[io.Closer][16]byte // connections of other nodes and to them, by node
}

// NewManager begins with a state, and with a certificate of this process, which it issues if need be.
func NewManager(cfg Config) (*Manager, error) {
	const op = "trust.NewManager"
	if cfg.Node == [16]byte{} || cfg.State == nil {
		return nil, errs.E(op, errs.Invalid, "a node needs an id and the trust state of its cluster")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{cfg: cfg, wake: make(chan struct{}, 1), joins: newLimiter(), state: cfg.State, cert: cfg.Certificate, standing: map[io.Closer][16]byte{}}
	m.cfg.State, m.cfg.Certificate = nil, nil // the fields above hold what is current
	if m.cert != nil {
		if err := m.own(m.state, m.cert); err != nil {
			return nil, errs.Wrap(op, err)
		}
		return m, nil
	}
	cert, err := m.state.issueOwn(cfg.Node, cfg.Now())
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	m.cert = cert
	return m, nil
}

// own reports whether a certificate is this process's and good under a state.
func (m *Manager) own(s *State, cert *tls.Certificate) error {
	node, err := s.verify(cert.Leaf, m.cfg.Now())
	if err == nil && node != m.cfg.Node {
		err = errs.E("trust.own", errs.Invalid, "the certificate is another node's")
	}
	return err
}

// Node returns the id of this process.
func (m *Manager) Node() [16]byte { return m.cfg.Node }

// State returns what is trusted now.
func (m *Manager) State() *State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// current returns state and certificate as of one moment.
func (m *Manager) current() (*State, *tls.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, m.cert
}

// Adopt follows a change: from now on handshakes are verified by s. Connections that stand stay, but for those of nodes
// that are revoked: these are cut. What is held already is adopted again without effect. It ends with errs.Stale for an older state, errs.Invalid for one of
// another cluster, or without the keys that this process holds.
func (m *Manager) Adopt(s *State) error {
	if err := m.adopt(s); err != nil {
		return err
	}
	m.cut()
	return nil
}

func (m *Manager) adopt(s *State) error {
	const op = "trust.Adopt"
	m.mu.Lock()
	defer m.mu.Unlock()
	switch newer := s.Newer(m.state); {
	case s.cluster != m.state.cluster:
		return errs.E(op, errs.Invalid, "the trust state is another cluster's")
	case m.state.Full() && !s.Full():
		if newer <= 0 {
			return nil // what is held says as much and more
		}
		return errs.E(op, errs.Invalid, "the trust state lacks the keys that this process holds")
	case newer < 0:
		return errs.E(op, errs.Stale, "a newer trust state is held")
	case newer == 0 && m.state.Full() == s.Full():
		return nil
	}
	m.state = s
	if s.Full() && !m.bySigning() {
		cert, err := s.issueOwn(m.cfg.Node, m.cfg.Now())
		if err != nil {
			// The state holds all the same; Run tries again and says so.
			m.cfg.Logger.Warn("the certificate of this node was not renewed", "err", err)
		} else {
			m.cert = cert
		}
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return nil
}

// bySigning reports whether the certificate comes from the authority that issues now. The caller holds mu.
func (m *Manager) bySigning() bool {
	return m.cert.Leaf.CheckSignatureFrom(m.state.signing().cert) == nil
}

// Bounds of the renewal's patience.
const (
	firstRetry = time.Minute
	lastRetry  = time.Hour
)

// Run renews the certificate of this process at half its life, and when the authority changes, until ctx ends. Failures are logged and tried
// again after a minute to an hour, which leaves days.
func (m *Manager) Run(ctx context.Context) {
	retry := firstRetry
	for {
		wait := m.untilRenewal()
		if wait <= 0 {
			err := m.renew(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				// At least a pause: the issuer's clock may be so far behind that what it issues is past half its life.
				wait, retry = max(m.untilRenewal(), firstRetry), firstRetry
			default:
				_, cert := m.current()
				m.cfg.Logger.Warn("the certificate of this node was not renewed", "err", err, "good until", cert.Leaf.NotAfter, "next attempt in", retry)
				wait, retry = retry, min(2*retry, lastRetry)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-m.wake:
			timer.Stop()
		}
	}
}

// untilRenewal returns how long the certificate is shown yet, at most an hour, since a clock may be set meanwhile.
func (m *Manager) untilRenewal() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.bySigning() {
		return 0
	}
	now, leaf := m.cfg.Now(), m.cert.Leaf
	if now.Before(leaf.NotBefore) {
		return 0 // the clock was set back
	}
	return min(leaf.NotAfter.Add(-NodeLife/2).Sub(now), time.Hour)
}

// renew replaces the certificate of this process.
func (m *Manager) renew(ctx context.Context) error {
	state, _ := m.current()
	var cert *tls.Certificate
	var err error
	if state.Full() {
		cert, err = state.issueOwn(m.cfg.Node, m.cfg.Now())
	} else {
		cert, err = m.ask(ctx)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.own(m.state, cert); err != nil {
		return errs.Wrap("trust.Renew", err)
	}
	m.cert = cert
	if !m.bySigning() {
		// From a node that has not followed yet: good, but to be renewed again.
		return errs.E("trust.Renew", errs.Stale, "the certificate comes from the former authority")
	}
	return nil
}

// ask has a new key certified by another node.
func (m *Manager) ask(ctx context.Context) (*tls.Certificate, error) {
	const op = "trust.Renew"
	if m.cfg.Renew == nil {
		return nil, errs.E(op, errs.Unsupported, "this process has no way to renew its certificate")
	}
	key, err := newKey()
	if err != nil {
		return nil, errs.As(op, errs.Internal, err)
	}
	csr, err := request(m.cfg.Node, key)
	if err != nil {
		return nil, errs.As(op, errs.Internal, err)
	}
	der, err := m.cfg.Renew(ctx, csr)
	if err != nil {
		return nil, errs.Wrap(op, err)
	}
	return certificate(der, key)
}

// Issue answers the certificate request of a peer whose id comes from its present certificate. See State.Issue.
func (m *Manager) Issue(csr []byte, peer [16]byte) ([]byte, error) {
	return m.State().Issue(csr, peer, m.cfg.Now())
}
