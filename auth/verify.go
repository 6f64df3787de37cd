package auth

import (
	"bytes"
	"context"
	"crypto/subtle"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka/ostraka/internal/checksum"
)

// DefaultMaxSkew is how far S3 lets a request's date be from the server's clock.
const DefaultMaxSkew = 15 * time.Minute

// maxFormBody bounds the body of the query APIs (IAM, STS), whose signers leave out the payload
// hash, so that the body must be read before its signature can be checked.
const maxFormBody = 1 << 20

// Config says what a Verifier accepts.
type Config struct {
	Keys   KeySource // required
	Region string    // the region of this store; "" accepts any
	// AnyRegion accepts every region in a credential scope, whatever Region is. Most clients of a
	// store of one's own name an arbitrary one.
	AnyRegion bool
	// PublicHosts are names, with the port if it is not the scheme's own, under which a reverse
	// proxy publishes this store while it sends another Host. Each costs one more attempt.
	PublicHosts []string
	Now         func() time.Time // nil: time.Now
	MaxSkew     time.Duration    // 0: DefaultMaxSkew
	// PostV2 also accepts Signature Version 2 in POST forms.
	PostV2 bool
	// V2 also accepts requests to S3 and presigned URLs of Signature Version 2, which leaves the
	// body, most of the query and the host uncovered, and rests on SHA-1. What reads anything else
	// of a request, such as an admin interface, must not have it.
	V2 bool
	// HostBucket returns the bucket that a Host header names, or "" for a path-style address. V2
	// needs it, and is off without it: version 2 signs the bucket's name and not the host, so who
	// verifies and who serves must read the same bucket from it.
	HostBucket func(host string) string
}

// Verifier verifies requests. It is safe for concurrent use.
type Verifier struct {
	cfg  Config
	keys keyCache
}

// NewVerifier returns a verifier for cfg.
func NewVerifier(cfg Config) *Verifier {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxSkew == 0 {
		cfg.MaxSkew = DefaultMaxSkew
	}
	if cfg.HostBucket == nil {
		cfg.V2 = false
	}
	return &Verifier{cfg: cfg}
}

// Request is a request whose signature holds.
type Request struct {
	Identity Identity
	// Body delivers the decoded payload; see the package's invariants. Close closes the request's
	// body. It is not safe for concurrent use.
	Body io.ReadCloser
	// DecodedLength is the length of Body, -1 if it is not known.
	DecodedLength int64
	Mode          PayloadMode
	// PayloadSHA256 is the lower case hex digest that the client declared, or "".
	PayloadSHA256 string
	// Host is the host that was signed, or r.Host of an anonymous request. Only this one may say
	// which bucket is meant.
	Host          string
	Region        string
	Service       string
	Presigned     bool
	V2            bool // signed by Signature Version 2
	SignedHeaders []string
	Time          time.Time     // of the signature; zero for anonymous requests and URLs presigned by V2, which do not say it
	Expires       time.Duration // of a presigned URL, counted from Time; zero with V2

	trailers func() http.Header
}

// Trailers returns the trailers of the body. They are valid once Body has returned io.EOF or
// DecodedLength bytes, and nil before.
func (r *Request) Trailers() http.Header {
	if r.trailers == nil {
		return nil
	}
	return r.trailers()
}

// Verify verifies a request to S3. It reads nothing of the body. A request without any signature is
// anonymous, which is not an error. Every error is an *Error.
func (v *Verifier) Verify(r *http.Request) (*Request, error) { return v.VerifyService(r, "s3") }

// VerifyService is Verify for a credential scope that names service: "s3", "iam" or "sts". For
// services other than s3, a request without x-amz-content-sha256 has its body read, up to 1 MiB.
func (v *Verifier) VerifyService(r *http.Request, service string) (*Request, error) {
	out, err := v.verify(r, service)
	if err != nil {
		return nil, err // not the typed nil
	}
	return out, nil
}

