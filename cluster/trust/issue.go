package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"net/url"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

const uriScheme = "ostraka"

// newKey makes a node's key. It lives in memory only.
func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// request makes a certificate request (DER) of a node.
func request(node [16]byte, key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: hex.EncodeToString(node[:])}}, key)
}

// Issue answers a certificate request (DER) of a node that was found to be that node, with its certificate (DER).
// Of the request only the key is used. It ends with errs.Invalid for a request that is not the node's,
// errs.Denied for a node that is revoked or when this process holds no keys.
func (s *State) Issue(csr []byte, node [16]byte, now time.Time) ([]byte, error) {
	const op = "trust.Issue"
	if len(csr) > maxCert {
		return nil, errs.E(op, errs.Invalid, "the certificate request is too long")
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, &errs.Error{Op: op, Kind: errs.Invalid, Msg: "the certificate request does not parse", Err: err}
	}
	if err := req.CheckSignature(); err != nil {
		return nil, &errs.Error{Op: op, Kind: errs.Invalid, Msg: "the certificate request is not signed by its key", Err: err}
	}
	if req.Subject.CommonName != hex.EncodeToString(node[:]) {
		return nil, errs.E(op, errs.Invalid, "the certificate request is another node's")
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errs.E(op, errs.Invalid, "the certificate request has a key of another kind")
	}
	return s.issue(op, pub, node, now)
}

// issueOwn makes a key and its certificate for this process.
func (s *State) issueOwn(node [16]byte, now time.Time) (*tls.Certificate, error) {
	const op = "trust.Issue"
	key, err := newKey()
	if err != nil {
		return nil, errs.As(op, errs.Internal, err)
	}
	der, err := s.issue(op, &key.PublicKey, node, now)
	if err != nil {
		return nil, err
	}
	return certificate(der, key)
}

func (s *State) issue(op string, pub *ecdsa.PublicKey, node [16]byte, now time.Time) ([]byte, error) {
	switch a := s.signing(); {
	case node == [16]byte{}:
		return nil, errs.E(op, errs.Invalid, "no node has the id zero")
	case a.key == nil:
		return nil, errs.E(op, errs.Denied, "this process holds no keys of the cluster")
	case s.Revoked(node):
		return nil, errs.E(op, errs.Denied, "the node was revoked")
	case now.Add(NodeLife).After(a.cert.NotAfter):
		return nil, errs.E(op, errs.Denied, "the cluster's authority has run out; replace it")
	default:
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber:          newSerial(),
			Subject:               pkix.Name{CommonName: hex.EncodeToString(node[:])},
			NotBefore:             now.Add(-ClockSkew),
			NotAfter:              now.Add(NodeLife),
			URIs:                  []*url.URL{nodeURI(s.cluster, node)},
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageDigitalSignature,
			ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, a.cert, pub, a.key())
		return der, errs.As(op, errs.Internal, err)
	}
}

// certificate joins a certificate with its key.
func certificate(der []byte, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &errs.Error{Op: "trust.Issue", Kind: errs.Invalid, Msg: "the certificate does not parse", Err: err}
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !key.PublicKey.Equal(pub) {
		return nil, errs.E("trust.Issue", errs.Invalid, "the certificate is for another key")
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// nodeURI is the name of a node in its certificate.
func nodeURI(cluster, node [16]byte) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: hex.EncodeToString(cluster[:]), Path: "/" + hex.EncodeToString(node[:])}
}

// verify says which node a certificate is of, as far as this state goes. It ends with errs.Denied, and a text that says
// what is wrong, when the certificate is not of the cluster, has run out or not begun, or is revoked.
func (s *State) verify(leaf *x509.Certificate, now time.Time) (node [16]byte, err error) {
	const op = "trust.Verify"
	roots := x509.NewCertPool()
	for _, a := range s.authorities {
		roots.AddCert(a.cert)
	}
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return node, errs.E(op, errs.Denied, "the peer's certificate is good from "+leaf.NotBefore.UTC().Format(time.RFC3339)+" to "+
			leaf.NotAfter.UTC().Format(time.RFC3339)+", and the clock here says "+now.UTC().Format(time.RFC3339))
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return node, &errs.Error{Op: op, Kind: errs.Denied, Msg: "the peer's certificate is not of this cluster", Err: err}
	}
	if node, err = nodeOf(leaf, s.cluster); err != nil {
		return [16]byte{}, errs.As(op, errs.Denied, err)
	}
	if s.Revoked(node) {
		return [16]byte{}, errs.E(op, errs.Denied, "the peer was revoked")
	}
	return node, nil
}

// nodeOf reads the name of the node from a certificate that was verified.
func nodeOf(leaf *x509.Certificate, cluster [16]byte) (node [16]byte, err error) {
	const op = "trust.nodeOf"
	if len(leaf.URIs) != 1 {
		return node, errs.E(op, errs.Denied, "the peer's certificate names no node")
	}
	u := leaf.URIs[0]
	if n, err := hex.Decode(node[:], []byte(pathOf(u))); err != nil || n != len(node) {
		return [16]byte{}, errs.E(op, errs.Denied, "the peer's certificate names no node")
	}
	// Printing it again is the strictest comparison: one spelling names a node, and no other.
	if u.String() != nodeURI(cluster, node).String() || node == [16]byte{} {
		return [16]byte{}, errs.E(op, errs.Denied, "the peer's certificate is of another cluster")
	}
	return node, nil
}

// pathOf returns the hexadecimal digits of the path, or nothing that decodes.
func pathOf(u *url.URL) string {
	if len(u.Path) != 33 {
		return "-"
	}
	return u.Path[1:]
}
