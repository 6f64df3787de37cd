package erasure

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// segment is a run of stripes [a, b) on its way from the shards to a writer. All of its reads ask for
// the same blocks, of different shards.
type segment struct {
	r        *ChunkReader
	a, b     int
	from, to int64  // the part of the body that is wanted
	want     []bool // by shard: its blocks are needed
	wanted   int
	hits     map[int]cacheHit // by block number in the body
	fetching context.Context
	event    chan struct{} // capacity 1: a read ended
	decoded  *bufpool.Buf
	blocks   [][]byte // after collect: stripe by stripe, by shard; nil where not wanted

	// Guarded by r.mu.
	tries    []*attempt // by shard; nil if not asked
	finished bool
}

type cacheHit struct {
	p       []byte
	release func()
}

// attempt is one read of a shard's blocks for a segment.
type attempt struct {
	began time.Time
	ended bool
	late  bool // others were started in its stead
	buf   *bufpool.Buf
	data  []byte // the blocks
	good  []bool // by stripe: verified
	err   error
}

func (t *attempt) has(stripe int) bool { return t != nil && t.ended && t.err == nil && t.good[stripe] }

// start asks the cache and begins to read the shards of first choice.
func (s *segment) start(ctx context.Context) {
	r := s.r
	s.fetching = ctx
	s.tries = make([]*attempt, r.g.n)
	ask := slices.Clone(s.want)
	for j, want := range s.want {
		if want {
			s.wanted++
			ask[j] = !s.lookUp(j)
		}
	}
	if !slices.Contains(ask, true) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	direct := s.wanted < r.g.k
	for j, a := range ask {
		direct = direct && (!a || r.shards[j].healthy())
	}
	if direct {
		for j, a := range ask {
			if a {
				s.launch(r.shards[j])
			}
		}
		return
	}
	list := s.candidates()
	if s.wanted < r.g.k { // those that are wanted themselves come first
		slices.SortStableFunc(list, func(x, y *shard) int { return btoi(ask[y.index]) - btoi(ask[x.index]) })
	} else if first := list[:min(r.g.k, len(list))]; !slices.ContainsFunc(first, func(x *shard) bool { return !s.want[x.index] }) {
		// Nothing will be decoded: what the cache has need not be read.
		list = slices.DeleteFunc(slices.Clone(first), func(x *shard) bool { return !ask[x.index] })
	}
	for _, x := range list[:min(r.g.k, len(list))] {
		s.launch(x)
	}
}

// lookUp asks the cache for the blocks of data shard j, and reports whether it has them all.
func (s *segment) lookUp(j int) bool {
	r := s.r
	if r.o.Cache == nil || j >= r.g.k {
		return false
	}
	all := true
	for t := s.a; t < s.b; t++ {
		n := r.g.content(t, j)
		if n == 0 {
			continue
		}
		p, release, ok := r.o.Cache.Get(r.c.Data, r.c.Index, uint32(t*r.g.k+j))
		if ok && len(p) != n {
			release()
			ok = false
		}
		if !ok {
			all = false
			continue
		}
		if s.hits == nil {
			s.hits = make(map[int]cacheHit)
		}
		s.hits[t*r.g.k+j] = cacheHit{p, release}
	}
	return all
}

// candidates lists the shards that can still be asked, best first. The caller holds r.mu.
func (s *segment) candidates() []*shard {
	list := make([]*shard, 0, len(s.r.order))
	for _, healthy := range []bool{true, false} {
		for _, x := range s.r.order {
			if !x.failed && s.tries[x.index] == nil && x.healthy() == healthy {
				list = append(list, x)
			}
		}
	}
	return list
}

// launch begins to read the segment's blocks of x. The caller holds r.mu.
func (s *segment) launch(x *shard) {
	t := &attempt{began: time.Now()}
	s.tries[x.index] = t
	s.r.coders.spawn(func() {
		res := s.r.fetch(s.fetching, x, s.a, s.b)
		s.deliver(x, t, res)
	})
}

