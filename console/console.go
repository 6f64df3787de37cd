// Package console owns what an operator sees of a running process, everything under /-/, which no
// bucket can be named:
//
//	GET  /-/live                                    200 while the process serves
//	GET  /-/ready                                   200 when it can serve S3, else 503 and why
//	GET  /-/metrics                                 Prometheus text
//	GET  /-/admin/v1/status                         version, profile, drives, repair backlog
//	GET  /-/admin/v1/object?bucket=B&key=K[&verify=true]   where each row and shard of an object is
//	POST /-/admin/v1/drives/reopen?path=P           take a quarantined drive back into service
//
// Live, ready and metrics are open, as probes and scrapers expect; they name no bucket, no key and
// no account. The admin paths need a request signed with the root keys (Signature Version 4, region
// of the store, service s3). Answers are JSON; a failure is {"error": {"kind", "message"}}.
//
// The package never touches the data path: it reads what other packages count, and it never waits
// for a drive longer than sampleWait, so that one that hangs does not take the status away.
package console

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sort"
	"strconv"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// Drives is what the console needs of the drives of this process; *node.Set is one.
type Drives interface {
	Status() []node.PathStatus
	Reopen(ctx context.Context, path string) error
}

// Inspector says where an object is; *object.Store is one.
type Inspector interface {
	Inspect(ctx context.Context, bucket, key string, verify bool) (*object.Inspection, error)
}

// Verifier verifies a signature; *auth.Verifier is one.
type Verifier interface {
	Verify(r *http.Request) (*auth.Request, error)
}

// Backlog tells how much repair is outstanding. It returns within ctx.
type Backlog interface {
	// Backlog counts the repair rows of all drives that are here, up to a bound of its own.
	Backlog(ctx context.Context) (rows int, err error)
}

// Config is what a Handler is made of. All but Now and Logger are required.
type Config struct {
	Version   string
	Profile   string // such as "2+2"
	Started   time.Time
	Drives    Drives
	Samples   *Sampler
	Inspector Inspector
	Backlog   Backlog
	Verifier  Verifier
	Ready     func(ctx context.Context) error // nil error: S3 can be served
	Metrics   http.Handler
	Now       func() time.Time
	Logger    *slog.Logger
}

// Handler answers everything under /-/.
type Handler struct {
	Config
	mux *http.ServeMux
}

// New makes a Handler.
func New(c Config) *Handler {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Handler{Config: c, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /-/live", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "live"})
	})
	h.mux.HandleFunc("GET /-/ready", h.ready)
	h.mux.Handle("GET /-/metrics", c.Metrics)
	h.mux.HandleFunc("GET /-/admin/v1/status", h.admin(h.status))
	h.mux.HandleFunc("GET /-/admin/v1/object", h.admin(h.object))
	h.mux.HandleFunc("POST /-/admin/v1/drives/reopen", h.admin(h.reopen))
	h.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, errs.E("console", errs.NotFound, "there is nothing at this path"))
	})
	return h
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), sampleWait)
	defer cancel()
	if err := h.Ready(ctx); err != nil {
		answer(w, http.StatusServiceUnavailable, map[string]string{"status": "not ready", "reason": errs.Public(err)})
		return
	}
	answer(w, http.StatusOK, map[string]string{"status": "ready"})
}

// admin lets only requests through that are signed with the root keys.
func (h *Handler) admin(do func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		signed, err := h.Verifier.Verify(r)
		if err == nil && (signed.Identity.Anonymous || !signed.Identity.Root) {
			err = errs.E("console.admin", errs.Denied, "the admin interface needs a request signed with the root keys")
		}
		var result any
		if err == nil {
			result, err = do(r)
		}
		if err != nil {
			h.Logger.Debug("admin request refused", "path", r.URL.Path, "err", err)
			refuse(w, err)
			return
		}
		answer(w, http.StatusOK, result)
	}
}

// Status is the answer of /-/admin/v1/status.
type Status struct {
	Version string        `json:"version"`
	Profile string        `json:"profile"`
	Uptime  float64       `json:"uptime_seconds"`
	Ready   bool          `json:"ready"`
	Reason  string        `json:"reason,omitempty"` // why it is not ready
	Drives  []DriveStatus `json:"drives"`
	Repairs *int          `json:"repair_backlog"` // rows; null: not known
}

