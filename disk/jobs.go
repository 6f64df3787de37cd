package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// nsJob is the namespace of the values of jobs: 't' name. A value is a version byte, what the job
// wrote, and an xxh3-64 (little endian) of the key and everything before it.
const nsJob = 't'

const (
	jobVersion = 1
	// MaxJob is the longest value of a job, in bytes.
	MaxJob = 64 << 10
)

// validJobName reports whether name is of [a-z-]{1,32}.
func validJobName(name string) bool {
	for _, c := range []byte(name) {
		if c != '-' && (c < 'a' || c > 'z') {
			return false
		}
	}
	return len(name) >= 1 && len(name) <= 32
}

func jobKey(name string) []byte { return append([]byte{nsJob}, name...) }

func encodeJob(key, value []byte) []byte {
	b := append([]byte{jobVersion}, value...)
	return binary.LittleEndian.AppendUint64(b, jobSum(key, b))
}

func jobSum(key, b []byte) uint64 { return xxh3.HashSeed(b, xxh3.Hash(key)) }

// decodeJob returns what a job wrote; the result is never nil and aliases b.
func decodeJob(key, b []byte) ([]byte, error) {
	const op = "disk.Job"
	n := len(b) - 8
	if n < 1 || binary.LittleEndian.Uint64(b[n:]) != jobSum(key, b[:n]) {
		return nil, errs.E(op, errs.Corrupt, "the value of the job fails its checksum")
	}
	if b[0] != jobVersion {
		return nil, errs.E(op, errs.Unsupported, fmt.Sprintf("the value of the job has version %d, unknown here", b[0]))
	}
	return b[1:n:n], nil
}

// Job returns the value that SetJob last stored under name on this drive, nil when there is none. The
// error is errs.Corrupt when it is damaged: the job then begins anew.
func (d *Drive) Job(ctx context.Context, name string) ([]byte, error) {
	const op = "disk.Job"
	if !validJobName(name) {
		return nil, errs.E(op, errs.Invalid, "the name of a job has 1 to 32 of a…z and -")
	}
	return call(ctx, d, op, func(context.Context) ([]byte, error) {
		key := jobKey(name)
		b, err := d.store.Get(key)
		if err != nil || b == nil {
			return nil, err
		}
		return decodeJob(key, b)
	})
}

// SetJob stores a small value of a background job durably: where it got to, for example. name is of
// [a-z-]{1,32}, value at most MaxJob bytes; nil removes it.
func (d *Drive) SetJob(ctx context.Context, name string, value []byte) error {
	const op = "disk.SetJob"
	switch {
	case !validJobName(name):
		return errs.E(op, errs.Invalid, "the name of a job has 1 to 32 of a…z and -")
	case len(value) > MaxJob:
		return errs.E(op, errs.Invalid, fmt.Sprintf("the value of a job has %d bytes: the limit is %d", len(value), MaxJob))
	}
	key, remove := jobKey(name), value == nil
	value = bytes.Clone(value)
	return run(ctx, d, op, func(context.Context) error {
		b := new(metadata.Batch)
		if remove {
			b.Delete(key)
		} else {
			b.Set(key, encodeJob(key, value))
		}
		return d.store.Apply(b, true)
	})
}
