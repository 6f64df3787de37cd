package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// ReplacePhase is how far a replacement has come.
type ReplacePhase uint8

// A replacement goes from Membership to Shards, and then is over.
const (
	Membership ReplacePhase = iota // partitions still have the old drive
	Shards                         // the newcomer is a member everywhere; its data come
)

// Replacement is a drive that takes the place of another, in every partition that has it.
type Replacement struct {
	ID    uint64 // from 1, never used again
	Term  uint64 // of its mover; 0: nobody has taken it over yet
	Old   uint16 // retired
	New   uint16
	NewID [16]byte // identity of the newcomer
	Path  string   // of the newcomer, on its node
	Phase ReplacePhase
	Begun int64 // Unix nanoseconds
}

// Settings are what an operator sets for the work in the background.
type Settings struct {
	HealPaused  bool
	ScrubPaused bool
	HealRate    uint64        // bytes a second; 0: no limit
	ScrubPeriod time.Duration // in which every shard is read once; 0: 30 days
}

// Replacements returns those that are not over, ascending by id. Read only.
func (s *State) Replacements() []Replacement { return s.replacements }

// Retired reports whether a drive never serves again, in no epoch. A number that is retired stays so
// for ever, and is never given to another drive.
func (s *State) Retired(num uint16) bool {
	_, ok := slices.BinarySearch(s.retired, num)
	return ok
}

// Settings returns what an operator has set.
func (s *State) Settings() Settings { return s.settings }

// replacingError is an errs.Exists that knows which replacement was in the way.
type replacingError struct{ r Replacement }

func (e *replacingError) Error() string { return e.Unwrap().Error() }
func (e *replacingError) Unwrap() error {
	return errs.E("cluster.BeginReplace", errs.Exists, fmt.Sprintf("drive %d is being replaced by drive %d already", e.r.Old, e.r.New))
}

// applyReplace is apply for the commands of this file.
func (s *State) applyReplace(next *State, c *command) (any, error) {
	if c.op == opSetSettings {
		next.settings = c.settings
		return nil, nil
	}
	if c.op == opBeginReplace {
		return s.beginReplace(next, c)
	}
	i := slices.IndexFunc(s.replacements, func(r Replacement) bool { return r.ID == c.id })
	if i < 0 {
		if c.op == opFinishReplace && c.id > 0 && c.id <= s.lastReplacement {
			return nil, nil // it is over: who asks again has not heard the answer
		}
		return nil, errs.E("cluster.apply", errs.NotFound, fmt.Sprintf("there is no replacement %d", c.id))
	}
	r := s.replacements[i]
	if c.op != opTakeOver && c.term != r.Term {
		return nil, errs.E("cluster.apply", errs.Stale, fmt.Sprintf("replacement %d was taken over: its term is %d, not %d", r.ID, r.Term, c.term))
	}
	switch c.op {
	case opTakeOver:
		r.Term++
	case opPublishSwap:
		l, err := publishSwap(s.layout, &r, c.partitions)
		if err != nil {
			return nil, err
		}
		next.layout = l // the commit point of a swap
		next.planSwapped(s.layout, r.Old, r.New, c.partitions)
	case opFinishMembership:
		if _, ok := s.layout.Drive(r.Old); ok {
			l, err := s.layout.WithoutLost(r.Old)
			if err != nil {
				return nil, err
			}
			next.layout = l
		}
		r.Phase = Shards
	case opFinishReplace:
		if r.Phase != Shards {
			return nil, errs.E("cluster.apply", errs.Invalid, fmt.Sprintf("partitions still have drive %d", r.Old))
		}
		next.replacements = slices.Delete(slices.Clone(s.replacements), i, i+1)
		return r, nil
	}
	next.replacements = slices.Clone(s.replacements)
	next.replacements[i] = r
	return r, nil
}

