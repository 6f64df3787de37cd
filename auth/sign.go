package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// UnsignedPayload is the payload hash of a body that the signature does not cover.
const UnsignedPayload = "UNSIGNED-PAYLOAD"

// HashPayload returns the payload hash of a body.
func HashPayload(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// SignRequest signs req by the Authorization header. It sets X-Amz-Date, X-Amz-Content-Sha256 and,
// for temporary credentials, X-Amz-Security-Token, and covers these, every other x-amz-* header,
// Content-Type, Content-Md5 and the host. payloadHash is the hex SHA-256 of the body,
// UnsignedPayload or a STREAMING-… value; "" stands for an empty body.
func SignRequest(req *http.Request, c Credentials, region, service, payloadHash string, now time.Time) error {
	const op = "auth.SignRequest"
	if payloadHash == "" {
		payloadHash = emptySHA256
	}
	now = now.UTC()
	req.Header.Set("X-Amz-Date", now.Format(timeFormat))
	req.Header.Set("X-Amz-Content-Sha256", payloadHash)
	if c.SessionToken != "" {
		req.Header.Set("X-Amz-Security-Token", c.SessionToken)
	}
	params, ok := parseQuery(req.URL.RawQuery)
	if !ok {
		return errs.E(op, errs.Invalid, "query does not decode")
	}
	uris, ok := canonicalURIs(req.URL.EscapedPath())
	if !ok {
		return errs.E(op, errs.Invalid, "path does not decode")
	}
	signed := headersToSign(req)
	s := scope{now.Format(dayFormat), region, service}
	names := strings.Join(signed, ";")
	canonical := canonicalRequest(req.Method, uris[0], canonicalQuery(params, ""),
		canonicalHeaders(req, hostOf(req), signed), names, payloadHash)
	sig := signature(signingKey(c.Secret, s), stringToSign(now, s, canonical))
	req.Header.Set("Authorization", algorithmV4+" Credential="+c.AccessKeyID+"/"+s.String()+
		",SignedHeaders="+names+",Signature="+sig)
	return nil
}

// Presign returns req's URL with a signature in its query, good for expires, which is rounded down
// to seconds and must lie between one second and seven days. The signature covers the host and the
// x-amz-* headers, Content-Type and Content-Md5 that req has, so whoever uses the URL must send
// the same ones. The body is not covered. req is not changed.
func Presign(req *http.Request, c Credentials, region, service string, expires time.Duration, now time.Time) (string, error) {
	const op = "auth.Presign"
	seconds := int64(expires / time.Second)
	if seconds < 1 || seconds > maxExpires {
		return "", errs.E(op, errs.Invalid, "expiry must lie between one second and seven days")
	}
	params, ok := parseQuery(req.URL.RawQuery)
	if !ok {
		return "", errs.E(op, errs.Invalid, "query does not decode")
	}
	uris, ok := canonicalURIs(req.URL.EscapedPath())
	if !ok {
		return "", errs.E(op, errs.Invalid, "path does not decode")
	}
	now = now.UTC()
	s := scope{now.Format(dayFormat), region, service}
	signed := headersToSign(req)
	names := strings.Join(signed, ";")
	params = append(params,
		param{"X-Amz-Algorithm", algorithmV4},
		param{"X-Amz-Credential", c.AccessKeyID + "/" + s.String()},
		param{"X-Amz-Date", now.Format(timeFormat)},
		param{"X-Amz-Expires", strconv.FormatInt(seconds, 10)},
		param{"X-Amz-SignedHeaders", names})
	if c.SessionToken != "" {
		params = append(params, param{"X-Amz-Security-Token", c.SessionToken})
	}
	query := canonicalQuery(params, "")
	canonical := canonicalRequest(req.Method, uris[0], query, canonicalHeaders(req, hostOf(req), signed), names, UnsignedPayload)
	u := *req.URL
	u.RawQuery = query + "&X-Amz-Signature=" + signature(signingKey(c.Secret, s), stringToSign(now, s, canonical))
	return u.String(), nil
}

// headersToSign returns the names to cover, lower case and sorted.
func headersToSign(req *http.Request) []string {
	names := []string{"host"}
	for k := range req.Header {
		k = strings.ToLower(k)
		if strings.HasPrefix(k, "x-amz-") || k == "content-type" || k == "content-md5" {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	return names
}

// hostOf returns the Host header that a client request will carry.
func hostOf(req *http.Request) string {
	if req.Host != "" {
		return req.Host
	}
	return req.URL.Host
}
