package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing/iotest"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
)

// The buckets and keys of a run. Few keys make many collisions.
const (
	plainBucket     = "plain"
	versionedBucket = "versioned"
	churnBucket     = "churned"
	counterKey      = "counter"
)

var (
	plainKeys     = []string{"a", "b/1", "b/2", "c"}
	versionedKeys = []string{"v/1", "v/2"}
	churnNames    = [churnKeys]string{"x", "y"}
)

// client is one user of the store: it does one thing after the other.
type client struct {
	w   *world
	num int
	rng *rand.Rand
	mu  sync.Mutex // guards rng: an operation may have an accomplice
}

func (c *client) intn(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

// session is one operation against one life of the process.
type session struct {
	*client
	s      *server
	ctx    context.Context
	bucket string
	key    string
	call   int64
	quick  bool // no pauses
}

// act does one operation at random.
func (c *client) act() {
	w := c.w
	s := w.enter(c)
	if s == nil {
		sleep(time.Second)
		return
	}
	defer s.leave()
	// Most clients are patient, some go away in the middle.
	limit := 3 * time.Minute
	if c.intn(12) == 0 {
		limit = time.Duration(1+c.intn(40)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	o := &session{client: c, s: s, ctx: ctx, bucket: plainBucket, key: plainKeys[c.intn(len(plainKeys))]}
	if c.intn(4) == 0 {
		o.bucket, o.key = versionedBucket, versionedKeys[c.intn(len(versionedKeys))]
	}
	switch n := c.intn(100); {
	case n < 24:
		o.put("put", nil)
	case n < 42:
		o.get()
	case n < 50:
		o.remove()
	case n < 57:
		o.list()
	case n < 64:
		o.putIfAbsent()
	case n < 74:
		o.increment()
	case n < 80:
		o.multipart()
	case n < 85:
		o.copy()
	case n < 90:
		o.badPut()
	default:
		o.churn()
	}
}

func name(bucket, key string) string { return bucket + "/" + key }

// size draws the size of a body: in the record, in one chunk, in several.
func (c *client) size() int {
	switch n := c.intn(10); {
	case n < 5:
		return 8 + c.intn(inlineLimit-8)
	case n < 8:
		return inlineLimit + 1 + c.intn(chunkSize-inlineLimit)
	}
	return chunkSize + 1 + c.intn(2*chunkSize)
}

func (o *session) begin() { o.call = o.w.hist.begin() }

// outcome turns the end of an operation into what its client may conclude.
func (o *session) outcome(err error) string {
	var f *object.Failure
	res := "unknown"
	switch {
	case err == nil:
		res = "ok"
	case errors.As(err, &f) && f.Reason == object.ErrNoSuchBucket:
		res = "nobucket"
	case errors.As(err, &f) && f.Reason == object.ErrBucketNotEmpty:
		res = "notempty"
	case errors.As(err, &f) && (f.Reason == object.ErrNoSuchUpload || f.Reason == object.ErrInvalidPart):
		res = "refused"
	case errs.Is(err, errs.Precondition):
		res = "412"
	case errs.Is(err, errs.NotFound):
		res = "404"
	case errs.Is(err, errs.Exists):
		res = "exists"
	case errs.Is(err, errs.Incomplete), errs.Is(err, errs.Invalid), errs.Is(err, errs.Denied):
		res = "refused"
	case errs.Is(err, errs.Internal):
		o.w.failf("%s/%s: an internal error: %v", o.bucket, o.key, err)
	}
	if o.s.crashed.Load() {
		return "unknown" // the answer never left
	}
	return res
}

func (o *session) end(in input, res string, v uint32) {
	n := name(o.bucket, o.key)
	if o.bucket == churnBucket {
		n = churnBucket
	}
	o.w.tracef("client %d %s %+v -> %s %d", o.num, n, in, res, v)
	switch {
	case res == "refused":
		return // nothing changed, and nothing was said of the state
	case res == "nobucket" && o.bucket != churnBucket:
		o.w.failf("%s: the bucket is gone", n)
	}
	o.w.hist.end(o.num, n, o.call, in, output{res: res, v: v})
}

// put writes a new value unconditionally, or under a condition.
func (o *session) put(op string, when *value) *value {
	v := o.w.values.single(o.size(), 0)
	o.write(op, v, when)
	return v
}

func (o *session) write(op string, v, when *value) (res string) {
	in := input{op: op, v: v.id}
	var cond object.Conditions
	switch op {
	case "absent":
		cond.IfNoneMatch = []string{"*"}
	case "match":
		in.cond = when.id
		cond.IfMatch = []string{when.etag}
		if when.etagN != "" && when.parts != nil {
			cond.IfMatch = []string{when.etag, when.etagN}
		}
	}
	o.begin()
	if o.intn(3) == 0 && len(cond.IfMatch) < 2 {
		res = o.httpPut(v, &cond)
	} else {
		var info object.Info
		var err error
		info, err = o.s.store.Put(o.ctx, o.bucket, o.key, o.slowly(v.body), object.PutOptions{Size: int64(len(v.body)), If: cond, Owner: rootAccount, Class: o.class()})
		res = o.outcome(err)
		if res == "ok" {
			if info.ETag != v.etag {
				o.w.failf("%s/%s: PUT answered ETag %s for %s", o.bucket, o.key, info.ETag, v.etag)
			}
			o.w.acked(o.bucket, o.key, info.VersionID, v)
		}
	}
	o.end(in, res, 0)
	return res
}

// slowly is a body that comes in pieces, now and then with a pause.
func (o *session) slowly(b []byte) io.Reader {
	if o.intn(6) > 0 {
		return bytes.NewReader(b)
	}
	return &slowReader{r: bytes.NewReader(b), ctx: o.ctx, pause: time.Duration(1+o.intn(400)) * time.Millisecond}
}

type slowReader struct {
	r     io.Reader
	ctx   context.Context
	pause time.Duration
}

func (s *slowReader) Read(p []byte) (int, error) {
	if !sleepCtx(s.ctx, s.pause) {
		return 0, s.ctx.Err()
	}
	if len(p) > 16<<10 {
		p = p[:16<<10]
	}
	return s.r.Read(p)
}

func (o *session) putIfAbsent() { o.put("absent", nil) }

// increment is a step of a compare-and-swap loop.
func (o *session) increment() {
	o.bucket, o.key = plainBucket, counterKey
	v, ok := o.read(nil)
	if !ok {
		return
	}
	count := 0
	if v != nil {
		count = v.count
	}
	next := o.w.values.single(16+o.intn(64), count+1)
	var res string
	if v == nil {
		res = o.write("absent", next, nil)
	} else {
		res = o.write("match", next, v)
	}
	o.w.counted(res)
}

// get reads a whole object or a range, sometimes slowly.
func (o *session) get() {
	var r *object.Range
	if o.intn(3) == 0 {
		first := int64(o.intn(3 * chunkSize))
		r = &object.Range{First: first, Last: first + int64(o.intn(chunkSize))}
		if o.intn(4) == 0 {
			r = &object.Range{Suffix: int64(1 + o.intn(chunkSize))}
		}
	}
	if r == nil && o.intn(3) == 0 {
		o.httpGet()
		return
	}
	o.read(r)
}

// read returns the value that was read, nil when there is none; ok is false when nothing was learnt.
func (o *session) read(r *object.Range) (v *value, ok bool) {
	o.begin()
	v, res := o.fetch(o.ctx, object.GetOptions{Range: r})
	id := uint32(0)
	if v != nil {
		id = v.id
	}
	switch res {
	case "404":
		res = "ok"
	case "ok", "unknown", "refused":
	default:
		o.w.failf("%s/%s: GET ended as %s", o.bucket, o.key, res)
		return nil, false
	}
	o.end(input{op: "get"}, res, id)
	return v, res == "ok"
}

// fetch reads and judges every byte.
func (o *session) fetch(ctx context.Context, opts object.GetOptions) (*value, string) {
	obj, err := o.s.store.Get(ctx, o.bucket, o.key, opts)
	if err != nil {
		return nil, o.outcome(err)
	}
	defer obj.Close()
	where := name(o.bucket, o.key)
	v := o.w.values.find(obj.Info.ETag)
	if v == nil {
		o.w.failf("%s: GET answered ETag %s, which nobody wrote", where, obj.Info.ETag)
		return nil, "unknown"
	}
	if obj.Info.Size != int64(len(v.body)) || obj.Offset+obj.Length > obj.Info.Size {
		o.w.failf("%s: GET answered %d bytes, range %d+%d, of a value of %d", where, obj.Info.Size, obj.Offset, obj.Length, len(v.body))
		return nil, "unknown"
	}
	sink := &judge{want: v.body[obj.Offset : obj.Offset+obj.Length], ctx: ctx}
	if !o.quick && o.intn(8) == 0 {
		sink.pause = time.Duration(1+o.intn(40)) * time.Second
	}
	_, err = obj.WriteTo(sink)
	if sink.wrong {
		o.w.failf("%s: GET wrote bytes that are not those of value %d, before byte %d of %d from %d", where, v.id, sink.at, obj.Length, obj.Offset)
		return nil, "unknown"
	}
	if err != nil || o.s.crashed.Load() {
		if errs.Is(err, errs.Internal) {
			o.w.failf("%s: GET broke off with an internal error: %v", where, err)
		}
		return nil, "unknown" // broken off: what came was right
	}
	if sink.at != len(sink.want) {
		o.w.failf("%s: GET wrote %d of %d bytes and said nothing", where, sink.at, len(sink.want))
		return nil, "unknown"
	}
	return v, "ok"
}

// judge compares what is written with what it must be.
type judge struct {
	ctx   context.Context
	want  []byte
	at    int
	wrong bool
	pause time.Duration
}

func (j *judge) Write(p []byte) (int, error) {
	if j.pause > 0 && !sleepCtx(j.ctx, j.pause) {
		return 0, j.ctx.Err()
	}
	if j.at+len(p) > len(j.want) || !bytes.Equal(p, j.want[j.at:j.at+len(p)]) {
		j.wrong = true
		return 0, io.ErrShortWrite
	}
	j.at += len(p)
	return len(p), nil
}

func (o *session) remove() {
	o.begin()
	var res string
	if o.intn(3) == 0 {
		code, _ := o.http(http.MethodDelete, name(o.bucket, o.key), nil, nil)
		res = o.status(code, http.StatusNoContent)
	} else {
		_, err := o.s.store.Delete(o.ctx, o.bucket, o.key, object.DeleteOptions{Owner: rootAccount})
		res = o.outcome(err)
	}
	o.end(input{op: "del"}, res, 0)
}

// list reads a whole bucket in pages. Each key of it was read at some moment meanwhile.
func (o *session) list() {
	keys := plainKeys
	if o.bucket == versionedBucket {
		keys = versionedKeys
	} else {
		keys = append(slices.Clone(keys), counterKey)
	}
	o.begin()
	found := map[string]uint32{}
	limit := 1 + o.intn(5)
	for after := ""; ; {
		p, err := o.s.store.List(o.ctx, o.bucket, object.ListOptions{After: after, Limit: limit})
		if err != nil || o.s.crashed.Load() {
			if res := o.outcome(err); res != "unknown" {
				o.w.failf("LIST of %s ended as %s: %v", o.bucket, res, err)
			}
			return
		}
		for i := range p.Objects {
			v := o.w.values.find(p.Objects[i].ETag)
			if v == nil {
				o.w.failf("LIST of %s shows %s with ETag %s, which nobody wrote", o.bucket, p.Objects[i].Key, p.Objects[i].ETag)
				return
			}
			if _, twice := found[p.Objects[i].Key]; twice || !slices.Contains(keys, p.Objects[i].Key) {
				o.w.failf("LIST of %s shows %s twice, or nobody wrote it", o.bucket, p.Objects[i].Key)
			}
			found[p.Objects[i].Key] = v.id
		}
		if !p.Truncated {
			break
		}
		after = p.Next
	}
	for _, k := range keys {
		o.key = k
		o.end(input{op: "get"}, "ok", found[k])
	}
}

// copy copies a value onto another key.
func (o *session) copy() {
	from := plainKeys[o.intn(len(plainKeys))]
	if from == o.key && o.bucket == plainBucket {
		return
	}
	src := &session{client: o.client, s: o.s, ctx: o.ctx, bucket: plainBucket, key: from}
	v, ok := src.read(nil)
	if !ok || v == nil {
		return
	}
	o.begin()
	etags := []string{v.etag}
	if v.etagN != "" {
		etags = append(etags, v.etagN)
	}
	r, err := o.s.store.Copy(o.ctx, plainBucket, from, o.bucket, o.key, object.CopyOptions{SourceIf: object.Conditions{IfMatch: etags}, Put: object.PutOptions{Owner: rootAccount, Class: o.class()}})
	res := o.outcome(err)
	if res == "412" || res == "404" {
		return // the source has changed
	}
	if res == "ok" {
		if got := o.w.values.find(r.Info.ETag); got != v {
			o.w.failf("%s/%s: COPY of value %d answered ETag %s", o.bucket, o.key, v.id, r.Info.ETag)
		}
		o.w.acked(o.bucket, o.key, r.Info.VersionID, v)
	}
	o.end(input{op: "put", v: v.id}, res, 0)
}

var errChecksum = errs.E("sim", errs.Invalid, "the checksum does not match")

// badPut sends what must never become visible: a body that ends early, or that fails its checksum.
func (o *session) badPut() {
	junk := o.w.values.junk(o.size())
	full := int64(len(junk))
	switch o.intn(4) {
	case 0: // short
		_, err := o.s.store.Put(o.ctx, o.bucket, o.key, bytes.NewReader(junk[:o.intn(len(junk))]), object.PutOptions{Size: full, Owner: rootAccount})
		o.mustFail("a short body", err, errs.Incomplete)
	case 1: // the client goes away
		ctx, cancel := context.WithCancel(o.ctx)
		defer cancel()
		n := o.intn(len(junk))
		r := io.MultiReader(bytes.NewReader(junk[:n]), iotest.ErrReader(context.Canceled))
		_, err := o.s.store.Put(ctx, o.bucket, o.key, r, object.PutOptions{Size: full, Owner: rootAccount})
		o.mustFail("a client that went away", err, errs.Incomplete, errs.Canceled)
	case 2: // checksum
		_, err := o.s.store.Put(o.ctx, o.bucket, o.key, bytes.NewReader(junk), object.PutOptions{Size: full, Owner: rootAccount,
			Verify: func(object.Sums) error { return errChecksum }})
		o.mustFail("a bad checksum", err, errs.Invalid)
	default: // Content-MD5 on the wire
		code, _ := o.http(http.MethodPut, name(o.bucket, o.key), junk, http.Header{"Content-Md5": {"AAAAAAAAAAAAAAAAAAAAAA=="}})
		if code == http.StatusOK {
			o.w.failf("%s/%s: a PUT with a wrong Content-MD5 was answered with %d", o.bucket, o.key, code)
		}
	}
}

func (o *session) mustFail(what string, err error, kinds ...errs.Kind) {
	if err == nil {
		o.w.failf("%s/%s: a PUT with %s succeeded", o.bucket, o.key, what)
	}
	if errs.Is(err, errs.Internal) && !o.s.crashed.Load() {
		o.w.failf("%s/%s: a PUT with %s ended with an internal error: %v", o.bucket, o.key, what, err)
	}
	_ = kinds // with faults, the fault may be met first
}

// multipart uploads parts, some of them twice, and completes or aborts, sometimes against an
// accomplice who does something else at the same time.
func (o *session) multipart() {
	st := o.s.store
	up, err := st.CreateUpload(o.ctx, o.bucket, o.key, object.UploadOptions{Owner: rootAccount, Class: o.class()})
	if o.outcome(err) != "ok" {
		return
	}
	sizes := make([]int, 1+o.intn(3))
	for i := range sizes {
		sizes[i] = o.size()
	}
	v := o.w.values.multipart(sizes)
	var list []object.CompletedPart
	for i, p := range v.parts {
		if o.intn(3) == 0 { // an earlier try with other bytes
			_, _ = st.PutPart(o.ctx, o.bucket, o.key, up.UploadID, i+1, bytes.NewReader(o.w.values.junk(100)), object.PartOptions{Size: 100})
		}
		info, err := st.PutPart(o.ctx, o.bucket, o.key, up.UploadID, i+1, o.slowly(p), object.PartOptions{Size: int64(len(p))})
		if o.outcome(err) != "ok" {
			return // left behind
		}
		if info.ETag != etagOf(p) {
			o.w.failf("%s/%s: UploadPart answered ETag %s for %s", o.bucket, o.key, info.ETag, etagOf(p))
		}
		list = append(list, object.CompletedPart{Number: i + 1, ETag: info.ETag})
	}
	if o.intn(6) == 0 {
		if o.outcome(st.AbortUpload(o.ctx, o.bucket, o.key, up.UploadID)) == "ok" {
			if _, err := st.CompleteUpload(o.ctx, o.bucket, o.key, up.UploadID, list, object.CompleteOptions{}); err == nil {
				o.w.failf("%s/%s: an upload was completed after its abort", o.bucket, o.key)
			}
		}
		return
	}
	var accomplice sync.WaitGroup
	switch o.intn(4) {
	case 0:
		junk := o.w.values.junk(o.size())
		accomplice.Go(func() {
			_, _ = st.PutPart(o.ctx, o.bucket, o.key, up.UploadID, 1, bytes.NewReader(junk), object.PartOptions{Size: int64(len(junk))})
		})
	case 1:
		accomplice.Go(func() { _ = st.AbortUpload(o.ctx, o.bucket, o.key, up.UploadID) })
	}
	o.begin()
	info, err := st.CompleteUpload(o.ctx, o.bucket, o.key, up.UploadID, list, object.CompleteOptions{})
	res := o.outcome(err)
	if res == "unknown" && o.intn(2) == 0 { // clients try again
		info, err = st.CompleteUpload(o.ctx, o.bucket, o.key, up.UploadID, list, object.CompleteOptions{})
		if again := o.outcome(err); again == "ok" {
			res = again
		}
	}
	if res == "ok" {
		if info.ETag != v.etagN {
			o.w.failf("%s/%s: CompleteMultipartUpload answered ETag %s for %s", o.bucket, o.key, info.ETag, v.etagN)
		}
		o.w.acked(o.bucket, o.key, info.VersionID, v)
	}
	o.end(input{op: "put", v: v.id}, res, 0)
	accomplice.Wait()
}

// churn works on the bucket that comes and goes.
func (o *session) churn() {
	o.bucket = churnBucket
	k := o.intn(churnKeys)
	o.key = churnNames[k]
	st := o.s.store
	o.begin()
	switch o.intn(6) {
	case 0, 1:
		_, err := st.CreateBucket(o.ctx, churnBucket, object.CreateBucketOptions{Owner: rootAccount})
		o.end(input{op: "mkbucket"}, o.outcome(err), 0)
	case 2:
		o.end(input{op: "rmbucket"}, o.outcome(st.DeleteBucket(o.ctx, churnBucket)), 0)
	case 3:
		v := o.w.values.single(o.size(), 0)
		_, err := st.Put(o.ctx, churnBucket, o.key, bytes.NewReader(v.body), object.PutOptions{Size: int64(len(v.body)), Owner: rootAccount})
		o.end(input{op: "put", key: k, v: v.id}, o.outcome(err), 0)
	case 4:
		v, res := o.fetch(o.ctx, object.GetOptions{})
		id := uint32(0)
		if v != nil {
			id = v.id
		}
		if res == "404" {
			res = "ok"
		}
		o.end(input{op: "get", key: k}, res, id)
	default:
		_, err := st.Delete(o.ctx, churnBucket, o.key, object.DeleteOptions{Owner: rootAccount})
		o.end(input{op: "del", key: k}, o.outcome(err), 0)
	}
}

// http sends a signed request through the S3 endpoint. The status is 0 when the answer broke off.
func (o *session) http(method, path string, b []byte, h http.Header) (code int, answer *httptest.ResponseRecorder) {
	req := httptest.NewRequestWithContext(o.ctx, method, "http://sim.test/"+(&url.URL{Path: path}).EscapedPath(), bytes.NewReader(b))
	req.RequestURI = req.URL.RequestURI()
	req.ContentLength = int64(len(b))
	for k, v := range h {
		req.Header[k] = v
	}
	if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: rootAccess, Secret: rootSecret}, "us-east-1", "s3", auth.HashPayload(b), o.s.now()); err != nil {
		o.w.failf("signing: %v", err)
		return 0, nil
	}
	answer = httptest.NewRecorder()
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				panic(p)
			}
			code = 0
		}
	}()
	o.s.handler.ServeHTTP(answer, req)
	return answer.Code, answer
}

