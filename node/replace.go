package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// SetRetired says which drives of the cluster were retired for good: f is asked before a drive is
// opened, and at every look at one that is open. It must not block. Drives that are open and retired are
// closed before SetRetired returns, or left behind fenced off if they hang.
func (s *Set) SetRetired(f func(num uint16) bool) {
	s.replaced.Store(&f)
	var wg sync.WaitGroup
	for _, d := range s.Open() {
		if s.isReplaced(d.Num()) {
			wg.Go(func() { _ = s.Retire(s.ctx, d.Num()) }) // what hangs is logged
		}
	}
	wg.Wait()
}

func (s *Set) isReplaced(num uint16) bool {
	s.mu.Lock()
	gone := s.gone[num]
	s.mu.Unlock()
	f := s.replaced.Load()
	return gone || f != nil && (*f)(num)
}

// errReplaced is why a retired drive is out of service.
const errReplaced = "it was replaced, drained or given up"

// Retire takes the drive num out of service for good: this process never opens it again. It is closed, and once
// Retire returns nil nothing that was begun on it is under way any more. errs.Timeout says that the drive
// hangs: it is fenced off all the same, answers nothing any more, and what hangs in it can change no
// record. A drive that is not here is fine.
func (s *Set) Retire(ctx context.Context, num uint16) error {
	s.mu.Lock()
	s.gone[num] = true
	sl := s.byNum[num]
	s.mu.Unlock()
	if sl == nil {
		return nil
	}
	if d := sl.get(); d != nil && d.Num() == num {
		if taken, err := s.retire(ctx, sl, d); taken {
			return err
		}
	}
	return sl.settle(ctx, "node.Retire", num)
}

// settle waits until the drive num, which is not open any more, is closed and nothing hangs in it.
func (sl *slot) settle(ctx context.Context, op string, num uint16) error {
	if err := sl.enter(ctx, op); err != nil {
		return err
	}
	sl.leave()
	sl.mu.Lock()
	d := sl.last
	sl.mu.Unlock()
	if d != nil && d.Num() == num {
		return errs.Wrap(op, d.Settle(ctx))
	}
	return nil
}

// markTimeout bounds the note on a drive that is taken out of service.
const markTimeout = 5 * time.Second

// retire closes the drive d of sl for good. It works while a look at the path hangs. taken is false
// when somebody else is closing it.
func (s *Set) retire(ctx context.Context, sl *slot, d *disk.Drive) (taken bool, err error) {
	// The control plane knows that the drive is retired. The note helps who finds the disk later.
	mark, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	if err := d.SetRetired(mark, errReplaced); err != nil {
		s.log.Warn("a replaced drive could not be marked", "path", sl.path, "drive", d.Num(), "cause", err)
	}
	taken, err = s.remove(ctx, sl, d, errReplaced, &disk.StatusError{Path: sl.path, Status: disk.Replaced, Detail: fmt.Sprintf("is drive %d, which was replaced, drained or given up", d.Num())})
	sl.mu.Lock()
	if sl.num == d.Num() {
		sl.known = false // whatever drive comes next is another one
	}
	sl.mu.Unlock()
	return taken, err
}

// remove takes the open drive d out of service because of an operator, and closes it.
func (s *Set) remove(ctx context.Context, sl *slot, d *disk.Drive, reason string, why error) (taken bool, err error) {
	d.Quarantine(reason, nil)
	if !sl.take(d, why, s.o.Now()) {
		return false, nil // the watcher was faster, and closes it
	}
	sl.mu.Lock()
	sl.sticky, sl.full = false, false
	sl.mu.Unlock()
	err = d.Retire(ctx, reason)
	if err != nil {
		s.log.Warn("a drive that was taken out of service did not close cleanly", "path", sl.path, "drive", d.Num(), "cause", err)
	}
	if s.o.OnLost != nil {
		s.o.OnLost(d.Num(), why)
	}
	return true, err
}

// Adopt makes the empty directory at path the drive of this cluster with the id and number of want, opens it and
// reports it as returned. The path is one of those given to OpenSet. A directory that holds anything is
// refused. When that drive is there already, in whatever state a crash left it, it is completed and
// opened; if it is open, nothing happens.
func (s *Set) Adopt(ctx context.Context, path string, want disk.Identity) error {
	const op = "node.Adopt"
	i := slices.IndexFunc(s.slots, func(sl *slot) bool { return sl.path == path })
	switch {
	case i < 0:
		return errs.E(op, errs.NotFound, "the path is none of this process's drives: give it in the configuration, and start again")
	case want.Drive.IsZero() || want.Num == 0:
		return errs.E(op, errs.Invalid, "a drive needs an id and a number")
	case s.isReplaced(want.Num):
		return errs.E(op, errs.Invalid, fmt.Sprintf("drive %d is retired: its number is not used again", want.Num))
	case s.Forming():
		return errs.E(op, errs.Unavailable, "the cluster is still forming")
	}
	sl := s.slots[i]
	if err := sl.enter(ctx, op); err != nil {
		return err
	}
	defer sl.leave()
	sl.mu.Lock()
	d, known, num := sl.drive, sl.known, sl.num
	sl.mu.Unlock()
	if d != nil {
		if d.Identity().Drive == want.Drive {
			return errs.Wrap(op, d.MarkFormed(ctx))
		}
		return errs.E(op, errs.Exists, fmt.Sprintf("drive %d is in service there", d.Num()))
	}
	if known && num != want.Num && !s.isReplaced(num) {
		return errs.E(op, errs.Conflict, fmt.Sprintf("the path belongs to drive %d, which was not replaced: an empty directory may be its missing mount", num))
	}
	if err := s.format(sl, want); err != nil {
		return errs.Wrap(op, err)
	}
	sl.mu.Lock()
	sl.known, sl.num, sl.id = true, want.Num, want.Drive
	sl.sticky, sl.full, sl.hold = false, false, nil
	sl.mu.Unlock()
	return s.reopen(ctx, op, sl)
}

