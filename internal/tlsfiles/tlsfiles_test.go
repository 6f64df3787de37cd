package tlsfiles

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// write makes a self-signed pair for name and gives both files the time at.
func write(t *testing.T, dir, name string, at time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "c.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), at)
	put(t, filepath.Join(dir, "k.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), at)
}

func put(t *testing.T, name string, data []byte, at time.Time) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

func shown(t *testing.T, p *Pair) string {
	t.Helper()
	c, err := p.Config().GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.Subject.CommonName
}

func TestACertificateIsReadAgainWhenItsFilesChange(t *testing.T) {
	dir := t.TempDir()
	clock := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := clock
	write(t, dir, "one", clock)
	p, err := Load(filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem"), func() time.Time { return now }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(t, p); got != "one" {
		t.Errorf("at first %q is shown, want one", got)
	}
	write(t, dir, "two", clock.Add(time.Hour))
	if got := shown(t, p); got != "one" {
		t.Errorf("within the second %q is shown, want one", got)
	}
	now = now.Add(checkEvery)
	if got := shown(t, p); got != "two" {
		t.Errorf("after the change %q is shown, want two", got)
	}
	put(t, filepath.Join(dir, "c.pem"), []byte("half"), clock.Add(2*time.Hour))
	now = now.Add(checkEvery)
	if got := shown(t, p); got != "two" {
		t.Errorf("with a broken file %q is shown, want two", got)
	}
	write(t, dir, "three", clock.Add(3*time.Hour))
	now = now.Add(checkEvery)
	if got := shown(t, p); got != "three" {
		t.Errorf("after the repair %q is shown, want three", got)
	}
	if err := os.Remove(filepath.Join(dir, "k.pem")); err != nil {
		t.Fatal(err)
	}
	now = now.Add(checkEvery)
	if got := shown(t, p); got != "three" {
		t.Errorf("without the key file %q is shown, want three", got)
	}
}

func TestABadPairIsRefusedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "c"), filepath.Join(dir, "k"), time.Now, slog.New(slog.DiscardHandler)); !errs.Is(err, errs.Invalid) {
		t.Errorf("absent files: %v, want kind invalid", err)
	}
	write(t, dir, "a", time.Now())
	other := t.TempDir()
	write(t, other, "b", time.Now())
	if _, err := Load(filepath.Join(dir, "c.pem"), filepath.Join(other, "k.pem"), time.Now, slog.New(slog.DiscardHandler)); !errs.Is(err, errs.Invalid) {
		t.Errorf("the key of another certificate: %v, want kind invalid", err)
	}
}
