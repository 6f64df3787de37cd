package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

func newDrive(n uint64) placement.Drive {
	var d placement.Drive
	binary.BigEndian.PutUint64(d.ID[8:], n)
	d.ID[0] = 0xee
	return d
}

// history is what a state has seen, kept without regard to cost: the oracle of the test below.
type history struct {
	rows    [][]uint16
	epochs  []uint64
	drives  map[uint16]bool
	retired map[uint16]bool
	top     uint16
	open    []Replacement
	begun   uint64
}

func newHistory(l *placement.Layout) *history {
	h := &history{drives: map[uint16]bool{}, retired: map[uint16]bool{}}
	for p := range l.Partitions() {
		h.rows = append(h.rows, slices.Clone(l.Group(p).Drives))
		h.epochs = append(h.epochs, l.Group(p).Epoch)
	}
	for _, d := range l.Drives() {
		h.drives[d.Num], h.top = true, max(h.top, d.Num)
	}
	return h
}

func (h *history) begin(old uint16, id [16]byte) (kind errs.Kind, ok bool) {
	for _, r := range h.open {
		if r.Old == old {
			return errs.Exists, r.NewID == id
		}
	}
	if !h.drives[old] {
		return errs.NotFound, false
	}
	if h.retired[old] {
		return errs.Invalid, false
	}
	h.top++
	h.begun++
	h.drives[h.top], h.retired[old] = true, true
	var left []Replacement
	for _, r := range h.open {
		if r.New == old {
			if r.Phase == Shards {
				continue
			}
			r.New, r.NewID, r.Term = h.top, id, r.Term+1
		}
		left = append(left, r)
	}
	h.open = append(left, Replacement{ID: h.begun, Old: old, New: h.top, NewID: id})
	return 0, true
}

func (h *history) find(id uint64) *Replacement {
	for i := range h.open {
		if h.open[i].ID == id {
			return &h.open[i]
		}
	}
	return nil
}

func (h *history) swap(r *Replacement, list []uint32) bool {
	for _, p := range list {
		if !slices.Contains(h.rows[p], r.Old) && !slices.Contains(h.rows[p], r.New) {
			return false
		}
	}
	for _, p := range list {
		if i := slices.Index(h.rows[p], r.Old); i >= 0 {
			h.rows[p][i] = r.New
			h.epochs[p]++
		}
	}
	return true
}

func (h *history) holds(num uint16) bool {
	return slices.ContainsFunc(h.rows, func(row []uint16) bool { return slices.Contains(row, num) })
}

func (h *history) check(t *testing.T, name string, s *State) {
	t.Helper()
	l := s.Layout()
	for p, row := range h.rows {
		if g := l.Group(uint32(p)); !slices.Equal(g.Drives, row) || g.Epoch != h.epochs[p] {
			t.Fatalf("%s: partition %d is %v in epoch %d, want %v in %d", name, p, g.Drives, g.Epoch, row, h.epochs[p])
		}
	}
	for num := range h.top + 2 {
		if _, ok := l.Drive(num); ok != h.drives[num] || s.Retired(num) != h.retired[num] {
			t.Fatalf("%s: drive %d: in the layout %v, retired %v; want %v, %v", name, num, ok, s.Retired(num), h.drives[num], h.retired[num])
		}
	}
	got := slices.Clone(s.Replacements())
	for i := range got {
		got[i].Begun, got[i].Path = 0, ""
	}
	if len(got)+len(h.open) > 0 && !reflect.DeepEqual(got, h.open) {
		t.Fatalf("%s: replacements\ngot  %+v\nwant %+v", name, got, h.open)
	}
}

