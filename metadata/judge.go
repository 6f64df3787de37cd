package metadata

import (
	"github.com/ostraka/ostraka/erasure"
)

// This file is what a drive decides, without the drive: values in, values out.

func maxBallot(a, b Ballot) Ballot {
	if a.Less(b) {
		return b
	}
	return a
}

// lastBallot is above every ballot that is ever proposed.
var lastBallot = Ballot{^uint64(0), ^uint64(0)}

// MaxCounter bounds the counters that a drive accepts, so that one broken proposer cannot exhaust
// them. In microseconds it is the year 36,812.
const MaxCounter = 1 << 60

// local is what one drive knows of one register.
type local struct {
	row     *Row
	promise Ballot // the highest promise, remembered or assumed
	floor   Ballot // of the partition: the highest tombstone that was dropped
	begun   Ballot // of the partition: what was promised for all registers by changes of membership
}

// bar is the ballot that a Prepare must exceed.
func (l *local) bar() Ballot {
	b := maxBallot(l.promise, maxBallot(l.floor, l.begun))
	if l.row != nil {
		b = maxBallot(b, l.row.Ballot)
	}
	return b
}

// how says in which way a state replaces a row.
type how uint8

const (
	howBehind  how = iota // it cannot: the drive lacks what the delta applies to
	howBallot             // the same state under a newer ballot
	howDelta              // computed from the state here (or from nothing, and nothing is here)
	howRevert             // the state before the undecided one here
	howRedo               // computed from the state before the undecided one here
	howReplace            // it has no version rows, so nothing here is needed
	howWhole              // all its version rows come with it
)

// judgeState says how s can replace row.
func judgeState(row *Row, s *State, whole bool) how {
	var id Ballot // of the state here; zero for none
	if row != nil {
		id = row.State.ID
	}
	switch {
	case row != nil && id == s.ID:
		return howBallot
	case id == s.Prev:
		return howDelta
	}
	if row != nil && !row.Decided && row.Undo != nil && !row.Undo.Lossy {
		var before Ballot
		if row.Undo.Row != nil {
			before = row.Undo.Row.State.ID
		}
		switch {
		case row.Undo.Row != nil && before == s.ID:
			return howRevert
		case before == s.Prev:
			return howRedo
		}
	}
	switch {
	case s.Older == 0:
		return howReplace
	case whole:
		return howWhole
	}
	return howBehind
}

// verdict is the answer to an Accept.
type verdict uint8

const (
	verdictRefuse verdict = iota
	verdictAgain          // accepted before; nothing changes
	verdictBehind
	verdictApply
)

// judgeAccept decides an Accept of s under b.
func judgeAccept(l *local, b Ballot, s *State, whole bool) (verdict, how) {
	if l.row != nil && l.row.Ballot == b || l.row == nil && l.floor == b {
		// At the floor itself: the tombstone of b was chosen, held by all, and dropped.
		return verdictAgain, howBallot
	}
	limit := maxBallot(l.floor, l.begun)
	if l.row != nil {
		limit = maxBallot(limit, l.row.Ballot)
	}
	if !limit.Less(b) || b.Less(l.promise) {
		return verdictRefuse, howBehind
	}
	h := judgeState(l.row, s, whole)
	if h == howBehind {
		return verdictBehind, h
	}
	return verdictApply, h
}

// judgeInstall decides an Install of r, which is chosen. ok false: nothing is to be done, unless
// conflict, which says that the row may be older than a tombstone that was dropped here. What is older
// than the epoch is no conflict: who read it in this epoch read it from a member, and all of them would
// have had to drop the tombstone before.
func judgeInstall(l *local, r *Row, whole bool) (h how, ok, conflict bool) {
	switch {
	case l.row == nil && !l.floor.Less(r.Ballot):
		return howBehind, false, true
	case l.row != nil && l.row.State.ID == r.State.ID:
		return howBallot, !l.row.Decided || l.row.Ballot.Less(r.Ballot), false
	case l.row != nil && !l.row.Ballot.Less(r.Ballot):
		return howBehind, false, false
	}
	h = judgeState(l.row, &r.State, whole)
	return h, true, false
}

// judgeDrop says whether the tombstone at b can go.
func judgeDrop(row *Row, b Ballot) bool {
	return row != nil && row.Ballot == b && row.Decided && droppable(&row.State)
}

// droppable reports whether s is a tombstone that nothing hangs on any more.
func droppable(s *State) bool {
	if s.Current != nil || s.Older != 0 {
		return false
	}
	for i := range s.Dead {
		if keepDead(&s.Dead[i]) {
			return false
		}
	}
	return true
}

