package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxPolicy bounds the base64 text of a POST policy.
const maxPolicy = 64 << 10

// PostPolicy is a POST form that may be carried out.
type PostPolicy struct {
	Identity   Identity
	Expiration time.Time // zero without a policy
	// MinLength and MaxLength bound the file, inclusively; MaxLength is -1 without a bound.
	MinLength, MaxLength int64
}

// CheckLength says whether a file of n bytes is within content-length-range.
func (p *PostPolicy) CheckLength(n int64) error {
	switch {
	case n < p.MinLength:
		return refuse("auth.CheckLength", ReasonEntityTooSmall, "Your proposed upload is smaller than the minimum allowed size")
	case p.MaxLength >= 0 && n > p.MaxLength:
		return refuse("auth.CheckLength", ReasonEntityTooLarge, "Your proposed upload exceeds the maximum allowed size")
	}
	return nil
}

// VerifyPostPolicy verifies a browser's POST upload: the signature over the policy, the policy's
// expiration, and that every field of the form is covered by a condition that holds.
//
// form has the fields before the file, named in lower case, with ${filename} in the key already
// replaced; a repeated field is the caller's to refuse. bucket is the one that the request names.
// A form without policy and signature is anonymous, like such a request. Every error is an *Error.
//
// Source: Amazon S3 API Reference, "Browser-Based Uploads Using POST".
func (v *Verifier) VerifyPostPolicy(ctx context.Context, bucket string, form map[string]string) (*PostPolicy, error) {
	const op = "auth.VerifyPostPolicy"
	policy, hasPolicy := form["policy"]
	signedV4 := has(form, "x-amz-signature", "x-amz-credential", "x-amz-algorithm")
	signedV2 := has(form, "signature", "awsaccesskeyid")
	switch {
	case !hasPolicy && !signedV4 && !signedV2:
		return &PostPolicy{Identity: Identity{Anonymous: true}, MaxLength: -1}, nil
	case signedV4 && signedV2:
		return nil, refuse(op, ReasonInvalidArgument, "Only one auth mechanism allowed")
	case !hasPolicy:
		return nil, refuse(op, ReasonInvalidArgument, "Bucket POST must contain a field named 'policy'.")
	case len(policy) > maxPolicy:
		return nil, refuse(op, ReasonInvalidPolicyDocument, "Invalid Policy: it is too long.")
	}
	var id Identity
	var err *Error
	if signedV2 {
		id, err = v.postV2(ctx, form, policy)
	} else {
		id, err = v.postV4(ctx, form, policy)
	}
	if err != nil {
		return nil, err
	}
	out := &PostPolicy{Identity: id}
	doc, err := parsePolicy(policy)
	if err != nil {
		return nil, err
	}
	if !v.cfg.Now().Before(doc.expiration) {
		return nil, refuse(op, ReasonExpired, "Invalid according to Policy: Policy expired.")
	}
	if err := doc.evaluate(bucket, form); err != nil {
		return nil, err
	}
	out.Expiration, out.MinLength, out.MaxLength = doc.expiration, doc.min, doc.max
	return out, nil
}

func has(form map[string]string, names ...string) bool {
	for _, n := range names {
		if _, ok := form[n]; ok {
			return true
		}
	}
	return false
}

func (v *Verifier) postV4(ctx context.Context, form map[string]string, policy string) (Identity, *Error) {
	const op = "auth.VerifyPostPolicy"
	for _, n := range []string{"x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"} {
		if form[n] == "" {
			return Identity{}, refuse(op, ReasonInvalidArgument, "Bucket POST must contain a field named '"+n+"'.")
		}
	}
	if form["x-amz-algorithm"] != algorithmV4 {
		return Identity{}, refuse(op, ReasonSignatureVersionNotSupported, "X-Amz-Algorithm only supports \""+algorithmV4+"\"")
	}
	key, s, ok := parseCredential(form["x-amz-credential"])
	if !ok {
		return Identity{}, refuse(op, ReasonInvalidArgument, "The X-Amz-Credential field is mal-formed")
	}
	t, e := time.Parse(timeFormat, form["x-amz-date"])
	if e != nil || t.Format(dayFormat) != s.day {
		return Identity{}, refuse(op, ReasonInvalidArgument, "The X-Amz-Date field is mal-formed or differs from the credential's date")
	}
	if err := v.checkScope(claim{scope: s}, "s3"); err != nil {
		return Identity{}, err
	}
	secret, id, err := v.lookup(ctx, op, key)
	if err != nil {
		return Identity{}, err
	}
	derived := v.keys.derive(key, secret, s)
	if !sameSignature(signature(derived, policy), form["x-amz-signature"]) {
		return Identity{}, postMismatch(key)
	}
	v.keys.keep(key, secret, s, derived)
	return id, checkToken(id, form["x-amz-security-token"])
}

func (v *Verifier) postV2(ctx context.Context, form map[string]string, policy string) (Identity, *Error) {
	const op = "auth.VerifyPostPolicy"
	if !v.cfg.PostV2 {
		return Identity{}, refuse(op, ReasonSignatureVersionNotSupported,
			"The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")
	}
	for _, n := range []string{"AWSAccessKeyId", "Signature"} {
		if form[strings.ToLower(n)] == "" {
			return Identity{}, refuse(op, ReasonInvalidArgument, "Bucket POST must contain a field named '"+n+"'.")
		}
	}
	key := form["awsaccesskeyid"]
	secret, id, err := v.lookup(ctx, op, key)
	if err != nil {
		return Identity{}, err
	}
	if !sameSignature(signatureV2(secret, policy), form["signature"]) {
		return Identity{}, postMismatch(key)
	}
	return id, checkToken(id, form["x-amz-security-token"])
}

