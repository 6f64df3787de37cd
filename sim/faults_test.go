package sim

import (
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// faultNames are the faults of the schedule, in the order of their numbers.
var faultNames = []string{"hang", "slow", "pull", "write-eio", "short-write", "sync-eio", "read-eio", "low", "full", "flip", "power", "restart", "clock", "majority", "replace", "replace"}

// fault makes something happen and returns what undoes it; nil for nothing to undo.
func (w *world) fault(o options) func() {
	kind := faultNames[w.rng.IntN(len(faultNames))]
	if len(o.faults) > 0 {
		kind = o.faults[w.rng.IntN(len(o.faults))]
	}
	live := w.live()
	d := live[w.rng.IntN(len(live))]
	num := d.num
	w.count(kind)
	w.tracef("fault: %s of drive %d", kind, num)
	switch kind {
	case "none":
	case "hang":
		w.links.hang(num, 60*time.Second)
	case "slow":
		w.links.slowDown(num, time.Duration(1+w.rng.IntN(5000))*time.Millisecond)
		return func() { w.links.slowDown(num, 0) }
	case "pull":
		d.gone.Store(true)
		return func() { w.replug(d) }
	case "write-eio":
		d.mu.Lock()
		d.writeEIO = true
		d.mu.Unlock()
		return func() { w.replug(d) }
	case "short-write":
		d.mu.Lock()
		d.shortOnce = true
		d.mu.Unlock()
		return func() { w.replug(d) }
	case "sync-eio":
		d.mu.Lock()
		d.syncEIO = true
		d.mu.Unlock()
		return func() { w.replug(d) }
	case "read-eio":
		d.mu.Lock()
		d.readEIO = 0.3
		d.mu.Unlock()
		return func() {
			d.mu.Lock()
			d.readEIO = 0
			d.mu.Unlock()
		}
	case "low":
		d.low.Store(true)
		return func() { d.low.Store(false) }
	case "full":
		d.full.Store(true)
		return func() { d.full.Store(false) }
	case "flip":
		w.flip(w.weak, 3)
	case "power":
		w.powerCut()
		sleep(time.Duration(w.rng.IntN(120)) * time.Second)
		w.boot()
	case "restart":
		w.shutDown()
		w.boot()
	case "clock":
		w.skew.Store(int64(w.rng.IntN(3)-1) * int64(24*time.Hour))
		w.ahead.Store(max(w.ahead.Load(), w.skew.Load()))
		return func() { w.skew.Store(0) }
	case "majority":
		var away []*simDrive
		for _, j := range w.rng.Perm(len(live))[:len(live)/2+1] {
			live[j].gone.Store(true)
			away = append(away, live[j])
		}
		return func() {
			for _, d := range away {
				w.replug(d)
			}
		}
	case "replace":
		if w.spare() {
			return w.replace(w.weak)
		}
	}
	return nil
}

// count keeps the books of the faults.
func (w *world) count(kind string) { w.faults[kind]++ }

// replug brings a drive back that was pulled, or is out of service: it was without power meanwhile.
func (w *world) replug(d *simDrive) {
	d.gone.Store(true)
	sleep(20 * time.Second) // long enough to be missed
	d.replug(d.clone())
	d.gone.Store(false)
	sleep(20 * time.Second)
}

// spare reports whether a shard may be lost for good at any time: the store promises W − k of them
// at the moment of the answer.
func (w *world) spare() bool {
	k, m, n := int(w.profile.Data), int(w.profile.Parity), w.profile.N()
	r := min(max(m-1, 0), 1)
	return max(n/2+1, k+r) > k
}

// flip damages up to count shard files at rest.
func (w *world) flip(d *simDrive, count int) {
	if !w.spare() {
		return
	}
	w.flipped += damage(d, count, w.rng.IntN)
}

// shardFiles lists the shard files on a medium.
func shardFiles(d *simDrive) (out []string) {
	d.mu.Lock()
	m := d.cur.fs
	d.mu.Unlock()
	dirs, err := m.List(d.dir + "/shards")
	if err != nil {
		return nil
	}
	slices.Sort(dirs)
	for _, dir := range dirs {
		files, err := m.List(d.dir + "/shards/" + dir)
		if err != nil {
			continue
		}
		slices.Sort(files)
		for _, f := range files {
			if !strings.HasPrefix(f, ".") {
				out = append(out, d.dir+"/shards/"+dir+"/"+f)
			}
		}
	}
	return out
}

// damage flips one bit in each of up to count shard files.
func damage(d *simDrive, count int, intn func(int) int) (done int) {
	files := shardFiles(d)
	for ; len(files) > 0 && done < count; done++ {
		i := intn(len(files))
		flipBit(d, files[i], intn)
		files = slices.Delete(files, i, i+1)
	}
	return done
}

func flipBit(d *simDrive, name string, intn func(int) int) {
	d.mu.Lock()
	m := d.cur.fs
	d.mu.Unlock()
	f, err := m.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return
	}
	off := int64(intn(int(fi.Size())))
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return
	}
	b[0] ^= 1 << intn(8)
	if _, err := f.WriteAt(b[:], off); err == nil {
		_ = f.Sync()
	}
}
