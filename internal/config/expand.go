package config

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ostraka/ostraka/internal/errs"
)

// MaxDrives bounds what one command line may name.
const MaxDrives = 1024

// ExpandAll expands the ranges in every argument, in order, and refuses a directory that is
// named twice or that lies in another one.
func ExpandAll(args []string) ([]string, error) {
	var all []string
	for _, a := range args {
		list, err := Expand(a)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
		if len(all) > MaxDrives {
			return nil, invalidRange("more than %d drives are named", MaxDrives)
		}
	}
	paths := make([]string, len(all))
	for i, d := range all {
		abs, err := filepath.Abs(d)
		if err != nil {
			return nil, &errs.Error{Op: "config.ExpandAll", Kind: errs.Invalid, Msg: fmt.Sprintf("drive %q has no absolute path", d), Err: err}
		}
		paths[i] = abs
	}
	for i, p := range paths {
		for j, q := range paths {
			switch {
			case i < j && p == q:
				return nil, invalidRange("drive %s is named twice", p)
			case i != j && strings.HasPrefix(p, strings.TrimSuffix(q, "/")+"/"):
				return nil, invalidRange("drive %s lies inside drive %s", p, q)
			}
		}
	}
	return paths, nil
}

// Expand expands every {first...last} of s. Numbers are decimal; where first has leading zeros,
// each number is padded to its width: d{01...12}. The leftmost range varies slowest.
func Expand(s string) ([]string, error) {
	open := strings.IndexByte(s, '{')
	if open < 0 {
		if s == "" || strings.ContainsRune(s, '}') {
			return nil, invalidRange("%q is not a drive: it is empty or has a } without {", s)
		}
		return []string{s}, nil
	}
	if strings.ContainsRune(s[:open], '}') {
		return nil, invalidRange("%q has a } without {", s)
	}
	length := strings.IndexByte(s[open:], '}')
	if length < 0 {
		return nil, invalidRange("%q has a { without }", s)
	}
	inner, rest := s[open+1:open+length], s[open+length+1:]
	from, to, ok := strings.Cut(inner, "...")
	a, errA := strconv.ParseUint(from, 10, 32)
	b, errB := strconv.ParseUint(to, 10, 32)
	if !ok || errA != nil || errB != nil || a > b {
		return nil, invalidRange("{%s} in %q is not a range such as {1...4}", inner, s)
	}
	if b-a >= MaxDrives {
		return nil, invalidRange("{%s} names more than %d drives", inner, MaxDrives)
	}
	tails := []string{""}
	if rest != "" {
		var err error
		if strings.ContainsAny(rest, "{}") {
			if tails, err = Expand(rest); err != nil {
				return nil, err
			}
		} else {
			tails = []string{rest}
		}
	}
	if uint64(len(tails))*(b-a+1) > MaxDrives {
		return nil, invalidRange("%q names more than %d drives", s, MaxDrives)
	}
	width := 0
	if strings.HasPrefix(from, "0") {
		width = len(from)
	}
	var out []string
	for n := a; n <= b; n++ {
		for _, t := range tails {
			out = append(out, fmt.Sprintf("%s%0*d%s", s[:open], width, n, t))
		}
	}
	return out, nil
}

// ParseProfile reads "K+M". The bound is that of the code: at most 255 shards.
func ParseProfile(s string) (k, m int, err error) {
	a, b, ok := strings.Cut(s, "+")
	x, errA := strconv.ParseUint(a, 10, 8)
	y, errB := strconv.ParseUint(b, 10, 8)
	if !ok || errA != nil || errB != nil || x < 1 || x+y > 255 {
		return 0, 0, invalidRange("%q is not a profile such as 2+2", s)
	}
	return int(x), int(y), nil
}

// Size is a number of bytes. It reads plain numbers and the suffixes KiB, MiB, GiB and TiB
// (powers of 1024), and kB, MB, GB and TB (powers of 1000).
type Size int64

var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// UnmarshalText reads a size.
func (z *Size) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	factor := int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/factor {
		return invalidRange("%q is not a size such as 256MiB", text)
	}
	*z = Size(n * factor)
	return nil
}

// String prints the size with the largest power of 1024 that divides it.
func (z Size) String() string {
	for i := 3; i >= 0; i-- {
		if u := sizeUnits[i]; z != 0 && int64(z)%u.factor == 0 {
			return fmt.Sprintf("%d%s", int64(z)/u.factor, u.suffix)
		}
	}
	return fmt.Sprintf("%dB", int64(z))
}

func invalidRange(format string, args ...any) error {
	return errs.E("config", errs.Invalid, fmt.Sprintf(format, args...))
}
