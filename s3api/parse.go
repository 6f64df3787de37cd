package s3api

import (
	"encoding/base64"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ostraka/ostraka/object"
)

// param is one parameter of a query.
type param struct{ name, value string }

// query is a request's query, decoded, in its order.
type query []param

// parseQuery decodes a raw query. Unlike url.ParseQuery it fails as a whole.
func parseQuery(raw string) (query, error) {
	if raw == "" {
		return nil, nil
	}
	q := make(query, 0, strings.Count(raw, "&")+1)
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		n, err := url.QueryUnescape(name)
		if err != nil {
			return nil, fail("InvalidURI", "").because(err)
		}
		v, err := url.QueryUnescape(value)
		if err != nil || !utf8.ValidString(n) || !utf8.ValidString(v) {
			return nil, fail("InvalidURI", "").because(err)
		}
		q = append(q, param{n, v})
	}
	return q, nil
}

// lookup returns the first value of name, and whether there is one.
func (q query) lookup(name string) (string, bool) {
	for i := range q {
		if q[i].name == name {
			return q[i].value, true
		}
	}
	return "", false
}

func (q query) get(name string) string {
	v, _ := q.lookup(name)
	return v
}

func (q query) has(name string) bool {
	_, ok := q.lookup(name)
	return ok
}

// count reads a page size such as max-keys: its default is also its maximum.
func (q query) count(name string, most int) (int, error) {
	v, ok := q.lookup(name)
	if !ok || v == "" {
		return most, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, invalid(name, v, "Provided "+name+" not an integer or within integer range")
	}
	if n < 0 || n > math.MaxInt32 {
		return 0, invalid(name, v, "Argument "+name+" must be an integer between 0 and 2147483647")
	}
	return int(min(n, int64(most))), nil
}

// partNumber reads a part number, 1 to 10,000.
func partNumber(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > object.MaxParts {
		return 0, invalid("partNumber", v, "Part number must be an integer between 1 and 10000, inclusive")
	}
	return n, nil
}

// encoding reads encoding-type.
func (q query) encoding() (bool, error) {
	switch v := q.get("encoding-type"); v {
	case "":
		return false, nil
	case "url":
		return true, nil
	default:
		return false, invalid("encoding-type", v, "Invalid Encoding Method specified in Request")
	}
}

// versionID returns the version that the query asks for, or nil.
func (q query) versionID() (*string, error) {
	v, ok := q.lookup("versionId")
	if !ok {
		return nil, nil
	}
	if v == "" {
		return nil, invalid("versionId", v, "Version id cannot be the empty string")
	}
	return &v, nil
}

// parseRange reads a Range header. What is not a single byte range is ignored, as RFC 9110 allows
// and AWS does: nil is the whole object.
func parseRange(h string) *object.Range {
	spec, ok := strings.CutPrefix(h, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return nil
	}
	if first == "" {
		n, ok := parseOffset(last)
		if !ok {
			return nil
		}
		if n == 0 { // the last zero bytes: not satisfiable, whatever the size
			return &object.Range{First: math.MaxInt64 - 1, Last: -1}
		}
		return &object.Range{Suffix: n}
	}
	a, ok := parseOffset(first)
	if !ok {
		return nil
	}
	if last == "" {
		return &object.Range{First: a, Last: -1}
	}
	b, ok := parseOffset(last)
	if !ok || b < a {
		return nil
	}
	return &object.Range{First: a, Last: b}
}

// parseOffset reads digits; more than fit are as good as the largest.
func parseOffset(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n = math.MaxInt64 - 1
	}
	return min(n, math.MaxInt64-1), true
}

// parseCopyRange reads x-amz-copy-source-range, which must be bytes=first-last.
func parseCopyRange(h string) (*object.Range, error) {
	spec, ok := strings.CutPrefix(h, "bytes=")
	first, last, ok2 := strings.Cut(spec, "-")
	a, ok3 := parseOffset(first)
	b, ok4 := parseOffset(last)
	if !ok || !ok2 || !ok3 || !ok4 || b < a {
		return nil, invalid("x-amz-copy-source-range", h, "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy")
	}
	return &object.Range{First: a, Last: b}, nil
}

