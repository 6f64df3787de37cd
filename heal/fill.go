package heal

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

const (
	installAtOnce = 64 // rows that are written side by side, so that they share their syncs
	// maxBehind bounds what a filling remembers of registers that it could not bring to the newcomers yet, in
	// bytes of addresses. Beyond, it waits.
	maxBehind = 32 << 10
	// verifyRounds bounds how often rows are compared: what still differs then, and could be brought up
	// each time, is what writers change meanwhile.
	verifyRounds = 4
)

// filling brings newcomers their rows and shards: one in the place of a drive that was lost (rebuild.go), or some
// in positions that drives which live gave away (move.go). All registers are walked in order of address; of each,
// the shards come first, copied from the former drive of the position if there is one that has them, else
// rebuilt from the others, read back and verified; then the row.
type filling struct {
	state  *fillState
	drives map[uint16]node.Drive // newcomers
	// want says of which positions they are filled; nil: of all that are theirs.
	want func(g placement.Group, position int) bool
	save func(context.Context) error // makes state durable
	show func()                      // tells of progress
}

// fillState is how far a filling is. It is durable; whatever came after it was saved is done again, and found
// to be there.
type fillState struct {
	After         cursor
	Walked        bool // all registers were met
	Done, Total   int64
	Shards, Bytes int64
	TotalBytes    int64
	Bad, Repaired int64
	Behind        []cursor // registers that could not be brought up
}

func (s *fillState) bytesOfBehind() (n int) {
	for _, c := range s.Behind {
		n += len(c)
	}
	return n
}

// targets calls found for each newcomer that has a position in g which is filled.
func (f *filling) targets(g placement.Group, found func(position int, to node.Drive)) {
	for pos, num := range g.Drives {
		if to := f.drives[num]; to != nil && (f.want == nil || f.want(g, pos)) {
			found(pos, to)
		}
	}
}

// fillPage brings the next page of registers to the newcomers.
func (h *Healer) fillPage(ctx context.Context, f *filling) error {
	l := h.c.Layout()
	here, away := h.members(l)
	for num := range f.drives {
		if !slices.ContainsFunc(here, func(d node.Drive) bool { return d.Num() == num }) {
			return errs.E("heal.fillPage", errs.Unavailable, "the new drive is not in service")
		}
		if f.want == nil {
			away = append(away, num) // it has nothing yet
		}
	}
	if err := readable(l, away); err != nil {
		return err
	}
	w, err := h.walk(ctx, l, here, f.state.After.address(), nil)
	if err != nil {
		return err
	}
	if err := h.pace.take(ctx, len(w.list)*nominalBytes); err != nil {
		return err
	}
	failed := h.bringUp(ctx, f, l, w.list)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	h.keepNoted(ctx)
	for _, a := range failed {
		c := cursorOf(a)
		if len(c)+f.state.bytesOfBehind() > maxBehind {
			// Those that are lost need not be remembered.
			if err := h.catchUp(ctx, f); ctx.Err() != nil || len(c)+f.state.bytesOfBehind() > maxBehind {
				return errors.Join(err, errs.E("heal.fillPage", errs.Unavailable, "too many registers could not be brought to the new drive yet"))
			}
		}
		f.state.Behind = append(f.state.Behind, c)
		f.state.Bad++
	}
	f.state.Done += int64(len(w.list))
	f.state.After, f.state.Walked = cursorOf(w.next), !w.more
	return f.save(ctx) // from here on this page is not looked at again
}

// bringUp gives the newcomers what they lack of the registers of list. It returns those of which it
// could not be made sure.
func (h *Healer) bringUp(ctx context.Context, f *filling, l *placement.Layout, list []held) (failed []*metadata.Address) {
	bad := make([]error, len(list))
	fills := make(map[uint16][]*small) // by drive
	owners := make(map[uint16][]int)   // of fills
	type large struct {
		at   int
		data metadata.Data
		i    uint32
		to   node.Drive
	}
	var larges []large
	for at := range list {
		r := &list[at]
		view, err := h.chosen(ctx, r)
		if err == nil {
			err = h.bodies(ctx, r.group, r.addr, view, func(d *metadata.Data) error {
				for i := range d.Chunks() {
					cg := chunkGroup(l, r.group, d, i)
					places, err := placesOf(cg, d)
					if err != nil {
						return err
					}
					f.targets(cg, func(pos int, to node.Drive) {
						switch j := slices.Index(places, pos); {
						case j < 0:
						case d.Inline():
							fills[to.Num()] = append(fills[to.Num()], &small{addr: r.addr, group: r.group, data: *d, index: j})
							owners[to.Num()] = append(owners[to.Num()], at)
						default:
							larges = append(larges, large{at, *d, i, to})
						}
					})
				}
				return ctx.Err()
			})
		}
		bad[at] = err
	}
	for num, list := range fills {
		h.fill(ctx, f.drives[num], list)
		for i, s := range list {
			if at := owners[num][i]; s.err != nil && bad[at] == nil {
				bad[at] = s.err
			}
			if s.written {
				f.state.Shards++
				f.state.Bytes += int64(s.shardBytes())
			}
		}
	}
	var mu sync.Mutex // guards bad and f.state.Shards and Bytes below
	each(h.c.Concurrency, larges, func(x large) {
		r := &list[x.at]
		written, err := h.fillChunk(ctx, l, r.group, r.addr, &x.data, x.i, x.to)
		mu.Lock()
		defer mu.Unlock()
		if err != nil && bad[x.at] == nil {
			bad[x.at] = err
		}
		if written > 0 {
			f.state.Shards++
			f.state.Bytes += written
		}
		f.show()
	})
	type place struct {
		at, pos int
		to      node.Drive
	}
	var rows []place
	for at := range list {
		if bad[at] == nil {
			f.targets(list[at].group, func(pos int, to node.Drive) { rows = append(rows, place{at, pos, to}) })
		}
	}
	each(installAtOnce, rows, func(x place) {
		if err := h.installRow(ctx, &list[x.at], x.pos, x.to); err != nil {
			mu.Lock()
			bad[x.at] = err
			mu.Unlock()
		}
	})
	for at, err := range bad {
		if err != nil {
			h.c.Logger.Info("a register could not be brought to a new drive yet", "bucket", list[at].addr.Bucket, "err", err)
			failed = append(failed, &list[at].addr)
		}
	}
	return failed
}