// deliver takes the result of a read, or gives its buffer back when nobody waits for it any more.
func (s *segment) deliver(x *shard, t *attempt, res attempt) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if t.late {
		x.hanging--
	}
	t.ended, t.data, t.good, t.err = true, res.data, res.good, res.err
	if s.finished {
		if res.buf != nil {
			res.buf.Release()
		}
		return
	}
	t.buf = res.buf
	poke(s.event)
}

// collect waits until all wanted blocks are read or can be decoded, asking further shards when one
// fails or is late, and then decodes what must be.
func (s *segment) collect(ctx context.Context) error {
	r := s.r
	hedge := r.hedgeAfter()
	var timer *time.Timer
	for {
		r.mu.Lock()
		now := time.Now()
		wait := s.hedge(now, hedge)
		short, lost := s.assess()
		for _, x := range s.candidates() {
			if short <= 0 {
				break
			}
			s.launch(x)
			short--
			if hedge > 0 && (wait == 0 || wait > hedge) {
				wait = hedge
			}
		}
		complete := s.complete()
		r.mu.Unlock()
		if complete {
			return s.decode()
		}
		if err := ctx.Err(); err != nil {
			return errs.Wrap("erasure.read", err)
		}
		if lost >= 0 {
			return r.shortage("erasure.read", s.badBlocks(lost))
		}
		var expired <-chan time.Time
		if wait > 0 {
			if timer == nil {
				timer = time.NewTimer(wait)
				defer timer.Stop()
			} else {
				timer.Reset(wait)
			}
			expired = timer.C
		}
		select {
		case <-s.event:
		case <-expired:
		case <-ctx.Done():
			return errs.Wrap("erasure.read", ctx.Err())
		}
	}
}

// hedge marks the reads that are late and returns how long until the next one is, 0 if none can
// be. The caller holds r.mu.
func (s *segment) hedge(now time.Time, after time.Duration) time.Duration {
	var next time.Duration
	if after <= 0 {
		return 0
	}
	for j, t := range s.tries {
		if t == nil || t.ended || t.late {
			continue
		}
		left := t.began.Add(after).Sub(now)
		if left <= 0 {
			t.late = true
			s.r.shards[j].hedged++
			s.r.shards[j].hanging++
		} else if next == 0 || left < next {
			next = left
		}
	}
	return next
}

// covered reports whether shard j's block of stripe t is there. The caller holds r.mu.
func (s *segment) covered(t, j int) bool {
	if _, hit := s.hits[t*s.r.g.k+j]; hit && j < s.r.g.k {
		return true
	}
	if j < s.r.g.k && s.r.g.content(t, j) == 0 && !s.r.shards[j].excluded {
		return true // nothing of the body is in it
	}
	return s.tries[j].has(t - s.a)
}

// tally counts, for one stripe, the blocks that are there, those that are on their way in time, and
// those on their way late, and tells whether the stripe is served: its blocks are there, or k
// are, or (direct) what it lacks is on its way. The caller holds r.mu.
func (s *segment) tally(t int) (good, coming, late int, served, direct, hope bool) {
	for _, x := range s.tries {
		switch {
		case x == nil:
		case x.has(t - s.a):
			good++
		case !x.ended && x.late:
			late++
		case !x.ended:
			coming++
		}
	}
	served, direct, hope = true, true, true
	for j, want := range s.want {
		if want && !s.covered(t, j) {
			served = false
			x := s.tries[j]
			hope = hope && x != nil && !x.ended
			direct = direct && x != nil && !x.ended && !x.late
		}
	}
	return good, coming, late, served || good >= s.r.g.k, direct, hope
}

// assess returns how many more shards must be asked, and a stripe that can no longer be served, −1
// if there is none. The caller holds r.mu.
func (s *segment) assess() (short, lost int) {
	k, spare := s.r.g.k, len(s.candidates())
	lost = -1
	for t := s.a; t < s.b; t++ {
		good, coming, late, served, direct, hope := s.tally(t)
		if served || direct {
			continue
		}
		short = max(short, k-good-coming)
		if !hope && good+coming+late+spare < k {
			lost = t
		}
	}
	return short, lost
}

