package s3api

import (
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// Limits of the tags of an object. Lengths are in UTF-16 code units, which is how AWS counts.
const (
	maxObjectTags = 10
	maxTagKey     = 128
	maxTagValue   = 256
)

func (h *Handler) getObjectTagging(c *call) (*response, error) {
	version, err := c.query.versionID()
	if err != nil {
		return nil, err
	}
	content, err := h.Store.Head(c.ctx, c.bucket, c.key, object.GetOptions{VersionID: version})
	if err != nil {
		return nil, c.hideMissing(err)
	}
	info := &content.Info
	x := newXML("Tagging", 192+len(info.Tags)*96)
	x.open("TagSet")
	for i := range info.Tags {
		x.open("Tag")
		x.elem("Key", info.Tags[i].Name)
		x.elem("Value", info.Tags[i].Value)
		x.close("Tag")
	}
	x.close("TagSet")
	x.close("Tagging")
	return respond(x).setVersion(info), nil
}

func (h *Handler) putObjectTagging(c *call) (*response, error) {
	doc, err := c.readDocument(maxConfigBody)
	if err != nil {
		return nil, err
	}
	tags, err := parseTagging(doc)
	if err != nil {
		return nil, err
	}
	return h.setTags(c, tags, http.StatusOK)
}

func (h *Handler) deleteObjectTagging(c *call) (*response, error) {
	return h.setTags(c, nil, http.StatusNoContent)
}

// setTags replaces the tags of the version that the request names. Nothing else of it changes, not
// its time of modification either.
func (h *Handler) setTags(c *call, tags []metadata.Field, status int) (*response, error) {
	version, err := c.query.versionID()
	if err != nil {
		return nil, err
	}
	info, err := h.Store.Modify(c.ctx, c.bucket, c.key, version, func(v *metadata.Version) error {
		v.Tags = tags
		return nil
	})
	if err != nil {
		return nil, c.hideMissing(err)
	}
	return (&response{status: status}).setVersion(&info), nil
}

// newTags reads the tags that a new object is to have from x-amz-tagging. Who sends some needs the
// permission to tag as well as that to write.
func (c *call) newTags() ([]metadata.Field, error) {
	values := c.r.Header.Values("X-Amz-Tagging")
	if len(values) == 0 {
		return nil, nil
	}
	if len(values) > 1 {
		return nil, errTaggingHeader(strings.Join(values, ","))
	}
	tags, err := parseTaggingHeader(values[0])
	if err != nil || len(tags) == 0 {
		return nil, err
	}
	return tags, c.allow("s3:PutObjectTagging", c.bucket, c.key, c.info.Owner)
}

// allowTagCopy checks that the sender may read the tags of a copy's source, and write them.
func (c *call) allowTagCopy(src copySource, owner string) error {
	if err := c.allow(readTagsAction(src.versionID != nil), src.bucket, src.key, owner); err != nil {
		return err
	}
	return c.allow("s3:PutObjectTagging", c.bucket, c.key, c.info.Owner)
}

func readTagsAction(version bool) string {
	if version {
		return "s3:GetObjectVersionTagging"
	}
	return "s3:GetObjectTagging"
}

// setTagCount tells how many tags there are, to who may read them, and unless there are none, as AWS does.
func (p *response) setTagCount(c *call, i *object.Info) {
	if len(i.Tags) > 0 && c.allow(readTagsAction(c.query.has("versionId")), c.bucket, c.key, c.info.Owner) == nil {
		p.set("X-Amz-Tagging-Count", strconv.Itoa(len(i.Tags)))
	}
}

func errTaggingHeader(v string) *failure {
	return invalid("x-amz-tagging", v, "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
}

// parseTaggingHeader reads the value of x-amz-tagging: key=value&key=value, percent-encoded.
func parseTaggingHeader(v string) ([]metadata.Field, error) {
	q, err := parseQuery(v)
	if err != nil {
		return nil, errTaggingHeader(v).because(err)
	}
	var tags []metadata.Field
	for i := range q {
		tags = append(tags, metadata.Field{Name: q[i].name, Value: q[i].value})
	}
	if err := checkTags(tags); err != nil {
		return nil, err
	}
	if _, twice := repeatedTag(tags); twice {
		return nil, errTaggingHeader(v)
	}
	return tags, nil
}

// parseTagging reads a Tagging document. The text of keys and values is taken as it is: spaces
// around it belong to it.
func parseTagging(doc string) ([]metadata.Field, error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, err
	}
	if root.name != "Tagging" || len(root.kids) != 1 || root.kids[0].name != "TagSet" {
		return nil, errXML
	}
	set := &root.kids[0]
	if set.leaf() && set.trimmed() != "" {
		return nil, errXML
	}
	var tags []metadata.Field
	for i := range set.kids {
		tag, err := parseTag(&set.kids[i])
		if err != nil {
			return nil, err
		}
		tags = append(tags, tag)
	}
	if err := checkTags(tags); err != nil {
		return nil, err
	}
	if key, twice := repeatedTag(tags); twice {
		return nil, fail("InvalidTag", "Cannot provide multiple Tags with the same key").with("TagKey", key)
	}
	return tags, nil
}

func parseTag(e *element) (metadata.Field, error) {
	var f metadata.Field
	if e.name != "Tag" || len(e.kids) != 2 {
		return f, errXML
	}
	once := onceSet{}
	for i := range e.kids {
		kid := &e.kids[i]
		if !once.first(kid) || !kid.leaf() {
			return f, errXML
		}
		switch kid.name {
		case "Key":
			f.Name = kid.text
		case "Value":
			f.Value = kid.text
		default:
			return f, errXML
		}
	}
	return f, nil
}

// checkTags holds each tag, and their number, against the limits.
func checkTags(tags []metadata.Field) error {
	if len(tags) > maxObjectTags {
		return fail("BadRequest", "Object tags cannot be greater than "+strconv.Itoa(maxObjectTags))
	}
	// The offending text is not told: it may be long, or be what XML cannot hold.
	for i := range tags {
		switch key := tags[i].Name; {
		case key == "" || !validTagText(key, maxTagKey):
			return fail("InvalidTag", "The TagKey you have provided is invalid")
		case !validTagText(tags[i].Value, maxTagValue):
			return fail("InvalidTag", "The TagValue you have provided is invalid").with("TagKey", key)
		case len(key) >= 4 && strings.EqualFold(key[:4], "aws:"):
			return fail("InvalidTag", "System tags cannot be added/updated by requester").with("TagKey", key)
		}
	}
	return nil
}

// repeatedTag returns a key that stands twice.
func repeatedTag(tags []metadata.Field) (string, bool) {
	for i := range tags {
		for j := range i {
			if tags[i].Name == tags[j].Name {
				return tags[i].Name, true
			}
		}
	}
	return "", false
}

// validTagText reports whether s has at most limit UTF-16 units, all of them of letters, digits,
// spaces and a few signs.
func validTagText(s string, limit int) bool {
	n := 0
	for _, r := range s {
		if !unicode.In(r, unicode.L, unicode.N, unicode.Z) && !strings.ContainsRune("+-=._:/@", r) {
			return false
		}
		if n += utf16.RuneLen(r); n > limit {
			return false
		}
	}
	return true
}
