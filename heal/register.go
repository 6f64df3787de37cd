package heal

import (
	"context"
	"errors"
	"slices"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// outcome says how far one register got.
type outcome uint8

const (
	failed   outcome = iota // something went wrong, or changed meanwhile: try again
	blocked                 // what could be done is done; drives are away
	verified                // verified on every drive; what is dead waits for its grace
	whole                   // verified on every drive, and nothing is left to do
)

// register brings one register's shards and rows up to what is chosen, and clears the rows that
// asked for it where everything was verified.
func (h *Healer) register(ctx context.Context, t *task) (outcome, error) {
	const op = "heal.register"
	l := h.c.Layout()
	g := l.Group(l.PartitionOf(t.addr.Bucket, t.addr.Key))
	_, ok, err := h.c.Buckets.BucketEpoch(ctx, t.addr.Bucket)
	if err != nil {
		return failed, errs.Wrap(op, err)
	}
	// The fence of a bucket does not hold up repair, which proposes nothing new.
	read := metadata.ReadOptions{BucketEpoch: ^uint64(0)}
	if !ok {
		// The bucket was deleted for good, under a fence that found it empty. What its last objects let go
		// of may still be on the drives.
		view, err := h.c.Meta.Read(ctx, g, t.addr, read)
		if err == nil && view.State != nil && view.State.Current != nil {
			// A write that too few drives had accepted when the bucket was found empty, and that none of those
			// drives told of: nobody heard that it succeeded. Nothing else would ever end it.
			if err = h.bury(ctx, g, ^uint64(0), t.addr); err == nil {
				view, err = h.c.Meta.Read(ctx, g, t.addr, read)
			}
		}
		if err != nil {
			return failed, errs.Wrap(op, err)
		}
		// A member that missed the tombstone names the data in its row, for ever once nobody knows of it: it
		// removes neither garbage nor orphans then, nor what lies on the dead list.
		var here []int
		for pos, num := range g.Drives {
			if _, ok := h.drive(num); ok {
				here = append(here, pos)
			}
		}
		if err := h.c.Meta.Resync(ctx, g, t.addr, here); err != nil {
			return failed, errs.Wrap(op, err)
		}
		t.sound = &sound{state: stateOf(view), epoch: g.Epoch, layout: l.Number()} // nothing of it is needed any more
		switch done, err := h.remains(ctx, t.addr, view.State, true); {
		case err != nil || len(here) < len(g.Drives):
			return blocked, err
		case !done:
			return verified, nil
		}
		return whole, h.clear(ctx, t, g, nil, t.positions)
	}
	view, err := h.c.Meta.Read(ctx, g, t.addr, read)
	if err != nil {
		return failed, errs.Wrap(op, err)
	}
	var bad bad
	var fails []error
	narrow := true // every shard of every body stands at a position of the register's own partition
	err = h.bodies(ctx, g, t.addr, view, func(d *metadata.Data) error {
		narrow = narrow && d.Chunks() <= 1
		for i := range d.Chunks() {
			b, err := h.chunk(ctx, l, g, t.addr, d, i)
			bad.away, bad.damaged = append(bad.away, b.away...), bad.damaged+b.damaged
			fails = append(fails, err)
		}
		return ctx.Err()
	})
	if err = errors.Join(append(fails, err)...); err != nil {
		if errors.Is(err, errLost) {
			err = h.foundLost(ctx, t, l, g, view, err)
		}
		return failed, errs.Wrap(op, err)
	}
	var here []int // positions whose drive is here
	var done []uint8
	away := slices.Clone(bad.away)
	unnamed := false // a member was not looked at, and no row names it: only a mark may tell of it
	for pos, num := range g.Drives {
		missed := slices.Contains(bad.away, num) // it may have come back since
		unnamed = unnamed || missed && !slices.Contains(t.positions, uint8(pos))
		if _, ok := h.drive(num); !ok {
			away = append(away, num)
			continue
		}
		here = append(here, pos)
		if !missed {
			done = append(done, uint8(pos))
		}
	}
	// The rows come last, as this also settles the register: until then its mark must say that
	// shards may be missing. If some still are, a repair row says so from now on.
	settled := stateOf(view)
	if unnamed && len(t.unsettled) == 0 {
		settled = metadata.Ballot{} // the marks of others stay
	}
	if len(bad.away)+bad.damaged > 0 && len(t.repair) == 0 || unnamed && len(t.unsettled) > 0 {
		if err := h.keep(ctx, t, g); err != nil {
			return failed, errs.Wrap(op, err)
		}
	}
	if err := h.c.Meta.ResyncVerified(ctx, g, t.addr, here, settled); err != nil {
		return failed, errs.Wrap(op, err)
	}
	// They may have changed meanwhile: what was verified is only this state.
	again, err := h.c.Meta.Read(ctx, g, t.addr, read)
	if err != nil {
		return failed, errs.Wrap(op, err)
	}
	if bad.damaged > 0 || !sameState(view, again) {
		return failed, nil
	}
	t.sound = &sound{state: stateOf(again), away: away, wide: !narrow, epoch: g.Epoch, layout: l.Number()}
	over, err := h.remains(ctx, t.addr, again.State, false)
	switch {
	case !narrow && len(bad.away) > 0:
		return blocked, err // no row says where a later chunk lacks a shard: they stay as they are
	case len(away) > 0 || err != nil:
		// What was verified lacks nothing. Who is away stays on the list, if it was named, and the marks stay: else all who
		// ever lacked something would seem to lack it, until the last one is back. What is dead needs a row, too.
		return blocked, errors.Join(err, h.clearRows(ctx, t, g, again, done, !over))
	case !over:
		return verified, nil
	}
	if again.State != nil && again.State.Current == nil {
		h.hintTomb(&t.addr)
	}
	return whole, h.clear(ctx, t, g, again, done)
}

// foundLost tells of a register with a body of which too few shards are left. Its rows are brought up all
// the same, and a repair row stays on the lists.
func (h *Healer) foundLost(ctx context.Context, t *task, l *placement.Layout, g placement.Group, view *metadata.View, lost error) error {
	// Shards that move are found at their place by one layout only: what was looked for by another proves nothing.
	now := h.c.Layout()
	err := h.bodies(ctx, g, t.addr, view, func(d *metadata.Data) error {
		for i := range d.Chunks() {
			if chunkGroup(l, g, d, i).Epoch != chunkGroup(now, now.Group(g.Partition), d, i).Epoch {
				return errs.E("heal.foundLost", errs.Conflict, "members changed meanwhile")
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	again, err := h.c.Meta.Read(ctx, g, t.addr, metadata.ReadOptions{BucketEpoch: ^uint64(0)})
	if err != nil {
		return err
	}
	if !sameState(view, again) {
		return errs.E("heal.foundLost", errs.Conflict, "the record changed meanwhile")
	}
	if len(t.repair) == 0 {
		if err := h.keep(ctx, t, g); err != nil {
			return err
		}
	}
	var here []int
	for pos, num := range g.Drives {
		if _, ok := h.drive(num); ok {
			here = append(here, pos)
		}
	}
	if err := h.c.Meta.ResyncVerified(ctx, g, t.addr, here, stateOf(again)); err != nil {
		return err
	}
	h.lose(t.addr)
	return lost
}

// keep leaves a repair row for the register on the members that are here.
func (h *Healer) keep(ctx context.Context, t *task, g placement.Group) error {
	row := metadata.RepairRow{Address: t.addr, Partition: g.Partition, Asked: metadata.NewAsked()}
	for pos := range g.Drives {
		row.Positions = append(row.Positions, uint8(pos))
	}
	var fails []error
	for _, num := range g.Drives {
		d, ok := h.drive(num)
		if !ok {
			continue
		}
		if err := d.AddRepair(ctx, row); err != nil {
			fails = append(fails, err)
			continue
		}
		t.repair = append(t.repair, asked{num, row.Asked, row.Positions})
	}
	if len(t.repair) > 0 {
		t.positions = row.Positions
		return nil
	}
	return errors.Join(append(fails, errs.E("heal.keep", errs.Unavailable, "no drive kept a repair row"))...)
}

func sameState(a, b *metadata.View) bool { return stateOf(a) == stateOf(b) }

// stateOf is the ID of the state that was read; zero: there is none.
func stateOf(v *metadata.View) metadata.Ballot {
	if v.State == nil {
		return metadata.Ballot{}
	}
	return v.State.ID
}

// clear takes the register off the lists of the drives that named it, but for what somebody asked for since they were
// read. view nil: whatever the rows are, nothing is to be repaired any more.
func (h *Healer) clear(ctx context.Context, t *task, g placement.Group, view *metadata.View, positions []uint8) error {
	fails := []error{h.clearRows(ctx, t, g, view, positions, false)}
	for _, num := range t.unsettled {
		d, ok := h.drive(num)
		if !ok {
			continue
		}
		// Resync has settled the row, but only this the accepts before it whose data it still names.
		u := metadata.UnsettledRow{Address: t.addr, Partition: g.Partition}
		if view != nil && view.State != nil {
			u.State = view.State.ID
		}
		fails = append(fails, d.ClearUnsettled(ctx, u))
	}
	return errors.Join(fails...)
}

// clearRows is clear for repair rows alone. keep: of each row one position stays, whichever.
func (h *Healer) clearRows(ctx context.Context, t *task, g placement.Group, view *metadata.View, positions []uint8, keep bool) error {
	var fails []error
	for _, r := range t.repair {
		num := r.num
		d, ok := h.drive(num)
		if !ok {
			continue
		}
		done := positions
		if keep && !slices.ContainsFunc(r.positions, func(p uint8) bool { return !slices.Contains(done, p) }) && len(r.positions) > 0 {
			done = slices.DeleteFunc(slices.Clone(done), func(p uint8) bool { return p == r.positions[0] })
		}
		r := metadata.RepairRow{Address: t.addr, Partition: g.Partition, Positions: done, Asked: r.at}
		if view != nil && view.State != nil {
			r.State = view.State.ID
		}
		if g.Position(num) < 0 {
			r.State = metadata.Ballot{} // it is no member any more: its row says nothing
		}
		fails = append(fails, d.ClearRepair(ctx, r))
	}
	return errors.Join(fails...)
}

// bodies calls f for each body that the register's state and version rows name.
func (h *Healer) bodies(ctx context.Context, g placement.Group, a metadata.Address, view *metadata.View, f func(*metadata.Data) error) error {
	if view.State == nil {
		return nil
	}
	named := func(v *metadata.Version) error {
		for ; v != nil; v = v.Completed {
			for _, d := range []*metadata.Data{v.Data, v.Manifest} {
				if d != nil {
					if err := f(d); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
	if a.Kind == metadata.KindPart {
		// A manifest may name what a part's register has let go of while its upload is open.
		for i := range view.State.Dead {
			if err := f(&view.State.Dead[i].Data); err != nil {
				return err
			}
		}
	}
	return h.eachVersion(ctx, g, a, view, named)
}

// eachVersion calls f for the current version of the state that was read, if there is one, and for its version rows.
func (h *Healer) eachVersion(ctx context.Context, g placement.Group, a metadata.Address, view *metadata.View, f func(*metadata.Version) error) error {
	if view.State == nil {
		return nil
	}
	if cur := view.State.Current; cur != nil {
		if err := f(cur); err != nil {
			return err
		}
	}
	if view.State.Older == 0 {
		return nil
	}
	below := ^uint64(0)
	for {
		versions, more, err := h.versions(ctx, g, a, view, below)
		if err != nil {
			return err
		}
		for i := range versions {
			if err := f(&versions[i]); err != nil {
				return err
			}
			below = versions[i].Seq
		}
		if !more || len(versions) == 0 {
			return nil
		}
	}
}

// versions reads a page of version rows from any member that holds the state of view.
func (h *Healer) versions(ctx context.Context, g placement.Group, a metadata.Address, view *metadata.View, below uint64) ([]metadata.Version, bool, error) {
	for _, num := range g.Drives {
		d, ok := h.drive(num)
		if !ok {
			continue
		}
		reply, err := d.Versions(ctx, &metadata.VersionsRequest{
			Header:  metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch},
			Address: a, Below: below, Limit: page,
		})
		if err == nil && reply.Row != nil && reply.Row.State.ID == view.State.ID {
			return reply.Versions, reply.More, nil
		}
	}
	return nil, false, errs.E("heal.versions", errs.Unavailable, "no drive holds the state that was read")
}

// shardState is what a look at one shard found.
type shardState struct {
	num   uint16
	drive node.Drive // nil: away
	good  bool
	// damaged: it is there, and not right. Some of its blocks may be, and nowhere else.
	damaged bool
	// presumed: good, as far as is known. It was not looked at.
	presumed bool
	// former is who may have it as long as the shards of the position are moving; nil: nobody, or away.
	former node.Drive
}

// bad are the shards that are not good on their drive.
type bad struct {
	away    []uint16 // those whose drive is away: the drives
	damaged int      // how many whose drive is here, and could not be given a good one
}

// chunk verifies every shard of one chunk, and writes anew those that are not good. It returns
// what is not good in the end.
func (h *Healer) chunk(ctx context.Context, l *placement.Layout, g placement.Group, a metadata.Address, d *metadata.Data, i uint32) (b bad, err error) {
	cg := chunkGroup(l, g, d, i)
	c := chunkOf(a, d, i)
	places, err := placesOf(cg, d)
	if err != nil {
		return b, err
	}
	shards := make([]shardState, d.Profile.N())
	var todo []int
	known := true // what every shard is, but for those of drives that never come back
	for j := range shards {
		s := &shards[j]
		s.num = cg.Drives[places[j]]
		s.former = h.formerOf(cg, places[j])
		if num, ok := cg.FormerAt(places[j]); ok && s.former == nil {
			_, there := l.Drive(num)
			known = known && (!there || h.c.Retired(num)) // it may have one, unless it is lost
		}
		if s.drive, _ = h.drive(s.num); s.drive == nil {
			b.away = append(b.away, s.num)
			known = known && h.c.Retired(s.num)
			continue
		}
		err := h.verify(ctx, s.drive, c, j)
		switch {
		case err == nil:
			s.good = true
		case errs.Is(err, errs.Corrupt):
			h.c.Logger.Warn("a damaged shard was found", "drive", s.num, "shard", c.Shard(j).String(), "err", err)
			s.damaged = true
			todo = append(todo, j)
		case errs.Is(err, errs.NotFound):
			todo = append(todo, j)
		case errs.Is(err, errs.Timeout) && ctx.Err() == nil:
			s.drive = nil
			b.away = append(b.away, s.num)
			known = false
		case !d.Inline() && errs.Is(err, errs.Drive) && answers(ctx, s.drive, c):
			// A sector that cannot be read: only a new file heals that. What can be read of this one still counts.
			h.c.Logger.Warn("a shard that cannot be read was found", "drive", s.num, "shard", c.Shard(j).String(), "err", err)
			s.damaged = true
			todo = append(todo, j)
		default: // it does not answer well enough to be written to
			b.damaged++
			known = false
		}
	}
	if len(todo) == 0 {
		return b, nil
	}
	if d.Inline() {
		err = h.rebuildInline(ctx, a, d, shards, todo)
	} else {
		err = h.rebuildFiles(ctx, a, d, c, shards, todo)
	}
	if known && errors.Is(err, errShort) {
		err = errors.Join(errLost, err)
	}
	for _, j := range todo {
		if !shards[j].good {
			b.damaged++
		}
	}
	return b, err
}

var (
	// errShort: too few of the shards that could be looked at are good.
	errShort = errs.E("heal.chunk", errs.Unavailable, "too few good shards were found")
	// errLost: and all of them could be.
	errLost = errs.E("heal.chunk", errs.Corrupt, "data is lost: all drives are here, and too few good shards are on them")
)

// answers reports whether a drive that could not read a shard is well otherwise: one that has failed
// refuses everything.
func answers(ctx context.Context, d node.Drive, c erasure.Chunk) bool {
	_, err := d.ShardRows(ctx, c.Data, c.Index, 1)
	return err == nil
}

// verify reads one shard and checks every checksum, at the pace of background work.
func (h *Healer) verify(ctx context.Context, d node.Drive, c erasure.Chunk, j int) error {
	return d.VerifyShard(ctx, c, j, h.pace.take)
}

// chunkOf describes chunk i of a body.
func chunkOf(a metadata.Address, d *metadata.Data, i uint32) erasure.Chunk {
	c := erasure.Chunk{Data: d.ID, Index: i, Profile: d.Profile, Size: d.Size, Owner: owner(a)}
	if !d.Inline() {
		c.Size = min(d.Size-int64(i)*d.ChunkSize, d.ChunkSize)
	}
	return c
}

func owner(a metadata.Address) erasure.Owner {
	return erasure.Owner{Bucket: a.Bucket, Key: a.Key, Upload: a.Upload, Part: a.Part}
}

// rebuildInline writes inline shards anew.
func (h *Healer) rebuildInline(ctx context.Context, a metadata.Address, d *metadata.Data, shards []shardState, todo []int) error {
	rows := make([][]byte, len(shards))
	sources := 0
	for j := range shards {
		s := &shards[j]
		if s.good {
			sources++
			row, err := s.drive.InlineShard(ctx, d.ID)
			if err != nil {
				continue // one source less; RebuildInline says when they are too few
			}
			rows[j] = row
		} else if s.former != nil {
			if row, err := s.former.InlineShard(ctx, d.ID); err == nil && row != nil && erasure.VerifyInline(d.Profile, d.ID, d.Size, j, row) == nil {
				rows[j] = row
				sources++
			}
		}
	}
	made := make([][]byte, len(shards))
	var lacking []int // not to be copied
	for _, j := range todo {
		if made[j] = rows[j]; made[j] == nil {
			lacking = append(lacking, j)
		}
	}
	var fails []error
	if len(lacking) > 0 {
		rebuilt, err := h.c.Coders.RebuildInline(d.Profile, d.ID, d.Size, rows, lacking)
		if sources < int(d.Profile.Data) {
			err = errors.Join(errShort, err)
		}
		fails = append(fails, err)
		for _, j := range lacking {
			if err == nil {
				made[j] = rebuilt[j]
			}
		}
	}
	for _, j := range todo {
		s := &shards[j]
		if made[j] == nil {
			continue
		}
		if err := s.drive.SealShard(ctx, a, &metadata.Seal{Data: *d, Index: uint8(j), Inline: made[j]}); err != nil {
			fails = append(fails, err)
			continue
		}
		fails = append(fails, h.verifyWritten(ctx, erasure.Chunk{Data: d.ID, Profile: d.Profile, Size: d.Size}, j, s))
		h.bytes.Add(int64(len(made[j])))
	}
	return errors.Join(fails...)
}

// rebuildFiles writes shard files anew. To write one in place of a damaged one destroys what is right in
// that, so it is done only where the others are known to suffice: k good shards, or else, for one
// shard at a time, a trial that read every stripe without it.
func (h *Healer) rebuildFiles(ctx context.Context, a metadata.Address, d *metadata.Data, c erasure.Chunk, shards []shardState, todo []int) error {
	var missing, damaged []int
	for _, j := range todo {
		// One that is on its way is copied from where it was. In place of a damaged one only if it is right.
		if s := &shards[j]; s.former != nil && (!s.damaged || h.verify(ctx, s.former, c, j) == nil) {
			if h.copyShard(ctx, a, d, c, j, s) == nil {
				continue
			}
		}
		if shards[j].damaged {
			damaged = append(damaged, j)
		} else {
			missing = append(missing, j)
		}
	}
	var fails []error
	if len(missing) > 0 {
		err := h.writeFiles(ctx, a, d, c, shards, missing)
		// Whatever is left of the others was a source.
		if few := (*erasure.ShardsError)(nil); errors.As(err, &few) && len(few.Unreachable) == 0 {
			err = errors.Join(errShort, err)
		}
		fails = append(fails, err)
	}
	for len(damaged) > 0 {
		if countGood(shards) >= int(c.Profile.Data) {
			fails = append(fails, h.writeFiles(ctx, a, d, c, shards, damaged))
			break
		}
		j := damaged[0]
		damaged = damaged[1:]
		err := h.rebuild(ctx, c, shards, map[int]erasure.Sink{j: discard{}}, nil)
		if err == nil {
			err = h.writeFiles(ctx, a, d, c, shards, []int{j})
		}
		fails = append(fails, err)
	}
	return errors.Join(fails...)
}

func countGood(shards []shardState) (n int) {
	for i := range shards {
		if shards[i].good {
			n++
		}
	}
	return n
}

// discard is a sink for a trial.
type discard struct{}

func (discard) Write(context.Context, []byte) error { return nil }

// sources opens what there is. Every block that is read from it is verified.
func sources(c erasure.Chunk, shards []shardState) func(context.Context, int) (erasure.Source, error) {
	return func(ctx context.Context, j int) (erasure.Source, error) {
		s := &shards[j]
		err := errs.E("heal.open", errs.NotFound, "not a source")
		if s.good || s.damaged {
			var src erasure.Source
			if src, err = s.drive.OpenShard(ctx, c.Shard(j)); err == nil {
				return src, nil
			}
		}
		if s.former != nil {
			return s.former.OpenShard(ctx, c.Shard(j))
		}
		return nil, err
	}
}

// sealFile makes a shard file durable, and says that it is there.
func sealFile(ctx context.Context, a metadata.Address, d *metadata.Data, c erasure.Chunk, j int, to node.Drive) error {
	if c.Index == 0 {
		return to.SealShard(ctx, a, &metadata.Seal{Data: *d, Index: uint8(j)})
	}
	return to.SealChunk(ctx, d.ID, c.Index)
}

// writeFiles replaces the shards of todo. Each is complete and synced before its row says that it
// is there.
func (h *Healer) writeFiles(ctx context.Context, a metadata.Address, d *metadata.Data, c erasure.Chunk, shards []shardState, todo []int) error {
	sinks := map[int]erasure.Sink{}
	aborts := map[int]func(){}
	defer func() {
		for _, abort := range aborts {
			abort()
		}
	}()
	var fails []error
	size := erasure.ShardFileSize(c.Profile, c.Size)
	for _, j := range todo {
		w, err := createShard(ctx, shards[j].drive, c, j, size)
		if err != nil {
			fails = append(fails, err)
			continue
		}
		shards[j].damaged = false
		sinks[j], aborts[j] = w, func() { w.Abort() }
	}
	err := h.rebuild(ctx, c, shards, sinks, func(j int, err error) {
		if shards[j].presumed {
			h.note(a)
		}
	})
	var partly *erasure.RebuildError
	if err != nil && !errors.As(err, &partly) {
		return errors.Join(append(fails, err)...)
	}
	for _, j := range slices.Sorted(mapKeys(sinks)) {
		if partly != nil && partly.Failed[j] != nil {
			fails = append(fails, partly.Failed[j])
			continue
		}
		s := &shards[j]
		if err = sealFile(ctx, a, d, c, j, s.drive); err != nil {
			fails = append(fails, err)
			continue
		}
		delete(aborts, j)
		fails = append(fails, h.verifyWritten(ctx, c, j, s))
		h.bytes.Add(size)
	}
	return errors.Join(fails...)
}

// verifyWritten reads back what was written: a shard counts as repaired only then.
func (h *Healer) verifyWritten(ctx context.Context, c erasure.Chunk, j int, s *shardState) error {
	if err := h.verify(ctx, s.drive, c, j); err != nil {
		return err
	}
	s.good = true
	h.shards.Add(1)
	return nil
}
