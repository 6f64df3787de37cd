package main

import (
	"strings"
	"testing"
)

func TestAMountPointWithoutItsDiskIsDoubted(t *testing.T) {
	for _, c := range []struct {
		name    string
		devices map[string]uint64 // what is not named lies on 1, the root
		path    string
		drives  []string
		says    string
	}{
		{"the disk is mounted", map[string]uint64{"/mnt/d1": 2, "/mnt/d2": 3, "/mnt/d3": 4}, "/mnt/d3", []string{"/mnt/d1", "/mnt/d2"}, ""},
		{"the disk is not mounted", map[string]uint64{"/mnt/d1": 2, "/mnt/d2": 3}, "/mnt/d3", []string{"/mnt/d1", "/mnt/d2"}, "nothing is mounted at /mnt/d3"},
		{"one other drive, and it is a mount point", map[string]uint64{"/mnt/d1": 2}, "/mnt/d3", []string{"/mnt/d1"}, "nothing is mounted"},
		{"all in one directory", nil, "/data/d3", []string{"/data/d1", "/data/d2"}, ""},
		{"all on one mounted file system", map[string]uint64{"/mnt": 2, "/mnt/d1": 2, "/mnt/d2": 2, "/mnt/d3": 2}, "/mnt/d3", []string{"/mnt/d1", "/mnt/d2"}, ""},
		{"directories below mount points, and the new one on the root", map[string]uint64{"/mnt/d1": 2, "/mnt/d1/data": 2, "/mnt/d2": 3, "/mnt/d2/data": 3}, "/mnt/d3/data",
			[]string{"/mnt/d1/data", "/mnt/d2/data"}, "of the operating system"},
		{"directories below mount points, and all mounted", map[string]uint64{"/mnt/d1": 2, "/mnt/d1/data": 2, "/mnt/d2": 3, "/mnt/d2/data": 3, "/mnt/d3": 4, "/mnt/d3/data": 4}, "/mnt/d3/data",
			[]string{"/mnt/d1/data", "/mnt/d2/data"}, ""},
		{"two on one disk", map[string]uint64{"/mnt/d1": 2, "/mnt/d1/a": 2, "/mnt/d1/b": 2, "/mnt/d2": 3, "/mnt/d2/a": 3}, "/mnt/d1/b", []string{"/mnt/d1/a", "/mnt/d2/a"}, "as the drive at /mnt/d1/a"},
		{"no other drive", nil, "/data/d3", nil, ""},
	} {
		got := mountDoubt(c.path, c.drives, func(path string) (uint64, bool) {
			if d, ok := c.devices[path]; ok {
				return d, true
			}
			return 1, true
		})
		if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", c.name, got, c.says)
		}
	}
	if got := mountDoubt("/no/such/path", []string{"/"}, deviceOf); got != "" {
		t.Errorf("where devices cannot be told: %q", got)
	}
}
