package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// written is a body that lies on the drives, not yet named by any record: what a commit needs to
// name it, and what a failure needs to take it away.
type written struct {
	s     *Store
	addr  metadata.Address // the register that is to name it
	data  metadata.Data
	sums  Sums
	seals []*metadata.Seal // by position of the key's partition
	need  int              // shard quorum among seals
	later []laterChunk     // chunks 1, 2, …
	first chunkShards

	unpinned atomic.Bool // a shard of a later chunk is not known to be durable
	lost     atomic.Bool // a shard was not streamed, or to a drive that is no member any more
}

// chunkShards are the writers of one chunk, by shard index; nil where there is none.
type chunkShards struct {
	index   uint32
	group   placement.Group
	places  []int // position of each shard index
	need    int
	writers []disk.ShardWriter
}

type laterChunk struct{ chunkShards }

// sealTimeout bounds how long a drive may take to make a shard of a chunk durable.
const sealTimeout = time.Minute

// drive returns the number of the drive of shard j.
func (c *chunkShards) drive(j int) uint16 { return c.group.Drives[c.places[j]] }

// normalClass returns the class as it is stored: "" for STANDARD.
func normalClass(class string) (string, bool) {
	switch class {
	case "", ClassStandard:
		return "", true
	case ClassReduced:
		return ClassReduced, true
	}
	return "", false
}

// available reports Unavailable unless W members of the key's partition can be reached, so that a
// body is not read in vain.
func (s *Store) available(op string, g placement.Group) error {
	up := 0
	for _, num := range g.Drives {
		if _, ok := s.drives.Shards(num); ok {
			up++
		}
	}
	if up < g.Quorum.W {
		return errs.E("object."+op, errs.Unavailable,
			fmt.Sprintf("%d of %d drives of the partition are available, a write needs %d", up, g.Quorum.N, g.Quorum.W))
	}
	return nil
}

// write brings a body of size bytes to the drives, for the register addr of p. On error nothing is
// left but what the drives sweep by themselves.
func (s *Store) write(ctx context.Context, op string, p *place, addr metadata.Address, class string, h *hasher) (*written, error) {
	if err := s.available(op, p.group); err != nil {
		return nil, err
	}
	if class == ClassReduced {
		if err := s.reduces(ctx, &p.bucket); err != nil {
			return nil, errs.Wrap("object."+op, err)
		}
	}
	w := &written{s: s, addr: addr, data: metadata.Data{ID: erasure.NewDataID(), Size: h.size}}
	if h.size > int64(s.c.InlineLimit) {
		w.data.ChunkSize = s.c.ChunkSize
	}
	w.code(p, class)
	var err error
	if w.data.Inline() {
		err = w.inline(p, h)
	} else {
		err = w.stream(ctx, p, h)
	}
	if err == nil {
		w.sums, err = h.finish()
	}
	if err != nil {
		w.abort()
		return nil, writeError(op, err)
	}
	return w, nil
}

// code chooses the profile of a body: that of its class, as wide as all partitions of its chunks are now. Partitions
// become wider, never narrower, so it fits them whenever it is read.
func (w *written) code(p *place, class string) {
	profiles := p.layout.BodyProfiles(w.data.ID, w.data.Chunks(), p.group.Partition)
	w.data.Profile = profiles.Of(class)
	if width := profiles.Width(); width != p.layout.FirstWidth() {
		w.data.Width = uint8(width)
	}
}

// writeError gives an error of a body's source or of the drives its kind.
func writeError(op string, err error) error {
	var r *Reason
	switch {
	case errors.As(err, &r):
		return fail(op, &Failure{Reason: r})
	case errs.Is(err, errs.Incomplete) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)):
		return &errs.Error{Op: "object." + op, Kind: errs.Incomplete, Msg: ErrIncompleteBody.text,
			Err: errors.Join(&Failure{Reason: ErrIncompleteBody}, err)}
	}
	return errs.Wrap("object."+op, err)
}

