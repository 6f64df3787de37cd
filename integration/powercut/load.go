//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
)

const (
	keysPerClient = 12
	bucketsPerRun = 60 // of one store; beyond it no more are created
	mainBucket    = "main"

	small, middle, large = 4 << 10, 1 << 20, 32 << 20
	part, lastPart       = 5 << 20, 1<<20 + 1 // of a multipart object

	// callPatience is far beyond what any call may take.
	callPatience = 30 * time.Second
)

// name is a key in its bucket.
type name struct{ bucket, key string }

// ledger is what is known of one store.
type ledger struct {
	mu      sync.Mutex // guards the fields below
	keys    map[name]*entry
	touched map[name]bool   // written since the last comparison
	buckets map[string]bool // true: acknowledged or seen; false: possible
	bodies  uint64          // ids that were drawn
	sent    int64           // bytes of bodies
	budget  int64           // of sent; beyond it only small bodies are written
}

func newLedger(budget int64) *ledger {
	return &ledger{budget: budget, keys: map[name]*entry{}, touched: map[name]bool{}, buckets: map[string]bool{}}
}

// kinds of operations, as they are counted.
const (
	putSmall = iota
	putMiddle
	putLarge
	putMultipart
	remove
	makeBucket
	kinds
)

var kindNames = [kinds]string{"PUT 4 KiB", "PUT 1 MiB", "PUT 32 MiB", "multipart", "DELETE", "bucket"}

// counts are shared by all clients.
type counts struct {
	acked, refused, unknown [kinds]atomic.Int64
	overwrites              atomic.Int64 // acknowledged PUTs over an existing body
	slowest                 atomic.Int64 // longest acknowledged call, in nanoseconds
}

func (n *counts) allAcked() (sum int64) {
	for i := range n.acked {
		sum += n.acked[i].Load()
	}
	return sum
}

func (n *counts) allUnknown() (sum int64) {
	for i := range n.unknown {
		sum += n.unknown[i].Load()
	}
	return sum
}

// pool is what bodies are cut from.
type pool []byte

func newPool(seed uint64) pool {
	p := make(pool, large+part)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	// It never fails.
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

// body is the content's id, and a stretch of the pool that depends on it.
func (p pool) body(c content) []byte {
	b := make([]byte, c.size)
	copy(b, p.tail(c))
	binary.LittleEndian.PutUint64(b, c.id)
	return b
}

func (p pool) tail(c content) []byte {
	from := (c.id * 0x9e3779b97f4a7c15 >> 20) % uint64(int64(len(p))-c.size)
	return p[from : from+uint64(c.size)]
}

// read compares a body while it comes. It returns the content that the first bytes name, and an
// error when the rest is not of it.
func (p pool) read(r io.Reader, size int64) (content, error) {
	var head [8]byte
	if size < 8 || size > large {
		return nothing, damage{fmt.Sprintf("%d bytes", size)}
	}
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nothing, err
	}
	c := content{binary.LittleEndian.Uint64(head[:]), size}
	want, buf := p.tail(c)[8:], make([]byte, 256<<10)
	at := 8
	for len(want) > 0 {
		n, err := io.ReadFull(r, buf[:min(len(buf), len(want))])
		if !bytes.Equal(buf[:n], want[:n]) {
			i := 0
			for buf[i] == want[i] {
				i++
			}
			return c, damage{fmt.Sprintf("%v differs at byte %d", c, at+i)}
		}
		if err != nil {
			return c, err
		}
		want, at = want[n:], at+n
	}
	if n, _ := r.Read(buf[:1]); n > 0 {
		return c, damage{fmt.Sprintf("%v goes on after its end", c)}
	}
	return c, nil
}

// damage is a body that no request has sent.
type damage struct{ what string }

func (d damage) Error() string { return "damaged: " + d.what }

// load is the clients, from begin to end of one stretch.
type load struct {
	s    *server
	l    *ledger
	p    pool
	n    *counts
	stop chan struct{}
	wg   sync.WaitGroup
}

// begin starts the clients; each has the keys of its number to itself.
func begin(s *server, l *ledger, p pool, n *counts, rng *rand.Rand) *load {
	w := &load{s: s, l: l, p: p, n: n, stop: make(chan struct{})}
	for i := range s.c.clients {
		own := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		w.wg.Go(func() { w.client(i, own) })
	}
	return w
}

// end waits until every request has ended.
func (w *load) end() {
	close(w.stop)
	w.wg.Wait()
}

