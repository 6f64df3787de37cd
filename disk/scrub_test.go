package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// scrubAll scrubs the whole drive, page by page.
func scrubAll(t testing.TB, d *Drive, limit int) (all ScrubReport) {
	t.Helper()
	for page := 0; ; page++ {
		r, err := d.Scrub(bg, all.Next, limit, nil)
		if err != nil {
			t.Fatal(err)
		}
		all.Next, all.Shards, all.Bytes, all.Bad = r.Next, all.Shards+r.Shards, all.Bytes+r.Bytes, append(all.Bad, r.Bad...)
		if !r.More {
			return all
		}
		if page > 1000 {
			t.Fatal("a scrub has no end")
		}
	}
}

// TestScrubFindsEveryDamage damages a shard in one way at a time, among others that are right.
func TestScrubFindsEveryDamage(t *testing.T) {
	const pages = 1 + 64 + 64 + 22 + 1 // header, blocks of 256, 256 and 88 KiB, footer
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, fs *vfs.MemFS, d *Drive, b, other body)
		inline bool
		kind   errs.Kind
	}{
		{"the file is gone", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			if err := fs.Remove(d.shardPath(b.spec().ID)); err != nil {
				t.Fatal(err)
			}
		}, false, errs.Corrupt},
		{"a byte of the header", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) { flip(t, fs, d.shardPath(b.spec().ID), 700) }, false, errs.Corrupt},
		{"a byte of the first block", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) { flip(t, fs, d.shardPath(b.spec().ID), 4096) }, false, errs.Corrupt},
		{"a byte of the last block", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			flip(t, fs, d.shardPath(b.spec().ID), 4096+599<<10)
		}, false, errs.Corrupt},
		{"a byte of the footer", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			flip(t, fs, d.shardPath(b.spec().ID), b.spec().FileSize-4000)
		}, false, errs.Corrupt},
		{"the file of another shard", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, other body) {
			copyFile(t, fs, d.shardPath(other.spec().ID), d.shardPath(b.spec().ID))
		}, false, errs.Corrupt},
		{"the row names another key", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			changeRow(t, d, b, func(r *ShardRow) { r.Address.Key = []byte("other") })
		}, false, errs.Corrupt},
		{"the row names another part", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			changeRow(t, d, b, func(r *ShardRow) { r.Address.Part = 9 })
		}, false, errs.Corrupt},
		{"the row has another length", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			changeRow(t, d, b, func(r *ShardRow) { r.Size += erasure.Align })
		}, false, errs.Corrupt},
		{"the row has another profile", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			changeRow(t, d, b, func(r *ShardRow) { r.Profile = erasure.Profile{Data: 2, Parity: 1} })
		}, false, errs.Corrupt},
		{"a byte of an inline shard", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			changeRow(t, d, b, func(r *ShardRow) { r.Inline = bytes.Clone(r.Inline); r.Inline[30] ^= 1 })
		}, true, errs.Corrupt},
		{"an inline shard that is cut short", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			changeRow(t, d, b, func(r *ShardRow) { r.Inline = r.Inline[:20] })
		}, true, errs.Corrupt},
		{"an inline row without a profile", func(t *testing.T, fs *vfs.MemFS, d *Drive, b, _ body) {
			changeRow(t, d, b, func(r *ShardRow) { r.Profile = erasure.Profile{} })
		}, true, errs.Corrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := newRand(t)
			fs := vfs.NewMem()
			d := makeDrive(t, fs, testOptions())
			var bodies []body
			size := int64(0)
			for i := range 6 {
				b := newBody(rng, 600<<10, false)
				if i%2 == 0 {
					b = newBody(rng, 900, true)
				}
				if err := b.put(d); err != nil {
					t.Fatal(err)
				}
				bodies = append(bodies, b)
			}
			all := scrubAll(t, d, 4)
			if all.Shards != 6 || len(all.Bad) != 0 || all.Bytes != 3*pages*4096+3*(900+erasure.InlineOverhead) {
				t.Fatalf("before the damage: %+v", all)
			}
			size = all.Bytes
			victim, other := bodies[1], bodies[3]
			if c.inline {
				victim = bodies[2]
			}
			c.damage(t, fs, d, victim, other)
			all = scrubAll(t, d, 1+rng.IntN(7))
			if all.Shards != 6 || len(all.Bad) != 1 || all.Bad[0].Row.ID != victim.spec().ID || !errs.Is(all.Bad[0].Err, c.kind) {
				t.Fatalf("%+v, want one finding, %v", all, victim.spec().ID)
			}
			if diff := all.Bytes - size; diff != 0 && diff != erasure.Align {
				t.Errorf("%d bytes, %d before", all.Bytes, size)
			}
			if all.Bad[0].Row.Inline != nil {
				t.Error("the finding carries the shard")
			}
		})
	}
}

