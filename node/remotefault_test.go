package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/rpc"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/node"
)

// memDrive is a drive in memory.
func memDrive(t *testing.T) *disk.Drive {
	fs := vfs.NewMem()
	return oneDrive(t, fs, memPaths(t, fs, 1)[0])
}

// cutConn breaks after so many bytes were written to it; what came before is delivered.
type cutConn struct {
	net.Conn
	mu   sync.Mutex
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) <= c.left {
		n, err := c.Conn.Write(p)
		c.left -= n
		return n, err
	}
	n, _ := c.Conn.Write(p[:c.left])
	c.left = 0
	_ = c.Conn.Close()
	return n, io.ErrClosedPipe
}

// accepts counts the Accepts that reach a drive.
type accepts struct {
	node.Drive
	n atomic.Int64
}

func (a *accepts) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	a.n.Add(1)
	return a.Drive.Accept(ctx, m)
}

func TestAnAcceptWhoseConnectionIsCutAtAnyByte(t *testing.T) {
	d := &accepts{Drive: memDrive(t)}
	for _, request := range []bool{true, false} {
		notSent, unknown, whole := 0, 0, 0
		for at := 50; whole < 2; at++ {
			if at > 3000 {
				t.Fatal("there is no end")
			}
			far := newFarNode(t, d)
			dials := 0
			cl := newRPC(t, func(context.Context) (net.Conn, error) {
				if dials++; dials > 1 {
					return nil, errs.E("test", errs.Unavailable, "only one")
				}
				a, b := net.Pipe()
				if request {
					far.serve(b)
					return &cutConn{Conn: a, left: at}, nil
				}
				far.serve(&cutConn{Conn: b, left: at})
				return a, nil
			})
			addr := metadata.Address{Kind: metadata.KindObject, Bucket: 5, Key: fmt.Append(nil, request, at)}
			b := metadata.Ballot{Counter: uint64(time.Now().UnixMicro()), Proposer: 1}
			before := d.n.Load()
			r, err := node.NewRemote(cl, d.Num()).Accept(bg, &metadata.AcceptRequest{Header: metadata.Header{Epoch: 1}, Address: addr, Ballot: b,
				State: metadata.State{ID: b, Current: &metadata.Version{Kind: metadata.VersionObject, Seq: 1, ETag: "e"}, NextSeq: 2}})
			_ = cl.Close()
			_ = far.server.Close(bg)
			far.serving.Wait()
			executed := d.n.Load() - before
			row, rerr := d.Read(bg, &metadata.ReadRequest{Header: metadata.Header{Epoch: 1}, Address: addr})
			if rerr != nil {
				t.Fatal(rerr)
			}
			says := fmt.Sprintf("request %v, cut at %d: executed %d times, row %v, answer %v, %v", request, at, executed, row.Row != nil, r, err)
			switch {
			case executed > 1:
				t.Fatal(says)
			case err == nil:
				whole++
				if !r.Accepted || executed != 1 || row.Row == nil {
					t.Fatal(says)
				}
			case errs.KindOf(err) != errs.Unavailable: // above all not Stale, of which a writer concludes that nothing happened
				t.Fatal(says, errs.KindOf(err))
			case rpc.NotSent(err):
				notSent++
				if executed != 0 || row.Row != nil {
					t.Fatal(says)
				}
			default:
				unknown++
			}
		}
		t.Logf("request %v: not sent %d, unknown %d", request, notSent, unknown)
		if request && notSent == 0 || !request && unknown == 0 {
			t.Error("a case never came up")
		}
	}
}

// oneChunk is a chunk of one shard with random content.
func oneChunk(t *testing.T, id byte, size int) (erasure.Chunk, []byte) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	content := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	_, _ = rng.Read(content)
	return erasure.Chunk{Data: erasure.DataID{id}, Profile: erasure.Profile{Data: 1}, Size: int64(size), Owner: erasure.Owner{Bucket: 1, Key: []byte("k")}}, content
}

