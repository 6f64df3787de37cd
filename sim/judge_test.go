package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
)

// recover undoes every fault and lets time pass until the store says that nothing is left to do.
func (w *world) recover() {
	w.tracef("everything is repaired")
	w.skew.Store(w.ahead.Load()) // what was stamped with a later time would only be waited for
	w.links.reset()
	for _, d := range w.drives {
		d.low.Store(false)
		d.full.Store(false)
		d.mu.Lock()
		d.readEIO, d.writeEIO, d.shortOnce, d.syncEIO = 0, false, false, false
		d.mu.Unlock()
	}
	sleep(time.Minute)
	w.pursue()
	for _, d := range w.live() { // an operator sees to the drives that are out of service
		if _, ok := w.cur.set.Local(d.num); !ok || d.gone.Load() {
			w.replug(d)
		}
	}
	w.await("all drives to be here", w.here)
}

// await waits up to a virtual day for done.
func (w *world) await(what string, done func() bool) bool {
	step := time.Minute
	for t := time.Duration(0); t < 24*time.Hour; t += step {
		if done() {
			return true
		}
		sleep(step)
		step = min(2*step, time.Hour)
	}
	w.failf("waited a day for %s; pending: %s", what, w.pending())
	for _, p := range w.cur.set.Status() {
		w.tracef("path %+v", p)
	}
	if h := w.cur.healer.Load(); h != nil {
		w.tracef("healer %+v", h.Progress())
	}
	return false
}

// openDrives are the drives that are open, wherever they are.
func (w *world) openDrives() []*disk.Drive {
	if w.grid != nil {
		return w.grid.openDrives()
	}
	return w.cur.set.Open()
}

// localDrive returns an open drive by its number.
func (w *world) localDrive(num uint16) (*disk.Drive, bool) {
	for _, d := range w.openDrives() {
		if d.Num() == num {
			return d, true
		}
	}
	return nil, false
}

// quiet reports that no drive has anything left to repair, to settle or to remove.
func (w *world) quiet() bool { return w.pending() == "" }

// pending names something that is left to do; "" for nothing.
func (w *world) pending() string {
	for _, d := range w.openDrives() {
		r, err := d.Repairs(w.cur.ctx, nil, 10)
		if err != nil || len(r) > 0 {
			return fmt.Sprintf("repairs of drive %d: %+v %v", d.Num(), r, err)
		}
		u, err := d.Unsettled(w.cur.ctx, nil, 10)
		if err != nil || len(u) > 0 {
			return fmt.Sprintf("unsettled on drive %d: %+v %v", d.Num(), u, err)
		}
		g, err := d.Garbage(w.cur.ctx, w.now().Add(time.Hour), 10)
		if err != nil || len(g) > 0 {
			return fmt.Sprintf("garbage of drive %d: %+v %v", d.Num(), g, err)
		}
	}
	return ""
}

// judge compares the store, whole and idle again, with what it promised.
func (w *world) judge() {
	if w.failed() {
		return
	}
	c := &client{w: w, num: 100, rng: rand.New(rand.NewPCG(w.seed, 6))}
	all := append(slices.Clone(plainKeys), counterKey)
	if !w.await("empty lists of work", w.quiet) {
		return
	}
	// Reading meets what was damaged at rest, and asks for its repair.
	w.readAll(c, all)
	w.inspect(all, false)
	sleep(time.Minute)
	if !w.await("empty lists of work", w.quiet) {
		return
	}
	w.inspect(all, true)
	w.checkProfiles()
	w.checkWhole()
	w.checkReplaced()
	w.checkHealthy()
	w.listing(c, all)
	w.checkVersions(c)
	w.checkCounter(c)
	w.losses(c, all)
	w.endUploads()
	if w.failed() {
		return
	}
	if w.brief || w.raft && len(w.drives) > 2 {
		return // hours cost too much, those of heartbeats at that
	}
	// What a writer left behind without sealing it is swept when the process starts, or after a day.
	w.shutDown()
	if !w.boot() {
		return
	}
	// Twice the period of the collection of orphans, and their age.
	sleep(2*orphanEvery + orphanAge)
	w.await("empty lists of work", w.quiet)
	w.orphans()
	if w.failed() {
		return
	}
	w.wipe(all)
}

func (w *world) session(c *client, bucket, key string) *session {
	return &session{client: c, s: w.cur, ctx: w.cur.ctx, bucket: bucket, key: key, quick: true}
}

// eachKey visits the keys of the lasting buckets.
func eachKey(plain []string, f func(bucket, key string)) {
	for _, k := range plain {
		f(plainBucket, k)
	}
	for _, k := range versionedKeys {
		f(versionedBucket, k)
	}
}

