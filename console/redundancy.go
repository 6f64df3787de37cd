package console

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ostraka/ostraka/heal"
	"github.com/ostraka/ostraka/placement"
)

// Redundancy says how the partition that is worst off stands, and what is outstanding. MayLose
// counts both: a shard counts only if nothing says that its drive may lack it.
type Redundancy struct {
	Members    int  `json:"members"`     // drives of each partition
	Here       int  `json:"here"`        // of them, those that serve records
	Sound      int  `json:"sound"`       // of them, those that have all their shards, too
	Partitions int  `json:"partitions"`  // how many partitions stand like this one
	ReadsNeed  int  `json:"reads_need"`  // drives: R records and k shards, whichever is more
	WritesNeed int  `json:"writes_need"` // drives: W
	Readable   bool `json:"readable"`    // enough drives are here to read everything, but for what is doubtful
	Writable   bool `json:"writable"`    // enough drives are here to write everything
	MayLose    int  `json:"may_lose"`    // further drives without losing data or access to it; 0 if unreadable
	Wanting    int  `json:"wanting"`     // records that want repair, as far as the drives that are here know
	Doubtful   int  `json:"doubtful"`    // of them, those of which too few shards are known to be good to read them
	Behind     int  `json:"behind"`      // drives here that are not known to have all that was written while they were away
	// Still counts the partitions whose change of members was begun and cannot go on with the drives that are here: they
	// answer 503, and nothing counts as readable or writable. Of is how many partitions there are, Until what they wait for.
	Still int    `json:"standing_still,omitempty"`
	Of    uint32 `json:"of_partitions,omitempty"`
	Until string `json:"until,omitempty"`
	// Crowded counts the partitions of which too few drives are here that are not full: they take no new data, and
	// not everything counts as writable.
	Crowded int `json:"without_room,omitempty"`
}

// halted is r where partitions stand still.
func (r Redundancy) halted(n int, of uint32, until string) Redundancy {
	if n > 0 {
		r.Still, r.Of, r.Until = n, of, until
		r.Readable, r.Writable, r.MayLose = false, false, 0
	}
	return r
}

