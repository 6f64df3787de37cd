package auth

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // Signature Version 2
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func hmacSHA1(secret, text string) string {
	m := hmac.New(sha1.New, []byte(secret))
	m.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}

func FuzzParseAuthorization(f *testing.F) {
	f.Add(strings.TrimPrefix(authorization("host;x-amz-date", emptySHA256), "Authorization: "))
	f.Add("AWS4-HMAC-SHA256 Credential=a/b/c/20130524/r/s3/aws4_request, SignedHeaders=host, Signature=" + emptySHA256)
	f.Add("AWS4-HMAC-SHA256 ,,,==")
	f.Fuzz(func(t *testing.T, value string) {
		c, err := parseAuthorization(value)
		if err != nil {
			if err.Reason != ReasonAuthorizationHeaderMalformed {
				t.Fatalf("%v", err)
			}
			return
		}
		// What parses prints back, and parses to the same.
		again := algorithmV4 + " Credential=" + c.accessKeyID + "/" + c.scope.String() + ",SignedHeaders=" + strings.Join(c.signed, ";") + ",Signature=" + c.signature
		d, err := parseAuthorization(again)
		if err != nil || d.accessKeyID != c.accessKeyID || d.scope != c.scope || d.signature != c.signature {
			t.Fatalf("%q: %+v, again %+v, %v", value, c, d, err)
		}
	})
}

func FuzzQuery(f *testing.F) {
	f.Add("a=1&b=%20+&&=x&c")
	f.Add("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20130524%2Fr%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z" +
		"&X-Amz-Expires=1&X-Amz-SignedHeaders=host&X-Amz-Signature=" + emptySHA256)
	f.Fuzz(func(t *testing.T, query string) {
		params, ok := parseQuery(query)
		want, err := url.ParseQuery(query)
		if ok && !strings.Contains(query, ";") {
			// net/url, which the operations read their parameters with, must mean the same.
			n := 0
			for _, v := range want {
				n += len(v)
			}
			if err != nil || n != len(params) {
				t.Fatalf("%q: %v, net/url %v, %v", query, params, want, err)
			}
		}
		if !ok {
			if err == nil {
				t.Fatalf("%q is refused, net/url reads %v", query, want)
			}
			return
		}
		canonical := canonicalQuery(params, "")
		again, ok := parseQuery(canonical)
		if !ok || canonicalQuery(again, "") != canonical {
			t.Fatalf("%q: canonical %q is not stable", query, canonical)
		}
		if c, err := parsePresigned(params); err == nil && (c.expires < 1 || !isHex(c.signature, signatureLen) || c.accessKeyID == "") {
			t.Fatalf("%q: %+v", query, c)
		}
	})
}

func FuzzVerifyNeverPanics(f *testing.F) {
	f.Add("GET", "/b/k?x=1", "Authorization", "AWS4-HMAC-SHA256 Credential=a/20130524/r/s3/aws4_request", []byte("x"))
	f.Add("PUT", "//%2F?X-Amz-Signature=1", "X-Amz-Content-Sha256", StreamingSigned, []byte("1\r\nx\r\n"))
	f.Fuzz(func(t *testing.T, method, target, name, value string, body []byte) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := &http.Request{Method: method, URL: u, Host: "h", Header: http.Header{http.CanonicalHeaderKey(name): {value}},
			Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
		out, err := newVerifier(exampleTime).Verify(r)
		switch {
		case err != nil && ReasonOf(err) == ReasonNone:
			t.Fatalf("an error without reason: %v", err)
		case err == nil && !out.Identity.Anonymous:
			t.Fatalf("a forged request is accepted: %+v", out)
		}
	})
}

// A signed stream gives the bytes that were signed, or an error, whatever is done to it.
func FuzzSignedChunks(f *testing.F) {
	data := []byte("ostraka") // short, so that the engine spends its time on the framing
	trailer := []string{"x-amz-checksum-crc32c"}
	good := encodeChunks(data, 8192, exampleChain(emptySHA256), "x-amz-checksum-crc32c:AAAAAA==")
	f.Add(good)
	f.Add(good[:len(good)-2])
	f.Add([]byte("0;chunk-signature=" + emptySHA256 + "\r\n\r\n"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		b := newChunkedBody(io.NopCloser(bytes.NewReader(wire)), int64(len(data)), exampleChain(emptySHA256), true, trailer)
		got, err := io.ReadAll(b)
		if err == nil && (!bytes.Equal(got, data) || b.Trailers().Get(trailer[0]) != "AAAAAA==") {
			t.Fatalf("%d altered bytes end well", len(got))
		}
		if err != nil && (len(got) == len(data) || ReasonOf(err) == ReasonNone) {
			t.Fatalf("%d bytes before %v", len(got), err)
		}
	})
}

func FuzzUnsignedChunks(f *testing.F) {
	f.Add(encodeChunks([]byte("hello"), 8192, nil, "x-amz-checksum-crc32:AAAAAA=="), int64(5), true)
	f.Add(encodeChunks([]byte("hello"), 8192, nil), int64(5), false)
	f.Fuzz(func(t *testing.T, wire []byte, length int64, trailer bool) {
		if length < 0 {
			return
		}
		var announced []string
		if trailer {
			announced = []string{"x-amz-checksum-crc32"}
		}
		b := newChunkedBody(io.NopCloser(bytes.NewReader(wire)), length, nil, trailer, announced)
		got, err := io.ReadAll(b)
		if (err == nil) != (int64(len(got)) == length) && !(length == 0 && err != nil) {
			t.Fatalf("%d of %d bytes, %v", len(got), length, err)
		}
		if err == nil && len(b.Trailers()) != len(announced) {
			t.Fatalf("trailers %v", b.Trailers())
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add(`{"expiration":"2024-02-03T05:00:00Z","conditions":[{"bucket":"b"},["eq","$key","k"],["content-length-range",0,"9"]]}`)
	f.Fuzz(func(t *testing.T, doc string) {
		d, err := parsePolicy(base64.StdEncoding.EncodeToString([]byte(doc)))
		if err == nil && (d.expiration.IsZero() && !strings.Contains(doc, "0001-01-01") || d.min < 0 || d.max < -1) {
			t.Fatalf("%+v", d)
		}
		if err == nil && d.evaluate("b", map[string]string{"acl": "public-read"}) == nil && !strings.Contains(strings.ToLower(doc), "acl") &&
			!strings.Contains(doc, `\`) {
			t.Fatalf("%s covers a field that it does not name", doc)
		}
	})
}
