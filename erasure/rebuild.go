package erasure

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ostraka/ostraka/internal/bufpool"
	"github.com/ostraka/ostraka/internal/errs"
)

// RebuildError says which sinks of a Rebuild failed; all others have their whole file.
type RebuildError struct {
	Failed map[int]error
}

func (e *RebuildError) Error() string {
	s := "rebuilt shards could not be written:"
	for _, j := range slices.Sorted(maps.Keys(e.Failed)) {
		s += fmt.Sprintf(" %d (%v)", j, e.Failed[j])
	}
	return s
}

// Unwrap returns the causes in the order of the shards.
func (e *RebuildError) Unwrap() []error {
	var all []error
	for _, j := range slices.Sorted(maps.Keys(e.Failed)) {
		all = append(all, e.Failed[j])
	}
	return all
}

// Rebuild computes the missing shards of c from any k others, and writes them, byte for byte as
// Encode did, to the sinks. Only verified blocks go in. The missing shards themselves are not opened. As
// with Encode, making the files durable is the sink owner's step.
//
// A sink that fails does not end the others: the error then holds a *RebuildError. Other errors are those
// of OpenChunk; no sink is complete then. Sinks are called concurrently with each other. Cache is not
// used; Order, HedgeAfter, ReadAhead and OnDamage are as for OpenChunk.
func Rebuild(ctx context.Context, c Chunk, open func(ctx context.Context, shard int) (Source, error), missing map[int]Sink, o ReadOptions) error {
	const op = "erasure.Rebuild"
	if len(missing) == 0 {
		return nil
	}
	for j, sink := range missing {
		if j < 0 || j >= c.Profile.N() || sink == nil {
			return errs.E(op, errs.Invalid, fmt.Sprintf("no sink for shard %d of profile %s", j, c.Profile))
		}
	}
	o.Cache = nil
	r, err := newReader(ctx, c, open, o, func(j int) bool { _, ok := missing[j]; return ok })
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // the files were only read
	if err := r.openEnough(ctx); err != nil {
		return err
	}
	b := rebuild{r: r, sinks: maps.Clone(missing), failed: make(map[int]error), sums: make(map[int][]byte)}
	for j := range missing {
		b.sums[j] = make([]byte, r.g.blocks()*sumSize)
	}
	if err := b.run(ctx); err != nil {
		return err
	}
	if len(b.failed) > 0 {
		e := &RebuildError{Failed: b.failed}
		for _, j := range slices.Sorted(maps.Keys(b.failed)) {
			return errs.As(op, errs.KindOf(b.failed[j]), e)
		}
	}
	return nil
}

type rebuild struct {
	r      *ChunkReader
	sinks  map[int]Sink // those that still work
	failed map[int]error
	sums   map[int][]byte
}

func (b *rebuild) run(ctx context.Context) error {
	r := b.r
	fetching, cancel := context.WithCancel(ctx)
	defer cancel()
	var ahead []*segment
	defer func() {
		for _, s := range ahead {
			s.finish()
		}
	}()
	blocks := r.g.blocks()
	if blocks == 0 {
		return b.write(ctx, nil, 0, 0)
	}
	for at := 0; at < blocks || len(ahead) > 0; {
		for at < blocks && len(ahead) <= max(r.o.ReadAhead, 0) {
			s := &segment{r: r, a: at, b: min(at+r.group, blocks), want: make([]bool, r.g.n), event: make(chan struct{}, 1)}
			for j := range b.sums {
				s.want[j] = true
			}
			s.start(fetching)
			ahead = append(ahead, s)
			at = s.b
		}
		s := ahead[0]
		if err := s.collect(ctx); err != nil {
			return err
		}
		if err := b.write(ctx, s, s.a, s.b); err != nil {
			return err
		}
		s.finish()
		ahead = ahead[1:]
		if len(b.sinks) == 0 {
			return nil
		}
	}
	return nil
}

// write sends blocks [a, end) of each missing shard to its sink, with the header before the first and
// the footer after the last, and waits for all.
func (b *rebuild) write(ctx context.Context, s *segment, a, end int) error {
	type outcome struct {
		j   int
		err error
	}
	results := make(chan outcome, len(b.sinks))
	n := 0
	for j, sink := range b.sinks {
		buf := b.part(s, j, a, end)
		n++
		b.r.coders.spawn(func() {
			err := sink.Write(ctx, buf.Bytes())
			buf.Release()
			results <- outcome{j, err}
		})
	}
	for ; n > 0; n-- {
		select {
		case out := <-results:
			if out.err != nil {
				b.failed[out.j] = out.err
				delete(b.sinks, out.j)
			}
		case <-ctx.Done():
			return errs.As("erasure.Rebuild", errs.KindOf(ctx.Err()), errors.Join(ErrLagging, ctx.Err()))
		}
	}
	return nil
}

// part assembles what is to be written to shard j.
func (b *rebuild) part(s *segment, j, a, end int) *bufpool.Buf {
	r := b.r
	head, foot := 0, 0
	if a == 0 {
		head = headerSize
	}
	if end == r.g.blocks() {
		foot = r.g.footerLen()
	}
	buf := r.coders.pool.Get(head + r.g.span(a, end) + foot)
	p := buf.Bytes()
	if head > 0 {
		encodeHeader(p, Header{Chunk: r.c, Shard: uint8(j)})
	}
	at := head
	for t := a; t < end; t++ {
		block := s.blocks[(t-a)*r.g.n+j]
		putSum(b.sums[j][t*sumSize:], blockSum(r.c.Shard(j), t, block))
		at += copy(p[at:], block)
	}
	if foot > 0 {
		encodeFooter(p[at:], r.c, j, b.sums[j])
	}
	return buf
}
