package main

import (
	"errors"
	"net"
	"reflect"
)

// A node that was removed from its cluster, and is started again, meets nodes that do not believe its certificate: TLS
// tells it so by an alert, with the first thing that it reads. In words for people that is that it was removed.

// badCertificate is the alert of TLS (RFC 8446, 6.2) with which nodes refuse the certificate of another: it was revoked,
// or its authority is not theirs any more.
const badCertificate = 42

// refusedUs reports whether the other end refused the certificate of this one. crypto/tls has no name for the type of the
// alerts that it receives.
func refusedUs(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false
	}
	alert := reflect.ValueOf(op.Err)
	return alert.IsValid() && alert.CanUint() && alert.Uint() == badCertificate
}

const removedText = "the other nodes refuse the certificate of this node: it was removed from the cluster (`ostraka admin node remove`). " +
	"To join anew, stop it, empty its directories, or name others, and start it with --join and --cluster-secret-file"

// heed takes note of it if the other end of a call refused this node.
func (m *mesh) heed(err error) {
	if err != nil && refusedUs(err) {
		m.wasRefused()
	}
}

// wasRefused says, once, that this node was removed.
func (m *mesh) wasRefused() {
	if m.refused.CompareAndSwap(false, true) {
		m.log.Error(removedText)
		m.waits(removedText)
	}
}
