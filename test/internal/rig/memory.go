package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// MemoryLimit bounds the memory of a program by a new control group or, if a group cannot be
// created, by the limit of a process's data.
type MemoryLimit struct {
	// Kind is the kind of the limit: "cgroup v1", "cgroup v2" or "ulimit -d".
	Kind string

	bytes       int
	folder, max string
}

// NewMemoryLimit creates a limit. Its removal at the end of the test comes after the end of
// programs started later by the test.
func NewMemoryLimit(t testing.TB, bytes int) *MemoryLimit {
	t.Helper()
	name := "amqpx-test-" + uuid.NewString()
	own := ownGroups()
	for _, group := range []struct{ kind, folder, limit, swap, max string }{
		{"cgroup v2", filepath.Join("/sys/fs/cgroup", own[""]), "memory.max", "memory.swap.max", "memory.peak"},
		{"cgroup v1", filepath.Join("/sys/fs/cgroup/memory", own["memory"]), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes"},
	} {
		folder := filepath.Join(group.folder, name)
		if os.Mkdir(folder, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(folder); err != nil {
				t.Errorf("remove the control group: %v", err)
			}
		})
		limit := []byte(strconv.Itoa(bytes))
		if write(filepath.Join(folder, group.limit), limit) != nil {
			continue
		}
		_ = write(filepath.Join(folder, group.swap), limit) // there may be no swap
		return &MemoryLimit{Kind: group.kind, bytes: bytes, folder: folder, max: group.max}
	}
	return &MemoryLimit{Kind: "ulimit -d", bytes: bytes}
}

// ownGroups returns the control groups of this process by controller. The key of version 2 is
// "".
func ownGroups() map[string]string {
	groups := make(map[string]string)
	text, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			for controller := range strings.SplitSeq(parts[1], ",") {
				groups[controller] = parts[2]
			}
		}
	}
	return groups
}

func write(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// Command returns a command line that starts a program within the limit.
func (m *MemoryLimit) Command(program string, args ...string) []string {
	enter := `echo $$ >"$0/cgroup.procs" && exec "$@"`
	if m.folder == "" {
		enter = fmt.Sprintf(`ulimit -d %d && exec "$@"`, m.bytes>>10)
	}
	return append([]string{"sh", "-c", enter, m.folder, program}, args...)
}

// Peak returns the maximum memory usage, or 0 if the system does not count it.
func (m *MemoryLimit) Peak() int {
	text, err := os.ReadFile(filepath.Join(m.folder, m.max))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return n
}