// inline encodes a small body into rows, which travel with Prepare.
func (w *written) inline(p *place, h *hasher) error {
	buf := w.s.pool.Get(int(h.size))
	defer buf.Release()
	body := buf.Bytes()[:h.size]
	if n, err := io.ReadFull(h, body); err != nil {
		if n < len(body) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return ErrIncompleteBody
		}
		return sourceError(err)
	}
	encoded, err := w.s.coders.EncodeInline(w.data.Profile, w.data.ID, body)
	if err != nil {
		return err
	}
	w.seals = make([]*metadata.Seal, len(p.group.Drives))
	for j, pos := range p.group.Places(w.data.Profile, w.data.Width, w.data.ID) {
		w.seals[pos] = &metadata.Seal{Data: w.data, Index: uint8(j), Inline: encoded[j]}
	}
	w.need = placement.ShardQuorum(w.data.Profile, p.group.Spread)
	return nil
}

// sourceError gives an error of the client's body a kind where it has none.
func sourceError(err error) error {
	var known *errs.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errs.As("object.body", errs.Incomplete, err)
}

// stream encodes a larger body chunk by chunk. While a chunk streams, the one before is made durable
// beside, one at a time, so that the pins of the commit find little to do.
func (w *written) stream(ctx context.Context, p *place, h *hasher) (err error) {
	var flushed sync.WaitGroup
	defer flushed.Wait()
	for i := range w.data.Chunks() {
		size := min(w.data.ChunkSize, w.data.Size-int64(i)*w.data.ChunkSize)
		l := p.layout
		if i > 0 {
			l = w.s.control.Layout() // members may have changed while the body came
		}
		c, err := w.open(ctx, l.Group(l.ChunkPartition(w.data.ID, i, p.group.Partition)), i, size)
		if i == 0 {
			w.first = c
		} else {
			w.later = append(w.later, laterChunk{c})
		}
		if err != nil {
			return err
		}
		if err := w.encode(ctx, &c, size, h); err != nil {
			return err
		}
		if i > 0 {
			flushed.Wait()
			flushed.Go(func() { w.flush(ctx, &c) })
		}
	}
	w.seals = make([]*metadata.Seal, len(p.group.Drives))
	for j, sw := range w.first.writers {
		if sw != nil {
			w.seals[w.first.places[j]] = &metadata.Seal{Data: w.data, Index: uint8(j)}
		} else {
			w.lost.Store(true)
		}
	}
	w.need = w.first.need
	return nil
}

// follow makes the body fit the members that l gives its partitions. A shard that lies on a drive which
// is no member any more is lost to it: nothing is uploaded again, and the commit leaves a repair row, from
// which the member in its place gets one. The error is of kind Unavailable if too few shards are left.
func (w *written) follow(l *placement.Layout) error {
	if w.data.Inline() {
		return nil // by position, and sent with every Prepare
	}
	if err := w.followChunk(&w.first, l); err != nil {
		return err
	}
	for i := range w.later {
		if err := w.followChunk(&w.later[i].chunkShards, l); err != nil {
			return err
		}
	}
	return nil
}

func (w *written) followChunk(c *chunkShards, l *placement.Layout) error {
	next := l.Group(c.group.Partition)
	if next.Epoch <= c.group.Epoch {
		return nil
	}
	seals := slices.Clone(w.seals) // calls of the epoch before may still read the former
	left := 0
	for j, sw := range c.writers {
		if sw == nil {
			continue
		}
		if pos := c.places[j]; next.Drives[pos] != c.group.Drives[pos] {
			sw.Abort()
			c.writers[j] = nil
			w.lost.Store(true)
			if c.index == 0 {
				seals[pos] = nil
			}
			continue
		}
		left++
	}
	c.group, w.seals = next, seals
	if left < c.need {
		return errs.E("object.follow", errs.Unavailable,
			fmt.Sprintf("%d shards of chunk %d lie on drives that are still members, %d are needed", left, c.index, c.need))
	}
	return nil
}

