package s3api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
)

// waitingStore lets one Get through at a time.
type waitingStore struct{ blocking }

func (s waitingStore) Get(ctx context.Context, bucket, key string, o object.GetOptions) (Content, error) {
	s.entered <- struct{}{}
	<-s.leave
	return s.fakeStore.Get(ctx, bucket, key, o)
}

// brokenStore answers every Get with a body that breaks off, or panics.
type brokenStore struct {
	*fakeStore
	body  Body
	panic bool
}

func (s brokenStore) Get(context.Context, string, string, object.GetOptions) (Content, error) {
	if s.panic {
		panic("a bug")
	}
	return Content{Info: object.Info{Size: 1 << 20, ETag: "e"}, Length: 1 << 20, Body: s.body}, nil
}

func TestABrokenBodyCutsTheConnection(t *testing.T) {
	records := seen{make(chan Record, 10)}
	s := brokenStore{fakeStore: newFake(), body: failBody{make([]byte, 70_000), errors.New("shards lost")}}
	w := newWorld(t, func(c *Config) { c.Store, c.Observer = s, records })
	w.want(200, "PUT", "/bucket", "")
	<-records.records
	req := w.request("GET", "/bucket/k", "")
	auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", "", time.Now())
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil || resp.StatusCode != 200 {
		t.Errorf("%d, %d bytes and no error", resp.StatusCode, n)
	}
	if r := <-records.records; r.Err == nil || r.BytesOut != 70_000 || r.Operation != "GetObject" {
		t.Errorf("record %+v", r)
	}
}

func TestAFailureBeforeTheFirstByteIsAnAnswer(t *testing.T) {
	s := brokenStore{fakeStore: newFake(), body: failBody{nil, errs.E("x", errs.Unavailable, "")}}
	w := newWorld(t, func(c *Config) { c.Store = s })
	w.want(200, "PUT", "/bucket", "")
	if a := w.do("GET", "/bucket/k", ""); a.StatusCode != 503 || a.code() != "SlowDown" || a.Header.Get("Etag") != "" {
		t.Errorf("%d %s %v", a.StatusCode, a.body, a.Header)
	}
}

func TestAShortBodyIsNotTakenForTheWhole(t *testing.T) {
	s := brokenStore{fakeStore: newFake(), body: failBody{[]byte("short"), nil}}
	w := newWorld(t, func(c *Config) { c.Store = s })
	w.want(200, "PUT", "/bucket", "")
	req := w.request("GET", "/bucket/k", "")
	auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", "", time.Now())
	resp, err := w.client.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("the client took a short body for the whole")
	}
}

func TestAPanicIsAnInternalError(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Store = brokenStore{fakeStore: newFake(), panic: true} })
	w.want(200, "PUT", "/bucket", "")
	if a := w.do("GET", "/bucket/k", ""); a.StatusCode != 500 || a.code() != "InternalError" || strings.Contains(a.body, "a bug") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	w.want(200, "GET", "/bucket", "")
}

func TestRecordsTellWhatHappenedAndNoSecret(t *testing.T) {
	records := seen{make(chan Record, 10)}
	w := newWorld(t, func(c *Config) { c.Observer = records })
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket/key", "four", "User-Agent", "tester")
	w.do("GET", "/bucket/absent?versionId=null", "")
	w.send(w.request("PUT", "/bucket/key", "anonymous"))
	<-records.records
	put, get, anon := <-records.records, <-records.records, <-records.records
	if put.Operation != "PutObject" || put.Status != 200 || put.BytesIn != 4 || put.Bucket != "bucket" || put.Key != "key" || put.Account != testAccount ||
		put.AccessKey != testKey || put.UserAgent != "tester" || put.Err != nil || put.Code != "" || put.RequestID == "" || put.Duration < put.FirstByte {
		t.Errorf("put: %+v", put)
	}
	if get.Operation != "GetObject" || get.Status != 404 || get.Code != "NoSuchVersion" || get.VersionID != "null" || get.BytesOut == 0 || get.Err == nil {
		t.Errorf("get: %+v", get)
	}
	if anon.Status != 403 || anon.Account != "" || anon.BytesIn != 0 {
		t.Errorf("anonymous: %+v", anon)
	}
}

func TestAbsentKeysAreHiddenFromWhoMayNotList(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Authorizer = readOnly{} })
	if _, err := w.store.CreateBucket(t.Context(), "bucket", object.CreateBucketOptions{Owner: "somebody"}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"GET", "HEAD"} {
		if a := w.do(m, "/bucket/absent", ""); a.StatusCode != 403 {
			t.Errorf("%s: %d %s", m, a.StatusCode, a.body)
		}
	}
	body := `<Delete><Object><Key>a</Key></Object></Delete>`
	a := w.do("POST", "/bucket?delete", body, "Content-MD5", contentMD5(body))
	if a.StatusCode != 200 || !strings.Contains(a.body, "<Code>AccessDenied</Code>") || strings.Contains(a.body, "<Deleted>") {
		t.Errorf("delete: %d %s", a.StatusCode, a.body)
	}
}