func (v *Verifier) verify(r *http.Request, service string) (*Request, *Error) {
	const op = "auth.Verify"
	params, ok := parseQuery(r.URL.RawQuery)
	if !ok {
		return nil, refuse(op, ReasonInvalidURI, "Couldn't parse the specified URI.")
	}
	c, anonymous, err := findClaim(r, params, v.cfg.V2 && service == "s3")
	if err != nil {
		return nil, err
	}
	if anonymous {
		return v.anonymous(r, service)
	}
	if c.v2 != nil {
		return v.verifyV2(r, c.v2, params)
	}
	if err := v.checkScope(c, service); err != nil {
		return nil, err
	}
	secret, id, err := v.lookup(r.Context(), op, c.accessKeyID)
	if err != nil {
		return nil, err
	}
	if err := v.checkTime(c); err != nil {
		return nil, err
	}
	if err := checkUnsigned(r, c); err != nil {
		return nil, err
	}
	payloads, form, err := payloadsOf(r, c, params, service)
	if err != nil {
		return nil, err
	}
	key := v.keys.derive(c.accessKeyID, secret, c.scope)
	payload, host, err := v.match(r, c, params, key, payloads)
	if err != nil {
		return nil, err
	}
	v.keys.keep(c.accessKeyID, secret, c.scope, key)
	if err := checkToken(id, c.token); err != nil {
		return nil, err
	}
	out := &Request{
		Identity: id, Host: host, Region: c.scope.region, Service: service, Presigned: c.presigned,
		SignedHeaders: c.signed, Time: c.time, Expires: c.expires,
	}
	sig := &chunkSignature{key: key, time: c.time.Format(timeFormat), scope: c.scope.String(), previous: c.signature}
	if err := setBody(out, r, payload, form, sig); err != nil {
		return nil, err
	}
	return out, nil
}

// findClaim finds the one mechanism by which r is signed, if any. allowV2 admits version 2.
func findClaim(r *http.Request, params []param, allowV2 bool) (c claim, anonymous bool, err *Error) {
	const op = "auth.findClaim"
	var v4, v2ID, v2Signature bool
	for _, p := range params {
		switch p.name {
		case "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature":
			v4 = true
		case "AWSAccessKeyId":
			v2ID = true
		case "Signature":
			v2Signature = true
		}
	}
	headers := r.Header.Values("Authorization")
	v2 := v2ID && v2Signature || allowV2 && (v2ID || v2Signature)
	n := len(headers)
	if v4 {
		n++
	}
	if v2 {
		n++
	}
	if n > 1 {
		return c, false, refuse(op, ReasonInvalidArgument, "Only one auth mechanism allowed; only the X-Amz-Algorithm query "+
			"parameter, Signature query string parameter or the Authorization header should be specified")
	}
	switch {
	case n == 0:
		return c, true, nil
	case v2 && allowV2:
		c.v2, err = parsePresignedV2(params)
		return c, false, err
	case v2:
		return c, false, refuse(op, ReasonSignatureVersionNotSupported,
			"The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")
	case v4:
		c, err = parsePresigned(params)
		if err == nil && c.time.Format(dayFormat) != c.scope.day {
			err = refuse(op, ReasonAuthorizationQueryParametersError, "Invalid credential date. This date is not the same as X-Amz-Date.")
		}
		return c, false, err
	}
	value := strings.Trim(headers[0], " \t")
	scheme, _, _ := strings.Cut(value, " ")
	switch {
	case scheme == algorithmV2 && allowV2:
		c.v2, err = parseAuthorizationV2(r, value)
		return c, false, err
	case scheme == algorithmV2, strings.HasPrefix(scheme, "AWS4-ECDSA-"):
		return c, false, refuse(op, ReasonSignatureVersionNotSupported,
			"The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")
	case !strings.HasPrefix(scheme, algorithmV4):
		return c, false, refuse(op, ReasonInvalidArgument, "Unsupported Authorization Type")
	}
	if c, err = parseAuthorization(value); err != nil {
		return c, false, err
	}
	c.token = r.Header.Get("X-Amz-Security-Token")
	if c.time, err = headerTime(r, c.signed); err != nil {
		return c, false, err
	}
	if c.time.Format(dayFormat) != c.scope.day {
		return c, false, refuse(op, ReasonAuthorizationHeaderMalformed,
			"The authorization header is malformed; Invalid credential date. This date is not the same as X-Amz-Date.")
	}
	return c, false, nil
}