// copySource is what x-amz-copy-source names.
type copySource struct {
	bucket, key string
	versionID   *string
}

// parseCopySource reads [/]bucket/key[?versionId=id], percent-encoded. A plus sign stands for itself.
func parseCopySource(h string) (copySource, error) {
	bad := func() (copySource, error) {
		return copySource{}, invalid("x-amz-copy-source", h, "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	var src copySource
	path := h
	if i := strings.LastIndex(h, "?versionId="); i >= 0 {
		v, err := url.QueryUnescape(h[i+len("?versionId="):])
		if err != nil || v == "" {
			return copySource{}, invalid("x-amz-copy-source", h, "Version id cannot be the empty string")
		}
		src.versionID, path = &v, h[:i]
	} else if strings.Contains(h, "?") {
		// An encoded key has no question mark; a raw one is taken as it stands, unless it claims to be a query.
		if _, tail, _ := strings.Cut(h, "?"); strings.HasPrefix(tail, "versionId") {
			return bad()
		}
	}
	path, err := url.PathUnescape(path)
	if err != nil || !utf8.ValidString(path) {
		return bad()
	}
	path = strings.TrimPrefix(path, "/")
	var ok bool
	if src.bucket, src.key, ok = strings.Cut(path, "/"); !ok || src.bucket == "" || src.key == "" {
		return bad()
	}
	if strings.HasPrefix(src.bucket, "arn:") {
		return copySource{}, fail("NotImplemented", "Access points as copy source are not implemented.").with("Header", "x-amz-copy-source")
	}
	if len(src.key) > object.MaxKeyLen {
		return copySource{}, fail("KeyTooLongError", "").with("Size", strconv.Itoa(len(src.key))).with("MaxSizeAllowed", strconv.Itoa(object.MaxKeyLen))
	}
	return src, nil
}

// parseETags reads a list of entity tags; nil when the header is not there.
func parseETags(values []string) []string {
	var tags []string
	for _, v := range values {
		for len(v) > 0 {
			v = strings.TrimLeft(v, " \t,")
			if v == "" {
				break
			}
			w := strings.TrimPrefix(v, "W/")
			var tag string
			if strings.HasPrefix(w, `"`) {
				end := strings.IndexByte(w[1:], '"')
				if end < 0 {
					tag, v = w[1:], ""
				} else {
					tag, v = w[1:1+end], w[end+2:]
				}
			} else {
				tag, v, _ = strings.Cut(v, ",")
				tag = strings.TrimSpace(tag)
			}
			tags = append(tags, tag)
		}
	}
	return tags
}

// unquote removes the quotes of one entity tag.
func unquote(tag string) string {
	if len(tag) >= 2 && tag[0] == '"' && tag[len(tag)-1] == '"' {
		return tag[1 : len(tag)-1]
	}
	return tag
}

// parseDate reads an HTTP date; a condition whose date cannot be read is no condition (RFC 9110).
func parseDate(v string) time.Time {
	if v == "" {
		return time.Time{}
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return time.Time{}
	}
	return t
}

// parseTimestamp reads the times of conditional deletes: HTTP dates, or ISO 8601.
func parseTimestamp(name, v string) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	if t, err := http.ParseTime(v); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
		return t, nil
	}
	return time.Time{}, invalid(name, v, "The timestamp is not valid.")
}

// parseMD5 reads Content-MD5.
func parseMD5(v string) ([]byte, error) {
	sum, err := base64.StdEncoding.Strict().DecodeString(v)
	if err != nil || len(sum) != 16 {
		return nil, fail("InvalidDigest", "The Content-MD5 you specified was invalid.").with("Content-MD5", v)
	}
	return sum, nil
}

// token makes a continuation token: opaque to clients, the versioned position for the server.
func token(position string) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{1}, position...))
}

func parseToken(v string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(v)
	if err != nil || len(b) < 1 || b[0] != 1 || !utf8.Valid(b) || len(b) > 2*object.MaxKeyLen+16 {
		return "", invalid("continuation-token", v, "The continuation token provided is incorrect")
	}
	return string(b[1:]), nil
}