func spec(c erasure.Chunk) disk.ShardSpec {
	return disk.ShardSpec{ID: c.Shard(0), FileSize: erasure.ShardFileSize(c.Profile, c.Size), Owner: c.Owner}
}

func stream(t *testing.T, c erasure.Chunk, content []byte, w disk.ShardWriter) error {
	_, err := erasure.NewEncoder(erasure.EncoderOptions{}).Encode(bg, c, bytes.NewReader(content), 1, []erasure.Sink{w})
	return err
}

// links are the connections of a client, to be cut together.
type links struct {
	far *farNode
	mu  sync.Mutex // guards list
	all []net.Conn
}

func (l *links) dial(ctx context.Context) (net.Conn, error) {
	c, err := l.far.pipe(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, c)
	return c, err
}

func (l *links) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.all {
		_ = c.Close()
	}
	l.all = nil
}

func TestAShardWrittenWholeOutlivesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memDrive(t)
		l := &links{far: newFarNode(t, d)}
		r := node.NewRemote(newRPC(t, l.dial), d.Num())
		c, content := oneChunk(t, 1, 2<<20)
		w, err := r.CreateShard(bg, spec(c))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream(t, c, content, w); err != nil {
			t.Fatal(err)
		}
		l.cut()
		seal := &metadata.Seal{Data: metadata.Data{ID: c.Data, Profile: c.Profile, Size: c.Size, ChunkSize: erasure.ChunkSize}}
		if err := retried(func() error {
			return r.SealShard(bg, metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("k")}, seal)
		}); err != nil {
			t.Fatal(err)
		}
		if err := r.VerifyShard(bg, c, 0, nil); err != nil {
			t.Fatal(err)
		}
		w.Abort() // comes too late, and does nothing
		src, err := r.OpenShard(bg, c.Shard(0))
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		var all sync.WaitGroup
		for i := range 20 { // reads overlap
			all.Go(func() {
				p := make([]byte, 200<<10)
				off := int64(i * 4096 * 7)
				n, err := src.ReadAt(bg, p, 4096+off)
				if err != nil || n != len(p) || !bytes.Equal(p, content[off:off+int64(n)]) {
					t.Errorf("read at %d: %d bytes, %v", off, n, err)
				}
			})
		}
		all.Wait()
		l.cut()
		_, err = src.ReadAt(bg, make([]byte, 4096), 4096)
		// Not NotFound, nor Corrupt: nothing is known of the shard. Another connection may be there already.
		if err != nil && !errs.Is(err, errs.Unavailable) {
			t.Errorf("behind a cut connection: %v (%v)", err, errs.KindOf(err))
		}
	})
}

// retried tries again while a connection that was cut is noticed, or is not made anew yet: in a bubble, whose time
// is virtual.
func retried(f func() error) (err error) {
	for range 5 {
		if err = f(); !errs.Is(err, errs.Unavailable) {
			return err
		}
		time.Sleep(time.Second)
	}
	return err
}

func TestAShardWhoseConnectionIsCutIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memDrive(t)
		l := &links{far: newFarNode(t, d)}
		r := node.NewRemote(newRPC(t, l.dial), d.Num())
		c, content := oneChunk(t, 1, 1<<20)
		w, err := r.CreateShard(bg, spec(c))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(bg, content[:512<<10]); err != nil {
			t.Fatal(err)
		}
		_, err = r.CreateShard(bg, spec(c))
		if !errs.Is(err, errs.Exists) {
			t.Fatalf("a shard that is being written: %v", err)
		}
		l.cut()
		synctest.Wait()
		if err := w.Write(bg, content[512<<10:]); !errs.Is(err, errs.Unavailable) {
			t.Fatalf("writing on: %v", err)
		}
		w.Abort()
		synctest.Wait()
		var again disk.ShardWriter
		if err := retried(func() (err error) { again, err = r.CreateShard(bg, spec(c)); return err }); err != nil {
			t.Fatalf("the shard is still there: %v", err)
		}
		again.Abort()
	})
}

