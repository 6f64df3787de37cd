package s3api

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
)

// oddKeys go round byte for byte, as path segments, in listings and in bulk deletes.
var oddKeys = []string{
	"plain", "a/b", "a//b", "/lead", "//two", "trail/", "a/../b", "..", ".", "a/./b", "sp ace", "pl+us", "per%cent", "%2F", "a%2Fb", "é/ü/日本", "q?mark=1&x", "hash#tag", "semi;colon",
	"quote\"'", "<xml>&amp;", "tab\tnew\nline\r", "\x01\x1f", "back\\slash", "~tilde*(!)", "-/x", "emoji🙂", strings.Repeat("k", 1024), "a=b", "@:$,", "bucket/",
}

// escape writes a key as the strictest client does.
func escape(key string) string { return string(appendURLEncoded(nil, key)) }

func TestOddKeysGoRoundByteForByte(t *testing.T) { onEveryStore(t, testOddKeys) }

func testOddKeys(t *testing.T, w *world) {
	w.want(200, "PUT", "/bucket", "")
	for i, key := range oddKeys {
		w.want(200, "PUT", "/bucket/"+escape(key), fmt.Sprint("body ", i))
	}
	for i, key := range oddKeys {
		if a := w.want(200, "GET", "/bucket/"+escape(key), ""); a.body != fmt.Sprint("body ", i) {
			t.Errorf("%q holds %q", key, a.body)
		}
		a := w.want(200, "GET", "/"+escape(key), "", "Host", "bucket.s3.example.test")
		if a.body != fmt.Sprint("body ", i) {
			t.Errorf("%q by host name holds %q", key, a.body)
		}
	}
	want := slices.Sorted(slices.Values(oddKeys))
	for _, target := range []string{"/bucket?encoding-type=url", "/bucket", "/bucket?list-type=2", "/bucket?versions"} {
		doc, err := parseXML(w.want(200, "GET", target, "").body)
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		var got []string
		for _, e := range doc.kids {
			if e.name != "Contents" && e.name != "Version" {
				continue
			}
			key := e.kids[0].text
			if strings.Contains(target, "encoding") {
				key, _ = url.PathUnescape(key)
			}
			got = append(got, key)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s lists %q, want %q", target, got, want)
		}
	}
	x := &xmlBuf{}
	x.open("Delete")
	for _, k := range oddKeys {
		x.open("Object")
		x.elem("Key", k)
		x.close("Object")
	}
	x.close("Delete")
	body := strings.ReplaceAll(string(x.b), "\r", "&#13;")
	a := w.want(200, "POST", "/bucket?delete", body, "Content-MD5", contentMD5(body))
	if n := strings.Count(a.body, "<Deleted>"); n != len(oddKeys) {
		t.Errorf("%d deleted, want %d: %s", n, len(oddKeys), a.body)
	}
	w.want(204, "DELETE", "/bucket", "")
}

func TestKeysThatCannotBe(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	for target, code := range map[string]string{
		"/bucket/%ff":                              "InvalidURI",
		"/bucket/" + strings.Repeat("k", 1025):     "KeyTooLongError",
		"/bucket/k?versionId=%ff":                  "InvalidURI",
		"/bucket/k?partNumber=0":                   "InvalidArgument",
		"/bucket/k?partNumber=10001":               "InvalidArgument",
		"/bucket/k?versionId=":                     "InvalidArgument",
		"/bucket/k?versionId=xyz":                  "NoSuchVersion",
		"/nobucket/k":                              "NoSuchBucket",
		"/bucket?max-keys=-1":                      "InvalidArgument",
		"/bucket?max-keys=x":                       "InvalidArgument",
		"/bucket?encoding-type=base64":             "InvalidArgument",
		"/bucket?list-type=2&continuation-token=!": "InvalidArgument",
		"/bucket?versions&version-id-marker=x":     "InvalidArgument",
		"/?max-buckets=0":                          "InvalidArgument",
	} {
		a := w.do("GET", target, "")
		if want := code; a.code() != want && !(want == "NoSuchVersion" && a.code() == "InvalidArgument") {
			t.Errorf("GET %s: %s, want %s", target, a.body, want)
		}
	}
}

