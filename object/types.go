package object

import (
	"time"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// Limits that AWS documents for general purpose buckets.
const (
	MaxKeyLen       = 1024
	MaxPutSize      = 5 << 30 // a single PUT, a part, a copy
	MaxObjectSize   = 5 << 40
	MaxParts        = 10000
	MinPartSize     = 5 << 20 // every part but the last
	MaxListKeys     = 1000
	MaxDeleteKeys   = 1000
	NullVersion     = "null" // the version id of the null version on the wire
	ClassStandard   = placement.ClassStandard
	ClassReduced    = placement.ClassReduced
	maxDeadOfUpload = 256 // entries of the dead list of a part's register while its upload is open
)

// Versioning is the versioning state of a bucket.
type Versioning uint8

// The states. A bucket that was ever Enabled never returns to Unversioned.
const (
	Unversioned Versioning = iota
	Enabled
	Suspended
)

// Bucket describes a bucket.
type Bucket struct {
	ID         uint64
	Name       string
	Owner      string // canonical id of the owning account
	Region     string
	Created    time.Time
	Versioning Versioning
	ObjectLock bool
	Config     map[string][]byte // opaque documents by name (tagging, policy, cors, …); do not modify
	Deleting   bool
	Epoch      uint64
}

// CreateBucketOptions are the properties of a new bucket.
type CreateBucketOptions struct {
	Owner      string
	Region     string
	ObjectLock bool // also enables versioning, as on AWS
	Config     map[string][]byte
}

// Info describes one version of an object.
type Info struct {
	Bucket       string
	Key          string
	VersionID    string     // NullVersion or 32 hex digits
	Versioning   Versioning // of the bucket when the request began: whether to show VersionID
	IsLatest     bool
	DeleteMarker bool
	Size         int64
	ETag         string // without quotes
	ModTime      time.Time
	Class        string // "" is STANDARD
	Owner        string
	Headers      []metadata.Field
	Meta         []metadata.Field
	Tags         []metadata.Field
	Checksums    []metadata.Checksum
	PartCount    int       // parts of a multipart object; 0 for a single body
	Upload       bool      // made by a multipart upload
	Part         *PartInfo // with GetOptions.PartNumber: the part that the answer is about
	RetainUntil  time.Time // zero: none
	RetainMode   uint8     // 0 none, 1 governance, 2 compliance
	LegalHold    bool
}

// Sums are the digests of a whole body, known at its end.
type Sums struct {
	Size      int64
	MD5       []byte              // nil when it was not asked for
	Checksums []metadata.Checksum // in the order of PutOptions.Checksums
}

// Conditions of a request. ETags are without quotes; "*" stands for any. The zero value asks
// nothing. On writes they are decided on the record that the write replaces, linearizably.
type Conditions struct {
	IfMatch           []string
	IfNoneMatch       []string
	IfModifiedSince   time.Time // reads and copy sources only
	IfUnmodifiedSince time.Time // reads and copy sources only
	MatchModTime      time.Time // deletes: x-amz-if-match-last-modified-time, to the second
	MatchSize         *int64    // deletes: x-amz-if-match-size
}

// PutOptions of Put.
type PutOptions struct {
	Size      int64 // bytes of the body, required; a body that is shorter or longer is Incomplete
	Headers   []metadata.Field
	Meta      []metadata.Field
	Tags      []metadata.Field
	Class     string // "", STANDARD or REDUCED_REDUNDANCY
	Owner     string
	Checksums []checksum.Algorithm // computed while streaming, stored and returned
	NoMD5     bool                 // ETag from the first checksum (CRC64NVME if none), as <32hex>-1
	Verify    func(Sums) error     // called after the last byte, before the commit; an error ends the PUT
	If        Conditions
	// Lock of the new version.
	RetainUntil time.Time
	RetainMode  uint8
	LegalHold   bool
}

// Range is a byte range as HTTP has it.
type Range struct {
	First, Last int64 // inclusive; Last < 0: to the end
	Suffix      int64 // >0: the last Suffix bytes; First and Last are unused
}

// GetOptions of Get and Head.
type GetOptions struct {
	VersionID  *string // nil: the current version
	Range      *Range
	PartNumber int // 1..10000; 0: none. Excludes Range
	If         Conditions
	// IfRange makes Range a range only of the version with this ETag; "": of any. With another one the
	// answer is the whole version.
	IfRange string
	// IfRangeTime does the same by the time of modification, to the second.
	IfRangeTime time.Time
}

// DeleteOptions of Delete.
type DeleteOptions struct {
	VersionID *string // nil: the S3 "simple" delete
	If        Conditions
	Owner     string // of a delete marker
	// Allow is asked, inside the round, before a version is removed for ever (object lock); nil allows.
	Allow func(*metadata.Version) error
}

// DeleteResult says what a delete did.
type DeleteResult struct {
	Versioning   Versioning
	DeleteMarker bool   // the version made or removed is a delete marker
	VersionID    string // of the delete marker made, or of the version removed; "" in unversioned buckets
}

// DeleteRequest is one entry of DeleteMany.
type DeleteRequest struct {
	Key string
	DeleteOptions
}

// DeleteOutcome answers one DeleteRequest.
type DeleteOutcome struct {
	DeleteResult
	Err error
}

// CopyOptions of Copy and CopyPart. Source conditions are decided on the source's record as read.
type CopyOptions struct {
	SourceVersionID *string
	SourceIf        Conditions
	ReplaceMeta     bool       // x-amz-metadata-directive: REPLACE: Headers and Meta below instead of the source's
	ReplaceTags     bool       // x-amz-tagging-directive: REPLACE
	Put             PutOptions // Headers, Meta, Tags, Class, Owner, Checksums, If and lock of the target; Size and Verify unused
	// ForceChange: the request changes something that the store does not see (website redirect,
	// encryption), so a copy of an object onto itself is allowed.
	ForceChange bool
	// CheckSource is called with the source before any byte is read (authorization by tag, SSE-C); may be nil.
	CheckSource func(Info) error
}

// CopyResult of Copy and CopyPart.
type CopyResult struct {
	Info            Info   // of the target; for CopyPart only ETag, ModTime, Size, Checksums
	SourceVersionID string // "" when the source bucket is unversioned
}

// ListOptions of List.
type ListOptions struct {
	Prefix, Delimiter string
	After             string // exclusive: marker, start-after or what Next said; a common prefix excludes all below it
	Limit             int    // keys and common prefixes together, 0..1000
}

// ListResult is one page.
type ListResult struct {
	Bucket    Bucket
	Objects   []Info // Headers, Meta and Tags are left out
	Prefixes  []string
	Truncated bool
	Next      string // After of the next page
}

// ListVersionsOptions of ListVersions.
type ListVersionsOptions struct {
	Prefix, Delimiter string
	KeyMarker         string
	VersionMarker     string // continue behind this version of KeyMarker; "" : behind KeyMarker
	Limit             int
}

// ListVersionsResult is one page; DeleteMarker and IsLatest of the entries are set.
type ListVersionsResult struct {
	Bucket            Bucket
	Versions          []Info
	Prefixes          []string
	Truncated         bool
	NextKeyMarker     string
	NextVersionMarker string
}

// UploadOptions of CreateUpload.
type UploadOptions struct {
	Headers           []metadata.Field
	Meta              []metadata.Field
	Tags              []metadata.Field
	Class             string
	Owner             string             // the initiator
	ChecksumAlgorithm checksum.Algorithm // zero: none asked for
	ChecksumType      checksum.Type      // Unset: the default of the algorithm
	RetainUntil       time.Time
	RetainMode        uint8
	LegalHold         bool
}

// Upload describes a multipart upload.
type Upload struct {
	Bucket            string
	Key               string
	UploadID          string // 32 hex digits
	Initiated         time.Time
	Class             string
	Owner             string
	ChecksumAlgorithm checksum.Algorithm
	ChecksumType      checksum.Type
}

// PartOptions of PutPart.
type PartOptions struct {
	Size      int64
	Checksums []checksum.Algorithm
	Verify    func(Sums) error
}

// PartInfo describes a part.
type PartInfo struct {
	Number    int
	Offset    int64 // within a completed object
	Size      int64
	ETag      string
	ModTime   time.Time // zero for parts of completed objects
	Checksums []metadata.Checksum
}

// ListPartsResult is one page.
type ListPartsResult struct {
	Upload    Upload
	Parts     []PartInfo
	Truncated bool
	Next      int // part number marker of the next page
}

// ListUploadsOptions of ListUploads.
type ListUploadsOptions struct {
	Prefix, Delimiter string
	KeyMarker         string
	UploadMarker      string // continue behind this upload of KeyMarker; "": behind KeyMarker
	Limit             int
}

// ListUploadsResult is one page.
type ListUploadsResult struct {
	Uploads          []Upload
	Prefixes         []string
	Truncated        bool
	NextKeyMarker    string
	NextUploadMarker string
}

// CompletedPart is one entry of a CompleteMultipartUpload's list.
type CompletedPart struct {
	Number    int
	ETag      string              // without quotes
	Checksums []metadata.Checksum // each must equal what is stored
}

// CompleteOptions of CompleteUpload.
type CompleteOptions struct {
	If           Conditions
	Size         *int64             // x-amz-mp-object-size: must equal the sum of the parts
	Checksum     *metadata.Checksum // of the whole object, as the client computed it
	ChecksumType checksum.Type      // Unset, or it must equal the upload's
}

// ShardStatus says how one shard of one chunk stands.
type ShardStatus uint8

// The states of a shard.
const (
	ShardVerified ShardStatus = iota + 1 // present, every checksum right
	ShardPresent                         // present, not verified
	ShardMissing
	ShardCorrupt
	ShardOffline // its drive does not answer
)

var shardStatusNames = [...]string{"", "verified", "present", "missing", "corrupt", "drive offline"}

// String names the status for people.
func (s ShardStatus) String() string { return shardStatusNames[s] }

// ShardPlace is one shard of an Inspection.
type ShardPlace struct {
	Part   int // 0: the object's own body, or its manifest
	Chunk  int
	Index  int
	Drive  uint16
	Status ShardStatus
	Bytes  int64
	Err    string
}

// RowPlace is one drive's record row of an Inspection.
type RowPlace struct {
	Drive   uint16
	Present bool // row equal to the chosen one
	Behind  bool
	Offline bool
}

// Inspection says where an object is.
type Inspection struct {
	Info      Info
	Partition uint32
	Ballot    string
	DataID    string
	Profile   string
	Rows      []RowPlace
	Shards    []ShardPlace
}
