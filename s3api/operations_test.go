package s3api

import (
	"bufio"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
)

// modelRow is a line of testdata/operations.txt.
type modelRow struct {
	name, method, uri string
	params, headers   []string
}

func model(t *testing.T) []modelRow {
	t.Helper()
	f, err := os.Open("testdata/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var rows []modelRow
	list := func(s string) []string {
		if s == "-" {
			return nil
		}
		return strings.Split(s, ",")
	}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		p := strings.Fields(sc.Text())
		rows = append(rows, modelRow{p[0], p[1], p[2], list(p[3]), list(p[4])})
	}
	if len(rows) < 100 {
		t.Fatalf("%d operations in the model, want all", len(rows))
	}
	return rows
}

// target makes a request's target and headers of a row of the model.
func (m *modelRow) target() (string, http.Header) {
	path, query, _ := strings.Cut(m.uri, "?")
	path = strings.Replace(strings.Replace(path, "{Bucket}", "bucket", 1), "{Key+}", "key", 1)
	q := []string{}
	if query != "" {
		q = strings.Split(query, "&")
	}
	for _, p := range m.params {
		if name, required := strings.CutSuffix(p, "!"); required {
			q = append(q, name+"=1")
		}
	}
	if m.name == "ListDirectoryBuckets" {
		q = append(q, "x-id=ListDirectoryBuckets")
	}
	h := http.Header{}
	for _, n := range m.headers {
		if name, required := strings.CutSuffix(n, "!"); required {
			h.Set(name, "bucket/source")
		}
	}
	return path + "?" + strings.Join(q, "&"), h
}

func levelOf(path string) level {
	switch {
	case path == "/":
		return levelService
	case strings.Contains(path[1:], "/"):
		return levelObject
	}
	return levelBucket
}

// shared are operations of the model that one request cannot tell apart: old and new names.
var shared = map[string]string{
	"GetBucketLifecycle": "GetBucketLifecycleConfiguration", "PutBucketLifecycle": "PutBucketLifecycleConfiguration",
	"GetBucketNotification": "GetBucketNotificationConfiguration", "PutBucketNotification": "PutBucketNotificationConfiguration",
}

func TestEveryOperationOfTheModelIsARow(t *testing.T) {
	table := newTable(operations)
	for _, m := range model(t) {
		i := slices.IndexFunc(operations, func(o operation) bool { return o.name == m.name })
		if i < 0 {
			t.Errorf("%s is not in the table", m.name)
			continue
		}
		target, h := m.target()
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		q, err := parseQuery(u.RawQuery)
		if err != nil {
			t.Fatal(err)
		}
		got := table.find(m.method, levelOf(u.Path), q, h)
		if got == nil || got.name != m.name && shared[got.name] != m.name {
			t.Errorf("%s %s is found as %v, want %s", m.method, target, got, m.name)
		}
	}
	for i := range operations {
		if o := &operations[i]; o.action == "" && o.name != "DeleteObjects" && !o.open {
			t.Errorf("%s authorizes nothing", o.name)
		}
	}
}

func TestRowsWithoutHandlerAnswerNotImplemented(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	n := 0
	for _, m := range model(t) {
		i := slices.IndexFunc(operations, func(o operation) bool { return o.name == m.name })
		if i < 0 || operations[i].handler != nil || m.name == "WriteGetObjectResponse" {
			continue
		}
		n++
		target, h := m.target()
		var headers []string
		for k := range h {
			headers = append(headers, k, h.Get(k))
		}
		a := w.do(m.method, target, "", headers...)
		if a.StatusCode != 501 || a.code() != "NotImplemented" {
			t.Errorf("%s: %d %s, want 501 NotImplemented", m.name, a.StatusCode, a.body)
		}
		if a := w.doAs(otherKey, m.method, target, "", headers...); a.StatusCode != 403 && !strings.HasPrefix(m.name, "List") {
			t.Errorf("%s by a stranger: %d, want 403", m.name, a.StatusCode)
		}
	}
	if n < 60 {
		t.Errorf("%d rows tried", n)
	}
}

// Every header of the model that an implemented operation does not understand is refused.
func TestNothingIsAcceptedAndIgnored(t *testing.T) {
	table := newTable(operations)
	for _, m := range model(t) {
		i := slices.IndexFunc(operations, func(o operation) bool { return o.name == m.name })
		if i < 0 || operations[i].handler == nil {
			continue
		}
		target, h := m.target()
		u, _ := url.Parse(target)
		q, _ := parseQuery(u.RawQuery)
		r := table.find(m.method, levelOf(u.Path), q, h)
		if err := r.check(q, h); err != nil {
			t.Errorf("%s as the model has it: %v", m.name, err)
		}
		for _, p := range m.params {
			p = strings.TrimSuffix(p, "!")
			if err := r.check(append(slices.Clone(q), param{p, "1"}), h); err != nil {
				t.Errorf("%s does not know its parameter %s", m.name, p)
			}
		}
		for _, p := range []string{"tagging", "acl", "foo", "versions", "x-amz-unknown"} {
			if slices.Contains(operations[i].query, p) {
				continue
			}
			if err := r.check(append(slices.Clone(q), param{p, ""}), h); err == nil {
				t.Errorf("%s ignores the parameter %s", m.name, p)
			}
		}
		for _, name := range []string{
			"X-Amz-Server-Side-Encryption", "X-Amz-Server-Side-Encryption-Customer-Key", "X-Amz-Object-Lock-Mode", "X-Amz-Tagging",
			"X-Amz-Website-Redirect-Location", "X-Amz-Grant-Read", "X-Amz-Mfa", "X-Amz-Write-Offset-Bytes", "X-Amz-Unheard-Of", "X-Minio-Extract",
		} {
			if name == "X-Amz-Tagging" && (m.name == "PutObject" || m.name == "CopyObject" || m.name == "CreateMultipartUpload") {
				continue
			}
			with := h.Clone()
			with.Set(name, "x")
			if err := r.check(q, with); err == nil {
				t.Errorf("%s ignores the header %s", m.name, name)
			}
		}
	}
}

func TestFormsAreNotImplemented(t *testing.T) {
	w := newWorld(t)
	if a := w.send(w.request("POST", "/bucket", "x", "Content-Type", "multipart/form-data; boundary=b")); a.StatusCode != 501 || a.code() != "NotImplemented" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

func TestMethodsThatNoRowHas(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ method, target, kind string }{
		{"PUT", "/", "SERVICE"}, {"PATCH", "/bucket", "BUCKET"}, {"POST", "/bucket/key", "OBJECT"}, {"TRACE", "/bucket/key", "OBJECT"},
	} {
		a := w.do(c.method, c.target, "")
		if a.StatusCode != 405 || a.code() != "MethodNotAllowed" || !strings.Contains(a.body, c.kind) || a.Header.Get("Allow") == "" {
			t.Errorf("%s %s: %d %s Allow %q", c.method, c.target, a.StatusCode, a.body, a.Header.Get("Allow"))
		}
	}
}