// TestErrorTable provokes failures of the store, one of each reason and kind.
func TestErrorTable(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	info := &object.Info{ETag: "e", ModTime: time.Unix(1e9, 0), Versioning: object.Enabled, VersionID: "v"}
	for _, c := range []struct {
		err    error
		status int
		code   string
		holds  []string
		header string
	}{
		{&object.Failure{Reason: object.ErrNoSuchBucket, Bucket: "bucket"}, 404, "NoSuchBucket", []string{"<BucketName>bucket</BucketName>"}, ""},
		{&object.Failure{Reason: object.ErrNoSuchKey}, 404, "NoSuchKey", []string{"<Key>key</Key>", "<Resource>/bucket/key</Resource>"}, ""},
		{&object.Failure{Reason: object.ErrNoSuchKey, DeleteMarker: true, VersionID: "m1"}, 404, "NoSuchKey", nil, "X-Amz-Delete-Marker=true"},
		{&object.Failure{Reason: object.ErrNoSuchVersion, VersionID: "v9"}, 404, "NoSuchVersion", []string{"<VersionId>v9</VersionId>"}, ""},
		{&object.Failure{Reason: object.ErrMethodNotAllowed, DeleteMarker: true, VersionID: "m1", ModTime: time.Unix(1e9, 0)}, 405, "MethodNotAllowed", []string{"<ResourceType>DeleteMarker</ResourceType>"}, "Allow=DELETE"},
		{&object.Failure{Reason: object.ErrPrecondition, Info: info}, 412, "PreconditionFailed", []string{"<Condition>If-Match</Condition>"}, ""},
		{&object.Failure{Reason: object.ErrNotModified, Info: info}, 304, "", nil, `Etag="e"`},
		{&object.Failure{Reason: object.ErrInvalidRange, Size: 7}, 416, "InvalidRange", []string{"<ActualObjectSize>7</ActualObjectSize>", "<RangeRequested>bytes=9-10</RangeRequested>"}, "Content-Range=bytes */7"},
		{&object.Failure{Reason: object.ErrInvalidPartNumber, PartNumber: 3}, 416, "InvalidPartNumber", []string{"<ActualPartCount>3</ActualPartCount>"}, ""},
		{&object.Failure{Reason: object.ErrLocked}, 403, "AccessDenied", []string{"object lock"}, ""},
		{&object.Failure{Reason: object.ErrStorageClass}, 400, "InvalidStorageClass", nil, ""},
		{&object.Failure{Reason: object.ErrEntityTooLarge}, 400, "EntityTooLarge", []string{"<MaxSizeAllowed>5368709120</MaxSizeAllowed>"}, ""},
		{&object.Failure{Reason: object.ErrEntityTooSmall, Size: 1}, 400, "EntityTooSmall", []string{"<MinSizeAllowed>5242880</MinSizeAllowed>"}, ""},
		{&object.Failure{Reason: object.ErrInvalidPart, PartNumber: 2, ETag: "x"}, 400, "InvalidPart", []string{"<PartNumber>2</PartNumber>"}, ""},
		{&object.Failure{Reason: object.ErrInvalidPartOrder}, 400, "InvalidPartOrder", nil, ""},
		{&object.Failure{Reason: object.ErrNoSuchUpload, UploadID: "u"}, 404, "NoSuchUpload", []string{"<UploadId>u</UploadId>"}, ""},
		{&object.Failure{Reason: object.ErrCopySelf}, 400, "InvalidRequest", []string{"to itself"}, ""},
		{&object.Failure{Reason: object.ErrBadDigest}, 400, "BadDigest", nil, ""},
		{&object.Failure{Reason: object.ErrIncompleteBody}, 400, "IncompleteBody", nil, ""},
		{&object.Failure{Reason: object.ErrInvalidBucketState}, 409, "InvalidBucketState", nil, ""},
		{&object.Failure{Reason: object.ErrBucketNotEmpty}, 409, "BucketNotEmpty", nil, ""},
		{object.ErrNoSuchKey, 404, "NoSuchKey", nil, ""},
		{fmt.Errorf("wrapped: %w", &object.Failure{Reason: object.ErrNoSuchKey}), 404, "NoSuchKey", nil, ""},
		{errs.E("x", errs.Unavailable, ""), 503, "SlowDown", nil, "Retry-After=1"},
		{errs.E("x", errs.Unknown, ""), 503, "SlowDown", nil, "Retry-After=1"},
		{errs.E("x", errs.Busy, ""), 503, "SlowDown", nil, ""},
		{errs.E("x", errs.Timeout, ""), 503, "SlowDown", nil, ""},
		{errs.E("x", errs.Stale, ""), 503, "SlowDown", nil, ""},
		{errs.E("x", errs.Drive, ""), 503, "SlowDown", nil, ""},
		{errs.E("x", errs.Full, ""), 507, "InsufficientStorage", nil, ""},
		{errs.E("x", errs.Conflict, ""), 409, "OperationAborted", nil, ""},
		{errs.E("x", errs.Corrupt, ""), 500, "InternalError", nil, ""},
		{errs.E("x", errs.Denied, ""), 403, "AccessDenied", nil, ""},
		{errs.E("x", errs.Unsupported, ""), 501, "NotImplemented", nil, ""},
		{errs.E("x", errs.Incomplete, ""), 400, "IncompleteBody", nil, ""},
		{errors.New("secret path /var/lib"), 500, "InternalError", nil, ""},
	} {
		w.store.fail = func(op string) error {
			if op == "Get" {
				return c.err
			}
			return nil
		}
		a := w.do("GET", "/bucket/key", "", "Range", "bytes=9-10", "If-Match", `"x"`)
		if a.StatusCode != c.status || a.code() != c.code {
			t.Errorf("%v: %d %s, want %d %s", c.err, a.StatusCode, a.body, c.status, c.code)
		}
		for _, s := range c.holds {
			if !strings.Contains(a.body, s) {
				t.Errorf("%v: %s has no %s", c.err, a.body, s)
			}
		}
		if strings.Contains(a.body, "/var/lib") {
			t.Errorf("a cause is shown: %s", a.body)
		}
		if n, v, _ := strings.Cut(c.header, "="); n != "" && a.Header.Get(n) != v {
			t.Errorf("%v: %s is %q, want %q", c.err, n, a.Header.Get(n), v)
		}
		h := w.do("HEAD", "/bucket/key", "", "Range", "bytes=9-10", "If-Match", `"x"`)
		if h.StatusCode != c.status || h.body != "" {
			t.Errorf("HEAD, %v: %d %q, want %d", c.err, h.StatusCode, h.body, c.status)
		}
	}
	for k := errs.Internal; k.String() != "internal" || k == errs.Internal; k++ {
		if _, ok := codes[kindCodes[k]]; !ok {
			t.Errorf("kind %v has no code", k)
		}
	}
	for r, name := range reasonCodes {
		if _, ok := codes[name]; !ok {
			t.Errorf("reason %v: code %s is not in the table", r, name)
		}
	}
}

