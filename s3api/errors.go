package s3api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
)

// code is a row of the error table.
type code struct {
	status  int
	message string // when the failure brings none of its own
}

// codes is the one table of S3 error codes that this server answers.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; InsufficientStorage is
// not there, since AWS is never full: 507 with that code says so, and no client retries it.
var codes = map[string]code{
	"AccessDenied":                            {403, "Access Denied"},
	"AccessForbidden":                         {403, "CORSResponse: CORS is not enabled for this bucket."},
	"AccountProblem":                          {403, "There is a problem with your account that prevents the operation from completing successfully."},
	"AuthorizationHeaderMalformed":            {400, "The authorization header that you provided is not valid."},
	"AuthorizationQueryParametersError":       {400, "The authorization query parameters that you provided are not valid."},
	"BadDigest":                               {400, "The Content-MD5 or checksum value that you specified did not match what the server received."},
	"BadRequest":                              {400, "Bad Request"},
	"BucketAlreadyExists":                     {409, "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Select a different name and try again."},
	"BucketAlreadyOwnedByYou":                 {409, "Your previous request to create the named bucket succeeded and you already own it."},
	"BucketNotEmpty":                          {409, "The bucket you tried to delete is not empty."},
	"ConditionalRequestConflict":              {409, "A conflicting operation occurred during your request."},
	"EntityTooLarge":                          {400, "Your proposed upload exceeds the maximum allowed object size."},
	"EntityTooSmall":                          {400, "Your proposed upload is smaller than the minimum allowed object size."},
	"ExpiredToken":                            {400, "The provided token has expired."},
	"IllegalLocationConstraintException":      {400, "The specified location-constraint is not valid for the region of this endpoint."},
	"IncompleteBody":                          {400, "You did not provide the number of bytes specified by the Content-Length HTTP header."},
	"InsufficientStorage":                     {507, "The store has no room left for this request."},
	"InternalError":                           {500, "We encountered an internal error. Please try again."},
	"InvalidAccessKeyId":                      {403, "The access key ID that you provided does not exist in our records."},
	"InvalidArgument":                         {400, "Invalid Argument"},
	"InvalidBucketName":                       {400, "The specified bucket is not valid."},
	"InvalidBucketState":                      {409, "The request is not valid for the current state of the bucket."},
	"InvalidDigest":                           {400, "The Content-MD5 or checksum value that you specified is not valid."},
	"InvalidLocationConstraint":               {400, "The specified location-constraint is not valid."},
	"InvalidPart":                             {400, "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."},
	"InvalidPartNumber":                       {416, "The requested partnumber is not satisfiable"},
	"InvalidPartOrder":                        {400, "The list of parts was not in ascending order. Parts must be ordered by part number."},
	"InvalidRange":                            {416, "The requested range is not satisfiable"},
	"InvalidRequest":                          {400, "Invalid Request"},
	"InvalidSecurity":                         {403, "The provided security credentials are not valid."},
	"InvalidStorageClass":                     {400, "The storage class you specified is not valid"},
	"InvalidChunkSizeError":                   {403, "Only the last chunk is allowed to have a size less than 8192 bytes"},
	"MalformedTrailerError":                   {400, "The request contained trailing data that was not well-formed or did not conform to our published schema."},
	"InvalidPolicyDocument":                   {400, "The content of the form does not meet the conditions specified in the policy document."},
	"InvalidTag":                              {400, "The tag provided was not a valid tag."},
	"IllegalVersioningConfigurationException": {400, "The versioning configuration specified in the request is not valid."},
	"InvalidToken":                            {400, "The provided token is malformed or otherwise not valid."},
	"InvalidURI":                              {400, "Couldn't parse the specified URI."},
	"KeyTooLongError":                         {400, "Your key is too long"},
	"MalformedXML":                            {400, "The XML you provided was not well-formed or did not validate against our published schema"},
	"MaxMessageLengthExceeded":                {400, "Your request was too large."},
	"MetadataTooLarge":                        {400, "Your metadata headers exceed the maximum allowed metadata size"},
	"MethodNotAllowed":                        {405, "The specified method is not allowed against this resource."},
	"MissingContentLength":                    {411, "You must provide the Content-Length HTTP header."},
	"MissingRequestBodyError":                 {400, "Request Body is empty"},
	"MissingSecurityHeader":                   {400, "Your request was missing a required header."},
	"NoSuchBucket":                            {404, "The specified bucket does not exist"},
	"NoSuchKey":                               {404, "The specified key does not exist."},
	"NoSuchUpload":                            {404, "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."},
	"NoSuchVersion":                           {404, "The specified version does not exist."},
	"NotImplemented":                          {501, "A header or query you provided implies functionality that is not implemented."},
	"NotModified":                             {304, "Not Modified"},
	"NotSignedUp":                             {403, "Your account is not signed up."},
	"OperationAborted":                        {409, "A conflicting conditional operation is currently in progress against this resource. Try again."},
	"PreconditionFailed":                      {412, "At least one of the pre-conditions you specified did not hold"},
	"RequestHeaderSectionTooLarge":            {400, "Your request header section exceeds the maximum allowed request header section size."},
	"RequestTimeTooSkewed":                    {403, "The difference between the request time and the server's time is too large."},
	"RequestTimeout":                          {400, "Your socket connection to the server was not read from or written to within the timeout period."},
	"ServiceUnavailable":                      {503, "Reduce your request rate."},
	"SignatureDoesNotMatch":                   {403, "The request signature that the server calculated does not match the signature that you provided. Check your secret access key and signing method."},
	"SlowDown":                                {503, "Please reduce your request rate."},
	"UnresolvableGrantByEmailAddress":         {400, "The email address you provided does not match any account on record."},
	"XAmzContentChecksumMismatch":             {400, "The provided 'x-amz-checksum' header or trailer does not match what was computed."},
	"XAmzContentSHA256Mismatch":               {400, "The provided 'x-amz-content-sha256' header does not match what was computed."},
}

