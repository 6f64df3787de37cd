package s3api

import (
	"bufio"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/auth"
)

// SDKs give programs the names of user metadata in the case of the wire, and AWS stores and sends
// them in lower case, so the case is part of the interface.
func TestMetadataNamesAreInLowerCaseOnTheWire(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket/k", "body", "X-Amz-Meta-Some-Name", "Value")
	for _, method := range []string{"GET", "HEAD"} {
		req := w.request(method, "/bucket/k", "")
		if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", auth.HashPayload(nil), time.Now()); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", w.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := req.Write(c); err != nil {
			t.Fatal(err)
		}
		found := false
		for r := bufio.NewReader(c); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(line) == "" {
				break
			}
			found = found || strings.HasPrefix(line, "x-amz-meta-some-name: Value")
		}
		if !found {
			t.Errorf("%s: there is no line x-amz-meta-some-name: Value", method)
		}
	}
}

// What a presigned URL carries for a header must be able to stand in one.
func TestPresignedHeadersAreValidHeaders(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	for query, status := range map[string]int{
		"x-amz-meta-a=plain%09tab":        200,
		"x-amz-meta-a=%C3%A9":             200,
		"x-amz-meta-a=%00":                400,
		"x-amz-meta-a=x%0d%0aEvil:%20yes": 400,
		"x-amz-meta-a=%7f":                400,
		"x-amz-meta-a%20b=x":              400,
		"x-amz-meta-a%0d%0a=x":            400,
	} {
		u, err := auth.Presign(w.request("PUT", "/bucket/k?"+query, ""), auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", time.Minute, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		a := w.send(w.request("PUT", strings.TrimPrefix(u, w.server.URL), "body"))
		if a.StatusCode != status || status == 400 && a.code() != "InvalidArgument" {
			t.Errorf("%s: %d %s, want %d", query, a.StatusCode, a.code(), status)
		}
	}
}

func TestResponseOverridesAreValidHeaders(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket/k", "body")
	for _, v := range []string{"%00", "a%0d%0ab", "%1b", "%7f"} {
		if a := w.want(400, "GET", "/bucket/k?response-content-type="+v, ""); a.code() != "InvalidArgument" {
			t.Errorf("%s: %s", v, a.code())
		}
	}
}

// The details of errors, as the store behind them gives them.
func TestErrorsOfTheStore(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Store = realStore(t) })
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket?versioning", "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")
	w.want(200, "PUT", "/bucket/k", "body")
	if a := w.want(416, "GET", "/bucket/k?partNumber=7", ""); !strings.Contains(a.body, "<PartNumberRequested>7</PartNumberRequested><ActualPartCount>1</ActualPartCount>") {
		t.Errorf("part 7 of 1: %s", a.body)
	}
	marker := w.want(204, "DELETE", "/bucket/k", "").Header.Get("X-Amz-Version-Id")
	a := w.want(400, "PUT", "/bucket/copy", "", "X-Amz-Copy-Source", "/bucket/k?versionId="+marker)
	if a.code() != "InvalidRequest" || !strings.Contains(a.body, "delete marker") {
		t.Errorf("a copy of a delete marker by its id: %s", a.body)
	}
	a = w.want(404, "PUT", "/bucket/copy", "", "X-Amz-Copy-Source", "/bucket/k")
	if a.code() != "NoSuchKey" {
		t.Errorf("a copy of what is deleted: %s", a.body)
	}
}

// A range is a piece of the version that If-Range names; of another one the whole is sent (RFC 9110,
// 13.1.5), or a resumed download would be a mixture.
func TestIfRange(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		w.want(200, "PUT", "/bucket", "")
		etag := w.want(200, "PUT", "/bucket/k", "0123456789").Header.Get("Etag")
		modified := w.want(200, "HEAD", "/bucket/k", "").Header.Get("Last-Modified")
		for ifRange, body := range map[string]string{
			etag: "23", modified: "23", strings.Trim(etag, `"`): "23",
			`"another"`: "0123456789", "W/" + etag: "0123456789", "Sat, 01 Jan 2000 00:00:00 GMT": "0123456789",
		} {
			status := 206
			if len(body) == 10 {
				status = 200
			}
			a := w.want(status, "GET", "/bucket/k", "", "Range", "bytes=2-3", "If-Range", ifRange)
			if a.body != body || (status == 206) != (a.Header.Get("Content-Range") != "") {
				t.Errorf("If-Range %s: %q, Content-Range %q", ifRange, a.body, a.Header.Get("Content-Range"))
			}
			w.want(status, "HEAD", "/bucket/k", "", "Range", "bytes=2-3", "If-Range", ifRange)
		}
		w.want(200, "GET", "/bucket/k", "", "Range", "bytes=20-30", "If-Range", `"another"`)
		w.want(200, "GET", "/bucket/k", "", "If-Range", `"another"`)
	})
}
