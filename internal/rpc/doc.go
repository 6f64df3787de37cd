// Package rpc carries calls and streams between nodes over connections that are already authenticated
// (TLS, or a pipe in tests). It owns the wire: greeting, frames, errors, flow control, pools. It knows
// nothing of what it carries, and it never repeats a request that may have been executed.
//
// # Connections
//
// A [Client] reaches one peer. It keeps one connection for small calls, which are written together
// as they come, and a bounded number for streams, large payloads and large answers ([Client.CallBulk]), so that
// no small message waits behind bulk. A [Server] serves any number of connections. What is
// said below of one connection holds for both sorts.
//
// # The greeting
//
// Each end begins with one message, the client first:
//
//	magic "OSTRKRPC" | version of the greeting u8 = 1 | length u16 | fields (protobuf wire format)
//	  1 oldest protocol version spoken    2 newest                  3 mandatory feature bits
//	  4 cluster id (16 bytes)             5 node id (16 bytes)      6 kind of a refusal + 1 (server)
//	  7 text of a refusal                 8 what the connection is for: 0 small calls, 1 bulk
//
// Both take the highest version that both speak; there being none is a refusal, as are another cluster and
// a feature bit that is not known. Fields from 1000 on may be ignored.
//
// # Frames
//
//	0        4       5      6            8       12
//	+--------+-------+------+------------+-------+----------------------+---------+
//	| length | type  | 0    | head bytes | id    | head (fields)        | payload |
//	+--------+-------+------+------------+-------+----------------------+---------+
//
// All numbers are little-endian. length counts head and payload, at most MaxMessage. id names a call or a stream;
// the client draws it, ascending, from 1 on; 0 is the connection itself.
//
//	1 call    → method, timeout, trace, priority, account; payload   5 data   ↔ a message of a stream, at most MaxData
//	2 reply   ← error, if any; payload                               6 window ↔ u32: so many bytes were taken
//	3 cancel  → the caller gave up: of a call or a stream            7 eos    → no more data comes
//	4 open    → as call; payload: the first message of a stream      8 end    ← error, if any: the stream is over
//	9 ping, 10 pong ↔ is somebody there                              11 goaway ← u32: nothing above this id is executed
//
// Head of call and open: 1 method, 2 timeout in µs (what is left of it; clocks need not agree), 3 trace (16 bytes),
// 4 priority, 5 account. Head of reply and end: 1 kind of the error + 1, 2 operation, 3 public text; 1000 load, from version 2 on. A field below
// 1000 that is not known refuses the call (errs.Unsupported); from 1000 on it is skipped.
//
// # Versions
//
//	1  all but what follows
//	2  replies and ends of streams say how many requests the node has to do with (load), so that work in the background of
//	   other nodes can yield to them
//
// testdata has frames of each version; they never change.
//
// # Errors
//
// An error crosses as kind, operation and public text. What fails here is errs.Unavailable (the
// connection), or errs.Timeout and errs.Canceled (the caller's ctx). [NotSent] tells whether the request certainly
// was not executed: no part of it was given to the connection, or not all of it, or the peer said so. Otherwise
// it may have been, and may still be. A call is sent again, on another connection, only if it was not sent.
//
// # Flow control
//
// A sender may have Window bytes of a stream under way that the receiver has not taken. So a reader that is slow
// holds up its own stream and nothing else, and who receives never has more than Window bytes of a stream in memory.
//
// # Dead peers
//
// An end that has read nothing for PingEvery asks; after DeadAfter it gives the connection up. Until then, a
// peer that hangs costs each caller its own deadline.
//
// # Goroutines
//
// Each connection has a reader and a writer; a server's has one more for each call and stream that runs. A
// Client owns those of its connections and of dialing, and Close waits for them; ServeConn returns when all of its
// connection's are gone.
package rpc
