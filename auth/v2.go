package auth

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // Signature Version 2 is defined by it
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// algorithmV2 is the scheme of an Authorization header of Signature Version 2.
const algorithmV2 = "AWS"

// signedParamsV2 are the query parameters that Signature Version 2 covers: the documented
// sub-resources and overrides of answer headers, those that the SDKs of AWS added later, and every
// other one by which an operation is chosen. Without the last, whoever holds a presigned URL could
// turn it into another operation on the same path.
var signedParamsV2 = paramSet(
	// "Constructing the CanonicalizedResource element"
	"acl", "delete", "lifecycle", "location", "logging", "notification", "partNumber", "policy", "requestPayment", "torrent",
	"uploadId", "uploads", "versionId", "versioning", "versions", "website",
	"response-cache-control", "response-content-disposition", "response-content-encoding", "response-content-language",
	"response-content-type", "response-expires",
	// added by SDKs
	"accelerate", "analytics", "cors", "defaultObjectAcl", "encryption", "inventory", "legal-hold", "metrics", "object-lock",
	"replication", "restore", "retention", "select", "select-type", "storageClass", "tagging",
	// younger than the signers
	"abac", "attributes", "intelligent-tiering", "metadataConfiguration", "metadataInventoryTable", "metadataJournalTable",
	"metadataTable", "ownershipControls", "policyStatus", "publicAccessBlock", "renameObject", "session",
)

