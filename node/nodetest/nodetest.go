// Package nodetest is the conformance suite of node.Drive: a drive on any file system, behind the
// codec, or behind a network passes the same tests.
package nodetest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
	"github.com/ostraka/ostraka/placement"
)

// Run runs the suite. open returns a fresh, empty drive that serves every partition in epoch 1; each
// test calls it once.
func Run(t *testing.T, open func(t *testing.T) node.Drive) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, d node.Drive)
	}{
		{"a record goes from promise to decision", record},
		{"a lower ballot is refused with a hint", refusal},
		{"another epoch is stale", stale},
		{"a file is written, sealed, read and deleted", file},
		{"an inline shard travels with its seal", inline},
		{"inline shards travel in batches", batches},
		{"a batch with a damaged shard writes none", badBatch},
		{"a later chunk is pinned", pinned},
		{"a seal without its shard does not promise to have it", sealWithout},
		{"an absent shard is not found", absent},
		{"an aborted shard is gone", aborted},
		{"what a row names is not deleted", guarded},
		{"repairs are listed and cleared", repairs},
		{"a scrub reads every shard once", scrub},
		{"the values of jobs are kept", jobs},
		{"a scan finds keys in order", scan},
		{"rows and digests tell what a drive holds", rows},
		{"a fence refuses older bucket epochs", fence},
		{"an ended context ends the call", ended},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

var (
	ctx     = context.Background()
	profile = erasure.Profile{Data: 1}
	head    = metadata.Header{Epoch: 1}
)

func ballot(n uint64) metadata.Ballot {
	return metadata.Ballot{Counter: uint64(time.Now().UnixMicro()) + n, Proposer: n}
}

func address(key string) metadata.Address {
	return metadata.Address{Kind: metadata.KindObject, Bucket: 5, Key: []byte(key)}
}

func data(n byte, content []byte, chunkSize int64) metadata.Data {
	return metadata.Data{ID: erasure.DataID{0xab, n}, Profile: profile, Size: int64(len(content)), ChunkSize: chunkSize}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, k errs.Kind) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("got error %v (%v), want %v", err, errs.KindOf(err), k)
	}
}

// commit writes a record of one version.
func commit(t *testing.T, d node.Drive, a metadata.Address, dt *metadata.Data, seal *metadata.Seal, b metadata.Ballot) metadata.State {
	t.Helper()
	p, err := d.Prepare(ctx, &metadata.PrepareRequest{Header: head, Address: a, Ballot: b, Seal: seal})
	must(t, err)
	if !p.Promised || p.Have != (seal != nil) {
		t.Fatalf("prepare: %+v", p)
	}
	st := metadata.State{ID: b, Current: &metadata.Version{Kind: metadata.VersionObject, Seq: 1, Size: 3, ETag: "e", Data: dt}, NextSeq: 2}
	r, err := d.Accept(ctx, &metadata.AcceptRequest{Header: head, Address: a, Ballot: b, State: st})
	must(t, err)
	if !r.Accepted {
		t.Fatalf("accept: %+v", r)
	}
	must(t, d.Decide(ctx, []metadata.Decision{{Header: head, Address: a, Ballot: b, Settled: true}}))
	return st
}

func record(t *testing.T, d node.Drive) {
	a, b := address("k"), ballot(1)
	content := []byte("abc")
	dt := data(1, content, 0)
	rows, err := erasure.EncodeInline(profile, dt.ID, content)
	must(t, err)
	commit(t, d, a, &dt, &metadata.Seal{Data: dt, Inline: rows[0]}, b)
	r, err := d.Read(ctx, &metadata.ReadRequest{Header: head, Address: a, Inline: true})
	must(t, err)
	if r.Row == nil || !r.Row.Decided || r.Row.Ballot != b || r.Row.State.Current.ETag != "e" || !bytes.Equal(r.Inline, rows[0]) || r.InlineID != dt.ID {
		t.Fatalf("read: %+v", r)
	}
	r, err = d.Read(ctx, &metadata.ReadRequest{Header: head, Address: address("other")})
	must(t, err)
	if r.Row != nil {
		t.Fatalf("an absent register has a row: %+v", r.Row)
	}
}

func refusal(t *testing.T, d node.Drive) {
	a, high, low := address("k"), ballot(1000), ballot(1)
	p, err := d.Prepare(ctx, &metadata.PrepareRequest{Header: head, Address: a, Ballot: high})
	must(t, err)
	if !p.Promised {
		t.Fatalf("prepare: %+v", p)
	}
	p, err = d.Prepare(ctx, &metadata.PrepareRequest{Header: head, Address: a, Ballot: low})
	must(t, err)
	if p.Promised || p.Hint != high {
		t.Fatalf("prepare below a promise: %+v", p)
	}
}

