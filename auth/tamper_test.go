package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/internal/errs"
)

// signedPut is a fresh, well signed request of a body.
func signedPut(t testing.TB, body string) *http.Request {
	req := newRequest(t, "PUT", "http://s3.example.com/bucket/key?partNumber=1&uploadId=u", body)
	req.Header.Set("X-Amz-Meta-A", "one")
	req.Header.Set("Content-Type", "text/plain")
	if err := SignRequest(req, exampleCreds, "us-east-1", "s3", HashPayload([]byte(body)), exampleTime); err != nil {
		t.Fatal(err)
	}
	return received(t, req)
}

func TestTamperedRequestsAreRefused(t *testing.T) {
	v := newVerifier(exampleTime)
	mustVerify(t, v, signedPut(t, "body"))
	edit := func(name, from, to string) func(*http.Request) {
		return func(r *http.Request) {
			was := r.Header.Get(name)
			if !strings.Contains(was, from) {
				panic(was + " has no " + from)
			}
			r.Header.Set(name, strings.Replace(was, from, to, 1))
		}
	}
	for name, c := range map[string]struct {
		change func(*http.Request)
		want   Reason
	}{
		"method":              {func(r *http.Request) { r.Method = "GET" }, ReasonSignatureDoesNotMatch},
		"path":                {func(r *http.Request) { r.URL.Path = "/bucket/other" }, ReasonSignatureDoesNotMatch},
		"query value":         {func(r *http.Request) { r.URL.RawQuery = "partNumber=2&uploadId=u" }, ReasonSignatureDoesNotMatch},
		"added query":         {func(r *http.Request) { r.URL.RawQuery += "&acl" }, ReasonSignatureDoesNotMatch},
		"dropped query":       {func(r *http.Request) { r.URL.RawQuery = "partNumber=1" }, ReasonSignatureDoesNotMatch},
		"bad query escape":    {func(r *http.Request) { r.URL.RawQuery += "&a=%zz" }, ReasonInvalidURI},
		"host":                {func(r *http.Request) { r.Host = "evil.example.com" }, ReasonSignatureDoesNotMatch},
		"signed header":       {func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", "two") }, ReasonSignatureDoesNotMatch},
		"second value":        {func(r *http.Request) { r.Header.Add("X-Amz-Meta-A", "two") }, ReasonSignatureDoesNotMatch},
		"dropped header":      {func(r *http.Request) { r.Header.Del("X-Amz-Meta-A") }, ReasonSignatureDoesNotMatch},
		"content type":        {func(r *http.Request) { r.Header.Set("Content-Type", "text/html") }, ReasonSignatureDoesNotMatch},
		"unsigned amz header": {func(r *http.Request) { r.Header.Set("X-Amz-Acl", "public-read") }, ReasonHeadersNotSigned},
		"payload hash":        {func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", UnsignedPayload) }, ReasonSignatureDoesNotMatch},
		"no payload hash":     {func(r *http.Request) { r.Header.Del("X-Amz-Content-Sha256") }, ReasonMissingSecurityHeader},
		"two payload hashes":  {func(r *http.Request) { r.Header.Add("X-Amz-Content-Sha256", UnsignedPayload) }, ReasonInvalidRequest},
		"date":                {func(r *http.Request) { r.Header.Set("X-Amz-Date", "20130524T000001Z") }, ReasonSignatureDoesNotMatch},
		"date of another day": {func(r *http.Request) { r.Header.Set("X-Amz-Date", "20130523T235959Z") }, ReasonAuthorizationHeaderMalformed},
		"date that is none":   {func(r *http.Request) { r.Header.Set("X-Amz-Date", "yesterday") }, ReasonAccessDenied},
		"no date":             {func(r *http.Request) { r.Header.Del("X-Amz-Date") }, ReasonAccessDenied},
		"unsigned Date": {func(r *http.Request) {
			r.Header.Del("X-Amz-Date")
			r.Header.Set("Date", exampleTime.Format(http.TimeFormat))
		}, ReasonAccessDenied},
		"region":            {edit("Authorization", "us-east-1", "us-west-1"), ReasonSignatureDoesNotMatch},
		"service":           {edit("Authorization", "/s3/", "/iam/"), ReasonAuthorizationHeaderMalformed},
		"terminator":        {edit("Authorization", "aws4_request", "aws5_request"), ReasonAuthorizationHeaderMalformed},
		"scope date":        {edit("Authorization", "20130524", "20130525"), ReasonAuthorizationHeaderMalformed},
		"unknown key":       {edit("Authorization", "AKIA", "AKIB"), ReasonInvalidAccessKeyID},
		"another key":       {edit("Authorization", exampleKey, "ASIATEMP"), ReasonSignatureDoesNotMatch},
		"signature":         {edit("Authorization", "Signature=", "Signature=0"), ReasonAuthorizationHeaderMalformed},
		"signed names":      {edit("Authorization", "content-type;", ""), ReasonSignatureDoesNotMatch},
		"host not signed":   {edit("Authorization", "host;", ""), ReasonAuthorizationHeaderMalformed},
		"name signed twice": {edit("Authorization", "host;", "host;host;"), ReasonAuthorizationHeaderMalformed},
		"upper case name":   {edit("Authorization", "host;", "Host;"), ReasonAuthorizationHeaderMalformed},
		"unknown component": {edit("Authorization", "Signature=", "Sig="), ReasonAuthorizationHeaderMalformed},
		"component twice": {func(r *http.Request) {
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", a+",Signature=00")
		}, ReasonAuthorizationHeaderMalformed},
		"nothing but a scheme":   {func(r *http.Request) { r.Header.Set("Authorization", algorithmV4) }, ReasonAuthorizationHeaderMalformed},
		"version 2":              {func(r *http.Request) { r.Header.Set("Authorization", "AWS AKIA:c2ln") }, ReasonSignatureVersionNotSupported},
		"version 4A":             {edit("Authorization", algorithmV4, "AWS4-ECDSA-P256-SHA256"), ReasonSignatureVersionNotSupported},
		"another scheme":         {func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, ReasonInvalidArgument},
		"empty header":           {func(r *http.Request) { r.Header.Set("Authorization", "") }, ReasonInvalidArgument},
		"two headers":            {func(r *http.Request) { r.Header.Add("Authorization", "AWS a:b") }, ReasonInvalidArgument},
		"header and query":       {func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Signature=00" }, ReasonInvalidArgument},
		"header and version 2":   {func(r *http.Request) { r.URL.RawQuery += "&AWSAccessKeyId=a&Signature=b&Expires=1" }, ReasonInvalidArgument},
		"a token for long keys":  {func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "t") }, ReasonHeadersNotSigned},
		"trailer without chunks": {func(r *http.Request) { r.Header.Set("X-Amz-Trailer", "x-amz-checksum-crc32") }, ReasonHeadersNotSigned},
	} {
		t.Run(name, func(t *testing.T) {
			r := signedPut(t, "body")
			c.change(r)
			wantReason(t, v, r, c.want)
		})
	}
	// Every digit of the signature counts.
	auth := signedPut(t, "body").Header.Get("Authorization")
	for i := len(auth) - signatureLen; i < len(auth); i++ {
		r := signedPut(t, "body")
		b := []byte(auth)
		b[i] = "10"[b2i(b[i] == '1')]
		r.Header.Set("Authorization", string(b))
		wantReason(t, v, r, ReasonSignatureDoesNotMatch)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestClockAndRegion(t *testing.T) {
	for _, d := range []time.Duration{-DefaultMaxSkew, DefaultMaxSkew} {
		mustVerify(t, newVerifier(exampleTime.Add(d)), signedPut(t, ""))
	}
	for _, d := range []time.Duration{-DefaultMaxSkew - time.Second, DefaultMaxSkew + time.Second} {
		wantReason(t, newVerifier(exampleTime.Add(d)), signedPut(t, ""), ReasonRequestTimeTooSkewed)
	}
	strict := newVerifier(exampleTime, func(c *Config) { c.AnyRegion, c.Region = false, "eu-west-1" })
	_, err := strict.Verify(signedPut(t, ""))
	checkReason(t, err, ReasonAuthorizationHeaderMalformed)
	var e *Error
	if !errors.As(err, &e) || e.Region != "eu-west-1" || !errs.Is(err, errs.Invalid) || errs.Public(err) == "" {
		t.Errorf("%+v", e)
	}
	u, _ := Presign(newRequest(t, "GET", "http://h/b/k", ""), exampleCreds, "us-east-1", "s3", time.Minute, exampleTime)
	wantReason(t, strict, newRequest(t, "GET", u, ""), ReasonAuthorizationQueryParametersError)
}

func TestSessionTokens(t *testing.T) {
	v := newVerifier(exampleTime)
	for _, c := range []struct {
		key, secret, token string
		want               Reason
	}{
		{"ASIATEMP", "temporary", "token+/=", ReasonNone},
		{"ASIATEMP", "temporary", "", ReasonInvalidToken},
		{"ASIATEMP", "temporary", "other", ReasonInvalidToken},
		{exampleKey, exampleSecret, "token+/=", ReasonInvalidToken},
	} {
		creds := Credentials{c.key, c.secret, c.token}
		req := newRequest(t, "GET", "http://h/b/k", "")
		if err := SignRequest(req, creds, "us-east-1", "s3", "", exampleTime); err != nil {
			t.Fatal(err)
		}
		u, _ := Presign(newRequest(t, "GET", "http://h/b/k", ""), creds, "us-east-1", "s3", time.Minute, exampleTime)
		for _, r := range []*http.Request{received(t, req), newRequest(t, "GET", u, "")} {
			if c.want == ReasonNone {
				mustVerify(t, v, r)
			} else {
				wantReason(t, v, r, c.want)
			}
		}
	}
}

func TestPresignedTampering(t *testing.T) {
	v := newVerifier(exampleTime)
	req := newRequest(t, "PUT", "http://h/b/k?x-id=PutObject", "")
	req.Header.Set("Content-Type", "text/plain")
	u, err := Presign(req, exampleCreds, "us-east-1", "s3", time.Hour, exampleTime)
	if err != nil {
		t.Fatal(err)
	}
	fresh := func(u string) *http.Request {
		r := newRequest(t, "PUT", u, "data")
		r.Header.Set("Content-Type", "text/plain")
		return r
	}
	if out := mustVerify(t, v, fresh(u)); out.DecodedLength != 4 {
		t.Fatalf("%+v", out)
	}
	for _, c := range []struct {
		from, to string
		want     Reason
	}{
		{"/b/k", "/b/other", ReasonSignatureDoesNotMatch},
		{"x-id=PutObject", "x-id=Other", ReasonSignatureDoesNotMatch},
		{"X-Amz-Expires=3600", "X-Amz-Expires=3601", ReasonSignatureDoesNotMatch},
		{"X-Amz-Expires=3600", "X-Amz-Expires=0", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Expires=3600", "X-Amz-Expires=-1", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Expires=3600", "X-Amz-Expires=604801", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Expires=3600", "X-Amz-Expires=soon", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Expires=3600&", "", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Expires=3600", "X-Amz-Expires=3600&X-Amz-Expires=9", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Date=20130524T000000Z", "X-Amz-Date=20130524T000001Z", ReasonSignatureDoesNotMatch},
		{"X-Amz-Date=20130524T000000Z", "X-Amz-Date=20130525T000000Z", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Date=20130524T000000Z", "X-Amz-Date=today", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Algorithm=AWS4-HMAC-SHA1", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256", ReasonSignatureVersionNotSupported},
		{"aws4_request", "aws4", ReasonAuthorizationQueryParametersError},
		{"us-east-1", "us-east-2", ReasonSignatureDoesNotMatch},
		{"AKIA", "AKIB", ReasonInvalidAccessKeyID},
		{"X-Amz-SignedHeaders=content-type%3Bhost", "X-Amz-SignedHeaders=host", ReasonSignatureDoesNotMatch},
		{"X-Amz-SignedHeaders=content-type%3Bhost", "X-Amz-SignedHeaders=content-type", ReasonAuthorizationQueryParametersError},
		{"X-Amz-Signature=", "X-Amz-Signature=g", ReasonAuthorizationQueryParametersError},
	} {
		if !strings.Contains(u, c.from) {
			t.Fatalf("%s has no %s", u, c.from)
		}
		wantReason(t, v, fresh(strings.Replace(u, c.from, c.to, 1)), c.want)
	}
	for name, value := range map[string]string{"X-Amz-Copy-Source": "/other/secret", "X-Amz-Acl": "public-read"} {
		r := fresh(u)
		r.Header.Set(name, value)
		wantReason(t, v, r, ReasonHeadersNotSigned)
	}
	wantReason(t, v, newRequest(t, "GET", "http://h/b/k?AWSAccessKeyId=a&Signature=b&Expires=1", ""), ReasonSignatureVersionNotSupported)

	// A digest that the signature leaves open is still held to.
	r := fresh(u)
	r.Header.Set("X-Amz-Content-Sha256", HashPayload([]byte("data")))
	if b, err := io.ReadAll(mustVerify(t, v, r).Body); err != nil || string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
	r = fresh(u)
	r.Header.Set("X-Amz-Content-Sha256", HashPayload([]byte("else")))
	if b, err := io.ReadAll(mustVerify(t, v, r).Body); ReasonOf(err) != ReasonXAmzContentSHA256Mismatch || len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
	r = fresh(u)
	r.Header.Set("X-Amz-Content-Sha256", StreamingSigned)
	wantReason(t, v, r, ReasonInvalidRequest)
}

// Behind a proxy the signed host is not the one received, and only the signed one may be used.
func TestPublicHosts(t *testing.T) {
	v := newVerifier(exampleTime, func(c *Config) { c.PublicHosts = []string{"other", "s3.example.com"} })
	r := signedPut(t, "body")
	r.Host = "evil.backend:8080"
	if out := mustVerify(t, v, r); out.Host != "s3.example.com" {
		t.Errorf("host %q", out.Host)
	}
	r = signedPut(t, "body")
	r.Host = "s3.example.com:80"
	if out := mustVerify(t, newVerifier(exampleTime), r); out.Host != "s3.example.com" {
		t.Errorf("host %q", out.Host)
	}
}

func TestEscapedSlashIsVerifiedInBothReadings(t *testing.T) {
	v := newVerifier(exampleTime)
	for _, signed := range []string{"/b/a%2Fb", "/b/a/b"} {
		s := scope{"20130524", "us-east-1", "s3"}
		r := raw(t, "GET", "/b/a%2Fb", "", "Host: h", "x-amz-date: 20130524T000000Z", "x-amz-content-sha256: "+emptySHA256)
		names := []string{"host", "x-amz-content-sha256", "x-amz-date"}
		canonical := canonicalRequest("GET", signed, "", canonicalHeaders(r, "h", names), strings.Join(names, ";"), emptySHA256)
		r.Header.Set("Authorization", strings.TrimPrefix(authorization(strings.Join(names, ";"),
			signature(signingKey(exampleSecret, s), stringToSign(exampleTime, s, canonical))), "Authorization: "))
		mustVerify(t, v, r)
	}
	// A plus and a %20 in a query mean the same space to signer and server.
	req := newRequest(t, "GET", "http://h/b?prefix=a+b", "")
	if err := SignRequest(req, exampleCreds, "us-east-1", "s3", "", exampleTime); err != nil {
		t.Fatal(err)
	}
	req.URL.RawQuery = "prefix=a%20b"
	mustVerify(t, v, received(t, req))
	req.URL.RawQuery = "prefix=a%2Bb"
	wantReason(t, v, received(t, req), ReasonSignatureDoesNotMatch)
}

func TestHeadersThatServersAndProxiesTakeAway(t *testing.T) {
	names := []string{"content-length", "expect", "host", "transfer-encoding", "x-amz-date"}
	r := raw(t, "PUT", "/b/k", "body", "Host: h", "x-amz-date:  a   b  c ", "x-amz-date: d")
	r.TransferEncoding = []string{"chunked"}
	want := "content-length:4\nexpect:100-continue\nhost:h\ntransfer-encoding:chunked\nx-amz-date:a b c,d\n"
	if got := canonicalHeaders(r, "h", names); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAnonymousRequests(t *testing.T) {
	v := newVerifier(exampleTime)
	out := mustVerify(t, v, raw(t, "PUT", "/b/k", "data", "Host: h"))
	if b, err := io.ReadAll(out.Body); err != nil || string(b) != "data" || !out.Identity.Anonymous || out.Identity.Root || out.Host != "h" {
		t.Fatalf("%q %v %+v", b, err, out)
	}
	out = mustVerify(t, v, raw(t, "PUT", "/b/k", "data", "Host: h", "x-amz-content-sha256: "+HashPayload([]byte("date"))))
	_, err := io.ReadAll(out.Body)
	checkReason(t, err, ReasonXAmzContentSHA256Mismatch)
	wire := string(encodeChunks([]byte("data"), 10, nil, "x-amz-checksum-crc32:AAAAAA=="))
	out = mustVerify(t, v, raw(t, "PUT", "/b/k", wire, "Host: h", "x-amz-content-sha256: "+StreamingUnsignedTrailer,
		"x-amz-decoded-content-length: 4", "x-amz-trailer: x-amz-checksum-crc32"))
	if b, err := io.ReadAll(out.Body); err != nil || string(b) != "data" || out.Trailers().Get("x-amz-checksum-crc32") != "AAAAAA==" {
		t.Fatalf("%q %v %v", b, err, out.Trailers())
	}
	for _, c := range []struct {
		header string
		want   Reason
	}{
		{"x-amz-content-sha256: " + StreamingSigned, ReasonInvalidRequest},
		{"x-amz-content-sha256: nonsense", ReasonInvalidArgument},
		{"x-amz-content-sha256: STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", ReasonSignatureVersionNotSupported},
		{"x-amz-content-sha256: " + StreamingUnsignedTrailer, ReasonMissingContentLength},
		{"x-amz-content-sha256: " + StreamingUnsignedTrailer + "\r\nx-amz-decoded-content-length: -1", ReasonInvalidArgument},
		{"x-amz-content-sha256: " + StreamingUnsignedTrailer + "\r\nx-amz-decoded-content-length: 4\r\nx-amz-trailer: content-md5", ReasonInvalidRequest},
		{"x-amz-trailer: x-amz-checksum-crc32", ReasonInvalidRequest},
	} {
		wantReason(t, v, raw(t, "PUT", "/b/k", "data", "Host: h", c.header), c.want)
	}
	wantReason(t, v, raw(t, "GET", "/b/k", "", "Host: h", "x-amz-content-sha256: "+HashPayload([]byte("x"))), ReasonXAmzContentSHA256Mismatch)
}

// A body is never delivered whole unless it is right, however it is read.
func TestPlainBodies(t *testing.T) {
	good := HashPayload([]byte("hello world"))
	for name, c := range map[string]struct {
		sent   string
		length int64
		digest string
		want   Reason
	}{
		"right":                 {"hello world", 11, good, ReasonNone},
		"right, unknown length": {"hello world", -1, good, ReasonNone},
		"no digest":             {"hello world", 11, "", ReasonNone},
		"empty":                 {"", 0, emptySHA256, ReasonNone},
		"altered":               {"hello worle", 11, good, ReasonXAmzContentSHA256Mismatch},
		"altered, unknown":      {"hello worle", -1, good, ReasonXAmzContentSHA256Mismatch},
		"short":                 {"hello worl", 11, good, ReasonIncompleteBody},
		"short, no digest":      {"hello worl", 11, "", ReasonIncompleteBody},
	} {
		for how, wrap := range readers {
			t.Run(name+" "+how, func(t *testing.T) {
				b := newPlainBody(io.NopCloser(wrap(strings.NewReader(c.sent))), c.length, c.digest)
				got, err := io.ReadAll(b)
				if c.want == ReasonNone {
					if err != nil || string(got) != c.sent {
						t.Fatalf("%q, %v", got, err)
					}
				} else {
					checkReason(t, err, c.want)
					if c.want == ReasonXAmzContentSHA256Mismatch && c.length >= 0 && len(got) == len(c.sent) {
						t.Fatal("all bytes were delivered")
					}
				}
				if _, again := b.Read(make([]byte, 1)); again == nil || (again == io.EOF) != (c.want == ReasonNone) {
					t.Fatalf("read again: %v", again)
				}
			})
		}
	}
	// ReadFull of the announced length forgets the error of its last Read.
	b := newPlainBody(io.NopCloser(strings.NewReader("hello worle")), 11, good)
	if _, err := io.ReadFull(b, make([]byte, 11)); ReasonOf(err) != ReasonXAmzContentSHA256Mismatch {
		t.Errorf("ReadFull: %v", err)
	}
	b = newPlainBody(io.NopCloser(iotest.ErrReader(context.Canceled)), 11, good)
	if _, err := io.ReadAll(b); !errs.Is(err, errs.Canceled) {
		t.Errorf("kind %v", errs.KindOf(err))
	}
}

var readers = map[string]func(io.Reader) io.Reader{
	"whole":        func(r io.Reader) io.Reader { return r },
	"by bytes":     iotest.OneByteReader,
	"by halves":    iotest.HalfReader,
	"EOF at once":  iotest.DataErrReader,
	"byte and EOF": func(r io.Reader) io.Reader { return iotest.DataErrReader(iotest.OneByteReader(r)) },
}

func TestChunkedBodies(t *testing.T) {
	const seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
	crc := "x-amz-checksum-crc32c:" + checksum.CRC32C.Encode(checksum.CRC32C.Sum(nil))
	for _, size := range []int{0, 1, 8191, 8192, 8193, 20000} {
		data := bytes.Repeat([]byte("abcdefg"), size/7+1)[:size]
		for _, signed := range []bool{true, false} {
			for _, trailer := range []bool{true, false} {
				for how, wrap := range readers {
					chain := func() *chunkSignature {
						if !signed {
							return nil
						}
						return exampleChain(seed)
					}
					var lines, announced []string
					if trailer {
						lines, announced = []string{crc}, []string{"x-amz-checksum-crc32c"}
					}
					wire := encodeChunks(data, 8192, chain(), lines...)
					b := newChunkedBody(io.NopCloser(wrap(bytes.NewReader(wire))), int64(size), chain(), trailer, announced)
					got, err := io.ReadAll(b)
					if err != nil || !bytes.Equal(got, data) || len(b.Trailers()) != len(lines) {
						t.Fatalf("%d bytes, signed %v, trailer %v, read %s: %d bytes, %v", size, signed, trailer, how, len(got), err)
					}
				}
			}
		}
	}
}

// Whatever byte of a signed stream is changed, dropped or added, it never ends well.
func TestEveryByteOfASignedStreamCounts(t *testing.T) {
	const seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
	data := bytes.Repeat([]byte("x"), 8192+5)
	lines, announced := []string{"x-amz-checksum-crc32c:AAAAAA=="}, []string{"x-amz-checksum-crc32c"}
	wire := encodeChunks(data, 8192, exampleChain(seed), lines...)
	check := func(what string, i int, wire []byte) {
		b := newChunkedBody(io.NopCloser(bytes.NewReader(wire)), int64(len(data)), exampleChain(seed), true, announced)
		got := make([]byte, len(data))
		if n, err := io.ReadFull(b, got); err == nil && (!bytes.Equal(got, data) || b.Trailers().Get("x-amz-checksum-crc32c") != "AAAAAA==") {
			t.Fatalf("%s byte %d: %d altered bytes are delivered", what, i, n)
		} else if err == nil && !strings.Contains("\r\n \t", string(wire[min(i, len(wire)-1)])) && what != "dropped" && what != "cut at" {
			// Only the optional white space of the trailers has several spellings.
			if !strings.EqualFold(string(wire), string(encodeChunks(data, 8192, exampleChain(seed), lines...))) {
				t.Fatalf("%s byte %d: %q is accepted", what, i, wire[max(0, i-20):min(len(wire), i+20)])
			}
		}
	}
	for i := range wire {
		if i > 200 && i < 8192 {
			continue // more of the same data
		}
		for _, c := range []byte{0, ' ', '\n', '0', wire[i] ^ 1, wire[i] ^ 0x20, 0xff} {
			if c != wire[i] {
				check("changed", i, append(append(bytes.Clone(wire[:i]), c), wire[i+1:]...))
			}
		}
		check("dropped", i, append(bytes.Clone(wire[:i]), wire[i+1:]...))
		check("doubled", i, append(bytes.Clone(wire[:i+1]), wire[i:]...))
		if i < len(wire)-2 { // the last CRLF may be missing: the example of AWS has it, some clients do not
			b := newChunkedBody(io.NopCloser(bytes.NewReader(wire[:i])), int64(len(data)), exampleChain(seed), true, announced)
			if _, err := io.ReadAll(b); err == nil {
				t.Fatalf("cut at %d: accepted", i)
			}
		}
	}
}

func TestChunkFramingIsStrict(t *testing.T) {
	big := strings.Repeat("x", 8192)
	for name, c := range map[string]struct {
		wire     string
		length   int64
		announce []string
		trailer  bool
		want     Reason
	}{
		"empty":                     {"", 1, nil, false, ReasonIncompleteBody},
		"no final chunk":            {"1\r\nx\r\n", 1, nil, false, ReasonIncompleteBody},
		"no final CRLF":             {"1\r\nx\r\n0\r\n", 1, nil, false, ReasonIncompleteBody},
		"bytes after the end":       {"1\r\nx\r\n0\r\n\r\n!", 1, nil, false, ReasonIncompleteBody},
		"fewer than announced":      {"1\r\nx\r\n0\r\n\r\n", 2, nil, false, ReasonIncompleteBody},
		"more than announced":       {"2\r\nxx\r\n0\r\n\r\n", 1, nil, false, ReasonIncompleteBody},
		"a chunk too many":          {"1\r\nx\r\n1\r\nx\r\n0\r\n\r\n", 1, nil, false, ReasonIncompleteBody},
		"LF only":                   {"1\nx\n0\n\n", 1, nil, false, ReasonIncompleteBody},
		"wrong end of chunk":        {"1\r\nxy\r\n0\r\n\r\n", 1, nil, false, ReasonIncompleteBody},
		"sign":                      {"+1\r\nx\r\n0\r\n\r\n", 1, nil, false, ReasonIncompleteBody},
		"leading zero":              {"01\r\nx\r\n0\r\n\r\n", 1, nil, false, ReasonIncompleteBody},
		"0x":                        {"0x1\r\nx\r\n0\r\n\r\n", 1, nil, false, ReasonIncompleteBody},
		"extension":                 {"1;a=b\r\nx\r\n0\r\n\r\n", 1, nil, false, ReasonIncompleteBody},
		"huge size":                 {"ffffffffffffffff\r\nx", 1, nil, false, ReasonIncompleteBody},
		"size of 17 digits":         {"10000000000000001\r\nx", 1, nil, false, ReasonIncompleteBody},
		"endless line":              {strings.Repeat("1", 100000), 1, nil, false, ReasonIncompleteBody},
		"small chunk in the middle": {"1\r\nx\r\n2000\r\n" + big + "\r\n0\r\n\r\n", 8193, nil, false, ReasonInvalidChunkSize},
		"trailer not announced":     {"1\r\nx\r\n0\r\na:b\r\n\r\n", 1, nil, true, ReasonMalformedTrailer},
		"trailer missing":           {"1\r\nx\r\n0\r\n\r\n", 1, []string{"a"}, true, ReasonMalformedTrailer},
		"trailer twice":             {"1\r\nx\r\n0\r\na:b\r\na:b\r\n\r\n", 1, []string{"a"}, true, ReasonMalformedTrailer},
		"trailer without value":     {"1\r\nx\r\n0\r\na:\r\n\r\n", 1, []string{"a"}, true, ReasonMalformedTrailer},
		"trailer without colon":     {"1\r\nx\r\n0\r\na\r\n\r\n", 1, []string{"a"}, true, ReasonMalformedTrailer},
		"trailer cut":               {"1\r\nx\r\n0\r\na:b", 1, []string{"a"}, true, ReasonIncompleteBody},
		"endless trailer":           {"1\r\nx\r\n0\r\na:" + big + "x\r\n\r\n", 1, []string{"a"}, true, ReasonMalformedTrailer},
		"signature of no chain":     {"1\r\nx\r\n0\r\na:b\r\nx-amz-trailer-signature:" + emptySHA256 + "\r\n\r\n", 1, []string{"a"}, true, ReasonMalformedTrailer},
	} {
		t.Run(name, func(t *testing.T) {
			b := newChunkedBody(io.NopCloser(strings.NewReader(c.wire)), c.length, nil, c.trailer, c.announce)
			got, err := io.ReadAll(b)
			checkReason(t, err, c.want)
			if int64(len(got)) == c.length {
				t.Errorf("all %d bytes were delivered", len(got))
			}
			if b.Trailers() != nil {
				t.Errorf("trailers %v", b.Trailers())
			}
		})
	}
	b := newChunkedBody(io.NopCloser(iotest.ErrReader(context.DeadlineExceeded)), 1, nil, false, nil)
	if _, err := io.ReadAll(b); !errs.Is(err, errs.Timeout) {
		t.Errorf("kind %v", errs.KindOf(err))
	}
}

func TestKeyCacheIsBoundedAndFollowsRotation(t *testing.T) {
	var c keyCache
	s := scope{"20130524", "us-east-1", "s3"}
	c.keep("id", "old", s, signingKey("old", s))
	if !bytes.Equal(c.derive("id", "old", s), signingKey("old", s)) || !bytes.Equal(c.derive("id", "new", s), signingKey("new", s)) {
		t.Error("the key of another secret is used")
	}
	for i := range 5 * keyCacheSize {
		c.keep(fmt.Sprint(i), "s", s, nil)
	}
	if n := len(c.young) + len(c.old); n > 2*keyCacheSize {
		t.Errorf("%d keys are kept", n)
	}
}

func TestRootOnly(t *testing.T) {
	root := Identity{AccountID: accountID, Root: true}
	for _, c := range []struct {
		id    Identity
		owner string
		ok    bool
	}{
		{root, accountID, true},
		{root, "", true},
		{root, strings.Repeat("f", 64), false},
		{Identity{AccountID: accountID}, accountID, false},
		{Identity{Anonymous: true}, "", false},
		{Identity{AccountID: accountID, Root: true, Anonymous: true}, accountID, false},
		{Identity{Root: true}, "", false},
		{Identity{}, "", false},
	} {
		err := RootOnly{}.Authorize(t.Context(), c.id, "s3:GetObject", Resource{"arn:aws:s3:::b/k", c.owner}, nil)
		if (err == nil) != c.ok || err != nil && (!errs.Is(err, errs.Denied) || ReasonOf(err) != ReasonAccessDenied) {
			t.Errorf("%+v on %q: %v", c.id, c.owner, err)
		}
	}
}

func TestReasonsAreNamedAndSecretsAreNotPrinted(t *testing.T) {
	names := map[string]bool{}
	for r := ReasonNone; r < reasonCount; r++ {
		if r.String() == "" || names[r.String()] || r != ReasonNone && r.Kind() == errs.Internal {
			t.Errorf("reason %d: %q, %v", r, r, r.Kind())
		}
		names[r.String()] = true
	}
	c := Credentials{"AK", "hush", "hush"}
	i := Identity{AccessKeyID: "AK", SessionToken: "hush"}
	if s := fmt.Sprintf("%v %+v %#v %v %+v %#v", c, c, c, i, i, i); strings.Contains(s, "hush") {
		t.Error(s)
	}
	if got := StripChunked("aws-chunked, gzip ,AWS-CHUNKED"); got != "gzip" {
		t.Errorf("StripChunked: %q", got)
	}
}

func TestPostPolicies(t *testing.T) {
	now := time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)
	s := scope{"20240203", "us-east-1", "s3"}
	form := func(doc string, change ...string) map[string]string {
		policy := base64.StdEncoding.EncodeToString([]byte(doc))
		f := map[string]string{"policy": policy, "key": "user/a.jpg", "x-amz-algorithm": algorithmV4, "x-amz-date": "20240203T040506Z",
			"x-amz-credential": exampleKey + "/" + s.String(), "x-amz-signature": signature(signingKey(exampleSecret, s), policy)}
		for i := 0; i < len(change); i += 2 {
			f[change[i]] = change[i+1]
			if change[i+1] == "<none>" {
				delete(f, change[i])
			}
		}
		return f
	}
	const future = `{"expiration":"2024-02-03T05:00:00.000Z","conditions":[`
	const amz = `,{"x-amz-algorithm":"AWS4-HMAC-SHA256"},["eq","$x-amz-date","20240203T040506Z"],["starts-with","$X-Amz-Credential",""]]}`
	const base = future + `{"bUcKeT":"b"},["starts-with","$Key","user/"],["content-length-range",2,"10"]` + amz
	v := newVerifier(now)
	out, err := v.VerifyPostPolicy(t.Context(), "b", form(base, "x-ignore-me", "1", "file", "x"))
	if err != nil || out.MinLength != 2 || out.MaxLength != 10 || out.Identity.AccessKeyID != exampleKey {
		t.Fatalf("%+v, %v", out, err)
	}
	for n, want := range map[int64]Reason{1: ReasonEntityTooSmall, 2: ReasonNone, 10: ReasonNone, 11: ReasonEntityTooLarge} {
		if got := ReasonOf(out.CheckLength(n)); got != want {
			t.Errorf("%d bytes: %v", n, got)
		}
	}
	for name, c := range map[string]struct {
		bucket string
		form   map[string]string
		want   Reason
	}{
		"another bucket":        {"c", form(base), ReasonPolicyConditionFailed},
		"another key":           {"b", form(base, "key", "usr/a"), ReasonPolicyConditionFailed},
		"no key":                {"b", form(base, "key", "<none>"), ReasonPolicyConditionFailed},
		"extra field":           {"b", form(base, "acl", "public-read"), ReasonPolicyConditionFailed},
		"bucket without rule":   {"b", form(future + `["starts-with","$key",""]` + amz), ReasonPolicyConditionFailed},
		"key without rule":      {"b", form(future + `{"bucket":"b"}` + amz), ReasonPolicyConditionFailed},
		"eq fails":              {"b", form(future + `{"bucket":"b"},["eq","$key","user/"]` + amz), ReasonPolicyConditionFailed},
		"expired":               {"b", form(strings.Replace(base, "05:00:00", "04:05:06", 1)), ReasonExpired},
		"signature":             {"b", form(base, "x-amz-signature", emptySHA256), ReasonSignatureDoesNotMatch},
		"altered policy":        {"b", form(base, "policy", base64.StdEncoding.EncodeToString([]byte(base+" "))), ReasonSignatureDoesNotMatch},
		"no signature":          {"b", form(base, "x-amz-signature", "<none>"), ReasonInvalidArgument},
		"no date":               {"b", form(base, "x-amz-date", "<none>"), ReasonInvalidArgument},
		"date of another day":   {"b", form(base, "x-amz-date", "20240204T040506Z"), ReasonInvalidArgument},
		"no policy":             {"b", form(base, "policy", "<none>"), ReasonInvalidArgument},
		"algorithm":             {"b", form(base, "x-amz-algorithm", "AWS4"), ReasonSignatureVersionNotSupported},
		"credential":            {"b", form(base, "x-amz-credential", "AK/x"), ReasonInvalidArgument},
		"unknown key":           {"b", form(base, "x-amz-credential", "AK/"+s.String()), ReasonInvalidAccessKeyID},
		"token":                 {"b", form(base, "x-amz-security-token", "t"), ReasonInvalidToken},
		"two mechanisms":        {"b", form(base, "signature", "x"), ReasonInvalidArgument},
		"no JSON":               {"b", form("{"), ReasonInvalidPolicyDocument},
		"null":                  {"b", form("null"), ReasonInvalidPolicyDocument},
		"no expiration":         {"b", form(`{"conditions":[]}`), ReasonInvalidPolicyDocument},
		"Expiration":            {"b", form(strings.Replace(base, "expiration", "Expiration", 1)), ReasonInvalidPolicyDocument},
		"bad expiration":        {"b", form(strings.Replace(base, "T05:00:00.000Z", " 05:00:00", 1)), ReasonInvalidPolicyDocument},
		"no conditions":         {"b", form(`{"expiration":"2024-02-03T05:00:00Z"}`), ReasonInvalidPolicyDocument},
		"CONDITIONS":            {"b", form(strings.Replace(base, "conditions", "CONDITIONS", 1)), ReasonInvalidPolicyDocument},
		"unknown member":        {"b", form(strings.Replace(base, "{", `{"x":1,`, 1)), ReasonInvalidPolicyDocument},
		"empty condition":       {"b", form(future + `{}` + amz), ReasonInvalidPolicyDocument},
		"two in one condition":  {"b", form(future + `{"a":"1","b":"2"}` + amz), ReasonInvalidPolicyDocument},
		"null value":            {"b", form(future + `{"bucket":null}` + amz), ReasonInvalidPolicyDocument},
		"number value":          {"b", form(future + `{"bucket":1}` + amz), ReasonInvalidPolicyDocument},
		"null condition":        {"b", form(future + `null` + amz), ReasonInvalidPolicyDocument},
		"unknown operation":     {"b", form(future + `["ends-with","$key","x"]` + amz), ReasonInvalidPolicyDocument},
		"field without dollar":  {"b", form(future + `["eq","key","x"]` + amz), ReasonInvalidPolicyDocument},
		"two elements":          {"b", form(future + `["eq","$key"]` + amz), ReasonInvalidPolicyDocument},
		"range of one":          {"b", form(future + `["content-length-range",0]` + amz), ReasonInvalidPolicyDocument},
		"negative range":        {"b", form(future + `["content-length-range",-1,0]` + amz), ReasonInvalidPolicyDocument},
		"range out of order":    {"b", form(future + `["content-length-range",2,1]` + amz), ReasonInvalidPolicyDocument},
		"version 2 when it off": {"b", map[string]string{"policy": "e30=", "awsaccesskeyid": exampleKey, "signature": "x"}, ReasonSignatureVersionNotSupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v.VerifyPostPolicy(t.Context(), c.bucket, c.form)
			if err == nil {
				t.Fatal("accepted")
			}
			checkReason(t, err, c.want)
		})
	}
	if out, err := v.VerifyPostPolicy(t.Context(), "b", map[string]string{"key": "k"}); err != nil || !out.Identity.Anonymous || out.MaxLength != -1 {
		t.Errorf("anonymous: %+v, %v", out, err)
	}
}

func TestPostPolicyOfVersion2(t *testing.T) {
	now := time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)
	const doc = `{"expiration":"2024-02-03T05:00:00Z","conditions":[{"bucket":"b"},["starts-with","$key",""]]}`
	policy := base64.StdEncoding.EncodeToString([]byte(doc))
	form := map[string]string{"policy": policy, "key": "k", "awsaccesskeyid": exampleKey, "signature": hmacSHA1(exampleSecret, policy)}
	v := newVerifier(now, func(c *Config) { c.PostV2 = true })
	if out, err := v.VerifyPostPolicy(t.Context(), "b", form); err != nil || !out.Identity.Root {
		t.Errorf("%+v, %v", out, err)
	}
	form["signature"] = hmacSHA1("other", policy)
	_, err := v.VerifyPostPolicy(t.Context(), "b", form)
	checkReason(t, err, ReasonSignatureDoesNotMatch)
	delete(form, "signature")
	_, err = v.VerifyPostPolicy(t.Context(), "b", form)
	checkReason(t, err, ReasonInvalidArgument)
}
