package main

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/ostraka/ostraka/internal/config"
)

// minMemory is the smallest limit that is chosen without being told.
const minMemory = 256 << 20

// limitMemory sets the soft limit of the Go heap and returns it: GOMEMLIMIT, else what was asked
// for, else a quarter of what the machine or its control group has.
func limitMemory(asked config.Size, gomemlimit string) int64 {
	if gomemlimit != "" {
		return debug.SetMemoryLimit(-1) // the runtime has read it
	}
	limit := int64(asked)
	if limit == 0 {
		limit = max(machineMemory()/4, minMemory)
	}
	debug.SetMemoryLimit(limit)
	return limit
}

// machineMemory is the memory that this process may use, or 0 if nothing says so.
func machineMemory() int64 {
	var total int64
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range bytes.Lines(raw) {
			if f := strings.Fields(string(line)); len(f) >= 2 && f[0] == "MemTotal:" {
				if kb, err := strconv.ParseInt(f[1], 10, 64); err == nil {
					total = kb << 10
				}
			}
		}
	}
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// "max", and the huge number that means the same, leave the machine's figure.
		if n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && n > 0 && (total == 0 || n < total) {
			total = n
		}
	}
	return total
}