func stale(t *testing.T, d node.Drive) {
	_, err := d.Prepare(ctx, &metadata.PrepareRequest{Header: metadata.Header{Epoch: 2}, Address: address("k"), Ballot: ballot(1)})
	wantKind(t, err, errs.Stale)
}

// write streams a chunk's shard to d.
func write(t *testing.T, d node.Drive, c erasure.Chunk, content []byte) disk.ShardWriter {
	t.Helper()
	w, err := d.CreateShard(ctx, disk.ShardSpec{ID: c.Shard(0), FileSize: erasure.ShardFileSize(profile, c.Size), Owner: c.Owner})
	must(t, err)
	_, err = erasure.NewEncoder(erasure.EncoderOptions{}).Encode(ctx, c, bytes.NewReader(content), 1, []erasure.Sink{w})
	must(t, err)
	return w
}

func file(t *testing.T, d node.Drive) {
	content := bytes.Repeat([]byte("0123456789"), 70000)
	dt := data(2, content, erasure.ChunkSize)
	a := address("big")
	c := erasure.Chunk{Data: dt.ID, Profile: profile, Size: dt.Size, Owner: erasure.Owner{Bucket: a.Bucket, Key: a.Key}}
	write(t, d, c, content)
	seal := &metadata.Seal{Data: dt}
	p, err := d.Prepare(ctx, &metadata.PrepareRequest{Header: head, Address: a, Ballot: ballot(1), Seal: seal})
	must(t, err)
	if !p.Have {
		t.Fatalf("prepare: %+v", p)
	}
	must(t, d.SealShard(ctx, a, seal)) // again: idempotent
	st, err := d.StatShard(ctx, c.Shard(0))
	must(t, err)
	if st.Inline || st.Row.Size != erasure.ShardFileSize(profile, c.Size) || !bytes.Equal(st.Row.Address.Key, a.Key) {
		t.Fatalf("stat: %+v", st)
	}
	asked := 0
	must(t, d.VerifyShard(ctx, c, 0, func(_ context.Context, n int) error { asked += n; return nil }))
	if asked < len(content) {
		t.Errorf("the throttle was asked for %d bytes", asked)
	}
	src, err := d.OpenShard(ctx, c.Shard(0))
	must(t, err)
	defer src.Close()
	rows, err := d.ShardRows(ctx, erasure.DataID{}, 0, 10)
	must(t, err)
	if len(rows) != 1 || rows[0].ID != c.Shard(0) {
		t.Fatalf("rows: %+v", rows)
	}
	must(t, d.DeleteShard(ctx, a, dt.ID, 0, ballot(1000000)))
	got := make([]byte, 8192)
	if n, err := src.ReadAt(ctx, got, 4096); n != len(got) || !bytes.Equal(got, content[:8192]) {
		t.Fatalf("reading behind the deletion: %d, %v", n, err)
	}
	_, err = d.OpenShard(ctx, c.Shard(0))
	wantKind(t, err, errs.NotFound)
}

func inline(t *testing.T, d node.Drive) {
	content := []byte("small")
	dt := data(3, content, 0)
	rows, err := erasure.EncodeInline(profile, dt.ID, content)
	must(t, err)
	must(t, d.SealShard(ctx, address("s"), &metadata.Seal{Data: dt, Inline: rows[0]}))
	got, err := d.InlineShard(ctx, dt.ID)
	must(t, err)
	if !bytes.Equal(got, rows[0]) {
		t.Fatalf("got %x, want %x", got, rows[0])
	}
	must(t, d.VerifyShard(ctx, erasure.Chunk{Data: dt.ID}, 0, nil))
	rows[0][len(rows[0])-1] ^= 1
	dt.ID[5] = 1
	wantKind(t, d.SealShard(ctx, address("s"), &metadata.Seal{Data: dt, Inline: rows[0]}), errs.Corrupt)
}

// inlineSeals makes n inline shards of small bodies.
func inlineSeals(t *testing.T, first byte, n int) (list []disk.InlineSeal, ids []erasure.DataID) {
	t.Helper()
	for i := range n {
		content := []byte(fmt.Sprint("body ", i))
		dt := data(first, content, 0)
		dt.ID[5] = byte(i)
		rows, err := erasure.EncodeInline(profile, dt.ID, content)
		must(t, err)
		list = append(list, disk.InlineSeal{Address: address(fmt.Sprint("k", i)), Seal: metadata.Seal{Data: dt, Inline: rows[0]}})
		ids = append(ids, dt.ID)
	}
	return list, ids
}

