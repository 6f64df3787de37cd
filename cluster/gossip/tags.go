package gossip

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Limits of the tags, in bytes.
const (
	maxName    = 48
	maxZone    = 48
	maxAddress = 64
	maxTags    = 512 // of all as serf encodes them
	maxDrives  = 1024
)

const tagsVersion = "1"

// Versions is a range of versions that a process understands.
type Versions struct{ Oldest, Newest uint32 }

// Tags is what a process says of itself.
type Tags struct {
	Cluster [16]byte
	Node    [16]byte
	Name    string // for people; may be empty
	Zone    string // may be empty
	Gateway bool   // it serves S3
	Storage bool   // it has drives
	Address string // host:port for other nodes
	S3      string // host:port for clients; empty without the role

	// Drives are the numbers of its drives that are open, ascending; empty: none is. If they do not fit, Drives is nil on the other
	// side and DriveCount says how many there are.
	Drives     []uint16
	DriveCount int // set by decoding only

	Protocol Versions // of the protocol between nodes
	Format   Versions // of what is on drives
	Layout   uint64   // number of the layout that it knows
	Trust    uint64   // number of the trust state that it holds

	Began time.Time // of the process; set by Start, to the millisecond
}

// encode returns the tags as serf carries them. It ends with errs.Invalid if a text is too long.
func (t *Tags) encode() (map[string]string, error) {
	const op = "gossip.Tags"
	for _, x := range []struct {
		what, text string
		limit      int
	}{{"name", t.Name, maxName}, {"zone", t.Zone, maxZone}, {"node address", t.Address, maxAddress}, {"S3 address", t.S3, maxAddress}} {
		if len(x.text) > x.limit {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("the %s %q is longer than %d bytes", x.what, x.text, x.limit))
		}
	}
	if t.Node == [16]byte{} || t.Cluster == [16]byte{} {
		return nil, errs.E(op, errs.Invalid, "a member needs the id of its cluster and its own")
	}
	roles := ""
	if t.Gateway {
		roles += "g"
	}
	if t.Storage {
		roles += "n"
	}
	m := map[string]string{
		"v": tagsVersion,
		"c": encodeID(t.Cluster),
		"i": encodeID(t.Node),
		"n": t.Name,
		"z": t.Zone,
		"r": roles,
		"a": t.Address,
		"s": t.S3,
		"p": t.Protocol.String(),
		"f": t.Format.String(),
		"l": strconv.FormatUint(t.Layout, 36),
		"t": strconv.FormatUint(t.Trust, 36),
		"b": strconv.FormatInt(t.Began.UnixMilli(), 36),
	}
	for k, v := range m {
		if v == "" {
			delete(m, k)
		}
	}
	m["d"] = encodeDrives(t.Drives)
	if encodedSize(m) > maxTags {
		m["d"] = "*" + strconv.Itoa(len(t.Drives))
	}
	return m, nil
}

// encodedSize is the most that serf makes of tags: a magic byte and a msgpack map of short strings.
func encodedSize(m map[string]string) int {
	n := 1 + 3
	for k, v := range m {
		n += 1 + len(k) + 3 + len(v)
	}
	return n
}

// decode reads what encode wrote. Whatever else it meets is an error: errs.Denied if it is well formed and of another
// cluster, else errs.Invalid.
func decode(m map[string]string, cluster [16]byte) (t Tags, err error) {
	const op = "gossip.decode"
	if m["v"] != tagsVersion {
		return Tags{}, errs.E(op, errs.Invalid, "these are not the tags of a node")
	}
	var bad bool
	check := func(ok bool) { bad = bad || !ok }
	number := func(key string) uint64 {
		n, err := strconv.ParseUint(m[key], 36, 63)
		check(err == nil)
		return n
	}
	text := func(key string, limit int) string {
		check(len(m[key]) <= limit && printable(m[key]))
		return m[key]
	}
	t.Cluster, t.Node = decodeID(m["c"]), decodeID(m["i"])
	check(t.Cluster != [16]byte{} && t.Node != [16]byte{})
	t.Name, t.Zone = text("n", maxName), text("z", maxZone)
	t.Address, t.S3 = text("a", maxAddress), text("s", maxAddress)
	t.Gateway, t.Storage = strings.Contains(m["r"], "g"), strings.Contains(m["r"], "n")
	for key, v := range map[string]*Versions{"p": &t.Protocol, "f": &t.Format} {
		var ok bool
		*v, ok = parseVersions(m[key])
		check(ok)
	}
	t.Layout, t.Trust = number("l"), number("t")
	t.Began = time.UnixMilli(int64(number("b")))
	if count, ok := strings.CutPrefix(m["d"], "*"); ok {
		n, err := strconv.ParseUint(count, 10, 16)
		check(err == nil)
		t.DriveCount = int(n)
	} else {
		var ok bool
		t.Drives, ok = decodeDrives(m["d"])
		t.DriveCount = len(t.Drives)
		check(ok)
	}
	if bad {
		return Tags{}, errs.E(op, errs.Invalid, "the tags do not parse")
	}
	if t.Cluster != cluster {
		return Tags{}, errs.E(op, errs.Denied, "the member is of another cluster")
	}
	return t, nil
}

// printable keeps what a stranger says from playing tricks with a terminal or a log.
func printable(s string) bool {
	for _, c := range s {
		if !strconv.IsPrint(c) || c == '\uFFFD' {
			return false
		}
	}
	return true
}

func encodeID(id [16]byte) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// decodeID returns zero for what is no id.
func decodeID(s string) (id [16]byte) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id
	}
	return [16]byte(b)
}

// String writes the range as the tags have it.
func (v Versions) String() string { return fmt.Sprintf("%d-%d", v.Oldest, v.Newest) }

func parseVersions(s string) (v Versions, ok bool) {
	a, b, found := strings.Cut(s, "-")
	oldest, err1 := strconv.ParseUint(a, 10, 32)
	newest, err2 := strconv.ParseUint(b, 10, 32)
	return Versions{uint32(oldest), uint32(newest)}, found && err1 == nil && err2 == nil && oldest <= newest
}

// encodeDrives writes numbers as ranges.
func encodeDrives(nums []uint16) string {
	nums = slices.Clone(nums)
	slices.Sort(nums)
	nums = slices.Compact(nums)
	var b []byte
	for i := 0; i < len(nums); {
		j := i
		for j+1 < len(nums) && nums[j+1] == nums[j]+1 {
			j++
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(nums[i]), 36)
		if j > i {
			b = append(b, '-')
			b = strconv.AppendUint(b, uint64(nums[j]), 36)
		}
		i = j + 1
	}
	return string(b)
}

// decodeDrives reads ascending ranges, of at most maxDrives numbers together.
func decodeDrives(s string) (nums []uint16, ok bool) {
	if s == "" {
		return []uint16{}, true // none, which is not the same as not told
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 36, 16)
		b, err2 := strconv.ParseUint(to, 36, 16)
		if err1 != nil || err2 != nil || cmp.Compare(a, b) > 0 || len(nums)+int(b-a)+1 > maxDrives ||
			len(nums) > 0 && uint16(a) <= nums[len(nums)-1] {
			return nil, false
		}
		for n := a; n <= b; n++ {
			nums = append(nums, uint16(n))
		}
	}
	return nums, true
}
