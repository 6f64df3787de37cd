// Package gossip is who is there: discovery, liveness, addresses and what each process says of
// itself, by serf. It owns the tags, and the View that serf's events are gathered into.
//
// It decides nothing. What it says may be wrong for a while, in both directions: a view changes
// what is asked first, hedged and reported, never placement and never a quorum. It keeps nothing on a drive;
// serf's snapshots are not used. It is no proof of identity either: who has the gossip key can say
// anything, and only the certificate of a connection says who is at its other end.
//
// # Names
//
// A serf member is one run of a process: its name is the node id and a random tail, so that two
// processes with one node id, as after the copying of a drive, are both seen. A View is by node id: of several
// members the one that is alive counts, then the one that started last. If two are alive at different addresses the
// View says so (Duplicates).
//
// # Tags
//
// serf carries at most 512 bytes of tags. Keys are one letter, values text:
//
//	v  version of this table: 1
//	c  cluster id, base64url (22)          i  node id, base64url (22)
//	n  name, at most 48 bytes              r  roles: g gateway, n node
//	z  zone, at most 48 bytes              d  drive numbers: ranges in base 36, "0-2s,34"; "*" and a count if they do not fit
//	a  node address, at most 64 bytes      s  S3 address, at most 64 bytes
//	p  protocol versions "oldest-newest"   f  disk format versions "oldest-newest"
//	l  layout number, base 36              t  number of the trust state, base 36
//	b  when the process began, Unix milliseconds by its own clock, base 36
//
// A node of a hundred drives in sequence takes five bytes for them. Drives that do not fit are left out: the
// control plane knows whose they are. Unknown keys are passed over. A member whose tags do not parse, or that is
// of another cluster, is not in the View; it is counted.
//
// Invariants:
//
//   - serf is never blocked: its events are always taken, until it has ended.
//   - A View is immutable. Many events make one View.
//   - No key is in a log line or in an error.
package gossip
