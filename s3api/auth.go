package s3api

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/gorilla/mux"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/object"
)

// Verifier verifies a request's signature before its body is read; *auth.Verifier is one.
type Verifier interface {
	Verify(r *http.Request) (*auth.Request, error)
}

// Authorizer decides what an identity may do.
type Authorizer = auth.Authorizer

// authenticate verifies the signature, and reads the address again when the name that was signed
// is another than the Host header's (a proxy changed it).
func (c *call) authenticate() error {
	req, err := c.h.Verifier.Verify(c.r)
	if err != nil {
		return err
	}
	c.auth = req
	c.rec.Account, c.rec.AccessKey, c.rec.Principal = req.Identity.AccountID, req.Identity.AccessKeyID, principal(req.Identity)
	if req.Presigned {
		if err := c.hoist(); err != nil {
			return err
		}
	}
	if req.Host == "" || req.Host == c.r.Host || c.h.hostBucket(req.Host) == c.h.hostBucket(c.r.Host) {
		return nil
	}
	r := *c.r
	r.Host = req.Host
	var m mux.RouteMatch
	if !c.h.router.Match(&r, &m) {
		return fail("InvalidURI", "")
	}
	l, ok := c.h.levels[m.Route]
	if !ok {
		return fail("InvalidURI", "")
	}
	c.level = l
	if err := c.address(m.Vars); err != nil {
		return err
	}
	return c.match()
}

// hoist gives a presigned URL's parameters that stand for headers the meaning of the headers, as
// AWS does: SDKs move x-amz-* headers into the query when they presign. What could not have come as
// a header is refused: as metadata it would be stored, and then break or vanish from every answer.
func (c *call) hoist() error {
	kept := c.query[:0]
	for _, p := range c.query {
		n := strings.ToLower(p.name)
		if c.auth.V2 && (p.name == "AWSAccessKeyId" || p.name == "Expires" || p.name == "Signature") {
			continue // the signature itself, verified by now
		}
		if !strings.HasPrefix(n, "x-amz-") || benignParams[p.name] {
			kept = append(kept, p)
			continue
		}
		if !validHeaderName(n) || !validHeaderValue(p.value) {
			return fail("InvalidArgument", "A query parameter that stands for a header has a name or a value that is not valid in one.")
		}
		if c.r.Header.Get(n) == "" {
			c.r.Header.Set(n, p.value)
		}
	}
	c.query = kept
	return nil
}

// validHeaderName reports whether s is a token of RFC 9110.
func validHeaderName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// validHeaderValue reports whether s has no control characters but tabs.
func validHeaderValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7F {
			return false
		}
	}
	return true
}

func principal(id auth.Identity) string {
	switch {
	case id.Anonymous:
		return ""
	case id.UserARN != "":
		return id.UserARN
	}
	return "arn:aws:iam::" + id.AccountID + ":root"
}

// authorizeOperation asks for the action of the request's row on the resource of its path.
func (c *call) authorizeOperation() error {
	action := c.op.action
	if c.op.versionAction != "" && c.query.has("versionId") {
		action = c.op.versionAction
	}
	if action == "" {
		return nil
	}
	return c.allow(action, c.bucket, c.key, c.info.Owner)
}

// allow asks whether the sender may do action on bucket/key; key "" is the bucket, bucket "" all.
func (c *call) allow(action, bucket, key, owner string) error {
	arn := "arn:aws:s3:::" + bucket
	switch {
	case bucket == "":
		arn += "*"
	case key != "":
		arn += "/" + key
	}
	if c.conditions == nil {
		c.conditions = c.conditionKeys()
	}
	return c.h.Authorizer.Authorize(c.ctx, c.auth.Identity, auth.Action(action), auth.Resource{ARN: arn, Owner: owner}, c.conditions)
}

// allowSource checks that the sender may read a copy's source, and that its owner is who it should
// be; it returns the owner.
func (c *call) allowSource(src copySource) (owner string, err error) {
	b, err := c.h.Store.HeadBucket(c.ctx, src.bucket)
	if err != nil {
		return "", err
	}
	if want := c.r.Header.Get("X-Amz-Source-Expected-Bucket-Owner"); want != "" && !sameOwner(want, b.Owner) {
		return "", fail("AccessDenied", "")
	}
	action := "s3:GetObject"
	if src.versionID != nil {
		action = "s3:GetObjectVersion"
	}
	return b.Owner, c.allow(action, src.bucket, src.key, b.Owner)
}

