//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// content is what a key holds: a body that follows from its id and size, or nothing (id 0).
type content struct {
	id   uint64
	size int64
}

var nothing content

func (c content) String() string {
	if c == nothing {
		return "nothing"
	}
	return fmt.Sprintf("body %x of %d bytes", c.id, c.size)
}

// entry is one key of the ledger: what was last acknowledged or read, and what requests without an
// answer since then may have made of it, in their order. Each key has one writer at a time.
type entry struct {
	is    content
	maybe []content
	past  []string // the end of what happened to it, for the message of a loss
}

const keptPast = 12

func (e *entry) note(format string, args ...any) {
	if len(e.past) == keptPast {
		e.past = e.past[1:]
	}
	e.past = append(e.past, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (e *entry) story() string { return "\n\t" + strings.Join(e.past, "\n\t") }

func (e *entry) allows(c content) bool { return e.is == c || slices.Contains(e.maybe, c) }

func (e *entry) String() string {
	if len(e.maybe) == 0 {
		return e.is.String()
	}
	return fmt.Sprintf("%v, or of a request without an answer %v", e.is, e.maybe)
}

// outcome is how a request ended.
type outcome int

const (
	acknowledged outcome = iota
	refused              // a 4xx answer, or the request never left: it has no effect
	unknown              // no answer, or 5xx: both states are possible
)

// tried enters the end of a request that would have made c of the key.
func (e *entry) tried(c content, o outcome, err error) {
	switch o {
	case acknowledged:
		e.note("acknowledged: %v", c)
		e.is, e.maybe = c, nil
	case unknown:
		e.note("without an answer: %v (%v)", c, err)
		e.maybe = append(e.maybe, c)
	case refused:
		e.note("refused: %v (%v)", c, err)
	}
}

// seen enters what a read showed, which the entry allows. Reads never go back: what came before it is
// ruled out. What was tried after it is not, because a request without an answer may still take
// effect, until a later one is acknowledged.
func (e *entry) seen(c content) {
	if e.is == c {
		return
	}
	e.note("read: %v", c)
	i := slices.Index(e.maybe, c)
	e.is, e.maybe = c, slices.Clone(e.maybe[i+1:])
}
