package metadata

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// codec is what every message can do.
type codec interface {
	AppendTo([]byte) []byte
	Unmarshal([]byte) error
}

func sampleVersion() Version {
	return Version{Kind: VersionObject, Seq: 3, ID: VersionID{7: 3, 15: 9}, ModTime: 1790000000123456789, Size: 4096,
		ETag: "d41d8cd98f00b204e9800998ecf8427e", Class: "REDUCED_REDUNDANCY", Headers: []Field{{"content-type", "text/plain"}},
		Meta: []Field{{"a", "b"}, {"a", ""}}, Tags: []Field{{"k", "v"}}, Owner: strings.Repeat("0f", 32),
		Checksums: []Checksum{{Algorithm: 2, Composite: true, Value: []byte{1, 2, 3, 4}, Parts: 3}},
		Data: &Data{ID: erasure.DataID{1}, Profile: erasure.Profile{Data: 2, Parity: 2}, Size: 4096, ChunkSize: 1 << 26,
			Transforms: []Transform{{Kind: 1, Params: []byte{9}}}},
		PartCount: 2, Manifest: &Data{ID: erasure.DataID{2}, Size: 1}, Upload: UploadID{3}, RetainUntil: 1800000000, RetainMode: 2,
		LegalHold: true, Replication: []byte("r"), Status: UploadCompleting, ChecksumAlgo: 1, ChecksumType: 2,
		Completed: &Version{Kind: VersionObject, Seq: 1, ETag: "abc-2", Owner: "somebody"},
		Extra:     protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 5)}
}

func sampleState() State {
	v := sampleVersion()
	return State{ID: Ballot{1790000000000000, 0x1122334455667788}, Prev: Ballot{5, 6}, Index: 4, Current: &v, Older: 2, NextSeq: 4, NullSeq: 1,
		Ring: []RingEntry{{1, Ballot{5, 6}}, {0xffffffffffffffff, Ballot{1790000000000000, 0x1122334455667788}}}, Low: Ballot{3, 4},
		Dead:  []DeadData{{Data: *v.Data, Manifest: true, Upload: UploadID{8}}},
		Delta: Delta{Put: []Version{{Kind: VersionDeleteMarker, Seq: 2}}, Drop: []uint64{1, 0, 300}},
		Extra: protowire.AppendString(protowire.AppendTag(nil, 1001, protowire.BytesType), "x")}
}

func sampleRow() Row {
	s := sampleState()
	before := State{ID: Ballot{5, 6}, NextSeq: 2}
	return Row{Ballot: s.ID, State: s, Undo: &Undo{Row: &Row{Ballot: Ballot{7, 8}, Decided: true, State: before},
		Put: []Version{{Seq: 1}}, Added: []uint64{2}, Lossy: true, Lost: []DeadData{{Data: Data{ID: erasure.DataID{4}}}}}}
}

