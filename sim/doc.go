// Package sim is the second tier of the simulation: the whole store in one process, drives to S3
// endpoint, inside testing/synctest. Time is virtual, the drives are file systems in memory whose
// crash clones keep what was synced and lose the rest at random.
//
// It owns the faults, the clients and the judgement. The store is built from the constructors that
// the command uses; nothing of it is replaced but the file system and the clock, and, in most runs,
// the control plane: its heartbeats cost a run of many hours too much.
//
// A run is drawn from a seed: a profile, drives, clients, rounds of operations with faults between and
// during them, and hours of idleness. Afterwards everything is repaired, time passes until no drive
// has anything left to repair, to settle or to remove, and then:
//
//   - the history of each key, and of the bucket that comes and goes, is linearizable (a listing is a
//     read of every key; what was never answered may have happened at any later time; a checker that
//     runs out of time is a failure);
//   - every key can be read, every acknowledged version byte for byte, and so it is with m drives gone;
//   - every row and every shard of what is current is there and verified, on n drives, and of every body
//     that any record names there are n shards;
//   - all data have the profile that their storage class asks for now, which changes in the middle of runs;
//   - LIST equals the HEADs, key by key;
//   - the counter equals the increments that were acknowledged, but for those of unknown outcome;
//   - a check that the store makes of itself ends with healthy;
//   - no partition names a drive that was replaced, and none such serves, even if its disk is back;
//   - every shard is named by a record, every shard file by a row; and once everything is deleted,
//     no drive holds a row of a shard or a file.
//
// A seed draws the same schedule, but not the same run: goroutines, maps and random ids are not
// drawn from it. A failure that does not come again at once comes within some runs of its seed:
// go test ./sim -run TestSim -count 50 -failfast -args -seed N -keep DIR.
//
// # What is injected, and what judges it
//
// By the numbers of the table of faults; all of it in TestSim, but what names another test.
//
//	 2  sealed, no accept           power cut, clients that go away      → unreferenced shards
//	 4  accepted, no reply          power cut, late calls of links       → histories
//	 6  client abort, short body    badPut                               → histories: the value is never read
//	 7  bad checksum                badPut: Verify, Content-MD5          → the same
//	11  power cut                   power (all drives), pull (one)       → histories, versions
//	13  unsynced blocks             crash clones of 10 to 90 %           → shards verified
//	14  a sync fails once           sync-eio                             → histories, versions
//	15  … and then succeeds         sync-eio: the drive returns with what was on it when the sync failed
//	16  write error, short write    write-eio, short-write               → histories, shards
//	17  read error                  read-eio on shard files              → every byte of every GET
//	18  one drive full              low (the watermark), full (ENOSPC)   → histories, shards
//	21  a drive hangs for 60 s      hang, slow                           → histories; statuses
//	22  bit flips at rest           flip, on the weak drive              → every byte; repaired at the end
//	23  more flips than parity      TestMoreDamageThanParityIsAnErrorAndNeverWrongBytes
//	28  a drive is replaced         replace, twice and more              → histories (no stale read), every shard, the store's own check
//	29  m drives lost               at the end of every run              → every key
//	30  r drives lost after ack     pull                                 → histories
//	31  most drives down and back   majority                             → histories, statuses, versions
//	35  clock ±1 day                clock                                → histories
//	36  If-None-Match: *            putIfAbsent                          → histories
//	37  If-Match                    increment                            → counter, histories
//	38  overwrite during GET        slow readers                         → every byte
//	39  LIST in churn               list, in pages                       → histories
//	40  DELETE with a drive away    remove during pull                   → histories
//	41  Complete and re-upload      multipart with an accomplice         → histories
//	    profiles change             the class REDUCED_REDUNDANCY gets another one; data are re-coded beneath clients → all of the above
//	43  mover crash                 power during replace                 → the replacement ends; its partitions name the new drive
//	47  bucket deletion and PUT     churn                                → history of the whole bucket
//
// # Clusters
//
// TestSimCluster is the same of a store of several processes: machines with drives in zones, gateways without, each with
// its own file systems, clock and process, put together as the command does it. The control plane is the real one. Drives of
// others are reached by the real calls (package internal/rpc) over connections in memory that delay, stand still while
// messages are lost, break, and fall silent. Gossip alone is replaced, by a view that is wrong when the run says so.
// Clients use all gateways; afterwards each gateway is judged. -cluster makes -runs and -seed mean these.
//
//	32  partitions               cut, cut-zone                       → histories
//	33  one-way                  one-way, either way                 → histories
//	34  delays, twice            wires; calls of the control plane   → histories
//	35  clocks                   clock, of one node, by a day; nodes that differ by hours from the beginning → histories
//	36, 37, 47                   as above, over all gateways
//	42  add a node, drain one    plan, under load, one or both, reverted too → histories, every shard, nothing left on former drives
//	43  mover, leader down       leader; plan: power in each phase   → the plan ends; no former members; one layout everywhere
//	44  stale gateway            stale: it hears of no new layout    → histories
//	45  no quorum of control     no-control                          → every gateway reads and writes, no bucket is made
//	46  false suspicion          suspect, flap                       → without a plan the layout keeps its number
//	    power                    power, power-all, restart           → histories, versions; others are told, or hear nothing
//	    partitions become wider  grow: two fifths of the runs begin on one machine with 1+0, 1+1 or 2+1; strikes before, in and after
//	                             the change, and while data are written again → all of the above; every body has the new profile
//	    a node dies for good     bereave: it is given up, under load where that may be; strikes meanwhile; sometimes it comes back,
//	                             with all of its drives              → all of the above; it serves nothing
//
// A stock that nobody writes again is read in the middle of plans, once nothing is wrong: every chunk has k shards that can
// be reached at any time. Runs of a few hundred fail if something of this never happened in them (clusterReached).
//
// A drive that hangs is injected between gateway and drive, not in the file system: drives hold locks
// during their I/O, and a goroutine that waits for a lock keeps the virtual clock from advancing.
package sim
