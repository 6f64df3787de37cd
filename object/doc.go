// Package object is S3's objects without S3's wire: buckets, objects, versions, multipart uploads
// and listings, as methods of Store.
//
// It owns the pipelines. A PUT draws a data id, splits the body into chunks, encodes each onto the
// drives of its partition while MD5 and checksums run beside, and commits through the key's
// register; a GET reads the register by quorum and decodes only the blocks that the range needs,
// through a cache of decoded blocks; a LIST merges scans. It decides everything that S3 decides on a
// record (conditions, version stacks, delete markers, the life of an upload) inside the register's
// round, on the base that the round found, so each of them is linearizable.
//
// It never speaks HTTP or XML, never authorizes, never decides by liveness where data belongs, and
// never deletes data: it lists data as dead in the commit that lets go of it, and package heal and
// the drives collect.
//
// Invariants:
//
//   - No commit names data whose shard quorum was not durable and held for that very ballot, in
//     every chunk.
//   - A request that fails leaves the version before it readable; what it streamed is garbage that
//     drives collect by themselves.
//   - The record is read by quorum for every request. Only immutable blocks, under their data id,
//     are cached.
//   - Bytes of two versions are never mixed in one answer: before the first byte a vanished shard
//     makes the read begin again at the record, after it the read fails.
//
// # Re-coding
//
// A body may be written again in another profile, under another data id; the version that names it stays the same to
// clients (recode.go). Parts become those of another upload then, whose id follows from what is re-coded; its register
// is that of a completed upload, with the upload that it is made of in Completed.Upload until a version names it.
//
// # The manifest
//
// The parts of a completed multipart upload are listed in the manifest, an immutable body with a
// data id of its own. It is
//
//	+---------+---------+--------------------------------------------+
//	| "OSMF"  | version | parts, in order, each length-prefixed      |
//	| 4 bytes | 1 byte  | protowire message: number, size, etag,     |
//	|         |         | checksums, data                            |
//	+---------+---------+--------------------------------------------+
//
// followed by the CRC32C of everything before it, four bytes big endian. Field numbers below 1000
// are mandatory to understand, as in every message of package metadata.
package object
