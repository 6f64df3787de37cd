package s3api

import (
	"bytes"
	"crypto/md5" //nolint:gosec // S3 defines it as an integrity check, not as protection.
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// digests are what a request says of its body.
type digests struct {
	md5       []byte
	algorithm checksum.Algorithm // None: the client names none
	sum       []byte             // announced in a header; nil: comes as trailer, or not at all
	trailer   bool
}

// digests reads Content-MD5 and the checksum headers.
func (c *call) digests() (digests, error) {
	var d digests
	var err error
	if v, ok := c.r.Header["Content-Md5"]; ok {
		if d.md5, err = parseMD5(v[0]); err != nil {
			return d, err
		}
	}
	for name, values := range c.r.Header {
		a, ok := checksum.FromHeader(name)
		if !ok {
			continue
		}
		if d.algorithm != checksum.None {
			return d, fail("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		if d.algorithm = a; len(values) != 1 {
			return d, fail("InvalidRequest", "Value for "+a.Header()+" header is invalid.")
		}
		if d.sum, err = a.Decode(values[0]); err != nil {
			return d, fail("InvalidRequest", "Value for "+a.Header()+" header is invalid.").because(err)
		}
	}
	for name := range strings.SplitSeq(strings.Join(c.r.Header.Values("X-Amz-Trailer"), ","), ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		a, ok := checksum.FromHeader(name)
		if !ok {
			return d, fail("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
		}
		if d.algorithm != checksum.None {
			return d, fail("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		d.algorithm, d.trailer = a, true
	}
	for _, name := range []string{"x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm"} {
		v := c.r.Header.Get(name)
		if v == "" {
			continue
		}
		a, err := checksum.Parse(v)
		if err != nil {
			return d, fail("InvalidRequest", "Value for "+name+" header is invalid.").because(err)
		}
		switch {
		case d.algorithm == checksum.None && d.md5 != nil && a == checksum.MD5:
		case d.algorithm == checksum.None && name == "x-amz-checksum-algorithm":
			d.algorithm = a // computed here
		case d.algorithm == checksum.None:
			return d, fail("InvalidRequest", name+" specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found.")
		case d.algorithm != a:
			return d, fail("InvalidRequest", "Value for "+name+" header is invalid.")
		}
	}
	// The sum of one body covers all of it.
	if v := c.r.Header.Get("X-Amz-Checksum-Type"); v != "" && v != checksum.FullObject.String() {
		return d, fail("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
	}
	return d, nil
}

// checked reports whether the client sent anything to verify the body by.
func (d *digests) checked() bool { return d.md5 != nil || d.sum != nil || d.trailer }

// expected returns the announced sum; of a trailer, once the body has been read to its end.
func (d *digests) expected(c *call) ([]byte, error) {
	if !d.trailer {
		return d.sum, nil
	}
	v := c.auth.Trailers().Get(d.algorithm.Header())
	sum, err := d.algorithm.Decode(v)
	if err != nil {
		return nil, fail("InvalidRequest", "Value for "+d.algorithm.Header()+" trailing header is invalid.").because(err)
	}
	return sum, nil
}

// verify compares what was announced with what was computed.
func (d *digests) verify(c *call, md5sum []byte, sum func(checksum.Algorithm) []byte) error {
	if d.md5 != nil && !bytes.Equal(d.md5, md5sum) {
		return fail("BadDigest", "The Content-MD5 you specified did not match what we received.").
			with("ExpectedDigest", base64.StdEncoding.EncodeToString(d.md5)).with("CalculatedDigest", hex.EncodeToString(md5sum))
	}
	want, err := d.expected(c)
	if err != nil || want == nil {
		return err
	}
	if got := sum(d.algorithm); !bytes.Equal(want, got) {
		return fail("BadDigest", "The "+d.algorithm.String()+" you specified did not match the calculated checksum.")
	}
	return nil
}

// verifyBytes verifies a body that is in memory.
func (d *digests) verifyBytes(c *call, body []byte) error {
	var sum []byte
	if d.md5 != nil {
		s := md5.Sum(body) //nolint:gosec // as above
		sum = s[:]
	}
	return d.verify(c, sum, func(a checksum.Algorithm) []byte { return a.Sum(body) })
}

// verifySums is for bodies that the store digests while they stream.
func (d *digests) verifySums(c *call) func(object.Sums) error {
	return func(s object.Sums) error {
		sum5 := s.MD5
		return d.verify(c, sum5, func(a checksum.Algorithm) []byte {
			for _, x := range s.Checksums {
				if x.Algorithm == uint8(a) {
					return x.Value
				}
			}
			return nil
		})
	}
}

// checksumElements names the XML elements of checksums.
var checksumElements = func() map[string]checksum.Algorithm {
	m := map[string]checksum.Algorithm{}
	for _, a := range checksum.Algorithms() {
		m["Checksum"+a.String()] = a
	}
	return m
}()

func checksumElement(name string) (checksum.Algorithm, bool) {
	a, ok := checksumElements[name]
	return a, ok
}

func decodeSum(a checksum.Algorithm, text string) ([]byte, bool) {
	sum, err := a.Decode(text)
	return sum, err == nil
}

// sumText is the text form of a stored checksum.
func sumText(s *metadata.Checksum) string {
	a := checksum.Algorithm(s.Algorithm)
	if s.Composite {
		return a.EncodeComposite(s.Value, int(s.Parts))
	}
	return a.Encode(s.Value)
}

func sumType(s *metadata.Checksum) string {
	if s.Composite {
		return checksum.Composite.String()
	}
	return checksum.FullObject.String()
}

// setChecksums announces the checksums of an answer; typed with their type, as objects have it and parts not.
func (p *response) setChecksums(sums []metadata.Checksum, typed bool) *response {
	for i := range sums {
		a := checksum.Algorithm(sums[i].Algorithm)
		if !a.Valid() {
			continue
		}
		p.set(a.Header(), sumText(&sums[i]))
		if typed {
			p.set("x-amz-checksum-type", sumType(&sums[i]))
			typed = false
		}
	}
	return p
}

// checksums appends the Checksum elements, and with typed a ChecksumType.
func (x *xmlBuf) checksums(sums []metadata.Checksum, typed bool) {
	for i := range sums {
		a := checksum.Algorithm(sums[i].Algorithm)
		if !a.Valid() {
			continue
		}
		x.elem("Checksum"+a.String(), sumText(&sums[i]))
	}
	if typed && len(sums) > 0 {
		x.elem("ChecksumType", sumType(&sums[0]))
	}
}

// checksumNames appends what listings tell: the algorithms and the type.
func (x *xmlBuf) checksumNames(sums []metadata.Checksum) {
	for i := range sums {
		if a := checksum.Algorithm(sums[i].Algorithm); a.Valid() {
			x.elem("ChecksumAlgorithm", a.String())
		}
	}
	if len(sums) > 0 {
		x.elem("ChecksumType", sumType(&sums[0]))
	}
}
