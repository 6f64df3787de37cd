package auth

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/s3utils"
	"github.com/minio/minio-go/v7/pkg/signer"
)

// v2Bucket knows the hosts of the documentation's examples and one of its own.
func v2Bucket(host string) string {
	host, _, _ = strings.Cut(host, ":")
	if host == "static.awsexamplebucket1.net" {
		return host
	}
	for _, domain := range []string{".us-west-1.s3.amazonaws.com", ".s3.us-west-1.amazonaws.com", ".s3.example.com"} {
		if bucket, ok := strings.CutSuffix(host, domain); ok {
			return bucket
		}
	}
	return ""
}

func v2Verifier(now time.Time) *Verifier {
	return newVerifier(now, func(c *Config) { c.V2, c.HostBucket = true, v2Bucket })
}

func v2Date(t testing.TB, date string) time.Time {
	t.Helper()
	out, err := time.Parse(time.RFC1123Z, date)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The examples of "Signing and authenticating REST requests (AWS signature version 2)" with the
// signatures that AWS published.
func TestAWSVersion2Examples(t *testing.T) {
	const virtual = "Host: awsexamplebucket1.s3.us-west-1.amazonaws.com"
	const service = "Host: s3.us-west-1.amazonaws.com"
	for name, c := range map[string]struct {
		method, target, signature, date string
		headers                         []string
	}{
		"object GET": {"GET", "/photos/puppy.jpg", "qgk2+6Sv9/oM7G3qLEjTH1a1l1g=", "Tue, 27 Mar 2007 19:36:42 +0000",
			[]string{"Host: awsexamplebucket1.us-west-1.s3.amazonaws.com"}},
		"object GET, path-style": {"GET", "/awsexamplebucket1/photos/puppy.jpg", "qgk2+6Sv9/oM7G3qLEjTH1a1l1g=", "Tue, 27 Mar 2007 19:36:42 +0000",
			[]string{service}},
		"object PUT": {"PUT", "/photos/puppy.jpg", "iqRzw+ileNPu1fhspnRs8nOjjIA=", "Tue, 27 Mar 2007 21:15:45 +0000",
			[]string{virtual, "Content-Type: image/jpeg", "Content-Length: 94328"}},
		"list": {"GET", "/?prefix=photos&max-keys=50&marker=puppy", "m0WP8eCtspQl5Ahe6L1SozdX9YA=", "Tue, 27 Mar 2007 19:42:41 +0000",
			[]string{virtual, "User-Agent: Mozilla/5.0"}},
		"fetch": {"GET", "/?acl", "82ZHiFIjc+WbcwFKGUVEQspPn+0=", "Tue, 27 Mar 2007 19:44:46 +0000", []string{virtual}},
		"upload": {"PUT", "/db-backup.dat.gz", "dKZcB+bz2EPXgSdXZp9ozGeOM4I=", "Tue, 27 Mar 2007 21:06:08 +0000",
			[]string{"Host: static.awsexamplebucket1.net:8080", "x-amz-acl: public-read", "content-type: application/x-download",
				"Content-MD5: 4gJE4saaMU4BqNR0kLY+lw==", "X-Amz-Meta-ReviewedBy: joe@awsexamplebucket1.net",
				"X-Amz-Meta-ReviewedBy: jane@awsexamplebucket1.net", "X-Amz-Meta-FileChecksum: 0x02661779",
				"X-Amz-Meta-ChecksumAlgorithm: crc32", "Content-Disposition: attachment; filename=database.dat",
				"Content-Encoding: gzip", "Content-Length: 5913339"}},
		"list all my buckets": {"GET", "/", "qGdzdERIC03wnaRNKh6OqZehG9s=", "Wed, 28 Mar 2007 01:29:59 +0000", []string{service}},
		"unicode keys": {"GET", "/dictionary/fran%C3%A7ais/pr%c3%a9f%c3%a8re", "DNEZGsoieTZ92F3bUfSPQcbGmlM=", "Wed, 28 Mar 2007 01:49:49 +0000",
			[]string{service}},
	} {
		t.Run(name, func(t *testing.T) {
			r := raw(t, c.method, c.target, "", append(c.headers, "Date: "+c.date, "Authorization: AWS "+exampleKey+":"+c.signature)...)
			out := mustVerify(t, v2Verifier(v2Date(t, c.date)), r)
			if !out.V2 || out.Presigned || out.Identity.AccessKeyID != exampleKey || out.Mode != ModeUnsigned || out.Host != r.Host {
				t.Errorf("got %+v", out)
			}
			wantReason(t, newVerifier(v2Date(t, c.date)), r, ReasonSignatureVersionNotSupported)
		})
	}
}

// The example of a DELETE contradicts the rule above it ("use the empty string for the Date"), by
// which its signature is another. The SDKs keep the rule.
func TestVersion2DateOfAnAmzHeader(t *testing.T) {
	const date = "Tue, 27 Mar 2007 21:20:26 +0000"
	v := v2Verifier(v2Date(t, date))
	request := func(signature string) *http.Request {
		return raw(t, "DELETE", "/awsexamplebucket1/photos/puppy.jpg", "", "Host: s3.us-west-1.amazonaws.com",
			"Date: Tue, 27 Mar 2007 01:00:00 +0000", "x-amz-date: "+date, "Authorization: AWS "+exampleKey+":"+signature)
	}
	mustVerify(t, v, request("Ri1hpB1zpS9pGqR7y8kuNFCl4sE="))
	wantReason(t, v, request("XbyTlbQdu9Xw5o8P4iMwPktxQd8="), ReasonSignatureDoesNotMatch)
}

// The example of "Query string request authentication". Its signature is that of the bucket
// johnsmith, which the page called it by before.
func TestAWSVersion2PresignedExample(t *testing.T) {
	const expires = 1175139620
	request := func(extra string, headers ...string) *http.Request {
		return raw(t, "GET", "/photos/puppy.jpg?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620"+extra,
			"", append(headers, "Host: johnsmith.s3.us-west-1.amazonaws.com")...)
	}
	v := v2Verifier(time.Unix(expires, 0))
	out := mustVerify(t, v, request(""))
	if !out.V2 || !out.Presigned || out.Identity.AccessKeyID != exampleKey {
		t.Errorf("got %+v", out)
	}
	mustVerify(t, v2Verifier(time.Unix(0, 0)), request("")) // there is no "not before"
	wantReason(t, v2Verifier(time.Unix(expires+1, 0)), request(""), ReasonExpired)
	wantReason(t, newVerifier(time.Unix(expires, 0)), request(""), ReasonSignatureVersionNotSupported)
	mustVerify(t, v, request("&x-id=GetObject", "Date: Mon, 26 Mar 2007 19:37:58 +0000", "X-Amz-Date: 20070326T193758Z"))
	for name, r := range map[string]*http.Request{
		"another operation":   request("&acl"),
		"another version":     request("&versionId=1"),
		"an answer's header":  request("&response-content-type=text/html"),
		"a header":            request("", "X-Amz-Copy-Source: /other/secret"),
		"a header in query":   request("&x-amz-copy-source=/other/secret"),
		"a header in capital": request("&X-Amz-Acl=public-read"),
		"a content type":      request("", "Content-Type: text/html"),
		"a token":             request("&x-amz-security-token=t"),
	} {
		t.Run(name, func(t *testing.T) { wantReason(t, v, r, ReasonSignatureDoesNotMatch) })
	}
	wantReason(t, v, request("&X-Amz-Expires=9"), ReasonInvalidArgument)
	wantReason(t, v, request("&Expires=1175139621"), ReasonAccessDenied)
	wantReason(t, v, request("&AWSAccessKeyId=x"), ReasonAccessDenied)
	wantReason(t, v, request("", "Authorization: AWS a:b"), ReasonInvalidArgument)
	wantReason(t, v, request("&X-Amz-Signature=00"), ReasonInvalidArgument)
	for from, to := range map[string]string{"Expires=1175139620": "Expires=", "AWSAccessKeyId=AKIA": "a=AKIA", "Signature=Npg": "s=Npg"} {
		r := request("")
		r.URL.RawQuery = strings.Replace(r.URL.RawQuery, from, to, 1)
		wantReason(t, v, r, ReasonAccessDenied)
	}
	for _, bad := range []string{"soon", "-1", "+1175139620", "1175139620.0", "99999999999999999999", "%201175139620"} {
		r := request("")
		r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "Expires=1175139620", "Expires="+bad, 1)
		wantReason(t, v, r, ReasonAccessDenied)
	}
	r := request("")
	r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "Expires=1175139620", "Expires=2175139620", 1)
	wantReason(t, v, r, ReasonSignatureDoesNotMatch)
	r = request("")
	r.Method = "HEAD"
	wantReason(t, v, r, ReasonSignatureDoesNotMatch)
}