func batches(t *testing.T, d node.Drive) {
	list, ids := inlineSeals(t, 10, 20)
	must(t, d.SealInline(ctx, list))
	must(t, d.SealInline(ctx, list)) // again: idempotent
	must(t, d.SealInline(ctx, nil))
	ids = append(ids, erasure.DataID{77})
	rows, err := d.InlineShards(ctx, ids)
	must(t, err)
	if len(rows) != len(ids) || rows[20] != nil {
		t.Fatalf("%d rows for %d bodies, the absent one's is %x", len(rows), len(ids), rows[20])
	}
	for i := range list {
		if !bytes.Equal(rows[i], list[i].Seal.Inline) {
			t.Errorf("body %d: got %x, want %x", i, rows[i], list[i].Seal.Inline)
		}
		st, err := d.StatShard(ctx, erasure.ShardID{Data: ids[i]})
		must(t, err)
		if !bytes.Equal(st.Row.Address.Key, list[i].Address.Key) || !st.Inline {
			t.Errorf("body %d: %+v", i, st)
		}
	}
	shards, size, err := d.ShardUsage(ctx)
	must(t, err)
	if shards != 20 || size != 20*erasure.InlineOverhead+10*6+10*7 {
		t.Errorf("the drive has %d shards of %d bytes", shards, size)
	}
	_, err = d.InlineShards(ctx, make([]erasure.DataID, disk.MaxBatch+1))
	wantKind(t, err, errs.Invalid)
	wantKind(t, d.SealInline(ctx, make([]disk.InlineSeal, disk.MaxBatch+1)), errs.Invalid)
	wantKind(t, d.SealInline(ctx, []disk.InlineSeal{{Address: address("k"), Seal: metadata.Seal{Data: data(11, nil, erasure.ChunkSize)}}}), errs.Invalid)
}

func badBatch(t *testing.T, d node.Drive) {
	list, ids := inlineSeals(t, 12, 3)
	list[2].Seal.Inline[len(list[2].Seal.Inline)-1] ^= 1
	wantKind(t, d.SealInline(ctx, list), errs.Corrupt)
	rows, err := d.InlineShards(ctx, ids)
	must(t, err)
	for i, r := range rows {
		if r != nil {
			t.Errorf("body %d was written", i)
		}
	}
}

func scrub(t *testing.T, d node.Drive) {
	list, _ := inlineSeals(t, 13, 3)
	must(t, d.SealInline(ctx, list))
	content := bytes.Repeat([]byte("0123456789"), 70000)
	dt := data(14, content, erasure.ChunkSize)
	c := erasure.Chunk{Data: dt.ID, Profile: profile, Size: dt.Size, Owner: erasure.Owner{Bucket: 5, Key: []byte("big")}}
	write(t, d, c, content)
	must(t, d.SealShard(ctx, address("big"), &metadata.Seal{Data: dt}))
	unsealed := c
	unsealed.Data = erasure.DataID{15}
	write(t, d, unsealed, content) // not a shard yet

	asked, shards, size := 0, 0, int64(0)
	var at erasure.ShardID
	for page := 0; ; page++ {
		r, err := d.Scrub(ctx, at, 3, func(_ context.Context, n int) error { asked += n; return nil })
		must(t, err)
		if len(r.Bad) > 0 {
			t.Fatalf("findings: %+v", r.Bad)
		}
		shards, size, at = shards+r.Shards, size+r.Bytes, r.Next
		if !r.More {
			break
		}
		if page > 4 {
			t.Fatal("a scrub has no end")
		}
	}
	if want := erasure.ShardFileSize(profile, c.Size) + 3*(erasure.InlineOverhead+6); shards != 4 || size != want || int64(asked) < want {
		t.Errorf("%d shards, %d bytes (want %d), throttle asked for %d", shards, size, want, asked)
	}
	stop := errs.E("test", errs.Busy, "slow down")
	r, err := d.Scrub(ctx, erasure.ShardID{}, 10, func(context.Context, int) error { return stop })
	wantKind(t, err, errs.Busy)
	if r.Shards != 0 || !r.More || r.Next != (erasure.ShardID{}) {
		t.Errorf("stopped before the first shard: %+v", r)
	}
}

