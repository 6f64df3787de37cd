package node

import (
	"context"
	"errors"
	"io"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
)

// Codec returns d behind the encodings of the node protocol, without a network: every message and answer is encoded and
// decoded as for another node, every error is reduced to what crosses between nodes, and nothing is shared by pointer
// with the caller. Tests run every drive behind it, so that what works in one process works over a network.
func Codec(d Drive) Drive {
	return codec{stub{d.Num(), func(ctx context.Context, m rpc.Method, request []byte) ([]byte, error) {
		b, err := executes[m](ctx, d, request)
		return b, passError(err)
	}}, d}
}

// codec passes streams through: their bytes are not shared, as neither sinks nor sources keep any.
type codec struct {
	stub
	d Drive
}

// passError keeps of an error what crosses between nodes: kind, operation and public text. The end of
// a stream is no error of a drive.
func passError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	crossed, bad := rpc.ParseError(rpc.AppendError(nil, err))
	if bad != nil {
		return errs.As("node.Codec", errs.Internal, bad)
	}
	return crossed
}

// pass carries a message to the other side.
func pass[T any, P wire[T]](m *T) (*T, error) {
	out := new(T)
	if err := P(out).Unmarshal(P(m).AppendTo(nil)); err != nil {
		return nil, errs.Wrap("node.Codec", err)
	}
	return out, nil
}

func (c codec) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	m, err := pass(&createRequest{Spec: s})
	if err != nil {
		return nil, err
	}
	w, err := c.d.CreateShard(ctx, m.Spec)
	if err != nil {
		return nil, passError(err)
	}
	return codecWriter{w}, nil
}

type codecWriter struct{ disk.ShardWriter }

func (w codecWriter) Write(ctx context.Context, p []byte) error {
	return passError(w.ShardWriter.Write(ctx, p))
}

func (c codec) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	s, err := c.d.OpenShard(ctx, id)
	if err != nil {
		return nil, passError(err)
	}
	return codecSource{s}, nil
}

type codecSource struct{ erasure.Source }

func (s codecSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := s.Source.ReadAt(ctx, p, off)
	if errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, passError(err)
}

func (c codec) VerifyShard(ctx context.Context, ch erasure.Chunk, index int, throttle func(context.Context, int) error) error {
	m, err := pass(&verifyRequest{Chunk: ch, Index: index})
	if err != nil {
		return err
	}
	return passError(c.d.VerifyShard(ctx, m.Chunk, m.Index, throttle))
}

func (c codec) Scrub(ctx context.Context, after erasure.ShardID, limit int, throttle func(context.Context, int) error) (disk.ScrubReport, error) {
	r, err := c.d.Scrub(ctx, after, limit, throttle)
	m, bad := pass(&scrubReply{r, failure{err}})
	if bad != nil {
		return disk.ScrubReport{}, bad
	}
	return m.Report, m.Err.err
}

var _ Drive = codec{}
