package metadata

import (
	"testing"

	"github.com/ostraka/ostraka/placement"
)

// TestJudgeReadAgainstEveryCombination compares with the rule said plainly, for all replies that four
// drives can give about two states, the second of them under two ballots.
func TestJudgeReadAgainstEveryCombination(t *testing.T) {
	q := placement.Quorum{N: 4, W: 3, R: 2}
	row := func(at, id uint64, decided bool) *ReadReply {
		return &ReadReply{Row: &Row{Ballot: Ballot{at, 0}, Decided: decided, State: State{ID: Ballot{id, 0}}}}
	}
	kinds := []*ReadReply{nil, {}, row(1, 1, false), row(1, 1, true), row(2, 2, false), row(2, 2, true), row(3, 2, false), row(3, 2, true)}
	n := len(kinds)
	for code := range n * n * n * n {
		replies := make([]*ReadReply, 4)
		for i, c := 0, code; i < 4; i, c = i+1, c/n {
			replies[i] = kinds[c%n]
		}
		heard, carry, known := 0, 0, false
		var top *Row
		for _, r := range replies {
			if r != nil {
				heard++
				if r.Row != nil && (top == nil || top.Ballot.Less(r.Row.Ballot)) {
					top = r.Row
				}
			}
		}
		for _, r := range replies {
			if r != nil && r.Row != nil && top != nil && r.Row.State.ID == top.State.ID {
				known = known || r.Row.Decided
				if r.Row.Ballot == top.Ballot {
					carry++
				}
			}
		}
		got, enough := judgeRead(q, replies)
		if enough != (heard >= q.R) {
			t.Fatalf("case %d: enough %v with %d replies", code, enough, heard)
		}
		if !enough {
			continue
		}
		if want := top == nil || known || carry >= q.W; got.chosen != want {
			t.Fatalf("case %d: chosen %v, want %v", code, got.chosen, want)
		}
		if (got.row == nil) != (top == nil) || top != nil && got.row.Ballot != top.Ballot {
			t.Fatalf("case %d: row %+v, want %+v", code, got.row, top)
		}
	}
}

func TestJudgeAccept(t *testing.T) {
	at := func(n uint64) Ballot { return Ballot{n, 0} }
	before := &Row{Ballot: at(2), Decided: true, State: State{ID: at(2), Older: 3}}
	undecided := &Row{Ballot: at(4), State: State{ID: at(4), Prev: at(2), Older: 4}, Undo: &Undo{Row: before, Added: []uint64{9}}}
	lossy := &Row{Ballot: at(4), State: State{ID: at(4), Prev: at(2), Older: 4}, Undo: &Undo{Lossy: true}}
	for _, c := range []struct {
		name    string
		l       local
		b       uint64
		id      uint64
		prev    uint64
		older   uint64
		whole   bool
		verdict verdict
		how     how
	}{
		{"the first state of all", local{}, 1, 1, 0, 0, false, verdictApply, howDelta},
		{"under the promise itself", local{promise: at(5)}, 5, 5, 0, 0, false, verdictApply, howDelta},
		{"below a promise", local{promise: at(5)}, 4, 4, 0, 0, false, verdictRefuse, howBehind},
		{"below the floor", local{floor: at(5)}, 4, 4, 0, 0, false, verdictRefuse, howBehind},
		{"below what the epoch began with", local{begun: at(5)}, 4, 4, 0, 0, false, verdictRefuse, howBehind},
		{"at what the epoch began with: nothing was dropped", local{begun: at(5)}, 5, 5, 0, 0, false, verdictRefuse, howBehind},
		{"at the floor: it was dropped here", local{floor: at(5)}, 5, 5, 0, 0, false, verdictAgain, howBallot},
		{"the same ballot again, in spite of a promise", local{row: undecided, promise: at(9)}, 4, 4, 2, 4, false, verdictAgain, howBallot},
		{"older than the row", local{row: undecided}, 3, 3, 2, 4, false, verdictRefuse, howBehind},
		{"the same state under a newer ballot", local{row: undecided}, 6, 4, 2, 4, false, verdictApply, howBallot},
		{"computed from the row", local{row: undecided}, 6, 6, 4, 5, false, verdictApply, howDelta},
		{"computed from the state before the undecided one", local{row: undecided}, 6, 6, 2, 4, false, verdictApply, howRedo},
		{"the state before the undecided one", local{row: undecided}, 6, 2, 1, 3, false, verdictApply, howRevert},
		{"no way back", local{row: lossy}, 6, 6, 2, 4, false, verdictBehind, howBehind},
		{"a decided row is never undone", local{row: before}, 6, 6, 1, 4, false, verdictBehind, howBehind},
		{"computed from a state that is missing", local{row: before}, 6, 6, 5, 4, false, verdictBehind, howBehind},
		{"with all its version rows", local{row: before}, 6, 6, 5, 4, true, verdictApply, howWhole},
		{"without version rows", local{row: before}, 6, 6, 5, 0, false, verdictApply, howReplace},
		{"nothing here, and a delta to something", local{}, 6, 6, 5, 4, false, verdictBehind, howBehind},
	} {
		s := &State{ID: at(c.id), Older: c.older}
		if c.prev != 0 {
			s.Prev = at(c.prev)
		}
		if v, h := judgeAccept(&c.l, at(c.b), s, c.whole); v != c.verdict || v == verdictApply && h != c.how {
			t.Errorf("%s: verdict %d, how %d; want %d, %d", c.name, v, h, c.verdict, c.how)
		}
	}
}

func TestJudgeInstallAgainstFloors(t *testing.T) {
	r := &Row{Ballot: Ballot{5, 0}, Decided: true, State: State{ID: Ballot{5, 0}}}
	if _, ok, conflict := judgeInstall(&local{begun: Ballot{9, 0}}, r, false); !ok || conflict {
		t.Error("a row from before the epoch is refused")
	}
	if _, ok, conflict := judgeInstall(&local{floor: Ballot{9, 0}}, r, false); ok || !conflict {
		t.Error("a row from before a dropped tombstone is taken")
	}
}

// What was merely jumped over, never known to be chosen, keeps its guard when the next state follows by
// a delta.
func TestWhatWasJumpedOverKeepsItsGuard(t *testing.T) {
	lost := DeadData{Data: Data{ID: [16]byte{7}}}
	for _, c := range []struct {
		name string
		u    *Undo
		want Ballot
	}{
		{"known", &Undo{Row: &Row{Decided: true}, Lost: []DeadData{lost}}, lastBallot},
		{"jumped over", &Undo{Lossy: true, Lost: []DeadData{lost}}, Ballot{8, 0}},
	} {
		row := &Row{Ballot: Ballot{6, 0}, State: State{ID: Ballot{6, 0}}, Undo: c.u}
		a, addr := &Acceptor{}, addr("k")
		next, err := a.replace(new(Batch), &addr, row, Ballot{8, 0}, &State{ID: Ballot{8, 0}, Prev: Ballot{6, 0}}, howDelta, nil)
		must(t, err)
		list, guard := garbageOf(KindObject, next)
		if len(list) != 1 || list[0].Data.ID != lost.Data.ID || guard != c.want {
			t.Errorf("%s: got %v under guard %v, want it under %v", c.name, list, guard, c.want)
		}
	}
}
