package heal

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/metadata"
)

func TestAChangeOfMembersLetsDeletionsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under []metadata.Fence
		h := &Healer{c: Config{Deletions: func() []metadata.Fence { return under }}}
		waited := func() time.Duration {
			begun := time.Now()
			h.letDeletionsThrough(context.Background())
			return time.Since(begun)
		}
		if w := waited(); w != 0 {
			t.Errorf("no deletion: waited %v", w)
		}
		ends := time.Now().Add(100 * time.Millisecond)
		h.c.Deletions = func() []metadata.Fence {
			if time.Now().Before(ends) {
				return []metadata.Fence{{Bucket: 1, Epoch: 2}}
			}
			return nil
		}
		if w := waited(); w < 100*time.Millisecond || w > 100*time.Millisecond+deletionLook {
			t.Errorf("a deletion of 100 ms: waited %v", w)
		}
		h.c.Deletions = func() []metadata.Fence { return under }
		under = []metadata.Fence{{Bucket: 7, Epoch: 2}}
		if w := waited(); w != deletionGoesFirst {
			t.Errorf("a deletion without end: waited %v, want %v", w, deletionGoesFirst)
		}
		if w := waited(); w != 0 {
			t.Errorf("the next batch: waited %v more for the same deletion", w)
		}
		under = append(under, metadata.Fence{Bucket: 7, Epoch: 4})
		if w := waited(); w != deletionGoesFirst {
			t.Errorf("another deletion: waited %v, want %v", w, deletionGoesFirst)
		}
		under = nil
		if waited(); len(h.yielded) > 0 {
			t.Errorf("%v is kept of deletions that are over", h.yielded)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		under = []metadata.Fence{{Bucket: 8, Epoch: 2}}
		begun := time.Now()
		if h.letDeletionsThrough(ctx); time.Since(begun) != 0 {
			t.Error("it waited although it was ended")
		}
	})
}
