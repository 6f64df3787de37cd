// Package console owns what an operator sees of a running process, everything under /-/, which no
// bucket can be named:
//
//	GET  /-/live                                    200 while the process serves
//	GET  /-/ready                                   200 when it can serve S3, else 503 and why
//	GET  /-/metrics                                 Prometheus text
//	GET  /-/admin/v1/info                           the store: version, profile, capacity, redundancy
//	GET  /-/admin/v1/status                         version, profile, drives, repair backlog
//	GET  /-/admin/v1/drives                         the drives, replacements under way, redundancy
//	GET  /-/admin/v1/nodes                          the nodes of the cluster, with their drives
//	POST /-/admin/v1/nodes/zone                     say in which failure domain a node is
//	POST /-/admin/v1/nodes/remove                   forget a node that is gone for good
//	GET  /-/admin/v1/layout                         who has how many places, the plan that is carried out, earlier ones
//	POST /-/admin/v1/layout/plan, apply, revert     plan a layout; begin a plan; drop what of it was not begun
//	POST /-/admin/v1/drives/add                     make an empty directory of the node a drive
//	POST /-/admin/v1/drives/give-up                 give drives up that never come back
//	POST /-/admin/v1/drives/replace                 put a new drive in the place of one
//	POST /-/admin/v1/drives/quarantine, release     take a drive out of service, and back
//	POST /-/admin/v1/drives/reopen                  take a drive that had a fault back into service
//	POST /-/admin/v1/recover                        begin the control plane anew, without lost voters
//	GET  /-/admin/v1/heal                           what healing knows and does
//	POST /-/admin/v1/heal/start, pause, resume, settings
//	GET  /-/admin/v1/scrub                          how far the scrub of each drive is
//	POST /-/admin/v1/scrub/start, settings
//	GET  /-/admin/v1/object?bucket=B&key=K          where each row and shard of an object is
//	POST /-/admin/v1/object/verify                  the same, after reading every shard; damage is repaired
//	GET  /-/admin/v1/usage                          what each bucket holds
//
// docs/admin.md documents each with its body, answer and errors.
//
// Live, ready and metrics are open, as probes and scrapers expect; they name no bucket, no key and
// no account. The admin paths need a request signed with the root keys (Signature Version 4, any
// region, service s3), and one that changes something a body that the signature covers.
// Answers are JSON; a failure is {"error": {"kind", "message"}}, and then nothing was changed.
//
// The package never touches the data path: it reads what other packages count, and it never waits
// for a drive longer than sampleWait (judgeWait before it decides something), so that one that hangs does not take the status away.
package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
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

// Config is what a Handler is made of. All but Region, Now and Logger are required.
type Config struct {
	Version   string
	Profile   string // such as "2+2"
	Cluster   [16]byte
	Region    string
	Started   time.Time
	Layout    func() *placement.Layout // the current one, never nil
	Buckets   func() int               // their number
	Operator  Operator
	Healer    Healer
	Tuner     Tuner
	Usager    Usager
	Drives    Drives
	Samples   *Sampler
	Inspector Inspector
	Backlog   Backlog
	Verifier  Verifier
	Ready     func(ctx context.Context) error // nil error: S3 can be served
	Metrics   http.Handler
	Now       func() time.Time
	Logger    *slog.Logger
	// Here reports whether a drive serves, wherever it is; nil: those that Drives says are open.
	Here func(num uint16) bool
	// Nodes returns the nodes of the cluster, this one included, and waits for no longer than ctx; nil: the
	// process is alone.
	Nodes func(ctx context.Context) []NodeStatus
	// Changes returns what of the open plan was begun and not published; nil: there is never a plan.
	Changes func() Changes
	// Planner changes the layout; nil: nobody does.
	Planner Planner
}

