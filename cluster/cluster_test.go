package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
	"github.com/ostraka/ostraka/placement"
)

// memKV is a record store in memory. Its n-th write from now can be made to fail, with all that
// follow it; crash returns what was synced.
type memKV struct {
	mu     sync.Mutex
	rows   map[string][]byte
	synced map[string][]byte
	left   int // writes until failure; -1: never
}

func newMemKV() *memKV {
	return &memKV{rows: map[string][]byte{}, synced: map[string][]byte{}, left: -1}
}

func (m *memKV) Get(key []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.rows[string(key)]), nil
}

var errDrive = errs.E("memKV", errs.Drive, "injected")

func (m *memKV) Apply(b *metadata.Batch, sync bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == 0 {
		return errDrive
	}
	if m.left > 0 {
		m.left--
	}
	for _, o := range b.Ops {
		switch o.Kind {
		case metadata.OpSet:
			m.rows[string(o.Key)] = bytes.Clone(o.Value)
		case metadata.OpDelete:
			delete(m.rows, string(o.Key))
		case metadata.OpDeleteRange:
			for k := range m.rows {
				if k >= string(o.Key) && k < string(o.Value) {
					delete(m.rows, k)
				}
			}
		}
	}
	if sync {
		m.synced = map[string][]byte{}
		for k, v := range m.rows {
			m.synced[k] = v
		}
	}
	return nil
}

func (m *memKV) crash() *memKV {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := newMemKV()
	for k, v := range m.synced {
		n.rows[k], n.synced[k] = bytes.Clone(v), bytes.Clone(v)
	}
	return n
}

func (m *memKV) NewIter(lower, upper []byte) (metadata.Iter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it := &memIter{at: -1}
	for k, v := range m.rows {
		if k >= string(lower) && (upper == nil || k < string(upper)) {
			it.rows = append(it.rows, [2][]byte{[]byte(k), bytes.Clone(v)})
		}
	}
	sort.Slice(it.rows, func(i, j int) bool { return bytes.Compare(it.rows[i][0], it.rows[j][0]) < 0 })
	return it, nil
}

type memIter struct {
	rows [][2][]byte
	at   int
}

func (i *memIter) ok() bool      { return i.at >= 0 && i.at < len(i.rows) }
func (i *memIter) First() bool   { i.at = 0; return i.ok() }
func (i *memIter) Last() bool    { i.at = len(i.rows) - 1; return i.ok() }
func (i *memIter) Next() bool    { i.at++; return i.ok() }
func (i *memIter) Prev() bool    { i.at--; return i.ok() }
func (i *memIter) Key() []byte   { return i.rows[i.at][0] }
func (i *memIter) Value() []byte { return i.rows[i.at][1] }
func (i *memIter) Err() error    { return nil }
func (i *memIter) Close() error  { return nil }
func (i *memIter) SeekGE(k []byte) bool {
	i.at = sort.Search(len(i.rows), func(n int) bool { return bytes.Compare(i.rows[n][0], k) >= 0 })
	return i.ok()
}
func (i *memIter) SeekLT(k []byte) bool {
	i.at = sort.Search(len(i.rows), func(n int) bool { return bytes.Compare(i.rows[n][0], k) >= 0 }) - 1
	return i.ok()
}

func drives(kvs ...*memKV) (out []DriveStore) {
	for i, kv := range kvs {
		if kv != nil {
			out = append(out, DriveStore{uint16(i + 1), kv})
		}
	}
	return out
}

