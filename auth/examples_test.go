package auth

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/checksum"
)

func authorization(signed, signature string) string {
	return "Authorization: AWS4-HMAC-SHA256 Credential=" + exampleKey + "/20130524/us-east-1/s3/aws4_request,SignedHeaders=" +
		signed + ",Signature=" + signature
}

// The examples of "Signature Calculations for the Authorization Header: Transferring Payload in a
// Single Chunk", with the signatures that AWS published.
func TestAWSHeaderExamples(t *testing.T) {
	const host, date = "Host: examplebucket.s3.amazonaws.com", "x-amz-date: 20130524T000000Z"
	const empty = "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for name, r := range map[string]*http.Request{
		"GET object": raw(t, "GET", "/test.txt", "", host, "Range: bytes=0-9", empty, date,
			authorization("host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")),
		"PUT object": raw(t, "PUT", "/test$file.text", "Welcome to Amazon S3.", host, "Date: Fri, 24 May 2013 00:00:00 GMT", date,
			"x-amz-storage-class: REDUCED_REDUNDANCY",
			"x-amz-content-sha256: 44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			authorization("date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")),
		"GET bucket lifecycle": raw(t, "GET", "/?lifecycle", "", host, empty, date,
			authorization("host;x-amz-content-sha256;x-amz-date", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")),
		"list objects": raw(t, "GET", "/?max-keys=2&prefix=J", "", host, empty, date,
			authorization("host;x-amz-content-sha256;x-amz-date", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")),
	} {
		t.Run(name, func(t *testing.T) {
			out := mustVerify(t, newVerifier(exampleTime), r)
			if out.Identity.AccessKeyID != exampleKey || !out.Identity.Root || out.Region != "us-east-1" || out.Presigned {
				t.Errorf("got %+v", out)
			}
			body, err := io.ReadAll(out.Body)
			if err != nil || r.Method == "PUT" && string(body) != "Welcome to Amazon S3." {
				t.Errorf("body %q, %v", body, err)
			}
		})
	}
}

// The example of "Authenticating Requests: Using Query Parameters".
func TestAWSPresignedExample(t *testing.T) {
	const target = "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F" +
		"aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&" +
		"X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
	r := raw(t, "GET", target, "", "Host: examplebucket.s3.amazonaws.com")
	out := mustVerify(t, newVerifier(exampleTime.Add(24*time.Hour)), r)
	if !out.Presigned || out.Expires != 24*time.Hour || out.Mode != ModeUnsigned {
		t.Errorf("got %+v", out)
	}
	wantReason(t, newVerifier(exampleTime.Add(24*time.Hour+time.Second)), r, ReasonExpired)
	mustVerify(t, newVerifier(exampleTime.Add(-DefaultMaxSkew)), r)
	wantReason(t, newVerifier(exampleTime.Add(-DefaultMaxSkew-time.Second)), r, ReasonNotYetValid)

	u, err := Presign(newRequest(t, "GET", "https://examplebucket.s3.amazonaws.com/test.txt", ""), exampleCreds, "us-east-1", "s3", 24*time.Hour, exampleTime)
	if err != nil || u != "https://examplebucket.s3.amazonaws.com"+target {
		t.Errorf("Presign gives\n%s\nwant\n%s\n%v", u, target, err)
	}
}

// chunkedExample is the request of the documentation's chunked uploads: 65 KiB of "a".
func chunkedExample(t testing.TB, trailer bool, wire []byte) *http.Request {
	headers := []string{"Host: s3.amazonaws.com", "x-amz-date: 20130524T000000Z", "x-amz-storage-class: REDUCED_REDUNDANCY",
		"Content-Encoding: aws-chunked", "x-amz-decoded-content-length: 66560"}
	if trailer {
		headers = append(headers, "x-amz-content-sha256: "+StreamingSignedTrailer, "x-amz-trailer: x-amz-checksum-crc32c",
			authorization("content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer",
				"106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"))
	} else {
		headers = append(headers, "x-amz-content-sha256: "+StreamingSigned,
			authorization("content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
				"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"))
	}
	return raw(t, "PUT", "/examplebucket/chunkObject.txt", string(wire), headers...)
}

// The example of "Transferring Payload in Multiple Chunks" and of "Including Trailing Headers".
func TestAWSChunkedExamples(t *testing.T) {
	data := bytes.Repeat([]byte("a"), 66560)
	signed := "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + strings.Repeat("a", 65536) +
		"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + strings.Repeat("a", 1024) +
		"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
	withTrailer := "10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n" + strings.Repeat("a", 65536) +
		"\r\n400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n" + strings.Repeat("a", 1024) +
		"\r\n0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\nx-amz-checksum-crc32c:sOO8/Q==\r\n" +
		"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
	if len(signed) != 66824 {
		t.Fatalf("the example has %d bytes, AWS says 66824", len(signed))
	}
	out := mustVerify(t, newVerifier(exampleTime), chunkedExample(t, false, []byte(signed)))
	if got, err := io.ReadAll(out.Body); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	out = mustVerify(t, newVerifier(exampleTime), chunkedExample(t, true, []byte(withTrailer)))
	if out.Trailers() != nil || out.DecodedLength != 66560 || out.Mode != ModeStreamingSignedTrailer {
		t.Fatalf("before reading: %+v", out)
	}
	if got, err := io.ReadAll(out.Body); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if got := out.Trailers().Get(checksum.CRC32C.Header()); got != "sOO8/Q==" {
		t.Fatalf("trailers %v", out.Trailers())
	}
	// What the tests' own encoder makes is what AWS published.
	if got := encodeChunks(data, 65536, exampleChain("4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9")); string(got) != signed {
		t.Error("the encoder differs from the example")
	}
	if got := encodeChunks(data, 65536, exampleChain("106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"),
		"x-amz-checksum-crc32c:sOO8/Q=="); string(got) != withTrailer {
		t.Error("the encoder differs from the example with a trailer")
	}
}

// The example of "Examples: Browser-Based Upload using HTTP POST".
func TestAWSPostPolicyExample(t *testing.T) {
	const policy = "eyAiZXhwaXJhdGlvbiI6ICIyMDE1LTEyLTMwVDEyOjAwOjAwLjAwMFoiLA0KICAiY29uZGl0aW9ucyI6IFsNCiAgICB7ImJ1Y2tldCI6ICJzaWd2NGV4YW1wbGVidWNrZXQifSwNCiAgICBbInN0YXJ0cy13aXRoIiwgIiRrZXkiLCAidXNlci91c2VyMS8iXSwNCiAgICB7ImFjbCI6ICJwdWJsaWMtcmVhZCJ9LA0KICAgIHsic3VjY2Vzc19hY3Rpb25fcmVkaXJlY3QiOiAiaHR0cDovL3NpZ3Y0ZXhhbXBsZWJ1Y2tldC5zMy5hbWF6b25hd3MuY29tL3N1Y2Nlc3NmdWxfdXBsb2FkLmh0bWwifSwNCiAgICBbInN0YXJ0cy13aXRoIiwgIiRDb250ZW50LVR5cGUiLCAiaW1hZ2UvIl0sDQogICAgeyJ4LWFtei1tZXRhLXV1aWQiOiAiMTQzNjUxMjM2NTEyNzQifSwNCiAgICB7IngtYW16LXNlcnZlci1zaWRlLWVuY3J5cHRpb24iOiAiQUVTMjU2In0sDQogICAgWyJzdGFydHMtd2l0aCIsICIkeC1hbXotbWV0YS10YWciLCAiIl0sDQoNCiAgICB7IngtYW16LWNyZWRlbnRpYWwiOiAiQUtJQUlPU0ZPRE5ON0VYQU1QTEUvMjAxNTEyMjkvdXMtZWFzdC0xL3MzL2F3czRfcmVxdWVzdCJ9LA0KICAgIHsieC1hbXotYWxnb3JpdGhtIjogIkFXUzQtSE1BQy1TSEEyNTYifSwNCiAgICB7IngtYW16LWRhdGUiOiAiMjAxNTEyMjlUMDAwMDAwWiIgfQ0KICBdDQp9"
	const sig = "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e"
	form := map[string]string{
		"key": "user/user1/photo.jpg", "acl": "public-read", "content-type": "image/jpeg",
		"success_action_redirect":      "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html",
		"x-amz-meta-uuid":              "14365123651274",
		"x-amz-server-side-encryption": "AES256",
		"x-amz-meta-tag":               "anything", "x-amz-algorithm": algorithmV4, "x-amz-date": "20151229T000000Z",
		"x-amz-credential": exampleKey + "/20151229/us-east-1/s3/aws4_request", "policy": policy, "x-amz-signature": sig,
	}
	now := time.Date(2015, 12, 29, 1, 0, 0, 0, time.UTC)
	out, err := newVerifier(now).VerifyPostPolicy(t.Context(), "sigv4examplebucket", form)
	if err != nil || !out.Identity.Root || out.MaxLength != -1 {
		t.Fatalf("%+v, %v", out, err)
	}
	_, err = newVerifier(now).VerifyPostPolicy(t.Context(), "other", form)
	checkReason(t, err, ReasonPolicyConditionFailed)
}
