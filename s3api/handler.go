package s3api

import (
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/mux"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
)

// Defaults of Config.
const (
	DefaultRegion         = "us-east-1"
	DefaultMaxHeaderBytes = 8 << 10 // as AWS; user metadata have a limit of their own
	serverName            = "Ostraka"
)

// Config is what a Handler is made of.
type Config struct {
	Store    Store
	Verifier Verifier
	// Authorizer decides what an identity may do.
	Authorizer Authorizer
	// Domains are the names under which buckets are addressed as bucket.domain, besides localhost.
	Domains []string
	// Region of this endpoint; DefaultRegion when "".
	Region string
	// AnyRegion accepts buckets for any region's name, and remembers it, as stores with one place
	// are often addressed; otherwise a LocationConstraint must be Region.
	AnyRegion bool
	// Next answers what lies under /-/, which is never a bucket; nil: 404.
	Next http.Handler
	// OwnerName gives an account's display name; nil: its canonical id.
	OwnerName func(id string) string
	// Observer is told of every request; nil: nobody.
	Observer Observer
	// Logger for failures of the server; nil: discard.
	Logger *slog.Logger
	// MaxRequests that run at a time, beyond which SlowDown is answered; 0: no bound.
	MaxRequests int
	// MaxHeaderBytes of a request; 0: DefaultMaxHeaderBytes.
	MaxHeaderBytes int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// HostID is told in x-amz-id-2 and names this process; "": random.
	HostID string
}

// Handler is the S3 endpoint. It is safe for concurrent use and starts no goroutine that outlives
// its request.
type Handler struct {
	Config
	table  *table
	router *mux.Router
	levels map[*mux.Route]level
	slots  chan struct{}
	// hostBucket returns the bucket of a host-style address, "" of a path-style one.
	hostBucket func(host string) string
	hostID     string
}

// New makes the endpoint's handler. It must be the server's root handler, or stand behind one
// that leaves paths alone: http.ServeMux does not.
func New(c Config) *Handler {
	if c.Region == "" {
		c.Region = DefaultRegion
	}
	if c.MaxHeaderBytes == 0 {
		c.MaxHeaderBytes = DefaultMaxHeaderBytes
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Next == nil {
		c.Next = http.NotFoundHandler()
	}
	if c.OwnerName == nil {
		c.OwnerName = func(id string) string { return id }
	}
	h := &Handler{Config: c, table: newTable(operations), hostID: c.HostID, hostBucket: HostBucket(c.Domains)}
	if h.hostID == "" {
		h.hostID = strconv.FormatUint(rand.Uint64(), 16)
	}
	h.hostID = base64.StdEncoding.EncodeToString([]byte(h.hostID))
	if c.MaxRequests > 0 {
		h.slots = make(chan struct{}, c.MaxRequests)
	}
	h.router = h.routes()
	return h
}

// routes maps addresses to levels. Keys are bytes: nothing is cleaned, and the path is matched as
// it was escaped.
func (h *Handler) routes() *mux.Router {
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	answers := [...]http.HandlerFunc{
		levelService: func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, levelService, mux.Vars(r)) },
		levelBucket:  func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, levelBucket, mux.Vars(r)) },
		levelObject:  func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, levelObject, mux.Vars(r)) },
	}
	h.levels = map[*mux.Route]level{}
	at := func(route *mux.Route, l level) { h.levels[route.Handler(answers[l])] = l }
	virtual := r.MatcherFunc(h.virtualHost).Subrouter()
	at(virtual.Path("/"), levelBucket)
	at(virtual.Path("/{key:.+}"), levelObject)
	r.PathPrefix("/-/").Handler(h.Next)
	r.Path("/-").Handler(h.Next)
	at(r.Path("/"), levelService)
	at(r.Path("/{bucket:[^/]+}"), levelBucket)
	at(r.Path("/{bucket:[^/]+}/"), levelBucket)
	at(r.Path("/{bucket:[^/]*}/{key:.+}"), levelObject)
	r.NotFoundHandler = answers[levelService] // such as OPTIONS *
	return r
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.router.ServeHTTP(w, r) }

// virtualHost matches hosts bucket.domain, for the longest domain that fits, and keeps the bucket.
func (h *Handler) virtualHost(r *http.Request, m *mux.RouteMatch) bool {
	bucket := h.hostBucket(r.Host)
	if bucket == "" {
		return false
	}
	if m.Vars == nil {
		m.Vars = map[string]string{}
	}
	m.Vars["bucket"] = bucket
	return true
}

