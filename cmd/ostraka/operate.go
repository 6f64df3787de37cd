package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/cluster"
	"github.com/ostraka/ostraka/console"
	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
	"github.com/ostraka/ostraka/placement"
)

// How a drive is replaced, and why in this order:
//
//  1. BeginReplace, a change of the control plane: the old number is retired for ever, the newcomer
//     has its number and id. The commit point: from here on the replacement goes on by itself.
//  2. The old drive is closed, if it is open, and its slot never opens it again. Only then may its
//     partitions be wedged, since it counts as wedged.
//  3. The newcomer is formatted at its path (only over an empty directory) and opened.
//  4. Healing moves the partitions, rebuilds the shards, verifies them, and ends the replacement.
//
// Steps 2 and 3 may be repeated: prepare does them at once, at every start, and every few seconds as
// long as one of them fails.
//
// At a start the numbers that are retired are known only from the control plane, whose copies lie on
// the drives. So the drives are opened first. They are members of nothing, and refuse all requests,
// until the control plane has told the layout. Then those that are retired are closed (closeRetired),
// and only after that SetEpoch lets the others serve. A drive that comes back later is asked about
// before it is opened.

// driveSet is what replacing drives needs of the drives of this process.
type driveSet interface {
	Cluster() disk.ID
	Status() []node.PathStatus
	// Retire closes a drive for ever; it waits for what is in flight. Repeatable.
	Retire(ctx context.Context, num uint16) error
	// Adopt makes a new drive at an empty path and opens it. Repeatable.
	Adopt(ctx context.Context, path string, id disk.Identity) error
	Quarantine(ctx context.Context, num uint16, why string) error
	Release(ctx context.Context, num uint16) error
}

// replacer is the control plane, as far as replacing drives needs it.
type replacer interface {
	State() *cluster.State
	BeginReplace(ctx context.Context, old uint16, d placement.Drive, path string) (cluster.Replacement, error)
	DriveLost(num uint16)
	PlanRecovery() (cluster.Recovery, error)
	Recover(ctx context.Context) (cluster.Recovery, error)
}

const (
	prepareEvery  = 5 * time.Second  // replacements that could not be prepared
	prepareWithin = 30 * time.Second // one drive
	answerWithin  = 10 * time.Second // an operator is told what hinders, if it is known by then
	noticeWithin  = 5 * time.Second  // a drive is gone
	persistFor    = 20 * time.Second // a change of the control plane is tried again
	persistEvery  = 100 * time.Millisecond
)

// operator implements console.Operator.
type operator struct {
	set      driveSet
	control  replacer
	self     disk.ID // this node; zero for a process that is alone
	prepared func()  // called when a replacement is ready for healing
	log      *slog.Logger

	kick chan struct{} // capacity 1: prepare now

	// mu guards the fields below.
	mu       sync.Mutex
	ready    map[uint64]uint16 // replacements that were prepared in this process, with their newcomer
	problems map[uint64]string // why one is not
	round    chan struct{}     // closed at the end of the next prepare that begins
}

var (
	_ console.Operator = (*operator)(nil)
	_ console.Tuner    = tuner{}
	_ console.Usager   = usager{}
	_ driveSet         = (*node.Set)(nil)
	_ replacer         = (*cluster.Control)(nil)
)

func newOperator(set driveSet, control replacer, prepared func(), log *slog.Logger) *operator {
	return &operator{set: set, control: control, prepared: prepared, log: log, kick: make(chan struct{}, 1),
		ready: map[uint64]uint16{}, problems: map[uint64]string{}, round: make(chan struct{})}
}

// run prepares replacements until ctx ends.
func (o *operator) run(ctx context.Context) {
	tick := time.NewTicker(prepareEvery)
	defer tick.Stop()
	for {
		o.prepare(ctx)
		select {
		case <-ctx.Done():
			return
		case <-o.kick:
		case <-tick.C:
		}
	}
}