func TestRefusalsOfAuth(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	sign := func(key, secret string, at time.Time, change func(*http.Request)) *answer {
		req := w.request("GET", "/bucket", "")
		if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: key, Secret: secret}, "us-east-1", "s3", "", at); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(req)
		}
		return w.send(req)
	}
	for _, c := range []struct {
		name   string
		a      *answer
		status int
		code   string
	}{
		{"wrong secret", sign(testKey, "wrong", time.Now(), nil), 403, "SignatureDoesNotMatch"},
		{"unknown key", sign("AKNOBODY", testSecret, time.Now(), nil), 403, "InvalidAccessKeyId"},
		{"old date", sign(testKey, testSecret, time.Now().Add(-time.Hour), nil), 403, "RequestTimeTooSkewed"},
		{"header not signed", sign(testKey, testSecret, time.Now(), func(r *http.Request) { r.Header.Set("X-Amz-Request-Payer", "requester") }), 403, "AccessDenied"},
		{"malformed", sign(testKey, testSecret, time.Now(), func(r *http.Request) { r.Header.Set("Authorization", "AWS4-HMAC-SHA256 x") }), 400, "AuthorizationHeaderMalformed"},
		{"anonymous", w.send(w.request("GET", "/bucket", "")), 403, "AccessDenied"},
		{"another account", w.doAs(otherKey, "GET", "/bucket", ""), 403, "AccessDenied"},
		{"another account's name", w.doAs(otherKey, "PUT", "/bucket", ""), 409, "BucketAlreadyExists"},
		{"own name again in us-east-1", w.do("PUT", "/bucket", ""), 200, ""},
		{"own name again with object lock", w.do("PUT", "/bucket", "", "X-Amz-Bucket-Object-Lock-Enabled", "true"), 409, "BucketAlreadyOwnedByYou"},
		{"expected owner", w.do("GET", "/bucket", "", "X-Amz-Expected-Bucket-Owner", "somebody"), 403, "AccessDenied"},
		{"expected owner holds", w.do("GET", "/bucket", "", "X-Amz-Expected-Bucket-Owner", testAccount), 200, ""},
		{"body differs", func() *answer {
			req := w.request("PUT", "/bucket/k", "body")
			auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", auth.HashPayload([]byte("else")), time.Now())
			return w.send(req)
		}(), 400, "XAmzContentSHA256Mismatch"},
	} {
		if c.a.StatusCode != c.status || c.a.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, c.a.StatusCode, c.a.body, c.status, c.code)
		}
	}
	if a := w.do("GET", "/bucket/k", ""); a.StatusCode != 404 {
		t.Errorf("a refused body was stored: %d %s", a.StatusCode, a.body)
	}
	for _, secret := range []string{testSecret} {
		if a := sign(testKey, "wrong", time.Now(), nil); strings.Contains(strings.Replace(a.body, "secret access key", "", 1), ">"+secret+"<") {
			t.Errorf("an error tells a secret: %s", a.body)
		}
	}
}

