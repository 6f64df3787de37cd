package metadata

import (
	"context"
	"testing"
	"time"

	"github.com/ostraka/ostraka/erasure"
)

// markKV counts the reads of marks.
type markKV struct {
	*memKV
	reads int
}

func (k *markKV) Get(key []byte) ([]byte, error) {
	if key[0] == nsUnsettled {
		k.reads++
	}
	return k.memKV.Get(key)
}

// markWorld is one drive, and one register that is written on it.
type markWorld struct {
	t    *testing.T
	kv   *markKV
	a    *Acceptor
	now  time.Time
	addr Address
	last *State
}

func newMarkWorld(t *testing.T, a Address) *markWorld {
	w := &markWorld{t: t, kv: &markKV{memKV: new(memKV)}, now: time.Unix(1000, 0), addr: a}
	w.boot()
	return w
}

func (w *markWorld) boot() {
	var err error
	w.a, err = NewAcceptor(AcceptorConfig{KV: w.kv, Epoch: func(uint32) (uint64, bool) { return 1, true }, Now: func() time.Time { return w.now }})
	must(w.t, err)
}

func (w *markWorld) header() Header { return Header{Epoch: 1, BucketEpoch: 1} }

// accept writes a body under ballot n: as a new version above the current one, or in its place.
func (w *markWorld) accept(n uint64, versioned bool) {
	w.t.Helper()
	b := Ballot{n, 1}
	s := &State{ID: b, NextSeq: n + 1, Current: &Version{Kind: VersionObject, Seq: n, ID: VersionID{15: byte(n)},
		Data: &Data{ID: erasure.DataID{15: byte(n)}, Profile: erasure.Profile{Data: 1}, Size: 1}, Size: 1}}
	if w.last != nil {
		s.Prev, s.Index, s.Older = w.last.ID, w.last.Index+1, w.last.Older
		switch {
		case versioned:
			s.Older++
			s.Delta.Put = []Version{*w.last.Current}
		case w.addr.Kind == KindPart:
			s.Dead = append(s.Dead, DeadData{Data: *w.last.Current.Data})
		}
	}
	r, err := w.a.Accept(context.Background(), &AcceptRequest{Header: w.header(), Address: w.addr, Ballot: b, State: *s})
	must(w.t, err)
	if !r.Accepted {
		w.t.Fatalf("ballot %d: %+v", n, r)
	}
	w.last = s
}

func (w *markWorld) settle(n uint64) {
	w.t.Helper()
	must(w.t, w.a.Decide(context.Background(), []Decision{{Header: w.header(), Address: w.addr, Ballot: Ballot{n, 1}, Settled: true}}))
}

// marked returns since when the register is marked; 0: it is not.
func (w *markWorld) marked() int64 {
	w.t.Helper()
	list, err := w.a.Unsettled(nil, 0)
	must(w.t, err)
	if len(list) == 0 {
		return 0
	}
	return list[0].Since
}

func TestUnsettledVersionIsRememberedWhenTheNextIsSettled(t *testing.T) {
	for name, restart := range map[string]bool{"running": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) {
			w := newMarkWorld(t, addr("k"))
			w.accept(1, true)
			since := w.marked()
			w.now = w.now.Add(time.Minute)
			w.accept(2, true)
			if restart {
				w.boot()
			}
			w.settle(2)
			if got := w.marked(); got != since {
				t.Fatalf("marked since %d, want %d", got, since)
			}
			w.accept(3, true)
			w.settle(3)
			must(t, w.a.ClearUnsettled(UnsettledRow{Address: w.addr, State: Ballot{2, 1}}))
			if got := w.marked(); got != since {
				t.Fatalf("a repair of another state: marked since %d, want %d", got, since)
			}
			must(t, w.a.ClearUnsettled(UnsettledRow{Address: w.addr, State: Ballot{3, 1}}))
			if got := w.marked(); got != 0 {
				t.Fatalf("after its repair: marked since %d", got)
			}
		})
	}
}

func TestRepairOfTheStateLeavesTheMarkOfItsRow(t *testing.T) {
	w := newMarkWorld(t, addr("k"))
	w.accept(1, true)
	w.now = w.now.Add(time.Minute)
	w.accept(2, true)
	must(t, w.a.ClearUnsettled(UnsettledRow{Address: w.addr, State: Ballot{2, 1}}))
	if got := w.marked(); got != w.now.UnixNano() {
		t.Fatalf("marked since %d, want that of the row", got)
	}
	w.settle(2)
	if got := w.marked(); got != 0 {
		t.Fatalf("marked since %d", got)
	}
}

func TestDecisionThatComesAfterTheNextAcceptSettles(t *testing.T) {
	for name, order := range map[string][]uint64{"oldest first": {1, 2, 3}, "newest first": {3, 2, 1}} {
		t.Run(name, func(t *testing.T) {
			w := newMarkWorld(t, addr("k"))
			for n := range uint64(3) {
				w.accept(n+1, true)
			}
			for i, n := range order {
				if w.marked() == 0 {
					t.Fatalf("settled by %v", order[:i])
				}
				w.settle(n)
			}
			if got := w.marked(); got != 0 {
				t.Fatalf("marked since %d", got)
			}
		})
	}
}

func TestReplacedPartThatIsNotSettledIsRemembered(t *testing.T) {
	w := newMarkWorld(t, Address{Kind: KindPart, Bucket: 7, Key: []byte("k"), Upload: UploadID{1}, Part: 1})
	w.accept(1, false)
	w.accept(2, false)
	w.settle(2)
	if w.marked() == 0 {
		t.Fatal("the body on the dead list is forgotten")
	}
	w.settle(1)
	if got := w.marked(); got != 0 {
		t.Fatalf("marked since %d", got)
	}
}

func TestUnversionedOverwriteReadsNoMark(t *testing.T) {
	w := newMarkWorld(t, addr("k"))
	w.accept(1, false)
	w.accept(2, false)
	w.settle(1)
	w.settle(2)
	if got := w.marked(); got != 0 || w.kv.reads != 0 {
		t.Fatalf("marked since %d, after %d reads of marks", got, w.kv.reads)
	}
}

func TestMarkThatInheritsTooMuchIsLeftToRepair(t *testing.T) {
	w := newMarkWorld(t, addr("k"))
	const n = maxInherited + 5
	for i := range uint64(n) {
		w.accept(i+1, true)
	}
	since := w.marked()
	for i := range uint64(n) {
		w.settle(i + 1)
	}
	if got := w.marked(); got != since {
		t.Fatalf("marked since %d, want %d", got, since)
	}
	must(t, w.a.ClearUnsettled(UnsettledRow{Address: w.addr, State: Ballot{n, 1}}))
	if got := w.marked(); got != 0 {
		t.Fatalf("marked since %d", got)
	}
}
