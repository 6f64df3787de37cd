// Package bench loads an S3 endpoint and reports what an operation costs: server CPU (user and
// system time of the server's processes, from /proc), rate, and latency percentiles; and beside
// it the floor: what the stages of the work cost by themselves on this machine, in the same run.
//
// The package owns the load and the report. It knows nothing of how a store works, imports
// nothing of the project, and runs against any S3 endpoint that it is given keys for.
//
// Loops are bounded: by a time for each phase, and by a number of operations.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Options say what to load and how long.
type Options struct {
	Endpoint  string // URL with scheme, such as http://127.0.0.1:9000
	AccessKey string
	SecretKey string
	Region    string
	Bucket    string        // made if absent; objects under the prefix "bench-" are written and removed
	Sizes     []int64       // bytes of the bodies
	Duration  time.Duration // of each phase
	MaxOps    int           // of each phase
	Clients   int           // concurrent clients; 0: 16 up to 64 KiB, 8 up to 4 MiB, 4 above
	PIDs      []int         // server processes whose CPU is read; none: no CPU column
	Floor     bool          // measure the floor too
	FloorDir  string        // directory, on the drives' file system, for the floor's disk stages
	Seed      uint64        // of bodies and orders
}

// Result is one phase.
type Result struct {
	Op         string  `json:"op"`
	Size       int64   `json:"size"`
	Clients    int     `json:"clients"`
	Ops        int     `json:"ops"`
	Errors     int     `json:"errors"`
	Seconds    float64 `json:"seconds"`
	PerSecond  float64 `json:"per_second"`
	CPUMicros  float64 `json:"server_cpu_us_per_op"` // 0: not measured
	P50Micros  float64 `json:"p50_us"`
	P99Micros  float64 `json:"p99_us"`
	FloorMicro float64 `json:"floor_us_per_op"` // sum of the stages; 0: none for this phase
	// CPUByPID is CPUMicros of each of Options.PIDs, in their order.
	CPUByPID []float64 `json:"server_cpu_us_per_op_by_pid,omitempty"`
}

// Report is a whole run.
type Report struct {
	Results []Result `json:"results"`
	Floor   []Stage  `json:"floor,omitempty"`
}

type runner struct {
	o      Options
	core   *minio.Core
	floor  floor
	report Report
}

// Run loads the endpoint phase by phase: for each size PUT, GET, HEAD, LIST, DELETE. Whatever it
// wrote it removes, also after an error. An operation that fails is counted, not retried; a run
// in which every operation of a phase failed ends with the first error.
func Run(ctx context.Context, o Options) (*Report, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("bench: the endpoint must be a URL such as http://127.0.0.1:9000, not %q", o.Endpoint)
	}
	if o.MaxOps <= 0 || o.Duration <= 0 || len(o.Sizes) == 0 {
		return nil, errors.New("bench: sizes, a duration and a bound of operations are needed")
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 256, DisableCompression: true, WriteBufferSize: 256 << 10, ReadBufferSize: 256 << 10,
	}
	defer transport.CloseIdleConnections()
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(o.AccessKey, o.SecretKey, ""), Secure: u.Scheme == "https",
		Region: o.Region, BucketLookup: minio.BucketLookupPath, Transport: transport, MaxRetries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	r := &runner{o: o, core: core}
	ok, err := core.BucketExists(ctx, o.Bucket)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	if !ok {
		if err := core.MakeBucket(ctx, o.Bucket, minio.MakeBucketOptions{Region: o.Region}); err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
	}
	if o.Floor {
		if r.floor, err = measureFloor(o.FloorDir); err != nil {
			return nil, fmt.Errorf("bench: floor: %w", err)
		}
		r.report.Floor = r.floor.stages
	}
	for _, size := range o.Sizes {
		if err := r.size(ctx, size); err != nil {
			return &r.report, err
		}
	}
	return &r.report, nil
}

// clients returns the number of clients for bodies of a size.
func (r *runner) clients(size int64) int {
	switch {
	case r.o.Clients > 0:
		return r.o.Clients
	case size <= 64<<10:
		return 16
	case size <= 4<<20:
		return 8
	}
	return 4
}

// size runs the five phases over bodies of one size.
func (r *runner) size(ctx context.Context, size int64) (err error) {
	body := make([]byte, size)
	fill(body, r.o.Seed)
	prefix := fmt.Sprintf("bench-%d-%d/", size, r.o.Seed)
	key := func(i int) string { return fmt.Sprintf("%s%08d", prefix, i) }
	n := r.clients(size)
	put := r.phase(ctx, "PUT", size, n, r.o.MaxOps, func(ctx context.Context, _ *rand.Rand, i int) error {
		_, err := r.core.PutObject(ctx, r.o.Bucket, key(i), bytes.NewReader(body), size, "", "",
			minio.PutObjectOptions{DisableContentSha256: true})
		return err
	})
	written := put.issued
	defer func() {
		// The delete phase may have been cut short by its time: the rest goes in bulk.
		err = errors.Join(err, r.clean(context.WithoutCancel(ctx), prefix))
	}()
	if put.Ops == 0 {
		return fmt.Errorf("bench: no PUT of %d bytes succeeded: %w", size, put.first)
	}
	phases := []struct {
		op  string
		max int
		do  func(ctx context.Context, rng *rand.Rand, i int) error
	}{
		{"GET", r.o.MaxOps, func(ctx context.Context, rng *rand.Rand, _ int) error {
			rc, _, _, err := r.core.GetObject(ctx, r.o.Bucket, key(rng.IntN(written)), minio.GetObjectOptions{})
			if err != nil {
				return err
			}
			defer rc.Close()
			got, err := io.Copy(io.Discard, rc)
			if err == nil && got != size {
				err = io.ErrUnexpectedEOF
			}
			return err
		}},
		{"HEAD", r.o.MaxOps, func(ctx context.Context, rng *rand.Rand, _ int) error {
			_, err := r.core.StatObject(ctx, r.o.Bucket, key(rng.IntN(written)), minio.StatObjectOptions{})
			return err
		}},
		{"LIST", r.o.MaxOps, func(ctx context.Context, _ *rand.Rand, _ int) error {
			_, err := r.core.ListObjectsV2(r.o.Bucket, prefix, "", "", "", 1000)
			return err
		}},
		{"DELETE", written, func(ctx context.Context, _ *rand.Rand, i int) error {
			return r.core.RemoveObject(ctx, r.o.Bucket, key(i), minio.RemoveObjectOptions{})
		}},
	}
	for _, p := range phases {
		if got := r.phase(ctx, p.op, size, n, p.max, p.do); got.Ops == 0 {
			return fmt.Errorf("bench: no %s succeeded: %w", p.op, got.first)
		}
	}
	return nil
}

