package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithmV4  = "AWS4-HMAC-SHA256"
	terminator   = "aws4_request"
	timeFormat   = "20060102T150405Z"
	dayFormat    = "20060102"
	emptySHA256  = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	signatureLen = 64 // hex digits of an HMAC-SHA256
)

// scope is the credential scope: what a signing key is good for.
type scope struct {
	day, region, service string
}

func (s scope) String() string {
	return s.day + "/" + s.region + "/" + s.service + "/" + terminator
}

// param is one decoded query parameter.
type param struct{ name, value string }

// parseQuery decodes a raw query. A '+' is a space, as in net/url and in S3: SDKs send %20 for a
// space and %2B for a plus. A ';' separates nothing. ok is false for a bad percent escape.
func parseQuery(raw string) (params []param, ok bool) {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		n, ok1 := unescape(name, true)
		v, ok2 := unescape(value, true)
		if !ok1 || !ok2 {
			return nil, false
		}
		params = append(params, param{n, v})
	}
	return params, true
}

// unescape decodes percent escapes byte by byte.
func unescape(s string, plus bool) (string, bool) {
	if !strings.ContainsAny(s, "%+") {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '%':
			if i+2 >= len(s) {
				return "", false
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi > 15 || lo > 15 {
				return "", false
			}
			b = append(b, hi<<4|lo)
			i += 2
		case c == '+' && plus:
			b = append(b, ' ')
		default:
			b = append(b, c)
		}
	}
	return string(b), true
}

// unhex returns the value of a hex digit, 255 for what is none.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// appendEscaped appends s with every byte but the unreserved ones of RFC 3986 as %XX; slash says
// whether '/' stays.
func appendEscaped(b []byte, s string, slash bool) []byte {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '.', c == '_', c == '~', c == '/' && slash:
			b = append(b, c)
		default:
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}

// canonicalURIs returns the forms of a raw path that signers sign, most likely first: decoded and
// encoded once, as S3 describes it, and as it was sent, which differs where a client escapes a
// slash or uses lower case digits. ok is false for a bad percent escape.
func canonicalURIs(raw string) (uris []string, ok bool) {
	if raw == "" {
		return []string{"/"}, true
	}
	path, ok := unescape(raw, false)
	if !ok {
		return nil, false
	}
	uri := string(appendEscaped(make([]byte, 0, len(raw)+16), path, true))
	if uri == raw {
		return []string{uri}, true
	}
	return []string{uri, raw}, true
}

// canonicalQuery encodes and sorts params, without the parameter named skip.
func canonicalQuery(params []param, skip string) string {
	type pair struct{ name, value string }
	pairs := make([]pair, 0, len(params))
	size := 0
	for _, p := range params {
		if p.name == skip && skip != "" {
			continue
		}
		e := pair{string(appendEscaped(nil, p.name, false)), string(appendEscaped(nil, p.value, false))}
		pairs = append(pairs, e)
		size += len(e.name) + len(e.value) + 2
	}
	slices.SortStableFunc(pairs, func(a, b pair) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		return strings.Compare(a.value, b.value)
	})
	b := make([]byte, 0, size)
	for i, p := range pairs {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(append(append(b, p.name...), '='), p.value...)
	}
	return string(b)
}

// canonicalHeaders returns one line for each name of signed, in that order.
//
// net/http takes some headers out of r.Header, and proxies drop Expect, so those are put back as
// the client must have sent them. A signed header that is not there counts as empty.
func canonicalHeaders(r *http.Request, host string, signed []string) string {
	var b strings.Builder
	for _, name := range signed {
		b.WriteString(name)
		b.WriteByte(':')
		values := r.Header[http.CanonicalHeaderKey(name)]
		switch {
		case name == "host":
			values = []string{host}
		case name == "content-length" && r.ContentLength >= 0:
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		case name == "transfer-encoding" && len(values) == 0:
			values = r.TransferEncoding
		case name == "expect" && len(values) == 0:
			values = []string{"100-continue"}
		}
		for i, v := range values {
			if i > 0 {
				b.WriteByte(',')
			}
			writeTrimmed(&b, v)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// writeTrimmed writes v without outer white space, and runs of spaces as one.
func writeTrimmed(b *strings.Builder, v string) {
	v = strings.Trim(v, " \t")
	for {
		i := strings.Index(v, "  ")
		if i < 0 {
			b.WriteString(v)
			return
		}
		b.WriteString(v[:i+1])
		v = strings.TrimLeft(v[i:], " ")
	}
}

// canonicalRequest joins the six parts.
func canonicalRequest(method, uri, query, headers, signed, payload string) string {
	return method + "\n" + uri + "\n" + query + "\n" + headers + "\n" + signed + "\n" + payload
}

func stringToSign(t time.Time, s scope, canonical string) string {
	sum := sha256.Sum256([]byte(canonical))
	return algorithmV4 + "\n" + t.Format(timeFormat) + "\n" + s.String() + "\n" + hex.EncodeToString(sum[:])
}

func hmacSHA256(key []byte, data string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(data)) //nolint:errcheck // a hash never fails
	return m.Sum(nil)
}

// signingKey derives the key for a scope.
func signingKey(secret string, s scope) []byte {
	k := hmacSHA256([]byte("AWS4"+secret), s.day)
	k = hmacSHA256(k, s.region)
	k = hmacSHA256(k, s.service)
	return hmacSHA256(k, terminator)
}

func signature(key []byte, toSign string) string { return hex.EncodeToString(hmacSHA256(key, toSign)) }

// sameSignature compares in constant time.
func sameSignature(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }
