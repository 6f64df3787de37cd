package gossip

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

var (
	cluster = [16]byte{0xc1, 0xff}
	start   = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
)

func id(n byte) [16]byte { return [16]byte{0xa0, n, 0xfb, 0xff} }

func tagsOf(n byte) Tags {
	return Tags{Cluster: cluster, Node: id(n), Name: fmt.Sprintf("node-%d", n), Zone: "z1", Storage: true,
		Address: "10.0.0.1:7000", Drives: []uint16{1, 2, 3}, Protocol: Versions{1, 2}, Format: Versions{1, 1}, Layout: 7, Trust: 3, Began: start}
}

// must ends the test unless a call went well.
func must[T any](x T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
}

func encoded(t testing.TB, tags Tags) map[string]string {
	t.Helper()
	return must(tags.encode())(t)
}

func TestTagsReadBack(t *testing.T) {
	none := tagsOf(1)
	none.Drives = []uint16{}
	if got := must(decode(encoded(t, none), cluster))(t); got.Drives == nil || got.DriveCount != 0 {
		t.Errorf("that no drive is open comes back as %v, %d", got.Drives, got.DriveCount)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		want := tagsOf(byte(rnd.Uint32()))
		want.Gateway, want.Storage = rnd.IntN(2) == 0, rnd.IntN(2) == 0
		want.Name, want.S3 = strings.Repeat("ñ", rnd.IntN(20)), strings.Repeat("s", rnd.IntN(maxAddress))
		want.Layout, want.Trust = rnd.Uint64()>>uint(1+rnd.IntN(62)), rnd.Uint64()>>uint(1+rnd.IntN(62))
		want.Drives = nil
		for n := range uint16(40) {
			if rnd.IntN(3) > 0 {
				want.Drives = append(want.Drives, n*uint16(1+rnd.IntN(2))+uint16(rnd.IntN(2))*1000)
			}
		}
		slices.Sort(want.Drives)
		want.Drives = slices.Compact(want.Drives)
		got := must(decode(encoded(t, want), cluster))(t)
		want.DriveCount = len(want.Drives)
		if got.Drives == nil && want.DriveCount > 0 {
			want.Drives = nil // they did not fit; the count must be there all the same
		}
		if !got.Began.Equal(want.Began) {
			t.Fatalf("began %v, want %v", got.Began, want.Began)
		}
		got.Began = want.Began
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
	}
}

func TestTheLongestTagsFitIntoWhatSerfCarries(t *testing.T) {
	long := tagsOf(1)
	long.Name, long.Zone = strings.Repeat("n", maxName), strings.Repeat("z", maxZone)
	long.Address, long.S3 = strings.Repeat("a", maxAddress), strings.Repeat("s", maxAddress)
	long.Gateway = true
	long.Protocol, long.Format = Versions{1<<32 - 2, 1<<32 - 1}, Versions{1<<32 - 2, 1<<32 - 1}
	long.Layout, long.Trust = 1<<63-1, 1<<63-1
	long.Drives = nil
	for n := range uint16(100) {
		long.Drives = append(long.Drives, 60000+2*n) // no two in sequence: the worst
	}
	m := encoded(t, long)
	if n := encodedSize(m); n > maxTags {
		t.Errorf("%d bytes, more than %d", n, maxTags)
	}
	if got := must(decode(m, cluster))(t); got.DriveCount != 100 || got.Drives != nil {
		t.Errorf("%d drives, %v; want the count of 100 only", got.DriveCount, got.Drives)
	}
	// A hundred in sequence fit even there.
	for n := range long.Drives {
		long.Drives[n] = 1000 + uint16(n)
	}
	if got := must(decode(encoded(t, long), cluster))(t); len(got.Drives) != 100 {
		t.Errorf("%d drives are told, want 100", len(got.Drives))
	}
	long.Zone += "z"
	if _, err := long.encode(); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "zone") {
		t.Errorf("a zone that is too long: got %v", err)
	}
}

func TestForeignTagsAreRefused(t *testing.T) {
	good := encoded(t, tagsOf(1))
	for _, c := range []struct {
		name, key, value string
		kind             errs.Kind
	}{
		{"no version", "v", "", errs.Invalid},
		{"a later table", "v", "2", errs.Invalid},
		{"another cluster", "c", encodeID(id(9)), errs.Denied},
		{"no node id", "i", "", errs.Invalid},
		{"half a node id", "i", encodeID(id(1))[:11], errs.Invalid},
		{"the node id zero", "i", encodeID([16]byte{}), errs.Invalid},
		{"a long name", "n", strings.Repeat("n", maxName+1), errs.Invalid},
		{"a name that writes on the terminal", "n", "\x1b[2J", errs.Invalid},
		{"a name that is no text", "n", "\xff", errs.Invalid},
		{"versions the wrong way round", "p", "3-2", errs.Invalid},
		{"no versions", "f", "", errs.Invalid},
		{"a layout that is no number", "l", "!", errs.Invalid},
		{"a negative layout", "l", "-1", errs.Invalid},
		{"drives the wrong way round", "d", "9-1", errs.Invalid},
		{"drives twice", "d", "1,1", errs.Invalid},
		{"drives that overlap", "d", "1-5,3", errs.Invalid},
		{"too many drives", "d", "0-1ekf", errs.Invalid},
		{"drives beyond their numbers", "d", "zzzz", errs.Invalid},
		{"a count that is none", "d", "*x", errs.Invalid},
	} {
		m := maps.Clone(good)
		m[c.key] = c.value
		if _, err := decode(m, cluster); !errs.Is(err, c.kind) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.kind)
		}
	}
	for _, m := range []map[string]string{nil, {}, {"role": "web"}} {
		if _, err := decode(m, cluster); err == nil {
			t.Errorf("%v: read", m)
		}
	}
	good["x"] = "what a later version says"
	must(decode(good, cluster))(t)
}

func FuzzDecodeTags(f *testing.F) {
	for k, v := range encoded(f, tagsOf(1)) {
		f.Add(k, v)
	}
	f.Add("d", "*12")
	f.Add("d", "*0")
	f.Add("d", "0-2s,34")
	good := encoded(f, tagsOf(1))
	f.Fuzz(func(t *testing.T, k, v string) {
		m := maps.Clone(good)
		m[k] = v
		tags, err := decode(m, cluster)
		if err != nil {
			return
		}
		if len(tags.Drives) > maxDrives || !slices.IsSorted(tags.Drives) {
			t.Fatalf("drives %v", tags.Drives)
		}
		again, err := tags.encode()
		if err != nil {
			t.Fatalf("what was read does not encode: %v", err)
		}
		if tags.Drives != nil { // they were told
			if got := must(decode(again, cluster))(t); !reflect.DeepEqual(got, tags) {
				t.Fatalf("got %+v, want %+v", got, tags)
			}
		}
	})
}

// step is one thing that serf says.
type step struct {
	name, address string
	node          byte
	state         State
	began         time.Duration
	after         time.Duration
}

func play(t *testing.T, steps []step) (*View, *roster) {
	t.Helper()
	r := newRoster(cluster, "self")
	now := start
	for _, s := range steps {
		now = now.Add(s.after)
		tags := tagsOf(s.node)
		tags.Began = start.Add(s.began)
		if bad := r.seen(s.name, s.address, encoded(t, tags), s.state, now); bad != nil {
			t.Fatal(bad)
		}
	}
	return r.view(1, now), r
}

func TestOneNodeHasOneMember(t *testing.T) {
	for _, c := range []struct {
		name       string
		steps      []step
		state      State
		address    string
		failures   int
		duplicates int
	}{
		{"it joined", []step{{"a", "1:1", 1, Alive, 0, 0}}, Alive, "1:1", 0, 0},
		{"it failed", []step{{"a", "1:1", 1, Alive, 0, 0}, {"a", "1:1", 1, Failed, 0, 1}}, Failed, "1:1", 1, 0},
		{"it failed and came back", []step{{"a", "1:1", 1, Alive, 0, 0}, {"a", "1:1", 1, Failed, 0, 1}, {"a", "1:1", 1, Alive, 0, 1}}, Alive, "1:1", 1, 0},
		{"it left", []step{{"a", "1:1", 1, Alive, 0, 0}, {"a", "1:1", 1, Left, 0, 1}}, Left, "1:1", 0, 0},
		{"it left, and its end was noticed first", []step{{"a", "1:1", 1, Alive, 0, 0}, {"a", "1:1", 1, Failed, 0, 1}, {"a", "1:1", 1, Left, 0, 1}}, Left, "1:1", 0, 0},
		{"it started again, and the former run failed", []step{{"a", "1:1", 1, Alive, 0, 0}, {"b", "1:1", 1, Alive, 5, 1}, {"a", "1:1", 1, Failed, 0, 1}}, Alive, "1:1", 1, 0},
		{"it started again at the same address a moment ago", []step{{"a", "1:1", 1, Alive, 0, 0}, {"b", "1:1", 1, Alive, time.Second, 1}}, Alive, "1:1", 0, 0},
		{"two of it are alive", []step{{"b", "2:2", 1, Alive, time.Second, 0}, {"a", "1:1", 1, Alive, 0, 1}}, Alive, "2:2", 0, 1},
		{"of two one went", []step{{"b", "2:2", 1, Alive, time.Second, 0}, {"a", "1:1", 1, Alive, 0, 1}, {"b", "2:2", 1, Left, time.Second, 1}}, Alive, "1:1", 0, 0},
	} {
		v, _ := play(t, c.steps)
		m, ok := v.Member(id(1))
		if !ok || len(v.Members) != 1 {
			t.Errorf("%s: %d members", c.name, len(v.Members))
			continue
		}
		if m.State != c.state || m.Address != c.address || m.Failures != c.failures || len(v.Duplicates) != c.duplicates {
			t.Errorf("%s: got %s at %s, %d failures, %d duplicates; want %s at %s, %d, %d", c.name,
				m.State, m.Address, m.Failures, len(v.Duplicates), c.state, c.address, c.failures, c.duplicates)
		}
	}
	if _, ok := (&View{}).Member(id(1)); ok {
		t.Error("found in an empty view")
	}
}

