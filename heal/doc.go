// Package heal brings back what is missing, rotten or left over: rows and shards that a drive did not
// get while it was away, all that a replaced drive had, shards that fail their checksums, and data and
// tombstones that records have let go of. And it verifies that nothing is missing.
//
// It owns the order, the bounds and the progress of that work. It decides nothing about a record: what
// is chosen is read by quorum, rows are installed by the register's own repair, and only data that is
// named by a chosen record is rebuilt, only data that a chosen record lists as dead is removed. It is
// in no request's path.
//
// # Work lists
//
// All lists are durable, on the drives themselves: repair rows (a position of a register lacks its row
// or shard), marks of what is not settled (a crash came between accept and decision), and garbage. They
// are drained when the process starts, when a drive returns, when a read leaves a row (Nudge), when somebody
// asks (Trigger), and periodically. One register is tended as a whole (register.go):
//
//	read by quorum → bring rows up → for every version's data, every chunk, every position:
//	there and right? else rebuild what is missing, seal, read back → remove what is dead → clear the lists
//
// Registers with the least redundancy left come first (pass.go): by what the rows say, and then by what
// is found. A register that could not be tended fully (drives are away or full, too few shards) keeps its rows, and
// waits with growing pauses, which end when a drive comes, or has room again (room.go). Times that the
// drives kept decide nothing if they lie in the future: the clock was set back since. No call to a drive is waited for without bound (bounded.go): a drive that lets
// one run out of time is away for the rest of the pass, and as long as such a call has not come back.
//
// # Drives that come back, drives that come new
//
// A drive that was away is compared with the others by digests, and only what differs is looked at
// (returned.go). A newcomer in a dead drive's place is a job, a rebuild (rebuild.go, small.go): it becomes
// a member, gets its shards and rows in order of address, and is compared with all others. Where it is
// lies on the newcomer.
//
// # Loss
//
// Data is lost when all drives that may hold a shard of it are here and tell of theirs, and fewer good ones
// than needed are left (lost.go). Such a register keeps its repair row and is tried again, as a shard may
// turn up; its rows are brought up like those of others; nothing is removed. It does not hold up a rebuild: that
// ends, Bad being above Repaired by what is lost. But no check ends over it, so the store is
// StateDegraded, and Status.Why names up to ten such registers, by bucket and key, across restarts (they lie
// with the state of the check), until they are whole, overwritten or deleted.
//
// # Verification
//
// The other job is the check (check.go): every register on all members, every shard of every body by its
// checksums. StateHealthy means that one has ended with nothing left to repair, within a period of scrubs, and that since then
// no drive was away or replaced and nothing is pending. It survives a restart. What was written since is told besides
// (survey.go), and a check begins by itself before the last is too old. Scrubs (scrub.go) verify the shards of
// each drive by themselves, spread evenly over a period: so a check that begins merely because the last is old reads none,
// unless the scrubs are late or most of the shards are younger than they.
//
// # Re-coding
//
// Data keep the profile that they were written with until they are written again in the one that their storage class
// asks for now (recode.go): by the object plane, under a new data id, and by an ordinary round. Each drive's rows are
// walked for it after a change of the layout, and not any more once two walks a day apart met nothing.
//
// # Collection
//
// Dead data goes by the lists above (garbage.go). Once a day, by the drives' own record of when it was last,
// shards that no record names and that are older than a day are judged by a fenced round on their
// register, and removed if nothing can come to refer to them (orphan.go); tombstones that all members hold
// decided are dropped soon after the deletion (tomb.go). Nothing is deleted because too few answered: it is
// counted as blocked, and comes again.
//
// Invariants: a repair row is cleared only after what it names was read back and verified; nothing is
// deleted merely because nobody was found who wants it; at most Config.Concurrency registers are tended at a
// time by a pass, as many by a job; all of it goes at the pace of one limiter (pace.go).
package heal