// failing is a drive whose writers fail after some bytes.
type failing struct {
	node.Drive
	after int
}

func (f *failing) CreateShard(ctx context.Context, s disk.ShardSpec) (disk.ShardWriter, error) {
	w, err := f.Drive.CreateShard(ctx, s)
	return &failingWriter{w, f.after}, err
}

type failingWriter struct {
	disk.ShardWriter
	left int
}

func (w *failingWriter) Write(ctx context.Context, p []byte) error {
	if w.left -= len(p); w.left < 0 {
		return &errs.Error{Op: "test.Write", Kind: errs.Full, Msg: "drive is full", Err: errors.New("a secret path")}
	}
	return w.ShardWriter.Write(ctx, p)
}

func TestAWriteThatFailsAtTheDriveSaysWhy(t *testing.T) {
	inner := memDrive(t)
	for _, after := range []int{0, 300 << 10, 1 << 20} { // in the first, in the midst, in the last message
		d := &failing{inner, after}
		r := node.NewRemote(newRPC(t, newFarNode(t, d).pipe), d.Num())
		c, content := oneChunk(t, byte(after>>10), 1<<20)
		w, err := r.CreateShard(bg, spec(c))
		if err != nil {
			t.Fatal(err)
		}
		err = nil
		for p := append(make([]byte, erasure.ShardFileSize(c.Profile, c.Size)-int64(len(content))), content...); err == nil && len(p) > 0; p = p[min(len(p), 512<<10):] {
			err = w.Write(bg, p[:min(len(p), 512<<10)])
		}
		if !errs.Is(err, errs.Full) || errs.Public(err) != "drive is full" {
			t.Errorf("full after %d bytes: %v", after, err)
		}
		w.Abort()
	}
}

// hanging is a drive whose calls hang until they are given up.
type hanging struct{ node.Drive }

func (hanging) Read(ctx context.Context, _ *metadata.ReadRequest) (*metadata.ReadReply, error) {
	<-ctx.Done()
	return nil, errs.Wrap("test.Read", ctx.Err())
}

func (hanging) CreateShard(ctx context.Context, _ disk.ShardSpec) (disk.ShardWriter, error) {
	<-ctx.Done()
	return nil, errs.Wrap("test.CreateShard", ctx.Err())
}

func (hanging) OpenShard(ctx context.Context, _ erasure.ShardID) (erasure.Source, error) {
	<-ctx.Done()
	return nil, errs.Wrap("test.OpenShard", ctx.Err())
}

func (hanging) VerifyShard(ctx context.Context, _ erasure.Chunk, _ int, _ func(context.Context, int) error) error {
	<-ctx.Done()
	return errs.Wrap("test.VerifyShard", ctx.Err())
}

func TestADriveThatHangsCostsTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memDrive(t)
		far := newFarNode(t, hanging{d})
		r := node.NewRemote(newRPC(t, far.pipe), d.Num())
		c, _ := oneChunk(t, 1, 1<<20)
		for name, f := range map[string]func(ctx context.Context) error{
			"Read":        func(ctx context.Context) error { _, err := r.Read(ctx, &metadata.ReadRequest{}); return err },
			"CreateShard": func(ctx context.Context) error { _, err := r.CreateShard(ctx, spec(c)); return err },
			"OpenShard":   func(ctx context.Context) error { _, err := r.OpenShard(ctx, c.Shard(0)); return err },
			"VerifyShard": func(ctx context.Context) error { return r.VerifyShard(ctx, c, 0, nil) },
			"Scrub": func(ctx context.Context) error {
				_, err := r.Scrub(ctx, erasure.ShardID{}, 10, nil)
				if err == nil { // the drive is empty, and does not hang here
					err = context.DeadlineExceeded
				}
				return err
			},
		} {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(bg, 3*time.Second)
			err := f(ctx)
			cancel()
			if took := time.Since(begin); !errs.Is(err, errs.Timeout) || took > 3*time.Second {
				t.Errorf("%s: after %v: %v", name, took, err)
			}
		}
		// Nothing of it is left at the node.
		synctest.Wait()
		if err := far.server.Close(bg); err != nil {
			t.Error(err)
		}
	})
}