// sameOwner compares an expected owner with an account. Clients send the account id of 12 digits
// or the canonical id; accounts here have the latter.
func sameOwner(want, owner string) bool { return strings.EqualFold(want, owner) }

// conditionKeys are the condition keys of the request that policies may ask for.
func (c *call) conditionKeys() auth.Conditions {
	k := auth.Conditions{
		"aws:SecureTransport": {strconv.FormatBool(c.r.TLS != nil)},
		"aws:CurrentTime":     {c.rec.Start.UTC().Format("2006-01-02T15:04:05Z")},
		"aws:EpochTime":       {strconv.FormatInt(c.rec.Start.Unix(), 10)},
	}
	if ip, _, err := net.SplitHostPort(c.r.RemoteAddr); err == nil {
		k["aws:SourceIp"] = []string{ip}
	}
	for key, v := range map[string]string{
		"aws:UserAgent":                   c.r.UserAgent(),
		"aws:Referer":                     c.r.Referer(),
		"s3:VersionId":                    c.query.get("versionId"),
		"s3:prefix":                       c.query.get("prefix"),
		"s3:delimiter":                    c.query.get("delimiter"),
		"s3:max-keys":                     c.query.get("max-keys"),
		"s3:x-amz-acl":                    c.r.Header.Get("X-Amz-Acl"),
		"s3:x-amz-copy-source":            c.r.Header.Get("X-Amz-Copy-Source"),
		"s3:x-amz-metadata-directive":     c.r.Header.Get("X-Amz-Metadata-Directive"),
		"s3:x-amz-storage-class":          c.r.Header.Get("X-Amz-Storage-Class"),
		"s3:x-amz-content-sha256":         c.r.Header.Get("X-Amz-Content-Sha256"),
		"s3:x-amz-server-side-encryption": c.r.Header.Get("X-Amz-Server-Side-Encryption"),
	} {
		if v != "" {
			k[key] = []string{v}
		}
	}
	return k
}

// hideMissing turns NoSuchKey into AccessDenied for who may not list the bucket: the absence of a
// key is something that only a listing may tell.
func (c *call) hideMissing(err error) error {
	if !errors.Is(err, object.ErrNoSuchKey) {
		return err
	}
	if denied := c.allow("s3:ListBucket", c.bucket, "", c.info.Owner); denied != nil {
		return denied
	}
	return err
}

// reasonCodes is what a refusal of package auth is called on the wire.
var reasonCodes = map[auth.Reason]string{
	auth.ReasonAccessDenied:                      "AccessDenied",
	auth.ReasonSignatureDoesNotMatch:             "SignatureDoesNotMatch",
	auth.ReasonInvalidAccessKeyID:                "InvalidAccessKeyId",
	auth.ReasonInvalidToken:                      "InvalidToken",
	auth.ReasonRequestTimeTooSkewed:              "RequestTimeTooSkewed",
	auth.ReasonExpired:                           "AccessDenied",
	auth.ReasonNotYetValid:                       "AccessDenied",
	auth.ReasonAuthorizationHeaderMalformed:      "AuthorizationHeaderMalformed",
	auth.ReasonAuthorizationQueryParametersError: "AuthorizationQueryParametersError",
	auth.ReasonInvalidArgument:                   "InvalidArgument",
	auth.ReasonInvalidRequest:                    "InvalidRequest",
	auth.ReasonInvalidURI:                        "InvalidURI",
	auth.ReasonMissingSecurityHeader:             "MissingSecurityHeader",
	auth.ReasonSignatureVersionNotSupported:      "InvalidRequest",
	auth.ReasonHeadersNotSigned:                  "AccessDenied",
	auth.ReasonXAmzContentSHA256Mismatch:         "XAmzContentSHA256Mismatch",
	auth.ReasonIncompleteBody:                    "IncompleteBody",
	auth.ReasonInvalidChunkSize:                  "InvalidChunkSizeError",
	auth.ReasonMissingContentLength:              "MissingContentLength",
	auth.ReasonMalformedTrailer:                  "MalformedTrailerError",
	auth.ReasonEntityTooLarge:                    "EntityTooLarge",
	auth.ReasonInvalidPolicyDocument:             "InvalidPolicyDocument",
	auth.ReasonPolicyConditionFailed:             "AccessDenied",
}
