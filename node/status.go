package node

import (
	"errors"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
)

// PathState is the condition of one path, in the words of an operator.
type PathState string

// The states of a path.
const (
	PathOpen        PathState = "open"        // the drive serves
	PathFull        PathState = "full"        // the drive has no room for new shards; Open tells whether it serves the rest
	PathAbsent      PathState = "absent"      // the directory is not there
	PathEmpty       PathState = "empty"       // an empty directory: a spare for a replacement, or a disk that is not mounted
	PathForeign     PathState = "foreign"     // something else is there: another cluster's or another drive, or other files
	PathQuarantined PathState = "quarantined" // out of service until somebody sees to it: By says on whose account
	PathRetired     PathState = "retired"     // records of the drive are damaged: it wants to be replaced
	PathReplaced    PathState = "replaced"    // the drive's place was given to another for good
	PathFaulty      PathState = "faulty"      // there, and cannot be used: see Err
)

// Who quarantined a drive.
const (
	ByOperator = "operator"
	ByDrive    = "drive" // the drive itself, after a failed write or sync
)

// PathStatus is what the Set knows of one path.
type PathStatus struct {
	Path string
	Num  uint16
	// Known says that Num is known: that drive is, was or was seen here.
	Known bool
	// Was is the drive that was here when the cluster was formed, for people; 0: none was.
	Was   uint16
	Open  bool
	State PathState
	// By says who quarantined the drive, Why why it does not serve, and Since when it stopped to, zero if it
	// never did in this process.
	By, Why string
	Since   time.Time
	// Err says why the drive is not open. Its disk.StatusOf tells the sort of problem.
	Err error
}

// Status returns what is known of each path, in the order in which they were given. It does no I/O.
func (s *Set) Status() []PathStatus {
	out := make([]PathStatus, len(s.slots))
	for i, sl := range s.slots {
		out[i] = s.status(sl)
		for _, f := range s.founders {
			if f.Path == sl.path {
				out[i].Was = f.Num
			}
		}
	}
	return out
}

func (s *Set) status(sl *slot) PathStatus {
	sl.mu.Lock()
	p := PathStatus{Path: sl.path, Num: sl.num, Known: sl.num != 0, Open: sl.drive != nil, Err: sl.err, Since: sl.since}
	d, hold, sticky, full := sl.drive, sl.hold, sl.sticky, sl.full
	sl.mu.Unlock()
	if d != nil {
		f := d.Fault()
		if f == nil {
			p.State = PathOpen
			if d.Full() {
				p.State, p.Why = PathFull, "drive is full: new shards are refused"
			}
			return p
		}
		p.Open, p.Err, p.Since = false, errs.E("node.Status", errs.Drive, f.Reason), f.At
		sticky = true
	}
	p.State = stateOf(p.Err)
	switch {
	case hold != nil && (p.State == PathFaulty || p.State == PathQuarantined):
		p.State, p.By, p.Why, p.Since = PathQuarantined, ByOperator, hold.Why, hold.At
		return p
	case p.Known && s.isReplaced(p.Num) && p.State == PathFaulty:
		p.State = PathReplaced
	case p.State == PathQuarantined: // found so, at a start
		var se *disk.StatusError
		if errors.As(p.Err, &se) && se.Identity != nil && se.Identity.Hold != nil {
			p.By, p.Why, p.Since = ByOperator, se.Identity.Hold.Why, se.Identity.Hold.At
			return p
		}
	case full && p.State == PathFaulty:
		p.State = PathFull
	case d != nil && d.Fault().Corrupt:
		p.State = PathRetired
	case sticky && p.State == PathFaulty:
		p.State, p.By = PathQuarantined, ByDrive
	}
	if p.Err != nil {
		p.Why = errs.Public(p.Err)
		var se *disk.StatusError
		if errors.As(p.Err, &se) {
			p.Why = se.Detail
		}
	}
	return p
}

// stateOf classifies why a drive is not open, as far as the error tells.
func stateOf(err error) PathState {
	switch disk.StatusOf(err) {
	case disk.Missing:
		return PathAbsent
	case disk.Empty:
		return PathEmpty
	case disk.Foreign, disk.WrongDrive, disk.Occupied:
		return PathForeign
	case disk.Held:
		return PathQuarantined
	case disk.Retired, disk.Corrupt:
		return PathRetired
	case disk.Replaced:
		return PathReplaced
	}
	return PathFaulty
}