func TestPutRefusals(t *testing.T) { onEveryStore(t, testPutRefusals) }

func testPutRefusals(t *testing.T, w *world) {
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket/there", "x")
	big := strings.Repeat("m", 2100)
	for _, c := range []struct {
		name, code string
		status     int
		headers    []string
	}{
		{"bad MD5", "InvalidDigest", 400, []string{"Content-MD5", "!"}},
		{"short MD5", "InvalidDigest", 400, []string{"Content-MD5", "AAAA"}},
		{"wrong MD5", "BadDigest", 400, []string{"Content-MD5", contentMD5("else")}},
		{"wrong checksum", "BadDigest", 400, []string{"X-Amz-Checksum-Crc32", "AAAAAA=="}},
		{"malformed checksum", "InvalidRequest", 400, []string{"X-Amz-Checksum-Crc32", "AAA="}},
		{"two checksums", "InvalidRequest", 400, []string{"X-Amz-Checksum-Crc32", "AAAAAA==", "X-Amz-Checksum-Crc32c", "AAAAAA=="}},
		{"an algorithm without its checksum", "InvalidRequest", 400, []string{"X-Amz-Sdk-Checksum-Algorithm", "CRC32"}},
		{"an algorithm of another checksum", "InvalidRequest", 400, []string{"X-Amz-Sdk-Checksum-Algorithm", "SHA1", "X-Amz-Checksum-Crc32", "AAAAAA=="}},
		{"unknown algorithm", "InvalidRequest", 400, []string{"X-Amz-Checksum-Algorithm", "CRC16"}},
		{"public ACL", "NotImplemented", 501, []string{"X-Amz-Acl", "public-read"}},
		{"grant", "NotImplemented", 501, []string{"X-Amz-Grant-Read", "id=1"}},
		{"encryption", "NotImplemented", 501, []string{"X-Amz-Server-Side-Encryption", "AES256"}},
		{"customer key", "NotImplemented", 501, []string{"X-Amz-Server-Side-Encryption-Customer-Algorithm", "AES256"}},
		{"lock", "NotImplemented", 501, []string{"X-Amz-Object-Lock-Mode", "COMPLIANCE"}},
		{"a system tag", "InvalidTag", 400, []string{"X-Amz-Tagging", "aws:a=b"}},
		{"a tagging directive", "NotImplemented", 501, []string{"X-Amz-Tagging-Directive", "REPLACE"}},
		{"redirect", "NotImplemented", 501, []string{"X-Amz-Website-Redirect-Location", "/x"}},
		{"glacier", "InvalidStorageClass", 400, []string{"X-Amz-Storage-Class", "GLACIER"}},
		{"payer", "InvalidArgument", 400, []string{"X-Amz-Request-Payer", "me"}},
		{"large metadata", "MetadataTooLarge", 400, []string{"X-Amz-Meta-A", big}},
		{"large headers", "RequestHeaderSectionTooLarge", 400, []string{"X-Other", strings.Repeat("h", 9000)}},
		{"there already", "PreconditionFailed", 412, []string{"If-None-Match", "*"}},
		{"another one", "PreconditionFailed", 412, []string{"If-Match", `"x"`}},
		{"date condition", "NotImplemented", 501, []string{"If-Unmodified-Since", "Wed, 21 Oct 2015 07:28:00 GMT"}},
	} {
		a := w.do("PUT", "/bucket/there", "body", c.headers...)
		if a.StatusCode != c.status || a.code() != c.code {
			t.Errorf("%s: %d %s, want %d %s", c.name, a.StatusCode, a.body, c.status, c.code)
		}
	}
	if a := w.want(200, "GET", "/bucket/there", ""); a.body != "x" {
		t.Errorf("a refused PUT changed the object: %q", a.body)
	}
	if a := w.do("PUT", "/bucket/absent", "body", "If-Match", `"x"`); a.StatusCode != 404 || a.code() != "NoSuchKey" {
		t.Errorf("If-Match on nothing: %d %s", a.StatusCode, a.body)
	}
	if a := w.do("PUT", "/bucket/k?versionId=null", "body"); a.StatusCode != 400 || a.code() != "InvalidArgument" {
		t.Errorf("PUT of a version: %d %s", a.StatusCode, a.body)
	}
	req := w.request("PUT", "/bucket/k", "")
	req.Body, req.ContentLength = io.NopCloser(strings.NewReader("of unknown length")), -1
	auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", auth.UnsignedPayload, time.Now())
	if a := w.send(req); a.StatusCode != 411 || a.code() != "MissingContentLength" {
		t.Errorf("no length: %d %s", a.StatusCode, a.body)
	}
}