// HostBucket returns the function by which a handler with these domains reads the bucket from a
// Host header, "" where the address is path-style. It is what auth.Config.HostBucket has to be.
func HostBucket(domains []string) func(host string) string {
	var suffixes []string // lower case, with a leading dot
	for _, d := range append([]string{"localhost"}, domains...) {
		if d = strings.ToLower(strings.Trim(d, ".")); d != "" {
			suffixes = append(suffixes, "."+d)
		}
	}
	return func(host string) string {
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		best := ""
		for _, d := range suffixes {
			if host == d[1:] {
				return ""
			}
			if strings.HasSuffix(host, d) && len(d) > len(best) {
				best = d
			}
		}
		if best == "" {
			return ""
		}
		return strings.TrimSuffix(host, best)
	}
}

// call is one request on its way through a handler.
type call struct {
	h          *Handler
	w          http.ResponseWriter
	r          *http.Request
	ctx        context.Context
	op         *row
	level      level
	bucket     string
	key        string
	query      query
	info       object.Bucket // of bucket, except in CreateBucket
	auth       *auth.Request
	conditions auth.Conditions // of policies; made when first needed
	rec        Record
	wrote      bool // the head of the answer is out
}

// response is a successful answer. One of body and stream is set, or neither.
type response struct {
	status int // 200 when 0
	header []field
	body   []byte
	xml    *xmlBuf // what body is part of, if it is a document
	stream Body
	length int64 // of stream
	// noBody: HEAD; length is still announced.
	noBody bool
}

func (p *response) set(name, value string) *response {
	p.header = append(p.header, field{name, value})
	return p
}

// setSome sets a header unless its value is empty.
func (p *response) setSome(name, value string) *response {
	if value != "" {
		p.set(name, value)
	}
	return p
}

// respond makes an answer of a document.
func respond(x *xmlBuf) *response { return &response{body: x.b, xml: x} }

// serve runs one request from its address to its record.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, l level, vars map[string]string) {
	c := &call{h: h, w: w, r: r, ctx: r.Context(), level: l}
	c.rec = Record{
		RequestID: requestID(), Method: r.Method, Start: h.Now(), RemoteAddr: r.RemoteAddr, Host: r.Host,
		UserAgent: r.UserAgent(), TLS: r.TLS != nil,
	}
	abort := false
	func() {
		defer func() {
			if v := recover(); v != nil {
				h.Logger.Error("handler panicked", "request", c.rec.RequestID, "operation", c.rec.Operation, "panic", v, "stack", string(debug.Stack()))
				c.rec.Err = errs.E("s3api."+c.rec.Operation, errs.Internal, "panic")
				abort = c.wrote
				if !c.wrote {
					c.writeError(fail("InternalError", ""))
				}
			}
		}()
		abort = !c.run(vars)
	}()
	c.rec.Duration = h.Now().Sub(c.rec.Start)
	if h.Observer != nil {
		h.Observer.Observe(c.ctx, &c.rec)
	}
	if abort {
		panic(http.ErrAbortHandler) // the client must not take what it got for the whole
	}
}

// run answers, and reports false when the connection has to be cut.
func (c *call) run(vars map[string]string) bool {
	resp, err := c.answer(vars)
	if err != nil {
		c.writeError(c.h.explain(c, err))
		return true
	}
	return c.write(resp)
}

// answer is the way of every request: bound, match, verify, allow, check, handle.
func (c *call) answer(vars map[string]string) (*response, error) {
	h := c.h
	if h.slots != nil {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		default:
			return nil, fail("SlowDown", "")
		}
	}
	if err := c.address(vars); err != nil {
		return nil, err
	}
	if n := headerBytes(c.r.Header); n > h.MaxHeaderBytes {
		return nil, fail("RequestHeaderSectionTooLarge", "").with("MaxSizeAllowed", strconv.Itoa(h.MaxHeaderBytes))
	}
	if err := c.match(); err != nil {
		return nil, err
	}
	if c.op.open {
		return c.op.handler(h, c)
	}
	c.r.Body = &countingBody{ReadCloser: c.r.Body, n: &c.rec.BytesIn}
	if err := c.authenticate(); err != nil {
		return nil, err
	}
	if c.level != levelService && c.op.name != "CreateBucket" {
		var err error
		if c.info, err = h.Store.HeadBucket(c.ctx, c.bucket); err != nil {
			return nil, err
		}
	}
	if err := c.authorizeOperation(); err != nil {
		return nil, err
	}
	if err := c.common(); err != nil {
		return nil, err
	}
	if c.op.handler == nil {
		return nil, fail("NotImplemented", "This operation is not implemented.").with("Operation", c.op.name)
	}
	if err := c.op.check(c.query, c.r.Header); err != nil {
		return nil, err
	}
	return c.op.handler(h, c)
}

