package s3api

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ostraka/ostraka/object"
)

func TestParseRange(t *testing.T) {
	for _, c := range []struct {
		in   string
		want *object.Range
	}{
		{"bytes=0-0", &object.Range{First: 0, Last: 0}},
		{"bytes=5-", &object.Range{First: 5, Last: -1}},
		{"bytes=-7", &object.Range{Suffix: 7}},
		{"bytes=-0", &object.Range{First: math.MaxInt64 - 1, Last: -1}},
		{"bytes=1-99999999999999999999", &object.Range{First: 1, Last: math.MaxInt64 - 1}},
		{"bytes=5-2", nil}, {"bytes=a-b", nil}, {"bytes=1-2,4-5", nil}, {"bytes=", nil}, {"bytes=-", nil}, {"items=0-1", nil}, {"", nil}, {"bytes=+1-2", nil}, {"bytes=--1", nil},
	} {
		got := parseRange(c.in)
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("parseRange(%q) = %+v, want %+v", c.in, got, c.want)
		}
	}
	for in, want := range map[string]object.Range{"bytes=0-9": {First: 0, Last: 9}} {
		if got, err := parseCopyRange(in); err != nil || *got != want {
			t.Errorf("parseCopyRange(%q) = %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"0-9", "bytes=0", "bytes=-5", "bytes=5-", "bytes=9-0", "bytes=hello-world", "bytes=0-1,3-4", ""} {
		if got, err := parseCopyRange(in); err == nil {
			t.Errorf("parseCopyRange(%q) = %+v, want an error", in, got)
		}
	}
}

func TestParseCopySource(t *testing.T) {
	for _, c := range []struct{ in, bucket, key, version string }{
		{"b/k", "b", "k", ""},
		{"/b/k", "b", "k", ""},
		{"b%2Fk", "b", "k", ""},
		{"/b//k", "b", "/k", ""},
		{"b/a%20b%2Bc+d%25", "b", "a b+c+d%", ""},
		{"b/%C3%A9/../x", "b", "é/../x", ""},
		{"b/k?versionId=null", "b", "k", "null"},
		{"b/k%3FversionId=1?versionId=2", "b", "k?versionId=1", "2"},
		{"b/what?ever", "b", "what?ever", ""},
	} {
		got, err := parseCopySource(c.in)
		v := ""
		if got.versionID != nil {
			v = *got.versionID
		}
		if err != nil || got.bucket != c.bucket || got.key != c.key || v != c.version {
			t.Errorf("parseCopySource(%q) = %q %q %q, %v", c.in, got.bucket, got.key, v, err)
		}
	}
	for _, in := range []string{"", "/", "b", "b/", "/b/", "//k", "b/%zz", "b/k?versionId=", "b/k?versionId", "b/%ff", "arn:aws:s3:us-east-1:1:accesspoint/x/object/y", "b/" + strings.Repeat("k", 1025)} {
		if got, err := parseCopySource(in); err == nil {
			t.Errorf("parseCopySource(%q) = %+v, want an error", in, got)
		}
	}
}

func TestParseETags(t *testing.T) {
	for in, want := range map[string]string{
		`"a"`: "a", `a`: "a", `"a", "b"`: "a|b", `W/"a"`: "a", `*`: "*", `"a,b",c`: "a,b|c", ``: "", `"open`: "open", ` , "x" ,`: "x",
	} {
		if got := strings.Join(parseETags([]string{in}), "|"); got != want {
			t.Errorf("parseETags(%q) = %q, want %q", in, got, want)
		}
	}
	if parseETags(nil) != nil {
		t.Error("no header is a condition")
	}
}

func TestParseXMLAcceptsAndRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`<a/>`: "", `<a>x</a>`: "x", "\uFEFF" + `<?xml version="1.0"?><!-- c --><a>x</a><!-- d -->` + "\n": "x",
		`<p:a xmlns:p="u">&lt;&amp;&#65;&#x42;&apos;</p:a>`: "<&AB'", `<a><![CDATA[<b>]]></a>`: "<b>", "<a>\r\n\r</a>": "\n\n", `<a>&#13;&#x1;</a>`: "\r\x01",
		`<a b='1' c="2" >x<!-- y -->z</a >`: "xz",
	} {
		e, err := parseXML(in)
		if err != nil || e.name != "a" || e.text != want {
			t.Errorf("parseXML(%q) = %+v, %v; want text %q", in, e, err, want)
		}
	}
	for _, in := range []string{
		``, `x`, `<a>`, `<a></b>`, `<a/><b/>`, `<a/>x`, `<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>`, `<a>&nope;</a>`, `<a>&#0;</a>`, `<a>&</a>`, "<a>\x01</a>", "<a>\xff</a>",
		`<a>]]></a>`, `<a b=c/>`, `<a b="<"/>`, `<a><b></a></b>`, `<1/>`, `<a:/>`, `<a>t<b/></a>`, `<a b="1"c="2"/>`, `<a><!-- -- --></a>`,
		strings.Repeat("<a>", 17) + strings.Repeat("</a>", 17), `<a>&#xD800;</a>`,
	} {
		if e, err := parseXML(in); err == nil {
			t.Errorf("parseXML(%q) = %+v, want an error", in, e)
		}
	}
}

