package disk

import (
	"fmt"
	"time"

	"github.com/ostraka/ostraka/erasure"
)

const (
	sweepDirEvery = 20 * time.Millisecond // pause between two directories of the sweep at start
	sweepBatch    = 256                   // files between two pauses within a directory
	writerIdle    = 24 * time.Hour        // an unsealed shard that nobody touched for so long is given up
)

// pause waits, and reports false when the drive closes or is out.
func (d *Drive) pause(t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return d.fault.Load() == nil
	case <-d.faulted:
	case <-d.ctx.Done():
	}
	return false
}

// sweepUnsealed removes, once after Open and slowly, the shard files that have neither a row nor a
// writer: nobody can seal them any more.
func (d *Drive) sweepUnsealed() {
	d.stats.sweeping.Store(true)
	defer d.stats.sweeping.Store(false)
	for i := 0; i < 256; i++ {
		if !d.pause(sweepDirEvery) {
			return
		}
		dir := d.fs.PathJoin(d.path, shardsDir, fmt.Sprintf("%02x", i))
		names, err := d.fs.List(dir)
		if err != nil {
			d.onReadFailed("list", dir, err)
			continue
		}
		for n, name := range names {
			if n%sweepBatch == sweepBatch-1 && !d.pause(sweepDirEvery) || d.ctx.Err() != nil || d.fault.Load() != nil {
				return
			}
			id, ok := parseShardName(name)
			if !ok {
				d.log.Warn("a file that is no shard lies among the shards; it is left alone", "file", d.fs.PathJoin(dir, name))
				continue
			}
			d.sweepFile(id)
		}
	}
	if n := d.stats.swept.Load(); n > 0 {
		d.log.Info("unsealed shards of an earlier run were removed", "count", n)
	}
}

// sweepFile removes the file of id if it has neither a row nor a writer.
func (d *Drive) sweepFile(id erasure.ShardID) {
	c := shardChunk{id.Data, id.Chunk}
	defer d.lockShard(c).Unlock()
	if w := d.writer(c); w != nil && w.spec.ID == id {
		return
	}
	row, err := d.row(c)
	if err != nil || row != nil && row.ID == id && row.Inline == nil {
		return
	}
	if d.removeFile(d.shardPath(id)) == nil {
		d.stats.swept.Add(1)
	}
}

// sweepGarbage removes, again and again, what decided rows let go of.
func (d *Drive) sweepGarbage() {
	if d.o.SweepEvery < 0 {
		return
	}
	for d.pause(d.o.SweepEvery) {
		d.dropIdleWriters()
		if err := d.collect(d.ctx); err != nil && d.ctx.Err() == nil && d.fault.Load() == nil {
			d.log.Warn("garbage was not collected", "cause", err)
		}
	}
}

// dropIdleWriters gives up unsealed shards that nobody touched for a day: their gateway is gone, or
// finds them missing when it wakes up.
func (d *Drive) dropIdleWriters() {
	limit := d.o.Now().Add(-writerIdle)
	d.mu.Lock()
	var idle []*shardWriter
	for _, w := range d.writers {
		if w.idleSince(limit) {
			idle = append(idle, w)
		}
	}
	d.mu.Unlock()
	for _, w := range idle {
		w.Abort()
	}
}
