package metadata

import (
	"bytes"
	"reflect"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// TestScanEntryIsTheSlimRow: what a scan answers without decoding is what slim would have left.
func TestScanEntryIsTheSlimRow(t *testing.T) {
	other := sampleRow()
	other.Ballot.Counter++ // a ballot that its state does not have
	bare := Row{Ballot: Ballot{5, 6}, State: State{ID: Ballot{5, 6}}}
	open := sampleRow()
	open.Decided = false
	for i, r := range []Row{sampleRow(), other, bare, open} {
		a := addr("k\x00\xffl")
		key := headKey(&a)
		var mem arena
		var e ScanEntry
		if err := e.load(&mem, key, encodeRow(key, &r)); err != nil {
			t.Fatalf("row %d: %v", i, err)
		}
		want := slim(&r)
		if !reflect.DeepEqual(e.Address, a) {
			t.Errorf("row %d: address %+v", i, e.Address)
		}
		if ballot, id, decided := e.heading(); ballot != r.Ballot || id != r.State.ID || decided != r.Decided {
			t.Errorf("row %d: heading %v %v %v", i, ballot, id, decided)
		}
		if got, err := e.row(new(Row), false); err != nil || !reflect.DeepEqual(got, &want) {
			t.Errorf("row %d: got %+v, %v\nwant %+v", i, got, err, &want)
		}
		brief := want
		if want.State.Current != nil {
			v := *want.State.Current
			v.Headers, v.Meta, v.Tags, v.Data, v.Manifest = nil, nil, nil, nil, nil
			brief.State.Current = &v
		}
		if got, err := e.row(new(Row), true); err != nil || !reflect.DeepEqual(got, &brief) {
			t.Errorf("row %d, brief: got %+v, %v\nwant %+v", i, got, err, &brief)
		}
		sent := (&ScanReply{Entries: []ScanEntry{e}}).AppendTo(nil)
		if eager := (&ScanReply{Entries: []ScanEntry{{Address: a, Row: &want}}}).AppendTo(nil); !bytes.Equal(sent, eager) {
			t.Errorf("row %d travels as %x, want %x", i, sent, eager)
		}
	}
}

func TestScanEntryRefusesWhatItCannotRead(t *testing.T) {
	r := sampleRow()
	whole := r.AppendTo(nil)
	a := addr("k")
	key := headKey(&a)
	load := func(p []byte) error {
		return new(ScanEntry).load(new(arena), key, sealValue(key, append([]byte{rowFormat}, p...)))
	}
	unknown := protowire.AppendVarint(protowire.AppendTag(bytes.Clone(whole), 999, protowire.VarintType), 1)
	if err := load(unknown); !errs.Is(err, errs.Unsupported) {
		t.Errorf("an unknown field: %v", err)
	}
	optional := protowire.AppendVarint(protowire.AppendTag(bytes.Clone(whole), 2000, protowire.VarintType), 1)
	if err := load(optional); err != nil {
		t.Errorf("an optional field: %v", err)
	}
	for i := range whole { // where a decoder refuses the row's frame, so does the scan; nothing panics
		var row Row
		frame := row.Unmarshal(whole[:i]) == nil
		if err := load(whole[:i]); frame && err != nil {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	for _, p := range [][]byte{{0x08, 1}, {0x10, 2}, {0x12, 0}, {0x18, 1}, {0x0a, 1, 0x80}} {
		if err := load(p); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%x: %v", p, err)
		}
	}
	value := encodeRow(key, &r)
	value[len(value)/2] ^= 1
	if err := new(ScanEntry).load(new(arena), key, value); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a flipped bit: %v", err)
	}
}

// near reaches the drives without a wire, where rows arrive undecoded.
type near struct{ c *cluster }

func (n near) Replica(drive uint16) (Replica, bool) { return n.c.drives[drive-1].Acceptor, true }

// TestScanAsksOthersForARowThatOneDriveCannotDecode: the damage lies where only the decoder of the
// whole row looks, under a checksum that holds.
func TestScanAsksOthersForARowThatOneDriveCannotDecode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4, erasure.Profile{Data: 2, Parity: 2}, 4)
		cl := c.client()
		for _, k := range []string{"a", "b", "c"} {
			_, err := c.put(t.Context(), cl, k, "e"+k)
			must(t, err)
		}
		must(t, cl.Close(t.Context()))
		a := addr("b")
		key := headKey(&a)
		for i, d := range c.drives {
			good, err := d.kv.Get(key)
			must(t, err)
			row, err := decodeRow(key, good)
			must(t, err)
			bad := *row
			current := *row.State.Current
			current.Extra = protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
			bad.State.Current = &current
			var b Batch
			b.Set(key, encodeRow(key, &bad))
			must(t, d.kv.Apply(&b, true))
			cl := NewClient(ClientConfig{Replicas: near{c}})
			for salt := range uint64(8) {
				cover, err := c.layout.Cover(salt)
				must(t, err)
				page, err := cl.Scan(t.Context(), cover, ScanOptions{Kind: KindObject, Bucket: 7, Limit: 10})
				if err != nil {
					t.Fatalf("drive %d, cover %d: %v", i, salt, err)
				}
				got := ""
				for _, it := range page.Items {
					got += it.State.Current.ETag + " "
				}
				if got != "ea eb ec " {
					t.Fatalf("drive %d, cover %d: %q", i, salt, got)
				}
			}
			must(t, cl.Close(t.Context()))
			b = Batch{}
			b.Set(key, good)
			must(t, d.kv.Apply(&b, true))
		}
	})
}