// signV2 signs by the documentation's description, from the lines of the string to sign.
func signV2(r *http.Request, lines ...string) {
	r.Header.Set("Authorization", "AWS "+exampleKey+":"+hmacSHA1(exampleSecret, strings.Join(lines, "\n")))
}

const v2Now = "Fri, 24 May 2013 00:00:00 GMT" // exampleTime

func signedV2(t testing.TB) *http.Request {
	r := raw(t, "PUT", "/bucket/key?uploadId=a%26b&partNumber=2&prefix=free", "body", "Host: s3.example.com", "Date: "+v2Now,
		"Content-Type: text/plain", "Content-MD5: hBotaJrYa9FhFEdFPCLG/A==", "X-Amz-Meta-B:  two  words ", "X-Amz-Meta-A: 1", "X-Amz-Meta-A: 2")
	signV2(r, "PUT", "hBotaJrYa9FhFEdFPCLG/A==", "text/plain", v2Now, "x-amz-meta-a:1,2", "x-amz-meta-b:two  words",
		"/bucket/key?partNumber=2&uploadId=a&b")
	return r
}

func TestTamperedVersion2RequestsAreRefused(t *testing.T) {
	v := v2Verifier(exampleTime)
	out := mustVerify(t, v, signedV2(t))
	if b, err := io.ReadAll(out.Body); err != nil || string(b) != "body" || !slices.Equal(out.SignedHeaders, []string{"x-amz-meta-a", "x-amz-meta-b"}) {
		t.Fatalf("%q, %v, %+v", b, err, out)
	}
	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	edit := func(from, to string) func(*http.Request) {
		return func(r *http.Request) {
			was := r.Header.Get("Authorization")
			if !strings.Contains(was, from) {
				panic(was + " has no " + from)
			}
			r.Header.Set("Authorization", strings.Replace(was, from, to, 1))
		}
	}
	for name, c := range map[string]struct {
		change func(*http.Request)
		want   Reason
	}{
		"nothing":             {func(*http.Request) {}, ReasonNone},
		"method":              {func(r *http.Request) { r.Method = "POST" }, ReasonSignatureDoesNotMatch},
		"path":                {func(r *http.Request) { r.URL.Path = "/bucket/other" }, ReasonSignatureDoesNotMatch},
		"bucket by host":      {func(r *http.Request) { r.Host = "evil.s3.example.com" }, ReasonSignatureDoesNotMatch},
		"the same bucket":     {func(r *http.Request) { r.Host, r.URL.Path = "bucket.s3.example.com", "/key" }, ReasonNone},
		"sub-resource value":  {func(r *http.Request) { r.URL.RawQuery = "uploadId=a%26b&partNumber=3" }, ReasonSignatureDoesNotMatch},
		"added sub-resource":  {func(r *http.Request) { r.URL.RawQuery += "&acl" }, ReasonSignatureDoesNotMatch},
		"sub-resource twice":  {func(r *http.Request) { r.URL.RawQuery += "&partNumber=2" }, ReasonSignatureDoesNotMatch},
		"no sub-resource":     {func(r *http.Request) { r.URL.RawQuery = "" }, ReasonSignatureDoesNotMatch},
		"an uncovered value":  {func(r *http.Request) { r.URL.RawQuery += "&marker=x" }, ReasonNone},
		"bad query escape":    {func(r *http.Request) { r.URL.RawQuery += "&a=%zz" }, ReasonInvalidURI},
		"content type":        {set("Content-Type", "text/html"), ReasonSignatureDoesNotMatch},
		"no content type":     {func(r *http.Request) { r.Header.Del("Content-Type") }, ReasonSignatureDoesNotMatch},
		"content MD5":         {set("Content-Md5", "AAAAAAAAAAAAAAAAAAAAAA=="), ReasonSignatureDoesNotMatch},
		"added amz header":    {set("X-Amz-Acl", "public-read"), ReasonSignatureDoesNotMatch},
		"dropped amz header":  {func(r *http.Request) { r.Header.Del("X-Amz-Meta-B") }, ReasonSignatureDoesNotMatch},
		"changed amz header":  {set("X-Amz-Meta-B", "one word"), ReasonSignatureDoesNotMatch},
		"added payload hash":  {set("X-Amz-Content-Sha256", UnsignedPayload), ReasonSignatureDoesNotMatch},
		"date":                {set("Date", "Fri, 24 May 2013 00:00:01 GMT"), ReasonSignatureDoesNotMatch},
		"the same in x-amz-":  {set("X-Amz-Date", v2Now), ReasonSignatureDoesNotMatch},
		"date that is none":   {set("Date", "1369353600"), ReasonAccessDenied},
		"no date":             {func(r *http.Request) { r.Header.Del("Date") }, ReasonAccessDenied},
		"two dates":           {func(r *http.Request) { r.Header.Add("Date", v2Now) }, ReasonAccessDenied},
		"a token":             {set("X-Amz-Security-Token", "token+/="), ReasonSignatureDoesNotMatch},
		"unknown key":         {edit("AKIA", "AKIB"), ReasonInvalidAccessKeyID},
		"another key":         {edit(exampleKey, "ASIATEMP"), ReasonSignatureDoesNotMatch},
		"a short signature":   {edit("=", ""), ReasonSignatureDoesNotMatch},
		"another encoding":    {edit("=", "=="), ReasonSignatureDoesNotMatch},
		"no signature":        {set("Authorization", "AWS "+exampleKey+":"), ReasonInvalidArgument},
		"no key":              {set("Authorization", "AWS :c2ln"), ReasonInvalidArgument},
		"no colon":            {set("Authorization", "AWS c2ln"), ReasonInvalidArgument},
		"a space":             {set("Authorization", "AWS AKIA :c2ln"), ReasonInvalidArgument},
		"nothing at all":      {set("Authorization", "AWS"), ReasonInvalidArgument},
		"another scheme":      {set("Authorization", "AWS3 a:b"), ReasonInvalidArgument},
		"version 4A":          {set("Authorization", "AWS4-ECDSA-P256-SHA256 x"), ReasonSignatureVersionNotSupported},
		"header and version2": {func(r *http.Request) { r.URL.RawQuery += "&Signature=x" }, ReasonInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r := signedV2(t)
			c.change(r)
			if c.want == ReasonNone {
				mustVerify(t, v, r)
				return
			}
			wantReason(t, v, r, c.want)
			// Without --sigv2 nothing of it is accepted.
			if _, err := newVerifier(exampleTime).Verify(r); err == nil {
				t.Error("accepted with version 2 off")
			}
		})
	}
	// Every character of the signature counts.
	header := signedV2(t).Header.Get("Authorization")
	for i := len("AWS " + exampleKey + ":"); i < len(header); i++ {
		r := signedV2(t)
		b := []byte(header)
		b[i] = "AB"[b2i(b[i] == 'A')]
		r.Header.Set("Authorization", string(b))
		wantReason(t, v, r, ReasonSignatureDoesNotMatch)
	}
	for _, d := range []time.Duration{-DefaultMaxSkew, DefaultMaxSkew} {
		mustVerify(t, v2Verifier(exampleTime.Add(d)), signedV2(t))
	}
	for _, d := range []time.Duration{-DefaultMaxSkew - time.Second, DefaultMaxSkew + time.Second} {
		wantReason(t, v2Verifier(exampleTime.Add(d)), signedV2(t), ReasonRequestTimeTooSkewed)
	}
}

