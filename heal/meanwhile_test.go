package heal

import (
	"bytes"
	"context"
	"encoding/hex"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/object"
)

// hook calls f once: behind the at-th shard that is verified through hooks with the same n, or, without n, in front of
// the first repair row that is cleared.
type hook struct {
	node.Drive
	n  *atomic.Int32
	at int32
	f  func()
}

func (h *hook) VerifyShard(ctx context.Context, c erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	err := h.Drive.VerifyShard(ctx, c, index, throttle)
	if h.n != nil && h.n.Add(1) == h.at {
		h.f()
	}
	return err
}

func (h *hook) ClearRepair(ctx context.Context, r metadata.RepairRow) error {
	if h.f != nil && h.n == nil {
		f := h.f
		h.f = nil
		f()
	}
	return h.Drive.ClearRepair(ctx, r)
}

// A shard that rots once it was verified, and is found by a read before the repair of its register ends, stays on the
// list, though its position was on it before.
func TestDamageThatIsFoundDuringARepairIsNotForgotten(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 700<<10) // 3 chunks x 4 shards
	w.heal()
	id := w.dataOf("k")
	in, _ := w.store.Inspect(context.Background(), "bkt", "k", false)
	var n atomic.Int32
	by := map[uint16]node.Drive{}
	f := func() {
		for _, s := range in.Shards {
			if s.Chunk == 0 && s.Index == 0 {
				w.flip(s.Drive, erasure.ShardID{Data: id, Chunk: 0, Index: 0}, 4096+17)
			}
		}
		obj, err := w.store.Get(context.Background(), "bkt", "k", object.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		_, err = obj.WriteTo(&got)
		obj.Close()
		if err != nil {
			t.Error(err)
		}
		if err := w.store.Flush(context.Background()); err != nil {
			t.Error(err)
		}
	}
	for i := uint16(1); i <= 4; i++ {
		d, _ := w.Shards(i)
		by[i] = &hook{Drive: d, n: &n, at: 9, f: f}
	}
	w.healer.c.Drives = patched{w, by}
	for i := uint16(1); i <= 4; i++ {
		w.ask(i, "k")
	}
	w.heal()
	if n.Load() < 9 {
		t.Fatalf("%d shards were verified: nothing came between", n.Load())
	}
	for range 3 {
		w.heal()
	}
	w.whole("k")
}

// A write that comes while the shards of the state before it are verified, that lacks a shard, and whose gateway dies
// before it says so, keeps its mark.
func TestAWriteDuringARepairIsNotSettledByIt(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	w.put("k", 100)
	w.settle()
	// An unsettled mark of k without a repair row: the writer died after the accepts.
	w.crashPut(t, "k", -1)
	var n atomic.Int32
	by := map[uint16]node.Drive{}
	for i := uint16(1); i <= 4; i++ {
		d, _ := w.Shards(i)
		by[i] = &hook{Drive: d, n: &n, at: 3, f: func() { w.crashPut(t, "k", 3) }}
	}
	w.healer.c.Drives = patched{w, by}
	w.heal()
	w.settle()
	w.healer.c.Drives = w
	for range 4 {
		w.heal()
	}
	w.whole("k")
}

// crashPut seals and accepts an inline body for key on all members; lacking (a position) did not seal. Nobody decides.
func (w *world) crashPut(t *testing.T, key string, lacking int) {
	ctx := context.Background()
	a := metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte(key)}
	g := w.control.layout.Group(w.control.layout.PartitionOf(1, a.Key))
	body := bytes.Repeat([]byte("x"), 100)
	data := metadata.Data{ID: erasure.NewDataID(), Profile: erasure.Profile{Data: 2, Parity: 2}, Size: int64(len(body))}
	rows, err := erasure.EncodeInline(data.Profile, data.ID, body)
	if err != nil {
		t.Fatal(err)
	}
	b := metadata.Ballot{Counter: uint64(w.clock.now().UnixMicro()) + uint64(crashPuts.Add(1)), Proposer: 77}
	var prev *metadata.State
	for pos, num := range g.Drives {
		d, _ := w.Shards(num)
		m := &metadata.PrepareRequest{Header: metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: 1}, Address: a, Ballot: b}
		if pos != lacking {
			places := g.Places(data.Profile, 0, data.ID)
			for j, p := range places {
				if p == pos {
					m.Seal = &metadata.Seal{Data: data, Index: uint8(j), Inline: rows[j]}
				}
			}
		}
		r, err := d.Prepare(ctx, m)
		if err != nil || !r.Promised {
			t.Fatal(err, r)
		}
		if r.Row != nil {
			prev = &r.Row.State
		}
	}
	s := metadata.State{ID: b, Current: &metadata.Version{Seq: 1, Kind: metadata.VersionObject, Data: &data, Size: data.Size, ETag: "e"}, NextSeq: 2}
	if prev != nil {
		s.Prev, s.Index, s.Current.Seq, s.NextSeq = prev.ID, prev.Index+1, prev.NextSeq, prev.NextSeq+1
		if prev.Current != nil && prev.Current.Data != nil {
			s.Dead = append(s.Dead, metadata.DeadData{Data: *prev.Current.Data})
		}
	}
	for _, num := range g.Drives {
		d, _ := w.Shards(num)
		r, err := d.Accept(ctx, &metadata.AcceptRequest{Header: metadata.Header{Drive: num, Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: 1}, Address: a, Ballot: b, State: s})
		if err != nil || !r.Accepted {
			t.Fatal(err, r)
		}
	}
}

