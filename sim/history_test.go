package sim

import (
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// value is a body that somebody wants to store. Its number is its identity in the histories.
type value struct {
	id    uint32
	body  []byte
	parts [][]byte // of a multipart upload
	etag  string   // as a single body
	etagN string   // as a multipart object; "" when it is none
	count int      // of counters
}

// values knows every body that may ever be read, by ETag.
type values struct {
	// mu guards the fields below.
	mu     sync.Mutex
	last   uint32
	byETag map[string]*value
}

// body returns size bytes that no other value has. A body shorter than eight bytes is not unique.
func body(id uint32, size int) []byte {
	b := make([]byte, max(size, 8))
	rng := rand.NewPCG(uint64(id), 99)
	for i := 8; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	binary.BigEndian.PutUint64(b, uint64(id))
	return b
}

func etagOf(b []byte) string {
	sum := md5.Sum(b)
	return hex.EncodeToString(sum[:])
}

func (v *values) single(size, count int) *value {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last++
	x := &value{id: v.last, body: body(v.last, size), count: count}
	x.etag = etagOf(x.body)
	v.byETag[x.etag] = x
	return x
}

// multipart makes a value of parts of the given sizes.
func (v *values) multipart(sizes []int) *value {
	v.mu.Lock()
	defer v.mu.Unlock()
	x := &value{}
	var sums []byte
	for _, n := range sizes {
		v.last++
		p := body(v.last, n)
		x.parts = append(x.parts, p)
		x.body = append(x.body, p...)
		sum := md5.Sum(p)
		sums = append(sums, sum[:]...)
	}
	v.last++
	x.id = v.last
	x.etag, x.etagN = etagOf(x.body), fmt.Sprintf("%s-%d", etagOf(sums), len(sizes))
	v.byETag[x.etag], v.byETag[x.etagN] = x, x
	return x
}

// junk is a body that must never be seen by anybody.
func (v *values) junk(size int) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last++
	return body(v.last, size)
}

func (v *values) find(etag string) *value {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.byETag[etag]
}

// What a client asks of a register, and what it heard.
type input struct {
	op   string // get, put, del, absent (If-None-Match: *), match (If-Match), mkbucket, rmbucket
	key  int    // within the churned bucket; else 0
	v    uint32 // the value to write
	cond uint32 // the value that If-Match names
}

type output struct {
	res string // ok, 412, 404, nobucket, notempty, exists, unknown
	v   uint32 // what was read; 0: absent
}

// forever is when an operation returns whose outcome nobody heard.
const forever = math.MaxInt64 / 2

// history is the operations on the registers, by name.
type history struct {
	// mu guards the fields below.
	mu    sync.Mutex
	clock int64
	ops   map[string][]porcupine.Operation
	count int
}

// begin returns a point in the order of events.
func (h *history) begin() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

// end records an operation that began at call. A read whose outcome is unknown says nothing.
func (h *history) end(client int, name string, call int64, in input, out output) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	ret := h.clock
	if out.res == "unknown" {
		if in.op == "get" {
			return
		}
		ret = forever
	}
	h.count++
	h.ops[name] = append(h.ops[name], porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ret})
}

// registerModel is one key: the number of its value, 0 when it is absent.
var registerModel = porcupine.Model{
	Init: func() any { return uint32(0) },
	Step: func(st, i, o any) (bool, any) {
		have, in, out := st.(uint32), i.(input), o.(output)
		ok, next := stepKey(have, in, out)
		return ok, next
	},
	DescribeOperation: func(i, o any) string { return fmt.Sprintf("%+v -> %+v", i, o) },
}

func stepKey(have uint32, in input, out output) (bool, uint32) {
	switch in.op {
	case "get":
		return have == out.v, have
	case "put":
		return true, in.v
	case "del":
		return true, 0
	case "absent":
		switch {
		case out.res == "412":
			return have != 0, have
		case have == 0:
			return true, in.v
		}
		return out.res == "unknown", have
	case "match":
		switch {
		case out.res == "412":
			return have != in.cond, have
		case out.res == "404":
			return have == 0, have
		case have == in.cond:
			return true, in.v
		}
		return out.res == "unknown", have
	}
	return false, have
}

// churned is the state of the bucket that is created and deleted all the time.
type churned struct {
	there bool
	keys  [churnKeys]uint32
}

const churnKeys = 2

// bucketModel is a whole bucket with its few keys.
var bucketModel = porcupine.Model{
	Init: func() any { return churned{} },
	Step: func(st, i, o any) (bool, any) {
		b, in, out := st.(churned), i.(input), o.(output)
		unknown := out.res == "unknown"
		switch in.op {
		case "mkbucket":
			switch {
			case out.res == "exists":
				return b.there, b
			case b.there:
				return unknown, b
			}
			return true, churned{there: true}
		case "rmbucket":
			empty := b.keys == [churnKeys]uint32{}
			switch {
			case out.res == "nobucket":
				return !b.there, b
			case out.res == "notempty":
				return b.there && !empty, b
			case b.there && empty:
				return true, churned{}
			}
			return unknown, b
		}
		if out.res == "nobucket" {
			return !b.there, b
		}
		if !b.there {
			return unknown, b
		}
		ok, next := stepKey(b.keys[in.key], in, out)
		b.keys[in.key] = next
		return ok, b
	},
	DescribeOperation: func(i, o any) string { return fmt.Sprintf("%+v -> %+v", i, o) },
}

// check judges every history. It runs outside of the bubble: its time-out is one of this world.
func (h *history) check() error {
	for name, ops := range h.ops {
		m := registerModel
		if name == churnBucket {
			m = bucketModel
		}
		switch porcupine.CheckOperationsTimeout(m, ops, 60*time.Second) {
		case porcupine.Illegal:
			return fmt.Errorf("the history of %s is not linearizable:\n%s", name, dump(ops))
		case porcupine.Unknown:
			return fmt.Errorf("the checker ran out of time over %d operations on %s", len(ops), name)
		}
	}
	return nil
}

func dump(ops []porcupine.Operation) (out string) {
	for _, o := range ops {
		ret := fmt.Sprint(o.Return)
		if o.Return == forever {
			ret = "∞"
		}
		out += fmt.Sprintf("  [%d,%s] client %d %+v -> %+v\n", o.Call, ret, o.ClientId, o.Input, o.Output)
	}
	return out
}
