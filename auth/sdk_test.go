package auth

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	md5simd "github.com/minio/md5-simd"
	"github.com/minio/minio-go/v7/pkg/s3utils"
	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/ostraka/ostraka/internal/checksum"
)

var oddKeys = []string{
	"plain", "with space", "a+b", "//leading", "a//b/", "a/../b", "./.", "..", "ünï/日本語", "%2F", "%", "100%25", "q?x=1", "h#f",
	"a&b=c;d", "(paren)*'!", "~tilde-_.", "@:,$", "\"quoted\"", "<>[]{}|\\^`", "\x01\x7f", strings.Repeat("k", 1024), "emoji🙂", "back\\slash",
}

var oddQueries = []url.Values{
	{}, {"acl": {""}}, {"prefix": {"a b+c/ü"}, "delimiter": {"/"}}, {"versionId": {"null"}, "partNumber": {"1"}},
	{"response-content-disposition": {`attachment; filename="a b;c.txt"`}}, {"list-type": {"2"}, "start-after": {"%2F&="}, "a": {"1", "2"}},
	{"X": {"1"}, "x": {"2"}, "x-id": {"GetObject"}},
}

// sdkEscape encodes a key as the AWS SDKs do for S3.
func sdkEscape(key string) string { return string(appendEscaped(nil, key, true)) }

func sdkRequest(t testing.TB, method, key string, query url.Values, body string) *http.Request {
	req := newRequest(t, method, "http://s3.example.com:9000/", body)
	path := "/bucket/" + key
	req.URL.Path, req.URL.RawPath = path, sdkEscape(path)
	req.URL.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	return req
}

func TestRequestsSignedByAWSSDK(t *testing.T) {
	s := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	creds := aws.Credentials{AccessKeyID: exampleKey, SecretAccessKey: exampleSecret}
	v := newVerifier(exampleTime)
	for _, key := range oddKeys {
		for _, query := range oddQueries {
			req := sdkRequest(t, "PUT", key, query, "the body")
			req.Header.Set("X-Amz-Content-Sha256", HashPayload([]byte("the body")))
			req.Header.Set("X-Amz-Meta-Odd", "  two   spaces  ")
			req.Header.Set("Content-Type", "text/plain; charset=utf-8")
			if err := s.SignHTTP(t.Context(), creds, req, HashPayload([]byte("the body")), "s3", "eu-central-1", exampleTime); err != nil {
				t.Fatal(err)
			}
			out := mustVerify(t, v, received(t, req))
			if b, err := io.ReadAll(out.Body); err != nil || string(b) != "the body" || out.Region != "eu-central-1" || out.DecodedLength != 8 {
				t.Fatalf("key %q: %q, %v, %+v", key, b, err, out)
			}

			req = sdkRequest(t, "GET", key, query, "")
			q := req.URL.Query()
			q.Set("X-Amz-Expires", "900")
			req.URL.RawQuery = q.Encode()
			u, _, err := s.PresignHTTP(t.Context(), creds, req, UnsignedPayload, "s3", "us-east-1", exampleTime)
			if err != nil {
				t.Fatal(err)
			}
			target := strings.TrimPrefix(u, "http://s3.example.com:9000")
			if out := mustVerify(t, v, raw(t, "GET", target, "", "Host: s3.example.com:9000")); !out.Presigned || out.Expires != 15*time.Minute {
				t.Fatalf("key %q: %+v", key, out)
			}
		}
	}
}

func TestRequestsSignedByMinioGo(t *testing.T) {
	v := newVerifier(time.Now())
	for _, key := range oddKeys {
		if strings.ContainsAny(key, "\x01\x7f") {
			continue
		}
		for _, query := range oddQueries {
			req := newRequest(t, "PUT", "http://s3.example.com/", "the body")
			req.URL.Path = "/bucket/" + key
			req.URL.RawPath = s3utils.EncodePath(req.URL.Path)
			req.URL.RawQuery = s3utils.QueryEncode(query)
			req.Header.Set("X-Amz-Content-Sha256", HashPayload([]byte("the body")))
			signed := signer.SignV4(*req, exampleKey, exampleSecret, "", "us-east-1")
			out := mustVerify(t, v, received(t, signed))
			if b, err := io.ReadAll(out.Body); err != nil || string(b) != "the body" {
				t.Fatalf("key %q: %q, %v", key, b, err)
			}
			req = newRequest(t, "GET", "http://s3.example.com/", "")
			req.URL.Path = "/bucket/" + key
			req.URL.RawPath = s3utils.EncodePath(req.URL.Path)
			req.URL.RawQuery = s3utils.QueryEncode(query)
			mustVerify(t, v, received(t, signer.PreSignV4(*req, exampleKey, exampleSecret, "", "us-east-1", 60)))
		}
	}
}

