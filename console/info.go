package console

import (
	"context"
	"encoding/hex"
	"maps"
	"math"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// Info is the answer of GET /-/admin/v1/info.
type Info struct {
	Version    string     `json:"version"`
	Go         string     `json:"go_version"`
	Cluster    string     `json:"cluster"` // id, 32 hex digits
	Region     string     `json:"region,omitempty"`
	Started    time.Time  `json:"started"`
	Uptime     float64    `json:"uptime_seconds"`
	Ready      bool       `json:"ready"`
	Reason     string     `json:"reason,omitempty"`     // why it is not ready
	Profile    string     `json:"profile"`              // of STANDARD, such as "4+2"
	Reduced    string     `json:"reduced_profile"`      // of REDUCED_REDUNDANCY
	Layout     uint64     `json:"layout"`               // its number
	Partitions uint32     `json:"partitions"`           //
	Members    int        `json:"drives"`               // of the layout
	Online     int        `json:"drives_online"`        // of them
	Total      uint64     `json:"total_bytes"`          // of the file systems of the drives that are here
	Free       uint64     `json:"free_bytes"`           // likewise
	Usable     uint64     `json:"usable_free_bytes"`    // what objects of STANDARD may roughly still take until a drive is full
	FullFirst  uint16     `json:"full_first,omitempty"` // the drive that is full then, where others still have much room
	Redundancy Redundancy `json:"redundancy"`           //
	Replacing  int        `json:"replacements"`         // under way
	Heal       string     `json:"heal_state"`           // healthy, working, degraded or unknown
	HealWhy    []string   `json:"heal_why,omitempty"`   // in words
	Verified   *time.Time `json:"verified"`             // end of the last complete check without findings; null: never
	Buckets    int        `json:"buckets"`              //
	Nodes      int        `json:"nodes"`                // of the cluster; 0 for a process that is alone
	Missing    []string   `json:"missing,omitempty"`    // in words: what of the cluster does not serve now
}

func (h *Handler) info(r *http.Request) (any, error) {
	l := h.Layout()
	s := h.Healer.Status()
	p := l.Profile()
	i := &Info{Version: h.Version, Go: runtime.Version(), Cluster: hex.EncodeToString(h.Cluster[:]), Region: h.Region, Started: h.Started.UTC(),
		Uptime: h.Now().Sub(h.Started).Seconds(), Ready: true, Profile: p.String(), Reduced: l.Reduced().String(), Layout: l.Number(),
		Partitions: l.Partitions(), Redundancy: h.shown(r.Context()), Replacing: len(h.Operator.Replacements()),
		Heal: s.State, HealWhy: s.Why, Verified: instant(s.Verified), Buckets: h.Buckets(), Missing: h.missing()}
	i.Nodes = len(h.allNodes(r.Context()))
	ctx, cancel := context.WithTimeout(r.Context(), sampleWait)
	defer cancel()
	if err := h.Ready(ctx); err != nil {
		i.Ready, i.Reason = false, errs.Public(err)
	}
	free := map[uint16]uint64{}
	for _, d := range h.driveStatuses(r.Context()) {
		if d.Role != "member" && d.Role != "rebuilding" {
			continue
		}
		i.Members++
		if d.State == "online" || d.State == "full" {
			i.Online++
		}
		i.Total += d.Total
		i.Free += d.Free
		switch {
		case d.Number == nil || d.Total == 0:
		case d.State == string(disk.StateFull):
			free[uint16(*d.Number)] = 0
		default:
			free[uint16(*d.Number)] = d.Free - min(d.Reserve, d.Free)
		}
	}
	i.Usable = i.Free / uint64(p.N()) * uint64(p.Data)
	if room, first, ok := roomOf(l, free); ok && room < i.Usable {
		if room < i.Usable/10*9 {
			i.FullFirst = first
		}
		i.Usable = room
	}
	return i, nil
}

// roomOf returns what objects of STANDARD may take until the first of the drives is full, in bytes, and which that is: each
// partition gets its part of them, and of that each of its members one shard. ok: one of the drives has a place.
func roomOf(l *placement.Layout, free map[uint16]uint64) (room uint64, first uint16, ok bool) {
	share := map[uint16]float64{} // of what a partition gets
	for p := range l.Partitions() {
		g := l.Group(p)
		for _, num := range g.Drives {
			share[num] += 1 / float64(g.Profile.Data)
		}
	}
	least := math.Inf(1)
	for _, num := range slices.Sorted(maps.Keys(free)) {
		if share[num] == 0 {
			continue
		}
		if takes := float64(free[num]) * float64(l.Partitions()) / share[num]; takes < least {
			least, first, ok = takes, num, true
		}
	}
	if !ok || least >= math.MaxInt64 {
		return 0, 0, false
	}
	return uint64(least), first, true
}

// Usage is the answer of GET /-/admin/v1/usage. Multipart uploads that have not ended do not count.
type Usage struct {
	At      time.Time     `json:"counted_at"`   // when the count was begun; writes since may or may not be in it
	Took    float64       `json:"took_seconds"` //
	Buckets []BucketUsage `json:"buckets"`      // by name
	Total   BucketUsage   `json:"total"`
}

// BucketUsage is what one bucket holds.
type BucketUsage struct {
	Bucket   string `json:"bucket,omitempty"`
	Objects  int64  `json:"objects"`  // keys with a current version that is no delete marker
	Versions int64  `json:"versions"` // all of them, without delete markers
	Bytes    int64  `json:"bytes"`    // of all versions, as clients see them: without parity
}

// Usager counts what buckets hold; *object.Store is behind it. It may take long, and may answer with what it
// counted some minutes ago, unless fresh.
type Usager interface {
	Usage(ctx context.Context, fresh bool) (*Usage, error)
}

func (h *Handler) usage(r *http.Request) (any, error) {
	q, err := parameters("console.usage", r, "fresh")
	if err != nil {
		return nil, err
	}
	fresh, err := truth("console.usage", "fresh", q.Get("fresh"))
	if err != nil {
		return nil, err
	}
	u, err := h.Usager.Usage(r.Context(), fresh)
	if err != nil {
		return nil, err
	}
	if u.Buckets == nil {
		u.Buckets = []BucketUsage{}
	}
	u.Total = BucketUsage{}
	for _, b := range u.Buckets {
		u.Total.Objects += b.Objects
		u.Total.Versions += b.Versions
		u.Total.Bytes += b.Bytes
	}
	return u, nil
}
