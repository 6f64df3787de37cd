package auth

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Credentials and time of the examples in the Amazon S3 API Reference.
const (
	exampleKey    = "AKIAIOSFODNN7EXAMPLE"
	exampleSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	accountID     = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

var (
	exampleTime  = time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	exampleCreds = Credentials{AccessKeyID: exampleKey, Secret: exampleSecret}
)

// keys is a KeySource of fixed keys.
type keys map[string]struct {
	secret string
	id     Identity
}

func (k keys) Secret(_ context.Context, id string) (string, Identity, bool) {
	x, ok := k[id]
	return x.secret, x.id, ok
}

func exampleKeys() keys {
	return keys{
		exampleKey: {exampleSecret, Identity{AccountID: accountID, AccountName: "example", Root: true}},
		"ASIATEMP": {"temporary", Identity{AccountID: accountID, SessionToken: "token+/="}},
	}
}

func newVerifier(now time.Time, change ...func(*Config)) *Verifier {
	cfg := Config{Keys: exampleKeys(), Region: "us-east-1", AnyRegion: true, Now: func() time.Time { return now }}
	for _, f := range change {
		f(&cfg)
	}
	return NewVerifier(cfg)
}

// received carries a client's request over the wire form, as a server would see it.
func received(t testing.TB, req *http.Request) *http.Request {
	t.Helper()
	var wire bytes.Buffer
	if err := req.Write(&wire); err != nil {
		t.Fatalf("writing the request: %v", err)
	}
	return parse(t, wire.String())
}

// parse reads a request as net/http's server does.
func parse(t testing.TB, wire string) *http.Request {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(wire)))
	if err != nil {
		t.Fatalf("reading %q: %v", wire, err)
	}
	return r
}

// raw builds a request with exactly this target and these header lines.
func raw(t testing.TB, method, target, body string, headers ...string) *http.Request {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n%s\r\n", method, target, strings.Join(headers, "\r\n"))
	if body != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	return parse(t, b.String()+"\r\n"+body)
}

func mustVerify(t testing.TB, v *Verifier, r *http.Request) *Request {
	t.Helper()
	out, err := v.Verify(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	return out
}

func wantReason(t testing.TB, v *Verifier, r *http.Request, want Reason) {
	t.Helper()
	out, err := v.Verify(r)
	if err == nil {
		t.Fatalf("%s %s is accepted for %v, want %v", r.Method, r.URL, out.Identity, want)
	}
	checkReason(t, err, want)
}

func checkReason(t testing.TB, err error, want Reason) {
	t.Helper()
	if got := ReasonOf(err); got != want {
		t.Fatalf("reason %v, want %v: %v", got, want, err)
	}
	for _, secret := range []string{exampleSecret, "temporary", "token+/="} {
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), secret) {
			t.Fatalf("the error tells a secret: %v", err)
		}
	}
}

// newRequest is a client's request to an url that is not parsed anew.
func newRequest(t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// encodeChunks encodes body as aws-chunked by the description in the package's comment,
// independently of the decoder. sig is nil for unsigned chunks.
func encodeChunks(body []byte, size int, sig *chunkSignature, trailers ...string) []byte {
	var b bytes.Buffer
	header := func(chunk []byte) {
		fmt.Fprintf(&b, "%x", len(chunk))
		if sig != nil {
			sig.previous = signature(sig.key, strings.Join([]string{"AWS4-HMAC-SHA256-PAYLOAD", sig.time, sig.scope, sig.previous,
				HashPayload(nil), HashPayload(chunk)}, "\n"))
			b.WriteString(";chunk-signature=" + sig.previous)
		}
		b.WriteString("\r\n")
	}
	for len(body) > 0 {
		n := min(size, len(body))
		header(body[:n])
		b.Write(body[:n])
		b.WriteString("\r\n")
		body = body[n:]
	}
	header(nil)
	canonical := ""
	for _, t := range trailers {
		b.WriteString(t + "\r\n")
		canonical += t + "\n"
	}
	if trailers != nil && sig != nil {
		b.WriteString("x-amz-trailer-signature:" + signature(sig.key, strings.Join([]string{"AWS4-HMAC-SHA256-TRAILER", sig.time, sig.scope,
			sig.previous, HashPayload([]byte(canonical))}, "\n")) + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

func exampleChain(seed string) *chunkSignature {
	s := scope{"20130524", "us-east-1", "s3"}
	return &chunkSignature{key: signingKey(exampleSecret, s), time: "20130524T000000Z", scope: s.String(), previous: seed}
}