func TestVersion2IsOffWithoutBucketsAndForOtherServices(t *testing.T) {
	wantReason(t, newVerifier(exampleTime, func(c *Config) { c.V2 = true }), signedV2(t), ReasonSignatureVersionNotSupported)
	_, err := v2Verifier(exampleTime).VerifyService(signedV2(t), "iam")
	checkReason(t, err, ReasonSignatureVersionNotSupported)
	// A request of version 4 is what it was.
	if out := mustVerify(t, v2Verifier(exampleTime), signedPut(t, "body")); out.V2 {
		t.Errorf("%+v", out)
	}
}

// Behind a proxy that changes the host, the bucket is read from the name that the client used.
func TestVersion2PublicHosts(t *testing.T) {
	v := newVerifier(exampleTime, func(c *Config) {
		c.V2, c.HostBucket, c.PublicHosts = true, v2Bucket, []string{"bucket.s3.example.com"}
	})
	r := raw(t, "GET", "/key", "", "Host: backend:9000", "Date: "+v2Now)
	signV2(r, "GET", "", "", v2Now, "/bucket/key")
	if out := mustVerify(t, v, r); out.Host != "bucket.s3.example.com" {
		t.Errorf("host %q", out.Host)
	}
}

func TestVersion2SessionTokens(t *testing.T) {
	v := v2Verifier(exampleTime)
	for _, c := range []struct {
		key, secret, token string
		want               Reason
	}{
		{"ASIATEMP", "temporary", "token+/=", ReasonNone},
		{"ASIATEMP", "temporary", "", ReasonInvalidToken},
		{"ASIATEMP", "temporary", "other", ReasonInvalidToken},
		{exampleKey, exampleSecret, "token+/=", ReasonInvalidToken},
	} {
		const expires = "1369353601"
		line := ""
		header := raw(t, "GET", "/b/k", "", "Host: h", "Date: "+v2Now)
		query := url.Values{"AWSAccessKeyId": {c.key}, "Expires": {expires}}
		if c.token != "" {
			line = "x-amz-security-token:" + c.token + "\n"
			header.Header.Set("X-Amz-Security-Token", c.token)
			query.Set("x-amz-security-token", c.token)
		}
		header.Header.Set("Authorization", "AWS "+c.key+":"+hmacSHA1(c.secret, "GET\n\n\n"+v2Now+"\n"+line+"/b/k"))
		query.Set("Signature", hmacSHA1(c.secret, "GET\n\n\n"+expires+"\n"+line+"/b/k"))
		for _, r := range []*http.Request{header, raw(t, "GET", "/b/k?"+query.Encode(), "", "Host: h")} {
			if c.want == ReasonNone {
				mustVerify(t, v, r)
			} else {
				wantReason(t, v, r, c.want)
			}
		}
	}
	// The string to sign, which the client reads, repeats no secret; checkReason looks for the token.
	r := raw(t, "GET", "/b/k?acl", "", "Host: h", "Date: "+v2Now, "X-Amz-Security-Token: token+/=", "X-Amz-Meta-A: 1", "Authorization: AWS ASIATEMP:c2ln")
	_, err := v.Verify(r)
	checkReason(t, err, ReasonSignatureDoesNotMatch)
	want := "GET\n\n\n" + v2Now + "\nx-amz-meta-a:1\nx-amz-security-token:[hidden]\n/b/k?acl"
	if e := err.(*Error); e.StringToSign != want || e.AccessKeyID != "ASIATEMP" { //nolint:errorlint // Verify's own
		t.Errorf("got %q, want %q", e.StringToSign, want)
	}
}

