package s3api

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf16"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/tags"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

const versioningOn = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"

// tagDoc makes a Tagging document of keys and values.
func tagDoc(kv ...string) string {
	x := newXML("Tagging", 256)
	x.open("TagSet")
	for i := 0; i < len(kv); i += 2 {
		x.open("Tag")
		x.elem("Key", kv[i])
		x.elem("Value", kv[i+1])
		x.close("Tag")
	}
	x.close("TagSet")
	x.close("Tagging")
	return string(x.b)
}

func tagHeader(kv ...string) string {
	var parts []string
	for i := 0; i < len(kv); i += 2 {
		parts = append(parts, url.QueryEscape(kv[i])+"="+url.QueryEscape(kv[i+1]))
	}
	return strings.Join(parts, "&")
}

// manyTags are n tags, keys and values alternating.
func manyTags(n int) (kv []string) {
	for i := range n {
		kv = append(kv, fmt.Sprint("k", i), fmt.Sprint("v", i))
	}
	return kv
}

// wantTags insists on the tags of an object and on their count in GET and HEAD.
func (w *world) wantTags(target string, kv ...string) {
	w.t.Helper()
	sep := "?"
	if strings.Contains(target, "?") {
		sep = "&"
	}
	if a := w.want(200, "GET", target+sep+"tagging", ""); a.body != tagDoc(kv...) {
		w.t.Errorf("tags of %s: %s\nwant %s", target, a.body, tagDoc(kv...))
	}
	count := ""
	if len(kv) > 0 {
		count = fmt.Sprint(len(kv) / 2)
	}
	for _, m := range []string{"GET", "HEAD"} {
		if got := w.want(200, m, target, "").Header.Get("X-Amz-Tagging-Count"); got != count {
			w.t.Errorf("%s %s: x-amz-tagging-count %q, want %q", m, target, got, count)
		}
	}
}

// wantCode insists on a status and an error code.
func (w *world) wantCode(status int, code, method, target, body string, headers ...string) {
	w.t.Helper()
	if a := w.want(status, method, target, body, headers...); a.code() != code {
		w.t.Errorf("%s %s %v: %s, want %s", method, target, headers, a.body, code)
	}
}

func TestObjectTagging(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		w.want(200, "PUT", "/bucket", "")
		for _, m := range []string{"GET", "PUT", "DELETE"} {
			w.wantCode(404, "NoSuchKey", m, "/bucket/k?tagging", tagDoc("a", "b"))
			w.wantCode(404, "NoSuchBucket", m, "/absent/k?tagging", tagDoc("a", "b"))
			w.wantCode(404, "NoSuchVersion", m, "/bucket/k?tagging&versionId="+strings.Repeat("1", 32), tagDoc("a", "b"))
			w.wantCode(400, "InvalidArgument", m, "/bucket/k?tagging&versionId=", tagDoc("a", "b"))
			w.wantCode(400, "InvalidArgument", m, "/bucket/k?tagging&versionId=x", tagDoc("a", "b"))
		}
		// A body in the record, and one in files.
		for key, body := range map[string]string{"small": "body", "large": strings.Repeat("0123456789abcdef", 40_000)} {
			target := "/bucket/" + key
			put := w.want(200, "PUT", target, body, "X-Amz-Tagging", "b=2&a=1+%2B&empty=&none", "X-Amz-Meta-M", "v")
			w.wantTags(target, "b", "2", "a", "1 +", "empty", "", "none", "")
			before := w.want(200, "HEAD", target, "")
			if a := w.want(200, "PUT", target+"?tagging", tagDoc("x", " y ", "é/@", "")); a.body != "" || a.Header.Get("X-Amz-Version-Id") != "" {
				t.Errorf("%q %v", a.body, a.Header)
			}
			w.wantTags(target, "x", " y ", "é/@", "")
			w.wantTags(target+"?versionId=null", "x", " y ", "é/@", "")
			w.want(200, "PUT", target+"?tagging&versionId=null", tagDoc("z", ""))
			w.wantTags(target, "z", "")
			// Nothing but the tags has changed.
			got := w.want(200, "GET", target, "")
			if got.body != body || got.Header.Get("X-Amz-Meta-M") != "v" || got.Header.Get("Etag") != put.Header.Get("Etag") || got.Header.Get("Last-Modified") != before.Header.Get("Last-Modified") {
				t.Errorf("%s after tagging: %d bytes, %v", key, len(got.body), got.Header)
			}
			if a := w.want(204, "DELETE", target+"?tagging", ""); a.body != "" {
				t.Errorf("%q", a.body)
			}
			w.wantTags(target)
			w.want(204, "DELETE", target+"?tagging", "")
			w.want(200, "PUT", target+"?tagging", tagDoc("a", "b"))
			w.want(200, "PUT", target+"?tagging", tagDoc()) // none: as DELETE
			w.wantTags(target)
			w.want(200, "PUT", target+"?tagging", tagDoc("a", "b"))
			w.want(200, "PUT", target, body) // a new object has its own tags, so none
			w.wantTags(target)
		}
	})
}