// malformed is the reason for a claim of the wrong content, which differs by form.
func (c claim) malformed() Reason {
	if c.presigned {
		return ReasonAuthorizationQueryParametersError
	}
	return ReasonAuthorizationHeaderMalformed
}

func (v *Verifier) checkScope(c claim, service string) *Error {
	const op = "auth.checkScope"
	if c.scope.service != service {
		return refuse(op, c.malformed(), "The credential scope names an incorrect service; this endpoint belongs to \""+service+"\".")
	}
	if !v.cfg.AnyRegion && v.cfg.Region != "" && c.scope.region != v.cfg.Region {
		e := refuse(op, ReasonAuthorizationHeaderMalformed,
			"The authorization header is malformed; the region in the credential scope is wrong; expecting '"+v.cfg.Region+"'")
		if c.presigned {
			e = refuse(op, ReasonAuthorizationQueryParametersError,
				"Error parsing the X-Amz-Credential parameter; the region is wrong; expecting '"+v.cfg.Region+"'")
		}
		e.Region = v.cfg.Region
		return e
	}
	return nil
}

func (v *Verifier) checkTime(c claim) *Error {
	const op = "auth.checkTime"
	ahead := c.time.Sub(v.cfg.Now())
	switch {
	case c.presigned && ahead > v.cfg.MaxSkew:
		return refuse(op, ReasonNotYetValid, "Request is not yet valid")
	case c.presigned && -ahead > c.expires:
		return refuse(op, ReasonExpired, "Request has expired")
	case !c.presigned && (ahead > v.cfg.MaxSkew || -ahead > v.cfg.MaxSkew):
		return refuse(op, ReasonRequestTimeTooSkewed, "The difference between the request time and the current time is too large.")
	}
	return nil
}

// checkUnsigned refuses x-amz-* headers that no signature covers: a copy source or an ACL added to
// somebody's presigned URL would do what its maker never allowed. Of a presigned URL, the payload
// hash is exempt, since it only narrows what is accepted, and the date, since the query has it.
func checkUnsigned(r *http.Request, c claim) *Error {
	var unsigned []string
	for name := range r.Header {
		name = strings.ToLower(name)
		if !strings.HasPrefix(name, "x-amz-") || slices.Contains(c.signed, name) {
			continue
		}
		if c.presigned && (name == "x-amz-content-sha256" || name == "x-amz-date") {
			continue
		}
		unsigned = append(unsigned, name)
	}
	if unsigned == nil {
		return nil
	}
	slices.Sort(unsigned)
	e := refuse("auth.checkUnsigned", ReasonHeadersNotSigned, "There were headers present in the request which were not signed")
	e.Headers = unsigned
	return e
}

// payloadsOf returns the payload values that the signature may have been made with. form is the
// body, where it had to be read for that.
func payloadsOf(r *http.Request, c claim, params []param, service string) (payloads []string, form []byte, err *Error) {
	const op = "auth.payloadsOf"
	headers := r.Header.Values("X-Amz-Content-Sha256")
	if len(headers) > 1 {
		return nil, nil, refuse(op, ReasonInvalidRequest, "x-amz-content-sha256 occurs more than once")
	}
	if c.presigned {
		// A covered header decides; else what the signer put into the query, else the rule that the
		// body is not covered. Some SDKs sign the header's value without covering the header.
		if len(headers) == 1 && slices.Contains(c.signed, "x-amz-content-sha256") {
			return headers, nil, nil
		}
		for _, p := range params {
			if strings.EqualFold(p.name, "X-Amz-Content-Sha256") {
				return []string{p.value}, nil, nil
			}
		}
		payloads = append([]string{UnsignedPayload}, headers...)
		if service != "s3" {
			// Other services have no unsigned payload: their URLs cover an empty body.
			payloads = append(payloads, emptySHA256)
		}
		return payloads, nil, nil
	}
	if len(headers) == 1 {
		return headers, nil, nil
	}
	if service == "s3" {
		return nil, nil, refuse(op, ReasonMissingSecurityHeader, "Missing required header for this request: x-amz-content-sha256")
	}
	if r.Body != nil {
		var e error
		if form, e = io.ReadAll(io.LimitReader(r.Body, maxFormBody+1)); e != nil {
			return nil, nil, bodyError(op, e)
		}
		if len(form) > maxFormBody {
			return nil, nil, refuse(op, ReasonEntityTooLarge, "Your request is larger than the maximum allowed size")
		}
	}
	if form == nil {
		form = []byte{}
	}
	return []string{HashPayload(form)}, form, nil
}

