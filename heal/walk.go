package heal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// walkPage is how many rows of each drive one step of a walk reads.
const walkPage = 512

// compareAddress orders addresses as the drives' record stores do.
func compareAddress(a, b *metadata.Address) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Bucket, b.Bucket), bytes.Compare(a.Key, b.Key),
		bytes.Compare(a.Upload[:], b.Upload[:]), cmp.Compare(a.Part, b.Part))
}

// held is what the members of a register hold of it, as raw rows at about one moment: no read by quorum.
type held struct {
	addr  metadata.Address
	group placement.Group
	rows  []*metadata.Row // by position; nil: none, or not heard
	// unsettled: a member's mark says that not all were heard. It is on a work list already.
	unsettled bool
}

// top returns the row with the highest ballot, and whether a member knows that it was chosen.
func (r *held) top() (row *metadata.Row, chosen bool) {
	for _, w := range r.rows {
		if w != nil && (row == nil || row.Ballot.Less(w.Ballot)) {
			row = w
		}
	}
	if row == nil {
		return nil, false
	}
	for _, w := range r.rows {
		// A decided row of the same state under an older ballot says the same.
		chosen = chosen || w != nil && w.Decided && w.State.ID == row.State.ID
	}
	return row, chosen
}

// equal reports whether all members of which here is true hold the same row, known as decided.
func (r *held) equal(here func(uint16) bool) bool {
	var first *metadata.Row
	for pos, num := range r.group.Drives {
		if !here(num) {
			continue
		}
		w := r.rows[pos]
		if w == nil || !w.Decided || first != nil && w.State.ID != first.State.ID {
			return false
		}
		first = w
	}
	return true
}

// walked is one step of a walk.
type walked struct {
	list []held // in order of address
	next *metadata.Address
	more bool
}

// walk reads the rows of all drives behind after (nil: from the start), in order of address, and puts them
// together by register. partial: not nil restricts it to these slices, ascending. It fails if one of
// the drives does.
func (h *Healer) walk(ctx context.Context, l *placement.Layout, drives []node.Drive, after *metadata.Address, partial []uint16) (*walked, error) {
	replies := make([]*metadata.RowsReply, len(drives))
	fails := make([]error, len(drives))
	var wg sync.WaitGroup
	for i, d := range drives {
		wg.Go(func() {
			replies[i], fails[i] = d.Rows(ctx, &metadata.RowsRequest{After: after, Slices: partial, Limit: walkPage})
		})
	}
	wg.Wait()
	if err := errors.Join(fails...); err != nil {
		return nil, err
	}
	out := new(walked)
	for _, r := range replies {
		if r.More && r.Next == nil {
			return nil, errs.E("heal.walk", errs.Internal, "a page of rows does not say where it ends")
		}
		if r.More && (!out.more || compareAddress(r.Next, out.next) < 0) {
			out.more, out.next = true, r.Next
		}
	}
	by := make(map[string]int)
	for i, r := range replies {
		for j := range r.Rows {
			w := &r.Rows[j]
			if out.more && compareAddress(&w.Address, out.next) > 0 {
				break
			}
			key := string(w.Address.AppendTo(nil))
			at, ok := by[key]
			if !ok {
				g := l.Group(l.PartitionOf(w.Address.Bucket, w.Address.Key))
				at = len(out.list)
				by[key] = at
				out.list = append(out.list, held{addr: w.Address, group: g, rows: make([]*metadata.Row, len(g.Drives))})
			}
			// A drive may still have rows of partitions that it is no member of any more: they say nothing.
			if pos := out.list[at].group.Position(drives[i].Num()); pos >= 0 {
				out.list[at].rows[pos] = w.Row
				out.list[at].unsettled = out.list[at].unsettled || w.Unsettled
			}
		}
	}
	out.list = slices.DeleteFunc(out.list, func(r held) bool {
		return !slices.ContainsFunc(r.rows, func(w *metadata.Row) bool { return w != nil })
	})
	slices.SortFunc(out.list, func(a, b held) int { return compareAddress(&a.addr, &b.addr) })
	return out, nil
}

// members returns the drives of the layout that answer, and those that are away. Of these one that has no places,
// and had none that are still moving, such as one that was added and is about to be formatted, is missed by nobody.
func (h *Healer) members(l *placement.Layout) (here []node.Drive, away []uint16) {
	for _, m := range l.Drives() {
		if d, ok := h.drive(m.Num); ok {
			here = append(here, d)
		} else if placed(l, m.Num) {
			away = append(away, m.Num)
		}
	}
	return here, away
}

// placed reports whether a drive is a member of a partition, or a former one whose shards are moving.
func placed(l *placement.Layout, num uint16) bool {
	return len(l.PartitionsOf(num)) > 0 || len(l.FormerOf(num)) > 0
}

// readable reports whether every partition has enough members besides those away that together they hold
// every chosen record.
func readable(l *placement.Layout, away []uint16) error {
	_, err := l.Cover(0, away...)
	return err
}

// chosen returns the state of a register that a walk met: from the rows if a member knows it as decided,
// else read by quorum.
func (h *Healer) chosen(ctx context.Context, r *held) (*metadata.View, error) {
	if row, ok := r.top(); ok {
		return &metadata.View{State: &row.State, Ballot: row.Ballot}, nil
	}
	return h.c.Meta.Read(ctx, r.group, r.addr, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
}
