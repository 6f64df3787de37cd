package erasure

import (
	"context"
	"io"
	"testing"

	"github.com/ostraka/ostraka/internal/bufpool"
)

type discardSink struct{}

func (discardSink) Write(context.Context, []byte) error { return nil }

var benchProfiles = []Profile{{2, 2}, {4, 2}, {8, 4}}

func BenchmarkEncode(b *testing.B) {
	for _, p := range benchProfiles {
		b.Run(p.String(), func(b *testing.B) {
			e := NewEncoder(Options{Coders: NewCoders(bufpool.New(bufpool.Options{}))})
			c := testChunk(p, ChunkSize)
			sinks := make([]Sink, p.N())
			for j := range sinks {
				sinks[j] = discardSink{}
			}
			b.SetBytes(c.Size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Encode(context.Background(), c, benchReader{}, p.N(), sinks); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchReader touches nothing, so that the encoder alone is measured.
type benchReader struct{}

func (benchReader) Read(p []byte) (int, error) { return len(p), nil }

func BenchmarkEncodeSmall(b *testing.B) {
	e := NewEncoder(Options{})
	c := testChunk(Profile{2, 2}, 128<<10)
	sinks := []Sink{discardSink{}, discardSink{}, discardSink{}, discardSink{}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Encode(context.Background(), c, benchReader{}, 4, sinks); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteRange(b *testing.B) {
	for _, p := range benchProfiles {
		for _, lost := range []int{0, int(p.Parity)} {
			name := p.String()
			if lost > 0 {
				name += "/degraded"
			}
			b.Run(name, func(b *testing.B) {
				coders := NewCoders(nil)
				c := testChunk(p, ChunkSize)
				s := encodeChunk(b, coders, c, testBody(ChunkSize, 1))
				for j := range lost {
					s.files[j] = nil
				}
				b.SetBytes(c.Size)
				b.ReportAllocs()
				for b.Loop() {
					r, err := OpenChunk(context.Background(), c, s.open, ReadOptions{Coders: coders})
					if err != nil {
						b.Fatal(err)
					}
					if err := r.WriteRange(context.Background(), io.Discard, 0, c.Size); err != nil {
						b.Fatal(err)
					}
					r.Close()
				}
			})
		}
	}
}

func BenchmarkRebuild(b *testing.B) {
	for _, p := range benchProfiles {
		b.Run(p.String(), func(b *testing.B) {
			coders := NewCoders(nil)
			c := testChunk(p, ChunkSize)
			s := encodeChunk(b, coders, c, testBody(ChunkSize, 1))
			b.SetBytes(c.Size)
			for b.Loop() {
				if err := Rebuild(context.Background(), c, s.open, map[int]Sink{0: discardSink{}}, ReadOptions{Coders: coders}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkInline(b *testing.B) {
	coders := NewCoders(nil)
	body := testBody(4096, 1)
	p := Profile{2, 2}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := coders.EncodeInline(p, DataID{}, body); err != nil {
				b.Fatal(err)
			}
		}
	})
	rows, _ := coders.EncodeInline(p, DataID{}, body)
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := coders.DecodeInline(p, DataID{}, 4096, rows); err != nil {
				b.Fatal(err)
			}
		}
	})
}
