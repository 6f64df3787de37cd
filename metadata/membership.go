package metadata

import (
	"context"
	"time"

	"github.com/ostraka/ostraka/placement"
)

// The messages by which the membership of partitions changes, and by which drives are compared.
// docs/protocol.md, "Change of membership", says how they are used and why that is safe.

// Digest stands for the registers of one slice: XOR over their rows of xxh3-128 over the head key and
// the id of the state. Ballots and decisions do not count. Two drives with the same digest hold the same
// states.
type Digest [16]byte

// MaxBatch bounds the partitions of one Wedge or InstallEpoch, MaxRows the rows of one Lookup or
// Transfer.
const (
	MaxBatch = 4096
	MaxRows  = 1024
)

// RowsRequest pages through the rows of a drive in the order of their addresses, whatever the epochs of
// their partitions.
type RowsRequest struct {
	After  *Address // exclusive; nil: from the start
	Slices []uint16 // ascending; nil: all
	Limit  int      // rows of one page; 0: as many as the drive likes
	// Marked asks only for registers that have a mark of an unsettled row, which are few; one of them
	// may have no row.
	Marked bool
}

// RegisterRow is one register of one drive. Row comes without undo; nil: absent.
type RegisterRow struct {
	Address   Address
	Row       *Row
	Unsettled bool // it has a mark
}

// RowsReply is a page. With More, the next one begins behind Next, also when nothing on this one matched.
type RowsReply struct {
	Rows []RegisterRow
	Next *Address
	More bool
}

// LookupRequest asks for the rows of at most MaxRows registers, whatever the epochs of their partitions.
// The reply has one row for each, in the same order.
type LookupRequest struct {
	Addresses []Address
}

// Fence is the epoch of a bucket below which a drive refuses.
type Fence struct{ Bucket, Epoch uint64 }

// WedgeRequest ends the epochs of some partitions on a drive: it refuses their messages from now on,
// for good, and promises Floor for all their registers. Drives that are no members yet take it too: it
// makes them take transfers. A zero Floor only asks, and changes nothing.
type WedgeRequest struct {
	Drive            uint16
	Transition, Term uint64 // of who moves; a drive that met a higher term of the transition refuses
	Floor            Ballot
	Partitions       []uint32
	Epochs           []uint64 // the present ones
}

// WedgeReply is the answer. Unless Done, nothing was wedged, because Floor is not above Hint.
type WedgeReply struct {
	Done bool
	// Hint is the highest ballot that the drive promised for any register, or holds as a floor.
	Hint Ballot
	// Refused lists partitions of the request that are not wedged: of another epoch, by another
	// transition that has not ended, or by a higher term.
	Refused []uint32
	// Begun lists partitions of the request that were wedged here before, by the same transition.
	Begun []uint32
	// Floors and Installed are by position in the request: the partition's floor, and the epoch in
	// which the drive was made a member of it (0: never).
	Floors    []Ballot
	Installed []uint64
	Fences    []Fence // of all buckets
}

// TransferRow is the state of a register as the new epoch begins with it: its row becomes this one
// under the floor of the transfer. A row that is there with that ballot, or a higher one, stays.
type TransferRow struct {
	Address   Address
	Partition uint32
	Decided   bool // the state is known to be chosen
	State     State
	Whole     bool // Full has all its version rows
	Full      []Version
}

// TransferRequest brings at most MaxRows rows to a drive that was wedged under the same Floor, by the
// same term. With a zero Transition it removes rows, of which the states are zero, from a drive that is no
// member of their partitions, and about to be none.
type TransferRequest struct {
	Drive            uint16
	Transition, Term uint64
	Floor            Ballot
	Rows             []TransferRow
}

// TransferReply lists, by index, the rows that the drive can only take Whole. The others are durable.
type TransferReply struct {
	Behind []uint32
}

// InstallEpochRequest makes a drive a member of partitions in new epochs, with a floor for each. It serves
// an epoch once it is installed and the layout has it.
//
// With transition and term zero it is for a member that was away when the epoch began: the layout must
// have the epoch already.
type InstallEpochRequest struct {
	Drive            uint16
	Transition, Term uint64
	Partitions       []uint32
	Epochs           []uint64
	Floors           []Ballot
	Fences           []Fence
}

// Membership is what a drive offers for changes of membership, besides Replica. Errors are of the kinds
// of internal/errs; Stale: another term, epoch or transition has overtaken the message. Every method may be
// called concurrently, and repeated.
type Membership interface {
	// Digests returns placement.Slices digests.
	Digests(ctx context.Context) ([]Digest, error)
	Rows(ctx context.Context, m *RowsRequest) (*RowsReply, error)
	Lookup(ctx context.Context, m *LookupRequest) (*RowsReply, error)
	// Copy is Versions whatever the epoch of the partition.
	Copy(ctx context.Context, m *VersionsRequest) (*VersionsReply, error)
	Wedge(ctx context.Context, m *WedgeRequest) (*WedgeReply, error)
	Transfer(ctx context.Context, m *TransferRequest) (*TransferReply, error)
	InstallEpoch(ctx context.Context, m *InstallEpochRequest) error
	// Installed returns, by position, the epoch in which the drive was made a member; 0: never, which
	// a member of epoch 1 need not be.
	Installed(ctx context.Context, partitions []uint32) ([]uint64, error)
}

var _ Membership = (*Acceptor)(nil)

// Swap puts the drive New into the place of Old in some partitions; or, with Join, makes some partitions wider.
type Swap struct {
	Transition, Term uint64
	Old, New         uint16
	OldGone          bool // Old is closed and will never serve again; it is not asked
	Layout           *placement.Layout
	Groups           []placement.Group // of Layout; each has Old, none has New
	// Next are the quorums of the next epochs, by group; nil: they stay.
	Next []placement.Quorum
	// Join are, by group, the drives that join it, in the order of their positions, behind the members. Nobody leaves:
	// Old and New are zero, and Next has as many members more.
	Join [][]uint16
	// Fences are the epochs of buckets as far as the control plane knows them (bucket, epoch), beyond
	// those that the drives tell.
	Fences []Fence
	// Patience is how long, at a time, partitions stand still for a drive that they need and that does not answer, once others
	// have. 0 means 2 s; it is at least that, and at most the CallTimeout of the client. Whoever tries again because one was
	// given up should have more of it: where it takes longer than that, every term would end at the same place.
	Patience time.Duration
	// Publish makes the new epochs (each one higher) known for partitions. It is called once, when enough
	// drives are ready; partitions that could not be prepared are not among them. It must fail if a
	// higher term of the transition exists.
	Publish func(ctx context.Context, partitions []uint32) error
}

// SwapReport says what a Swap did.
type SwapReport struct {
	// Swapped lists the partitions that are published. The newcomer, if it failed meanwhile, is not yet
	// installed there, as any other member that was away: it wants a Join.
	Swapped []uint32
	// Skipped lists those that had too few drives, in which nothing was changed, or which are wedged and
	// want another call, under a higher term.
	Skipped []uint32
	// Wedged are those of them that stand still, in this term or since an earlier one.
	Wedged []uint32
	Rows   int // rows that were transferred
	// Pause is the time from the first wedge until Publish returned.
	Pause time.Duration
}
