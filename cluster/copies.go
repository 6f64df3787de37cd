package cluster

import (
	"encoding/binary"
	"log/slog"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// compactAfter is the number of commands that a copy gathers before they are folded into a state.
const compactAfter = 256

// copyOf is one drive's copy of what was applied: a state, and the commands since. At most one
// write is on its way at any time; what is applied meanwhile waits, and is one batch after it.
type copyOf struct {
	kv    metadata.KV
	log   *slog.Logger
	tasks *sync.WaitGroup

	// Of the write on its way.
	at    uint64 // Applied of what is stored; 0: unknown, the next write is whole
	count int    // commands stored behind the state

	mu      sync.Mutex // guards what follows
	has     uint64     // Applied of what is stored
	busy    bool       // a write is on its way
	slow    bool       // the drive was given up on until it has caught up
	gen     generation // of what was submitted last
	pending []applied
	waiters []waiter
}

// applied is a state, and how it came from the one before; without raw only the state is known. with
// adds to the batch that stores it.
type applied struct {
	prev uint64
	raw  []byte
	s    *State
	with func(*metadata.Batch) // nil: nothing
}

// waiter is told whether the copy has reached an index.
type waiter struct {
	index uint64
	done  chan<- bool
}

// submit has s written, in a task of its own, and returns at once.
func (c *copyOf) submit(prev uint64, raw []byte, s *State) {
	c.enqueue(applied{prev: prev, raw: raw, s: s})
}

// submitWith has s written as a whole, and what with adds in the same batch.
func (c *copyOf) submitWith(s *State, with func(*metadata.Batch)) {
	c.enqueue(applied{s: s, with: with})
}

func (c *copyOf) enqueue(a applied) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.s.gen != c.gen {
		// Indexes of another generation say nothing of this one.
		c.gen, c.has = a.s.gen, 0
		for _, w := range c.waiters {
			w.done <- false
		}
		c.waiters = nil
	}
	if len(c.pending) > compactAfter { // more than this is written as a whole
		c.pending = slices.DeleteFunc(c.pending, func(p applied) bool { return p.with == nil })
		a.prev, a.raw = 0, nil
	}
	c.pending = append(c.pending, a)
	if !c.busy {
		c.busy = true
		c.tasks.Go(c.run)
	}
}

// run writes until nothing is pending.
func (c *copyOf) run() {
	for {
		c.mu.Lock()
		list := c.pending
		c.pending = nil
		if len(list) == 0 {
			c.busy, c.slow = false, false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		err := c.write(list)
		last := list[len(list)-1].s.Applied
		if err != nil {
			c.log.Warn("a drive's copy of the control plane could not be written", "err", err)
		}
		c.mu.Lock()
		of := list[len(list)-1].s.gen == c.gen
		if err == nil && of {
			c.has = last
		}
		c.waiters = slices.DeleteFunc(c.waiters, func(w waiter) bool {
			if !of {
				return false
			}
			if w.index <= last {
				w.done <- err == nil
			}
			return w.index <= last
		})
		c.mu.Unlock()
	}
}

// reached brings true once the copy has what was applied up to index, which was submitted before,
// and false if it could not be written, or if the drive is stuck.
func (c *copyOf) reached(index uint64) <-chan bool {
	done := make(chan bool, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has >= index || !c.busy || c.slow {
		done <- c.has >= index
	} else {
		c.waiters = append(c.waiters, waiter{index, done})
	}
	return done
}

// stuck gives up on the drive until it has caught up: nobody waits for it.
func (c *copyOf) stuck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.busy || c.slow {
		return
	}
	c.log.Warn("a drive's copy of the control plane is late: the drive is stuck")
	c.slow = true
	for _, w := range c.waiters {
		w.done <- false
	}
	c.waiters = nil
}

// isSlow reports whether the drive was given up on.
func (c *copyOf) isSlow() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slow
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
		s, _ = s.applyOnce(index, c)
		return nil
	})
	return s, err
}

// write stores what list says: the commands, if they continue what is stored, or else the last
// state as a whole. It is one batch, synced.
func (c *copyOf) write(list []applied) error {
	var b metadata.Batch
	last := list[len(list)-1].s
	at := c.at
	whole := at == 0 || c.count+len(list) > compactAfter
	for _, a := range list {
		whole = whole || a.raw == nil || a.prev != at
		at = a.s.Applied
		if a.with != nil {
			a.with(&b)
		}
	}
	if whole {
		k := rowKey(rowCopy)
		b.DeleteRange(indexKey(rowCommand, 0), indexKey(rowCommand, ^uint64(0)))
		b.Set(k, seal(k, last.encode()))
		c.count = 0
	} else {
		for _, a := range list {
			k := indexKey(rowCommand, a.s.Applied)
			b.Set(k, seal(k, append(protowire.AppendVarint(nil, a.prev), a.raw...)))
		}
		c.count += len(list)
	}
	c.at = 0
	if err := c.kv.Apply(&b, true); err != nil {
		return errs.Wrap("cluster.copy", err)
	}
	c.at = last.Applied
	return nil
}
