package sim

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// The profile of REDUCED_REDUNDANCY changes in the middle of a run, and what lies in another one is written again
// beneath the clients. It always has the parity that the run's promises need, whatever its width.

// class draws the storage class of a write. The real control plane has no command that changes its profile.
func (o *session) class() string {
	if o.w.raft || o.w.grid != nil || o.intn(2) == 0 {
		return ""
	}
	return object.ClassReduced
}

// others are the profiles that bodies may have in partitions of the run's profile without that more can be lost.
func (w *world) others() (list []erasure.Profile) {
	n, m := w.profile.N(), w.profile.Parity
	for k := range uint8(n) {
		for parity := m; int(k+1+parity) <= n; parity++ {
			list = append(list, erasure.Profile{Data: k + 1, Parity: parity})
		}
	}
	return list
}

// recast gives the class another profile, sometimes, and has the re-coding begin at once.
func (w *world) recast() {
	if w.raft || w.grid != nil || w.rng.IntN(3) > 0 {
		return
	}
	list := w.others()
	p := list[w.rng.IntN(len(list))]
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	l, err := w.table.layout.WithReduced(p)
	if err != nil {
		panic(err)
	}
	if p != w.table.layout.Reduced() {
		w.faults["recast"]++
	}
	w.table.layout = l
	if w.cur != nil {
		w.cur.healer.Load().Trigger()
	}
}

// named is a body that some drive's row names.
type named struct {
	data  metadata.Data
	class string
	what  string
	open  bool // of an upload, or one of its parts: it keeps its profile until it is an object
}

// bodies are all bodies that rows of members name, by their ids.
func (w *world) bodies() map[erasure.DataID]named {
	all := map[erasure.DataID]named{}
	l := w.cur.control.Layout()
	note := func(a *metadata.Address, v *metadata.Version) {
		for first := true; v != nil; v, first = v.Completed, false {
			what := fmt.Sprintf("%d %s", a.Kind, a.Key)
			open := a.Kind != metadata.KindObject || !first
			for _, d := range []*metadata.Data{v.Data, v.Manifest} {
				if d == nil {
					continue
				}
				class := v.Class
				if d == v.Manifest {
					class = ""
				}
				if was, ok := all[d.ID]; !ok || was.open {
					all[d.ID] = named{*d, class, what, open}
				}
			}
		}
	}
	for _, d := range w.openDrives() {
		for after := (*metadata.Address)(nil); ; {
			r, err := d.Rows(w.cur.ctx, &metadata.RowsRequest{After: after})
			if err != nil {
				w.failf("the rows of drive %d: %v", d.Num(), err)
				return all
			}
			for i := range r.Rows {
				x := &r.Rows[i]
				g := l.Group(l.PartitionOf(x.Address.Bucket, x.Address.Key))
				if x.Row == nil || g.Position(d.Num()) < 0 {
					continue
				}
				note(&x.Address, x.Row.State.Current)
				for j := range x.Row.State.Dead {
					if x.Address.Kind == metadata.KindPart {
						note(&x.Address, &metadata.Version{Data: &x.Row.State.Dead[j].Data})
					}
				}
				w.olderVersions(d.Num(), g, x, func(v *metadata.Version) { note(&x.Address, v) })
			}
			if !r.More {
				break
			}
			after = r.Next
		}
	}
	return all
}

// olderVersions visits the version rows of a register on a drive.
func (w *world) olderVersions(num uint16, g placement.Group, x *metadata.RegisterRow, f func(v *metadata.Version)) {
	d, ok := w.localDrive(num)
	if !ok || x.Row.State.Older == 0 {
		return
	}
	for below := ^uint64(0); ; {
		r, err := d.Versions(w.cur.ctx, &metadata.VersionsRequest{Address: x.Address, Below: below,
			Header: metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch}})
		if err != nil {
			w.failf("the versions of %s on drive %d: %v", x.Address.Key, num, err)
			return
		}
		for i := range r.Versions {
			f(&r.Versions[i])
			below = r.Versions[i].Seq
		}
		if !r.More || len(r.Versions) == 0 {
			return
		}
	}
}

// checkProfiles waits until all data have the profile of their class.
func (w *world) checkProfiles() {
	if w.raft || w.grid != nil || w.brief && w.faults["recast"] == 0 {
		return
	}
	l := w.cur.control.Layout()
	old := func() (list []string) {
		for id, b := range w.bodies() {
			want := w.cur.store.ProfileOf(l, b.class, 0)
			if b.data.Profile != want && !b.open {
				list = append(list, fmt.Sprintf("%v of %s: %v, not %v", id, b.what, b.data.Profile, want))
			}
		}
		slices.Sort(list)
		return list
	}
	if !w.await("all data to have the profile of their class", func() bool { return len(old()) == 0 }) {
		w.failf("still old: %v", old())
	}
	w.await("empty lists of work", w.quiet)
}