// match tries the forms in which the client may have signed, and returns the one that fits.
func (v *Verifier) match(r *http.Request, c claim, params []param, key []byte, payloads []string) (payload, host string, err *Error) {
	const op = "auth.Verify"
	uris, ok := canonicalURIs(r.URL.EscapedPath())
	if !ok {
		return "", "", refuse(op, ReasonInvalidURI, "Couldn't parse the specified URI.")
	}
	skip := ""
	if c.presigned {
		skip = "X-Amz-Signature"
	}
	query := canonicalQuery(params, skip)
	names := strings.Join(c.signed, ";")
	first := ""
	for _, host := range v.hosts(r.Host) {
		headers := canonicalHeaders(r, host, c.signed)
		for _, uri := range uris {
			for _, payload := range payloads {
				toSign := stringToSign(c.time, c.scope, canonicalRequest(r.Method, uri, query, headers, names, payload))
				if sameSignature(signature(key, toSign), c.signature) {
					return payload, host, nil
				}
				if first == "" {
					first = toSign
				}
			}
		}
	}
	e := refuse(op, ReasonSignatureDoesNotMatch,
		"The request signature we calculated does not match the signature you provided. Check your key and signing method.")
	e.AccessKeyID, e.StringToSign = c.accessKeyID, first
	return "", "", e
}