func jobs(t *testing.T, d node.Drive) {
	get := func(name, want string) {
		t.Helper()
		v, err := d.Job(ctx, name)
		must(t, err)
		if string(v) != want || (v == nil) != (want == "") {
			t.Errorf("job %s: got %q, want %q", name, v, want)
		}
	}
	get("scrub", "")
	must(t, d.SetJob(ctx, "scrub", []byte("one")))
	must(t, d.SetJob(ctx, "scrub", []byte("two")))
	must(t, d.SetJob(ctx, "scrub-b", []byte{}))
	get("scrub", "two")
	if v, err := d.Job(ctx, "scrub-b"); err != nil || v == nil || len(v) != 0 {
		t.Errorf("an empty value: got %v, %v", v, err)
	}
	must(t, d.SetJob(ctx, "scrub", nil))
	get("scrub", "")
	for _, name := range []string{"", "UPPER", "a_b", "0", string(bytes.Repeat([]byte("a"), 33))} {
		wantKind(t, d.SetJob(ctx, name, []byte("x")), errs.Invalid)
		_, err := d.Job(ctx, name)
		wantKind(t, err, errs.Invalid)
	}
	wantKind(t, d.SetJob(ctx, "big", make([]byte, disk.MaxJob+1)), errs.Invalid)
	// The values are no shards.
	rows, err := d.ShardRows(ctx, erasure.DataID{}, 0, 10)
	must(t, err)
	if len(rows) != 0 {
		t.Errorf("rows: %+v", rows)
	}
}

func pinned(t *testing.T, d node.Drive) {
	content := []byte("the second chunk")
	c := erasure.Chunk{Data: erasure.DataID{4}, Index: 1, Profile: profile, Size: int64(len(content)), Owner: erasure.Owner{Bucket: 5, Key: []byte("k")}}
	pin := &metadata.PinRequest{Header: head, Data: c.Data, Chunk: 1, Ballot: ballot(10)}
	r, err := d.Pin(ctx, pin)
	must(t, err)
	if r.Have {
		t.Fatal("pinned what was never written")
	}
	write(t, d, c, content)
	if r, err = d.Pin(ctx, pin); err != nil || !r.Have {
		t.Fatalf("pin: %+v, %v", r, err)
	}
	must(t, d.VerifyShard(ctx, c, 0, nil))
	wantKind(t, d.DeleteShard(ctx, address("k"), c.Data, 1, metadata.Ballot{Counter: 1}), errs.Conflict)
	must(t, d.DeleteShard(ctx, address("k"), c.Data, 1, ballot(1<<40)))
}

func sealWithout(t *testing.T, d node.Drive) {
	dt := data(5, make([]byte, 1<<20), erasure.ChunkSize)
	p, err := d.Prepare(ctx, &metadata.PrepareRequest{Header: head, Address: address("k"), Ballot: ballot(1), Seal: &metadata.Seal{Data: dt}})
	must(t, err)
	if p.Have || errs.Kind(p.SealKind) != errs.NotFound {
		t.Fatalf("prepare: %+v", p)
	}
}

func absent(t *testing.T, d node.Drive) {
	id := erasure.ShardID{Data: erasure.DataID{6}}
	_, err := d.OpenShard(ctx, id)
	wantKind(t, err, errs.NotFound)
	_, err = d.StatShard(ctx, id)
	wantKind(t, err, errs.NotFound)
	_, err = d.InlineShard(ctx, id.Data)
	wantKind(t, err, errs.NotFound)
	wantKind(t, d.VerifyShard(ctx, erasure.Chunk{Data: id.Data}, 0, nil), errs.NotFound)
	wantKind(t, d.SealChunk(ctx, id.Data, 3), errs.NotFound)
	must(t, d.DeleteShard(ctx, address("k"), id.Data, 0, ballot(1)))
}

func aborted(t *testing.T, d node.Drive) {
	content := make([]byte, 100000)
	c := erasure.Chunk{Data: erasure.DataID{7}, Profile: profile, Size: int64(len(content)), Owner: erasure.Owner{Bucket: 5, Key: []byte("k")}}
	w := write(t, d, c, content)
	w.Abort()
	dt := metadata.Data{ID: c.Data, Profile: profile, Size: c.Size, ChunkSize: erasure.ChunkSize}
	if err := d.SealShard(ctx, address("k"), &metadata.Seal{Data: dt}); err == nil {
		t.Fatal("an aborted shard was sealed")
	}
}

