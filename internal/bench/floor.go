package bench

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/klauspost/reedsolomon"
	"github.com/minio/crc64nvme"
	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// Stage is one part of the work, measured alone.
type Stage struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Micros float64 `json:"cpu_us"` // CPU of this process for one unit
}

// floor is the set of stages, and how they add up to an operation.
type floor struct {
	stages []Stage
	by     map[string]time.Duration
}

// The profile of the floor: 2+2, the default of four drives.
const (
	floorData   = 2
	floorParity = 2
	floorTotal  = floorData + floorParity
	mib         = 1 << 20
)

const (
	stMD5       = "MD5"
	stCRC64     = "CRC64NVME"
	stEncode    = "Reed-Solomon encode 2+2"
	stChecksum  = "shard checksums (xxh3, all four shards)"
	stTCP       = "loopback TCP, receiving side with its sender"
	stWrite     = "write of four shards and sync"
	stRead      = "read of two shards, page cache dropped"
	stHTTP      = "HTTP request, both ends"
	stCommit    = "Pebble synced commit of 2 KiB, 16 writers"
	stPointGet  = "Pebble point get"
	stShardFile = "create, sync and directory sync of a file"
)

// of returns the sum of the stages that an operation cannot do without; 0: none is defined.
// A small PUT commits twice on each of four drives (seal with promise, accept), the file of a
// large one is created and synced on each.
func (f floor) of(op string, size int64) time.Duration {
	if f.by == nil {
		return 0
	}
	mibs := float64(size) / mib
	per := func(name string, n float64) time.Duration { return time.Duration(n * float64(f.by[name])) }
	small := size <= 64<<10
	switch op {
	case "PUT":
		sum := per(stHTTP, 1) + per(stMD5, mibs) + per(stCRC64, mibs) + per(stEncode, mibs) + per(stChecksum, mibs) + per(stTCP, mibs)
		if small {
			return sum + per(stCommit, 2*floorTotal)
		}
		return sum + per(stWrite, mibs) + per(stShardFile, floorTotal) + per(stCommit, 2*floorTotal)
	case "GET":
		sum := per(stHTTP, 1) + per(stTCP, mibs) + per(stChecksum, mibs*floorData/floorTotal) + per(stPointGet, 2)
		if small {
			return sum + per(stPointGet, 2)
		}
		return sum + per(stRead, mibs)
	case "HEAD":
		return per(stHTTP, 1) + per(stPointGet, 2)
	}
	return 0
}

// measureFloor measures each stage for a fraction of a second. dir lies on the file system of
// the drives; its contents are removed again.
func measureFloor(dir string) (floor, error) {
	tmp, err := os.MkdirTemp(dir, "floor-")
	if err != nil {
		return floor{}, err
	}
	defer os.RemoveAll(tmp)
	f := floor{by: map[string]time.Duration{}}
	add := func(name, unit string, d time.Duration) {
		f.by[name] = d
		f.stages = append(f.stages, Stage{Name: name, Unit: unit, Micros: micros(d)})
	}
	body := make([]byte, mib)
	fill(body, 1)
	add(stMD5, "MiB", perOp(func() { md5.Sum(body) }))
	add(stCRC64, "MiB", perOp(func() { crc64nvme.Checksum(body) }))
	enc, err := reedsolomon.New(floorData, floorParity)
	if err != nil {
		return floor{}, err
	}
	shards, err := enc.Split(append([]byte(nil), body...))
	if err != nil {
		return floor{}, err
	}
	add(stEncode, "MiB", perOp(func() { err = errors.Join(err, enc.Encode(shards)) }))
	add(stChecksum, "MiB", perOp(func() {
		for _, s := range shards {
			for ; len(s) > 0; s = s[min(len(s), 256<<10):] {
				xxh3.Hash128Seed(s[:min(len(s), 256<<10)], 1)
			}
		}
	}))
	if err != nil {
		return floor{}, err
	}
	steps := []struct {
		name, unit string
		measure    func() (time.Duration, error)
	}{
		{stTCP, "MiB", func() (time.Duration, error) { return tcpFloor(body) }},
		{stHTTP, "request", httpFloor},
		{stWrite, "MiB", func() (time.Duration, error) { return writeFloor(tmp, shards) }},
		{stRead, "MiB", func() (time.Duration, error) { return readFloor(tmp) }},
		{stShardFile, "file", func() (time.Duration, error) { return createFloor(tmp) }},
	}
	for _, s := range steps {
		d, err := s.measure()
		if err != nil {
			return floor{}, fmt.Errorf("%s: %w", s.name, err)
		}
		add(s.name, s.unit, d)
	}
	commit, get, err := pebbleFloor(filepath.Join(tmp, "pebble"))
	if err != nil {
		return floor{}, fmt.Errorf("pebble: %w", err)
	}
	add(stCommit, "commit", commit)
	add(stPointGet, "get", get)
	return f, nil
}

