package s3api

import (
	"net/http"
	"slices"
	"strings"
)

// level says what a request's path names.
type level uint8

const (
	levelService level = iota // the endpoint itself
	levelBucket
	levelObject
)

// operation is a row of the table: how a request is recognized, what its sender must be allowed
// to do, and who answers it. A row without a handler answers NotImplemented, after the sender
// has been authenticated and authorized.
type operation struct {
	name   string
	method string
	level  level
	// query lists the parameters that must be present, as "name" or "name=value". Of the rows that match, the
	// one with the most such parameters (and header) is taken; among equals the first.
	query []string
	// header must be present and not empty; "" asks for none.
	header string
	// params are the further parameters that the operation understands. Anything else is refused.
	params []string
	// headers are the x-amz-* headers that the handler understands, beyond benignHeaders.
	headers []string
	// action is the IAM action on the resource that the path names; "" means that the handler
	// authorizes by itself. versionAction replaces it when versionId is given.
	action        string
	versionAction string
	// open rows are answered without authentication: CORS preflight, and forms, whose signature is in the body.
	open    bool
	handler func(*Handler, *call) (*response, error)
}

// names of header groups, shared by rows.
var (
	checksumHeaders = []string{
		"x-amz-checksum-crc32", "x-amz-checksum-crc32c", "x-amz-checksum-crc64nvme", "x-amz-checksum-sha1",
		"x-amz-checksum-sha256", "x-amz-checksum-sha512", "x-amz-checksum-md5", "x-amz-checksum-xxhash64",
		"x-amz-checksum-xxhash3", "x-amz-checksum-xxhash128",
	}
	bodyHeaders   = append([]string{"x-amz-checksum-algorithm", "x-amz-checksum-type"}, checksumHeaders...)
	newObject     = []string{"x-amz-acl", "x-amz-storage-class", "x-amz-tagging"}
	readHeaders   = []string{"x-amz-checksum-mode"}
	sourceHeaders = []string{
		"x-amz-copy-source", "x-amz-copy-source-if-match", "x-amz-copy-source-if-none-match",
		"x-amz-copy-source-if-modified-since", "x-amz-copy-source-if-unmodified-since",
		"x-amz-source-expected-bucket-owner",
	}
	listHeaders = []string{"x-amz-optional-object-attributes"}
)