func TestTaggingOfVersions(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		w.want(200, "PUT", "/bucket", "")
		w.want(200, "PUT", "/bucket/k", "zero", "X-Amz-Tagging", "v=0")
		w.want(200, "PUT", "/bucket?versioning", versioningOn)
		one := w.want(200, "PUT", "/bucket/k", "one", "X-Amz-Tagging", "v=1").Header.Get("X-Amz-Version-Id")
		two := w.want(200, "PUT", "/bucket/k", "two").Header.Get("X-Amz-Version-Id")
		check := func(v0, v1, v2 string) {
			t.Helper()
			for id, v := range map[string]string{"null": v0, one: v1, two: v2} {
				var kv []string
				if v != "" {
					kv = []string{"v", v}
				}
				w.wantTags("/bucket/k?versionId="+id, kv...)
				if got := w.want(200, "GET", "/bucket/k?tagging&versionId="+id, "").Header.Get("X-Amz-Version-Id"); got != id {
					t.Errorf("x-amz-version-id %q, want %q", got, id)
				}
			}
		}
		told := func(a *answer, id string) {
			t.Helper()
			if got := a.Header.Get("X-Amz-Version-Id"); got != id {
				t.Errorf("x-amz-version-id %q, want %q", got, id)
			}
		}
		check("0", "1", "")
		told(w.want(200, "PUT", "/bucket/k?tagging", tagDoc("v", "c")), two)
		check("0", "1", "c")
		told(w.want(200, "PUT", "/bucket/k?tagging&versionId="+one, tagDoc("v", "b")), one)
		check("0", "b", "c")
		told(w.want(200, "PUT", "/bucket/k?tagging&versionId=null", tagDoc("v", "a")), "null")
		check("a", "b", "c")
		told(w.want(204, "DELETE", "/bucket/k?tagging&versionId="+one, ""), one)
		check("a", "", "c")
		told(w.want(204, "DELETE", "/bucket/k?tagging", ""), two)
		check("a", "", "")
		told(w.want(204, "DELETE", "/bucket/k?tagging&versionId=null", ""), "null")
		check("", "", "")
		// No version was made or lost.
		if a := w.want(200, "GET", "/bucket?versions", ""); strings.Count(a.body, "<Version>") != 3 {
			t.Errorf("versions: %s", a.body)
		}
		for id, body := range map[string]string{"null": "zero", one: "one", two: "two"} {
			if a := w.want(200, "GET", "/bucket/k?versionId="+id, ""); a.body != body {
				t.Errorf("version %s is %q", id, a.body)
			}
		}

		marker := w.want(204, "DELETE", "/bucket/k", "").Header.Get("X-Amz-Version-Id")
		for _, m := range []string{"GET", "PUT", "DELETE"} {
			a := w.want(404, m, "/bucket/k?tagging", tagDoc("a", "b"))
			if a.code() != "NoSuchKey" || a.Header.Get("X-Amz-Delete-Marker") != "true" {
				t.Errorf("%s of a deleted key: %s %v", m, a.body, a.Header)
			}
			w.wantCode(405, "MethodNotAllowed", m, "/bucket/k?tagging&versionId="+marker, tagDoc("a", "b"))
		}
		told(w.want(200, "PUT", "/bucket/k?tagging&versionId="+two, tagDoc("v", "late")), two)
		w.want(204, "DELETE", "/bucket/k?versionId="+marker, "")
		w.wantTags("/bucket/k", "v", "late")
	})
}