// field is one further element of an error's XML, or one header.
type field struct{ name, value string }

// failure is an error on its way to the client: a row of the table, and what it is about.
type failure struct {
	code    string
	message string
	extras  []field // further elements of the XML, in order
	headers []field
	status  int   // of the table's row when 0
	cause   error // for the log; never shown
}

// fail makes a failure of one of the table's codes; an empty message means the table's.
func fail(code, message string) *failure { return &failure{code: code, message: message} }

func (f *failure) with(name, value string) *failure {
	f.extras = append(f.extras, field{name, value})
	return f
}

func (f *failure) header(name, value string) *failure {
	f.headers = append(f.headers, field{name, value})
	return f
}

func (f *failure) because(err error) *failure {
	f.cause = err
	return f
}

// Error is for logs.
func (f *failure) Error() string {
	s := f.code + ": " + f.text()
	if f.code == "NotImplemented" {
		for _, e := range f.extras {
			s += " " + e.name + "=" + e.value
		}
	}
	if f.cause != nil {
		s += ": " + f.cause.Error()
	}
	return s
}

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.cause }

func (f *failure) text() string {
	if f.message != "" {
		return f.message
	}
	return codes[f.code].message
}

func (f *failure) httpStatus() int {
	if f.status != 0 {
		return f.status
	}
	if c, ok := codes[f.code]; ok {
		return c.status
	}
	return http.StatusInternalServerError
}

// invalid is the failure of one argument.
func invalid(name, value, message string) *failure {
	return fail("InvalidArgument", message).with("ArgumentName", name).with("ArgumentValue", value)
}

// kindCodes turns kinds into codes where no reason says more. A client reads Unknown as
// Unavailable: the outcome is open, and a retry is right in both cases.
var kindCodes = map[errs.Kind]string{
	errs.Internal:     "InternalError",
	errs.Invalid:      "InvalidRequest",
	errs.NotFound:     "NoSuchKey",
	errs.Exists:       "OperationAborted",
	errs.Precondition: "PreconditionFailed",
	errs.Denied:       "AccessDenied",
	errs.Unavailable:  "SlowDown",
	errs.Unknown:      "SlowDown",
	errs.Conflict:     "OperationAborted",
	errs.Stale:        "SlowDown",
	errs.Behind:       "SlowDown",
	errs.Corrupt:      "InternalError",
	errs.Full:         "InsufficientStorage",
	errs.Drive:        "SlowDown",
	errs.Unsupported:  "NotImplemented",
	errs.Timeout:      "SlowDown",
	errs.Canceled:     "RequestTimeout",
	errs.Busy:         "SlowDown",
	errs.Incomplete:   "IncompleteBody",
}

// explain turns any error into the failure that the client is told.
func (h *Handler) explain(c *call, err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	if f := authFailure(err); f != nil {
		return f.because(err)
	}
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		return fail("MaxMessageLengthExceeded", "").because(err)
	}
	var of *object.Failure
	if errors.As(err, &of) {
		return explainObject(c, of).because(err)
	}
	var reason *object.Reason
	if errors.As(err, &reason) {
		return explainObject(c, &object.Failure{Reason: reason}).because(err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fail("SlowDown", "").because(err)
	}
	return fail(kindCodes[errs.KindOf(err)], "").because(err)
}

