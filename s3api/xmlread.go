package s3api

import (
	"strings"
	"unicode/utf8"
)

// The parser of request bodies: XML 1.0 without document types, strict, bounded, and several
// times as fast as reflection, since a completion may list 10,000 parts. Namespaces are not
// resolved: the API's clients send elements with its namespace, with a prefix, or with none.
// It differs from XML in one way: a numeric reference may name a control character, since that
// is the only way in which a key with one can be written.

const (
	maxXMLDepth = 16
	maxXMLNodes = 200_000
)

// element is an element of a document: children, or text, or neither. Its strings share the
// document's memory.
type element struct {
	name string
	text string // character data, references resolved; of elements with children it is blank
	kids []element
}

var errXML = fail("MalformedXML", "")

// parseXML parses a whole document and returns its root element.
func parseXML(doc string) (*element, error) {
	p := xmlParser{s: strings.TrimPrefix(doc, "\uFEFF")}
	if strings.HasPrefix(p.s, "<?xml") && !p.skipInstruction() {
		return nil, errXML
	}
	if !p.skipMisc() {
		return nil, errXML
	}
	var root element
	if !p.element(&root, 0) || !p.skipMisc() || p.i != len(p.s) {
		return nil, errXML
	}
	return &root, nil
}

type xmlParser struct {
	s     string
	i     int
	nodes int
}

func (p *xmlParser) has(prefix string) bool { return strings.HasPrefix(p.s[p.i:], prefix) }

