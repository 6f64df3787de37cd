package s3api

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/ostraka/ostraka/object"
)

func (h *Handler) listBuckets(c *call) (*response, error) {
	limit := 10000
	if v, ok := c.query.lookup("max-buckets"); ok {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 10000 {
			return nil, invalid("max-buckets", v, "max-buckets must be an integer between 1 and 10000, inclusive")
		}
		limit = n
	}
	after := ""
	if v, ok := c.query.lookup("continuation-token"); ok {
		var err error
		if after, err = parseToken(v); err != nil {
			return nil, err
		}
	}
	owner := c.auth.Identity.AccountID
	all, err := h.Store.ListBuckets(c.ctx, owner)
	if err != nil {
		return nil, err
	}
	prefix, region := c.query.get("prefix"), c.query.get("bucket-region")
	x := newXML("ListAllMyBucketsResult", 256+len(all)*160)
	x.owner("Owner", owner, h)
	x.open("Buckets")
	next, n, last := "", 0, ""
	for i := range all {
		b := &all[i]
		if b.Name <= after || b.Deleting || !strings.HasPrefix(b.Name, prefix) || region != "" && h.regionOf(b) != region {
			continue
		}
		if n == limit {
			next = token(last)
			break
		}
		n++
		last = b.Name
		x.open("Bucket")
		x.elem("Name", b.Name)
		x.time("CreationDate", b.Created)
		x.elem("BucketRegion", h.regionOf(b))
		x.close("Bucket")
	}
	x.close("Buckets")
	x.some("Prefix", prefix)
	x.some("ContinuationToken", next)
	x.close("ListAllMyBucketsResult")
	return respond(x), nil
}

// owner appends an element with an account's ID and DisplayName.
func (x *xmlBuf) owner(element, id string, h *Handler) {
	x.open(element)
	x.elem("ID", id)
	x.elem("DisplayName", h.OwnerName(id))
	x.close(element)
}

func (h *Handler) regionOf(b *object.Bucket) string {
	if b.Region == "" {
		return h.Region
	}
	return b.Region
}

// legacyRegion is where AWS answers 200 to whoever creates a bucket that it has already
// (CreateBucket, error BucketAlreadyOwnedByYou).
const legacyRegion = "us-east-1"

func (h *Handler) createBucket(c *call) (*response, error) {
	if !object.ValidBucketName(c.bucket) {
		return nil, fail("InvalidBucketName", "").with("BucketName", c.bucket)
	}
	if err := only(c, "x-amz-acl", "private"); err != nil {
		return nil, err
	}
	if err := only(c, "x-amz-object-ownership", "BucketOwnerEnforced"); err != nil {
		return nil, err
	}
	if err := only(c, "x-amz-bucket-namespace", "global"); err != nil {
		return nil, err
	}
	lock, err := boolHeader(c, "x-amz-bucket-object-lock-enabled")
	if err != nil {
		return nil, err
	}
	if lock {
		for _, action := range []string{"s3:PutBucketObjectLockConfiguration", "s3:PutBucketVersioning"} {
			if err := c.allow(action, c.bucket, "", ""); err != nil {
				return nil, err
			}
		}
	}
	doc, err := c.readDocument(maxConfigBody)
	if err != nil {
		return nil, err
	}
	region := ""
	if strings.TrimSpace(doc) != "" {
		if region, err = parseCreateBucket(doc); err != nil {
			return nil, err
		}
	}
	switch {
	case region == "" || region == h.Region:
		region = h.Region
	case region == "EU" && h.Region == "eu-west-1":
		region = h.Region
	case !validRegion(region):
		return nil, fail("InvalidLocationConstraint", "").with("LocationConstraint", region)
	case !h.AnyRegion:
		return nil, fail("IllegalLocationConstraintException", "The "+region+" location constraint is incompatible for the region specific endpoint this request was sent to.")
	}
	b, err := h.Store.CreateBucket(c.ctx, c.bucket, object.CreateBucketOptions{Owner: c.auth.Identity.AccountID, Region: region, ObjectLock: lock})
	if errors.Is(err, object.ErrBucketOwned) && region == legacyRegion && h.regionOf(&b) == legacyRegion && b.ObjectLock == lock {
		err = nil // as AWS does there
	}
	if err != nil {
		return nil, err
	}
	return (&response{}).set("Location", "/"+c.bucket), nil
}

// validRegion reports whether a location constraint looks like a region's name.
func validRegion(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

// only refuses a header with any value but those given: what it asks for is not implemented.
func only(c *call, name string, values ...string) error {
	v := c.r.Header.Get(name)
	if v == "" {
		return nil
	}
	for _, w := range values {
		if v == w {
			return nil
		}
	}
	return fail("NotImplemented", "The value of a header you provided implies functionality that is not implemented.").with("Header", name)
}

func boolHeader(c *call, name string) (bool, error) {
	switch v := c.r.Header.Get(name); strings.ToLower(v) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, invalid(name, v, "The value must be true or false.")
	}
}

func (h *Handler) headBucket(c *call) (*response, error) {
	return (&response{noBody: true}).set("X-Amz-Bucket-Region", h.regionOf(&c.info)).
		set("X-Amz-Access-Point-Alias", "false").set("Content-Type", "application/xml"), nil
}

func (h *Handler) deleteBucket(c *call) (*response, error) {
	if err := h.Store.DeleteBucket(c.ctx, c.bucket); err != nil {
		return nil, err
	}
	return &response{status: http.StatusNoContent}, nil
}

func (h *Handler) getBucketLocation(c *call) (*response, error) {
	region := h.regionOf(&c.info)
	if region == "us-east-1" {
		region = "" // as it was named before there were others
	}
	x := newXML("LocationConstraint", 160)
	x.b = appendEscaped(x.b, region)
	x.close("LocationConstraint")
	return respond(x), nil
}

func (h *Handler) getBucketVersioning(c *call) (*response, error) {
	x := newXML("VersioningConfiguration", 192)
	switch c.info.Versioning {
	case object.Enabled:
		x.elem("Status", "Enabled")
	case object.Suspended:
		x.elem("Status", "Suspended")
	}
	x.close("VersioningConfiguration")
	return respond(x), nil
}

func (h *Handler) putBucketVersioning(c *call) (*response, error) {
	doc, err := c.readDocument(maxConfigBody)
	if err != nil {
		return nil, err
	}
	v, err := parseVersioning(doc)
	if err != nil {
		return nil, err
	}
	if err := h.Store.SetVersioning(c.ctx, c.bucket, v); err != nil {
		return nil, err
	}
	return &response{}, nil
}

// preflight answers as AWS does for buckets without CORS rules, and no bucket has any.
func (h *Handler) preflight(c *call) (*response, error) {
	if c.r.Header.Get("Origin") == "" {
		return nil, fail("BadRequest", "Insufficient information. Origin request header needed.")
	}
	method := c.r.Header.Get("Access-Control-Request-Method")
	if method == "" {
		return nil, fail("BadRequest", "Invalid Access-Control-Request-Method: null")
	}
	return nil, fail("AccessForbidden", "").with("Method", method).with("ResourceType", [...]string{"SERVICE", "BUCKET", "OBJECT"}[c.level])
}