// operations is the one table. Its names are those of the S3 API reference; the test against
// testdata/operations.txt proves that none is missing.
var operations = []operation{
	{name: "AbortMultipartUpload", method: "DELETE", level: levelObject, query: []string{"uploadId"}, headers: []string{"x-amz-if-match-initiated-time"}, action: "s3:AbortMultipartUpload", handler: (*Handler).abortMultipartUpload},
	{name: "CompleteMultipartUpload", method: "POST", level: levelObject, query: []string{"uploadId"}, headers: slices.Concat(checksumHeaders, []string{"x-amz-checksum-type", "x-amz-mp-object-size"}), action: "s3:PutObject", handler: (*Handler).completeMultipartUpload},
	{name: "CopyObject", method: "PUT", level: levelObject, header: "x-amz-copy-source", headers: slices.Concat(newObject, sourceHeaders, []string{"x-amz-checksum-algorithm", "x-amz-metadata-directive", "x-amz-tagging-directive"}), action: "s3:PutObject", handler: (*Handler).copyObject},
	{name: "CreateBucket", method: "PUT", level: levelBucket, headers: slices.Concat(bodyHeaders, []string{"x-amz-acl", "x-amz-bucket-object-lock-enabled", "x-amz-object-ownership", "x-amz-bucket-namespace"}), action: "s3:CreateBucket", handler: (*Handler).createBucket},
	{name: "CreateBucketMetadataConfiguration", method: "POST", level: levelBucket, query: []string{"metadataConfiguration"}, action: "s3:CreateBucketMetadataTableConfiguration"},
	{name: "CreateBucketMetadataTableConfiguration", method: "POST", level: levelBucket, query: []string{"metadataTable"}, action: "s3:CreateBucketMetadataTableConfiguration"},
	{name: "CreateMultipartUpload", method: "POST", level: levelObject, query: []string{"uploads"}, headers: slices.Concat(newObject, []string{"x-amz-checksum-algorithm", "x-amz-checksum-type"}), action: "s3:PutObject", handler: (*Handler).createMultipartUpload},
	{name: "CreateSession", method: "GET", level: levelBucket, query: []string{"session"}, action: "s3express:CreateSession"},
	{name: "DeleteBucket", method: "DELETE", level: levelBucket, action: "s3:DeleteBucket", handler: (*Handler).deleteBucket},
	{name: "DeleteBucketAnalyticsConfiguration", method: "DELETE", level: levelBucket, query: []string{"analytics", "id"}, action: "s3:PutAnalyticsConfiguration"},
	{name: "DeleteBucketCors", method: "DELETE", level: levelBucket, query: []string{"cors"}, action: "s3:PutBucketCORS"},
	{name: "DeleteBucketEncryption", method: "DELETE", level: levelBucket, query: []string{"encryption"}, action: "s3:PutEncryptionConfiguration"},
	{name: "DeleteBucketIntelligentTieringConfiguration", method: "DELETE", level: levelBucket, query: []string{"intelligent-tiering", "id"}, action: "s3:PutIntelligentTieringConfiguration"},
	{name: "DeleteBucketInventoryConfiguration", method: "DELETE", level: levelBucket, query: []string{"inventory", "id"}, action: "s3:PutInventoryConfiguration"},
	{name: "DeleteBucketLifecycle", method: "DELETE", level: levelBucket, query: []string{"lifecycle"}, action: "s3:PutLifecycleConfiguration"},
	{name: "DeleteBucketMetadataConfiguration", method: "DELETE", level: levelBucket, query: []string{"metadataConfiguration"}, action: "s3:DeleteBucketMetadataTableConfiguration"},
	{name: "DeleteBucketMetadataTableConfiguration", method: "DELETE", level: levelBucket, query: []string{"metadataTable"}, action: "s3:DeleteBucketMetadataTableConfiguration"},
	{name: "DeleteBucketMetricsConfiguration", method: "DELETE", level: levelBucket, query: []string{"metrics", "id"}, action: "s3:PutMetricsConfiguration"},
	{name: "DeleteBucketOwnershipControls", method: "DELETE", level: levelBucket, query: []string{"ownershipControls"}, action: "s3:PutBucketOwnershipControls"},
	{name: "DeleteBucketPolicy", method: "DELETE", level: levelBucket, query: []string{"policy"}, action: "s3:DeleteBucketPolicy"},
	{name: "DeleteBucketReplication", method: "DELETE", level: levelBucket, query: []string{"replication"}, action: "s3:PutReplicationConfiguration"},
	{name: "DeleteBucketTagging", method: "DELETE", level: levelBucket, query: []string{"tagging"}, action: "s3:PutBucketTagging"},
	{name: "DeleteBucketWebsite", method: "DELETE", level: levelBucket, query: []string{"website"}, action: "s3:DeleteBucketWebsite"},
	{name: "DeleteObject", method: "DELETE", level: levelObject, params: []string{"versionId"}, headers: []string{"x-amz-bypass-governance-retention", "x-amz-if-match-last-modified-time", "x-amz-if-match-size"}, action: "s3:DeleteObject", versionAction: "s3:DeleteObjectVersion", handler: (*Handler).deleteObject},
	{name: "DeleteObjectTagging", method: "DELETE", level: levelObject, query: []string{"tagging"}, params: []string{"versionId"}, action: "s3:DeleteObjectTagging", versionAction: "s3:DeleteObjectVersionTagging", handler: (*Handler).deleteObjectTagging},
	{name: "DeleteObjects", method: "POST", level: levelBucket, query: []string{"delete"}, headers: slices.Concat(bodyHeaders, []string{"x-amz-bypass-governance-retention"}), handler: (*Handler).deleteObjects},
	{name: "DeletePublicAccessBlock", method: "DELETE", level: levelBucket, query: []string{"publicAccessBlock"}, action: "s3:PutBucketPublicAccessBlock"},
	{name: "GetBucketAbac", method: "GET", level: levelBucket, query: []string{"abac"}, action: "s3:GetBucketAbac"},
	{name: "GetBucketAccelerateConfiguration", method: "GET", level: levelBucket, query: []string{"accelerate"}, action: "s3:GetAccelerateConfiguration"},
	{name: "GetBucketAcl", method: "GET", level: levelBucket, query: []string{"acl"}, action: "s3:GetBucketAcl"},
	{name: "GetBucketAnalyticsConfiguration", method: "GET", level: levelBucket, query: []string{"analytics", "id"}, action: "s3:GetAnalyticsConfiguration"},
	{name: "GetBucketCors", method: "GET", level: levelBucket, query: []string{"cors"}, action: "s3:GetBucketCORS"},
	{name: "GetBucketEncryption", method: "GET", level: levelBucket, query: []string{"encryption"}, action: "s3:GetEncryptionConfiguration"},
	{name: "GetBucketIntelligentTieringConfiguration", method: "GET", level: levelBucket, query: []string{"intelligent-tiering", "id"}, action: "s3:GetIntelligentTieringConfiguration"},
	{name: "GetBucketInventoryConfiguration", method: "GET", level: levelBucket, query: []string{"inventory", "id"}, action: "s3:GetInventoryConfiguration"},
	{name: "GetBucketLifecycle", method: "GET", level: levelBucket, query: []string{"lifecycle"}, action: "s3:GetLifecycleConfiguration"},
	{name: "GetBucketLifecycleConfiguration", method: "GET", level: levelBucket, query: []string{"lifecycle"}, action: "s3:GetLifecycleConfiguration"},
	{name: "GetBucketLocation", method: "GET", level: levelBucket, query: []string{"location"}, action: "s3:GetBucketLocation", handler: (*Handler).getBucketLocation},
	{name: "GetBucketLogging", method: "GET", level: levelBucket, query: []string{"logging"}, action: "s3:GetBucketLogging"},
	{name: "GetBucketMetadataConfiguration", method: "GET", level: levelBucket, query: []string{"metadataConfiguration"}, action: "s3:GetBucketMetadataTableConfiguration"},
	{name: "GetBucketMetadataTableConfiguration", method: "GET", level: levelBucket, query: []string{"metadataTable"}, action: "s3:GetBucketMetadataTableConfiguration"},
	{name: "GetBucketMetricsConfiguration", method: "GET", level: levelBucket, query: []string{"metrics", "id"}, action: "s3:GetMetricsConfiguration"},
	{name: "GetBucketNotification", method: "GET", level: levelBucket, query: []string{"notification"}, action: "s3:GetBucketNotification"},
	{name: "GetBucketNotificationConfiguration", method: "GET", level: levelBucket, query: []string{"notification"}, action: "s3:GetBucketNotification"},
	{name: "GetBucketOwnershipControls", method: "GET", level: levelBucket, query: []string{"ownershipControls"}, action: "s3:GetBucketOwnershipControls"},
	{name: "GetBucketPolicy", method: "GET", level: levelBucket, query: []string{"policy"}, action: "s3:GetBucketPolicy"},
	{name: "GetBucketPolicyStatus", method: "GET", level: levelBucket, query: []string{"policyStatus"}, action: "s3:GetBucketPolicyStatus"},
	{name: "GetBucketReplication", method: "GET", level: levelBucket, query: []string{"replication"}, action: "s3:GetReplicationConfiguration"},
	{name: "GetBucketRequestPayment", method: "GET", level: levelBucket, query: []string{"requestPayment"}, action: "s3:GetBucketRequestPayment"},
	{name: "GetBucketTagging", method: "GET", level: levelBucket, query: []string{"tagging"}, action: "s3:GetBucketTagging"},
	{name: "GetBucketVersioning", method: "GET", level: levelBucket, query: []string{"versioning"}, action: "s3:GetBucketVersioning", handler: (*Handler).getBucketVersioning},
	{name: "GetBucketWebsite", method: "GET", level: levelBucket, query: []string{"website"}, action: "s3:GetBucketWebsite"},
	{name: "GetObject", method: "GET", level: levelObject, params: []string{"partNumber", "response-cache-control", "response-content-disposition", "response-content-encoding", "response-content-language", "response-content-type", "response-expires", "versionId"}, headers: readHeaders, action: "s3:GetObject", versionAction: "s3:GetObjectVersion", handler: (*Handler).getObject},
	{name: "GetObjectAcl", method: "GET", level: levelObject, query: []string{"acl"}, params: []string{"versionId"}, action: "s3:GetObjectAcl", versionAction: "s3:GetObjectVersionAcl"},
	{name: "GetObjectAttributes", method: "GET", level: levelObject, query: []string{"attributes"}, params: []string{"versionId"}, headers: []string{"x-amz-object-attributes", "x-amz-max-parts", "x-amz-part-number-marker"}, action: "s3:GetObjectAttributes", versionAction: "s3:GetObjectVersionAttributes", handler: (*Handler).getObjectAttributes},
	{name: "GetObjectLegalHold", method: "GET", level: levelObject, query: []string{"legal-hold"}, params: []string{"versionId"}, action: "s3:GetObjectLegalHold"},
	{name: "GetObjectLockConfiguration", method: "GET", level: levelBucket, query: []string{"object-lock"}, action: "s3:GetBucketObjectLockConfiguration"},
	{name: "GetObjectRetention", method: "GET", level: levelObject, query: []string{"retention"}, params: []string{"versionId"}, action: "s3:GetObjectRetention"},
	{name: "GetObjectTagging", method: "GET", level: levelObject, query: []string{"tagging"}, params: []string{"versionId"}, action: "s3:GetObjectTagging", versionAction: "s3:GetObjectVersionTagging", handler: (*Handler).getObjectTagging},
	{name: "GetObjectTorrent", method: "GET", level: levelObject, query: []string{"torrent"}, action: "s3:GetObjectTorrent"},
	{name: "GetPublicAccessBlock", method: "GET", level: levelBucket, query: []string{"publicAccessBlock"}, action: "s3:GetBucketPublicAccessBlock"},
	{name: "HeadBucket", method: "HEAD", level: levelBucket, action: "s3:ListBucket", handler: (*Handler).headBucket},
	{name: "HeadObject", method: "HEAD", level: levelObject, params: []string{"partNumber", "response-cache-control", "response-content-disposition", "response-content-encoding", "response-content-language", "response-content-type", "response-expires", "versionId"}, headers: readHeaders, action: "s3:GetObject", versionAction: "s3:GetObjectVersion", handler: (*Handler).headObject},
	{name: "ListBucketAnalyticsConfigurations", method: "GET", level: levelBucket, query: []string{"analytics"}, params: []string{"continuation-token"}, action: "s3:GetAnalyticsConfiguration"},
	{name: "ListBucketIntelligentTieringConfigurations", method: "GET", level: levelBucket, query: []string{"intelligent-tiering"}, params: []string{"continuation-token"}, action: "s3:GetIntelligentTieringConfiguration"},
	{name: "ListBucketInventoryConfigurations", method: "GET", level: levelBucket, query: []string{"inventory"}, params: []string{"continuation-token"}, action: "s3:GetInventoryConfiguration"},
	{name: "ListBucketMetricsConfigurations", method: "GET", level: levelBucket, query: []string{"metrics"}, params: []string{"continuation-token"}, action: "s3:GetMetricsConfiguration"},
	{name: "ListBuckets", method: "GET", level: levelService, params: []string{"bucket-region", "continuation-token", "max-buckets", "prefix"}, action: "s3:ListAllMyBuckets", handler: (*Handler).listBuckets},
	{name: "ListDirectoryBuckets", method: "GET", level: levelService, query: []string{"x-id=ListDirectoryBuckets"}, params: []string{"continuation-token", "max-directory-buckets"}, action: "s3express:ListAllMyDirectoryBuckets"},
	{name: "ListMultipartUploads", method: "GET", level: levelBucket, query: []string{"uploads"}, params: []string{"delimiter", "encoding-type", "key-marker", "max-uploads", "prefix", "upload-id-marker"}, action: "s3:ListBucketMultipartUploads", handler: (*Handler).listMultipartUploads},
	{name: "ListObjectVersions", method: "GET", level: levelBucket, query: []string{"versions"}, params: []string{"metadata", "delimiter", "encoding-type", "key-marker", "max-keys", "prefix", "version-id-marker"}, headers: listHeaders, action: "s3:ListBucketVersions", handler: (*Handler).listObjectVersions},
	{name: "ListObjects", method: "GET", level: levelBucket, params: []string{"delimiter", "encoding-type", "marker", "max-keys", "prefix"}, headers: listHeaders, action: "s3:ListBucket", handler: (*Handler).listObjects},
	{name: "ListObjectsV2", method: "GET", level: levelBucket, query: []string{"list-type=2"}, params: []string{"unsorted", "metadata", "continuation-token", "delimiter", "encoding-type", "fetch-owner", "max-keys", "prefix", "start-after"}, headers: listHeaders, action: "s3:ListBucket", handler: (*Handler).listObjectsV2},
	{name: "ListParts", method: "GET", level: levelObject, query: []string{"uploadId"}, params: []string{"max-parts", "part-number-marker"}, action: "s3:ListMultipartUploadParts", handler: (*Handler).listParts},
	{name: "PutBucketAbac", method: "PUT", level: levelBucket, query: []string{"abac"}, action: "s3:PutBucketAbac"},
	{name: "PutBucketAccelerateConfiguration", method: "PUT", level: levelBucket, query: []string{"accelerate"}, action: "s3:PutAccelerateConfiguration"},
	{name: "PutBucketAcl", method: "PUT", level: levelBucket, query: []string{"acl"}, action: "s3:PutBucketAcl"},
	{name: "PutBucketAnalyticsConfiguration", method: "PUT", level: levelBucket, query: []string{"analytics", "id"}, action: "s3:PutAnalyticsConfiguration"},
	{name: "PutBucketCors", method: "PUT", level: levelBucket, query: []string{"cors"}, action: "s3:PutBucketCORS"},
	{name: "PutBucketEncryption", method: "PUT", level: levelBucket, query: []string{"encryption"}, action: "s3:PutEncryptionConfiguration"},
	{name: "PutBucketIntelligentTieringConfiguration", method: "PUT", level: levelBucket, query: []string{"intelligent-tiering", "id"}, action: "s3:PutIntelligentTieringConfiguration"},
	{name: "PutBucketInventoryConfiguration", method: "PUT", level: levelBucket, query: []string{"inventory", "id"}, action: "s3:PutInventoryConfiguration"},
	{name: "PutBucketLifecycle", method: "PUT", level: levelBucket, query: []string{"lifecycle"}, action: "s3:PutLifecycleConfiguration"},
	{name: "PutBucketLifecycleConfiguration", method: "PUT", level: levelBucket, query: []string{"lifecycle"}, action: "s3:PutLifecycleConfiguration"},
	{name: "PutBucketLogging", method: "PUT", level: levelBucket, query: []string{"logging"}, action: "s3:PutBucketLogging"},
	{name: "PutBucketMetricsConfiguration", method: "PUT", level: levelBucket, query: []string{"metrics", "id"}, action: "s3:PutMetricsConfiguration"},
	{name: "PutBucketNotification", method: "PUT", level: levelBucket, query: []string{"notification"}, action: "s3:PutBucketNotification"},
	{name: "PutBucketNotificationConfiguration", method: "PUT", level: levelBucket, query: []string{"notification"}, action: "s3:PutBucketNotification"},
	{name: "PutBucketOwnershipControls", method: "PUT", level: levelBucket, query: []string{"ownershipControls"}, action: "s3:PutBucketOwnershipControls"},
	{name: "PutBucketPolicy", method: "PUT", level: levelBucket, query: []string{"policy"}, action: "s3:PutBucketPolicy"},
	{name: "PutBucketReplication", method: "PUT", level: levelBucket, query: []string{"replication"}, action: "s3:PutReplicationConfiguration"},
	{name: "PutBucketRequestPayment", method: "PUT", level: levelBucket, query: []string{"requestPayment"}, action: "s3:PutBucketRequestPayment"},
	{name: "PutBucketTagging", method: "PUT", level: levelBucket, query: []string{"tagging"}, action: "s3:PutBucketTagging"},
	{name: "PutBucketVersioning", method: "PUT", level: levelBucket, query: []string{"versioning"}, headers: bodyHeaders, action: "s3:PutBucketVersioning", handler: (*Handler).putBucketVersioning},
	{name: "PutBucketWebsite", method: "PUT", level: levelBucket, query: []string{"website"}, action: "s3:PutBucketWebsite"},
	{name: "PutObject", method: "PUT", level: levelObject, headers: slices.Concat(newObject, bodyHeaders), action: "s3:PutObject", handler: (*Handler).putObject},
	{name: "PutObjectAcl", method: "PUT", level: levelObject, query: []string{"acl"}, params: []string{"versionId"}, action: "s3:PutObjectAcl", versionAction: "s3:PutObjectVersionAcl"},
	{name: "PutObjectLegalHold", method: "PUT", level: levelObject, query: []string{"legal-hold"}, params: []string{"versionId"}, action: "s3:PutObjectLegalHold"},
	{name: "PutObjectLockConfiguration", method: "PUT", level: levelBucket, query: []string{"object-lock"}, action: "s3:PutBucketObjectLockConfiguration"},
	{name: "PutObjectRetention", method: "PUT", level: levelObject, query: []string{"retention"}, params: []string{"versionId"}, action: "s3:PutObjectRetention"},
	{name: "PutObjectTagging", method: "PUT", level: levelObject, query: []string{"tagging"}, params: []string{"versionId"}, headers: bodyHeaders, action: "s3:PutObjectTagging", versionAction: "s3:PutObjectVersionTagging", handler: (*Handler).putObjectTagging},
	{name: "PutPublicAccessBlock", method: "PUT", level: levelBucket, query: []string{"publicAccessBlock"}, action: "s3:PutBucketPublicAccessBlock"},
	{name: "RenameObject", method: "PUT", level: levelObject, query: []string{"renameObject"}, action: "s3express:RenameObject"},
	{name: "RestoreObject", method: "POST", level: levelObject, query: []string{"restore"}, params: []string{"versionId"}, action: "s3:RestoreObject"},
	{name: "SelectObjectContent", method: "POST", level: levelObject, query: []string{"select", "select-type=2"}, action: "s3:GetObject"},
	{name: "UpdateBucketMetadataInventoryTableConfiguration", method: "PUT", level: levelBucket, query: []string{"metadataInventoryTable"}, action: "s3:UpdateBucketMetadataInventoryTableConfiguration"},
	{name: "UpdateBucketMetadataJournalTableConfiguration", method: "PUT", level: levelBucket, query: []string{"metadataJournalTable"}, action: "s3:UpdateBucketMetadataJournalTableConfiguration"},
	{name: "UpdateObjectEncryption", method: "PUT", level: levelObject, query: []string{"encryption"}, params: []string{"versionId"}, action: "s3:UpdateObjectEncryption"},
	{name: "UploadPart", method: "PUT", level: levelObject, query: []string{"partNumber", "uploadId"}, headers: bodyHeaders, action: "s3:PutObject", handler: (*Handler).uploadPart},
	{name: "UploadPartCopy", method: "PUT", level: levelObject, query: []string{"partNumber", "uploadId"}, header: "x-amz-copy-source", headers: slices.Concat(sourceHeaders, []string{"x-amz-copy-source-range"}), action: "s3:PutObject", handler: (*Handler).uploadPartCopy},
	{name: "WriteGetObjectResponse", method: "POST", level: levelBucket, header: "x-amz-request-route", action: "s3-object-lambda:WriteGetObjectResponse"},
	// Not in the service model: what browsers send.
	{name: "PostObject", method: "POST", level: levelBucket, header: "content-type=multipart/form-data", open: true, handler: (*Handler).postObject},
	{name: "Preflight", method: "OPTIONS", level: levelService, open: true, handler: (*Handler).preflight},
	{name: "Preflight", method: "OPTIONS", level: levelBucket, open: true, handler: (*Handler).preflight},
	{name: "Preflight", method: "OPTIONS", level: levelObject, open: true, handler: (*Handler).preflight},
}