// What stands for a header in a presigned URL is covered like one, and cannot pass for several.
func TestVersion2HeadersInThePresignedQuery(t *testing.T) {
	const expires = "1369353601"
	v := v2Verifier(exampleTime)
	request := func(query string, lines ...string) *http.Request {
		sig := hmacSHA1(exampleSecret, "PUT\n\n\n"+expires+"\n"+strings.Join(lines, "\n")+"\n/b/k")
		return raw(t, "PUT", "/b/k?AWSAccessKeyId="+exampleKey+"&Expires="+expires+"&Signature="+url.QueryEscape(sig)+query, "body", "Host: h")
	}
	mustVerify(t, v, request("&x-amz-meta-b=2&X-Amz-Acl=private", "x-amz-acl:private", "x-amz-meta-b:2"))
	wantReason(t, v, request("&x-amz-acl=private%0Ax-amz-meta-b:2", "x-amz-acl:private", "x-amz-meta-b:2"), ReasonInvalidRequest)
	wantReason(t, v, request("&x-amz-acl:private%0Ax-amz-meta-b=2", "x-amz-acl:private", "x-amz-meta-b:2"), ReasonInvalidRequest)
	wantReason(t, v, request("&x-amz-acl=private&X-Amz-Acl=private", "x-amz-acl:private,private"), ReasonInvalidRequest)
	r := request("&x-amz-acl=private", "x-amz-acl:private")
	r.Header.Set("X-Amz-Acl", "private")
	wantReason(t, v, r, ReasonInvalidRequest)

	// A digest holds wherever it stands, and chunks that nothing signs are no chunks.
	for sum, want := range map[string]Reason{HashPayload([]byte("body")): ReasonNone, HashPayload([]byte("else")): ReasonXAmzContentSHA256Mismatch} {
		inQuery := request("&x-amz-content-sha256="+sum, "x-amz-content-sha256:"+sum)
		inHeader := request("", "x-amz-content-sha256:"+sum)
		inHeader.Header.Set("X-Amz-Content-Sha256", sum)
		for _, r := range []*http.Request{inQuery, inHeader} {
			if _, err := io.ReadAll(mustVerify(t, v, r).Body); ReasonOf(err) != want {
				t.Errorf("%v, want %v", err, want)
			}
		}
	}
	wantReason(t, v, request("&x-amz-content-sha256="+StreamingSigned, "x-amz-content-sha256:"+StreamingSigned), ReasonInvalidRequest)
}

