package s3api

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/auth"
)

const (
	testAccount = "1111111111111111111111111111111111111111111111111111111111111111"
	testKey     = "AKTEST"
	testSecret  = "secret"
	otherKey    = "AKOTHER"
)

// testKeys knows a root key of each of two accounts.
type testKeys struct{}

func (testKeys) Secret(_ context.Context, id string) (string, auth.Identity, bool) {
	switch id {
	case testKey:
		return testSecret, auth.Identity{AccountID: testAccount, AccountName: "test", Root: true}, true
	case otherKey:
		return testSecret, auth.Identity{AccountID: strings.Repeat("2", 64), AccountName: "other", Root: true}, true
	}
	return "", auth.Identity{}, false
}

// world is an endpoint over a fake store.
type world struct {
	t      *testing.T
	store  *fakeStore
	server *httptest.Server
	client *http.Client
}

type seen struct{ records chan Record }

func (s seen) Observe(_ context.Context, r *Record) {
	select {
	case s.records <- *r:
	default:
	}
}

func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, store: newFake()}
	c := Config{
		Store: w.store, Verifier: auth.NewVerifier(auth.Config{Keys: testKeys{}, AnyRegion: true}), Authorizer: auth.RootOnly{},
		Domains: []string{"s3.example.test"}, AnyRegion: true, HostID: "host",
	}
	for _, f := range change {
		f(&c)
	}
	w.server = httptest.NewServer(New(c))
	w.client = &http.Client{Transport: &http.Transport{DisableCompression: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		w.server.Close()
	})
	return w
}

// answer is a response, read whole.
type answer struct {
	*http.Response
	body string
}

// code is the S3 error code of an answer.
func (a *answer) code() string {
	var e struct{ Code string }
	if xml.Unmarshal([]byte(a.body), &e) != nil {
		return ""
	}
	return e.Code
}

// request makes a request for a path (escaped, with its query).
func (w *world) request(method, target, body string, headers ...string) *http.Request {
	w.t.Helper()
	req, err := http.NewRequest(method, w.server.URL+target, strings.NewReader(body))
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, target, err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func (w *world) send(req *http.Request) *answer {
	w.t.Helper()
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s %s: reading: %v", req.Method, req.URL, err)
	}
	if resp.Header.Get("X-Amz-Request-Id") == "" || resp.Header.Get("X-Amz-Id-2") == "" || resp.Header.Get("Date") == "" || resp.Header.Get("Server") == "" {
		w.t.Errorf("%s %s: x-amz-request-id, x-amz-id-2, Date or Server is missing in %v", req.Method, req.URL, resp.Header)
	}
	return &answer{resp, string(b)}
}

// do sends a signed request.
func (w *world) do(method, target, body string, headers ...string) *answer {
	w.t.Helper()
	return w.doAs(testKey, method, target, body, headers...)
}

func (w *world) doAs(key, method, target, body string, headers ...string) *answer {
	w.t.Helper()
	return w.signAs(key, w.request(method, target, body, headers...), body)
}

// signAs signs a request and sends it.
func (w *world) signAs(key string, req *http.Request, body string) *answer {
	w.t.Helper()
	if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: key, Secret: testSecret}, "us-east-1", "s3", auth.HashPayload([]byte(body)), time.Now()); err != nil {
		w.t.Fatal(err)
	}
	return w.send(req)
}

// want sends a signed request and insists on its status.
func (w *world) want(status int, method, target, body string, headers ...string) *answer {
	w.t.Helper()
	a := w.do(method, target, body, headers...)
	if a.StatusCode != status {
		w.t.Fatalf("%s %s: status %d, want %d: %s", method, target, a.StatusCode, status, a.body)
	}
	return a
}

func contentMD5(body string) string {
	sum := md5.Sum([]byte(body))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// failBody is a body that breaks off.
type failBody struct {
	data []byte
	err  error
}

func (b failBody) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, bytes.NewReader(b.data))
	if err == nil {
		err = b.err
	}
	return n, err
}

func (failBody) Close() error { return nil }