// prepare does what is left of steps 2 and 3 of every replacement.
func (o *operator) prepare(ctx context.Context) {
	o.mu.Lock()
	ended := o.round
	o.round = make(chan struct{})
	o.mu.Unlock()
	defer close(ended)
	list := o.own()
	for _, r := range list {
		o.mu.Lock()
		num, done := o.ready[r.ID]
		o.mu.Unlock()
		if done && num == r.New {
			continue
		}
		err := o.prepareOne(ctx, r)
		if ctx.Err() != nil {
			return
		}
		o.mu.Lock()
		before := o.problems[r.ID]
		if err != nil {
			o.problems[r.ID] = explain(err)
		} else {
			o.ready[r.ID] = r.New
			delete(o.problems, r.ID)
		}
		o.mu.Unlock()
		switch {
		case err == nil:
			o.log.Info("the new drive is in service, and takes the place of the old one", "replacement", r.ID, "old", r.Old, "new", r.New, "path", r.Path)
			o.prepared()
		case before != explain(err):
			o.log.Error("the replacement of a drive does not go on", "replacement", r.ID, "old", r.Old, "new", r.New, "path", r.Path, "err", err)
		}
	}
	o.mu.Lock() // what is over is forgotten
	over := func(id uint64) bool {
		return !slices.ContainsFunc(list, func(r cluster.Replacement) bool { return r.ID == id })
	}
	maps.DeleteFunc(o.ready, func(id uint64, _ uint16) bool { return over(id) })
	maps.DeleteFunc(o.problems, func(id uint64, _ string) bool { return over(id) })
	o.mu.Unlock()
}

func (o *operator) prepareOne(ctx context.Context, r cluster.Replacement) error {
	ctx, cancel := context.WithTimeout(ctx, prepareWithin)
	defer cancel()
	o.control.DriveLost(r.Old) // nothing of the control plane holds it up
	// One that hangs is fenced off: what hangs in it changes no record any more.
	if err := o.set.Retire(ctx, r.Old); err != nil && !errs.Is(err, errs.Timeout) {
		return err
	}
	if o.control.State().Retired(r.New) {
		return errs.E("server", errs.Invalid, fmt.Sprintf("drive %d is replaced itself", r.New))
	}
	return o.set.Adopt(ctx, r.Path, disk.Identity{Cluster: o.set.Cluster(), Drive: r.NewID, Num: r.New})
}

// own are the replacements by drives of this node: it prepares them, and repairs them. A drive is replaced by
// one of its own node only, which therefore can close it.
func (o *operator) own() (list []cluster.Replacement) {
	st := o.control.State()
	for _, r := range st.Replacements() {
		if d, ok := st.Layout().Drive(r.New); !ok || d.Node == o.self {
			list = append(list, r)
		}
	}
	return list
}

// Replacements implements console.Operator.
func (o *operator) Replacements() []console.Replacement {
	var out []console.Replacement
	for _, r := range o.control.State().Replacements() {
		out = append(out, o.describe(r))
	}
	return out
}