func guarded(t *testing.T, d node.Drive) {
	content := []byte("xyz")
	dt := data(8, content, 0)
	rows, err := erasure.EncodeInline(profile, dt.ID, content)
	must(t, err)
	a := address("k")
	commit(t, d, a, &dt, &metadata.Seal{Data: dt, Inline: rows[0]}, ballot(1))
	named, err := d.Names(ctx, a, dt.ID)
	must(t, err)
	if !named {
		t.Error("the row does not name its data")
	}
	wantKind(t, d.DeleteShard(ctx, a, dt.ID, 0, ballot(1<<40)), errs.Conflict)
	_, err = d.InlineShard(ctx, dt.ID)
	must(t, err)
}

func repairs(t *testing.T, d node.Drive) {
	for i := range 3 {
		must(t, d.AddRepair(ctx, metadata.RepairRow{Address: address(fmt.Sprint("k", i)), Partition: 2, Positions: []uint8{1, 2}}))
	}
	list, err := d.Repairs(ctx, nil, 2)
	must(t, err)
	if len(list) != 2 || string(list[1].Address.Key) != "k1" || !bytes.Equal(list[1].Positions, []byte{1, 2}) {
		t.Fatalf("repairs: %+v", list)
	}
	if list, err = d.Repairs(ctx, &list[1].Address, 10); err != nil || len(list) != 1 || string(list[0].Address.Key) != "k2" {
		t.Fatalf("the second page: %+v, %v", list, err)
	}
	must(t, d.ClearRepair(ctx, list[0]))
	if list, err = d.Repairs(ctx, nil, 10); err != nil || len(list) != 2 {
		t.Fatalf("after clearing one: %+v, %v", list, err)
	}
}

func scan(t *testing.T, d node.Drive) {
	for i, k := range []string{"b/1", "a", "b/2", "c"} {
		commit(t, d, address(k), nil, nil, ballot(uint64(i+1)))
	}
	r, err := d.Scan(ctx, &metadata.ScanRequest{Header: head, Kind: metadata.KindObject, Bucket: 5, Delimiter: []byte("/"), Limit: 10})
	must(t, err)
	got := ""
	for _, e := range r.Entries {
		if e.Prefix != nil {
			got += string(e.Prefix) + " "
		} else {
			got += string(e.Address.Key) + " "
		}
	}
	if got != "a b/ c " || r.Truncated {
		t.Fatalf("got %q, truncated %v", got, r.Truncated)
	}
}

func rows(t *testing.T, d node.Drive) {
	digests := func() (set int) {
		list, err := d.Digests(ctx)
		must(t, err)
		if len(list) != placement.Slices {
			t.Fatalf("%d digests", len(list))
		}
		for _, x := range list {
			if x != (metadata.Digest{}) {
				set++
			}
		}
		return set
	}
	if n := digests(); n != 0 {
		t.Errorf("an empty drive has %d digests", n)
	}
	want := commit(t, d, address("k"), nil, nil, ballot(1))
	if n := digests(); n != 1 {
		t.Errorf("one record makes %d digests", n)
	}
	r, err := d.Rows(ctx, &metadata.RowsRequest{Limit: 10})
	must(t, err)
	if len(r.Rows) != 1 || r.More || string(r.Rows[0].Address.Key) != "k" || r.Rows[0].Row.State.ID != want.ID {
		t.Errorf("rows: %+v", r)
	}
	r, err = d.Rows(ctx, &metadata.RowsRequest{Limit: 10, After: &r.Rows[0].Address})
	must(t, err)
	if len(r.Rows) != 0 {
		t.Errorf("rows behind the last: %+v", r)
	}
	list, err := d.Installed(ctx, []uint32{0, 1, 7})
	must(t, err)
	if len(list) != 3 {
		t.Errorf("installed: %v", list)
	}
}

func fence(t *testing.T, d node.Drive) {
	must(t, d.Fence(ctx, &metadata.FenceRequest{Header: head, Bucket: 5, Epoch: 3}))
	h := head
	h.BucketEpoch = 2
	_, err := d.Prepare(ctx, &metadata.PrepareRequest{Header: h, Address: address("k"), Ballot: ballot(1)})
	wantKind(t, err, errs.Stale)
	h.BucketEpoch = 3
	_, err = d.Prepare(ctx, &metadata.PrepareRequest{Header: h, Address: address("k"), Ballot: ballot(1)})
	must(t, err)
}

func ended(t *testing.T, d node.Drive) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	_, err := d.Read(over, &metadata.ReadRequest{Header: head, Address: address("k")})
	wantKind(t, err, errs.Canceled)
	_, err = d.CreateShard(over, disk.ShardSpec{ID: erasure.ShardID{Data: erasure.DataID{9}}, FileSize: 8192})
	wantKind(t, err, errs.Canceled)
}
