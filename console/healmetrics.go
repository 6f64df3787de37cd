package console

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ostraka/ostraka/heal"
)

// healDescs are the metrics of healing, rebuilds, checks and scrubs.
type healDescs struct {
	state, wants, blocked, lost, active, failures, paused, rate *prometheus.Desc
	verified, verifiedRegisters, verifiedBytes, since           *prometheus.Desc

	jobRunning, jobDone, jobTotal, jobShards, jobBytes, jobLeft, jobFound, jobRepaired *prometheus.Desc

	scrubRunning, scrubProgress, scrubLast, scrubShards, scrubBytes, scrubFound *prometheus.Desc
}

func newHealDescs(d func(name, help string, labels ...string) *prometheus.Desc) healDescs {
	return healDescs{
		state:             d("ostraka_heal_state", "1 for the state that the store is in, as far as healing knows.", "state"),
		wants:             d("ostraka_heal_wanting_registers", "Records that want work."),
		blocked:           d("ostraka_heal_blocked_registers", "Of the records that want work, those that wait for drives."),
		lost:              d("ostraka_heal_lost_registers", "Records of which too few good shards are left: 10 stands for 10 or more."),
		active:            d("ostraka_heal_active_registers", "Records that are being tended."),
		failures:          d("ostraka_heal_failures_total", "Repairs that failed with all drives there."),
		paused:            d("ostraka_heal_paused", "1 while repairs, rebuilds and checks are paused by an operator."),
		rate:              d("ostraka_heal_rate_limit_bytes_per_second", "What background work may read and write; 0: no limit."),
		verified:          d("ostraka_heal_verified_timestamp_seconds", "When the last complete check without findings ended; 0: never."),
		verifiedRegisters: d("ostraka_heal_verified_registers", "Records that the last complete check without findings verified."),
		since:             d("ostraka_heal_written_since_shards", "Shards on this process's drives written since the last complete check began."),
		verifiedBytes:     d("ostraka_heal_verified_bytes", "Bytes of shards that the last complete check without findings verified."),

		jobRunning:  d("ostraka_heal_job_running", "1 while the rebuild of a drive, or the check, runs; 0 while it is paused, waits, or is done.", "kind", "path"),
		jobDone:     d("ostraka_heal_job_done_registers", "Records that the job is through with.", "kind", "path"),
		jobTotal:    d("ostraka_heal_job_estimated_registers", "Records that the job has to go through, estimated; 0: not known.", "kind", "path"),
		jobShards:   d("ostraka_heal_job_shards", "Shards that the job wrote and read back, or verified.", "kind", "path"),
		jobBytes:    d("ostraka_heal_job_bytes", "Bytes of these shards.", "kind", "path"),
		jobLeft:     d("ostraka_heal_job_remaining_seconds", "Time that the job still takes, estimated; absent: not known.", "kind", "path"),
		jobFound:    d("ostraka_heal_job_findings", "What the job found missing or damaged.", "kind", "path"),
		jobRepaired: d("ostraka_heal_job_repaired_findings", "Of the findings, those that were repaired.", "kind", "path"),

		scrubRunning:  d("ostraka_scrub_running", "1 while a round of the drive's scrub is under way and not paused.", "path"),
		scrubProgress: d("ostraka_scrub_progress_ratio", "How much of the round is done, estimated.", "path"),
		scrubLast:     d("ostraka_scrub_completed_timestamp_seconds", "When the last round ended; 0: never.", "path"),
		scrubShards:   d("ostraka_scrub_round_shards", "Shards verified in this round, or in the last one.", "path"),
		scrubBytes:    d("ostraka_scrub_round_bytes", "Bytes verified in this round, or in the last one.", "path"),
		scrubFound:    d("ostraka_scrub_round_findings", "Damaged shards found in this round, or in the last one.", "path"),
	}
}

func (h *healDescs) describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{h.state, h.wants, h.blocked, h.lost, h.active, h.failures, h.paused, h.rate, h.verified, h.verifiedRegisters,
		h.verifiedBytes, h.since, h.jobRunning, h.jobDone, h.jobTotal, h.jobShards, h.jobBytes, h.jobLeft, h.jobFound, h.jobRepaired, h.scrubRunning,
		h.scrubProgress, h.scrubLast, h.scrubShards, h.scrubBytes, h.scrubFound} {
		ch <- d
	}
}

var healStates = []string{heal.StateHealthy, heal.StateWorking, heal.StateDegraded, heal.StateUnknown}

func (h *healDescs) collect(from Healer, at map[uint16]string, gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string)) {
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	s := from.Status()
	for _, state := range healStates {
		gauge(h.state, flag(s.State == state), state)
	}
	gauge(h.wants, float64(s.Backlog))
	gauge(h.blocked, float64(s.Blocked))
	lost, _ := from.Lost()
	gauge(h.lost, float64(len(lost)))
	gauge(h.active, float64(s.Active))
	count(h.failures, s.Failed)
	gauge(h.paused, flag(s.Settings.Paused))
	gauge(h.rate, float64(s.Settings.Rate))
	verified := 0.0
	if !s.Verified.IsZero() {
		verified = float64(s.Verified.Unix())
	}
	gauge(h.verified, verified)
	gauge(h.verifiedRegisters, float64(s.VerifiedRegisters))
	gauge(h.verifiedBytes, float64(s.VerifiedBytes))
	gauge(h.since, float64(s.Since))
	seen := map[[2]string]bool{}
	for _, j := range s.Jobs { // running first, then newest first: the first of a kind on a path is the one to tell of
		id := [2]string{j.Kind, at[j.Drive]}
		if seen[id] {
			continue
		}
		seen[id] = true
		gauge(h.jobRunning, flag(j.State == heal.JobRunning), id[:]...)
		gauge(h.jobDone, float64(j.Done), id[:]...)
		gauge(h.jobTotal, float64(j.Total), id[:]...)
		gauge(h.jobShards, float64(j.Shards), id[:]...)
		gauge(h.jobBytes, float64(j.Bytes), id[:]...)
		if j.Remaining > 0 {
			gauge(h.jobLeft, j.Remaining.Seconds(), id[:]...)
		}
		gauge(h.jobFound, float64(j.Bad), id[:]...)
		gauge(h.jobRepaired, float64(j.Repaired), id[:]...)
	}
	told := map[string]bool{}
	for _, d := range from.Scrubs() {
		path, ok := at[d.Drive]
		if !ok || told[path] {
			continue
		}
		told[path] = true
		gauge(h.scrubRunning, flag(d.State == heal.JobRunning), path)
		gauge(h.scrubProgress, min(max(finite(d.Done), 0), 1), path)
		last := 0.0
		if !d.LastDone.IsZero() {
			last = float64(d.LastDone.Unix())
		}
		gauge(h.scrubLast, last, path)
		gauge(h.scrubShards, float64(d.Shards), path)
		gauge(h.scrubBytes, float64(d.Bytes), path)
		gauge(h.scrubFound, float64(d.Bad), path)
	}
}
