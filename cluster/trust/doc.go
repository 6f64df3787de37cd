// Package trust is why two processes of a cluster believe each other. It owns the cluster's own
// certificate authority, the certificates of the nodes, the keys of the gossip, the verifier of the
// cluster secret, and the protocol by which a process joins that has nothing but the secret.
//
// It never stores and never replicates: State is a value with an encoding, which the control plane
// keeps as opaque bytes. It never reads a file or an environment, and it draws no conclusion from
// who is alive.
//
// # State
//
// A State is immutable; a change makes another one with a number one higher, and of two states of
// a cluster the one with the higher number holds. Authorities and gossip keys are changed in three
// steps, of which each begins once every process has seen the one before:
//
//	settled ── begin ──▶ introduced ── switch ──▶ switched ── drop ──▶ settled
//	one is trusted       two are trusted,         two are trusted,
//	and used             the old one is used      the new one is used
//
// So at any time what one process uses is trusted by those that are at most one step behind.
//
// Whoever holds the full state can issue certificates, for itself too: a node with drives comes up from
// its own copy when no other node is there. A public state (Public) has neither the keys of
// the authorities nor the verifier: a gateway verifies others with it, and issues nothing.
//
// # Certificates
//
// ECDSA P-256. A node's certificate names it by the one URI ostraka://<cluster>/<node> (32 hex digits
// each), is good for NodeLife, begins ClockSkew in the past and is renewed at half life. Clocks may
// therefore differ by hours. It is never written to a drive.
//
// # Connections
//
// One port, TLS 1.3 only, without session resumption; what a connection is for is chosen by ALPN,
// and a client that names no protocol is refused. All but JoinProtocol need certificates of both sides; the
// client says which node it means and gets no other. Certificates are verified in each handshake
// against the authorities of that moment; a connection that stands is not touched by a rotation; one to or from a
// node that is revoked is cut.
//
// # Joining
//
// The joiner knows addresses and the secret. It does not know the authority, so TLS alone tells
// it nothing; both sides prove the secret, bound to this very TLS channel by its exporter (RFC 8446, 7.5; RFC 5705). A man
// in the middle has two channels with two exporters: a proof from one is worth nothing on the other.
// The joiner proves first, so that nobody who can merely reach the port gets anything made of the secret.
//
//	message = type (1) ‖ length (4, big endian) ‖ body
//
//	joiner → member  1 hello    oldest (1) ‖ newest (1) ‖ proof (32)
//	member → joiner  2 welcome  version (1) ‖ cluster (16) ‖ proof (32)
//	joiner → member  3 request  node (16) ‖ full (1) ‖ length (2) ‖ certificate request (DER)
//	member → joiner  4 grant    length (4) ‖ certificate (DER) ‖ length (4) ‖ state ‖ count (2) ‖ count × (length (1) ‖ address)
//	member → joiner  5 refused  kind (1) ‖ length (2) ‖ text           in place of welcome or grant
//
//	proof of a side = HMAC-SHA256(verifier, label of the side ‖ 0 ‖ exporter (32) ‖ body before the proof)
//	verifier        = HKDF-SHA256(secret, no salt, "ostraka cluster secret 1", 32 bytes)
//
// A wrong secret is answered by one fixed refusal, whatever is wrong with it. Failed attempts are bounded by source.
//
// # The encoding of a state
//
// Big endian; times are Unix seconds.
//
//	magic "OTRS" ‖ version (1) = 1 ‖ flags (1): 1 = full
//	cluster (16) ‖ number (8)
//	full: verifier (32)
//	phase of the authorities (1) ‖ its beginning (8) ‖ count (1): 1 or 2, oldest first
//	  each: length (2) ‖ certificate (DER) ‖ full: private key (32)
//	phase of the gossip keys (1) ‖ its beginning (8) ‖ count (1): 1 or 2, oldest first
//	  each: key (32)
//	count of revocations (2): each node (16) ‖ time (8), in ascending order of node
//	CRC-32C of all before (4)
//
// Whatever decodes encodes to the same bytes.
//
// Invariants:
//
//   - No secret, key or verifier is in an error, in a log line, or in what fmt and slog print of the types here.
//   - A state with keys is never replaced by one without, nor by an older one.
//   - What is sent to an unproven peer is a refusal of a fixed text and nothing else.
package trust
