package console

import (
	"context"
	"encoding/hex"
	"net/http"
	"runtime"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
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
	Reason     string     `json:"reason,omitempty"`   // why it is not ready
	Profile    string     `json:"profile"`            // of STANDARD, such as "4+2"
	Reduced    string     `json:"reduced_profile"`    // of REDUCED_REDUNDANCY
	Layout     uint64     `json:"layout"`             // its number
	Partitions uint32     `json:"partitions"`         //
	Members    int        `json:"drives"`             // of the layout
	Online     int        `json:"drives_online"`      // of them
	Total      uint64     `json:"total_bytes"`        // of the file systems of the drives that are here
	Free       uint64     `json:"free_bytes"`         // likewise
	Usable     uint64     `json:"usable_free_bytes"`  // what objects of STANDARD may roughly still take
	Redundancy Redundancy `json:"redundancy"`         //
	Replacing  int        `json:"replacements"`       // under way
	Heal       string     `json:"heal_state"`         // healthy, working, degraded or unknown
	HealWhy    []string   `json:"heal_why,omitempty"` // in words
	Verified   *time.Time `json:"verified"`           // end of the last complete check without findings; null: never
	Buckets    int        `json:"buckets"`            //
}

func (h *Handler) info(r *http.Request) (any, error) {
	l := h.Layout()
	s := h.Healer.Status()
	p := l.Profile()
	i := &Info{Version: h.Version, Go: runtime.Version(), Cluster: hex.EncodeToString(h.Cluster[:]), Region: h.Region, Started: h.Started.UTC(),
		Uptime: h.Now().Sub(h.Started).Seconds(), Ready: true, Profile: p.String(), Reduced: l.Reduced().String(), Layout: l.Number(),
		Partitions: l.Partitions(), Members: len(l.Drives()), Redundancy: h.redundancy(0), Replacing: len(h.Operator.Replacements()),
		Heal: s.State, HealWhy: s.Why, Verified: instant(s.Verified), Buckets: h.Buckets()}
	ctx, cancel := context.WithTimeout(r.Context(), sampleWait)
	defer cancel()
	if err := h.Ready(ctx); err != nil {
		i.Ready, i.Reason = false, errs.Public(err)
	}
	for _, d := range h.driveStatuses(r.Context()) {
		if d.Number == nil || d.Role == "none" || d.Role == "retired" {
			continue
		}
		if d.State == "online" || d.State == "full" {
			i.Online++
		}
		i.Total += d.Total
		i.Free += d.Free
	}
	i.Usable = i.Free / uint64(p.N()) * uint64(p.Data)
	return i, nil
}

// Usage is the answer of GET /-/admin/v1/usage.
type Usage struct {
	Buckets []BucketUsage `json:"buckets"` // by name
	Total   BucketUsage   `json:"total"`
}

// BucketUsage is what one bucket holds.
type BucketUsage struct {
	Bucket        string `json:"bucket,omitempty"`
	Objects       int64  `json:"objects"`        // keys that a listing shows
	Versions      int64  `json:"versions"`       // all of them, with the current ones
	DeleteMarkers int64  `json:"delete_markers"` //
	Uploads       int64  `json:"uploads"`        // multipart uploads under way
	Bytes         int64  `json:"bytes"`          // of all versions, as clients wrote them
	UploadBytes   int64  `json:"upload_bytes"`   // of the parts of uploads
}

// Usager counts what buckets hold. It may take long: it looks at every record.
type Usager interface {
	Usage(ctx context.Context) (*Usage, error)
}

func (h *Handler) usage(r *http.Request) (any, error) {
	return h.Usager.Usage(r.Context())
}