func testLayout(t testing.TB, n int) *placement.Layout {
	t.Helper()
	var list []placement.Drive
	for i := range n {
		list = append(list, placement.Drive{Num: uint16(i + 1), ID: [16]byte{byte(i + 1)}})
	}
	p, err := placement.DefaultProfile(n)
	if err != nil {
		t.Fatal(err)
	}
	l, err := placement.NewLayout(list, p, 6)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var testKey = AccessKey{ID: "root", Secret: "secret-secret", Account: "a", Root: true}

func openTest(t testing.TB, init bool, kvs ...*memKV) *Control {
	t.Helper()
	k, err := Open(context.Background(), Config{Drives: drives(kvs...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	if init {
		if err := k.Init(context.Background(), [16]byte{9}, testLayout(t, len(kvs)), Account{ID: "a", Name: "root"}, testKey); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// inBubble runs a test in a bubble: elections take no time.
func inBubble(f func(t *testing.T)) func(t *testing.T) {
	return func(t *testing.T) { synctest.Test(t, f) }
}

func mem(n int) (out []*memKV) {
	for range n {
		out = append(out, newMemKV())
	}
	return out
}

func create(t testing.TB, k *Control, name string) Bucket {
	t.Helper()
	b, err := k.CreateBucket(context.Background(), Bucket{Name: name, Owner: "a", Created: 5})
	if err != nil {
		t.Fatalf("CreateBucket(%s): %v", name, err)
	}
	return b
}

func TestAnsweredChangesSurviveACrashAndTheLossOfAnyDrive(t *testing.T) {
	for n := 1; n <= 5; n++ {
		for lost := -1; lost < n; lost++ {
			if n == 1 && lost == 0 {
				continue
			}
			t.Run(fmt.Sprintf("%d drives, lost %d", n, lost), inBubble(func(t *testing.T) {
				kvs := mem(n)
				k := openTest(t, true, kvs...)
				a := create(t, k, "aaa")
				if err := k.SetVersioning(context.Background(), a.ID, Enabled); err != nil {
					t.Fatal(err)
				}
				create(t, k, "bbb")
				after := make([]*memKV, n)
				for i := range kvs {
					if i != lost {
						after[i] = kvs[i].crash()
					}
				}
				k.Close()
				again := openTest(t, false, after...)
				s := again.State()
				b, ok := s.Bucket("aaa")
				if !ok || b.Versioning != Enabled || len(s.Buckets()) != 2 {
					t.Fatalf("after the crash: %+v, %d buckets; want aaa with versioning, and bbb", b, len(s.Buckets()))
				}
				if key, ok := s.AccessKey("root"); !ok || key != testKey {
					t.Fatalf("the root key is %+v", key)
				}
				if n >= 3 || lost == -1 || lost == 1 {
					if c := create(t, again, "ccc"); c.ID == a.ID || c.ID == 0 {
						t.Fatalf("a bucket id was used again: %d", c.ID)
					}
				}
			}))
		}
	}
}

func TestChangesWithoutAQuorumAreUnavailableAndReadsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kvs := mem(4)
		k := openTest(t, true, kvs...)
		create(t, k, "aaa")
		k.DriveLost(1)
		create(t, k, "bbb")
		k.DriveLost(2)
		if _, err := k.CreateBucket(context.Background(), Bucket{Name: "ccc"}); !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Unknown) {
			t.Fatalf("got %v, want Unavailable or Unknown", err)
		}
		if err := k.Refresh(context.Background()); !errs.Is(err, errs.Unavailable) {
			t.Fatalf("Refresh: got %v, want Unavailable", err)
		}
		if _, ok := k.State().Bucket("bbb"); !ok {
			t.Fatal("bbb is not there")
		}
		k.DriveReturned(DriveStore{1, kvs[0]})
		create(t, k, "ddd")
		k.DriveReturned(DriveStore{2, kvs[1]})
		if err := k.Refresh(context.Background()); err != nil {
			t.Fatal(err)
		}
		for i, kv := range kvs {
			s, err := readCopy(kv)
			if err != nil || s == nil {
				t.Fatalf("copy %d: %v", i, err)
			}
			if _, ok := s.Bucket("ddd"); !ok {
				t.Errorf("the copy of drive %d lacks ddd", i+1)
			}
		}
	})
}

func TestOfConcurrentCreationsOfOneNameExactlyOneWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := openTest(t, true, mem(3)...)
		var wg sync.WaitGroup
		var mu sync.Mutex
		won, lost := 0, 0
		for range 16 {
			wg.Go(func() {
				_, err := k.CreateBucket(context.Background(), Bucket{Name: "one", Owner: "a"})
				mu.Lock()
				defer mu.Unlock()
				switch was, exists := ExistingBucket(err); {
				case err == nil:
					won++
				case exists && was.Name == "one" && errs.Is(err, errs.Exists):
					lost++
				default:
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		if won != 1 || lost != 15 {
			t.Fatalf("%d won, %d lost", won, lost)
		}
	})
}

func TestDeletionPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		k := openTest(t, true, mem(1)...)
		b := create(t, k, "aaa")
		epoch, err := k.BeginDeleteBucket(ctx, b.ID)
		if err != nil || epoch != b.Epoch+1 {
			t.Fatalf("epoch %d, %v", epoch, err)
		}
		if err := k.ReopenBucket(ctx, b.ID, epoch); err != nil {
			t.Fatal(err)
		}
		if err := k.FinishDeleteBucket(ctx, b.ID, epoch); !errs.Is(err, errs.Stale) {
			t.Fatalf("finish after reopen: %v, want Stale", err)
		}
		if epoch, err = k.BeginDeleteBucket(ctx, b.ID); err != nil || epoch != b.Epoch+3 {
			t.Fatalf("second deletion: epoch %d, %v", epoch, err)
		}
		if err := k.FinishDeleteBucket(ctx, b.ID, epoch); err != nil {
			t.Fatal(err)
		}
		if err := k.FinishDeleteBucket(ctx, b.ID, epoch); !errs.Is(err, errs.NotFound) {
			t.Fatalf("second finish: %v, want NotFound", err)
		}
		if again := create(t, k, "aaa"); again.ID == b.ID {
			t.Fatal("the id was used again")
		}
	})
}