// TestHeadEqualsGet compares every header of the two.
func TestHeadEqualsGet(t *testing.T) { onEveryStore(t, testHeadEqualsGet) }

func testHeadEqualsGet(t *testing.T, w *world) {
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket?versioning", `<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>`)
	w.want(200, "PUT", "/bucket/k", "0123456789", "Content-Type", "text/x", "Cache-Control", "max-age=1", "Content-Disposition", "attachment", "Content-Language", "de",
		"Expires", "Wed, 21 Oct 2015 07:28:00 GMT", "Content-Encoding", "gzip", "X-Amz-Meta-One", "1", "X-Amz-Meta-Two", "zwei", "X-Amz-Storage-Class", "REDUCED_REDUNDANCY")
	w.want(200, "PUT", "/bucket/empty", "")
	for _, target := range []string{"/bucket/k", "/bucket/empty", "/bucket/k?partNumber=1", "/bucket/k?response-content-type=a/b&response-expires=never", "/bucket/absent"} {
		for _, headers := range [][]string{nil, {"Range", "bytes=2-4"}, {"Range", "bytes=-3"}, {"Range", "bytes=1-2,4-5"}, {"X-Amz-Checksum-Mode", "ENABLED"}, {"If-None-Match", "*"}, {"If-Match", `"no"`}, {"Range", "bytes=50-"}} {
			if strings.Contains(target, "partNumber") && len(headers) > 0 && headers[0] == "Range" {
				continue
			}
			get, head := w.do("GET", target, "", headers...), w.do("HEAD", target, "", headers...)
			if get.StatusCode != head.StatusCode || head.body != "" {
				t.Errorf("%s %v: GET %d, HEAD %d %q", target, headers, get.StatusCode, head.StatusCode, head.body)
			}
			for _, n := range []string{"X-Amz-Request-Id", "Date"} {
				get.Header.Del(n)
				head.Header.Del(n)
			}
			if get.StatusCode >= 400 { // HEAD has no body to measure
				get.Header.Del("Content-Length")
				head.Header.Del("Content-Length")
			}
			if fmt.Sprint(get.Header) != fmt.Sprint(head.Header) {
				t.Errorf("%s %v:\nGET  %v\nHEAD %v", target, headers, get.Header, head.Header)
			}
		}
	}
	a := w.want(206, "GET", "/bucket/k", "", "Range", "bytes=2-4")
	if a.body != "234" || a.Header.Get("Content-Range") != "bytes 2-4/10" {
		t.Errorf("range: %q %q", a.body, a.Header.Get("Content-Range"))
	}
	a = w.want(200, "GET", "/bucket/k?response-content-type=a/b", "")
	if a.Header.Get("Content-Type") != "a/b" || a.Header.Get("X-Amz-Meta-One") != "1" || a.Header.Get("X-Amz-Storage-Class") != "REDUCED_REDUNDANCY" {
		t.Errorf("headers: %v", a.Header)
	}
	if a = w.want(200, "GET", "/bucket/empty", ""); a.Header.Get("Content-Type") != "binary/octet-stream" {
		t.Errorf("default type: %v", a.Header)
	}
	if a = w.do("GET", "/bucket/k?partNumber=1", "", "Range", "bytes=0-1"); a.code() != "InvalidRequest" {
		t.Errorf("part and range: %s", a.body)
	}
}

