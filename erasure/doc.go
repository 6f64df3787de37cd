// Package erasure turns a byte stream into checksummed shards and back: any profile k+m, byte
// ranges, rebuild of single shards, and the inline form that small bodies take as rows.
//
// It owns the shard file format, the inline row format, coding, and the checksums of both. It knows
// no drives, no networks and no HTTP: it writes to Sinks and reads from Sources.
//
// # Invariants
//
//   - No byte is handed out that was not verified, or decoded from k verified blocks.
//   - A shard file is a function of (Chunk, index, body): a rebuilt shard is byte-identical.
//   - A buffer lent to a Write or ReadAt that hangs is not used again before that call returns.
//   - Memory per stream is bounded: see EncoderOptions and ReadOptions.
//   - Every goroutine is counted by the Coders that the stream was given; Coders.Wait waits for them.
//
// # Shard file, version 1
//
// All integers are little endian. B is BlockSize, 256 KiB. Stripe t of a chunk covers k×B bytes of
// its body, and data shard j holds bytes [j×B, (j+1)×B) of each stripe. The tail stripe, of L bytes,
// is cut into blocks of ⌈L/k⌉ bytes instead (zero-padded to k×⌈L/k⌉ for coding), so that a small body
// is not padded to whole blocks. Each block is stored padded with zeros to a multiple of 4096, so
// that every offset and length suits O_DIRECT.
//
//	offset            bytes  content
//	0                 4096   header
//	4096              T×B    blocks of the T = ⌊size/(k×B)⌋ full stripes
//	4096+T×B          ⌈⌈L/k⌉⌉ tail block, rounded up to 4096; absent when L = 0
//	                         footer, rounded up to 4096:
//	+0                16×c     xxh3-128 of each of the c stored blocks, padding included
//	...                        zeros
//	end−64            64       trailer
//
// Header:
//
//	0     8   magic "OSTRKSHD"
//	8     2   version, 1
//	10    2   coding: 1 = Reed–Solomon over GF(2^8), systematic Vandermonde
//	12    4   mandatory feature flags: a reader refuses those that it does not know
//	16    4   optional feature flags: a reader ignores those that it does not know
//	20    1   k
//	21    1   m
//	22    1   shard index
//	23    1   block checksum: 1 = seeded xxh3-128
//	24    4   block size
//	28    4   chunk index
//	32    16  data id
//	48    8   size of the chunk's body
//	56    8   owner: bucket number
//	64    16  owner: upload id, zero if none
//	80    4   owner: part number, 0 if none
//	84    2   owner: length of the key
//	86    2   transforms of the body, 0 = none
//	88    4   profile id, 0 = as k and m say
//	92    36  zeros
//	128   ..  owner: key, at most 1024 bytes, then zeros
//	4080  16  xxh3-128 of the 4080 bytes before
//
// Trailer:
//
//	0     8   magic "OSTRKEND"
//	8     2   version, 1
//	10    1   k
//	11    1   m
//	12    1   shard index
//	13    3   zeros
//	16    4   number of blocks
//	20    4   chunk index
//	24    16  data id
//	40    8   size of the chunk's body
//	48    16  xxh3-128 of the footer before this field
//
// The checksum of block b is seeded with xxh3-64 of (data id, chunk index, shard index, b), so that a
// block that is valid elsewhere (misdirected, stale, of another shard) fails here. Checksums guard
// against errors of hardware and software, not against an adversary who can write to the drive.
//
// # Inline row, version 1
//
//	0     1   version, 1
//	1     1   mandatory feature flags
//	2     1   optional feature flags
//	3     1   shard index
//	4     1   k
//	5     1   m
//	6     2   zeros
//	8     16  xxh3-128 of the payload, seeded with xxh3-64 of (data id, body size, bytes 0–8)
//	24    ..  payload: ⌈size/k⌉ bytes
//
// Everything that is parsed prints back byte for byte.
package erasure
