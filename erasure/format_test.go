package erasure

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/bits"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/internal/errs"
)

var update = flag.Bool("update", false, "rewrite the golden files: only when the format changes on purpose")

func resealHeader(p []byte) { putSum(p[headerSize-sumSize:], xxh3.Hash128(p[:headerSize-sumSize])) }

func goldenChunk() (Chunk, []byte) {
	body := []byte("Ostraka: potsherds, used in Athens as ballots, and void without a quorum.")
	return Chunk{Data: DataID{0xd0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, Index: 2, Profile: Profile{3, 2}, Size: int64(len(body)),
		Owner: Owner{Bucket: 7, Key: []byte("agora/κλέος"), Upload: [16]byte{1, 2}, Part: 5}}, body
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the format has changed: %d bytes, want %d", name, len(got), len(want))
	}
}

func TestTheFormatIsWhatItWas(t *testing.T) {
	c, body := goldenChunk()
	coders := newTestCoders(t)
	s := encodeChunk(t, coders, c, body)
	golden(t, "shard0.golden", s.files[0].data)
	golden(t, "shard4.golden", s.files[4].data)
	rows, err := EncodeInline(c.Profile, c.Data, body)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "inline4.golden", rows[4])
}

func TestHeadersPrintBackAndStayInTheirLimits(t *testing.T) {
	page, again := make([]byte, headerSize), make([]byte, headerSize)
	h := Header{Chunk: Chunk{Data: NewDataID(), Index: 1 << 31, Profile: Profile{12, 4}, Size: MaxChunkSize,
		Owner: Owner{Bucket: 1 << 63, Key: bytes.Repeat([]byte{0xff}, MaxKey), Upload: [16]byte{15: 1}, Part: 10000}}, Shard: 15, ProfileID: 9}
	encodeHeader(page, h)
	got, err := DecodeHeader(page)
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Fatalf("%+v, %v", got, err)
	}
	encodeHeader(again, got)
	if !bytes.Equal(page, again) {
		t.Fatal("a header does not print back")
	}
	for at, name := range map[int]string{20: "k", 22: "index", 55: "size", 85: "key length", 100: "reserved", 1200: "zeros after the key"} {
		encodeHeader(page, h)
		page[at] = 0xff
		resealHeader(page)
		if _, err := DecodeHeader(page); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s out of its limits: %v", name, err)
		}
	}
	long := h.Chunk
	long.Owner.Key = make([]byte, MaxKey+1)
	if _, err := NewEncoder(Options{}).Encode(context.Background(), long, nil, 1, make([]Sink, 16)); !errs.Is(err, errs.Invalid) {
		t.Errorf("a key of 1025 bytes: %v", err)
	}
}

