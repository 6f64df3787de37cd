package disk

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

func TestSealReplacesADamagedInlineRowOnly(t *testing.T) {
	o := testOptions()
	sealed := time.Unix(1_800_000_000, 0)
	var later atomic.Int64 // the drive may look at the clock after it has answered
	o.Now = func() time.Time { return sealed.Add(time.Duration(later.Load())) }
	d := makeDrive(t, vfs.NewMem(), o)
	b := newBody(rand.New(rand.NewPCG(1, 2)), 300, true)
	rows, err := erasure.EncodeInline(one, b.data.ID, b.bytes)
	if err != nil {
		t.Fatal(err)
	}
	seal := &metadata.Seal{Data: b.data, Inline: rows[0]}
	if err := d.SealShard(bg, testAddr, seal); err != nil {
		t.Fatal(err)
	}
	// A row that is right stays as it is.
	later.Store(int64(time.Hour))
	if err := d.SealShard(bg, testAddr, seal); err != nil {
		t.Fatal(err)
	}
	if st, err := d.StatShard(bg, b.chunk().Shard(0)); err != nil || !st.Row.Sealed.Equal(sealed) {
		t.Fatalf("sealed at %v, want %v (%v)", st.Row.Sealed, sealed, err)
	}
	for _, cut := range []int{0, 1} { // a byte that is wrong, and a row that is too short
		row, err := d.row(shardChunk{b.data.ID, 0})
		if err != nil {
			t.Fatal(err)
		}
		row.Inline = bytes.Clone(row.Inline)
		row.Inline[len(row.Inline)-1] ^= 1
		row.Inline = row.Inline[:len(row.Inline)-cut]
		if err := d.putRow(row); err != nil {
			t.Fatal(err)
		}
		wantKind(t, d.VerifyShard(bg, b.chunk(), 0, nil), errs.Corrupt)
		if err := d.SealShard(bg, testAddr, seal); err != nil {
			t.Fatal(err)
		}
		if err := d.VerifyShard(bg, b.chunk(), 0, nil); err != nil {
			t.Errorf("after the seal: %v", err)
		}
	}
}