// explainObject adds to a reason of package object what its S3 error tells besides.
func explainObject(c *call, of *object.Failure) *failure {
	name := of.Reason.Name()
	if _, known := codes[name]; !known {
		return fail("InternalError", "")
	}
	f := fail(name, "")
	bucket, key := of.Bucket, of.Key
	if bucket == "" {
		bucket = c.bucket
	}
	if key == "" {
		key = c.key
	}
	switch of.Reason {
	case object.ErrNoSuchBucket, object.ErrBucketExists, object.ErrBucketOwned, object.ErrBucketNotEmpty, object.ErrInvalidBucketName:
		return f.with("BucketName", bucket)
	case object.ErrNoSuchKey:
		f.with("Key", key)
	case object.ErrNoSuchVersion:
		f.with("Key", key).with("VersionId", of.VersionID)
	case object.ErrInvalidVersionID:
		// A UUID is a version id of other stores: well formed, and surely not here.
		if id := c.query.get("versionId"); len(id) == 36 && strings.Count(id, "-") == 4 {
			return fail("NoSuchVersion", "").with("Key", key).with("VersionId", id)
		}
		return invalid("versionId", c.query.get("versionId"), "Invalid version id specified")
	case object.ErrNoSuchUpload:
		return f.with("UploadId", of.UploadID)
	case object.ErrMethodNotAllowed:
		f.with("Method", c.r.Method).with("ResourceType", "DeleteMarker").header("Allow", "DELETE")
	case object.ErrKeyTooLong:
		f.with("Size", strconv.Itoa(len(key))).with("MaxSizeAllowed", strconv.Itoa(object.MaxKeyLen))
	case object.ErrInvalidRange:
		f.with("RangeRequested", c.r.Header.Get("Range")).with("ActualObjectSize", strconv.FormatInt(of.Size, 10)).
			header("Content-Range", "bytes */"+strconv.FormatInt(of.Size, 10))
	case object.ErrInvalidPartNumber:
		f.with("PartNumberRequested", c.query.get("partNumber")).with("ActualPartCount", strconv.Itoa(max(of.PartNumber, 1)))
	case object.ErrInvalidPart:
		f.with("UploadId", c.query.get("uploadId")).with("PartNumber", strconv.Itoa(of.PartNumber)).with("ETag", of.ETag)
	case object.ErrEntityTooSmall:
		f.with("ProposedSize", strconv.FormatInt(of.Size, 10)).with("MinSizeAllowed", strconv.Itoa(object.MinPartSize)).
			with("PartNumber", strconv.Itoa(of.PartNumber)).with("ETag", of.ETag)
	case object.ErrEntityTooLarge:
		f.with("MaxSizeAllowed", strconv.FormatInt(object.MaxPutSize, 10))
	case object.ErrPrecondition:
		f.with("Condition", conditionOf(c, of))
	case object.ErrNotModified:
		if of.Info != nil {
			f.headers = append(f.headers, notModifiedHeaders(of.Info)...)
		}
	default:
		f.message = of.Reason.Error() + "."
	}
	if of.DeleteMarker {
		f.header("X-Amz-Delete-Marker", "true")
		if of.VersionID != "" {
			f.header("X-Amz-Version-Id", of.VersionID)
		}
		if !of.ModTime.IsZero() && of.Reason == object.ErrMethodNotAllowed {
			f.header("Last-Modified", of.ModTime.UTC().Format(http.TimeFormat))
		}
	}
	return f
}

// authFailure turns a refusal of package auth into its failure; nil when err is none.
func authFailure(err error) *failure {
	var e *auth.Error
	if !errors.As(err, &e) {
		return nil
	}
	name, ok := reasonCodes[e.Reason]
	if !ok {
		name = "AccessDenied"
	}
	f := fail(name, errs.Public(err))
	switch e.Reason {
	case auth.ReasonSignatureDoesNotMatch:
		f.message = ""
		f.extras = append(f.extras, field{"AWSAccessKeyId", e.AccessKeyID}, field{"StringToSign", e.StringToSign})
	case auth.ReasonInvalidAccessKeyID:
		f.message = ""
		f.extras = append(f.extras, field{"AWSAccessKeyId", e.AccessKeyID})
	case auth.ReasonHeadersNotSigned:
		f.extras = append(f.extras, field{"HeadersNotSigned", strings.Join(e.Headers, ", ")})
	case auth.ReasonAccessDenied:
		f.message = ""
	case auth.ReasonExpired, auth.ReasonRequestTimeTooSkewed:
	}
	if e.Region != "" {
		f.extras = append(f.extras, field{"Region", e.Region})
	}
	return f
}

// conditionOf names the first condition header of the request that failed, as far as it can be
// told here: a failed If-None-Match needs something to match, a failed If-Match may meet nothing.
func conditionOf(c *call, of *object.Failure) string {
	if of.Bucket != "" && (of.Bucket != c.bucket || of.Key != c.key) || c.r.Header.Get("If-Match") == "" && c.r.Header.Get("If-None-Match") == "" && c.r.Header.Get("If-Unmodified-Since") == "" {
		for _, n := range []string{"If-Match", "If-Unmodified-Since", "If-None-Match", "If-Modified-Since"} {
			if c.r.Header.Get("X-Amz-Copy-Source-"+n) != "" {
				return "x-amz-copy-source-" + n
			}
		}
	}
	for _, n := range []string{"If-Match", "If-Unmodified-Since", "If-None-Match", "If-Modified-Since", "X-Amz-If-Match-Last-Modified-Time", "X-Amz-If-Match-Size"} {
		if c.r.Header.Get(n) != "" {
			return n
		}
	}
	return "If-Match"
}