// DriveStatus is one drive of a Status.
type DriveStatus struct {
	Path        string `json:"path"`
	Number      *int   `json:"number"` // null: not known
	State       string `json:"state"`  // online, full, quarantined, retired, absent
	Reason      string `json:"reason,omitempty"`
	Total       uint64 `json:"total_bytes"`
	Free        uint64 `json:"free_bytes"`
	ReadErrors  uint64 `json:"read_errors"`
	WriteErrors uint64 `json:"write_errors"`
	Stale       bool   `json:"stale,omitempty"` // the drive did not answer in time; figures are older
}

func (h *Handler) status(r *http.Request) (any, error) {
	s := Status{Version: h.Version, Profile: h.Profile, Uptime: h.Now().Sub(h.Started).Seconds(), Ready: true}
	ctx, cancel := context.WithTimeout(r.Context(), sampleWait)
	defer cancel()
	if err := h.Ready(ctx); err != nil {
		s.Ready, s.Reason = false, errs.Public(err)
	}
	if n, err := h.Backlog.Backlog(ctx); err == nil {
		s.Repairs = &n
	}
	s.Drives = driveStatuses(h.Drives.Status(), h.Samples.Sample(r.Context()))
	return s, nil
}

// driveStatuses joins what the set knows of its paths with what the drives said of themselves.
func driveStatuses(paths []node.PathStatus, samples map[uint16]Sample) []DriveStatus {
	out := make([]DriveStatus, 0, len(paths))
	for _, p := range paths {
		d := DriveStatus{Path: p.Path, State: "absent"}
		if p.Known {
			n := int(p.Num)
			d.Number = &n
		}
		if p.Err != nil {
			d.Reason = p.Err.Error()
		}
		if s, ok := samples[p.Num]; ok && p.Known {
			d.Total, d.Free, d.Stale = s.Info.Total, s.Info.Avail, s.Stale
			d.ReadErrors, d.WriteErrors = s.Info.ReadErrors, s.Info.WriteErrors
			if p.Open {
				d.State = string(s.Info.State)
				if s.Info.Reason != "" {
					d.Reason = s.Info.Reason
				}
			}
		} else if p.Open {
			d.State, d.Stale = "online", true
		}
		out = append(out, d)
	}
	return out
}

// ObjectReport is the answer of /-/admin/v1/object.
type ObjectReport struct {
	Bucket    string        `json:"bucket"`
	Key       string        `json:"key"`
	VersionID string        `json:"version_id"`
	Size      int64         `json:"size"`
	ETag      string        `json:"etag"`
	Modified  time.Time     `json:"last_modified"`
	Class     string        `json:"storage_class"`
	Parts     int           `json:"parts,omitempty"`
	Profile   string        `json:"profile"`
	DataID    string        `json:"data_id"`
	Partition uint32        `json:"partition"`
	Ballot    string        `json:"ballot"`
	Verified  bool          `json:"verified"` // every shard was read
	Whole     bool          `json:"whole"`    // every row and every shard is in its place
	Rows      []RowReport   `json:"rows"`
	Shards    []ShardReport `json:"shards"`
}

// RowReport is the record of the object on one drive.
type RowReport struct {
	Drive uint16 `json:"drive"`
	Path  string `json:"path,omitempty"`
	State string `json:"state"` // ok, behind, offline
}

// ShardReport is one shard.
type ShardReport struct {
	Part   int    `json:"part,omitempty"`
	Chunk  int    `json:"chunk"`
	Index  int    `json:"index"`
	Drive  uint16 `json:"drive"`
	Path   string `json:"path,omitempty"`
	State  string `json:"state"` // present, verified, missing, corrupt, offline
	Bytes  int64  `json:"bytes"`
	Detail string `json:"detail,omitempty"`
}

func (h *Handler) object(r *http.Request) (any, error) {
	q := r.URL.Query()
	bucket, key := q.Get("bucket"), q.Get("key")
	if bucket == "" || key == "" {
		return nil, errs.E("console.object", errs.Invalid, "bucket and key have to be given")
	}
	verify := false
	if v := q.Get("verify"); v != "" {
		var err error
		if verify, err = strconv.ParseBool(v); err != nil {
			return nil, errs.E("console.object", errs.Invalid, "verify is neither true nor false")
		}
	}
	in, err := h.Inspector.Inspect(r.Context(), bucket, key, verify)
	if err != nil {
		return nil, err
	}
	return report(bucket, key, verify, in, h.Drives.Status()), nil
}