// hosts returns the names that the client may have signed: the Host header, the same without the
// port that belongs to its scheme, which some signers leave out, and the public names.
func (v *Verifier) hosts(host string) []string {
	out := []string{host}
	for _, port := range []string{":80", ":443"} {
		if h, ok := strings.CutSuffix(host, port); ok {
			out = append(out, h)
		}
	}
	for _, h := range v.cfg.PublicHosts {
		if !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}

// checkToken compares the session token of temporary credentials.
func checkToken(id Identity, token string) *Error {
	if subtle.ConstantTimeCompare([]byte(id.SessionToken), []byte(token)) == 1 {
		return nil
	}
	return refuse("auth.checkToken", ReasonInvalidToken, "The provided token is malformed or otherwise invalid.")
}

func (v *Verifier) anonymous(r *http.Request, service string) (*Request, *Error) {
	const op = "auth.Verify"
	payload := UnsignedPayload
	switch headers := r.Header.Values("X-Amz-Content-Sha256"); len(headers) {
	case 0:
	case 1:
		payload = headers[0]
	default:
		return nil, refuse(op, ReasonInvalidRequest, "x-amz-content-sha256 occurs more than once")
	}
	out := &Request{Identity: Identity{Anonymous: true}, Host: r.Host, Region: v.cfg.Region, Service: service}
	if err := setBody(out, r, payload, nil, nil); err != nil {
		return nil, err
	}
	return out, nil
}

// setBody gives out its body. payload is the value that the signature covers; form is the body if
// it was read and verified; sig is nil where there is no signature to chain chunks to.
func setBody(out *Request, r *http.Request, payload string, form []byte, sig *chunkSignature) *Error {
	const op = "auth.setBody"
	body := r.Body
	if body == nil {
		body = http.NoBody
	}
	mode, err := parsePayload(payload)
	if err != nil {
		return err
	}
	// An unsigned header on a presigned URL narrows what the signature leaves open; it cannot
	// replace what the signature covers.
	if h := r.Header.Get("X-Amz-Content-Sha256"); h != "" && h != payload {
		if mode != ModeUnsigned {
			return refuse(op, ReasonInvalidRequest, "x-amz-content-sha256 differs from the payload hash that was signed")
		}
		if mode, err = parsePayload(h); err != nil {
			return err
		}
		payload = h
	}
	if mode.signedChunks() && (sig == nil || out.Presigned) {
		return refuse(op, ReasonInvalidRequest, "x-amz-content-sha256 names signed chunks, which need an Authorization header")
	}
	out.Mode = mode
	if mode == ModeSHA256 {
		out.PayloadSHA256 = strings.ToLower(payload)
	}
	announced, err := announcedTrailers(r)
	if err != nil {
		return err
	}
	if len(announced) > 0 && !mode.hasTrailers() {
		return refuse(op, ReasonInvalidRequest, "x-amz-trailer needs an x-amz-content-sha256 of a payload with trailers")
	}
	if mode.streaming() {
		length, err := decodedLength(r)
		if err != nil {
			return err
		}
		if !mode.signedChunks() {
			sig = nil
		}
		b := newChunkedBody(body, length, sig, mode.hasTrailers(), announced)
		out.Body, out.DecodedLength, out.trailers = b, length, b.Trailers
		return nil
	}
	if form != nil {
		out.Body, out.DecodedLength, out.PayloadSHA256 = formBody{bytes.NewReader(form), body}, int64(len(form)), HashPayload(form)
		return nil
	}
	out.DecodedLength = r.ContentLength
	if body == http.NoBody {
		out.DecodedLength = 0
	}
	if mode == ModeSHA256 && out.DecodedLength == 0 && out.PayloadSHA256 != emptySHA256 {
		return refuse(op, ReasonXAmzContentSHA256Mismatch, mismatchText)
	}
	out.Body = newPlainBody(body, out.DecodedLength, out.PayloadSHA256)
	return nil
}

// formBody is a body that was read already.
type formBody struct {
	*bytes.Reader
	io.Closer
}

// announcedTrailers parses x-amz-trailer. Only checksums can be trailers.
func announcedTrailers(r *http.Request) ([]string, *Error) {
	var names []string
	for _, line := range r.Header.Values("X-Amz-Trailer") {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.ToLower(strings.Trim(name, " \t"))
			if name == "" {
				continue
			}
			if _, ok := checksum.FromHeader(name); !ok || slices.Contains(names, name) {
				return nil, refuse("auth.announcedTrailers", ReasonInvalidRequest,
					"The value specified in the x-amz-trailer header is not supported")
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// decodedLength parses x-amz-decoded-content-length.
func decodedLength(r *http.Request) (int64, *Error) {
	const op = "auth.decodedLength"
	values := r.Header.Values("X-Amz-Decoded-Content-Length")
	if len(values) == 0 {
		return 0, refuse(op, ReasonMissingContentLength, "You must provide the x-amz-decoded-content-length HTTP header.")
	}
	n, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil || len(values) > 1 {
		return 0, refuse(op, ReasonInvalidArgument, "x-amz-decoded-content-length is invalid")
	}
	return int64(n), nil
}

// lookup finds a secret and makes sure that the identity says by which key it came.
func (v *Verifier) lookup(ctx context.Context, op, accessKeyID string) (secret string, id Identity, err *Error) {
	secret, id, ok := v.cfg.Keys.Secret(ctx, accessKeyID)
	if !ok {
		e := refuse(op, ReasonInvalidAccessKeyID, "The AWS Access Key Id you provided does not exist in our records.")
		e.AccessKeyID = accessKeyID
		return "", Identity{}, e
	}
	id.Anonymous, id.AccessKeyID = false, accessKeyID
	return secret, id, nil
}