// benignHeaders change nothing that is stored or answered, or are honoured for every operation
// before its handler runs.
var benignHeaders = set(
	"x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-decoded-content-length", "x-amz-trailer",
	"x-amz-sdk-checksum-algorithm", "x-amz-user-agent", "x-amz-expected-bucket-owner", "x-amz-request-payer",
	"x-amz-cf-id", "x-amz-te", "x-amz-api-version",
)

// benignParams are understood by every operation: x-id is a hint of the SDKs for logs; the rest
// belongs to presigned URLs and has been verified by then.
var benignParams = set(
	"x-id", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders",
	"X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Content-Sha256",
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// row is an operation prepared for look-up.
type row struct {
	*operation
	weight  int // how specific the match is
	params  map[string]bool
	headers map[string]bool
}

// table finds the row of a request: rows by method and level, the most specific first.
type table struct {
	rows map[string][3][]*row
}

func newTable(ops []operation) *table {
	t := &table{rows: map[string][3][]*row{}}
	for i := range ops {
		op := &ops[i]
		r := &row{operation: op, weight: 2 * len(op.query), params: set(op.params...), headers: set(op.headers...)}
		if op.header != "" {
			r.weight++
		}
		for _, q := range op.query {
			name, _, _ := strings.Cut(q, "=")
			r.params[name] = true
		}
		byLevel := t.rows[op.method]
		byLevel[op.level] = append(byLevel[op.level], r)
		t.rows[op.method] = byLevel
	}
	for _, byLevel := range t.rows {
		for _, rows := range byLevel {
			slices.SortStableFunc(rows, func(a, b *row) int { return b.weight - a.weight })
		}
	}
	return t
}

// find returns the row that a request names, or nil when the method is not allowed there.
func (t *table) find(method string, l level, q query, h http.Header) *row {
	for _, r := range t.rows[method][l] {
		if r.matches(q, h) {
			return r
		}
	}
	return nil
}

// allowed lists the methods of a level, for the Allow header.
func (t *table) allowed(l level) string {
	var names []string
	for m, byLevel := range t.rows {
		if len(byLevel[l]) > 0 {
			names = append(names, m)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func (r *row) matches(q query, h http.Header) bool {
	for _, want := range r.query {
		name, value, exact := strings.Cut(want, "=")
		got, ok := q.lookup(name)
		if !ok || exact && got != value {
			return false
		}
	}
	if r.header == "" {
		return true
	}
	name, prefix, _ := strings.Cut(r.header, "=")
	v := h.Get(name)
	return v != "" && strings.HasPrefix(strings.ToLower(v), prefix)
}

// check refuses what the operation does not understand: nothing is accepted and ignored.
func (r *row) check(q query, h http.Header) error {
	for _, p := range q {
		switch {
		case r.params[p.name] || benignParams[p.name]:
		case p.name == "versionId":
			return fail("InvalidArgument", "This operation does not accept a version-id.").with("ArgumentName", "versionId").with("ArgumentValue", p.value)
		case responseOverride(p.name) != "" && r.level == levelObject && (r.method == http.MethodGet || r.method == http.MethodHead):
		case strings.HasPrefix(p.name, "x-") && !strings.HasPrefix(p.name, "x-amz-"):
			// The API reserves such names for the senders' own remarks in access logs.
		default:
			return fail("NotImplemented", "A query parameter you provided implies functionality that is not implemented.").with("Parameter", p.name)
		}
	}
	for name := range h {
		n := strings.ToLower(name)
		switch {
		case strings.HasPrefix(n, "x-minio-"):
		case !strings.HasPrefix(n, "x-amz-"), strings.HasPrefix(n, "x-amz-meta-"), benignHeaders[n], r.headers[n]:
			continue
		}
		return fail("NotImplemented", "A header you provided implies functionality that is not implemented.").with("Header", n)
	}
	return nil
}