func TestTaggingOfCopies(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		w.want(200, "PUT", "/bucket", "")
		w.want(200, "PUT", "/bucket/src", "body", "X-Amz-Tagging", "a=1", "X-Amz-Meta-M", "v")
		for i, c := range []struct {
			headers []string
			kv      []string
		}{
			{nil, []string{"a", "1"}},
			{[]string{"X-Amz-Tagging-Directive", "COPY"}, []string{"a", "1"}},
			{[]string{"X-Amz-Tagging-Directive", "COPY", "X-Amz-Metadata-Directive", "REPLACE"}, []string{"a", "1"}},
			{[]string{"X-Amz-Tagging-Directive", "REPLACE", "X-Amz-Tagging", "b=2"}, []string{"b", "2"}},
			{[]string{"X-Amz-Tagging-Directive", "REPLACE"}, nil},
			{[]string{"X-Amz-Tagging-Directive", "REPLACE", "X-Amz-Tagging", ""}, nil},
		} {
			target := fmt.Sprint("/bucket/copy", i)
			w.want(200, "PUT", target, "", append(c.headers, "X-Amz-Copy-Source", "bucket/src")...)
			w.wantTags(target, c.kv...)
			replaced := slices.Contains(c.headers, "X-Amz-Metadata-Directive")
			if got := w.want(200, "HEAD", target, "").Header.Get("X-Amz-Meta-M"); (got == "") != replaced {
				t.Errorf("%v: metadata %q", c.headers, got)
			}
		}
		w.wantCode(400, "InvalidRequest", "PUT", "/bucket/no", "", "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging", "b=2")
		w.wantCode(400, "InvalidRequest", "PUT", "/bucket/no", "", "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging", "b=2", "X-Amz-Tagging-Directive", "COPY")
		w.wantCode(400, "InvalidArgument", "PUT", "/bucket/no", "", "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging-Directive", "MERGE")
		w.wantCode(400, "InvalidTag", "PUT", "/bucket/no", "", "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging", "aws:x=2", "X-Amz-Tagging-Directive", "REPLACE")
		w.want(404, "GET", "/bucket/no", "")
		// An object onto itself, with other tags.
		w.want(200, "PUT", "/bucket/src", "", "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging", "c=3", "X-Amz-Tagging-Directive", "REPLACE")
		w.wantTags("/bucket/src", "c", "3")
	})
}

func TestTaggingOfMultipartObjects(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		w.want(200, "PUT", "/bucket", "")
		w.wantCode(400, "InvalidTag", "POST", "/bucket/k?uploads", "", "X-Amz-Tagging", "a=%01")
		a := w.want(200, "POST", "/bucket/k?uploads", "", "X-Amz-Tagging", "a=1&b=2")
		_, rest, _ := strings.Cut(a.body, "<UploadId>")
		id, _, _ := strings.Cut(rest, "<")
		part := strings.Repeat("p", object.MinPartSize)
		e1 := w.want(200, "PUT", "/bucket/k?partNumber=1&uploadId="+id, part).Header.Get("Etag")
		e2 := w.want(200, "PUT", "/bucket/k?partNumber=2&uploadId="+id, "tail").Header.Get("Etag")
		w.wantCode(501, "NotImplemented", "PUT", "/bucket/k?partNumber=2&uploadId="+id, "tail", "X-Amz-Tagging", "a=1")
		doc := "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>" + e1 + "</ETag></Part><Part><PartNumber>2</PartNumber><ETag>" + e2 + "</ETag></Part></CompleteMultipartUpload>"
		w.wantCode(501, "NotImplemented", "POST", "/bucket/k?uploadId="+id, doc, "X-Amz-Tagging", "a=1")
		w.want(200, "POST", "/bucket/k?uploadId="+id, doc)
		w.wantTags("/bucket/k", "a", "1", "b", "2")
		w.want(200, "PUT", "/bucket/k?tagging", tagDoc("c", "3"))
		w.wantTags("/bucket/k", "c", "3")
		if a := w.want(200, "GET", "/bucket/k", ""); a.body != part+"tail" {
			t.Errorf("%d bytes after tagging", len(a.body))
		}
		if a := w.want(206, "GET", "/bucket/k?partNumber=2", ""); a.body != "tail" || a.Header.Get("X-Amz-Tagging-Count") != "1" {
			t.Errorf("part: %q %v", a.body, a.Header)
		}
		w.want(204, "DELETE", "/bucket/k", "") // its data goes, as that of any completed upload
	})
}

