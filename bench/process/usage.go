package process

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rabbitmq-rpc/bench/contender"
)

// Usage is the resource usage of a process since its start.
type Usage struct {
	CPU     time.Duration `json:"cpu"`
	Mallocs uint64        `json:"mallocs"`
	Bytes   uint64        `json:"bytes"`
	RSS     uint64        `json:"rss"`  // resident now, in bytes
	Peak    uint64        `json:"peak"` // resident at most
	Stacks  uint64        `json:"stacks"`
	Heap    uint64        `json:"heap"`
}

// used returns the usage of this process.
func used() (Usage, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return Usage{}, err
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	cpu := time.Duration(r.Utime.Nano() + r.Stime.Nano())
	u := Usage{CPU: cpu, Mallocs: m.Mallocs, Bytes: m.TotalAlloc, Stacks: m.StackInuse, Heap: m.HeapInuse}
	return u, u.readMemory("/proc/self/status")
}

// usedBy returns the usage of the programs that a contender runs in place of this process.
func usedBy(m contender.Meter) (Usage, error) {
	ended, running := m.Used()
	cpu, err := threadsCPU(running)
	u := Usage{CPU: ended + cpu}
	if err != nil || running == 0 {
		return u, err
	}
	return u, u.readMemory(fmt.Sprintf("/proc/%d/status", running))
}

// Resident returns the resident memory of a process in bytes; 0 for pid 0.
func Resident(pid int) (uint64, error) {
	var u Usage
	if pid == 0 {
		return 0, nil
	}
	err := u.readMemory(fmt.Sprintf("/proc/%d/status", pid))
	return u.RSS, err
}

// OpenFiles returns the number of open file descriptors of a process; 0 for pid 0.
func OpenFiles(pid int) (int, error) {
	if pid == 0 {
		return 0, nil
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries), err
}

// readMemory reads the resident memory from the status of a process.
func (u *Usage) readMemory(file string) error {
	status, err := os.ReadFile(file) //nolint:gosec // one of two.
	if err != nil {
		return err
	}
	u.RSS, u.Peak = statusBytes(string(status), "VmRSS"), statusBytes(string(status), "VmHWM")
	return nil
}

// statusBytes returns a size from a process's status, such as "VmRSS:  512 kB", in bytes, or 0
// if the status has no such line.
func statusBytes(status, name string) uint64 {
	for line := range strings.Lines(status) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == name+":" {
			kilobytes, _ := strconv.ParseUint(fields[1], 10, 64)
			return kilobytes << 10
		}
	}
	return 0
}

// plus adds up processor time and allocations; memory is the larger value of both.
func (u Usage) plus(v Usage) Usage {
	return Usage{CPU: u.CPU + v.CPU, Mallocs: u.Mallocs + v.Mallocs, Bytes: u.Bytes + v.Bytes, RSS: max(u.RSS, v.RSS), Peak: max(u.Peak, v.Peak)}
}

// Since returns the processor time and the allocations since an earlier usage.
func (u Usage) Since(before Usage) Usage {
	return Usage{CPU: u.CPU - before.CPU, Mallocs: u.Mallocs - before.Mallocs, Bytes: u.Bytes - before.Bytes}
}

// threadsCPU adds up the processor time of a process's threads, to the nanosecond; 0 for pid
// 0. The figures come from /proc.
func threadsCPU(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("no processor times of process %d", pid)
	}
	var total time.Duration
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // made of a number.
		if os.IsNotExist(err) {
			continue // a thread that ended just now
		}
		if err != nil {
			return 0, err
		}
		running, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(running, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}
