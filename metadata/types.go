package metadata

import (
	"fmt"

	"github.com/ostraka/ostraka/erasure"
)

// Ballot orders the proposals on one register: by counter, then by proposer. The counter is
// seeded by wall time in microseconds and is never read as a time by anything that decides. The
// proposer is drawn at random for each operation attempt of a process, so that no two proposals
// ever share a ballot. The zero Ballot is below every other.
type Ballot struct {
	Counter  uint64
	Proposer uint64
}

// Less reports whether b orders before o.
func (b Ballot) Less(o Ballot) bool {
	return b.Counter < o.Counter || b.Counter == o.Counter && b.Proposer < o.Proposer
}

// IsZero reports whether b is the ballot of an absent row.
func (b Ballot) IsZero() bool { return b == Ballot{} }

// String prints counter.proposer in hex, for people.
func (b Ballot) String() string { return fmt.Sprintf("%x.%x", b.Counter, b.Proposer) }

// OpID names one client operation, across its retries under new ballots. Random, but for
// multipart completion, where it derives from the upload id, so that a completion that is
// repeated by anybody is the same operation.
type OpID uint64

// UploadID names a multipart upload; zero in addresses of objects.
type UploadID [16]byte

// RegisterKind tells the three sorts of register apart. All registers of one key lie in the
// partition of that key.
type RegisterKind uint8

const (
	KindObject RegisterKind = 1 // the record of a key: its versions
	KindUpload RegisterKind = 2 // the state of one multipart upload
	KindPart   RegisterKind = 3 // one part of one upload
)

// Address names a register.
type Address struct {
	Kind   RegisterKind
	Bucket uint64
	Key    []byte // 1..1024 bytes, any value
	Upload UploadID
	Part   uint32 // 1..10000 for KindPart
}

// VersionID is the S3 version id of a version: eight bytes of the sequence within the key, then
// eight random bytes. The zero value is the null version.
type VersionID [16]byte

// VersionKind says what a version is.
type VersionKind uint8

const (
	VersionObject       VersionKind = 1
	VersionDeleteMarker VersionKind = 2
	VersionUpload       VersionKind = 3 // Current of a KindUpload register
	VersionPart         VersionKind = 4 // Current of a KindPart register
)

// UploadStatus is the life of a multipart upload: open → completing → completed, or open → aborted, or
// completing → aborting → aborted, or completed if that came first. Once completing, the manifest is fixed.
// In aborting nobody begins to apply the completion any more, but somebody may have.
type UploadStatus uint8

const (
	UploadOpen       UploadStatus = 1
	UploadCompleting UploadStatus = 2
	UploadCompleted  UploadStatus = 3
	UploadAborted    UploadStatus = 4
	UploadAborting   UploadStatus = 5
)

// Data names one immutable body and how it is stored. Places follow from the layout: chunk 0 on
// the key's partition, chunk i on the partition hash(ID, i).
type Data struct {
	ID        erasure.DataID
	Profile   erasure.Profile
	Size      int64 // bytes stored, after transforms
	ChunkSize int64 // bytes of every chunk but the last; 0 means inline: the shard is a row
	// Width is how many members the partitions of its chunks were taken to have when it was written: its shards lie
	// at positions below. 0: as many as they had in the first layout. See placement.Group.Places.
	Width uint8
	// Transforms is the chain of compression and encryption applied before coding; empty for now,
	// and a reader refuses a transform that it does not know.
	Transforms []Transform
}

// Inline reports whether the shards are rows of the record store.
func (d *Data) Inline() bool { return d.ChunkSize == 0 }

// Chunks returns the number of chunks, at least 1.
func (d *Data) Chunks() uint32 {
	if d.ChunkSize == 0 || d.Size == 0 {
		return 1
	}
	return uint32((d.Size + d.ChunkSize - 1) / d.ChunkSize)
}

// Transform is one step between logical and stored bytes (a door: none is defined yet).
type Transform struct {
	Kind   uint16
	Params []byte
}

// Field is one name and value. Names are lower case.
type Field struct{ Name, Value string }