func TestTagLimits(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		w.want(200, "PUT", "/bucket", "")
		w.want(200, "PUT", "/bucket/k", "body", "X-Amz-Tagging", "old=1")
		key128, value256 := strings.Repeat("k", maxTagKey), strings.Repeat("v", maxTagValue)
		for _, kv := range [][]string{
			manyTags(10), {key128, value256}, {"a", ""}, {"Az09 +-=._:/@", "Az09 +-=._:/@"}, {"ключ", "値 ١"}, {"aw:", "aws:"}, {"case", "1", "Case", "2"},
			{strings.Repeat("𝒜", maxTagKey/2), strings.Repeat("𝒜", maxTagValue/2)},
		} {
			w.want(200, "PUT", "/bucket/k?tagging", tagDoc(kv...))
			w.wantTags("/bucket/k", kv...)
			w.want(200, "PUT", "/bucket/header", "body", "X-Amz-Tagging", tagHeader(kv...))
			w.wantTags("/bucket/header", kv...)
		}
		// The largest set that there can be is larger than a header section.
		var largest []string
		for i := range 10 {
			largest = append(largest, fmt.Sprint(i)+strings.Repeat("字", maxTagKey-1), strings.Repeat("字", maxTagValue))
		}
		w.want(200, "PUT", "/bucket/k?tagging", tagDoc(largest...))
		w.wantTags("/bucket/k", largest...)
		w.want(200, "PUT", "/bucket/k?tagging", tagDoc("old", "1"))

		w.want(204, "DELETE", "/bucket/header", "")
		for _, c := range []struct {
			xml, header string
			kv          []string
		}{
			{"BadRequest", "BadRequest", manyTags(11)},
			{"InvalidTag", "InvalidTag", []string{key128 + "k", "v"}},
			{"InvalidTag", "InvalidTag", []string{"k", value256 + "v"}},
			{"InvalidTag", "InvalidTag", []string{strings.Repeat("𝒜", maxTagKey/2) + "k", ""}},
			{"InvalidTag", "InvalidTag", []string{"", "v"}},
			{"InvalidTag", "InvalidTag", []string{"a\n", "v"}},
			{"InvalidTag", "InvalidTag", []string{"a", "\t"}},
			{"InvalidTag", "InvalidTag", []string{"a", "\x01"}},
			{"InvalidTag", "InvalidTag", []string{"a&b", "v"}},
			{"InvalidTag", "InvalidTag", []string{"a", "v,w"}},
			{"InvalidTag", "InvalidTag", []string{"a", "\uFFFD"}},
			{"InvalidTag", "InvalidTag", []string{"aws:a", "v"}},
			{"InvalidTag", "InvalidTag", []string{"AwS:", "v"}},
			{"InvalidTag", "InvalidArgument", []string{"a", "1", "b", "2", "a", "1"}},
		} {
			w.wantCode(400, c.xml, "PUT", "/bucket/k?tagging", tagDoc(c.kv...))
			w.wantCode(400, c.header, "PUT", "/bucket/header", "body", "X-Amz-Tagging", tagHeader(c.kv...))
		}
		for _, h := range []string{"a=%zz", "a=%ff", "%"} {
			w.wantCode(400, "InvalidArgument", "PUT", "/bucket/header", "body", "X-Amz-Tagging", h)
		}
		for _, doc := range []string{
			"", "x", "<Tagging/>", "<Tagging></Tagging>", "<TagSet/>", "<Tagging><TagSet/><TagSet/></Tagging>", "<Tagging><TagSet>x</TagSet></Tagging>",
			"<Tagging><TagSet><Tag/></TagSet></Tagging>", "<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>",
			"<Tagging><TagSet><Tag><Value>a</Value></Tag></TagSet></Tagging>", "<Tagging><TagSet><Tag><Key>a</Key><Key>b</Key></Tag></TagSet></Tagging>",
			"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value><More/></Tag></TagSet></Tagging>", "<Tagging><TagSet><Other><Key>a</Key><Value>b</Value></Other></TagSet></Tagging>",
			"<Tagging><TagSet><Tag><Key>a</Key><Value><b/></Value></Tag></TagSet></Tagging>", "<Tagging><TagSet><Tag><Key>a</Key><Other>b</Other></Tag></TagSet></Tagging>",
			"<Tags><TagSet/></Tags>", tagDoc("a", "b") + "x", tagDoc("a", "b")[:60],
		} {
			w.wantCode(400, "MalformedXML", "PUT", "/bucket/k?tagging", doc)
		}
		w.wantCode(400, "BadDigest", "PUT", "/bucket/k?tagging", tagDoc("a", "b"), "Content-MD5", contentMD5("other"))
		w.wantCode(400, "MaxMessageLengthExceeded", "PUT", "/bucket/k?tagging", tagDoc("a", strings.Repeat("v", maxConfigBody)))
		w.want(200, "PUT", "/bucket/k?tagging", tagDoc("old", "1"), "Content-MD5", contentMD5(tagDoc("old", "1")))
		w.wantTags("/bucket/k", "old", "1")
		w.want(404, "GET", "/bucket/header", "")
	})
}

