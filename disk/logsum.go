package disk

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
)

// Pebble takes the first record of its newest log that does not verify for the torn end that a crash leaves, unless a
// later one says that it was synced. What the last sync made durable, and was acknowledged, would so be cut off in
// silence where it is damaged. So it is for the last record of a MANIFEST.
//
// The guard therefore writes down what each of these files held when it was last synced (vfsx.Sums), and this is
// compared before Pebble reads them. The bytes beyond are nobody's promise. Where a power cut took the sum, or left an older
// one, only Pebble's own check applies to what was synced after it.
//
// A sum never outlives what it is about: Pebble gives no number of a file in its directory to another, and none below
// that of the first log that the MANIFEST needs. Logs that are used again get a new name first.

// sumsFile holds the sums, in Pebble's directory: Pebble leaves alone what it does not know by name.
const sumsFile = "ostraka.sums"

const logSuffix = ".log"

// checkLogs verifies the MANIFEST and the logs that the record store in dir will be opened with, and returns the sums
// that are still of use. The error is errs.Corrupt where a file is damaged. Sums that cannot be read say nothing. forming
// allows that there is no record store yet.
func checkLogs(fsys vfs.FS, dir string, forming bool, log *slog.Logger) ([]vfsx.Sum, error) {
	manifest, err := checkManifest(fsys, dir)
	if err != nil {
		return nil, err
	}
	if manifest == "" {
		if forming {
			err = forgetSums(fsys, dir)
		}
		return nil, err
	}
	sums, err := vfsx.ReadSums(fsys, fsys.PathJoin(dir, sumsFile))
	if err != nil {
		log.Warn("the sums of the record store's logs cannot be read; damage at their end may go unnoticed", "dir", dir, "cause", err)
	}
	if len(sums) == 0 {
		return nil, nil
	}
	var kept []vfsx.Sum
	for _, s := range sums {
		if s.Name == manifest {
			kept = append(kept, s)
			if err := checkSum(fsys, dir, s); err != nil {
				return nil, err
			}
		}
	}
	f, err := fsys.Open(fsys.PathJoin(dir, manifest), vfs.SequentialReadsOption)
	if err != nil {
		return nil, err
	}
	first, err := firstLog(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	for _, s := range sums {
		num, err := strconv.ParseUint(strings.TrimSuffix(s.Name, logSuffix), 10, 64)
		if !strings.HasSuffix(s.Name, logSuffix) || err != nil || num < first {
			continue
		}
		kept = append(kept, s)
		if err := checkSum(fsys, dir, s); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// checkSum compares a file with its sum. It may be longer: what was not synced says nothing.
func checkSum(fsys vfs.FS, dir string, s vfsx.Sum) error {
	f, err := fsys.Open(fsys.PathJoin(dir, s.Name), vfs.SequentialReadsOption)
	if vfsx.IsNotExist(err) {
		return errs.E("disk.Open", errs.Corrupt, fmt.Sprintf("%s is lost, of which %d bytes were synced", s.Name, s.Length))
	}
	if err != nil {
		return err
	}
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, io.LimitReader(f, s.Length))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	switch {
	case n < s.Length:
		return errs.E("disk.Open", errs.Corrupt, fmt.Sprintf("%s is cut short: it has %d bytes, and %d were synced", s.Name, n, s.Length))
	case sum.Sum32() != s.CRC:
		return errs.E("disk.Open", errs.Corrupt, fmt.Sprintf("%s is damaged: its first %d bytes are not those that were synced", s.Name, n))
	}
	return nil
}

// forgetSums removes the sums of a record store that was never finished: the next one begins to count anew.
func forgetSums(fsys vfs.FS, dir string) error {
	if err := fsys.Remove(fsys.PathJoin(dir, sumsFile)); err != nil {
		if vfsx.IsNotExist(err) {
			return nil
		}
		return err
	}
	return vfsx.SyncDir(fsys, dir)
}

// keepSums begins to keep the sums of the store in dir, beside those of before. A drive goes on without.
func (s *store) keepSums(fsys vfs.FS, dir string, before []vfsx.Sum) {
	failed := func(err error) {
		s.log.Warn("the sums of the record store's logs cannot be written; damage at their end may go unnoticed", "dir", dir, "cause", err)
	}
	sums, err := vfsx.OpenSums(fsys, fsys.PathJoin(dir, sumsFile), before, failed)
	if err != nil {
		failed(err)
		return
	}
	s.sums = sums
	s.guard.KeepSums(sums)
}