func changeRow(t *testing.T, d *Drive, b body, change func(*ShardRow)) {
	t.Helper()
	r, err := d.row(shardChunk{b.data.ID, 0})
	if err != nil || r == nil {
		t.Fatalf("row: %v, %v", r, err)
	}
	change(r)
	if err := d.putRow(r); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, fs vfs.FS, from, to string) {
	t.Helper()
	if err := vfs.Copy(fs, from, to); err != nil {
		t.Fatal(err)
	}
}

func TestScrubFindsWhatCannotBeRead(t *testing.T) {
	var on atomic.Bool
	d := makeDrive(t, wrapFaults(vfs.NewMem(), failWhile(&on, shardsDir, syscall.EIO, errorfs.OpFileReadAt, errorfs.OpFileRead)), testOptions())
	b := newBody(newRand(t), 100<<10, false)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	all := scrubAll(t, d, 10)
	if len(all.Bad) != 1 || !errs.Is(all.Bad[0].Err, errs.Drive) || !errors.Is(all.Bad[0].Err, syscall.EIO) {
		t.Fatalf("got %+v", all)
	}
	// A drive that has failed is no finding, for each shard, but the end of the scrub.
	d.Quarantine("test", nil)
	r, err := d.Scrub(bg, erasure.ShardID{}, 10, nil)
	wantKind(t, err, errs.Drive)
	if len(r.Bad) != 0 {
		t.Errorf("findings on a drive that is out: %+v", r.Bad)
	}
}

func TestScrubTakesADeletionForNoDamage(t *testing.T) {
	both(t, func(t *testing.T, d *Drive, b body) {
		if err := b.put(d); err != nil {
			t.Fatal(err)
		}
		r, err := d.Scrub(bg, erasure.ShardID{}, 10, func(ctx context.Context, _ int) error {
			return d.DeleteShard(ctx, testAddr, b.data.ID, 0, metadata.Ballot{Counter: 1})
		})
		if err != nil || len(r.Bad) != 0 || r.Shards != 1 {
			t.Fatalf("got %+v, %v", r, err)
		}
	})
}

// hangReads blocks reads of shard files while hang is set.
type hangReads struct {
	vfs.FS
	hang atomic.Bool
	stop chan struct{}
	open atomic.Int64
}

func (h *hangReads) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := h.FS.Open(name, opts...)
	if err != nil || !strings.Contains(name, "/"+shardsDir+"/") {
		return f, err
	}
	h.open.Add(1)
	return &hangRead{f, h}, nil
}

type hangRead struct {
	vfs.File
	h *hangReads
}

func (f *hangRead) ReadAt(p []byte, off int64) (int, error) {
	if f.h.hang.Load() {
		<-f.h.stop
	}
	return f.File.ReadAt(p, off)
}

func (f *hangRead) Close() error { f.h.open.Add(-1); return f.File.Close() }

func TestScrubEndsWithItsContextWhenTheDriveHangs(t *testing.T) {
	h := &hangReads{FS: vfs.NewMem(), stop: make(chan struct{})}
	d := makeDrive(t, h, testOptions())
	b := newBody(newRand(t), 300<<10, false)
	if err := b.put(d); err != nil {
		t.Fatal(err)
	}
	h.hang.Store(true)
	ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
	defer cancel()
	r, err := d.Scrub(ctx, erasure.ShardID{}, 10, nil)
	wantKind(t, err, errs.Timeout)
	if r.Shards != 0 || !r.More {
		t.Errorf("got %+v", r)
	}
	wantKind(t, d.VerifyShard(ctx, b.chunk(), 0, nil), errs.Timeout)
	h.hang.Store(false)
	close(h.stop)
	waitFor(t, func() bool { return d.Info().InFlight == 0 && h.open.Load() == 0 })
	if all := scrubAll(t, d, 10); all.Shards != 1 || len(all.Bad) != 0 {
		t.Errorf("after the drive woke up: %+v", all)
	}
}

