package object

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pages of a listing, and reads of records, of small objects on four directories of the real file system.
func BenchmarkListHead(b *testing.B) {
	const objects = 4000
	s := newStack(b, stackOptions{fs: vfs.Default, dir: b.TempDir(), raw: true, bits: 12, tune: func(c *Config) {
		c.InlineLimit, c.ChunkSize = 0, 0
	}})
	s.bucketFor("bench", Unversioned)
	p := body(1, 4<<10)
	key := func(i int) string { return fmt.Sprintf("dir/%04d/object-%06d.bin", i/100, i) }
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < objects; i += 16 {
				if _, err := s.Put(context.Background(), "bench", key(i), bytes.NewReader(p), PutOptions{Size: int64(len(p))}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	list := func(b *testing.B, delimiter string, want int) {
		b.ReportAllocs()
		for b.Loop() {
			r, err := s.List(context.Background(), "bench", ListOptions{Prefix: "dir/", Delimiter: delimiter, Limit: 1000})
			if err != nil || len(r.Objects)+len(r.Prefixes) != want {
				b.Fatal(err, len(r.Objects), len(r.Prefixes))
			}
		}
	}
	b.Run("List/1000", func(b *testing.B) { list(b, "", 1000) })
	b.Run("List/40prefixes", func(b *testing.B) { list(b, "/", objects/100) })
	b.Run("Head", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			if _, err := s.Head(context.Background(), "bench", key(i*7%objects), GetOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
