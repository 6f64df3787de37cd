package checksum

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
)

// The catalogue's check values: the sum of "123456789", and published vectors for the others.
func TestKnownSums(t *testing.T) {
	for _, c := range []struct {
		a         Algorithm
		in, wantX string
	}{
		{CRC32, "123456789", "cbf43926"},
		{CRC32C, "123456789", "e3069283"},
		{CRC64NVME, "123456789", "ae8b14860a799888"},
		{SHA1, "abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
		{SHA256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{SHA512, "abc", "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"},
		{MD5, "abc", "900150983cd24fb0d6963f7d28e17f72"},
		{XXHASH64, "", "ef46db3751d8e999"},
		{XXHASH3, "", "2d06800538d394c2"},
		{XXHASH128, "", "99aa06d3014798d86001c324468d497f"},
	} {
		sum := c.a.Sum([]byte(c.in))
		if got := hex.EncodeToString(sum); got != c.wantX {
			t.Errorf("%v(%q) = %s, want %s", c.a, c.in, got, c.wantX)
		}
		if len(sum) != c.a.Size() || c.a.New().Size() != c.a.Size() {
			t.Errorf("%v: sizes %d, %d, %d differ", c.a, len(sum), c.a.New().Size(), c.a.Size())
		}
	}
}

func TestNamesAndHeadersRoundTrip(t *testing.T) {
	if n := len(Algorithms()); n != 10 {
		t.Fatalf("%d algorithms, want 10", n)
	}
	for _, a := range Algorithms() {
		if b, err := Parse(a.String()); err != nil || b != a {
			t.Errorf("Parse(%q) = %v, %v", a.String(), b, err)
		}
		if b, ok := FromHeader(a.Header()); !ok || b != a {
			t.Errorf("FromHeader(%q) = %v, %v", a.Header(), b, ok)
		}
	}
	if b, ok := FromHeader("X-Amz-Checksum-Crc64nvme"); !ok || b != CRC64NVME {
		t.Errorf("canonical header name: %v, %v", b, ok)
	}
	for _, s := range []string{"", "x-amz-checksum-", "x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-checksum-mode", "crc32"} {
		if a, ok := FromHeader(s); ok {
			t.Errorf("FromHeader(%q) = %v", s, a)
		}
	}
	for _, s := range []string{"", "CRC16", "SHA-256"} {
		if _, err := Parse(s); !errs.Is(err, errs.Invalid) {
			t.Errorf("Parse(%q): %v", s, err)
		}
	}
	for _, a := range []Algorithm{None, 11, 255} {
		if a.Valid() || a.String() != "" || a.Header() != "" || a.Size() != 0 || a.New() != nil || a.Sum(nil) != nil ||
			a.Permits(Composite) || a.Permits(FullObject) || a.DefaultType() != Unset {
			t.Errorf("algorithm %d is not refused everywhere", a)
		}
		if _, err := a.Decode(""); !errs.Is(err, errs.Invalid) {
			t.Errorf("Decode by algorithm %d: %v", a, err)
		}
	}
}

func TestTypesThatS3Permits(t *testing.T) {
	for _, a := range Algorithms() {
		crc := a == CRC32 || a == CRC32C || a == CRC64NVME
		if got := a.Permits(FullObject); got != crc {
			t.Errorf("%v permits FULL_OBJECT: %v", a, got)
		}
		if got, want := a.Permits(Composite), a != CRC64NVME; got != want {
			t.Errorf("%v permits COMPOSITE: %v", a, got)
		}
		if a.Permits(Unset) || !a.Permits(a.DefaultType()) {
			t.Errorf("%v: default %v", a, a.DefaultType())
		}
		_, err := a.Combine(nil)
		if (err == nil) != a.Permits(FullObject) {
			t.Errorf("%v.Combine: %v", a, err)
		}
		_, err = NewComposer(a)
		if (err == nil) != a.Permits(Composite) {
			t.Errorf("NewComposer(%v): %v", a, err)
		}
	}
	for _, x := range []Type{Composite, FullObject} {
		if y, err := ParseType(x.String()); err != nil || y != x {
			t.Errorf("ParseType(%q) = %v, %v", x.String(), y, err)
		}
	}
	if _, err := ParseType("composite"); !errs.Is(err, errs.Invalid) {
		t.Errorf("lower case type: %v", err)
	}
}

func TestTextFormsAreStrict(t *testing.T) {
	for _, a := range Algorithms() {
		sum := a.Sum([]byte("ostraka"))
		text := a.Encode(sum)
		got, err := a.Decode(text)
		if err != nil || !bytes.Equal(got, sum) {
			t.Errorf("%v: %x, %v", a, got, err)
		}
		if s, n, err := a.DecodeValue(a.EncodeComposite(sum, 7)); err != nil || n != 7 || !bytes.Equal(s, sum) {
			t.Errorf("%v composite: %x %d %v", a, s, n, err)
		}
		if s, n, err := a.DecodeValue(text); err != nil || n != 0 || !bytes.Equal(s, sum) {
			t.Errorf("%v plain: %x %d %v", a, s, n, err)
		}
		for _, bad := range []string{"", text + "=", text[1:], " " + text[1:], text + "\n", text[:len(text)-1] + "\n", "!" + text[1:],
			base64.RawStdEncoding.EncodeToString(sum), text + "-", text + "-0", text + "-01", text + "-10001", text + "-1-1", text + "-x", "-1"} {
			if bad == text {
				continue // where the raw form has no padding
			}
			if _, _, err := a.DecodeValue(bad); !errs.Is(err, errs.Invalid) {
				t.Errorf("%v accepts %q: %v", a, bad, err)
			}
		}
	}
	// The last base64 digit of a CRC32 has unused bits: they must be zero.
	if _, err := CRC32.Decode("y/Q5Jh=="); err == nil {
		t.Error("non-canonical base64 is accepted")
	}
}

// Combine must equal the sum of the concatenation, for any cut.
func TestCombineAgainstRecomputation(t *testing.T) {
	seed := uint64(20240601)
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, a := range []Algorithm{CRC32, CRC32C, CRC64NVME} {
		for range 200 {
			body := make([]byte, rnd.IntN(5000))
			for i := range body {
				body[i] = byte(rnd.Uint32())
			}
			var parts []Part
			for rest := body; ; {
				n := rnd.IntN(len(rest) + 1)
				parts = append(parts, Part{a.Sum(rest[:n]), int64(n)})
				if rest = rest[n:]; len(rest) == 0 {
					break
				}
			}
			got, err := a.Combine(parts)
			if err != nil || !bytes.Equal(got, a.Sum(body)) {
				t.Fatalf("%v over %d bytes in %d parts: %x, %v, want %x", a, len(body), len(parts), got, err, a.Sum(body))
			}
		}
		if got, err := a.Combine(nil); err != nil || !bytes.Equal(got, a.Sum(nil)) {
			t.Errorf("%v of nothing: %x, %v", a, got, err)
		}
	}
}

// Lengths beyond 32 bits cannot be recomputed here, but combination is associative.
func TestCombineOfHugeParts(t *testing.T) {
	for _, a := range []Algorithm{CRC32, CRC32C, CRC64NVME} {
		x, y, z := a.Sum([]byte("x")), a.Sum([]byte("y")), a.Sum([]byte("z"))
		const n, m = int64(5) << 40, int64(3)<<39 + 17
		left, _ := a.Combine([]Part{{x, 1}, {y, n}})
		all, _ := a.Combine([]Part{{left, n + 1}, {z, m}})
		right, _ := a.Combine([]Part{{y, n}, {z, m}})
		want, err := a.Combine([]Part{{x, 1}, {right, n + m}})
		if err != nil || !bytes.Equal(all, want) {
			t.Errorf("%v: (xy)z = %x, x(yz) = %x, %v", a, all, want, err)
		}
	}
}

func TestCombineRefusesWhatIsNoSum(t *testing.T) {
	for _, p := range []Part{{nil, 1}, {make([]byte, 3), 1}, {make([]byte, 8), 1}, {make([]byte, 4), -1}} {
		if _, err := CRC32.Combine([]Part{p}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", p, err)
		}
	}
}

func TestComposer(t *testing.T) {
	for _, a := range Algorithms() {
		c, err := NewComposer(a)
		if err != nil {
			continue
		}
		var all []byte
		for _, s := range []string{"one", "two", "three"} {
			all = append(all, a.Sum([]byte(s))...)
			if err := c.Add(a.Sum([]byte(s))); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Add([]byte("short")); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: a sum of the wrong length: %v", a, err)
		}
		if got, n := c.Sum(); n != 3 || !bytes.Equal(got, a.Sum(all)) {
			t.Errorf("%v: %x of %d, want %x", a, got, n, a.Sum(all))
		}
	}
}

func FuzzDecodeValue(f *testing.F) {
	f.Add(uint8(CRC32), "y/Q5Jg==")
	f.Add(uint8(SHA256), SHA256.EncodeComposite(SHA256.Sum(nil), 3))
	f.Fuzz(func(t *testing.T, n uint8, text string) {
		a := Algorithm(n)
		sum, parts, err := a.DecodeValue(text)
		if err != nil {
			return
		}
		back := a.Encode(sum)
		if parts > 0 {
			back = a.EncodeComposite(sum, parts)
		}
		if back != text {
			t.Fatalf("%q parses, and prints as %q", text, back)
		}
	})
}