// clean removes what a size left under its prefix.
func (r *runner) clean(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	objects := r.core.Client.ListObjects(ctx, r.o.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true})
	var first error
	for e := range r.core.Client.RemoveObjects(ctx, r.o.Bucket, objects, minio.RemoveObjectsOptions{}) {
		if first == nil {
			first = e.Err
		}
	}
	return first
}

type phaseResult struct {
	Result
	issued int // keys 0..issued-1 were tried
	first  error
}

// phase runs do from n clients until the time or max operations are over.
func (r *runner) phase(ctx context.Context, op string, size int64, n, max int, do func(context.Context, *rand.Rand, int) error) phaseResult {
	var (
		next    atomic.Int64
		mu      sync.Mutex // guards lat, failed, first
		lat     []time.Duration
		failed  int
		first   error
		wg      sync.WaitGroup
		cpu0, _ = cpuTime(r.o.PIDs)
		start   = time.Now()
		end     = start.Add(r.o.Duration)
	)
	for c := range n {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(r.o.Seed, uint64(c)))
			var mine []time.Duration
			for ctx.Err() == nil && time.Now().Before(end) {
				i := int(next.Add(1)) - 1
				if i >= max {
					next.Add(-1)
					break
				}
				t := time.Now()
				if err := do(ctx, rng, i); err != nil {
					mu.Lock()
					failed++
					if first == nil {
						first = err
					}
					mu.Unlock()
					continue
				}
				mine = append(mine, time.Since(t))
			}
			mu.Lock()
			lat = append(lat, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	took := time.Since(start)
	cpu1, cpuErr := cpuTime(r.o.PIDs)
	res := phaseResult{issued: int(next.Load()), first: first, Result: Result{
		Op: op, Size: size, Clients: n, Ops: len(lat), Errors: failed, Seconds: took.Seconds(),
		FloorMicro: micros(r.floor.of(op, size)),
	}}
	if len(lat) > 0 {
		slices.Sort(lat)
		res.PerSecond = float64(len(lat)) / took.Seconds()
		res.P50Micros, res.P99Micros = micros(lat[len(lat)/2]), micros(lat[len(lat)*99/100])
		if cpuErr == nil && len(cpu0) == len(cpu1) {
			for i := range cpu1 {
				each := micros(cpu1[i]-cpu0[i]) / float64(len(lat))
				res.CPUByPID = append(res.CPUByPID, each)
				res.CPUMicros += each
			}
		}
	}
	r.report.Results = append(r.report.Results, res.Result)
	return res
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// fill makes a body that does not compress.
func fill(p []byte, seed uint64) {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(p)
}

// Print writes the report as tables.
func (r *Report) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	if len(r.Floor) > 0 {
		fmt.Fprintf(tw, "floor: what each stage costs by itself here\t\t\n")
		for _, s := range r.Floor {
			fmt.Fprintf(tw, "%s\t%.1f µs\tper %s\t\n", s.Name, s.Micros, s.Unit)
		}
		fmt.Fprintln(tw)
	}
	fmt.Fprintf(tw, "operation\tsize\tclients\tops\terrors\tops/s\tMiB/s\tserver CPU/op\tp50\tp99\tfloor/op\tCPU ÷ floor\t\n")
	for _, x := range r.Results {
		mib, ratio, cpu, fl := "–", "–", "–", "–"
		if x.Op == "PUT" || x.Op == "GET" {
			mib = fmt.Sprintf("%.0f", x.PerSecond*float64(x.Size)/(1<<20))
		}
		if x.CPUMicros > 0 {
			cpu = fmt.Sprintf("%.0f µs", x.CPUMicros)
		}
		if x.FloorMicro > 0 {
			fl = fmt.Sprintf("%.0f µs", x.FloorMicro)
			if x.CPUMicros > 0 {
				ratio = fmt.Sprintf("%.2f", x.CPUMicros/x.FloorMicro)
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%.0f\t%s\t%s\t%.2f ms\t%.2f ms\t%s\t%s\t\n", x.Op, humanize.IBytes(uint64(x.Size)), x.Clients,
			x.Ops, x.Errors, x.PerSecond, mib, cpu, x.P50Micros/1e3, x.P99Micros/1e3, fl, ratio)
	}
	return tw.Flush()
}

// JSON writes the report as one JSON document.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
