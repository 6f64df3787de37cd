package disk

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
)

// Names in the directory of a drive.
const (
	identityFile = "ostraka.json"
	identityCopy = "ostraka.json.bak"
	lockFile     = "lock"
	metaDir      = "meta"
	shardsDir    = "shards"
)

// NodeFile is where package node keeps which node a drive belongs to. It may be there before the identity: a
// directory that holds nothing else is Empty.
const NodeFile = "ostraka-node.json"

// FormatVersion is the version of the drive's layout that this build writes, and the newest that
// it reads.
const FormatVersion = 1

// maxIdentity bounds the identity file.
const maxIdentity = 1 << 20

// ID is a random 16-byte id of a cluster or a drive, printed as 32 hex digits.
type ID [16]byte

// NewID draws an id.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails
	return id
}

// IsZero reports whether id was never drawn.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the 32 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(id) {
		return fmt.Errorf("an id has %d hex digits, not %d characters", 2*len(id), len(b))
	}
	_, err := hex.Decode(id[:], b)
	return err
}

// Founder is one drive of the set that a cluster was formed over.
type Founder struct {
	Num   uint16 `json:"num"`
	Drive ID     `json:"drive"`
	Path  string `json:"path,omitempty"` // where it was when the cluster was formed; for people
}

// Features are the feature bits of a drive's format. A build refuses a drive with a mandatory
// feature that it does not know, and ignores optional ones.
type Features struct {
	Mandatory []string `json:"mandatory,omitempty"`
	Optional  []string `json:"optional,omitempty"`
}

// Identity says what a drive is. It is kept twice, in ostraka.json and ostraka.json.bak; each copy
// ends with a checksum over every byte before it:
//
//	{
//	 "identity": {"cluster": "…", "drive": "…", "num": 3, "format": 1, …},
//	 "sha256": "64 hex digits over everything up to the quote before them"
//	}
//
// A copy is replaced whole (temporary file, sync, rename, directory sync), the backup first, so one
// valid copy exists at any moment. The valid copy with the higher revision counts.
type Identity struct {
	Cluster ID     `json:"cluster"`
	Drive   ID     `json:"drive"`
	Num     uint16 `json:"num"`
	// Format is the version that wrote the drive; OldestReader the oldest that can read it.
	Format       uint32   `json:"format"`
	OldestReader uint32   `json:"oldestReader"`
	Features     Features `json:"features"`
	// Forming is set until the drive's cluster has its first state (or the drive its place in an
	// existing cluster): nothing on it counts yet, and forming it again continues.
	Forming  bool      `json:"forming"`
	Founders []Founder `json:"founders"`
	Created  time.Time `json:"created"`
	// Retired says why the drive may never serve again under this id; empty while it may.
	Retired string `json:"retired,omitempty"`
	// Hold keeps the drive out of service until an operator releases it; nil while it serves.
	Hold     *Hold  `json:"hold,omitempty"`
	Revision uint64 `json:"revision"`
}

// Hold is an operator's quarantine of a drive. It is part of the identity, so that it survives restarts
// and goes with the drive.
type Hold struct {
	Why string    `json:"why"`
	At  time.Time `json:"at"`
}

var errChecksum = errors.New("checksum does not match")

const (
	identityHead = "{\n \"identity\": "
	identityMid  = ",\n \"sha256\": \""
	identityTail = "\"\n}\n"
)

// encode returns the content of one copy.
func (id *Identity) encode() ([]byte, error) {
	body, err := json.Marshal(id)
	if err != nil {
		return nil, err
	}
	b := append([]byte(identityHead), body...)
	b = append(b, identityMid...)
	sum := sha256.Sum256(b)
	b = hex.AppendEncode(b, sum[:])
	return append(b, identityTail...), nil
}

// decodeIdentity reads one copy. Every byte of it is covered: what is changed is refused.
func decodeIdentity(b []byte) (*Identity, error) {
	n := len(b) - len(identityTail) - 2*sha256.Size
	if n < len(identityHead)+len(identityMid) || string(b[len(b)-len(identityTail):]) != identityTail ||
		!bytes.HasPrefix(b, []byte(identityHead)) || !bytes.HasSuffix(b[:n], []byte(identityMid)) {
		return nil, errors.New("not an identity file, or cut short")
	}
	sum := sha256.Sum256(b[:n])
	if hex.EncodeToString(sum[:]) != string(b[n:len(b)-len(identityTail)]) {
		return nil, errChecksum
	}
	id := new(Identity)
	// Fields that a newer build added are skipped: OldestReader and Features say what may be.
	if err := json.Unmarshal(b[len(identityHead):n-len(identityMid)], id); err != nil {
		return nil, err
	}
	if id.Cluster.IsZero() || id.Drive.IsZero() || id.Format == 0 {
		return nil, errors.New("identity is incomplete")
	}
	return id, nil
}

