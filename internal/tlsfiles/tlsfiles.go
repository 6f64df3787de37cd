// Package tlsfiles owns the certificate that the server shows: it is read from two PEM files,
// and read again when either of them changes, so that renewing a certificate needs no restart.
//
// It never watches in the background: a handshake looks at the files' size and time, at most once
// a second. A pair that does not load (half written, wrong key) leaves the last good one in use
// and is reported once per change.
package tlsfiles

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// checkEvery bounds how often handshakes look at the files.
const checkEvery = time.Second

// Pair is a certificate with its key, and where both come from.
type Pair struct {
	certFile, keyFile string
	now               func() time.Time
	log               *slog.Logger

	mu      sync.Mutex // guards all below
	cert    *tls.Certificate
	stamp   stamp     // of the files when they were last read
	checked time.Time // when the files were last looked at
}

// stamp tells one content of the two files from another.
type stamp struct {
	certTime, keyTime time.Time
	certSize, keySize int64
}

// Load reads the pair; it has to be good at the start.
func Load(certFile, keyFile string, now func() time.Time, log *slog.Logger) (*Pair, error) {
	const op, msg = "tlsfiles.Load", "the certificate or its key cannot be used: "
	p := &Pair{certFile: certFile, keyFile: keyFile, now: now, log: log}
	// Look first: a file that changes before it is read is then read again at the next handshake.
	var err error
	if p.stamp, err = p.look(); err != nil {
		return nil, &errs.Error{Op: op, Kind: errs.Invalid, Msg: msg + certFile + ", " + keyFile, Err: err}
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, &errs.Error{Op: op, Kind: errs.Invalid, Msg: msg + certFile + ", " + keyFile, Err: err}
	}
	p.cert, p.checked = &cert, now()
	return p, nil
}

// Config returns a server configuration with TLS 1.2 and later.
func (p *Pair) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.Certificate(), nil
		},
	}
}

// Certificate returns the current certificate, after a look at the files if one is due.
func (p *Pair) Certificate() *tls.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if now.Sub(p.checked) < checkEvery && !now.Before(p.checked) {
		return p.cert
	}
	p.checked = now
	s, err := p.look()
	if err != nil || s == p.stamp {
		return p.cert // a file that is being replaced is absent for a moment
	}
	p.stamp = s
	cert, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
	if err != nil {
		p.log.Error("the changed TLS files cannot be used; the old certificate stays in use", "cert", p.certFile, "key", p.keyFile, "err", err)
		return p.cert
	}
	p.cert = &cert
	p.log.Info("the TLS certificate was read again", "cert", p.certFile)
	return p.cert
}

func (p *Pair) look() (stamp, error) {
	c, err := os.Stat(p.certFile)
	if err != nil {
		return stamp{}, err
	}
	k, err := os.Stat(p.keyFile)
	if err != nil {
		return stamp{}, err
	}
	return stamp{certTime: c.ModTime(), keyTime: k.ModTime(), certSize: c.Size(), keySize: k.Size()}, nil
}