func TestFlappingIsReportedAndPasses(t *testing.T) {
	var steps []step
	for i := range 4 {
		steps = append(steps, step{"a", "1:1", 1, Alive, 0, time.Minute}, step{"a", "1:1", 1, Failed, 0, time.Minute})
		v, r := play(t, steps)
		m, _ := v.Member(id(1))
		if want := i+1 >= flapCount; m.Flapping != want || m.Failures != i+1 {
			t.Errorf("after %d failures: flapping %v, failures %d", i+1, m.Flapping, m.Failures)
		}
		if m, _ := r.view(2, start.Add(time.Hour)).Member(id(1)); m.Flapping {
			t.Error("an hour later it is flapping still")
		}
	}
}

func TestSinceIsWhenTheStateBegan(t *testing.T) {
	v, _ := play(t, []step{{"a", "1:1", 1, Alive, 0, time.Minute}, {"a", "1:1", 1, Alive, 0, time.Minute}, {"a", "1:1", 1, Failed, 0, time.Minute}})
	if m, _ := v.Member(id(1)); !m.Since.Equal(start.Add(3 * time.Minute)) {
		t.Errorf("failed since %v", m.Since)
	}
	v, _ = play(t, []step{{"a", "1:1", 1, Alive, 0, time.Minute}, {"a", "1:1", 1, Alive, 0, time.Minute}})
	if m, _ := v.Member(id(1)); !m.Since.Equal(start.Add(time.Minute)) {
		t.Errorf("alive since %v", m.Since)
	}
}

func TestWhatIsForeignIsCountedAndForgotten(t *testing.T) {
	_, r := play(t, []step{{"a", "1:1", 1, Alive, 0, 0}})
	if bad := r.seen("x", "9:9", map[string]string{"role": "web"}, Alive, start); bad == nil {
		t.Error("tags of something else are read")
	}
	if bad := r.seen("x", "9:9", map[string]string{"role": "web"}, Alive, start); bad != nil {
		t.Error("the same is reported twice")
	}
	if v := r.view(2, start); v.Foreign != 1 || len(v.Members) != 1 {
		t.Errorf("%d foreign, %d members", v.Foreign, len(v.Members))
	}
	// Once it says what is understood, it is a member.
	if bad := r.seen("x", "9:9", encoded(t, tagsOf(2)), Alive, start); bad != nil {
		t.Error(bad)
	}
	if v := r.view(3, start); v.Foreign != 0 || len(v.Members) != 2 {
		t.Errorf("%d foreign, %d members", v.Foreign, len(v.Members))
	}
	r.gone("x")
	r.gone("never seen")
	if v := r.view(4, start); len(v.Members) != 1 {
		t.Errorf("%d members", len(v.Members))
	}
	for i := range maxRuns + 10 {
		r.seen(fmt.Sprint("run", i), "1:1", nil, Alive, start)
	}
	if v := r.view(5, start); len(r.runs) != maxRuns || v.Dropped == 0 || len(v.Members) != 1 {
		t.Errorf("%d are remembered, %d dropped", len(r.runs), v.Dropped)
	}
}
