package console

import (
	"fmt"

	"github.com/ostraka/ostraka/placement"
)

// Redundancy says how the partition that is worst off stands. Repairs that are outstanding are not
// counted: the state of healing tells of them.
type Redundancy struct {
	Members    int  `json:"members"`     // drives of each partition
	Here       int  `json:"here"`        // of them, those that serve records
	Sound      int  `json:"sound"`       // of them, those that have all their shards, too
	Partitions int  `json:"partitions"`  // how many partitions stand like this one
	ReadsNeed  int  `json:"reads_need"`  // drives: R records and k shards, whichever is more
	WritesNeed int  `json:"writes_need"` // drives: W
	Readable   bool `json:"readable"`    // everything can be read
	Writable   bool `json:"writable"`    // everything can be written
	MayLose    int  `json:"may_lose"`    // further drives without losing data or access to it; 0 if unreadable
}

// redundancyOf judges a layout: here says which drives serve records, and sound which of them have
// all their shards, too.
func redundancyOf(l *placement.Layout, here, sound func(num uint16) bool) Redundancy {
	var worst Redundancy
	margin := 0 // of worst: what it has beyond what reads need
	k := int(l.Profile().Data)
	for p := range l.Partitions() {
		g := l.Group(p)
		r := Redundancy{Members: len(g.Drives), ReadsNeed: max(g.Quorum.R, k), WritesNeed: g.Quorum.W, Partitions: 1}
		for _, num := range g.Drives {
			if !here(num) {
				continue
			}
			r.Here++
			if sound(num) {
				r.Sound++
			}
		}
		r.Readable = r.Here >= g.Quorum.R && r.Sound >= k
		r.Writable = r.Readable && r.Here >= g.Quorum.W
		// A drive that is lost next may be one of the sound ones.
		m := min(r.Here-g.Quorum.R, r.Sound-k)
		r.MayLose = max(m, 0)
		switch {
		case p == 0 || m < margin || m == margin && r.Here < worst.Here:
			worst, margin = r, m
		case m == margin && r.Here == worst.Here:
			worst.Partitions++
		}
	}
	return worst
}

// String says it in words.
func (r Redundancy) String() string {
	switch {
	case !r.Readable:
		return fmt.Sprintf("%d of %d drives of a partition are here, %d of them complete; reading needs %d: DATA IS UNAVAILABLE",
			r.Here, r.Members, r.Sound, r.ReadsNeed)
	case !r.Writable:
		return fmt.Sprintf("%d of %d drives of a partition are here; everything can be read, but writes need %d and answer 503; %s",
			r.Here, r.Members, r.WritesNeed, r.spare())
	}
	return fmt.Sprintf("%d of %d drives of a partition are here; everything can be read and written; %s", r.Here, r.Members, r.spare())
}

func (r Redundancy) spare() string {
	switch r.MayLose {
	case 0:
		return "NO further drive may be lost"
	case 1:
		return "1 further drive may be lost"
	}
	return fmt.Sprintf("%d further drives may be lost", r.MayLose)
}