// format gives an empty directory its identity, or finds it there.
func (s *Set) format(sl *slot, want disk.Identity) error {
	in := disk.Inspect(s.fs, sl.path)
	switch {
	case in.Status == disk.Identified && in.Identity.Cluster == s.Cluster() && in.Identity.Drive == want.Drive && in.Identity.Num == want.Num:
		return nil
	case in.Status == disk.Identified:
		return &disk.StatusError{Path: sl.path, Status: disk.Occupied, Identity: in.Identity,
			Detail: fmt.Sprintf("is already drive %d of cluster %s: nothing is formatted over it", in.Identity.Num, in.Identity.Cluster)}
	case in.Status != disk.Empty:
		return in.Err
	}
	// The founders of the cluster, of which this drive is none, say that it joins one.
	return disk.Format(s.fs, sl.path, disk.Identity{Cluster: s.Cluster(), Drive: want.Drive, Num: want.Num, Founders: s.founders,
		Created: s.o.Now().UTC().Truncate(time.Second)})
}

// Quarantine takes the drive num out of service on behalf of an operator, until Release. It is noted in
// the drive's identity, and so survives a restart and goes with the drive. When the note could not be
// written, the drive is out of service all the same, and the error says that this ends with the process.
func (s *Set) Quarantine(ctx context.Context, num uint16, why string) error {
	const op = "node.Quarantine"
	sl, err := s.slotOf(op, num)
	if err != nil {
		return err
	}
	hold := disk.Hold{Why: why, At: s.o.Now().UTC()}
	sl.mu.Lock()
	sl.hold = &hold // from now on it is not opened
	d, id := sl.drive, sl.id
	sl.mu.Unlock()
	var noted, closed error
	if d == nil {
		noted = s.note(ctx, op, sl, id, &hold)
		d = sl.get() // opened just before
	}
	if d != nil {
		mark, cancel := context.WithTimeout(ctx, markTimeout)
		noted = d.SetHold(mark, hold)
		cancel()
		taken, err := s.remove(ctx, sl, d, "quarantined by an operator: "+why, &disk.StatusError{Path: sl.path, Status: disk.Held,
			Detail: fmt.Sprintf("(drive %d) was quarantined by an operator: %s; release it to use it again", num, why)})
		if closed = err; !taken {
			closed = sl.settle(ctx, op, num)
		}
	}
	if noted != nil {
		noted = &errs.Error{Op: op, Kind: errs.Drive, Msg: "the drive is out of service, but that could not be noted on it: after a restart it is used again", Err: noted}
	}
	return errors.Join(noted, closed)
}

// Release ends a quarantine, of an operator or of the drive's own, and opens the drive.
func (s *Set) Release(ctx context.Context, num uint16) error {
	const op = "node.Release"
	sl, err := s.slotOf(op, num)
	if err != nil {
		return err
	}
	if sl.get() == nil {
		sl.mu.Lock()
		id := sl.id
		sl.mu.Unlock()
		if err := s.note(ctx, op, sl, id, nil); err != nil {
			return errs.Wrap(op, err)
		}
	}
	if err := sl.enter(ctx, op); err != nil {
		return err
	}
	defer sl.leave()
	sl.mu.Lock()
	sl.hold = nil
	sl.mu.Unlock()
	return s.reopen(ctx, op, sl)
}

// note writes a hold, or with nil its end, into the identity of a drive that is not open.
func (s *Set) note(ctx context.Context, op string, sl *slot, id disk.ID, hold *disk.Hold) error {
	if err := sl.enter(ctx, op); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // ends with the file system's answer; until then nobody else looks at the path
		defer sl.leave()
		done <- disk.SetHold(s.fs, sl.path, id, hold)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return &errs.Error{Op: op, Kind: errs.Timeout, Msg: "the drive's directory does not answer", Err: ctx.Err()}
	}
}

// slotOf returns the slot of the drive num, which is or was here.
func (s *Set) slotOf(op string, num uint16) (*slot, error) {
	s.mu.Lock()
	sl := s.byNum[num]
	s.mu.Unlock()
	switch {
	case s.isReplaced(num):
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %d was replaced, drained or given up", num))
	case sl == nil:
	default:
		sl.mu.Lock()
		defer sl.mu.Unlock()
		if sl.num == num {
			return sl, nil
		}
	}
	return nil, errs.E(op, errs.NotFound, fmt.Sprintf("drive %d is not here", num))
}
