package object

import (
	"net/netip"
	"strings"
)

var (
	reservedPrefixes = []string{"xn--", "sthree-", "amzn-s3-demo-"}
	reservedSuffixes = []string{"-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3", "-an"}
)

// ValidBucketName reports whether name may name a general purpose bucket: 3 to 63 characters,
// lower case letters, digits, dots and hyphens, beginning and ending with a letter or digit, no two
// dots together, not formed like an IP address, and none of the prefixes and suffixes that AWS reserves.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
func ValidBucketName(name string) bool {
	if len(name) < 3 || len(name) > 63 {
		return false
	}
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
		case c == '-', c == '.':
			if i == 0 || i == len(name)-1 {
				return false
			}
			if c == '.' && name[i-1] == '.' {
				return false
			}
		default:
			return false
		}
	}
	if a, err := netip.ParseAddr(name); err == nil && a.Is4() || ipLike(name) {
		return false
	}
	for _, p := range reservedPrefixes {
		if strings.HasPrefix(name, p) {
			return false
		}
	}
	for _, s := range reservedSuffixes {
		if strings.HasSuffix(name, s) {
			return false
		}
	}
	return true
}

// ipLike reports whether name is four groups of digits: AWS refuses the form, whatever the values.
func ipLike(name string) bool {
	groups := strings.Split(name, ".")
	if len(groups) != 4 {
		return false
	}
	for _, g := range groups {
		if g == "" || len(g) > 3 || strings.Trim(g, "0123456789") != "" {
			return false
		}
	}
	return true
}

// checkKey returns the reason why key cannot name an object, or nil.
func checkKey(key string) *Reason {
	switch {
	case key == "":
		return ErrInvalidKey
	case len(key) > MaxKeyLen:
		return ErrKeyTooLong
	}
	return nil
}
