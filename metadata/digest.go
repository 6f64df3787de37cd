package metadata

import (
	"context"
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// The digests of a drive, one for each slice, change in the batch that changes a state. Every register of
// a slice has the same stripe, whose lock guards the slice's digest.

// digestFlush is how many digests one batch of the first scan writes.
const digestFlush = 1024

// share is what one row adds to the digest of its slice.
func share(head []byte, id Ballot) (d Digest) {
	b := append(make([]byte, 0, 256), head...) // mostly on the stack
	b = binary.BigEndian.AppendUint64(b, id.Counter)
	b = binary.BigEndian.AppendUint64(b, id.Proposer)
	return xxh3.Hash128(b).Bytes()
}

func (d *Digest) xor(o Digest) {
	for i := range d {
		d[i] ^= o[i]
	}
}

// sliceDigest is the digest of one slice as the store has it, guarded by the lock of its stripe.
type sliceDigest struct {
	unknown bool // a batch that was to change it failed
	d       Digest
}

// digest adds to b the digest of the slice of addr once next has taken the place of row; either may be
// nil. The caller holds the stripe's lock for writing, applies b, and then calls done with what came of it.
func (a *Acceptor) digest(b *Batch, addr *Address, head []byte, row, next *Row) (done func(error), err error) {
	var was, is Ballot
	if row != nil {
		was = row.State.ID
	}
	if next != nil {
		is = next.State.ID
	}
	if was == is {
		return func(error) {}, nil
	}
	slice := placement.Slice(addr.Bucket, addr.Key)
	at := &a.digests[slice]
	d := at.d
	if at.unknown {
		if d, err = a.storedDigest(slice); err != nil {
			return nil, err
		}
	}
	if row != nil {
		d.xor(share(head, was))
	}
	if next != nil {
		d.xor(share(head, is))
	}
	key := digestKey(slice)
	b.Set(key, sealValue(key, append([]byte{rowFormat}, d[:]...)))
	return func(err error) {
		if at.unknown = err != nil; !at.unknown {
			at.d = d
		}
	}, nil
}

func (a *Acceptor) storedDigest(slice uint16) (d Digest, err error) {
	key := digestKey(slice)
	value, err := a.kv.Get(key)
	if err != nil || value == nil {
		return d, err
	}
	return decodeDigest(key, value)
}

func decodeDigest(key, value []byte) (d Digest, err error) {
	b, err := openValue(key, value)
	if err == nil && len(b) != len(d) {
		err = errs.E("metadata.decodeDigest", errs.Corrupt, "malformed digest")
	}
	copy(d[:], b)
	return d, err
}

// Digests returns the digest of each slice. What it counts is durable.
func (a *Acceptor) Digests(ctx context.Context) ([]Digest, error) {
	const op = "metadata.Digests"
	list := make([]Digest, placement.Slices)
	for i := range list {
		if i%256 == 0 && ctx.Err() != nil {
			return nil, errs.Wrap(op, ctx.Err())
		}
		st := &a.keys[a.sliceStripe(uint16(i))]
		st.mu.RLock()
		list[i] = a.digests[i].d
		var err error
		if a.digests[i].unknown {
			list[i], err = a.storedDigest(uint16(i))
		}
		st.mu.RUnlock()
		if err != nil {
			return nil, errs.Wrap(op, err)
		}
	}
	return list, nil
}

// loadDigests reads the digests. Slices without a row have none yet.
func (a *Acceptor) loadDigests() error {
	if err := a.completeDigests(); err != nil {
		return err
	}
	return a.each([]byte{nsDigest}, func(key, b []byte) error {
		if len(key) == 1 {
			return nil // the marker
		}
		if len(key) != 3 || len(b) != len(Digest{}) || binary.BigEndian.Uint16(key[1:]) >= placement.Slices {
			return errs.E("metadata.Digests", errs.Corrupt, "malformed digest")
		}
		a.digests[binary.BigEndian.Uint16(key[1:])].d = Digest(b)
		return nil
	})
}

// completeDigests computes the digests of a store that was written before there were any. The marker is
// the commit point: it is written, with a sync, behind the last digest.
func (a *Acceptor) completeDigests() error {
	marker := digestMarker()
	value, err := a.kv.Get(marker)
	if err != nil {
		return err
	}
	if value != nil {
		_, err := openValue(marker, value)
		return err
	}
	digests := make([]Digest, placement.Slices)
	var mem arena
	err = a.each([]byte{nsHead}, func(key, b []byte) error {
		addr, rest, err := cutAddress(key[1:])
		if err != nil || len(rest) > 0 {
			return errs.E("metadata.Digests", errs.Corrupt, "malformed key in the record store")
		}
		id, err := stateID(&mem, b)
		if err != nil {
			return err
		}
		digests[placement.Slice(addr.Bucket, addr.Key)].xor(share(key, id))
		return nil
	})
	if err != nil {
		return err
	}
	var b Batch
	// A scan that was cut short may have left digests.
	b.DeleteRange([]byte{nsDigest}, []byte{nsDigest + 1})
	for i, d := range digests {
		if d == (Digest{}) {
			continue
		}
		key := digestKey(uint16(i))
		b.Set(key, sealValue(key, append([]byte{rowFormat}, d[:]...)))
		if len(b.Ops) == digestFlush {
			if err := a.kv.Apply(&b, false); err != nil {
				return err
			}
			b = Batch{}
		}
	}
	b.Set(marker, sealValue(marker, []byte{rowFormat}))
	return a.kv.Apply(&b, true)
}

// stateID returns the id of the state of an encoded row.
func stateID(mem *arena, payload []byte) (Ballot, error) {
	var h scanHead
	mem.room(len(payload) + 16)
	_, err := h.slimTo(mem.b, payload) // what it appends is not kept
	return h.id, err
}