func TestVersion2RequestsSignedByMinioGo(t *testing.T) {
	now := time.Now()
	v := v2Verifier(now)
	for _, key := range oddKeys {
		if strings.ContainsAny(key, "\x01\x7f") {
			continue
		}
		for _, query := range append([]url.Values{{"uploads": {""}}, {"delete": {""}, "versioning": {""}}}, oddQueries...) {
			for _, virtual := range []bool{false, true} {
				build := func(method, body string) *http.Request {
					req := newRequest(t, method, "http://s3.example.com/", body)
					req.URL.Path = "/bucket/" + key
					if virtual {
						req.URL.Host, req.URL.Path = "bucket.s3.example.com", "/"+key
						req.Host = req.URL.Host
					}
					req.URL.RawPath = s3utils.EncodePath(req.URL.Path)
					req.URL.RawQuery = s3utils.QueryEncode(query)
					return req
				}
				req := build("PUT", "the body")
				req.Header.Set("Content-Type", "text/plain")
				req.Header.Set("X-Amz-Meta-Odd", "ü 日本")
				out := mustVerify(t, v, received(t, signer.SignV2(*req, exampleKey, exampleSecret, virtual)))
				if b, err := io.ReadAll(out.Body); err != nil || string(b) != "the body" || !out.V2 {
					t.Fatalf("key %q: %q, %v, %+v", key, b, err, out)
				}
				r := received(t, signer.PreSignV2(*build("GET", ""), exampleKey, exampleSecret, 60, virtual))
				if out := mustVerify(t, v, r); !out.V2 || !out.Presigned {
					t.Fatalf("key %q: %+v", key, out)
				}
				wantReason(t, v2Verifier(now.Add(2*time.Minute)), r, ReasonExpired)
			}
		}
	}
}