// supported reports why this build may not use a drive of this identity, or nil.
func (id *Identity) supported(path string) error {
	if id.OldestReader > FormatVersion {
		return &StatusError{Path: path, Status: TooNew, Identity: id,
			Detail: fmt.Sprintf("has drive format %d, which needs a reader of format %d or later; this build reads up to %d: run a newer ostraka",
				id.Format, id.OldestReader, FormatVersion)}
	}
	if len(id.Features.Mandatory) > 0 { // none is defined yet
		return &StatusError{Path: path, Status: TooNew, Identity: id,
			Detail: fmt.Sprintf("uses the features %s, which this build does not know: run a newer ostraka",
				strings.Join(id.Features.Mandatory, ", "))}
	}
	return nil
}

// Status says what Inspect found at a path.
type Status uint8

const (
	Missing    Status = iota + 1 // the directory does not exist
	Empty                        // a directory that may be formatted
	Identified                   // a drive of this project, readable by this build
	Occupied                     // a directory with files, but no identity
	Damaged                      // both copies of the identity are damaged
	TooNew                       // a drive of a newer format
	Unreadable                   // the directory or its identity cannot be read
	Foreign                      // a drive of another cluster than expected
	WrongDrive                   // another drive of the same cluster than expected
	InUse                        // another process, or this one, has the drive open
	Retired                      // the drive lost or corrupted records and may not return under its id
	Corrupt                      // the record store is damaged or gone
	Held                         // an operator has quarantined the drive
	Replaced                     // the cluster has given the drive's place to another for good
)

var statusNames = map[Status]string{Missing: "missing", Empty: "empty", Identified: "identified", Occupied: "occupied",
	Damaged: "identity damaged", TooNew: "newer format", Unreadable: "unreadable", Foreign: "foreign cluster",
	WrongDrive: "other drive", InUse: "in use", Retired: "retired", Corrupt: "record store corrupt",
	Held: "quarantined", Replaced: "replaced"}

// String names the status for people.
func (s Status) String() string { return statusNames[s] }

// StatusError says why a directory cannot be used as the drive that it should be. Its kind is
// Drive, or Corrupt for Damaged, Retired and Corrupt.
type StatusError struct {
	Path     string
	Status   Status
	Detail   string    // continues "drive <path> "
	Identity *Identity // what was found, if anything
	Err      error
}

