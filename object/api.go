package object

import (
	"context"
	"io"

	"github.com/ostraka/ostraka/metadata"
)

// api lists Store's methods while Store is being built; it goes once Store compiles.
type api interface {
	// Buckets.
	CreateBucket(ctx context.Context, name string, o CreateBucketOptions) (Bucket, error)
	HeadBucket(ctx context.Context, name string) (Bucket, error)
	ListBuckets(ctx context.Context, owner string) ([]Bucket, error) // "" is every owner; sorted by name
	DeleteBucket(ctx context.Context, name string) error
	SetVersioning(ctx context.Context, name string, v Versioning) error
	SetBucketConfig(ctx context.Context, name, document string, value []byte) error // nil value removes

	// Objects.
	Put(ctx context.Context, bucket, key string, body io.Reader, o PutOptions) (Info, error)
	Get(ctx context.Context, bucket, key string, o GetOptions) (*Object, error)
	Head(ctx context.Context, bucket, key string, o GetOptions) (*Object, error) // Close not needed
	Delete(ctx context.Context, bucket, key string, o DeleteOptions) (DeleteResult, error)
	DeleteMany(ctx context.Context, bucket string, keys []DeleteRequest) ([]DeleteOutcome, error)
	Copy(ctx context.Context, srcBucket, srcKey, bucket, key string, o CopyOptions) (CopyResult, error)
	// Modify changes tags, lock and other fields of one version in place (versionID nil: current).
	Modify(ctx context.Context, bucket, key string, versionID *string, change func(*metadata.Version) error) (Info, error)
	// Parts lists the parts of a completed multipart object (GetObjectAttributes); none for single bodies.
	Parts(ctx context.Context, bucket, key string, versionID *string, after, limit int) (Info, []PartInfo, bool, error)
	List(ctx context.Context, bucket string, o ListOptions) (ListResult, error)
	ListVersions(ctx context.Context, bucket string, o ListVersionsOptions) (ListVersionsResult, error)

	// Multipart.
	CreateUpload(ctx context.Context, bucket, key string, o UploadOptions) (Upload, error)
	PutPart(ctx context.Context, bucket, key, uploadID string, number int, body io.Reader, o PartOptions) (PartInfo, error)
	CopyPart(ctx context.Context, srcBucket, srcKey, bucket, key, uploadID string, number int, r *Range, o CopyOptions) (CopyResult, error)
	HeadUpload(ctx context.Context, bucket, key, uploadID string) (Upload, error)
	ListParts(ctx context.Context, bucket, key, uploadID string, after, limit int) (ListPartsResult, error)
	ListUploads(ctx context.Context, bucket string, o ListUploadsOptions) (ListUploadsResult, error)
	CompleteUpload(ctx context.Context, bucket, key, uploadID string, parts []CompletedPart, o CompleteOptions) (Info, error)
	AbortUpload(ctx context.Context, bucket, key, uploadID string) error

	Inspect(ctx context.Context, bucket, key string, verify bool) (*Inspection, error)
}

// Object is an open version; *Object has exactly these:
//
//	Info Info; Offset, Length int64 (of the answer's bytes); Partial bool (206);
//	WriteTo(w io.Writer) (int64, error); Close() error
type Object struct {
	Info    Info
	Offset  int64
	Length  int64
	Partial bool
}

// Close frees what the object holds open.
func (o *Object) Close() error { return nil }
