package s3api

import (
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	xmlHeader = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"
	xmlns     = ` xmlns="http://s3.amazonaws.com/doc/2006-03-01/"`
	// isoTime is how times stand in XML.
	isoTime = "2006-01-02T15:04:05.000Z"
)

// xmlBuf is a document that grows. Listings are the hottest answers after GET, and reflection is
// fourteen times as slow as this.
type xmlBuf struct{ b []byte }

// xmlBufs keeps the buffers of long documents: a page of a thousand keys has 400 KiB, and fresh memory
// of that size costs as much as filling it.
var xmlBufs sync.Pool

const xmlLong = 32 << 10 // bytes from which a document is long

// newXML begins a document with the root's start tag in the API's namespace.
func newXML(root string, size int) *xmlBuf {
	var x *xmlBuf
	if size >= xmlLong {
		x, _ = xmlBufs.Get().(*xmlBuf)
	}
	if x == nil {
		x = &xmlBuf{b: make([]byte, 0, size)}
	}
	x.b = append(x.b, xmlHeader...)
	x.b = append(x.b, '<')
	x.b = append(x.b, root...)
	x.b = append(x.b, xmlns...)
	x.b = append(x.b, '>')
	return x
}

// release gives the buffer back once nobody reads it any more.
func (x *xmlBuf) release() {
	if cap(x.b) >= xmlLong {
		x.b = x.b[:0]
		xmlBufs.Put(x)
	}
}

func (x *xmlBuf) open(name string) {
	x.b = append(x.b, '<')
	x.b = append(x.b, name...)
	x.b = append(x.b, '>')
}

func (x *xmlBuf) close(name string) {
	x.b = append(x.b, '<', '/')
	x.b = append(x.b, name...)
	x.b = append(x.b, '>')
}

// elem appends <name>value</name>.
func (x *xmlBuf) elem(name, value string) {
	x.open(name)
	x.b = appendEscaped(x.b, value)
	x.close(name)
}

// some appends the element when value is not empty.
func (x *xmlBuf) some(name, value string) {
	if value != "" {
		x.elem(name, value)
	}
}

func (x *xmlBuf) int(name string, v int64) {
	x.open(name)
	x.b = strconv.AppendInt(x.b, v, 10)
	x.close(name)
}

func (x *xmlBuf) bool(name string, v bool) {
	x.open(name)
	x.b = strconv.AppendBool(x.b, v)
	x.close(name)
}

func (x *xmlBuf) time(name string, t time.Time) {
	x.open(name)
	x.b = t.UTC().AppendFormat(x.b, isoTime)
	x.close(name)
}

// etag appends the tag in quotes, as entities like AWS.
func (x *xmlBuf) etag(tag string) {
	x.b = append(x.b, "<ETag>&quot;"...)
	x.b = appendEscaped(x.b, tag)
	x.b = append(x.b, "&quot;</ETag>"...)
}

// key appends a key, prefix, delimiter or marker, percent-encoded when the client asked for it.
func (x *xmlBuf) key(name, value string, encode bool) {
	x.open(name)
	if encode {
		x.b = appendURLEncoded(x.b, value)
	} else {
		x.b = appendEscaped(x.b, value)
	}
	x.close(name)
}

// appendEscaped appends s as character data. Control characters, which XML 1.0 cannot hold, are
// written as numeric references, as AWS does: parsers that are strict refuse them (their clients
// ask for encoding-type=url), the others read the key unharmed. Bytes that are not UTF-8 become
// U+FFFD; keys are valid UTF-8, so this concerns other text only.
func appendEscaped(b []byte, s string) []byte {
	last := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 || r == 0xFFFE || r == 0xFFFF {
				b = append(b, s[last:i]...)
				b = append(b, "\uFFFD"...)
				last = i + n
			}
			i += n
			continue
		}
		var ref string
		switch {
		case c == '&':
			ref = "&amp;"
		case c == '<':
			ref = "&lt;"
		case c == '>':
			ref = "&gt;"
		case c == '"':
			ref = "&quot;"
		case c < 0x20:
			b = append(b, s[last:i]...)
			b = append(b, "&#x"...)
			b = strconv.AppendUint(b, uint64(c), 16)
			b = append(b, ';')
			i++
			last = i
			continue
		default:
			i++
			continue
		}
		b = append(b, s[last:i]...)
		b = append(b, ref...)
		i++
		last = i
	}
	return append(b, s[last:]...)
}

// appendURLEncoded percent-encodes s as encoding-type=url has it: the slash is kept, and a space
// is %20, which every decoder reads (a plus sign not).
func appendURLEncoded(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			c == '-' || c == '_' || c == '.' || c == '~' || c == '/' || c == '*' {
			b = append(b, c)
			continue
		}
		b = append(b, '%', hex[c>>4], hex[c&15])
	}
	return b
}