// Handler answers everything under /-/.
type Handler struct {
	Config
	mux *http.ServeMux

	replacing sync.Mutex // one decision about a replacement at a time; guards no field
	tuning    sync.Mutex // one change of the settings at a time; guards no field
	recent    recent
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
	gets := map[string]func(*http.Request) (any, error){
		"info": h.info, "status": h.status, "drives": h.drives, "heal": h.heal, "scrub": h.scrub, "nodes": h.nodes,
	}
	changes := map[string]func(*http.Request, *auth.Request) (any, error){}
	if c.Planner != nil {
		gets["layout"] = func(*http.Request) (any, error) { return h.Planner.Layout(), nil }
		maps.Copy(changes, map[string]func(*http.Request, *auth.Request) (any, error){
			"layout/plan": change(h.planLayout), "layout/apply": change(h.applyLayout), "layout/revert": change(h.revertLayout), "drives/add": change(h.addDrive), "nodes/remove": change(h.removeNode), "drives/give-up": change(h.giveUp), "nodes/zone": change(h.setZone),
		})
	}
	for path, do := range gets {
		h.mux.HandleFunc("GET /-/admin/v1/"+path, h.admin(func(r *http.Request, _ *auth.Request) (any, error) {
			if _, err := parameters("console."+path, r); err != nil {
				return nil, err
			}
			return do(r)
		}))
	}
	h.mux.HandleFunc("GET /-/admin/v1/object", h.admin(func(r *http.Request, _ *auth.Request) (any, error) { return h.object(r) }))
	h.mux.HandleFunc("GET /-/admin/v1/usage", h.admin(func(r *http.Request, _ *auth.Request) (any, error) { return h.usage(r) }))
	maps.Copy(changes, map[string]func(*http.Request, *auth.Request) (any, error){
		"drives/replace": change(h.replace), "drives/quarantine": change(h.quarantine), "drives/release": change(h.release),
		"drives/reopen": change(h.reopen), "recover": change(h.recover), "heal/start": change(h.startCheck), "heal/pause": change(h.pauseHeal),
		"heal/resume": change(h.resumeHeal), "heal/settings": change(h.setHeal), "scrub/start": change(h.startScrub),
		"scrub/settings": change(h.setScrub), "object/verify": change(h.verifyObject),
	})
	for path, do := range changes {
		h.mux.HandleFunc("POST /-/admin/v1/"+path, h.admin(do))
	}
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
	a := Readiness{Status: "ready", Missing: h.missing()}
	if err := h.Ready(ctx); err != nil {
		a.Status, a.Reason = "not ready", errs.Public(err)
		answer(w, http.StatusServiceUnavailable, a)
		return
	}
	answer(w, http.StatusOK, a)
}

// admin lets only requests through that are signed with the root keys.
func (h *Handler) admin(do func(r *http.Request, signed *auth.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		signed, err := h.Verifier.Verify(r)
		if err == nil && (signed.Identity.Anonymous || !signed.Identity.Root) {
			err = errs.E("console.admin", errs.Denied, "the admin interface needs a request signed with the root keys")
		}
		var result any
		if err == nil {
			result, err = do(r, signed)
		}
		if err != nil {
			h.Logger.Debug("admin request refused", "path", r.URL.Path, "err", err)
			refuse(w, err)
			return
		}
		answer(w, http.StatusOK, result)
	}
}

// maxBody bounds the body of a request.
const maxBody = 64 << 10

// change makes a handler of one that takes a body of type Q. The whole body is read and its
// signature verified before anything is done; an empty one is a Q of zeros.
func change[Q any](do func(r *http.Request, q *Q) (any, error)) func(*http.Request, *auth.Request) (any, error) {
	return func(r *http.Request, signed *auth.Request) (any, error) {
		const op = "console.admin"
		if signed.Presigned || signed.PayloadSHA256 == "" {
			return nil, errs.E(op, errs.Invalid, "the signature has to cover the body: sign the request by its Authorization header, with the body's SHA-256 as x-amz-content-sha256")
		}
		if r.URL.RawQuery != "" {
			return nil, errs.E(op, errs.Invalid, "what is asked for stands in the body, as JSON; there are no query parameters here")
		}
		raw, err := io.ReadAll(io.LimitReader(signed.Body, maxBody+1))
		if err != nil {
			return nil, errs.As(op, errs.Invalid, err)
		}
		if len(raw) > maxBody {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("the body is longer than %d bytes", maxBody))
		}
		q := new(Q)
		if len(raw) > 0 {
			d := json.NewDecoder(strings.NewReader(string(raw)))
			d.DisallowUnknownFields()
			if err := d.Decode(q); err != nil {
				why := strings.TrimPrefix(err.Error(), "json: ")
				var wrong *json.UnmarshalTypeError
				if errors.As(err, &wrong) {
					why = fmt.Sprintf("%q does not take %s", wrong.Field, wrong.Value)
					if wrong.Field == "" {
						why = fmt.Sprintf("a JSON object is wanted, not %s", wrong.Value)
					}
				}
				return nil, &errs.Error{Op: op, Kind: errs.Invalid, Msg: "the body is not what this path takes: " + why, Err: err}
			}
			if _, err := d.Token(); !errors.Is(err, io.EOF) {
				return nil, errs.E(op, errs.Invalid, "the body goes on after its JSON value")
			}
		}
		return do(r, q)
	}
}

// parameters returns the query, which may have only these names, each at most once.
func parameters(op string, r *http.Request, names ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, errs.E(op, errs.Invalid, "the query does not parse")
	}
	for name, values := range q {
		if strings.HasPrefix(strings.ToLower(name), "x-amz-") {
			continue // of a presigned URL
		}
		if !slices.Contains(names, name) {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("there is no query parameter %q here", name))
		}
		if len(values) > 1 {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("the query parameter %q is there twice", name))
		}
	}
	return q, nil
}

// truth reads a parameter that is true or false; absent, it is false.
func truth(op, name, value string) (bool, error) {
	if value == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(value)
	if err != nil {
		return false, errs.E(op, errs.Invalid, name+" is neither true nor false")
	}
	return v, nil
}