// One node of three hangs in the midst of a read: another shard is asked.
func TestANodeThatHangsDoesNotHoldUpAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		prof := erasure.Profile{Data: 2, Parity: 1}
		content := make([]byte, 2<<20)
		for i := range content {
			content[i] = byte(i * 7 >> 8)
		}
		c := erasure.Chunk{Data: erasure.DataID{9}, Profile: prof, Size: int64(len(content)), Owner: erasure.Owner{Bucket: 1, Key: []byte("k")}}
		var remotes []*node.Remote
		var slow *slowDrive
		var sinks []erasure.Sink
		for j := range 3 {
			d := &slowDrive{Drive: memDrive(t), hang: make(chan struct{})}
			r := node.NewRemote(newRPC(t, newFarNode(t, d).pipe), d.Num())
			w, err := r.CreateShard(bg, disk.ShardSpec{ID: c.Shard(j), FileSize: erasure.ShardFileSize(prof, c.Size), Owner: c.Owner})
			if err != nil {
				t.Fatal(err)
			}
			remotes, sinks, slow = append(remotes, r), append(sinks, w), d
		}
		seal := func(j int) {
			t.Helper()
			if err := remotes[j].SealShard(bg, metadata.Address{Kind: metadata.KindObject, Bucket: 1, Key: []byte("k")},
				&metadata.Seal{Data: metadata.Data{ID: c.Data, Profile: prof, Size: c.Size, ChunkSize: erasure.ChunkSize}, Index: uint8(j)}); err != nil {
				t.Fatal(err)
			}
		}
		coders := erasure.NewCoders(nil)
		enc := erasure.NewEncoder(erasure.EncoderOptions{Coders: coders})
		res, err := enc.Encode(bg, c, bytes.NewReader(content), 2, sinks)
		if err != nil || res.Stored() != 3 {
			t.Fatalf("%+v, %v", res, err)
		}
		for j := range 3 {
			seal(j)
		}
		// The last drive stops to answer reads.
		read := func() []byte {
			t.Helper()
			r, err := erasure.OpenChunk(bg, c, func(ctx context.Context, j int) (erasure.Source, error) { return remotes[j].OpenShard(ctx, c.Shard(j)) },
				erasure.ReadOptions{Coders: coders, Order: []int{2, 1, 0}})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var out bytes.Buffer
			if err := r.WriteRange(bg, &out, 0, c.Size); err != nil {
				t.Fatal(err)
			}
			return out.Bytes()
		}
		slow.stopAfter.Store(1)
		if !bytes.Equal(read(), content) {
			t.Error("other bytes were read")
		}
		if slow.stopAfter.Load() > 0 {
			t.Error("the drive was not asked")
		}
		close(slow.hang)
		if err := coders.Wait(bg); err != nil {
			t.Error(err)
		}
	})
}

// slowDrive hangs in reads of shards once so many were made.
type slowDrive struct {
	node.Drive
	stopAfter atomic.Int64
	hang      chan struct{}
}

func (d *slowDrive) OpenShard(ctx context.Context, id erasure.ShardID) (erasure.Source, error) {
	s, err := d.Drive.OpenShard(ctx, id)
	if err != nil {
		return nil, err
	}
	return slowSource{s, d}, nil
}

type slowSource struct {
	erasure.Source
	d *slowDrive
}

func (s slowSource) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if s.d.stopAfter.Add(-1) == 0 {
		<-s.d.hang
	}
	return s.Source.ReadAt(ctx, p, off)
}
