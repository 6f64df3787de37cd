package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/auth"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
	"github.com/ostraka/ostraka/s3api"
)

// fake is everything that a Handler asks.
type fake struct {
	paths []node.PathStatus
	did   []string // what was asked for that changes something
	under []Replacement
	unfit error // of CheckNew
	doubt string

	outstanding heal.Outstanding
	lost        []metadata.Address

	fails    error // of what changes something
	torn     error // of the body
	hash     string
	heal     heal.Status
	scrubs   []heal.ScrubStatus
	settings heal.Settings
	id       auth.Identity
	signed   error
	ready    error
	inspect  *object.Inspection
	verify   bool
}

func (f *fake) Status() []node.PathStatus { return f.paths }
func (f *fake) Reopen(_ context.Context, path string) error {
	f.note("reopen", path)
	return f.fails
}
func (f *fake) Verify(r *http.Request) (*auth.Request, error) {
	return &auth.Request{Identity: f.id, Body: &body{r.Body, f.torn}, PayloadSHA256: f.hash}, f.signed
}
func (f *fake) note(parts ...any) {
	f.did = append(f.did, strings.TrimSuffix(fmt.Sprintln(parts...), "\n"))
}

// body ends with an error, as one does that is not what was signed.
type body struct {
	io.ReadCloser
	err error
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && b.err != nil {
		err = b.err
	}
	return n, err
}

func (f *fake) Backlog(context.Context) (int, error) { return 7, nil }
func (f *fake) Inspect(_ context.Context, bucket, key string, verify bool) (*object.Inspection, error) {
	f.verify = verify
	if f.inspect == nil {
		return nil, errs.E("fake", errs.NotFound, "there is no such object")
	}
	return f.inspect, nil
}

func newFake() *fake {
	return &fake{id: auth.Identity{Root: true, AccountID: "a"}, hash: "x", heal: heal.Status{State: heal.StateUnknown}, paths: []node.PathStatus{
		{Path: "/d1", Num: 1, Known: true, Open: true},
		{Path: "/d2", Num: 2, Known: true, State: node.PathAbsent, Err: errs.E("disk", errs.Drive, "its directory is gone")},
	}}
}

func infos(f map[uint16]func() disk.DriveInfo) *Sampler {
	return NewSampler(func() map[uint16]func() disk.DriveInfo { return f })
}

func (f *fake) handler() *Handler {
	list := []placement.Drive{{Num: 1, ID: [16]byte{1}}, {Num: 2, ID: [16]byte{2}}}
	l, err := placement.NewLayout(list, erasure.Profile{Data: 1, Parity: 1}, 0)
	if err != nil {
		panic(err)
	}
	return f.handlerOf(l)
}

func (f *fake) handlerOf(l *placement.Layout, change ...func(*Config)) *Handler {
	s := infos(map[uint16]func() disk.DriveInfo{1: func() disk.DriveInfo { return disk.DriveInfo{State: disk.Online, Total: 100, Avail: 40} }})
	m := NewMetrics(Sources{Drives: f, Samples: s, Stats: func() object.Stats { return object.Stats{CacheHits: 3} }, Backlog: f, Healer: fakeHealer{f}, Version: "v"})
	m.Observe(context.Background(), &s3api.Record{Operation: "PutObject", Status: 503, Code: "SlowDown", Err: errs.E("x", errs.Unavailable, "")})
	c := Config{Version: "v", Profile: "2+2", Cluster: [16]byte{1, 2}, Started: time.Now(), Layout: func() *placement.Layout { return l },
		Buckets: func() int { return 3 }, Operator: f, Healer: fakeHealer{f}, Tuner: f, Usager: f, Drives: f, Samples: s, Inspector: f, Backlog: f, Verifier: f,
		Ready: func(context.Context) error { return f.ready }, Metrics: m.Handler()}
	for _, f := range change {
		f(&c)
	}
	return New(c)
}

func ask(t *testing.T, h http.Handler, method, target string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w.Code, w.Body.String()
}

