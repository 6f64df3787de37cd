// Package auth owns the question who asks, and may they: it verifies AWS Signature Version 4 on
// requests, presigned URLs and POST forms, decodes and verifies the body that a signature covers,
// signs requests for this project's own clients, and decides by an Authorizer what an identity may
// do. It knows no S3 operation, no XML and no storage, and it keeps no credentials: a KeySource does.
//
// Invariants
//
//   - A Request is only returned when every signature that can be checked before the body holds.
//   - A body whose digest, chunk signature, trailer signature or length is wrong is never delivered
//     whole: the last bytes and io.EOF are withheld until all of it has been verified. What commits
//     only after io.EOF, or after DecodedLength bytes, commits verified bytes only. Bytes before
//     that may be delivered unverified; that is what keeps memory constant. Of a body of unknown
//     length (DecodedLength -1) only io.EOF can be withheld.
//   - No secret, and nothing derived from one, is in an error or a log. Signatures are compared in
//     constant time.
//   - Signature Version 2 is refused unless Config.V2 asks for it; v2.go says what it leaves open.
//   - Host of a Request is the name that was signed. Buckets in host names must be read from it, not
//     from the Host header: behind PublicHosts the two differ, and the header is then not signed.
//
// The canonical request (S3 signs the path as it is sent, encoded once, and never normalizes it):
//
//	METHOD \n  /uri-encoded/path \n  sorted=query&string \n
//	name:value \n … for each signed header \n  (empty line)
//	names;of;signed;headers \n  payload
//
//	string to sign  AWS4-HMAC-SHA256 \n date \n day/region/service/aws4_request \n hex(sha256(canonical request))
//	signing key     HMAC(HMAC(HMAC(HMAC("AWS4"+secret, day), region), service), "aws4_request")
//	signature       hex(HMAC(signing key, string to sign))
//
// The body of aws-chunked uploads, with CRLF as written \r\n:
//
//	10000;chunk-signature=<64 hex>\r\n  65536 bytes \r\n      unsigned: no ";chunk-signature=…"
//	…
//	0;chunk-signature=<64 hex>\r\n
//	x-amz-checksum-crc32c:sOO8/Q==\r\n                        only with a …-TRAILER payload
//	x-amz-trailer-signature:<64 hex>\r\n                      only if signed
//	\r\n
//
// Signature Version 2, where it is on; date is "" with x-amz-date, and Expires in a presigned URL:
//
//	METHOD \n Content-MD5 \n Content-Type \n date \n  x-amz-name:value \n …  /bucket/path?sub-resource&other=value
//	signature       base64(HMAC-SHA1(secret, the above))
//
// Source: Amazon S3 API Reference, "Authenticating Requests (AWS Signature Version 4)".
package auth