func samples() map[string]codec {
	h := Header{Drive: 3, Partition: 17, Epoch: 2, BucketEpoch: 1, Deadline: 1790000000000000000, Trace: [16]byte{1, 2}}
	a := Address{Kind: KindPart, Bucket: 7, Key: []byte("k\x00\xff"), Upload: UploadID{5}, Part: 10000}
	b := Ballot{1790000000000000, 77}
	v, s, r := sampleVersion(), sampleState(), sampleRow()
	q := Query{Seqs: []uint64{1, 2}, Below: ^uint64(0)}
	sent := r
	sent.Undo = nil
	return map[string]codec{
		"address": &a, "data": v.Data, "data-wide": &Data{ID: erasure.DataID{1}, Profile: erasure.Profile{Data: 2, Parity: 1}, Size: 7, Width: 6}, "version": &v, "state": &s, "row": &r, "header": &h, "seal": &Seal{Data: *v.Data, Index: 3, Inline: []byte("i")},
		"prepare":       &PrepareRequest{Header: h, Address: a, Ballot: b, Seal: &Seal{}, Query: q, Orphan: erasure.DataID{9}},
		"prepare-reply": &PrepareReply{Promised: true, Hint: b, Row: &sent, Floor: b, Have: true, SealKind: 12, Versions: []Version{v}, Names: true},
		"accept":        &AcceptRequest{Header: h, Address: a, Ballot: s.ID, State: s, Whole: true, Full: []Version{v, {}}},
		"accept-reply":  &AcceptReply{Accepted: true, Behind: true, Hint: b},
		"decisions":     &Decisions{{Header: h, Address: a, Ballot: b, Settled: true, Missing: []uint8{0, 3}}, {}},
		"read":          &ReadRequest{Header: h, Address: a, Query: q, Inline: true, InlineID: erasure.DataID{1}},
		"read-reply":    &ReadReply{Row: &sent, Floor: b, Versions: []Version{v}, Inline: []byte("x"), InlineID: erasure.DataID{1}},
		"versions":      &VersionsRequest{Header: h, Address: a, Below: ^uint64(0), Limit: 5}, "versions-reply": &VersionsReply{Row: &sent, Versions: []Version{v}, More: true},
		"install": &InstallRequest{Header: h, Address: a, Row: sent, Whole: true, Full: []Version{v}},
		"pin":     &PinRequest{Header: h, Data: erasure.DataID{1}, Chunk: 4, Ballot: b}, "pin-reply": &PinReply{Have: true, Hint: b},
		"scan":            &ScanRequest{Header: h, Kind: KindUpload, Bucket: 7, Prefix: []byte("p"), After: []byte("q"), AfterPrefix: true, AfterSub: make([]byte, 16), Delimiter: []byte("/"), Limit: 9, Upload: UploadID{1}, From: 3},
		"scan-reply":      &ScanReply{Entries: []ScanEntry{{Address: a, Prefix: []byte("p/"), Row: &sent}, {Row: &Row{}}}, Truncated: true},
		"scan-reply-over": &ScanReply{Over: []EndedEpoch{{0, 1}, {3, 2}, {4095, 300}}},
		"rows":            &RowsRequest{After: &a, Slices: []uint16{0, 7, 4095}, Limit: 5, Marked: true},
		"rows-reply":      &RowsReply{Rows: []RegisterRow{{Address: a, Row: &sent, Unsettled: true}, {Address: a}}, Next: &a, More: true},
		"lookup":          &LookupRequest{Addresses: []Address{a, {}}},
		"wedge":           &WedgeRequest{Drive: 3, Transition: 5, Term: 2, Floor: b, Partitions: []uint32{0, 4095}, Epochs: []uint64{1, 3}},
		"wedge-reply": &WedgeReply{Done: true, Hint: b, Refused: []uint32{9}, Begun: []uint32{4}, Floors: []Ballot{{}, b}, Installed: []uint64{0, 2},
			Fences: []Fence{{Bucket: 7, Epoch: 3}, {}}},
		"transfer": &TransferRequest{Drive: 3, Transition: 5, Term: 2, Floor: b, Rows: []TransferRow{
			{Address: a, Partition: 17, Decided: true, State: s, Whole: true, Full: []Version{v}}, {State: State{ID: b}}}},
		"transfer-reply": &TransferReply{Behind: []uint32{0, 3}},
		"install-epoch": &InstallEpochRequest{Drive: 3, Transition: 5, Term: 2, Partitions: []uint32{0, 17}, Epochs: []uint64{2, 4},
			Floors: []Ballot{b, {}}, Fences: []Fence{{Bucket: 7, Epoch: 3}}},
		"fence": &FenceRequest{Header: h, Bucket: 7, Epoch: 3}, "drop": &DropRequest{Header: h, Address: a, Ballot: b},
	}
}

func fresh(c codec) codec { return reflect.New(reflect.TypeOf(c).Elem()).Interface().(codec) }

