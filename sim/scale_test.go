//go:build unix

package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

var flagScale = flag.Bool("scale", false, "TestScaleOfLists goes up to 1,000 drives and prints its table of docs/scale.md")

// listDrive answers listings with what one drive of a large store would have. It makes a page by copying entries,
// so that what is measured is the gateway's part: asking, and merging.
type listDrive struct {
	metadata.Replica                 // nothing else is called
	keys             []int32         // ascending; indices of names
	names            [][]byte        // of all keys
	rows             []*metadata.Row // of all keys
	sent             *atomic.Int64   // entries
	calls            *atomic.Int64
}

func listKey(i int) []byte { return fmt.Appendf(nil, "photos/2026/%08d.jpg", i) }

func (d *listDrive) Scan(_ context.Context, m *metadata.ScanRequest) (*metadata.ScanReply, error) {
	d.calls.Add(1)
	first, found := slices.BinarySearchFunc(d.keys, m.After, func(k int32, after []byte) int { return bytes.Compare(d.names[k], after) })
	if found {
		first++
	}
	keys := d.keys[first:]
	r := &metadata.ScanReply{Truncated: len(keys) > m.Limit}
	keys = keys[:min(m.Limit, len(keys))]
	r.Entries = make([]metadata.ScanEntry, 0, len(keys))
	for _, k := range keys {
		r.Entries = append(r.Entries, metadata.ScanEntry{Address: metadata.Address{Bucket: 1, Key: d.names[k]}, Row: d.rows[k]})
	}
	d.sent.Add(int64(len(r.Entries)))
	return r, nil
}

// listDrives are the drives of a store by number.
type listDrives map[uint16]*listDrive

func (s listDrives) Replica(drive uint16) (metadata.Replica, bool) {
	d, ok := s[drive]
	return d, ok
}

// A page of a thousand keys, by the real cover, client and merge, from clusters of ever more drives.
func TestScaleOfLists(t *testing.T) {
	rows, keys := [][3]int{{4, 1, 1}, {12, 3, 3}, {24, 6, 3}}, 25_000
	if *flagScale {
		rows, keys = append(rows, [][3]int{{48, 12, 3}, {100, 20, 4}, {250, 25, 5}, {500, 50, 5}, {1000, 50, 5}}...), 100_000
		fmt.Println("\n| drives | profile | drives asked | messages | entries sent | CPU |")
		fmt.Println("| --- | --- | --- | --- | --- | --- |")
	}
	for _, c := range rows {
		listRow(t, c[0], c[1], c[2], keys)
	}
}

func listRow(t *testing.T, drives, nodes, zones, keys int) {
	var list []placement.Drive
	for i := range drives {
		node := i / (drives / nodes)
		d := placement.Drive{Num: uint16(i + 1), Zone: fmt.Sprint(node % zones), Capacity: 1 << 40}
		binary.BigEndian.PutUint32(d.ID[:], uint32(i+1))
		binary.BigEndian.PutUint32(d.Node[:], uint32(node+1))
		list = append(list, d)
	}
	profile, err := placement.DefaultProfileOf(list)
	if err != nil {
		t.Fatal(err)
	}
	l, err := placement.NewLayout(list, profile, placement.DefaultBits)
	if err != nil {
		t.Fatal(err)
	}
	var sent, calls atomic.Int64
	store := listDrives{}
	stored, names := make([]*metadata.Row, keys), make([][]byte, keys)
	for _, d := range list {
		store[d.Num] = &listDrive{names: names, rows: stored, sent: &sent, calls: &calls}
	}
	for i := range stored {
		b := metadata.Ballot{Counter: uint64(i + 1)}
		stored[i] = &metadata.Row{Ballot: b, Decided: true, State: metadata.State{ID: b, Current: &metadata.Version{Kind: metadata.VersionObject, Size: 1, ETag: "d41d8cd98f00b204e9800998ecf8427e"}}}
		names[i] = listKey(i)
		for _, d := range l.Group(l.PartitionOf(1, names[i])).Drives {
			store[d].keys = append(store[d].keys, int32(i))
		}
	}
	cover, err := l.Cover(1)
	if err != nil {
		t.Fatal(err)
	}
	ms := listPages(t, store, cover)
	entries, asked := sent.Load()/listings, calls.Load()/listings
	// Of each key R replies at least, and a margin on top of each drive's share: 10 entries and three times the root of it.
	parts := 0
	for p := range l.Partitions() {
		for _, d := range l.Group(p).Drives {
			if slices.Contains(cover.Drives(), d) {
				parts++
			}
		}
	}
	share := 1001 * float64(parts) / float64(l.Partitions()) // of all drives of the cover together
	each := float64(len(cover.Drives()))
	if most := share + each*(10+3*math.Sqrt(share/each)); float64(entries) > most {
		t.Errorf("%d drives: a page took %d entries, want at most %.0f", drives, entries, most)
	}
	if asked > 2*int64(each) {
		t.Errorf("%d drives: a page took %d messages to %.0f drives", drives, asked, each)
	}
	if *flagScale {
		fmt.Printf("| %d | %s | %.0f | %d | %d | %.1f ms |\n", drives, profile, each, asked, entries, ms)
	}
}

// listings is how many pages are listed, one after another.
const listings = 20

// listPages lists, and returns the CPU milliseconds of a page.
func listPages(t *testing.T, store listDrives, cover placement.Cover) (ms float64) {
	client := metadata.NewClient(metadata.ClientConfig{Replicas: store, CallTimeout: time.Minute})
	defer func() {
		if err := client.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	runtime.GC() // of what came before
	begin := cpu()
	var last []byte
	for p := range listings {
		page, err := client.Scan(t.Context(), cover, metadata.ScanOptions{Bucket: 1, Limit: 1000, After: last})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Items) != 1000 || string(page.Items[0].Address.Key) != string(listKey(1000*p)) || string(page.After) != string(listKey(1000*p+999)) {
			t.Fatalf("page %d has %d keys up to %q", p, len(page.Items), page.After)
		}
		last = page.After
	}
	return float64((cpu() - begin).Microseconds()) / 1000 / listings
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
