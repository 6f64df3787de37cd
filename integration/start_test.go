package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

func TestStartPrintsWhatAPersonNeeds(t *testing.T) {
	s := start(t, 4)
	// What the process printed is copied by another goroutine.
	poll(t, 5*time.Second, 5*time.Millisecond, "the start to be printed", func() error {
		if !strings.Contains(s.log.String(), "/-/ready") {
			return fmt.Errorf("printed so far:\n%s", s.log.String())
		}
		return nil
	})
	out := s.log.String()
	for _, want := range append([]string{s.url(), "2+2", "aws --endpoint-url"}, s.dirs...) {
		if !strings.Contains(out, want) {
			t.Errorf("the start does not print %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, secretKey) {
		t.Error("the start prints the secret")
	}
	for path, want := range map[string]string{"/-/live": "live", "/-/ready": "ready", "/-/metrics": "ostraka_build_info"} {
		resp, err := http.Get(s.url() + path)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !strings.Contains(string(raw), want) {
			t.Errorf("%s answers %s: %.200s", path, resp.Status, raw)
		}
	}
	resp, err := http.Get(s.url() + "/-/admin/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("the admin interface answers %s to nobody, want 403", resp.Status)
	}
	stdout, stderr, err := s.ostraka("admin", "status", "--json")
	if err != nil || !strings.Contains(stdout, s.dirs[3]) {
		t.Errorf("admin status: %v\n%s%s", err, stdout, stderr)
	}
	s.stop(20 * time.Second)
}

func TestGeneratedKeysOutliveAnyDrive(t *testing.T) {
	s := newServer(t, 4)
	s.env = os.Environ()
	s.start()
	poll(t, 5*time.Second, 5*time.Millisecond, "the start to be printed", func() error {
		if !strings.Contains(s.log.String(), "/-/ready") {
			return fmt.Errorf("printed so far:\n%s", s.log.String())
		}
		return nil
	})
	out := s.log.String()
	name := filepath.Join(s.dirs[0], "root-keys.json")
	if !strings.Contains(out, name) {
		t.Errorf("the start does not print where the keys are:\n%s", out)
	}
	var first struct{ Access_key, Secret_key string }
	read := func(dir string) {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(dir, "root-keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		got := first
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		if first.Access_key != "" && got != first {
			t.Errorf("%s holds other keys", dir)
		}
		first = got
	}
	for _, d := range s.dirs {
		read(d)
		st, err := os.Stat(filepath.Join(d, "root-keys.json"))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("mode of the keys in %s: %v, %v; want 0600", d, st.Mode().Perm(), err)
		}
	}
	if strings.Contains(out, first.Secret_key) {
		t.Error("the start prints the secret")
	}
	client := func() *s3.Client {
		return s.s3(func(o *s3.Options) {
			o.Credentials = credentials.NewStaticCredentialsProvider(first.Access_key, first.Secret_key, "")
		})
	}
	if _, err := client().CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("kept")}); err != nil {
		t.Fatal(err)
	}
	for i := range s.dirs {
		s.stop(20 * time.Second)
		s.takeDrive(i)
		s.start()
		if _, err := client().HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: aws.String("kept")}); err != nil {
			t.Errorf("without drive %d: %v", i+1, err)
		}
		s.stop(20 * time.Second)
		s.returnDrive(i)
		s.start()
	}
}

func TestWhatCannotServeIsRefusedWithAReason(t *testing.T) {
	good := start(t, 2)
	dirs := good.dirs
	good.stop(20 * time.Second)
	other := start(t, 1)
	other.stop(20 * time.Second)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "photo.jpg"), []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(full, "photo.jpg")
	at := "--address=" + freeAddress(t)
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"no drive", []string{"server", at}, "drive"},
		{"an unknown flag", []string{"server", at, "--drives", "x"}, "unknown flag"},
		{"an unknown command", []string{"serve"}, "unknown command"},
		{"a range that is none", []string{"server", at, "/d{1..4}"}, "range"},
		{"a profile that does not fit", []string{"server", at, "--profile", "4+4", t.TempDir(), t.TempDir()}, "4+4"},
		{"a directory that holds something else", []string{"server", at, full}, full},
		{"a file", []string{"server", at, file}, file},
		{"drives of two stores", []string{"server", at, dirs[0], other.dirs[0]}, other.dirs[0]},
		{"the same drive twice", []string{"server", at, dirs[0], dirs[0]}, "twice"},
		{"a test setting", []string{"server", at, "--unsafe-test-min-part-size", "1", full}, "refused"},
		{"a certificate that is not there", []string{"server", at, "--tls-cert", "/none", "--tls-key", "/none", t.TempDir()}, "/none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out := refused(t, nil, c.args...); !strings.Contains(out, c.says) {
				t.Errorf("the refusal does not say %q:\n%s", c.says, out)
			}
		})
	}
	if raw, err := os.ReadFile(file); err != nil || string(raw) != "precious" {
		t.Errorf("a refused directory was changed: %q, %v", raw, err)
	}
	entries, err := os.ReadDir(full)
	if err != nil || len(entries) != 1 {
		t.Errorf("a refused directory has %d entries, %v; want the one it had", len(entries), err)
	}
	t.Run("an address in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addr := l.Addr().String()
		if out := refused(t, nil, "server", "--address", addr, t.TempDir()); !strings.Contains(out, addr) {
			t.Errorf("the refusal does not name the address:\n%s", out)
		}
	})
	t.Run("drives in use by another process", func(t *testing.T) {
		s := start(t, 1)
		if out := refused(t, nil, "server", "--address", freeAddress(t), s.dirs[0]); !strings.Contains(out, s.dirs[0]) {
			t.Errorf("the refusal does not name the drive:\n%s", out)
		}
	})
	t.Run("short root keys", func(t *testing.T) {
		out := refused(t, []string{"OSTRAKA_ROOT_ACCESS_KEY=ab", "OSTRAKA_ROOT_SECRET_KEY=topsecret1"}, "server", at, t.TempDir())
		if !strings.Contains(out, "access key") || strings.Contains(out, "topsecret1") {
			t.Errorf("the refusal: %s", out)
		}
	})
}