// readAll reads every key whole; with all drives here every one must answer.
func (w *world) readAll(c *client, plain []string) {
	eachKey(plain, func(bucket, key string) {
		o := w.session(c, bucket, key)
		if _, ok := o.read(nil); !ok {
			_, err := w.cur.store.Head(w.cur.ctx, bucket, key, object.GetOptions{})
			w.failf("%s/%s cannot be read although every drive is here (HEAD: %v)", bucket, key, err)
		}
	})
}

// inspect looks at every row and every shard of the current versions.
func (w *world) inspect(plain []string, strict bool) {
	eachKey(plain, func(bucket, key string) {
		in, err := w.cur.store.Inspect(w.cur.ctx, bucket, key, true)
		if errs.Is(err, errs.NotFound) || !strict {
			return
		}
		if err != nil {
			w.failf("%s/%s: inspection: %v", bucket, key, err)
			return
		}
		for _, r := range in.Rows {
			if !r.Present {
				w.failf("%s/%s: the row on drive %d: %+v", bucket, key, r.Drive, r)
			}
		}
		for _, p := range in.Shards {
			if p.Status != object.ShardVerified {
				w.failf("%s/%s: a shard is %v although nothing is left to repair: %+v", bucket, key, p.Status, p)
			}
		}
	})
}

// listing compares LIST with the GETs, key by key.
func (w *world) listing(c *client, plain []string) {
	listed := map[string]string{}
	for _, b := range []string{plainBucket, versionedBucket} {
		p, err := w.cur.store.List(w.cur.ctx, b, object.ListOptions{Limit: 1000})
		if err != nil {
			w.failf("LIST of %s: %v", b, err)
			return
		}
		for i := range p.Objects {
			listed[name(b, p.Objects[i].Key)] = p.Objects[i].ETag
		}
	}
	eachKey(plain, func(bucket, key string) {
		obj, err := w.cur.store.Head(w.cur.ctx, bucket, key, object.GetOptions{})
		etag := ""
		if err == nil {
			etag = obj.Info.ETag
		} else if !errs.Is(err, errs.NotFound) {
			w.failf("HEAD of %s/%s: %v", bucket, key, err)
		}
		if listed[name(bucket, key)] != etag {
			w.failf("LIST shows %s/%s with ETag %q, HEAD with %q", bucket, key, listed[name(bucket, key)], etag)
		}
		delete(listed, name(bucket, key))
	})
	for k := range listed {
		w.failf("LIST shows %s, which nobody wrote", k)
	}
}

// checkVersions reads every version that was acknowledged.
func (w *world) checkVersions(c *client) {
	p, err := w.cur.store.ListVersions(w.cur.ctx, versionedBucket, object.ListVersionsOptions{Limit: 1000})
	if err != nil {
		w.failf("listing versions: %v", err)
		return
	}
	have := map[string]bool{}
	for i := range p.Versions {
		have[p.Versions[i].Key+" "+p.Versions[i].VersionID] = true
	}
	for _, v := range w.versions {
		if !have[v.key+" "+v.id] {
			w.failf("version %s of %s, acknowledged, is not listed", v.id, v.key)
			continue
		}
		got, res := w.session(c, versionedBucket, v.key).fetch(w.cur.ctx, object.GetOptions{VersionID: &v.id})
		if res != "ok" || got != v.v {
			w.failf("version %s of %s, acknowledged, reads as %v (%s)", v.id, v.key, got, res)
		}
	}
}

// checkCounter compares the counter with the increments that were acknowledged.
func (w *world) checkCounter(c *client) {
	v, ok := w.session(c, plainBucket, counterKey).read(nil)
	got := 0
	if v != nil {
		got = v.count
	}
	if ok && (got < w.wins || got > w.wins+w.maybe) {
		w.failf("the counter is %d after %d increments and %d of unknown outcome", got, w.wins, w.maybe)
	}
}

// losses takes m drives away, and then damages more shards of an object than it can lose.
func (w *world) losses(c *client, plain []string) {
	m := int(w.profile.Parity)
	var away []*simDrive
	live := w.live()
	for _, i := range w.rng.Perm(len(live))[:m] {
		away = append(away, live[i])
	}
	for _, d := range away {
		d.gone.Store(true)
	}
	w.tracef("%d drives are lost", m)
	sleep(time.Minute)
	w.readAll(c, plain)
	for _, d := range away {
		d.gone.Store(false)
	}
	w.await("all drives to be here", w.here)
	w.await("empty lists of work", w.quiet)
}