// complete reports whether every stripe is served. The caller holds r.mu.
func (s *segment) complete() bool {
	for t := s.a; t < s.b; t++ {
		if _, _, _, served, _, _ := s.tally(t); !served {
			return false
		}
	}
	return true
}

// badBlocks names the shards whose block of stripe t was read and does not verify.
func (s *segment) badBlocks(t int) map[int]error {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	bad := make(map[int]error)
	for j, x := range s.tries {
		switch {
		case x == nil || !x.ended:
		case x.err != nil:
			bad[j] = x.err
		case !x.good[t-s.a]:
			bad[j] = errBlock
		}
	}
	return bad
}

var errBlock = errs.E("erasure.read", errs.Corrupt, "shard block fails its checksum")

// decode gathers the wanted blocks, and computes those that were not read.
func (s *segment) decode() error {
	r := s.r
	r.mu.Lock() // results that come from now on are not looked at
	tries := make([]attempt, r.g.n)
	for j, t := range s.tries {
		if t != nil && t.ended {
			tries[j] = *t
		}
	}
	var lacking [][2]int
	s.blocks = make([][]byte, (s.b-s.a)*r.g.n)
	for t := s.a; t < s.b; t++ {
		for j, want := range s.want {
			if !want {
				continue
			}
			place := &s.blocks[(t-s.a)*r.g.n+j]
			if hit, ok := s.hits[t*r.g.k+j]; ok && j < r.g.k {
				*place = hit.p
			} else if tries[j].has(t - s.a) {
				*place = s.part(tries[j].data, t)
			} else if !s.covered(t, j) {
				lacking = append(lacking, [2]int{t, j})
			}
		}
	}
	r.mu.Unlock()
	if len(lacking) == 0 {
		return nil
	}

	size := 0
	for _, l := range lacking {
		size += r.g.span(l[0], l[0]+1)
	}
	s.decoded = r.coders.pool.Get(size)
	room := s.decoded.Bytes()
	for i := 0; i < len(lacking); {
		t := lacking[i][0]
		shards, required := make([][]byte, r.g.n), make([]bool, r.g.n)
		for j := range shards {
			if tries[j].has(t - s.a) {
				shards[j] = s.part(tries[j].data, t)
			}
		}
		stored := r.g.span(t, t+1)
		for ; i < len(lacking) && lacking[i][0] == t; i++ {
			j := lacking[i][1]
			shards[j], required[j] = room[:0:stored], true
			s.blocks[(t-s.a)*r.g.n+j] = room[:stored]
			room = room[stored:]
		}
		if err := r.coders.reconstruct(r.c.Profile, shards, required); err != nil {
			return err
		}
	}
	return nil
}

// part cuts the block of stripe t out of blocks [a, b).
func (s *segment) part(data []byte, t int) []byte {
	at := (t - s.a) * BlockSize
	return data[at : at+s.r.g.span(t, t+1)]
}

// emit writes the wanted bytes, in order, and offers the cache what it did not have.
func (s *segment) emit(w io.Writer) error {
	r := s.r
	for t := s.a; t < s.b; t++ {
		for j := range r.g.k {
			p := s.blocks[(t-s.a)*r.g.n+j]
			n := r.g.content(t, j)
			if !s.want[j] || n == 0 {
				continue
			}
			p = p[:n]
			block := t*r.g.k + j
			if _, hit := s.hits[block]; !hit && r.o.Cache != nil {
				r.o.Cache.Put(r.c.Data, r.c.Index, uint32(block), p)
			}
			start := r.g.bodyOff(t, j)
			lo, hi := max(s.from-start, 0), min(s.to-start, int64(n))
			if lo >= hi {
				continue
			}
			wrote, err := w.Write(p[lo:hi])
			if err == nil && int64(wrote) < hi-lo {
				err = io.ErrShortWrite
			}
			if err != nil {
				return errs.Wrap("erasure.WriteRange", err)
			}
		}
	}
	return nil
}

