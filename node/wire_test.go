package node

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
)

// samples are messages with every field set.
func samples() []message {
	addr := metadata.Address{Kind: metadata.KindPart, Bucket: 7, Key: []byte("k"), Upload: metadata.UploadID{3}, Part: 4}
	id := erasure.DataID{1, 2}
	data := metadata.Data{ID: id, Profile: erasure.Profile{Data: 4, Parity: 2}, Size: 10}
	ballot := metadata.Ballot{Counter: 1 << 50, Proposer: 1 << 63}
	row := disk.ShardRow{ID: erasure.ShardID{Data: id, Chunk: 2, Index: 3}, Inline: []byte{}, Size: 9, Address: addr, Sealed: time.Unix(5, 7),
		Profile: erasure.Profile{Data: 1}, BodySize: 8}
	bad := disk.ScrubFinding{Row: row, Err: errs.E("x.Y", errs.Corrupt, "rotten")}
	seal := disk.InlineSeal{Address: addr, Seal: metadata.Seal{Data: data, Index: 2, Inline: []byte("i")}}
	f := true
	return []message{
		&digests{{1}, {2}}, &dataIDs{id, {9}}, &numbers{0, 1, 1 << 63}, (*flag)(&f), (*shardID)(&row.ID),
		&owner{Bucket: 1, Key: []byte("k"), Upload: [16]byte{1}, Part: 2},
		&createRequest{Handle: [16]byte{1}, Spec: disk.ShardSpec{ID: row.ID, FileSize: 8192, Owner: erasure.Owner{Bucket: 1, Key: []byte("k")}, Replace: true}},
		&openRequest{Handle: [16]byte{1}, ID: shardID(row.ID)}, &handleRequest{Handle: [16]byte{1}, Offset: 1 << 40, Length: 4096},
		(*sealRequest)(&seal), &sealRequests{seal, seal}, (*inlineShard)(&[]byte{}), &inlineShards{nil, {}, []byte("x")},
		&verifyRequest{Chunk: erasure.Chunk{Data: id, Index: 1, Profile: data.Profile, Size: 5, Owner: erasure.Owner{Bucket: 2, Key: []byte("o")}}, Index: 3, Throttled: true},
		&dataRequest{Address: addr, Data: id, Chunk: 1, Guard: ballot}, &pageRequest{After: &addr, Before: time.Unix(1, 2), Limit: 10},
		&shardsRequest{After: shardID(row.ID), Limit: 5, Throttled: true}, (*shardRow)(&row), &shardRows{row, row},
		&failure{errs.E("x.Y", errs.NotFound, "gone")}, &statReply{disk.ShardStat{Row: row, Inline: true}, failure{bad.Err}},
		&scrubReply{disk.ScrubReport{Next: row.ID, More: true, Shards: 3, Bytes: 1 << 40, Bad: []disk.ScrubFinding{bad}}, failure{bad.Err}},
		&usage{3, 1 << 50}, &job{"scrub", []byte{}},
		(*repairRow)(&metadata.RepairRow{Address: addr, Partition: 3, Positions: []uint8{1, 2}, State: ballot}),
		&repairRows{{Address: addr, Partition: 1, Positions: []uint8{5}}},
		&unsettledRows{{Address: addr, Partition: 1, Ballot: ballot, Since: -5, State: ballot}},
		&garbageRows{{At: -9, Address: addr, Partition: 1, Dead: metadata.DeadData{Data: data}, Guard: ballot}},
	}
}

// sampleNames are the names of samples, in their order, in testdata.
var sampleNames = strings.Fields(`digests dataIDs numbers flag shardID owner createRequest openRequest handleRequest sealRequest sealRequests inlineShard
	inlineShards verifyRequest dataRequest pageRequest shardsRequest shardRow shardRows failure statReply scrubReply usage job repairRow repairRows
	unsettledRows garbageRows`)

// What a version wrote is read for as long as it is spoken, and written by nobody else in another way.
func TestMessagesOfEachVersionAreAsTheyWere(t *testing.T) {
	raw, err := os.ReadFile("testdata/messages-v1.txt") // version 2 has the same
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	all := samples()
	if len(lines) != len(all) || len(sampleNames) != len(all) {
		t.Fatalf("%d messages, %d names, %d in testdata", len(all), len(sampleNames), len(lines))
	}
	for i, m := range all {
		if got := fmt.Sprintf("%s: %x", sampleNames[i], m.AppendTo(nil)); got != lines[i] {
			t.Errorf("written now\n%s\n, and then\n%s", got, lines[i])
		}
		_, then, _ := strings.Cut(lines[i], ": ")
		b, err := hex.DecodeString(then)
		if err != nil {
			t.Fatal(err)
		}
		if old := fresh(m); old.Unmarshal(b) != nil || !reflect.DeepEqual(old, m) {
			t.Errorf("%s of then is read as %+v, want %+v", sampleNames[i], old, m)
		}
	}
}

// What came later than version 1 is a field that builds of version 1 skip.
func TestABuildOfVersionOneSkipsWhatCameLater(t *testing.T) {
	row := repairRow{Partition: 3, Positions: []uint8{1}}
	then := row.AppendTo(nil)
	row.Asked = 1 << 63
	added, ok := bytes.CutPrefix(row.AppendTo(nil), then)
	num, _, n := protowire.ConsumeTag(added)
	if !ok || n < 0 || num < rpc.OptionalField {
		t.Errorf("field %d was added: %x", num, added)
	}
	var again repairRow
	if err := again.Unmarshal(row.AppendTo(nil)); err != nil || !reflect.DeepEqual(again, row) {
		t.Errorf("got %+v, want %+v, %v", again, row, err)
	}
}

func fresh(m message) message { return reflect.New(reflect.TypeOf(m).Elem()).Interface().(message) }

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	for _, m := range samples() {
		b := m.AppendTo(nil)
		got := fresh(m)
		if err := got.Unmarshal(b); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: got %+v, want %+v, %v", m, got, m, err)
		}
		// From a newer version: a field that may be skipped, and one that may not.
		if err := fresh(m).Unmarshal(putUint(bytes.Clone(b), rpc.OptionalField, 1)); err != nil {
			t.Errorf("%T: an optional field: %v", m, err)
		}
		if err := fresh(m).Unmarshal(putUint(bytes.Clone(b), 999, 1)); !errs.Is(err, errs.Unsupported) {
			t.Errorf("%T: a mandatory field that nobody knows: %v", m, err)
		}
	}
}

// What parses prints back to what parses the same; what does not is the sender's fault, and no damage of a drive.
func FuzzMessages(f *testing.F) {
	all := samples()
	for i, m := range all {
		f.Add(uint8(i), m.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		m := fresh(all[int(which)%len(all)])
		if err := m.Unmarshal(b); err != nil {
			if k := errs.KindOf(parsed(err)); k != errs.Invalid && k != errs.Unsupported {
				t.Errorf("%T: %v (%v)", m, err, k)
			}
			return
		}
		again := fresh(m)
		if err := again.Unmarshal(m.AppendTo(nil)); err != nil || !bytes.Equal(again.AppendTo(nil), m.AppendTo(nil)) {
			t.Errorf("%T: %+v came back as %+v, %v", m, m, again, err)
		}
	})
}
