package object

import (
	"context"
	"sync"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// BucketUsage is what a bucket holds.
type BucketUsage struct {
	Bucket   string
	Objects  int64 // keys with a current version with content
	Versions int64 // all versions with content; delete markers do not count
	Bytes    int64 // of all versions, as clients see them: without parity
}

// Usage is what all buckets hold. Uploads that have not ended do not count.
type Usage struct {
	At      time.Time     // when the count was begun; writes since may or may not be in it
	Took    time.Duration // the pauses included
	Buckets []BucketUsage // ascending by name
}

const (
	usageKeeps = 5 * time.Minute // an answer is given again for so long
	usagePage  = 1000
	usagePause = 10 * time.Millisecond // so a count reads at most 100,000 versions a second
)

// usageCache keeps the last count.
type usageCache struct {
	turn chan struct{} // holds one element while somebody counts
	page int           // versions between two pauses

	mu   sync.Mutex // guards last
	last *Usage
}

func (c *usageCache) get(now time.Time) (Usage, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		return Usage{}, false
	}
	age := now.Sub(c.last.At)
	return *c.last, age >= 0 && age < max(usageKeeps, 10*c.last.Took)
}

// Usage counts what every bucket holds. It lists all versions by quorum, in pages with pauses between, so
// it costs what a listing of everything costs: some microseconds of the drives' time a version, and
// a second for each 100,000 versions at best. Therefore an answer is kept for five minutes, or ten times
// as long as it took, and only one count runs at a time: others wait for it. With fresh, what is kept is
// not used, unless it was begun after the call. The count stops when ctx ends.
func (s *Store) Usage(ctx context.Context, fresh bool) (Usage, error) {
	const op = "Usage"
	asked := s.now()
	known := func() (Usage, bool) {
		u, ok := s.usage.get(s.now())
		return u, ok && (!fresh || !u.At.Before(asked))
	}
	if u, ok := known(); ok {
		return u, nil
	}
	select {
	case s.usage.turn <- struct{}{}:
		defer func() { <-s.usage.turn }()
	case <-ctx.Done():
		return Usage{}, errs.Wrap("object."+op, ctx.Err())
	}
	if u, ok := known(); ok {
		return u, nil // whose turn was before
	}
	u := Usage{At: s.now()}
	begun := time.Now()
	for _, b := range s.control.Buckets() {
		n, err := s.count(ctx, op, b)
		if errs.Is(err, errs.NotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return Usage{}, err
		}
		u.Buckets = append(u.Buckets, n)
	}
	u.Took = time.Since(begun)
	s.usage.mu.Lock()
	s.usage.last = &u
	s.usage.mu.Unlock()
	return u, nil
}

// count counts one bucket.
func (s *Store) count(ctx context.Context, op string, b Bucket) (BucketUsage, error) {
	n := BucketUsage{Bucket: b.Name}
	o := metadata.ScanOptions{Kind: metadata.KindObject, Limit: s.usage.page, Brief: true}
	for {
		page, err := s.scan(ctx, op, &b, o, true)
		if err != nil {
			return BucketUsage{}, err
		}
		for i := range page.Items {
			it := &page.Items[i]
			if !it.Version.IsLive() {
				continue
			}
			n.Versions++
			n.Bytes += it.Version.Size
			if it.Latest {
				n.Objects++
			}
		}
		if !page.Truncated {
			return n, nil
		}
		o.After, o.AfterPrefix, o.AfterSeq = page.After, page.AfterPrefix, page.AfterSeq
		t := time.NewTimer(usagePause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return BucketUsage{}, errs.Wrap("object."+op, ctx.Err())
		}
	}
}