func postMismatch(key string) *Error {
	e := refuse("auth.VerifyPostPolicy", ReasonSignatureDoesNotMatch,
		"The request signature we calculated does not match the signature you provided. Check your key and signing method.")
	e.AccessKeyID = key
	return e
}

// condition is one match of a policy: the field's value equals, or starts with, value.
type condition struct {
	field, value string
	prefix       bool
}

func (c condition) holds(v string) bool {
	if c.prefix {
		return strings.HasPrefix(v, c.value)
	}
	return v == c.value
}

// policyDocument is a parsed POST policy.
type policyDocument struct {
	expiration time.Time
	conditions []condition
	min, max   int64 // max is -1 without a bound
}

// parsePolicy parses the base64 text of a policy. Names of its members are case sensitive, names of
// form fields are not; what it does not know is refused.
func parsePolicy(text string) (policyDocument, *Error) {
	doc := policyDocument{max: -1}
	bad := func(what string) (policyDocument, *Error) {
		return policyDocument{}, refuse("auth.parsePolicy", ReasonInvalidPolicyDocument, "Invalid Policy: "+what)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return bad("it is not base64.")
	}
	var members map[string]json.RawMessage // a struct would match names in any case
	if err := json.Unmarshal(raw, &members); err != nil {
		return bad("Invalid JSON.")
	}
	for name := range members {
		if name != "expiration" && name != "conditions" {
			return bad("Unexpected member.")
		}
	}
	var expiration string
	if json.Unmarshal(members["expiration"], &expiration) != nil {
		return bad("Policy missing expiration.")
	}
	if doc.expiration, err = time.Parse(time.RFC3339, expiration); err != nil {
		return bad("Invalid 'expiration' value.")
	}
	var list []json.RawMessage
	if json.Unmarshal(members["conditions"], &list) != nil || list == nil {
		return bad("Policy missing conditions.")
	}
	for _, item := range list {
		var object map[string]json.RawMessage
		if json.Unmarshal(item, &object) == nil && object != nil {
			if len(object) != 1 {
				return bad("Simple-Conditions must have exactly one property specified.")
			}
			for name, v := range object {
				value, ok := jsonString(v)
				if !ok || name == "" {
					return bad("Simple-Conditions must have string values.")
				}
				doc.conditions = append(doc.conditions, condition{field: strings.ToLower(name), value: value})
			}
			continue
		}
		var array []json.RawMessage
		if json.Unmarshal(item, &array) != nil || len(array) != 3 {
			return bad("a condition is neither an object nor a list of three.")
		}
		operator, ok := jsonString(array[0])
		operator = strings.ToLower(operator)
		switch {
		case !ok:
			return bad("a condition has no operation.")
		case operator == "content-length-range":
			low, ok1 := jsonLength(array[1])
			high, ok2 := jsonLength(array[2])
			if !ok1 || !ok2 || low > high {
				return bad("content-length-range needs two numbers in order.")
			}
			// Of several ranges, all hold.
			doc.min = max(doc.min, low)
			if doc.max < 0 || high < doc.max {
				doc.max = high
			}
		case operator == "eq", operator == "starts-with":
			field, ok1 := jsonString(array[1])
			value, ok2 := jsonString(array[2])
			field, ok3 := strings.CutPrefix(field, "$")
			if !ok1 || !ok2 || !ok3 || field == "" {
				return bad("a condition needs a $field and a string.")
			}
			doc.conditions = append(doc.conditions, condition{strings.ToLower(field), value, operator == "starts-with"})
		default:
			return bad("a condition has an unknown operation.")
		}
	}
	return doc, nil
}

// jsonString decodes a JSON string, and nothing else: null must not pass as "".
func jsonString(raw json.RawMessage) (string, bool) {
	var s *string
	if json.Unmarshal(raw, &s) != nil || s == nil {
		return "", false
	}
	return *s, true
}

// jsonLength decodes a number of bytes, which some signers quote.
func jsonLength(raw json.RawMessage) (int64, bool) {
	text := string(raw)
	if s, ok := jsonString(raw); ok {
		text = s
	}
	n, err := strconv.ParseUint(text, 10, 63)
	return int64(n), err == nil
}

// evaluate checks that all conditions hold and that no field is without one.
func (d *policyDocument) evaluate(bucket string, form map[string]string) *Error {
	const op = "auth.VerifyPostPolicy"
	covered := make(map[string]bool, len(d.conditions))
	for _, c := range d.conditions {
		v := form[c.field]
		if c.field == "bucket" {
			v = bucket
		}
		if !c.holds(v) {
			return refuse(op, ReasonPolicyConditionFailed, "Invalid according to Policy: Policy Condition failed: "+describe(c))
		}
		covered[c.field] = true
	}
	var extra []string
	if !covered["bucket"] {
		extra = append(extra, "bucket")
	}
	for name := range form {
		switch {
		case covered[name], strings.HasPrefix(name, "x-ignore-"):
		case slices.Contains([]string{"policy", "x-amz-signature", "signature", "awsaccesskeyid", "file", "bucket"}, name):
		default:
			extra = append(extra, name)
		}
	}
	if extra == nil {
		return nil
	}
	slices.Sort(extra)
	return refuse(op, ReasonPolicyConditionFailed, "Invalid according to Policy: Extra input fields: "+strings.Join(extra, ", "))
}

// describe prints a condition as the policy has it, without a session token that may be in it.
func describe(c condition) string {
	operator, value := "eq", c.value
	if c.prefix {
		operator = "starts-with"
	}
	if c.field == "x-amz-security-token" {
		value = "…"
	}
	return `["` + operator + `", "$` + c.field + `", "` + value + `"]`
}
