// Package cluster is the control plane: what is small, changes seldom and is needed on every
// request. Cluster identity, layout, buckets with their configuration, accounts and access keys,
// drives that are being replaced, and what an operator has set, are a replicated state machine on hashicorp/raft. It owns no object data and decides nothing
// about liveness.
//
// In one process there are three voters on distinct drives where there are three drives, one where
// there are fewer, joined by an in-memory transport. Log, term and snapshots of a voter are rows of
// its drive's record store, synced. Beside them every drive keeps a copy of what was applied, so
// that State is served at start, before any election and with any drives, and so that no single
// drive holds the only copy.
//
// In a cluster of several processes the voters are spread over zones and nodes, three, or five where five nodes have
// drives. Every other node has a learner on one of its drives, or in memory if it has none. A change
// that is made on any process goes to the leader, through Network; who made it reads it as soon as it is
// answered. See docs/decisions/0012-control-plane-over-nodes.md.
//
// Invariants:
//
//   - A change that was answered is in the synced logs of a majority of voters, and in the copies
//     of so many drives that one of them is left when as many are lost as the profile allows, those
//     that are away counted in; with one or two drives, where one voter has the only log, in the copies of
//     all that are here. Otherwise it ends as errs.Unknown.
//   - In a cluster that majority is on distinct nodes where there are three with drives; and the copies that a change
//     needs are on so many nodes that one is left when as many nodes are lost as the profile allows.
//   - A change has one effect, however often it arrives.
//   - A drive that hangs delays one change by a second; a voter on it is replaced as leader after
//     five, and starts again when the drive does.
//   - A voter whose rows are lost never returns: another, under a new id, takes its place.
//   - A voter on a drive that is retired, or away for a minute, moves to another drive that is here. It
//     leaves the drive that is to be retired before that is closed.
//   - A drive that is retired stays so for ever, and its number is never given again.
//   - Applying reads no clock and draws nothing at random.
//   - No vote is given and no entry acknowledged that is not stored.
//   - Without a quorum of voters changes end with errs.Unavailable; reads go on. When it does not come
//     back an operator begins a new generation of voters, from what is here (Recover).
//   - Voters of two generations never run in one process, and one of an earlier never starts where a
//     later is known.
package cluster
