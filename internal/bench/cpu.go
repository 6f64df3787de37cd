package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the kernel's USER_HZ, which is 100 on every Linux port that Go supports.
const clockTick = 10 * time.Millisecond

// cpuTime returns the user and system time that each of the processes has used so far (fields 14 and 15
// of /proc/PID/stat, proc(5)). Its resolution is 10 ms, so phases must be long against that.
func cpuTime(pids []int) ([]time.Duration, error) {
	used := make([]time.Duration, len(pids))
	for i, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil, err
		}
		// The command name, in parentheses, may hold anything: fields are counted behind it.
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(f) < 13 {
			return nil, fmt.Errorf("bench: /proc/%d/stat has %d fields", pid, len(f))
		}
		for _, field := range f[11:13] {
			n, err := strconv.ParseInt(string(field), 10, 64)
			if err != nil {
				return nil, err
			}
			used[i] += time.Duration(n) * clockTick
		}
	}
	return used, nil
}

// ownCPU returns the user and system time of this process.
func ownCPU() time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