// Two lines of x-amz-tagging are not one.
func TestTaggingHeaderStandsOnce(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	req := w.request("PUT", "/bucket/k", "")
	req.Header["X-Amz-Tagging"] = []string{"a=1", "b=2"}
	if a := w.signAs(testKey, req, ""); a.StatusCode != 400 || a.code() != "InvalidArgument" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// deny refuses some actions and remembers all that were asked for.
type deny struct {
	mu      sync.Mutex // guards what follows
	actions map[string]bool
	asked   []string
}

func (d *deny) Authorize(_ context.Context, _ auth.Identity, action auth.Action, r auth.Resource, _ auth.Conditions) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	ask := string(action) + " " + strings.TrimPrefix(r.ARN, "arn:aws:s3:::")
	d.asked = append(d.asked, ask)
	if d.actions[ask] {
		return &auth.Error{Reason: auth.ReasonAccessDenied}
	}
	return nil
}

func (d *deny) set(actions ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.actions, d.asked = set(actions...), nil
}

func TestTaggingPermissions(t *testing.T) {
	d := &deny{}
	onEveryStore(t, func(t *testing.T, w *world) {
		d.set()
		w.want(200, "PUT", "/bucket", "")
		w.want(200, "PUT", "/bucket?versioning", versioningOn)
		id := w.want(200, "PUT", "/bucket/k", "body", "X-Amz-Tagging", "a=1").Header.Get("X-Amz-Version-Id")
		w.want(200, "PUT", "/bucket/plain", "body")
		replace := []string{"X-Amz-Copy-Source", "bucket/k", "X-Amz-Tagging-Directive", "REPLACE"}
		for _, c := range []struct {
			deny, method, target, body string
			status                     int
			headers                    []string
		}{
			{"s3:GetObjectTagging bucket/k", "GET", "/bucket/k?tagging", "", 403, nil},
			{"s3:GetObjectVersionTagging bucket/k", "GET", "/bucket/k?tagging", "", 200, nil},
			{"s3:GetObjectVersionTagging bucket/k", "GET", "/bucket/k?tagging&versionId=" + id, "", 403, nil},
			{"s3:PutObjectTagging bucket/k", "PUT", "/bucket/k?tagging", tagDoc("a", "1"), 403, nil},
			{"s3:PutObjectVersionTagging bucket/k", "PUT", "/bucket/k?tagging&versionId=" + id, tagDoc("a", "1"), 403, nil},
			{"s3:DeleteObjectTagging bucket/k", "DELETE", "/bucket/k?tagging", "", 403, nil},
			{"s3:DeleteObjectVersionTagging bucket/k", "DELETE", "/bucket/k?tagging&versionId=" + id, "", 403, nil},
			{"s3:PutObjectTagging bucket/new", "PUT", "/bucket/new", "body", 403, []string{"X-Amz-Tagging", "a=1"}},
			{"s3:PutObjectTagging bucket/new", "PUT", "/bucket/new", "body", 200, nil},
			{"s3:PutObjectTagging bucket/new", "PUT", "/bucket/new", "body", 200, []string{"X-Amz-Tagging", ""}},
			{"s3:PutObjectTagging bucket/new", "POST", "/bucket/new?uploads", "", 403, []string{"X-Amz-Tagging", "a=1"}},
			{"s3:PutObjectTagging bucket/new", "POST", "/bucket/new?uploads", "", 200, nil},
			{"s3:PutObjectTagging bucket/new", "PUT", "/bucket/new", "", 403, []string{"X-Amz-Copy-Source", "bucket/k"}},
			{"s3:GetObjectTagging bucket/k", "PUT", "/bucket/new", "", 403, []string{"X-Amz-Copy-Source", "bucket/k"}},
			{"s3:GetObjectVersionTagging bucket/k", "PUT", "/bucket/new", "", 403, []string{"X-Amz-Copy-Source", "bucket/k?versionId=" + id}},
			{"s3:GetObjectTagging bucket/plain", "PUT", "/bucket/new", "", 200, []string{"X-Amz-Copy-Source", "bucket/plain"}},
			{"s3:PutObjectTagging bucket/new", "PUT", "/bucket/new", "", 200, []string{"X-Amz-Copy-Source", "bucket/plain"}},
			{"s3:GetObjectTagging bucket/k", "PUT", "/bucket/new", "", 200, append(replace, "X-Amz-Tagging", "b=2")},
			{"s3:PutObjectTagging bucket/new", "PUT", "/bucket/new", "", 403, append(replace, "X-Amz-Tagging", "b=2")},
			{"s3:PutObjectTagging bucket/new", "PUT", "/bucket/new", "", 200, replace},
			{"s3:ListBucket bucket", "GET", "/bucket/absent?tagging", "", 403, nil},
			{"s3:ListBucket bucket", "PUT", "/bucket/absent?tagging", tagDoc("a", "1"), 403, nil},
			{"s3:ListBucket bucket", "DELETE", "/bucket/absent?tagging", "", 403, nil},
		} {
			d.set(c.deny)
			if a := w.do(c.method, c.target, c.body, c.headers...); a.StatusCode != c.status {
				t.Errorf("%s %s %v without %s: %d %s, want %d", c.method, c.target, c.headers, c.deny, a.StatusCode, a.body, c.status)
			}
		}
		d.set()
		w.wantTags("/bucket/k", "a", "1")
		// The number of tags is for who may read them.
		for target, action := range map[string]string{"/bucket/k": "s3:GetObjectTagging bucket/k", "/bucket/k?versionId=" + id: "s3:GetObjectVersionTagging bucket/k"} {
			d.set(action)
			for _, m := range []string{"GET", "HEAD"} {
				if a := w.want(200, m, target, ""); a.Header.Get("X-Amz-Tagging-Count") != "" {
					t.Errorf("%s %s without %s tells the count", m, target, action)
				}
			}
		}
		d.set()
		w.want(200, "GET", "/bucket/plain", "")
		if slices.ContainsFunc(d.asked, func(s string) bool { return strings.Contains(s, "Tagging") }) {
			t.Errorf("asked of an object without tags: %v", d.asked)
		}
	}, func(c *Config) { c.Authorizer = d })
}

