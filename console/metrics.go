package console

import (
	"context"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/s3api"
)

// Metrics counts requests as they are answered, and collects the rest when it is scraped. It is an
// s3api.Observer. All names begin with ostraka_, besides those of the Go runtime and the process.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	first    *prometheus.HistogramVec
	received prometheus.Counter
	sent     prometheus.Counter
	quorum   *prometheus.CounterVec
}

// Sources is what Metrics reads when it is scraped.
type Sources struct {
	Drives  Drives
	Samples *Sampler
	Stats   func() object.Stats
	Backlog Backlog
	Healer  Healer
	Version string
}

// latencies are the bounds of the histograms, in seconds: from a row in memory to a large upload.
var latencies = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120}

// NewMetrics makes the metrics and their registry.
func NewMetrics(src Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ostraka_requests_total",
			Help: "S3 requests answered, by operation, HTTP status and S3 error code."}, []string{"operation", "status", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "ostraka_request_seconds",
			Help: "Time from the request's head to the end of the answer.", Buckets: latencies}, []string{"operation"}),
		first: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "ostraka_request_first_byte_seconds",
			Help: "Time from the request's head to the head of the answer.", Buckets: latencies}, []string{"operation"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "ostraka_received_bytes_total", Help: "Bytes of request bodies."}),
		sent:     prometheus.NewCounter(prometheus.CounterOpts{Name: "ostraka_sent_bytes_total", Help: "Bytes of answers' bodies."}),
		quorum: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ostraka_quorum_failures_total",
			Help: "Requests that failed because too few drives answered, by what that means: unavailable, or outcome unknown."}, []string{"kind"}),
	}
	for _, k := range []errs.Kind{errs.Unavailable, errs.Unknown} {
		m.quorum.WithLabelValues(k.String())
	}
	m.registry.MustRegister(m.requests, m.seconds, m.first, m.received, m.sent, m.quorum, newSnapshot(src),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Observe implements s3api.Observer.
func (m *Metrics) Observe(_ context.Context, r *s3api.Record) {
	op := r.Operation
	if op == "" {
		op = "none"
	}
	m.requests.WithLabelValues(op, strconv.Itoa(r.Status), r.Code).Inc()
	m.seconds.WithLabelValues(op).Observe(r.Duration.Seconds())
	m.first.WithLabelValues(op).Observe(r.FirstByte.Seconds())
	m.received.Add(float64(max(r.BytesIn, 0)))
	m.sent.Add(float64(max(r.BytesOut, 0)))
	if k := errs.KindOf(r.Err); r.Err != nil && (k == errs.Unavailable || k == errs.Unknown) {
		m.quorum.WithLabelValues(k.String()).Inc()
	}
}

// snapshot collects what other packages count.
type snapshot struct {
	src                                               Sources
	build                                             *prometheus.Desc
	state, total, free, reserve, store, debt, ioError *prometheus.Desc
	hits, misses, hitBytes, added                     *prometheus.Desc
	backlog, asked, damaged, rereads                  *prometheus.Desc
	heal                                              healDescs
}

func newSnapshot(src Sources) *snapshot {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &snapshot{
		src:      src,
		build:    d("ostraka_build_info", "1, with the version.", "version"),
		state:    d("ostraka_drive_state", "1 for the state that the drive is in.", "path", "state"),
		total:    d("ostraka_drive_total_bytes", "Size of the drive's file system.", "path"),
		free:     d("ostraka_drive_free_bytes", "Free bytes of the drive's file system.", "path"),
		reserve:  d("ostraka_drive_reserve_bytes", "Free bytes below which new shards are refused.", "path"),
		store:    d("ostraka_drive_record_store_bytes", "Size of the drive's record store.", "path"),
		debt:     d("ostraka_drive_compaction_debt_bytes", "Bytes that the record store has yet to compact.", "path"),
		ioError:  d("ostraka_drive_errors_total", "I/O errors of the drive since it was opened.", "path", "kind"),
		hits:     d("ostraka_cache_hits_total", "Blocks that the read cache had."),
		misses:   d("ostraka_cache_misses_total", "Blocks that the read cache had not."),
		hitBytes: d("ostraka_cache_hit_bytes_total", "Bytes served from the read cache."),
		added:    d("ostraka_cache_added_blocks_total", "Blocks put into the read cache."),
		backlog:  d("ostraka_repair_backlog", "Repairs that are outstanding."),
		asked:    d("ostraka_repairs_asked_total", "Repairs that reads and writes of this process asked for."),
		damaged:  d("ostraka_damaged_shards_total", "Shards that reads found missing or damaged."),
		rereads:  d("ostraka_rereads_total", "Reads that began again at the record because a shard was gone."),
		heal:     newHealDescs(d),
	}
}

// Describe implements prometheus.Collector.
func (s *snapshot) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.build, s.state, s.total, s.free, s.reserve, s.store, s.debt, s.ioError, s.hits, s.misses,
		s.hitBytes, s.added, s.backlog, s.asked, s.damaged, s.rereads} {
		ch <- d
	}
	s.heal.describe(ch)
}

// driveStates are all values of DriveStatus.State.
var driveStates = []string{"online", "full", "absent", "empty", "foreign", "quarantined", "retired", "replaced", "faulty"}

// Collect implements prometheus.Collector.
func (s *snapshot) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(s.build, 1, s.src.Version)
	ctx, cancel := context.WithTimeout(context.Background(), sampleWait)
	defer cancel()
	samples, paths := s.src.Samples.Sample(ctx), s.src.Drives.Status()
	for i, d := range driveStatuses(paths, samples) {
		for _, state := range driveStates {
			v := 0.0
			if d.State == state {
				v = 1
			}
			gauge(s.state, v, d.Path, state)
		}
		sample, ok := samples[paths[i].Num]
		if !ok || !paths[i].Known {
			continue
		}
		info := sample.Info
		gauge(s.total, float64(info.Total), d.Path)
		gauge(s.free, float64(info.Avail), d.Path)
		gauge(s.reserve, float64(info.Reserve), d.Path)
		gauge(s.store, float64(info.StoreBytes), d.Path)
		gauge(s.debt, float64(info.CompactionDebt), d.Path)
		count(s.ioError, info.ReadErrors, d.Path, "read")
		count(s.ioError, info.WriteErrors, d.Path, "write")
		count(s.ioError, info.SlowWrites, d.Path, "slow write")
	}
	st := s.src.Stats()
	count(s.hits, st.CacheHits)
	count(s.misses, st.CacheMisses)
	count(s.hitBytes, st.CacheHitBytes)
	count(s.added, st.CacheAdded)
	count(s.asked, st.RepairsAsked)
	count(s.damaged, st.DamagedShards)
	count(s.rereads, st.Rereads)
	if n, err := s.src.Backlog.Backlog(ctx); err == nil {
		gauge(s.backlog, float64(n))
	}
	at := map[uint16]string{}
	for _, p := range paths {
		if p.Known {
			at[p.Num] = p.Path
		}
	}
	s.heal.collect(s.src.Healer, at, gauge, count)
}
