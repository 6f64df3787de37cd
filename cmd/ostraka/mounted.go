package main

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// deviceOf returns the device that a path lies on; false: that cannot be told.
func deviceOf(path string) (uint64, bool) {
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return 0, false
	}
	return uint64(s.Dev), true //nolint:unconvert // its type depends on the platform
}

// mountDoubt says why the empty directory at path may be a mount point without its disk; "": nothing
// speaks for that. drives are the directories of drives in service. A store on one file system, such
// as for a trial, is never doubted.
func mountDoubt(path string, drives []string, device func(string) (uint64, bool)) string {
	dev, ok := device(path)
	above, okAbove := device(filepath.Dir(path))
	root, okRoot := device("/")
	if !ok || !okAbove || !okRoot || len(drives) == 0 {
		return ""
	}
	mounted, own, onRoot, shared := true, true, false, ""
	seen := map[uint64]bool{}
	for _, d := range drives {
		at, ok := device(d)
		over, okOver := device(filepath.Dir(d))
		if !ok || !okOver {
			return ""
		}
		mounted = mounted && at != over
		own = own && !seen[at]
		seen[at] = true
		onRoot = onRoot || at == root
		if at == dev {
			shared = d
		}
	}
	switch {
	case dev == above && mounted:
		return fmt.Sprintf("nothing is mounted at %s, while every other drive is a mount point: is the new disk mounted?", path)
	case own && len(drives) > 1 && shared != "":
		return fmt.Sprintf("%s is on the same file system as the drive at %s, while every other drive has one of its own: is the new disk mounted?", path, shared)
	case own && !onRoot && dev == root:
		return fmt.Sprintf("%s is on the file system of the operating system, and no other drive is: is the new disk mounted?", path)
	}
	return ""
}