// open makes the writers of one chunk. It fails when fewer than its shard quorum can be had.
func (w *written) open(ctx context.Context, g placement.Group, index uint32, size int64) (chunkShards, error) {
	prof := w.data.Profile
	c := chunkShards{index: index, group: g, places: g.Places(prof, w.data.Width, w.data.ID),
		need: placement.ShardQuorum(prof, g.Spread), writers: make([]disk.ShardWriter, prof.N())}
	fileSize := erasure.ShardFileSize(prof, size)
	owner := w.owner()
	var last atomic.Value
	each(prof.N(), prof.N(), func(j int) {
		d, ok := w.s.drives.Shards(c.drive(j))
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, w.s.c.CallTimeout) // of the call, not of the writer
		defer cancel()
		sw, err := d.CreateShard(ctx, disk.ShardSpec{ID: erasure.ShardID{Data: w.data.ID, Chunk: index, Index: uint8(j)},
			FileSize: fileSize, Owner: owner})
		if err != nil {
			last.Store(error(&errs.Error{Op: "object.open", Kind: errs.KindOf(err), Err: err}))
			return
		}
		c.writers[j] = sw
	})
	have := 0
	for _, sw := range c.writers {
		if sw != nil {
			have++
		}
	}
	if have >= c.need {
		return c, nil
	}
	cause, _ := last.Load().(error)
	kind := errs.Unavailable
	if errs.Is(cause, errs.Full) {
		kind = errs.Full
	}
	return c, &errs.Error{Op: "object.open", Kind: kind, Err: cause,
		Msg: fmt.Sprintf("%d drives take a shard of chunk %d, %d are needed", have, index, c.need)}
}

func (w *written) owner() erasure.Owner {
	return erasure.Owner{Bucket: w.addr.Bucket, Key: w.addr.Key, Upload: w.addr.Upload, Part: w.addr.Part}
}

// encode streams one chunk into its writers; those that failed are aborted and become nil.
func (w *written) encode(ctx context.Context, c *chunkShards, size int64, h *hasher) error {
	sinks := make([]erasure.Sink, len(c.writers))
	for j, sw := range c.writers {
		if sw != nil {
			sinks[j] = sw
		}
	}
	res, err := w.s.encoder.Encode(ctx, erasure.Chunk{Data: w.data.ID, Index: c.index, Profile: w.data.Profile,
		Size: size, Owner: w.owner()}, h, c.need, sinks)
	for j, e := range res.Failed {
		if e != nil && c.writers[j] != nil {
			w.s.log.Debug("a shard writer was dropped", "drive", c.drive(j), "data", w.data.ID, "chunk", c.index, "error", e)
			c.writers[j].Abort()
			c.writers[j] = nil
		}
	}
	return err
}

// flush makes the shards of a later chunk durable before its pin asks for it. Failures show at the pin.
func (w *written) flush(ctx context.Context, c *chunkShards) {
	each(len(c.writers), len(c.writers), func(j int) {
		if c.writers[j] == nil {
			return
		}
		if d, ok := w.s.drives.Shards(c.drive(j)); ok {
			ctx, cancel := context.WithTimeout(ctx, sealTimeout)
			defer cancel()
			if err := d.SealChunk(ctx, w.data.ID, c.index); err != nil {
				w.s.log.Debug("a shard could not be sealed ahead", "drive", c.drive(j), "data", w.data.ID, "error", err)
			}
		}
	})
}

// pin holds the shards of every later chunk under ballot b, and succeeds with the shard quorum of each.
func (w *written) pin(ctx context.Context, p *place, b metadata.Ballot) error {
	have := make([]atomic.Int32, len(w.later))
	w.unpinned.Store(false)
	var hint sync.Map
	var stale atomic.Bool
	n := w.data.Profile.N()
	each(len(w.later)*n, drivesAtOnce, func(i int) {
		c, j := &w.later[i/n], i%n
		if c.writers[j] == nil {
			w.unpinned.Store(true)
			return
		}
		num := c.drive(j)
		d, ok := w.s.drives.Shards(num)
		if !ok {
			w.unpinned.Store(true)
			return
		}
		ctx, cancel := context.WithTimeout(ctx, sealTimeout)
		defer cancel()
		r, err := d.Pin(ctx, &metadata.PinRequest{
			Header: metadata.Header{Drive: num, Partition: c.group.Partition, Epoch: c.group.Epoch, BucketEpoch: p.bucket.Epoch},
			Data:   w.data.ID, Chunk: c.index, Ballot: b})
		if err == nil && r.Have {
			have[i/n].Add(1)
			return
		}
		w.unpinned.Store(true)
		if errs.Is(err, errs.Stale) {
			stale.Store(true)
		}
		hint.Store(i/n, err)
	})
	for i := range w.later {
		if got := int(have[i].Load()); got < w.later[i].need {
			cause, _ := hint.Load(i)
			err, _ := cause.(error)
			kind := errs.Unavailable
			if stale.Load() {
				kind = errs.Stale // the chunk's partition may have other members now
			}
			return &errs.Error{Op: "object.pin", Kind: kind, Err: err,
				Msg: fmt.Sprintf("%d shards of chunk %d are durable, %d are needed", got, i+1, w.later[i].need)}
		}
	}
	return nil
}