func (o *operator) describe(r cluster.Replacement) console.Replacement {
	phase := heal.PhaseMembership
	if r.Phase == cluster.Shards {
		phase = heal.PhaseShards
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return console.Replacement{ID: r.ID, Old: r.Old, New: r.New, Path: r.Path, Phase: phase, Begun: time.Unix(0, r.Begun).UTC(), Problem: o.problems[r.ID]}
}

// forHealing are the replacements that were prepared, which is what healing may work on.
func (o *operator) forHealing() []heal.Replacement {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []heal.Replacement
	for _, r := range o.own() {
		if num, ok := o.ready[r.ID]; ok && num == r.New {
			out = append(out, heal.Replacement{ID: r.ID, Old: r.Old, New: r.New, Joined: r.Phase == cluster.Shards, Begun: time.Unix(0, r.Begun)})
		}
	}
	return out
}

// CheckNew implements console.Operator.
func (o *operator) CheckNew(ctx context.Context, path string) (doubt string, err error) {
	const op = "server.CheckNew"
	// A drive that is gone is noticed within a second or two.
	for until := time.Now().Add(noticeWithin); time.Now().Before(until) && o.gone(path); {
		timer := time.NewTimer(persistEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return "", errs.As(op, errs.Canceled, ctx.Err())
		}
	}
	at := slices.IndexFunc(o.set.Status(), func(p node.PathStatus) bool { return p.Path == path })
	if at < 0 {
		return "", errs.E(op, errs.NotFound, path+" is not one of the paths that the server was started with, as `ostraka admin drive list` shows them; add it to them and start the server again")
	}
	p := o.set.Status()[at]
	if p.Open {
		return "", errs.E(op, errs.Exists, fmt.Sprintf("drive %d is in service at %s: a new drive needs an empty directory; to put a new disk in its place, quarantine drive %d, change the disk, and replace it then", p.Num, path, p.Num))
	}
	for _, r := range o.control.State().Replacements() {
		if r.Path == path {
			return "", errs.E(op, errs.Exists, fmt.Sprintf("%s becomes drive %d, in place of drive %d, already", path, r.New, r.Old))
		}
	}
	in := disk.Inspect(vfs.Default, path)
	switch in.Status {
	case disk.Empty:
		var drives []string
		for _, p := range o.set.Status() {
			if p.Open {
				drives = append(drives, p.Path)
			}
		}
		return mountDoubt(path, drives, deviceOf), nil
	case disk.Missing:
		return "", errs.E(op, errs.Invalid, path+" does not exist: mount the new disk there, or make the directory")
	case disk.Occupied:
		return "", errs.E(op, errs.Invalid, path+" holds files of something else; a new drive is made only in an empty directory")
	case disk.Identified, disk.Damaged, disk.Retired, disk.Corrupt, disk.TooNew, disk.Foreign, disk.WrongDrive:
		return "", errs.E(op, errs.Invalid, path+" holds a drive, and nothing is formatted over one; if its data is given up, empty the directory, and replace it then")
	}
	return "", &errs.Error{Op: op, Kind: errs.Drive, Msg: path + " cannot be used", Err: in.Err}
}

// gone reports whether a drive is in service at a path where none is any more.
func (o *operator) gone(path string) bool {
	return slices.ContainsFunc(o.set.Status(), func(p node.PathStatus) bool { return p.Path == path && p.Open }) &&
		disk.Inspect(vfs.Default, path).Status == disk.Empty
}

// Replace implements console.Operator.
func (o *operator) Replace(ctx context.Context, old uint16, path string) (console.Replacement, error) {
	var r cluster.Replacement
	if err := o.withoutMajority(nil); err != nil {
		return console.Replacement{}, err
	}
	id := disk.NewID() // the same in each try: then it is begun once
	err := persist(ctx, func() (err error) {
		r, err = o.control.BeginReplace(ctx, old, placement.Drive{ID: id, Node: o.self}, path) // the commit point
		return err
	})
	if err != nil {
		return console.Replacement{}, o.withoutMajority(err)
	}
	o.log.Warn("a drive is replaced", "replacement", r.ID, "old", r.Old, "new", r.New, "path", r.Path)
	// The next prepare that begins knows of it.
	o.mu.Lock()
	ended := o.round
	o.mu.Unlock()
	select {
	case o.kick <- struct{}{}:
	default:
	}
	timer := time.NewTimer(answerWithin)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	case <-ctx.Done(): // it goes on all the same
	}
	return o.describe(r), nil
}

// Quarantine implements console.Operator.
func (o *operator) Quarantine(ctx context.Context, num uint16, why string) error {
	return o.set.Quarantine(ctx, num, why)
}

// Release implements console.Operator.
func (o *operator) Release(ctx context.Context, num uint16) error { return o.set.Release(ctx, num) }