func TestMessagesReadBackAsTheyWereWritten(t *testing.T) {
	for name, m := range samples() {
		b := m.AppendTo(nil)
		got := fresh(m)
		if err := got.Unmarshal(b); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, m)
		}
		if again := got.AppendTo(nil); !bytes.Equal(again, b) {
			t.Errorf("%s prints %x, was %x", name, again, b)
		}
		for i := range b { // no cut panics
			_ = fresh(m).Unmarshal(b[:i])
		}
		unknown := protowire.AppendVarint(protowire.AppendTag(bytes.Clone(b), 999, protowire.VarintType), 1)
		if err := fresh(m).Unmarshal(unknown); !errs.Is(err, errs.Unsupported) {
			t.Errorf("%s with an unknown field: got %v, want unsupported", name, err)
		}
		optional := protowire.AppendVarint(protowire.AppendTag(bytes.Clone(b), 2000, protowire.VarintType), 1)
		got = fresh(m)
		if err := got.Unmarshal(optional); err != nil {
			t.Errorf("%s with an optional field: %v", name, err)
		}
		if name == "version" || name == "state" {
			if again := got.AppendTo(nil); !bytes.Equal(again, optional) {
				t.Errorf("%s does not keep an optional field", name)
			}
		}
	}
}

func TestGoldenEncodings(t *testing.T) {
	for name, m := range samples() {
		path := "testdata/" + name + ".hex"
		got := hex.EncodeToString(m.AppendTo(nil)) + "\n"
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("the encoding of %s has changed, and drives with the old one exist:\ngot  %swant %s", name, got, want)
		}
	}
}

func TestHeadRowOfSmallObjectIsSmall(t *testing.T) {
	b := Ballot{1790000000000000, 0x1122334455667788}
	r := Row{Ballot: b, Decided: true, State: State{ID: b, NextSeq: 2, Ring: []RingEntry{{0x1122334455667788, b}},
		Current: &Version{Kind: VersionObject, Seq: 1, ModTime: 1790000000123456789, Size: 4096, ETag: "d41d8cd98f00b204e9800998ecf8427e",
			Headers: []Field{{"content-type", "application/octet-stream"}}, Owner: strings.Repeat("0f", 32),
			Checksums: []Checksum{{Algorithm: 5, Value: make([]byte, 8)}},
			Data:      &Data{ID: erasure.DataID{1}, Profile: erasure.Profile{Data: 2, Parity: 2}, Size: 4096}}}}
	a := addr("some/ordinary/key")
	if n := len(encodeRow(headKey(&a), &r)); n > 250 {
		t.Errorf("%d bytes", n)
	}
}

func TestStoredRowsFailWhenAnyBitFlipsOrTheKeyIsWrong(t *testing.T) {
	r := sampleRow()
	a, other := addr("k"), addr("l")
	key := headKey(&a)
	value := encodeRow(key, &r)
	if _, err := decodeRow(key, value); err != nil {
		t.Fatal(err)
	}
	if _, err := decodeRow(headKey(&other), value); !errs.Is(err, errs.Corrupt) {
		t.Errorf("under another key: %v", err)
	}
	for i := range len(value) * 8 {
		bad := bytes.Clone(value)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := decodeRow(key, bad); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("bit %d: %v", i, err)
		}
	}
	newer := sealValue(key, append([]byte{rowFormat + 1}, value[1:len(value)-4]...))
	if _, err := decodeRow(key, newer); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a newer format: %v", err)
	}
}

