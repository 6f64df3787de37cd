package metadata

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// merger merges what the drives of a listing send, each in the order of names, as it comes in: a drive that was asked
// for too little is asked again from where it ended, and the others keep what they sent. A name counts once every
// drive has said what it has up to there, so next never goes beyond the last name of a drive that has more: as
// all drives answered after the listing began, that is a read of each key at all of them. It is pure: it asks
// nobody, and is no safer for concurrent use than its fields.
type merger struct {
	// member says whether a drive's row of a key counts. Calls about one key follow each other.
	member  func(key []byte, drive uint16) bool
	brief   bool // rows that are decoded here are brief
	sources []scanSource
	at      map[uint16]int // drive → index in sources
	last    *ScanEntry     // where the result ends so far; nil: nothing was merged
	merged  int            // names, those that nobody's row counted for among them

	stale  bool // the contest is, of sources that were added to, or dropped
	match  contest
	voters []*ScanEntry
}

// scanSource is what one drive has said.
type scanSource struct {
	drive   uint16
	entries []ScanEntry // not merged yet
	more    bool        // the drive has more behind end
	end     *ScanEntry  // the last one that it sent; nil: none
	used    int         // entries that were merged
}

// dry reports whether nothing can be merged before the drive says more.
func (s *scanSource) dry() bool { return s.more && len(s.entries) == 0 }

// candidate is one name of a merged listing: a register, or a common prefix with its smallest
// witness.
type candidate struct {
	addr   Address
	prefix []byte
	row    *Row // the newest row that was seen of addr
	// chosen: row is known to be chosen, or no member that was asked has one newer.
	chosen bool
}

// add takes an answer of a drive: its first, to a question that began at last or before; or what follows behind the
// end of what it sent before.
func (m *merger) add(drive uint16, r *ScanReply) {
	m.stale = true
	i, ok := m.at[drive]
	if !ok {
		if m.at == nil {
			m.at = map[uint16]int{}
		}
		i = len(m.sources)
		m.at[drive] = i
		m.sources = append(m.sources, scanSource{drive: drive})
	}
	s := &m.sources[i]
	s.more = r.Truncated
	if len(r.Entries) == 0 {
		return
	}
	s.end = &r.Entries[len(r.Entries)-1]
	if len(s.entries) == 0 {
		s.entries = r.Entries
	} else {
		s.entries = slices.Concat(s.entries, r.Entries)
	}
}

// drop forgets a drive, which can say no more. Whoever stands in for it begins behind last.
func (m *merger) drop(drive uint16) {
	m.stale = true
	m.sources = slices.DeleteFunc(m.sources, func(s scanSource) bool { return s.drive == drive })
	clear(m.at)
	for i := range m.sources {
		m.at[m.sources[i].drive] = i
	}
}

// dry reports whether some drive must say more before anything else is merged.
func (m *merger) dry() bool {
	return slices.ContainsFunc(m.sources, func(s scanSource) bool { return s.dry() })
}

// done reports whether everything was merged that there is.
func (m *merger) done() bool {
	return !slices.ContainsFunc(m.sources, func(s scanSource) bool { return s.more || len(s.entries) > 0 })
}

// next returns the candidates that follow, at most most of them, and fewer only if the merger is dry or done.
func (m *merger) next(most int) []candidate {
	if m.stale {
		m.stale = false
		m.match.begin(m.sources)
		m.voters = make([]*ScanEntry, 0, len(m.sources))
	}
	dry, left := m.dry(), 0
	for i := range m.sources {
		left = max(left, len(m.sources[i].entries))
	}
	left = min(left, most) // a guess
	list := make([]candidate, 0, left)
	rows := make([]Row, 0, left) // of the candidates, as far as they do not come decoded
	for !dry && len(list) < most {
		i, least := m.match.winner()
		if least == nil {
			break
		}
		m.last = least
		m.merged++
		c := candidate{addr: least.Address, prefix: least.Prefix}
		m.voters = m.voters[:0]
		var best *ScanEntry
		var highest, id Ballot
		for e := least; e != nil && (e == least || place(e, least) == 0); i, e = m.match.winner() {
			s := &m.sources[i]
			s.entries = s.entries[1:]
			s.used++
			m.match.next(i, s.entries)
			dry = dry || s.dry()
			// Of a prefix, only the rows of the smallest witness count; a drive with a larger one
			// has no row of the smallest.
			if e != least && !sameAddress(&e.Address, &least.Address) || !m.member(e.Address.Key, s.drive) {
				continue
			}
			m.voters = append(m.voters, e)
			if ballot, state, _ := e.heading(); best == nil || highest.Less(ballot) {
				best, highest, id = e, ballot, state
			}
		}
		if best != nil {
			for _, e := range m.voters {
				_, state, decided := e.heading()
				c.chosen = c.chosen || decided && state == id
			}
			if len(rows) == cap(rows) {
				rows = make([]Row, 0, max(left, 16)) // those in use stay where they are
			}
			rows = append(rows, Row{})
			if row, err := best.row(&rows[len(rows)-1], m.brief); err == nil {
				c.row = row
			} else {
				// Whoever makes sure of the candidate asks all drives, and knows what to make of it.
				rows[len(rows)-1] = Row{}
				c.row, c.chosen = &rows[len(rows)-1], false
			}
		}
		if c.row != nil || c.prefix != nil {
			list = append(list, c)
		}
	}
	return list
}

