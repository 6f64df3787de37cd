package s3api

import (
	"strconv"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// The documents that clients send. Each is parsed as a whole before anything is done; an element
// that is not known, or that stands twice, is an error: it might have changed the meaning.

// Sizes beyond which a document is refused unread.
const (
	maxDeleteBody   = 4 << 20 // 1000 keys of 1024 bytes, every character a reference
	maxCompleteBody = 8 << 20 // 10,000 parts with several checksums each
	maxConfigBody   = 64 << 10
)

// deleteKey is an Object of a Delete document.
type deleteKey struct {
	key       string
	versionID *string
	ifs       object.Conditions
}

func parseDelete(doc string) (keys []deleteKey, quiet bool, err error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, false, err
	}
	if root.name != "Delete" {
		return nil, false, errXML
	}
	once := onceSet{}
	for i := range root.kids {
		e := &root.kids[i]
		switch e.name {
		case "Quiet":
			if !once.first(e) {
				return nil, false, errXML
			}
			if quiet, err = xmlBool(e); err != nil {
				return nil, false, err
			}
		case "Object":
			if len(keys) == object.MaxDeleteKeys {
				return nil, false, errXML
			}
			k, err := parseDeleteKey(e)
			if err != nil {
				return nil, false, err
			}
			keys = append(keys, k)
		default:
			return nil, false, errXML
		}
	}
	if len(keys) == 0 {
		return nil, false, errXML
	}
	return keys, quiet, nil
}

func parseDeleteKey(e *element) (deleteKey, error) {
	var k deleteKey
	once := onceSet{}
	for i := range e.kids {
		kid := &e.kids[i]
		if !once.first(kid) || !kid.leaf() {
			return k, errXML
		}
		var err error
		switch kid.name {
		case "Key":
			k.key = kid.text
		case "VersionId":
			// The SDKs of some languages send an empty element for no version.
			if v := kid.trimmed(); v != "" {
				k.versionID = &v
			}
		case "ETag":
			k.ifs.IfMatch = []string{unquote(kid.trimmed())}
		case "LastModifiedTime":
			k.ifs.MatchModTime, err = parseTimestamp("LastModifiedTime", kid.trimmed())
		case "Size":
			var n int64
			if n, err = strconv.ParseInt(kid.trimmed(), 10, 64); err != nil || n < 0 {
				return k, errXML
			}
			k.ifs.MatchSize = &n
		default:
			return k, errXML
		}
		if err != nil {
			return k, err
		}
	}
	if k.key == "" {
		return k, errXML
	}
	return k, nil
}

// parseComplete reads a CompleteMultipartUpload document: at least one part.
func parseComplete(doc string) ([]object.CompletedPart, error) {
	root, err := parseXML(doc)
	if err != nil {
		return nil, err
	}
	if root.name != "CompleteMultipartUpload" && root.name != "CompletedMultipartUpload" {
		return nil, errXML
	}
	if len(root.kids) == 0 || len(root.kids) > object.MaxParts {
		return nil, errXML
	}
	parts := make([]object.CompletedPart, 0, len(root.kids))
	for i := range root.kids {
		e := &root.kids[i]
		if e.name != "Part" {
			return nil, errXML
		}
		p, err := parseCompletedPart(e)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

func parseCompletedPart(e *element) (object.CompletedPart, error) {
	var p object.CompletedPart
	once := onceSet{}
	for i := range e.kids {
		kid := &e.kids[i]
		if !once.first(kid) || !kid.leaf() {
			return p, errXML
		}
		switch kid.name {
		case "PartNumber":
			n, err := strconv.Atoi(kid.trimmed())
			if err != nil {
				return p, errXML
			}
			if p.Number, err = partNumber(strconv.Itoa(n)); err != nil {
				return p, err
			}
		case "ETag":
			p.ETag = unquote(kid.trimmed())
		default:
			a, ok := checksumElement(kid.name)
			if !ok {
				return p, errXML
			}
			if kid.trimmed() == "" {
				continue
			}
			sum, ok := decodeSum(a, kid.trimmed())
			if !ok {
				return p, fail("InvalidPart", "The checksum of a part is not valid.").with("PartNumber", strconv.Itoa(p.Number))
			}
			p.Checksums = append(p.Checksums, metadata.Checksum{Algorithm: uint8(a), Value: sum})
		}
	}
	if p.Number == 0 || p.ETag == "" {
		return p, errXML
	}
	return p, nil
}

// parseCreateBucket reads a CreateBucketConfiguration; "" is no location.
func parseCreateBucket(doc string) (location string, err error) {
	root, err := parseXML(doc)
	if err != nil {
		return "", err
	}
	if root.name != "CreateBucketConfiguration" {
		return "", errXML
	}
	once := onceSet{}
	for i := range root.kids {
		e := &root.kids[i]
		if !once.first(e) {
			return "", errXML
		}
		switch e.name {
		case "LocationConstraint":
			if !e.leaf() {
				return "", errXML
			}
			location = e.trimmed()
		case "Location", "Bucket", "Tags":
			return "", fail("NotImplemented", "An element of CreateBucketConfiguration implies functionality that is not implemented.").with("Element", e.name)
		default:
			return "", errXML
		}
	}
	return location, nil
}

// parseVersioning reads a VersioningConfiguration.
func parseVersioning(doc string) (object.Versioning, error) {
	root, err := parseXML(doc)
	if err != nil {
		return 0, err
	}
	if root.name != "VersioningConfiguration" {
		return 0, errXML
	}
	v := object.Unversioned
	once := onceSet{}
	for i := range root.kids {
		e := &root.kids[i]
		if !once.first(e) || !e.leaf() {
			return 0, errXML
		}
		switch e.name {
		case "Status":
			switch e.trimmed() {
			case "Enabled":
				v = object.Enabled
			case "Suspended":
				v = object.Suspended
			default:
				return 0, errXML
			}
		case "MfaDelete", "MFADelete":
			if e.trimmed() != "Disabled" {
				return 0, fail("NotImplemented", "MFA delete is not implemented.").with("Element", e.name)
			}
		default:
			return 0, fail("NotImplemented", "An element of VersioningConfiguration implies functionality that is not implemented.").with("Element", e.name)
		}
	}
	if v == object.Unversioned {
		return 0, fail("IllegalVersioningConfigurationException", "The Versioning element must be specified")
	}
	return v, nil
}

// onceSet notices elements that stand twice.
type onceSet map[string]bool

func (o onceSet) first(e *element) bool {
	if o[e.name] {
		return false
	}
	o[e.name] = true
	return true
}

func xmlBool(e *element) (bool, error) {
	switch e.trimmed() {
	case "true", "True", "TRUE", "1":
		return e.leaf(), nil
	case "false", "False", "FALSE", "0", "":
		return false, nil
	}
	return false, errXML
}