func TestKeysOfTheStoreOrderAsAddressesDo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() Address {
		a := Address{Kind: RegisterKind(1 + rng.IntN(3)), Bucket: uint64(rng.IntN(2)) << 40}
		for range 1 + rng.IntN(4) {
			a.Key = append(a.Key, []byte{0, 1, 0xfe, 0xff, 'a'}[rng.IntN(5)])
		}
		if a.Kind != KindObject {
			a.Upload = UploadID{byte(1 + rng.IntN(2)), 0}
		}
		if a.Kind == KindPart {
			a.Part = uint32(1 + rng.IntN(300))
		}
		return a
	}
	cmpAddr := func(a, b *Address) int {
		if a.Kind != b.Kind {
			return int(a.Kind) - int(b.Kind)
		}
		if a.Bucket != b.Bucket {
			return bytes.Compare(fmt.Appendf(nil, "%020d", a.Bucket), fmt.Appendf(nil, "%020d", b.Bucket))
		}
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if c := bytes.Compare(a.Upload[:], b.Upload[:]); c != 0 {
			return c
		}
		return int(a.Part) - int(b.Part)
	}
	sign := func(n int) int { return max(-1, min(1, n)) }
	for range 20000 {
		a, b := random(), random()
		ka, kb := headKey(&a), headKey(&b)
		if got, want := bytes.Compare(ka, kb), sign(cmpAddr(&a, &b)); got != want {
			t.Fatalf("%+v and %+v: keys compare %d, want %d", a, b, got, want)
		}
		back, rest, err := cutAddress(ka[1:])
		if err != nil || len(rest) != 0 || !reflect.DeepEqual(back, a) {
			t.Fatalf("%+v reads back as %+v, %x, %v", a, back, rest, err)
		}
		if bytes.HasPrefix(a.Key, b.Key) && a.Kind == b.Kind && a.Bucket == b.Bucket {
			if p := prefixKey(b.Kind, b.Bucket, b.Key); !bytes.HasPrefix(ka, p) {
				t.Fatalf("%x does not lie under prefix %x", ka, p)
			}
		}
	}
	a := addr("k")
	if bytes.Compare(versionKey(&a, 2), versionKey(&a, 1)) >= 0 {
		t.Error("the newest version does not come first")
	}
	for _, seq := range []uint64{0, 1, 5, 1 << 40} {
		for _, below := range []uint64{0, 1, 5, 6, ^uint64(0)} {
			lower, upper := versionSpan(&a, below)
			k := versionKey(&a, seq)
			in := bytes.Compare(lower, k) <= 0 && bytes.Compare(k, upper) < 0
			if in != (seq < below) {
				t.Errorf("seq %d below %d: %v", seq, below, in)
			}
		}
	}
}

// FuzzUnmarshal: what parses prints, and what was printed parses to the same bytes.
func FuzzUnmarshal(f *testing.F) {
	kinds := []string{"version", "state", "row", "prepare", "prepare-reply", "accept", "decisions", "read", "read-reply", "versions-reply",
		"install", "scan", "scan-reply", "pin", "fence", "drop", "address",
		"rows", "rows-reply", "lookup", "wedge", "wedge-reply", "transfer", "transfer-reply", "install-epoch"}
	all := samples()
	for i, k := range kinds {
		f.Add(uint8(i), all[k].AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		m := fresh(all[kinds[int(kind)%len(kinds)]])
		if err := m.Unmarshal(b); err != nil {
			if k := errs.KindOf(err); k != errs.Corrupt && k != errs.Unsupported {
				t.Fatalf("an error of kind %v", k)
			}
			return
		}
		once := m.AppendTo(nil)
		again := fresh(m)
		if err := again.Unmarshal(once); err != nil {
			t.Fatalf("what was printed does not parse: %v", err)
		}
		if twice := again.AppendTo(nil); !bytes.Equal(once, twice) {
			t.Fatalf("prints %x, then %x", once, twice)
		}
	})
}

// FuzzStoreKey: a key of the store that parses as an address is the address's key.
func FuzzStoreKey(f *testing.F) {
	a := addr("a\x00b")
	f.Add(headKey(&a)[1:])
	f.Fuzz(func(t *testing.T, b []byte) {
		a, rest, err := cutAddress(b)
		if err != nil {
			return
		}
		if got := append(appendAddress(nil, &a), rest...); !bytes.Equal(got, b) {
			t.Fatalf("%x reads as %+v and prints %x", b, a, got)
		}
	})
}

// FuzzStoredRow: no value under a key makes a drive panic.
func FuzzStoredRow(f *testing.F) {
	a := addr("k")
	key := headKey(&a)
	r := sampleRow()
	f.Add(encodeRow(key, &r))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = decodeRow(key, b)
		_, _ = decodeRow(key, sealValue(key, append([]byte{rowFormat}, b...)))
		_, _ = decodeVersion(key, sealValue(key, append([]byte{rowFormat}, b...)))
		for _, p := range []func([]byte) error{new(UnsettledRow).unmarshal, new(RepairRow).unmarshal, new(GarbageRow).unmarshal, new(epochRow).unmarshal} {
			_ = p(b)
		}
	})
}