func TestTaggingWithTheAWSSDK(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		c, ctx, b, k := w.aws(true), t.Context(), aws.String("bucket"), aws.String("k + é")
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: b})
		must(err)
		_, err = c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: b, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}})
		must(err)
		put, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: b, Key: k, Body: strings.NewReader("hello"), Tagging: aws.String("a=1&b=%C3%A9")})
		must(err)
		_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: b, Key: k, Body: strings.NewReader("again")})
		must(err)
		head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: b, Key: k, VersionId: put.VersionId})
		must(err)
		get, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: b, Key: k, VersionId: put.VersionId})
		must(err)
		get.Body.Close()
		if aws.ToInt32(get.TagCount) != 2 || aws.ToInt32(head.TagCount) != 2 {
			t.Errorf("counts %v %v", get.TagCount, head.TagCount)
		}
		tagged, err := c.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: b, Key: k, VersionId: put.VersionId})
		must(err)
		if len(tagged.TagSet) != 2 || aws.ToString(tagged.TagSet[1].Key) != "b" || aws.ToString(tagged.TagSet[1].Value) != "é" || aws.ToString(tagged.VersionId) != aws.ToString(put.VersionId) {
			t.Errorf("%+v", tagged)
		}
		for _, a := range []types.ChecksumAlgorithm{"", types.ChecksumAlgorithmSha256, types.ChecksumAlgorithmCrc32c} {
			set, err := c.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: b, Key: k, VersionId: put.VersionId, ChecksumAlgorithm: a,
				Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("with"), Value: aws.String(string(a))}}}})
			must(err)
			tagged, err := c.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: b, Key: k, VersionId: put.VersionId})
			must(err)
			if aws.ToString(set.VersionId) != aws.ToString(put.VersionId) || len(tagged.TagSet) != 1 || aws.ToString(tagged.TagSet[0].Value) != string(a) {
				t.Errorf("%q: %+v %+v", a, set, tagged)
			}
		}
		_, err = c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: b, Key: aws.String("copy"), CopySource: aws.String("bucket/" + url.PathEscape(*k) + "?versionId=" + *put.VersionId), TaggingDirective: types.TaggingDirectiveReplace, Tagging: aws.String("new=tag")})
		must(err)
		tagged, err = c.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: b, Key: aws.String("copy")})
		must(err)
		if len(tagged.TagSet) != 1 || aws.ToString(tagged.TagSet[0].Key) != "new" {
			t.Errorf("copy: %+v", tagged)
		}
		del, err := c.DeleteObjectTagging(ctx, &s3.DeleteObjectTaggingInput{Bucket: b, Key: k, VersionId: put.VersionId})
		must(err)
		if tagged, err = c.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: b, Key: k, VersionId: put.VersionId}); err != nil || len(tagged.TagSet) != 0 || aws.ToString(del.VersionId) != aws.ToString(put.VersionId) {
			t.Errorf("deleted: %+v %+v, %v", del, tagged, err)
		}
		_, err = c.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: b, Key: k, Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("aws:x"), Value: aws.String("")}}}})
		if awsCode(err) != "InvalidTag" {
			t.Errorf("a system tag: %v", err)
		}
		// Presigned, the tags are part of the address or of the signed headers.
		signed, err := s3.NewPresignClient(c).PresignPutObject(ctx, &s3.PutObjectInput{Bucket: b, Key: aws.String("signed"), Tagging: aws.String("p=1")})
		must(err)
		var headers []string
		for n, v := range signed.SignedHeader {
			headers = append(headers, n, v[0])
		}
		if a := w.send(w.request("PUT", strings.TrimPrefix(signed.URL, w.server.URL), "", headers...)); a.StatusCode != 200 {
			t.Fatalf("presigned: %d %s", a.StatusCode, a.body)
		}
		w.wantTags("/bucket/signed", "p", "1")
	})
}

