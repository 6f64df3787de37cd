//go:build unix

package sim

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
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
	keys             []int32         // ascending
	rows             []*metadata.Row // of all keys
	most             int             // entries of a page
	sent             *atomic.Int64   // entries
	calls            atomic.Int64
}

func listKey(i int) []byte { return fmt.Appendf(nil, "photos/2026/%08d.jpg", i) }

func (d *listDrive) Scan(_ context.Context, m *metadata.ScanRequest) (*metadata.ScanReply, error) {
	d.calls.Add(1)
	first := 0
	if len(m.After) > 0 {
		after := string(m.After)
		first, _ = slices.BinarySearchFunc(d.keys, after, func(k int32, after string) int { return strings.Compare(string(listKey(int(k))), after) })
		if first < len(d.keys) && string(listKey(int(d.keys[first]))) == after {
			first++
		}
	}
	r := &metadata.ScanReply{}
	for _, k := range d.keys[first:] {
		if len(r.Entries) == min(m.Limit, d.most) {
			r.Truncated = true
			break
		}
		r.Entries = append(r.Entries, metadata.ScanEntry{Address: metadata.Address{Bucket: 1, Key: listKey(int(k))}, Row: d.rows[k]})
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
	rows, keys := [][3]int{{4, 1, 1}, {12, 3, 3}, {24, 6, 3}}, 3000
	if *flagScale {
		rows, keys = append(rows, [][3]int{{48, 12, 3}, {100, 20, 4}, {250, 25, 5}, {500, 50, 5}, {1000, 50, 5}}...), 100_000
		fmt.Println("\n| drives | profile | drives asked | entries sent | CPU | entries sent, short replies | CPU | rounds |")
		fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- |")
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
	var sent atomic.Int64
	store := listDrives{}
	stored := make([]*metadata.Row, keys)
	for _, d := range list {
		store[d.Num] = &listDrive{rows: stored, sent: &sent, most: keys}
	}
	for i := range stored {
		b := metadata.Ballot{Counter: uint64(i + 1)}
		stored[i] = &metadata.Row{Ballot: b, Decided: true, State: metadata.State{ID: b, Current: &metadata.Version{Kind: metadata.VersionObject, Size: 1, ETag: "d41d8cd98f00b204e9800998ecf8427e"}}}
		for _, d := range l.Group(l.PartitionOf(1, listKey(i))).Drives {
			store[d].keys = append(store[d].keys, int32(i))
		}
	}
	cover, err := l.Cover(1)
	if err != nil {
		t.Fatal(err)
	}
	whole, wholeCPU, _ := listPages(t, store, cover)
	entries := sent.Swap(0)
	// The same from drives that send no more than their share of the page, and half as much again: pages that come short
	// are asked for again.
	for _, d := range store {
		d.most = 1000*l.N()/drives*3/2 + 16
	}
	short, shortCPU, asked := listPages(t, store, cover)
	if whole != short {
		t.Fatalf("%d drives: pages end at %q and at %q", drives, whole, short)
	}
	if *flagScale {
		fmt.Printf("| %d | %s | %d | %d | %.1f ms | %d | %.1f ms | %.1f |\n", drives, profile, len(cover.Drives()), entries/listings,
			wholeCPU, sent.Load()/listings, shortCPU, asked)
	}
}

// listings is how many pages are listed, one after another.
const listings = 3

// listPages lists, and returns where that ended, the CPU milliseconds of a page, and how often each drive of the
// cover was asked for one.
func listPages(t *testing.T, store listDrives, cover placement.Cover) (last string, ms, asked float64) {
	client := metadata.NewClient(metadata.ClientConfig{Replicas: store, CallTimeout: time.Minute})
	defer func() {
		if err := client.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	calls := store[cover.Drives()[0]].calls.Load()
	runtime.GC() // of what came before
	begin := cpu()
	for p := range listings {
		page, err := client.Scan(t.Context(), cover, metadata.ScanOptions{Bucket: 1, Limit: 1000, After: []byte(last)})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Items) != 1000 || string(page.Items[0].Address.Key) != string(listKey(1000*p)) || string(page.After) != string(listKey(1000*p+999)) {
			t.Fatalf("page %d has %d keys up to %q", p, len(page.Items), page.After)
		}
		last = string(page.After)
	}
	spent := cpu() - begin
	return last, float64(spent.Microseconds()) / 1000 / listings, float64(store[cover.Drives()[0]].calls.Load()-calls) / listings
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