// A drive that fails at its i-th write, for every i until a run does without, neither stops the
// process nor loses what was answered.
func TestADriveThatFailsAtAnyWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { failAtAnyWrite(t) })
}

func failAtAnyWrite(t *testing.T) {
	for i := 0; ; i++ {
		kvs := mem(3)
		k := openTest(t, true, kvs...)
		kvs[0].mu.Lock()
		kvs[0].left = i
		kvs[0].mu.Unlock()
		var done []string
		for n := range 3 {
			name := fmt.Sprint("bucket-", n)
			_, err := k.CreateBucket(context.Background(), Bucket{Name: name})
			if err == nil {
				done = append(done, name)
			} else if !errs.Is(err, errs.Unknown) && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Exists) {
				t.Fatalf("write %d: %v", i, err)
			}
		}
		if len(done) < 2 {
			t.Fatalf("write %d: only %v were made over the loss of one drive of three", i, done)
		}
		kvs[0].mu.Lock()
		spare := kvs[0].left
		kvs[0].mu.Unlock()
		k.Close()
		again := openTest(t, false, nil, kvs[1].crash(), kvs[2].crash())
		for _, name := range done {
			if _, ok := again.State().Bucket(name); !ok {
				t.Fatalf("write %d: %s was answered and is lost", i, name)
			}
		}
		again.Close()
		if spare > 0 {
			return
		}
		if i > 200 {
			t.Fatal("no run without a failure")
		}
	}
}

func TestDamagedRowsAreFoundAndLeftOut(t *testing.T) {
	kvs := mem(3)
	k := openTest(t, true, kvs...)
	create(t, k, "aaa")
	k.Close()
	for key, v := range kvs[0].rows {
		for _, at := range []int{0, len(v) / 2, len(v) - 1} {
			bad := kvs[0].crash()
			bad.rows[key][at] ^= 0x40
			again := openTest(t, false, bad, kvs[1].crash(), kvs[2].crash())
			if _, ok := again.State().Bucket("aaa"); !ok {
				t.Fatalf("row %q byte %d: the bucket is gone", key, at)
			}
			again.Close()
		}
	}
}

func TestManyBucketsAndCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kvs := mem(1)
		k := openTest(t, true, kvs...)
		const n = 600
		for i := range n {
			create(t, k, fmt.Sprintf("b-%04d", n-i))
		}
		k.Close()
		again := openTest(t, false, kvs[0].crash())
		list := again.State().Buckets()
		if len(list) != n || !slices.IsSortedFunc(list, func(a, b Bucket) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) }) {
			t.Fatalf("%d buckets, sorted or not", len(list))
		}
	})
}