// each calls f for every element of list, at most n at a time, and waits for all.
func each[T any](n int, list []T, f func(T)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, n)
	for _, v := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(v)
		})
	}
	wg.Wait()
}

// fillChunk makes sure that the shard of one chunk that belongs on drive to is there and right. Only that
// one is written; the others are sources, verified as far as they are read.
func (h *Healer) fillChunk(ctx context.Context, l *placement.Layout, g placement.Group, a metadata.Address, d *metadata.Data, i uint32, to node.Drive) (written int64, err error) {
	cg, c := chunkGroup(l, g, d, i), chunkOf(a, d, i)
	places, err := placesOf(cg, d)
	if err != nil {
		return 0, err
	}
	j := slices.Index(places, cg.Position(to.Num()))
	err = h.verify(ctx, to, c, j)
	if err == nil || ctx.Err() != nil {
		return 0, err
	}
	if errs.Is(err, errs.NotFound) {
		shards := make([]shardState, d.Profile.N())
		for x := range shards {
			s := &shards[x]
			s.num = cg.Drives[places[x]]
			s.former = h.formerOf(cg, places[x])
			if s.drive, _ = h.drive(s.num); x != j {
				s.good = s.drive != nil
				s.presumed = true
			}
		}
		shards[j].drive = to
		if err = h.rebuildFiles(ctx, a, d, c, shards, []int{j}); err == nil && shards[j].good {
			return erasure.ShardFileSize(c.Profile, c.Size), nil
		}
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	// Something is damaged, here or in a source: all of them are looked at.
	if _, err := h.chunk(ctx, l, g, a, d, i); err != nil {
		return 0, err
	}
	if err := h.verify(ctx, to, c, j); err != nil {
		return 0, err
	}
	return erasure.ShardFileSize(c.Profile, c.Size), nil
}

// formerOf returns the drive that may still have shards of a position besides the present one, if it is here.
func (h *Healer) formerOf(g placement.Group, position int) node.Drive {
	if num, ok := g.FormerAt(position); ok {
		if d, ok := h.drive(num); ok {
			return d
		}
	}
	return nil
}

// copyShard copies the file of a shard from its former drive to the present one. The source is not looked at: what
// was written is read back, and if it is not right, it counts as damaged.
func (h *Healer) copyShard(ctx context.Context, a metadata.Address, d *metadata.Data, c erasure.Chunk, j int, s *shardState) error {
	src, err := s.former.OpenShard(ctx, c.Shard(j))
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // a file that was only read
	size := erasure.ShardFileSize(c.Profile, c.Size)
	w, err := createShard(ctx, s.drive, c, j, size)
	if err != nil {
		return err
	}
	s.damaged = false
	if err := h.copyFile(ctx, src, w, size); err != nil {
		w.Abort()
		return err
	}
	if err := sealFile(ctx, a, d, c, j, s.drive); err != nil {
		w.Abort()
		return err
	}
	h.bytes.Add(size)
	err = h.verifyWritten(ctx, c, j, s)
	s.damaged = errs.Is(err, errs.Corrupt)
	return err
}

func (h *Healer) copyFile(ctx context.Context, src erasure.Source, to erasure.Sink, size int64) error {
	buf := h.moving.copies.Get(copyPiece)
	defer buf.Release()
	for off := int64(0); off < size; {
		p := buf.Bytes()[:min(copyPiece, size-off)]
		if err := h.pace.take(ctx, 2*len(p)); err != nil {
			return err
		}
		n, err := src.ReadAt(ctx, p, off)
		if n < len(p) {
			return errs.As("heal.copyFile", errs.Corrupt, errors.Join(err, errs.E("heal.copyFile", errs.Corrupt, "the shard is shorter than its chunk")))
		}
		if err := to.Write(ctx, p); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// copyPiece is how much of a shard file is copied at a time.
const copyPiece = 1 << 20

// installRow gives the drive at a position the chosen row of a register.
func (h *Healer) installRow(ctx context.Context, r *held, pos int, to node.Drive) error {
	row, chosen := r.top()
	if own := r.rows[pos]; chosen && own != nil && own.Decided && own.State.ID == row.State.ID {
		return nil
	}
	if chosen && row.State.Older == 0 {
		m := &metadata.InstallRequest{Header: metadata.Header{Drive: to.Num(), Partition: r.group.Partition, Epoch: r.group.Epoch},
			Address: r.addr, Row: *row}
		m.Row.Decided, m.Row.Undo = true, nil
		if to.Install(ctx, m) == nil {
			return nil
		}
	}
	return h.c.Meta.ResyncVerified(ctx, r.group, r.addr, []int{pos}, metadata.Ballot{}) // nobody has looked at its shards
}

// level compares the newcomers with all others, once what was left behind was tried again, and brings up what
// differs in the slices of which among is true; nil: in all.
func (h *Healer) level(ctx context.Context, f *filling, among func(slice uint16) bool) error {
	if err := h.catchUp(ctx, f); err != nil {
		return err
	}
	for num, to := range f.drives {
		if err := h.levelOne(ctx, f, num, to, among); err != nil {
			return err
		}
	}
	return nil
}

func (h *Healer) levelOne(ctx context.Context, f *filling, num uint16, to node.Drive, among func(slice uint16) bool) error {
	const op = "heal.verify"
	for range verifyRounds {
		if h.paused() {
			return errs.E(op, errs.Busy, "healing is paused")
		}
		l := h.c.Layout()
		here, away := h.members(l)
		// One that never comes back tells nobody anything any more.
		if away = slices.DeleteFunc(away, h.c.Retired); len(away) > 0 {
			return errs.E(op, errs.Unavailable, "a drive is away: the new drive cannot be compared with it")
		}
		differ, err := h.differing(ctx, l, to, here)
		if among != nil {
			differ = slices.DeleteFunc(differ, func(s uint16) bool { return !among(s) })
		}
		if err != nil || len(differ) == 0 {
			return err
		}
		n := 0
		err = h.walkSlices(ctx, l, here, differ, func(list []held) error {
			list = slices.DeleteFunc(list, func(r held) bool {
				pos := r.group.Position(num)
				top, chosen := r.top()
				return pos < 0 || chosen && r.rows[pos] != nil && r.rows[pos].State.ID == top.State.ID
			})
			n += len(list)
			f.state.Repaired += int64(len(list))
			left, lost := h.mendAll(ctx, h.bringUp(ctx, f, l, list))
			f.state.Bad += int64(lost)
			f.state.Repaired -= int64(lost)
			if len(left) > 0 {
				return errs.E(op, errs.Unavailable, "the new drive lacks registers that could not be brought up")
			}
			return ctx.Err()
		})
		if err != nil || n == 0 {
			return err
		}
	}
	return nil // what differs now was written since
}

// mendAll repairs registers one by one that could not be brought to a newcomer together. Those of
// which data is lost for good end here: they have a repair row, are counted, and named by Status. It returns
// those that want another try.
func (h *Healer) mendAll(ctx context.Context, list []*metadata.Address) (left []*metadata.Address, lost int) {
	for _, a := range list {
		if ctx.Err() != nil {
			return append(left, a), lost
		}
		switch got, err := h.mend(ctx, *a); {
		case errors.Is(err, errLost) && !errors.Is(err, errUnkept):
			lost++
		case got < verified || err != nil:
			left = append(left, a)
		}
	}
	return left, lost
}

// catchUp tries what was left behind again.
func (h *Healer) catchUp(ctx context.Context, f *filling) error {
	s := f.state
	if len(s.Behind) == 0 {
		return nil
	}
	l := h.c.Layout()
	var list []held
	for _, c := range s.Behind {
		if a := c.address(); a != nil {
			list = append(list, unread(l, a))
		}
	}
	left, lost := h.mendAll(ctx, h.bringUp(ctx, f, l, list))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// What is lost is named durably before it is forgotten here.
	if err := h.keepLost(ctx); err != nil {
		return err
	}
	s.Repaired += int64(len(s.Behind) - len(left) - lost)
	s.Behind = nil
	for _, a := range left {
		s.Behind = append(s.Behind, cursorOf(a))
	}
	if err := f.save(ctx); err != nil {
		return err
	}
	if len(left) > 0 {
		return errs.E("heal.catchUp", errs.Unavailable, "registers could not be brought to the new drive yet")
	}
	return nil
}

// unread is a register of which nothing was heard: it is read by quorum.
func unread(l *placement.Layout, a *metadata.Address) held {
	g := l.Group(l.PartitionOf(a.Bucket, a.Key))
	return held{addr: *a, group: g, rows: make([]*metadata.Row, len(g.Drives))}
}
