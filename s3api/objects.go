package s3api

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

const (
	maxUserMeta        = 2 << 10 // bytes of names and values, the prefix left out
	defaultContentType = "binary/octet-stream"
	metaPrefix         = "X-Amz-Meta-"
)

// postObject refuses forms: their signature and policy lie in the body.
func (h *Handler) postObject(*call) (*response, error) {
	return nil, fail("NotImplemented", "Uploads by POST form are not implemented.").with("Operation", "PostObject")
}

// systemHeaders are stored with an object and given back.
var systemHeaders = []string{"Content-Type", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires"}

// attributes reads the headers of a new object: what is stored, and what is refused.
func (c *call) attributes() (headers, meta []metadata.Field, class string, err error) {
	for _, name := range systemHeaders {
		v := strings.Join(c.r.Header.Values(name), ",")
		if name == "Content-Encoding" {
			v = auth.StripChunked(v)
		}
		if v != "" {
			headers = append(headers, metadata.Field{Name: strings.ToLower(name), Value: v})
		}
	}
	size := 0
	for name, values := range c.r.Header {
		rest, ok := strings.CutPrefix(name, metaPrefix)
		if !ok {
			continue
		}
		f := metadata.Field{Name: strings.ToLower(rest), Value: strings.Join(values, ",")}
		size += len(f.Name) + len(f.Value)
		meta = append(meta, f)
	}
	if size > maxUserMeta {
		return nil, nil, "", fail("MetadataTooLarge", "").with("Size", strconv.Itoa(size)).with("MaxSizeAllowed", strconv.Itoa(maxUserMeta))
	}
	slices.SortFunc(meta, func(a, b metadata.Field) int { return strings.Compare(a.Name, b.Name) })
	if err := only(c, "x-amz-acl", "private", "bucket-owner-full-control"); err != nil {
		return nil, nil, "", err
	}
	class = c.r.Header.Get("X-Amz-Storage-Class")
	if class != "" && class != object.ClassStandard && class != object.ClassReduced {
		return nil, nil, "", fail("InvalidStorageClass", "").with("StorageClassRequested", class)
	}
	return headers, meta, class, nil
}

// writeConditions reads the conditions of PUT, copy and completion.
func (c *call) writeConditions() (object.Conditions, error) {
	for _, name := range []string{"If-Modified-Since", "If-Unmodified-Since"} {
		if c.r.Header.Get(name) != "" {
			return object.Conditions{}, fail("NotImplemented", "A header you provided implies functionality that is not implemented.").with("Header", name)
		}
	}
	return object.Conditions{IfMatch: parseETags(c.r.Header.Values("If-Match")), IfNoneMatch: parseETags(c.r.Header.Values("If-None-Match"))}, nil
}

// readConditions reads the conditions of GET and HEAD, or with a prefix those of a copy's source.
func (c *call) readConditions(prefix string) object.Conditions {
	h := c.r.Header
	return object.Conditions{
		IfMatch:           parseETags(h.Values(prefix + "If-Match")),
		IfNoneMatch:       parseETags(h.Values(prefix + "If-None-Match")),
		IfModifiedSince:   parseDate(h.Get(prefix + "If-Modified-Since")),
		IfUnmodifiedSince: parseDate(h.Get(prefix + "If-Unmodified-Since")),
	}
}

// announcedSize is the body's length, which a PUT must announce.
func (c *call) announcedSize() (int64, error) {
	n := c.auth.DecodedLength
	if n < 0 {
		return 0, fail("MissingContentLength", "")
	}
	if n > object.MaxPutSize {
		return 0, fail("EntityTooLarge", "").with("ProposedSize", strconv.FormatInt(n, 10)).with("MaxSizeAllowed", strconv.FormatInt(object.MaxPutSize, 10))
	}
	return n, nil
}

func (h *Handler) putObject(c *call) (*response, error) {
	size, err := c.announcedSize()
	if err != nil {
		return nil, err
	}
	o := object.PutOptions{Size: size, Owner: c.auth.Identity.AccountID}
	if o.Headers, o.Meta, o.Class, err = c.attributes(); err != nil {
		return nil, err
	}
	if o.Tags, err = c.newTags(); err != nil {
		return nil, err
	}
	if o.If, err = c.writeConditions(); err != nil {
		return nil, err
	}
	d, err := c.digests()
	if err != nil {
		return nil, err
	}
	o.Checksums = []checksum.Algorithm{checksum.Default}
	if d.algorithm != checksum.None {
		o.Checksums[0] = d.algorithm
	}
	if d.checked() {
		o.Verify = d.verifySums(c)
	}
	info, err := h.Store.Put(c.ctx, c.bucket, c.key, c.auth.Body, o)
	if err != nil {
		return nil, err
	}
	p := (&response{}).set("Etag", quote(info.ETag)).setChecksums(info.Checksums, true)
	return p.setVersion(&info), nil
}

// setVersion tells the version id, in buckets that have versions.
func (p *response) setVersion(i *object.Info) *response {
	if i.Versioning != object.Unversioned {
		p.setSome("X-Amz-Version-Id", i.VersionID)
	}
	return p
}

func quote(etag string) string { return `"` + etag + `"` }

func (h *Handler) getObject(c *call) (*response, error)  { return c.read(h.Store.Get, false) }
func (h *Handler) headObject(c *call) (*response, error) { return c.read(h.Store.Head, true) }

// read answers GET and HEAD, which differ in nothing but the body.
func (c *call) read(open func(context.Context, string, string, object.GetOptions) (Content, error), head bool) (*response, error) {
	o, err := c.readOptions()
	if err != nil {
		return nil, err
	}
	overrides, err := c.overrides()
	if err != nil {
		return nil, err
	}
	content, err := open(c.ctx, c.bucket, c.key, o)
	if err != nil {
		return nil, c.hideMissing(err)
	}
	info := &content.Info
	p := &response{stream: content.Body, length: content.Length, noBody: head}
	p.describe(info)
	p.setTagCount(c, info)
	for _, f := range overrides {
		p.header = slices.DeleteFunc(p.header, func(x field) bool { return strings.EqualFold(x.name, f.name) })
		p.setSome(f.name, f.value)
	}
	if content.Partial {
		p.status = http.StatusPartialContent
		if content.Length > 0 {
			p.set("Content-Range", "bytes "+strconv.FormatInt(content.Offset, 10)+"-"+strconv.FormatInt(content.Offset+content.Length-1, 10)+"/"+strconv.FormatInt(info.Size, 10))
		}
	}
	if o.PartNumber != 0 && info.PartCount > 0 {
		p.set("X-Amz-Mp-Parts-Count", strconv.Itoa(info.PartCount))
	}
	if strings.EqualFold(c.r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") {
		switch {
		case o.Range != nil && content.Partial: // the checksum of the whole says nothing of a range
		case info.Part != nil:
			p.setChecksums(info.Part.Checksums, false)
			if len(info.Part.Checksums) > 0 && len(info.Checksums) > 0 {
				p.set("x-amz-checksum-type", sumType(&info.Checksums[0]))
			}
		default:
			p.setChecksums(info.Checksums, true)
		}
	}
	return p, nil
}

// readOptions reads what GET and HEAD ask for.
func (c *call) readOptions() (object.GetOptions, error) {
	o := object.GetOptions{If: c.readConditions("")}
	var err error
	if o.VersionID, err = c.query.versionID(); err != nil {
		return o, err
	}
	if v := c.r.Header.Get("X-Amz-Checksum-Mode"); v != "" && !strings.EqualFold(v, "ENABLED") && !strings.EqualFold(v, "DISABLED") {
		return o, invalid("x-amz-checksum-mode", v, "Value for x-amz-checksum-mode header is invalid.")
	}
	o.Range = parseRange(c.r.Header.Get("Range"))
	if v := c.r.Header.Get("If-Range"); v != "" && o.Range != nil {
		switch t, err := http.ParseTime(v); {
		case err == nil:
			o.IfRangeTime = t
		case strings.HasPrefix(v, "W/"): // a weak tag says nothing of bytes
			o.Range = nil
		default:
			o.IfRange = unquote(v)
		}
	}
	if v, ok := c.query.lookup("partNumber"); ok {
		if o.PartNumber, err = partNumber(v); err != nil {
			return o, err
		}
		if o.Range != nil {
			return o, fail("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
		}
	}
	return o, nil
}

// responseOverride returns the header that a response-* parameter replaces, or "".
func responseOverride(param string) string {
	switch param {
	case "response-content-type":
		return "Content-Type"
	case "response-cache-control":
		return "Cache-Control"
	case "response-content-disposition":
		return "Content-Disposition"
	case "response-content-encoding":
		return "Content-Encoding"
	case "response-content-language":
		return "Content-Language"
	case "response-expires":
		return "Expires"
	}
	return ""
}

// overrides are the response-* parameters; only who signs may use them.
func (c *call) overrides() ([]field, error) {
	var out []field
	for _, p := range c.query {
		name := responseOverride(p.name)
		if name == "" {
			continue
		}
		if c.auth.Identity.Anonymous {
			return nil, fail("InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests.")
		}
		if !validHeaderValue(p.value) {
			return nil, fail("InvalidArgument", "The value is not valid in a header.").with("ArgumentName", p.name) // XML may not hold the value
		}
		out = append(out, field{name, p.value})
	}
	return out, nil
}

// describe sets the headers of an object.
func (p *response) describe(i *object.Info) {
	p.header = slices.Grow(p.header, 8+len(i.Headers)+len(i.Meta))
	p.set("Last-Modified", i.ModTime.UTC().Format(http.TimeFormat))
	p.set("Etag", quote(i.ETag))
	p.set("Accept-Ranges", "bytes")
	typed := false
	for _, f := range i.Headers {
		p.set(f.Name, f.Value)
		typed = typed || f.Name == "content-type"
	}
	if !typed {
		p.set("Content-Type", defaultContentType)
	}
	for _, f := range i.Meta {
		p.set("x-amz-meta-"+f.Name, metaValue(f.Value))
	}
	if i.Class != "" && i.Class != object.ClassStandard {
		p.set("X-Amz-Storage-Class", i.Class)
	}
	p.setVersion(i)
}

// notModifiedHeaders are those that RFC 9110 wants in a 304, and the version.
func notModifiedHeaders(i *object.Info) []field {
	h := []field{{"Etag", quote(i.ETag)}, {"Last-Modified", i.ModTime.UTC().Format(http.TimeFormat)}}
	for _, f := range i.Headers {
		if f.Name == "cache-control" || f.Name == "expires" {
			h = append(h, field{f.Name, f.Value})
		}
	}
	if i.Versioning != object.Unversioned && i.VersionID != "" {
		h = append(h, field{"X-Amz-Version-Id", i.VersionID})
	}
	return h
}

// metaValue makes user metadata fit into a header. A value is stored as it came, so what the
// client encoded comes back as it was. UTF-8 outside ASCII is encoded as RFC 2047 has it, which is
// what AWS's clients decode; bytes of another encoding are left alone.
func metaValue(v string) string {
	for i := 0; i < len(v); i++ {
		if v[i] >= 0x80 {
			if utf8.ValidString(v) {
				return mime.BEncoding.Encode("UTF-8", v)
			}
			return v
		}
	}
	return v
}

func (h *Handler) deleteObject(c *call) (*response, error) {
	o := object.DeleteOptions{Owner: c.auth.Identity.AccountID}
	var err error
	if o.VersionID, err = c.query.versionID(); err != nil {
		return nil, err
	}
	if o.If, err = c.deleteConditions(); err != nil {
		return nil, err
	}
	bypass, err := c.bypass(c.key)
	if err != nil {
		return nil, err
	}
	o.Allow = lockAllows(h.Now(), bypass)
	res, err := h.Store.Delete(c.ctx, c.bucket, c.key, o)
	if err != nil && (!missing(err) || o.If.IfMatch != nil || !o.If.MatchModTime.IsZero() || o.If.MatchSize != nil) {
		return nil, err
	}
	p := &response{status: http.StatusNoContent}
	if res.DeleteMarker {
		p.set("X-Amz-Delete-Marker", "true")
	}
	return p.setSome("X-Amz-Version-Id", res.VersionID), nil
}

// missing reports whether err says that there was nothing to delete, which a delete calls success.
func missing(err error) bool {
	return errors.Is(err, object.ErrNoSuchKey) || errors.Is(err, object.ErrNoSuchVersion)
}

func (c *call) deleteConditions() (object.Conditions, error) {
	for _, name := range []string{"If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if c.r.Header.Get(name) != "" {
			return object.Conditions{}, fail("NotImplemented", "A header you provided implies functionality that is not implemented.").with("Header", name)
		}
	}
	ifs := object.Conditions{IfMatch: parseETags(c.r.Header.Values("If-Match"))}
	var err error
	if ifs.MatchModTime, err = parseTimestamp("x-amz-if-match-last-modified-time", c.r.Header.Get("X-Amz-If-Match-Last-Modified-Time")); err != nil {
		return ifs, err
	}
	if v := c.r.Header.Get("X-Amz-If-Match-Size"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return ifs, invalid("x-amz-if-match-size", v, "The size is not valid.")
		}
		ifs.MatchSize = &n
	}
	return ifs, nil
}