// status turns a status code into an outcome. What the store cannot do now is 503, or 507 without space.
func (o *session) status(code int, good ...int) string {
	switch {
	case o.s.crashed.Load():
		return "unknown"
	case slices.Contains(good, code):
		return "ok"
	}
	switch code {
	case http.StatusPreconditionFailed:
		return "412"
	case http.StatusNotFound:
		return "404"
	case http.StatusServiceUnavailable, http.StatusInsufficientStorage, 0, 499, http.StatusRequestTimeout, http.StatusConflict:
		return "unknown"
	}
	if o.ctx.Err() == nil {
		o.w.failf("%s/%s: an answer with status %d", o.bucket, o.key, code)
	}
	return "unknown"
}

func (o *session) httpPut(v *value, cond *object.Conditions) string {
	h := http.Header{}
	if len(cond.IfMatch) > 0 {
		h.Set("If-Match", `"`+cond.IfMatch[0]+`"`)
	}
	if len(cond.IfNoneMatch) > 0 {
		h.Set("If-None-Match", cond.IfNoneMatch[0])
	}
	if class := o.class(); class != "" {
		h.Set("X-Amz-Storage-Class", class)
	}
	code, answer := o.http(http.MethodPut, name(o.bucket, o.key), v.body, h)
	res := o.status(code, http.StatusOK)
	if res == "ok" {
		if got := strings.Trim(answer.Header().Get("Etag"), `"`); got != v.etag {
			o.w.failf("%s/%s: PUT answered ETag %s for %s", o.bucket, o.key, got, v.etag)
		}
		o.w.acked(o.bucket, o.key, answer.Header().Get("X-Amz-Version-Id"), v)
	}
	return res
}

func (o *session) httpGet() {
	o.begin()
	code, answer := o.http(http.MethodGet, name(o.bucket, o.key), nil, nil)
	res, id := o.status(code, http.StatusOK), uint32(0)
	if res == "404" {
		res = "ok"
	} else if res == "ok" {
		v := o.w.values.find(strings.Trim(answer.Header().Get("Etag"), `"`))
		if v == nil || !bytes.Equal(answer.Body.Bytes(), v.body) {
			o.w.failf("%s/%s: GET answered %s with %d bytes that are not its", o.bucket, o.key, answer.Header().Get("Etag"), answer.Body.Len())
			return
		}
		id = v.id
	}
	o.end(input{op: "get"}, res, id)
}

func sleep(d time.Duration) { time.Sleep(d) } // virtual

func sleepCtx(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