// address decodes bucket, key and query.
func (c *call) address(vars map[string]string) error {
	var err error
	if c.bucket, err = url.PathUnescape(vars["bucket"]); err != nil || !utf8.ValidString(c.bucket) {
		return fail("InvalidURI", "")
	}
	if c.key, err = url.PathUnescape(vars["key"]); err != nil || !utf8.ValidString(c.key) {
		return fail("InvalidURI", "")
	}
	c.rec.Bucket, c.rec.Key = c.bucket, c.key
	if c.query, err = parseQuery(c.r.URL.RawQuery); err != nil {
		return err
	}
	c.rec.VersionID = c.query.get("versionId")
	if len(c.key) > object.MaxKeyLen {
		return fail("KeyTooLongError", "").with("Size", strconv.Itoa(len(c.key))).with("MaxSizeAllowed", strconv.Itoa(object.MaxKeyLen))
	}
	if c.level != levelService && c.bucket == "" {
		return fail("InvalidBucketName", "").with("BucketName", "")
	}
	return nil
}

// match finds the row of the request.
func (c *call) match() error {
	if c.op = c.h.table.find(c.r.Method, c.level, c.query, c.r.Header); c.op == nil {
		kind := [...]string{"SERVICE", "BUCKET", "OBJECT"}[c.level]
		return fail("MethodNotAllowed", "").with("Method", c.r.Method).with("ResourceType", kind).header("Allow", c.h.table.allowed(c.level))
	}
	c.rec.Operation = c.op.name
	return nil
}

// common honours the headers that mean the same for every operation.
func (c *call) common() error {
	if want := c.r.Header.Get("X-Amz-Expected-Bucket-Owner"); want != "" && c.level != levelService && c.op.name != "CreateBucket" && !sameOwner(want, c.info.Owner) {
		return fail("AccessDenied", "")
	}
	// Every bucket's owner pays, so a requester who agrees to pay is not asked to, as on AWS.
	if v := c.r.Header.Get("X-Amz-Request-Payer"); v != "" && v != "requester" {
		return invalid("x-amz-request-payer", v, "Invalid request payer value")
	}
	return nil
}

// write sends resp, and reports false when it broke off in the middle.
func (c *call) write(p *response) bool {
	if p.stream != nil {
		defer p.stream.Close() //nolint:errcheck // it was read to its end, or the failure is known
	}
	status := p.status
	if status == 0 {
		status = http.StatusOK
	}
	header := c.w.Header()
	c.stamp(header)
	for _, f := range p.header {
		name := http.CanonicalHeaderKey(f.name)
		if strings.HasPrefix(name, metaPrefix) {
			// The one kind of header whose case matters: SDKs give its name to programs as it came, and
			// AWS sends it in lower case.
			name = strings.ToLower(f.name)
		}
		header[name] = []string{f.value}
	}
	switch {
	case p.stream != nil || p.noBody:
		header["Content-Length"] = []string{strconv.FormatInt(p.length, 10)}
	case status == http.StatusNoContent || status == http.StatusNotModified:
	default:
		if p.xml != nil {
			header["Content-Type"] = []string{"application/xml"}
		}
		header["Content-Length"] = []string{strconv.Itoa(len(p.body))}
	}
	if p.stream == nil || p.noBody {
		c.head(status)
		if len(p.body) > 0 && !p.noBody {
			n, err := c.w.Write(p.body)
			c.rec.BytesOut = int64(n)
			c.rec.Err = err
			// After a failure HTTP/2 may still be reading the body of a stream that is gone.
			if err == nil && p.xml != nil {
				p.xml.release()
				p.body, p.xml = nil, nil
			}
		}
		return true
	}
	lw := &lazyWriter{c: c, status: status}
	n, err := p.stream.WriteTo(lw)
	c.rec.BytesOut = n
	if err == nil && lw.n != p.length {
		err = errs.E("s3api.write", errs.Internal, "body is "+strconv.FormatInt(lw.n, 10)+" bytes, "+strconv.FormatInt(p.length, 10)+" announced")
	}
	if err == nil {
		if !c.wrote {
			c.head(status)
		}
		return true
	}
	if !c.wrote {
		clear(header)
		c.writeError(c.h.explain(c, err))
		return true
	}
	c.rec.Err = err
	if c.ctx.Err() == nil && !lw.failed {
		c.h.Logger.Error("answer broke off", "request", c.rec.RequestID, "operation", c.rec.Operation, "bucket", c.bucket, "key", c.key, "sent", lw.n, "error", err)
	}
	return false
}