// bypass reports whether the sender asks to bypass governance retention, and may.
func (c *call) bypass(key string) (bool, error) {
	v, err := boolHeader(c, "x-amz-bypass-governance-retention")
	if !v || err != nil {
		return false, err
	}
	return true, c.allow("s3:BypassGovernanceRetention", c.bucket, key, c.info.Owner)
}

// lockAllows is object lock's say in the removal of a version.
func lockAllows(now time.Time, bypass bool) func(*metadata.Version) error {
	return func(v *metadata.Version) error {
		if v.LegalHold || v.RetainUntil > now.Unix() && (v.RetainMode != 1 || !bypass) {
			return object.ErrLocked
		}
		return nil
	}
}

func (h *Handler) deleteObjects(c *call) (*response, error) {
	d, err := c.digests()
	if err != nil {
		return nil, err
	}
	if !d.checked() {
		return nil, fail("InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
	}
	doc, err := c.readDocument(maxDeleteBody)
	if err != nil {
		return nil, err
	}
	keys, quiet, err := parseDelete(doc)
	if err != nil {
		return nil, err
	}
	type outcome struct {
		res object.DeleteResult
		err error
	}
	results := make([]outcome, len(keys))
	requests := make([]object.DeleteRequest, 0, len(keys))
	places := make([]int, 0, len(keys))
	for i, k := range keys {
		action := "s3:DeleteObject"
		if k.versionID != nil {
			action = "s3:DeleteObjectVersion"
		}
		if len(k.key) > object.MaxKeyLen {
			results[i].err = fail("KeyTooLongError", "")
			continue
		}
		if results[i].err = c.allow(action, c.bucket, k.key, c.info.Owner); results[i].err != nil {
			continue
		}
		bypass, err := c.bypass(k.key)
		if err != nil {
			results[i].err = err
			continue
		}
		requests = append(requests, object.DeleteRequest{Key: k.key, DeleteOptions: object.DeleteOptions{
			VersionID: k.versionID, If: k.ifs, Owner: c.auth.Identity.AccountID, Allow: lockAllows(h.Now(), bypass),
		}})
		places = append(places, i)
	}
	if len(requests) > 0 {
		outcomes, err := h.Store.DeleteMany(c.ctx, c.bucket, requests)
		if err != nil {
			return nil, err
		}
		for i := range outcomes {
			results[places[i]] = outcome{outcomes[i].DeleteResult, outcomes[i].Err}
		}
	}
	x := newXML("DeleteResult", 128+len(keys)*128)
	for i := range keys {
		k, r := &keys[i], &results[i]
		if r.err != nil && !(missing(r.err) && k.ifs.IfMatch == nil && k.ifs.MatchModTime.IsZero() && k.ifs.MatchSize == nil) {
			f := h.explain(c, r.err)
			if f.httpStatus() >= 500 {
				h.Logger.Error("delete failed", "request", c.rec.RequestID, "bucket", c.bucket, "key", k.key, "error", f)
			}
			x.open("Error")
			x.elem("Key", k.key)
			if k.versionID != nil {
				x.elem("VersionId", *k.versionID)
			}
			x.elem("Code", f.code)
			x.elem("Message", f.text())
			x.close("Error")
			continue
		}
		if quiet {
			continue
		}
		x.open("Deleted")
		x.elem("Key", k.key)
		if k.versionID != nil {
			x.elem("VersionId", *k.versionID)
		}
		if r.res.DeleteMarker {
			x.bool("DeleteMarker", true)
			x.some("DeleteMarkerVersionId", r.res.VersionID)
		}
		x.close("Deleted")
	}
	x.close("DeleteResult")
	return respond(x), nil
}

func (h *Handler) copyObject(c *call) (*response, error) {
	src, o, err := c.copyOptions()
	if err != nil {
		return nil, err
	}
	if o.Put.Headers, o.Put.Meta, o.Put.Class, err = c.attributes(); err != nil {
		return nil, err
	}
	if o.Put.If, err = c.writeConditions(); err != nil {
		return nil, err
	}
	if o.ReplaceMeta, err = c.directive("x-amz-metadata-directive"); err != nil {
		return nil, err
	}
	if o.ReplaceTags, err = c.directive("x-amz-tagging-directive"); err != nil {
		return nil, err
	}
	if !o.ReplaceTags && c.r.Header.Get("X-Amz-Tagging") != "" { // AWS ignores them
		return nil, fail("InvalidRequest", "The x-amz-tagging header can only be used with the x-amz-tagging-directive REPLACE.")
	}
	if o.Put.Tags, err = c.newTags(); err != nil {
		return nil, err
	}
	if v := c.r.Header.Get("X-Amz-Checksum-Algorithm"); v != "" {
		a, err := checksum.Parse(v)
		if err != nil {
			return nil, fail("InvalidRequest", "Value for x-amz-checksum-algorithm header is invalid.").because(err)
		}
		o.Put.Checksums = []checksum.Algorithm{a}
	}
	o.Put.Owner = c.auth.Identity.AccountID
	owner, err := c.allowSource(src)
	if err != nil {
		return nil, err
	}
	o.CheckSource = func(i object.Info) error {
		if o.ReplaceTags || len(i.Tags) == 0 {
			return nil
		}
		return c.allowTagCopy(src, owner)
	}
	res, err := h.Store.Copy(c.ctx, src.bucket, src.key, c.bucket, c.key, o)
	if err != nil {
		return nil, err
	}
	x := newXML("CopyObjectResult", 384)
	x.time("LastModified", res.Info.ModTime)
	x.etag(res.Info.ETag)
	x.checksums(res.Info.Checksums, true)
	x.close("CopyObjectResult")
	p := respond(x).setSome("X-Amz-Copy-Source-Version-Id", res.SourceVersionID)
	return p.setVersion(&res.Info), nil
}

// copyOptions reads what CopyObject and UploadPartCopy say of the source.
func (c *call) copyOptions() (copySource, object.CopyOptions, error) {
	src, err := parseCopySource(c.r.Header.Get("X-Amz-Copy-Source"))
	if err != nil {
		return src, object.CopyOptions{}, err
	}
	return src, object.CopyOptions{SourceVersionID: src.versionID, SourceIf: c.readConditions("X-Amz-Copy-Source-")}, nil
}

// directive reads COPY or REPLACE.
func (c *call) directive(name string) (replace bool, err error) {
	switch v := c.r.Header.Get(name); v {
	case "", "COPY":
		return false, nil
	case "REPLACE":
		return true, nil
	default:
		return false, invalid(name, v, "Unknown directive.")
	}
}

// attributeNames are the values of x-amz-object-attributes.
var attributeNames = set("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")

func (h *Handler) getObjectAttributes(c *call) (*response, error) {
	wanted := map[string]bool{}
	for _, line := range c.r.Header.Values("X-Amz-Object-Attributes") {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name == "" {
				continue
			}
			if !attributeNames[name] {
				return nil, invalid("x-amz-object-attributes", name, "Invalid attribute name specified.")
			}
			wanted[name] = true
		}
	}
	if len(wanted) == 0 {
		return nil, fail("InvalidRequest", "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty")
	}
	limit, err := headerCount(c, "x-amz-max-parts", 1000)
	if err != nil {
		return nil, err
	}
	after, err := headerCount(c, "x-amz-part-number-marker", 0)
	if err != nil {
		return nil, err
	}
	version, err := c.query.versionID()
	if err != nil {
		return nil, err
	}
	read := "s3:GetObject" // beside GetObjectAttributes, as on AWS
	if version != nil {
		read = "s3:GetObjectVersion"
	}
	if err := c.allow(read, c.bucket, c.key, c.info.Owner); err != nil {
		return nil, err
	}
	pageSize := min(limit, 1000)
	info, parts, truncated, err := h.Store.Parts(c.ctx, c.bucket, c.key, version, after, max(pageSize, 1))
	if err != nil {
		return nil, c.hideMissing(err)
	}
	x := newXML("GetObjectAttributesResponse", 512)
	if wanted["ETag"] {
		x.elem("ETag", info.ETag) // without quotes, unlike everywhere else
	}
	if wanted["Checksum"] && len(info.Checksums) > 0 {
		// Alone of all answers, this one tells a COMPOSITE value without its number of parts.
		x.open("Checksum")
		plain := slices.Clone(info.Checksums)
		for i := range plain {
			plain[i].Composite = false
		}
		x.checksums(plain, false)
		x.elem("ChecksumType", sumType(&info.Checksums[0]))
		x.close("Checksum")
	}
	if wanted["ObjectParts"] && info.PartCount > 0 {
		x.attributeParts(&info, parts, after, pageSize, truncated)
	}
	if wanted["StorageClass"] {
		x.elem("StorageClass", classOf(info.Class))
	}
	if wanted["ObjectSize"] {
		x.int("ObjectSize", info.Size)
	}
	x.close("GetObjectAttributesResponse")
	p := respond(x).set("Last-Modified", info.ModTime.UTC().Format(http.TimeFormat))
	return p.setVersion(&info), nil
}