// waiting is a body that gives its first half at once and the rest when it is told to.
type waiting struct {
	b     *body
	half  int64
	began chan struct{} // closed when the first half was read
	goOn  chan struct{}
	told  bool
}

func (w *waiting) Read(p []byte) (int, error) {
	if w.b.at >= w.half && !w.told {
		w.told = true
		close(w.began)
		<-w.goOn
	}
	if !w.told {
		p = p[:min(int64(len(p)), w.half-w.b.at)]
	}
	return w.b.Read(p)
}

func TestSIGTERMLetsRunningRequestsEnd(t *testing.T) {
	s := start(t, 4)
	c := s.s3()
	bucket := s.bucket(t, "draining")
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("before"), Body: bytes.NewReader(nil)}); err != nil {
		t.Fatal(err)
	}
	b := newBody(9, 4*mib)
	w := &waiting{b: newBody(9, 4*mib), half: 2 * mib, began: make(chan struct{}), goOn: make(chan struct{})}
	presigned, err := s3.NewPresignClient(c).PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("during")})
	if err != nil {
		t.Fatal(err)
	}
	put := make(chan error, 1)
	go func() { // ends with the answer
		req, err := http.NewRequest(http.MethodPut, presigned.URL, w)
		if err != nil {
			put <- err
			return
		}
		req.ContentLength = b.n
		// The body goes only when the server asks for it: before, the connection may still wait to be accepted.
		req.Header.Set("Expect", "100-continue")
		client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
		defer client.CloseIdleConnections()
		resp, err := client.Do(req)
		if err == nil {
			raw, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 {
				err = fmt.Errorf("%s: %s", resp.Status, raw)
			}
		}
		put <- err
	}()
	<-w.began
	stopped := make(chan struct{})
	go func() { s.stop(25 * time.Second); close(stopped) }()
	poll(t, 10*time.Second, 10*time.Millisecond, "new connections to be refused", func() error {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			conn.Close()
			return fmt.Errorf("the server still accepts")
		}
		return nil
	})
	close(w.goOn)
	if err := <-put; err != nil {
		t.Errorf("the PUT that was running: %v", err)
	}
	<-stopped
	s.start()
	fetch(t, s.s3(), bucket, "during", b)
}

// certificate writes a self-signed pair for 127.0.0.1 with a name in it.
func certificate(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{"k.pem": {Type: "EC PRIVATE KEY", Bytes: raw}, "c.pem": {Type: "CERTIFICATE", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestHTTPSWithACertificateThatIsRenewed(t *testing.T) {
	dir := t.TempDir()
	first := certificate(t, dir, "first")
	s := newServer(t, 1, "--tls-cert", filepath.Join(dir, "c.pem"), "--tls-key", filepath.Join(dir, "k.pem"))
	s.scheme = "https"
	trust := func(c *x509.Certificate) *http.Client {
		pool := x509.NewCertPool()
		pool.AddCert(c)
		return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	s.client = trust(first)
	s.start()
	c := s.s3(func(o *s3.Options) { o.HTTPClient = s.client })
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("secure")}); err != nil {
		t.Fatal(err)
	}
	b := newBody(3, 300*kib)
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("secure"), Key: aws.String("k"), Body: newBody(3, b.n), ContentLength: &b.n}); err != nil {
		t.Fatal(err)
	}
	fetch(t, c, "secure", "k", b)
	s.client = trust(certificate(t, dir, "second"))
	poll(t, 15*time.Second, 100*time.Millisecond, "the new certificate to be shown", func() error { return s.probe("/-/ready") })
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if conn, err := (&tls.Dialer{Config: old}).DialContext(ctx, "tcp", s.addr); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is accepted")
	}
}

func TestHelpTeaches(t *testing.T) {
	s := newServer(t, 1)
	out, _, err := s.ostraka("server", "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Examples:", "{1...4}", "--address", "127.0.0.1:9000", "OSTRAKA_ROOT_ACCESS_KEY", "--profile", "--config"} {
		if !strings.Contains(out, want) {
			t.Errorf("server --help does not mention %q", want)
		}
	}
	if strings.Contains(out, "unsafe-test") {
		t.Error("server --help shows the test settings")
	}
	out, _, err = s.ostraka("version")
	if err != nil || !regexp.MustCompile(`^ostraka \S+ go1\.\d+`).MatchString(out) {
		t.Errorf("version prints %q, %v", out, err)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, _, err := s.ostraka("completion", shell); err != nil || len(out) < 100 {
			t.Errorf("completion %s: %d bytes, %v", shell, len(out), err)
		}
	}
}
