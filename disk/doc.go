// Package disk owns one drive: its identity, its record store and its shard files, crash-safe. It
// never knows other drives, networks or quorums, and decides nothing about a record: the register's
// rules are package metadata's, which runs here as the drive's acceptor.
//
// # On the drive
//
//	ostraka.json, ostraka.json.bak   the identity, twice (see Identity)
//	lock                             held while a process has the drive open
//	meta/                            Pebble: records ('a'…'m'), control plane ('c'), shard rows ('s'), jobs ('t')
//	meta/ostraka.sums                what its logs and MANIFESTs held when they were last synced (see vfsx.Sums)
//	shards/00 … shards/ff            256 directories, made and synced when the drive is formed
//	shards/ab/<data id>.<chunk>.<index>   one shard file; ab are the first two digits of the data id
//
// The shard directories have one level on purpose: a second would save nothing until a drive holds
// tens of millions of files, and each new directory costs a sync of its parent. Files get their final
// name at once; there is no rename.
//
// Keys of this package in the record store:
//
//	's'                       cluster id and drive id, binding the store to the identity
//	's' data-id(16) chunk(4)  shard row: the shard is here, whole and durable (see ShardRow);
//	                          for small bodies it carries the shard itself
//	't' name                  value of a background job: version, bytes, xxh3-64 seeded with the key
//
// # Order of operations
//
// A shard becomes durable in this order, each step awaited: file data → fdatasync → fsync of its
// directory → shard row with a sync of the log → answer. An inline shard is only the last two. A row
// therefore always has its file, whatever the power does, and a file without a row was never
// acknowledged. A shard is removed in the other order: the row, synced, then the file.
//
// A file without a row that no writer of this process owns can never be sealed any more: the writer's
// state went with its process, and a later Seal answers NotFound, as if the file had never been. So
// a sweep in the background of Open removes such files. It asks the record store about each, under
// the same lock as Seal, and keeps what it cannot ask about.
//
// # Faults
//
//   - A failed write or sync of anything but a full disk quarantines the drive at once: every later
//     operation answers errs.Drive with the reason, until the drive is closed and opened again. A
//     failed sync is never repeated: the kernel may have dropped the pages. A full disk under the
//     record store's log quarantines as well; under a shard file it is errs.Full for that shard.
//   - Reads that fail are counted and answered, and are not sticky.
//   - Rows that fail their checksum retire the drive for good, in its identity: a drive that lost
//     rows has forgotten promises and may only come back under a new id.
//   - What Pebble would answer by a panic on a goroutine of its own, which ends the process, is kept from it: a
//     log that cannot be made, written or closed fences the drive off in silence (vfsx.Guard), and damage in
//     a blob file is found before Pebble sees it (blobFS). A panic while it reads retires the drive.
//   - Pebble takes damage in its MANIFEST, and in the last record of its newest log, for the torn end that a crash
//     leaves. Damage of a MANIFEST that a whole record follows is found before it is opened, and so is every change of what a
//     log or the MANIFEST held when it was last synced (meta/ostraka.sums, vfsx.Sums). Known gap: that file is not synced
//     itself. After a power cut, damage in what it does not cover yet may be taken for a torn end.
//   - Below the watermark of free space new shards are refused with errs.Full; deletes, rows and what
//     was begun go on.
//   - A drive that hangs holds up no caller beyond its ctx: blocking work runs on goroutines of the
//     drive, of which there are at most Options.MaxInFlight; when nothing comes back from many of
//     them, new calls are refused at once.
package disk
