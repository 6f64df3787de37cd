package erasure

import (
	"context"
	"fmt"

	"github.com/ostraka/ostraka/internal/errs"
)

// VerifyShard reads all of a shard file, at most 1 MiB at a time, and checks that it is, byte for
// byte, a valid shard index of chunk c: header, every block, padding, footer. c.Owner is not compared.
// Damage is errs.Corrupt, a newer format errs.Unsupported; failures to read keep their kind. coders may
// be nil. The source stays open.
func VerifyShard(ctx context.Context, src Source, c Chunk, index int, coders *Coders) error {
	const op = "erasure.VerifyShard"
	if err := c.check(op); err != nil {
		return err
	}
	if index < 0 || index >= c.Profile.N() {
		return errs.E(op, errs.Invalid, fmt.Sprintf("shard %d of profile %s", index, c.Profile))
	}
	h, err := ReadHeader(ctx, src)
	if err != nil {
		return err
	}
	if h.ID() != c.Shard(index) || h.Chunk.Profile != c.Profile || h.Chunk.Size != c.Size {
		return errs.E(op, errs.Corrupt, "shard header belongs to another shard")
	}
	coders, release := codersOr(coders)
	defer release()
	g := geometryOf(c.Profile, c.Size)
	foot := coders.pool.Get(g.footerLen())
	defer foot.Release()
	if err := readFull(ctx, src, foot.Bytes(), g.footerOff()); err != nil {
		return errs.Wrap(op, err)
	}
	table, err := decodeFooter(foot.Bytes(), c, index)
	if err != nil {
		return err
	}
	const step = 1 << 20 / BlockSize
	buf := coders.pool.Get(g.span(0, min(step, g.blocks())))
	defer buf.Release()
	for a := 0; a < g.blocks(); a += step {
		if err := ctx.Err(); err != nil {
			return errs.Wrap(op, err)
		}
		b := min(a+step, g.blocks())
		p := buf.Bytes()[:g.span(a, b)]
		if err := readFull(ctx, src, p, g.blockOff(a)); err != nil {
			return errs.Wrap(op, err)
		}
		for t := a; t < b; t++ {
			n := g.span(t, t+1)
			if blockSum(c.Shard(index), t, p[:n]) != getSum(table[t*sumSize:]) {
				return errs.E(op, errs.Corrupt, fmt.Sprintf("block %d of the shard fails its checksum", t))
			}
			p = p[n:]
		}
	}
	return nil
}