func TestTaggingWithMinioClient(t *testing.T) {
	onEveryStore(t, func(t *testing.T, w *world) {
		c, ctx := w.minio(false), t.Context()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(c.MakeBucket(ctx, "bucket", minio.MakeBucketOptions{}))
		must(c.EnableVersioning(ctx, "bucket"))
		check := func(key, version string, want map[string]string) {
			t.Helper()
			got, err := c.GetObjectTagging(ctx, "bucket", key, minio.GetObjectTaggingOptions{VersionID: version})
			must(err)
			if !maps.Equal(got.ToMap(), want) {
				t.Errorf("tags of %s: %v, want %v", key, got.ToMap(), want)
			}
			info, err := c.StatObject(ctx, "bucket", key, minio.StatObjectOptions{VersionID: version})
			must(err)
			if info.UserTagCount != len(want) {
				t.Errorf("count of %s: %d, want %d", key, info.UserTagCount, len(want))
			}
		}
		first := map[string]string{"Key": "a b+c", "p:q/r@s": "1 = 2"} // this client drops sets with other letters
		put, err := c.PutObject(ctx, "bucket", "k", strings.NewReader("x"), 1, minio.PutObjectOptions{UserTags: first})
		must(err)
		_, err = c.PutObject(ctx, "bucket", "k", strings.NewReader("y"), 1, minio.PutObjectOptions{})
		must(err)
		check("k", put.VersionID, first)
		check("k", "", map[string]string{})
		large := bytes.Repeat([]byte("0123456789abcdef"), 6<<20/16)
		_, err = c.PutObject(ctx, "bucket", "multi", unseekable{bytes.NewReader(large)}, -1, minio.PutObjectOptions{UserTags: first, PartSize: 5 << 20})
		must(err)
		check("multi", "", first)
		second := map[string]string{"other": ""}
		set, err := tags.MapToObjectTags(second)
		must(err)
		must(c.PutObjectTagging(ctx, "bucket", "k", set, minio.PutObjectTaggingOptions{VersionID: put.VersionID}))
		check("k", put.VersionID, second)
		_, err = c.CopyObject(ctx, minio.CopyDestOptions{Bucket: "bucket", Object: "copy"}, minio.CopySrcOptions{Bucket: "bucket", Object: "multi"})
		must(err)
		check("copy", "", first)
		_, err = c.CopyObject(ctx, minio.CopyDestOptions{Bucket: "bucket", Object: "copy", UserTags: second, ReplaceTags: true}, minio.CopySrcOptions{Bucket: "bucket", Object: "multi"})
		must(err)
		check("copy", "", second)
		must(c.RemoveObjectTagging(ctx, "bucket", "k", minio.RemoveObjectTaggingOptions{VersionID: put.VersionID}))
		check("k", put.VersionID, map[string]string{})
	})
}

