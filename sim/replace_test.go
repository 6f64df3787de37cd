package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// Which drive may be lost for good. The store promises W − k shards to spare at the moment of an answer,
// and all m once nothing is left to repair. So one drive, the weak one, loses for good what it holds,
// at any time and as often as it likes: its shards are damaged, and it is replaced. Another one becomes
// the weak one only when everything is whole. Without any to spare (2+1), a drive is replaced only
// when everything is whole, and the clients work during the rebuild.

// live are the slots whose drives the store has, or gets.
func (w *world) live() (out []*simDrive) {
	for _, d := range w.drives {
		if !d.retired {
			out = append(out, d)
		}
	}
	return out
}

// wanted is a replacement that the operator began: it is tried until the control plane has it.
type wanted struct {
	old uint16
	at  *simDrive
	id  disk.ID
}

// replaceable reports whether the store can go on without one drive for good.
func (w *world) replaceable() bool {
	// The control plane does not outlive the loss of its only voter.
	return w.profile.Parity > 0 && (!w.raft || len(w.live()) > 2) && w.wanted == nil
}

// replace puts another drive in the place of d: in its slot, or in a new one. Somewhere in the middle
// the power may go, and another drive be away. It returns what brings back who is away.
func (w *world) replace(d *simDrive) func() {
	if w.cur == nil || !w.replaceable() {
		return nil
	}
	w.links.atLeast(8 * time.Millisecond)
	old, at := d.num, d
	var away []*simDrive
	if w.rng.IntN(3) == 0 {
		at = w.addSlot()
		w.shutDown() // to make the path known
		if !w.boot() {
			return nil
		}
		if w.rng.IntN(2) == 0 {
			d.gone.Store(true)
			away = append(away, d) // the old drive comes back
		}
	} else {
		d.gone.Store(true)
		sleep(20 * time.Second) // long enough to be missed
		d.replug(newDisk(d.dir))
		d.gone.Store(false)
	}
	if others := slices.DeleteFunc(w.live(), func(o *simDrive) bool { return o == d || o == at }); len(others) > 0 && w.rng.IntN(3) == 0 {
		o := others[w.rng.IntN(len(others))]
		w.tracef("meanwhile drive %d is away", o.num)
		o.gone.Store(true)
		away = append(away, o)
		sleep(time.Duration(w.rng.IntN(20)) * time.Second)
	}
	w.wanted = &wanted{old: old, at: at, id: disk.NewID()}
	w.pursue()
	for range w.rng.IntN(4) {
		sleep(time.Duration(w.rng.Int64N(int64([]time.Duration{400 * time.Millisecond, 4 * time.Second, 20 * time.Second}[w.rng.IntN(3)]))))
		w.count(w.stage())
		w.powerCut()
		sleep(time.Duration(w.rng.IntN(30)) * time.Second)
		w.boot()
	}
	return func() {
		for _, o := range away {
			w.replug(o)
		}
	}
}

// stage names what a power cut hits now.
func (w *world) stage() string {
	if w.cur != nil {
		if list := w.cur.control.Replacements(); len(list) > 0 {
			if list[0].Phase == cluster.Shards {
				return "power in phase shards"
			}
			return "power in phase membership"
		}
	}
	return "power after a replacement"
}

// addSlot adds an empty slot, of which a process learns when it starts.
func (w *world) addSlot() *simDrive {
	dir := fmt.Sprintf("/d%d", len(w.drives)+1)
	d := &simDrive{dir: dir, rng: rand.New(rand.NewPCG(w.rng.Uint64(), 2)), cur: &medium{fs: newDisk(dir)}, retired: true}
	w.fs.add(d)
	w.drives = append(w.drives, d)
	return d
}

