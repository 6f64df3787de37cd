package s3api

import (
	"context"
	"io"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// Store is what the handlers need of the object store. Its errors are those of package object:
// kinds of errs with an *object.Failure in the chain. Adapt makes one of an *object.Store.
type Store interface {
	BucketStore
	ObjectStore
	ListStore
	UploadStore
}

// BucketStore keeps buckets. HeadBucket is called for every request and must be cheap.
type BucketStore interface {
	CreateBucket(ctx context.Context, name string, o object.CreateBucketOptions) (object.Bucket, error)
	HeadBucket(ctx context.Context, name string) (object.Bucket, error)
	ListBuckets(ctx context.Context, owner string) ([]object.Bucket, error) // sorted by name
	DeleteBucket(ctx context.Context, name string) error
	SetVersioning(ctx context.Context, name string, v object.Versioning) error
}

// ObjectStore keeps objects. Put and PutPart read the body to its end on the caller's goroutine,
// and not before what can be decided without it has been decided.
type ObjectStore interface {
	Put(ctx context.Context, bucket, key string, body io.Reader, o object.PutOptions) (object.Info, error)
	Get(ctx context.Context, bucket, key string, o object.GetOptions) (Content, error)
	Head(ctx context.Context, bucket, key string, o object.GetOptions) (Content, error) // Body is nil
	Delete(ctx context.Context, bucket, key string, o object.DeleteOptions) (object.DeleteResult, error)
	DeleteMany(ctx context.Context, bucket string, keys []object.DeleteRequest) ([]object.DeleteOutcome, error)
	Copy(ctx context.Context, srcBucket, srcKey, bucket, key string, o object.CopyOptions) (object.CopyResult, error)
	// Modify changes a version in place: change gets a copy, and may run several times.
	Modify(ctx context.Context, bucket, key string, versionID *string, change func(*metadata.Version) error) (object.Info, error)
	Parts(ctx context.Context, bucket, key string, versionID *string, after, limit int) (object.Info, []object.PartInfo, bool, error)
}

// ListStore lists objects and versions.
type ListStore interface {
	List(ctx context.Context, bucket string, o object.ListOptions) (object.ListResult, error)
	ListVersions(ctx context.Context, bucket string, o object.ListVersionsOptions) (object.ListVersionsResult, error)
}

// UploadStore keeps multipart uploads.
type UploadStore interface {
	CreateUpload(ctx context.Context, bucket, key string, o object.UploadOptions) (object.Upload, error)
	HeadUpload(ctx context.Context, bucket, key, uploadID string) (object.Upload, error)
	PutPart(ctx context.Context, bucket, key, uploadID string, number int, body io.Reader, o object.PartOptions) (object.PartInfo, error)
	CopyPart(ctx context.Context, srcBucket, srcKey, bucket, key, uploadID string, number int, r *object.Range, o object.CopyOptions) (object.CopyResult, error)
	ListParts(ctx context.Context, bucket, key, uploadID string, after, limit int) (object.ListPartsResult, error)
	ListUploads(ctx context.Context, bucket string, o object.ListUploadsOptions) (object.ListUploadsResult, error)
	CompleteUpload(ctx context.Context, bucket, key, uploadID string, parts []object.CompletedPart, o object.CompleteOptions) (object.Info, error)
	AbortUpload(ctx context.Context, bucket, key, uploadID string) error
}

// Content is an open version, or with Head the description of one.
type Content struct {
	Info    object.Info
	Offset  int64 // of the answer's bytes within the object
	Length  int64
	Partial bool // 206: Offset and Length were asked for
	Body    Body
}

// Body writes the bytes of a Content, once. An error before the first byte still becomes an
// answer; after it the connection is cut.
type Body interface {
	io.WriterTo
	io.Closer
}