// contest finds the source with the least entry: a tree of losers, so that the next one costs one comparison for each
// doubling of the sources (Knuth, The Art of Computer Programming 3, 5.4.1).
type contest struct {
	heads  []head  // by source
	losers []int32 // of the match at each node of the tree, whose root is 1; at 0: the winner of all
	skip   int     // bytes that all names have in common
}

// head is the next entry of a source, nil: none, and with it eight bytes of its name, from the first that tells names
// apart: most matches are decided by these alone, without a look at entries all over the memory.
type head struct {
	e     *ScanEntry
	bytes uint64
}

func (t *contest) head(entries []ScanEntry) head {
	if len(entries) == 0 {
		return head{}
	}
	h := head{e: &entries[0]}
	name := h.e.name()
	if name = name[min(t.skip, len(name)):]; len(name) >= 8 {
		h.bytes = binary.BigEndian.Uint64(name)
	} else {
		var b [8]byte
		copy(b[:], name)
		h.bytes = binary.BigEndian.Uint64(b[:])
	}
	return h
}

// common returns how many bytes all names begin with: as they are in order, the first and the last of a source tell.
func common(sources []scanSource) int {
	var first []byte
	n := -1
	for i := range sources {
		es := sources[i].entries
		if len(es) == 0 {
			continue
		}
		if n < 0 {
			first = es[0].name()
			n = len(first)
		}
		for _, name := range [...][]byte{es[0].name(), es[len(es)-1].name()} {
			n = min(n, len(name))
			for n > 0 && !bytes.Equal(name[:n], first[:n]) {
				n--
			}
		}
	}
	return max(n, 0)
}

func (t *contest) begin(sources []scanSource) {
	n := len(sources)
	t.heads, t.losers, t.skip = make([]head, n), make([]int32, n), common(sources)
	winners := make([]int32, 2*n) // the leaves stand behind the nodes
	for i := range sources {
		t.heads[i] = t.head(sources[i].entries)
		winners[n+i] = int32(i)
	}
	for node := n - 1; node > 0; node-- {
		a, b := winners[2*node], winners[2*node+1]
		if t.beats(b, a) {
			a, b = b, a
		}
		winners[node], t.losers[node] = a, b
	}
	if n > 0 {
		t.losers[0] = winners[1]
	}
}

// winner returns the source with the least entry, and the entry; nil when there is none.
func (t *contest) winner() (source int, e *ScanEntry) {
	if len(t.losers) == 0 {
		return 0, nil
	}
	w := t.losers[0]
	return int(w), t.heads[w].e
}

// next goes on to the entries that are left of the source that won.
func (t *contest) next(source int, left []ScanEntry) {
	t.heads[source] = t.head(left)
	w := int32(source)
	for node := (source + len(t.losers)) / 2; node > 0; node /= 2 {
		if l := t.losers[node]; t.beats(l, w) {
			t.losers[node], w = w, l
		}
	}
	t.losers[0] = w
}

func (t *contest) beats(a, b int32) bool {
	x, y := &t.heads[a], &t.heads[b]
	if x.e == nil || y.e == nil {
		return x.e != nil
	}
	if x.bytes != y.bytes {
		return x.bytes < y.bytes
	}
	return before(x.e, y.e)
}

// name orders the entries of a page: common prefixes stand among the keys as themselves.
func (e *ScanEntry) name() []byte {
	if e.Prefix != nil {
		return e.Prefix
	}
	return e.Address.Key
}

func compareEntries(a, b *ScanEntry) int {
	if c := bytes.Compare(a.name(), b.name()); c != 0 {
		return c
	}
	if c := bytes.Compare(a.Address.Upload[:], b.Address.Upload[:]); c != 0 {
		return c
	}
	return cmp.Compare(a.Address.Part, b.Address.Part)
}

// place compares the names only: two entries of one common prefix are at one place.
func place(a, b *ScanEntry) int {
	if a.Prefix != nil && b.Prefix != nil {
		return bytes.Compare(a.Prefix, b.Prefix)
	}
	return compareEntries(a, b)
}

// before orders by place, and witnesses of one prefix by key.
func before(a, b *ScanEntry) bool {
	if c := place(a, b); c != 0 || a.Prefix == nil && b.Prefix == nil {
		return c < 0 // keys that are at one place are the same
	}
	return cmp.Or(bytes.Compare(a.Address.Key, b.Address.Key), compareEntries(a, b)) < 0
}

func sameAddress(a, b *Address) bool {
	return a.Kind == b.Kind && a.Bucket == b.Bucket && a.Upload == b.Upload && a.Part == b.Part && bytes.Equal(a.Key, b.Key)
}