// A request that was signed is accepted as the same request only: whatever is done to the parts
// that are covered, the verifier either sees the parts as they were or refuses.
func FuzzVersion2(f *testing.F) {
	f.Add("GET", "/bucket/key", "uploadId=1&partNumber=2", "text/plain", "1", "s3.example.com")
	f.Add("PUT", "/key", "acl&prefix=x", "", "", "bucket.s3.example.com")
	f.Add("PUT", "//%2f", "response-content-type=a%26acl&versionId", "x", "a,b", "a.s3.example.com:80")
	f.Fuzz(func(t *testing.T, method, target, query, contentType, meta, host string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || strings.ContainsAny(method+contentType+meta+host, "\r\n\x00") {
			return
		}
		u.RawQuery = query
		build := func() *http.Request {
			return &http.Request{Method: method, URL: u, Host: host, Body: io.NopCloser(bytes.NewReader(nil)), Header: http.Header{
				"Date": {v2Now}, "Content-Type": {contentType}, "X-Amz-Meta-A": {meta}}}
		}
		v := v2Verifier(exampleTime)
		forged := build()
		forged.Header.Set("Authorization", "AWS "+exampleKey+":"+hmacSHA1("guess", target))
		_, refusal := v.Verify(forged)
		if refusal == nil || ReasonOf(refusal) == ReasonNone {
			t.Fatalf("a forged request: %v", refusal)
		}
		if ReasonOf(refusal) != ReasonSignatureDoesNotMatch {
			return
		}
		e := refusal.(*Error) //nolint:errorlint // Verify's own
		// The string that it tells is the one to sign.
		good := build()
		signV2(good, e.StringToSign)
		if out, err := v.Verify(good); err != nil || out.Host != host {
			t.Fatalf("%q: %v", e.StringToSign, err)
		}
		for i, change := range []func(*http.Request){
			func(r *http.Request) { r.Method += "X" },
			func(r *http.Request) { r.Header.Set("Content-Type", contentType+"x") },
			func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", meta+"x") },
			func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/a/b") },
			func(r *http.Request) { c := *u; c.RawQuery += "&acl"; r.URL = &c },
			func(r *http.Request) { c := *u; c.Path += "x"; c.RawPath = ""; r.URL = &c },
		} {
			r := build()
			signV2(r, e.StringToSign)
			change(r)
			if _, err := v.Verify(r); err == nil {
				t.Fatalf("change %d of %q is accepted", i, e.StringToSign)
			}
		}
		// Neither is it good as a presigned URL.
		r := build()
		c := *u
		c.RawQuery += "&AWSAccessKeyId=" + exampleKey + "&Expires=" + strconv.FormatInt(exampleTime.Unix()+9, 10) +
			"&Signature=" + url.QueryEscape(hmacSHA1(exampleSecret, e.StringToSign))
		r.URL = &c
		if _, err := v.Verify(r); err == nil {
			t.Fatalf("%q is accepted as a presigned URL", e.StringToSign)
		}
	})
}