// pursue begins the replacement that is wanted, if the control plane lets it.
func (w *world) pursue() {
	if w.wanted == nil || w.cur == nil {
		return
	}
	ctx, cancel := context.WithTimeout(w.cur.ctx, time.Minute)
	defer cancel()
	for {
		r, err := w.cur.control.BeginReplace(ctx, w.wanted.old, placement.Drive{ID: w.wanted.id}, w.wanted.at.dir)
		if err == nil {
			w.tracef("drive %d is replaced by %d in %s", r.Old, r.New, r.Path)
			for _, d := range w.drives {
				d.retired = d.retired || d.num == r.Old
			}
			at := w.wanted.at
			at.num, at.retired = r.New, false
			w.weak, w.wanted = at, nil
			w.olds = append(w.olds, r.Old)
			w.count("replaced")
			w.cur.ask()
			return
		}
		w.tracef("the replacement does not begin: %v", err)
		if !sleepCtx(ctx, time.Second) {
			return
		}
	}
}

// rest waits for a moment at which everything is whole, and lets another drive be the weak one from
// then on. Where none may be lost under load, this is when one is replaced.
func (w *world) rest() func() {
	if w.rng.IntN(3) > 0 || !w.replaceable() || w.flipped > 0 {
		return nil
	}
	for range 10 {
		if w.cur == nil {
			return nil
		}
		if w.here() && w.quiet() {
			live := w.live()
			w.weak = live[w.rng.IntN(len(live))]
			w.tracef("everything is whole; drive %d is the weak one now", w.weak.num)
			if !w.spare() && w.rng.IntN(2) == 0 {
				return w.replace(w.weak)
			}
			return nil
		}
		sleep(time.Minute)
	}
	return nil
}

// here reports whether the store has all of its drives, and no replacement is under way.
func (w *world) here() bool {
	s := w.cur
	for _, d := range s.control.Layout().Drives() {
		if _, ok := s.set.Local(d.Num); !ok {
			return false
		}
	}
	return len(s.control.Replacements()) == 0 && w.wanted == nil
}

// checkReplaced makes sure that nothing is left of the drives that were replaced.
func (w *world) checkReplaced() {
	c := w.cur.control
	for _, old := range w.olds {
		if p := c.Layout().PartitionsOf(old); len(p) > 0 {
			w.failf("partitions %v still have drive %d, which was replaced", p, old)
		}
		if _, ok := c.Layout().Drive(old); ok || !c.Retired(old) {
			w.failf("drive %d was replaced, and is in the layout (%v) or not retired (%v)", old, ok, !c.Retired(old))
		}
		if _, ok := w.cur.set.Local(old); ok {
			w.failf("drive %d was replaced, and serves", old)
		}
	}
}

// checkWhole makes sure that of every body that a record names all shards are there, whichever version or
// part it is of.
func (w *world) checkWhole() {
	type chunk struct {
		data erasure.DataID
		num  uint32
	}
	holders := map[chunk][]uint16{}
	rows := map[chunk]*disk.ShardRow{}
	w.eachShard(func(d *disk.Drive, r *disk.ShardRow) {
		at := chunk{r.ID.Data, r.ID.Chunk}
		holders[at], rows[at] = append(holders[at], d.Num()), r
	})
	bodies := w.bodies()
	for at, nums := range holders {
		n := w.profile.N()
		if b, ok := bodies[at.data]; ok {
			n = b.data.Profile.N()
		}
		if len(nums) == n {
			continue
		}
		named, err := w.namedElsewhere(rows[at])
		if err != nil || named {
			w.failf("chunk %d of %v of %s has shards on drives %v only, although nothing is left to repair (%v)", at.num, at.data, rows[at].Address.Key, nums, err)
		}
	}
}