var crashPuts atomic.Int64

// A register is found to have no state, and before its repair rows are cleared a write leaves one of its own.
func TestARepairOfNothingDoesNotClearWhatAWriteAsksFor(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	by := map[uint16]node.Drive{}
	var once atomic.Bool
	for i := uint16(1); i <= 4; i++ {
		d, _ := w.Shards(i)
		by[i] = &hook{Drive: d, f: func() {
			if once.Swap(true) {
				return
			}
			// drive 3 does not take part, and is back at once.
			w.down[3].Store(true)
			w.put("k", 100)
			w.down[3].Store(false)
			w.settle()
		}}
	}
	w.healer.c.Drives = patched{w, by}
	for i := uint16(1); i <= 4; i++ {
		w.ask(i, "k")
	}
	w.clock.pass(1)
	w.healer.Trigger()
	if err := w.healer.Pass(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !once.Load() {
		t.Fatal("no repair row was cleared: nothing came between")
	}
	w.healer.c.Drives = w
	for range 4 {
		w.heal()
	}
	w.whole("k")
}

// A part is chosen after its upload was aborted and that register was forgotten, and its gateway dies before it looks
// again. An object of another upload under the same key stays.
func TestAPartThatOutlivesItsUploadGoes(t *testing.T) {
	w := newWorld(t, object.Unversioned)
	ctx := context.Background()
	want, complete := w.upload("k", 100<<10, 5)
	complete()
	w.heal()
	before := make([]int, 5)
	for i := uint16(1); i <= 4; i++ {
		before[i] = w.shardsOn(i)
	}
	up, err := w.store.CreateUpload(ctx, "bkt", "k", object.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.PutPart(ctx, "bkt", "k", up.UploadID, 1, bytes.NewReader(make([]byte, 100)), object.PartOptions{Size: 100}); err != nil {
		t.Fatal(err)
	}
	if err := w.store.AbortUpload(ctx, "bkt", "k", up.UploadID); err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(up.UploadID)
	if err != nil {
		t.Fatal(err)
	}
	ua := metadata.Address{Kind: metadata.KindUpload, Bucket: 1, Key: []byte("k"), Upload: metadata.UploadID(raw)}
	g := w.control.layout.Group(w.control.layout.PartitionOf(1, ua.Key))
	forgotten := func() bool {
		v, err := w.meta.Read(ctx, g, ua, metadata.ReadOptions{BucketEpoch: 1})
		if err != nil {
			t.Fatal(err)
		}
		return v.State == nil
	}
	for i := 0; !forgotten(); i++ {
		if i == 20 {
			t.Fatal("the upload's register is never forgotten")
		}
		w.heal()
		w.clock.pass(25 * time.Hour)
		w.upkeep()
	}
	a := ua
	a.Kind, a.Part = metadata.KindPart, 2
	body := bytes.Repeat([]byte("x"), 100)
	data := metadata.Data{ID: erasure.NewDataID(), Profile: erasure.Profile{Data: 2, Parity: 2}, Size: 100}
	rows, err := erasure.EncodeInline(data.Profile, data.ID, body)
	if err != nil {
		t.Fatal(err)
	}
	seals := make([]*metadata.Seal, 4)
	for j, pos := range g.Places(data.Profile, 0, data.ID) {
		seals[pos] = &metadata.Seal{Data: data, Index: uint8(j), Inline: rows[j]}
	}
	_, err = w.meta.Update(ctx, g, a, metadata.Operation{ID: 5, BucketEpoch: 1, Seals: seals, Need: 3,
		Apply: func(base *metadata.State, _ []metadata.Version) (*metadata.Change, error) {
			return &metadata.Change{Current: &metadata.Version{Seq: 1, Kind: metadata.VersionPart, Data: &data, Size: 100, ETag: "e"}, NextSeq: 2}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		w.heal()
		w.clock.pass(48 * time.Hour)
		if _, err := w.healer.Orphans(ctx, 24*time.Hour); err != nil {
			t.Fatal(err)
		}
		w.upkeep()
	}
	for i := uint16(1); i <= 4; i++ {
		if n := w.shardsOn(i); n != before[i] {
			t.Errorf("drive %d has %d shards, want %d", i, n, before[i])
		}
	}
	w.reads("k", want)
}

// shardsOn counts the shards on a drive.
func (w *world) shardsOn(num uint16) int {
	w.t.Helper()
	d, _ := w.Shards(num)
	rows, err := d.ShardRows(context.Background(), erasure.DataID{}, 0, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return len(rows)
}