func FuzzTagging(f *testing.F) {
	f.Add("a=1&b=%20+&c", tagDoc("a", "1", "b", " "))
	f.Add("aws:a=1&a&a", tagDoc("AWS:", "", "é", "𝒜"))
	f.Add("a=%ff&=", "<Tagging><TagSet></TagSet></Tagging>")
	f.Fuzz(func(t *testing.T, header, doc string) {
		check := func(in string, fields []metadata.Field, err error, again func(kv []string) ([]metadata.Field, error)) {
			t.Helper()
			if err != nil {
				if fields != nil {
					t.Fatalf("%q: tags and %v", in, err)
				}
				return
			}
			keys := map[string]bool{}
			var kv []string
			for _, x := range fields {
				keys[x.Name] = true
				kv = append(kv, x.Name, x.Value)
				n, m := len(utf16.Encode([]rune(x.Name))), len(utf16.Encode([]rune(x.Value)))
				if n < 1 || n > 128 || m > 256 || strings.HasPrefix(strings.ToLower(x.Name), "aws:") || strings.ContainsAny(x.Name+x.Value, "<>&%,;\"'\x00\r\n\t\uFFFD") {
					t.Fatalf("%q: tag %q=%q", in, x.Name, x.Value)
				}
			}
			if len(keys) != len(fields) || len(fields) > 10 {
				t.Fatalf("%q: tags %v", in, fields)
			}
			if got, err := again(kv); err != nil || !slices.Equal(got, fields) {
				t.Fatalf("%q: %v comes back as %v, %v", in, fields, got, err)
			}
		}
		byXML := func(kv []string) ([]metadata.Field, error) { return parseTagging(tagDoc(kv...)) }
		byHeader := func(kv []string) ([]metadata.Field, error) { return parseTaggingHeader(tagHeader(kv...)) }
		fields, err := parseTaggingHeader(header)
		check(header, fields, err, byXML)
		check(header, fields, err, byHeader)
		fields, err = parseTagging(doc)
		check(doc, fields, err, byXML)
		check(doc, fields, err, byHeader)
	})
}