// redundancyOf judges a layout: here says which drives serve records, and sound which of them have
// all their shards, too.
// Where data may still have the profile that the partition had before it became wider (old), that counts, too.
func redundancyOf(l *placement.Layout, here, sound func(num uint16) bool, old bool) Redundancy {
	var worst Redundancy
	margin := 0 // of worst: what it has beyond what reads need
	for p := range l.Partitions() {
		g := l.Group(p)
		k := int(g.Profile.Data)
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
		spare := r.Sound - k
		if old {
			spare = min(spare, spareBefore(l, g, func(num uint16) bool { return here(num) && sound(num) }))
		}
		r.Readable = r.Here >= g.Quorum.R && spare >= 0
		r.Writable = r.Readable && r.Here >= g.Quorum.W
		// A drive that is lost next may be one of the sound ones.
		m := min(r.Here-g.Quorum.R, spare)
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

// spareBefore returns how many drives more may be lost of those that a partition had when it was narrower, without
// losing data that were written then.
func spareBefore(l *placement.Layout, g placement.Group, good func(num uint16) bool) int {
	spare := len(g.Drives)
	for _, p := range l.Profiles() {
		if p.Width() >= len(g.Drives) {
			continue
		}
		n := int(p.Standard.Parity)
		for _, num := range g.Drives[:p.Width()] {
			if !good(num) {
				n--
			}
		}
		spare = min(spare, n)
	}
	return spare
}

// judge is redundancyOf with what is outstanding.
func judge(l *placement.Layout, here, sound func(num uint16) bool, o heal.Outstanding) Redundancy {
	r := redundancyOf(l, here, sound, o.OldProfiles)
	late := func(num uint16) bool { return slices.Contains(o.Behind, num) || slices.Contains(o.Silent, num) }
	for _, d := range l.Drives() {
		if here(d.Num) && late(d.Num) {
			r.Behind++
		}
	}
	certain := func(num uint16) bool { return sound(num) && !late(num) }
	r.MayLose = min(r.MayLose, redundancyOf(l, here, certain, o.OldProfiles).MayLose)
	if o.More {
		r.MayLose = 0
	}
	for _, w := range o.Wants {
		r.Wanting += w.Registers
		good, known := goodOf(l, w, func(num uint16) bool { return here(num) && certain(num) })
		if !known {
			r.MayLose = 0
			if w.Partition < l.Partitions() && !surely(l.Group(w.Partition), func(num uint16) bool { return here(num) && sound(num) }) {
				r.Doubtful += w.Registers
			}
			continue
		}
		k := int(l.Group(w.Partition).Profile.Data)
		spare := good - k
		r.MayLose = max(min(r.MayLose, spare), 0)
		if good, _ = goodOf(l, w, func(num uint16) bool { return here(num) && sound(num) }); good < k {
			r.Doubtful += w.Registers
		}
	}
	return r
}

// surely reports whether what was acknowledged can be read with those drives of a partition that are good, whichever of
// them took part: at least k shards and the spare one were durable then.
func surely(g placement.Group, good func(num uint16) bool) bool {
	least := placement.ShardQuorum(g.Profile, g.Spread)
	for _, num := range g.Drives {
		if !good(num) {
			least--
		}
	}
	return least >= int(g.Profile.Data)
}

// crowded counts the partitions of which too few drives are here that take new shards.
func crowded(l *placement.Layout, here func(num uint16) bool, full map[uint16]bool) (n int) {
	if len(full) == 0 {
		return 0
	}
	for p := range l.Partitions() {
		g := l.Group(p)
		takes := 0
		for _, num := range g.Drives {
			if here(num) && !full[num] {
				takes++
			}
		}
		if takes < placement.ShardQuorum(g.Profile, g.Spread) {
			n++
		}
	}
	return n
}

// goodOf counts the drives that surely hold what registers want to have on all, among those that
// count; known: it can be told.
func goodOf(l *placement.Layout, w heal.Want, counts func(num uint16) bool) (n int, known bool) {
	if w.Drives == nil || w.Partition >= l.Partitions() {
		return 0, false
	}
	for _, num := range l.Group(w.Partition).Drives {
		if counts(num) && !slices.Contains(w.Drives, num) {
			n++
		}
	}
	return n, true
}

// leaning counts the records that may need the drive num to be whole, as other drives may lack
// theirs; and says which drives may lack more than is known.
func leaning(l *placement.Layout, o heal.Outstanding, num uint16) (records int, late []uint16) {
	for _, w := range o.Wants {
		if w.Drives == nil || w.Partition >= l.Partitions() ||
			!slices.Contains(w.Drives, num) && slices.Contains(l.Group(w.Partition).Drives, num) {
			records += w.Registers
		}
	}
	for _, d := range slices.Concat(o.Behind, o.Silent) {
		if _, member := l.Drive(d); member && d != num {
			late = append(late, d)
		}
	}
	slices.Sort(late)
	return records, slices.Compact(late)
}

// String says it in words.
func (r Redundancy) String() string {
	switch {
	case r.Still > 0:
		return fmt.Sprintf("%s; of the others at least %d of %d drives are here each, reading needs %d and writing %d; %s%s",
			stillText(r.Still, r.Of, r.Until), r.Here, r.Members, r.ReadsNeed, r.WritesNeed, r.doubt("; "), r.spare())
	case !r.Readable:
		return fmt.Sprintf("%d of %d drives of a partition are here, %d of them complete; reading needs %d: DATA IS UNAVAILABLE",
			r.Here, r.Members, r.Sound, r.ReadsNeed)
	}
	reads := "everything can be read"
	if r.Doubtful > 0 {
		reads = r.doubt(", ") + "all else can be read"
	}
	switch {
	case !r.Writable && r.Here >= r.WritesNeed && r.Crowded > 0:
		return fmt.Sprintf("%d of %d drives of a partition are here; %s, but new data answers 507 in %s, as too few of their drives that are here have room; %s",
			r.Here, r.Members, reads, counted(r.Crowded, "partition"), r.spare())
	case !r.Writable:
		return fmt.Sprintf("%d of %d drives of a partition are here; %s, but writes need %d and answer 503; %s", r.Here, r.Members, reads, r.WritesNeed, r.spare())
	}
	return fmt.Sprintf("%d of %d drives of a partition are here; %s and written; %s", r.Here, r.Members, reads, r.spare())
}

// doubt says of how many records it is not known that they can be read, and then end.
func (r Redundancy) doubt(end string) string {
	if r.Doubtful == 0 {
		return ""
	}
	return counted(r.Doubtful, "record") + " can perhaps not be read now" + end
}

func (r Redundancy) spare() string {
	text := fmt.Sprintf("%s may be lost", counted(r.MayLose, "further drive"))
	if r.MayLose == 0 {
		text = "NO further drive may be lost"
	}
	var why []string
	if r.Wanting > 0 {
		why = append(why, counted(r.Wanting, "record")+" to be repaired")
	}
	if r.Behind > 0 {
		why = append(why, counted(r.Behind, "drive")+" to be brought up to date")
	}
	if len(why) > 0 {
		text += ", with " + strings.Join(why, " and ")
	}
	return text
}

// counted is a number with its noun.
func counted(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