func TestProfilesAndIdsParse(t *testing.T) {
	for _, s := range []string{"1+0", "2+2", "12+4", "31+1", "32+0"} {
		if p, err := ParseProfile(s); err != nil || p.String() != s {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "+", "2", "0+1", "0+0", "33+0", "31+2", "255+255", "256+0", "02+2", "2+-1", "2+2 ", "2++2"} {
		if p, err := ParseProfile(s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
	id := NewDataID()
	if got, err := ParseDataID(id.String()); err != nil || got != id || NewDataID() == id {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "00", id.String() + "00", "G" + id.String()[1:], "AB" + id.String()[2:]} {
		if _, err := ParseDataID(s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestInlineRowsOfEverySubset(t *testing.T) {
	var coders Coders
	for _, p := range []Profile{{1, 0}, {1, 1}, {3, 0}, {2, 2}, {4, 2}, {3, 3}} {
		for _, size := range []int{0, 1, 2, 3, 4, 5, 1023, 65536} {
			body, id := testBody(size, 1), DataID{byte(size), 1}
			rows, err := coders.EncodeInline(p, id, body)
			if err != nil {
				t.Fatal(err)
			}
			for lost := range 1 << p.N() {
				some := make([][]byte, p.N())
				var missing []int
				for j := range some {
					if lost>>j&1 == 0 {
						some[j] = rows[j]
					} else {
						missing = append(missing, j)
					}
				}
				got, damaged, err := coders.DecodeInline(p, id, int64(size), some)
				rebuilt, err2 := RebuildInline(p, id, int64(size), some, missing)
				if bits.OnesCount(uint(lost)) > int(p.Parity) {
					if !errs.Is(err, errs.Unavailable) || !errs.Is(err2, errs.Unavailable) {
						t.Fatalf("%s, lost %b: %v, %v", p, lost, err, err2)
					}
					continue
				}
				if err != nil || err2 != nil || damaged != nil || !bytes.Equal(got, body) || len(rebuilt) != len(missing) {
					t.Fatalf("%s, %d bytes, lost %b: %d bytes, %v, %v, %v", p, size, lost, len(got), damaged, err, err2)
				}
				for j, row := range rebuilt {
					if !bytes.Equal(row, rows[j]) {
						t.Fatalf("%s, %d bytes, lost %b: rebuilt row %d differs", p, size, lost, j)
					}
				}
			}
		}
	}
}

func TestDamagedInlineRowsAreNamedAndNotUsed(t *testing.T) {
	p, id, body := Profile{2, 1}, DataID{1}, testBody(1001, 1)
	rows, _ := EncodeInline(p, id, body)
	for j := range rows {
		for at := range rows[j] {
			bad := [][]byte{rows[0], rows[1], rows[2]}
			bad[j] = bytes.Clone(rows[j])
			bad[j][at] ^= 0x10
			got, damaged, err := DecodeInline(p, id, 1001, bad)
			if err != nil || !bytes.Equal(got, body) || len(damaged) != 1 || damaged[0] != j {
				t.Fatalf("byte %d of row %d: %d bytes, damaged %v, %v", at, j, len(got), damaged, err)
			}
			bad[(j+1)%3] = nil
			if _, _, err := DecodeInline(p, id, 1001, bad); !errs.Is(err, errs.Corrupt) {
				t.Fatalf("byte %d of row %d, one lost: %v", at, j, err)
			}
		}
	}
	for name, err := range map[string]error{
		"other id":      VerifyInline(p, DataID{2}, 1001, 0, rows[0]),
		"other size":    VerifyInline(p, id, 1002, 0, rows[0]),
		"other index":   VerifyInline(p, id, 1001, 1, rows[0]),
		"other profile": VerifyInline(Profile{2, 2}, id, 1001, 0, rows[0]),
		"cut":           VerifyInline(p, id, 1001, 0, rows[0][:20]),
		"empty":         VerifyInline(p, id, 1001, 0, []byte{}),
	} {
		if !errs.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	newer := bytes.Clone(rows[0])
	newer[1] = 1
	putSum(newer[8:], inlineSum(newer, id, 1001))
	if err := VerifyInline(p, id, 1001, 0, newer); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a mandatory flag: %v", err)
	}
	if _, _, err := DecodeInline(p, id, 1001, rows[:2]); !errs.Is(err, errs.Invalid) {
		t.Errorf("two rows for n = 3: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	page := make([]byte, headerSize)
	c, _ := goldenChunk()
	encodeHeader(page, Header{Chunk: c, Shard: 1})
	f.Add(page[:200])
	f.Fuzz(func(t *testing.T, in []byte) {
		p := make([]byte, headerSize)
		copy(p, in)
		resealHeader(p) // or no input would get past the checksum
		h, err := DecodeHeader(p)
		if err != nil {
			if !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Unsupported) {
				t.Fatal(err)
			}
			return
		}
		if ShardFileSize(h.Chunk.Profile, h.Chunk.Size) < 2*Align {
			t.Fatalf("%+v", h)
		}
		again := make([]byte, headerSize)
		encodeHeader(again, h)
		if h.Optional == 0 && !bytes.Equal(p, again) {
			t.Fatalf("%+v does not print back", h)
		}
	})
}

func FuzzFooter(f *testing.F) {
	c, _ := goldenChunk()
	p := make([]byte, Align)
	encodeFooter(p, c, 1, make([]byte, sumSize))
	f.Add(p[Align-trailerSize:], p[:sumSize], false)
	f.Fuzz(func(t *testing.T, trailer, table []byte, seal bool) {
		p := make([]byte, Align)
		copy(p, table)
		copy(p[Align-trailerSize:], trailer)
		if seal {
			putSum(p[Align-sumSize:], xxh3.Hash128(p[:Align-sumSize]))
		}
		sums, err := decodeFooter(p, c, 1)
		if err != nil {
			return
		}
		again := make([]byte, Align)
		encodeFooter(again, c, 1, sums)
		if !bytes.Equal(p, again) {
			t.Fatal("a footer does not print back")
		}
	})
}

func FuzzInline(f *testing.F) {
	c, body := goldenChunk()
	rows, _ := EncodeInline(c.Profile, c.Data, body)
	f.Add(rows[0], uint8(0), false)
	f.Fuzz(func(t *testing.T, row []byte, index uint8, seal bool) {
		j := int(index) % 5
		if seal && len(row) >= InlineOverhead {
			row = bytes.Clone(row)
			putSum(row[8:], inlineSum(row, c.Data, c.Size))
		}
		some := [][]byte{rows[0], rows[1], rows[2], rows[3], rows[4]}
		some[j] = row
		if row == nil {
			some[j] = []byte{}
		}
		got, damaged, err := DecodeInline(c.Profile, c.Data, c.Size, some)
		if err != nil {
			t.Fatalf("one bad row is more than 3+2 bears: %v", err)
		}
		if len(damaged) == 1 && !bytes.Equal(got, body) {
			t.Fatal("a damaged row was used")
		}
		if len(damaged) == 0 && !seal && !bytes.Equal(row, rows[j]) && !errors.Is(err, errInjected) {
			t.Fatal("a row that nobody sealed was accepted")
		}
	})
}