// finish gives everything back. What is still being read gives itself back later.
func (s *segment) finish() {
	for _, hit := range s.hits {
		hit.release()
	}
	s.hits = nil
	s.r.mu.Lock()
	s.finished = true
	for _, t := range s.tries {
		if t != nil && t.buf != nil {
			t.buf.Release()
			t.buf = nil
		}
	}
	s.r.mu.Unlock()
	if s.decoded != nil {
		s.decoded.Release()
		s.decoded = nil
	}
}

// fetch reads and verifies blocks [a, b) of x.
func (r *ChunkReader) fetch(ctx context.Context, x *shard, a, b int) attempt {
	src, err := r.acquire(ctx, x)
	if err != nil {
		return attempt{err: err}
	}
	defer r.done(x)

	// The last blocks and the footer are one read, which makes one read of a small shard.
	stored, foot := r.g.span(a, b), 0
	table := r.tableOf(x)
	if table == nil {
		if b == r.g.blocks() {
			foot = r.g.footerLen()
		} else if table, err = r.readTable(ctx, x, src); err != nil {
			return attempt{err: err}
		}
	}
	buf := r.coders.pool.Get(stored + foot)
	began := time.Now()
	if err := readFull(ctx, src, buf.Bytes(), r.g.blockOff(a)); err != nil {
		buf.Release()
		if ctx.Err() == nil {
			r.fail(x, err, false)
		}
		return attempt{err: err}
	}
	r.coders.latency.observe(time.Since(began))
	if foot > 0 {
		if table, err = r.setTable(x, buf.Bytes()[stored:]); err != nil {
			buf.Release()
			return attempt{err: err}
		}
	}

	res := attempt{buf: buf, data: buf.Bytes()[:stored], good: make([]bool, b-a)}
	id, damaged := r.c.Shard(x.index), false
	for t := a; t < b; t++ {
		at := (t - a) * BlockSize
		p := res.data[at : at+r.g.span(t, t+1)]
		res.good[t-a] = blockSum(id, t, p) == getSum(table[t*sumSize:])
		damaged = damaged || !res.good[t-a]
	}
	if damaged {
		// Other blocks of the shard may be good, and may be needed: it stays in use.
		r.tell(x, errBlock)
	} else {
		r.mu.Lock()
		x.errors = 0
		r.mu.Unlock()
	}
	return res
}

// tell reports damage that does not rule the shard out.
func (r *ChunkReader) tell(x *shard, err error) {
	r.mu.Lock()
	tell := !x.told && r.o.OnDamage != nil
	x.told = x.told || tell
	r.mu.Unlock()
	if tell {
		r.o.OnDamage(x.index, err)
	}
}

func (r *ChunkReader) tableOf(x *shard) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return x.table
}

// readTable reads the footer of x, once for concurrent callers.
func (r *ChunkReader) readTable(ctx context.Context, x *shard, src Source) ([]byte, error) {
	select {
	case x.lock <- struct{}{}:
		defer func() { <-x.lock }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if table := r.tableOf(x); table != nil {
		return table, nil
	}
	buf := r.coders.pool.Get(r.g.footerLen())
	defer buf.Release()
	if err := readFull(ctx, src, buf.Bytes(), r.g.footerOff()); err != nil {
		if ctx.Err() == nil {
			r.fail(x, err, false)
		}
		return nil, err
	}
	return r.setTable(x, buf.Bytes())
}

// setTable verifies a footer and keeps its table. Without it nothing of the shard can be verified.
func (r *ChunkReader) setTable(x *shard, footer []byte) ([]byte, error) {
	table, err := decodeFooter(footer, r.c, x.index)
	if err != nil {
		r.fail(x, err, true)
		return nil, err
	}
	table = slices.Clone(table)
	r.mu.Lock()
	x.table = table
	r.mu.Unlock()
	return table, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
