package object

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/checksum"
)

// The stages of a request but for HTTP, on four directories of the real file system.
func BenchmarkPutGet(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		s := newStack(b, stackOptions{fs: vfs.Default, dir: b.TempDir(), raw: true, bits: 12, tune: func(c *Config) {
			c.InlineLimit, c.ChunkSize = 0, 0
		}})
		s.bucketFor("bench", Unversioned)
		p := body(1, size)
		put := func(b *testing.B, key string) {
			_, err := s.Put(context.Background(), "bench", key, bytes.NewReader(p), PutOptions{Size: int64(size), Checksums: []checksum.Algorithm{checksum.CRC64NVME}})
			if err != nil {
				b.Fatal(err)
			}
		}
		get := func(b *testing.B, key string) {
			o, err := s.Get(context.Background(), "bench", key, GetOptions{})
			if err == nil {
				_, err = o.WriteTo(io.Discard)
				o.Close()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		for i := range 64 {
			put(b, fmt.Sprintf("g%d", i))
		}
		var n atomic.Int64
		for _, op := range []struct {
			name string
			f    func(*testing.B, string)
			key  string
		}{{"Put", put, "p%d"}, {"Get", get, "g%d"}} {
			b.Run(fmt.Sprintf("%s/%dKiB/c1", op.name, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					op.f(b, fmt.Sprintf(op.key, n.Add(1)%64))
				}
			})
			b.Run(fmt.Sprintf("%s/%dKiB/c16", op.name, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.SetParallelism(8)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						op.f(b, fmt.Sprintf(op.key, n.Add(1)%64))
					}
				})
			})
		}
	}
}