func (x *xmlBuf) attributeParts(info *object.Info, parts []object.PartInfo, after, limit int, truncated bool) {
	if limit == 0 && len(parts) > 0 {
		parts, truncated = nil, true
	}
	x.open("ObjectParts")
	x.int("PartsCount", int64(info.PartCount))
	x.int("PartNumberMarker", int64(after))
	next := after
	if len(parts) > 0 {
		next = parts[len(parts)-1].Number
	}
	x.int("NextPartNumberMarker", int64(next))
	x.int("MaxParts", int64(limit))
	x.bool("IsTruncated", truncated)
	for i := range parts {
		if len(parts[i].Checksums) == 0 {
			continue // parts are told with their checksums or not at all
		}
		x.open("Part")
		x.int("PartNumber", int64(parts[i].Number))
		x.int("Size", parts[i].Size)
		x.checksums(parts[i].Checksums, false)
		x.close("Part")
	}
	x.close("ObjectParts")
}

// headerCount reads a number in a header.
func headerCount(c *call, name string, missing int) (int, error) {
	v := c.r.Header.Get(name)
	if v == "" {
		return missing, nil
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 0 {
		return 0, invalid(name, v, "Argument "+name+" must be an integer between 0 and 2147483647")
	}
	return int(n), nil
}

func classOf(class string) string {
	if class == "" {
		return object.ClassStandard
	}
	return class
}
