package cluster

import (
	"encoding/binary"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// compactAfter is the number of commands that a copy gathers before they are folded into a state.
const compactAfter = 256

// copyOf is one drive's copy of what was applied: a state, and the commands since. At most one
// write is on its way at any time; while it is, newer states wait, the newest alone.
type copyOf struct {
	kv    metadata.KV
	at    uint64 // Applied of what is stored; 0: unknown, the next write is whole
	count int

	mu   sync.Mutex // guards what follows; at and count belong to the write on its way
	busy bool
	next *State
}

// submit begins to write what write writes, in a task of its own, and returns where its outcome
// comes. If the write before is still on its way, the outcome is an error, and s follows later.
func (c *copyOf) submit(tasks *sync.WaitGroup, prev uint64, raw []byte, s *State) <-chan error {
	done := make(chan error, 1)
	result := done
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy {
		c.next = s
		done <- errs.E("cluster.copy", errs.Busy, "the write before is not done")
		return result
	}
	c.busy = true
	tasks.Go(func() {
		err := c.write(prev, raw, s)
		for s := c.after(); ; s = c.after() {
			if done != nil {
				done <- err // not before after, so that who waited finds the copy idle
				done = nil
			}
			if s == nil {
				return
			}
			// A failure leaves the copy to the next state, which is then written whole.
			_ = c.write(0, nil, s)
		}
	})
	return result
}

// after returns the state that waits for the write before; when there is none the copy is idle.
func (c *copyOf) after() *State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.next
	c.next, c.busy = nil, s != nil
	return s
}

// readCopy returns the state that a drive's copy holds; nil for none.
func readCopy(kv metadata.KV) (*State, error) {
	body, err := get(kv, rowKey(rowCopy))
	if err != nil || body == nil {
		return nil, err
	}
	s, err := decodeState(body)
	if err != nil {
		return nil, err
	}
	err = each(kv, rowCommand, func(rest, v []byte) error {
		if len(rest) != 8 {
			return errMalformed()
		}
		index := binary.BigEndian.Uint64(rest)
		prev, n := protowire.ConsumeVarint(v)
		if n < 0 {
			return errMalformed()
		}
		if index <= s.Applied {
			return nil
		}
		if prev != s.Applied {
			return errs.E("cluster.readCopy", errs.Corrupt, "the copy of the control plane has a hole")
		}
		c, err := decodeCommand(v[n:])
		if err != nil {
			return err
		}
		s, _ = s.apply(index, c)
		return nil
	})
	return s, err
}

// write stores that s came from the state at prev by the command raw.
func (c *copyOf) write(prev uint64, raw []byte, s *State) error {
	var b metadata.Batch
	if c.at == prev && c.at != 0 && c.count < compactAfter && raw != nil {
		k := indexKey(rowCommand, s.Applied)
		b.Set(k, seal(k, append(protowire.AppendVarint(nil, prev), raw...)))
		c.count++
	} else {
		k := rowKey(rowCopy)
		b.DeleteRange(indexKey(rowCommand, 0), indexKey(rowCommand, ^uint64(0)))
		b.Set(k, seal(k, s.encode()))
		c.count = 0
	}
	c.at = 0
	if err := c.kv.Apply(&b, true); err != nil {
		return errs.Wrap("cluster.copy", err)
	}
	c.at = s.Applied
	return nil
}