// keepDead reports whether an entry of the dead list must stay until every holder has
// acknowledged. Of single chunks each holder sees by itself that its row lets go of them.
func keepDead(d *DeadData) bool { return d.Manifest || d.Data.Chunks() > 1 }

// namedBy calls f for the data that v names.
func namedBy(v *Version, f func(d DeadData)) {
	if v == nil {
		return
	}
	if v.Data != nil {
		f(DeadData{Data: *v.Data, Upload: v.Upload})
	}
	if v.Manifest != nil {
		f(DeadData{Data: *v.Manifest, Manifest: true, Upload: v.Upload})
	}
	namedBy(v.Completed, f)
}

// stateNames reports whether s itself names id; its version rows are apart.
func stateNames(kind RegisterKind, s *State, id erasure.DataID) bool {
	found := false
	look := func(d DeadData) { found = found || d.Data.ID == id }
	namedBy(s.Current, look)
	for i := range s.Delta.Put {
		namedBy(&s.Delta.Put[i], look)
	}
	if kind == KindPart {
		for i := range s.Dead {
			look(s.Dead[i])
		}
	}
	return found
}

// letGo lists the data that the rows before name and the rows after do not. Part registers keep
// what is on their dead list; upload registers own nothing: what they name belongs to the object.
func letGo(kind RegisterKind, before, after *State, was, is []Version) []DeadData {
	if kind == KindUpload {
		return nil
	}
	kept := map[erasure.DataID]bool{}
	keep := func(d DeadData) { kept[d.Data.ID] = true }
	if after != nil {
		namedBy(after.Current, keep)
		if kind == KindPart {
			for i := range after.Dead {
				keep(after.Dead[i])
			}
		}
	}
	for i := range is {
		namedBy(&is[i], keep)
	}
	var out []DeadData
	lose := func(d DeadData) {
		if !kept[d.Data.ID] {
			kept[d.Data.ID] = true
			out = append(out, d)
		}
	}
	if before != nil {
		namedBy(before.Current, lose)
		if kind == KindPart {
			for i := range before.Dead {
				lose(before.Dead[i])
			}
		}
	}
	for i := range was {
		namedBy(&was[i], lose)
	}
	return out
}

// unnamed returns what of lost s and the version rows that came with it do not name, each once. Who was merely
// jumped over may propose its data again.
func unnamed(kind RegisterKind, lost []DeadData, s *State, full []Version) []DeadData {
	kept := map[erasure.DataID]bool{}
	keep := func(d DeadData) { kept[d.Data.ID] = true }
	namedBy(s.Current, keep)
	for i := range s.Delta.Put {
		namedBy(&s.Delta.Put[i], keep)
	}
	for i := range full {
		namedBy(&full[i], keep)
	}
	if kind == KindPart {
		for i := range s.Dead {
			keep(s.Dead[i])
		}
	}
	var out []DeadData
	for _, d := range lost {
		if !kept[d.Data.ID] {
			kept[d.Data.ID] = true
			out = append(out, d)
		}
	}
	return out
}

// garbageOf lists what becomes garbage when row, undecided so far, is decided, and the guard under
// which it may be deleted. What was chosen and is no longer named can never be proposed again, so
// nothing is to be guarded against; of what a drive merely jumped over that is not known.
func garbageOf(kind RegisterKind, row *Row) (list []DeadData, guard Ballot) {
	u := row.Undo
	if u == nil {
		u = &Undo{Lossy: true}
	}
	guard = lastBallot
	if u.Lossy || u.Guarded {
		guard = row.Ballot
		for i := range u.Lost {
			// A manifest that may only have been jumped over belongs to its upload, which may still be
			// completed. One that was replaced stands on the dead list besides.
			if !u.Lost[i].Manifest {
				list = append(list, u.Lost[i])
			}
		}
	} else {
		list = append(list, u.Lost...)
	}
	if !u.Lossy {
		var before *State
		if u.Row != nil {
			before = &u.Row.State
		}
		list = append(list, letGo(kind, before, &row.State, u.Put, row.State.Delta.Put)...)
	}
	if kind == KindPart {
		return list, guard
	}
	seen := map[erasure.DataID]bool{}
	for i := range list {
		seen[list[i].Data.ID] = true
	}
	if u.Row != nil {
		for i := range u.Row.State.Dead {
			seen[u.Row.State.Dead[i].Data.ID] = true // announced when that row was decided
		}
	}
	for _, d := range row.State.Dead {
		if !seen[d.Data.ID] {
			list = append(list, d)
		}
	}
	return list, guard
}