func TestMetadataOutsideASCII(t *testing.T) {
	for in, want := range map[string]string{"plain": "plain", "=?UTF-8?B?w6k=?=": "=?UTF-8?B?w6k=?=", "é": "=?UTF-8?b?w6k=?=", "caf\xe9": "caf\xe9"} {
		if got := metaValue(in); got != want {
			t.Errorf("metaValue(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestGolden compares documents with files. What varies is replaced.
func TestGolden(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.OwnerName = func(string) string { return "test" } })
	w.store.clock = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC) }
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket?versioning", `<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>`)
	for _, k := range []string{"a", "dir/b", "dir/c", "d+ <&>"} {
		w.want(200, "PUT", "/bucket/"+escape(k), "body of "+k, "X-Amz-Meta-Mark", "m")
	}
	w.want(204, "DELETE", "/bucket/a", "")
	up := w.want(200, "POST", "/bucket/multi?uploads", "", "X-Amz-Checksum-Algorithm", "SHA256")
	id := regexp.MustCompile(`<UploadId>(.*)</UploadId>`).FindStringSubmatch(up.body)[1]
	w.want(200, "PUT", "/bucket/multi?partNumber=1&uploadId="+id, strings.Repeat("p", object.MinPartSize))
	w.want(200, "PUT", "/bucket/multi?partNumber=7&uploadId="+id, "tail")
	delete1 := `<Delete><Object><Key>none</Key></Object><Object><Key>dir/c</Key><VersionId>00000000000000000000000000000003</VersionId></Object></Delete>`
	complete := func() string {
		parts := w.want(200, "GET", "/bucket/multi?uploadId="+id, "")
		x := "<CompleteMultipartUpload>"
		for _, m := range regexp.MustCompile(`<PartNumber>(\d+)</PartNumber>.*?<ETag>(.*?)</ETag>`).FindAllStringSubmatch(parts.body, -1) {
			x += "<Part><PartNumber>" + m[1] + "</PartNumber><ETag>" + m[2] + "</ETag></Part>"
		}
		return x + "</CompleteMultipartUpload>"
	}
	for _, c := range []struct {
		name, method, target, body string
		headers                    []string
	}{
		{"list-buckets", "GET", "/", "", nil},
		{"location", "GET", "/bucket?location", "", nil},
		{"get-versioning", "GET", "/bucket?versioning", "", nil},
		{"list-v1", "GET", "/bucket?delimiter=/&encoding-type=url&prefix=d", "", nil},
		{"list-v2", "GET", "/bucket?list-type=2&max-keys=1&fetch-owner=true&start-after=A", "", nil},
		{"list-v2-metadata", "GET", "/bucket?list-type=2&metadata=true&prefix=dir/b", "", nil},
		{"list-versions", "GET", "/bucket?versions", "", nil},
		{"list-uploads", "GET", "/bucket?uploads", "", nil},
		{"create-upload", "POST", "/bucket/other?uploads", "", nil},
		{"list-parts", "GET", "/bucket/multi?uploadId=" + id, "", nil},
		{"complete", "POST", "/bucket/multi?uploadId=" + id, complete(), nil},
		{"attributes", "GET", "/bucket/multi?attributes", "", []string{"X-Amz-Object-Attributes", "ETag,Checksum,ObjectParts,StorageClass,ObjectSize"}},
		{"copy", "PUT", "/bucket/copy", "", []string{"X-Amz-Copy-Source", "bucket/dir%2Fb"}},
		{"delete-objects", "POST", "/bucket?delete", delete1, []string{"Content-MD5", contentMD5(delete1)}},
		{"no-such-key", "GET", "/bucket/%3Cnone%3E", "", nil},
	} {
		a := w.do(c.method, c.target, c.body, c.headers...)
		got := a.body
		for _, r := range [][2]string{{strings.TrimPrefix(w.server.URL, "http://"), "HOST"}, {a.Header.Get("X-Amz-Request-Id"), "REQUEST"}} {
			got = strings.ReplaceAll(got, r[0], r[1])
		}
		got = strings.ReplaceAll(got, "><", ">\n<") + "\n"
		file := filepath.Join("testdata", c.name+".xml")
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, want)
		}
	}
}

