// Package metadata owns the record of a key: its encoding, its rows in a drive's ordered store, the
// consensus register that writes it (acceptor on the drives, proposer at the gateways), and the
// merge of ordered listings. docs/protocol.md is the specification of the register. The package
// knows neither HTTP nor S3's XML, opens no file and no connection, and never trusts a clock for
// order: wall time seeds ballots and stamps garbage, and decides nothing.
//
// # Reading order
//
// types.go and messages.go are the vocabulary. judge.go is what a drive decides and proposer.go
// what an operation does next: both are values in, values out, and the simulation (sim_test.go) runs
// them by the million schedules. acceptor.go applies the decisions to the store, maintain.go holds a
// drive's work lists. client.go, update.go, read.go and scan.go drive operations over many drives.
// swap.go decides how one drive takes the place of another, swap_client.go does it, with
// acceptor_epoch.go on the drives; digest.go and acceptor_rows.go are how drives are compared.
//
// # Invariants
//
//   - No Accept is sent before the shard quorum of what it names is durable and promised for.
//   - A promise survives a restart: everything up to the durable ceiling counts as promised then,
//     and whatever was forgotten for want of memory counts as promised at the mark of its stripe.
//   - The version rows of a drive are exactly those of the state in its head row. A delta is applied
//     only to the state that it was computed from; a drive that lacks it answers Behind.
//   - A row is decided only if its state was chosen. Garbage is announced in the batch that decides.
//   - A shard is removed only under the lock of its register, when no row names it and nobody holds
//     a promise, or a pin, above the guard. What was chosen and let go needs no guard: its operation
//     can never be proposed again.
//   - A state over an absent row inherits the highest floor met, as its low.
//   - A drive serves one epoch of a partition: that of the layout, once installed in it and not wedged.
//     Every ballot that was accepted in an epoch is below the floor F with which the next one begins.
//   - Every register of a digest slice has the same stripe, and the slice's digest changes in the batch
//     that changes a state.
//   - No reader sees a row that is not durable: an Accept holds its register's lock over the sync.
//     (Scan takes no lock, and so believes only decided rows.)
//
// # Rows in a drive's store
//
// Integers are big endian. An address is
//
//	address  kind(1) bucket(8) key-escaped 00 01 [upload(16) [part(4)]]
//
// where the escape writes each 00 of the key as 00 FF, so that addresses order by kind, bucket, key,
// upload, part, for any bytes in the key. The namespaces are
//
//	'a' address              head row: Row
//	'b' address ^seq(8)      version row, newest first: Version
//	'd' address              mark of an unsettled row: ballot, partition, since; the same of earlier accepts that it inherits
//	'e' address              repair row: partition, positions
//	'f' bucket(8)            fence: bucket epoch, uvarint
//	'g' unix-nanos(8) id(16) garbage: address, partition, dead data, guard
//	'h'                      promise ceiling H: counter, uvarint
//	'i' partition(4)         floor F: ballot of the highest tombstone that was dropped
//	'j' slice(2)             digest: 16 bytes; 'j' alone: all digests are there
//	'k' partition(4)         membership: epochs installed and wedged, transition, term, floor
//
// ('c' belongs to the control plane, 's' to the shard store, 't' to background jobs.) A value is
//
//	format(1) = 1 | payload | CRC32C(4, little endian) over key, format and payload
//
// so that a value that was damaged, or lies under the wrong key, fails. Payloads and messages are
// protobuf wire fields in ascending order, zero values left out; a ballot is a varint counter and
// eight bytes of proposer. Field numbers below 1000 must be understood (else errs.Unsupported); from
// 1000 on they are kept byte for byte by Version and State and skipped elsewhere.
package metadata