func paramSet(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// SignedByV2 reports whether Signature Version 2 covers the query parameter name.
func SignedByV2(name string) bool { return signedParamsV2[name] }

// secretHeaders are x-amz-* headers whose values no error may repeat.
var secretHeaders = paramSet("x-amz-security-token", "x-amz-server-side-encryption-customer-key",
	"x-amz-copy-source-server-side-encryption-customer-key")

// claimV2 is what a request says about its signature of version 2, well-formed but not verified.
type claimV2 struct {
	accessKeyID string
	signature   string
	// date stands in the string to sign: the Date header, "" where x-amz-date replaces it, or the
	// Expires of a presigned URL.
	date      string
	time      time.Time // of a header
	expiry    time.Time // of a presigned URL
	presigned bool
}

// parseAuthorizationV2 parses an Authorization header "AWS id:signature" and the date it is used
// with. The id may hold colons; a signature has none.
func parseAuthorizationV2(r *http.Request, value string) (*claimV2, *Error) {
	const op = "auth.parseAuthorizationV2"
	rest := strings.Trim(strings.TrimPrefix(value, algorithmV2), " \t")
	i := strings.LastIndexByte(rest, ':')
	if i < 1 || i == len(rest)-1 || strings.ContainsAny(rest, " \t") {
		return nil, refuse(op, ReasonInvalidArgument, "AWS authorization header is invalid. Expected AwsAccessKeyId:signature")
	}
	c := &claimV2{accessKeyID: rest[:i], signature: rest[i+1:]}
	var err *Error
	if c.time, err = headerTime(r, []string{"date"}); err != nil {
		return nil, err
	}
	// "When an x-amz-date header is present, the system will ignore any Date header."
	if len(r.Header.Values("X-Amz-Date")) == 0 {
		c.date = r.Header.Get("Date")
	}
	return c, nil
}

// parsePresignedV2 parses the authentication parameters of a URL presigned by version 2.
func parsePresignedV2(params []param) (*claimV2, *Error) {
	const op = "auth.parsePresignedV2"
	c := &claimV2{presigned: true}
	for _, p := range params {
		var to *string
		switch p.name {
		case "AWSAccessKeyId":
			to = &c.accessKeyID
		case "Signature":
			to = &c.signature
		case "Expires":
			to = &c.date
		default:
			continue
		}
		if *to != "" {
			return nil, refuse(op, ReasonAccessDenied, p.name+" occurs more than once.")
		}
		*to = p.value
	}
	if c.accessKeyID == "" || c.signature == "" || c.date == "" {
		return nil, refuse(op, ReasonAccessDenied, "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters")
	}
	seconds, err := strconv.ParseUint(c.date, 10, 62)
	if err != nil {
		return nil, refuse(op, ReasonAccessDenied, "Invalid date (should be seconds since epoch)")
	}
	c.expiry = time.Unix(int64(seconds), 0) //nolint:gosec // 62 bits
	return c, nil
}

// verifyV2 verifies a signature of version 2. It covers the method, Content-MD5, Content-Type, the
// date, every x-amz-* header, the path with its bucket, and the parameters of signedParamsV2. It
// covers neither the host, beyond its bucket, nor the other parameters, nor the body.
//
// Source: Amazon S3 User Guide, "Signing and authenticating REST requests (AWS signature version 2)".
func (v *Verifier) verifyV2(r *http.Request, c *claimV2, params []param) (*Request, *Error) {
	const op = "auth.Verify"
	secret, id, err := v.lookup(r.Context(), op, c.accessKeyID)
	if err != nil {
		return nil, err
	}
	if !c.presigned {
		err = v.checkTime(claim{time: c.time})
	} else if v.cfg.Now().After(c.expiry) {
		err = refuse(op, ReasonExpired, "Request has expired")
	}
	if err != nil {
		return nil, err
	}
	amz, err := amzHeadersV2(r, params, c.presigned)
	if err != nil {
		return nil, err
	}
	host, err := v.matchV2(r, c, params, amz, secret)
	if err != nil {
		return nil, err
	}
	token, payload := "", UnsignedPayload
	out := &Request{Identity: id, Host: host, Region: v.cfg.Region, Service: "s3", V2: true, Presigned: c.presigned, Time: c.time}
	for _, h := range amz {
		out.SignedHeaders = append(out.SignedHeaders, h.name)
		switch h.name {
		case "x-amz-security-token":
			token = h.value
		case "x-amz-content-sha256":
			payload = h.value
		}
	}
	if err := checkToken(id, token); err != nil {
		return nil, err
	}
	// A digest is held to, like that of a request of version 4; setBody refuses signed chunks, for
	// which version 2 has no signature to begin with.
	if err := setBody(out, r, payload, nil, nil); err != nil {
		return nil, err
	}
	return out, nil
}

// amzHeadersV2 returns the x-amz-* headers, lower case, sorted and joined. The signers of presigned
// URLs move them into the query and cover them as if they had stayed headers; these leave out
// x-amz-date, which means nothing beside Expires.
func amzHeadersV2(r *http.Request, params []param, presigned bool) ([]param, *Error) {
	const op = "auth.amzHeadersV2"
	var amz []param
	for name, values := range r.Header {
		name = strings.ToLower(name)
		if !strings.HasPrefix(name, "x-amz-") || presigned && name == "x-amz-date" {
			continue
		}
		if name == "x-amz-content-sha256" && len(values) > 1 {
			return nil, refuse(op, ReasonInvalidRequest, "x-amz-content-sha256 occurs more than once")
		}
		trimmed := make([]string, len(values))
		for i, value := range values {
			trimmed[i] = strings.Trim(value, " \t")
		}
		amz = append(amz, param{name, strings.Join(trimmed, ",")})
	}
	if presigned {
		for _, p := range params {
			name := strings.ToLower(p.name)
			switch {
			case !strings.HasPrefix(name, "x-amz-"), name == "x-amz-date":
				continue
			case name == "x-amz-expires", name == "x-amz-signedheaders":
				return nil, refuse(op, ReasonInvalidArgument, p.name+" belongs to another signature version")
			case slices.ContainsFunc(amz, func(h param) bool { return h.name == name }):
				return nil, refuse(op, ReasonInvalidRequest, p.name+" occurs more than once")
			case strings.ContainsFunc(name, notToken), strings.ContainsFunc(p.value, notPrintable):
				// Such a value could pass for several headers.
				return nil, refuse(op, ReasonInvalidRequest, "A query parameter is not valid as the header that it stands for")
			}
			amz = append(amz, param{name, strings.Trim(p.value, " \t")})
		}
	}
	slices.SortFunc(amz, func(a, b param) int { return strings.Compare(a.name, b.name) })
	return amz, nil
}

func notPrintable(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }

// matchV2 tries the forms in which the client may have signed, and returns the host that it meant.
func (v *Verifier) matchV2(r *http.Request, c *claimV2, params []param, amz []param, secret string) (host string, err *Error) {
	const op = "auth.Verify"
	uris, ok := canonicalURIs(r.URL.EscapedPath())
	if !ok {
		return "", refuse(op, ReasonInvalidURI, "Couldn't parse the specified URI.")
	}
	slices.Reverse(uris) // version 2 signs the path as it was sent
	query := signedQueryV2(params)
	head := r.Method + "\n" + r.Header.Get("Content-Md5") + "\n" + r.Header.Get("Content-Type") + "\n" + c.date + "\n"
	headers := joinHeadersV2(amz, false)
	first := ""
	for _, host := range v.hosts(r.Host) {
		bucket := v.cfg.HostBucket(host)
		if bucket != "" {
			bucket = "/" + bucket
		}
		for _, uri := range uris {
			resource := bucket + uri + query
			if sameSignature(signatureV2(secret, head+headers+resource), c.signature) {
				return host, nil
			}
			if first == "" {
				first = resource
			}
		}
	}
	e := refuse(op, ReasonSignatureDoesNotMatch,
		"The request signature we calculated does not match the signature you provided. Check your key and signing method.")
	e.AccessKeyID, e.StringToSign = c.accessKeyID, head+joinHeadersV2(amz, true)+first
	return "", e
}

// joinHeadersV2 writes the lines of the headers; hide leaves secrets out, for what others read.
func joinHeadersV2(amz []param, hide bool) string {
	var b strings.Builder
	for _, h := range amz {
		value := h.value
		if hide && secretHeaders[h.name] {
			value = "[hidden]"
		}
		b.WriteString(h.name + ":" + value + "\n")
	}
	return b.String()
}

// signedQueryV2 returns the covered part of a query: sorted by name, decoded, and without "=" where
// there is no value. A repeated parameter is covered each time.
func signedQueryV2(params []param) string {
	var signed []param
	for _, p := range params {
		if signedParamsV2[p.name] {
			signed = append(signed, p)
		}
	}
	slices.SortStableFunc(signed, func(a, b param) int { return strings.Compare(a.name, b.name) })
	var b strings.Builder
	for i, p := range signed {
		b.WriteByte("?&"[min(i, 1)])
		b.WriteString(p.name)
		if p.value != "" {
			b.WriteString("=" + p.value)
		}
	}
	return b.String()
}

func signatureV2(secret, toSign string) string {
	m := hmac.New(sha1.New, []byte(secret))
	m.Write([]byte(toSign)) //nolint:errcheck // a hash never fails
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}
