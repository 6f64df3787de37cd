package s3api

import (
	"context"
	"strings"
	"sync"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// listAsk is what all listings of objects ask for.
type listAsk struct {
	prefix, delimiter string
	limit             int
	encode            bool
	metadata          bool
}

func (c *call) listAsk() (listAsk, error) {
	q := c.query
	a := listAsk{prefix: q.get("prefix"), delimiter: q.get("delimiter")}
	var err error
	if a.limit, err = q.count("max-keys", object.MaxListKeys); err != nil {
		return a, err
	}
	if a.encode, err = q.encoding(); err != nil {
		return a, err
	}
	// The restore status is the only optional attribute, and no object here was ever archived.
	for name := range strings.SplitSeq(strings.Join(c.r.Header.Values("X-Amz-Optional-Object-Attributes"), ","), ",") {
		if name = strings.TrimSpace(name); name != "" && name != "RestoreStatus" {
			return a, invalid("x-amz-optional-object-attributes", name, "Invalid attribute name specified.")
		}
	}
	switch v := q.get("metadata"); v {
	case "", "false":
	case "true":
		a.metadata = true
	default:
		return a, invalid("metadata", v, "The value must be true or false.")
	}
	return a, nil
}

func (c *call) list(a *listAsk, after string) (object.ListResult, error) {
	if a.limit == 0 {
		return object.ListResult{}, nil
	}
	return c.h.Store.List(c.ctx, c.bucket, object.ListOptions{Prefix: a.prefix, Delimiter: a.delimiter, After: after, Limit: a.limit})
}

func (h *Handler) listObjects(c *call) (*response, error) {
	a, err := c.listAsk()
	if err != nil {
		return nil, err
	}
	marker := c.query.get("marker")
	page, err := c.list(&a, marker)
	if err != nil {
		return nil, err
	}
	x := newXML("ListBucketResult", listSize(&page))
	x.elem("Name", c.bucket)
	x.key("Prefix", a.prefix, a.encode)
	x.key("Marker", marker, a.encode)
	if page.Truncated && a.delimiter != "" {
		x.key("NextMarker", page.Next, a.encode)
	}
	x.listTail(&a, page.Truncated)
	x.contents(h, page.Objects, a.encode, true, nil)
	x.prefixes(page.Prefixes, a.encode)
	x.close("ListBucketResult")
	return respond(x), nil
}

func (h *Handler) listObjectsV2(c *call) (*response, error) {
	a, err := c.listAsk()
	if err != nil {
		return nil, err
	}
	q := c.query
	start, after := q.get("start-after"), q.get("start-after")
	tok, continued := q.lookup("continuation-token")
	if continued {
		if after, err = parseToken(tok); err != nil {
			return nil, err
		}
	}
	owner := q.get("fetch-owner")
	if owner != "" && owner != "true" && owner != "false" {
		return nil, invalid("fetch-owner", owner, "The value must be true or false.")
	}
	if err := checkUnsorted(q); err != nil {
		return nil, err
	}
	page, err := c.list(&a, after)
	if err != nil {
		return nil, err
	}
	var metas []object.Info
	if a.metadata {
		if metas, err = h.heads(c, page.Objects); err != nil {
			return nil, err
		}
	}
	x := newXML("ListBucketResult", listSize(&page))
	x.elem("Name", c.bucket)
	x.key("Prefix", a.prefix, a.encode)
	if continued {
		x.elem("ContinuationToken", tok)
	}
	if q.has("start-after") {
		x.key("StartAfter", start, a.encode)
	}
	if page.Truncated {
		x.elem("NextContinuationToken", token(page.Next))
	}
	x.int("KeyCount", int64(len(page.Objects)+len(page.Prefixes)))
	x.listTail(&a, page.Truncated)
	x.contents(h, page.Objects, a.encode, owner == "true", metas)
	x.prefixes(page.Prefixes, a.encode)
	x.close("ListBucketResult")
	return respond(x), nil
}

// checkUnsorted admits an extension of other stores: any order will do for the client, so the
// sorted one does; and with no order there is nothing to start after.
func checkUnsorted(q query) error {
	switch v := q.get("unsorted"); {
	case v == "" || v == "false":
		return nil
	case v != "true":
		return invalid("unsorted", v, "The value must be true or false.")
	case q.get("start-after") != "":
		return invalid("start-after", q.get("start-after"), "start-after cannot be used with an unsorted listing.")
	}
	return nil
}

// headsAtATime bounds the reads that one listing with metadata has under way.
const headsAtATime = 16

// heads reads the records of a page, for an extension of other stores that lists with metadata.
// An object that is gone by now is listed without.
func (h *Handler) heads(c *call, page []object.Info) ([]object.Info, error) {
	out := make([]object.Info, len(page))
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, headsAtATime)
	for i := range page {
		if c.allow("s3:GetObject", c.bucket, page[i].Key, c.info.Owner) != nil {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			got, err := h.Store.Head(ctx, c.bucket, page[i].Key, object.GetOptions{})
			switch {
			case err == nil:
				out[i] = got.Info
			case !missing(err):
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return out, nil
}

// listSize guesses the size of a listing.
func listSize(p *object.ListResult) int { return 640 + len(p.Objects)*384 + len(p.Prefixes)*128 }

// listTail appends what every listing says of itself behind its markers.
func (x *xmlBuf) listTail(a *listAsk, truncated bool) {
	x.int("MaxKeys", int64(a.limit))
	if a.delimiter != "" {
		x.key("Delimiter", a.delimiter, a.encode)
	}
	if a.encode {
		x.elem("EncodingType", "url")
	}
	x.bool("IsTruncated", truncated)
}

func (x *xmlBuf) contents(h *Handler, objects []object.Info, encode, owner bool, metas []object.Info) {
	var lastOwner string // of the object before, and where its element is: mostly they are all the same
	var from, to int
	for i := range objects {
		o := &objects[i]
		x.open("Contents")
		x.key("Key", o.Key, encode)
		x.time("LastModified", o.ModTime)
		x.etag(o.ETag)
		x.checksumNames(o.Checksums)
		x.int("Size", o.Size)
		switch {
		case owner && to > from && o.Owner == lastOwner:
			x.b = append(x.b, x.b[from:to]...)
		case owner:
			lastOwner, from = o.Owner, len(x.b)
			x.owner("Owner", o.Owner, h)
			to = len(x.b)
		}
		x.elem("StorageClass", classOf(o.Class))
		if metas != nil {
			x.userMetadata(&metas[i])
		}
		x.close("Contents")
	}
}

// userMetadata appends an object's metadata with their names as elements; names that XML cannot
// hold are left out.
func (x *xmlBuf) userMetadata(i *object.Info) {
	if len(i.Meta)+len(i.Headers) == 0 {
		return
	}
	x.open("UserMetadata")
	put := func(prefix string, fields []metadata.Field) {
		for _, f := range fields {
			if xmlName(f.Name) {
				x.elem(prefix+f.Name, f.Value)
			}
		}
	}
	put("", i.Headers)
	put("X-Amz-Meta-", titled(i.Meta))
	x.close("UserMetadata")
}

// titled gives names the case of HTTP headers.
func titled(fields []metadata.Field) []metadata.Field {
	out := make([]metadata.Field, len(fields))
	for i, f := range fields {
		parts := strings.Split(f.Name, "-")
		for j, p := range parts {
			if p != "" {
				parts[j] = strings.ToUpper(p[:1]) + p[1:]
			}
		}
		out[i] = metadata.Field{Name: strings.Join(parts, "-"), Value: f.Value}
	}
	return out
}

// xmlName reports whether s can end an element's name.
func xmlName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != ""
}

func (x *xmlBuf) prefixes(prefixes []string, encode bool) {
	for _, p := range prefixes {
		x.open("CommonPrefixes")
		x.key("Prefix", p, encode)
		x.close("CommonPrefixes")
	}
}

func (h *Handler) listObjectVersions(c *call) (*response, error) {
	a, err := c.listAsk()
	if err != nil {
		return nil, err
	}
	if a.metadata {
		return nil, fail("NotImplemented", "A query parameter you provided implies functionality that is not implemented.").with("Parameter", "metadata")
	}
	q := c.query
	o := object.ListVersionsOptions{Prefix: a.prefix, Delimiter: a.delimiter, KeyMarker: q.get("key-marker"), VersionMarker: q.get("version-id-marker"), Limit: a.limit}
	if q.has("version-id-marker") {
		switch {
		case o.VersionMarker == "" && q.has("key-marker") && o.KeyMarker == "":
		case o.VersionMarker == "":
			return nil, invalid("version-id-marker", "", "A version-id marker cannot be empty.")
		case o.KeyMarker == "":
			return nil, invalid("version-id-marker", o.VersionMarker, "A version-id marker cannot be specified without a key marker.")
		}
	}
	var page object.ListVersionsResult
	if a.limit > 0 {
		if page, err = h.Store.ListVersions(c.ctx, c.bucket, o); err != nil {
			return nil, err
		}
	}
	x := newXML("ListVersionsResult", 640+len(page.Versions)*448+len(page.Prefixes)*128)
	x.elem("Name", c.bucket)
	x.key("Prefix", a.prefix, a.encode)
	x.key("KeyMarker", o.KeyMarker, a.encode)
	x.elem("VersionIdMarker", o.VersionMarker)
	if page.Truncated {
		x.key("NextKeyMarker", page.NextKeyMarker, a.encode)
		x.some("NextVersionIdMarker", page.NextVersionMarker)
	}
	x.listTail(&a, page.Truncated)
	for i := range page.Versions {
		v := &page.Versions[i]
		name := "Version"
		if v.DeleteMarker {
			name = "DeleteMarker"
		}
		x.open(name)
		x.key("Key", v.Key, a.encode)
		x.elem("VersionId", v.VersionID)
		x.bool("IsLatest", v.IsLatest)
		x.time("LastModified", v.ModTime)
		if !v.DeleteMarker {
			x.etag(v.ETag)
			x.checksumNames(v.Checksums)
			x.int("Size", v.Size)
			x.elem("StorageClass", classOf(v.Class))
		}
		x.owner("Owner", v.Owner, h)
		x.close(name)
	}
	x.prefixes(page.Prefixes, a.encode)
	x.close("ListVersionsResult")
	return respond(x), nil
}
