//go:build unix

package placement

import (
	"flag"
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"
)

var scale = flag.Bool("scale", false, "TestScale goes up to 1,000 drives and prints the table of docs/scale.md")

// What the estimate of a rebuild takes for granted: what a drive holds, and what it reads and writes a second.
const (
	heldBytes  = 4 << 40
	driveSpeed = 150 << 20
)

// cell is one cluster of the table.
type cell struct {
	drives, nodes, zones int
	bits                 uint8
}

// From four drives of one machine to a thousand. What must hold for each holds without -scale too, of the
// small ones. Times are printed, never judged.
func TestScale(t *testing.T) {
	rows := []cell{{4, 1, 1, 12}, {12, 3, 3, 12}, {24, 6, 3, 12}, {48, 12, 3, 12}}
	if *scale {
		rows = append(rows, cell{100, 20, 4, 12}, cell{250, 25, 5, 12}, cell{500, 50, 5, 12}, cell{1000, 50, 5, 12}, cell{1000, 50, 5, 16})
	}
	var cluster, change strings.Builder
	for _, c := range rows {
		if !*scale {
			c.bits = 9
		}
		scaleRow(t, c, &cluster, &change)
	}
	if *scale {
		fmt.Println("\n| drives | nodes | zones | partitions | profile | f | W | PUT | GET inline | GET | LIST: drives asked | cover | look-up | first layout | encoded |")
		fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
		fmt.Print(cluster.String())
		fmt.Println("\n| drives | partitions | plan: a drive more | moves | its share | plan: a drive less | moves | its places | take part | rebuild | plan: twice the drives | moves | half |")
		fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
		fmt.Print(change.String())
	}
}

func scaleRow(t *testing.T, c cell, cluster, change *strings.Builder) {
	drives := hosts(c.nodes, c.drives/c.nodes, c.zones)
	profile, err := DefaultProfileOf(drives)
	if err != nil {
		t.Fatal(err)
	}
	var l *Layout
	making := took(func() { l, err = NewLayout(drives, profile, c.bits) })
	if err != nil {
		t.Fatal(err)
	}
	n, k := l.N(), int(profile.Data)
	q := l.Group(0).Quorum
	var cover Cover
	covering := took(func() { cover, err = l.Cover(1) })
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(cluster, "| %d | %d | %d | %d | %s | %d | %d | %d | %d | %d | %d | %s | %d ns | %s | %d KiB |\n", c.drives, c.nodes, c.zones, l.Partitions(),
		profile, l.Spread(), q.W, 2*n, max(q.R, k), q.R+k, len(cover.Drives()), short(covering), lookUp(l), short(making), len(l.Append(nil))>>10)

	// One drive more: its share moves, and nothing else.
	total := n * int(l.Partitions())
	more := goalOf(l)
	more.add(host(2000, c.nodes, drives[len(drives)-1].Zone, 1<<40))
	var grown *Plan
	growing := took(func() { grown = mustPlan(t, l, more) })
	share := total / (c.drives + 1)
	if c.drives >= 2*n && len(grown.Moves) > share+share/50+1 { // where there are as few drives as members, caps decide
		t.Errorf("%d drives: one more moves %d members, its share is %d: %v", c.drives, len(grown.Moves), share, grown.Reasons)
	}
	fmt.Fprintf(change, "| %d | %d | %s | %d | %d ", c.drives, l.Partitions(), short(growing), len(grown.Moves), share)

	// One drive dies, and the others take its places: or another does, where it is needed.
	less := goalOf(l)
	less.Drives[0].Leaving = true
	least := len(l.PartitionsOf(1))
	if c.drives == n {
		less.add(host(2000, 1, drives[0].Zone, 1<<40))
	}
	less.Average = heldBytes / uint64(least)
	var shrunk *Plan
	shrinking := took(func() { shrunk = mustPlan(t, l, less) })
	if len(shrunk.Moves) > least+least/10 {
		t.Errorf("%d drives: without one %d members move, it had %d: %v", c.drives, len(shrunk.Moves), least, shrunk.Reasons)
	}
	part, seconds := rebuild(l, shrunk, k)
	fmt.Fprintf(change, "| %s | %d | %d | %.0f %% | %s ", short(shrinking), len(shrunk.Moves), least, 100*part,
		(time.Duration(seconds) * time.Second).Round(time.Minute).String())

	// Twice the drives, on nodes of their own.
	twice := goalOf(l)
	for i, d := range drives {
		twice.add(host(2001+i, c.nodes+1+i/(c.drives/c.nodes), d.Zone, 1<<40))
	}
	var doubled *Plan
	doubling := took(func() { doubled = mustPlan(t, l, twice) })
	if c.nodes > 1 && len(doubled.Moves) > total/2+total/50 {
		t.Errorf("%d drives: as many more move %d members of %d", c.drives, len(doubled.Moves), total)
	}
	fmt.Fprintf(change, "| %s | %d | %d |\n", short(doubling), len(doubled.Moves), total/2)
}

// rebuild returns the part of the drives that read or write when drive 1 is rebuilt by a plan, and how many seconds the
// busiest of them takes: each move reads k shards, evenly from the n−1 others of the partition, and writes one.
func rebuild(l *Layout, p *Plan, k int) (part, seconds float64) {
	busy := map[uint16]float64{}
	size := float64(p.Bytes) / float64(max(len(p.Moves), 1))
	for _, m := range p.Moves {
		for _, d := range l.Group(m.Partition).Drives {
			if d != m.From {
				busy[d] += size * float64(k) / float64(l.N()-1)
			}
		}
		busy[m.To] += size
	}
	most := 0.0
	for _, bytes := range busy {
		most = math.Max(most, bytes)
	}
	return float64(len(busy)) / float64(len(p.Drives)-1), most / driveSpeed
}

// lookUp returns the nanoseconds from a key to its drives.
func lookUp(l *Layout) int64 {
	const times = 200_000
	key := []byte("photos/2026/11/cat-000000.jpg")
	sum := 0
	spent := took(func() {
		for i := range times {
			key[len(key)-5], key[len(key)-6], key[len(key)-7] = byte('0'+i%10), byte('0'+i/10%10), byte('0'+i/100%10)
			sum += int(l.Group(l.PartitionOf(uint64(i/1000), key)).Drives[0])
		}
	})
	if sum == 0 {
		return 0 // sum is used, so that nothing is left out
	}
	return spent.Nanoseconds() / times
}

// took returns the CPU time that f takes: the machine may have other things to do.
func took(f func()) time.Duration {
	begin := cpu()
	f()
	return cpu() - begin
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
