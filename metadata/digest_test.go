package metadata

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/ostraka/ostraka/placement"
)

// naiveDigests computes the digests from the rows that the store has.
func naiveDigests(t *testing.T, kv *memKV) []Digest {
	t.Helper()
	list := make([]Digest, placement.Slices)
	for _, p := range kv.live {
		if p.k[0] != nsHead {
			continue
		}
		row, err := decodeRow(p.k, p.v)
		must(t, err)
		a, _, err := cutAddress(p.k[1:])
		must(t, err)
		in := append([]byte{}, p.k...)
		for _, v := range []uint64{row.State.ID.Counter, row.State.ID.Proposer} {
			for i := 7; i >= 0; i-- {
				in = append(in, byte(v>>(8*i)))
			}
		}
		sum := xxh3.Hash128(in).Bytes()
		for i := range sum {
			list[placement.Slice(a.Bucket, a.Key)][i] ^= sum[i]
		}
	}
	return list
}

// Random accepts, installs, drops, transfers and crashes; after each step the digests are those of the rows.
func TestDigestsAreThoseOfTheRows(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	kv := new(memKV)
	now := time.Unix(1000, 0)
	var d *Acceptor
	boot := func() {
		var err error
		d, err = NewAcceptor(AcceptorConfig{KV: kv, Shards: newMemShards(), Epoch: func(uint32) (uint64, bool) { return 1, true },
			Now: func() time.Time { return now }, stripes: 3})
		must(t, err)
	}
	boot()
	ctx := t.Context()
	ballot, done := Ballot{1, 1}, 0
	for step := range 3000 {
		ballot.Counter += 1 + rng.Uint64N(3)
		a := addr(fmt.Sprint("k", rng.IntN(12)))
		h := Header{Partition: 1, Epoch: 1}
		row, err := d.row(headKey(&a))
		must(t, err)
		s := State{ID: ballot, NextSeq: 1}
		if row != nil && rng.IntN(3) > 0 {
			s.Prev = row.State.ID
		}
		if rng.IntN(20) == 0 {
			kv.fail = 1 + rng.IntN(4)
		}
		switch rng.IntN(7) {
		case 0, 1, 2:
			r, err := d.Accept(ctx, &AcceptRequest{Header: h, Address: a, Ballot: ballot, State: s})
			if err == nil && r.Accepted {
				done++
			}
		case 3:
			_ = d.Install(ctx, &InstallRequest{Header: h, Address: a, Row: Row{Ballot: ballot, State: s}})
		case 4:
			if row != nil {
				_ = d.Decide(ctx, []Decision{{Header: h, Address: a, Ballot: row.Ballot}})
				_ = d.Drop(ctx, &DropRequest{Header: h, Address: a, Ballot: row.Ballot})
			}
		case 5:
			other := addr(fmt.Sprint("t", rng.IntN(6)))
			wedge := &WedgeRequest{Transition: 1, Term: uint64(step + 1), Floor: ballot, Partitions: []uint32{2}, Epochs: []uint64{1}}
			if r, err := d.Wedge(ctx, wedge); err == nil && r.Done && len(r.Refused) == 0 {
				s.Prev = Ballot{}
				_, _ = d.Transfer(ctx, &TransferRequest{Transition: 1, Term: uint64(step + 1), Floor: ballot,
					Rows: []TransferRow{{Address: other, Partition: 2, Decided: rng.IntN(2) == 0, State: s}}})
			}
		case 6:
			kv.fail = 0
			kv.crash(rng.IntN(3))
			boot()
		}
		kv.fail = 0
		got, err := d.Digests(ctx)
		must(t, err)
		for i, want := range naiveDigests(t, kv) {
			if got[i] != want {
				t.Fatalf("seed %d, step %d: slice %d has %x, want %x", seed, step, i, got[i], want)
			}
		}
	}
	if done < 100 {
		t.Fatalf("only %d accepts", done)
	}
}

// A store that was written before there were digests gets them when it is opened.
func TestAStoreWithoutDigestsGetsThem(t *testing.T) {
	w := newMarkWorld(t, addr("k"))
	for i := range 300 {
		w.addr, w.last = addr(fmt.Sprint("k", i)), nil
		w.accept(uint64(10+i), false)
	}
	want, err := w.a.Digests(t.Context())
	must(t, err)
	var b Batch
	b.DeleteRange([]byte{nsDigest}, []byte{nsDigest + 1})
	must(t, w.kv.Apply(&b, true))
	key := digestKey(7) // left behind by a scan that was cut short
	b = Batch{}
	b.Set(key, sealValue(key, append([]byte{rowFormat}, make([]byte, 16)...)))
	must(t, w.kv.Apply(&b, true))
	for range 2 {
		w.boot()
		got, err := w.a.Digests(t.Context())
		must(t, err)
		n := 0
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("slice %d has %x, want %x", i, got[i], want[i])
			}
			if want[i] != (Digest{}) {
				n++
			}
		}
		if n < 250 {
			t.Fatalf("%d slices of 300 keys", n)
		}
	}
}

// Rows pages through all registers, or those of some slices, or those with a mark.
func TestRowsPagesThroughRegisters(t *testing.T) {
	w := newMarkWorld(t, addr("k"))
	all := map[string]bool{}
	for i := range 200 {
		w.addr, w.last = addr(fmt.Sprint("k", i)), nil
		w.accept(uint64(10+i), false)
		all[string(w.addr.Key)] = true
		if i%2 == 0 {
			must(t, w.a.Decide(t.Context(), []Decision{{Header: w.header(), Address: w.addr, Ballot: Ballot{uint64(10 + i), 1}, Settled: true}}))
		}
	}
	few := []uint16{}
	for s := range uint16(placement.Slices) {
		if s%3 == 0 {
			few = append(few, s)
		}
	}
	for name, m := range map[string]*RowsRequest{"all": {Limit: 7}, "some slices": {Slices: few, Limit: 7}, "marked": {Marked: true, Limit: 7}} {
		got := map[string]bool{}
		for pages := 0; ; pages++ {
			r, err := w.a.Rows(t.Context(), m)
			must(t, err)
			for _, row := range r.Rows {
				key := string(row.Address.Key)
				if got[key] || row.Row == nil || row.Row.Undo != nil || row.Unsettled == row.Row.Decided {
					t.Fatalf("%s: %q came as %+v", name, key, row)
				}
				got[key] = true
			}
			if !r.More {
				break
			}
			next := *m
			next.After = r.Next
			m = &next
			if pages > 300 {
				t.Fatalf("%s: no end", name)
			}
		}
		want := 0
		for key := range all {
			ok := true
			switch name {
			case "some slices":
				ok = placement.Slice(7, []byte(key))%3 == 0
			case "marked":
				var i int
				_, _ = fmt.Sscanf(key, "k%d", &i)
				ok = i%2 == 1
			}
			if ok {
				want++
			}
			if ok != got[key] {
				t.Errorf("%s: %q is there: %v, want %v", name, key, got[key], ok)
			}
		}
		if want == 0 || want == len(all) && name != "all" {
			t.Fatalf("%s: %d of %d keys match", name, want, len(all))
		}
	}
}
