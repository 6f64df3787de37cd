package s3api

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/ostraka/ostraka/internal/checksum"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

func (h *Handler) createMultipartUpload(c *call) (*response, error) {
	o := object.UploadOptions{Owner: c.auth.Identity.AccountID}
	var err error
	if o.Headers, o.Meta, o.Class, err = c.attributes(); err != nil {
		return nil, err
	}
	if o.Tags, err = c.newTags(); err != nil {
		return nil, err
	}
	if o.ChecksumAlgorithm, o.ChecksumType, err = c.uploadChecksum(); err != nil {
		return nil, err
	}
	up, err := h.Store.CreateUpload(c.ctx, c.bucket, c.key, o)
	if err != nil {
		return nil, err
	}
	x := newXML("InitiateMultipartUploadResult", 256+len(c.key))
	x.elem("Bucket", c.bucket)
	x.elem("Key", c.key)
	x.elem("UploadId", up.UploadID)
	x.close("InitiateMultipartUploadResult")
	p := respond(x)
	if o.ChecksumAlgorithm != checksum.None {
		p.set("X-Amz-Checksum-Algorithm", o.ChecksumAlgorithm.String()).set("X-Amz-Checksum-Type", o.ChecksumType.String())
	}
	return p, nil
}

// uploadChecksum reads the algorithm and type of an upload.
func (c *call) uploadChecksum() (checksum.Algorithm, checksum.Type, error) {
	name, kind := c.r.Header.Get("X-Amz-Checksum-Algorithm"), c.r.Header.Get("X-Amz-Checksum-Type")
	if name == "" {
		if kind != "" {
			return 0, 0, fail("InvalidRequest", "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
		}
		return checksum.None, checksum.Unset, nil
	}
	a, err := checksum.Parse(name)
	if err != nil {
		return 0, 0, fail("InvalidRequest", "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256, SHA512, MD5, XXHASH64, XXHASH3, XXHASH128]").because(err)
	}
	t := a.DefaultType()
	if kind != "" {
		if t, err = checksum.ParseType(kind); err != nil {
			return 0, 0, fail("InvalidRequest", "Value for x-amz-checksum-type header is invalid.").because(err)
		}
		if !a.Permits(t) {
			return 0, 0, fail("InvalidRequest", "The "+kind+" checksum type cannot be used with the "+strings.ToLower(a.String())+" checksum algorithm.")
		}
	}
	return a, t, nil
}

func (h *Handler) uploadPart(c *call) (*response, error) {
	number, err := partNumber(c.query.get("partNumber"))
	if err != nil {
		return nil, err
	}
	size, err := c.announcedSize()
	if err != nil {
		return nil, err
	}
	d, err := c.digests()
	if err != nil {
		return nil, err
	}
	// Before the body: the upload must be there, and it says which checksum its parts have.
	up, err := h.Store.HeadUpload(c.ctx, c.bucket, c.key, c.query.get("uploadId"))
	if err != nil {
		return nil, err
	}
	if d.algorithm != checksum.None && up.ChecksumAlgorithm != checksum.None && d.algorithm != up.ChecksumAlgorithm {
		return nil, fail("InvalidRequest", "Checksum Type mismatch occurred, expected checksum Type: "+strings.ToLower(up.ChecksumAlgorithm.String())+", actual checksum Type: "+strings.ToLower(d.algorithm.String()))
	}
	o := object.PartOptions{Size: size, Checksums: partChecksums(&up, d.algorithm)}
	if d.checked() {
		o.Verify = d.verifySums(c)
	}
	part, err := h.Store.PutPart(c.ctx, c.bucket, c.key, up.UploadID, number, c.auth.Body, o)
	if err != nil {
		return nil, err
	}
	told := d.algorithm
	if told == checksum.None {
		told = up.ChecksumAlgorithm
	}
	return (&response{}).set("Etag", quote(part.ETag)).setChecksums(onlyOf(part.Checksums, told), false), nil
}

// partChecksums are what is computed of a part: what its upload promises, or CRC64NVME, from which
// that of the whole follows; and what its sender announces.
func partChecksums(up *object.Upload, announced checksum.Algorithm) []checksum.Algorithm {
	a := up.ChecksumAlgorithm
	if a == checksum.None {
		a = checksum.Default
	}
	if announced == checksum.None || announced == a {
		return []checksum.Algorithm{a}
	}
	return []checksum.Algorithm{a, announced}
}

// onlyOf keeps the checksum of one algorithm; None keeps all.
func onlyOf(sums []metadata.Checksum, a checksum.Algorithm) []metadata.Checksum {
	if a == checksum.None {
		return sums
	}
	for i := range sums {
		if sums[i].Algorithm == uint8(a) {
			return sums[i : i+1]
		}
	}
	return nil
}

func (h *Handler) uploadPartCopy(c *call) (*response, error) {
	number, err := partNumber(c.query.get("partNumber"))
	if err != nil {
		return nil, err
	}
	src, o, err := c.copyOptions()
	if err != nil {
		return nil, err
	}
	var r *object.Range
	spec := c.r.Header.Get("X-Amz-Copy-Source-Range")
	if spec != "" {
		if r, err = parseCopyRange(spec); err != nil {
			return nil, err
		}
	}
	if _, err := c.allowSource(src); err != nil {
		return nil, err
	}
	up, err := h.Store.HeadUpload(c.ctx, c.bucket, c.key, c.query.get("uploadId"))
	if err != nil {
		return nil, err
	}
	o.Put.Checksums = partChecksums(&up, checksum.None)
	res, err := h.Store.CopyPart(c.ctx, src.bucket, src.key, c.bucket, c.key, up.UploadID, number, r, o)
	if errors.Is(err, object.ErrInvalidRange) {
		f := &object.Failure{}
		errors.As(err, &f)
		return nil, invalid("x-amz-copy-source-range", spec, "Range specified is not valid for source object of size: "+strconv.FormatInt(f.Size, 10)).because(err)
	}
	if err != nil {
		return nil, err
	}
	x := newXML("CopyPartResult", 320)
	x.time("LastModified", res.Info.ModTime)
	x.etag(res.Info.ETag)
	x.checksums(onlyOf(res.Info.Checksums, up.ChecksumAlgorithm), false)
	x.close("CopyPartResult")
	return respond(x).setSome("X-Amz-Copy-Source-Version-Id", res.SourceVersionID), nil
}

func (h *Handler) completeMultipartUpload(c *call) (*response, error) {
	var o object.CompleteOptions
	var err error
	if o.If, err = c.writeConditions(); err != nil {
		return nil, err
	}
	if v := c.r.Header.Get("X-Amz-Mp-Object-Size"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return nil, invalid("x-amz-mp-object-size", v, "The size is not valid.")
		}
		o.Size = &n
	}
	if v := c.r.Header.Get("X-Amz-Checksum-Type"); v != "" {
		if o.ChecksumType, err = checksum.ParseType(v); err != nil {
			return nil, fail("InvalidRequest", "Value for x-amz-checksum-type header is invalid.").because(err)
		}
	}
	if o.Checksum, err = c.objectChecksum(); err != nil {
		return nil, err
	}
	var d digests // of the document; the checksum headers are about the object
	if v, ok := c.r.Header["Content-Md5"]; ok {
		if d.md5, err = parseMD5(v[0]); err != nil {
			return nil, err
		}
	}
	doc, err := c.readPlain(maxCompleteBody)
	if err != nil {
		return nil, err
	}
	if err := d.verifyBytes(c, []byte(doc)); err != nil {
		return nil, err
	}
	if strings.TrimSpace(doc) == "" {
		return nil, fail("InvalidRequest", "You must specify at least one part")
	}
	parts, err := parseComplete(doc)
	if err != nil {
		return nil, err
	}
	info, err := h.Store.CompleteUpload(c.ctx, c.bucket, c.key, c.query.get("uploadId"), parts, o)
	if err != nil {
		return nil, err
	}
	x := newXML("CompleteMultipartUploadResult", 512)
	x.elem("Location", c.location())
	x.elem("Bucket", c.bucket)
	x.elem("Key", c.key)
	x.etag(info.ETag)
	x.checksums(info.Checksums, true)
	x.close("CompleteMultipartUploadResult")
	return respond(x).setVersion(&info), nil
}