// stamp sets what every answer carries.
func (c *call) stamp(header http.Header) {
	header["Server"] = []string{serverName}
	header["X-Amz-Request-Id"] = []string{c.rec.RequestID}
	header["X-Amz-Id-2"] = []string{c.h.hostID}
}

func (c *call) head(status int) {
	c.wrote = true
	c.rec.Status = status
	c.rec.FirstByte = c.h.Now().Sub(c.rec.Start)
	c.w.WriteHeader(status)
}

// lazyWriter sends the head with the first byte, so that what fails before it gets an error.
type lazyWriter struct {
	c      *call
	status int
	n      int64
	failed bool // the client's end failed
}

func (l *lazyWriter) Write(b []byte) (int, error) {
	if !l.c.wrote {
		l.c.head(l.status)
	}
	n, err := l.c.w.Write(b)
	l.n += int64(n)
	l.failed = l.failed || err != nil
	return n, err
}

// writeError answers a failure.
func (c *call) writeError(f *failure) {
	c.rec.Code, c.rec.Err = f.code, f
	status := f.httpStatus()
	if status >= 500 && status != http.StatusNotImplemented {
		c.h.Logger.Error("request failed", "request", c.rec.RequestID, "operation", c.rec.Operation, "bucket", c.bucket, "key", c.key, "code", f.code, "error", f)
	}
	header := c.w.Header()
	c.stamp(header)
	for _, x := range f.headers {
		header[http.CanonicalHeaderKey(x.name)] = []string{x.value}
	}
	if status == http.StatusServiceUnavailable {
		header["Retry-After"] = []string{"1"}
	}
	if status == http.StatusNotModified {
		c.head(status)
		return
	}
	header["Content-Type"] = []string{"application/xml"}
	if c.r.Method == http.MethodHead {
		c.head(status)
		return
	}
	body := errorDocument(f, c.r.URL.EscapedPath(), c.rec.RequestID, c.h.hostID)
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.head(status)
	n, _ := c.w.Write(body) //nolint:errcheck // nobody is left to tell
	c.rec.BytesOut = int64(n)
}

// errorDocument is the Error element, which has no namespace.
func errorDocument(f *failure, resource, requestID, hostID string) []byte {
	x := &xmlBuf{b: make([]byte, 0, 512)}
	x.b = append(x.b, xmlHeader...)
	x.open("Error")
	x.elem("Code", f.code)
	x.elem("Message", f.text())
	for _, e := range f.extras {
		x.elem(e.name, e.value)
	}
	x.elem("Resource", resource)
	x.elem("RequestId", requestID)
	x.elem("HostId", hostID)
	x.close("Error")
	return x.b
}

// requestID draws an id: 16 upper case hex digits, as AWS has them.
func requestID() string {
	const hex = "0123456789ABCDEF"
	var b [16]byte
	v := rand.Uint64()
	for i := range b {
		b[i] = hex[v&15]
		v >>= 4
	}
	return string(b[:])
}

// headerBytes is the size of a header section on the wire, the Host line left out.
func headerBytes(h http.Header) int {
	n := 0
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + 4
		}
	}
	return n
}

// countingBody counts what is read of a request's body. It is read by one goroutine.
type countingBody struct {
	io.ReadCloser
	n *int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	*b.n += int64(n)
	return n, err
}

// readDocument reads a bounded body whole, and verifies its digests.
func (c *call) readDocument(limit int64) (string, error) {
	want, err := c.digests()
	if err != nil {
		return "", err
	}
	body, err := c.readPlain(limit)
	if err != nil {
		return "", err
	}
	return body, want.verifyBytes(c, []byte(body))
}

// readPlain is readDocument without the x-amz-checksum-* headers, which a completion uses for the
// object that it makes.
func (c *call) readPlain(limit int64) (string, error) {
	size := c.auth.DecodedLength
	if size > limit {
		return "", fail("MaxMessageLengthExceeded", "").with("MaxMessageLengthBytes", strconv.FormatInt(limit, 10))
	}
	body, err := io.ReadAll(io.LimitReader(c.auth.Body, limit+1))
	if err != nil {
		return "", err
	}
	if int64(len(body)) > limit {
		return "", fail("MaxMessageLengthExceeded", "").with("MaxMessageLengthBytes", strconv.FormatInt(limit, 10))
	}
	if size >= 0 && int64(len(body)) != size {
		return "", fail("IncompleteBody", "")
	}
	return string(body), nil
}