// beginReplace retires a drive and gives its successor a number. The same newcomer may be named
// again by who has not heard the answer.
//
// The successor of a newcomer whose own replacement is not over inherits that: positions that it
// has not taken yet it need not take any more.
func (s *State) beginReplace(next *State, c *command) (any, error) {
	refuse := func(k errs.Kind, format string, args ...any) (any, error) {
		return nil, errs.E("cluster.apply", k, fmt.Sprintf(format, args...))
	}
	d := c.drive
	for _, r := range s.replacements {
		switch {
		case r.Old == c.old && r.NewID == d.ID:
			return r, nil
		case r.Old == c.old:
			return nil, &replacingError{r}
		}
	}
	old, ok := s.layout.Drive(c.old)
	switch {
	case !ok:
		return refuse(errs.NotFound, "drive %d is not in the layout", c.old)
	case s.Retired(c.old): // its replacement would be there
		return refuse(errs.Invalid, "drive %d is retired", c.old)
	case d.Num != 0 || d.ID == [16]byte{}:
		return refuse(errs.Invalid, "a new drive has an id, and no number yet")
	case d.Node != [16]byte{} && d.Node != old.Node:
		return refuse(errs.Invalid, "a drive is replaced by one of the same node")
	}
	// A change of members that was begun must come to its end. Giving the drive up has it end otherwise.
	lost := func(num uint16) bool { return num == c.old || s.Retired(num) }
	stand := 0
	for partition, list := range s.begunMoves() {
		if s.layout.Group(partition).Position(c.old) < 0 {
			continue
		}
		if to, ends := s.turn(list, lost); to != nil || !ends {
			stand++
		}
	}
	if stand > 0 {
		return refuse(errs.Precondition, "a change of the members of %d partitions was begun that could not end without drive %d: "+
			"if it is dead, give it up instead, and another drive takes its place (`ostraka admin drive drain %d --dead`)", stand, c.old, c.old)
	}
	d.Node, d.Zone, d.Class = old.Node, old.Zone, old.Class
	top := s.topDrive()
	if top == ^uint16(0) {
		return refuse(errs.Invalid, "the numbers of drives are used up")
	}
	d.Num = top + 1
	l, err := s.layout.WithDrive(d)
	if err != nil {
		return nil, err
	}
	next.layout = l
	next.lastReplacement++
	at, _ := slices.BinarySearch(s.retired, c.old)
	next.retired = slices.Insert(slices.Clone(s.retired), at, c.old)
	next.replacements = slices.DeleteFunc(slices.Clone(s.replacements), func(r Replacement) bool {
		return r.New == c.old && r.Phase == Shards
	})
	for i := range next.replacements {
		if r := &next.replacements[i]; r.New == c.old {
			r.New, r.NewID, r.Path = d.Num, d.ID, c.path
			r.Term++ // its mover must look again
		}
	}
	r := Replacement{ID: next.lastReplacement, Old: c.old, New: d.Num, NewID: d.ID, Path: c.path, Begun: c.time}
	next.replacements = append(next.replacements, r)
	next.planReplaced(c.old, d.Num)
	return r, nil
}

// publishSwap is the layout in which the newcomer of r has the place of the old drive in partitions.
// Those that were swapped before are passed over, for who has not heard the answer.
func publishSwap(l *placement.Layout, r *Replacement, partitions []uint32) (*placement.Layout, error) {
	var todo []uint32
	for _, p := range partitions {
		if p >= l.Partitions() || l.Group(p).Position(r.New) < 0 {
			todo = append(todo, p) // the layout refuses what it does not have
		}
	}
	if len(todo) == 0 {
		return l, nil
	}
	return l.Swap(r.Old, r.New, todo)
}

func replacementOf(result any, err error) (Replacement, error) {
	if err != nil {
		return Replacement{}, err
	}
	r, _ := result.(Replacement)
	return r, nil
}

// BeginReplace retires the drive old and adds d, whose number is given here, to the layout in order
// to take its place. Whoever calls it with the same id of d again gets the same answer. With another
// one, while the replacement is not over, the error is of kind Exists and comes with that
// replacement. NotFound: old is not in the layout. Invalid: d does not fit.
//
// A voter on the old drive moves to another one first, so that the drive can be closed.
func (k *Control) BeginReplace(ctx context.Context, old uint16, d placement.Drive, path string) (Replacement, error) {
	const op = "cluster.BeginReplace"
	if len(path) > maxPath {
		return Replacement{}, errs.E(op, errs.Invalid, "the path is too long")
	}
	if err := k.evacuate(ctx, old); err != nil {
		return Replacement{}, errs.Wrap(op, err)
	}
	c := &command{op: opBeginReplace, old: old, drive: d, path: path, time: time.Now().UnixNano()}
	r, err := replacementOf(k.change(ctx, c))
	var e *replacingError
	if errors.As(err, &e) {
		return e.r, err
	}
	return r, err
}

// TakeOver begins the next term of a replacement. What movers of earlier terms still want is refused.
func (k *Control) TakeOver(ctx context.Context, id uint64) (Replacement, error) {
	return replacementOf(k.change(ctx, &command{op: opTakeOver, id: id}))
}

// PublishSwap makes the newcomer a member of partitions, in the place of the old drive, in their next
// epoch. The error is of kind Stale if the replacement was taken over since term, NotFound if it
// is over, and Invalid if a partition has neither of the drives.
func (k *Control) PublishSwap(ctx context.Context, id, term uint64, partitions []uint32) error {
	_, err := k.change(ctx, &command{op: opPublishSwap, id: id, term: term, partitions: partitions})
	return err
}