func (w *load) client(i int, rng *rand.Rand) {
	for {
		select {
		case <-w.stop:
			return
		default:
		}
		if o := w.one(i, rng); o != acknowledged {
			select { // no hot loop against a server that is down
			case <-w.stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
}

// one does one operation and enters its outcome.
func (w *load) one(client int, rng *rand.Rand) outcome {
	at := name{mainBucket, fmt.Sprintf("c%02d/k%02d", client, rng.IntN(keysPerClient))}
	var kind int
	var c content
	switch d := rng.IntN(1000); {
	case d < 560:
		kind, c.size = putSmall, small
	case d < 800:
		kind, c.size = putMiddle, middle
	case d < 812:
		kind, c.size = putLarge, large
	case d < 840:
		kind, c.size = putMultipart, part+lastPart
	case d < 970:
		kind = remove
	default:
		return w.bucket(client)
	}
	if kind != remove {
		if c = w.l.draw(c.size); c.size == small {
			kind = putSmall
		}
	}
	return w.write(at, kind, c)
}

// draw returns a body that was never sent, of that size or, when the budget is spent, a small one: a
// full drive would hide what a cut does.
func (l *ledger) draw(size int64) content {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sent+size > l.budget {
		size = small
	}
	l.bodies++
	l.sent += size
	return content{l.bodies, size}
}

// write makes c of the key and enters the outcome.
func (w *load) write(at name, kind int, c content) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), callPatience)
	defer cancel()
	begin := time.Now()
	var err error
	reached := true // the request that changes the key was sent
	switch kind {
	case remove:
		err = w.s.core.RemoveObject(ctx, at.bucket, at.key, minio.RemoveObjectOptions{})
	case putMultipart:
		reached, err = w.multipart(ctx, at, w.p.body(c))
	default:
		_, err = w.s.core.PutObject(ctx, at.bucket, at.key, bytes.NewReader(w.p.body(c)), c.size, "", "", minio.PutObjectOptions{})
	}
	o := ended(err)
	if !reached {
		o = refused
	}
	w.n.count(kind, o, time.Since(begin))
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	e := w.l.keys[at]
	if e == nil {
		e = new(entry)
		w.l.keys[at] = e
	}
	if o == acknowledged && c != nothing && e.is != nothing {
		w.n.overwrites.Add(1)
	}
	e.tried(c, o, err)
	w.l.touched[at] = true
	return o
}

func (n *counts) count(kind int, o outcome, took time.Duration) {
	switch o {
	case acknowledged:
		n.acked[kind].Add(1)
		for {
			was := n.slowest.Load()
			if int64(took) <= was || n.slowest.CompareAndSwap(was, int64(took)) {
				return
			}
		}
	case refused:
		n.refused[kind].Add(1)
	case unknown:
		n.unknown[kind].Add(1)
	}
}

// multipart reports whether the request that makes the object visible was sent.
func (w *load) multipart(ctx context.Context, at name, body []byte) (bool, error) {
	id, err := w.s.core.NewMultipartUpload(ctx, at.bucket, at.key, minio.PutObjectOptions{})
	if err != nil {
		return false, err
	}
	var done []minio.CompletePart
	for i, p := range [][]byte{body[:part], body[part:]} {
		got, err := w.s.core.PutObjectPart(ctx, at.bucket, at.key, id, i+1, bytes.NewReader(p), int64(len(p)), minio.PutObjectPartOptions{})
		if err != nil {
			return false, err
		}
		done = append(done, minio.CompletePart{PartNumber: i + 1, ETag: got.ETag})
	}
	_, err = w.s.core.CompleteMultipartUpload(ctx, at.bucket, at.key, id, done, minio.PutObjectOptions{})
	return true, err
}

// bucket creates one, and puts an object into it.
func (w *load) bucket(client int) outcome {
	w.l.mu.Lock()
	n := len(w.l.buckets)
	b := fmt.Sprintf("bucket-%d-%d", client, n)
	w.l.mu.Unlock()
	if n >= bucketsPerRun {
		return acknowledged
	}
	if o := w.create(b); o != acknowledged {
		return o
	}
	return w.write(name{b, "first"}, putSmall, w.l.draw(small))
}

func (w *load) create(b string) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), callPatience)
	defer cancel()
	begin := time.Now()
	o := ended(w.s.core.MakeBucket(ctx, b, minio.MakeBucketOptions{Region: w.s.c.region}))
	w.n.count(makeBucket, o, time.Since(begin))
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	switch o {
	case acknowledged:
		w.l.buckets[b] = true
	case unknown:
		w.l.buckets[b] = false
	}
	return o
}

// ended classifies the end of a request.
func ended(err error) outcome {
	var op *net.OpError
	var answer minio.ErrorResponse
	switch {
	case err == nil:
		return acknowledged
	case errors.As(err, &op) && op.Op == "dial":
		return refused
	case errors.As(err, &answer) && answer.StatusCode >= 400 && answer.StatusCode < 500:
		return refused
	}
	return unknown
}

// get reads one key.
func get(ctx context.Context, s *server, p pool, at name) (content, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	r, info, _, err := s.core.GetObject(ctx, at.bucket, at.key, minio.GetObjectOptions{})
	if err != nil {
		var answer minio.ErrorResponse
		if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
			return nothing, nil
		}
		return nothing, err
	}
	c, err := p.read(r, info.Size)
	return c, errors.Join(err, r.Close())
}
