package auth

import (
	"errors"

	"github.com/ostraka/ostraka/internal/errs"
)

// Reason says precisely why a request was refused. s3api maps each to an S3 code in one table; the
// names are those of S3's codes where S3 has one.
type Reason uint8

// The reasons.
const (
	ReasonNone                              Reason = iota
	ReasonAccessDenied                             // not allowed, or signed in a way that S3 denies
	ReasonSignatureDoesNotMatch                    // of the request, a chunk, a trailer or a policy
	ReasonInvalidAccessKeyID                       // unknown access key
	ReasonInvalidToken                             // missing, superfluous or wrong session token
	ReasonRequestTimeTooSkewed                     // the date is too far from the server's clock
	ReasonExpired                                  // presigned URL or POST policy out of its time
	ReasonNotYetValid                              // presigned URL of the future
	ReasonAuthorizationHeaderMalformed             // including a wrong region: see Error.Region
	ReasonAuthorizationQueryParametersError        // of presigned URLs
	ReasonInvalidArgument                          // unknown scheme, several mechanisms, bad value
	ReasonInvalidRequest                           // a header that contradicts another
	ReasonInvalidURI                               // path or query that does not decode
	ReasonMissingSecurityHeader                    // x-amz-content-sha256 is missing
	ReasonSignatureVersionNotSupported             // SigV2, SigV4A
	ReasonHeadersNotSigned                         // x-amz-* headers that no signature covers
	ReasonXAmzContentSHA256Mismatch                // the body has another digest
	ReasonIncompleteBody                           // shorter or longer than announced, or bad framing
	ReasonInvalidChunkSize                         // a chunk other than the last is below 8 KiB
	ReasonMissingContentLength                     // no x-amz-decoded-content-length
	ReasonMalformedTrailer                         // trailers differ from those announced
	ReasonEntityTooLarge                           // a body beyond its bound
	ReasonEntityTooSmall                           // a form upload below the range of its policy
	ReasonInvalidPolicyDocument                    // a POST policy that does not parse
	ReasonPolicyConditionFailed                    // a POST form that its policy does not cover
	reasonCount
)

var reasonTable = [reasonCount]struct {
	name string
	kind errs.Kind
}{
	ReasonNone:                              {"None", errs.Internal},
	ReasonAccessDenied:                      {"AccessDenied", errs.Denied},
	ReasonSignatureDoesNotMatch:             {"SignatureDoesNotMatch", errs.Denied},
	ReasonInvalidAccessKeyID:                {"InvalidAccessKeyId", errs.Denied},
	ReasonInvalidToken:                      {"InvalidToken", errs.Denied},
	ReasonRequestTimeTooSkewed:              {"RequestTimeTooSkewed", errs.Denied},
	ReasonExpired:                           {"Expired", errs.Denied},
	ReasonNotYetValid:                       {"NotYetValid", errs.Denied},
	ReasonAuthorizationHeaderMalformed:      {"AuthorizationHeaderMalformed", errs.Invalid},
	ReasonAuthorizationQueryParametersError: {"AuthorizationQueryParametersError", errs.Invalid},
	ReasonInvalidArgument:                   {"InvalidArgument", errs.Invalid},
	ReasonInvalidRequest:                    {"InvalidRequest", errs.Invalid},
	ReasonInvalidURI:                        {"InvalidURI", errs.Invalid},
	ReasonMissingSecurityHeader:             {"MissingSecurityHeader", errs.Invalid},
	ReasonSignatureVersionNotSupported:      {"SignatureVersionNotSupported", errs.Unsupported},
	ReasonHeadersNotSigned:                  {"HeadersNotSigned", errs.Denied},
	ReasonXAmzContentSHA256Mismatch:         {"XAmzContentSHA256Mismatch", errs.Invalid},
	ReasonIncompleteBody:                    {"IncompleteBody", errs.Incomplete},
	ReasonInvalidChunkSize:                  {"InvalidChunkSize", errs.Invalid},
	ReasonMissingContentLength:              {"MissingContentLength", errs.Invalid},
	ReasonMalformedTrailer:                  {"MalformedTrailer", errs.Invalid},
	ReasonEntityTooLarge:                    {"EntityTooLarge", errs.Invalid},
	ReasonEntityTooSmall:                    {"EntityTooSmall", errs.Invalid},
	ReasonInvalidPolicyDocument:             {"InvalidPolicyDocument", errs.Invalid},
	ReasonPolicyConditionFailed:             {"PolicyConditionFailed", errs.Denied},
}

// String names the reason for logs and metrics.
func (r Reason) String() string {
	if r >= reasonCount {
		return "None"
	}
	return reasonTable[r].name
}

// Kind returns the kind of errors with this reason.
func (r Reason) Kind() errs.Kind {
	if r >= reasonCount {
		return errs.Internal
	}
	return reasonTable[r].kind
}

// Error is a refusal. It wraps an *errs.Error of the reason's kind, so errs.KindOf and errs.Public
// work on it; nothing in it is secret.
type Error struct {
	Reason Reason
	// Region is the region that was expected, when the scope names another.
	Region string
	// AccessKeyID and StringToSign are what S3 tells a client whose signature does not match.
	AccessKeyID  string
	StringToSign string
	// Headers are the names of the unsigned headers, with ReasonHeadersNotSigned.
	Headers []string

	err error
}

// Error returns the operation, the public text and the cause.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the *errs.Error.
func (e *Error) Unwrap() error { return e.err }

// refuse makes an Error; msg is what the client reads.
func refuse(op string, r Reason, msg string) *Error {
	return &Error{Reason: r, err: errs.E(op, r.Kind(), msg)}
}

// refuseFor is refuse with a cause for the log.
func refuseFor(op string, r Reason, msg string, cause error) *Error {
	return &Error{Reason: r, err: &errs.Error{Op: op, Kind: r.Kind(), Msg: msg, Err: cause}}
}

// ReasonOf returns the reason of the outermost *Error in err's chain, or ReasonNone.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ReasonNone
}