func TestCommandsRoundTripAndRefuseUnknownFields(t *testing.T) {
	l := testLayout(t, 4)
	for _, c := range []command{
		{op: opInit, cluster: [16]byte{1}, layout: l, account: Account{"x", "y"}, key: testKey},
		{op: opCreateBucket, bucket: Bucket{Name: "n", Owner: "o", Region: "r", Created: 7, ObjectLock: true, Config: map[string][]byte{"p": []byte("v")}}},
		{op: opSetConfig, id: 3, document: "cors", value: []byte{}},
		{op: opFinishDelete, id: 4, epoch: 5},
		{op: opBeginReplace, old: 3, drive: placement.Drive{ID: [16]byte{1}, Node: [16]byte{2}, Zone: "z", Capacity: 1 << 40, Class: "c"}, path: "/d", time: 9},
		{op: opPublishSwap, id: 4, term: 5, partitions: []uint32{0, 65535, 1}},
		{op: opSetSettings, settings: Settings{true, true, 1 << 60, time.Hour}},
		{op: opPutNode, node: testNode(3, "z"), time: 4, change: changeID{7}},
		{op: opAddDrives, node: Node{ID: disk.ID{3}}, drives: []placement.Drive{newDrive(1), newDrive(2)}},
		{op: opPutTrust, value: []byte("opaque"), epoch: 3},
	} {
		b := c.encode()
		got, err := decodeCommand(b)
		if err != nil || !bytes.Equal(got.encode(), b) {
			t.Errorf("op %d: %v", c.op, err)
		}
		if (got.value == nil) != (c.value == nil) {
			t.Errorf("op %d: a nil value and an empty one are mixed up", c.op)
		}
		if _, err := decodeCommand(putUint(b, 999, 1)); !errs.Is(err, errs.Unsupported) {
			t.Errorf("unknown mandatory field: %v", err)
		}
		if _, err := decodeCommand(putUint(b, 1000, 1)); err != nil {
			t.Errorf("unknown optional field: %v", err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add((&command{op: opSetConfig, id: 3, document: "cors", value: []byte("x")}).encode())
	f.Add(emptyState().encode())
	f.Add((&command{op: opBeginReplace, old: 1, drive: newDrive(1), path: "/p", time: 3}).encode())
	f.Add((&command{op: opPublishSwap, id: 1, term: 1, partitions: []uint32{1, 2, 3}}).encode())
	f.Add((&command{op: opSetSettings, settings: Settings{HealPaused: true, HealRate: 5, ScrubPeriod: 7}}).encode())
	made, _ := emptyState().apply(1, &command{op: opInit, layout: testLayout(f, 3), account: Account{"a", "b"}, key: testKey})
	made, _ = made.apply(2, &command{op: opBeginReplace, old: 2, drive: newDrive(1), path: "/p", time: 3})
	f.Add(made.encode())
	made, _ = made.applyOnce(3, &command{op: opBecomeCluster, node: testNode(1, "z"), change: changeID{1}})
	made, _ = made.applyOnce(4, &command{op: opAddDrives, node: testNode(1, ""), drives: []placement.Drive{newDrive(9)}, change: changeID{2}})
	made, _ = made.applyOnce(5, &command{op: opPutTrust, value: []byte("t"), change: changeID{3}})
	f.Add(made.encode())
	f.Add((&command{op: opLayOut, layout: testLayout(f, 3)}).encode())
	f.Add([]byte("\b\x1d")) // a layout is laid out, and none is given
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeCommand(b); err == nil && c.op != opInit {
			if _, err := decodeCommand(c.encode()); err != nil {
				t.Errorf("what was decoded does not decode again: %v", err)
			}
			if s, _ := made.applyOnce(made.Applied+1, c); s == nil { // whoever sent it
				t.Error("nil state")
			}
		} else if err != nil && !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Unsupported) && !errs.Is(err, errs.Invalid) {
			t.Errorf("kind %v", errs.KindOf(err))
		}
		if s, err := decodeState(b); err == nil {
			if _, err := decodeState(s.encode()); err != nil {
				t.Errorf("state: %v", err)
			}
			// Whatever was decoded can be applied to.
			for op := opBeginReplace; op <= opPutTrust; op++ {
				for id := range uint64(3) {
					s, _ = s.applyOnce(s.Applied+1, &command{op: op, id: id, old: uint16(id), drive: newDrive(id), partitions: []uint32{0, 1 << 15},
						node: testNode(byte(id+1), "z"), drives: []placement.Drive{newDrive(id)}, change: changeID{byte(op), byte(id)}})
				}
			}
			if _, err := decodeState(s.encode()); err != nil {
				t.Errorf("state after commands: %v", err)
			}
		}
		if l, err := decodeLog(b); err == nil && l == nil {
			t.Error(errors.New("nil log"))
		}
		if m, _, err := decodeSnapshot(b); err == nil && m == nil {
			t.Error("nil snapshot")
		}
	})
}
