package trust

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Whoever adopts a revocation cuts what stands, at the end that was called and at the end that called.
func TestARevocationCutsTheConnectionsThatStand(t *testing.T) {
	for name, adopts := range map[string]int{"the end that was called": 0, "the end that called": 1} {
		t.Run(name, func(t *testing.T) {
			s, c := newState(t), newClock()
			other := [16]byte{77}
			ms := []*Manager{manager(t, Config{Node: nodeA, State: s, Now: c.now}), manager(t, Config{Node: nodeB, State: s, Now: c.now})}
			a, b := ms[0], ms[1]
			third := manager(t, Config{Node: other, State: s, Now: c.now})
			addr := serve(t, a, map[string]Handler{testProtocol: echo})
			aside := must(third.Dial(bounded(t), addr, nodeA, testProtocol))(t)
			defer aside.Close()
			must(hears(aside))(t)
			conn := must(b.Dial(bounded(t), addr, nodeA, testProtocol))(t)
			defer conn.Close()
			must(hears(conn))(t)
			closed := must(b.Dial(bounded(t), addr, nodeA, testProtocol))(t)
			must(hears(closed))(t)
			closed.Close()
			revoked := [2][16]byte{nodeB, nodeA}[adopts]
			next := must(s.Revoke(revoked, c.now()))(t)
			if err := ms[adopts].Adopt(next); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection stands")
			}
			if adopts == 0 {
				if err := says(aside, "still here"); err != nil {
					t.Errorf("the connection of another node broke: %v", err)
				}
			}
			if adopts == 1 {
				_, err := b.Dial(bounded(t), addr, nodeA, testProtocol)
				wantKind(t, err, errs.Denied)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if n := len(b.standing); n > 1 {
				t.Errorf("%d connections are remembered", n)
			}
		})
	}
}

// Who was removed knows the key of the gossip: it is replaced at once, and once more if it was replaced already
// when the node left.
func TestTheGossipKeyIsReplacedAfterARevocation(t *testing.T) {
	now := start
	for name, begun := range map[string]int{"settled": 0, "introduced": 1, "switched": 2} {
		for _, skew := range []time.Duration{0, -5 * time.Hour, 5 * time.Hour} {
			s := newState(t)
			step := func() {
				t.Helper()
				now = now.Add(time.Second)
				s = must(s.AdvanceGossip(now, true))(t)
			}
			for range begun {
				step()
			}
			knows := map[string]bool{}
			for _, k := range s.GossipKeys() {
				knows[string(k)] = true
			}
			s = must(s.Revoke(nodeB, now.Add(skew)))(t)
			steps := 0
			for {
				phase, _ := s.Gossip()
				if _, due := s.Due(now); phase == Settled && !due {
					break
				}
				if step(); steps > 12 {
					t.Fatalf("%s, skew %v: the key is replaced for ever", name, skew)
				}
				steps++
			}
			keys := s.GossipKeys()
			if len(keys) != 1 || knows[string(keys[0])] {
				t.Errorf("%s, skew %v: after %d steps the node that was removed knows the key", name, skew, steps)
			}
			if want := map[string]int{"settled": 3, "introduced": 2, "switched": 4}[name]; steps != want {
				t.Errorf("%s, skew %v: %d steps, want %d", name, skew, steps, want)
			}
			if back := must(Decode(s.AppendTo(nil)))(t); back.Number() != s.Number() {
				t.Error("the state does not come back")
			}
		}
	}
}
