package process

import (
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// FindBroker returns the ID of the local process listening on the port of the broker's URL, or
// 0 if no such process exists or if another user owns the process.
func FindBroker(raw string) int {
	u, err := url.Parse(raw)
	if err != nil {
		return 0
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return 0
	}
	wanted := make(map[string]bool)
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table) //nolint:gosec // one of two.
		if err != nil {
			continue
		}
		for _, inode := range listeners(string(text), port) {
			wanted["socket:["+inode+"]"] = true
		}
	}
	if len(wanted) == 0 {
		return 0
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, file := range files {
		if target, err := os.Readlink(file); err == nil && wanted[target] {
			pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
			return pid
		}
	}
	return 0
}

// listeners returns the inodes of the sockets listening on the port. The table is the text of
// /proc/net/tcp or /proc/net/tcp6.
func listeners(table string, port uint64) []string {
	const listening = "0A"
	var inodes []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != listening {
			continue
		}
		_, text, _ := strings.Cut(fields[1], ":")
		if p, err := strconv.ParseUint(text, 16, 16); err == nil && p == port {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}