func (p *xmlParser) space() {
	for p.i < len(p.s) && isSpace(p.s[p.i]) {
		p.i++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// skipTo moves behind the next end, after skipping n bytes; what it skips must be characters.
func (p *xmlParser) skipTo(n int, end string) (string, bool) {
	start := p.i + n
	j := strings.Index(p.s[start:], end)
	if j < 0 || !validChars(p.s[start:start+j]) {
		return "", false
	}
	p.i = start + j + len(end)
	return p.s[start : start+j], true
}

func (p *xmlParser) skipInstruction() bool {
	_, ok := p.skipTo(2, "?>")
	return ok
}

func (p *xmlParser) skipComment() bool {
	body, ok := p.skipTo(4, "-->")
	return ok && !strings.Contains(body, "--") && !strings.HasSuffix(body, "-")
}

// skipMisc skips what may stand around the root: space, comments, instructions.
func (p *xmlParser) skipMisc() bool {
	for {
		p.space()
		switch {
		case p.has("<!--"):
			if !p.skipComment() {
				return false
			}
		case p.has("<?"):
			if p.has("<?xml ") || !p.skipInstruction() {
				return false
			}
		default:
			return true
		}
	}
}

// rawName reads a name with its prefix.
func (p *xmlParser) rawName() string {
	start := p.i
	for p.i < len(p.s) {
		c := p.s[p.i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == ':' || c >= 0x80 ||
			p.i > start && (c >= '0' && c <= '9' || c == '-' || c == '.') {
			p.i++
			continue
		}
		break
	}
	return p.s[start:p.i]
}

// local returns the part of a name behind its prefix; "" when the name is not well formed.
func local(name string) string {
	prefix, rest, ok := strings.Cut(name, ":")
	if !ok {
		return name
	}
	if prefix == "" || strings.Contains(rest, ":") || rest == "" || rest[0] == '-' || rest[0] == '.' || rest[0] >= '0' && rest[0] <= '9' {
		return ""
	}
	return rest
}

// element parses the element that begins at the cursor.
func (p *xmlParser) element(e *element, depth int) bool {
	if p.nodes++; depth >= maxXMLDepth || p.nodes > maxXMLNodes || !p.has("<") {
		return false
	}
	p.i++
	raw := p.rawName()
	if e.name = local(raw); e.name == "" || !validChars(raw) {
		return false
	}
	for {
		before := p.i
		p.space()
		if p.has("/>") {
			p.i += 2
			return true
		}
		if p.has(">") {
			p.i++
			break
		}
		if p.i == before || !p.attribute() {
			return false
		}
	}
	return p.content(e, depth) && p.endTag(raw)
}

func (p *xmlParser) attribute() bool {
	name := p.rawName()
	if local(name) == "" || !validChars(name) {
		return false
	}
	p.space()
	if !p.has("=") {
		return false
	}
	p.i++
	p.space()
	if p.i >= len(p.s) || p.s[p.i] != '"' && p.s[p.i] != '\'' {
		return false
	}
	value, ok := p.skipTo(1, p.s[p.i:p.i+1])
	if !ok || strings.Contains(value, "<") {
		return false
	}
	_, ok = resolve(value)
	return ok
}

// content parses up to the end tag, and leaves the cursor on it.
func (p *xmlParser) content(e *element, depth int) bool {
	var text string
	pieces := 0
	add := func(s string) {
		if s == "" {
			return
		}
		if pieces++; pieces == 1 {
			text = s
		} else {
			text += s
		}
	}
	for {
		j := strings.IndexByte(p.s[p.i:], '<')
		if j < 0 || pieces > 1000 {
			return false
		}
		if j > 0 {
			raw := p.s[p.i : p.i+j]
			s, ok := resolve(raw)
			if !ok || !validChars(raw) || strings.Contains(raw, "]]>") {
				return false
			}
			add(s)
			p.i += j
		}
		switch {
		case p.has("</"):
			if len(e.kids) > 0 && strings.TrimLeft(text, " \t\r\n") != "" {
				return false // none of the API's elements has mixed content
			}
			e.text = text
			return true
		case p.has("<!--"):
			if !p.skipComment() {
				return false
			}
		case p.has("<![CDATA["):
			s, ok := p.skipTo(len("<![CDATA["), "]]>")
			if !ok {
				return false
			}
			add(newlines(s))
		case p.has("<?"):
			if p.has("<?xml ") || !p.skipInstruction() {
				return false
			}
		case p.has("<!"):
			return false
		default:
			e.kids = append(e.kids, element{})
			if !p.element(&e.kids[len(e.kids)-1], depth+1) {
				return false
			}
		}
	}
}

func (p *xmlParser) endTag(raw string) bool {
	p.i += 2
	if !p.has(raw) {
		return false
	}
	p.i += len(raw)
	p.space()
	if !p.has(">") {
		return false
	}
	p.i++
	return true
}

// validChars reports whether s consists of XML 1.0 characters in UTF-8.
func validChars(s string) bool {
	ascii := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 && c != '\t' && c != '\n' && c != '\r' {
			return false
		} else if c >= 0x80 {
			ascii = false
		}
	}
	return ascii || utf8.ValidString(s) && !strings.Contains(s, "\uFFFE") && !strings.Contains(s, "\uFFFF")
}

// newlines normalizes line ends, as every XML parser does.
func newlines(s string) string {
	if strings.IndexByte(s, '\r') < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

// resolve replaces references and normalizes line ends.
func resolve(s string) (string, bool) {
	if strings.IndexByte(s, '&') < 0 {
		return newlines(s), true
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '&')
		if i < 0 {
			b.WriteString(newlines(s))
			return b.String(), true
		}
		b.WriteString(newlines(s[:i]))
		s = s[i+1:]
		end := strings.IndexByte(s, ';')
		if end < 1 || end > 12 {
			return "", false
		}
		ref := s[:end]
		s = s[end+1:]
		switch ref {
		case "amp":
			b.WriteByte('&')
		case "lt":
			b.WriteByte('<')
		case "gt":
			b.WriteByte('>')
		case "quot":
			b.WriteByte('"')
		case "apos":
			b.WriteByte('\'')
		default:
			r, ok := charRef(ref)
			if !ok {
				return "", false
			}
			b.WriteRune(r)
		}
	}
}

// charRef reads #N or #xN.
func charRef(ref string) (rune, bool) {
	digits, base := strings.TrimPrefix(ref, "#"), 10
	if len(digits) == len(ref) {
		return 0, false
	}
	if strings.HasPrefix(digits, "x") {
		digits, base = digits[1:], 16
	}
	if digits == "" {
		return 0, false
	}
	var r rune
	for i := 0; i < len(digits); i++ {
		d := hexDigit(digits[i])
		if d < 0 || d >= base {
			return 0, false
		}
		if r = r*rune(base) + rune(d); r > utf8.MaxRune {
			return 0, false
		}
	}
	if r == 0 || r >= 0xD800 && r < 0xE000 || r == 0xFFFE || r == 0xFFFF {
		return 0, false
	}
	return r, true
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// trimmed is the text without the white space around it.
func (e *element) trimmed() string { return strings.Trim(e.text, " \t\r\n") }

// leaf reports whether e has no children.
func (e *element) leaf() bool { return len(e.kids) == 0 }
