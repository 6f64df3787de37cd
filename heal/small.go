package heal

import (
	"context"
	"sync"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// Small bodies are rebuilt in batches: one call to each source, one synced batch on the drive that
// lacks them, one call to read them back.
const (
	smallBatch = 512     // bodies; disk.MaxBatch is the most
	smallBytes = 8 << 20 // bytes of shards on one drive
)

// small is the inline shard of one body that belongs on the drive that is filled.
type small struct {
	addr    metadata.Address
	group   placement.Group
	data    metadata.Data
	index   int   // of the shard
	err     error // why it is not there; nil: it is, and was read back
	written bool
	rows    [][]byte        // sources, by shard
	asked   map[uint16]bool // drives
}

func (s *small) shardBytes() int { return inlineSize(&s.data) }

// inlineSize is how many bytes an inline shard of a body has.
func inlineSize(d *metadata.Data) int {
	k := int64(d.Profile.Data)
	return erasure.InlineOverhead + int((d.Size+k-1)/k)
}

// fill makes sure that every shard of list is on drive to and right: those that are were read, those
// that were not are rebuilt, sealed and read back.
func (h *Healer) fill(ctx context.Context, to node.Drive, list []*small) {
	for len(list) > 0 {
		n, size := 0, 0
		for n < len(list) && n < smallBatch && (n == 0 || size < smallBytes) {
			size += list[n].shardBytes()
			n++
		}
		h.fillBatch(ctx, to, list[:n], size)
		list = list[n:]
	}
}

func (h *Healer) fillBatch(ctx context.Context, to node.Drive, list []*small, size int) {
	if err := h.pace.take(ctx, size); err != nil {
		failAll(list, err)
		return
	}
	todo := h.readBack(ctx, to, list)
	if len(todo) == 0 {
		return
	}
	size = 0
	for _, s := range todo {
		size += s.shardBytes() * (int(s.data.Profile.Data) + 2) // sources, the write, the reading back
		s.rows, s.asked = make([][]byte, s.data.Profile.N()), make(map[uint16]bool)
	}
	if err := h.pace.take(ctx, size); err != nil {
		failAll(todo, err)
		return
	}
	h.fetchFormer(ctx, to, todo)
	// k sources first, and all others for those of which one was missing or damaged.
	h.fetch(ctx, to, todo, fetchEnough)
	h.fetch(ctx, to, todo, fetchPresent)
	h.fetch(ctx, to, todo, fetchFormers)
	var seals []disk.InlineSeal
	var sealed []*small
	for _, s := range todo {
		own := s.rows[s.index]
		if own == nil {
			made, err := h.c.Coders.RebuildInline(s.data.Profile, s.data.ID, s.data.Size, s.rows, []int{s.index})
			if s.err = err; err == nil {
				own = made[s.index]
			}
		}
		if s.rows = nil; s.err == nil {
			seals = append(seals, disk.InlineSeal{Address: s.addr,
				Seal: metadata.Seal{Data: s.data, Index: uint8(s.index), Inline: own}})
			sealed = append(sealed, s)
		}
	}
	if len(sealed) == 0 {
		return
	}
	if err := to.SealInline(ctx, seals); err != nil {
		failAll(sealed, err)
		return
	}
	for _, s := range h.readBack(ctx, to, sealed) {
		s.err = errs.E("heal.fill", errs.Corrupt, "a shard is not there right after it was written")
	}
	for _, s := range sealed {
		if s.err == nil {
			s.written = true
			h.shards.Add(1)
			h.bytes.Add(int64(s.shardBytes()))
		}
	}
}

func failAll(list []*small, err error) {
	for _, s := range list {
		s.err = err
	}
}

// readBack reads the shards of list from the drive where they belong, and returns those that are not
// there, or not right.
func (h *Healer) readBack(ctx context.Context, to node.Drive, list []*small) (todo []*small) {
	ids := make([]erasure.DataID, len(list))
	for i, s := range list {
		ids[i] = s.data.ID
	}
	rows, err := to.InlineShards(ctx, ids)
	if err == nil && len(rows) != len(ids) {
		err = errs.E("heal.readBack", errs.Internal, "not as many shards as were asked for")
	}
	if err != nil {
		failAll(list, err)
		return nil
	}
	for i, s := range list {
		if rows[i] == nil || erasure.VerifyInline(s.data.Profile, s.data.ID, s.data.Size, s.index, rows[i]) != nil {
			todo = append(todo, s)
		}
	}
	return todo
}

// fetchFormer asks the former drives of the positions that are filled, which have most of the shards themselves.
func (h *Healer) fetchFormer(ctx context.Context, to node.Drive, list []*small) {
	by := make(map[uint16][]*small)
	for _, s := range list {
		places := s.group.Places(s.data.Profile, s.data.Width, s.data.ID)
		if num, ok := s.group.FormerAt(places[s.index]); ok {
			by[num] = append(by[num], s)
		}
	}
	for num, wants := range by {
		d, ok := h.drive(num)
		if !ok {
			continue
		}
		ids := make([]erasure.DataID, len(wants))
		for i, s := range wants {
			ids[i] = s.data.ID
		}
		rows, err := d.InlineShards(ctx, ids)
		if err != nil || len(rows) != len(ids) {
			h.c.Logger.Debug("shards could not be read", "drive", num, "err", err)
			continue
		}
		for i, s := range wants {
			if rows[i] != nil && erasure.VerifyInline(s.data.Profile, s.data.ID, s.data.Size, s.index, rows[i]) == nil {
				s.rows[s.index] = rows[i]
			}
		}
	}
}

// Whom fetch asks.
const (
	fetchEnough  = iota // for k sources of each; where a position is moving, the former drive
	fetchPresent        // of bodies with fewer than k, all that were not asked
	fetchFormers        // the same, the former drives
)

// fetch asks the drives for sources of the shards of list.
func (h *Healer) fetch(ctx context.Context, to node.Drive, list []*small, whom int) {
	type want struct {
		s      *small
		j      int
		moving bool // it may be on another drive
	}
	by := make(map[uint16][]want)
	drives := make(map[uint16]node.Drive)
	for i, s := range list {
		k, n := int(s.data.Profile.Data), s.data.Profile.N()
		have := 0
		for _, r := range s.rows {
			if r != nil {
				have++
			}
		}
		if have >= k || s.rows[s.index] != nil {
			continue
		}
		places := s.group.Places(s.data.Profile, s.data.Width, s.data.ID)
		for x := 0; x < n && (whom != fetchEnough || have < k); x++ {
			j := (i + x) % n // spreads the load
			num := s.group.Drives[places[j]]
			former, moving := s.group.FormerAt(places[j])
			if moving && whom != fetchPresent {
				num = former // most of what it had is there still
			}
			if j == s.index || s.asked[num] || s.rows[j] != nil || num == to.Num() {
				continue
			}
			if drives[num] == nil {
				d, ok := h.drive(num)
				if !ok {
					continue
				}
				drives[num] = d
			}
			s.asked[num] = true
			by[num] = append(by[num], want{s, j, moving})
			have++
		}
	}
	var wg sync.WaitGroup
	for num, wants := range by {
		wg.Go(func() { // one for each drive; they write to different elements
			ids := make([]erasure.DataID, len(wants))
			for i, w := range wants {
				ids[i] = w.s.data.ID
			}
			rows, err := drives[num].InlineShards(ctx, ids)
			if err != nil || len(rows) != len(ids) {
				h.c.Logger.Debug("shards could not be read", "drive", num, "err", err)
				return
			}
			for i, w := range wants {
				d := &w.s.data
				if rows[i] != nil && erasure.VerifyInline(d.Profile, d.ID, d.Size, w.j, rows[i]) == nil {
					w.s.rows[w.j] = rows[i]
				} else if !w.moving {
					h.note(w.s.addr) // missing, or damaged, where it should be
				}
			}
		})
	}
	wg.Wait()
}