// checkHealthy has the store verify itself.
func (w *world) checkHealthy() {
	h := w.cur.healer.Load()
	began := w.now()
	h.StartCheck()
	if w.await("a check that says healthy", func() bool {
		s := h.Status()
		return s.State == heal.StateHealthy && !s.Verified.Before(began)
	}) {
		return
	}
	w.failf("status: %+v", h.Status())
	for _, d := range w.cur.set.Open() {
		rows, _ := d.Repairs(w.cur.ctx, nil, 10)
		for i := range rows {
			a := rows[i].Address
			l := w.cur.control.Layout()
			g := l.Group(l.PartitionOf(a.Bucket, a.Key))
			view, err := w.cur.meta.Read(w.cur.ctx, g, a, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
			w.tracef("drive %d wants a repair of %+v: %s (%v)", d.Num(), a, spell(view), err)
		}
	}
}

// spell writes out what a register names.
func spell(view *metadata.View) string {
	if view == nil || view.State == nil {
		return "nothing"
	}
	s := fmt.Sprintf("%+v", view.State)
	for v := view.State.Current; v != nil; v = v.Completed {
		s += fmt.Sprintf(" names %+v data %+v manifest %+v", v, v.Data, v.Manifest)
	}
	return s
}

// ask has the operator's part of replacements done.
func (s *server) ask() {
	select {
	case s.asked <- struct{}{}:
	default:
	}
}

// operate prepares replacements until the life ends: the old drive is closed for ever, and the new one
// is formatted and opened. Only then healing may work on them.
func (s *server) operate() {
	for {
		again := make(<-chan time.Time)
		if !s.prepare() {
			again = time.After(5 * time.Second)
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.asked:
		case <-again:
		}
	}
}

// prepare reports whether every replacement is prepared.
func (s *server) prepare() bool {
	all := true
	for _, r := range s.control.Replacements() {
		s.mu.Lock()
		num, ok := s.prepared[r.ID]
		s.mu.Unlock()
		if ok && num == r.New {
			continue
		}
		if err := s.prepareOne(r); err != nil {
			s.w.tracef("replacement %d is not prepared: %v", r.ID, err)
			all = false
			continue
		}
		s.mu.Lock()
		s.prepared[r.ID] = r.New
		s.mu.Unlock()
		s.healer.Load().Trigger()
	}
	return all
}

func (s *server) prepareOne(r cluster.Replacement) error {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	if s.raft != nil {
		s.raft.DriveLost(r.Old)
	}
	if err := s.set.Retire(ctx, r.Old); err != nil && !errs.Is(err, errs.Timeout) {
		return err
	}
	if s.control.Retired(r.New) {
		return errs.E("sim", errs.Invalid, "the new drive is replaced itself")
	}
	return s.set.Adopt(ctx, r.Path, disk.Identity{Cluster: s.set.Cluster(), Drive: r.NewID, Num: r.New})
}

// forHealing are the replacements that were prepared.
func (s *server) forHealing() (out []heal.Replacement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.control.Replacements() {
		if num, ok := s.prepared[r.ID]; ok && num == r.New {
			out = append(out, heal.Replacement{ID: r.ID, Old: r.Old, New: r.New, Joined: r.Phase == cluster.Shards, Begun: time.Unix(0, r.Begun)})
		}
	}
	return out
}

// fences are the epochs of buckets that a change of membership must know.
func (s *server) fences() (out []metadata.Fence) {
	for _, b := range s.control.Buckets() {
		if b.Epoch > 1 || b.Deleting {
			out = append(out, metadata.Fence{Bucket: b.ID, Epoch: b.Epoch})
		}
	}
	return out
}

// deletions are the fences of the deletions of buckets that are under way.
func (s *server) deletions() (out []metadata.Fence) {
	for _, b := range s.control.Buckets() {
		if b.Deleting {
			out = append(out, metadata.Fence{Bucket: b.ID, Epoch: b.Epoch})
		}
	}
	return out
}

// replacements is what the table knows of drives that are replaced, as cluster.State does.
type replacements struct {
	list    []cluster.Replacement
	last    uint64
	retired map[uint16]bool
	top     uint16 // the highest number that a drive ever had
}

// Replacements returns those under way.
func (c *tableControl) Replacements() []cluster.Replacement {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.moves.list)
}

