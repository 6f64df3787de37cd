package metadata

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/placement"
)

// AcceptorConfig is what an Acceptor needs. KV, Shards, Epoch and Now are required.
type AcceptorConfig struct {
	KV     KV
	Shards Shards
	// Epoch returns the epoch in which this drive serves a partition, and whether it is a member.
	Epoch func(partition uint32) (epoch uint64, member bool)
	Now   func() time.Time
	// Promises bounds the promises and the pins held in memory; 0 means 131072 of each.
	Promises int
	// Ahead is how far the promise ceiling is raised beyond what is needed; 0 means 10 s.
	Ahead time.Duration

	stripes int // locks; tests make many small acceptors
}

// ClientConfig is what a Client needs. Replicas is required; the rest has defaults.
type ClientConfig struct {
	Replicas Replicas
	Now      func() time.Time // default time.Now
	Rand     func() uint64    // called by many goroutines; default math/rand/v2
	Logger   *slog.Logger     // default: discards
	// HedgeAfter is how long a read waits for the first R drives before it asks one more; 0 means 20 ms.
	HedgeAfter time.Duration
	// CallTimeout bounds one call to one drive; 0 means 10 s. SealTimeout bounds a Prepare that
	// seals a file; 0 means 60 s.
	CallTimeout, SealTimeout time.Duration
	// SettleAfter is how long an operation that has its quorum waits for the other drives, in the
	// background, before it reports them missing; 0 means 2 s.
	SettleAfter time.Duration
	// FlushAfter is how long a decision waits for company; 0 means 4 ms.
	FlushAfter time.Duration
	// Attempts bounds the ballots of one operation; 0 means 32.
	Attempts int
}

// Replicas finds drives. false: the drive is known to be gone, and is not waited for.
type Replicas interface {
	Replica(drive uint16) (Replica, bool)
}

// View is what a read or an update found: the state that is chosen.
type View struct {
	State    *State // nil, or without Current: absent
	Ballot   Ballot
	Versions []Version // the version rows that the query names, as of State
	// Inline holds the inline shards of the version that the read is about, by position; nil
	// where a drive has none or was not heard.
	Inline [][]byte
}

// ReadOptions says what a Read returns besides the state.
type ReadOptions struct {
	Query       Query
	Inline      bool
	Ask         int // how many drives to ask at first, at least R; for an inline body k
	BucketEpoch uint64
}

// Operation is one change of one register.
type Operation struct {
	ID          OpID // required, random, or derived from the request so that its repetition is the same
	Query       Query
	BucketEpoch uint64
	Seals       []*Seal // by position; nil: none for that position; empty: nothing to seal
	// Need is the shard quorum among Seals. Where all positions have one, at least W are needed
	// whatever it says.
	Need int
	// Pin is called for each ballot after the promises and before Accept, and returns nil once
	// the shard quorum of every later chunk is pinned under b. nil: nothing to pin.
	Pin func(ctx context.Context, b Ballot) error
	// Lacking reports, once the state is chosen, that shards which the register does not seal may be
	// missing: then every position is reported as missing, which makes durable repair rows. It may be
	// called from another goroutine. nil: nothing is lacking.
	Lacking func() bool
	// Sent is the ballot of an earlier Update of the same operation, in an epoch that ended meanwhile, as
	// SentBallot found it in the error; zero: no Accept went out.
	Sent Ballot
	// Apply computes the change from the base, which is nil when the register is absent, and the
	// version rows named by Query. It must be pure, must not modify its arguments, and may run
	// several times. An error ends the operation and is returned as it is, after base was made
	// sure of.
	Apply func(base *State, named []Version) (*Change, error)
}

// Change is the new content of a register. What it does not carry (ring, index, …) is added by
// the proposer.
type Change struct {
	Current          *Version // nil: tombstone
	Older            uint64
	NextSeq, NullSeq uint64
	Put              []Version        // version rows to write
	Drop             []uint64         // version rows to remove
	Dead             []DeadData       // data that the change lets go of
	ClearDead        []erasure.DataID // dead data that every holder has acknowledged
}

// ScanOptions says what a listing asks for.
type ScanOptions struct {
	Kind        RegisterKind
	Bucket      uint64
	BucketEpoch uint64
	Prefix      []byte
	Delimiter   []byte
	After       []byte // exclusive; nil: from the start
	AfterPrefix bool   // After is a common prefix: skip all keys under it
	AfterSub    []byte // KindUpload: continue within key After behind this upload id
	AfterSeq    uint64 // ScanVersions: continue within key After below this sequence; 0: behind the key
	Limit       int
	Upload      UploadID // KindPart: parts of this upload of key Prefix
	From        uint32   // KindPart: first part number
	// Fenced hears only drives that hold the bucket's fence at BucketEpoch. Whatever is chosen in spite of the
	// fence was then accepted before by one of R ≥ n−W+1 of them, and is listed.
	Fenced bool
	// Brief allows versions without headers, metadata, tags and where the body lies.
	Brief bool
}

// ScanItem is one register with its chosen state, or one common prefix. For ScanVersions it is one
// version: State.Current or one of the rows under it, and Latest tells which.
type ScanItem struct {
	Address Address
	Prefix  []byte // not nil: a common prefix; only Address.Key (a live key under it) is set besides
	State   *State // without ring, delta and dead list
	Version *Version
	Latest  bool
}

// ScanPage is one page of a listing. With Truncated, the next page continues behind the last item.
type ScanPage struct {
	Items     []ScanItem
	Truncated bool
	// Where the next page continues; valid with Truncated.
	After       []byte
	AfterPrefix bool
	AfterSub    []byte
	AfterSeq    uint64
}

// Group is an alias for the readers of this package's signatures.
type Group = placement.Group

// RepairRow asks for the repair of the positions of one register: row or shard may be missing.
type RepairRow struct {
	Address   Address
	Partition uint32
	Positions []uint8
	// Asked is another number each time that somebody asks, also for positions that are named already.
	// ClearRepair clears nothing but what is here under the number that was read before the repair began: who asks
	// while it goes on may have found what was looked at before. AddRepair draws one if it is zero; a row of an
	// older build has zero.
	Asked uint64
	// State is used by ClearRepair only: the ID of the state that was verified. Unless it is zero,
	// nothing is cleared when the row on the drive holds another state: that one may have left a
	// repair of its own.
	State Ballot
}

// NewAsked draws a number for RepairRow.Asked.
func NewAsked() uint64 { return rand.Uint64() | 1 }

// UnsettledRow is a register whose row was accepted here and not yet settled, or names data of an earlier
// row of which that is so.
type UnsettledRow struct {
	Address   Address
	Partition uint32
	Ballot    Ballot // zero: the row itself is settled
	Since     int64  // Unix nanoseconds of this drive, of the oldest
	// State is used by ClearUnsettled only: the ID of the state of which all data was verified.
	State Ballot
}

// GarbageRow is data that a decided row let go of. Its shards may be removed through MayDelete with
// Guard once a grace for readers has passed since At.
type GarbageRow struct {
	At        int64 // Unix nanoseconds of this drive
	Address   Address
	Partition uint32
	Dead      DeadData
	Guard     Ballot
}
