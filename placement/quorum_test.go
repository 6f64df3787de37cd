package placement

import (
	"fmt"
	"math/bits"
	"testing"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
)

// The table of docs/protocol.md, row by row.
func TestRecordQuorumIsTheTableOfTheProtocol(t *testing.T) {
	for _, row := range []struct{ k, m, w, r, z, writes, reads int }{
		{1, 0, 1, 1, 1, 0, 0},
		{1, 1, 2, 1, 2, 0, 1},
		{2, 1, 2, 2, 2, 1, 1},
		{2, 2, 3, 2, 3, 1, 2},
		{4, 2, 5, 4, 3, 1, 2},
		{8, 4, 9, 7, 6, 3, 4},
		{6, 6, 7, 6, 7, 5, 6},
	} {
		p := profile(row.k, row.m)
		q := RecordQuorum(p, 1)
		if want := (Quorum{row.k + row.m, row.w, row.r, row.z}); q != want {
			t.Errorf("%d+%d: got %+v, want %+v", row.k, row.m, q, want)
		}
		if got := q.N - q.W; got != row.writes {
			t.Errorf("%d+%d: writes go on with %d down, want %d", row.k, row.m, got, row.writes)
		}
		// A GET of a body needs R records and k shards.
		if got := min(q.N-q.R, row.m); got != row.reads {
			t.Errorf("%d+%d: reads go on with %d down, want %d", row.k, row.m, got, row.reads)
		}
	}
}

func TestAHostOfThreeMayDieUnder4Plus2AndWritesGoOn(t *testing.T) {
	q := RecordQuorum(profile(4, 2), 2)
	if q.W != 4 || ShardQuorum(profile(4, 2), 2) != 4 {
		t.Errorf("f=2: got %+v and shard quorum %d, want W = 4 and 4", q, ShardQuorum(profile(4, 2), 2))
	}
}

// Each rule of intersection is checked against the sets themselves.
func TestQuorumsIntersectWhateverTheMembers(t *testing.T) {
	for n := 1; n <= 9; n++ {
		for k := 1; k <= n; k++ {
			for f := 0; f <= n; f++ {
				p := profile(k, n-k)
				q := RecordQuorum(p, f)
				name := fmt.Sprintf("%d+%d f=%d %+v", k, n-k, f, q)
				if q.W > n || q.R > n || q.Z > n || q.N != n {
					t.Fatalf("%s: a quorum is larger than the group", name)
				}
				for what, pair := range map[string][2]int{"W and W": {q.W, q.W}, "R and W": {q.R, q.W}, "Z and W": {q.Z, q.W}, "Z and R": {q.Z, q.R}} {
					if !alwaysIntersect(n, pair[0], pair[1]) {
						t.Errorf("%s: two sets of %s may be disjoint", name, what)
					}
				}
				if s := ShardQuorum(p, f); s < k || s > n || s > q.W {
					t.Errorf("%s: shard quorum %d is not within k..W", name, s)
				}
				// What is durable at the 200 outlives a failure domain where there is a spare.
				if f >= 1 && f < n-k && ShardQuorum(p, f) != k+1 {
					t.Errorf("%s: no spare shard though m > f", name)
				}
			}
		}
	}
}

func alwaysIntersect(n, a, b int) bool {
	for x := uint(0); x < 1<<n; x++ {
		if bits.OnesCount(x) != a {
			continue
		}
		for y := uint(0); y < 1<<n; y++ {
			if bits.OnesCount(y) == b && x&y == 0 {
				return false
			}
		}
	}
	return true
}

func TestDefaultProfile(t *testing.T) {
	want := []string{"", "1+0", "1+1", "2+1", "2+2", "3+2", "4+2", "5+2", "5+3", "6+3", "7+3", "8+3", "8+4", "8+4"}
	for drives, name := range want[1:] {
		p, err := DefaultProfile(drives + 1)
		if err != nil || p.String() != name {
			t.Errorf("%d drives: got %v %v, want %s", drives+1, p, err, name)
		}
	}
	if p, err := DefaultProfile(500); err != nil || p.String() != "8+4" {
		t.Errorf("500 drives: got %v %v, want 8+4", p, err)
	}
	if _, err := DefaultProfile(0); !errs.Is(err, errs.Invalid) {
		t.Errorf("no drives: got %v, want Invalid", err)
	}
}

func TestReducedProfileHasOneParityShardLessButNeverNone(t *testing.T) {
	for in, want := range map[erasure.Profile]erasure.Profile{
		profile(8, 4): profile(8, 3), profile(4, 2): profile(4, 1), profile(2, 1): profile(2, 1), profile(1, 0): profile(1, 0),
	} {
		if got := ReducedProfile(in); got != want {
			t.Errorf("%v: got %v, want %v", in, got, want)
		}
	}
}
