package object

import (
	"strings"
	"time"

	"github.com/ostraka/ostraka/metadata"
)

// zero reports whether nothing is asked.
func (c *Conditions) zero() bool {
	return c.IfMatch == nil && c.IfNoneMatch == nil && c.IfModifiedSince.IsZero() && c.IfUnmodifiedSince.IsZero() &&
		c.MatchModTime.IsZero() && c.MatchSize == nil
}

// matches reports whether one of tags stands for etag. Quotes and a weak prefix are tolerated.
func matches(tags []string, etag string) bool {
	for _, t := range tags {
		t = strings.TrimPrefix(t, "W/")
		if t == "*" || strings.Trim(t, `"`) == etag {
			return true
		}
	}
	return false
}

// seconds cuts t to what HTTP dates carry.
func seconds(t time.Time) int64 { return t.Unix() }

// checkWrite decides conditions on v, the version that a write replaces (nil or a delete marker:
// there is none). It returns nil, ErrPrecondition or ErrNoSuchKey.
func (c *Conditions) checkWrite(v *metadata.Version) *Reason {
	live := v.IsLive()
	if c.IfNoneMatch != nil && live && matches(c.IfNoneMatch, v.ETag) {
		return ErrPrecondition
	}
	if c.IfMatch != nil {
		if !live {
			return ErrNoSuchKey
		}
		if !matches(c.IfMatch, v.ETag) {
			return ErrPrecondition
		}
	}
	return nil
}

// checkDelete decides conditions on v, the version that a delete is about. A delete marker has no
// ETag, so only "*" matches it.
func (c *Conditions) checkDelete(v *metadata.Version) *Reason {
	if c.IfMatch == nil && c.MatchModTime.IsZero() && c.MatchSize == nil {
		return nil
	}
	if v == nil {
		return ErrNoSuchKey
	}
	if c.IfMatch != nil && !matches(c.IfMatch, v.ETag) {
		return ErrPrecondition
	}
	if !c.MatchModTime.IsZero() && seconds(c.MatchModTime) != seconds(time.Unix(0, v.ModTime)) {
		return ErrPrecondition
	}
	if c.MatchSize != nil && *c.MatchSize != v.Size {
		return ErrPrecondition
	}
	return nil
}

// checkRead decides the conditions of a read of v, in the order of RFC 9110: If-Match true outranks
// If-Unmodified-Since, If-None-Match outranks If-Modified-Since.
func (c *Conditions) checkRead(v *metadata.Version) *Reason {
	mod := seconds(time.Unix(0, v.ModTime))
	if c.IfMatch != nil {
		if !matches(c.IfMatch, v.ETag) {
			return ErrPrecondition
		}
	} else if !c.IfUnmodifiedSince.IsZero() && mod > seconds(c.IfUnmodifiedSince) {
		return ErrPrecondition
	}
	if c.IfNoneMatch != nil {
		if matches(c.IfNoneMatch, v.ETag) {
			return ErrNotModified
		}
	} else if !c.IfModifiedSince.IsZero() && mod <= seconds(c.IfModifiedSince) {
		return ErrNotModified
	}
	return nil
}