// endUploads aborts what clients left behind.
func (w *world) endUploads() {
	for _, b := range []string{plainBucket, versionedBucket} {
		p, err := w.cur.store.ListUploads(w.cur.ctx, b, object.ListUploadsOptions{Limit: 1000})
		if err != nil {
			w.failf("listing uploads of %s: %v", b, err)
			continue
		}
		for _, u := range p.Uploads {
			if err := w.cur.store.AbortUpload(w.cur.ctx, b, u.Key, u.UploadID); err != nil && !errs.Is(err, errs.NotFound) {
				w.failf("aborting upload %s of %s: %v", u.UploadID, u.Key, err)
			}
		}
	}
}

// eachShard visits the shard rows of all drives.
func (w *world) eachShard(f func(d *disk.Drive, r *disk.ShardRow)) {
	for _, d := range w.openDrives() {
		var last erasure.ShardID
		for {
			rows, err := d.ShardRows(w.cur.ctx, last.Data, last.Chunk, 500)
			if err != nil {
				w.failf("the shards of drive %d: %v", d.Num(), err)
				return
			}
			for i := range rows {
				f(d, &rows[i])
			}
			if len(rows) < 500 {
				break
			}
			last = rows[len(rows)-1].ID
		}
	}
}

// orphans checks that every shard is one that a record names, and every file that of a shard.
func (w *world) orphans() {
	files := map[uint16]int{}
	w.eachShard(func(d *disk.Drive, r *disk.ShardRow) {
		if r.Inline == nil {
			files[d.Num()]++
		}
		named, err := d.Names(w.cur.ctx, r.Address, r.ID.Data)
		if err == nil && !named && r.ID.Chunk > 0 {
			named, err = w.namedElsewhere(r)
		}
		if err != nil || !named {
			w.failf("shard %v on drive %d is named by no record (%v): %s", r.ID, d.Num(), err, w.describe(d, r))
		}
	})
	for _, d := range w.live() {
		if n := len(shardFiles(d)); n != files[d.num] {
			w.failf("drive %d has %d shard files and %d rows of such", d.num, n, files[d.num])
		}
	}
}

// namedElsewhere asks the drives of the register: later chunks lie on other partitions.
func (w *world) namedElsewhere(r *disk.ShardRow) (bool, error) {
	l := w.cur.control.Layout()
	for _, num := range l.Group(l.PartitionOf(r.Address.Bucket, r.Address.Key)).Drives {
		if d, ok := w.localDrive(num); ok {
			if named, err := d.Names(w.cur.ctx, r.Address, r.ID.Data); err != nil || named {
				return named, err
			}
		}
	}
	return false, nil
}

// wipe deletes everything, after which nothing may be left on any drive.
func (w *world) wipe(plain []string) {
	ctx := context.Background()
	for _, b := range []string{plainBucket, versionedBucket, churnBucket} {
		p, err := w.cur.store.ListVersions(ctx, b, object.ListVersionsOptions{Limit: 1000})
		if errs.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			w.failf("listing versions of %s: %v", b, err)
			return
		}
		for i := range p.Versions {
			v := &p.Versions[i]
			if _, err := w.cur.store.Delete(ctx, b, v.Key, object.DeleteOptions{VersionID: &v.VersionID}); err != nil {
				w.failf("deleting version %s of %s/%s: %v", v.VersionID, b, v.Key, err)
			}
		}
		if err := w.cur.store.DeleteBucket(ctx, b); err != nil {
			w.failf("deleting bucket %s: %v", b, err)
		}
	}
	sleep(2*orphanEvery + orphanAge)
	w.await("empty lists of work", w.quiet)
	w.eachShard(func(d *disk.Drive, r *disk.ShardRow) {
		w.failf("shard %v is left on drive %d of an empty store: %s", r.ID, d.Num(), w.describe(d, r))
	})
	for _, d := range w.live() {
		if files := shardFiles(d); len(files) > 0 {
			w.failf("files are left on drive %d of an empty store: %v", d.num, files)
		}
	}
}

// describe says what is known of a shard that should not be there.
func (w *world) describe(d *disk.Drive, r *disk.ShardRow) string {
	l := w.cur.control.Layout()
	g := l.Group(l.PartitionOf(r.Address.Bucket, r.Address.Key))
	view, err := w.cur.meta.Read(w.cur.ctx, g, r.Address, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
	return fmt.Sprintf("%d %s in bucket %d, sealed %v ago, members %v, chosen %+v (%v)", r.Address.Kind, r.Address.Key, r.Address.Bucket,
		w.now().Sub(r.Sealed).Round(time.Second), g.Drives, view, err)
}
