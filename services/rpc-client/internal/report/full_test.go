//go:build unix

package report

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A write that fails halfway, as on a full disk, returns an error and leaves no partial file,
// and the old file stays.
func TestWriteFull(t *testing.T) {
	t.Parallel()
	json, err := sample().JSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		largest int
		full    []string
	}{
		"for both":     {len(json) / 2, []string{"report.json", "report.html"}},
		"for the page": {len(json), []string{"report.html"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const alone = "REPORT_TEST_ALONE"
			if os.Getenv(alone) != "" {
				writeFull(t, c.largest, c.full)
				return
			}
			top, sub, _ := strings.Cut(t.Name(), "/")
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run", "^"+top+"$/^"+sub+"$")
			cmd.Env = append(os.Environ(), alone+"=1")
			said, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(said), "--- PASS: "+t.Name()) {
				t.Errorf("the process that writes: %v\n%s", err, said)
			}
		})
	}
}

// writeFull writes a report in this process, whose limit on the size of files it lowers
// permanently: the test must run in a separate process. full names the files beyond the limit.
func writeFull(t *testing.T, largest int, full []string) {
	t.Helper()
	const before = "the report before"
	dir := t.TempDir()
	both := []string{"report.html", "report.json"}
	for _, name := range both {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	signal.Ignore(unix.SIGXFSZ) // the write fails instead
	limit := unix.Rlimit{Cur: uint64(largest), Max: uint64(largest)}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	paths, err := sample().Write(dir)
	if !errors.Is(err, syscall.EFBIG) || len(paths) != len(both)-len(full) {
		t.Fatalf("wrote %q, %v", paths, err)
	}
	if got := names(t, dir); !slices.Equal(got, both) {
		t.Errorf("the directory holds %q", got)
	}
	for _, name := range both {
		path := filepath.Join(dir, name)
		content, failed := os.ReadFile(path)
		if failed != nil {
			t.Fatal(failed)
		}
		want := slices.Contains(full, name)
		if stayed := string(content) == before; stayed != want || slices.Contains(paths, path) == want {
			t.Errorf("%s has %d bytes, those from before: %v, want %v; wrote %q", name, len(content), stayed, want, paths)
		}
		if told := strings.Contains(err.Error(), "write the report "+path+": write "); told != want {
			t.Errorf("it is said that %s failed: %v, want %v: %v", name, told, want, err)
		}
	}
}