// fences are the epochs of buckets that a change of membership must know.
func (c *control) fences() []metadata.Fence {
	var out []metadata.Fence
	for _, b := range c.State().Buckets() {
		if b.Epoch > 1 || b.Deleting {
			out = append(out, metadata.Fence{Bucket: b.ID, Epoch: b.Epoch})
		}
	}
	return out
}

// deletions are the fences of the deletions of buckets that are under way.
func (c *control) deletions() []metadata.Fence {
	var out []metadata.Fence
	for _, f := range c.State().DeletionFences() {
		out = append(out, metadata.Fence{Bucket: f.Bucket, Epoch: f.Epoch})
	}
	return out
}

// movers is the control plane as healing needs it.
type movers struct{ *cluster.Control }

var _ heal.Control = movers{}

// TakeOver implements heal.Control.
func (m movers) TakeOver(ctx context.Context, id uint64) (uint64, error) {
	r, err := m.Control.TakeOver(ctx, id)
	return r.Term, err
}

// tuner implements console.Tuner: what an operator sets is kept in the control plane and applies at once.
type tuner struct {
	control *cluster.Control
	apply   func(heal.Settings)
}

// Settings implements console.Tuner.
func (t tuner) Settings() heal.Settings { return settingsOf(t.control.State()) }

func settingsOf(s *cluster.State) heal.Settings {
	x := s.Settings()
	return heal.Settings{Paused: x.HealPaused, Rate: int64(x.HealRate), ScrubPaused: x.ScrubPaused, ScrubPeriod: x.ScrubPeriod}
}

// SetSettings implements console.Tuner.
func (t tuner) SetSettings(ctx context.Context, s heal.Settings) error {
	if s.Rate < 0 {
		return errs.E("server", errs.Invalid, "a rate is not negative")
	}
	err := persist(ctx, func() error {
		return t.control.SetSettings(ctx, cluster.Settings{HealPaused: s.Paused, ScrubPaused: s.ScrubPaused, HealRate: uint64(s.Rate), ScrubPeriod: s.ScrubPeriod})
	})
	if err == nil {
		t.apply(s)
	}
	return err
}

// persist tries a change of the control plane again that has the same effect however often it is
// made, as long as its outcome is not known, such as while leaders change.
func persist(ctx context.Context, change func() error) error {
	until := time.NewTimer(persistFor)
	defer until.Stop()
	pause := time.NewTicker(persistEvery)
	defer pause.Stop()
	for {
		err := change()
		if !errs.Is(err, errs.Unknown) && !errs.Is(err, errs.Unavailable) {
			return err
		}
		select {
		case <-pause.C:
		case <-until.C:
			return &errs.Error{Op: "server", Kind: errs.Unavailable, Msg: "the control plane does not answer; look at the list of drives, and try again: it does no harm if it had been done", Err: err}
		case <-ctx.Done():
			return err
		}
	}
}

// usager implements console.Usager.
type usager struct{ store *object.Store }

// Usage implements console.Usager.
func (u usager) Usage(ctx context.Context, fresh bool) (*console.Usage, error) {
	n, err := u.store.Usage(ctx, fresh)
	if err != nil {
		return nil, err
	}
	out := &console.Usage{At: n.At.UTC(), Took: n.Took.Seconds()}
	for _, b := range n.Buckets {
		out.Buckets = append(out.Buckets, console.BucketUsage(b))
	}
	return out, nil
}

// closeRetired closes the drives that the control plane says are retired, before any drive serves,
// and keeps them from coming back. One that hangs is no member of anything all the same, and is
// closed again before its partitions move.
func (s *stack) closeRetired(log *slog.Logger) {
	retired := func(num uint16) bool { return s.control.State().Retired(num) }
	for _, d := range s.set.Open() {
		if num := d.Num(); retired(num) {
			log.Warn("a drive that was replaced, drained or given up is back; it is closed", "drive", num)
			s.control.DriveLost(num)
		}
	}
	s.set.SetRetired(retired)
}
