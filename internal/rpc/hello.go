package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
)

// The protocol versions that this build speaks: n and n−1. The package comment says what each has.
const (
	OldestVersion uint32 = 1
	NewestVersion uint32 = 2

	// loadVersion is the first in which a node says how much it has to do.
	loadVersion uint32 = 2
)

// Identity is who one end of a connection is. Zero versions stand for those of this build.
type Identity struct {
	Cluster [16]byte
	Node    [16]byte
	// Oldest and Newest protocol versions to speak; tests and finalized upgrades narrow them.
	Oldest, Newest uint32
}

func (i Identity) versions() (oldest, newest uint32) {
	oldest, newest = i.Oldest, i.Newest
	if oldest == 0 {
		oldest = OldestVersion
	}
	if newest == 0 {
		newest = NewestVersion
	}
	return oldest, newest
}

var helloMagic = [8]byte{'O', 'S', 'T', 'R', 'K', 'R', 'P', 'C'}

const (
	helloVersion  = 1
	maxHello      = 4096
	knownFeatures = 0 // mandatory feature bits that this build understands
)

// hello is one side of the greeting.
type hello struct {
	oldest, newest uint32
	features       uint64
	cluster, node  [16]byte
	refusal        error
	bulk           bool
}

// Fields of a hello.
const (
	helloOldest   = 1
	helloNewest   = 2
	helloFeatures = 3
	helloCluster  = 4
	helloNode     = 5
	helloKind     = 6
	helloText     = 7
	helloBulk     = 8
)

func (h *hello) appendTo(b []byte) []byte {
	b = append(b, helloMagic[:]...)
	b = append(b, helloVersion, 0, 0)
	at := len(b)
	num := func(n protowire.Number, v uint64) {
		if v != 0 {
			b = protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
		}
	}
	num(helloOldest, uint64(h.oldest))
	num(helloNewest, uint64(h.newest))
	num(helloFeatures, h.features)
	b = protowire.AppendBytes(protowire.AppendTag(b, helloCluster, protowire.BytesType), h.cluster[:])
	b = protowire.AppendBytes(protowire.AppendTag(b, helloNode, protowire.BytesType), h.node[:])
	if h.refusal != nil {
		num(helloKind, uint64(errs.KindOf(h.refusal))+1)
		b = protowire.AppendString(protowire.AppendTag(b, helloText, protowire.BytesType), clip(errs.Public(h.refusal)))
	}
	if h.bulk {
		num(helloBulk, 1)
	}
	binary.LittleEndian.PutUint16(b[at-2:], uint16(len(b)-at))
	return b
}

// parseHello parses the fields of a hello.
func parseHello(b []byte) (h hello, err error) {
	bad := false
	var refused errs.Error
	err = ParseFields(b, func(num protowire.Number, u uint64, v []byte) bool {
		switch num {
		case helloOldest:
			bad = bad || u > 1<<31
			h.oldest = uint32(u)
		case helloNewest:
			bad = bad || u > 1<<31
			h.newest = uint32(u)
		case helloFeatures:
			h.features = u
		case helloCluster:
			bad = bad || copy(h.cluster[:], v) != 16
		case helloNode:
			bad = bad || copy(h.node[:], v) != 16
		case helloKind:
			if u > 0 && u-1 <= uint64(lastKind) {
				refused.Kind = errs.Kind(u - 1)
			}
			h.refusal = &refused
		case helloText:
			refused.Msg = clip(string(v))
		case helloBulk:
			h.bulk = u == 1
		default:
			return false
		}
		return true
	})
	refused.Op = "rpc.hello"
	if err == nil && bad {
		err = errs.E("rpc.hello", errs.Invalid, "malformed greeting")
	}
	return h, err
}

func readHello(r io.Reader) (hello, error) {
	var b [11]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return hello{}, unavailable("rpc.hello", "the peer did not greet", err)
	}
	n := int(binary.LittleEndian.Uint16(b[9:]))
	if !bytes.Equal(b[:8], helloMagic[:]) || b[8] != helloVersion || n > maxHello {
		return hello{}, errs.E("rpc.hello", errs.Invalid, "the peer does not speak this protocol")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return hello{}, unavailable("rpc.hello", "the peer did not greet", err)
	}
	return parseHello(body)
}

// agree returns the version to speak with a peer, or why there is none. self and peer are as the greetings say.
func agree(self Identity, peer *hello, want [16]byte) (uint32, error) {
	const op = "rpc.hello"
	oldest, newest := self.versions()
	version := min(newest, peer.newest)
	switch {
	case peer.cluster != self.Cluster:
		return 0, errs.E(op, errs.Denied, "the peer belongs to another cluster")
	case want != [16]byte{} && peer.node != want:
		return 0, errs.E(op, errs.Denied, "the peer is another node than was expected")
	case peer.features&^knownFeatures != 0:
		return 0, errs.E(op, errs.Unsupported, "the peer demands a feature that this version does not know")
	case version < oldest || version < peer.oldest || version == 0:
		return 0, errs.E(op, errs.Unsupported, fmt.Sprintf("no common protocol version: here %d to %d, there %d to %d",
			oldest, newest, peer.oldest, peer.newest))
	}
	return version, nil
}

// greetServer greets as a client. want is the node that should answer; zero: any.
func greetServer(nc net.Conn, self Identity, want [16]byte, bulk bool, deadline time.Time) (Peer, error) {
	if err := nc.SetDeadline(deadline); err != nil {
		return Peer{}, unavailable("rpc.hello", "the connection is closed", err)
	}
	h := hello{cluster: self.Cluster, node: self.Node, features: knownFeatures, bulk: bulk}
	h.oldest, h.newest = self.versions()
	if _, err := nc.Write(h.appendTo(nil)); err != nil {
		return Peer{}, unavailable("rpc.hello", "the peer did not greet", err)
	}
	p, err := readHello(nc)
	if err != nil {
		return Peer{}, err
	}
	if p.refusal != nil {
		return Peer{}, p.refusal
	}
	version, err := agree(self, &p, want)
	if err != nil {
		return Peer{}, err
	}
	return Peer{Node: p.node, Version: version}, clearDeadline(nc)
}

func clearDeadline(nc net.Conn) error {
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return unavailable("rpc.hello", "the connection is closed", err)
	}
	return nil
}

// greetClient greets as a server. peer is the node that the connection authenticated.
func greetClient(nc net.Conn, self Identity, peer [16]byte, deadline time.Time) (Peer, error) {
	if err := nc.SetDeadline(deadline); err != nil {
		return Peer{}, unavailable("rpc.hello", "the connection is closed", err)
	}
	p, err := readHello(nc)
	if err != nil {
		return Peer{}, err
	}
	h := hello{cluster: self.Cluster, node: self.Node, features: knownFeatures}
	h.oldest, h.newest = self.versions()
	version, refusal := agree(self, &p, peer)
	if refusal != nil {
		h.refusal = refusal
	}
	if _, err := nc.Write(h.appendTo(nil)); err != nil {
		return Peer{}, errors.Join(refusal, unavailable("rpc.hello", "the peer left", err))
	}
	if refusal != nil {
		return Peer{}, refusal
	}
	return Peer{Node: p.node, Version: version}, clearDeadline(nc)
}
