package metadata

import (
	"context"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// TestAListingByAnOldLayoutIsStale replaces a drive that lives on. By the layout from before, the drive that left
// and one that is installed, but was not written to since, would be a read quorum without the newest write.
func TestAListingByAnOldLayoutIsStale(t *testing.T) {
	w := newSwapWorld(t, erasure.Profile{Data: 2, Parity: 2}, 1)
	list := func(l *placement.Layout) (keys int, err error) {
		t.Helper()
		cover, err := l.Cover(0)
		must(t, err)
		page, err := w.cl.Scan(t.Context(), cover, ScanOptions{Kind: KindObject, Bucket: addr("k").Bucket, Limit: 100})
		return len(page.Items), err
	}
	_, err := w.put(t.Context(), w.cl, "before", "1")
	must(t, err)
	w.reopen() // decided everywhere: no listing has to make sure of anything
	old := w.now()
	if n, err := list(old); err != nil || n != 1 {
		t.Fatalf("before: %d keys, %v", n, err)
	}

	// Between two epochs nobody can say what is newest.
	sw := w.swap(1, false)
	publish := sw.Publish
	between := false
	sw.Publish = func(ctx context.Context, parts []uint32) error {
		_, err := list(old)
		between = errs.Is(err, errs.Stale)
		return publish(ctx, parts)
	}
	if r, err := w.cl.Swap(t.Context(), sw); err != nil || len(r.Skipped) > 0 {
		t.Fatalf("swap: %+v %v", r, err)
	}
	if !between {
		t.Error("a listing went by an epoch that members no longer serve")
	}

	_, err = w.put(t.Context(), w.cl, "after", "2")
	must(t, err)
	w.reopen()
	if n, err := list(old); !errs.Is(err, errs.Stale) {
		t.Errorf("by the old layout: %d keys, %v; want stale", n, err)
	}
	if n, err := list(w.now()); err != nil || n != 2 {
		t.Errorf("by the new layout: %d keys, %v; want 2", n, err)
	}
	must(t, w.cl.Close(t.Context()))
}

// TestOverIsTheLastEpochThatIsNotServedAgain compares with what a drive serves.
func TestOverIsTheLastEpochThatIsNotServedAgain(t *testing.T) {
	for _, c := range []struct {
		row  epochRow
		over uint64
	}{
		{epochRow{}, 0},
		{epochRow{wedged: 1}, 1},
		{epochRow{wedged: 1, installed: 2}, 1},
		{epochRow{wedged: 2, installed: 2}, 2},
		{epochRow{wedged: 2, before: 2}, 2},
		{epochRow{installed: 4}, 3}, // it joined, and was never wedged
	} {
		if got := c.row.over(); got != c.over {
			t.Errorf("%+v: over %d, want %d", c.row, got, c.over)
		}
		if c.over > 1 && c.row.serves(c.over) {
			t.Errorf("%+v serves epoch %d", c.row, c.over)
		}
	}
}
