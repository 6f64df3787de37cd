package trust

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/ostraka/ostraka/internal/errs"
)

// Bounds of a secret, in bytes of text.
const (
	minSecret = 32 // 128 bits in hexadecimal digits
	maxSecret = 256
	// minDistinct turns away what cannot have been drawn at random. 32 random hexadecimal digits
	// have fewer different ones less than once in a million.
	minDistinct = 8
)

// Secret is the cluster secret: who knows it can become a node of the cluster. It must have been drawn at random
// with at least 128 bits, since whoever stands between a joiner and a member can try guesses offline; NewSecret draws 256.
// It prints as a word, never as itself. The zero Secret is none.
type Secret struct{ text *string } // a pointer, so that printing what holds a Secret shows an address

// NewSecret draws a secret.
func NewSecret() Secret {
	var raw [32]byte
	rand.Read(raw[:]) // never fails
	enc := base32.StdEncoding.WithPadding(base32.NoPadding)
	text := "ostraka-" + strings.ToLower(enc.EncodeToString(raw[:]))
	return Secret{&text}
}

// ParseSecret reads a secret as it stands in a file; white space around it does not count.
// It ends with errs.Invalid for what is too short, too long, or plainly not random.
func ParseSecret(file []byte) (Secret, error) {
	const op = "trust.ParseSecret"
	text := string(bytes.TrimSpace(file))
	if len(text) < minSecret || len(text) > maxSecret {
		return Secret{}, errs.E(op, errs.Invalid, fmt.Sprintf("the cluster secret must have %d to %d characters, drawn at random", minSecret, maxSecret))
	}
	var seen [256]bool
	distinct := 0
	for i := range len(text) {
		c := text[i]
		if c <= ' ' || c > '~' {
			return Secret{}, errs.E(op, errs.Invalid, "the cluster secret must be one word of printable ASCII characters")
		}
		if !seen[c] {
			seen[c] = true
			distinct++
		}
	}
	if distinct < minDistinct {
		return Secret{}, errs.E(op, errs.Invalid, "the cluster secret is not random: too few different characters")
	}
	return Secret{&text}, nil
}

// Reveal returns the secret itself, to be written into the file of the operator and nowhere else.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.text == nil }

// verifier derives what proves the secret and does not reveal it. It is worth as much as the secret
// to who wants to join, so it is kept as well as the authority's key.
func (s Secret) verifier() hidden {
	key, err := hkdf.Key(sha256.New, []byte(s.Reveal()), nil, "ostraka cluster secret 1", sha256.Size)
	if err != nil {
		panic("trust: HKDF refuses constant lengths: " + err.Error())
	}
	return hide(key)
}

// hidden are bytes that nothing prints by mistake: fmt follows a pointer to a slice or a struct in some cases, and one to a string in none.
type hidden struct{ text *string }

func hide(b []byte) hidden {
	text := string(b)
	return hidden{&text}
}

// bytes returns a copy; nil if there are none.
func (h hidden) bytes() []byte {
	if h.text == nil {
		return nil
	}
	return []byte(*h.text)
}

const redacted = "(secret)"

// Format prints a word in place of the secret, for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue prints a word in place of the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText prints a word in place of the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