// operation is the part of a commit that names the body.
func (w *written) operation(p *place) metadata.Operation {
	o := metadata.Operation{ID: newOpID(), Seals: w.seals, Need: w.need}
	if !w.data.Inline() {
		o.Lacking = func() bool { return w.lost.Load() || w.unpinned.Load() }
	}
	if len(w.later) > 0 {
		o.Pin = func(ctx context.Context, b metadata.Ballot) error { return w.pin(ctx, p, b) }
	}
	return o
}

// commit runs update for a body and takes care of the body after it: a failure that is certain takes
// the body away. What the streams lost the register notes, durably, as it settles.
func (w *written) commit(ctx context.Context, op string, p *place, d decide) (outcome, error) {
	done, err := w.s.updateBody(ctx, op, p, w.addr, w.operation(p), d, w)
	switch {
	case err == nil:
		w.s.release(w)
		return done, nil
	case uncertain(err):
		// The record may name the body: only a round on the register can tell, and the collection of
		// orphans makes one.
		w.s.release(w)
		return outcome{}, err
	}
	w.abort()
	return outcome{}, err
}

// uncertain reports whether a commit that ended with err may have happened, or still happen.
func uncertain(err error) bool {
	k := errs.KindOf(err)
	return k == errs.Unknown || k == errs.Internal
}

// abort takes the body away, as far as that is possible now. No record may name it.
func (w *written) abort() {
	unsealed := []*chunkShards{&w.first}
	for i := range w.later {
		unsealed = append(unsealed, &w.later[i].chunkShards)
	}
	w.letGo()
	if w.seals == nil {
		return
	}
	w.s.cleanup(func(ctx context.Context) { w.remove(ctx, unsealed) })
}

// remove deletes what was sealed. The guard is above every ballot, since no proposal but the failed
// one knows the data id.
func (w *written) remove(ctx context.Context, chunks []*chunkShards) {
	all := metadata.Ballot{Counter: ^uint64(0), Proposer: ^uint64(0)}
	del := func(num uint16, chunk uint32) {
		if d, ok := w.s.drives.Shards(num); ok {
			if err := d.DeleteShard(ctx, w.addr, w.data.ID, chunk, all); err != nil && !errs.Is(err, errs.NotFound) {
				w.s.log.Debug("a shard of a failed write stays for the drive's own sweep", "drive", num, "data", w.data.ID, "error", err)
			}
		}
	}
	if w.data.Inline() {
		g := w.s.groupOf(w.addr)
		for pos, seal := range w.seals {
			if seal != nil && pos < len(g.Drives) {
				del(g.Drives[pos], 0)
			}
		}
		return
	}
	for _, c := range chunks {
		for j, sw := range c.writers {
			if sw != nil {
				del(c.drive(j), c.index)
			}
		}
	}
}

// releases are committed bodies whose writers are kept for drives that are slow to seal: a shard
// that comes late is one that need not be rebuilt. There is no goroutine: who adds one lets go of
// those that are due.
type releases struct {
	mu   sync.Mutex // guards list
	list []releaseEntry
}

type releaseEntry struct {
	due time.Time
	w   *written
}

const (
	releaseAfter = 30 * time.Second
	maxReleases  = 1024
)