// location is the object's address as the client reached it.
func (c *call) location() string {
	scheme := "http://"
	if c.r.TLS != nil {
		scheme = "https://"
	}
	host := c.auth.Host
	if host == "" {
		host = c.r.Host
	}
	return scheme + host + c.r.URL.EscapedPath()
}

// objectChecksum reads the checksum of the whole object that a completion may bring.
func (c *call) objectChecksum() (*metadata.Checksum, error) {
	var out *metadata.Checksum
	for name, values := range c.r.Header {
		a, ok := checksum.FromHeader(name)
		if !ok {
			continue
		}
		if out != nil || len(values) != 1 {
			return nil, fail("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		sum, n, err := a.DecodeValue(values[0])
		if err != nil {
			return nil, fail("InvalidRequest", "Value for "+a.Header()+" header is invalid.").because(err)
		}
		out = &metadata.Checksum{Algorithm: uint8(a), Composite: n > 0, Value: sum, Parts: uint32(n)}
	}
	return out, nil
}

func (h *Handler) abortMultipartUpload(c *call) (*response, error) {
	id := c.query.get("uploadId")
	initiated, err := parseTimestamp("x-amz-if-match-initiated-time", c.r.Header.Get("X-Amz-If-Match-Initiated-Time"))
	if err != nil {
		return nil, err
	}
	if !initiated.IsZero() {
		up, err := h.Store.HeadUpload(c.ctx, c.bucket, c.key, id) // an upload's time never changes
		if err != nil {
			return nil, err
		}
		if up.Initiated.Unix() != initiated.Unix() {
			return nil, fail("PreconditionFailed", "").with("Condition", "x-amz-if-match-initiated-time")
		}
	}
	if err := h.Store.AbortUpload(c.ctx, c.bucket, c.key, id); err != nil {
		return nil, err
	}
	return &response{status: http.StatusNoContent}, nil
}

func (h *Handler) listParts(c *call) (*response, error) {
	limit, err := c.query.count("max-parts", 1000)
	if err != nil {
		return nil, err
	}
	after := 0
	if v := c.query.get("part-number-marker"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt32 {
			return nil, invalid("part-number-marker", v, "Argument part-number-marker must be an integer between 0 and 2147483647")
		}
		after = int(n)
	}
	page, err := h.Store.ListParts(c.ctx, c.bucket, c.key, c.query.get("uploadId"), after, max(limit, 1))
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		page.Parts, page.Truncated, page.Next = nil, false, 0
	}
	up := &page.Upload
	x := newXML("ListPartsResult", 512+len(page.Parts)*256)
	x.elem("Bucket", c.bucket)
	x.elem("Key", c.key)
	x.elem("UploadId", up.UploadID)
	x.owner("Initiator", up.Owner, h)
	x.owner("Owner", up.Owner, h)
	x.elem("StorageClass", classOf(up.Class))
	x.int("PartNumberMarker", int64(after))
	next := after
	if n := len(page.Parts); n > 0 {
		next = page.Parts[n-1].Number
	}
	x.int("NextPartNumberMarker", int64(next))
	x.int("MaxParts", int64(limit))
	x.bool("IsTruncated", page.Truncated)
	x.uploadChecksum(up)
	for i := range page.Parts {
		p := &page.Parts[i]
		x.open("Part")
		x.int("PartNumber", int64(p.Number))
		x.time("LastModified", p.ModTime)
		x.etag(p.ETag)
		x.int("Size", p.Size)
		x.checksums(onlyOf(p.Checksums, up.ChecksumAlgorithm), false)
		x.close("Part")
	}
	x.close("ListPartsResult")
	return respond(x), nil
}

// uploadChecksum appends the algorithm and type that an upload was created with.
func (x *xmlBuf) uploadChecksum(up *object.Upload) {
	if up.ChecksumAlgorithm == checksum.None {
		return
	}
	x.elem("ChecksumAlgorithm", up.ChecksumAlgorithm.String())
	x.elem("ChecksumType", up.ChecksumType.String())
}

func (h *Handler) listMultipartUploads(c *call) (*response, error) {
	q := c.query
	limit, err := q.count("max-uploads", 1000)
	if err != nil {
		return nil, err
	}
	encode, err := q.encoding()
	if err != nil {
		return nil, err
	}
	o := object.ListUploadsOptions{Prefix: q.get("prefix"), Delimiter: q.get("delimiter"), KeyMarker: q.get("key-marker"), Limit: limit}
	if o.KeyMarker != "" { // without one, the marker of an upload means nothing
		o.UploadMarker = q.get("upload-id-marker")
	}
	var page object.ListUploadsResult
	if limit > 0 {
		if page, err = h.Store.ListUploads(c.ctx, c.bucket, o); err != nil {
			return nil, err
		}
	}
	x := newXML("ListMultipartUploadsResult", 512+len(page.Uploads)*320)
	x.elem("Bucket", c.bucket)
	x.key("KeyMarker", o.KeyMarker, encode)
	x.elem("UploadIdMarker", o.UploadMarker)
	if page.Truncated {
		x.key("NextKeyMarker", page.NextKeyMarker, encode)
		x.elem("NextUploadIdMarker", page.NextUploadMarker)
	}
	x.key("Prefix", o.Prefix, encode)
	if o.Delimiter != "" {
		x.key("Delimiter", o.Delimiter, encode)
	}
	if encode {
		x.elem("EncodingType", "url")
	}
	x.int("MaxUploads", int64(limit))
	x.bool("IsTruncated", page.Truncated)
	for i := range page.Uploads {
		up := &page.Uploads[i]
		x.open("Upload")
		x.key("Key", up.Key, encode)
		x.elem("UploadId", up.UploadID)
		x.owner("Initiator", up.Owner, h)
		x.owner("Owner", up.Owner, h)
		x.elem("StorageClass", classOf(up.Class))
		x.time("Initiated", up.Initiated)
		x.uploadChecksum(up)
		x.close("Upload")
	}
	x.prefixes(page.Prefixes, encode)
	x.close("ListMultipartUploadsResult")
	return respond(x), nil
}