// FuzzParseXML compares with encoding/xml: what parses here parses there, to the same tree.
func FuzzParseXML(f *testing.F) {
	for _, s := range []string{`<a><b>x</b><c/></a>`, `<?xml version="1.0" encoding="UTF-8"?><a xmlns="u" b='1'>&lt;&#65;<![CDATA[]]]]></a>`, "<a>\r\n</a>", `<a><!-- c --></a>`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		got, err := parseXML(doc)
		if err != nil || strings.Contains(doc, "&#") || strings.Contains(doc, "<?") || len(doc) > 1<<12 {
			return
		}
		var want element
		var stack []*element
		d := xml.NewDecoder(strings.NewReader(strings.TrimPrefix(doc, "\uFEFF")))
		for {
			tok, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("parseXML accepts %q, encoding/xml says %v", doc, err)
			}
			switch tok := tok.(type) {
			case xml.StartElement:
				e := &element{name: tok.Name.Local}
				stack = append(stack, e)
			case xml.EndElement:
				e := stack[len(stack)-1]
				if stack = stack[:len(stack)-1]; len(stack) == 0 {
					want = *e
				} else {
					up := stack[len(stack)-1]
					up.kids = append(up.kids, *e)
				}
			case xml.CharData:
				if len(stack) > 0 {
					stack[len(stack)-1].text += string(tok)
				}
			}
		}
		if !sameTree(got, &want) {
			t.Fatalf("%q: %+v, want %+v", doc, got, want)
		}
	})
}

func sameTree(a, b *element) bool {
	if a.name != b.name || a.text != b.text || len(a.kids) != len(b.kids) {
		return false
	}
	for i := range a.kids {
		if !sameTree(&a.kids[i], &b.kids[i]) {
			return false
		}
	}
	return true
}

func FuzzDocuments(f *testing.F) {
	for _, s := range []string{
		`<Delete><Quiet>true</Quiet><Object><Key>k</Key><VersionId>null</VersionId><ETag>"e"</ETag><Size>1</Size><LastModifiedTime>Wed, 21 Oct 2015 07:28:00 GMT</LastModifiedTime></Object></Delete>`,
		`<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"x"</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>`,
		`<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>`,
		`<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		if keys, _, err := parseDelete(doc); err == nil {
			for _, k := range keys {
				if k.key == "" || !utf8.ValidString(k.key) {
					t.Fatalf("key %q of %q", k.key, doc)
				}
			}
		}
		if parts, err := parseComplete(doc); err == nil {
			for _, p := range parts {
				if p.Number < 1 || p.Number > object.MaxParts || p.ETag == "" {
					t.Fatalf("part %+v of %q", p, doc)
				}
			}
		}
		if v, err := parseVersioning(doc); err == nil && v != object.Enabled && v != object.Suspended {
			t.Fatalf("versioning %v of %q", v, doc)
		}
		parseCreateBucket(doc)
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("bytes=1-2")
	f.Add("b/k?versionId=1")
	f.Add(`"a", W/"b"`)
	f.Add("a=b&c=%20+d")
	f.Fuzz(func(t *testing.T, v string) {
		if r := parseRange(v); r != nil && (r.First < 0 || r.Suffix < 0 || r.Suffix == 0 && r.Last >= 0 && r.Last < r.First) {
			t.Fatalf("parseRange(%q) = %+v", v, r)
		}
		if r, err := parseCopyRange(v); err == nil && (r.First < 0 || r.Last < r.First) {
			t.Fatalf("parseCopyRange(%q) = %+v", v, r)
		}
		if s, err := parseCopySource(v); err == nil && (s.bucket == "" || s.key == "" || len(s.key) > object.MaxKeyLen || !utf8.ValidString(s.key)) {
			t.Fatalf("parseCopySource(%q) = %+v", v, s)
		}
		parseETags([]string{v})
		if q, err := parseQuery(v); err == nil {
			for _, p := range q {
				if !utf8.ValidString(p.name + p.value) {
					t.Fatalf("parseQuery(%q) = %q", v, q)
				}
			}
		}
		if utf8.ValidString(v) && len(v) < 1000 {
			if got, err := parseToken(token(v)); err != nil || got != v {
				t.Fatalf("token of %q becomes %q, %v", v, got, err)
			}
		}
		parseToken(v)
	})
}

func FuzzEscape(f *testing.F) {
	f.Add("a<b>&\"'\r\n\x01é\xff")
	f.Fuzz(func(t *testing.T, s string) {
		doc := "<a>" + string(appendEscaped(nil, s)) + "</a>"
		e, err := parseXML(doc)
		if strings.ContainsAny(s, "\x00") {
			return // has no reference
		}
		if err != nil {
			t.Fatalf("%q as %q: %v", s, doc, err)
		}
		clean := utf8.ValidString(s) && !strings.ContainsAny(s, "\uFFFE\uFFFF")
		if clean && e.text != s {
			t.Fatalf("%q came back as %q", s, e.text)
		}
		b := appendURLEncoded(nil, s)
		if bytes.ContainsAny(b, " <>&+\"") {
			t.Fatalf("%q encoded as %q", s, b)
		}
	})
}
