package s3api

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/ostraka/ostraka/auth"
)

// Whoever holds a URL presigned by version 2 may add parameters that it does not cover. None of
// them may choose another operation; these choose nothing that its sender could not have anyway.
func TestVersion2CoversWhatChoosesAnOperation(t *testing.T) {
	uncovered := []string{
		"list-type", // the same listing in another form
		"x-id",      // ListDirectoryBuckets, the list of buckets in another form
		"id",        // beside analytics, inventory, …, which are covered
	}
	for _, op := range operations {
		for _, q := range op.query {
			name, _, _ := strings.Cut(q, "=")
			if !auth.SignedByV2(name) && !slices.Contains(uncovered, name) {
				t.Errorf("%s is chosen by %q, which Signature Version 2 does not cover", op.name, name)
			}
		}
		for _, p := range op.params {
			if (p == "versionId" || p == "partNumber" || responseOverride(p) != "") && !auth.SignedByV2(p) {
				t.Errorf("%s takes %q, which Signature Version 2 does not cover", op.name, p)
			}
		}
	}
}

func TestSignatureVersion2(t *testing.T) {
	for _, on := range []bool{true, false} {
		w := newWorld(t, func(c *Config) {
			c.Verifier = auth.NewVerifier(auth.Config{Keys: testKeys{}, AnyRegion: true, V2: on, HostBucket: HostBucket(c.Domains)})
		})
		w.want(200, "PUT", "/bucket", "")
		w.want(200, "PUT", "/other", "")
		w.want(200, "PUT", "/other/secret", "secret")
		want := func(req *http.Request, status int, code string) *answer {
			t.Helper()
			if !on {
				status, code = 400, "InvalidRequest"
			}
			a := w.send(req)
			if a.StatusCode != status || a.code() != code {
				t.Errorf("on %v, %s %s: %d %s, want %d %s", on, req.Method, req.URL, a.StatusCode, a.body, status, code)
			}
			return a
		}
		sign := func(req *http.Request, virtual bool) *http.Request {
			if virtual {
				req.Host = "bucket.s3.example.test"
			}
			return signer.SignV2(*req, testKey, testSecret, virtual)
		}
		presign := func(method, target, body string, headers ...string) *http.Request {
			return signer.PreSignV2(*w.request(method, target, body, headers...), testKey, testSecret, 60, false)
		}
		want(sign(w.request("PUT", "/bucket/dir/a%20b", "body", "Content-Type", "text/plain"), false), 200, "")
		if a := want(sign(w.request("GET", "/dir/a%20b", ""), true), 200, ""); on && a.body != "body" {
			t.Errorf("%q", a.body)
		}
		want(sign(w.request("GET", "/bucket/?location&x-id=GetBucketLocation", ""), false), 200, "")
		a := want(presign("GET", "/bucket/dir/a%20b?response-content-type=x%2Fy", ""), 200, "")
		if on && (a.body != "body" || a.Header.Get("Content-Type") != "x/y") {
			t.Errorf("%q %v", a.body, a.Header)
		}
		want(presign("PUT", "/bucket/put", "body"), 200, "")

		// What is added to a presigned URL does nothing, whether as a header or as its stand-in.
		for _, extra := range []string{"&x-amz-copy-source=/other/secret", "&X-Amz-Copy-Source=%2Fother%2Fsecret", "&acl", "&tagging", "&uploadId=1&partNumber=1"} {
			req := presign("PUT", "/bucket/stolen", "")
			req.URL.RawQuery += extra
			want(req, 403, "SignatureDoesNotMatch")
		}
		req := presign("PUT", "/bucket/stolen", "")
		req.Header.Set("X-Amz-Copy-Source", "/other/secret")
		want(req, 403, "SignatureDoesNotMatch")
		if a := w.do("GET", "/bucket/stolen", ""); a.StatusCode != 404 {
			t.Errorf("on %v: %d %s", on, a.StatusCode, a.body)
		}
		// A signature for one bucket is none for another that the host names.
		req = sign(w.request("GET", "/bucket/dir/a%20b", ""), false)
		req.Host = "other.s3.example.test"
		want(req, 403, "SignatureDoesNotMatch")
		// The parameters of version 2 mean nothing beside another signature.
		if a := w.do("GET", "/bucket/put?Expires=1", ""); a.code() != "NotImplemented" {
			t.Errorf("on %v: %d %s", on, a.StatusCode, a.body)
		}
	}
}