func TestVirtualHosts(t *testing.T) {
	h := New(Config{Domains: []string{"S3.example.test", "example.test", "a.b."}})
	for host, want := range map[string]string{
		"bucket.localhost": "bucket", "bucket.localhost:9000": "bucket", "localhost:9000": "", "127.0.0.1:9000": "", "[::1]:80": "", "s3.example.test": "", "my.bucket.S3.Example.Test:443": "my.bucket",
		"bucket.example.test": "bucket", "unknown.test": "", "x.a.b": "x", "": "", "localhost": "", "bucket.localhost.": "bucket",
	} {
		if got := h.hostBucket(host); got != want {
			t.Errorf("host %q is of bucket %q, want %q", host, got, want)
		}
	}
}

// Behind a proxy that changes the Host, the name that was signed says which bucket is meant.
func TestTheSignedHostNamesTheBucket(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Verifier = auth.NewVerifier(auth.Config{Keys: testKeys{}, AnyRegion: true, PublicHosts: []string{"bucket.s3.example.test"}})
	})
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket/dir/key", "body")
	req := w.request("GET", "/dir/key", "", "Host", "bucket.s3.example.test")
	auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", "", time.Now())
	req.Host = "10.0.0.1:9000" // what the proxy sends
	if a := w.send(req); a.StatusCode != 200 || a.body != "body" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

func TestNextAnswersBelowTheDash(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Request-Id", "n")
			w.Header().Set("X-Amz-Id-2", "n")
			w.Header().Set("Server", "n")
			io.WriteString(w, "next "+r.URL.Path)
		})
	})
	for _, p := range []string{"/-/", "/-/health", "/-"} {
		if a := w.send(w.request("GET", p, "")); a.body != "next "+p {
			t.Errorf("%s: %q", p, a.body)
		}
	}
}

func TestPreflightIsForbiddenWithoutRules(t *testing.T) {
	w := newWorld(t)
	a := w.send(w.request("OPTIONS", "/bucket/key", "", "Origin", "http://x", "Access-Control-Request-Method", "PUT"))
	if a.StatusCode != 403 || a.code() != "AccessForbidden" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if a = w.send(w.request("OPTIONS", "/bucket", "")); a.StatusCode != 400 || a.code() != "BadRequest" {
		t.Errorf("without Origin: %d %s", a.StatusCode, a.body)
	}
}

// A client that expects 100-continue keeps its body when the request is refused by its head.
func TestContinueIsNotSaidInVain(t *testing.T) { onEveryStore(t, testContinue) }

func testContinue(t *testing.T, w *world) {
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket/there", "x")
	first := func(target string, headers ...string) string {
		t.Helper()
		req := w.request("PUT", target, "0123456789", headers...)
		if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", auth.UnsignedPayload, time.Now()); err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", req.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n", target, req.Host)
		req.Header.Write(conn)
		io.WriteString(conn, "\r\n")
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	if got := first("/bucket/new"); got != "HTTP/1.1 100 Continue" {
		t.Errorf("a good PUT is told %q", got)
	}
	for target, want := range map[string]string{"/nobucket/k": "404", "/bucket/k?acl": "501"} {
		if got := first(target); !strings.Contains(got, want) {
			t.Errorf("PUT %s is told %q, want %s", target, got, want)
		}
	}
	if got := first("/bucket/there", "If-None-Match", "*"); !strings.Contains(got, "412") {
		t.Errorf("a failed condition is told %q", got)
	}
}

// blocking is a store whose Get waits.
type blocking struct {
	*fakeStore
	entered, leave chan struct{}
}

func TestTooManyRequestsAreToldToSlowDown(t *testing.T) {
	b := blocking{newFake(), make(chan struct{}), make(chan struct{})}
	w := newWorld(t, func(c *Config) {
		c.MaxRequests = 1
		c.Store = waitingStore{b}
	})
	w.want(200, "PUT", "/bucket", "")
	done := make(chan int)
	go func() { done <- w.do("GET", "/bucket/k", "").StatusCode }()
	<-b.entered
	if a := w.do("GET", "/bucket/k", ""); a.StatusCode != 503 || a.code() != "SlowDown" || a.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	close(b.leave)
	if got := <-done; got != 404 {
		t.Errorf("the first request got %d", got)
	}
}
