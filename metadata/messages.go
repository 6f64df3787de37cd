package metadata

import (
	"context"

	"github.com/ostraka/ostraka/erasure"
)

// Header is the head of every message to a drive.
type Header struct {
	Drive       uint16 // number of the drive addressed
	Partition   uint32
	Epoch       uint64 // of the partition; a drive in another epoch answers errs.Stale
	BucketEpoch uint64 // a drive with a newer fence of the bucket answers errs.Stale
	Deadline    int64  // Unix nanoseconds at the sender; advisory (doors: trace, priority, account)
	Trace       [16]byte
}

// Query names the version rows that a Prepare or a Read also returns.
type Query struct {
	Seqs []uint64 // rows by sequence
	// Below asks for the newest row with Seq < Below (what becomes Current when Current is
	// deleted); 0 asks for none. ^0 asks for the newest row.
	Below uint64
}

// Seal asks the drive to make its shard of chunk 0 of a body durable: an inline shard comes with
// the message, a file was streamed before.
type Seal struct {
	Data   Data
	Index  uint8  // shard index of this drive
	Inline []byte // inline shard row, as erasure.EncodeInline made it; nil for files
}

// PrepareRequest asks for a promise, and first for the seal of the data that the operation
// brings, if any.
type PrepareRequest struct {
	Header
	Address Address
	Ballot  Ballot
	Seal    *Seal
	Query   Query
	// Orphan, when not zero, asks whether the drive's rows of this register name that data.
	Orphan erasure.DataID
}

// PrepareReply is the answer. Without Promised, Hint is what stood in the way.
type PrepareReply struct {
	Promised bool
	Hint     Ballot
	Row      *Row // nil: absent. Undo is never sent.
	Floor    Ballot
	Have     bool  // the drive holds the shard of Seal durably
	SealKind uint8 // errs.Kind why Have is false (0: nothing was to be sealed)
	Versions []Version
	Names    bool // a row here, decided or not, names Orphan
}

// AcceptRequest carries the new state. Identity is set when the round re-accepts base unchanged.
// Full, with Whole set, brings all version rows of the state, for a drive that is behind.
type AcceptRequest struct {
	Header
	Address Address
	Ballot  Ballot
	State   State
	Whole   bool
	Full    []Version
}

// AcceptReply is the answer. Behind: the drive lacks the state that the delta applies to.
type AcceptReply struct {
	Accepted bool
	Behind   bool
	Hint     Ballot
}

// Decision tells a drive that the state at Ballot is chosen. Missing lists the positions of the
// partition whose drive did not acknowledge row or shard: it becomes a durable repair row, synced
// before the answer. Settled says that all members were heard or given up (then the mark of an
// unsettled row goes).
type Decision struct {
	Header
	Address Address
	Ballot  Ballot
	Settled bool
	Missing []uint8
}

// ReadRequest reads a row.
type ReadRequest struct {
	Header
	Address Address
	Query   Query
	Inline  bool // also return this drive's inline shard of the current (or first queried) version
	// InlineID, when not zero, asks for the inline shard of that body instead, whatever the row says.
	InlineID erasure.DataID
}

// ReadReply is the answer; Row nil: absent.
type ReadReply struct {
	Row      *Row
	Floor    Ballot
	Versions []Version
	Inline   []byte // of the version that the request is about; nil: not here
	InlineID erasure.DataID
}

// VersionsRequest reads version rows of one register in descending order of Seq.
type VersionsRequest struct {
	Header
	Address Address
	Below   uint64 // exclusive; ^0 from the newest
	Limit   int
}

// VersionsReply also names the state that the rows belong to.
type VersionsReply struct {
	Row      *Row
	Versions []Version
	More     bool
}

// InstallRequest is repair: a state that is known to be chosen, with all its version rows if
// Whole. A drive whose row is newer keeps it.
type InstallRequest struct {
	Header
	Address Address
	Row     Row // decided
	Whole   bool
	Full    []Version
}

// PinRequest makes the shard of one later chunk durable and protects it under a ballot.
type PinRequest struct {
	Header
	Data   erasure.DataID
	Chunk  uint32
	Ballot Ballot
}

// PinReply answers whether the shard is held durably.
type PinReply struct {
	Have bool
	Hint Ballot
}

// ScanRequest reads registers of one kind in one bucket in key order, those of all partitions
// of which the drive is a member.
type ScanRequest struct {
	Header      // Partition and Epoch unused
	Kind        RegisterKind
	Bucket      uint64
	Prefix      []byte
	After       []byte // exclusive lower bound of the key; nil: from the prefix
	AfterPrefix bool   // After is a common prefix: skip every key under it
	AfterSub    []byte // KindUpload: continue within key After behind this upload id
	Delimiter   []byte
	Limit       int
	Upload      UploadID // KindPart: parts of this upload of key Prefix only, After ignored
	From        uint32   // KindPart: first part number
	// Fenced refuses with errs.Stale on a drive that does not hold the bucket's fence at BucketEpoch yet: it
	// may still take what an answer from before would hide.
	Fenced bool
}

// ScanEntry is one row, or one common prefix with the first key under it as witness, dead or alive.
// The row comes without ring, delta, dead list and undo.
type ScanEntry struct {
	Address Address
	Prefix  []byte // not nil: a common prefix; Row is the witness's
	// Row is nil in the answer of an acceptor in this process: all drives have the row, one of them is
	// used, and head holds what tells which.
	Row  *Row
	head scanHead
}

// ScanReply is a page. Truncated: more may follow behind the last entry.
type ScanReply struct {
	Entries   []ScanEntry
	Truncated bool
	// Over lists the partitions whose epochs ended on this drive, in their order, as of the end of the page.
	// A reader for whom one of these epochs is the present one does not see what was written since.
	Over []EndedEpoch
}

// EndedEpoch says that a drive serves neither Epoch of a partition nor any before it.
type EndedEpoch struct {
	Partition uint32
	Epoch     uint64
}

// FenceRequest stores {bucket, epoch}: the drive refuses older Prepares and Accepts from now on.
type FenceRequest struct {
	Header
	Bucket uint64
	Epoch  uint64
}

// DropRequest removes the row of a tombstone that all n members hold decided at Ballot, and raises
// the partition's floor to it in the same batch. A drive whose row is another keeps it.
type DropRequest struct {
	Header
	Address Address
	Ballot  Ballot
}

// Dropper is a Replica that can drop tombstones.
type Dropper interface {
	Drop(ctx context.Context, m *DropRequest) error
}

// Replica is one drive's side of the register, local or remote. Messages are immutable once
// sent. Each method may be called concurrently; an error is of a kind of internal/errs, and
// says that nothing is known to have happened.
type Replica interface {
	Prepare(ctx context.Context, m *PrepareRequest) (*PrepareReply, error)
	Accept(ctx context.Context, m *AcceptRequest) (*AcceptReply, error)
	Decide(ctx context.Context, m []Decision) error
	Read(ctx context.Context, m *ReadRequest) (*ReadReply, error)
	Versions(ctx context.Context, m *VersionsRequest) (*VersionsReply, error)
	Install(ctx context.Context, m *InstallRequest) error
	Pin(ctx context.Context, m *PinRequest) (*PinReply, error)
	Scan(ctx context.Context, m *ScanRequest) (*ScanReply, error)
	Fence(ctx context.Context, m *FenceRequest) error
}