// release lets go of the writers of a body later: sealed shards stay, what was never sealed goes.
func (s *Store) release(w *written) {
	if w.first.writers == nil {
		return
	}
	now := s.now()
	r := &s.releases
	r.mu.Lock()
	r.list = append(r.list, releaseEntry{now.Add(releaseAfter), w})
	n := 0
	for n < len(r.list) && (len(r.list)-n > maxReleases || !now.Before(r.list[n].due)) {
		n++
	}
	due := slices.Clone(r.list[:n])
	r.list = slices.Delete(r.list, 0, n)
	r.mu.Unlock()
	for _, e := range due {
		e.w.letGo()
	}
}

func (s *Store) releaseAll() {
	s.releases.mu.Lock()
	list := s.releases.list
	s.releases.list = nil
	s.releases.mu.Unlock()
	for _, e := range list {
		e.w.letGo()
	}
}

// letGo aborts every writer: those that were sealed do not mind.
func (w *written) letGo() {
	abort := func(c *chunkShards) {
		for _, sw := range c.writers {
			if sw != nil {
				sw.Abort()
			}
		}
	}
	abort(&w.first)
	for i := range w.later {
		abort(&w.later[i].chunkShards)
	}
}

// groupOf returns the group of a register in the current layout.
func (s *Store) groupOf(a metadata.Address) placement.Group {
	l := s.control.Layout()
	return l.Group(l.PartitionOf(a.Bucket, a.Key))
}

// askRepair leaves a durable repair row for positions of a register (none: every one) on its drives. Of those who ask
// soon after another one, the first leaves its row a little later, and for every position: what asked before may have
// been repaired before this was found.
func (s *Store) askRepair(g placement.Group, a metadata.Address, positions ...uint8) {
	switch wait, ask := s.asked.wait(a, s.now()); {
	case !ask:
		return
	case wait > 0:
		s.background.Go(func() {
			defer s.asked.waited()
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-s.ending:
			}
			s.keepRepair(g, a, nil)
		})
	default:
		s.keepRepair(g, a, positions)
	}
}

func (s *Store) keepRepair(g placement.Group, a metadata.Address, positions []uint8) {
	if len(positions) == 0 {
		for i := range g.Drives {
			positions = append(positions, uint8(i))
		}
	}
	s.stats.repairsAsked.Add(1)
	row := metadata.RepairRow{Address: a, Partition: g.Partition, Positions: positions}
	s.cleanup(func(ctx context.Context) {
		kept := 0
		for _, num := range g.Drives {
			d, ok := s.drives.Shards(num)
			if !ok {
				continue
			}
			if err := d.AddRepair(ctx, row); err == nil {
				kept++
			}
		}
		if kept == 0 {
			s.log.Warn("no drive kept a repair row", "bucket", a.Bucket, "partition", g.Partition)
		} else if s.c.OnRepair != nil {
			s.c.OnRepair()
		}
	})
}

// recently remembers which registers were reported lately, so that a damaged object that is read in a
// loop does not write a row for every read.
type recently struct {
	mu      sync.Mutex           // guards the fields below
	by      map[string]time.Time // when it is, or was, reported last; that may be in the future
	waiting int
}

const (
	reportEvery = 30 * time.Second
	maxRecent   = 4096
	maxWaiting  = 1024
)

// wait reports whether a register is to be reported, and after what time. Unless that is 0, call waited then.
func (r *recently) wait(a metadata.Address, now time.Time) (wait time.Duration, report bool) {
	k := string(a.AppendTo(nil))
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.by[k]; ok {
		switch since := now.Sub(at); {
		case since < 0 && since >= -reportEvery:
			return 0, false // it is going to be
		case since >= 0 && since < reportEvery:
			wait = reportEvery - since
		}
	}
	if len(r.by) >= maxRecent || r.by == nil {
		r.by = make(map[string]time.Time)
	}
	if r.waiting == maxWaiting {
		wait = 0
	} else if wait > 0 {
		r.waiting++
	}
	r.by[k] = now.Add(wait)
	return wait, true
}

func (r *recently) waited() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
}
