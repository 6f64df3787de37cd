// Package s3api is the S3 wire: it turns HTTP requests into calls of the object store, and what
// they return into headers, XML and error codes.
//
// It owns the one table of operations (operations.go), the one table of error codes (errors.go),
// addresses, headers, XML both ways, and the order in which a request is judged:
//
//	bound → address → header size → row of the table → signature → bucket → permission →
//	expected owner → every parameter and header understood? → handler → one writer
//
// A PUT is handler.go (serve, answer) → objects.go (putObject) → Store.Put, which reads the body
// through package auth, and asks back (body.go, verifySums) before it commits.
//
// It never knows how objects are stored, never verifies a signature itself, and keeps no state
// between requests.
//
// Invariants:
//
//   - Nothing is accepted and ignored. A query parameter or x-amz-* header that the operation does
//     not understand is answered NotImplemented (or InvalidArgument), and an element of a document
//     that is not known is MalformedXML or NotImplemented, before anything is changed.
//   - Nothing is read of a body before the signature of the head, the permission and everything
//     else that can be decided without it; so a client that expects 100-continue keeps its body.
//   - Keys are bytes of valid UTF-8, taken from the path as it was escaped: no cleaning, no merging
//     of slashes, no redirects.
//   - A body that breaks off is never mistaken for a whole one: the connection is cut.
//   - HEAD and GET run the same code and differ in the body alone.
//   - No signature, header value of a secret, or query is given to an Observer or a logger.
//
// Documents that clients send are parsed whole, bounded, and strictly, by a small parser without
// reflection (xmlread.go) into a tree:
//
//	element { name, text, children }   at most 16 deep and 200,000 elements
//
// Continuation tokens are base64url of a version byte, 1, and the position to continue behind.
//
// Codes of failures of the store: Unavailable, Unknown, Busy, Stale, Behind, Drive and Timeout are
// SlowDown (503, with Retry-After), since a retry is right for each; Full is InsufficientStorage (507), which
// AWS does not have, and which no SDK retries; Conflict is OperationAborted (409).
//
// Extensions, none of which AWS has: ListObjectsV2 with metadata=true tells the metadata of each object that the
// sender may read (a read for each key), and unsorted=true is any order, so the sorted one.
package s3api
