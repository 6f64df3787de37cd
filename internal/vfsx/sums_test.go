package vfsx

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// duringFS calls before and after around every sync of a file or a directory, while it is under way: before it has any
// effect, and when it had its own but has not returned.
type duringFS struct {
	vfs.FS
	before, after func()
}

type duringFile struct {
	vfs.File
	fs *duringFS
}

func (f *duringFile) sync(do func() error) error {
	f.fs.before()
	err := do()
	f.fs.after()
	return err
}

func (f *duringFile) Sync() error     { return f.sync(f.File.Sync) }
func (f *duringFile) SyncData() error { return f.sync(f.File.SyncData) }

func (d *duringFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &duringFile{File: f, fs: d}, nil
}

func (d *duringFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(d.FS.Create(name, c))
}

func (d *duringFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(d.FS.ReuseForWrite(oldname, newname, c))
}

func (d *duringFS) OpenDir(name string) (vfs.File, error) { return d.wrap(d.FS.OpenDir(name)) }

// TestASumNeverClaimsWhatIsNotDurable makes, writes, syncs and reuses logs, with writes and new logs in the middle of
// syncs, and compares at each step what the sums say with what a power cut would leave of the logs.
func TestASumNeverClaimsWhatIsNotDurable(t *testing.T) {
	claims := 0
	for range 300 {
		seed := rand.Uint64()
		claims += claimWhatIsDurable(t, seed)
	}
	if claims == 0 {
		t.Error("no sum was ever there to compare")
	}
}

// claimWhatIsDurable plays one run and returns how many sums it compared.
func claimWhatIsDurable(t *testing.T, seed uint64) (claims int) {
	rng := rand.New(rand.NewPCG(seed, 0))
	mem := vfs.NewCrashableMem()
	const sums = "d/ostraka.sums"
	var g *Guard
	var logs []vfs.File         // that are open
	var names []string          // theirs
	var closed []string         // that could be used again
	reused := map[string]bool{} // nobody needs what such a log held: its name does not count, if it comes back
	made := 0
	fatal := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			fatal("%v", err)
		}
	}

	check := func() {
		t.Helper()
		list, err := ReadSums(mem, sums)
		must(err)
		left := mem.CrashClone(vfs.CrashCloneCfg{})
		for _, s := range list {
			if reused["d/"+s.Name] {
				continue
			}
			b, err := ReadFile(left, "d/"+s.Name, 1<<20)
			if err != nil {
				fatal("the sum of %s is there, and after a power cut %v", s.Name, err)
			}
			if int64(len(b)) < s.Length || crc32.Checksum(b[:s.Length], castagnoli) != s.CRC {
				fatal("the sum of %s says %d bytes; a power cut leaves %d bytes, or others", s.Name, s.Length, len(b))
			}
			claims++
		}
	}
	write := func() {
		if len(logs) > 0 {
			p := make([]byte, 1+rng.IntN(40))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			_, err := logs[rng.IntN(len(logs))].Write(p)
			must(err)
		}
	}
	begin := func() {
		made++
		name := fmt.Sprintf("d/%06d.log", made)
		var f vfs.File
		var err error
		if len(closed) > 0 && rng.IntN(2) == 0 {
			f, err = g.ReuseForWrite(closed[0], name, vfs.WriteCategoryUnspecified)
			reused[closed[0]], closed = true, closed[1:]
		} else {
			f, err = g.Create(name, vfs.WriteCategoryUnspecified)
		}
		must(err)
		logs, names = append(logs, f), append(names, name)
	}
	syncDir := func() { must(SyncDir(g, "d")) }

	inside := false
	meanwhile := func() {
		check()
		if inside { // one more is enough
			return
		}
		inside = true
		defer func() { inside = false }()
		switch rng.IntN(3) {
		case 0:
			write()
		case 1:
			begin()
		}
	}
	under := &duringFS{FS: mem, before: func() {}, after: func() {}}
	g = NewGuard(under, func(op, path string, _ bool, err error) { fatal("%s %s: %v", op, path, err) })
	must(mem.MkdirAll("d", 0o700))
	must(SyncDir(mem, ""))
	s, err := OpenSums(mem, sums, nil, func(err error) { fatal("%v", err) })
	must(err)
	g.KeepSums(s)
	under.before, under.after = meanwhile, meanwhile

	for range 40 {
		switch op := rng.IntN(9); {
		case op == 0 || len(logs) == 0:
			begin()
		case op < 3:
			write()
		case op < 5:
			must(logs[rng.IntN(len(logs))].Sync())
		case op < 6:
			must(logs[rng.IntN(len(logs))].SyncData())
		case op < 7:
			syncDir()
		case op < 8:
			i := rng.IntN(len(logs))
			must(logs[i].Close())
			closed = append(closed, names[i])
			logs, names = slices.Delete(logs, i, i+1), slices.Delete(names, i, i+1)
		default:
			name := fmt.Sprintf("d/marker.%d", rng.Uint32())
			f, err := g.Create(name, vfs.WriteCategoryUnspecified)
			must(err)
			must(f.Close())
		}
		check()
	}
	for _, f := range logs {
		must(f.Close())
	}
	must(s.Close())
	return claims
}
