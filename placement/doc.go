// Package placement says where data belongs: the numbered layout with its table partition → n
// drives, the quorums that follow from a profile, and the cover that a LIST must ask.
//
// Everything here is a pure value: values in, values out, no I/O, no clock, no randomness that is
// not derived from the arguments. A Layout is immutable once made and may be shared freely.
//
// The package owns
//   - the quorum formulas W, R, Z and k+r of the register (docs/protocol.md);
//   - the hashes key → partition, key → digest slice, (data id, chunk) → partition and data id →
//     positions. They are part of the format: data are found by them, so they never change;
//   - the layout, the steps in which one drive takes the place of another, and the encoding;
//   - the plan: from a layout and a goal to the fewest moves (plan_make.go; flow.go for how many
//     places a drive is to have, plan_shuffle.go for which ones).
//
// It never decides whether a drive is alive, and never changes a layout: a change is a new
// Layout with the next number, made because an operator asked for it.
//
// # Invariants
//
//   - W+W > n, R+W > n, Z+W > n and Z+R > n for every quorum that is handed out.
//   - The drives of one partition are distinct.
//   - The members of a partition change only together with its epoch, which only rises. A partition becomes wider,
//     never narrower, and where a body lies does not depend on how wide its partition is now.
//   - The quorum of a partition changes only together with its epoch: the spread f is stored in
//     the layout, not computed from what is known of hosts today.
//
// # Encoding of a layout
//
//	"OLAY" | format byte 1 | body | xxh3-64 of all before, little endian
//
// The body is a sequence of protobuf wire fields in ascending order of number, each at most once
// but for field 5:
//
//	1 number (varint)        6 rows: distinct rows of the table, n varints each, every entry
//	2 bits (varint)            an index into the drives (bytes)
//	3 profile  k,m (bytes)   7 table: runs of (row index, length), varints (bytes)
//	4 reduced  k,m (bytes)   8 epochs: runs of (epoch, length), varints (bytes)
//	5 drive (bytes, many)    9 spreads: runs of (f, length), varints (bytes)
//
// and, as far as there are any,
//
//	10 formers: runs of (drive number or 0, length) over all positions, varints (bytes)
//	11 earlier profiles, oldest first: k,m of the profile, k,m of the reduced one (bytes)
//	12 stages: runs of (index into the earlier profiles, or their count; length), varints (bytes)
//
// A row of a partition that is narrower than the profile ends with the number of drives, once for each place that
// nobody has yet. Within a drive: 1 number, 2 id, 3 node, 4 zone, 5 capacity, 6 class. Numbers 13 to 15 are set
// aside for transitions (staged newcomers with the mover's term), hosts and zone caps. A field below 1000 that is unknown is refused; others are kept as they are.
package placement