// Checksum is one S3 checksum of a body. Algorithm and type numbers are those of
// internal/checksum; Value is the raw sum; Parts is the N of a COMPOSITE value, else 0.
type Checksum struct {
	Algorithm uint8
	Composite bool
	Value     []byte
	Parts     uint32
}

// Version is one version of an object, or the content of an upload's or part's register.
type Version struct {
	Kind    VersionKind
	Seq     uint64    // order within the key, ascending; unique within the key for ever
	ID      VersionID // zero: the null version
	ModTime int64     // Unix nanoseconds; for display
	Size    int64     // logical bytes
	ETag    string    // without quotes
	Class   string    // storage class; "" is STANDARD
	Headers []Field   // content-type, cache-control, … as the client gave them
	Meta    []Field   // x-amz-meta-*, without the prefix
	Tags    []Field   // object tags, in the client's order
	Owner   string    // canonical id of the owning account
	// Checksums are what the client sent or the store computed.
	Checksums []Checksum
	Data      *Data // nil for delete markers, and for versions with parts
	// Parts are the parts of a completed multipart upload; the list itself is the body of
	// Manifest, which is stored like any small or large body.
	PartCount uint32
	Manifest  *Data
	Upload    UploadID // the upload that made this version; or zero
	// Lock, replication and external ids (doors): carried, encoded, kept; decided on later.
	RetainUntil int64 // Unix seconds; 0 none
	RetainMode  uint8 // 0 none, 1 governance, 2 compliance
	LegalHold   bool
	Replication []byte
	// Upload registers only.
	Status       UploadStatus
	ChecksumAlgo uint8
	ChecksumType uint8
	Completed    *Version // with UploadCompleting and after: the version that the completion writes
	// Extra holds optional fields that this build does not know, byte for byte.
	Extra []byte
}

// IsLive reports whether v is an object's version with content.
func (v *Version) IsLive() bool { return v != nil && v.Kind == VersionObject }

// RingEntry is an operation that was applied, and the ballot under which it was first accepted.
type RingEntry struct {
	Op     OpID
	Ballot Ballot
}

// DeadData is data that this chain of states no longer refers to. Single-chunk entries are
// advice (each drive also sees its own row let go of them); entries with more chunks, and
// manifests, stay until every holder has acknowledged the deletion.
type DeadData struct {
	Data     Data
	Manifest bool     // Data is a manifest: the parts of Upload are dead as well
	Upload   UploadID // for manifests and parts
}

// State is what a register holds: a value of the chosen chain. All n drives hold the same state
// at the same ballot; nothing in it is particular to a drive.
type State struct {
	ID      Ballot // the ballot under which this state was first proposed: names it
	Prev    Ballot // ID of the state that it was computed from; zero for the first
	Index   uint64 // number of states before it in the chain (a sequencer for change feeds)
	Current *Version
	Older   uint64 // number of version rows under Current
	NextSeq uint64 // sequence for the next version
	NullSeq uint64 // Seq of the null version; 0: none
	Ring    []RingEntry
	Low     Ballot // the newest ballot that fell out of the ring; or the floor it began from
	Dead    []DeadData
	Delta   Delta // what changed in the version rows since Prev
	Extra   []byte
}

// Delta is the change of the version rows from the state Prev to this one.
type Delta struct {
	Put  []Version // rows to write: versions pushed below Current, or changed in place
	Drop []uint64  // rows to remove, by Seq
}

// Row is what one drive holds for a register.
type Row struct {
	Ballot  Ballot
	Decided bool
	State   State
	Undo    *Undo // how to return to the state before, while undecided
}

// Undo is kept beside an undecided row: the row before (nil: none), and the version rows that the
// delta changed or removed, as they were. Rows of Added did not exist before.
//
// A drive that jumped to a state without having the one before cannot return: Lossy, with the data
// that its old rows named (up to a bound; what is beyond is left to the collection of orphans).
type Undo struct {
	Row   *Row
	Put   []Version
	Added []uint64
	Lossy bool
	Lost  []DeadData
	// Guarded says that some of Lost was never known to be chosen, but merely jumped over.
	Guarded bool
}