// Retired reports whether a drive was replaced.
func (c *tableControl) Retired(num uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moves.retired[num]
}

// BeginReplace retires a drive. The successor of a newcomer inherits what that one was to take.
func (c *tableControl) BeginReplace(_ context.Context, old uint16, d placement.Drive, path string) (cluster.Replacement, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &c.moves
	for _, x := range c.layout.Drives() {
		m.top = max(m.top, x.Num)
	}
	m.top++
	d.Num = m.top
	l, err := c.layout.WithDrive(d)
	if err != nil {
		return cluster.Replacement{}, err
	}
	m.list = slices.DeleteFunc(m.list, func(r cluster.Replacement) bool { return r.New == old && r.Phase == cluster.Shards })
	for i := range m.list {
		if r := &m.list[i]; r.New == old {
			r.New, r.NewID, r.Path = d.Num, d.ID, path
			r.Term++
		}
	}
	m.last++
	m.retired[old] = true
	r := cluster.Replacement{ID: m.last, Old: old, New: d.Num, NewID: d.ID, Path: path, Begun: time.Now().UnixNano()}
	m.list = append(m.list, r)
	c.layout = l
	return r, nil
}

// move changes a replacement on behalf of the mover of a term; 0: of whoever.
func (c *tableControl) move(id, term uint64, f func(r *cluster.Replacement) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.moves.list, func(r cluster.Replacement) bool { return r.ID == id })
	switch {
	case i < 0:
		return errs.E("sim", errs.NotFound, "no such replacement")
	case term != 0 && term != c.moves.list[i].Term:
		return errs.E("sim", errs.Stale, "somebody else moves it")
	}
	return f(&c.moves.list[i])
}

// TakeOver implements heal.Control.
func (c *tableControl) TakeOver(_ context.Context, id uint64) (term uint64, err error) {
	err = c.move(id, 0, func(r *cluster.Replacement) error {
		r.Term++
		term = r.Term
		return nil
	})
	return term, err
}

// PublishSwap implements heal.Control.
func (c *tableControl) PublishSwap(_ context.Context, id, term uint64, partitions []uint32) error {
	return c.move(id, term, func(r *cluster.Replacement) error {
		var todo []uint32
		for _, p := range partitions {
			if c.layout.Group(p).Position(r.New) < 0 {
				todo = append(todo, p)
			}
		}
		if len(todo) == 0 {
			return nil
		}
		l, err := c.layout.Swap(r.Old, r.New, todo)
		if err == nil {
			c.layout = l
		}
		return err
	})
}

// FinishMembership implements heal.Control.
func (c *tableControl) FinishMembership(_ context.Context, id, term uint64) error {
	return c.move(id, term, func(r *cluster.Replacement) error {
		if _, ok := c.layout.Drive(r.Old); ok {
			l, err := c.layout.Without(r.Old)
			if err != nil {
				return err
			}
			c.layout = l
		}
		r.Phase = cluster.Shards
		return nil
	})
}

// FinishReplace implements heal.Control.
func (c *tableControl) FinishReplace(_ context.Context, id, term uint64) error {
	return c.move(id, term, func(r *cluster.Replacement) error {
		if r.Phase != cluster.Shards {
			return errs.E("sim", errs.Invalid, "partitions still have the old drive")
		}
		c.moves.list = slices.DeleteFunc(c.moves.list, func(x cluster.Replacement) bool { return x.ID == id })
		return nil
	})
}

// Replacements returns those under way.
func (c raftControl) Replacements() []cluster.Replacement { return c.State().Replacements() }

// Retired reports whether a drive was replaced.
func (c raftControl) Retired(num uint16) bool { return c.State().Retired(num) }

// TakeOver implements heal.Control.
func (c raftControl) TakeOver(ctx context.Context, id uint64) (uint64, error) {
	r, err := c.Control.TakeOver(ctx, id)
	return r.Term, err
}
