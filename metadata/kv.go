package metadata

import (
	"context"

	"github.com/ostraka/ostraka/erasure"
)

// KV is a drive's ordered record store. The first byte of a key is its namespace: this package owns
// 'a' and 'b' and 'd'…'m' (the layout is in the package documentation), the control plane 'c', the
// shard store 's'.
type KV interface {
	// Get returns the value of key, or nil and no error when it is absent. The result belongs to
	// the caller. A value is never empty.
	Get(key []byte) ([]byte, error)
	// NewIter returns an iterator over [lower, upper); upper nil means no upper bound. The caller
	// closes it. It sees at least what was applied before the call.
	NewIter(lower, upper []byte) (Iter, error)
	// Apply writes the batch atomically. With sync, the batch and every batch applied before it
	// are durable when it returns; concurrent syncs are expected to share one flush.
	Apply(b *Batch, sync bool) error
}

// Iter walks a KV in key order. Key and Value are valid until the next move.
type Iter interface {
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	First() bool
	Last() bool
	Next() bool
	Prev() bool
	Key() []byte
	Value() []byte
	Err() error
	Close() error
}

// OpKind tells the operations of a Batch apart.
type OpKind uint8

// The operations of a Batch.
const (
	OpSet         OpKind = 1
	OpDelete      OpKind = 2
	OpDeleteRange OpKind = 3 // [Key, Value)
)

// Op is one operation of a Batch. Value is the upper bound of OpDeleteRange.
type Op struct {
	Kind       OpKind
	Key, Value []byte
}

// Batch is a list of writes, applied in order. It keeps the slices that it is given.
type Batch struct{ Ops []Op }

// Set writes value under key.
func (b *Batch) Set(key, value []byte) { b.Ops = append(b.Ops, Op{OpSet, key, value}) }

// Delete removes key.
func (b *Batch) Delete(key []byte) { b.Ops = append(b.Ops, Op{OpDelete, key, nil}) }

// DeleteRange removes the keys in [lower, upper).
func (b *Batch) DeleteRange(lower, upper []byte) {
	b.Ops = append(b.Ops, Op{OpDeleteRange, lower, upper})
}

// Shards is what the acceptor needs of the drive's shard store. Every method may be called
// concurrently.
type Shards interface {
	// Seal makes the shard of chunk 0 durable and is idempotent. For a file it was streamed
	// before; when it is not there the error is of kind NotFound.
	Seal(ctx context.Context, addr Address, s *Seal) error
	// SealChunk makes this drive's shard of a later chunk durable, and is idempotent.
	SealChunk(ctx context.Context, id erasure.DataID, chunk uint32) error
	// Have reports whether the shard is here, and durable.
	Have(ctx context.Context, id erasure.DataID, chunk uint32) (bool, error)
	// Inline returns the inline shard row of a body, nil when absent.
	Inline(ctx context.Context, id erasure.DataID) ([]byte, error)
}