// Random commands, repeated ones and wrong ones among them, against the oracle; each through its
// encoding, and the state through its own now and then.
func TestRandomReplacementsAgreeWithTheModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	seen := map[string]int{}
	for range 40 {
		n := 1 + rnd.IntN(6)
		s, _ := emptyState().apply(1, &command{op: opInit, layout: testLayout(t, n)})
		h := newHistory(s.Layout())
		ids := uint64(0)
		var settings Settings
		for step := range 120 {
			c := &command{op: opBeginReplace + opCode(rnd.IntN(6))}
			if c.op == opBeginReplace && len(h.open) > 2 {
				c.op = opPublishSwap
			}
			c.id = uint64(rnd.IntN(int(h.begun) + 2))
			if len(h.open) > 0 && rnd.IntN(4) > 0 {
				c.id = h.open[rnd.IntN(len(h.open))].ID
			}
			r := h.find(c.id)
			if r != nil {
				c.term = r.Term
			}
			if rnd.IntN(8) == 0 {
				c.term += uint64(rnd.IntN(3)) - 1
			}
			name := fmt.Sprintf("seed %d, step %d, op %d", seed, step, c.op)
			var want errs.Kind
			ok := true
			switch {
			case c.op == opSetSettings:
				settings = Settings{rnd.IntN(2) == 0, rnd.IntN(2) == 0, rnd.Uint64N(9), time.Duration(rnd.IntN(9))}
				c.settings = settings
			case c.op == opBeginReplace:
				c.old, c.path, c.time = uint16(rnd.IntN(int(h.top)+2)), "/p", 7
				ids++
				c.drive = newDrive(ids)
				if len(h.open) > 0 && rnd.IntN(3) == 0 { // said again
					again := h.open[rnd.IntN(len(h.open))]
					c.old, c.drive.ID = again.Old, again.NewID
				}
				want, ok = h.begin(c.old, c.drive.ID)
			case r == nil:
				want = errs.NotFound
				ok = c.op == opFinishReplace && c.id > 0 && c.id <= h.begun
			case c.op != opTakeOver && c.term != r.Term:
				want, ok = errs.Stale, false
			case c.op == opTakeOver:
				r.Term++
			case c.op == opPublishSwap:
				for p := range h.rows {
					if slices.Contains(h.rows[p], r.Old) && rnd.IntN(2) == 0 || slices.Contains(h.rows[p], r.New) && rnd.IntN(4) == 0 || rnd.IntN(2000) == 0 {
						c.partitions = append(c.partitions, uint32(p))
					}
				}
				want, ok = errs.Invalid, h.swap(r, c.partitions)
			case c.op == opFinishMembership:
				if want, ok = errs.Invalid, !h.holds(r.Old); ok {
					delete(h.drives, r.Old)
					r.Phase = Shards
				}
			case c.op == opFinishReplace:
				if want, ok = errs.Invalid, r.Phase == Shards; ok {
					h.open = slices.DeleteFunc(h.open, func(x Replacement) bool { return x.ID == c.id })
				}
			}
			raw := c.encode()
			back, err := decodeCommand(raw)
			if err != nil || !bytes.Equal(back.encode(), raw) {
				t.Fatalf("%s: the command does not come back: %v", name, err)
			}
			next, result := s.apply(s.Applied+1, back)
			twin, _ := s.apply(s.Applied+1, c)
			if !bytes.Equal(twin.encode(), next.encode()) {
				t.Fatalf("%s: applied twice to one state, it gave two", name)
			}
			failed, _ := result.(error)
			if ok && failed != nil || !ok && !errs.Is(failed, want) {
				t.Fatalf("%s: %+v: got %v; want success %v, else %v", name, c, failed, ok, want)
			}
			seen[fmt.Sprint(c.op, " ", failed == nil)]++
			s = next
			if rnd.IntN(5) == 0 {
				if s, err = decodeState(next.encode()); err != nil || !bytes.Equal(s.encode(), next.encode()) {
					t.Fatalf("%s: the state does not come back: %v", name, err)
				}
			}
			h.check(t, name, s)
			if s.Settings() != settings {
				t.Fatalf("%s: settings %+v, want %+v", name, s.Settings(), settings)
			}
		}
	}
	for op := opBeginReplace; op <= opFinishReplace; op++ {
		if seen[fmt.Sprint(op, " true")] < 20 || op != opTakeOver && seen[fmt.Sprint(op, " false")] < 20 {
			t.Errorf("seed %d: op %d was hardly tried: %v", seed, op, seen)
		}
	}
}

