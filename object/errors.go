package object

import (
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Reason is why a request was refused, as S3 names reasons. Reasons are compared by identity:
// errors.Is(err, ErrNoSuchKey).
type Reason struct {
	name string
	kind errs.Kind
	text string
}

// Error returns the public text.
func (r *Reason) Error() string { return r.text }

// Name is the S3 error code that comes closest.
func (r *Reason) Name() string { return r.name }

// The reasons.
var (
	ErrNoSuchBucket       = &Reason{"NoSuchBucket", errs.NotFound, "The specified bucket does not exist"}
	ErrBucketExists       = &Reason{"BucketAlreadyExists", errs.Exists, "The requested bucket name is not available"}
	ErrBucketOwned        = &Reason{"BucketAlreadyOwnedByYou", errs.Exists, "The bucket exists already and is owned by you"}
	ErrBucketNotEmpty     = &Reason{"BucketNotEmpty", errs.Precondition, "The bucket you tried to delete is not empty"}
	ErrInvalidBucketName  = &Reason{"InvalidBucketName", errs.Invalid, "The specified bucket is not valid"}
	ErrInvalidBucketState = &Reason{"InvalidBucketState", errs.Precondition, "The request is not valid for the current state of the bucket"}
	ErrNoSuchKey          = &Reason{"NoSuchKey", errs.NotFound, "The specified key does not exist"}
	ErrNoSuchVersion      = &Reason{"NoSuchVersion", errs.NotFound, "The specified version does not exist"}
	ErrNoSuchUpload       = &Reason{"NoSuchUpload", errs.NotFound, "The specified multipart upload does not exist"}
	ErrMethodNotAllowed   = &Reason{"MethodNotAllowed", errs.Invalid, "The specified method is not allowed against a delete marker"}
	ErrKeyTooLong         = &Reason{"KeyTooLongError", errs.Invalid, "Your key is too long"}
	ErrInvalidKey         = &Reason{"InvalidArgument", errs.Invalid, "Object keys must not be empty"}
	ErrInvalidVersionID   = &Reason{"InvalidArgument", errs.Invalid, "Invalid version id specified"}
	ErrInvalidRange       = &Reason{"InvalidRange", errs.Invalid, "The requested range is not satisfiable"}
	ErrInvalidPartNumber  = &Reason{"InvalidPartNumber", errs.Invalid, "The requested partnumber is not satisfiable"}
	ErrPartNumber         = &Reason{"InvalidArgument", errs.Invalid, "Part number must be an integer between 1 and 10000, inclusive"}
	ErrPrecondition       = &Reason{"PreconditionFailed", errs.Precondition, "At least one of the pre-conditions you specified did not hold"}
	ErrNotModified        = &Reason{"NotModified", errs.Precondition, "Not Modified"}
	ErrEntityTooLarge     = &Reason{"EntityTooLarge", errs.Invalid, "Your proposed upload exceeds the maximum allowed size"}
	ErrEntityTooSmall     = &Reason{"EntityTooSmall", errs.Invalid, "Your proposed upload is smaller than the minimum allowed size"}
	ErrIncompleteBody     = &Reason{"IncompleteBody", errs.Incomplete, "The body does not have the number of bytes specified by the Content-Length header"}
	ErrInvalidPart        = &Reason{"InvalidPart", errs.Invalid, "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag"}
	ErrInvalidPartOrder   = &Reason{"InvalidPartOrder", errs.Invalid, "The list of parts was not in ascending order. The parts list must be specified in order by part number"}
	ErrBadDigest          = &Reason{"BadDigest", errs.Invalid, "The checksum you specified did not match what was calculated"}
	ErrChecksumType       = &Reason{"InvalidRequest", errs.Invalid, "The checksum algorithm or type does not fit the upload"}
	ErrObjectSize         = &Reason{"InvalidRequest", errs.Invalid, "The provided object size does not match the sum of the parts"}
	ErrCopySelf           = &Reason{"InvalidRequest", errs.Invalid, "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes"}
	ErrCopySource         = &Reason{"InvalidRequest", errs.Invalid, "The specified copy source is larger than the maximum allowable size for a copy source"}
	ErrCopyMarker         = &Reason{"InvalidRequest", errs.Invalid, "The source of a copy request may not specifically refer to a delete marker by version id"}
	ErrStorageClass       = &Reason{"InvalidStorageClass", errs.Invalid, "The storage class you specified is not valid"}
	ErrLocked             = &Reason{"AccessDenied", errs.Denied, "Access Denied because object protected by object lock"}
)

// Failure is a Reason with what it is about. It is reached with errors.As.
type Failure struct {
	Reason       *Reason
	Bucket       string
	Key          string
	VersionID    string // of the delete marker met, or the one asked for
	UploadID     string
	DeleteMarker bool      // a delete marker is why
	ModTime      time.Time // of the delete marker
	Info         *Info     // ErrNotModified and ErrPrecondition of reads: the object that stands there
	Size         int64     // ErrInvalidRange: the size of the object; ErrEntityTooSmall: that of the part
	PartNumber   int       // ErrInvalidPart, ErrEntityTooSmall: the part; ErrInvalidPartNumber: how many there are
	ETag         string    // the same
}

// Error returns the reason's text.
func (f *Failure) Error() string { return f.Reason.text }

// Is makes errors.Is(err, reason) true.
func (f *Failure) Is(target error) bool { return target == error(f.Reason) }

// fail wraps f once at the border of this package.
func fail(op string, f *Failure) error {
	return &errs.Error{Op: "object." + op, Kind: f.Reason.kind, Msg: f.Reason.text, Err: f}
}
