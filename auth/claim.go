package auth

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxExpires is the longest life of a presigned URL in seconds: seven days.
const maxExpires = 7 * 24 * 60 * 60

// claim is what a request says about its signature, well-formed but not verified.
type claim struct {
	accessKeyID string
	scope       scope
	signed      []string // lower case, as the client ordered them; holds "host"
	signature   string   // 64 lower case hex digits
	time        time.Time
	token       string
	presigned   bool
	expires     time.Duration // presigned only
	v2          *claimV2      // instead of all the above
}

// parseAuthorization parses the value of an Authorization header of Signature Version 4.
func parseAuthorization(value string) (claim, *Error) {
	const op = "auth.parseAuthorization"
	var c claim
	bad := func(what string) (claim, *Error) {
		return claim{}, refuse(op, ReasonAuthorizationHeaderMalformed, "The authorization header is malformed; "+what)
	}
	rest, ok := strings.CutPrefix(value, algorithmV4)
	if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
		return bad("the algorithm is not " + algorithmV4 + ".")
	}
	var credential, signed string
	for field := range strings.SplitSeq(rest, ",") {
		name, v, ok := strings.Cut(strings.Trim(field, " \t"), "=")
		if !ok || v == "" {
			return bad("a component is not of the form name=value.")
		}
		var to *string
		switch name {
		case "Credential":
			to = &credential
		case "SignedHeaders":
			to = &signed
		case "Signature":
			to = &c.signature
		default:
			return bad("it has an unknown component.")
		}
		if *to != "" {
			return bad(name + " occurs twice.")
		}
		*to = v
	}
	if credential == "" || signed == "" || c.signature == "" {
		return bad("Credential, SignedHeaders and Signature are required.")
	}
	if c.accessKeyID, c.scope, ok = parseCredential(credential); !ok {
		return bad(`the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".`)
	}
	if c.signed, ok = parseSignedHeaders(signed); !ok {
		return bad("SignedHeaders must be distinct lower case names, host among them.")
	}
	if !isHex(c.signature, signatureLen) {
		return bad("the Signature is not 64 lower case hexadecimal digits.")
	}
	return c, nil
}

// parsePresigned parses the authentication parameters of a presigned URL.
func parsePresigned(params []param) (claim, *Error) {
	const op = "auth.parsePresigned"
	bad := func(what string) (claim, *Error) {
		return claim{}, refuse(op, ReasonAuthorizationQueryParametersError, what)
	}
	var algorithm, credential, date, expires, signed, sig, token string
	fields := map[string]*string{
		"X-Amz-Algorithm": &algorithm, "X-Amz-Credential": &credential, "X-Amz-Date": &date, "X-Amz-Expires": &expires,
		"X-Amz-SignedHeaders": &signed, "X-Amz-Signature": &sig, "X-Amz-Security-Token": &token,
	}
	seen := make(map[string]bool, len(fields))
	for _, p := range params {
		to, ok := fields[p.name]
		if !ok {
			continue
		}
		if seen[p.name] {
			return bad(p.name + " occurs more than once.")
		}
		seen[p.name] = true
		*to = p.value
	}
	switch {
	case algorithm == "AWS4-ECDSA-P256-SHA256":
		return claim{}, refuse(op, ReasonSignatureVersionNotSupported, "Signature Version 4A is not supported; use "+algorithmV4)
	case algorithm != "" && algorithm != algorithmV4:
		return bad(`X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"`)
	case algorithm == "" || credential == "" || date == "" || expires == "" || signed == "" || sig == "":
		return bad("Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, " +
			"X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.")
	}
	c := claim{signature: sig, token: token, presigned: true}
	var ok bool
	if c.accessKeyID, c.scope, ok = parseCredential(credential); !ok {
		return bad(`Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting ` +
			`"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".`)
	}
	if c.signed, ok = parseSignedHeaders(signed); !ok {
		return bad("X-Amz-SignedHeaders must be distinct lower case names, host among them.")
	}
	if !isHex(sig, signatureLen) {
		return bad("X-Amz-Signature is not 64 lower case hexadecimal digits.")
	}
	var err error
	if c.time, err = time.Parse(timeFormat, date); err != nil {
		return bad(`X-Amz-Date must be in the ISO8601 Long Format "yyyyMMdd'T'HHmmss'Z'"`)
	}
	seconds, err := strconv.ParseInt(expires, 10, 64)
	switch {
	case err != nil:
		return bad("X-Amz-Expires should be a number")
	case seconds < 1:
		return bad("X-Amz-Expires must be positive")
	case seconds > maxExpires:
		return bad("X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds")
	}
	c.expires = time.Duration(seconds) * time.Second
	return c, nil
}

// parseCredential splits "id/day/region/service/aws4_request". The id may hold slashes.
func parseCredential(s string) (id string, sc scope, ok bool) {
	p := strings.Split(s, "/")
	n := len(p) - 4
	if n < 1 || p[n+3] != terminator {
		return "", scope{}, false
	}
	id, sc = strings.Join(p[:n], "/"), scope{p[n], p[n+1], p[n+2]}
	if _, err := time.Parse(dayFormat, sc.day); err != nil || id == "" || sc.region == "" || sc.service == "" {
		return "", scope{}, false
	}
	return id, sc, true
}

// parseSignedHeaders splits "a;b;c" and insists on distinct lower case tokens with host.
func parseSignedHeaders(s string) (names []string, ok bool) {
	names = strings.Split(s, ";")
	seen := make(map[string]bool, len(names))
	for _, n := range names {
		if n == "" || seen[n] || strings.IndexFunc(n, notToken) >= 0 {
			return nil, false
		}
		seen[n] = true
	}
	return names, seen["host"]
}

func notToken(c rune) bool {
	return !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", c))
}

// isHex reports whether s is n lower case hex digits.
func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := 0; i < n; i++ {
		if c := s[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// headerTime returns the time of a request that is signed in its header: X-Amz-Date or, without it,
// Date, which must then be signed.
func headerTime(r *http.Request, signed []string) (time.Time, *Error) {
	const op = "auth.headerTime"
	if values := r.Header.Values("X-Amz-Date"); len(values) > 0 {
		if t, ok := parseDate(values[0]); ok && len(values) == 1 {
			return t, nil
		}
	} else if values := r.Header.Values("Date"); len(values) == 1 {
		for _, n := range signed {
			if n != "date" {
				continue
			}
			if t, ok := parseDate(values[0]); ok {
				return t, nil
			}
		}
	}
	return time.Time{}, refuse(op, ReasonAccessDenied, "AWS authentication requires a valid Date or x-amz-date header")
}

// parseDate parses the forms of a date that clients send: that of version 4 and those of HTTP.
func parseDate(value string) (t time.Time, ok bool) {
	for _, layout := range []string{timeFormat, http.TimeFormat, time.RFC1123Z, time.RFC850, time.ANSIC} {
		if t, err := time.Parse(layout, value); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}