// perOp returns the CPU of one call of fn, over about 200 ms of calls.
func perOp(fn func()) time.Duration {
	fn()
	n, cpu, end := 0, ownCPU(), time.Now().Add(200*time.Millisecond)
	for time.Now().Before(end) {
		for range 16 {
			fn()
		}
		n += 16
	}
	return (ownCPU() - cpu) / time.Duration(n)
}

// tcpFloor sends MiBs over a loopback connection; CPU of both ends.
func tcpFloor(body []byte) (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			c.Close()
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, err
	}
	const n = 256
	cpu := ownCPU()
	for range n {
		if _, err := c.Write(body); err != nil {
			return 0, err
		}
	}
	c.Close()
	if err := <-done; err != nil {
		return 0, err
	}
	return (ownCPU() - cpu) / n, nil
}

// httpFloor asks a bare net/http server; CPU of both ends.
func httpFloor() (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	tr := &http.Transport{}
	client := &http.Client{Transport: tr}
	const n = 5000
	var failed error
	cpu := ownCPU()
	for range n {
		resp, err := client.Get("http://" + l.Addr().String() + "/bucket/key")
		if err != nil {
			failed = err
			break
		}
		resp.Body.Close()
	}
	used := ownCPU() - cpu
	tr.CloseIdleConnections()
	failed = errors.Join(failed, srv.Shutdown(context.Background()))
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		failed = errors.Join(failed, err)
	}
	return used / n, failed
}

// aligned returns n bytes at an address that O_DIRECT takes.
func aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

const floorFileMiB = 32 // MiB of body in the files of the write and read stages

// openFloor opens a file past the page cache where the file system can.
func openFloor(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(name, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		f, err = os.OpenFile(name, flags, 0o600)
	}
	return f, err
}

// writeFloor writes the shards of 32 MiB to four files and syncs them; CPU of one MiB.
func writeFloor(dir string, shards [][]byte) (time.Duration, error) {
	buf, err := aligned(len(shards[0]))
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buf)
	copy(buf, shards[0])
	cpu := ownCPU()
	for i := range floorTotal {
		f, err := openFloor(filepath.Join(dir, fmt.Sprint("shard", i)), os.O_CREATE|os.O_WRONLY)
		if err != nil {
			return 0, err
		}
		for range floorFileMiB {
			if _, err := f.Write(buf); err != nil {
				return 0, errors.Join(err, f.Close())
			}
		}
		if err := errors.Join(unix.Fdatasync(int(f.Fd())), f.Close()); err != nil {
			return 0, err
		}
	}
	return (ownCPU() - cpu) / floorFileMiB, nil
}

// readFloor reads two of those files; CPU of one MiB of body.
func readFloor(dir string) (time.Duration, error) {
	buf, err := aligned(mib / floorData)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(buf)
	cpu := ownCPU()
	for i := range floorData {
		f, err := openFloor(filepath.Join(dir, fmt.Sprint("shard", i)), os.O_RDONLY)
		if err != nil {
			return 0, err
		}
		for {
			if _, err = f.Read(buf); err != nil {
				break
			}
		}
		if cerr := f.Close(); err != io.EOF || cerr != nil {
			return 0, errors.Join(err, cerr)
		}
	}
	return (ownCPU() - cpu) / floorFileMiB, nil
}

// createFloor creates files of 4 KiB durably, directory entry included.
func createFloor(dir string) (time.Duration, error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	page := bytes.Repeat([]byte{1}, 4096)
	const n = 100
	cpu := ownCPU()
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint("small", i)))
		if err != nil {
			return 0, err
		}
		_, err = f.Write(page)
		if err := errors.Join(err, unix.Fdatasync(int(f.Fd())), f.Close(), d.Sync()); err != nil {
			return 0, err
		}
	}
	return (ownCPU() - cpu) / n, nil
}

// pebbleFloor commits from sixteen writers with sync, then reads back.
func pebbleFloor(dir string) (commit, get time.Duration, err error) {
	db, err := pebble.Open(dir, &pebble.Options{Logger: quiet{}})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	const writers, each = 16, 200
	value := bytes.Repeat([]byte{7}, 2048)
	key := func(w, i int) []byte { return fmt.Appendf(nil, "%04d-%06d", w, i) }
	var wg sync.WaitGroup
	fails := make([]error, writers)
	cpu := ownCPU()
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if fails[w] = db.Set(key(w, i), value, pebble.Sync); fails[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	commit = (ownCPU() - cpu) / (writers * each)
	if err = errors.Join(fails...); err != nil {
		return 0, 0, err
	}
	i := 0
	get = perOp(func() {
		_, c, gerr := db.Get(key(i%writers, i%each))
		if gerr == nil {
			gerr = c.Close()
		}
		err = errors.Join(err, gerr)
		i++
	})
	return commit, get, err
}

// quiet drops Pebble's log.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}