// TestABatchIsOneSync counts what a batch costs the log.
func TestABatchIsOneSync(t *testing.T) {
	var on atomic.Bool
	var syncs atomic.Int64
	d := makeDrive(t, wrapFaults(vfs.NewMem(), &fault{rule: func(op errorfs.Op) error {
		if on.Load() && strings.HasSuffix(op.Path, ".log") && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) {
			syncs.Add(1)
		}
		return nil
	}}), func() Options { o := testOptions(); o.MemTableSize = 16 << 20; return o }())
	rng := newRand(t)
	var list []InlineSeal
	var bodies []body
	for range 300 {
		b := newBody(rng, 1+rng.IntN(200), true) // all fit the first write buffer: a new one begins a new log
		rows, err := erasure.EncodeInline(one, b.data.ID, b.bytes)
		if err != nil {
			t.Fatal(err)
		}
		list, bodies = append(list, InlineSeal{testAddr, metadata.Seal{Data: b.data, Inline: rows[0]}}), append(bodies, b)
	}
	on.Store(true)
	if err := d.SealInline(bg, list); err != nil {
		t.Fatal(err)
	}
	if n := syncs.Load(); n != 1 {
		t.Errorf("%d syncs of the log, want 1", n)
	}
	on.Store(false)
	for _, b := range bodies {
		if err := b.check(d); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUsageIsEstimatedFromASample(t *testing.T) {
	for _, n := range []int{0, 1, 1024, 1025, 5000, 30000} {
		t.Run(fmt.Sprint(n, " shards"), func(t *testing.T) {
			rng := newRand(t)
			d := makeDrive(t, vfs.NewMem(), testOptions())
			want := int64(0)
			b := new(metadata.Batch)
			for range n {
				r := ShardRow{Size: 4096 * int64(1+rng.IntN(9)), Address: testAddr}
				binary.BigEndian.PutUint64(r.ID.Data[:], rng.Uint64())
				binary.BigEndian.PutUint64(r.ID.Data[8:], rng.Uint64())
				b.Set(shardKey(r.ID.Data, 0), r.appendTo(nil))
				want += r.Size
			}
			if err := d.store.Apply(b, false); err != nil {
				t.Fatal(err)
			}
			shards, size, err := d.ShardUsage(bg)
			if err != nil {
				t.Fatal(err)
			}
			far := func(got, want int64) bool {
				if n <= exactRows {
					return got != want
				}
				return float64(got) < 0.75*float64(want) || float64(got) > 1.33*float64(want) // eight standard deviations
			}
			if far(shards, int64(n)) || far(size, want) {
				t.Errorf("got %d shards, %d bytes; want %d, %d", shards, size, n, want)
			}
		})
	}
}

func FuzzJob(f *testing.F) {
	key := jobKey("scrub")
	f.Add(encodeJob(key, []byte("where it is")))
	f.Add(encodeJob(key, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := decodeJob(key, b); err == nil && !bytes.Equal(encodeJob(key, v), b) {
			t.Fatalf("%x came back as %x", b, encodeJob(key, v))
		}
		v, err := decodeJob(key, encodeJob(key, b))
		if err != nil || !bytes.Equal(v, b) {
			t.Fatalf("%x came back as %x, %v", b, v, err)
		}
		if validJobName(string(b)) {
			if _, _, ok := parseShardKey(jobKey(string(b))); ok {
				t.Fatalf("the key of job %q is that of a shard", b)
			}
		}
	})
}

func TestADamagedJobIsNoValue(t *testing.T) {
	d := makeDrive(t, vfs.NewMem(), testOptions())
	if err := d.SetJob(bg, "scrub", []byte("there")); err != nil {
		t.Fatal(err)
	}
	b := new(metadata.Batch)
	v := encodeJob(jobKey("scrub"), []byte("there"))
	v[3] ^= 1
	b.Set(jobKey("scrub"), v)
	b.Set(jobKey("check"), encodeJob(jobKey("scrub"), []byte("there"))) // that of another job
	if err := d.store.Apply(b, true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"scrub", "check"} {
		_, err := d.Job(bg, name)
		wantKind(t, err, errs.Corrupt)
		if err := d.SetJob(bg, name, []byte("anew")); err != nil {
			t.Fatal(err)
		}
	}
	if d.Fault() != nil {
		t.Errorf("fault: %+v", d.Fault())
	}
}