func report(bucket, key string, verify bool, in *object.Inspection, paths []node.PathStatus) *ObjectReport {
	at := map[uint16]string{}
	for _, p := range paths {
		if p.Known {
			at[p.Num] = p.Path
		}
	}
	o := &ObjectReport{Bucket: bucket, Key: key, VersionID: in.Info.VersionID, Size: in.Info.Size, ETag: in.Info.ETag,
		Modified: in.Info.ModTime, Class: in.Info.Class, Parts: in.Info.PartCount, Profile: in.Profile, DataID: in.DataID,
		Partition: in.Partition, Ballot: in.Ballot, Verified: verify, Whole: true, Rows: []RowReport{}, Shards: []ShardReport{}}
	for _, row := range in.Rows {
		state := "ok"
		switch {
		case row.Offline:
			state = "offline"
		case row.Behind || !row.Present:
			state = "behind"
		}
		o.Whole = o.Whole && state == "ok"
		o.Rows = append(o.Rows, RowReport{Drive: row.Drive, Path: at[row.Drive], State: state})
	}
	for _, s := range in.Shards {
		state := shardStates[s.Status]
		o.Whole = o.Whole && (s.Status == object.ShardPresent || s.Status == object.ShardVerified)
		o.Shards = append(o.Shards, ShardReport{Part: s.Part, Chunk: s.Chunk, Index: s.Index, Drive: s.Drive, Path: at[s.Drive],
			State: state, Bytes: s.Bytes, Detail: s.Err})
	}
	sort.SliceStable(o.Shards, func(i, j int) bool {
		a, b := o.Shards[i], o.Shards[j]
		if a.Part != b.Part {
			return a.Part < b.Part
		}
		if a.Chunk != b.Chunk {
			return a.Chunk < b.Chunk
		}
		return a.Index < b.Index
	})
	return o
}

var shardStates = map[object.ShardStatus]string{
	object.ShardPresent: "present", object.ShardVerified: "verified", object.ShardMissing: "missing",
	object.ShardCorrupt: "corrupt", object.ShardOffline: "offline",
}

func (h *Handler) reopen(r *http.Request) (any, error) {
	path := r.URL.Query().Get("path")
	for _, p := range h.Drives.Status() {
		if p.Path == path {
			if err := h.Drives.Reopen(r.Context(), path); err != nil {
				return nil, err
			}
			h.Logger.Info("drive reopened by an operator", "path", path)
			return map[string]string{"status": "open"}, nil
		}
	}
	return nil, errs.E("console.reopen", errs.NotFound, "no drive of this process has that path")
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // the types above always marshal
		status, raw = http.StatusInternalServerError, []byte(`{"error":{"kind":"internal","message":"the answer has no JSON form"}}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// A client that went away needs no answer.
	_, _ = w.Write(append(raw, '\n'))
}

// Failure is the body of an answer that is not 200.
type Failure struct {
	Error struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
	} `json:"error"`
}

// refuse writes an error.
func refuse(w http.ResponseWriter, err error) {
	var f Failure
	kind := errs.KindOf(err)
	f.Error.Kind, f.Error.Message = kind.String(), errs.Public(err)
	var a *auth.Error
	if errors.As(err, &a) {
		kind = errs.Denied
	}
	status, ok := statuses[kind]
	if !ok {
		status = http.StatusInternalServerError
	}
	answer(w, status, f)
}

var statuses = map[errs.Kind]int{
	errs.Invalid: http.StatusBadRequest, errs.NotFound: http.StatusNotFound, errs.Exists: http.StatusConflict,
	errs.Precondition: http.StatusPreconditionFailed, errs.Denied: http.StatusForbidden, errs.Unavailable: http.StatusServiceUnavailable,
	errs.Unknown: http.StatusServiceUnavailable, errs.Conflict: http.StatusServiceUnavailable, errs.Stale: http.StatusServiceUnavailable,
	errs.Busy: http.StatusServiceUnavailable, errs.Drive: http.StatusServiceUnavailable, errs.Full: http.StatusInsufficientStorage,
	errs.Unsupported: http.StatusNotImplemented, errs.Timeout: http.StatusGatewayTimeout,
}