// A state of a build that knew no replacements is read, and a state without any is still read by it.
func TestStatesWithoutReplacementsAreAsTheyWere(t *testing.T) {
	s, _ := emptyState().apply(1, &command{op: opInit, layout: testLayout(t, 4), account: Account{"a", "b"}, key: testKey})
	err := fields(s.encode(), func(f field) (bool, error) { return f.num <= 8, nil })
	if err != nil {
		t.Errorf("an earlier version refuses the state: %v", err)
	}
	for _, b := range [][]byte{
		putUint(nil, 9, 1), putBytes(nil, 9, []byte{3, 2}), putBytes(nil, 11, appendReplacement(nil, &Replacement{ID: 1})),
		putBytes(putUint(nil, 10, 5), 11, putUint(nil, 7, 9)), putBytes(nil, 12, putUint(nil, 4, 1<<63)),
	} {
		if _, err := decodeState(b); !errs.Is(err, errs.Corrupt) && len(b) > 2 {
			t.Errorf("%x: got %v, want Corrupt", b, err)
		}
	}
}

func TestAReplacementFromItsBeginningToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		k := openOn(t, newMemKV(), newMemKV(), newMemKV(), newMemKV())
		defer k.Close()
		r, err := k.BeginReplace(ctx, 2, newDrive(1), "/mnt/e")
		if err != nil || r.ID != 1 || r.Old != 2 || r.New != 5 || r.Path != "/mnt/e" || r.NewID != newDrive(1).ID || r.Begun == 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		if again, err := k.BeginReplace(ctx, 2, newDrive(1), "/mnt/e"); err != nil || again != r {
			t.Errorf("said again: %+v, %v", again, err)
		}
		if other, err := k.BeginReplace(ctx, 2, newDrive(2), "/mnt/f"); !errs.Is(err, errs.Exists) || other != r {
			t.Errorf("another newcomer: %+v, %v; want Exists and the one that is there", other, err)
		}
		if _, err := k.BeginReplace(ctx, 9, newDrive(3), "/mnt/f"); !errs.Is(err, errs.NotFound) {
			t.Errorf("a drive that is not there: %v, want NotFound", err)
		}
		first, err := k.TakeOver(ctx, r.ID)
		if err != nil || first.Term != 1 {
			t.Fatalf("%+v, %v", first, err)
		}
		second, err := k.TakeOver(ctx, r.ID)
		if err != nil || second.Term != 2 {
			t.Fatalf("%+v, %v", second, err)
		}
		all := k.State().Layout().PartitionsOf(2)
		if err := k.PublishSwap(ctx, r.ID, first.Term, all[:3]); !errs.Is(err, errs.Stale) {
			t.Errorf("a mover of an earlier term: %v, want Stale", err)
		}
		if err := k.PublishSwap(ctx, r.ID, second.Term, all[:3]); err != nil {
			t.Fatal(err)
		}
		number := k.State().Layout().Number()
		if err := k.PublishSwap(ctx, r.ID, second.Term, all[:3]); err != nil || k.State().Layout().Number() != number {
			t.Errorf("said again: %v, number %d after %d", err, k.State().Layout().Number(), number)
		}
		if err := k.FinishMembership(ctx, r.ID, second.Term); !errs.Is(err, errs.Invalid) {
			t.Errorf("finished while it is a member: %v, want Invalid", err)
		}
		if err := k.PublishSwap(ctx, r.ID, second.Term, all); err != nil { // those of before among them
			t.Fatal(err)
		}
		if err := k.FinishReplace(ctx, r.ID, second.Term); !errs.Is(err, errs.Invalid) {
			t.Errorf("ended before its time: %v, want Invalid", err)
		}
		for range 2 {
			if err := k.FinishMembership(ctx, r.ID, second.Term); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := k.State().Layout().Drive(2); ok || k.State().Replacements()[0].Phase != Shards {
			t.Errorf("drive 2 is in the layout: %v; %+v", ok, k.State().Replacements())
		}
		for range 2 {
			if err := k.FinishReplace(ctx, r.ID, second.Term); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(k.State().Replacements()); n != 0 || !k.State().Retired(2) {
			t.Errorf("%d replacements, retired %v", n, k.State().Retired(2))
		}
		want := Settings{HealPaused: true, HealRate: 1 << 20, ScrubPeriod: time.Hour}
		if err := k.SetSettings(ctx, want); err != nil || k.State().Settings() != want {
			t.Errorf("settings %+v, %v", k.State().Settings(), err)
		}
		if err := k.SetSettings(ctx, Settings{ScrubPeriod: -1}); !errs.Is(err, errs.Invalid) {
			t.Errorf("a negative period: %v, want Invalid", err)
		}
	})
}