// readOnly allows reads of objects and nothing else.
type readOnly struct{}

func (readOnly) Authorize(_ context.Context, _ auth.Identity, a auth.Action, _ auth.Resource, _ auth.Conditions) error {
	if a == "s3:GetObject" {
		return nil
	}
	return errs.E("test", errs.Denied, "no")
}

func TestDocumentsBeyondTheirBoundAreRefusedUnread(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	big := strings.Repeat(" ", maxConfigBody+1)
	if a := w.do("PUT", "/bucket?versioning", big); a.StatusCode != 400 || a.code() != "MaxMessageLengthExceeded" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	keys := "<Delete>" + strings.Repeat("<Object><Key>k</Key></Object>", 1001) + "</Delete>"
	for name, body := range map[string]string{
		"too many": keys, "not XML": "nonsense", "none": "<Delete></Delete>", "unknown": "<Delete><Object><Key>k</Key><Force>1</Force></Object></Delete>", "no key": "<Delete><Object/></Delete>",
		"two": "<Delete><Object><Key>k</Key><Key>l</Key></Object></Delete>",
	} {
		if a := w.do("POST", "/bucket?delete", body, "Content-MD5", contentMD5(body)); a.StatusCode != 400 || a.code() != "MalformedXML" {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
		}
	}
	one := "<Delete><Object><Key>k</Key></Object></Delete>"
	if a := w.do("POST", "/bucket?delete", one); a.code() != "InvalidRequest" {
		t.Errorf("no digest: %d %s", a.StatusCode, a.body)
	}
	if a := w.do("POST", "/bucket?delete", one, "Content-MD5", contentMD5("else")); a.code() != "BadDigest" {
		t.Errorf("wrong digest: %d %s", a.StatusCode, a.body)
	}
	w.want(200, "POST", "/bucket/k?uploads", "")
	part := "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>"
	for body, code := range map[string]string{part: "InvalidPart", "": "InvalidRequest", "<CompleteMultipartUpload/>": "MalformedXML", strings.ReplaceAll(part, ">1<", ">10001<"): "InvalidArgument"} {
		target := "/bucket/k?uploadId=00000000000000000000000000000001"
		if a := w.do("POST", target, body, "Content-MD5", contentMD5(body)); a.code() != code {
			t.Errorf("complete by %q: %s, want %s", body, a.body, code)
		}
		if a := w.do("POST", target, body, "Content-MD5", contentMD5("else")); a.code() != "BadDigest" && body != "" {
			t.Errorf("complete by %q with a wrong digest: %s", body, a.body)
		}
	}
	for body, code := range map[string]string{
		`<VersioningConfiguration/>`: "IllegalVersioningConfigurationException",
		`<VersioningConfiguration><Status>On</Status></VersioningConfiguration>`:                                    "MalformedXML",
		`<VersioningConfiguration><Status>Enabled</Status><MfaDelete>Enabled</MfaDelete></VersioningConfiguration>`: "NotImplemented",
		`<VersioningConfiguration><Status>Enabled</Status><Future>1</Future></VersioningConfiguration>`:             "NotImplemented",
	} {
		if a := w.do("PUT", "/bucket?versioning", body); a.code() != code {
			t.Errorf("%s: %s, want %s", body, a.body, code)
		}
	}
}

func TestCreateBucketRefusals(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.AnyRegion = false })
	location := func(s string) string {
		return `<CreateBucketConfiguration><LocationConstraint>` + s + `</LocationConstraint></CreateBucketConfiguration>`
	}
	for _, c := range []struct {
		name, body, code string
		status           int
		headers          []string
	}{
		{"Bad_Name", "", "InvalidBucketName", 400, nil},
		{"xy", "", "InvalidBucketName", 400, nil},
		{"192.168.1.1", "", "InvalidBucketName", 400, nil},
		{"other-region", location("eu-west-1"), "IllegalLocationConstraintException", 400, nil},
		{"no-region", location("a b"), "InvalidLocationConstraint", 400, nil},
		{"bad-document", "<x/>", "MalformedXML", 400, nil},
		{"tags", `<CreateBucketConfiguration><Tags/></CreateBucketConfiguration>`, "NotImplemented", 501, nil},
		{"public", "", "NotImplemented", 501, []string{"X-Amz-Acl", "public-read"}},
		{"writer", "", "NotImplemented", 501, []string{"X-Amz-Object-Ownership", "ObjectWriter"}},
	} {
		if a := w.do("PUT", "/"+c.name, c.body, c.headers...); a.StatusCode != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, a.StatusCode, a.body, c.status, c.code)
		}
	}
	w.want(200, "PUT", "/good-name", location("us-east-1"))
	w.want(200, "PUT", "/locked", "", "X-Amz-Bucket-Object-Lock-Enabled", "true")
	if a := w.do("PUT", "/locked?versioning", `<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>`); a.StatusCode != http.StatusConflict {
		t.Errorf("suspending a locked bucket: %d %s", a.StatusCode, a.body)
	}
}
