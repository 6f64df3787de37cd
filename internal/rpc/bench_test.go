package rpc

import (
	"context"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/rpc/rpctest"
)

// processCPU is user and system time of this process, which is both ends.
func processCPU(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// overLoopback returns a client of a server on loopback, over TLS.
func overLoopback(b *testing.B) *Client {
	mux := NewMux()
	reply := make([]byte, 200)
	mux.Handle(1, func(context.Context, Peer, []byte) ([]byte, error) { return reply, nil })
	mux.HandleStream(2, func(ctx context.Context, _ Peer, _ []byte, s Stream) error {
		for {
			if _, err := s.Recv(ctx); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
		}
	})
	w := newWorld(b, func(c *ServerConfig) { c.Mux, c.Pool = mux, nil })
	return newClient(b, rpctest.TLS(b, w.serve, Wire), func(c *ClientConfig) { c.Pool = nil })
}

func BenchmarkCall2KiB(b *testing.B) {
	cl := overLoopback(b)
	payload := make([]byte, 2048)
	b.SetParallelism(8)
	b.ResetTimer()
	begin := processCPU(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			ctx, cancel := context.WithTimeout(bg, time.Minute)
			if _, err := cl.Call(ctx, 1, payload); err != nil {
				b.Error(err)
			}
			cancel()
		}
	})
	b.ReportMetric(float64((processCPU(b)-begin).Microseconds())/float64(b.N), "cpu-µs/op")
}

func BenchmarkStream(b *testing.B) {
	for name, messages := range map[string]int{"256KiB": 1, "1MiB": 4} {
		b.Run(name, func(b *testing.B) {
			cl := overLoopback(b)
			p := make([]byte, 256<<10)
			b.SetBytes(int64(messages * len(p)))
			b.ResetTimer()
			begin := processCPU(b)
			for range b.N {
				s, err := cl.Stream(bg, 2, nil)
				if err != nil {
					b.Fatal(err)
				}
				for range messages {
					if err := s.Send(bg, p); err != nil {
						b.Fatal(err)
					}
				}
				_ = s.CloseSend()
				if _, err := s.Recv(bg); err != io.EOF {
					b.Fatal(err)
				}
				_ = s.Close()
			}
			b.ReportMetric(float64((processCPU(b)-begin).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}
