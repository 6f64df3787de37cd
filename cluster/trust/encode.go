package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

const (
	stateMagic   = "OTRS"
	stateVersion = 1
	flagFull     = 1

	// MaxState bounds an encoded state, in bytes.
	MaxState = 64 << 10
	maxCert  = 4 << 10 // of one certificate, in bytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendTo appends the encoding of s. The bytes hold every key of the cluster, unless s is public:
// they are to be kept and sent as such.
func (s *State) AppendTo(b []byte) []byte {
	start := len(b)
	b = append(b, stateMagic...)
	flags := byte(0)
	if s.Full() {
		flags = flagFull
	}
	b = append(b, stateVersion, flags)
	b = append(b, s.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, s.number)
	b = append(b, s.verifier.bytes()...)
	b = s.authorityStep.appendTo(b, len(s.authorities))
	for _, a := range s.authorities {
		b = binary.BigEndian.AppendUint16(b, uint16(len(a.cert.Raw)))
		b = append(b, a.cert.Raw...)
		if a.key != nil {
			key, err := a.key().Bytes()
			if err != nil {
				panic("trust: a P-256 key without bytes: " + err.Error())
			}
			b = append(b, key...)
		}
	}
	b = s.gossipStep.appendTo(b, len(s.gossip))
	for _, k := range s.gossip {
		b = append(b, k.bytes()...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.revoked)))
	for _, r := range s.revoked {
		b = append(b, r.node[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(r.at))
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func (r rotation) appendTo(b []byte, n int) []byte {
	b = append(b, byte(r.phase))
	b = binary.BigEndian.AppendUint64(b, uint64(r.since))
	return append(b, byte(n))
}

// Decode reads what AppendTo wrote, and keeps nothing of b. It ends with errs.Corrupt, or with
// errs.Unsupported for a later version.
func Decode(b []byte) (*State, error) {
	const op = "trust.Decode"
	if len(b) < len(stateMagic)+2+4 || string(b[:len(stateMagic)]) != stateMagic {
		return nil, errs.E(op, errs.Corrupt, "this is not the trust state of a cluster")
	}
	if v := b[len(stateMagic)]; v > stateVersion {
		return nil, errs.E(op, errs.Unsupported, "the trust state was written by a later version")
	}
	if len(b) > MaxState {
		return nil, errs.E(op, errs.Corrupt, "the trust state is too long")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, errs.E(op, errs.Corrupt, "the trust state is damaged")
	}
	r := reader{b: body[len(stateMagic):]}
	s := &State{}
	if r.byte() != stateVersion {
		r.bad = true
	}
	flags := r.byte()
	r.check(flags&^flagFull == 0)
	full := flags == flagFull
	copy(s.cluster[:], r.take(16))
	r.check(s.cluster != [16]byte{})
	s.number = r.uint64()
	if full {
		s.verifier = hide(r.take(keyBytes))
	}
	for range s.authorityStep.read(&r) {
		s.authorities = append(s.authorities, readAuthority(&r, full))
	}
	for range s.gossipStep.read(&r) {
		s.gossip = append(s.gossip, hide(r.take(keyBytes)))
	}
	n := int(r.uint16())
	r.check(n <= maxRevocations)
	for i := 0; i < n && !r.bad; i++ {
		var x revocation
		copy(x.node[:], r.take(16))
		x.at = int64(r.uint64())
		r.check(i == 0 || byNode(s.revoked[i-1], x.node) < 0)
		s.revoked = append(s.revoked, x)
	}
	if r.bad || len(r.b) != 0 {
		return nil, errs.E(op, errs.Corrupt, "the trust state does not parse")
	}
	return s, nil
}

// read reads a rotation, and how many authorities or keys there are: one when settled, two otherwise.
func (x *rotation) read(r *reader) int {
	x.phase, x.since = Phase(r.byte()), int64(r.uint64())
	n := int(r.byte())
	want := 2
	if x.phase == Settled {
		want = 1
	}
	r.check(x.phase <= Switched && n == want)
	if r.bad {
		return 0
	}
	return n
}

func readAuthority(r *reader, full bool) (a authority) {
	n := int(r.uint16())
	r.check(n <= maxCert)
	der := r.take(n)
	if r.bad {
		return a
	}
	cert, err := x509.ParseCertificate(slices.Clone(der))
	r.check(err == nil && cert.IsCA && cert.PublicKeyAlgorithm == x509.ECDSA && len(cert.Raw) == n)
	if r.bad {
		return a
	}
	a.cert = cert
	pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
	r.check(ok && pub.Curve == elliptic.P256())
	if full && !r.bad {
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), r.take(keyBytes))
		r.check(err == nil && key.PublicKey.Equal(pub))
		a.key = func() *ecdsa.PrivateKey { return key }
	}
	return a
}

// reader takes fields off the front of b. Once something is missing or wrong it is bad, and gives zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) check(ok bool) { r.bad = r.bad || !ok }

func (r *reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return make([]byte, max(0, min(n, keyBytes))) // fixed fields want their length; of others none is used once it is bad
	}
	x := r.b[:n]
	r.b = r.b[n:]
	return x
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }
