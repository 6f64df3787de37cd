package object

import (
	"io"

	"github.com/ostraka/ostraka/erasure"
)

// A version that is re-coded while somebody reads it keeps its bytes, and the data that the reader has open goes
// after a grace. A reader that is slower than that goes on in the new data, from the byte where it was: of the same
// version, so nothing is spliced. A sequence is unique within its key for ever.

// recoded looks, after an answer broke off behind its first done bytes because shards are gone, whether the
// version has other data now, and plans the rest of the answer in it.
func (o *Object) recoded(op string, done int64) bool {
	if o.seq == 0 || done >= o.Length {
		return false
	}
	before := make(map[erasure.DataID]bool, len(o.pieces))
	for i := range o.pieces {
		before[o.pieces[i].data.ID] = true
	}
	if o.s.refresh(o.ctx, op, o.p, false) != nil {
		return false
	}
	v, err := o.s.versionAt(o.ctx, op, o.p, o.seq)
	if err != nil || v == nil || v.ETag != o.Info.ETag || v.Size != o.Info.Size {
		return false
	}
	rest := *o
	rest.Offset, rest.Length, rest.pieces, rest.rows = o.Offset+done, o.Length-done, nil, nil
	if rest.plan(op, v) != nil {
		return false
	}
	for i := range rest.pieces {
		if before[rest.pieces[i].data.ID] {
			return false // it is this data that is damaged
		}
	}
	o.Close() //nolint:errcheck // files that were only read
	o.pieces, o.rows = rest.pieces, nil
	o.s.stats.rereads.Add(1)
	return true
}

// counter counts what passes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
