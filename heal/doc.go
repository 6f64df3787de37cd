// Package heal brings back what is missing, rotten or left over: rows and shards that a drive did not
// get while it was away, shards that fail their checksums, and data that records have let go of.
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
// are drained when the process starts, when a drive returns, when somebody asks (Trigger), and
// periodically. One register is tended as a whole:
//
//	read by quorum → bring rows up → for every version's data, every chunk, every position:
//	there and right? else rebuild what is missing, seal, read back → remove what is dead → clear the lists
//
// Once a day, shards that no record names and that are older than a day are judged by a fenced round on
// their register, and removed if nothing can come to refer to them (Orphans).
//
// Registers with the least redundancy left come first. A register that could not be tended fully
// (drives are away, too few shards) keeps its rows, and waits with growing pauses. No call to a drive is
// waited for without bound: a drive that lets one run out of time is away for the rest of the pass, and
// as long as such a call has not come back.
//
// Invariants: a repair row is cleared only after what it names was read back and verified; nothing is
// deleted merely because nobody was found who wants it; at most Config.Concurrency registers are tended at a time.
package heal