func TestAnswers(t *testing.T) {
	inspection := &object.Inspection{Profile: "2+2", Rows: []object.RowPlace{{Drive: 1, Present: true}, {Drive: 2, Offline: true}},
		Shards: []object.ShardPlace{{Index: 1, Drive: 2, Status: object.ShardOffline, Err: "gone"}, {Index: 0, Drive: 1, Status: object.ShardPresent}}}
	for _, c := range []struct {
		name, method, target string
		change               func(*fake)
		status               int
		has                  []string
	}{
		{name: "live", target: "/-/live", status: 200, has: []string{`"live"`}},
		{name: "ready", target: "/-/ready", status: 200, has: []string{`"ready"`}},
		{name: "not ready says why", target: "/-/ready", change: func(f *fake) { f.ready = errs.E("x", errs.Unavailable, "too few drives") }, status: 503, has: []string{"too few drives"}},
		{name: "metrics", target: "/-/metrics", status: 200, has: []string{`ostraka_drive_state{path="/d1",state="online"} 1`, `ostraka_drive_state{path="/d2",state="absent"} 1`,
			`ostraka_drive_free_bytes{path="/d1"} 40`, "ostraka_cache_hits_total 3", "ostraka_repair_backlog 7",
			`ostraka_requests_total{code="SlowDown",operation="PutObject",status="503"} 1`, `ostraka_quorum_failures_total{kind="unavailable"} 1`, "go_goroutines"}},
		{name: "status", target: "/-/admin/v1/status", status: 200, has: []string{`"path": "/d2"`, `"absent"`, "its directory is gone", `"repair_backlog": 7`}},
		{name: "status of nobody", target: "/-/admin/v1/status", change: func(f *fake) { f.id = auth.Identity{Anonymous: true} }, status: 403},
		{name: "status of a user that is not root", target: "/-/admin/v1/status", change: func(f *fake) { f.id.Root = false }, status: 403},
		{name: "status with a bad signature", target: "/-/admin/v1/status", change: func(f *fake) { f.signed = errs.E("auth", errs.Denied, "no") }, status: 403},
		{name: "an object", target: "/-/admin/v1/object?bucket=b&key=k", change: func(f *fake) { f.inspect = inspection }, status: 200,
			has: []string{`"whole": false`, `"state": "offline"`, `"path": "/d2"`, `"detail": "gone"`}},
		{name: "an object that is not there", target: "/-/admin/v1/object?bucket=b&key=k", status: 404, has: []string{"no such object"}},
		{name: "an object without key", target: "/-/admin/v1/object?bucket=b", status: 400},
		{name: "nothing", target: "/-/other", status: 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			if c.change != nil {
				c.change(f)
			}
			method := c.method
			if method == "" {
				method = http.MethodGet
			}
			status, body := ask(t, f.handler(), method, c.target)
			if status != c.status {
				t.Errorf("status %d, want %d: %s", status, c.status, body)
			}
			for _, want := range c.has {
				if !strings.Contains(body, want) {
					t.Errorf("the answer does not have %s:\n%s", want, body)
				}
			}
			if len(f.did) > 0 {
				t.Errorf("something was changed: %q", f.did)
			}
		})
	}
}

func TestAReportIsWholeOnlyIfEverythingIsInItsPlace(t *testing.T) {
	for status, want := range map[object.ShardStatus]bool{object.ShardPresent: true, object.ShardVerified: true, object.ShardMissing: false,
		object.ShardCorrupt: false, object.ShardOffline: false} {
		r := report("b", "k", true, &object.Inspection{Rows: []object.RowPlace{{Drive: 1, Present: true}}, Shards: []object.ShardPlace{{Drive: 1, Status: status}}}, nil)
		if r.Whole != want || r.Shards[0].State == "" {
			t.Errorf("with a shard that is %v: whole %v, state %q; want %v", status, r.Whole, r.Shards[0].State, want)
		}
	}
	if r := report("b", "k", true, &object.Inspection{Rows: []object.RowPlace{{Drive: 1, Behind: true}}}, nil); r.Whole || r.Rows[0].State != "behind" {
		t.Errorf("with a row that is behind: %+v", r)
	}
}

func TestADriveThatHangsIsReportedFromBeforeAndAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		release := make(chan struct{})
		var hang atomic.Bool
		s := infos(map[uint16]func() disk.DriveInfo{
			1: func() disk.DriveInfo { return disk.DriveInfo{Total: 1} },
			2: func() disk.DriveInfo {
				n := asked.Add(1)
				if hang.Load() {
					<-release
				}
				return disk.DriveInfo{Total: uint64(n)}
			},
		})
		if got := s.Sample(t.Context()); got[2].Stale || got[2].Info.Total != 1 {
			t.Errorf("a drive that answers: %+v", got[2])
		}
		hang.Store(true)
		for range 3 {
			begin := time.Now()
			got := s.Sample(t.Context())
			if took := time.Since(begin); took > sampleWait {
				t.Errorf("sampling took %v", took)
			}
			if !got[2].Stale || got[2].Info.Total != 1 || got[1].Stale {
				t.Errorf("with one that hangs: %+v", got)
			}
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("the drive that hangs was asked %d times, want 2", n)
		}
		hang.Store(false)
		close(release)
		synctest.Wait()
		if got := s.Sample(t.Context()); got[2].Stale || got[2].Info.Total != 3 {
			t.Errorf("after it came back: %+v", got[2])
		}
	})
}

func TestEveryAnswerOfTheAdminInterfaceIsJSON(t *testing.T) {
	f := newFake()
	for _, target := range []string{"/-/live", "/-/ready", "/-/admin/v1/status", "/-/admin/v1/object", "/-/none"} {
		_, body := ask(t, f.handler(), http.MethodGet, target)
		if !json.Valid([]byte(body)) {
			t.Errorf("%s answers %q", target, body)
		}
	}
}