// simd adapts a hash to what minio-go's streaming signer takes.
type simd struct{ hash.Hash }

func (simd) Close() {}

func TestStreamsOfMinioGo(t *testing.T) {
	for _, size := range []int{1, 8192, 65536, 65537, 200000} {
		body := bytes.Repeat([]byte("ostraka "), size/8+1)[:size]
		crc := checksum.CRC32C.Encode(checksum.CRC32C.Sum(body))
		for _, mode := range []string{StreamingSigned, StreamingSignedTrailer, StreamingUnsignedTrailer} {
			req := newRequest(t, "PUT", "http://s3.example.com/bucket/key", "")
			req.Body = io.NopCloser(bytes.NewReader(body))
			if mode != StreamingSigned {
				req.Trailer = http.Header{"X-Amz-Checksum-Crc32c": {crc}}
			}
			now := time.Now().UTC()
			if mode == StreamingUnsignedTrailer {
				req.ContentLength = int64(size)
				req = signer.UnsignedTrailer(*req, req.Trailer)
				if err := SignRequest(req, exampleCreds, "us-east-1", "s3", StreamingUnsignedTrailer, now); err != nil {
					t.Fatal(err)
				}
			} else {
				var h md5simd.Hasher = simd{sha256.New()}
				req = signer.StreamingSignV4(req, exampleKey, exampleSecret, "", "us-east-1", int64(size), now, h)
			}
			out := mustVerify(t, newVerifier(now), received(t, req))
			got, err := io.ReadAll(out.Body)
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%s of %d bytes: %d bytes, %v", mode, size, len(got), err)
			}
			if mode != StreamingSigned && out.Trailers().Get("x-amz-checksum-crc32c") != crc {
				t.Fatalf("%s of %d bytes: trailers %v", mode, size, out.Trailers())
			}
		}
	}
}

// What this package signs, it verifies, and the SDK signs alike.
func TestOwnSignatures(t *testing.T) {
	temp := Credentials{AccessKeyID: "ASIATEMP", Secret: "temporary", SessionToken: "token+/="}
	v := newVerifier(exampleTime)
	for _, creds := range []Credentials{exampleCreds, temp} {
		for _, key := range oddKeys {
			for _, query := range oddQueries {
				req := sdkRequest(t, "PUT", key, query, "x")
				req.Header.Set("X-Amz-Acl", "private")
				if err := SignRequest(req, creds, "us-east-1", "s3", HashPayload([]byte("x")), exampleTime); err != nil {
					t.Fatal(err)
				}
				mustVerify(t, v, received(t, req))
				u, err := Presign(sdkRequest(t, "GET", key, query, ""), creds, "us-east-1", "s3", time.Minute, exampleTime)
				if err != nil {
					t.Fatal(err)
				}
				mustVerify(t, v, raw(t, "GET", strings.TrimPrefix(u, "http://s3.example.com:9000"), "", "Host: s3.example.com:9000"))
			}
		}
	}
	req := sdkRequest(t, "GET", "k", nil, "")
	for _, d := range []time.Duration{0, time.Second - 1, 7*24*time.Hour + time.Second} {
		if u, err := Presign(req, exampleCreds, "us-east-1", "s3", d, exampleTime); err == nil {
			t.Errorf("an URL for %v: %s", d, u)
		}
	}
}

func TestServicesWithoutPayloadHash(t *testing.T) {
	const form = "Action=GetCallerIdentity&Version=2011-06-15"
	req := newRequest(t, "POST", "http://sts.example.com/", form)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	s := v4.NewSigner()
	creds := aws.Credentials{AccessKeyID: exampleKey, SecretAccessKey: exampleSecret}
	if err := s.SignHTTP(t.Context(), creds, req, HashPayload([]byte(form)), "sts", "us-east-1", exampleTime); err != nil {
		t.Fatal(err)
	}
	v := newVerifier(exampleTime)
	out, err := v.VerifyService(received(t, req), "sts")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(out.Body); err != nil || string(b) != form || out.DecodedLength != int64(len(form)) {
		t.Fatalf("%q, %v", b, err)
	}
	wantReason(t, v, received(t, resetBody(req, form)), ReasonAuthorizationHeaderMalformed) // not of s3
	_, err = v.VerifyService(received(t, resetBody(req, strings.Replace(form, "Get", "Set", 1))), "sts")
	checkReason(t, err, ReasonSignatureDoesNotMatch)
	long := strings.Repeat("x", maxFormBody+1)
	req.ContentLength = int64(len(long))
	_, err = v.VerifyService(received(t, resetBody(req, long)), "sts")
	checkReason(t, err, ReasonEntityTooLarge)
}

func resetBody(r *http.Request, body string) *http.Request {
	r.Body = io.NopCloser(strings.NewReader(body))
	return r
}