// Status is the answer of /-/admin/v1/status.
type Status struct {
	Version string        `json:"version"`
	Profile string        `json:"profile"`
	Uptime  float64       `json:"uptime_seconds"`
	Ready   bool          `json:"ready"`
	Reason  string        `json:"reason,omitempty"`  // why it is not ready
	Missing []string      `json:"missing,omitempty"` // in words: what of the cluster does not serve now
	Drives  []DriveStatus `json:"drives"`
	Repairs *int          `json:"repair_backlog"` // rows; null: not known
}

// DriveStatus is one drive of a Status.
type DriveStatus struct {
	Path   string `json:"path"`
	Node   string `json:"node,omitempty"` // name of the node that it is at; left out in a store of one process
	Number *int   `json:"number"`         // null: not known
	// State is online, full (no new shards), absent (no directory), empty (an empty directory: a spare, or a disk
	// that is not mounted), foreign (something else is there), quarantined (until somebody sees to it), retired
	// (its records are damaged: it has to be replaced), replaced (it never serves again) or faulty.
	State  string     `json:"state"`
	By     string     `json:"quarantined_by,omitempty"` // operator, or drive: after a failed write or sync
	Reason string     `json:"reason,omitempty"`
	Since  *time.Time `json:"since,omitempty"` // when it stopped serving; left out if that was before the start
	// Role is member, replaced (by a newcomer, under way), rebuilding (the newcomer), given up (its places go to
	// others), retired (in no layout any more) or none (no drive that is known).
	Role        string `json:"role,omitempty"`
	Total       uint64 `json:"total_bytes"`
	Free        uint64 `json:"free_bytes"`
	Reserve     uint64 `json:"reserve_bytes,omitempty"` // of Free: kept free, a drive with less is full
	ReadErrors  uint64 `json:"read_errors"`
	WriteErrors uint64 `json:"write_errors"`
	Stale       bool   `json:"stale,omitempty"` // the drive did not answer in time; figures are older
}

func (h *Handler) status(r *http.Request) (any, error) {
	s := Status{Version: h.Version, Profile: h.Layout().Profile().String(), Uptime: h.Now().Sub(h.Started).Seconds(), Ready: true, Missing: h.missing()}
	ctx, cancel := context.WithTimeout(r.Context(), sampleWait)
	defer cancel()
	if err := h.Ready(ctx); err != nil {
		s.Ready, s.Reason = false, errs.Public(err)
	}
	if n, err := h.Backlog.Backlog(ctx); err == nil {
		s.Repairs = &n
	}
	s.Drives = h.driveStatuses(r.Context())
	return s, nil
}

// LocalStatuses are the drives of one process, as it tells them to the others.
func LocalStatuses(ctx context.Context, drives Drives, samples *Sampler) []DriveStatus {
	return driveStatuses(drives.Status(), samples.Sample(ctx))
}

// driveStatuses joins what the set knows of its paths with what the drives said of themselves.
func driveStatuses(paths []node.PathStatus, samples map[uint16]Sample) []DriveStatus {
	out := make([]DriveStatus, 0, len(paths))
	for _, p := range paths {
		d := DriveStatus{Path: p.Path, State: string(p.State), By: p.By, Reason: p.Why, Since: instant(p.Since)}
		if p.Known {
			n := int(p.Num)
			d.Number = &n
		}
		if p.Err != nil && p.By != node.ByOperator {
			d.Reason = p.Err.Error() // it names the path, for logs and other places
		}
		s, sampled := samples[p.Num]
		if sampled && p.Known {
			d.Total, d.Free, d.Reserve, d.Stale = s.Info.Total, s.Info.Avail, s.Info.Reserve, s.Stale
			d.ReadErrors, d.WriteErrors = s.Info.ReadErrors, s.Info.WriteErrors
		}
		switch {
		case p.Open && sampled && p.Known:
			d.State = string(s.Info.State)
			if s.Info.Reason != "" {
				d.Reason = s.Info.Reason
			}
		case p.Open:
			d.State, d.Stale = string(disk.Online), true
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
	q, err := parameters("console.object", r, "bucket", "key")
	if err != nil {
		return nil, err
	}
	return h.inspect(r, &ObjectRequest{Bucket: q.Get("bucket"), Key: q.Get("key")}, false)
}

// ObjectRequest is the body of POST object/verify.
type ObjectRequest struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
}

// verifyObject reads every shard, and asks for the repair of what it finds: so it is a POST.
func (h *Handler) verifyObject(r *http.Request, q *ObjectRequest) (any, error) {
	return h.inspect(r, q, true)
}

func (h *Handler) inspect(r *http.Request, q *ObjectRequest, verify bool) (any, error) {
	if q.Bucket == "" || q.Key == "" {
		return nil, errs.E("console.object", errs.Invalid, "bucket and key have to be given")
	}
	in, err := h.Inspector.Inspect(r.Context(), q.Bucket, q.Key, verify)
	if err != nil {
		return nil, err
	}
	return report(q.Bucket, q.Key, verify, in, h.Drives.Status()), nil
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