// FinishMembership takes the old drive, which is a member of nothing any more, out of the layout.
func (k *Control) FinishMembership(ctx context.Context, id, term uint64) error {
	_, err := k.change(ctx, &command{op: opFinishMembership, id: id, term: term})
	return err
}

// FinishReplace ends a replacement. The newcomer has been verified to hold all that belongs to it.
func (k *Control) FinishReplace(ctx context.Context, id, term uint64) error {
	_, err := k.change(ctx, &command{op: opFinishReplace, id: id, term: term})
	return err
}

// SetSettings stores what an operator has set.
func (k *Control) SetSettings(ctx context.Context, x Settings) error {
	if x.ScrubPeriod < 0 {
		return errs.E("cluster.SetSettings", errs.Invalid, "the period of a scrub is not negative")
	}
	_, err := k.change(ctx, &command{op: opSetSettings, settings: x})
	return err
}

func appendReplacement(b []byte, r *Replacement) []byte {
	b = putUint(b, 1, r.ID)
	b = putUint(b, 2, r.Term)
	b = putUint(b, 3, uint64(r.Old))
	b = putUint(b, 4, uint64(r.New))
	b = putBytes(b, 5, r.NewID[:])
	b = putString(b, 6, r.Path)
	b = putUint(b, 7, uint64(r.Phase))
	return putUint(b, 8, uint64(r.Begun))
}

func decodeReplacement(b []byte) (r Replacement, err error) {
	err = fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			r.ID = f.u
		case 2:
			r.Term = f.u
		case 3:
			r.Old, err = driveNum(f.u)
		case 4:
			r.New, err = driveNum(f.u)
		case 5:
			err = fixed(r.NewID[:], f.bytes)
		case 6:
			r.Path = string(f.bytes)
		case 7:
			if r.Phase = ReplacePhase(f.u); f.u > uint64(Shards) {
				err = errMalformed()
			}
		case 8:
			r.Begun = int64(f.u)
		default:
			return false, nil
		}
		return true, err
	})
	return r, err
}

func appendSettings(b []byte, x *Settings) []byte {
	b = putBool(b, 1, x.HealPaused)
	b = putBool(b, 2, x.ScrubPaused)
	b = putUint(b, 3, x.HealRate)
	return putUint(b, 4, uint64(x.ScrubPeriod))
}

func decodeSettings(b []byte) (x Settings, err error) {
	err = fields(b, func(f field) (bool, error) {
		switch f.num {
		case 1:
			x.HealPaused = f.u != 0
		case 2:
			x.ScrubPaused = f.u != 0
		case 3:
			x.HealRate = f.u
		case 4:
			if x.ScrubPeriod = time.Duration(f.u); x.ScrubPeriod < 0 {
				return true, errMalformed()
			}
		default:
			return false, nil
		}
		return true, nil
	})
	return x, err
}

func appendDrive(b []byte, d *placement.Drive) []byte {
	b = putUint(b, 1, uint64(d.Num))
	b = putBytes(b, 2, d.ID[:])
	b = putBytes(b, 3, d.Node[:])
	b = putString(b, 4, d.Zone)
	b = putUint(b, 5, d.Capacity)
	return putString(b, 6, d.Class)
}

func decodeDrive(b []byte) (d placement.Drive, err error) {
	err = fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			d.Num, err = driveNum(f.u)
		case 2:
			err = fixed(d.ID[:], f.bytes)
		case 3:
			err = fixed(d.Node[:], f.bytes)
		case 4:
			d.Zone = string(f.bytes)
		case 5:
			d.Capacity = f.u
		case 6:
			d.Class = string(f.bytes)
		default:
			return false, nil
		}
		return true, err
	})
	return d, err
}

// appendNumbers appends varints one behind the other.
func appendNumbers[T uint16 | uint32](b []byte, list []T) []byte {
	for _, v := range list {
		b = protowire.AppendVarint(b, uint64(v))
	}
	return b
}

// decodeNumbers reads at most limit varints, none above most.
func decodeNumbers[T uint16 | uint32](b []byte, limit int, most uint64) (list []T, err error) {
	for len(b) > 0 {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 || v > most || len(list) == limit {
			return nil, errMalformed()
		}
		list = append(list, T(v))
		b = b[n:]
	}
	return list, nil
}

func driveNum(v uint64) (uint16, error) {
	if v > uint64(^uint16(0)) {
		return 0, errMalformed()
	}
	return uint16(v), nil
}

// fixed fills to with a value of just its length.
func fixed(to, b []byte) error {
	if len(b) != len(to) {
		return errMalformed()
	}
	copy(to, b)
	return nil
}