// Error returns a sentence for the operator.
func (e *StatusError) Error() string {
	s := "drive " + e.Path + " " + e.Detail
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes the kind visible to package errs, and reaches the cause.
func (e *StatusError) Unwrap() []error {
	k := errs.Drive
	if e.Status == Damaged || e.Status == Retired || e.Status == Corrupt {
		k = errs.Corrupt
	}
	list := []error{errs.E("disk.Open", k, e.Status.String())}
	if e.Err != nil {
		list = append(list, e.Err)
	}
	return list
}

// StatusOf returns the status that err carries, or 0.
func StatusOf(err error) Status {
	var e *StatusError
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// Inspection is what Inspect found.
type Inspection struct {
	Path     string
	Status   Status
	Identity *Identity // with Identified and TooNew
	// Warning reports a damaged or outdated copy of the identity that the other copy made good.
	Warning string
	// Err explains every status but Empty and Identified.
	Err error
}

// Inspect looks at path and changes nothing.
func Inspect(fsys vfs.FS, path string) Inspection {
	in := Inspection{Path: path}
	fail := func(s Status, detail string, err error) Inspection {
		in.Status = s
		in.Err = &StatusError{Path: path, Status: s, Detail: detail, Err: err}
		return in
	}
	fi, err := fsys.Stat(path)
	switch {
	case vfsx.IsNotExist(err):
		return fail(Missing, "does not exist: mount the disk, or create an empty directory for a new drive", nil)
	case err != nil:
		return fail(Unreadable, "cannot be read", err)
	case !fi.IsDir():
		return fail(Occupied, "is not a directory", nil)
	}
	main, mainErr := readIdentity(fsys, fsys.PathJoin(path, identityFile))
	back, backErr := readIdentity(fsys, fsys.PathJoin(path, identityCopy))
	best := main
	if best == nil || back != nil && back.Revision > best.Revision {
		best = back
	}
	if best == nil {
		return inspectUnidentified(fsys, in, fail, mainErr, backErr)
	}
	switch {
	case mainErr != nil:
		in.Warning = fmt.Sprintf("drive %s: identity file %s is damaged (%v); its copy is used", path, identityFile, mainErr)
	case backErr != nil:
		in.Warning = fmt.Sprintf("drive %s: identity copy %s is damaged (%v)", path, identityCopy, backErr)
	case main.Revision != back.Revision:
		in.Warning = fmt.Sprintf("drive %s: the two identity copies differ in age (revisions %d and %d); the newer one is used", path, main.Revision, back.Revision)
	}
	in.Identity = best
	if err := best.supported(path); err != nil {
		in.Status, in.Err = TooNew, err
		return in
	}
	in.Status = Identified
	return in
}

func inspectUnidentified(fsys vfs.FS, in Inspection, fail func(Status, string, error) Inspection, mainErr, backErr error) Inspection {
	if !vfsx.IsNotExist(mainErr) || !vfsx.IsNotExist(backErr) {
		if errs.KindOf(mainErr) == errs.Drive || errs.KindOf(backErr) == errs.Drive {
			return fail(Unreadable, "has an identity that cannot be read", errors.Join(mainErr, backErr))
		}
		return fail(Damaged, "has a damaged identity in both copies: replace the drive, or restore "+identityFile+" from a backup",
			fmt.Errorf("%s: %v; %s: %v", identityFile, mainErr, identityCopy, backErr))
	}
	names, err := fsys.List(in.Path)
	if err != nil {
		return fail(Unreadable, "cannot be listed", err)
	}
	for _, name := range names {
		if !mayPrecedeIdentity(name) {
			return fail(Occupied, fmt.Sprintf("is not empty (it holds %q) and has no identity: nothing is formatted over it; give an empty directory", name), nil)
		}
	}
	in.Status = Empty
	return in
}

// mayPrecedeIdentity lists what an empty drive may hold: what mkfs leaves, what a crash of
// Format before its first rename leaves, and the intention of a node to make it its own.
func mayPrecedeIdentity(name string) bool {
	switch name {
	case "lost+found", lockFile, identityFile + vfsx.TempSuffix, identityCopy + vfsx.TempSuffix, NodeFile, NodeFile + vfsx.TempSuffix:
		return true
	}
	return false
}

func readIdentity(fsys vfs.FS, name string) (*Identity, error) {
	b, err := vfsx.ReadFile(fsys, name, maxIdentity)
	if err != nil {
		return nil, err
	}
	return decodeIdentity(b)
}

// writeIdentity replaces both copies, the backup first.
func writeIdentity(fsys vfs.FS, path string, id *Identity) error {
	b, err := id.encode()
	if err != nil {
		return err
	}
	if err := vfsx.ReplaceFile(fsys, fsys.PathJoin(path, identityCopy), b); err != nil {
		return err
	}
	return vfsx.ReplaceFile(fsys, fsys.PathJoin(path, identityFile), b)
}

// Format makes an empty directory a drive: it writes the identity, marked as forming. Open then
// makes the rest, and MarkFormed ends the forming. A directory that holds anything is refused; an
// interrupted Format is continued by Format or Open with the same identity.
func Format(fsys vfs.FS, path string, id Identity) error {
	in := Inspect(fsys, path)
	if in.Status == Identified && in.Identity.Forming && in.Identity.Drive == id.Drive && in.Identity.Cluster == id.Cluster {
		return nil
	}
	if in.Status == Identified {
		return &StatusError{Path: path, Status: Occupied, Identity: in.Identity,
			Detail: fmt.Sprintf("is already drive %d of cluster %s: nothing is formatted over it", in.Identity.Num, in.Identity.Cluster)}
	}
	if in.Status != Empty {
		return in.Err
	}
	if id.Cluster.IsZero() || id.Drive.IsZero() {
		return errs.E("disk.Format", errs.Invalid, "an identity needs the ids of cluster and drive")
	}
	id.Format, id.OldestReader, id.Forming, id.Retired, id.Revision = FormatVersion, 1, true, "", 1
	lock, err := lockDrive(fsys, path)
	if err != nil {
		return err
	}
	err = writeIdentity(fsys, path, &id)
	if err := errors.Join(err, lock.Close()); err != nil {
		return &StatusError{Path: path, Status: Unreadable, Detail: "cannot be formatted", Err: err}
	}
	return nil
}

// SetHold writes hold, or with nil its end, into the identity of the drive at path, which no process
// has open and which must be drive. Errors are *StatusError.
func SetHold(fsys vfs.FS, path string, drive ID, hold *Hold) error {
	lock, err := lockDrive(fsys, path)
	if err != nil {
		return err
	}
	return errors.Join(setHold(fsys, path, drive, hold), lock.Close())
}

func setHold(fsys vfs.FS, path string, drive ID, hold *Hold) error {
	in := Inspect(fsys, path)
	switch {
	case in.Status == Empty:
		return &StatusError{Path: path, Status: Empty, Detail: "is empty, where a drive with an identity is expected: is its disk mounted?"}
	case in.Err != nil:
		return in.Err
	case in.Identity.Drive != drive:
		return &StatusError{Path: path, Status: WrongDrive, Identity: in.Identity, Detail: fmt.Sprintf("is not drive %s", drive)}
	case hold == nil && in.Identity.Hold == nil:
		return nil
	}
	id := *in.Identity
	id.Hold = hold
	id.Revision++
	if err := writeIdentity(fsys, path, &id); err != nil {
		return &StatusError{Path: path, Status: Unreadable, Identity: in.Identity, Detail: "cannot be written", Err: err}
	}
	return nil
}
